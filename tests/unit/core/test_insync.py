"""The in-sync set: what is committed is on every node that etcd names, whatever etcd answers and whenever.

The state machine at the end plays leader, standbys, and an etcd that loses and delays requests and replies. The tests
before it are the situations that the rules exist for, one each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.core.errors import InvariantViolation
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term, ns
from cluster.core.insync import (
    Action,
    CommitAdvanced,
    Commitment,
    Deposed,
    Limits,
    Member,
    MembersChanged,
    ProposeChange,
    Protection,
)

MS = 1_000_000
A, B, C = (Member(NodeId(n), JournalId(f"j{n}")) for n in "abc")


def members(*who: Member) -> dict[NodeId, JournalId]:
    return {m.node: m.journal for m in who}


class Leader:
    """A Commitment with a clock in ms, remembering what it did. Its disk holds everything at once unless told."""

    def __init__(self, *insync: Member, last: int = 10, commit: int = 10, **options: object) -> None:
        self.now = 1000.0
        self.seen: list[Action] = []
        self.machine = Commitment(
            A,
            Term(5),
            members(A, *insync),
            7,
            LogIndex(last),
            LogIndex(commit),
            self.at,
            **options,  # type: ignore[arg-type]
        )
        self.do(self.machine.start(self.at))

    @property
    def at(self) -> Instant:
        return Instant(int(self.now * MS))

    def do(self, actions: Iterable[Action]) -> None:
        self.seen += actions

    def wrote(self, index: int) -> None:
        self.do(self.machine.local_durable(LogIndex(index), self.at))

    def acked(self, who: Member, index: int) -> None:
        self.do(self.machine.acked(who, LogIndex(index), self.at))

    def run(self, ms: float, *alive: tuple[Member, int]) -> None:
        """Let time pass in ticks of 10 ms; `alive` acknowledge the same index at each heartbeat."""
        for _ in range(int(ms // 10)):
            self.now += 10
            for who, index in alive:
                self.acked(who, index)
            self.do(self.machine.tick(self.at))

    def done(self, revision: int) -> None:
        self.do(self.machine.done(revision, self.at))

    @property
    def proposed(self) -> list[dict[NodeId, JournalId]]:
        return [dict(a.members) for a in self.seen if isinstance(a, ProposeChange)]

    @property
    def commit(self) -> int:
        return self.machine.commit


# -- commits ------------------------------------------------------------------------------------------------


def test_commit_is_what_every_member_and_we_have_on_disk() -> None:
    leader = Leader(B, C)
    leader.acked(B, 12)
    leader.acked(C, 11)
    assert leader.commit == 10  # our own disk is behind
    leader.wrote(13)
    assert leader.commit == 11
    leader.acked(C, 13)
    assert leader.commit == 12
    assert [a.index for a in leader.seen if isinstance(a, CommitAdvanced)] == [11, 12]


def test_a_late_acknowledgement_never_takes_anything_back() -> None:
    leader = Leader(B)
    leader.wrote(12)
    leader.acked(B, 12)
    leader.acked(B, 11)
    assert leader.commit == 12


def test_what_was_inherited_is_committed_only_together_with_an_entry_of_our_own_term() -> None:
    """Else B, with entry 10 of an old term at its end, would hold a committed entry that a journal with a later end
    lacks: of one that led in between, and wrote another entry 10. It matters once `insync` is lost (core/rebase.py)."""
    leader = Leader(B, commit=9)
    leader.acked(B, 10)
    leader.wrote(11)
    assert leader.commit == 9
    leader.acked(B, 11)
    assert leader.commit == 11


def test_a_lone_leader_commits_with_its_own_disk() -> None:
    leader = Leader()
    leader.wrote(11)
    assert leader.commit == 11


def test_a_node_that_insync_does_not_name_cannot_even_begin() -> None:
    with pytest.raises(InvariantViolation, match="must not lead"):
        Commitment(A, Term(5), members(B), 7, LogIndex(0), LogIndex(0), Instant(0))
    wiped = {A.node: JournalId("another")}
    with pytest.raises(InvariantViolation, match="must not lead"):
        Commitment(A, Term(5), wiped, 7, LogIndex(0), LogIndex(0), Instant(0))


# -- leaving --------------------------------------------------------------------------------------------------


def test_a_late_member_is_removed_first_and_only_then_done_without() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    leader.run(240, (B, 10))
    assert leader.proposed == []
    leader.run(30, (B, 10))
    assert leader.proposed == [members(A)]
    assert leader.commit == 10  # not yet: etcd may still let B lead
    leader.done(8)
    assert leader.commit == 11


def test_a_member_that_acknowledges_only_after_its_removal_was_asked_for_still_counts_until_then() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(12)
    leader.run(300, (B, 10))
    leader.acked(B, 11)
    assert leader.commit == 11


def test_a_member_whose_connection_broke_gets_a_short_grace_while_something_waits() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    leader.do(leader.machine.gone(B, leader.at))
    leader.run(40)
    assert leader.proposed == []
    leader.run(20)
    assert leader.proposed == [members(A)]


def test_a_member_that_is_back_within_the_grace_stays() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    leader.do(leader.machine.gone(B, leader.at))
    leader.run(40)
    leader.acked(B, 11)
    leader.run(200, (B, 11))
    assert leader.proposed == []


def test_an_idle_silent_member_goes_too() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.run(490)
    assert leader.proposed == []
    leader.run(30)
    assert leader.proposed == [members(A)]


def test_when_our_own_disk_stalls_nobody_else_is_blamed() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.run(2000, (B, 10))  # entries were appended and sent; our disk reports none of them, B's neither
    assert leader.proposed == []


def test_a_pause_of_our_own_counts_against_nobody() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    leader.run(10, (B, 10))
    leader.now += 5000  # SIGSTOP, SIGCONT; B's acknowledgements wait in our socket buffers
    leader.do(leader.machine.tick(leader.at))
    assert leader.proposed == []
    leader.acked(B, 11)
    leader.run(200, (B, 11))
    assert leader.proposed == []


def test_a_leader_that_is_always_late_still_drops_a_dead_member() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    for _ in range(20):
        leader.now += 130
        leader.do(leader.machine.tick(leader.at))
    assert leader.proposed


def test_a_node_presumed_dead_is_removed_at_once() -> None:
    leader = Leader(B, C, presumed_gone=[B.node])
    assert leader.proposed == [members(A, C)]


def test_a_wiped_disk_is_not_mistaken_for_the_one_that_held_everything() -> None:
    wiped = Member(B.node, JournalId("new"))
    leader = Leader(B)
    leader.acked(B, 10)
    leader.do(leader.machine.gone(B, leader.at))
    leader.acked(wiped, 0)
    leader.wrote(11)
    leader.run(10, (wiped, 0))
    assert leader.proposed == [members(A)]
    leader.done(8)
    leader.acked(wiped, 11)
    assert leader.proposed[-1] == members(A, wiped)


# -- joining --------------------------------------------------------------------------------------------------


def test_a_follower_that_has_caught_up_is_added_first_and_counts_from_then_on() -> None:
    leader = Leader()
    leader.wrote(11)
    leader.acked(B, 11)
    assert leader.proposed == [members(A, B)]
    leader.wrote(12)
    assert leader.commit == 11  # the addition may have happened already
    leader.acked(B, 12)
    assert leader.commit == 12


def test_a_joiner_must_hold_what_may_be_committed_not_only_what_we_know_to_be() -> None:
    # Found by InSyncWorld. We inherited 1-10 and know of no commit; B attached with nothing and was named at once.
    leader = Leader(C, last=10, commit=0)
    leader.run(100, (C, 10), (B, 0))
    assert leader.proposed == []
    leader.acked(B, 9)
    assert leader.proposed == []
    leader.acked(B, 10)
    assert leader.proposed == [members(A, B, C)]


def test_a_set_that_protects_enough_takes_nobody_in_while_the_term_is_young() -> None:
    leader = Leader(C, last=10, commit=10)
    leader.run(90, (C, 10), (B, 10))
    assert leader.proposed == []
    leader.wrote(11)
    leader.acked(C, 11)
    assert leader.commit == 11  # without B
    leader.acked(B, 11)
    leader.run(10, (C, 11), (B, 11))
    assert leader.proposed == [members(A, B, C)]


@pytest.mark.parametrize("required", [0, 1])
def test_a_leader_alone_takes_in_at_once_whatever_is_required(required: int) -> None:
    leader = Leader(last=10, commit=10, min_standbys=required)
    leader.acked(B, 10)
    assert leader.proposed == [members(A, B)]


def test_a_set_that_protects_too_little_takes_in_at_once() -> None:
    leader = Leader(B, last=10, commit=10, min_standbys=2)
    leader.acked(B, 10)
    leader.acked(C, 10)
    assert leader.proposed == [members(A, B, C)]


def test_a_lost_reply_to_an_addition_keeps_it_counted() -> None:
    # 1. A proposes {A, B}. 2. etcd does it, the reply is lost. 3. A must not commit alone: B may win the lease now.
    leader = Leader()
    leader.acked(B, 10)
    leader.do(leader.machine.unknown(leader.at))
    leader.wrote(11)
    leader.run(100, (B, 10))
    assert leader.commit == 10
    assert leader.proposed == [members(A, B)] * 2  # asked again, the very same
    leader.do(leader.machine.refused(members(A, B), 8, leader.at))  # the first attempt had been carried out
    assert leader.machine.members == members(A, B)


def test_reading_the_old_state_does_not_settle_an_unknown_change() -> None:
    leader = Leader()
    leader.acked(B, 10)
    leader.do(leader.machine.gone(B, leader.at))
    leader.do(leader.machine.refused(members(A), 7, leader.at))  # revision unchanged: the lost request may still land
    leader.wrote(11)
    leader.run(40)
    assert leader.commit == 10  # although B is neither in the set, as far as we know, nor connected
    leader.run(100)
    assert leader.proposed == [members(A, B)] * 2  # the only way to know: the same again
    leader.done(8)
    leader.run(10)
    assert leader.proposed[-1] == members(A)
    leader.done(9)
    assert leader.commit == 11


def test_no_answer_at_all_is_asked_for_again() -> None:
    leader = Leader()
    leader.acked(B, 10)
    leader.run(1100, (B, 10))
    assert leader.proposed == [members(A, B)] * 2


def test_the_late_answer_of_a_settled_change_is_ignored() -> None:
    leader = Leader()
    leader.acked(B, 10)
    leader.do(leader.machine.unknown(leader.at))
    leader.run(60, (B, 10))
    leader.done(8)
    leader.run(40, (B, 10))
    leader.acked(C, 10)  # a second change is under way
    assert leader.proposed[-1] == members(A, B, C)
    leader.do(leader.machine.refused(members(A, B), 8, leader.at))  # the first attempt's answer, late
    leader.done(8)
    assert leader.machine.change_under_way
    leader.done(9)
    assert leader.machine.members == members(A, B, C)


def test_under_load_a_follower_that_is_always_a_little_behind_still_joins() -> None:
    leader = Leader()
    index = 10
    for _ in range(50):
        index += 1
        leader.now += 1
        leader.wrote(index)
        leader.acked(B, index - 1)
    assert leader.proposed == [members(A, B)]
    proposal = next(a for a in leader.seen if isinstance(a, ProposeChange))
    before = leader.seen[: leader.seen.index(proposal)]
    committed = max(a.index for a in before if isinstance(a, CommitAdvanced))
    assert leader.machine.durable_of(B) >= committed


def test_a_follower_that_is_never_complete_when_counted_is_given_up_again() -> None:
    leader = Leader()
    leader.wrote(11)
    leader.acked(B, 10)  # a little behind: counted, so that it can catch up
    leader.wrote(12)
    assert leader.commit == 11
    leader.run(200, (B, 10))  # and then it stalls
    assert leader.commit == 12
    assert leader.proposed == []


def test_a_member_that_keeps_dropping_out_has_to_wait_longer_each_time() -> None:
    leader = Leader()
    leader.acked(B, 10)
    leader.done(8)
    revision, waits = 8, []
    for _ in range(4):
        leader.do(leader.machine.gone(B, leader.at))
        leader.wrote(leader.machine.commit + 1)
        leader.run(70)
        leader.done(revision := revision + 1)
        gone_at, asked = leader.now, len(leader.proposed)
        while len(leader.proposed) == asked:
            leader.run(10, (B, leader.commit))
        waits.append(leader.now - gone_at)
        leader.done(revision := revision + 1)
    assert waits[0] <= 20  # the first time is free: a restart
    assert waits[1] < waits[2] < waits[3]


# -- other leaders, protection, the end -----------------------------------------------------------------------


def test_a_set_without_us_means_that_another_leads() -> None:
    leader = Leader(B)
    leader.acked(B, 10)
    leader.wrote(11)
    leader.run(300, (B, 10))
    leader.do(leader.machine.refused(members(B, C), 9, leader.at))
    assert any(isinstance(a, Deposed) for a in leader.seen)
    leader.acked(B, 11)
    leader.run(100, (B, 11))
    assert leader.commit == 10


@pytest.mark.parametrize(("policy", "may_trade"), [("trade", True), ("halt", False)])
def test_an_unprotected_leader_shouts_and_follows_the_policy(policy: str, may_trade: bool) -> None:
    leader = Leader(B, unprotected=policy)
    leader.acked(B, 10)
    assert leader.machine.protection == Protection(1, 1, False, True)
    leader.do(leader.machine.gone(B, leader.at))
    leader.wrote(11)
    leader.run(60)
    shouted = [a for a in leader.seen if isinstance(a, Protection)]
    assert shouted[-1] == Protection(0, 1, True, may_trade)  # from the proposal on, not only once it is confirmed
    leader.done(8)
    assert leader.machine.protection == shouted[-1]


def test_after_close_nothing_is_committed() -> None:
    leader = Leader()
    leader.machine.close()
    leader.wrote(11)
    leader.run(100)
    assert leader.commit == 10


def test_lateness_marks_stay_few_however_long_a_member_is_stuck() -> None:
    leader = Leader(B)
    for n in range(5000):
        leader.now += 5
        leader.wrote(11 + n)
    assert len(leader.machine._marks) < 50


# -- the world at large ---------------------------------------------------------------------------------------


@dataclass
class Node:
    """log: what its disk holds; a list of (term, number), so that forks show."""

    journal: JournalId
    log: list[tuple[int, int]] = field(default_factory=list)
    connected: bool = False
    sent: list[int] = field(default_factory=list)  # acknowledgements on their way
    accepted: int = 0  # of the leader's log, durable here


@dataclass
class Request:
    proposal: ProposeChange
    term: int


class InSyncWorld(RuleBasedStateMachine):
    """One leader at a time, two or three other nodes, one etcd. Everything between them is late or lost at will."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.numbers = iter(range(1, 1_000_000))
        self.committed: list[tuple[int, int]] = []
        self.to_etcd: list[Request] = []
        self.from_etcd: list[tuple[int, str, dict[NodeId, JournalId], int]] = []  # term, outcome, members, revision

    @initialize(count=st.integers(2, 4), data=st.data())
    def begin(self, count: int, data: st.DataObject) -> None:
        self.nodes = {NodeId(f"n{i}"): Node(JournalId(f"j{i}")) for i in range(count)}
        self.journals = count
        self.revision = 1
        named = data.draw(st.sets(st.sampled_from(sorted(self.nodes)), min_size=1))
        self.insync = {n: self.nodes[n].journal for n in named}
        self.elect(min(named))

    # -- helpers

    @property
    def leader(self) -> Node:
        return self.nodes[self.leads]

    def elect(self, who: NodeId) -> None:
        """`who` wins the lease; as in the election, the acquiring transaction rewrites `insync`."""
        self.revision += 1
        self.leads, self.term = who, self.revision
        self.insync = {n: j for n, j in self.insync.items() if n == who or j == self.nodes[n].journal}
        log = self.leader.log
        # S7: whatever was committed is in the new leader's log.
        assert log[: len(self.committed)] == self.committed, f"{who} was elected and lacks committed entries"
        for node in self.nodes.values():
            node.connected, node.sent, node.accepted = False, [], 0
        self.durable = len(log)
        self.machine = Commitment(
            Member(who, self.leader.journal),
            Term(self.term),
            self.insync,
            self.revision,
            LogIndex(len(log)),
            LogIndex(0),
            Instant(self.now),
            limits=Limits(
                insync=ns(0.05), silence=ns(0.1), gone=ns(0.01), join=ns(0.02), retry=ns(0.01), answer=ns(0.2)
            ),
        )
        self.carry_out(self.machine.start(Instant(self.now)))
        self.append()

    def append(self) -> None:
        self.leader.log.append((self.term, next(self.numbers)))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case CommitAdvanced(index):
                    assert index <= self.durable
                    entries = self.leader.log[:index]
                    assert entries[: len(self.committed)] == self.committed[: len(entries)]
                    if index > len(self.committed):
                        self.committed = entries
                case ProposeChange():
                    self.to_etcd.append(Request(action, self.term))
                case MembersChanged() | Protection() | Deposed():
                    pass

    def others(self) -> list[NodeId]:
        return [n for n in sorted(self.nodes) if n != self.leads]

    # -- what can happen

    @rule()
    def leader_appends_and_syncs(self) -> None:
        self.leader_appends()
        self.leaders_disk_syncs()

    @rule()
    def leader_appends(self) -> None:
        self.append()

    @rule()
    def leaders_disk_syncs(self) -> None:
        self.durable = len(self.leader.log)
        self.carry_out(self.machine.local_durable(LogIndex(self.durable), Instant(self.now)))

    @rule(data=st.data())
    def follower_attaches(self, data: st.DataObject) -> None:
        node = self.nodes[data.draw(st.sampled_from(self.others()))]
        node.connected = True
        leader = self.leader.log
        same = next((i for i, (x, y) in enumerate(zip(node.log, leader, strict=False)) if x != y), None)
        node.accepted = min(len(node.log), len(leader)) if same is None else same
        node.sent.append(node.accepted)

    @rule(data=st.data(), syncs=st.booleans())
    def all_goes_well_for_a_moment(self, data: st.DataObject, syncs: bool) -> None:
        """A follower takes and acknowledges everything. Alone, random steps would seldom get that far."""
        name = data.draw(st.sampled_from(self.others()))
        node = self.nodes[name]
        if syncs:
            self.leader_appends()
            self.leaders_disk_syncs()
        node.connected, node.log, node.sent = True, list(self.leader.log), []
        node.accepted = len(node.log)
        self.carry_out(self.machine.acked(Member(name, node.journal), LogIndex(node.accepted), Instant(self.now)))

    @rule(data=st.data(), upto=st.integers(1, 5))
    def follower_writes(self, data: st.DataObject, upto: int) -> None:
        node = self.nodes[data.draw(st.sampled_from(self.others()))]
        if node.connected and node.accepted < len(self.leader.log):
            end = min(len(self.leader.log), node.accepted + upto)
            if node.log[:end] != self.leader.log[:end]:
                node.log = self.leader.log[:end]  # cut at the fork, appended: one transaction
            node.accepted = end
            node.sent.append(end)

    @rule(data=st.data())
    def acknowledgement_arrives(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.others()))
        node = self.nodes[name]
        if node.sent:
            index = node.sent.pop(0)
            self.carry_out(self.machine.acked(Member(name, node.journal), LogIndex(index), Instant(self.now)))

    @rule(data=st.data())
    def connection_breaks(self, data: st.DataObject) -> None:
        self.connection_breaks_of(data.draw(st.sampled_from(self.others())))

    @rule(data=st.data())
    def disk_is_wiped(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.others()))
        self.connection_breaks_of(name)
        self.journals += 1
        self.nodes[name] = Node(JournalId(f"j{self.journals}"))

    def connection_breaks_of(self, name: NodeId) -> None:
        node = self.nodes[name]
        node.connected, node.sent = False, []
        self.carry_out(self.machine.gone(Member(name, node.journal), Instant(self.now)))

    @rule(ms=st.sampled_from([1, 5, 10, 12, 60, 250]))
    def time_passes(self, ms: int) -> None:
        self.now += ms * MS
        self.carry_out(self.machine.tick(Instant(self.now)))

    @precondition(lambda self: self.to_etcd)
    @rule(data=st.data(), fate=st.sampled_from(["answered", "answered", "reply lost", "request lost"]))
    def etcd_handles_a_request(self, data: st.DataObject, fate: str) -> None:
        request = self.to_etcd.pop(data.draw(st.integers(0, len(self.to_etcd) - 1)))  # in any order
        if fate == "request lost":
            self.from_etcd.append((request.term, "unknown", {}, 0))
            return
        outcome = "refused"
        if request.term == self.term and request.proposal.expected_revision == self.revision:
            self.revision += 1
            self.insync = dict(request.proposal.members)
            outcome = "done"
        answer = (request.term, outcome, dict(self.insync), self.revision)
        self.from_etcd.append((request.term, "unknown", {}, 0) if fate == "reply lost" else answer)

    @precondition(lambda self: self.from_etcd)
    @rule(data=st.data())
    def etcds_answer_arrives(self, data: st.DataObject) -> None:
        answer = self.from_etcd.pop(data.draw(st.integers(0, len(self.from_etcd) - 1)))
        term, outcome, names, revision = answer
        if term != self.term:
            return  # that leader is no more
        at = Instant(self.now)
        match outcome:
            case "done":
                self.carry_out(self.machine.done(revision, at))
            case "refused":
                self.carry_out(self.machine.refused(names, revision, at))
            case _:
                self.carry_out(self.machine.unknown(at))

    @precondition(lambda self: self.from_etcd == [] and self.to_etcd)
    @rule()
    def worker_gives_up_waiting(self) -> None:
        """The reply is not lost, only very late: the worker is told "unknown", and the request stays under way."""
        self.carry_out(self.machine.unknown(Instant(self.now)))

    @rule(data=st.data())
    def leader_dies_and_any_named_node_takes_over(self, data: st.DataObject) -> None:
        self.leader.log = self.leader.log[: max(self.durable, len(self.committed))]
        able = [n for n, j in sorted(self.insync.items()) if self.nodes[n].journal == j]
        if able:
            self.elect(data.draw(st.sampled_from(able)))

    # -- what must always hold

    @invariant()
    def every_named_journal_holds_every_committed_entry(self) -> None:
        for name, journal in getattr(self, "insync", {}).items():
            node = self.nodes[name]
            if node.journal == journal:
                held = node.log[: self.durable] if name == self.leads else node.log
                assert held[: len(self.committed)] == self.committed, f"{name} is in sync and lacks committed entries"


InSyncWorld.TestCase.settings = settings(max_examples=300, stateful_step_count=60)
TestInSyncWorld = InSyncWorld.TestCase
