"""Who may act, acquire and evict, and from when: the arithmetic of DESIGN 4."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.ids import NS_PER_S, Incarnation, Instant, JournalId, NodeId, Term
from cluster.core.lease import (
    InSync,
    LeaderKey,
    LeaseRules,
    Member,
    Resigned,
    Sightings,
    Tenure,
    View,
    acquire_from,
    choose_successor,
    evict_from,
    rank,
)

MS = NS_PER_S // 1000
TTL = 1000 * MS
RULES = LeaseRules(ttl=TTL, margin=200 * MS, renew_interval=150 * MS, clock_drift_max=0.05, send_slack=50 * MS)
T0 = Instant(500 * NS_PER_S)


def key(token: int, *, mod: int | None = None, ttl: int = TTL, node: str = "n1") -> LeaderKey:
    return LeaderKey(NodeId(node), Incarnation("i"), "home", 1, ttl, 0, Term(token), mod or token)


def tenure(token: int, *, ttl: int = TTL, node: str = "n1") -> Tenure:
    return Tenure(NodeId(node), Incarnation("i"), "home", ttl, Term(token))


def resigned(token: int, successor: str | None = None) -> Resigned:
    return Resigned(Term(token), "a test", "n1", NodeId(successor) if successor else None, 0)


def member(node: str, *, priority: int = 0, never_lead: bool = False, ready: bool = True) -> Member:
    return Member(NodeId(node), Incarnation("i"), JournalId(f"{node}-j"), priority, never_lead, ready)


def insync(*nodes: str) -> InSync:
    return InSync({NodeId(n): JournalId(f"{n}-j") for n in nodes}, 3)


def members(*ms: Member) -> dict[NodeId, Member]:
    return {m.node: m for m in ms}


# -- rules ------------------------------------------------------------------------------------------------------


def test_a_leader_acts_until_ttl_less_margin_after_it_asked() -> None:
    assert RULES.act_until(T0) == T0 + 800 * MS
    assert RULES.pause_budget == 400 * MS


def test_defaults_have_no_problems() -> None:
    assert RULES.problems() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ttl": 299 * MS, "margin": 80 * MS, "renew_interval": 50 * MS}, ["lease.ttl_s = 0.299 s", "at least 0.3 s"]),
        (
            {"renew_interval": 267 * MS},
            ["renew_interval_s * 3 = 0.801 s", "lease.margin_s = 0.8 s", "two lost renewals"],
        ),
        ({"renew_interval": 0}, ["lease.renew_interval_s = 0 s", "above 0 s"]),
        ({"renew_interval": -MS}, ["lease.renew_interval_s = -0.001 s", "above 0 s"]),
        ({"margin": 149 * MS}, ["lease.margin_s = 0.149 s", "send_slack_s = 0.15 s", "old leader may still act"]),
        ({"clock_drift_max": 0.08}, ["lease.margin_s = 0.2 s", "= 0.21 s"]),
        ({"clock_drift_max": float("nan")}, ["lease.margin_s = 0.2 s", "= nan s"]),
        ({"clock_drift_max": -0.1}, ["clock_drift_max = -0.1", "send_slack_s = 0.05 s", "must not be negative"]),
        ({"send_slack": -MS}, ["clock_drift_max = 0.05", "send_slack_s = -0.001 s", "must not be negative"]),
    ],
)
def test_a_relation_that_does_not_hold_is_told_with_both_values(change: dict[str, float], says: list[str]) -> None:
    found = replace(RULES, **change).problems()
    assert len(found) == 1
    for part in says:
        assert part in found[0]


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": 300 * MS, "margin": 80 * MS, "renew_interval": 50 * MS},
        {"renew_interval": 266 * MS},
        {"margin": 150 * MS},
    ],
)
def test_the_bounds_themselves_are_allowed(change: dict[str, int]) -> None:
    assert replace(RULES, **change).problems() == []


def test_several_problems_are_told_at_once() -> None:
    found = replace(RULES, ttl=200 * MS, margin=0, renew_interval=100 * MS).problems()
    assert [p.split(" ")[0] for p in found] == ["lease.ttl_s", "lease.renew_interval_s", "lease.margin_s"]


@given(
    ttl=st.integers(300, 60_000),
    drift=st.floats(0, 0.2),
    slack=st.integers(0, 50),
    slow=st.floats(-1, 1),
    fast=st.floats(-1, 1),
)
def test_whatever_passes_ends_before_the_others_wait_ends(
    ttl: int, drift: float, slack: int, slow: float, fast: float
) -> None:
    """The formula at the head of `lease.py`, in true time: one clock at 1 + slow * d, the other at 1 + fast * d."""
    rules = LeaseRules(ttl * MS, round(ttl * MS * 2 * drift) + slack * MS + 1, MS, drift, slack * MS)
    assert not any("margin" in p and "renew" not in p for p in rules.problems())
    acts_for = (rules.act_until(Instant(0)) + rules.send_slack) / (1 + slow * drift)
    others_wait = rules.ttl / (1 + fast * drift)
    assert acts_for <= others_wait * (1 + 1e-9) + rules.send_slack * drift / (1 - drift) + 1


# -- acquire ----------------------------------------------------------------------------------------------------


def seen(*views: tuple[int, View]) -> Sightings:
    s = Sightings()
    for ms, view in views:
        s.note(view, Instant(T0 + ms * MS))
    return s


def test_rule_1_a_new_cluster_is_free_at_once() -> None:
    view = View(5)
    assert acquire_from(view, seen((0, view))) == 0


def test_rule_2_a_term_that_was_resigned_is_free_at_once() -> None:
    view = View(9, tenure=tenure(8), resigned=resigned(8))
    assert acquire_from(view, seen((0, view))) == 0


def test_rule_2_does_not_take_an_older_resignation() -> None:
    view = View(9, tenure=tenure(8), resigned=resigned(7))
    assert not view.ended_properly
    assert acquire_from(view, seen((0, view))) == T0 + TTL


def test_rule_3_counts_from_absence_and_not_from_the_last_renewal_seen() -> None:
    there, gone = View(9, leader=key(8, mod=9), tenure=tenure(8)), View(10, tenure=tenure(8))
    s = seen((0, there), (700, gone))
    assert acquire_from(gone, s) == T0 + 700 * MS + TTL
    s.note(replace(gone, revision=11), Instant(T0 + 900 * MS))
    assert acquire_from(gone, s) == T0 + 700 * MS + TTL, "further sights of the same absence do not restart it"


def test_rule_3_takes_the_ttl_of_the_tenure_not_our_own() -> None:
    gone = View(10, tenure=tenure(8, ttl=3 * TTL))
    assert acquire_from(gone, seen((0, gone))) == T0 + 3 * TTL


def test_rule_3_starts_anew_for_a_term_that_came_and_went_between_two_views() -> None:
    first, second = View(10, tenure=tenure(8)), View(14, tenure=tenure(12))
    assert acquire_from(second, seen((0, first), (600, second))) == T0 + 600 * MS + TTL


def test_rule_3_starts_anew_when_the_key_was_seen_again() -> None:
    gone = View(10, tenure=tenure(8))
    s = seen((0, gone), (300, View(12, leader=key(12), tenure=tenure(12))), (600, View(13, tenure=tenure(12))))
    assert acquire_from(View(13, tenure=tenure(12)), s) == T0 + 600 * MS + TTL


def test_no_acquire_while_a_leader_stands() -> None:
    view = View(9, leader=key(8), tenure=tenure(8), resigned=resigned(8))
    assert acquire_from(view, seen((0, view))) is None


def test_no_acquire_on_an_absence_that_was_not_noted() -> None:
    gone = View(10, tenure=tenure(8))
    assert acquire_from(gone, Sightings()) is None
    assert acquire_from(gone, seen((0, View(5, tenure=tenure(3))))) is None


# -- evict ------------------------------------------------------------------------------------------------------


def test_a_leader_may_be_evicted_its_own_ttl_after_a_renewal_was_first_seen() -> None:
    view = View(9, leader=key(8, mod=9, ttl=2 * TTL), tenure=tenure(8))
    s = seen((0, view))
    s.note(view, Instant(T0 + 500 * MS))
    assert evict_from(view, s) == T0 + 2 * TTL


def test_each_renewal_starts_the_wait_anew() -> None:
    first, second = (View(r, leader=key(8, mod=r), tenure=tenure(8)) for r in (9, 10))
    assert evict_from(second, seen((0, first), (150, second))) == T0 + 150 * MS + TTL


def test_no_eviction_without_a_leader_or_without_having_noted_it() -> None:
    view = View(9, leader=key(8, mod=9), tenure=tenure(8))
    assert evict_from(View(9, tenure=tenure(8)), seen((0, view))) is None
    assert evict_from(view, Sightings()) is None
    assert evict_from(view, seen((0, View(8, leader=key(8), tenure=tenure(8))))) is None


def test_an_absence_ends_what_was_seen_of_renewals() -> None:
    view = View(9, leader=key(8, mod=9), tenure=tenure(8))
    s = seen((0, view), (100, View(10, tenure=tenure(8))))
    assert s.renewal is None
    assert evict_from(view, s) is None


# -- who is next -----------------------------------------------------------------------------------------------


def order(view: View) -> list[str]:
    return sorted((str(n) for n in view.members), key=lambda n: rank(view, NodeId(n)))


ALL = members(member("n1"), member("n2", priority=5), member("n3", priority=9))


def test_rank_by_priority_then_name() -> None:
    view = View(1, insync=insync("n1", "n2", "n3"), members=ALL)
    assert order(view) == ["n3", "n2", "n1"]
    same = View(1, insync=insync("a", "b"), members=members(member("b"), member("a")))
    assert order(same) == ["a", "b"]


def test_the_node_that_led_last_comes_last_whatever_its_priority() -> None:
    view = View(9, tenure=tenure(8, node="n3"), insync=insync("n1", "n2", "n3"), members=ALL)
    assert order(view) == ["n2", "n1", "n3"]


def test_the_successor_asked_for_comes_first() -> None:
    view = View(
        9,
        tenure=tenure(8, node="n3"),
        resigned=resigned(8, "n1"),
        insync=insync("n1", "n2", "n3"),
        members=ALL,
    )
    assert order(view) == ["n1", "n2", "n3"]


def test_the_successor_comes_first_even_when_it_led_last() -> None:
    view = View(
        9, tenure=tenure(8, node="n1"), resigned=resigned(8, "n1"), insync=insync("n1", "n2", "n3"), members=ALL
    )
    assert order(view) == ["n1", "n3", "n2"]


def test_a_successor_of_an_earlier_term_counts_no_more() -> None:
    view = View(
        9, tenure=tenure(8, node="n2"), resigned=resigned(5, "n1"), insync=insync("n1", "n2", "n3"), members=ALL
    )
    assert order(view) == ["n3", "n1", "n2"]


@pytest.mark.parametrize(
    "unfit",
    [member("n3", priority=9, never_lead=True), member("n3", priority=9, ready=False)],
)
def test_who_never_leads_or_is_not_ready_makes_nobody_wait(unfit: Member) -> None:
    view = View(1, insync=insync("n1", "n2", "n3"), members={**ALL, NodeId("n3"): unfit})
    assert rank(view, NodeId("n2")) == 0
    assert rank(view, NodeId("n3")) == 2, "at the end, when it asks all the same"


def test_who_is_not_in_sync_makes_nobody_wait() -> None:
    view = View(1, insync=insync("n1", "n2"), members=ALL)
    assert [rank(view, NodeId(n)) for n in ("n2", "n1")] == [0, 1]
    other_disk = View(
        1, insync=InSync({NodeId("n3"): JournalId("old"), NodeId("n1"): JournalId("n1-j")}, 3), members=ALL
    )
    assert rank(other_disk, NodeId("n1")) == 0


def test_without_an_insync_key_everyone_may_queue() -> None:
    assert order(View(1, members=ALL)) == ["n3", "n2", "n1"]


def test_who_is_not_listed_queues_at_the_end() -> None:
    assert rank(View(1, insync=insync("n1", "n2", "n3"), members=ALL), NodeId("n9")) == 3


# -- successor --------------------------------------------------------------------------------------------------

ABLE = View(
    9,
    insync=insync("n1", "n2", "n3", "n4", "n5"),
    members=members(
        member("n1", priority=99),
        member("n2"),
        member("n3", priority=3),
        member("n4", never_lead=True, priority=50),
        member("n5", ready=False, priority=50),
        member("n6", priority=50),
    ),
)


def test_the_best_other_is_chosen_when_none_is_named() -> None:
    assert choose_successor(ABLE, NodeId("n1"), None) == ("n3", "")
    assert choose_successor(ABLE, NodeId("n1"), NodeId("n2")) == ("n2", "")


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("n4", "n4 is tagged never_lead"),
        ("n5", "n5 is not ready"),
        ("n6", "n6 is not in sync; wait until it has caught up"),
        ("n8", "no live member is called 'n8' (members: n1, n2, n3, n4, n5, n6)"),
    ],
)
def test_one_who_cannot_lead_is_refused_with_the_reason(wanted: str, why: str) -> None:
    assert choose_successor(ABLE, NodeId("n1"), NodeId(wanted)) == (None, why)


def test_nobody_else_is_able() -> None:
    alone = View(9, insync=insync("n1"), members=ALL)
    assert choose_successor(alone, NodeId("n1"), None) == (None, "no other node is in sync and ready to lead")
    assert choose_successor(View(1), NodeId("n1"), NodeId("x")) == (
        None,
        "no live member is called 'x' (members: none)",
    )


def test_a_journal_that_was_replaced_is_not_the_one_in_sync() -> None:
    s = InSync({NodeId("n1"): JournalId("old")}, 4)
    assert s.names(NodeId("n1"), JournalId("old"))
    assert not s.names(NodeId("n1"), JournalId("new"))
    assert not s.names(NodeId("n2"), JournalId("old"))
