"""What a worker has been told by its keeper, and whose turn it is.

    Follow, Prepare, Lead: strictly in turn, in the order in which they were told
    Follow, Lead, Stop:    end a leadership, also one that still waits for its turn, at once

A Prepare and a Lead need following to have stopped and the journal to be at rest, which takes a while; what was told
after them waits for that. Why a Follow does, too:
1. The keeper says Prepare(7): we stop following, and flush.
2. Another wins; it says Follow(n2, term 9), and both messages arrive together.
3. Were n2 followed at once, the stop under way would end its stream, and close its term for ever.

The other way round, a Lead that is taken back gives its turn away: nobody waits for the rest that it asked for, and
what has that rest's number comes too late. Pure. Read next: `following.py` (what stopping means).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from .ids import NodeId, Term

Told = TypeVar("Told")
"""What a Lead brings along. Opaque here."""


# -- actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StopFollowing:
    """No acknowledgement may leave from here on. Once the journal is at rest: `at_rest(number)`.

    closing: promise besides that none of that term, or of an older one, ever will."""

    number: int
    closing: Term | None


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow `node`. It may be refused as stale: the keeper's view is then behind what our journal has seen, and its
    next word is newer."""

    node: NodeId
    address: str
    term: Term


@dataclass(frozen=True, slots=True)
class TellPrepared:
    term: Term


@dataclass(frozen=True, slots=True)
class BeginLeading(Generic[Told]):
    """Nobody is followed, and the journal is at rest: take over."""

    told: Told


@dataclass(frozen=True, slots=True)
class EndLeading:
    """Send and append nothing more, at once. Then tell the keeper that `stopped` has, if there is such a term; then,
    if there was a leadership, the strategy: user code may be slow, and the keeper waits for our word."""

    reason: str
    stopped: Term | None = None


Action = StopFollowing | Follow | TellPrepared | BeginLeading[Told] | EndLeading


# -- turns ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Prepare:
    term: Term


class Duty(Generic[Told]):
    """One per worker. Each method but at_rest is one message of the keeper; it returns what to do, in order."""

    def __init__(self) -> None:
        self._turns: deque[Follow | _Prepare | BeginLeading[Told]] = deque()
        self.resting = 0
        """Number of the stop that the first in turn waits for; 0: nobody waits for any."""
        self._stops = 0

    def follow(self, node: NodeId, address: str, term: Term) -> list[Action[Told]]:
        return [self._end(f"told to follow {node}"), *self._take_turn(Follow(node, address, term))]

    def prepare(self, term: Term) -> list[Action[Told]]:
        return self._take_turn(_Prepare(term))

    def lead(self, term: Term, told: Told) -> list[Action[Told]]:
        return [self._end(f"told to lead in term {term}"), *self._take_turn(BeginLeading(told))]

    def stop(self, term: Term, reason: str) -> list[Action[Told]]:
        return [self._end(reason, term), *self._next()]

    def at_rest(self, number: int) -> list[Action[Told]]:
        """Following has stopped and the journal is at rest, as StopFollowing `number` asked."""
        if number != self.resting:
            return []  # who asked for it was taken back
        self.resting = 0
        turn = self._turns.popleft()
        done: Action[Told] = TellPrepared(turn.term) if isinstance(turn, _Prepare) else turn
        return [done, *self._next()]

    def _take_turn(self, turn: Follow | _Prepare | BeginLeading[Told]) -> list[Action[Told]]:
        self._turns.append(turn)
        return self._next()

    def _next(self) -> list[Action[Told]]:
        """Whatever can be done by now, up to the next wait."""
        actions: list[Action[Told]] = []
        while self._turns and not self.resting:
            turn = self._turns[0]
            if isinstance(turn, Follow):
                self._turns.popleft()
                actions.append(turn)
                continue
            self._stops += 1
            self.resting = self._stops
            actions.append(StopFollowing(self._stops, turn.term if isinstance(turn, _Prepare) else None))
        return actions

    def _end(self, reason: str, stopped: Term | None = None) -> EndLeading:
        """End a leadership, and take back one that waits."""
        if self._turns and isinstance(self._turns[0], BeginLeading):
            self.resting = 0
        self._turns = deque(turn for turn in self._turns if not isinstance(turn, BeginLeading))
        return EndLeading(reason, stopped)
