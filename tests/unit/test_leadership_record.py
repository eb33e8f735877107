"""The record of one leadership: which times it may use, and that nothing written by hand can fail a takeover."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.core.actions import TellLead
from cluster.core.ids import NS_PER_S, JournalId, NodeId, Term
from cluster.core.lease import InSync
from cluster.record import LeadershipRecord

S = NS_PER_S
LAST_SIGN, ENDED, WON = 100 * S, 101 * S, 101 * S + S // 100
RESIGNED: dict[str, Any] = {"token": 7, "reason": "worker died", "actor": "n1", "at": ENDED, "last_sign": LAST_SIGN}


def lead(cause: str = "worker died", actor: str = "n1") -> TellLead:
    return TellLead(Term(9), InSync({NodeId("n2"): JournalId("j2")}, 9), cause, actor, NodeId("n1"))


def test_a_failover_is_timed_from_the_old_leaders_last_sign_to_the_new_ones_first_order():
    record = LeadershipRecord("n2", lead(), RESIGNED, WON)
    assert record.reconciled(9, {"catch_up": 0.002, "arm": 0.001}, WON + S // 10)
    assert record.as_json()["rto_s"] is None
    assert record.first_order(9, WON + S // 5)
    told = record.as_json()
    assert (told["token"], told["node"], told["came_from"], told["cause"], told["actor"]) == (
        9,
        "n2",
        "n1",
        "worker died",
        "n1",
    )
    assert told["phases_s"] == pytest.approx(
        {"detect": 1.0, "elect": 0.01, "catch_up": 0.002, "arm": 0.001, "first_order": 0.1}
    )
    assert told["rto_s"] == pytest.approx((WON + S // 5 - LAST_SIGN) / S)


def test_another_terms_news_change_nothing():
    record = LeadershipRecord("n2", lead(), RESIGNED, WON)
    before = record.as_json()
    assert not record.reconciled(8, {"x": 1.0}, WON)
    assert not record.first_order(8, WON)
    assert record.as_json() == before


@pytest.mark.parametrize(
    ("cause", "actor"),
    [
        ("first start", ""),
        ("evicted", "n3"),  # the key has moved on
        ("worker died", "n3"),
        ("leader key vanished", ""),  # the same words may stand there of an older term, but with an actor
    ],
)
def test_a_resignation_of_another_vacancy_dates_nothing(cause, actor):
    old = RESIGNED | ({"reason": cause} if cause == "leader key vanished" else {})
    record = LeadershipRecord("n2", lead(cause, actor), old, WON)
    record.reconciled(9, {}, WON)
    record.first_order(9, WON + S)
    told = record.as_json()
    assert (told["last_sign"], told["rto_s"]) == (None, None)
    assert told["phases_s"] == {"first_order": 1.0}


@pytest.mark.parametrize("value", [None, "soon", -1, 0, 1.5, True, [], {}, float("inf")])
@pytest.mark.parametrize("field", ["at", "last_sign"])
def test_a_time_that_is_none_is_not_known(field, value):
    told = LeadershipRecord("n2", lead(), RESIGNED | {field: value}, WON).as_json()
    assert told["phases_s"] == {}
    assert (told["last_sign"] is None) == (field == "last_sign")
    assert LeadershipRecord("n2", lead(), {}, WON).as_json()["phases_s"] == {}


def test_an_order_that_another_clock_dates_before_the_takeover_took_no_time():
    record = LeadershipRecord("n2", lead(), RESIGNED, WON)
    record.reconciled(9, {}, WON + S)
    record.first_order(9, WON)
    assert record.as_json()["phases_s"]["first_order"] == 0.0
