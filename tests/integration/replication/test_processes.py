"""Killed, stopped and restarted processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.core.ids import NodeId, Term
from tests.integration.replication.nodes import KIND, FakeEtcd, Node, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

Make = Callable[..., Awaitable[Node]]
Spawn = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest_asyncio.fixture(loop_scope="session")
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    started: list[asyncio.subprocess.Process] = []
    root = Path(__file__).parents[3]

    async def start(role: str, name: str, *rest: object) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.replication.node_process",
            role,
            name,
            str(tmp_path),
            *map(str, rest),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_follower_killed_in_mid_stream_comes_back_with_all_it_acknowledged(
    node: Make, spawn: Spawn, etcd: FakeEtcd, tmp_path: Path
) -> None:
    a = await node("n1")
    log = await a.lead(1, etcd)
    follower = await spawn("follower", "n2", "n1", a.address, 1)
    for _ in range(2):
        await wait_until(lambda: len(log.insync.members) == 2)
        for n in range(2000):
            entry = log.append(KIND, b"order", 7)
            if n % 50 == 0:
                await asyncio.sleep(0)
        acknowledged = log.followers()[0].durable
        follower.kill()
        await follower.wait()
        async with asyncio.timeout(10):
            await log.wait_committed(entry.index)  # once it is out of the set
        assert a.in_sync()
        follower = await spawn("follower", "n2", "n1", a.address, 1)
        await wait_until(lambda least=acknowledged: any(f.durable >= least for f in log.followers()))  # type: ignore[misc]
    await wait_until(lambda: len(log.insync.members) == 2)
    last = (await a.append())[-1]
    assert follower.stdin is not None
    follower.stdin.close()
    await follower.wait()
    held = Node("n2", tmp_path)
    assert held.entries()[: last.index] == a.entries()[: last.index]
    held.journal.close()


async def test_what_a_killed_leader_had_committed_is_on_the_follower_that_takes_over(
    node: Make, spawn: Spawn, etcd: FakeEtcd
) -> None:
    b = await node("n2")
    leader = await spawn("leader", "n1", "n2", b.journal.journal_id, 1)
    assert leader.stdout is not None
    address = ""
    committed = 0
    async with asyncio.timeout(20):
        while not address.startswith("127."):
            address = (await leader.stdout.readline()).decode().strip()
        b.follower.follow(NodeId("n1"), address, Term(1))
        while committed < 1000:
            line = (await leader.stdout.readline()).decode().strip()
            committed = int(line) if line.isdigit() else committed
        leader.kill()
        rest, _ = await leader.communicate()
    committed = max([committed, *(int(x) for x in rest.decode().split() if x.isdigit())])
    await b.stop_following(closing=Term(1))
    assert b.journal.durable_index >= committed
    assert not b.stopped
    # It leads from there; the old leader comes back as a follower, and whatever only it had is cut.
    b_log = await b.lead(2, etcd)
    back = await spawn("follower", "n1", "n2", b.address, 2)
    await wait_until(lambda: b.in_sync_names() == {"n1", "n2"})
    last = (await b.append(20))[-1]
    assert b_log.followers()[0].durable >= last.index
    assert back.returncode is None


async def test_a_stopped_follower_is_removed_and_a_woken_one_comes_back(
    node: Make, spawn: Spawn, etcd: FakeEtcd
) -> None:
    a = await node("n1")
    log = await a.lead(1, etcd)
    follower = await spawn("follower", "n2", "n1", a.address, 1)
    await wait_until(lambda: len(log.insync.members) == 2)
    await a.append(10)
    proposals = len(etcd.proposals)
    os.kill(follower.pid, signal.SIGSTOP)
    try:
        etcd.hold = True
        entry = log.append(KIND, b"order", 7)
        await wait_until(lambda: len(etcd.proposals) > proposals)
        assert set(etcd.proposals[-1]) == {"n1"}
        assert log.commit_index < entry.index  # etcd has not said yes: nothing is committed without it
        etcd.let_through()
        async with asyncio.timeout(2):
            await log.wait_committed(entry.index)
        await a.append(100)
    finally:
        os.kill(follower.pid, signal.SIGCONT)
    await wait_until(lambda: len(log.insync.members) == 2)
    last = (await a.append())[-1]
    assert log.followers()[0].durable >= last.index
