"""Real etcd servers on loopback: one shared by gentle tests, three of one's own for the rough ones."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.etcd import EtcdClient
from node.local.servers import LocalEtcd, start_etcd


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEtcd]:
    """A single member. Do not break it; use `prefix` for keys."""
    server = start_etcd(tmp_path_factory.mktemp("etcd"), members=1)
    yield server
    server.stop()


@pytest.fixture
def own_etcd(tmp_path) -> Iterator[LocalEtcd]:
    """A single member to be broken."""
    server = start_etcd(tmp_path / "etcd", members=1)
    yield server
    server.stop(grace_s=0)


@pytest.fixture
def cluster(tmp_path) -> Iterator[LocalEtcd]:
    """Three members to be broken."""
    server = start_etcd(tmp_path / "etcd", members=3)
    yield server
    server.stop(grace_s=0)


_numbers = itertools.count(1)


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(_numbers)}/"


@pytest.fixture
async def client(etcd: LocalEtcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(etcd.endpoints) as c:
        yield c
