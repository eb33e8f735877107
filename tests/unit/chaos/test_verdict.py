"""Levels, how they merge, and that nothing which was not shown looks like a pass."""

from __future__ import annotations

import pytest

from chaos.check import at_venue, invariants
from chaos.check.evidence import Evidence, FaultLine, Run
from chaos.check.history import History
from chaos.check.invariants import INVARIANTS, Invariant, check
from chaos.check.verdict import Found, Judged, Level, Tally, Verdict, as_json, table
from tests.support.history import World


def row(level: Level, invariant: str = "S1", **more: object) -> Judged:
    return Judged(invariant, "says", level, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "worst", "code"),
    [
        ([Level.PASS, Level.PASS], Level.PASS, 0),
        ([Level.PASS, Level.NOT_JUDGED], Level.PASS, 0),
        ([Level.PASS, Level.INCONCLUSIVE], Level.INCONCLUSIVE, 4),
        ([Level.INCONCLUSIVE, Level.INVALID], Level.INVALID, 3),
        ([Level.INVALID, Level.FAIL, Level.PASS], Level.FAIL, 1),
        ([Level.NOT_JUDGED], Level.INVALID, 3),
        ([], Level.INVALID, 3),
    ],
)
def test_worst_decides_and_nothing_judged_is_no_pass(levels: list[Level], worst: Level, code: int) -> None:
    verdict = Verdict(tuple(row(x) for x in levels))
    assert (verdict.level, verdict.exit_code) == (worst, code)


def test_invariant_without_its_evidence_is_not_judged() -> None:
    verdict = check(Evidence())
    assert {r.id: r.level for r in verdict.rows if r.id != "E"} == {i: Level.NOT_JUDGED for i in INVARIANTS if i != "E"}
    assert verdict.row("E").level is Level.INCONCLUSIVE
    assert "no evidence of: venue, journals" in verdict.row("S5").note


def test_judge_that_fails_is_invalid_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = check(Evidence(Run("token"), venue=[{"venue_seq": 1}]))
    assert verdict.row("S1").level is Level.INVALID
    assert "the judge failed: KeyError" in verdict.row("S1").note
    assert verdict.level is Level.INVALID and verdict.problems

    def broken(_h: History) -> Found:
        raise ZeroDivisionError("x")

    table_ = dict(INVARIANTS) | {"S1": Invariant("S1", "says", (), broken)}
    monkeypatch.setattr(invariants, "INVARIANTS", table_)
    assert check(Evidence(), ["S1"]).level is Level.INVALID


def test_violation_stands_although_it_is_not_covered() -> None:
    found = Found(["wrong"], {"danger": 0})
    from chaos.check.verdict import level_of

    assert level_of(found.violations, found.covers) is Level.FAIL


def test_fault_without_proof_makes_the_run_invalid() -> None:
    seen = World(3).run(60).finish().evidence()
    assert check(seen).row("E").level is Level.PASS
    unproved = FaultLine("x", "cut", "n1", seen.run.healed_at or 0)
    verdict = check(seen._replace(faults=[*(seen.faults or ()), unproved]))
    assert verdict.level is Level.INVALID
    assert "fault x (cut of n1) has no proof that it took effect" in verdict.row("E").violations[0]


# -- many runs ---------------------------------------------------------------------------------------------------------


def tally(*rows: Judged) -> Tally:
    made = Tally()
    for i, r in enumerate(rows):
        made.add(Verdict((r,)), f"seed {i}")
    return made


def test_cover_of_one_run_covers_all() -> None:
    runs = [row(Level.INCONCLUSIVE, covers={"stale": 0}), row(Level.PASS, covers={"stale": 2})]
    (told,) = tally(*runs).verdict().rows
    assert (told.level, told.covers) == (Level.PASS, {"stale": 2})
    (told,) = tally(runs[0], runs[0]).verdict().rows
    assert (told.level, told.uncovered) == (Level.INCONCLUSIVE, ["stale"])


def test_one_failure_in_many_runs_is_a_failure_with_its_seed() -> None:
    good = row(Level.PASS, covers={"stale": 1})
    (told,) = tally(good, row(Level.FAIL, violations=("wrong",), covers={"stale": 1}), good).verdict().rows
    assert (told.level, told.violations, told.counts["failed runs"]) == (Level.FAIL, ["seed 1: wrong"], 1)
    assert told.note == ""
    (told,) = tally(good, row(Level.INVALID, note="broken"), good).verdict().rows
    assert (told.level, told.violations) == (Level.INVALID, ["seed 1: broken"])


def test_no_failure_in_n_runs_is_told_with_its_upper_bound() -> None:
    (told,) = tally(*[row(Level.PASS, covers={"stale": 1})] * 1000).verdict().rows
    assert told.note == "held in all of 1000 runs: with 95 % confidence it is broken in less than 1 run of 333"
    (told,) = tally(*[row(Level.PASS, covers={"stale": 1})] * 5).verdict().rows
    assert told.note == ""
    (told,) = tally(row(Level.NOT_JUDGED)).verdict().rows
    assert told.level is Level.NOT_JUDGED


def test_the_first_failing_runs_are_named_in_their_order_and_the_others_counted() -> None:
    def part(*seeds: int) -> Tally:
        made = Tally()
        for seed in seeds:
            made.add(Verdict((row(Level.FAIL, violations=("wrong",)),)), f"seed {seed}")
        return made

    whole = part(*range(100, 108))
    for other in (part(9, 10, 11), part(2, 3)):
        whole.join(other)
    (told,) = whole.verdict().rows
    assert told.violations == [f"seed {s}: wrong" for s in (2, 3, 9, 10, 11, 100, 101, 102, 103, 104)]
    assert told.note == "and 3 more"
    assert table(whole.verdict())[-2].strip() == "and 3 more"


def test_tallies_join_in_any_order() -> None:
    rows = [
        row(Level.PASS, covers={"a": 1, "b": 0}),
        row(Level.INCONCLUSIVE, covers={"a": 0, "b": 3}),
        row(Level.NOT_JUDGED),
    ]
    whole, first, second = tally(*rows), tally(rows[2], rows[0]), tally(rows[1])
    second.join(first)
    assert second.runs == whole.runs == 3
    assert second.verdict().rows == whole.verdict().rows


def test_failovers_of_all_runs_are_kept() -> None:
    made = Tally()
    one = check(World(3).run(60).finish().evidence())
    made.add(one)
    made.add(one)
    assert len(made.verdict().failovers) == 2 * len(one.failovers) > 0


# -- as it is told -----------------------------------------------------------------------------------------------------


def test_table_and_json_tell_the_same() -> None:
    seen = Evidence(Run("token"), venue=World(5).run(30).record())
    verdict = check(seen)
    told, lines = as_json(verdict), table(verdict)
    assert told["verdict"] == verdict.level.word and told["exit_code"] == verdict.exit_code
    assert [i["id"] for i in told["invariants"]] == list(INVARIANTS)
    for r in verdict.rows:
        (line,) = [x for x in lines if x[14:18].strip() == r.id]
        assert line.startswith(r.level.word) and r.statement in line
    assert "not judged" in lines[4] and lines[-1].startswith(verdict.level.word)


def test_every_safety_invariant_says_what_must_have_happened() -> None:
    history = History(World(3).run(60).finish().evidence())
    for invariant in INVARIANTS.values():
        assert invariant.judge(history).covers, invariant.id
    assert INVARIANTS["S2"].judge is at_venue.no_stale_effect
