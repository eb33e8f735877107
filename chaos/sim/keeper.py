"""A keeper process of the simulation: carries out what `Election` decides, as `cluster/keeper.py` does, on stand-ins.

The machine, the transactions, the keys and the mirror of etcd are the production's. What is here is what the shell does
with them: sends, waits, times out, starts and kills. Each action is one step of the process, so it may be paused or
killed right before any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chaos.sim.engine import MS, US
from chaos.sim.etcd import Compacted
from chaos.sim.process import Process
from chaos.sim.story import ETCD, words
from chaos.sim.worker import SimWorker
from cluster import keys as k
from cluster import link
from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core.election import Election
from cluster.core.events import Answer
from cluster.core.ids import NS_PER_S, Incarnation, JournalId, LogIndex, NodeId, Term
from cluster.etcd.model import Changes, EtcdRefused, GrantedLease, LeaseGone, Snapshot, Txn, TxnResult, put
from cluster.mirror import Mirror
from cluster.permit import NO_PERMIT, PermitSeen
from cluster.transactions import (
    INSYNC_UNKNOWN,
    Dates,
    Identity,
    change_insync,
    insync_outcome,
    latch_found,
    read_latch,
    tries,
)

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World

TICK = 20 * MS
STANDBY_TICK = 50 * MS
SETTLE = 100 * MS


class SimKeeper:
    """One incarnation, from its start to its end. What it has sent goes on travelling after it is dead."""

    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host, self.engine = world, host, world.engine
        host.starts += 1
        self.incarnation = Incarnation(f"{host.name}.{host.starts}")
        self.process = Process(self.engine, f"{host.name} keeper", world.traps_of(host, "keeper"))
        self.election = Election(
            me=host.name,
            incarnation=self.incarnation,
            home=host.home,
            rules=host.rules,
            timing=host.timing,
            now=host.now,
        )
        self.keys = world.keys
        self.me = Identity(host.name, self.incarnation, host.home, host.rules.ttl)
        self.mirror = Mirror(self.keys, host.rules.ttl)
        self.lease = 0
        self.told_to_lead = Term(0)  # and has not confirmed that it stopped
        self.heard_at = 0  # true time of the last word of the watch
        self.stalled_until = 0
        self.ready = False
        self._watched = 0  # revision up to which the watch has sent
        self._looked = False  # at etcd, once
        self._halted: str | None = None
        self._tick_at = -1
        self._publish_due = False
        self._role_told = ""

    @property
    def alive(self) -> bool:
        return self.process.alive

    def start(self) -> None:
        self.world.say(self.process.name, "death", f"the keeper of {self.host.name} starts")
        self.election.start(self.host.now)
        self.process.deliver("timer", self._tick, -1)
        self._grant_lease()
        self._look_again()
        self._read_all()

    def kill(self) -> None:
        """The kernel kills its worker with it."""
        if not self.alive:
            return
        self.process.kill()
        self.world.say(self.process.name, "death", f"the keeper of {self.host.name} is dead, and its worker with it")
        self.host.page = NO_PERMIT
        worker = self.host.worker
        if worker is not None:
            worker.kill("its keeper died")

    # -- the machine ----------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        host, now = self.host, self.host.now
        try:
            actions = self.election.handle(event, now)
        except Exception as e:  # noqa: BLE001 - any error at all is a finding, kept with the seed
            self.world.judge.raised(host.name, e, event)
            return
        if self.engine.story is not None and (actions or not isinstance(event, ev.Tick)):
            self._tell_story(event, actions)
        if isinstance(event, ev.WorkerStopped | ev.WorkerSettled | ev.WorkerExited):
            self.told_to_lead = Term(0)
        then = self.process.then
        for action in actions:
            then(type(action).__name__, self._carry_out, action)
        if isinstance(event, ev.Tick):
            wake = self.election.wake_at()
            if (
                wake is not None
                and wake <= now
                and not any(isinstance(a, act.ShutDown | act.StopNode) for a in actions)
            ):
                self.world.judge.spins(host, now - wake)
        then("", self._schedule)

    def _tell_story(self, event: ev.Event, actions: list[act.Action]) -> None:
        name, role, host = self.process.name, type(self.election.role).__name__.lower(), self.host.name
        if role != self._role_told:
            self._role_told = role
            self.engine.say(name, "role", f"{host} is {role}", token=getattr(self.election.role, "term", 0))
        self.engine.say(name, "event", f"{_short(event)} → {', '.join(map(repr, actions)) or 'nothing'}")

    def _tick(self, due: int) -> None:
        if due == self._tick_at:
            self.feed(ev.Tick(self.host.beat_at()))

    def _schedule(self) -> None:
        """The next tick: regularly, and earlier where the machine asks for it."""
        election, engine = self.election, self.engine
        wake = election.wake_at()
        due = engine.now + int(
            (TICK if election.held is not None else STANDBY_TICK) * (1 + 0.3 * engine.schedule.random())
        )
        if wake is not None:
            due = min(due, max(self.host.clock.when(wake), engine.now + 50 * US))
        if self._tick_at <= engine.now or due < self._tick_at:
            self._tick_at = due
            engine.at(due, self.process.deliver, "timer", self._tick, due)

    def _carry_out(self, action: act.Action) -> None:
        host, world = self.host, self.world
        match action:
            case act.WritePermit(permit):
                world.judge.permit_written(host, permit)
                host.page = PermitSeen(permit.token, permit.act_until)
                if self.engine.story is not None:
                    text = f"{host.name} may send with token {permit.token}"
                    ends = host.permit_ends
                    self.engine.say(self.process.name, "permit", text, until=ends, token=permit.token)
            case act.ClearPermit():
                world.judge.permit_cleared(host)
                if host.page.token:
                    text = f"{host.name} drops its permit for token {host.page.token}"
                    world.say(self.process.name, "permit", text, token=host.page.token)
                host.page = NO_PERMIT
            case act.Acquire() | act.Renew() | act.Evict() | act.Resign():
                if isinstance(action, act.Resign) and self.told_to_lead == action.token:
                    world.judge.resigned_early(host, action.token)
                self._transact(action)
            case act.TellFollow(node, term):
                self._tell(link.Follow(node, node, term))
            case act.TellPrepare(term):
                self._tell(link.Prepare(term))
            case act.TellLead():
                self.told_to_lead = action.term
                members = {str(n): str(j) for n, j in action.insync.members.items()}
                self._tell(
                    link.Lead(
                        action.term, members, action.insync.mod_revision, action.cause, action.actor, action.came_from
                    )
                )
            case act.TellGranted(term):
                self._tell(link.Granted(term))
            case act.TellStop(term, reason):
                self._tell(link.StopTrading(term, reason))
            case act.TellDrain(term, successor):
                self._tell(link.Drain(term, successor))
            case act.StartWorker():
                host.page = NO_PERMIT
                host.worker = worker = SimWorker(world, host)
                self.engine.after(self.engine.between(20 * MS, 120 * MS), worker.process.deliver, "start", worker.start)
            case act.KillWorker(reason):
                world.cover[f"killed: {reason}"] += 1
                if host.worker is not None and not host.worker.stuck:
                    self.engine.after(self.engine.between(100 * US, 8 * MS), host.worker.kill, f"killed: {reason}")
            case act.AnswerSwitchover(_, ok, _):
                world.cover[f"switchover {'accepted' if ok else 'refused'}"] += 1
            case act.Note(event, _):
                world.cover[event] += 1
            case act.StopNode(why):
                world.node_stopped(host, why)
            case act.ShutDown():
                world.cover["shut down"] += 1
                self.kill()
                self.engine.after(100 * MS, world.start_keeper, host)

    # -- etcd ------------------------------------------------------------------------------------------------------

    def _ask(self, what: object, ask: Callable[[], Any], answered: Callable[[Any], None], timeout: int) -> None:
        """One request. `answered` gets the answer, or None: no answer within the timeout; it is called once. what: for
        the story."""
        world, engine, wires = self.world, self.engine, self.host.wires
        deadline = engine.now + timeout

        def arrive() -> None:
            if engine.now < world.etcd_down_until:
                give_up()
                return
            answer = ask()
            at = wires.etcd_down.arrival()
            if engine.story is not None:
                engine.sends(ETCD, self.process.name, "request", f"answer to: {words(what)}", at)
            if at is None or at > deadline:
                world.cover["etcd answered after its timeout"] += at is not None
                give_up()
            else:
                engine.at(at, self.process.deliver, "etcd", answered, answer)

        def give_up() -> None:
            engine.at(deadline, self.process.deliver, "etcd", answered, None)

        at = wires.etcd_up.arrival()
        if engine.story is not None:
            engine.sends(self.process.name, ETCD, "request", what, at)
        if at is None:
            give_up()
        elif at > deadline:  # it is carried out when nobody waits for it any more
            engine.at(at, ask)
            give_up()
        else:
            engine.at(at, arrive)

    def _transact(self, request: act.EtcdRequest) -> None:
        dates = Dates(self.host.wall, self.host.now)
        self._try(request, tries(self.keys, self.me, request, dates), 0)

    def _try(self, request: act.EtcdRequest, txns: tuple[Txn, ...], nth: int) -> None:
        world = self.world

        def execute() -> TxnResult | EtcdRefused:
            before = world.insync_now() if isinstance(request, act.Acquire) else None
            result = self._txn(txns[nth])
            done = isinstance(result, TxnResult) and result.succeeded
            if not done:
                world.say(ETCD, "request", f"refuses {type(request).__name__} of {self.host.name}")
            if isinstance(result, TxnResult) and result.succeeded:
                world.cover[type(request).__name__.lower()] += 1
                world.records.executed(self.host, request, result.revision)
                if isinstance(request, act.Acquire) and before is not None:
                    world.judge.elected(self.host, request, before)
            return result

        def answered(result: TxnResult | EtcdRefused | None) -> None:
            if result is None:
                self.feed(ev.Answered(request.request, Answer.UNKNOWN, 0))
            elif isinstance(result, EtcdRefused):
                self.feed(ev.Answered(request.request, Answer.REFUSED, 0))
            elif result.succeeded:
                self.feed(ev.Answered(request.request, Answer.DONE, result.revision))
            elif nth + 1 < len(txns):
                self._try(request, txns, nth + 1)
            else:
                self.feed(ev.Answered(request.request, Answer.REFUSED, 0))

        self._ask(request, execute, answered, world.plan.timeout)

    def _txn(self, txn: Txn) -> TxnResult | EtcdRefused:
        try:
            result = self.world.etcd.txn(txn.compare, txn.success, txn.failure)
        except EtcdRefused as e:
            return e
        if result.succeeded:
            self.world.etcd_touched()
        return result

    # -- its lease -------------------------------------------------------------------------------------------------

    def _grant_lease(self) -> None:
        ttl_s = -(-self.host.rules.ttl // NS_PER_S) + 1

        def granted(lease: GrantedLease | None) -> None:
            if lease is None:
                self.engine.after(200 * MS, self.process.deliver, "timer", self._grant_lease)
                return
            self.lease = lease.id
            self.feed(ev.EtcdLease(lease.id))
            self.publish()
            self._keep_alive_later(lease)

        self._ask("an etcd lease, please", lambda: self.world.etcd.lease_grant(ttl_s), granted, 1000 * MS)

    def _keep_alive_later(self, lease: GrantedLease) -> None:
        self.engine.after(lease.ttl_s * NS_PER_S // 4, self.process.deliver, "timer", self._keep_alive, lease)

    def _keep_alive(self, lease: GrantedLease) -> None:
        def ask() -> bool:
            try:
                self.world.etcd.lease_keep_alive(lease.id)
            except LeaseGone:
                return False
            return True

        def answered(alive: bool | None) -> None:
            if lease.id != self.lease:
                return
            if alive is False:
                self.lease = 0
                self.world.cover["lease found gone"] += 1
                self.feed(ev.EtcdLease(None))
                self._grant_lease()
            else:
                self._keep_alive_later(lease)

        self._ask("keep my etcd lease alive", ask, answered, self.world.plan.timeout)

    def publish(self) -> None:
        """`members/<node>`, soon."""
        if not self._publish_due:
            self._publish_due = True
            self.engine.after(SETTLE, self.process.deliver, "timer", self._publish)

    def _publish(self) -> None:
        self._publish_due = False
        lease, worker = self.lease, self.host.worker
        if not lease:
            return
        value = k.dump(
            incarnation=self.incarnation,
            journal_id=worker.journal.journal_id if worker is not None and worker.opened else "",
            priority=100 - self.host.index,
            never_lead=False,
            ready=worker is not None and worker.opened and worker.process.alive,
        )

        def answered(result: TxnResult | EtcdRefused | None) -> None:
            if not isinstance(result, TxnResult):
                self.publish()

        member = Txn((), (put(self.keys.member(self.host.name), value, lease),))
        self._ask("here I am", lambda: self._txn(member), answered, self.world.plan.timeout)

    # -- the watch -------------------------------------------------------------------------------------------------

    def etcd_changed(self) -> None:
        """Something happened in etcd: the watch sends it on, unless it is stalled, which nothing says."""
        if self.engine.now < self.stalled_until or not self._watched or not self.alive:
            return
        try:
            changes = self.world.etcd.changes(self.keys.prefix, self._watched)
        except Compacted:
            self._watched = 0
            self.world.cover["watch compacted"] += 1
            self.engine.after(MS, self.process.deliver, "timer", self._read_all)
            return
        if changes is not None:
            self._watched = changes.revision
            self.host.wires.watch.send(self.process.deliver, "watch", self._see, changes)

    def etcd_restarted(self) -> None:
        """Its watch has ended with it."""
        self._watched = 0
        self.engine.after(MS, self.process.deliver, "timer", self._read_all)

    def _read_all(self) -> None:
        def answered(found: Snapshot | None) -> None:
            if found is not None and self._see(found):
                self._watched = found.revision  # the watch goes on from there
                self.etcd_changed()

        self._ask("read everything", lambda: self.world.etcd.read(self.keys.prefix), answered, self.world.plan.timeout)

    def _see(self, seen: Snapshot | Changes) -> bool:
        """As the client does (cluster/etcd/watch.py): what is older than what was told is a late answer, unless it is
        all there is. Whether it was taken."""
        self.heard_at = self.engine.now
        if seen.revision < self.mirror.view.revision:
            if isinstance(seen, Snapshot) and self.world.etcd.revision < self.mirror.view.revision:
                self.world.node_stopped(self.host, "etcd's revisions fell")
            return False
        if self.mirror.view.cluster_id not in (0, self.world.etcd.cluster_id):
            self.world.node_stopped(self.host, "another etcd cluster answered")
            return False
        self.mirror.apply(seen, self.world.etcd.cluster_id)
        view = self.mirror.view
        if not self._looked or view.halted != self._halted:
            self._looked, self._halted = True, view.halted
            self._tell(link.LatchSeen(view.halted))  # first: what follows may be to lead
        self.feed(ev.ViewSeen(view))
        return True

    def _look_again(self) -> None:
        """A watch that is silent is not trusted."""
        ttl = self.host.rules.ttl
        if self.engine.now - self.heard_at > ttl * 3 // 10:
            self._read_all()
        again = self.engine.between(ttl * 3 // 10, ttl * 4 // 10)
        self.engine.after(again, self.process.deliver, "timer", self._look_again)

    # -- people ----------------------------------------------------------------------------------------------------

    def asked_to_switch_over(self, target: NodeId | None, request_id: str) -> None:
        self.process.deliver("watch", self.feed, ev.SwitchoverAsked(target, "operator", request_id))

    def asked_to_stop(self) -> None:
        self.process.deliver("signal", self.feed, ev.ShutdownAsked("operator"))

    # -- the worker ------------------------------------------------------------------------------------------------

    def _tell(self, message: link.Message) -> None:
        worker = self.host.worker
        if worker is not None:
            self.host.to_worker.send(worker.process.deliver, "link", worker.obey, message)

    def worker_exited(self, worker: SimWorker, how: str) -> None:
        if self.host.worker is worker:
            self.host.worker = None
            self.feed(ev.WorkerExited(how))
            self.publish()

    def heard(self, worker: SimWorker, message: link.Message) -> None:
        """From the worker."""
        if worker is not self.host.worker:
            return  # its end has been told already
        match message:
            case link.Hello():
                self.feed(
                    ev.WorkerHello(
                        JournalId(message.journal_id),
                        LogIndex(message.last_index),
                        Term(message.highest_term),
                        message.etcd_cluster_id,
                    )
                )
                if self._looked:
                    self._tell(link.LatchSeen(self._halted))
                self.publish()
            case link.Prepared(term):
                self.feed(ev.WorkerPrepared(Term(term)))
            case link.Reconciled(term):
                self.feed(ev.WorkerReconciled(Term(term)))
            case link.Settled(term):
                self.feed(ev.WorkerSettled(Term(term)))
            case link.Stopped(term):
                self.feed(ev.WorkerStopped(Term(term)))
            case link.StepDown(term, reason):
                self.feed(ev.WorkerAsksToStepDown(Term(term), reason))
            case link.ProposeInSync():
                self._change_insync(message)
            case link.AskLatch(request, term):
                self._read_latch(request, term)
            case link.Fatal(reason):
                worker.kill(reason)

    def _change_insync(self, p: link.ProposeInSync) -> None:
        txn = change_insync(self.keys, p.term, p.members, p.expected_revision)

        def answered(result: TxnResult | EtcdRefused | None) -> None:
            o = insync_outcome(p.members, result) if isinstance(result, TxnResult) else INSYNC_UNKNOWN
            self.world.cover["in-sync changes"] += o.outcome == "done"
            self._tell(link.InSyncAnswer(p.request, o.outcome, o.members, o.revision))

        self._ask(f"the in-sync set: {', '.join(p.members)}", lambda: self._txn(txn), answered, self.world.plan.timeout)

    def _read_latch(self, request: int, term: int) -> None:
        txn = read_latch(self.keys, term)

        def answered(result: TxnResult | EtcdRefused | None) -> None:
            if not isinstance(result, TxnResult):
                self._tell(link.LatchAnswer(request, None, "no answer"))
            elif not result.succeeded:
                self._tell(link.LatchAnswer(request, None, f"term {term} does not lead any more"))
            else:
                self._tell(link.LatchAnswer(request, latch_found(result)))

        self._ask("the kill latch?", lambda: self._txn(txn), answered, self.world.plan.timeout)


def _short(x: ev.Event) -> str:
    """For the story: a view in one line, everything else as it is."""
    if not isinstance(x, ev.ViewSeen):
        return repr(x)
    v = x.view
    leader = f"{v.leader.node}:{v.leader.token}/{v.leader.renewal}" if v.leader else "-"
    tenure, resigned = v.tenure.token if v.tenure else 0, v.resigned.token if v.resigned else 0
    return f"View({v.revision} leader={leader} tenure={tenure} resigned={resigned})"
