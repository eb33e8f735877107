"""The gate's arming, event by event: never open before it is armed and knows the latch, whatever is lost on the way."""

from __future__ import annotations

import random

import pytest

from cluster.core.ids import Instant
from node.actions import ArmGate, GateAction, LookAtGate, NoteLatch, ReadLatch
from node.arming import GateArming
from node.gate import Armed, GateState
from tests.support.desk import S

NOW = Instant(1000 * S)
KNOWN, UNKNOWN = Armed(7, 1, 3, True), Armed(7, 1, 0, False)
ARMED = GateState(True, 7, "n1", None, 1)
HALTED = GateState(True, 7, "n1", "fat finger", 1)


def later(seconds: float) -> Instant:
    return Instant(NOW + round(seconds * S))


def opened() -> GateArming:
    gate = GateArming(7)
    assert gate.begin() == [ArmGate(connect=False)]
    assert gate.armed(KNOWN, NOW) == [] and gate.closed == ""
    return gate


def test_first_arming_opens_without_another_question() -> None:
    """A failover waits for it."""
    gate = GateArming(7)
    gate.begin()
    assert (gate.closed, gate.tried) == ("not armed yet", False)
    gate.armed(KNOWN, NOW)
    assert (gate.closed, gate.tried) == ("", True)


def test_gate_that_does_not_know_the_latch_opens_only_when_it_was_read_and_noted() -> None:
    gate = GateArming(7)
    gate.begin()
    assert gate.armed(UNKNOWN, NOW) == [ReadLatch()] and gate.closed
    assert gate.latch_read(None) == [NoteLatch(None)] and gate.closed and not gate.tried
    assert gate.latch_noted(NOW) == [] and gate.closed == ""


def test_latch_that_is_set_is_set_at_the_gate_again_and_it_stays_closed() -> None:
    gate = GateArming(7)
    gate.begin()
    gate.armed(UNKNOWN, NOW)
    assert gate.latch_read("fat finger") == [NoteLatch("fat finger")]
    assert gate.latch_noted(NOW) == [] and gate.closed == "halted: fat finger" and gate.tried
    assert gate.tick(later(0.9)) == [] and gate.tick(later(1.0)) == [ArmGate(connect=True)]
    assert gate.armed(KNOWN, later(1.0)) == [LookAtGate()]
    assert gate.seen(HALTED, later(1.0)) == [] and gate.closed == "halted: fat finger"


@pytest.mark.parametrize("how", ["etcd is silent", "no answer within 1 s"])
def test_latch_that_cannot_be_read_is_read_again_after_arming_again(how: str) -> None:
    gate = GateArming(7)
    gate.begin()
    gate.armed(UNKNOWN, NOW)
    if how == "etcd is silent":
        gate.latch_unreadable(how, NOW)
        at = later(0.1)
    else:
        assert gate.tick(later(1.0)) == []
        at = later(1.1)
        assert gate.latch_read(None) == [], "an answer that comes too late is none"
    assert gate.closed == f"the kill latch cannot be read: {how}" and gate.tried
    assert gate.tick(at) == [ArmGate(connect=True)]
    assert gate.armed(UNKNOWN, at) == [ReadLatch()]
    assert gate.latch_read(None) == [NoteLatch(None)]
    assert gate.latch_noted(at) == [LookAtGate()], "it may have been halted since"
    assert gate.seen(ARMED, at) == [] and gate.closed == ""


def test_gate_that_lost_its_state_before_the_latch_was_noted_is_armed_again() -> None:
    gate = GateArming(7)
    gate.begin()
    gate.armed(UNKNOWN, NOW)
    gate.latch_read(None)
    assert gate.failed("it lost its state before the latch was noted", NOW) == [] and gate.closed
    assert gate.tick(later(0.1)) == [ArmGate(connect=True)]
    assert gate.armed(UNKNOWN, later(0.1)) == [ReadLatch()]


def test_gate_that_does_not_answer_is_connected_armed_and_looked_at_until_it_does() -> None:
    gate = GateArming(7)
    gate.begin()
    gate.failed("down", NOW)
    assert gate.closed == "down" and gate.tried and gate.due == later(0.1)
    assert gate.tick(later(0.1)) == [ArmGate(connect=True)]
    gate.failed("down still", later(0.2))
    assert gate.tick(later(0.3)) == [ArmGate(connect=True)]
    assert gate.armed(KNOWN, later(0.3)) == [LookAtGate()] and gate.closed == "down still"
    gate.seen(ARMED, later(0.3))
    assert gate.closed == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (GateState(False, 7, "n1", None, 1), "it lost its state; re-arming"),
        (GateState(True, 6, "n1", None, 1), "it lost its state; re-arming"),
        (HALTED, "halted: fat finger"),
        ("down", "down"),
    ],
)
def test_gate_that_is_lost_while_nobody_orders_is_found_out(found: GateState | str, why: str) -> None:
    """A quiet leader would look armed for as long as its strategy wants nothing."""
    gate = opened()
    assert gate.tick(later(0.9)) == [] and gate.tick(later(1.0)) == [LookAtGate()]
    assert gate.closed == "", "open while we look"
    said = gate.failed(found, later(1.0)) if isinstance(found, str) else gate.seen(found, later(1.0))
    assert said == [ArmGate(connect=True)] and gate.closed == why


def test_gate_that_is_well_is_looked_at_again_and_again() -> None:
    gate = opened()
    for n in range(1, 4):
        assert gate.tick(later(n)) == [LookAtGate()]
        assert gate.seen(ARMED, later(n)) == [] and gate.closed == ""


def test_what_claims_find_closes_it_at_once_and_only_one_arming_follows() -> None:
    gate = opened()
    assert gate.lost("forgot us") == [ArmGate(connect=True)] and gate.closed == "forgot us"
    assert gate.lost("no answer") == [] and gate.closed == "no answer"


def test_claim_that_finds_it_lost_while_we_look_waits_for_the_answer_to_the_look() -> None:
    """Else that answer, which is older than the arming, would be taken for one to the look after it."""
    gate = opened()
    gate.tick(later(1.0))
    assert gate.lost("forgot us") == [] and gate.closed == "forgot us"
    assert gate.seen(ARMED, later(1.0)) == [ArmGate(connect=True)] and gate.closed == "forgot us"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_it_is_never_open_with_the_latch_set_in_etcd_and_lost_at_the_gate(seed: int) -> None:
    """A gate that forgets and loses replies, leaders that die in between, and people who press: put into etcd first, at
    the gate second. What is open and armed for its leader, while the press has reached the gate, would take orders."""
    rng = random.Random(seed)
    world = World(rng)
    presses = opens = 0
    for _ in range(3000):
        world.step()
        presses += world.pressed_at_gate
        opens += not world.arming.closed
        if world.pressed_at_gate:
            assert not (not world.arming.closed and world.would_grant()), world.story[-20:]
    assert presses and opens


class World:
    """One gate, etcd's latch, one leader after the other. Calls take effect, and may be answered, some steps later."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = NOW
        self.term = 0
        self.story: list[str] = []
        self.high = self.latch_known = self.armed = 0
        self.gate_halted: str | None = None
        self.etcd_halted: str | None = None
        self.pressed_at_gate = False
        self.pending: list[GateAction] = []
        self.answers: list[tuple[GateAction, object]] = []
        self.lead()

    def lead(self) -> None:
        self.term += 1
        self.arming = GateArming(self.term)
        self.pending, self.answers = self.arming.begin(), []

    def would_grant(self) -> bool:
        return bool(self.armed) and self.high == self.term and self.gate_halted is None

    def step(self) -> None:
        what = self.rng.choices(
            ["effect", "answer", "time", "flush", "restart", "die", "press", "press at gate", "clear"],
            [30, 30, 20, 2, 2, 2, 2, 4, 1],
        )[0]
        self.story.append(what)
        if what == "effect" and self.pending:
            action = self.pending.pop(0)
            answer = self.effect(action)
            self.answers.append((action, "lost" if self.rng.random() < 0.2 else answer))
        elif what == "answer" and self.answers:
            self.pending += self.heard(*self.answers.pop(0))
        elif what == "time":
            self.now = Instant(self.now + self.rng.randrange(S))
            self.pending += self.arming.tick(self.now)
        elif what == "flush":
            self.high = self.latch_known = self.armed = 0
            self.gate_halted = None
        elif what == "restart":  # with what was there, or with an older state: without the press
            self.latch_known = self.armed = 0
            self.gate_halted = self.gate_halted if self.rng.random() < 0.5 else None
        elif what == "die":
            self.lead()
        elif what == "press":
            self.etcd_halted = "press"
        elif what == "press at gate" and self.etcd_halted:
            self.gate_halted, self.pressed_at_gate = "press", True
        elif what == "clear" and not self.answers and not self.pending:
            self.etcd_halted = self.gate_halted = None
            self.pressed_at_gate = False

    def effect(self, action: GateAction) -> object:
        match action:
            case ArmGate():
                previous, self.high, self.armed = self.high, self.term, 1
                return Armed(self.term, 1, previous, bool(self.latch_known))
            case ReadLatch():
                return self.etcd_halted
            case NoteLatch(halted):
                if not self.armed or self.high != self.term:
                    return "lost"
                self.latch_known, self.gate_halted = 1, halted or self.gate_halted
                return None
            case LookAtGate():
                return GateState(bool(self.armed), self.high, "n", self.gate_halted, 1)

    def heard(self, action: GateAction, answer: object) -> list[GateAction]:
        if answer == "lost":
            if isinstance(action, ReadLatch):
                self.arming.latch_unreadable("silence", self.now)
                return []
            return self.arming.failed("silence", self.now)
        match action:
            case ArmGate():
                assert isinstance(answer, Armed)
                return self.arming.armed(answer, self.now)
            case ReadLatch():
                assert answer is None or isinstance(answer, str)
                return self.arming.latch_read(answer)
            case NoteLatch():
                return self.arming.latch_noted(self.now)
            case LookAtGate():
                assert isinstance(answer, GateState)
                return self.arming.seen(answer, self.now)
