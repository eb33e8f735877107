"""A replication stream of the simulation: the connection between two hosts, and the leader's end of it.

A connection keeps the order of its messages, each way on the link between the two hosts. It breaks when either side
goes away; the other is told by the bytes that do not come, or, here, after the time that a message takes. Once a link
has lost bytes of it, nothing passes any more, either way, and both ends find out by the silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chaos.sim.disk import flipped
from chaos.sim.engine import MS, Fn
from cluster.core.ids import LogIndex, NodeId, ns
from cluster.core.insync import Member
from cluster.core.log import SendSnapshot, StreamAfter
from cluster.core.serving import ReadEntries, ReadSnapshot, Serving, Wait, admit
from cluster.core.stream import (
    Ack,
    Entries,
    FollowerMessage,
    Hello,
    LeaderMessage,
    Refused,
    StreamEnded,
    StreamSettings,
)
from cluster.leader_log import FollowerState, LeaderLog

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.network import Link
    from chaos.sim.worker import SimWorker
    from chaos.sim.world import World

STREAM = StreamSettings(heartbeat_s=0.1, silence_s=0.5)
HOLD = ns(STREAM.hold_s)


class Conn:
    """One dial of a follower. on_durable: whom its journal tells what is durable, as one callable for all writes."""

    def __init__(self, world: World, follower: Host) -> None:
        self.world, self.follower = world, follower
        self._dialler = follower.worker
        self.leader: Host | None = None
        self.open = True
        self.torn = False
        self.stream: Stream | None = None
        self.on_durable: Callable[[LogIndex], None] = lambda _index: None
        self.durable = self._durable  # one object, so that the journal can join the calls of one write

    def _durable(self, index: LogIndex) -> None:
        self.on_durable(index)

    # -- from the follower ----------------------------------------------------------------------------------------

    def dial(self, leader: NodeId, hello: Hello) -> None:
        self.leader = next(h for h in self.world.hosts if h.name == leader)
        self.up(hello)

    def up(self, message: FollowerMessage) -> None:
        if self.open and self.leader is not None:
            self._pass(self.follower.peers[self.leader.name], self._arrive_up, message)

    def _arrive_up(self, message: FollowerMessage) -> None:
        leader = self.leader
        if not self.open or leader is None:
            return
        worker = leader.worker
        if worker is None or not worker.opened or not worker.process.alive:
            self.broken(leader)  # nobody listens there
        elif isinstance(message, Hello):
            worker.process.deliver("peers", worker.server.greet, self, message)
        elif self.stream is not None:
            worker.process.deliver("peers", self.stream.acked, message)

    # -- from the leader -------------------------------------------------------------------------------------------

    def down(self, message: LeaderMessage) -> None:
        if not self.open or self.leader is None:
            return
        if self.world.corrupt_frames and isinstance(message, Entries) and message.entries:
            self.world.corrupt_frames -= 1
            self.world.cover["frame corrupted"] += 1
            message = _damaged(message)
        self._pass(self.leader.peers[self.follower.name], self._arrive_down, message)

    def _arrive_down(self, message: LeaderMessage) -> None:
        if self._dialler is not None:
            self._dialler.process.deliver("peers", self._dialler.follower.heard, self, message)

    # -- both ------------------------------------------------------------------------------------------------------

    def _pass(self, link: Link, arrive: Fn, message: FollowerMessage | LeaderMessage) -> None:
        self.torn = self.torn or link.loses
        if not self.torn or link.loses:  # a cut counts what meets it
            link.send(arrive, message)

    def broken(self, by: Host) -> None:
        """`by` has closed it, or is gone: the other end is told."""
        if not self.open:
            return
        self.open = False
        if by is self.follower:
            if self.stream is not None and self.leader is not None:
                self.follower.peers[self.leader.name].send(self._tell_leader)
        elif self.leader is not None:
            self.leader.peers[self.follower.name].send(self._tell_follower)

    def _tell_leader(self) -> None:
        worker = self.leader.worker if self.leader is not None else None
        if worker is not None and self.stream is not None:
            worker.process.deliver("peers", self.stream.end, "the follower closed the stream")

    def _tell_follower(self) -> None:
        if self._dialler is not None:
            self._dialler.process.deliver("peers", self._dialler.follower.lost, self, "the connection broke")


def _damaged(frame: Entries) -> Entries:
    """With one bit of its last entry's body flipped; its chain, which nobody can foresee, says where."""
    *good, bad = frame.entries
    return frame._replace(entries=[*good, bad._replace(body=flipped(bad.body, bad.chain[0]))])


class Server:
    """The leader's end of all streams: one per worker, as `cluster/replication.py`. Whom it serves, `admit` decides."""

    def __init__(self, worker: SimWorker) -> None:
        self.worker, self.world, self.host = worker, worker.world, worker.host
        self._waiting: list[tuple[Conn, Hello]] = []  # followers that came before we lead
        self._streams: dict[NodeId, Stream] = {}

    def lead(self) -> None:
        """Serve from here on, those included that wait."""
        waiting, self._waiting = self._waiting, []
        for conn, hello in waiting:
            self.greet(conn, hello)

    def close(self) -> None:
        """The process is gone, and its connections with it."""
        for conn in [*(s.conn for s in self._streams.values()), *(c for c, _ in self._waiting)]:
            conn.broken(self.host)

    def greet(self, conn: Conn, hello: Hello) -> None:
        """A follower has dialled. One that is early is kept waiting for us to begin to lead."""
        log = self.worker.log
        if log is None or log.term < hello.term:
            if all(c is not conn for c, _ in self._waiting):
                self._waiting.append((conn, hello))
                self.worker.later(HOLD, self._held_too_long, conn, hello)
            return
        self._admit(conn, hello)

    def _held_too_long(self, conn: Conn, hello: Hello) -> None:
        before = len(self._waiting)
        self._waiting = [(c, h) for c, h in self._waiting if c is not conn]
        if len(self._waiting) < before:
            self._admit(conn, hello)

    def _admit(self, conn: Conn, hello: Hello) -> None:
        log, live = self.worker.log, self._streams.get(hello.node)
        nodes = [h.name for h in self.world.hosts]
        leading = log.insync if log is not None else None
        answer = admit(
            hello,
            self.host.name,
            self.worker.journal.cluster,
            nodes,
            None,
            leading,
            live.member if live else None,
            self.worker.journal,
        )
        if isinstance(answer, Refused):
            self.world.cover[f"follower refused: {answer.code.name}"] += 1
            if log is not None and hello.highest_term > log.term:
                self.worker.step_down(f"{hello.node} has seen term {hello.highest_term}")
            conn.down(answer)
            conn.broken(self.host)
            return
        if log is None:
            return
        if live is not None:
            live.end("the same journal dialled again")
        self._streams[hello.node] = stream = Stream(self.worker, log, conn, hello, answer)
        stream.pump()

    def over(self, stream: Stream) -> None:
        if self._streams.get(stream.member.node) is stream:
            del self._streams[stream.member.node]


class Stream:
    """The leader's end of one: asks `Serving` for one thing at a time, and carries it out. A FollowerStream of the
    `LeaderLog`."""

    def __init__(
        self, worker: SimWorker, log: LeaderLog, conn: Conn, hello: Hello, answer: StreamAfter | SendSnapshot
    ) -> None:
        self.member = Member(hello.node, hello.journal)
        self.conn = conn
        self._worker, self._log = worker, log
        self.serving = Serving(
            worker.host.name, log.term, hello.node, answer, worker.journal, worker.digests, STREAM, worker.now
        )
        self._over = False
        self._due = False
        self._timer_at = 0
        conn.stream = self
        log.attach(self)

    def state(self) -> FollowerState:
        in_sync = self._log.insync.members.get(self.member.node) == self.member.journal
        s = self.serving
        return FollowerState(self.member.node, self.member.journal, s.durable, s.applied, in_sync)

    def wake(self) -> None:
        if not self._due and not self._over:
            self._due = True
            self._worker.process.then("frame", self.pump)

    def pump(self) -> None:
        self._due = False
        worker = self._worker
        try:
            while not self._over:
                step = self.serving.next(self._log.commit_index, worker.now)
                if isinstance(step, Wait):
                    if step.until is not None:
                        self._pump_by(max(worker.engine.now + MS // 10, worker.host.clock.when(step.until)))
                    return
                if isinstance(step, ReadEntries):
                    self.serving.entries_read(worker.journal.read(step.first, step.max_bytes, step.max_entries))
                elif isinstance(step, ReadSnapshot):
                    self.serving.snapshot_read(worker.journal.latest_snapshot())
                else:
                    self.conn.down(step)
        except StreamEnded as e:
            self.end(str(e))

    def _pump_by(self, at: int) -> None:
        """At `at` at the latest. An earlier timer stays: it looks again."""
        if self._timer_at <= self._worker.engine.now or at < self._timer_at:
            self._timer_at = at
            self._worker.engine.at(at, self._worker.process.deliver, "timer", self._pump_in_time, at)

    def _pump_in_time(self, at: int) -> None:
        if at == self._timer_at and not self._over:
            self.pump()

    def acked(self, ack: Ack) -> None:
        if self._over:
            return
        try:
            self.serving.acked(ack, self._worker.now)
        except StreamEnded as e:
            self.end(str(e))
            return
        self._log.acked(self.member, self.serving.durable)
        self.wake()

    def check(self) -> None:
        try:
            self.serving.tick(self._worker.now)
        except StreamEnded as e:
            self.end(str(e))

    def end(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._log.detach(self)
        self._worker.server.over(self)
        self.conn.broken(self._worker.host)
