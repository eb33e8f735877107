"""The status page: one HTML, one CSS, one JS, all from this package. Pure after import, which reads the files once.

The HTML carries the document of `/v1/status` of the moment it was asked for, so it is complete at first sight, and a
plain table of the same inside <noscript>. Everything in it that came from elsewhere is escaped here; the script sets
text, never HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


@dataclass(frozen=True, slots=True)
class StaticFile:
    body: bytes
    media_type: str
    etag: str


def _load(name: str, media_type: str) -> StaticFile:
    body = files(__package__).joinpath("static", name).read_bytes()
    return StaticFile(body, media_type, f'"{blake2b(body, digest_size=8).hexdigest()}"')


FILES = {
    "/static/baton.css": _load("baton.css", "text/css"),
    "/static/baton.js": _load("baton.js", "text/javascript"),
    "/static/baton.svg": _load("baton.svg", "image/svg+xml"),
}
_PAGE = Template(files(__package__).joinpath("static", "index.html").read_text("utf-8"))


def render(document: Mapping[str, Any]) -> str:
    """The page for a document of `summary.document`."""
    return _PAGE.substitute(
        cluster=escape(_text(document["cluster"])),
        node=escape(_text(document["node"])),
        at=escape(_text(document["at"])),
        # Read by the script. As an attribute it needs no inline script, and the browser undoes what escape() did.
        status=escape(json.dumps(document, separators=(",", ":"), allow_nan=False)),
        plain=_plain(document),
    )


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def _table(caption: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """columns: heading by key."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(row.get(key)))}</td>" for key in columns) + "</tr>" for row in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plain(d: Mapping[str, Any]) -> str:
    """The essentials as plain tables, for readers without a script."""
    leader, allowed, failover = d["leader"] or {}, d["permission"], d["last_failover"] or {}
    facts = {
        "Trading": " – ".join(filter(None, (allowed["level"], allowed["reason"]))),
        "Leader": leader.get("node"),
        "Leads since": leader.get("since"),
        "Fencing token": leader.get("token"),
        "Lease left, seconds": leader.get("lease_left_s"),
        "Open orders": d["orders"]["open"],
        "Unresolved orders": d["orders"]["unresolved"],
        "Double-order class": d["double_order_class"],
        "Last failover": failover.get("at"),
        "Its cause": failover.get("cause"),
        "Its RTO, seconds": failover.get("rto_s"),
    }
    nodes = {
        "name": "Node",
        "role": "Role",
        "in_sync": "In sync",
        "lag_entries": "Lag, entries",
        "lag_s": "Lag, s",
        "log_index": "Log index",
        "feed_age_s": "Feed age, s",
        "version": "Version",
        "age_s": "Heard, s ago",
    }
    positions = {"symbol": "Symbol", "qty": "Quantity", "lots": "Lots", "last_price": "Last price"}
    history = {
        "at": "Won at",
        "node": "Leader",
        "came_from": "From",
        "cause": "Cause",
        "rto_s": "RTO, s",
        "token": "Token",
    }
    warnings = "".join(f"<li>{escape(str(w))}</li>" for w in d["warnings"])
    return "".join(
        (
            f"<ul>{warnings}</ul>" if warnings else "",
            _table("Cluster", {"what": "What", "value": "Value"}, ({"what": k, "value": v} for k, v in facts.items())),
            _table("Nodes", nodes, d["nodes"]),
            _table("Positions", positions, d["positions"]),
            _table("Leaderships", history, d["history"]),
        )
    )
