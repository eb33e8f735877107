"""What every etcd does that Baton stands on. Subclass it and give the `bench` fixture.

The transactions are those of `cluster/transactions.py`, so what the simulator shows with them on the stand-in holds
for what the keeper sends to the real one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import pytest

from chaos.sim.etcd import Compacted
from cluster import keys as k
from cluster import transactions as tx
from cluster.core import actions as act
from cluster.core.events import Answer
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.lease import InSync, View
from cluster.core.rebase import End, Rebased
from cluster.etcd import (
    Compare,
    EtcdRefused,
    Event,
    GrantedLease,
    LeaseGone,
    Op,
    OpResult,
    RangeResult,
    Snapshot,
    Txn,
    TxnResult,
    absent,
    create_revision,
    delete,
    get,
    mod_revision,
    put,
    value,
    version,
)
from cluster.mirror import Mirror

TTL = 1_500_000_000
DATES = tx.Dates(at=90, now=Instant(50), last_sign=77, renewal_seen=Instant(20))


class EtcdPort(Protocol):
    """The part of EtcdClient that is shared."""

    async def txn(self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult: ...
    async def put(self, key: str, value: bytes, lease: int = 0) -> int: ...
    async def delete(self, key: str, *, prefix: bool = False) -> OpResult: ...
    async def range(self, key: str, *, prefix: bool = False, limit: int = 0) -> RangeResult: ...
    async def lease_grant(self, ttl_s: int) -> GrantedLease: ...
    async def lease_keep_alive(self, lease_id: int) -> int: ...
    async def lease_revoke(self, lease_id: int) -> None: ...


class EtcdBench(Protocol):
    """One etcd that nobody else writes to while a test runs."""

    @property
    def etcd(self) -> EtcdPort: ...

    async def pass_time(self, seconds: float) -> None: ...

    async def events(self, prefix: str, after: int, until: int) -> list[Event]:
        """What a watch says that starts behind revision `after`, up to its event of `until`. Raises Compacted."""

    async def compact(self, revision: int) -> None: ...


class Candidate:
    """One node of a cluster, as far as etcd sees it."""

    def __init__(self, etcd: EtcdPort, keys: k.Keys, node: str) -> None:
        self.etcd, self.keys, self.node = etcd, keys, node
        self.me = tx.Identity(node, f"i-{node}", f"h-{node}", TTL, "h:1", "h:2")
        self.lease: GrantedLease | None = None

    async def send(self, txn: Txn) -> TxnResult:
        return await self.etcd.txn(txn.compare, txn.success, txn.failure)

    async def ask(self, request: act.EtcdRequest) -> tuple[Answer, int]:
        answer = None
        for txn in tx.tries(self.keys, self.me, request, DATES):
            answer = await self.send(txn)
            if answer.succeeded:
                return Answer.DONE, answer.revision
        assert answer is not None
        return Answer.REFUSED, answer.revision

    async def acquire(self, *, tenure: int = 0, insync: int = 0) -> tuple[Answer, int]:
        self.lease = await self.etcd.lease_grant(30)
        members = {NodeId(self.node): JournalId("j")}
        return await self.ask(act.Acquire(1, 1, self.lease.id, Term(tenure), insync, members))

    async def renew(self, token: int, renewal: int = 1) -> Answer:
        lease = self.lease.id if self.lease else 0
        return (await self.ask(act.Renew(2, Term(token), 1, renewal, lease)))[0]

    async def evict(self, modified: int, token: int) -> Answer:
        return (await self.ask(act.Evict(3, modified, Term(token), NodeId("?"))))[0]

    async def resign(self, token: int, why: str = "test") -> Answer:
        return (await self.ask(act.Resign(4, Term(token), why, "ann", NodeId("n2"))))[0]

    async def change_insync(self, term: int, members: dict[str, str], expected: int) -> tx.InSyncOutcome:
        answer = await self.send(tx.change_insync(self.keys, term, members, expected))
        return tx.insync_outcome(members, answer)

    async def view(self) -> View:
        found = await self.etcd.range(self.keys.prefix, prefix=True)
        mirror = Mirror(self.keys, TTL)
        written = mirror.apply(Snapshot(found.kvs, found.revision), found.cluster_id)
        assert not k.unreadable(self.keys, written)
        return mirror.view


_numbers = itertools.count(1)


@pytest.fixture
def prefix() -> str:
    return f"/contract/{next(_numbers)}/"


@pytest.fixture
def pair(bench: EtcdBench) -> tuple[Candidate, Candidate]:
    """Two nodes of a cluster that no other test knows."""
    keys = k.Keys(f"contract-{next(_numbers)}")
    return Candidate(bench.etcd, keys, "n1"), Candidate(bench.etcd, keys, "n2")


class EtcdContract:
    # -- leadership ------------------------------------------------------------------------------------------------

    async def test_the_first_acquire_wins_and_its_revision_is_the_token(self, pair):
        one, other = pair
        answer, token = await one.acquire()
        assert answer is Answer.DONE
        assert await other.acquire() == (Answer.REFUSED, token)
        view = await one.view()
        assert (view.leader.token, view.tenure.token, view.insync.mod_revision) == (token, token, token)
        assert (view.leader.node, view.leader.home, view.leader.ttl, view.leader.renewal) == ("n1", "h-n1", TTL, 0)
        assert view.insync.names(NodeId("n1"), JournalId("j"))
        (leader,) = (await one.etcd.range(one.keys.leader)).kvs
        assert leader.lease == one.lease.id

    async def test_an_acquire_rests_on_the_tenure_and_the_insync_set_it_saw_and_on_a_vacancy(self, pair):
        one, other = pair
        _, token = await one.acquire()
        assert (await other.acquire(tenure=token, insync=token))[0] is Answer.REFUSED
        assert await one.resign(token) is Answer.DONE
        assert (await other.acquire(tenure=token, insync=token - 1))[0] is Answer.REFUSED
        assert (await other.acquire(tenure=token - 1, insync=token))[0] is Answer.REFUSED
        assert (await other.acquire())[0] is Answer.REFUSED
        answer, higher = await other.acquire(tenure=token, insync=token)
        assert (answer, higher > token) == (Answer.DONE, True)

    async def test_a_renewal_moves_the_key_and_only_for_who_holds_it(self, pair):
        one, other = pair
        _, token = await one.acquire()
        assert await one.renew(token, 2) is Answer.DONE
        leader = (await one.view()).leader
        assert (leader.token, leader.renewal, leader.mod_revision) == (token, 2, token + 1)
        assert await other.renew(token + 1) is Answer.REFUSED
        assert (await one.view()).leader == leader
        await one.etcd.delete(one.keys.leader)
        assert await one.renew(token) is Answer.REFUSED  # it does not come back by itself

    async def test_an_eviction_does_nothing_once_a_renewal_came_between(self, pair):
        one, other = pair
        _, token = await one.acquire()
        assert await one.renew(token) is Answer.DONE
        assert await other.evict(token, token) is Answer.REFUSED
        assert await other.evict(token + 1, token) is Answer.DONE
        view = await one.view()
        assert (view.leader, view.ended_properly) == (None, True)
        assert (view.resigned.reason, view.resigned.actor, view.resigned.at) == ("evicted", "n2", 90)
        assert await one.renew(token) is Answer.REFUSED

    async def test_a_rebase_rests_on_a_vacancy_and_its_revision_is_a_token(self, pair):
        one, other = pair

        async def rebase(seen: View, lead: NodeId | None, noted: int) -> TxnResult:
            to = Rebased(seen.cluster_id, {NodeId("n2"): End(Term(3), LogIndex(9))}, lead, mod_revision=noted)
            return await other.send(tx.rebase(other.keys, other.me, JournalId("j2"), seen, to))

        _, token = await one.acquire()
        assert not (await rebase(await one.view(), None, 0)).succeeded
        await one.resign(token)
        seen = await one.view()
        done = await rebase(seen, None, 0)
        view = await one.view()
        assert (done.succeeded, view.insync, view.tenure) == (True, InSync({}, done.revision), seen.tenure)
        assert not (await rebase(seen, NodeId("n2"), done.revision)).succeeded  # `insync` is not the one that it saw
        assert not (await rebase(view, NodeId("n2"), 0)).succeeded
        named = await rebase(view, NodeId("n2"), done.revision)
        view = await one.view()
        assert (view.tenure.node, view.tenure.token, view.ended_properly) == ("n2", named.revision, False)
        assert view.insync == InSync({NodeId("n2"): JournalId("j2")}, named.revision)
        assert await one.resign(token) is Answer.REFUSED
        assert await other.resign(named.revision) is Answer.DONE
        answer, higher = await other.acquire(tenure=named.revision, insync=named.revision)
        assert (answer, higher > named.revision) == (Answer.DONE, True)

    async def test_a_resignation_is_done_once_also_when_the_key_had_vanished(self, pair):
        one, other = pair
        _, token = await one.acquire()
        await one.etcd.lease_revoke(one.lease.id)
        assert await one.resign(token) is Answer.DONE
        view = await one.view()
        assert (view.leader, view.ended_properly, view.resigned.successor) == (None, True, "n2")
        _, higher = await other.acquire(tenure=token, insync=token)
        # Late, or twice: the new leader stays, and so does what is said of its predecessor's end.
        assert await one.resign(token, "again") is Answer.REFUSED
        view = await one.view()
        assert (view.leader.token, view.resigned.reason) == (higher, "test")
        await other.etcd.delete(one.keys.leader)
        assert await one.resign(token, "again") is Answer.REFUSED  # that vacancy is not its own
        assert not (await one.view()).ended_properly

    async def test_nobody_resigns_for_a_leader_key_that_was_put_there_by_hand(self, pair):
        one, _ = pair
        _, token = await one.acquire()
        (leader,) = (await one.etcd.delete(one.keys.leader)).kvs
        await one.etcd.put(one.keys.leader, leader.value)
        assert await one.renew(token) is Answer.REFUSED
        assert await one.resign(token) is Answer.REFUSED
        assert (await one.view()).resigned is None

    async def test_the_insync_set_changes_once_from_what_was_seen_and_for_who_leads(self, pair):
        one, other = pair
        _, token = await one.acquire()
        both = {"n1": "j", "n2": "j"}
        done = await one.change_insync(token, both, token)
        assert (done.outcome, done.members, done.revision) == ("done", both, token + 1)
        again = await one.change_insync(token, {"n1": "j"}, token)
        assert (again.outcome, again.members, again.revision) == ("refused", both, token + 1)
        assert (await other.change_insync(token + 1, {}, token + 1)).outcome == "refused"
        await one.resign(token)
        over = await one.change_insync(token, {"n1": "j"}, token + 1)
        assert (over.outcome, over.members, over.revision) == ("refused", both, token + 1)

    async def test_an_insync_set_that_is_gone_is_told_as_none(self, pair):
        one, _ = pair
        _, token = await one.acquire()
        await one.etcd.delete(one.keys.insync)
        outcome = await one.change_insync(token, {"n1": "j"}, token)
        assert (outcome.outcome, outcome.members, outcome.revision) == ("refused", {}, 0)

    async def test_an_acquire_under_a_lease_that_is_gone_does_nothing_at_all(self, pair):
        one, _ = pair
        lease = await one.etcd.lease_grant(30)
        await one.etcd.lease_revoke(lease.id)
        before = await one.view()
        with pytest.raises(LeaseGone):
            await one.ask(act.Acquire(1, 1, lease.id, Term(0), 0, {}))
        assert await one.view() == before
        await one.acquire()
        assert (await one.ask(act.Acquire(1, 1, lease.id, Term(0), 0, {})))[0] is Answer.REFUSED  # not even looked at

    # -- transactions ----------------------------------------------------------------------------------------------

    async def test_comparisons_of_a_key_that_exists_and_of_one_that_does_not(self, bench, prefix):
        key, none = prefix + "k", prefix + "none"
        first = await bench.etcd.put(key, b"m")
        last = await bench.etcd.put(key, b"m")
        truths: list[tuple[Any, bool]] = [
            (create_revision(key) == first, True),
            (mod_revision(key) == last, True),
            (mod_revision(key) != last, False),
            (mod_revision(key) < last, False),
            (mod_revision(key) > first, True),
            (version(key) == 2, True),
            (version(key) < 3, True),
            (value(key) == b"m", True),
            (value(key) != b"m", False),
            (value(key) < b"n", True),
            (value(key) > b"n", False),
            (absent(key), False),
            (absent(none), True),
            (create_revision(none) == 0, True),
            (mod_revision(none) < 1, True),
            (version(none) > 0, False),
            (value(none) == b"", False),  # of a key that does not exist no value is true, not even another one
            (value(none) != b"m", False),
        ]
        for compare, holds in truths:
            text = repr(compare)
            assert (await bench.etcd.txn([compare], [])).succeeded is holds, text
        assert (await bench.etcd.txn([], [])).succeeded
        assert not (await bench.etcd.txn([absent(none), absent(key)], [])).succeeded

    async def test_one_transaction_writes_reads_and_deletes_at_one_revision(self, bench, prefix):
        a, b = prefix + "a", prefix + "b"
        before = await bench.etcd.put(a, b"old")
        done = await bench.etcd.txn(
            [absent(b)], [get(a), delete(a), put(b, b"new"), get(prefix, prefix=True), delete(a)], [get(a)]
        )
        read, gone, written, after, again = done.responses
        assert done.revision == before + 1
        assert [(kv.key, kv.value) for kv in read.kvs] == [(a, b"old")]
        assert (gone.deleted, [kv.value for kv in gone.kvs], written) == (1, [b"old"], OpResult((), 0))
        assert [(kv.key, kv.value, kv.mod_revision) for kv in after.kvs] == [(b, b"new", done.revision)]
        assert again == OpResult((), 0)

    async def test_a_transaction_that_changes_nothing_takes_no_revision(self, bench, prefix):
        key = prefix + "k"
        revision = await bench.etcd.put(key, b"v")
        for compare, ops in (([absent(key)], [put(key, b"w")]), ([], [get(key)]), ([], [delete(prefix + "none")])):
            assert (await bench.etcd.txn(compare, ops)).revision == revision
        assert (await bench.etcd.delete(prefix + "none")).deleted == 0
        assert (await bench.etcd.range(key)).revision == revision
        assert await bench.etcd.put(key, b"v") == revision + 1  # the same value is a change

    async def test_a_key_counts_its_writes_and_begins_anew_after_its_deletion(self, bench, prefix):
        key = prefix + "k"
        first = await bench.etcd.put(key, b"1")
        second = await bench.etcd.put(key, b"2")
        (kv,) = (await bench.etcd.range(key)).kvs
        assert kv == (key, b"2", first, second, 2, 0)
        (gone,) = (await bench.etcd.delete(key)).kvs
        assert gone == kv
        again = await bench.etcd.put(key, b"3")
        assert (await bench.etcd.range(key)).kvs[0] == (key, b"3", again, again, 1, 0)
        assert again == second + 2

    @pytest.mark.parametrize("branch", ["taken", "not taken"])
    async def test_a_key_written_twice_is_refused_in_either_branch_and_deleted_twice_not(self, bench, prefix, branch):
        key = prefix + "k"
        revision = await bench.etcd.put(key, b"v")
        twice = [
            [put(key, b"1"), put(key, b"2")],
            [put(key, b"1"), delete(key)],
            [delete(prefix, prefix=True), put(key, b"1")],
        ]
        for ops in twice:
            branches = (ops, []) if branch == "taken" else ([], ops)
            with pytest.raises(EtcdRefused, match="duplicate key"):
                await bench.etcd.txn([], *branches)
        assert (await bench.etcd.range(key)).revision == revision
        assert (await bench.etcd.txn([], [delete(key), delete(prefix, prefix=True)])).responses[1].deleted == 0

    async def test_no_more_operations_than_etcd_takes(self, bench, prefix):
        ops = [put(f"{prefix}{n}", b"v") for n in range(129)]
        assert (await bench.etcd.txn([], ops[:128])).succeeded
        with pytest.raises(EtcdRefused, match="too many operations"):
            await bench.etcd.txn([], ops)

    async def test_a_range_is_a_prefix_in_order_and_nothing_beside_it(self, bench, prefix):
        for name in ("b/2", "a", "b0", "b/1", "c", "b/ü"):
            await bench.etcd.put(prefix + name, name.encode())
        got = await bench.etcd.range(prefix + "b/", prefix=True)
        assert [kv.value.decode() for kv in got.kvs] == ["b/1", "b/2", "b/ü"]
        assert len((await bench.etcd.range(prefix, prefix=True, limit=2)).kvs) == 2
        assert (await bench.etcd.range(prefix + "b")).kvs == ()
        gone = await bench.etcd.delete(prefix + "b/", prefix=True)
        assert (gone.deleted, [kv.key for kv in gone.kvs]) == (3, [prefix + "b/1", prefix + "b/2", prefix + "b/ü"])

    # -- leases ----------------------------------------------------------------------------------------------------

    async def test_a_lease_that_nobody_renews_ends_and_its_keys_go_at_one_revision(self, bench, prefix):
        lease = await bench.etcd.lease_grant(1)
        assert lease.ttl_s >= 1
        for name in ("b", "a"):
            revision = await bench.etcd.put(prefix + name, b"v", lease.id)
        await bench.etcd.put(prefix + "c", b"v")
        await bench.pass_time(lease.ttl_s * 0.6)
        assert await bench.etcd.lease_keep_alive(lease.id) == lease.ttl_s
        await bench.pass_time(lease.ttl_s * 0.6)
        assert len((await bench.etcd.range(prefix, prefix=True)).kvs) == 3
        await bench.pass_time(lease.ttl_s * 0.4 + 2)  # etcd looks every half second
        found = await bench.etcd.range(prefix, prefix=True)
        assert ([kv.key for kv in found.kvs], found.revision) == ([prefix + "c"], revision + 2)
        events = await bench.events(prefix, revision + 1, revision + 2)
        assert [(e.deleted, e.kv) for e in events] == [
            (True, (prefix + name, b"", 0, revision + 2, 0, 0)) for name in ("a", "b")
        ]
        with pytest.raises(LeaseGone):
            await bench.etcd.lease_keep_alive(lease.id)
        with pytest.raises(LeaseGone):
            await bench.etcd.put(prefix + "k", b"v", lease.id)
        await bench.etcd.lease_revoke(lease.id)

    async def test_a_lease_takes_along_only_the_keys_that_hang_on_it_at_its_end(self, bench, prefix):
        one, two = await bench.etcd.lease_grant(60), await bench.etcd.lease_grant(60)
        for name in ("freed", "gone", "moved", "rewritten"):
            await bench.etcd.put(prefix + name, b"v", one.id)
        await bench.etcd.put(prefix + "freed", b"v")
        await bench.etcd.put(prefix + "moved", b"v", two.id)
        await bench.etcd.put(prefix + "rewritten", b"v", one.id)
        await bench.etcd.delete(prefix + "gone")
        await bench.etcd.put(prefix + "gone", b"v")
        await bench.etcd.lease_revoke(one.id)
        assert [kv.key for kv in (await bench.etcd.range(prefix, prefix=True)).kvs] == [
            prefix + name for name in ("freed", "gone", "moved")
        ]
        await bench.etcd.lease_revoke(two.id)
        assert len((await bench.etcd.range(prefix, prefix=True)).kvs) == 2

    async def test_the_end_of_a_lease_without_keys_takes_no_revision(self, bench, prefix):
        revision = await bench.etcd.put(prefix + "k", b"v")
        await bench.etcd.lease_revoke((await bench.etcd.lease_grant(60)).id)
        assert (await bench.etcd.range(prefix + "k")).revision == revision

    async def test_a_lease_gone_in_the_branch_that_is_not_taken_is_no_matter(self, bench, prefix):
        key = prefix + "k"
        await bench.etcd.put(key, b"v")
        lease = await bench.etcd.lease_grant(60)
        await bench.etcd.lease_revoke(lease.id)
        assert not (await bench.etcd.txn([absent(key)], [put(key, b"w", lease.id)], [get(key)])).succeeded
        with pytest.raises(LeaseGone):
            await bench.etcd.txn([], [put(prefix + "other", b"v"), put(key, b"w", lease.id)])
        assert [kv.value for kv in (await bench.etcd.range(prefix, prefix=True)).kvs] == [b"v"]

    # -- watches ---------------------------------------------------------------------------------------------------

    async def test_a_watch_tells_every_change_under_its_prefix_in_order(self, bench, prefix):
        start = await bench.etcd.put(prefix + "a", b"1")
        await bench.etcd.txn([], [put(prefix + "z", b"2"), put(prefix + "a", b"3")])
        await bench.etcd.put(prefix[:-1] + "0/beside", b"")
        await bench.etcd.delete(prefix, prefix=True)
        end = await bench.etcd.put(prefix + "a", b"4")
        told = [(e.deleted, *e.kv[:5]) for e in await bench.events(prefix, start - 1, end)]
        a, z = prefix + "a", prefix + "z"
        assert told == [
            (False, a, b"1", start, start, 1),
            (False, z, b"2", start + 1, start + 1, 1),
            (False, a, b"3", start, start + 1, 2),
            (True, a, b"", 0, start + 3, 0),
            (True, z, b"", 0, start + 3, 0),
            (False, a, b"4", end, end, 1),
        ]
        assert [(e.deleted, *e.kv[:5]) for e in await bench.events(prefix, start + 1, end)] == told[3:]
        assert all(e.previous is None for e in await bench.events(prefix, start, end))

    async def test_a_watch_that_asks_for_what_was_compacted_is_told_so(self, bench, prefix):
        revisions = [await bench.etcd.put(prefix + "k", str(n).encode()) for n in range(5)]
        await bench.compact(revisions[2])
        with pytest.raises(Compacted) as e:
            await bench.events(prefix, revisions[0], revisions[4])
        assert e.value.revision == revisions[2]
        rest = await bench.events(prefix, revisions[2], revisions[4])
        assert [e.kv.value for e in rest] == [b"3", b"4"]
        rest = await bench.events(prefix, revisions[1], revisions[4])  # what stands at that revision is kept
        assert [e.kv.value for e in rest] == [b"2", b"3", b"4"]
        (kv,) = (await bench.etcd.range(prefix + "k")).kvs
        assert (kv.value, kv.version, kv.create_revision) == (b"4", 5, revisions[0])
