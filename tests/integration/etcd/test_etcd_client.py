"""The client against one healthy etcd, and against a fake one for what a healthy one never says."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cluster.clock import boottime_ns
from cluster.core.errors import OutcomeUnknown, Unreachable
from cluster.etcd import (
    NO_ANSWER,
    EtcdClient,
    EtcdRefused,
    LeaseGone,
    WrongCluster,
    absent,
    create_revision,
    delete,
    get,
    mod_revision,
    put,
    value,
    version,
)
from node.local.servers import free_ports, start_etcd

from etcd_tools import all_ready, fake_etcd, until  # isort: skip

# -- transactions and reads -------------------------------------------------------------------------------


async def test_a_transaction_takes_the_branch_its_compares_say(client, prefix):
    key = prefix + "k"
    first = await client.txn([absent(key)], [put(key, b"1")], [get(key)])
    again = await client.txn([absent(key)], [put(key, b"2")], [get(key)])

    assert first.succeeded and not again.succeeded
    (kv,) = again.responses[0].kvs
    assert (kv.key, kv.value, kv.version, kv.lease) == (key, b"1", 1, 0)
    assert kv.create_revision == kv.mod_revision == first.revision
    assert first.cluster_id == again.cluster_id == client.cluster_id
    assert first.raft_term >= 1


@pytest.mark.parametrize("op", ["==", "!=", "<", ">"])
async def test_each_comparison_means_what_it_says(client, prefix, op):
    key = prefix + "k"
    revision = await client.put(key, b"v")
    holds = {
        "==": [create_revision(key) == revision, mod_revision(key) == revision, version(key) == 1, value(key) == b"v"],
        "!=": [mod_revision(key) != revision - 1, value(key) != b"w"],
        "<": [mod_revision(key) < revision + 1, version(key) < 2],
        ">": [mod_revision(key) > revision - 1, version(key) > 0],
    }[op]
    assert (await client.txn(holds, [get(key)])).succeeded


async def test_one_transaction_writes_reads_and_deletes_at_one_revision(client, prefix):
    a, b = prefix + "a", prefix + "b"
    await client.put(a, b"old")
    done = await client.txn([mod_revision(b) == 0], [delete(a), put(b, b"new"), get(prefix, prefix=True)])

    gone, written, read = done.responses
    assert (gone.deleted, gone.kvs[0].value) == (1, b"old")
    assert written == ((), 0)
    assert [(kv.key, kv.mod_revision) for kv in read.kvs] == [(b, done.revision)]


async def test_a_range_reads_a_prefix_and_nothing_beside_it(client, prefix):
    for name in ("a", "b/1", "b/2", "b0", "c"):
        await client.put(prefix + name, name.encode())
    got = await client.range(prefix + "b/", prefix=True)
    assert [kv.value for kv in got.kvs] == [b"b/1", b"b/2"]
    assert len((await client.range(prefix, prefix=True, limit=2)).kvs) == 2
    assert (await client.range(prefix + "nothing")).kvs == ()
    gone = await client.delete(prefix + "b/", prefix=True)
    assert gone.deleted == 2 and [kv.value for kv in gone.kvs] == [b"b/1", b"b/2"]


async def test_keys_are_text_that_survives_whatever_bytes_they_are(client, prefix):
    key = prefix + "ü\udcff"
    await client.put(key, b"v")
    assert (await client.range(prefix, prefix=True)).kvs[0].key == key


async def test_a_transaction_etcd_finds_invalid_is_refused_and_not_done(client, prefix):
    with pytest.raises(EtcdRefused, match="duplicate key"):
        await client.txn([], [put(prefix + "k", b"1"), put(prefix + "k", b"2")])
    assert (await client.range(prefix, prefix=True)).kvs == ()


# -- leases -----------------------------------------------------------------------------------------------


async def test_a_lease_tells_the_ttl_that_was_granted_and_ends_with_its_keys(client, prefix):
    lease = await client.lease_grant(1)
    assert lease.ttl_s >= 1
    await client.put(prefix + "k", b"v", lease.id)
    assert (await client.range(prefix + "k")).kvs[0].lease == lease.id
    assert await client.lease_keep_alive(lease.id) == lease.ttl_s

    async def gone() -> bool:
        return not (await client.range(prefix + "k")).kvs

    await until(gone, 5, "the lease expires")
    with pytest.raises(LeaseGone, match=f"{lease.id:x}"):
        await client.lease_keep_alive(lease.id)
    with pytest.raises(LeaseGone, match="lease not found"):
        await client.txn([], [put(prefix + "k", b"v", lease.id)])
    assert not (await client.range(prefix + "k")).kvs


async def test_a_revoked_lease_is_gone_and_revoking_it_again_is_fine(client, prefix):
    lease = await client.lease_grant(60)
    await client.put(prefix + "k", b"v", lease.id)
    await client.lease_revoke(lease.id)
    assert not (await client.range(prefix + "k")).kvs
    await client.lease_revoke(lease.id)
    with pytest.raises(LeaseGone):
        await client.lease_keep_alive(lease.id)


async def test_not_a_primary_lessor_is_no_answer_and_the_next_endpoint_is_asked():
    """What etcd says (code UNKNOWN) when it lost its leader during a keep-alive: etcd#21671."""
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client:
        await all_ready(client)
        a.fail_next = b.fail_next = [(grpc.StatusCode.UNKNOWN, "not a primary lessor")]
        assert await client.lease_keep_alive(7) == 1
        assert sorted(a.asked + b.asked) == ["keep_alive", "keep_alive"]
        assert len(a.asked) == 1


# -- written once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "raised"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out", OutcomeUnknown),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", OutcomeUnknown),
        (grpc.StatusCode.INTERNAL, "boom", OutcomeUnknown),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided", EtcdRefused),
    ],
)
async def test_a_write_that_may_have_happened_is_not_sent_again(code, text, raised):
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client:
        await all_ready(client)
        a.fail_next = b.fail_next = [(code, text)]
        with pytest.raises(raised):
            await client.txn([], [put("k", b"v")])
        assert len(a.asked + b.asked) == 1


async def test_a_write_that_certainly_did_not_happen_goes_to_the_next_endpoint():
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client:
        await all_ready(client)
        a.fail_next = b.fail_next = [(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")]
        assert (await client.txn([], [put("k", b"v")])).succeeded
        assert (len(a.asked), len(b.asked)) == (1, 1)
        assert all(m["hasleader"] == "true" for m in a.metadata + b.metadata)


async def test_without_a_leader_anywhere_a_write_is_unreachable_by_its_deadline():
    async with fake_etcd() as a, EtcdClient([a.address]) as client:
        a.fail_next = [(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")] * 1000
        start = boottime_ns()
        with pytest.raises(Unreachable, match="no leader"):
            await client.txn([], [put("k", b"v")], timeout_s=0.2)
        assert boottime_ns() - start < 400_000_000
        assert len(a.asked) < 40  # it does not hammer


async def test_a_read_is_repeated_elsewhere_after_any_silence():
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client:
        await all_ready(client)
        a.fail_next = b.fail_next = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")]
        assert (await client.range("k")).revision == 10
        assert (len(a.asked), len(b.asked)) == (1, 1)


async def test_after_a_failure_the_next_call_goes_to_another_endpoint():
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client:
        await all_ready(client)
        a.fail_next = b.fail_next = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")]
        with pytest.raises(OutcomeUnknown):
            await client.txn([], [put("k", b"1")])
        assert (await client.txn([], [put("k", b"2")])).succeeded
        assert (len(a.asked), len(b.asked)) == (1, 1)


# -- which cluster, which term ----------------------------------------------------------------------------


async def test_another_cluster_than_the_one_remembered_is_refused_before_anything_is_written(client, etcd, prefix):
    wrong = EtcdClient(etcd.endpoints, cluster_id=0xBAD)
    with pytest.raises(WrongCluster, match=f"is cluster {client.cluster_id:x}, expected cluster bad"):
        await wrong.put(prefix + "k", b"v", timeout_s=2)
    await wrong.close()
    assert not (await client.range(prefix, prefix=True)).kvs


async def test_endpoints_of_two_clusters_are_found_out(etcd, own_etcd):
    client = EtcdClient(etcd.endpoints + own_etcd.endpoints)

    async def found_out() -> bool:
        try:
            await client.range("k")
        except WrongCluster as e:
            return f"{e.found:x}" in str(e) and f"{e.expected:x}" in str(e)
        return False

    await until(found_out, 5, "WrongCluster is raised")
    await client.close()


async def test_a_member_that_is_behind_is_not_used():
    async with (
        fake_etcd(raft_term=7) as good,
        fake_etcd(raft_term=7) as stale,
        EtcdClient([good.address, stale.address]) as client,
    ):
        await all_ready(client)
        await client.range("k")
        stale.raft_term = 6  # as after a pause during which the others elected
        client.distrust("so that the other one is asked as well")
        results = [await client.range("k") for _ in range(10)]
        assert {r.raft_term for r in results} == {7}
        assert len(stale.asked) <= 2
        good.raft_term = 6
        with pytest.raises(OutcomeUnknown, match="behind: raft term 6, others had 7"):
            await client.txn([], [put("k", b"v")])


async def test_a_member_that_is_behind_when_it_connects_waits_until_it_has_caught_up():
    async with fake_etcd(raft_term=7) as good, fake_etcd(raft_term=6) as late:
        async with EtcdClient([good.address]) as first:
            await first.range("k")
        client = EtcdClient([good.address, late.address])
        client._guard.raft_term = 7  # as learned from `good`, whichever connects first
        await client.range("k", timeout_s=2)
        await until(lambda: "behind" in client._channels.reasons(), 2, "the late one is seen to be behind")
        assert late.asked == []
        late.raft_term = 7
        await all_ready(client)
        await client.close()


# -- connections ------------------------------------------------------------------------------------------


async def test_nobody_there_is_said_with_the_reason_of_each_endpoint():
    ports = free_ports(2)
    client = EtcdClient([f"127.0.0.1:{p}" for p in ports])
    with pytest.raises(Unreachable) as e:
        await client.connect(timeout_s=1)
    for port in ports:
        assert f"127.0.0.1:{port}: " in str(e.value)
    assert "refused" in str(e.value)
    status = await client.status()
    assert [s.reachable for s in status] == [False, False] and "refused" in status[0].error
    await client.close()


async def test_a_client_started_before_etcd_connects_when_it_comes(tmp_path):
    ports = free_ports(2)
    client = EtcdClient([f"127.0.0.1:{ports[0]}"])
    with pytest.raises(Unreachable):
        await client.range("k")
    etcd = await asyncio.to_thread(start_etcd, tmp_path, 1, ports)
    try:
        assert (await client.range("k", timeout_s=3)).revision >= 1
    finally:
        await client.close()
        etcd.stop(grace_s=0)


async def test_status_and_members_describe_etcd(client, etcd):
    (status,) = await client.status()
    (member,) = await client.members()
    assert status.reachable and status.is_leader and status.version.startswith("3.")
    assert status.endpoint == etcd.endpoints[0].removeprefix("http://")
    assert status.member_id == member.id and status.cluster_id == client.cluster_id
    assert status.db_bytes > 0 and 0 < status.latency_s < 1
    assert (member.name, member.client_urls) == ("etcd1", tuple(etcd.endpoints))


async def test_closing_ends_what_is_under_way_and_what_comes_after(own_etcd):
    async with EtcdClient(own_etcd.endpoints) as client:
        watch = client.watch("/w/")
        await anext(watch)
        next_change = asyncio.create_task(anext(watch, None))
        own_etcd.pause(0)
        call = asyncio.create_task(client.put("k", b"v", timeout_s=30))
        await asyncio.sleep(0)  # both have begun
        await asyncio.sleep(0)
    with pytest.raises(NO_ANSWER, match="closed"):
        await asyncio.wait_for(call, 2)
    assert await asyncio.wait_for(next_change, 2) is None
    with pytest.raises(Unreachable, match="closed"):
        await client.range("k")


async def test_a_cancelled_call_is_cancelled(own_etcd):
    async with EtcdClient(own_etcd.endpoints) as client:
        own_etcd.pause(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.put("k", b"v", timeout_s=30)
        own_etcd.resume(0)
        assert (await client.range("k", timeout_s=2)).revision >= 1


def test_a_client_serves_one_asyncio_run_after_another(etcd, prefix):
    """As the command line does."""

    async def once() -> int:
        async with EtcdClient(etcd.endpoints) as client:
            return await client.put(prefix + "k", b"v")

    assert asyncio.run(once()) < asyncio.run(once())
