"""The stand-in for etcd where it is not healthy: each fault is what a real etcd has done, and nothing more.

What it does in health is shared with the real one: tests/contract/etcd_contract.py.
"""

from __future__ import annotations

import pytest

from chaos.sim.etcd import Compacted, EtcdSpec
from cluster.core.ids import NS_PER_S, ns
from cluster.etcd import EtcdRefused, LeaseGone, create_revision, put
from tests.support.etcd_spec import Clock

KEY = "/k/leader"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def etcd(clock: Clock) -> EtcdSpec:
    return EtcdSpec(clock, min_ttl_s=2)


@pytest.fixture
def lease(etcd: EtcdSpec) -> int:
    """Of two seconds, with the key on it."""
    granted = etcd.lease_grant(1)
    etcd.put(KEY, b"v", granted.id)
    return granted.id


def stands(etcd: EtcdSpec) -> bool:
    return bool(etcd.range(KEY).kvs)


# -- health, where the contract cannot look so closely ---------------------------------------------------------


def test_a_lease_ends_at_its_ttl_to_the_nanosecond_and_not_before(etcd, clock, lease):
    assert etcd.next_expiry() == 2 * NS_PER_S
    clock.pass_time(2 - 1e-9)
    assert stands(etcd)
    clock.pass_time(1e-9)
    assert not stands(etcd)
    assert etcd.next_expiry() is None


def test_a_granted_ttl_is_the_longer_of_what_is_asked_and_what_etcd_wants(etcd):
    assert [etcd.lease_grant(asked).ttl_s for asked in (1, 2, 7)] == [2, 2, 7]


def test_leases_that_end_in_one_gap_end_in_their_order_each_at_its_revision(etcd, clock):
    for name, ttl_s in (("late", 5), ("soon", 2), ("never", 60)):
        etcd.put("/k/" + name, b"v", etcd.lease_grant(ttl_s).id)
    before = etcd.revision
    clock.pass_time(10)
    etcd.expire()
    told = etcd.changes("/k/", before)
    assert told is not None
    assert [(e.kv.key, e.kv.mod_revision) for e in told.events] == [("/k/soon", before + 1), ("/k/late", before + 2)]
    assert etcd.next_expiry() == 60 * NS_PER_S


@pytest.mark.parametrize("call", ["txn", "put", "delete", "range", "changes", "lease_keep_alive", "snapshot"])
def test_whatever_is_asked_finds_what_is_over_gone(etcd, clock, lease, call):
    before = etcd.revision
    clock.pass_time(2)
    match call:
        case "txn":
            assert not etcd.txn([create_revision(KEY) > 0], []).succeeded
        case "put":
            etcd.put(KEY, b"w")
            assert etcd.range(KEY).kvs[0].version == 1
        case "delete":
            assert etcd.delete(KEY).deleted == 0
        case "range":
            assert not etcd.range(KEY).kvs
        case "changes":
            assert etcd.changes("/k/", before).events[0].deleted
        case "lease_keep_alive":
            with pytest.raises(LeaseGone):
                etcd.lease_keep_alive(lease)
        case "snapshot":
            assert etcd.snapshot().leases == ()


def test_a_watch_that_has_seen_all_is_told_nothing_and_one_beside_it_neither(etcd, lease):
    assert etcd.changes("/k/", etcd.revision) is None
    assert etcd.changes("/other/", 0) is None
    read = etcd.read("/k/")
    assert ([kv.key for kv in read.kvs], read.revision) == ([KEY], etcd.revision)


def test_what_cannot_be_compacted_is_refused(etcd, lease):
    with pytest.raises(EtcdRefused, match="future"):
        etcd.compact(etcd.revision + 1)
    etcd.compact(etcd.revision)
    with pytest.raises(EtcdRefused, match="has been compacted"):
        etcd.compact(etcd.revision)


# -- leases that end late --------------------------------------------------------------------------------------


def test_a_change_of_leader_lets_every_lease_count_anew(etcd, clock, lease):
    term = etcd.raft_term
    clock.pass_time(1.9)
    etcd.change_leader()
    clock.pass_time(1.9)
    assert stands(etcd)
    clock.pass_time(0.1)
    assert not stands(etcd)
    assert etcd.raft_term == term + 1


def test_a_change_of_leader_brings_no_lease_back(etcd, clock, lease):
    clock.pass_time(2)
    etcd.change_leader()
    assert not stands(etcd)


def test_a_lease_may_be_noticed_late(etcd, clock, lease):
    etcd.faults.expiry_delay = ns(3)
    assert etcd.next_expiry() == 5 * NS_PER_S
    clock.pass_time(4.9)
    assert stands(etcd)
    etcd.faults.expiry_delay = 0
    assert not stands(etcd)


# -- leases lost although renewed ------------------------------------------------------------------------------


def test_an_old_leader_that_wakes_revokes_what_others_have_renewed(etcd, clock, lease):
    clock.pass_time(1)
    etcd.old_leader_stalls()
    etcd.change_leader()
    for _ in range(5):
        clock.pass_time(1)
        assert etcd.lease_keep_alive(lease) == 2
    before = etcd.revision
    assert stands(etcd)
    etcd.old_leader_wakes()
    assert not stands(etcd)
    assert [e.deleted for e in etcd.changes("/k/", before).events] == [True]
    with pytest.raises(LeaseGone):
        etcd.lease_keep_alive(lease)


def test_an_old_leader_revokes_only_what_is_over_in_its_picture_and_what_it_knew(etcd, clock, lease):
    clock.pass_time(1)
    etcd.old_leader_stalls()
    etcd.put("/k/new", b"v", etcd.lease_grant(60).id)
    clock.pass_time(0.9)
    etcd.old_leader_wakes()
    assert stands(etcd)
    clock.pass_time(0.05)
    etcd.lease_keep_alive(lease)
    clock.pass_time(1)
    etcd.old_leader_wakes()  # it has learnt by now who leads
    assert stands(etcd)
    assert etcd.range("/k/new").kvs


def test_a_keep_alive_may_be_answered_and_renew_nothing(etcd, clock, lease):
    etcd.faults.idle_keep_alive = True
    clock.pass_time(1)
    assert etcd.lease_keep_alive(lease) == 2
    clock.pass_time(1)
    assert not stands(etcd)


# -- keep-alives that say a lease lives which does not ---------------------------------------------------------


def test_a_false_keep_alive_says_the_ttl_of_a_lease_whose_key_is_gone_and_brings_neither_back(etcd, clock, lease):
    etcd.faults.false_keep_alive = True
    etcd.lease_revoke(lease)
    clock.pass_time(100)
    assert etcd.lease_keep_alive(lease) == 2
    assert not stands(etcd)
    with pytest.raises(LeaseGone):
        etcd.put(KEY, b"v", lease)
    with pytest.raises(LeaseGone):
        etcd.lease_keep_alive(lease + 1)  # there never was one
    etcd.faults.false_keep_alive = False
    with pytest.raises(LeaseGone):
        etcd.lease_keep_alive(lease)


def test_between_the_end_of_its_keys_and_its_own_a_lease_answers_once_more(etcd, clock, lease):
    etcd.faults.removal_delay = ns(0.01)
    clock.pass_time(2)
    assert not stands(etcd)
    assert etcd.lease_keep_alive(lease) == 2
    with pytest.raises(LeaseGone):
        etcd.put(KEY, b"v", lease)
    clock.pass_time(0.01)
    with pytest.raises(LeaseGone):
        etcd.lease_keep_alive(lease)


# -- put back from a backup ------------------------------------------------------------------------------------


def test_restored_revisions_fall_and_leases_count_anew(etcd, clock, lease):
    clock.pass_time(1)
    backup, then = etcd.snapshot(), etcd.read("/k/")
    etcd.txn([], [put(KEY, b"later", lease), put("/k/more", b"v")])
    ahead = etcd.revision
    etcd.restore(backup)
    assert (etcd.read("/k/"), etcd.cluster_id) == (then, EtcdSpec(clock).cluster_id)
    clock.pass_time(1.9)
    assert stands(etcd)
    clock.pass_time(0.1)
    assert not stands(etcd)
    # Who had seen more is told nothing before that revision is reached again, and of another history then.
    assert etcd.changes("/k/", ahead) is None
    while etcd.revision <= ahead:
        etcd.put(KEY, b"other")
    told = etcd.changes("/k/", ahead)
    assert told is not None
    assert [(e.kv.value, e.kv.mod_revision) for e in told.events] == [(b"other", ahead + 1)]
    assert etcd.changes("/k/", 0).events[0].kv.value == b"v"  # the backup's own history came along


def test_a_backup_is_not_touched_by_what_comes_after_it(etcd, lease):
    backup = etcd.snapshot()
    for _ in range(2):
        etcd.delete(KEY)
        etcd.lease_revoke(lease)
        etcd.restore(backup)
        assert etcd.range(KEY).kvs[0].lease == lease
        assert etcd.snapshot() == backup


def test_what_came_after_the_backup_is_gone_and_raft_begins_anew(etcd, lease):
    backup, term = etcd.snapshot(), etcd.raft_term
    etcd.change_leader()
    later = etcd.lease_grant(60).id
    etcd.put("/k/later", b"v", later)
    etcd.restore(backup)
    assert not etcd.range("/k/later").kvs
    with pytest.raises(LeaseGone):
        etcd.lease_keep_alive(later)
    assert etcd.raft_term == term


def test_restored_with_a_bump_revisions_go_on_above_all_that_was_seen(etcd, lease):
    backup = etcd.snapshot()
    seen = etcd.put(KEY, b"later", lease)
    etcd.restore(backup, bump=1000, new_cluster_id=7)
    assert (etcd.revision, etcd.cluster_id) == (backup.revision + 1000, 7)
    (kv,) = etcd.range(KEY).kvs
    assert (kv.value, kv.mod_revision) == (b"v", backup.revision)
    with pytest.raises(Compacted):
        etcd.changes("/k/", seen)
    assert etcd.changes("/k/", etcd.revision - 1) is None
    first = etcd.put(KEY, b"next")
    assert [e.kv.mod_revision for e in etcd.changes("/k/", first - 1).events] == [first]
    assert first == backup.revision + 1001


def test_a_restored_etcd_never_grants_a_lease_id_again(etcd):
    backup = etcd.snapshot()
    first = etcd.lease_grant(60)
    etcd.restore(backup)
    assert etcd.lease_grant(60).id != first.id
