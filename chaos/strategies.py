"""Strategies that misbehave on request, for the show and for drills. Never for trading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from node.feeds.base import MarketEvent
from node.strategies.market_maker import MarketMaker
from node.strategies.probe import Probe
from node.strategy import Context, OrderView, Place, Role, Strategy, Wish
from node.types import OrderSpec, Side, TimeInForce


class _HangsOnRequest(Strategy):
    """Before another strategy: when it leads and the file `hang_file` appears, it removes it and never returns."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        mine = dict(config)
        self._hang_file = Path(str(mine.pop("hang_file")))
        self._leads = False
        super().__init__(mine)

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        self._leads = role is Role.ACTIVE
        return super().on_role(ctx, role, reason)

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None:
        if self._leads and os.path.exists(self._hang_file):  # os.path: a stat per event, no more
            self._hang_file.unlink()
            while True:  # what a user's endless loop or lost network call looks like from outside
                pass
        return super().on_market(ctx, event)


class HangsOnRequest(_HangsOnRequest, MarketMaker):
    """The market maker."""


class Busy(Probe):
    """Load with everything that can be lost: in each round an order that rests on either side, of which the youngest
    `resting` stay, and one that takes from the market, so that there are fills and a position within a few orders of
    zero. When it may not place orders it cancels what rests."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Keys: those of the probe but `side`; resting."""
        mine = dict(config)
        self._resting = int(mine.pop("resting", 4))
        super().__init__({"orders_max": 30} | mine)

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None:
        self._names.seen(order)
        return self._cancel([order]) if self._role is Role.BLOCKED else None

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        wishes = super().on_role(ctx, role, reason)
        return self._cancel(ctx.open_orders(self._symbol)) if role is Role.BLOCKED else wishes

    def _round(self, ctx: Context) -> Iterator[Wish]:
        resting = [o for o in ctx.open_orders(self._symbol) if o.spec.tif is TimeInForce.GTC]
        for order in resting:
            self._names.seen(order)
        yield from self._place(ctx)
        yield from self._cancel(resting[: -self._resting])

    def _place(self, ctx: Context) -> Iterator[Wish]:
        quote = self._quote
        self._due = quote is None or quote.ask_ticks <= 0
        if quote is None or quote.ask_ticks <= 0 or len(ctx.open_orders(self._symbol)) >= self._orders_max:
            return
        far, taking = self._distance_percent, Side.SELL if ctx.position(self._symbol) > 0 else Side.BUY
        for side, bps, rests in ((Side.BUY, -100 * far, True), (Side.SELL, 100 * far, True), (taking, 0, False)):
            touch = quote.bid_ticks if side is Side.BUY else quote.ask_ticks
            price = touch * (10_000 + (bps or 50 * side.sign)) // 10_000
            tif = TimeInForce.GTC if rests else TimeInForce.IOC
            spec = OrderSpec(self._symbol, side, self._qty, price_ticks=price, tif=tif, post_only=rests)
            yield Place(spec, self._names.next(quote.seq), "busy")


class BusyHangs(_HangsOnRequest, Busy):
    """As `Busy`."""
