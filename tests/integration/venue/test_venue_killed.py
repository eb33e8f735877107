"""SIGKILL of the venue under load, and its return: what was acknowledged is there, exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from node.paper_venue.record import read_record, verify_record
from node.types import (
    Accepted,
    ClientOrderId,
    NotSent,
    Refused,
    Side,
    StreamDown,
    StreamUp,
    SubmitResult,
    Unknown,
    VenueFill,
    VenueOrderEvent,
)
from node.venues.base import Absent, Found
from node.venues.paper import PaperVenue
from tests.support.paper import INSTRUMENTS, SYMBOL, WAIT_S, eventually, ioc, limit, order


@asynccontextmanager
async def venue_process(directory: Path, port: int = 0, profile: str = "token") -> AsyncIterator[tuple[int, int]]:
    """(port, pid) of a venue that takes orders; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.venue_process", str(directory), str(port), profile,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (said := (await process.stdout.readline()).strip()).isdigit():
                assert said, "the venue process ended before it was ready"
        yield int(said), process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def adapter(port: int, node: str = "n1") -> PaperVenue:
    return PaperVenue(
        f"127.0.0.1:{port}", "main", "key", node, instruments=INSTRUMENTS, call_timeout_s=2.0, rng=random.Random(7)
    )


@pytest.mark.parametrize("round_", range(3))
async def test_every_acknowledged_order_survives_a_kill_exactly_once(tmp_path: Path, round_: int) -> None:
    results: dict[str, SubmitResult] = {}
    events: list[VenueFill | VenueOrderEvent] = []
    rng = random.Random(round_)
    async with venue_process(tmp_path) as (port, pid):
        venue = adapter(port)
        await venue.connect()

        async def listen() -> None:
            async with aclosing(venue.events(0)) as stream:  # type: ignore[type-var]
                async for event in stream:
                    if not isinstance(event, (StreamUp, StreamDown)):
                        events.append(event)

        async def trade(worker: int) -> None:
            n = 0
            while True:
                coid = f"w{worker}z{n}"
                spec = ioc(Side.BUY, rng.randint(1, 40), 1001) if n % 3 else limit(Side.BUY, 5, 960 + n % 20)
                results[coid] = result = await venue.submit(order(coid, spec)).result()
                if isinstance(result, (NotSent, Unknown)):
                    return
                if n % 7 == 0:
                    await venue.cancel(ClientOrderId(coid), 1)
                n += 1

        listener = asyncio.create_task(listen())
        workers = [asyncio.create_task(trade(w)) for w in range(8)]
        await eventually(lambda: len(results) > 300, "the load is on")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*workers)

    # Judged from the record that the dead process left, read by another one.
    assert verify_record(tmp_path) > 300
    before = list(read_record(tmp_path))
    accepted = Counter(n["client_order_id"] for n in before if n["kind"] == "new" and n["outcome"] == "accepted")
    refused = {n["client_order_id"] for n in before if n["kind"] == "new" and n["outcome"] == "refused"}
    assert set(accepted.values()) == {1}
    for coid, result in results.items():
        if isinstance(result, Accepted):
            assert accepted[coid] == 1, f"{coid} was acknowledged and is lost"
        elif isinstance(result, Refused):
            assert coid in refused
        elif isinstance(result, NotSent):
            assert coid not in accepted and coid not in refused
    assert any(isinstance(r, Accepted) for r in results.values())

    async with venue_process(tmp_path, port):
        await eventually(lambda: venue.connected, "the adapter reconnects by itself")
        for coid, result in results.items():  # silence is settled by asking
            if isinstance(result, Unknown):
                found = await venue.lookup(ClientOrderId(coid))
                assert found == Absent() if coid not in accepted else isinstance(found, Found)
        after = await venue.submit(order("w0z0", ioc(Side.BUY, 1, 1001))).result()
        assert isinstance(after, Refused) and after.code == "duplicate_client_order_id"
        assert (await venue.arm(1)).high_water == 1

        fills = [n for n in before if n["kind"] == "fill"]
        told, page = [], await venue.fills_after(0)
        while page:
            told += page
            page = await venue.fills_after(told[-1].event_seq)
        assert [(f.trade_id, f.qty_lots) for f in told[: len(fills)]] == [(n["trade_id"], n["qty_lots"]) for n in fills]
        assert (await venue.positions())[SYMBOL] == sum(f.qty_lots for f in await all_fills(venue))

        last_seq = max(n["event_seq"] for n in before if "event_seq" in n)
        await eventually(lambda: events and events[-1].event_seq >= last_seq, "the stream caught up")
        listener.cancel()
        await venue.close()
    assert [e.event_seq for e in events] == list(range(1, len(events) + 1))
    assert verify_record(tmp_path) >= len(before)
    restarts = [n for n in read_record(tmp_path) if n["kind"] == "started"]
    assert len(restarts) == 2


async def all_fills(venue: PaperVenue) -> list[VenueFill]:
    fills: list[VenueFill] = []
    while page := await venue.fills_after(fills[-1].event_seq if fills else 0):
        fills += page
    return fills


async def test_token_orders_and_event_numbers_come_back_after_a_kill(tmp_path: Path) -> None:
    async with venue_process(tmp_path) as (port, pid):
        venue = adapter(port)
        await venue.connect()
        await venue.arm(41)
        assert isinstance(await venue.submit(order("a1", limit(Side.BUY, 3, 900), token=42)).result(), Accepted)
        opened = await venue.open_orders()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not venue.connected, "the adapter noticed")
    async with venue_process(tmp_path, port):
        await eventually(lambda: venue.connected, "the adapter reconnects by itself")
        assert await venue.open_orders() == opened
        stale = await venue.submit(order("a2", limit(Side.BUY, 3, 900), token=41)).result()
        assert isinstance(stale, Refused) and stale.code == "stale_token" and "42" in stale.reason
        assert isinstance(await venue.cancel(ClientOrderId("a1"), 42), Accepted)
        async with aclosing(venue.events(1)) as events:  # type: ignore[type-var]
            async with asyncio.timeout(WAIT_S):
                assert await anext(events) == StreamUp(2)
                closed = await anext(events)
        assert isinstance(closed, VenueOrderEvent) and (closed.event_seq, closed.reason) == (2, "cancel")
        await venue.close()
