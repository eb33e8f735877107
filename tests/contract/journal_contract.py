"""What every journal must do. Subclass it and give the `bench` fixture: a journal, and the faults to put to it.

Where the real one is awaited, the simulator's calls back; a bench makes both awaitable. What no other journal shares
with the real one (its file, its bytes) is tested in tests/unit/test_journal.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from cluster.core.errors import InvariantViolation, JournalBroken, JournalBusy, JournalCorrupt
from cluster.core.ids import LogIndex, Term
from cluster.core.log import BEGINNING, ChainBroken, Entry, Snapshot, make_entry
from cluster.journal_writer import JournalLimits


class JournalBench(Protocol):
    journal: Any  # open; made anew by reopen and crash

    async def flush(self) -> None: ...

    async def raise_term(self, term: Term) -> None: ...

    async def set_etcd_cluster_id(self, etcd_cluster_id: int) -> None: ...

    async def save_snapshot(self, index: LogIndex, digest: bytes, blob: bytes) -> None: ...

    async def prune(self, keep: int) -> None: ...

    async def install_snapshot(self, snapshot: Snapshot) -> None: ...

    async def room(self) -> None:
        """Until the journal has room."""

    def hold(self) -> None:
        """The disk answers nothing from here on."""

    def release(self) -> None: ...

    async def reopen(self, limits: JournalLimits | None = None) -> None:
        """Close cleanly, and open again."""

    async def crash(self) -> None:
        """End without a word, keeping what is durable, and open again."""

    def damage(self, index: LogIndex) -> None:
        """Close, and change a stored entry."""

    def open(self) -> None: ...

    def refuse_writes(self) -> None:
        """The disk refuses the next write."""

    async def until_broken(self) -> None: ...


def make(journal: Any, count: int, term: int = 1, body: bytes = b"b" * 40) -> list[Entry]:
    entries, last = [], journal.last
    for _ in range(count):
        entries.append(make_entry(last.index, last.chain, Term(term), 16, 5, body))
        last = entries[-1]
    return entries


async def append(bench: JournalBench, count: int = 1, term: int = 1, body: bytes = b"b" * 40) -> list[Entry]:
    """Append in one submit and wait until it is durable."""
    told: list[int] = []
    entries = make(bench.journal, count, term, body)
    bench.journal.submit(entries, told.append)
    await bench.flush()
    assert told == [entries[-1].index]
    return entries


def everything(journal: Any) -> list[Entry]:
    found: list[Entry] = []
    while batch := journal.read(LogIndex((found[-1].index if found else journal.base.index) + 1), 1 << 20):
        found += batch
    return found


def ignore(_index: LogIndex) -> None:
    pass


class JournalContract:
    # -- keeping ------------------------------------------------------------------------------------------------

    async def test_new_journal_is_empty(self, bench: JournalBench) -> None:
        journal = bench.journal
        assert journal.last == journal.base == BEGINNING
        assert (journal.durable_index, journal.commit_index, journal.highest_term) == (0, 0, 0)
        assert journal.snapshot_index is None and journal.latest_snapshot() is None
        assert journal.chain_at(LogIndex(0)) == BEGINNING.chain and journal.chain_at(LogIndex(1)) is None
        assert journal.tail(LogIndex(1), 1 << 20) == []

    async def test_what_was_written_is_there_after_reopening(self, bench: JournalBench) -> None:
        entries = await append(bench, 3) + await append(bench, 2, term=4, body=b"x" * 9000)
        await bench.raise_term(Term(9))
        await bench.set_etcd_cluster_id(77)
        bench.journal.note_commit(LogIndex(4))
        journal_id = bench.journal.journal_id
        await bench.reopen()
        again = bench.journal
        assert everything(again) == entries
        assert again.journal_id == journal_id
        assert (again.highest_term, again.etcd_cluster_id, again.commit_index) == (9, 77, 4)
        assert again.last == (5, 4, entries[-1].chain)
        assert again.durable_index == 5

    async def test_what_was_reported_durable_survives_a_crash(self, bench: JournalBench) -> None:
        entries = await append(bench, 3) + await append(bench, 1, term=2)
        await bench.raise_term(Term(7))
        await bench.crash()
        assert everything(bench.journal) == entries
        assert bench.journal.highest_term == 7
        assert bench.journal.commit_index <= 4

    async def test_queued_writes_are_written_by_a_clean_close(self, bench: JournalBench) -> None:
        entries = make(bench.journal, 5)
        bench.journal.submit(entries, ignore)
        await bench.reopen()
        assert everything(bench.journal) == entries

    async def test_highest_term_never_falls(self, bench: JournalBench) -> None:
        await bench.raise_term(Term(9))
        await bench.raise_term(Term(3))
        assert bench.journal.highest_term == 9
        await append(bench, 1, term=12)
        assert bench.journal.highest_term == 12

    async def test_term_that_an_entry_raised_is_not_promised_before_that_entry_is_durable(
        self, bench: JournalBench
    ) -> None:
        bench.journal.submit(make(bench.journal, 50, term=5), ignore)
        assert bench.journal.highest_term == 5
        await bench.raise_term(Term(5))
        assert bench.journal.durable_index == 50
        await bench.crash()
        assert bench.journal.highest_term == 5

    # -- writing ------------------------------------------------------------------------------------------------

    async def test_nothing_is_durable_before_it_is_reported(self, bench: JournalBench) -> None:
        told: list[int] = []
        bench.hold()
        bench.journal.submit(make(bench.journal, 2), told.append)
        assert (bench.journal.last.index, bench.journal.durable_index, told) == (2, 0, [])
        bench.release()
        await bench.flush()
        assert (bench.journal.durable_index, told) == (2, [2])

    async def test_appends_made_meanwhile_are_reported_together(self, bench: JournalBench) -> None:
        told: list[int] = []
        bench.hold()
        for _ in range(500):
            bench.journal.submit(make(bench.journal, 1), told.append)
        bench.release()
        await bench.flush()
        assert told[-1] == 500
        assert len(told) <= 2

    async def test_reports_come_in_order_to_each_its_own(self, bench: JournalBench) -> None:
        told: list[tuple[str, int]] = []
        bench.hold()
        bench.journal.submit(make(bench.journal, 1), ignore)
        for who in "aba":
            bench.journal.submit(make(bench.journal, 1), lambda index, who=who: told.append((who, index)))
        bench.release()
        await bench.flush()
        assert told == [("a", 2), ("b", 3), ("a", 4)]

    async def test_gap_is_refused_and_takes_nothing(self, bench: JournalBench) -> None:
        entries = make(bench.journal, 3)
        with pytest.raises(ChainBroken):
            bench.journal.submit([entries[0], entries[2]], ignore)
        assert bench.journal.last.index == 0
        await append(bench, 3)

    async def test_full_queue_refuses_instead_of_growing(self, bench: JournalBench) -> None:
        await bench.reopen(JournalLimits(queue_entries=10))
        bench.hold()
        bench.journal.submit(make(bench.journal, 8), ignore)
        with pytest.raises(JournalBusy, match="8 entries wait"):
            bench.journal.submit(make(bench.journal, 3), ignore)
        assert bench.journal.last.index == 8
        assert not bench.journal.has_room
        bench.release()
        await bench.room()
        assert bench.journal.has_room
        await append(bench, 3)

    # -- cutting ------------------------------------------------------------------------------------------------

    async def test_cut_and_what_replaces_it_are_one_step(self, bench: JournalBench) -> None:
        old, journal = await append(bench, 10), bench.journal
        journal.note_commit(LogIndex(4))
        after = make_entry(6, old[5].chain, Term(2), 16, 5, b"new")
        bench.hold()
        journal.submit([after], ignore, cut_after=LogIndex(6))
        assert journal.chain_at(LogIndex(7)) == after.chain and journal.term_at(LogIndex(7)) == 2
        assert journal.chain_at(LogIndex(8)) is None
        assert journal.durable_index == 6
        bench.release()
        await bench.flush()
        await bench.crash()
        assert everything(bench.journal) == [*old[:6], after]

    async def test_cut_below_the_commit_index_is_an_invariant_violation(self, bench: JournalBench) -> None:
        await append(bench, 10)
        bench.journal.note_commit(LogIndex(7))
        with pytest.raises(InvariantViolation, match="up to 7 is committed"):
            bench.journal.submit([], ignore, cut_after=LogIndex(6))

    async def test_write_that_was_cut_away_is_not_reported(self, bench: JournalBench) -> None:
        first = await append(bench, 2)
        told: list[int] = []
        bench.hold()
        bench.journal.submit(make(bench.journal, 8), told.append)
        bench.journal.submit([make_entry(2, first[1].chain, Term(2), 16, 5, b"")], told.append, cut_after=LogIndex(2))
        bench.release()
        await bench.flush()
        assert told == [3]
        assert bench.journal.durable_index == 3

    # -- memory -------------------------------------------------------------------------------------------------

    async def test_youngest_entries_are_in_memory_and_older_ones_on_disk(self, bench: JournalBench) -> None:
        await bench.reopen(JournalLimits(cache_entries=100))
        entries: list[Entry] = []
        for _ in range(50):
            entries += await append(bench, 10)
        journal = bench.journal
        assert journal.tail(LogIndex(1), 1 << 20) is None
        assert journal.tail(LogIndex(495), 1 << 20) == entries[494:]
        assert journal.tail(LogIndex(495), 1 << 20, 2) == entries[494:496]
        assert len(journal.tail(LogIndex(495), 1) or ()) == 1
        assert journal.tail(LogIndex(501), 1 << 20) == []
        assert journal.read(LogIndex(1), 1 << 20)[:20] == entries[:20]
        assert len(journal.read(LogIndex(1), 500)) < 10
        assert journal.read(LogIndex(501), 1 << 20) == []
        assert journal.chain_at(LogIndex(3)) == entries[2].chain
        assert journal.term_at(LogIndex(3)) == 1
        assert journal.chain_at(LogIndex(501)) is None

    # -- snapshots ----------------------------------------------------------------------------------------------

    async def test_snapshot_bounds_what_is_kept(self, bench: JournalBench) -> None:
        entries = await append(bench, 200)
        bench.journal.note_commit(LogIndex(190))
        await bench.save_snapshot(LogIndex(150), b"digest", b"the book")
        await bench.prune(10)
        assert bench.journal.base == (140, 1, entries[139].chain)
        assert bench.journal.read(LogIndex(141), 1 << 20)[0] == entries[140]
        await bench.reopen()
        again = bench.journal
        assert (again.base.index, again.snapshot_index, again.commit_index) == (140, 150, 190)
        assert again.latest_snapshot() == Snapshot(LogIndex(150), Term(1), entries[149].chain, b"digest", b"the book")
        assert everything(again) == entries[140:]
        assert again.chain_at(LogIndex(140)) == entries[139].chain
        assert again.chain_at(LogIndex(139)) is None

    async def test_nothing_is_pruned_without_a_snapshot(self, bench: JournalBench) -> None:
        await append(bench, 10)
        await bench.prune(2)
        assert bench.journal.base == BEGINNING

    async def test_snapshot_of_what_is_not_committed_is_refused(self, bench: JournalBench) -> None:
        await append(bench, 10)
        bench.journal.note_commit(LogIndex(5))
        with pytest.raises(InvariantViolation, match="snapshot at index 6"):
            await bench.save_snapshot(LogIndex(6), b"", b"")

    async def test_installed_snapshot_replaces_everything(self, bench: JournalBench) -> None:
        await append(bench, 10)
        snapshot = Snapshot(LogIndex(500), Term(7), b"c" * 32, b"digest", b"the book")
        await bench.install_snapshot(snapshot)
        journal = bench.journal
        assert journal.last == journal.base == (500, 7, b"c" * 32)
        assert (journal.durable_index, journal.commit_index, journal.snapshot_index) == (500, 500, 500)
        more = await append(bench, 3, term=7)
        await bench.crash()
        assert bench.journal.latest_snapshot() == snapshot
        assert everything(bench.journal) == more
        assert bench.journal.highest_term == 7

    async def test_snapshot_older_than_what_is_committed_is_refused(self, bench: JournalBench) -> None:
        await append(bench, 10)
        bench.journal.note_commit(LogIndex(8))
        with pytest.raises(InvariantViolation, match="up to 8 is committed"):
            await bench.install_snapshot(Snapshot(LogIndex(7), Term(1), b"c" * 32, b"", b""))

    # -- damage -------------------------------------------------------------------------------------------------

    async def test_damaged_entry_is_found_when_the_journal_is_opened(self, bench: JournalBench) -> None:
        await append(bench, 10)
        bench.damage(LogIndex(4))
        with pytest.raises(JournalCorrupt, match="entry 4"):
            bench.open()

    async def test_disk_that_refuses_breaks_the_journal_for_good(self, bench: JournalBench) -> None:
        await append(bench, 3)
        told: list[JournalBroken] = []
        bench.journal.on_broken = told.append
        bench.refuse_writes()
        bench.journal.submit(make(bench.journal, 1), ignore)
        await bench.until_broken()
        for _ in range(2):
            with pytest.raises(JournalBroken):
                bench.journal.submit(make(bench.journal, 1), ignore)
        with pytest.raises(JournalBroken):
            await bench.flush()
        assert len(told) == 1
        assert bench.journal.durable_index == 3

    async def test_closed_journal_takes_nothing(self, bench: JournalBench) -> None:
        bench.journal.close()
        with pytest.raises(JournalBroken, match="closed"):
            bench.journal.submit(make(bench.journal, 1), ignore)
