"""The in-sync set and the commit index: what the leader may call committed, and who may lead after it.

    commit = min(durable index over everyone who may be named by `insync` in etcd, the leader included)

A new leader is whoever wins the lease among those that `insync` names. So the one invariant of this file:

    every journal that etcd's `insync` names, at any instant, holds every entry up to `commit`

It follows from counting three groups, the union of which is never smaller than what etcd may say:
- confirmed: the last state of `insync` that is certain;
- proposed: the change under way, from the moment it is asked for until its fate is certain;
- joining: those that are about to be proposed, until they have everything that is committed.

Why a proposed addition counts at once (the lost reply):
1. In sync: A (leader). B has caught up to 100 = commit; A proposes {A, B}.
2. etcd carries it out; the reply is lost. B may now win the lease.
3. A commits 101 with its own disk alone, "since B is not confirmed".
4. A dies; B leads without 101, and an order that was sent is forgotten.
And why a removal counts only once confirmed: the same story backwards, with B cut off at step 3.

Why what was inherited is committed only together with an entry of our own term (Raft, 5.4.2): whoever holds a committed
entry then ends in the term that committed it, or in a later one. Of any journals that are left, the one that ends
highest holds it, also where `insync` is lost and nothing else can tell (`rebase.py`).

Why an unknown answer is settled only by a *higher* revision, never by reading the old state again: the lost request
may still be on its way, and its compare would still hold. So the very same change is proposed again until one
attempt is answered for certain: at most one of them can succeed, since all compare the same revision.

The keeper's duty, without which none of this holds: the transaction compares mod_revision(`insync`) with
`expected_revision` *and* create_revision(`leader`) with our term.

Pure. Time is handed in. Read next: `log.py` (what an acknowledgement stands for), `lease.py` (who may campaign).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from .errors import InvariantViolation
from .ids import NS_PER_S, Instant, JournalId, LogIndex, NodeId, Term, ns

Members = Mapping[NodeId, JournalId]
Policy = Literal["trade", "halt"]


@dataclass(frozen=True, slots=True)
class Limits:
    """All in nanoseconds. `insync` is the one that people set (`insync_timeout_s`); the rest follows from it.

    insync: a member may lack an entry for this long after our own disk has it.
    silence: a member that says nothing, while nothing is asked of it, is out after this.
    gone: a member whose connection broke may come back within this while something waits.
    join: a follower counts as caught up when it is at most this far behind.
    opening: for so long after a term began nobody is taken in, unless there is no other, or fewer than are required:
    every etcd member's disk would sync for it, and every order wait for one node more, just when trading resumes.
    retry: between two attempts at a change whose outcome is unknown. answer: no answer within this is "unknown".
    """

    insync: int = ns(0.25)
    silence: int = ns(0.5)
    gone: int = ns(0.05)
    join: int = ns(0.05)
    opening: int = ns(0.1)
    retry: int = ns(0.05)
    answer: int = ns(1.0)

    @classmethod
    def for_timeout(cls, insync_timeout_s: float) -> Limits:
        t = ns(insync_timeout_s)
        return cls(insync=t, silence=2 * t, gone=t // 5, join=t // 5, opening=2 * t // 5)


# -- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommitAdvanced:
    """Everything up to `index` is committed. Only ever rises."""

    index: LogIndex


@dataclass(frozen=True, slots=True)
class ProposeChange:
    """Put `insync` = `members` if its mod_revision is `expected_revision` and our term still leads; answer with
    done(), refused() or unknown(). why: for the log, one clause per member that comes or goes."""

    members: Members
    expected_revision: int
    why: str


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """`insync` is now certainly this."""

    members: Members
    revision: int


@dataclass(frozen=True, slots=True)
class Protection:
    """standbys: in-sync members besides the leader that are not about to be removed. unprotected: fewer than
    `required`. may_trade: the policy's answer. Look at it again right before each send: a standby may be lost
    between the intent and its commit."""

    standbys: int
    required: int
    unprotected: bool
    may_trade: bool


@dataclass(frozen=True, slots=True)
class Deposed:
    """`insync` was rewritten without us: another leads. Nothing is committed any more."""

    why: str


Action = CommitAdvanced | ProposeChange | MembersChanged | Protection | Deposed


# -- state --------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    node: NodeId
    journal: JournalId


@dataclass(slots=True)
class _Peer:
    """One journal on another node. durable: as acknowledged in this term, hence equal to our log; 0 before that.

    patience_ends: only while not connected: until then it may still come (back).
    """

    member: Member
    durable: LogIndex
    heard_at: Instant
    connected: bool
    patience_ends: Instant


@dataclass(slots=True)
class _Strikes:
    """How often a node was dropped lately. The first is free; then it waits 1, 2, 4 ... 30 s before it counts again,
    because each time it is lost costs every order one timeout."""

    count: int = 0
    last_at: Instant = Instant(0)

    FORGIVEN_AFTER = 60 * NS_PER_S

    def add(self, now: Instant) -> None:
        self.count = 1 if now - self.last_at > self.FORGIVEN_AFTER else self.count + 1
        self.last_at = now

    def hold_ends(self) -> int:
        return self.last_at + min(2 ** (self.count - 2), 30) * NS_PER_S if self.count >= 2 else 0


@dataclass(slots=True)
class _Change:
    members: Members
    expected_revision: int
    why: str
    ask_again_at: Instant


class Commitment:
    """The leader's side of the in-sync set, for one term. Every event returns the actions to carry out, in order.

    Not thread-safe, never waits. Call tick() at least every fifth of the shortest limit.
    """

    def __init__(
        self,
        me: Member,
        term: Term,
        members: Members,
        revision: int,
        log_end: LogIndex,
        commit: LogIndex,
        now: Instant,
        *,
        limits: Limits | None = None,
        min_standbys: int = 1,
        unprotected: Policy = "trade",
        presumed_gone: Collection[NodeId] = (),
    ) -> None:
        """members, revision: `insync` as it stood when the lease was won. log_end: our last entry, durable.

        presumed_gone: nodes known to be dead (the evicted leader, say); they get no time to attach.
        Raises InvariantViolation if `insync` does not name our journal: then we must not lead.
        """
        if members.get(me.node) != me.journal:
            raise InvariantViolation(
                f"insync names {dict(members)}, not {me.node} with journal {me.journal}: it must not lead"
            )
        self.me, self.term, self.commit = me, term, commit
        self.limits = limits or Limits()
        self._required, self._policy = min_standbys, unprotected
        self._members: Members = MappingProxyType(dict(members))
        self._revision = revision
        self._opening_ends = Instant(now + self.limits.opening)
        self._change: _Change | None = None
        self._joining: set[Member] = set()
        self._over = False
        self._local = self._inherited = log_end
        self._marks: list[tuple[LogIndex, Instant]] = [(log_end, now)]  # (index, when our disk had up to it)
        self._peers: dict[Member, _Peer] = {}
        self._strikes: dict[NodeId, _Strikes] = {}
        self._last_tick = now
        self._last_forgiven = Instant(now - 5 * self.limits.insync)  # never yet
        self._protection: Protection | None = None
        for node, journal in members.items():
            patience = Instant(now if node in presumed_gone else now + self.limits.insync)
            self._peer(Member(node, journal), now).patience_ends = patience
        del self._peers[me]
        self._counted: list[_Peer] = []
        self._recount(now)

    # -- what can be read -----------------------------------------------------------------------------------

    @property
    def members(self) -> Members:
        """The last certain state of `insync`."""
        return self._members

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def change_under_way(self) -> bool:
        return self._change is not None

    @property
    def protection(self) -> Protection:
        standbys = sum(1 for m in self._confirmed() if m != self.me and not self._doomed(m))
        short = standbys < self._required
        return Protection(standbys, self._required, short, not short or self._policy == "trade")

    def durable_of(self, member: Member) -> LogIndex:
        """The highest index that `member` acknowledged in this term; 0 if none is remembered."""
        peer = self._peers.get(member)
        return peer.durable if peer else LogIndex(0)

    # -- events ---------------------------------------------------------------------------------------------

    def start(self, now: Instant) -> list[Action]:
        """Once, before any other event: drop who is presumed gone, say how protected we are."""
        return self._decide(now)

    def local_durable(self, index: LogIndex, now: Instant) -> list[Action]:
        """Our own disk has everything up to `index`."""
        if index > self._local:
            self._local = index
            self._mark(index, now)
        # The commit index alone can move here; who is late is judged by tick(), 12,000 times a second is too often.
        return self._advance()

    def acked(self, member: Member, durable: LogIndex, now: Instant) -> list[Action]:
        """`member` is connected and holds our log up to `durable` on disk. The caller has checked the ack's term."""
        peer = self._peer(member, now)
        news = not peer.connected or self._standing_changes(peer)
        peer.connected, peer.heard_at = True, now
        peer.durable = max(peer.durable, durable)
        return self._decide(now) if news else self._advance()

    def gone(self, member: Member, now: Instant) -> list[Action]:
        """The connection of `member` ended."""
        peer = self._peers.get(member)
        if peer is None or not peer.connected:
            return []
        peer.connected, peer.patience_ends = False, Instant(now + self.limits.gone)
        return self._decide(now)

    def tick(self, now: Instant) -> list[Action]:
        """Time passed. Also where a pause of *this* process is noticed: while we were away we heard nobody, so
        that time counts against nobody; their acknowledgements are waiting in our socket buffers. But not again
        and again: a leader that is always late would never drop anyone, and nothing would be committed."""
        away = now - self._last_tick
        self._last_tick = now
        if away > self.limits.insync // 2 and now - self._last_forgiven > 4 * self.limits.insync:
            self._last_forgiven = now
            self._forgive(away)
        if self._change is not None and now >= self._change.ask_again_at and not self._over:
            self._change.ask_again_at = Instant(now + self.limits.answer)
            return [self._ask(self._change), *self._decide(now)]
        return self._decide(now)

    def done(self, revision: int, now: Instant) -> list[Action]:
        """An attempt at the change succeeded; `insync` has this mod_revision now."""
        if self._change is None or revision <= self._revision:
            return []  # the late answer of a change that is settled already
        return self._adopt(self._change.members, revision, now)

    def refused(self, members: Members, revision: int, now: Instant) -> list[Action]:
        """The compare failed, and this is what stands. It may be our own earlier attempt, or another leader's."""
        if revision <= self._revision:
            return self.unknown(now)  # proves nothing about attempts still under way
        return self._adopt(members, revision, now)

    def unknown(self, now: Instant) -> list[Action]:
        """No answer, or one that proves nothing. Everything stays counted; the same change is asked for again."""
        if self._change is not None:
            self._change.ask_again_at = Instant(now + self.limits.retry)
        return []

    def close(self) -> None:
        """The term is over for us: nothing is committed any more."""
        self._over = True

    # -- inside ---------------------------------------------------------------------------------------------

    def _peer(self, member: Member, now: Instant) -> _Peer:
        peer = self._peers.get(member)
        if peer is None:
            peer = self._peers[member] = _Peer(member, LogIndex(0), now, False, now)
        return peer

    def _confirmed(self) -> list[Member]:
        return [Member(n, j) for n, j in self._members.items()]

    def _recount(self, now: Instant) -> None:
        """Whose acknowledgement a commit needs: confirmed, proposed and joining, without ourselves."""
        proposed = self._change.members.items() if self._change else ()
        members = {*self._confirmed(), *(Member(n, j) for n, j in proposed), *self._joining} - {self.me}
        self._counted = [self._peer(m, now) for m in sorted(members)]

    def _advance(self) -> list[Action]:
        index = min((p.durable for p in self._counted), default=self._local)
        index = min(index, self._local)
        if index <= max(self.commit, self._inherited) or self._over:
            return []
        self.commit = index
        return [CommitAdvanced(index)]

    def _decide(self, now: Instant) -> list[Action]:
        if self._over:
            return []
        if self._change is None:
            self._update_joining(now)
        actions = self._advance()
        if self._change is None:
            actions += self._propose(now)
        self._forget(now)
        protection = self.protection
        if protection != self._protection:
            self._protection = protection
            actions.append(protection)
        return actions

    def _propose(self, now: Instant) -> list[Action]:
        out = {m: why for m in self._confirmed() if m != self.me and (why := self._why_out(m, now))}
        ready = {m for m in self._joining if self._has_everything(m)}
        if not out and not ready:
            return []
        for m in out:
            self._strikes.setdefault(m.node, _Strikes()).add(now)
        kept = {n: j for n, j in self._members.items() if Member(n, j) not in out}
        reasons = [f"{m.node} out: {why}" for m, why in out.items()]
        reasons += [f"{m.node} in: caught up" for m in sorted(ready)]
        members = MappingProxyType(kept | {m.node: m.journal for m in sorted(ready) if m.node not in kept})
        self._change = _Change(members, self._revision, "; ".join(reasons), Instant(now + self.limits.answer))
        self._recount(now)
        return [self._ask(self._change)]

    def _has_everything(self, member: Member) -> bool:
        """Whether `member` holds whatever may be committed. That is more than what *we* know to be committed: all that
        we inherited from earlier terms may be, although the news had not reached us when its leader died.

        1. A commits 1-10 with B. B knows of none of it yet. A dies, B leads with commit = 0, log_end = 10.
        2. C attaches with an empty journal. Measured against 0 it would be complete, and named by `insync`.
        3. B dies, C leads without 1-10.
        """
        return self._peers[member].durable >= max(self.commit, self._inherited)

    @staticmethod
    def _ask(change: _Change) -> ProposeChange:
        return ProposeChange(change.members, change.expected_revision, change.why)

    def _adopt(self, members: Members, revision: int, now: Instant) -> list[Action]:
        self._members, self._revision, self._change = MappingProxyType(dict(members)), revision, None
        if members.get(self.me.node) != self.me.journal:
            self._over = True
            return [Deposed(f"insync at revision {revision} names {dict(members)}, not this journal")]
        self._joining -= set(self._confirmed())
        self._recount(now)
        return [MembersChanged(self._members, revision), *self._decide(now)]

    # -- who is late, who is ready --------------------------------------------------------------------------

    def _mark(self, index: LogIndex, now: Instant) -> None:
        """Remember when our disk had `index`. Coarse (1/32 of the timeout, on the early side) and bounded: marks
        older than the timeout all mean the same, "late"."""
        marks, t = self._marks, self.limits.insync
        if marks and now - marks[-1][1] < t // 32:
            marks[-1] = (index, marks[-1][1])
        else:
            marks.append((index, now))
        while len(marks) > 1 and marks[1][1] <= now - t:
            marks[1] = (marks[1][0], marks[0][1])
            del marks[0]

    def _waiting_since(self, durable: LogIndex) -> Instant | None:
        """When our own disk first had an entry above `durable`; None if it has none. A member is measured against
        our disk, not against the clock: when the leader's own disk stalls, nobody else is to blame."""
        if durable >= self._local:
            return None
        at = bisect_right(self._marks, durable, key=lambda mark: mark[0])
        return self._marks[at][1]

    def _why_out(self, member: Member, now: Instant) -> str | None:
        """Why a confirmed member must go; None if it may stay."""
        peer, limit = self._peers[member], self.limits
        waiting = self._waiting_since(peer.durable)
        if self._replaced(member):
            return "it came back with another journal"
        if not peer.connected:
            if waiting is not None and now >= peer.patience_ends:
                return "not connected"
        elif waiting is not None and now - waiting > limit.insync:
            return f"{(now - waiting) / 1e6:.0f} ms behind"
        if now - peer.heard_at > limit.silence:
            return f"silent for {(now - peer.heard_at) / 1e6:.0f} ms"
        return None

    def _replaced(self, member: Member) -> bool:
        return any(p.connected and p.member.node == member.node and p.member != member for p in self._peers.values())

    def _doomed(self, member: Member) -> bool:
        return self._change is not None and self._change.members.get(member.node) != member.journal

    def _standing_changes(self, peer: _Peer) -> bool:
        """Whether an acknowledgement of `peer` may lead to a decision before the next tick: a joiner's may."""
        return self._change is None and self._members.get(peer.member.node) != peer.member.journal

    def _update_joining(self, now: Instant) -> None:
        before = set(self._joining)
        opening = now < self._opening_ends and self.protection.standbys > 0 and not self.protection.unprotected
        for peer in self._peers.values():
            member = peer.member
            if self._members.get(member.node) is not None:
                continue  # a member already, or its old journal has to leave first
            waiting = self._waiting_since(peer.durable)
            behind = 0 if waiting is None else now - waiting
            if member in self._joining:
                if not peer.connected or behind > self.limits.insync // 2:
                    self._joining.discard(member)  # free: etcd has not been asked yet
                    self._strikes.setdefault(member.node, _Strikes()).add(now)
            elif not opening and peer.connected and behind <= self.limits.join and now >= self._hold(member.node):
                # From here on commits wait for it, so that it can reach the commit index while we go on writing.
                self._joining.add(member)
        if self._joining != before:
            self._recount(now)

    def _hold(self, node: NodeId) -> int:
        strikes = self._strikes.get(node)
        return strikes.hold_ends() if strikes else 0

    def _forget(self, now: Instant) -> None:
        """Drop journals that are neither counted nor connected, so that restarts with new ids do not pile up."""
        counted = {p.member for p in self._counted}
        for m in [m for m, p in self._peers.items() if m not in counted and not p.connected]:
            del self._peers[m]

    def _forgive(self, away: int) -> None:
        for peer in self._peers.values():
            peer.heard_at = Instant(peer.heard_at + away)
            peer.patience_ends = Instant(peer.patience_ends + away)
        self._marks = [(i, Instant(at + away)) for i, at in self._marks]
