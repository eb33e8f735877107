"""One term of leadership: appending, and knowing what is committed and who is in sync.

`LeaderLog` is made when the lease is won and closed when it ends. What counts as committed is decided in
`core/insync.py`; here its actions are carried out. An entry goes to the followers before our own disk has it: the two
writes run side by side, and the commit waits for both.

It needs no running loop but for `wait_committed`: the clock and the timer are handed in, the loop's by default.
Read next: `replication.py`, which streams to the followers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import structlog

from .clock import boottime_ns
from .core.errors import BatonError, InvariantViolation, JournalBusy, StepDown
from .core.ids import NS_PER_S, Instant, JournalId, LogIndex, NodeId, Term
from .core.insync import (
    Action,
    CommitAdvanced,
    Commitment,
    Deposed,
    Limits,
    Member,
    Members,
    MembersChanged,
    Policy,
    ProposeChange,
    Protection,
)
from .core.log import KIND_TERM_STARTED, Base, Entry, make_entry
from .core.stream import BODY_BYTES_MAX

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LeaderSettings:
    """insync_timeout_s, min_standbys, unprotected: see core/insync.py. uncommitted_max: entries appended and not
    committed; beyond it append() refuses, so that a stalled cluster does not fill the memory."""

    insync_timeout_s: float = 0.25
    min_standbys: int = 1
    unprotected: Policy = "trade"
    uncommitted_max: int = 50_000


@dataclass(frozen=True, slots=True)
class FollowerState:
    """One connected follower, for people and for a planned switchover."""

    node: NodeId
    journal_id: JournalId
    durable: LogIndex
    applied: LogIndex
    in_sync: bool


class FollowerStream(Protocol):
    """What a LeaderLog needs of a follower's stream."""

    member: Member

    def wake(self) -> None:
        """There is something new to send."""

    def end(self, reason: str) -> None:
        """Stop; the stream detaches itself soon after."""

    def check(self) -> None:
        """Called with every tick: end yourself if the follower has gone silent."""

    def state(self) -> FollowerState: ...


class LeadersJournal(Protocol):
    """What a LeaderLog needs of the journal."""

    journal_id: JournalId
    highest_term: Term
    durable_index: LogIndex
    commit_index: LogIndex

    @property
    def last(self) -> Base: ...

    def submit(self, entries: Sequence[Entry], on_durable: Callable[[LogIndex], None]) -> None:
        """Append; on_durable(index of the last one) once they are durable, never from inside this call.

        Raises JournalBroken, JournalBusy: nothing was taken then."""

    def note_commit(self, index: LogIndex) -> None: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]
"""(seconds, what to call then), as the loop's own."""


class LeaderLog:
    """One term of leadership. Make it after Follower.wait_at_rest(): nobody is followed then, and all is durable.

    The callbacks run on the loop, must not block, and must not raise.
    """

    def __init__(
        self,
        journal: LeadersJournal,
        me: NodeId,
        term: Term,
        members: Members,
        revision: int,
        *,
        propose: Callable[[ProposeChange], None],
        on_commit: Callable[[LogIndex], None],
        on_protection: Callable[[Protection], None] | None = None,
        on_deposed: Callable[[str], None] | None = None,
        settings: LeaderSettings | None = None,
        presumed_gone: Collection[NodeId] = (),
        clock: Callable[[], Instant] = boottime_ns,
        call_later: CallLater | None = None,
    ) -> None:
        """members, revision: `insync` as of the lease. propose: carry it to the keeper, and its answer back to
        change_done(), change_refused() or change_unknown(). on_commit: usually Delivery.advance.

        Raises InvariantViolation if `insync` does not name our journal, or the journal is not at rest.
        """
        self.me, self.term = me, term
        self._journal, self._clock = journal, clock
        self._settings = settings or LeaderSettings()
        self._propose, self._on_commit = propose, on_commit
        self._on_protection, self._on_deposed = on_protection, on_deposed
        if journal.durable_index != journal.last.index:
            raise InvariantViolation(
                f"leading from index {journal.last.index} while only {journal.durable_index} is durable; flush first"
            )
        if term < journal.highest_term or term <= journal.last.term:
            raise InvariantViolation(f"leading in term {term}, but the journal has seen {journal.highest_term}")
        limits = Limits.for_timeout(self._settings.insync_timeout_s)
        self.insync = Commitment(
            Member(me, journal.journal_id),
            term,
            members,
            revision,
            journal.last.index,
            journal.commit_index,
            clock(),
            limits=limits,
            min_standbys=self._settings.min_standbys,
            unprotected=self._settings.unprotected,
            presumed_gone=presumed_gone,
        )
        self.first_index = LogIndex(journal.last.index + 1)
        self._waiting: list[tuple[LogIndex, int, asyncio.Future[None]]] = []
        self._waits = 0
        self._streams: dict[FollowerStream, None] = {}  # a set that keeps its order: equal events, equal effects
        self._closed: str | None = None
        self._call_later: CallLater = call_later or asyncio.get_running_loop().call_later
        self._tick_s = limits.gone / NS_PER_S / 2
        self._timer = self._call_later(self._tick_s, self._tick)
        self._carry_out(self.insync.start(clock()))

    # -- for the node ---------------------------------------------------------------------------------------------

    def append(self, kind: int, body: bytes, at: int) -> Entry:
        """Give `body` the next index and send it on its way: to our disk and to the followers, side by side.

        The first entry of a term must be KIND_TERM_STARTED. Nothing is committed when this returns.
        Raises StepDown after close(); JournalBusy when too much is uncommitted, or the disk is behind (nothing was
        appended: refuse the order); JournalBroken.
        """
        if self._closed is not None:
            raise StepDown(f"term {self.term} is over ({self._closed}); nothing can be appended in it")
        last = self._journal.last
        if (kind == KIND_TERM_STARTED) != (last.index + 1 == self.first_index):
            raise InvariantViolation(f"entry {last.index + 1} of kind {kind}: a term starts with TermStarted, once")
        if len(body) > BODY_BYTES_MAX:
            raise BatonError(f"an entry of {len(body)} bytes; at most {BODY_BYTES_MAX} can be replicated")
        # Without its TermStarted nothing that was inherited could ever be committed.
        if last.index - self.insync.commit >= self._settings.uncommitted_max and kind != KIND_TERM_STARTED:
            raise JournalBusy(f"{last.index - self.insync.commit} entries wait to be committed, as many as may wait")
        entry = make_entry(last.index, last.chain, self.term, kind, at, body)
        self._journal.submit((entry,), self._on_durable)
        for stream in self._streams:
            stream.wake()
        return entry

    @property
    def commit_index(self) -> LogIndex:
        return self.insync.commit

    @property
    def protection(self) -> Protection:
        """As of now. Look right before a send as well: a standby may be lost between intent and commit."""
        return self.insync.protection

    def wait_committed(self, index: LogIndex) -> asyncio.Future[None]:
        """Done once `index` is committed. Fails with StepDown if the term ends first: what becomes of the entry is
        then the next leader's business, and unknown here. The caller brings the timeout."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if index <= self.insync.commit:
            future.set_result(None)
        elif self._closed is not None:
            future.set_exception(self._over(index))
        else:
            self._waits += 1
            heappush(self._waiting, (index, self._waits, future))
        return future

    def followers(self) -> list[FollowerState]:
        return [s.state() for s in self._streams]

    def close(self, reason: str) -> None:
        """The term is over for us. Nothing is committed or appended any more, and every stream ends."""
        if self._closed is not None:
            return
        self._closed = reason
        self._timer.cancel()
        self.insync.close()
        for stream in list(self._streams):
            stream.end(reason)
        for index, _, future in self._waiting:
            if not future.done():
                future.set_exception(self._over(index))
                future.exception()  # whoever still waits sees it; nobody else has to
        self._waiting.clear()

    def _over(self, index: LogIndex) -> StepDown:
        return StepDown(f"term {self.term} ended ({self._closed}) before entry {index} was committed")

    # -- answers of the keeper ------------------------------------------------------------------------------------

    def change_done(self, revision: int) -> None:
        self._carry_out(self.insync.done(revision, self._clock()))

    def change_refused(self, members: Mapping[NodeId, JournalId], revision: int) -> None:
        self._carry_out(self.insync.refused(members, revision, self._clock()))

    def change_unknown(self) -> None:
        self._carry_out(self.insync.unknown(self._clock()))

    # -- for the streams --------------------------------------------------------------------------------------------

    def attach(self, stream: FollowerStream) -> None:
        self._streams[stream] = None

    def acked(self, member: Member, durable: LogIndex) -> None:
        self._carry_out(self.insync.acked(member, durable, self._clock()))

    def detach(self, stream: FollowerStream) -> None:
        self._streams.pop(stream, None)
        if not any(s.member == stream.member for s in self._streams):
            self._carry_out(self.insync.gone(stream.member, self._clock()))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_durable(self, index: LogIndex) -> None:
        self._carry_out(self.insync.local_durable(index, self._clock()))

    def _tick(self) -> None:
        self._timer = self._call_later(self._tick_s, self._tick)
        self._carry_out(self.insync.tick(self._clock()))
        for stream in list(self._streams):
            stream.check()

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case CommitAdvanced(index):
                    self._committed(index)
                case ProposeChange():
                    log.info("insync_proposed", term=self.term, why=action.why, members=dict(action.members))
                    self._propose(action)
                case MembersChanged():
                    log.info("insync_changed", term=self.term, members=dict(action.members), revision=action.revision)
                case Protection():
                    (log.warning if action.unprotected else log.info)(
                        "protection", term=self.term, standbys=action.standbys, required=action.required
                    )
                    if self._on_protection:
                        self._on_protection(action)
                case Deposed():
                    log.error("insync_names_others", term=self.term, reason=action.why)
                    if self._on_deposed:
                        self._on_deposed(action.why)

    def _committed(self, index: LogIndex) -> None:
        self._journal.note_commit(index)
        for stream in self._streams:
            stream.wake()  # also those whose acknowledgement it was not: a follower's book should not wait to be told
        waiting = self._waiting
        while waiting and waiting[0][0] <= index:
            future = heappop(waiting)[2]
            if not future.done():
                future.set_result(None)
        self._on_commit(index)
