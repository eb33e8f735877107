"""What comes out: FAIL > INVALID > INCONCLUSIVE > PASS, per invariant and merged. Pure.

- FAIL: a violation, named. It stands whatever else is wrong.
- INVALID: the evidence is broken, a fault has no proof that it bit, or the judge itself failed: the run says nothing.
- INCONCLUSIVE: nothing is wrong, and the danger never arose, so nothing was shown either.
- PASS: nothing is wrong, and every cover condition was met.

An invariant whose evidence does not exist is NOT_JUDGED: it neither passes nor spoils the others. A verdict in which
nothing was judged is INVALID. `Tally` merges many runs: violations and covers add up, so that a danger which arises in
one run of a thousand covers them all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple


class Level(IntEnum):
    """Ascending: the worst decides."""

    NOT_JUDGED = 0
    PASS = 1
    INCONCLUSIVE = 2
    INVALID = 3
    FAIL = 4

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", " ") if self is Level.NOT_JUDGED else self.name

    @property
    def exit_code(self) -> int:
        """2 stays for wrong usage."""
        return _EXIT[self]


_EXIT = {Level.PASS: 0, Level.FAIL: 1, Level.INVALID: 3, Level.INCONCLUSIVE: 4, Level.NOT_JUDGED: 3}


class Found(NamedTuple):
    """What an invariant's function hands back. unjudged: why this evidence decides nothing; empty: it does."""

    violations: Sequence[str]
    covers: Mapping[str, int]
    counts: Mapping[str, int] = {}
    unjudged: str = ""


class Judged(NamedTuple):
    """One invariant. covers: what must have happened, and how often it did. counts: what else was counted. note: why it
    is not judged, or invalid."""

    id: str
    statement: str
    level: Level
    violations: Sequence[str] = ()
    covers: Mapping[str, int] = {}
    counts: Mapping[str, int] = {}
    note: str = ""

    @property
    def uncovered(self) -> list[str]:
        return [what for what, found in self.covers.items() if not found]


class Failover(NamedTuple):
    """From one token to the next, as far as the evidence tells. Times in ns after `effect`, the moment of the fault or
    of the request; None: not known."""

    cause: str
    token: int
    effect: int | None = None
    detected: int | None = None
    elected: int | None = None
    first_order: int | None = None


class Verdict(NamedTuple):
    rows: tuple[Judged, ...]
    failovers: tuple[Failover, ...] = ()

    @property
    def level(self) -> Level:
        return worst(row.level for row in self.rows)

    @property
    def exit_code(self) -> int:
        return self.level.exit_code

    @property
    def problems(self) -> list[str]:
        """Each violation, and why a run is invalid; empty is good. A danger that did not arise is no problem."""
        found = [f"{row.id}: {v}" for row in self.rows for v in row.violations]
        return found + [
            f"{row.id}: {row.note}" for row in self.rows if row.level is Level.INVALID and not row.violations
        ]

    @property
    def failed(self) -> frozenset[str]:
        return frozenset(row.id for row in self.rows if row.level is Level.FAIL)

    def row(self, invariant: str) -> Judged:
        """Raises KeyError for an id that is none."""
        for row in self.rows:
            if row.id == invariant:
                return row
        raise KeyError(invariant)


def worst(levels: Iterable[Level]) -> Level:
    """INVALID when there is nothing that was judged."""
    return max(levels, default=Level.NOT_JUDGED) or Level.INVALID


def level_of(violations: Sequence[str], covers: Mapping[str, int], found_wrong: Level = Level.FAIL) -> Level:
    if violations:
        return found_wrong
    return Level.PASS if all(covers.values()) else Level.INCONCLUSIVE


# -- many runs ---------------------------------------------------------------------------------------------------------

EXAMPLES_MAX = 10
RUNS_MIN = 6
"""Fewer that held say nothing of how rare a violation is."""


@dataclass(slots=True)
class _Sum:
    statement: str
    runs: int = 0  # in which it was judged
    levels: Counter[Level] = field(default_factory=Counter)
    covers: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    named: int = 0  # violations, of which the examples are the first few

    def join(self, other: _Sum) -> None:
        self.runs += other.runs
        self.levels += other.levels
        _add(self.covers, other.covers)
        _add(self.counts, other.counts)
        self.examples = sorted(self.examples + other.examples, key=_by_run)[:EXAMPLES_MAX]
        self.named += other.named


def _by_run(example: str) -> list[tuple[int, str]]:
    """Seed 9 before seed 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", example.partition(": ")[0])]


def _add(sums: Counter[str], found: Mapping[str, int]) -> None:
    """Keeps the zeros: a cover that was never met must stay in sight."""
    for what, n in found.items():
        sums[what] += n


class Tally:
    """The verdicts of many runs as one; tallies of several processes join, in any order."""

    def __init__(self) -> None:
        self.runs = 0
        self.failovers: list[Failover] = []
        self._sums: dict[str, _Sum] = {}

    def add(self, verdict: Verdict, run: str = "") -> None:
        """run: by which it is found again, a seed say."""
        self.runs += 1
        self.failovers += verdict.failovers
        for row in verdict.rows:
            s = self._sum(row.id, row.statement)
            if row.level is Level.NOT_JUDGED:
                continue
            s.runs += 1
            s.levels[row.level] += 1
            _add(s.covers, row.covers)
            _add(s.counts, row.counts)
            told = row.violations or ([row.note] if row.level is Level.INVALID else [])
            s.named += len(told)
            for v in told[: EXAMPLES_MAX - len(s.examples)]:
                s.examples.append(f"{run}: {v}" if run else v)

    def join(self, other: Tally) -> None:
        self.runs += other.runs
        self.failovers += other.failovers
        for invariant, one in other._sums.items():
            self._sum(invariant, one.statement).join(one)

    def _sum(self, invariant: str, statement: str) -> _Sum:
        if invariant not in self._sums:
            self._sums[invariant] = _Sum(statement)
        return self._sums[invariant]

    def verdict(self) -> Verdict:
        return Verdict(tuple(self._rows()), tuple(self.failovers))

    def _rows(self) -> Iterator[Judged]:
        for invariant, s in self._sums.items():
            if not s.runs:
                yield Judged(invariant, s.statement, Level.NOT_JUDGED)
                continue
            level = Level.PASS if all(s.covers.values()) else Level.INCONCLUSIVE
            level = next((x for x in (Level.FAIL, Level.INVALID) if s.levels[x]), level)
            bad = {"failed runs": s.levels[Level.FAIL], "invalid runs": s.levels[Level.INVALID]}
            counts = {"runs": s.runs} | {what: n for what, n in bad.items() if n}
            note = self.bound(invariant)
            if s.named > len(s.examples):
                note = f"and {s.named - len(s.examples)} more"
            elif level is Level.INVALID:
                note = f"{s.levels[Level.INVALID]} of {s.runs} runs"
            yield Judged(invariant, s.statement, level, s.examples, dict(s.covers), counts | dict(s.counts), note)

    def bound(self, invariant: str) -> str:
        """How rare a violation is, with 95 % confidence: 0 in n valid runs says less than 3/n. Empty if there was one,
        or too few runs."""
        s = self._sums[invariant]
        valid = s.runs - s.levels[Level.INVALID]
        if s.levels[Level.FAIL] or valid < RUNS_MIN:
            return ""
        return f"held in all of {valid} runs: with 95 % confidence it is broken in less than 1 run of {valid // 3}"


# -- for people and for programs ---------------------------------------------------------------------------------------


def headline(row: Judged) -> str:
    seen = ", ".join(f"{found} {what}" for what, found in {**row.covers, **row.counts}.items())
    if row.level is Level.NOT_JUDGED:
        seen = row.note
    return f"{row.level.word:<12}  {row.id:<3}  {row.statement}" + (f"  ({seen})" if seen else "")


def table(verdict: Verdict) -> list[str]:
    """A line per invariant, its violations and what was not covered below it."""
    out = []
    for row in verdict.rows:
        out.append(headline(row))
        out += [f"{'':14}     {v}" for v in row.violations]
        if row.level is Level.INCONCLUSIVE:
            out.append(f"{'':14}     the danger never arose: 0 {', 0 '.join(row.uncovered)}")
        elif row.note and row.level is not Level.NOT_JUDGED:
            out.append(f"{'':14}     {row.note}")
    judged = sum(r.level is not Level.NOT_JUDGED for r in verdict.rows)
    return [*out, f"{verdict.level.word:<12}  altogether, of {judged} invariants that were judged"]


def as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.level.word,
        "exit_code": verdict.exit_code,
        "invariants": [
            row._asdict()
            | {"level": row.level.word, "violations": list(row.violations), "uncovered": row.uncovered}
            | {"covers": dict(row.covers), "counts": dict(row.counts)}
            for row in verdict.rows
        ],
        "failovers": [f._asdict() for f in verdict.failovers],
    }
