"""What a leader's trouble leads to, on one cluster of three that heals after each test.

Its ttl is so long that nothing here can be explained by it: the new leader acts before the old permit would have ended
by itself."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.integration.keeper.rig import Act, Cluster, Etcd, Node, gone, until, wait_died

TTL_S = 10.0


@pytest.fixture(scope="module")
def trio_for_all(tmp_path_factory: pytest.TempPathFactory, shared_etcd: Etcd) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("trio"), shared_etcd, "trio", ttl_s=TTL_S).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def trio(trio_for_all: Cluster) -> Iterator[Cluster]:
    """Whole before the test, and nothing wrong in all its history after it."""
    for node in trio_for_all.nodes.values():
        with suppress(OSError):  # a worker that is only now starting behaves
            node.order("behave")
    trio_for_all.wait_whole()
    yield trio_for_all
    trio_for_all.check()


@pytest.fixture
def leader(trio: Cluster) -> Node:
    return trio.wait_leader()


def before_its_end(old: Node, token: int, new: Node) -> bool:
    """`new` acted while the permit of `old` would still have been good."""
    last: Act = old.acts(token)[-1]
    first_of_new = next(a for a in new.acts() if a.token > token)
    return first_of_new.after < last.act_until


def test_exactly_one_leads_and_the_others_follow_it(trio, leader):
    token = trio.token()
    assert {a.token for a in leader.acts()} >= {token}
    assert leader.seen("Granted", term=token)
    for other in trio.standbys():
        assert not other.acts(token)
        followed = until(lambda other=other: other.seen("Follow", term=token), f"{other.name} follows")
        assert followed[0]["node"] == leader.name
        assert followed[0]["address"] == f"{leader.name}.test:1"
    assert trio.key(trio.keys.tenure).modified == token


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (("signal", "SIGKILL"), "worker died: signal SIGKILL"),
        (("signal", "SIGSEGV"), "worker died: signal SIGSEGV"),
        (("exit", 7), "worker died: exit code 7"),
        (("fatal", "disk is full"), "worker died: disk is full"),
        (("last-words", "disk burns"), "worker died: disk burns"),
        (("say", {"t": "Nonsense"}), "worker died: exit code 0"),  # its channel is closed, so it ends
    ],
)
def test_a_worker_that_dies_costs_the_lead_and_another_takes_over_at_once(trio, leader, order, reason):
    token = trio.token()
    leader.order(*order)
    new = trio.wait_leader(after=token)
    assert new is not leader
    assert (trio.resigned["token"], trio.resigned["reason"]) == (token, reason)
    assert before_its_end(leader, token, new)
    # The order of things: dead, resigned, taken over; by etcd's own count.
    assert token < trio.key(trio.keys.resigned).modified < trio.token()
    history = until(lambda: trio.value(trio.keys.history_of(trio.token())), "the leadership is on record")
    assert (history["came_from"], history["cause"]) == (leader.name, reason)
    # And the one that lost its worker comes back.
    trio.wait_whole(after=token)


def test_a_worker_that_hangs_is_killed_before_another_leads(trio, leader):
    token = trio.token()
    pid = leader.worker.pid
    leader.order("hang")
    new = trio.wait_leader(after=token)
    assert new is not leader
    assert leader.log("worker_killed", pid=pid, reason="hung")
    assert gone(pid)
    assert trio.resigned["reason"] == "worker hung"
    assert before_its_end(leader, token, new)


def test_a_standby_that_hangs_or_dies_changes_nothing_for_the_leader(trio, leader):
    token = trio.token()
    one, other = trio.standbys()
    pids = one.worker.pid, other.worker.pid
    one.order("hang")
    other.order("signal", "SIGKILL")
    for pid in pids:
        wait_died(pid)
    until(lambda: one.log("worker_started")[-1]["pid"] != pids[0], "the hung one is replaced")
    trio.wait_whole()
    assert trio.token() == token


def test_a_worker_that_steps_down_is_heard(trio, leader):
    token = trio.token()
    leader.order("step-down", "the gate says so")
    new = trio.wait_leader(after=token)
    assert new is not leader
    assert (trio.resigned["token"], trio.resigned["reason"]) == (token, "the gate says so")
    assert leader.seen("StopTrading", term=token)


def test_a_worker_that_does_not_stop_is_killed_before_its_permit_would_have_ended(trio, leader):
    token = trio.token()
    pid = leader.worker.pid
    leader.order("behave", "deaf")
    leader.order("step-down", "told to")
    died = wait_died(pid)
    last = leader.acts(token)[-1]
    assert died < last.act_until
    assert leader.log("worker_killed", pid=pid, reason="did not confirm that it stopped")
    # The permit was taken away before the worker was told: it saw none after that.
    assert last.before < leader.seen("StopTrading", term=token)[0]["at"]
    assert trio.wait_leader(after=token) is not leader


def test_a_worker_that_hangs_up_is_replaced(trio, leader):
    token = trio.token()
    pid = leader.worker.pid
    leader.order("hang-up")
    assert trio.wait_leader(after=token) is not leader
    assert leader.log("worker_killed", pid=pid, reason="closed its control channel")


def test_a_leader_key_deleted_by_hand_deposes_and_is_resigned_by_who_held_it(trio, leader):
    token = trio.token()
    trio.etcd.delete(trio.keys.leader)
    new = trio.wait_leader(after=token)
    # Nobody waited for the ttl: the deposed one stopped, and said so.
    assert leader.seen("StopTrading", term=token)[0]["reason"] == "leader key vanished"
    assert (trio.resigned["token"], trio.resigned["actor"]) == (token, leader.name)
    assert before_its_end(leader, token, new)
    assert leader.log("role_changed", term=token, role="fenced", reason="leader key vanished")


def test_a_lease_revoked_under_the_leader_does_the_same_and_is_replaced(trio, leader):
    token = trio.token()
    lease = trio.key(trio.keys.leader).lease
    assert lease
    trio.etcd.revoke(lease)
    trio.wait_leader(after=token)
    assert trio.resigned["token"] == token
    until(lambda: leader.log("etcd_lease_gone"), "the keeper notices that its lease is gone")
    trio.wait_whole(after=token)
    assert trio.key(trio.keys.member(leader.name)).lease != lease


# -- the in-sync set ------------------------------------------------------------------------------------------


def ask_insync(node: Node, term: int, members: dict[str, str], revision: int) -> dict[str, object]:
    before = len(node.seen("InSyncAnswer"))
    node.order("propose", term, members, revision)
    return until(lambda: node.seen("InSyncAnswer")[before:], "the change is answered")[0]


def test_the_insync_set_changes_only_for_who_leads_and_knows_it(trio, leader):
    leader.order("behave", "alone")  # it must not repair the set meanwhile
    token = trio.token()
    stands = trio.key(trio.keys.insync)
    members = stands.json["members"]
    less = {leader.name: members[leader.name]}

    refused = ask_insync(leader, token, less, stands.modified - 1)
    assert (refused["outcome"], refused["members"], refused["revision"]) == ("refused", members, stands.modified)

    done = ask_insync(leader, token, less, stands.modified)
    assert (done["outcome"], done["members"]) == ("done", less)
    assert trio.key(trio.keys.insync)[:1] == (json.dumps({"members": less}, separators=(",", ":")).encode(),)
    assert done["revision"] == trio.key(trio.keys.insync).modified

    # A standby may ask in the name of the term it follows: that is the leader's, so whose worker asks is not checked
    # here; but a term that is over changes nothing.
    assert ask_insync(leader, token - 1, members, done["revision"])["outcome"] == "refused"

    # Who is not in sync does not lead, however good it is otherwise.
    leader.order("signal", "SIGKILL")
    assert trio.wait_leader(after=token) is leader


def test_a_deposed_leader_cannot_change_the_insync_set(trio, leader):
    token = trio.token()
    members = trio.value(trio.keys.insync)["members"]
    leader.order("step-down", "test")
    new = trio.wait_whole(after=token)
    assert new is not leader
    revision = trio.key(trio.keys.insync).modified
    answer = ask_insync(leader, token, {leader.name: members[leader.name]}, revision)
    assert (answer["outcome"], answer["revision"]) == ("refused", revision)


def test_an_insync_set_of_a_strange_shape_is_refused_and_does_not_fail_the_keeper(trio, leader):
    leader.order("behave", "alone")
    stands = trio.key(trio.keys.insync)
    revision = trio.etcd.put(trio.keys.insync, '{"members": 5}')
    answer = ask_insync(leader, trio.token(), {}, revision - 1)
    assert (answer["outcome"], answer["members"], answer["revision"]) == ("refused", {"?": "?"}, revision)
    trio.etcd.put(trio.keys.insync, stands.value)


# -- switchover -----------------------------------------------------------------------------------------------

_ids = itertools.count(1)


def ask_switchover(node: Node, target: str | None, actor: str = "ann") -> dict[str, object]:
    request_id = f"r{next(_ids)}"
    node.order("switchover", request_id, target, actor)
    return until(lambda: node.seen("SwitchoverAnswer", request_id=request_id), "the request is answered")[0]


def test_a_switchover_goes_to_the_node_named_whoever_was_asked(trio, leader):
    token = trio.token()
    asked, target = trio.standbys()
    answer = ask_switchover(asked, target.name)
    assert (answer["ok"], answer["text"]) == (True, f"handing over to {target.name}")
    assert trio.wait_leader(after=token) is target
    told = trio.resigned
    assert (told["token"], told["reason"], told["actor"], told["successor"]) == (
        token,
        "switchover",
        "ann",
        target.name,
    )
    assert leader.seen("Drain", term=token)[0]["successor"] == target.name
    assert not leader.seen("StopTrading", term=token)  # a drain is enough
    history = until(lambda: trio.value(trio.keys.history_of(trio.token())), "the leadership is on record")
    assert (history["came_from"], history["cause"], history["actor"]) == (leader.name, "switchover", "ann")
    target.order("first-order")
    record = trio.keys.history_of(trio.token())
    until(lambda: trio.value(record).get("rto_s") is not None, "the first order is on record")
    # One request, one switchover: it is taken away before it is acted on.
    assert trio.key(trio.keys.switchover) is None


def test_a_switchover_to_anybody_goes_to_somebody_else(trio, leader):
    token = trio.token()
    assert ask_switchover(leader, None)["ok"] is True
    assert trio.wait_leader(after=token) is not leader


def test_a_switchover_that_cannot_be_is_refused_and_says_why(trio, leader):
    token = trio.token()
    one, other = trio.standbys()
    other.order("status", {"ready": False})
    until(lambda: not trio.value(trio.keys.member(other.name))["ready"], "it says that it is not ready")
    for target, text in [
        ("n9", "no live member is called 'n9' (members: n1, n2, n3)"),
        (leader.name, f"{leader.name} leads already"),
        (other.name, f"{other.name} is not ready"),
    ]:
        answer = ask_switchover(one, target)
        assert (answer["ok"], answer["text"]) == (False, text)
    other.order("status", {"ready": True})
    assert trio.token() == token
    assert not leader.seen("Drain", term=token)


def test_a_switchover_whose_drain_does_not_end_is_carried_out_the_hard_way(trio, leader):
    token = trio.token()
    leader.order("behave", "sulky")
    assert ask_switchover(leader, None)["ok"] is True
    assert trio.wait_leader(after=token) is not leader
    assert leader.seen("Drain", term=token)[0]["at"] < leader.seen("StopTrading", term=token)[0]["at"]
    assert trio.resigned["reason"] in ("switchover", "drain timed out")


@pytest.mark.parametrize(
    "request_text",
    [
        b"\xff\x00",
        b"[]",
        b'{"id": "x", "target": ["n1"], "actor": 7, "at": "now"}',
        b'{"id": "x", "target": "n1", "at": Infinity}',
        b"[" * 100_000,
    ],
)
def test_a_request_that_makes_no_sense_is_reported_and_harms_nobody(trio, leader, request_text):
    token = trio.token()
    before = len(leader.log("key_unreadable", key=trio.keys.switchover))
    trio.etcd.put(trio.keys.switchover, request_text)
    until(lambda: len(leader.log("key_unreadable", key=trio.keys.switchover)) > before, "it is reported")
    until(lambda: trio.key(trio.keys.switchover) is None, "it is taken away")  # it would be in the way of a good one
    answer = ask_switchover(trio.standbys()[0], "n9")
    assert answer["ok"] is False and "no live member is called 'n9'" in str(answer["text"])
    assert trio.token() == token


def test_a_request_of_long_ago_is_taken_away_and_not_acted_on(trio, leader):
    token = trio.token()
    hours_ago = time.time_ns() - 7200 * 10**9
    trio.etcd.put(trio.keys.switchover, json.dumps({"id": "old", "target": None, "actor": "ann", "at": hours_ago}))
    until(lambda: trio.key(trio.keys.switchover) is None, "it is taken away")
    assert ask_switchover(leader, "n9")["ok"] is False  # the leader goes on, and goes on listening
    assert trio.token() == token
