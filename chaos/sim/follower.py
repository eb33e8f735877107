"""The follower's end of replication in the simulation: carries out what `Following` and its sessions decide, as
`cluster/follower.py` does, over connections that break and a disk that answers later."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from chaos.sim.engine import MS
from chaos.sim.replica import STREAM, Conn
from cluster.core import following as fo
from cluster.core.errors import BatonError, JournalBroken, StaleTerm
from cluster.core.following import Following
from cluster.core.ids import LogIndex, NodeId, Term, ns
from cluster.core.log import Received
from cluster.core.stream import LeaderMessage, StreamEnded
from node.book import Book

if TYPE_CHECKING:
    from chaos.sim.worker import SimWorker


class SimFollower:
    """One per worker, once its journal is open."""

    def __init__(self, worker: SimWorker) -> None:
        self.worker, self.world, self.host = worker, worker.world, worker.host
        rng = random.Random(f"{worker.holder}/{worker.world.plan.seed}")
        self.following = Following(worker.host.name, worker.journal, worker.digests, STREAM, rng)
        self._conn: Conn | None = None  # to the leader that is followed
        self._ack_due = False

    def follow(self, leader: NodeId, term: Term) -> None:
        try:
            if self.following.follow(leader, term):
                self.hang_up()
                self.dial()
        except StaleTerm:
            self.world.cover["follow refused as stale"] += 1

    def stop(self, closing: Term | None) -> None:
        self.following.stop(closing)
        self.hang_up()

    def dial(self) -> None:
        session = self.following.dial()
        self._conn = Conn(self.world, self.host)
        self._do(session, session.begin())
        self.worker.later(ns(0.1), self._watch_silence, session)

    def hang_up(self) -> None:
        if self._conn is not None:
            self._conn.broken(self.host)
            self._conn = None

    def _watch_silence(self, session: fo.Session) -> None:
        if session is self.following.session and self._conn is not None:
            self._try(session, lambda: self._look(session))
            self.worker.later(ns(0.1), self._watch_silence, session)

    def _look(self, session: fo.Session) -> Sequence[fo.Action]:
        session.tick(self.worker.now)
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
            self._do(session, actions)

    def _do(self, session: fo.Session, actions: Sequence[fo.Action]) -> None:
        for action in actions:
            if isinstance(action, fo.Commit):
                self._committed(action.index)
            elif isinstance(action, fo.Acknowledge):
                if not self._ack_due:
                    self._ack_due = True
                    self.worker.process.then("ack", self._send_ack, session)
            else:
                self.worker.process.then(type(action).__name__, self._carry_out, session, action)

    def _carry_out(self, session: fo.Session, action: fo.Action) -> None:
        conn, journal = self._conn, self.worker.journal
        if session is not self.following.session or conn is None:
            return
        try:
            match action:
                case fo.Flush():
                    journal.flush(lambda: self._try(session, lambda: session.flushed(self.worker.now)))
                case fo.SendHello(hello):
                    conn.dial(session.leader, hello)
                case fo.RaiseTerm(term):
                    journal.raise_term(term, lambda: self._try(session, lambda: session.promised(self.worker.now)))
                case fo.Install(snapshot):
                    journal.install_snapshot(snapshot, lambda: self._installed(session, snapshot.index))
                case Received(cut_after, append):
                    journal.submit(append, conn.durable, cut_after=cut_after)
                    conn.on_durable = lambda index: self._try(session, lambda: session.durable(index))
                    self.world.cover["tail cut"] += cut_after is not None
                case fo.WaitRoom():
                    journal.when_room(lambda: self._try(session, lambda: session.room(self.worker.now)))
        except JournalBroken as e:
            self.worker.fail(e)

    def _installed(self, session: fo.Session, index: LogIndex) -> None:
        snapshot = self.worker.journal.latest_snapshot()
        if snapshot is None:
            return
        worker = self.worker
        worker.book = Book.restore(snapshot.blob, self.world.tag, self.world.instruments)
        worker.applied = index
        worker.strategy.replace_book(worker.book)
        self.world.cover["snapshot installed"] += 1
        self._try(session, lambda: session.installed(self.worker.now))

    def heard(self, conn: Conn, message: LeaderMessage) -> None:
        """The leader's next message."""
        session = self.following.session
        if conn is not self._conn or session is None:
            return
        if not session.reading:
            self.worker.later(MS, self.heard, conn, message)
            return
        self._try(session, lambda: session.received(message, self.worker.now))

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
            self.worker.fail(e)
            return
        self.world.cover[f"stream ended: {type(error).__name__}"] += 1
        target = self.following.target
        self.worker.later(redial.after, self._redial, target)

    def _redial(self, target: tuple[NodeId, Term]) -> None:
        if self.following.target == target and self._conn is None:
            self.dial()

    def _committed(self, index: LogIndex) -> None:
        self.worker.journal.note_commit(index)
        self.worker.apply_up_to(index)

    def _send_ack(self, session: fo.Session) -> None:
        self._ack_due = False
        if session is not self.following.session or self._conn is None:
            return
        ack = session.ack(self.worker.applied)
        if ack is not None:
            chain = self.worker.journal.chain_at(ack.durable)
            self.world.records.acknowledged(self.host.name, ack.term, ack.durable, chain)
            self._conn.up(ack)
