"""The venue's ear: the live feed, handed event by event to whoever matches against it.

Decides nothing: a feed that dies or goes silent makes the engine refuse orders (`no_market`) by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from node.feeds.base import Feed, MarketEvent

log = structlog.get_logger()

_BURST_EVENTS = 64


async def listen(feed: Feed, hear: Callable[[MarketEvent], None]) -> None:
    """Until the feed ends, which a live one does not. What `feed` raises ends the venue: better no fills than
    fills against a market that nobody listens to."""
    heard = 0
    async for event in feed.events():
        hear(event)
        heard += 1
        if heard % _BURST_EVENTS == 0:
            await asyncio.sleep(0)  # a replay may never suspend by itself: let orders in between
    log.warning("venue_feed_ended", events=heard)
