"""The paper exchange as a server: gRPC in front, the exchange behind, the live feed beside.

A process of its own, on one event loop (the caller installs uvloop: `uvloop.run(run_venue(config))`). This module
speaks the wire of proto/paper_venue.proto and nothing else; every rule is in `engine.py`.

Backpressure: a stream may have `_INFLIGHT_MAX` unanswered requests; then it is not read any further, and the
transport makes its sender wait. Replies therefore need no unbounded queue.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import BatonError, ConfigError, Stop
from cluster.rpc import paper_venue_pb2 as pb
from cluster.rpc.paper_venue_pb2_grpc import PaperVenueServicer, add_PaperVenueServicer_to_server
from node.config_model import host_port, os_words
from node.feeds.base import Feed
from node.types import Instrument

from . import wire
from .engine import Engine, Limits
from .exchange import Exchange
from .lines import Line
from .market import listen
from .profile import Profile
from .state import Moment, Sender

log = structlog.get_logger()

_INFLIGHT_MAX = 256
_RPCS_MAX = 256
_ACCOUNTS_MAX = 1000
_FILLS_MAX = 1000
_MESSAGE_BYTES_MAX = 64 * 1024  # of a request; the largest right one is below 1 KiB
_STOP_GRACE_S = 0.2
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two venues on one port would each see half of the orders
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
)


@dataclass(frozen=True, slots=True)
class VenueServerConfig:
    """listen: host:port, port 0 for a free one. directory: of the record; one venue at a time.

    feed_url: of the market data, as `node.feeds.binance` takes it; None: no market data, so no orders, unless a
    feed is handed to `run_venue`.
    api_keys: by account; None is the demo mode, in which any account may use any key that is not empty.
    ack_delay_s, drop_ack_after: faults for drills. Every reply is held back for ack_delay_s after its record was
    written; the first `drop_ack_after` new orders are answered, later ones are taken but not answered.
    """

    listen: str
    directory: Path
    instruments: tuple[Instrument, ...]
    profile: Profile = field(default_factory=Profile)
    feed_url: str | None = None
    api_keys: Mapping[str, str] | None = None
    limits: Limits = field(default_factory=Limits)
    heartbeat_s: float = 0.25
    ack_delay_s: float = 0.0
    drop_ack_after: int | None = None

    def __post_init__(self) -> None:
        if not self.instruments:
            raise ConfigError("venue instruments: at least one is needed")
        for i in self.instruments:
            if not _NAME.match(i.symbol) or i.tick_size <= 0 or i.lot_size <= 0:
                raise ConfigError(f"venue instrument {i}: a symbol and sizes above 0 are needed")
        if not 0.01 <= self.heartbeat_s <= 60:
            raise ConfigError(f"venue heartbeat_s {self.heartbeat_s} is not within 0.01 to 60")


async def run_venue(
    config: VenueServerConfig,
    *,
    feed: Feed | None = None,
    ready: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set or the task is cancelled. feed: instead of config.feed_url; closed at the end.

    ready: called with the port once orders are taken. Raises ConfigError (address, directory, instruments),
    JournalCorrupt (the record is not the one that was written), JournalBroken (it can no longer be written).
    """
    # Before the record is opened, which writes that the venue has started:
    await _refuse_address(config.listen)
    feed = feed or _feed(config)
    exchange = Exchange(
        Engine(config.profile, config.instruments, config.limits),
        config.directory,
        clock=lambda: Moment(boottime_ns(), unix_ns()),
    )
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_RPCS_MAX)
    try:
        add_PaperVenueServicer_to_server(_Servicer(exchange, config), server)  # type: ignore[no-untyped-call]
        port = await _listen(server, config.listen)
        log.info("venue_started", listen=config.listen, port=port, profile=str(config.profile))
        if ready:
            ready(port)
        await _run(exchange, feed, stop or asyncio.Event())
    finally:
        await server.stop(_STOP_GRACE_S)
        if feed is not None:
            await feed.close()
        exchange.close()
        log.info("venue_stopped", lines=exchange.engine.seq)


async def _run(exchange: Exchange, feed: Feed | None, stop: asyncio.Event) -> None:
    """Until `stop`, or until a part fails; its error is raised as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(exchange.tick_forever(), name="venue-ticks"),
                tasks.create_task(exchange.checkpoint_forever(), name="venue-checkpoints"),
            ]
            if feed is not None:
                parts.append(tasks.create_task(listen(feed, exchange.market), name="venue-market"))
            stopped = tasks.create_task(stop.wait(), name="venue-stop")
            ends: list[asyncio.Future[Any]] = [stopped, exchange.broken]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if exchange.broken.done():
                exchange.broken.result()
            for part in parts:
                part.cancel()
    except BaseExceptionGroup as failures:
        known = failures.subgroup(BatonError)
        if known is None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from failures


async def _refuse_address(address: str) -> None:
    """Raises ConfigError, with the system's own words, for an address that gRPC could not listen on: gRPC takes a port
    above 65535 for another one, and says of every other trouble to set GRPC_VERBOSITY."""
    host, _, port = address.rpartition(":")
    try:
        if port != "0":
            host, _ = host_port(address)
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except ValueError as e:
        raise ConfigError(f"venue listen address {address!r}: {e}") from e
    except OSError as e:
        raise _not_usable(address, os_words(e)) from e
    problems = [why for family, *_, where in found if (why := _cannot_bind(family, where)) is not None]
    if len(problems) == len(found):  # as gRPC: one of the addresses of a name is enough
        raise _not_usable(address, problems[0])


def _cannot_bind(family: int, where: tuple[Any, ...]) -> str | None:
    try:
        with socket.socket(family) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the wake of old connections is no obstacle
            s.bind(where)
    except OSError as e:
        return os_words(e)
    return None


def _not_usable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"venue listen address {address!r} cannot be used: {why}; stop who has it, or choose another address"
    )


async def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        port: int = server.add_insecure_port(address)
    except RuntimeError as e:  # taken since we looked
        raise _not_usable(address, "it is in use") from e
    await server.start()
    return port


def _feed(config: VenueServerConfig) -> Feed | None:
    if config.feed_url is None:
        return None
    from node.feeds.binance import BinanceFeed  # here, so that a venue with a feed of its own needs no websockets

    stale_after_s = config.limits.stale_after_ns / 1e9
    return BinanceFeed(config.feed_url, config.instruments, stale_after_s=stale_after_s, rng=random.Random())


class _Servicer(PaperVenueServicer):
    def __init__(self, exchange: Exchange, config: VenueServerConfig) -> None:
        self._exchange = exchange
        self._config = config
        self._streams = 0
        self._new_answered = 0

    # -- order entry ----------------------------------------------------------------------------------------

    async def Session(self, request_iterator: AsyncIterator[pb.Request], context: Any) -> None:
        sender = await self._sender(context, stream=True)
        await context.send_initial_metadata(())  # tells the client that it may write
        log.info("venue_stream_opened", account=sender.account, peer=sender.node, session=sender.session)
        replies: asyncio.Queue[pb.Reply] = asyncio.Queue(_INFLIGHT_MAX)
        places = asyncio.Semaphore(_INFLIGHT_MAX)  # one per unanswered request: the queue never overflows

        async def write() -> None:
            while True:
                await context.write(await replies.get())
                places.release()

        writer = asyncio.create_task(write(), name=f"venue-replies-{sender.session}")
        try:
            while not writer.done():
                await places.acquire()
                try:
                    request = await context.read()
                except DecodeError:
                    self._exchange.do(partial(self._malformed, sender, 0, "bytes that are no Request"))
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bytes that are no Request")
                if request is grpc.aio.EOF:
                    for _ in range(_INFLIGHT_MAX - 1):  # all places free: all is answered
                        await places.acquire()
                    return
                self._take(sender, request, replies, places)
        finally:
            writer.cancel()
            log.info("venue_stream_closed", account=sender.account, peer=sender.node, session=sender.session)
            await asyncio.gather(writer, return_exceptions=True)

    def _take(
        self, sender: Sender, request: pb.Request, replies: asyncio.Queue[pb.Reply], places: asyncio.Semaphore
    ) -> None:
        request_id, config = request.request_id, self._config

        def told(lines: list[Line]) -> None:
            reply = wire.to_reply(request_id, lines, self._exchange.engine.high_water(sender.account))
            if lines and lines[0].kind == "new" and config.drop_ack_after is not None:
                self._new_answered += 1
                if self._new_answered > config.drop_ack_after:
                    places.release()
                    return
            if config.ack_delay_s > 0:
                asyncio.get_running_loop().call_later(config.ack_delay_s, replies.put_nowait, reply)
            else:
                replies.put_nowait(reply)

        self._exchange.do(partial(self._decide, sender, request), told)

    def _decide(self, sender: Sender, request: pb.Request, at: Moment) -> list[Line]:
        engine, token, body = self._exchange.engine, request.token, request.WhichOneof("body")
        if body == "new":
            return engine.place(sender, token, wire.to_ask(request.new), at)
        if body == "cancel":
            return engine.cancel(sender, token, wire.clip(request.cancel.client_order_id), at)
        if body == "cancel_all":
            return engine.cancel_all(sender, token, at)
        if body == "arm":
            return engine.arm(sender, token, at)
        if body == "keep_alive":
            return engine.keep_alive(sender, token, request.keep_alive.ttl_ms, at)
        return self._malformed(sender, token, "a request without a body that this venue knows", at)

    def _malformed(self, sender: Sender, token: int, why: str, at: Moment) -> list[Line]:
        return self._exchange.engine.malformed(sender, token, why, at)

    # -- the private stream -----------------------------------------------------------------------------------

    async def Events(self, request: pb.EventsRequest, context: Any) -> None:
        sender = await self._sender(context)
        known = self._exchange.engine.event_seq(sender.account)
        if request.after_seq > known:
            await context.abort(
                grpc.StatusCode.OUT_OF_RANGE,
                f"events after {request.after_seq} were asked for, account {sender.account} has only {known}",
            )
        await context.write(pb.EventBatch())
        async for lines in self._exchange.follow(sender.account, request.after_seq, self._config.heartbeat_s):
            await context.write(pb.EventBatch(events=map(wire.to_event, lines)))

    # -- questions --------------------------------------------------------------------------------------------

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupReply:
        sender = await self._sender(context)
        await self._settled(context)
        order = self._exchange.order(sender.account, request.client_order_id)
        return pb.LookupReply(order=wire.to_order(order) if order else None)

    async def OpenOrders(self, request: pb.OpenOrdersRequest, context: Any) -> pb.OpenOrdersReply:
        sender = await self._sender(context)
        engine = await self._settled(context)
        return pb.OpenOrdersReply(orders=map(wire.to_order, engine.open_orders(sender.account)))

    async def FillsAfter(self, request: pb.FillsAfterRequest, context: Any) -> pb.FillsAfterReply:
        sender = await self._sender(context)
        await self._settled(context)
        limit = min(request.limit or _FILLS_MAX, _FILLS_MAX)
        fills = self._exchange.fills(sender.account, min(request.event_seq, 2**63 - 1), limit)
        return pb.FillsAfterReply(fills=map(wire.to_event, fills))

    async def Positions(self, request: pb.PositionsRequest, context: Any) -> pb.PositionsReply:
        sender = await self._sender(context)
        held = (await self._settled(context)).positions(sender.account)
        return pb.PositionsReply(
            positions=[
                pb.Position(symbol=symbol, net_lots=lots, cash_tick_lots=str(cash))
                for symbol, (lots, cash) in held.items()
            ]
        )

    async def ServerTime(self, request: pb.ServerTimeRequest, context: Any) -> pb.ServerTimeReply:
        await self._sender(context)
        return pb.ServerTimeReply(unix_ns=unix_ns())

    async def Capabilities(self, request: pb.CapabilitiesRequest, context: Any) -> pb.CapabilitiesReply:
        await self._sender(context)
        config = self._config
        return wire.to_capabilities(config.profile.capabilities, config.instruments, config.heartbeat_s)

    # -- helpers ----------------------------------------------------------------------------------------------

    async def _settled(self, context: Any) -> Engine:
        with suppress(Stop):
            return self._exchange.settled()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the venue's record cannot be written")
        raise AssertionError("unreachable: abort raises")

    async def _sender(self, context: Any, stream: bool = False) -> Sender:
        """Who calls; ends the call for a wrong or missing name or key."""
        said = dict(context.invocation_metadata() or ())
        account, node, key = said.get(wire.ACCOUNT, ""), said.get(wire.NODE, ""), said.get(wire.API_KEY, "")
        for name, value in ((wire.ACCOUNT, account), (wire.NODE, node)):
            if not isinstance(value, str) or not _NAME.match(value):
                await context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, f"metadata {name} {value!r} is not 1 to 64 of A-Z a-z 0-9 _ . : -"
                )
        keys = self._config.api_keys
        if not key or (keys is not None and keys.get(account) != key):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong API key for account {account!r}")
        known = self._exchange.engine.accounts
        if account not in known and len(known) >= _ACCOUNTS_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{len(known)} accounts, no more are allowed")
        if stream:
            self._streams += 1
        # The record's length at the opening makes the name unique across restarts as well.
        session = f"{node}-{self._exchange.engine.seq}.{self._streams}"
        return Sender(account, node, session)
