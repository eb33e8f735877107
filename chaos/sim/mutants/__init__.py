"""Mutants of the product: each with one safeguard switched off, and the invariants that must then name it.

The product knows nothing of them: there is no switch in it. A mutant is a patch of classes and functions of `cluster`
and `node`, put in place by whoever imports this package and for as long as `Mutant.applied()` lasts; where the thing to
be broken is the contract of somebody else (a venue that ignores tokens), or the place where a value leaves the node, it
is a patch of the stand-in. So a mutant cannot reach a build that trades, and the same patches can be applied inside the
real processes of a drill.

    M   reference/chaos.md 3.4: what every design of this kind has to survive      product.py
    E   the election                                                               election.py
    O   the order path                                                             orders.py

A mutant that nothing catches is a hole in the checker, in the faults, or a safeguard that nobody needs. Read next:
`patching.py`, then `chaos/sim/kill_matrix.py`, which hunts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from chaos.sim.mutants.election import ELECTION
from chaos.sim.mutants.orders import ORDERS
from chaos.sim.mutants.patching import Mutant
from chaos.sim.mutants.product import PRODUCT


def _place(mutant: Mutant) -> tuple[int, int, str]:
    letter, number, rest = re.fullmatch(r"([A-Z])(\d+)(.*)", mutant.id).groups()  # type: ignore[union-attr]
    return "MEO".index(letter), int(number), rest


MUTANTS: Mapping[str, Mutant] = MappingProxyType(
    {m.id: m for m in sorted((PRODUCT | ELECTION | ORDERS).values(), key=_place)}
)
"""By id, and in that order."""
