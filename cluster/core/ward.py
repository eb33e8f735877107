"""The worker as its keeper knows it: timing, silence, restarts, and what its journal remembers. Pure.

`election.py` decides with these; nothing here decides anything about leadership.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ids import NS_PER_S, Instant, JournalId, Term
from .rebase import REMEDY

MS = NS_PER_S // 1000
STANDBY_PATIENCE = 4
STABLE = 5 * NS_PER_S
"""A worker that lived so long is restarted without the back-off that its predecessors earned."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds. hang_timeout: a worker without a heartbeat for so long is killed. start_timeout: the same before
    its first one. stop_grace: how long a fenced worker may take to confirm. warn_lead: how long before the
    permit's end a leader whose renewals fail stops. rank_step: what a candidate waits for each better one.
    successor_grace: what the others wait when a successor was named. drain_timeout: for a switchover's settling."""

    hang_timeout: int = 250 * MS
    start_timeout: int = 20 * NS_PER_S
    stop_grace: int = 100 * MS
    warn_lead: int = 40 * MS
    rank_step: int = 8 * MS
    successor_grace: int = 150 * MS
    drain_timeout: int = 1000 * MS
    retry: int = 20 * MS
    restart_min: int = 50 * MS
    restart_max: int = 10 * NS_PER_S

    def hang_limit(self, *, leading: bool) -> int:
        """A worker that does not lead costs nothing while it is slow (imports, a long catch-up): it gets longer."""
        return self.hang_timeout if leading else STANDBY_PATIENCE * self.hang_timeout


@dataclass(slots=True)
class Worker:
    """What is known of the worker process; times are Instants."""

    started_at: Instant
    journal_id: JournalId | None = None  # None until its hello
    prepared: Term = Term(0)  # acknowledges nothing of this term or below
    asked_to_prepare: Term = Term(0)
    follows: Term = Term(0)
    highest_term: Term = Term(0)
    etcd_cluster_id: int = 0

    def foreign(self, behind: tuple[Term, Term] | None, cluster_id: int) -> str | None:
        """Why the etcd at hand is not the one that is remembered, and what to do; None: it is. behind: the term that is
        remembered and the tenure that etcd shows, when that was lower for long enough to be sure."""
        if behind is not None:
            return (
                f"etcd's last tenure {behind[1]} is lower than term {behind[0]}, which this node has seen: it is not "
                f"the etcd that it was, and its tokens would repeat. {REMEDY}"
            )
        if 0 != self.etcd_cluster_id != cluster_id:
            return (
                f"etcd's cluster id {cluster_id:x} is not {self.etcd_cluster_id:x}, which this node's journal belongs "
                f"to. If the endpoints are wrong, correct etcd.endpoints. {REMEDY}"
            )
        return None


class Wakefulness:
    """When the keeper itself was there to notice anything."""

    def __init__(self, now: Instant, nap: int) -> None:
        """nap: a longer time between two events counts as having slept."""
        self._last = now
        self._nap = nap
        self._slept = (now, now)  # the last long time without an event: silence in it says nothing of the worker

    def note(self, now: Instant) -> int:
        """Something happened; how long nothing had."""
        gap = now - self._last
        if gap > self._nap:
            self._slept = (self._last, now)
        self._last = now
        return gap

    def silent_for(self, since: Instant, now: Instant) -> int:
        """How long the worker has been silent, less the last long time that *we* were not there either: a host that is
        paused as a whole must not find its worker hung on waking. Only the last, so that a keeper which is always
        late still finds out."""
        start, end = self._slept
        return now - since - max(0, end - max(start, since))


class Barren:
    """Terms of ours that ended before their worker could trade, because the gate has seen a higher token, say: trying
    again at once would only burn tokens. until: not to campaign before."""

    def __init__(self, timing: Timing) -> None:
        self.until = Instant(0)
        self._waits = Restarts(timing)

    def ended(self, now: Instant) -> None:
        self.until = Instant(now + self._waits.wait_after(0))


class Restarts:
    """How long to wait before the next worker: doubles with each one that died young."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._young = 0

    def wait_after(self, lived: int) -> int:
        if lived > STABLE:
            self._young = 0
        wait = min(self._timing.restart_max, self._timing.restart_min << min(self._young, 20))
        self._young += 1
        return wait
