"""Three real members that die, hang and come back under load: nothing is done twice, and silence is told from no."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from cluster.clock import boottime_ns
from cluster.core.errors import OutcomeUnknown, Unreachable
from cluster.etcd import NO_ANSWER, EtcdClient, absent, mod_revision, put

from etcd_tools import leader_of, unless_etcd_diverged, until  # isort: skip

SLACK_S = 1.0  # a busy machine; without a deadline these calls would take etcd's own 5 s and more


class Load:
    """Writes as fast as it may, each to a key of its own and without a condition: the key's version then counts how
    often it was executed. Between them, a counter in a chain of compares."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.done: list[int] = []
        self.unknown: list[int] = []
        self.unreachable: list[int] = []
        self.slowest_s = 0.0
        self.counter = self.unsure_counts = 0

    async def run(self, stop: asyncio.Event) -> None:
        number = revision = 0
        while not stop.is_set():
            number += 1
            started = boottime_ns()
            try:
                await self.client.txn([], [put(f"/once/{number}", b"")])
                self.done.append(number)
            except OutcomeUnknown:
                self.unknown.append(number)
            except Unreachable:
                self.unreachable.append(number)
            self.slowest_s = max(self.slowest_s, (boottime_ns() - started) / 1e9)
            revision = await self._count(revision)

    async def _count(self, revision: int) -> int:
        try:
            r = await self.client.txn(
                [mod_revision("/counter") == revision], [put("/counter", str(self.counter + 1).encode())]
            )
        except Unreachable:
            return revision
        except OutcomeUnknown:
            self.unsure_counts += 1
        else:
            assert r.succeeded, "somebody else moved the counter: an earlier write was executed late or twice"
            self.counter += 1
            return r.revision
        # Ask what happened, until there is an answer. A write that is still on its way fails its compare once this
        # read's value has been moved on from; to make sure of that, the key is touched.
        while True:
            try:
                kvs = (await self.client.range("/counter")).kvs
                seen = kvs[0].mod_revision if kvs else 0
                value = kvs[0].value if kvs else b"0"
                touched = await self.client.txn([mod_revision("/counter") == seen], [put("/counter", value)])
            except NO_ANSWER:
                continue
            if touched.succeeded:
                assert int(value) in (self.counter, self.counter + 1)
                self.counter = int(value)
                return touched.revision

    async def audit(self) -> None:
        """After everything is healed: compare what etcd holds with what the client was told."""
        kvs = (await self.client.range("/once/", prefix=True, timeout_s=5)).kvs
        executed = {int(kv.key.rsplit("/", 1)[1]): kv.version for kv in kvs}
        assert set(executed.values()) <= {1}, "executed twice"
        assert [n for n in self.done if n not in executed] == [], "told done, and lost"
        assert [n for n in self.unreachable if n in executed] == [], "told not done, and executed"
        assert int((await self.client.range("/counter")).kvs[0].value) == self.counter


async def under_load(etcd, story) -> Load:
    """Run `story(load)` beside the load, then let the load stop and audit it."""
    async with unless_etcd_diverged(etcd), EtcdClient(etcd.endpoints) as client:
        load, stop = Load(client), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(stop))
            try:
                await goes_on(load, "at the start")
                await story(load)
            finally:
                stop.set()
        await load.audit()
        return load


async def goes_on(load: Load, when: str, limit_s: float = 5.0) -> None:
    before = len(load.done)
    await until(lambda: len(load.done) >= before + 50, limit_s, f"50 more writes {when}")


async def test_any_one_member_may_be_killed_and_come_back(cluster):
    async def story(load: Load) -> None:
        for _ in range(2):
            victim = await leader_of(cluster)
            cluster.kill(victim)
            await goes_on(load, "after the leader was killed")
            await asyncio.to_thread(cluster.restart, victim)
            await goes_on(load, "after it came back")
        follower = (await leader_of(cluster) + 1) % 3
        cluster.kill(follower)
        await goes_on(load, "after a follower was killed", 2)
        await asyncio.to_thread(cluster.restart, follower)

    load = await under_load(cluster, story)
    assert load.slowest_s < load.client.call_timeout_s + SLACK_S


async def test_any_one_member_may_hang_and_wake_up(cluster):
    async def story(load: Load) -> None:
        for who in ("leader", "follower", "leader"):
            victim = await leader_of(cluster)
            victim = victim if who == "leader" else (victim + 1) % 3
            cluster.pause(victim)
            await goes_on(load, f"after the {who} was paused")
            cluster.resume(victim)
            await goes_on(load, f"after the {who} woke up")

    load = await under_load(cluster, story)
    assert load.slowest_s < load.client.call_timeout_s + SLACK_S
    assert load.unknown or load.unsure_counts, "a paused member never cost an answer: the pauses did not bite"


async def test_all_members_may_be_killed_at_once_and_come_back(cluster):
    async def story(load: Load) -> None:
        for i in range(3):
            cluster.kill(i)
        endpoints = load.client._channels.endpoints
        await until(lambda: not any(ep.ready for ep in endpoints), 5, "all connections are gone")
        with pytest.raises(Unreachable, match=r"refused|lost|closed"):
            await load.client.put("/never", b"")
        for i in range(3):
            cluster.restart(i, wait=False)
        await asyncio.to_thread(cluster.wait_healthy)
        await goes_on(load, "after all came back")
        assert (await load.client.range("/never")).kvs == ()

    await under_load(cluster, story)


async def test_without_a_majority_a_write_is_unknown_then_unreachable_each_by_its_deadline(cluster):
    leader = await leader_of(cluster)
    others = [i for i in range(3) if i != leader]
    async with EtcdClient([cluster.endpoints[leader]]) as client:
        assert (await client.txn([absent("/before")], [put("/before", b"")])).succeeded
        for i in others:
            cluster.pause(i)
        # The leader does not know yet: it takes the proposal, and cannot finish it.
        started = boottime_ns()
        with pytest.raises(OutcomeUnknown):
            await client.txn([], [put("/once/1", b"")])
        assert (boottime_ns() - started) / 1e9 < client.call_timeout_s + SLACK_S

        # It steps down within an election timeout or two, and from then on says that it has no leader.
        numbers = itertools.count(2)

        async def stepped_down() -> bool:
            started = boottime_ns()
            try:
                await client.txn([], [put(f"/once/{next(numbers)}", b"")])
            except Unreachable as e:
                return "no leader" in str(e)
            except OutcomeUnknown:
                pass
            finally:
                assert (boottime_ns() - started) / 1e9 < client.call_timeout_s + SLACK_S
            return False

        await until(stepped_down, 5, "writes are turned away for want of a leader")
        with pytest.raises(NO_ANSWER):
            await client.range("/before")  # linearizable: no stale answer either
        for i in others:
            cluster.resume(i)

        async def works() -> bool:
            try:
                return (await client.txn([], [put("/after", b"")])).succeeded
            except NO_ANSWER:
                return False

        await until(works, 5, "writes work again")
        assert {kv.version for kv in (await client.range("/once/", prefix=True)).kvs} <= {1}


async def test_a_lease_survives_the_loss_of_the_leader_when_kept_alive(cluster):
    async with EtcdClient(cluster.endpoints) as client:
        lease = await client.lease_grant(3)
        await client.put("/k", b"", lease.id)
        cluster.kill(await leader_of(cluster))
        renewed = 0

        async def renew() -> bool:
            nonlocal renewed
            try:
                assert await client.lease_keep_alive(lease.id) == lease.ttl_s
                renewed += 1
            except NO_ANSWER:
                pass
            return renewed >= 5

        await until(renew, 5, "the lease is renewed under the new leader")
        assert (await client.range("/k")).kvs[0].lease == lease.id
