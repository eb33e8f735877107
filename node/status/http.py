"""The status server: health routes, JSON, metrics, the page, and its event stream, in the worker's own loop.

Touches sockets and nothing else; what it says is made by `summary.py`, `health.py` and `page.py`. It shares the loop
with the order path, so everything is bounded and cheap: the document is made once for all event streams, and only while
there is one. Anybody who can reach the port may read. The one thing that changes something, `POST /v1/switchover`, is
refused to web pages of other origins; keep the port inside your network all the same.

    serve() -> uvicorn on our sockets, our loop, our signals  +  a watcher that notices change and silence
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import structlog
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.clock import boottime_ns, unix_ns
from cluster.core.ids import NS_PER_S
from node.status import health, page, serving, summary
from node.status.source import StatusSource
from node.telemetry import Telemetry

EVENT_CLIENTS_MAX = 50
BODY_MAX = 4096
BODY_LIMIT_S = 5.0
SWITCHOVER_LIMIT_S = 8.0
EVENT_INTERVAL_S = 0.5
LOOK_INTERVAL_S = 0.1
IDLE_INTERVAL_S = 0.5
"""How often silence is measured when nobody watches: `LastHeard` must see a word before it is asked about it."""
LOOK_RETRY_S = 5.0
SEND_LIMIT_S = 5.0

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READ = ["GET", "HEAD", "OPTIONS"]

log = structlog.get_logger()


class Problem(Exception):
    """An answer that is not what was asked for, with its remedy."""

    def __init__(self, status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.remedy, self.headers = status, error, remedy, headers


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Response(body, status, headers, "application/json")


class StatusServer:
    """listen: `host:port`, `[v6]:port`; port 0 picks one (see `address`). names: host names under which browsers may
    ask for changes, besides IP addresses, localhost and this host's own."""

    def __init__(
        self,
        source: StatusSource,
        telemetry: Telemetry,
        listen: str,
        *,
        names: Iterable[str] = (),
        event_clients_max: int = EVENT_CLIENTS_MAX,
    ) -> None:
        self._source = source
        self._telemetry = telemetry
        self._listen = listen
        self._event_clients_max = event_clients_max
        self._sockets: list[socket.socket] = []
        self._heard = summary.LastHeard()
        self._clients = 0
        self._news = asyncio.Event()
        self._document = ""
        self._closing = False
        self._handing_over = False
        self._names = {"localhost", socket.gethostname().lower(), *(n.lower() for n in names)}
        telemetry.watch(source)
        self.app = self._make_app()

    # -- life ------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Take the port; from here on connections queue. Raises ConfigError. `serve` does it if nobody did."""
        if self._sockets:
            return
        host, port = serving.split_address(self._listen)
        self._names.add(host.lower())
        self._sockets = [serving.bind(self._listen, host, port)]

    @property
    def address(self) -> str:
        """Where it really listens, once bound."""
        if not self._sockets:
            return self._listen
        host, port = self._sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def serve(self) -> None:
        """Until cancelled; then ends within a second, whatever the clients do. Raises ConfigError as `bind` does."""
        self.bind()
        server = serving.EmbeddedServer(self.app)
        log.info("status_listening", address=self.address)
        running = asyncio.create_task(server.serve(sockets=self._sockets), name="http-server")
        looking = asyncio.create_task(self._look(), name="http-look")
        try:
            done, _ = await asyncio.wait({running, looking}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._closing = True
            self._tell()  # the streams end by themselves
            looking.cancel()
            server.stop()
            await asyncio.wait({running, looking}, timeout=2 * serving.STOP_LIMIT_S)
            for s in self._sockets:
                s.close()
            self._sockets = []

    async def _look(self) -> None:
        """Notice change, for the event streams, and silence, for everybody."""
        told: tuple[Any, ...] = ()
        told_at = 0
        while True:
            try:
                c = self._cluster()
                if self._clients:
                    now = boottime_ns()
                    shown = summary.outline(c)
                    if shown != told or now - told_at >= EVENT_INTERVAL_S * NS_PER_S:
                        told, told_at = shown, now
                        self._publish()
            except Exception as e:
                # A fault in showing must not end the trading that it shows. The page says by itself that it is old.
                log.error("status_not_made", reason=str(e), exc_info=True)
                await asyncio.sleep(LOOK_RETRY_S)
            await asyncio.sleep(LOOK_INTERVAL_S if self._clients else IDLE_INTERVAL_S)

    # -- what is said ----------------------------------------------------------------------------------------

    def _cluster(self) -> summary.Cluster:
        now = boottime_ns()
        picture = self._source.picture()
        self._heard.observe(picture, now, unix_ns())
        t = self._telemetry
        return summary.read(picture, self._source.published(), self._heard.ages_s(now), me=t.node, cluster=t.cluster)

    def status(self) -> dict[str, Any]:
        """The document of `/v1/status`, now."""
        return summary.document(self._cluster(), self._source.detail(), self._source.positions(), unix_now=unix_ns())

    def _part(self, **fields: Any) -> Response:
        """Any other JSON answer: about this node alone, as of now."""
        at = summary.iso(unix_ns())
        return _json(summary.finite({"schema": 1, "node": self._telemetry.node, "at": at, **fields}))

    def _publish(self) -> None:
        self._document = json.dumps(self.status(), separators=(",", ":"), allow_nan=False)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # -- routes ----------------------------------------------------------------------------------------------

    def _make_app(self) -> ASGIApp:
        def check(judge: Callable[[Request, summary.Cluster], health.Verdict]) -> Any:
            async def answer(request: Request) -> Response:
                c = self._cluster()
                verdict = judge(request, c)
                return _verdict(c, verdict)

            return answer

        def read(path: str, answer: Callable[[Request], Awaitable[Response]]) -> Route:
            async def answered(request: Request) -> Response:
                response = await answer(request)
                if request.method == "OPTIONS":  # some load balancers ask so: the status, without a body
                    return Response(status_code=response.status_code, headers={"Allow": ", ".join(_READ)})
                return response

            return Route(path, answered, methods=_READ)

        def plain(judge: health.Check) -> Any:
            return check(lambda _request, c: judge(c))

        health_routes = {
            "/leader": plain(health.leads),
            "/primary": plain(health.leads),
            "/lease": plain(health.holds_lease),
            "/standby": check(lambda request, c: health.stands_by(c, _lag_of(request))),
            "/in-sync": plain(health.in_sync),
            "/livez": plain(health.alive),
            "/liveness": plain(health.alive),
            "/readyz": self._ready,
            "/readiness": self._ready,
        }
        app = Starlette(
            routes=[
                *(read(path, answer) for path, answer in health_routes.items()),
                read("/v1/status", self._get_status),
                read("/v1/positions", self._get_positions),
                read("/v1/orders", self._get_orders),
                read("/v1/history", self._get_history),
                read("/v1/node", self._get_node),
                read("/v1/events", self._get_events),
                read("/metrics", self._get_metrics),
                Route("/v1/switchover", self._switchover, methods=["POST"]),
                read("/", self._get_page),
                *(read(path, _static(file)) for path, file in page.FILES.items()),
            ],
            exception_handlers={Problem: _on_problem, HTTPException: _on_http, Exception: _on_error},
        )
        app.router.redirect_slashes = False
        return _SafeHeaders(app)

    async def _ready(self, request: Request) -> Response:
        c = self._cluster()
        checks = list(health.readiness(c, self._source.detail()))
        failed = [f"{name}: {v.why}" for name, v in checks if not v.ok]
        verdict = health.Verdict(not failed, "; ".join(failed) or "could trade now if it led")
        shown = [{"name": name, "ok": v.ok, "why": v.why} for name, v in checks]
        return _verdict(c, verdict, **({"checks": shown} if "verbose" in request.query_params else {}))

    async def _get_status(self, _request: Request) -> Response:
        return _json(self.status())

    async def _get_positions(self, _request: Request) -> Response:
        return self._part(positions=self._source.positions())

    async def _get_orders(self, _request: Request) -> Response:
        return self._part(orders=self._source.orders())

    async def _get_history(self, _request: Request) -> Response:
        return self._part(history=[summary.history_row(h) for h in self._cluster().history])

    async def _get_node(self, _request: Request) -> Response:
        return self._part(**{k: v for k, v in self._source.detail().items() if k not in ("schema", "node", "at")})

    async def _get_metrics(self, request: Request) -> Response:
        body, content_type = self._telemetry.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def _get_page(self, _request: Request) -> Response:
        return Response(page.render(self.status()), media_type="text/html")

    async def _get_events(self, request: Request) -> Response:
        if request.method != "GET":
            return Response(media_type="text/event-stream")
        if self._clients >= self._event_clients_max:
            raise Problem(
                503,
                f"{self._clients} clients already follow /v1/events here",
                "close some, ask another node, or poll /v1/status",
                {"Retry-After": "5"},
            )
        return _EventStream(self)

    async def _events(self) -> Any:
        """One client's stream: the newest whenever it is ready for more, so a slow one skips, and holds up nobody."""
        self._document = json.dumps(self.status(), separators=(",", ":"), allow_nan=False)
        while not self._closing:
            news = self._news  # taken before the yield: what is published while this client reads is not missed
            yield {"event": "status", "data": self._document}
            await news.wait()

    # -- the one thing that changes something ------------------------------------------------------------------

    async def _switchover(self, request: Request) -> Response:
        self._require_own_origin(request)
        target, actor = _parse_switchover(await _body(request))
        if actor is None:
            actor = f"http {request.client.host if request.client else 'client'}"
        if self._handing_over:
            raise Problem(409, "another switchover request is under way here", "wait for its answer")
        self._handing_over = True
        try:
            async with asyncio.timeout(SWITCHOVER_LIMIT_S):
                accepted, text = await self._source.switchover(target, actor)
        except TimeoutError:
            raise Problem(504, "no answer in time: it may still happen", "look at /v1/status and /v1/history") from None
        finally:
            self._handing_over = False
        log.info("switchover_asked", target=target, actor=actor, accepted=accepted, answer=text)
        if not accepted:
            raise Problem(409, text, "see /v1/status: who leads, and which nodes are in sync")
        return _json({"text": text}, 202)

    def _require_own_origin(self, request: Request) -> None:
        """Browsers send Origin with every POST. It must be the page we served, under a name that is ours: a hostile
        name that was rebound to our address has an Origin that equals its Host."""
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        if origin is None and site in ("same-origin", "none"):
            return
        host = request.headers.get("host", "").lower()
        own_page = origin is not None and origin.lower() in (f"http://{host}", f"https://{host}")
        if not own_page or site == "cross-site":
            raise Problem(403, f"refused to a page of {origin or 'another site'}", "use this node's page, or the CLI")
        if not self._is_our_name(host):
            raise Problem(403, f"this node is not known as {host}", "use its address, or the CLI")

    def _is_our_name(self, host: str) -> bool:
        with contextlib.suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
            return True
        return False


# -- parts that know nothing of the server -------------------------------------------------------------------------


def _verdict(c: summary.Cluster, verdict: health.Verdict, **more: Any) -> Response:
    body = {"ok": verdict.ok, "why": verdict.why, "node": c.me, "role": c.role, **more}
    return _json(body, 200 if verdict.ok else 503)


def _lag_of(request: Request) -> int | None:
    text = request.query_params.get("lag")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise Problem(400, f"lag={text[:40]!r}: not a number of entries", "for example /standby?lag=100")
    return int(text)


async def _body(request: Request) -> bytes:
    """At most BODY_MAX bytes of JSON, within BODY_LIMIT_S."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"Content-Type is {kind[:80] or 'missing'}", "send application/json")
    body = b""
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_MAX:
                    raise Problem(413, f"the body is longer than {BODY_MAX} bytes", "send target and actor only")
    except TimeoutError:
        raise Problem(408, "the body did not arrive in time", "send it with the request") from None
    return body


def _parse_switchover(body: bytes) -> tuple[str | None, str | None]:
    """(target, actor). Raises Problem that names what is wrong."""
    example = 'for example {"target": null, "actor": "ann"}'
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON", example) from None
    if not isinstance(asked, dict):
        raise Problem(400, "the body is not a JSON object", example)
    unknown = sorted(asked.keys() - {"target", "actor"})
    if unknown:
        raise Problem(400, f"unknown key {unknown[0][:40]!r}", example)
    target, actor = asked.get("target"), asked.get("actor")
    if target is not None and not (isinstance(target, str) and _NAME.fullmatch(target)):
        raise Problem(400, f"target {str(target)[:40]!r} is not a node's name", "a name, or null for the best standby")
    if actor is not None and not (isinstance(actor, str) and 0 < len(actor) <= 200 and actor.isprintable()):
        raise Problem(400, "actor is not a text of 1 to 200 printable characters", "say who asks")
    return target, actor


def _static(file: page.StaticFile) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers, media_type=file.media_type)

    return answer


def _problem(status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": error, "remedy": remedy}, status, headers)


def _on_problem(_request: Request, e: Exception) -> Response:
    assert isinstance(e, Problem)
    return _problem(e.status, e.error, e.remedy, e.headers)


def _on_http(request: Request, e: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(e, HTTPException)
    path = request.url.path[:100]
    if e.status_code == 404:
        return _problem(404, f"no such path: {path}", "start at / or /v1/status; paths match exactly")
    if e.status_code == 405:
        allowed = (e.headers or {}).get("Allow", "GET")
        return _problem(405, f"{path} does not take {request.method[:20]}", f"use {allowed}", dict(e.headers or {}))
    return _problem(e.status_code, str(e.detail), "correct the request", dict(e.headers or {}))


def _on_error(request: Request, e: Exception) -> Response:
    log.error("http_request_failed", path=request.url.path, reason=str(e), exc_info=e)
    return _problem(500, "this is a fault of ours", "see http_request_failed in this node's log")


class _SafeHeaders:
    """Security headers on every answer; no-store unless the answer says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        with contextlib.suppress(ClientDisconnect):
            await self.app(scope, receive, send_safe)


class _EventStream(EventSourceResponse):
    """Counted for as long as it is served, however it ends. A client that takes nothing for SEND_LIMIT_S is dropped."""

    def __init__(self, server: StatusServer) -> None:
        super().__init__(server._events(), ping=0, sep="\n", send_timeout=SEND_LIMIT_S)
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._server._clients += 1
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            log.info("event_client_dropped", client=str(scope.get("client")), reason="it takes nothing")
        finally:
            self._server._clients -= 1
