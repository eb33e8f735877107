"""The follower's end of replication: dial the leader, take what it sends, acknowledge what is durable here.

What may be accepted, cut and acknowledged is decided in `core/log.py` (FollowerLog); here it is carried out:

    frame -> checked -> journal (its thread, its sync) -> acknowledged        committed -> Delivery -> the book

Connections to all peers are kept up, so that a new leader's followers attach in one round trip. Nothing of a term
leaves after stop_following(closing=term) has returned, nor after it has been called.

Timers are the loop's. Read next: `replication.py` (the other end), `delivery.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from . import wire
from .core.errors import InvariantViolation, OutcomeUnknown, StaleTerm
from .core.ids import LogIndex, NodeId, Term
from .core.log import ChainBroken, FollowerLog, Position, locator
from .delivery import Delivery
from .journal import Journal, Snapshot
from .rpc import replication_pb2 as pb
from .rpc import replication_pb2_grpc as rpc
from .wire import Digests, WireSettings

log = structlog.get_logger()

FLUSH_S = 5.0
BROKEN_FRAMES_MAX = 3
_FATAL = {pb.REFUSAL_DIVERGED, pb.REFUSAL_LOST_ENTRIES, pb.REFUSAL_WRONG_DIGEST}


class _Refused(Exception):
    def __init__(self, refused: pb.Refused) -> None:
        super().__init__(refused.reason)
        self.code, self.reason = refused.code, refused.reason


class _Ended(Exception):
    """The stream is over, for a reason that is not an error of ours. Dial again."""


@dataclass(frozen=True, slots=True)
class Following:
    """For people. refused: why the leader sent us away, the last time it did; cleared by the next success."""

    leader: NodeId | None
    term: Term
    connected: bool
    durable: LogIndex
    leader_commit: LogIndex
    refused: str | None


class Follower:
    """One per node. The callbacks run on the loop and must not block.

    on_snapshot(snapshot): the journal was replaced by it; make the book from it, before anything else is delivered.
    on_stop(error): following cannot go on until somebody has looked: the journal broke, histories or books differ.
    """

    def __init__(
        self,
        journal: Journal,
        me: NodeId,
        delivery: Delivery,
        digests: Digests,
        rng: random.Random,
        *,
        on_snapshot: Callable[[Snapshot], None],
        on_stop: Callable[[BaseException], None],
        settings: WireSettings | None = None,
    ) -> None:
        self.journal, self.me = journal, me
        self.log = FollowerLog(journal.highest_term, journal.commit_index)
        self.delivery, self.digests = delivery, digests
        self.settings = settings or WireSettings()
        self.on_snapshot = on_snapshot
        self._on_stop, self._rng = on_stop, rng
        self._links: dict[NodeId, _Link] = {}
        self._target: tuple[NodeId, Term] | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: _Session | None = None
        self._stopped: BaseException | None = None
        self._refused: str | None = None
        self.attempts = 0
        """Streams tried since the start."""
        self._chores: set[asyncio.Task[None]] = set()  # connections that are being closed

    # -- for the node -------------------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[NodeId, str]) -> None:
        """Keep a connection up to each of these (node -> host:port), and to no other."""
        target = self._target[0] if self._target else None
        for node in [n for n in self._links if n not in peers and n != target]:
            self._links.pop(node).close()
        for node, address in peers.items():
            if node != self.me:
                self._link(node, address)

    def follow(self, leader: NodeId, address: str, term: Term) -> None:
        """Follow `leader`, which leads in `term`, until told otherwise. Returns at once; dials again by itself.

        Raises StaleTerm for a term lower than the highest seen, or a closed one.
        """
        self.log.learn(self.journal.highest_term, self.journal.commit_index)
        self.log.may_follow(term)
        self.log.learn(term, self.log.commit)
        self._link(leader, address)
        if self._target == (leader, term) and self._task is not None and not self._task.done():
            return
        self._hush()
        self._target = (leader, term)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._follow(leader, term, self._task), name=f"follow-{leader}-{term}")
        self._task.add_done_callback(self._task_done)

    async def stop_following(self, closing: Term | None = None, timeout_s: float = FLUSH_S) -> None:
        """Stop. No acknowledgement leaves from the moment of the call, and on return the journal is at rest.

        closing: additionally promise that none of that term, or of an older one, ever will (before a campaign).
        Raises JournalBroken; OutcomeUnknown if the disk did not come to rest within timeout_s: do not lead then.
        """
        if closing is not None:
            self.log.close_term(Term(max(closing, self._target[1] if self._target else 0)))
        self._hush()
        self._target = None
        if self._task is not None:
            await asyncio.wait([self._task])
        await self.journal.flush(timeout_s)

    async def close(self) -> None:
        """Stop and let go of the connections. The journal is not touched."""
        self._hush()
        if self._task is not None:
            await asyncio.wait([self._task])
        for link in self._links.values():
            link.close()
        self._links.clear()
        if self._chores:
            await asyncio.wait(self._chores)

    def state(self) -> Following:
        session, target = self._session, self._target
        return Following(
            target[0] if target else None,
            target[1] if target else Term(0),
            session is not None and session.attached,
            self.log.durable,
            session.leader_commit if session else LogIndex(0),
            self._refused,
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _link(self, node: NodeId, address: str) -> _Link:
        link = self._links.get(node)
        if link is None or link.address != address:
            if link is not None:
                link.close()
            link = self._links[node] = _Link(node, address, self.settings, self._chores)
        return link

    def _hush(self) -> None:
        """Synchronously: from here on the session produces nothing."""
        self.log.pause()
        if self._task is not None:
            self._task.cancel()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        self._stopped = error
        log.error("following_stopped", reason=str(error), error=type(error).__name__)
        self._on_stop(error)

    async def _follow(self, leader: NodeId, term: Term, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        failures = broken = 0
        while self._stopped is None:
            session = self._session = _Session(self, leader, term)
            self.attempts += 1
            why, silent = "", False
            try:
                await session.run(self._links[leader])
            except _Refused as e:
                self._refused = why = e.reason
                if e.code in _FATAL:
                    raise InvariantViolation(f"leader {leader} of term {term} refused us: {e.reason}") from None
            except ChainBroken as e:
                broken, why = broken + 1, str(e)
                if broken >= BROKEN_FRAMES_MAX:
                    raise
            except TimeoutError:
                why, silent = f"{leader} was silent", True
            except grpc.aio.AioRpcError as e:
                why = e.details() or e.code().name
            except (_Ended, StaleTerm, OutcomeUnknown, asyncio.InvalidStateError) as e:
                why = str(e)  # InvalidStateError: a write to a call that ended
            finally:
                self.log.pause()
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # A TaskGroup whose child fails while it is being cancelled raises the failure and loses the
                # cancellation (the call was cancelled under the child). We would follow the old leader for ever.
                raise asyncio.CancelledError
            if session.attached:
                failures, self._refused = 0, None
            if session.took_entries:
                broken = 0
            failures += 1
            log.info("stream_ended", peer=leader, term=term, reason=why, attempt=failures)
            self._links[leader].renew(silent=silent)
            await asyncio.sleep(self._backoff(failures))

    def _backoff(self, failures: int) -> float:
        s = self.settings
        longest = min(s.backoff_max_s, s.backoff_min_s * 2 ** min(failures - 1, 10))
        return float(longest * self._rng.uniform(0.5, 1.0))


class _Link:
    """A connection to one peer, kept up whether or not it is used."""

    def __init__(self, node: NodeId, address: str, settings: WireSettings, chores: set[asyncio.Task[None]]) -> None:
        self.node, self.address, self._settings, self._chores = node, address, settings, chores
        self._open()

    def _open(self) -> None:
        self.channel = wire.open_channel(self.address, self.node, self._settings)
        self._warm = asyncio.get_running_loop().create_task(self._keep_warm(self.channel), name=f"link-{self.node}")

    async def _keep_warm(self, channel: Any) -> None:
        # A channel whose connection broke goes to sleep until somebody asks for it.
        while True:
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                return
            await channel.wait_for_state_change(state)

    def renew(self, *, silent: bool) -> None:
        """After a failure: a connection that is silent may be a black hole, and one in gRPC's own back-off would
        refuse us for longer than ours lasts. Anything else is kept."""
        if silent or self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self.close()
            self._open()

    def close(self) -> None:
        self._warm.cancel()
        chore = asyncio.get_running_loop().create_task(self.channel.close())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)


class _Session:
    """One stream, from Hello to its end. Everything it does ends when FollowerLog closes or pauses the term."""

    def __init__(self, follower: Follower, leader: NodeId, term: Term) -> None:
        self.attached = False
        self.took_entries = False
        self.leader_commit = LogIndex(0)
        self._f, self._leader, self._term = follower, leader, term
        self._log, self._journal = follower.log, follower.journal
        self._call: Any = None
        self._ack_due: asyncio.Future[None] | None = None
        self._unsent = False
        self._digest_told: LogIndex | None = None
        self._loop = asyncio.get_running_loop()
        self._patience: asyncio.Timeout  # ends the session; each message moves it

    async def run(self, link: _Link) -> None:
        """Raises why it ended; TimeoutError when the leader fell silent."""
        await self._journal.flush(FLUSH_S)
        self._call = rpc.ReplicationStub(link.channel).Follow()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._f.settings.hello_s) as self._patience:
                await self._handshake()
                self.attached = True
                log.info("following", peer=self._leader, term=self._term, log_index=self._log.checked)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send_acks())
                    await self._receive()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._call.cancel()

    # -- the start ------------------------------------------------------------------------------------------------

    async def _handshake(self) -> None:
        await self._call.write(pb.FollowerMessage(hello=self._hello()))
        start = await self._next("start")
        term = Term(start.term)
        if term < self._term:
            raise StaleTerm(f"{start.leader} still leads in term {term}, etcd says {self._term}")
        if start.leader != self._leader:
            raise _Ended(f"{start.leader} answered at the address of {self._leader}; correct the peers' addresses")
        self._log.learn(self._journal.highest_term, self._journal.commit_index)
        self._log.may_follow(term)
        snapshot = await self._read_snapshot(start) if start.snapshot else None
        self._patience.reschedule(None)  # from here to the first frame we wait for our own disk only
        # The promise is durable before the first acknowledgement that rests on it (FollowerLog.open_term).
        await self._journal.raise_term(term)
        self._term = term
        fork, fork_term = Position(LogIndex(start.fork.index), start.fork.chain), Term(start.fork_term)
        journal = self._journal
        if snapshot is not None and journal.chain_at(fork.index) == fork.chain:
            snapshot = None  # we have all of that already, entries included
        if snapshot is not None:
            await self._install(snapshot)
        self._log.open_term(term, fork, fork_term, journal.last.index, journal.chain_at)
        self._commit(LogIndex(start.commit_index))
        self._ack()
        self._patience.reschedule(self._loop.time() + self._f.settings.silence_s)

    def _hello(self) -> pb.Hello:
        journal = self._journal
        floor = LogIndex(max(journal.commit_index, journal.base.index))
        return pb.Hello(
            protocol=wire.PROTOCOL,
            cluster=journal.cluster,
            node=self._f.me,
            journal_id=journal.journal_id,
            term=self._term,
            highest_term=self._log.highest_term,
            last_index=journal.last.index,
            commit_index=journal.commit_index,
            locator=[
                pb.Position(index=p.index, chain=p.chain) for p in locator(journal.last.index, floor, journal.chain_at)
            ],
        )

    async def _read_snapshot(self, start: pb.Start) -> Snapshot:
        if start.snapshot_bytes > self._f.settings.snapshot_bytes_max:
            raise InvariantViolation(f"the leader's snapshot has {start.snapshot_bytes} bytes, more than is possible")
        parts: list[bytes] = []
        size = 0
        while size < start.snapshot_bytes:
            parts.append((await self._next("snapshot")).data)
            size += len(parts[-1])
        return Snapshot(
            LogIndex(start.fork.index),
            Term(start.fork_term),
            start.fork.chain,
            start.snapshot_digest,
            b"".join(parts),
        )

    async def _install(self, snapshot: Snapshot) -> None:
        await self._journal.install_snapshot(snapshot)
        log.info("snapshot_installed", peer=self._leader, log_index=snapshot.index, bytes=len(snapshot.blob))
        self._log.replaced(snapshot.index)
        self._f.digests.clear()
        self._f.on_snapshot(snapshot)
        self._f.delivery.reset(snapshot.index)

    # -- receiving ------------------------------------------------------------------------------------------------

    async def _next(self, expected: str | None = None) -> Any:
        message = await self._call.read()
        self._patience.reschedule(self._loop.time() + self._f.settings.silence_s)
        if message is grpc.aio.EOF:
            code, details = await self._call.code(), await self._call.details()
            raise _Ended(details or f"the leader ended the stream ({code.name})")
        which = message.WhichOneof("message")
        if which == "refused":
            raise _Refused(message.refused)
        if expected is None:
            return message
        if which != expected:
            raise _Ended(f"the leader sent {which} where {expected} was due")
        return getattr(message, which)

    async def _receive(self) -> None:
        while True:
            message = await self._next()
            self._journal.require_usable()
            if message.HasField("entries"):
                await self._take(message.entries)
            elif message.HasField("heartbeat"):
                self._commit(LogIndex(message.heartbeat.commit_index))
                self._ack()
            else:
                raise _Ended("the leader sent neither entries nor a heartbeat")

    async def _take(self, message: pb.Entries) -> None:
        if not self._journal.has_room:
            # The backpressure: while we wait for our disk we do not read, and the leader's window fills.
            self._patience.reschedule(None)
            await self._journal.wait_room()
        entries = wire.unframe(message)
        received = self._log.receive(entries)
        self.took_entries = True
        self.leader_commit = LogIndex(max(self.leader_commit, message.commit_index))
        if received.cut_after is not None:
            log.warning("tail_cut", peer=self._leader, term=self._term, log_index=received.cut_after)
        if received.append:
            self._journal.submit(received.append, self._on_durable, cut_after=received.cut_after)
        else:
            self._commit(self.leader_commit)
            self._ack()

    def _on_durable(self, index: LogIndex) -> None:
        if self._f._session is self:
            self._log.written(index)
            self._commit(self.leader_commit)
            self._ack()

    def _commit(self, leader_commit: LogIndex) -> None:
        self.leader_commit = LogIndex(max(self.leader_commit, leader_commit))
        commit = self._log.leader_committed(self.leader_commit)
        self._journal.note_commit(commit)
        self._f.delivery.advance(commit)

    # -- acknowledging --------------------------------------------------------------------------------------------

    def _ack(self) -> None:
        self._unsent = True
        if self._ack_due is not None and not self._ack_due.done():
            self._ack_due.set_result(None)

    async def _send_acks(self) -> None:
        while True:
            while not self._unsent:
                self._ack_due = self._loop.create_future()
                await self._ack_due
            self._unsent = False
            promise = self._log.ack()  # asked right before the send: None once the term is closed or paused
            if promise is None:
                return
            await self._call.write(pb.FollowerMessage(ack=self._made(*promise)))

    def _made(self, term: Term, durable: LogIndex) -> pb.Ack:
        ack = pb.Ack(term=term, durable_index=durable, applied_index=self._f.delivery.applied)
        latest = self._f.digests.latest
        if latest is not None and latest[0] != self._digest_told:
            self._digest_told = latest[0]
            ack.digest.index, ack.digest.digest = latest
        return ack


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
