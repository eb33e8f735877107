"""What one seed decides before the first event: clocks, times, the quality of the network, and the faults, as data.

`rules_of` takes the tightest that `LeaseRules.problems` lets pass: what is not needed is not there to hide a mistake.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from cluster.core import actions as act
from cluster.core.ids import Instant
from cluster.core.lease import LeaseRules
from cluster.core.ward import Timing

US = 1_000
MS = 1_000_000
RATE = 1_000_000
UP, DOWN = 0, 1


class Fault(NamedTuple):
    at: int
    kind: str
    leader: bool  # hits whoever leads then; else `node`
    node: int
    length: int
    hold: bool


class Trap(NamedTuple):
    """What happens right before the nth action of this kind is carried out.

    pause: the keeper stops there. late: its answer and the views after it are held, and nothing it sends later arrives.
    lost journal: late, and the worker comes back with an empty journal. given up: the worker asks to step down, and
    what the keeper sends is held.
    """

    action: type
    nth: int
    length: int
    effect: str


FAULTS = (
    "pause_keeper", "pause_worker", "pause_both", "pause_both", "crash", "worker_dies", "worker_hangs", "worker_stuck",
    "wipe", "cut_up", "cut_down", "cut_both", "etcd_down", "revoke", "revoke", "delete_key", "delete_key", "switchover",
    "switchover", "stall_watch", "stall_watch", "step_down", "shutdown", "blind", "blind", "vanish", "vanish",
)  # fmt: skip
TRAPS: dict[type, tuple[str, ...]] = {
    act.Acquire: ("pause", "late", "late", "lost journal"),
    act.Renew: ("pause", "late", "late"),
    act.WritePermit: ("pause", "given up"),
    act.TellGranted: ("given up",),
    act.TellLead: ("pause",),
    act.ClearPermit: ("pause",),
    act.TellStop: ("pause",),
    act.Resign: ("pause",),
    act.Evict: ("pause",),
}


@dataclass(frozen=True)
class Plan:
    """All that is drawn before the first event. `faults` is data: what is printed replays."""

    seed: int
    ttls: tuple[int, ...]  # one per node: values differ while a setting is being rolled out
    drifts: tuple[int, ...]  # parts in a million
    offsets: tuple[int, ...]
    timeout: int  # of a request, before the shell reports UNKNOWN
    loss: float
    late: float
    faults: tuple[Fault, ...]
    traps: tuple[Trap, ...]
    heal_at: int

    @staticmethod
    def of(seed: int) -> Plan:
        rng = random.Random(f"{seed}/faults")
        count = rng.choice((2, 3, 3))
        ttl = 1000 * MS
        ttls = tuple(rng.choice((600 * MS, 1500 * MS)) if rng.random() < 0.07 else ttl for _ in range(count))
        drift = round(DRIFT * RATE)
        until = 4 * ttl

        def length() -> int:
            return round(ttl * rng.choice((0.2, 0.3, 0.45, 0.8, 1.0, 1.2, 2.0, 3.0)) * rng.uniform(0.8, 1.2))

        faults = [
            Fault(
                rng.randrange(300 * MS, until),
                rng.choice(FAULTS),
                rng.random() < 0.7,
                rng.randrange(count),
                length(),
                rng.random() < 0.5,
            )
            for _ in range(rng.randint(2, 6))
        ]
        traps = []
        for _ in range(rng.randint(0, 2)):
            action = rng.choice(list(TRAPS))
            traps.append(Trap(action, rng.randint(1, 6), length(), rng.choice(TRAPS[action])))
        return Plan(
            seed,
            ttls,
            tuple(rng.choice((-drift, 0, drift, rng.randint(-drift, drift))) for _ in range(count)),
            tuple(rng.randrange(10**12) for _ in range(count)),
            round(ttl * rng.choice((0.1, 0.2, 0.5, 1.5))),
            rng.choice((0.0, 0.0, 0.03, 0.15)),
            rng.choice((0.0, 0.02, 0.1)),
            tuple(sorted(faults)),
            tuple(traps),
            until + 200 * MS,
        )


DRIFT = 0.05
SEND_SLACK = 10 * MS


def rules_of(ttl: int) -> LeaseRules:
    """The tightest that `LeaseRules.problems` lets pass: what is not needed is not there to hide a mistake."""
    return LeaseRules(ttl, round(ttl * 2 * DRIFT) + SEND_SLACK, ttl // 5, DRIFT, SEND_SLACK)


def timing_of(ttl: int) -> Timing:
    return Timing(
        hang_timeout=ttl // 4,
        start_timeout=ttl,
        stop_grace=ttl // 10,
        warn_lead=ttl // 25,
        drain_timeout=ttl,
        restart_max=ttl * 2 // 5,
    )


class Clock(NamedTuple):
    offset: int
    rate: int

    def read(self, t: int) -> Instant:
        return Instant(self.offset + t * self.rate // RATE)

    def when(self, local: int) -> int:
        """The first true instant at which this clock shows `local` or more."""
        return -(-(local - self.offset) * RATE // self.rate)
