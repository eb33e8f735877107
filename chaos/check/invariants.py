"""The table: every invariant, what it says, what it needs, and who judges it (reference/chaos.md 3.2). Pure.

Each safety invariant carries a cover condition: counts that must not be 0, or nothing was shown. An exception inside a
judge is INVALID, never a pass. How each word is meant stands at the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import NamedTuple

from chaos.check import at_venue, books, fences, liveness, takeover, whole
from chaos.check.evidence import Evidence
from chaos.check.history import History
from chaos.check.verdict import Failover, Found, Judged, Level, Verdict, level_of


class Invariant(NamedTuple):
    """needs: fields of Evidence. wrong: what a violation makes of a run."""

    id: str
    statement: str
    needs: tuple[str, ...]
    judge: Callable[[History], Found]
    wrong: Level = Level.FAIL


INVARIANTS = MappingProxyType(
    {
        i.id: i
        for i in (
            Invariant("E", "the evidence is whole, and every fault bit", (), whole.evidence_is_whole, Level.INVALID),
            Invariant("S1", "no decision is executed twice", ("venue",), at_venue.no_double_order),
            Invariant("S2", "no stale token has an effect", ("venue",), at_venue.no_stale_effect),
            Invariant("S3", "one effective leader per token and time", ("venue",), at_venue.one_effective_leader),
            Invariant("S4", "nobody sends without its own token", ("sent", "etcd"), fences.standby_silence),
            Invariant("S5", "fills are conserved", ("venue", "journals"), books.fills_conserved),
            Invariant("S6", "positions and open orders agree", ("venue", "journals"), books.positions_agree),
            Invariant("S7", "what was committed survives", ("venue", "journals"), books.acknowledged_survives),
            Invariant("S8", "any doubt about gate or lease stops orders", ("venue", "gate"), fences.fails_closed),
            Invariant("S9", "the fence never falls", ("gate",), fences.fence_monotone),
            Invariant("S10", "settled before it trades", ("venue", "journals"), takeover.reconciled_first),
            Invariant("S11", "no order after the kill switch", ("venue", "gate"), fences.kill_switch),
            Invariant("L1", "time of a failover", ("venue", "faults"), liveness.failover_time),
            Invariant("L2", "a healed cluster trades again", ("venue", "etcd", "journals"), liveness.recovers),
            Invariant("L3", "no needless failover", ("etcd", "faults"), liveness.no_needless_failover),
        )
    }
)


def check(evidence: Evidence, ids: Iterable[str] = INVARIANTS) -> Verdict:
    """Judge one run. ids: which invariants; all, as a rule."""
    history = History(evidence)
    rows = tuple(_judged(INVARIANTS[i], history) for i in ids)
    return Verdict(rows, tuple(_failovers(history)))


def _judged(invariant: Invariant, history: History) -> Judged:
    name, statement = invariant.id, invariant.statement
    missing = [need for need in invariant.needs if getattr(history.evidence, need) is None]
    if missing:
        return Judged(name, statement, Level.NOT_JUDGED, note=f"no evidence of: {', '.join(missing)}")
    try:
        found = invariant.judge(history)
    except Exception as e:  # noqa: BLE001  # whatever it is, it must not look like a pass
        return Judged(name, statement, Level.INVALID, note=f"the judge failed: {type(e).__name__}: {e}")
    if found.unjudged and not found.violations:
        return Judged(name, statement, Level.NOT_JUDGED, counts=found.counts, note=found.unjudged)
    level = level_of(found.violations, found.covers, invariant.wrong)
    return Judged(name, statement, level, tuple(found.violations), found.covers, found.counts)


def _failovers(history: History) -> list[Failover]:
    if history.evidence.faults is None and history.evidence.operator is None:
        return []
    try:
        return liveness.failovers(history)
    except Exception:  # noqa: BLE001  # L1 has said so
        return []
