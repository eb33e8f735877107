"""The kill matrix: what is wrong on purpose must be named, or a PASS means nothing (reference/chaos.md 3.4).

    product   a safeguard is switched off (`mutants`): some run of its profile breaks an invariant that must name it
    history   one line of a good run's evidence is forged (`chaos/check/mutate.py`): FAIL, by that invariant
    drill     a scenario (`scenarios.py`) passes and shows what it is for; with its faults left out it is INVALID

Each row is one task, carried out in a process of its own pool; rows are equal in any number of processes but for the
time they took. Touches the directory that it is given. Read next: `mutants/__init__.py`.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from chaos.check.evidence import Evidence
from chaos.check.invariants import INVARIANTS, check
from chaos.check.mutate import MUTATIONS, NothingToMutate
from chaos.check.verdict import Level
from chaos.sim.mutants import MUTANTS
from chaos.sim.mutants.drill import faults_left_out
from chaos.sim.mutants.patching import Mutant
from chaos.sim.plan import draw_plan
from chaos.sim.pool import each_of
from chaos.sim.run import COLLECT_EVERY, silence, without_collector
from chaos.sim.scenarios import SCENARIOS, Scenario
from chaos.sim.words import fault_in_words, trap_in_words
from chaos.sim.world import Ended, World
from cluster.core.errors import ConfigError
from cluster.core.ids import NS_PER_S

HISTORIES = tuple(
    (profile, seed) for profile, seeds in (("all", 6), ("quiet", 4), ("feed", 1), ("gate", 4)) for seed in range(seeds)
)
"""(profile, seed) of the runs that are forged. Some forgeries need a run without pauses, with harmless faults only, or
one in which the gate refused a claim."""
FORGERIES = 3
"""Of one history in one way: at so many places."""
RTO_MAX = 10 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Row:
    """One mutant. expected: any of these must name it. fired: all that did, in any run. killed_by: the expected ones
    that did, in the run of `seed`; empty: it survived. told: the first violation of that run, or why it survived."""

    id: str
    kind: str
    what: str
    where: str
    expected: tuple[str, ...]
    killed_by: tuple[str, ...]
    fired: tuple[str, ...]
    seed: int | None
    runs: int
    seconds: float
    told: str

    @property
    def killed(self) -> bool:
        return bool(self.killed_by)


def _row(
    task: str, kind: str, what: str, where: str, expected: Iterable[str], begun: float, *, killed_by: Iterable[str],
    fired: Iterable[str], seed: int | None, runs: int, told: str,
) -> Row:  # fmt: skip
    took = round(time.perf_counter() - begun, 3)
    return Row(
        task, kind, what, where, _in_order(expected), _in_order(killed_by), _in_order(fired), seed, runs, took, told
    )


def _in_order(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(i for i in INVARIANTS if i in set(ids))


# -- mutants of the product --------------------------------------------------------------------------------------------


def hunt(mutant: Mutant, seeds: Iterable[int]) -> Row:
    """Run it seed by seed until an invariant names it that must."""
    begun, fired, runs = time.perf_counter(), set[str](), 0
    found: Ended | None = None
    with without_collector():
        for seed in seeds:
            with mutant.applied():
                ended = World(mutant.where.plan(seed)).run()
            runs += 1
            if runs % COLLECT_EVERY == 0:
                gc.collect()
            fired |= ended.broken
            if ended.broken & mutant.caught_by:
                found = ended
                break
    return _row(
        mutant.id,
        "product",
        mutant.safeguard,
        str(mutant.where),
        mutant.caught_by,
        begun,
        killed_by=found.broken & mutant.caught_by if found else (),
        fired=fired,
        seed=found.plan.seed if found else None,
        runs=runs,
        told=found.problems[0] if found else f"nothing that had to named it in {runs} runs",
    )


# -- mutants of the history --------------------------------------------------------------------------------------------


@cache
def histories() -> tuple[tuple[int, Evidence], ...]:
    """(seed, evidence) of runs that pass. Judged with bounds on recovery as well, which the simulator itself looks at:
    half of what it took to come to rest. Not where etcd was restored: there not every invariant is judged."""
    found = []
    for profile, seed in HISTORIES:
        world = World(draw_plan(seed, profile))
        ended = world.run()
        if world.etcd_restored:
            continue
        e = world.records.evidence(at_rest=ended.healed_in is not None)
        recovery_max = (world.engine.now - world.plan.heal_at) // 2
        e = e._replace(run=e.run._replace(rto_max=RTO_MAX, recovery_max=recovery_max))
        if not ended.broken and not check(e).problems:
            found.append((seed, e))
    return tuple(found)


def forge(name: str) -> Row:
    """Forge each history that has something to be forged in this way. Every forgery must be named."""
    begun, fired, runs, expected = time.perf_counter(), set[str](), 0, frozenset[str]()
    survivor, first = "", None
    for seed, good in histories():
        for again in range(FORGERIES):
            try:
                forged, expected = MUTATIONS[name](good, random.Random(f"{name} {seed} {again}"))
            except NothingToMutate:
                break
            runs += 1
            first = seed if first is None else first
            verdict = check(forged)
            named = {r.id for r in verdict.rows if r.level is (Level.INVALID if r.id == "E" else Level.FAIL)}
            fired |= named
            if not named & expected:
                survivor = survivor or f"forgery {again} of seed {seed} was not named; {verdict.level.word}"
    if not runs:
        survivor = "no history has anything to forge in this way"
    return _row(
        f"history: {name}", "history", "a good run, forged", f"{runs} forgeries", expected, begun,
        killed_by=() if survivor else fired & expected, fired=fired, seed=first, runs=runs,
        told=survivor or "every forgery was named",
    )  # fmt: skip


# -- mutants of the drill ----------------------------------------------------------------------------------------------


def problems_of(scenario: Scenario) -> list[str]:
    """What is wrong on the true product; empty: it passes, each fault bit, and it shows what it is for."""
    world = World(scenario.plan)
    ended = world.run()
    found = list(ended.problems)
    ordered = len(scenario.plan.faults) + len(scenario.plan.traps)
    proved = sum(bool(f.proof) for f in world.records.faults_that_bit())
    if proved != ordered:
        found.append(f"{proved} of {ordered} faults bit")
    found += [
        f"{i} is {row.level.word}" for i in scenario.shows if (row := ended.verdict.row(i)).level is not Level.PASS
    ]
    return found + [f"{what!r} was not met" for what in scenario.met if not ended.cover[what]]


def drill(scenario: Scenario) -> Row:
    begun = time.perf_counter()
    problems = problems_of(scenario)
    with faults_left_out():
        level = World(scenario.plan).run().verdict.level
    if level is not Level.INVALID:
        problems.append(f"without its faults it is {level.word}")
    return _row(
        f"drill: {scenario.id}", "drill", f"{scenario.what}; left out: {_left_out(scenario)}",
        f"scenario {scenario.id}", ("E",), begun,
        killed_by=() if problems else ("E",), fired=("E",) if level is Level.INVALID else (), seed=scenario.plan.seed,
        runs=2, told="; ".join(problems) or "passes; INVALID with its faults left out",
    )  # fmt: skip


def _left_out(scenario: Scenario) -> str:
    plan = scenario.plan
    return ", ".join(dict.fromkeys([*map(fault_in_words, plan.faults), *map(trap_in_words, plan.traps)]))


# -- all of them -------------------------------------------------------------------------------------------------------

TASKS: tuple[str, ...] = (
    *MUTANTS,
    *(f"history: {name}" for name in MUTATIONS),
    *(f"drill: {name}" for name in SCENARIOS),
)


def carry_out(task: str) -> Row:
    """One row, from seed 0 on, so that the numbers of runs can be compared."""
    kind, _, name = task.partition(": ")
    match kind:
        case "history":
            return forge(name)
        case "drill":
            return drill(SCENARIOS[name])
    return hunt(MUTANTS[task], range(MUTANTS[task].limit))


def _carry_out_silently(task: str) -> Row:
    silence()
    return carry_out(task)


def run_kill_matrix(out: Path, console: Console, *, jobs: int, only: Collection[str] = ()) -> bool:
    """Whether everything was killed. Writes kill-matrix.md and kill-matrix.json into the directory `out`.

    only: of TASKS; all, if there is none. Raises ConfigError for one that is not there."""
    if unknown := sorted(set(only) - set(TASKS)):
        raise ConfigError(f"no such mutants: {', '.join(unknown)}; there are: {', '.join(TASKS)}")
    tasks = [t for t in TASKS if t in only] if only else TASKS
    rows: list[Row] = []
    _print(console, f"{LEGEND}\n\n{_HEADING}")
    early: dict[int, Row] = {}  # done before the one whose turn it is
    with closing(each_of(_carry_out_silently, tasks, jobs=jobs)) as done:
        for number, row in done:
            early[number] = row
            while (due := early.pop(len(rows), None)) is not None:
                rows.append(due)
                _print(console, _line(due))
    (out / "kill-matrix.json").write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    (out / "kill-matrix.md").write_text(as_markdown(rows))
    killed = sum(r.killed for r in rows)
    met = {i for r in rows for i in (*r.expected, *r.fired)}
    _print(console, "\n" + "\n".join(f"{i:<4}{INVARIANTS[i].statement}" for i in INVARIANTS if i in met))
    _print(console, f"\n{killed} of {len(rows)} mutants killed; the table is in {out / 'kill-matrix.md'}")
    return killed == len(rows)


LEGEND = "● killed by, ○ fired besides, · expected, and silent (any expected one is enough)"
_HEADING = f"{'':7}" + "".join(f"{i:<4}" for i in INVARIANTS) + f"{'seed':>6}{'runs':>6}{'s':>7}"


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _line(row: Row) -> str:
    kind, _, name = row.id.rpartition(": ")
    cells = "".join(f"{_cell(row, i):<4}" for i in INVARIANTS)
    seed = "" if row.seed is None else row.seed
    what = f"{kind}: {name}" if kind == "history" else f"{kind} {name}: {row.what}" if kind else row.what
    end = "" if row.killed else f"  SURVIVED: {row.told}"
    return f"{'' if kind else row.id:<7}{cells}{seed:>6}{row.runs:>6}{row.seconds:>7.1f}  {what}{end}"


def as_markdown(rows: Iterable[Row]) -> str:
    """mutant x invariant: ● what killed it, ○ what fired besides, · what should have and did not."""
    ids = list(INVARIANTS)
    out = [
        "# Kill matrix",
        "",
        f"{LEGEND}.",
        "",
        f"| mutant | switched off, forged or left out | where | {' | '.join(ids)} | seed | runs | s |",
        f"|---|---|---|{'---|' * len(ids)}---|---|---|",
    ]
    for r in rows:
        cells = " | ".join(_cell(r, i) for i in ids)
        seed = "**survived**" if r.seed is None or not r.killed else str(r.seed)
        out.append(f"| {r.id} | {r.what} | {r.where} | {cells} | {seed} | {r.runs} | {r.seconds:.1f} |")
    return "\n".join(out) + "\n"


def _cell(row: Row, invariant: str) -> str:
    if invariant in row.killed_by:
        return "●"
    if invariant in row.fired:
        return "○"
    return "·" if invariant in row.expected else ""
