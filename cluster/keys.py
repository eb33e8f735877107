"""The keys under `/baton/<cluster>/` and their values, as JSON (DESIGN 4).

A value that does not parse (a hand-made edit, a newer version) never becomes "absent": it is read as a stranger's,
with our own ttl, so that every wait still happens. Touches nothing; `keeper.py` does the talking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .core.ids import Incarnation, JournalId, NodeId, Term
from .core.lease import InSync, LeaderKey, Member, Resigned, Tenure, View

STRANGER = NodeId("?")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawKey:
    """One key as etcd has it."""

    value: bytes
    create_revision: int
    mod_revision: int


class Keys:
    """Names of the keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.prefix = f"/baton/{cluster}/"
        self.leader = self.prefix + "leader"
        self.tenure = self.prefix + "tenure"
        self.resigned = self.prefix + "resigned"
        self.insync = self.prefix + "insync"
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


def dump(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


def load(raw: RawKey | None) -> dict[str, Any] | None:
    """The value as an object; None if there is no key, or it does not hold one."""
    if raw is None:
        return None
    try:
        value = json.loads(raw.value)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read(raw: RawKey | None, make: Callable[[dict[str, Any], RawKey], T], stranger: Callable[[RawKey], T]) -> T | None:
    if raw is None:
        return None
    fields = load(raw)
    if fields is not None:
        try:
            return make(fields, raw)
        except (KeyError, TypeError, ValueError):
            pass  # reported by whoever compares the view with what it expects: the node is "?"
    return stranger(raw)


def view_of(keys: Keys, raw: Mapping[str, RawKey], revision: int, cluster_id: int, own_ttl: int) -> View:
    """The View of these keys. own_ttl (ns): what is assumed of a holder whose value cannot be read."""
    leader = _read(
        raw.get(keys.leader),
        lambda v, k: LeaderKey(
            NodeId(str(v["node"])),
            Incarnation(str(v["incarnation"])),
            str(v["home"]),
            int(v["attempt"]),
            _ttl(v),
            int(v["renewal"]),
            Term(k.create_revision),
            k.mod_revision,
        ),
        lambda k: LeaderKey(STRANGER, Incarnation("?"), "?", 0, own_ttl, 0, Term(k.create_revision), k.mod_revision),
    )
    tenure = _read(
        raw.get(keys.tenure),
        lambda v, k: Tenure(
            NodeId(str(v["node"])), Incarnation(str(v["incarnation"])), str(v["home"]), _ttl(v), Term(k.mod_revision)
        ),
        lambda k: Tenure(STRANGER, Incarnation("?"), "?", own_ttl, Term(k.mod_revision)),
    )
    # An unreadable `resigned` proves nothing: token 0 matches no tenure.
    resigned = _read(
        raw.get(keys.resigned),
        lambda v, k: Resigned(
            Term(int(v["token"])),
            str(v["reason"]),
            str(v["actor"]),
            NodeId(str(v["successor"])) if v.get("successor") else None,
            int(v["at"]),
        ),
        lambda k: Resigned(Term(0), "unreadable", "?", None, 0),
    )
    # An unreadable `insync` names nobody who exists, so nobody leads until a person has looked.
    insync = _read(
        raw.get(keys.insync),
        lambda v, k: InSync({NodeId(str(n)): JournalId(str(j)) for n, j in v["members"].items()}, k.mod_revision),
        lambda k: InSync({STRANGER: JournalId("?")}, k.mod_revision),
    )
    members: dict[NodeId, Member] = {}
    for name, k in raw.items():
        v = load(k) if name.startswith(keys.members) else None
        if v is None:
            continue
        node = NodeId(name[len(keys.members) :])
        try:
            members[node] = Member(
                node,
                Incarnation(str(v["incarnation"])),
                JournalId(str(v.get("journal_id") or "")),
                int(v.get("priority", 100)),
                bool(v.get("never_lead", False)),
                bool(v.get("ready", False)),
            )
        except (KeyError, TypeError, ValueError):
            continue  # a member that cannot be read is not waited for; nothing rests on it
    return View(revision, leader, tenure, resigned, insync or InSync(), members, cluster_id)


def _ttl(v: Mapping[str, Any]) -> int:
    ttl = int(v["ttl_ms"]) * 1_000_000
    if ttl <= 0:
        raise ValueError(ttl)
    return ttl


def unreadable(keys: Keys, raw: Mapping[str, RawKey]) -> Iterable[str]:
    """Names of keys whose value is not an object: for the log and for `doctor`."""
    return [name for name, k in raw.items() if name.startswith(keys.prefix) and load(k) is None]
