from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Side(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIDE_UNSPECIFIED: _ClassVar[Side]
    SIDE_BUY: _ClassVar[Side]
    SIDE_SELL: _ClassVar[Side]

class OrderType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_TYPE_UNSPECIFIED: _ClassVar[OrderType]
    ORDER_TYPE_LIMIT: _ClassVar[OrderType]
    ORDER_TYPE_MARKET: _ClassVar[OrderType]

class TimeInForce(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIME_IN_FORCE_UNSPECIFIED: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTC: _ClassVar[TimeInForce]
    TIME_IN_FORCE_IOC: _ClassVar[TimeInForce]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OPEN: _ClassVar[Status]
    STATUS_FILLED: _ClassVar[Status]
    STATUS_CANCELLED: _ClassVar[Status]
    STATUS_EXPIRED: _ClassVar[Status]
SIDE_UNSPECIFIED: Side
SIDE_BUY: Side
SIDE_SELL: Side
ORDER_TYPE_UNSPECIFIED: OrderType
ORDER_TYPE_LIMIT: OrderType
ORDER_TYPE_MARKET: OrderType
TIME_IN_FORCE_UNSPECIFIED: TimeInForce
TIME_IN_FORCE_GTC: TimeInForce
TIME_IN_FORCE_IOC: TimeInForce
STATUS_UNSPECIFIED: Status
STATUS_OPEN: Status
STATUS_FILLED: Status
STATUS_CANCELLED: Status
STATUS_EXPIRED: Status

class Spec(_message.Message):
    __slots__ = ("symbol", "side", "type", "tif", "post_only", "qty_lots", "price_ticks")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TIF_FIELD_NUMBER: _ClassVar[int]
    POST_ONLY_FIELD_NUMBER: _ClassVar[int]
    QTY_LOTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_TICKS_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    side: Side
    type: OrderType
    tif: TimeInForce
    post_only: bool
    qty_lots: int
    price_ticks: int
    def __init__(self, symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., type: _Optional[_Union[OrderType, str]] = ..., tif: _Optional[_Union[TimeInForce, str]] = ..., post_only: bool = ..., qty_lots: _Optional[int] = ..., price_ticks: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("request_id", "token", "new", "cancel", "cancel_all", "arm", "keep_alive")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CANCEL_ALL_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    token: int
    new: NewOrder
    cancel: Cancel
    cancel_all: CancelAll
    arm: Arm
    keep_alive: KeepAlive
    def __init__(self, request_id: _Optional[int] = ..., token: _Optional[int] = ..., new: _Optional[_Union[NewOrder, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., cancel_all: _Optional[_Union[CancelAll, _Mapping]] = ..., arm: _Optional[_Union[Arm, _Mapping]] = ..., keep_alive: _Optional[_Union[KeepAlive, _Mapping]] = ...) -> None: ...

class NewOrder(_message.Message):
    __slots__ = ("client_order_id", "decision_id", "spec", "expires_at_ns")
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    decision_id: str
    spec: Spec
    expires_at_ns: int
    def __init__(self, client_order_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., expires_at_ns: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("client_order_id",)
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    def __init__(self, client_order_id: _Optional[str] = ...) -> None: ...

class CancelAll(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Arm(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KeepAlive(_message.Message):
    __slots__ = ("ttl_ms",)
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    ttl_ms: int
    def __init__(self, ttl_ms: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("request_id", "accepted", "code", "reason", "venue_seq", "venue_order_id", "high_water", "cancelled")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VENUE_SEQ_FIELD_NUMBER: _ClassVar[int]
    VENUE_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATER_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    accepted: bool
    code: str
    reason: str
    venue_seq: int
    venue_order_id: str
    high_water: int
    cancelled: int
    def __init__(self, request_id: _Optional[int] = ..., accepted: bool = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., venue_seq: _Optional[int] = ..., venue_order_id: _Optional[str] = ..., high_water: _Optional[int] = ..., cancelled: _Optional[int] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("event_seq", "at_ns", "order", "fill")
    EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    event_seq: int
    at_ns: int
    order: OrderEvent
    fill: Fill
    def __init__(self, event_seq: _Optional[int] = ..., at_ns: _Optional[int] = ..., order: _Optional[_Union[OrderEvent, _Mapping]] = ..., fill: _Optional[_Union[Fill, _Mapping]] = ...) -> None: ...

class OrderEvent(_message.Message):
    __slots__ = ("order", "reason")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    order: Order
    reason: str
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("client_order_id", "venue_order_id", "spec", "status", "filled_lots")
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    VENUE_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FILLED_LOTS_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    venue_order_id: str
    spec: Spec
    status: Status
    filled_lots: int
    def __init__(self, client_order_id: _Optional[str] = ..., venue_order_id: _Optional[str] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., status: _Optional[_Union[Status, str]] = ..., filled_lots: _Optional[int] = ...) -> None: ...

class Fill(_message.Message):
    __slots__ = ("trade_id", "client_order_id", "symbol", "side", "qty_lots", "price_ticks")
    TRADE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QTY_LOTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_TICKS_FIELD_NUMBER: _ClassVar[int]
    trade_id: str
    client_order_id: str
    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int
    def __init__(self, trade_id: _Optional[str] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., qty_lots: _Optional[int] = ..., price_ticks: _Optional[int] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("client_order_id",)
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    def __init__(self, client_order_id: _Optional[str] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: Order
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class OpenOrdersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenOrdersReply(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[Order]
    def __init__(self, orders: _Optional[_Iterable[_Union[Order, _Mapping]]] = ...) -> None: ...

class FillsAfterRequest(_message.Message):
    __slots__ = ("event_seq", "limit")
    EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    event_seq: int
    limit: int
    def __init__(self, event_seq: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class FillsAfterReply(_message.Message):
    __slots__ = ("fills",)
    FILLS_FIELD_NUMBER: _ClassVar[int]
    fills: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, fills: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class PositionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PositionsReply(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("symbol", "net_lots", "cash_tick_lots")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    NET_LOTS_FIELD_NUMBER: _ClassVar[int]
    CASH_TICK_LOTS_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    net_lots: int
    cash_tick_lots: str
    def __init__(self, symbol: _Optional[str] = ..., net_lots: _Optional[int] = ..., cash_tick_lots: _Optional[str] = ...) -> None: ...

class ServerTimeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerTimeReply(_message.Message):
    __slots__ = ("unix_ns",)
    UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    unix_ns: int
    def __init__(self, unix_ns: _Optional[int] = ...) -> None: ...

class CapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CapabilitiesReply(_message.Message):
    __slots__ = ("token", "expiry", "id_uniqueness", "deadman", "instruments", "heartbeat_ms")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_FIELD_NUMBER: _ClassVar[int]
    ID_UNIQUENESS_FIELD_NUMBER: _ClassVar[int]
    DEADMAN_FIELD_NUMBER: _ClassVar[int]
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    token: bool
    expiry: bool
    id_uniqueness: str
    deadman: str
    instruments: _containers.RepeatedCompositeFieldContainer[Instrument]
    heartbeat_ms: int
    def __init__(self, token: bool = ..., expiry: bool = ..., id_uniqueness: _Optional[str] = ..., deadman: _Optional[str] = ..., instruments: _Optional[_Iterable[_Union[Instrument, _Mapping]]] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class Instrument(_message.Message):
    __slots__ = ("symbol", "tick_size", "lot_size")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TICK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOT_SIZE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    tick_size: str
    lot_size: str
    def __init__(self, symbol: _Optional[str] = ..., tick_size: _Optional[str] = ..., lot_size: _Optional[str] = ...) -> None: ...
