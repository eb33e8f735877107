"""The venue contract, against the real paper exchange over gRPC and against the fake one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.clock import unix_ns
from node.feeds.base import MarketEvent
from node.paper_venue.profile import parse_profile
from node.venues.base import Venue
from node.venues.paper import PaperVenue
from tests.contract.venue_contract import Rig, VenueContract
from tests.support.fake_venue import FakeExchange, FakeVenue
from tests.support.paper import INSTRUMENTS, RunningVenue, eventually, running_venue
from tests.support.proxy import Proxy


class TestFakeVenue(VenueContract):
    @asynccontextmanager
    async def open(self, profile: str, directory: Path, *, lose_replies: bool = False) -> AsyncIterator[Rig]:
        rig = FakeRig(FakeExchange(parse_profile(profile), INSTRUMENTS))
        rig.exchange.lose_replies = lose_replies
        await rig.venue.connect()
        yield rig


class FakeRig:
    def __init__(self, exchange: FakeExchange) -> None:
        self.exchange = exchange
        self.venue: Venue = FakeVenue(exchange)

    async def another(self, node: str) -> Venue:
        venue = FakeVenue(self.exchange, node=node)
        await venue.connect()
        return venue

    async def market(self, event: MarketEvent) -> None:
        self.exchange.market(event)

    async def pass_time(self, seconds: float) -> None:
        self.exchange.pass_time(seconds)

    def lines(self) -> list[dict[str, Any]]:
        return self.exchange.record()

    def venue_now_ns(self) -> int:
        return self.exchange.now.unix_ns

    async def break_connection(self) -> None:
        self.exchange.set_down(True)

    async def heal_connection(self) -> None:
        self.exchange.set_down(False)


class TestPaperVenue(VenueContract):
    @asynccontextmanager
    async def open(self, profile: str, directory: Path, *, lose_replies: bool = False) -> AsyncIterator[Rig]:
        config = {"profile": parse_profile(profile), "drop_ack_after": 0 if lose_replies else None}
        async with running_venue(directory, **config) as server, Proxy(server.port) as proxy:
            rig = PaperRig(server, proxy, call_timeout_s=0.3 if lose_replies else 5.0)
            await rig.venue.connect()
            try:
                yield rig
            finally:
                await rig.close()


class PaperRig:
    """The adapters reach the server through a proxy, which is where a connection is broken."""

    def __init__(self, server: RunningVenue, proxy: Proxy, call_timeout_s: float) -> None:
        self._server, self._proxy, self._call_timeout_s = server, proxy, call_timeout_s
        self._venues: list[PaperVenue] = []
        self.venue: Venue = self._adapter("n1")

    def _adapter(self, node: str) -> PaperVenue:
        through = RunningVenue(self._proxy.port, self._server.feed, self._server.directory, self._server.stop)
        venue = through.adapter(node, call_timeout_s=self._call_timeout_s)
        self._venues.append(venue)
        return venue

    async def another(self, node: str) -> Venue:
        venue = self._adapter(node)
        await venue.connect()
        return venue

    async def market(self, event: MarketEvent) -> None:
        await self._server.feed.say(event)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the real server's time cannot be moved

    def lines(self) -> list[dict[str, Any]]:
        return self._server.lines()

    def venue_now_ns(self) -> int:
        return unix_ns()

    async def break_connection(self) -> None:
        await self._proxy.cut()
        await eventually(lambda: not any(v.connected for v in self._venues), "the adapters noticed the break")

    async def heal_connection(self) -> None:
        await self._proxy.heal()
        await eventually(lambda: all(v.connected for v in self._venues), "the adapters are connected again")

    async def close(self) -> None:
        for venue in self._venues:
            await venue.close()
