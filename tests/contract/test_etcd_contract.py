"""The etcd contract, on the stand-in that the simulator uses and on a real etcd; and both asked the same at random."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chaos.sim.etcd import Compacted, EtcdSpec
from cluster.core.errors import BatonError
from cluster.etcd import (
    EtcdClient,
    Event,
    KeyValue,
    absent,
    create_revision,
    delete,
    get,
    mod_revision,
    put,
    value,
    version,
)
from cluster.etcd.model import key_range
from cluster.etcd.wire import event
from cluster.rpc.etcd import rpc_pb2
from node.local.servers import LocalEtcd, start_etcd
from tests.contract.etcd_contract import EtcdContract
from tests.contract.etcd_contract import pair as pair
from tests.contract.etcd_contract import prefix as prefix
from tests.support.etcd_spec import Clock, SpecClient


class SpecBench:
    def __init__(self) -> None:
        self._clock = Clock()
        self._spec = EtcdSpec(self._clock)
        self.etcd = SpecClient(self._spec)

    async def pass_time(self, seconds: float) -> None:
        self._clock.pass_time(seconds)

    async def events(self, prefix: str, after: int, until: int) -> list[Event]:
        changes = self._spec.changes(prefix, after)
        assert changes is not None and changes.revision == until
        return list(changes.events)

    async def compact(self, revision: int) -> None:
        self._spec.compact(revision)


class RealBench:
    def __init__(self, etcd: EtcdClient) -> None:
        self.etcd = etcd

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def events(self, prefix: str, after: int, until: int) -> list[Event]:
        start, end = key_range(prefix, prefix=True)
        create = rpc_pb2.WatchCreateRequest(key=start, range_end=end, start_revision=after + 1)
        endpoint, metadata = await self.etcd.ready_endpoint(2)
        call = endpoint.watch.Watch(metadata=metadata)
        told: list[Event] = []
        try:
            await call.write(rpc_pb2.WatchRequest(create_request=create))
            async with asyncio.timeout(5):
                while not told or told[-1].kv.mod_revision < until:
                    reply = await call.read()
                    if reply.compact_revision:
                        raise Compacted(reply.compact_revision)
                    told += map(event, reply.events)
        finally:
            call.cancel()
        return told

    async def compact(self, revision: int) -> None:
        endpoint, metadata = await self.etcd.ready_endpoint(2)
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        await endpoint.kv.Compact(request, timeout=2, metadata=metadata)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEtcd]:
    """A single member that nobody kills, so that none of what a killed one may do (etcd#13766) is seen here."""
    etcd = start_etcd(tmp_path_factory.mktemp("etcd"), members=1)
    yield etcd
    etcd.stop(grace_s=0)


@pytest.fixture
async def real(server: LocalEtcd) -> AsyncIterator[RealBench]:
    async with EtcdClient(server.endpoints, call_timeout_s=2.0) as client:
        yield RealBench(client)


class TestSpec(EtcdContract):
    @pytest.fixture
    def bench(self) -> SpecBench:
        return SpecBench()


class TestRealEtcd(EtcdContract):
    @pytest.fixture
    def bench(self, real: RealBench) -> RealBench:
        return real


# -- the same questions to both --------------------------------------------------------------------------------------


class Script:
    """Random questions over a few keys, the same from the same seed; revisions are counted from `base`, and leases by
    number."""

    def __init__(self, seed: int, bench: SpecBench | RealBench, base: int) -> None:
        self.rng = random.Random(seed)
        self.etcd, self.bench, self.base = bench.etcd, bench, base
        self.revision = base
        self.leases: list[int] = []
        self.prefix = f"/same/{seed}/"

    def key(self) -> str:
        return self.prefix + self.rng.choice("abcd")

    def lease(self) -> int:
        return self.rng.choice([0, 0, *self.leases])

    def compare(self) -> Any:
        test = self.rng.choice([operator.eq, operator.ne, operator.lt, operator.gt])
        of = self.rng.choice([create_revision, mod_revision, version, value])
        some_version, some_revision = self.rng.randrange(4), max(self.base, self.revision - self.rng.randrange(8))
        right = {version: some_version, value: self.value()}.get(of, some_revision)
        return test(of(self.key()), right) if self.rng.random() < 0.7 else absent(self.key())

    def value(self) -> bytes:
        return self.rng.choice([b"", b"x", b"y", b"yy"])

    def op(self) -> Any:
        match self.rng.randrange(4):
            case 0:
                return get(self.prefix, prefix=True)
            case 1:
                return delete(self.key(), prefix=self.rng.random() < 0.1)
        return put(self.key(), self.value(), self.lease())

    def some(self, make: Any, most: int) -> list[Any]:
        return [make() for _ in range(self.rng.randrange(most + 1))]

    async def ask(self) -> Any:
        what = {"txn": 60, "put": 20, "delete": 8, "range": 5, "grant": 4, "revoke": 2, "live": 3}
        match self.rng.choices(list(what), list(what.values()))[0]:
            case "txn":
                done = await self.etcd.txn(self.some(self.compare, 2), self.some(self.op, 3), self.some(self.op, 3))
                self.revision = done.revision
                answers = [(self.plain(r.kvs), r.deleted) for r in done.responses]
                return done.succeeded, answers, self.revision - self.base
            case "put":
                self.revision = await self.etcd.put(self.key(), self.value(), self.lease())
                return self.revision - self.base
            case "delete":
                return self.plain((await self.etcd.delete(self.key())).kvs)
            case "range":
                return self.plain((await self.etcd.range(self.prefix, prefix=True)).kvs)
            case "grant":
                self.leases.append((await self.etcd.lease_grant(600)).id)
            case "revoke" if self.leases:
                await self.etcd.lease_revoke(self.rng.choice(self.leases))
            case "live" if self.leases:
                return await self.etcd.lease_keep_alive(self.rng.choice(self.leases))

    async def answer(self) -> Any:
        try:
            return await self.ask()
        except BatonError as e:
            return type(e).__name__

    def plain(self, kvs: tuple[KeyValue, ...]) -> list[Any]:
        return [
            (key, value, created and created - self.base, modified - self.base, count, self.number(lease))
            for key, value, created, modified, count, lease in kvs
        ]

    def number(self, lease: int) -> int:
        return self.leases.index(lease) + 1 if lease else 0

    async def history(self) -> list[Any]:
        end = await self.etcd.put(self.prefix + "end", b"")
        told = await self.bench.events(self.prefix, self.base, end)
        return [(e.deleted, self.plain((e.kv,))) for e in told]


@pytest.mark.parametrize("seed", range(6))
async def test_the_stand_in_answers_as_the_real_one_does(real: RealBench, seed: int):
    spec_bench = SpecBench()
    scripts = []
    for bench in (spec_bench, real):
        base = await bench.etcd.put(f"/same/{seed}", b"")
        scripts.append(Script(seed, bench, base))
    kinds = set()
    for step in range(400):
        expected, actual = [await script.answer() for script in scripts]
        assert expected == actual, step
        kinds.add(expected if isinstance(expected, str) else type(expected).__name__)
    assert kinds >= {"tuple", "int", "list", "EtcdRefused", "LeaseGone"}
    expected, actual = [await script.history() for script in scripts]
    assert expected == actual
