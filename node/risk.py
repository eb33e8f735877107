"""Pre-trade checks: may this order be decided now? Pure; integers only.

Every limit is judged on the worst case: all that is pending, open or of unknown outcome counts as filled, at once
(RTS 6 art. 15 asks the same). The inputs come from the replicated book, so limits hold across a failover. A refusal
names the value and the limit. What this does not do: money on account, profit and loss, the kill switch (the
permit's business). Cancels are never checked. Read next: `book.py`, DESIGN 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.core.ids import NS_PER_S
from node.types import OrderSpec, OrderType, Side, TimeInForce

ORDERS_BURST_MAX = 1024
"""The book remembers the times of this many latest intents; a larger burst could not be judged after a failover."""

ORDER_KINDS = ("limit", "post_only", "ioc", "market")
"""The words of `risk.<SYMBOL>.order_types`."""

_BPS = 10_000


def order_kind(spec: OrderSpec) -> str:
    """Which word of ORDER_KINDS describes `spec`. A market order is "market", whatever its time in force."""
    if spec.type is OrderType.MARKET:
        return "market"
    if spec.post_only:
        return "post_only"
    return "ioc" if spec.tif is TimeInForce.IOC else "limit"


@dataclass(frozen=True, slots=True)
class InstrumentLimits:
    """max_order_notional: in tick-lots (price in ticks times quantity in lots). price_collar_bps: how far a price may
    stand from the reference, either way, in 1/10,000; market orders are valued at the reference plus the collar.
    order_kinds: from ORDER_KINDS. All numbers are inclusive limits."""

    max_order_lots: int
    max_order_notional: int
    max_position_lots: int
    price_collar_bps: int
    order_kinds: frozenset[str]


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `orders_burst` intents within any `window_ns`, over all instruments. 1 <= burst <= ORDERS_BURST_MAX."""

    orders_burst: int
    window_ns: int

    @classmethod
    def of(cls, *, orders_per_s_num: int, orders_per_s_den: int, orders_burst: int) -> RateLimit:
        """A burst of `orders_burst`, and num/den orders per second sustained: the window is rounded up."""
        return cls(orders_burst, -(-orders_burst * NS_PER_S * orders_per_s_den // orders_per_s_num))


@dataclass(frozen=True, slots=True)
class RiskLimits:
    """An instrument that is missing may not be traded."""

    instruments: Mapping[str, InstrumentLimits]
    rate: RateLimit


class Exposure(Protocol):
    """What the checks read: the book, or a view that adds what is decided but not applied yet."""

    def position(self, symbol: str) -> int:
        """Net lots."""

    def exposure(self, symbol: str, side: Side) -> int:
        """Lots that may still fill on `side`: pending, open and unknown."""

    def is_blocked(self, symbol: str, side: Side) -> bool:
        """An order of unknown outcome stands there."""

    @property
    def recent_intents(self) -> Sequence[int]:
        """When the latest intents were written, Unix ns, ascending; at least the latest ORDERS_BURST_MAX."""


@dataclass(frozen=True, slots=True)
class RiskRefusal:
    """code: stable, for metrics and tests. reason: for people, with the value and the limit."""

    code: str
    reason: str


def check(
    spec: OrderSpec,
    *,
    limits: RiskLimits,
    book: Exposure,
    reference_half_ticks: int | None,
    now: int,
    close_only: bool = False,
) -> RiskRefusal | None:
    """None if `spec` may become an intent now; else the first reason why not, gravest first.

    reference_half_ticks: twice the mid of the latest quote (`Quote.mid_half_ticks`); None when there is no fresh one.
    now: Unix ns, on the clock that stamps entries. The caller must apply the intent (or count it in `book`) before it
    checks the next order: two orders checked against one book could both fit where their sum does not.
    """
    lim = limits.instruments.get(spec.symbol)
    if lim is None:
        return RiskRefusal("no_limits", f"{spec.symbol} has no [risk.{spec.symbol}] limits")
    return (
        _blocked(spec, book)
        or _kind(spec, lim)
        or _reduce_only(spec, book, close_only)
        or _size(spec, lim)
        or _price(spec, lim, reference_half_ticks)
        or _position(spec, lim, book)
        or _rate(limits.rate, book.recent_intents, now)
    )


def _blocked(spec: OrderSpec, book: Exposure) -> RiskRefusal | None:
    if not book.is_blocked(spec.symbol, spec.side):
        return None
    return RiskRefusal(
        "outcome_unknown",
        f"{spec.symbol} {spec.side.value} is blocked: an earlier order there has an unknown outcome",
    )


def _kind(spec: OrderSpec, lim: InstrumentLimits) -> RiskRefusal | None:
    kind = order_kind(spec)
    if kind in lim.order_kinds:
        return None
    return RiskRefusal(
        "order_type", f"{spec.symbol}: {kind} orders are not allowed, only {', '.join(sorted(lim.order_kinds))}"
    )


def _reduce_only(spec: OrderSpec, book: Exposure, close_only: bool) -> RiskRefusal | None:
    """In close-only, an order must reduce |position| even if everything on its side fills first."""
    if not close_only:
        return None
    position = book.position(spec.symbol)
    to_close = max(0, -spec.side.sign * position) - book.exposure(spec.symbol, spec.side)
    if spec.qty_lots <= to_close:
        return None
    return RiskRefusal(
        "close_only",
        f"close-only: {spec.side.value} {spec.qty_lots} lots of {spec.symbol}, but only {max(0, to_close)} would "
        f"reduce the position of {position} lots",
    )


def _size(spec: OrderSpec, lim: InstrumentLimits) -> RiskRefusal | None:
    if spec.qty_lots <= lim.max_order_lots:
        return None
    return RiskRefusal(
        "max_order_qty", f"{spec.symbol}: {spec.qty_lots} lots > max_order_qty of {lim.max_order_lots} lots"
    )


def _price(spec: OrderSpec, lim: InstrumentLimits, reference_half_ticks: int | None) -> RiskRefusal | None:
    """The collar and the notional. Without a fresh reference nothing can be valued, so nothing is let through."""
    if reference_half_ticks is None or reference_half_ticks <= 0:
        return RiskRefusal("no_reference_price", f"{spec.symbol}: no fresh quote to measure the price against")
    if spec.price_ticks is None:  # market: as bad as the collar would let a limit order be; rounded up
        price = -(-reference_half_ticks * (_BPS + lim.price_collar_bps) // (2 * _BPS))
    else:
        price = spec.price_ticks
        # |price - mid| <= mid * bps / 10,000, with everything doubled and nothing divided
        if abs(2 * price - reference_half_ticks) * _BPS > reference_half_ticks * lim.price_collar_bps:
            off = abs(2 * price - reference_half_ticks) * _BPS // reference_half_ticks
            return RiskRefusal(
                "price_collar",
                f"{spec.symbol}: price of {price} ticks is {off} bps or more from the mid of "
                f"{reference_half_ticks // 2} ticks > price_collar_bps of {lim.price_collar_bps}",
            )
    notional = price * spec.qty_lots
    if notional <= lim.max_order_notional:
        return None
    return RiskRefusal(
        "max_order_notional",
        f"{spec.symbol}: {price} ticks x {spec.qty_lots} lots = {notional} > max_order_notional of "
        f"{lim.max_order_notional} tick-lots",
    )


def _position(spec: OrderSpec, lim: InstrumentLimits, book: Exposure) -> RiskRefusal | None:
    position, exposure = book.position(spec.symbol), book.exposure(spec.symbol, spec.side)
    worst = spec.side.sign * position + exposure + spec.qty_lots
    if worst <= lim.max_position_lots:
        return None
    return RiskRefusal(
        "max_position",
        f"{spec.symbol}: {spec.side.value} {spec.qty_lots} lots with a position of {position} and {exposure} that may "
        f"still fill could reach {spec.side.sign * worst} lots > max_position of {lim.max_position_lots} lots",
    )


def _rate(rate: RateLimit, recent: Sequence[int], now: int) -> RiskRefusal | None:
    """The burst-th latest intent must be at least one window old.

    An intent stamped later than `now` means that the wall clock was set back since. It says nothing about the rate and
    is passed over; the next intent, which the book stamps lower, restores the measure. So a clock step costs at most
    one order above the limit, and never blocks trading for as long as the step was wide.
    """
    if len(recent) < rate.orders_burst:
        return None
    age = now - recent[-rate.orders_burst]
    if age < 0 or age >= rate.window_ns:
        return None
    return RiskRefusal(
        "order_rate",
        f"{rate.orders_burst} orders within {age / NS_PER_S:.3f} s; orders_burst of {rate.orders_burst} allows that in "
        f"{rate.window_ns / NS_PER_S:.3f} s",
    )
