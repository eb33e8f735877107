"""The leader's end of one follower's stream, decided: whether it may follow, and what it is sent next.

    Hello -> admit -> Serving:  next() -> Start, [SnapshotChunk ...], Entries | Heartbeat ... | Wait | a question

Its caller asks `next` for one thing at a time, carries it out, and asks again; after a Wait, once something happened
(an append, a commit, an acknowledgement, an answer) or the time has come. So a frame holds all that was appended
meanwhile, and a follower that does not take what it is sent costs no memory: its stream is a place in the log.
Invariants:

- at most `window_bytes`, and one frame, are sent and not acknowledged;
- an acknowledgement counts only in our term, and only within [what it acknowledged before, what was sent];
- every message tells the commit index, and a commit that none carries is told soon (`commit_notice_s`).

Pure: times are Instants handed in, the log is read through `ServedLog`. StreamEnded ends the stream for both.
Read next: `following.py` (the other end), `insync.py` (what an acknowledgement is worth).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from .ids import Instant, LogIndex, NodeId, Term, ns
from .insync import Commitment, Member
from .log import (
    CHAIN_BYTES,
    ENTRY_OVERHEAD,
    Base,
    Diverged,
    Entry,
    Position,
    SendSnapshot,
    Snapshot,
    StreamAfter,
    fork_point,
)
from .stream import (
    PROTOCOL,
    Ack,
    Checkpoint,
    Digests,
    Entries,
    Heartbeat,
    Hello,
    LeaderMessage,
    Refusal,
    Refused,
    SnapshotChunk,
    SnapshotHead,
    Start,
    StreamEnded,
    StreamSettings,
)


class ServedLog(Protocol):
    """What is read of the leader's journal."""

    @property
    def base(self) -> Base: ...

    @property
    def last(self) -> Base: ...

    def chain_at(self, index: LogIndex) -> bytes | None: ...

    def term_at(self, index: LogIndex) -> Term | None: ...

    def tail(self, first: LogIndex, max_bytes: int, max_entries: int) -> Sequence[Entry] | None:
        """Entries from `first` on, at least one if there is one; None: not in memory, ask for them by ReadEntries."""


# -- who may follow ------------------------------------------------------------------------------------------


def admit(
    hello: Hello,
    me: NodeId,
    cluster: str,
    nodes: Collection[NodeId],
    certified: Collection[str] | None,
    leading: Commitment | None,
    live: Member | None,
    log: ServedLog,
) -> StreamAfter | SendSnapshot | Refused:
    """Where the stream of this follower begins, or why there is none.

    nodes: every node of the cluster. certified: the names that its certificate proves; None: without TLS. leading: our
    term, if we lead. live: who streams under that node's name already; if it is the same journal, its new stream
    replaces the old one.
    """
    refused = _unknown(hello, me, cluster, nodes, certified) or _not_ours(hello, me, leading, live)
    if refused is not None:
        return refused
    answer = fork_point(hello.locator, log.base.index, log.last.index, log.chain_at)
    return Refused(Refusal.DIVERGED, answer.why) if isinstance(answer, Diverged) else answer


def _unknown(
    hello: Hello, me: NodeId, cluster: str, nodes: Collection[NodeId], certified: Collection[str] | None
) -> Refused | None:
    """Not one of us, or it does not speak as we do."""
    if hello.protocol != PROTOCOL:
        return Refused(
            Refusal.PROTOCOL,
            f"protocol {hello.protocol} here {PROTOCOL}: upgrade standbys first, then switch over",
        )
    if hello.cluster != cluster:
        return Refused(
            Refusal.WRONG_CLUSTER,
            f"this is cluster {cluster!r}, the follower belongs to {hello.cluster!r}; "
            "correct cluster.name or the peer's address",
        )
    if hello.node not in nodes or hello.node == me:
        return Refused(
            Refusal.UNKNOWN_NODE,
            f"{me} expects {sorted(set(nodes) - {me})}, not {hello.node!r}; correct node.name",
        )
    if certified is not None and hello.node not in certified:
        return Refused(
            Refusal.WRONG_IDENTITY,
            f"the certificate is for {sorted(certified)}, not for {hello.node!r}; give each node its own certificate",
        )
    if not hello.locator or any(len(p.chain) != CHAIN_BYTES for p in hello.locator):
        return Refused(Refusal.PROTOCOL, "a Hello without a usable locator")
    return None


def _not_ours(hello: Hello, me: NodeId, leading: Commitment | None, live: Member | None) -> Refused | None:
    """We are not its leader, or its journal is not the one that we count."""
    node = hello.node
    if leading is None:
        return Refused(Refusal.NOT_LEADING, f"{me} does not lead")
    if hello.highest_term > leading.term:
        return Refused(Refusal.STALE_LEADER, f"{me} leads in term {leading.term}, {node} has seen {hello.highest_term}")
    if leading.term < hello.term:
        return Refused(Refusal.NOT_LEADING, f"{me} leads in term {leading.term}, not yet in {hello.term}")
    if live is not None and live.journal != hello.journal:
        return Refused(
            Refusal.DUPLICATE_NODE,
            f"another process calls itself {node!r} (journal {live.journal}, this one {hello.journal}); "
            "two nodes must not share node.name",
        )
    known = leading.durable_of(Member(node, hello.journal))
    if hello.last < known:
        return Refused(
            Refusal.LOST_ENTRIES,
            f"journal {hello.journal} of {node} acknowledged {known} and now ends at {hello.last}: "
            "its disk lost entries, or an old copy was restored. Start the node with an empty data directory",
        )
    return None


# -- the stream ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadEntries:
    """Read from the log's file; answer with `entries_read`."""

    first: LogIndex
    max_bytes: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """Read the newest snapshot; answer with `snapshot_read`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something happens, or until then (None: only the former)."""

    until: Instant | None


Step = LeaderMessage | ReadEntries | ReadSnapshot | Wait


class Serving:
    """One follower's stream in our term, from the moment that it was admitted."""

    def __init__(
        self,
        me: NodeId,
        term: Term,
        follower: NodeId,
        answer: StreamAfter | SendSnapshot,
        log: ServedLog,
        digests: Digests,
        settings: StreamSettings,
        now: Instant,
    ) -> None:
        self.durable = self.applied = LogIndex(0)
        self.in_flight_bytes = 0
        self._me, self._term, self._follower = me, term, follower
        self._log, self._digests, self._settings = log, digests, settings
        self._heartbeat, self._notice = ns(settings.heartbeat_s), ns(settings.commit_notice_s)
        self._patience = 4 * ns(settings.silence_s)
        self._sent_at = self._heard_at = now
        self._commit_told = LogIndex(0)
        self._notice_due: Instant | None = None  # when a commit is told that no entry has carried
        self._fork = answer.index if isinstance(answer, StreamAfter) else LogIndex(0)  # with a snapshot: its place
        self._next = LogIndex(0)  # the next entry to send; 0: nothing may be acknowledged yet
        self._in_flight: deque[tuple[LogIndex, int]] = deque()  # (last index, bytes) of each unacknowledged frame
        self._read_ahead: Sequence[Entry] = ()
        self._asked = False  # for entries or the snapshot, and not answered
        self._blob, self._blob_sent = b"", 0
        self._snapshot: Snapshot | None = None
        self._refused: Refused | None = None
        self._step: Callable[[LogIndex, Instant], Step] = (
            self._start if isinstance(answer, StreamAfter) else self._start_with_snapshot
        )

    # -- events -----------------------------------------------------------------------------------------------

    def next(self, commit: LogIndex, now: Instant) -> Step:
        """What to do next; what was returned before is done (a message: handed over, however slowly).

        commit: our commit index. Raises StreamEnded.
        """
        return self._step(commit, now)

    def entries_read(self, entries: Sequence[Entry]) -> None:
        """What a ReadEntries found. Raises StreamEnded if that is nothing."""
        self._asked = False
        if not entries:
            raise StreamEnded(f"entry {self._next} was pruned while the follower was catching up")
        self._read_ahead = entries

    def snapshot_read(self, snapshot: Snapshot | None) -> None:
        """What a ReadSnapshot found. Raises StreamEnded if that is none."""
        self._asked = False
        if snapshot is None:
            raise StreamEnded("the follower needs a snapshot and there is none")
        self._snapshot = snapshot

    def acked(self, ack: Ack, now: Instant) -> None:
        """An acknowledgement; `durable` may be counted for the commit index then. Raises StreamEnded if it is none."""
        self._heard_at = now
        if ack.term != self._term:
            raise StreamEnded(f"an acknowledgement of term {ack.term} in a stream of term {self._term}")
        if not self.durable <= ack.durable < self._next:
            raise StreamEnded(f"acknowledged {ack.durable}, not within [{self.durable}, {self._next - 1}]")
        self.durable, self.applied = ack.durable, ack.applied
        while self._in_flight and self._in_flight[0][0] <= ack.durable:
            self.in_flight_bytes -= self._in_flight.popleft()[1]
        if ack.checkpoint is not None:
            self._compare(ack.checkpoint)

    def tick(self, now: Instant) -> None:
        """Raises StreamEnded if the follower has gone silent. It acknowledges every heartbeat, also while its disk
        stalls. The connection of one that does not may be a black hole, where even a write of ours would wait for
        ever."""
        if (silent := now - self._heard_at) > self._patience:
            raise StreamEnded(f"silent for {silent / 1e9:.1f} s", silent=True)

    # -- the start --------------------------------------------------------------------------------------------

    def _start(self, commit: LogIndex, now: Instant) -> Step:
        chain, term = self._log.chain_at(self._fork), self._log.term_at(self._fork)
        if chain is None or term is None:
            raise StreamEnded(f"entry {self._fork} was pruned during the handshake")
        start = Start(self._me, self._term, Position(self._fork, chain), term, commit)
        self._begin_stream()
        return self._say(start, commit, now)

    def _start_with_snapshot(self, commit: LogIndex, now: Instant) -> Step:
        if (snapshot := self._snapshot) is None:
            if self._asked:
                return Wait(None)
            self._asked = True
            return ReadSnapshot()
        self._snapshot, self._blob, self._fork = None, snapshot.blob, snapshot.index
        self._step = self._next_chunk
        fork, head = Position(snapshot.index, snapshot.chain), SnapshotHead(snapshot.digest, len(snapshot.blob))
        return self._say(Start(self._me, self._term, fork, snapshot.term, commit, head), commit, now)

    def _next_chunk(self, commit: LogIndex, now: Instant) -> Step:
        self._heard_at = now  # it takes them, which is all that can be heard of it now
        chunk = self._blob[self._blob_sent : self._blob_sent + self._settings.snapshot_chunk_bytes]
        if not chunk:
            self._blob = b""
            self._begin_stream()
            return self._stream(commit, now)
        self._blob_sent += len(chunk)
        self._sent_at = now
        return SnapshotChunk(chunk)

    def _begin_stream(self) -> None:
        self._next = LogIndex(self._fork + 1)
        self._step = self._stream

    # -- entries ----------------------------------------------------------------------------------------------

    def _stream(self, commit: LogIndex, now: Instant) -> Step:
        s, more = self._settings, self._next <= self._log.last.index
        if more and not self._asked and self.in_flight_bytes < s.window_bytes:
            entries = self._frame()
            if entries is None:
                self._asked = True
                return ReadEntries(self._next, s.catch_up_bytes, s.catch_up_entries)
            size = sum(len(e.body) + ENTRY_OVERHEAD for e in entries)
            self._in_flight.append((entries[-1].index, size))
            self.in_flight_bytes += size
            self._next = LogIndex(entries[-1].index + 1)
            return self._say(Entries(entries, commit), commit, now)
        due = self._due(commit, now)
        return self._say(Heartbeat(commit), commit, now) if now >= due else Wait(due)

    def _frame(self) -> Sequence[Entry] | None:
        """Of what was read ahead, or else of what is in memory; None: it has to be read."""
        s = self._settings
        if self._read_ahead:
            entries, self._read_ahead = self._read_ahead[: s.frame_entries], self._read_ahead[s.frame_entries :]
            return entries
        return self._log.tail(self._next, s.frame_bytes, s.frame_entries)

    def _due(self, commit: LogIndex, now: Instant) -> Instant:
        """When something is said even if there is nothing to send."""
        if commit > self._commit_told and self._notice_due is None:
            self._notice_due = Instant(now + self._notice)
        due = Instant(self._sent_at + self._heartbeat)
        return due if self._notice_due is None else min(due, self._notice_due)

    def _say(self, message: LeaderMessage, commit: LogIndex, now: Instant) -> LeaderMessage:
        self._sent_at, self._commit_told, self._notice_due = now, commit, None
        return message

    # -- the books --------------------------------------------------------------------------------------------

    def _compare(self, theirs: Checkpoint) -> None:
        ours = self._digests.at(theirs.index)
        if ours is None or ours == theirs.digest:
            return
        why = (
            f"the books differ at index {theirs.index}: leader {self._me} {ours.hex()}, follower {self._follower} "
            f"{theirs.digest.hex()}. Their logs are equal, so one of the two computed wrongly: compare versions, "
            "configuration"
        )
        self._refused = Refused(Refusal.WRONG_DIGEST, why)
        self._step = self._send_away

    def _send_away(self, _commit: LogIndex, _now: Instant) -> Step:
        """The refusal, once; then the end."""
        if (refused := self._refused) is None:
            raise StreamEnded("the books differ")
        self._refused = None
        return refused
