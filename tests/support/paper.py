"""Helpers to run the real paper exchange in a test: a scripted feed, the server on a free port, orders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from cluster.clock import boottime_ns
from node.feeds.base import FeedHealth, FeedState, MarketEvent, Quote, Trade
from node.paper_venue.record import read_record
from node.paper_venue.server import VenueServerConfig, run_venue
from node.types import (
    ClientOrderId,
    Instrument,
    OrderSpec,
    OrderType,
    Side,
    StreamDown,
    StreamUp,
    TimeInForce,
    VenueEvent,
    VenueFill,
    VenueOrderEvent,
    WireOrder,
)
from node.venues.base import Venue
from node.venues.paper import PaperVenue

SYMBOL = "BTCUSDT"
BTC = Instrument(SYMBOL, Decimal("0.01"), Decimal("0.00001"))
ETH = Instrument("ETHUSDT", Decimal("0.05"), Decimal("0.001"))
INSTRUMENTS = (BTC, ETH)
WAIT_S = 10.0  # for what happens within milliseconds unless something is broken


def quote(bid: int, ask: int, bid_lots: int = 100, ask_lots: int = 100, seq: int = 1, symbol: str = SYMBOL) -> Quote:
    return Quote(symbol, seq, bid, bid_lots, ask, ask_lots, received_at=boottime_ns())


def trade(price: int, lots: int, seq: int = 1, symbol: str = SYMBOL) -> Trade:
    return Trade(symbol, seq, price, lots, buyer_is_maker=True, venue_at_ms=0, received_at=boottime_ns())


def limit(side: Side, lots: int, price: int, **more: Any) -> OrderSpec:
    return OrderSpec(SYMBOL, side, lots, price, **more)


def ioc(side: Side, lots: int, price: int) -> OrderSpec:
    return OrderSpec(SYMBOL, side, lots, price, tif=TimeInForce.IOC)


def market(side: Side, lots: int) -> OrderSpec:
    return OrderSpec(SYMBOL, side, lots, type=OrderType.MARKET)


def order(coid: str, spec: OrderSpec, token: int = 1, expires_at_ns: int | None = None) -> WireOrder:
    return WireOrder(ClientOrderId(coid), f"decision-{coid}", spec, token, expires_at_ns)


async def next_events(venue: Venue, after_seq: int, n: int) -> list[VenueFill | VenueOrderEvent]:
    """The next `n` events after `after_seq`, without the stream's own ups and downs."""
    got: list[VenueFill | VenueOrderEvent] = []
    async with asyncio.timeout(WAIT_S):
        async with aclosing(venue.events(after_seq)) as events:  # type: ignore[type-var]
            async for event in events:
                if not isinstance(event, (StreamUp, StreamDown)):
                    got.append(event)
                if len(got) == n:
                    break
    return got


async def next_event(events: AsyncIterator[VenueEvent]) -> VenueEvent:
    async with asyncio.timeout(WAIT_S):
        return await anext(events)


async def eventually(condition: Any, what: str) -> None:
    """Wait until `condition()` holds."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 (any condition: there is no event to wait for)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S} s: {what}") from None


class ScriptedFeed:
    """Says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self._script: asyncio.Queue[MarketEvent] = asyncio.Queue(1000)

    async def say(self, event: MarketEvent) -> None:
        """Returns once the listener has dealt with it."""
        self._script.put_nowait(event)
        async with asyncio.timeout(WAIT_S):
            await self._script.join()

    async def events(self) -> AsyncIterator[MarketEvent]:
        while True:
            event = await self._script.get()
            yield event
            self._script.task_done()

    def health(self, now: int) -> FeedHealth:
        return FeedHealth(FeedState.LIVE, 0.0, 0, 0, 0, 0, 0, 0)

    async def close(self) -> None: ...


@dataclass
class RunningVenue:
    port: int
    feed: ScriptedFeed
    directory: Path
    stop: asyncio.Event

    def adapter(self, node: str = "n1", account: str = "main", **more: Any) -> PaperVenue:
        settings: dict[str, Any] = {"instruments": INSTRUMENTS, "call_timeout_s": 2.0, "rng": random.Random(1)} | more
        key = settings.pop("api_key", "key")
        return PaperVenue(f"127.0.0.1:{self.port}", account, key, node, **settings)

    def lines(self) -> list[dict[str, Any]]:
        return list(read_record(self.directory))


@asynccontextmanager
async def running_venue(directory: Path, **config: Any) -> AsyncIterator[RunningVenue]:
    """The real server in this process and loop, on real sockets."""
    loop = asyncio.get_running_loop()
    port: asyncio.Future[int] = loop.create_future()
    feed, stop = ScriptedFeed(), asyncio.Event()
    defaults: dict[str, Any] = {"listen": "127.0.0.1:0", "directory": directory, "instruments": INSTRUMENTS}
    settings = VenueServerConfig(**(defaults | config))
    server = asyncio.create_task(run_venue(settings, feed=feed, ready=port.set_result, stop=stop))
    try:
        async with asyncio.timeout(WAIT_S):
            ends: list[asyncio.Future[Any]] = [server, port]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if server.done():
                server.result()
        yield RunningVenue(port.result(), feed, directory, stop)
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_S):
            await server
