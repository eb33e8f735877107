"""Committed entries, in order, each once, to whoever keeps the book. The same on a leader and on a follower.

    applied <= commit        and        entries come without a gap from `applied` + 1

From the journal's memory, which costs nothing; from its file when the book is far behind. A long backlog is handed
over in slices with the loop running in between, so that catching up does not look like a hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from .core.errors import InvariantViolation
from .core.ids import LogIndex
from .core.log import Entry
from .journal import Journal

SLICE_ENTRIES = 512
READ_ENTRIES = 8192
READ_BYTES = 4 << 20


class Delivery:
    def __init__(
        self,
        journal: Journal,
        applied: LogIndex,
        on_committed: Callable[[Sequence[Entry]], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """applied: what the book holds already. on_failed gets whatever on_committed or the disk raises; nothing is
        delivered after that: a book that missed an entry is not a book."""
        self._journal, self.applied = journal, applied
        self._on_committed, self._on_failed = on_committed, on_failed
        self._target = applied
        self._read_ahead: list[Entry] = []
        self._busy = False  # a slice is scheduled, or a read is under way
        self._generation = 0
        self._reading: asyncio.Task[None] | None = None
        self._dead = False

    def advance(self, commit: LogIndex) -> None:
        """Everything up to `commit` is committed and in the journal."""
        if commit > self._target:
            self._target = commit
            if not self._busy:
                self._slice(self._generation)

    def reset(self, applied: LogIndex) -> None:
        """The book was replaced by a snapshot of entry `applied`."""
        self._generation += 1
        self.applied, self._target = applied, max(applied, self._target)
        self._read_ahead, self._busy = [], False
        self._slice(self._generation)

    def close(self) -> None:
        self._dead = True
        self._generation += 1
        if self._reading is not None:
            self._reading.cancel()

    def _slice(self, generation: int) -> None:
        if generation != self._generation or self._dead:
            return
        self._busy = False
        if self.applied >= self._target:
            return
        entries = self._next()
        if entries is None:
            self._busy = True
            self._reading = asyncio.get_running_loop().create_task(self._read(generation))
            return
        if not entries or entries[0].index != self.applied + 1:
            self._fail(InvariantViolation(f"committed entry {self.applied + 1} is not in journal {self._journal.path}"))
            return
        try:
            self._on_committed(entries)
        except Exception as e:  # noqa: BLE001 - also a bug in the book must stop the node, not vanish in the loop
            self._fail(e)
            return
        self.applied = entries[-1].index
        if self.applied < self._target:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._slice, generation)

    def _next(self) -> list[Entry] | None:
        count = min(self._target - self.applied, SLICE_ENTRIES)
        if self._read_ahead:
            entries, self._read_ahead = self._read_ahead[:count], self._read_ahead[count:]
            return entries
        return self._journal.tail(LogIndex(self.applied + 1), READ_BYTES, count)

    async def _read(self, generation: int) -> None:
        first, count = LogIndex(self.applied + 1), min(self._target - self.applied, READ_ENTRIES)
        try:
            entries = await asyncio.to_thread(self._journal.read, first, READ_BYTES, count)
        except Exception as e:  # noqa: BLE001 - as above
            self._fail(e)
            return
        if generation != self._generation:
            return
        if not entries:
            self._fail(
                InvariantViolation(f"committed entry {first} is neither in journal {self._journal.path} nor pruned")
            )
            return
        self._read_ahead = entries
        self._slice(generation)

    def _fail(self, error: BaseException) -> None:
        self._dead = True
        self._on_failed(error)
