"""The follower's end of replication: dial the leader, take what it sends, acknowledge what is durable here.

What is taken, promised and acknowledged, and when to dial again, is decided in `core/following.py`; here it is carried
out: gRPC, the journal, and the loop's timers.

    frame -> checked -> journal (its thread, its sync) -> acknowledged        committed -> Delivery -> the book

Connections to all peers are kept up, so that a new leader's followers attach in one round trip. Nothing of a term
leaves after stop(closing=term) was called.

Read next: `replication.py` (the other end), `delivery.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog

from . import wire
from .clock import boottime_ns
from .core.errors import BatonError
from .core.following import (
    Acknowledge,
    Action,
    Commit,
    Flush,
    Following,
    Install,
    RaiseTerm,
    SendHello,
    Session,
    WaitRoom,
)
from .core.ids import NS_PER_S, LogIndex, NodeId, Term
from .core.log import Received, Snapshot
from .core.stream import Digests, StreamEnded
from .delivery import Delivery
from .journal import Journal
from .rpc import replication_pb2_grpc as rpc
from .wire import WireSettings

log = structlog.get_logger()

FLUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class FollowingState:
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
        self.journal, self.me, self.delivery = journal, me, delivery
        self.settings = settings or WireSettings()
        self.following = Following(me, journal, digests, self.settings, rng)
        self.on_snapshot = on_snapshot
        self._on_stop = on_stop
        self._links: dict[NodeId, _Link] = {}
        self._task: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()  # connections that are being closed

    # -- for the node -------------------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[NodeId, str]) -> None:
        """Keep a connection up to each of these (node -> host:port), and to no other."""
        target = self.following.target
        for node in [n for n in self._links if n not in peers and (target is None or n != target[0])]:
            self._links.pop(node).close()
        for node, address in peers.items():
            if node != self.me:
                self._link(node, address)

    def follow(self, leader: NodeId, address: str, term: Term) -> None:
        """Follow `leader`, which leads in `term`, until told otherwise. Returns at once; dials again by itself.

        Raises StaleTerm for a term lower than the highest seen, or a closed one.
        """
        anew = self.following.follow(leader, term)
        self._link(leader, address)
        if not anew:
            return
        self._hang_up()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._follow(leader, term, self._task), name=f"follow-{leader}-{term}")
        self._task.add_done_callback(self._task_done)

    def stop(self, closing: Term | None = None) -> None:
        """Follow nobody. No acknowledgement leaves from the moment of the call.

        closing: additionally promise that none of that term, or of an older one, ever will (before a campaign).
        """
        self.following.stop(closing)
        self._hang_up()

    async def wait_at_rest(self, timeout_s: float = FLUSH_S) -> None:
        """After `stop`: return once the stream has ended and the journal is at rest.

        Raises JournalBroken; OutcomeUnknown if the disk did not come to rest within timeout_s: do not lead then.
        """
        if self._task is not None:
            await asyncio.wait([self._task])
        await self.journal.flush(timeout_s)

    async def close(self) -> None:
        """Stop and let go of the connections. The journal is not touched."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        for link in self._links.values():
            link.close()
        self._links.clear()
        if self._chores:
            await asyncio.wait(self._chores)

    def state(self) -> FollowingState:
        following, session = self.following, self.following.session
        leader, term = following.target or (None, Term(0))
        return FollowingState(
            leader,
            term,
            following.log.ack() is not None,  # from the handshake to the end of the stream
            following.log.durable,
            session.leader_commit if session else LogIndex(0),
            following.refused,
        )

    def channel_to(self, node: NodeId) -> Any:
        """Of the connection as it is now; it is closed once the node has another address."""
        return self._links[node].channel

    # -- inside -------------------------------------------------------------------------------------------------

    def _link(self, node: NodeId, address: str) -> _Link:
        link = self._links.get(node)
        if link is None or link.address != address:
            if link is not None:
                link.close()
            link = self._links[node] = _Link(node, address, self.settings, self._chores)
        return link

    def _hang_up(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("following_stopped", reason=str(error), error=type(error).__name__)
            self._on_stop(error)

    async def _follow(self, leader: NodeId, term: Term, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        while True:
            error = await self._one_session(leader)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # A TaskGroup whose child fails while it is being cancelled raises the failure and loses the
                # cancellation (the call was cancelled under the child). We would follow the old leader for ever.
                raise asyncio.CancelledError
            redial = self.following.ended(error)
            log.info("stream_ended", peer=leader, term=term, reason=str(error), attempt=self.following.failures)
            self._links[leader].renew(silent=redial.renew)
            await asyncio.sleep(redial.after / NS_PER_S)

    async def _one_session(self, leader: NodeId) -> BatonError:
        """One stream to its end; why it ended. Raises what is no error of Baton's."""
        try:
            await _Stream(self, self.following.dial()).run()
        except BatonError as e:
            return e
        except grpc.aio.AioRpcError as e:
            return StreamEnded(e.details() or e.code().name)
        except asyncio.CancelledError:
            # Ours, which `_follow` raises again; or gRPC's own word for a call whose connection was closed under it.
            return StreamEnded(f"the connection to {leader} was given up; its address has changed")
        except asyncio.InvalidStateError as e:
            return StreamEnded(str(e))  # a write to a call that ended


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


class _Stream:
    """Carries out one session."""

    def __init__(self, follower: Follower, session: Session) -> None:
        self._f, self._session, self._journal = follower, session, follower.journal
        self._call: Any = None  # from the Hello on
        self._ack_due = asyncio.Event()

    async def run(self) -> NoReturn:
        """Raises why it ended."""
        session = self._session
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._send_acks())
                await self._carry_out(session.begin())
                while not session.attached:
                    await self._receive()
                log.info("following", peer=session.leader, term=session.term, log_index=self._f.following.log.checked)
                while True:
                    await self._receive()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            if self._call is not None:
                self._call.cancel()

    async def _receive(self) -> None:
        message = await self._call.read()
        if message is grpc.aio.EOF:
            code, details = await self._call.code(), await self._call.details()
            raise StreamEnded(details or f"the leader ended the stream ({code.name})")
        await self._carry_out(self._session.received(wire.read_leader_message(message), boottime_ns()))

    async def _watch(self) -> None:
        """Looks at the deadline once it may have passed; each message moves it, and a timer for each would cost more
        than the message."""
        while True:
            now = boottime_ns()
            self._session.tick(now)
            deadline, longest_s = self._session.deadline, self._f.settings.silence_s
            await asyncio.sleep(longest_s if deadline is None else min(longest_s, (deadline - now) / NS_PER_S))

    # -- actions --------------------------------------------------------------------------------------------------

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        """One after the other; while one waits nothing is read."""
        session, journal = self._session, self._journal
        for action in actions:
            match action:
                case Received(cut_after, entries):
                    if cut_after is not None:
                        log.warning("tail_cut", peer=session.leader, term=session.term, log_index=cut_after)
                    journal.submit(entries, self._on_durable, cut_after=cut_after)
                case Commit() | Acknowledge():
                    self._note(action)
                case Flush():
                    await journal.flush(FLUSH_S)
                    await self._carry_out(session.flushed(boottime_ns()))
                case SendHello(hello):
                    channel = self._f.channel_to(session.leader)
                    self._call = rpc.ReplicationStub(channel).Follow()  # type: ignore[no-untyped-call]
                    await self._call.write(wire.follower_message(hello))
                case RaiseTerm(term):
                    await journal.raise_term(term)
                    await self._carry_out(session.promised(boottime_ns()))
                case Install(snapshot):
                    await self._install(snapshot)
                    await self._carry_out(session.installed(boottime_ns()))
                case WaitRoom():
                    await journal.wait_room()
                    await self._carry_out(session.room(boottime_ns()))

    def _note(self, action: Action) -> None:
        """What needs no wait."""
        match action:
            case Commit(index):
                self._journal.note_commit(index)
                self._f.delivery.advance(index)
            case Acknowledge():
                self._ack_due.set()

    def _on_durable(self, index: LogIndex) -> None:
        for action in self._session.durable(index):
            self._note(action)

    async def _install(self, snapshot: Snapshot) -> None:
        """Ends when it is done, also if we are told to stop meanwhile: a journal that was replaced and a book that was
        not have a gap between them."""
        replacing = asyncio.get_running_loop().create_task(self._replace(snapshot))
        try:
            await asyncio.shield(replacing)
        except asyncio.CancelledError:
            while not replacing.done():
                with contextlib.suppress(asyncio.CancelledError):  # told again; the first is raised below
                    await asyncio.wait([replacing])
            raise

    async def _replace(self, snapshot: Snapshot) -> None:
        await self._journal.install_snapshot(snapshot)
        log.info("snapshot_installed", peer=self._session.leader, log_index=snapshot.index, bytes=len(snapshot.blob))
        self._f.on_snapshot(snapshot)
        self._f.delivery.reset(snapshot.index)

    async def _send_acks(self) -> None:
        while True:
            await self._ack_due.wait()
            self._ack_due.clear()
            ack = self._session.ack(self._f.delivery.applied)  # right before the send: the term may have been closed
            if ack is None:
                return
            await self._call.write(wire.follower_message(ack))


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
