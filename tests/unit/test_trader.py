"""One leadership carried out on a real loop, with a venue, a gate and a log in memory: the order of things at the send,
answers that come back as events, and every way it ends. What is decided: test_leadership.py.

Each test also asserts at its end that no task is left and that no exception went unseen (`rig`)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.clock import boottime_ns
from cluster.core.errors import OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.errors import StepDown as TermOver
from cluster.core.ids import Instant, Term
from cluster.core.log import Entry
from cluster.core.role import ExecutionPermit
from cluster.permit import PermitPage
from node import actions as act
from node import arming, stages
from node.book import Book
from node.codec import CancelRequested, Fact, Fill, Outcome, Reconciled, TermStarted
from node.feeds.base import FeedState
from node.leadership import Leadership, TradingRules
from node.orders import StepDown
from node.paper_venue.profile import parse_profile
from node.permission import Conditions, Level, Permission
from node.strategy import Cancel, Place
from node.telemetry import Telemetry
from node.trader import Trader
from node.types import ClientOrderId, DecisionId, NotSent, OrderSpec, StreamUp, SubmitResult, VenueEvent
from node.venue_clock import VenueClock
from node.venues.base import Capabilities, DeadmanScope, IdUniqueness, LookupResult
from tests.support.desk import INSTRUMENTS, LIMITS, SYMBOL, TAG, Log, S, buy
from tests.support.fake_gate import FakeGate, FakeGateServer
from tests.support.fake_venue import FakeExchange, FakeVenue
from tests.support.leading import LogOfTerm
from tests.support.paper import eventually, quote, trade

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
        self.clock = VenueClock(0.0)
        self.conditions = Conditions(feed=FeedState.LIVE, halted="")
        self.telemetry = Telemetry("n1", "c", "0", lease_ttl_s=1.0, lease_margin_s=0.2)
        self.rules = TradingRules(TAG, LIMITS, 1.0, 3600.0, 0.0)
        self.commits = True  # entries are committed as soon as the loop comes round
        self.stepped_down: list[str] = []
        self.reported: list[act.Report] = []
        self.permissions: list[Permission] = []
        self.latch: str | None = None  # as etcd has it
        self.on_report: Callable[[act.Report], None] | None = None
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
        leadership = Leadership(
            term=term,
            rules=self.rules,
            book=self.book,
            log=LogOfTerm(self.log),
            clock=self.clock,
            conditions=self.conditions,
            capabilities=self.venue.capabilities,
            append=self.append,
            reference=lambda _: 2 * 995,
        )
        self.traders.append(
            Trader(
                leadership,
                page=self.page,
                gate=self.gate,
                venue=self.venue,
                clock=self.clock,
                telemetry=self.telemetry,
                report=self.report,
            )
        )
        return self.trader

    def report(self, said: act.Report) -> None:
        self.reported.append(said)
        match said:
            case StepDown(reason):
                self.stepped_down.append(reason)
            case act.PermissionChanged(permission):
                self.permissions.append(permission)
            case act.ReadLatch() if self.on_report is None:
                asyncio.get_running_loop().call_soon(self.trader.latch_read, self.latch)
        if self.on_report is not None:
            self.on_report(said)

    def said(self, kind: type) -> int:
        return sum(isinstance(r, kind) for r in self.reported)

    def begin(self, term: int = 7) -> Trader:
        trader = self.make(term)
        trader.begin(TermStarted("n1", "i"), boottime_ns())
        return trader

    async def take_over(self, term: int = 7) -> Trader:
        """Up to the point where the permit is missing."""
        if not self.venue._open:
            await self.venue.connect()
        self.clock.note(await self.venue.server_time())
        reports = self.said(act.ReportReconciled)
        trader = self.begin(term)
        await eventually(lambda: self.said(act.ReportReconciled) > reports or trader.stopped, "reported")
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
            return (
                self.trader.leadership.permission.level is level and reason in self.trader.leadership.permission.reason
            )

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
    assert len(rig.placed()) == 2 and rig.said(act.FirstOrder) == 1
    (line,) = [n for n in rig.exchange.lines if n.kind == "arm"]
    assert line.token == 7 and rig.gate_server.state().high_water == 7, "armed before anything was sent"


async def test_venue_that_was_never_reached_is_not_taken_for_one_without_fences(rig: Rig) -> None:
    """Before the first connection the adapter knows no capabilities, and arming a venue without tokens does nothing."""
    rig.venue.capabilities = Capabilities(False, False, IdUniqueness.NONE, DeadmanScope.NONE)
    desk = rig.begin().leadership.desk
    await eventually(lambda: rig.conditions.venue_down == "not connected", "asked")
    assert not desk.armed
    rig.venue.capabilities = rig.exchange.engine.profile.capabilities
    await rig.venue.connect()
    await eventually(lambda: desk.armed, "armed")
    assert desk.caps.token and rig.exchange.engine.high_water("main") == 7


async def test_gate_armed_for_somebody_newer_is_the_end(rig: Rig) -> None:
    await FakeGate(rig.gate_server, "n2").arm(9)
    rig.begin()
    assert (await rig.gone()).startswith("gate: token 7 of n1 refused, 9 is armed for n2")


async def test_venue_that_does_not_answer_is_waited_for_on_a_timer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ARM_WAIT_S", 0.02)

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    await rig.venue.connect()
    rig.venue.arm = never  # type: ignore[method-assign]
    await rig.take_over()
    assert rig.conditions.venue_down == "not armed yet" and rig.conditions.gate_closed == ""


@pytest.mark.parametrize("press", [None, "fat finger"])
async def test_empty_gate_opens_only_with_the_latch_as_etcd_has_it(rig: Rig, press: str | None) -> None:
    rig.latch = press
    await rig.lead()
    assert rig.said(act.ReadLatch) == 1 and rig.gate_server.knows_latch
    assert rig.gate_server.state().halted == press
    assert rig.trader.leadership.permission.level is (Level.BLOCKED if press else Level.ALLOWED)


async def test_latch_that_cannot_be_read_keeps_the_gate_closed_until_it_can(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "RETRY_S", 0.01)
    answers = iter(["etcd is silent", None])

    def report(said: act.Report) -> None:
        if isinstance(said, act.ReadLatch):
            trader, why = rig.trader, next(answers)
            asyncio.get_running_loop().call_soon(
                (lambda: trader.latch_unreadable(why)) if why else (lambda: trader.latch_read(None))
            )

    rig.on_report = report
    rig.begin()
    await eventually(lambda: "etcd is silent" in rig.conditions.gate_closed, "told")
    await eventually(lambda: rig.conditions.gate_closed == "", "open")
    assert next(answers, "both were asked for") == "both were asked for"


async def test_what_the_last_leader_left_open_is_looked_up_before_the_report(rig: Rig) -> None:
    await leave_unknown(rig)
    await rig.take_over(9)
    assert rig.log.said(Outcome)[-1].result.name == "ACCEPTED"
    assert rig.trader.leadership.desk.unsettled == 0


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
    await eventually(lambda: any(d.op == "claim" for d in rig.gate_server.record), "claimed")
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


# -- the gate ------------------------------------------------------------------------------------------------------


async def test_gate_that_is_away_at_the_takeover_blocks_until_it_is_armed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "RETRY_S", 0.01)
    rig.gate_server.up = False
    await rig.lead()
    assert rig.trader.leadership.permission == Permission(Level.BLOCKED, "gate: the fake is down")
    rig.wish()
    assert rig.trader.leadership.declines.counts == {"blocked": 1}
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


async def test_stream_that_ends_for_good_ends_the_term(rig: Rig) -> None:
    async def short() -> AsyncIterator[VenueEvent]:
        yield StreamUp(1)

    rig.venue.on_events = short
    await rig.lead()
    assert "private stream ended for good" in await rig.gone()


# -- reconcile ----------------------------------------------------------------------------------------------------


def every(rig: Rig, seconds: float) -> None:
    rig.rules = replace(rig.rules, reconcile_interval_s=seconds)


async def test_fill_that_the_stream_has_not_told_is_found_and_counted_once(rig: Rig) -> None:
    every(rig, 0.01)
    rig.venue.on_events = mute_stream
    await rig.lead()
    rig.wish(buy(10, 1000))
    await eventually(lambda: rig.book.position(SYMBOL) == 10, "the fill")
    await eventually(lambda: rig.book.live_orders() == [], "its close, by looking it up")
    assert len(rig.log.said(Fill)) == 1 and rig.trader.leadership.reconciler.mismatches == ()


async def test_close_that_the_stream_has_not_told_is_found_by_looking_it_up(rig: Rig) -> None:
    every(rig, 0.01)
    rig.venue.on_events = mute_stream
    await rig.lead()
    rig.wish(buy(10, 980))
    await rig.outcome()
    (resting,) = rig.book.live_orders()
    rig.exchange.do(lambda at: rig.exchange.engine.cancel(rig.venue.sender, 7, resting.client_order_id, at))
    await eventually(lambda: rig.book.live_orders() == [], "closed")
    await eventually(lambda: rig.trader.leadership.reconciler.mismatches == (), "agreed")


@pytest.mark.parametrize("error", [Unreachable("down"), OutcomeUnknown("slow")])
async def test_reconcile_that_cannot_ask_asks_again(rig: Rig, error: Exception) -> None:
    every(rig, 0.005)
    rig.venue.open_orders_error = error
    await rig.lead()
    await asyncio.sleep(0.02)
    assert rig.log.said(Reconciled) == [] and rig.trader.leadership.permission.level is Level.ALLOWED
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
        trader.leadership._append(Reconciled("late", ()))
    assert rig.stepped_down == [], "being told to stop is not stepping down"


async def test_trader_that_was_stopped_before_it_began_touches_nothing(rig: Rig) -> None:
    trader = rig.make()
    trader.stop()
    trader.begin(TermStarted("n1", "i"), boottime_ns())
    trader.drain(None)
    await asyncio.sleep(0)
    assert rig.gate_server.state().high_water == 0 and rig.log.entries == []
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


async def test_mistake_in_the_machine_ends_the_term_and_what_it_was_told_is_over(rig: Rig) -> None:
    trader = await rig.lead()

    def bug(*_: Any) -> None:
        raise ZeroDivisionError("oops")

    trader.leadership.desk.claimed = bug  # type: ignore[assignment,method-assign]
    rig.wish()
    assert await rig.gone() == "trading failed: ZeroDivisionError: oops"
    assert trader.leadership.stopped and rig.placed() == []


async def test_gates_word_that_finds_no_room_in_the_journal_ends_the_term(rig: Rig) -> None:
    """It comes in a callback, where an exception would be a line in the log."""
    await rig.lead()
    await eventually(lambda: rig.log.said(Reconciled) != [], "reconciled: nothing else is to be journaled")
    rig.gate_server.flush()
    rig.wish()
    rig.log.full = True
    assert (await rig.gone()).startswith("trading failed: JournalBusy")


async def test_orders_wished_for_together_are_claimed_together(rig: Rig) -> None:
    await rig.lead()
    batches: list[int] = []
    original = rig.gate.claim_many

    async def counted(token: int, client_order_ids: Any) -> Any:
        batches.append(len(client_order_ids))
        return await original(token, client_order_ids)

    rig.gate.claim_many = counted  # type: ignore[method-assign]
    rig.trader.wishes([(f"d{n}", Place(buy(1), DecisionId(f"d{n}"))) for n in range(20)], boottime_ns())
    await rig.outcome(20)
    assert batches == [20]
    assert rig.telemetry.stages["decided"].count == 20


async def test_drain_reports_when_the_answers_are_there(rig: Rig) -> None:
    trader = await rig.lead()
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    rig.page.clear()
    trader.drain(None)
    await asyncio.sleep(0.01)
    assert rig.said(act.ReportSettled) == 0 and trader.leadership.permission.reason == "handing over"
    await rig.venue.queued[0].write()
    await eventually(lambda: rig.said(act.ReportSettled) == 1, "reported")
    assert rig.outcomes() == [("NOT_SENT", "permit_ended")]


async def test_drain_of_a_term_that_ends_before_reports_nothing(rig: Rig) -> None:
    trader = await rig.lead()
    rig.venue.queued = []
    rig.wish()
    await eventually(lambda: rig.venue.queued != [], "handed over")
    trader.drain(None)
    await asyncio.sleep(0)
    trader.stop()
    await rig.venue.queued[0].write()
    await asyncio.sleep(0.01)
    assert rig.said(act.ReportSettled) == 0
