"""Every forgery of a good history is named by the invariant that must name it (kill matrix of the judge itself)."""

from __future__ import annotations

import random
from functools import cache

import pytest

from chaos.check.evidence import Evidence, FaultLine
from chaos.check.invariants import INVARIANTS, check
from chaos.check.mutate import MUTATIONS, NothingToMutate
from chaos.check.verdict import Level
from tests.support.history import STEP, World

SEEDS = 12
FORGERIES = 4
"""Of one history by one mutation: at so many places."""


@cache
def histories() -> list[Evidence]:
    good = [World(seed).run(70).finish().evidence() for seed in range(SEEDS)]
    assert [check(e).problems for e in good] == [[]] * SEEDS
    return [*good, harmless()]


def harmless() -> Evidence:
    """One leader, and a fault that must not move it."""
    world = World(1)
    world.lead()
    world.faults.append(FaultLine("f0", "pause", "n1", world.at, world.at + 1, world.at + STEP, "T", harmless=True))
    for _ in range(5):
        world.place()
    return world.evidence()


@pytest.mark.parametrize("name", MUTATIONS)
def test_forgery_is_named_by_the_invariant_that_must_name_it(name: str) -> None:
    forged = 0
    for seed, good in enumerate(histories()):
        for again in range(FORGERIES):
            try:
                bad, ids = MUTATIONS[name](good, random.Random(f"{name} {seed} {again}"))
            except NothingToMutate:
                break
            forged += 1
            verdict = check(bad)
            named = {r.id for r in verdict.rows if r.level >= Level.INVALID and r.violations}
            assert ids and ids <= named, (seed, again, ids, verdict.problems)
            assert verdict.level is (Level.INVALID if ids == {"E"} and not verdict.failed else Level.FAIL)
            assert not [r.note for r in verdict.rows if "judge failed" in r.note]
    assert forged >= FORGERIES, "no history had anything to forge in this way"


def test_every_invariant_is_killed_by_some_forgery() -> None:
    killed: set[str] = set()
    for name, mutation in MUTATIONS.items():
        for good in histories():
            try:
                killed |= mutation(good, random.Random(name))[1]
            except NothingToMutate:
                continue
    assert killed == INVARIANTS.keys()


@pytest.mark.parametrize("name", MUTATIONS)
def test_nothing_to_forge_is_said_and_evidence_is_left_as_it_was(name: str) -> None:
    with pytest.raises(NothingToMutate):
        MUTATIONS[name](Evidence(), random.Random(1))
    good = histories()[0]
    before = repr(good.venue), repr(good.gate), repr(good.etcd), repr(good.sent), repr(good.journals)
    try:
        MUTATIONS[name](good, random.Random(2))
    except NothingToMutate:
        return
    assert before == (repr(good.venue), repr(good.gate), repr(good.etcd), repr(good.sent), repr(good.journals))
