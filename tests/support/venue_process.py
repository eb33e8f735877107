"""The paper exchange as a process that a test may kill.  python -m tests.support.venue_process DIRECTORY PORT PROFILE

Prints its port when it takes orders. Its market moves by itself: a tick up and down every few milliseconds.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from node.feeds.base import FeedHealth, FeedState, MarketEvent
from node.paper_venue.profile import parse_profile
from node.paper_venue.server import VenueServerConfig, run_venue
from tests.support.paper import INSTRUMENTS, quote


class SwingingFeed:
    async def events(self) -> AsyncIterator[MarketEvent]:
        seq = 0
        while True:
            seq += 1
            yield quote(990 + seq % 2, 1000 + seq % 2, bid_lots=50, ask_lots=50, seq=seq)
            await asyncio.sleep(0.002)

    def health(self, now: int) -> FeedHealth:
        return FeedHealth(FeedState.LIVE, 0.0, 0, 0, 0, 0, 0, 0)

    async def close(self) -> None: ...


def main() -> None:
    directory, port, profile = sys.argv[1:]
    config = VenueServerConfig(f"127.0.0.1:{port}", Path(directory), INSTRUMENTS, parse_profile(profile))
    uvloop.run(run_venue(config, feed=SwingingFeed(), ready=lambda bound: print(bound, flush=True)))


if __name__ == "__main__":
    main()
