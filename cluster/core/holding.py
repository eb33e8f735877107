"""What a leader's keeper holds, and why it lets go. Pure values of `election.py`."""

from __future__ import annotations

from dataclasses import dataclass

from .ids import Instant, NodeId, Term


@dataclass(slots=True)
class Held:
    """The `leader` key that is ours. attempt: which acquire made it. act_until, next_renewal: Instants. led: its worker
    has taken over and may trade."""

    term: Term
    attempt: int
    renewal: int
    act_until: Instant
    next_renewal: Instant
    led: bool = False


@dataclass(frozen=True, slots=True)
class Leaving:
    """Why the current term ends, for `resigned`. actor: the node or person. successor: asked for, if any."""

    reason: str
    actor: str
    successor: NodeId | None = None
