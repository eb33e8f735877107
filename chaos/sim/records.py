"""What the outside saw, as the checker reads it (`chaos/check/evidence.py`): etcd's, the gate's and the venue's record,
the bytes that left each node, what leaders called committed, the faults, the operator, and the journals at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.check.evidence import (
    CommitLine,
    EtcdLine,
    Evidence,
    FaultLine,
    GateLine,
    JournalEvidence,
    QueryLine,
    Run,
    SentLine,
)
from chaos.sim.plan import DRIFT, HARMLESS, Fault, Trap
from chaos.sim.venue import UNIX
from cluster.core import actions as act
from cluster.core.ids import LogIndex

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World

PAUSES = ("keeper pause", "worker pause", "host pause", "host suspend", "short pause")


class Records:
    def __init__(self, world: World) -> None:
        self.world = world
        self.etcd: list[EtcdLine] = []
        self.sent: list[SentLine] = []
        self.commits: list[CommitLine] = []
        self.faults: list[FaultLine] = []
        self.token = 0
        self._node = ""

    def executed(self, host: Host, request: act.EtcdRequest, revision: int) -> None:
        """etcd has carried out one of the lease's transactions."""
        now = self.world.engine.now
        match request:
            case act.Acquire():
                self.token, self._node = revision, host.name
                self.etcd.append(EtcdLine(revision, "acquired", revision, host.name, now))
            case act.Renew(token=token):
                self.etcd.append(EtcdLine(revision, "renewed", token, host.name, now))
            case act.Evict(token=token) | act.Resign(token=token):
                self.etcd.append(EtcdLine(revision, "ended", token, self._node, now))

    def key_vanished(self) -> None:
        etcd = self.world.etcd
        self.etcd.append(EtcdLine(etcd.revision, "ended", self.token, self._node, self.world.engine.now))

    def left(self, host: Host, token: int, kind: str, coid: str = "") -> None:
        """Bytes for the venue left this node."""
        self.sent.append(SentLine(self.world.engine.now, host.name, token, kind, coid))  # type: ignore[arg-type]

    def committed(self, node: str, term: int, index: int, chain: bytes) -> None:
        self.commits.append(CommitLine("committed", node, term, index, chain, self.world.engine.now))

    def acknowledged(self, node: str, term: int, index: int, chain: bytes | None) -> None:
        self.commits.append(CommitLine("acknowledged", node, term, index, chain or b"", self.world.engine.now))

    def led(self, node: str, term: int, index: int, chain: bytes) -> None:
        self.commits.append(CommitLine("led", node, term, index, chain, self.world.engine.now))

    def fault(self, fault: Fault, host: Host, proof: str) -> None:
        now = self.world.engine.now
        kind = "pause" if fault.kind in PAUSES else fault.kind
        harmless = fault.kind in HARMLESS
        number = f"f{len(self.faults) + 1}"
        self.faults.append(FaultLine(number, kind, host.name, now, now, now + fault.length, proof, harmless))
        self.world.say("fault", f"{fault.kind} {fault.how} at {host.name} for {fault.length / 1e6:.1f} ms: {proof}")

    def trap(self, trap: Trap, host: Host) -> None:
        now = self.world.engine.now
        kind = "pause" if "pause" in trap.effect else trap.effect
        proof = f"right before {trap.process}'s {trap.step}"
        number = f"f{len(self.faults) + 1}"
        self.faults.append(FaultLine(number, kind, host.name, now, now, now + trap.length, proof))
        self.world.say("fault", f"{trap.effect} of {host.name} for {trap.length / 1e6:.1f} ms, {proof}")

    def healed(self) -> None:
        """Whatever lasted is over now."""
        now = self.world.engine.now
        self.faults = [f._replace(healed=min(f.healed or now, now)) for f in self.faults]

    def evidence(self, *, at_rest: bool) -> Evidence:
        world, plan = self.world, self.world.plan
        restored = world.etcd_restored  # it may have given one token twice, and what it told is no total order
        run = Run(
            profile=plan.venue,
            ttl=plan.ttl,
            clock_error=round(plan.ttl * 2 * DRIFT),
            validity=max(plan.validities),
            venue_epoch=UNIX,
            healed_at=plan.heal_at,
            ended_at=world.engine.now,
            at_rest=at_rest,
            recovery_max=0,
        )
        return Evidence(
            run=run,
            venue=[line._asdict() for line in world.venue.lines],
            gate=[GateLine(d.seq, d.op, d.token, d.high, d.subject, d.verdict, d.at) for d in world.gate.record],  # type: ignore[arg-type]
            etcd=None if restored else self.etcd,
            sent=self.sent,
            queries=[QueryLine(at, node, "lookup", coid, found) for at, node, coid, found in world.venue.queries],
            commits=self.commits,
            faults=self.faults,
            operator=world.operator.log,
            journals=self._journals(at_rest=at_rest) or None,
        )

    def _journals(self, *, at_rest: bool) -> list[JournalEvidence]:
        """Of the nodes that are up. None at all once the last complete one is lost: what remains proves nothing."""
        found: list[JournalEvidence] = []
        if self.world.journals_lost:
            return found
        for host in self.world.hosts:
            worker = host.worker
            if worker is None or not worker.opened or not worker.process.alive:
                continue
            journal = worker.journal
            entries = journal.read(LogIndex(journal.base.index + 1), 1 << 30, 1 << 30)
            end = host.disk.end
            found.append(
                JournalEvidence(host.name, worker.book, entries, journal.base.index, end.index, end.chain, at_rest)
            )
        return found
