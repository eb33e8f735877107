"""S4, S8, S9, S11: hand-written good and bad histories, and the gate's rules against brute force."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.check.evidence import EtcdLine, Evidence, FaultLine, GateLine, OperatorLine, Run, SentLine
from chaos.check.invariants import check
from chaos.check.verdict import Judged, Level

ETCD = [
    EtcdLine(5, "acquired", 5, "n1", 100),
    EtcdLine(6, "renewed", 5, "n1", 200),
    EtcdLine(7, "ended", 5, "n1", 300),
    EtcdLine(8, "acquired", 8, "n2", 400),
]
RUN = Run("token", ttl=50, clock_error=5)


def judged(invariant: str, **told: Any) -> Judged:
    return check(Evidence(**{"run": RUN, "venue": [], "etcd": ETCD} | told), [invariant]).rows[0]


def order(coid: str, token: int) -> dict[str, Any]:
    return {
        "venue_seq": 1, "at_ns": 0, "kind": "new", "outcome": "accepted", "reason": None, "node": "n1", "token": token,
        "client_order_id": coid, "decision_id": coid, "symbol": "B", "side": "buy", "qty_lots": 1, "price_ticks": 1,
    }  # fmt: skip


def gate(*decisions: tuple[Any, ...]) -> list[GateLine]:
    """(op, token, subject, verdict, high) each, the rest by default."""
    lines = []
    for seq, (op, token, subject, verdict, high) in enumerate(
        (d + ("", "", "ok", -1)[len(d) - 1 :] for d in decisions), 1
    ):
        lines.append(GateLine(seq, op, token or 0, high, subject, verdict, seq * 100))
    return lines


# -- S4 ----------------------------------------------------------------------------------------------------------------


def test_messages_under_the_own_token_pass() -> None:
    sent = [SentLine(100, "n1", 5, "arm"), SentLine(350, "n1", 5, "cancel", "c"), SentLine(400, "n2", 8, "new", "d")]
    assert judged("S4", sent=sent).level is Level.PASS
    assert judged("S4", sent=[]).level is Level.INCONCLUSIVE


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (SentLine(450, "n3", 8, "keep_alive"), "at 450: n3 sent keep_alive with token 8 of n2"),
        (SentLine(450, "n3", 9, "new", "c"), "at 450: n3 sent new c with token 9, which etcd never gave"),
        (SentLine(450, "n3", 0, "cancel_all"), "with token 0, which etcd never gave"),
        (SentLine(399, "n2", 8, "new", "c"), "with token 8, which it was given at 400"),
    ],
)
def test_standby_that_speaks_to_the_venue_is_named(line: SentLine, words: str) -> None:
    (found,) = judged("S4", sent=[line]).violations
    assert words in found


# -- S8 ----------------------------------------------------------------------------------------------------------------


def test_order_with_its_own_claim_passes() -> None:
    lines = gate(("arm", 5), ("claim", 5, "c"), ("claim", 4, "d", "stale_token"))
    assert judged("S8", venue=[order("c", 5)], gate=lines).level is Level.PASS
    assert judged("S8", venue=[order("c", 5)], gate=lines[:2]).level is Level.INCONCLUSIVE


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (("claim", 5, "other"), "granted no claim for it"),
        (("claim", 5, "c", "gate_unarmed"), "granted no claim for it"),
        (("claim", 4, "c"), "came with token 5, claimed with 4"),
    ],
)
def test_order_without_its_claim_is_named(claim: tuple[Any, ...], words: str) -> None:
    (found,) = judged("S8", venue=[order("c", 5)], gate=gate(claim)).violations
    assert words in found


def test_gate_that_kept_only_its_latest_decisions_shows_nothing_of_earlier_orders() -> None:
    late = [g._replace(seq=g.seq + 70) for g in gate(("claim", 5, "d"), ("claim", 5, "e", "duplicate"))]
    row = judged("S8", venue=[order("c", 5), order("d", 5)], gate=late)
    assert row.level is Level.INCONCLUSIVE
    assert row.uncovered == ["gate's records that begin with its first decision"]


@pytest.mark.parametrize(("at", "good"), [(150, True), (155, True), (156, False), (255, True), (256, False)])
def test_bytes_of_a_new_order_leave_within_ttl_of_the_last_renewal(at: int, good: bool) -> None:
    row = judged("S8", gate=gate(("arm", 5)), sent=[SentLine(at, "n1", 5, "new", "c")])
    assert bool(row.violations) is not good
    assert not judged("S8", gate=gate(("arm", 5)), sent=[SentLine(at, "n1", 5, "cancel", "c")]).violations


def test_one_order_that_was_frozen_by_a_pause_is_excused_and_the_second_is_not() -> None:
    pause = FaultLine("p", "pause", "n1", 210, 220, 500, "stat=T")
    late = [SentLine(500, "n1", 5, "new", "c"), SentLine(501, "n1", 5, "new", "d")]
    row = judged("S8", gate=gate(("arm", 5)), sent=late, faults=[pause])
    assert [v[:20] for v in row.violations] == ["at 501: new order d "]
    assert row.counts == {"frozen between the last check and the socket": 1}
    for no_excuse in (pause._replace(target="n2"), pause._replace(effect=260), pause._replace(healed=250)):
        assert len(judged("S8", gate=gate(("arm", 5)), sent=late, faults=[no_excuse]).violations) == 2


# -- S9 ----------------------------------------------------------------------------------------------------------------


def test_fence_that_rises_and_refuses_passes() -> None:
    lines = gate(
        ("arm", 5), ("claim", 5, "a"), ("arm", 8), ("claim", 5, "b", "stale_token"), ("lost",),
        ("claim", 8, "c", "gate_unarmed", 0), ("arm", 8), ("claim", 8, "d"),
    )  # fmt: skip
    row = judged("S9", gate=lines)
    assert (row.level, row.counts["state lost"]) == (Level.PASS, 1)
    assert judged("S9", gate=lines[:2]).level is Level.INCONCLUSIVE


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([("arm", 8), ("claim", 5, "a")], "granted to token 5 after 8 was armed"),
        ([("arm", 8), ("lost",), ("claim", 8, "a")], "granted after the gate lost its state"),
        ([("arm", 8), ("lost",), ("arm", 5), ("claim", 5, "a")], "granted to token 5 after 8 was armed"),
        ([("arm", 8), ("claim", 8, "a", "ok", 0)], "granted after the gate lost its state"),
        ([("arm", 8), ("arm", 7)], "token 7 armed after 8"),
    ],
)
def test_fence_that_falls_is_named(lines: list[tuple[Any, ...]], words: str) -> None:
    (found,) = judged("S9", gate=gate(*lines)).violations
    assert words in found


def test_token_of_etcd_that_does_not_rise_is_named() -> None:
    etcd = [*ETCD, EtcdLine(3, "acquired", 3, "n1", 500)]
    assert judged("S9", gate=[], etcd=etcd).violations == ("etcd revision 3: token 3 given after 8",)


def test_arming_of_an_old_leader_that_comes_late_is_counted_and_no_violation() -> None:
    row = judged("S9", gate=gate(("arm", 8), ("lost",), ("arm", 5), ("claim", 8, "a", "gate_unarmed"), ("arm", 8)))
    assert (row.level, row.counts["armed late, by a gate that had forgotten"]) == (Level.PASS, 1)


def grants_since_lost(lines: list[GateLine]) -> list[int]:
    start = max((i + 1 for i, x in enumerate(lines) if x.op == "lost"), default=0)
    return [x.token for x in lines[start:] if x.op in ("arm", "claim") and x.verdict == "ok"]


ops = st.one_of(
    st.tuples(st.just("arm"), st.integers(1, 4), st.just("n")),
    st.tuples(st.just("claim"), st.integers(1, 4), st.sampled_from("abc"), st.sampled_from(["ok", "ok", "halted"])),
    st.tuples(st.sampled_from(["lost", "halt", "unhalt"])),
)


@settings(max_examples=400)
@given(st.lists(ops, max_size=9))
def test_one_pass_over_the_gate_finds_what_all_prefixes_show(decisions: list[tuple[Any, ...]]) -> None:
    lines = gate(*decisions)
    falls = halted = False
    for i, line in enumerate(lines):
        before = lines[:i]
        last = {op: max((x.seq for x in before if x.op == op), default=0) for op in ("arm", "lost", "halt", "unhalt")}
        grants = [x.token for x in before if x.op in ("arm", "claim") and x.verdict == "ok"]
        if line.op in ("arm", "claim") and line.verdict == "ok":
            if line.op == "claim":
                falls |= line.token < max(grants, default=0) or last["lost"] > last["arm"]
            else:  # what was forgotten cannot be held against who arms
                falls |= line.token < max(grants_since_lost(before), default=0)
            halted |= line.op == "claim" and last["halt"] > last["unhalt"]
    failed = check(Evidence(RUN, venue=[], gate=lines), ["S9", "S11"]).failed
    assert ("S9" in failed, "S11" in failed) == (falls, halted)


# -- S11 ---------------------------------------------------------------------------------------------------------------


def test_halt_that_refuses_until_it_is_lifted_passes() -> None:
    lines = gate(("claim", 5, "a"), ("halt",), ("claim", 5, "b", "halted"), ("unhalt",), ("claim", 5, "c"))
    assert judged("S11", venue=[order("a", 5), order("c", 5)], gate=lines).level is Level.PASS
    assert judged("S11", gate=lines[:1]).level is Level.INCONCLUSIVE


def test_grant_and_order_under_a_halt_are_named() -> None:
    lines = gate(("halt",), ("claim", 5, "a"), ("claim", 5, "b", "halted"))
    found = judged("S11", venue=[order("a", 5), order("b", 5)], gate=lines).violations
    assert found[0] == "gate line 2: a granted after the halt at line 1"
    assert [v[18:] for v in found[1:]] == [
        f"{x} was accepted, claimed under a halt (gate line {n})" for x, n in ("a2", "b3")
    ]


def test_order_that_was_claimed_before_the_press_may_still_arrive() -> None:
    lines = gate(("claim", 5, "a"), ("halt",), ("claim", 5, "a", "halted"))
    assert not judged("S11", venue=[order("a", 5)], gate=lines).violations


@pytest.mark.parametrize(("confirmed", "lifted", "good"), [(144, 999, False), (145, 999, True), (100, 200, True)])
def test_latch_in_etcd_stops_claims_one_ttl_later(confirmed: int, lifted: int, good: bool) -> None:
    operator = [OperatorLine(confirmed, "halt_confirmed"), OperatorLine(lifted, "unhalt")]
    row = judged("S11", gate=gate(("arm", 5), ("claim", 5, "a")), operator=operator)
    assert bool(row.violations) is not good
    assert row.covers["presses"] == 1
