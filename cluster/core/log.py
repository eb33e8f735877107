"""The log: an entry, and the running hash that names everything up to it.

    chain(i) = blake2b(chain(i-1) || index || term || kind || at || body)

Equal chains at one index mean equal logs up to there; that is the whole matching rule of replication, and it
makes the audit trail tamper-evident for free (DESIGN 5). Pure: bytes in, bytes out.

Below the entry: where two logs part (`locator`, `fork_point`), and what a follower may keep, cut and acknowledge
(`FollowerLog`). Read next: `stream.py` for how two nodes' logs become equal, `insync.py` for what the acknowledgements
are worth to the leader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from .errors import InvariantViolation, StaleTerm
from .ids import LogIndex, Term

CHAIN_BYTES = 32
GENESIS = bytes(CHAIN_BYTES)
"""The chain before the first entry."""

KIND_TERM_STARTED = 1
"""The only kind `cluster/` itself writes: the first entry of a term. Kinds from 16 up belong to `node/`."""

ENTRY_OVERHEAD = 96
"""Bytes of an entry beside its body, roughly: on disk, in memory, on the wire."""

_HEAD = struct.Struct(">qqHq")


class Entry(NamedTuple):
    """One fact. A NamedTuple because catch-up makes hundreds of thousands a second.

    at: Unix nanoseconds on the leader that wrote it; for people and for the audit, no rule reads it as "now".
    body: opaque to `cluster/`; for `node/`, a message of proto/journal.proto chosen by `kind`.
    """

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: Term
    kind: int
    at: int
    body: bytes
    chain: bytes


def chain_after(previous: bytes, index: int, term: int, kind: int, at: int, body: bytes) -> bytes:
    h = blake2b(previous, digest_size=CHAIN_BYTES)
    h.update(_HEAD.pack(index, term, kind, at))
    h.update(body)
    return h.digest()


def make_entry(previous_index: int, previous_chain: bytes, term: Term, kind: int, at: int, body: bytes) -> Entry:
    """The entry that follows `previous_index`."""
    index = LogIndex(previous_index + 1)
    return Entry(index, term, kind, at, body, chain_after(previous_chain, index, term, kind, at, body))


class ChainBroken(InvariantViolation):
    """An entry does not follow the one before it. `index` is the first that is wrong."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"log entry {index}: {why}")
        self.index = index


def verify(previous_index: int, previous_chain: bytes, entries: Iterable[Entry]) -> tuple[LogIndex, bytes]:
    """Check that `entries` follow in order, with rising terms and true chains; return the last (index, chain).

    Raises ChainBroken at the first that does not.
    """
    index, chain, term = previous_index, previous_chain, 0
    for e in entries:
        if e.index != index + 1:
            raise ChainBroken(e.index, f"expected index {index + 1}")
        if e.term < term:
            raise ChainBroken(e.index, f"term fell from {term} to {e.term}")
        chain = chain_after(chain, e.index, e.term, e.kind, e.at, e.body)
        if chain != e.chain:
            raise ChainBroken(e.index, "its chain is not the hash of what stands before it")
        index, term = e.index, e.term
    return LogIndex(index), chain


# -- where a log begins and ends ---------------------------------------------------------------------------


class Base(NamedTuple):
    """Where the stored entries begin: the first one is `index + 1` and follows `chain`."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index
    term: Term
    chain: bytes


BEGINNING = Base(LogIndex(0), Term(0), GENESIS)


class Snapshot(NamedTuple):
    """The book after entry `index`, in place of all entries up to it. digest: the book's own, opaque here."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index
    term: Term
    chain: bytes
    digest: bytes
    blob: bytes


def check_follows(previous: Base, entries: Sequence[Entry]) -> Base:
    """Raises ChainBroken unless `entries` start right after `previous`, by index and term (chains: see `verify`)."""
    index, term, chain = previous
    for e in entries:
        if e.index != index + 1 or e.term < term:
            raise ChainBroken(e.index, f"it does not follow index {index} of term {term}")
        index, term, chain = e.index, e.term, e.chain
    return Base(index, term, chain)


# -- where two logs part, and what may be cut ---------------------------------------------------------------

ChainAt = Callable[[LogIndex], bytes | None]
"""The chain at an index of a log: at its base and at every entry; None below the base and past the end."""


class Position(NamedTuple):
    """A place in a log, named beyond doubt: equal positions mean equal logs up to there."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    chain: bytes


def locator(last: LogIndex, floor: LogIndex, chain_at: ChainAt) -> list[Position]:
    """Our positions from `last` down to `floor`, each step twice the one before; `floor` is always the end.

    floor: our commit index (or our base, if that is higher). Below it nothing is ever cut, so nobody needs to
    look there. About log2(last - floor) + 2 positions, whatever the length of the uncommitted tail.
    """
    positions, index, step = [], last, 1
    while True:
        chain = chain_at(index)
        if chain is None:
            raise InvariantViolation(f"log index {index} lies in [{floor}, {last}] but has no chain: log incomplete")
        positions.append(Position(index, chain))
        if index <= floor:
            return positions
        index = LogIndex(max(floor, index - step))
        step *= 2


@dataclass(frozen=True, slots=True)
class StreamAfter:
    """Send every entry after `index`; the follower has this one, equal to ours."""

    index: LogIndex


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """What the follower lacks is pruned here."""


@dataclass(frozen=True, slots=True)
class Diverged:
    """The follower knows a committed entry that is not in our log. One of the two must not go on."""

    why: str


def fork_point(
    theirs: Sequence[Position], base: LogIndex, last: LogIndex, chain_at: ChainAt
) -> StreamAfter | SendSnapshot | Diverged:
    """What a leader whose log covers (base, last] answers to a follower's locator.

    The place found may lie up to a locator's step *below* the true fork. The follower must not cut there: in
    between may stand entries that both have and that are committed. It compares the entries as they come, and
    cuts at the first that differs (FollowerLog.receive).
    """
    for index, chain in theirs:
        if chain_at(index) == chain:
            return StreamAfter(index)
    committed = theirs[-1].index
    if committed < base:
        return SendSnapshot()  # our entry there is gone, so nothing is proved against the follower
    if committed > last:
        return Diverged(f"the follower has committed up to index {committed}, our log ends at {last}")
    return Diverged(f"the follower's committed entry {committed} differs from ours")


@dataclass(frozen=True, slots=True)
class Received:
    """What to write, in one transaction: drop everything after `cut_after` (None: nothing), then `append`."""

    cut_after: LogIndex | None
    append: Sequence[Entry]


NOTHING_TO_WRITE = Received(None, ())


class FollowerLog:
    """What a follower may accept, cut and acknowledge. One per node, for its whole life; owns no entry itself.

        commit <= durable <= checked        and        an acknowledgement says (open term, durable)

    checked: last index up to which our log equals the leader's. durable: the part of it that is on our disk.
    Our log may be longer than `checked` while an old tail has not been compared yet; that part is never
    acknowledged, and it is cut only where the leader's entry differs from ours.

    The acknowledgement is a fence (DESIGN 6, number 3):
    1. A leads with term 5. We follow; A counts our acknowledgements.
    2. A stalls. We want to campaign, so we call close_term(5) first.
    3. A's entry 42 arrives late. receive() refuses it, ack() answers None: A cannot commit it.
    4. Whoever leads next need not know that entry 42 ever was.
    """

    def __init__(self, highest_term: Term, commit: LogIndex) -> None:
        """highest_term: durable in the journal. commit: highest index known to be committed."""
        self.highest_term = highest_term
        self.commit = commit
        self._open: Term | None = None
        self._closed_up_to = Term(0)
        self._reset(LogIndex(0), GENESIS, Term(0), LogIndex(0), _no_chain)

    def _reset(self, index: LogIndex, chain: bytes, term: Term, last: LogIndex, chain_at: ChainAt) -> None:
        self._checked, self._chain, self._entry_term = index, chain, term
        self._durable = index
        self._own_last = last  # end of the old tail; == _checked once it is cut or used up
        self._chain_at = chain_at

    @property
    def durable(self) -> LogIndex:
        return self._durable

    @property
    def checked(self) -> LogIndex:
        return self._checked

    def learn(self, highest_term: Term, commit: LogIndex) -> None:
        """What the journal has learned elsewhere: we may have led, or read a higher term in etcd, since the last term
        was open here. Neither value is ever lowered."""
        self.highest_term = max(self.highest_term, highest_term)
        self.commit = max(self.commit, commit)

    def may_follow(self, term: Term) -> None:
        """Raises StaleTerm for a term lower than the highest seen, or one that we have closed."""
        if term < self.highest_term:
            raise StaleTerm(f"refusing a leader of term {term}: term {self.highest_term} has been seen here")
        if term <= self._closed_up_to:
            raise StaleTerm(f"refusing a leader of term {term}: this node has closed terms up to {self._closed_up_to}")

    def open_term(self, term: Term, fork: Position, fork_term: Term, last: LogIndex, chain_at: ChainAt) -> None:
        """Follow `term` from `fork`, a position the leader says it shares with us.

        Before: our whole log up to `last` is durable, and so is `term` as the highest seen: an acknowledgement
        that outlives a crash of ours while the promise does not would let an older leader count us again.
        Raises StaleTerm, or ChainBroken if `fork` is not in our log.
        """
        self.may_follow(term)
        if chain_at(fork.index) != fork.chain:
            raise ChainBroken(fork.index, "the leader says we share it, and we do not")
        self._reset(fork.index, fork.chain, fork_term, last, chain_at)
        self.highest_term = self._open = term

    def close_term(self, term: Term) -> None:
        """From now on nothing of `term` or an older one is accepted or acknowledged."""
        self._closed_up_to = max(self._closed_up_to, term)
        if self._open is not None and self._open <= self._closed_up_to:
            self._open = None

    def pause(self) -> None:
        """The stream ended. The term may be opened again, by another open_term."""
        self._open = None

    def receive(self, entries: Sequence[Entry]) -> Received:
        """Check a frame of the open term; what to write. The caller writes all of it or never calls us again.

        Raises StaleTerm if no term is open; ChainBroken if the frame does not follow what we have;
        InvariantViolation if a committed entry would have to be cut.
        """
        if self._open is None:
            raise StaleTerm("entries of a term that is not open here")
        fresh, cut = 0, None
        for n, e in enumerate(entries):
            self._check(e)
            if cut is None and e.index <= self._own_last:
                if self._chain_at(e.index) == e.chain:
                    self._durable = e.index  # it has been on our disk all along
                    fresh = n + 1
                else:
                    cut = self._cut_before(e)
            self._checked, self._chain, self._entry_term = e.index, e.chain, e.term
        if fresh == len(entries):
            return NOTHING_TO_WRITE
        return Received(cut, entries[fresh:] if fresh else entries)

    def _check(self, e: Entry) -> None:
        if e.index != self._checked + 1:
            raise ChainBroken(e.index, f"expected index {self._checked + 1}")
        if not self._entry_term <= e.term <= (self._open or 0):
            raise ChainBroken(e.index, f"its term {e.term} is not within [{self._entry_term}, {self._open}]")
        if chain_after(self._chain, e.index, e.term, e.kind, e.at, e.body) != e.chain:
            raise ChainBroken(e.index, "its chain is not the hash of what stands before it")

    def _cut_before(self, e: Entry) -> LogIndex:
        cut = LogIndex(e.index - 1)
        require_uncommitted(cut, self.commit)
        self._own_last = cut
        return cut

    def replaced(self, index: LogIndex) -> None:
        """A snapshot of entry `index`, which is committed, now stands for our whole log, durably. No term is open."""
        self.commit = max(self.commit, index)

    def written(self, index: LogIndex) -> None:
        """Everything received so far up to `index` is durable."""
        self._durable = max(self._durable, min(index, self._checked))

    def leader_committed(self, index: LogIndex) -> LogIndex:
        """The leader says `index` is committed; our commit index now. It never exceeds what is durable *here*:
        beyond that we could apply an entry and then forget it in a crash."""
        self.commit = max(self.commit, min(index, self._durable))
        return self.commit

    def ack(self) -> tuple[Term, LogIndex] | None:
        """What may be acknowledged right now; None when no term is open. Ask right before each send."""
        return None if self._open is None else (self._open, self._durable)


def require_uncommitted(cut_after: LogIndex, commit: LogIndex) -> None:
    """Raises InvariantViolation if cutting the log after `cut_after` would drop a committed entry."""
    if cut_after < commit:
        raise InvariantViolation(
            f"asked to cut the log after index {cut_after}, but everything up to {commit} is committed here: "
            "this journal and the leader's belong to different histories. Compare both with `baton journal verify`"
        )


def _no_chain(_index: LogIndex) -> bytes | None:
    return None
