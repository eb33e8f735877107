"""The thread that owns the journal's only writing connection.

It takes what is queued, commits it as one transaction, and posts the outcome to the loop. Between two transactions it
folds the write-ahead log into the database and deletes pruned rows, in steps too small to be felt. The first error of
the disk is its last act.

Touches SQLite. What it shares with the loop's thread is in `Shared`. Read next: `journal.py`.
"""

from __future__ import annotations

import asyncio
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from . import journal_file as jf
from .core.errors import JournalBroken
from .core.ids import LogIndex
from .core.log import ENTRY_OVERHEAD, Base, Entry

log = structlog.get_logger()

OnDurable = Callable[[LogIndex], None]


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """queue: waiting for the disk. group: one transaction. cache: kept in memory for standbys.

    fold_bytes: about how much write-ahead log makes the folding thread run. Large enough that folding is rare,
    small enough that the log stays in the file's warm part (rewriting it costs a third less than growing it).
    """

    queue_entries: int = 65_536
    queue_bytes: int = 64 << 20
    group_entries: int = 4_096
    group_bytes: int = 4 << 20
    cache_entries: int = 65_536
    cache_bytes: int = 32 << 20
    fold_bytes: int = 4 << 20


@dataclass(slots=True)
class Write:
    """One call of submit(): cut, then append. on_durable gets the index of its last entry."""

    cut_after: LogIndex | None
    entries: Sequence[Entry]
    size: int
    on_durable: OnDurable
    end: LogIndex
    epoch: int  # how many cuts came before; what was written before a later cut proves nothing any more


@dataclass(slots=True)
class Task:
    """Anything rarer: runs inside the group's transaction, in queue order; its future then gets the result."""

    work: Callable[[sqlite3.Connection], None]
    future: asyncio.Future[None]


STOP = None


@dataclass(slots=True)
class Shared:
    """What both threads see; each field is written by one of them, whole, so there is no lock."""

    commit_index: LogIndex  # by the loop: known to be committed
    base_index: LogIndex  # by the loop: rows up to here may be deleted
    end: Base | None = None  # by the loop, before STOP: where the journal ends
    loop: asyncio.AbstractEventLoop | None = None  # by the loop, before the first item
    on_synced: Callable[[int], None] | None = None  # by the loop; called on the writer's thread
    broken: JournalBroken | None = None  # by the writer, before it says so


class Writer(threading.Thread):
    """See above. on_done and on_failed are called on the loop, with the items of a group."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        limits: JournalLimits,
        shared: Shared,
        on_done: Callable[[list[Write | Task]], None],
        on_failed: Callable[[list[Write | Task], JournalBroken], None],
    ) -> None:
        super().__init__(name="journal-writer", daemon=True)
        self._path, self._db, self._limits, self._shared = path, db, limits, shared
        self._on_done, self._on_failed = on_done, on_failed
        self._queue: queue.SimpleQueue[Write | Task | None] = queue.SimpleQueue()
        self.put = self._queue.put
        self._commit_noted, self._commit_noted_at = shared.commit_index, 0.0
        self._unfolded = 0  # bytes in the write-ahead log since it last began anew, roughly
        self._folder: threading.Thread | None = None
        self._prune_next = 0

    def run(self) -> None:
        error: JournalBroken | None = None
        group: list[Write | Task] = []
        clean = False
        try:
            while True:
                group, last_one = self._next_group()
                if group:
                    begun = time.perf_counter_ns()
                    self._commit(group)
                    if self._shared.on_synced is not None:
                        self._shared.on_synced(time.perf_counter_ns() - begun)
                    self._post(self._on_done, group)
                    group = []
                if last_one:
                    self._end()
                    clean = True
                    return
                self._between()
        except (sqlite3.Error, OSError) as e:
            error = broken(self._path, e)
        finally:
            # Also for an error that is none of the disk's: a journal without its writer must not look alive.
            if not clean:
                self._refuse_all(group, error or broken(self._path, RuntimeError("its writer thread died")))

    def _next_group(self) -> tuple[list[Write | Task], bool]:
        """Wait for work; everything that is queued by now, within the limits of one transaction."""
        group: list[Write | Task] = []
        entries = size = 0
        try:
            item = self._queue.get(timeout=0.0 if self._prune_due() else None)
            while item is not None:
                group.append(item)
                if isinstance(item, Write):
                    entries += len(item.entries)
                    size += item.size
                    if entries >= self._limits.group_entries or size >= self._limits.group_bytes:
                        return group, False
                item = self._queue.get_nowait()
            return group, True
        except queue.Empty:
            return group, False

    def _commit(self, group: list[Write | Task]) -> None:
        db = self._db
        if len(group) == 1 and isinstance(only := group[0], Write) and self._is_plain(only):
            db.execute(jf.INSERT_ENTRY, only.entries[0])  # a transaction of its own: the usual case when it is quiet
            self._unfolded += 4096 + only.size
            return
        db.execute("BEGIN IMMEDIATE")
        size = 4096
        for item in group:
            if isinstance(item, Task):
                item.work(db)
                size += 4096
                continue
            if item.cut_after is not None:
                db.execute("DELETE FROM entries WHERE idx > ?", (item.cut_after,))
            db.executemany(jf.INSERT_ENTRY, item.entries)
            size += item.size
        self._note_commit()
        db.execute("COMMIT")
        self._unfolded += size

    def _is_plain(self, item: Write) -> bool:
        return len(item.entries) == 1 and item.cut_after is None and time.monotonic() - self._commit_noted_at < 1.0

    def _note_commit(self, *, now_anyway: bool = False) -> None:
        index, now = self._shared.commit_index, time.monotonic()
        if now - self._commit_noted_at < 1.0 and not now_anyway:
            return
        self._commit_noted_at = now
        if index > self._commit_noted:
            # Never above what this transaction makes durable: a commit index beyond the end reads as a lost tail.
            last = self._db.execute("SELECT max(idx) FROM entries").fetchone()[0] or self._shared.base_index
            jf.put_fact(self._db, "commit", str(min(index, last)).encode())
            self._commit_noted = index

    # -- between two groups -----------------------------------------------------------------------------------

    def _between(self) -> None:
        if self._folder is not None and not self._folder.is_alive():
            # The bulk is folded; the few pages written meanwhile are folded here, so that the log can begin anew.
            self._folder = None
            self._fold(self._db)
            self._unfolded = 0
        elif self._unfolded > self._limits.fold_bytes and self._folder is None:
            self._folder = threading.Thread(target=self._fold_apart, name="journal-fold", daemon=True)
            self._folder.start()
        if self._prune_due() and self._queue.empty():
            self._prune_some()

    @staticmethod
    def _fold(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _fold_apart(self) -> None:
        try:
            db = jf.connect(self._path)
            try:
                self._fold(db)
            finally:
                db.close()
        except sqlite3.Error as e:
            # The entries are safe in the log; the writer meets the same disk a moment later, and breaks if it must.
            log.warning("journal_fold_failed", path=str(self._path), reason=str(e))

    PRUNE_STEP = 500

    def _prune_due(self) -> bool:
        return self._prune_next < self._shared.base_index

    def _prune_some(self) -> None:
        """Delete a few rows that no one can ask for any more; more when there is nothing else to do."""
        base = self._shared.base_index
        first = self._db.execute("SELECT min(idx) FROM entries").fetchone()[0]
        if first is None or first > base:
            self._prune_next = base
            return
        upto = min(base, first + self.PRUNE_STEP - 1)
        self._db.execute("DELETE FROM entries WHERE idx <= ?", (upto,))
        self._unfolded += self.PRUNE_STEP * ENTRY_OVERHEAD

    # -- the end ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._folder is not None:
            self._folder.join()
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        self._note_commit(now_anyway=True)
        if self._shared.end is not None:
            jf.put_fact(db, "closed", jf.pack_base(self._shared.end))
        db.execute("COMMIT")
        db.close()

    def _refuse_all(self, group: list[Write | Task], error: JournalBroken) -> None:
        self._shared.broken = error  # before anything else: from here on submit() refuses
        try:
            while (item := self._queue.get_nowait()) is not None:
                group.append(item)
        except queue.Empty:
            pass
        self._post(self._on_failed, group, error)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        loop = self._shared.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)


def broken(path: Path, e: Exception) -> JournalBroken:
    try:
        usage = shutil.disk_usage(path.parent)
        space = f"{usage.free >> 20} of {usage.total >> 20} MiB are free there"
    except OSError as gone:
        space = f"and the directory cannot be looked at either ({gone.strerror})"
    return JournalBroken(
        f"journal {path}: the disk refused a write ({e}); {space}. Nothing more is written: the end of the file is "
        "unknown now. Free space or replace the disk, then restart the node, which checks the journal as it opens it"
    )
