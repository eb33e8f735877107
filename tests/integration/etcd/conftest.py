"""Real etcd servers on loopback: one shared by gentle tests, three of one's own for the rough ones."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from cluster.etcd import EtcdClient
from node.local.servers import LocalEtcd, start_etcd

TRIES = 3


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A test whose etcd turned out to be broken itself (etcd_tools.unless_etcd_diverged) proves nothing: run it again,
    on a new one. Asked for every test of the session, so it leaves those of other folders alone."""
    if Path(__file__).parent not in item.path.parents:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for _ in range(TRIES):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if not any("etcd#13766" in str(report.longrepr) for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


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
