"""The worker's life and death, pauses, people's requests, and a changed etcd."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core.events import Answer
from cluster.core.ids import Instant, NodeId, Term
from cluster.core.lease import View
from cluster.core.ward import STABLE, STANDBY_PATIENCE
from tests.support.election_driver import (
    MEMBERS,
    MS,
    RULES,
    TIMING,
    Node,
    T,
    all_of,
    draining,
    fenced,
    key,
    leader,
    member,
    n2_leads,
    n2_resigned,
    one,
    own,
    promoting,
    quiet,
    standby,
    tenure,
    view,
)

# -- the worker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), [(promoting, "Promoting"), (leader, "Leader"), (draining, "Draining")])
def test_worker_exits_while_holding_then_the_term_is_resigned_at_once(make: Callable[[], Node], name: str) -> None:
    n = make()
    assert n.state == name
    out = n.feed(ev.WorkerExited("signal 9"))
    assert type(out[0]) is act.ClearPermit
    r = one(out, act.Resign)
    assert r.token == T
    if name == "Draining":
        assert (r.reason, r.successor) == ("switchover", "n3")
    else:
        assert r.reason == "worker died: signal 9"
    assert (n.state, n.permit) == ("Starting", None)


def test_worker_exits_while_fenced_then_that_is_proof_enough() -> None:
    n = fenced()
    r = one(n.feed(ev.WorkerExited("signal 9")), act.Resign)
    assert (r.token, r.reason) == (T, "gate says deposed")


def test_worker_is_started_again_with_a_back_off_that_grows_and_ends() -> None:
    n = standby()
    waits = []
    for _ in range(12):
        n.feed(ev.WorkerExited("exit 1"))
        died_at = n.now
        while not (started := all_of(n.run(1000 if len(waits) > 6 else 5, step=5), act.StartWorker)):
            pass
        waits.append((started[0].at - died_at) / MS)
        n.hello()
    assert waits[:4] == pytest.approx([50, 100, 200, 400], abs=6)
    assert waits[-1] == pytest.approx(10_000, abs=6)


def test_a_worker_that_lived_long_is_started_again_without_the_back_off_others_earned() -> None:
    n = standby()
    for _ in range(4):
        n.feed(ev.WorkerExited("exit 1"))
        n.run(500)
        n.hello()
    n.run(STABLE / MS, step=100)
    n.feed(ev.WorkerExited("exit 1"))
    one(n.run(51), act.StartWorker)


def test_a_worker_that_dies_right_after_each_promotion_is_restarted_ever_more_slowly() -> None:
    n = standby()
    for _ in range(4):
        n.feed(ev.WorkerExited("exit 1"))
        n.run(500)
        n.hello()
    a = one(n.feed(View(3, cluster_id=0xC1)), act.Acquire)
    n.answer(a, Answer.DONE, 8)
    n.feed(ev.WorkerReconciled(Term(8)))
    n.feed(ev.WorkerExited("exit 1"))
    assert not all_of(n.run(700), act.StartWorker), "a strategy that cannot live must not take every node down in turn"
    one(n.run(150), act.StartWorker)


def test_hung_leader_is_fenced_killed_and_a_late_renewal_does_not_grant_again() -> None:
    n = leader()
    r = one(n.run(150), act.Renew)
    out = n.run(120, beats=False)
    assert quiet(out)
    out = n.run(300, beats=False)
    first = next(i for i, a in enumerate(out) if not isinstance(a, act.Note))
    assert type(out[first]) is act.ClearPermit
    assert one(out, act.KillWorker).reason == "hung"
    assert n.state == "Fenced"
    assert quiet(n.answer(r, Answer.DONE, 101))
    assert n.permit is None
    assert not all_of(n.run(500, beats=False), act.KillWorker | act.Resign), "killed once; not resigned until dead"
    assert one(n.feed(ev.WorkerExited("signal 9")), act.Resign).reason == "worker hung"


def test_hang_is_counted_from_the_last_heartbeat() -> None:
    n = leader()
    assert not all_of(n.tick(10, silent_for=250), act.KillWorker)
    one(n.tick(1, silent_for=250.001), act.KillWorker)


def test_hung_standby_is_given_longer_then_killed_and_does_not_campaign_meanwhile() -> None:
    n = standby()
    n.feed(n2_leads())
    n.feed(ev.WorkerPrepared(Term(90)))
    patience = STANDBY_PATIENCE * 250
    assert not all_of(n.tick(1, silent_for=patience), act.KillWorker)
    one(n.tick(1, silent_for=patience + 1), act.KillWorker)
    assert not all_of(n.feed(n2_resigned()) + n.run(100, beats=False), act.Acquire)


def test_worker_that_never_says_hello_is_killed_and_tried_again() -> None:
    n = Node()
    n.tick()
    out: list[act.Action] = []
    for _ in range(205):
        out += n.tick(100, silent_for=None)
    assert one(out, act.KillWorker).reason == "did not start in time"
    n.feed(ev.WorkerExited("signal 9"))
    one(n.run(60), act.StartWorker)


def test_fenced_worker_that_does_not_confirm_is_killed_and_only_then_the_term_resigned() -> None:
    n = fenced()
    out = n.run(150)
    assert one(out, act.KillWorker).reason == "did not confirm that it stopped"
    assert not all_of(out, act.Resign)
    one(n.feed(ev.WorkerExited("signal 9")), act.Resign)


def test_fenced_near_the_end_of_the_permit_the_worker_has_no_longer_than_that() -> None:
    n = leader()
    n.run(760)
    assert n.state == "Fenced"
    end = n.e.held.act_until
    one(n.run((end - n.now) / MS), act.KillWorker)


def test_a_second_hello_and_a_hello_without_a_worker_change_nothing() -> None:
    n = standby()
    assert quiet(n.hello("other-j"))
    assert n.e._worker is not None
    assert n.e._worker.journal_id == "n1-j"
    m = Node()
    assert quiet(m.hello())
    assert m.state == "Starting"


def test_news_of_other_terms_from_the_worker_changes_nothing() -> None:
    other = Term(T - 1)
    for n in (promoting(), leader(), draining(), fenced()):
        before = n.state
        for e in (
            ev.WorkerReconciled(other),
            ev.WorkerSettled(other),
            ev.WorkerStopped(other),
            ev.WorkerAsksToStepDown(other, "x"),
        ):
            assert quiet(n.feed(e))
        assert n.state == before


def test_news_that_comes_too_early_or_too_late_changes_nothing() -> None:
    assert quiet(promoting().feed(ev.WorkerSettled(T)))
    assert quiet(leader().feed(ev.WorkerStopped(T)))
    assert quiet(leader().feed(ev.WorkerReconciled(T)))
    assert quiet(draining().feed(ev.WorkerReconciled(T)))
    assert quiet(fenced().feed(ev.WorkerReconciled(T)))
    assert quiet(fenced().feed(ev.WorkerSettled(T)))
    assert quiet(fenced().feed(ev.WorkerAsksToStepDown(T, "again")))
    m = Node()
    assert quiet(m.feed(ev.WorkerPrepared(T)))


def test_a_standby_follows_each_leader_once_and_never_one_it_has_closed_to() -> None:
    n = standby()
    one(n.feed(n2_leads()), act.TellFollow)
    assert quiet(n.feed(n2_leads(91, leader=key(90, mod=91))))
    n.feed(ev.WorkerPrepared(Term(95)))
    assert quiet(n.feed(n2_leads(94, 94)))
    one(n.feed(n2_leads(97, 97)), act.TellFollow)


def test_a_worker_that_was_restarted_is_told_whom_to_follow_again() -> None:
    n = standby()
    n.feed(n2_leads())
    n.feed(ev.WorkerExited("exit 1"))
    assert one(n.restart_worker(), act.TellFollow).term == 90


# -- pauses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [promoting, leader, draining])
def test_pause_detected_drops_the_permit_before_anything_else(make: Callable[[], Node]) -> None:
    n = make()
    r = all_of(n.run(200), act.Renew)[-1]
    out = n.answer(r, Answer.DONE, 101, after=401)
    assert type(out[0]) is act.ClearPermit
    assert not all_of(out, act.WritePermit)
    assert all_of(out, act.Note)[-1].fields == {"gap_s": 0.401}
    assert n.state == "Fenced"


def test_pause_within_the_budget_costs_nothing() -> None:
    n = leader()
    assert not all_of(n.tick(400), act.ClearPermit)
    assert n.state == "Leader"


def test_paused_standby_only_notes_it() -> None:
    n = standby()
    n.feed(n2_leads())
    out = n.tick(5000)
    assert [a.event for a in all_of(out, act.Note)] == ["paused"]
    assert not all_of(out, act.KillWorker)


@pytest.mark.parametrize(
    ("make", "gap"), [(leader, 130), (leader, 260), (leader, 390), (standby, 390), (standby, 9000)]
)
def test_both_processes_paused_then_woken_the_worker_is_not_called_hung_at_once(
    make: Callable[[], Node], gap: float
) -> None:
    n = make()
    limit = 250 if make is leader else STANDBY_PATIENCE * 250
    n.tick(20, silent_for=10)
    beat = n.now - 10 * MS
    slept_until = n.now + round(gap * MS)
    out = n.feed(ev.Tick(Instant(beat)), gap)
    while n.now < slept_until + (limit - 30) * MS:
        out += n.feed(ev.Tick(Instant(beat)), 20)
    assert not all_of(out, act.KillWorker)
    out = n.feed(ev.Tick(Instant(beat)), 30)
    assert one(out, act.KillWorker).reason == "hung", "but it is, when it goes on being silent"


def test_heartbeat_between_last_tick_and_the_pause_does_not_hide_the_pause() -> None:
    n = leader()
    n.tick(20)
    beat = n.now + 8 * MS  # it beat once more; then both were paused
    assert not all_of(n.feed(ev.Tick(Instant(beat)), 300), act.KillWorker)


def test_paused_keeper_whose_worker_went_on_finds_nothing_wrong_with_it() -> None:
    n = leader()
    n.tick(300, silent_for=5)
    assert not all_of(n.tick(20, silent_for=25), act.KillWorker)


def test_keeper_that_is_always_late_still_finds_a_hung_worker() -> None:
    n = leader()
    beat = n.now
    out: list[act.Action] = []
    for _ in range(4):
        out += n.feed(ev.Tick(Instant(beat)), 140)
    assert one(out, act.KillWorker).reason == "hung"


def test_leader_woken_after_its_permit_ended_leaves_the_worker_time_to_confirm() -> None:
    n = leader()
    beat = n.now
    out = n.feed(ev.Tick(Instant(beat)), 3000)
    assert type(out[0]) is act.ClearPermit
    assert not all_of(n.run(90), act.KillWorker)
    one(n.feed(ev.WorkerStopped(T)), act.Resign)


# -- switchover ---------------------------------------------------------------------------------------------------


def test_switchover_to_a_named_target() -> None:
    n = leader()
    out = n.feed(ev.SwitchoverAsked(NodeId("n3"), "ann", "r1"))
    assert [type(a) for a in out[:2]] == [act.ClearPermit, act.TellDrain]
    assert one(out, act.TellDrain) == act.TellDrain(T, NodeId("n3"))
    assert one(out, act.AnswerSwitchover) == act.AnswerSwitchover("r1", True, "handing over to n3")
    assert n.permit is None
    r = one(n.feed(ev.WorkerSettled(T)), act.Resign)
    assert (r.token, r.reason, r.actor, r.successor) == (T, "switchover", "ann", "n3")
    assert n.state == "Standby"
    n.answer(r, Answer.DONE, 110)
    assert not all_of(n.run(300), act.Renew)


def test_switchover_without_a_target_takes_the_best_in_sync() -> None:
    n = leader()
    assert one(n.feed(ev.SwitchoverAsked(None, "ann", "r1")), act.TellDrain).successor == "n3"


@pytest.mark.parametrize(
    ("target", "keys", "why"),
    [
        ("n9", {}, "no live member is called 'n9' (members: n1, n2, n3)"),
        ("n2", {}, "n2 is not in sync; wait until it has caught up"),
        ("n1", {}, "n1 leads already"),
        ("n3", {"members": {**MEMBERS, NodeId("n3"): member("n3", never_lead=True)}}, "n3 is tagged never_lead"),
        ("n3", {"members": {**MEMBERS, NodeId("n3"): member("n3", ready=False)}}, "n3 is not ready"),
        (None, {"members": {}}, "no other node is in sync and ready to lead"),
    ],
)
def test_switchover_that_cannot_be_is_refused_and_the_leader_goes_on(
    target: str | None, keys: Mapping[str, object], why: str
) -> None:
    n = leader()
    n.feed(own(101, **keys))
    out = n.feed(ev.SwitchoverAsked(NodeId(target) if target else None, "ann", "r1"))
    assert out == [act.AnswerSwitchover("r1", False, why)]
    assert n.state == "Leader"
    assert n.permit is not None


@pytest.mark.parametrize("make", [promoting, draining, fenced])
def test_switchover_is_refused_by_who_holds_the_lease_and_does_not_trade(make: Callable[[], Node]) -> None:
    n = make()
    out = n.feed(ev.SwitchoverAsked(NodeId("n3"), "ann", "r2"))
    assert one(out, act.AnswerSwitchover) == act.AnswerSwitchover(
        "r2", False, f"n1 is {n.state.lower()}; try again when it leads and trades"
    )


def test_switchover_is_left_unanswered_by_who_does_not_lead() -> None:
    n = standby()
    assert quiet(n.feed(ev.SwitchoverAsked(None, "ann", "r1")))
    n.feed(n2_leads())
    assert quiet(n.feed(ev.SwitchoverAsked(None, "ann", "r1")))


def test_drain_timeout_fences_and_still_names_the_successor() -> None:
    n = draining()
    out: list[act.Action] = []
    while n.state == "Draining":
        out = n.run(10)
        for r in all_of(out, act.Renew):
            n.answer(r, Answer.DONE, 101, after=0)
    assert one(out, act.TellStop).term == T
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    assert (r.reason, r.successor) == ("switchover", "n3")


def test_worker_that_hangs_while_draining_is_killed() -> None:
    n = draining()
    one(n.run(300, beats=False), act.KillWorker)
    assert one(n.feed(ev.WorkerExited("signal 9")), act.Resign).reason == "worker hung"


def test_worker_asks_to_step_down() -> None:
    n = leader()
    out = n.feed(ev.WorkerAsksToStepDown(T, "gate says deposed"))
    assert type(out[0]) is act.ClearPermit
    assert one(out, act.TellStop).reason == "gate says deposed"


# -- shutdown -----------------------------------------------------------------------------------------------------


def test_shutdown_while_leading_hands_over_and_ends() -> None:
    n = leader()
    out = n.feed(ev.ShutdownAsked("systemd"))
    assert [type(a) for a in out[:2]] == [act.ClearPermit, act.TellDrain]
    assert one(out, act.TellDrain).successor == "n3"
    r = one(n.feed(ev.WorkerSettled(T)), act.Resign)
    assert (r.reason, r.actor, r.successor) == ("shutdown", "systemd", "n3")
    assert one(n.answer(r, Answer.DONE, 110), act.KillWorker).reason == "shutdown"
    assert not all_of(n.run(100), act.KillWorker)
    assert n.feed(ev.WorkerExited("signal 9"))[-1] == act.ShutDown()
    assert n.tick() == []
    assert n.e.wake_at() is None


@pytest.mark.parametrize("make", [leader, promoting])
def test_shutdown_with_nobody_to_hand_over_to_stops_then_resigns(make: Callable[[], Node]) -> None:
    n = make()
    n.feed(own(101, members={}))
    out = n.feed(ev.ShutdownAsked("systemd"))
    assert [type(a) for a in out[:2]] == [act.ClearPermit, act.TellStop]
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    assert (r.reason, r.successor) == ("shutdown", None)
    one(n.answer(r, Answer.DONE, 110), act.KillWorker)


def test_shutdown_while_draining_finishes_the_drain_and_ends() -> None:
    n = draining()
    n.feed(ev.ShutdownAsked("systemd"))
    r = one(n.feed(ev.WorkerSettled(T)), act.Resign)
    assert r.successor == "n3"
    one(n.answer(r, Answer.DONE, 110), act.KillWorker)


def test_shutdown_of_a_standby_and_before_the_worker_runs() -> None:
    n = standby()
    one(n.feed(ev.ShutdownAsked("systemd")), act.KillWorker)
    assert n.feed(ev.WorkerExited("signal 9"))[-1] == act.ShutDown()
    m = Node()
    assert m.feed(ev.ShutdownAsked("systemd")) == [act.ShutDown()]
    k = standby()
    k.feed(ev.WorkerExited("exit 1"))
    assert k.feed(ev.ShutdownAsked("systemd")) == [act.ShutDown()]


def test_shutdown_does_not_campaign_any_more() -> None:
    n = standby()
    n.feed(n2_leads())
    n.feed(ev.WorkerPrepared(Term(90)))
    n.feed(ev.ShutdownAsked("systemd"))
    assert not all_of(n.feed(n2_resigned()) + n.run(500), act.Acquire)


def test_shutdown_ends_even_when_etcd_never_answers() -> None:
    n = leader()
    n.feed(own(101, members={}))
    n.feed(ev.ShutdownAsked("systemd"))
    asked_at = n.now
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    while not all_of(n.history, act.KillWorker):
        n.answer(r, Answer.UNKNOWN)
        r = next(iter(all_of(n.run(25), act.Resign)), r)
        assert n.now < asked_at + 2100 * MS
    assert n.now >= asked_at + 2000 * MS
    assert n.feed(ev.WorkerExited("signal 9"))[-1] == act.ShutDown()


# -- an etcd that is not the one it was -----------------------------------------------------------------------------


def test_etcd_restored_to_a_lower_revision_stops_with_the_remedy() -> None:
    n = Node()
    n.tick()
    n.feed(ev.EtcdLease(11))
    n.feed(view(50))
    out = n.hello(highest=80)
    assert not all_of(out, act.Acquire | act.StopNode), "a watch may lag: wait first"
    out = n.run(990)
    assert not all_of(out, act.Acquire | act.StopNode)
    out = n.run(60)
    assert [type(a) for a in out[:3]] == [act.ClearPermit, act.KillWorker, act.StopNode]
    why = one(out, act.StopNode).why
    for part in ("tenure 50", "term 80", "stop all nodes", "`baton fence rebase` on each", "--lead"):
        assert part in why
    assert n.tick() == []
    assert n.e.wake_at() is None


def test_a_watch_that_lags_behind_the_journal_and_catches_up_stops_nothing() -> None:
    n = Node()
    n.tick()
    n.feed(ev.EtcdLease(11))
    n.feed(n2_leads(50, 50))
    n.hello(highest=80)
    n.run(900)
    n.feed(n2_leads(81, 80))
    assert not all_of(n.run(300), act.StopNode)
    assert n.state == "Standby"


def test_the_answer_to_our_own_acquire_counts_as_seen_when_no_view_of_it_has_come() -> None:
    n = promoting()
    n.feed(ev.WorkerReconciled(T))
    r = one(n.feed(ev.WorkerExited("signal 9")), act.Resign)
    n.answer(r, Answer.UNKNOWN)
    n.run(60)
    n.hello(highest=T)
    assert not all_of(n.run(3000), act.StopNode)


def test_another_etcd_cluster_stops_at_once() -> None:
    n = standby()
    n.feed(ev.WorkerExited("exit 1"))
    n.run(60)
    n.feed(view(90))
    out = n.hello(cluster_id=0xBAD)
    why = one(out, act.StopNode).why
    for part in ("c1", "bad", "etcd.endpoints", "`baton fence rebase` on each"):
        assert part in why
    assert n.feed(view(95)) == []


def test_a_journal_that_knows_no_etcd_yet_belongs_to_any() -> None:
    n = Node()
    n.tick()
    n.feed(view(90))
    assert not all_of(n.hello(cluster_id=0), act.StopNode)


# -- when to wake -----------------------------------------------------------------------------------------------------


def test_wakes_for_the_next_renewal_then_for_the_deadline() -> None:
    n = leader()
    held = n.e.held
    assert held is not None
    assert n.e.wake_at() == held.next_renewal
    n.run(150)
    assert n.e.wake_at() == held.act_until - TIMING.warn_lead


def test_wakes_to_kill_to_end_a_drain_and_to_start() -> None:
    n = fenced()
    assert n.e.wake_at() == n.e._kill_at
    d = draining()
    d.run(150)
    assert d.e._drain_until is not None
    assert d.e.wake_at() <= d.e._drain_until
    s = standby()
    s.feed(ev.WorkerExited("exit 1"))
    assert s.e.wake_at() == s.now + TIMING.restart_min


def test_does_not_wake_for_a_kill_that_was_ordered() -> None:
    n = fenced()
    one(n.run(150), act.KillWorker)
    assert n.e.wake_at() is None


def test_wakes_for_a_due_campaign_but_not_while_the_worker_prepares() -> None:
    n = standby()
    n.feed(view(91, tenure=tenure(90)))
    gone_at = n.now
    assert n.e.wake_at() is None
    n.feed(ev.WorkerPrepared(Term(90)))
    assert n.e.wake_at() >= gone_at + RULES.ttl


def test_wakes_to_repeat_a_resignation() -> None:
    n = fenced()
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    n.answer(r, Answer.UNKNOWN)
    assert n.e.wake_at() == n.now + TIMING.retry


def test_a_standby_of_a_living_leader_wakes_when_it_might_evict() -> None:
    n = standby()
    n.feed(n2_leads())
    seen_at = n.now
    assert n.e.last_renewal_seen() == seen_at
    assert seen_at + RULES.ttl <= n.e.wake_at() <= seen_at + RULES.ttl + 3 * TIMING.rank_step
