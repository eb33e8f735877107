"""Journal bodies as values: what proto/journal.proto says, in the words of `types.py`. Pure.

The only module of `node/` that touches the generated messages of the journal. A *fact* is one entry's body;
`encode` and `decode` are inverse, and both refuse what no true journal can hold: a writer that would put it there
is wrong, and a reader that meets it, or an unknown kind, cannot keep a true book (journal.proto).
Facts are NamedTuples because catch-up makes hundreds of thousands a second. Read next: `book.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from cluster.core.errors import InvariantViolation
from cluster.rpc import journal_pb2 as pb
from node.types import OrderSpec, OrderType, Side, TimeInForce


class Kind(IntEnum):
    TERM_STARTED = pb.KIND_TERM_STARTED
    INTENT = pb.KIND_INTENT
    OUTCOME = pb.KIND_OUTCOME
    FILL = pb.KIND_FILL
    ORDER_CLOSED = pb.KIND_ORDER_CLOSED
    CANCEL_REQUESTED = pb.KIND_CANCEL_REQUESTED
    STRATEGY_STATE = pb.KIND_STRATEGY_STATE
    RECONCILED = pb.KIND_RECONCILED


class Result(IntEnum):
    """NONE is never journaled: the book's word for "no outcome yet"."""

    NONE = 0
    ACCEPTED = pb.RESULT_ACCEPTED
    REFUSED = pb.RESULT_REFUSED
    NOT_SENT = pb.RESULT_NOT_SENT
    UNKNOWN = pb.RESULT_UNKNOWN


class Evidence(IntEnum):
    NONE = 0
    LOCAL = pb.EVIDENCE_LOCAL
    VENUE_REPLY = pb.EVIDENCE_VENUE_REPLY
    VENUE_STREAM = pb.EVIDENCE_VENUE_STREAM
    LOOKUP_FOUND = pb.EVIDENCE_LOOKUP_FOUND
    ABSENT_FENCED = pb.EVIDENCE_ABSENT_FENCED
    ABSENT_EXPIRED = pb.EVIDENCE_ABSENT_EXPIRED
    FILL_HISTORY = pb.EVIDENCE_FILL_HISTORY
    OPERATOR = pb.EVIDENCE_OPERATOR


class Closed(IntEnum):
    """NONE is never journaled: the book's word for "not closed"."""

    NONE = 0
    FILLED = pb.CLOSED_FILLED
    CANCELLED = pb.CLOSED_CANCELLED
    EXPIRED = pb.CLOSED_EXPIRED


class TermStarted(NamedTuple):
    node: str
    incarnation: str


class Intent(NamedTuple):
    """feed_received_at: Unix ns at which the market event that led to it arrived; 0: no such event. validity_ms: its
    leader lets its order expire at most so long after the send; 0: not said."""

    decision_id: str
    spec: OrderSpec
    reason: str = ""
    feed_received_at: int = 0
    validity_ms: int = 0


class Outcome(NamedTuple):
    """expires_at: the expiry the order carried, venue Unix ns; 0: none. Only with UNKNOWN."""

    intent_index: int
    result: Result
    evidence: Evidence
    venue_order_id: str = ""
    code: str = ""
    reason: str = ""
    expires_at: int = 0


class Fill(NamedTuple):
    """intent_index 0: no intent of ours is known (an orphan)."""

    trade_id: str
    intent_index: int
    client_order_id: str
    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int
    venue_at: int = 0
    venue_event_seq: int = 0


class OrderClosed(NamedTuple):
    """filled_lots: in total, as the venue says. venue_event_seq 0: learned otherwise than on the stream."""

    intent_index: int
    how: Closed
    filled_lots: int
    reason: str = ""
    evidence: Evidence = Evidence.NONE
    venue_event_seq: int = 0


class CancelRequested(NamedTuple):
    intent_index: int
    reason: str = ""


class StrategyState(NamedTuple):
    strategy: str
    version: int
    state: bytes


class Reconciled(NamedTuple):
    trigger: str
    mismatches: tuple[str, ...] = ()


Fact = TermStarted | Intent | Outcome | Fill | OrderClosed | CancelRequested | StrategyState | Reconciled


def encode(fact: Fact) -> tuple[int, bytes]:
    """(kind, body) of the entry that says `fact`. Raises InvariantViolation for a fact that cannot be true:
    the caller is wrong, and what it did not append cannot mislead anyone."""
    kind, encoder = _ENCODERS[type(fact)]
    _refuse_impossible(kind, fact)
    try:
        body: bytes = encoder(fact).SerializeToString(deterministic=True)
    except (TypeError, ValueError) as e:  # a number beyond int64, a str where an int belongs
        raise InvariantViolation(f"cannot journal {fact!r}: {e}") from e
    return kind, body


def decode(kind: int, body: bytes) -> Fact:
    """The fact that an entry says. Raises InvariantViolation for an unknown kind or a body that no writer of
    this version makes: the reader must stop, and is to be upgraded or its journal looked at."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise InvariantViolation(
            f"journal entry of unknown kind {kind}: written by a newer version; upgrade this node before it follows"
        )
    try:
        fact = decoder(body)
    except KeyError as e:
        raise InvariantViolation(f"journal entry {Kind(kind).name} with enum value {e}, unknown here") from e
    except (DecodeError, ValueError) as e:
        raise InvariantViolation(f"journal entry {Kind(kind).name} cannot be read: {e}") from e
    _refuse_impossible(kind, fact)
    return fact


# -- the message of each kind -------------------------------------------------------------------------------

# By wire number; a number that is missing here (unspecified, or from a newer version) is a KeyError, thus refused.
# Tables, since calling an Enum costs three times as much and this runs for every entry.
_SIDES = {pb.SIDE_BUY: Side.BUY, pb.SIDE_SELL: Side.SELL}
_TYPES = {pb.ORDER_TYPE_LIMIT: OrderType.LIMIT, pb.ORDER_TYPE_MARKET: OrderType.MARKET}
_TIFS = {pb.TIME_IN_FORCE_GTC: TimeInForce.GTC, pb.TIME_IN_FORCE_IOC: TimeInForce.IOC}
_RESULTS = {int(r): r for r in Result}
_EVIDENCES = {int(e): e for e in Evidence}
_CLOSED = {int(c): c for c in Closed}
_NUMBER: Mapping[Any, Any] = MappingProxyType({e: n for n, e in [*_SIDES.items(), *_TYPES.items(), *_TIFS.items()]})


def _put_term_started(f: TermStarted) -> pb.TermStarted:
    return pb.TermStarted(node=f.node, incarnation=f.incarnation)


def _get_term_started(body: bytes) -> TermStarted:
    m = pb.TermStarted.FromString(body)
    return TermStarted(m.node, m.incarnation)


def _put_intent(f: Intent) -> pb.Intent:
    s = f.spec
    return pb.Intent(
        decision_id=f.decision_id,
        symbol=s.symbol,
        side=_NUMBER[s.side],
        type=_NUMBER[s.type],
        tif=_NUMBER[s.tif],
        post_only=s.post_only,
        qty_lots=s.qty_lots,
        price_ticks=s.price_ticks,
        reason=f.reason,
        feed_received_at=f.feed_received_at,
        validity_ms=f.validity_ms,
    )


def _get_intent(body: bytes) -> Intent:
    m = pb.Intent.FromString(body)
    price = m.price_ticks if m.HasField("price_ticks") else None
    spec = OrderSpec(m.symbol, _SIDES[m.side], m.qty_lots, price, _TYPES[m.type], _TIFS[m.tif], m.post_only)
    return Intent(m.decision_id, spec, m.reason, m.feed_received_at, m.validity_ms)


def _put_outcome(f: Outcome) -> pb.Outcome:
    return pb.Outcome(
        intent_index=f.intent_index,
        result=int(f.result),  # type: ignore[arg-type]
        evidence=int(f.evidence),  # type: ignore[arg-type]
        venue_order_id=f.venue_order_id,
        code=f.code,
        reason=f.reason,
        expires_at=f.expires_at,
    )


def _get_outcome(body: bytes) -> Outcome:
    m = pb.Outcome.FromString(body)
    return Outcome(
        m.intent_index,
        _RESULTS[m.result],
        _EVIDENCES[m.evidence],
        m.venue_order_id,
        m.code,
        m.reason,
        m.expires_at,
    )


def _put_fill(f: Fill) -> pb.Fill:
    return pb.Fill(
        trade_id=f.trade_id,
        intent_index=f.intent_index,
        client_order_id=f.client_order_id,
        symbol=f.symbol,
        side=_NUMBER[f.side],
        qty_lots=f.qty_lots,
        price_ticks=f.price_ticks,
        venue_at=f.venue_at,
        venue_event_seq=f.venue_event_seq,
    )


def _get_fill(body: bytes) -> Fill:
    m = pb.Fill.FromString(body)
    return Fill(
        m.trade_id,
        m.intent_index,
        m.client_order_id,
        m.symbol,
        _SIDES[m.side],
        m.qty_lots,
        m.price_ticks,
        m.venue_at,
        m.venue_event_seq,
    )


def _put_order_closed(f: OrderClosed) -> pb.OrderClosed:
    return pb.OrderClosed(
        intent_index=f.intent_index,
        how=int(f.how),  # type: ignore[arg-type]
        filled_lots=f.filled_lots,
        reason=f.reason,
        evidence=int(f.evidence),  # type: ignore[arg-type]
        venue_event_seq=f.venue_event_seq,
    )


def _get_order_closed(body: bytes) -> OrderClosed:
    m = pb.OrderClosed.FromString(body)
    return OrderClosed(
        m.intent_index, _CLOSED[m.how], m.filled_lots, m.reason, _EVIDENCES[m.evidence], m.venue_event_seq
    )


def _put_cancel_requested(f: CancelRequested) -> pb.CancelRequested:
    return pb.CancelRequested(intent_index=f.intent_index, reason=f.reason)


def _get_cancel_requested(body: bytes) -> CancelRequested:
    m = pb.CancelRequested.FromString(body)
    return CancelRequested(m.intent_index, m.reason)


def _put_strategy_state(f: StrategyState) -> pb.StrategyState:
    return pb.StrategyState(strategy=f.strategy, version=f.version, state=f.state)


def _get_strategy_state(body: bytes) -> StrategyState:
    m = pb.StrategyState.FromString(body)
    return StrategyState(m.strategy, m.version, m.state)


def _put_reconciled(f: Reconciled) -> pb.Reconciled:
    return pb.Reconciled(trigger=f.trigger, mismatches=f.mismatches)


def _get_reconciled(body: bytes) -> Reconciled:
    m = pb.Reconciled.FromString(body)
    return Reconciled(m.trigger, tuple(m.mismatches))


_ENCODERS: Mapping[type, tuple[Kind, Callable[[Any], Any]]] = MappingProxyType(
    {
        TermStarted: (Kind.TERM_STARTED, _put_term_started),
        Intent: (Kind.INTENT, _put_intent),
        Outcome: (Kind.OUTCOME, _put_outcome),
        Fill: (Kind.FILL, _put_fill),
        OrderClosed: (Kind.ORDER_CLOSED, _put_order_closed),
        CancelRequested: (Kind.CANCEL_REQUESTED, _put_cancel_requested),
        StrategyState: (Kind.STRATEGY_STATE, _put_strategy_state),
        Reconciled: (Kind.RECONCILED, _put_reconciled),
    }
)

_DECODERS: Mapping[int, Callable[[bytes], Fact]] = MappingProxyType(
    {
        int(Kind.TERM_STARTED): _get_term_started,
        int(Kind.INTENT): _get_intent,
        int(Kind.OUTCOME): _get_outcome,
        int(Kind.FILL): _get_fill,
        int(Kind.ORDER_CLOSED): _get_order_closed,
        int(Kind.CANCEL_REQUESTED): _get_cancel_requested,
        int(Kind.STRATEGY_STATE): _get_strategy_state,
        int(Kind.RECONCILED): _get_reconciled,
    }
)


# -- what no true journal can hold --------------------------------------------------------------------------


def _refuse_impossible(kind: int, fact: Any) -> None:
    check = _CHECKS.get(kind)
    problem = check(fact) if check else ""
    if problem:
        raise InvariantViolation(f"journal entry {Kind(kind).name} that cannot be true: {problem} in {fact!r}")


def _check_intent(f: Intent) -> str:
    # Quantity, price and type agree already: OrderSpec refuses to exist otherwise.
    if not f.decision_id:
        return "decision_id is empty, so the decision could be taken twice"
    return "" if f.spec.symbol else "symbol is empty"


def _check_outcome(f: Outcome) -> str:
    if f.intent_index <= 0:
        return f"intent_index {f.intent_index}"
    return "result is unspecified" if f.result is Result.NONE else ""


def _check_fill(f: Fill) -> str:
    if not f.trade_id:
        return "trade_id is empty, so the fill could be counted twice"
    if not f.symbol:
        return "symbol is empty"
    return f"qty_lots {f.qty_lots}" if f.qty_lots <= 0 or f.intent_index < 0 else ""


def _check_order_closed(f: OrderClosed) -> str:
    if f.intent_index <= 0:
        return f"intent_index {f.intent_index}"
    if f.how is Closed.NONE:
        return "how it closed is unspecified"
    return f"filled_lots {f.filled_lots}" if f.filled_lots < 0 else ""


def _check_cancel_requested(f: CancelRequested) -> str:
    return f"intent_index {f.intent_index}" if f.intent_index <= 0 else ""


_CHECKS: Mapping[int, Callable[[Any], str]] = MappingProxyType(
    {
        int(Kind.INTENT): _check_intent,
        int(Kind.OUTCOME): _check_outcome,
        int(Kind.FILL): _check_fill,
        int(Kind.ORDER_CLOSED): _check_order_closed,
        int(Kind.CANCEL_REQUESTED): _check_cancel_requested,
    }
)
