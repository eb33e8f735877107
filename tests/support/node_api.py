"""Nodes' HTTP APIs as the command line sees them: canned answers on real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


class NodeApi:
    """answers: path -> (status, body), or a function of the request's body that makes one. Start with `with`."""

    def __init__(self, answers: dict[str, Answer | Callable[[Any], Answer]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                outer.asked.append((self.path, body))
                found = outer.answers.get(self.path, (404, {"error": "no such path"}))
                status, answer = found(body) if callable(found) else found
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> NodeApi:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def row(name: str, role: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "in_sync": True,
        "log_index": 10,
        "commit_index": 10,
        "lag_entries": None if role == "leader" else 0,
        "lag_s": None,
        "keeper_pid": 1,
        "worker_pid": 2,
        "http": None,
        "grpc": None,
        "feed_age_s": 0.01,
        "age_s": 0.1,
        "version": "1",
    } | more


def status(me: str, leader: str | None, token: int, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A `/v1/status` document of node `me`."""
    level = "allowed" if leader else "blocked"
    return {
        "schema": 1,
        "cluster": "c",
        "node": me,
        "at": "2026-01-01T00:00:00.000Z",
        "leader": {"node": leader, "token": token, "since": None, "lease_left_s": 0.5} if leader else None,
        "permission": {"level": level, "reason": "" if leader else "no leader"},
        "nodes": rows,
        "last_failover": None,
        "history": [],
        "positions": [],
        "orders": {"open": 0, "unresolved": 0},
        "double_order_class": "proved",
        "warnings": [],
    } | more
