"""Every message of a replication stream survives the wire as it was; what is no message ends the stream."""

from __future__ import annotations

import pytest

from cluster import wire
from cluster.core.ids import JournalId, LogIndex, NodeId, Term
from cluster.core.log import GENESIS, Position, make_entry
from cluster.core.stream import (
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
)
from cluster.rpc import replication_pb2 as pb

PLACES = [Position(LogIndex(9), b"c" * 32), Position(LogIndex(4), GENESIS)]


@pytest.mark.parametrize(
    "message",
    [
        Start(NodeId("n1"), Term(5), PLACES[0], Term(4), LogIndex(7)),
        Start(NodeId("n1"), Term(5), PLACES[0], Term(4), LogIndex(7), SnapshotHead(b"digest", 1 << 33)),
        Start(NodeId("n1"), Term(5), PLACES[0], Term(4), LogIndex(7), SnapshotHead(b"", 0)),
        SnapshotChunk(b"the book"),
        Entries([make_entry(8, GENESIS, Term(5), 16, 1_700_000_000_000_000_000, b"body")], LogIndex(7)),
        Entries([], LogIndex(0)),
        Heartbeat(LogIndex(0)),
        Refused(Refusal.DIVERGED, "why"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_a_leader_says(message: LeaderMessage) -> None:
    sent = wire.leader_message(message).SerializeToString()
    assert wire.read_leader_message(pb.LeaderMessage.FromString(sent)) == message


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, "c1", NodeId("n2"), JournalId("j"), Term(5), Term(6), LogIndex(9), LogIndex(4), PLACES),
        Ack(Term(5), LogIndex(9), LogIndex(8)),
        Ack(Term(5), LogIndex(9), LogIndex(8), Checkpoint(LogIndex(256), b"d")),
        Ack(Term(5), LogIndex(0), LogIndex(0), Checkpoint(LogIndex(0), b"")),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_a_follower_says(message: FollowerMessage) -> None:
    sent = wire.follower_message(message).SerializeToString()
    assert wire.read_follower_message(pb.FollowerMessage.FromString(sent)) == message


def test_message_of_no_known_kind_ends_the_stream() -> None:
    with pytest.raises(StreamEnded, match="newer"):
        wire.read_leader_message(pb.LeaderMessage())
    with pytest.raises(StreamEnded, match="newer"):
        wire.read_follower_message(pb.FollowerMessage())


def test_refusals_are_numbered_as_on_the_wire() -> None:
    assert {f"REFUSAL_{code.name}": code.value for code in Refusal} == dict(pb.Refusal.items())


def test_refusal_that_only_a_newer_leader_knows_keeps_its_reason() -> None:
    sent = pb.LeaderMessage(refused=pb.Refused(code=99, reason="why"))  # type: ignore[arg-type]
    assert wire.read_leader_message(sent) == Refused(Refusal.UNSPECIFIED, "why")
    assert not Refusal.UNSPECIFIED.final
