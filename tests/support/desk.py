"""An OrderDesk with its log and book in hand: the test says when an entry is committed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from cluster.core.errors import StepDown
from cluster.core.ids import Instant, LogIndex, Term
from cluster.core.log import Entry
from cluster.journal import JournalBusy
from node.book import Book
from node.codec import Fact, Fill, Intent, OrderClosed, Outcome, TermStarted, encode
from node.orders import Action, Declined, Flight, OrderDesk
from node.paper_venue.profile import parse_profile
from node.risk import ORDER_KINDS, InstrumentLimits, RateLimit, RiskLimits
from node.types import (
    ClientOrderId,
    Instrument,
    OrderSpec,
    OrderStatus,
    Side,
    VenueFill,
    VenueOrder,
    VenueOrderEvent,
)
from node.venues.base import Capabilities

MS = 1_000_000
S = 1_000 * MS
SYMBOL = "BTCUSDT"
INSTRUMENTS = (Instrument(SYMBOL, Decimal("0.01"), Decimal("0.00001")),)
TAG = "t"
VALIDITY = S
LIMITS = RiskLimits({SYMBOL: InstrumentLimits(1000, 10**12, 100, 5000, frozenset(ORDER_KINDS))}, RateLimit(1000, S))
UNIX = 1_700_000_000 * S

A = TypeVar("A")


def buy(lots: int = 10, price: int = 1000, **more: Any) -> OrderSpec:
    return OrderSpec(SYMBOL, Side.BUY, lots, price, **more)


def sell(lots: int = 10, price: int = 1000, **more: Any) -> OrderSpec:
    return OrderSpec(SYMBOL, Side.SELL, lots, price, **more)


class Log:
    """The committed log and what is behind it. full: there is no room; over: the term has ended."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.facts: dict[int, Fact] = {}
        self.commit = 0
        self.term = 1
        self.at = UNIX
        self.full = self.over = False

    def append(self, fact: Fact) -> Entry:
        if self.over:
            raise StepDown("the term is over")
        if self.full:
            raise JournalBusy("full")
        self.at += MS
        kind, body = encode(fact)
        entry = Entry(LogIndex(len(self.entries) + 1), Term(self.term), kind, self.at, body, b"")
        self.entries.append(entry)
        self.facts[entry.index] = fact
        return entry

    def said(self, kind: type[A]) -> list[A]:
        """Facts of one kind, in order, committed or not."""
        return [f for f in self.facts.values() if isinstance(f, kind)]


class Rig:
    """One leader at a time. `lead` begins a term: with a new desk, over everything that stands in the log."""

    def __init__(self, profile: str = "token") -> None:
        self.caps: Capabilities = parse_profile(profile).capabilities
        self.log = Log()
        self.book = Book(TAG, INSTRUMENTS)
        self.now = Instant(1000 * S)
        self.armed = True
        self._decisions = 0
        self.lead(7)

    def lead(self, term: int, *, keep: int | None = None, validity: int = VALIDITY) -> None:
        """A new leader with the first `keep` entries; the rest is cut."""
        self.log.entries = self.log.entries[:keep]
        self.log.facts = {i: f for i, f in self.log.facts.items() if i <= len(self.log.entries)}
        self.log.term = term
        self.desk = OrderDesk(
            term=term,
            order_tag=TAG,
            book=self.book,
            limits=LIMITS,
            capabilities=self.caps,
            validity=validity,
            append=self.log.append,
        )
        self.log.append(TermStarted("n1", "i"))
        self.commit()
        self.desk.armed = self.armed

    def commit(self, upto: int | None = None) -> list[Action]:
        """Entries up to `upto` (default: all) are committed and applied; what the desk says to each."""
        out: list[Action] = []
        end = len(self.log.entries) if upto is None else upto
        while self.log.commit < end:
            entry = self.log.entries[self.log.commit]
            self.log.commit += 1
            self.book.apply(entry)
            out += self.desk.applied(entry, self.log.facts[entry.index], self.now)
        return out

    def settle_down(self) -> None:
        """Commit until nothing more is said."""
        while self.log.commit < len(self.log.entries):
            self.commit()

    def wish(self, spec: OrderSpec | None = None, decision: str = "", **more: Any) -> Flight | Declined:
        made, _ = self.wish_and_actions(spec, decision, **more)
        return made

    def wish_and_actions(
        self, spec: OrderSpec | None = None, decision: str = "", **more: Any
    ) -> tuple[Flight | Declined, list[Action]]:
        self._decisions += 1
        arguments: dict[str, Any] = {
            "reason": "",
            "feed_received_at": 0,
            "reference_half_ticks": 2000,
            "close_only": False,
            "now": self.now,
            "unix_now": self.log.at,
        } | more
        return self.desk.place(spec or buy(), decision or f"d{self._decisions}", **arguments)

    def flight(self, spec: OrderSpec | None = None, decision: str = "") -> Flight:
        made = self.wish(spec, decision)
        assert isinstance(made, Flight), made
        return made

    def sent(self, spec: OrderSpec | None = None, decision: str = "") -> Flight:
        """An order that is on its way to the venue."""
        flight = self.flight(spec, decision)
        self.desk.claimed(flight.index, None, self.now)
        self.commit()
        assert flight.sent_at
        return flight

    def answer(self, flight: Flight, result: Any) -> list[Action]:
        out = self.desk.submitted(flight.index, result, self.now)
        self.settle_down()
        return out

    def after(self, ns: int) -> list[Action]:
        """Time passes; what the desk's tick says."""
        self.now = Instant(self.now + ns)
        return self.desk.tick(self.now)

    # -- what the venue says ---------------------------------------------------------------------------------

    def order(self, coid: ClientOrderId, status: OrderStatus = OrderStatus.OPEN, filled: int = 0) -> VenueOrder:
        known = self.book.order_by_id(coid)
        return VenueOrder(coid, "v1", known.intent.spec if known else buy(), status, filled)

    def tells(self, coid: ClientOrderId, status: OrderStatus = OrderStatus.OPEN, filled: int = 0, seq: int = 1) -> None:
        self.desk.venue_said(VenueOrderEvent(self.order(coid, status, filled), "told", UNIX, seq))

    def fills(self, coid: ClientOrderId, lots: int, trade: str = "t1", seq: int = 1) -> None:
        known = self.book.order_by_id(coid)
        side = known.intent.spec.side if known else Side.BUY
        self.desk.venue_said(VenueFill(trade, coid, SYMBOL, side, lots, 1000, UNIX, seq))

    # -- what stands in the log --------------------------------------------------------------------------------

    def outcomes(self, index: int) -> list[tuple[str, str]]:
        """(result, evidence) of each, in order."""
        return [(o.result.name, o.evidence.name) for o in self.log.said(Outcome) if o.intent_index == index]

    def count(self, kind: Callable[..., Any] | type[Intent] | type[Fill] | type[OrderClosed]) -> int:
        return len(self.log.said(kind))  # type: ignore[arg-type]
