"""A host as the world keeps it: a clock, a keeper that may be paused, a worker, and the memory cell between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core import role
from cluster.core.election import Election
from cluster.core.ids import JournalId, NodeId, Term
from cluster.core.lease import LeaseRules
from tests.sim.plan import RATE, Clock, Plan, timing_of


@dataclass(eq=False)
class Worker:
    node: Node
    started_at: int
    hello: bool = False
    dead: bool = False
    hung: bool = False
    stuck: bool = False  # hung where even SIGKILL waits
    quiet_since: int | None = None  # paused or hung
    died_at: int = 0
    in_at: int = 0
    out_at: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)
    follows: Term = Term(0)
    closed: Term = Term(0)
    leads: Term = Term(0)
    counted: dict[NodeId, JournalId] = field(default_factory=dict)  # whose acknowledgement a commit waits for
    insync_seen: int = 0
    insync_asked: bool = False
    acting: bool = False


class Node:
    """A host: one keeper, at most one worker, one clock, one memory cell with the permit."""

    def __init__(self, index: int, plan: Plan, rules: LeaseRules) -> None:
        self.index = index
        self.name = NodeId(f"n{index + 1}")
        self.home = f"home-{index + 1}"
        self.clock = Clock(plan.offsets[index], RATE + plan.drifts[index])
        self.rules = rules
        self.timing = timing_of(rules.ttl)
        self.election: Election | None = None
        self.number = 0  # of keeper starts
        self.worker: Worker | None = None
        self.cell: role.ExecutionPermit | None = None
        self.journal = 1
        self.position = 0
        self.highest = Term(0)
        self.told_to_lead = Term(0)  # and has not confirmed that it stopped
        self.lease = 0
        self.paused_until = 0
        self.backlog: deque[act.Action] = deque()
        self.inbox: deque[ev.Event | None] = deque()  # None: a tick
        self.cut: list[tuple[int, bool]] = [(0, False), (0, False)]
        self.stalled_until = 0
        self.tick_at = 0
        self.regular_at = 0
        self.view_at = 0

    @property
    def journal_id(self) -> JournalId:
        return JournalId(f"{self.name}-j{self.journal}")

    @property
    def incarnation(self) -> str:
        return f"{self.name}.{self.number}"
