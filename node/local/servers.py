"""etcd and Redis on this machine, for laptops and tests.

Never for production: all members share one disk and one power cord.

Starts the servers that `binaries.py` finds, on loopback, waits until they answer, and keeps hold of them by pid. The
processes outlive the one that started them (`baton up` detaches): a handle turns into a plain record and back, and no
signal is sent to a pid whose start time is not the recorded one.

Synchronous on purpose: nothing here belongs into an event loop. From one, use `asyncio.to_thread`.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, ConfigError
from cluster.core.ids import ns

from .binaries import Binary
from .binaries import etcd_version_warnings as etcd_version_warnings  # for callers of this module as well
from .binaries import find_etcd as find_etcd
from .binaries import find_redis as find_redis

READY_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
# Shorter: a leader asked to stop looks for a successor, and the others are stopping too (it took 5 s and more).
# etcd syncs before it answers, so nothing is lost with SIGKILL.
ETCD_GRACE_S = 1.0

# Below 32768, where Linux begins to hand out ports for outgoing connections: a port that is free now
# is not taken by somebody's client socket before the server binds it.
_PORTS = range(15_000, 32_000)
_START_ATTEMPTS = 3


class ServerFailed(BatonError):
    """A local server did not start, did not answer in time, or is not ours any more. Shows its last log lines."""


# -- one process ------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that are free at this moment."""
    with_sockets: list[tuple[int, socket.socket]] = []
    try:
        for port in random.SystemRandom().sample(_PORTS, 200):
            s = socket.socket()
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                s.close()
                continue
            with_sockets.append((port, s))
            if len(with_sockets) == count:
                return [p for p, _ in with_sockets]
    finally:
        for _, s in with_sockets:
            s.close()
    raise ServerFailed(f"found no {count} free loopback ports between {_PORTS.start} and {_PORTS.stop}")


@dataclass(slots=True)
class Proc:
    """One server process, known by pid and start time."""

    argv: list[str]
    log: str
    pid: int = 0
    started: float = 0.0
    log_from: int = 0  # where the log of this start begins, in bytes
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.log_from = log.tell()
            # A session of its own: Ctrl-C in the terminal, or the end of the starter, is not the end of the server.
            self._popen = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._popen.pid
        try:
            self.started = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            self.started = 0.0  # gone already; `alive` says so and the waiter shows the log

    @property
    def alive(self) -> bool:
        if self._popen is not None:
            return self._popen.poll() is None
        try:
            p = psutil.Process(self.pid)
            return p.create_time() == self.started and p.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def exit_code(self) -> int | None:
        """Of an ended process, if this handle started it; negative: the signal that ended it."""
        return None if self._popen is None else self._popen.poll()

    def send(self, sig: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, sig)

    def pause(self) -> None:
        """SIGSTOP; returns when every thread stands still, since the signal reaches them one by one."""
        self.send(signal.SIGSTOP)
        if not _wait(self._still, STOP_GRACE_S):
            raise ServerFailed(f"process {self.pid} ({self.argv[0]}) does not stop on SIGSTOP")

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def _still(self) -> bool:
        """All threads are stopped, or there are none."""
        try:
            stats = [p.read_text() for p in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            return False  # a thread ended while we looked: look again
        return all(s.rpartition(")")[2].split()[0] in "TZX" for s in stats)

    def wait_gone(self, timeout_s: float) -> bool:
        return _wait(lambda: not self.alive, timeout_s)

    def kill(self) -> None:
        """SIGKILL, which also ends a paused process; returns when it is gone."""
        self.send(signal.SIGKILL)
        if not self.wait_gone(STOP_GRACE_S):
            raise ServerFailed(f"process {self.pid} ({self.argv[0]}) does not die from SIGKILL")

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log since it was started last."""
        try:
            with open(self.log, "rb") as log:
                log.seek(self.log_from)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def as_record(self) -> dict[str, Any]:
        return {"argv": self.argv, "log": self.log, "pid": self.pid, "started": self.started}


def _stop(procs: Sequence[Proc], grace_s: float) -> None:
    """Ask all of them at once, then make sure. A paused one is woken, or it could not hear the request."""
    for p in procs:
        p.send(signal.SIGTERM)
        p.send(signal.SIGCONT)
    deadline = boottime_ns() + ns(grace_s)
    for p in procs:
        p.wait_gone(max(0.0, (deadline - boottime_ns()) / 1e9))
        p.kill()


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = boottime_ns() + ns(timeout_s)
    while not condition():
        if boottime_ns() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _wait_ready(name: str, procs: Sequence[Proc], ready: Callable[[], bool], timeout_s: float) -> None:
    """Until `ready()`; ServerFailed, with the last log lines, when a process ends first or the time is up."""

    def ended() -> list[Proc]:
        return [p for p in procs if not p.alive]

    if _wait(lambda: bool(ended()) or ready(), timeout_s) and not ended():
        return
    gone = ended()
    what = "ended at once" if gone else f"did not answer within {timeout_s:g} s"
    guilty = gone or procs
    logs = "\n".join(f"{p.log}:\n{p.tail()}" for p in guilty)
    raise ServerFailed(f"{name} {what}. Its last words:\n{logs}")


def _with_ports(count: int, ports: Sequence[int] | None, start: Callable[[Sequence[int]], Any]) -> Any:
    """Start with the ports given; or with free ones, and again with others if somebody was faster to bind one."""
    if ports is not None:
        if len(ports) != count:
            raise ConfigError(f"{len(ports)} ports given, {count} needed")
        return start(ports)
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            return start(free_ports(count))
        except ServerFailed as e:
            if "address already in use" not in str(e).lower() or attempt == _START_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


# -- etcd -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files: the server's certificate and key, and the CA whose client certificates it accepts."""

    ca: str
    cert: str
    key: str


@dataclass(slots=True)
class EtcdMember:
    name: str
    dir: str
    client_port: int
    peer_port: int
    proc: Proc
    tls: ServerTls | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.client_port}"

    def healthy(self) -> bool:
        """It answers, and it knows a leader with a majority behind it."""
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls.ca)
            context.load_cert_chain(self.tls.cert, self.tls.key)
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.client_port, timeout=1, context=context
            )
        else:
            link = http.client.HTTPConnection("127.0.0.1", self.client_port, timeout=1)
        try:
            link.request("GET", "/health")
            return b'"true"' in link.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()


@dataclass(slots=True)
class LocalEtcd:
    """A running local etcd: one member or three. `i` counts members from 0."""

    members: list[EtcdMember]
    warnings: list[str]

    @property
    def endpoints(self) -> list[str]:
        return [m.endpoint for m in self.members]

    @property
    def pids(self) -> list[int]:
        return [m.proc.pid for m in self.members]

    @property
    def alive(self) -> bool:
        return all(m.proc.alive for m in self.members)

    def kill(self, i: int) -> None:
        self.members[i].proc.kill()

    def pause(self, i: int) -> None:
        self.members[i].proc.pause()

    def resume(self, i: int) -> None:
        self.members[i].proc.resume()

    def restart(self, i: int, *, wait: bool = True, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start member `i` again on its own data, killing it first if it still runs.

        wait: until it is healthy, which takes a majority; False to bring several back one after the other.
        """
        m = self.members[i]
        m.proc.kill()
        m.proc.start()
        if wait:
            _wait_ready(f"etcd member {m.name}", [m.proc], m.healthy, timeout_s)

    def wait_healthy(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Every member answers and agrees on a leader; ServerFailed otherwise."""
        procs = [m.proc for m in self.members]
        _wait_ready("etcd", procs, lambda: all(m.healthy() for m in self.members), timeout_s)

    def stop(self, grace_s: float = ETCD_GRACE_S) -> None:
        _stop([m.proc for m in self.members], grace_s)

    def as_record(self) -> dict[str, Any]:
        """Plain data (JSON) from which another process gets this handle back."""
        return {
            "warnings": self.warnings,
            "members": [
                {
                    "name": m.name,
                    "dir": m.dir,
                    "client_port": m.client_port,
                    "peer_port": m.peer_port,
                    "proc": m.proc.as_record(),
                    "tls": asdict(m.tls) if m.tls else None,
                }
                for m in self.members
            ],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LocalEtcd:
        members = [
            EtcdMember(
                **{k: m[k] for k in ("name", "dir", "client_port", "peer_port")},
                proc=Proc(**m["proc"]),
                tls=ServerTls(**m["tls"]) if m["tls"] else None,
            )
            for m in record["members"]
        ]
        return cls(members, record["warnings"])


def start_etcd(
    dir: Path | str,
    members: int = 3,
    ports: Sequence[int] | None = None,
    *,
    tls: ServerTls | None = None,
    extra_args: Sequence[str] = (),
    timeout_s: float = READY_TIMEOUT_S,
) -> LocalEtcd:
    """Start `members` etcd servers (1 or 3) with their data and logs under `dir`; return when all are healthy.

    ports: client and peer port of each member in turn; chosen if None. On data left by an earlier run, hand in the
    ports of that run: etcd remembers its peers' addresses.
    Raises ConfigError (no usable etcd) or ServerFailed; after either, nothing that this call started is running.
    """
    if members not in (1, 3):
        raise ConfigError(f"etcd members = {members}: 1 or 3")
    binary = find_etcd()

    def start(ports: Sequence[int]) -> LocalEtcd:
        etcd = etcd_processes(binary, dir, members, ports, tls=tls, extra_args=extra_args)
        procs = [m.proc for m in etcd.members]
        try:
            for p in procs:
                p.start()
            etcd.wait_healthy(timeout_s)
        except BaseException:  # whatever it was, Ctrl-C too: leave nothing running behind
            for p in procs:
                p.kill()
            raise
        return etcd

    etcd: LocalEtcd = _with_ports(2 * members, ports, start)
    return etcd


def etcd_processes(
    binary: Binary,
    dir: Path | str,
    count: int,
    ports: Sequence[int],
    *,
    tls: ServerTls | None = None,
    extra_args: Sequence[str] = (),
) -> LocalEtcd:
    """As `start_etcd`, ready to be started by the caller, who watches over them."""
    dir = Path(dir).absolute()
    names = [f"etcd{i + 1}" for i in range(count)]
    peers = dict(zip(names, ports[1::2], strict=True))
    cluster = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in peers.items())
    scheme = "https" if tls else "http"
    members = []
    for name, client_port in zip(names, ports[0::2], strict=True):
        home = dir / name
        home.mkdir(parents=True, exist_ok=True)
        client, peer = f"{scheme}://127.0.0.1:{client_port}", f"http://127.0.0.1:{peers[name]}"
        argv = [
            str(binary.path),
            f"--name={name}",
            f"--data-dir={home / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={cluster}",
            "--initial-cluster-token=baton-local",
            # The shortest lease etcd grants is ceil(3/2 x election / heartbeat) heartbeats, in whole seconds:
            # 1 s with these, 2 s with etcd's defaults.
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=100000",
            f"--quota-backend-bytes={1 << 30}",
            "--logger=zap",
            "--log-outputs=stderr",
            "--log-level=warn",
        ]
        if tls:
            argv += [
                f"--cert-file={tls.cert}",
                f"--key-file={tls.key}",
                f"--trusted-ca-file={tls.ca}",
                "--client-cert-auth",
            ]
        proc = Proc([*argv, *extra_args], str(home / "log"))
        members.append(EtcdMember(name, str(home), client_port, peers[name], proc, tls))
    return LocalEtcd(members, etcd_version_warnings(binary.version))


# -- Redis ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LocalRedis:
    """A running local Redis, as the gate needs it: every write synced, nothing ever evicted."""

    port: int
    dir: str
    proc: Proc

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.proc.pid

    @property
    def alive(self) -> bool:
        return self.proc.alive

    def answers(self) -> bool:
        """It has loaded its data and takes commands."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                s.sendall(b"PING\r\n")
                return s.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        self.proc.kill()

    def pause(self) -> None:
        self.proc.pause()

    def resume(self) -> None:
        self.proc.resume()

    def restart(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it again on its own data, killing it first if it still runs."""
        self.proc.kill()
        self.proc.start()
        _wait_ready("Redis", [self.proc], self.answers, timeout_s)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        _stop([self.proc], grace_s)

    def as_record(self) -> dict[str, Any]:
        return {"port": self.port, "dir": self.dir, "proc": self.proc.as_record()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LocalRedis:
        return cls(record["port"], record["dir"], Proc(**record["proc"]))


def start_redis(
    dir: Path | str, port: int | None = None, *, extra_args: Sequence[str] = (), timeout_s: float = READY_TIMEOUT_S
) -> LocalRedis:
    """Start a Redis with its data and log under `dir`; return when it answers. Raises as `start_etcd`."""
    binary = find_redis()

    def start(ports: Sequence[int]) -> LocalRedis:
        redis = redis_process(binary, dir, ports[0], extra_args=extra_args)
        try:
            redis.proc.start()
            _wait_ready("Redis", [redis.proc], redis.answers, timeout_s)
        except BaseException:  # as in start_etcd
            redis.proc.kill()
            raise
        return redis

    redis: LocalRedis = _with_ports(1, None if port is None else [port], start)
    return redis


def redis_process(binary: Binary, dir: Path | str, port: int, *, extra_args: Sequence[str] = ()) -> LocalRedis:
    """As `start_redis`, ready to be started by the caller, who watches over it."""
    home = Path(dir).absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(home),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",  # a claim that was answered survives a crash
        "maxmemory-policy": "noeviction",  # a full Redis refuses; it never forgets a token
    }
    if binary.version >= (6, 2, 0):
        # A title is written over the environment, by which a local cluster finds processes that nobody wrote down.
        settings["set-proc-title"] = "no"
    words = (word for key, value in settings.items() for word in (f"--{key}", value))
    return LocalRedis(port, str(home), Proc([str(binary.path), *words, *extra_args], str(home / "log")))
