"""What both ends of a replication stream share: TLS, channel options, and its messages as bytes (`core/stream.py`).

Read next: `replication.py` (the leader's end), `follower.py` (the other one).
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from .core.errors import ConfigError
from .core.ids import JournalId, LogIndex, NodeId, Term
from .core.log import Entry, Position
from .core.stream import (
    MESSAGE_BYTES_MAX,
    Ack,
    Checkpoint,
    Entries,
    FollowerMessage,
    Heartbeat,
    Hello,
    LeaderMessage,
    Refusal,
    Refused,
    SnapshotChunk,
    SnapshotHead,
    Start,
    StreamEnded,
    StreamSettings,
)
from .rpc import replication_pb2 as pb


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. The certificate must name this node's id (SAN dNSName, or CN), on both sides."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class WireSettings(StreamSettings):
    tls: TlsFiles | None = None


# -- messages -----------------------------------------------------------------------------------------------


def leader_message(message: LeaderMessage) -> pb.LeaderMessage:
    match message:
        case Entries(entries, commit):
            made = [pb.Entry(index=i, term=t, kind=k, at=at, body=b, chain=c) for i, t, k, at, b, c in entries]
            return pb.LeaderMessage(entries=pb.Entries(entries=made, commit_index=commit))
        case Heartbeat(commit):
            return pb.LeaderMessage(heartbeat=pb.Heartbeat(commit_index=commit))
        case SnapshotChunk(data):
            return pb.LeaderMessage(snapshot=pb.SnapshotChunk(data=data))
        case Start():
            return pb.LeaderMessage(start=_start(message))
        case Refused(code, reason):
            return pb.LeaderMessage(refused=pb.Refused(code=pb.Refusal.Name(code), reason=reason))


def read_leader_message(message: pb.LeaderMessage) -> LeaderMessage:
    """Raises StreamEnded for a message of no kind that we know."""
    match message.WhichOneof("message"):
        case "entries":
            return Entries(
                [
                    Entry(LogIndex(e.index), Term(e.term), e.kind, e.at, e.body, e.chain)
                    for e in message.entries.entries
                ],
                LogIndex(message.entries.commit_index),
            )
        case "heartbeat":
            return Heartbeat(LogIndex(message.heartbeat.commit_index))
        case "snapshot":
            return SnapshotChunk(message.snapshot.data)
        case "start":
            return _read_start(message.start)
        case "refused":
            return Refused(Refusal(message.refused.code), message.refused.reason)
        case _:
            raise StreamEnded("the leader sent what is no message here; is it newer than this node?")


def _start(start: Start) -> pb.Start:
    made = pb.Start(
        leader=start.leader,
        term=start.term,
        fork=pb.Position(index=start.fork.index, chain=start.fork.chain),
        fork_term=start.fork_term,
        commit_index=start.commit,
    )
    if start.snapshot is not None:
        made.snapshot, made.snapshot_digest, made.snapshot_bytes = True, start.snapshot.digest, start.snapshot.size
    return made


def _read_start(start: pb.Start) -> Start:
    return Start(
        NodeId(start.leader),
        Term(start.term),
        Position(LogIndex(start.fork.index), start.fork.chain),
        Term(start.fork_term),
        LogIndex(start.commit_index),
        SnapshotHead(start.snapshot_digest, start.snapshot_bytes) if start.snapshot else None,
    )


def follower_message(message: FollowerMessage) -> pb.FollowerMessage:
    if isinstance(message, Hello):
        return pb.FollowerMessage(hello=_hello(message))
    ack = pb.Ack(term=message.term, durable_index=message.durable, applied_index=message.applied)
    if message.checkpoint is not None:
        ack.digest.index, ack.digest.digest = message.checkpoint
    return pb.FollowerMessage(ack=ack)


def read_follower_message(message: pb.FollowerMessage) -> FollowerMessage:
    """Raises StreamEnded for a message of no kind that we know."""
    match message.WhichOneof("message"):
        case "ack":
            ack = message.ack
            checkpoint = Checkpoint(LogIndex(ack.digest.index), ack.digest.digest) if ack.HasField("digest") else None
            return Ack(Term(ack.term), LogIndex(ack.durable_index), LogIndex(ack.applied_index), checkpoint)
        case "hello":
            return _read_hello(message.hello)
        case _:
            raise StreamEnded("the follower sent what is no message here; is it newer than this node?")


def _hello(hello: Hello) -> pb.Hello:
    return pb.Hello(
        protocol=hello.protocol,
        cluster=hello.cluster,
        node=hello.node,
        journal_id=hello.journal,
        term=hello.term,
        highest_term=hello.highest_term,
        last_index=hello.last,
        commit_index=hello.commit,
        locator=[pb.Position(index=p.index, chain=p.chain) for p in hello.locator],
    )


def _read_hello(hello: pb.Hello) -> Hello:
    return Hello(
        hello.protocol,
        hello.cluster,
        NodeId(hello.node),
        JournalId(hello.journal_id),
        Term(hello.term),
        Term(hello.highest_term),
        LogIndex(hello.last_index),
        LogIndex(hello.commit_index),
        [Position(LogIndex(p.index), p.chain) for p in hello.locator],
    )


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
