"""After etcd was restored or replaced: whether a journal may take it for its own, and which one may lead there. Pure.

What came with a backup is old. Tokens could repeat, and the restored `insync` may name a journal that lacks committed
entries. Only people know that etcd was restored, and which journals are left; so they say it, on every node, while all
nodes are stopped (`baton fence rebase`):

    without lead: `insync` names nobody any more, and `rebased` says where this journal ends
    with lead:    `tenure`, `insync` = {this journal} and `rebased`, all of one revision, which is a token

In that order, and in any other, these hold:

- etcd's revision, and so every token to come, is above the highest term of every journal that takes this etcd;
- a journal takes it only once its `insync` is not the restored one any more;
- no journal is named to lead that ends lower than one that `rebased` knows.

Why the highest end by (term, index) is the right one: a committed entry was durable on the whole in-sync set, with one
of the term that committed it (`insync.py`). Every later leader came out of that set, so it holds the entry, and so does
whoever has an entry of a later term than that one. Within one term every log is a beginning of the leader's, so the
longest holds it. It takes one journal of the last in-sync set among those that are left; no rule can replace that.
Read next: `cluster/rebase.py`, which carries this out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import BatonError
from .ids import NS_PER_S, JournalId, LogIndex, NodeId, Term
from .lease import LeaderKey, View

REMEDY = (
    "If it was restored or replaced, stop all nodes and run `baton fence rebase` on each, with --lead on the one whose "
    'journal ends highest (README, "When etcd was restored or lost")'
)
"""For whoever finds that etcd is not the one it was."""
BUMP_MIN = 10_000_000
"""Revisions; about ten days of renewals. What the lost etcd gave away and no journal saw should lie below as well. Not
more than needed: terms are part of client order ids, which have an end."""
LEASE_SLACK_S = 3
"""etcd grants whole seconds, a little more than is asked for, and ends leases late."""


class RebaseRefused(BatonError):
    """It would not be safe, or not yet. Nothing was changed."""


class End(NamedTuple):
    """Where a journal ends: of two, the higher one holds every committed entry that the other holds."""

    term: Term
    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"entry {self.index} of term {self.term}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a node has kept: its journal. highest_term: the highest it ever saw. etcd_cluster_id: 0: of none yet."""

    node: NodeId
    journal_id: JournalId
    end: End
    highest_term: Term
    etcd_cluster_id: int


@dataclass(frozen=True, slots=True)
class Rebased:
    """`rebased`: of which etcd this was said, where journals end, and who was named to lead; None: nobody yet. It stays
    when others have led since, for nodes that come later. in_sync: who was, in the `insync` that this replaced.
    mod_revision 0: there is no key."""

    cluster_id: int = 0
    ends: Mapping[NodeId, End] = field(default_factory=dict)
    lead: NodeId | None = None
    in_sync: frozenset[NodeId] = frozenset()
    mod_revision: int = 0

    @property
    def missing(self) -> list[NodeId]:
        """Who was in sync, and has not said where its journal ends."""
        return sorted(self.in_sync - self.ends.keys())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. rebased: what is to be written into etcd, if its mod_revision is still that one; None: etcd
    is right as it is. Then the journal remembers `cluster_id`."""

    cluster_id: int
    rebased: Rebased | None = None


def plan(view: View, found: Rebased, mine: Kept, *, lead: bool) -> Plan:
    """found: `rebased` in the same revision as `view`. lead: `mine` is to lead next. Raises RebaseRefused.

    The transaction compares everything that this rests on."""
    if view.revision <= mine.highest_term:
        raise RebaseRefused(_too_low(view, mine))
    here = found.cluster_id == view.cluster_id  # else it came with the backup, and speaks of another etcd
    led_since = view.leader is not None or (view.tenure is not None and view.tenure.token > found.mod_revision)
    if not lead and here and found.lead is not None and found.mod_revision > mine.highest_term:
        # Who was in sync since then has seen a term from there on; `mine` has not, so this `insync` does not name it.
        if not led_since:
            _require_not_ahead(found.lead, found.ends[found.lead], mine.end)
        return Plan(view.cluster_id)
    if view.leader is not None:
        raise RebaseRefused(_leader_there(view.leader))
    if lead and here and led_since:
        raise RebaseRefused(_led_since(view, mine.node))
    goes_on = here and not led_since  # else it is of an earlier time, which is over
    ends = dict(found.ends) if goes_on else {}
    ends[mine.node] = mine.end
    in_sync = found.in_sync if goes_on else frozenset(view.insync.members)
    if lead:
        _require_highest(ends, mine)
    return Plan(
        view.cluster_id, Rebased(view.cluster_id, ends, mine.node if lead else None, in_sync, found.mod_revision)
    )


def _require_not_ahead(named: NodeId, its_end: End, end: End) -> None:
    """Only before somebody leads. Then it is decided what becomes of what only this journal holds: it is cut if it was
    not committed; and a node that knows that it was refuses to follow."""
    if end > its_end:
        raise RebaseRefused(
            f"{named} was named to lead, and its journal ends at {its_end}; this one ends at {end}, which is higher. "
            "Start no node, and run this here with --lead"
        )


def _require_highest(ends: Mapping[NodeId, End], mine: Kept) -> None:
    end, node = max((end, node) for node, end in ends.items())
    if end > mine.end:
        raise RebaseRefused(
            f"the journal of {node} ends at {end}, this one at {mine.end}, which is lower: run this with --lead on "
            f"{node}. If that journal is lost, and with it what only it held, delete the cluster's key `rebased` with "
            "etcdctl, and run this on every node again"
        )


def _too_low(view: View, mine: Kept) -> str:
    revision, highest = view.revision, mine.highest_term
    bump = max(BUMP_MIN, 10 ** len(str(highest - revision)))
    trades = (
        f"If {view.leader.node}, whose key stands there, does trade on this etcd and is to go on: move this node's "
        "data directory away, so that it fetches everything anew. Else: restore"
        if view.leader is not None
        else "Restore"
    )
    return (
        f"etcd's revision {revision} is not above term {highest}, which this node has seen: its tokens would repeat. "
        f"{trades} the snapshot again: etcdutl snapshot restore --bump-revision {bump} --mark-compacted, with "
        "an --initial-cluster-token that was never used, and run this on every node again"
    )


def _led_since(view: View, mine: NodeId) -> str:
    token, node = (view.tenure.token, view.tenure.node) if view.tenure is not None else (0, "?")
    return (
        f"{node} has led on this etcd since it was rebased, with token {token}: its journal may hold what that of "
        f"{mine} lacks. Stop all nodes and run this on each without --lead first. If every journal that was in sync "
        "since is lost, delete the cluster's key `rebased` with etcdctl before"
    )


def _leader_there(leader: LeaderKey) -> str:
    wait_s = -(-leader.ttl // NS_PER_S) + LEASE_SLACK_S
    return (
        f"{leader.node} leads on this etcd, with token {leader.token}: stop all nodes. If none runs, its key came with "
        f"the backup, and ends with its lease: wait {wait_s} s and run this again"
    )
