"""`baton simulate` as a person types it, rubbish included."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos.cli import app
from chaos.sim import command
from chaos.sim.mutants import MUTANTS
from chaos.sim.plan import draw_plan
from chaos.sim.replay import explain_failure
from chaos.sim.run import Summary

Change = Callable[[dict[str, Any]], object]


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["simulate", *words])
    return done.exit_code, done.output


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_too_few_seeds_prove_nothing_and_say_so():
    code, told = run("--seeds", "0..3", "--jobs", "1")
    assert code == 4
    assert (
        "INCONCLUSIVE  altogether, of 15 invariants that were judged" in told
        and "3 clusters" in told
        and "failovers a second" in told
    )


def test_figures_as_json():
    code, told = run("--seeds", "0..3", "--jobs", "1", "-o", "json")
    figures = json.loads(told)
    assert code == 4
    assert (figures["seeds"], figures["failed"], figures["failing_seeds"]) == (3, 0, [])
    assert figures["failovers"] > 3 and figures["met"]["fault worker crash"] > 0


def test_a_failing_seed_is_named_with_the_command_that_lives_it_again(tmp_path: Path):
    mutant = MUTANTS["O3"]
    with mutant.applied():
        code, told = run(
            "--results",
            "my results",
            "--seeds",
            f"{mutant.seed}..{mutant.seed + 1}",
            "--profile",
            "venue",
            "--jobs",
            "1",
        )
        assert code == 1
        assert f"again: baton simulate --replay {mutant.seed} --profile venue" in told
        script = Path("my results") / f"S1-seed-{mutant.seed}.json"
        command = f"baton simulate --replay '{script}'"
        assert f"again: {command}" in told and script.exists()
        page = script.with_suffix(".html").read_text()
        assert command in html.unescape(page)
        assert f"its timeline: {script.with_suffix('.html')}" in told
        left = {path: path.read_bytes() for path in script.parent.iterdir()}
        code, told = run("--replay", str(script), "--results", "my results")
    assert code == 1 and "S1: " in told
    assert (script.parent / f"{script.stem}-replay.html").exists()
    assert run("--replay", str(script), "--results", "my results")[0] == 0  # mended
    assert {path: path.read_bytes() for path in left} == left


def test_a_seed_that_is_shortened_keeps_its_name(tmp_path: Path):
    """M2's shortest script lives by another seed than the one that failed, whose own replay would find nothing."""
    mutant = MUTANTS["M2"]
    with mutant.applied():
        plan = mutant.where.plan(mutant.seed)
        told = explain_failure(plan, tmp_path)
    page = told.timeline.read_text()
    assert told.script.stem.endswith(f"-seed-{plan.seed}") and told.timeline.stem == told.script.stem
    assert f"seed {plan.seed}" in page
    if told.plan.seed != plan.seed:
        assert f"seed {plan.seed}, shortened, on the network of seed {told.plan.seed}" in page


def test_a_replay_as_json():
    code, told = run("--replay", "3", "-o", "json")
    answer = json.loads(told)
    assert code == 0 and answer["problems"] == []
    assert Path(answer["timeline"]).exists() and Path(answer["script"]).exists()


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    progress, still = command._Progress(1000), command._StillAtIt()
    for _ in range(70):
        now[0] += 1
        progress.tell(Summary(seeds=int(now[0] - 100), failovers=7))
        still.tell()
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "30 of 1000 seeds, 7 failovers, 0 failed, 970 s left",
        "still at it after 30 s",
        "60 of 1000 seeds, 7 failovers, 0 failed, 940 s left",
        "still at it after 60 s",
    ]


def _in_fault(place: int, value: object) -> Change:
    return lambda plan: plan["faults"][0].__setitem__(place, value)


def _set(**fields: object) -> Change:
    return lambda plan: plan.update(fields)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_in_fault(1, "no such"), "fault 'no such': it is none of blind, compact"),
        (_in_fault(0, "soon"), "faults.0.0: Input should be a valid integer"),
        (_set(traps=[["worker", "bytes", 1, "fly", 5]]), "effect of a trap 'fly': it is none of given up"),
        (_set(ttls=[400_000_000]), "ttls, drifts, offsets, wall_offsets and validities have 1,"),
        (_set(venue="moon"), "venue 'moon': it is none of token, expiry, plain"),
        (_set(lull=0), "lull: 0 ns; it must be from 1000"),
        (_set(heal_at=10**18), "heal_at: 1000000000000000000 ns; it must be from"),
        (lambda plan: plan.pop("seed"), "seed: Field required"),
        (_in_fault(2, "n9"), "at 'n9': it is none of leader, standby, n1, n2"),
        (_in_fault(3, -5), ", length -5 ns: it must be from 0"),
        (_in_fault(0, -5), " at -5 ns: it must be from 0 to heal_at"),
        (_in_fault(0, 59_000_000_000), " at 59000000000 ns: it must be from 0 to heal_at"),
        (_in_fault(4, "often"), ", how 'often': it is none of"),
        (_set(traps=[["worker", "fly", 1, "kill", 5]]), "trap at step 'fly' of a worker: it is none of ArmGate"),
        (_set(traps=[["pilot", "bytes", 1, "kill", 5]]), "trap of process 'pilot': it is none of keeper, worker"),
        (_set(traps=[["worker", "bytes", 0, "kill", 5]]), "trap at step 'bytes', nth 0: it counts from 1"),
        (_set(traps=[["worker", "bytes", 1, "pause", -5]]), "trap at step 'bytes', length -5 ns"),
        (_set(fault=[]), "key 'fault': it is none of seed, profile"),
        (_set(loss=1.5), "loss 1.5: it is a share of the messages, from 0 to 1"),
        (_set(late=-0.1), "late -0.1: it is a share of the messages"),
        (_set(seed=-1), "seed -1: it must be 0 or more"),
        (lambda plan: plan["drifts"].__setitem__(0, 10**6), "drifts: 1000000 parts in a million"),
        (_set(min_standbys=7), "min_standbys 7: it must be from 0 to"),
    ],
)
def test_a_script_that_is_none_is_refused_by_name(change: Change, told: str, tmp_path: Path):
    plan = json.loads(draw_plan(2).to_json())
    change(plan)
    Path("bad.json").write_text(json.dumps(plan))
    code, output = run("--replay", "bad.json")
    said = " ".join(output.split()).replace("this is no fault script of a simulation: ", "")
    assert code == 2 and "bad.json: " in said and told in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--seeds", "5..3"), "seeds '5..3': there are none"),
        (("--seeds", "many"), "seeds 'many'"),
        (("--profile", "bad"), "profile 'bad': it is none of all, process"),
        (("--venue", "moon"), "venue 'moon': it is none of token"),
        (("--replay", "nothing.json"), "nothing.json: it cannot be read"),
        (("--replay", "."), ".: it cannot be read"),
        (("--replay", "3", "--exhaustive"), "name one"),
        (("--replay", "3", "--seeds", "0..5"), "--seeds 0..5 says nothing to --replay"),
        (("--replay", "a.json", "--nodes", "3"), "--nodes: a.json says that itself"),
        (("--kill-matrix", "--profile", "venue"), "--profile: of no use with --kill-matrix"),
        (("--exhaustive", "--seeds", "0..5"), "--seeds 0..5 says nothing to --exhaustive"),
        (("--kill-matrix", "-o", "json"), "the kill matrix leaves kill-matrix.json"),
        (("--exhaustive", "-o", "json"), "--exhaustive has no such output"),
        (("--replay", "42", "-o", "tsv"), "'tsv' is not one of 'pretty', 'json'"),
        (("-o", "yaml"), "'yaml' is not one of 'pretty', 'json'"),
        (("--results", "/proc/none"), "--results /proc/none: it cannot be made"),
    ],
)
def test_rubbish_is_told_with_its_remedy(words: tuple[str, ...], told: str):
    code, output = run(*words)
    assert code == 2 and told in " ".join(output.split())
