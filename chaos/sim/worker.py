"""A worker process of the simulation: journal, book, following and leading, as `node/worker.py` wires them.

Real: `Duty`, `Following` and its sessions, `Serving`, `LeaderLog`, `Book`, the strategy host; a term's trading is
`trader.py`'s. What is here carries out: each action is one step of the process, so it may be paused or killed right
before any of them, and whatever comes in waits until it runs again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chaos.sim.disk import SimJournal
from chaos.sim.engine import MS, Timer
from chaos.sim.market import SimStrategy
from chaos.sim.plan import DRIFT
from chaos.sim.process import Process
from chaos.sim.replica import Conn, Stream
from chaos.sim.trader import SimTrader
from chaos.sim.venue import ACCOUNT
from cluster import link
from cluster.core import duty as du
from cluster.core import following as fo
from cluster.core.duty import Duty
from cluster.core.errors import BatonError, JournalBroken, JournalCorrupt, StaleTerm, StepDown
from cluster.core.following import Following
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term, ns
from cluster.core.insync import ProposeChange, Protection
from cluster.core.log import Entry, Received
from cluster.core.serving import admit
from cluster.core.stream import Digests, Hello, LeaderMessage, Refused, StreamEnded, StreamSettings
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
STREAM = StreamSettings(heartbeat_s=0.1, silence_s=0.5)
CLOCK_EVERY = 1000 * MS
HOLD = ns(STREAM.hold_s)
STRATEGY = "chaos.sim.market:SimStrategy"


class SimWorker:
    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host, self.engine = world, host, world.engine
        self.process = Process(self.engine, world.traps_of(host, "worker"))
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
        self.following: Following
        self._facts: dict[int, Fact] = {}
        self._change = self._latch_asked = 0
        self._conn: Conn | None = None  # to the leader that is followed
        self._ack_due = False
        self._waiting: list[tuple[Conn, Hello]] = []  # followers that came before we lead
        self._streams: dict[NodeId, Stream] = {}

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        world, host = self.world, self.host
        try:
            self.journal = host.disk.open()
        except JournalCorrupt as e:
            world.cover["journal corrupt"] += 1
            world.say(host.name, f"journal set aside: {e}")
            host.disk.set_aside()
            self.journal = host.disk.open()
        self.journal.on_broken = self._fail
        self.book = Book(world.tag, world.instruments)
        self._apply_up_to(self.journal.commit_index)
        self.following = Following(
            host.name, self.journal, self.digests, STREAM, random.Random(f"{self.holder}/{world.plan.seed}")
        )
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
        self.world.say(self.host.name, f"worker is dead: {how}")
        self.host.disk.crash(keep=int(self.engine.schedule.random() * (self.host.disk.unsynced + 1)))
        for conn in [*(s.conn for s in self._streams.values()), *(c for c, _ in self._waiting)]:
            conn.broken(self.host)
        if self._conn is not None:
            self._conn.broken(self.host)
        keeper = self.host.keeper
        if keeper is not None and keeper.alive:
            self.engine.after(
                self.engine.between(MS // 10, 5 * MS), keeper.process.deliver, "worker", keeper.worker_exited, self, how
            )

    def _fail(self, error: BaseException) -> None:
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

    def _apply_up_to(self, commit: LogIndex) -> None:
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
                self._apply(entry)

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
                self.following.stop(closing)
                self._hang_up()
                try:
                    self.journal.flush(lambda: self._do_duty(self.duty.at_rest(number)))
                except JournalBroken as e:
                    self._fail(e)
            case du.Follow(node, _, term):
                try:
                    if self.following.follow(node, term):
                        self._hang_up()
                        self._dial()
                except StaleTerm:
                    self.world.cover["follow refused as stale"] += 1
            case du.TellPrepared(term):
                self.tell(link.Prepared(term))
            case du.BeginLeading(told):
                self._begin(told)

    # -- leading ---------------------------------------------------------------------------------------------------

    def _begin(self, lead: link.Lead) -> None:
        term, plan = Term(lead.term), self.world.plan
        last = self.journal.last
        self.world.records.led(self.host.name, term, last.index, last.chain)
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
                on_deposed=self._step_down,
                settings=LeaderSettings(
                    insync_timeout_s=0.25, min_standbys=plan.min_standbys, unprotected=plan.unprotected
                ),
                clock=lambda: self.now,
                call_later=lambda s, fn: self.later(ns(s), fn),
            )
        except BatonError as e:
            self._fail(e)
            return
        waiting, self._waiting = self._waiting, []
        for conn, hello in waiting:
            self.greet(conn, hello)
        self.trader = SimTrader(self, term)
        self.trader.begin(TermStarted(self.host.name, self.holder))

    def append(self, fact: Fact) -> Entry:
        if self.log is None:
            raise StepDown("this node does not lead any more")
        kind, body = encode(fact)
        entry = self.log.append(kind, body, self.host.wall)
        self._facts[entry.index] = fact
        return entry

    def _committed(self, index: LogIndex) -> None:
        chain = self.journal.chain_at(index)
        if chain is not None and self.log is not None:
            self.world.note_committed(self.host.name, self.log.term, index, chain)
        self._apply_up_to(index)

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
                self._step_down(reason)

    def _step_down(self, reason: str) -> None:
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
        self.process.deliver("link", self._step_down, reason)
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

        self.call_venue(self.world.venue.unix, answered)

    def call_venue(self, ask: Callable[[], Any], answered: Callable[[Any], None]) -> None:
        """One request; `answered` is called once, with None if there was no answer in time."""
        self.world.call(
            self,
            self.host.wires.venue_up,
            self.host.wires.venue_down,
            lambda: self.world.venue_down_until,
            ask,
            answered,
        )

    def call_gate(self, ask: Callable[[], Any], answered: Callable[[Any], None]) -> None:
        self.world.call(
            self, self.host.wires.gate_up, self.host.wires.gate_down, lambda: self.world.gate_down_until, ask, answered
        )

    def stream_has(self, line: Line) -> None:
        if self.trader is not None:
            self.trader.stream_has(line)

    # -- following: our end ----------------------------------------------------------------------------------------

    def _dial(self) -> None:
        session = self.following.dial()
        self._conn = Conn(self.world, self.host)
        self._follow(session, session.begin())
        self.later(ns(0.1), self._watch_silence, session)

    def _hang_up(self) -> None:
        if self._conn is not None:
            self._conn.broken(self.host)
            self._conn = None

    def _watch_silence(self, session: fo.Session) -> None:
        if session is self.following.session and self._conn is not None:
            self._try(session, lambda: self._look(session))
            self.later(ns(0.1), self._watch_silence, session)

    def _look(self, session: fo.Session) -> Sequence[fo.Action]:
        session.tick(self.now)
        return ()

    def _try(self, session: fo.Session, event: Callable[[], Sequence[fo.Action]]) -> None:
        """Tell the session what happened, and carry out what it answers, unless it is over by now."""
        if session is not self.following.session or self._conn is None:
            return
        try:
            actions = event()
        except BatonError as e:
            self._session_ended(e)
        else:
            self._follow(session, actions)

    def _follow(self, session: fo.Session, actions: Sequence[fo.Action]) -> None:
        for action in actions:
            if isinstance(action, fo.Commit):
                self._follower_committed(action.index)
            elif isinstance(action, fo.Acknowledge):
                if not self._ack_due:
                    self._ack_due = True
                    self.process.then("ack", self._send_ack, session)
            else:
                self.process.then(type(action).__name__, self._carry_out_following, session, action)

    def _carry_out_following(self, session: fo.Session, action: fo.Action) -> None:
        conn, journal = self._conn, self.journal
        if session is not self.following.session or conn is None:
            return
        try:
            match action:
                case fo.Flush():
                    journal.flush(lambda: self._try(session, lambda: session.flushed(self.now)))
                case fo.SendHello(hello):
                    conn.dial(session.leader, hello)
                case fo.RaiseTerm(term):
                    journal.raise_term(term, lambda: self._try(session, lambda: session.promised(self.now)))
                case fo.Install(snapshot):
                    journal.install_snapshot(snapshot, lambda: self._installed(session, snapshot.index))
                case Received(cut_after, append):
                    journal.submit(append, conn.durable, cut_after=cut_after)
                    conn.on_durable = lambda index: self._try(session, lambda: session.durable(index))
                    self.world.cover["tail cut"] += cut_after is not None
                case fo.WaitRoom():
                    journal.when_room(lambda: self._try(session, lambda: session.room(self.now)))
        except JournalBroken as e:
            self._fail(e)

    def _installed(self, session: fo.Session, index: LogIndex) -> None:
        snapshot = self.journal.latest_snapshot()
        if snapshot is None:
            return
        self.book = Book.restore(snapshot.blob, self.world.tag, self.world.instruments)
        self.applied = index
        self.strategy.replace_book(self.book)
        self.world.cover["snapshot installed"] += 1
        self._try(session, lambda: session.installed(self.now))

    def heard(self, conn: Conn, message: LeaderMessage) -> None:
        """The leader's next message."""
        session = self.following.session
        if conn is not self._conn or session is None:
            return
        if not session.reading:
            self.later(MS, self.heard, conn, message)
            return
        self._try(session, lambda: session.received(message, self.now))

    def lost(self, conn: Conn, why: str) -> None:
        """The connection broke."""
        if conn is self._conn:
            self._session_ended(StreamEnded(why))

    def _session_ended(self, error: BatonError) -> None:
        if self._conn is not None:
            self._conn.broken(self.host)
            self._conn = None
        if self.following.target is None:
            return
        try:
            redial = self.following.ended(error)
        except BatonError as e:
            self._fail(e)
            return
        self.world.cover[f"stream ended: {type(error).__name__}"] += 1
        target = self.following.target
        self.later(redial.after, self._redial, target)

    def _redial(self, target: tuple[NodeId, Term]) -> None:
        if self.following.target == target and self._conn is None:
            self._dial()

    def _follower_committed(self, index: LogIndex) -> None:
        self.journal.note_commit(index)
        self._apply_up_to(index)

    def _send_ack(self, session: fo.Session) -> None:
        self._ack_due = False
        if session is not self.following.session or self._conn is None:
            return
        ack = session.ack(self.applied)
        if ack is not None:
            self.world.records.acknowledged(self.host.name, ack.term, ack.durable, self.journal.chain_at(ack.durable))
            self._conn.up(ack)

    # -- following: the leader's end -------------------------------------------------------------------------------

    def greet(self, conn: Conn, hello: Hello) -> None:
        """A follower has dialled. One that is early is kept waiting for us to begin to lead."""
        log = self.log
        if log is None or log.term < hello.term:
            if all(c is not conn for c, _ in self._waiting):
                self._waiting.append((conn, hello))
                self.later(HOLD, self._held_too_long, conn, hello)
            return
        self._admit(conn, hello)

    def _held_too_long(self, conn: Conn, hello: Hello) -> None:
        before = len(self._waiting)
        self._waiting = [(c, h) for c, h in self._waiting if c is not conn]
        if len(self._waiting) < before:
            self._admit(conn, hello)

    def _admit(self, conn: Conn, hello: Hello) -> None:
        log, live = self.log, self._streams.get(hello.node)
        nodes = [h.name for h in self.world.hosts]
        leading = log.insync if log is not None else None
        answer = admit(
            hello,
            self.host.name,
            self.journal.cluster,
            nodes,
            None,
            leading,
            live.member if live else None,
            self.journal,
        )
        if isinstance(answer, Refused):
            self.world.cover[f"follower refused: {answer.code.name}"] += 1
            if log is not None and hello.highest_term > log.term:
                self._step_down(f"{hello.node} has seen term {hello.highest_term}")
            conn.down(answer)
            conn.broken(self.host)
            return
        if log is None:
            return
        if live is not None:
            live.end("the same journal dialled again")
        self._streams[hello.node] = stream = Stream(self, log, conn, hello, answer)
        stream.pump()

    def stream_over(self, stream: Stream) -> None:
        if self._streams.get(stream.member.node) is stream:
            del self._streams[stream.member.node]
