"""The leader's end of replication: a server that streams the journal to followers.

It listens all the time and serves followers while there is a LeaderLog. A follower costs no memory here: its stream is
a place in the journal, and when it falls behind the entries that the journal keeps in memory, it is served from the
file until it has caught up. At most `window_bytes` are sent and not acknowledged.

Timers are the loop's. Read next: `leader_log.py` (what is committed), `follower.py` (the other end).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import grpc
import structlog

from . import wire
from .core.errors import ConfigError
from .core.ids import JournalId, LogIndex, NodeId, Term
from .core.insync import Member
from .core.log import Diverged, Entry, Position, SendSnapshot, StreamAfter, fork_point
from .journal import Journal
from .leader_log import FollowerState, LeaderLog, LeaderSettings
from .rpc import replication_pb2 as pb
from .rpc import replication_pb2_grpc as rpc
from .wire import Digests, TlsFiles, WireSettings

__all__ = ["Digests", "FollowerState", "LeaderLog", "LeaderSettings", "ReplicationServer", "TlsFiles", "WireSettings"]

log = structlog.get_logger()


class _StreamEnded(Exception):
    """Ends a stream's tasks; carries why."""


class _Stream:
    """The leader's side of one follower's stream, after its Hello was accepted."""

    def __init__(self, server: ReplicationServer, leader: LeaderLog, member: Member, context: Any) -> None:
        self.member = member
        self.durable = self.applied = LogIndex(0)
        self._leader, self._journal = leader, server.journal
        self._digests, self._on_wrong_digest = server.digests, server.on_wrong_digest
        self._context, self._settings = context, server.settings
        self._next = LogIndex(0)
        self._in_flight: deque[tuple[LogIndex, int]] = deque()  # (last index, bytes) of each unacknowledged frame
        self._in_flight_bytes = 0
        self._commit_told = LogIndex(0)
        self._from_disk: list[Entry] = []
        self._wake: asyncio.Future[bool] | None = None
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._heard_at = self._loop.time()
        self._end: asyncio.Future[str] = self._loop.create_future()

    def state(self) -> FollowerState:
        in_sync = self._leader.insync.members.get(self.member.node) == self.member.journal
        return FollowerState(self.member.node, self.member.journal, self.durable, self.applied, in_sync)

    def wake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(True)

    def end(self, reason: str) -> None:
        if not self._end.done():
            self._end.set_result(reason)

    def check(self) -> None:
        # A follower acknowledges every heartbeat, also while its disk stalls. The connection of one that does not may
        # be a black hole, where even a write of ours would wait for ever.
        if (silent := self._loop.time() - self._heard_at) > 4 * self._settings.silence_s:
            self.end(f"silent for {silent:.1f} s")

    async def run(self, hello: pb.Hello) -> str:
        """Serve until either side ends it; why it ended."""
        answer = fork_point(
            wire.positions(hello.locator), self._journal.base.index, self._journal.last.index, self._journal.chain_at
        )
        if isinstance(answer, Diverged):
            log.error("follower_diverged", peer=self.member.node, reason=answer.why)
            await self._refuse(pb.REFUSAL_DIVERGED, answer.why)
            return answer.why
        why = ""
        self._leader.attach(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wait_end())
                tasks.create_task(self._serve(answer, tasks))
        except* _StreamEnded as group:
            why = str(group.exceptions[0])
        finally:
            self._leader.detach(self)
        return why

    async def _wait_end(self) -> None:
        raise _StreamEnded(await self._end)

    async def _serve(self, answer: StreamAfter | SendSnapshot, tasks: asyncio.TaskGroup) -> None:
        await (self._send_snapshot() if isinstance(answer, SendSnapshot) else self._start_after(answer.index))
        tasks.create_task(self._read_acks())
        await self._send()

    # -- the start ----------------------------------------------------------------------------------------------------

    async def _start_after(self, index: LogIndex) -> None:
        chain, term = self._journal.chain_at(index), self._journal.term_at(index)
        if chain is None or term is None:
            raise _StreamEnded(f"entry {index} was pruned during the handshake")
        await self._write(pb.LeaderMessage(start=self._start(Position(index, chain), term)))
        self._next = LogIndex(index + 1)

    def _start(self, fork: Position, fork_term: Term) -> pb.Start:
        self._commit_told = self._leader.commit_index
        return pb.Start(
            leader=self._leader.me,
            term=self._leader.term,
            fork=pb.Position(index=fork.index, chain=fork.chain),
            fork_term=fork_term,
            commit_index=self._commit_told,
        )

    async def _send_snapshot(self) -> None:
        snapshot = await asyncio.to_thread(self._journal.latest_snapshot)
        if snapshot is None:
            raise _StreamEnded("the follower needs a snapshot and there is none")
        start = self._start(Position(snapshot.index, snapshot.chain), snapshot.term)
        start.snapshot, start.snapshot_digest, start.snapshot_bytes = True, snapshot.digest, len(snapshot.blob)
        log.info("snapshot_sent", peer=self.member.node, log_index=snapshot.index, bytes=len(snapshot.blob))
        await self._write(pb.LeaderMessage(start=start))
        for at in range(0, len(snapshot.blob), self._settings.snapshot_chunk_bytes):
            chunk = snapshot.blob[at : at + self._settings.snapshot_chunk_bytes]
            await self._write(pb.LeaderMessage(snapshot=pb.SnapshotChunk(data=chunk)))
            self._heard_at = self._loop.time()  # it takes them, which is all that can be heard of it now
        self._next = LogIndex(snapshot.index + 1)

    async def _refuse(self, code: pb.Refusal, reason: str) -> None:
        await self._write(pb.LeaderMessage(refused=pb.Refused(code=code, reason=reason)))

    # -- sending ------------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            entries = await self._entries()
            if entries:
                size = sum(len(e.body) + 96 for e in entries)
                self._in_flight.append((entries[-1].index, size))
                self._in_flight_bytes += size
                self._next = LogIndex(entries[-1].index + 1)
                self._commit_told = self._leader.commit_index
                await self._write(wire.frame(entries, self._commit_told))
            elif not await self._something_new():
                self._commit_told = self._leader.commit_index
                await self._write(pb.LeaderMessage(heartbeat=pb.Heartbeat(commit_index=self._commit_told)))

    async def _entries(self) -> list[Entry]:
        """The next frame's, or none: nothing new, or the window is full."""
        s, journal = self._settings, self._journal
        if self._next > journal.last.index or self._in_flight_bytes >= s.window_bytes:
            return []
        if self._from_disk:
            entries, self._from_disk = self._from_disk[: s.frame_entries], self._from_disk[s.frame_entries :]
            return entries
        if (entries_in_memory := journal.tail(self._next, s.frame_bytes, s.frame_entries)) is not None:
            return entries_in_memory
        self._from_disk = await asyncio.to_thread(journal.read, self._next, s.catch_up_bytes, s.catch_up_entries)
        if not self._from_disk:
            raise _StreamEnded(f"entry {self._next} was pruned while the follower was catching up")
        return await self._entries()

    async def _something_new(self) -> bool:
        """Wait for an append, an acknowledgement or the end; False: it is time to say something anyway."""
        s = self._settings
        due = self._sent_at + s.heartbeat_s
        if self._leader.commit_index > self._commit_told:
            due = min(due, self._loop.time() + s.commit_notice_s)
        delay = due - self._loop.time()
        if delay <= 0:
            return False
        woken: asyncio.Future[bool] = self._loop.create_future()
        self._wake = woken
        timer = self._loop.call_later(delay, _ring, woken)
        try:
            return await woken
        finally:
            timer.cancel()
            self._wake = None

    async def _write(self, message: pb.LeaderMessage) -> None:
        self._sent_at = self._loop.time()
        await self._context.write(message)

    # -- acknowledgements ---------------------------------------------------------------------------------------------

    async def _read_acks(self) -> None:
        term = self._leader.term
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                raise _StreamEnded("the follower closed the stream")
            ack, self._heard_at = message.ack, self._loop.time()
            if ack.term != term:
                raise _StreamEnded(f"an acknowledgement of term {ack.term} in a stream of term {term}")
            if not self.durable <= ack.durable_index < self._next:
                raise _StreamEnded(f"acknowledged {ack.durable_index}, not within [{self.durable}, {self._next - 1}]")
            self.durable, self.applied = LogIndex(ack.durable_index), LogIndex(ack.applied_index)
            while self._in_flight and self._in_flight[0][0] <= self.durable:
                self._in_flight_bytes -= self._in_flight.popleft()[1]
            self._leader.acked(self.member, self.durable)
            if ack.HasField("digest"):
                await self._compare(LogIndex(ack.digest.index), ack.digest.digest)
            self.wake()

    async def _compare(self, index: LogIndex, theirs: bytes) -> None:
        ours = self._digests.at(index)
        if ours is None or ours == theirs:
            return
        why = (
            f"the books differ at index {index}: leader {self._leader.me} {ours.hex()}, follower {self.member.node} "
            f"{theirs.hex()}. Their logs are equal, so one of the two computed wrongly: compare versions, configuration"
        )
        log.error("digest_differs", peer=self.member.node, log_index=index, ours=ours.hex(), theirs=theirs.hex())
        if self._on_wrong_digest:
            self._on_wrong_digest(self.member.node, why)
        await self._refuse(pb.REFUSAL_WRONG_DIGEST, why)
        raise _StreamEnded(why)


def _ring(woken: asyncio.Future[bool]) -> None:
    if not woken.done():
        woken.set_result(False)


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
        leader = await self._leading(Term(hello.term))
        refused = self._refusal(hello, leader, wire.certified_names(context))
        if leader is None or refused is not None:
            refused = refused or pb.Refused(code=pb.REFUSAL_NOT_LEADING, reason=f"{self.me} does not lead")
            log.warning("follower_refused", peer=hello.node, code=pb.Refusal.Name(refused.code), reason=refused.reason)
            await context.write(pb.LeaderMessage(refused=refused))
            return
        member = Member(NodeId(hello.node), JournalId(hello.journal_id))
        if (older := self._live.get(member.node)) is not None:
            older.end("the same journal dialled again")
        self._attached += 1
        stream = self._live[member.node] = _Stream(self, leader, member, context)
        log.info("follower_attached", peer=member.node, term=leader.term, log_index=hello.last_index)
        why = "the connection broke"
        try:
            why = await stream.run(hello)
        finally:
            if self._live.get(member.node) is stream:
                del self._live[member.node]
            log.info("follower_detached", peer=member.node, term=leader.term, reason=why)

    async def _read_hello(self, context: Any) -> pb.Hello | None:
        try:
            async with asyncio.timeout(self.settings.hello_s):
                message = await context.read()
        except TimeoutError:
            message = None
        if message is None or message is grpc.aio.EOF or not message.HasField("hello"):
            log.warning("follower_without_hello", peer=context.peer())
            return None
        hello: pb.Hello = message.hello
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

    def _refusal(self, hello: pb.Hello, leader: LeaderLog | None, names: set[str]) -> pb.Refused | None:
        node = NodeId(hello.node)

        def no(code: pb.Refusal, reason: str) -> pb.Refused:
            return pb.Refused(code=code, reason=reason)

        if hello.protocol != wire.PROTOCOL:
            return no(
                pb.REFUSAL_PROTOCOL,
                f"protocol {hello.protocol} here {wire.PROTOCOL}: upgrade standbys first, then switch over",
            )
        if hello.cluster != self.journal.cluster:
            return no(
                pb.REFUSAL_WRONG_CLUSTER,
                f"this is cluster {self.journal.cluster!r}, the follower belongs to {hello.cluster!r}; "
                "correct cluster.name or the peer's address",
            )
        if node not in self.nodes or node == self.me:
            return no(
                pb.REFUSAL_UNKNOWN_NODE,
                f"{self.me} expects {sorted(self.nodes - {self.me})}, not {hello.node!r}; correct node.name",
            )
        if self.settings.tls and node not in names:
            return no(
                pb.REFUSAL_WRONG_IDENTITY,
                f"the certificate is for {sorted(names)}, not for {hello.node!r}; give each node its own certificate",
            )
        if not hello.locator or any(len(p.chain) != 32 for p in hello.locator):
            return no(pb.REFUSAL_PROTOCOL, "a Hello without a usable locator")
        if leader is None:
            return None
        if hello.highest_term > leader.term:
            if self._on_higher_term:
                self._on_higher_term(Term(hello.highest_term), node)
            return no(
                pb.REFUSAL_STALE_LEADER, f"{self.me} leads in term {leader.term}, {node} has seen {hello.highest_term}"
            )
        if leader.term < hello.term:
            return no(pb.REFUSAL_NOT_LEADING, f"{self.me} leads in term {leader.term}, not yet in {hello.term}")
        live = self._live.get(node)
        if live is not None and live.member.journal != hello.journal_id:
            return no(
                pb.REFUSAL_DUPLICATE_NODE,
                f"another process calls itself {node!r} (journal {live.member.journal}, this one {hello.journal_id}); "
                "two nodes must not share node.name",
            )
        known = leader.insync.durable_of(Member(node, JournalId(hello.journal_id)))
        if hello.last_index < known:
            return no(
                pb.REFUSAL_LOST_ENTRIES,
                f"journal {hello.journal_id} of {node} acknowledged {known} and now ends at {hello.last_index}: "
                "its disk lost entries, or an old copy was restored. Start the node with an empty data directory",
            )
        return None
