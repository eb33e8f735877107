"""A measuring instrument, not a bot: shows from outside that orders can be placed, and since when.

    strategy.path = "node.strategies.probe:Probe"

While it leads it places, at once and then every `interval_s`, a post-only limit order far from the market, and cancels
it as soon as it rests. Benchmarks and drills read the venue's record of it. In shadow it is silent: its orders come
from this node's timers, so there would be nothing to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from node.feeds.base import MarketEvent, Quote
from node.strategies.common import NS_PER_S, DecisionNames, Settings
from node.strategy import Cancel, Context, OrderState, OrderView, Place, Role, Strategy, Wish
from node.types import OrderSpec, Side

_TIMER = "probe"


class Probe(Strategy):
    version = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Keys: symbol; side; qty_lots; distance_percent from the touch (1 to 50); interval_s; orders_max that may
        be open before it pauses."""
        s = Settings(config)
        self._symbol = s.symbol()
        self._side = Side(s.choice("side", "buy", ("buy", "sell")))
        self._qty = s.integer("qty_lots", 100, at_least=1)
        self._distance_percent = s.integer("distance_percent", 10, at_least=1)
        if self._distance_percent > 50:
            raise ValueError(f"distance_percent = {self._distance_percent} must be at most 50")
        self._interval_ns = s.seconds_ns("interval_s", "0.1")
        self._orders_max = s.integer("orders_max", 10, at_least=1)
        self._config_digest = s.done()
        self._names = DecisionNames("probe")
        self._role = Role.SHADOW
        self._quote: Quote | None = None
        self._due = False  # an order that waits for the first quote

    def on_start(self, ctx: Context) -> Iterable[Wish] | None:
        for order in ctx.open_orders(self._symbol):
            self._names.seen(order)
        return None

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None:
        if not isinstance(event, Quote) or event.symbol != self._symbol or event.bid_ticks <= 0:
            return None
        self._quote = event
        return self._place(ctx) if self._due and self._role is Role.ACTIVE else None

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None:
        self._names.seen(order)
        return self._cancel([order]) if self._role is Role.ACTIVE else None

    def on_timer(self, ctx: Context, timer_id: str) -> Iterable[Wish] | None:
        if timer_id != _TIMER or self._role is not Role.ACTIVE:
            return None
        ctx.set_timer(_TIMER, self._interval_ns / NS_PER_S)
        return self._round(ctx)

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        was, self._role = self._role, role
        if role is not Role.ACTIVE or was is Role.ACTIVE:
            return None
        ctx.set_timer(_TIMER, self._interval_ns / NS_PER_S)
        return self._round(ctx)

    def _round(self, ctx: Context) -> Iterator[Wish]:
        """A new order first; then what still rests goes: the leader before's, and any whose cancel did not take."""
        resting = ctx.open_orders(self._symbol)
        for order in resting:
            self._names.seen(order)
        yield from self._place(ctx)
        yield from self._cancel(resting)

    def _place(self, ctx: Context) -> Iterator[Wish]:
        quote = self._quote
        self._due = quote is None
        if quote is None:
            return
        if sum(self._names.owns(o) for o in ctx.open_orders(self._symbol)) >= self._orders_max:
            return
        percent = 100 - self._side.sign * self._distance_percent
        touch = quote.bid_ticks if self._side is Side.BUY else max(quote.ask_ticks, quote.bid_ticks)
        spec = OrderSpec(
            self._symbol, self._side, self._qty, price_ticks=max(1, touch * percent // 100), post_only=True
        )
        yield Place(spec, self._names.next(quote.seq), "probe")

    def _cancel(self, orders: Iterable[OrderView]) -> Iterator[Wish]:
        for order in orders:
            if self._names.owns(order) and order.state is OrderState.OPEN and not order.cancel_requested:
                yield Cancel(order.client_order_id, "probe")

    def snapshot(self) -> bytes:
        return json.dumps({"names": self._names.state()}).encode()

    def restore(self, state: bytes, version: int) -> None:
        if version == self.version and state:
            self._names.restore(json.loads(state)["names"])

    def fingerprint(self) -> str:
        return f"probe/{self._config_digest}"
