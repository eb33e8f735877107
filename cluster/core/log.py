"""The log: an entry, and the running hash that names everything up to it.

    chain(i) = blake2b(chain(i-1) || index || term || kind || at || body)

Equal chains at one index mean equal logs up to there; that is the whole matching rule of replication, and it
makes the audit trail tamper-evident for free (DESIGN 5). Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from .errors import InvariantViolation
from .ids import LogIndex, Term

CHAIN_BYTES = 32
GENESIS = bytes(CHAIN_BYTES)
"""The chain before the first entry."""

KIND_TERM_STARTED = 1
"""The only kind `cluster/` itself writes: the first entry of a term. Kinds from 16 up belong to `node/`."""

_HEAD = struct.Struct(">qqHq")


class Entry(NamedTuple):
    """One fact. A NamedTuple because catch-up makes hundreds of thousands a second.

    at: Unix nanoseconds on the leader that wrote it; for people and for the audit, no rule reads it as "now".
    body: opaque to `cluster/`; for `node/`, a message of proto/journal.proto chosen by `kind`.
    """

    index: LogIndex
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
