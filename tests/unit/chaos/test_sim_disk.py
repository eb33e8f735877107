"""The simulated disk's faults. What its journal does without any is the journal contract's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.sim.disk import Disk, SimJournal
from cluster.core.errors import InvariantViolation, JournalBroken, JournalCorrupt
from cluster.core.ids import LogIndex, Term
from cluster.core.log import Entry
from tests.contract.journal_contract import everything, ignore, make
from tests.support.timeline import Timeline

MS = 1_000_000


class Rig:
    def __init__(self, write_ns: int = MS) -> None:
        self.time = Timeline()
        self.disk = Disk("n1", "c1", self.time.call_later, lambda: write_ns)
        self.journal: SimJournal = self.disk.open()
        self.told: list[int] = []

    def submit(self, count: int = 1) -> list[Entry]:
        entries = make(self.journal, count)
        self.journal.submit(entries, self.told.append)
        return entries

    def reopen(self) -> SimJournal:
        self.journal = self.disk.open()
        return self.journal


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_write_takes_its_time_and_what_comes_meanwhile_takes_the_next(rig: Rig) -> None:
    for _ in range(3):
        rig.submit()
    rig.time.run(limit=rig.time.now + MS)
    assert rig.told == [1]
    rig.time.run(limit=rig.time.now + MS)
    assert rig.told == [1, 3]


def test_crash_loses_what_was_not_reported(rig: Rig) -> None:
    entries = rig.submit(2)
    rig.time.run()
    rig.submit(3)
    rig.disk.crash()
    assert everything(rig.reopen()) == entries


@pytest.mark.parametrize(("keep", "held"), [(0, 0), (1, 2), (2, 5), (3, 9)])
def test_crash_keeps_as_many_whole_writes_as_the_disk_had_made(rig: Rig, keep: int, held: int) -> None:
    for count in (2, 3, 4):
        rig.submit(count)
    assert rig.disk.unsynced == 3
    rig.disk.crash(keep)
    assert rig.reopen().last.index == held
    assert rig.told == []


def test_torn_write_is_found_and_cut(rig: Rig) -> None:
    rig.submit(2)
    rig.submit(3)
    rig.disk.crash(1, torn=True)
    assert rig.reopen().last.index == 2
    assert rig.disk.torn_found == 1
    rig.submit(1)
    rig.time.run()
    assert rig.journal.durable_index == 3


def test_dead_journal_calls_nobody_and_takes_nothing(rig: Rig) -> None:
    dead = rig.journal
    rig.submit()
    dead.flush(lambda: rig.told.append(-1))
    rig.disk.crash(1)
    rig.reopen()
    rig.time.run()
    assert rig.told == []
    with pytest.raises(JournalBroken):
        dead.submit([], ignore)


def test_crash_in_the_middle_of_the_reports_ends_them(rig: Rig) -> None:
    rig.submit()
    rig.journal.submit(make(rig.journal, 1), lambda _i: rig.disk.crash())
    rig.submit()
    rig.time.run()
    assert rig.told == [1]
    assert rig.reopen().last.index == 3


def test_stalled_disk_answers_later(rig: Rig) -> None:
    rig.submit()
    rig.disk.stall(500 * MS)
    rig.time.run(limit=rig.time.now + 500 * MS)
    assert rig.told == []
    rig.time.run()
    assert rig.told == [1]
    rig.submit()
    start = rig.time.now
    rig.time.run(lambda: len(rig.told) == 2)
    assert rig.time.now - start == MS


def test_failed_sync_is_told_once_and_reopening_is_the_way_out(rig: Rig) -> None:
    broken: list[JournalBroken] = []
    rig.journal.on_broken = broken.append
    entries = rig.submit()
    rig.time.run()
    rig.disk.fail()
    rig.submit()
    rig.submit()
    rig.time.run()
    assert len(broken) == 1
    assert rig.told == [1]
    with pytest.raises(JournalBroken):
        rig.submit()
    rig.journal.close()
    assert everything(rig.reopen()) == entries
    rig.submit()
    rig.time.run()
    assert rig.told == [1, 2]


def test_write_that_failed_may_have_reached_the_disk(rig: Rig) -> None:
    rig.disk.fail()
    entries = rig.submit(2)
    rig.time.run()
    rig.disk.crash(1)
    assert everything(rig.reopen()) == entries


@pytest.mark.parametrize("body", [b"", b"something"])
def test_flipped_byte_is_found_and_the_journal_after_it_is_another(rig: Rig, body: bytes) -> None:
    rig.journal.submit(make(rig.journal, 3, body=body), ignore)
    rig.time.run()
    first = rig.journal.journal_id
    rig.disk.crash()
    rig.disk.flip(LogIndex(2))
    with pytest.raises(JournalCorrupt, match="entry 2"):
        rig.disk.open()
    rig.disk.set_aside()
    assert rig.reopen().last.index == 0
    assert rig.journal.journal_id != first


def test_one_process_at_a_time(rig: Rig) -> None:
    with pytest.raises(InvariantViolation, match="open already"):
        rig.disk.open()


def test_commit_index_on_disk_is_an_old_one_and_never_beyond_the_end(rig: Rig) -> None:
    rig.submit(5)
    rig.time.run(lambda: rig.told == [5])
    rig.journal.note_commit(LogIndex(5))
    rig.submit()
    rig.time.run(lambda: rig.told == [5, 6])
    rig.disk.crash()
    assert rig.reopen().commit_index == 0  # noted once a second
    rig.journal.note_commit(LogIndex(6))
    rig.submit()
    rig.time.run()
    rig.disk.crash()
    assert rig.reopen().commit_index == 6


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), keep=st.integers(0, 20), torn=st.booleans())
def test_whatever_the_crash_keeps_is_a_prefix_with_all_that_was_reported(seed: int, keep: int, torn: bool) -> None:
    rng = random.Random(seed)
    rig = Rig()
    rig.disk.write_ns = lambda: rng.randrange(1, 3 * MS)
    promised = Term(0)

    def note(term: Term) -> None:
        nonlocal promised
        promised = max(promised, term)

    written: list[Entry] = []
    for step in range(rng.randrange(1, 30)):
        written += rig.submit(rng.randrange(1, 4))
        if rng.random() < 0.3:
            term = Term(step)
            rig.journal.raise_term(term, lambda term=term: note(term))  # type: ignore[misc]
        rig.time.run(limit=rig.time.now + rng.randrange(2 * MS))
    rig.disk.crash(keep, torn=torn)
    journal = rig.reopen()
    held = everything(journal)
    assert held == written[: len(held)]
    assert len(held) >= max(rig.told, default=0)
    assert journal.highest_term >= promised
    assert journal.durable_index == journal.last.index == len(held)
