"""The control channel between keeper and worker: whole messages over an inherited SOCK_SEQPACKET pair.

Each message is a frozen dataclass; on the wire, JSON with the class's name. Neither side ever waits for the other:
sends are queued (bounded) when the peer does not read, and a peer that does not read for long is not helped by more
messages: the keeper kills a worker that hangs, and the kernel kills a worker whose keeper died.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from .core.errors import InvariantViolation

log = structlog.get_logger()

QUEUE_MAX = 4096
MESSAGE_MAX = 128 * 1024


# -- keeper to worker --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Follow:
    """Replicate from `node` at `address`, which leads in `term`."""

    node: str
    address: str
    term: int


@dataclass(frozen=True, slots=True)
class Prepare:
    term: int


@dataclass(frozen=True, slots=True)
class Lead:
    """insync: node -> journal id, as stands in etcd at `insync_revision`."""

    term: int
    insync: dict[str, str]
    insync_revision: int
    cause: str
    actor: str
    came_from: str | None


@dataclass(frozen=True, slots=True)
class Granted:
    term: int


@dataclass(frozen=True, slots=True)
class StopTrading:
    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    term: int
    successor: str | None


@dataclass(frozen=True, slots=True)
class InSyncAnswer:
    """outcome: done, refused or unknown. For refused, members and revision are what stands now."""

    request: int
    outcome: str
    members: dict[str, str]
    revision: int


@dataclass(frozen=True, slots=True)
class LatchSeen:
    """The kill latch as the keeper's watch shows it: why it is set, None: it is not. Told before any Lead, and at every
    change."""

    halted: str | None


@dataclass(frozen=True, slots=True)
class LatchAnswer:
    """The kill latch, by a linearizable read that began after AskLatch and found its term leading. unreadable: why it
    is not known; else empty."""

    request: int
    halted: str | None
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """What the keeper sees of the cluster, for peers' addresses and for people. See `picture.cluster_picture`."""

    picture: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SwitchoverAnswer:
    request_id: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """End cleanly; SIGKILL follows."""

    reason: str


# -- worker to keeper --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    journal_id: str
    last_index: int
    highest_term: int
    etcd_cluster_id: int
    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Prepared:
    term: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    term: int
    phases_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    term: int


@dataclass(frozen=True, slots=True)
class Stopped:
    term: int


@dataclass(frozen=True, slots=True)
class StepDown:
    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProposeInSync:
    request: int
    term: int
    members: dict[str, str]
    expected_revision: int


@dataclass(frozen=True, slots=True)
class AskLatch:
    """What is the kill latch, as long as `term` leads?"""

    request: int
    term: int


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """The first order of this term was accepted by the venue. at: Unix ns."""

    term: int
    at: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the node publishes of itself in `members/<node>`; replaces the last one."""

    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AskSwitchover:
    request_id: str
    target: str | None
    actor: str


@dataclass(frozen=True, slots=True)
class Fatal:
    """The worker is about to exit: why, for people and for `resigned`."""

    reason: str


Message = (
    Follow
    | Prepare
    | Lead
    | Granted
    | StopTrading
    | Drain
    | InSyncAnswer
    | LatchSeen
    | LatchAnswer
    | ClusterSeen
    | SwitchoverAnswer
    | Exit
    | Hello
    | Prepared
    | Reconciled
    | Settled
    | Stopped
    | StepDown
    | ProposeInSync
    | AskLatch
    | FirstOrder
    | Status
    | AskSwitchover
    | Fatal
)

_TYPES: dict[str, Any] = {t.__name__: t for t in Message.__args__}


def encode(message: Message) -> bytes:
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return json.dumps({"t": type(message).__name__, **fields}, separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Raises InvariantViolation: both ends are the same build, so a message that does not parse is a bug."""
    try:
        fields = json.loads(data)
        message: Message = _TYPES[fields.pop("t")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InvariantViolation(f"control message does not parse: {data[:200]!r}: {e}") from e
    return message


class Link:
    """One end, on the running loop. From `start` on, `on_message` is called for each message, and `on_closed` once at
    the end; what came before waits. Sending works at once.

    What `on_message` raises ends in the loop's exception handler, where nobody acts on it: it must not raise."""

    def __init__(
        self, sock: socket.socket, on_message: Callable[[Message], None], on_closed: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_closed = on_closed
        self._queue: deque[bytes] = deque()
        self._closed = False

    def start(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, message: Message) -> None:
        """Never blocks. After the peer is gone, or has not read QUEUE_MAX messages, the message is dropped."""
        if self._closed:
            return
        data = encode(message)
        if len(data) > MESSAGE_MAX:
            raise InvariantViolation(f"control message {type(message).__name__} of {len(data)} bytes is too long")
        if self._queue:
            if len(self._queue) < QUEUE_MAX:
                self._queue.append(data)
            return
        try:
            self._sock.send(data)
        except BlockingIOError:
            self._queue.append(data)
            self._loop.add_writer(self._sock.fileno(), self._writable)
        except OSError:
            self.close()

    def _writable(self) -> None:
        try:
            while self._queue:
                self._sock.send(self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        while not self._closed:
            try:
                data = self._sock.recv(MESSAGE_MAX * 2)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            try:
                message = decode(data)
            except InvariantViolation as e:
                # Two ends that do not understand each other: what was lost may have been "stop". Without the channel
                # the worker stops by itself, and the keeper starts another.
                log.error("control_message_unreadable", reason=str(e))
                self.close()
                return
            self._on_message(message)

    def drain(self) -> None:
        """Hand out what the peer had said before it ended."""
        self._readable()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._on_closed()


def link_pair() -> tuple[socket.socket, socket.socket]:
    """(keeper's end, worker's end); the worker's is to be inherited."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for s in (a, b):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return a, b
