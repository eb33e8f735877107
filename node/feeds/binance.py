"""Binance's public market streams as a Feed: spot and USD-M, live or from `baton feed serve`.

Touches one websocket. Reads trades, top of book and depth from the combined stream, turns prices and sizes into
ticks and lots exactly, lets `quality.py` judge every message, and hands on what is new, in order. It reconnects by
itself, and decides nothing about trading.

- Nothing that comes over the wire can stop it: what cannot be read is counted, logged at a limited rate, dropped.
- A connection that stays open but delivers nothing new (the silent websocket death that bots are known for) is first
  shown as STALE, then replaced; a half-open one is also found by pings.
- The consumer never blocks the socket. When it is slower than the market for long, old quotes are merged into the
  newest; a trade that has to go is counted as a gap, never lost in silence.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError, InvariantViolation
from cluster.core.ids import NS_PER_S, ns
from node.feeds.base import DepthUpdate, FeedHealth, MarketEvent, Quote, Trade
from node.feeds.quality import (
    DepthQuality,
    FeedQuality,
    QuoteQuality,
    StreamHealth,
    StreamQuality,
    TradeQuality,
    Verdict,
)
from node.types import Instrument

log = structlog.get_logger()

STREAM_KINDS = ("trade", "bookTicker", "depth@100ms")

_LOG_EVERY_NS = 10 * NS_PER_S
_STABLE_AFTER_NS = 10 * NS_PER_S
"""A connection that lived this long was good: the next back-off starts from the bottom again."""

_UNITS_CACHE_MAX = 65_536
Message = dict[str, Any]
"""A JSON object as it came: nothing in it is proved yet."""

_NUMBER = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_DELIVERED = (Verdict.IN_ORDER, Verdict.GAP, Verdict.RESTART)


def canonical(stream: str) -> str:
    """`btcusdt@depth@0ms` -> `btcusdt@depth`: the same stream at another pace is the same stream."""
    return "@".join(stream.split("@", 2)[:2])


# -- from the wire to integers ----------------------------------------------------------------------------


class Malformed(Exception):
    """A message that cannot be what it says it is."""


class _Units:
    """Decimal text to whole steps, by integer arithmetic. The same few texts come again and again, hence the cache.

    exact: a value between two steps is Malformed; else it is rounded down. Prices are exact. Sizes are not ours, and
    a venue that once had finer lots still shows the dust of that time: the recorded BTCUSDT book has millionths.
    """

    def __init__(self, step: Decimal, what: str, step_name: str, *, exact: bool) -> None:
        exponent = step.as_tuple().exponent
        if not isinstance(exponent, int) or step <= 0:
            raise ConfigError(f"{step_name} {step} must be a number above 0")
        self._decimals = max(0, -exponent)
        self._step = int(step.scaleb(self._decimals))
        self._what, self._step_name, self._step_text, self._exact = what, step_name, str(step), exact
        self._cache: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Raises Malformed for what is no plain decimal number, or (exact) lies between two steps."""
        units = self._cache.get(text)
        return self._convert(text) if units is None else units

    def _convert(self, text: str) -> int:
        if type(text) is not str or not _NUMBER.fullmatch(text):
            raise Malformed(f"{self._what} {text!r} is not a decimal number in quotes")
        whole, _, fraction = text.partition(".")
        kept = fraction[: self._decimals].ljust(self._decimals, "0")
        units, rest = divmod(int(whole + kept), self._step)
        if self._exact and (rest or fraction[self._decimals :].strip("0")):
            raise Malformed(f"{self._what} {text} is not a multiple of {self._step_name} {self._step_text}")
        if len(self._cache) >= _UNITS_CACHE_MAX:
            self._cache.clear()
        self._cache[text] = units
        return units


def _integer(value: object, name: str) -> int:
    if type(value) is not int:  # bool is an int, and is none here
        raise Malformed(f"{name} is {value!r}, not a whole number")
    return value


class _Line:
    """One stream of one instrument: reads its messages and knows their order."""

    quality: StreamQuality

    def __init__(self, instrument: Instrument) -> None:
        self.symbol = instrument.symbol
        self.ticks = _Units(instrument.tick_size, f"{instrument.symbol} price", "tick_size", exact=True)
        self.lots = _Units(instrument.lot_size, f"{instrument.symbol} quantity", "lot_size", exact=False)

    def read(self, data: Message, at: int) -> tuple[Verdict, MarketEvent | None]:
        """The event is None for a message that has its place in the order but is not for the strategy."""
        raise NotImplementedError


class _TradeLine(_Line):
    def __init__(self, instrument: Instrument, name: str, stale_after_ns: int) -> None:
        super().__init__(instrument)
        self.quality: TradeQuality = TradeQuality(name, stale_after_ns)

    def read(self, data: Message, at: int) -> tuple[Verdict, MarketEvent | None]:
        seq = _integer(data["t"], "t")
        # USD-M also reports transfers of the insurance fund and auto-deleveraging here, at prices far off the
        # market or at 0: they take an id, but nobody traded (QuantConnect/Lean.Brokerages.Binance issue 28).
        if data.get("X", "MARKET") != "MARKET":
            return self.quality.see(seq, at), None
        maker = data["m"]
        if type(maker) is not bool:
            raise Malformed(f"m is {maker!r}, not true or false")
        event = Trade(
            self.symbol,
            seq,
            self.ticks(data["p"]),
            self.lots(data["q"]),
            maker,
            _integer(data["T"], "T"),
            at,
        )
        return self.quality.see(seq, at), event


class _QuoteLine(_Line):
    def __init__(self, instrument: Instrument, name: str, stale_after_ns: int) -> None:
        super().__init__(instrument)
        self.quality: QuoteQuality = QuoteQuality(name, stale_after_ns)

    def read(self, data: Message, at: int) -> tuple[Verdict, MarketEvent | None]:
        seq = _integer(data["u"], "u")
        ticks, lots = self.ticks, self.lots
        event = Quote(self.symbol, seq, ticks(data["b"]), lots(data["B"]), ticks(data["a"]), lots(data["A"]), at)
        return self.quality.see(seq, at), event


class _DepthLine(_Line):
    def __init__(self, instrument: Instrument, name: str, stale_after_ns: int) -> None:
        super().__init__(instrument)
        self.quality: DepthQuality = DepthQuality(name, stale_after_ns)

    def _levels(self, levels: list[list[str]]) -> tuple[tuple[int, int], ...]:
        ticks, lots = self.ticks, self.lots
        return tuple([(ticks(price), lots(qty)) for price, qty in levels])

    def read(self, data: Message, at: int) -> tuple[Verdict, MarketEvent | None]:
        first, last = _integer(data["U"], "U"), _integer(data["u"], "u")
        if last < first:
            raise Malformed(f"depth update from U {first} to u {last}")
        previous = _integer(data["pu"], "pu") if "pu" in data else None
        event = DepthUpdate(
            self.symbol,
            first,
            last,
            self._levels(data["b"]),
            self._levels(data["a"]),
            _integer(data["E"], "E"),
            at,
        )
        return self.quality.see(first, last, previous, at), event


_LINES: dict[str, Callable[[Instrument, str, int], _Line]] = {
    "trade": _TradeLine,
    "bookTicker": _QuoteLine,
    "depth": _DepthLine,
}


class _Limited:
    """Log lines at a limited rate: a venue gone mad must not fill the disk."""

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}  # event -> [next allowed Instant, suppressed]

    def warning(self, event: str, at: int, **fields: object) -> None:
        entry = self._seen.setdefault(event, [0, 0])
        if at < entry[0]:
            entry[1] += 1
            return
        log.warning(event, **fields, suppressed=entry[1])
        entry[:] = [at + _LOG_EVERY_NS, 0]


class Decoder:
    """Text of the combined stream in, market events out; never raises for what the text says."""

    def __init__(
        self, instruments: Sequence[Instrument], kinds: Sequence[str], stale_after_ns: int, trade_stale_after_ns: int
    ) -> None:
        self.names: list[str] = []
        self._lines: dict[str, _Line] = {}
        for instrument in instruments:
            for kind in kinds:
                make = _LINES.get(canonical(kind).partition("@")[0])
                if make is None:
                    raise ConfigError(f"feed stream {kind!r} is unknown; use one of: {', '.join(STREAM_KINDS)}")
                name = f"{instrument.symbol.lower()}@{kind}"
                bound = trade_stale_after_ns if make is _TradeLine else stale_after_ns
                if self._lines.setdefault(canonical(name), made := make(instrument, name, bound)) is not made:
                    raise ConfigError(f"feed stream {name!r} is listed twice")
                self.names.append(name)
        if not self.names:
            raise ConfigError("a feed needs at least one instrument and one stream")
        self.quality = FeedQuality([line.quality for line in self._lines.values()], stale_after_ns)
        self._by_name = {name: self._lines[canonical(name)] for name in self.names}
        self._limited = _Limited()
        self._read_json = json.JSONDecoder().raw_decode

    def decode(self, text: str, at: int) -> MarketEvent | None:
        """The event in `text` if it is new, else None. at: Instant of its arrival."""
        try:
            message, end = self._read_json(text)
            if end != len(text):
                raise Malformed("text after the end of the JSON value")
            if "stream" not in message:
                self._notice(message, at)
                return None
            stream, data = message["stream"], message["data"]
            line = self._by_name.get(stream)
            if line is None:
                line = self._lines[canonical(stream)]
            if data["s"] != line.symbol:
                raise Malformed(f"symbol {data['s']!r} in stream {stream}")
            verdict, event = line.read(data, at)
        except (Malformed, ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
            # Each of these is what wrong JSON, a missing field, a wrong type or an unknown stream looks like here.
            self.quality.malformed += 1
            self._limited.warning(
                "feed_message_malformed",
                at,
                reason=f"{type(wrong).__name__}: {wrong}"[:200],
                text=text[:200],
            )
            return None
        if verdict is not Verdict.IN_ORDER:
            quality = line.quality
            missing = quality.last_gap if verdict in _DELIVERED else None
            self._limited.warning("feed_out_of_order", at, stream=stream, verdict=verdict.value, missing=missing)
            if verdict not in _DELIVERED:
                return None
        return event

    def _notice(self, message: Message, at: int) -> None:
        """A message about the connection, not the market: a reply to a subscription, or the news of a shutdown."""
        if "error" in message or message.get("e") == "serverShutdown":
            log.warning("feed_venue_notice", message=str(message)[:200])
        elif "result" not in message and "e" not in message:
            raise Malformed("neither market data nor a notice")


# -- between the socket and the consumer ------------------------------------------------------------------


class _Buffer:
    """Bounded, in order. Full: every quote but the newest of its symbol goes (counted as `conflated`); only if that
    makes too little room, the oldest events of any kind (`dropped`)."""

    def __init__(self, size: int) -> None:
        self._events: deque[MarketEvent] = deque()
        self._size = size
        self._waiter: asyncio.Future[None] | None = None
        self.conflated = 0
        self.dropped = 0

    def put(self, event: MarketEvent) -> None:
        if len(self._events) >= self._size:
            self._make_room()
        self._events.append(event)
        self.wake()

    def _make_room(self) -> None:
        before = len(self._events)
        newest = {e.symbol: e for e in self._events if type(e) is Quote}
        self._events = deque(e for e in self._events if type(e) is not Quote or newest[e.symbol] is e)
        self.conflated += before - len(self._events)
        while len(self._events) > self._size * 3 // 4:  # some slack, so that the next put does not do all this again
            self._events.popleft()
            self.dropped += 1

    def pop(self) -> MarketEvent | None:
        return self._events.popleft() if self._events else None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until there is an event, or `wake()`."""
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class BinanceFeed:
    """node.feeds.base.Feed over Binance's combined stream. One consumer at a time reads `events()`."""

    def __init__(
        self,
        url: str,
        instruments: Sequence[Instrument],
        *,
        stale_after_s: float,
        trade_stale_after_s: float | None = None,
        reconnect_after_s: float | None = None,
        streams: Sequence[str] = STREAM_KINDS,
        rng: random.Random,
        backoff_min_s: float = 0.2,
        backoff_max_s: float = 10.0,
        connect_timeout_s: float = 5.0,
        ping_interval_s: float = 10.0,
        ping_timeout_s: float = 10.0,
        message_size_max: int = 2**20,
        buffer_size: int = 4096,
    ) -> None:
        """url: scheme, host and port, and a path prefix if the venue wants one: `wss://stream.binance.com:9443`.

        stale_after_s: quotes and depth silent for longer make the feed STALE. trade_stale_after_s: the same for
        trades, which may pause in a market that is alive (default 10 x stale_after_s). reconnect_after_s: silent for
        that long (trades: in proportion), the connection is given up (default 3 x stale_after_s, at least 3).
        rng: jitter of the back-off. Raises ConfigError.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.query:
            raise ConfigError(f"feed url {url!r} is not of the form wss://host:port; the streams are added by Baton")
        if stale_after_s <= 0 or not 0 < backoff_min_s <= backoff_max_s or buffer_size < 2:
            raise ConfigError(
                f"feed: stale_after_s {stale_after_s} must be above 0, 0 < backoff_min_s {backoff_min_s} <= "
                f"backoff_max_s {backoff_max_s}, and buffer_size {buffer_size} at least 2"
            )
        trade_stale = 10 * stale_after_s if trade_stale_after_s is None else trade_stale_after_s
        self._decoder = Decoder(instruments, streams, ns(stale_after_s), ns(trade_stale))
        self._quality = self._decoder.quality
        base = url.rstrip("/").removesuffix("/stream")
        self.url = f"{base}/stream?streams={'/'.join(self._decoder.names)}"
        self._loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._stale_after_s = stale_after_s
        if reconnect_after_s is None:
            reconnect_after_s = max(3.0, 3 * stale_after_s)
        self._silence_max = max(1.0, reconnect_after_s / stale_after_s)
        self._rng = rng
        self._backoff_min_s, self._backoff_max_s = backoff_min_s, backoff_max_s
        self._connect_timeout_s = connect_timeout_s
        self._ping_interval_s, self._ping_timeout_s = ping_interval_s, ping_timeout_s
        self._message_size_max = message_size_max
        self._buffer = _Buffer(buffer_size)
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._stale_logged = False
        self._gave_up = ""

    # -- the Feed protocol --

    async def events(self) -> AsyncIterator[MarketEvent]:
        """Market events in order, until `close()`. A defect in the reader itself surfaces here."""
        if self._reader is not None:
            raise InvariantViolation("BinanceFeed.events() is already being read; one consumer at a time")
        self._reader = reader = asyncio.create_task(self._run(), name="feed-binance")
        reader.add_done_callback(lambda _: self._buffer.wake())
        try:
            while True:
                while (event := self._buffer.pop()) is not None:
                    yield event
                if reader.done():
                    if not reader.cancelled():
                        reader.result()
                    return
                await self._buffer.wait()
        finally:
            await self.close()
            self._reader = None

    def health(self, now: int) -> FeedHealth:
        self._quality.dropped = self._buffer.dropped
        return self._quality.health(now)

    def stream_health(self, now: int) -> list[StreamHealth]:
        return self._quality.stream_health(now)

    @property
    def conflated(self) -> int:
        """Quotes merged into newer ones because the consumer was slow. Only rises."""
        return self._buffer.conflated

    async def close(self) -> None:
        """End the connection and `events()`. Again: nothing."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.wait([reader])

    # -- the connection --

    async def _run(self) -> None:
        failures = 0
        while True:
            started = boottime_ns()
            reason = await self._one_connection()
            self._quality.disconnected(reason)
            if boottime_ns() - started >= _STABLE_AFTER_NS:
                failures = 0
            # The cap keeps us far from Binance's limit of 300 connection attempts in 5 minutes; the jitter keeps
            # the nodes of a cluster from arriving together.
            ceiling = min(self._backoff_max_s, self._backoff_min_s * 2 ** min(failures, 20))
            delay = self._rng.uniform(0.5, 1.0) * ceiling
            failures += 1
            log.warning("feed_lost", url=self.url, reason=reason, retry_in_s=round(delay, 3))
            await asyncio.sleep(delay)

    async def _one_connection(self) -> str:
        """Read one connection to its end; return why it ended."""
        try:
            async with connect(
                self.url,
                open_timeout=self._connect_timeout_s,
                ping_interval=self._ping_interval_s,
                ping_timeout=self._ping_timeout_s,
                close_timeout=1.0,
                max_size=self._message_size_max,
                max_queue=1024,  # we always read; this is only the slack of one burst
                compression=None,  # inflating costs more than the bytes are worth
                proxy=None if self._loopback else True,
            ) as ws:
                return await self._read(ws)
        except InvalidStatus as refused:
            body = (refused.response.body or b"")[:200].decode(errors="replace").strip()
            return f"the server refused: HTTP {refused.response.status_code} {body}".strip()
        except ConnectionClosed as closed:  # while closing
            return _why_closed(closed)
        except (OSError, InvalidHandshake, EOFError) as failed:  # TimeoutError is an OSError
            return f"{type(failed).__name__}: {failed}".rstrip(": ")

    async def _read(self, ws: ClientConnection) -> str:
        self._gave_up = ""
        self._quality.connected(boottime_ns())
        log.info("feed_connected", url=self.url, reconnects=self._quality.reconnects)
        self._watch_later(ws)
        decode, put, recv = self._decoder.decode, self._buffer.put, ws.recv
        try:
            while True:
                text = await recv(True)
                event = decode(text, boottime_ns())
                if event is not None:
                    put(event)
        except ConnectionClosed as closed:
            return self._gave_up or _why_closed(closed)
        finally:
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch_later(self, ws: ClientConnection) -> None:
        self._watcher = asyncio.get_running_loop().call_later(self._stale_after_s / 2, self._watch, ws)

    def _watch(self, ws: ClientConnection) -> None:
        """Now and then: say that the line fell silent, and give it up when it stays so."""
        now = boottime_ns()
        silence = self._quality.silence(now)
        if silence >= self._silence_max:
            self._gave_up = f"given up: {self._quality.health(now).reason}"
            ws.transport.abort()  # a close handshake would wait for a peer that is not there
            return
        stale = silence > 1.0
        if stale != self._stale_logged:
            self._stale_logged = stale
            log.warning("feed_stale" if stale else "feed_fresh", url=self.url, reason=self._quality.health(now).reason)
        self._watch_later(ws)


def _why_closed(closed: ConnectionClosed) -> str:
    """Words for the end of a connection; Binance ends every one after 24 hours."""
    if closed.rcvd is not None and closed.rcvd_then_sent is not False:
        return f"closed by the server: {closed.rcvd.code} {closed.rcvd.reason}".strip()
    if closed.sent is not None:  # an unanswered ping, a message too big, text that is none
        return f"given up: {closed.sent.code} {closed.sent.reason}".strip()
    return f"connection lost: {closed.__cause__ or 'no close frame'}"
