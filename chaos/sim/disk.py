"""A node's disk, and the journal on it, in memory and on virtual time.

`SimJournal` promises what `cluster/journal.py` promises, and no more (the tests' journal contract holds both to it),
but where that one waits, this one is told whom to call. One write at a time is under way; what is submitted meanwhile
goes into the next (group commit). The rules:

    committed <= durable <= last

- what was reported durable survives every crash; of the rest a prefix does, in whole writes;
- a write that a crash tore is found by its missing end when the journal is opened, and cut;
- a damaged entry is found by the chain when the journal is opened: JournalCorrupt, never another log;
- after a failed sync nothing is written any more: JournalBroken, until the journal is opened anew.

`Disk` is what stays when a process dies, and where its faults are made. Deterministic: time passes through `call_later`
alone, chance comes from whoever calls. Read next: `cluster/journal.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.core.errors import InvariantViolation, JournalBroken, JournalBusy, JournalCorrupt
from cluster.core.ids import NS_PER_S, JournalId, LogIndex, Term
from cluster.core.log import (
    BEGINNING,
    ENTRY_OVERHEAD,
    Base,
    ChainBroken,
    Entry,
    Snapshot,
    check_follows,
    require_uncommitted,
    verify,
)
from cluster.journal_writer import JournalLimits, OnDurable

CallLater = Callable[[int, Callable[[], None]], object]
"""(nanoseconds, what to call then)."""
Done = Callable[[], None]

COMMIT_NOTED_NS = NS_PER_S
"""The commit index is written along with other things, at most so often."""


@dataclass(slots=True)
class _Contents:
    """What is on the disk for certain."""

    journal_id: JournalId
    highest_term: Term = Term(0)
    etcd_cluster_id: int = 0
    commit: LogIndex = LogIndex(0)
    base: Base = BEGINNING
    entries: list[Entry] = field(default_factory=list)  # from base.index + 1 on
    snapshot: Snapshot | None = None

    @property
    def last(self) -> Base:
        return Base(*_place(self.entries[-1])) if self.entries else self.base

    def entry(self, index: LogIndex) -> Entry | None:
        at = index - self.base.index - 1
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def cut(self, after: LogIndex) -> None:
        del self.entries[max(0, after - self.base.index) :]


@dataclass(slots=True)
class _Item:
    """One call's part of a write. entries, size: what of the queue it takes up."""

    apply: Callable[[_Contents], None]
    done: Done | None = None
    on_durable: OnDurable | None = None
    entries: int = 0
    size: int = 0
    end: LogIndex = LogIndex(0)
    epoch: int = 0


@dataclass(slots=True)
class _Write:
    """As a crash left it: whole only if all its items are there."""

    items: Sequence[_Item]
    length: int


class Disk:
    """One node's disk, over all lives of its journal."""

    def __init__(
        self,
        name: str,
        cluster: str,
        call_later: CallLater,
        write_ns: Callable[[], int],
        limits: JournalLimits | None = None,
    ) -> None:
        """write_ns: how long the next write takes, asked once for each."""
        self.name, self.cluster, self.limits = name, cluster, limits or JournalLimits()
        self.call_later, self.write_ns = call_later, write_ns
        self.torn_found = 0
        """Torn writes that opening found and cut."""
        self.failing = False
        self.stalled_ns = 0
        self._journals = 0
        self._contents = self._empty()
        self._unsynced: list[_Write] = []  # survived the last crash, and not looked at yet
        self._open: SimJournal | None = None

    def open(self) -> SimJournal:
        """Check everything, and cut a write that was torn. Raises JournalCorrupt."""
        if self._open is not None:
            raise InvariantViolation(f"journal {self.name} is open already")
        self.failing = False
        self._replay()
        held = self._contents
        try:
            verify(held.base.index, held.base.chain, held.entries)
        except ChainBroken as e:
            raise JournalCorrupt(f"journal {self.name}: {e}. It is not what was written") from e
        self._open = SimJournal(self, held)
        return self._open

    def set_aside(self) -> None:
        """Away with a corrupt journal; the next one is empty, and has another id."""
        self._contents, self._unsynced = self._empty(), []

    # -- faults -----------------------------------------------------------------------------------------------

    @property
    def journal_id(self) -> JournalId:
        return self._contents.journal_id

    @property
    def end(self) -> Base:
        """The last entry that is there for certain."""
        return self._contents.last

    @property
    def unsynced(self) -> int:
        """How many writes a crash could keep or lose now."""
        return len(self._open.under_way()) if self._open else 0

    def crash(self, keep: int = 0, *, torn: bool = False) -> None:
        """The process ends here, or the power. keep: so many of the writes that were not reported durable had reached
        the disk all the same; torn: of the one after them, a part."""
        if self._open is None:
            return
        writes = self._open.under_way()
        self._unsynced = [_Write(items, len(items)) for items in writes[:keep]]
        if torn and keep < len(writes):
            self._unsynced.append(_Write(writes[keep][:-1], len(writes[keep])))
        self._open.die()
        self._open = None

    def closed(self) -> None:
        self._open = None

    def flip(self, index: LogIndex, place: int = 0) -> None:
        """Damage one byte of the stored entry there; opening finds it. place: which, modulo the length of its body."""
        held = self._contents
        at = index - held.base.index - 1
        entry = held.entries[at]
        held.entries[at] = entry._replace(body=flipped(entry.body, place))

    def fail(self) -> None:
        """The next sync is refused."""
        self.failing = True

    def stall(self, ns: int) -> None:
        """The next answer comes so much later."""
        self.stalled_ns += ns

    # -- inside -----------------------------------------------------------------------------------------------

    def _empty(self) -> _Contents:
        self._journals += 1
        return _Contents(JournalId(f"{self.name}-j{self._journals}"))

    def _replay(self) -> None:
        for write in self._unsynced:
            if len(write.items) < write.length:
                self.torn_found += 1
                break
            for item in write.items:
                item.apply(self._contents)
        self._unsynced = []


class SimJournal:
    """The running journal. Made by Disk.open(); dead after Disk.crash(), and then nobody is called any more.

    `done` of a call is called when its write is durable; never, if the disk refuses it: `on_broken` is, once.
    """

    def __init__(self, disk: Disk, held: _Contents) -> None:
        self.path = disk.name
        self.cluster, self.limits = disk.cluster, disk.limits
        self.journal_id = held.journal_id
        self.highest_term = max(held.highest_term, held.last.term)
        self.etcd_cluster_id = held.etcd_cluster_id
        self.base, self.last = held.base, held.last
        self.durable_index = held.last.index
        self.snapshot_index = held.snapshot.index if held.snapshot else None
        self.commit_index = max(held.commit, self.snapshot_index or LogIndex(0))
        self.on_broken: Callable[[JournalBroken], None] | None = None
        self._disk, self._held = disk, held
        self._queue: list[_Item] = []
        self._group: list[_Item] = []  # the write that is under way
        self._waiting_entries = self._waiting_bytes = 0
        self._room: list[Done] = []
        self._tail: list[Entry] = []  # the youngest entries, without gaps, up to `last`
        self._epoch = 0  # how many cuts there were; what was written before one proves nothing any more
        self._commit_noted = False  # lately
        self._broken: JournalBroken | None = None
        self._dead = False

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what is queued, at once; a journal that broke stays as a crash leaves it."""
        if self._dead:
            return
        if self._broken is not None:
            self._disk.crash()
            return
        for items in self.under_way():
            for item in items:
                item.apply(self._held)
        self._held.commit = min(self.commit_index, self._held.last.index)
        self._disk.closed()
        self.die()

    def die(self) -> None:
        self._dead = True

    def under_way(self) -> list[list[_Item]]:
        """The writes that are not known to be durable, in order."""
        return [*([self._group] if self._group else []), *([item] for item in self._queue)]

    # -- writing ----------------------------------------------------------------------------------------------

    def submit(self, entries: Sequence[Entry], on_durable: OnDurable, *, cut_after: LogIndex | None = None) -> None:
        self.require_usable()
        previous = self.last
        if cut_after is not None and cut_after < previous.index:
            previous = self._before_cut(cut_after)
        else:
            cut_after = None
        end = check_follows(previous, entries)
        size = sum(len(e.body) + ENTRY_OVERHEAD for e in entries)
        full = self._waiting_entries + len(entries) > self.limits.queue_entries
        if self._waiting_entries and (full or self._waiting_bytes + size > self.limits.queue_bytes):
            raise JournalBusy(f"journal {self.path}: {self._waiting_entries} entries wait for the disk")
        if cut_after is not None:
            del self._tail[max(0, len(self._tail) - (self.last.index - cut_after)) :]
            self.durable_index = min(self.durable_index, cut_after)
            self._epoch += 1
        self._tail.extend(entries)
        self.last = end
        self.highest_term = max(self.highest_term, end.term)
        self._waiting_entries += len(entries)
        self._waiting_bytes += size

        def apply(held: _Contents) -> None:
            if cut_after is not None:
                held.cut(cut_after)
            held.entries.extend(entries)

        self._put(_Item(apply, None, on_durable, len(entries), size, end.index, self._epoch))

    def require_usable(self) -> None:
        """Raises JournalBroken, also once closed."""
        if self._broken is not None:
            raise self._broken
        if self._dead:
            raise JournalBroken(f"journal {self.path} is closed; nothing can be written to it")

    @property
    def has_room(self) -> bool:
        """Whether the queue is less than half full."""
        limits = self.limits
        return self._waiting_entries * 2 <= limits.queue_entries and self._waiting_bytes * 2 <= limits.queue_bytes

    def when_room(self, done: Done) -> None:
        """Call `done` once has_room."""
        self._room.append(done)
        self._later(0, self._tell_room)

    def flush(self, done: Done) -> None:
        """Call `done` once everything submitted so far is durable, and whoever submitted it was told."""
        self._run(lambda _held: None, done)

    def raise_term(self, term: Term, done: Done) -> None:
        """Remember `term` as the highest ever seen. Never lowers it."""
        self.highest_term = raised = max(self.highest_term, term)

        def apply(held: _Contents) -> None:
            held.highest_term = max(held.highest_term, raised)

        self._run(apply, done)

    def set_etcd_cluster_id(self, etcd_cluster_id: int, done: Done) -> None:
        self.etcd_cluster_id = etcd_cluster_id

        def apply(held: _Contents) -> None:
            held.etcd_cluster_id = etcd_cluster_id

        self._run(apply, done)

    def note_commit(self, index: LogIndex) -> None:
        """Everything up to `index` is committed. On the disk a lower bound of it, as of a while ago."""
        self.commit_index = max(self.commit_index, index)

    # -- snapshots --------------------------------------------------------------------------------------------

    def save_snapshot(self, index: LogIndex, digest: bytes, blob: bytes, done: Done) -> None:
        """Store the book as of entry `index` (committed, durable) and drop older snapshots."""
        chain, term = self.chain_at(index), self.term_at(index)
        if chain is None or term is None or index > min(self.commit_index, self.durable_index):
            raise InvariantViolation(
                f"snapshot at index {index}: not within [{self.base.index}, committed {self.commit_index}]"
            )
        snapshot = Snapshot(index, term, chain, digest, blob)

        def apply(held: _Contents) -> None:
            held.snapshot = snapshot

        def saved() -> None:
            self.snapshot_index = index
            done()

        self._run(apply, saved)

    def prune(self, keep: int, done: Done) -> None:
        """Let go of entries that the snapshot replaces, but for the youngest `keep` up to it. One at a time."""
        index = LogIndex((self.snapshot_index or 0) - keep)
        chain, term = self.chain_at(index), self.term_at(index)
        if index <= self.base.index or chain is None or term is None:
            self._later(0, done)
            return
        base = Base(index, term, chain)

        def apply(held: _Contents) -> None:
            del held.entries[: base.index - held.base.index]
            held.base = base

        def pruned() -> None:
            self.base = base
            done()

        self._run(apply, pruned)

    def install_snapshot(self, snapshot: Snapshot, done: Done) -> None:
        """Replace everything by `snapshot`, in one write. InvariantViolation if that would lose a committed entry."""
        require_uncommitted(snapshot.index, self.commit_index)
        base = Base(snapshot.index, snapshot.term, snapshot.chain)
        self._tail = []
        self.last, self.base, self.durable_index = base, base, LogIndex(0)
        self._epoch += 1

        def apply(held: _Contents) -> None:
            held.entries.clear()
            held.base, held.snapshot, held.commit = base, snapshot, base.index

        def installed() -> None:
            self.durable_index = self.snapshot_index = base.index
            self.note_commit(base.index)
            done()

        self._run(apply, installed)

    # -- reading ----------------------------------------------------------------------------------------------

    def tail(self, first: LogIndex, max_bytes: int, max_entries: int = 4096) -> list[Entry] | None:
        """Entries from `first` on, from memory, durable or not, at least one if there is one. None: not in memory."""
        start = first - (self.last.index + 1 - len(self._tail))
        if start < 0:
            return None if first <= self.last.index else []
        return _within(self._tail[start : start + max_entries], max_bytes)

    def read(self, first: LogIndex, max_bytes: int, max_entries: int = 16_384) -> list[Entry]:
        """The same from disk, as it is now. Empty if `first` is pruned or not written yet."""
        at = first - self._held.base.index - 1
        return _within(self._held.entries[at : at + max_entries], max_bytes) if at >= 0 else []

    def chain_at(self, index: LogIndex) -> bytes | None:
        """The chain at the base or at an entry."""
        if index == self.base.index:
            return self.base.chain
        entry = self._entry_at(index)
        return entry.chain if entry else None

    def term_at(self, index: LogIndex) -> Term | None:
        if index == self.base.index:
            return self.base.term
        entry = self._entry_at(index)
        return entry.term if entry else None

    def latest_snapshot(self) -> Snapshot | None:
        return self._held.snapshot

    # -- inside -----------------------------------------------------------------------------------------------

    def _entry_at(self, index: LogIndex) -> Entry | None:
        if not self.base.index < index <= self.last.index:
            return None
        at = index - (self.last.index + 1 - len(self._tail))
        return self._tail[at] if at >= 0 else self._held.entry(index)

    def _before_cut(self, cut_after: LogIndex) -> Base:
        require_uncommitted(cut_after, self.commit_index)
        chain, term = self.chain_at(cut_after), self.term_at(cut_after)
        if chain is None or term is None:
            raise InvariantViolation(
                f"asked to cut the journal after index {cut_after}, below its base {self.base.index}"
            )
        return Base(cut_after, term, chain)

    def _run(self, apply: Callable[[_Contents], None], done: Done) -> None:
        self.require_usable()
        self._put(_Item(apply, done))

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if not self._group:
            self._write()

    def _write(self) -> None:
        """Everything that is queued by now, as one."""
        self._group, self._queue = self._queue, []
        if not self._commit_noted:
            self._commit_noted = True
            self._group.append(_Item(self._noting(self.commit_index)))
            self._later(COMMIT_NOTED_NS, self._note_again)
        self._later(self._disk.write_ns(), self._answer)

    def _noting(self, commit: LogIndex) -> Callable[[_Contents], None]:
        def apply(held: _Contents) -> None:
            held.commit = max(held.commit, min(commit, held.last.index))

        return apply

    def _note_again(self) -> None:
        self._commit_noted = False

    def _answer(self) -> None:
        if (stalled := self._disk.stalled_ns) > 0:
            self._disk.stalled_ns = 0
            self._later(stalled, self._answer)
        elif self._disk.failing:
            self._break()
        else:
            self._written()

    def _written(self) -> None:
        """The group is durable: first whoever submitted entries is told, then whoever waits for more than that."""
        group, self._group = self._group, []
        for item in group:
            item.apply(self._held)
            self._waiting_entries -= item.entries
            self._waiting_bytes -= item.size
        if self._queue:
            self._write()
        calls: list[tuple[OnDurable, LogIndex]] = []
        for item in group:
            if item.on_durable is None or item.epoch != self._epoch:
                continue  # of entries cut away since: a later write answers for what stands there now
            if calls and calls[-1][0] == item.on_durable:
                calls.pop()
            calls.append((item.on_durable, item.end))
        if calls:
            self.durable_index = max(self.durable_index, calls[-1][1])
            self._trim_tail()
        for on_durable, index in calls:
            if not self._dead:
                on_durable(index)
        for item in group:
            if item.done is not None and not self._dead:
                item.done()
        if not self._dead:
            self._tell_room()

    def _trim_tail(self) -> None:
        """Never an entry that the disk may not have yet."""
        first = self.last.index + 1 - len(self._tail)
        drop = min(len(self._tail) - self.limits.cache_entries, self.durable_index - first + 1)
        if drop > 0:
            del self._tail[:drop]

    def _tell_room(self) -> None:
        if self._room and self.has_room:
            room, self._room = self._room, []
            for done in room:
                done()

    def _break(self) -> None:
        self._broken = JournalBroken(
            f"journal {self.path}: the disk refused a write; the end of the file is unknown now"
        )
        if self.on_broken:
            self.on_broken(self._broken)

    def _later(self, ns: int, call: Done) -> None:
        self._disk.call_later(ns, lambda: None if self._dead else call())


def flipped(body: bytes, place: int) -> bytes:
    """With one bit turned, in the byte at `place` modulo its length."""
    if not body:
        return b"!"
    at = place % len(body)
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


def _place(entry: Entry) -> tuple[LogIndex, Term, bytes]:
    return entry.index, entry.term, entry.chain


def _within(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The first of `entries` that fit into max_bytes, but at least one."""
    size = 0
    for n, e in enumerate(entries):
        size += len(e.body) + ENTRY_OVERHEAD
        if size > max_bytes and n:
            return entries[:n]
    return entries
