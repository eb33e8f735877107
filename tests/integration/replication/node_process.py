"""One node in a process of its own, to be killed or stopped by a test. Ends when its stdin closes.

node_process follower NAME DIRECTORY LEADER LEADER_ADDRESS TERM
node_process leader NAME DIRECTORY FOLLOWER FOLLOWER_JOURNAL TERM      prints its address, then each committed index
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from cluster.core.ids import JournalId, NodeId, Term
from cluster.core.log import KIND_TERM_STARTED
from cluster.replication import LeaderLog
from tests.integration.replication.nodes import KIND, FakeEtcd, Node


async def follow(node: Node, leader: str, address: str, term: str) -> None:
    node.follower.follow(NodeId(leader), address, Term(int(term)))


async def lead(node: Node, follower: str, journal: str, term: str) -> None:
    etcd = FakeEtcd({node.name: node.journal.journal_id, NodeId(follower): JournalId(journal)}, 1, int(term))
    log: LeaderLog
    log = LeaderLog(
        node.journal,
        node.name,
        Term(int(term)),
        etcd.members,
        1,
        propose=lambda change: etcd.propose(log, change),
        on_commit=lambda index: print(index, flush=True),
    )
    node.server.lead(log)
    print(node.address, flush=True)
    log.append(KIND_TERM_STARTED, b"", 1)
    while True:
        await asyncio.sleep(0.0005)
        log.append(KIND, b"order", 7)


async def main(role: str, name: str, directory: str, *rest: str) -> None:
    node = await Node(name, Path(directory)).start()
    task = asyncio.create_task((follow if role == "follower" else lead)(node, *rest))
    closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({closed})
    task.cancel()
    await node.stop()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
