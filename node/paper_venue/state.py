"""What the venue holds while it runs: messages as they came in, open orders, accounts, the displayed market. Pure.

Plain data and questions about it; `engine.py` alone decides and changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.core.errors import InvariantViolation
from node.types import ClientOrderId, OrderSpec, OrderStatus, OrderType, Side, TimeInForce, VenueOrder


class Moment(NamedTuple):
    """instant: CLOCK_BOOTTIME ns, for durations. unix_ns: the venue's clock, for expiry and the record."""

    instant: int
    unix_ns: int


class Sender(NamedTuple):
    """Who sent a message: the account, the node as it calls itself, and the stream it came on."""

    account: str
    node: str
    session: str


class Ask(NamedTuple):
    """A new order as it came in, right or wrong; None where the enumeration was not set or is unknown."""

    client_order_id: str
    decision_id: str
    symbol: str
    side: Side | None
    type: OrderType | None
    tif: TimeInForce | None
    post_only: bool
    qty_lots: int
    price_ticks: int | None
    expires_at_ns: int  # 0: none


@dataclass(slots=True)
class Order:
    """An open order. `born` is the venue_seq of its line: unique, and its place in time."""

    born: int
    sender: Sender
    token: int
    client_order_id: str
    decision_id: str
    spec: OrderSpec
    filled_lots: int = 0

    @property
    def left(self) -> int:
        return self.spec.qty_lots - self.filled_lots

    @property
    def venue_order_id(self) -> str:
        return f"v{self.born}"

    def view(self, status: OrderStatus = OrderStatus.OPEN) -> VenueOrder:
        return VenueOrder(ClientOrderId(self.client_order_id), self.venue_order_id, self.spec, status, self.filled_lots)


@dataclass(slots=True)
class Deadman:
    token: int
    ttl_ms: int
    fires_at: int  # Instant


@dataclass(slots=True)
class Account:
    """used_ids: every client order id that was ever accepted, with the event_seq of its close (0 while open), by
    which the record finds a closed order. About 150 bytes each: the price of `forever`."""

    token_high: int = 0
    event_seq: int = 0
    orders: dict[str, Order] = field(default_factory=dict)  # open ones, by client order id, oldest first
    used_ids: dict[str, int] = field(default_factory=dict)
    net_lots: dict[str, int] = field(default_factory=dict)
    cash: dict[str, int] = field(default_factory=dict)  # ticks * lots of the symbol: sold minus bought
    deadman: Deadman | None = None


@dataclass(slots=True)
class Touch:
    """One side of the displayed top of book; `left` is what nobody here has taken of it yet."""

    ticks: int = 0
    shown: int = 0
    left: int = 0

    def show(self, ticks: int, lots: int) -> None:
        if (ticks, lots) != (self.ticks, self.shown):
            self.ticks, self.shown, self.left = ticks, lots, lots


@dataclass(slots=True)
class Market:
    """What is displayed, and our resting orders by venue_seq. Not in the record: it comes back with the feed."""

    quoted: bool = False
    seen_at: int = 0  # Instant
    touch: dict[Side, Touch] = field(default_factory=lambda: {Side.BUY: Touch(), Side.SELL: Touch()})
    resting: dict[Side, dict[int, Order]] = field(default_factory=lambda: {Side.BUY: {}, Side.SELL: {}})


def spec_of(ask: Ask) -> OrderSpec:
    """Raises ValueError where the parts do not go together."""
    if ask.side is None or ask.type is None or ask.tif is None:
        raise ValueError("side, type and time in force are needed")
    return OrderSpec(ask.symbol, ask.side, ask.qty_lots, ask.price_ticks, ask.type, ask.tif, ask.post_only)


def limit_of(spec: OrderSpec) -> int:
    """Of an order that rests, which always has one."""
    if spec.price_ticks is None:
        raise InvariantViolation(f"a market order of {spec.symbol} is resting")
    return spec.price_ticks


def reaches(spec: OrderSpec, ticks: int) -> bool:
    """Would this order trade at `ticks`?"""
    if spec.price_ticks is None:
        return True
    return spec.price_ticks >= ticks if spec.side is Side.BUY else spec.price_ticks <= ticks


def by_priority(market: Market, side: Side) -> Iterator[Order]:
    """Best price first, then oldest. A copy: filling removes from the original."""
    orders = market.resting[side]
    return iter(sorted(orders.values(), key=lambda o: (-side.sign * limit_of(o.spec), o.born)) if orders else ())


def rests(spec: OrderSpec) -> bool:
    """Does what is left of it stay in the book?"""
    return spec.type is OrderType.LIMIT and spec.tif is TimeInForce.GTC
