"""S10: what earlier leaders left open is settled, and truly, before an order on the same symbol and side."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.check import evidence
from chaos.check.evidence import QueryLine, Run
from chaos.check.invariants import check
from chaos.check.verdict import Judged, Level
from cluster.core.ids import Term
from cluster.core.log import GENESIS, Entry, make_entry
from node.book import Book
from node.codec import Closed, Evidence, Fact, Fill, Intent, OrderClosed, Outcome, Result, TermStarted, encode
from node.types import OrderSpec, Side, client_order_id
from tests.support.history import TAG

LOCAL, FENCED = Evidence.LOCAL, Evidence.ABSENT_FENCED


def intent(decision: str, side: Side = Side.BUY, symbol: str = "B") -> Intent:
    return Intent(decision, OrderSpec(symbol, side, 1, 100))


def judged(
    facts: Iterable[tuple[int, Fact]], accepted: Iterable[int], queries: list[QueryLine] | None = None
) -> Judged:
    """facts: (term, fact). accepted: indexes of the intents that the venue accepted."""
    entries: list[Entry] = []
    for term, fact in facts:
        kind, body = encode(fact)
        index, chain = (entries[-1].index, entries[-1].chain) if entries else (0, GENESIS)
        entries.append(make_entry(index, chain, Term(term), kind, 0, body))
    venue = [
        {
            "venue_seq": n, "at_ns": 0, "kind": "new", "outcome": "accepted", "reason": None, "node": "n", "token": 1,
            "client_order_id": client_order_id(TAG, entries[i - 1].term, i), "decision_id": f"d{i}",
        }
        for n, i in enumerate(accepted, 1)
    ]  # fmt: skip
    last = (entries[-1].index, entries[-1].chain)
    journal = evidence.JournalEvidence("n1", Book(TAG), entries, 0, *last)
    seen = evidence.Evidence(Run("token", at_rest=True), venue=venue, journals=[journal], queries=queries)
    return check(seen, ["S10"]).rows[0]


def story(*between: Fact, second: Intent | None = None) -> list[tuple[int, Fact]]:
    """Entry 2: an intent of term 5, never answered there. Then term 8 begins (entry 3), and its order comes last."""
    last = second or intent("second")
    old: list[tuple[int, Fact]] = [(5, TermStarted("n1", "i")), (5, intent("first"))]
    return [*old, (8, TermStarted("n2", "i")), *((8, f) for f in between), (8, last)]


@pytest.mark.parametrize(
    ("settled", "there"),
    [
        (Outcome(2, Result.ACCEPTED, Evidence.LOOKUP_FOUND), True),
        (Outcome(2, Result.NOT_SENT, FENCED), False),
        (Outcome(2, Result.REFUSED, Evidence.VENUE_REPLY), False),
        (Fill("t", 2, "c", "B", Side.BUY, 1, 100), True),
        (OrderClosed(2, Closed.CANCELLED, 0), True),
    ],
)
def test_settled_truly_before_the_order_passes(settled: Fact, there: bool) -> None:
    row = judged(story(settled), [2, 5] if there else [5])
    assert row.level is Level.PASS and row.covers == {"intents settled by a later leader before it traded": 1}
    (told,) = judged(story(settled), [5] if there else [2, 5]).violations
    assert "at entry 5 of term 8" in told and ("never accepted it" if there else "the venue accepted it") in told


@pytest.mark.parametrize("between", [(), (Outcome(2, Result.UNKNOWN, LOCAL),)])
def test_order_before_the_last_one_is_settled_is_named(between: tuple[Fact, ...]) -> None:
    at = 4 + len(between)
    (told,) = judged([*story(*between), (8, Outcome(2, Result.NOT_SENT, FENCED))], [at]).violations
    assert f"the order at entry {at} of term 8" in told
    assert "was decided before the intent at entry 2 of term 5 was settled" in told


def test_other_side_other_symbol_own_term_and_what_was_never_accepted_are_free() -> None:
    for second in (intent("second", Side.SELL), intent("second", symbol="E")):
        assert judged(story(second=second), [4]).level is Level.INCONCLUSIVE
    assert not judged(story(), []).violations
    assert not judged([(5, intent("a")), (5, intent("b"))], [1, 2]).violations


def test_intent_that_its_own_leader_settled_is_compared_too() -> None:
    facts: list[tuple[int, Fact]] = [(5, intent("a")), (5, Outcome(1, Result.NOT_SENT, LOCAL))]
    facts += [(8, TermStarted("n2", "i")), (8, intent("b"))]
    assert "the venue accepted it" in judged(facts, [1, 4]).violations[0]
    assert judged(facts, [4]).level is Level.INCONCLUSIVE


def test_inherited_lie_is_seen_behind_an_own_outcome() -> None:
    """An intent of the new term that was settled first must not hide the inherited one behind it."""
    own = (intent("own"), Outcome(4, Result.NOT_SENT, LOCAL), Outcome(2, Result.NOT_SENT, FENCED))
    (told,) = judged(story(*own), [2, 7]).violations
    assert "the intent at entry 2" in told


def test_absence_rests_on_an_answer_to_the_leader_that_concluded_it() -> None:
    facts, coid = story(Outcome(2, Result.NOT_SENT, FENCED)), client_order_id(TAG, 5, 2)
    asked = QueryLine(1, "n2", "lookup", coid, found=False)
    assert judged(facts, [5], [asked]).level is Level.PASS
    for wrong in (asked._replace(node="n1"), asked._replace(found=True), asked._replace(kind="fills")):
        assert "n2 was never told so by the venue" in judged(facts, [5], [wrong]).violations[0]


# -- by brute force ----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["buy", "sell", "ok", "no", "unknown"]), st.integers(0, 3), st.booleans()),
    max_size=10,
)


@settings(max_examples=500)
@given(steps)
def test_one_pass_finds_what_all_pairs_find(history: list[tuple[bool, str, int, bool]]) -> None:
    """(a new term begins, what, of which of the latest intents, whether the venue accepts)."""
    facts: list[tuple[int, Fact]] = []
    intents: list[int] = []
    accepted = []
    term = 1
    for begins, what, back, there in history:
        if begins or not facts:
            term += 1
            facts.append((term, TermStarted("n", "i")))
        if what in ("buy", "sell"):
            facts.append((term, intent(f"d{len(facts)}", Side(what))))
            intents.append(len(facts))
            if there:
                accepted.append(len(facts))
        elif intents:
            result = {"ok": Result.ACCEPTED, "no": Result.NOT_SENT, "unknown": Result.UNKNOWN}[what]
            facts.append((term, Outcome(intents[-1 - back % len(intents)], result, LOCAL)))
    if not facts:
        return
    wrong = False
    for i in accepted:
        for j in (k for k in intents if k < i):
            (its_term, earlier), (own_term, order) = facts[j - 1], facts[i - 1]
            assert isinstance(earlier, Intent) and isinstance(order, Intent)
            if its_term >= own_term or earlier.spec.side is not order.spec.side:
                continue
            final = [
                f.result
                for _, f in facts[: i - 1]
                if isinstance(f, Outcome) and f.intent_index == j and f.result is not Result.UNKNOWN
            ]
            wrong |= not final or (final[0] is Result.ACCEPTED) != (j in accepted)
    assert (judged(facts, accepted).level is Level.FAIL) == wrong
