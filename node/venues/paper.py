"""The adapter for the paper exchange: one account, over gRPC.

Touches the network and decides nothing. Its one subtle duty is the line between NotSent and Unknown:

- `submit` puts the order in a queue and returns; a single writer task takes it from there. Right before the bytes
  are handed to the transport the writer asks `still_allowed()` once more, and between that answer and the hand-over
  there is no await: what waited in the queue while the permit ended is dropped as NotSent, with proof.
- Once handed over, an order is answered, or Unknown: timeout and broken stream prove nothing.

The transport must not undo this behind our back, so gRPC's own retries are off, calls never wait for a
connection, and proxies from the environment are ignored.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError, InvariantViolation, OutcomeUnknown, StaleTerm, Unreachable
from cluster.rpc import paper_venue_pb2 as pb
from cluster.rpc.paper_venue_pb2_grpc import PaperVenueStub
from node.paper_venue import wire
from node.types import (
    Accepted,
    ClientOrderId,
    Instrument,
    NotSent,
    Refused,
    StreamDown,
    StreamUp,
    SubmitResult,
    Unknown,
    VenueEvent,
    VenueFill,
    VenueOrder,
    WireOrder,
)
from node.venues.base import (
    Absent,
    Armed,
    Capabilities,
    DeadmanScope,
    Found,
    IdUniqueness,
    LookupResult,
    TimeSample,
    Unavailable,
)

log = structlog.get_logger()

T = TypeVar("T")

_OUTBOX_MAX = 1024
_STALE_CODES = ("stale_token", "token_required")
_BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, OutcomeUnknown)  # what a dead stream raises
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of our own: another adapter's trouble is not ours
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_PROBE_EVERY_S = 1.0  # gRPC's own keep-alive took more than 10 s to notice a frozen line, whatever it was set to


class PaperVenue:
    """Implements node.venues.base.Venue; its contract is not repeated here."""

    def __init__(
        self,
        target: str,
        account: str,
        api_key: str,
        node: str,
        *,
        instruments: Sequence[Instrument],
        call_timeout_s: float = 1.0,
        rng: random.Random,
        backoff_min_s: float = 0.05,
        backoff_max_s: float = 1.0,
    ) -> None:
        """target: host:port. instruments: what we trade, checked against the venue's at each connection, since one
        wrong tick_size is wrong money. rng: jitter of the back-off."""
        if call_timeout_s <= 0 or not 0 < backoff_min_s <= backoff_max_s:
            raise ConfigError(
                f"paper venue: call_timeout_s {call_timeout_s} must be above 0,"
                f" and 0 < backoff_min_s {backoff_min_s} <= backoff_max_s {backoff_max_s}"
            )
        # Until the venue has spoken: the weakest there is.
        self.capabilities = Capabilities(False, False, IdUniqueness.NONE, DeadmanScope.NONE)
        self._target, self._account, self._node = target, account, node
        self._instruments = instruments
        self._timeout_s = call_timeout_s
        self._rng, self._backoff_min_s, self._backoff_max_s = rng, backoff_min_s, backoff_max_s
        self._metadata = ((wire.ACCOUNT, account), (wire.API_KEY, api_key), (wire.NODE, node))
        self._heartbeat_s = 1.0
        self._link: _Link | None = None
        self._up = asyncio.Event()  # set while there is a link
        self._supervisor: asyncio.Task[None] | None = None

    # -- connection -----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Raises Unreachable; ConfigError if the venue's instruments are not ours."""
        if self._supervisor is not None:
            return
        self._use(await self._open())
        self._supervisor = asyncio.create_task(self._stay_connected(), name=f"venue-{self._account}")

    async def close(self) -> None:
        """Orders still waiting for their answer become Unknown, those not yet written NotSent. Idempotent."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)
        self._up.set()  # whoever waits in `events` sees that it is over
        if self._link is not None:  # the supervisor was cancelled before its first step
            await self._link.end("closed by us")

    @property
    def connected(self) -> bool:
        return self._live() is not None

    def _live(self) -> _Link | None:
        return self._link if self._link is not None and not self._link.ended else None

    def _use(self, link: _Link) -> None:
        self._link = link
        self._up.set()

    async def _open(self) -> _Link:
        """One try, within the call timeout. A fresh connection each time: an old one may be dead without knowing."""
        channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        stub: Any = PaperVenueStub(channel)  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._timeout_s):
                said = await _heard(stub.Capabilities(pb.CapabilitiesRequest(), metadata=self._metadata))
                self._learn(said)
                stream = stub.Session(metadata=self._metadata)
                await _heard(stream.initial_metadata())
                if stream.done():  # an error also ends the wait for the metadata
                    raise Unreachable(f"venue {self._target} refused the stream: {await stream.details()}")
        except BaseException as e:
            await channel.close()
            if isinstance(e, (grpc.aio.AioRpcError, OutcomeUnknown)):
                raise Unreachable(f"venue {self._target} cannot be reached: {_said(e)}") from e
            if isinstance(e, TimeoutError):
                raise Unreachable(f"venue {self._target} did not answer within {self._timeout_s} s") from e
            raise
        return _Link(channel, stub, stream, self._metadata, self._timeout_s)

    def _learn(self, said: pb.CapabilitiesReply) -> None:
        theirs = {i.symbol: i for i in map(wire.from_instrument, said.instruments)}
        for ours in self._instruments:
            known = theirs.get(ours.symbol)
            if known is None:
                has = ", ".join(sorted(theirs)) or "nothing"
                raise ConfigError(
                    f"instrument {ours.symbol}: venue {self._target} does not trade it, only {has}; "
                    "correct [[instruments]], or venue.target"
                )
            if known != ours:
                raise ConfigError(
                    f"instrument {ours.symbol}: [[instruments]] has {_sizes(ours)}, but venue {self._target} has "
                    f"{_sizes(known)}; write what the venue has"
                )
        capabilities = wire.from_capabilities(said)
        if self._supervisor is not None and capabilities != self.capabilities:
            log.warning("venue_capabilities_changed", before=str(self.capabilities), now=str(capabilities))
        self.capabilities, self._heartbeat_s = capabilities, said.heartbeat_ms / 1000

    async def _stay_connected(self) -> None:
        """Serve the link until it breaks, then open the next one, until cancelled."""
        while self._link is not None:
            try:
                why = await self._link.run()
            finally:
                self._up.clear()
            log.warning("venue_disconnected", target=self._target, reason=why)
            backoff_s, told = self._backoff_min_s, ""
            while not self.connected:
                await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, self._backoff_max_s)
                try:
                    self._use(await self._open())
                except (Unreachable, ConfigError) as e:
                    if str(e) != told:  # a long outage is one line, not one per try
                        told = str(e)
                        log.info("venue_reconnect_failed", target=self._target, reason=told)
            log.info("venue_reconnected", target=self._target)

    # -- order entry ----------------------------------------------------------------------------------------

    def submit(self, order: WireOrder, still_allowed: Callable[[], bool] | None = None) -> Ticket:
        try:
            request = pb.Request(token=order.token, new=wire.to_new(order))
        except ValueError as e:  # a number that the wire cannot carry
            return Ticket(order.expires_at_ns, still_allowed).settle(NotSent("invalid_order", str(e)))
        return self._send(request, order.expires_at_ns, still_allowed)

    async def cancel(self, client_order_id: ClientOrderId, token: int) -> SubmitResult:
        request = pb.Request(token=token, cancel=pb.Cancel(client_order_id=client_order_id))
        return await self._send(request).result()

    async def cancel_all(self, token: int) -> int:
        return (await self._ask(pb.Request(token=token, cancel_all=pb.CancelAll()))).cancelled

    async def arm(self, token: int) -> Armed:
        if not self.capabilities.token:
            return Armed(token)
        reply = await self._ask(pb.Request(token=token, arm=pb.Arm()), refusals=("stale_token",))
        return Armed(reply.high_water)

    async def keep_alive(self, token: int, ttl_s: float) -> None:
        if self.capabilities.deadman is not DeadmanScope.NONE:
            await self._ask(pb.Request(token=token, keep_alive=pb.KeepAlive(ttl_ms=round(ttl_s * 1000))))

    def _send(
        self,
        request: pb.Request,
        expires_at_ns: int | None = None,
        still_allowed: Callable[[], bool] | None = None,
    ) -> Ticket:
        ticket, link = Ticket(expires_at_ns, still_allowed), self._live()
        if link is None:
            return ticket.settle(NotSent("venue_disconnected", f"no connection to venue {self._target}"))
        link.send(request, ticket)
        return ticket

    async def _ask(self, request: pb.Request, refusals: tuple[str, ...] = ()) -> pb.Reply:
        """The reply, also a refusal whose code is in `refusals`. Raises Unreachable, OutcomeUnknown, StaleTerm."""
        ticket = self._send(request)
        result = await ticket.result()
        if isinstance(result, NotSent):
            raise Unreachable(result.reason)
        if isinstance(result, Unknown):
            raise OutcomeUnknown(result.reason)
        if isinstance(result, Refused) and result.code not in refusals:
            kind = request.WhichOneof("body")
            if result.code in _STALE_CODES:
                raise StaleTerm(f"venue {self._target} refused {kind}: {result.reason}")
            raise InvariantViolation(f"venue {self._target} refused {kind}: {result.code}: {result.reason}")
        if ticket.reply is None:
            raise InvariantViolation("a venue's answer without its reply")
        return ticket.reply

    # -- questions ------------------------------------------------------------------------------------------

    async def lookup(self, client_order_id: ClientOrderId) -> LookupResult:
        try:
            reply = await self._query("Lookup", pb.LookupRequest(client_order_id=client_order_id))
        except (Unreachable, OutcomeUnknown) as e:
            return Unavailable(str(e))
        return Found(wire.from_order(reply.order)) if reply.HasField("order") else Absent()

    async def open_orders(self) -> list[VenueOrder]:
        reply = await self._query("OpenOrders", pb.OpenOrdersRequest())
        return [wire.from_order(o) for o in reply.orders]

    async def fills_after(self, event_seq: int, limit: int = 1000) -> list[VenueFill]:
        reply = await self._query("FillsAfter", pb.FillsAfterRequest(event_seq=event_seq, limit=limit))
        return [wire.from_fill(f) for f in reply.fills]

    async def positions(self) -> dict[str, int]:
        reply = await self._query("Positions", pb.PositionsRequest())
        return {p.symbol: p.net_lots for p in reply.positions}

    async def server_time(self) -> TimeSample:
        sent_at = boottime_ns()
        reply = await self._query("ServerTime", pb.ServerTimeRequest())
        return TimeSample(sent_at, boottime_ns(), reply.unix_ns)

    async def _query(self, method: str, request: Any) -> Any:
        link = self._live()
        if link is None:
            raise Unreachable(f"no connection to venue {self._target}")
        try:
            return await link.ask(method, request)
        except (grpc.aio.AioRpcError, OutcomeUnknown) as e:
            raise OutcomeUnknown(f"venue {self._target}, {method}: {_said(e)}") from e

    # -- the private stream -----------------------------------------------------------------------------------

    async def events(self, after_seq: int) -> AsyncIterator[VenueEvent]:
        """Call after `connect`; ends with `close`."""
        if self._supervisor is None:
            raise Unreachable(f"venue {self._target}: not connected")
        cursor, backoff_s = after_seq, self._backoff_min_s
        while self._supervisor is not None:
            link = self._live()
            if link is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._backoff_max_s):
                        await self._up.wait()
                await asyncio.sleep(self._backoff_min_s * self._rng.uniform(0.5, 1.0))
                continue
            call = link.stub.Events(pb.EventsRequest(after_seq=cursor), metadata=self._metadata)
            up = False
            try:
                while True:
                    batch = await self._next_batch(call)
                    if not up:
                        up, backoff_s = True, self._backoff_min_s
                        yield StreamUp(cursor + 1)
                    for event in batch.events:
                        if event.event_seq != cursor + 1:
                            raise OutcomeUnknown(f"event {event.event_seq} follows {cursor}; asking again")
                        told = wire.from_event(event)
                        cursor = event.event_seq
                        yield told
            except (grpc.aio.AioRpcError, OutcomeUnknown) as e:
                yield StreamDown(_said(e))
            finally:
                call.cancel()
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, self._backoff_max_s)

    async def _next_batch(self, call: Any) -> pb.EventBatch:
        """Raises OutcomeUnknown at the stream's end, and when it says nothing for four heartbeats: a line on which
        nothing comes and nothing breaks is as good as broken."""
        silence_s = max(4 * self._heartbeat_s, 0.2)
        try:
            async with asyncio.timeout(silence_s):
                batch: pb.EventBatch = await _heard(call.read())
        except TimeoutError as e:
            raise OutcomeUnknown(f"silent for {silence_s:.1f} s") from e
        if batch is grpc.aio.EOF:
            raise OutcomeUnknown("the venue ended the stream")
        return batch


class Ticket:
    """The answer to one request, when it comes. Settled exactly once, by whoever is first."""

    def __init__(self, expires_at_ns: int | None, still_allowed: Callable[[], bool] | None) -> None:
        self.expires_at_ns = expires_at_ns
        self.still_allowed = still_allowed
        self.reply: pb.Reply | None = None
        self.written = False
        self.timer: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()

    async def result(self) -> SubmitResult:
        return await asyncio.shield(self._settled)  # one who stops waiting does not take the answer from others

    @property
    def done(self) -> bool:
        return self._settled.done()

    def settle(self, result: SubmitResult) -> Ticket:
        if not self._settled.done():
            self._settled.set_result(result)
            if self.timer is not None:
                self.timer.cancel()
        return self

    def answer(self, reply: pb.Reply) -> None:
        self.reply = reply
        self.settle(Accepted(reply.venue_order_id) if reply.accepted else Refused(reply.code, reply.reason))

    def give_up(self, code: str, reason: str) -> None:
        """No answer is waited for any longer. If the request was written it may have taken effect."""
        self.settle(Unknown(reason, self.expires_at_ns) if self.written else NotSent(code, f"{reason}; not written"))


class _Link:
    """One connection with its order-entry stream, from its opening to its break."""

    def __init__(self, channel: Any, stub: Any, stream: Any, metadata: Any, timeout_s: float) -> None:
        self.stub = stub
        self.ended = False
        self._channel, self._stream, self._metadata = channel, stream, metadata
        self._timeout_s = timeout_s
        self._suspect = asyncio.Event()
        self._outbox: asyncio.Queue[tuple[pb.Request, Ticket]] = asyncio.Queue(_OUTBOX_MAX)
        self._waiting: dict[int, Ticket] = {}  # by request_id; bounded, as each leaves within timeout_s
        self._last_id = 0

    def send(self, request: pb.Request, ticket: Ticket) -> None:
        if self._outbox.full():
            ticket.settle(NotSent("venue_backpressure", f"{self._outbox.qsize()} requests wait to be written already"))
            return
        self._last_id += 1
        request.request_id = self._last_id
        self._waiting[request.request_id] = ticket
        self._outbox.put_nowait((request, ticket))
        loop = asyncio.get_running_loop()
        ticket.timer = loop.call_later(self._timeout_s, self._timed_out, request.request_id)

    async def ask(self, method: str, request: Any) -> Any:
        return await _heard(getattr(self.stub, method)(request, timeout=self._timeout_s, metadata=self._metadata))

    async def run(self) -> str:
        """Until the stream breaks; why it did. Every ticket is settled then, also when this is cancelled."""
        why = "closed by us"
        parts = [asyncio.create_task(part) for part in (self._read(), self._write(), self._watch())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            broken = [part.exception() for part in done if not part.cancelled()]
            why = "; ".join(_said(e) for e in broken if e is not None) or "the venue ended the stream"
        finally:
            for part in parts:
                part.cancel()
            failures = await asyncio.gather(*parts, return_exceptions=True)
            await self.end(why)
        for failure in failures:
            if isinstance(failure, Exception) and not isinstance(failure, _BROKEN):
                log.error(
                    "venue_link_failed", exc_info=failure
                )  # a mistake of ours: this line is given up all the same
        return why

    async def end(self, why: str) -> None:
        """Nothing is sent or heard any more."""
        self.ended = True  # first: from here on the channel may be closed
        for ticket in self._waiting.values():
            ticket.give_up("venue_disconnected", f"the connection to the venue broke: {why}")
        self._waiting.clear()
        await self._channel.close()

    async def _write(self) -> None:
        while True:
            request, ticket = await self._outbox.get()
            if ticket.done:
                continue  # timed out while it waited here
            if ticket.still_allowed is not None and not ticket.still_allowed():
                del self._waiting[request.request_id]
                ticket.settle(NotSent("permit_ended", "leave to send ended before the order was written"))
                continue
            # From here to the hand-over inside `write` nothing awaits (the stream's metadata are sent long ago).
            ticket.written = True
            await self._stream.write(request)

    async def _read(self) -> None:
        while (reply := await _heard(self._stream.read())) is not grpc.aio.EOF:
            ticket = self._waiting.pop(reply.request_id, None)
            if ticket is not None:  # else it came after its timeout: Unknown stays Unknown, others may have acted on it
                ticket.answer(reply)

    async def _watch(self) -> None:
        """A line on which nothing breaks and nothing comes is asked, now and then and after each missing answer."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_EVERY_S):
                    await self._suspect.wait()
            self._suspect.clear()
            await self.ask("ServerTime", pb.ServerTimeRequest())

    def _timed_out(self, request_id: int) -> None:
        ticket = self._waiting.pop(request_id, None)
        if ticket is not None:
            self._suspect.set()
            ticket.give_up("venue_backpressure", f"no answer from the venue within {self._timeout_s} s")


async def _heard(call: Awaitable[T]) -> T:
    """What the other side says. When a channel is closed, grpc.aio raises CancelledError in every task that waits
    for a call on it; that must not pass for a cancellation of the task itself, which would end it in silence.
    Raises OutcomeUnknown instead."""
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling() == 0:
            raise OutcomeUnknown("the connection was closed") from None
        raise


def _sizes(i: Instrument) -> str:
    return f"tick_size {i.tick_size}, lot_size {i.lot_size}"


def _said(e: BaseException) -> str:
    return f"{e.code().name}: {e.details()}" if isinstance(e, grpc.aio.AioRpcError) else str(e)
