"""A journal is read from outside while its node writes it, and says what stands there, or that it is damaged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.check import journals
from chaos.check.evidence import replayed
from chaos.check.journals import journal_evidence
from cluster.core.errors import BatonError, JournalCorrupt, OutcomeUnknown
from cluster.core.ids import LogIndex, Term
from cluster.core.log import GENESIS, Entry, make_entry
from cluster.journal import Journal
from node.book import Book
from node.codec import Intent, TermStarted, encode
from node.types import OrderSpec, Side

TAG = "b1"


def entries(count: int) -> list[Entry]:
    made: list[Entry] = []
    for i in range(count):
        fact = TermStarted("n1", "i") if i == 0 else Intent(f"d{i}", OrderSpec("BTCUSDT", Side.BUY, 1, 100))
        kind, body = encode(fact)
        made.append(make_entry(i, made[-1].chain if made else GENESIS, Term(3), kind, i, body))
    return made


async def write(journal: Journal, what: list[Entry]) -> None:
    done = asyncio.Event()
    journal.submit(what, lambda index: done.set() if index == what[-1].index else None)
    async with asyncio.timeout(10):
        await done.wait()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(tmp_path / "journal.db", cluster="c")
    yield opened
    opened.close()


async def test_running_journal_is_read_as_it_stands_and_is_left_alone(journal: Journal) -> None:
    all_of_it = entries(300)
    await write(journal, all_of_it[:200])
    found = await asyncio.to_thread(journal_evidence, "n1", journal.path, TAG)
    wanted = replayed("n1", all_of_it[:200], TAG)
    assert (found.last_index, found.last_chain, found.entries) == (200, all_of_it[199].chain, wanted.entries)
    assert found.book.digest() == wanted.book.digest()
    await write(journal, all_of_it[200:])
    assert (await asyncio.to_thread(journal_evidence, "n1", journal.path, TAG)).last_index == 300


async def test_pruned_journal_is_read_from_its_snapshot_on(journal: Journal) -> None:
    all_of_it = entries(300)
    await write(journal, all_of_it)
    journal.note_commit(LogIndex(300))
    book = Book(TAG)
    for e in all_of_it[:250]:
        book.apply(e)
    await journal.save_snapshot(LogIndex(250), book.digest(), book.snapshot())
    await journal.prune(10)
    found = await asyncio.to_thread(journal_evidence, "n1", journal.path, TAG)
    assert (found.base, found.last_index) == (240, 300)
    assert found.entries[0].index == 241
    assert found.book.decided("d5") and found.book.applied_index == 300


async def test_stopped_journal_is_read_without_its_log(tmp_path: Path) -> None:
    opened = Journal.open(tmp_path / "journal.db", cluster="c")
    await write(opened, entries(20))
    opened.close()
    before = sorted(os.listdir(tmp_path))
    assert journal_evidence("n1", tmp_path / "journal.db", TAG).last_index == 20
    assert sorted(os.listdir(tmp_path)) == before


async def test_flipped_byte_is_no_evidence(tmp_path: Path) -> None:
    opened = Journal.open(tmp_path / "journal.db", cluster="c")
    await write(opened, entries(500))
    opened.close()
    data = bytearray((tmp_path / "journal.db").read_bytes())
    data[data.index(b"d250")] ^= 1
    (tmp_path / "journal.db").write_bytes(data)
    with pytest.raises(JournalCorrupt, match="not what was written"):
        journal_evidence("n1", tmp_path / "journal.db", TAG)


def test_missing_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(BatonError, match=r"no journal of n1 at .*journal\.db"):
        journal_evidence("n1", tmp_path / "journal.db", TAG)


def test_file_that_changes_all_the_time_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "journal.db").write_bytes(b"x")
    monkeypatch.setattr(journals, "COPY_LIMIT_S", 0.05)
    monkeypatch.setattr(journals, "_marks", lambda files: None)  # too young to tell, at every look
    with pytest.raises(OutcomeUnknown, match="without a pause"):
        journal_evidence("n1", tmp_path / "journal.db", TAG)
