"""Between the venue's messages and Baton's own types, for both ends of the wire. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from cluster.rpc import paper_venue_pb2 as pb
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
    WireOrder,
)
from node.venues.base import Capabilities, DeadmanScope, IdUniqueness

from .lines import Line
from .state import Ask

ACCOUNT, API_KEY, NODE = "baton-account", "baton-api-key", "baton-node"  # metadata of every call

_SIDE = {Side.BUY: pb.SIDE_BUY, Side.SELL: pb.SIDE_SELL}
_TYPE = {OrderType.LIMIT: pb.ORDER_TYPE_LIMIT, OrderType.MARKET: pb.ORDER_TYPE_MARKET}
_TIF = {TimeInForce.GTC: pb.TIME_IN_FORCE_GTC, TimeInForce.IOC: pb.TIME_IN_FORCE_IOC}
_STATUS = {
    OrderStatus.OPEN: pb.STATUS_OPEN,
    OrderStatus.FILLED: pb.STATUS_FILLED,
    OrderStatus.CANCELLED: pb.STATUS_CANCELLED,
    OrderStatus.EXPIRED: pb.STATUS_EXPIRED,
}
_FROM_SIDE = {v: k for k, v in _SIDE.items()}
_FROM_TYPE = {v: k for k, v in _TYPE.items()}
_FROM_TIF = {v: k for k, v in _TIF.items()}
_FROM_STATUS = {v: k for k, v in _STATUS.items()}

_TEXT_CHARS_MAX = 256  # of a text that is kept in the record though it will be refused; above every valid length


def clip(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS_MAX else text[: _TEXT_CHARS_MAX - 1] + "…"


# -- orders ---------------------------------------------------------------------------------------------------


def to_spec(spec: OrderSpec) -> pb.Spec:
    return pb.Spec(
        symbol=spec.symbol,
        side=_SIDE[spec.side],
        type=_TYPE[spec.type],
        tif=_TIF[spec.tif],
        post_only=spec.post_only,
        qty_lots=spec.qty_lots,
        price_ticks=spec.price_ticks,
    )


def from_spec(spec: pb.Spec) -> OrderSpec:
    """Raises ValueError or KeyError for what is no order."""
    return OrderSpec(
        symbol=spec.symbol,
        side=_FROM_SIDE[spec.side],
        qty_lots=spec.qty_lots,
        price_ticks=spec.price_ticks if spec.HasField("price_ticks") else None,
        type=_FROM_TYPE[spec.type],
        tif=_FROM_TIF[spec.tif],
        post_only=spec.post_only,
    )


def to_new(order: WireOrder) -> pb.NewOrder:
    """Raises ValueError for a number that does not fit the wire."""
    return pb.NewOrder(
        client_order_id=order.client_order_id,
        decision_id=order.decision_id,
        spec=to_spec(order.spec),
        expires_at_ns=order.expires_at_ns or 0,
    )


def to_ask(new: pb.NewOrder) -> Ask:
    """As it came in, right or wrong: the engine judges."""
    spec = new.spec
    return Ask(
        client_order_id=clip(new.client_order_id),
        decision_id=clip(new.decision_id),
        symbol=clip(spec.symbol),
        side=_FROM_SIDE.get(spec.side),
        type=_FROM_TYPE.get(spec.type),
        tif=_FROM_TIF.get(spec.tif),
        post_only=spec.post_only,
        qty_lots=spec.qty_lots,
        price_ticks=spec.price_ticks if spec.HasField("price_ticks") else None,
        expires_at_ns=new.expires_at_ns,
    )


def ask_of(order: WireOrder) -> Ask:
    """What the venue sees of `order`, without a wire between."""
    return to_ask(to_new(order))


def to_order(order: VenueOrder) -> pb.Order:
    return pb.Order(
        client_order_id=order.client_order_id,
        venue_order_id=order.venue_order_id,
        spec=to_spec(order.spec),
        status=_STATUS[order.status],
        filled_lots=order.filled_lots,
    )


def from_order(order: pb.Order) -> VenueOrder:
    return VenueOrder(
        client_order_id=ClientOrderId(order.client_order_id),
        venue_order_id=order.venue_order_id,
        spec=from_spec(order.spec),
        status=_FROM_STATUS[order.status],
        filled_lots=order.filled_lots,
    )


# -- replies and events -----------------------------------------------------------------------------------------


def to_reply(request_id: int, lines: list[Line], high_water: int) -> pb.Reply:
    """The first line is the message's own; none: a keep-alive that was a mere refresh."""
    if not lines:
        return pb.Reply(request_id=request_id, accepted=True, high_water=high_water)
    line = lines[0]
    return pb.Reply(
        request_id=request_id,
        accepted=line.accepted,
        code="" if line.accepted else line.reason or "",
        reason=line.detail or "",
        venue_seq=line.venue_seq,
        venue_order_id=line.venue_order_id or "",
        high_water=high_water,
        cancelled=len(lines) - 1 if line.kind == "cancel_all" else 0,
    )


def to_event(line: Line) -> pb.Event:
    """Of a line that has an event_seq."""
    event = pb.Event(event_seq=line.event_seq, at_ns=line.at_ns)
    if line.kind == "fill":
        fill = line.fill()
        event.fill.trade_id = fill.trade_id
        event.fill.client_order_id = fill.client_order_id
        event.fill.symbol = fill.symbol
        event.fill.side = _SIDE[fill.side]
        event.fill.qty_lots = fill.qty_lots
        event.fill.price_ticks = fill.price_ticks
    else:
        event.order.order.CopyFrom(to_order(line.order()))
        event.order.reason = line.reason or ""
    return event


def from_event(event: pb.Event) -> VenueFill | VenueOrderEvent:
    """Raises ValueError or KeyError for an event this program does not know."""
    if event.WhichOneof("body") == "fill":
        return from_fill(event)
    return VenueOrderEvent(from_order(event.order.order), event.order.reason, event.at_ns, event.event_seq)


def from_fill(event: pb.Event) -> VenueFill:
    fill = event.fill
    return VenueFill(
        trade_id=fill.trade_id,
        client_order_id=ClientOrderId(fill.client_order_id),
        symbol=fill.symbol,
        side=_FROM_SIDE[fill.side],
        qty_lots=fill.qty_lots,
        price_ticks=fill.price_ticks,
        at_ns=event.at_ns,
        event_seq=event.event_seq,
    )


# -- what the venue is --------------------------------------------------------------------------------------------


def to_capabilities(caps: Capabilities, instruments: Iterable[Instrument], heartbeat_s: float) -> pb.CapabilitiesReply:
    return pb.CapabilitiesReply(
        token=caps.token,
        expiry=caps.expiry,
        id_uniqueness=caps.id_uniqueness.value,
        deadman=caps.deadman.value,
        instruments=[
            pb.Instrument(symbol=i.symbol, tick_size=str(i.tick_size), lot_size=str(i.lot_size)) for i in instruments
        ],
        heartbeat_ms=round(heartbeat_s * 1000),
    )


def from_capabilities(reply: pb.CapabilitiesReply) -> Capabilities:
    """Raises ValueError for a word this program does not know."""
    return Capabilities(
        token=reply.token,
        expiry=reply.expiry,
        id_uniqueness=IdUniqueness(reply.id_uniqueness),
        deadman=DeadmanScope(reply.deadman),
    )


def from_instrument(instrument: pb.Instrument) -> Instrument:
    return Instrument(instrument.symbol, Decimal(instrument.tick_size), Decimal(instrument.lot_size))
