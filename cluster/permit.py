"""The permit in shared memory: written by the keeper, read by the worker right before each send.

A memfd of 64-bit cells, inherited by the worker, so that nothing is left behind by a crash. A sequence lock makes the
read consistent; a reader that cannot get a consistent one says "no permit". The worker's heartbeat and its word that
it has stopped travel the other way, through the same page, so that neither needs the other to be scheduled.

The reader's page shows what was granted, not that it still holds: `PermitSeen.covers(now)` is the check, against
CLOCK_BOOTTIME, which is one clock for both processes. Between that check and the write to the venue a process may
still be paused; only the venue's own checks (expiry, token) stop that order (DESIGN 6).
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from .core.ids import Instant, Term
from .core.role import ExecutionPermit

_SEQ, _TOKEN, _UNTIL, _CHECK, _BEAT = range(5)
_SIZE = mmap.PAGESIZE
_MIX = 0x5EED_BA70  # so that a page of zeros is not a consistent permit


class PermitSeen(NamedTuple):
    """What stood in the page. token 0: none."""

    token: Term
    act_until: Instant

    def covers(self, now: Instant) -> bool:
        return self.token != 0 and now < self.act_until


NO_PERMIT = PermitSeen(Term(0), Instant(0))


class PermitPage:
    """One mapping of the page. The keeper uses grant, clear, beat_at; the worker read, beat."""

    def __init__(self, fd: int) -> None:
        """Map the memfd `fd`, which stays open and owned by the caller."""
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        # Item assignment on an aligned "q" view is one 8-byte store.
        self._cells = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> PermitPage:
        fd = os.memfd_create("baton-permit", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        os.close(self.fd)

    # -- keeper ------------------------------------------------------------------------------------------

    def grant(self, permit: ExecutionPermit) -> None:
        self._write(permit.token, permit.act_until)

    def clear(self) -> None:
        self._write(0, 0)

    def _write(self, token: int, act_until: int) -> None:
        c = self._cells
        seq = c[_SEQ]
        c[_SEQ] = seq + 1  # odd: being written
        c[_TOKEN] = token
        c[_UNTIL] = act_until
        c[_CHECK] = token ^ act_until ^ _MIX
        c[_SEQ] = seq + 2

    def beat_at(self) -> Instant | None:
        """When the worker's loop last came round; None: never."""
        at = self._cells[_BEAT]
        return Instant(at) if at else None

    def forget_beat(self) -> None:
        """Before a new worker starts: its predecessor's heartbeat is not its own."""
        self._cells[_BEAT] = 0

    # -- worker ------------------------------------------------------------------------------------------

    def read(self) -> PermitSeen:
        """The permit as it stands; NO_PERMIT if there is none or the page is not consistent."""
        c = self._cells
        for _ in range(3):
            seq = c[_SEQ]
            token, until, check = c[_TOKEN], c[_UNTIL], c[_CHECK]
            if seq & 1 == 0 and c[_SEQ] == seq and check == token ^ until ^ _MIX:
                return PermitSeen(Term(token), Instant(until)) if token else NO_PERMIT
        return NO_PERMIT

    def beat(self, now: Instant) -> None:
        self._cells[_BEAT] = now
