"""What the etcd client takes and gives: the vocabulary of a transaction, results as plain values, and the errors.

Pure. The comparisons and operations are etcd3's own (`etcd3.transactions`), so a transaction reads as in its
documentation: `txn([mod_revision(key) == 7], [put(key, b"x")])`. Read next: `wire.py`, which carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.core.errors import BatonError, OutcomeUnknown, Stop, Unreachable
from cluster.core.rebase import REMEDY
from cluster.rpc.etcd import transactions

# -- errors -----------------------------------------------------------------------------------------------

NO_ANSWER = (Unreachable, OutcomeUnknown)
"""What a call raises when etcd did not answer. To a reader both mean "try again"; to a writer they differ."""


class EtcdRefused(BatonError):
    """etcd answered no, for good: nothing was written, and asking again will not help."""


class AuthRefused(EtcdRefused):
    """Wrong user or password, or a user that may not touch this key."""


class LeaseGone(EtcdRefused):
    """The lease expired or was revoked, and its keys went with it. Only a new grant helps."""


class WrongCluster(Stop):
    """An endpoint belongs to another etcd cluster than the one remembered."""

    def __init__(self, expected: int, found: int, endpoint: str) -> None:
        super().__init__(
            f"etcd at {endpoint} is cluster {found:x}, expected cluster {expected:x}. If the endpoint is wrong, "
            f"correct etcd.endpoints. {REMEDY}"
        )
        self.expected, self.found = expected, found


class RevisionRolledBack(Stop):
    """etcd is behind what it already told us: it was restored from a backup, or lost its disks."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            f"etcd went back from revision {before} to {after}: it was restored or has lost data. {REMEDY}"
        )
        self.before, self.after = before, after


# -- results ----------------------------------------------------------------------------------------------


class KeyValue(NamedTuple):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class OpResult(NamedTuple):
    """kvs: what a get found, or what stood there before a delete. deleted: how many keys a delete removed."""

    kvs: tuple[KeyValue, ...]
    deleted: int


class TxnResult(NamedTuple):
    """succeeded: the compares held. responses: of the branch that ran, in its order. revision: the store's after it,
    which for a branch that wrote is the mod_revision of what it wrote."""

    succeeded: bool
    responses: tuple[OpResult, ...]
    revision: int
    cluster_id: int
    raft_term: int


class RangeResult(NamedTuple):
    kvs: tuple[KeyValue, ...]
    revision: int
    cluster_id: int
    raft_term: int


class GrantedLease(NamedTuple):
    """ttl_s: what etcd granted, which can be more than was asked for."""

    id: int
    ttl_s: int


class Snapshot(NamedTuple):
    """Everything under the prefix at `revision`. Forget what was known before: a key not in it does not exist."""

    kvs: tuple[KeyValue, ...]
    revision: int


class Event(NamedTuple):
    """One change. deleted: `kv` has only key and mod_revision. previous: only with `prev_kv`, and if it existed."""

    deleted: bool
    kv: KeyValue
    previous: KeyValue | None


class Changes(NamedTuple):
    """What happened under the prefix since the last Snapshot or Changes, oldest first. Never part of a transaction."""

    events: tuple[Event, ...]
    revision: int


class Member(NamedTuple):
    id: int
    name: str
    client_urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One endpoint, as it describes itself. With `reachable` False only `endpoint` and `error` mean anything."""

    endpoint: str
    reachable: bool
    version: str = ""
    cluster_id: int = 0
    member_id: int = 0
    leader_id: int = 0  # 0: it knows no leader
    raft_term: int = 0
    raft_index: int = 0
    db_bytes: int = 0
    latency_s: float = 0.0
    error: str = ""

    @property
    def is_leader(self) -> bool:
        return self.reachable and self.member_id == self.leader_id


# -- vocabulary -------------------------------------------------------------------------------------------

Compare = Any
"""A comparison from below, e.g. `mod_revision("k") == 7`. etcd3 makes it by overloading `==`, `!=`, `<`, `>`."""
Op = Any
"""An operation from below."""

Create, Mod, Version, Value = transactions.Create, transactions.Mod, transactions.Version, transactions.Value
Put, Get, Delete = transactions.Put, transactions.Get, transactions.Delete
"""Their classes, for who reads them. Whoever writes them takes the functions below."""


@dataclass(frozen=True, slots=True, eq=False)
class Txn:
    """If all of `compare` hold do `success`, else `failure`; atomic. To be sent, not to be compared with another:
    `==` on a comparison makes a new one of it."""

    compare: tuple[Compare, ...]
    success: tuple[Op, ...]
    failure: tuple[Op, ...] = ()


def create_revision(key: str) -> Compare:
    """To be compared: the revision that created `key`; 0 if it does not exist."""
    return Create(to_bytes(key))


def mod_revision(key: str) -> Compare:
    """To be compared: the revision that last wrote `key`; 0 if it does not exist."""
    return Mod(to_bytes(key))


def version(key: str) -> Compare:
    """To be compared: how often `key` was written since it was created."""
    return Version(to_bytes(key))


def value(key: str) -> Compare:
    """To be compared: the bytes at `key`. Always false for a key that does not exist."""
    return Value(to_bytes(key))


def absent(key: str) -> Compare:
    """`key` does not exist."""
    return Create(to_bytes(key)) == 0


def put(key: str, value: bytes, lease: int = 0) -> Op:
    """Write `key`. lease 0: bound to none (a lease it had before is dropped)."""
    return Put(to_bytes(key), value, lease)


def get(key: str, *, prefix: bool = False) -> Op:
    return Get(*key_range(key, prefix))


def delete(key: str, *, prefix: bool = False) -> Op:
    return Delete(*key_range(key, prefix), prev_kv=True)


def to_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def key_range(key: str, prefix: bool) -> tuple[bytes, bytes]:
    """key and range_end for one key, or for all that start with it."""
    start = to_bytes(key)
    if not prefix:
        return start, b""
    stem = start.rstrip(b"\xff")
    # A zero byte means "the first key" on the left, "no end" on the right.
    return start or b"\0", stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
