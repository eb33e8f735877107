from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[Refusal]
    REFUSAL_NOT_LEADING: _ClassVar[Refusal]
    REFUSAL_STALE_LEADER: _ClassVar[Refusal]
    REFUSAL_PROTOCOL: _ClassVar[Refusal]
    REFUSAL_WRONG_CLUSTER: _ClassVar[Refusal]
    REFUSAL_UNKNOWN_NODE: _ClassVar[Refusal]
    REFUSAL_WRONG_IDENTITY: _ClassVar[Refusal]
    REFUSAL_DUPLICATE_NODE: _ClassVar[Refusal]
    REFUSAL_DIVERGED: _ClassVar[Refusal]
    REFUSAL_LOST_ENTRIES: _ClassVar[Refusal]
    REFUSAL_WRONG_DIGEST: _ClassVar[Refusal]
REFUSAL_UNSPECIFIED: Refusal
REFUSAL_NOT_LEADING: Refusal
REFUSAL_STALE_LEADER: Refusal
REFUSAL_PROTOCOL: Refusal
REFUSAL_WRONG_CLUSTER: Refusal
REFUSAL_UNKNOWN_NODE: Refusal
REFUSAL_WRONG_IDENTITY: Refusal
REFUSAL_DUPLICATE_NODE: Refusal
REFUSAL_DIVERGED: Refusal
REFUSAL_LOST_ENTRIES: Refusal
REFUSAL_WRONG_DIGEST: Refusal

class Position(_message.Message):
    __slots__ = ("index", "chain")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    index: int
    chain: bytes
    def __init__(self, index: _Optional[int] = ..., chain: _Optional[bytes] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("index", "digest")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    index: int
    digest: bytes
    def __init__(self, index: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "cluster", "node", "journal_id", "term", "highest_term", "last_index", "commit_index", "locator")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_TERM_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOCATOR_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    cluster: str
    node: str
    journal_id: str
    term: int
    highest_term: int
    last_index: int
    commit_index: int
    locator: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, protocol: _Optional[int] = ..., cluster: _Optional[str] = ..., node: _Optional[str] = ..., journal_id: _Optional[str] = ..., term: _Optional[int] = ..., highest_term: _Optional[int] = ..., last_index: _Optional[int] = ..., commit_index: _Optional[int] = ..., locator: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("term", "durable_index", "applied_index", "digest")
    TERM_FIELD_NUMBER: _ClassVar[int]
    DURABLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    term: int
    durable_index: int
    applied_index: int
    digest: Digest
    def __init__(self, term: _Optional[int] = ..., durable_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., digest: _Optional[_Union[Digest, _Mapping]] = ...) -> None: ...

class FollowerMessage(_message.Message):
    __slots__ = ("hello", "ack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("leader", "term", "fork", "fork_term", "commit_index", "snapshot", "snapshot_digest", "snapshot_bytes")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    FORK_TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    leader: str
    term: int
    fork: Position
    fork_term: int
    commit_index: int
    snapshot: bool
    snapshot_digest: bytes
    snapshot_bytes: int
    def __init__(self, leader: _Optional[str] = ..., term: _Optional[int] = ..., fork: _Optional[_Union[Position, _Mapping]] = ..., fork_term: _Optional[int] = ..., commit_index: _Optional[int] = ..., snapshot: bool = ..., snapshot_digest: _Optional[bytes] = ..., snapshot_bytes: _Optional[int] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("index", "term", "kind", "at", "body", "chain")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    kind: int
    at: int
    body: bytes
    chain: bytes
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., kind: _Optional[int] = ..., at: _Optional[int] = ..., body: _Optional[bytes] = ..., chain: _Optional[bytes] = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("entries", "commit_index")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    commit_index: int
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., commit_index: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("commit_index",)
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    commit_index: int
    def __init__(self, commit_index: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Refusal
    reason: str
    def __init__(self, code: _Optional[_Union[Refusal, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("start", "snapshot", "entries", "heartbeat", "refused")
    START_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    start: Start
    snapshot: SnapshotChunk
    entries: Entries
    heartbeat: Heartbeat
    refused: Refused
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., entries: _Optional[_Union[Entries, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...
