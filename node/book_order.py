"""One order in the book: an intent, and what the facts about it add up to. Pure.

Facts may come in any order and give the same state (`Order.derive`): outcomes are ranked, and the stronger one stays;
a fill or a close is the venue's own proof that it has, or had, the order. Used by `book.py` alone; others read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cluster.rpc import book_pb2 as pb
from node.codec import Intent, Kind, OrderClosed, Outcome, Result, decode
from node.strategy import OrderState, OrderView
from node.types import ClientOrderId, DecisionId, Side, client_order_id

RANK: Mapping[Result, int] = MappingProxyType(
    {Result.NONE: 0, Result.UNKNOWN: 1, Result.REFUSED: 2, Result.NOT_SENT: 2, Result.ACCEPTED: 3}
)
NO_EFFECT = (Result.REFUSED, Result.NOT_SENT)


class Order:
    """One intent and what became of it. Owned by the book: others read it, and do not keep it over an `apply`.

    index, term, at: of the intent's entry. filled_lots: sum of its distinct fills. remaining_lots: what may still fill,
    or has filled without our having seen the fill. The bodies are kept as they stand in the journal, for snapshots.
    """

    __slots__ = (
        "at",
        "cancel_requested",
        "client_order_id",
        "closed",
        "closed_body",
        "filled_lots",
        "index",
        "intent",
        "intent_body",
        "outcome",
        "outcome_body",
        "remaining_lots",
        "slot",
        "state",
        "term",
    )

    def __init__(self, index: int, term: int, at: int, intent: Intent, intent_body: bytes, coid: ClientOrderId) -> None:
        self.index = index
        self.term = term
        self.at = at
        self.intent = intent
        self.intent_body = intent_body
        self.client_order_id = coid
        self.outcome: Outcome | None = None
        self.outcome_body = b""
        self.closed: OrderClosed | None = None
        self.closed_body = b""
        self.filled_lots = 0
        self.cancel_requested = False
        self.state = OrderState.PENDING
        self.remaining_lots = 0
        self.slot = 0 if intent.spec.side is Side.BUY else 1

    @property
    def result(self) -> Result:
        return self.outcome.result if self.outcome else Result.NONE

    @property
    def reason(self) -> str:
        """Why it stands as it does, in the words of the latest fact that counts."""
        if self.closed:
            return self.closed.reason
        return self.outcome.reason if self.outcome else ""

    @property
    def missing_lots(self) -> int:
        """Filled, says its close, but the fills have not come."""
        return max(0, self.closed.filled_lots - self.filled_lots) if self.closed else 0

    @property
    def unresolved(self) -> bool:
        """Nobody has heard whether it was placed: no outcome, or UNKNOWN."""
        return RANK[self.result] <= RANK[Result.UNKNOWN]

    @property
    def live(self) -> bool:
        return self.state is not OrderState.CLOSED or self.remaining_lots > 0

    def view(self) -> OrderView:
        return OrderView(
            self.client_order_id,
            DecisionId(self.intent.decision_id),
            self.intent.spec,
            self.state,
            self.filled_lots,
            self.cancel_requested,
            self.reason,
        )

    def derive(self) -> None:
        """Set `state` and `remaining_lots` from the facts, whatever order they came in."""
        qty, filled = self.intent.spec.qty_lots, self.filled_lots
        if self.closed:
            self.state, self.remaining_lots = OrderState.CLOSED, self.missing_lots
        elif filled >= qty:
            self.state, self.remaining_lots = OrderState.CLOSED, 0
        elif filled:
            # A fill is the venue's own proof that it has the order, also against a REFUSED or NOT_SENT of ours:
            # the rest may be live until a close says otherwise.
            self.state, self.remaining_lots = OrderState.OPEN, qty - filled
        else:
            self.state = _STATE_OF[self.result]
            self.remaining_lots = 0 if self.state is OrderState.CLOSED else qty


_STATE_OF: Mapping[Result, OrderState] = MappingProxyType(
    {
        Result.NONE: OrderState.PENDING,
        Result.UNKNOWN: OrderState.UNKNOWN,
        Result.REFUSED: OrderState.CLOSED,
        Result.NOT_SENT: OrderState.CLOSED,
        Result.ACCEPTED: OrderState.OPEN,
    }
)


def canonical_order(o: Order) -> list[object]:
    """What of a live order bears on trading; not the words about it, which depend on who told us first."""
    s = o.intent.spec
    return [
        o.index,
        o.term,
        o.intent.decision_id,
        s.symbol,
        s.side.value,
        s.type.value,
        s.tif.value,
        s.post_only,
        s.qty_lots,
        s.price_ticks,
        o.state.value,
        o.unresolved,
        o.outcome.expires_at if o.unresolved and o.outcome else 0,
        o.filled_lots,
        o.remaining_lots,
        o.cancel_requested,
    ]


def pack_order(o: Order) -> pb.Order:
    return pb.Order(
        index=o.index,
        term=o.term,
        at=o.at,
        intent_body=o.intent_body,
        outcome_body=o.outcome_body,
        closed_body=o.closed_body,
        filled_lots=o.filled_lots,
        cancel_requested=o.cancel_requested,
    )


def unpack_order(m: pb.Order, cluster_tag: str) -> Order:
    intent = body_of(Kind.INTENT, m.intent_body)
    order = Order(m.index, m.term, m.at, intent, m.intent_body, client_order_id(cluster_tag, m.term, m.index))
    order.outcome, order.outcome_body = body_of(Kind.OUTCOME, m.outcome_body), m.outcome_body
    order.closed, order.closed_body = body_of(Kind.ORDER_CLOSED, m.closed_body), m.closed_body
    order.filled_lots, order.cancel_requested = m.filled_lots, m.cancel_requested
    return order


def body_of(kind: Kind, body: bytes) -> Any:
    """An empty body: no such fact. None of the kinds kept here has one, as each has a field that is never its zero,
    but TermStarted and Reconciled, where a fact without a word in it and none are the same to everyone."""
    return decode(kind, body) if body else None
