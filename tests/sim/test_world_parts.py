"""The parts that the simulated world is made of: time, links, processes, the gate's store, plans."""

from __future__ import annotations

import pytest

from chaos.sim.engine import MS, Engine
from chaos.sim.network import LAN, Link, Quality
from chaos.sim.plan import PROFILES, Plan, draw_plan, rules_of
from chaos.sim.process import Process
from chaos.sim.redis import GateSpec, Stale, Unarmed
from chaos.sim.run import Summary, Which, live_some, parse_seeds
from cluster.core.errors import ConfigError
from node.gate import Armed, Verdict

# -- time --------------------------------------------------------------------------------------------------------------


def test_things_come_in_the_order_of_their_times_and_the_clock_stops_at_the_limit() -> None:
    engine, seen = Engine(1), []
    engine.at(30, seen.append, "c")
    engine.at(10, seen.append, "a")
    engine.after(20, seen.append, "b")
    while engine.step(25):
        pass
    assert (seen, engine.now) == (["a", "b"], 25)


def test_things_at_one_instant_are_permuted_by_the_seed() -> None:
    def order(seed: int) -> str:
        engine, seen = Engine(seed), []
        for name in "abcd":
            engine.at(5, seen.append, name)
        while engine.step(5):
            pass
        return "".join(seen)

    assert order(7) == order(7)
    assert len({order(seed) for seed in range(20)}) > 5


def test_a_timer_that_was_cancelled_does_nothing() -> None:
    engine, seen = Engine(1), []
    engine.later(5, seen.append, "x").cancel()
    engine.later(6, seen.append, "y")
    while engine.step(10):
        pass
    assert seen == ["y"]


# -- links -------------------------------------------------------------------------------------------------------------


def arrivals(engine: Engine, until: int = 10_000 * MS) -> None:
    while engine.step(until):
        pass


def test_a_stream_keeps_its_order_and_a_cut_that_holds_lets_everything_through_when_it_is_over() -> None:
    engine, seen = Engine(3), []
    link = Link(engine, ("a", "b", "request"), LAN, stream=True)
    link.send(seen.append, 0)
    link.cut(50 * MS, hold=True)
    for n in range(1, 20):
        link.send(seen.append, n)
    arrivals(engine, 40 * MS)
    assert seen == [0] and link.bitten == 19
    arrivals(engine)
    assert seen == list(range(20))


def test_a_cut_that_loses_loses_and_one_that_is_healed_does_not() -> None:
    engine, seen = Engine(3), []
    link = Link(engine, ("a", "b", "request"), Quality(loss=1.0))
    link.send(seen.append, "lost by chance")
    link.cut(50 * MS, hold=False)
    link.send(seen.append, "lost by the cut")
    assert link.is_cut
    link.heal()
    link.send(seen.append, "through")
    arrivals(engine)
    assert seen == ["through"]


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_pause_falls_between_two_effects_and_what_waits_comes_in_order() -> None:
    engine, seen = Engine(1), []
    process: Process

    def before(step: str) -> None:
        if step == "second" and not process.paused_until:
            process.pause(100)

    process = Process(engine, "p", before)

    def event() -> None:
        for step in ("first", "second", "third"):
            process.then(step, seen.append, step)

    process.deliver("socket", event)
    process.deliver("socket", seen.append, "next event")
    assert seen == ["first"] and not process.runs
    while engine.step(99):
        pass
    assert seen == ["first"]
    while engine.step(100):
        pass
    assert seen == ["first", "second", "third", "next event"]


def test_the_second_half_of_an_effect_comes_before_what_waits() -> None:
    engine, seen = Engine(1), []
    process = Process(engine, "p", None)

    def first() -> None:
        seen.append("checked")
        process.next("bytes", seen.append, "written")

    process.then("write", first)
    process.then("other", seen.append, "other")
    process.deliver("socket", seen.append, "event")
    assert seen == ["checked", "written", "other", "event"]


def test_a_dead_process_hears_and_does_nothing_and_a_hung_one_never_wakes() -> None:
    engine, seen = Engine(1), []
    dead, hung = Process(engine, "p", None), Process(engine, "p", None)
    dead.kill()
    dead.deliver("socket", seen.append, "dead")
    hung.hang()
    hung.deliver("socket", seen.append, "hung")
    hung.resume()
    assert seen == [] and not hung.runs


# -- the gate's store --------------------------------------------------------------------------------------------------


def gate() -> GateSpec:
    return GateSpec(lambda: 0, 1000)


def test_a_replica_that_lacks_the_latest_changes_takes_over_and_nobody_is_armed() -> None:
    g = gate()
    g.arm(5, "n1")
    g.note_latch(5, None)
    g.arm(8, "n2")
    g.halt("stop")
    g.restart(lose_last=2)
    assert g.state().high_water == 5 and not g.armed and g.state().halted is None and not g.knows_latch
    assert g.claim(5, ["a"])[0].verdict is Verdict.UNARMED
    assert [d.op for d in g.record] == ["arm", "latch", "arm", "halt", "lost", "claim"]


def test_a_claim_that_a_replica_has_not_seen_is_forgotten_with_it() -> None:
    g = gate()
    g.arm(5, "n1")
    g.note_latch(5, None)
    assert g.claim(5, ["a"])[0].ok
    g.restart(lose_last=1)
    assert isinstance(g.arm(5, "n1"), Armed)
    g.note_latch(5, None)
    assert g.claim(5, ["a"])[0].ok


def test_who_armed_a_gate_that_has_forgotten_it_cannot_note_the_latch() -> None:
    g = gate()
    g.arm(5, "n1")
    g.flush()
    assert isinstance(g.note_latch(5, None), Unarmed)
    g.arm(8, "n2")
    assert isinstance(g.note_latch(5, None), Stale)
    assert isinstance(g.arm(8, "n1"), Stale), "for somebody else"


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_is_data_and_one_seed_gives_one_plan(profile: str) -> None:
    for seed in range(20):
        plan = draw_plan(seed, profile)
        assert plan == draw_plan(seed, profile) == Plan.from_json(plan.to_json())
        assert all(not rules_of(ttl).problems() for ttl in plan.ttls), "the tightest that the rules allow"


def test_what_is_asked_for_does_not_shift_the_rest() -> None:
    drawn, asked = draw_plan(5, "lease", nodes=3, venue="token"), draw_plan(5, "lease", nodes=3, venue="plain")
    assert asked == drawn.__class__(**{**{k: getattr(drawn, k) for k in drawn.__slots__}, "venue": "plain"})


def test_profiles_venues_seeds_and_scripts_that_are_none_are_named() -> None:
    with pytest.raises(ConfigError, match="profile 'x': it is none of all, "):
        draw_plan(1, "x")
    with pytest.raises(ConfigError, match="venue 'x': it is none of token, "):
        draw_plan(1, venue="x")
    for text in ("", "a..b", "5..5", "9..3", "-3..1", "1..2..3"):
        with pytest.raises(ConfigError, match="seeds"):
            parse_seeds(text)
    assert (parse_seeds("7"), parse_seeds("3..9")) == (range(7, 8), range(3, 9))
    for text in ("", "[]", "{}", '{"faults": 1}', '{"faults": [], "traps": [], "seed": 1}'):
        with pytest.raises(ConfigError, match="no fault script"):
            Plan.from_json(text)


def test_sums_of_several_processes_join_to_the_sum_of_one() -> None:
    which = Which("process", 2, "token")
    whole = live_some(range(6), which)
    joined = Summary()
    for part in (range(3, 6), range(3)):
        joined.join(live_some(part, which))
    assert joined.verdict == whole.verdict or {r.id: r.covers for r in joined.verdict.rows} == {
        r.id: r.covers for r in whole.verdict.rows
    }
    assert (joined.seeds, joined.failovers, joined.steps) == (whole.seeds, whole.failovers, whole.steps)
    assert sorted(joined.rto) == sorted(whole.rto)
