from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_TERM_STARTED: _ClassVar[Kind]
    KIND_INTENT: _ClassVar[Kind]
    KIND_OUTCOME: _ClassVar[Kind]
    KIND_FILL: _ClassVar[Kind]
    KIND_ORDER_CLOSED: _ClassVar[Kind]
    KIND_CANCEL_REQUESTED: _ClassVar[Kind]
    KIND_STRATEGY_STATE: _ClassVar[Kind]
    KIND_RECONCILED: _ClassVar[Kind]

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

class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_UNSPECIFIED: _ClassVar[Result]
    RESULT_ACCEPTED: _ClassVar[Result]
    RESULT_REFUSED: _ClassVar[Result]
    RESULT_NOT_SENT: _ClassVar[Result]
    RESULT_UNKNOWN: _ClassVar[Result]

class Evidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVIDENCE_UNSPECIFIED: _ClassVar[Evidence]
    EVIDENCE_LOCAL: _ClassVar[Evidence]
    EVIDENCE_VENUE_REPLY: _ClassVar[Evidence]
    EVIDENCE_VENUE_STREAM: _ClassVar[Evidence]
    EVIDENCE_LOOKUP_FOUND: _ClassVar[Evidence]
    EVIDENCE_ABSENT_FENCED: _ClassVar[Evidence]
    EVIDENCE_ABSENT_EXPIRED: _ClassVar[Evidence]
    EVIDENCE_FILL_HISTORY: _ClassVar[Evidence]
    EVIDENCE_OPERATOR: _ClassVar[Evidence]

class Closed(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSED_UNSPECIFIED: _ClassVar[Closed]
    CLOSED_FILLED: _ClassVar[Closed]
    CLOSED_CANCELLED: _ClassVar[Closed]
    CLOSED_EXPIRED: _ClassVar[Closed]
KIND_UNSPECIFIED: Kind
KIND_TERM_STARTED: Kind
KIND_INTENT: Kind
KIND_OUTCOME: Kind
KIND_FILL: Kind
KIND_ORDER_CLOSED: Kind
KIND_CANCEL_REQUESTED: Kind
KIND_STRATEGY_STATE: Kind
KIND_RECONCILED: Kind
SIDE_UNSPECIFIED: Side
SIDE_BUY: Side
SIDE_SELL: Side
ORDER_TYPE_UNSPECIFIED: OrderType
ORDER_TYPE_LIMIT: OrderType
ORDER_TYPE_MARKET: OrderType
TIME_IN_FORCE_UNSPECIFIED: TimeInForce
TIME_IN_FORCE_GTC: TimeInForce
TIME_IN_FORCE_IOC: TimeInForce
RESULT_UNSPECIFIED: Result
RESULT_ACCEPTED: Result
RESULT_REFUSED: Result
RESULT_NOT_SENT: Result
RESULT_UNKNOWN: Result
EVIDENCE_UNSPECIFIED: Evidence
EVIDENCE_LOCAL: Evidence
EVIDENCE_VENUE_REPLY: Evidence
EVIDENCE_VENUE_STREAM: Evidence
EVIDENCE_LOOKUP_FOUND: Evidence
EVIDENCE_ABSENT_FENCED: Evidence
EVIDENCE_ABSENT_EXPIRED: Evidence
EVIDENCE_FILL_HISTORY: Evidence
EVIDENCE_OPERATOR: Evidence
CLOSED_UNSPECIFIED: Closed
CLOSED_FILLED: Closed
CLOSED_CANCELLED: Closed
CLOSED_EXPIRED: Closed

class TermStarted(_message.Message):
    __slots__ = ("node", "incarnation")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: str
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class Intent(_message.Message):
    __slots__ = ("decision_id", "symbol", "side", "type", "tif", "post_only", "qty_lots", "price_ticks", "reason", "feed_received_at", "validity_ms")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TIF_FIELD_NUMBER: _ClassVar[int]
    POST_ONLY_FIELD_NUMBER: _ClassVar[int]
    QTY_LOTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_TICKS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FEED_RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_MS_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    symbol: str
    side: Side
    type: OrderType
    tif: TimeInForce
    post_only: bool
    qty_lots: int
    price_ticks: int
    reason: str
    feed_received_at: int
    validity_ms: int
    def __init__(self, decision_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., type: _Optional[_Union[OrderType, str]] = ..., tif: _Optional[_Union[TimeInForce, str]] = ..., post_only: bool = ..., qty_lots: _Optional[int] = ..., price_ticks: _Optional[int] = ..., reason: _Optional[str] = ..., feed_received_at: _Optional[int] = ..., validity_ms: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("intent_index", "result", "evidence", "venue_order_id", "code", "reason", "expires_at")
    INTENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    VENUE_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    intent_index: int
    result: Result
    evidence: Evidence
    venue_order_id: str
    code: str
    reason: str
    expires_at: int
    def __init__(self, intent_index: _Optional[int] = ..., result: _Optional[_Union[Result, str]] = ..., evidence: _Optional[_Union[Evidence, str]] = ..., venue_order_id: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., expires_at: _Optional[int] = ...) -> None: ...

class Fill(_message.Message):
    __slots__ = ("trade_id", "intent_index", "client_order_id", "symbol", "side", "qty_lots", "price_ticks", "venue_at", "venue_event_seq")
    TRADE_ID_FIELD_NUMBER: _ClassVar[int]
    INTENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QTY_LOTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_TICKS_FIELD_NUMBER: _ClassVar[int]
    VENUE_AT_FIELD_NUMBER: _ClassVar[int]
    VENUE_EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    trade_id: str
    intent_index: int
    client_order_id: str
    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int
    venue_at: int
    venue_event_seq: int
    def __init__(self, trade_id: _Optional[str] = ..., intent_index: _Optional[int] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., qty_lots: _Optional[int] = ..., price_ticks: _Optional[int] = ..., venue_at: _Optional[int] = ..., venue_event_seq: _Optional[int] = ...) -> None: ...

class OrderClosed(_message.Message):
    __slots__ = ("intent_index", "how", "filled_lots", "reason", "evidence", "venue_event_seq")
    INTENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    FILLED_LOTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    VENUE_EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    intent_index: int
    how: Closed
    filled_lots: int
    reason: str
    evidence: Evidence
    venue_event_seq: int
    def __init__(self, intent_index: _Optional[int] = ..., how: _Optional[_Union[Closed, str]] = ..., filled_lots: _Optional[int] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Union[Evidence, str]] = ..., venue_event_seq: _Optional[int] = ...) -> None: ...

class CancelRequested(_message.Message):
    __slots__ = ("intent_index", "reason")
    INTENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    intent_index: int
    reason: str
    def __init__(self, intent_index: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class StrategyState(_message.Message):
    __slots__ = ("strategy", "version", "state")
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    strategy: str
    version: int
    state: bytes
    def __init__(self, strategy: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[bytes] = ...) -> None: ...

class Reconciled(_message.Message):
    __slots__ = ("trigger", "mismatches")
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    trigger: str
    mismatches: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, trigger: _Optional[str] = ..., mismatches: _Optional[_Iterable[str]] = ...) -> None: ...
