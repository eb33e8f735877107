"""A host of the simulation: its clocks and links, its disk, and the memory that its two processes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chaos.sim.clock import RATE, Clock
from chaos.sim.disk import Disk
from chaos.sim.engine import MS, Engine
from chaos.sim.network import FEED, LAN, LOCAL, Ends, Link, Quality
from chaos.sim.plan import Plan, rules_of, timing_of
from chaos.sim.story import ETCD, GATE, MARKET, VENUE
from cluster.core.ids import Instant, NodeId
from cluster.permit import NO_PERMIT, PermitSeen

if TYPE_CHECKING:
    from chaos.sim.keeper import SimKeeper
    from chaos.sim.worker import SimWorker

BEAT = 20 * MS


class Wires(NamedTuple):
    """Every link of one host but those to its peers. `up` leaves it."""

    etcd_up: Link
    etcd_down: Link
    watch: Link
    gate_up: Link
    gate_down: Link
    venue_up: Link
    venue_down: Link
    stream: Link
    feed: Link


class Host:
    def __init__(self, engine: Engine, plan: Plan, index: int, cluster: str) -> None:
        self.engine = engine
        self.index = index
        self.name = NodeId(f"n{index + 1}")
        self.home = f"home-{index + 1}"
        ttl = plan.ttls[index]
        self.rules, self.timing = rules_of(ttl), timing_of(ttl)
        self.validity = plan.validities[index]
        self.clock = Clock(plan.offsets[index], RATE + plan.drifts[index], plan.wall_offsets[index])
        noisy = Quality(loss=plan.loss, late=plan.late, late_by=int(2.5 * plan.ttl))

        keeper, worker = f"{self.name} keeper", f"{self.name} worker"

        def link(ends: Ends, quality: Quality, *, stream: bool = False) -> Link:
            return Link(engine, ends, quality, stream=stream)

        self.wires = Wires(
            link((keeper, ETCD, "request"), noisy),
            link((ETCD, keeper, "request"), noisy),
            link((ETCD, keeper, "watch"), noisy, stream=True),
            link((worker, GATE, "request"), noisy),
            link((GATE, worker, "request"), noisy),
            link((worker, VENUE, "request"), noisy),
            link((VENUE, worker, "request"), noisy),
            link((VENUE, worker, "stream"), LAN, stream=True),
            link((MARKET, worker, "feed"), FEED, stream=True),
        )
        self.peers: dict[NodeId, Link] = {}  # to each other host; the world fills it
        self.to_keeper = link((worker, keeper, "link"), LOCAL, stream=True)
        self.to_worker = link((keeper, worker, "link"), LOCAL, stream=True)
        self.disk = Disk(self.name, cluster, self._on_the_disk, lambda: engine.between(plan.sync // 2, plan.sync * 2))
        self.keeper: SimKeeper | None = None
        self.worker: SimWorker | None = None
        self.starts = 0  # of keepers
        self.incarnations = 0  # of workers
        self.down_until = 0

        # The permit page.
        self.page: PermitSeen = NO_PERMIT

    def _on_the_disk(self, delay: int, fn: Callable[[], None]) -> None:
        """The journal's writer is a thread of the worker: it stands still with it."""
        if self.worker is not None:
            self.engine.after(delay, self.worker.process.deliver, "disk", fn)

    @property
    def now(self) -> Instant:
        return self.clock.read(self.engine.now)

    @property
    def wall(self) -> int:
        return self.clock.wall(self.engine.now)

    @property
    def permit_ends(self) -> int:
        """True time at which what stands in the page is over."""
        return self.clock.when(self.page.act_until) if self.page.token else 0

    def beat_at(self) -> Instant | None:
        """What the worker's loop last wrote into the page, worked out instead of simulated."""
        w = self.worker
        if w is None or not w.opened:
            return None
        p = w.process
        last = w.ended_at if not p.alive else self.engine.now if p.quiet_since is None else p.quiet_since
        return self.clock.read(last - (last - w.started_at) % BEAT)

    def connect(self, peer: NodeId) -> None:
        self.peers[peer] = Link(self.engine, (f"{self.name} worker", f"{peer} worker", "replication"), LAN, stream=True)

    def heal(self) -> None:
        for link in (*self.wires, *self.peers.values()):
            link.heal()
