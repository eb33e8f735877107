"""A venue in memory, on the real engine: the same judgement, no wire and no disk.

`FakeExchange` is the venue, `FakeVenue` one node's adapter to it; several adapters may share an exchange. Time
stands still unless `pass_time` moves it. Faults: `down` (nothing gets through), `lose_replies` (requests arrive,
answers do not). Passes tests/contract/venue_contract.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import InvariantViolation, OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.ids import ns
from node.feeds.base import MarketEvent
from node.paper_venue import wire
from node.paper_venue.engine import Engine, Limits
from node.paper_venue.lines import Line, to_json
from node.paper_venue.profile import Profile
from node.paper_venue.state import Moment, Sender
from node.types import (
    Accepted,
    ClientOrderId,
    Instrument,
    NotSent,
    Refused,
    StreamDown,
    StreamUp,
    SubmitResult,
    Unknown,
    VenueEvent,
    VenueFill,
    VenueOrder,
    WireOrder,
)
from node.venues.base import Absent, Armed, DeadmanScope, Found, LookupResult, TimeSample, Unavailable


class FakeExchange:
    def __init__(self, profile: Profile, instruments: Iterable[Instrument], limits: Limits | None = None) -> None:
        self.engine = Engine(profile, instruments, limits)
        self.lines: list[Line] = []
        self.down = False
        self.lose_replies = False
        self._now = Moment(boottime_ns(), unix_ns())
        self._changed: set[asyncio.Event] = set()

    @property
    def now(self) -> Moment:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now = Moment(self._now.instant + ns(seconds), self._now.unix_ns + ns(seconds))
        self.do(self.engine.tick)

    def market(self, event: MarketEvent) -> None:
        self.do(lambda at: self.engine.market(event, at))

    def set_down(self, down: bool) -> None:
        """Break the streams, too."""
        self.down = down
        self._wake()

    def do(self, decide: Callable[[Moment], list[Line]]) -> list[Line]:
        lines = decide(self._now)
        self.lines += lines
        self._wake()
        return lines

    def record(self) -> list[dict[str, Any]]:
        """As `read_record` would give it, without chains."""
        return [json.loads(to_json(line, self.engine.instruments)) for line in self.lines]

    def events(self, account: str, after_seq: int) -> list[Line]:
        return [n for n in self.lines if n.account == account and (n.event_seq or 0) > after_seq]

    def subscribe(self) -> asyncio.Event:
        changed = asyncio.Event()
        self._changed.add(changed)
        return changed

    def unsubscribe(self, changed: asyncio.Event) -> None:
        self._changed.discard(changed)

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()


class FakeTicket:
    def __init__(self, result: SubmitResult, lines: list[Line] | None = None) -> None:
        self._result = result
        self.lines = lines or []

    async def result(self) -> SubmitResult:
        await asyncio.sleep(0)  # an answer never comes before its question was put
        return self._result


class FakeVenue:
    """Implements node.venues.base.Venue."""

    def __init__(self, exchange: FakeExchange, account: str = "main", node: str = "n1") -> None:
        self.exchange = exchange
        self.capabilities = exchange.engine.profile.capabilities
        self.sender = Sender(account, node, f"{node}-fake")
        self._open = False

    async def connect(self) -> None:
        if self.exchange.down:
            raise Unreachable("the fake venue is down")
        self._open = True

    async def close(self) -> None:
        self._open = False

    @property
    def connected(self) -> bool:
        return self._open and not self.exchange.down

    # -- order entry --

    def submit(self, order: WireOrder, still_allowed: Callable[[], bool] | None = None) -> FakeTicket:
        if not self.connected:
            return FakeTicket(NotSent("venue_disconnected", "the fake venue is down"))
        if still_allowed is not None and not still_allowed():
            return FakeTicket(NotSent("permit_ended", "leave to send ended before the order was written"))
        try:
            ask = wire.ask_of(order)
        except ValueError as e:
            return FakeTicket(NotSent("invalid_order", str(e)))
        lines = self.exchange.do(lambda at: self.exchange.engine.place(self.sender, order.token, ask, at))
        return self._answer(lines, order.expires_at_ns)

    async def cancel(self, client_order_id: ClientOrderId, token: int) -> SubmitResult:
        return await self._send(lambda at: self._engine.cancel(self.sender, token, client_order_id, at)).result()

    async def cancel_all(self, token: int) -> int:
        return len(await self._ask(lambda at: self._engine.cancel_all(self.sender, token, at))) - 1

    async def arm(self, token: int) -> Armed:
        if not self.capabilities.token:
            return Armed(token)
        await self._ask(lambda at: self._engine.arm(self.sender, token, at), refusals=("stale_token",))
        return Armed(self._engine.high_water(self.sender.account))

    async def keep_alive(self, token: int, ttl_s: float) -> None:
        if self.capabilities.deadman is not DeadmanScope.NONE:
            await self._ask(lambda at: self._engine.keep_alive(self.sender, token, round(ttl_s * 1000), at))

    @property
    def _engine(self) -> Engine:
        return self.exchange.engine

    def _send(self, decide: Callable[[Moment], list[Line]]) -> FakeTicket:
        if not self.connected:
            return FakeTicket(NotSent("venue_disconnected", "the fake venue is down"))
        return self._answer(self.exchange.do(decide), None)

    def _answer(self, lines: list[Line], expires_at_ns: int | None) -> FakeTicket:
        if self.exchange.lose_replies:
            return FakeTicket(Unknown("the fake venue's reply was lost", expires_at_ns))
        if lines and not lines[0].accepted:
            return FakeTicket(Refused(lines[0].reason or "", lines[0].detail or ""), lines)
        return FakeTicket(Accepted(lines[0].venue_order_id or "" if lines else ""), lines)

    async def _ask(self, decide: Callable[[Moment], list[Line]], refusals: tuple[str, ...] = ()) -> list[Line]:
        ticket = self._send(decide)
        result = await ticket.result()
        if isinstance(result, NotSent):
            raise Unreachable(result.reason)
        if isinstance(result, Unknown):
            raise OutcomeUnknown(result.reason)
        if isinstance(result, Refused) and result.code not in refusals:
            if result.code in ("stale_token", "token_required"):
                raise StaleTerm(result.reason)
            raise InvariantViolation(f"{result.code}: {result.reason}")
        return ticket.lines

    # -- questions --

    async def lookup(self, client_order_id: ClientOrderId) -> LookupResult:
        if not self.connected:
            return Unavailable("the fake venue is down")
        found = self._engine.open_order(self.sender.account, client_order_id)
        if found is None:
            closes = [n for n in self._mine("closed") if n.client_order_id == client_order_id]
            found = closes[-1].order() if closes else None
        return Found(found) if found else Absent()

    async def open_orders(self) -> list[VenueOrder]:
        self._require_connection()
        return self._engine.open_orders(self.sender.account)

    async def fills_after(self, event_seq: int, limit: int = 1000) -> list[VenueFill]:
        self._require_connection()
        return [n.fill() for n in self._mine("fill") if (n.event_seq or 0) > event_seq][:limit]

    async def positions(self) -> dict[str, int]:
        self._require_connection()
        return {s: lots for s, (lots, _) in self._engine.positions(self.sender.account).items()}

    async def server_time(self) -> TimeSample:
        self._require_connection()
        now = self.exchange.now
        return TimeSample(now.instant, now.instant, now.unix_ns)

    def _mine(self, kind: str) -> list[Line]:
        return [n for n in self.exchange.lines if n.account == self.sender.account and n.kind == kind]

    def _require_connection(self) -> None:
        if not self.connected:
            raise Unreachable("the fake venue is down")

    # -- the private stream --

    async def events(self, after_seq: int) -> AsyncIterator[VenueEvent]:
        changed, cursor, up = self.exchange.subscribe(), after_seq, False
        try:
            while True:
                changed.clear()
                if up and not self.connected:
                    up = False
                    yield StreamDown("the fake venue is down")
                elif not up and self.connected:
                    up = True
                    yield StreamUp(cursor + 1)
                if up:
                    for line in self.exchange.events(self.sender.account, cursor):
                        cursor = line.event_seq or cursor
                        yield line.fill() if line.kind == "fill" else line.order_event()
                await changed.wait()
        finally:
            self.exchange.unsubscribe(changed)
