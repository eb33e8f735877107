"""A model of etcd: one linearizable store with exactly the transactions of DESIGN 4, and leases that the world ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.core import actions as act
from cluster.core.events import Answer
from cluster.core.ids import Incarnation, JournalId, NodeId, Term
from cluster.core.lease import InSync, LeaderKey, Member, Resigned, Tenure, View

if TYPE_CHECKING:
    from tests.sim.node_model import Node


class Etcd:
    """One linearizable store. `changed` is called after every revision."""

    def __init__(self) -> None:
        self.revision = 7
        self.leader: LeaderKey | None = None
        self.leader_lease = 0
        self.tenure: Tenure | None = None
        self.resigned: Resigned | None = None
        self.insync = InSync()
        self.members: dict[NodeId, Member] = {}
        self.leases: dict[int, int] = {}  # id -> when it ends
        self.changed: Callable[[], None] = lambda: None
        self._view: View | None = None

    def view(self) -> View:
        if self._view is None:
            self._view = View(
                self.revision, self.leader, self.tenure, self.resigned, self.insync, dict(self.members), cluster_id=1
            )
        return self._view

    def bump(self) -> int:
        self.revision += 1
        self._view = None
        return self.revision

    def delete_leader(self) -> None:
        if self.leader is not None:
            self.leader = None
            self.bump()
            self.changed()

    def revoke(self, lease: int) -> None:
        self.leases.pop(lease, None)
        if self.leader is not None and self.leader_lease == lease:
            self.delete_leader()

    def execute(self, node: Node, incarnation: str, a: act.EtcdRequest) -> tuple[Answer, int]:
        done = self._execute(node, incarnation, a)
        if not done:
            return Answer.REFUSED, 0
        self.changed()
        return Answer.DONE, self.revision

    def _execute(self, node: Node, incarnation: str, a: act.EtcdRequest) -> bool:
        key, token = self.leader, self.tenure.token if self.tenure else 0
        match a:
            case act.Acquire():
                if (
                    key
                    or token != a.tenure_seen
                    or self.insync.mod_revision != a.insync_seen
                    or a.lease_id not in self.leases
                ):
                    return False
                t = Term(self.bump())
                who = Incarnation(incarnation)
                self.leader = LeaderKey(node.name, who, node.home, a.attempt, node.rules.ttl, 0, t, t)
                self.leader_lease = a.lease_id
                self.tenure = Tenure(node.name, who, node.home, node.rules.ttl, t)
                self.insync = InSync(dict(a.members), t)
            case act.Renew():
                if key is None or key.token != a.token or a.lease_id not in self.leases:
                    return False
                self.leader = replace(key, renewal=a.renewal, mod_revision=self.bump())
                self.leader_lease = a.lease_id
            case act.Evict():
                if key is None or not self.evictable(key, a):
                    return False
                self._end(a.token, "evicted", node.name, None)
            case act.Resign():
                if not (key.token == a.token if key else token == a.token):
                    return False
                self._end(a.token, a.reason, a.actor, a.successor)
        return True

    def evictable(self, key: LeaderKey, a: act.Evict) -> bool:
        return key.mod_revision == a.mod_revision

    def _end(self, token: Term, reason: str, actor: str, successor: NodeId | None) -> None:
        self.leader = None
        self.bump()
        self.resigned = Resigned(token, reason, actor, successor, 0)

    def change_insync(self, token: Term, seen: int, members: dict[NodeId, JournalId]) -> bool:
        if self.leader is None or self.leader.token != token or self.insync.mod_revision != seen:
            return False
        self.insync = InSync(members, self.bump())
        self.changed()
        return True
