"""What must hold, read from the history as the world saw it, in true time."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core import role
from cluster.core.ids import NodeId, Term
from cluster.core.lease import InSync, Tenure
from tests.sim.node_model import Node
from tests.sim.plan import MS, Plan

if TYPE_CHECKING:
    from tests.sim.world import World

LIVE_WITHIN = 8
"""Ttls after the last fault is healed within which one leader must hold a permit. What it is made of at worst: a
request under way (1.5), the re-read (0.4), an eviction (1.1), a worker noticed as hung, killed and restarted (2),
its back-off (0.4), a takeover (0.2), a drain that is given up (1), and then twice a renewal."""


@dataclass
class Report:
    plan: Plan
    violations: list[str]
    cover: Counter[str]
    healed_in: float | None  # ttls; None: exempt or never
    events: int
    trace: list[str]

    @property
    def digest(self) -> str:
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=8).hexdigest()


class Judge:
    """The history as the world saw it.

    overlap    no two nodes hold a live permit at one true instant: written, not cleared, its end not reached on the
               holder's clock, its worker alive (a paused one is alive). A permit comes to life only by being
               written, so looking at each write is looking at every instant;
    order      permits come in the order of their tokens, one node each, and an ended one never comes back;
    resign     a term is given back only when its worker said that it stopped, or is dead;
    in sync    whoever is elected was named by `insync` at that revision;
    loss       whoever gets a permit has every committed entry;
    acts       effects carry tokens that never fall;
    busy       after a tick, time alone does not ask for another one at once;
    stopped    no node stops for good: etcd is never restored here;
    live       see LIVE_WITHIN.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        self.highest = Term(0)
        self.holder: NodeId | None = None
        self.ended: set[Term] = set()
        self.acted = Term(0)
        self.grants_since_heal: Counter[Term] = Counter()
        self.lived_at: int | None = None

    def blame(self, what: str) -> None:
        self.violations.append(f"{self.world.now / MS:.3f} ms: {what}")

    def live(self, n: Node) -> bool:
        return (
            n.cell is not None
            and n.worker is not None
            and not n.worker.dead
            and n.cell.covers(n.clock.read(self.world.now))
        )

    def written(self, node: Node, permit: role.ExecutionPermit) -> None:
        worker_dead = node.worker is None or node.worker.dead
        if worker_dead or not permit.covers(node.clock.read(self.world.now)):
            # By a keeper that was paused before that action. Never live; that no later worker finds it, `started` sees.
            self.world.cover["permit written after its end"] += 1
            return
        for other in self.world.nodes:
            if other is not node and self.live(other):
                assert other.cell is not None
                left = other.clock.when(other.cell.act_until) - self.world.now
                self.blame(
                    f"overlap: {node.name} gets a permit for {permit.token} while {other.name} holds one for "
                    f"{other.cell.token} for another {left / MS:.3f} ms"
                )
        if permit.token in self.ended:
            self.blame(f"order: {node.name} gets a permit for {permit.token} again after it was dropped")
        if permit.token < self.highest or (permit.token == self.highest and node.name != self.holder):
            self.blame(f"order: {node.name} gets a permit for {permit.token} after {self.holder} had {self.highest}")
        if permit.token > self.highest and node.position != self.world.committed:
            self.blame(f"loss: {node.name} leads {permit.token} with {node.position} of {self.world.committed} entries")
        self.highest, self.holder = permit.token, node.name
        if self.world.healed:
            self.grants_since_heal[permit.token] += 1
            if self.lived_at is None and self.grants_since_heal[permit.token] == 2:
                self.lived_at = self.world.now

    def started(self, node: Node) -> None:
        if node.cell is not None:
            self.blame(f"order: a new worker of {node.name} finds a permit for {node.cell.token}")

    def elected(self, node: Node, a: act.Acquire, before: InSync, tenure: Tenure | None) -> None:
        """What is elected is a journal; that the one which then leads is the same, `loss` finds out."""
        journal = a.members.get(node.name)
        if (tenure is not None or before.members) and (journal is None or before.members.get(node.name) != journal):
            self.blame(f"in sync: {node.name} with {journal} was elected out of {dict(before.members)}")


def short(x: ev.Event | act.Action) -> str:
    """For the trace: a view in one line, everything else as it is."""
    if not isinstance(x, ev.ViewSeen):
        return repr(x)
    v = x.view
    leader = f"{v.leader.node}:{v.leader.token}/{v.leader.renewal}" if v.leader else "-"
    tenure, resigned = v.tenure.token if v.tenure else 0, v.resigned.token if v.resigned else 0
    return f"View({v.revision} leader={leader} tenure={tenure} resigned={resigned})"
