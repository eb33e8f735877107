"""The Redis gate against a Redis that is stopped, replaced, misconfigured, or short of what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.core.errors import ConfigError
from node.gate import GateUnavailable, GateUnsuitable, Verdict
from node.redis_gate import GateClaimer, RedisGate, _judge_server
from tests.support.gates import opened
from tests.support.redis_server import RedisServer, free_port, wait_until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    await server.wait_ready()
    yield server
    server.kill()


def make_gate(server: RedisServer, *, holder: str = "n1", timeout_s: float = 0.5, record_max: int = 0) -> RedisGate:
    return RedisGate(
        server.url, cluster="t", holder=holder, timeout_s=timeout_s, claim_ttl_s=3600.0, record_max=record_max
    )


@pytest.fixture
async def gate(server: RedisServer) -> AsyncIterator[RedisGate]:
    gate = make_gate(server)
    assert await gate.connect() == []
    yield gate
    await gate.close()


async def test_paused_redis_is_no_permission_and_its_late_answers_are_not_mistaken(
    server: RedisServer, gate: RedisGate
) -> None:
    await opened(gate, 5)
    server.pause()
    started = time.monotonic()
    with pytest.raises(GateUnavailable, match=r"within 0\.5 s|Timeout"):
        await gate.claim_many(5, ["late"])
    assert time.monotonic() - started < 1.5, "no retries: one timeout and no more"
    with pytest.raises(GateUnavailable):
        await gate.halt("not heard either")
    server.resume()
    async with asyncio.timeout(5):
        while True:
            try:
                state = await gate.state()
                break
            except GateUnavailable:
                continue
    # Redis carried out what it read when it woke. The claim was noted, and was never granted to anybody.
    await gate.unhalt()
    [again] = await gate.claim_many(5, ["late"])
    assert again.verdict is Verdict.DUPLICATE
    assert state.high_water == 5
    results = await gate.claim_many(5, [f"x{i}" for i in range(50)])
    assert [r.client_order_id for r in results] == [f"x{i}" for i in range(50)]
    assert all(r.ok for r in results)


async def test_cancelled_claim_does_not_hand_its_answer_to_the_next(gate: RedisGate) -> None:
    await opened(gate, 5)
    for i in range(200):
        claim = asyncio.create_task(gate.claim_many(5, [f"a{i}", f"b{i}"]))
        for _ in range(i % 7):
            await asyncio.sleep(0)
        claim.cancel()
        await asyncio.wait([claim])
        [one] = await gate.claim_many(5, [f"c{i}"])
        assert one.ok and one.client_order_id == f"c{i}"


class Wire:
    """A forwarder in front of Redis that can swallow the gate's replies: the request goes through, the line drops."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.drop_replies = False
        self.scripts_run = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        with contextlib.closing(writer), contextlib.closing(up_writer):
            while request := await reader.read(65536):
                self.scripts_run += request.count(b"EVALSHA")
                up_writer.write(request)
                reply = await up_reader.read(65536)
                if self.drop_replies and b"EVALSHA" in request:
                    return
                writer.write(reply)

    def close(self) -> None:
        self._server.close()


async def test_lost_reply_is_no_permission_and_is_not_asked_for_again(server: RedisServer) -> None:
    """A retry would hear "duplicate" of itself, or worse, be granted after the caller gave up."""
    wire = Wire(server.port)
    gate = RedisGate(await wire.start(), cluster="t", holder="n1", timeout_s=2.0, claim_ttl_s=3600.0)
    await gate.connect()
    await opened(gate, 5)
    wire.drop_replies, wire.scripts_run = True, 0
    with pytest.raises(GateUnavailable):
        await gate.claim_many(5, ["a"])
    assert wire.scripts_run == 1
    wire.drop_replies = False
    assert (await gate.claim_many(5, ["a"]))[0].verdict is Verdict.DUPLICATE
    await gate.close()
    wire.close()


async def test_killed_redis_fails_at_once_and_a_new_one_is_unarmed(server: RedisServer, gate: RedisGate) -> None:
    await opened(gate, 5)
    server.kill()
    with pytest.raises(GateUnavailable, match=r"127\.0\.0\.1"):
        await gate.claim_many(5, ["a"])
    server.wipe()
    server.start()
    await server.wait_ready()
    assert (await gate.claim_many(5, ["a"]))[0].verdict is Verdict.UNARMED


async def test_failover_to_a_replica_that_missed_the_new_token_stays_closed(
    server: RedisServer, gate: RedisGate, tmp_path: Path
) -> None:
    """1. n1 arms 5; the replica has it. 2. The replica is cut off; n2 arms 9. 3. The primary dies, the replica is
    promoted with high-water 5 and n1 still believes in 5. Without the run_id it would be let through."""
    await opened(gate, 5)
    folder = tmp_path / "replica"
    folder.mkdir()
    replica = RedisServer(folder)
    replica.start()
    try:
        await replica.wait_ready()
        replica.admin().execute_command("REPLICAOF", "127.0.0.1", str(server.port))
        await wait_until(lambda: replica.admin().hget("baton:{t}:gate", "high") == b"5", 20)
        old = make_gate(replica)
        with pytest.raises(GateUnavailable, match="replica"):
            await old.connect()
        admin = replica.admin()
        admin.execute_command("REPLICAOF", "NO", "ONE")
        newer = make_gate(server, holder="n2")
        await newer.connect()
        await opened(newer, 9)
        server.kill()
        await old.connect()
        assert (await old.claim_many(5, ["a"]))[0].verdict is Verdict.UNARMED
        await old.close()
        await newer.close()
    finally:
        replica.kill()


async def test_script_flush_is_healed_in_the_same_call(server: RedisServer, gate: RedisGate) -> None:
    await opened(gate, 5)
    server.admin().script_flush()
    assert (await gate.claim_many(5, ["a"]))[0].ok


async def test_redis_that_evicts_is_refused_with_the_remedy(server: RedisServer, gate: RedisGate) -> None:
    for policy in ("allkeys-lru", "volatile-ttl", "allkeys-random"):
        server.admin().config_set("maxmemory-policy", policy)
        with pytest.raises(GateUnsuitable, match=f"maxmemory-policy {policy}.*noeviction"):
            await gate.connect()
    assert issubclass(GateUnsuitable, ConfigError)


def test_old_redis_is_refused() -> None:
    info = {"redis_version": "5.0.14", "maxmemory_policy": "noeviction", "role": "master", "aof_enabled": 1}
    with pytest.raises(GateUnsuitable, match=r"5\.0\.14.*6 or newer"):
        _judge_server("Redis at x", info)
    assert _judge_server("Redis at x", info | {"redis_version": "7.2.4"}) == []


async def test_weak_durability_is_warned_of(server: RedisServer, gate: RedisGate) -> None:
    server.admin().config_set("appendfsync", "everysec")
    assert ["appendfsync everysec" in w for w in await gate.connect()] == [True]
    server.admin().config_set("appendonly", "no")
    assert ["appendonly no" in w for w in await gate.connect()] == [True]


async def test_full_memory_refuses_rather_than_forgets(server: RedisServer, gate: RedisGate) -> None:
    await opened(gate, 5)
    await gate.claim_many(5, ["a"])
    server.admin().config_set("maxmemory", "1")
    with pytest.raises(GateUnavailable, match=r"(?i)memory"):
        await gate.claim_many(5, ["b"])
    server.admin().config_set("maxmemory", "0")
    assert [r.verdict for r in await gate.claim_many(5, ["a", "b"])] == [Verdict.DUPLICATE, Verdict.OK]


async def test_password_is_used_and_never_shown(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, requirepass="hunter2")
    server.start()
    try:
        await server.wait_ready()
        gate = make_gate(server)
        await gate.connect()
        await opened(gate, 5)
        assert (await gate.claim_many(5, ["a"]))[0].ok
        server.kill()
        with pytest.raises(GateUnavailable) as gone:
            await gate.claim_many(5, ["b"])
        assert "hunter2" not in str(gone.value)
        await gate.close()
        server.start()
        await server.wait_ready()
        wrong = RedisGate(
            server.url.replace("hunter2", "wrong"), cluster="t", holder="n1", timeout_s=0.2, claim_ttl_s=60.0
        )
        with pytest.raises(GateUnavailable, match=r"(?i)auth|password") as refused:
            await wrong.connect()
        assert "wrong" not in str(refused.value).replace("WRONGPASS", "")
        await wrong.close()
    finally:
        server.kill()


async def test_unreachable_redis_is_unavailable_and_unchecked_one_gives_nothing() -> None:
    gate = RedisGate(f"redis://127.0.0.1:{free_port()}/0", cluster="t", holder="n1", timeout_s=0.1, claim_ttl_s=60.0)
    with pytest.raises(GateUnavailable):
        await gate.connect()
    with pytest.raises(GateUnavailable, match="connect first"):
        await gate.claim_many(5, ["a"])
    await gate.close()


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://h:1/0?socket_timeout=60"])
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(GateUnsuitable, match=r"gate\.url"):
        RedisGate(url, cluster="t", holder="n1", timeout_s=0.1, claim_ttl_s=60.0)


@pytest.mark.parametrize("token", [-1, 2**53])
async def test_token_that_lua_cannot_hold_is_refused(gate: RedisGate, token: int) -> None:
    with pytest.raises(ValueError, match="token"):
        await gate.claim_many(token, ["a"])


async def test_large_tokens_are_compared_exactly(server: RedisServer, gate: RedisGate) -> None:
    top = 2**53 - 2
    armed = await opened(gate, top)
    assert armed.token == top
    assert [r.verdict for r in await gate.claim_many(top - 1, ["a"])] == [Verdict.STALE_TOKEN]
    [ok] = await gate.claim_many(top, ["a"])
    assert (ok.verdict, ok.high_water) == (Verdict.OK, top)
    assert (await opened(gate, top + 1)).previous == top


async def test_recorded_decisions_tell_the_whole_story(server: RedisServer) -> None:
    gate = make_gate(server, record_max=1000)
    await gate.connect()
    await opened(gate, 5)
    await gate.claim_many(5, ["a", "b", "a"])
    await gate.claim_many(4, ["c"])
    await gate.halt("stop")
    await gate.claim_many(5, ["d"])
    lines = [(d.fence_seq, d.op, d.token, d.high_water, d.subject, d.verdict) for d in await gate.decisions()]
    assert lines == [
        (1, "arm", 5, 0, "n1", "ok"),
        (2, "latch", 5, 5, "", "ok"),
        (3, "claim", 5, 5, "a", "ok"),
        (4, "claim", 5, 5, "b", "ok"),
        (5, "claim", 5, 5, "a", "duplicate"),
        (6, "claim", 4, 5, "c", "stale_token"),
        (7, "halt", 0, 5, "stop", "ok"),
        (8, "claim", 5, 5, "d", "halted"),
    ]
    await gate.close()


async def test_nothing_is_recorded_unless_asked(server: RedisServer, gate: RedisGate) -> None:
    await opened(gate, 5)
    await gate.claim_many(5, ["a"])
    assert await gate.decisions() == []
    assert server.admin().exists("baton:{t}:gate:record") == 0


async def test_ended_claimer_leaves_nobody_waiting(server: RedisServer, gate: RedisGate) -> None:
    await opened(gate, 5)
    claimer = GateClaimer(gate, 5, batch_max=2, waiting_max=5)
    serving = asyncio.create_task(claimer.run())
    server.pause()
    try:
        in_flight = [claimer.claim("a"), claimer.claim("b")]
        await wait_until(lambda: not claimer._waiting)
        waiting = [claimer.claim(f"w{i}") for i in range(5)]
        with pytest.raises(GateUnavailable, match="5 claims are waiting"):
            await claimer.claim("one too many")
        serving.cancel()
        await asyncio.wait([serving])
    finally:
        server.resume()
    for future in [*in_flight, *waiting, claimer.claim("after the end")]:
        with pytest.raises(GateUnavailable, match="ended"):
            await future


async def test_abandoned_claim_does_not_disturb_the_others(gate: RedisGate) -> None:
    await opened(gate, 5)
    claimer = GateClaimer(gate, 5)
    serving = asyncio.create_task(claimer.run())
    gone, kept = claimer.claim("a"), claimer.claim("b")
    gone.cancel()
    async with asyncio.timeout(5):
        assert (await kept).ok
    serving.cancel()
    await asyncio.wait([serving])


async def test_other_keys_in_the_way_are_no_permission(server: RedisServer, gate: RedisGate) -> None:
    server.admin().set("baton:{t}:gate", "someone else's")
    with pytest.raises(GateUnavailable, match="WRONGTYPE"):
        await opened(gate, 5)
