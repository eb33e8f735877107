"""What the keeper writes into etcd, one transaction at a time, on a real etcd. Each compares what it rests on, so that
one which comes late, or twice, does nothing."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster import keys as k
from cluster.core import actions as act
from cluster.core.errors import StaleTerm
from cluster.core.events import Answer
from cluster.core.ids import JournalId, NodeId, Term
from cluster.etcd import EtcdClient
from cluster.registry import Identity, Registry
from tests.integration.keeper.rig import Etcd

TTL = 1_500_000_000
_numbers = itertools.count(1)


@pytest.fixture
async def client(shared_etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(shared_etcd.server.endpoints) as c:
        yield c


@pytest.fixture
def node(client: EtcdClient) -> Any:
    """node(name): one node's registry; all of one test share a cluster."""
    keys = k.Keys(f"registry-{next(_numbers)}")
    return lambda name="n1": Registry(client, keys, Identity(name, f"i-{name}", f"h-{name}", TTL), 2.0)


async def seen(registry: Registry) -> k.View:
    got = await registry.etcd.range(registry.keys.prefix, prefix=True)
    raw = {kv.key: k.RawKey(kv.value, kv.create_revision, kv.mod_revision) for kv in got.kvs}
    assert not k.unreadable(registry.keys, raw)
    return k.view_of(registry.keys, raw, got.revision, got.cluster_id, TTL)


_requests = itertools.count(1)


async def acquire(registry: Registry, *, tenure: int = 0, insync: int = 0) -> tuple[Answer, int]:
    lease = await registry.etcd.lease_grant(30)
    members = {NodeId(registry.me.node): JournalId("j")}
    return await registry.carry_out(act.Acquire(next(_requests), 1, lease.id, Term(tenure), insync, members))


async def renew(registry: Registry, token: int, renewal: int = 1) -> Answer:
    lease = await registry.etcd.lease_grant(30)
    return (await registry.carry_out(act.Renew(next(_requests), Term(token), 1, renewal, lease.id)))[0]


async def resign(registry: Registry, token: int, why: str = "test") -> Answer:
    request = act.Resign(next(_requests), Term(token), why, "ann", NodeId("n2"))
    return (await registry.carry_out(request, last_sign=77))[0]


async def test_the_first_acquire_wins_and_its_revision_is_the_token(node):
    one, other = node("n1"), node("n2")
    answer, token = await acquire(one)
    assert answer is Answer.DONE
    assert (await acquire(other))[0] is Answer.REFUSED
    view = await seen(one)
    assert (view.leader.token, view.tenure.token, view.insync.mod_revision) == (token, token, token)
    assert (view.leader.node, view.leader.home, view.leader.ttl) == ("n1", "h-n1", TTL)
    assert view.insync.names(NodeId("n1"), JournalId("j"))


async def test_an_acquire_rests_on_the_tenure_and_the_insync_set_it_saw(node):
    one, other = node("n1"), node("n2")
    _, token = await acquire(one)
    assert await resign(one, token) is Answer.DONE
    assert (await acquire(other, tenure=token, insync=token - 1))[0] is Answer.REFUSED
    assert (await acquire(other, tenure=token - 1, insync=token))[0] is Answer.REFUSED
    answer, higher = await acquire(other, tenure=token, insync=token)
    assert (answer, higher > token) == (Answer.DONE, True)


async def test_a_renewal_moves_the_key_and_only_for_who_holds_it(node):
    one, other = node("n1"), node("n2")
    _, token = await acquire(one)
    assert await renew(one, token, 2) is Answer.DONE
    view = await seen(one)
    assert (view.leader.token, view.leader.renewal) == (token, 2)
    assert view.leader.mod_revision > token
    assert await renew(other, token + 1) is Answer.REFUSED


async def test_an_eviction_does_nothing_once_a_renewal_came_between(node):
    one, other = node("n1"), node("n2")
    _, token = await acquire(one)
    evict = act.Evict(next(_requests), token, Term(token), NodeId("n1"))
    assert await renew(one, token) is Answer.DONE
    assert (await other.carry_out(evict))[0] is Answer.REFUSED
    standing = (await seen(one)).leader.mod_revision
    evict = act.Evict(next(_requests), standing, Term(token), NodeId("n1"))
    assert (await other.carry_out(evict))[0] is Answer.DONE
    view = await seen(one)
    assert view.leader is None
    assert (view.ended_properly, view.resigned.reason, view.resigned.actor) == (True, "evicted", "n2")


async def test_a_resignation_is_done_once_also_when_the_key_had_vanished(node):
    one, other = node("n1"), node("n2")
    _, token = await acquire(one)
    await one.etcd.delete(one.keys.leader)
    assert await resign(one, token) is Answer.DONE
    view = await seen(one)
    assert (view.ended_properly, view.resigned.successor) == (True, "n2")
    _, higher = await acquire(other, tenure=token, insync=token)
    # Late, or twice: the new leader stays, and so does what is said of its predecessor's end.
    assert await resign(one, token, "again") is Answer.REFUSED
    view = await seen(one)
    assert (view.leader.token, view.resigned.reason) == (higher, "test")


async def test_a_lease_that_is_gone_is_a_refusal_and_not_a_doubt(node):
    one = node()
    lease = await one.etcd.lease_grant(30)
    await one.etcd.lease_revoke(lease.id)
    request = act.Acquire(next(_requests), 1, lease.id, Term(0), 0, {})
    assert await one.carry_out(request) == (Answer.REFUSED, 0)
    assert (await seen(one)).leader is None


async def test_silence_is_a_doubt_and_not_a_refusal(own_etcd, node):
    async with EtcdClient(own_etcd.endpoints) as client:
        one = Registry(client, k.Keys("c"), Identity("n1", "i", "h", TTL), 0.2)
        _, token = await acquire(one)
        own_etcd.pause(0)
        assert await renew_without_grant(one, token) == (Answer.UNKNOWN, 0)
        outcome = await one.change_insync(token, {"n1": "j"}, token)
        assert (outcome.outcome, outcome.members, outcome.revision) == ("unknown", {}, 0)
        assert not await one.take_switchover(1)
        own_etcd.resume(0)


async def renew_without_grant(registry: Registry, token: int) -> tuple[Answer, int]:
    return await registry.carry_out(act.Renew(next(_requests), Term(token), 1, 1, 0))


async def test_a_request_is_taken_once_and_only_the_one_that_was_seen(node):
    one = node()
    assert await one.ask_switchover("r1", None, "ann")
    first = k.switchover_of(await raw_of(one, one.keys.switchover))
    assert not await one.ask_switchover("r0", "n2", "bob")  # the first one's asker would wait for nothing
    assert first is not None and await one.take_switchover(first.mod_revision)
    assert await one.ask_switchover("r2", "n2", "bob")
    second = k.switchover_of(await raw_of(one, one.keys.switchover))
    assert second is not None
    assert not await one.take_switchover(first.mod_revision)  # another one by now
    assert await one.take_switchover(second.mod_revision)
    assert not await one.take_switchover(second.mod_revision)
    assert (second.id, second.target, second.actor) == ("r2", "n2", "bob")


async def raw_of(registry: Registry, key: str) -> k.RawKey | None:
    kvs = (await registry.etcd.range(key)).kvs
    return k.RawKey(kvs[0].value, kvs[0].create_revision, kvs[0].mod_revision) if kvs else None


async def test_a_status_too_long_to_be_read_is_left_out_and_the_member_stays(node):
    one = node()
    lease = await one.etcd.lease_grant(30)
    await one.put_member(lease.id, {"incarnation": "i", "ready": True, "status": {"x": "y" * k.VALUE_MAX}})
    raw = await raw_of(one, one.keys.member("n1"))
    told = k.load(raw)
    assert told is not None
    assert (told["ready"], list(told["status"])) == (True, ["too_long_bytes"])


async def test_the_kill_latch_is_set_read_and_cleared_and_rubbish_counts_as_set(node):
    one = node()
    _, token = await acquire(one)
    assert await one.read_latch(token) is None
    await one.put_latch("fat finger", "ann")
    assert await one.read_latch(token) == "fat finger" == (await seen(one)).halted
    await one.clear_latch()
    assert await one.read_latch(token) is None and (await seen(one)).halted is None
    await one.etcd.put(one.keys.halt, b"stop!")
    assert await one.read_latch(token) == "the halt key in etcd is unreadable"
    await one.clear_latch()
    await resign(one, token)
    with pytest.raises(StaleTerm, match="does not lead"):
        await one.read_latch(token)
