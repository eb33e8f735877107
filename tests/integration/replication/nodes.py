"""Nodes for replication tests: real journals, real gRPC on loopback; only etcd is a few lines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.core.ids import JournalId, LogIndex, NodeId, Term
from cluster.core.insync import ProposeChange
from cluster.core.log import KIND_TERM_STARTED, Entry
from cluster.delivery import Delivery
from cluster.follower import Follower
from cluster.journal import Journal, Snapshot
from cluster.journal_writer import JournalLimits
from cluster.replication import Digests, LeaderLog, LeaderSettings, ReplicationServer, WireSettings

KIND = 16
NODES = [NodeId("n1"), NodeId("n2"), NodeId("n3")]
FAST = WireSettings(heartbeat_s=0.02, silence_s=0.4, hello_s=2.0, hold_s=0.3)


@dataclass
class FakeEtcd:
    """The `insync` key. hold: proposals wait in `held` until the test lets them through."""

    members: dict[NodeId, JournalId] = field(default_factory=dict)
    revision: int = 1
    term: int = 0
    hold: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    proposals: list[dict[NodeId, JournalId]] = field(default_factory=list)

    def propose(self, leader: LeaderLog, change: ProposeChange) -> None:
        self.proposals.append(dict(change.members))

        def carry_out() -> None:
            if leader.term == self.term and change.expected_revision == self.revision:
                self.revision += 1
                self.members = dict(change.members)
                leader.change_done(self.revision)
            else:
                leader.change_refused(self.members, self.revision)

        if self.hold:
            self.held.append(carry_out)
        else:
            asyncio.get_running_loop().call_later(0.001, carry_out)

    def let_through(self) -> None:
        self.hold = False
        for carry_out in self.held:
            carry_out()
        self.held.clear()


class Node:
    """One node's journal, both ends of its replication, and a book that is the list of entries it was handed."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        settings: WireSettings = FAST,
        limits: JournalLimits | None = None,
        cluster: str = "c1",
        nodes: Sequence[NodeId] = tuple(NODES),
    ) -> None:
        self.name = NodeId(name)
        self.journal = Journal.open(directory / f"{name}.db", cluster=cluster, limits=limits)
        self.applied: list[Entry] = []
        self.snapshots: list[Snapshot] = []
        self.stopped: list[BaseException] = []
        self.higher_terms: list[tuple[Term, NodeId]] = []
        self.wrong_digests: list[tuple[NodeId, str]] = []
        self.digests = Digests()
        self.delivery = Delivery(self.journal, self.journal.base.index, self.applied.extend, self.stopped.append)
        self.follower = Follower(
            self.journal,
            self.name,
            self.delivery,
            self.digests,
            random.Random(name),
            on_snapshot=self.snapshots.append,
            on_stop=self.stopped.append,
            settings=settings,
        )
        self.server = ReplicationServer(
            self.journal,
            self.name,
            nodes,
            self.digests,
            settings=settings,
            on_higher_term=lambda term, node: self.higher_terms.append((term, node)),
            on_wrong_digest=lambda node, why: self.wrong_digests.append((node, why)),
        )
        self.address = ""
        self.log: LeaderLog | None = None

    async def start(self) -> Node:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1:0')}"
        return self

    async def stop(self) -> None:
        await self.follower.close()
        await self.server.stop()
        self.delivery.close()
        self.journal.close()

    async def lead(self, term: int, etcd: FakeEtcd, *insync: Node, settings: LeaderSettings | None = None) -> LeaderLog:
        """Win the lease of `term`, with `insync` (and ourselves) in sync."""
        await self.stop_following()
        await self.journal.raise_term(Term(0))
        etcd.term, etcd.revision = term, etcd.revision + 1
        etcd.members = {n.name: n.journal.journal_id for n in (self, *insync)}
        made: list[LeaderLog] = []
        self.log = LeaderLog(
            self.journal,
            self.name,
            Term(term),
            etcd.members,
            etcd.revision,
            propose=lambda change: etcd.propose(made[0], change),
            on_commit=self.delivery.advance,
            settings=settings,
        )
        made.append(self.log)
        self.log.append(KIND_TERM_STARTED, b"", 1)
        self.server.lead(self.log)
        return self.log

    def follow(self, leader: Node, term: int) -> None:
        self.follower.follow(leader.name, leader.address, Term(term))

    async def stop_following(self, closing: Term | None = None) -> None:
        self.follower.stop(closing)
        await self.follower.wait_at_rest()

    async def append(self, count: int = 1, body: bytes = b"order") -> list[Entry]:
        """Append as leader and wait until all of it is committed."""
        assert self.log is not None
        entries = [self.log.append(KIND, body, 7) for _ in range(count)]
        async with asyncio.timeout(20):
            await self.log.wait_committed(entries[-1].index)
        return entries

    def in_sync_names(self) -> set[str]:
        assert self.log is not None
        return set(self.log.insync.members)

    def in_sync(self, *others: Node) -> bool:
        return self.in_sync_names() == {self.name, *(o.name for o in others)}

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        while batch := self.journal.read(
            LogIndex((found[-1].index if found else self.journal.base.index) + 1), 1 << 24
        ):
            found += batch
        return found


async def wait_until(condition: Callable[[], bool], limit_s: float = 15.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what makes it true is another process, or the loop itself
            await asyncio.sleep(0.002)
