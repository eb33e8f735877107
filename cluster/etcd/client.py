"""The etcd client: a deadline on every call, several endpoints, no call repeated whose outcome is not known.

Used by the keeper inside one event loop. What it promises:

- A transaction, put or delete is executed at most once per call. It returns what happened, or raises `Unreachable`
  (nothing happened), `OutcomeUnknown` (it may have), or `EtcdRefused` (etcd said no). It is sent again, elsewhere,
  only after an answer that proves that it was not executed.
- Everything else is repeated on another endpoint until its deadline.
- After a failure the next call goes to another endpoint.
- An answer from another cluster raises `WrongCluster`; an answer of a lower raft term than was known when the question
  left counts as no answer.

Not here: leases that keep themselves, locks, elections. They need clocks and judgement (`cluster/core/lease.py`).
Read next: `model.py` for the values and errors, `wire.py` for the messages, `watch.py` for the stream.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import grpc
import grpc.aio
import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError, OutcomeUnknown, Unreachable
from cluster.core.ids import ns
from cluster.rpc.etcd import rpc_pb2

from . import model, wire
from .channels import Channels, Endpoint, Guard, TlsFiles, cancelled_from_outside, heard, transport_reason
from .model import (
    NO_ANSWER,
    Compare,
    EtcdRefused,
    GrantedLease,
    LeaseGone,
    Member,
    MemberStatus,
    Op,
    OpResult,
    RangeResult,
    TxnResult,
)
from .watch import Watch
from .wire import Outcome, judge, refusal

log = structlog.get_logger()

AUTH_TIMEOUT_S = 1.0
"""For one Authenticate: etcd spends 50-100 ms on the password's hash, more when it is busy."""
_STALE_ANSWERS_MAX = 2  # per call
_PAUSE_S = 0.02

Metadata = tuple[tuple[str, str], ...]
# A member that knows no leader then says so at once, and says it before it proposes anything: instead of silence until
# the deadline, an answer that proves "not executed". It also ends the watches of a member that is cut off.
_HAS_LEADER: Metadata = (("hasleader", "true"),)


_txn: Callable[[Endpoint], Any] = attrgetter("kv.Txn")
_put: Callable[[Endpoint], Any] = attrgetter("kv.Put")
_delete: Callable[[Endpoint], Any] = attrgetter("kv.DeleteRange")
_range: Callable[[Endpoint], Any] = attrgetter("kv.Range")
_lease_grant: Callable[[Endpoint], Any] = attrgetter("lease.LeaseGrant")
_lease_revoke: Callable[[Endpoint], Any] = attrgetter("lease.LeaseRevoke")
_keep_alive: Callable[[Endpoint], Any] = attrgetter("keep_alive")
_members: Callable[[Endpoint], Any] = attrgetter("cluster.MemberList")


class _StaleToken(Exception):
    """Turned away for its token. `refusal` is what to say when a new one does not help."""

    def __init__(self, refusal: EtcdRefused) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class EtcdClient:
    """Make it anywhere; use and close it in one event loop. `async with` also waits for the first connection."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TlsFiles | None = None,
        user: str | None = None,
        password: str | None = None,
        call_timeout_s: float = 0.25,
        connect_timeout_s: float = 2.0,
        cluster_id: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """
        endpoints: `host:port`, `http://host:port` or `https://host:port`, one per etcd member.
        call_timeout_s: for one attempt at one endpoint.
        connect_timeout_s: for one connection to be made, TLS included, and for `connect`.
        cluster_id: the etcd cluster remembered from earlier; None takes the first that answers.
        Raises ConfigError for endpoints, files or a user that cannot be right. Connects only when first used.
        """
        if (user is None) != (password is None):
            raise ConfigError("etcd: give both user and password, or neither")
        if call_timeout_s <= 0 or connect_timeout_s <= 0:
            raise ConfigError(f"etcd timeouts must be > 0: call {call_timeout_s:g} s, connect {connect_timeout_s:g} s")
        self.call_timeout_s = call_timeout_s
        self.answered_at = boottime_ns()  # when a call last had an answer; at first: now
        self._connect_timeout_s = connect_timeout_s
        self._user, self._password = user, password
        self._rng = rng or random.Random()
        self._guard = Guard(cluster_id)
        self._channels = Channels(
            endpoints,
            tls=tls,
            guard=self._guard,
            probe_timeout_s=call_timeout_s,
            connect_timeout_s=connect_timeout_s,
            rng=self._rng,
        )
        self._metadata = _HAS_LEADER
        self._authenticated = user is None
        self._authentication: asyncio.Task[None] | None = None
        self._watches: set[Watch] = set()

    # -- life ---------------------------------------------------------------------------------------------

    async def connect(self, timeout_s: float | None = None) -> None:
        """Wait until one endpoint is connected and, with a user, authenticated. Raises Unreachable with the reason of
        each endpoint, AuthRefused, WrongCluster. Not needed before other calls, which wait within their own deadline.
        """
        await self.ready_endpoint(timeout_s or self._connect_timeout_s)

    async def __aenter__(self) -> EtcdClient:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything. A call still under way raises OutcomeUnknown or Unreachable, a watch ends."""
        self._channels.closed = True
        for watch in tuple(self._watches):
            await watch.aclose()
        if self._authentication is not None:
            self._authentication.cancel()
            self._authentication = None
        await self._channels.close()

    @property
    def closed(self) -> bool:
        return self._channels.closed

    @property
    def cluster_id(self) -> int | None:
        """The etcd cluster's id, once an endpoint has answered."""
        return self._guard.cluster_id

    # -- writes: once -------------------------------------------------------------------------------------

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """One atomic transaction: if all of `compare` hold do `success`, else `failure`.

        timeout_s: for the whole call, waiting for a connection included; default call_timeout_s.
        Raises Unreachable: not executed. OutcomeUnknown: executed, or not, or later. EtcdRefused (LeaseGone when a put
        names a lease that is gone, AuthRefused): not executed.
        """
        request = rpc_pb2.TxnRequest(
            compare=[c.build_message() for c in compare],
            success=[wire.op_message(op) for op in success],
            failure=[wire.op_message(op) for op in failure],
        )
        reply = await self._call(_txn, request, timeout_s, once=True)
        h = reply.header
        return TxnResult(
            reply.succeeded, tuple(map(wire.op_result, reply.responses)), h.revision, h.cluster_id, h.raft_term
        )

    async def put(self, key: str, value: bytes, lease: int = 0, *, timeout_s: float | None = None) -> int:
        """Write without a condition; the revision of the write. Raises as `txn`."""
        request = rpc_pb2.PutRequest(key=model.to_bytes(key), value=value, lease=lease)
        revision: int = (await self._call(_put, request, timeout_s, once=True)).header.revision
        return revision

    async def delete(self, key: str, *, prefix: bool = False, timeout_s: float | None = None) -> OpResult:
        """Delete a key, or all that start with it; what was deleted. Raises as `txn`."""
        start, end = model.key_range(key, prefix)
        request = rpc_pb2.DeleteRangeRequest(key=start, range_end=end, prev_kv=True)
        reply = await self._call(_delete, request, timeout_s, once=True)
        return OpResult(tuple(map(wire.key_value, reply.prev_kvs)), reply.deleted)

    # -- reads and leases: repeated elsewhere -------------------------------------------------------------

    async def range(
        self, key: str, *, prefix: bool = False, limit: int = 0, timeout_s: float | None = None
    ) -> RangeResult:
        """A linearizable read of a key, or of all keys that start with it, in their order. limit 0: no limit.

        timeout_s: for all attempts together; default: one attempt per endpoint.
        Raises Unreachable or OutcomeUnknown (`NO_ANSWER`: to a reader they are the same), EtcdRefused.
        """
        start, end = model.key_range(key, prefix)
        request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=limit)
        reply = await self._call(_range, request, timeout_s)
        h = reply.header
        return RangeResult(tuple(map(wire.key_value, reply.kvs)), h.revision, h.cluster_id, h.raft_term)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> GrantedLease:
        """A new lease with the TTL that etcd granted: at least what was asked for, else EtcdRefused.

        A grant whose answer was lost is asked for again; the one nobody knows of ends by itself.
        """
        reply = await self._call(_lease_grant, rpc_pb2.LeaseGrantRequest(TTL=ttl_s), timeout_s)
        if reply.error or ttl_s > reply.TTL:
            raise EtcdRefused(f"etcd refused a lease of {ttl_s} s: {reply.error or f'it offered {reply.TTL} s'}")
        return GrantedLease(reply.ID, reply.TTL)

    async def lease_keep_alive(self, lease_id: int, *, timeout_s: float | None = None) -> int:
        """Renew a lease; its TTL in seconds from now. Raises LeaseGone if it has ended."""
        reply = await self._call(_keep_alive, rpc_pb2.LeaseKeepAliveRequest(ID=lease_id), timeout_s)
        if reply.TTL <= 0:  # etcd's way to say it: status OK, TTL 0
            raise LeaseGone(f"etcd lease {lease_id:x} has ended")
        ttl: int = reply.TTL
        return ttl

    async def lease_revoke(self, lease_id: int, *, timeout_s: float | None = None) -> None:
        """After it, the lease and its keys do not exist. Nothing to do if it had ended already."""
        try:
            await self._call(_lease_revoke, rpc_pb2.LeaseRevokeRequest(ID=lease_id), timeout_s)
        except LeaseGone:
            return

    def watch(
        self, prefix: str, *, prev_kv: bool = False, silence_timeout_s: float = 2.0, rng: random.Random | None = None
    ) -> Watch:
        """Everything under `prefix`, and from there on each change: see `Watch`.

        prev_kv: each event carries what stood there before.
        silence_timeout_s: how long a stream may say nothing, though asked for a sign of life, before it is replaced.
        """
        if silence_timeout_s <= 0:
            raise ConfigError(f"etcd watch: silence_timeout_s = {silence_timeout_s:g} must be > 0")
        watch = Watch(self, prefix, prev_kv=prev_kv, silence_timeout_s=silence_timeout_s, rng=rng or self._rng)
        self._watches = {w for w in self._watches if not w.over} | {watch}
        return watch

    # -- about etcd itself --------------------------------------------------------------------------------

    async def members(self, *, timeout_s: float | None = None) -> list[Member]:
        reply = await self._call(_members, rpc_pb2.MemberListRequest(), timeout_s)
        return [Member(m.ID, m.name, tuple(m.clientURLs)) for m in reply.members]

    async def status(self, *, timeout_s: float | None = None) -> list[MemberStatus]:
        """Ask each endpoint about itself, all at once, in the order configured. One that is down is a result, not an
        error; a refused user is AuthRefused."""
        self._channels.start()
        limit_s = timeout_s or self.call_timeout_s
        if not self._authenticated:  # some releases tell nothing to strangers
            with suppress(*NO_ANSWER):
                await self.ready_endpoint(limit_s)
        return list(await asyncio.gather(*(self._status(ep, limit_s) for ep in self._channels.endpoints)))

    async def _status(self, ep: Endpoint, timeout_s: float) -> MemberStatus:
        asked = boottime_ns()
        try:
            # Waits for its connection, since it wants this endpoint and no other; and goes without `hasleader`, since a
            # member without a leader has something to tell as well.
            token = tuple(pair for pair in self._metadata if pair not in _HAS_LEADER)
            reply = await ep.maintenance.Status(
                rpc_pb2.StatusRequest(), timeout=timeout_s, metadata=token, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as e:
            return MemberStatus(ep.address, False, error=ep.last_error or transport_reason(e))
        return MemberStatus(
            ep.address,
            True,
            version=reply.version,
            cluster_id=reply.header.cluster_id,
            member_id=reply.header.member_id,
            leader_id=reply.leader,
            raft_term=reply.raftTerm,
            raft_index=reply.raftIndex,
            db_bytes=reply.dbSize,
            latency_s=(boottime_ns() - asked) / 1e9,
        )

    # -- the one way to call ------------------------------------------------------------------------------

    async def _call(
        self, method: Callable[[Endpoint], Any], request: Any, timeout_s: float | None, *, once: bool = False
    ) -> Any:
        """Call until there is an answer, the deadline passes, or (`once`) the outcome is not known."""
        self._channels.start()
        endpoints = len(self._channels.endpoints)
        if timeout_s is None:
            timeout_s = self.call_timeout_s if once else self.call_timeout_s * max(2, endpoints)
        deadline = boottime_ns() + ns(timeout_s)
        failure: Unreachable | OutcomeUnknown | None = None
        stale_answers = 0
        for attempt in itertools.count(1):
            try:
                ep, metadata = await self._endpoint(deadline)
                left_s = (deadline - boottime_ns()) / 1e9
                if left_s <= 0:
                    raise Unreachable(f"etcd: {timeout_s:g} s were over before it could be asked")
            except Unreachable as e:
                raise failure or e from None
            try:
                return await self._attempt(
                    method, ep, request, metadata, left_s if once else min(left_s, self.call_timeout_s)
                )
            except _StaleToken as e:
                stale_answers += 1
                if self._user is None or stale_answers > _STALE_ANSWERS_MAX:
                    raise e.refusal from None
                self.forget_token(metadata)
                continue
            except Unreachable as e:
                if not isinstance(failure, OutcomeUnknown):  # an earlier attempt may still have done it
                    failure = e
            except OutcomeUnknown as e:
                if once:
                    raise
                failure = e
            if attempt % endpoints == 0:  # all of them failed: an election, most likely
                await self._pause()
        raise AssertionError("unreachable")

    async def _attempt(
        self, method: Callable[[Endpoint], Any], ep: Endpoint, request: Any, metadata: Metadata, timeout_s: float
    ) -> Any:
        """Ask `ep` once. After Unreachable (not done) and OutcomeUnknown it has been put aside."""
        term = self._guard.raft_term
        error: Exception
        try:
            reply = await method(ep)(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as e:
            error = self._sorted(ep, e)
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            error = OutcomeUnknown("the etcd client was closed during the call")
        else:
            if self._guard.check(reply.header, ep.address, term):
                self.answered_at = boottime_ns()
                return reply
            why = f"it is behind: raft term {reply.header.raft_term}, others had {term}"
            self._channels.put_aside(ep, why)
            error = OutcomeUnknown(f"etcd at {ep.address}: {why}")
        # Raised out here, so that it does not carry gRPC's own error and with it the call: see Channels.close.
        raise error

    def _sorted(self, ep: Endpoint, e: grpc.aio.AioRpcError) -> Exception:
        """What to raise for a failed call; where `ep` is to blame, it has been put aside."""
        outcome = judge(e)
        if outcome is Outcome.REFUSED:
            return refusal(ep.address, e)
        if outcome is Outcome.STALE_TOKEN:
            return _StaleToken(refusal(ep.address, e))
        why = transport_reason(e)
        self._channels.put_aside(ep, why)
        return (Unreachable if outcome is Outcome.NOT_DONE else OutcomeUnknown)(f"etcd at {ep.address}: {why}")

    async def _endpoint(self, deadline: int) -> tuple[Endpoint, Metadata]:
        """A connected endpoint and a token for it. Raises Unreachable when there are none by `deadline`."""
        while True:
            ep = await self._channels.pick(deadline)
            if self._authenticated:
                return ep, self._metadata
            try:
                await self._authenticate(ep, deadline)
            except Unreachable:
                if boottime_ns() >= deadline:
                    raise
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE_S * self._rng.uniform(0.5, 1.5))

    # -- for Watch ----------------------------------------------------------------------------------------

    async def ready_endpoint(self, timeout_s: float | None = None) -> tuple[Endpoint, Metadata]:
        """The endpoint for a stream, and what to send along. Raises Unreachable, AuthRefused, WrongCluster."""
        self._channels.start()
        return await self._endpoint(boottime_ns() + ns(timeout_s or self.call_timeout_s))

    def failed(self, ep: Endpoint, error: grpc.aio.AioRpcError) -> None:
        """A stream on `ep` broke."""
        if judge(error) is Outcome.STALE_TOKEN:
            self.forget_token()
        else:
            self._channels.put_aside(ep, transport_reason(error))

    def distrust(self, why: str) -> None:
        """Whoever answered last should not be the next to answer."""
        if (ep := self._channels.current) is not None:
            self._channels.put_aside(ep, why)

    def silent(self, ep: Endpoint, why: str) -> None:
        """A stream on `ep` went silent."""
        self._channels.put_aside(ep, why)

    # -- authentication -----------------------------------------------------------------------------------

    def forget_token(self, metadata: Metadata | None = None) -> None:
        """Authenticate before the next call. metadata: only if the token is still that one."""
        if self._user is not None and (metadata is None or metadata is self._metadata):
            self._authenticated = False

    async def _authenticate(self, ep: Endpoint, deadline: int) -> None:
        """Get a token, by one request however many callers wait for it; it goes on beyond the deadline of one of them.

        Raises Unreachable when there is none by `deadline`, AuthRefused.
        """
        task = self._authentication
        if task is None or task.done():
            task = self._authentication = asyncio.create_task(self._fetch_token(ep), name="etcd authenticate")
            task.add_done_callback(heard)
        await asyncio.wait({task}, timeout=max(0, deadline - boottime_ns()) / 1e9)
        if not task.done():
            raise Unreachable(f"etcd at {ep.address}: not authenticated in time")
        if task.cancelled():
            raise Unreachable("the etcd client is closed")
        task.result()

    async def _fetch_token(self, ep: Endpoint) -> None:
        request = rpc_pb2.AuthenticateRequest(name=self._user, password=self._password)
        try:
            reply = await ep.auth.Authenticate(request, timeout=AUTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as e:
            if "authentication is not enabled" in (e.details() or ""):
                log.warning("etcd_without_authentication", endpoint=ep.address, user=self._user)
                self._metadata, self._authenticated = _HAS_LEADER, True
                return
            error = self._sorted(ep, e)
        else:
            self._metadata, self._authenticated = (*_HAS_LEADER, ("token", reply.token)), True
            log.info("etcd_authenticated", endpoint=ep.address, user=self._user)
            return
        if isinstance(error, EtcdRefused):
            raise error
        # Nothing to be unsure of: without a token, what the caller wanted was not sent.
        raise Unreachable(f"not authenticated: {error}")
