"""Followers catch up, stay equal, are cut where they differ, and slow nobody down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import grpc
import pytest

from cluster import wire
from cluster.core.errors import BatonError, InvariantViolation, JournalBroken, StepDown
from cluster.core.ids import JournalId, LogIndex, Term
from cluster.core.log import GENESIS, KIND_TERM_STARTED, Position, make_entry
from cluster.core.stream import Hello
from cluster.journal import JournalBusy
from cluster.journal_writer import JournalLimits, Task
from cluster.replication import LeaderLog, LeaderSettings
from tests.integration.replication.nodes import FAST, KIND, NODES, FakeEtcd, Node, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

Make = Callable[..., Awaitable[Node]]


async def test_an_empty_follower_catches_up_and_joins_the_in_sync_set(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd)
    await a.append(3000)
    b.follow(a, 1)
    await wait_until(lambda: a.in_sync(b))
    last = (await a.append(10))[-1]
    assert b.journal.durable_index >= last.index  # committed means: there as well
    await wait_until(lambda: len(b.applied) == last.index)
    assert b.entries() == a.entries() == a.applied == b.applied


async def test_a_follower_far_behind_is_served_from_the_file(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1", limits=JournalLimits(cache_entries=64)), await node("n2")
    await a.lead(1, etcd)
    await a.append(20_000)
    assert a.journal.tail(LogIndex(1), 1) is None
    b.follow(a, 1)
    await wait_until(lambda: b.delivery.applied == 20_001)
    assert b.applied == a.entries()


async def test_a_follower_behind_the_pruned_part_gets_the_snapshot_and_the_rest(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd)
    await a.append(1000)
    book = b"book" * 700_000  # several chunks
    await a.journal.save_snapshot(LogIndex(800), b"digest", book)
    await a.journal.prune(keep=100)
    b.follow(a, 1)
    await wait_until(lambda: a.in_sync(b))
    await wait_until(lambda: b.delivery.applied == 1001)
    assert [(s.index, s.digest, s.blob) for s in b.snapshots] == [(800, b"digest", book)]
    assert [e.index for e in b.applied] == list(range(801, 1002))
    assert b.journal.latest_snapshot() == a.journal.latest_snapshot()
    assert b.entries() == a.entries()[100:]


async def test_commits_reach_an_idle_follower_without_another_entry(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    last = (await a.append())[-1]
    await wait_until(lambda: b.delivery.applied == last.index, 1.0)


@pytest.mark.parametrize("next_duty", ["follow another", "nobody"])
async def test_a_snapshot_that_is_being_installed_becomes_the_book_whatever_comes_next(
    node: Make, etcd: FakeEtcd, next_duty: str
) -> None:
    a, b, c = await node("n1"), await node("n2"), await node("n3")
    await a.lead(1, etcd, c)
    c.follow(a, 1)
    await a.append(500)
    await a.journal.save_snapshot(LogIndex(400), b"digest", b"book" * 700_000)
    await a.journal.prune(keep=0)
    b.follow(a, 1)
    while b.journal.base.index == 0:  # noqa: ASYNC110 - not a moment later
        await asyncio.sleep(0)
    assert b.snapshots == []
    if next_duty == "nobody":
        await b.stop_following(closing=Term(1))
        assert [s.index for s in b.snapshots] == [400] == [b.delivery.applied]
        assert b.journal.durable_index == 400
    a.server.stop_leading("gone")
    await c.stop_following(closing=Term(1))
    await c.lead(2, etcd)
    b.follow(c, 2)
    last = (await c.append())[-1]
    await wait_until(lambda: b.delivery.applied == last.index or bool(b.stopped))
    assert b.stopped == [] and [s.index for s in b.snapshots] == [400]


async def test_a_commit_is_told_soon_also_to_who_had_acknowledged_before(node: Make, etcd: FakeEtcd) -> None:
    quiet = FAST.__class__(heartbeat_s=20.0, silence_s=60.0)
    a, b, c = [await node(name, settings=quiet) for name in ("n1", "n2", "n3")]
    await a.lead(1, etcd, b, c, settings=LeaderSettings(insync_timeout_s=20.0))
    for follower in (b, c):
        follower.follow(a, 1)
    await a.append()
    go = threading.Event()
    c.journal._writer.put(Task(lambda _db: go.wait(60) and None, asyncio.get_running_loop().create_future()))
    assert a.log is not None
    last = a.log.append(KIND, b"", 7)
    try:
        await wait_until(lambda: any(f.node == b.name and f.durable == last.index for f in a.log.followers()))  # type: ignore[union-attr]
        assert a.log.commit_index < last.index
    finally:
        go.set()
    await wait_until(lambda: b.delivery.applied == last.index, 3.0)


async def test_a_leader_whose_address_changes_is_followed_at_the_new_one(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append()
    b.follower.set_peers({a.name: a.address.replace("127.0.0.1", "localhost")})  # which closes the old connection
    last = (await a.append())[-1]
    await wait_until(lambda: b.delivery.applied == last.index)
    assert b.stopped == [] and b.follower.state().connected


async def test_an_old_leaders_uncommitted_tail_is_cut_when_it_comes_back(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    shared = await a.append(50)
    assert a.log is not None
    await b.stop_following(closing=Term(1))
    lost = [a.log.append(KIND, b"never sent", 8) for _ in range(30)]  # nobody acknowledges these
    a.server.stop_leading("deposed")
    await b.lead(2, etcd, a)
    a.follow(b, 2)
    new = await b.append(5)
    await wait_until(lambda: a.delivery.applied == new[-1].index)
    assert a.entries() == b.entries() == a.applied
    assert a.journal.chain_at(shared[-1].index) == shared[-1].chain
    assert a.journal.chain_at(lost[0].index) != lost[0].chain


async def test_entries_acknowledged_but_not_known_to_be_committed_survive_a_change_of_leader(
    node: Make, etcd: FakeEtcd
) -> None:
    a, b, c = await node("n1"), await node("n2"), await node("n3")
    await a.lead(1, etcd, b, c)
    b.follow(a, 1)
    c.follow(a, 1)
    entries = await a.append(40)
    a.server.stop_leading("killed")
    await c.stop_following(closing=Term(1))
    assert b.journal.last.index >= entries[-1].index
    await b.lead(2, etcd, c)
    c.follow(b, 2)
    await b.append()
    assert b.applied[: len(entries) + 1] == c.entries()[: len(entries) + 1] == a.applied


async def test_a_committed_entry_that_the_leader_lacks_stops_the_follower_loudly(node: Make, etcd: FakeEtcd) -> None:
    a, b, c = await node("n1"), await node("n2"), await node("n3")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append(20)
    await wait_until(lambda: b.journal.commit_index == 21)
    a.server.stop_leading("gone")
    await b.stop_following(closing=Term(1))
    await c.lead(2, etcd)  # which no in-sync set would ever have allowed
    b.follow(c, 2)
    await wait_until(lambda: bool(b.stopped))
    assert isinstance(b.stopped[0], InvariantViolation)
    assert "21" in str(b.stopped[0])
    assert b.journal.last.index == 21  # nothing was cut


async def test_an_entry_larger_than_grpcs_default_message_gets_through(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b, settings=LeaderSettings(insync_timeout_s=10))
    b.follow(a, 1)
    body = b"x" * (6 << 20)
    await a.append(2, body=body)
    assert b.entries()[-1].body == body
    assert a.log is not None
    with pytest.raises(BatonError, match="at most"):
        a.log.append(KIND, b"x" * (17 << 20), 7)


async def test_a_follower_whose_disk_stalls_costs_no_memory_and_catches_up_later(node: Make, etcd: FakeEtcd) -> None:
    window = 256 << 10
    settings = FAST.__class__(heartbeat_s=0.02, silence_s=0.4, window_bytes=window, frame_bytes=32 << 10)
    a = await node("n1", settings=settings, limits=JournalLimits(cache_bytes=1 << 20))
    b = await node(
        "n2", settings=settings, limits=JournalLimits(queue_bytes=128 << 10)
    )  # two frames are less than half
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append()
    go = threading.Event()
    b.journal._writer.put(Task(lambda _db: go.wait(60) and None, asyncio.get_running_loop().create_future()))
    try:
        assert a.log is not None
        for _ in range(20):  # 10 MB, forty windows
            entries = [a.log.append(KIND, b"x" * 5000, 7) for _ in range(100)]
            await a.log.wait_committed(entries[-1].index)
            for stream in a.log._streams:
                assert stream.serving.in_flight_bytes <= window + (64 << 10)  # type: ignore[attr-defined]
            assert a.journal._tail_bytes <= 2 << 20
            assert b.journal._waiting_bytes <= 2 * (128 << 10)
        assert a.in_sync()  # it was removed, and then the commits went on
    finally:
        go.set()
    await wait_until(lambda: a.in_sync(b))
    await a.append()
    assert b.entries() == a.entries()


async def test_a_broken_disk_at_the_follower_stops_it(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: a.in_sync(b))

    def refuse(_db: object) -> None:
        raise OSError(28, "No space left on device")

    b.journal._writer.put(Task(refuse, asyncio.get_running_loop().create_future()))
    await a.append(2)  # which waits until b is out of the set
    await wait_until(lambda: bool(b.stopped))
    assert isinstance(b.stopped[0], JournalBroken)
    assert a.in_sync()


class Gone:
    """What gRPC shows of a follower that said Hello and died."""

    def __init__(self, hello: Hello) -> None:
        self.hello: Hello | None = hello

    async def read(self) -> object:
        if self.hello is None:
            await asyncio.Event().wait()
        hello, self.hello = self.hello, None
        return wire.follower_message(hello)  # type: ignore[arg-type]

    async def write(self, _message: object) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


@pytest.mark.parametrize("term", [1, 2])
async def test_a_follower_that_dies_under_our_write_ends_its_stream_and_nothing_else(
    node: Make, etcd: FakeEtcd, term: int
) -> None:
    a = await node("n1")
    await a.lead(1, etcd)
    locator = [Position(LogIndex(0), GENESIS)]
    hello = Hello(1, "c1", NODES[1], JournalId("j"), Term(term), Term(term), LogIndex(0), LogIndex(0), locator)
    async with asyncio.timeout(10):
        await a.server.Follow(None, Gone(hello))
    assert a.log is not None and a.log.followers() == []
    assert bool(a.higher_terms) == (term == 2)  # it was refused, in vain as well


async def test_books_that_differ_stop_the_follower_and_name_both_digests(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append(9)
    await wait_until(lambda: b.delivery.applied == 10)
    a.digests.note(LogIndex(5), b"\x01" * 4)
    b.digests.note(LogIndex(5), b"\x01" * 4)
    a.digests.note(LogIndex(10), b"\xaa" * 4)
    await a.append()
    assert not b.stopped
    b.digests.note(LogIndex(10), b"\xbb" * 4)
    await wait_until(lambda: bool(b.stopped))
    told = str(b.stopped[0])
    assert isinstance(b.stopped[0], InvariantViolation)
    assert "index 10" in told and "aaaaaaaa" in told and "bbbbbbbb" in told
    assert a.wrong_digests[0][0] == "n2"
    await a.append()
    assert a.in_sync()


# -- the leader's own rules -------------------------------------------------------------------------------------


async def test_a_term_begins_with_term_started_and_has_it_once(node: Make, etcd: FakeEtcd) -> None:
    a = await node("n1")
    log = await a.lead(1, etcd)
    assert a.journal.last.index == 1
    with pytest.raises(InvariantViolation, match="TermStarted, once"):
        log.append(KIND_TERM_STARTED, b"", 1)


async def test_what_is_not_committed_when_the_term_ends_is_left_to_the_next_leader(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    log = await a.lead(1, etcd, b)
    etcd.hold = True
    entry = log.append(KIND, b"", 7)
    waiting = log.wait_committed(entry.index)
    a.server.stop_leading("lease lost")
    with pytest.raises(StepDown, match="lease lost"):
        await waiting
    with pytest.raises(StepDown):
        log.append(KIND, b"", 7)
    with pytest.raises(StepDown):
        await log.wait_committed(entry.index)


async def test_too_much_uncommitted_is_refused(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    log = await a.lead(1, etcd, b, settings=LeaderSettings(uncommitted_max=10))
    etcd.hold = True
    with pytest.raises(JournalBusy, match="10 entries wait to be committed"):
        for _ in range(20):
            log.append(KIND, b"", 7)
    assert a.journal.last.index == 10


async def test_a_journal_that_is_not_at_rest_may_not_lead(node: Make, etcd: FakeEtcd) -> None:
    a = await node("n1")
    a.journal.submit([make_entry(0, a.journal.last.chain, Term(1), KIND, 0, b"")], lambda _i: None)
    with pytest.raises(InvariantViolation, match="flush first"):
        LeaderLog(
            a.journal,
            a.name,
            Term(2),
            {a.name: a.journal.journal_id},
            1,
            propose=lambda _change: None,
            on_commit=lambda _index: None,
        )
    await a.journal.flush(5)
