"""Do the venue and the book agree? What to look up, and what to report. Pure.

A snapshot of the venue is taken over several calls while orders move, so one difference proves nothing: what could be
movement is looked up, and only what stands in two comparisons in a row is called a mismatch. The venue's word is the
truth about money; the book follows it through facts in the journal, never by overwriting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.core.ids import Instant, ns
from node.book import Book
from node.codec import Reconciled
from node.strategy import OrderState
from node.types import ClientOrderId, VenueFill, VenueOrder

OVERLAP = 256
"""How many events before the book's resume point are asked for again. That point is the highest place a journaled fact
came from; should one below it have come late, and its leader died first, no stream would tell it any more."""
JOURNALED_AT_LEAST_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class VenueSnapshot:
    """fills: at least those after the book's venue_event_seq when it was taken. positions: net lots by symbol."""

    open_orders: Sequence[VenueOrder]
    fills: Sequence[VenueFill]
    positions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Findings:
    """fills: to be journaled if they are not yet. look_up: (intent index, client order id) to ask about. placed: orders
    of unknown outcome that the venue has open, which settles it."""

    fills: list[VenueFill] = field(default_factory=list)
    look_up: list[tuple[int, ClientOrderId]] = field(default_factory=list)
    placed: list[VenueOrder] = field(default_factory=list)
    mismatches: tuple[str, ...] = ()


class Reconciler:
    """One per term. mismatches: what stood in the latest two comparisons."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.mismatches: tuple[str, ...] = ()
        self._suspects: frozenset[str] = frozenset()
        self._journaled: Reconciled | None = None
        self._journaled_at = Instant(0)

    @property
    def fills_after(self) -> int:
        """From where to ask the venue for fills."""
        return max(0, self.book.venue_event_seq - OVERLAP)

    def compare(self, venue: VenueSnapshot) -> Findings:
        """Call with a fresh snapshot each time; the first call after a gap only raises suspicions."""
        book = self.book
        at_venue = {o.client_order_id: o for o in venue.open_orders}
        suspects: list[str] = []
        look_up: list[tuple[int, ClientOrderId]] = []
        placed: list[VenueOrder] = []
        for order in book.live_orders():
            seen = at_venue.get(order.client_order_id)
            if order.state is OrderState.UNKNOWN and seen is not None:
                placed.append(seen)
            elif order.state is OrderState.OPEN and seen is None:
                look_up.append((order.index, order.client_order_id))
                suspects.append(f"order {order.client_order_id} is open in the book and not at the venue")
            elif seen is not None and seen.filled_lots < order.filled_lots:
                suspects.append(
                    f"order {order.client_order_id}: {order.filled_lots} lots filled in the book, "
                    f"{seen.filled_lots} at the venue"
                )
        for coid in at_venue:
            ours = book.order_by_id(coid)
            if ours is None:
                suspects.append(f"order {coid} is open at the venue and unknown to the journal")
            elif ours.state is OrderState.CLOSED:
                suspects.append(f"order {coid} is open at the venue and closed in the book ({ours.result.name})")
        new = [f for f in venue.fills if not book.has_fill(f.trade_id)]
        expected = dict(book.positions())
        for f in new:
            expected[f.symbol] = expected.get(f.symbol, 0) + f.side.sign * f.qty_lots
        for symbol in sorted(expected.keys() | venue.positions.keys()):
            journaled, theirs = expected.get(symbol, 0), venue.positions.get(symbol, 0)
            if journaled != theirs:
                suspects.append(f"position {symbol}: {journaled} lots by the journal's fills, {theirs} at the venue")
        # A suspicion names its numbers, so a difference that moves is a new one and gets its second look too.
        self.mismatches = tuple(s for s in suspects if s in self._suspects)
        self._suspects = frozenset(suspects)
        return Findings(new, look_up, placed, self.mismatches)

    def to_journal(self, now: Instant) -> Reconciled | None:
        """The latest result, if it is to be journaled: when it has changed, and once a minute. Counts as done."""
        last = self._journaled
        due = now - self._journaled_at > ns(JOURNALED_AT_LEAST_EVERY_S)
        if last is not None and last.mismatches == self.mismatches and not due:
            return None
        fact = Reconciled("periodic" if last else "takeover", self.mismatches)
        self._journaled, self._journaled_at = fact, now
        return fact
