"""The names of things, as types, so that one cannot be passed for another.

Pure. Read next: `log.py` for what an index points at, `lease.py` for what a term is worth.
"""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", str)
"""A node's configured name, unique in its cluster: `n1`, `tn-1`."""

Incarnation = NewType("Incarnation", str)
"""One start of a node's keeper. Two hosts that share a name by mistake still differ in this."""

JournalId = NewType("JournalId", str)
"""One journal file, from its creation. The in-sync set names journals, not only nodes: a node whose disk was
wiped comes back with a new id and is therefore not mistaken for the one that held every committed entry."""

Term = NewType("Term", int)
"""create_revision of the `leader` key. Shown to a gate or a venue, the same number is the *fencing token*."""

LogIndex = NewType("LogIndex", int)
"""Position in the journal, from 1. 0 means "nothing yet"."""

Instant = NewType("Instant", int)
"""CLOCK_BOOTTIME nanoseconds of *this* host. Never compared with another host's, never a wall clock."""

NS_PER_S = 1_000_000_000


def ns(seconds: float) -> int:
    """Seconds as whole nanoseconds."""
    return round(seconds * NS_PER_S)
