"""What the outside saw, as the checker reads it (`chaos/check/evidence.py`): etcd's, the gate's and the venue's record,
the bytes that left each node, what leaders called committed, the faults, the operator, and the journals at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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
from chaos.sim.faults import Bite
from chaos.sim.plan import DRIFT, HARMLESS, Fault, Trap
from chaos.sim.story import ETCD, FAULTS, SENT, lease_in_words
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
        self._bites: dict[str, Bite] = {}
        self.token = 0
        self._node = ""

    def executed(self, host: Host, request: act.EtcdRequest, revision: int) -> None:
        """etcd has carried out one of the lease's transactions."""
        match request:
            case act.Acquire():
                self.token, self._node = revision, host.name
                self._lease(revision, "acquired", revision, host.name, "")
            case act.Renew(token=token):
                self._lease(revision, "renewed", token, host.name, "")
            case act.Evict(token=token):
                self._lease(revision, "ended", token, self._node, f"{host.name} evicts it")
            case act.Resign(token=token, reason=reason):
                self._lease(revision, "ended", token, self._node, f"given back: {reason}")

    def key_vanished(self) -> None:
        self._lease(self.world.etcd.revision, "ended", self.token, self._node, "its key has vanished")

    def _lease(
        self, revision: int, what: Literal["acquired", "renewed", "ended"], token: int, node: str, how: str
    ) -> None:
        self.etcd.append(EtcdLine(revision, what, token, node, self.world.engine.now))
        if self.world.engine.story is not None:
            self.world.say(
                ETCD, "lease", lease_in_words(what, token, node, how), token=token, ref=f"revision {revision}"
            )

    def left(self, host: Host, token: int, kind: str, coid: str = "") -> None:
        """Bytes for the venue left this node."""
        self.sent.append(SentLine(self.world.engine.now, host.name, token, kind, coid))  # type: ignore[arg-type]
        if self.world.engine.story is not None:
            what = SENT[kind].format(order=coid)
            self.world.say(f"{host.name} worker", "sent", f"{what} with token {token}", token=token, order=coid)

    def committed(self, node: str, term: int, index: int, chain: bytes) -> None:
        self.commits.append(CommitLine("committed", node, term, index, chain, self.world.engine.now))
        if self.world.engine.story is not None:
            text = f"entry {index} is on every node of the in-sync set: committed by {node}"
            self.world.say(f"{node} worker", "commit", text, token=term)

    def acknowledged(self, node: str, term: int, index: int, chain: bytes | None) -> None:
        self.commits.append(CommitLine("acknowledged", node, term, index, chain or b"", self.world.engine.now))
        if self.world.engine.story is not None:
            self.world.say(f"{node} disk", "journal", f"durable up to entry {index}", token=term)

    def led(self, node: str, term: int, index: int, chain: bytes) -> None:
        self.commits.append(CommitLine("led", node, term, index, chain, self.world.engine.now))
        if self.world.engine.story is not None:
            text = f"{node} takes over with token {term}; its journal ends at entry {index}"
            self.world.say(f"{node} worker", "role", text, token=term)

    def fault(self, fault: Fault, host: Host, proof: str | Bite) -> None:
        now = self.world.engine.now
        kind = "pause" if fault.kind in PAUSES else fault.kind
        harmless = fault.kind in HARMLESS and self._by_itself(fault.kind, now)
        number = f"f{len(self.faults) + 1}"
        told = proof if isinstance(proof, str) else proof.what
        if isinstance(proof, Bite):
            self._bites[number] = proof
        self.faults.append(FaultLine(number, kind, host.name, now, now, now + fault.length, told, harmless))
        self.world.say(FAULTS, "fault", f"{fault.kind} at {host.name}: {told}", until=now + fault.length)

    def _by_itself(self, kind: str, now: int) -> bool:
        """Nothing else is there that costs renewals: links that lose messages, another cut within the same lease."""
        plan = self.world.plan
        noisy = plan.loss or plan.late
        return not noisy and not (
            kind == "short cut" and any(f.kind == kind and now - f.ordered < plan.ttl for f in self.faults)
        )

    def trap(self, trap: Trap, host: Host) -> None:
        now = self.world.engine.now
        kind = "pause" if "pause" in trap.effect else trap.effect
        proof = f"right before {trap.process}'s {trap.step}"
        number = f"f{len(self.faults) + 1}"
        self.faults.append(FaultLine(number, kind, host.name, now, now, now + trap.length, proof))
        self.world.say(FAULTS, "fault", f"{trap.effect} at {host.name}, {proof}", until=now + trap.length)

    def healed(self) -> None:
        """Whatever lasted is over now."""
        now = self.world.engine.now
        self.faults = [f._replace(healed=min(f.healed or now, now)) for f in self.faults]

    def faults_that_bit(self) -> list[FaultLine]:
        """What was ordered, but for cuts that no message met: those did nothing."""
        proved = [f._replace(proof=self._bites[f.id].proof) if f.id in self._bites else f for f in self.faults]
        return [f for f in proved if f.proof or f.id not in self._bites]

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
            faults=self.faults_that_bit(),
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
