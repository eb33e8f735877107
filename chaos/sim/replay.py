"""A failure made small, lived through once more with its story kept, and written down for whoever has to mend it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from chaos.sim.explain import explain
from chaos.sim.faults import EFFECTS, FAULTS
from chaos.sim.headline import invariant_of
from chaos.sim.plan import Plan
from chaos.sim.shrink import shrink
from chaos.sim.timeline import Origin, write_timeline
from chaos.sim.world import Ended, World
from cluster.core.errors import ConfigError
from node.types import parse_client_order_id


class Explained(NamedTuple):
    """script: the plan as JSON, for `baton simulate --replay`. timeline: the page that tells the story. problems: what
    is broken, the one it tells of first; nothing, if nothing is."""

    script: Path
    timeline: Path
    plan: Plan
    problems: list[str]


def read_script(file: Path) -> Plan:
    """The plan in `file`. Raises ConfigError if there is none, and for faults that nobody knows."""
    try:
        plan = Plan.from_json(file.read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: it cannot be read: {e}") from e
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from e
    known = {"fault": FAULTS.keys(), "effect of a trap": EFFECTS}
    for what, names in (("fault", {f.kind for f in plan.faults}), ("effect of a trap", {t.effect for t in plan.traps})):
        for name in sorted(names - known[what]):
            raise ConfigError(f"{file}: {what} {name!r}: it is none of {', '.join(sorted(known[what]))}")
    return plan


def explain_failure(plan: Plan, out_dir: Path, budget: int = 400) -> Explained:
    """Shrink `plan`, which breaks an invariant, and write its script and its timeline into `out_dir`, named after the
    invariant and the seed of `plan`, whichever seed the small one lives by. budget: runs.

    What the small plan breaks is what the given one does first, in the same way: another failure that is met while
    shrinking has a story of its own. Raises ValueError for a plan that breaks nothing."""
    chief = chief_problem(World(plan).run())
    wanted = _sort(chief)
    small = shrink(plan, lambda p: any(_sort(x) == wanted for x in World(p).run().problems), budget)
    name = f"{invariant_of(chief)}-seed-{plan.seed}"
    return _write(small, _stored(small, out_dir / f"{name}.json", plan.seed), out_dir / f"{name}.html", wanted)


def write_replay(plan: Plan, out_dir: Path, script: Path | None = None) -> Explained:
    """Live through `plan` as it is, and write its timeline: of a plan that was read from `script`, `<its name>-replay`,
    so that what the run left which made it stays; of another, `seed-<n>`, with its script beside it."""
    if script is not None:
        return _write(plan, Origin(None, script), out_dir / f"{script.stem}-replay.html")
    name = f"seed-{plan.seed}"
    return _write(plan, _stored(plan, out_dir / f"{name}.json", plan.seed), out_dir / f"{name}.html")


def _stored(plan: Plan, script: Path, seed: int) -> Origin:
    script.write_text(plan.to_json() + "\n")
    return Origin(seed, script)


def _write(plan: Plan, origin: Origin, timeline: Path, wanted: str = "") -> Explained:
    """wanted: the sort of problem to tell of; else the one that tells most."""
    world = World(plan, traced=True)
    ended = world.run()
    problems = []
    if ended.broken:
        chief = next((p for p in ended.problems if _sort(p) == wanted), None) or chief_problem(ended)
        problems = [chief, *(p for p in ended.problems if p != chief)]
    trades = {line.trade_id: f"venue_seq {line.venue_seq}" for line in world.venue.lines if line.trade_id}
    case = explain(plan, world.engine.story or [], problems, trades)
    write_timeline(timeline, plan, case, problems, origin)
    return Explained(origin.script, timeline, plan, problems)


def chief_problem(ended: Ended) -> str:
    """The one that tells most: what the world saw happen before what the records show, an order before what else there
    is. Raises ValueError if nothing is broken."""
    of_broken = [p for p in ended.problems if invariant_of(p) in ended.broken]
    if not of_broken:
        raise ValueError(f"seed {ended.plan.seed} breaks nothing")
    if ended.wrong:
        return of_broken[0]
    return next((p for p in of_broken if _names_an_order(p)), of_broken[0])


def _names_an_order(problem: str) -> bool:
    return ", new " in problem or any(parse_client_order_id(w) for w in re.findall(r"\w+", problem))


def _sort(problem: str) -> str:
    """The sentence without what differs from run to run: numbers, nodes, ids."""

    def plain(word: re.Match[str]) -> str:
        text = word.group()
        return "#" if any(c.isdigit() for c in text) or parse_client_order_id(text) is not None else text

    return re.sub(r"\w+", plain, problem.partition("ms: ")[2] or problem) + invariant_of(problem)
