"""What one replication stream carries, as plain values, and what both of its ends agree on.

    follower: Hello, then Ack ...        leader: Start, [SnapshotChunk ...], then Entries and Heartbeat ... or Refused

`wire.py` makes these into bytes and back; nobody else knows what the bytes look like. Pure.
Read next: `serving.py` (the leader's end), `following.py` (the follower's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from .errors import BatonError
from .ids import JournalId, LogIndex, NodeId, Term
from .log import Entry, Position

PROTOCOL = 1
MESSAGE_BYTES_MAX = 24 << 20
BODY_BYTES_MAX = 16 << 20
"""Of one entry. A frame holds whole entries, so it must fit into MESSAGE_BYTES_MAX with some room."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """heartbeat_s: the leader's, when it has nothing else to say. silence_s: a follower that hears nothing for so
    long dials anew, over a new connection (the old one may be a black hole). commit_notice_s: how soon a commit is
    told when no entry carries it. window_bytes: sent and not acknowledged, per follower. frame_*: one message of
    entries; small, because making one takes the loop about 2 us per entry.
    hello_s: for the handshake. hold_s: how long an early follower is kept waiting for us to begin to lead.
    """

    heartbeat_s: float = 0.05
    silence_s: float = 0.5
    commit_notice_s: float = 0.005
    hello_s: float = 2.0
    hold_s: float = 0.5
    backoff_min_s: float = 0.02
    backoff_max_s: float = 0.5
    window_bytes: int = 8 << 20
    frame_entries: int = 512
    frame_bytes: int = 256 << 10
    catch_up_entries: int = 8192
    catch_up_bytes: int = 2 << 20
    snapshot_chunk_bytes: int = 1 << 20
    snapshot_bytes_max: int = 512 << 20


class StreamEnded(BatonError):
    """The stream is over for a reason that is no error of ours; the follower dials again.

    silent: the other side said nothing for too long, so the connection itself may be dead."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


# -- the book's digests --------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """The book's digest after entry `index`."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index
    digest: bytes


@dataclass(slots=True)
class Digests:
    """The book's digest at agreed indexes (multiples of one number), the youngest few. One per node, kept over
    changes of role: note() is called by whoever applies entries to the book, leading or not."""

    keep: int = 64
    _held: dict[LogIndex, bytes] = field(default_factory=dict)

    def note(self, index: LogIndex, digest: bytes) -> None:
        self._held[index] = digest
        if len(self._held) > self.keep:
            del self._held[next(iter(self._held))]

    def at(self, index: LogIndex) -> bytes | None:
        return self._held.get(index)

    @property
    def latest(self) -> Checkpoint | None:
        for index, digest in reversed(self._held.items()):
            return Checkpoint(index, digest)
        return None

    def clear(self) -> None:
        self._held.clear()


# -- messages of the follower ----------------------------------------------------------------------------------


class Hello(NamedTuple):
    """term: in which it believes that the leader leads. highest_term: the highest it has seen; a lower leader is
    refused. locator: from its last entry down to its commit index, see `log.locator`."""

    protocol: int
    cluster: str
    node: NodeId
    journal: JournalId
    term: Term
    highest_term: Term
    last: LogIndex
    commit: LogIndex
    locator: Sequence[Position]


class Ack(NamedTuple):
    """Our log equals the leader's up to `durable`, and it is on our disk. applied: in our book. checkpoint: our latest;
    None if it was told already."""

    term: Term
    durable: LogIndex
    applied: LogIndex
    checkpoint: Checkpoint | None = None


FollowerMessage = Hello | Ack


# -- messages of the leader ------------------------------------------------------------------------------------


class SnapshotHead(NamedTuple):
    """A snapshot comes first, in chunks of `size` bytes together. digest: of the book in it."""

    digest: bytes
    size: int


class Start(NamedTuple):
    """Entries after `fork` follow; with a snapshot, `fork` is its place. fork_term: of the entry there."""

    leader: NodeId
    term: Term
    fork: Position
    fork_term: Term
    commit: LogIndex
    snapshot: SnapshotHead | None = None


class SnapshotChunk(NamedTuple):
    data: bytes


class Entries(NamedTuple):
    """Without a gap, from where the last ones ended. commit: the leader's; may lie beyond these entries."""

    entries: Sequence[Entry]
    commit: LogIndex


class Heartbeat(NamedTuple):
    commit: LogIndex


class Refusal(IntEnum):
    """Why a leader sends a follower away; the numbers are the wire's (proto/replication.proto)."""

    UNSPECIFIED = 0
    NOT_LEADING = 1
    STALE_LEADER = 2
    PROTOCOL = 3
    WRONG_CLUSTER = 4
    UNKNOWN_NODE = 5
    WRONG_IDENTITY = 6
    DUPLICATE_NODE = 7
    DIVERGED = 8
    LOST_ENTRIES = 9
    WRONG_DIGEST = 10

    @classmethod
    def _missing_(cls, value: object) -> Refusal:
        return cls.UNSPECIFIED  # of a leader that is newer than we are; its reason says it in words

    @property
    def final(self) -> bool:
        """Dialling again would not help: somebody has to look first."""
        return self in (Refusal.DIVERGED, Refusal.LOST_ENTRIES, Refusal.WRONG_DIGEST)


class Refused(NamedTuple):
    """The last message of a stream. reason: names the values and the remedy."""

    code: Refusal
    reason: str


LeaderMessage = Start | SnapshotChunk | Entries | Heartbeat | Refused
