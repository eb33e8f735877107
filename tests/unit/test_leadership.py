"""One term of leadership, decided, event by event on a clock that the test moves: what is asked for, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.core.ids import Instant, Term
from cluster.permit import NO_PERMIT, PermitSeen
from node.actions import (
    ArmGate,
    ArmVenue,
    FenceRefused,
    FirstOrder,
    Note,
    OpenStream,
    PermissionChanged,
    RefreshDeadman,
    ReportReconciled,
    ReportSettled,
    TakeSnapshot,
)
from node.codec import Outcome, Reconciled, TermStarted
from node.feeds.base import FeedState
from node.gate import Verdict
from node.orders import Claim, Declined, Finished, LookUp, Send, SendCancel, StepDown
from node.permission import Level, Permission
from node.reconcile import OVERLAP, VenueSnapshot
from node.strategy import Cancel, Place
from node.types import (
    Accepted,
    ClientOrderId,
    DecisionId,
    OrderStatus,
    Refused,
    StreamDown,
    StreamUp,
    Unknown,
    VenueFill,
    VenueOrder,
    WireOrder,
)
from node.venues.base import Absent, Found, TimeSample, Unavailable
from tests.support.desk import SYMBOL, UNIX, S, buy, sell
from tests.support.leading import Term7

NOTHING = VenueSnapshot([], [], {})


@pytest.fixture
def t() -> Term7:
    return Term7()


def outcomes(t: Term7) -> list[tuple[str, str]]:
    return [(o.result.name, o.code) for o in t.facts(Outcome)]


def leave_unknown(t: Term7) -> WireOrder:
    """A leader of term 7 has gone, and whether its order is at the venue is not known."""
    t.lead()
    order = t.sent()
    t.answer(t.log.entries[-1].index, Unknown("no answer", order.expires_at_ns))
    t.leadership.stop()
    t.said.clear()
    t.permit = NO_PERMIT
    return order


# -- the way in ---------------------------------------------------------------------------------------------------


def test_takeover_begins_with_its_own_entry_and_arms_gate_and_venue_at_once(t: Term7) -> None:
    assert t.begin() == [ArmGate(connect=False), ArmVenue()]
    assert t.journal() == [TermStarted("n1", "i")]
    assert t.leadership.permission == Permission(Level.BLOCKED, "taking over")


def test_takeover_is_reported_in_the_event_that_completes_it_with_its_phases(t: Term7) -> None:
    t.begin()
    t.now = Instant(t.now + S // 100)
    t.gate_armed()
    t.now = Instant(t.now + S // 100)
    assert t.venue_armed() == [], "the book has not caught up"
    t.now = Instant(t.now + S // 100)
    stream, report, snapshot = t.commit()
    assert stream == OpenStream(0) and snapshot == TakeSnapshot(0)
    assert report == ReportReconciled({"catch_up": 0.03, "arm": 0.02, "settle": 0.0})


@pytest.mark.parametrize("last", ["gate_armed", "venue_armed"])
def test_caught_up_takeover_waits_for_the_gate_and_for_the_venue(t: Term7, last: str) -> None:
    t.begin()
    getattr(t, {"gate_armed": "venue_armed", "venue_armed": "gate_armed"}[last])()
    assert t.commit() == []
    assert ReportReconciled in map(type, getattr(t, last)())


def test_catching_up_counts_from_when_we_were_told_to_lead(t: Term7) -> None:
    t.leadership.begin(TermStarted("n1", "i"), Instant(t.now - S), t.now)
    t.gate_armed()
    t.venue_armed()
    (report,) = t.only(ReportReconciled, t.commit())
    assert report.phases_s == {"catch_up": 1.0, "arm": 0.0, "settle": 0.0}


def test_gate_and_venue_that_do_not_answer_are_waited_for_no_longer_than_the_limit(t: Term7) -> None:
    t.begin()
    t.commit()
    assert t.after(0.249) == []
    (report, _) = t.after(0.001)
    assert isinstance(report, ReportReconciled) and report.phases_s["arm"] == 0.25
    t.grant()
    assert t.leadership.permission == Permission(Level.BLOCKED, "gate: not armed yet")


def test_limit_of_arming_counts_from_the_begin_also_when_catching_up_takes_longer(t: Term7) -> None:
    t.begin()
    t.after(3.0)
    (report,) = t.only(ReportReconciled, t.commit())
    assert report.phases_s == {"catch_up": 3.0, "arm": 0.25, "settle": 0.0}


def test_takeover_that_cannot_commit_asks_to_be_relieved(t: Term7) -> None:
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.after(29.9)
    assert t.left is None
    t.after(0.2)
    assert t.left == "takeover: entry 1 was not committed within 30 s"


def test_venue_that_was_never_reached_is_not_taken_for_one_without_fences(t: Term7) -> None:
    t.begin()
    t.do("venue_failed", "not connected")
    assert not t.leadership.desk.armed and t.conditions.venue_down == "not connected"
    t.gate_armed()
    t.commit()
    assert t.after(0.1)[-1:] == [ArmVenue()]
    other = replace(t.caps, expiry=True)
    assert t.do("venue_armed", 7, other) == [OpenStream(0)], "it was not followed before"
    assert t.leadership.desk.armed and t.leadership.desk.caps == other


@pytest.mark.parametrize(
    ("event", "args", "why"),
    [
        ("gate_refused", ("9 is armed for n2",), "gate: 9 is armed for n2"),
        ("venue_refused", ("9 was seen",), "venue: 9 was seen"),
    ],
)
def test_somebody_newer_is_the_end(t: Term7, event: str, args: tuple[str], why: str) -> None:
    t.begin()
    t.note(getattr(t.leadership, event)(*args))
    assert t.left == why and t.leadership.stopped
    assert t.venue_armed() == [] and t.commit() == []


def test_venue_with_a_higher_high_water_is_the_end(t: Term7) -> None:
    t.begin()
    t.venue_armed(9)
    assert t.left == "venue: it has seen token 9"


def test_what_the_last_leader_left_open_is_looked_up_before_the_report(t: Term7) -> None:
    order = leave_unknown(t)
    t.make(9)
    t.begin()
    t.gate_armed()
    t.venue_armed()
    (ask, stream) = t.commit()
    assert isinstance(ask, LookUp) and ask.client_order_id == order.client_order_id and ask.armed
    assert isinstance(stream, OpenStream)
    found = VenueOrder(order.client_order_id, "v1", order.spec, OrderStatus.OPEN, 0)
    assert t.do("looked_up", ask, Found(found), None) == [], "the answer is not committed"
    assert ReportReconciled in map(type, t.commit())
    assert outcomes(t)[-1] == ("ACCEPTED", "") and t.leadership.desk.unsettled == 0


def test_settling_gives_up_in_time_and_keeps_the_side_blocked(t: Term7) -> None:
    leave_unknown(t)
    t.make(9)
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.commit()
    assert not t.all(ReportReconciled)
    (report,) = t.only(ReportReconciled, t.after(0.5))
    assert report.phases_s["settle"] == 0.5
    t.do("stream_said", StreamUp(1), t.caps)
    t.grant()
    (declined, _) = t.wish(buy(1, 1000))
    assert isinstance(declined, Declined) and declined.code == "outcome_unknown"
    assert isinstance(t.wish(sell(1, 1000))[0], Claim)


def test_lookup_without_an_answer_is_told_and_asked_again_while_trading_goes_on(t: Term7) -> None:
    leave_unknown(t)
    t.make(9)
    t.begin()
    t.gate_armed()
    t.venue_armed()
    (ask, _) = t.commit()
    note, report, _ = t.do("looked_up", ask, Unavailable("down"), None)
    assert isinstance(note, Note) and note.event == "lookup_unavailable" and isinstance(report, ReportReconciled)
    assert t.only(LookUp, t.after(0.3)) == [ask]
    t.do("looked_up", ask, Absent(), None)
    assert t.only(Outcome, t.journal())[-1].code == "absent", "the venue was armed before we asked"


def test_bound_for_old_orders_is_the_latest_the_venues_clock_may_show() -> None:
    t = Term7("expiry")
    t.lead()
    t.wish()
    t.commit()
    t.leadership.stop()
    t.clock.note(TimeSample(t.now - 5 * S, t.now, UNIX))
    t.make(9)
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.commit()
    (left,) = t.leadership.desk._unsettled.values()
    assert left.absent_after == UNIX + 5 * S + S, "asked 5 s before the answer, and one validity to live"


def test_venues_clock_that_is_learned_later_bounds_the_old_orders_too() -> None:
    t = Term7("expiry")
    t.lead()
    t.wish()
    t.commit()
    t.leadership.stop()
    t.clock._sample = None
    t.make(9)
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.commit()
    (left,) = t.leadership.desk._unsettled.values()
    t.after(0.5)
    assert left.absent_after is None
    t.read_clock()
    t.after(0.1)
    assert left.absent_after is not None


def test_permit_is_heard_only_when_the_takeover_is_done(t: Term7) -> None:
    t.begin()
    assert t.grant() == []
    assert t.level is Level.BLOCKED
    t.gate_armed()
    t.venue_armed()
    t.commit()
    assert t.grant()[-1] == PermissionChanged(Permission(Level.ALLOWED))
    assert t.do("granted", t.permit) == []


def test_keepers_word_without_a_permit_in_the_page_is_no_permit(t: Term7) -> None:
    t.take_over()
    t.do("granted", NO_PERMIT)
    assert t.reason.startswith("no permit")
    t.permit = PermitSeen(Term(7), Instant(t.now + S))
    t.do("review", t.permit)
    assert t.level is Level.ALLOWED
    t.after(1.1)
    assert t.reason.startswith("no permit"), "and it ends by itself"


def test_wish_before_the_permit_is_declined(t: Term7) -> None:
    t.take_over()
    (declined, note) = t.wish()
    assert declined == Declined("blocked", "taking over")
    assert isinstance(note, Note) and note.event == "order_declined"


# -- orders -------------------------------------------------------------------------------------------------------


def test_order_goes_when_it_is_committed_and_claimed_and_its_answer_is_journaled(t: Term7) -> None:
    t.lead()
    claim = t.claim()
    assert t.claimed(claim) == []
    (send,) = t.commit()
    assert isinstance(send, Send) and send.index == claim.index
    order = t.release(send)
    assert isinstance(order, WireOrder)
    assert (order.client_order_id, order.token, order.spec) == (claim.client_order_id, 7, send.spec)
    finished, first = t.do("submitted", send.index, Accepted("v1"))
    assert isinstance(finished, Finished) and first == FirstOrder()
    t.commit()
    assert outcomes(t) == [("ACCEPTED", "")]


def test_first_order_is_told_once_and_not_of_a_refused_one(t: Term7) -> None:
    t.lead()
    t.answer(t.ready().index, Refused("funds", "too little"))
    assert t.all(FirstOrder) == []
    t.answer(t.ready().index, Accepted("v1"))
    t.answer(t.ready().index, Accepted("v2"))
    assert len(t.all(FirstOrder)) == 1


NO_PERMITS: list[Callable[[Term7], PermitSeen]] = [
    lambda t: NO_PERMIT,
    lambda t: PermitSeen(Term(9), Instant(t.now + S)),
    lambda t: PermitSeen(Term(7), t.now),
]


@pytest.mark.parametrize("seen", NO_PERMITS)
def test_permit_that_ended_before_the_send_stops_the_order(t: Term7, seen: Callable[[Term7], PermitSeen]) -> None:
    t.lead()
    send = t.ready()
    t.permit = seen(t)
    released = t.release(send)
    assert not isinstance(released, WireOrder) and released[0] == FenceRefused("permit")
    assert outcomes(t) == [("NOT_SENT", "no_permit")]
    assert not t.leadership.still_allowed(t.permit, t.now)


def test_standby_lost_between_intent_and_commit_stops_the_order(t: Term7) -> None:
    t.lead()
    send = t.ready()
    t.conditions.unprotected = "0 in-sync standbys"
    released = t.release(send)
    assert not isinstance(released, WireOrder) and released[0] == FenceRefused("replication")
    assert outcomes(t) == [("NOT_SENT", "unprotected")]


def test_latch_that_is_set_between_claim_and_send_stops_the_order(t: Term7) -> None:
    t.lead()
    send = t.ready()
    t.conditions.halted = "fat finger"
    released = t.release(send)
    assert not isinstance(released, WireOrder) and released[0] == FenceRefused("gate")
    assert outcomes(t) == [("NOT_SENT", "halted")]
    t.do("review", t.permit)
    assert t.leadership.permission == Permission(Level.BLOCKED, "halted: fat finger")
    t.conditions.halted = ""
    t.do("review", t.permit)
    assert t.level is Level.ALLOWED


@pytest.mark.parametrize(("permit_s", "bound_s"), [(3600.0, 1.0), (0.4, 0.4)])
def test_expiry_is_never_later_than_the_permit_nor_than_the_validity(permit_s: float, bound_s: float) -> None:
    t = Term7("expiry")
    t.take_over()
    t.grant(permit_s)
    assert t.sent().expires_at_ns == UNIX + t.now + round(bound_s * S)


def test_plain_venue_is_sent_no_expiry() -> None:
    t = Term7("plain")
    t.lead()
    assert t.sent().expires_at_ns is None


@pytest.mark.parametrize(("profile", "counts"), [("token", True), ("expiry", True), ("plain", False)])
def test_without_the_venues_clock_nothing_is_sent_where_expiry_counts(profile: str, counts: bool) -> None:
    t = Term7(profile)
    t.lead()
    send = t.ready()
    t.clock._sample = None
    assert isinstance(t.release(send), WireOrder) is not counts
    if counts:
        assert outcomes(t) == [("NOT_SENT", "venue_clock")]
        t.after(0.1)
        assert t.leadership.permission == Permission(Level.BLOCKED, "venue: its clock is not known")
        t.read_clock()
        t.after(0.1)
    assert t.level is Level.ALLOWED


def test_wishes_that_find_no_room_in_the_journal_are_declined_and_may_come_again(t: Term7) -> None:
    t.lead()
    order = t.sent(buy(10, 980))
    t.answer(t.log.entries[-1].index, Accepted("v1"))
    t.log.full = True
    t.wishes(Place(buy(10, 1000), DecisionId("d")), Cancel(order.client_order_id), decision="again")
    assert t.leadership.declines.counts == {"journal_busy": 2} and t.left is None
    t.log.full = False
    assert isinstance(t.wish(decision="again")[0], Claim)
    t.wishes(Cancel(order.client_order_id))
    assert t.only(SendCancel, t.commit()) != []


def test_duplicate_decision_and_risk_are_declined_by_name_and_a_good_one_ends_the_row(t: Term7) -> None:
    t.lead()
    t.wish(decision="same")
    t.wish(decision="same")
    t.wish(buy(10, 10), "far")
    declines = t.leadership.declines
    assert declines.counts == {"duplicate_decision": 1, "price_collar": 1} and declines.in_a_row == 2
    t.wish(decision="good")
    assert declines.in_a_row == 0


def test_what_is_declined_all_the_time_is_one_line_a_minute(t: Term7) -> None:
    t.lead()
    for n in range(25):
        t.wish(buy(10**6), f"too-much-{n}")
    (note,) = [n for n in t.all(Note) if n.event == "order_declined"]
    assert note.fields["code"] == "max_order_qty" and len(t.all(Declined)) == 25
    last = t.leadership.declines.last
    assert t.leadership.declines.in_a_row == 25 and last is not None and "1000000" in last.reason
    t.after(61.0)
    t.read_clock()
    t.do("review", t.permit)
    t.wish(buy(10**6), "too-much-still")
    assert [n.fields["times"] for n in t.all(Note) if n.event == "order_declined"] == [1, 26]


# -- the gate's word (its arming: test_arming.py) -----------------------------------------------------------------


def test_claim_of_a_gate_that_forgot_us_costs_the_order_and_has_it_armed_again(t: Term7) -> None:
    t.lead()
    fence, changed, arm, finished = [
        a for a in t.claimed(t.claim(), Verdict.UNARMED, high=0) if not isinstance(a, Note)
    ]
    assert fence == FenceRefused("gate") and arm == ArmGate(connect=True) and isinstance(finished, Finished)
    assert changed == PermissionChanged(Permission(Level.BLOCKED, "gate: it lost its state; re-arming"))
    t.commit()
    assert outcomes(t) == [("NOT_SENT", "gate_unarmed")]


def test_claim_without_an_answer_is_no_claim(t: Term7) -> None:
    """It may have been noted there: the order is not sent, and its id never used again."""
    t.lead()
    claim = t.claim()
    said = t.do("claimed", claim.index, "no answer from Redis")
    assert ArmGate(connect=True) in said and t.reason == "gate: no answer from Redis"
    assert not t.only(Send, t.commit()) and outcomes(t) == [("NOT_SENT", "unavailable")]


def test_claim_that_finds_a_higher_token_ends_the_term_with_nothing_sent(t: Term7) -> None:
    t.lead()
    claim = t.claim()
    t.commit()
    t.claimed(claim, Verdict.STALE_TOKEN, high=9)
    assert t.left == "gate: (high-water 9)" and outcomes(t) == [("NOT_SENT", "stale_token")]
    assert t.all(Send) == []


def test_halted_gate_blocks_by_name_until_the_halt_is_lifted(t: Term7) -> None:
    t.lead()
    t.claimed(t.claim(), Verdict.HALTED, "fat finger")
    assert outcomes(t) == [("NOT_SENT", "halted")] and t.reason == "gate: halted: fat finger"
    t.gate_armed(previous=7)
    t.gate_seen(halted="fat finger")
    assert t.only(ArmGate, t.after(1.0)) == [ArmGate(connect=True)]
    t.gate_armed(previous=7)
    t.gate_seen()
    assert t.level is Level.ALLOWED


def test_takeover_waits_until_the_latch_is_known(t: Term7) -> None:
    t.begin()
    t.venue_armed()
    t.commit()
    assert len(t.gate_armed(latch_known=False)) == 1
    assert not t.all(ReportReconciled)
    t.do("latch_read", None)
    assert ReportReconciled in map(type, t.do("latch_noted"))
    t.grant()
    assert t.level is Level.ALLOWED


# -- the private stream --------------------------------------------------------------------------------------------


def test_stream_that_goes_down_blocks_until_it_is_up(t: Term7) -> None:
    t.lead()
    t.do("stream_said", StreamDown("reset"), t.caps)
    assert t.leadership.permission == Permission(Level.BLOCKED, "venue: private stream down: reset")
    t.do("stream_said", StreamUp(5), t.caps)
    assert t.level is Level.ALLOWED


def test_stream_that_does_not_come_up_blocks(t: Term7) -> None:
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.commit()
    t.grant()
    assert t.level is Level.ALLOWED, "nothing is known to be wrong yet"
    t.after(0.5)
    assert t.reason == "venue: the private stream did not come up within 0.5 s"
    t.do("stream_said", StreamUp(1), t.caps)
    assert t.level is Level.ALLOWED


def test_stream_that_is_down_already_keeps_its_own_reason(t: Term7) -> None:
    t.begin()
    t.gate_armed()
    t.venue_armed()
    t.commit()
    t.do("stream_said", StreamDown("refused"), t.caps)
    t.after(0.6)
    assert t.conditions.venue_down == "private stream down: refused"


def test_venue_that_comes_back_with_other_fences_ends_the_term(t: Term7) -> None:
    t.lead()
    t.do("stream_said", StreamUp(5), replace(t.caps, token=False))
    assert t.left == "venue: its capabilities have changed"


def test_stream_and_reconcile_begin_where_the_book_ends(t: Term7) -> None:
    t.lead()
    order = t.sent()
    fill = VenueFill("t1", order.client_order_id, SYMBOL, order.spec.side, 3, 1000, UNIX, 1000)
    t.do("stream_said", fill, t.caps)
    t.commit()
    assert t.book.position(SYMBOL) == 3
    t.leadership.stop()
    t.make(9)
    t.said.clear()
    t.take_over()
    assert t.all(OpenStream) == [OpenStream(1000)] and t.all(TakeSnapshot) == [TakeSnapshot(1000 - OVERLAP)]


# -- reconcile ----------------------------------------------------------------------------------------------------


def test_mismatch_is_told_only_at_the_second_look_and_journaled(t: Term7) -> None:
    t.lead()
    manual = VenueOrder(ClientOrderId("manual1"), "v1", buy(5, 900), OrderStatus.OPEN, 0)
    said = "order manual1 is open at the venue and unknown to the journal"
    for n, seen in enumerate([manual, manual, None, None]):
        assert t.only(TakeSnapshot, t.after(5.0)) == [TakeSnapshot(0)], n
        notes = t.only(Note, t.do("snapshot_taken", VenueSnapshot([seen] if seen else [], [], {})))
        assert [x.fields["mismatches"] for x in notes] == {1: [[said]], 2: [[]]}.get(n, [])
        assert t.leadership.reconciler.mismatches == ((said,) if n == 1 else ())
    assert t.facts(Reconciled) == [
        Reconciled("takeover", ()),  # the first look raises suspicions only
        Reconciled("periodic", (said,)),
        Reconciled("periodic", ()),
    ]


def test_agreement_is_journaled_again_only_once_a_minute(t: Term7) -> None:
    t.lead()
    for _ in range(13):
        t.after(5.0)
        t.do("snapshot_taken", NOTHING)
    assert t.facts(Reconciled) == [Reconciled("takeover", ()), Reconciled("periodic", ())]


def test_reconcile_journals_missed_fills_settles_what_is_there_and_looks_up_what_is_not(t: Term7) -> None:
    t.lead()
    resting, lost = t.sent(buy(10, 980)), t.sent(buy(10, 981))
    first = t.log.entries[-2].index
    t.answer(first, Accepted("v1"))
    t.answer(first + 1, Unknown("no answer"))
    fill = VenueFill("t1", resting.client_order_id, SYMBOL, resting.spec.side, 10, 980, UNIX, 4)
    found = VenueOrder(lost.client_order_id, "v2", lost.spec, OrderStatus.OPEN, 0)
    t.after(5.0)
    said = t.do("snapshot_taken", VenueSnapshot([found], [fill], {SYMBOL: 10}))
    assert said == [LookUp(first, resting.client_order_id, True)]
    t.commit()
    assert t.book.position(SYMBOL) == 10 and outcomes(t)[-1] == ("ACCEPTED", "")


def test_reconcile_that_cannot_ask_asks_again(t: Term7) -> None:
    t.lead()
    t.after(5.0)
    (note,) = t.do("snapshot_failed", "down")
    assert isinstance(note, Note) and note.event == "reconcile_failed"
    assert t.only(TakeSnapshot, t.after(5.0)) == [TakeSnapshot(0)] and t.level is Level.ALLOWED


# -- cancels and the dead-man's switch --------------------------------------------------------------------------------


def test_cancel_goes_also_while_new_orders_are_blocked_or_halted(t: Term7) -> None:
    t.lead()
    order = t.sent(buy(10, 980))
    t.answer(t.log.entries[-1].index, Accepted("v1"))
    t.conditions.feed, t.conditions.halted = FeedState.DOWN, "fat finger"
    t.do("review", t.permit)
    assert t.level is Level.BLOCKED
    t.wishes(Cancel(order.client_order_id, "moved"))
    (cancel,) = t.commit()
    assert isinstance(cancel, SendCancel) and t.leadership.still_allowed(t.permit, t.now)
    assert t.do("cancel_answered", cancel.index, Accepted("v1")) == []


def test_cancels_that_earlier_leaders_were_asked_for_go_with_the_permit(t: Term7) -> None:
    t.lead()
    order = t.sent(buy(10, 980))
    index = t.log.entries[-1].index
    t.answer(index, Accepted("v1"))
    t.wishes(Cancel(order.client_order_id))
    t.commit()
    t.leadership.stop()
    t.said.clear()
    t.make(9)
    t.take_over()
    assert t.all(SendCancel) == []
    assert SendCancel(index, order.client_order_id) in t.grant()


def test_deadman_is_refreshed_with_the_permit_and_every_quarter_of_its_time(t: Term7) -> None:
    """The one that the last leader armed may be about to fire."""
    t.rules = replace(t.rules, deadman_ttl_s=4.0)
    t.make(7)
    t.take_over()
    assert t.only(RefreshDeadman, t.after(3.0)) == [], "not before the permit"
    assert RefreshDeadman(4.0) in t.grant()
    assert t.only(RefreshDeadman, t.after(3.0)) == [], "one at a time"
    t.do("deadman_answered", "")
    assert t.only(RefreshDeadman, t.after(1.0)) == [RefreshDeadman(4.0)]
    (note,) = t.do("deadman_answered", "down")
    assert isinstance(note, Note) and note.event == "deadman_not_refreshed"
    t.permit = NO_PERMIT
    assert t.only(RefreshDeadman, t.after(3.0)) == [], "never by one whose permit has gone"
    t.permit = PermitSeen(Term(7), Instant(t.now + 10 * S))
    assert t.only(RefreshDeadman, t.after(1.1)) == [RefreshDeadman(4.0)]


def test_deadman_that_is_off_is_never_touched(t: Term7) -> None:
    t.lead()
    t.after(60.0)
    assert t.all(RefreshDeadman) == []


# -- the way out --------------------------------------------------------------------------------------------------


def test_after_the_stop_no_event_does_anything(t: Term7) -> None:
    t.lead()
    send = t.ready()
    claim = t.claim()
    t.leadership.stop()
    entries = len(t.log.entries)
    assert t.release(send) == [] and not t.leadership.still_allowed(t.permit, t.now)
    assert t.claimed(claim) == [] and t.wish() == [] and t.tick() == [] and t.commit() == []
    assert t.do("submitted", send.index, Accepted("v1")) == []
    assert t.do("granted", t.permit) == [] and t.do("review", t.permit) == [] and t.do("drain", None) == []
    assert t.do("snapshot_taken", NOTHING) == [] and t.do("stream_said", StreamDown("x"), t.caps) == []
    assert len(t.log.entries) == entries and t.left is None


def test_outcome_that_finds_no_room_in_the_journal_ends_the_term(t: Term7) -> None:
    """The order is at the venue and nobody will write it down: the next leader has to ask."""
    t.lead()
    send = t.ready()
    t.release(send)
    t.log.full = True
    note, down = t.do("submitted", send.index, Accepted("v1"))
    assert isinstance(note, Note) and note.level == "error"
    assert down == StepDown("trading failed: JournalBusy: full") and t.leadership.stopped


@pytest.mark.parametrize("event", ["claimed", "release", "snapshot_taken"])
def test_any_fact_that_finds_no_room_ends_the_term(t: Term7, event: str) -> None:
    t.lead()
    claim = t.claim()
    t.claimed(claim)
    (send,) = t.only(Send, t.commit())
    other = t.claim()
    t.log.full = True
    if event == "claimed":
        t.claimed(other, Verdict.UNARMED)
    elif event == "release":
        t.permit = NO_PERMIT
        t.release(send)
    else:
        t.after(61.0)
        t.do("snapshot_taken", NOTHING)
    assert t.left == "trading failed: JournalBusy: full"


def test_wish_in_a_term_that_is_over_is_not_an_error(t: Term7) -> None:
    t.lead()
    t.log.over = True
    t.wish()
    assert t.left == "the term is over" and [n for n in t.all(Note) if n.level == "error"] == []


def test_mistake_of_ours_is_raised_for_whoever_called_to_stop_the_term(t: Term7) -> None:
    t.lead()
    with pytest.raises(TypeError):
        t.do("submitted", t.ready().index)
    assert not t.leadership.stopped


def test_drain_waits_for_answers_and_for_the_successor(t: Term7) -> None:
    t.lead()
    send = t.ready()
    t.release(send)
    t.permit = NO_PERMIT
    t.do("drain", "n2")
    assert t.leadership.permission == Permission(Level.BLOCKED, "handing over")
    assert t.all(ReportSettled) == []
    t.after(0.1)
    t.answer(send.index, Accepted("v1"))
    assert t.all(ReportSettled) == [], "n2 lacks entries"
    t.after(0.1)
    t.term_log.holders.add("n2")
    assert t.only(ReportSettled, t.after(0.001)) == [ReportSettled()]
    assert t.leadership.stopped and t.left is None


def test_drain_with_nothing_open_is_done_at_once(t: Term7) -> None:
    t.lead()
    assert t.do("drain", None)[-1] == ReportSettled()


def test_drain_waits_for_each_only_so_long(t: Term7) -> None:
    t.lead()
    t.release(t.ready())
    t.do("drain", "n2")
    assert t.only(ReportSettled, t.after(0.79)) == [] and t.leadership.desk.in_flight == 1
    assert t.only(ReportSettled, t.after(0.02)) == [ReportSettled()]


def test_permit_that_comes_while_draining_is_not_heard(t: Term7) -> None:
    t.lead()
    t.release(t.ready())
    t.do("drain", None)
    assert t.grant() == [] and t.reason == "handing over"
