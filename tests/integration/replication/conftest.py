"""All of these run on one event loop: gRPC's completion queue is one per process, and what is left in it of a loop that
is gone disturbs the next one's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.replication.nodes import FakeEtcd, Node


@pytest.fixture
def etcd() -> FakeEtcd:
    return FakeEtcd()


@pytest_asyncio.fixture(loop_scope="session")
async def node(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Makes and starts nodes; stops them all afterwards."""
    made: list[Node] = []

    async def make(name: str, **options: object) -> Node:
        made.append(Node(name, tmp_path, **options))  # type: ignore[arg-type]
        return await made[-1].start()

    yield make
    for n in made:
        await n.stop()
