"""The venue's record: every line in one total order, hash-chained, in one SQLite file that others may read.

    chain(n) = blake2b(chain(n-1) || body(n)),   body = the line's JSON, venue_seq included

Touches: `record.sqlite3` in the venue's directory, and a lock on `record.lock` beside it, so that two venues
never write one record. A line is in the file before its effect is told to anybody: `commit` comes before every
reply and event. WAL with `synchronous=NORMAL`: a commit survives the death of the process (also SIGKILL); the
last ones may be lost when the machine loses power, which takes the paper exchange's clients with it as a rule.

`read_record` and `verify_record` open the file read-only, also while the venue runs or after it was killed.
Cutting lines off the end is the one forgery that a hash chain alone cannot show.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.core.errors import ConfigError, JournalBroken, JournalCorrupt
from node.types import Instrument

from .lines import Line, from_json, surface, to_json

FILE_NAME = "record.sqlite3"
GENESIS = bytes(32)
_CHUNK = 2000  # lines per read, each in its own transaction: a slow reader must not keep the WAL from being reset
_FORMAT = 1

# The columns beside `body` repeat parts of it, for the indexes; `verify_record` compares them.
# As few indexes as the questions need: each one costs every order a page to write.
_SCHEMA = """
CREATE TABLE line (
  venue_seq INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  account TEXT,
  client_order_id TEXT,
  event_seq INTEGER,
  body TEXT NOT NULL,
  chain BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX event ON line (account, event_seq) WHERE event_seq IS NOT NULL;
CREATE INDEX fill ON line (account, event_seq) WHERE kind = 'fill';
"""

_Row = tuple[int, str, str | None, str | None, int | None, str, bytes]
_COLUMNS = "venue_seq, kind, account, client_order_id, event_seq, body, chain"


class Record:
    """One writer. Not thread-safe but for `checkpoint`, which a helper thread may call."""

    def __init__(self, directory: Path, instruments: Mapping[str, Instrument]) -> None:
        """Open or create. Raises ConfigError if another venue has it open or the directory cannot be used,
        JournalCorrupt if the file is no record."""
        self.path = directory / FILE_NAME
        self._instruments = instruments
        self._lock = _lock(directory)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
            self._db.text_factory = _text
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # its fsyncs would stall an order; see `checkpoint`
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_FORMAT};COMMIT;")
            elif version != _FORMAT:
                raise sqlite3.DatabaseError(f"its format is {version}, this program reads {_FORMAT}")
        except sqlite3.Error as e:
            os.close(self._lock)
            raise JournalCorrupt(f"venue record {self.path} cannot be opened: {e}; move it away to start anew") from e
        self._chain = GENESIS
        self._pending: list[_Row] = []

    def replay(self) -> Iterator[Line]:
        """Every line, in order, its chain checked. Call to the end, once, before the first `append`.
        Raises JournalCorrupt at the first line that is not the one that was written."""
        for row in _verified(_rows(self._db), self.path):
            self._chain = row[-1]
            yield from_json(row[5])

    def append(self, line: Line) -> None:
        """Put the line behind the others; on disk only after `commit`."""
        body = to_json(line, self._instruments)
        self._chain = chain_after(self._chain, body)
        row = (line.venue_seq, line.kind, line.account, line.client_order_id, line.event_seq, body, self._chain)
        self._pending.append(row)

    def commit(self) -> None:
        """Make what was appended outlive this process. Raises JournalBroken: then nothing of it may be told to
        anybody, and the venue must stop, since its memory is ahead of its record."""
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO line ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            raise JournalBroken(f"venue record {self.path} cannot be written: {e}; free the disk, restart") from e

    def events(self, account: str, after_seq: int, limit: int) -> list[Line]:
        """Committed lines of the account's private stream with a higher event_seq, in order, at most `limit`."""
        return self._select("event_seq IS NOT NULL", account, after_seq, limit)

    def fills(self, account: str, after_seq: int, limit: int) -> list[Line]:
        return self._select("kind = 'fill'", account, after_seq, limit)

    def checkpoint(self) -> None:
        """Move the WAL into the file, on a connection of its own, while the writer goes on writing. Raises
        JournalBroken."""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None, timeout=1.0)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as e:
            raise JournalBroken(f"venue record {self.path} cannot be checkpointed: {e}; free the disk, restart") from e

    def close(self) -> None:
        """Commit and close. Idempotent."""
        if self._lock < 0:
            return
        try:
            self.commit()
        finally:
            self._db.close()
            os.close(self._lock)
            self._lock = -1

    def _select(self, where: str, account: str, after_seq: int, limit: int) -> list[Line]:
        rows = self._db.execute(
            f"SELECT body FROM line WHERE account = ? AND event_seq > ? AND {where} ORDER BY event_seq LIMIT ?",
            (account, after_seq, limit),
        )
        return [from_json(body) for (body,) in rows]


def read_record(path: Path, after_seq: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of a record with a higher venue_seq, oldest first, as the stable surface: every key of `lines.SURFACE`
    (qty and price as decimal strings, null where one does not apply), and others where they apply, among them `chain`
    (hex).

    path: the file, or the venue's directory. The venue may be running; lines written meanwhile are included.
    Does not check the chain: see `verify_record`. Raises ConfigError if there is no record.
    """
    with closing(_open_to_read(path)) as db:
        for row in _rows(db, after_seq):
            yield {**surface(row[5]), "chain": row[-1].hex()}


def verify_record(path: Path) -> int:
    """Check every line against the chain; return how many there are.

    Raises JournalCorrupt naming the first line that is missing or not as it was written, ConfigError if there is
    no record."""
    with closing(_open_to_read(path)) as db:
        return sum(1 for _ in _verified(_rows(db), path))


def _rows(db: sqlite3.Connection, after_seq: int = 0) -> Iterator[_Row]:
    last, limit, path = after_seq, _CHUNK, db.execute("PRAGMA database_list").fetchone()[2]
    while True:
        try:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM line WHERE venue_seq > ? ORDER BY venue_seq LIMIT {limit}", (last,)
            ).fetchall()
        except sqlite3.Error as e:
            if limit > 1:
                limit = 1  # go up to the bad line one by one, to name it
                continue
            raise JournalCorrupt(f"venue record {path}: line {last + 1} is unreadable: {e}") from e
        if not rows:
            return
        yield from rows
        last = rows[-1][0]


def _verified(rows: Iterator[_Row], path: Path) -> Iterator[_Row]:
    chain, expected = GENESIS, 1
    for row in rows:
        body, written = row[5:]
        where = f"venue record {path}: line {expected}"
        if row[0] != expected:
            raise JournalCorrupt(f"{where} is missing; line {row[0]} follows line {expected - 1}")
        chain = chain_after(chain, body)
        if chain != written:
            raise JournalCorrupt(f"{where} is not as it was written: its chain does not match")
        line = from_json(body)
        if (line.venue_seq, line.kind, line.account, line.client_order_id, line.event_seq) != row[:5]:
            raise JournalCorrupt(f"{where} is not as it was written: its columns differ from its body")
        yield row
        expected += 1


def chain_after(previous: bytes, body: str) -> bytes:
    """The chain of the line with this body, behind a line with that chain."""
    h = blake2b(previous, digest_size=32)
    h.update(body.encode("utf-8", "surrogateescape"))
    return h.digest()


def _lock(directory: Path) -> int:
    """Held until closed or until the process dies, however it dies."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / "record.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ConfigError(f"venue directory {directory} cannot be used: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        raise ConfigError(f"venue directory {directory} is in use by another paper venue; stop that one first") from e
    return fd


def _open_to_read(path: Path) -> sqlite3.Connection:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no venue record at {file}")
    db = sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    db.text_factory = _text
    return db


def _text(raw: bytes) -> str:
    """A flipped bit may leave no UTF-8: that is for the chain to report, by line, not for the decoder."""
    return raw.decode("utf-8", "surrogateescape")
