"""`baton simulate` as a person types it, rubbish included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos.cli import app
from chaos.sim.mutants import MUTANTS
from chaos.sim.plan import draw_plan

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
    assert "INCONCLUSIVE  of 15 judged" in told and "3 clusters" in told and "failovers a second" in told


def test_figures_as_json():
    code, told = run("--seeds", "0..3", "--jobs", "1", "-o", "json")
    figures = json.loads(told)
    assert code == 4
    assert (figures["seeds"], figures["failed"], figures["failing_seeds"]) == (3, 0, [])
    assert figures["failovers"] > 3 and figures["met"]["fault worker crash"] > 0


def test_a_failing_seed_is_named_with_the_command_that_lives_it_again(tmp_path: Path):
    mutant = MUTANTS["O3"]
    with mutant.applied():
        code, told = run("--seeds", f"{mutant.seed}..{mutant.seed + 1}", "--profile", "venue", "--jobs", "1")
        assert code == 1
        assert f"again: baton simulate --replay {mutant.seed} --profile venue" in told
        script = next((tmp_path / "simulate-results").glob("S1-*.json"))
        assert f"again: baton simulate --replay simulate-results/{script.name}" in told
        code, told = run("--replay", str(script), "--results", "again")
    assert code == 1 and "S1: " in told
    assert (tmp_path / "again" / f"{script.stem}.html").exists()
    assert run("--replay", str(script), "--results", "mended")[0] == 0


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
    ],
)
def test_a_script_that_is_none_is_refused_by_name(change: Change, told: str, tmp_path: Path):
    plan = json.loads(draw_plan(2).to_json())
    change(plan)
    Path("bad.json").write_text(json.dumps(plan))
    code, output = run("--replay", "bad.json")
    assert code == 2 and f"bad.json: {told}" in " ".join(output.split()).replace(
        "this is no fault script of a simulation: ", ""
    )


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
        (("--results", "/proc/none"), "--results /proc/none: it cannot be made"),
    ],
)
def test_rubbish_is_told_with_its_remedy(words: tuple[str, ...], told: str):
    code, output = run(*words)
    assert code == 2 and told in " ".join(output.split())
