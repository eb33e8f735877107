"""Whole histories of replication from one seed: nothing committed is lost, and once all is well everybody has it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from cluster.core.ids import LogIndex
from tests.sim.replication_world import World


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("seed", range(60))
def test_no_schedule_of_crashes_and_cuts_loses_what_was_committed(seed: int) -> None:
    world = World(seed)
    world.run(120)
    leader = world.heal()
    last = leader.journal.last.index
    assert last > 0 and world.commits > 0
    for node in world.nodes.values():
        assert node.journal.last.chain == leader.journal.last.chain, node.name
        assert node.journal.commit_index >= last - 1
        assert node.journal.chain_at(LogIndex(last)) == leader.journal.chain_at(LogIndex(last))


def test_the_same_seed_is_the_same_history() -> None:
    worlds = [World(7), World(7)]
    for world in worlds:
        world.run(60)
    assert worlds[0].committed == worlds[1].committed
    assert worlds[0].time.now == worlds[1].time.now
