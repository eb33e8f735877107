"""What one seed decides before the first event: the cluster, its clocks, the quality of its links, and the faults.

All of it is data: a plan can be printed, stored, shortened (`shrink.py`), written by hand (`scenarios.py`), and gives
the same run each time. Times are ns; of faults, true time. The lease rules are the tightest that `LeaseRules.problems`
lets pass: what is not needed is not there to hide a mistake.

Profiles name what may go wrong. "all" draws a few classes per seed rather than everything at once: a run in which all
links are bad hides what one bad link does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from chaos.sim.clock import RATE
from chaos.sim.engine import MS, US
from cluster.core.errors import ConfigError
from cluster.core.ids import Instant
from cluster.core.insync import Policy
from cluster.core.lease import LeaseRules
from cluster.core.ward import Timing

DRIFT = 0.05
SEND_SLACK = 10 * MS
VENUES = ("token", "expiry", "plain")
NODES_MAX = 5
LONGEST = 60_000 * MS


class Fault(NamedTuple):
    """kind: a name in `faults.FAULTS`. target: "leader", "standby" (whoever it is then) or a node's name; for a fault
    of something shared it says nothing. how: a variant, if the kind has some."""

    at: int
    kind: str
    target: str
    length: int = 0
    how: str = ""


class Trap(NamedTuple):
    """Right before the nth step of this name of any node's keeper or worker: `effect`, for `length`.

    pause, host pause, kill: what it says. late answer, held request: that half of its exchange with etcd is held. late:
    the answer is held, and nothing that this host sends to etcd later arrives. given up: the worker asks to step down
    meanwhile, and what the keeper sends is held. lost journal: the worker dies with its journal, and the answer is held
    until there may be another.
    """

    process: str
    step: str
    nth: int
    effect: str
    length: int


CLASSES: dict[str, tuple[str, ...]] = {
    "process": (
        "keeper pause", "worker pause", "host pause", "host pause", "host suspend", "worker crash", "worker crash",
        "keeper crash", "host crash", "worker hang", "worker stuck",
    ),
    "lease": ("cut etcd", "cut etcd", "etcd down", "revoke", "delete key", "stall watch", "compact", "blind", "vanish",
              "late expiry", "false keep-alive"),
    "replication": ("cut peer", "cut peer", "corrupt frame", "disk stall"),
    "gate": ("cut gate", "cut gate", "redis down", "redis empty", "redis flush", "redis failover"),
    "venue": ("cut orders", "cut orders", "lurk", "lurk", "lose answers", "lose answers", "cut stream", "repeat stream",
              "reorder stream", "venue down", "venue refuses"),
    "feed": ("feed stall", "feed repeat"),
    "disk": ("host crash", "torn tail", "flip", "wipe", "disk stall", "disk error"),
    "clock": ("wall jump", "host suspend"),
    "operator": ("switchover", "switchover", "shutdown", "step down", "halt"),
}  # fmt: skip
FAILOVERS = (
    "worker crash",
    "worker crash",
    "keeper crash",
    "host crash",
    "host pause",
    "switchover",
    "switchover",
    "worker hang",
)
"""What makes another node lead, in any profile: the other faults are to meet a takeover, not only a leader at rest."""
HARMLESS = ("short pause", "jitter", "wall jump", "stall watch", "short cut")
"""Faults that must not cost leadership (invariant L3): shorter than what the lease and the hang limit allow."""
ROLLBACK = ("etcd restored", "etcd restored", "etcd replaced")
PROFILES = ("all", *CLASSES, "quiet", "rollback")

_KEEPER_STEPS = (
    ("Acquire", ("pause", "late", "late answer", "kill")),
    ("Renew", ("pause", "late", "late answer", "kill")),
    ("WritePermit", ("pause", "given up", "kill")),
    ("TellGranted", ("given up", "pause")),
    ("TellLead", ("pause",)),
    ("ClearPermit", ("pause",)),
    ("TellStop", ("pause",)),
    ("Resign", ("pause", "kill")),
    ("Evict", ("pause", "held request")),
)
_WORKER_STEPS = (
    ("Send", ("pause", "host pause", "kill")),
    ("write", ("host pause", "pause", "kill")),
    ("bytes", ("host pause", "host pause", "host pause", "pause", "kill")),
    ("Claim", ("pause", "host pause", "kill")),
    ("SendCancel", ("pause", "kill")),
    ("LookUp", ("pause", "kill")),
    ("ArmGate", ("pause", "kill")),
    ("ArmVenue", ("pause", "kill")),
    ("ReportReconciled", ("pause", "kill")),
    ("StopFollowing", ("pause", "kill")),
    ("TellPrepared", ("pause",)),
    ("ack", ("pause", "kill")),
)
STEPS = {
    process: {step for step, _ in table} for process, table in (("keeper", _KEEPER_STEPS), ("worker", _WORKER_STEPS))
}
"""Of each kind of process: where a trap may be set."""
HOW = ("", *(f"{fate}{way}" for fate in ("hold", "lose") for way in ("", " up", " down")))


@dataclass(frozen=True, slots=True)
class Plan:
    """ttls: one per node (they differ while a setting is being rolled out). drifts: parts in a million. timeout: of a
    request to etcd; a quiet cluster has the one that keepers use. validity: of an order. lull: ns between two decisions
    of the strategy, on average. sync: ns that a disk takes, about."""

    seed: int
    profile: str
    venue: str
    ttls: tuple[int, ...]
    drifts: tuple[int, ...]
    offsets: tuple[int, ...]
    wall_offsets: tuple[int, ...]
    timeout: int
    call_timeout: int
    loss: float
    late: float
    validities: tuple[int, ...]
    lull: int
    min_standbys: int
    unprotected: Policy
    sync: int
    faults: tuple[Fault, ...]
    traps: tuple[Trap, ...]
    heal_at: int

    @property
    def nodes(self) -> int:
        return len(self.ttls)

    @property
    def ttl(self) -> int:
        return max(self.ttls)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises ConfigError for what is no plan, or one of no cluster that could be, or that asks for what cannot
        happen: such a script would show nothing, and look as if nothing were wrong."""
        from pydantic import TypeAdapter, ValidationError

        try:
            plan = TypeAdapter(Plan).validate_json(text)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise ConfigError(f"this is no fault script of a simulation: {where}: {first['msg']}") from e
        of_nodes = (plan.ttls, plan.drifts, plan.offsets, plan.wall_offsets, plan.validities)
        if len({len(x) for x in of_nodes}) != 1 or not 2 <= plan.nodes <= NODES_MAX:
            lengths = ", ".join(str(len(x)) for x in of_nodes)
            raise ConfigError(
                f"ttls, drifts, offsets, wall_offsets and validities have {lengths} values; each needs one per node, "
                f"of which there are 2 to {NODES_MAX}"
            )
        if plan.venue not in VENUES:
            raise ConfigError(f"venue {plan.venue!r}: it is none of {', '.join(VENUES)}")
        for name in ("ttls", "validities", "timeout", "call_timeout", "lull", "sync", "heal_at"):
            value = getattr(plan, name)
            for ns in value if isinstance(value, tuple) else (value,):
                if not US <= ns <= LONGEST:
                    raise ConfigError(f"{name}: {ns} ns; it must be from {US} to {LONGEST}")
        for problem in (*_unknown_keys(text), *_problems(plan)):
            raise ConfigError(problem)
        return plan


def _unknown_keys(text: str) -> Iterator[str]:
    known = [f.name for f in fields(Plan)]
    for key in json.loads(text):
        if key not in known:
            yield f"key {key!r}: it is none of {', '.join(known)}"


def _problems(plan: Plan) -> Iterator[str]:
    """Each as a sentence that begins with what is wrong."""
    if plan.seed < 0:
        yield f"seed {plan.seed}: it must be 0 or more"
    for name in ("loss", "late"):
        if not 0 <= getattr(plan, name) <= 1:
            yield f"{name} {getattr(plan, name)}: it is a share of the messages, from 0 to 1"
    drift = round(DRIFT * RATE)
    for ppm in plan.drifts:
        if abs(ppm) > drift:
            yield f"drifts: {ppm} parts in a million; leases allow for {-drift} to {drift}"
    if not 0 <= plan.min_standbys < plan.nodes:
        yield f"min_standbys {plan.min_standbys}: it must be from 0 to {plan.nodes - 1}, there are {plan.nodes} nodes"
    nodes = [f"n{n + 1}" for n in range(plan.nodes)]
    for f in plan.faults:
        if f.target not in ("", "leader", "standby", *nodes):  # "": it is of something shared
            yield f"fault {f.kind!r} at {f.target!r}: it is none of leader, standby, {', '.join(nodes)}"
        if not 0 <= f.at < plan.heal_at:
            yield f"fault {f.kind!r} at {f.at} ns: it must be from 0 to heal_at, {plan.heal_at} ns, when all is healed"
        if not 0 <= f.length <= LONGEST:
            yield f"fault {f.kind!r}, length {f.length} ns: it must be from 0 to {LONGEST}"
        if f.how not in HOW:
            yield f"fault {f.kind!r}, how {f.how!r}: it is none of {', '.join(map(repr, HOW))}"
    for t in plan.traps:
        if t.process not in STEPS:
            yield f"trap of process {t.process!r}: it is none of {', '.join(STEPS)}"
        elif t.step not in STEPS[t.process]:
            steps = ", ".join(sorted(STEPS[t.process]))
            yield f"trap at step {t.step!r} of a {t.process}: it is none of {steps}"
        if t.nth < 1:
            yield f"trap at step {t.step!r}, nth {t.nth}: it counts from 1"
        if not 0 <= t.length <= LONGEST:
            yield f"trap at step {t.step!r}, length {t.length} ns: it must be from 0 to {LONGEST}"


def draw_plan(seed: int, profile: str = "all", *, nodes: int | None = None, venue: str | None = None) -> Plan:
    """nodes, venue: None: drawn. What is given does not shift what is drawn for the rest. Raises ConfigError for a
    profile or venue that is none."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r}: it is none of {', '.join(PROFILES)}")
    if venue is not None and venue not in VENUES:
        raise ConfigError(f"venue {venue!r}: it is none of {', '.join(VENUES)}")
    rng = random.Random(f"{seed}/faults")
    drawn_nodes, drawn_venue = rng.choice((2, 3, 3, 3)), rng.choice(("token", "token", "token", "expiry", "plain"))
    count, venue = nodes or drawn_nodes, venue or drawn_venue
    if profile == "all":
        chance = rng.random()
        profile = "quiet" if chance < 0.06 else "rollback" if chance < 0.1 else profile
    ttl = 400 * MS
    ttls = tuple(rng.choice((300 * MS, 600 * MS)) if rng.random() < 0.07 else ttl for _ in range(count))
    drift = round(DRIFT * RATE)
    until = 5 * ttl
    validity = rng.choice((60, 200, 300)) * MS

    def length() -> int:
        return round(ttl * rng.choice((0.2, 0.3, 0.45, 0.8, 1.0, 1.2, 2.0, 3.0)) * rng.uniform(0.8, 1.2))

    def fault(kinds: tuple[str, ...]) -> Fault:
        target = "leader" if rng.random() < 0.7 else f"n{rng.randrange(count) + 1}"
        how = rng.choice(("hold", "lose", "hold up", "lose up", "hold down", "lose down"))
        return Fault(rng.randrange(250 * MS, until), rng.choice(kinds), target, length(), how)

    traps: list[Trap] = []
    if profile == "quiet":
        faults = [fault(HARMLESS) for _ in range(rng.randint(1, 4))]
    else:
        classes = (
            rng.sample(sorted(CLASSES), rng.choice((1, 2, 2, 3, 4))) if profile in ("all", "rollback") else [profile]
        )
        kinds = tuple(k for c in classes for k in CLASSES[c])
        faults = [fault(kinds) for _ in range(rng.choice((1, 2, 3, 4, 5, 6)))]
        faults += [fault(FAILOVERS)._replace(target="leader") for _ in range(rng.randint(8, 14))]
        if profile == "rollback":
            faults.append(fault(ROLLBACK))
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
            process, table = rng.choice((("keeper", _KEEPER_STEPS), ("worker", _WORKER_STEPS)))
            step, effects = rng.choice(table)
            nth = rng.randint(1, 6) if process == "keeper" else rng.randint(1, 40)
            traps.append(Trap(process, step, nth, rng.choice(effects), length()))
    noisy = profile != "quiet" and rng.random() < 0.5
    return Plan(
        seed=seed,
        profile=profile,
        venue=venue,
        ttls=ttls,
        drifts=tuple(rng.choice((-drift, 0, drift, rng.randint(-drift, drift))) for _ in range(count)),
        offsets=tuple(rng.randrange(10**12) for _ in range(count)),
        wall_offsets=tuple(rng.randint(-3600, 3600) * 1000 * MS for _ in range(count)),
        timeout=rules_of(ttl).act_until(Instant(0)) // 3
        if profile == "quiet"
        else round(ttl * rng.choice((0.1, 0.2, 0.5, 1.5))),
        call_timeout=rng.choice((50, 100, 250)) * MS,
        loss=rng.choice((0.02, 0.1)) if noisy else 0.0,
        late=rng.choice((0.02, 0.08)) if noisy else 0.0,
        validities=tuple(validity * rng.choice((1, 1, 1, 2)) for _ in range(count)),
        lull=rng.choice((20, 40, 80)) * MS,
        min_standbys=rng.choice((0, 1, 1)),
        unprotected=rng.choice(("trade", "trade", "halt")),
        sync=rng.choice((100, 300, 2000)) * US,
        faults=tuple(sorted(faults)),
        traps=tuple(traps),
        heal_at=until + 200 * MS,
    )


def rules_of(ttl: int) -> LeaseRules:
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
