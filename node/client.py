"""Asks nodes for what their HTTP API tells, and makes one answer out of several.

Every call has one deadline. Raises `Unreachable` when nothing was sent, `OutcomeUnknown` when no whole answer came in
time, `Answered` when the node said no. Nothing here decides anything; the addresses are the user's.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from cluster.core.errors import BatonError, ConfigError, OutcomeUnknown, Unreachable

TIMEOUT_S = 2.0
_BODY_MAX = 16 * 1024 * 1024

Document = dict[str, Any]


class Answered(BatonError):
    """The node answered with an error. code: the HTTP status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def get_json(url: str, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    return _call("GET", url, path, None, timeout_s)


def post_json(url: str, path: str, body: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Any:
    """Sent once; a request whose answer did not come may have been carried out (OutcomeUnknown)."""
    return _call("POST", url, path, json.dumps(body).encode(), timeout_s)


def check_url(url: str) -> str:
    """`url` without a slash at its end. Raises ConfigError for what is no http URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or parts.query or parts.fragment:
        raise ConfigError(f"URL {url!r} of a node: write http://host:port")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _call(method: str, url: str, path: str, body: bytes | None, timeout_s: float) -> Any:
    base = urlsplit(check_url(url))
    make = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
    link = make(base.hostname or "", base.port, timeout=timeout_s)
    try:
        try:
            link.connect()
        except OSError as e:
            raise Unreachable(f"{url} does not answer: {e.strerror or e}") from e
        try:
            link.request(method, base.path + path, body, {"Content-Type": "application/json"} if body else {})
            reply = link.getresponse()
            text = reply.read(_BODY_MAX).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as e:
            why = f"within {timeout_s:g} s" if isinstance(e, TimeoutError | socket.timeout) else f"({e})"
            raise OutcomeUnknown(f"no answer from {url}{path} {why}") from e
    finally:
        link.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if 200 <= reply.status < 300 and answer is not None:
        return answer
    raise Answered(reply.status, _reason(answer) or f"{url}{path} answered {reply.status} {reply.reason}")


def _reason(answer: Any) -> str:
    """`error` and `remedy`, as every node words its refusals; of a health route, `why`."""
    if not isinstance(answer, Mapping):
        return ""
    if not answer.get("error"):
        return str(answer.get("why") or "")
    return f"{answer['error']}; {answer['remedy']}" if answer.get("remedy") else str(answer["error"])


# -- several nodes -------------------------------------------------------------------------------------------


def ask_all(urls: Sequence[str], path: str, *, timeout_s: float = TIMEOUT_S) -> tuple[list[Document], list[str]]:
    """(the answers, why the others did not), asked at the same time. Raises Unreachable when nobody answers."""
    if not urls:
        raise ConfigError("no node to ask; use --dir of a local cluster, --url http://host:port, or set BATON_URL")

    def ask(url: str) -> Document | str:
        try:
            answer = get_json(url, path, timeout_s=timeout_s)
        except (Unreachable, OutcomeUnknown, Answered) as e:
            return str(e)
        return answer if isinstance(answer, dict) else f"{url}{path} answered what is no object"

    with ThreadPoolExecutor(min(16, len(urls))) as pool:
        told = list(pool.map(ask, urls))
    answers = [t for t in told if isinstance(t, dict)]
    failures = [t for t in told if isinstance(t, str)]
    if not answers:
        raise Unreachable("no node answers: " + "; ".join(failures))
    return answers, failures


def cluster_status(urls: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> Document:
    """`/v1/status` (`node.status.summary.document`) of the whole cluster. Raises Unreachable, ConfigError."""
    answers, failures = ask_all(urls, "/v1/status", timeout_s=timeout_s)
    return merge(answers, failures)


def merge(documents: Sequence[Document], failures: Sequence[str] = ()) -> Document:
    """The document of who knows best, in which each node that answered speaks for itself. `answered`: their names."""
    best = max(documents, key=_knowledge)
    own = {d["node"]: row for d in documents if (row := _row(d, d.get("node"))) is not None}
    rows = {r["name"]: r for r in best.get("nodes", [])}
    for name, row in own.items():
        # Lag and in-sync are the leader's to tell; what a node is and has, its own.
        told = {k: rows[name].get(k) for k in ("in_sync", "lag_entries", "lag_s")} if name in rows else {}
        rows[name] = row | {k: v for k, v in told.items() if v is not None}
    warnings = list(best.get("warnings") or [])
    claim = sorted(d["node"] for d in documents if _leads(d) and (_row(d, d["node"]) or {}).get("role") == "leader")
    if len(claim) > 1:
        warnings.insert(0, f"{' and '.join(claim)} each say that they lead; one of them is about to learn better.")
    return best | {
        "nodes": [rows[name] for name in sorted(rows)],
        "answered": sorted(own),
        "warnings": warnings + [f"{f}." for f in failures],
    }


def _knowledge(d: Document) -> tuple[bool, bool, int]:
    """The leader knows best; else who knows whether trading is allowed; else who has seen the highest token."""
    known = (d.get("permission") or {}).get("reason") != "unknown"
    return _leads(d) and known, known, (d.get("leader") or {}).get("token") or 0


def _leads(d: Document) -> bool:
    return bool(d.get("node")) and (d.get("leader") or {}).get("node") == d.get("node")


def _row(d: Document, name: Any) -> Document | None:
    return next((r for r in d.get("nodes", []) if r.get("name") == name), None)
