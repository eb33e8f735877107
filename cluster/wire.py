"""What both ends of a replication stream share: settings, TLS, channel options, messages to entries and back.

Read next: `replication.py` (the leader's end), `follower.py` (the other one).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from .core.errors import ConfigError
from .core.ids import LogIndex, NodeId, Term
from .core.log import Entry, Position
from .rpc import replication_pb2 as pb

PROTOCOL = 1
MESSAGE_BYTES_MAX = 24 << 20
BODY_BYTES_MAX = 16 << 20
"""Of one entry. A frame holds whole entries, so it must fit into MESSAGE_BYTES_MAX with some room."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. The certificate must name this node's id (SAN dNSName, or CN), on both sides."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class WireSettings:
    """heartbeat_s: the leader's, when it has nothing else to say. silence_s: a follower that hears nothing for so
    long dials anew, over a new connection (the old one may be a black hole). commit_notice_s: how soon a commit is
    told when no entry carries it. window_bytes: sent and not acknowledged, per follower. frame_*: one message of
    entries; small, because making one takes the loop about 2 us per entry.
    hello_s: for the handshake. hold_s: how long an early follower is kept waiting for us to begin to lead.
    """

    heartbeat_s: float = 0.05
    silence_s: float = 0.5
    commit_notice_s: float = 0.005
    hello_s: float = 2.0
    hold_s: float = 0.5
    backoff_min_s: float = 0.02
    backoff_max_s: float = 0.5
    window_bytes: int = 8 << 20
    frame_entries: int = 512
    frame_bytes: int = 256 << 10
    catch_up_entries: int = 8192
    catch_up_bytes: int = 2 << 20
    snapshot_chunk_bytes: int = 1 << 20
    snapshot_bytes_max: int = 512 << 20
    tls: TlsFiles | None = None


@dataclass(slots=True)
class Digests:
    """The book's digest at agreed indexes (multiples of one number), the youngest few. One per node, kept over
    changes of role: note() is called by whoever applies entries to the book, leading or not."""

    keep: int = 64
    _held: dict[LogIndex, bytes] = field(default_factory=dict)

    def note(self, index: LogIndex, digest: bytes) -> None:
        self._held[index] = digest
        if len(self._held) > self.keep:
            del self._held[next(iter(self._held))]

    def at(self, index: LogIndex) -> bytes | None:
        return self._held.get(index)

    @property
    def latest(self) -> tuple[LogIndex, bytes] | None:
        return next(reversed(self._held.items()), None)

    def clear(self) -> None:
        self._held.clear()


# -- entries ------------------------------------------------------------------------------------------------


def frame(entries: Sequence[Entry], commit: LogIndex) -> pb.LeaderMessage:
    made = [pb.Entry(index=i, term=t, kind=k, at=at, body=b, chain=c) for i, t, k, at, b, c in entries]
    return pb.LeaderMessage(entries=pb.Entries(entries=made, commit_index=commit))


def unframe(message: pb.Entries) -> list[Entry]:
    return [Entry(LogIndex(e.index), Term(e.term), e.kind, e.at, e.body, e.chain) for e in message.entries]


def positions(message: Sequence[pb.Position]) -> list[Position]:
    return [Position(LogIndex(p.index), p.chain) for p in message]


# -- connections --------------------------------------------------------------------------------------------


def why_no_port(listen: str) -> str:
    """What the system says to `listen` (host:port), which gRPC would not repeat."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            return "it was taken a moment ago"
    except (OSError, ValueError, OverflowError) as e:
        return (e.strerror if isinstance(e, OSError) else None) or str(e)


def channel_options(settings: WireSettings) -> list[tuple[str, int | str]]:
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", round(settings.backoff_max_s * 1000)),
        ("grpc.client_idle_timeout_ms", 2**31 - 1),  # warm for ever
        ("grpc.use_local_subchannel_pool", 1),  # a channel made anew must not inherit the old one's dead connection
        ("grpc.enable_http_proxy", 0),
        ("grpc.lb_policy_name", "pick_first"),
    ]


def open_channel(address: str, node: NodeId, settings: WireSettings) -> grpc.aio.Channel:
    """To `node`. With TLS, whoever answers must prove to be that node, whatever the address says."""
    options = channel_options(settings)
    if settings.tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    ca, cert, key = read_tls(settings.tls)
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", str(node))])


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    ca, cert, key = read_tls(tls)
    return grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)


def read_tls(tls: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """ca, cert, key. gRPC itself would only fail each handshake, so they are tried here. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.load_cert_chain(tls.cert, tls.key)
        return tls.ca.read_bytes(), tls.cert.read_bytes(), tls.key.read_bytes()
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(
            f"replication TLS files ca {tls.ca}, cert {tls.cert}, key {tls.key}: {e}; "
            "all three must be readable PEM files, and the key must be the certificate's"
        ) from e


def certified_names(context: grpc.aio.ServicerContext) -> set[str]:
    """The names in the certificate that the other side has proved to own; empty without TLS."""
    found = context.auth_context()
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return {name.decode(errors="replace") for key in keys for name in found.get(key, ()) if name}


Clock = Callable[[], int]
