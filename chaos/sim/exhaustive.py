"""Every order of events of two keepers within bounds: all of a small world, where seeds are a sample of a big one.

    at most one pause of a keeper (right before any one effect, ended at any later moment), one lost reply, two lease
    events (the leader key vanishes, with its lease or without it), clocks apart by the whole drift bound

Real: `Election`, the transactions, the keys. Modelled: a worker that answers what it is told, and time, which passes in
steps of ttl/STEPS and only when nothing is under way that could arrive. Messages keep their order within a channel; one
of another channel may overtake, as far as the bounds allow. Equal states are met once. Checked at each write of a
permit: no other one is live (S3), tokens rise (S9); at the end of each path: somebody leads again (L2).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from chaos.sim.clock import RATE, Clock
from chaos.sim.engine import MS
from chaos.sim.etcd import EtcdSpec
from chaos.sim.plan import DRIFT, rules_of, timing_of
from chaos.sim.pool import each_of
from cluster import keys as k
from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core.election import Election
from cluster.core.events import Answer
from cluster.core.ids import Incarnation, Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.role import ExecutionPermit
from cluster.etcd.model import EtcdRefused
from cluster.transactions import Dates, Identity, tries

TTL = 400 * MS
STEPS = 4
WARM_UP = 4
"""Steps before the first disturbance: somebody leads then."""
AFTERMATH = 3 * STEPS
"""Steps after the last disturbance, for somebody to lead again: an eviction, a back-off and a takeover."""
PAUSE_MAX = 6
"""Steps: a ttl and a half, in which the others have taken over."""
TIMEOUT = 2
"""Steps after which a request without an answer counts as unknown."""
FAR_S = 10**6
"""Leases do not end by themselves here."""
KEYS = k.Keys("exhaustive")


class Bounds(NamedTuple):
    """How much may go wrong on one path, and within how many steps. overtakings: messages that pass others which are
    due before them; with more than none, or a longer window, the states are many times as many."""

    pauses: int = 1
    losses: int = 1
    lease_events: int = 2
    overtakings: int = 0
    window: int = 2


class Result(NamedTuple):
    """states: different ones in which something could still go wrong. moves: made. ends: ways that ended well. wrong:
    the first finding, and the moves that lead to it."""

    states: int
    moves: int
    ends: int
    wrong: tuple[str, tuple[str, ...]] | None


class _Wrong(Exception):
    """An invariant broke."""


class _Time:
    """A clock that is pickled with what reads it."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> Instant:
        return Instant(self.now)


@dataclass(slots=True)
class _Node:
    name: NodeId
    me: Identity
    clock: Clock
    election: Election
    lease: int = 0
    page: ExecutionPermit | None = None
    backlog: list[act.Action] = field(default_factory=list)
    paused: bool = False
    asked: dict[int, int] = field(default_factory=dict)  # request -> the step in which it times out
    leads: Term = Term(0)  # its worker

    @property
    def journal(self) -> JournalId:
        return JournalId(f"{self.name}-journal")


class _State:
    """channels: what is under way, oldest first. "etcd n" requests, "answer n", "watch n", "worker n", "tick n"."""

    def __init__(self, bounds: Bounds, drifts: tuple[int, int]) -> None:
        self.time = _Time()
        self.etcd = EtcdSpec(self.time, min_ttl_s=FAR_S)
        self.channels: dict[str, list[Any]] = {}
        self.pauses, self.losses, self.lease_events, self.overtakings, self.window = bounds
        self.step = 0
        self.paused_at = 0
        self.end = WARM_UP + self.window + AFTERMATH
        self.highest = Term(0)
        self.nodes = [_node(i, drift) for i, drift in enumerate(drifts)]
        self.etcd.put(KEYS.insync, k.dump(members={n.name: n.journal for n in self.nodes}))
        for node in self.nodes:
            node.lease = self.etcd.lease_grant(FAR_S).id
            member = {"incarnation": node.me.incarnation, "journal_id": node.journal, "ready": True}
            self.etcd.put(KEYS.member(node.name), k.dump(**member), node.lease)
        for node in self.nodes:
            node.election.start(self._now(node))
            for event in (
                ev.EtcdLease(node.lease),
                ev.Tick(None),
                ev.WorkerHello(node.journal, LogIndex(1), Term(0), 0),
            ):
                node.backlog += node.election.handle(event, self._now(node))
            self.carry_on(node)
        self._told()

    # -- what may come next ----------------------------------------------------------------------------------------

    def moves(self) -> Iterator[str]:
        """The one thing that is due next, and each disturbance that may come before it."""
        due = next((c for c, messages in self.channels.items() if messages and not self._waits(c)), None)
        if due is not None:
            yield f"deliver {due}"
        elif self.step < self.paused_at + PAUSE_MAX if any(n.paused for n in self.nodes) else self.step < self.end:
            yield "time"
        if self.open:
            for channel, messages in self.channels.items():
                if messages and not self._waits(channel):
                    if self.losses and channel.startswith("answer"):
                        yield f"lose {channel}"
                    if self.overtakings and channel != due:
                        yield f"deliver {channel} early"
            if self.lease_events and self.etcd.range(KEYS.leader).kvs:
                yield "vanish"
                yield "revoke"
        for node in self.nodes:
            if node.paused:
                yield f"resume {node.name}"

    @property
    def open(self) -> bool:
        """Things may go wrong now."""
        return WARM_UP <= self.step < WARM_UP + self.window

    def _waits(self, channel: str) -> bool:
        """Its reader is paused."""
        kind, name = channel.split()
        return kind != "etcd" and self.named(name).paused

    def named(self, name: str) -> _Node:
        return next(n for n in self.nodes if n.name == name)

    @property
    def decided(self) -> bool:
        """Nothing more can go wrong from outside: one way leads to the end."""
        spent = not (self.pauses or self.losses or self.lease_events or self.overtakings)
        return (spent or self.step >= WARM_UP + self.window) and not any(n.paused for n in self.nodes)

    def run_out(self) -> int:
        """Go that way, until one leads and nothing is under way; how many moves it took. Raises _Wrong."""
        moves = 0
        while (what := next(self.moves(), None)) is not None:
            if what == "time" and self._settled:
                return moves
            node = self.move(what)
            if node is not None:
                self.carry_on(node)
            moves += 1
        if not self._settled:
            raise _Wrong("L2: nobody leads at the end")
        return moves

    @property
    def _settled(self) -> bool:
        """One leads, the other one knows it: from here on time brings renewals, and nothing else."""
        now = self.time.now
        leading = [n for n in self.nodes if n.page is not None and n.page.covers(n.clock.read(now))]
        return len(leading) == 1 and all(n in leading or n.page is None for n in self.nodes)

    # -- moves -----------------------------------------------------------------------------------------------------

    def move(self, what: str) -> _Node | None:
        """Make it; the node that has effects to carry out now, if any."""
        verb, _, rest = what.partition(" ")
        match verb:
            case "deliver":
                channel = rest.removesuffix(" early")
                self.overtakings -= what.endswith("early")
                return self._deliver(channel, self.channels[channel].pop(0))
            case "lose":
                self.losses -= 1
                self.channels[rest].pop(0)
            case "vanish":
                self.lease_events -= 1
                self.etcd.delete(KEYS.leader)
                self._told()
            case "revoke":
                self.lease_events -= 1
                holder = self.etcd.range(KEYS.leader).kvs[0].lease
                self.etcd.lease_revoke(holder)
                self._told()
                node = next(n for n in self.nodes if n.lease == holder)
                node.lease = self.etcd.lease_grant(FAR_S).id
                self._send(f"watch {node.name}", ev.EtcdLease(None))
                self._send(f"watch {node.name}", ev.EtcdLease(node.lease))
            case "resume":
                node = self.named(rest)
                node.paused = False
                self.end = max(self.end, self.step + AFTERMATH)
                self._send(f"tick {node.name}", None)
                return node
            case "time":
                self._pass_time()
        return None

    def _pass_time(self) -> None:
        self.step += 1
        self.time.now += TTL // STEPS
        for node in self.nodes:
            for request, due in list(node.asked.items()):
                if self.step >= due:
                    del node.asked[request]
                    self._send(f"answer {node.name}", ev.Answered(request, Answer.UNKNOWN, 0))
            if not node.paused:
                self._send(f"tick {node.name}", None)

    def _deliver(self, channel: str, message: Any) -> _Node | None:
        kind, name = channel.split()
        node = self.named(name)
        if kind == "etcd":
            self._execute(node, message)
            return None
        if kind == "tick":
            message = ev.Tick(self._now(node))
        elif kind == "answer" and message.answer is not Answer.UNKNOWN:
            if message.request not in node.asked:
                return None  # it came after its timeout
            del node.asked[message.request]
        node.backlog += node.election.handle(message, self._now(node))
        return node

    def _execute(self, node: _Node, a: act.EtcdRequest) -> None:
        answer = ev.Answered(a.request, Answer.REFUSED, 0)
        for txn in tries(KEYS, node.me, a, Dates(0, Instant(0))):
            try:
                result = self.etcd.txn(txn.compare, txn.success, txn.failure)
            except EtcdRefused:
                break
            if result.succeeded:
                answer = ev.Answered(a.request, Answer.DONE, result.revision)
                self._told()
                break
        self._send(f"answer {node.name}", answer)

    def carry_on(self, node: _Node, before: int | None = None) -> None:
        """Carry out what waits: all of it, or up to the effect number `before`, where the keeper is paused."""
        done = 0
        while node.backlog and done != before:
            self._carry_out(node, node.backlog.pop(0))
            done += 1
        if before is not None:
            self.pauses -= 1
            node.paused, self.paused_at = True, self.step

    def _carry_out(self, node: _Node, a: act.Action) -> None:
        match a:
            case act.WritePermit(permit):
                self._check(node, permit)
                node.page = permit
            case act.ClearPermit():
                node.page = None
            case act.Acquire() | act.Renew() | act.Evict() | act.Resign():
                node.asked[a.request] = self.step + TIMEOUT
                self._send(f"etcd {node.name}", a)
            case act.TellPrepare(term):
                self._send(f"worker {node.name}", ev.WorkerPrepared(term))
            case act.TellLead():
                node.leads = a.term
                self._send(f"worker {node.name}", ev.WorkerReconciled(a.term))
            case act.TellStop(term):
                self._send(f"worker {node.name}", ev.WorkerStopped(term))
            case act.TellDrain(term):
                self._send(f"worker {node.name}", ev.WorkerSettled(term))
            case act.KillWorker():
                self._send(f"worker {node.name}", ev.WorkerExited("signal 9"))
            case act.StartWorker() if self.step:
                self._send(f"worker {node.name}", ev.WorkerHello(node.journal, LogIndex(1), self.highest, 0))
            case act.StopNode(why):
                raise _Wrong(f"L2: {node.name} stops for good: {why}")

    def _check(self, node: _Node, permit: ExecutionPermit) -> None:
        now = self.time.now
        if not permit.covers(node.clock.read(now)):
            return  # by a keeper that was paused before: it was never live
        for other in self.nodes:
            if other is not node and other.page is not None and other.page.covers(other.clock.read(now)):
                raise _Wrong(f"S3: {node.name} gets a permit for {permit.token}, {other.name} holds {other.page.token}")
        if permit.token < self.highest:
            raise _Wrong(f"S9: {node.name} gets a permit for {permit.token} after {self.highest}")
        self.highest = permit.token

    # -- parts -----------------------------------------------------------------------------------------------------

    def _now(self, node: _Node) -> Instant:
        return node.clock.read(self.time.now)

    def _send(self, channel: str, message: Any) -> None:
        self.channels.setdefault(channel, []).append(message)

    def _told(self) -> None:
        """etcd has changed: both watches say so."""
        self.etcd.compact(self.etcd.revision)  # nobody asks for what was
        found = self.etcd.read(KEYS.prefix)
        view = k.view_of(KEYS, {kv.key: k.RawKey.of(kv) for kv in found.kvs}, found.revision, 1, TTL)
        for node in self.nodes:
            self._send(f"watch {node.name}", ev.ViewSeen(view))


def _node(index: int, drift: int) -> _Node:
    name = NodeId(f"n{index + 1}")
    incarnation, rules, clock = Incarnation(f"{name}.1"), rules_of(TTL), Clock(1000 * MS * (index + 1), RATE + drift, 0)
    election = Election(
        me=name, incarnation=incarnation, home=name, rules=rules, timing=timing_of(TTL), now=clock.read(0)
    )
    return _Node(name, Identity(name, incarnation, name, TTL), clock, election)


def explore(bounds: Bounds = Bounds(), drifts: tuple[float, float] = (DRIFT, -DRIFT), *, states_max: int = 0) -> Result:
    """Every state that can be reached. drifts: of the two clocks. Stops at the first finding, and at `states_max`."""
    fast, slow = (round(d * RATE) for d in drifts)
    seen: set[bytes] = set()
    moves = ends = 0
    pending: list[tuple[bytes, _Path]] = [(pickle.dumps(_State(bounds, (fast, slow)), -1), None)]
    while pending and not (states_max and len(seen) >= states_max):
        blob, path = pending.pop()
        state: _State = pickle.loads(blob)
        if state.decided:
            ends += 1
            try:
                moves += state.run_out()
            except _Wrong as e:
                return Result(len(seen), moves, ends, (str(e), _unrolled((path, "and so on"))))
            continue
        for what in list(state.moves()):
            for name, after in _variants(blob, what):
                moves += 1
                if isinstance(after, _Wrong):
                    return Result(len(seen), moves, ends, (str(after), _unrolled((path, name))))
                key = blake2b(after, digest_size=16).digest()
                if key not in seen:
                    seen.add(key)
                    pending.append((after, (path, name)))
    return Result(len(seen), moves, ends, None)


def explore_all(bounds: Bounds, *, jobs: int = 1, idle: Callable[[], None] = lambda: None) -> Result:
    """With either clock as the faster one. idle: called each second, with several jobs."""
    both = ((DRIFT, -DRIFT), (-DRIFT, DRIFT))
    if jobs == 1:
        found = [explore(bounds, drifts) for drifts in both]
    else:
        with closing(each_of(partial(explore, bounds), both, jobs=2, idle=idle)) as done:
            found = [result for _, result in sorted(done)]
    one, other = found
    wrong = one.wrong or other.wrong
    return Result(one.states + other.states, one.moves + other.moves, one.ends + other.ends, wrong)


_Path = Any
"""None, or (the path before, the name of the move): shared by all that go on from there."""


def _variants(blob: bytes, what: str) -> Iterator[tuple[str, bytes | _Wrong]]:
    """The states after one move: with its effects carried out, and with a pause right before each of them."""
    state: _State = pickle.loads(blob)
    node = state.move(what)
    if node is None or not node.backlog:
        yield what, pickle.dumps(state, -1)
        return
    effects = [type(a).__name__ for a in node.backlog]
    pausable = state.pauses > 0 and state.open
    decided = pickle.dumps(state, -1) if pausable else b""
    for before in (None, *range(len(effects))) if pausable else (None,):
        if before is not None:
            state = pickle.loads(decided)
            node = state.named(node.name)
        name = what if before is None else f"{what}, pause before {effects[before]}"
        try:
            state.carry_on(node, before)
        except _Wrong as e:
            yield name, e
        else:
            yield name, pickle.dumps(state, -1)


def _unrolled(path: _Path) -> tuple[str, ...]:
    out = []
    while path is not None:
        path, name = path
        out.append(name)
    return tuple(reversed(out))
