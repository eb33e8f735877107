"""Whether this node leads, and the way in and out: one leadership at a time.

    Lead -> TermStarted -> { catch up || arm } -> settle -> Reconciled ... Granted ... StopTrading, or Drain -> Settled

The worker hands on what the keeper says; `trader.py` trades. Invariants:

- facts are appended through `append` alone, which refuses once the term is over;
- `end` is synchronous: when it returns, nothing can be sent or appended for the term. User code, which may be slow,
  hears of it only afterwards, in `rest`: the keeper waits for our word that we have stopped;
- whatever a leadership began and has not finished (a takeover, a drain) looks, after each wait, whether it is still
  that one: the next may have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import structlog

from cluster import link
from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import StepDown
from cluster.core.ids import NS_PER_S, JournalId, NodeId, Term, ns
from cluster.core.insync import ProposeChange, Protection
from cluster.core.log import Entry
from cluster.journal import JournalBusy
from cluster.leader_log import LeaderLog, LeaderSettings
from node.codec import Fact, StrategyState, TermStarted, encode
from node.feeds.base import FeedState
from node.parts import Parts
from node.permission import Level, Permission
from node.strategy import Role, Wish
from node.trader import Trader, TradingRules

CATCH_UP_LIMIT_S = 30.0
DRAIN_LIMIT_S = 0.4
STRATEGY_STATE_S = 10.0

STANDBY = Permission(Level.BLOCKED, "standby")

log = structlog.get_logger()


class Leading:
    def __init__(
        self,
        parts: Parts,
        *,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        publish: Callable[[], None],
    ) -> None:
        """spawn: runs a task whose failure ends the node. publish: tell the others now what we are."""
        self.log: LeaderLog | None = None
        self.trader: Trader | None = None
        self.permission = STANDBY
        self.stepped_down: tuple[int, str] | None = None  # when we last asked to, and why
        self._parts = parts
        self._spawn, self._publish = spawn, publish
        self._take_over: asyncio.Task[None] | None = None
        self._facts: dict[int, Fact] = {}  # appended by us and not applied; saves decoding them again
        self._change = 0  # number of the in-sync change under way

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

    def begin(self, lead: link.Lead, at_rest: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        """Take over. at_rest: entered when following has stopped and the journal is at rest; it stays so inside."""
        if self.end(f"told to lead in term {lead.term}"):
            self.rest()
        self._take_over = self._spawn(self._lead(lead, at_rest), "lead")

    async def _lead(self, lead: link.Lead, at_rest: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        """Catch up (commit everything we hold), arm, settle, report. The keeper then grants the permit."""
        parts, term, begun = self._parts, Term(lead.term), boottime_ns()
        log.info("taking_over", term=term, cause=lead.cause, came_from=lead.came_from)
        async with at_rest():
            parts.conditions.standing = "taking over"
            parts.conditions.gate_closed = parts.conditions.venue_down = "not armed yet"
            self._facts.clear()
            self.log = leader = self._leader_log(term, lead)
            parts.server.lead(leader)
        first = self.append(TermStarted(parts.name, str(os.getpid())))
        self.trader = trader = self._make_trader(term)
        # The gate and the venue are armed while the standbys attach; what is open is asked for when both are done.
        async with _along(trader.arm()) as arming:
            try:
                async with asyncio.timeout(CATCH_UP_LIMIT_S):
                    await leader.wait_committed(first.index)
                    await parts.delivery.wait_applied(first.index)
            except StepDown as e:
                log.info("takeover_ended", term=term, reason=str(e))
                return
            except TimeoutError:
                self.step_down(f"takeover: entry {first.index} was not committed within {CATCH_UP_LIMIT_S:g} s")
                return
            phases = {"catch_up": (boottime_ns() - begun) / NS_PER_S}
            phases["arm"] = await arming
        phases["settle"] = await trader.settle()
        if self.trader is trader and not trader.stopped:
            parts.link.send(link.Reconciled(term, phases))

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

    def _make_trader(self, term: Term) -> Trader:
        parts, c = self._parts, self._parts.config
        return Trader(
            term=term,
            rules=TradingRules(
                order_tag=c.cluster.order_tag,
                limits=c.risk_limits(),
                validity_s=c.venue.order_validity_s,
                reconcile_interval_s=c.venue.reconcile_interval_s,
                deadman_ttl_s=c.venue.deadman_ttl_s,
            ),
            book=parts.book,
            append=self.append,
            page=parts.page,
            gate=parts.gate,
            venue=parts.venue,
            clock=parts.clock,
            conditions=parts.conditions,
            telemetry=parts.telemetry,
            reference=self._reference,
            on_step_down=self.step_down,
            on_first_order=lambda at: parts.link.send(link.FirstOrder(term, at)),
            on_permission=self._permission_changed,
        )

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
        if self._take_over is not None:
            self._take_over.cancel()
            self._take_over = None
        return leader is not None

    def rest(self) -> None:
        """After `end`: let the strategy and the others know, in their own time."""
        self._parts.conditions.standing = "standby"
        self._parts.conditions.unprotected = ""
        self._permission_changed(STANDBY)

    async def drain(self, term: int, successor: str | None) -> None:
        """The permit is gone. Wait for answers to what was sent, then until the successor has every entry; tell the
        keeper either way: what has no answer by then is UNKNOWN, and the next leader's to settle."""
        leader, trader, journal = self.log, self.trader, self._parts.journal
        if leader is None or trader is None or leader.term != term:
            return
        self._append_strategy_state()
        await trader.drain(DRAIN_LIMIT_S)
        deadline = boottime_ns() + ns(DRAIN_LIMIT_S)
        while boottime_ns() < deadline and self.log is leader:
            last = journal.last.index
            has_all = {f.node for f in leader.followers() if f.durable >= last}
            if leader.commit_index >= last and (successor is None or successor in has_all):
                break
            await asyncio.sleep(0.001)
        if self.log is not leader:
            return  # the keeper has ended the term meanwhile; what leads now is another one
        self.end("handed over")
        self._parts.link.send(link.Settled(term))
        self.rest()

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


@contextlib.asynccontextmanager
async def _along(work: Coroutine[Any, Any, float]) -> AsyncIterator[asyncio.Task[float]]:
    """`work` beside what is done inside; on the way out it is cancelled and its end awaited: nobody's orphan."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: who awaited it has it
