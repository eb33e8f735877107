"""Three nodes that replicate, in one process and on virtual time: production's machines (`core/serving.py`,
`core/following.py`, `LeaderLog`), over links and disks that may be as slow and as broken as they like.

The world keeps what no node can: every entry that any leader ever called committed. It checks as things happen that
none is contradicted, that every acknowledgement was durable with its promise, and that whoever wins has them all.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chaos.sim.disk import Disk, SimJournal
from cluster.core.errors import BatonError, StaleTerm
from cluster.core.following import (
    Acknowledge,
    Action,
    Commit,
    Flush,
    Following,
    Install,
    RaiseTerm,
    SendHello,
    Session,
    WaitRoom,
)
from cluster.core.ids import NS_PER_S, Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.insync import Member, ProposeChange
from cluster.core.log import KIND_TERM_STARTED, Received
from cluster.core.serving import ReadEntries, ReadSnapshot, Serving, Wait, admit
from cluster.core.stream import Ack, Digests, Hello, Refused, StreamEnded, StreamSettings
from cluster.journal_writer import JournalLimits
from cluster.leader_log import FollowerState, LeaderLog
from tests.support.timeline import Timeline

MS = NS_PER_S // 1000
SETTINGS = StreamSettings(frame_entries=8, window_bytes=40 * 100, catch_up_entries=16, snapshot_chunk_bytes=16)
LIMITS = JournalLimits(queue_entries=64, cache_entries=24)
KIND = 16


@dataclass
class Cancel:
    """A timer's handle."""

    call: Callable[[], None] | None

    def cancel(self) -> None:
        self.call = None

    def ring(self) -> None:
        if self.call is not None:
            self.call()


class Connection:
    """Messages in order, each after a delay. One that is lost on a cut link is the last: a black hole from then on."""

    def __init__(self, world: World, a: Node, b: Node) -> None:
        self.world, self.ends, self.open = world, (a, b), True
        self._arrives = [0, 0]

    def send(self, way: int, take: Callable[[], None]) -> None:
        w = self.world
        at = max(self._arrives[way], w.time.now + w.rng.randrange(50_000, 2 * MS))
        self._arrives[way] = at
        w.time.call_later(at - w.time.now, lambda: self._arrive(take))

    def _arrive(self, take: Callable[[], None]) -> None:
        self.open = self.open and not self.world.cut(*self.ends)
        if self.open:
            take()


class Stream:
    """The leader's end, as LeaderLog wants it."""

    def __init__(self, node: Node, dialler: Dialler, conn: Connection, hello: Hello) -> None:
        self.node, self.dialler, self.conn, self.hello = node, dialler, conn, hello
        self.member = Member(hello.node, hello.journal)
        self.log = node.leader
        live = node.streams.get(hello.node)
        answer = admit(
            hello,
            node.name,
            "c",
            set(node.world.nodes),
            None,
            self.log.insync if self.log else None,
            live.member if live else None,
            node.journal,
        )
        self.ended = False
        if isinstance(answer, Refused) or self.log is None:
            self.ended = True
            conn.send(1, lambda: dialler.arrived(conn, answer))
            return
        if live is not None:
            live.end("again")
        self.serving = Serving(
            node.name, self.log.term, hello.node, answer, node.journal, Digests(), SETTINGS, node.world.time.now
        )
        node.streams[hello.node] = self
        self.log.attach(self)
        self.wake()

    def state(self) -> FollowerState:
        return FollowerState(*self.member, self.serving.durable, self.serving.applied, False)

    def check(self) -> None:
        self.guard(lambda: self.serving.tick(self.node.world.time.now))

    def end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        if self.node.streams.get(self.hello.node) is self:
            del self.node.streams[self.hello.node]
        self.node.world.time.call_later(0, lambda: self.log.detach(self) if self.log else None)
        self.conn.send(1, lambda: self.dialler.arrived(self.conn, None))

    def wake(self) -> None:
        self.node.later(0, self.work)

    def work(self) -> None:
        if not self.ended:
            self.guard(self._work)

    def guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except StreamEnded as e:
            self.end(str(e))

    def _work(self) -> None:
        journal, later, rng = self.node.journal, self.node.later, self.node.world.rng
        while self.log is not None:
            match self.serving.next(self.log.commit_index, self.node.world.time.now):
                case Wait(until):
                    if until is not None:
                        later(until - self.node.world.time.now, self.work)
                    return
                case ReadEntries(first, max_bytes, max_entries):
                    later(
                        rng.randrange(5 * MS),
                        lambda a=(first, max_bytes, max_entries): self.guard(  # type: ignore[misc]
                            lambda: self.serving.entries_read(journal.read(*a))
                        ),
                    )
                    later(5 * MS, self.work)
                case ReadSnapshot():
                    later(
                        rng.randrange(5 * MS),
                        lambda: self.guard(lambda: self.serving.snapshot_read(journal.latest_snapshot())),
                    )
                    later(5 * MS, self.work)
                case message:
                    self.conn.send(1, lambda m=message: self.dialler.arrived(self.conn, m))  # type: ignore[misc]

    def acked(self, ack: Ack) -> None:
        if self.ended or self.log is None:
            return
        self.guard(lambda: self.serving.acked(ack, self.node.world.time.now))
        if not self.ended:
            self.log.acked(self.member, ack.durable)
            self.wake()


class Dialler:
    """The follower's end: what `cluster/follower.py` does, with callbacks."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.following = Following(node.name, node.journal, Digests(), SETTINGS, node.world.rng)
        self.session: Session | None = None
        self.conn: Connection | None = None
        self.stream: Stream | None = None
        self.inbox: deque[object] = deque()
        self.ack_asked = False
        self.dialled = 0

    def follow(self, leader: NodeId, term: Term) -> None:
        try:
            anew = self.following.follow(leader, term)
        except StaleTerm:
            return
        if anew:
            self.hang_up()
            self.dial(self.dialled)

    def stop(self, closing: Term) -> None:
        self.following.stop(closing)
        self.hang_up()

    def hang_up(self) -> None:
        self.dialled += 1
        self.session = None
        if self.conn is not None:
            self.conn.open = False
            stream = self.stream
            if stream is not None:
                self.node.world.time.call_later(MS, lambda: stream.end("hung up"))
        self.conn = self.stream = None
        self.inbox.clear()

    def dial(self, dialled: int) -> None:
        if dialled != self.dialled or self.following.target is None:
            return
        self.session = self.following.dial()
        self.watch(self.session)
        self.carry_out(self.session, self.session.begin())

    def watch(self, session: Session) -> None:
        if session is self.session:
            self.guard(session, lambda: session.tick(self.node.world.time.now))
            self.node.later(20 * MS, lambda: self.watch(session))

    def guard(self, session: Session, call: Callable[[], None]) -> None:
        if session is not self.session:
            return
        try:
            call()
        except BatonError as e:
            redial = self.following.ended(e)
            self.hang_up()
            dialled = self.dialled
            self.node.later(redial.after, lambda: self.dial(dialled))

    def arrived(self, conn: Connection, message: object) -> None:
        """None: the stream ended."""
        if conn is self.conn:
            self.inbox.append(message)
            self.read()

    def read(self) -> None:
        session = self.session
        while session is not None and session is self.session and session.reading and self.inbox:
            self.guard(session, lambda: self.take(session))

    def take(self, session: Session) -> None:
        message = self.inbox.popleft()
        if message is None:
            raise StreamEnded("the leader ended the stream")
        self.carry_out(session, session.received(message, self.node.world.time.now))  # type: ignore[arg-type]

    def event(self, session: Session, happened: Callable[[Instant], list[Action]]) -> Callable[[], None]:
        def call() -> None:
            self.guard(session, lambda: self.carry_out(session, happened(self.node.world.time.now)))
            self.read()

        return call

    def carry_out(self, session: Session, actions: list[Action]) -> None:
        journal = self.node.journal
        for action in actions:
            match action:
                case Received(cut_after, entries):
                    self.submit(session, entries, cut_after)
                case Commit(index):
                    journal.note_commit(index)
                    self.node.world.check_committed(self.node, index)
                case Acknowledge():
                    if not self.ack_asked:
                        self.ack_asked = True
                        self.node.later(0, lambda: self.acknowledge(session))
                case Flush():
                    journal.flush(self.event(session, session.flushed))
                case SendHello(hello):
                    self.say_hello(hello)
                case RaiseTerm(term):
                    journal.raise_term(term, self.event(session, session.promised))
                case Install(snapshot):
                    journal.install_snapshot(snapshot, self.event(session, session.installed))
                case WaitRoom():
                    journal.when_room(self.event(session, session.room))

    def submit(self, session: Session, entries: object, cut_after: LogIndex | None) -> None:
        def durable(index: LogIndex) -> None:
            self.carry_out(session, session.durable(index))

        self.node.journal.submit(entries, durable, cut_after=cut_after)  # type: ignore[arg-type]

    def say_hello(self, hello: Hello) -> None:
        target = self.following.target
        assert target is not None
        leader = self.node.world.nodes[target[0]]
        conn = self.conn = Connection(self.node.world, self.node, leader)

        def met() -> None:
            if leader.up and conn is self.conn:
                self.stream = Stream(leader, self, conn, hello)

        conn.send(0, met)

    def acknowledge(self, session: Session) -> None:
        self.ack_asked = False
        ack, conn, stream = session.ack(LogIndex(0)), self.conn, self.stream
        if ack is None or conn is None or stream is None or session is not self.session:
            return
        self.node.world.check_ack(self.node, ack)
        conn.send(0, lambda: stream.acked(ack))


class Node:
    def __init__(self, world: World, name: NodeId) -> None:
        self.world, self.name = world, name
        self.disk = Disk(name, "c", world.time.call_later, lambda: world.rng.randrange(100_000, 3 * MS), LIMITS)
        self.lives = 0
        self.up = False
        self.start()

    def start(self) -> None:
        self.journal: SimJournal = self.disk.open()
        self.lives += 1
        self.up = True
        self.leader: LeaderLog | None = None
        self.streams: dict[NodeId, Stream] = {}
        self.dialler = Dialler(self)

    def later(self, delay_ns: int, call: Callable[[], None]) -> None:
        """In this life."""
        life = self.lives
        self.world.time.call_later(delay_ns, lambda: call() if self.up and life == self.lives else None)

    def crash(self) -> None:
        rng = self.world.rng
        self.dialler.hang_up()
        for stream in list(self.streams.values()):
            stream.end("crashed")
        self.up = False
        self.leader = None
        self.disk.crash(rng.randrange(self.disk.unsynced + 1), torn=rng.random() < 0.5)

    def begin(self, term: Term, members: dict[NodeId, JournalId], revision: int) -> None:
        made: list[LeaderLog] = []

        def call_later(delay_s: float, call: Callable[[], None]) -> Cancel:
            timer = Cancel(call)
            self.later(round(delay_s * NS_PER_S), timer.ring)
            return timer

        log = self.leader = LeaderLog(
            self.journal,
            self.name,
            term,
            members,
            revision,
            propose=lambda change: self.world.propose(self, made[0], change),
            on_commit=lambda index: self.world.committed_by(self, index),
            clock=lambda: self.world.time.now,
            call_later=call_later,
        )
        made.append(log)
        log.append(KIND_TERM_STARTED, b"", 0)

    def append(self) -> None:
        if self.leader is not None:
            try:
                self.leader.append(KIND, self.world.rng.randbytes(self.world.rng.randrange(8)), 0)
            except BatonError:
                return

    def end(self, why: str) -> None:
        if self.leader is not None:
            self.leader.close(why)
            self.leader = None

    def snapshot(self) -> None:
        index = min(self.journal.commit_index, self.journal.durable_index)
        if index > (self.journal.snapshot_index or 0):
            self.journal.save_snapshot(index, b"", b"book" * 10, lambda: self.journal.prune(5, lambda: None))


class World:
    def __init__(self, seed: int) -> None:
        self.rng, self.time = random.Random(seed), Timeline()
        self.committed: list[bytes] = []  # chains, from index 1 on
        self.commits = 0
        self.cuts: set[frozenset[NodeId]] = set()
        names = [NodeId(f"n{i}") for i in (1, 2, 3)]
        self.nodes: dict[NodeId, Node] = {}
        for name in names:
            self.nodes[name] = Node(self, name)
        self.term, self.revision = Term(1), 1
        self.members = {n.name: n.journal.journal_id for n in self.nodes.values()}
        self.leads: NodeId | None = None
        self.elect(names[0])

    def cut(self, a: Node, b: Node) -> bool:
        return not (a.up and b.up) or frozenset((a.name, b.name)) in self.cuts

    # -- etcd, in a few lines -----------------------------------------------------------------------------------

    def elect(self, name: NodeId) -> None:
        """Whoever it is closes the old term and comes to rest, and then wins if `insync` still names it."""
        node = self.nodes[name]
        if not node.up or node.leader is not None:
            return
        node.dialler.stop(self.term)
        node.journal.flush(lambda: node.later(self.rng.randrange(3 * MS), lambda: self.win(node, self.term)))

    def win(self, node: Node, term: Term) -> None:
        rested = node.journal.durable_index == node.journal.last.index
        named = self.members.get(node.name) == node.journal.journal_id
        if not rested or not named or node.leader is not None or node.dialler.following.target is not None:
            return
        self.term, self.revision = Term(self.term + 1), self.revision + 1
        for index in range(node.journal.base.index + 1, len(self.committed) + 1):
            assert node.journal.chain_at(LogIndex(index)) == self.committed[index - 1], f"{index} was lost"
        old, self.leads = self.leads, node.name
        node.begin(self.term, dict(self.members), self.revision)
        for other in self.nodes.values():
            if other is not node:
                # An old leader learns of it late, and does what it likes until then.
                other.later(self.rng.randrange(40 * MS if other.name == old else 5 * MS), lambda o=other: self.tell(o))  # type: ignore[misc]

    def tell(self, node: Node) -> None:
        if self.leads is not None and self.leads != node.name:
            node.end("deposed")
            node.dialler.follow(self.leads, self.term)

    def propose(self, node: Node, log: LeaderLog, change: ProposeChange) -> None:
        def arrive() -> None:
            done = log.term == self.term and change.expected_revision == self.revision
            if done:
                self.revision, self.members = self.revision + 1, dict(change.members)
            members, revision = dict(self.members), self.revision
            if self.rng.random() < 0.2:
                node.later(5 * MS, log.change_unknown)
            elif done:
                node.later(self.rng.randrange(5 * MS), lambda: log.change_done(revision))
            else:
                node.later(self.rng.randrange(5 * MS), lambda: log.change_refused(members, revision))

        self.time.call_later(self.rng.randrange(5 * MS), arrive)

    # -- what must hold -----------------------------------------------------------------------------------------

    def committed_by(self, node: Node, index: LogIndex) -> None:
        self.commits += 1
        for i in range(len(self.committed) + 1, index + 1):
            chain = node.journal.chain_at(LogIndex(i))
            assert chain is not None
            self.committed.append(chain)
        self.check_committed(node, index)

    def check_committed(self, node: Node, index: LogIndex) -> None:
        if index > 0:
            assert index <= len(self.committed), f"{node.name} takes {index} for committed"
            assert node.journal.chain_at(index) in (None, self.committed[index - 1]), "two histories are committed"

    def check_ack(self, node: Node, ack: Ack) -> None:
        held = node.disk._contents
        assert held.highest_term >= ack.term, "acknowledged before the promise was durable"
        assert held.last.index >= ack.durable, "acknowledged what is not on the disk"

    # -- what may happen ----------------------------------------------------------------------------------------

    def step(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        leader = self.nodes[self.leads] if self.leads else node
        what = self.rng.random()
        if what < 0.60:
            for _ in range(self.rng.randrange(1, 12)):
                leader.append()
        elif what < 0.70:
            self.elect(node.name)
        elif what < 0.78:
            if node.up:
                self.crash(node)
        elif what < 0.84:
            pair = frozenset(self.rng.sample(list(self.nodes), 2))
            self.cuts ^= {pair}
        elif what < 0.90:
            node.disk.stall(self.rng.randrange(400 * MS))
        elif what < 0.97:
            if leader.up:
                leader.snapshot()
        elif self.leads not in (None, node.name) and node.up and node.leader is None:
            self.crash(node)
            node.disk.set_aside()

    def crash(self, node: Node) -> None:
        node.crash()
        self.time.call_later(self.rng.randrange(300 * MS), lambda: self.restart(node))

    def restart(self, node: Node) -> None:
        if node.up:
            return
        node.start()
        if self.leads == node.name:  # its term is over; it has to win another
            self.elect(node.name)
        else:
            self.tell(node)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            self.time.run(limit=Instant(self.time.now + self.rng.randrange(60 * MS)))

    def heal(self) -> Node:
        """Everything works again. The leader, once all have everything."""
        self.cuts.clear()
        for node in self.nodes.values():
            node.disk.stalled_ns = 0
            self.restart(node)
        for attempt in range(50):
            leader = self.nodes[self.leads] if self.leads else None
            # Who asked for the lease and did not get it has closed the term for good: the next one takes it in.
            if leader is not None and attempt % 5 == 4:
                leader.end("for a new term")
            if leader is None or leader.leader is None:
                for name in self.members:
                    self.elect(name)
            for node in self.nodes.values():
                self.tell(node)
            if leader is not None:
                leader.append()
            self.time.run(limit=Instant(self.time.now + 1000 * MS))
            if leader is not None and leader.leader is not None and len(leader.leader.insync.members) == 3:
                return leader
        raise AssertionError(f"not healed: {self.members}, term {self.term}, led by {self.leads}")
