"""Is the gate armed for this term? When to arm it, look at it, and take it for lost. Pure.

    arm -> (it does not know the kill latch: read the latch in etcd -> note it at the gate) -> open
    open -> a claim, or a look now and then, finds it gone, forgetful or halted -> connect, arm, ..., look -> open

One question at a time is out; each action is answered by the event of its name, or by `failed`. Claims do not
come through here: what they find is told by `lost`. Invariants:

- open only after the gate said that it knows the latch, or took it from us after this arming;
- the first arming of a term asks nothing but to be armed, since every failover waits for it: the worker has connected
  the gate long before, and a halt is found out by the first claim. Every later one connects first (it may be another
  gate by now) and looks before it opens;
- whatever goes wrong closes it and is tried again. Only a higher token ends the trying (`Leadership.gate_refused`).

Part of `leadership.py`, which owns one per term.
"""

from __future__ import annotations

from enum import Enum, auto

from cluster.core.ids import Instant, ns
from node.actions import ArmGate, GateAction, LookAtGate, NoteLatch, ReadLatch
from node.gate import Armed, GateState

RETRY_S = 0.1
HALT_LOOK_S = 1.0
LOOK_S = 1.0
LATCH_WAIT_S = 1.0
"""How long to wait for the keeper's word on the latch. It answers by itself, also when etcd does not: this is for the
message that was lost."""


class _Phase(Enum):
    ARMING = auto()
    READING_LATCH = auto()
    NOTING_LATCH = auto()
    LOOKING = auto()  # before it opens
    WAITING = auto()  # closed, until `due`
    OPEN = auto()  # until `due`, for a look
    CHECKING = auto()  # open, while we look
    LOST = auto()  # no longer open, while the answer to a look is still due


class GateArming:
    """closed: why, in words; empty: open. due: when to call `tick`; None: an answer comes first.
    tried: the first arming has ended, well or not."""

    def __init__(self, term: int) -> None:
        self.closed = "not armed yet"
        self.due: Instant | None = None
        self.tried = False
        self._term = term
        self._phase = _Phase.ARMING
        self._first = True
        self._halted: str | None = None  # what is being noted

    def begin(self) -> list[GateAction]:
        return [ArmGate(connect=False)]

    def armed(self, answer: Armed, now: Instant) -> list[GateAction]:
        if answer.latch_known:
            return self._look_or_open(now)
        self._phase = _Phase.READING_LATCH
        self.due = Instant(now + ns(LATCH_WAIT_S))
        return [ReadLatch()]

    def latch_read(self, halted: str | None) -> list[GateAction]:
        if self._phase is not _Phase.READING_LATCH:
            return []  # too late; it will be read again
        self._phase, self.due = _Phase.NOTING_LATCH, None
        self._halted = halted
        return [NoteLatch(halted)]

    def latch_unreadable(self, reason: str, now: Instant) -> None:
        if self._phase is _Phase.READING_LATCH:
            self._wait(f"the kill latch cannot be read: {reason}", RETRY_S, now)

    def latch_noted(self, now: Instant) -> list[GateAction]:
        if self._halted is None:
            return self._look_or_open(now)
        self._wait(f"halted: {self._halted}", HALT_LOOK_S, now)
        return []

    def _look_or_open(self, now: Instant) -> list[GateAction]:
        if self._first:
            self._open(now)
            return []
        self._phase, self.due = _Phase.LOOKING, None
        return [LookAtGate()]

    def seen(self, state: GateState, now: Instant) -> list[GateAction]:
        """The answer to LookAtGate."""
        if not state.armed or state.high_water != self._term:
            self.closed = "it lost its state; re-arming"
            return self._arm()
        if state.halted is None:
            return self._arm() if self._phase is _Phase.LOST else self._open(now)
        self.closed = f"halted: {state.halted}"
        if self._phase is not _Phase.LOOKING:
            return self._arm()
        self._wait(self.closed, HALT_LOOK_S, now)
        return []

    def failed(self, reason: str, now: Instant) -> list[GateAction]:
        """No answer from the gate, or one that cannot be trusted. One that was open is armed again at once: it may be
        back already."""
        if self._phase in (_Phase.CHECKING, _Phase.LOST):
            self.closed = reason
            return self._arm()
        self._wait(reason, RETRY_S, now)
        return []

    def lost(self, why: str) -> list[GateAction]:
        """A claim has found that it does not hold for us any more: closed from now on, until it is armed again."""
        self.closed = why
        if self._phase is _Phase.OPEN:
            return self._arm()
        if self._phase is _Phase.CHECKING:
            self._phase = _Phase.LOST
        return []  # else it is being armed already

    def tick(self, now: Instant) -> list[GateAction]:
        if self.due is None or now < self.due:
            return []
        if self._phase is _Phase.OPEN:
            self._phase, self.due = _Phase.CHECKING, None
            return [LookAtGate()]
        if self._phase is _Phase.READING_LATCH:
            self._wait(f"the kill latch cannot be read: no answer within {LATCH_WAIT_S:g} s", RETRY_S, now)
            return []
        return self._arm()

    def _arm(self) -> list[GateAction]:
        self._phase, self.due = _Phase.ARMING, None
        return [ArmGate(connect=True)]

    def _open(self, now: Instant) -> list[GateAction]:
        """A claim finds out at once. When none is made, we look: a quiet leader must not seem armed while its gate is
        dead."""
        self._phase, self.due = _Phase.OPEN, Instant(now + ns(LOOK_S))
        self._ended("")
        return []

    def _wait(self, why: str, seconds: float, now: Instant) -> None:
        self._phase, self.due = _Phase.WAITING, Instant(now + ns(seconds))
        self._ended(why)

    def _ended(self, closed: str) -> None:
        self.closed, self._first, self.tried = closed, False, True
