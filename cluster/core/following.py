"""The follower's end of replication, decided: whom it follows, what it takes from a stream, and when it dials again.

`Following` is one per node, for its whole life; a `Session` is one stream, from the dial to its end:

    begin -> Flush -> flushed -> Hello -> Start, [SnapshotChunk ...] -> RaiseTerm -> promised -> [Install -> installed]
          -> then, until it ends:  Entries -> Received -> durable -> Acknowledge, Commit        Heartbeat -> Acknowledge

Each method is one event; it returns what to do, in order. Whatever has to wait (for the disk, for the network) is an
action whose answer is another method. Invariants:

- the promise (the term, as the highest seen) is durable before the term is opened, hence before the first
  acknowledgement of it: one that outlived a crash while the promise did not would let an older leader count us again;
- an acknowledgement is made right before it leaves (`ack`), and there is none once the term is paused or closed;
- what is acknowledged is durable here; what is committed here is durable here and committed at the leader.

What may be accepted and cut is `log.FollowerLog`'s. Pure: times are Instants handed in. Read next: `serving.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import BatonError, InvariantViolation, OutcomeUnknown, StaleTerm
from .ids import Instant, JournalId, LogIndex, NodeId, Term, ns
from .log import Base, ChainBroken, FollowerLog, Received, Snapshot, locator
from .stream import (
    PROTOCOL,
    Ack,
    Digests,
    Entries,
    Heartbeat,
    Hello,
    LeaderMessage,
    Refused,
    SnapshotChunk,
    Start,
    StreamEnded,
    StreamSettings,
)

if TYPE_CHECKING:
    from random import Random

BROKEN_FRAMES_MAX = 3


class FollowedLog(Protocol):
    """What is read of the follower's own journal."""

    cluster: str
    journal_id: JournalId
    highest_term: Term
    commit_index: LogIndex

    @property
    def base(self) -> Base: ...

    @property
    def last(self) -> Base: ...

    @property
    def has_room(self) -> bool:
        """Whether it may be given more to write."""

    def chain_at(self, index: LogIndex) -> bytes | None: ...

    def require_usable(self) -> None:
        """Raises JournalBroken."""


# -- actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flush:
    """Wait until all that was ever submitted to the journal is durable; answer with `flushed`."""


@dataclass(frozen=True, slots=True)
class SendHello:
    """Dial, and say this first."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class RaiseTerm:
    """Remember `term` as the highest seen, durably; answer with `promised`."""

    term: Term


@dataclass(frozen=True, slots=True)
class Install:
    """Replace the journal by `snapshot`, durably, then the book, and go on delivering from there; answer with
    `installed`."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class WaitRoom:
    """Wait until the journal has room; answer with `room`."""


class Commit(NamedTuple):
    """Everything up to `index` is committed, and durable here: into the book with it."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Ask `ack` as soon as another message may leave, and send that. Several that come meanwhile are one."""


Action = Flush | SendHello | RaiseTerm | Install | WaitRoom | Received | Commit | Acknowledge
"""Received: submit it to the journal, and answer with `durable` for each index that is reported."""

ACKNOWLEDGE = Acknowledge()


class SentAway(StreamEnded):
    """The leader refused us."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.code = refused.code


# -- one stream ----------------------------------------------------------------------------------------------


class _Phase(Enum):
    FLUSHING = auto()
    GREETING = auto()  # Hello is said, Start is due
    FETCHING = auto()  # chunks of a snapshot are due
    PROMISING = auto()
    INSTALLING = auto()
    STREAMING = auto()


class Session:
    """One stream. Made by Following.dial; nothing of it counts once the next one was made."""

    def __init__(
        self,
        me: NodeId,
        leader: NodeId,
        term: Term,
        log: FollowerLog,
        journal: FollowedLog,
        digests: Digests,
        settings: StreamSettings,
    ) -> None:
        self.leader, self.term = leader, term
        self.took_entries = False
        self.leader_commit = LogIndex(0)
        self.deadline: Instant | None = None
        """When the leader has been silent for too long; None while we wait for our own disk only."""
        self._me, self._log, self._journal, self._digests = me, log, journal, digests
        self._settings, self._silence = settings, ns(settings.silence_s)
        self._phase = _Phase.FLUSHING
        self._start: Start
        self._chunks: list[bytes] = []
        self._missing = 0  # bytes of the snapshot
        self._held: Entries | None = None  # came while the journal had no room
        self._told: LogIndex | None = None  # the latest checkpoint that the leader knows

    @property
    def attached(self) -> bool:
        """The handshake is done."""
        return self._phase is _Phase.STREAMING

    @property
    def reading(self) -> bool:
        """Whether the next message may be handed in. While not, it stays where it is: that is the backpressure, the
        leader's window fills."""
        return self._held is None and self._phase in (_Phase.STREAMING, _Phase.GREETING, _Phase.FETCHING)

    # -- events -----------------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        return [Flush()]

    def flushed(self, now: Instant) -> list[Action]:
        """All that we hold is durable."""
        self._phase = _Phase.GREETING
        self.deadline = Instant(now + ns(self._settings.hello_s))
        journal = self._journal
        floor = LogIndex(max(journal.commit_index, journal.base.index))
        hello = Hello(
            PROTOCOL,
            journal.cluster,
            self._me,
            journal.journal_id,
            self.term,
            self._log.highest_term,
            journal.last.index,
            journal.commit_index,
            locator(journal.last.index, floor, journal.chain_at),
        )
        return [SendHello(hello)]

    def received(self, message: LeaderMessage, now: Instant) -> list[Action]:
        """The leader's next message; only while `reading`.

        Raises StreamEnded, SentAway and StaleTerm; ChainBroken for entries that do not follow; InvariantViolation and
        JournalBroken. The stream is over after any of them: see Following.ended.
        """
        if not self.reading:
            raise InvariantViolation(f"a message of {self.leader} was taken while none may be")
        self.deadline = Instant(now + self._silence)
        if self._phase is _Phase.STREAMING:
            self._journal.require_usable()
            if isinstance(message, Entries):
                return self._entries(message)
            if isinstance(message, Heartbeat):
                return [self._commit(message.commit), ACKNOWLEDGE]
        if isinstance(message, Refused):
            raise SentAway(message)
        if self._phase is _Phase.GREETING and isinstance(message, Start):
            return self._started(message)
        if self._phase is _Phase.FETCHING and isinstance(message, SnapshotChunk):
            return self._fetched(message)
        raise StreamEnded(f"the leader sent {type(message).__name__} while {self._phase.name.lower()}")

    def promised(self, now: Instant) -> list[Action]:
        """The promise is durable."""
        fork = self._start.fork
        if self._start.snapshot is None or self._journal.chain_at(fork.index) == fork.chain:
            return self._open(now)  # of a snapshot, we have all already, entries included
        self._phase = _Phase.INSTALLING
        blob, self._chunks = b"".join(self._chunks), []
        return [Install(Snapshot(fork.index, self._start.fork_term, fork.chain, self._start.snapshot.digest, blob))]

    def installed(self, now: Instant) -> list[Action]:
        """The journal and the book are the snapshot's."""
        self._log.replaced(self._start.fork.index)
        self._digests.clear()
        return self._open(now)

    def room(self, now: Instant) -> list[Action]:
        """The journal may be given more."""
        held, self._held = self._held, None
        self.deadline = Instant(now + self._silence)
        return [] if held is None else self._take(held)

    def durable(self, index: LogIndex) -> list[Action]:
        """Everything received up to `index` is durable."""
        self._log.written(index)
        return [self._commit(self.leader_commit), ACKNOWLEDGE]

    def tick(self, now: Instant) -> None:
        """Raises StreamEnded once the deadline has passed."""
        if self.deadline is not None and now >= self.deadline:
            raise StreamEnded(f"{self.leader} was silent", silent=True)

    def ack(self, applied: LogIndex) -> Ack | None:
        """What may be acknowledged right now; None: nothing, and nothing more in this session."""
        promise = self._log.ack()
        if promise is None:
            return None
        checkpoint = self._digests.latest
        if checkpoint is None or checkpoint.index == self._told:
            return Ack(*promise, applied)
        self._told = checkpoint.index
        return Ack(*promise, applied, checkpoint)

    # -- the start --------------------------------------------------------------------------------------------

    def _started(self, start: Start) -> list[Action]:
        if start.term < self.term:
            raise StaleTerm(f"{start.leader} still leads in term {start.term}, etcd says {self.term}")
        if start.leader != self.leader:
            raise StreamEnded(f"{start.leader} answered at the address of {self.leader}; correct the peers' addresses")
        self._log.learn(self._journal.highest_term, self._journal.commit_index)
        self._log.may_follow(start.term)
        self._start = start
        if start.snapshot is None:
            return self._promise()
        if start.snapshot.size > self._settings.snapshot_bytes_max:
            raise InvariantViolation(f"the leader's snapshot has {start.snapshot.size} bytes, more than is possible")
        self._phase, self._missing = _Phase.FETCHING, start.snapshot.size
        return [] if self._missing else self._promise()

    def _fetched(self, chunk: SnapshotChunk) -> list[Action]:
        self._chunks.append(chunk.data)
        self._missing -= len(chunk.data)
        return [] if self._missing > 0 else self._promise()

    def _promise(self) -> list[Action]:
        self._phase = _Phase.PROMISING
        self.deadline = None
        return [RaiseTerm(self._start.term)]

    def _open(self, now: Instant) -> list[Action]:
        start, journal = self._start, self._journal
        self._log.open_term(start.term, start.fork, start.fork_term, journal.last.index, journal.chain_at)
        self.term = start.term
        self._phase = _Phase.STREAMING
        self.deadline = Instant(now + self._silence)
        return [self._commit(start.commit), ACKNOWLEDGE]

    # -- entries ----------------------------------------------------------------------------------------------

    def _entries(self, frame: Entries) -> list[Action]:
        if self._journal.has_room:
            return self._take(frame)
        self._held, self.deadline = frame, None
        return [WaitRoom()]

    def _take(self, frame: Entries) -> list[Action]:
        received = self._log.receive(frame.entries)
        self.took_entries = True
        if not received.append:
            return [self._commit(frame.commit), ACKNOWLEDGE]
        self.leader_commit = max(self.leader_commit, frame.commit)
        return [received]

    def _commit(self, leader_commit: LogIndex) -> Commit:
        self.leader_commit = max(self.leader_commit, leader_commit)
        return Commit(self._log.leader_committed(self.leader_commit))


# -- one node ------------------------------------------------------------------------------------------------


class Redial(NamedTuple):
    """Dial again `after` nanoseconds. renew: over a new connection, the old one may be a black hole."""

    after: int
    renew: bool


class Following:
    """Whom this node follows, over all its streams."""

    def __init__(
        self, me: NodeId, journal: FollowedLog, digests: Digests, settings: StreamSettings, rng: Random
    ) -> None:
        self.log = FollowerLog(journal.highest_term, journal.commit_index)
        self.target: tuple[NodeId, Term] | None = None
        self.session: Session | None = None
        self.refused: str | None = None
        """Why the leader sent us away, the last time it did; None after the next success."""
        self.attempts = 0
        """Streams tried since the start."""
        self.failures = 0
        """Streams that ended since the last one that came to work."""
        self._me, self._journal, self._digests = me, journal, digests
        self._settings, self._rng = settings, rng
        self._broken = 0  # of those, how many for entries that did not follow

    def follow(self, leader: NodeId, term: Term) -> bool:
        """Follow `leader`, which leads in `term`. True: end the stream there is, if any, and `dial`; False: it is
        followed already. Raises StaleTerm for a term lower than the highest seen, or a closed one."""
        self.log.learn(self._journal.highest_term, self._journal.commit_index)
        self.log.may_follow(term)
        self.log.learn(term, self.log.commit)
        if self.target == (leader, term):
            return False
        self.log.pause()
        self.target = (leader, term)
        self.failures = self._broken = 0
        return True

    def stop(self, closing: Term | None = None) -> None:
        """Follow nobody: from here on no acknowledgement is made. End the stream there is, and flush the journal.

        closing: additionally promise that none of that term, or of an older one, ever will be (before a campaign).
        """
        if closing is not None:
            self.log.close_term(max(closing, self.target[1] if self.target else closing))
        self.log.pause()
        self.target = None

    def dial(self) -> Session:
        """The next session with the one we follow; the one before has ended."""
        if self.target is None:
            raise InvariantViolation("dialled, with nobody to follow")
        leader, term = self.target
        self.attempts += 1
        self.session = Session(self._me, leader, term, self.log, self._journal, self._digests, self._settings)
        return self.session

    def ended(self, error: BatonError) -> Redial:
        """The session ended by `error`, while its leader is followed still.

        Raises what following cannot go on with until somebody has looked: histories or books that differ, frames that
        were broken several times running, a journal that broke.
        """
        session = self.session
        if session is None:
            raise InvariantViolation("a session ended that was never begun") from error
        self.log.pause()
        if isinstance(error, SentAway):
            self.refused = str(error)
            if error.code.final:
                raise InvariantViolation(
                    f"leader {session.leader} of term {session.term} refused us: {error}"
                ) from None
        elif isinstance(error, ChainBroken):
            self._broken += 1
            if self._broken >= BROKEN_FRAMES_MAX:
                raise error
        elif not isinstance(error, StreamEnded | StaleTerm | OutcomeUnknown):
            raise error
        if session.attached:
            self.failures, self.refused = 0, None
        if session.took_entries:
            self._broken = 0
        self.failures += 1
        return Redial(self._backoff(), isinstance(error, StreamEnded) and error.silent)

    def _backoff(self) -> int:
        s = self._settings
        longest = min(s.backoff_max_s, s.backoff_min_s * 2 ** min(self.failures - 1, 10))
        return ns(longest * self._rng.uniform(0.5, 1.0))
