"""`baton feed serve`: a venue's market data for machines that must not, or cannot, reach a venue.

A websocket server with Binance's combined-stream URL that plays a recorded or a synthetic market, for ever. There is
one market position for all clients, as there is on a venue: it moves whether anyone listens or not, and who comes later
comes in the middle. Times inside the messages are moved so that the market is now (the fastest recorded message counts
as having taken no time), so latency figures mean something.

Like the venue it closes a connection after a day and throws out a client that does not keep up. On top it has the
faults that drills need: silence on an open line, lost, repeated and swapped messages, broken text, sudden ends.

Touches: one listening socket, one file read once. Decides nothing. `capture.py` and `synthetic.py` are the markets.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import parse_qs, urlsplit

import structlog
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.http11 import Request, Response

from cluster.clock import unix_ns
from cluster.core.errors import ConfigError
from node.feeds.binance import canonical
from node.feeds.capture import CaptureSource, read_capture
from node.feeds.synthetic import SyntheticConfig, SyntheticSource

log = structlog.get_logger()

_LATE_MAX_S = 1.0
"""Later than this the market is not hurried after the clock: it goes on from where it is, as of now."""

_BATCH_MAX = 64
"""Messages sent before the loop is given back, when many are due at once."""

_MARKET_EPOCH_NS = 1_700_000_000 * 10**9
"""From here the numbering of a market counts, so that a restarted server shows higher ids than it ever did."""


class Source(Protocol):
    """A market without end. `streams`: canonical names. `play`: see CaptureSource.play."""

    streams: frozenset[str]

    def play(self, wall_ms: Callable[[int], int]) -> Iterator[tuple[int, str, str]]: ...


@dataclass(frozen=True, slots=True)
class FeedServerConfig:
    """capture: a recording; None plays `synthetic`. speed: 2.0 is twice as fast as recorded.

    start: "beginning" of the recording when the server starts, or "clock": where it would be by now had it looped
    ever since, which is the same on every host and survives a restart of the server without a jump.
    generation: how many rounds the ids are ahead at "beginning"; None: enough to be above any earlier run's.
    client_buffer_max: bytes that may wait for one client before it is thrown out, beyond the kernel's own buffers.
    """

    host: str = "127.0.0.1"
    port: int = 0
    capture: Path | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    speed: float = 1.0
    start: Literal["beginning", "clock"] = "beginning"
    generation: int | None = None
    client_buffer_max: int = 2**20
    connection_max_s: float = 24 * 3600.0
    ping_interval_s: float = 20.0
    ping_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.speed <= 10_000:
            raise ConfigError(f"feed speed {self.speed} must be between 0.01 and 10000")
        if self.start not in ("beginning", "clock"):
            raise ConfigError(f"feed start {self.start!r} must be 'beginning' or 'clock'")
        if self.client_buffer_max < 1 or self.connection_max_s <= 0:
            raise ConfigError(
                f"client_buffer_max {self.client_buffer_max} and connection_max_s {self.connection_max_s} "
                "must be above 0"
            )


def default_capture() -> Path | None:
    """The recording that lies beside a checkout, if it does."""
    root = Path(__file__).resolve().parents[2]
    path = root.parent / "shared/data/crypto_ws/binance_spot_BTCUSDT_20240808.ws.gz"
    return path if path.is_file() else None


def open_source(config: FeedServerConfig, unix_now_ns: int) -> Source:
    """The market that `config` names. Blocks while it reads. Raises ConfigError (CaptureError for the recording)."""
    if config.capture is None:
        # 16 ids a millisecond: more than the walk ever uses, so a later start is always above an earlier run.
        first = 1 if config.generation is not None else max(0, unix_now_ns - _MARKET_EPOCH_NS) // 62_500 + 1
        return SyntheticSource(config.synthetic, first_id=first)
    capture = read_capture(config.capture)
    for warning in capture.warnings:
        log.warning("feed_capture", reason=warning)
    log.info("feed_capture_read", path=str(config.capture), messages=len(capture), streams=capture.streams)
    if config.start == "clock":
        return CaptureSource.at_clock(capture, unix_now_ns, config.speed)
    generation = config.generation
    if generation is None:
        # One round per 0.1 s of the calendar outruns any recording that lasts longer than that.
        generation = max(0, unix_now_ns - _MARKET_EPOCH_NS) // 10**8
    return CaptureSource(capture, generation)


@dataclass(slots=True)
class _Fault:
    """What is still to be done to the next messages, on one stream (canonical) or on any."""

    left: int
    stream: str | None

    def strikes(self, stream: str) -> bool:
        if self.left == 0 or (self.stream is not None and self.stream != stream):
            return False
        self.left -= 1
        return True


class FeedServer:
    """The market, being broadcast. `async with FeedServer(config) as server: await server.serve_forever()`.

    The fault methods take effect with the next message and are safe to call at any time from the loop's thread.
    """

    def __init__(self, config: FeedServerConfig) -> None:
        self.config = config
        self.sent = 0  # messages that left the market, whether anyone heard them or not
        self.slow_clients = 0  # thrown out
        self._server: Server | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self._source: Source
        self._listeners: dict[str, set[ServerConnection]] = defaultdict(set)  # by stream, without the muted
        self._clients: dict[ServerConnection, frozenset[str]] = {}
        self._mute_new = False
        self._gap = self._duplicate = self._reorder = _Fault(0, None)
        self._held: dict[str, str] = {}  # by stream: the message that waits for the next one to overtake it
        self._anchor_s = 0.0
        self._anchor_unix_ns = self._anchor_when = 0

    # -- life --

    async def __aenter__(self) -> FeedServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Read the market and listen. Raises ConfigError: for the capture, and for a port that is taken."""
        self._source = await asyncio.to_thread(open_source, self.config, unix_ns())
        c = self.config
        try:
            self._server = await serve(
                self._client,
                c.host,
                c.port,
                process_request=self._check_request,
                compression=None,
                ping_interval=c.ping_interval_s,
                ping_timeout=c.ping_timeout_s,
                close_timeout=1.0,
                max_size=2**14,  # clients have nothing to say
                server_header=None,
            )
        except OSError as failed:
            raise ConfigError(
                f"feed server cannot listen on {c.host}:{c.port}: {failed.strerror or failed}; choose another port"
            ) from failed
        self._pump_task = asyncio.create_task(self._pump(), name="feed-pump")
        log.info("feed_serving", url=self.url, streams=sorted(self._source.streams), speed=c.speed)

    async def serve_forever(self) -> None:
        """Until cancelled. Raises what ended the market, if something did."""
        if self._pump_task is not None:
            await asyncio.shield(self._pump_task)

    async def close(self) -> None:
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.wait([self._pump_task])
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        if self._server is None:
            raise ConfigError("the feed server has not been started")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """What a BinanceFeed wants to know."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"ws://{host}:{self.port}"

    @property
    def clients(self) -> int:
        return len(self._clients)

    # -- faults, for drills --

    def freeze(self, *, also_new: bool = True) -> None:
        """Keep every connection open, answer pings, send no data: a silent death. also_new: later ones too."""
        self._listeners.clear()
        self._mute_new = also_new

    def thaw(self) -> None:
        """The market goes on; what it did meanwhile is lost to those who were frozen."""
        self._mute_new = False
        for ws, streams in self._clients.items():
            self._listen(ws, streams)

    def gap(self, n: int, stream: str | None = None) -> None:
        """Lose the next n messages (of `stream`, such as `btcusdt@trade`)."""
        self._gap = _Fault(n, stream and canonical(stream))

    def duplicate(self, n: int, stream: str | None = None) -> None:
        """Send each of the next n messages twice."""
        self._duplicate = _Fault(n, stream and canonical(stream))

    def reorder(self, n: int, stream: str | None = None) -> None:
        """n times, let a message be overtaken by the next of its stream."""
        self._reorder = _Fault(n, stream and canonical(stream))

    def inject(self, text: str) -> None:
        """Send this text to every client."""
        broadcast(self._clients, text)

    async def disconnect_all(self) -> None:
        """Close every connection, as a venue does for maintenance."""
        await asyncio.gather(*(ws.close(1001, "going away") for ws in list(self._clients)))

    # -- clients --

    def _check_request(self, ws: ServerConnection, request: Request) -> Response | None:
        """Refuse what could only be a connection without data, and say what there is."""
        parts = urlsplit(request.path)
        wanted = [s for part in parse_qs(parts.query).get("streams", []) for s in part.split("/") if s]
        offer = f"available: {'/'.join(sorted(self._source.streams))}\n"
        if parts.path != "/stream" or not wanted:
            return ws.respond(HTTPStatus.NOT_FOUND, f"use /stream?streams=NAME/NAME/...; {offer}")
        unknown = [s for s in wanted if canonical(s) not in self._source.streams]
        if unknown:
            return ws.respond(HTTPStatus.NOT_FOUND, f"no stream {'/'.join(unknown)}; {offer}")
        return None

    async def _client(self, ws: ServerConnection) -> None:
        query = parse_qs(urlsplit(ws.request.path).query) if ws.request else {}
        streams = frozenset(canonical(s) for part in query["streams"] for s in part.split("/") if s)
        self._clients[ws] = streams
        if not self._mute_new:
            self._listen(ws, streams)
        log.info("feed_client", peer=str(ws.remote_address), streams=sorted(streams), clients=len(self._clients))
        try:
            async with asyncio.timeout(self.config.connection_max_s):
                await ws.wait_closed()
        except TimeoutError:
            await ws.close(1001, "connections end after 24 hours")
        finally:
            self._forget(ws)

    def _listen(self, ws: ServerConnection, streams: frozenset[str]) -> None:
        for stream in streams:
            self._listeners[stream].add(ws)

    def _forget(self, ws: ServerConnection) -> None:
        self._clients.pop(ws, None)
        for listeners in self._listeners.values():
            listeners.discard(ws)

    # -- the market --

    def _anchor(self, when: int) -> None:
        """Market time `when` is now."""
        self._anchor_s = time.monotonic()
        self._anchor_unix_ns = unix_ns()
        self._anchor_when = when

    def _wall_ms(self, when: int) -> int:
        return int((self._anchor_unix_ns + (when - self._anchor_when) / self.config.speed) // 1_000_000)

    async def _pump(self) -> None:
        self._anchor(0)
        batch = 0
        for when, stream, text in self._source.play(self._wall_ms):
            due = self._anchor_s + (when - self._anchor_when) / self.config.speed / 1e9
            wait = due - time.monotonic()
            if wait > 0.001:  # finer than the loop's own timer is no sleep at all
                await asyncio.sleep(wait)
                batch = 0
            elif batch >= _BATCH_MAX:
                await asyncio.sleep(0)
                batch = 0
            elif wait < -_LATE_MAX_S:
                log.warning("feed_server_late", late_s=round(-wait, 3), speed=self.config.speed)
                self._anchor(when)
            batch += 1
            self._emit(stream, text)

    def _emit(self, stream: str, text: str) -> None:
        self.sent += 1
        if self._gap.strikes(stream):
            return
        held = self._held.pop(stream, None)
        if held is None and self._reorder.strikes(stream):
            self._held[stream] = text
            return
        self._send(stream, text)
        if held is not None:
            self._send(stream, held)
        if self._duplicate.strikes(stream):
            self._send(stream, text)

    def _send(self, stream: str, text: str) -> None:
        listeners = self._listeners.get(stream)
        if not listeners:
            return
        broadcast(listeners, text)
        slow = [ws for ws in listeners if ws.transport.get_write_buffer_size() > self.config.client_buffer_max]
        for ws in slow:
            self.slow_clients += 1
            log.warning("feed_client_slow", peer=str(ws.remote_address), buffer_max=self.config.client_buffer_max)
            self._forget(ws)
            ws.transport.abort()  # a close frame would only queue up behind what it does not read


async def serve_feed(config: FeedServerConfig) -> None:
    """Serve until cancelled. Raises ConfigError."""
    async with FeedServer(config) as server:
        await server.serve_forever()
