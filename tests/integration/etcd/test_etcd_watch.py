"""Watches lose nothing: not when members die or hang, not when the server ends them in any of its ways."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import grpc
import pytest

from cluster.clock import boottime_ns
from cluster.etcd import NO_ANSWER, Changes, EtcdClient, RevisionRolledBack, Snapshot, Watch, put
from cluster.rpc.etcd import rpc_pb2

from etcd_tools import all_ready, fake_etcd, leader_of, unless_etcd_diverged, until  # isort: skip


class Follower:
    """Keeps a copy of a prefix from a watch, and checks each item against the one before."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.copy: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.revision = 0
        self.snapshots = 0
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            async for item in self.watch:
                self.take(item)
        except RevisionRolledBack as e:
            self.error = e

    def take(self, item: Snapshot | Changes) -> None:
        assert item.revision >= self.revision
        if isinstance(item, Snapshot):
            self.snapshots += 1
            self.copy = {kv.key: kv.value for kv in item.kvs}
            self.versions = {kv.key: kv.version for kv in item.kvs}
        else:
            assert self.snapshots and item.revision > self.revision
            for e in item.events:
                if e.deleted:
                    self.copy.pop(e.kv.key)
                    self.versions.pop(e.kv.key)
                    continue
                # The version counts a key's writes: a hole in it is a change that was lost.
                assert e.kv.version == self.versions.get(e.kv.key, 0) + 1
                self.copy[e.kv.key], self.versions[e.kv.key] = e.kv.value, e.kv.version
        self.revision = item.revision


async def write(client: EtcdClient, key: str, number: int) -> None:
    """Until it is certain."""
    while True:
        try:
            await client.put(key, str(number).encode())
            return
        except NO_ANSWER:
            continue


# -- a healthy etcd ---------------------------------------------------------------------------------------


async def test_a_snapshot_then_each_change(client, prefix):
    await client.put(prefix + "a", b"1")
    async with asyncio.timeout(5):
        watch = client.watch(prefix, prev_kv=True)
        first = await anext(watch)
        assert isinstance(first, Snapshot) and [kv.value for kv in first.kvs] == [b"1"]
        done = await client.txn([], [put(prefix + "a", b"2"), put(prefix + "b", b"x")])
        both = await anext(watch)
        assert isinstance(both, Changes) and both.revision == done.revision
        assert [(e.deleted, e.kv.key, e.kv.value) for e in both.events] == [
            (False, prefix + "a", b"2"),
            (False, prefix + "b", b"x"),
        ]
        assert both.events[0].previous is not None and both.events[0].previous.value == b"1"
        assert both.events[1].previous is None
        await client.delete(prefix + "a")
        (gone,) = (await anext(watch)).events
        assert gone.deleted and gone.kv.key == prefix + "a" and gone.previous.value == b"2"
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_wait_that_is_cancelled_loses_nothing_and_restarts_nothing(client, prefix):
    watch = client.watch(prefix)
    assert isinstance(await anext(watch), Snapshot)
    rng, got, cancelled = random.Random(1), [], 0

    async def wait(limit_s: float) -> None:
        nonlocal cancelled
        try:
            async with asyncio.timeout(limit_s):
                item = await anext(watch)
        except TimeoutError:
            cancelled += 1
            return
        assert isinstance(item, Changes)
        got.extend(int(e.kv.value) for e in item.events)

    for n in range(200):
        writing = asyncio.create_task(client.put(prefix + "k", str(n).encode()))
        await wait(rng.uniform(0, 0.002))  # ends before, while and after the change arrives
        await writing
    while len(got) < 200:
        await wait(2)
        assert cancelled <= 200, "a change was lost"
    assert got == list(range(200)) and cancelled > 10
    await watch.aclose()


async def test_resync_reads_afresh_also_for_one_who_waits(client, prefix):
    watch = client.watch(prefix)
    await anext(watch)
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.02)  # it waits for a change
    watch.resync()
    assert isinstance(await asyncio.wait_for(waiting, 2), Snapshot)
    watch.resync()
    assert isinstance(await asyncio.wait_for(anext(watch), 2), Snapshot)
    await client.put(prefix + "k", b"v")
    assert isinstance(await asyncio.wait_for(anext(watch), 2), Changes)
    await watch.aclose()


async def test_a_quiet_watch_is_asked_for_signs_of_life_and_left_alone(client, prefix):
    watch = client.watch(prefix, silence_timeout_s=0.2)
    await anext(watch)
    waiting = asyncio.create_task(anext(watch))
    await asyncio.wait({waiting}, timeout=1.0)  # five times the limit, and nothing happens in etcd
    assert not waiting.done()
    await client.put(prefix + "k", b"v")
    assert isinstance(await asyncio.wait_for(waiting, 2), Changes)
    await watch.aclose()


async def test_a_consumer_that_was_busy_for_long_gets_what_it_missed(client, prefix):
    watch = client.watch(prefix, silence_timeout_s=0.05)
    await anext(watch)
    for n in range(50):
        await client.put(prefix + "k", str(n).encode())
    await asyncio.sleep(0.2)  # busy; the silence is its own, not the server's
    got = []
    async with asyncio.timeout(5):
        while len(got) < 50:
            item = await anext(watch)
            assert isinstance(item, Changes)
            got += [int(e.kv.value) for e in item.events]
    assert got == list(range(50))
    await watch.aclose()


# -- an etcd whose members die, hang, compact -------------------------------------------------------------


async def test_every_change_is_seen_through_kills_pauses_and_compaction(cluster):
    prefix = "/w/"
    async with (
        unless_etcd_diverged(cluster),
        EtcdClient(cluster.endpoints) as client,
        EtcdClient(cluster.endpoints) as writer,
    ):
        follower = Follower(client.watch(prefix, silence_timeout_s=0.5, rng=random.Random(1)))
        number = 0

        async def write_and_see(limit_s: float = 5.0) -> None:
            nonlocal number
            for _ in range(20):
                number += 1
                await write(writer, prefix + str(number % 3), number)
            wanted = (prefix + str(number % 3), str(number).encode())
            await until(lambda: follower.copy.get(wanted[0]) == wanted[1], limit_s, f"write {number} is seen")

        async with asyncio.TaskGroup() as group:
            running = group.create_task(follower.run())
            await write_and_see()
            for strike, heal in ((cluster.kill, cluster.restart), (cluster.pause, cluster.resume)):
                for victim in (await leader_of(cluster), watched_by(client, cluster)):
                    strike(victim)
                    await write_and_see()
                    await asyncio.to_thread(heal, victim)
                    await write_and_see()

            # Compact away what a watch that is cut off would need next.
            victim = watched_by(client, cluster)
            cluster.pause(victim)
            for _ in range(20):
                number += 1
                await write(writer, prefix + str(number % 3), number)
            current = (await writer.range("/w/", prefix=True)).revision
            ep, _ = await writer.ready_endpoint(2)
            await ep.kv.Compact(rpc_pb2.CompactionRequest(revision=current, physical=False), timeout=2)
            cluster.resume(victim)
            await write_and_see()

            assert follower.copy == {kv.key: kv.value for kv in (await writer.range("/w/", prefix=True)).kvs}
            assert follower.snapshots > 1, "no strike ever hit the watch"
            running.cancel()


def watched_by(client: EtcdClient, cluster) -> int:
    """The member that serves this client's watch, by number."""
    (watch,) = client._watches
    assert watch._stream is not None
    return cluster.endpoints.index(f"http://{watch._stream.endpoint.address}")


async def test_a_watch_from_before_a_compaction_starts_over(own_etcd):
    """The real server's cancel with a compact_revision: the watch is opened at a revision that is gone by then."""
    async with EtcdClient(own_etcd.endpoints) as client:
        follower = Follower(client.watch("/w/", rng=random.Random(1)))
        first = await anext(follower.watch)
        follower.take(first)
        for n in range(10):
            await client.put("/w/k", str(n).encode())
        ep, _ = await client.ready_endpoint()
        revision = (await client.range("/w/k")).revision
        await ep.kv.Compact(rpc_pb2.CompactionRequest(revision=revision, physical=True), timeout=2)
        follower.watch._stream.close()  # the connection breaks ...
        stream = follower.watch._stream
        reopened = await type(stream).open(client, follower.watch._request(first.revision + 1), 2.0)  # ... and resumes
        follower.watch._stream = reopened
        async with asyncio.timeout(5):
            item = await anext(follower.watch)
        assert isinstance(item, Snapshot) and item.kvs[0].value == b"9"
        await follower.watch.aclose()


async def test_an_etcd_that_lost_its_data_is_told_from_one_that_is_late(own_etcd):
    """Same addresses and token, so the same cluster id, and a store that begins again at revision 1."""
    async with EtcdClient(own_etcd.endpoints) as client:
        follower = Follower(client.watch("/w/", rng=random.Random(1)))
        running = asyncio.create_task(follower.run())
        for n in range(20):
            await client.put("/w/k", str(n).encode())
        before = (await client.range("/w/k")).revision
        await until(lambda: follower.revision == before, 2, "all is seen")
        own_etcd.kill(0)
        shutil.rmtree(Path(own_etcd.members[0].dir, "data"))
        await asyncio.to_thread(own_etcd.restart, 0)
        await asyncio.wait_for(running, 5)
        assert isinstance(follower.error, RevisionRolledBack)
        assert (follower.error.before, follower.error.after) == (before, 1)
        assert f"from revision {before} to 1" in str(follower.error) and "fence rebase" in str(follower.error)


# -- an etcd that ends streams in each of its ways --------------------------------------------------------

ENDINGS = {
    "clean": None,
    "error": (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
    "cancelled": rpc_pb2.WatchResponse(canceled=True, cancel_reason="etcdserver: permission denied"),
    "cancelled without a reason": rpc_pb2.WatchResponse(canceled=True),
    "compacted": rpc_pb2.WatchResponse(canceled=True, compact_revision=12),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_however_a_stream_ends_what_happened_meanwhile_is_seen(ending):
    async with fake_etcd() as fake, EtcdClient([fake.address]) as client, asyncio.timeout(5):
        watch = client.watch("/w/", rng=random.Random(1))
        assert isinstance(await anext(watch), Snapshot)
        for n in range(3):
            await until(lambda: len(fake.streams) == n + 1, 2, "it watches again")  # noqa: B023
            fake.streams[-1].put_nowait(fake.events(fake.write("/w/k", f"seen {n}".encode())))
            changes = await anext(watch)
            assert isinstance(changes, Changes) and changes.events[0].kv.value == f"seen {n}".encode()
            fake.write("/w/k", f"missed {n}".encode())
            fake.streams[-1].put_nowait(ENDINGS[ending])
            again = await anext(watch)
            assert isinstance(again, Snapshot) and again.kvs[0].value == f"missed {n}".encode()
            assert again.revision == fake.revision
            task = asyncio.create_task(anext(watch))  # reads `created` of the new stream
            await until(lambda: len(fake.streams) == n + 2, 2, "it watches again")  # noqa: B023
            task.cancel()
        await watch.aclose()


async def test_a_stream_that_goes_silent_is_replaced_by_a_fresh_read():
    async with fake_etcd() as fake, EtcdClient([fake.address]) as client, asyncio.timeout(5):
        watch = client.watch("/w/", silence_timeout_s=0.2, rng=random.Random(1))
        await anext(watch)
        fake.answer_progress = False
        waiting = asyncio.create_task(anext(watch))
        await until(lambda: fake.progress_requests > 0, 2, "it asks for a sign of life")
        fake.write("/w/k", b"unsaid")
        item = await waiting
        assert isinstance(item, Snapshot) and item.kvs[0].value == b"unsaid"
        await watch.aclose()


async def test_a_server_that_ends_every_stream_is_not_hammered():
    async with fake_etcd() as fake, EtcdClient([fake.address]) as client:
        watch = client.watch("/w/", rng=random.Random(1))

        async def end_all() -> None:
            ended = 0
            while True:
                while ended < len(fake.streams):
                    fake.streams[ended].put_nowait(None)
                    ended += 1
                await asyncio.sleep(0.001)

        ender = asyncio.create_task(end_all())
        deadline = boottime_ns() + 1_000_000_000
        snapshots = 0
        while boottime_ns() < deadline:
            try:
                async with asyncio.timeout((deadline - boottime_ns()) / 1e9):
                    await anext(watch)
                    snapshots += 1
            except TimeoutError:
                break
        ender.cancel()
        await watch.aclose()
        assert 3 <= snapshots <= 20


async def test_a_put_aside_endpoint_takes_its_watches_along():
    """A member that fails a call is not to be trusted with a watch either: it would be silent for its whole limit."""
    async with fake_etcd() as a, fake_etcd() as b, EtcdClient([a.address, b.address]) as client, asyncio.timeout(5):
        await all_ready(client)
        watch = client.watch("/w/", rng=random.Random(1))
        await anext(watch)
        waiting = asyncio.create_task(anext(watch))
        await until(lambda: a.watches + b.watches == 1, 2, "one of them serves the watch")
        serving, other = (a, b) if a.watches else (b, a)
        serving.fail_next = [(grpc.StatusCode.DEADLINE_EXCEEDED, "")]
        with pytest.raises(NO_ANSWER):
            await client.txn([], [put("/w/k", b"v")])
        assert isinstance(await waiting, Snapshot)
        another = asyncio.create_task(anext(watch))
        await until(lambda: other.watches == 1, 2, "the other one serves it now")
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await another
