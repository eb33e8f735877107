"""Mutants of the drill: faults that are ordered and noted, and never carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chaos.sim import faults
from chaos.sim.mutants.patching import Original, Patches
from chaos.sim.records import Records


@contextmanager
def faults_left_out() -> Iterator[None]:
    """While it lasts, no fault does anything; each stands in the log of faults, without a proof."""
    p = Patches()
    try:
        p.replace(faults, "FAULTS", dict.fromkeys(faults.FAULTS, lambda _world, _host, _fault: ""))
        p.replace(faults, "spring", lambda _world, _host, _trap: None)

        @p.around(Records, "trap")
        def _(original: Original, self: Records, *args: Any) -> None:
            original(self, *args)
            self.faults[-1] = self.faults[-1]._replace(proof="")

        yield
    finally:
        p.undo()
