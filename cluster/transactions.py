"""What each request of the election writes into etcd, as values (DESIGN 4): the only place that says so.

    request -> tries: transactions; each is sent only if the one before it was refused

Every one of them compares what it rests on, so one that comes late, or twice, does nothing. That is what makes
leadership safe, whatever leases and watches do:

- acquire: `leader` is absent, `tenure` and `insync` are as seen;
- renew, resign, change of `insync`: create_revision(`leader`) is our term;
- evict: mod_revision(`leader`) is the one that stood for a whole ttl;
- rebase: `leader` is absent, and everything that it replaces is as seen.

Pure: `registry.py` sends them and reports what came of it. Read next: `keys.py` (the values), `core/lease.py` (when).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import keys as k
from .core import actions as act
from .core.ids import Instant, JournalId, NodeId, Term
from .core.lease import View
from .core.rebase import Rebased
from .etcd.model import Op, Txn, TxnResult, absent, create_revision, delete, get, mod_revision, put


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes. ttl: ns. grpc, http: where its worker serves; empty until it has said so."""

    node: str
    incarnation: str
    home: str
    ttl: int
    grpc: str = ""
    http: str = ""

    @property
    def _holder(self) -> dict[str, Any]:
        return {"node": self.node, "incarnation": self.incarnation, "home": self.home, "ttl_ms": self.ttl // 1_000_000}

    def leader(self, attempt: int, renewal: int) -> bytes:
        return k.dump(**self._holder, attempt=attempt, renewal=renewal, grpc=self.grpc, http=self.http)

    def tenure(self) -> bytes:
        return k.dump(**self._holder)


class Dates(NamedTuple):
    """What only dates the record of an end; nothing is decided on it.

    at, now: the same moment, in Unix ns and on our own clock. last_sign: Unix ns of our own last sign of life, for a
    resignation; 0: not known. renewal_seen: when the renewal of the leader to be evicted was first seen."""

    at: int
    now: Instant
    last_sign: int = 0
    renewal_seen: Instant | None = None

    @property
    def silent_since(self) -> int:
        """Unix ns of the last sign of the leader to be evicted; 0: not known."""
        return self.at - (self.now - self.renewal_seen) if self.renewal_seen is not None else 0


def tries(keys: k.Keys, me: Identity, request: act.EtcdRequest, dates: Dates) -> tuple[Txn, ...]:
    """In order; DONE is the first that succeeds, REFUSED is when all were refused, and a doubt ends them."""
    match request:
        case act.Acquire():
            return (acquire(keys, me, request),)
        case act.Renew():
            return (renew(keys, me, request),)
        case act.Evict():
            return (evict(keys, me, request, dates),)
        case act.Resign():
            return resign(keys, request, dates)


def acquire(keys: k.Keys, me: Identity, request: act.Acquire) -> Txn:
    """`leader` and `tenure` in one revision, which is the token; `insync` with them, so that whoever changes it later
    has seen this term."""
    return Txn(
        (
            absent(keys.leader),
            mod_revision(keys.tenure) == request.tenure_seen,
            mod_revision(keys.insync) == request.insync_seen,
        ),
        (
            put(keys.leader, me.leader(request.attempt, 0), lease=request.lease_id),
            put(keys.tenure, me.tenure()),
            put(keys.insync, k.dump(members=dict(request.members))),
        ),
    )


def renew(keys: k.Keys, me: Identity, request: act.Renew) -> Txn:
    return Txn(
        (create_revision(keys.leader) == request.token,),
        (put(keys.leader, me.leader(request.attempt, request.renewal), lease=request.lease_id),),
    )


def evict(keys: k.Keys, me: Identity, request: act.Evict, dates: Dates) -> Txn:
    return Txn(
        (mod_revision(keys.leader) == request.mod_revision,),
        (
            delete(keys.leader),
            _resigned(keys, request.token, "evicted", me.node, None, at=dates.at, last_sign=dates.silent_since),
        ),
    )


def resign(keys: k.Keys, request: act.Resign, dates: Dates) -> tuple[Txn, Txn]:
    """The second: the key had vanished and the tenure is still ours. Then nobody has to wait for it."""
    token = request.token
    end = (token, request.reason, request.actor, request.successor)
    resigned = _resigned(keys, *end, at=dates.at, last_sign=dates.last_sign)
    return (
        Txn((create_revision(keys.leader) == token,), (delete(keys.leader), resigned)),
        Txn((absent(keys.leader), mod_revision(keys.tenure) == token), (resigned,)),
    )


def _resigned(
    keys: k.Keys, token: Term, reason: str, actor: str, successor: NodeId | None, *, at: int, last_sign: int
) -> Op:
    """last_sign: of the leader that ends, where RTO starts."""
    value = k.dump(token=token, reason=reason, actor=actor, successor=successor, at=at, last_sign=last_sign)
    return put(keys.resigned, value)


# -- the in-sync set ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InSyncOutcome:
    """outcome: done, refused or unknown; for refused, members and revision are what stands now."""

    outcome: str
    members: dict[str, str]
    revision: int


INSYNC_UNKNOWN = InSyncOutcome("unknown", {}, 0)


def change_insync(keys: k.Keys, term: int, members: Mapping[str, str], expected_revision: int) -> Txn:
    """Only while `term` still leads, and nobody has changed the set since `expected_revision`."""
    return Txn(
        (create_revision(keys.leader) == term, mod_revision(keys.insync) == expected_revision),
        (put(keys.insync, k.dump(members=dict(members))),),
        (get(keys.insync),),
    )


def insync_outcome(members: Mapping[str, str], answer: TxnResult) -> InSyncOutcome:
    """What etcd's answer to `change_insync(..., members, ...)` says."""
    if answer.succeeded:
        return InSyncOutcome("done", dict(members), answer.revision)
    kvs = answer.responses[0].kvs
    stands = k.insync_of(k.RawKey.of(kvs[0]) if kvs else None)
    return InSyncOutcome("refused", {str(n): str(j) for n, j in stands.members.items()}, stands.mod_revision)


# -- an etcd that was restored or replaced -------------------------------------------------------------------


def rebase(keys: k.Keys, me: Identity, journal_id: JournalId, seen: View, to: Rebased) -> Txn:
    """From here on nobody may lead, or with `to.lead`, who is `me`, only this journal: its revision is then the token
    that every later one exceeds. `to.mod_revision` is that of the `rebased` that was seen together with `seen`."""
    members = {to.lead: journal_id} if to.lead is not None else {}
    tenure = [put(keys.tenure, me.tenure())] if to.lead is not None else []
    return Txn(
        (
            absent(keys.leader),
            mod_revision(keys.tenure) == (seen.tenure.token if seen.tenure else 0),
            mod_revision(keys.insync) == seen.insync.mod_revision,
            mod_revision(keys.rebased) == to.mod_revision,
        ),
        (put(keys.rebased, k.rebased_value(to)), put(keys.insync, k.dump(members=members)), *tenure),
    )


# -- the kill latch ----------------------------------------------------------------------------------------


def read_latch(keys: k.Keys, term: int) -> Txn:
    """The latch, for a leader that has armed a gate which had forgotten everything: that gate cannot tell whether it is
    an old leader's arming that comes late, and etcd can."""
    return Txn((create_revision(keys.leader) == term,), (get(keys.halt),))


def latch_found(answer: TxnResult) -> str | None:
    """Why it is set, None: it is not. Of a `read_latch` that succeeded."""
    kvs = answer.responses[0].kvs
    return k.halted_of(k.RawKey.of(kvs[0]) if kvs else None)
