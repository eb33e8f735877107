"""What is wrong on purpose is named: mutants of the product, of the history and of the drill (kill_matrix.py)."""

from __future__ import annotations

import json
import sys
from io import StringIO
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from chaos.check.invariants import INVARIANTS
from chaos.check.mutate import MUTATIONS
from chaos.sim.kill_matrix import TASKS, as_markdown, drill, forge, hunt, problems_of, run_kill_matrix
from chaos.sim.mutants import MUTANTS
from chaos.sim.mutants.drill import faults_left_out
from chaos.sim.mutants.patching import Mutant, Patches
from chaos.sim.plan import Plan
from chaos.sim.scenarios import SCENARIOS
from chaos.sim.world import World
from cluster.core.errors import ConfigError

each_mutant = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))


# -- the product -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@each_mutant
def test_mutant_is_killed_by_an_invariant_that_must_name_it(mutant: Mutant) -> None:
    """At the seed that the table knows; else it is searched for again, and the table should be told."""
    row = hunt(mutant, chain((mutant.seed,), range(mutant.limit)))
    assert row.killed, row.told
    if row.seed != mutant.seed:
        print(f"{mutant.id}: not at seed {mutant.seed} any more, but at {row.seed}")


@each_mutant
def test_true_product_holds_where_the_mutant_does_not(mutant: Mutant) -> None:
    assert World(mutant.where.plan(mutant.seed)).run().problems == []


@each_mutant
def test_mutant_replaces_something_and_leaves_nothing_behind(mutant: Mutant) -> None:
    before = everything()
    with pytest.raises(KeyError), mutant.applied():
        changed = {where for where, what in everything().items() if before.get(where) is not what}
        raise KeyError
    assert changed
    after = everything()
    assert before.keys() == after.keys()
    assert [where for where, what in after.items() if before[where] is not what] == []


def everything() -> dict[tuple[str, str], object]:
    """Whatever stands in a module of ours, or in a class of one."""
    found: dict[tuple[str, str], object] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("cluster", "node", "chaos"):
            continue
        owners = [module, *(x for x in vars(module).values() if isinstance(x, type) and x.__module__ == name)]
        for owner in owners:
            where = name if isinstance(owner, ModuleType) else f"{name}.{owner.__qualname__}"
            found |= {(where, attribute): what for attribute, what in vars(owner).items()}
    return found


def test_every_mutant_names_invariants_that_there_are() -> None:
    for mutant in MUTANTS.values():
        assert mutant.caught_by and mutant.caught_by <= INVARIANTS.keys(), mutant.id
        assert mutant.seed < mutant.limit, mutant.id


def test_a_function_is_replaced_wherever_it_was_imported_to() -> None:
    patches = Patches()
    patches.everywhere(problems_of, lambda _scenario: ["forged"])
    try:
        assert sys.modules["chaos.sim.kill_matrix"].problems_of(None) == ["forged"]  # type: ignore[attr-defined]
        assert problems_of(SCENARIOS["N1"]) == ["forged"]  # this very module's name for it
    finally:
        patches.undo()
    assert problems_of is sys.modules["chaos.sim.kill_matrix"].problems_of  # type: ignore[attr-defined]


# -- the history -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTATIONS)
def test_forged_run_is_named(name: str) -> None:
    row = forge(name)
    assert row.killed, row.told


# -- the drill ---------------------------------------------------------------------------------------------------------


@each_scenario
def test_scenario_passes_and_without_its_faults_is_invalid(scenario) -> None:  # type: ignore[no-untyped-def]
    row = drill(scenario)
    assert row.killed, row.told


def test_scenario_without_its_faults_says_what_it_lacks() -> None:
    with faults_left_out():
        problems = problems_of(SCENARIOS["N7"])
    assert "0 of 2 faults bit" in problems
    assert any("has no proof that it took effect" in p for p in problems)
    assert "'order arrived after its leader' was not met" in problems


@each_scenario
def test_scenario_is_data(scenario) -> None:  # type: ignore[no-untyped-def]
    assert Plan.from_json(scenario.plan.to_json()) == scenario.plan


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_table_is_written_and_says_what_killed_what(tmp_path: Path) -> None:
    told = StringIO()
    only = ("O3", "history: order twice", "drill: N1")
    assert run_kill_matrix(tmp_path, Console(file=told, width=200), jobs=2, only=only)
    assert "3 of 3 mutants killed" in told.getvalue()
    rows = json.loads((tmp_path / "kill-matrix.json").read_text())
    assert [(r["id"], r["kind"], r["killed_by"]) for r in rows] == [
        ("O3", "product", ["S1"]),
        ("history: order twice", "history", ["S1"]),
        ("drill: N1", "drill", ["E"]),
    ]
    table = (tmp_path / "kill-matrix.md").read_text()
    assert "| O3 | an order is sent once | venue |" in table
    assert table.count("●") == 1 + len(rows)  # the legend has one


def test_survivor_is_told_as_one() -> None:
    row = hunt(MUTANTS["M6"], ())
    assert not row.killed and row.seed is None
    line = as_markdown([row]).splitlines()[-1]
    assert "**survived**" in line and "●" not in line and line.count("·") == len(MUTANTS["M6"].caught_by)


def test_unknown_mutant_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such mutants: M99"):
        run_kill_matrix(Path("nowhere"), Console(), jobs=1, only=["M99"])
    assert len(set(TASKS)) == len(TASKS)
