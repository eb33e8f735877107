"""`baton audit --gate URL`: the record of a real Redis, read as evidence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.check.audit import Named, WrongInput, gather
from chaos.check.evidence import GateLine
from chaos.check.invariants import check
from chaos.check.verdict import Level
from node.redis_gate import RedisGate
from tests.support.gates import opened
from tests.support.redis_server import RedisServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    await server.wait_ready()
    yield server
    server.kill()


async def decide(server: RedisServer, cluster: str, record_max: int = 1000) -> None:
    gate = RedisGate(server.url, cluster=cluster, holder="n1", timeout_s=1.0, claim_ttl_s=60.0, record_max=record_max)
    await gate.connect()
    await opened(gate, 5)
    await gate.claim_many(5, ["a", "b"])
    await gate.claim_many(4, ["c"])
    await gate.halt("desk")
    await gate.claim_many(5, ["d"])
    await gate.close()


async def test_decisions_of_the_only_gate_are_judged(server: RedisServer) -> None:
    await decide(server, "t")
    found = await asyncio.to_thread(gather, Named(gate=server.url))
    assert list(found.gate or ()) == [
        GateLine(1, "arm", 5, 0, "n1", "ok"),
        GateLine(2, "latch", 5, 5, "", "ok"),
        GateLine(3, "claim", 5, 5, "a", "ok"),
        GateLine(4, "claim", 5, 5, "b", "ok"),
        GateLine(5, "claim", 4, 5, "c", "stale_token"),
        GateLine(6, "halt", 0, 5, "desk", "ok"),
        GateLine(7, "claim", 5, 5, "d", "halted"),
    ]
    verdict = check(found._replace(venue=[]))
    assert verdict.problems == []
    assert (verdict.row("S9").level, verdict.row("S11").level) == (Level.PASS, Level.PASS)


async def test_which_gate_is_asked_for_and_one_without_a_record_is_told(server: RedisServer) -> None:
    with pytest.raises(WrongInput, match="no gate of ours"):
        await asyncio.to_thread(gather, Named(gate=server.url))
    await decide(server, "t")
    await decide(server, "u", record_max=0)
    with pytest.raises(WrongInput, match="the gates of t, u; name one with --cluster"):
        await asyncio.to_thread(gather, Named(gate=server.url))
    assert (await asyncio.to_thread(gather, Named(gate=server.url, cluster="t"))).gate
    with pytest.raises(WrongInput, match=r"set gate\.record_max"):
        await asyncio.to_thread(gather, Named(gate=server.url, cluster="u"))
