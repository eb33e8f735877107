"""What this node can say of the cluster, as one document for people and programs. Pure: values in, values out.

    keeper's picture + the worker's own word + how long each node has been silent  ->  Cluster  ->  /v1/status

Two rules shape everything here. Unknown is never green: a leader that has not been heard of lately does not trade as
far as we can tell, whatever it said last. And nothing in here may fail: half of the input are other nodes' values in
etcd, where a person may have written anything, and this page is what they look at when things are wrong. A value of the
wrong type reads as not there.

Read next: `health.py` (yes or no, for machines), `http.py` (who asks).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.core.ids import NS_PER_S

PICTURE_FRESH_S = 3.0
"""The keeper speaks several times a second; after this much silence what it last said is history."""

WORD_FRESH_S = 3.0
"""A node publishes itself every second. Three missed ones are a silence."""
ETCD_FRESH_S = 3.0
"""A keeper asks etcd several times a second."""

FIRST_START = "first start"

UNKNOWN = {"level": "blocked", "reason": "unknown"}
NO_LEADER = {"level": "blocked", "reason": "no leader"}


# -- reading values that anybody may have written -------------------------------------------------------------


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def clean(text: Any) -> str:
    """As text that can be written: etcd holds what anybody put there, lone surrogates included."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def as_text(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) and value else None


def as_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_number(value: Any) -> float | None:
    """A finite number of any sane size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def iso(unix_ns: Any) -> str | None:
    """Unix nanoseconds as ISO-8601 UTC with milliseconds; None for what is no time."""
    at = as_int(unix_ns)
    if at is None or not 0 < at < 253_402_300_800 * NS_PER_S:  # datetime ends with the year 9999
        return None
    second, rest = divmod(at, NS_PER_S)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def finite(value: Any) -> Any:
    """`value` with every float rounded to the microsecond, those that JSON does not know made None, and every text one
    that can be written."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


# -- how long nothing was heard of a node ---------------------------------------------------------------------


@dataclass(slots=True)
class _Word:
    text: str
    first_seen: int  # Instant
    age_then_s: float | None  # 0 for a word that we saw replace another


class LastHeard:
    """The age of each member's published status, by our own clock: counted from when we first saw that very text.

    A keeper goes on publishing the last word of a worker that has died, so the key being there says nothing. The
    sender's `at` serves only for the first text we see: another host's wall clock decides nothing for longer than that.
    """

    def __init__(self) -> None:
        self._words: dict[str, _Word] = {}

    def observe(self, picture: Mapping[str, Any] | None, now: int, unix_now: int) -> None:
        """Call at least every second or so, also when nobody asks. now: Instant."""
        if picture is None:
            return
        members = as_dict(picture.get("members"))
        for gone in self._words.keys() - members.keys():
            del self._words[gone]
        for name, member in members.items():
            status = as_dict(as_dict(member).get("status"))
            if not status:
                self._words.pop(name, None)
                continue
            text = json.dumps(status, sort_keys=True, default=str)  # as text, since NaN differs from itself
            word = self._words.get(name)
            if word is None:
                at = as_int(status.get("at"))
                self._words[name] = _Word(text, now, None if at is None else max(0.0, (unix_now - at) / NS_PER_S))
            elif word.text != text:
                self._words[name] = _Word(text, now, 0.0)

    def ages_s(self, now: int) -> dict[str, float | None]:
        """None: there is a word, and how old it is cannot be told yet."""
        return {
            name: None if w.age_then_s is None else w.age_then_s + (now - w.first_seen) / NS_PER_S
            for name, w in self._words.items()
        }


# -- what is known ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lease. left_s: until the leader stops acting (asked there) or may be evicted (asked elsewhere), the
    age of that knowledge taken off; None: not known."""

    node: str
    token: int | None
    left_s: float | None

    @property
    def alive(self) -> bool:
        return self.left_s is not None and self.left_s > 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The picture, read once. fresh: the keeper has spoken lately; if not, all of it is history."""

    me: str
    name: str
    age_s: float | None
    fresh: bool
    etcd_silent_s: float | None  # since etcd last answered our keeper; None: it does not say
    role: str
    holder: Holder | None
    insync: Mapping[str, Any]
    members: Mapping[str, dict[str, Any]]
    history: tuple[dict[str, Any], ...]  # newest first
    own: Mapping[str, Any]  # published() of this node, of this moment
    silent_s: Mapping[str, float | None]  # by node; one that is missing has published nothing

    @property
    def i_hold(self) -> bool:
        return self.holder is not None and self.holder.node == self.me

    def word_of(self, name: str) -> Mapping[str, Any]:
        """What a node said of itself: our own as of now, another's as of `heard_s` ago."""
        return self.own if name == self.me else as_dict(self.members.get(name, {}).get("status"))

    def heard_s(self, name: str) -> float | None:
        return self.age_s if name == self.me else self.silent_s.get(name)

    def in_sync(self, name: str) -> bool | None:
        """None: not known; also for a node that is in the set and not here: whether it still is the same journal cannot
        be told."""
        if not self.fresh:
            return None
        if name not in self.insync:
            return False
        if name not in self.members:
            return None
        return bool(self.members[name].get("journal_id") == self.insync[name])

    def lag_entries(self, name: str) -> int | None:
        """Entries that a standby lacks of the leader's log. None: for the leader, and when one of the two is not known.

        In the leader's word both numbers are of one moment. Of a node that it does not serve, the node's own word is
        all there is; both are then taken from etcd where possible, so that they are about equally old."""
        if self.holder is None or name == self.holder.node:
            return None
        published = as_dict(self.members.get(self.holder.node, {}).get("status"))
        word = published or self.word_of(self.holder.node)
        leads, has = as_int(word.get("log_index")), as_int(as_dict(word.get("followers")).get(name))
        if has is None:
            has = as_int(self.word_of(name).get("log_index"))
        return None if leads is None or has is None else max(0, leads - has)


def read(
    picture: Mapping[str, Any] | None,
    own: Mapping[str, Any],
    silent_s: Mapping[str, float | None],
    *,
    me: str,
    cluster: str = "",
) -> Cluster:
    """me, cluster: used until the keeper has said who we are."""
    picture = picture or {}
    age_s = as_number(picture.get("age_s"))
    fresh = age_s is not None and age_s <= PICTURE_FRESH_S
    leader = as_dict(picture.get("leader"))
    holder = None
    if leader:
        left = as_number(leader.get("lease_left_s"))
        holder = Holder(
            as_text(leader.get("node")) or "?",
            as_int(leader.get("token")),
            None if left is None or age_s is None else left - age_s,
        )
    records = picture.get("history")
    history = [h for h in records if isinstance(h, dict)] if isinstance(records, list) else []
    history.sort(key=lambda h: as_int(h.get("token")) or 0, reverse=True)
    return Cluster(
        me=as_text(picture.get("node")) or me,
        name=as_text(picture.get("cluster")) or cluster,
        age_s=age_s,
        fresh=fresh,
        etcd_silent_s=as_number(picture.get("etcd_silent_s")),
        role=(as_text(picture.get("role")) or "unknown") if fresh else "unknown",
        holder=holder,
        insync=as_dict(picture.get("insync")),
        members={clean(n): as_dict(m) for n, m in as_dict(picture.get("members")).items()},
        history=tuple(history),
        own=own,
        silent_s=silent_s,
    )


def permission(c: Cluster) -> dict[str, str]:
    """The leader's leave to trade, as far as it is known here."""
    if not c.fresh:
        return UNKNOWN
    if c.holder is None:
        return NO_LEADER
    heard = c.heard_s(c.holder.node)
    if not c.holder.alive or heard is None or heard > WORD_FRESH_S:
        return UNKNOWN
    word = c.word_of(c.holder.node)
    level = word.get("permission")
    if level not in ("allowed", "close-only", "blocked"):
        return UNKNOWN
    return {"level": level, "reason": as_text(word.get("permission_reason")) or ""}


# -- the document -----------------------------------------------------------------------------------------------


def node_names(c: Cluster) -> list[str]:
    return sorted({c.me, *c.members, *c.insync, *([c.holder.node] if c.holder else [])} - {"", "?"})


def node_row(c: Cluster, name: str) -> dict[str, Any]:
    member, word = c.members.get(name, {}), c.word_of(name)
    role = c.role if name == c.me else as_text(member.get("role")) if c.fresh else None
    positions = as_dict(word.get("positions"))
    return {
        "name": name,
        "role": role or "unknown",
        "in_sync": c.in_sync(name),
        "log_index": as_int(word.get("log_index")),
        "commit_index": as_int(word.get("commit_index")),
        "lag_entries": c.lag_entries(name),
        "lag_s": as_number(word.get("lag_s")),
        "keeper_pid": as_int(member.get("keeper_pid")),
        "worker_pid": as_int(member.get("worker_pid")),
        "http": as_text(member.get("http")),
        "grpc": as_text(member.get("grpc")),
        "feed_age_s": as_number(word.get("feed_age_s")),
        "feed_state": as_text(word.get("feed_state")),
        "version": as_text(member.get("version")),
        "digest": as_text(word.get("digest")),
        "digest_index": as_int(word.get("digest_index")),
        "positions": {str(s): as_int(lots) for s, lots in positions.items()},
        "age_s": c.heard_s(name),
    }


def history_row(h: Mapping[str, Any]) -> dict[str, Any]:
    """One leadership. at: when its leader had won the lease. last_sign_ns: Unix ns of its predecessor's last sign of
    life, or of the end of its permit, where its RTO starts."""
    phases = {str(p): as_number(s) for p, s in as_dict(h.get("phases_s")).items()}
    return {
        "token": as_int(h.get("token")),
        "node": as_text(h.get("node")),
        "came_from": as_text(h.get("came_from")),
        "cause": as_text(h.get("cause")),
        "actor": as_text(h.get("actor")),
        "at": iso(h.get("started_at")),
        "last_sign_ns": as_int(h.get("last_sign")),
        "rto_s": as_number(h.get("rto_s")),
        "phases_s": {p: s for p, s in phases.items() if s is not None},
    }


def last_failover(c: Cluster) -> dict[str, Any] | None:
    for h in c.history:
        row = history_row(h)
        if row["came_from"] or row["cause"] not in (None, FIRST_START):
            del row["actor"]
            return row
    return None


def _leader(c: Cluster) -> dict[str, Any] | None:
    if c.holder is None:
        return None
    since = next((iso(h.get("started_at")) for h in c.history if h.get("token") == c.holder.token), None)
    return {"node": c.holder.node, "token": c.holder.token, "since": since, "lease_left_s": c.holder.left_s}


def warnings(c: Cluster, rows: Iterable[Mapping[str, Any]], detail: Mapping[str, Any]) -> list[str]:
    """What somebody should look at, gravest first, each a sentence of its own."""
    out = []
    if c.age_s is None:
        out.append(f"The keeper of {c.me or 'this node'} has not said anything yet: nothing is known of the cluster.")
    elif not c.fresh:
        out.append(f"The keeper of {c.me} has been silent for {c.age_s:.1f} s: what stands here is that old.")
    else:
        if c.etcd_silent_s is not None and c.etcd_silent_s > ETCD_FRESH_S:
            out.append(
                f"etcd has not answered the keeper of {c.me} for {c.etcd_silent_s:.0f} s: see its log, and doctor."
            )
        if c.holder is not None:
            out += _doubts_about_leader(c, c.holder)
    out += _digests_differ(rows)
    mismatches = detail.get("mismatches")
    for text in mismatches if isinstance(mismatches, list | tuple) else ():
        out.append(f"Venue and journal disagree: {text}")
    own = detail.get("warnings")
    out += [str(text) for text in own] if isinstance(own, list | tuple) else []
    return out


def _doubts_about_leader(c: Cluster, holder: Holder) -> list[str]:
    if not holder.alive:
        return [f"{holder.node} holds the lease, but no renewal of it has been seen in time."]
    heard = c.heard_s(holder.node)
    if heard is None:
        return [f"{holder.node} leads, and has not said yet whether it trades."]
    return [f"{holder.node} leads, but has said nothing of itself for {heard:.1f} s."] if heard > WORD_FRESH_S else []


def _digests_differ(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Equal journals make equal books: a difference at one index is a fault in Baton or in the disk."""
    seen: dict[int, tuple[str, str]] = {}
    out = []
    for row in rows:
        index, digest = row["digest_index"], row["digest"]
        if not index or not digest:
            continue
        name, first = seen.setdefault(index, (row["name"], digest))
        if digest != first:
            out.append(
                f"The books of {name} and {row['name']} differ at index {index}: do not fail over to either blindly."
            )
    return out


def document(
    c: Cluster, detail: Mapping[str, Any], positions: list[dict[str, Any]], *, unix_now: int
) -> dict[str, Any]:
    """`/v1/status`, schema 1. Keys are only ever added."""
    rows = [node_row(c, name) for name in node_names(c)]
    venue = as_dict(detail.get("venue"))
    made: dict[str, Any] = finite(
        {
            "schema": 1,
            "cluster": c.name,
            "node": c.me,
            "at": iso(unix_now),
            "leader": _leader(c),
            "permission": permission(c),
            "nodes": rows,
            "last_failover": last_failover(c),
            "history": [history_row(h) for h in c.history],
            "positions": positions,
            "orders": {"open": as_int(c.own.get("open_orders")), "unresolved": as_int(c.own.get("unresolved"))},
            "double_order_class": as_text(venue.get("class")),
            "venue": venue or None,
            "gate": as_dict(detail.get("gate")) or None,
            "feed": as_dict(detail.get("feed")) or None,
            "strategy": as_dict(detail.get("strategy")) or None,
            "declined": as_dict(detail.get("declined")),
            "warnings": warnings(c, rows, detail),
        }
    )
    return made


def outline(c: Cluster) -> tuple[Any, ...]:
    """What must be shown at once when it changes; cheap, compared several times a second."""
    rows = [(n, c.members.get(n, {}).get("role"), c.in_sync(n)) for n in node_names(c)]
    allowed = permission(c)
    return (
        c.fresh,
        c.role,
        (c.holder.node, c.holder.token) if c.holder else None,
        allowed["level"],
        allowed["reason"],
        tuple(rows),
        c.own.get("unresolved"),
        c.history[0].get("rto_s") if c.history else None,
    )
