"""Yes or no, for load balancers, orchestrators and playbooks. Pure.

Each check answers with the reason, also when the answer is yes. Whatever is not known is a no. Read next: `http.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from node.status.summary import ETCD_FRESH_S, Cluster, as_dict, as_int, as_text, permission


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    why: str


Check = Callable[[Cluster], Verdict]

_HOLDING = ("promoting", "leader", "draining")
"""Roles that hold the lease. A fenced node's key may still be there; it has no right to it."""


def alive(c: Cluster) -> Verdict:
    """That this answer came says that the loop turns; the rest is whether the keeper speaks."""
    if c.age_s is None:
        return Verdict(False, "the keeper has not said anything yet")
    if not c.fresh:
        return Verdict(False, f"the keeper has been silent for {c.age_s:.1f} s")
    return Verdict(True, f"the keeper spoke {c.age_s:.1f} s ago")


def holds_lease(c: Cluster) -> Verdict:
    if not c.fresh:
        return alive(c)
    if c.holder is None:
        return Verdict(False, "nobody leads")
    if not c.i_hold:
        return Verdict(False, f"{c.holder.node} leads")
    if c.role not in _HOLDING:
        return Verdict(False, f"the lease names this node, but it is {c.role}")
    if not c.holder.alive:
        return Verdict(False, "the lease is not confirmed")
    return Verdict(True, f"holds the lease with token {c.holder.token}, {c.holder.left_s:.2f} s left")


def leads(c: Cluster) -> Verdict:
    """Leads, and may place orders: where an order entry point should be."""
    held = holds_lease(c)
    if not held.ok:
        return held
    if c.role != "leader":
        return Verdict(False, f"holds the lease, but is {c.role}")
    allowed = permission(c)
    if allowed["level"] != "allowed":
        return Verdict(False, f"leads; trading is {allowed['level']}: {allowed['reason']}")
    return Verdict(True, "leads, and trading is allowed")


def stands_by(c: Cluster, lag_max: int | None = None) -> Verdict:
    """lag_max: in entries."""
    if not c.fresh:
        return alive(c)
    if c.role != "standby":
        return Verdict(False, f"this node is {c.role}")
    if lag_max is None:
        return Verdict(True, "running standby")
    # The leader's index in etcd is up to a second old, what the stream says stops with the stream: believe the worse.
    known = [n for n in (c.lag_entries(c.me), as_int(c.own.get("lag_entries"))) if n is not None]
    if not known:
        return Verdict(False, "running standby, but its lag is not known")
    lag = max(known)
    return Verdict(lag <= lag_max, f"running standby, {lag} entries behind ({lag_max} allowed)")


def in_sync(c: Cluster) -> Verdict:
    """Holds every committed entry, so it may lead. True of the leader as well."""
    if not c.fresh:
        return alive(c)
    if c.in_sync(c.me):
        return Verdict(True, f"{c.role}, in the in-sync set")
    if c.me in c.insync:
        return Verdict(False, "the in-sync set names another journal of this node")
    return Verdict(False, f"{c.role}, not in the in-sync set")


def readiness(c: Cluster, detail: dict[str, Any]) -> Iterator[tuple[str, Verdict]]:
    """Could it trade now if it led? Each named check; ready if all say yes."""
    yield "keeper", alive(c)
    yield "role", Verdict(c.role in ("standby", *_HOLDING), c.role)
    yield "in-sync", in_sync(c)
    if c.i_hold:
        yield "lease", holds_lease(c)
    state = as_text(c.own.get("feed_state")) or "unknown"
    reason = as_text(as_dict(detail.get("feed")).get("reason"))
    yield "feed", Verdict(state == "live", f"{state}: {reason}" if reason else state)
    for part in ("gate", "venue"):
        told = as_dict(detail.get(part))
        why = as_text(told.get("why"))
        yield part, Verdict(bool(told) and not why, why or ("in order" if told else "not known"))
    if c.etcd_silent_s is not None:
        silent = c.etcd_silent_s
        yield "etcd", Verdict(silent <= ETCD_FRESH_S, f"answered {silent:.1f} s ago")
    strategy = as_dict(detail.get("strategy"))
    failed = as_text(strategy.get("failed"))
    yield "strategy", Verdict(bool(strategy) and not failed, failed or ("running" if strategy else "not known"))
