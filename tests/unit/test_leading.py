"""The way in and out of leading, with a real journal and log: no leadership ends another or leaves a task behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import link
from cluster.clock import boottime_ns
from cluster.core.errors import StepDown
from cluster.core.ids import Instant, LogIndex, Term
from cluster.core.log import Entry
from cluster.core.role import ExecutionPermit
from cluster.core.stream import Digests
from cluster.delivery import Delivery
from cluster.journal import Journal
from cluster.permit import PermitPage
from node import arming, stages
from node import leading as leading_module
from node.book import Book
from node.codec import Reconciled, StrategyState, TermStarted, decode
from node.feeds.base import FeedState
from node.host import StrategyHost
from node.leading import Leading
from node.paper_venue.profile import parse_profile
from node.parts import Parts
from node.permission import Conditions, Level
from node.strategy import Context, Place, Role, Strategy, Wish
from node.telemetry import Telemetry
from node.types import DecisionId
from node.venue_clock import VenueClock
from node.venues.base import TimeSample
from tests.support.desk import INSTRUMENTS, LIMITS, TAG, S, buy
from tests.support.fake_gate import FakeGate, FakeGateServer
from tests.support.fake_venue import FakeExchange, FakeVenue
from tests.support.paper import eventually, quote


class Bot(Strategy):
    def __init__(self, config: Any) -> None:
        self.roles: list[Role] = []
        self.state = b"1"

    def on_role(self, ctx: Context, role: Role, reason: str) -> list[Wish] | None:
        self.roles.append(role)
        return [Place(buy(1), DecisionId(f"d{len(self.roles)}"))] if role is Role.ACTIVE else None

    def snapshot(self) -> bytes:
        return self.state


class Server:
    """Where followers would attach."""

    def __init__(self) -> None:
        self.log: Any = None

    def lead(self, log: Any) -> None:
        self.log = log

    def stop_leading(self, reason: str) -> None:
        if self.log is not None:
            self.log.close(reason)
            self.log = None


class Rig:
    def __init__(self, directory: Path) -> None:
        self.sent: list[link.Message] = []
        self.failed: list[BaseException] = []
        self.keeper_answers = True
        self.bot = Bot({})
        self.exchange = FakeExchange(parse_profile("token"), INSTRUMENTS)
        self.exchange.market(quote(990, 1000))
        self.journal = Journal.open(directory / "journal.db", cluster="c", durability="memory")
        self.book = Book(TAG, INSTRUMENTS)
        self.replication = SimpleNamespace(insync_timeout_s=0.25, min_standbys=0, unprotected="trade")
        self.host = StrategyHost(
            self.bot,
            "x:Bot",
            self.book,
            {i.symbol: i for i in INSTRUMENTS},
            on_wishes=lambda named, at: self.leading.wishes(named, at),
            on_failed=self.failed.append,  # type: ignore[arg-type]
            call_later=asyncio.get_running_loop().call_later,
        )
        venue = FakeVenue(self.exchange)
        venue._open = True
        fields: dict[str, Any] = {
            "config": SimpleNamespace(
                cluster=SimpleNamespace(order_tag=TAG),
                replication=self.replication,
                venue=SimpleNamespace(order_validity_s=1.0, reconcile_interval_s=3600.0, deadman_ttl_s=0.0),
                risk_limits=lambda: LIMITS,
            ),
            "link": SimpleNamespace(send=self.send),
            "server": Server(),
            "follower": None,
            "feed": None,
        }
        self.parts = Parts(
            name="n1",
            instruments={i.symbol: i for i in INSTRUMENTS},
            page=PermitPage.create(),
            journal=self.journal,
            book=self.book,
            digests=Digests(),
            delivery=Delivery(self.journal, LogIndex(0), self.apply, self.failed.append),
            host=self.host,
            gate=FakeGate(FakeGateServer(), "n1"),
            venue=venue,
            clock=VenueClock(0.0),
            conditions=Conditions(feed=FeedState.LIVE, halted=""),
            telemetry=Telemetry("n1", "c", "0", lease_ttl_s=1.0, lease_margin_s=0.2),
            **fields,
        )
        self.leading = Leading(self.parts, publish=lambda: None)
        self.host.quotes["BTCUSDT"] = quote(990, 1000)
        now = self.exchange.now
        self.parts.clock.note(TimeSample(now.instant, now.instant, now.unix_ns))

    def send(self, message: link.Message) -> None:
        self.sent.append(message)
        if isinstance(message, link.AskLatch) and self.keeper_answers:
            answer = link.LatchAnswer(message.request, None)
            asyncio.get_running_loop().call_soon(self.leading.latch_answered, answer)

    def apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            fact = self.leading.fact_of(entry.index) or decode(entry.kind, entry.body)
            events = self.book.apply(entry)
            self.leading.applied(entry, fact)
            self.host.book_events(events)

    def begin(self, term: int, **others: str) -> None:
        """As `obeying` does, once the journal is at rest."""
        insync = {"n1": str(self.journal.journal_id)} | others
        self.leading.begin(link.Lead(term, insync, term, "first start", "", None), boottime_ns())

    async def lead(self, term: int = 7) -> None:
        """All the way to the permit."""
        if self.leading.end(f"told to lead in term {term}"):
            self.leading.rest()
        await self.journal.flush(5.0)
        self.begin(term)
        await eventually(lambda: self.reported(term), "reported")
        self.parts.page.grant(ExecutionPermit(Term(term), Instant(boottime_ns() + 3600 * S)))
        self.leading.granted(term)

    def reported(self, term: int) -> bool:
        return any(m.term == term for m in self.of(link.Reconciled))

    def of(self, kind: type) -> list[Any]:
        return [m for m in self.sent if isinstance(m, kind)]

    def facts(self) -> list[Any]:
        return [decode(e.kind, e.body) for e in self.journal.tail(LogIndex(1), 1 << 20) or []]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    rig = Rig(tmp_path)
    yield rig
    rig.leading.end("over")
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "all tasks have ended")
    rig.parts.delivery.close()
    rig.journal.close()
    rig.parts.page.close()
    assert unseen == [] and rig.failed == []


async def test_term_begins_with_its_own_entry_and_is_reported_with_its_phases(rig: Rig) -> None:
    rig.begin(7)
    await eventually(lambda: rig.reported(7), "reported")
    (said,) = rig.of(link.Reconciled)
    assert sorted(said.phases_s) == ["arm", "catch_up", "settle"]
    assert isinstance(rig.facts()[0], TermStarted)
    assert rig.leading.permission.level is Level.BLOCKED and rig.bot.roles == []


async def test_permit_makes_the_strategy_active_and_its_first_order_goes(rig: Rig) -> None:
    await rig.lead()
    assert rig.bot.roles == [Role.ACTIVE]
    await eventually(lambda: rig.of(link.FirstOrder) != [], "the first order")
    assert rig.of(link.FirstOrder)[0].term == 7


async def test_grant_of_another_term_is_not_ours(rig: Rig) -> None:
    rig.begin(7)
    await eventually(lambda: rig.reported(7), "reported")
    rig.leading.granted(6)
    assert rig.leading.permission.level is Level.BLOCKED


async def test_end_is_at_once_and_user_code_hears_of_it_afterwards(rig: Rig) -> None:
    await rig.lead()
    trader = rig.leading.trader
    assert rig.leading.end("deposed") is True
    assert trader is not None and trader.stopped and rig.parts.server.log is None  # type: ignore[attr-defined]
    with pytest.raises(StepDown):
        rig.leading.append(Reconciled("late", ()))
    assert rig.bot.roles == [Role.ACTIVE], "the strategy has not been asked yet"
    rig.leading.rest()
    assert rig.bot.roles == [Role.ACTIVE, Role.SHADOW]
    assert rig.parts.conditions.standing == "standby"
    assert rig.leading.end("again") is False


async def test_term_that_ends_during_the_takeover_is_never_reported(rig: Rig) -> None:
    rig.begin(7, n2="j2")  # n2 never comes, so nothing can be committed
    await eventually(lambda: rig.leading.trader is not None, "under way")
    rig.leading.end("deposed")
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left")
    assert not rig.reported(7)


async def test_takeover_that_cannot_commit_asks_to_be_relieved(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CATCH_UP_LIMIT_S", 0.05)
    rig.begin(7, n2="j2")
    await eventually(lambda: rig.of(link.StepDown) != [], "asks")
    assert rig.of(link.StepDown) == [link.StepDown(7, "takeover: entry 1 was not committed within 0.05 s")]
    assert rig.leading.trader is not None and rig.leading.trader.stopped


async def test_takeover_that_finds_a_higher_token_at_the_venue_is_not_reported(rig: Rig) -> None:
    venue = rig.parts.venue
    assert isinstance(venue, FakeVenue)
    rig.exchange.do(lambda at: rig.exchange.engine.arm(venue.sender, 9, at))
    rig.begin(7)
    await eventually(lambda: rig.of(link.StepDown) != [], "asks to be relieved")
    assert not rig.reported(7)


async def test_told_to_lead_again_while_leading_the_older_term_ends_first(rig: Rig) -> None:
    await rig.lead(7)
    first = rig.leading.trader
    await rig.lead(9)
    assert first is not None and first.stopped and rig.leading.trader is not first
    assert rig.bot.roles == [Role.ACTIVE, Role.SHADOW, Role.ACTIVE]
    assert [f for f in rig.facts() if isinstance(f, TermStarted)] != []
    assert rig.leading.log is not None and rig.leading.log.term == 9


# -- draining -----------------------------------------------------------------------------------------------------


async def test_drain_carries_the_strategys_state_over_and_settles(rig: Rig) -> None:
    await rig.lead()
    rig.parts.page.clear()
    rig.leading.drain(7, None)
    await eventually(lambda: link.Settled(7) in rig.sent, "settled")
    assert StrategyState("x:Bot", 1, b"1") in rig.facts()
    assert rig.leading.log is None and rig.bot.roles[-1] is Role.SHADOW


async def test_drain_of_another_term_does_nothing(rig: Rig) -> None:
    await rig.lead(7)
    rig.leading.drain(6, None)
    await asyncio.sleep(0.01)
    assert rig.of(link.Settled) == [] and rig.leading.log is not None


async def test_drain_that_was_overtaken_does_not_end_the_next_term(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Draining takes long. 2. The keeper loses its patience and ends the term. 3. It wins again and we lead anew.
    4. The drain comes to its end."""
    monkeypatch.setattr(stages, "DRAIN_LIMIT_S", 0.3)
    await rig.lead(7)
    rig.parts.page.clear()
    rig.leading.drain(7, "n2")  # n2 never has everything
    await asyncio.sleep(0.02)
    rig.leading.end("drain timed out")
    rig.leading.rest()
    await rig.lead(9)
    await asyncio.sleep(0.7)  # longer than both parts of the drain may take
    assert rig.leading.log is not None and rig.leading.log.term == 9
    assert rig.leading.permission.level is Level.ALLOWED
    assert rig.of(link.Settled) == []


async def test_drain_waits_for_the_successor_only_so_long(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "DRAIN_LIMIT_S", 0.02)
    await rig.lead()
    rig.parts.page.clear()
    rig.leading.drain(7, "n2")
    await eventually(lambda: link.Settled(7) in rig.sent, "settled")


# -- the rest -----------------------------------------------------------------------------------------------------


async def test_stepping_down_is_asked_for_while_there_is_a_term(rig: Rig) -> None:
    rig.leading.step_down("nobody leads here")
    assert rig.sent == []
    await rig.lead()
    rig.leading.step_down("x" * 5000)
    (asked,) = rig.of(link.StepDown)
    assert asked.term == 7 and len(asked.reason) == 2000
    assert rig.leading.trader is not None and rig.leading.trader.stopped


async def test_too_few_standbys_halt_where_the_policy_says_so(rig: Rig) -> None:
    rig.replication.min_standbys, rig.replication.unprotected = 1, "halt"
    await rig.lead()
    said = "0 in-sync standbys, replication.min_standbys = 1"
    assert (rig.leading.permission.level, rig.leading.permission.reason) == (Level.BLOCKED, said)
    assert rig.bot.roles == [Role.BLOCKED]
    rig.leading.end("over")
    rig.leading.rest()
    assert rig.parts.conditions.unprotected == "", "the next term counts anew"


async def test_answer_to_an_older_proposal_is_not_heard(rig: Rig) -> None:
    await rig.lead()
    log = rig.leading.log
    assert log is not None
    before = log.insync.revision
    rig.leading.insync_answered(link.InSyncAnswer(99, "refused", {}, 1000))
    assert log.insync.revision == before
    rig.leading.end("over")
    rig.leading.insync_answered(link.InSyncAnswer(0, "done", {}, 1000))


async def test_strategy_state_is_journaled_now_and_then_when_it_has_changed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading_module, "STRATEGY_STATE_S", 0.005)
    keeping = asyncio.create_task(rig.leading.keep_strategy_state())
    await asyncio.sleep(0.02)
    assert rig.journal.last.index == 0, "a standby writes nothing"
    await rig.lead()
    await eventually(lambda: rig.book.strategy_state is not None, "journaled")
    await asyncio.sleep(0.03)
    rig.bot.state = b"2"
    await eventually(lambda: rig.book.strategy_state == StrategyState("x:Bot", 1, b"2"), "journaled again")
    assert len([f for f in rig.facts() if isinstance(f, StrategyState)]) == 2
    keeping.cancel()


# -- the kill latch -------------------------------------------------------------------------------------------------


async def test_latch_as_the_keeper_tells_it_blocks_and_frees(rig: Rig) -> None:
    await rig.lead()
    rig.leading.latch_seen("fat finger")
    assert rig.leading.permission.reason == "halted: fat finger" and rig.bot.roles[-1] is Role.BLOCKED
    rig.leading.latch_seen("")
    assert rig.leading.permission.reason == "halted: no reason given"
    rig.leading.latch_seen(None)
    assert rig.leading.permission.level is Level.ALLOWED


async def test_nothing_is_traded_before_the_keeper_has_told_of_the_latch(rig: Rig) -> None:
    rig.parts.conditions = Conditions(feed=FeedState.LIVE)
    await rig.lead()
    assert rig.leading.permission.reason == "halted: the kill latch is not known yet"


async def test_empty_gate_has_the_latch_read_and_only_the_answer_to_the_latest_question_counts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arming, "LATCH_WAIT_S", 0.02)
    monkeypatch.setattr(arming, "RETRY_S", 0.01)
    rig.keeper_answers = False
    rig.begin(7)
    await eventually(lambda: len(rig.of(link.AskLatch)) >= 2, "asked again")
    first, *_, last = [m.request for m in rig.of(link.AskLatch)]
    rig.leading.latch_answered(link.LatchAnswer(first, None))
    await asyncio.sleep(0.005)
    assert rig.parts.conditions.gate_closed
    rig.keeper_answers = True
    await eventually(lambda: rig.parts.conditions.gate_closed == "", "open")
    rig.leading.end("over")
    rig.leading.latch_answered(link.LatchAnswer(last, "late"))


async def test_latch_that_the_keeper_cannot_read_keeps_the_gate_closed(rig: Rig) -> None:
    rig.keeper_answers = False
    rig.begin(7)
    await eventually(lambda: rig.of(link.AskLatch) != [], "asked")
    rig.leading.latch_answered(link.LatchAnswer(1, None, "no etcd endpoint answers"))
    assert rig.parts.conditions.gate_closed == "the kill latch cannot be read: no etcd endpoint answers"
