"""One scale, gravest reason first; every default is "no"."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.feeds.base import FeedState
from node.permission import Conditions, Level, Permission, judge

FINE = Conditions(
    "leading", permit_live=True, halted="", gate_closed="", venue_down="", clock_unknown=False, feed=FeedState.LIVE
)

# Gravest first: of two that hold, the upper one is said.
LADDER = [
    ({"standing": "standby"}, "standby"),
    ({"permit_live": False}, "no permit: the lease is not confirmed"),
    ({"halted": "fat finger"}, "halted: fat finger"),
    ({"gate_closed": "no answer"}, "gate: no answer"),
    ({"venue_down": "private stream down"}, "venue: private stream down"),
    ({"clock_unknown": True}, "venue: its clock is not known"),
    ({"unprotected": "0 in-sync standbys"}, "0 in-sync standbys"),
    ({"strategy_failed": "on_market raised"}, "strategy: on_market raised"),
    ({"feed": FeedState.STALE}, "feed stale"),
]


def test_node_that_has_just_started_may_do_nothing() -> None:
    assert judge(Conditions()) == Permission(Level.BLOCKED, "standby")


def test_leader_with_everything_in_order_may_trade() -> None:
    assert judge(FINE) == Permission(Level.ALLOWED)


@pytest.mark.parametrize("standing", ["standby", "taking over", "handing over"])
def test_only_who_leads_may_trade_whatever_else_holds(standing: str) -> None:
    assert judge(replace(FINE, standing=standing)) == Permission(Level.BLOCKED, standing)


@pytest.mark.parametrize(("change", "reason"), LADDER)
def test_each_condition_alone_blocks_and_names_itself(change: dict, reason: str) -> None:
    assert judge(replace(FINE, **change)) == Permission(Level.BLOCKED, reason)


def test_of_several_reasons_the_gravest_is_said() -> None:
    changes: dict = {}
    for change, reason in reversed(LADDER):
        changes |= change
        assert judge(replace(FINE, **changes)).reason == reason


@pytest.mark.parametrize("state", [s for s in FeedState if s is not FeedState.LIVE])
def test_feed_that_is_not_live_blocks_with_its_own_reason(state: FeedState) -> None:
    assert judge(replace(FINE, feed=state)).reason == f"feed {state.value}"
    assert judge(replace(FINE, feed=state, feed_reason="gap of 3")).reason == f"feed {state.value}: gap of 3"
