"""The feed and the server against each other over real sockets, and the faults of real lines."""

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError, InvariantViolation
from node.feeds.base import FeedHealth, FeedState, MarketEvent, Quote, Trade
from node.feeds.binance import BinanceFeed
from node.feeds.replay import FeedServer, FeedServerConfig, default_capture, serve_feed
from node.feeds.synthetic import SyntheticConfig
from tests.support.captures import capture_lines, write_capture
from tests.support.strategy_context import BTCUSDT

LIMIT_S = 10.0
TRADES = "btcusdt@trade"


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - any condition, not one that could set an event
            await asyncio.sleep(0.002)


class Listener:
    """A feed with its consumer: everything it delivered."""

    def __init__(self, url: str, **settings: Any) -> None:
        settings = {"stale_after_s": 1.0, "backoff_min_s": 0.02, "backoff_max_s": 0.1} | settings
        self.feed = BinanceFeed(url, [BTCUSDT], rng=random.Random(1), **settings)
        self.events: list[MarketEvent] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.feed.events():
            self.events.append(event)

    @property
    def health(self) -> FeedHealth:
        return self.feed.health(boottime_ns())

    @property
    def trades(self) -> list[int]:
        return [e.seq for e in self.events if isinstance(e, Trade)]

    def state(self, state: FeedState) -> Callable[[], bool]:
        return lambda: self.health.state is state

    def counts(self) -> dict[str, int]:
        h = self.health
        return {k: v for k in ("gaps", "duplicates", "reordered", "malformed", "reconnects") if (v := getattr(h, k))}


@asynccontextmanager
async def listening(url: str, **settings: Any) -> AsyncIterator[Listener]:
    listener = Listener(url, **settings)
    try:
        yield listener
    finally:
        await listener.feed.close()
        async with asyncio.timeout(LIMIT_S):
            await listener.task


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """60 s of market: 50 messages a second."""
    return write_capture(tmp_path / "c.ws.gz", capture_lines(600))


def config(capture: Path | None, **change: Any) -> FeedServerConfig:
    return FeedServerConfig(**({"capture": capture, "generation": 0} | change))


# -- the plain case --


async def test_what_is_recorded_arrives_in_order_and_is_now(capture: Path):
    async with FeedServer(config(capture)) as server, listening(server.url) as listener:
        await until(lambda: len(listener.trades) >= 10)
        assert listener.health.state is FeedState.LIVE
        assert listener.health.age_s is not None and listener.health.age_s < 0.5
        assert listener.counts() == {}
        first = listener.trades[0]
        assert listener.trades == list(range(first, first + len(listener.trades)))
        newest = [e for e in listener.events if isinstance(e, Trade)][-1]
        assert abs(time.time() * 1000 - newest.venue_at_ms) < 1000
        assert boottime_ns() - newest.received_at < 10**9


async def test_there_is_one_market_for_all_and_who_comes_late_comes_in_the_middle(capture: Path):
    async with FeedServer(config(capture, speed=5)) as server, listening(server.url) as early:
        await until(lambda: len(early.trades) > 50)
        async with listening(server.url) as late:
            await until(lambda: len(late.trades) > 20)
            assert late.trades[0] > early.trades[0] + 40
            await until(lambda: late.trades[-1] <= early.trades[-1])
            assert set(late.trades) <= set(early.trades)


async def test_only_the_streams_asked_for_are_sent(capture: Path):
    async with (
        FeedServer(config(capture, speed=10)) as server,
        listening(server.url, streams=("bookTicker",)) as quotes,
        listening(server.url, streams=("depth@0ms", "trade")) as rest,
    ):
        await until(lambda: len(quotes.events) > 20 and len(rest.events) > 20)
        assert {type(e) for e in quotes.events} == {Quote}
        assert Quote not in {type(e) for e in rest.events}
        assert quotes.counts() == rest.counts() == {}


async def test_a_loop_has_no_seam(tmp_path: Path):
    short = write_capture(tmp_path / "short.ws", capture_lines(10))
    async with FeedServer(config(short, speed=10)) as server, listening(server.url) as listener:
        await until(lambda: len(listener.events) > 5 * 50)
        assert listener.counts() == {}
        first = listener.trades[0]
        assert listener.trades == list(range(first, first + len(listener.trades)))
        times = [e.venue_at_ms for e in listener.events if isinstance(e, Trade)]
        assert times == sorted(times)


async def test_faster_is_faster(tmp_path: Path):
    ten_seconds = write_capture(tmp_path / "c.ws", capture_lines(100))
    async with FeedServer(config(ten_seconds, speed=20)) as server, listening(server.url) as listener:
        await until(lambda: listener.events)
        started, first = time.monotonic(), server.sent
        await until(lambda: server.sent - first >= 500)
        assert 0.3 < time.monotonic() - started < 2.0
        assert listener.counts() == {}


async def test_a_recording_of_thousands_of_messages_parses_without_a_fault(tmp_path: Path):
    """The real one where it is at hand, else one of our own."""
    recorded = default_capture() or write_capture(tmp_path / "c.ws.gz", capture_lines(2000))
    async with FeedServer(config(recorded, speed=60)) as server, listening(server.url) as listener:
        await until(lambda: listener.health.messages > 8_000, 30)
        assert listener.counts() == {}
        assert listener.feed.conflated == 0
        assert {type(e).__name__ for e in listener.events} == {"Trade", "Quote", "DepthUpdate"}


async def test_without_a_recording_there_is_a_synthetic_market():
    async with FeedServer(config(None, speed=5)) as server, listening(server.url) as listener:
        await until(lambda: len(listener.events) > 300)
        assert listener.counts() == {}
        assert listener.health.state is FeedState.LIVE


# -- injected faults, counted exactly --


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda s: s.gap(3, TRADES), {"gaps": 1}),
        (lambda s: s.gap(3, "btcusdt@depth@100ms"), {"gaps": 1}),
        (lambda s: s.duplicate(5, TRADES), {"duplicates": 5}),
        (lambda s: s.duplicate(9), {"duplicates": 9}),
        (lambda s: s.reorder(4, TRADES), {"gaps": 4, "reordered": 4}),
        (lambda s: s.reorder(4, "btcusdt@bookTicker"), {"reordered": 4}),
        (lambda s: [s.inject(x) for x in ("{", "[]", '{"stream":"x@trade","data":{}}')], {"malformed": 3}),
    ],
)
async def test_every_fault_is_counted_once_and_nothing_wrong_is_delivered(capture: Path, fault, expected):
    async with FeedServer(config(capture, speed=10)) as server, listening(server.url) as listener:
        await until(lambda: listener.events)
        fault(server)
        await until(lambda: listener.counts() == expected)
        seen = len(listener.events)
        await until(lambda: len(listener.events) > seen + 50)
        assert listener.counts() == expected
        assert listener.trades == sorted(set(listener.trades))
        missing = sum(s.missing for s in listener.feed.stream_health(boottime_ns()) if s.name == TRADES)
        span = listener.trades[-1] - listener.trades[0] + 1
        assert span - len(listener.trades) == missing


# -- silence --


async def test_a_line_that_falls_silent_is_stale_within_its_bound(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        listening(server.url, stale_after_s=0.3, reconnect_after_s=60) as listener,
    ):
        await until(listener.state(FeedState.LIVE))
        server.freeze()
        await until(listener.state(FeedState.STALE))
        age = listener.health.age_s
        assert age is not None and 0.29 < age < 0.5  # the messages of one step are 4 ms apart
        assert server.clients == 1, "the connection is still open"
        assert "silent" in listener.health.reason
        server.thaw()
        await until(listener.state(FeedState.LIVE))
        assert listener.health.reconnects == 0
        assert listener.health.gaps > 0, "the market went on meanwhile"


async def test_a_silent_connection_is_given_up_and_a_new_one_brings_the_market_back(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        listening(server.url, stale_after_s=0.3, reconnect_after_s=0.8) as listener,
    ):
        await until(listener.state(FeedState.LIVE))
        server.freeze(also_new=False)
        await until(listener.state(FeedState.STALE))
        await until(lambda: listener.health.reconnects > 0)
        await until(listener.state(FeedState.LIVE))
        assert server.clients == 1
        assert listener.trades == sorted(set(listener.trades))


async def test_a_frozen_server_gives_new_connections_nothing_either_until_it_thaws(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        listening(server.url, stale_after_s=0.1, reconnect_after_s=0.2) as listener,
    ):
        await until(listener.state(FeedState.LIVE))
        server.freeze()
        await until(lambda: listener.health.reconnects >= 2)
        seen = len(listener.events)
        await until(lambda: listener.health.reconnects >= 4)
        assert len(listener.events) == seen
        server.thaw()
        await until(listener.state(FeedState.LIVE))


async def test_one_dead_stream_among_live_ones_is_noticed(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        listening(server.url, stale_after_s=0.3, trade_stale_after_s=0.5) as listener,
    ):
        await until(listener.state(FeedState.LIVE))
        server.gap(10_000, TRADES)
        await until(listener.state(FeedState.STALE))
        assert TRADES in listener.health.reason
        assert listener.health.age_s is not None and listener.health.age_s < 0.3


class HalfOpen:
    """A wire in the middle that can be cut so that neither end is told."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> "HalfOpen":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers = (writer, there_writer)  # held open
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass(source, sink)))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"stale_after_s": 0.3, "reconnect_after_s": 0.8}, "given up"),
        ({"stale_after_s": 60.0, "ping_interval_s": 0.2, "ping_timeout_s": 0.2}, "keepalive ping timeout"),
    ],
)
async def test_a_half_open_connection_is_noticed(capture: Path, settings: dict[str, float], why: str):
    async with (
        FeedServer(config(capture, ping_interval_s=0.2, ping_timeout_s=0.2)) as server,
        HalfOpen(server.port) as wire,
    ):
        async with listening(wire.url, **settings) as listener:
            await until(listener.state(FeedState.LIVE))
            with capture_logs() as logs:
                wire.cut()
                await until(lambda: listener.health.reconnects > 0)
                await until(listener.state(FeedState.LIVE))
        reasons = [entry["reason"] for entry in logs if entry["event"] == "feed_lost"]
        assert any(why in reason for reason in reasons)


# -- lost connections --


async def test_a_killed_server_is_down_and_its_successor_is_found(capture: Path):
    first = FeedServer(config(capture, speed=5))
    await first.start()
    port = first.port
    async with listening(first.url) as listener:
        await until(lambda: len(listener.trades) > 5)
        last = listener.trades[-1]
        await first.close()
        await until(listener.state(FeedState.DOWN))
        assert "1001" in listener.health.reason
        async with FeedServer(config(capture, port=port, generation=5, speed=5)):
            await until(listener.state(FeedState.LIVE))
            assert listener.health.reconnects == 1
            await until(lambda: listener.trades[-1] > last)
            assert listener.trades == sorted(set(listener.trades))
            await until(lambda: listener.health.gaps == 2)  # trades and depth; a missing quote cannot be seen


async def test_a_successor_that_numbers_anew_is_believed_after_a_while(capture: Path):
    first = FeedServer(config(capture, generation=9, speed=5))
    await first.start()
    port = first.port
    async with listening(first.url, stale_after_s=3.0) as listener:
        await until(lambda: len(listener.trades) > 5)
        last = listener.trades[-1]
        await first.close()
        async with FeedServer(config(capture, port=port, generation=0, speed=5)):
            await until(lambda: listener.trades[-1] < last)
            await until(listener.state(FeedState.LIVE))
            assert listener.health.gaps == 3


async def test_the_end_of_a_connections_day_is_survived(capture: Path):
    async with FeedServer(config(capture, connection_max_s=0.3)) as server, listening(server.url) as listener:
        await until(lambda: listener.health.reconnects >= 2)
        await until(listener.state(FeedState.LIVE))
        assert listener.trades == sorted(set(listener.trades))
        assert listener.health.malformed == 0


async def test_everyone_is_sent_away_and_comes_back(capture: Path):
    async with FeedServer(config(capture)) as server, listening(server.url) as a, listening(server.url) as b:
        await until(lambda: a.health.healthy and b.health.healthy)
        await server.disconnect_all()
        await until(lambda: a.health.reconnects == b.health.reconnects == 1)
        await until(lambda: a.health.healthy and b.health.healthy)


async def test_the_back_off_grows_to_its_bound_with_jitter():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{closed.getsockname()[1]}"
        with capture_logs() as logs:
            async with listening(url, backoff_min_s=0.01, backoff_max_s=0.08) as listener:
                await until(lambda: sum(e["event"] == "feed_lost" for e in logs) >= 7)
                assert listener.health.state is FeedState.DOWN
                assert "Connect" in listener.health.reason
    delays = [e["retry_in_s"] for e in logs if e["event"] == "feed_lost"]
    for n, delay in enumerate(delays):
        ceiling = min(0.08, 0.01 * 2**n)
        assert ceiling / 2 - 0.001 <= delay <= ceiling + 0.001
    assert len({round(d / min(0.08, 0.01 * 2**n), 2) for n, d in enumerate(delays)}) > 3


async def test_a_server_that_never_answers_the_handshake_is_given_up():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with listening(url, connect_timeout_s=0.2) as listener:
        await until(listener.state(FeedState.DOWN))
        assert "timed out" in listener.health.reason
    server.close()
    await server.wait_closed()


async def test_a_message_beyond_the_size_bound_costs_the_connection_and_not_the_process(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        listening(server.url, message_size_max=2000) as listener,
    ):
        await until(listener.state(FeedState.LIVE))
        server.inject("x" * 3000)
        await until(lambda: listener.health.reconnects == 1)
        await until(listener.state(FeedState.LIVE))


# -- the consumer --


async def test_a_slow_consumer_gets_every_trade_and_the_newest_quote(capture: Path):
    async with FeedServer(config(capture, speed=20)) as server:
        feed = BinanceFeed(
            server.url,
            [BTCUSDT],
            stale_after_s=1,
            rng=random.Random(1),
            buffer_size=400,
            streams=("trade", "bookTicker"),
        )
        events = feed.events()
        received = [await anext(events)]
        await until(lambda: feed.conflated > 100)
        assert feed.health(boottime_ns()).healthy, "the socket is read all the same"
        for _ in range(100):
            received.append(await anext(events))
        await events.aclose()
        seqs = [e.seq for e in received if isinstance(e, Trade)]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert sum(isinstance(e, Quote) for e in received) < len(seqs)
        assert feed.health(boottime_ns()).gaps == 0


async def test_trades_that_a_dead_slow_consumer_missed_are_shown_as_gaps(capture: Path):
    async with FeedServer(config(capture, speed=20)) as server:
        feed = BinanceFeed(
            server.url, [BTCUSDT], stale_after_s=1, rng=random.Random(1), buffer_size=20, streams=("trade",)
        )
        events = feed.events()
        await anext(events)
        await until(lambda: feed.health(boottime_ns()).gaps > 0)
        await events.aclose()


async def test_close_ends_the_events_and_leaves_nothing_behind(capture: Path):
    before = asyncio.all_tasks()
    async with FeedServer(config(capture)) as server:
        async with listening(server.url) as listener:
            await until(lambda: listener.events)
            with pytest.raises(InvariantViolation, match="one consumer"):
                await anext(listener.feed.events())
            await listener.feed.close()
            async with asyncio.timeout(LIMIT_S):
                await listener.task
            await listener.feed.close()
        await until(lambda: server.clients == 0)
    await until(lambda: asyncio.all_tasks() <= before)


# -- the server --


async def test_a_client_that_does_not_read_is_thrown_out_and_the_others_do_not_notice():
    market = SyntheticConfig(messages_per_s=2000)
    async with (
        FeedServer(config(None, synthetic=market, speed=4, client_buffer_max=50_000)) as server,
        listening(server.url) as good,
    ):
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", server.port))
        narrow.setblocking(False)
        url = f"{server.url}/stream?streams={TRADES}/btcusdt@bookTicker"
        async with connect(url, sock=narrow, max_queue=1, ping_interval=None, proxy=None, compression=None) as slow:
            await until(lambda: server.slow_clients == 1, 30)
            await until(lambda: server.clients == 1)
            with pytest.raises(ConnectionClosed):
                while True:
                    await slow.recv()
        assert good.health.healthy
        assert good.health.reconnects == 0
        assert good.health.gaps == 0


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/", "use /stream?streams="),
        ("/ws/btcusdt@trade", "use /stream?streams="),
        ("/stream", "use /stream?streams="),
        ("/stream?streams=", "use /stream?streams="),
        ("/stream?streams=btcusdt@trade/ethusdt@trade", "no stream ethusdt@trade; available: btcusdt@bookTicker"),
    ],
)
async def test_a_request_that_could_bring_no_data_is_refused_with_what_there_is(capture: Path, path: str, says: str):
    async with FeedServer(config(capture)) as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url + path, proxy=None)
        assert refused.value.response.status_code == 404
        assert says in (refused.value.response.body or b"").decode()


async def test_a_feed_that_is_refused_says_why(capture: Path):
    async with FeedServer(config(capture)) as server, listening(server.url) as listener:
        del listener
        other = BinanceFeed(
            server.url,
            [type(BTCUSDT)("ETHUSDT", BTCUSDT.tick_size, BTCUSDT.lot_size)],
            stale_after_s=1,
            rng=random.Random(1),
        )
        reading = asyncio.create_task(anext(other.events()))
        await until(lambda: other.health(boottime_ns()).state is FeedState.DOWN)
        reason = other.health(boottime_ns()).reason
        assert "404" in reason
        assert "available: btcusdt@bookTicker" in reason
        await other.close()
        with pytest.raises(StopAsyncIteration):
            await reading


async def test_serving_fails_with_words_for_a_taken_port_and_a_missing_recording(capture: Path, tmp_path: Path):
    async with FeedServer(config(capture)) as server:
        with pytest.raises(ConfigError, match=f"{server.port}.*another port"):
            await serve_feed(config(capture, port=server.port))
    with pytest.raises(ConfigError, match=r"none\.ws does not exist"):
        await serve_feed(config(tmp_path / "none.ws"))


async def test_serving_ends_when_it_is_cancelled(capture: Path):
    serving = asyncio.create_task(serve_feed(config(capture)))
    await asyncio.wait([serving], timeout=0.2)
    assert not serving.done()
    serving.cancel()
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(asyncio.CancelledError):
            await serving


@pytest.mark.parametrize("change", [{"speed": 0}, {"speed": -1}, {"start": "now"}, {"client_buffer_max": 0}])
def test_a_wrong_setting_is_named_with_its_value(change: dict[str, Any]):
    ((key, value),) = change.items()
    with pytest.raises(ConfigError, match=key.split("_")[-1]) as error:
        FeedServerConfig(**change)
    assert str(value) in str(error.value)


async def test_a_market_that_cannot_keep_up_with_its_clock_goes_on_from_where_it_is(capture: Path):
    """At 10,000 times the pace the times inside stay near now, instead of falling behind for ever."""
    with capture_logs() as logs:
        async with (
            FeedServer(config(capture, speed=10_000)) as server,
            listening(server.url, streams=("trade",)) as listener,
        ):
            late = lambda: [e for e in logs if e["event"] == "feed_server_late"]  # noqa: E731
            await until(lambda: len(late()) == 2, 30)
            sent = server.sent
            await until(lambda: server.sent > sent + 2_000)
            assert len(late()) <= 3
            assert listener.trades == sorted(set(listener.trades))


async def test_messages_on_the_wire_are_binances_own_shape(capture: Path):
    async with (
        FeedServer(config(capture)) as server,
        connect(f"{server.url}/stream?streams=btcusdt@trade", proxy=None) as ws,
    ):
        message = json.loads(await asyncio.wait_for(ws.recv(), LIMIT_S))
    assert message["stream"] == "btcusdt@trade"
    assert message["data"].keys() >= {"e", "E", "T", "t", "p", "q", "m", "s"}
