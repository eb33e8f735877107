"""A worker process of the simulation: journal, book, following and leading, as `node/worker.py` wires them.

Real: `Duty`, `Following` and its sessions, `Serving`, `LeaderLog`, `Book`, the strategy host; a term's trading is
`trader.py`'s. What is here carries out: each action is one step of the process, so it may be paused or killed right
before any of them, and whatever comes in waits until it runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chaos.sim.disk import SimJournal
from chaos.sim.engine import MS, Timer
from chaos.sim.follower import SimFollower
from chaos.sim.market import SimStrategy
from chaos.sim.plan import DRIFT
from chaos.sim.process import Process
from chaos.sim.replica import Server
from chaos.sim.story import of_fact
from chaos.sim.trader import SimTrader
from chaos.sim.venue import ACCOUNT
from cluster import link
from cluster.core import duty as du
from cluster.core.duty import Duty
from cluster.core.errors import BatonError, JournalBroken, JournalCorrupt, StepDown
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term, ns
from cluster.core.insync import ProposeChange, Protection
from cluster.core.log import Entry
from cluster.core.stream import Digests
from cluster.leader_log import LeaderLog, LeaderSettings
from node import actions as act
from node import orders
from node.book import Book
from node.codec import Fact, Intent, TermStarted, encode
from node.feeds.base import FeedState, MarketEvent
from node.host import StrategyHost
from node.paper_venue.lines import Line
from node.paper_venue.state import Sender
from node.permission import Conditions, Level, Permission
from node.strategy import Role, Wish
from node.venue_clock import VenueClock
from node.venues.base import TimeSample

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World

DIGEST_EVERY = 64
CLOCK_EVERY = 1000 * MS
STRATEGY = "chaos.sim.market:SimStrategy"


class SimWorker:
    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host, self.engine = world, host, world.engine
        self.process = Process(self.engine, f"{host.name} worker", world.traps_of(host, "worker"))
        self.started_at, self.ended_at = self.engine.now, 0
        self.opened = False
        self.stuck = False
        host.incarnations += 1
        self.holder = f"{host.name}/{host.incarnations}"
        self.sender = Sender(ACCOUNT, host.name, self.holder)
        self.conditions = Conditions(feed=FeedState.LIVE)
        self.clock = VenueClock(DRIFT)
        self.digests = Digests()
        self.duty: Duty[link.Lead] = Duty()
        self.log: LeaderLog | None = None
        self.trader: SimTrader | None = None
        self.applied = LogIndex(0)
        self.journal: SimJournal
        self.book: Book
        self.strategy: StrategyHost
        self.follower: SimFollower
        self.server = Server(self)
        self._facts: dict[int, Fact] = {}
        self._change = self._latch_asked = 0

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        world, host = self.world, self.host
        try:
            self.journal = host.disk.open()
        except JournalCorrupt as e:
            world.cover["journal corrupt"] += 1
            world.say(f"{host.name} disk", "journal", f"the journal is set aside, it is not what was written: {e}")
            host.disk.set_aside()
            self.journal = host.disk.open()
        self.journal.on_broken = self.fail
        self.book = Book(world.tag, world.instruments)
        self.apply_up_to(self.journal.commit_index)
        self.follower = SimFollower(self)
        self.strategy = StrategyHost(
            SimStrategy({"decided": world.market.decided}),
            STRATEGY,
            self.book,
            {i.symbol: i for i in world.instruments},
            on_wishes=self._wishes,
            on_failed=lambda why: world.judge.blame("L2", f"the strategy of {host.name} failed: {why}"),
            call_later=lambda _s, _fn: None,
        )
        self.strategy.start()
        self.opened = True
        journal = self.journal
        world.say(
            self.process.name, "death", f"the worker of {host.name} starts; its journal ends at {journal.last.index}"
        )
        self.tell(
            link.Hello(journal.journal_id, journal.last.index, journal.highest_term, journal.etcd_cluster_id, "", "")
        )
        self._sample_clock()

    def kill(self, how: str) -> None:
        """SIGKILL, or the end of its keeper. What it has written and not synced may have reached the disk."""
        if not self.process.alive or self.stuck:
            return
        self.process.kill()
        self.ended_at = self.engine.now
        self.world.say(self.process.name, "death", f"the worker of {self.host.name} is dead: {how}")
        self.host.disk.crash(keep=int(self.engine.schedule.random() * (self.host.disk.unsynced + 1)))
        self.server.close()
        if self.opened:
            self.follower.hang_up()
        keeper = self.host.keeper
        if keeper is not None and keeper.alive:
            self.engine.after(
                self.engine.between(MS // 10, 5 * MS), keeper.process.deliver, "worker", keeper.worker_exited, self, how
            )

    def fail(self, error: BaseException) -> None:
        """Something the node cannot go on without. Stop sending first, then say so."""
        self._end(str(error))
        self.tell(link.Fatal(f"{type(error).__name__}: {error}"))
        self.world.cover[f"worker failed: {type(error).__name__}"] += 1

    def tell(self, message: link.Message) -> None:
        keeper = self.host.keeper
        if keeper is not None:
            self.host.to_keeper.send(keeper.process.deliver, "worker", keeper.heard, self, message)

    def later(self, delay: int, fn: Callable[..., Any], *args: Any) -> Timer:
        """On this process's loop; delay in ns of its own clock."""
        return self.engine.later(delay, self.process.deliver, "timer", fn, *args)

    @property
    def now(self) -> Instant:
        return self.host.now

    def unrest(self) -> list[str]:
        """What is still under way here, at the leader; empty: nothing."""
        if self.log is None or self.trader is None:
            return [f"{self.host.name} does not lead yet"]
        found = self.trader.unrest()
        if self.log.commit_index != self.journal.last.index:
            found.append(f"{self.journal.last.index - self.log.commit_index} entries are not committed")
        return found

    # -- the journal and the book ----------------------------------------------------------------------------------

    def apply_up_to(self, commit: LogIndex) -> None:
        """Committed entries, in order: the only way into the book."""
        while self.applied < commit:
            first = LogIndex(self.applied + 1)
            entries = self.journal.tail(first, 1 << 20, commit - self.applied)
            if entries is None:
                entries = self.journal.read(first, 1 << 20, commit - self.applied)
            if not entries:
                self.world.judge.blame("S7", f"committed entry {first} is not in the journal of {self.host.name}")
                return
            for entry in entries:
                try:
                    self._apply(entry)
                except BatonError as e:  # a worker dies of it, and of the same entry again once it is restarted
                    self.world.judge.raised(self.host.name, e, f"entry {entry.index}")
                    return

    def _apply(self, entry: Entry) -> None:
        fact = self._facts.pop(entry.index, None) or self.world.fact_of(entry)
        events = self.book.apply(entry, fact)
        self.applied = entry.index
        if entry.index % DIGEST_EVERY == 0:
            self.digests.note(entry.index, self.book.digest())
        if self.trader is not None:
            self.trader.applied(entry, fact)
        elif isinstance(fact, Intent) and self.opened:
            self.strategy.leader_decided(fact.decision_id)
        if events and self.opened:
            self.strategy.book_events(events)

    # -- what the keeper says --------------------------------------------------------------------------------------

    def obey(self, message: link.Message) -> None:
        match message:
            case link.Follow(node, address, term):
                self._do_duty(self.duty.follow(NodeId(node), address, Term(term)))
            case link.Prepare(term):
                self._do_duty(self.duty.prepare(Term(term)))
            case link.Lead(term=term):
                self._do_duty(self.duty.lead(Term(term), message))
            case link.StopTrading(term, reason):
                self._do_duty(self.duty.stop(Term(term), reason))
            case link.Granted(term):
                if self.trader is not None and self.trader.term == term:
                    self.trader.granted()
            case link.Drain(term, successor):
                if self.trader is not None and self.trader.term == term:
                    self.trader.drain(NodeId(successor) if successor else None)
            case link.InSyncAnswer():
                self._insync_answered(message)
            case link.LatchSeen(halted):
                self.conditions.halted = "" if halted is None else halted or "no reason given"
                self._review()
            case link.LatchAnswer(request, halted, unreadable):
                if self.trader is not None and request == self._latch_asked:
                    self.trader.latch_answered(halted, unreadable)

    def _do_duty(self, actions: Sequence[du.Action[link.Lead]]) -> None:
        for action in actions:
            self.process.then(type(action).__name__, self._carry_out_duty, action)

    def _carry_out_duty(self, action: du.Action[link.Lead]) -> None:
        match action:
            case du.EndLeading(reason, stopped):
                ended = self._end(reason)
                if stopped is not None:
                    self.tell(link.Stopped(stopped))
                if ended or stopped is not None:
                    self._rest()
            case du.StopFollowing(number, closing):
                self.follower.stop(closing)
                try:
                    self.journal.flush(lambda: self._do_duty(self.duty.at_rest(number)))
                except JournalBroken as e:
                    self.fail(e)
            case du.Follow(node, _, term):
                self.follower.follow(node, term)
            case du.TellPrepared(term):
                self.tell(link.Prepared(term))
            case du.BeginLeading(told):
                self._begin(told)

    # -- leading ---------------------------------------------------------------------------------------------------

    def _begin(self, lead: link.Lead) -> None:
        term, plan = Term(lead.term), self.world.plan
        last = self.journal.last
        self._facts.clear()
        try:
            self.log = LeaderLog(
                self.journal,
                self.host.name,
                term,
                {NodeId(n): JournalId(j) for n, j in lead.insync.items()},
                lead.insync_revision,
                propose=self._propose,
                on_commit=self._committed,
                on_protection=self._protection_changed,
                on_deposed=self.step_down,
                settings=LeaderSettings(
                    insync_timeout_s=0.25, min_standbys=plan.min_standbys, unprotected=plan.unprotected
                ),
                clock=lambda: self.now,
                call_later=lambda s, fn: self.later(ns(s), fn),
            )
        except BatonError as e:
            self.fail(e)
            return
        self.world.records.led(self.host.name, term, last.index, last.chain)
        self.server.lead()
        self.trader = SimTrader(self, term)
        self.trader.begin(TermStarted(self.host.name, self.holder))

    def append(self, fact: Fact) -> Entry:
        if self.log is None:
            raise StepDown("this node does not lead any more")
        kind, body = encode(fact)
        entry = self.log.append(kind, body, self.host.wall)
        self._facts[entry.index] = fact
        if self.engine.story is not None:
            self.engine.story.append(
                of_fact(self.process.name, self.engine.now, self.world.tag, entry, fact, self.journal.term_at)
            )
        return entry

    def _committed(self, index: LogIndex) -> None:
        chain = self.journal.chain_at(index)
        if chain is not None and self.log is not None:
            self.world.note_committed(self.host.name, self.log.term, index, chain)
        self.apply_up_to(index)

    def report(self, term: Term, said: act.Report) -> None:
        """What one leadership has to say to the node and its keeper."""
        match said:
            case act.PermissionChanged(permission):
                self._permission_changed(permission)
            case act.ReportReconciled(phases_s):
                self.tell(link.Reconciled(term, dict(phases_s)))
            case act.ReadLatch():
                self._latch_asked += 1
                self.tell(link.AskLatch(self._latch_asked, term))
            case act.ReportSettled():
                self._end("handed over")
                self.tell(link.Settled(term))
                self._rest()
            case orders.StepDown(reason):
                self.step_down(reason)

    def step_down(self, reason: str) -> None:
        if self.log is None:
            return
        self.world.cover["asked to step down"] += 1
        if self.trader is not None:
            self.trader.stop()
        self.tell(link.StepDown(self.log.term, reason))

    def asked_to_step_down(self, reason: str) -> bool:
        """By a person. Whether it leads."""
        if self.log is None or not self.process.runs:
            return False
        self.process.deliver("link", self.step_down, reason)
        return True

    def _end(self, reason: str) -> bool:
        """When it returns, nothing can be sent or appended for the term."""
        trader, self.trader = self.trader, None
        log, self.log = self.log, None
        if trader is not None:
            trader.stop()
        if log is not None:
            log.close(reason)
        self._facts.clear()
        return log is not None

    def _rest(self) -> None:
        self.conditions.standing = "standby"
        self.conditions.unprotected = ""
        self._permission_changed(Permission(Level.BLOCKED, "standby"))

    def _propose(self, change: ProposeChange) -> None:
        self._change += 1
        if self.log is not None:
            members = {str(n): str(j) for n, j in change.members.items()}
            self.tell(link.ProposeInSync(self._change, self.log.term, members, change.expected_revision))

    def _insync_answered(self, answer: link.InSyncAnswer) -> None:
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
        self.conditions.unprotected = "" if p.may_trade else f"{p.standbys} in-sync standbys of {p.required}"
        self._review()

    def _review(self) -> None:
        if self.trader is not None:
            self.trader.review()

    # -- the strategy ----------------------------------------------------------------------------------------------

    def market(self, event: MarketEvent) -> None:
        if self.opened:
            self.strategy.market(event)

    def _wishes(self, named: list[tuple[str, Wish]], _received_at: int) -> None:
        if self.trader is not None:
            self.trader.wishes(named)

    def _permission_changed(self, permission: Permission) -> None:
        standing = self.conditions.standing
        if permission.level is not Level.BLOCKED:
            self.strategy.set_role(Role.ACTIVE, "leading")
        elif standing == "leading":
            self.strategy.set_role(Role.BLOCKED, permission.reason)
        else:
            self.strategy.set_role(Role.SHADOW, standing)

    def reference(self, symbol: str) -> int | None:
        quote = self.strategy.quotes.get(symbol)
        return None if quote is None else quote.mid_half_ticks

    # -- the venue's clock and stream ------------------------------------------------------------------------------

    def _sample_clock(self) -> None:
        sent_at = self.now

        def answered(unix: int | None) -> None:
            if unix is not None:
                self.clock.note(TimeSample(sent_at, self.now, unix))
            known = self.clock.latest(self.now) is not None
            self.later(CLOCK_EVERY if known else 50 * MS, self._sample_clock)

        self.call_venue("time?", self.world.venue.unix, answered)

    def call_venue(self, what: str, ask: Callable[[], Any], answered: Callable[[Any], None], order: str = "") -> None:
        """One request; `answered` is called once, with None if there was no answer in time."""
        world, w = self.world, self.host.wires
        world.call(self, w.venue_up, w.venue_down, lambda: world.venue_down_until, ask, answered, what, order)

    def call_gate(self, what: str, ask: Callable[[], Any], answered: Callable[[Any], None], order: str = "") -> None:
        world, w = self.world, self.host.wires
        world.call(self, w.gate_up, w.gate_down, lambda: world.gate_down_until, ask, answered, what, order)

    def stream_has(self, line: Line) -> None:
        if self.trader is not None:
            self.trader.stream_has(line)
