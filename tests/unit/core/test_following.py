"""What a follower promises, takes and acknowledges, and when it dials again."""

from __future__ import annotations

import random

import pytest

from chaos.sim.disk import Disk
from cluster.core.errors import BatonError, InvariantViolation, JournalBroken, OutcomeUnknown, StaleTerm
from cluster.core.following import (
    ACKNOWLEDGE,
    Commit,
    Flush,
    Following,
    Install,
    RaiseTerm,
    SendHello,
    SentAway,
    Session,
    WaitRoom,
)
from cluster.core.ids import Instant, LogIndex, NodeId, Term, ns
from cluster.core.log import GENESIS, ChainBroken, Entry, Position, Received, Snapshot, make_entry
from cluster.core.stream import (
    Ack,
    Checkpoint,
    Digests,
    Entries,
    Heartbeat,
    Refusal,
    Refused,
    SnapshotChunk,
    SnapshotHead,
    Start,
    StreamEnded,
    StreamSettings,
)
from cluster.journal_writer import JournalLimits
from tests.support.timeline import Timeline

ME, LEADER = NodeId("n2"), NodeId("n1")
SETTINGS = StreamSettings(hello_s=2.0, silence_s=0.5, backoff_min_s=0.02, backoff_max_s=0.5)
FROM_THE_BEGINNING = Start(LEADER, Term(5), Position(LogIndex(0), GENESIS), Term(0), LogIndex(0))
NOW = Instant(ns(100))


def entries(count: int, term: int = 5, body: bytes = b"", after: Entry | None = None) -> list[Entry]:
    made: list[Entry] = [after] if after else []
    for _ in range(count):
        last = made[-1] if made else None
        made.append(make_entry(last.index if last else 0, last.chain if last else GENESIS, Term(term), 16, 0, body))
    return made[1:] if after else made


class Rig:
    def __init__(self, limits: JournalLimits | None = None) -> None:
        self.time = Timeline()
        self.disk = Disk("n2", "c1", self.time.call_later, lambda: 1, limits)
        self.journal = self.disk.open()
        self.digests = Digests()
        self.following = Following(ME, self.journal, self.digests, SETTINGS, random.Random(1))
        self.applied = LogIndex(0)

    def dial(self, term: int = 5) -> Session:
        self.following.follow(LEADER, Term(term))
        self.session = self.following.dial()
        assert self.session.begin() == [Flush()]
        self.session.flushed(NOW)
        return self.session

    def attach(self, start: Start = FROM_THE_BEGINNING) -> Session:
        session = self.dial(start.term)
        assert session.received(start, NOW) == [RaiseTerm(start.term)]
        self.journal.raise_term(start.term, lambda: None)
        self.time.run()
        assert session.promised(NOW)[-1] is ACKNOWLEDGE
        return session

    def write(self, frame: Entries) -> list[int]:
        """Take it, write it; the indexes that the disk reports."""
        (received,) = self.session.received(frame, NOW)
        assert isinstance(received, Received)
        told: list[int] = []
        self.journal.submit(received.append, told.append, cut_after=received.cut_after)
        self.time.run()
        return told

    def ack(self) -> Ack | None:
        return self.session.ack(self.applied)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- the handshake --------------------------------------------------------------------------------------------


def test_hello_is_said_once_all_is_durable_and_names_the_log(rig: Rig) -> None:
    mine = entries(9, term=3)
    rig.journal.submit(mine, lambda _i: None)
    rig.journal.note_commit(LogIndex(4))
    rig.time.run()
    rig.following.follow(LEADER, Term(5))
    session = rig.following.dial()
    assert not session.reading
    (action,) = session.flushed(NOW)
    assert isinstance(action, SendHello)
    hello = action.hello
    assert (hello.cluster, hello.node, hello.journal, hello.term, hello.highest_term) == ("c1", "n2", "n2-j1", 5, 5)
    assert (hello.last, hello.commit) == (9, 4)
    assert [p.index for p in hello.locator] == [9, 8, 6, 4]


def test_nothing_is_acknowledged_before_the_promise_is_durable(rig: Rig) -> None:
    session = rig.dial()
    assert session.received(FROM_THE_BEGINNING, NOW) == [RaiseTerm(Term(5))]
    assert rig.ack() is None
    assert not session.attached and not session.reading, "what the leader sends by now has to wait"
    assert session.deadline is None, "our own disk is not the leader's silence"
    assert session.promised(NOW) == [Commit(LogIndex(0)), ACKNOWLEDGE]
    assert rig.ack() == Ack(Term(5), LogIndex(0), LogIndex(0))
    assert session.attached and session.reading


def test_leader_of_a_later_term_than_we_were_told_is_followed(rig: Rig) -> None:
    rig.dial(5)
    assert rig.session.received(FROM_THE_BEGINNING._replace(term=Term(7)), NOW) == [RaiseTerm(Term(7))]
    rig.session.promised(NOW)
    assert rig.session.term == 7
    assert rig.ack() == Ack(Term(7), LogIndex(0), LogIndex(0))


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (FROM_THE_BEGINNING._replace(term=Term(4)), StaleTerm, "still leads in term 4, etcd says 5"),
        (FROM_THE_BEGINNING._replace(leader=NodeId("n3")), StreamEnded, "n3 answered at the address of n1"),
        (
            FROM_THE_BEGINNING._replace(snapshot=SnapshotHead(b"", 1 << 40)),
            InvariantViolation,
            "more than is possible",
        ),
        (Heartbeat(LogIndex(0)), StreamEnded, "sent Heartbeat while greeting"),
        (Refused(Refusal.NOT_LEADING, "n1 does not lead"), SentAway, "n1 does not lead"),
    ],
)
def test_start_that_is_none_ends_the_session(rig: Rig, start: Start, error: type[Exception], words: str) -> None:
    rig.dial()
    with pytest.raises(error, match=words):
        rig.session.received(start, NOW)


def test_term_that_the_journal_has_seen_meanwhile_is_refused(rig: Rig) -> None:
    rig.dial()
    rig.journal.raise_term(Term(6), lambda: None)
    with pytest.raises(StaleTerm, match="term 6 has been seen"):
        rig.session.received(FROM_THE_BEGINNING, NOW)


def test_term_closed_while_the_promise_is_written_is_not_opened(rig: Rig) -> None:
    rig.dial()
    rig.session.received(FROM_THE_BEGINNING, NOW)
    rig.following.stop(closing=Term(5))
    with pytest.raises(StaleTerm, match="closed terms up to 5"):
        rig.session.promised(NOW)
    assert rig.ack() is None


# -- a snapshot -----------------------------------------------------------------------------------------------


def with_snapshot(size: int) -> Start:
    return Start(
        LEADER, Term(5), Position(LogIndex(40), b"c" * 32), Term(4), LogIndex(45), SnapshotHead(b"digest", size)
    )


def test_snapshot_is_installed_after_the_promise_and_acknowledged_after_that(rig: Rig) -> None:
    rig.digests.note(LogIndex(1), b"old")
    session = rig.dial()
    assert session.received(with_snapshot(8), NOW) == []
    assert session.received(SnapshotChunk(b"the "), NOW) == []
    assert session.received(SnapshotChunk(b"book"), NOW) == [RaiseTerm(Term(5))]
    snapshot = Snapshot(LogIndex(40), Term(4), b"c" * 32, b"digest", b"the book")
    assert session.promised(NOW) == [Install(snapshot)]
    assert rig.ack() is None
    rig.journal.install_snapshot(snapshot, lambda: None)
    rig.time.run()
    assert session.installed(NOW) == [Commit(LogIndex(40)), ACKNOWLEDGE]
    assert rig.ack() == Ack(Term(5), LogIndex(40), LogIndex(0)), "no digest of the book that was replaced"


def test_snapshot_of_what_we_have_is_not_installed(rig: Rig) -> None:
    mine = entries(6, term=3)
    rig.journal.submit(mine, lambda _i: None)
    rig.time.run()
    session = rig.dial()
    session.received(
        Start(LEADER, Term(5), Position(LogIndex(4), mine[3].chain), Term(3), LogIndex(4), SnapshotHead(b"", 0)), NOW
    )
    assert session.promised(NOW) == [Commit(LogIndex(4)), ACKNOWLEDGE]
    assert rig.journal.last.index == 6


def test_something_else_in_place_of_a_chunk_ends_the_session(rig: Rig) -> None:
    rig.dial()
    rig.session.received(with_snapshot(8), NOW)
    with pytest.raises(StreamEnded, match="sent Heartbeat while fetching"):
        rig.session.received(Heartbeat(LogIndex(0)), NOW)


# -- entries --------------------------------------------------------------------------------------------------


def test_entries_are_acknowledged_and_committed_when_they_are_durable_here(rig: Rig) -> None:
    session = rig.attach()
    new = entries(3)
    frame = Entries(new, LogIndex(2))
    assert session.received(frame, NOW) == [Received(None, new)]
    assert rig.ack() == Ack(Term(5), LogIndex(0), LogIndex(0))
    assert session.durable(LogIndex(1)) == [Commit(LogIndex(1)), ACKNOWLEDGE]
    assert session.durable(LogIndex(3)) == [Commit(LogIndex(2)), ACKNOWLEDGE]
    assert rig.ack() == Ack(Term(5), LogIndex(3), LogIndex(0))
    assert session.received(Heartbeat(LogIndex(9)), NOW) == [Commit(LogIndex(3)), ACKNOWLEDGE]


def test_entries_that_we_have_are_acknowledged_at_once(rig: Rig) -> None:
    mine = entries(4, term=3)
    rig.journal.submit(mine, lambda _i: None)
    rig.time.run()
    session = rig.attach()
    assert session.received(Entries(mine, LogIndex(3)), NOW) == [Commit(LogIndex(3)), ACKNOWLEDGE]
    assert rig.ack() == Ack(Term(5), LogIndex(4), LogIndex(0))
    assert session.took_entries


def test_old_tail_is_cut_where_it_differs(rig: Rig) -> None:
    shared = entries(2, term=3)
    rig.journal.submit([*shared, *entries(3, term=3, body=b"lost", after=shared[-1])], lambda _i: None)
    rig.time.run()
    rig.attach()
    new = entries(2, term=4, after=shared[-1])
    assert rig.session.received(Entries([*shared, *new], LogIndex(0)), NOW) == [Received(LogIndex(2), new)]
    assert rig.ack() == Ack(Term(5), LogIndex(2), LogIndex(0))


def test_while_the_disk_is_behind_nothing_more_is_read(rig: Rig) -> None:
    rig = Rig(JournalLimits(queue_entries=4))
    session = rig.attach()
    new = entries(6)
    rig.journal.submit(new[:4], lambda _i: None)  # as if written by us: the queue is full
    assert session.received(Entries(new, LogIndex(0)), NOW) == [WaitRoom()]
    assert not session.reading and session.deadline is None
    with pytest.raises(InvariantViolation, match="while none may be"):
        session.received(Heartbeat(LogIndex(0)), NOW)
    assert session.room(NOW) == [Received(None, new)]
    assert session.reading and session.deadline is not None


def test_latest_digest_is_told_once(rig: Rig) -> None:
    rig.attach()
    rig.digests.note(LogIndex(256), b"d1")
    first, second = rig.ack(), rig.ack()
    assert first is not None and first.checkpoint == Checkpoint(LogIndex(256), b"d1")
    assert second is not None and second.checkpoint is None
    rig.digests.note(LogIndex(512), b"d2")
    third = rig.ack()
    assert third is not None and third.checkpoint == Checkpoint(LogIndex(512), b"d2")


def test_broken_journal_acknowledges_no_heartbeat(rig: Rig) -> None:
    session = rig.attach()
    rig.disk.fail()
    rig.journal.flush(lambda: None)
    rig.time.run()
    with pytest.raises(JournalBroken):
        session.received(Heartbeat(LogIndex(0)), NOW)


def test_after_the_term_is_closed_what_the_disk_finishes_is_not_acknowledged(rig: Rig) -> None:
    session = rig.attach()
    new = entries(3)
    session.received(Entries(new, LogIndex(3)), NOW)
    rig.following.stop(closing=Term(5))
    assert session.durable(LogIndex(3)) == [Commit(LogIndex(3)), ACKNOWLEDGE]
    assert rig.ack() is None
    with pytest.raises(StaleTerm):
        session.received(Entries(entries(1, after=new[-1]), LogIndex(3)), NOW)


# -- silence --------------------------------------------------------------------------------------------------


def test_leader_that_does_not_answer_is_silent(rig: Rig) -> None:
    session = rig.dial()
    session.tick(Instant(NOW + ns(2.0) - 1))
    with pytest.raises(StreamEnded, match="n1 was silent") as ended:
        session.tick(Instant(NOW + ns(2.0)))
    assert ended.value.silent


def test_every_message_moves_the_deadline(rig: Rig) -> None:
    session = rig.attach()
    later = Instant(NOW + ns(0.4))
    session.received(Heartbeat(LogIndex(0)), later)
    session.tick(Instant(later + ns(0.5) - 1))
    with pytest.raises(StreamEnded):
        session.tick(Instant(later + ns(0.5)))


# -- whom to follow -------------------------------------------------------------------------------------------


def test_same_leader_told_twice_is_followed_already(rig: Rig) -> None:
    assert rig.following.follow(LEADER, Term(5))
    assert not rig.following.follow(LEADER, Term(5))
    assert rig.following.follow(LEADER, Term(6))
    rig.following.stop()
    assert rig.following.follow(LEADER, Term(6))


def test_another_leader_ends_all_acknowledgements_of_the_one_before(rig: Rig) -> None:
    rig.attach()
    assert rig.ack() is not None
    rig.following.follow(NodeId("n3"), Term(5))
    assert rig.ack() is None


def test_term_lower_than_what_was_seen_is_not_followed_and_nothing_changes(rig: Rig) -> None:
    rig.attach()
    with pytest.raises(StaleTerm):
        rig.following.follow(NodeId("n3"), Term(4))
    assert rig.following.target == (LEADER, 5)
    assert rig.ack() is not None


def test_closing_a_term_closes_the_one_that_is_followed_too(rig: Rig) -> None:
    rig.attach()
    rig.following.stop(closing=Term(3))
    with pytest.raises(StaleTerm, match="closed terms up to 5"):
        rig.following.follow(LEADER, Term(5))


def test_nobody_to_follow_nobody_to_dial(rig: Rig) -> None:
    with pytest.raises(InvariantViolation):
        rig.following.dial()
    with pytest.raises(InvariantViolation):
        rig.following.ended(StreamEnded("?"))


# -- the end of a session -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StreamEnded("over"), StaleTerm("old"), OutcomeUnknown("the disk did not answer")])
def test_dials_again_after_what_passes(rig: Rig, error: BatonError) -> None:
    rig.attach()
    redial = rig.following.ended(error)
    assert ns(0.01) <= redial.after <= ns(0.02)
    assert not redial.renew
    assert rig.ack() is None
    rig.attach()
    assert rig.ack() is not None


def test_waits_longer_each_time_until_a_stream_works(rig: Rig) -> None:
    waits = []
    for _ in range(8):
        rig.dial()
        waits.append(rig.following.ended(StreamEnded("refused")).after)
    for n, wait in enumerate(waits):
        longest = min(0.5, 0.02 * 2**n)
        assert ns(longest / 2) <= wait <= ns(longest)
    assert (rig.following.attempts, rig.following.failures) == (8, 8)
    rig.attach()
    assert rig.following.ended(StreamEnded("over")).after <= ns(0.02)


def test_silent_leader_is_dialled_over_a_new_connection(rig: Rig) -> None:
    rig.attach()
    assert rig.following.ended(StreamEnded("silent", silent=True)).renew


def test_why_the_leader_sent_us_away_is_kept_until_a_stream_works(rig: Rig) -> None:
    rig.dial()
    rig.following.ended(SentAway(Refused(Refusal.NOT_LEADING, "n1 does not lead")))
    assert rig.following.refused == "n1 does not lead"
    rig.attach()
    rig.following.ended(StreamEnded("over"))
    assert rig.following.refused is None


@pytest.mark.parametrize("code", [Refusal.DIVERGED, Refusal.LOST_ENTRIES, Refusal.WRONG_DIGEST])
def test_refusal_that_dialling_does_not_mend_stops_the_node(rig: Rig, code: Refusal) -> None:
    rig.attach()
    with pytest.raises(InvariantViolation, match="refused us: the reason"):
        rig.following.ended(SentAway(Refused(code, "the reason")))
    assert rig.following.refused == "the reason"
    assert rig.ack() is None


def test_frames_broken_three_times_running_stop_the_node(rig: Rig) -> None:
    broken = ChainBroken(1, "forged")
    for _ in range(2):
        rig.attach()
        rig.following.ended(broken)
    rig.attach()
    with pytest.raises(ChainBroken):
        rig.following.ended(broken)


def test_good_frames_in_between_start_the_count_anew(rig: Rig) -> None:
    broken = ChainBroken(1, "forged")
    for _ in range(2):
        rig.attach()
        rig.following.ended(broken)
    rig.attach()
    rig.write(Entries(entries(1), LogIndex(0)))
    rig.following.ended(StreamEnded("over"))
    rig.attach()
    rig.following.ended(broken)


@pytest.mark.parametrize("error", [JournalBroken("the disk"), InvariantViolation("histories differ")])
def test_what_somebody_has_to_look_at_stops_the_node(rig: Rig, error: BatonError) -> None:
    rig.attach()
    with pytest.raises(type(error)):
        rig.following.ended(error)
    assert rig.ack() is None
