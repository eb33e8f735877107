"""The journal's file: its tables, its lock, and whether it still is what was written.

Touches SQLite only. Everything that a bit can hold is covered by something: entries by the chain, the snapshot and
each fact in `meta` by a checksum, the tree around them by SQLite's own check of pages and cells. What cannot be
known from the file alone: whether the last transaction before a power cut was torn or never written; SQLite drops
it either way, and it was never acknowledged. After a clean close even that is known, from the `closed` fact.

Read next: `journal.py`, the running journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from .core.errors import BatonError, InvariantViolation, JournalCorrupt
from .core.ids import LogIndex, Term
from .core.log import Base, Snapshot, chain_after

APPLICATION_ID = 0x62746E6A  # "btnj", where `file` and SQLite look for it
SCHEMA_VERSION = 1
SIDE_FILES = ("-wal", "-shm")

TABLES = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID",
    "entries": (
        "CREATE TABLE entries (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL, "
        "at INTEGER NOT NULL, body BLOB NOT NULL, chain BLOB NOT NULL)"
    ),
    "snapshots": (
        "CREATE TABLE snapshots (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, chain BLOB NOT NULL, "
        "digest BLOB NOT NULL, blob BLOB NOT NULL, sum BLOB NOT NULL)"
    ),
}
INSERT_ENTRY = "INSERT INTO entries (idx, term, kind, at, body, chain) VALUES (?, ?, ?, ?, ?, ?)"
SELECT_ENTRIES = "SELECT idx, term, kind, at, body, chain FROM entries"

FACTS = ("base", "boot_id", "closed", "cluster", "commit", "etcd_cluster_id", "highest_term", "journal_id", "volatile")
"""Every key of `meta`; all exist from the first moment, so that one that is missing was lost."""

_SUM_BYTES = 16
_POSITION = struct.Struct(">qq32s")


class JournalLocked(BatonError):
    """Another process has this journal open."""


def pack_base(base: Base) -> bytes:
    return _POSITION.pack(*base)


def unpack_base(value: bytes) -> Base:
    index, term, chain = _POSITION.unpack(value)
    return Base(LogIndex(index), Term(term), chain)


def fact_sum(key: str, value: bytes) -> bytes:
    return blake2b(value, digest_size=_SUM_BYTES, person=key.encode()[:16]).digest()


def snapshot_sum(s: Snapshot) -> bytes:
    h = blake2b(_POSITION.pack(s.index, s.term, s.chain), digest_size=_SUM_BYTES)
    h.update(len(s.digest).to_bytes(4, "big") + s.digest)
    h.update(s.blob)
    return h.digest()


def corrupt(path: Path, why: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"journal {path}: {why}. It is not what was written, and no order may rest on it. Keep the file"
        f"{_look_closer(path)}. A node that finds this renames it, and comes back as an "
        "empty follower that fetches everything from the leader."
    )


def _look_closer(path: Path) -> str:
    return f"; look closer with `baton journal verify {path}`"


# -- the lock -----------------------------------------------------------------------------------------------


class FileLock:
    """A flock beside the journal: one process at a time. SQLite's own locks would let a second writer in between
    two transactions, and readers (verify, an operator's query) are welcome while we run."""

    def __init__(self, journal: Path) -> None:
        path = Path(f"{journal}.lock")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise JournalLocked(
                f"journal {journal} is open in another process (pid {holder}); "
                "stop that one first, or give this node another data directory"
            ) from None
        with contextlib.suppress(OSError):  # for people only: a full disk shows where it matters
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


# -- connections --------------------------------------------------------------------------------------------


def refuse_orphaned_log(path: Path) -> None:
    """SQLite deletes a write-ahead log whose database is gone or shorter than a page; its entries would go unmissed."""
    wal = Path(f"{path}-wal")
    if (not path.exists() or path.stat().st_size < 512) and wal.exists() and wal.stat().st_size > _WAL_HEADER.size:
        raise corrupt(path, f"it is missing or cut off, but its write-ahead log {wal.name} is not")


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode. Text comes back as bytes: a flipped type bit must not become an error of
    decoding far from here."""
    uri = f"file:{quote(str(path))}?mode={'ro' if read_only else 'rwc'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
    db.text_factory = bytes
    return db


def create(db: sqlite3.Connection, facts: dict[str, bytes]) -> None:
    """Make the tables and every fact, in one transaction. The file is either empty or a journal, never between."""
    if facts.keys() != set(FACTS):
        raise InvariantViolation(f"journal facts {sorted(facts)} are not {sorted(FACTS)}")
    db.execute("BEGIN IMMEDIATE")
    for sql in TABLES.values():
        db.execute(sql)
    for key, value in facts.items():
        put_fact(db, key, value)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")


def put_fact(db: sqlite3.Connection, key: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, fact_sum(key, value)))


def is_empty(db: sqlite3.Connection) -> bool:
    """A new file, or one whose creation a crash cut short. A journal that merely lost its table list has pages."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    app = db.execute("PRAGMA application_id").fetchone()[0]
    return bool(tables == 0 and pages <= 1 and app == 0)


# -- reading it all, and believing nothing -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contents:
    """What a journal that passed every check holds."""

    facts: dict[str, bytes]
    base: Base
    last: Base  # index, term and chain of the last entry; == base when there is none
    entries: int
    snapshot: Snapshot | None  # the newest; its blob included


def load(db: sqlite3.Connection, path: Path) -> Contents:
    """Check everything (this module's docstring) and return what is there. Raises JournalCorrupt.

    About 2 s for 500,000 entries of 100 bytes.
    """
    try:
        db.execute("BEGIN")  # one state, even while a node writes
        try:
            return _load(db, path)
        finally:
            db.execute("ROLLBACK")
    except (sqlite3.Error, struct.error, TypeError, ValueError, OverflowError, UnicodeError) as e:
        raise corrupt(path, f"unreadable ({type(e).__name__}: {e})") from e


def _load(db: sqlite3.Connection, path: Path) -> Contents:
    _check_shape(db, path)
    facts = _load_facts(db, path)
    base = unpack_base(facts["base"])
    snapshot = _load_snapshot(db, path)
    if base.index and (snapshot is None or snapshot.index < base.index):
        raise corrupt(path, f"entries up to {base.index} are pruned, but no snapshot stands for them")
    marks = {snapshot.index: snapshot.chain} if snapshot else {}
    last, count = _check_chain(db, path, base, marks)
    if snapshot and last.index < snapshot.index:
        raise corrupt(path, f"it ends at index {last.index}, before its snapshot at {snapshot.index}")
    if (closed := facts["closed"]) and unpack_base(closed) != last:
        raise corrupt(
            path, f"it was closed with its end at index {unpack_base(closed).index}, now it ends at {last.index}"
        )
    if (committed := int(facts["commit"])) > last.index:
        raise corrupt(path, f"it ends at index {last.index}, but {committed} was committed here")
    return Contents(facts, base, last, count, snapshot)


def _check_shape(db: sqlite3.Connection, path: Path) -> None:
    app = db.execute("PRAGMA application_id").fetchone()[0]
    if app != APPLICATION_ID:
        raise corrupt(path, f"it is not a Baton journal (application id {app:#x})")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise corrupt(path, f"its schema version is {version}; this Baton reads {SCHEMA_VERSION} (upgrade the node?)")
    found = {bytes(n).decode(): bytes(sql).decode() for n, sql in db.execute("SELECT name, sql FROM sqlite_master")}
    if found != TABLES:
        raise corrupt(path, f"its tables are not the ones that were made: {sorted(found)}")
    problems = [bytes(r[0]).decode(errors="replace") for r in db.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        raise corrupt(path, f"its pages are damaged ({'; '.join(problems)})")


def _load_facts(db: sqlite3.Connection, path: Path) -> dict[str, bytes]:
    facts = {}
    for key_bytes, value, check in db.execute("SELECT key, value, sum FROM meta"):
        key = bytes(key_bytes).decode(errors="replace")
        if key not in FACTS or fact_sum(key, value) != check:
            raise corrupt(path, f"fact {key!r} does not match its checksum")
        facts[key] = value
    if missing := sorted(set(FACTS) - facts.keys()):
        raise corrupt(path, f"facts {missing} are missing")
    return facts


def _load_snapshot(db: sqlite3.Connection, path: Path) -> Snapshot | None:
    newest = None
    for *columns, check in db.execute("SELECT idx, term, chain, digest, blob, sum FROM snapshots ORDER BY idx"):
        newest = Snapshot(*columns)
        if snapshot_sum(newest) != check:
            raise corrupt(path, f"the snapshot at index {newest.index} does not match its checksum")
    return newest


def _check_chain(db: sqlite3.Connection, path: Path, base: Base, marks: dict[LogIndex, bytes]) -> tuple[Base, int]:
    """Walk the entries from `base` to the end. Rows at or below the base are leftovers of a prune, and no news.

    The loop is flat and calls little because a big journal is opened while a standby is missed.
    """
    index, term, chain = base
    rows = db.execute(SELECT_ENTRIES + " WHERE idx > ? ORDER BY idx", (base.index,))
    while batch := rows.fetchmany(4096):
        for i, t, kind, at, body, stored in batch:
            if i != index + 1:
                raise corrupt(path, f"entry {index + 1} is missing (the next one is {i})")
            if t < term:
                raise corrupt(path, f"entry {i}: its term {t} is below its predecessor's, {term}")
            chain = chain_after(chain, i, t, kind, at, body)
            if chain != stored:
                raise corrupt(path, f"entry {i}: its chain is not the hash of what stands before it")
            index, term = i, t
            if marks and marks.get(i, chain) != chain:
                raise corrupt(path, f"the snapshot at index {i} and the entry there disagree")
    if marks.get(base.index, base.chain) != base.chain:
        raise corrupt(path, f"the snapshot at index {base.index} does not match the beginning of the entries")
    return Base(LogIndex(index), Term(term), chain), index - base.index


# -- the write-ahead log --------------------------------------------------------------------------------------

_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")


def check_wal(path: Path, valid_frames: int | None = None) -> None:
    """Tell a torn write from damage in the middle. Call after a first read on an open connection.

    valid_frames: how many SQLite takes for good. None: read from its index file, which whoever still has a connection
    of its own to this journal must not do: closing any descriptor of a file drops this process's POSIX locks on it, and
    SQLite's among them. Another process could then truncate the index under a running node (SIGBUS).

    SQLite stops at the first frame whose checksum fails and drops what follows, silently: right for a torn write,
    wrong for a flipped bit in an acknowledged transaction. Since each transaction is synced before the next one is
    written, at most *one* commit record of this generation can legitimately stand behind the end; two mean damage.
    (Formats: sqlite.org/walformat.html: WAL header and frames 4.1-4.2, mxFrame in the wal-index header 2.1.)
    """
    wal, shm = Path(f"{path}-wal"), Path(f"{path}-shm")
    try:
        with wal.open("rb") as f:
            header = f.read(_WAL_HEADER.size)
            if len(header) < _WAL_HEADER.size or not any(header):
                return  # not begun: nothing in it was ever acknowledged
            if not _wal_header_ok(header):
                raise corrupt(path, "the header of its write-ahead log is damaged")
            ours = _last_valid_frame(shm) if valid_frames is None else valid_frames
            _, _, page_size, _, *salts, _, _ = _WAL_HEADER.unpack(header)
            frame_bytes = _FRAME_HEADER.size + page_size
            f.seek(_WAL_HEADER.size + ours * frame_bytes)
            commits = 0
            while len(frame := f.read(frame_bytes)) == frame_bytes:
                _, size_after_commit, *frame_salts, _, _ = _FRAME_HEADER.unpack_from(frame)
                commits += bool(size_after_commit) and frame_salts == salts
            if commits > 1 and (valid_frames is not None or ours == _last_valid_frame(shm)):
                # else a running node is writing them right now
                raise corrupt(path, f"{commits} transactions stand behind a damaged one in its write-ahead log")
    except FileNotFoundError:
        return


def _last_valid_frame(shm: Path) -> int:
    with shm.open("rb") as index:
        return int.from_bytes(index.read(20)[16:20], sys.byteorder)


def _wal_header_ok(header: bytes) -> bool:
    magic = int.from_bytes(header[:4], "big")
    if magic not in (0x377F0682, 0x377F0683):
        return False
    words = struct.unpack(">6I" if magic & 1 else "<6I", header[:24])
    a = b = 0
    for x, y in zip(words[::2], words[1::2], strict=True):
        a = (a + x + b) & 0xFFFFFFFF
        b = (b + y + a) & 0xFFFFFFFF
    return struct.unpack(">2I", header[24:]) == (a, b)


# -- for operators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JournalReport:
    """What `baton journal verify` prints. problem None: every check passed; else it does not advise to verify."""

    path: Path
    problem: str | None
    journal_id: str = ""
    cluster: str = ""
    highest_term: int = 0
    first_index: int = 0
    last_index: int = 0
    last_term: int = 0
    chain: str = ""
    entries: int = 0
    snapshot_index: int | None = None
    bytes_on_disk: int = 0


def verify(path: Path) -> JournalReport:
    """Check the journal without changing it, also while a node runs on it (one consistent state is read).

    Never raises for a damaged journal; raises BatonError if there is none, or it may not be read.
    """
    if not path.is_file():
        raise BatonError(f"there is no journal at {path}; give the path of a node's journal file")
    try:
        db = connect(path, read_only=True)
        try:
            held = load(db, path)
            check_wal(path)  # last: see there what it does to our locks
        finally:
            db.close()
    except JournalCorrupt as e:
        return _damaged(path, e)
    except sqlite3.OperationalError as e:
        if "unable to open" in str(e) or "readonly" in str(e):
            raise BatonError(f"journal {path} cannot be read here: {e}; run this as the node's user") from e
        return _damaged(path, corrupt(path, f"unreadable ({e})"))
    except sqlite3.DatabaseError as e:
        return _damaged(path, corrupt(path, f"unreadable ({e})"))
    return JournalReport(
        path,
        None,
        held.facts["journal_id"].decode(),
        held.facts["cluster"].decode(),
        int(held.facts["highest_term"]),
        held.base.index + 1,
        held.last.index,
        held.last.term,
        held.last.chain.hex(),
        held.entries,
        held.snapshot.index if held.snapshot else None,
        _size(path),
    )


def _damaged(path: Path, error: JournalCorrupt) -> JournalReport:
    return JournalReport(path, str(error).replace(_look_closer(path), ""), bytes_on_disk=_size(path))


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path, Path(f"{path}-wal")) if p.exists())


def set_aside(path: Path, now: datetime | None = None) -> Path:
    """Rename a corrupt journal, with its side files, to `<name>.corrupt-<UTC>`; return the new path. Nothing is
    deleted: an auditor wants it. Raises JournalLocked while a process has it open."""
    lock = FileLock(path)
    try:
        stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
        target, n = Path(f"{path}.corrupt-{stamp}"), 1
        while target.exists():
            n += 1
            target = Path(f"{path}.corrupt-{stamp}-{n}")
        # Side files first: should we die in between, the database is still found damaged, not found without its log.
        for side in SIDE_FILES:
            if (old := Path(f"{path}{side}")).exists():
                old.rename(f"{target}{side}")
        if path.exists():  # not when only its write-ahead log is left
            path.rename(target)
        sync_directory(path.parent)
        return target
    finally:
        lock.release()


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
