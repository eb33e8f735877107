"""A line of the venue's record: one thing that happened, in the venue's own total order. Pure.

The record is what drills are judged by, so a line says everything about its event without the lines around it.
Two sorts of lines share the form:

- *messages* (`kind` new, cancel, cancel_all, arm, keep_alive, malformed): what somebody sent and whether the
  venue took it: `outcome` is "accepted" or "refused", `node` and `token` are the sender's.
- *the venue's own acts* (`kind` fill, closed, deadman, started): `outcome` is null, and `node` and `token`, where
  present, tell whose order it was. So "the tokens of accepted lines never fall" may be checked over all lines.

A keep-alive is recorded when it arms the switch, changes token or ttl, or is refused; a mere refresh is not,
since refreshes would be most of the record and prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from node.types import (
    ClientOrderId,
    Instrument,
    OrderSpec,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    VenueFill,
    VenueOrder,
    VenueOrderEvent,
)

MessageKind = Literal["new", "cancel", "cancel_all", "arm", "keep_alive", "malformed"]
Kind = MessageKind | Literal["fill", "closed", "deadman", "started"]

ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"


class Line(NamedTuple):
    """A NamedTuple because a busy venue makes thousands a second. Absent: None.

    at_ns: Unix, the venue's clock; may step back with it, `venue_seq` does not.
    reason: a code; why a message was refused, or why an order closed. detail: the same for people.
    event_seq: place in the account's private stream; on an accepted new, a fill, and a close.
    """

    venue_seq: int
    at_ns: int
    kind: Kind
    outcome: str | None = None
    reason: str | None = None
    account: str | None = None
    session: str | None = None
    node: str | None = None
    token: int | None = None
    client_order_id: str | None = None
    decision_id: str | None = None
    symbol: str | None = None
    side: str | None = None
    qty_lots: int | None = None
    price_ticks: int | None = None
    detail: str | None = None
    type: str | None = None
    tif: str | None = None
    post_only: bool | None = None
    expires_at_ns: int | None = None
    venue_order_id: str | None = None
    trade_id: str | None = None
    event_seq: int | None = None
    status: str | None = None
    filled_lots: int | None = None
    ttl_ms: int | None = None
    profile: str | None = None
    instruments: dict[str, list[str]] | None = None

    @property
    def accepted(self) -> bool:
        return self.outcome == ACCEPTED

    def spec(self) -> OrderSpec:
        """What the order of an accepted new or of a closed line asked for. Raises ValueError for other lines."""
        return OrderSpec(
            symbol=self.symbol or "",
            side=Side(self.side),
            qty_lots=self.qty_lots or 0,
            price_ticks=self.price_ticks,
            type=OrderType(self.type),
            tif=TimeInForce(self.tif),
            post_only=bool(self.post_only),
        )

    def order(self) -> VenueOrder:
        """The order as it stood at this line, which accepted or closed it."""
        return VenueOrder(
            client_order_id=ClientOrderId(self.client_order_id or ""),
            venue_order_id=self.venue_order_id or "",
            spec=self.spec(),
            status=OrderStatus.OPEN if self.status is None else OrderStatus(self.status),
            filled_lots=self.filled_lots or 0,
        )

    def order_event(self) -> VenueOrderEvent:
        return VenueOrderEvent(self.order(), self.reason or "", self.at_ns, self.event_seq or 0)

    def fill(self) -> VenueFill:
        """What a fill line says."""
        return VenueFill(
            trade_id=self.trade_id or "",
            client_order_id=ClientOrderId(self.client_order_id or ""),
            symbol=self.symbol or "",
            side=Side(self.side),
            qty_lots=self.qty_lots or 0,
            price_ticks=self.price_ticks or 0,
            at_ns=self.at_ns,
            event_seq=self.event_seq or 0,
        )


# Keys that stand in every line, null where they do not apply. The other fields are present only when they apply.
SURFACE: Final = (
    "venue_seq",
    "at_ns",
    "node",
    "token",
    "client_order_id",
    "decision_id",
    "kind",
    "outcome",
    "reason",
    "symbol",
    "side",
    "qty",
    "price",
)
_EXTRA: Final = tuple((i, f) for i, f in enumerate(Line._fields) if f not in SURFACE)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def to_json(line: Line, instruments: Mapping[str, Instrument]) -> str:
    """The line as it is hashed, stored and shown. qty and price are decimal strings, null for an unknown symbol."""
    instrument = instruments.get(line.symbol or "")
    qty = price = None
    if instrument is not None and line.qty_lots is not None:
        qty = f"{instrument.qty(line.qty_lots):f}"
    if instrument is not None and line.price_ticks is not None:
        price = f"{instrument.price(line.price_ticks):f}"
    out: dict[str, Any] = {
        "venue_seq": line.venue_seq,
        "at_ns": line.at_ns,
        "node": line.node,
        "token": line.token,
        "client_order_id": line.client_order_id,
        "decision_id": line.decision_id,
        "kind": line.kind,
        "outcome": line.outcome,
        "reason": line.reason,
        "symbol": line.symbol,
        "side": line.side,
        "qty": qty,
        "price": price,
    }
    for i, key in _EXTRA:
        value = line[i]
        if value is not None:
            out[key] = value
    return _encode(out)


def from_json(text: str) -> Line:
    """The inverse of `to_json`. Raises ValueError, KeyError or TypeError for a text that is no line."""
    values = surface(text)
    del values["qty"], values["price"]  # for people; the integers beside them are what counts
    return Line(**values)


def surface(text: str) -> dict[str, Any]:
    """A line as it is shown, from its JSON."""
    values: dict[str, Any] = json.loads(text)
    return values
