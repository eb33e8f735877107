"""The first wrong step of a story: the earliest mark that no correct cluster and no honest venue makes. Pure.

Each rule looks at the orders and tokens that a violation is about, and says what is wrong with the step. Where none
knows one, it is the line of a record that the violation names, or else the moment at which it was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.sim.engine import MS
from chaos.sim.plan import Plan
from chaos.sim.story import PROOF, VENUE, Mark
from chaos.sim.unsaid import placed

Step = tuple[Mark, str]
"""A mark, and what makes it wrong."""


def first_wrong(
    plan: Plan, marks: Sequence[Mark], orders: Sequence[str], tokens: Sequence[int], meant: Sequence[Mark]
) -> tuple[Mark | None, str]:
    """meant: of the lines that the violation names. None: nothing that happened is known to be wrong; then something is
    that did not happen. Of a mark that two rules know, the rule that says more comes first."""
    steps: list[Step] = [
        *_permits_too_long(plan, marks, tokens),
        *_orders_from_nowhere(marks, orders),
        *_second_orders(marks, orders),
        *_sent_without_claim(marks, orders),
        *_outcomes_without_proof(plan, marks, orders),
    ]
    if plan.venue == "token":
        steps += _stale_ones_accepted(marks, orders, tokens)
    steps = steps or list(_false_outcomes(marks, orders))
    steps = steps or [(m, "") for m in meant] or [(m, "") for m in marks if m.kind == "wrong"]
    return min(steps, key=lambda step: marks.index(step[0]), default=(None, ""))


def _permits_too_long(plan: Plan, marks: Sequence[Mark], tokens: Sequence[int]) -> Iterator[Step]:
    """A permit ends before its lease can be given to another: ttl after etcd has renewed it last."""
    renewed: dict[int, int] = {}
    for mark in marks:
        if mark.kind == "lease" and "is over" not in mark.text:
            renewed[mark.token] = mark.at
        elif mark.kind == "permit" and mark.token in tokens:
            too_long = mark.until - renewed.get(mark.token, 0) - plan.ttl
            if too_long > 0:
                yield (
                    mark,
                    f"that permit lasts {too_long / MS:.1f} ms longer than etcd keeps a lease that is not renewed",
                )


def _orders_from_nowhere(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[Step]:
    decided: set[str] = set()
    for mark in marks:
        if mark.kind == "decided":
            decided.add(mark.order)
        elif mark.kind in ("claim", "sent", "accepted") and mark.order in orders and mark.order not in decided:
            yield mark, f"nobody has written down a decision for an order {mark.order}"


def _second_orders(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[Step]:
    """A second one for a decision of which an order has left, or that the same leader has taken; and one that leaves
    twice. Another leader may decide again what it has never heard of."""
    sent: set[str] = set()
    decisions: dict[str, str] = {}
    taken: dict[tuple[str, int], str] = {}
    for mark in marks:
        if mark.order not in orders:
            continue
        if mark.kind == "sent" and mark.text.startswith("the bytes"):
            if mark.order in sent:
                yield mark, "they have left before"
            sent.add(mark.order)
        elif mark.kind in ("decided", "accepted") and mark.decision:
            first = decisions.setdefault(mark.decision, mark.order)
            own = taken.setdefault((mark.decision, mark.token), mark.order)
            if first != mark.order and first in sent:
                yield mark, f"of the same decision, order {first} has left before"
            elif own != mark.order and mark.kind == "decided":
                yield mark, f"the same leader has taken this decision before, as order {own}"


def _stale_ones_accepted(marks: Sequence[Mark], orders: Sequence[str], tokens: Sequence[int]) -> Iterator[Step]:
    newest: Mark | None = None
    for mark in marks:
        if mark.lane != VENUE or mark.kind not in ("accepted", "fence") or not mark.token:
            continue
        if newest is None or mark.token >= newest.token:
            newest = newest if newest is not None and mark.token == newest.token else mark
        elif mark.token in tokens or mark.order in orders:
            ago = (mark.at - newest.at) / MS
            yield mark, f"{ago:.1f} ms before, it heard of token {newest.token}, and must refuse older ones since"


def _sent_without_claim(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[Step]:
    claimed: set[str] = set()
    for mark in marks:
        if mark.kind == "claim" and mark.text.endswith("granted"):
            claimed.add(mark.order)
        elif mark.order in orders and mark.order not in claimed and mark.text.startswith("the bytes"):
            yield mark, "no claim was granted for it"


def _outcomes_without_proof(plan: Plan, marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[Step]:
    lacking = {
        PROOF["ABSENT_FENCED"]: (plan.venue != "token", "this venue does not look at tokens, and refuses none"),
        PROOF["ABSENT_EXPIRED"]: (plan.venue == "plain", "this venue does not look at an order's time"),
    }
    for mark in marks:
        for proof, (none, why) in lacking.items():
            if none and mark.kind == "outcome" and mark.order in orders and mark.text.endswith(proof):
                yield mark, f"that proves nothing: {why}"


def _false_outcomes(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[Step]:
    """Only where nothing else is wrong: what was settled with good reason can be made untrue by a later wrong step."""
    taken = {m.order: m.at for m in reversed(marks) if placed(m)}
    for mark in marks:
        never = mark.kind == "outcome" and ("down as NOT SENT" in mark.text or "down as REFUSED" in mark.text)
        if never and mark.order in orders and mark.order in taken:
            yield mark, f"the venue accepts it at {taken[mark.order] / MS:.1f} ms"
