"""What a protected append costs: durable here and on one standby, which is another process on this machine.

Run it: `python -m chaos.bench.replication`. Or import latency(), throughput() and catch_up(); they return nanoseconds.
Everything is real (SQLite, gRPC over loopback, a process for the standby) except the keeper, which grants each change
of the in-sync set after a millisecond. Both journals lie on one disk, so both syncs compete: two hosts do better.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
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

    async def append(self) -> None:
        await self.log.wait_committed(self.log.append(KIND, BODY, unix_ns()).index)

    async def stop(self) -> None:
        await self.server.stop()
        await asyncio.to_thread(self.journal.close)


@asynccontextmanager
async def standby(directory: Path, address: str) -> AsyncIterator[None]:
    """A standby in a process of its own, ended with this block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaos.bench.replication", "--standby", str(directory / "standby.db"), address,
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


async def latency(directory: Path, count: int, *, protected: bool = True, gap_s: float = 0.0) -> list[int]:
    """ns of `count` appends, one at a time, from append() to committed. protected False: on our disk alone.
    gap_s: pause between two, as orders come in life (an idle core sleeps, and takes time to wake)."""
    leader = Leader(directory)
    address = await leader.start()
    took: list[int] = []
    try:
        async with standby(directory, address) if protected else _nothing():
            if protected:
                await leader.wait_in_sync()
            for n in range(count + count // 10):
                if gap_s:
                    await asyncio.sleep(gap_s)
                at = time.perf_counter_ns()
                await leader.append()
                if n >= count // 10:  # the first tenth warms everything up
                    took.append(time.perf_counter_ns() - at)
    finally:
        await leader.stop()
    return took


async def throughput(directory: Path, count: int, writers: int = 64) -> list[int]:
    """ns of `count` protected appends made by `writers` at once, each waiting for its own; the sum of all that was
    done divided by the time it took is throughput_per_s()."""
    leader = Leader(directory)
    address = await leader.start()
    took: list[int] = []

    async def writer(n: int) -> None:
        for _ in range(n):
            at = time.perf_counter_ns()
            await leader.append()
            took.append(time.perf_counter_ns() - at)

    try:
        async with standby(directory, address):
            await leader.wait_in_sync()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(writers):
                    tasks.create_task(writer(count // writers))
    finally:
        await leader.stop()
    return took


def throughput_per_s(took: Sequence[int], writers: int = 64) -> float:
    """By Little's law: `writers` are always under way, so each takes writers / rate on average."""
    return writers / (sum(took) / len(took)) * 1e9


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


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


# -- the table ---------------------------------------------------------------------------------------------------


def _row(name: str, took: Sequence[int]) -> str:
    ordered = sorted(took)

    def at(share: float) -> str:
        return f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6:9.3f}"

    return f"{name:44} {at(0.5)} {at(0.9)} {at(0.99)} {ordered[-1] / 1e6:9.3f}"


def _run(make: object) -> object:
    """One measurement on a loop of its own, with the collector's pauses kept out as in the worker."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    gc.collect()
    gc.freeze()
    return uvloop.run(make)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--entries", type=int, default=300_000, help="for the catch-up")
    parser.add_argument("--directory", type=Path, default=None, help="where the journals go: the disk to measure")
    parser.add_argument("--standby", nargs=2, metavar=("JOURNAL", "ADDRESS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.standby:
            _run(_standby(Path(args.standby[0]), args.standby[1]))
            return
        print(f"{'ms':44} {'median':>9} {'p90':>9} {'p99':>9} {'max':>9}")
        for name, options in (
            ("append, own disk only", {"protected": False}),
            ("append, own disk and one standby", {}),
            ("the same, one every 5 ms", {"gap_s": 0.005}),
        ):
            with tempfile.TemporaryDirectory(dir=args.directory) as d:
                count = args.count // 5 if "gap_s" in options else args.count
                print(_row(name, _run(latency(Path(d), count, **options))), flush=True)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(dir=args.directory) as d:
            took: list[int] = _run(throughput(Path(d), args.count * 10))  # type: ignore[assignment]
            print(_row("the same, 64 at once", took))
            print(f"{'':44} {throughput_per_s(took):9,.0f} appends/s")
        with tempfile.TemporaryDirectory(dir=args.directory) as d:
            ns: int = _run(catch_up(Path(d), args.entries))  # type: ignore[assignment]
            print(f"{f'catch-up of {args.entries:,} entries':44} {args.entries / ns * 1e9:9,.0f} entries/s")
    except BatonError as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
