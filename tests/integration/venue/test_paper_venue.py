"""The real server and the real adapter where the contract does not reach: hostile input, keys, silence, faults."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.core.errors import ConfigError, InvariantViolation, JournalBroken, OutcomeUnknown, Unreachable
from cluster.rpc import paper_venue_pb2 as pb
from cluster.rpc.paper_venue_pb2_grpc import PaperVenueServicer, PaperVenueStub, add_PaperVenueServicer_to_server
from node.paper_venue import wire
from node.paper_venue.engine import Limits
from node.paper_venue.profile import parse_profile
from node.paper_venue.record import FILE_NAME, read_record
from node.paper_venue.server import VenueServerConfig, run_venue
from node.types import (
    Accepted,
    ClientOrderId,
    Instrument,
    NotSent,
    Refused,
    Side,
    StreamDown,
    StreamUp,
    Unknown,
    VenueOrderEvent,
)
from node.venues.base import Unavailable, Venue
from node.venues.paper import PaperVenue, Ticket
from tests.support.paper import (
    ETH,
    INSTRUMENTS,
    SYMBOL,
    WAIT_S,
    RunningVenue,
    eventually,
    ioc,
    limit,
    next_event,
    order,
    quote,
    running_venue,
)
from tests.support.proxy import Proxy

METADATA = ((wire.ACCOUNT, "main"), (wire.API_KEY, "key"), (wire.NODE, "raw"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningVenue]:
    async with running_venue(tmp_path) as server:
        await server.feed.say(quote(990, 1000))
        yield server


@pytest.fixture
async def channel(server: RunningVenue) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


_: type[Venue] = PaperVenue  # the type checker's word that the whole interface is there


async def connected(server: RunningVenue, **more: Any) -> PaperVenue:
    venue = server.adapter(**more)
    await venue.connect()
    return venue


# -- input that no adapter of ours would send -----------------------------------------------------------------------


async def test_bytes_that_are_no_request_end_that_stream_only(server: RunningVenue, channel: Any) -> None:
    venue = await connected(server)
    raw = channel.stream_stream("/baton.paper.v1.PaperVenue/Session")(metadata=METADATA)
    await raw.write(b"\xff\xff\xff nonsense")
    with pytest.raises(grpc.aio.AioRpcError):
        async with asyncio.timeout(WAIT_S):
            await raw.read()
    assert [(n["node"], n["reason"]) for n in server.lines() if n["kind"] == "malformed"] == [
        ("raw", "invalid_request")
    ]
    assert isinstance(await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result(), Accepted)
    await venue.close()


async def test_malformed_requests_are_answered_and_recorded(server: RunningVenue, channel: Any) -> None:
    stream = PaperVenueStub(channel).Session(metadata=METADATA)  # type: ignore[no-untyped-call]
    requests = [
        pb.Request(request_id=1, token=1),
        pb.Request(request_id=2, token=1, new=pb.NewOrder()),
        pb.Request(request_id=3, token=1, new=pb.NewOrder(client_order_id="x" * 5000, decision_id="y" * 5000)),
        pb.Request(request_id=4, token=2**64 - 1, new=pb.NewOrder(spec=pb.Spec(qty_lots=-(2**63)))),
        pb.Request(request_id=5, token=1, cancel=pb.Cancel(client_order_id="\x00🦆")),
    ]  # fmt: skip
    replies = []
    for request in requests:
        await stream.write(request)
    async with asyncio.timeout(WAIT_S):
        for _ in requests:
            replies.append(await stream.read())
    await stream.done_writing()
    assert [r.request_id for r in replies] == [1, 2, 3, 4, 5]
    assert [r.code for r in replies] == [
        "invalid_request",
        "invalid_order",
        "invalid_order",
        "invalid_order",
        "stale_token",  # the fourth carried the highest token there is
    ]
    recorded = [n for n in server.lines() if n["kind"] != "started"]
    assert [(n["venue_seq"], n["reason"]) for n in recorded] == [(r.venue_seq, r.code) for r in replies]
    assert max(len(n["client_order_id"] or "") for n in recorded) <= 256


async def test_request_over_the_size_limit_ends_that_stream_only(server: RunningVenue, channel: Any) -> None:
    stub = PaperVenueStub(channel)  # type: ignore[no-untyped-call]
    stream = stub.Session(metadata=METADATA)
    await stream.write(pb.Request(request_id=1, new=pb.NewOrder(decision_id="x" * 100_000)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(WAIT_S):
            await stream.read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.ServerTime(pb.ServerTimeRequest(), metadata=METADATA, timeout=WAIT_S)).unix_ns > 0


async def test_client_that_never_reads_its_replies_is_held_back(server: RunningVenue) -> None:
    """1. It writes and does not read. 2. Its window fills, then its places. 3. The server stops reading it.
    4. Others are served. 5. It reads at last, and nothing is missing."""
    venue = await connected(server)
    small_window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=small_window) as channel:
        stream = PaperVenueStub(channel).Session(metadata=METADATA)  # type: ignore[no-untyped-call]
        written = 0

        async def flood() -> None:
            nonlocal written
            while written < 20_000:
                new = pb.NewOrder(client_order_id="x" * 200, decision_id="y" * 5000)
                await stream.write(pb.Request(request_id=written + 1, token=1, new=new))
                written += 1

        flooder = asyncio.create_task(flood())
        last = -1
        async with asyncio.timeout(60):
            while written != last:  # until it makes no headway for a while
                last = written
                await asyncio.sleep(1.0)
        assert not flooder.done(), "nothing held it back"
        taken = sum(1 for n in server.lines() if n["node"] == "raw")
        assert taken < written
        assert isinstance(await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result(), Accepted)
        async with asyncio.timeout(60):
            for request_id in range(1, written + 1):
                assert (await stream.read()).request_id == request_id
        flooder.cancel()
        await asyncio.gather(flooder, return_exceptions=True)
    await venue.close()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ((), "baton-account ''"),
        (METADATA[:2], "baton-node ''"),
        ((METADATA[0], METADATA[2]), "wrong API key"),
        (((wire.ACCOUNT, "a b"), *METADATA[1:]), "'a b'"),
        (((wire.ACCOUNT, "x" * 65), *METADATA[1:]), "x" * 65),
    ],
)
async def test_caller_without_a_right_name_is_refused(channel: Any, metadata: Any, said: str) -> None:
    stub = PaperVenueStub(channel)  # type: ignore[no-untyped-call]
    for call in (stub.ServerTime(pb.ServerTimeRequest(), metadata=metadata), stub.Session(metadata=metadata).read()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with asyncio.timeout(WAIT_S):
                await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED and said in (refused.value.details() or "")


async def test_keys_are_checked_where_they_are_configured(tmp_path: Path) -> None:
    async with running_venue(tmp_path, api_keys={"main": "right"}) as server:
        for account, key in (("main", "guessed"), ("other", "right")):
            with pytest.raises(Unreachable, match="wrong API key") as refused:
                await server.adapter(account=account, api_key=key).connect()
            assert key not in str(refused.value)
        venue = await connected(server, api_key="right")
        await venue.close()


async def test_accounts_have_books_of_their_own(server: RunningVenue) -> None:
    one, two = await connected(server), await connected(server, account="other")
    for venue in (one, two):
        assert isinstance(await venue.submit(order("same-id", ioc(Side.BUY, 30, 1000))).result(), Accepted)
    assert await one.positions() == await two.positions() == {SYMBOL: 30}
    (mine,) = await one.fills_after(0)
    (theirs,) = await two.fills_after(0)
    assert mine.trade_id != theirs.trade_id and mine.event_seq == theirs.event_seq == 2
    assert (await one.arm(9)).high_water == 9
    assert isinstance(await two.submit(order("b", limit(Side.BUY, 1, 980), token=1)).result(), Accepted)
    await one.close()
    await two.close()


# -- what the venue refuses to start with ---------------------------------------------------------------------------


async def test_record_of_other_tick_sizes_is_refused(tmp_path: Path) -> None:
    async with running_venue(tmp_path):
        pass
    other = (Instrument(SYMBOL, Decimal("0.1"), Decimal("0.00001")), ETH)
    with pytest.raises(ConfigError, match=r"BTCUSDT.*0\.01.*0\.1"):
        async with running_venue(tmp_path, instruments=other):
            pass
    async with running_venue(tmp_path):  # the refusal left the record free
        pass


@pytest.mark.parametrize("listen", ["127.0.0.1:notaport", "127.0.0.1:70000", "256.1.1.1:80", "192.0.2.1:80", "{taken}"])
async def test_address_that_cannot_be_used_is_refused(server: RunningVenue, tmp_path: Path, listen: str) -> None:
    address = listen.replace("{taken}", f"127.0.0.1:{server.port}")
    with pytest.raises(ConfigError, match="listen address") as refused:
        async with running_venue(tmp_path / "second", listen=address):
            pass
    assert "GRPC_VERBOSITY" not in str(refused.value)
    assert "must be host:port" in str(refused.value) or "choose another address" in str(refused.value)
    assert not (tmp_path / "second").exists(), "a venue that never started has not written that it did"


async def test_instruments_that_differ_are_refused_by_the_adapter(server: RunningVenue) -> None:
    wrong = (Instrument(SYMBOL, Decimal("0.001"), Decimal("0.00001")),)
    with pytest.raises(ConfigError) as refused:
        await server.adapter(instruments=wrong).connect()
    assert str(refused.value) == (
        f"instrument {SYMBOL}: [[instruments]] has tick_size 0.001, lot_size 0.00001, "
        f"but venue 127.0.0.1:{server.port} has tick_size 0.01, lot_size 0.00001; write what the venue has"
    )
    unknown = (Instrument("DOGEUSDT", Decimal("0.001"), Decimal("1")),)
    with pytest.raises(ConfigError, match=rf"DOGEUSDT: venue .* does not trade it, only {SYMBOL}, ETHUSDT; correct"):
        await server.adapter(instruments=unknown).connect()


@pytest.mark.parametrize(
    "more",
    [{"instruments": ()}, {"instruments": (Instrument("X", Decimal(0), Decimal(1)),)}, {"heartbeat_s": 0.0}],
)
def test_config_that_cannot_be_right_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "directory": tmp_path, "instruments": INSTRUMENTS}
    with pytest.raises(ConfigError):
        VenueServerConfig(**(settings | more))


# -- faults ---------------------------------------------------------------------------------------------------------


async def test_venue_that_cannot_write_its_record_stops_and_answers_nothing(tmp_path: Path) -> None:
    result = None
    with pytest.raises(JournalBroken, match="cannot be written"):
        async with running_venue(tmp_path) as server:
            await server.feed.say(quote(990, 1000))
            venue = await connected(server)
            blocker = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")  # the venue gives up on the lock after a second, as on a full disk
            result = await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result()
            blocker.execute("ROLLBACK")
            blocker.close()
            await venue.close()
    assert isinstance(result, Unknown)
    assert [n["kind"] for n in read_record(tmp_path)] == ["started"]


async def test_engine_that_contradicts_itself_stops_the_venue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(*_: Any) -> Any:
        raise InvariantViolation("two and two make five")

    result = None
    with pytest.raises(InvariantViolation, match="make five"):
        async with running_venue(tmp_path) as server:
            venue = await connected(server)
            monkeypatch.setattr("node.paper_venue.engine.Engine.place", impossible)
            result = await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result()
            await venue.close()
    assert isinstance(result, Unknown)


async def test_closing_the_adapter_is_no_cancellation_of_those_who_wait_on_it(server: RunningVenue) -> None:
    """A task that ends as cancelled ends in silence: nobody would learn that its question was never answered."""
    async with Proxy(server.port) as proxy:
        through = RunningVenue(proxy.port, server.feed, server.directory, server.stop)
        venue = await connected(through, call_timeout_s=30.0)
        events = venue.events(0)
        assert await next_event(events) == StreamUp(1)
        proxy.freeze()
        lookup = asyncio.create_task(venue.lookup(ClientOrderId("a1")))
        orders = asyncio.create_task(venue.open_orders())
        stream = asyncio.create_task(next_event(events))
        placed = asyncio.create_task(venue.submit(order("a1", limit(Side.BUY, 1, 980))).result())
        await asyncio.sleep(0.1)  # all of them have asked
        await venue.close()
        async with asyncio.timeout(WAIT_S):
            assert isinstance(await lookup, Unavailable)
            with pytest.raises(OutcomeUnknown):
                await orders
            assert isinstance(await stream, StreamDown)
            assert isinstance(await placed, Unknown)


async def test_held_back_reply_is_unknown_and_a_late_one_changes_nothing(tmp_path: Path) -> None:
    async with running_venue(tmp_path, ack_delay_s=0.4) as server:
        await server.feed.say(quote(990, 1000))
        hasty, patient = await connected(server, call_timeout_s=0.15), await connected(server, call_timeout_s=5.0)
        ticket = hasty.submit(order("a1", limit(Side.BUY, 1, 980)))
        unknown = await ticket.result()
        assert isinstance(unknown, Unknown)
        assert isinstance(await patient.submit(order("a2", limit(Side.BUY, 1, 980))).result(), Accepted)
        assert await ticket.result() == unknown
        assert hasty.connected, "one late answer is no reason to drop the line"
        await hasty.close()
        await patient.close()


async def test_replies_are_dropped_from_the_nth_on(tmp_path: Path) -> None:
    async with running_venue(tmp_path, drop_ack_after=2) as server:
        await server.feed.say(quote(990, 1000))
        venue = await connected(server, call_timeout_s=0.2)
        results = [await venue.submit(order(f"a{i}", limit(Side.BUY, 1, 980))).result() for i in range(3)]
        assert [type(r) for r in results] == [Accepted, Accepted, Unknown]
        assert isinstance(await venue.cancel(ClientOrderId("a2"), 1), Accepted)
        await venue.close()


async def test_broken_stream_makes_what_was_written_unknown_at_once(tmp_path: Path) -> None:
    async with running_venue(tmp_path, ack_delay_s=30.0) as server, Proxy(server.port) as proxy:
        await server.feed.say(quote(990, 1000))
        through = RunningVenue(proxy.port, server.feed, tmp_path, server.stop)
        venue = await connected(through, call_timeout_s=60.0)
        ticket = venue.submit(order("a1", limit(Side.BUY, 1, 980)))
        await eventually(lambda: any(n["kind"] == "new" for n in server.lines()), "the order arrived")
        await proxy.cut()
        async with asyncio.timeout(WAIT_S):
            assert isinstance(await ticket.result(), Unknown)
        await venue.close()


async def test_silent_line_is_noticed_by_the_missing_heartbeat(server: RunningVenue) -> None:
    """Nothing breaks and nothing comes: the worst kind of dead."""
    async with Proxy(server.port) as proxy:
        through = RunningVenue(proxy.port, server.feed, server.directory, server.stop)
        venue = await connected(through)
        async with aclosing(venue.events(0)) as events:  # type: ignore[type-var]
            assert await next_event(events) == StreamUp(1)
            proxy.freeze()
            down = await next_event(events)
            assert isinstance(down, StreamDown)
            await proxy.heal()
            direct = await connected(server)
            await direct.submit(order("a1", limit(Side.BUY, 1, 980))).result()
            told = None
            while not isinstance(told, VenueOrderEvent):
                told = await next_event(events)
            assert told.event_seq == 1
            await direct.close()
        await venue.close()


async def test_stream_that_alone_goes_silent_is_noticed(tmp_path: Path) -> None:
    """The line is fine, order entry works: only the heartbeat tells that nobody feeds the stream any more."""

    class Mute(PaperVenueServicer):
        async def Capabilities(self, request: Any, context: Any) -> pb.CapabilitiesReply:
            return pb.CapabilitiesReply(id_uniqueness="forever", deadman="none", heartbeat_ms=50)

        async def ServerTime(self, request: Any, context: Any) -> pb.ServerTimeReply:
            return pb.ServerTimeReply()

        async def Session(self, requests: Any, context: Any) -> None:
            await context.send_initial_metadata(())
            await context.read()

        async def Events(self, request: Any, context: Any) -> None:
            await context.write(pb.EventBatch())
            await asyncio.Event().wait()

    server = grpc.aio.server()
    add_PaperVenueServicer_to_server(Mute(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    venue = PaperVenue(f"127.0.0.1:{port}", "main", "key", "n1", instruments=(), rng=random.Random(1))
    await venue.connect()
    async with aclosing(venue.events(0)) as events:  # type: ignore[type-var]
        for _ in range(2):
            assert await next_event(events) == StreamUp(1)
            down = await next_event(events)
            assert isinstance(down, StreamDown) and "silent" in down.reason
    assert venue.connected
    await venue.close()
    await server.stop(None)


async def test_silent_line_is_noticed_by_order_entry(server: RunningVenue) -> None:
    async with Proxy(server.port) as proxy:
        through = RunningVenue(proxy.port, server.feed, server.directory, server.stop)
        venue = await connected(through, call_timeout_s=0.3)
        proxy.freeze()
        assert isinstance(await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result(), Unknown)
        await eventually(lambda: not venue.connected, "the keep-alive of the connection ran out")
        assert isinstance(await venue.submit(order("a2", limit(Side.BUY, 1, 980))).result(), NotSent)
        await proxy.cut()
        await proxy.heal()
        await eventually(lambda: venue.connected, "it came back")
        assert isinstance(await venue.submit(order("a3", limit(Side.BUY, 1, 980))).result(), Accepted)
        assert "a2" not in {n["client_order_id"] for n in server.lines()}
        await venue.close()


async def test_venue_that_is_stopped_and_started_again_is_followed(tmp_path: Path) -> None:
    """An orderly stop ends the calls as *cancelled*, which must not read as a cancellation of our own tasks."""
    async with running_venue(tmp_path) as first:
        await first.feed.say(quote(990, 1000))
        venue = await connected(first)
        events = venue.events(0)
        assert await next_event(events) == StreamUp(1)
    down = await next_event(events)
    assert isinstance(down, StreamDown)
    await eventually(lambda: not venue.connected, "the adapter noticed")
    assert isinstance(await venue.lookup(ClientOrderId("a1")), Unavailable)
    async with running_venue(tmp_path, listen=f"127.0.0.1:{first.port}") as second:
        await second.feed.say(quote(990, 1000))
        await eventually(lambda: venue.connected, "the adapter reconnected")
        assert isinstance(await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result(), Accepted)
        told = None
        while not isinstance(told, VenueOrderEvent):
            told = await next_event(events)
        assert told.event_seq == 1
        await venue.close()
        with pytest.raises(StopAsyncIteration):
            while True:
                assert isinstance(await next_event(events), StreamDown)


async def test_quiet_stream_stays_up_on_heartbeats_alone(tmp_path: Path) -> None:
    async with running_venue(tmp_path, heartbeat_s=0.02) as server:
        venue = await connected(server)
        async with aclosing(venue.events(0)) as events:  # type: ignore[type-var]
            assert await next_event(events) == StreamUp(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.8):  # four times the silence that would count as dead
                    await anext(events)
        await venue.close()


async def test_events_do_not_wait_for_a_heartbeat(tmp_path: Path) -> None:
    async with running_venue(tmp_path, heartbeat_s=60.0) as server:
        await server.feed.say(quote(990, 1000))
        venue = await connected(server)
        async with aclosing(venue.events(0)) as events:  # type: ignore[type-var]
            assert await next_event(events) == StreamUp(1)
            for i in range(3):
                await venue.submit(order(f"a{i}", limit(Side.BUY, 1, 980))).result()
                assert isinstance(await next_event(events), VenueOrderEvent)
        await venue.close()


async def test_deadman_armed_before_a_restart_waits_for_its_ttl_and_then_fires(tmp_path: Path) -> None:
    async with running_venue(tmp_path) as first:
        await first.feed.say(quote(990, 1000))
        venue = await connected(first)
        await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result()
        await venue.keep_alive(1, 1.0)
        await venue.close()
    async with running_venue(tmp_path) as second:
        venue = await connected(second)
        assert [o.client_order_id for o in await venue.open_orders()] == ["a1"]
        async with aclosing(venue.events(1)) as events:  # type: ignore[type-var]
            assert await next_event(events) == StreamUp(2)
            closed = await next_event(events)
        assert isinstance(closed, VenueOrderEvent) and closed.reason == "deadman"
        started, fired = (
            next(n for n in reversed(second.lines()) if n["kind"] == kind) for kind in ("started", "deadman")
        )
        assert fired["at_ns"] - started["at_ns"] >= 0.9e9
        await venue.close()


async def test_asking_for_events_the_venue_never_had_is_told_as_down(server: RunningVenue) -> None:
    venue = await connected(server)
    async with aclosing(venue.events(99)) as events:  # type: ignore[type-var]
        down = await next_event(events)
    assert isinstance(down, StreamDown) and "OUT_OF_RANGE" in down.reason and "99" in down.reason
    await venue.close()


async def test_events_older_than_memory_come_from_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.paper_venue.exchange._TAIL_EVENTS", 16)
    monkeypatch.setattr("node.paper_venue.exchange._BATCH_EVENTS", 7)
    async with running_venue(tmp_path) as server:
        await server.feed.say(quote(990, 1000))
        venue = await connected(server)
        for i in range(40):
            await venue.submit(order(f"a{i}", ioc(Side.BUY, 1, 980))).result()
        seqs: list[int] = []
        async with aclosing(venue.events(0)) as events:  # type: ignore[type-var]
            while len(seqs) < 80:
                event = await next_event(events)
                if isinstance(event, VenueOrderEvent):
                    seqs.append(event.event_seq)
        assert seqs == list(range(1, 81))
        await venue.close()


# -- the adapter's queue ----------------------------------------------------------------------------------------------


async def test_permit_is_asked_for_again_right_before_the_write(server: RunningVenue) -> None:
    """The permit ends while orders wait in the queue: not one of the rest leaves."""
    venue = await connected(server)
    asked = 0

    def three_only() -> bool:
        nonlocal asked
        asked += 1
        return asked <= 3

    tickets = [venue.submit(order(f"a{i}", limit(Side.BUY, 1, 980)), three_only) for i in range(10)]
    assert asked == 0, "asked at the queue, not at the write"
    results = [await t.result() for t in tickets]
    assert [type(r) for r in results] == [Accepted] * 3 + [NotSent] * 7
    assert [n["client_order_id"] for n in server.lines() if n["kind"] == "new"] == ["a0", "a1", "a2"]
    await venue.close()


async def test_full_queue_and_closing_are_proofs_that_nothing_was_sent(server: RunningVenue) -> None:
    venue = await connected(server)
    tickets: list[Ticket] = [venue.submit(order(f"a{i}", limit(Side.BUY, 1, 900))) for i in range(1100)]
    over = [await t.result() for t in tickets[1024:]]
    assert {(type(r), r.code) for r in over if isinstance(r, NotSent)} == {(NotSent, "venue_backpressure")}
    assert len([r for r in over if isinstance(r, NotSent)]) == len(over)
    waiting = venue.submit(order("late", limit(Side.BUY, 1, 900)))
    await venue.close()
    assert isinstance(await waiting.result(), (NotSent, Unknown, Accepted, Refused))
    sent = {n["client_order_id"] for n in server.lines() if n["kind"] == "new"}
    for i, ticket in enumerate(tickets):
        if isinstance(await ticket.result(), NotSent):
            assert f"a{i}" not in sent
    with pytest.raises(Unreachable):
        await venue.open_orders()


async def test_connecting_to_nobody_is_unreachable_within_the_timeout() -> None:
    venue = PaperVenue(
        "127.0.0.1:1", "main", "key", "n1", instruments=INSTRUMENTS, call_timeout_s=0.3, rng=random.Random(1)
    )
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(Unreachable):
            await venue.connect()
    assert not venue.connected


async def test_market_gone_silent_refuses_orders(tmp_path: Path) -> None:
    async with running_venue(tmp_path, limits=Limits(stale_after_ns=50_000_000)) as server:
        venue = await connected(server)
        await server.feed.say(quote(990, 1000))

        async def refused() -> bool:
            result = await venue.submit(order(f"a{random.random()}", ioc(Side.BUY, 1, 900))).result()
            return isinstance(result, Refused) and result.code == "no_market"

        async with asyncio.timeout(WAIT_S):
            while not await refused():  # noqa: ASYNC110 (silence is nothing to wait for)
                await asyncio.sleep(0.01)
        await venue.close()


async def test_venue_without_a_feed_takes_no_orders(tmp_path: Path) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    config = VenueServerConfig("127.0.0.1:0", tmp_path, INSTRUMENTS, parse_profile("plain"))
    server = asyncio.create_task(run_venue(config, ready=port.set_result, stop=stop))
    target = f"127.0.0.1:{await asyncio.wait_for(port, WAIT_S)}"
    venue = PaperVenue(target, "main", "key", "n1", instruments=INSTRUMENTS, rng=random.Random(1))
    await venue.connect()
    result = await venue.submit(order("a1", limit(Side.BUY, 1, 980))).result()
    assert isinstance(result, Refused) and result.code == "no_market"
    await venue.close()
    stop.set()
    await asyncio.wait_for(server, WAIT_S)


async def test_feed_that_fails_ends_the_venue_with_its_error(tmp_path: Path) -> None:
    class BrokenFeed:
        async def events(self) -> AsyncIterator[Any]:
            yield quote(990, 1000)
            raise ConfigError("feed: this line cannot be read")

        async def close(self) -> None: ...

    config = VenueServerConfig("127.0.0.1:0", tmp_path, INSTRUMENTS)
    with pytest.raises(ConfigError, match="this line cannot be read"):
        await asyncio.wait_for(run_venue(config, feed=BrokenFeed()), WAIT_S)  # type: ignore[arg-type]
