"""Who may campaign, evict, renew and act: all arithmetic on times handed in (DESIGN 4).

The one idea: a key that merely vanished proves nothing. A leader acts until `sent_at + ttl - margin` of the last
renewal it *sent and got confirmed*, by its own clock. Others may take over only when a compare in etcd, or a full
`ttl` of their own clock since they first saw the key absent, proves that this moment has passed.

    act_until(leader) = sent_at + ttl - margin      sent_at is read before the request leaves
    takeover          >= ttl after absence was first seen, or after a compare proved no renewal came between

With clocks that drift at most `d` against each other, `margin >= ttl * 2d + send_slack` keeps the first before the
second. Pure. Read next: `election.py`, which asks these questions at the right moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .ids import NS_PER_S, Incarnation, Instant, JournalId, NodeId, Term

TTL_FLOOR_NS = 3 * NS_PER_S // 10
"""Below this, a garbage collection or a slow fsync would cost leadership."""


@dataclass(frozen=True, slots=True)
class LeaseRules:
    """All in nanoseconds but `clock_drift_max`, a fraction (0.05 = 5 %).

    ttl: what others grant the leader. margin: how much sooner it stops. send_slack: the part of the margin kept for
    the way from the last permit check to the socket.
    """

    ttl: int
    margin: int
    renew_interval: int
    clock_drift_max: float
    send_slack: int

    def act_until(self, sent_at: Instant) -> Instant:
        """Until when a leader may act whose renewal left at `sent_at` and was confirmed."""
        return Instant(sent_at + self.ttl - self.margin)

    @property
    def pause_budget(self) -> int:
        """A longer gap between two ticks means "I was paused". Half of what a renewal buys."""
        return (self.ttl - self.margin) // 2

    def problems(self) -> list[str]:
        """The relations that do not hold, each with both values; empty when all hold."""

        def s(x: float) -> str:
            return f"{x / NS_PER_S:g} s"

        found = []
        if self.ttl < TTL_FLOOR_NS:
            found.append(f"lease.ttl_s = {s(self.ttl)} must be at least {s(TTL_FLOOR_NS)}")
        if self.renew_interval <= 0:
            found.append(f"lease.renew_interval_s = {s(self.renew_interval)} must be above 0 s")
        if self.clock_drift_max < 0 or self.send_slack < 0:
            found.append(
                f"lease.clock_drift_max = {self.clock_drift_max:g} and lease.send_slack_s = {s(self.send_slack)} "
                "must not be negative: they would shrink the margin"
            )
        if not self.renew_interval * 3 < self.ttl - self.margin:
            found.append(
                f"lease.renew_interval_s * 3 = {s(self.renew_interval * 3)} must be below "
                f"lease.ttl_s - lease.margin_s = {s(self.ttl - self.margin)}, so that two lost renewals are survived"
            )
        needed = self.ttl * 2 * self.clock_drift_max + self.send_slack
        if not self.margin >= needed:  # so put, a drift that is not a number does not pass
            found.append(
                f"lease.margin_s = {s(self.margin)} must be at least "
                f"ttl_s * 2 * clock_drift_max + send_slack_s = {s(needed)}, "
                "or the old leader may still act when the next one does"
            )
        return found


# -- what stands in etcd -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaderKey:
    """`leader`. token: its create_revision. home: which data directory (and so which lock) its node runs on."""

    node: NodeId
    incarnation: Incarnation
    home: str
    attempt: int
    ttl: int
    renewal: int
    token: Term
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Tenure:
    """`tenure`: written in the transaction that creates `leader`, so its mod_revision is the token."""

    node: NodeId
    incarnation: Incarnation
    home: str
    ttl: int
    token: Term


@dataclass(frozen=True, slots=True)
class Resigned:
    """`resigned`: the token that ended properly. at: Unix ns when the end was noticed, for the record only."""

    token: Term
    reason: str
    actor: str
    successor: NodeId | None
    at: int


@dataclass(frozen=True, slots=True)
class InSync:
    """`insync`: the journals that hold every committed entry. mod_revision 0 and no members: there is no key."""

    members: Mapping[NodeId, JournalId] = field(default_factory=dict)
    mod_revision: int = 0

    def names(self, node: NodeId, journal_id: JournalId) -> bool:
        return self.members.get(node) == journal_id


@dataclass(frozen=True, slots=True)
class Member:
    """`members/<node>`: what a candidate needs to know of the others, to wait its turn."""

    node: NodeId
    incarnation: Incarnation
    journal_id: JournalId
    priority: int
    never_lead: bool
    ready: bool


@dataclass(frozen=True, slots=True)
class View:
    """The cluster's keys at one etcd revision. The only thing that is ever decided on. halted: why the kill latch is
    set; None: it is not."""

    revision: int
    leader: LeaderKey | None = None
    tenure: Tenure | None = None
    resigned: Resigned | None = None
    insync: InSync = field(default_factory=InSync)
    members: Mapping[NodeId, Member] = field(default_factory=dict)
    cluster_id: int = 0
    halted: str | None = None

    @property
    def ended_properly(self) -> bool:
        """The last tenure wrote, or had written for it, that it is over."""
        return self.tenure is not None and self.resigned is not None and self.resigned.token == self.tenure.token


@dataclass(slots=True)
class Sightings:
    """When this node, by its own clock, first saw things. Survives nothing: a new process starts to watch anew."""

    renewal: tuple[int, Instant] | None = None  # (mod_revision of leader, first seen)
    absence: tuple[Term, Instant] | None = None  # (token of the last tenure, first seen without leader)

    def note(self, view: View, now: Instant) -> None:
        """Call with every view, with a `now` read after the view arrived."""
        if view.leader is not None:
            self.absence = None
            if self.renewal is None or self.renewal[0] != view.leader.mod_revision:
                self.renewal = (view.leader.mod_revision, now)
            return
        self.renewal = None
        token = view.tenure.token if view.tenure else Term(0)
        if self.absence is None or self.absence[0] != token:
            self.absence = (token, now)


def acquire_from(view: View, seen: Sightings) -> Instant | None:
    """From when this view allows an acquire; None: not while it stands. Instant(0): at once.

    Rules 1 to 3 of DESIGN 4. The transaction compares everything they rest on, so a view that has become old
    costs a failed try, never two leaders.
    """
    if view.leader is not None:
        return None
    if view.tenure is None or view.ended_properly:
        return Instant(0)
    if seen.absence is None or seen.absence[0] != view.tenure.token:
        return None  # not noted yet: the wait has not begun
    return Instant(seen.absence[1] + view.tenure.ttl)


def evict_from(view: View, seen: Sightings) -> Instant | None:
    """From when the leader in this view may be evicted: its own ttl after this renewal of it was first seen.

    The eviction compares mod_revision, which proves that no renewal came between; and the renewal was sent before
    it was seen, so its `act_until` has passed.
    """
    if view.leader is None or seen.renewal is None or seen.renewal[0] != view.leader.mod_revision:
        return None
    return Instant(seen.renewal[1] + view.leader.ttl)


def rank(view: View, me: NodeId) -> int:
    """My place in the queue of candidates, from 0: the successor asked for, then priority, then name; the node
    that led last goes last. Only a courtesy, so that the best one usually wins at the first try."""
    last = view.tenure.node if view.tenure else None
    successor = view.resigned.successor if view.resigned and view.ended_properly else None

    def place(m: Member) -> tuple[bool, bool, int, str]:
        return (m.node != successor, m.node == last and m.node != successor, -m.priority, m.node)

    queue = sorted(
        (
            m
            for m in view.members.values()
            if m.ready and not m.never_lead and (not view.insync.members or view.insync.names(m.node, m.journal_id))
        ),
        key=place,
    )
    for i, m in enumerate(queue):
        if m.node == me:
            return i
    return len(queue)


def choose_successor(view: View, me: NodeId, wanted: NodeId | None) -> tuple[NodeId | None, str]:
    """Who `me` may hand over to: `wanted`, or the best when None. Without one, the reason, fit to be shown."""
    able = [
        m
        for m in view.members.values()
        if m.node != me and m.ready and not m.never_lead and view.insync.names(m.node, m.journal_id)
    ]
    able.sort(key=lambda m: (-m.priority, m.node))
    if wanted is None:
        return (able[0].node, "") if able else (None, "no other node is in sync and ready to lead")
    if any(m.node == wanted for m in able):
        return wanted, ""
    m = view.members.get(wanted)
    if m is None:
        known = ", ".join(sorted(view.members)) or "none"
        return None, f"no live member is called {wanted!r} (members: {known})"
    if m.never_lead:
        return None, f"{wanted} is tagged never_lead"
    if not m.ready:
        return None, f"{wanted} is not ready"
    return None, f"{wanted} is not in sync; wait until it has caught up"
