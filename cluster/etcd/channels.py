"""One gRPC channel per etcd endpoint: kept connected, checked for whose it is, put aside when it fails.

Why not one channel over a list of addresses: gRPC would choose, and a paused server (connected, silent) would stay
chosen. Here the client says which endpoint failed it, and the next call goes elsewhere.

An endpoint is used only while it is *ready*: connected, and since that connection was made it has said which cluster it
belongs to. So no write reaches a cluster that is not ours, and a write handed to a channel that is not connected is
known to be unsent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError, Unreachable
from cluster.core.ids import ns
from cluster.rpc.etcd import rpc_pb2, rpc_pb2_grpc

from .model import RevisionRolledBack, WrongCluster
from .wire import Outcome, judge

log = structlog.get_logger()

ASIDE_S = 2.0
"""How long an endpoint that failed is passed over while another one works."""
ROLLED_BACK_AFTER_S = 10.0
"""A member that follows a leader of a lower term is behind for an election at most (etcd leaders step down when they
lose their majority). After this long it is not behind: that cluster has been put back."""
_PROBE_PAUSE_S = (0.05, 0.5)
_CLOSE_WAIT_S = 0.05
_READY = grpc.ChannelConnectivity.READY


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. ca None: the system's authorities. cert and key: for an etcd that wants client certificates.
    server_name: the name in the server's certificate, where it is not the host that is dialled."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises ConfigError that names the one that is missing or unreadable."""
        if (self.cert is None) != (self.key is None):
            raise ConfigError(f"etcd TLS: cert is {self.cert} and key is {self.key}; give both or neither")

        def read(what: str, path: Path | None) -> bytes | None:
            try:
                return path.read_bytes() if path else None
            except OSError as e:
                raise ConfigError(f"etcd TLS: cannot read {what} {path}: {e.strerror}") from e

        return grpc.ssl_channel_credentials(
            root_certificates=read("ca", self.ca),
            private_key=read("key", self.key),
            certificate_chain=read("cert", self.cert),
        )


def parse_endpoint(text: str) -> tuple[str, bool | None]:
    """`[http[s]://]host:port` as (host:port, secure); secure None: the text leaves it open. Raises ConfigError."""
    wanted = "write host:port, http://host:port or https://host:port"
    scheme, _, rest = text.rpartition("://")
    if scheme not in ("", "http", "https"):
        raise ConfigError(f"etcd endpoint {text!r}: unknown scheme {scheme!r}; {wanted}")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ConfigError(f"etcd endpoint {text!r}: {e}; {wanted}") from e
    if not host or not port or parts.path.strip("/") or parts.query or parts.username is not None:
        raise ConfigError(f"etcd endpoint {text!r} is not a host and a port; {wanted}")
    if any(c.isspace() or c == "," for c in host):
        raise ConfigError(f"etcd endpoint {text!r} has a blank or a comma in it; give a list of endpoints, one each")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", {"": None, "http": False, "https": True}[scheme]


def parse_endpoints(endpoints: Sequence[str], tls: TlsFiles | None) -> list[tuple[str, bool]]:
    """All of them as (host:port, secure). Raises ConfigError: none, one twice, a scheme that contradicts `tls`."""
    if isinstance(endpoints, str) or not endpoints:
        raise ConfigError(f"etcd endpoints = {endpoints!r}: give a list of at least one, such as ['127.0.0.1:2379']")
    parsed: dict[str, bool] = {}
    for text in endpoints:
        address, secure = parse_endpoint(text)
        if secure is False and tls is not None:
            raise ConfigError(f"etcd endpoint {text!r} is plain http, but TLS files are given; write https://{address}")
        if address in parsed:
            raise ConfigError(f"etcd endpoint {text!r} is listed twice")
        parsed[address] = tls is not None if secure is None else secure
    return list(parsed.items())


def _options(connect_timeout_s: float, tls: TlsFiles | None) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.enable_retries", 0),  # a write is sent once; what to do about a failure is not a library's decision
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),  # our connections and back-off, not shared with others in the process
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),  # in fact: how long one attempt may take
        ("grpc.max_reconnect_backoff_ms", 500),
        # etcd closes connections that ping more often than every 5 s, or at all without a call (keepalive.go: strikes).
        # Dead links are found by deadlines; the pings only free the socket of a long dead peer.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.client_idle_timeout_ms", 2**31 - 1),  # stay connected
        ("grpc.max_receive_message_length", 64 << 20),
    ]
    if tls and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


class Guard:
    """Remembers which cluster this is and the highest raft term seen (as Patroni's StaleEtcdNodeGuard)."""

    def __init__(self, cluster_id: int | None) -> None:
        self.cluster_id = cluster_id
        self.raft_term = 0
        self.revision = 0

    def check(self, header: Any, endpoint: str, term_when_sent: int) -> bool:
        """False if the answer is stale: a lower term than was known when the question was sent.

        (Compared with the term known *now*, an honest answer overtaken by an election would look stale.)
        Raises WrongCluster.
        """
        if self.cluster_id is None:
            self.cluster_id = header.cluster_id
        elif header.cluster_id != self.cluster_id:
            raise WrongCluster(self.cluster_id, header.cluster_id, endpoint)
        self.raft_term = max(self.raft_term, header.raft_term)
        self.revision = max(self.revision, header.revision)
        return bool(header.raft_term >= term_when_sent)


class Endpoint:
    """One channel and its stubs."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self.lease = rpc_pb2_grpc.LeaseStub(channel)
        self.watch = rpc_pb2_grpc.WatchStub(channel)
        self.auth = rpc_pb2_grpc.AuthStub(channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(channel)
        # The service is a stream both ways, and on the wire a stream of one message is a unary call: one keep-alive
        # costs one call, with a deadline, and leaves nothing open.
        self.keep_alive = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )
        self.verified = False  # since the connection was made, it has told its cluster
        self.listening = False  # for a change of the channel's state
        self.aside_until = 0
        self.last_error = "not connected yet"
        self.on_aside: set[Callable[[], Any]] = set()  # ends the streams that still trust it

    @property
    def ready(self) -> bool:
        return self.verified and self.channel.get_state() is _READY


class Channels:
    """All endpoints. `start` must be called in the event loop that is to use them."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TlsFiles | None,
        guard: Guard,
        probe_timeout_s: float,
        connect_timeout_s: float,
        rng: random.Random,
    ) -> None:
        self._parsed = parse_endpoints(endpoints, tls)
        self._tls = tls or TlsFiles()
        self._credentials = self._tls.credentials() if any(secure for _, secure in self._parsed) else None
        self._options = _options(connect_timeout_s, tls)
        self._guard = guard
        self._probe_timeout_s = probe_timeout_s
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []
        self._behind_since: dict[Endpoint, int] = {}
        self._changed = asyncio.Event()
        self._fatal: BaseException | None = None
        self.current: Endpoint | None = None
        self.endpoints: list[Endpoint] = []
        self.closed = False

    def start(self) -> None:
        """Open the channels and begin to connect. Again: nothing."""
        if self.endpoints:
            return
        for address, secure in self._parsed:
            if secure:
                channel = grpc.aio.secure_channel(address, self._credentials, options=self._options)
            else:
                channel = grpc.aio.insecure_channel(address, options=self._options)
            self.endpoints.append(Endpoint(address, channel))
        # Nodes that share a configuration need not all begin at its first endpoint.
        self.current = self._rng.choice(self.endpoints)
        for ep in self.endpoints:
            task = asyncio.create_task(self._keep_warm(ep), name=f"etcd {ep.address}")
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """These tasks end only by close(), or with what every later call must hear: WrongCluster, or a bug."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal = error
            self._changed.set()

    async def pick(self, deadline: int) -> Endpoint:
        """The endpoint for the next call: the one that worked last, else one that is ready, waiting for that until
        `deadline` (boottime ns). Raises Unreachable, with each endpoint's own reason, or WrongCluster."""
        while True:
            if self._fatal is not None:
                raise self._fatal
            if self.closed:
                raise Unreachable("the etcd client is closed")
            now = boottime_ns()
            current = self.current
            if current is not None and current.ready and current.aside_until <= now:
                return current
            ready = [ep for ep in self.endpoints if ep.ready]
            if ready:
                # All aside (etcd has no majority, say): the one that failed longest ago.
                self.current = min(ready, key=lambda ep: max(now, ep.aside_until))
                return self.current
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0, deadline - now) / 1e9):
                    await self._changed.wait()
            except TimeoutError:
                raise Unreachable(f"no etcd endpoint is connected: {self.reasons()}") from None

    def put_aside(self, ep: Endpoint, why: str) -> None:
        """`ep` failed a call: use another one for a while, and end the streams on it."""
        now = boottime_ns()
        if ep.aside_until <= now:
            log.warning("etcd_endpoint_put_aside", endpoint=ep.address, reason=why)
        ep.aside_until = now + ns(ASIDE_S)
        ep.last_error = why
        for end_stream in tuple(ep.on_aside):
            end_stream()

    def reasons(self) -> str:
        return "; ".join(f"{ep.address}: {ep.last_error}" for ep in self.endpoints)

    async def _keep_warm(self, ep: Endpoint) -> None:
        """Reconnect whenever the connection is lost, and ask each new one who it is."""
        while not self.closed:
            state = ep.channel.get_state(try_to_connect=True)
            if state is _READY:
                await self._verify(ep)
            elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                # A call in this state fails at once, and brings the transport's own reason.
                ep.last_error = await self._probe(ep) or ep.last_error
            ep.listening = True
            await ep.channel.wait_for_state_change(state)
            ep.listening = False
            if ep.verified:
                ep.verified = False
                ep.last_error = "the connection was lost"

    async def _verify(self, ep: Endpoint) -> None:
        """Ask until it has said that it is one of ours, or the connection is gone.

        Raises WrongCluster, RevisionRolledBack.
        """
        pause_s, pause_max_s = _PROBE_PAUSE_S
        self._behind_since.pop(ep, None)
        while (error := await self._probe(ep)) is not None:
            ep.last_error = error
            if ep.channel.get_state() is not _READY:
                return
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1))
            pause_s = min(2 * pause_s, pause_max_s)
        ep.verified = True
        ep.last_error = ""
        self._changed.set()

    async def _probe(self, ep: Endpoint) -> str | None:
        """Ask for its status: None if it is one of ours, else what is wrong."""
        term = self._guard.raft_term
        try:
            reply = await ep.maintenance.Status(rpc_pb2.StatusRequest(), timeout=self._probe_timeout_s)
        except grpc.aio.AioRpcError as e:
            if judge(e) in (Outcome.STALE_TOKEN, Outcome.REFUSED):
                return None  # it does not tell strangers; the first authenticated answer will be checked
            return transport_reason(e)
        if self._guard.check(reply.header, ep.address, term):
            return None
        if reply.leader:
            since = self._behind_since.setdefault(ep, boottime_ns())
            if boottime_ns() - since > ns(ROLLED_BACK_AFTER_S):
                raise RevisionRolledBack(self._guard.revision, reply.header.revision)
        return f"it is behind: raft term {reply.header.raft_term}, others had {term}"

    async def close(self) -> None:
        self.closed = True
        self._changed.set()
        # Those who listen for a change hear of the close, and end. Cancelled, their event would still come, later, and
        # to a loop that may be gone by then (gRPC logs a traceback). But they do not hear of it while anybody holds an
        # error with a call of this channel in its traceback, so the wait is a short one.
        for ep, task in zip(self.endpoints, self._tasks, strict=True):
            if not ep.listening:
                task.cancel()
        await asyncio.gather(*(ep.channel.close() for ep in self.endpoints))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_WAIT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def transport_reason(error: grpc.aio.AioRpcError) -> str:
    """The end of gRPC's nested message, which is the part a person wants."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    text: str = error.details() or error.code().name
    return text.rsplit("last error: ", 1)[-1].removesuffix("]")


def cancelled_from_outside() -> bool:
    """In `except CancelledError`: was our task cancelled? Else the gRPC call was, which raises the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def heard(task: asyncio.Task[Any]) -> None:
    """Done callback of a task whose waiter may have left: its error, if any, is not "never retrieved"."""
    if not task.cancelled():
        task.exception()
