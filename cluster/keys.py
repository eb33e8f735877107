"""The keys under `/baton/<cluster>/` and their values, as JSON (DESIGN 4).

A value that does not parse (a hand-made edit, a newer version) never becomes "absent": it is read as a stranger's,
with our own ttl, so that every wait still happens. Touches nothing; `keeper.py` does the talking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .core.ids import Incarnation, JournalId, LogIndex, NodeId, Term
from .core.lease import InSync, LeaderKey, Member, Resigned, Tenure, View
from .core.rebase import End, Rebased

if TYPE_CHECKING:
    from .etcd.model import KeyValue

STRANGER = NodeId("?")
VALUE_MAX = 32 * 1024
"""Bytes; ten times what Baton writes. What is longer was written by somebody else, and is unreadable."""
T = TypeVar("T")
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


class RawKey(NamedTuple):
    """One key as etcd has it."""

    value: bytes
    create_revision: int
    mod_revision: int

    @classmethod
    def of(cls, kv: KeyValue) -> RawKey:
        return cls(kv.value, kv.create_revision, kv.mod_revision)

    @property
    def fields(self) -> dict[str, Any] | None:
        """The value as an object, not to be changed; None: it does not hold one."""
        return _parsed(self.value) if len(self.value) <= VALUE_MAX else None


# Several look at each value that changed, one after the other, and at those of the members all the time.
@lru_cache(maxsize=128)
def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class SwitchoverRequest:
    """`control/switchover`: left by any node, taken by whoever leads. target None: whoever is best. at: Unix ns."""

    id: str
    target: NodeId | None
    actor: str
    at: int
    mod_revision: int


class Keys:
    """Names of the keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.prefix = f"/baton/{cluster}/"
        self.leader = self.prefix + "leader"
        self.tenure = self.prefix + "tenure"
        self.resigned = self.prefix + "resigned"
        self.insync = self.prefix + "insync"
        self.rebased = self.prefix + "rebased"
        self.halt = self.prefix + "halt"
        self.members = self.prefix + "members/"
        self.history = self.prefix + "history/"
        self.switchover = self.prefix + "control/switchover"
        self.answers = self.prefix + "control/answers/"

    def member(self, node: str) -> str:
        return self.members + node

    def history_of(self, token: int) -> str:
        return f"{self.history}{token:020d}"  # so that they sort

    def answer(self, request_id: str) -> str:
        return self.answers + request_id


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def dump(**fields: Any) -> bytes:
    return _encode(fields).encode()


def load(raw: RawKey | None) -> dict[str, Any] | None:
    """The value as an object; None if there is no key, or it does not hold one."""
    return raw.fields if raw is not None else None


# What a value of the wrong shape raises below: a list where an object is wanted, Infinity where a number is, ...
_WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)

_Make = Callable[[dict[str, Any], RawKey], T]


def _read(raw: RawKey, make: _Make[T]) -> T | None:
    """None: it does not hold what it should."""
    fields = load(raw)
    if fields is None:
        return None
    try:
        return make(fields, raw)
    except _WRONG_SHAPE:
        return None


def _ttl(v: Mapping[str, Any]) -> int:
    ttl = int(v["ttl_ms"]) * 1_000_000
    if ttl <= 0:
        raise ValueError(ttl)
    return ttl


def _leader(v: dict[str, Any], raw: RawKey) -> LeaderKey:
    return LeaderKey(
        NodeId(str(v["node"])),
        Incarnation(str(v["incarnation"])),
        str(v["home"]),
        int(v["attempt"]),
        _ttl(v),
        int(v["renewal"]),
        Term(raw.create_revision),
        raw.mod_revision,
    )


def _tenure(v: dict[str, Any], raw: RawKey) -> Tenure:
    return Tenure(
        NodeId(str(v["node"])), Incarnation(str(v["incarnation"])), str(v["home"]), _ttl(v), Term(raw.mod_revision)
    )


def _resigned(v: dict[str, Any], raw: RawKey) -> Resigned:
    return Resigned(
        Term(int(v["token"])),
        str(v["reason"]),
        str(v["actor"]),
        NodeId(str(v["successor"])) if v.get("successor") else None,
        int(v["at"]),
    )


def _insync(v: dict[str, Any], raw: RawKey) -> InSync:
    return InSync({NodeId(str(n)): JournalId(str(j)) for n, j in v["members"].items()}, raw.mod_revision)


def _switchover(v: dict[str, Any], raw: RawKey) -> SwitchoverRequest:
    target = NodeId(str(v["target"])) if v.get("target") else None
    if not _REQUEST_ID.fullmatch(str(v["id"])):  # it becomes part of a key
        raise ValueError(v["id"])
    return SwitchoverRequest(str(v["id"]), target, str(v.get("actor") or ""), int(v["at"]), raw.mod_revision)


def _member(v: dict[str, Any], node: NodeId) -> Member:
    return Member(
        node,
        Incarnation(str(v["incarnation"])),
        JournalId(str(v.get("journal_id") or "")),
        int(v.get("priority", 100)),
        bool(v.get("never_lead", False)),
        bool(v.get("ready", False)),
    )


def insync_of(raw: RawKey | None) -> InSync:
    """An unreadable `insync` names nobody who exists, so nobody leads until a person has looked."""
    if raw is None:
        return InSync()
    return _read(raw, _insync) or InSync({STRANGER: JournalId("?")}, raw.mod_revision)


def _rebased(v: dict[str, Any], raw: RawKey) -> Rebased:
    ends = {NodeId(str(n)): End(Term(int(term)), LogIndex(int(index))) for n, (term, index) in v["ends"].items()}
    lead = NodeId(str(v["lead"])) if v["lead"] is not None else None
    if lead is not None and lead not in ends:
        raise ValueError(lead)
    in_sync = frozenset(NodeId(str(n)) for n in v["in_sync"])
    return Rebased(int(v["etcd"], 16), ends, lead, in_sync, raw.mod_revision)


def rebased_of(raw: RawKey | None) -> Rebased:
    """An unreadable `rebased` speaks of no etcd: whatever it said has to be said again."""
    if raw is None:
        return Rebased()
    return _read(raw, _rebased) or Rebased(mod_revision=raw.mod_revision)


def rebased_value(rebased: Rebased) -> bytes:
    ends = {str(node): list(end) for node, end in rebased.ends.items()}
    return dump(etcd=f"{rebased.cluster_id:x}", ends=ends, lead=rebased.lead, in_sync=sorted(rebased.in_sync))


def _halt(v: dict[str, Any], _raw: RawKey) -> str:
    return str(v["reason"]) or "no reason given"


def halted_of(raw: RawKey | None) -> str | None:
    """Why the kill latch is set; None: it is not. An unreadable one counts as set: somebody wanted it to be."""
    return None if raw is None else _read(raw, _halt) or "the halt key in etcd is unreadable"


def switchover_of(raw: RawKey | None) -> SwitchoverRequest | None:
    return _read(raw, _switchover) if raw is not None else None


def view_of(keys: Keys, raw: Mapping[str, RawKey], revision: int, cluster_id: int, own_ttl: int) -> View:
    """The View of these keys. own_ttl (ns): what is assumed of a holder whose value cannot be read."""
    tenure = resigned = None
    if (r := raw.get(keys.tenure)) is not None:
        tenure = _read(r, _tenure) or Tenure(STRANGER, Incarnation("?"), "?", own_ttl, Term(r.mod_revision))
    if (r := raw.get(keys.resigned)) is not None:
        # An unreadable `resigned` proves nothing: token 0 matches no tenure.
        resigned = _read(r, _resigned) or Resigned(Term(0), "unreadable", "?", None, 0)
    leader = _leader_of(raw.get(keys.leader), own_ttl)
    members: dict[NodeId, Member] = {}
    for name, r in raw.items():
        if name.startswith(keys.members):
            _note_member(members, keys, name, r)
    insync, halted = insync_of(raw.get(keys.insync)), halted_of(raw.get(keys.halt))
    return View(revision, leader, tenure, resigned, insync, members, cluster_id, halted)


def view_after(
    before: View,
    changed: Iterable[str],
    keys: Keys,
    raw: Mapping[str, RawKey],
    revision: int,
    cluster_id: int,
    own_ttl: int,
) -> View:
    """What `view_of` says of these keys, if it said `before` before the keys `changed` were written or deleted.

    Every renewal, and what every member says each second, comes this way to every keeper; the history alone may be a
    thousand keys that did not change."""
    leader, members = before.leader, before.members
    for name in changed:
        if name == keys.leader:
            leader = _leader_of(raw.get(name), own_ttl)
        elif name.startswith(keys.members):
            members = {**members}
            _note_member(members, keys, name, raw.get(name))
        elif not name.startswith((keys.history, keys.answers)):  # of which a View says nothing
            return view_of(keys, raw, revision, cluster_id, own_ttl)
    return replace(before, revision=revision, leader=leader, members=members, cluster_id=cluster_id)


def _leader_of(raw: RawKey | None, own_ttl: int) -> LeaderKey | None:
    if raw is None:
        return None
    return _read(raw, _leader) or LeaderKey(
        STRANGER, Incarnation("?"), "?", 0, own_ttl, 0, Term(raw.create_revision), raw.mod_revision
    )


def _note_member(members: dict[NodeId, Member], keys: Keys, name: str, raw: RawKey | None) -> None:
    """One that cannot be read is not waited for; nothing rests on it."""
    member = _read(raw, _member_named(keys, name)) if raw is not None else None
    if member is not None:
        members[member.node] = member
    else:
        members.pop(NodeId(name[len(keys.members) :]), None)


def _member_named(keys: Keys, name: str) -> _Make[Member]:
    return lambda v, _raw: _member(v, NodeId(name[len(keys.members) :]))


def readable(keys: Keys, name: str, raw: RawKey) -> bool:
    """Whether the key `name` holds what a Baton would have written there."""
    if name.startswith(keys.members):
        return _read(raw, _member_named(keys, name)) is not None
    makers: dict[str, _Make[Any]] = {
        keys.leader: _leader,
        keys.tenure: _tenure,
        keys.resigned: _resigned,
        keys.insync: _insync,
        keys.rebased: _rebased,
        keys.halt: _halt,
        keys.switchover: _switchover,
    }
    return _read(raw, makers.get(name, lambda v, _raw: v)) is not None


def unreadable(keys: Keys, raw: Mapping[str, RawKey]) -> list[str]:
    """Names of keys that hold what no Baton wrote: for the log and for `doctor`."""
    return [name for name, r in raw.items() if name.startswith(keys.prefix) and not readable(keys, name, r)]
