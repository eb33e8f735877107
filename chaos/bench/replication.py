"""A leader and a standby for measuring.

Everything is real (SQLite, gRPC over loopback, a process for the standby) except the keeper, which grants each change
of the in-sync set after a millisecond. Both journals lie on one disk, so both syncs compete: two hosts do better.
`catch_up` measures; `protected.py` measures orders.

Run as `python -m chaos.bench.replication JOURNAL ADDRESS`, it is the standby.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import uvloop

from cluster.clock import unix_ns
from cluster.core.errors import BatonError
from cluster.core.ids import LogIndex, NodeId, Term
from cluster.core.insync import ProposeChange
from cluster.core.log import KIND_TERM_STARTED, make_entry
from cluster.delivery import Delivery
from cluster.follower import Follower
from cluster.journal import Journal
from cluster.replication import Digests, LeaderLog, ReplicationServer

LEADER, STANDBY, TERM = NodeId("n1"), NodeId("n2"), Term(1)
CLUSTER = "bench"
KIND = 16
BODY = b"b" * 100
LIMIT_S = 120.0


# -- the standby's process ----------------------------------------------------------------------------------


async def _standby(path: Path, address: str) -> None:
    """Follow until stdin closes, which is also how a parent's death is noticed."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()
    journal = Journal.open(path, cluster=CLUSTER)
    delivery = Delivery(journal, journal.commit_index, lambda _entries: None, failed.set_exception)
    follower = Follower(
        journal,
        STANDBY,
        delivery,
        Digests(),
        random.Random(1),
        on_snapshot=lambda _s: None,
        on_stop=failed.set_exception,
    )
    follower.follow(LEADER, address, TERM)
    closed = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.wait({failed, closed}, return_when=asyncio.FIRST_COMPLETED)
    await follower.close()
    journal.close()
    if failed.done():
        failed.result()


# -- the leader, in this process ------------------------------------------------------------------------------


class Leader:
    """A leader with a journal in `directory`, whose keeper always says yes."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal.open(directory / "leader.db", cluster=CLUSTER)
        self.server = ReplicationServer(self.journal, LEADER, [LEADER, STANDBY], Digests())
        self._revision = 1
        self._in_sync = asyncio.Event()

    async def start(self) -> str:
        """Listen and begin term 1; the address."""
        port = await self.server.start("127.0.0.1:0")
        members = {LEADER: self.journal.journal_id}
        self.log = LeaderLog(self.journal, LEADER, TERM, members, 1, propose=self._grant, on_commit=lambda _index: None)
        self.log.append(KIND_TERM_STARTED, b"", unix_ns())
        self.server.lead(self.log)
        return f"127.0.0.1:{port}"

    def _grant(self, change: ProposeChange) -> None:
        self._revision += 1
        asyncio.get_running_loop().call_later(0.001, self._granted, STANDBY in change.members)

    def _granted(self, in_sync: bool) -> None:
        self.log.change_done(self._revision)
        (self._in_sync.set if in_sync else self._in_sync.clear)()

    async def wait_in_sync(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._in_sync.wait()

    async def stop(self) -> None:
        await self.server.stop()
        await asyncio.to_thread(self.journal.close)


@asynccontextmanager
async def standby(directory: Path, address: str) -> AsyncIterator[None]:
    """A standby in a process of its own, ended with this block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaos.bench.replication", str(directory / "standby.db"), address,
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def catch_up(directory: Path, entries: int) -> int:
    """ns from the first message of a standby with an empty journal until `entries` are durable there, its process's
    start not counted."""
    leader = Leader(directory)
    done = asyncio.Event()
    last, chain = LogIndex(0), leader.journal.last.chain
    while last < entries:
        chunk = []
        for _ in range(min(1000, entries - last)):
            entry = make_entry(last, chain, Term(0), KIND, 0, BODY)
            last, chain = entry.index, entry.chain
            chunk.append(entry)
        await leader.journal.wait_room()
        leader.journal.submit(chunk, lambda index: done.set() if index == entries else None)
    await done.wait()
    address = await leader.start()
    try:
        async with asyncio.timeout(LIMIT_S), standby(directory, address):
            while not (followers := leader.log.followers()):  # noqa: ASYNC110 - another process makes it true
                await asyncio.sleep(0.001)
            started = time.perf_counter_ns()
            while followers[0].durable < entries:  # 1 ms of error in seconds
                await asyncio.sleep(0.001)
                followers = leader.log.followers() or followers
            return time.perf_counter_ns() - started
    finally:
        await leader.stop()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        uvloop.run(_standby(Path(sys.argv[1]), sys.argv[2]))
    except BatonError as e:
        sys.exit(str(e))
