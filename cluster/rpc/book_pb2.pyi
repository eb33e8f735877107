from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Book(_message.Message):
    __slots__ = ("format", "cluster_tag", "applied_index", "term", "scales", "positions", "live", "closed", "decision_ids", "trade_ids", "recent_intents", "venue_event_seq", "term_started_body", "strategy_state_body", "strategy_state_index", "reconciled_body", "reconciled_index", "reconciled_at", "counts", "mismatches")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_TAG_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DECISION_IDS_FIELD_NUMBER: _ClassVar[int]
    TRADE_IDS_FIELD_NUMBER: _ClassVar[int]
    RECENT_INTENTS_FIELD_NUMBER: _ClassVar[int]
    VENUE_EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    TERM_STARTED_BODY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_STATE_BODY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_STATE_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECONCILED_BODY_FIELD_NUMBER: _ClassVar[int]
    RECONCILED_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECONCILED_AT_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    format: int
    cluster_tag: str
    applied_index: int
    term: int
    scales: _containers.RepeatedCompositeFieldContainer[Scale]
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    live: _containers.RepeatedCompositeFieldContainer[Order]
    closed: _containers.RepeatedCompositeFieldContainer[Order]
    decision_ids: _containers.RepeatedScalarFieldContainer[str]
    trade_ids: _containers.RepeatedScalarFieldContainer[str]
    recent_intents: _containers.RepeatedScalarFieldContainer[int]
    venue_event_seq: int
    term_started_body: bytes
    strategy_state_body: bytes
    strategy_state_index: int
    reconciled_body: bytes
    reconciled_index: int
    reconciled_at: int
    counts: Counts
    mismatches: _containers.RepeatedCompositeFieldContainer[Mismatch]
    def __init__(self, format: _Optional[int] = ..., cluster_tag: _Optional[str] = ..., applied_index: _Optional[int] = ..., term: _Optional[int] = ..., scales: _Optional[_Iterable[_Union[Scale, _Mapping]]] = ..., positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ..., live: _Optional[_Iterable[_Union[Order, _Mapping]]] = ..., closed: _Optional[_Iterable[_Union[Order, _Mapping]]] = ..., decision_ids: _Optional[_Iterable[str]] = ..., trade_ids: _Optional[_Iterable[str]] = ..., recent_intents: _Optional[_Iterable[int]] = ..., venue_event_seq: _Optional[int] = ..., term_started_body: _Optional[bytes] = ..., strategy_state_body: _Optional[bytes] = ..., strategy_state_index: _Optional[int] = ..., reconciled_body: _Optional[bytes] = ..., reconciled_index: _Optional[int] = ..., reconciled_at: _Optional[int] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., mismatches: _Optional[_Iterable[_Union[Mismatch, _Mapping]]] = ...) -> None: ...

class Scale(_message.Message):
    __slots__ = ("symbol", "tick_size", "lot_size")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TICK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOT_SIZE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    tick_size: str
    lot_size: str
    def __init__(self, symbol: _Optional[str] = ..., tick_size: _Optional[str] = ..., lot_size: _Optional[str] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("symbol", "lots")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    LOTS_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    lots: int
    def __init__(self, symbol: _Optional[str] = ..., lots: _Optional[int] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("index", "term", "at", "intent_body", "outcome_body", "closed_body", "filled_lots", "cancel_requested")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    INTENT_BODY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_BODY_FIELD_NUMBER: _ClassVar[int]
    CLOSED_BODY_FIELD_NUMBER: _ClassVar[int]
    FILLED_LOTS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    at: int
    intent_body: bytes
    outcome_body: bytes
    closed_body: bytes
    filled_lots: int
    cancel_requested: bool
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., at: _Optional[int] = ..., intent_body: _Optional[bytes] = ..., outcome_body: _Optional[bytes] = ..., closed_body: _Optional[bytes] = ..., filled_lots: _Optional[int] = ..., cancel_requested: bool = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("terms", "intents", "fills", "duplicate_fills", "orphan_fills", "mismatches")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    INTENTS_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FILLS_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_FILLS_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    terms: int
    intents: int
    fills: int
    duplicate_fills: int
    orphan_fills: int
    mismatches: int
    def __init__(self, terms: _Optional[int] = ..., intents: _Optional[int] = ..., fills: _Optional[int] = ..., duplicate_fills: _Optional[int] = ..., orphan_fills: _Optional[int] = ..., mismatches: _Optional[int] = ...) -> None: ...

class Mismatch(_message.Message):
    __slots__ = ("index", "code", "text")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    code: str
    text: str
    def __init__(self, index: _Optional[int] = ..., code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
