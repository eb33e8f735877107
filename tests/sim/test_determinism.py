"""One seed, one story: in this process, in another one with another hash seed, traced or not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chaos.sim.plan import Plan, draw_plan
from chaos.sim.world import World

SEEDS = range(8)
SCRIPT = f"""
from chaos.sim.plan import draw_plan
from chaos.sim.run import silence
from chaos.sim.world import World

silence()
for seed in {list(SEEDS)}:
    world = World(draw_plan(seed), traced=True)
    world.run()
    print(seed, world.engine.digest(), len(world.engine.story))
"""


def digests(hash_seed: int) -> str:
    env = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_with_different_hash_seeds_tell_the_same_stories():
    first = digests(1)
    assert first.count("\n") == len(SEEDS)
    assert len({line.split()[1] for line in first.splitlines()}) == len(SEEDS)
    assert digests(2) == first


@pytest.mark.parametrize("seed", (3, 12))
def test_a_run_that_is_traced_is_the_run_that_is_not(seed: int):
    traced, plain = World(draw_plan(seed), traced=True), World(draw_plan(seed))
    with_story, without = traced.run(), plain.run()
    assert plain.engine.story is None
    assert (with_story.steps, with_story.cover, with_story.problems) == (without.steps, without.cover, without.problems)
    assert traced.venue.lines == plain.venue.lines


def test_a_plan_that_was_stored_gives_the_same_story():
    plan = draw_plan(5)
    first, again = World(plan, traced=True), World(Plan.from_json(plan.to_json()), traced=True)
    first.run()
    again.run()
    assert first.engine.digest() == first.engine.digest() == again.engine.digest()
