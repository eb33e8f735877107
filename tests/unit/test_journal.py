"""The journal on real files: what it keeps, what it refuses, and that damage never passes unseen."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import cluster.journal
from cluster.core.errors import ConfigError, InvariantViolation, JournalBroken, JournalCorrupt, OutcomeUnknown
from cluster.core.ids import LogIndex, Term
from cluster.core.log import ChainBroken, Entry, make_entry
from cluster.journal import Journal, JournalBusy, JournalLocked, Snapshot, set_aside, verify
from cluster.journal_writer import JournalLimits, Task

FRAME = 24 + 4096  # of the write-ahead log


def make(journal: Journal, count: int, term: int = 1, body: bytes = b"b" * 40) -> list[Entry]:
    entries, last = [], journal.last
    for _ in range(count):
        entries.append(make_entry(last.index, last.chain, Term(term), 16, 5, body))
        last = entries[-1]
    return entries


async def append(journal: Journal, count: int = 1, term: int = 1, body: bytes = b"b" * 40) -> list[Entry]:
    """Append in one submit and wait until it is durable."""
    done = asyncio.get_running_loop().create_future()
    entries = make(journal, count, term, body)
    journal.submit(entries, done.set_result)
    async with asyncio.timeout(20):
        assert await done == entries[-1].index
    return entries


def everything(journal: Journal) -> list[Entry]:
    found: list[Entry] = []
    while batch := journal.read(LogIndex((found[-1].index if found else journal.base.index) + 1), 1 << 20):
        found += batch
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def opener(path: Path) -> AsyncIterator[Callable[..., Journal]]:
    opened: list[Journal] = []

    def open_journal(**options: object) -> Journal:
        opened.append(Journal.open(path, cluster="c1", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_journal
    for journal in opened:
        journal.close()


# -- keeping ------------------------------------------------------------------------------------------------


async def test_what_was_durable_is_there_after_reopening(opener: Callable[..., Journal]) -> None:
    journal = opener()
    entries = await append(journal, 3) + await append(journal, 2, term=4, body=b"x" * 9000)
    await journal.raise_term(Term(9))
    await journal.set_etcd_cluster_id(77)
    journal.note_commit(LogIndex(4))
    journal.close()
    again = opener()
    assert everything(again) == entries
    assert again.journal_id == journal.journal_id
    assert (again.highest_term, again.etcd_cluster_id, again.commit_index) == (9, 77, 4)
    assert again.last == (5, 4, entries[-1].chain)
    assert again.durable_index == 5


async def test_highest_term_never_falls(opener: Callable[..., Journal]) -> None:
    journal = opener()
    await journal.raise_term(Term(9))
    await journal.raise_term(Term(3))
    assert journal.highest_term == 9


async def test_appends_made_meanwhile_share_one_transaction(opener: Callable[..., Journal]) -> None:
    journal = opener()
    told: list[int] = []
    go = threading.Event()
    journal._writer.put(Task(lambda _db: go.wait(10) and None, asyncio.get_running_loop().create_future()))
    for _ in range(500):
        journal.submit(make(journal, 1), told.append)
    go.set()
    await journal.flush(10)
    assert told[-1] == 500
    assert len(told) <= 2


async def test_on_durable_comes_only_after_the_entry_can_be_read_from_the_file(opener: Callable[..., Journal]) -> None:
    journal = opener()
    for _ in range(20):
        entries = await append(journal)
        assert everything(journal)[-1] == entries[-1]


async def test_a_gap_is_refused_and_takes_nothing(opener: Callable[..., Journal]) -> None:
    journal = opener()
    entries = make(journal, 3)
    with pytest.raises(ChainBroken):
        journal.submit([entries[0], entries[2]], lambda _i: None)
    assert journal.last.index == 0
    await append(journal, 3)


async def test_a_full_queue_refuses_instead_of_growing(opener: Callable[..., Journal]) -> None:
    journal = opener(limits=JournalLimits(queue_entries=10))
    go = threading.Event()
    journal._writer.put(Task(lambda _db: go.wait(10) and None, asyncio.get_running_loop().create_future()))
    journal.submit(make(journal, 8), lambda _i: None)
    with pytest.raises(JournalBusy, match="8 entries wait"):
        journal.submit(make(journal, 3), lambda _i: None)
    assert journal.last.index == 8
    assert not journal.has_room
    room = asyncio.create_task(journal.wait_room())
    go.set()
    async with asyncio.timeout(10):
        await room
    await append(journal, 3)


async def test_flush_on_a_stalled_disk_is_unknown_not_done(opener: Callable[..., Journal]) -> None:
    journal = opener()
    go = threading.Event()
    journal._writer.put(Task(lambda _db: go.wait(10) and None, asyncio.get_running_loop().create_future()))
    with pytest.raises(OutcomeUnknown, match="did not answer"):
        await journal.flush(0.05)
    go.set()
    await journal.flush(10)


# -- cutting --------------------------------------------------------------------------------------------------


async def test_a_cut_and_what_replaces_it_are_one_step(opener: Callable[..., Journal]) -> None:
    journal = opener()
    old = await append(journal, 10)
    journal.note_commit(LogIndex(4))
    after = make_entry(6, old[5].chain, Term(2), 16, 5, b"new")
    done = asyncio.get_running_loop().create_future()
    journal.submit([after], done.set_result, cut_after=LogIndex(6))
    assert journal.chain_at(LogIndex(7)) == after.chain
    assert journal.chain_at(LogIndex(8)) is None
    assert journal.durable_index == 6
    await done
    journal.close()
    assert everything(opener()) == [*old[:6], after]


async def test_a_cut_below_the_commit_index_is_an_invariant_violation(opener: Callable[..., Journal]) -> None:
    journal = opener()
    await append(journal, 10)
    journal.note_commit(LogIndex(7))
    with pytest.raises(InvariantViolation, match="up to 7 is committed"):
        journal.submit([], lambda _i: None, cut_after=LogIndex(6))


async def test_a_write_that_was_cut_away_before_it_was_reported_is_not_reported(opener: Callable[..., Journal]) -> None:
    journal = opener()
    first = await append(journal, 2)
    told: list[int] = []
    go = threading.Event()
    journal._writer.put(Task(lambda _db: go.wait(10) and None, asyncio.get_running_loop().create_future()))
    journal.submit(make(journal, 8), told.append)
    journal.submit([make_entry(2, first[1].chain, Term(2), 16, 5, b"")], told.append, cut_after=LogIndex(2))
    go.set()
    await journal.flush(10)
    assert told == [3]
    assert journal.durable_index == 3


# -- memory ---------------------------------------------------------------------------------------------------


async def test_the_youngest_entries_are_in_memory_and_older_ones_on_disk(opener: Callable[..., Journal]) -> None:
    journal = opener(limits=JournalLimits(cache_entries=100))
    entries = []
    for _ in range(50):
        entries += await append(journal, 10)
    assert journal.tail(LogIndex(1), 1 << 20) is None
    assert len(journal._tail) <= 100
    assert journal.tail(LogIndex(495), 1 << 20) == entries[494:]
    assert journal.tail(LogIndex(501), 1 << 20) == []
    assert journal.read(LogIndex(1), 1 << 20)[:20] == entries[:20]
    assert len(journal.read(LogIndex(1), 500)) < 10
    assert journal.chain_at(LogIndex(3)) == entries[2].chain
    assert journal.term_at(LogIndex(3)) == 1
    assert journal.chain_at(LogIndex(501)) is None


async def test_memory_is_bounded_in_bytes_too(opener: Callable[..., Journal]) -> None:
    journal = opener(limits=JournalLimits(cache_bytes=100_000))
    for _ in range(40):
        await append(journal, 1, body=b"x" * 10_000)
    assert journal._tail_bytes <= 110_000
    assert journal._tail_bytes == sum(len(e.body) + 96 for e in journal._tail)


# -- snapshots ------------------------------------------------------------------------------------------------


async def test_a_snapshot_bounds_what_is_replayed_and_kept(opener: Callable[..., Journal]) -> None:
    journal = opener(limits=JournalLimits(cache_entries=50))
    entries = await append(journal, 2000)
    journal.note_commit(LogIndex(1900))
    await journal.save_snapshot(LogIndex(1500), b"digest", b"the book")
    await journal.prune(keep=100)
    assert journal.base.index == 1400
    assert journal.read(LogIndex(1401), 1 << 20)[0] == entries[1400]
    await wait_until(lambda: count_rows(journal.path) == 600)
    journal.close()
    again = opener()
    assert (again.base.index, again.snapshot_index, again.commit_index) == (1400, 1500, 1900)
    assert again.latest_snapshot() == Snapshot(LogIndex(1500), Term(1), entries[1499].chain, b"digest", b"the book")
    assert everything(again) == entries[1400:]
    assert again.chain_at(LogIndex(1400)) == entries[1399].chain
    assert again.chain_at(LogIndex(1399)) is None


async def test_a_snapshot_of_what_is_not_committed_is_refused(opener: Callable[..., Journal]) -> None:
    journal = opener()
    await append(journal, 10)
    journal.note_commit(LogIndex(5))
    with pytest.raises(InvariantViolation, match="snapshot at index 6"):
        await journal.save_snapshot(LogIndex(6), b"", b"")


async def test_an_installed_snapshot_replaces_everything(opener: Callable[..., Journal]) -> None:
    journal = opener()
    await append(journal, 10)
    snapshot = Snapshot(LogIndex(500), Term(7), b"c" * 32, b"digest", b"the book")
    await journal.install_snapshot(snapshot)
    assert journal.last == journal.base == (500, 7, b"c" * 32)
    assert (journal.durable_index, journal.commit_index) == (500, 500)
    more = await append(journal, 3, term=7)
    journal.close()
    again = opener()
    assert again.latest_snapshot() == snapshot
    assert everything(again) == more


async def test_a_snapshot_older_than_what_is_committed_is_refused(opener: Callable[..., Journal]) -> None:
    journal = opener()
    await append(journal, 10)
    journal.note_commit(LogIndex(8))
    with pytest.raises(InvariantViolation, match="up to 8 is committed"):
        await journal.install_snapshot(Snapshot(LogIndex(7), Term(1), b"c" * 32, b"", b""))


# -- damage ---------------------------------------------------------------------------------------------------


def facts_of(journal: Journal) -> tuple[object, ...]:
    return (journal.journal_id, journal.cluster, journal.highest_term, journal.etcd_cluster_id, journal.base)


def open_copy(source: Path, to: Path, damage: Callable[[Path, Path], None]) -> Journal:
    """Copy database and write-ahead log, damage the copy, open it."""
    for old in to.parent.glob(to.name + "*"):
        old.unlink()
    shutil.copy(source, to)
    shutil.copy(f"{source}-wal", f"{to}-wal")
    damage(to, Path(f"{to}-wal"))
    return Journal.open(to, cluster="c1")


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def used_pages(file: Path) -> list[int]:
    content = file.read_bytes()
    return [p for p in range(0, len(content), 4096) if any(content[p : p + 4096])]


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x20]))


async def frozen(
    opener: Callable[..., Journal], tmp_path: Path
) -> tuple[Path, list[Entry], list[tuple[int, int]], Journal]:
    """A journal as a crash would leave it, with a snapshot: (file, entries, [(durable index, end in the log)], it)."""
    journal = opener()
    entries = await append(journal, 300)
    journal.note_commit(LogIndex(250))
    await journal.save_snapshot(LogIndex(200), b"digest", b"book" * 100)
    await journal.prune(keep=50)
    await wait_until(lambda: count_rows(journal.path) == 150)
    with sqlite3.connect(journal.path) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    ends = []
    for _ in range(40):
        entries += await append(journal)
        ends.append((entries[-1].index, 32 + frames_in(journal.path) * FRAME))
    at = tmp_path / "frozen.db"
    shutil.copy(journal.path, at)
    shutil.copy(f"{journal.path}-wal", f"{at}-wal")
    return at, entries, ends, journal


def frames_in(path: Path) -> int:
    return int.from_bytes(Path(f"{path}-shm").read_bytes()[16:20], sys.byteorder)


async def test_a_log_cut_at_any_byte_opens_to_a_prefix_with_all_that_was_acknowledged_before(
    opener: Callable[..., Journal], tmp_path: Path
) -> None:
    at, entries, ends, _ = await frozen(opener, tmp_path)
    start = ends[0][1]
    cuts = {32, 33, FRAME, *(end + d for _, end in ends[::6] for d in (-1, 0, 1, 24))}
    cuts |= {random.Random(7).randrange(start, ends[-1][1]) for _ in range(40)}
    for cut in sorted(cuts):
        journal = open_copy(at, tmp_path / "copy.db", lambda _db, wal, cut=cut: os.truncate(wal, cut))  # type: ignore[misc]
        try:
            acknowledged = max((index for index, end in ends if end <= cut), default=300)
            held = everything(journal)
            assert held == entries[150 : journal.last.index]
            assert acknowledged <= journal.last.index
        finally:
            journal.close()


async def test_a_database_cut_short_is_corrupt(opener: Callable[..., Journal], tmp_path: Path) -> None:
    at, entries, _, _ = await frozen(opener, tmp_path)
    size = used_pages(at)[-1] + 4096
    os.truncate(at, size)
    for cut in (0, 1, 100, 4096, 4097, 8192, size // 2, size - 4096, size - 1):
        try:
            journal = open_copy(at, tmp_path / "copy.db", lambda db, _wal, cut=cut: os.truncate(db, cut))  # type: ignore[misc]
        except JournalCorrupt as e:
            assert "copy.db" in str(e) and "verify" in str(e)
            continue
        held = everything(journal)
        journal.close()
        assert held == entries[150:], f"cut at {cut}: opened, and not the same"


async def test_a_flipped_byte_is_never_silently_wrong(opener: Callable[..., Journal], tmp_path: Path) -> None:
    at, entries, ends, original = await frozen(opener, tmp_path)
    facts = facts_of(original)
    rng = random.Random(11)
    wal_end, pages_in_use = ends[-1][1], used_pages(at)
    in_db = [rng.choice(pages_in_use) + rng.randrange(4096) for _ in range(250)] + list(range(0, 100, 3))
    in_wal = [rng.randrange(wal_end) for _ in range(120)] + list(range(0, 80, 3))
    caught = 0
    for which, offset in [(0, o) for o in in_db] + [(1, o) for o in in_wal]:
        try:
            journal = open_copy(at, tmp_path / "copy.db", lambda *files, w=which, o=offset: flip(files[w], o))  # type: ignore[misc]
        except (JournalCorrupt, ConfigError):
            caught += 1
            continue
        try:
            held, snapshot = everything(journal), journal.latest_snapshot()
            assert facts_of(journal) == facts, f"file {which} offset {offset}"
            # Damage in the last two transactions of the log cannot be told from a write that a power cut tore.
            lost = 0 if which == 0 else 2
            assert held == entries[150 : journal.last.index], f"file {which} offset {offset}"
            assert journal.last.index >= entries[-1].index - lost, f"file {which} offset {offset}"
            assert snapshot is not None and snapshot.blob == b"book" * 100
        finally:
            journal.close()
    assert caught > 100


def restored(path: Path, content: bytes) -> sqlite3.Connection:
    for side in ("-wal", "-shm"):
        Path(f"{path}{side}").unlink(missing_ok=True)
    path.write_bytes(content)
    return sqlite3.connect(path, isolation_level=None)


async def test_every_field_of_an_entry_and_a_snapshot_is_covered(opener: Callable[..., Journal], path: Path) -> None:
    journal = opener()
    await append(journal, 20)
    journal.note_commit(LogIndex(20))
    await journal.save_snapshot(LogIndex(10), b"digest", b"book")
    journal.close()
    healthy = content_of(path)
    for change in (
        "UPDATE entries SET body = x'00' WHERE idx = 3",
        "UPDATE entries SET at = 6 WHERE idx = 3",
        "UPDATE entries SET kind = 17 WHERE idx = 3",
        "UPDATE entries SET term = 2 WHERE idx >= 3",
        "UPDATE entries SET chain = zeroblob(32) WHERE idx = 20",
        "DELETE FROM entries WHERE idx = 20",
        "DELETE FROM entries WHERE idx = 1",
        "DELETE FROM entries",
        "UPDATE snapshots SET blob = x'00'",
        "UPDATE snapshots SET digest = x'00'",
        "UPDATE snapshots SET idx = 9",
        "UPDATE meta SET value = x'39' WHERE key = 'highest_term'",
        "DELETE FROM meta WHERE key = 'journal_id'",
        "DROP TABLE snapshots",
        "PRAGMA application_id = 5",
        "PRAGMA user_version = 2",
    ):
        db = restored(path, healthy)
        db.execute(change)
        db.close()
        with pytest.raises(JournalCorrupt) as told:
            opener()
        assert str(path) in str(told.value), change
        assert verify(path).problem is not None, change


async def test_a_lost_tail_is_noticed_by_what_was_committed(opener: Callable[..., Journal], path: Path) -> None:
    journal = opener()
    await append(journal, 20)
    journal.note_commit(LogIndex(20))
    journal.close()
    opener().close()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DELETE FROM entries WHERE idx > 15")
    db.execute("UPDATE meta SET value = x'', sum = (SELECT sum FROM meta WHERE key = 'closed') WHERE key = 'closed'")
    db.close()
    with pytest.raises(JournalCorrupt):
        opener()


def test_something_else_in_its_place_is_refused(path: Path) -> None:
    path.write_text("this is a text file, " * 400)
    with pytest.raises(JournalCorrupt, match="not a database"):
        Journal.open(path, cluster="c1")


async def test_a_journal_of_another_cluster_is_a_mistake_in_the_configuration(path: Path) -> None:
    Journal.open(path, cluster="c2").close()
    with pytest.raises(ConfigError, match=r"'c2'.*'c1'"):
        Journal.open(path, cluster="c1")


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/journal\.db"):
        Journal.open(tmp_path / "missing" / "journal.db", cluster="c1")


async def test_a_creation_that_was_cut_short_is_done_again(path: Path) -> None:
    sqlite3.connect(path).execute("PRAGMA journal_mode = WAL").fetchall()
    journal = Journal.open(path, cluster="c1")
    await append(journal)
    journal.close()


async def test_a_corrupt_journal_is_set_aside_whole(opener: Callable[..., Journal], path: Path) -> None:
    journal = opener()
    await append(journal, 5)
    with pytest.raises(JournalLocked):
        set_aside(path)
    journal.close()
    content = content_of(path)
    kept = set_aside(path)
    assert kept.name.startswith("journal.db.corrupt-")
    assert content_of(kept) == content
    fresh = opener()
    assert fresh.journal_id != journal.journal_id
    assert fresh.last.index == 0


# -- verify ---------------------------------------------------------------------------------------------------


async def test_verify_reads_a_journal_that_is_in_use(opener: Callable[..., Journal], path: Path) -> None:
    journal = opener()
    entries = await append(journal, 50)
    await journal.raise_term(Term(6))
    report = verify(path)
    assert report.problem is None
    assert (report.entries, report.last_index, report.chain) == (50, 50, entries[-1].chain.hex())
    assert (report.journal_id, report.cluster, report.highest_term) == (journal.journal_id, "c1", 6)
    await append(journal)


async def test_verify_while_entries_are_being_written_sees_no_damage(
    opener: Callable[..., Journal], path: Path
) -> None:
    journal = opener()
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await append(journal)

    writing = asyncio.create_task(write())
    for _ in range(15):
        assert (await asyncio.to_thread(verify, path)).problem is None
    stop.set()
    await writing


# -- the disk refuses -----------------------------------------------------------------------------------------


def in_process(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    source = "import asyncio, os, resource, sys\nfrom pathlib import Path\n" + textwrap.dedent(code)
    root = str(Path(cluster.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", source, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{root}:{Path(__file__).parent}"},
    )


def test_a_full_disk_breaks_the_journal_for_good_and_loses_nothing_acknowledged(path: Path) -> None:
    # A limit on the file size is the one way to a refused write that needs no privileges.
    done = in_process(
        path,
        """
        from cluster.core.errors import JournalBroken
        from test_journal import Journal, append, make

        async def main():
            journal = Journal.open(Path(sys.argv[1]), cluster="c1")
            broken = asyncio.get_running_loop().create_future()
            journal.on_broken = broken.set_result
            await append(journal, 10)
            resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1] + "-wal") + 50_000,) * 2)
            acknowledged = 10
            def told(index):
                nonlocal acknowledged
                acknowledged = index
            try:
                while True:
                    journal.submit(make(journal, 10, body=b"x" * 1000), told)
                    await journal.flush(5)
            except JournalBroken as e:
                assert "are free there" in str(e) and sys.argv[1] in str(e), str(e)
            assert isinstance(await asyncio.wait_for(broken, 5), JournalBroken)
            for call in (lambda: journal.submit([], told), lambda: asyncio.ensure_future(journal.flush(1))):
                try:
                    if (f := call()) is not None:
                        await f
                except JournalBroken:
                    continue
                raise SystemExit("not refused")
            print("acknowledged", acknowledged, flush=True)
            os._exit(0)

        asyncio.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    acknowledged = int(done.stdout.split()[-1])
    assert acknowledged >= 10
    journal = Journal.open(path, cluster="c1")
    assert journal.last.index >= acknowledged
    journal.close()


async def test_an_error_in_the_writer_reaches_everyone_who_waits(opener: Callable[..., Journal]) -> None:
    journal = opener()

    def refuse(_db: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    told: list[JournalBroken] = []
    journal.on_broken = told.append
    with pytest.raises(JournalBroken, match="disk I/O error"):
        await journal._run(refuse, 5)
    with pytest.raises(JournalBroken):
        journal.submit(make(journal, 1), lambda _i: None)
    with pytest.raises(JournalBroken):
        await journal.wait_room()
    assert len(told) == 1


def test_a_second_process_is_turned_away_by_name(path: Path) -> None:
    journal = Journal.open(path, cluster="c1")
    done = in_process(
        path,
        """
        from cluster.journal import Journal, JournalLocked
        try:
            Journal.open(Path(sys.argv[1]), cluster="c1")
        except JournalLocked as e:
            print(e)
        """,
    )
    journal.close()
    assert f"open in another process (pid {os.getpid()})" in done.stdout, done.stderr


def test_killed_while_writing_it_holds_everything_it_had_acknowledged(path: Path) -> None:
    done = in_process(
        path,
        """
        import signal
        from test_journal import Journal, append

        async def main():
            journal = Journal.open(Path(sys.argv[1]), cluster="c1")
            for n in range(1, 200):
                entries = await append(journal, 3)
                print(entries[-1].index, flush=True)
                if n == 150:
                    os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """,
    )
    assert done.returncode == -9, done.stderr
    journal = Journal.open(path, cluster="c1")
    assert journal.last.index >= int(done.stdout.split()[-1])
    journal.close()


# -- durability "memory" --------------------------------------------------------------------------------------


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def booted(boot_id: str) -> None:
        monkeypatch.setattr(cluster.journal, "_boot_id", lambda: boot_id)

    booted("boot-1")
    yield booted


async def test_memory_journal_takes_a_new_id_only_after_a_reboot(
    opener: Callable[..., Journal], boot: Callable[[str], None]
) -> None:
    first = opener(durability="memory")
    await append(first, 3)
    first.close()
    second = opener(durability="memory")
    second.close()
    assert second.journal_id == first.journal_id
    boot("boot-2")
    third = opener(durability="memory")
    assert third.journal_id != first.journal_id
    assert third.last.index == 3


async def test_disk_journal_keeps_its_id_over_a_reboot(
    opener: Callable[..., Journal], boot: Callable[[str], None]
) -> None:
    first = opener()
    first.close()
    boot("boot-2")
    assert opener().journal_id == first.journal_id


async def test_a_memory_journal_opened_for_disk_in_the_same_boot_is_safe_from_then_on(
    opener: Callable[..., Journal], boot: Callable[[str], None]
) -> None:
    first = opener(durability="memory")
    first.close()
    opener().close()
    boot("boot-2")
    assert opener().journal_id == first.journal_id


# -- helpers --------------------------------------------------------------------------------------------------


def count_rows(path: Path) -> int:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])
    finally:
        db.close()


async def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - it is another thread that makes it true
            await asyncio.sleep(0.005)
