"""Drills by hand: one fault of the catalogue each, at the moment at which it is worst, as a plan.

A drawn plan meets a danger now and then; these meet it each time, and say by what it is seen that they did. All else
is calm: links are perfect, clocks are true. `kill_matrix.py` runs each on the true product, which must pass, and once
more with its faults left out though they were ordered, which must be INVALID. Mutants that only a rare coincidence
shows are hunted here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from chaos.sim.engine import MS
from chaos.sim.plan import Fault, Plan, Trap

TTL = 600 * MS
DRIFT = 50_000  # parts in a million: all that a lease allows for
AT = 1200 * MS
"""When the fault strikes: the first leader has traded for a while."""

CALM = Plan(
    seed=1,
    profile="calm",
    venue="token",
    ttls=(TTL,) * 3,
    drifts=(0,) * 3,
    offsets=(0,) * 3,
    wall_offsets=(0,) * 3,
    timeout=TTL // 5,
    call_timeout=100 * MS,
    loss=0.0,
    late=0.0,
    validities=(200 * MS,) * 3,
    lull=15 * MS,
    min_standbys=1,
    unprotected="trade",
    sync=300_000,
    faults=(),
    traps=(),
    heal_at=2600 * MS,
)
TWO = replace(
    CALM, ttls=(TTL,) * 2, drifts=(0,) * 2, offsets=(0,) * 2, wall_offsets=(0,) * 2, validities=(200 * MS,) * 2
)


class Scenario(NamedTuple):
    """what: the fault of reference/chaos.md 2 that it is named by. shows: the invariants that it covers, so that they
    pass and are not merely unbroken. met: what the world must have counted (`Ended.cover`), or it was not this."""

    id: str
    what: str
    plan: Plan
    shows: tuple[str, ...]
    met: tuple[str, ...] = ()

    def with_seed(self, seed: int) -> Plan:
        """The same, on another network and with other decisions."""
        return replace(self.plan, seed=seed)


def _faults(*faults: Fault, plan: Plan = CALM) -> Plan:
    return replace(plan, faults=faults)


_DEATHS = tuple(Fault(AT + i * 250 * MS, "worker crash", "leader") for i in range(5))

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        s.id: s
        for s in (
            Scenario(
                "N1",
                "the leader is cut from etcd, and the venue is not: it stops before its lease ends",
                _faults(Fault(AT, "cut etcd", "leader", 1200 * MS, "lose")),
                ("S1", "S3", "S4"),
            ),
            Scenario(
                "N2",
                "etcd hears the leader and its answers are lost: it lets its key go",
                _faults(Fault(AT, "cut etcd", "leader", 1200 * MS, "lose down")),
                ("S1", "S3", "S4"),
            ),
            Scenario(
                "N2b",
                "a renewal is answered late, and nothing comes or goes after it",
                replace(
                    CALM,
                    timeout=300 * MS,
                    faults=(Fault(AT, "stall watch", "leader", 1300 * MS),),
                    traps=(Trap("keeper", "Renew", 12, "late", 840 * MS),),
                ),
                ("S1", "S3", "S4"),
                ("trap late at Renew",),
            ),
            Scenario(
                "N3",
                "an acquire is answered late, and the key that it made is gone by then",
                replace(
                    TWO,
                    timeout=300 * MS,
                    faults=(Fault(AT, "worker crash", "leader"), Fault(AT + 120 * MS, "delete key", "n1")),
                    traps=(Trap("keeper", "Acquire", 2, "late answer", 200 * MS),),
                ),
                ("S1", "S3"),
                ("trap late answer at Acquire",),
            ),
            Scenario(
                "N3c",
                "an acquire is found out about in the view, and soon after that etcd is out of reach",
                replace(
                    TWO,
                    timeout=250 * MS,
                    faults=(
                        Fault(AT, "worker crash", "leader"),
                        Fault(AT + 100 * MS, "cut etcd", "leader", 1200 * MS, "lose"),
                    ),
                    traps=(Trap("keeper", "Acquire", 2, "late answer", 280 * MS),),
                ),
                ("S1", "S3"),
                ("trap late answer at Acquire",),
            ),
            Scenario(
                "N3b",
                "a term is given up as soon as it has begun, and etcd hears of it late",
                replace(
                    CALM,
                    timeout=60 * MS,
                    faults=(Fault(AT, "worker crash", "leader"),),
                    traps=(Trap("keeper", "TellGranted", 2, "given up", 900 * MS),),
                ),
                ("S1", "S3"),
                ("trap given up at TellGranted",),
            ),
            Scenario(
                "P1",
                "a candidate's worker dies, and its journal with it, while its acquire is under way",
                replace(
                    CALM,
                    timeout=400 * MS,
                    faults=(Fault(AT, "worker crash", "leader"),),
                    traps=(Trap("keeper", "Acquire", 2, "lost journal", 350 * MS),),
                ),
                ("S1", "S3", "S7"),
                ("trap lost journal at Acquire",),
            ),
            Scenario(
                "N7",
                "an order is held on its way, the leader is paused, the order arrives after its leader",
                _faults(Fault(AT, "lurk", "leader", 1000 * MS), Fault(AT + 60 * MS, "host pause", "leader", 1100 * MS)),
                ("S2", "S3"),
                ("order arrived after its leader",),
            ),
            Scenario(
                "P4",
                "the leader's worker hangs where a kill must wait, while a renewal is on its way",
                replace(
                    CALM,
                    timeout=300 * MS,
                    faults=(Fault(AT + 290 * MS, "worker stuck", "leader", 1000 * MS),),
                    traps=(Trap("keeper", "Renew", 12, "late answer", 250 * MS),),
                ),
                ("S1", "S3"),
                ("trap late answer at Renew",),
            ),
            Scenario(
                "P2",
                "the leader is paused between its last look at the permit and the bytes, for longer than its lease",
                replace(CALM, traps=(Trap("worker", "bytes", 12, "host pause", 1100 * MS),)),
                ("S2", "S3"),
                ("trap host pause at bytes",),
            ),
            Scenario(
                "D3",
                "a disk does not answer, so that the leader's worker cannot even be killed: others lead meanwhile",
                _faults(Fault(AT, "worker stuck", "leader", 7500 * MS)),
                ("S1", "S3"),
            ),
            Scenario(
                "N14",
                "bytes of the replication stream are turned",
                _faults(*(Fault(AT + i * 70 * MS, "corrupt frame", "leader") for i in range(2))),
                ("S5", "S6"),
                ("frame corrupted",),
            ),
            Scenario(
                "D5",
                "a byte in the middle of each journal is turned, of one after the other",
                _faults(*(Fault(AT + i * 400 * MS, "flip", f"n{i + 1}", 1000 + 7 * i) for i in range(3))),
                ("S5", "S6"),
                ("journal corrupt",),
            ),
            Scenario(
                "D6",
                "the power fails on both hosts, and the one that led comes back last: what it counted is there",
                _faults(
                    Fault(AT, "host crash", "leader", 1000 * MS, "hold"),
                    Fault(AT + 1, "host crash", "standby", 50 * MS, "lose"),
                    plan=replace(TWO, sync=10 * MS),
                ),
                ("S7",),
                ("unsynced writes lost",),
            ),
            Scenario(
                "C2",
                "the leader's host is suspended for longer than its lease",
                _faults(Fault(AT, "host suspend", "leader", 1100 * MS)),
                ("S1", "S3"),
            ),
            Scenario(
                "C3",
                "the leader's clock is slow and the others' are fast, and it cannot say that its time is over",
                _faults(
                    Fault(AT, "cut etcd", "n1", 1200 * MS, "lose"),
                    Fault(AT + 1, "keeper pause", "n1", 1200 * MS),
                    plan=replace(CALM, drifts=(-DRIFT, DRIFT, DRIFT)),
                ),
                ("S1", "S3", "S4"),
            ),
            Scenario(
                "E2",
                "etcd has no majority, and the leader's keeper cannot say that its time is over",
                _faults(
                    Fault(AT, "etcd down", "leader", 1200 * MS), Fault(AT + 1, "keeper pause", "leader", 1200 * MS)
                ),
                ("S1", "S4"),
            ),
            Scenario(
                "E3",
                "an old renewal reaches etcd at last, and those who wait for its lease to end hear of it late",
                _faults(
                    Fault(AT, "cut etcd", "n1", 445 * MS, "hold up"),
                    *(Fault(AT + 440 * MS, "stall watch", standby, 125 * MS) for standby in ("n2", "n3")),
                    Fault(AT + 500 * MS, "keeper pause", "n1", 600 * MS),
                    plan=replace(CALM, timeout=400 * MS),
                ),
                ("S1", "S3"),
            ),
            Scenario(
                "E3b",
                "the watches are behind, and when they hear again, the leader's key has vanished",
                _faults(Fault(AT, "stall watch", "leader", 1300 * MS), Fault(AT + 1, "vanish", "leader", 900 * MS)),
                ("S1", "S3"),
            ),
            Scenario(
                "E4",
                "a standby is cut from etcd, and its worker, which has heard of the next term, starts again",
                _faults(
                    Fault(AT, "cut etcd", "n1", 800 * MS, "lose"),
                    Fault(AT + 1, "worker crash", "n2"),
                    Fault(AT + 300 * MS, "worker crash", "n1"),
                    plan=TWO,
                ),
                ("S1", "S3"),
            ),
            Scenario(
                "R1",
                "Redis restarts empty under a leader that trades",
                _faults(Fault(AT, "redis empty", "leader")),
                ("S9",),
            ),
            Scenario(
                "V2",
                "orders are accepted and nobody hears of it, then the leader dies",
                _faults(
                    Fault(AT, "lose answers", "leader", 150 * MS), Fault(AT + 120 * MS, "worker crash", "leader", 0)
                ),
                ("S1", "S3", "S10"),
                ("Unknown",),
            ),
            Scenario(
                "V3",
                "the private stream tells out of order, and leaders die between what it has told and what it has not",
                _faults(Fault(AT - 400 * MS, "reorder stream", "", 1600 * MS), *_DEATHS),
                ("S1", "S5", "S6"),
            ),
            Scenario(
                "V4",
                "orders are on their way for longer than a failover takes, on a venue that knows no tokens",
                _faults(
                    *(f._replace(kind="lurk", at=f.at - 150 * MS, length=300 * MS) for f in _DEATHS),
                    *_DEATHS,
                    plan=replace(CALM, venue="expiry"),
                ),
                ("S1", "S3", "S10"),
                ("order arrived after its leader",),
            ),
            Scenario(
                "O2",
                "the kill switch is pressed in the middle of a failover",
                _faults(
                    Fault(AT, "host crash", "leader", 900 * MS, "hold"), Fault(AT + 300 * MS, "halt", "", 600 * MS)
                ),
                ("S1", "S3"),
            ),
        )
    }
)
