"""Where two logs part, what is cut, and what a follower may acknowledge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.errors import InvariantViolation, StaleTerm
from cluster.core.ids import LogIndex, Term
from cluster.core.log import (
    GENESIS,
    ChainBroken,
    Diverged,
    Entry,
    FollowerLog,
    Position,
    SendSnapshot,
    StreamAfter,
    fork_point,
    locator,
    make_entry,
    verify,
)


class MemoryLog:
    """A log in a list, for tests. base: entries up to it are pruned."""

    def __init__(self, entries: list[Entry] | None = None, base: int = 0) -> None:
        self.entries, self.base = list(entries or []), base

    def append(self, term: int, body: bytes = b"", count: int = 1) -> MemoryLog:
        for _ in range(count):
            last = self.entries[-1] if self.entries else None
            self.entries.append(
                make_entry(last.index if last else 0, last.chain if last else GENESIS, Term(term), 16, 7, body)
            )
        return self

    def copy(self, upto: int | None = None) -> MemoryLog:
        return MemoryLog(self.entries[:upto], self.base)

    @property
    def last(self) -> LogIndex:
        return LogIndex(len(self.entries))

    def chain_at(self, index: LogIndex) -> bytes | None:
        if index < self.base or index > len(self.entries):
            return None
        return self.entries[index - 1].chain if index else GENESIS

    def position(self, index: int) -> Position:
        chain = self.chain_at(LogIndex(index))
        assert chain is not None
        return Position(LogIndex(index), chain)

    def term_at(self, index: int) -> Term:
        return self.entries[index - 1].term if index else Term(0)

    def take(self, received_cut: LogIndex | None, append: list[Entry]) -> None:
        if received_cut is not None:
            del self.entries[received_cut:]
        self.entries += append


def opened(mine: MemoryLog, leader: MemoryLog, term: int, commit: int, at: int) -> FollowerLog:
    follower = FollowerLog(Term(0), LogIndex(commit))
    follower.open_term(Term(term), leader.position(at), leader.term_at(at), mine.last, mine.chain_at)
    return follower


# -- entries ------------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.integers(0, 5))
def test_any_changed_field_of_any_entry_breaks_the_chain(which: int, field: int) -> None:
    entries = MemoryLog().append(1, b"a", 5).entries
    changed = list(entries[which])
    changed[field] = changed[field] + (b"!" if isinstance(changed[field], bytes) else 1)
    entries[which] = Entry(*changed)
    with pytest.raises(ChainBroken):
        verify(0, GENESIS, entries)


def test_a_term_that_falls_breaks_the_chain_although_the_hashes_fit() -> None:
    entries = MemoryLog().append(5).append(4).entries
    with pytest.raises(ChainBroken, match="term fell from 5 to 4"):
        verify(0, GENESIS, entries)


# -- locator and fork point -----------------------------------------------------------------------------------


def test_locator_doubles_its_steps_and_ends_at_the_commit_index() -> None:
    mine = MemoryLog().append(1, count=100)
    assert [p.index for p in locator(mine.last, LogIndex(30), mine.chain_at)] == [100, 99, 97, 93, 85, 69, 37, 30]


def test_locator_of_an_empty_log_is_the_beginning() -> None:
    assert locator(LogIndex(0), LogIndex(0), MemoryLog().chain_at) == [Position(LogIndex(0), GENESIS)]


def test_locator_refuses_a_log_with_a_hole() -> None:
    with pytest.raises(InvariantViolation, match="no chain"):
        locator(LogIndex(3), LogIndex(0), lambda i: None if i == 2 else GENESIS)


@given(shared=st.integers(0, 60), mine=st.integers(0, 40), theirs=st.integers(0, 40), commit=st.integers(0, 60))
def test_fork_point_is_shared_and_not_below_the_commit_index(shared: int, mine: int, theirs: int, commit: int) -> None:
    common = MemoryLog().append(1, count=shared)
    leader, follower = common.copy().append(3, count=mine), common.copy().append(2, count=theirs)
    floor = LogIndex(min(commit, shared))
    found = fork_point(locator(follower.last, floor, follower.chain_at), LogIndex(0), leader.last, leader.chain_at)
    assert isinstance(found, StreamAfter)
    assert floor <= found.index <= shared
    assert leader.chain_at(found.index) == follower.chain_at(found.index)


def test_what_is_pruned_at_the_leader_needs_a_snapshot() -> None:
    leader, follower = MemoryLog().append(1, count=50), MemoryLog().append(1, count=10)
    leader.base = 20
    there = locator(follower.last, LogIndex(10), follower.chain_at)
    assert fork_point(there, LogIndex(20), leader.last, leader.chain_at) == SendSnapshot()


def test_a_committed_entry_that_the_leader_lacks_is_a_divergence() -> None:
    common = MemoryLog().append(1, count=10)
    ahead, other = common.copy().append(2, count=5), common.copy().append(3, count=9)
    there = locator(ahead.last, LogIndex(15), ahead.chain_at)
    assert isinstance(fork_point(there, LogIndex(0), common.last, common.chain_at), Diverged)
    assert isinstance(fork_point(there, LogIndex(0), other.last, other.chain_at), Diverged)


# -- what a follower takes --------------------------------------------------------------------------------------


@given(
    shared=st.integers(0, 30),
    mine=st.integers(0, 20),
    theirs=st.integers(1, 20),
    commit=st.integers(0, 30),
    frame=st.integers(1, 7),
)
def test_the_old_tail_is_cut_exactly_at_the_fork_and_shared_entries_never(
    shared: int, mine: int, theirs: int, commit: int, frame: int
) -> None:
    # The locator may start the stream below the fork; entries in between may be committed without our knowing it
    # (we acknowledged them, the news has not reached us). None of them may leave the disk for an instant.
    common = MemoryLog().append(1, count=shared)
    leader, follower = common.copy().append(3, count=theirs), common.copy().append(2, count=mine)
    floor = LogIndex(min(commit, shared))
    found = fork_point(locator(follower.last, floor, follower.chain_at), LogIndex(0), leader.last, leader.chain_at)
    assert isinstance(found, StreamAfter)
    machine = opened(follower, leader, 3, floor, found.index)
    for start in range(found.index, leader.last, frame):
        received = machine.receive(leader.entries[start : start + frame])
        assert received.cut_after is None or received.cut_after == shared
        follower.take(received.cut_after, list(received.append))
        assert follower.entries[:shared] == common.entries
        durable = machine.ack()
        assert durable is not None and durable[1] <= max(shared, start)  # nothing unwritten
        machine.written(follower.last)
        assert machine.ack() == (Term(3), min(start + frame, leader.last))
    assert follower.entries == leader.entries


def test_an_unchecked_tail_is_never_acknowledged() -> None:
    common = MemoryLog().append(1, count=10)
    follower, leader = common.copy().append(2, count=5), common.copy().append(3)
    machine = opened(follower, leader, 3, 0, 10)
    machine.written(LogIndex(15))  # the old tail is durable, and none of the leader's business
    assert machine.ack() == (Term(3), LogIndex(10))


def test_cutting_below_the_commit_index_stops_the_node() -> None:
    common = MemoryLog().append(1, count=10)
    follower, leader = common.copy().append(2, count=5), common.copy().append(3, count=5)
    machine = opened(follower, leader, 3, 12, 10)
    with pytest.raises(InvariantViolation, match="everything up to 12 is committed"):
        machine.receive(leader.entries[10:])


def test_a_lower_term_than_the_highest_seen_is_refused() -> None:
    machine = FollowerLog(Term(7), LogIndex(0))
    with pytest.raises(StaleTerm, match="term 7 has been seen"):
        machine.open_term(Term(6), Position(LogIndex(0), GENESIS), Term(0), LogIndex(0), MemoryLog().chain_at)


def test_what_was_learned_elsewhere_counts_and_is_never_unlearned() -> None:
    machine = FollowerLog(Term(3), LogIndex(5))
    machine.learn(Term(7), LogIndex(9))
    machine.learn(Term(4), LogIndex(2))
    assert (machine.highest_term, machine.commit) == (7, 9)
    with pytest.raises(StaleTerm):
        machine.may_follow(Term(6))


def test_after_close_term_nothing_of_it_is_taken_or_acknowledged_ever_again() -> None:
    leader = MemoryLog().append(5, count=4)
    mine = MemoryLog()
    machine = opened(mine, leader, 5, 0, 0)
    mine.take(None, list(machine.receive(leader.entries[:2]).append))
    machine.close_term(Term(5))
    machine.written(LogIndex(2))  # the disk was still at work
    assert machine.ack() is None
    with pytest.raises(StaleTerm):
        machine.receive(leader.entries[2:])
    with pytest.raises(StaleTerm, match="closed terms up to 5"):
        machine.open_term(Term(5), leader.position(2), Term(5), mine.last, mine.chain_at)
    machine.open_term(Term(6), leader.position(2), Term(5), mine.last, mine.chain_at)
    assert machine.ack() == (Term(6), LogIndex(2))


def test_a_paused_term_may_be_opened_again() -> None:
    leader = MemoryLog().append(5)
    machine = opened(leader.copy(), leader, 5, 0, 1)
    machine.pause()
    assert machine.ack() is None
    machine.open_term(Term(5), leader.position(1), Term(5), leader.last, leader.chain_at)
    assert machine.ack() == (Term(5), LogIndex(1))


def test_a_fork_that_is_not_in_our_log_is_refused() -> None:
    leader, mine = MemoryLog().append(5, b"x"), MemoryLog().append(5, b"y")
    with pytest.raises(ChainBroken, match="we do not"):
        opened(mine, leader, 5, 0, 1)


@pytest.mark.parametrize("first", [0, 2])
def test_a_frame_that_does_not_follow_is_refused(first: int) -> None:
    leader = MemoryLog().append(5, count=4)
    machine = opened(MemoryLog(leader.entries[:1]), leader, 5, 0, 1)
    with pytest.raises(ChainBroken, match="expected index 2"):
        machine.receive(leader.entries[first:])


def test_an_entry_of_a_later_term_than_its_leader_is_refused() -> None:
    leader = MemoryLog().append(6)
    machine = opened(MemoryLog(), leader, 5, 0, 0)
    with pytest.raises(ChainBroken, match="its term 6 is not within"):
        machine.receive(leader.entries)


def test_a_forged_body_is_refused() -> None:
    leader = MemoryLog().append(5)
    machine = opened(MemoryLog(), leader, 5, 0, 0)
    with pytest.raises(ChainBroken, match="not the hash"):
        machine.receive([leader.entries[0]._replace(body=b"forged")])


def test_the_commit_index_never_passes_what_is_durable_here() -> None:
    leader = MemoryLog().append(5, count=4)
    machine = opened(MemoryLog(), leader, 5, 0, 0)
    machine.receive(leader.entries)
    assert machine.leader_committed(LogIndex(4)) == 0
    machine.written(LogIndex(3))
    assert machine.leader_committed(LogIndex(4)) == 3
    assert machine.leader_committed(LogIndex(1)) == 3  # never falls
