"""L1 to L3: failovers are measured in their parts, a healed cluster trades again, nothing harmless moves the lead."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.check.evidence import EtcdLine, Evidence, FaultLine, OperatorLine, Run
from chaos.check.invariants import check
from chaos.check.verdict import Failover, Level
from tests.support.history import STEP, World

MS = 1_000_000
ETCD = [
    EtcdLine(5, "acquired", 5, "n1", 0),
    EtcdLine(6, "ended", 5, "n1", 130 * MS),
    EtcdLine(8, "acquired", 8, "n2", 150 * MS),
]
KILL = FaultLine("f", "kill", "n1", 99 * MS, 100 * MS, 400 * MS, "gone")


def order(token: int, at_ms: int) -> dict[str, Any]:
    return {
        "venue_seq": at_ms, "at_ns": at_ms * MS, "kind": "new", "outcome": "accepted", "reason": None, "node": "n",
        "token": token, "client_order_id": f"c{at_ms}", "decision_id": f"d{at_ms}", "qty_lots": 1,
    }  # fmt: skip


def seen(**told: Any) -> Evidence:
    base: dict[str, Any] = {
        "run": Run("token", venue_epoch=0),
        "venue": [order(5, 50), order(8, 170)],
        "faults": [KILL],
    }
    return Evidence(**base | told)


# -- L1 ----------------------------------------------------------------------------------------------------------------


def test_failover_is_measured_in_its_parts() -> None:
    (found,) = check(seen(etcd=ETCD)).failovers
    assert found == Failover("f", 8, 100 * MS, 30 * MS, 50 * MS, 70 * MS)
    (without_etcd,) = check(seen()).failovers
    assert without_etcd == Failover("f", 8, 100 * MS, None, None, 70 * MS)


def test_switchover_is_measured_from_the_request() -> None:
    asked = OperatorLine(140 * MS, "switchover_asked")
    assert check(seen(etcd=ETCD, faults=[], operator=[asked])).failovers[0][:3] == ("switchover", 8, 140 * MS)


def test_fault_of_the_leader_is_the_cause_before_any_other() -> None:
    other = KILL._replace(id="g", target="n3", effect=120 * MS)
    assert check(seen(etcd=ETCD, faults=[KILL, other])).failovers[0].cause == "f"
    assert check(seen(etcd=ETCD, faults=[KILL._replace(harmless=True), other])).failovers[0].cause == "g"
    assert check(seen(etcd=ETCD, faults=[])).failovers == (Failover("unknown", 8),)


@pytest.mark.parametrize(("bound", "level"), [(0, Level.PASS), (70 * MS, Level.PASS), (69 * MS, Level.FAIL)])
def test_failover_that_takes_longer_than_allowed_fails(bound: int, level: Level) -> None:
    verdict = check(seen(run=Run("token", venue_epoch=0, rto_max=bound), etcd=ETCD))
    assert verdict.row("L1").level is level


def test_without_a_failover_nothing_is_measured() -> None:
    assert check(seen(venue=[order(5, 50)])).row("L1").level is Level.INCONCLUSIVE


# -- L2 ----------------------------------------------------------------------------------------------------------------


def healed(**run: Any) -> Evidence:
    made = World(3).run(40).finish().evidence()
    return made._replace(run=made.run._replace(**run))


def test_cluster_that_trades_on_after_the_heal_passes() -> None:
    assert check(healed()).row("L2").level is Level.PASS


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"healed_at": None}, "when the faults were healed"),
        ({"at_rest": False}, "at rest"),
        ({"venue_epoch": None}, "clock"),
    ],
)
def test_recovery_that_cannot_be_told_is_not_judged(run: dict[str, Any], words: str) -> None:
    row = check(healed(**run)).row("L2")
    assert row.level is Level.NOT_JUDGED and words in row.note


def test_run_that_ended_before_its_bound_is_inconclusive() -> None:
    assert check(healed(recovery_max=10_000 * STEP)).row("L2").level is Level.INCONCLUSIVE


def test_what_does_not_come_back_is_named() -> None:
    good = healed()
    due = (good.run.healed_at or 0) + good.run.recovery_max
    etcd = list(good.etcd or ())
    ended = EtcdLine(etcd[-1].revision + 1, "ended", etcd[-1].token, etcd[-1].node, due - 1)

    def told(seen: Evidence) -> str:
        return " | ".join(check(seen).row("L2").violations)

    assert "nobody leads" in told(good._replace(etcd=[*etcd, ended]))
    assert "ended after all was healed" in told(good._replace(etcd=[*etcd, ended._replace(at=due + 1)]))
    quiet = [x for x in good.venue or () if x["token"] != etcd[-1].token]
    assert "no order of token" in told(good._replace(venue=quiet))
    pressed = OperatorLine(due - 2, "halt_pressed")
    assert told(good._replace(venue=quiet, operator=[pressed])) == ""
    short = [j._replace(last_index=1) if j.node == "n2" else j for j in good.journals or ()]
    assert "journals differ at the end" in told(good._replace(journals=short))


# -- L3 ----------------------------------------------------------------------------------------------------------------


def test_harmless_fault_moves_nothing() -> None:
    small = KILL._replace(kind="pause", harmless=True)
    assert check(seen(etcd=ETCD[:1], faults=[small])).row("L3").level is Level.PASS
    (told,) = check(seen(etcd=ETCD, faults=[small])).row("L3").violations
    assert told == "token 8 was given to n2 although nothing but pause had happened"


def test_runs_with_other_faults_or_a_request_say_nothing_of_harmless_ones() -> None:
    small = KILL._replace(kind="pause", harmless=True)
    asked = OperatorLine(140 * MS, "switchover_asked")
    for told in ({"faults": [small, KILL]}, {"faults": [small], "operator": [asked]}, {"faults": []}):
        assert check(seen(etcd=ETCD, **told)).row("L3").level is Level.INCONCLUSIVE
