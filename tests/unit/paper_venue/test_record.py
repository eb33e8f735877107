from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cluster.core.errors import ConfigError, JournalBroken, JournalCorrupt
from node.paper_venue.lines import SURFACE, Line
from node.paper_venue.record import FILE_NAME, Record, read_record, verify_record
from tests.support.paper import BTC, SYMBOL

INSTRUMENTS = {SYMBOL: BTC}


def line(seq: int, **more: object) -> Line:
    fields: dict[str, object] = {"outcome": "accepted", "account": "main", "client_order_id": f"a{seq}"} | more
    return Line(seq, 1_000 + seq, "new", event_seq=seq, symbol=SYMBOL, side="buy", qty_lots=seq, **fields)  # type: ignore[arg-type]


def write(directory: Path, n: int = 6) -> Path:
    record = Record(directory, INSTRUMENTS)
    for seq in range(1, n + 1):
        record.append(line(seq))
    record.close()
    return directory / FILE_NAME


def alter(file: Path, sql: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute(sql)


def test_record_gives_back_what_was_committed(tmp_path: Path) -> None:
    write(tmp_path)
    record = Record(tmp_path, INSTRUMENTS)
    assert list(record.replay()) == [line(n) for n in range(1, 7)]
    record.append(line(7))
    record.close()
    assert verify_record(tmp_path) == 7


def test_surface_is_the_whole_and_in_decimals(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (shown,) = read_record(tmp_path)
    assert tuple(shown)[: len(SURFACE)] == SURFACE
    assert (shown["qty"], shown["price"], shown["node"]) == ("0.00001", None, None)
    assert len(bytes.fromhex(shown["chain"])) == 32


def test_uncommitted_lines_are_not_there(tmp_path: Path) -> None:
    record = Record(tmp_path, INSTRUMENTS)
    record.append(line(1))
    assert list(read_record(tmp_path)) == []
    record.commit()
    assert len(list(read_record(tmp_path))) == 1
    record.close()


def test_another_process_reads_and_verifies_while_the_venue_writes(tmp_path: Path) -> None:
    record = Record(tmp_path, INSTRUMENTS)
    record.append(line(1))
    record.commit()
    code = "import sys, pathlib; from node.paper_venue.record import *; print(verify_record(pathlib.Path(sys.argv[1])))"
    seen = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (seen.stdout, seen.stderr) == ("1\n", "")
    record.append(line(2))
    record.close()
    assert verify_record(tmp_path / FILE_NAME) == 2


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE line SET body = replace(body, '0.00003', '0.00002') WHERE venue_seq = 3", "line 3"),
        ("UPDATE line SET chain = zeroblob(32) WHERE venue_seq = 4", "line 4"),
        ("UPDATE line SET kind = 'fill' WHERE venue_seq = 2", "line 2 .* columns"),
        ("UPDATE line SET event_seq = 77 WHERE venue_seq = 2", "line 2 .* columns"),
        ("DELETE FROM line WHERE venue_seq = 5", "line 5 is missing"),
        ("DELETE FROM line WHERE venue_seq = 1", "line 1 is missing"),
        ("UPDATE line SET body = CAST(x'ff00fe' AS TEXT) WHERE venue_seq = 6", "line 6"),
        ("DROP TABLE line", "line 1 is unreadable"),
    ],
)  # fmt: skip
def test_altered_record_names_the_first_bad_line(tmp_path: Path, sql: str, said: str) -> None:
    alter(write(tmp_path), sql)
    with pytest.raises(JournalCorrupt, match=said):
        verify_record(tmp_path)
    record = Record(tmp_path, INSTRUMENTS)
    with pytest.raises(JournalCorrupt, match=said):
        list(record.replay())
    record.close()


def test_any_flipped_byte_of_a_line_is_detected(tmp_path: Path) -> None:
    """Every byte of one body, on disk and behind SQLite's back."""
    file = write(tmp_path, 3)
    content = file.read_bytes()
    body = sqlite3.connect(file).execute("SELECT body FROM line WHERE venue_seq = 2").fetchone()[0].encode()
    start = content.index(body)
    for i in range(len(body)):
        file.write_bytes(content[: start + i] + bytes([content[start + i] ^ 1]) + content[start + i + 1 :])
        with pytest.raises(JournalCorrupt, match="line 2"):
            verify_record(file)
    file.write_bytes(content)
    assert verify_record(file) == 3


def test_second_venue_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    first = Record(tmp_path, INSTRUMENTS)
    with pytest.raises(ConfigError, match="in use by another"):
        Record(tmp_path, INSTRUMENTS)
    first.close()
    Record(tmp_path, INSTRUMENTS).close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda d: (d / FILE_NAME).write_bytes(b"not a database, but as long as one" * 40), JournalCorrupt),
        (lambda d: alter(write(d), "PRAGMA user_version = 9"), JournalCorrupt),
    ],
)  # fmt: skip
def test_file_that_is_no_record_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    spoil(tmp_path)
    with pytest.raises(error, match="cannot be opened"):
        Record(tmp_path, INSTRUMENTS)


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    for read in (verify_record, lambda path: list(read_record(path))):
        with pytest.raises(ConfigError, match="there is no venue record"):
            read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        Record(tmp_path / "file", INSTRUMENTS)


def test_failed_write_is_reported_and_nothing_of_it_remains(tmp_path: Path) -> None:
    record = Record(tmp_path, INSTRUMENTS)
    record.append(line(1))
    record.commit()
    record.append(line(2))
    record.append(line(2))  # the same number twice: the database refuses, as it would on a full disk
    with pytest.raises(JournalBroken, match="cannot be written"):
        record.commit()
    record.close()
    assert verify_record(tmp_path) == 1


def test_checkpoint_moves_the_log_into_the_file_under_a_running_writer(tmp_path: Path) -> None:
    record = Record(tmp_path, INSTRUMENTS)
    for seq in range(1, 500):
        record.append(line(seq))
        record.commit()
    before = os.path.getsize(tmp_path / FILE_NAME)
    record.checkpoint()
    assert os.path.getsize(tmp_path / FILE_NAME) > before
    record.close()
    assert verify_record(tmp_path) == 499
