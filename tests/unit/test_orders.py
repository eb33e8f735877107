"""The order desk, situation by situation: what is sent, what is journaled, what stays in doubt and what ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.core.errors import StepDown as TermOver
from cluster.core.ids import Instant
from cluster.journal import JournalBusy
from node.codec import CancelRequested, Evidence, Fill, Intent, OrderClosed, Outcome, Reconciled, Result
from node.orders import (
    CANCEL_RETRY_NS,
    LOOKUP_RETRY_MAX_NS,
    LOOKUP_RETRY_NS,
    Action,
    Claim,
    Declined,
    Finished,
    Flight,
    LookUp,
    Send,
    SendCancel,
    StepDown,
)
from node.risk import RateLimit
from node.strategy import OrderState
from node.types import Accepted, ClientOrderId, NotSent, OrderStatus, Refused, StreamUp, Unknown, VenueOrderEvent
from node.venues.base import Absent, Found, Unavailable
from tests.support.desk import MS, SYMBOL, TAG, UNIX, VALIDITY, Rig, S, buy, sell


@pytest.fixture
def rig() -> Rig:
    return Rig()


def of(kind: type, actions: list[Action]) -> list:
    return [a for a in actions if isinstance(a, kind)]


# -- from the wish to the send -----------------------------------------------------------------------------------


def test_wish_becomes_an_intent_and_is_claimed_but_not_sent(rig: Rig) -> None:
    flight, actions = rig.wish_and_actions(buy(), "d")
    assert isinstance(flight, Flight)
    assert actions == [Claim(flight.index, flight.client_order_id)]
    assert flight.client_order_id == f"{TAG}z7z2", "named by the intent's term and index"
    assert rig.log.said(Intent)[0].decision_id == "d"


def test_committed_but_not_claimed_is_not_sent(rig: Rig) -> None:
    rig.flight()
    assert rig.commit() == []


def test_claimed_but_not_committed_is_not_sent(rig: Rig) -> None:
    flight = rig.flight()
    assert rig.desk.claimed(flight.index, None, rig.now) == []


@pytest.mark.parametrize("claim_first", [True, False])
def test_committed_and_claimed_is_sent_once_in_either_order(rig: Rig, claim_first: bool) -> None:
    flight = rig.flight(buy(3), "d")
    steps = [lambda: rig.desk.claimed(flight.index, None, rig.now), rig.commit]
    actions = [a for step in (steps if claim_first else steps[::-1]) for a in step()]
    assert actions == [Send(flight.index, flight.client_order_id, "d", buy(3))]
    assert rig.desk.claimed(flight.index, None, rig.now) == [], "a second word of the gate changes nothing"
    assert rig.after(10 * S) == [], "nor does time"


def test_intent_that_took_longer_than_its_validity_is_not_sent(rig: Rig) -> None:
    flight = rig.flight()
    rig.desk.claimed(flight.index, None, rig.now)
    rig.now = Instant(rig.now + VALIDITY + 1)
    (finished,) = rig.commit()
    assert isinstance(finished, Finished) and finished.result == NotSent("too_late", "commit and gate took 1.000 s")
    assert rig.outcomes(flight.index) == [("NOT_SENT", "LOCAL")]
    rig.settle_down()
    assert rig.book.live_orders() == []


def test_intent_within_its_validity_to_the_nanosecond_is_sent(rig: Rig) -> None:
    flight = rig.flight()
    rig.desk.claimed(flight.index, None, rig.now)
    rig.now = Instant(rig.now + VALIDITY)
    assert of(Send, rig.commit())


@pytest.mark.parametrize("code", ["unavailable", "gate_unarmed", "halted", "duplicate"])
def test_gate_refusal_ends_the_order_unsent_and_nothing_else(rig: Rig, code: str) -> None:
    flight = rig.flight()
    actions = rig.desk.claimed(flight.index, Refused(code, "why"), rig.now)
    assert [type(a) for a in actions] == [Finished]
    assert rig.commit() == [], "its commit comes later and sends nothing"
    assert rig.outcomes(flight.index) == [("NOT_SENT", "LOCAL")]
    assert rig.desk.in_flight == 0


def test_stale_token_at_the_gate_is_the_end_of_the_term(rig: Rig) -> None:
    flight = rig.flight()
    actions = rig.desk.claimed(flight.index, Refused("stale_token", "9 is armed"), rig.now)
    assert of(StepDown, actions) == [StepDown("gate: 9 is armed")]
    assert rig.outcomes(flight.index) == [("NOT_SENT", "LOCAL")]


def test_word_about_an_order_that_is_not_in_flight_changes_nothing(rig: Rig) -> None:
    before = len(rig.log.entries)
    assert rig.desk.claimed(99, None, rig.now) == []
    assert rig.desk.submitted(99, Accepted("v"), rig.now) == []
    assert rig.desk.cancel_answered(99, Accepted("v"), rig.now) == []
    assert len(rig.log.entries) == before


def test_second_answer_to_one_send_is_not_heard(rig: Rig) -> None:
    flight = rig.sent()
    rig.answer(flight, Unknown("timeout", UNIX))
    assert rig.answer(flight, Accepted("v1")) == []
    assert rig.outcomes(flight.index) == [("UNKNOWN", "LOCAL")]


# -- what is declined -----------------------------------------------------------------------------------------------


def test_decision_taken_before_is_declined_while_pending_and_when_committed(rig: Rig) -> None:
    rig.flight(decision="d")
    assert rig.wish(decision="d") == Declined("duplicate_decision", "decision 'd' was taken before")
    rig.commit()
    assert rig.wish(decision="d") == Declined("duplicate_decision", "decision 'd' was taken before")
    assert rig.count(Intent) == 1


def test_decision_of_the_last_leader_is_declined_and_one_that_was_cut_is_not(rig: Rig) -> None:
    rig.flight(decision="kept")
    rig.commit()
    kept = len(rig.log.entries)
    rig.flight(decision="cut")
    rig.lead(9, keep=kept)
    assert isinstance(rig.wish(decision="kept"), Declined)
    flight = rig.flight(sell(), decision="cut")
    assert flight.client_order_id == f"{TAG}z9z{flight.index}", "the same place in the log, and another name"


def test_orders_not_yet_in_the_book_count_against_the_limits(rig: Rig) -> None:
    for _ in range(10):
        rig.flight(buy(10))
    made = rig.wish(buy(1))
    assert isinstance(made, Declined) and made.code == "max_position", "100 lots are pending, and 100 the limit"
    assert isinstance(rig.wish(sell(1)), Flight)
    rig.commit()
    assert isinstance(rig.wish(buy(1)), Declined), "and still do once they are in the book"


def test_pending_intents_count_for_the_order_rate(rig: Rig) -> None:
    rig.desk.limits = replace(rig.desk.limits, rate=RateLimit(2, S))
    rig.flight()
    rig.flight()
    made = rig.wish()
    assert isinstance(made, Declined) and made.code == "order_rate"


def test_close_only_lets_through_what_reduces(rig: Rig) -> None:
    flight = rig.sent(buy(10))
    rig.answer(flight, Accepted("v1"))
    rig.fills(flight.client_order_id, 10)
    rig.settle_down()
    grows, reduces = rig.wish(buy(1), close_only=True), rig.wish(sell(10), close_only=True)
    assert isinstance(grows, Declined) and grows.code == "close_only"
    assert isinstance(reduces, Flight)


def test_wish_that_finds_no_room_in_the_journal_leaves_no_trace(rig: Rig) -> None:
    rig.log.full = True
    with pytest.raises(JournalBusy):
        rig.wish(buy(100), "d")
    rig.log.full = False
    assert isinstance(rig.wish(buy(100), "d"), Flight), "neither the decision nor the lots were counted"
    assert rig.desk.in_flight == 1


# -- what the venue answers ---------------------------------------------------------------------------------------


def test_accepted_order_is_open_with_the_venues_id(rig: Rig) -> None:
    flight = rig.sent()
    (finished,) = rig.answer(flight, Accepted("v9"))
    assert isinstance(finished, Finished) and finished.flight.answered_at == rig.now
    assert rig.log.said(Outcome)[-1].venue_order_id == "v9"
    order = rig.book.order(flight.index)
    assert order is not None and order.state is OrderState.OPEN
    assert rig.desk.in_flight == rig.desk.unsettled == 0


def test_refused_order_is_closed_and_its_lots_are_free(rig: Rig) -> None:
    flight = rig.sent(buy(100))
    rig.answer(flight, Refused("no_market", "closed"))
    assert rig.outcomes(flight.index) == [("REFUSED", "VENUE_REPLY")]
    assert isinstance(rig.wish(buy(100)), Flight)


def test_stale_token_at_the_venue_is_the_end_of_the_term(rig: Rig) -> None:
    flight = rig.sent()
    actions = rig.desk.submitted(flight.index, Refused("stale_token", "9 was seen"), rig.now)
    assert of(StepDown, actions) == [StepDown("venue: 9 was seen")]
    assert rig.outcomes(flight.index) == [("REFUSED", "VENUE_REPLY")]


def test_order_dropped_before_the_wire_is_proved_unsent(rig: Rig) -> None:
    flight = rig.sent()
    rig.answer(flight, NotSent("permit_ended", "in the queue"))
    assert rig.outcomes(flight.index) == [("NOT_SENT", "LOCAL")]


def test_timeout_is_unknown_counts_as_exposure_and_blocks_its_side_at_once(rig: Rig) -> None:
    flight = rig.sent(buy(10))
    rig.desk.submitted(flight.index, Unknown("timeout", UNIX + S), rig.now)
    made = rig.wish(buy(1))
    assert isinstance(made, Declined) and made.code == "outcome_unknown", "before the journal has it"
    rig.settle_down()
    made = rig.wish(buy(1))
    assert isinstance(made, Declined) and made.code == "outcome_unknown", "and after"
    assert isinstance(rig.wish(sell(1)), Flight)
    assert rig.log.said(Outcome)[0].expires_at == UNIX + S
    assert rig.book.exposure(SYMBOL, buy().side) == 10


# -- unknown: the ladder ------------------------------------------------------------------------------------------


def unknown(rig: Rig, spec=None, expires: int | None = UNIX + S) -> Flight:
    flight = rig.sent(spec)
    rig.answer(flight, Unknown("timeout", expires))
    return flight


def looked(rig: Rig, ask: LookUp, result: object, at: int | None = UNIX) -> None:
    rig.desk.looked_up(ask, result, asked_at_venue=at, now=rig.now)  # type: ignore[arg-type]
    rig.settle_down()


def test_unknown_order_is_looked_up_after_a_while_and_never_sent_again(rig: Rig) -> None:
    flight = unknown(rig)
    assert rig.after(LOOKUP_RETRY_NS - 1) == []
    assert rig.after(1) == [LookUp(flight.index, flight.client_order_id, True)]
    assert rig.after(10 * S) == [], "one question at a time"


def test_found_open_settles_it_as_accepted(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Found(rig.order(flight.client_order_id)))
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "LOOKUP_FOUND")
    assert rig.desk.unsettled == 0 and rig.after(60 * S) == []
    assert isinstance(rig.wish(buy(1)), Flight)


def test_found_closed_settles_it_and_closes_it_with_what_it_filled(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Found(rig.order(flight.client_order_id, OrderStatus.CANCELLED, 4)))
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "LOOKUP_FOUND")
    assert [(c.filled_lots, c.venue_event_seq) for c in rig.log.said(OrderClosed)] == [(4, 0)]
    assert rig.book.exposure(SYMBOL, buy().side) == 4, "the fills have not come yet"


def test_found_refused_settles_it_without_effect(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Found(rig.order(flight.client_order_id, OrderStatus.REFUSED)))
    assert rig.outcomes(flight.index)[-1] == ("REFUSED", "LOOKUP_FOUND")
    assert rig.book.live_orders() == []


def test_absent_before_its_expiry_proves_nothing_and_is_asked_again_with_back_off(rig: Rig) -> None:
    flight = unknown(rig)
    waits, wait = [], LOOKUP_RETRY_NS
    for _ in range(8):
        begun = rig.now
        while not (asks := rig.after(10 * MS)):
            pass
        waits.append(rig.now - begun)
        looked(rig, asks[0], Absent(), at=UNIX + S)
    assert rig.outcomes(flight.index) == [("UNKNOWN", "LOCAL")]
    for got in waits[1:]:
        assert got == pytest.approx(wait, abs=10 * MS)
        wait = min(2 * wait, LOOKUP_RETRY_MAX_NS)


def test_absent_after_its_expiry_by_the_venues_clock_proves_that_it_never_will_be(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + S + 1)
    assert rig.outcomes(flight.index)[-1] == ("NOT_SENT", "ABSENT_EXPIRED")
    assert rig.log.said(Outcome)[-1].code == "absent"


def test_clock_error_of_the_venue_is_waited_for_as_well() -> None:
    rig = Rig("expiry")
    rig.desk.caps = replace(rig.caps, clock_error_ms=50)
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + S + 50 * MS)
    assert rig.desk.unsettled == 1
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + S + 50 * MS + 1)
    assert rig.outcomes(flight.index)[-1] == ("NOT_SENT", "ABSENT_EXPIRED")


def test_absent_while_the_venues_clock_is_not_known_proves_nothing(rig: Rig) -> None:
    unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=None)
    assert rig.desk.unsettled == 1


def test_our_own_unknown_order_is_not_fenced_by_our_own_token(rig: Rig) -> None:
    """It carries the token that the venue is armed with."""
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    assert ask.armed
    looked(rig, ask, Absent())
    assert rig.outcomes(flight.index) == [("UNKNOWN", "LOCAL")]


@pytest.mark.parametrize("later", [0, 3600 * S])
def test_on_a_plain_venue_absence_is_never_proof(later: int) -> None:
    rig = Rig("plain")
    flight = unknown(rig, expires=None)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    rig.desk.bound_unknown(UNIX + later)
    looked(rig, ask, Absent(), at=UNIX + 2 * later + 10 * S)
    rig.lead(9)
    rig.desk.take_over(rig.now, UNIX + later)
    rig.desk.bound_unknown(UNIX + later)
    (ask,) = rig.after(S) or [LookUp(flight.index, flight.client_order_id, True)]
    looked(rig, ask, Absent(), at=UNIX + 2 * later + 10 * S)
    assert [r for r, _ in rig.outcomes(flight.index)] == ["UNKNOWN"]
    assert rig.book.is_blocked(SYMBOL, buy().side)
    looked(rig, ask, Found(rig.order(flight.client_order_id)))
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "LOOKUP_FOUND"), "being found settles it there, too"


def test_lookup_that_cannot_be_made_is_tried_again(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Unavailable("down"), at=UNIX + 10 * S)
    assert rig.outcomes(flight.index) == [("UNKNOWN", "LOCAL")]
    assert rig.after(LOOKUP_RETRY_NS) == [ask]


def test_lookup_of_something_that_is_settled_meanwhile_changes_nothing(rig: Rig) -> None:
    flight = unknown(rig)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    rig.tells(flight.client_order_id)
    rig.settle_down()
    before = len(rig.log.entries)
    looked(rig, ask, Absent(), at=UNIX + 10 * S)
    assert len(rig.log.entries) == before
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "VENUE_STREAM")


def test_somebody_else_settling_it_in_the_journal_is_enough(rig: Rig) -> None:
    flight = unknown(rig)
    rig.log.append(Outcome(flight.index, Result.NOT_SENT, Evidence.OPERATOR, code="resolved"))
    rig.settle_down()
    assert rig.desk.unsettled == 0 and rig.after(60 * S) == []


# -- unknown: what the private stream proves --------------------------------------------------------------------------


def test_stream_that_tells_of_an_unknown_order_settles_it(rig: Rig) -> None:
    flight = unknown(rig)
    rig.tells(flight.client_order_id)
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "VENUE_STREAM")


def test_close_of_an_unknown_order_settles_and_closes_it(rig: Rig) -> None:
    flight = unknown(rig)
    rig.tells(flight.client_order_id, OrderStatus.EXPIRED)
    rig.settle_down()
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "VENUE_STREAM")
    assert rig.book.live_orders() == [] and rig.desk.unsettled == 0


def test_fill_of_an_unknown_order_proves_that_it_was_placed(rig: Rig) -> None:
    flight = unknown(rig, buy(10))
    rig.fills(flight.client_order_id, 4)
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "FILL_HISTORY")
    rig.settle_down()
    assert rig.desk.unsettled == 0 and rig.book.exposure(SYMBOL, buy().side) == 6
    (ask,) = [LookUp(flight.index, flight.client_order_id, True)]
    looked(rig, ask, Absent(), at=UNIX + 10 * S)
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "FILL_HISTORY"), "a late 'not there' does not undo it"


@pytest.mark.parametrize("how", ["open", "fill", "close"])
def test_stream_that_was_faster_than_an_answer_that_got_lost_leaves_no_doubt(rig: Rig, how: str) -> None:
    flight = rig.sent(buy(10))
    if how == "fill":
        rig.fills(flight.client_order_id, 10)
    else:
        rig.tells(flight.client_order_id, OrderStatus.OPEN if how == "open" else OrderStatus.CANCELLED)
    rig.settle_down()
    rig.answer(flight, Unknown("timeout", UNIX + S))
    assert rig.outcomes(flight.index) == [("ACCEPTED", "VENUE_STREAM")]
    assert rig.desk.unsettled == 0 and isinstance(rig.wish(buy(1)), Flight)


def test_refusal_of_an_order_that_the_stream_has_shown_does_not_make_it_go_away(rig: Rig) -> None:
    """As when some copy of it was refused as a duplicate: the first copy is live."""
    flight = rig.sent()
    rig.tells(flight.client_order_id)
    rig.answer(flight, Refused("duplicate_client_order_id", "used before"))
    assert rig.outcomes(flight.index) == [("ACCEPTED", "VENUE_STREAM")]
    order = rig.book.order(flight.index)
    assert order is not None and order.state is OrderState.OPEN


def test_order_found_among_the_open_ones_is_settled(rig: Rig) -> None:
    flight = unknown(rig)
    rig.desk.found_open(rig.order(flight.client_order_id))
    assert rig.outcomes(flight.index)[-1] == ("ACCEPTED", "LOOKUP_FOUND")


# -- the private stream: every fact once ------------------------------------------------------------------------------


def test_fill_told_twice_is_journaled_once_before_and_after_its_commit(rig: Rig) -> None:
    flight = rig.sent()
    rig.answer(flight, Accepted("v1"))
    rig.fills(flight.client_order_id, 4, "t1")
    rig.fills(flight.client_order_id, 4, "t1")
    rig.settle_down()
    rig.fills(flight.client_order_id, 4, "t1")
    rig.fills(flight.client_order_id, 4, "t2")
    rig.settle_down()
    assert [f.trade_id for f in rig.log.said(Fill)] == ["t1", "t2"]
    assert rig.book.position(SYMBOL) == 8 and rig.book.counts.duplicate_fills == 0


def test_close_told_twice_is_journaled_once(rig: Rig) -> None:
    flight = rig.sent()
    rig.answer(flight, Accepted("v1"))
    rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    rig.settle_down()
    rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    assert rig.count(OrderClosed) == 1


def test_fill_of_an_order_that_is_not_ours_is_counted_as_an_orphan(rig: Rig) -> None:
    for n, coid in enumerate(("manual-1", "xz7z2", f"{TAG}z7z99", f"{TAG}z8z2")):
        rig.fills(ClientOrderId(coid), 1, f"t{n}", seq=n + 1)
    rig.settle_down()
    assert [f.intent_index for f in rig.log.said(Fill)] == [0, 0, 0, 0]
    assert rig.book.counts.orphan_fills == 4 and rig.book.position(SYMBOL) == 4


def test_order_event_of_an_order_that_is_not_ours_is_left_to_the_reconcile(rig: Rig) -> None:
    before = len(rig.log.entries)
    rig.tells(ClientOrderId("manual-1"), OrderStatus.CANCELLED)
    assert len(rig.log.entries) == before


def test_fact_that_found_no_room_is_journaled_when_it_is_told_again(rig: Rig) -> None:
    flight = rig.sent()
    rig.answer(flight, Accepted("v1"))
    rig.log.full = True
    with pytest.raises(JournalBusy):
        rig.fills(flight.client_order_id, 4)
    with pytest.raises(JournalBusy):
        rig.tells(flight.client_order_id, OrderStatus.CANCELLED, 4)
    with pytest.raises(JournalBusy):
        rig.desk.cancel(flight.client_order_id, "")
    rig.log.full = False
    assert rig.desk.cancel(flight.client_order_id, "") is None
    rig.fills(flight.client_order_id, 4)
    rig.tells(flight.client_order_id, OrderStatus.CANCELLED, 4)
    assert (rig.count(Fill), rig.count(OrderClosed), rig.count(CancelRequested)) == (1, 1, 1)


def test_news_of_the_stream_itself_is_no_fact(rig: Rig) -> None:
    before = len(rig.log.entries)
    rig.desk.venue_said(StreamUp(1))
    assert len(rig.log.entries) == before


# -- cancels ------------------------------------------------------------------------------------------------------


def opened(rig: Rig) -> Flight:
    flight = rig.sent()
    rig.answer(flight, Accepted("v1"))
    return flight


def test_cancel_leaves_when_it_is_committed_and_is_asked_for_once(rig: Rig) -> None:
    flight = opened(rig)
    assert rig.desk.cancel(flight.client_order_id, "moved") is None
    again = rig.desk.cancel(flight.client_order_id, "moved")
    assert again is not None and again.code == "already_cancelling", "while it is not committed"
    assert rig.commit() == [SendCancel(flight.index, flight.client_order_id)]
    again = rig.desk.cancel(flight.client_order_id, "moved")
    assert again is not None and again.code == "already_cancelling", "and afterwards"
    assert rig.count(CancelRequested) == 1


@pytest.mark.parametrize("coid", ["nonsense", f"{TAG}z7z99"])
def test_cancel_of_an_order_that_never_was_is_declined(rig: Rig, coid: str) -> None:
    declined = rig.desk.cancel(ClientOrderId(coid), "")
    assert declined is not None and declined.code == "not_open"


@pytest.mark.parametrize("how", ["refused", "filled", "cancelled"])
def test_cancel_of_an_order_that_is_over_is_declined(rig: Rig, how: str) -> None:
    flight = rig.sent(buy(10))
    if how == "refused":
        rig.answer(flight, Refused("no_market", ""))
    elif how == "filled":
        rig.answer(flight, Accepted("v1"))
        rig.fills(flight.client_order_id, 10)  # its close has not come yet
    else:
        rig.answer(flight, Accepted("v1"))
        rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    rig.settle_down()
    declined = rig.desk.cancel(flight.client_order_id, "")
    assert declined is not None and declined.code == "not_open"


def cancelling(rig: Rig) -> Flight:
    flight = opened(rig)
    rig.desk.cancel(flight.client_order_id, "")
    rig.commit()
    return flight


@pytest.mark.parametrize("answer", [Accepted(""), Unknown("timeout"), NotSent("venue_disconnected", "")])
def test_cancel_without_a_close_is_asked_for_again_until_the_close_comes(rig: Rig, answer: object) -> None:
    flight = cancelling(rig)
    assert rig.desk.cancel_answered(flight.index, answer, rig.now) == []  # type: ignore[arg-type]
    assert rig.after(CANCEL_RETRY_NS - 1) == []
    for _ in range(3):
        assert rig.after(CANCEL_RETRY_NS) == [SendCancel(flight.index, flight.client_order_id)]
    rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    rig.settle_down()
    assert rig.after(60 * S) == []


def test_cancel_that_is_refused_has_the_order_looked_up(rig: Rig) -> None:
    flight = cancelling(rig)
    (ask,) = rig.desk.cancel_answered(flight.index, Refused("unknown_order", ""), rig.now)
    assert isinstance(ask, LookUp)
    looked(rig, ask, Found(rig.order(flight.client_order_id, OrderStatus.FILLED, 10)))
    assert [c.filled_lots for c in rig.log.said(OrderClosed)] == [10]
    assert rig.after(60 * S) == []


def test_cancel_refused_for_a_stale_token_is_the_end_of_the_term(rig: Rig) -> None:
    flight = cancelling(rig)
    assert rig.desk.cancel_answered(flight.index, Refused("stale_token", "9"), rig.now) == [StepDown("venue: 9")]


@pytest.mark.parametrize("how", ["closed", "filled"])
def test_answer_to_a_cancel_of_an_order_that_is_over_meanwhile_is_not_heard(rig: Rig, how: str) -> None:
    flight = cancelling(rig)
    if how == "closed":
        rig.tells(flight.client_order_id, OrderStatus.CANCELLED)
    else:
        rig.fills(flight.client_order_id, 10)
    rig.settle_down()
    assert rig.desk.cancel_answered(flight.index, Refused("unknown_order", ""), rig.now) == []


def test_cancel_of_an_order_that_filled_stops_being_asked_for(rig: Rig) -> None:
    """All its fills have come, its close has not."""
    flight = cancelling(rig)
    rig.fills(flight.client_order_id, 10)
    rig.settle_down()
    assert rig.after(60 * S) == [] and rig.after(60 * S) == []


def test_order_whose_cancel_came_before_it_was_sent_is_not_sent(rig: Rig) -> None:
    flight = rig.flight()
    rig.commit()  # in the book, not claimed yet
    rig.desk.cancel(flight.client_order_id, "")
    (finished,) = rig.commit()
    assert isinstance(finished, Finished) and isinstance(finished.result, NotSent)
    assert finished.result.code == "cancelled"
    assert rig.desk.claimed(flight.index, None, rig.now) == []
    rig.settle_down()
    assert rig.book.live_orders() == []


@pytest.mark.parametrize("answer", [Accepted("v1"), Unknown("timeout", UNIX)])
def test_cancel_of_an_order_on_its_way_waits_for_the_answer(rig: Rig, answer: object) -> None:
    flight = rig.sent()
    rig.desk.cancel(flight.client_order_id, "")
    assert rig.commit() == [], "a venue need not know what has not arrived"
    assert of(SendCancel, rig.after(CANCEL_RETRY_NS)) == []
    actions = rig.desk.submitted(flight.index, answer, rig.now)  # type: ignore[arg-type]
    assert of(SendCancel, actions) == [SendCancel(flight.index, flight.client_order_id)]


def test_cancel_of_an_order_on_its_way_that_is_refused_is_forgotten(rig: Rig) -> None:
    flight = rig.sent()
    rig.desk.cancel(flight.client_order_id, "")
    rig.commit()
    assert of(SendCancel, rig.answer(flight, Refused("no_market", ""))) == []
    assert rig.after(60 * S) == []


def test_cancel_of_an_unknown_order_that_proves_absent_is_forgotten(rig: Rig) -> None:
    flight = unknown(rig)
    rig.desk.cancel(flight.client_order_id, "")
    assert of(SendCancel, rig.commit())
    (ask,) = of(LookUp, rig.after(LOOKUP_RETRY_NS))
    looked(rig, ask, Absent(), at=UNIX + 10 * S)
    assert rig.after(60 * S) == []


# -- the next leader --------------------------------------------------------------------------------------------------


def left_open(rig: Rig, *, outcome: object | None = None, term: int = 9) -> Flight:
    """Sent by the leader of term 7, who ended before (or after, outcome) the answer."""
    flight = rig.sent()
    if outcome is not None:
        rig.answer(flight, outcome)
    rig.lead(term)
    return flight


def test_next_leader_looks_up_at_once_what_was_left_open(rig: Rig) -> None:
    flight = left_open(rig)
    assert rig.book.is_blocked(SYMBOL, buy().side)
    assert rig.desk.take_over(rig.now, UNIX) == [LookUp(flight.index, flight.client_order_id, True)]
    assert rig.desk.settling and rig.desk.unsettled == 1


@pytest.mark.parametrize("result", [Absent(), Unavailable("down")])
def test_takeover_has_asked_when_each_was_answered_once_whatever_the_answer(rig: Rig, result: object) -> None:
    left_open(rig)
    (ask,) = rig.desk.take_over(rig.now, UNIX)
    looked(rig, ask, result)
    assert not rig.desk.settling


def test_takeover_waits_until_what_it_found_is_committed(rig: Rig) -> None:
    """The answer alone does not unblock the instrument: the first order of the term would be declined."""
    left_open(rig)
    (ask,) = rig.desk.take_over(rig.now, UNIX)
    rig.desk.looked_up(ask, Absent(), asked_at_venue=UNIX, now=rig.now)
    assert rig.desk.settling and isinstance(rig.wish(buy(1)), Declined)
    rig.commit()
    assert not rig.desk.settling and isinstance(rig.wish(buy(1)), Flight)


def test_on_a_token_venue_absent_after_arming_is_proof(rig: Rig) -> None:
    flight = left_open(rig)
    (ask,) = rig.desk.take_over(rig.now, UNIX)
    looked(rig, ask, Absent())
    assert rig.outcomes(flight.index) == [("NOT_SENT", "ABSENT_FENCED")]
    assert isinstance(rig.wish(buy(1)), Flight)


def test_armed_between_the_question_and_its_answer_is_no_proof(rig: Rig) -> None:
    """1. We ask; the order is not there. 2. The frozen sender's order arrives: its token is the highest yet.
    3. We arm. 4. The answer to 1 comes."""
    rig.armed = False
    flight = left_open(rig)
    (ask,) = rig.desk.take_over(rig.now, UNIX)
    assert not ask.armed
    rig.desk.armed = True
    looked(rig, ask, Absent())
    assert rig.desk.unsettled == 1
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Found(rig.order(flight.client_order_id)))
    assert rig.outcomes(flight.index) == [("ACCEPTED", "LOOKUP_FOUND")]


def test_on_an_expiry_venue_an_old_order_may_come_for_its_own_leaders_validity_after_the_takeover() -> None:
    """1. A leads with a validity of 1 s, B has 0.1 s, as in a change of the configuration. 2. An order of A hangs on
    its way; A dies. 3. B must not call it never placed before A's second is over."""
    rig = Rig("expiry")
    flight = rig.sent()
    rig.lead(9, validity=VALIDITY // 10)
    (ask,) = rig.desk.take_over(rig.now, UNIX)
    looked(rig, ask, Absent(), at=UNIX + VALIDITY)
    assert rig.desk.unsettled == 1
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + VALIDITY + 1)
    assert rig.outcomes(flight.index) == [("NOT_SENT", "ABSENT_EXPIRED")]


def test_expiry_that_the_last_leader_journaled_is_the_one_that_counts() -> None:
    rig = Rig("expiry")
    flight = left_open(rig, outcome=Unknown("timeout", UNIX + 300 * MS))
    (ask,) = rig.desk.take_over(rig.now, UNIX + 10 * S)
    looked(rig, ask, Absent(), at=UNIX + 300 * MS + 1)
    assert rig.outcomes(flight.index)[-1] == ("NOT_SENT", "ABSENT_EXPIRED")


def test_venue_clock_that_is_known_only_later_gives_the_bound_then() -> None:
    rig = Rig("expiry")
    flight = left_open(rig)
    (ask,) = rig.desk.take_over(rig.now, None)
    looked(rig, ask, Absent(), at=UNIX + 100 * S)
    assert rig.desk.unsettled == 1
    rig.desk.bound_unknown(UNIX + 200 * S)
    rig.desk.bound_unknown(UNIX + 300 * S)  # a later word does not move it
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + 200 * S + VALIDITY + 1)
    assert rig.outcomes(flight.index) == [("NOT_SENT", "ABSENT_EXPIRED")]


def test_bound_is_for_orders_of_earlier_terms_only() -> None:
    """An order of ours without an expiry may arrive at any time, whatever the clock says."""
    rig = Rig("expiry")
    unknown(rig, expires=None)
    rig.desk.bound_unknown(UNIX)
    (ask,) = rig.after(LOOKUP_RETRY_NS)
    looked(rig, ask, Absent(), at=UNIX + 100 * S)
    assert rig.desk.unsettled == 1


def test_order_that_the_last_leader_saw_filling_is_placed_without_asking(rig: Rig) -> None:
    flight = rig.sent(buy(10))
    rig.fills(flight.client_order_id, 4)
    rig.commit()
    rig.lead(9)
    assert rig.desk.take_over(rig.now, UNIX) == []
    assert rig.outcomes(flight.index) == [("ACCEPTED", "FILL_HISTORY")]


def test_what_is_settled_is_not_asked_about(rig: Rig) -> None:
    left_open(rig, outcome=Accepted("v1"))
    assert rig.desk.take_over(rig.now, UNIX) == [] and not rig.desk.settling


def test_cancels_that_earlier_leaders_were_asked_for_leave_with_the_permit(rig: Rig) -> None:
    flight = opened(rig)
    other = opened(rig)
    rig.desk.cancel(flight.client_order_id, "")
    rig.commit()
    rig.lead(9)
    assert rig.desk.take_over(rig.now, UNIX) == [], "not before the permit"
    assert rig.desk.granted(rig.now) == [SendCancel(flight.index, flight.client_order_id)]
    assert rig.after(CANCEL_RETRY_NS) == [SendCancel(flight.index, flight.client_order_id)]
    assert other.index not in [a.index for a in of(SendCancel, rig.after(60 * S))]


def test_adopted_request_to_cancel_waits_for_the_permit_as_well(rig: Rig) -> None:
    """The last leader appended it; we are the ones who commit it."""
    flight = opened(rig)
    rig.desk.cancel(flight.client_order_id, "")
    rig.lead(9)
    assert rig.desk.granted(rig.now) == [SendCancel(flight.index, flight.client_order_id)]


# -- draining, and the end of the term --------------------------------------------------------------------------------


def test_in_flight_until_the_outcome_is_committed(rig: Rig) -> None:
    assert rig.desk.in_flight == 0
    flight = rig.flight()
    assert rig.desk.in_flight == 1
    rig.desk.claimed(flight.index, None, rig.now)
    rig.commit()
    assert rig.desk.in_flight == 1
    rig.desk.submitted(flight.index, Accepted("v1"), rig.now)
    assert rig.desk.in_flight == 1
    rig.commit()
    assert rig.desk.in_flight == 0


def test_draining_is_done_with_an_unknown_outcome_once_that_is_committed(rig: Rig) -> None:
    flight = rig.sent()
    rig.desk.submitted(flight.index, Unknown("timeout", UNIX), rig.now)
    assert rig.desk.in_flight == 1
    rig.commit()
    assert rig.desk.in_flight == 0 and rig.desk.unsettled == 1


def test_nothing_can_be_said_once_the_term_is_over(rig: Rig) -> None:
    flight, other = rig.sent(), opened(rig)
    rig.log.over = True
    for say in (
        lambda: rig.wish(),
        lambda: rig.desk.cancel(other.client_order_id, ""),
        lambda: rig.desk.submitted(flight.index, Accepted("v1"), rig.now),
        lambda: rig.fills(other.client_order_id, 1),
    ):
        with pytest.raises(TermOver):
            say()


def test_facts_of_other_kinds_pass_the_desk_by(rig: Rig) -> None:
    rig.log.append(Reconciled("periodic", ()))
    assert rig.commit() == []


def test_times_of_a_flight_are_noted_for_the_histograms(rig: Rig) -> None:
    flight = rig.flight()
    assert (flight.decided_at, flight.committed_at, flight.claimed_at, flight.sent_at) == (rig.now, 0, 0, 0)
    rig.now = Instant(rig.now + 1)
    rig.desk.claimed(flight.index, None, rig.now)
    rig.now = Instant(rig.now + 1)
    rig.commit()
    rig.now = Instant(rig.now + 1)
    rig.answer(flight, Accepted("v1"))
    begun = flight.decided_at
    assert [t - begun for t in (flight.claimed_at, flight.committed_at, flight.sent_at, flight.answered_at)] == [
        1,
        2,
        2,
        3,
    ]


def test_orders_are_told_apart_by_their_whole_name(rig: Rig) -> None:
    """An id of the right shape, at an index of ours, of another term: not ours."""
    flight = opened(rig)
    stranger = ClientOrderId(flight.client_order_id.replace("z7z", "z6z"))
    rig.desk.venue_said(VenueOrderEvent(rig.order(stranger, OrderStatus.CANCELLED), "", UNIX, 1))
    assert rig.count(OrderClosed) == 0
