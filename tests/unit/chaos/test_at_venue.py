"""S1 to S3 from a record alone and with journals: what really happened passes on every class of venue, and the same
with one line that cannot be does not."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.check.evidence import EtcdLine, Evidence, Run, replayed
from chaos.check.invariants import check
from chaos.check.verdict import Judged, Level
from node.types import client_order_id
from tests.support.history import NODES, TAG, Lines, World, renumbered

ORDER = {"decision_id": "d", "symbol": "BTCUSDT", "side": "buy", "qty_lots": 3, "price_ticks": 100, "reason": None}


def message(seq: int, token: int, node: str = "n1", coid: str = "", **more: Any) -> dict[str, Any]:
    """An accepted order of its own decision, at `seq` seconds."""
    coid = coid or f"c{seq}"
    told = {"venue_seq": seq, "at_ns": seq * 10**9, "kind": "new", "outcome": "accepted", "node": node, "token": token}
    return ORDER | told | {"client_order_id": coid, "decision_id": f"d-{coid}"} | more


def judged(invariant: str, lines: Lines, profile: str = "token", **run: Any) -> Judged:
    return check(Evidence(Run(profile, **run), venue=lines), [invariant]).rows[0]


# -- S1 ----------------------------------------------------------------------------------------------------------------


def test_each_decision_once_passes_when_leaders_changed_meanwhile() -> None:
    assert judged("S1", [message(1, 5), message(2, 6, "n2")]).level is Level.PASS
    assert judged("S1", [message(1, 5), message(2, 5)]).level is Level.INCONCLUSIVE


def test_client_order_id_that_is_accepted_twice_is_a_double_order() -> None:
    (told,) = judged("S1", [message(1, 5, coid="c"), message(2, 6, "n2", coid="c")]).violations
    assert told == "venue_seq 2, new: client order id c was accepted before"


def test_decision_under_two_ids_is_a_double_order() -> None:
    (told,) = judged("S1", [message(1, 5, decision_id="d"), message(2, 6, decision_id="d")]).violations
    assert told == "venue_seq 2, new: decision 'd' as c2 and c1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client_order_id": "b2z1z1"}, "is not one of ours"),
        ({"client_order_id": "by-hand-17"}, "is not one of ours"),
        ({"client_order_id": client_order_id(TAG, 40, 9_999)}, "comes from nowhere"),
        ({"qty_lots": 77_777}, "is not its intent"),
        ({"price_ticks": 1}, "is not its intent"),
        ({"decision_id": "other"}, "is not its intent"),
        ({"side": "neither"}, "is not its intent"),
        ({"token": 1}, "sent with token 1"),
    ],
)
def test_order_that_is_not_our_intent_is_named(change: dict[str, Any], words: str) -> None:
    world = World(11).run(40).finish()
    seen = world.evidence()
    lines = world.record()
    order = next(x for x in reversed(lines) if x["kind"] == "new" and x["outcome"] == "accepted")
    order |= change
    row = check(seen._replace(venue=lines), ["S1"]).rows[0]
    assert [v for v in row.violations if words in v and f"venue_seq {order['venue_seq']}" in v]


def test_order_younger_than_the_journals_is_not_from_nowhere_while_trading_goes_on() -> None:
    world = World(12).run(40)
    journal = world.journal()
    world.place()
    seen = world.evidence()._replace(journals=[journal])
    assert check(seen, ["S1"]).rows[0].level is Level.FAIL
    assert not check(seen._replace(run=seen.run._replace(at_rest=False)), ["S1"]).problems


def test_pruned_journal_is_judged_by_its_book() -> None:
    world = World(8).run(80).finish()
    base, cut = len(world.entries) // 3, len(world.entries) // 2
    snapshot = world.journal(entries=world.entries[:cut]).book.snapshot()
    pruned = replayed("n2", world.entries[base:], TAG, base=base, snapshot=snapshot)
    seen = world.evidence()
    seen = seen._replace(journals=[world.journal(), pruned])
    assert check(seen).problems == []
    lines = world.record()
    first = next(x for x in lines if x["kind"] == "new" and x["outcome"] == "accepted")
    first["decision_id"] = "forged"
    alone = check(seen._replace(venue=lines, journals=[pruned]), ["S1"]).rows[0]
    assert [v for v in alone.violations if first["client_order_id"] in v and "from nowhere" in v]


# -- S2, S3 ------------------------------------------------------------------------------------------------------------


def test_lower_token_accepted_after_a_higher_one_is_stale_and_interleaves() -> None:
    lines = [message(1, 5), message(2, 6, "n2"), message(3, 5, kind="cancel")]
    (stale,) = judged("S2", lines).violations
    (back,) = judged("S3", lines).violations
    assert stale == "venue_seq 3, cancel with token 5 after token 6 was seen"
    assert back == "venue_seq 3, cancel: token 5 of n1 comes back after token 6"


def test_refused_stale_message_is_no_finding_and_covers_s2() -> None:
    lines = [message(1, 6), message(2, 5, outcome="refused", reason="stale_token")]
    assert judged("S2", lines).level is Level.PASS
    assert judged("S2", lines[:1]).level is Level.INCONCLUSIVE


@pytest.mark.parametrize(
    ("late", "words"),
    [
        ({"expires_at_ns": 4 * 10**9}, ""),
        ({"expires_at_ns": 3 * 10**9}, "0.000 ms after its own expiry"),
        ({}, "and no expiry"),
        ({"at_ns": 30 * 10**9, "expires_at_ns": 31 * 10**9}, "28000.000 ms after a newer token; 2100.000 are allowed"),
        ({"kind": "cancel"}, ""),
    ],
)
def test_on_expiry_an_old_order_may_come_in_its_own_time_only(late: dict[str, Any], words: str) -> None:
    lines = [message(1, 5), message(2, 6, "n2"), message(3, 5, **late)]
    run = {"validity": 2 * 10**9, "clock_error": 10**8}
    stale, leader = judged("S2", lines, "expiry", **run), judged("S3", lines, "expiry", **run)
    if words:
        assert words in stale.violations[0] and leader.level is Level.FAIL
    else:
        assert (stale.level, leader.level) == (Level.PASS, Level.PASS)


def test_on_plain_late_messages_are_counted_and_never_judged() -> None:
    lines = [message(1, 5), message(2, 6, "n2"), message(3, 5)]
    row = judged("S2", lines, "plain")
    assert (row.level, row.counts) == (Level.NOT_JUDGED, {"late messages accepted": 1})
    assert "best effort" in row.note
    assert judged("S3", lines, "plain").level is Level.PASS
    shared = [message(1, 5), message(2, 5, "n2"), message(3, 6)]
    assert judged("S3", shared, "plain").violations == ("venue_seq 2, new: token 5 used by n2 and by n1",)


def test_profile_is_the_records_own_where_nobody_says_and_else_the_strictest() -> None:
    started = {"venue_seq": 1, "at_ns": 0, "kind": "started", "outcome": None, "token": None, "profile": "plain"}
    lines = [message(2, 6), message(3, 5)]
    assert judged("S2", [started, *lines], "").level is Level.NOT_JUDGED
    assert judged("S2", lines, "").level is Level.FAIL


def test_token_that_etcd_gave_to_another_or_to_nobody_is_named() -> None:
    etcd = [
        EtcdLine(5, "acquired", 5, "n1", 0),
        EtcdLine(6, "acquired", 6, "n3", 1),
        EtcdLine(7, "acquired", 6, "n1", 2),
    ]
    seen = Evidence(Run("token"), venue=[message(1, 5), message(2, 6, "n2"), message(3, 7)], etcd=etcd)
    assert check(seen, ["S3"]).rows[0].violations == (
        "etcd revision 7: token 6 given to n1 and to n3",
        "token 6 used by n2, given by etcd to n3",
        "token 7, used by n1, was never given by etcd",
    )


# -- the same, by brute force ------------------------------------------------------------------------------------------

few = st.integers(1, 4)
small_histories = st.lists(
    st.tuples(few, st.sampled_from(NODES[:2]), few, few, st.sampled_from(["new", "cancel"]), st.integers(0, 9)),
    max_size=9,
)


@settings(max_examples=400)
@given(small_histories)
def test_one_pass_finds_what_all_pairs_find(history: list[tuple[int, str, int, int, str, int]]) -> None:
    lines = [
        message(i, token, node, f"c{coid}", decision_id=f"d{decision}", kind=kind, expires_at_ns=i * 10**9 + left - 4)
        for i, (token, node, coid, decision, kind, left) in enumerate(history, 1)
    ]
    orders = [x for x in lines if x["kind"] == "new"]
    pairs = [(a, b) for i, b in enumerate(lines) for a in lines[:i]]
    double = any(
        a["client_order_id"] == b["client_order_id"] or a["decision_id"] == b["decision_id"]
        for i, b in enumerate(orders)
        for a in orders[:i]
    )
    stale = any(a["token"] > b["token"] for a, b in pairs)
    late = any(a["token"] > b["token"] and b["kind"] == "new" and b["at_ns"] >= b["expires_at_ns"] for a, b in pairs)
    shared = any(a["token"] == b["token"] and a["node"] != b["node"] for a, b in pairs)
    torn = any(
        a["token"] == c["token"] != b["token"]
        for k, c in enumerate(lines)
        for j, b in enumerate(lines[:k])
        for a in lines[:j]
    )
    failed = {p: check(Evidence(Run(p), venue=lines), ["S1", "S2", "S3"]).failed for p in ("token", "expiry")}
    assert ("S1" in failed["token"]) == double
    assert ("S2" in failed["token"]) == stale
    assert ("S2" in failed["expiry"]) == late
    assert ("S3" in failed["token"]) == (shared or torn)


# -- whole records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["token", "expiry", "plain", "token+while-open"])
def test_true_history_has_no_finding_on_any_class_of_venue(profile: str) -> None:
    for seed in range(5):
        seen = World(seed, profile).run(60).finish().evidence()
        assert check(seen).problems == []
        assert check(Evidence(seen.run, venue=seen.venue)).problems == []


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["repeat", "lose"]))
def test_line_that_matters_is_missed_also_by_a_forger_who_counts(seed: int, clever: bool, how: str) -> None:
    rng = random.Random(seed)
    world = World(seed).run(30).finish()
    lines = world.record()
    matters = [i for i, x in enumerate(lines) if x["kind"] in ("fill", "closed") or x["outcome"] == "accepted"]
    if clever:
        matters = [i for i in matters if lines[i]["kind"] in ("fill", "closed", "new")]
    at = rng.choice(matters[:-1])
    if how == "repeat":
        lines.insert(rng.randint(at + 1, len(lines)), copy.deepcopy(lines[at]))
    else:
        del lines[at]
    verdict = check(world.evidence()._replace(venue=renumbered(lines) if clever else lines))
    assert verdict.level is Level.FAIL if clever else verdict.row("E").level is Level.INVALID


@pytest.mark.parametrize(
    ("kind", "change", "invariant", "words"),
    [
        ("new", {"account": "somebody"}, "E", "is of account 'somebody', the others of 'baton'"),
        ("fill", {"event_seq": 9_999}, "E", "is event 9999 of its account"),
        ("fill", {"trade_id": "t-first"}, "S5", "trade t-first stands twice in the record"),
        ("fill", {"symbol": "ETHUSDT"}, "S5", "which is another order"),
        ("fill", {"qty_lots": 5_000}, "S5", "filled, it was for"),
        ("fill", {"qty_lots": -1}, "S5", "of -1 lots"),
        ("closed", {"filled_lots": 4_999}, "S5", "with 4999 lots filled, its fills sum to"),
        ("closed", {"client_order_id": "c"}, "S5", "order c is not open"),
    ],
)
def test_each_check_of_the_record_speaks_for_itself(
    kind: str, change: dict[str, Any], invariant: str, words: str
) -> None:
    world = World(11).run(60).finish()
    lines = world.record()
    next(x for x in lines if x["kind"] == "fill")["trade_id"] = "t-first"
    next(x for x in reversed(lines) if x["kind"] == kind and x["outcome"] != "refused").update(change)
    verdict = check(world.evidence()._replace(venue=lines))
    assert [v for v in verdict.row(invariant).violations if words in v]
