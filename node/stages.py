"""How far one term has come: the stages of the takeover and the drain, and how long each may take. Pure.

    CATCHING_UP -> ARMING -> SETTLING -> SETTLED -> (granted) LEADING -> (drain) DRAINING -> HANDING_OVER -> OVER

No stage waits without a limit. Catching up alone ends the term by its limit; from the others the term goes on without
what it waited for, which stays blocked or UNKNOWN. Arming runs beside catching up, and its limit counts from the begin.

Part of `leadership.py`, which does what a stage asks for when it is reached.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from cluster.core.ids import NS_PER_S, Instant, NodeId, ns

CATCH_UP_LIMIT_S = 30.0
ARM_WAIT_S = 0.25
"""How long a takeover waits for a gate or venue that does not answer, before it goes on without (blocked)."""
SETTLE_WAIT_S = 0.5
DRAIN_LIMIT_S = 0.4
"""For the answers to what was sent, and again for the successor to have every entry."""
DRAIN_LOOK_S = 0.001
"""How often to look whether the successor has every entry: nobody tells."""


class Stage(Enum):
    CATCHING_UP = auto()
    ARMING = auto()  # caught up; the first try to arm the gate and the venue has not ended
    SETTLING = auto()  # what earlier leaders left open is looked up
    SETTLED = auto()  # reported; no permit yet
    LEADING = auto()
    DRAINING = auto()  # no permit any more; answers are due
    HANDING_OVER = auto()  # the successor lacks entries
    OVER = auto()


class TermLog(Protocol):
    """This term's log, as far as a drain must know it."""

    @property
    def commit_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    def has_all(self, node: NodeId) -> bool:
        """Everything up to `last_index` is durable there."""


class Stages:
    """due: when to call `next` at the latest; None: something else has to happen first.
    phases_s: how long the parts of the takeover took."""

    def __init__(self, log: TermLog) -> None:
        self.stage = Stage.CATCHING_UP
        self.due: Instant | None = None
        self.phases_s: dict[str, float] = {}
        self.first_index = 0
        self._log = log
        self._successor: NodeId | None = None
        self._told_at = self._begun = self._settling_since = self._limit = Instant(0)
        self._armed_at: Instant | None = None

    def begin(self, first_index: int, told_at: Instant, now: Instant) -> None:
        """first_index: of the term's own first entry. told_at: when we were told to lead."""
        self.first_index, self._told_at, self._begun = first_index, told_at, now
        self._limit_to(CATCH_UP_LIMIT_S, now)

    def caught_up(self, now: Instant) -> None:
        """The first entry of the term is in the book, and so is all before it."""
        self.stage = Stage.ARMING
        self.phases_s["catch_up"] = (now - self._told_at) / NS_PER_S
        self._limit_to(ARM_WAIT_S, self._begun)

    def tried_to_arm(self, now: Instant) -> None:
        """The gate and the venue have answered, well or not."""
        if self._armed_at is None:
            self._armed_at = now

    def granted(self) -> None:
        self.stage = Stage.LEADING

    def drain(self, successor: NodeId | None, now: Instant) -> None:
        self.stage, self._successor = Stage.DRAINING, successor
        self._limit = Instant(now + ns(DRAIN_LIMIT_S))

    def next(self, now: Instant, *, settling: bool, in_flight: int) -> Stage | None:
        """Go one stage on if that may be, and tell which. settling, in_flight: of the OrderDesk, as of now. OVER from
        CATCHING_UP means that the takeover has failed."""
        late = now >= self._limit
        match self.stage:
            case Stage.CATCHING_UP if late:
                return self._reach(Stage.OVER)
            case Stage.ARMING if self._armed_at is not None or late:
                self.phases_s["arm"] = ((self._armed_at or self._limit) - self._begun) / NS_PER_S
                self._settling_since = now
                self._limit_to(SETTLE_WAIT_S, now)
                return self._reach(Stage.SETTLING)
            case Stage.SETTLING if not settling or late:
                self.phases_s["settle"] = (now - self._settling_since) / NS_PER_S
                self.due = None
                return self._reach(Stage.SETTLED)
            case Stage.DRAINING if not in_flight or late:
                self._limit = Instant(now + ns(DRAIN_LIMIT_S))
                return self._reach(Stage.HANDING_OVER)
            case Stage.HANDING_OVER if self._successor_has_all() or late:
                return self._reach(Stage.OVER)
            case Stage.DRAINING | Stage.HANDING_OVER:
                self.due = Instant(now + ns(DRAIN_LOOK_S))
        return None

    @property
    def too_slow(self) -> str:
        """Why a takeover has failed."""
        return f"takeover: entry {self.first_index} was not committed within {CATCH_UP_LIMIT_S:g} s"

    def _successor_has_all(self) -> bool:
        log = self._log
        return log.commit_index >= log.last_index and (self._successor is None or log.has_all(self._successor))

    def _reach(self, stage: Stage) -> Stage:
        self.stage = stage
        return stage

    def _limit_to(self, seconds: float, since: Instant) -> None:
        self._limit = self.due = Instant(since + ns(seconds))
