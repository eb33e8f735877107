"""The book: orders, fills and positions, as a deterministic function of the journal. Pure.

    book = Book(tag, instruments);  for entry in journal: events = book.apply(entry)

Every node applies the same entries and holds the same book; `digest()` shows it. Invariants:

- position == sum of distinct fills. Fills are the venue's money truth: one that contradicts what we believe of its
  order still counts, and the contradiction is kept as a `Mismatch` for people and for the reconcile.
- Facts about one order may come in any order and give the same order state. Outcomes are ranked,
  `none < UNKNOWN < REFUSED, NOT_SENT < ACCEPTED`, and the higher one stays; a fill or a close proves acceptance.
- Doubt counts as exposure. Unknown orders count in full and block their symbol and side; so do intents without an
  outcome once a new term begins, since whoever was to hear the answer has lost the lead. An order that closed with
  more filled than we have seen fills of counts the difference.
- Memory is bounded by `Keep`, pruned by apply order and nothing else, so equally on all nodes.

What it does not do: decide. `risk.py` judges new orders, the order path and the reconcile settle what is open.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from hashlib import blake2b
from json import dumps
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from cluster.core.errors import ConfigError, InvariantViolation, JournalCorrupt
from cluster.core.log import Entry
from cluster.rpc import book_pb2 as pb
from node.book_order import NO_EFFECT, RANK, Order, body_of, canonical_order, pack_order, unpack_order
from node.codec import (
    CancelRequested,
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
from node.strategy import FillView, OrderState, OrderView
from node.types import (
    ClientOrderId,
    Instrument,
    Side,
    client_order_id,
    parse_client_order_id,
)

_FORMAT = 1


class Keep(NamedTuple):
    """How much of the past is remembered. Equal on all nodes, or their answers to late repeats would differ."""

    closed_orders: int = 10_000
    decision_ids: int = 200_000
    trade_ids: int = 200_000
    mismatches: int = 100


@dataclass(slots=True)
class Counts:
    """Since the journal began. Written by the book alone."""

    terms: int = 0
    intents: int = 0
    fills: int = 0
    duplicate_fills: int = 0
    orphan_fills: int = 0
    mismatches: int = 0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two facts that cannot both be true. index: of the entry that showed it. code: stable."""

    index: int
    code: str
    text: str


class OrderChanged(NamedTuple):
    order: OrderView


class Filled(NamedTuple):
    fill: FillView


class MismatchFound(NamedTuple):
    mismatch: Mismatch


BookEvent = OrderChanged | Filled | MismatchFound


class _Window:
    """The latest `size` distinct ids. A set and a deque: deleting from the front of a dict gets slower and slower."""

    __slots__ = ("ids", "order", "size")

    def __init__(self, size: int, ids: Iterable[str] = ()) -> None:
        self.size = size
        self.order: deque[str] = deque(ids)
        self.ids = set(self.order)
        self._trim()

    def add(self, new: str) -> None:
        self.ids.add(new)
        self.order.append(new)
        self._trim()

    def _trim(self) -> None:
        while len(self.order) > self.size:
            self.ids.discard(self.order.popleft())


class Book:
    """See the module. Not for two threads. After an InvariantViolation from `apply` the book is not to be used."""

    def __init__(self, cluster_tag: str, instruments: Iterable[Instrument] = (), keep: Keep = Keep()) -> None:
        """cluster_tag: `cluster.order_tag`. instruments: what ticks and lots mean; noted in snapshots and digests."""
        self.cluster_tag = cluster_tag
        self.keep = keep
        self.applied_index = 0
        self.term = 0
        self.counts = Counts()
        self.venue_event_seq = 0
        """Resume point: the highest place in the private stream that a journaled fact came from."""
        self.term_started: TermStarted | None = None
        self.strategy_state: StrategyState | None = None
        self.strategy_state_index = 0
        self.reconciled: Reconciled | None = None
        self.reconciled_index = 0
        self.reconciled_at = 0
        self.mismatches: deque[Mismatch] = deque(maxlen=keep.mismatches)
        self.instruments = {i.symbol: i for i in instruments}
        self._orders: dict[int, Order] = {}  # live and closed, by index of the intent
        self._live: dict[int, Order] = {}
        self._closed: OrderedDict[int, None] = OrderedDict()  # in the order in which they closed
        self._positions: dict[str, int] = {}
        self._exposure: dict[str, list[int]] = {}  # symbol -> lots [buy, sell]
        self._unknown: dict[str, list[int]] = {}  # symbol -> orders of unknown outcome [buy, sell]
        self._decisions = _Window(keep.decision_ids)
        self._trades = _Window(keep.trade_ids)
        self._recent: deque[int] = deque(maxlen=ORDERS_BURST_MAX)
        self._digest: bytes | None = None
        self._strategy_hash = ""

    # -- reading --------------------------------------------------------------------------------------------

    def position(self, symbol: str) -> int:
        """Net lots from fills."""
        return self._positions.get(symbol, 0)

    def positions(self) -> dict[str, int]:
        """Net lots by symbol, without zeros, by symbol."""
        return {s: lots for s, lots in sorted(self._positions.items()) if lots}

    def exposure(self, symbol: str, side: Side) -> int:
        """Lots that may still change the position on `side`: pending, open, unknown, or filled but unseen."""
        both = self._exposure.get(symbol)
        return both[side is Side.SELL] if both else 0

    def is_blocked(self, symbol: str, side: Side) -> bool:
        """An order of unknown outcome stands there, so no new one may."""
        both = self._unknown.get(symbol)
        return bool(both and both[side is Side.SELL])

    def blocked(self) -> list[tuple[str, Side]]:
        return [(s, side) for s in sorted(self._unknown) for side in (Side.BUY, Side.SELL) if self.is_blocked(s, side)]

    @property
    def recent_intents(self) -> Sequence[int]:
        """Times of the latest ORDERS_BURST_MAX intents, Unix ns, ascending. Read only."""
        return self._recent

    def decided(self, decision_id: str) -> bool:
        """An intent with this decision id stands in the journal (of the latest `Keep.decision_ids`)."""
        return decision_id in self._decisions.ids

    def has_fill(self, trade_id: str) -> bool:
        return trade_id in self._trades.ids

    def order(self, intent_index: int) -> Order | None:
        return self._orders.get(intent_index)

    def order_by_id(self, coid: str) -> Order | None:
        """The order with this client order id, if it is ours and still remembered."""
        parsed = parse_client_order_id(coid)
        order = self._orders.get(parsed[2]) if parsed else None
        return order if order and order.client_order_id == coid else None

    def live_orders(self, symbol: str | None = None) -> list[Order]:
        """Orders that are pending, unknown or open, or closed with fills missing; oldest first."""
        return [o for _, o in sorted(self._live.items()) if symbol is None or o.intent.spec.symbol == symbol]

    def open_orders(self, symbol: str) -> list[OrderView]:
        """`Context.open_orders`: pending, unknown or open; oldest first."""
        return [o.view() for o in self.live_orders(symbol) if o.state is not OrderState.CLOSED]

    def recent_closed(self, limit: int) -> list[Order]:
        """The orders that closed last, latest first; for screens."""
        latest = reversed(self._closed)
        return [self._orders[i] for i, _ in zip(latest, range(limit), strict=False)]

    def unresolved(self) -> list[Order]:
        """Live orders whose placement is not known to have succeeded or failed: no outcome, or UNKNOWN. What a new
        leader settles before it trades. One that has fills is in it too: it was placed, but nobody heard the answer."""
        return [o for o in self.live_orders() if o.state is not OrderState.CLOSED and o.unresolved]

    def cancels_requested(self) -> list[Order]:
        """Orders that may rest although their cancel was asked for; a new leader asks again."""
        return [o for o in self.live_orders() if o.cancel_requested and o.state is not OrderState.CLOSED]

    def awaiting_fills(self) -> list[Order]:
        """Closed orders of which the venue says more is filled than we have fills for."""
        return [o for o in self.live_orders() if o.missing_lots]

    # -- applying -------------------------------------------------------------------------------------------

    def apply(self, entry: Entry, fact: Fact | None = None) -> list[BookEvent]:
        """Take in the next entry; return what changed, in order, for the strategy's callbacks.
        fact: what it says, where the caller has decoded it already.

        Raises InvariantViolation for an entry out of order, of unknown kind or impossible content, and for a second
        intent with one decision id: the order path asks `decided` before it appends, so two mean two deciders.
        """
        if entry.index != self.applied_index + 1:
            raise InvariantViolation(f"the book stands at entry {self.applied_index} and was given {entry.index}")
        if entry.term < self.term:
            raise InvariantViolation(f"entry {entry.index} is of term {entry.term}, after term {self.term}")
        fact = fact or decode(entry.kind, entry.body)
        events: list[BookEvent] = []
        if entry.term > self.term:
            self._begin_term(entry, events)
        _APPLY[entry.kind](self, fact, entry, events)
        self.applied_index = entry.index
        self._digest = None
        return events

    def _begin_term(self, entry: Entry, events: list[BookEvent]) -> None:
        """Whoever was to hear the answers of the last term may have heard nothing: silence is now unknown."""
        for order in self.live_orders():
            if order.outcome is None:
                reason = f"the leader of term {self.term} ended before the answer was journaled"
                outcome = Outcome(order.index, Result.UNKNOWN, Evidence.NONE, code="term_ended", reason=reason)
                order.outcome, order.outcome_body = outcome, encode(outcome)[1]
                self._refresh(order, events)
        self._clamp_recent(entry.at)
        self.term = entry.term

    def _term_started(self, fact: TermStarted, entry: Entry, events: list[BookEvent]) -> None:
        self.term_started = fact
        self.counts.terms += 1

    def _intent(self, fact: Intent, entry: Entry, events: list[BookEvent]) -> None:
        if fact.decision_id in self._decisions.ids:
            raise InvariantViolation(
                f"entry {entry.index} decides {fact.decision_id!r} a second time: the order path appended it unasked"
            )
        self._decisions.add(fact.decision_id)
        coid = client_order_id(self.cluster_tag, entry.term, entry.index)
        order = Order(entry.index, entry.term, entry.at, fact, entry.body, coid)
        self._orders[entry.index] = order
        self._clamp_recent(entry.at)
        self._recent.append(entry.at)
        self.counts.intents += 1
        self._refresh(order, events)

    def _outcome(self, fact: Outcome, entry: Entry, events: list[BookEvent]) -> None:
        order = self._known(fact.intent_index, entry, events)
        if order is None:
            return
        new, old = fact.result, order.result
        placed = old is Result.ACCEPTED or order.closed is not None or order.filled_lots > 0
        if (new in NO_EFFECT and placed) or (new is Result.ACCEPTED and old in NO_EFFECT):
            text = f"{order.client_order_id}: outcome {new.name} although it "
            text += "was placed" if placed else f"had been {old.name}"
            self._mismatch("outcome_conflict", text, entry, events)
        # A weaker word never replaces a stronger one. Of two UNKNOWN the later expiry stays.
        was_expiry = order.outcome.expires_at if order.outcome else 0
        if RANK[new] > RANK[old] or (new is old is Result.UNKNOWN and fact.expires_at > was_expiry):
            order.outcome, order.outcome_body = fact, entry.body
            self._refresh(order, events)

    def _fill(self, fact: Fill, entry: Entry, events: list[BookEvent]) -> None:
        self.venue_event_seq = max(self.venue_event_seq, fact.venue_event_seq)
        if fact.trade_id in self._trades.ids:
            self.counts.duplicate_fills += 1
            return
        self._trades.add(fact.trade_id)
        self.counts.fills += 1
        self._positions[fact.symbol] = self.position(fact.symbol) + fact.side.sign * fact.qty_lots
        coid = ClientOrderId(fact.client_order_id)
        view = FillView(coid, fact.symbol, fact.side, fact.qty_lots, fact.price_ticks, fact.trade_id)
        events.append(Filled(view))
        if fact.intent_index == 0:
            self.counts.orphan_fills += 1
            return
        order = self._known(fact.intent_index, entry, events)
        if order is None:
            return
        order.filled_lots += fact.qty_lots
        self._check_fill(order, fact, entry, events)
        self._refresh(order, events)

    def _check_fill(self, order: Order, fact: Fill, entry: Entry, events: list[BookEvent]) -> None:
        """Say what the new fill contradicts. It counts in any case."""
        spec, coid = order.intent.spec, order.client_order_id
        if fact.symbol != spec.symbol or fact.side is not spec.side or fact.client_order_id != coid:
            text = (
                f"trade {fact.trade_id}: {fact.side.value} {fact.symbol} for {fact.client_order_id!r}, but intent "
                f"{order.index} is {spec.side.value} {spec.symbol} as {coid!r}"
            )
            self._mismatch("fill_differs", text, entry, events)
        if order.filled_lots > spec.qty_lots:
            text = f"{coid}: {order.filled_lots} lots filled of an order for {spec.qty_lots}"
            self._mismatch("overfill", text, entry, events)
        if order.closed and order.filled_lots > order.closed.filled_lots:
            text = f"{coid}: closed with {order.closed.filled_lots} lots filled, now {order.filled_lots}"
            self._mismatch("fill_after_close", text, entry, events)
        if order.result in NO_EFFECT:
            self._mismatch("fill_of_unplaced", f"{coid}: filled although {order.result.name}", entry, events)

    def _order_closed(self, fact: OrderClosed, entry: Entry, events: list[BookEvent]) -> None:
        self.venue_event_seq = max(self.venue_event_seq, fact.venue_event_seq)
        order = self._known(fact.intent_index, entry, events)
        if order is None:
            return
        coid, known = order.client_order_id, order.closed
        if known and (known.how is not fact.how or known.filled_lots != fact.filled_lots):
            text = f"{coid}: closed as {fact.how.name} with {fact.filled_lots} lots, before as {known.how.name} with "
            self._mismatch("close_conflict", f"{text}{known.filled_lots}", entry, events)
        if fact.filled_lots < order.filled_lots or fact.filled_lots > order.intent.spec.qty_lots:
            text = (
                f"{coid}: closed with {fact.filled_lots} of {order.intent.spec.qty_lots} lots filled, its fills sum to "
            )
            self._mismatch("close_differs", f"{text}{order.filled_lots}", entry, events)
        if order.result in NO_EFFECT:
            self._mismatch("close_of_unplaced", f"{coid}: closed although {order.result.name}", entry, events)
        if known and known.filled_lots >= fact.filled_lots:
            return  # of two closes, the one that says more was filled keeps the exposure
        order.closed, order.closed_body = fact, entry.body
        self._refresh(order, events)

    def _cancel_requested(self, fact: CancelRequested, entry: Entry, events: list[BookEvent]) -> None:
        order = self._known(fact.intent_index, entry, events)
        if order is not None and not order.cancel_requested:
            order.cancel_requested = True
            self._refresh(order, events)

    def _strategy_state(self, fact: StrategyState, entry: Entry, events: list[BookEvent]) -> None:
        self.strategy_state, self.strategy_state_index = fact, entry.index
        self._strategy_hash = ""

    def _reconciled(self, fact: Reconciled, entry: Entry, events: list[BookEvent]) -> None:
        self.reconciled, self.reconciled_index, self.reconciled_at = fact, entry.index, entry.at

    # -- keeping the sums -----------------------------------------------------------------------------------

    def _refresh(self, order: Order, events: list[BookEvent] | None) -> None:
        """Bring every sum and index in line with the order's facts. The only place where they change."""
        was_state, was_remaining = order.state, order.remaining_lots
        order.derive()
        symbol, slot = order.intent.spec.symbol, order.slot
        self._exposure.setdefault(symbol, [0, 0])[slot] += order.remaining_lots - was_remaining
        self._unknown.setdefault(symbol, [0, 0])[slot] += (order.state is OrderState.UNKNOWN) - (
            was_state is OrderState.UNKNOWN
        )
        if order.live:
            self._live[order.index] = order
            self._closed.pop(order.index, None)  # a fill may bring back what we held for refused
        else:
            self._live.pop(order.index, None)
            if order.index not in self._closed:
                self._closed[order.index] = None
                while len(self._closed) > self.keep.closed_orders:
                    del self._orders[self._closed.popitem(last=False)[0]]
        if events is not None:
            events.append(OrderChanged(order.view()))

    def _known(self, index: int, entry: Entry, events: list[BookEvent]) -> Order | None:
        order = self._orders.get(index)
        if order is None:
            text = f"{Kind(entry.kind).name} for intent {index}, which never was or is no longer remembered"
            self._mismatch("no_such_intent", text, entry, events)
        return order

    def _mismatch(self, code: str, text: str, entry: Entry, events: list[BookEvent]) -> None:
        found = Mismatch(entry.index, code, text)
        self.mismatches.append(found)
        self.counts.mismatches += 1
        events.append(MismatchFound(found))

    def _clamp_recent(self, at: int) -> None:
        """Nothing before this entry was later than it: times that say so come from a clock that was ahead, another
        host's or ours before it was set back. Keeps the times ascending, and the order rate honest (risk.py)."""
        if self._recent and self._recent[-1] > at:
            self._recent = deque((min(t, at) for t in self._recent), maxlen=ORDERS_BURST_MAX)

    # -- comparing and carrying over ------------------------------------------------------------------------

    def digest(self) -> bytes:
        """32 bytes that are equal for equal trading state: positions, live orders, the resume point and the strategy's
        memory. Not in it: history, windows, explanations, and the applied index (compare digests of one index)."""
        if self._digest is None:
            self._digest = blake2b(dumps(self._canonical(), separators=(",", ":")).encode(), digest_size=32).digest()
        return self._digest

    def _canonical(self) -> list[object]:
        live = self.live_orders()
        positions = self.positions()
        # What a tick and a lot are is part of what a position means; only where there is one, so that a node which
        # already knows a further instrument still agrees with one that does not.
        symbols = sorted(positions.keys() | {o.intent.spec.symbol for o in live})
        s = self.strategy_state
        if s and not self._strategy_hash:
            self._strategy_hash = blake2b(s.state, digest_size=32).hexdigest()
        return [
            1,
            self.cluster_tag,
            self.venue_event_seq,
            [(sym, positions.get(sym, 0), *self._scale(sym)) for sym in symbols],
            [canonical_order(o) for o in live],
            [s.strategy, s.version, self._strategy_hash] if s else [],
        ]

    def _scale(self, symbol: str) -> tuple[str, str]:
        i = self.instruments.get(symbol)
        return (str(i.tick_size.normalize()), str(i.lot_size.normalize())) if i else ("", "")

    def snapshot(self) -> bytes:
        """Everything the journal up to `applied_index` means. Equal books give equal bytes."""
        m = pb.Book(
            format=_FORMAT,
            cluster_tag=self.cluster_tag,
            applied_index=self.applied_index,
            term=self.term,
            scales=[
                pb.Scale(symbol=s, tick_size=str(i.tick_size), lot_size=str(i.lot_size))
                for s, i in sorted(self.instruments.items())
            ],
            positions=[pb.Position(symbol=s, lots=lots) for s, lots in self.positions().items()],
            live=map(pack_order, self.live_orders()),
            closed=(pack_order(self._orders[i]) for i in self._closed),
            decision_ids=self._decisions.order,
            trade_ids=self._trades.order,
            recent_intents=self._recent,
            venue_event_seq=self.venue_event_seq,
            strategy_state_index=self.strategy_state_index,
            reconciled_index=self.reconciled_index,
            reconciled_at=self.reconciled_at,
            counts=pb.Counts(**asdict(self.counts)),
            mismatches=[pb.Mismatch(index=x.index, code=x.code, text=x.text) for x in self.mismatches],
        )
        if self.term_started:
            m.term_started_body = encode(self.term_started)[1]
        if self.strategy_state:
            m.strategy_state_body = encode(self.strategy_state)[1]
        if self.reconciled:
            m.reconciled_body = encode(self.reconciled)[1]
        return m.SerializeToString(deterministic=True)

    @classmethod
    def restore(
        cls,
        data: bytes,
        cluster_tag: str | None = None,
        instruments: Iterable[Instrument] | None = None,
        keep: Keep = Keep(),
    ) -> Book:
        """The book that `snapshot` saw. Give `cluster_tag` and `instruments` to have them checked against it.

        Raises ConfigError if they would change the meaning of what is in it (another order tag, another tick or lot
        size of a symbol in use), and JournalCorrupt if `data` is no snapshot that this version can read.
        """
        try:
            m = pb.Book.FromString(data)
        except DecodeError as e:
            raise JournalCorrupt(f"a snapshot of {len(data)} bytes is no book: {e}") from e
        if m.format != _FORMAT:
            raise JournalCorrupt(f"a book of format {m.format}, this version reads {_FORMAT}; upgrade this node")
        if cluster_tag is not None and cluster_tag != m.cluster_tag:
            raise ConfigError(
                f"cluster.order_tag = {cluster_tag!r}: this journal's orders were named with {m.cluster_tag!r}; "
                "set it back (it may only change together with a new, empty journal)"
            )
        written = [Instrument(x.symbol, Decimal(x.tick_size), Decimal(x.lot_size)) for x in m.scales]
        book = cls(m.cluster_tag, written, keep)
        book._fill_from(m)
        if instruments is not None:
            book._rescale(instruments)
        return book

    def _fill_from(self, m: pb.Book) -> None:
        self.applied_index, self.term, self.venue_event_seq = m.applied_index, m.term, m.venue_event_seq
        self._positions = {p.symbol: p.lots for p in m.positions}
        self._decisions = _Window(self.keep.decision_ids, m.decision_ids)
        self._trades = _Window(self.keep.trade_ids, m.trade_ids)
        self._recent.extend(m.recent_intents)
        for packed in (*m.live, *m.closed):
            order = unpack_order(packed, self.cluster_tag)
            self._orders[order.index] = order
            self._refresh(order, None)
        self.term_started = body_of(Kind.TERM_STARTED, m.term_started_body)
        self.strategy_state = body_of(Kind.STRATEGY_STATE, m.strategy_state_body)
        self.strategy_state_index = m.strategy_state_index
        self.reconciled = body_of(Kind.RECONCILED, m.reconciled_body)
        self.reconciled_index, self.reconciled_at = m.reconciled_index, m.reconciled_at
        c = m.counts
        self.counts = Counts(c.terms, c.intents, c.fills, c.duplicate_fills, c.orphan_fills, c.mismatches)
        self.mismatches.extend(Mismatch(x.index, x.code, x.text) for x in m.mismatches)

    def _rescale(self, instruments: Iterable[Instrument]) -> None:
        """Take the configured instruments; ticks and lots of a symbol in use must mean what they meant."""
        configured = {i.symbol: i for i in instruments}
        in_use = self.positions().keys() | {o.intent.spec.symbol for o in self._live.values()}
        for symbol in sorted(in_use & configured.keys() & self.instruments.keys()):
            new, old = configured[symbol], self.instruments[symbol]
            for name in ("tick_size", "lot_size"):
                if getattr(new, name) != getattr(old, name):
                    raise ConfigError(
                        f"instruments {symbol}: {name} = {getattr(new, name)}, but the position and orders in the "
                        f"journal are counted in {getattr(old, name)}; set it back, or close them first"
                    )
        self.instruments |= configured


_APPLY: Mapping[int, Callable[[Book, Any, Entry, list[BookEvent]], None]] = MappingProxyType(
    {
        int(Kind.TERM_STARTED): Book._term_started,
        int(Kind.INTENT): Book._intent,
        int(Kind.OUTCOME): Book._outcome,
        int(Kind.FILL): Book._fill,
        int(Kind.ORDER_CLOSED): Book._order_closed,
        int(Kind.CANCEL_REQUESTED): Book._cancel_requested,
        int(Kind.STRATEGY_STATE): Book._strategy_state,
        int(Kind.RECONCILED): Book._reconciled,
    }
)
