"""etcd as far as Baton uses it: a specification that can be executed, on a clock handed in.

One linearizable store: what a client sees that reaches a majority. Lost, late and held replies, silent watches and
members that are cut off lie between this and the client, and are the links' business. Invariants:

- `revision` rises by one with every call that changes a key, and with every lease that ends and had keys; everything
  changed by one of them has that mod_revision;
- a call that raises has written nothing;
- with all `Faults` off, whatever is true here is true of a healthy etcd (`tests/contract/etcd_contract.py`).

Values, errors and the vocabulary of transactions are those of `cluster/etcd/model.py`; comparisons and operations are
read as the objects they are, so a renewal costs microseconds. Watches carry no previous values, ranges read no past
revisions, and there are no users: Baton asks for none of them.

The faults are those that real etcds have shown; each names where.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

from cluster.core.errors import BatonError
from cluster.core.ids import NS_PER_S, Instant
from cluster.etcd.model import (
    Changes,
    Compare,
    Create,
    Delete,
    EtcdRefused,
    Event,
    GrantedLease,
    KeyValue,
    LeaseGone,
    Mod,
    Op,
    OpResult,
    Put,
    RangeResult,
    Snapshot,
    TxnResult,
    Value,
    delete,
    key_range,
    put,
    to_bytes,
    version,
)

MIN_TTL_S = 2
"""What etcd grants at least, at its default election timeout of a second."""
OPS_MAX = 128
_FIRST_RAFT_TERM = 2
_NEVER = 2**63


class Compacted(BatonError):
    """What a watch asked for is not kept any more: read everything afresh. revision: of the compaction."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"etcd has compacted its history up to revision {revision}")
        self.revision = revision


@dataclass(slots=True)
class Faults:
    """Off is what etcd promises. Two more are events, not states: `change_leader` and `old_leader_wakes`.

    expiry_delay: ns that a lease outlives its TTL by (etcd#11058: "longer than the given TTL eventually").
    idle_keep_alive: a keep-alive is answered and renews nothing; an old leader answered that does not know yet that it
    is one (etcd#15247, fixed in 3.5.13).
    false_keep_alive: a keep-alive of a lease that is gone, and its keys with it, is answered as if it were alive
    (etcd#20590, fixed in 3.6.5).
    removal_delay: ns between the deletion of a lease's keys and the removal of the lease; meanwhile its keep-alives are
    answered (etcd#21389, closed without a fix).
    """

    expiry_delay: int = 0
    idle_keep_alive: bool = False
    false_keep_alive: bool = False
    removal_delay: int = 0


@dataclass(slots=True)
class _Lease:
    id: int
    ttl_s: int
    ends_at: int
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Gone:
    """A lease whose keys have been deleted."""

    ttl_s: int
    removed_at: int


@dataclass(frozen=True, slots=True)
class Backup:
    """What `etcdctl snapshot save` saves: keys, their history, and leases with their TTLs."""

    revision: int
    kvs: dict[bytes, KeyValue]
    leases: tuple[GrantedLease, ...]
    history: tuple[tuple[Event, ...], ...]
    compacted: int


class EtcdSpec:
    def __init__(self, clock: Callable[[], Instant], *, cluster_id: int = 0xE7CD, min_ttl_s: int = MIN_TTL_S) -> None:
        """clock: that of etcd's leader, which counts the leases; it never goes back."""
        self._clock = clock
        self._min_ttl_s = min_ttl_s
        self.faults = Faults()
        self.cluster_id = cluster_id
        self.raft_term = _FIRST_RAFT_TERM
        self.revision = 1
        self.compacted = 0
        self._kvs: dict[bytes, KeyValue] = {}
        self._history: list[tuple[Event, ...]] = []  # by revision; the last is of `revision`
        self._leases: dict[int, _Lease] = {}
        self._gone: dict[int, _Gone] = {}
        self._granted = 0
        self._soonest = _NEVER  # no lease ends before
        self._stalled: dict[int, int] = {}  # the old leader's picture: when which lease ends

    # -- transactions and reads ------------------------------------------------------------------------------------

    def txn(self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """Raises EtcdRefused: a branch writes a key twice, or is too long. LeaseGone: the branch that would be taken
        puts a key under a lease that is gone."""
        for part in (compare, success, failure):
            if len(part) > OPS_MAX:
                raise EtcdRefused("etcd refused: too many operations in txn request")
        for branch in (success, failure):
            if len(branch) > 1:
                _refuse_duplicates(branch)
        self.expire()
        succeeded = True
        for c in compare:
            if not _holds(c, self._kvs.get(c.key)):
                succeeded = False
                break
        responses = self._execute(success if succeeded else failure)
        return TxnResult(succeeded, responses, self.revision, self.cluster_id, self.raft_term)

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """The revision of the write. Raises LeaseGone."""
        self.expire()
        self._execute((put(key, value, lease),))
        return self.revision

    def delete(self, key: str, *, prefix: bool = False) -> OpResult:
        self.expire()
        return self._execute((delete(key, prefix=prefix),))[0]

    def range(self, key: str, *, prefix: bool = False, limit: int = 0) -> RangeResult:
        self.expire()
        kvs = self._found(*key_range(key, prefix))
        return RangeResult(kvs[:limit] if limit else kvs, self.revision, self.cluster_id, self.raft_term)

    def _execute(self, ops: Sequence[Op]) -> tuple[OpResult, ...]:
        """All at the next revision; if nothing is changed, there is none."""
        for op in ops:
            if type(op) is Put and op.lease and op.lease not in self._leases:
                raise LeaseGone("etcd refused: requested lease not found")
        revision = self.revision + 1
        events: list[Event] = []
        responses = []
        for op in ops:
            if type(op) is Put:
                events.append(self._put(op, revision))
                responses.append(_NOTHING)
            elif type(op) is Delete:
                gone = self._found(op.key, op.range_end)
                events += self._delete(map(_key_of, gone), revision)
                responses.append(OpResult(gone, len(gone)))
            else:
                responses.append(OpResult(self._found(op.key, op.range_end), 0))
        if events:
            self._commit(events)
        return tuple(responses)

    def _put(self, op: Any, revision: int) -> Event:
        key, lease = op.key, op.lease
        old = self._kvs.get(key)
        if old is None:
            kv = KeyValue(key.decode("utf-8", "surrogateescape"), op.value, revision, revision, 1, lease)
        else:
            kv = KeyValue(old.key, op.value, old.create_revision, revision, old.version + 1, lease)
            if old.lease and old.lease != lease:
                self._leases[old.lease].keys.discard(key)
        if lease:
            self._leases[lease].keys.add(key)
        self._kvs[key] = kv
        return Event(False, kv, None)

    def _delete(self, keys: Iterable[bytes], revision: int) -> Iterator[Event]:
        for key in keys:
            old = self._kvs.pop(key)
            if old.lease in self._leases:
                self._leases[old.lease].keys.discard(key)
            yield Event(True, KeyValue(old.key, b"", 0, revision, 0, 0), None)

    def _commit(self, events: Iterable[Event]) -> None:
        self._history.append(tuple(events))
        self.revision += 1

    def _found(self, start: bytes, end: bytes) -> tuple[KeyValue, ...]:
        if not end:
            kv = self._kvs.get(start)
            return (kv,) if kv is not None else ()
        return tuple(self._kvs[key] for key in sorted(self._kvs) if _within(key, start, end))

    # -- watches ---------------------------------------------------------------------------------------------------

    def read(self, prefix: str) -> Snapshot:
        """With what a watch begins: everything, now."""
        found = self.range(prefix, prefix=True)
        return Snapshot(found.kvs, found.revision)

    def changes(self, prefix: str, after: int) -> Changes | None:
        """What happened under `prefix` since revision `after`, oldest first; None: nothing. Raises Compacted.

        As etcd: of a store whose revisions fell, who asks for what follows a higher one is told nothing until it is
        reached again."""
        self.expire()
        if after + 1 < self.compacted:
            raise Compacted(self.compacted)
        if after >= self.revision:
            return None
        since = self._history[after - self.revision :]
        events = tuple(e for e in chain.from_iterable(since) if e.kv.key.startswith(prefix))
        return Changes(events, events[-1].kv.mod_revision) if events else None

    def compact(self, revision: int) -> None:
        """Forget what changed before `revision`. Raises EtcdRefused."""
        if revision > self.revision:
            raise EtcdRefused("etcd refused: mvcc: required revision is a future revision")
        if revision <= self.compacted:
            raise EtcdRefused("etcd refused: mvcc: required revision has been compacted")
        self.compacted = revision
        del self._history[: -(self.revision - revision + 1)]

    # -- leases ----------------------------------------------------------------------------------------------------

    def lease_grant(self, ttl_s: int) -> GrantedLease:
        """At least what was asked for, and at least what etcd's election timeout wants."""
        self.expire()
        self._granted += 1
        lease = self._lease(self._granted, max(ttl_s, self._min_ttl_s))
        return GrantedLease(lease.id, lease.ttl_s)

    def lease_keep_alive(self, lease_id: int) -> int:
        """Its TTL in seconds from now. Raises LeaseGone."""
        self.expire()
        lease = self._leases.get(lease_id)
        if lease is not None:
            if not self.faults.idle_keep_alive:
                lease.ends_at = self._clock() + lease.ttl_s * NS_PER_S
            return lease.ttl_s
        gone = self._gone.get(lease_id)
        if gone is not None and (self.faults.false_keep_alive or self._clock() < gone.removed_at):
            return gone.ttl_s
        raise LeaseGone(f"etcd lease {lease_id:x} has ended")

    def lease_revoke(self, lease_id: int) -> None:
        """Nothing to do if it has ended already."""
        self.expire()
        if lease_id in self._leases:
            self._end(lease_id)

    def next_expiry(self) -> Instant | None:
        """When the next lease ends if nobody renews it; `expire` is to be called then, for the watches' sake."""
        if not self._leases:
            return None
        return Instant(min(lease.ends_at for lease in self._leases.values()) + self.faults.expiry_delay)

    def expire(self) -> None:
        """End the leases whose time is over, each with its keys at one revision. Every call does it first."""
        over = self._clock() - self.faults.expiry_delay
        if over < self._soonest:
            return
        for lease in sorted(self._leases.values(), key=lambda lease: (lease.ends_at, lease.id)):
            if lease.ends_at <= over:
                self._end(lease.id)
        self._soonest = min((lease.ends_at for lease in self._leases.values()), default=_NEVER)

    def _lease(self, lease_id: int, ttl_s: int) -> _Lease:
        lease = _Lease(lease_id, ttl_s, self._clock() + ttl_s * NS_PER_S)
        self._leases[lease_id] = lease
        self._soonest = min(self._soonest, lease.ends_at)
        return lease

    def _end(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id)
        if lease.keys:
            self._commit(self._delete(sorted(lease.keys), self.revision + 1))
        self._gone[lease_id] = _Gone(lease.ttl_s, self._clock() + self.faults.removal_delay)

    # -- what happens to an etcd -----------------------------------------------------------------------------------

    def change_leader(self) -> None:
        """A new leader counts every lease from its TTL anew: they end late (etcd#11058)."""
        self.expire()
        self.raft_term += 1
        for lease in self._leases.values():
            lease.ends_at = self._clock() + lease.ttl_s * NS_PER_S

    def old_leader_stalls(self) -> None:
        """The leader hangs in a sync of its disk: from here on it hears of no keep-alive. Until it wakes, the members
        that answer are the others; `change_leader` is theirs."""
        self.expire()
        self._stalled = {lease.id: lease.ends_at for lease in self._leases.values()}

    def old_leader_wakes(self) -> None:
        """Before it learns that it leads no more, it revokes what has ended by its own picture, whoever has renewed it
        since: leases end early (etcd#12528, etcd#15247, fixed in 3.5.13)."""
        self.expire()
        stalled, self._stalled = self._stalled, {}
        for lease_id, ends_at in sorted(stalled.items(), key=lambda item: (item[1], item[0])):
            if ends_at <= self._clock() and lease_id in self._leases:
                self._end(lease_id)

    def snapshot(self) -> Backup:
        self.expire()
        leases = tuple(GrantedLease(lease.id, lease.ttl_s) for lease in self._leases.values())
        return Backup(self.revision, dict(self._kvs), leases, tuple(self._history), self.compacted)

    def restore(self, backup: Backup, bump: int = 0, new_cluster_id: int | None = None) -> None:
        """Be what was saved; leases count from their TTL anew.

        bump: let revisions go on so much higher, with all before marked as compacted (`etcdutl snapshot restore
        --bump-revision --mark-compacted`). new_cluster_id: None if only the disks were put back."""
        self.revision = backup.revision + bump
        self.raft_term = _FIRST_RAFT_TERM
        if new_cluster_id is not None:
            self.cluster_id = new_cluster_id
        self._kvs = dict(backup.kvs)
        self._history = [] if bump else list(backup.history)
        self.compacted = self.revision if bump else backup.compacted
        self._leases, self._gone, self._stalled, self._soonest = {}, {}, {}, _NEVER
        for lease_id, ttl_s in backup.leases:
            self._lease(lease_id, ttl_s)
        for key, kv in self._kvs.items():
            if kv.lease:
                self._leases[kv.lease].keys.add(key)


# -- reading etcd3's comparisons and operations --------------------------------------------------------------------

_NOTHING = OpResult((), 0)

# What etcd3 makes of each operator.
_TESTS: dict[int, Callable[[Any, Any], bool]] = {
    (version("") == 0).op: operator.eq,
    (version("") != 0).op: operator.ne,
    (version("") < 0).op: operator.lt,
    (version("") > 0).op: operator.gt,
}


def _holds(c: Compare, kv: KeyValue | None) -> bool:
    kind = type(c)
    actual: Any
    if kind is Create:
        actual = kv.create_revision if kv is not None else 0
    elif kind is Mod:
        actual = kv.mod_revision if kv is not None else 0
    elif kind is Value:
        if kv is None:
            return False
        actual = kv.value
    else:
        actual = kv.version if kv is not None else 0
    return _TESTS[c.op](actual, c.value)


def _refuse_duplicates(ops: Sequence[Op]) -> None:
    """etcd lets no transaction write a key twice; it may delete one twice."""
    puts = sorted(op.key for op in ops if type(op) is Put)
    deleted = [op for op in ops if type(op) is Delete]
    twice = any(a == b for a, b in pairwise(puts))
    if twice or any(_within(key, op.key, op.range_end) for key in puts for op in deleted):
        raise EtcdRefused("etcd refused: duplicate key given in txn request")


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    """An empty end: the key alone; a zero byte: no end."""
    return key == start if not end else start <= key and (end == b"\0" or key < end)


def _key_of(kv: KeyValue) -> bytes:
    return to_bytes(kv.key)
