"""Clusters of real processes. The directory of a cluster whose test failed is kept, and named in the report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.local import process
from node.local.cluster import LocalCluster, Options
from tests.support.e2e import Drill

Start = Callable[[Options], Drill]


@contextmanager
def kept_if_failed(session: pytest.Session) -> Iterator[Path]:
    """A directory for clusters: gone after a success. Whatever cluster runs in it or below is killed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="baton-e2e-"))
    failed_before = session.testsfailed
    try:
        yield directory
    finally:
        for record in directory.glob("**/cluster.json"):
            cluster = LocalCluster(record.parent)
            cluster.kill()
            assert not list(process.marked(cluster.record()["id"])), "left behind"
        if session.testsfailed > failed_before:
            print(f"\nkept for a look: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    with kept_if_failed(request.session) as made:
        yield made


@pytest.fixture
def drill(directory: Path) -> Start:
    """Starts a cluster of the test's own, in `directory / "D"`."""

    def start(options: Options) -> Drill:
        made = Drill(directory / "D", options)
        made.start()
        return made

    return start


@pytest.fixture(scope="module")
def module_directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    with kept_if_failed(request.session) as made:
        yield made


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, module_directory: Path) -> Drill:
    """One cluster for the module's tests, with the module's OPTIONS. Each test leaves it healthy."""
    made = Drill(module_directory / "D", request.module.OPTIONS)
    made.start()
    return made
