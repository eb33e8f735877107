"""`baton audit`, on files as a user has them: verdicts, exit codes, and every mistake with its remedy."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from chaos.check.files import write_evidence
from cluster.journal import Journal
from node.paper_venue.lines import Line
from node.paper_venue.record import FILE_NAME, Record, read_record
from tests.support.history import World
from tests.support.paper import BTC, SYMBOL
from tests.unit.cli.conftest import Baton, Ran, baton

__all__ = ["baton"]

PASS, FAIL, USAGE, INVALID, INCONCLUSIVE = range(5)


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script's commands, not the node's alone."""
    import chaos.cli  # noqa: F401

    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def world() -> World:
    return World(0).run(60).finish()


def kept(directory: Path, lines: list[Line]) -> Path:
    """A venue's directory with this record."""
    record = Record(directory, {SYMBOL: BTC})
    for line in lines:
        record.append(line)
    record.close()
    return directory


@pytest.fixture
def record(world: World, tmp_path: Path) -> Path:
    return kept(tmp_path / "venue", world.lines)


def journal_of(world: World, path: Path) -> Path:
    async def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(path, cluster="c")
        done = asyncio.Event()
        last = world.entries[-1].index
        journal.submit(world.entries, lambda index: done.set() if index == last else None)
        async with asyncio.timeout(10):
            await done.wait()
        journal.close()

    asyncio.run(write())
    return path


def levels(ran: Ran) -> dict[str, str]:
    return {i["id"]: i["level"] for i in json.loads(ran.out)["invariants"]}


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_record_alone_proves_what_it_can_and_says_what_it_cannot(baton: Baton, record: Path) -> None:
    ran = baton("audit", "--record", record / FILE_NAME, "-o", "json")
    told = levels(ran)
    assert ran.code == PASS, ran
    assert [told[i] for i in ("E", "S1", "S2", "S3")] == ["PASS"] * 4
    assert {told[i] for i in told if i not in ("E", "S1", "S2", "S3")} == {"not judged"}


@pytest.mark.parametrize("where", ["venue", "venue/record.sqlite3", "."])
def test_record_is_found_from_its_directory_and_from_a_clusters(
    baton: Baton, record: Path, tmp_path: Path, where: str
) -> None:
    ran = baton("audit", "--record", tmp_path / where)
    assert ran.code == PASS and "no decision is executed twice" in ran.out
    *_, verdict, end = ran.out.splitlines()
    assert "PASS" in verdict and end.startswith("the venue's record ends with line 63, of 1970-01-01T00:16:40")


def test_record_that_is_cut_off_or_damaged_is_invalid_and_no_wrong_word(
    baton: Baton, record: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "cut.jsonl"
    exported.write_text(baton("venue", "record", "--dir", record).out[:-20])
    ran = baton("audit", "--record", exported)
    assert ran.code == INVALID and "its first 62 lines is cut off or damaged" in ran.out
    torn = tmp_path / "torn.sqlite3"
    torn.write_bytes((record / FILE_NAME).read_bytes()[:5000])
    assert baton("audit", "--record", torn).code == INVALID


def test_one_journal_is_not_two(baton: Baton, world: World, record: Path, tmp_path: Path) -> None:
    journal = journal_of(world, tmp_path / "n1" / "journal.db")
    ran = baton("audit", "--record", record, "--journal", f"n1={journal}", "--journal", f"n2={journal}")
    assert ran.code == 2 and "was given as the journal of n1 and of n2" in ran.err


def test_record_of_a_venue_that_runs_is_read_and_left_alone(baton: Baton, world: World, tmp_path: Path) -> None:
    running = Record(tmp_path / "venue", {SYMBOL: BTC})
    for line in world.lines[:-5]:
        running.append(line)
    running.commit()
    assert baton("audit", "--record", tmp_path / "venue").code == PASS
    for line in world.lines[-5:]:
        running.append(line)
    running.commit()
    running.close()
    assert baton("audit", "--record", tmp_path / "venue").code == PASS


def test_double_order_fails_and_is_named(baton: Baton, world: World, tmp_path: Path) -> None:
    first, *_, last = [i for i, x in enumerate(world.lines) if x.kind == "new" and x.accepted]
    world.lines[last] = world.lines[last]._replace(decision_id=world.lines[first].decision_id)
    ran = baton("audit", "--record", kept(tmp_path / "venue", world.lines))
    assert ran.code == FAIL and f"decision {world.lines[first].decision_id!r} as" in ran.out


def test_quiet_record_is_inconclusive(baton: Baton, tmp_path: Path) -> None:
    world = World(1)
    world.lead()
    world.place()
    ran = baton("audit", "--record", kept(tmp_path / "venue", world.lines))
    assert ran.code == INCONCLUSIVE and "the danger never arose: 0 stale messages refused" in ran.out


def test_record_that_was_edited_is_invalid(baton: Baton, record: Path) -> None:
    with sqlite3.connect(record / FILE_NAME) as db:
        db.execute("UPDATE line SET body = replace(body, '\"n1\"', '\"n2\"') WHERE venue_seq = 7")
        db.execute("DELETE FROM line WHERE venue_seq = 30")
    ran = baton("audit", "--record", record)
    assert ran.code in (INVALID, FAIL) and "INVALID" in ran.out and "is not as it was written" in ran.out


def test_export_of_a_record_is_checked_like_the_record(baton: Baton, record: Path, tmp_path: Path) -> None:
    lines = [json.dumps(line, separators=(",", ":")) for line in read_record(record)]
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(lines) + "\n")
    assert baton("audit", "--record", file).code == PASS
    at = next(i for i, x in enumerate(lines) if '"kind":"fill"' in x)
    lines[at] = lines[at].replace('"token":', '"token":1')
    file.write_text("\n".join(lines))
    ran = baton("audit", "--record", file)
    assert ran.code == INVALID and f"line {at + 1} is not as the venue wrote it" in ran.out


def test_journals_let_more_be_judged(baton: Baton, world: World, record: Path, tmp_path: Path) -> None:
    files = [journal_of(world, tmp_path / n / "journal.db") for n in ("n1", "n2")]
    words: list[Any] = [
        "audit",
        "--record",
        record,
        "--journal",
        f"n1={files[0]}",
        "--journal",
        f"n2={files[1].parent}",
    ]
    ran = baton(*words, "-o", "json")
    told = levels(ran)
    assert ran.code == INCONCLUSIVE and (told["S5"], told["S6"]) == ("INCONCLUSIVE", "not judged")
    ran = baton(*words, "--at-rest", "-o", "json")
    told = levels(ran)
    assert ran.code == PASS, ran.out
    assert [told[i] for i in ("S1", "S5", "S6", "S7", "S10")] == ["PASS"] * 5


def test_damaged_journal_is_invalid(baton: Baton, world: World, record: Path, tmp_path: Path) -> None:
    file = journal_of(world, tmp_path / "n1" / "journal.db")
    file.write_bytes(file.read_bytes().replace(b"BTCUSDT", b"ETHUSDT"))
    ran = baton("audit", "--record", record, "--journal", f"n1={file}")
    assert ran.code == INVALID and "not what was written" in ran.out


def test_folder_of_evidence_is_judged_whole(baton: Baton, world: World, tmp_path: Path) -> None:
    write_evidence(tmp_path / "run", world.evidence())
    ran = baton("audit", "--evidence", tmp_path / "run", "-o", "json")
    told = levels(ran)
    assert ran.code == INCONCLUSIVE and told.pop("L3") == "INCONCLUSIVE"
    assert set(told.values()) == {"PASS"} and json.loads(ran.out)["failovers"]
    gate = tmp_path / "run" / "gate.jsonl"
    assert baton("audit", "--evidence", tmp_path / "run", "--gate", gate).code == INCONCLUSIVE
    gate.write_text("".join(gate.read_text().splitlines(keepends=True)[1:]))
    assert baton("audit", "--evidence", tmp_path / "run").code == INVALID


def test_tsv_has_a_row_per_invariant(baton: Baton, record: Path) -> None:
    ran = baton("audit", "--record", record, "-o", "tsv")
    rows = ran.out.splitlines()
    assert rows[0].split("\t")[:2] == ["id", "level"] and [r.split("\t")[0] for r in rows[1:]][:2] == ["E", "S1"]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the venue's record"),
        (["--record", "nowhere"], "there is no file nowhere"),
        (["--record", "empty"], "holds no venue's record"),
        (["--record", "poem"], "neither a venue's record nor JSON lines"),
        (["--record", "other.jsonl"], "line 1 is no line of a venue's record; it lacks at_ns"),
        (["--record", "other.db"], "it has no table of lines"),
        (["--record", "journal.db"], "give it as --journal NODE=journal.db"),
        (["--record", "venue", "--journal", "journal.db"], "write NODE=FILE"),
        (["--record", "venue", "--journal", "n1=nowhere"], "no journal of n1 at nowhere"),
        (["--record", "venue", "--journal", "n1=poem"], "is no journal: it is not a database"),
        (["--record", "venue", "--gate", "nowhere"], "neither a file nor the URL of a Redis"),
        (["--record", "venue", "--gate", "redis://h:port/0"], "write redis://host:port/0"),
        (["--record", "venue", "--gate", "other.jsonl"], "is no gate's record"),
        (["--evidence", "nowhere"], "no folder of evidence at nowhere"),
        (["--evidence", "empty"], "holds no evidence"),
    ],
)
def test_mistake_is_told_with_its_remedy(
    baton: Baton, world: World, record: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "poem").write_text("roses are red\n")
    (tmp_path / "other.jsonl").write_text('{"venue_seq":1}\n')
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    journal_of(world, tmp_path / "journal.db")
    ran = baton("audit", *words)
    assert (ran.code, ran.out) == (USAGE, "") and "Traceback" not in ran.err
    assert told in " ".join(ran.err.split()), ran.err


def test_gate_that_is_silent_is_told(baton: Baton, record: Path) -> None:
    ran = baton("audit", "--record", record, "--gate", "redis://127.0.0.1:1/0")
    assert ran.code == 5 and "gate" in ran.err and "Traceback" not in ran.err
