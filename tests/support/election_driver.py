"""One keeper's machine as n1 of three nodes, driven event by event, and the situations it is brought into."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core import role
from cluster.core.election import Election
from cluster.core.events import Answer
from cluster.core.ids import NS_PER_S, Incarnation, Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.lease import InSync, LeaderKey, LeaseRules, Member, Resigned, Tenure, View
from cluster.core.ward import Timing

MS = NS_PER_S // 1000
RULES = LeaseRules(ttl=1000 * MS, margin=200 * MS, renew_interval=150 * MS, clock_drift_max=0.05, send_slack=50 * MS)
TIMING = Timing()
START = Instant(700 * NS_PER_S)
T = Term(100)
A = TypeVar("A")


def key(token: int, node: str = "n2", *, inc: str = "", home: str = "", attempt: int = 1, mod: int = 0) -> LeaderKey:
    return LeaderKey(
        NodeId(node),
        Incarnation(inc or f"{node}.1"),
        home or f"home-{node}",
        attempt,
        RULES.ttl,
        0,
        Term(token),
        mod or token,
    )


def tenure(token: int, node: str = "n2", *, inc: str = "", home: str = "") -> Tenure:
    return Tenure(NodeId(node), Incarnation(inc or f"{node}.1"), home or f"home-{node}", RULES.ttl, Term(token))


def resigned(token: int, reason: str = "switchover", successor: str | None = None) -> Resigned:
    return Resigned(Term(token), reason, "ann", NodeId(successor) if successor else None, 0)


def member(node: str, *, priority: int = 0, never_lead: bool = False, ready: bool = True) -> Member:
    return Member(NodeId(node), Incarnation(f"{node}.1"), JournalId(f"{node}-j"), priority, never_lead, ready)


MEMBERS = {m.node: m for m in (member("n1"), member("n2"), member("n3"))}
INSYNC = InSync({NodeId(n): JournalId(f"{n}-j") for n in ("n1", "n2", "n3")}, 60)


def view(revision: int, **keys: object) -> View:
    """All three nodes are in sync and ready, unless said otherwise."""
    return replace(View(revision, insync=INSYNC, members=MEMBERS, cluster_id=0xC1), **keys)


def n2_leads(revision: int = 90, token: int = 90, **keys: object) -> View:
    return view(revision, **{"leader": key(token), "tenure": tenure(token), **keys})


def n2_resigned(revision: int = 95, token: int = 90, **keys: object) -> View:
    return view(revision, **{"tenure": tenure(token), "resigned": resigned(token), **keys})


def all_of(out: list[act.Action], kind: type[A]) -> list[A]:
    return [a for a in out if isinstance(a, kind)]


def one(out: list[act.Action], kind: type[A]) -> A:
    found = all_of(out, kind)
    assert len(found) == 1, f"{kind.__name__} x {len(found)} in {out}"
    return found[0]


def quiet(out: list[act.Action]) -> bool:
    """Nothing but notes."""
    return all(isinstance(a, act.Note) for a in out)


class Node:
    """n1, and the time as it sees it. `feed` moves on by a millisecond; ticks bring a fresh heartbeat unless told."""

    def __init__(self, *, timing: Timing = TIMING, **settings: object) -> None:
        self.now = START
        self.e = Election(
            me=NodeId("n1"),
            incarnation=Incarnation("n1.1"),
            home="home-n1",
            rules=RULES,
            timing=timing,
            now=self.now,
            **settings,
        )
        self.e.start(self.now)
        self.history: list[act.Action] = []

    def feed(self, event: ev.Event | View, after: float = 1) -> list[act.Action]:
        """A bare view will do too: most of what a keeper hears is one."""
        if isinstance(event, View):
            event = ev.ViewSeen(event)
        self.now = Instant(self.now + round(after * MS))
        out = self.e.handle(event, self.now)
        self.history += out
        return out

    def tick(self, after: float = 1, *, silent_for: float | None = 0) -> list[act.Action]:
        """silent_for: how old, in ms, the worker's heartbeat is then; None: there is none."""
        at = self.now + round(after * MS)
        return self.feed(ev.Tick(None if silent_for is None else Instant(at - round(silent_for * MS))), after)

    def run(self, ms: float, *, step: float = 20, beats: bool = True) -> list[act.Action]:
        """Ticks as the shell gives them: regular ones, and those that `wake_at` asks for."""
        until, start, out = self.now + round(ms * MS), self.now, []
        while self.now < until:
            due = min(until, self.now + round(step * MS))
            wake = self.e.wake_at()
            if wake is not None:
                due = min(due, max(wake, self.now + 1))
            out += self.feed(ev.Tick(Instant(due if beats else start)), (due - self.now) / MS)
        return out

    def answer(self, request: act.EtcdRequest, answer: Answer, revision: int = 0, after: float = 1) -> list[act.Action]:
        return self.feed(ev.Answered(request.request, answer, revision), after)

    def hello(self, journal: str = "n1-j", highest: int = 0, cluster_id: int = 0xC1) -> list[act.Action]:
        return self.feed(ev.WorkerHello(JournalId(journal), LogIndex(5), Term(highest), cluster_id))

    def restart_worker(self, journal: str = "n1-j") -> list[act.Action]:
        out = self.run(60)
        one(out, act.StartWorker)
        return self.hello(journal)

    @property
    def state(self) -> str:
        return type(self.e.role).__name__

    @property
    def permit(self) -> role.ExecutionPermit | None:
        """What stands in the worker's memory cell."""
        for a in reversed(self.history):
            if isinstance(a, act.WritePermit):
                return a.permit
            if isinstance(a, act.ClearPermit):
                return None
        return None


def standby(**settings: object) -> Node:
    n = Node(**settings)
    one(n.tick(), act.StartWorker)
    n.feed(ev.EtcdLease(11))
    n.hello()
    assert n.state == "Standby"
    return n


def campaigning(**settings: object) -> tuple[Node, act.Acquire]:
    """n2 has resigned term 90; n1's acquire has just left."""
    n = standby(**settings)
    n.feed(n2_leads())
    n.feed(ev.WorkerPrepared(Term(90)))
    members = {NodeId("n1"): member("n1", priority=9), NodeId("n2"): member("n2"), NodeId("n3"): member("n3")}
    return n, one(n.feed(ev.ViewSeen(n2_resigned(members=members))), act.Acquire)


def promoting() -> Node:
    n, a = campaigning()
    n.answer(a, Answer.DONE, T)
    assert n.state == "Promoting"
    return n


def own(revision: int = T, **keys: object) -> View:
    """Our own key stands, put by the first attempt."""
    return view(
        revision,
        **{
            "leader": key(T, "n1", mod=revision),
            "tenure": tenure(T, "n1"),
            "resigned": resigned(90),
            "insync": InSync({NodeId("n1"): JournalId("n1-j"), NodeId("n3"): JournalId("n3-j")}, T),
            **keys,
        },
    )


def leader() -> Node:
    n = promoting()
    n.feed(ev.ViewSeen(own()))
    n.feed(ev.WorkerReconciled(T))
    assert n.state == "Leader"
    assert n.permit is not None
    return n


def draining(target: str | None = "n3") -> Node:
    n = leader()
    n.feed(ev.SwitchoverAsked(NodeId(target) if target else None, "ann", "r1"))
    assert n.state == "Draining"
    return n


def fenced(why: str = "gate says deposed") -> Node:
    n = leader()
    n.feed(ev.WorkerAsksToStepDown(T, why))
    assert n.state == "Fenced"
    return n
