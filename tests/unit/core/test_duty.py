"""Whose turn it is: what the keeper says is done in its order, and a leadership that is taken back never begins."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.core.duty import BeginLeading, Duty, EndLeading, Follow, StopFollowing, TellPrepared
from cluster.core.ids import NodeId, Term

N2, N3 = NodeId("n2"), NodeId("n3")


def test_follow_is_done_at_once_when_nobody_waits() -> None:
    assert Duty[str]().follow(N2, "host:1", Term(5)) == [
        EndLeading("told to follow n2"),
        Follow(N2, "host:1", Term(5)),
    ]


def test_prepare_is_confirmed_once_the_journal_is_at_rest() -> None:
    duty = Duty[str]()
    assert duty.prepare(Term(7)) == [StopFollowing(1, closing=Term(7))]
    assert duty.resting == 1
    assert duty.at_rest(1) == [TellPrepared(Term(7))]
    assert duty.resting == 0


def test_prepare_ends_no_leadership() -> None:
    """Asked of whoever may campaign; a leader is told to stop in words of its own."""
    assert not any(isinstance(a, EndLeading) for a in Duty[str]().prepare(Term(7)))


def test_lead_begins_once_the_journal_is_at_rest_and_closes_no_term() -> None:
    duty = Duty[str]()
    assert duty.lead(Term(9), "told") == [EndLeading("told to lead in term 9"), StopFollowing(1, closing=None)]
    assert duty.at_rest(1) == [BeginLeading("told")]


def test_follow_behind_a_prepare_waits_or_the_stop_would_close_its_term() -> None:
    duty = Duty[str]()
    duty.prepare(Term(7))
    assert duty.follow(N2, "host:1", Term(9)) == [EndLeading("told to follow n2")]
    assert duty.at_rest(1) == [TellPrepared(Term(7)), Follow(N2, "host:1", Term(9))]


def test_prepare_and_the_lead_behind_it_each_come_to_rest() -> None:
    duty = Duty[str]()
    duty.prepare(Term(7))
    assert duty.lead(Term(9), "told") == [EndLeading("told to lead in term 9")]
    assert duty.at_rest(1) == [TellPrepared(Term(7)), StopFollowing(2, closing=None)]
    assert duty.at_rest(2) == [BeginLeading("told")]


def test_stop_is_confirmed_at_once_whoever_waits() -> None:
    duty = Duty[str]()
    duty.prepare(Term(7))
    assert duty.stop(Term(6), "deposed") == [EndLeading("deposed", stopped=Term(6))]
    assert duty.at_rest(1) == [TellPrepared(Term(7))]


def test_lead_that_is_stopped_before_its_turn_never_begins() -> None:
    duty = Duty[str]()
    duty.lead(Term(9), "told")
    assert duty.stop(Term(9), "lease lost") == [EndLeading("lease lost", stopped=Term(9))]
    assert duty.resting == 0
    assert duty.at_rest(1) == []


def test_follow_takes_the_place_of_a_lead_that_waits() -> None:
    duty = Duty[str]()
    duty.lead(Term(9), "told")
    assert duty.follow(N2, "host:1", Term(10)) == [
        EndLeading("told to follow n2"),
        Follow(N2, "host:1", Term(10)),
    ]


def test_rest_of_a_lead_that_was_taken_back_is_nobodys() -> None:
    duty = Duty[str]()
    duty.lead(Term(9), "told")
    duty.stop(Term(9), "lease lost")
    assert duty.prepare(Term(9)) == [StopFollowing(2, closing=Term(9))]
    assert duty.at_rest(1) == []
    assert duty.at_rest(2) == [TellPrepared(Term(9))]


def test_second_lead_takes_the_place_of_the_first() -> None:
    duty = Duty[str]()
    duty.lead(Term(9), "first")
    assert duty.lead(Term(11), "second") == [EndLeading("told to lead in term 11"), StopFollowing(2, closing=None)]
    assert duty.at_rest(1) == []
    assert duty.at_rest(2) == [BeginLeading("second")]


class AnyOrder(RuleBasedStateMachine):
    """Messages in any order, rests that come when they like, also late ones."""

    def __init__(self) -> None:
        super().__init__()
        self.duty: Duty[int] = Duty()
        self.n = 0
        self.waiting: list[tuple[str, int]] = []  # told and not done, in order
        self.stops: list[StopFollowing] = []
        self.answered = 0  # stops whose rest has come

    def told(self, kind: str | None = None) -> int:
        self.n += 1
        if kind is not None:
            self.waiting.append((kind, self.n))
        return self.n

    def done(self, actions: list[object]) -> None:
        for action in actions:
            match action:
                case Follow(_, _, term):
                    assert not self.resting(), "followed while somebody comes to rest"
                    assert self.waiting.pop(0) == ("follow", term)
                case StopFollowing(number, closing):
                    kind, n = self.waiting[0]
                    assert number == len(self.stops) + 1 and closing == (n if kind == "prepare" else None)
                    self.stops.append(action)
                case TellPrepared(term):
                    assert self.stops[-1].closing == term
                    assert self.waiting.pop(0) == ("prepare", term)
                case BeginLeading(n):
                    assert self.waiting.pop(0) == ("lead", n)

    def resting(self) -> bool:
        return bool(self.waiting) and self.waiting[0][0] != "follow"

    def taken_back(self) -> None:
        self.waiting = [w for w in self.waiting if w[0] != "lead"]

    @rule()
    def follow(self) -> None:
        self.taken_back()
        self.done(self.duty.follow(N2, "host:1", Term(self.told("follow"))))

    @rule()
    def prepare(self) -> None:
        self.done(self.duty.prepare(Term(self.told("prepare"))))

    @rule()
    def lead(self) -> None:
        self.taken_back()
        n = self.told("lead")
        self.done(self.duty.lead(Term(n), n))

    @rule()
    def stop(self) -> None:
        self.taken_back()
        self.done(self.duty.stop(Term(self.told()), "why"))

    @precondition(lambda self: self.stops)
    @rule(back=st.integers(0, 2))
    def at_rest(self, back: int) -> None:
        """The rest that is due, or one of those before it."""
        number = len(self.stops) - min(back, len(self.stops) - 1)
        due = self.duty.resting
        actions = self.duty.at_rest(number)
        assert number == due or actions == []
        self.done(actions)

    @invariant()
    def somebody_waits_only_for_a_rest(self) -> None:
        assert bool(self.waiting) == bool(self.duty.resting)
        if self.waiting:
            assert self.resting() and self.duty.resting == len(self.stops)


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase
