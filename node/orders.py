"""The order path, decided: what happens to one order between a strategy's wish and the venue's last word (DESIGN 7).

    wish -> risk -> intent appended -> { committed || claimed at the gate } -> Send -> outcome appended

A pure machine for one term of one leader: the worker calls it with what happened and carries out the actions it
returns. It appends facts through the `append` it is given (which assigns the index and never waits) and reads the
book, which holds committed facts only; what is appended and not committed yet is counted here. Invariants:

- nothing is sent for an intent that is not committed on the in-sync set and claimed at the gate;
- an order is sent at most once: `Send` is emitted once per index, and there is no resend;
- a timeout is UNKNOWN; UNKNOWN ends only by the venue's word or by proof of absence (`_conclude_absent`);
- every fact is appended once: fills by trade id, closes by order;
- a cancel that was asked for is asked again, also by the next leader, until the order has closed.

`append` may raise (the term is over, the journal is full): nothing was appended then, and nothing is noted as if it
were. Whoever calls leaves the term, but after `place` and `cancel`, where the wish is merely declined.

Units: `now` Instants (ns), `venue_now` a lower bound of the venue's clock in Unix ns. Read next: `leadership.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.core.ids import NS_PER_S, Instant
from cluster.core.log import Entry
from node.book import Book
from node.book_order import Order
from node.codec import CancelRequested, Closed, Evidence, Fact, Fill, Intent, OrderClosed, Outcome, Result
from node.risk import RiskLimits, check
from node.strategy import OrderState
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

_NS_PER_MS = 1_000_000
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
    """Ask the venue by client order id. Answer with `looked_up`, and the venue_now read before asking.

    armed: the venue was armed with our token before this was asked for. What is true when the answer comes does not
    count: a stale order could have arrived between the question and the arming."""

    index: int
    client_order_id: ClientOrderId
    armed: bool


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
    """An intent whose outcome is open. validity: ns that it may live after its send. absent_after: venue time after
    which "not there" proves "cannot come"; None: on this venue, or for this order, time proves nothing."""

    client_order_id: ClientOrderId
    spec: OrderSpec
    term: int
    validity: int
    absent_after: int | None
    next_try: int
    wait: int = LOOKUP_RETRY_NS
    asking: bool = False
    asked_once: bool = False


class _Pending:
    """The book plus what is appended and not applied yet: what risk must count (node.risk.Exposure)."""

    def __init__(self, book: Book, unsettled: Mapping[int, _Unsettled]) -> None:
        self.book = book
        self.flights: dict[int, Flight] = {}
        self.decisions: set[str] = set()
        self._unsettled = unsettled

    def add(self, flight: Flight) -> None:
        self.flights[flight.index] = flight
        self.decisions.add(flight.decision_id)

    def applied(self, index: int) -> None:
        flight = self.flights.pop(index, None)
        if flight is not None:
            self.decisions.discard(flight.decision_id)

    def position(self, symbol: str) -> int:
        return self.book.position(symbol)

    def exposure(self, symbol: str, side: Side) -> int:
        lots = self.book.exposure(symbol, side)
        for f in self.flights.values():
            if f.spec.symbol == symbol and f.spec.side is side:
                lots += f.spec.qty_lots
        return lots

    def is_blocked(self, symbol: str, side: Side) -> bool:
        return self.book.is_blocked(symbol, side) or any(
            u.spec.symbol == symbol and u.spec.side is side for u in self._unsettled.values()
        )

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
        self._unsettled: dict[int, _Unsettled] = {}
        self._pending = _Pending(book, self._unsettled)  # appended, not applied
        self._flights: dict[int, Flight] = {}  # appended, no outcome appended
        self._told: dict[int, str] = {}  # of those: what the private stream has spoken of -> its venue order id
        self._facts: set[tuple[str, str]] = set()  # fills, closes, cancels appended and not applied
        self._cancels: dict[int, int] = {}  # index -> when to ask for its cancel again
        self._outcomes: set[int] = set()  # indexes of outcomes appended and not applied
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
        if self.book.decided(decision_id) or decision_id in self._pending.decisions:
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
        validity_ms = -(-self.validity // _NS_PER_MS)
        entry = self._append(Intent(decision_id, spec, reason, feed_received_at, validity_ms))
        coid = client_order_id(self.tag, entry.term, entry.index)
        flight = Flight(entry.index, coid, decision_id, spec, entry.at, feed_received_at, decided_at=now)
        self._flights[entry.index] = flight
        self._pending.add(flight)
        return flight, [Claim(entry.index, coid)]

    def cancel(self, coid: ClientOrderId, reason: str) -> Declined | None:
        """Note that the order is to be cancelled; the request leaves when that is committed."""
        order = self.book.order_by_id(coid)
        if order is None or order.state is OrderState.CLOSED:
            return Declined("not_open", f"no open order {coid}")
        key = ("cancel", str(order.index))
        if order.cancel_requested or key in self._facts:
            return Declined("already_cancelling", f"{coid} is being cancelled")
        self._append_once(key, CancelRequested(order.index, reason))
        return None

    def _append_once(self, key: tuple[str, str], fact: Fact) -> None:
        """Append, then note that it is on its way: the other way round, a fact that found no room would be lost."""
        self._append(fact)
        self._facts.add(key)

    # -- what happened -------------------------------------------------------------------------------------

    def applied(self, entry: Entry, fact: Fact, now: Instant) -> list[Action]:
        """`entry` is committed and the book has applied it."""
        match fact:
            case Intent():
                self._pending.applied(entry.index)
                flight = self._flights.get(entry.index)
                if flight is not None:
                    flight.committed_at = now
                    return self._maybe_send(flight, now)
            case Outcome():
                self._outcomes.discard(fact.intent_index)
                if fact.result is not Result.UNKNOWN:
                    self._unsettled.pop(fact.intent_index, None)  # whoever settled it
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
        index = flight.index
        out: list[Action] = [Finished(flight, result)]
        match result:
            case Accepted(venue_order_id):
                self._outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, venue_order_id=venue_order_id)
            case Refused("stale_token" as code, reason):
                self._outcome(index, Result.REFUSED, Evidence.VENUE_REPLY, code=code, reason=reason)
                out.append(StepDown(f"venue: {reason}"))
            case NotSent(code, reason):
                self._outcome(index, Result.NOT_SENT, Evidence.LOCAL, code=code, reason=reason)
            case Refused() | Unknown() if index in self._told:  # the stream has shown it to us: it was placed
                told = self._told[index]
                self._outcome(index, Result.ACCEPTED, Evidence.VENUE_STREAM, venue_order_id=told, reason=result.reason)
            case Refused(code, reason):
                self._outcome(index, Result.REFUSED, Evidence.VENUE_REPLY, code=code, reason=reason)
            case Unknown(reason, expires_at):
                self._append(Outcome(index, Result.UNKNOWN, Evidence.LOCAL, reason=reason, expires_at=expires_at or 0))
                self._outcomes.add(index)
                absent_after = expires_at if self.caps.expiry else None
                self._unsettled[index] = _Unsettled(
                    flight.client_order_id, flight.spec, self.term, self.validity, absent_after, now + LOOKUP_RETRY_NS
                )
        flight.answered_at = now
        del self._flights[index]
        self._told.pop(index, None)
        if index in self._cancels:  # it waited for this answer: a venue need not know an order that is on its way
            if isinstance(result, Accepted | Unknown):
                out += self._send_cancel(index, now)
            else:
                del self._cancels[index]
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
        self._append(Outcome(index, result, evidence, venue_order_id, code, reason))
        self._outcomes.add(index)
        self._unsettled.pop(index, None)

    # -- cancels -------------------------------------------------------------------------------------------

    def granted(self, now: Instant) -> list[Action]:
        """The permit has come: ask for the cancels that earlier leaders were asked for."""
        return [a for order in self.book.cancels_requested() for a in self._send_cancel(order.index, now)]

    def _send_cancel(self, index: int, now: Instant) -> list[Action]:
        """Ask; `tick` asks again until it has closed, since a cancel may be lost, refused for now, or overtaken."""
        order = self.book.order(index)
        if order is None or order.state is OrderState.CLOSED:
            self._cancels.pop(index, None)
            return []
        flight = self._flights.get(index)
        if flight is not None and not flight.sent_at:
            return self._finish(flight, NotSent("cancelled", "cancelled before it was sent"), now)
        self._cancels[index] = now + CANCEL_RETRY_NS
        return [] if flight is not None else [SendCancel(index, order.client_order_id)]

    def cancel_answered(self, index: int, result: SubmitResult, now: Instant) -> list[Action]:
        """Accepted: the private stream tells how it closed. Refused: look what it is. Else `tick` asks again."""
        order = self.book.order(index)
        if order is None or order.state is OrderState.CLOSED or not isinstance(result, Refused):
            return []
        if result.code == "stale_token":
            return [StepDown(f"venue: {result.reason}")]
        return [LookUp(index, order.client_order_id, self.armed)]

    # -- the private stream --------------------------------------------------------------------------------

    def venue_said(self, event: VenueEvent) -> None:
        match event:
            case VenueFill():
                self._fill(event)
            case VenueOrderEvent():
                self._order_event(event.order, event.reason, Evidence.VENUE_STREAM, event.event_seq)

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
        self._append_once(
            key,
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
            ),
        )
        if order is not None and order.index in self._unsettled:  # it was placed, then; what rests of it is asked for
            self._outcome(order.index, Result.ACCEPTED, Evidence.FILL_HISTORY)
        elif order is not None and order.index in self._flights:
            self._told.setdefault(order.index, "")

    def found_open(self, venue_order: VenueOrder) -> None:
        """It stands in the venue's list of open orders."""
        self._order_event(venue_order, "found among the open orders", Evidence.LOOKUP_FOUND, 0)

    def _order_event(self, venue_order: VenueOrder, reason: str, evidence: Evidence, event_seq: int) -> None:
        order = self._known(venue_order.client_order_id)
        if order is None:
            return  # an orphan; reconcile reports it
        index, venue_order_id = order.index, venue_order.venue_order_id
        if venue_order.status is OrderStatus.REFUSED:  # some venues remember what they refused
            if index in self._unsettled:
                self._outcome(index, Result.REFUSED, evidence, code="refused", reason=reason)
            return
        if index in self._unsettled:
            self._outcome(index, Result.ACCEPTED, evidence, venue_order_id=venue_order_id, reason=reason)
        elif index in self._flights:
            self._told[index] = venue_order_id
        how = _CLOSED.get(venue_order.status)
        key = ("closed", str(index))
        if how is None or order.closed is not None or key in self._facts:
            return
        self._append_once(key, OrderClosed(index, how, venue_order.filled_lots, reason, evidence, event_seq))

    # -- outcomes that are open ----------------------------------------------------------------------------

    def take_over(self, now: Instant, venue_high: int | None) -> list[Action]:
        """Called once, after the venue is armed (or cannot be): look up what the last leaders left open.

        An order of an earlier term was sent, if at all, before that leader's permit ended, which is before now; so it
        expires at most one validity from now, by its own leader's setting, which its intent tells: ours says nothing of
        that one. venue_high: upper bound of the venue's clock now; None: not known yet (`bound_unknown` follows).
        """
        for order in self.book.unresolved():
            if order.filled_lots:  # placed, beyond doubt; what still rests of it the reconcile compares
                self._outcome(order.index, Result.ACCEPTED, Evidence.FILL_HISTORY)
                continue
            validity = order.intent.validity_ms * _NS_PER_MS or self.validity
            after = order.outcome.expires_at if order.outcome and self.caps.expiry else 0
            if not after and venue_high is not None and self.caps.expiry:
                after = venue_high + validity
            self._unsettled[order.index] = _Unsettled(
                order.client_order_id, order.intent.spec, order.term, validity, after or None, now
            )
        return self.tick(now)

    @property
    def settling(self) -> bool:
        """Some open outcome has not been looked up even once, or what was found is not committed yet: until then the
        instrument and side of its order are blocked, though the answer is known."""
        return bool(self._outcomes) or any(not u.asked_once for u in self._unsettled.values())

    @property
    def unsettled(self) -> int:
        return len(self._unsettled)

    @property
    def in_flight(self) -> int:
        """Intents without an outcome, and outcomes not yet committed."""
        return len(self._flights) + len(self._outcomes)

    def tick(self, now: Instant) -> list[Action]:
        out: list[Action] = []
        for index, u in self._unsettled.items():
            if u.asking or now < u.next_try:
                continue
            u.asking = True
            out.append(LookUp(index, u.client_order_id, self.armed))
        for index, due in list(self._cancels.items()):
            if now >= due:
                out += self._send_cancel(index, now)
        return out

    def bound_unknown(self, venue_high: int) -> None:
        """The venue's clock became known after take_over: give the open outcomes of earlier terms their bound."""
        if self.caps.expiry:
            for u in self._unsettled.values():
                if u.absent_after is None and u.term < self.term:
                    u.absent_after = venue_high + u.validity

    def looked_up(self, asked: LookUp, result: LookupResult, *, asked_at_venue: int | None, now: Instant) -> None:
        """asked_at_venue: lower bound of the venue's clock when the question left; None: not known."""
        u = self._unsettled.get(asked.index)
        if u is not None:
            u.asking, u.asked_once = False, True
            u.next_try = now + u.wait
            u.wait = min(u.wait * 2, LOOKUP_RETRY_MAX_NS)
        if isinstance(result, Found):
            self._order_event(result.order, "found by client order id", Evidence.LOOKUP_FOUND, 0)
        elif isinstance(result, Absent) and u is not None:
            self._conclude_absent(asked, u, asked_at_venue)

    def _conclude_absent(self, asked: LookUp, u: _Unsettled, asked_at_venue: int | None) -> None:
        """ "Not there" proves "not placed" only if no copy can still arrive:

        - the venue was armed with our token before we asked, and the order carried a lower one; or
        - we asked after the order's expiry, by the venue's own clock, plus its clock error.
        """
        if self.caps.token and asked.armed and u.term < self.term:
            self._outcome(asked.index, Result.NOT_SENT, Evidence.ABSENT_FENCED, code="absent")
        elif (
            u.absent_after is not None
            and asked_at_venue is not None
            and asked_at_venue > u.absent_after + self.caps.clock_error_ms * 1_000_000
        ):
            self._outcome(asked.index, Result.NOT_SENT, Evidence.ABSENT_EXPIRED, code="absent")


_CLOSED = {
    OrderStatus.FILLED: Closed.FILLED,
    OrderStatus.CANCELLED: Closed.CANCELLED,
    OrderStatus.EXPIRED: Closed.EXPIRED,
}
