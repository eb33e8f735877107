"""What the etcd client takes and gives: the vocabulary of a transaction, results as plain values, and the errors.

No I/O here. The comparisons and operations are etcd3's own (`etcd3.transactions`), so a transaction reads as in its
documentation: `txn([mod_revision(key) == 7], [put(key, b"x")])`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import grpc

from cluster.core.errors import BatonError, OutcomeUnknown, Stop, Unreachable
from cluster.rpc.etcd import rpc_pb2, transactions

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
            f"etcd at {endpoint} is cluster {found:x}, expected cluster {expected:x}: the endpoint is wrong, or etcd "
            "was rebuilt. Correct the endpoints, or start over: stop all nodes and move their data directories away"
        )
        self.expected, self.found = expected, found


class RevisionRolledBack(Stop):
    """etcd is behind what it already told us: it was restored from a backup, or lost its disks."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            f"etcd went back from revision {before} to {after}: it was restored or has lost data. "
            "Restore it with a revision bump, or start over: stop all nodes and move their data directories away"
        )
        self.before, self.after = before, after


class Outcome(Enum):
    """What a failed call did to etcd, as far as its error tells."""

    NOT_DONE = "not done"  # certainly: it was not sent, or was turned away before it was proposed
    UNKNOWN = "unknown"
    STALE_TOKEN = "stale token"  # turned away; authenticate and it may pass
    REFUSED = "refused"


# Never sent, or turned away before the proposal (etcd: api/v3rpc/interceptor.go, etcdserver/v3_server.go, raft.go).
_NOT_DONE = (
    "failed to connect to all addresses",
    "etcdserver: no leader",  # the answer to our `hasleader`
    "raft proposal dropped",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
)
_STALE_TOKEN = (
    "invalid auth token",
    "user name is empty",
    "revision in header is old",
    "revision of auth store is old",
)
_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}


def judge(error: grpc.aio.AioRpcError) -> Outcome:
    """Sort a gRPC error by what etcd did. What is not known for certain is UNKNOWN.

    That includes UNAVAILABLE in general (the connection broke while we waited, "leader changed", "request timed
    out") and "not a primary lessor", which etcd sends as UNKNOWN when it has just lost its leader (etcd#21671).
    """
    code, text = error.code(), error.details() or ""
    if any(t in text for t in _STALE_TOKEN):
        return Outcome.STALE_TOKEN
    if any(t in text for t in _NOT_DONE):
        return Outcome.NOT_DONE
    # RESOURCE_EXHAUSTED is also what our own side says of a reply too large to take: then it was done.
    if code in _REFUSED or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and text.startswith("etcdserver:")):
        return Outcome.REFUSED
    return Outcome.UNKNOWN


_HINTS = {
    "database space exceeded": "compact and defragment etcd, then clear the alarm: etcdctl alarm disarm",
    "invalid user ID or password": "check etcd user and password",
    "permission denied": "grant this user's role read and write on the cluster's prefix",
    "user name is empty": "etcd wants a user: set etcd user and password",
}


def refusal(endpoint: str, error: grpc.aio.AioRpcError) -> EtcdRefused:
    """The error for what `judge` called REFUSED (or a stale token that no authentication could cure)."""
    code, text = error.code(), error.details() or error.code().name
    hint = next((f"; {h}" for t, h in _HINTS.items() if t in text), "")
    message = f"etcd at {endpoint} refused: {text.removeprefix('etcdserver: ')}{hint}"
    if "lease not found" in text:
        return LeaseGone(message)
    denied = code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    if denied or "authentication" in text or any(t in text for t in _STALE_TOKEN):
        return AuthRefused(message)
    return EtcdRefused(message)


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


def create_revision(key: str) -> Compare:
    """To be compared: the revision that created `key`; 0 if it does not exist."""
    return transactions.Create(to_bytes(key))


def mod_revision(key: str) -> Compare:
    """To be compared: the revision that last wrote `key`; 0 if it does not exist."""
    return transactions.Mod(to_bytes(key))


def version(key: str) -> Compare:
    """To be compared: how often `key` was written since it was created."""
    return transactions.Version(to_bytes(key))


def value(key: str) -> Compare:
    """To be compared: the bytes at `key`. Always false for a key that does not exist."""
    return transactions.Value(to_bytes(key))


def absent(key: str) -> Compare:
    """`key` does not exist."""
    return transactions.Create(to_bytes(key)) == 0


def put(key: str, value: bytes, lease: int = 0) -> Op:
    """Write `key`. lease 0: bound to none (a lease it had before is dropped)."""
    return transactions.Put(to_bytes(key), value, lease)


def get(key: str, *, prefix: bool = False) -> Op:
    return transactions.Get(*key_range(key, prefix))


def delete(key: str, *, prefix: bool = False) -> Op:
    return transactions.Delete(*key_range(key, prefix), prev_kv=True)


# -- to and from the wire ---------------------------------------------------------------------------------


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


def op_message(op: Op) -> Any:
    """A RequestOp."""
    if isinstance(op, transactions.Put):
        request = rpc_pb2.PutRequest(key=op.key, value=op.value, lease=op.lease)
        return rpc_pb2.RequestOp(request_put=request)
    if isinstance(op, transactions.Delete):
        gone = rpc_pb2.DeleteRangeRequest(key=op.key, range_end=op.range_end, prev_kv=op.prev_kv)
        return rpc_pb2.RequestOp(request_delete_range=gone)
    if isinstance(op, transactions.Get):
        return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=op.key, range_end=op.range_end))
    raise TypeError(f"not an etcd operation: {op!r}")


def key_value(kv: Any) -> KeyValue:
    return KeyValue(
        kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease
    )


def op_result(response: Any) -> OpResult:
    """From a ResponseOp."""
    kind = response.WhichOneof("response")
    if kind == "response_range":
        return OpResult(tuple(map(key_value, response.response_range.kvs)), 0)
    if kind == "response_delete_range":
        gone = response.response_delete_range
        return OpResult(tuple(map(key_value, gone.prev_kvs)), gone.deleted)
    return OpResult((), 0)


def event(message: Any) -> Event:
    previous = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    return Event(message.type == 1, key_value(message.kv), previous)  # mvccpb.Event.DELETE
