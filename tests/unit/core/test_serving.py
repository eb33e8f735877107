"""Whom a leader serves, and what it sends next."""

from __future__ import annotations

import pytest

from chaos.sim.disk import Disk
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term, ns
from cluster.core.insync import Commitment, Member
from cluster.core.log import GENESIS, Position, SendSnapshot, Snapshot, StreamAfter, locator, make_entry
from cluster.core.serving import ReadEntries, ReadSnapshot, Serving, Wait, admit
from cluster.core.stream import (
    Ack,
    Checkpoint,
    Digests,
    Entries,
    Heartbeat,
    Hello,
    Refusal,
    Refused,
    SnapshotChunk,
    Start,
    StreamEnded,
    StreamSettings,
)
from cluster.journal_writer import JournalLimits
from tests.support.timeline import Timeline

ME, PEER = NodeId("n1"), NodeId("n2")
SETTINGS = StreamSettings(
    frame_entries=4,
    frame_bytes=4096,
    window_bytes=10 * 100,
    catch_up_entries=6,
    snapshot_chunk_bytes=3,
    heartbeat_s=0.05,
    commit_notice_s=0.005,
    silence_s=0.5,
)
NOTICE, HEARTBEAT = ns(0.005), ns(0.05)


class Rig:
    """A leader of term 5 whose log has `count` entries, and its stream to n2."""

    def __init__(self, count: int = 0, cache: int = 1000) -> None:
        self.time = Timeline()
        self.disk = Disk("n1", "c1", self.time.call_later, lambda: 1, JournalLimits(cache_entries=cache))
        self.journal = self.disk.open()
        self.digests = Digests()
        self.now = Instant(1_000_000_000)
        self.commit = LogIndex(0)
        self.append(count)

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            last = self.journal.last
            self.journal.submit([make_entry(last.index, last.chain, Term(5), 16, 0, b"1234")], lambda _i: None)
            self.time.run()

    def serve(self, answer: StreamAfter | SendSnapshot | None = None) -> Serving:
        self.serving = Serving(
            ME, Term(5), PEER, answer or StreamAfter(LogIndex(0)), self.journal, self.digests, SETTINGS, self.now
        )
        return self.serving

    def next(self, after: int = 0) -> object:
        self.now = Instant(self.now + after)
        return self.serving.next(self.commit, self.now)

    def sent(self) -> list[int]:
        """Indexes of all that it sends before it waits."""
        found: list[int] = []
        while not isinstance(step := self.next(), Wait):
            assert isinstance(step, Entries), step
            found += [e.index for e in step.entries]
        return found

    def ack(self, durable: int, term: int = 5, checkpoint: Checkpoint | None = None) -> None:
        self.serving.acked(Ack(Term(term), LogIndex(durable), LogIndex(0), checkpoint), self.now)


# -- who may follow -------------------------------------------------------------------------------------------


def hello(**changes: object) -> Hello:
    usual = Hello(
        1, "c1", PEER, JournalId("j2"), Term(5), Term(5), LogIndex(0), LogIndex(0), [Position(LogIndex(0), GENESIS)]
    )
    return usual._replace(**changes)  # type: ignore[arg-type]


def leading(term: int = 5) -> Commitment:
    members = {ME: JournalId("j1"), PEER: JournalId("j2")}
    return Commitment(Member(ME, JournalId("j1")), Term(term), members, 1, LogIndex(0), LogIndex(0), Instant(0))


def ask(
    said: Hello,
    commitment: Commitment | None = None,
    certified: set[str] | None = None,
    live: Member | None = None,
    rig: Rig | None = None,
) -> object:
    log = (rig or Rig()).journal
    return admit(said, ME, "c1", {ME, PEER}, certified, commitment or leading(), live, log)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (hello(protocol=2), Refusal.PROTOCOL, "protocol 2 here 1"),
        (hello(cluster="c2"), Refusal.WRONG_CLUSTER, "'c2'"),
        (hello(node=NodeId("n9")), Refusal.UNKNOWN_NODE, "'n9'"),
        (hello(node=ME), Refusal.UNKNOWN_NODE, "'n1'"),
        (hello(locator=[]), Refusal.PROTOCOL, "locator"),
        (hello(locator=[Position(LogIndex(0), b"short")]), Refusal.PROTOCOL, "locator"),
        (hello(highest_term=Term(6)), Refusal.STALE_LEADER, "has seen 6"),
        (hello(term=Term(6)), Refusal.NOT_LEADING, "not yet in 6"),
        (hello(locator=[Position(LogIndex(3), GENESIS)]), Refusal.DIVERGED, "committed up to index 3"),
    ],
)
def test_who_does_not_belong_here_is_told_why(said: Hello, code: Refusal, words: str) -> None:
    answer = ask(said)
    assert isinstance(answer, Refused) and answer.code is code and words in answer.reason


def test_node_that_does_not_lead_says_so() -> None:
    answer = admit(hello(), ME, "c1", {ME, PEER}, None, None, None, Rig().journal)
    assert answer == Refused(Refusal.NOT_LEADING, "n1 does not lead")


def test_certificate_must_name_the_node() -> None:
    answer = ask(hello(), certified={"n3"})
    assert isinstance(answer, Refused) and answer.code is Refusal.WRONG_IDENTITY
    assert ask(hello(), certified={"n2"}) == StreamAfter(LogIndex(0))


def test_same_journal_that_dials_again_is_let_in_and_another_of_that_name_is_not() -> None:
    assert ask(hello(), live=Member(PEER, JournalId("j2"))) == StreamAfter(LogIndex(0))
    answer = ask(hello(), live=Member(PEER, JournalId("other")))
    assert isinstance(answer, Refused) and answer.code is Refusal.DUPLICATE_NODE


def test_journal_that_ends_before_what_it_acknowledged_has_lost_entries() -> None:
    commitment = leading()
    commitment.acked(Member(PEER, JournalId("j2")), LogIndex(4), Instant(0))
    answer = ask(hello(last=LogIndex(3)), commitment)
    assert isinstance(answer, Refused) and answer.code is Refusal.LOST_ENTRIES and "acknowledged 4" in answer.reason


def test_stream_begins_where_the_logs_part_or_with_a_snapshot() -> None:
    rig = Rig(10)
    theirs = locator(LogIndex(7), LogIndex(7), rig.journal.chain_at)
    assert ask(hello(locator=theirs), rig=rig) == StreamAfter(LogIndex(7))
    rig.journal.note_commit(LogIndex(10))
    rig.journal.save_snapshot(LogIndex(10), b"", b"", lambda: None)
    rig.time.run()
    rig.journal.prune(0, lambda: None)
    rig.time.run()
    assert ask(hello(), rig=rig) == SendSnapshot()


# -- entries --------------------------------------------------------------------------------------------------


def test_stream_starts_at_the_fork_and_goes_on_in_frames() -> None:
    rig = Rig(8)
    rig.commit = LogIndex(2)
    rig.serve(StreamAfter(LogIndex(2)))
    chain = rig.journal.chain_at(LogIndex(2))
    assert chain is not None
    assert rig.next() == Start(ME, Term(5), Position(LogIndex(2), chain), Term(5), LogIndex(2))
    first, second = rig.next(), rig.next()
    assert isinstance(first, Entries) and [e.index for e in first.entries] == [3, 4, 5, 6] and first.commit == 2
    assert isinstance(second, Entries) and [e.index for e in second.entries] == [7, 8]
    assert rig.next() == Wait(Instant(rig.now + HEARTBEAT))


def test_window_bounds_what_is_not_acknowledged() -> None:
    rig = Rig(40)
    rig.serve()
    rig.next()
    assert rig.sent() == list(range(1, 13))  # 100 bytes each: the third frame is the last that begins within 1000
    assert rig.serving.in_flight_bytes == 1200
    rig.ack(3)  # half a frame frees nothing
    assert rig.sent() == []
    rig.ack(4)
    assert rig.sent() == [13, 14, 15, 16]
    rig.ack(16)
    assert rig.serving.in_flight_bytes == 0
    assert rig.sent() == list(range(17, 29))


def test_follower_that_acknowledges_nothing_is_still_told_of_commits() -> None:
    rig = Rig(40)
    rig.serve()
    rig.next()
    rig.sent()
    rig.commit = LogIndex(9)
    assert rig.next() == Wait(Instant(rig.now + NOTICE))
    assert rig.next(NOTICE) == Heartbeat(LogIndex(9))


def test_commit_that_no_entry_carries_is_told_soon_and_once() -> None:
    rig = Rig(2)
    rig.serve()
    rig.next(), rig.next()
    rig.commit = LogIndex(2)
    due = Instant(rig.now + NOTICE)
    assert rig.next() == Wait(due)
    rig.ack(1)
    assert rig.next(NOTICE // 2) == Wait(due), "what happens meanwhile does not put it off"
    assert rig.next(NOTICE // 2) == Heartbeat(LogIndex(2))
    assert rig.next() == Wait(Instant(rig.now + HEARTBEAT))


def test_commit_that_an_entry_carries_needs_no_notice() -> None:
    rig = Rig(1)
    rig.serve()
    rig.next(), rig.next()
    rig.commit = LogIndex(1)
    rig.next()
    rig.append()
    assert rig.sent() == [2]
    assert rig.next() == Wait(Instant(rig.now + HEARTBEAT))


def test_heartbeat_is_due_when_there_was_nothing_to_say() -> None:
    rig = Rig()
    rig.serve()
    rig.next()
    assert rig.next(HEARTBEAT - 1) == Wait(Instant(rig.now + 1))
    assert rig.next(1) == Heartbeat(LogIndex(0))


# -- from the file --------------------------------------------------------------------------------------------


def test_what_is_not_in_memory_is_read_once_and_heartbeats_go_on_meanwhile() -> None:
    rig = Rig(20, cache=5)
    rig.serve()
    rig.next()
    assert rig.next() == ReadEntries(LogIndex(1), SETTINGS.catch_up_bytes, 6)
    assert rig.next() == Wait(Instant(rig.now + HEARTBEAT))
    assert rig.next(HEARTBEAT) == Heartbeat(LogIndex(0))
    rig.serving.entries_read(rig.journal.read(LogIndex(1), 1 << 20, 6))
    first, second = rig.next(), rig.next()
    assert isinstance(first, Entries) and [e.index for e in first.entries] == [1, 2, 3, 4]
    assert isinstance(second, Entries) and [e.index for e in second.entries] == [5, 6]
    assert rig.next() == ReadEntries(LogIndex(7), SETTINGS.catch_up_bytes, 6)


def test_entries_pruned_while_the_follower_catches_up_end_the_stream() -> None:
    rig = Rig(20, cache=5)
    rig.serve()
    rig.next(), rig.next()
    with pytest.raises(StreamEnded, match="entry 1 was pruned while"):
        rig.serving.entries_read([])


def test_fork_that_is_pruned_during_the_handshake_ends_the_stream() -> None:
    rig = Rig(3)
    rig.serve(StreamAfter(LogIndex(9)))
    with pytest.raises(StreamEnded, match="pruned during the handshake"):
        rig.next()


# -- snapshots ------------------------------------------------------------------------------------------------


def test_snapshot_comes_in_chunks_and_the_entries_after_it() -> None:
    rig = Rig(12)
    chain = rig.journal.chain_at(LogIndex(10))
    assert chain is not None
    rig.serve(SendSnapshot())
    assert rig.next() == ReadSnapshot()
    assert rig.next(10 * HEARTBEAT) == Wait(None), "nothing may come before Start"
    with pytest.raises(StreamEnded, match="not within"):
        rig.ack(0)
    rig.serving.snapshot_read(Snapshot(LogIndex(10), Term(5), chain, b"d", b"the book"))
    start = rig.next()
    assert isinstance(start, Start) and start.snapshot == (b"d", 8) and start.fork == (10, chain)
    assert [rig.next(), rig.next(), rig.next()] == [SnapshotChunk(b) for b in (b"the", b" bo", b"ok")]
    assert rig.sent() == [11, 12]
    rig.ack(10)
    assert rig.serving.durable == 10


def test_follower_that_takes_chunks_is_not_silent() -> None:
    rig = Rig(12)
    rig.serve(SendSnapshot())
    rig.next()
    rig.serving.snapshot_read(Snapshot(LogIndex(10), Term(5), b"c" * 32, b"d", b"the book"))
    for _ in range(4):
        rig.next(ns(1.9))
        rig.serving.tick(rig.now)


def test_no_snapshot_to_send_ends_the_stream() -> None:
    rig = Rig()
    rig.serve(SendSnapshot())
    rig.next()
    with pytest.raises(StreamEnded, match="there is none"):
        rig.serving.snapshot_read(None)


# -- acknowledgements -----------------------------------------------------------------------------------------


def test_acknowledgement_of_another_term_is_none() -> None:
    rig = Rig(3)
    rig.serve()
    rig.next(), rig.next()
    with pytest.raises(StreamEnded, match="of term 4 in a stream of term 5"):
        rig.ack(1, term=4)
    assert rig.serving.durable == 0


@pytest.mark.parametrize("index", [1, 4])
def test_acknowledgement_of_more_than_was_sent_or_less_than_before_is_none(index: int) -> None:
    rig = Rig(3)
    rig.serve()
    rig.next(), rig.next()
    rig.ack(2)
    with pytest.raises(StreamEnded, match=rf"acknowledged {index}, not within \[2, 3\]"):
        rig.ack(index)


def test_silent_follower_is_left() -> None:
    rig = Rig(3)
    rig.serve()
    rig.serving.tick(Instant(rig.now + ns(2.0)))
    with pytest.raises(StreamEnded, match=r"silent for 2\.0 s"):
        rig.serving.tick(Instant(rig.now + ns(2.0) + 1))


def test_books_that_differ_end_the_stream_after_the_follower_was_told() -> None:
    rig = Rig(6)
    rig.digests.note(LogIndex(2), b"\xaa")
    rig.serve()
    rig.next(), rig.next()
    rig.ack(3, checkpoint=Checkpoint(LogIndex(2), b"\xaa"))
    rig.ack(3, checkpoint=Checkpoint(LogIndex(1), b"\xbb"))  # of which we know nothing
    assert isinstance(rig.next(), Entries)
    rig.ack(4, checkpoint=Checkpoint(LogIndex(2), b"\xbb"))
    assert rig.serving.durable == 4, "the log is equal, whatever was made of it"
    told = rig.next()
    assert isinstance(told, Refused) and told.code is Refusal.WRONG_DIGEST
    assert "index 2" in told.reason and "aa" in told.reason and "bb" in told.reason
    rig.ack(4)
    with pytest.raises(StreamEnded):
        rig.next()
