"""The book: each fact by example, then any journal against a model that recomputes everything from scratch."""

from __future__ import annotations

import random
from decimal import Decimal
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.core.errors import ConfigError, InvariantViolation, JournalCorrupt
from cluster.core.ids import LogIndex, Term
from cluster.core.log import Entry
from node.book import Book, Filled, Keep, MismatchFound, OrderChanged
from node.codec import (
    CancelRequested,
    Closed,
    Evidence,
    Fact,
    Fill,
    Intent,
    Kind,
    OrderClosed,
    Outcome,
    Reconciled,
    Result,
    StrategyState,
    TermStarted,
    decode,
    encode,
)
from node.risk import ORDERS_BURST_MAX
from node.strategy import OrderState
from node.types import Instrument, OrderSpec, OrderType, Side, TimeInForce, client_order_id

BTC = Instrument("BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
ETH = Instrument("ETHUSDT", Decimal("0.01"), Decimal("0.0001"))
TAG = "b7"
BUY, SELL = Side.BUY, Side.SELL


class Journal:
    """Appends facts and applies them to a book, as a leader does."""

    def __init__(self, keep: Keep = Keep()) -> None:
        self.book = Book(TAG, [BTC, ETH], keep)
        self.entries: list[Entry] = []
        self.term = 3
        self.now = 1_700_000_000_000_000_000
        self.say(TermStarted("n1", "i1"))

    def say(self, fact: Fact, *, at: int | None = None) -> int:
        self.events = self.book.apply(self.append(fact, at=at))
        return len(self.entries)

    def append(self, fact: Fact, *, at: int | None = None) -> Entry:
        self.now += 1_000_000
        kind, body = encode(fact)
        entry = Entry(LogIndex(len(self.entries) + 1), Term(self.term), kind, self.now if at is None else at, body, b"")
        self.entries.append(entry)
        return entry

    def intent(self, side: Side = BUY, qty: int = 10, *, symbol: str = "BTCUSDT", decision: str = "") -> int:
        decision = decision or f"d{len(self.entries) + 1}"
        return self.say(Intent(decision, OrderSpec(symbol, side, qty, 100)))

    def outcome(self, intent: int, result: Result, **more: object) -> None:
        self.say(Outcome(intent, result, Evidence.VENUE_REPLY, **more))  # type: ignore[arg-type]

    def fill(self, intent: int, qty: int, trade: str = "", *, seq: int = 0) -> None:
        order = self.book.order(intent)
        assert order
        spec = order.intent.spec
        trade = trade or f"t{len(self.entries)}"
        self.say(Fill(trade, intent, order.client_order_id, spec.symbol, spec.side, qty, 100, 0, seq))

    def close(self, intent: int, filled: int, how: Closed = Closed.CANCELLED, *, seq: int = 0) -> None:
        self.say(OrderClosed(intent, how, filled, "why", Evidence.VENUE_STREAM, seq))

    def new_term(self, term: int) -> None:
        self.term = term
        self.say(TermStarted("n2", "i2"))

    def state(self, intent: int) -> OrderState:
        order = self.book.order(intent)
        assert order
        return order.state

    def codes(self) -> list[str]:
        return [m.code for m in self.book.mismatches]


@pytest.fixture
def j() -> Journal:
    return Journal()


# -- one order's life ---------------------------------------------------------------------------------------


def test_order_from_intent_to_filled_moves_exposure_into_position(j: Journal) -> None:
    i = j.intent(BUY, 10)
    assert (j.state(i), j.book.exposure("BTCUSDT", BUY), j.book.position("BTCUSDT")) == (OrderState.PENDING, 10, 0)
    assert [o.index for o in j.book.unresolved()] == [i]
    j.outcome(i, Result.ACCEPTED, venue_order_id="v1")
    assert j.state(i) is OrderState.OPEN and j.book.unresolved() == []
    j.fill(i, 4)
    assert (j.book.exposure("BTCUSDT", BUY), j.book.position("BTCUSDT")) == (6, 4)
    j.fill(i, 6)
    assert j.state(i) is OrderState.CLOSED
    j.close(i, 10, Closed.FILLED)
    assert (j.book.exposure("BTCUSDT", BUY), j.book.position("BTCUSDT")) == (0, 10)
    assert j.book.live_orders() == [] and j.codes() == []
    assert [o.index for o in j.book.recent_closed(5)] == [i]


def test_sells_are_negative_and_symbols_and_sides_are_apart(j: Journal) -> None:
    b, s, e = j.intent(BUY, 1), j.intent(SELL, 2), j.intent(SELL, 4, symbol="ETHUSDT")
    exposures = [j.book.exposure(sym, side) for sym in ("BTCUSDT", "ETHUSDT") for side in (BUY, SELL)]
    assert exposures == [1, 2, 0, 4]
    for i, qty in ((b, 1), (s, 2), (e, 4)):
        j.fill(i, qty)
    assert j.book.positions() == {"BTCUSDT": -1, "ETHUSDT": -4}
    j.fill(j.intent(BUY, 1), 1)
    assert j.book.positions() == {"ETHUSDT": -4}, "a flat symbol is not listed"


@pytest.mark.parametrize("result", [Result.REFUSED, Result.NOT_SENT])
def test_order_without_effect_leaves_no_exposure(j: Journal, result: Result) -> None:
    i = j.intent()
    j.outcome(i, result, code="x", reason="because")
    assert j.state(i) is OrderState.CLOSED
    assert j.book.exposure("BTCUSDT", BUY) == 0 and j.book.unresolved() == []
    order = j.book.order(i)
    assert order and order.view().reason == "because"


def test_unknown_counts_in_full_and_blocks_its_side_until_settled(j: Journal) -> None:
    i = j.intent(SELL, 7)
    j.outcome(i, Result.UNKNOWN, expires_at=99)
    assert j.state(i) is OrderState.UNKNOWN
    assert j.book.exposure("BTCUSDT", SELL) == 7
    assert j.book.is_blocked("BTCUSDT", SELL) and not j.book.is_blocked("BTCUSDT", BUY)
    assert j.book.blocked() == [("BTCUSDT", SELL)]
    second = j.intent(SELL, 1)
    j.outcome(second, Result.UNKNOWN)
    j.outcome(i, Result.NOT_SENT)
    assert j.book.is_blocked("BTCUSDT", SELL), "the other one is still unknown"
    j.outcome(second, Result.ACCEPTED)
    assert j.book.blocked() == [] and j.book.exposure("BTCUSDT", SELL) == 1


def test_later_expiry_of_two_unknowns_stays(j: Journal) -> None:
    i = j.intent()
    for expires_at in (50, 90, 70):
        j.outcome(i, Result.UNKNOWN, expires_at=expires_at)
    [order] = j.book.unresolved()
    assert order.outcome and order.outcome.expires_at == 90


def test_new_term_turns_silence_into_unknown(j: Journal) -> None:
    silent, heard = j.intent(BUY, 3), j.intent(SELL, 2)
    j.outcome(heard, Result.ACCEPTED)
    j.new_term(9)
    [event] = j.events
    assert isinstance(event, OrderChanged) and event.order.state is OrderState.UNKNOWN
    assert j.state(silent) is OrderState.UNKNOWN and j.state(heard) is OrderState.OPEN
    assert j.book.blocked() == [("BTCUSDT", BUY)]
    [order] = j.book.unresolved()
    assert order.outcome and order.outcome.code == "term_ended" and "term 3" in order.outcome.reason
    assert order.client_order_id == client_order_id(TAG, 3, silent), "the id is of the term it was written in"


def test_cancel_request_is_remembered_for_the_next_leader(j: Journal) -> None:
    i = j.intent()
    j.outcome(i, Result.ACCEPTED)
    j.say(CancelRequested(i, "stale quote"))
    assert [o.index for o in j.book.cancels_requested()] == [i]
    j.new_term(9)
    assert [o.index for o in j.book.cancels_requested()] == [i]
    j.close(i, 0)
    assert j.book.cancels_requested() == []


def test_order_is_found_by_its_client_order_id_and_by_no_other(j: Journal) -> None:
    i = j.intent()
    order = j.book.order(i)
    assert order and j.book.order_by_id(order.client_order_id) is order
    for other in (client_order_id(TAG, 4, i), client_order_id("c1", 3, i), "manual-1", ""):
        assert j.book.order_by_id(other) is None


# -- facts out of order -------------------------------------------------------------------------------------


def test_fill_before_the_outcome_proves_placement_but_the_answer_is_still_asked_for(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.fill(i, 4)
    assert j.state(i) is OrderState.OPEN
    assert [o.index for o in j.book.unresolved()] == [i]
    j.outcome(i, Result.UNKNOWN)
    assert j.state(i) is OrderState.OPEN and j.book.blocked() == []
    j.outcome(i, Result.ACCEPTED)
    assert j.book.unresolved() == [] and j.codes() == []


def test_close_before_the_outcome(j: Journal) -> None:
    i = j.intent()
    j.close(i, 0)
    j.outcome(i, Result.ACCEPTED)
    assert j.state(i) is OrderState.CLOSED and j.book.unresolved() == [] and j.codes() == []


def test_close_ahead_of_its_fills_keeps_the_difference_as_exposure(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.outcome(i, Result.ACCEPTED)
    j.close(i, 6)
    assert j.state(i) is OrderState.CLOSED
    assert j.book.exposure("BTCUSDT", BUY) == 6
    assert [o.index for o in j.book.awaiting_fills()] == [i]
    assert j.book.open_orders("BTCUSDT") == []
    j.fill(i, 2)
    assert (j.book.exposure("BTCUSDT", BUY), j.book.position("BTCUSDT")) == (4, 2)
    j.fill(i, 4)
    assert j.book.awaiting_fills() == [] and j.book.exposure("BTCUSDT", BUY) == 0 and j.codes() == []


def test_unknown_after_accepted_changes_nothing(j: Journal) -> None:
    i = j.intent()
    j.outcome(i, Result.ACCEPTED, venue_order_id="v1")
    j.outcome(i, Result.UNKNOWN)
    assert j.events == [] and j.state(i) is OrderState.OPEN and j.codes() == []


facts_of_one_order = st.lists(
    st.one_of(
        st.sampled_from(
            [Result.ACCEPTED, Result.REFUSED, Result.NOT_SENT, (Result.UNKNOWN, 5), (Result.UNKNOWN, 9), "cancel"]
        ),
        st.tuples(st.just("fill"), st.integers(1, 6), st.integers(1, 4)),
        st.tuples(st.just("close"), st.integers(0, 12)),
    ),
    max_size=5,
)


@given(facts=facts_of_one_order)
@settings(max_examples=60)
def test_facts_about_an_order_give_the_same_book_in_any_order(facts: list[object]) -> None:
    digests = set()
    for order in list(permutations(facts))[:40]:
        j = Journal()
        i = j.intent(BUY, 10)
        for fact in order:
            match fact:
                case Result():
                    j.outcome(i, fact)
                case (Result(), int(expires)):
                    j.outcome(i, Result.UNKNOWN, expires_at=expires)
                case "cancel":
                    j.say(CancelRequested(i))
                case ("fill", int(qty), int(n)):
                    j.fill(i, qty, f"t{qty}-{n}")  # one trade has one size, also when it is told twice
                case ("close", int(filled)):
                    j.close(i, filled)
        digests.add(j.book.digest())
    assert len(digests) == 1


# -- what cannot be, and happens ----------------------------------------------------------------------------


def test_repeated_trade_counts_once(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.fill(i, 4, "t1", seq=7)
    j.fill(i, 4, "t1", seq=7)
    assert j.events == [] and j.book.position("BTCUSDT") == 4
    assert (j.book.counts.fills, j.book.counts.duplicate_fills) == (1, 1)
    assert j.book.has_fill("t1") and not j.book.has_fill("t2")


def test_orphan_fill_counts_into_the_position(j: Journal) -> None:
    j.say(Fill("t1", 0, "manual-1", "BTCUSDT", SELL, 3, 100, 0, 5))
    assert j.book.position("BTCUSDT") == -3 and j.book.counts.orphan_fills == 1
    [event] = j.events
    assert isinstance(event, Filled) and event.fill.client_order_id == "manual-1"


@pytest.mark.parametrize("result", [Result.NOT_SENT, Result.REFUSED])
def test_fill_of_an_order_held_for_unplaced_reopens_it_and_is_seen(j: Journal, result: Result) -> None:
    i = j.intent(BUY, 10)
    j.outcome(i, result)
    j.fill(i, 4)
    assert j.codes() == ["fill_of_unplaced"]
    assert any(isinstance(e, MismatchFound) for e in j.events)
    assert (j.book.position("BTCUSDT"), j.book.exposure("BTCUSDT", BUY)) == (4, 6), "the rest may be live"
    j.close(i, 4)
    assert j.book.exposure("BTCUSDT", BUY) == 0


def test_overfill_counts_in_full_and_is_seen(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.fill(i, 8)
    j.fill(i, 8)
    assert j.book.position("BTCUSDT") == 16 and j.codes() == ["overfill"]
    assert j.book.exposure("BTCUSDT", BUY) == 0


def test_fill_after_a_close_that_said_less_is_seen(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.close(i, 2)
    j.fill(i, 2)
    assert j.codes() == []
    j.fill(i, 3)
    assert j.codes() == ["fill_after_close"] and j.book.position("BTCUSDT") == 5


def test_fill_that_names_another_side_follows_the_venue_and_is_seen(j: Journal) -> None:
    i = j.intent(BUY, 10)
    coid = client_order_id(TAG, 3, i)
    j.say(Fill("t1", i, coid, "ETHUSDT", SELL, 4, 100))
    assert j.book.positions() == {"ETHUSDT": -4} and j.codes() == ["fill_differs"]


@pytest.mark.parametrize(
    ("first", "then"),
    [(Result.ACCEPTED, Result.REFUSED), (Result.REFUSED, Result.ACCEPTED), (Result.NOT_SENT, Result.ACCEPTED)],
)
def test_contradicting_outcomes_count_as_placed_and_are_seen(j: Journal, first: Result, then: Result) -> None:
    i = j.intent(BUY, 10)
    j.outcome(i, first)
    j.outcome(i, then)
    assert j.codes() == ["outcome_conflict"]
    assert j.state(i) is OrderState.OPEN and j.book.exposure("BTCUSDT", BUY) == 10


def test_contradicting_closes_are_seen_and_the_larger_fill_counts(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.close(i, 2)
    j.close(i, 5, Closed.EXPIRED)
    assert j.codes() == ["close_conflict"] and j.book.exposure("BTCUSDT", BUY) == 5
    j.close(i, 5, Closed.EXPIRED)
    assert j.codes() == ["close_conflict"], "the same word twice is no conflict"


def test_close_that_says_less_than_the_fills_and_close_of_an_unplaced_order_are_seen(j: Journal) -> None:
    i, k = j.intent(BUY, 10), j.intent(BUY, 10)
    j.fill(i, 6)
    j.close(i, 5)
    j.outcome(k, Result.NOT_SENT)
    j.close(k, 0)
    assert j.codes() == ["close_differs", "close_of_unplaced"]


def test_facts_about_no_intent_are_seen_and_fills_among_them_still_count(j: Journal) -> None:
    j.say(Outcome(77, Result.ACCEPTED, Evidence.VENUE_REPLY))
    j.say(OrderClosed(77, Closed.CANCELLED, 0))
    j.say(CancelRequested(77))
    j.say(Fill("t1", 77, "b7z3z25", "BTCUSDT", BUY, 3, 100))
    assert j.codes() == ["no_such_intent"] * 4 and j.book.counts.mismatches == 4
    assert j.book.position("BTCUSDT") == 3
    assert j.book.mismatches[0].text.startswith("OUTCOME for intent 77")


def test_second_intent_for_one_decision_stops_the_node(j: Journal) -> None:
    j.intent(decision="signal-1")
    assert j.book.decided("signal-1") and not j.book.decided("signal-2")
    with pytest.raises(InvariantViolation, match="signal-1"):
        j.intent(decision="signal-1")


def test_entries_out_of_order_stop_the_node(j: Journal) -> None:
    entry = j.append(Reconciled("takeover"))
    for wrong in (entry._replace(index=LogIndex(entry.index + 1)), entry._replace(term=Term(2)), j.entries[0]):
        with pytest.raises(InvariantViolation):
            j.book.apply(wrong)
    j.book.apply(entry)


# -- codec --------------------------------------------------------------------------------------------------


def test_facts_survive_the_wire() -> None:
    facts: list[Fact] = [
        TermStarted("n1", "i"),
        Intent("d", OrderSpec("X", SELL, 5, None, OrderType.MARKET, TimeInForce.IOC), "why", 12),
        Intent("d", OrderSpec("X", BUY, 5, 7, post_only=True)),
        Outcome(4, Result.UNKNOWN, Evidence.LOCAL, "v", "c", "r", 99),
        Fill("t", 4, "c", "X", SELL, 3, -5, 8, 9),
        OrderClosed(4, Closed.EXPIRED, 3, "r", Evidence.OPERATOR, 6),
        CancelRequested(4, "r"),
        StrategyState("a:B", -1, b"\x00\xff"),
        Reconciled("periodic", ("a", "b")),
    ]
    assert {type(f) for f in facts} == set(Fact.__args__)
    for fact in facts:
        assert decode(*encode(fact)) == fact


@pytest.mark.parametrize(
    "fact",
    [
        Intent("", OrderSpec("X", BUY, 1, 1)),
        Intent("d", OrderSpec("", BUY, 1, 1)),
        Outcome(0, Result.ACCEPTED, Evidence.LOCAL),
        Outcome(1, Result.NONE, Evidence.LOCAL),
        Fill("", 1, "c", "X", BUY, 1, 1),
        Fill("t", 1, "c", "", BUY, 1, 1),
        Fill("t", 1, "c", "X", BUY, 0, 1),
        Fill("t", -1, "c", "X", BUY, 1, 1),
        Fill("t", 1, "c", "X", BUY, 2**63, 1),
        OrderClosed(0, Closed.FILLED, 1),
        OrderClosed(1, Closed.NONE, 1),
        OrderClosed(1, Closed.FILLED, -1),
        CancelRequested(0),
    ],
)
def test_impossible_facts_are_not_journaled(fact: Fact) -> None:
    with pytest.raises(InvariantViolation):
        encode(fact)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (99, b""),
        (int(Kind.FILL), b"\xff\xff"),
        (int(Kind.INTENT), b""),
        (int(Kind.INTENT), b"\x0a\x01d\x12\x01X\x18\x7f\x38\x01"),
        (int(Kind.OUTCOME), b"\x08\x01\x10\x63"),
    ],
)
def test_bodies_that_no_writer_makes_stop_the_reader(kind: int, body: bytes) -> None:
    with pytest.raises(InvariantViolation):
        decode(kind, body)


# -- memory, resume point, times ----------------------------------------------------------------------------


def test_memory_is_bounded_and_pruned_oldest_first() -> None:
    j = Journal(Keep(closed_orders=3, decision_ids=5, trade_ids=4, mismatches=2))
    first = [j.intent() for _ in range(8)]
    for i in reversed(first):
        j.fill(i, 10, f"t{i}")
    assert [o.index for o in j.book.recent_closed(9)] == first[:3], "closed last, kept"
    assert [j.book.order(i) is None for i in first] == [False] * 3 + [True] * 5
    assert [j.book.decided(f"d{i}") for i in first] == [False] * 3 + [True] * 5
    assert [j.book.has_fill(f"t{i}") for i in first] == [True] * 4 + [False] * 4
    for _ in range(5):
        j.outcome(999, Result.ACCEPTED)
    assert len(j.book.mismatches) == 2 and j.book.counts.mismatches == 5


def test_live_orders_are_never_pruned() -> None:
    j = Journal(Keep(closed_orders=1))
    stuck = j.intent()
    j.outcome(stuck, Result.UNKNOWN)
    missing = j.intent()
    j.close(missing, 5)
    for _ in range(10):
        j.outcome(j.intent(), Result.REFUSED)
    assert [o.index for o in j.book.live_orders()] == [stuck, missing]


def test_resume_point_is_the_highest_place_in_the_stream(j: Journal) -> None:
    i = j.intent(BUY, 10)
    j.fill(i, 1, seq=41)
    j.fill(i, 1, seq=40)
    assert j.book.venue_event_seq == 41
    j.close(i, 2, seq=44)
    j.fill(i, 1, "t-x", seq=0)
    assert j.book.venue_event_seq == 44


def test_intent_times_ascend_even_when_the_clock_falls(j: Journal) -> None:
    spec = OrderSpec("BTCUSDT", BUY, 1, 1)
    for n, at in enumerate((100, 200, 300, 250)):
        j.say(Intent(f"x{n}", spec), at=at)
    assert list(j.book.recent_intents) == [100, 200, 250, 250]
    j.term = 9
    j.say(TermStarted("n2", "i"), at=150)
    assert list(j.book.recent_intents) == [100, 150, 150, 150], "the new leader's clock is behind"


def test_intent_times_are_bounded(j: Journal) -> None:
    for _ in range(ORDERS_BURST_MAX + 10):
        j.intent()
    assert len(j.book.recent_intents) == ORDERS_BURST_MAX


def test_strategy_state_and_reconcile_results_are_kept(j: Journal) -> None:
    assert (j.book.strategy_state, j.book.reconciled) == (None, None)
    j.say(StrategyState("a:B", 1, b"old"))
    at = j.say(StrategyState("a:B", 2, b"new"))
    j.say(Reconciled("takeover", ("one",)))
    assert j.book.strategy_state == StrategyState("a:B", 2, b"new") and j.book.strategy_state_index == at
    assert j.book.reconciled == Reconciled("takeover", ("one",)) and j.book.reconciled_at == j.now
    j.new_term(8)
    assert j.book.counts.terms == 2 and j.book.term_started == TermStarted("n2", "i2")


# -- digest and snapshot ------------------------------------------------------------------------------------


def test_digest_shows_every_difference_that_bears_on_trading(j: Journal) -> None:
    digests = [j.book.digest()]

    def differs() -> None:
        assert j.book.digest() not in digests
        digests.append(j.book.digest())

    i = j.intent()
    differs()
    j.outcome(i, Result.UNKNOWN, expires_at=5)
    differs()
    j.outcome(i, Result.ACCEPTED)
    differs()
    j.say(CancelRequested(i))
    differs()
    j.fill(i, 1, seq=3)
    differs()
    j.close(i, 4)
    differs()
    j.say(StrategyState("a:B", 1, b"x"))
    differs()
    j.say(StrategyState("a:B", 1, b"y"))
    differs()
    j.say(Fill("t9", 0, "m", "ETHUSDT", BUY, 1, 1))
    differs()


def test_digest_does_not_depend_on_how_the_state_came_about() -> None:
    short, long = Journal(Keep(closed_orders=1)), Journal()
    for j, detour in ((short, False), (long, True)):
        if detour:
            j.outcome(j.intent(BUY, 5), Result.REFUSED)
            a, b = j.intent(BUY, 5), j.intent(SELL, 5)
            j.fill(a, 5)
            j.fill(b, 5)
            j.outcome(999, Result.ACCEPTED)
        j.say(Fill("orphan", 0, "m", "BTCUSDT", BUY, 7, 100))
    assert short.book.digest() == long.book.digest()
    assert short.book.snapshot() != long.book.snapshot()


def test_digest_differs_where_a_position_means_another_size() -> None:
    entries = Journal()
    entries.say(Fill("t", 0, "m", "BTCUSDT", BUY, 7, 100))

    def replay(*instruments: Instrument) -> bytes:
        book = Book(TAG, instruments)
        for e in entries.entries:
            book.apply(e)
        return book.digest()

    finer = Instrument("BTCUSDT", BTC.tick_size, Decimal("0.000001"))
    assert replay(BTC) != replay(finer)
    assert replay(BTC) == replay(BTC, ETH), "one node may know a further instrument already"
    assert replay(BTC) == replay(Instrument("BTCUSDT", Decimal("0.010"), BTC.lot_size))


def test_snapshot_refuses_what_would_change_its_meaning(j: Journal) -> None:
    i = j.intent()
    data = j.book.snapshot()
    with pytest.raises(ConfigError, match=r"order_tag = 'c9'.*'b7'"):
        Book.restore(data, "c9", [BTC])
    other_tick = Instrument("BTCUSDT", Decimal("0.1"), BTC.lot_size)
    with pytest.raises(ConfigError, match=r"tick_size = 0\.1.*0\.01"):
        Book.restore(data, TAG, [other_tick])
    j.outcome(i, Result.REFUSED)
    flat = Book.restore(j.book.snapshot(), TAG, [other_tick, ETH])
    assert flat.instruments["BTCUSDT"] == other_tick, "nothing is counted in the old ticks any more"


def test_snapshot_that_is_none_is_refused(j: Journal) -> None:
    for data in (b"\xff\xff\xff", b"", j.book.snapshot()[:-3] + b"\xff\xff\xff"):
        with pytest.raises(JournalCorrupt):
            Book.restore(data)


# -- any journal, against a model ---------------------------------------------------------------------------

SYMBOLS = ("BTCUSDT", "ETHUSDT")


class Model:
    """Recomputes everything from the list of facts. Slow and plain."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, int, Fact]] = []  # index, term, fact

    def trades(self) -> dict[str, tuple[int, Fill]]:
        found: dict[str, tuple[int, Fill]] = {}
        for index, _, f in self.facts:
            if isinstance(f, Fill):
                found.setdefault(f.trade_id, (index, f))
        return found

    def position(self, symbol: str) -> int:
        return sum(f.side.sign * f.qty_lots for _, f in self.trades().values() if f.symbol == symbol)

    def orders(self) -> dict[int, tuple[Intent, OrderState, int, bool]]:
        """index -> intent, state, remaining, unresolved."""
        last_term = max((t for _, t, _ in self.facts), default=0)
        found = {}
        for index, term, intent in self.facts:
            if not isinstance(intent, Intent):
                continue
            said = {f.result for _, _, f in self.facts if isinstance(f, Outcome) and f.intent_index == index}
            if not said and term < last_term:
                said = {Result.UNKNOWN}
            told = [f.filled_lots for _, _, f in self.facts if isinstance(f, OrderClosed) and f.intent_index == index]
            filled = sum(f.qty_lots for _, f in self.trades().values() if f.intent_index == index)
            qty = intent.spec.qty_lots
            no_effect = said & {Result.REFUSED, Result.NOT_SENT}
            if told:
                state, remaining = OrderState.CLOSED, max(0, max(told) - filled)
            elif filled >= qty:
                state, remaining = OrderState.CLOSED, 0
            elif filled or Result.ACCEPTED in said:
                state, remaining = OrderState.OPEN, qty - filled
            elif no_effect:
                state, remaining = OrderState.CLOSED, 0
            else:
                state, remaining = (OrderState.UNKNOWN if said else OrderState.PENDING), qty
            unresolved = state is not OrderState.CLOSED and not no_effect and Result.ACCEPTED not in said
            found[index] = (intent, state, remaining, unresolved)
        return found


class BookMachine(RuleBasedStateMachine):
    """Any facts in any order, with the book replaced by its own snapshot now and then."""

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.term = 1
        self.book = Book(TAG, [BTC, ETH])
        self.entries: list[Entry] = []
        self.say(TermStarted("n", "i"))

    def say(self, fact: Fact) -> None:
        kind, body = encode(fact)
        index = len(self.entries) + 1
        entry = Entry(LogIndex(index), Term(self.term), kind, index * 1000, body, b"")
        self.entries.append(entry)
        self.model.facts.append((index, self.term, fact))
        self.book.apply(entry)

    def some_intent(self, n: int) -> int:
        known = list(self.model.orders())
        return known[n % len(known)]

    has_intents = precondition(lambda self: any(isinstance(f, Intent) for _, _, f in self.model.facts))

    @rule(symbol=st.sampled_from(SYMBOLS), side=st.sampled_from(Side), qty=st.integers(1, 9))
    def intent(self, symbol: str, side: Side, qty: int) -> None:
        self.say(Intent(f"d{len(self.entries)}", OrderSpec(symbol, side, qty, 100)))

    @has_intents
    @rule(n=st.integers(0, 99), result=st.sampled_from([r for r in Result if r]), expires=st.integers(0, 9))
    def outcome(self, n: int, result: Result, expires: int) -> None:
        self.say(Outcome(self.some_intent(n), result, Evidence.VENUE_REPLY, expires_at=expires))

    @has_intents
    @rule(n=st.integers(0, 99), qty=st.integers(1, 12), seq=st.integers(0, 99))
    def fill(self, n: int, qty: int, seq: int) -> None:
        index = self.some_intent(n)
        spec = self.model.orders()[index][0].spec
        self.say(Fill(f"t{len(self.entries)}", index, "c", spec.symbol, spec.side, qty, 100, 0, seq))

    @precondition(lambda self: self.model.trades())
    @rule(n=st.integers(0, 99))
    def repeated_fill(self, n: int) -> None:
        trades = [f for _, f in self.model.trades().values()]
        self.say(trades[n % len(trades)])

    @rule(qty=st.integers(1, 9), side=st.sampled_from(Side), symbol=st.sampled_from(SYMBOLS))
    def orphan_fill(self, qty: int, side: Side, symbol: str) -> None:
        self.say(Fill(f"t{len(self.entries)}", 0, "manual", symbol, side, qty, 100))

    @has_intents
    @rule(n=st.integers(0, 99), filled=st.integers(0, 12), how=st.sampled_from([c for c in Closed if c]))
    def close(self, n: int, filled: int, how: Closed) -> None:
        self.say(OrderClosed(self.some_intent(n), how, filled))

    @has_intents
    @rule(n=st.integers(0, 99))
    def cancel(self, n: int) -> None:
        self.say(CancelRequested(self.some_intent(n)))

    @rule(state=st.binary(max_size=8))
    def strategy_state(self, state: bytes) -> None:
        self.say(StrategyState("a:B", 1, state))

    @rule(step=st.integers(1, 3))
    def new_term(self, step: int) -> None:
        self.term += step
        self.say(TermStarted("n", "i"))

    @rule()
    def snapshot_and_restore(self) -> None:
        data, digest = self.book.snapshot(), self.book.digest()
        self.book = Book.restore(data, TAG, [BTC, ETH])
        assert self.book.digest() == digest
        assert self.book.snapshot() == data

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        orders = self.model.orders()
        for symbol in SYMBOLS:
            assert self.book.position(symbol) == self.model.position(symbol)
            for side in Side:
                mine = [o for o in orders.values() if o[0].spec.symbol == symbol and o[0].spec.side is side]
                assert self.book.exposure(symbol, side) == sum(o[2] for o in mine)
                assert self.book.is_blocked(symbol, side) == any(o[1] is OrderState.UNKNOWN for o in mine)
        assert [o.index for o in self.book.unresolved()] == [i for i, o in orders.items() if o[3]]
        live = [i for i, o in orders.items() if o[1] is not OrderState.CLOSED or o[2]]
        assert [o.index for o in self.book.live_orders()] == live
        assert {i: o.state for i in orders if (o := self.book.order(i))} == {i: o[1] for i, o in orders.items()}
        fills = [f for _, _, f in self.model.facts if isinstance(f, Fill)]
        assert self.book.counts.fills == len(self.model.trades())
        assert self.book.counts.duplicate_fills == len(fills) - len(self.model.trades())

    def teardown(self) -> None:
        if hasattr(self, "model"):
            again = Book(TAG, [BTC, ETH])
            for entry in self.entries:
                again.apply(entry)
            assert again.digest() == self.book.digest()
            assert again.snapshot() == self.book.snapshot()


TestBookMachine = BookMachine.TestCase
TestBookMachine.settings = settings(max_examples=40, stateful_step_count=30)


def _random_journal(rng: random.Random, length: int, keep: Keep) -> Journal:
    j = Journal(keep)
    intents: list[int] = []
    while len(j.entries) < length:
        roll = rng.random()
        if roll < 0.35 or not intents:
            intents.append(j.intent(rng.choice(list(Side)), rng.randrange(1, 9), symbol=rng.choice(SYMBOLS)))
            continue
        i = rng.choice(intents[-6:])
        if roll < 0.55:
            j.outcome(i, rng.choice([r for r in Result if r]))
        elif roll < 0.75:
            j.say(Fill(f"t{rng.randrange(40)}", i, "c", "BTCUSDT", BUY, rng.randrange(1, 9), 100))
        elif roll < 0.92:
            j.close(i, rng.randrange(0, 9))
        else:
            j.new_term(j.term + 1)
    return j


@pytest.mark.parametrize("seed", range(6))
def test_books_that_prune_agree_however_their_journal_is_cut_by_snapshots(seed: int) -> None:
    keep = Keep(closed_orders=4, decision_ids=7, trade_ids=5, mismatches=3)
    rng = random.Random(seed)
    j = _random_journal(rng, 150, keep)
    whole = j.book.snapshot()
    for cut in sorted(rng.sample(range(1, 150), 25)):
        book = Book(TAG, [BTC, ETH], keep)
        for entry in j.entries[:cut]:
            book.apply(entry)
        book = Book.restore(book.snapshot(), TAG, [BTC, ETH], keep)
        for entry in j.entries[cut:]:
            book.apply(entry)
        assert book.snapshot() == whole and book.digest() == j.book.digest()
