"""A run's evidence on disk: what is read is what was written, or it is told that it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.check.evidence import Evidence, GateLine, Run, replayed
from chaos.check.files import ActorFile, EvidenceBroken, read_chained, read_evidence, seal, write_evidence
from chaos.check.invariants import check
from chaos.check.verdict import Level
from cluster.core.errors import ConfigError
from tests.support.history import TAG, World


@pytest.fixture
def good() -> Evidence:
    return World(3).run(40).finish().evidence()


@pytest.fixture
def folder(good: Evidence, tmp_path: Path) -> Path:
    write_evidence(tmp_path / "run", good)
    return tmp_path / "run"


def test_all_of_it_comes_back_and_is_judged_the_same(good: Evidence, folder: Path) -> None:
    read = read_evidence(folder)
    assert read.broken == ()
    assert read[:-2] == good[:-2]
    for mine, theirs in zip(read.journals or (), good.journals or (), strict=True):
        assert mine._replace(book=theirs.book) == theirs
        assert mine.book.digest() == theirs.book.digest()
    assert check(read) == check(good)


def test_evidence_that_does_not_exist_stays_so(tmp_path: Path) -> None:
    write_evidence(tmp_path / "run", Evidence(Run("plain"), gate=[]))
    assert read_evidence(tmp_path / "run") == Evidence(Run("plain"), gate=[])


def test_pruned_journal_comes_back_with_its_book(tmp_path: Path) -> None:
    world = World(8).run(60)
    snapshot = world.journal(entries=world.entries[:50]).book.snapshot()
    pruned = replayed("n2", world.entries[30:], TAG, base=30, snapshot=snapshot)
    write_evidence(tmp_path / "run", Evidence(journals=[pruned]))
    (read,) = read_evidence(tmp_path / "run").journals or ()
    assert (read.base, read.entries, read.last_chain) == (30, pruned.entries, pruned.last_chain)
    assert read.book.digest() == pruned.book.digest()


def test_recorder_that_dies_leaves_what_it_saw_and_the_run_is_invalid(tmp_path: Path) -> None:
    file = ActorFile(tmp_path, "gate")
    file.append(GateLine(1, "arm", 5, 0, "n1"))
    assert list(read_chained(tmp_path / "gate.jsonl")) == [GateLine(1, "arm", 5, 0, "n1")._asdict()]
    verdict = check(read_evidence(tmp_path))
    assert verdict.row("E").level is Level.INVALID and "the run did not end" in verdict.problems[0]
    seal(tmp_path, Run(), {"gate": file.close()})
    assert read_evidence(tmp_path).broken == ()
    with pytest.raises(FileExistsError):
        ActorFile(tmp_path, "gate")


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda x: [*x[:4], *x[5:]], "line 5 does not follow line 4"),
        (lambda x: [*x[:4], x[3], *x[4:]], "line 5 does not follow line 4"),
        (lambda x: [*x[:4], x[5], x[4], *x[6:]], "line 5 does not follow line 4"),
        (lambda x: [*x[:4], x[4].replace('"node":"', '"node":"x'), *x[5:]], "line 6 does not follow line 5"),
        (lambda x: x[:-1], "lines were sealed: it is not what the run wrote"),
        (lambda x: [*x[:-1], x[-1].replace('"node":"', '"node":"x')], "lines were sealed"),
        (lambda x: [*x[:4], "{\n", *x[5:]], "line 5 is no line of evidence"),
        (lambda x: [*x[:4], "[]\n", *x[5:]], "line 5 is no line of evidence"),
    ],
)
def test_file_that_is_not_as_written_makes_the_run_invalid(
    folder: Path, forge: Callable[[list[str]], list[str]], words: str
) -> None:
    path = folder / "sent.jsonl"
    path.write_text("".join(forge(lines_of(path))))
    read = read_evidence(folder)
    assert read.sent is None and any(words in b for b in read.broken), read.broken
    verdict = check(read)
    assert verdict.level is Level.INVALID and verdict.row("S4").level is Level.NOT_JUDGED


@pytest.mark.parametrize("name", ["venue", "gate", "commits", "journal-n2", "run"])
def test_missing_file_makes_the_run_invalid(folder: Path, name: str) -> None:
    (folder / f"{name}.jsonl").unlink()
    read = read_evidence(folder)
    assert any(f"{name}.jsonl is missing" in b for b in read.broken)
    assert check(read).level is Level.INVALID


@pytest.mark.parametrize("files", ["{}", "[]", "null"])
def test_seals_that_are_taken_off_make_the_run_invalid(folder: Path, files: str) -> None:
    run = folder / "run.jsonl"
    values = json.loads(run.read_text()) | {"files": json.loads(files)}
    run.write_text(json.dumps(values) + "\n")
    found = read_evidence(folder)
    assert found.broken and check(found).level is Level.INVALID


@pytest.mark.parametrize("name", ["run", "venue", "gate", "journal-n1"])
@pytest.mark.parametrize("wrong", ["[" * 100_000, '{"actor":"x","prev":"y","node":"n\\ud800"}', "directory"])
def test_rubbish_in_any_file_makes_the_run_invalid_and_nothing_else(folder: Path, name: str, wrong: str) -> None:
    path = folder / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    if wrong == "directory":
        path.mkdir()
    else:
        path.write_text(wrong + "\n")
    assert check(read_evidence(folder)).level is Level.INVALID


def test_file_of_no_actor_and_line_of_unknown_shape_are_told(folder: Path) -> None:
    (folder / "gate.jsonl").unlink()
    other = ActorFile(folder, "gate")
    other.append({"seq": 1, "op": "arm", "colour": "red"})
    other.close()
    (folder / "poem.jsonl").write_text("")
    told = read_evidence(folder).broken
    assert any("gate.jsonl: TypeError" in b for b in told) and any("no actor of a run" in b for b in told)


def test_journal_whose_chain_is_wrong_is_told(folder: Path) -> None:
    path = folder / "journal-n2.jsonl"
    values = list(read_chained(path))
    path.unlink()
    file = ActorFile(folder, "journal-n2")
    values[5]["body"] = values[6]["body"]
    for v in values:
        file.append(v)
    file.close()
    run = next(iter(read_chained(folder / "run.jsonl")))
    assert run["files"]["journal-n2"]
    (folder / "run.jsonl").write_text("")  # not sealed either, but the chain is what is looked for
    assert any("log entry 5" in b for b in read_evidence(folder).broken)


def test_what_is_no_folder_of_evidence_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of evidence"):
        read_evidence(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no evidence"):
        read_evidence(tmp_path)


def test_broken_chain_names_its_line(folder: Path) -> None:
    path = folder / "etcd.jsonl"
    first = json.loads(lines_of(path)[0])
    assert first["prev"] == "sha256:" + "0" * 64 and first["actor"] == "etcd"
    path.write_text("".join(lines_of(path)[1:]))
    with pytest.raises(EvidenceBroken, match="line 1 does not follow line 0"):
        list(read_chained(path))
