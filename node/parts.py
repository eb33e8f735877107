"""What one node is made of, and the only place that picks implementations.

`Parts` is made once, by `worker.py`, and handed to whoever leads (`leading.py`) or tells (`report.py`). It decides and
does nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cluster.core.errors import ConfigError
from cluster.core.stream import Digests
from cluster.delivery import Delivery
from cluster.follower import Follower
from cluster.journal import Journal
from cluster.link import Link
from cluster.permit import PermitPage
from cluster.replication import ReplicationServer
from node.book import Book
from node.config import Config
from node.config_model import FEED_ADAPTERS, VENUE_ADAPTERS
from node.feeds.base import Feed
from node.gate import Gate
from node.host import StrategyHost
from node.permission import Conditions
from node.telemetry import Telemetry
from node.types import Instrument
from node.venue_clock import VenueClock
from node.venues.base import Venue


@dataclass(slots=True, kw_only=True)
class Parts:
    """book: replaced when a snapshot is installed, so look it up here each time and do not keep it over a wait.
    warnings: for people, until the process ends."""

    config: Config
    name: str
    instruments: dict[str, Instrument]
    page: PermitPage
    link: Link
    journal: Journal
    book: Book
    digests: Digests
    delivery: Delivery
    server: ReplicationServer
    follower: Follower
    host: StrategyHost
    gate: Gate
    venue: Venue
    clock: VenueClock
    feed: Feed
    conditions: Conditions
    telemetry: Telemetry
    warnings: list[str] = field(default_factory=list)


def make_venue(config: Config, rng: random.Random) -> Venue:
    """The adapter that `venue.adapter` names."""
    v = config.venue
    if v.adapter == "paper":
        from node.venues.paper import PaperVenue

        return PaperVenue(
            v.target,
            v.account,
            v.api_key.reveal() if v.api_key else "",
            config.node.name,
            instruments=list(config.instrument_table().values()),
            call_timeout_s=v.call_timeout_s,
            rng=rng,
        )
    raise ConfigError(f"venue.adapter = {v.adapter!r} is not known; known: {', '.join(VENUE_ADAPTERS)}")


def make_feed(config: Config, rng: random.Random) -> Feed:
    """The adapter that `feed.adapter` names."""
    f = config.feed
    if f.adapter == "binance":
        from node.feeds.binance import BinanceFeed

        return BinanceFeed(f.url, list(config.instrument_table().values()), stale_after_s=f.stale_after_s, rng=rng)
    raise ConfigError(f"feed.adapter = {f.adapter!r} is not known; known: {', '.join(FEED_ADAPTERS)}")
