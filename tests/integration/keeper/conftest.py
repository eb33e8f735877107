"""Real etcd, real keepers, scripted workers. A gentle test gets a cluster of its own on the shared etcd; who breaks
etcd brings one. Every cluster is checked when its test ends: at no instant did two workers see a live permit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.local.servers import LocalEtcd, start_etcd
from tests.integration.keeper.rig import Cluster, Etcd


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = start_etcd(tmp_path_factory.mktemp("etcd"), members=1)
    yield Etcd(server)
    server.stop(grace_s=0)


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[LocalEtcd]:
    server = start_etcd(tmp_path / "etcd", members=1)
    yield server
    server.stop(grace_s=0)


_numbers = itertools.count(1)


@pytest.fixture
def cluster_of(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """cluster_of(size, ttl_s=..., etcd=...): a cluster that is not started yet."""
    made: list[Cluster] = []

    def make(size: int = 3, *, ttl_s: float = 2.0, etcd: Etcd | None = None) -> Cluster:
        etcd = etcd or request.getfixturevalue("shared_etcd")
        made.append(Cluster(tmp_path / f"c{len(made)}", etcd, f"test-{next(_numbers)}", size=size, ttl_s=ttl_s))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()
    for cluster in made:
        cluster.check()
