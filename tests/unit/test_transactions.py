"""What each request writes, where no etcd has to be asked: how often it is tried, what it is dated with, how an answer
about the in-sync set is read. What the compares are worth is asked of etcd: tests/contract/etcd_contract.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.core import actions as act
from cluster.core.ids import Instant, JournalId, NodeId, Term
from cluster.etcd.model import KeyValue, OpResult, Txn, TxnResult
from cluster.keys import STRANGER, Keys, RawKey, readable
from cluster.transactions import Dates, Identity, change_insync, insync_outcome, tries

KEYS = Keys("c1")
ME = Identity("n1", "i1", "h1", 1_500_000_000, grpc="h:1", http="h:2")
DATES = Dates(at=1_000, now=Instant(500), last_sign=700, renewal_seen=Instant(450))
TERM = Term(9)

ACQUIRE = act.Acquire(1, 3, 77, Term(8), 6, {NodeId("n1"): JournalId("j1")})
RENEW = act.Renew(2, TERM, 3, 12, 77)
EVICT = act.Evict(3, 11, TERM, NodeId("n2"))
RESIGN = act.Resign(4, TERM, "switchover", "ann", NodeId("n2"))


def puts(txn: Txn) -> dict[str, Any]:
    return {op.key.decode(): json.loads(op.value) for op in txn.success if hasattr(op, "value")}


def leases(txn: Txn) -> dict[str, int]:
    return {op.key.decode(): op.lease for op in txn.success if hasattr(op, "lease")}


@pytest.mark.parametrize(("request_", "times"), [(ACQUIRE, 1), (RENEW, 1), (EVICT, 1), (RESIGN, 2)])
def test_only_a_resignation_has_a_second_try_and_none_writes_without_a_compare(request_, times):
    txns = tries(KEYS, ME, request_, DATES)
    assert len(txns) == times
    assert all(txn.compare and txn.success and not txn.failure for txn in txns)


@pytest.mark.parametrize("request_", [ACQUIRE, RENEW, EVICT, RESIGN])
def test_what_is_written_is_readable(request_):
    for txn in tries(KEYS, ME, request_, DATES):
        for name, value in puts(txn).items():
            assert readable(KEYS, name, RawKey(json.dumps(value).encode(), 9, 9)), name


def test_only_the_leader_key_hangs_on_the_lease():
    (acquire,), (renew,) = tries(KEYS, ME, ACQUIRE, DATES), tries(KEYS, ME, RENEW, DATES)
    assert leases(acquire) == {KEYS.leader: 77, KEYS.tenure: 0, KEYS.insync: 0}
    assert leases(renew) == {KEYS.leader: 77}
    holder = {"node": "n1", "incarnation": "i1", "home": "h1", "ttl_ms": 1500}
    leader = holder | {"attempt": 3, "renewal": 0, "grpc": "h:1", "http": "h:2"}
    assert puts(acquire) == {KEYS.leader: leader, KEYS.tenure: holder, KEYS.insync: {"members": {"n1": "j1"}}}
    assert puts(renew) == {KEYS.leader: leader | {"renewal": 12}}


def test_the_end_of_a_tenure_is_dated_by_who_writes_it():
    (evict,) = tries(KEYS, ME, EVICT, DATES)
    evicted = {"token": 9, "reason": "evicted", "actor": "n1", "successor": None, "at": 1_000, "last_sign": 950}
    assert puts(evict) == {KEYS.resigned: evicted}
    resigned = {"token": 9, "reason": "switchover", "actor": "ann", "successor": "n2", "at": 1_000, "last_sign": 700}
    assert [puts(txn) for txn in tries(KEYS, ME, RESIGN, DATES)] == [{KEYS.resigned: resigned}] * 2


def test_a_renewal_that_was_never_seen_dates_nothing():
    (evict,) = tries(KEYS, ME, EVICT, Dates(at=1_000, now=Instant(500)))
    assert puts(evict)[KEYS.resigned]["last_sign"] == 0


def answer(succeeded: bool, *kvs: KeyValue) -> TxnResult:
    return TxnResult(succeeded, (OpResult(kvs, 0),), 20, 1, 2)


@pytest.mark.parametrize(
    ("told", "outcome", "members", "revision"),
    [
        (answer(True), "done", {"n1": "j1"}, 20),
        (answer(False, KeyValue(KEYS.insync, b'{"members":{"n2":"j2"}}', 3, 15, 2, 0)), "refused", {"n2": "j2"}, 15),
        (answer(False), "refused", {}, 0),
        (answer(False, KeyValue(KEYS.insync, b"junk", 3, 15, 2, 0)), "refused", {STRANGER: "?"}, 15),
    ],
)
def test_an_answer_about_the_insync_set_says_what_stands(told, outcome, members, revision):
    o = insync_outcome({"n1": "j1"}, told)
    assert (o.outcome, o.members, o.revision) == (outcome, members, revision)


def test_a_change_of_the_insync_set_asks_what_stands_when_it_is_refused():
    txn = change_insync(KEYS, 9, {"n1": "j1"}, 6)
    assert puts(txn) == {KEYS.insync: {"members": {"n1": "j1"}}}
    assert [op.key.decode() for op in txn.failure] == [KEYS.insync]
