"""What a mutant is, and how it is put in place of the product and taken away again. Nothing of the cluster is here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from chaos.sim.plan import Plan, draw_plan
from chaos.sim.scenarios import SCENARIOS

Original = Callable[..., Any]
Replacement = Callable[..., Any]


class Where(NamedTuple):
    """Where to look: what `draw_plan` is asked for (venue, nodes: None: drawn), or a scenario by its id, for what only
    a rare coincidence shows."""

    profile: str = "all"
    venue: str | None = None
    nodes: int | None = None
    scenario: str = ""

    def plan(self, seed: int) -> Plan:
        if self.scenario:
            return SCENARIOS[self.scenario].with_seed(seed)
        return draw_plan(seed, self.profile, nodes=self.nodes, venue=self.venue)

    def __str__(self) -> str:
        where = f"scenario {self.scenario}" if self.scenario else self.profile
        return ", ".join(filter(None, (where, self.venue, f"{self.nodes} nodes" if self.nodes else "")))


class Patches:
    """Attributes of classes and modules that are replaced for a while. Undone in reverse, each to the very object that
    stood there, so that two mutants may touch the same one."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, new: object) -> None:
        """owner: the class or module that defines `name` itself; an inherited one would stay behind as its own."""
        self._undo.append((owner, name, vars(owner)[name]))
        setattr(owner, name, new)

    def around(self, owner: Any, name: str) -> Callable[[Replacement], Replacement]:
        """Decorates fn(original, *args), which is called from now on in the place of the function or method."""

        def decorate(fn: Replacement) -> Replacement:
            original = vars(owner)[name]
            self.replace(owner, name, lambda *args, **kwargs: fn(original, *args, **kwargs))
            return fn

        return decorate

    def everywhere(self, function: Original, new: Replacement) -> None:
        """In each module that has it under its own name: where it is defined, and where it was imported to."""
        name = function.__name__
        for module in [m for m in sys.modules.values() if getattr(m, "__dict__", {}).get(name) is function]:
            self.replace(module, name, new)

    def undo(self) -> None:
        while self._undo:
            setattr(*self._undo.pop())


@dataclass(frozen=True, slots=True)
class Mutant:
    """safeguard: what is switched off. caught_by: the invariants any of which must name it. seed: at which it is known
    to be caught; it moves with every change of the simulator, and is then searched for again, up to `limit` seeds."""

    id: str
    safeguard: str
    caught_by: frozenset[str]
    where: Where
    patch: Callable[[Patches], None]
    seed: int
    limit: int

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it lasts, this process runs the mutant. What a mutant remembers, it begins anew each time."""
        patches = Patches()
        try:
            self.patch(patches)
            yield
        finally:
            patches.undo()


class Table(dict[str, Mutant]):
    """Mutants by id. Called, it decorates what makes the next one."""

    def __call__(
        self,
        mutant_id: str,
        safeguard: str,
        caught_by: str,
        profile: str = "all",
        *,
        venue: str | None = None,
        nodes: int | None = None,
        scenario: str = "",
        seed: int = 0,
        limit: int = 1500,
    ) -> Callable[[Callable[[Patches], None]], Callable[[Patches], None]]:
        """caught_by: ids, apart by a blank."""

        def decorate(patch: Callable[[Patches], None]) -> Callable[[Patches], None]:
            where = Where(profile, venue, nodes, scenario)
            self[mutant_id] = Mutant(mutant_id, safeguard, frozenset(caught_by.split()), where, patch, seed, limit)
            return patch

        return decorate
