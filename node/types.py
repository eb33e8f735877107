"""The words of trading: instruments, orders, and what a venue may answer.

Inside Baton money is integers: prices in ticks, quantities in lots of the instrument. `Decimal` at the edges
(config, feed, venue, screens), `float` nowhere. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import NewType

from cluster.core.errors import ConfigError

ClientOrderId = NewType("ClientOrderId", str)
DecisionId = NewType("DecisionId", str)

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxy"  # base 35: `z` is left for dividing


def _base35(n: int) -> str:
    out = ""
    while True:
        n, r = divmod(n, 35)
        out = _DIGITS[r] + out
        if n == 0:
            return out


def client_order_id(cluster_tag: str, term: int, index: int) -> ClientOrderId:
    """The id of the order that the intent at (term, index) stands for: `<tag>z<term>z<index>` in base 35.

    It never changes, whoever sends it. `term` is the one the intent was written in, so anyone can audit
    split brain from the venue's history alone. `cluster_tag`: 1 to 4 characters [a-y0-9], so that `z` divides.
    At most 18 characters, alphanumeric (OKX refuses hyphens, Kraken more than 18): with a tag of 3 that leaves
    13 for both numbers, which lasts for 35^6 terms of 35^7 entries. Raises ConfigError when it would not fit.
    """
    made = f"{cluster_tag}z{_base35(term)}z{_base35(index)}"
    if len(made) > 18:
        raise ConfigError(f"client order id {made!r} is longer than 18 characters; use a shorter cluster.order_tag")
    return ClientOrderId(made)


def parse_client_order_id(coid: str) -> tuple[str, int, int] | None:
    """(cluster tag, term, index), or None if `coid` is not one of ours."""
    parts = coid.split("z")
    if len(parts) != 3 or not all(parts):
        return None
    try:
        return parts[0], int(parts[1], 35), int(parts[2], 35)
    except ValueError:
        return None


class Side(Enum):
    BUY = "buy"
    SELL = "sell"

    @property
    def sign(self) -> int:
        return 1 if self is Side.BUY else -1


class OrderType(Enum):
    LIMIT = "limit"
    MARKET = "market"


class TimeInForce(Enum):
    GTC = "gtc"
    IOC = "ioc"


@dataclass(frozen=True, slots=True)
class Instrument:
    """symbol: as the venue writes it, upper case. tick_size, lot_size: > 0."""

    symbol: str
    tick_size: Decimal
    lot_size: Decimal

    def price(self, ticks: int) -> Decimal:
        return ticks * self.tick_size

    def qty(self, lots: int) -> Decimal:
        return lots * self.lot_size

    def ticks(self, price: Decimal) -> int:
        """Whole ticks. Raises ValueError for a price between two ticks."""
        return _whole(price, self.tick_size, f"{self.symbol} price", "tick_size")

    def lots(self, qty: Decimal) -> int:
        """Whole lots. Raises ValueError for a quantity between two lots."""
        return _whole(qty, self.lot_size, f"{self.symbol} quantity", "lot_size")


def _whole(value: Decimal, step: Decimal, what: str, step_name: str) -> int:
    n, rest = divmod(value, step)
    if rest:
        raise ValueError(f"{what} {value} is not a multiple of {step_name} {step}")
    return int(n)


@dataclass(frozen=True, slots=True)
class OrderSpec:
    """What a strategy wants: the part of an intent that a venue sees.

    qty_lots > 0. price_ticks is None exactly for market orders. post_only only with a GTC limit order.
    """

    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int | None = None
    type: OrderType = OrderType.LIMIT
    tif: TimeInForce = TimeInForce.GTC
    post_only: bool = False

    def __post_init__(self) -> None:
        if self.qty_lots <= 0:
            raise ValueError(f"order quantity must be above 0 lots, got {self.qty_lots}")
        if (self.price_ticks is None) != (self.type is OrderType.MARKET):
            raise ValueError(f"a {self.type.value} order with price_ticks={self.price_ticks}")
        if self.price_ticks is not None and self.price_ticks <= 0:
            raise ValueError(f"order price must be above 0 ticks, got {self.price_ticks}")
        if self.post_only and (self.type is not OrderType.LIMIT or self.tif is not TimeInForce.GTC):
            raise ValueError("post_only is only for limit orders that rest (GTC)")


@dataclass(frozen=True, slots=True)
class WireOrder:
    """One order as it leaves for the venue.

    decision_id: sent as a free-text tag where the venue has one, for the audit.
    token: the sender's fencing token; a venue without tokens ignores it.
    expires_at_ns: venue Unix time after which the venue must not accept it; None where it has no expiry.
    """

    client_order_id: ClientOrderId
    decision_id: str
    spec: OrderSpec
    token: int
    expires_at_ns: int | None


# -- what a venue may answer to "place this order" (DESIGN 7) ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    venue_order_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The venue said no; the order has no effect there."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Proved: no byte of it left this process."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It was written and not answered. It may be live. A timeout is this, never Refused."""

    reason: str
    expires_at_ns: int | None = None


SubmitResult = Accepted | Refused | NotSent | Unknown


class OrderStatus(Enum):
    """At the venue."""

    OPEN = "open"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """An order as the venue tells it. filled_lots <= spec.qty_lots."""

    client_order_id: ClientOrderId
    venue_order_id: str
    spec: OrderSpec
    status: OrderStatus
    filled_lots: int


@dataclass(frozen=True, slots=True)
class VenueFill:
    """One execution. `trade_id` is unique in the account; `event_seq` is its place in the private stream."""

    trade_id: str
    client_order_id: ClientOrderId
    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int
    at_ns: int
    event_seq: int


@dataclass(frozen=True, slots=True)
class VenueOrderEvent:
    """The venue accepted (OPEN) or closed an order, told on the private stream."""

    order: VenueOrder
    reason: str
    at_ns: int
    event_seq: int


@dataclass(frozen=True, slots=True)
class StreamUp:
    """The private stream is connected and complete from here on; `first_seq` is the next event's number."""

    first_seq: int


@dataclass(frozen=True, slots=True)
class StreamDown:
    """The private stream ended or is silent. What happens meanwhile is learned after the next StreamUp."""

    reason: str


VenueEvent = VenueFill | VenueOrderEvent | StreamUp | StreamDown
