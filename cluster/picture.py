"""What a keeper sees of its cluster, as JSON-able values: for people, and for the worker to find its peers.

Nothing is decided on it, and whatever somebody wrote into etcd by hand, making it raises nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import keys as k
from .core.ids import NS_PER_S, Instant
from .core.lease import View

HISTORY_SHOWN = 20
ADDRESS_MAX = 256


def cluster_picture(
    keys: k.Keys,
    raw: Mapping[str, k.RawKey],
    view: View,
    *,
    act_until: Instant | None,
    renewal_seen: Instant | None,
    now: Instant,
) -> dict[str, Any]:
    """Leader, members, in-sync set and latest history; durations in seconds.

    act_until: of the lease we hold, if any. renewal_seen: when the leader's latest renewal was first seen here.
    lease_left_s: for the leader, until it stops acting; for the others, until they would evict it."""
    leader = None
    if view.leader is not None:
        until = act_until
        if until is None and renewal_seen is not None:
            until = Instant(renewal_seen + view.leader.ttl)
        leader = {
            "node": view.leader.node,
            "token": view.leader.token,
            "lease_left_s": None if until is None else round((until - now) / NS_PER_S, 3),
            "http": (k.load(raw.get(keys.leader)) or {}).get("http"),
        }
    members = sorted(n for n in raw if n.startswith(keys.members))
    latest = sorted(n for n in raw if n.startswith(keys.history))[-HISTORY_SHOWN:]
    return {
        "leader": leader,
        "resigned": k.load(raw.get(keys.resigned)),
        "insync": dict(view.insync.members),
        "members": {n[len(keys.members) :]: k.load(raw[n]) or {} for n in members},
        "history": [k.load(raw[n]) for n in latest],
    }


def grpc_address(keys: k.Keys, raw: Mapping[str, k.RawKey], node: str) -> str:
    """Where `node` serves its journal; the leader's own key is fresher than its member's. Empty: not known."""
    leader = k.load(raw.get(keys.leader)) or {}
    member = k.load(raw.get(keys.member(node))) or {}
    return (leader.get("node") == node and address_of(leader)) or address_of(member)


def address_of(value: Mapping[str, Any]) -> str:
    """`grpc` of a leader's or a member's value, if it can be one; else empty. Whoever may write to etcd may write what
    no host:port is, and gRPC would raise for it."""
    told = value.get("grpc")
    fits = isinstance(told, str) and told.isascii() and told.isprintable() and 0 < len(told) <= ADDRESS_MAX
    return str(told) if fits and ":" in str(told) else ""
