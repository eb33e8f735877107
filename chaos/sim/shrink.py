"""Makes the fault script of a failure as short as it gets, so that what is left is needed for it.

First whole faults and traps go (ddmin: halves, quarters, ... single ones), then what remains is made smaller: fewer
nodes, clocks that agree, links without noise, fewer orders, shorter faults, an earlier end. Each candidate is run; one
that fails no longer is put back. What comes out is a local minimum: no single step further fails still, unless the
budget ended before. Equal plans and equal answers give equal results.

A candidate that draws differently lives another life, and the danger may pass it by: so one that does not fail is tried
again with other seeds. Shortening is a search, not a proof of what caused the failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from chaos.sim.engine import MS
from chaos.sim.plan import Fault, Plan, Trap

StillFails = Callable[[Plan], bool]
"""Runs a plan. Whoever asks says what the failure is: as a rule, that the same invariant is broken."""

LIVES = 3
"""Seeds that a candidate is tried with, its own first."""
LENGTH_MIN = 5 * MS
SETTLE = 200 * MS
"""From the last thing of the script to the healing, as in a drawn plan."""
LULLS = (60 * MS, 120 * MS, 240 * MS)

Step = Fault | Trap


class _Search:
    """best: the smallest plan so far that fails. runs_left: how many candidates may be tried still."""

    def __init__(self, plan: Plan, still_fails: StillFails, budget: int) -> None:
        self.best = plan
        self.runs_left = budget
        self._still_fails = still_fails
        self._tried: dict[Plan, bool] = {plan: True}

    def try_(self, candidate: Plan) -> bool:
        """Whether it is another one and fails; then it is the best one."""
        if candidate == self.best:
            return False
        return any(self._run(replace(candidate, seed=candidate.seed + n)) for n in range(LIVES))

    def _run(self, candidate: Plan) -> bool:
        fails = self._tried.get(candidate)
        if fails is None:
            if not self.runs_left:
                return False
            self.runs_left -= 1
            fails = self._tried[candidate] = self._still_fails(candidate)
        if fails:
            self.best = candidate
        return fails

    def try_each(self, candidates: Callable[[Plan], Iterator[Plan]]) -> None:
        """Those that follow from the best one, anew after each that fails."""
        while any(self.try_(c) for c in candidates(self.best)):
            pass


def shrink(plan: Plan, still_fails: StillFails, budget: int = 400) -> Plan:
    """The smallest plan found that fails. `plan` is known to; budget: runs, each a few hundredths of a second."""
    search = _Search(plan, still_fails, budget)
    before = None
    while search.best != before and search.runs_left:
        before = search.best
        _drop_steps(search)
        for simpler in (_fewer_nodes, _plainer, _shorter, _earlier_end):
            search.try_each(simpler)
    return search.best


def _drop_steps(search: _Search) -> None:
    """ddmin (Zeller and Hildebrandt 2002), over faults and traps together, without its tests of the subsets alone:
    what can go is found by leaving out more and more of less and less."""
    steps: list[Step] = [*search.best.faults, *search.best.traps]
    size = len(steps)
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if search.try_(_with(search.best, fewer)):
                steps = fewer
            else:
                at += size
        size //= 2


def _with(plan: Plan, steps: list[Step]) -> Plan:
    faults = tuple(s for s in steps if isinstance(s, Fault))
    return replace(plan, faults=faults, traps=tuple(s for s in steps if isinstance(s, Trap)))


# -- smaller and plainer, one step at a time -------------------------------------------------------------------------


def _fewer_nodes(plan: Plan) -> Iterator[Plan]:
    """A fault of a node that is gone strikes the first one, as `faults.strike` has it."""
    for n in range(2, plan.nodes):
        gone = {f"n{i + 1}" for i in range(n, plan.nodes)}
        yield replace(
            plan,
            faults=tuple(f._replace(target="n1") if f.target in gone else f for f in plan.faults),
            ttls=plan.ttls[:n],
            drifts=plan.drifts[:n],
            offsets=plan.offsets[:n],
            wall_offsets=plan.wall_offsets[:n],
            validities=plan.validities[:n],
        )


def _plainer(plan: Plan) -> Iterator[Plan]:
    """What is not at its plainest value, one at a time. Few orders before many: a story is read by people."""
    nought = (0,) * plan.nodes
    plain: dict[str, object] = {
        "loss": 0.0,
        "late": 0.0,
        "drifts": nought,
        "offsets": nought,
        "wall_offsets": nought,
        "ttls": (plan.ttl,) * plan.nodes,
        "validities": (max(plan.validities),) * plan.nodes,
    }
    yield from (replace(plan, **{name: to}) for name, to in plain.items() if getattr(plan, name) != to)  # type: ignore[arg-type]
    yield from (replace(plan, lull=lull) for lull in reversed(LULLS) if lull > plan.lull)


def _shorter(plan: Plan) -> Iterator[Plan]:
    for i, fault in enumerate(plan.faults):
        for length in _shorter_lengths(fault.length):
            yield replace(plan, faults=(*plan.faults[:i], fault._replace(length=length), *plan.faults[i + 1 :]))
    for i, trap in enumerate(plan.traps):
        for length in _shorter_lengths(trap.length):
            yield replace(plan, traps=(*plan.traps[:i], trap._replace(length=length), *plan.traps[i + 1 :]))


def _shorter_lengths(length: int) -> Iterator[int]:
    """Nothing, half, three quarters: in whole milliseconds, since a person reads them."""
    for part in (0, length // 2, length * 3 // 4):
        rounded = part // MS * MS
        if part == 0 or rounded >= LENGTH_MIN:
            yield rounded


def _earlier_end(plan: Plan) -> Iterator[Plan]:
    """Healed soon after the last fault began."""
    last = max((f.at for f in plan.faults), default=0)
    for heal_at in (last + SETTLE, (last + plan.heal_at) // 2):
        rounded = -(-heal_at // MS) * MS
        if rounded < plan.heal_at:
            yield replace(plan, heal_at=rounded)
