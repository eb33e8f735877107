"""What the world itself can see go wrong, at the instant at which it does.

The checker (`chaos/check`) judges the records afterwards, as it does those of real clusters. The simulator sees more:
both permits at one true instant, who was elected out of whom, whether anybody will ever lead again. Each finding
carries the invariant that it breaks; the first one ends the run, so that the story ends where it went wrong.

    S3  no two nodes hold a live permit at one true instant: written, not cleared, its end not reached on the holder's
        clock, its worker alive (a paused one is alive). A permit comes to life only by being written, so looking at
        each write is looking at every instant
    S3  a term is given back only when its worker said that it stopped, or is dead
    S9  permits come in the order of their tokens, one node each, and an ended one never comes back
    S7  whoever is elected was named by `insync` at that revision; whoever gets a permit holds all that was committed
    L2  after a tick, time alone does not ask for another one at once; no node stops for good unless etcd was restored
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from chaos.sim.engine import MS
from chaos.sim.story import JUDGE
from cluster.core.actions import Acquire
from cluster.core.ids import NodeId, Term
from cluster.core.role import ExecutionPermit

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World
    from cluster.core.lease import InSync


class Wrong(NamedTuple):
    """invariant: S1 to S11, L1 to L3. at: true ns."""

    invariant: str
    at: int
    text: str

    def __str__(self) -> str:
        return f"{self.at / MS:.3f} ms: {self.invariant}: {self.text}"


class Judge:
    def __init__(self, world: World) -> None:
        self.world = world
        self.found: list[Wrong] = []
        self.highest = Term(0)
        self.holder: NodeId | None = None
        self._ended: set[Term] = set()

    def blame(self, invariant: str, text: str) -> None:
        if self.world.etcd_restored and invariant in ("S3", "S7", "S9"):
            self.world.cover[f"not promised after a restore: {invariant}"] += 1
            return
        at = self.world.engine.now
        self.found.append(Wrong(invariant, at, text))
        self.world.say(JUDGE, "wrong", f"{invariant}: {text}")

    def raised(self, node: NodeId, error: BaseException, on: object) -> None:
        self.blame("L2", f"{node} raised {type(error).__name__}: {error} on {on}")

    def holds_live_permit(self, host: Host) -> bool:
        worker = host.worker
        return worker is not None and worker.process.alive and host.page.covers(host.now)

    def permit_written(self, host: Host, permit: ExecutionPermit) -> None:
        worker = host.worker
        if worker is None or not worker.process.alive or not permit.covers(host.now):
            # By a keeper that was paused before that action. Never live; the next worker starts from an empty page.
            self.world.cover["permit written after its end"] += 1
            return
        for other in self.world.hosts:
            if other is not host and self.holds_live_permit(other):
                left = (other.permit_ends - self.world.engine.now) / MS
                self.blame(
                    "S3",
                    f"{host.name} gets a permit for {permit.token} while {other.name} holds one for "
                    f"{other.page.token} for another {left:.3f} ms",
                )
        token = permit.token
        if token in self._ended:
            self.blame("S9", f"{host.name} gets a permit for {token} again after it was dropped")
        if token < self.highest or (token == self.highest and host.name != self.holder):
            self.blame("S9", f"{host.name} gets a permit for {token} after {self.holder} had {self.highest}")
        if token > self.highest:
            missing = self.world.committed_but_not_in(worker)
            if missing:
                self.blame("S7", f"{host.name} leads {token} without {missing}")
            self.highest, self.holder = token, host.name
            self.world.permits += 1

    def permit_cleared(self, host: Host) -> None:
        if host.page.token:
            self._ended.add(host.page.token)

    def resigned_early(self, host: Host, token: Term) -> None:
        self.blame("S3", f"{host.name} gives {token} back before its worker stopped")

    def elected(self, host: Host, request: Acquire, before: InSync) -> None:
        """What is elected is a journal; that the one which then leads is the same, `permit_written` finds out."""
        journal = request.members.get(host.name)
        first = request.tenure_seen == 0 and not before.members
        if not first and (journal is None or before.members.get(host.name) != journal):
            self.blame("S7", f"{host.name} with {journal} was elected out of {dict(before.members)}")

    def spins(self, host: Host, ago: int) -> None:
        self.blame("L2", f"{host.name} asks to be woken {ago} ns ago, after a tick")
