"""S10: reconcile before trade. From the journals and the venue's record. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from chaos.check.history import History, Log
from chaos.check.verdict import Found
from node.codec import Evidence, Fill, Intent, OrderClosed, Outcome, Result, TermStarted
from node.types import Side, client_order_id

_ABSENT = (Evidence.ABSENT_FENCED, Evidence.ABSENT_EXPIRED)


class _Settled(NamedTuple):
    """An intent and what became of it. absent: that rests on the venue's word, to `leader`, that it is not there."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int
    placed: bool
    by_term: int
    absent: bool
    leader: str


def reconciled_first(h: History) -> Found:
    """For each order that the venue accepted: every intent of an earlier term on its symbol and side that stands before
    it in the journal has a final outcome (ACCEPTED, REFUSED, NOT_SENT, a fill or a close) before the order's own intent
    does, and that outcome is true by the venue's whole record: placed if and only if the venue accepted it, ever. Where
    we know the questions, an absence rests on an answered lookup by the leader that concluded it.

    Judged in each distinct final log. Covered by intents that a later term than their own settled, before an order of
    its own on the same symbol and side was accepted."""
    found: list[str] = []
    settled = 0
    tag = h.journals[0].book.cluster_tag if h.journals else ""
    accepted = {parsed[1:]: coid for coid, parsed in h.orders.items() if parsed is not None and parsed[0] == tag}
    for nodes, log in h.distinct():
        reading = _Reading(h, log, tag, accepted)
        found += [f"{nodes}: {told}" for told in reading.violations()]
        settled = max(settled, reading.settled_later)
    return Found(found, {"intents settled by a later leader before it traded": settled})


_Side = tuple[str, bool]
"""Symbol, and whether it buys."""


class _Reading:
    """One pass over a log. Each intent is compared with the venue once, so it takes time in the length of the log."""

    def __init__(self, h: History, log: Log, tag: str, accepted: dict[tuple[int, int], str]) -> None:
        self.log, self.tag, self.accepted = log, tag, accepted
        self.asked: set[tuple[str, str]] | None = None
        if h.evidence.queries is not None:
            absent = (q for q in h.evidence.queries if q.kind == "lookup" and not q.found)
            self.asked = {(q.node, q.client_order_id) for q in absent}
        self.open: defaultdict[_Side, dict[int, int]] = defaultdict(dict)  # intents -> their terms
        self.side_of: dict[int, _Side] = {}  # of the open ones
        # Settled, not yet compared with the venue: intents of this term, which wait for the next one, and of earlier
        # terms.
        self.own: defaultdict[_Side, list[_Settled]] = defaultdict(list)
        self.inherited: defaultdict[_Side, list[_Settled]] = defaultdict(list)
        self.settled_later = 0
        self.leader = ""

    def violations(self) -> Iterator[str]:
        for entry, fact in self.log.facts:
            match fact:
                case Intent():
                    side = (fact.spec.symbol, fact.spec.side is Side.BUY)
                    if (entry.term, entry.index) in self.accepted:
                        yield from self._order(entry.index, entry.term, side)
                    self.open[side][entry.index] = entry.term
                    self.side_of[entry.index] = side
                case Outcome():
                    if fact.result is not Result.UNKNOWN:
                        placed = fact.result is Result.ACCEPTED
                        self._settle(fact.intent_index, placed, entry.term, fact.evidence in _ABSENT)
                case Fill() | OrderClosed():
                    self._settle(fact.intent_index, True, entry.term, False)
                case TermStarted():
                    self.leader = fact.node
                    for side, settled in self.own.items():
                        self.inherited[side] += settled
                    self.own.clear()

    def _settle(self, index: int, placed: bool, by_term: int, absent: bool) -> None:
        side = self.side_of.pop(index, None)
        if side is not None:  # else it was settled before, is pruned, or an orphan's
            term = self.open[side].pop(index)
            settled = self.inherited if by_term > term else self.own
            settled[side].append(_Settled(index, term, placed, by_term, absent, self.leader))

    def _order(self, index: int, term: int, side: _Side) -> Iterator[str]:
        for earlier, its_term in self.open[side].items():
            if its_term < term:
                what = f"the intent at entry {earlier} of term {its_term}"
                yield f"{self._name(index, term)} was decided before {what} was settled"
        for s in self.inherited.pop(side, ()):
            self.settled_later += s.by_term > s.term
            yield from self._compare(s, self._name(index, term))

    def _compare(self, s: _Settled, order: str) -> Iterator[str]:
        there = (s.term, s.index) in self.accepted
        if s.placed != there:
            says, truth = ("placed", "never accepted it") if s.placed else ("never placed", "accepted it")
            yield f"{order} rests on the intent at entry {s.index} being {says}; the venue {truth}"
        if s.absent and self.asked is not None:
            coid = client_order_id(self.tag, s.term, s.index)
            if (s.leader, coid) not in self.asked:
                yield f"{order} rests on the absence of {coid}, and {s.leader} was never told so by the venue"

    def _name(self, index: int, term: int) -> str:
        return f"the order at entry {index} of term {term} ({self.accepted[term, index]})"
