"""Whether this node leads, and the way in and out: one leadership at a time.

    Lead -> the journal at rest -> take over -> Reconciled ... Granted ... StopTrading, or Drain -> Settled

The worker hands on what the keeper says; `leadership.py` decides the term, `trader.py` carries it out, and what either
has to say goes to the keeper from here. Invariants:

- facts are appended through `append` alone, which refuses once the term is over;
- `end` is synchronous: when it returns, nothing can be sent or appended for the term. User code, which may be slow,
  hears of it only afterwards, in `rest`: the keeper waits for our word that we have stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cluster import link
from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import JournalBusy, StepDown
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.insync import ProposeChange, Protection
from cluster.core.log import Entry
from cluster.journal import Journal
from cluster.leader_log import LeaderLog, LeaderSettings
from node import actions as act
from node import orders
from node.codec import Fact, StrategyState, TermStarted, encode
from node.feeds.base import FeedState
from node.leadership import Leadership, TradingRules
from node.parts import Parts
from node.permission import Level, Permission
from node.strategy import Role, Wish
from node.trader import Trader

STRATEGY_STATE_S = 10.0

STANDBY = Permission(Level.BLOCKED, "standby")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _TermLog:
    """node.stages.TermLog over one term's LeaderLog."""

    leader: LeaderLog
    journal: Journal

    @property
    def commit_index(self) -> LogIndex:
        return self.leader.commit_index

    @property
    def last_index(self) -> LogIndex:
        return self.journal.last.index

    def has_all(self, node: NodeId) -> bool:
        return any(f.node == node and f.durable >= self.last_index for f in self.leader.followers())


class Leading:
    def __init__(
        self,
        parts: Parts,
        *,
        publish: Callable[[], None],
    ) -> None:
        """publish: tell the others now what we are."""
        self.log: LeaderLog | None = None
        self.trader: Trader | None = None
        self.permission = STANDBY
        self.stepped_down: tuple[int, str] | None = None  # when we last asked to, and why
        self._parts = parts
        self._publish = publish
        self._facts: dict[int, Fact] = {}  # appended by us and not applied; saves decoding them again
        self._change = 0  # number of the in-sync change under way
        self._latch_asked = 0  # number of the latest question about the kill latch

    # -- facts ---------------------------------------------------------------------------------------------

    def append(self, fact: Fact) -> Entry:
        """Raises StepDown when the term is over: whoever is in the middle of something then stops there. JournalBusy:
        nothing was appended."""
        if self.log is None:
            raise StepDown("this node does not lead any more")
        kind, body = encode(fact)
        entry = self.log.append(kind, body, unix_ns())
        self._facts[entry.index] = fact
        return entry

    def fact_of(self, index: int) -> Fact | None:
        """What we appended there, once; None: it was not us."""
        return self._facts.pop(index, None)

    def applied(self, entry: Entry, fact: Fact) -> None:
        """`entry` is committed and in the book."""
        if self.trader is not None:
            self.trader.applied(entry, fact)

    # -- the way in ----------------------------------------------------------------------------------------

    def begin(self, lead: link.Lead, told_at: Instant) -> None:
        """Take over. Nobody is followed, and the journal is at rest, which has taken since told_at (`obeying.py`)."""
        parts, term = self._parts, Term(lead.term)
        log.info("taking_over", term=term, cause=lead.cause, came_from=lead.came_from)
        self._facts.clear()
        self.log = leader = self._leader_log(term, lead)
        parts.server.lead(leader)
        self.trader = self._make_trader(leader)
        self.trader.begin(TermStarted(parts.name, str(os.getpid())), told_at)

    def _leader_log(self, term: Term, lead: link.Lead) -> LeaderLog:
        r = self._parts.config.replication
        return LeaderLog(
            self._parts.journal,
            NodeId(self._parts.name),
            term,
            {NodeId(n): JournalId(j) for n, j in lead.insync.items()},
            lead.insync_revision,
            propose=lambda change: self._propose(term, change),
            on_commit=self._parts.delivery.advance,
            on_protection=self._protection_changed,
            on_deposed=self.step_down,
            settings=LeaderSettings(
                insync_timeout_s=r.insync_timeout_s, min_standbys=r.min_standbys, unprotected=r.unprotected
            ),
        )

    def _make_trader(self, leader: LeaderLog) -> Trader:
        parts, c = self._parts, self._parts.config
        leadership = Leadership(
            term=leader.term,
            rules=TradingRules(
                order_tag=c.cluster.order_tag,
                limits=c.risk_limits(),
                validity_s=c.venue.order_validity_s,
                reconcile_interval_s=c.venue.reconcile_interval_s,
                deadman_ttl_s=c.venue.deadman_ttl_s,
            ),
            book=parts.book,
            log=_TermLog(leader, parts.journal),
            clock=parts.clock,
            conditions=parts.conditions,
            capabilities=parts.venue.capabilities,
            append=self.append,
            reference=self._reference,
        )
        return Trader(
            leadership,
            page=parts.page,
            gate=parts.gate,
            venue=parts.venue,
            clock=parts.clock,
            telemetry=parts.telemetry,
            report=lambda said: self._report(leader.term, said),
        )

    def _report(self, term: Term, said: act.Report) -> None:
        """What one leadership has to say to the node and its keeper."""
        tell = self._parts.link.send
        match said:
            case act.PermissionChanged(permission):
                self._permission_changed(permission)
            case act.ReportReconciled(phases_s):
                tell(link.Reconciled(term, dict(phases_s)))
            case act.FirstOrder():
                tell(link.FirstOrder(term, unix_ns()))
            case act.ReadLatch():
                self._latch_asked += 1
                tell(link.AskLatch(self._latch_asked, term))
            case act.ReportSettled():
                self.end("handed over")
                tell(link.Settled(term))
                self.rest()
            case orders.StepDown(reason):
                self.step_down(reason)

    def granted(self, term: int) -> None:
        if self.trader is not None and self.trader.term == term:
            self.trader.granted()

    # -- the way out ---------------------------------------------------------------------------------------

    def step_down(self, reason: str) -> None:
        """Stop sending, and ask the keeper to end the term."""
        if self.log is None:
            return
        log.warning("asks_to_step_down", term=self.log.term, reason=reason)
        self.stepped_down = (boottime_ns(), reason)
        if self.trader is not None:
            self.trader.stop()
        self._parts.link.send(link.StepDown(self.log.term, reason[:2000]))

    def end(self, reason: str) -> bool:
        """Synchronous, and touches nothing slow: when it returns nothing can be sent or appended for the term. True if
        there was one; then follow it by `rest`."""
        trader, self.trader = self.trader, None
        leader, self.log = self.log, None
        if trader is not None:
            trader.stop()
        if leader is not None:
            self._parts.server.stop_leading(reason)
            log.info("leading_ended", term=leader.term, reason=reason)
        self._facts.clear()
        return leader is not None

    def rest(self) -> None:
        """After `end`: let the strategy and the others know, in their own time."""
        self._parts.conditions.standing = "standby"
        self._parts.conditions.unprotected = ""
        self._permission_changed(STANDBY)

    def drain(self, term: int, successor: str | None) -> None:
        """The permit is gone. The keeper is told when all is settled, unless the term ends before."""
        if self.trader is not None and self.trader.term == term:
            self._append_strategy_state()
            self.trader.drain(successor)

    # -- the kill latch --------------------------------------------------------------------------------------

    def latch_seen(self, halted: str | None) -> None:
        """As etcd has it now; the keeper tells at every change."""
        self._parts.conditions.halted = "" if halted is None else halted or "no reason given"
        self.review()

    def latch_answered(self, answer: link.LatchAnswer) -> None:
        if self.trader is None or answer.request != self._latch_asked:
            return  # the gate was armed again since: what was read before may be behind what the gate has lost
        if answer.unreadable:
            self.trader.latch_unreadable(answer.unreadable)
        else:
            self.trader.latch_read(answer.halted)

    # -- the in-sync set -----------------------------------------------------------------------------------

    def _propose(self, term: Term, change: ProposeChange) -> None:
        self._change += 1
        members = {str(n): str(j) for n, j in change.members.items()}
        self._parts.link.send(link.ProposeInSync(self._change, term, members, change.expected_revision))

    def insync_answered(self, answer: link.InSyncAnswer) -> None:
        if self.log is None or answer.request != self._change:
            return
        if answer.outcome == "done":
            self.log.change_done(answer.revision)
        elif answer.outcome == "refused":
            members = {NodeId(n): JournalId(j) for n, j in answer.members.items()}
            self.log.change_refused(members, answer.revision)
        else:
            self.log.change_unknown()

    def _protection_changed(self, p: Protection) -> None:
        self._parts.conditions.unprotected = (
            "" if p.may_trade else f"{p.standbys} in-sync standbys, replication.min_standbys = {p.required}"
        )
        self.review()

    # -- the strategy --------------------------------------------------------------------------------------

    def review(self) -> None:
        """A condition has changed."""
        if self.trader is not None:
            self.trader.review()

    def wishes(self, named: list[tuple[str, Wish]], received_at: int) -> None:
        if self.trader is not None:
            self.trader.wishes(named, received_at)

    def _reference(self, symbol: str) -> int | None:
        """Twice the mid in ticks of a quote from a live feed."""
        quote = self._parts.host.quotes.get(symbol)
        live = self._parts.conditions.feed is FeedState.LIVE
        return quote.mid_half_ticks if quote is not None and live else None

    def _permission_changed(self, permission: Permission) -> None:
        self.permission = permission
        host, standing = self._parts.host, self._parts.conditions.standing
        if permission.level is not Level.BLOCKED:
            host.set_role(Role.ACTIVE, "leading")
        elif standing == "leading":
            host.set_role(Role.BLOCKED, permission.reason)
        else:
            host.set_role(Role.SHADOW, standing)
        self._publish()  # after: a strategy that may trade again has the first word

    async def keep_strategy_state(self) -> None:
        """The leader's strategy state into the journal now and then: a successor's strategy starts from it."""
        while True:
            await asyncio.sleep(STRATEGY_STATE_S)
            if self.permission.level is not Level.BLOCKED:
                self._append_strategy_state()

    def _append_strategy_state(self) -> None:
        host, known = self._parts.host, self._parts.book.strategy_state
        state = host.snapshot()
        if state is None or self.log is None:
            return
        fact = StrategyState(host.path, host.strategy.version, state)
        if fact != known:
            with contextlib.suppress(StepDown, JournalBusy):  # the one before serves as well, a little older
                self.append(fact)
