"""The journal contract, against the real journal on SQLite and against the simulator's."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from chaos.sim.disk import Disk, SimJournal
from cluster.core.errors import JournalBroken
from cluster.core.ids import LogIndex, Term
from cluster.core.log import Snapshot
from cluster.journal import Journal
from cluster.journal_writer import JournalLimits, Task
from tests.contract.journal_contract import JournalContract
from tests.support.timeline import Timeline


class SimBench:
    """The disk answers only while somebody waits: time does not pass otherwise."""

    journal: SimJournal

    def __init__(self) -> None:
        self.time = Timeline()
        self.disk = Disk("n1", "c1", self.time.call_later, lambda: 1_000_000)
        self.open()

    def open(self) -> None:
        self.journal = self.disk.open()

    async def flush(self) -> None:
        self._wait(self.journal.flush)

    async def raise_term(self, term: Term) -> None:
        self._wait(lambda done: self.journal.raise_term(term, done))

    async def set_etcd_cluster_id(self, etcd_cluster_id: int) -> None:
        self._wait(lambda done: self.journal.set_etcd_cluster_id(etcd_cluster_id, done))

    async def save_snapshot(self, index: LogIndex, digest: bytes, blob: bytes) -> None:
        self._wait(lambda done: self.journal.save_snapshot(index, digest, blob, done))

    async def prune(self, keep: int) -> None:
        self._wait(lambda done: self.journal.prune(keep, done))

    async def install_snapshot(self, snapshot: Snapshot) -> None:
        self._wait(lambda done: self.journal.install_snapshot(snapshot, done))

    async def room(self) -> None:
        self._wait(self.journal.when_room)

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    async def reopen(self, limits: JournalLimits | None = None) -> None:
        self.journal.close()
        self.disk.limits = limits or self.disk.limits
        self.open()

    async def crash(self) -> None:
        self.disk.crash()
        self.open()

    def damage(self, index: LogIndex) -> None:
        self.journal.close()
        self.disk.flip(index)

    def refuse_writes(self) -> None:
        self.disk.fail()

    async def until_broken(self) -> None:
        self.time.run()

    def _wait(self, ask: Callable[[Callable[[], None]], None]) -> None:
        answered: list[bool] = []
        ask(lambda: answered.append(True))
        self.time.run(lambda: bool(answered))
        assert answered


class TestSimJournal(JournalContract):
    @pytest.fixture
    def bench(self) -> SimBench:
        return SimBench()


class FileBench:
    journal: Journal

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.db"
        self._go = threading.Event()
        self.open()

    def open(self, limits: JournalLimits | None = None) -> None:
        self.journal = Journal.open(self.path, cluster="c1", limits=limits)

    async def flush(self) -> None:
        await self.journal.flush(10)

    async def raise_term(self, term: Term) -> None:
        await self.journal.raise_term(term)

    async def set_etcd_cluster_id(self, etcd_cluster_id: int) -> None:
        await self.journal.set_etcd_cluster_id(etcd_cluster_id)

    async def save_snapshot(self, index: LogIndex, digest: bytes, blob: bytes) -> None:
        await self.journal.save_snapshot(index, digest, blob)

    async def prune(self, keep: int) -> None:
        await self.journal.prune(keep)

    async def install_snapshot(self, snapshot: Snapshot) -> None:
        await self.journal.install_snapshot(snapshot)

    async def room(self) -> None:
        async with asyncio.timeout(10):
            await self.journal.wait_room()

    def hold(self) -> None:
        self._go.clear()
        self._put(lambda _db: self._go.wait(10) and None)

    def release(self) -> None:
        self._go.set()

    async def reopen(self, limits: JournalLimits | None = None) -> None:
        self.journal.close()
        self.open(limits)

    async def crash(self) -> None:
        """The files as they are, under another name: the process that has them open goes on, and nobody asks it."""
        copy = self.path.with_name(f"after-{self.path.name}")
        for end in ("", "-wal"):
            shutil.copy(f"{self.path}{end}", f"{copy}{end}")
        self.journal.close()
        self.path = copy
        self.open()

    def damage(self, index: LogIndex) -> None:
        self.journal.close()
        with sqlite3.connect(self.path) as db:
            db.execute("UPDATE entries SET body = x'00' WHERE idx = ?", (index,))
        db.close()

    def refuse_writes(self) -> None:
        def refuse(_db: sqlite3.Connection) -> None:
            raise OSError(28, "No space left on device")

        self._put(refuse)

    async def until_broken(self) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    await self.journal.flush(10)
                except JournalBroken:
                    return

    def _put(self, work: Callable[[sqlite3.Connection], None]) -> None:
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.journal._writer.put(Task(work, future))


class TestJournal(JournalContract):
    @pytest.fixture
    async def bench(self, tmp_path: Path) -> AsyncIterator[FileBench]:
        bench = FileBench(tmp_path)
        yield bench
        bench.release()
        bench.journal.close()
