"""To and from etcd's wire: the messages of operations, the values of replies, and what a gRPC error says etcd did.

No I/O here. Read next: `client.py`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import grpc

from cluster.rpc.etcd import rpc_pb2

from .model import AuthRefused, Delete, EtcdRefused, Event, Get, KeyValue, LeaseGone, Op, OpResult, Put

# -- errors -----------------------------------------------------------------------------------------------


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


# -- messages ---------------------------------------------------------------------------------------------


def op_message(op: Op) -> Any:
    """A RequestOp."""
    if isinstance(op, Put):
        request = rpc_pb2.PutRequest(key=op.key, value=op.value, lease=op.lease)
        return rpc_pb2.RequestOp(request_put=request)
    if isinstance(op, Delete):
        gone = rpc_pb2.DeleteRangeRequest(key=op.key, range_end=op.range_end, prev_kv=op.prev_kv)
        return rpc_pb2.RequestOp(request_delete_range=gone)
    if isinstance(op, Get):
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
