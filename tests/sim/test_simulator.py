"""A share of what `make simulate` runs: thousands of whole clusters, every one judged, every danger met; and what was
found on the way, kept.

    baton simulate --seeds 0..100000         the whole
    baton simulate --replay FILE             one of tests/sim/found, with its timeline
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import pytest

from chaos.check.verdict import Level, table
from chaos.sim.exhaustive import Bounds, explore
from chaos.sim.plan import CLASSES, Plan
from chaos.sim.redis import GateSpec
from chaos.sim.run import Which, live, live_many, live_some
from cluster.core.lease import View
from node.gate import ClaimResult
from node.venue_clock import VenueClock

SEEDS = 3000
FOUND = Path(__file__).parent / "found"


@pytest.mark.timeout(900)
def test_thousands_of_clusters_break_nothing_and_meet_every_danger() -> None:
    summary = live_many(range(SEEDS), Which(), jobs=os.cpu_count() or 1)
    told = "\n".join([*table(summary.verdict), *map(str, summary.failures)])
    print(f"\n{told}\n{summary.failovers} failovers, {summary.failovers_per_s:.0f} a second and core")
    assert summary.failures == [], told
    assert summary.verdict.level is Level.PASS, told
    assert summary.failovers > 3 * SEEDS, "leaders change, or nothing is shown"


@pytest.mark.parametrize("profile", [*CLASSES, "quiet", "rollback"])
def test_each_class_of_faults_by_itself_breaks_nothing(profile: str) -> None:
    summary = live_some(range(10_000, 10_030), Which(profile))
    assert summary.failures == []


@pytest.mark.parametrize("nodes", [2, 5])
def test_clusters_of_other_sizes_break_nothing(nodes: int) -> None:
    assert live_some(range(20_000, 20_040), Which(nodes=nodes)).failures == []


# -- every order of events of a small world ----------------------------------------------------------------------------


def test_every_order_of_one_pause_and_one_lost_reply_holds() -> None:
    found = explore(Bounds(pauses=1, losses=1, lease_events=0, window=3))
    print(f"\n{found.states} states, {found.moves} moves, {found.ends} ends")
    assert found.wrong is None and found.ends > 200


def test_every_order_of_two_lease_events_and_a_message_that_overtakes_holds() -> None:
    found = explore(Bounds(pauses=0, losses=0, lease_events=2, overtakings=1, window=2))
    print(f"\n{found.states} states, {found.moves} moves, {found.ends} ends")
    assert found.wrong is None and found.ends > 200


def test_small_world_sees_a_leader_that_counts_from_the_reply() -> None:
    """Exploring a world in which nothing can go wrong would prove nothing."""

    def no_wait(view: View, _seen: object) -> int | None:
        return None if view.leader is not None else 0

    with patch("cluster.core.election.acquire_from", no_wait):
        found = explore(Bounds(pauses=1, losses=0, lease_events=1, window=3))
    assert found.wrong is not None and found.wrong[0].startswith("S3")
    assert any("vanish" in move or "revoke" in move for move in found.wrong[1])


# -- found on the way --------------------------------------------------------------------------------------------------


def _at_one_rate() -> AbstractContextManager[object]:
    init = VenueClock.__init__
    return patch.object(VenueClock, "__init__", lambda self, _drift: init(self, 0.0))


def _claims_need_no_latch() -> AbstractContextManager[object]:
    claim = GateSpec._claim

    def knows_latch(self: GateSpec, token: int, coid: str) -> ClaimResult:
        store, noted = self._store, self._store.latch_run
        store.latch_run = self.run
        try:
            return claim(self, token, coid)
        finally:
            store.latch_run = noted

    return patch.object(GateSpec, "_claim", knows_latch)


WAS: dict[str, tuple[str, Callable[[], AbstractContextManager[object]]]] = {
    "claim_of_a_dead_leader_at_a_gate_that_forgot": ("S9", _claims_need_no_latch),
    "venue_clock_runs_at_another_rate": ("S6", _at_one_rate),
}
"""By the script's name: the invariant that broke, and what brings the mistake back."""


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(38119, id="a_stream_that_lost_bytes_in_a_cut_went_on_without_them"),
        pytest.param(69791, id="and_nobody_traded_as_no_standby_was_in_sync"),
        pytest.param(85717, id="a_leader_told_the_gate_of_a_latch_that_was_lifted_meanwhile"),
        pytest.param(42276, id="a_gate_that_fell_back_in_time_was_halted_again"),
        pytest.param(18571, id="one_side_blocked_by_an_unknown_outcome_on_a_plain_venue"),
        pytest.param(56377, id="two_harmless_cuts_in_one_lease_are_not_harmless"),
        pytest.param(65787, id="nothing_is_harmless_on_links_that_lose_messages"),
    ],
)
def test_a_life_that_broke_liveness_by_a_mistake_of_the_world_or_the_checker_does_not(seed: int) -> None:
    assert live(Which().plan(seed)).problems == []


@pytest.mark.parametrize("script", sorted(p.stem for p in FOUND.glob("*.json")))
def test_what_was_found_stays_mended(script: str) -> None:
    plan = Plan.from_json((FOUND / f"{script}.json").read_text())
    assert live(plan).problems == []
    invariant, broken = WAS[script]
    with broken():
        assert invariant in live(plan).broken, "the script shows what it was kept for"
