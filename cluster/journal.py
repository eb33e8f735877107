"""The running journal: the replicated log on SQLite (DESIGN 5).

    committed <= durable <= last            durable: on our disk. last: accepted into the queue.

One writer thread owns the only writing connection. submit() puts work on its queue and returns; everything queued
while it is busy goes into its next transaction, so that one sync serves all (group commit). It answers on the event
loop, once per group. Any error of the disk breaks the journal for good: after a failed sync the tail is unknown, and
a second sync may wrongly succeed.

The loop keeps the youngest entries in memory: streaming to standbys reads the disk only for one that is far behind.
The write-ahead log is folded into the database by a thread of its own: that takes a sync of many pages, which no
order should wait for.

All methods but the blocking ones (named so) are for the loop's thread. Read next: `journal_file.py`, `replication.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import structlog

from . import journal_file as jf
from .core.errors import BatonError, ConfigError, InvariantViolation, JournalBroken, JournalBusy, OutcomeUnknown
from .core.ids import JournalId, LogIndex, Term
from .core.log import BEGINNING, ENTRY_OVERHEAD, Base, Entry, Snapshot, check_follows, require_uncommitted
from .journal_file import JournalLocked, JournalReport, set_aside, verify
from .journal_writer import STOP, JournalLimits, OnDurable, Shared, Task, Write, Writer, broken

__all__ = [
    "Journal",
    "JournalBusy",
    "JournalLimits",
    "JournalLocked",
    "JournalReport",
    "Snapshot",
    "set_aside",
    "verify",
]

log = structlog.get_logger()

Durability = Literal["disk", "memory"]


class Journal:
    """Open with Journal.open(); close() when done. Used from one event loop."""

    def __init__(
        self, path: Path, db: sqlite3.Connection, lock: jf.FileLock, held: jf.Contents, limits: JournalLimits
    ) -> None:
        self.path = path
        self.limits = limits
        self.cluster = held.facts["cluster"].decode()
        self.journal_id = JournalId(held.facts["journal_id"].decode())
        self.highest_term = Term(max(int(held.facts["highest_term"]), held.last.term))
        self.etcd_cluster_id = int(held.facts["etcd_cluster_id"])
        self.base: Base = held.base
        self.last: Base = held.last
        self.durable_index = held.last.index
        self.commit_index = LogIndex(0)
        self.snapshot_index = held.snapshot.index if held.snapshot else None
        self.on_broken: Callable[[JournalBroken], None] | None = None
        """Called once, on the loop, when the disk has refused."""
        self._db, self._lock = db, lock
        self._point = jf.connect(path, read_only=True)  # single rows, for the loop's thread
        self._bulk = jf.connect(path, read_only=True)  # ranges, for helper threads
        self._bulk_lock = threading.Lock()
        self._closed = False
        self._waiting_entries = self._waiting_bytes = 0
        self._room: list[asyncio.Future[None]] = []
        self._tail: list[Entry] = []  # the youngest entries, without gaps, up to `last`
        self._tail_bytes = 0
        self._epoch = 0
        self._failure_told = False
        self._shared = Shared(LogIndex(0), self.base.index)
        self.note_commit(LogIndex(max(int(held.facts["commit"]), held.snapshot.index if held.snapshot else 0)))
        self._writer = Writer(path, db, limits, self._shared, self._group_done, self._group_failed)
        self._writer.start()

    # -- opening and closing (blocking) ----------------------------------------------------------------------

    @classmethod
    def open(
        cls, path: Path, *, cluster: str, durability: Durability = "disk", limits: JournalLimits | None = None
    ) -> Journal:
        """Open the journal at `path`, or make it. Blocking: about 2 s per 500,000 entries, all of which are checked.

        durability "memory": acknowledge before the disk has it. A power cut may then lose the tail, so the journal
        takes a new id when it finds that the machine was booted since: the in-sync set does not know it any more.
        Raises JournalCorrupt, JournalLocked, ConfigError (another cluster's journal, a path that cannot be used).
        """
        try:
            lock = jf.FileLock(path)
        except OSError as e:
            raise ConfigError(f"journal {path}: {e.strerror}; make the directory, or let this user write there") from e
        try:
            jf.refuse_orphaned_log(path)
            db = jf.connect(path)
            try:
                held = _prepare(db, path, cluster, durability)
                return cls(path, db, lock, held, limits or JournalLimits())
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as e:
            lock.release()
            raise _cannot_open(path, e) from e
        except BaseException:
            lock.release()
            raise

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued, note the clean end, release the file. Blocking, at most timeout_s, after which the
        thread is left to the process's end (a stalled disk): the file is then as after a crash, which is fine."""
        if self._closed:
            return
        self._closed = True
        self._shared.end = self.last
        self._writer.put(STOP)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            log.warning("journal_close_timed_out", path=str(self.path), timeout_s=timeout_s)
            return
        self._db.close()  # still open only if the disk refused
        self._point.close()
        with self._bulk_lock:
            self._bulk.close()
        self._lock.release()

    def on_synced(self, tell: Callable[[int], None]) -> None:
        """Call `tell` with the ns of every durable group commit from here on, on the writer's thread."""
        self._shared.on_synced = tell

    # -- writing ------------------------------------------------------------------------------------------------

    def submit(
        self,
        entries: Sequence[Entry],
        on_durable: OnDurable,
        *,
        cut_after: LogIndex | None = None,
    ) -> None:
        """Drop everything after `cut_after`, append `entries` (one transaction), and call on_durable(last index of
        them) on the loop once they are on disk. Calls come in order; of several that end in one group and have the
        same on_durable, only the last is made, since it includes the others.

        Raises JournalBroken; JournalBusy when the queue is full; InvariantViolation for a gap, or for a cut below
        the commit index. Nothing was taken then. The caller has checked the chains (log.verify, FollowerLog).
        """
        self.require_usable()
        previous = self.last
        if cut_after is not None and cut_after < previous.index:
            previous = self._before_cut(cut_after)
        else:
            cut_after = None
        end = check_follows(previous, entries)
        size = sum(len(e.body) for e in entries) + ENTRY_OVERHEAD * len(entries)
        full = self._waiting_entries + len(entries) > self.limits.queue_entries
        if self._waiting_entries and (full or self._waiting_bytes + size > self.limits.queue_bytes):
            raise JournalBusy(
                f"journal {self.path}: {self._waiting_entries} entries wait for the disk, which is as many as may wait"
            )
        if cut_after is not None:
            self._cut_tail(cut_after)
        self._tail.extend(entries)
        self._tail_bytes += size
        self.last = end
        self.highest_term = max(self.highest_term, end.term)
        self._waiting_entries += len(entries)
        self._waiting_bytes += size
        self._writer.put(Write(cut_after, entries, size, on_durable, end.index, self._epoch))

    def _before_cut(self, cut_after: LogIndex) -> Base:
        require_uncommitted(cut_after, self.commit_index)
        chain, term = self.chain_at(cut_after), self.term_at(cut_after)
        if chain is None or term is None:
            raise InvariantViolation(
                f"asked to cut the journal after index {cut_after}, below its base {self.base.index}"
            )
        return Base(cut_after, term, chain)

    def _cut_tail(self, cut_after: LogIndex) -> None:
        keep = max(0, len(self._tail) - (self.last.index - cut_after))
        del self._tail[keep:]
        self._tail_bytes = sum(len(e.body) + ENTRY_OVERHEAD for e in self._tail)
        self.durable_index = min(self.durable_index, cut_after)
        self._epoch += 1

    def require_usable(self) -> None:
        """Raises JournalBroken, also once closed."""
        if self._shared.broken:
            raise self._shared.broken
        if self._closed:
            raise JournalBroken(f"journal {self.path} is closed; nothing can be written to it")
        self._running_loop()

    @property
    def has_room(self) -> bool:
        """Whether the queue is less than half full."""
        limits = self.limits
        return self._waiting_entries * 2 <= limits.queue_entries and self._waiting_bytes * 2 <= limits.queue_bytes

    async def wait_room(self) -> None:
        """Return once has_room. Raises JournalBroken."""
        self.require_usable()
        while not self.has_room:
            room = self._running_loop().create_future()
            self._room.append(room)
            await room
            self.require_usable()

    async def flush(self, timeout_s: float) -> None:
        """Return once everything submitted so far is durable. Raises JournalBroken; OutcomeUnknown on timeout."""
        await self._run(lambda _db: None, timeout_s)

    async def raise_term(self, term: Term, timeout_s: float = 5.0) -> None:
        """Remember `term` as the highest ever seen, durably. Never lowers it. Errors as flush()."""
        if term > self.highest_term:
            self.highest_term = term
            await self._put_fact("highest_term", str(term).encode(), timeout_s)
        else:
            await self.flush(timeout_s)  # what raised it before us may be on its way to the disk still

    async def set_etcd_cluster_id(self, etcd_cluster_id: int, timeout_s: float = 5.0) -> None:
        """Remember which etcd this journal belongs to, durably. Errors as flush()."""
        self.etcd_cluster_id = etcd_cluster_id
        await self._put_fact("etcd_cluster_id", str(etcd_cluster_id).encode(), timeout_s)

    def note_commit(self, index: LogIndex) -> None:
        """Everything up to `index` is committed. Kept in memory, and written along now and then (at most once a
        second): after a restart it is a lower bound, which is all it is needed for."""
        self.commit_index = self._shared.commit_index = max(self.commit_index, index)

    async def save_snapshot(self, index: LogIndex, digest: bytes, blob: bytes, timeout_s: float = 30.0) -> None:
        """Store the book as of entry `index` (committed, durable) and drop older snapshots. Errors as flush()."""
        chain, term = self.chain_at(index), self.term_at(index)
        if chain is None or term is None or index > min(self.commit_index, self.durable_index):
            raise InvariantViolation(
                f"snapshot at index {index}: not within [{self.base.index}, committed {self.commit_index}]"
            )
        snapshot = Snapshot(index, term, chain, digest, blob)
        await self._run(lambda db: _put_snapshot(db, snapshot), timeout_s)
        self.snapshot_index = index

    async def prune(self, keep: int, timeout_s: float = 30.0) -> None:
        """Let go of entries that the snapshot replaces, but for the youngest `keep` up to it (standbys that are a
        little behind need no snapshot then). The rows themselves are deleted in small steps, when the disk is idle."""
        if self.snapshot_index is None:
            return
        index = LogIndex(self.snapshot_index - keep)
        chain, term = self.chain_at(index), self.term_at(index)
        if index <= self.base.index or chain is None or term is None:
            return
        base = Base(index, term, chain)
        await self._run(lambda db: jf.put_fact(db, "base", jf.pack_base(base)), timeout_s)
        self.base, self._shared.base_index = base, base.index
        self._writer.put(Task(lambda _db: None, self._running_loop().create_future()))  # wakes it, should it be idle

    async def install_snapshot(self, snapshot: Snapshot, timeout_s: float = 30.0) -> None:
        """Replace everything by `snapshot`, in one transaction. Errors as flush(); InvariantViolation if that would
        lose a committed entry."""
        require_uncommitted(snapshot.index, self.commit_index)
        base = Base(snapshot.index, snapshot.term, snapshot.chain)
        self._tail, self._tail_bytes = [], 0
        self.last, self.base, self.durable_index = base, base, LogIndex(0)
        self._epoch += 1

        def replace(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries")
            _put_snapshot(db, snapshot)
            jf.put_fact(db, "base", jf.pack_base(base))
            jf.put_fact(db, "commit", str(base.index).encode())

        await self._run(replace, timeout_s)
        self.durable_index, self.snapshot_index = base.index, base.index
        self._shared.base_index = base.index
        self.note_commit(base.index)

    # -- reading ------------------------------------------------------------------------------------------------

    def tail(self, first: LogIndex, max_bytes: int, max_entries: int = 4096) -> list[Entry] | None:
        """Entries from `first` on, from memory, durable or not, at least one if there is one. None: not in memory."""
        start = first - (self.last.index + 1 - len(self._tail))
        if start < 0:
            return None if first <= self.last.index else []
        return _within(self._tail[start : start + max_entries], max_bytes)

    def read(self, first: LogIndex, max_bytes: int, max_entries: int = 16_384) -> list[Entry]:
        """The same from disk. Blocking: for helper threads. Empty if `first` is pruned or not written yet."""
        with self._bulk_lock:
            rows = self._bulk.execute(
                jf.SELECT_ENTRIES + " WHERE idx >= ? ORDER BY idx LIMIT ?", (first, max_entries)
            ).fetchall()
        entries = [Entry._make(r) for r in rows]
        return _within(entries, max_bytes) if entries and entries[0].index == first else []

    def chain_at(self, index: LogIndex) -> bytes | None:
        """The chain at the base or at an entry. From memory, else one row from disk (about 20 us)."""
        if index == self.base.index:
            return self.base.chain
        entry = self._entry_at(index)
        return entry.chain if entry else None

    def term_at(self, index: LogIndex) -> Term | None:
        if index == self.base.index:
            return self.base.term
        entry = self._entry_at(index)
        return entry.term if entry else None

    def _entry_at(self, index: LogIndex) -> Entry | None:
        if not self.base.index < index <= self.last.index:
            return None
        at = index - (self.last.index + 1 - len(self._tail))
        if at >= 0:
            return self._tail[at]
        row = self._point.execute(jf.SELECT_ENTRIES + " WHERE idx = ?", (index,)).fetchone()
        return Entry._make(row) if row else None

    def latest_snapshot(self) -> Snapshot | None:
        """With its blob. Blocking: for helper threads."""
        with self._bulk_lock:
            row = self._bulk.execute(
                "SELECT idx, term, chain, digest, blob FROM snapshots ORDER BY idx DESC LIMIT 1"
            ).fetchone()
        return Snapshot(*row) if row else None

    # -- inside ---------------------------------------------------------------------------------------------------

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._shared.loop is None:
            self._shared.loop = asyncio.get_running_loop()
        return self._shared.loop

    async def _put_fact(self, key: str, value: bytes, timeout_s: float) -> None:
        await self._run(lambda db: jf.put_fact(db, key, value), timeout_s)

    async def _run(self, work: Callable[[sqlite3.Connection], None], timeout_s: float) -> None:
        self.require_usable()
        future = self._running_loop().create_future()
        self._writer.put(Task(work, future))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(future)
        except TimeoutError:
            future.add_done_callback(lambda f: f.cancelled() or f.exception())
            raise OutcomeUnknown(f"journal {self.path}: the disk did not answer within {timeout_s} s") from None

    def _group_done(self, group: list[Write | Task]) -> None:
        """On the loop, after a commit."""
        calls: list[tuple[OnDurable, LogIndex]] = []
        for item in group:
            if isinstance(item, Task):
                if not item.future.done():
                    item.future.set_result(None)
                continue
            self._waiting_entries -= len(item.entries)
            self._waiting_bytes -= item.size
            if item.epoch != self._epoch:
                continue  # cut away since; a later write answers for what stands there now
            if calls and calls[-1][0] == item.on_durable:
                calls[-1] = (item.on_durable, item.end)
            else:
                calls.append((item.on_durable, item.end))
        if calls:
            self.durable_index = max(self.durable_index, calls[-1][1])
            self._trim_tail()
        for room in self._room:
            if not room.done():
                room.set_result(None)
        self._room.clear()
        for on_durable, index in calls:
            on_durable(index)

    def _trim_tail(self) -> None:
        limits, first = self.limits, self.last.index + 1 - len(self._tail)
        if len(self._tail) <= limits.cache_entries and self._tail_bytes <= limits.cache_bytes:
            return
        # An eighth more than needed, so that this runs rarely; never an entry that the disk may not have yet.
        drop = max(0, len(self._tail) - limits.cache_entries) + limits.cache_entries // 8
        excess, n = self._tail_bytes - limits.cache_bytes, 0
        while excess > 0 and n < len(self._tail):
            excess -= len(self._tail[n].body) + ENTRY_OVERHEAD
            n += 1
        drop = min(max(drop, n), max(0, self.durable_index - first + 1))
        self._tail_bytes -= sum(len(e.body) + ENTRY_OVERHEAD for e in self._tail[:drop])
        del self._tail[:drop]

    def _group_failed(self, group: list[Write | Task], error: JournalBroken) -> None:
        """On the loop: the disk refused. Whoever waits learns it; on_broken tells the node."""
        for item in group:
            if isinstance(item, Task) and not item.future.done():
                item.future.set_exception(error)
        for room in self._room:
            if not room.done():
                room.set_result(None)
        self._room.clear()
        if not self._failure_told:
            self._failure_told = True
            log.error("journal_broken", path=str(self.path), reason=str(error))
            if self.on_broken:
                self.on_broken(error)


# -- opening, in detail -----------------------------------------------------------------------------------------


def _prepare(db: sqlite3.Connection, path: Path, cluster: str, durability: Durability) -> jf.Contents:
    """Make or check the file, and settle which journal it is from here on."""
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'disk' else 'NORMAL'}")
    db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()  # see journal_writer
    db.execute("PRAGMA secure_delete = OFF").fetchall()  # pruning would rewrite every page it frees
    boot = _boot_id()
    if jf.is_empty(db):
        jf.create(db, _first_facts(cluster, boot))
        _warm_up(db, JournalLimits().fold_bytes)
        jf.sync_directory(path.parent)
    # How many frames are good, from SQLite itself: (busy, frames in the log, frames folded).
    frames = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    jf.check_wal(path, max(0, frames))
    held = jf.load(db, path)
    if (theirs := held.facts["cluster"].decode()) != cluster:
        raise ConfigError(
            f"journal {path} belongs to cluster {theirs!r}, this node is configured for {cluster!r}; "
            "correct cluster.name, or give the node an empty data directory"
        )
    volatile = held.facts["volatile"].decode()
    facts = {"closed": b"", "boot_id": boot.encode(), "volatile": boot.encode() if durability == "memory" else b""}
    if volatile not in ("", boot):
        facts["journal_id"] = _new_id()
        log.warning("journal_renamed_after_boot", path=str(path), why="durability was memory: its tail may be lost")
    db.execute("BEGIN IMMEDIATE")
    for key, value in facts.items():
        jf.put_fact(db, key, value)
    db.execute("COMMIT")  # with FULL this also makes durable what an earlier run with "memory" had not
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # so that the log begins anew, in its warm part
    held.facts.update(facts)
    return held


def _first_facts(cluster: str, boot: str) -> dict[str, bytes]:
    facts = dict.fromkeys(jf.FACTS, b"")
    facts |= {"cluster": cluster.encode(), "journal_id": _new_id(), "boot_id": boot.encode()}
    facts |= {"base": jf.pack_base(BEGINNING)}
    return facts | dict.fromkeys(("commit", "etcd_cluster_id", "highest_term"), b"0")


def _warm_up(db: sqlite3.Connection, size: int) -> None:
    """Let the write-ahead log grow to its working size now: a sync that also has to note a longer file took 0.21 ms
    where one into existing blocks took 0.14. The database keeps the pages and uses them for entries later."""
    db.execute("CREATE TABLE warm (blob BLOB)")
    db.execute("INSERT INTO warm VALUES (zeroblob(?))", (size,))
    db.execute("DROP TABLE warm")
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _new_id() -> bytes:
    return secrets.token_hex(8).encode()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _put_snapshot(db: sqlite3.Connection, snapshot: Snapshot) -> None:
    db.execute("DELETE FROM snapshots")
    db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)", (*snapshot, jf.snapshot_sum(snapshot)))


def _within(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The first of `entries` that fit into max_bytes, but at least one."""
    size = 0
    for n, e in enumerate(entries):
        size += len(e.body) + ENTRY_OVERHEAD
        if size > max_bytes and n:
            return entries[:n]
    return entries


def _cannot_open(path: Path, e: sqlite3.Error) -> BatonError:
    name = getattr(e, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return JournalLocked(f"journal {path} is being written by another program ({e}); end that one first")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return ConfigError(f"journal {path} cannot be opened ({e}); make its directory writable for this user")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return broken(path, e)
    return jf.corrupt(path, f"unreadable ({type(e).__name__}: {e})")
