"""One keeper's part in the cluster: when to campaign, renew, evict, resign, start and kill the worker.

    handle(event, now) -> [action]       the shell carries the actions out in order and feeds the answers back
    wake_at() -> Instant | None          when a Tick is worth more than the regular one

Deterministic: no clock, no await, no randomness. The role itself lives in `role.py`; this module asks `lease.py`
at the right moments and turns role effects into actions. Invariants:

- at most one leadership transaction (acquire, evict, resign) is under way, and at most one renewal;
- `act_until` always comes from a `sent_at` that was read before the request left;
- a term is resigned only after its worker confirmed that it stopped, or is dead;
- whatever arrives, ClearPermit comes first among the actions that end a term.

Read next: `cluster/keeper.py`, the shell.
"""

from __future__ import annotations

from . import actions as act
from . import events as ev
from . import role
from .holding import Held, Leaving
from .ids import NS_PER_S, Incarnation, Instant, NodeId, Term
from .lease import InSync, LeaseRules, Sightings, View, acquire_from, choose_successor, evict_from, rank
from .ward import MS, Barren, Restarts, Timing, Wakefulness, Worker


class Election:
    """See the module. Not thread-safe; one event at a time."""

    def __init__(
        self,
        *,
        me: NodeId,
        incarnation: Incarnation,
        home: str,
        rules: LeaseRules,
        timing: Timing,
        never_lead: bool = False,
        now: Instant,
    ) -> None:
        self.me = me
        self.incarnation = incarnation
        self.home = home
        self.rules = rules
        self.timing = timing
        self.never_lead = never_lead

        self.role: role.State = role.Starting()
        self.view: View | None = None
        self.held: Held | None = None
        self._seen = Sightings()
        self._shown = self._highest = Term(0)  # the tenure that etcd showed last, and the highest ever
        self._behind_since: Instant | None = None  # since when the journal remembers more than that
        self._lease_id: int | None = None
        self._worker: Worker | None = None
        self._leaving: Leaving | None = None
        self._owed: tuple[Term, Leaving] | None = None  # a resignation that etcd has not confirmed
        self._released = Term(0)  # the last term we gave up; a view may show its key a little longer
        self._evicted = 0  # the mod_revision of the key that we evicted last; the same

        self._request = 0
        self._attempt = 0
        self._sent_at: dict[int, Instant] = {}  # attempt -> when its acquire left
        self._lead_op: act.Acquire | act.Evict | act.Resign | None = None
        self._lead_retry_at = Instant(0)
        self._renewing: tuple[int, Instant] | None = None  # (request, sent_at)

        self._awake = Wakefulness(now, timing.hang_timeout // 2)
        self._kill_at: Instant | None = None  # a worker that was told to stop dies at this time
        self._drain_until: Instant | None = None
        self._killing, self._restarts = False, Restarts(timing)
        self._barren = Barren(timing)
        self._start_at: Instant | None = None
        self._cause = ("first start", "")
        self._came_from: NodeId | None = None
        self._shutdown: str | None = None
        self._shutdown_by: Instant | None = None  # ends whatever etcd says by then
        self._stopped = False

    # -- the outside ---------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: Instant) -> list[act.Action]:
        """Apply one event; `now` was read after it arrived."""
        if self._stopped:
            return []
        out: list[act.Action] = []
        # A pause is noticed before anything else is done with what arrived during it.
        self._notice_pause(now, out)
        match event:
            case ev.ViewSeen(view):
                self._on_view(view, now, out)
            case ev.Answered():
                self._on_answer(event, now, out)
            case ev.EtcdLease(lease_id):
                self._lease_id = lease_id
            case ev.WorkerHello():
                self._on_hello(event, now, out)
            case ev.WorkerPrepared(term):
                if self._worker is not None:
                    self._worker.prepared = max(self._worker.prepared, term)
            case ev.WorkerReconciled(term):
                if self.held is not None and self.held.term == term and isinstance(self.role, role.Promoting):
                    self._barren, self.held.led = Barren(self.timing), True
                    self._step(role.Reconciled(term), now, out)
            case ev.WorkerSettled(term):
                if isinstance(self.role, role.Draining) and self.role.term == term:
                    self._step(role.OrdersSettled(term), now, out)
            case ev.WorkerStopped(term):
                if isinstance(self.role, role.Fenced) and self.role.term == term:
                    self._step(role.Resynced(), now, out)
            case ev.WorkerAsksToStepDown(term, reason):
                if self.held is not None and self.held.term == term:
                    self._lose(reason, now, out)
            case ev.WorkerExited(how):
                self._on_worker_exited(how, now, out)
            case ev.SwitchoverAsked():
                self._on_switchover(event, now, out)
            case ev.ShutdownAsked(actor):
                self._on_shutdown(actor, now, out)
            case ev.Tick(beat_at):
                self._on_tick(beat_at, now, out)
        self._pursue(now, out)
        return out

    def wake_at(self) -> Instant | None:
        """The next moment at which time alone changes something; None: the regular tick is enough."""
        if self._stopped:
            return None
        kill_at = None if self._killing else self._kill_at
        times = [t for t in (kill_at, self._drain_until, self._start_at) if t is not None]
        if self.held is not None and self._renews:
            times.append(Instant(self.held.act_until - self.timing.warn_lead))
            if self._renewing is None:
                times.append(self.held.next_renewal)
        if self._owed is not None and self._lead_op is None:
            times.append(self._lead_retry_at)
        due = self._campaign_due()
        if due is not None and not self._must_prepare:  # else the worker's answer comes first, and is an event
            times.append(max(due, self._lead_retry_at))
        return min(times) if times else None

    @property
    def _renews(self) -> bool:
        """Never once fenced: a leader that cannot be stopped must at least lose its key."""
        return isinstance(self.role, role.Promoting | role.Leader | role.Draining)

    def last_renewal_seen(self) -> Instant | None:
        """When the leader's latest renewal was first seen here; None: there is no leader."""
        return self._seen.renewal[1] if self._seen.renewal else None

    # -- role steps ----------------------------------------------------------------------------------------

    def _step(self, event: role.Event, now: Instant, out: list[act.Action]) -> None:
        before = self.role
        reason = self._leaving.reason if self._leaving else type(event).__name__
        self.role, effects = role.step(before, event)
        for effect in effects:
            match effect:
                case role.GrantPermit(permit):
                    out.append(act.WritePermit(permit))
                    if isinstance(event, role.Reconciled):
                        out.append(act.TellGranted(permit.token))
                case role.DropPermit():
                    out.append(act.ClearPermit())
                case role.StopWorker(term):
                    out.append(act.TellStop(term, reason))
                    until = self.held.act_until if self.held else now
                    # Confirm soon, and before the permit would have ended; once it has, as after a pause, nothing is
                    # gained by killing a worker that has only just been woken too.
                    grace_end = now + self.timing.stop_grace
                    self._kill_at = Instant(max(now + 10 * MS, min(until, grace_end)) if until > now else grace_end)
                case role.DrainWorker(term):
                    out.append(act.TellDrain(term, self._leaving.successor if self._leaving else None))
                    self._drain_until = Instant(now + self.timing.drain_timeout)
                case role.ReleaseLease(term):
                    if self.held is not None and not self.held.led:
                        self._barren.ended(now)
                    self._owe(term)
        if type(before) is not type(self.role):
            out.append(
                act.Note(
                    "role_changed",
                    {
                        "role_from": role.name(before),
                        "role": role.name(self.role),
                        "term": role.term_of(before) or role.term_of(self.role),
                        "reason": reason,
                    },
                )
            )
        if not isinstance(self.role, role.Draining):
            self._drain_until = None
        if not isinstance(self.role, role.Fenced):
            self._kill_at = None

    def _lose(self, reason: str, now: Instant, out: list[act.Action], *, by: role.Event | None = None) -> None:
        """End the current term from inside: fence, then wait for the worker to confirm."""
        if self._leaving is None:
            self._leaving = Leaving(reason, str(self.me))
        self._step(by or role.LeaseLost(reason), now, out)

    def _owe(self, term: Term) -> None:
        """`term` is over here and its worker cannot send: etcd must be told, until it confirms."""
        leaving = self._leaving or Leaving("released", str(self.me))
        self._owed = (term, leaving)
        self._released = max(self._released, term)
        self._leaving = None
        self.held = None
        self._renewing = None
        self._lead_retry_at = Instant(0)

    def _owe_unused(self, token: Term) -> None:
        self._released = max(self._released, token)
        self._owed = (token, Leaving("acquired too late to be used", str(self.me)))

    # -- the view ------------------------------------------------------------------------------------------

    def _on_view(self, view: View, now: Instant, out: list[act.Action]) -> None:
        if self.view is not None and view.revision < self.view.revision:
            return
        self.view = view
        if view.revision >= self._shown:
            self._shown = view.tenure.token if view.tenure else Term(view.revision)
            self._highest = max(self._highest, self._shown)
        self._seen.note(view, now)
        if self.held is not None and view.revision >= self.held.term:
            self._check_held(view, now, out)
        self._look_for_mine(view, now, out)
        self._check_memory(now, out)

    def _check_memory(self, now: Instant, out: list[act.Action]) -> None:
        """The journal remembers which etcd it has seen, and up to which tenure; so do we. An etcd that shows an earlier
        one was restored, however far its revisions have come since: its tokens would repeat, and its `insync` is out of
        date. But a watch may lag behind what the worker has heard: a reason to wait first, and then to stop."""
        view, worker = self.view, self._worker
        if view is None or worker is None or worker.journal_id is None or self._stopped:
            return
        remembered = max(worker.highest_term, self._highest)
        if remembered <= self._shown:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        behind = self._behind_since is not None and now - self._behind_since > self.rules.ttl
        why = worker.foreign((remembered, self._shown) if behind else None, view.cluster_id)
        if why is not None:
            self._stopped = True
            out += [act.ClearPermit(), act.KillWorker("etcd is not the one it was"), act.StopNode(why)]

    def _check_held(self, view: View, now: Instant, out: list[act.Action]) -> None:
        """We hold a term: is the key still ours? A key that vanished is a loss even while keep-alives say ok."""
        if self.held is None or (view.leader is not None and view.leader.token == self.held.term):
            return
        if view.leader is not None and view.leader.token > self.held.term:
            self._lose("deposed", now, out, by=role.HigherTermSeen(view.leader.token))
        else:
            self._lose("leader key vanished", now, out)

    def _look_for_mine(self, view: View, now: Instant, out: list[act.Action]) -> None:
        """What in this view did we, or our predecessor, leave behind?"""
        if isinstance(self._lead_op, act.Acquire):
            return  # the answer is still to come, and is the better source; it makes us look again
        if view.leader is None:
            self._claim_vacancy_of_mine(view)
        elif view.leader.incarnation == self.incarnation:
            self._find_own_key(view, now, out)
        elif view.leader.home == self.home:
            # We hold this home's lock, so the keeper that wrote this and its worker are dead: no need to wait a ttl.
            self._owed = (view.leader.token, Leaving("restarted", str(self.me)))

    def _claim_vacancy_of_mine(self, view: View) -> None:
        """The last tenure was of this home, and is not resigned: nobody need wait for it."""
        t = view.tenure
        if t is None or view.ended_properly or self.held is not None or isinstance(self.role, role.Fenced):
            return
        mine = t.incarnation == self.incarnation
        if (mine or t.home == self.home) and self._owed is None and not isinstance(self._lead_op, act.Resign):
            self._owed = (t.token, Leaving("leader key vanished" if mine else "restarted", str(self.me)))

    def _find_own_key(self, view: View, now: Instant, out: list[act.Action]) -> None:
        """The key says it is ours. It may be one whose acquire we never got an answer to:

        1. our acquire leaves, etcd carries it out, the answer is lost;
        2. the view shows our own key, with the number of that attempt;
        3. no renewal was sent, so the permit may run from that attempt's own sent_at, if that is not over yet.
        """
        key = view.leader
        if key is None or self.held is not None or key.token <= self._released:
            return
        sent_at = self._sent_at.get(key.attempt)
        if sent_at is not None and isinstance(self.role, role.Standby):
            self._won(key.token, key.attempt, sent_at, now, out)
        else:
            self._owe_unused(key.token)

    def _follow(self, out: list[act.Action]) -> None:
        leader, worker = self.view.leader if self.view else None, self._worker
        if leader is None or worker is None or not isinstance(self.role, role.Standby) or self.held is not None:
            return
        if leader.home != self.home and leader.token > max(worker.follows, worker.prepared):
            worker.follows = leader.token
            out.append(act.TellFollow(leader.node, leader.token))

    # -- time ----------------------------------------------------------------------------------------------

    def _notice_pause(self, now: Instant, out: list[act.Action]) -> None:
        gap = self._awake.note(now)
        if gap <= self.rules.pause_budget:
            return
        if self.held is not None and not isinstance(self.role, role.Fenced):
            self._lose("paused", now, out)
        out.append(act.Note("paused", {"gap_s": gap / NS_PER_S}))

    def _on_tick(self, beat_at: Instant | None, now: Instant, out: list[act.Action]) -> None:
        held = self.held
        if held is not None and self._renews and now >= held.act_until - self.timing.warn_lead:
            # Includes an act_until that has passed. Silence from etcd is enough: nobody confirmed us.
            self._lose("no renewal was confirmed in time", now, out, by=role.DeadlinePassed())
        if self._drain_until is not None and now >= self._drain_until:
            self._lose("drain timed out", now, out)
        if self._behind_since is not None:
            self._check_memory(now, out)
        if self._worker is not None and not self._killing:
            self._watch_worker(self._worker, beat_at, now, out)
        if self._start_at is not None and now >= self._start_at and self._shutdown is None:
            self._start_at = None
            self._worker = Worker(started_at=now)
            out.append(act.StartWorker(now))

    def start(self, now: Instant) -> None:
        """Have the worker started with the next Tick."""
        self._start_at = now

    def _watch_worker(self, worker: Worker, beat_at: Instant | None, now: Instant, out: list[act.Action]) -> None:
        if self._kill_at is not None and now >= self._kill_at:
            self._kill("did not confirm that it stopped", now, out)
        elif beat_at is None or worker.journal_id is None:
            if self._awake.silent_for(worker.started_at, now) > self.timing.start_timeout:
                self._kill("did not start in time", now, out)
        elif self._awake.silent_for(beat_at, now) > self.timing.hang_limit(leading=self.held is not None):
            self._kill("hung", now, out)

    def _kill(self, reason: str, now: Instant, out: list[act.Action]) -> None:
        if self._renews:
            self._leaving = Leaving(f"worker {reason}", str(self.me))
            self._step(role.LeaseLost(reason), now, out)
        self._killing = True
        out.append(act.ClearPermit())
        out.append(act.KillWorker(reason))

    # -- the worker ----------------------------------------------------------------------------------------

    def _on_hello(self, hello: ev.WorkerHello, now: Instant, out: list[act.Action]) -> None:
        if self._worker is None or self._worker.journal_id is not None:
            return
        self._worker.journal_id = hello.journal_id
        self._worker.highest_term = hello.highest_term
        self._worker.etcd_cluster_id = hello.etcd_cluster_id
        self._step(role.JournalOpened(), now, out)
        self._check_memory(now, out)

    def _on_worker_exited(self, how: str, now: Instant, out: list[act.Action]) -> None:
        if self.held is not None and self._leaving is None:
            self._leaving = Leaving(f"worker died: {how}", str(self.me))
        lived = now - self._worker.started_at if self._worker is not None else 0
        self._step(role.WorkerDied(), now, out)
        self._worker = None
        self._killing = False
        if self._shutdown is None:
            wait = self._restarts.wait_after(lived)
            self._start_at = Instant(now + wait)
            out.append(act.Note("worker_exited", {"how": how, "restart_in_s": wait / NS_PER_S}))

    # -- requests of people --------------------------------------------------------------------------------

    def _on_switchover(self, asked: ev.SwitchoverAsked, now: Instant, out: list[act.Action]) -> None:
        def refuse(why: str) -> None:
            out.append(act.AnswerSwitchover(asked.request_id, False, why))

        if self.held is None or self.view is None:
            return  # the request is for whoever leads
        if not isinstance(self.role, role.Leader):
            return refuse(f"{self.me} is {role.name(self.role)}; try again when it leads and trades")
        if asked.target == self.me:
            return refuse(f"{self.me} leads already")
        target, why = choose_successor(self.view, self.me, asked.target)
        if target is None:
            return refuse(why)
        self._leaving = Leaving("switchover", asked.actor, target)
        self._step(role.SwitchoverRequested(), now, out)
        out.append(act.AnswerSwitchover(asked.request_id, True, f"handing over to {target}"))

    def _on_shutdown(self, actor: str, now: Instant, out: list[act.Action]) -> None:
        if self._shutdown_by is None:
            self._shutdown_by = Instant(now + self.timing.drain_timeout + self.rules.ttl)
        self._shutdown = actor
        self._start_at = None
        if isinstance(self.role, role.Leader) and self.view is not None:
            target, _ = choose_successor(self.view, self.me, None)
            if target is not None:
                self._leaving = Leaving("shutdown", actor, target)
                self._step(role.SwitchoverRequested(), now, out)
                return
        if self.held is not None and isinstance(self.role, role.Leader | role.Promoting):
            self._leaving = self._leaving or Leaving("shutdown", actor)
            self._step(role.LeaseLost("shutdown"), now, out)

    # -- etcd ----------------------------------------------------------------------------------------------

    def _pursue(self, now: Instant, out: list[act.Action]) -> None:
        """After every event: whatever is due and not under way."""
        if self._stopped:
            return
        if self.held is not None and self._renewing is None and self._renews and now >= self.held.next_renewal:
            self._renew(self.held, now, out)
        self._follow(out)
        if self._lead_op is None and now >= self._lead_retry_at:
            if self._owed is not None:
                token, why = self._owed
                self._lead_op = act.Resign(self._next(), token, why.reason, why.actor, why.successor)
                out.append(self._lead_op)
            else:
                self._campaign(now, out)
        if self._shutdown_by is None or self.held is not None:
            return
        # What etcd has not confirmed by then, a wait of the others replaces.
        if (self._owed is None and self._lead_op is None) or now >= self._shutdown_by:
            if self._worker is not None:
                if not self._killing:
                    self._kill("shutdown", now, out)
            else:
                self._stopped = True
                out.append(act.ShutDown())

    def _next(self) -> int:
        self._request += 1
        return self._request

    def _renew(self, held: Held, now: Instant, out: list[act.Action]) -> None:
        if self._lease_id is None:
            held.next_renewal = Instant(now + self.timing.retry)
            return
        held.renewal += 1
        held.next_renewal = Instant(now + self.rules.renew_interval)
        request = self._next()
        self._renewing = (request, now)
        out.append(act.Renew(request, held.term, held.attempt, held.renewal, self._lease_id))

    def _campaign_due(self) -> Instant | None:
        """From when this node may try to evict or acquire, by rule and by rank; None: not as things stand."""
        view, worker = self.view, self._worker
        if view is None or worker is None or worker.journal_id is None or self._shutdown is not None:
            return None
        if not isinstance(self.role, role.Standby) or self.never_lead or self._lease_id is None:
            return None
        if self._owed is not None or self.held is not None or self._lead_op is not None:
            return None
        if self._killing or self._behind_since is not None:
            return None
        if view.insync.mod_revision == 0:
            if view.tenure is not None:
                return None  # who held everything is not known any more; a person must say
        elif not view.insync.names(self.me, worker.journal_id):
            return None
        if view.leader is not None and view.leader.mod_revision == self._evicted:
            return None
        due = evict_from(view, self._seen) if view.leader is not None else acquire_from(view, self._seen)
        if due is None:
            return None
        place = rank(view, self.me)
        if view.leader is None and self._seen.absence is not None:
            due = max(due, self._seen.absence[1])
        wait = place * self.timing.rank_step
        successor = view.resigned.successor if view.ended_properly and view.resigned else None
        if place > 0 and successor is not None:
            wait += self.timing.successor_grace
        return max(Instant(due + wait), self._barren.until)

    @property
    def _must_prepare(self) -> bool:
        """Before an acquire, the worker has to confirm that it acknowledges nothing of the last term any more."""
        view, worker = self.view, self._worker
        return (
            worker is not None
            and view is not None
            and view.leader is None
            and view.tenure is not None
            and worker.prepared < view.tenure.token
        )

    def _campaign(self, now: Instant, out: list[act.Action]) -> None:
        due, view, worker = self._campaign_due(), self.view, self._worker
        if due is None or view is None or worker is None or worker.journal_id is None or self._lease_id is None:
            return
        if view.tenure is not None and self._must_prepare:
            # The stream is closed before the campaign: from then on no acknowledgement of the old term exists, so
            # the replication acknowledgement is itself a fence. Asked for early, in parallel with the wait by rank.
            if worker.asked_to_prepare < view.tenure.token:
                worker.asked_to_prepare = view.tenure.token
                out.append(act.TellPrepare(view.tenure.token))
            return
        if now < due:
            return
        if view.leader is not None:
            self._lead_op = act.Evict(self._next(), view.leader.mod_revision, view.leader.token, view.leader.node)
        else:
            self._attempt += 1
            self._sent_at[self._attempt] = now
            self._sent_at.pop(self._attempt - 8, None)
            self._note_vacancy(view)
            members = {n: j for n, j in view.insync.members.items() if view.tenure is None or n != view.tenure.node}
            members[self.me] = worker.journal_id
            self._lead_op = act.Acquire(
                self._next(),
                self._attempt,
                self._lease_id,
                view.tenure.token if view.tenure else Term(0),
                view.insync.mod_revision,
                members,
            )
        out.append(self._lead_op)

    def _on_answer(self, answered: ev.Answered, now: Instant, out: list[act.Action]) -> None:
        if self._renewing is not None and answered.request == self._renewing[0]:
            sent_at = self._renewing[1]
            self._renewing = None
            self._on_renewed(answered.answer, sent_at, now, out)
            return
        op = self._lead_op
        if op is None or op.request != answered.request:
            return
        self._lead_op = None
        self._lead_retry_at = Instant(0 if answered.answer is ev.Answer.DONE else now + self.timing.retry)
        match op:
            case act.Acquire() if answered.answer is ev.Answer.DONE:
                self._shown = self._highest = max(self._highest, Term(answered.revision))
                sent_at = self._sent_at[op.attempt]
                self._won(Term(answered.revision), op.attempt, sent_at, now, out, op=op)
            case act.Acquire() if self.view is not None:
                self._look_for_mine(self.view, now, out)  # the view may have overtaken the answer
            case act.Evict() if answered.answer is ev.Answer.DONE:
                self._evicted = op.mod_revision  # asking again would only be in the way of our acquire
            case act.Resign() if answered.answer is not ev.Answer.UNKNOWN:
                if self._owed is not None and self._owed[0] == op.token:
                    self._owed = None
            case _:
                pass  # the view will tell

    def _won(
        self,
        token: Term,
        attempt: int,
        sent_at: Instant,
        now: Instant,
        out: list[act.Action],
        *,
        op: act.Acquire | None = None,
    ) -> None:
        until = self.rules.act_until(sent_at)
        seen = self.view.insync if self.view else InSync()
        insync = seen if op is None else InSync(op.members, int(token))
        if not self._still_fit(token, insync) or now >= until - self.timing.warn_lead:
            self._owe_unused(token)
            return
        self.held = Held(token, attempt, 0, until, Instant(sent_at + self.rules.renew_interval))
        self._step(role.LeaseGranted(token, until), now, out)
        cause, actor = self._cause
        out.append(act.TellLead(token, insync, cause, actor, self._came_from))
        if self.view is not None and self.view.revision >= token:
            self._check_held(self.view, now, out)  # the view may have overtaken the answer

    def _note_vacancy(self, view: View) -> None:
        """Why there is one, for the record of the leadership that may come of it."""
        self._came_from = view.tenure.node if view.tenure else None
        if view.ended_properly and view.resigned is not None:
            self._cause = (view.resigned.reason, view.resigned.actor)
        else:
            self._cause = ("first start" if view.tenure is None else "leader key vanished", "")

    def _still_fit(self, token: Term, insync: InSync) -> bool:
        """Much may have happened since the acquire left: its worker may be dead or about to be, or its journal lost and
        replaced by an empty one, which must not lead in the name of the one that was elected."""
        worker = self._worker
        if worker is None or worker.journal_id is None or self._killing or self._shutdown is not None:
            return False
        if not isinstance(self.role, role.Standby) or token <= worker.highest_term:
            return False
        return insync.names(self.me, worker.journal_id)

    def _on_renewed(self, answer: ev.Answer, sent_at: Instant, now: Instant, out: list[act.Action]) -> None:
        held = self.held
        if held is None or isinstance(self.role, role.Fenced):
            return
        if answer is ev.Answer.REFUSED:
            self._lose("deposed", now, out)
        elif answer is ev.Answer.UNKNOWN:
            held.next_renewal = min(held.next_renewal, Instant(now + self.timing.retry // 2))
        else:
            held.act_until = max(held.act_until, self.rules.act_until(sent_at))
            self._step(role.LeaseRenewed(held.term, held.act_until), now, out)
