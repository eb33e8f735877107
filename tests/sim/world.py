"""Whole clusters of real `Election` machines in one process, from one seed, judged in true time.

One heap of (true time, tie, sequence); the tie is drawn, so that things due at one instant permute. Three streams of
random numbers hang on the seed (schedule, network, faults), so that a draw more in one does not shift the others.
Everything around the machines is a model of what may happen to them, as broken as the real thing has been:

- etcd: the exact transactions of DESIGN 4 on one linearizable store; leases that end late, or are revoked wrongly while
  keep-alives say ok; requests and replies lost, late, or held by a cut and released when it heals; watches that stall,
  batch, and lose, and are re-read;
- clocks: an offset and a rate of their own per node, to the ends of what `clock_drift_max` allows;
- processes: keeper, worker or both paused, also between any two actions of one step; crashes; a worker that hangs,
  dies, cannot be killed, or comes back with an empty journal;
- people: switchovers, shutdowns, keys deleted by hand.

The worker is modelled by what the keeper can see of it, plus as much of a log as judging needs: a position per journal.
What is judged, always by the world and never by a node's own word, stands in `judge.py`, what a seed decides in
`plan.py`. Read next: `test_election_sim.py`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core.election import Election
from cluster.core.events import Answer
from cluster.core.ids import Incarnation, Instant, LogIndex, Term
from cluster.core.lease import LeaseRules, Member, View
from tests.sim import faults
from tests.sim.etcd_model import Etcd
from tests.sim.judge import LIVE_WITHIN, Judge, Report, short
from tests.sim.node_model import Node, Worker
from tests.sim.plan import DOWN, MS, UP, US, Plan, rules_of


class World:
    """One seed. `election` and `etcd` may be broken ones, to show that the judge can say no."""

    def __init__(
        self,
        plan: Plan,
        *,
        election: type[Election] = Election,
        etcd: type[Etcd] = Etcd,
        rules: Callable[[int], LeaseRules] = rules_of,
        traced: bool = False,
    ) -> None:
        self.plan = plan
        self.election_class = election
        self.schedule = random.Random(f"{plan.seed}/schedule")
        self.network = random.Random(f"{plan.seed}/network")
        self.now = 0
        self._heap: list[tuple[int, float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self.cover: Counter[str] = Counter()
        self.healed = False
        self.committed = 0
        self.etcd = etcd()
        self.etcd.changed = self._etcd_changed
        self.nodes = [Node(i, plan, rules(ttl)) for i, ttl in enumerate(plan.ttls)]
        self.ttl = max(plan.ttls)
        self.judge = Judge(self)
        self.trace: list[str] | None = [] if traced else None
        self._met: Counter[type] = Counter()
        self._leases = 0

    # -- the engine ---------------------------------------------------------------------------------------------

    def at(self, t: int, fn: Callable[..., None], *args: object) -> None:
        assert t >= self.now, "time does not go back"
        self._count += 1
        heapq.heappush(self._heap, (t, self.schedule.random(), self._count, fn, args))

    def after(self, low: int, high: int, fn: Callable[..., None], *args: object) -> None:
        self.at(self.now + low + int(self.schedule.random() * (high - low)), fn, *args)

    def say(self, who: str, what: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now / MS:10.3f} {who:<4} {what}")

    def run(self) -> Report:
        for node in self.nodes:
            self.after(0, 50 * MS, self._start_keeper, node)
        for fault in self.plan.faults:
            self.at(fault.at, faults.strike, self, fault)
        self.at(self.plan.heal_at, self._heal)
        until = self.plan.heal_at + LIVE_WITHIN * self.ttl
        events = 0
        while self._heap and not self.judge.violations:
            t, _, _, fn, args = heapq.heappop(self._heap)
            if t > until or self.judge.lived_at is not None:
                break
            self.now = t
            events += 1
            fn(*args)
        healed_in = None
        if self.judge.lived_at is not None:
            healed_in = (self.judge.lived_at - self.plan.heal_at) / self.ttl
        elif not self.judge.violations:
            if self._nobody_can_lead():
                self.cover["nobody in sync was left"] += 1
            else:
                self.judge.blame(f"live: nobody leads {LIVE_WITHIN} ttls after everything healed")
        return Report(self.plan, self.judge.violations, self.cover, healed_in, events, self.trace or [])

    def _nobody_can_lead(self) -> bool:
        """Every node that holds all committed entries lost its disk, or has a worker that cannot be killed. Waiting
        for a person is right then."""
        stuck = [n for n in self.nodes if n.worker is not None and n.worker.stuck and not n.worker.dead]
        return not any(n not in stuck and self.etcd.insync.members.get(n.name) == n.journal_id for n in self.nodes)

    # -- network --------------------------------------------------------------------------------------------------

    def _hop(self, node: Node, way: int) -> int | None:
        """How long a message takes; None: it is lost."""
        draw = self.network.random
        base = 200 * US + int(draw() * 2500) * US
        until, hold = node.cut[way]
        if self.now < until:
            return until - self.now + base if hold else None
        if self.healed:
            return base
        chance = draw()
        if chance < self.plan.loss:
            return None
        if chance > 1 - self.plan.late:
            return base + int(draw() * 2.5 * self.ttl)
        return base

    def _up(self, node: Node, fn: Callable[..., None], *args: object) -> None:
        d = self._hop(node, UP)
        if d is not None:
            self.at(self.now + d, fn, *args)

    def _down(self, node: Node, fn: Callable[..., None], *args: object) -> None:
        d = self._hop(node, DOWN)
        if d is not None:
            self.at(self.now + d, fn, *args)

    def _request(self, node: Node, a: act.EtcdRequest) -> None:
        incarnation, number = node.incarnation, node.number
        answered: list[Answer] = []

        def reply(answer: Answer, revision: int) -> None:
            if not answered:
                answered.append(answer)
                self.deliver(node, number, ev.Answered(a.request, answer, revision))

        def arrive() -> None:
            before, tenure, ended = self.etcd.insync, self.etcd.tenure, self.etcd.view().ended_properly
            answer, revision = self.etcd.execute(node, incarnation, a)
            self.say("etcd", f"{node.name} {a} -> {answer.name} {revision}")
            if answer is Answer.DONE:
                self.cover[type(a).__name__.lower()] += 1
                if isinstance(a, act.Acquire):
                    self.judge.elected(node, a, before, tenure)
                    self.cover["acquired by rule 3"] += tenure is not None and not ended
                    self.cover["answered after its timeout"] += bool(answered)
            self._down(node, reply, answer, revision)

        self._up(node, arrive)
        self.at(self.now + self.plan.timeout, reply, Answer.UNKNOWN, 0)

    # -- etcd, seen from a keeper's shell ---------------------------------------------------------------------------

    def _etcd_changed(self) -> None:
        view = self.etcd.view()
        for node in self.nodes:
            if node.election is not None and self.now >= node.stalled_until:
                self._down(node, self._watched, node, node.number, view)

    def _watched(self, node: Node, number: int, view: View) -> None:
        if number == node.number:
            node.view_at = self.now
            self.deliver(node, number, ev.ViewSeen(view))

    def _reread(self, node: Node, number: int) -> None:
        """A watch that is silent is not trusted."""
        if number != node.number:
            return
        if self.now - node.view_at > self.ttl * 3 // 10 and self.now >= node.stalled_until:
            self._up(node, lambda: self._down(node, self._watched, node, number, self.etcd.view()))
        self.after(self.ttl * 3 // 10, self.ttl * 4 // 10, self._reread, node, number)

    def _grant(self, node: Node, number: int) -> None:
        if number != node.number or node.lease:
            return

        def arrive() -> None:
            self._leases += 1
            self._extend(self._leases)
            self._down(node, granted, self._leases)

        def granted(lease: int) -> None:
            if number == node.number and not node.lease:
                node.lease = lease
                self.deliver(node, number, ev.EtcdLease(lease))
                self._keep_alive(node, number)

        self._up(node, arrive)
        self.after(self.plan.timeout, self.plan.timeout + MS, self._grant, node, number)

    def _keep_alive(self, node: Node, number: int) -> None:
        if number != node.number or not node.lease:
            return
        lease, worker = node.lease, node.worker
        ready = worker is not None and worker.hello and not worker.dead
        member = Member(node.name, Incarnation(node.incarnation), node.journal_id, -node.index, False, ready)

        def arrive() -> None:
            if lease in self.etcd.leases:
                self._extend(lease)
                if self.etcd.members.get(node.name) != member:
                    self.etcd.members[node.name] = member
                    self.etcd.bump()
                    self.etcd.changed()
            else:
                self._down(node, gone)

        def gone() -> None:
            if number == node.number and node.lease == lease:
                node.lease = 0
                self.cover["lease found gone"] += 1
                self.deliver(node, number, ev.EtcdLease(None))
                self._grant(node, number)

        if self.now >= node.paused_until:
            self._up(node, arrive)
        self.after(self.ttl * 3 // 10, self.ttl * 4 // 10, self._keep_alive, node, number)

    def _extend(self, lease: int) -> None:
        first = lease not in self.etcd.leases
        late = self.network.choice((0.0, 0.1, 0.5, 3.0))
        self.etcd.leases[lease] = self.now + int(self.ttl * (1 + late))
        if first:
            self.at(self.etcd.leases[lease], self._maybe_expire, lease)

    def _maybe_expire(self, lease: int) -> None:
        ends = self.etcd.leases.get(lease)
        if ends is None:
            return
        if self.now < ends:
            self.at(ends, self._maybe_expire, lease)
            return
        self.cover["lease expired with the leader key"] += (
            self.etcd.leader is not None and self.etcd.leader_lease == lease
        )
        self.etcd.revoke(lease)

    # -- the keeper process -----------------------------------------------------------------------------------------

    def _start_keeper(self, node: Node) -> None:
        node.number += 1
        now = node.clock.read(self.now)
        node.election = self.election_class(
            me=node.name,
            incarnation=Incarnation(node.incarnation),
            home=node.home,
            rules=node.rules,
            timing=node.timing,
            now=now,
        )
        node.election.start(now)
        node.lease = node.paused_until = node.view_at = 0
        node.regular_at = node.tick_at = self.now
        self.say(node.name, f"keeper {node.incarnation} starts")
        self.at(self.now, self._tick, node, node.number, self.now)
        self._grant(node, node.number)
        self._reread(node, node.number)
        self._down(node, self._watched, node, node.number, self.etcd.view())

    def end_keeper(self, node: Node, down_for: int) -> None:
        """The kernel kills the worker with it. What has left already goes on travelling."""
        if node.election is None:
            return
        node.election = None
        node.number += 1
        node.inbox.clear()
        node.backlog.clear()
        if node.worker is not None:
            self.end_worker(node.worker)
        node.cell, node.worker, node.told_to_lead = None, None, Term(0)
        self.at(self.now + down_for, self._start_keeper, node)

    def _tick(self, node: Node, number: int, due: int) -> None:
        if number != node.number or due != node.tick_at:
            return
        tick = node.rules.ttl // 20
        node.regular_at = self.now + tick + int(self.schedule.random() * tick * 0.3)
        self.deliver(node, number, None)

    def _arm(self, node: Node) -> None:
        assert node.election is not None
        due, wake = node.regular_at, node.election.wake_at()
        if wake is not None:
            due = min(due, node.clock.when(wake))
        due = max(due, self.now + 50 * US)
        if due < node.tick_at or node.tick_at <= self.now:
            node.tick_at = due
            self.at(due, self._tick, node, node.number, due)

    def deliver(self, node: Node, number: int, event: ev.Event | None) -> None:
        if number != node.number or node.election is None:
            return
        if self.now < node.paused_until or node.backlog or node.inbox:
            # Whatever source is read first after waking; each source keeps its order.
            if event is None and node.inbox and self.schedule.random() < 0.5:
                node.inbox.appendleft(event)
            else:
                node.inbox.append(event)
            return
        self._handle(node, event)

    def _handle(self, node: Node, event: ev.Event | None) -> None:
        election = node.election
        assert election is not None
        now = node.clock.read(self.now)
        e = ev.Tick(self._beat(node)) if event is None else event
        try:
            out = election.handle(e, now)
        except Exception as exc:  # noqa: BLE001  # any error at all is a finding, kept with the seed
            self.judge.blame(f"{node.name} raised {exc!r} on {e}")
            return
        if self.trace is not None and (out or not isinstance(e, ev.Tick)):
            self.say(node.name, f"[{type(election.role).__name__}] {short(e)} -> {[short(a) for a in out]}")
        if isinstance(e, ev.WorkerStopped | ev.WorkerSettled | ev.WorkerExited):
            node.told_to_lead = Term(0)
        by_answer = isinstance(e, ev.Answered) and e.answer is Answer.DONE
        self.cover["acquire adopted from the view"] += not by_answer and any(isinstance(a, act.TellLead) for a in out)
        node.backlog.extend(out)
        if event is None:
            wake = election.wake_at()
            if wake is not None and wake <= now and not any(isinstance(a, act.ShutDown | act.StopNode) for a in out):
                self.judge.blame(f"busy: {node.name} asks to be woken {now - wake} ns ago, after a tick")
        self._carry_on(node)

    def _carry_on(self, node: Node) -> None:
        """Carry out what is left to do, then take what came in; stop where a pause begins."""
        while node.backlog:
            if self._trapped(node, node.backlog[0]):
                return
            self._carry_out(node, node.backlog.popleft())
            if node.election is None:
                return
        self._arm(node)
        if node.inbox:
            self._handle(node, node.inbox.popleft())

    def _trapped(self, node: Node, action: act.Action) -> bool:
        """Whether the keeper is paused, perhaps only now, right before this action."""
        if not self.healed:
            self._met[type(action)] += 1
            for trap in self.plan.traps:
                if trap.action is type(action) and trap.nth == self._met[trap.action]:
                    self.cover[f"{trap.effect} at {trap.action.__name__}"] += 1
                    faults.spring(self, node, trap)
        return self.now < node.paused_until

    def pause_keeper(self, node: Node, length: int) -> None:
        self.say(node.name, f"keeper paused for {length / MS:.3f} ms")
        node.paused_until = max(node.paused_until, self.now + length)
        self.at(node.paused_until, self._wake_keeper, node, node.number)

    def _wake_keeper(self, node: Node, number: int) -> None:
        if number == node.number and node.election is not None and self.now >= node.paused_until:
            self._carry_on(node)

    def _carry_out(self, node: Node, a: act.Action) -> None:
        worker = node.worker
        match a:
            case act.WritePermit(permit):
                self.judge.written(node, permit)
                node.cell = permit
                if worker is not None and not worker.acting:
                    worker.acting = True
                    self.after(MS, 60 * MS, self._act, worker)
            case act.ClearPermit():
                if node.cell is not None:
                    self.judge.ended.add(node.cell.token)
                    node.cell = None
            case act.Acquire() | act.Renew() | act.Evict() | act.Resign():
                if isinstance(a, act.Resign) and node.told_to_lead == a.token:
                    self.judge.blame(f"resign: {node.name} gives {a.token} back before its worker stopped")
                self._request(node, a)
            case act.StartWorker():
                self.judge.started(node)
                node.worker = worker = Worker(node, self.now)
                self.after(20 * MS, 120 * MS, self._running, worker, lambda: self._hello(worker))
            case act.KillWorker(reason):
                self.cover[f"killed: {reason}"] += 1
                if worker is not None and not worker.stuck:
                    self.after(100 * US, 8 * MS, self.end_worker, worker)
            case act.TellFollow(_, term):
                self._tell(worker, lambda w: setattr(w, "follows", term))
            case act.TellPrepare(term):
                self._tell(worker, lambda w: self._prepare(w, term))
            case act.TellLead():
                node.told_to_lead = a.term
                self._tell(worker, lambda w: self._lead(w, a))
            case act.TellStop(term):
                self._tell(worker, lambda w: self._stop(w, ev.WorkerStopped(term), 20))
            case act.TellDrain(term):
                self._tell(worker, lambda w: self._stop(w, ev.WorkerSettled(term), 300))
            case act.Note(event):
                self.cover[event] += 1
            case act.AnswerSwitchover(_, ok):
                self.cover[f"switchover {'accepted' if ok else 'refused'}"] += 1
            case act.StopNode(why):
                self.judge.blame(f"stopped: {node.name}: {why}")
            case act.ShutDown():
                self.cover["shut down"] += 1
                self.end_keeper(node, 100 * MS)

    # -- the worker process -----------------------------------------------------------------------------------------

    def _running(self, worker: Worker | None, fn: Callable[[], None]) -> None:
        """Run `fn` in the worker: now, when it is woken, or never."""
        if worker is None or worker.dead or worker.hung:
            return
        if worker.quiet_since is not None:
            worker.waiting.append(fn)
        else:
            fn()

    def _tell(self, worker: Worker | None, fn: Callable[[Worker], None]) -> None:
        if worker is not None:
            worker.in_at = max(worker.in_at + 1, self.now + 50 * US + int(self.schedule.random() * MS))
            self.at(worker.in_at, self._running, worker, lambda: fn(worker))

    def from_worker(self, worker: Worker, event: ev.Event, within_ms: int) -> None:
        """Work for up to `within_ms`, then tell the keeper."""
        number = worker.node.number
        worker.out_at = max(worker.out_at + 1, self.now + 100 * US + int(self.schedule.random() * within_ms * MS))
        self.at(worker.out_at, self._running, worker, lambda: self.deliver(worker.node, number, event))

    def _hello(self, w: Worker) -> None:
        w.hello = True
        n = w.node
        self.from_worker(w, ev.WorkerHello(n.journal_id, LogIndex(n.position), n.highest, 1), 2)

    def _prepare(self, w: Worker, term: Term) -> None:
        w.closed = max(w.closed, term)
        self.from_worker(w, ev.WorkerPrepared(term), 5)

    def _lead(self, w: Worker, a: act.TellLead) -> None:
        w.leads, w.counted, w.insync_seen = a.term, dict(a.insync.members), a.insync.mod_revision
        w.node.highest = max(w.node.highest, a.term)
        self.from_worker(w, ev.WorkerReconciled(a.term), self.schedule.choice((5, 20, 150)))
        self.after(self.ttl // 10, self.ttl // 5, self._tend_insync, w, a.term)

    def _stop(self, w: Worker, event: ev.Event, within_ms: int) -> None:
        w.leads = Term(0)
        self.from_worker(w, event, within_ms)

    def end_worker(self, w: Worker) -> None:
        if w.dead:
            return
        w.dead, w.died_at = True, self.now
        self.say(w.node.name, "worker is dead")
        self.after(100 * US, 5 * MS, self._exited, w, w.node.number)

    def _exited(self, w: Worker, number: int) -> None:
        if w.node.worker is w:
            self.deliver(w.node, number, ev.WorkerExited("signal 9"))

    def _beat(self, node: Node) -> Instant | None:
        w = node.worker
        if w is None or not w.hello:
            return None
        last = w.died_at if w.dead else self.now if w.quiet_since is None else w.quiet_since
        return node.clock.read(last - (last - w.started_at) % (20 * MS))

    def _can_acknowledge(self, n: Node, term: Term) -> bool:
        w = n.worker
        return w is not None and w.hello and not w.dead and w.quiet_since is None and w.follows == term > w.closed

    def _act(self, w: Worker) -> None:
        """One effect: an entry on every node that counts, then the permit, then the effect, with no pause between."""
        node, permit = w.node, w.node.cell
        if permit is None or w.dead or w.hung:
            w.acting = False
            return
        if w.quiet_since is not None:
            w.waiting.append(lambda: self._act(w))
            return
        others = [n for n in self.nodes if n is not node and n.name in w.counted]
        if w.leads == permit.token and permit.covers(node.clock.read(self.now)):
            if all(self._can_acknowledge(n, w.leads) for n in others):
                self.committed += 1
                for n in (node, *others):
                    n.position = self.committed
                    n.highest = max(n.highest, w.leads)
                self.cover["acts"] += 1
                if permit.token < self.judge.acted:
                    self.judge.blame(f"acts: {node.name} acts for {permit.token} after an act for {self.judge.acted}")
                self.judge.acted = max(self.judge.acted, permit.token)
            else:
                self.cover["act waits for an acknowledgement"] += 1
        self.after(5 * MS, 60 * MS, self._act, w)

    def _tend_insync(self, w: Worker, term: Term) -> None:
        """The leader removes who cannot acknowledge before going on without it, and counts who is being added before
        asking for it: an answer that is lost must not leave a named node uncounted."""
        if w.dead or w.leads != term:
            return
        self.after(self.ttl // 10, self.ttl // 5, self._tend_insync, w, term)
        if w.insync_asked or w.quiet_since is not None or w.node.cell is None:
            return
        wanted, removed = dict(w.counted), []
        for n in self.nodes:
            if n is w.node:
                continue
            if not self._can_acknowledge(n, term):
                wanted.pop(n.name, None)
                if n.name in w.counted:
                    removed.append(n.name)
            elif n.name not in w.counted:
                wanted[n.name] = w.counted[n.name] = n.journal_id
                n.position = w.node.position
        if wanted == dict(self.etcd.insync.members) and not removed:
            return
        seen, w.insync_asked = w.insync_seen, True
        timed_out: list[int] = []

        def arrive() -> None:
            done = self.etcd.change_insync(term, seen, wanted)
            self.cover["in-sync changes"] += done
            self._down(w.node, reply, done, self.etcd.insync.mod_revision)

        def reply(done: bool, revision: int) -> None:
            if timed_out or w.dead:
                return
            timed_out.append(1)
            w.insync_asked, w.insync_seen = False, revision
            if done:
                for name in removed:
                    w.counted.pop(name, None)

        def unknown() -> None:
            if not timed_out:
                timed_out.append(1)
                w.insync_asked = False  # the next try is refused and brings the revision

        self._up(w.node, arrive)
        self.at(self.now + self.plan.timeout, unknown)

    # -- what faults are made of -------------------------------------------------------------------------------------

    def cut(self, node: Node, way: int, length: int, hold: bool) -> None:
        """Nothing passes; hold: it comes through when the cut is over."""
        if not self.healed:
            node.cut[way] = (self.now + length, hold)

    def wipe(self, w: Worker) -> None:
        """Its disk is lost with it: the next one opens an empty journal with a new id."""
        n = w.node
        n.journal, n.position, n.highest = n.journal + 1, 0, Term(0)
        self.end_worker(w)

    def stall(self, node: Node, length: int) -> None:
        """The watch is silent, and nothing says so."""
        node.stalled_until = max(node.stalled_until, self.now + length)

        def flows_again() -> None:
            if node.election is not None and self.now >= node.stalled_until:
                self._down(node, self._watched, node, node.number, self.etcd.view())

        self.at(node.stalled_until, flows_again)

    def pause_worker(self, w: Worker | None, length: int) -> None:
        if w is not None and w.quiet_since is None:
            w.quiet_since = self.now
            self.at(self.now + length, self._wake_worker, w)

    def _wake_worker(self, w: Worker) -> None:
        if w.hung or w.dead:
            return
        w.quiet_since = None
        while w.waiting:
            w.waiting.popleft()()

    def _heal(self) -> None:
        self.say("!!!", "healed")
        self.healed = True
        for node in self.nodes:
            node.cut = [(0, False), (0, False)]
            node.stalled_until = 0
            if node.worker is not None:
                self._wake_worker(node.worker)
            if node.paused_until > self.now:
                node.paused_until = self.now
                self._wake_keeper(node, node.number)
