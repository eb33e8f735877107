"""One leadership on a real loop, with a venue, a gate and a log in memory: the order of things, and every way it ends.

Each test also asserts at its end that no task is left and that no exception went unseen (`rig`)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.errors import StepDown as TermOver
from cluster.core.ids import Instant, Term
from cluster.core.log import Entry
from cluster.core.role import ExecutionPermit
from cluster.permit import PermitPage
from node import arming
from node import trader as trader_module
from node.book import Book
from node.codec import CancelRequested, Fact, Fill, Outcome, Reconciled, TermStarted
from node.feeds.base import FeedState
from node.paper_venue.profile import parse_profile
from node.permission import Conditions, Level, Permission
from node.strategy import Cancel, Place
from node.telemetry import Telemetry
from node.trader import Trader, TradingRules
from node.types import ClientOrderId, DecisionId, NotSent, OrderSpec, Side, StreamUp, SubmitResult, VenueEvent
from node.venue_clock import VenueClock
from node.venues.base import Capabilities, DeadmanScope, IdUniqueness, LookupResult, TimeSample
from tests.support.desk import INSTRUMENTS, LIMITS, SYMBOL, TAG, Log, S, buy
from tests.support.fake_gate import FakeGate, FakeGateServer
from tests.support.fake_venue import FakeExchange, FakeVenue
from tests.support.paper import eventually, order, quote, trade

LONG = 3600 * S


class Queue:
    """A ticket whose order still waits in the adapter's queue."""

    def __init__(self, venue: SlowVenue, order: Any, allowed: Callable[[], bool]) -> None:
        self.venue, self.order, self.allowed = venue, order, allowed
        self.done: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()

    async def result(self) -> SubmitResult:
        return await asyncio.shield(self.done)

    async def write(self) -> None:
        ticket = FakeVenue.submit(self.venue, self.order, self.allowed)
        self.done.set_result(await ticket.result())


class SlowVenue(FakeVenue):
    """With everything a test may want to hold up, break or look at."""

    def __init__(self, exchange: FakeExchange, node: str = "n1") -> None:
        super().__init__(exchange, "main", node)
        self.queued: list[Queue] | None = None  # a list: orders wait in it
        self.alive_calls = 0
        self.on_lookup: Callable[[], Awaitable[LookupResult]] | None = None
        self.on_alive: Callable[[], None] | None = None
        self.on_events: Callable[[], AsyncIterator[VenueEvent]] | None = None
        self.open_orders_error: Exception | None = None

    def submit(self, order: Any, still_allowed: Callable[[], bool] | None = None) -> Any:
        if self.queued is None:
            return super().submit(order, still_allowed)
        assert still_allowed is not None
        self.queued.append(Queue(self, order, still_allowed))
        return self.queued[-1]

    async def lookup(self, client_order_id: ClientOrderId) -> LookupResult:
        return await (self.on_lookup() if self.on_lookup else super().lookup(client_order_id))

    async def keep_alive(self, token: int, ttl_s: float) -> None:
        self.alive_calls += 1
        if self.on_alive:
            self.on_alive()
        await super().keep_alive(token, ttl_s)

    def events(self, after_seq: int) -> AsyncIterator[VenueEvent]:
        return self.on_events() if self.on_events else super().events(after_seq)

    async def open_orders(self) -> Any:
        if self.open_orders_error:
            raise self.open_orders_error
        return await super().open_orders()


class Rig:
    """A node that leads. `lead` begins a term with a new trader, over the same log, book, venue and gate."""

    def __init__(self) -> None:
        self.page = PermitPage.create()
        self.gate_server = FakeGateServer()
        self.gate = FakeGate(self.gate_server, "n1")
        self.log = Log()
        self.book = Book(TAG, INSTRUMENTS)
        self.clock = VenueClock()
        self.conditions = Conditions()
        self.telemetry = Telemetry("n1", "c", "0", lease_ttl_s=1.0, lease_margin_s=0.2)
        self.rules = TradingRules(TAG, LIMITS, 1.0, 3600.0, 0.0)
        self.commits = True  # entries are committed as soon as the loop comes round
        self.stepped_down: list[str] = []
        self.first_orders: list[int] = []
        self.permissions: list[Permission] = []
        self.traders: list[Trader] = []
        self.use("token")

    def use(self, profile: str) -> None:
        self.exchange = FakeExchange(parse_profile(profile), INSTRUMENTS)
        self.exchange.market(quote(990, 1000))
        self.venue = SlowVenue(self.exchange)

    @property
    def trader(self) -> Trader:
        return self.traders[-1]

    # -- the log ---------------------------------------------------------------------------------------------

    def append(self, fact: Fact) -> Entry:
        entry = self.log.append(fact)
        if self.commits:
            asyncio.get_running_loop().call_soon(self.commit)
        return entry

    def commit(self) -> None:
        while self.log.commit < len(self.log.entries):
            entry = self.log.entries[self.log.commit]
            self.log.commit += 1
            self.book.apply(entry)
            if self.traders:
                self.trader.applied(entry, self.log.facts[entry.index])

    # -- a term ------------------------------------------------------------------------------------------------

    def make(self, term: int = 7) -> Trader:
        self.log.term = term
        self.traders.append(
            Trader(
                term=term,
                rules=self.rules,
                book=self.book,
                append=self.append,
                page=self.page,
                gate=self.gate,
                venue=self.venue,
                clock=self.clock,
                conditions=self.conditions,
                telemetry=self.telemetry,
                reference=lambda _: 2 * 995,
                on_step_down=self.stepped_down.append,
                on_first_order=self.first_orders.append,
                on_permission=self.permissions.append,
            )
        )
        return self.trader

    async def take_over(self, term: int = 7) -> Trader:
        """Up to the point where the permit is missing."""
        self.conditions.standing, self.conditions.feed = "taking over", FeedState.LIVE
        self.conditions.gate_closed = self.conditions.venue_down = "not armed yet"
        if not self.venue._open:
            await self.venue.connect()
        self.clock.note(await self.venue.server_time())
        trader = self.make(term)
        self.append(TermStarted("n1", "i"))
        self.commit()
        await trader.arm()
        await trader.settle()
        return trader

    def permit(self, term: int = 7, ns: int = LONG) -> None:
        self.page.grant(ExecutionPermit(Term(term), Instant(boottime_ns() + ns)))

    async def lead(self, term: int = 7) -> Trader:
        trader = await self.take_over(term)
        self.permit(term)
        trader.granted()
        return trader

    def wish(self, spec: OrderSpec | None = None, decision: str = "d1") -> None:
        self.trader.wishes([(decision, Place(spec or buy(), DecisionId(decision)))], 0)

    # -- what came of it -----------------------------------------------------------------------------------------

    def placed(self) -> list[str]:
        """Client order ids of all that reached the venue, accepted or not."""
        return [n.client_order_id or "" for n in self.exchange.lines if n.kind == "new"]

    def outcomes(self) -> list[tuple[str, str]]:
        return [(o.result.name, o.code) for o in self.log.said(Outcome)]

    async def outcome(self, n: int = 1) -> tuple[str, str]:
        await eventually(lambda: len(self.outcomes()) >= n, f"{n} outcomes")
        return self.outcomes()[n - 1]

    async def level(self, level: Level, reason: str = "") -> None:
        def there() -> bool:
            return self.trader.permission.level is level and reason in self.trader.permission.reason

        await eventually(there, f"{level.value}: {reason}")

    async def gone(self) -> str:
        await eventually(lambda: self.stepped_down != [], "step down")
        return self.stepped_down[0]


async def leave_unknown(rig: Rig) -> None:
    """A leader of term 7 has gone, and its order is at the venue: neither its answer nor the stream was heard."""
    rig.venue.on_events = mute_stream
    first = await rig.lead(7)
    rig.exchange.lose_replies = True
    rig.wish()
    assert await rig.outcome() == ("UNKNOWN", "")
    first.stop()
    rig.exchange.lose_replies, rig.venue.on_events = False, None


async def mute_stream() -> AsyncIterator[VenueEvent]:
    yield StreamUp(1)
    await asyncio.Event().wait()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    rig = Rig()
    yield rig
    for trader in rig.traders:
        trader.stop()
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "all tasks have ended")
    rig.page.close()
    rig.traders.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert unseen == [], "nothing was raised where nobody looks"


# -- the way in ---------------------------------------------------------------------------------------------------


async def test_leader_places_its_first_order_and_says_so_once(rig: Rig) -> None:
    await rig.lead()
    assert rig.permissions[-1] == Permission(Level.ALLOWED)
    rig.wish()
    assert await rig.outcome() == ("ACCEPTED", "")
    rig.wish(decision="d2")
    await rig.outcome(2)
    assert len(rig.placed()) == 2 and len(rig.first_orders) == 1
    (line,) = [n for n in rig.exchange.lines if n.kind == "arm"]
    assert line.token == 7 and rig.gate_server.high == 7, "armed before anything was sent"


async def test_nothing_is_sent_before_the_permit_is_there(rig: Rig) -> None:
    trader = await rig.take_over()
    rig.wish()
    assert trader.declined == {"blocked": 1} and rig.placed() == []
    trader.granted()  # the keeper said so, and the page does not
    rig.wish()
    assert trader.permission.reason.startswith("no permit") and rig.placed() == []


async def test_arming_ends_in_time_although_nobody_answers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trader_module, "ARM_WAIT_S", 0.02)

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    rig.gate.arm = never  # type: ignore[method-assign]
    rig.venue.arm = never  # type: ignore[method-assign]
    await rig.venue.connect()
    async with asyncio.timeout(5):
        await rig.make().arm()
    rig.permit()
    rig.trader.granted()
    assert rig.trader.permission == Permission(Level.BLOCKED, "gate: not armed yet")


async def test_venue_that_was_never_reached_is_not_taken_for_one_without_fences(rig: Rig) -> None:
    """Before the first connection the adapter knows no capabilities, and arming a venue without tokens does nothing."""
    rig.venue.capabilities = Capabilities(False, False, IdUniqueness.NONE, DeadmanScope.NONE)
    trader = rig.make()
    rig.append(TermStarted("n1", "i"))
    await trader.arm()
    assert not trader.desk.armed and rig.conditions.venue_down == "not connected"
    rig.venue.capabilities = rig.exchange.engine.profile.capabilities
    await rig.venue.connect()
    await eventually(lambda: trader.desk.armed, "armed")
    assert trader.desk.caps.token and rig.exchange.engine.high_water("main") == 7


async def test_venue_with_a_higher_high_water_is_the_end(rig: Rig) -> None:
    await rig.venue.connect()
    await FakeVenue(rig.exchange, "main", "n2").connect()
    rig.exchange.do(lambda at: rig.exchange.engine.arm(rig.venue.sender, 9, at))
    trader = rig.make()
    await trader.arm()
    assert await rig.gone() == "venue: it has seen token 9"
    assert trader.stopped


async def test_gate_armed_for_somebody_newer_is_the_end(rig: Rig) -> None:
    await FakeGate(rig.gate_server, "n2").arm(9)
    rig.make()
    await rig.trader.arm()
    assert "9 is armed for n2" in await rig.gone()


async def test_what_the_last_leader_left_open_is_looked_up_before_the_report(rig: Rig) -> None:
    await leave_unknown(rig)
    await rig.take_over(9)
    assert rig.log.said(Outcome)[-1].result.name == "ACCEPTED"
    assert rig.trader.desk.unsettled == 0


async def test_settling_gives_up_in_time_and_keeps_the_side_blocked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trader_module, "SETTLE_WAIT_S", 0.02)
    await leave_unknown(rig)

    async def mute() -> LookupResult:
        await asyncio.Event().wait()
        raise AssertionError

    rig.venue.on_lookup, rig.venue.on_events = mute, mute_stream
    await rig.lead(9)
    rig.wish(buy(1), "d2")
    rig.wish(OrderSpec(SYMBOL, Side.SELL, 1, 1100), "d3")
    assert rig.trader.declined == {"outcome_unknown": 1}
    assert await rig.outcome(2) == ("ACCEPTED", "")


async def test_bound_for_old_orders_is_the_latest_the_venues_clock_may_show(rig: Rig) -> None:
    rig.use("expiry")
    first = await rig.lead(7)
    rig.commits = False
    rig.wish()
    first.stop()
    rig.commits = True
    now = boottime_ns()
    rig.venue.on_lookup = lambda: asyncio.sleep(3600)  # type: ignore[assignment,return-value]
    rig.clock.note(TimeSample(now - 5 * S, now, unix_ns()))

    async def unknown() -> TimeSample:  # so that take_over keeps the wide sample
        return TimeSample(now - 5 * S, now, unix)

    unix = unix_ns()
    rig.venue.server_time = unknown  # type: ignore[method-assign]
    taking_over = asyncio.create_task(rig.take_over(9))
    await eventually(lambda: len(rig.traders) == 2 and rig.trader.desk.unsettled == 1, "taken over")
    (left,) = rig.trader.desk._unsettled.values()
    assert left.absent_after is not None
    assert left.absent_after >= unix + 5 * S + 1 * S, "asked 5 s before the answer, and one validity to live"
    taking_over.cancel()
    await asyncio.wait([taking_over])


# -- check last, right before the effect -----------------------------------------------------------------------------


def drop(rig: Rig) -> None:
    rig.page.clear()


def pass_on(rig: Rig) -> None:
    rig.permit(9)


def run_out(rig: Rig) -> None:
    rig.permit(7, 0)


@pytest.mark.parametrize("end", [drop, pass_on, run_out])
async def test_permit_that_ends_between_commit_and_send_stops_the_order(rig: Rig, end: Callable[[Rig], None]) -> None:
    await rig.lead()
    rig.commits = False
    rig.wish()
    await eventually(lambda: rig.gate_server.claims != {}, "claimed")
    end(rig)
    rig.commit()
    assert await rig.outcome() == ("NOT_SENT", "no_permit")
    assert rig.placed() == []


@pytest.mark.parametrize("end", [drop, pass_on, run_out, lambda rig: rig.trader.stop()])
async def test_permit_that_ends_while_the_order_waits_in_the_adapter_stops_it(
    rig: Rig, end: Callable[[Rig], None]
) -> None:
    await rig.lead()
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    end(rig)
    (waiting,) = rig.venue.queued
    await waiting.write()
    assert rig.placed() == [] and isinstance(waiting.done.result(), NotSent)
    if not rig.trader.stopped:
        assert await rig.outcome() == ("NOT_SENT", "permit_ended")


async def test_standby_lost_between_intent_and_commit_stops_the_order(rig: Rig) -> None:
    await rig.lead()
    rig.commits = False
    rig.wish()
    await eventually(lambda: rig.gate_server.claims != {}, "claimed")
    rig.conditions.unprotected = "0 in-sync standbys"
    rig.commit()
    assert await rig.outcome() == ("NOT_SENT", "unprotected") and rig.placed() == []


@pytest.mark.parametrize(("permit_s", "bound_s"), [(3600, 1.0), (0.4, 0.4)])
async def test_expiry_is_never_later_than_the_permit_nor_than_the_validity(
    rig: Rig, permit_s: float, bound_s: float
) -> None:
    rig.use("expiry")
    await rig.lead()
    rig.permit(7, round(permit_s * S))
    until = rig.page.read().act_until
    rig.wish()
    await rig.outcome()
    (line,) = [n for n in rig.exchange.lines if n.kind == "new"]
    assert line.expires_at_ns is not None
    venue_until = rig.exchange.now.unix_ns + (until - rig.exchange.now.instant)
    venue_now = rig.exchange.now.unix_ns + (boottime_ns() - rig.exchange.now.instant)
    assert line.expires_at_ns <= venue_until
    assert line.expires_at_ns <= venue_now + bound_s * S


@pytest.mark.parametrize(("profile", "counts"), [("token", True), ("expiry", True), ("plain", False)])
async def test_without_the_venues_clock_nothing_is_sent_where_expiry_counts(
    rig: Rig, profile: str, counts: bool
) -> None:
    rig.use(profile)
    await rig.lead()
    rig.clock._sample = None
    rig.wish()
    assert await rig.outcome() == (("NOT_SENT", "venue_clock") if counts else ("ACCEPTED", ""))
    assert len(rig.placed()) == (0 if counts else 1)
    if counts:
        await rig.level(Level.BLOCKED, "venue: its clock is not known")
    rig.clock.note(await rig.venue.server_time())
    await rig.level(Level.ALLOWED)


async def test_plain_venue_is_sent_no_expiry(rig: Rig) -> None:
    rig.use("plain")
    await rig.lead()
    rig.wish()
    await rig.outcome()
    assert [n.expires_at_ns for n in rig.exchange.lines if n.kind == "new"] == [None]


# -- the gate ------------------------------------------------------------------------------------------------------


async def test_gate_that_is_away_at_the_takeover_blocks_until_it_is_armed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "RETRY_S", 0.01)
    rig.gate_server.up = False
    await rig.lead()
    assert rig.trader.permission == Permission(Level.BLOCKED, "gate: the fake is down")
    rig.wish()
    assert rig.trader.declined == {"blocked": 1}
    rig.gate_server.up = True
    await rig.level(Level.ALLOWED)
    rig.wish()
    assert await rig.outcome() == ("ACCEPTED", "")


@pytest.mark.parametrize("trouble", ["down", "flushed", "halted"])
async def test_gate_that_is_lost_while_nobody_orders_blocks_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """A quiet leader would look armed for as long as its strategy wants nothing."""
    for look in ("RETRY_S", "HALT_LOOK_S", "LOOK_S"):
        monkeypatch.setattr(arming, look, 0.01)
    await rig.lead()
    if trouble == "down":
        rig.gate_server.up = False
        await rig.level(Level.BLOCKED, "gate: the fake is down")
        rig.gate_server.up = True
    elif trouble == "flushed":
        rig.gate_server.flush()
        await eventually(lambda: Level.BLOCKED in [p.level for p in rig.permissions], "it is noticed")
    else:
        await rig.gate.halt("fat finger")
        await rig.level(Level.BLOCKED, "gate: halted: fat finger")
        await rig.gate.unhalt()
    await rig.level(Level.ALLOWED)
    rig.wish()
    assert await rig.outcome() == ("ACCEPTED", "")


async def test_orders_that_are_declined_are_told_with_value_and_limit(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    await rig.lead()
    for n in range(25):
        rig.wish(buy(10**6), decision=f"too-much-{n}")
    assert rig.trader.declined_in_a_row == 25
    last = rig.trader.last_declined
    assert last is not None and last.code == "max_order_qty" and "1000000" in last.reason
    assert capsys.readouterr().out.count("order_declined") == 1  # once a minute, not once an order
    rig.wish()
    assert rig.trader.declined_in_a_row == 0


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_gate_that_forgot_us_costs_one_order_and_is_armed_again(rig: Rig, how: str) -> None:
    await rig.lead()
    if how == "flushed":
        rig.gate_server.flush()
    else:
        rig.gate_server.restart(empty=False)
    rig.wish()
    assert await rig.outcome() == ("NOT_SENT", "gate_unarmed") and rig.placed() == []
    assert Level.BLOCKED in [p.level for p in rig.permissions]
    await rig.level(Level.ALLOWED)
    rig.wish(decision="d2")
    assert await rig.outcome(2) == ("ACCEPTED", "")


async def test_claim_without_an_answer_is_no_claim(rig: Rig) -> None:
    """It may have been noted there: the order is not sent, and its id never used again."""
    await rig.lead()
    rig.gate.lost_replies = 1
    rig.wish()
    assert await rig.outcome() == ("NOT_SENT", "unavailable") and rig.placed() == []
    await rig.level(Level.ALLOWED)


async def test_halted_gate_blocks_by_name_until_the_halt_is_lifted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arming, "HALT_LOOK_S", 0.01)
    await rig.lead()
    await rig.gate.halt("fat finger")
    rig.wish()
    assert await rig.outcome() == ("NOT_SENT", "halted") and rig.placed() == []
    await rig.level(Level.BLOCKED, "gate: halted: fat finger")
    rig.wish(decision="d2")
    assert rig.trader.declined == {"blocked": 1}
    await rig.gate.unhalt()
    await rig.level(Level.ALLOWED)


async def test_deposed_at_the_gate_ends_the_term_with_nothing_sent(rig: Rig) -> None:
    await rig.lead()
    await FakeGate(rig.gate_server, "n2").arm(9)
    rig.wish()
    assert (await rig.gone()).startswith("gate: ")
    assert rig.placed() == [] and rig.trader.stopped and rig.outcomes() == [("NOT_SENT", "stale_token")]


async def test_gate_that_is_lost_and_found_armed_by_another_ends_the_term(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "RETRY_S", 0.01)
    await rig.lead()
    rig.gate_server.up = False
    rig.wish()
    await rig.level(Level.BLOCKED, "gate")
    rig.gate_server.up = True
    await FakeGate(rig.gate_server, "n2").arm(9)
    assert (await rig.gone()).startswith("gate: ")


# -- the private stream -----------------------------------------------------------------------------------------------


async def test_stream_that_goes_down_blocks_and_coming_up_it_tells_what_was_missed(rig: Rig) -> None:
    await rig.lead()
    rig.wish(buy(10, 980))
    await rig.outcome()
    rig.exchange.set_down(True)
    await rig.level(Level.BLOCKED, "venue: private stream down")
    rig.exchange.market(trade(970, 50))
    rig.exchange.set_down(False)
    await rig.level(Level.ALLOWED)
    await eventually(lambda: rig.book.position(SYMBOL) == 10, "the fill")
    assert len(rig.log.said(Fill)) == 1


async def test_stream_that_does_not_come_up_blocks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trader_module, "STREAM_WAIT_S", 0.01)
    up = asyncio.Event()

    async def late() -> AsyncIterator[VenueEvent]:
        await up.wait()
        yield StreamUp(1)
        await asyncio.Event().wait()

    rig.venue.on_events = late
    await rig.lead()
    await rig.level(Level.BLOCKED, "the private stream did not come up within 0.01 s")
    up.set()
    await rig.level(Level.ALLOWED)


async def test_stream_that_ends_for_good_ends_the_term(rig: Rig) -> None:
    async def short() -> AsyncIterator[VenueEvent]:
        yield StreamUp(1)

    rig.venue.on_events = short
    await rig.lead()
    assert "private stream ended for good" in await rig.gone()


async def test_venue_that_comes_back_with_other_fences_ends_the_term(rig: Rig) -> None:
    trader = await rig.lead()
    await trader._stream_up.wait()
    rig.exchange.set_down(True)
    await rig.level(Level.BLOCKED, "private stream down")
    rig.venue.capabilities = replace(rig.venue.capabilities, token=False)
    rig.exchange.set_down(False)
    assert await rig.gone() == "venue: its capabilities have changed"


async def test_stream_begins_where_the_book_ends(rig: Rig) -> None:
    first = await rig.lead(7)
    rig.wish(buy(10, 1000))
    await eventually(lambda: rig.book.position(SYMBOL) == 10, "filled")
    first.stop()
    await rig.lead(9)
    rig.wish(buy(10, 1100), "d2")
    await rig.outcome(2)
    rig.exchange.market(quote(990, 1000, ask_lots=500, seq=2))
    await eventually(lambda: rig.book.position(SYMBOL) >= 20, "filled")
    assert len({f.trade_id for f in rig.log.said(Fill)}) == len(rig.log.said(Fill))
    assert rig.book.counts.duplicate_fills == 0


# -- reconcile ----------------------------------------------------------------------------------------------------


def every(rig: Rig, seconds: float) -> None:
    rig.rules = replace(rig.rules, reconcile_interval_s=seconds)


async def test_mismatch_is_told_only_at_the_second_look_and_journaled(rig: Rig) -> None:
    every(rig, 0.01)
    manual = FakeVenue(rig.exchange, "main", "hand")
    await manual.connect()
    await rig.lead()
    manual.submit(order("manual1", buy(5, 900), token=7))
    await eventually(lambda: rig.trader.mismatches != (), "a mismatch")
    said = "order manual1 is open at the venue and unknown to the journal"
    assert rig.trader.mismatches == (said,)
    told = rig.log.said(Reconciled)
    assert told[0] == Reconciled("takeover", ()), "the first look raises suspicions only"
    assert Reconciled("periodic", (said,)) in told
    rig.exchange.do(lambda at: rig.exchange.engine.cancel(manual.sender, 7, "manual1", at))
    await eventually(lambda: rig.trader.mismatches == (), "it is gone")


async def test_agreement_is_not_journaled_again_and_again(rig: Rig) -> None:
    every(rig, 0.001)
    looks = 0
    original = rig.venue.positions

    async def counted() -> dict[str, int]:
        nonlocal looks
        looks += 1
        return await original()

    rig.venue.positions = counted  # type: ignore[method-assign]
    await rig.lead()
    await eventually(lambda: looks > 10, "looks")
    assert rig.log.said(Reconciled) == [Reconciled("takeover", ())]


async def test_fill_that_the_stream_has_not_told_is_found_and_counted_once(rig: Rig) -> None:
    every(rig, 0.01)
    rig.venue.on_events = mute_stream
    await rig.lead()
    rig.wish(buy(10, 1000))
    await eventually(lambda: rig.book.position(SYMBOL) == 10, "the fill")
    await eventually(lambda: rig.book.live_orders() == [], "its close, by looking it up")
    assert len(rig.log.said(Fill)) == 1 and rig.trader.mismatches == ()


async def test_close_that_the_stream_has_not_told_is_found_by_looking_it_up(rig: Rig) -> None:
    every(rig, 0.01)
    rig.venue.on_events = mute_stream
    await rig.lead()
    rig.wish(buy(10, 980))
    await rig.outcome()
    (resting,) = rig.book.live_orders()
    rig.exchange.do(lambda at: rig.exchange.engine.cancel(rig.venue.sender, 7, resting.client_order_id, at))
    await eventually(lambda: rig.book.live_orders() == [], "closed")
    await eventually(lambda: rig.trader.mismatches == (), "agreed")


@pytest.mark.parametrize("error", [Unreachable("down"), OutcomeUnknown("slow")])
async def test_reconcile_that_cannot_ask_asks_again(rig: Rig, error: Exception) -> None:
    every(rig, 0.005)
    rig.venue.open_orders_error = error
    await rig.lead()
    await asyncio.sleep(0.02)
    assert rig.log.said(Reconciled) == [] and rig.trader.permission.level is Level.ALLOWED
    rig.venue.open_orders_error = None
    await eventually(lambda: rig.log.said(Reconciled) != [], "reconciled")


# -- cancels and the dead-man's switch --------------------------------------------------------------------------------


async def test_cancel_goes_as_long_as_the_permit_lives_also_while_new_orders_are_blocked(rig: Rig) -> None:
    await rig.lead()
    rig.wish(buy(10, 980))
    await rig.outcome()
    rig.conditions.feed = FeedState.DOWN
    rig.trader.review()
    (resting,) = rig.book.live_orders()
    rig.trader.wishes([("", Cancel(resting.client_order_id, "moved"))], 0)
    await eventually(lambda: rig.book.live_orders() == [], "cancelled")
    assert rig.exchange.engine.open_orders("main") == []


async def test_cancel_does_not_go_without_a_permit_and_goes_with_the_next_leaders(rig: Rig) -> None:
    first = await rig.lead(7)
    rig.wish(buy(10, 980))
    await rig.outcome()
    rig.page.clear()
    (resting,) = rig.book.live_orders()
    first.wishes([("", Cancel(resting.client_order_id))], 0)
    await eventually(lambda: rig.log.said(CancelRequested) != [], "noted")
    await asyncio.sleep(0.01)
    assert [n for n in rig.exchange.lines if n.kind == "cancel"] == []
    first.stop()
    await rig.take_over(9)
    await asyncio.sleep(0.01)
    assert [n for n in rig.exchange.lines if n.kind == "cancel"] == []
    rig.permit(9)
    rig.trader.granted()
    await eventually(lambda: rig.exchange.engine.open_orders("main") == [], "cancelled")


async def test_deadman_is_refreshed_from_the_grant_on_and_only_with_a_live_permit(rig: Rig) -> None:
    rig.rules = replace(rig.rules, deadman_ttl_s=0.02)
    trader = await rig.take_over()
    await asyncio.sleep(0.03)
    assert rig.venue.alive_calls == 0, "not before the permit"
    rig.permit()
    trader.granted()
    await eventually(lambda: rig.venue.alive_calls > 2, "refreshed")
    rig.page.clear()
    await asyncio.sleep(0.01)
    calls = rig.venue.alive_calls
    await asyncio.sleep(0.03)
    assert rig.venue.alive_calls == calls, "never by one whose permit has gone"


async def test_deadman_is_refreshed_at_once_with_the_permit(rig: Rig) -> None:
    """The one that the last leader armed may be about to fire."""
    rig.rules = replace(rig.rules, deadman_ttl_s=3600.0)
    trader = await rig.take_over()
    await asyncio.sleep(0.01)
    rig.permit()
    trader.granted()
    await eventually(lambda: rig.venue.alive_calls == 1, "refreshed")


async def test_deadman_that_is_off_is_never_touched(rig: Rig) -> None:
    await rig.lead()
    await asyncio.sleep(0.01)
    assert rig.venue.alive_calls == 0


async def test_deadman_refused_for_a_stale_token_ends_the_term(rig: Rig) -> None:
    rig.rules = replace(rig.rules, deadman_ttl_s=0.02)

    def stale() -> None:
        raise StaleTerm("9 was seen")

    rig.venue.on_alive = stale
    await rig.lead()
    assert await rig.gone() == "venue: 9 was seen"


async def test_deadman_that_cannot_be_refreshed_is_tried_again(rig: Rig) -> None:
    rig.rules = replace(rig.rules, deadman_ttl_s=0.02)

    def down() -> None:
        if rig.venue.alive_calls < 3:
            raise Unreachable("down")

    rig.venue.on_alive = down
    await rig.lead()
    await eventually(lambda: rig.venue.alive_calls > 3, "tried again")
    assert rig.stepped_down == []


# -- the way out --------------------------------------------------------------------------------------------------


async def test_stop_is_at_once_and_nothing_is_sent_or_appended_after_it(rig: Rig) -> None:
    trader = await rig.lead()
    rig.commits = False
    rig.wish()
    entries = len(rig.log.entries)
    trader.stop()
    rig.wish(decision="d2")
    rig.commit()
    trader.granted()
    trader.review()
    await asyncio.sleep(0.05)
    assert rig.placed() == [] and len(rig.log.entries) == entries
    with pytest.raises(TermOver):
        trader._append(Reconciled("late", ()))
    assert rig.stepped_down == [], "being told to stop is not stepping down"


async def test_trader_that_was_stopped_before_it_armed_arms_nothing(rig: Rig) -> None:
    trader = rig.make()
    trader.stop()
    async with asyncio.timeout(5):
        await trader.arm()
        await trader.settle()
    assert rig.gate_server.high == 0 and rig.exchange.engine.high_water("main") == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_term_that_ends_while_it_settles_leaves_nothing_behind(rig: Rig) -> None:
    await leave_unknown(rig)

    async def deposed() -> LookupResult:
        rig.trader.stop()
        raise asyncio.CancelledError

    rig.venue.on_lookup = deposed
    await rig.take_over(9)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no task is left")


async def test_mistake_in_a_task_ends_the_term_once(rig: Rig) -> None:
    await leave_unknown(rig)

    async def bug() -> LookupResult:
        raise ZeroDivisionError("oops")

    rig.venue.on_lookup = bug
    await rig.take_over(9)
    assert await rig.gone() == "trading failed: ZeroDivisionError: oops"
    assert len(rig.stepped_down) == 1 and rig.trader.stopped


async def test_outcome_that_finds_no_room_in_the_journal_ends_the_term(rig: Rig) -> None:
    """The order is at the venue and nobody will write it down: the next leader has to ask."""
    rig.venue.on_events = mute_stream
    await rig.lead()
    await eventually(lambda: rig.log.said(Reconciled) != [], "reconciled: nothing else is to be journaled")
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    rig.log.full = True
    await rig.venue.queued[0].write()
    assert (await rig.gone()).startswith("trading failed: JournalBusy")


async def test_gates_word_that_finds_no_room_in_the_journal_ends_the_term(rig: Rig) -> None:
    """It comes in a callback, where an exception would be a line in the log."""
    await rig.lead()
    await eventually(lambda: rig.log.said(Reconciled) != [], "reconciled: nothing else is to be journaled")
    rig.gate_server.flush()
    rig.wish()
    rig.log.full = True
    assert (await rig.gone()).startswith("trading failed: JournalBusy")


async def test_wishes_that_find_no_room_in_the_journal_are_declined_and_may_come_again(rig: Rig) -> None:
    await rig.lead()
    rig.wish(buy(10, 980))
    await rig.outcome()
    (resting,) = rig.book.live_orders()
    rig.log.full = True
    rig.wish(decision="d2")
    rig.trader.wishes([("", Cancel(resting.client_order_id))], 0)
    assert rig.trader.declined == {"journal_busy": 2} and rig.stepped_down == []
    rig.log.full = False
    rig.wish(decision="d2")
    rig.trader.wishes([("", Cancel(resting.client_order_id))], 0)
    assert await rig.outcome(2) == ("ACCEPTED", "")


async def test_wish_in_a_term_that_is_over_is_not_an_error(rig: Rig) -> None:
    await rig.lead()
    rig.log.over = True
    rig.wish()
    rig.wish(decision="d2")
    assert rig.trader.stopped and rig.placed() == []


async def test_draining_waits_for_the_answers_and_not_longer(rig: Rig) -> None:
    trader = await rig.lead()
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    rig.page.clear()
    draining = asyncio.create_task(trader.drain(5.0))
    await asyncio.sleep(0.01)
    assert not draining.done() and trader.permission.reason == "handing over"
    await rig.venue.queued[0].write()
    async with asyncio.timeout(2):
        await draining
    assert rig.outcomes() == [("NOT_SENT", "permit_ended")]


async def test_draining_ends_at_its_limit_and_when_the_term_ends(rig: Rig) -> None:
    trader = await rig.lead()
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    await trader.drain(0.02)
    assert trader.desk.in_flight == 1
    draining = asyncio.create_task(trader.drain(60.0))
    await asyncio.sleep(0)
    trader.stop()
    async with asyncio.timeout(2):
        await draining


async def test_duplicate_decision_and_risk_are_declined_by_name(rig: Rig) -> None:
    await rig.lead()
    rig.wish(decision="same")
    rig.wish(decision="same")
    rig.wish(buy(10, 10), "far")
    assert rig.trader.declined == {"duplicate_decision": 1, "price_collar": 1}
