"""The status document, built from hand-made pictures: what is shown, and above all what is not claimed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.status import health, summary
from tests.support.fake_status import SOME_DAY, TOKEN, FakeStatus, detail, member, published

S = 10**9
HEARD = {"n1": 0.2, "n2": 0.2, "n3": 0.2}


def read(fake: FakeStatus, heard: dict[str, float | None] | None = None) -> summary.Cluster:
    return summary.read(fake.picture(), fake.published(), HEARD if heard is None else heard, me=fake.me)


def document(fake: FakeStatus, heard: dict[str, float | None] | None = None) -> dict[str, Any]:
    made = summary.document(read(fake, heard), fake.detail(), fake.positions(), unix_now=SOME_DAY)
    json.dumps(made, allow_nan=False)
    return made


def test_healthy_cluster_seen_from_a_standby_has_every_key_of_the_schema():
    d = document(FakeStatus("n2"))
    assert list(d) == [
        "schema",
        "cluster",
        "node",
        "at",
        "leader",
        "permission",
        "nodes",
        "last_failover",
        "history",
        "positions",
        "orders",
        "double_order_class",
        "venue",
        "gate",
        "feed",
        "strategy",
        "declined",
        "warnings",
    ]
    assert d["schema"] == 1 and d["cluster"] == "alpha" and d["node"] == "n2" and d["at"] == "2026-11-18T11:06:40.000Z"
    assert d["leader"] == {"node": "n1", "token": TOKEN, "since": "2026-11-18T11:06:40.000Z", "lease_left_s": 0.7}
    assert d["permission"] == {"level": "allowed", "reason": ""}
    assert [n["name"] for n in d["nodes"]] == ["n1", "n2", "n3"]
    assert set(d["nodes"][0]) == {
        "name", "role", "in_sync", "log_index", "commit_index", "lag_entries", "lag_s", "keeper_pid", "worker_pid",
        "http", "grpc", "feed_age_s", "feed_state", "version", "digest", "digest_index", "positions", "age_s",
    }  # fmt: skip
    assert [n["lag_entries"] for n in d["nodes"]] == [None, 0, 12]
    assert d["orders"] == {"open": 2, "unresolved": 0} and d["double_order_class"] == "proved" and d["warnings"] == []


def test_standby_ahead_of_what_the_leader_last_published_lags_by_nothing_not_by_less():
    fake = FakeStatus("n2")
    fake.own = published(log_index=1007)
    assert document(fake)["nodes"][1]["lag_entries"] == 0


def test_lag_is_unknown_without_a_leader_or_an_index():
    fake = FakeStatus("n1")
    fake.members["n2"]["status"].pop("log_index")
    assert [n["lag_entries"] for n in document(fake)["nodes"]] == [None, None, 12]
    fake.leader = None
    assert [n["lag_entries"] for n in document(fake)["nodes"]] == [None, None, None]


def test_no_leader_blocks_and_says_so():
    fake = FakeStatus("n2")
    fake.leader = None
    d = document(fake)
    assert d["leader"] is None and d["permission"] == {"level": "blocked", "reason": "no leader"}


@pytest.mark.parametrize("heard", [{}, {"n1": None}, {"n1": 3.1}])
def test_leader_that_is_silent_is_not_shown_as_trading(heard: dict[str, float | None]):
    d = document(FakeStatus("n2"), heard)
    assert d["permission"] == {"level": "blocked", "reason": "unknown"}
    assert d["leader"]["node"] == "n1" and any("n1 leads" in w for w in d["warnings"])


def test_lease_that_ran_out_on_the_way_here_is_not_shown_as_trading():
    fake = FakeStatus("n2")
    assert fake.leader is not None
    fake.picture_age_s, fake.leader["lease_left_s"] = 0.8, 0.75
    d = document(fake)
    assert d["permission"]["reason"] == "unknown" and d["leader"]["lease_left_s"] == -0.05
    assert "no renewal" in d["warnings"][0]


@pytest.mark.parametrize("age", [None, 3.2])
def test_silent_keeper_makes_everything_unknown(age: float | None):
    fake = FakeStatus("n1")
    fake.picture_age_s = age
    d = document(fake)
    assert d["permission"] == {"level": "blocked", "reason": "unknown"}
    assert {n["role"] for n in d["nodes"]} == {"unknown"} and {n["in_sync"] for n in d["nodes"]} == {None}
    assert "keeper of n1" in d["warnings"][0]


def test_leader_speaks_for_itself_at_once_and_not_through_etcd():
    fake = FakeStatus("n1")
    fake.own = published("leader", permission="blocked", permission_reason="gate: halted")
    assert document(fake, {})["permission"] == {"level": "blocked", "reason": "gate: halted"}


def test_permission_that_nobody_knows_is_unknown():
    fake = FakeStatus("n2")
    fake.members["n1"]["status"]["permission"] = "probably"
    assert document(fake)["permission"]["reason"] == "unknown"


def test_node_with_another_journal_is_not_in_sync_and_one_that_is_gone_is_not_known():
    fake = FakeStatus("n1")
    fake.members["n2"]["journal_id"] = "fresh-disk"
    del fake.members["n3"]
    rows = {n["name"]: n for n in document(fake)["nodes"]}
    assert (rows["n1"]["in_sync"], rows["n2"]["in_sync"], rows["n3"]["in_sync"]) == (True, False, None)
    assert rows["n3"]["role"] == "unknown" and rows["n3"]["age_s"] == 0.2


def test_last_failover_is_the_latest_that_was_one_and_first_start_is_none():
    fake = FakeStatus("n1")
    shown = document(fake)
    assert shown["last_failover"] == {
        "cause": "process died",
        "last_sign_ns": fake.history[1]["last_sign"],
        "rto_s": 0.0231,
        "phases_s": fake.history[1]["phases_s"],
        "token": TOKEN,
        "node": "n1",
        "came_from": "n3",
        "at": "2026-11-18T11:06:40.000Z",
    }
    assert [h["token"] for h in shown["history"]] == [TOKEN, 7]
    fake.history = fake.history[:1]
    assert document(fake)["last_failover"] is None
    fake.history = []
    assert document(fake)["leader"]["since"] is None


def test_books_that_differ_at_one_index_are_named():
    fake = FakeStatus("n1")
    fake.members["n3"]["status"]["digest"] = "bb22"
    assert any("n1 and n3 differ at index 512" in w for w in document(fake)["warnings"])
    fake.members["n3"]["status"]["digest_index"] = 1024
    assert document(fake)["warnings"] == []


def test_mismatches_and_own_warnings_are_passed_on():
    fake = FakeStatus("n1")
    fake.details = detail(mismatches=["BTCUSDT: venue 4, book 3"], warnings=["Redis does not sync"])
    assert document(fake)["warnings"] == ["Venue and journal disagree: BTCUSDT: venue 4, book 3", "Redis does not sync"]


def test_numbers_that_json_does_not_know_become_null():
    fake = FakeStatus("n1")
    fake.details["feed"]["age_s"] = float("inf")
    fake.own["lag_s"] = float("nan")
    d = document(fake)
    assert d["feed"]["age_s"] is None and d["nodes"][0]["lag_s"] is None


def test_times_outside_the_calendar_are_no_times():
    assert summary.iso(1) == "1970-01-01T00:00:00.000Z"
    assert [summary.iso(t) for t in (None, "x", True, -5, 10**30)] == [None] * 5


# -- anything in etcd -------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["age_s", "node", "role", "cluster", "leader", "insync", "members", "history"]


@given(
    broken=st.dictionaries(st.sampled_from(KEYS), junk),
    member_broken=st.dictionaries(st.sampled_from([*member("n2"), *published()]), junk),
    leader_broken=st.dictionaries(st.sampled_from(["node", "token", "lease_left_s"]), junk),
    record_broken=st.dictionaries(st.sampled_from(["token", "cause", "started_at", "phases_s", "rto_s"]), junk),
    own=st.dictionaries(st.sampled_from(list(published())), junk),
    details=st.dictionaries(st.sampled_from(list(detail())), junk),
)
def test_whatever_stands_in_etcd_the_document_is_made_and_is_json(
    broken: dict[str, Any],
    member_broken: dict[str, Any],
    leader_broken: dict[str, Any],
    record_broken: dict[str, Any],
    own: dict[str, Any],
    details: dict[str, Any],
):
    fake = FakeStatus("n2")
    fake.renewing = False
    assert fake.leader is not None
    fake.leader.update(leader_broken)
    fake.members["n1"].update(member_broken)
    fake.members["n3"]["status"].update(member_broken)
    fake.history[1].update(record_broken)
    picture = {**(fake.picture() or {}), **broken}
    heard = summary.LastHeard()
    heard.observe(picture, 0, SOME_DAY)
    c = summary.read(picture, own, heard.ages_s(S), me="n2")
    made = summary.document(c, details, [], unix_now=SOME_DAY)
    json.dumps(made, allow_nan=False)
    assert summary.outline(c) == summary.outline(c)
    for judge in (health.leads, health.holds_lease, health.in_sync, health.alive):
        assert judge(c).why
    assert health.stands_by(c, 10).why
    assert all(v.why is not None for _, v in health.readiness(c, details))
    if made["permission"]["level"] == "allowed":
        assert c.fresh and c.holder is not None and c.holder.alive


# -- silence ------------------------------------------------------------------------------------------------------


def picture_of(**status: Any) -> dict[str, Any]:
    return {"members": {"n1": {"status": status}}}


def test_age_counts_from_when_a_word_was_first_seen_here():
    heard = summary.LastHeard()
    heard.observe(picture_of(at=1, log_index=1), 0, 1)
    heard.observe(picture_of(at=2, log_index=1), 10 * S, 999 * S)
    heard.observe(picture_of(at=2, log_index=1), 12 * S, 999 * S)
    assert heard.ages_s(13 * S) == {"n1": 3.0}


def test_first_word_is_as_old_as_its_sender_says_and_of_unknown_age_if_it_does_not():
    heard = summary.LastHeard()
    heard.observe(picture_of(at=100 * S), 0, 160 * S)
    assert heard.ages_s(S) == {"n1": 61.0}
    heard = summary.LastHeard()
    heard.observe(picture_of(log_index=1), 0, 160 * S)
    assert heard.ages_s(S) == {"n1": None}


def test_sender_with_a_clock_in_the_future_is_not_younger_than_now():
    heard = summary.LastHeard()
    heard.observe(picture_of(at=900 * S), 0, 160 * S)
    assert heard.ages_s(2 * S) == {"n1": 2.0}


def test_dead_worker_whose_keeper_repeats_its_last_word_grows_old():
    heard = summary.LastHeard()
    for second in range(6):
        heard.observe(picture_of(at=5, permission="allowed"), second * S, 5 + second * S)
    assert heard.ages_s(5 * S)["n1"] == pytest.approx(5.0)


def test_member_that_leaves_is_forgotten_and_no_picture_changes_nothing():
    heard = summary.LastHeard()
    heard.observe(picture_of(at=1), 0, 1)
    heard.observe(None, S, 1)
    assert "n1" in heard.ages_s(S)
    heard.observe({"members": {}}, S, 1)
    assert heard.ages_s(S) == {}


def test_word_with_a_number_that_is_not_equal_to_itself_grows_old_too():
    heard = summary.LastHeard()
    for second in range(3):
        heard.observe(picture_of(at=0, feed_age_s=float("nan") * (second + 1)), second * S, 0)
    assert heard.ages_s(2 * S) == {"n1": 2.0}
