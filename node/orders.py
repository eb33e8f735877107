"""The order path, decided: what happens to one order between a strategy's wish and the venue's last word (DESIGN 7).

    wish -> risk -> intent appended -> { committed || claimed at the gate } -> Send -> outcome appended

A pure machine for one term of one leader: the worker calls it with what happened and carries out the actions it
returns. It appends facts through the `append` it is given (which assigns the index and never waits) and reads the
book, which holds committed facts only; what is appended and not committed yet is counted here. Invariants:

- nothing is sent for an intent that is not committed on the in-sync set and claimed at the gate;
- an order is sent at most once: `Send` is emitted once per index, and there is no resend;
- a timeout is UNKNOWN; UNKNOWN ends only by the venue's word or by proof of absence (`_conclude_absent`);
- every fact is appended once: fills by trade id, closes by order.

Units: `now` Instants (ns), `venue_now` a lower bound of the venue's clock in Unix ns. Read next: `worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.core.ids import NS_PER_S, Instant
from cluster.core.log import Entry
from node.book import Book
from node.book_order import Order
from node.codec import CancelRequested, Closed, Evidence, Fact, Fill, Intent, OrderClosed, Outcome, Result
from node.risk import RiskLimits, check
from node.types import (
    Accepted,
    ClientOrderId,
    NotSent,
    OrderSpec,
    OrderStatus,
    Refused,
    Side,
    SubmitResult,
    Unknown,
    VenueEvent,
    VenueFill,
    VenueOrder,
    VenueOrderEvent,
    client_order_id,
    parse_client_order_id,
)
from node.venues.base import Absent, Capabilities, Found, LookupResult

LOOKUP_RETRY_NS = NS_PER_S // 5
LOOKUP_RETRY_MAX_NS = 5 * NS_PER_S
CANCEL_RETRY_NS = NS_PER_S


# -- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    index: int
    client_order_id: ClientOrderId


@dataclass(frozen=True, slots=True)
class Send:
    """Read the permit, then write to the venue: nothing may come between. Answer with `submitted`."""

    index: int
    client_order_id: ClientOrderId
    decision_id: str
    spec: OrderSpec


@dataclass(frozen=True, slots=True)
class SendCancel:
    index: int
    client_order_id: ClientOrderId


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the venue by client order id. Answer with `looked_up`, and the venue_now read before asking."""

    index: int
    client_order_id: ClientOrderId


@dataclass(frozen=True, slots=True)
class StepDown:
    """Somebody holds a higher token: leave at once."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The request to place one order has its answer; times for the histograms."""

    flight: Flight
    result: SubmitResult


Action = Claim | Send | SendCancel | LookUp | StepDown | Finished


@dataclass(slots=True)
class Flight:
    """One intent of this term on its way. Times are Instants, 0 until reached."""

    index: int
    client_order_id: ClientOrderId
    decision_id: str
    spec: OrderSpec
    written_at: int  # Unix ns, as the entry says
    feed_received_at: int
    decided_at: int
    committed_at: int = 0
    claimed_at: int = 0
    sent_at: int = 0
    answered_at: int = 0


@dataclass(frozen=True, slots=True)
class Declined:
    """A wish that did not become an intent. Nothing was journaled."""

    code: str
    reason: str


@dataclass(slots=True)
class _Unsettled:
    """An intent whose outcome is open. absent_after: venue time after which "not there" proves "cannot come";
    None: on this venue, or for this order, time proves nothing."""

    client_order_id: ClientOrderId
    term: int
    absent_after: int | None
    next_try: int
    wait: int = LOOKUP_RETRY_NS
    asking: bool = False
    asked_once: bool = False


class _Pending:
    """The book plus what is appended and not applied yet: what risk must count (node.risk.Exposure)."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.flights: dict[int, Flight] = {}

    def position(self, symbol: str) -> int:
        return self.book.position(symbol)

    def exposure(self, symbol: str, side: Side) -> int:
        lots = self.book.exposure(symbol, side)
        for f in self.flights.values():
            if f.spec.symbol == symbol and f.spec.side is side:
                lots += f.spec.qty_lots
        return lots

    def is_blocked(self, symbol: str, side: Side) -> bool:
        return self.book.is_blocked(symbol, side)

    @property
    def recent_intents(self) -> Sequence[int]:
        recent = self.book.recent_intents
        return [*recent, *(f.written_at for f in self.flights.values())] if self.flights else recent


class OrderDesk:
    """See the module. One per term.

    append: makes the fact the next entry and returns it, at once.
    validity: ns an intent may take to reach the venue; a later one is NOT_SENT, since the market has moved on.
    """

    def __init__(
        self,
        *,
        term: int,
        order_tag: str,
        book: Book,
        limits: RiskLimits,
        capabilities: Capabilities,
        validity: int,
        append: Callable[[Fact], Entry],
    ) -> None:
        self.term = term
        self.tag = order_tag
        self.book = book
        self.limits = limits
        self.caps = capabilities
        self.validity = validity
        self._append = append
        self._pending = _Pending(book)  # appended, not applied
        self._flights: dict[int, Flight] = {}  # appended, no outcome appended
        self._claimed: set[int] = set()
        self._unsettled: dict[int, _Unsettled] = {}
        self._facts: set[tuple[str, str]] = set()  # fills, closes, cancels appended and not applied
        self._cancels: dict[int, int] = {}  # index -> when the cancel was last sent
        self._open_outcomes: set[int] = set()  # ACCEPTED appended and not applied
        self.armed = False

    # -- wishes --------------------------------------------------------------------------------------------

    def place(
        self,
        spec: OrderSpec,
        decision_id: str,
        *,
        reason: str,
        feed_received_at: int,
        reference_half_ticks: int | None,
        close_only: bool,
        now: Instant,
        unix_now: int,
    ) -> tuple[Flight | Declined, list[Action]]:
        """Make an intent of it, or say why not."""
        if self.book.decided(decision_id) or any(f.decision_id == decision_id for f in self._pending.flights.values()):
            return Declined("duplicate_decision", f"decision {decision_id!r} was taken before"), []
        refusal = check(
            spec,
            limits=self.limits,
            book=self._pending,
            reference_half_ticks=reference_half_ticks,
            now=unix_now,
            close_only=close_only,
        )
        if refusal is not None:
            return Declined(refusal.code, refusal.reason), []
        entry = self._append(Intent(decision_id, spec, reason, feed_received_at))
        coid = client_order_id(self.tag, entry.term, entry.index)
        flight = Flight(entry.index, coid, decision_id, spec, entry.at, feed_received_at, decided_at=now)
        self._flights[entry.index] = self._pending.flights[entry.index] = flight
        return flight, [Claim(entry.index, coid)]

    def cancel(self, coid: ClientOrderId, reason: str, now: Instant) -> Declined | None:
        """Note that the order is to be cancelled; the request leaves when that is committed."""
        order = self.book.order_by_id(coid)
        if order is None or order.closed is not None:
            return Declined("not_open", f"no open order {coid}")
        key = ("cancel", str(order.index))
        if order.cancel_requested or key in self._facts:
            return Declined("already_cancelling", f"{coid} is being cancelled")
        self._facts.add(key)
        self._append(CancelRequested(order.index, reason))
        return None

    # -- what happened -------------------------------------------------------------------------------------

    def applied(self, entry: Entry, fact: Fact, now: Instant) -> list[Action]:
        """`entry` is committed and the book has applied it."""
        match fact:
            case Intent():
                self._pending.flights.pop(entry.index, None)
                flight = self._flights.get(entry.index)
                if flight is not None:
                    flight.committed_at = now
                    return self._maybe_send(flight, now)
            case Outcome():
                self._open_outcomes.discard(fact.intent_index)
            case Fill():
                self._facts.discard(("fill", fact.trade_id))
            case OrderClosed():
                self._facts.discard(("closed", str(fact.intent_index)))
                self._cancels.pop(fact.intent_index, None)
                self._unsettled.pop(fact.intent_index, None)
            case CancelRequested():
                self._facts.discard(("cancel", str(fact.intent_index)))
                return self._send_cancel(fact.intent_index, now)
        return []

    def claimed(self, index: int, refusal: Refused | None, now: Instant) -> list[Action]:
        """The gate's word; refusal.code "stale_token" means that we are deposed."""
        flight = self._flights.get(index)
        if flight is None:
            return []
        if refusal is None:
            flight.claimed_at = now
            return self._maybe_send(flight, now)
        out = self._finish(flight, NotSent(refusal.code, refusal.reason), now)
        if refusal.code == "stale_token":
            out.append(StepDown(f"gate: {refusal.reason}"))
        return out

    def _maybe_send(self, flight: Flight, now: Instant) -> list[Action]:
        if not (flight.committed_at and flight.claimed_at) or flight.sent_at:
            return []
        if now - flight.decided_at > self.validity:
            waited = (now - flight.decided_at) / NS_PER_S
            return self._finish(flight, NotSent("too_late", f"commit and gate took {waited:.3f} s"), now)
        flight.sent_at = now
        return [Send(flight.index, flight.client_order_id, flight.decision_id, flight.spec)]

    def submitted(self, index: int, result: SubmitResult, now: Instant) -> list[Action]:
        """The answer to one Send."""
        flight = self._flights.get(index)
        return [] if flight is None else self._finish(flight, result, now)

    def _finish(self, flight: Flight, result: SubmitResult, now: Instant) -> list[Action]:
        del self._flights[flight.index]
        flight.answered_at = now
        index = flight.index
        out: list[Action] = [Finished(flight, result)]
        match result:
            case Accepted(venue_order_id):
                self._outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, venue_order_id=venue_order_id)
            case Refused(code, reason):
                self._outcome(index, Result.REFUSED, Evidence.VENUE_REPLY, code=code, reason=reason)
                if code == "stale_token":
                    out.append(StepDown(f"venue: {reason}"))
            case NotSent(code, reason):
                self._outcome(index, Result.NOT_SENT, Evidence.LOCAL, code=code, reason=reason)
            case Unknown(reason, expires_at):
                self._append(Outcome(index, Result.UNKNOWN, Evidence.LOCAL, reason=reason, expires_at=expires_at or 0))
                self._unsettled[index] = _Unsettled(
                    flight.client_order_id, self.term, expires_at if self.caps.expiry else None, now + LOOKUP_RETRY_NS
                )
        return out

    def _outcome(
        self,
        index: int,
        result: Result,
        evidence: Evidence,
        *,
        venue_order_id: str = "",
        code: str = "",
        reason: str = "",
    ) -> None:
        self._unsettled.pop(index, None)
        if result is Result.ACCEPTED:
            self._open_outcomes.add(index)
        self._append(Outcome(index, result, evidence, venue_order_id, code, reason))

    # -- cancels -------------------------------------------------------------------------------------------

    def _send_cancel(self, index: int, now: Instant) -> list[Action]:
        order = self.book.order(index)
        if order is None or order.closed is not None or index in self._flights:
            return []
        self._cancels[index] = now
        return [SendCancel(index, order.client_order_id)]

    def cancel_answered(self, index: int, result: SubmitResult, now: Instant) -> list[Action]:
        """Accepted: the private stream tells how it closed. Anything else: look, and ask again later."""
        order = self.book.order(index)
        if order is None or order.closed is not None:
            return []
        if isinstance(result, Refused):
            if result.code == "stale_token":
                return [StepDown(f"venue: {result.reason}")]
            return [LookUp(index, order.client_order_id)]
        return []

    # -- the private stream --------------------------------------------------------------------------------

    def venue_said(self, event: VenueEvent, now: Instant) -> list[Action]:
        match event:
            case VenueFill():
                self._fill(event)
            case VenueOrderEvent():
                self._order_event(event.order, event.reason, Evidence.VENUE_STREAM, event.event_seq)
        return []

    def _known(self, coid: str) -> Order | None:
        """Our order of that id, applied or not; an id of the right shape is not enough."""
        parsed = parse_client_order_id(coid)
        if parsed is None or parsed[0] != self.tag:
            return None
        order = self.book.order(parsed[2])
        return order if order is not None and order.client_order_id == coid else None

    def _fill(self, fill: VenueFill) -> None:
        key = ("fill", fill.trade_id)
        if key in self._facts or self.book.has_fill(fill.trade_id):
            return
        order = self._known(fill.client_order_id)
        self._facts.add(key)
        self._append(
            Fill(
                fill.trade_id,
                order.index if order else 0,
                fill.client_order_id,
                fill.symbol,
                fill.side,
                fill.qty_lots,
                fill.price_ticks,
                fill.at_ns,
                fill.event_seq,
            )
        )

    def _order_event(self, venue_order: VenueOrder, reason: str, evidence: Evidence, event_seq: int) -> None:
        order = self._known(venue_order.client_order_id)
        if order is None:
            return  # an orphan; reconcile reports it
        if order.index in self._unsettled:
            self._outcome(
                order.index, Result.ACCEPTED, evidence, venue_order_id=venue_order.venue_order_id, reason=reason
            )
        how = _CLOSED.get(venue_order.status)
        key = ("closed", str(order.index))
        if how is None or order.closed is not None or key in self._facts:
            return
        self._facts.add(key)
        self._append(OrderClosed(order.index, how, venue_order.filled_lots, reason, evidence, event_seq))

    # -- outcomes that are open ----------------------------------------------------------------------------

    def take_over(self, now: Instant, venue_high: int | None) -> list[Action]:
        """Called once, after the venue is armed (or cannot be): look up what the last leaders left open.

        An order of an earlier term was sent, if at all, before that leader's permit ended, which is before now; so
        its expiry is at most one validity away (`expires <= sent + validity`). venue_high: upper bound of the venue's
        clock now; None: not known yet (`bound_unknown` follows).
        """
        bound = venue_high + self.validity if venue_high is not None and self.caps.expiry else None
        for order in self.book.unresolved():
            known = order.outcome.expires_at if order.outcome and self.caps.expiry else 0
            after = known or bound
            self._unsettled[order.index] = _Unsettled(order.client_order_id, order.term, after, now)
        return self.tick(now)

    @property
    def asking(self) -> bool:
        """Some open outcome has not been looked up even once."""
        return any(not u.asked_once for u in self._unsettled.values())

    @property
    def unsettled(self) -> int:
        return len(self._unsettled)

    @property
    def in_flight(self) -> int:
        """Intents without an outcome, and outcomes not yet committed."""
        return len(self._flights) + len(self._open_outcomes)

    def tick(self, now: Instant) -> list[Action]:
        out: list[Action] = []
        for index, u in self._unsettled.items():
            if u.asking or now < u.next_try:
                continue
            u.asking = True
            out.append(LookUp(index, u.client_order_id))
        for index, sent_at in list(self._cancels.items()):
            if now - sent_at > CANCEL_RETRY_NS:
                out += self._send_cancel(index, now)
        return out

    def bound_unknown(self, venue_high: int) -> None:
        """The venue's clock became known after take_over: give the open outcomes of earlier terms their bound."""
        if self.caps.expiry:
            for u in self._unsettled.values():
                if u.absent_after is None:
                    u.absent_after = venue_high + self.validity

    def looked_up(self, index: int, result: LookupResult, *, asked_at_venue: int | None, now: Instant) -> list[Action]:
        """asked_at_venue: lower bound of the venue's clock when the question left; None: not known."""
        u = self._unsettled.get(index)
        if isinstance(result, Found):
            if u is not None:
                u.asking, u.asked_once = False, True
            self._order_event(result.order, "found by client order id", Evidence.LOOKUP_FOUND, 0)
            return []
        if u is None:
            return []
        u.asking = False
        u.asked_once = True
        u.next_try = now + u.wait
        u.wait = min(u.wait * 2, LOOKUP_RETRY_MAX_NS)
        if isinstance(result, Absent):
            self._conclude_absent(index, u, asked_at_venue)
        return []

    def _conclude_absent(self, index: int, u: _Unsettled, asked_at_venue: int | None) -> None:
        """ "Not there" proves "not placed" only if no copy can still arrive:

        - the venue was armed with our token before we asked, and the order carried a lower one; or
        - we asked after the order's expiry, by the venue's own clock, plus its clock error.
        """
        if self.caps.token and self.armed and u.term < self.term:
            self._outcome(index, Result.NOT_SENT, Evidence.ABSENT_FENCED, code="absent")
        elif (
            u.absent_after is not None
            and asked_at_venue is not None
            and asked_at_venue > u.absent_after + self.caps.clock_error_ms * 1_000_000
        ):
            self._outcome(index, Result.NOT_SENT, Evidence.ABSENT_EXPIRED, code="absent")


_CLOSED = {
    OrderStatus.FILLED: Closed.FILLED,
    OrderStatus.CANCELLED: Closed.CANCELLED,
    OrderStatus.EXPIRED: Closed.EXPIRED,
}
