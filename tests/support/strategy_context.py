"""A Context for strategies under test, and a desk that carries out their wishes at once on a tiny venue.

The desk keeps the history of everything wished for, refuses a decision id it has seen before (as the journal does),
and tells the strategy about its orders and fills in the order in which a worker would.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal

from node.feeds.base import MarketEvent, Quote, Trade
from node.strategy import Cancel, FillView, OrderState, OrderView, Place, Role, Strategy, Wish
from node.types import ClientOrderId, DecisionId, Instrument, OrderType, Side, TimeInForce

BTCUSDT = Instrument("BTCUSDT", Decimal("0.01"), Decimal("0.00001"))


def quote(
    seq: int, bid: int, ask: int | None = None, *, lots: int = 1000, at: int = 0, symbol: str = "BTCUSDT"
) -> Quote:
    return Quote(symbol, seq, bid, lots, bid + 1 if ask is None else ask, lots, at)


def trade(seq: int, price: int, *, at_ms: int = 0, lots: int = 1, sells: bool = True, at: int = 0) -> Trade:
    return Trade("BTCUSDT", seq, price, lots, sells, at_ms, at)


@dataclass
class FakeContext:
    """Implements node.strategy.Context over plain fields that a test may set."""

    at: int = 1_000_000_000
    instruments: dict[str, Instrument] = field(default_factory=lambda: {"BTCUSDT": BTCUSDT})
    positions: dict[str, int] = field(default_factory=dict)
    orders: dict[ClientOrderId, OrderView] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)  # id -> due, ns

    def now(self) -> int:
        return self.at

    def rng(self, seq: int) -> random.Random:
        return random.Random(seq)

    def instrument(self, symbol: str) -> Instrument:
        return self.instruments[symbol]

    def position(self, symbol: str) -> int:
        return self.positions.get(symbol, 0)

    def open_orders(self, symbol: str) -> list[OrderView]:
        return [o for o in self.orders.values() if o.spec.symbol == symbol and o.state is not OrderState.CLOSED]

    def set_timer(self, timer_id: str, after_s: float) -> None:
        self.timers[timer_id] = self.at + round(after_s * 1e9)


class Desk:
    """One strategy, its context, and a venue that answers at once.

    accepts: what `carry_out` does with a Place: rest it on the book, or (False) leave it pending.
    """

    def __init__(self, strategy: Strategy, context: FakeContext | None = None, *, accepts: bool = True) -> None:
        self.strategy = strategy
        self.ctx = context or FakeContext()
        self.accepts = accepts
        self.wishes: list[Wish] = []
        self.refused: list[DecisionId] = []  # the journal had that decision already
        self._decided: set[DecisionId] = set()
        self._touch = (0, 1 << 60)
        self._n = 0

    # -- telling the strategy --

    def start(self, role: Role | None = None) -> list[Wish]:
        wishes = self._take(self.strategy.on_start(self.ctx))
        return wishes + self.role(role) if role else wishes

    def role(self, role: Role) -> list[Wish]:
        return self._take(self.strategy.on_role(self.ctx, role, "test"))

    def market(self, event: MarketEvent, *, at: int | None = None) -> list[Wish]:
        if at is not None:
            self.run_timers(at)
        if isinstance(event, Quote):
            self._touch = (event.bid_ticks, event.ask_ticks)
        elif isinstance(event, Trade):
            self._match(event)
        return self._take(self.strategy.on_market(self.ctx, event))

    def run_timers(self, until: int) -> list[Wish]:
        """Move the clock to `until`, firing what falls due on the way."""
        wishes: list[Wish] = []
        while due := [(at, name) for name, at in self.ctx.timers.items() if at <= until]:
            at, name = min(due)
            del self.ctx.timers[name]
            self.ctx.at = max(self.ctx.at, at)
            wishes += self._take(self.strategy.on_timer(self.ctx, name))
        self.ctx.at = max(self.ctx.at, until)
        return wishes

    # -- carrying out --

    def _take(self, wishes: Iterable[Wish] | None) -> list[Wish]:
        taken = list(wishes or ())
        self.wishes += taken
        for wish in taken:
            if isinstance(wish, Place):
                self._place(wish)
            else:
                self._cancel(wish)
        return taken

    def _place(self, wish: Place) -> None:
        assert wish.decision_id is not None
        if wish.decision_id in self._decided:
            self.refused.append(wish.decision_id)
            return
        self._decided.add(wish.decision_id)
        self._n += 1
        order = OrderView(ClientOrderId(f"o{self._n}"), wish.decision_id, wish.spec, OrderState.PENDING, 0, False)
        self.tell(order)
        if self.accepts:
            self.accept(order.client_order_id)

    def accept(self, coid: ClientOrderId) -> None:
        """The venue takes the order: fills what crosses, refuses a post-only that would."""
        order = self.ctx.orders[coid]
        buy = order.spec.side is Side.BUY
        touch = self._touch[1] if buy else self._touch[0]
        limit = order.spec.price_ticks
        crosses = limit is None or (limit >= touch if buy else limit <= touch)
        if order.spec.post_only and crosses:
            self.close(coid, "would take")
            return
        self.tell(replace(order, state=OrderState.OPEN))
        if crosses:
            self.fill(coid, touch)
        elif order.spec.type is OrderType.MARKET or order.spec.tif is TimeInForce.IOC:
            self.close(coid, "nothing to take")

    def _cancel(self, wish: Cancel) -> None:
        order = self.ctx.orders[wish.client_order_id]
        if order.state is OrderState.CLOSED:
            return
        self.tell(replace(order, cancel_requested=True))
        self.close(wish.client_order_id, "cancelled")

    def fill(self, coid: ClientOrderId, price: int) -> None:
        order = self.ctx.orders[coid]
        spec = order.spec
        lots = spec.qty_lots - order.filled_lots
        self.ctx.positions[spec.symbol] = self.ctx.position(spec.symbol) + spec.side.sign * lots
        closed = replace(order, state=OrderState.CLOSED, filled_lots=spec.qty_lots)
        self.ctx.orders[coid] = closed
        fill = FillView(coid, spec.symbol, spec.side, lots, price, f"t{coid}")
        self._take(self.strategy.on_fill(self.ctx, fill))
        self.tell(closed)

    def close(self, coid: ClientOrderId, reason: str) -> None:
        self.tell(replace(self.ctx.orders[coid], state=OrderState.CLOSED, reason=reason))

    def tell(self, order: OrderView) -> None:
        self.ctx.orders[order.client_order_id] = order
        self._take(self.strategy.on_order(self.ctx, order))

    def _match(self, event: Trade) -> None:
        for order in self.ctx.open_orders(event.symbol):
            limit = order.spec.price_ticks
            if order.state is not OrderState.OPEN or limit is None:
                continue
            if event.price_ticks < limit if order.spec.side is Side.BUY else event.price_ticks > limit:
                self.fill(order.client_order_id, limit)

    # -- reading the history --

    @property
    def placed(self) -> list[Place]:
        return [w for w in self.wishes if isinstance(w, Place)]

    @property
    def cancels(self) -> list[Cancel]:
        return [w for w in self.wishes if isinstance(w, Cancel)]

    def open(self, side: Side | None = None) -> list[OrderView]:
        return [o for o in self.ctx.open_orders("BTCUSDT") if side is None or o.spec.side is side]
