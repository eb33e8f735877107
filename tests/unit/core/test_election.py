"""To win a term, to keep it, to lose it: each situation named, its outcome read from the actions.

The rest of the machine: `test_election_worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core import role
from cluster.core.events import Answer
from cluster.core.ids import Instant, JournalId, NodeId, Term
from cluster.core.lease import InSync, View
from tests.support.election_driver import (
    MEMBERS,
    MS,
    RULES,
    TIMING,
    Node,
    T,
    all_of,
    campaigning,
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
    resigned,
    standby,
    tenure,
    view,
)

# -- to lead ----------------------------------------------------------------------------------------------------


def test_a_new_cluster_is_led_by_whoever_asks_first() -> None:
    n = standby()
    a = one(n.feed(View(3, cluster_id=0xC1)), act.Acquire)
    assert (a.tenure_seen, a.insync_seen, dict(a.members), a.lease_id) == (0, 0, {"n1": "n1-j"}, 11)
    sent_at = n.now
    lead = one(n.answer(a, Answer.DONE, 8, after=30), act.TellLead)
    assert (lead.term, lead.insync, lead.came_from) == (8, InSync({NodeId("n1"): JournalId("n1-j")}, 8), None)
    out = n.feed(ev.WorkerReconciled(Term(8)))
    assert [type(a) for a in out[:2]] == [act.WritePermit, act.TellGranted]
    assert n.permit is not None
    assert (n.permit.token, n.permit.act_until) == (8, sent_at + 800 * MS)


@pytest.mark.parametrize("missing", ["lease", "hello", "view"])
def test_no_campaign_before_lease_worker_and_view_are_there(missing: str) -> None:
    n = Node()
    n.tick()
    steps = {
        "lease": lambda: n.feed(ev.EtcdLease(11)),
        "hello": n.hello,
        "view": lambda: n.feed(View(3, cluster_id=0xC1)),
    }
    last = steps.pop(missing)
    for step in steps.values():
        step()
    assert not all_of(n.run(100), act.Acquire)
    one(last(), act.Acquire)


def test_no_campaign_with_the_lease_gone() -> None:
    n = standby()
    n.feed(ev.EtcdLease(None))
    assert quiet(n.feed(View(3, cluster_id=0xC1)))
    one(n.feed(ev.EtcdLease(12)), act.Acquire)


def test_one_that_never_leads_neither_acquires_nor_evicts() -> None:
    n = standby(never_lead=True)
    n.feed(n2_leads())
    n.feed(ev.WorkerPrepared(Term(90)))
    assert not all_of(n.run(3000), act.Evict)
    n.feed(n2_resigned())
    assert not all_of(n.run(3000), act.Acquire)


@pytest.mark.parametrize(
    "insync",
    [
        InSync({NodeId("n2"): JournalId("n2-j")}, 60),
        InSync({NodeId("n1"): JournalId("before-the-disk-was-lost")}, 60),
        InSync(),  # a tenure, and no key that says who held everything: a person must say
    ],
)
def test_who_is_not_known_to_hold_everything_does_not_campaign(insync: InSync) -> None:
    n = standby()
    n.feed(n2_leads(insync=insync))
    assert not all_of(n.run(2000), act.Evict)
    n.feed(n2_resigned(insync=insync))
    assert not all_of(n.run(2000), act.Acquire)


def test_the_stream_is_closed_before_the_campaign() -> None:
    n = standby()
    assert one(n.feed(n2_leads()), act.TellFollow) == act.TellFollow(NodeId("n2"), Term(90))
    out = n.feed(n2_resigned())
    assert one(out, act.TellPrepare).term == 90
    assert not all_of(out + n.run(200), act.Acquire)
    assert len(all_of(n.history, act.TellPrepare)) == 1
    a = one(n.feed(ev.WorkerPrepared(Term(90))), act.Acquire)
    assert (a.tenure_seen, a.insync_seen) == (90, 60)
    assert set(a.members) == {"n1", "n3"}, "the node that led last has to catch up first"


def test_a_key_that_merely_vanished_is_waited_for_a_ttl_since_absence() -> None:
    n = standby()
    n.feed(n2_leads())
    n.run(500)
    n.feed(view(91, tenure=tenure(90)))
    gone_at = n.now
    n.feed(ev.WorkerPrepared(Term(90)))
    out = n.run(1000 - 1.001)
    assert n.now < gone_at + RULES.ttl
    assert not all_of(out, act.Acquire)
    one(n.run(20), act.Acquire)
    assert n.e._sent_at[1] >= gone_at + RULES.ttl


def test_the_worse_ranked_waits_for_the_better() -> None:
    n = standby()
    n.feed(n2_leads(members={**MEMBERS, NodeId("n3"): member("n3", priority=5)}))
    n.feed(ev.WorkerPrepared(Term(90)))
    n.feed(n2_resigned(members={**MEMBERS, NodeId("n3"): member("n3", priority=5)}))
    seen_at = n.now
    one(n.run(30), act.Acquire)
    assert seen_at + TIMING.rank_step <= n.e._sent_at[1] <= seen_at + TIMING.rank_step + MS


def test_the_others_leave_time_to_the_successor_asked_for_and_none_to_one_that_is_gone() -> None:
    for alive in (True, False):
        n = standby()
        members = MEMBERS if alive else {k: m for k, m in MEMBERS.items() if k != "n3"}
        n.feed(n2_leads(members=members))
        n.feed(ev.WorkerPrepared(Term(90)))
        out = n.feed(n2_resigned(resigned=resigned(90, successor="n3"), members=members))
        assert bool(all_of(out, act.Acquire)) != alive
        if alive:
            assert not all_of(n.run(150), act.Acquire)
            one(n.run(30), act.Acquire)


def test_a_silent_leader_is_evicted_after_its_ttl_and_not_before() -> None:
    n = standby()
    n.feed(n2_leads())
    n.run(600)
    n.feed(n2_leads(91, leader=key(90, mod=91)))
    renewed_at = n.now
    assert not all_of(n.run(990), act.Evict)
    out = n.run(60)
    e = one(out, act.Evict)
    assert (e.mod_revision, e.token, e.node) == (91, 90, "n2")
    assert n.now >= renewed_at + RULES.ttl


def test_a_done_eviction_is_not_asked_for_again_while_the_view_lags() -> None:
    n = standby()
    n.feed(n2_leads())
    n.feed(ev.WorkerPrepared(Term(90)))
    e = one(n.run(1100), act.Evict)
    assert quiet(n.answer(e, Answer.DONE, 91))
    assert quiet(n.run(500))
    one(n.feed(view(91, tenure=tenure(90), resigned=resigned(90, "evicted"))), act.Acquire)


def test_a_refused_eviction_is_tried_again_only_after_a_while() -> None:
    n = standby()
    n.feed(n2_leads())
    e = one(n.run(1100), act.Evict)
    assert quiet(n.answer(e, Answer.REFUSED))
    assert quiet(n.tick(5))
    one(n.run(30), act.Evict)


def test_one_leadership_transaction_at_a_time() -> None:
    n, a = campaigning()
    assert not all_of(n.run(500), act.Acquire | act.Evict | act.Resign)
    n.answer(a, Answer.REFUSED)
    one(n.run(30), act.Acquire)


def test_why_there_was_a_vacancy_goes_to_the_new_leader() -> None:
    n, a = campaigning()
    lead = one(n.answer(a, Answer.DONE, T), act.TellLead)
    assert (lead.cause, lead.actor, lead.came_from) == ("switchover", "ann", "n2")


# -- the answer to an acquire -----------------------------------------------------------------------------------


def test_lost_acquire_answer_then_own_key_found_leads_from_that_attempts_own_sending() -> None:
    n, a = campaigning()
    sent_at = n.now
    n.answer(a, Answer.UNKNOWN, after=200)
    lead = one(n.feed(own(), after=5), act.TellLead)
    assert lead.insync.mod_revision == T
    n.feed(ev.WorkerReconciled(T))
    assert n.permit == role._grant(T, Instant(sent_at + 800 * MS))


def test_own_key_in_view_before_the_answer_waits_for_the_answer() -> None:
    n, a = campaigning()
    assert quiet(n.feed(own()))
    assert n.state == "Standby"
    one(n.answer(a, Answer.DONE, T), act.TellLead)


def test_own_key_in_view_then_answer_unknown_is_adopted_at_once() -> None:
    n, a = campaigning()
    n.feed(own())
    one(n.answer(a, Answer.UNKNOWN), act.TellLead)


def test_second_attempt_refused_because_the_first_was_carried_out_late_counts_from_the_first() -> None:
    n, first = campaigning()
    sent_at = n.now
    n.answer(first, Answer.UNKNOWN, after=100)
    second = one(n.run(30), act.Acquire)
    assert second.attempt == 2
    n.feed(own())
    one(n.answer(second, Answer.REFUSED, after=50), act.TellLead)
    n.feed(ev.WorkerReconciled(T))
    assert n.permit is not None
    assert n.permit.act_until == sent_at + 800 * MS


def test_terms_that_end_before_they_could_trade_are_tried_again_ever_more_slowly() -> None:
    """The gate, say, has seen a higher token: each try would burn a token and start the next."""
    n, a = campaigning()
    token, waits = T, []
    for _ in range(6):
        n.answer(a, Answer.DONE, token)
        n.feed(ev.WorkerAsksToStepDown(token, "gate: it has seen a higher token"))
        resign = one(n.feed(ev.WorkerStopped(token)), act.Resign)
        ended = n.now
        n.answer(resign, Answer.DONE, token + 1)
        alone = {"members": {NodeId("n1"): member("n1")}, "insync": InSync({NodeId("n1"): JournalId("n1-j")}, token)}
        n.feed(view(token + 1, tenure=tenure(token, "n1"), resigned=resigned(token), **alone))
        n.feed(ev.WorkerPrepared(token))
        while not isinstance(a := n.history[-1], act.Acquire):
            n.tick(5)
        token = Term(token + 10)
        waits.append((n.now - ended) / MS)
    assert waits[0] >= 50 and all(later >= 1.9 * earlier for earlier, later in pairwise(waits)), waits


def test_acquire_answered_after_ttl_is_given_back_unused() -> None:
    n, a = campaigning()
    n.run(1200)
    out = n.answer(a, Answer.DONE, T)
    assert one(out, act.Resign).token == T
    assert not all_of(out, act.TellLead)
    assert n.state == "Standby"


def test_own_key_found_after_its_time_is_given_back_unused() -> None:
    n, a = campaigning()
    n.run(790)
    n.answer(a, Answer.UNKNOWN)
    out = n.feed(own()) + n.run(25)
    assert one(out, act.Resign).token == T
    assert not all_of(out, act.TellLead)


def test_own_key_of_an_attempt_no_longer_remembered_is_given_back_unused() -> None:
    n, a = campaigning()
    for _ in range(9):
        n.answer(a, Answer.REFUSED)
        a = one(n.run(25), act.Acquire)
    n.answer(a, Answer.UNKNOWN)
    out = n.feed(own(leader=key(T, "n1", attempt=1))) + n.run(25)
    assert one(out, act.Resign).token == T
    assert not all_of(out, act.TellLead)


def test_worker_that_died_while_its_acquire_was_under_way_means_given_back_unused() -> None:
    n, a = campaigning()
    n.feed(ev.WorkerExited("signal 11"))
    assert one(n.answer(a, Answer.DONE, T), act.Resign).token == T
    assert n.state == "Starting"


def test_worker_being_killed_while_its_acquire_was_under_way_does_not_lead() -> None:
    n, a = campaigning(timing=replace(TIMING, hang_timeout=50 * MS))
    one(n.run(300, beats=False), act.KillWorker)
    out = n.answer(a, Answer.DONE, T)
    assert not all_of(out, act.TellLead)
    assert one(out, act.Resign).token == T


def test_worker_that_comes_back_with_another_journal_does_not_lead_in_the_name_of_the_lost_one() -> None:
    n, a = campaigning()
    n.feed(ev.WorkerExited("journal corrupt"))
    n.restart_worker("n1-j-new")
    out = n.answer(a, Answer.DONE, T)
    assert one(out, act.Resign).token == T
    assert not all_of(out, act.TellLead)


def test_worker_that_comes_back_with_the_same_journal_may_lead_with_it() -> None:
    n, a = campaigning()
    n.feed(ev.WorkerExited("signal 9"))
    n.restart_worker()
    one(n.answer(a, Answer.DONE, T), act.TellLead)


def test_a_token_not_above_what_the_journal_has_seen_does_not_lead() -> None:
    n, a = campaigning()
    n.feed(ev.WorkerExited("signal 9"))
    n.run(60)
    n.hello(highest=T)
    assert one(n.answer(a, Answer.DONE, T), act.Resign).token == T


def test_shutdown_asked_while_an_acquire_is_under_way_gives_it_back_and_ends() -> None:
    n, a = campaigning()
    assert quiet(n.feed(ev.ShutdownAsked("systemd")))
    r = one(n.answer(a, Answer.DONE, T), act.Resign)
    one(n.answer(r, Answer.DONE, 101), act.KillWorker)
    one(n.feed(ev.WorkerExited("signal 9")), act.ShutDown)


def test_view_that_overtook_the_answer_and_shows_the_key_gone_fences_before_any_permit() -> None:
    n, a = campaigning()
    gone = view(T + 1, tenure=tenure(T, "n1"), resigned=resigned(90))
    assert quiet(n.feed(gone))
    out = n.answer(a, Answer.DONE, T)
    assert [type(x) for x in out if not isinstance(x, act.Note)] == [act.TellLead, act.ClearPermit, act.TellStop]
    assert not all_of(out + n.run(50), act.Resign), "not before the worker has stopped"
    assert one(n.feed(ev.WorkerStopped(T)), act.Resign).token == T


@pytest.mark.parametrize("answer", [Answer.UNKNOWN, Answer.REFUSED])
def test_own_tenure_found_without_its_key_is_resigned_so_that_nobody_waits(answer: Answer) -> None:
    n, a = campaigning()
    n.feed(view(T + 1, tenure=tenure(T, "n1"), resigned=resigned(90)))
    r = all_of(n.answer(a, answer) + n.run(30), act.Resign)
    assert [x.token for x in r] == [T]


def test_an_answer_to_a_request_that_is_over_changes_nothing() -> None:
    n, a = campaigning()
    n.answer(a, Answer.REFUSED)
    assert quiet(n.answer(a, Answer.DONE, T))
    assert quiet(n.feed(ev.Answered(999, Answer.DONE, T)))
    assert n.state == "Standby"


# -- renewals -----------------------------------------------------------------------------------------------------


def test_a_renewal_moves_the_end_from_when_it_was_sent() -> None:
    n = leader()
    r = one(n.run(150), act.Renew)
    assert (r.token, r.renewal, r.lease_id, r.attempt) == (T, 1, 11, 1)
    sent_at = n.e._renewing[1]
    out = n.answer(r, Answer.DONE, 101, after=90)
    assert one(out, act.WritePermit).permit == role._grant(T, Instant(sent_at + 800 * MS))


def test_renewals_go_on_while_promoting_and_draining() -> None:
    for n in (promoting(), draining()):
        r = one(n.run(200), act.Renew)
        before = n.e.held.act_until
        out = n.answer(r, Answer.DONE, 101)
        assert not all_of(out, act.WritePermit)
        assert n.e.held.act_until > before


def test_one_renewal_at_a_time() -> None:
    n = leader()
    assert len(all_of(n.run(700), act.Renew)) == 1


def test_renew_refused_drops_the_permit_first_and_tells_after() -> None:
    n = leader()
    r = one(n.run(200), act.Renew)
    out = n.answer(r, Answer.REFUSED)
    assert [type(a) for a in out[:2]] == [act.ClearPermit, act.TellStop]
    assert one(out, act.TellStop).reason == "deposed"
    assert not all_of(out, act.Resign)
    r2 = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    assert (r2.token, r2.reason, n.state) == (T, "deposed", "Standby")


def test_renew_unknown_changes_nothing_and_is_tried_again_soon() -> None:
    n = leader()
    r = one(n.run(150), act.Renew)
    permit = n.permit
    assert quiet(n.answer(r, Answer.UNKNOWN, after=100))
    assert (n.state, n.permit) == ("Leader", permit)
    again = one(n.run(20), act.Renew)
    assert again.renewal == 2


def test_silence_from_etcd_ends_the_permit_a_little_before_its_end() -> None:
    n = leader()
    end = n.permit.act_until
    out: list[act.Action] = []
    while n.state == "Leader":
        out = n.run(1)
        for r in all_of(out, act.Renew):
            n.answer(r, Answer.UNKNOWN, after=0)
    assert end - TIMING.warn_lead <= n.now <= end - TIMING.warn_lead + MS
    assert type(out[0]) is act.ClearPermit
    assert not all_of(n.run(100), act.Renew), "a leader that cannot be stopped must at least lose its key"


def test_deadline_while_promoting_or_draining_fences_too() -> None:
    for n in (promoting(), draining()):
        n.run(790)
        assert n.state == "Fenced"


def test_a_renewal_confirmed_after_the_deadline_comes_too_late() -> None:
    n = leader()
    r = one(n.run(780), act.Renew)
    assert n.state == "Fenced"
    assert not all_of(n.answer(r, Answer.DONE, 101), act.WritePermit)
    assert n.permit is None


def test_a_lost_etcd_lease_stops_renewals_but_not_the_permit_until_its_end() -> None:
    n = leader()
    n.feed(ev.EtcdLease(None))
    assert not all_of(n.run(300), act.Renew)
    assert n.state == "Leader"
    n.feed(ev.EtcdLease(12))
    assert one(n.run(30), act.Renew).lease_id == 12


def test_without_a_new_etcd_lease_the_deadline_fences() -> None:
    n = leader()
    n.feed(ev.EtcdLease(None))
    n.run(790)
    assert n.state == "Fenced"


def test_an_answer_of_the_last_term_does_not_touch_the_next() -> None:
    n = leader()
    r = one(n.run(200), act.Renew)
    n.feed(ev.WorkerAsksToStepDown(T, "gate"))
    n.feed(ev.WorkerStopped(T))
    assert quiet(n.answer(r, Answer.REFUSED))
    assert n.state == "Standby"


# -- the key in the view ------------------------------------------------------------------------------------------


def test_key_vanished_is_a_loss_and_is_resigned_once_the_worker_stopped() -> None:
    n = leader()
    out = n.feed(own(105, leader=None))
    assert type(out[0]) is act.ClearPermit
    assert one(out, act.TellStop).reason == "leader key vanished"
    assert not all_of(out, act.Resign)
    assert quiet(n.feed(own(106, leader=None)))
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    assert (r.token, r.reason) == (T, "leader key vanished")


@pytest.mark.parametrize("make", [promoting, leader, draining])
def test_another_leader_in_view_deposes(make: Callable[[], Node]) -> None:
    n = make()
    out = n.feed(n2_leads(120, 120))
    assert type(out[0]) is act.ClearPermit
    assert n.state == "Fenced"
    out = n.feed(ev.WorkerStopped(T))
    assert one(out, act.TellFollow).node == "n2"


def test_a_stale_view_is_ignored() -> None:
    n = leader()
    assert quiet(n.feed(n2_resigned()))
    assert quiet(n.feed(n2_leads(99)))
    assert n.state == "Leader"


def test_a_view_from_before_our_term_does_not_depose() -> None:
    n = promoting()
    assert quiet(n.feed(n2_resigned(97)))
    assert n.state == "Promoting"


def test_a_stale_view_does_not_restart_the_wait() -> None:
    n = standby()
    n.feed(view(91, tenure=tenure(90)))
    n.feed(ev.WorkerPrepared(Term(90)))
    n.run(900)
    n.feed(n2_leads(89, 89))
    one(n.run(120), act.Acquire)


def test_a_released_terms_key_in_an_old_view_is_not_adopted() -> None:
    n = leader()
    n.feed(ev.WorkerAsksToStepDown(T, "gate"))
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    for revision in (T, T + 1):
        assert quiet(n.feed(own(revision)))
    n.answer(r, Answer.DONE, 110)
    assert quiet(n.feed(own(T + 2)))
    assert (n.state, n.permit) == ("Standby", None)


def test_a_term_given_back_unused_is_not_adopted_from_a_later_view() -> None:
    n, a = campaigning()
    n.feed(ev.ShutdownAsked("systemd"))
    one(n.answer(a, Answer.DONE, T), act.Resign)
    assert quiet(n.feed(own()))


def test_a_resignation_is_repeated_until_etcd_confirms_it() -> None:
    n = fenced()
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    assert quiet(n.answer(r, Answer.UNKNOWN))
    r = one(n.run(25), act.Resign)
    assert r.token == T
    n.answer(r, Answer.REFUSED)
    assert not all_of(n.run(100), act.Resign), "refused: it is over already"


def test_no_campaign_while_a_resignation_is_owed() -> None:
    n = fenced()
    r = one(n.feed(ev.WorkerStopped(T)), act.Resign)
    n.feed(view(130, tenure=tenure(120), resigned=resigned(120)))
    assert not all_of(n.run(200), act.Acquire)
    n.answer(r, Answer.REFUSED)
    assert all_of(n.run(50), act.TellPrepare)


def test_predecessors_key_of_the_same_home_is_resigned_at_once() -> None:
    n = Node()
    n.tick()
    out = n.feed(view(90, leader=key(90, "n1", inc="n1.0"), tenure=tenure(90, "n1", inc="n1.0")))
    r = one(out, act.Resign)
    assert (r.token, r.reason) == (90, "restarted")
    n.answer(r, Answer.DONE, 91)
    assert n.state == "Starting"


def test_predecessors_vacancy_of_the_same_home_is_resigned_at_once() -> None:
    n = standby()
    r = one(n.feed(view(90, tenure=tenure(88, "n1", inc="n1.0"))), act.Resign)
    assert (r.token, r.reason) == (88, "restarted")


def test_nobody_is_told_to_follow_the_key_that_its_own_dead_predecessor_left() -> None:
    """Found by the simulator: the worker dialled itself."""
    n = standby()
    out = n.feed(view(90, leader=key(90, "n1", inc="n1.0"), tenure=tenure(90, "n1", inc="n1.0")))
    assert not all_of(out + n.run(300), act.TellFollow)


def test_a_namesake_on_another_home_is_not_our_predecessor() -> None:
    n = standby()
    out = n.feed(
        view(
            90,
            leader=key(90, "n1", inc="n1.0", home="elsewhere"),
            tenure=tenure(90, "n1", inc="n1.0", home="elsewhere"),
        )
    )
    assert not all_of(out + n.run(900), act.Resign)
    one(n.run(200), act.Evict)
