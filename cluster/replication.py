"""The leader's end of replication: a server that streams the journal to followers.

It listens all the time and serves followers while there is a LeaderLog. What each is sent, and what its
acknowledgements are worth, is decided in `core/serving.py`; here it is carried out: gRPC, the journal's file, and the
loop's timers.

Read next: `leader_log.py` (what is committed), `follower.py` (the other end).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import grpc
import structlog

from . import wire
from .clock import boottime_ns
from .core.errors import ConfigError
from .core.ids import NS_PER_S, Instant, LogIndex, NodeId, Term
from .core.insync import Member
from .core.log import SendSnapshot, StreamAfter
from .core.serving import ReadEntries, ReadSnapshot, Serving, Wait, admit
from .core.stream import Ack, Digests, Hello, LeaderMessage, Refusal, Refused, Start, StreamEnded
from .journal import Journal
from .leader_log import FollowerState, LeaderLog, LeaderSettings
from .rpc import replication_pb2_grpc as rpc
from .wire import TlsFiles, WireSettings

__all__ = ["Digests", "FollowerState", "LeaderLog", "LeaderSettings", "ReplicationServer", "TlsFiles", "WireSettings"]

log = structlog.get_logger()


class _Stream:
    """The leader's side of one follower's stream, after its Hello was accepted."""

    def __init__(
        self,
        server: ReplicationServer,
        leader: LeaderLog,
        member: Member,
        answer: StreamAfter | SendSnapshot,
        context: Any,
    ) -> None:
        self.member = member
        self.serving = Serving(
            leader.me, leader.term, member.node, answer, server.journal, server.digests, server.settings, boottime_ns()
        )
        self._leader, self._journal = leader, server.journal
        self._on_wrong_digest = server.on_wrong_digest
        self._context = context
        self._wake: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[str] = self._loop.create_future()

    # -- for the LeaderLog --------------------------------------------------------------------------------------------

    def state(self) -> FollowerState:
        in_sync = self._leader.insync.members.get(self.member.node) == self.member.journal
        return FollowerState(self.member.node, self.member.journal, self.serving.durable, self.serving.applied, in_sync)

    def wake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def end(self, reason: str) -> None:
        if not self._end.done():
            self._end.set_result(reason)

    def check(self) -> None:
        try:
            self.serving.tick(boottime_ns())
        except StreamEnded as e:
            self.end(str(e))

    # -- its tasks ----------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Serve until either side ends it; why it ended."""
        why = ""
        self._leader.attach(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wait_end())
                tasks.create_task(self._read_acks())
                tasks.create_task(self._send(tasks))
        except* StreamEnded as group:
            why = str(group.exceptions[0])
        finally:
            self._leader.detach(self)
        return why

    async def _wait_end(self) -> None:
        raise StreamEnded(await self._end)

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            match self.serving.next(self._leader.commit_index, boottime_ns()):
                case Wait(until):
                    await self._wait_woken(until)
                case ReadEntries(first, max_bytes, max_entries):
                    tasks.create_task(self._read_entries(first, max_bytes, max_entries))
                case ReadSnapshot():
                    tasks.create_task(self._read_snapshot())
                case message:
                    self._note(message)
                    await self._write(message)

    async def _write(self, message: LeaderMessage) -> None:
        try:
            await self._context.write(wire.leader_message(message))
        except grpc.aio.BaseError as e:  # the follower has gone; nothing says so in gRPC's own words
            raise StreamEnded("the connection broke") from e

    async def _wait_woken(self, until: Instant | None) -> None:
        """Until wake(), or until then."""
        woken: asyncio.Future[None] = self._loop.create_future()
        self._wake = woken
        timer = None
        if until is not None:
            timer = self._loop.call_later(max(0, until - boottime_ns()) / NS_PER_S, self.wake)
        try:
            await woken
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()

    async def _read_entries(self, first: LogIndex, max_bytes: int, max_entries: int) -> None:
        self.serving.entries_read(await asyncio.to_thread(self._journal.read, first, max_bytes, max_entries))
        self.wake()

    async def _read_snapshot(self) -> None:
        self.serving.snapshot_read(await asyncio.to_thread(self._journal.latest_snapshot))
        self.wake()

    async def _read_acks(self) -> None:
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                raise StreamEnded("the follower closed the stream")
            ack = wire.read_follower_message(message)
            if not isinstance(ack, Ack):
                raise StreamEnded("the follower said Hello twice")
            self.serving.acked(ack, boottime_ns())
            self._leader.acked(self.member, ack.durable)
            self.wake()

    def _note(self, message: LeaderMessage) -> None:
        """What people should know of it."""
        if isinstance(message, Start) and message.snapshot is not None:
            log.info("snapshot_sent", peer=self.member.node, log_index=message.fork.index, bytes=message.snapshot.size)
        elif isinstance(message, Refused):
            log.error("digest_differs", peer=self.member.node, reason=message.reason)
            if self._on_wrong_digest:
                self._on_wrong_digest(self.member.node, message.reason)


class ReplicationServer(rpc.ReplicationServicer):
    """Listens for followers, always; serves them while lead() is in force."""

    def __init__(
        self,
        journal: Journal,
        me: NodeId,
        nodes: Collection[NodeId],
        digests: Digests,
        *,
        settings: WireSettings | None = None,
        on_higher_term: Callable[[Term, NodeId], None] | None = None,
        on_wrong_digest: Callable[[NodeId, str], None] | None = None,
    ) -> None:
        """nodes: every node of the cluster. on_higher_term: a follower has seen a higher term than ours; step down.
        on_wrong_digest: a follower's book differs from ours; it stops itself."""
        self.journal, self.me, self.nodes = journal, me, set(nodes)
        self.digests, self.settings = digests, settings or WireSettings()
        self.on_wrong_digest = on_wrong_digest
        self._on_higher_term = on_higher_term
        self._leader: LeaderLog | None = None
        self._began = asyncio.Event()
        self._live: dict[NodeId, _Stream] = {}
        self._early = 0  # followers that came before we lead, and wait
        self._attached = 0  # streams accepted since the start
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str) -> int:
        """Listen on host:port (port 0: any) and return the port. Raises ConfigError naming the address."""
        options = wire.channel_options(self.settings)
        server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", 0)])
        rpc.add_ReplicationServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        try:
            if self.settings.tls:
                port = server.add_secure_port(listen, wire.server_credentials(self.settings.tls))
            else:
                port = server.add_insecure_port(listen)
        except RuntimeError as e:
            raise ConfigError(
                f"node.grpc_listen = {listen}: {wire.why_no_port(listen)}; correct it, or find who has it (ss -ltnp)"
            ) from e
        await server.start()
        self._server = server
        return int(port)

    async def stop(self, grace_s: float = 0.0) -> None:
        self.stop_leading("the node is stopping")
        if self._server is not None:
            await self._server.stop(grace_s)

    def lead(self, leader: LeaderLog) -> None:
        """Serve followers from here on, those included that came early and wait."""
        self._leader = leader
        self._began.set()

    def stop_leading(self, reason: str) -> None:
        """Close the LeaderLog, if there is one. Acknowledgements that come later count for nothing."""
        self._began.clear()
        if self._leader is not None:
            self._leader.close(reason)
            self._leader = None

    # -- the RPC ------------------------------------------------------------------------------------------------------

    async def Follow(self, _requests: Any, context: Any) -> None:
        hello = await self._read_hello(context)
        if hello is None:
            return
        leader = await self._leading(hello.term)
        live = self._live.get(hello.node)
        answer = admit(
            hello,
            self.me,
            self.journal.cluster,
            self.nodes,
            wire.certified_names(context) if self.settings.tls else None,
            leader.insync if leader else None,
            live.member if live else None,
            self.journal,
        )
        if isinstance(answer, Refused):
            await self._refuse(hello, answer, context)
        elif leader is not None:  # or it was refused
            if live is not None:
                live.end("the same journal dialled again")
            await self._serve(hello, leader, answer, context)

    async def _serve(self, hello: Hello, leader: LeaderLog, answer: StreamAfter | SendSnapshot, context: Any) -> None:
        member = Member(hello.node, hello.journal)
        self._attached += 1
        stream = self._live[member.node] = _Stream(self, leader, member, answer, context)
        log.info("follower_attached", peer=member.node, term=leader.term, log_index=hello.last)
        why = "the connection broke"
        try:
            why = await stream.run()
        finally:
            if self._live.get(member.node) is stream:
                del self._live[member.node]
            log.info("follower_detached", peer=member.node, term=leader.term, reason=why)

    async def _read_hello(self, context: Any) -> Hello | None:
        try:
            async with asyncio.timeout(self.settings.hello_s):
                message = await context.read()
            hello = None if message is grpc.aio.EOF else wire.read_follower_message(message)
        except (TimeoutError, StreamEnded):
            hello = None
        if not isinstance(hello, Hello):
            log.warning("follower_without_hello", peer=context.peer())
            return None
        return hello

    async def _leading(self, term: Term) -> LeaderLog | None:
        """Our LeaderLog of `term` or a later one. Followers learn of a new leader at the same moment as its own worker
        does, so one that is early is kept waiting instead of being sent away into its back-off."""
        deadline = asyncio.get_running_loop().time() + self.settings.hold_s
        self._early += 1
        try:
            async with asyncio.timeout_at(deadline):
                while self._leader is None or self._leader.term < term:
                    self._began.clear()
                    await self._began.wait()
        except TimeoutError:
            pass
        finally:
            self._early -= 1
        return self._leader

    async def _refuse(self, hello: Hello, refused: Refused, context: Any) -> None:
        tell = log.error if refused.code.final else log.warning
        tell("follower_refused", peer=hello.node, code=refused.code.name, reason=refused.reason)
        if refused.code is Refusal.STALE_LEADER and self._on_higher_term:
            self._on_higher_term(hello.highest_term, hello.node)
        with contextlib.suppress(grpc.aio.BaseError):  # it has gone already
            await context.write(wire.leader_message(refused))
