"""The gate contract, on the fake and on a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from node.gate import Gate, GateUnavailable
from node.redis_gate import RedisGate
from tests.contract.gate_contract import GateContract
from tests.support.fake_gate import FakeGate, FakeGateServer
from tests.support.redis_server import RedisServer, wait_until


class FakeBench:
    def __init__(self) -> None:
        self.server = FakeGateServer()

    async def client(self, holder: str) -> Gate:
        return FakeGate(self.server, holder)

    async def flush(self) -> None:
        self.server.flush()

    async def restart(self, *, empty: bool) -> None:
        self.server.restart(empty=empty)

    async def stop(self) -> None:
        self.server.up = False

    async def let_claims_expire(self) -> None:
        self.server.advance(self.server.claim_ttl_s + 1)


class TestFakeGate(GateContract):
    @pytest.fixture
    def bench(self) -> FakeBench:
        return FakeBench()


class RedisBench:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.gates: list[RedisGate] = []

    async def client(self, holder: str) -> Gate:
        gate = RedisGate(self.server.url, cluster="t", holder=holder, timeout_s=1.0, claim_ttl_s=60.0)
        self.gates.append(gate)
        await gate.connect()
        return gate

    async def flush(self) -> None:
        self.server.admin().flushall()

    async def restart(self, *, empty: bool) -> None:
        self.server.kill()
        if empty:
            self.server.wipe()
        self.server.start()
        await self.server.wait_ready()
        for gate in self.gates:  # a pooled connection to the old process may cost one failed call
            with contextlib.suppress(GateUnavailable):
                await gate.state()

    async def stop(self) -> None:
        self.server.kill()

    async def let_claims_expire(self) -> None:
        """Redis' clock cannot be moved, so the deadlines are."""
        admin = self.server.admin()
        keys = list(admin.scan_iter("baton:*:claim:*"))
        assert keys and all(50_000 < admin.pttl(k) <= 60_000 for k in keys)
        for key in keys:
            admin.pexpire(key, 1)
        await wait_until(lambda: not admin.exists(*keys))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    yield server
    server.kill()


class TestRedisGate(GateContract):
    @pytest.fixture
    async def bench(self, server: RedisServer) -> AsyncIterator[RedisBench]:
        if not server.running:
            server.start()
        await server.wait_ready()
        server.admin().flushall()
        bench = RedisBench(server)
        yield bench
        for gate in bench.gates:
            await gate.close()
