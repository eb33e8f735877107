"""What no mark of the story tells, worked out from those that there are: an answer that did not come in time, and what
the venue said of an order that it was asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chaos.sim.engine import MS
from chaos.sim.plan import Plan
from chaos.sim.story import VENUE, Mark


def silences(plan: Plan, marks: Sequence[Mark], orders: Iterable[str]) -> Iterator[Mark]:
    """For each time that one of these orders left, and no answer came in time to whoever sent it."""
    over = max((m.at for m in marks), default=0)
    for order in orders:
        answers = list(_answers(marks, order))
        for sent in marks:
            if sent.kind != "sent" or sent.order != order or not sent.text.startswith("the bytes"):
                continue
            due = sent.at + plan.call_timeout
            in_time = any(to == sent.lane and sent.at <= at <= due for to, at in answers)
            dead = any(m.kind == "death" and m.lane == sent.lane and sent.at <= m.at <= due for m in marks)
            if not in_time and not dead and due <= over:
                text = (
                    f"no answer for order {order} after {plan.call_timeout / MS:.0f} ms: what became of it is unknown"
                )
                yield Mark(due, sent.lane, "outcome", text, order=order, token=sent.token)


def _answers(marks: Sequence[Mark], order: str) -> Iterator[tuple[str, int]]:
    """(whom, when) of the venue's answers to having been sent it."""
    arrived = {m.at for m in marks if m.order == order and m.text.endswith("held back on its way, arrives")}
    for m in marks:
        if m.lane == VENUE and m.to and m.until:
            late = m.at in arrived and m.text.startswith(("Accepted(", "Refused("))
            if late or m.text == f"answer to: order {order}":
                yield m.to, m.until


def lookups(marks: Sequence[Mark], orders: Iterable[str]) -> Iterator[Mark]:
    """What the venue said of these orders when it was asked for them."""
    for order in orders:
        there = min((m.at for m in marks if placed(m) and m.order == order), default=None)
        for m in marks:
            if m.order != order:
                continue
            node = (m.lane if m.to == VENUE else m.to).partition(" ")[0]
            if m.to == VENUE and m.text.startswith("look up "):
                yield Mark(m.at, m.lane, "outcome", f"{node} asks the venue for order {order}", order=order)
            elif m.lane == VENUE and m.text.startswith("answer to: look up "):
                said = "has it" if there is not None and there <= m.at else "does not have it"
                text = f"the venue answers {node} that it {said} (order {order})" + (
                    "" if m.until else "; that is lost"
                )
                yield Mark(m.at, VENUE, "outcome", text, order=order)


def placed(mark: Mark) -> bool:
    """The venue takes a new order."""
    return mark.lane == VENUE and mark.text.startswith("the venue accepts order")
