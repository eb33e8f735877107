"""Example: a market maker. Quotes both sides, post-only, around the mid; leans against its inventory.

    strategy.path = "node.strategies.market_maker:MarketMaker"

What it wants is a function of the newest quote and of the replicated book (open orders, position), so a standby that
sees the same market wants the same, and a new leader goes on with the orders of the old one. Of its own it keeps only
the names it used and what it is waiting for. An order is replaced when it stands more than `requote_ticks` off its
place, and once every `refresh_s` wherever it stands, by the venue's clock so that all nodes agree on when. Without a
quote for `max_quote_age_s` there is no price, and it cancels.

An example to read and to drill with. It does not earn money.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from node.feeds.base import MarketEvent, Quote
from node.strategies.common import NS_PER_S, SIDE_LETTER, DecisionNames, Settings
from node.strategy import Cancel, Context, FillView, OrderState, OrderView, Place, Role, Strategy, Wish
from node.types import ClientOrderId, OrderSpec, Side

_STALE_TIMER = "mm:stale"

_ANSWER_WITHIN_NS = NS_PER_S
"""A wish that shows up nowhere for this long was not executed (refused, or this node is in shadow): wish anew."""

_HOLD_NS = NS_PER_S // 4
"""After an order that the venue did not keep (post-only would have taken), its side rests: the market is moving, and
asking 100 times a second does not make it stop."""


class _SideState:
    """One side: the names it used, and what it waits for until when (ctx.now())."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.names = DecisionNames(f"mm:{SIDE_LETTER[side]}")
        self.period = 0  # the refresh period that its orders are of
        self.place_until = 0  # an order wished for has not shown up yet
        self.hold_until = 0
        self.cancel_until: dict[ClientOrderId, int] = {}  # a cancel wished for has not shown up yet

    def forget_waits(self) -> None:
        self.place_until = self.hold_until = 0
        self.cancel_until.clear()

    def leaving(self, order: OrderView, now: int) -> bool:
        return order.cancel_requested or now < self.cancel_until.get(order.client_order_id, 0)

    def cancel(self, order: OrderView, now: int, reason: str) -> Iterator[Wish]:
        """Nothing for an order that is not on the venue's book for all we know, or is leaving already."""
        if order.state in (OrderState.OPEN, OrderState.UNKNOWN) and not self.leaving(order, now):
            self.cancel_until[order.client_order_id] = now + _ANSWER_WITHIN_NS
            yield Cancel(order.client_order_id, reason)


class MarketMaker(Strategy):
    version = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Keys: symbol; qty_lots per order; half_spread_ticks from the mid; requote_ticks; refresh_s (0: never);
        skew_ticks that both quotes move per qty_lots of inventory; max_inventory_lots, long or short, with
        everything that rests counted as filled; orders_max that may be open on a side; max_quote_age_s."""
        s = Settings(config)
        self._symbol = s.symbol()
        self._qty = s.integer("qty_lots", 100, at_least=1)
        self._half_spread = s.integer("half_spread_ticks", 150, at_least=1)
        self._requote = s.integer("requote_ticks", 120, at_least=1)
        self._refresh_ms = s.seconds_ns("refresh_s", "1.0", above_zero=False) // 1_000_000
        self._skew = s.integer("skew_ticks", 20)
        self._max_inventory = s.integer("max_inventory_lots", 1000, at_least=1)
        self._orders_max = s.integer("orders_max", 3, at_least=1)
        self._max_quote_age_ns = s.seconds_ns("max_quote_age_s", "5.0")
        if self._max_inventory < self._qty:
            raise ValueError(f"max_inventory_lots = {self._max_inventory} must be at least qty_lots = {self._qty}")
        self._config_digest = s.done()
        self._role = Role.SHADOW
        self._quote: Quote | None = None
        self._quote_at = 0  # ctx.now()
        self._period = 0  # refresh_s periods of the venue's clock
        self._sides = (_SideState(Side.BUY), _SideState(Side.SELL))

    # -- what happened --

    def on_start(self, ctx: Context) -> Iterable[Wish] | None:
        self._set_timer(ctx)
        for order in ctx.open_orders(self._symbol):
            self._note(order)
        return None

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None:
        if event.symbol != self._symbol:
            return None
        if not isinstance(event, Quote):
            if self._refresh_ms:
                self._tick(event.venue_at_ms // self._refresh_ms)
            return None
        self._quote, self._quote_at = event, ctx.now()
        return self._decide(ctx)

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None:
        side, newest = self._note(order)
        if side is None:
            return None
        if newest:
            side.place_until = 0
        if order.state is OrderState.CLOSED:
            side.cancel_until.pop(order.client_order_id, None)
            if not order.cancel_requested and order.filled_lots < order.spec.qty_lots:
                side.hold_until = ctx.now() + _HOLD_NS
        return None

    def on_fill(self, ctx: Context, fill: FillView) -> Iterable[Wish] | None:
        return self._decide(ctx)  # the inventory moved, and with it both places

    def on_timer(self, ctx: Context, timer_id: str) -> Iterable[Wish] | None:
        if timer_id != _STALE_TIMER:
            return None
        self._set_timer(ctx)
        return None if self._fresh_quote(ctx) else self._cancel_all(ctx, "no usable quote")

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        was, self._role = self._role, role
        if role is Role.ACTIVE:
            return self._take_over(ctx) if was is not Role.ACTIVE else None
        return self._cancel_all(ctx, "blocked") if role is Role.BLOCKED else None

    def _tick(self, period: int) -> None:
        """Streams are a little apart in time, so a small step back is no news; a large one is a clock put right."""
        if period > self._period or period < self._period - 10:
            self._period = period

    # -- what is wanted --

    def _take_over(self, ctx: Context) -> Iterator[Wish]:
        """Fresh orders first, at once, from the last quote known; then those of the leader before go."""
        resting = ctx.open_orders(self._symbol)
        for order in resting:
            self._note(order)
        for side in self._sides:
            side.forget_waits()
        if quote := self._fresh_quote(ctx):
            for side in self._sides:
                yield from self._place(ctx, side, quote, "took over")
        for side in self._sides:
            for order in resting:
                if side.names.owns(order):
                    yield from side.cancel(order, ctx.now(), "of the leader before")

    def _decide(self, ctx: Context) -> Iterator[Wish]:
        quote = self._fresh_quote(ctx)
        if quote is None or self._role is Role.BLOCKED:
            return
        open_orders = ctx.open_orders(self._symbol)
        for side in self._sides:
            yield from self._decide_side(ctx, side, quote, [o for o in open_orders if side.names.owns(o)])

    def _decide_side(self, ctx: Context, side: _SideState, quote: Quote, mine: list[OrderView]) -> Iterator[Wish]:
        place = self._price(ctx, side.side, quote)
        tolerance = self._requote
        if side.period != self._period:
            side.period, tolerance = self._period, -1  # nowhere is near enough
        stays = False
        for order in mine:
            if side.leaving(order, ctx.now()):
                continue
            # An order not answered yet cannot be cancelled; its place is taken all the same.
            off = abs((order.spec.price_ticks or 0) - place) > tolerance
            if not off or order.state is OrderState.PENDING:
                stays = True
            else:
                yield from side.cancel(order, ctx.now(), "off its place")
        if not stays and len(mine) < self._orders_max:
            yield from self._place(ctx, side, quote, "quote")

    def _place(self, ctx: Context, side: _SideState, quote: Quote, reason: str) -> Iterator[Wish]:
        now = ctx.now()
        if now < side.place_until or now < side.hold_until:
            return
        if self._exposure(ctx, side.side) + self._qty > self._max_inventory:
            return
        side.place_until = now + _ANSWER_WITHIN_NS
        price = self._price(ctx, side.side, quote)
        spec = OrderSpec(self._symbol, side.side, self._qty, price_ticks=price, post_only=True)
        yield Place(spec, side.names.next(quote.seq), reason)

    def _price(self, ctx: Context, side: Side, quote: Quote) -> int:
        """Where an order of this side belongs: off the mid, leaning against the inventory, never taking."""
        lean = self._skew * ctx.position(self._symbol) // self._qty
        if side is Side.BUY:
            return max(1, min(quote.mid_half_ticks // 2 - self._half_spread - lean, quote.ask_ticks - 1))
        return max(-(-quote.mid_half_ticks // 2) + self._half_spread - lean, quote.bid_ticks + 1)

    def _exposure(self, ctx: Context, side: Side) -> int:
        """Lots held towards `side` if all that rests on it were filled."""
        orders = ctx.open_orders(self._symbol)
        resting = sum(o.spec.qty_lots - o.filled_lots for o in orders if o.spec.side is side)
        return side.sign * ctx.position(self._symbol) + resting

    def _fresh_quote(self, ctx: Context) -> Quote | None:
        """The last quote, if it is not too old, has both sides and is not crossed: only then is there a mid."""
        q = self._quote
        if q is None or ctx.now() - self._quote_at >= self._max_quote_age_ns:
            return None
        return q if 0 < q.bid_ticks < q.ask_ticks else None

    def _cancel_all(self, ctx: Context, reason: str) -> Iterator[Wish]:
        for order in ctx.open_orders(self._symbol):
            for side in self._sides:
                if side.names.owns(order):
                    yield from side.cancel(order, ctx.now(), reason)

    def _note(self, order: OrderView) -> tuple[_SideState | None, bool]:
        """The side whose order this is (None: not ours), and whether its name is the newest there."""
        for side in self._sides:
            if side.names.owns(order):
                return side, side.names.seen(order)
        return None, False

    def _set_timer(self, ctx: Context) -> None:
        ctx.set_timer(_STALE_TIMER, self._max_quote_age_ns / 2 / NS_PER_S)

    # -- memory --

    def snapshot(self) -> bytes:
        """The names used and the refresh periods. Quotes and waits belong to one node's clock and stay there."""
        sides = [[s.names.state(), s.period] for s in self._sides]
        return json.dumps({"period": self._period, "sides": sides}).encode()

    def restore(self, state: bytes, version: int) -> None:
        if version != self.version or not state:
            return  # nothing in it is needed to be right: names also come back with the open orders
        saved = json.loads(state)
        self._period = max(self._period, saved["period"])
        for side, (names, period) in zip(self._sides, saved["sides"], strict=True):
            side.names.restore(names)
            side.period = max(side.period, period)

    def fingerprint(self) -> str:
        """The configuration alone: all else that it decides from is the market and the replicated book."""
        return f"mm/{self._config_digest}"
