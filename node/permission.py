"""May this node place orders now? One scale, with the reason, for the order path and for people (DESIGN 8). Pure.

    allowed > close-only > blocked          unknown is never allowed

Cancels are not on this scale: they stay possible for as long as the permit lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from node.feeds.base import FeedState


class Level(Enum):
    ALLOWED = "allowed"
    CLOSE_ONLY = "close-only"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Permission:
    level: Level
    reason: str = ""


@dataclass(slots=True)
class Conditions:
    """What trading rests on. The worker keeps one and changes it as things happen; every default is "no".

    halted: the kill latch as etcd has it: while it is set nobody places an order. It is the keeper who hears of it.
    gate_closed and venue_down are the leader's, of its term. gate_unreachable and venue_unreachable are what every node
    finds by asking now and then: for people, and for choosing who should lead.

    standing: "standby", "taking over", "leading" or "handing over".
    """

    standing: str = "standby"
    permit_live: bool = False
    halted: str = "the kill latch is not known yet"  # empty: not set
    gate_closed: str = "not armed yet"  # empty: armed
    venue_down: str = "not connected yet"  # empty: connected, armed and its private stream is up
    clock_unknown: bool = True  # the venue honours expiries, and we do not know its clock well enough to set one
    feed: FeedState = FeedState.CONNECTING
    feed_reason: str = ""
    unprotected: str = ""  # not empty: too few standbys, and the policy says halt
    strategy_failed: str = ""
    gate_unreachable: str = "not connected yet"
    venue_unreachable: str = "not connected yet"

    @property
    def gate(self) -> str:
        """What is wrong with the gate, as far as this node can tell; empty: nothing."""
        return self.gate_unreachable if self.standing == "standby" else self.gate_closed

    @property
    def venue(self) -> str:
        return self.venue_unreachable if self.standing == "standby" else self.venue_down


def judge(c: Conditions) -> Permission:
    """The gravest reason first, so that the one line people see is the one to act on."""
    if c.standing != "leading":
        return Permission(Level.BLOCKED, c.standing)
    if not c.permit_live:
        return Permission(Level.BLOCKED, "no permit: the lease is not confirmed")
    if c.halted:
        return Permission(Level.BLOCKED, f"halted: {c.halted}")
    if c.gate_closed:
        return Permission(Level.BLOCKED, f"gate: {c.gate_closed}")
    if c.venue_down:
        return Permission(Level.BLOCKED, f"venue: {c.venue_down}")
    if c.clock_unknown:
        return Permission(Level.BLOCKED, "venue: its clock is not known")
    if c.unprotected:
        return Permission(Level.BLOCKED, c.unprotected)
    if c.strategy_failed:
        return Permission(Level.BLOCKED, f"strategy: {c.strategy_failed}")
    if c.feed is not FeedState.LIVE:
        return Permission(Level.BLOCKED, f"feed {c.feed.value}{': ' + c.feed_reason if c.feed_reason else ''}")
    return Permission(Level.ALLOWED)
