"""Each health check in each state of the node: a 200 must be earned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node.status import health, summary
from tests.support.fake_status import FakeStatus, published


def leading() -> FakeStatus:
    return FakeStatus("n1")


def leading_but_blocked() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.own = published("leader", permission="blocked", permission_reason="gate: not armed yet")
    return fake


def close_only() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.own = published("leader", permission="close-only", permission_reason="operator")
    return fake


def promoting() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.role = "promoting"
    return fake


def draining() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.role = "draining"
    return fake


def fenced_with_its_key_still_there() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.role = "fenced"
    return fake


def lease_ran_out() -> FakeStatus:
    fake = FakeStatus("n1")
    assert fake.leader is not None
    fake.leader["lease_left_s"] = 0.01  # said 0.05 s ago
    return fake


def lease_unknown() -> FakeStatus:
    fake = FakeStatus("n1")
    assert fake.leader is not None
    fake.leader["lease_left_s"] = None
    return fake


def standby() -> FakeStatus:
    return FakeStatus("n2")


def standby_out_of_sync() -> FakeStatus:
    fake = FakeStatus("n2")
    del fake.insync["n2"]
    return fake


def standby_with_a_new_disk() -> FakeStatus:
    fake = FakeStatus("n2")
    fake.insync["n2"] = "the-old-journal"
    return fake


def no_leader() -> FakeStatus:
    fake = FakeStatus("n2")
    fake.leader = None
    return fake


def no_picture() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.picture_age_s = None
    return fake


def stale_picture() -> FakeStatus:
    fake = FakeStatus("n1")
    fake.picture_age_s = 60.0
    return fake


def starting() -> FakeStatus:
    fake = FakeStatus("n2")
    fake.role = "starting"
    return fake


#                                            leader lease standby in-sync livez ready
TABLE = {
    leading:                                  "yes   yes   no      yes     yes   yes",
    leading_but_blocked:                      "no    yes   no      yes     yes   yes",
    close_only:                               "no    yes   no      yes     yes   yes",
    promoting:                                "no    yes   no      yes     yes   yes",
    draining:                                 "no    yes   no      yes     yes   yes",
    fenced_with_its_key_still_there:          "no    no    no      yes     yes   no",
    lease_ran_out:                            "no    no    no      yes     yes   no",
    lease_unknown:                            "no    no    no      yes     yes   no",
    standby:                                  "no    no    yes     yes     yes   yes",
    standby_out_of_sync:                      "no    no    yes     no      yes   no",
    standby_with_a_new_disk:                  "no    no    yes     no      yes   no",
    no_leader:                                "no    no    yes     yes     yes   yes",
    starting:                                 "no    no    no      yes     yes   no",
    no_picture:                               "no    no    no      no      no    no",
    stale_picture:                            "no    no    no      no      no    no",
}  # fmt: skip


@pytest.mark.parametrize("situation", TABLE, ids=lambda f: f.__name__)
def test_health_table(situation: Callable[[], FakeStatus]):
    fake = situation()
    c = summary.read(fake.picture(), fake.published(), {}, me=fake.me)
    ready = all(v.ok for _, v in health.readiness(c, fake.detail()))
    checks = (health.leads, health.holds_lease, health.stands_by, health.in_sync, health.alive)
    verdicts = [judge(c) for judge in checks]
    assert all(v.why for v in verdicts)
    said = ["yes" if ok else "no" for ok in (*(v.ok for v in verdicts), ready)]
    assert said == TABLE[situation].split()


@pytest.mark.parametrize(
    ("index", "own_lag", "allowed", "ok"),
    [
        (990, 0, 10, True),
        (990, 0, 9, False),  # etcd says it is 10 behind, though its own stream has nothing to say
        (1000, 25, 10, False),  # its own stream says 25, though the leader's number in etcd is old
        (None, None, 10**9, False),  # not known
        (None, 3, 3, True),
    ],
)
def test_standby_lag_believes_the_worse_of_what_is_known(
    index: int | None, own_lag: int | None, allowed: int, ok: bool
):
    fake = FakeStatus("n2")
    fake.own = published(log_index=index, lag_entries=own_lag)
    c = summary.read(fake.picture(), fake.published(), {}, me="n2")
    assert health.stands_by(c, allowed).ok is ok


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"feed_state": "stale"}, "feed"),
        ({"feed_state": None}, "feed"),
    ],
)
def test_readiness_names_the_feed(broken: dict[str, object], named: str):
    fake = FakeStatus("n2")
    fake.own = published(**broken)
    c = summary.read(fake.picture(), fake.published(), {}, me="n2")
    assert [name for name, v in health.readiness(c, fake.detail()) if not v.ok] == [named]


def test_readiness_names_a_strategy_that_failed_or_is_not_known():
    fake = FakeStatus("n2")
    c = summary.read(fake.picture(), fake.published(), {}, me="n2")
    for strategy in ({"failed": "on_market raised KeyError"}, {}):
        failed = [name for name, v in health.readiness(c, fake.detail() | {"strategy": strategy}) if not v.ok]
        assert failed == ["strategy"]


@pytest.mark.parametrize("part", ["gate", "venue"])
def test_readiness_names_a_gate_or_venue_that_does_not_answer_or_is_not_known(part: str):
    fake = FakeStatus("n2")
    c = summary.read(fake.picture(), fake.published(), {}, me="n2")
    for told in ({"why": "no answer within 0.25 s"}, {}):
        failed = {name: v.why for name, v in health.readiness(c, fake.detail() | {part: told}) if not v.ok}
        assert failed == {part: told.get("why", "not known")}


def test_readiness_names_an_etcd_that_is_silent():
    fake = FakeStatus("n2")
    c = summary.read(fake.picture() | {"etcd_silent_s": 12.3}, fake.published(), {}, me="n2")
    assert [name for name, v in health.readiness(c, fake.detail()) if not v.ok] == ["etcd"]
    assert summary.warnings(c, [], {})[0].startswith("etcd has not answered the keeper of n2 for 12 s")
