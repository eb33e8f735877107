"""Range, then watch, and again whenever there is a doubt.

A watch stream can end in many ways, and some of them are silent: the server cancels it, compacts what it was to send,
ends it cleanly, is paused, is cut off from the others and goes on answering. All of them are treated alike: forget the
stream, read everything afresh, say so with a new `Snapshot`. A consumer that handles Snapshot handles every failure.

A watch makes things fast; the compares of transactions make them right (DESIGN 4). So a consumer that loses a compare,
and thereby learns that its picture is old, calls `resync`.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, Unreachable
from cluster.core.ids import ns
from cluster.rpc.etcd import rpc_pb2

from . import model, wire
from .channels import Endpoint, cancelled_from_outside, heard, transport_reason
from .model import NO_ANSWER, Changes, RevisionRolledBack, Snapshot

if TYPE_CHECKING:
    from .client import EtcdClient

log = structlog.get_logger()

_BACKOFF_S, _BACKOFF_MAX_S = 0.02, 1.0
_SETTLED_S = 1.0
"""A stream that lived this long was a good one: the next failure starts at the shortest back-off again."""

# A WatchRequest with an empty `progress_request` (field 3, etcd 3.4): the wheel's .proto is older, but messages carry
# unknown fields along.
_PROGRESS = rpc_pb2.WatchRequest.FromString(b"\x1a\x00")


class _Over(Exception):
    """The stream has ended, for a reason to be logged."""


class Watch:
    """An async iterator of Snapshot and Changes; made by `EtcdClient.watch`, closed with it or by `aclose`.

    The first item is a Snapshot, from a linearizable range. Each Changes continues what came before it without a gap.
    Revisions never fall from item to item: the iterator raises RevisionRolledBack instead. It goes on trying while etcd
    does not answer; it raises EtcdRefused, WrongCluster and their like, and is over then.
    Cancelling a wait for the next item loses nothing.
    """

    def __init__(
        self, client: EtcdClient, prefix: str, *, prev_kv: bool, silence_timeout_s: float, rng: random.Random
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._prev_kv = prev_kv
        self._silence_timeout_s = silence_timeout_s
        self._rng = rng
        self._revision = 0  # of the last item handed out
        self._lower_reads = 0
        self._failures = 0
        self._blind = False
        self._stream: _Stream | None = None
        self.over = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Snapshot | Changes:
        try:
            while not self.over:
                item = await (self._snapshot() if self._stream is None else self._changes(self._stream))
                if item is not None:
                    return item
        except BatonError:
            await self.aclose()
            raise
        raise StopAsyncIteration

    def resync(self) -> None:
        """What was handed out is known to be old: read afresh, at once. The next item is a Snapshot."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def aclose(self) -> None:
        """End it: a wait for the next item ends with StopAsyncIteration."""
        self.over = True
        self.resync()

    async def _snapshot(self) -> Snapshot | None:
        """A fresh range, and a stream from there. None: not this time."""
        if self._failures:
            limit_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(self._failures - 1, 10))
            await asyncio.sleep(self._rng.uniform(0, limit_s))
        try:
            got = await self._client.range(self._prefix, prefix=True)
            if got.revision < self._revision:
                # Once may be a stale read (an etcd bug until 3.5.28, 3.6.9); twice, elsewhere if possible, is not.
                self._lower_reads += 1
                if self._lower_reads > 1:
                    raise RevisionRolledBack(self._revision, got.revision)
                self._client.distrust(f"revision {got.revision} after {self._revision}")
                self._failures += 1
                return None
            stream = await _Stream.open(self._client, self._request(got.revision + 1), self._silence_timeout_s)
        except NO_ANSWER as e:
            if self._client.closed:
                self.over = True
                return None
            if not self._blind:
                log.warning("etcd_watch_blind", prefix=self._prefix, reason=str(e))
            self._blind = True
            self._failures += 1
            return None
        if self.over:
            stream.close()
            return None
        if self._blind:
            log.info("etcd_watch_sees_again", prefix=self._prefix, endpoint=stream.endpoint.address)
        self._blind = False
        self._lower_reads = 0
        self._stream, self._revision = stream, got.revision
        return Snapshot(got.kvs, got.revision)

    def _request(self, start_revision: int) -> Any:
        start, end = model.key_range(self._prefix, prefix=True)
        return rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(
                key=start,
                range_end=end,
                start_revision=start_revision,
                progress_notify=True,
                prev_kv=self._prev_kv,
            )
        )

    async def _changes(self, stream: _Stream) -> Changes | None:
        """The next events of this stream. None: it said nothing of interest, or it is over."""
        try:
            reply = await stream.next()
            if reply.canceled:
                if reply.compact_revision:
                    raise _Over(f"what comes next was compacted at {reply.compact_revision}")
                self._client.forget_token()  # an old token is one reason; the range will tell
                raise _Over(f"the server cancelled it: {reply.cancel_reason or 'no reason given'}")
        except _Over as e:
            if stream is self._stream:  # else: resync or aclose, while we waited
                self._stream = None
                lived_s = stream.close()
                self._failures = 1 if lived_s >= _SETTLED_S else self._failures + 1
                log.info("etcd_watch_restarts", prefix=self._prefix, endpoint=stream.endpoint.address, reason=str(e))
            return None
        if stream is not self._stream:
            return None
        events = tuple(wire.event(e) for e in reply.events if e.kv.mod_revision > self._revision)
        if not events:
            return None
        # Not the header's revision: that is the store's, and while catching up it is ahead of these events.
        self._revision = events[-1].kv.mod_revision
        return Changes(events, self._revision)


class _Stream:
    """One Watch call, and the task that listens for its silence."""

    def __init__(self, client: EtcdClient, endpoint: Endpoint, call: Any, silence_timeout_s: float) -> None:
        self.endpoint = endpoint
        self._client = client
        self._call = call
        self._created = False
        self._silence_timeout_s = silence_timeout_s
        self._opened = boottime_ns()
        self._waiting_since = 0  # 0: nobody reads; then the silence is ours, not the server's
        self._reading: asyncio.Task[Any] | None = None
        self._sentinel = asyncio.create_task(self._listen(), name=f"etcd watch silence {endpoint.address}")
        endpoint.on_aside.add(call.cancel)

    @classmethod
    async def open(cls, client: EtcdClient, request: Any, silence_timeout_s: float) -> _Stream:
        """Send the request, on the endpoint that the client uses now. Raises Unreachable, AuthRefused, WrongCluster."""
        endpoint, metadata = await client.ready_endpoint()
        stream = cls(client, endpoint, endpoint.watch.Watch(metadata=metadata), silence_timeout_s)
        try:
            async with asyncio.timeout(client.call_timeout_s):
                await stream._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as e:
            stream.close()
            raise Unreachable(f"etcd at {endpoint.address}: the watch could not be opened") from e
        except asyncio.CancelledError:
            stream.close()
            if cancelled_from_outside():
                raise
            raise Unreachable(f"etcd at {endpoint.address} failed while the watch was opened") from None
        return stream

    async def next(self) -> Any:
        """The next WatchResponse. Raises _Over. A wait that is cancelled is taken up by the next one."""
        # A task of its own, kept until it ends: gRPC cancels the whole call when the wait for a message is cancelled.
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name=f"etcd watch {self.endpoint.address}")
            self._reading.add_done_callback(heard)
        await asyncio.wait({self._reading})
        reading, self._reading = self._reading, None
        if reading.cancelled():
            raise _Over("its endpoint failed")
        if (e := reading.exception()) is not None:
            if not isinstance(e, grpc.aio.AioRpcError):
                raise e
            self._client.failed(self.endpoint, e)
            raise _Over(transport_reason(e))
        reply = reading.result()
        if reply is grpc.aio.EOF:
            raise _Over("the server ended it")
        self._created = self._created or reply.created
        return reply

    async def _read(self) -> Any:
        self._waiting_since = boottime_ns()
        try:
            return await self._call.read()
        finally:
            self._waiting_since = 0

    async def _listen(self) -> None:
        """Ask for a sign of life after half the limit; after all of it, put the endpoint aside, which ends this call.

        (A member that lost its majority would go on answering: for that the call carries `hasleader`.)
        """
        while True:
            limit_s = self._silence_timeout_s if self._created else self._client.call_timeout_s
            await asyncio.sleep(limit_s / 4)
            silent_ns = boottime_ns() - self._waiting_since if self._waiting_since else 0
            if silent_ns >= ns(limit_s):
                self._client.silent(self.endpoint, f"its watch was silent for {limit_s:g} s")
                return
            if silent_ns >= ns(limit_s / 2) and self._created:
                try:
                    await self._call.write(_PROGRESS)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # it is over; the reader hears why

    def close(self) -> float:
        """End the call; return how long it lived, in seconds."""
        self.endpoint.on_aside.discard(self._call.cancel)
        self._sentinel.cancel()
        self._call.cancel()
        return (boottime_ns() - self._opened) / 1e9
