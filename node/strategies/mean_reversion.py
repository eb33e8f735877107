"""Example: a taker that bets on the return to the mean.

    strategy.path = "node.strategies.mean_reversion:MeanReversion"

Keeps an exponential mean and variance of the mid. A mid more than `entry_z` standard deviations off is sold or bought,
one position at a time; it is closed when the mid is back at the mean. All arithmetic is in integers (half ticks,
scaled by 2^20), so that equal quotes give equal decisions on every node and every machine.

The memory is what its decisions hang on, so it is in the snapshot: a node that starts later begins with it. It fades
with the quotes, so two nodes that have both seen many more than `window` of them agree again anyway.

An example to read and to drill with. It does not earn money.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from node.feeds.base import MarketEvent, Quote
from node.strategies.common import NS_PER_S, DecisionNames, Settings
from node.strategy import Context, FillView, OrderState, OrderView, Place, Role, Strategy, Wish
from node.types import OrderSpec, OrderType, Side, TimeInForce

_SCALE = 20  # bits of fraction
_Z_PLACES = 3
_ANSWER_WITHIN_NS = NS_PER_S  # a wish that shows up nowhere for this long was not executed
_FINGERPRINT_BITS = 12  # a checkpoint every 4096 sequence numbers of the feed


class MeanReversion(Strategy):
    version = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Keys: symbol; qty_lots of an entry; window of the mean, in quotes; warmup, quotes before the first
        decision; entry_z; min_edge_ticks between mid and mean, below which nothing is entered; order = "ioc" (a limit
        slippage_ticks beyond the touch) or "market"; cooldown_s after each order; max_quote_age_s."""
        s = Settings(config)
        self._symbol = s.symbol()
        self._qty = s.integer("qty_lots", 100, at_least=1)
        self._window = s.integer("window", 500, at_least=2)
        self._warmup = s.integer("warmup", 200, at_least=1)
        self._entry_z = s.ratio("entry_z", "2", places=_Z_PLACES)
        self._min_edge = s.integer("min_edge_ticks", 20)
        self._market = s.choice("order", "ioc", ("ioc", "market")) == "market"
        self._slippage = s.integer("slippage_ticks", 10)
        self._cooldown_ns = s.seconds_ns("cooldown_s", "0.5", above_zero=False)
        self._max_quote_age_ns = s.seconds_ns("max_quote_age_s", "5.0")
        self._config_digest = s.done()
        self._role = Role.SHADOW
        self._names = DecisionNames("mr")
        self._quote: Quote | None = None
        self._quote_at = 0  # ctx.now()
        self._wait_until = 0  # ctx.now(): for an answer, or the cooldown
        self._mean = self._variance = self._seen = 0
        self._checkpoint = ""

    # -- what happened --

    def on_start(self, ctx: Context) -> Iterable[Wish] | None:
        for order in ctx.open_orders(self._symbol):
            self._names.seen(order)
        return None

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None:
        if not isinstance(event, Quote) or event.symbol != self._symbol:
            return None
        if not 0 < event.bid_ticks < event.ask_ticks:
            return None  # one side is empty, or crossed: no mid
        self._learn(event)
        self._quote, self._quote_at = event, ctx.now()
        return self._decide(ctx)

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None:
        if self._names.seen(order) and order.state is OrderState.CLOSED:
            self._wait_until = ctx.now() + self._cooldown_ns
        return None

    def on_fill(self, ctx: Context, fill: FillView) -> Iterable[Wish] | None:
        return None  # the next quote finds the new position

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        self._role = role
        if role is not Role.ACTIVE:
            return None
        for order in ctx.open_orders(self._symbol):
            self._names.seen(order)
        self._wait_until = 0  # this node waited in shadow for orders that were not its own
        return self._decide(ctx)

    # -- what is wanted --

    def _learn(self, quote: Quote) -> None:
        mid = quote.mid_half_ticks << _SCALE
        if self._seen == 0:
            self._mean = mid
        off = mid - self._mean
        self._mean += off * 2 // (self._window + 1)
        self._variance += (off * off - self._variance) * 2 // (self._window + 1)
        self._seen += 1
        at = quote.seq >> _FINGERPRINT_BITS
        if not self._checkpoint.startswith(f"{at}:"):
            self._checkpoint = f"{at}:{self._mean >> (_SCALE + 1)}"

    def _decide(self, ctx: Context) -> Iterator[Wish]:
        quote, now = self._quote, ctx.now()
        if quote is None or now - self._quote_at >= self._max_quote_age_ns or now < self._wait_until:
            return
        if self._role is Role.BLOCKED or any(self._names.owns(o) for o in ctx.open_orders(self._symbol)):
            return  # one order at a time
        off = (quote.mid_half_ticks << _SCALE) - self._mean
        position = ctx.position(self._symbol)
        if position:
            back = off >= 0 if position > 0 else off <= 0
            if back:
                side = Side.SELL if position > 0 else Side.BUY
                yield self._take(quote, side, abs(position), "back at the mean", now)
        elif self._seen >= self._warmup and self._far(off):
            side = Side.SELL if off > 0 else Side.BUY
            yield self._take(quote, side, self._qty, "far off the mean", now)

    def _far(self, off: int) -> bool:
        """|off| > entry_z standard deviations, and worth it."""
        edge = 2 * self._min_edge << _SCALE
        return abs(off) > edge and off * off * 10 ** (2 * _Z_PLACES) > self._entry_z**2 * self._variance

    def _take(self, quote: Quote, side: Side, lots: int, reason: str, now: int) -> Place:
        self._wait_until = now + _ANSWER_WITHIN_NS
        if self._market:
            spec = OrderSpec(self._symbol, side, lots, type=OrderType.MARKET, tif=TimeInForce.IOC)
        else:
            touch = quote.ask_ticks if side is Side.BUY else quote.bid_ticks
            price = max(1, touch + side.sign * self._slippage)
            spec = OrderSpec(self._symbol, side, lots, price_ticks=price, tif=TimeInForce.IOC)
        return Place(spec, self._names.next(quote.seq), reason)

    # -- memory --

    def snapshot(self) -> bytes:
        state = {
            "mean": self._mean,
            "variance": self._variance,
            "seen": self._seen,
            "checkpoint": self._checkpoint,
            "names": self._names.state(),
        }
        return json.dumps(state).encode()

    def restore(self, state: bytes, version: int) -> None:
        """Take the longer memory: the saved one for a node that starts, its own for one that watched all along."""
        if version != self.version or not state:
            return
        saved = json.loads(state)
        self._names.restore(saved["names"])
        if saved["seen"] > self._seen:
            self._mean, self._variance, self._seen = saved["mean"], saved["variance"], saved["seen"]
            self._checkpoint = saved["checkpoint"]

    def fingerprint(self) -> str:
        """Configuration, and the mean in ticks at the last checkpoint of the feed: equal on two nodes that agree,
        but for the moment in which one of them has passed the next checkpoint already."""
        return f"mr/{self._config_digest}/{self._checkpoint}"
