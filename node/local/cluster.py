"""A cluster of real processes on this machine, kept under one directory: layout, start, stop, and hands on it.

    D/cluster.json    the record: options, ports, and which processes run; written by whoever holds D/lock
    D/supervisor.log  D/etcd/  D/redis/  D/feed/  D/venue/
    D/nodes/n1/       baton.toml, data/, log, hold

The supervisor (`launch.py`) is a process of its own, also for a foreground `baton up`: one way to start, one way to
stop. Ports are chosen at the first start and kept, and so is all state; `start` on the same directory goes on with it.
Never for production: one machine, one disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, ConfigError
from cluster.core.ids import NS_PER_S, ns
from node.local import nodeconfig, process
from node.local.process import MARK, ProcessId
from node.local.servers import ServerFailed, free_ports

SCHEMA = 1
RECORD = "cluster.json"
_ALWAYS_THERE = {"id": str, "options": dict, "ports": dict}
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
NODE_GRACE_S = 8.0
"""A keeper hands over and resigns within five seconds; etcd must still be there meanwhile."""


class ClusterRunning(BatonError):
    """Something of a cluster runs in this directory already."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `baton up` is told. feed: a capture's path, "synthetic", or "" for the recording beside the checkout if
    there is one. overlay: merged over each generated configuration (`nodeconfig`). venue_args, feed_args: further words
    for `baton venue run` and `baton feed serve`, for drills."""

    nodes: int = 3
    etcd: int = 3
    feed: str = ""
    speed: float = 1.0
    venue_profile: str = "token"
    strategy: str = nodeconfig.DEFAULT_STRATEGY
    overlay: dict[str, Any] = field(default_factory=dict)
    venue_args: list[str] = field(default_factory=list)
    feed_args: list[str] = field(default_factory=list)

    @property
    def market(self) -> str:
        """For people."""
        from node.feeds.replay import default_capture

        if self.feed == "synthetic":
            return "a synthetic market"
        capture = self.feed or default_capture()
        return f"market data from {capture}" if capture else "a synthetic market (no recording given or found)"

    @property
    def node_names(self) -> list[str]:
        return [f"n{i + 1}" for i in range(self.nodes)]

    @property
    def etcd_names(self) -> list[str]:
        return [f"etcd{i + 1}" for i in range(self.etcd)]

    def check(self) -> None:
        """Raises ConfigError, naming the option."""
        from node.paper_venue.profile import parse_profile

        if not 1 <= self.nodes <= 9:
            raise ConfigError(f"--nodes {self.nodes}: between 1 and 9")
        if self.etcd not in (1, 3):
            raise ConfigError(f"--etcd {self.etcd}: 1 or 3")
        if not 0.01 <= self.speed <= 10_000:
            raise ConfigError(f"--speed {self.speed:g}: between 0.01 and 10000")
        if self.feed not in ("", "synthetic") and not Path(self.feed).is_file():
            raise ConfigError(f"--feed {self.feed}: there is no such file; name a capture, or: --feed synthetic")
        parse_profile(self.venue_profile)
        nodeconfig.check_overlay(self.overlay, self.node_names)


class LocalCluster:
    """The cluster under `directory`, running or not. Cheap; make one wherever it is needed."""

    def __init__(self, directory: Path | str) -> None:
        self.dir = Path(directory).absolute()
        self._lifeline = -1  # our end of a tied supervisor's: open for as long as we live

    # -- layout ----------------------------------------------------------------------------------------------

    @property
    def record_file(self) -> Path:
        return self.dir / RECORD

    @property
    def supervisor_log(self) -> Path:
        return self.dir / "supervisor.log"

    @property
    def venue_record(self) -> Path:
        """For `node.paper_venue.record`: the venue's own, total order of what happened. May be read at any time."""
        return self.dir / "venue"

    def home(self, name: str) -> Path:
        """Where the program `name` keeps its things."""
        if name.startswith("etcd"):
            return self.dir / "etcd" / name
        return self.dir / name if name in ("redis", "feed", "venue") else self.dir / "nodes" / name

    def config_file(self, node: str) -> Path:
        return self.home(node) / "baton.toml"

    def journal_dir(self, node: str) -> Path:
        return self.home(node) / "data"

    # -- the record ------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self.record_file.is_file()

    def record(self) -> dict[str, Any]:
        """Raises ConfigError if there is none, or it cannot be read."""
        try:
            record = json.loads(self.record_file.read_text())
        except FileNotFoundError:
            raise ConfigError(f"there is no cluster in {self.dir}; start one: baton up --dir {self.dir}") from None
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"{self.record_file} cannot be read ({e}); stop what still runs, remove it, and start anew"
            ) from e
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ConfigError(f"{self.record_file} is not of this version of Baton; use another directory")
        if not all(isinstance(record.get(key), kind) for key, kind in _ALWAYS_THERE.items()):
            raise ConfigError(
                f"{self.record_file} lacks some of {', '.join(_ALWAYS_THERE)}; stop what still runs, remove it, and "
                "start anew"
            )
        return record

    def update(self, **changes: Any) -> None:
        """Change the record; only by whoever holds the lock."""
        text = json.dumps(self.record() | changes, indent=2) if self.exists else json.dumps(changes, indent=2)
        temporary = self.record_file.with_suffix(".new")
        with open(temporary, "w") as f:
            f.write(text + "\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, self.record_file)

    @property
    def options(self) -> Options:
        """Of the latest start, whether it succeeded or not."""
        return _as_options(self.record()["options"])

    @property
    def good_options(self) -> Options:
        """What the next start goes on with: the options of the last one that came to trade, else the defaults. The
        number of etcd members is that of the data, whoever made it."""
        record = self.record()
        good = record.get("good_options", record["options"])  # a record that knows no others is of a good start
        return replace(_as_options(good) if good else Options(), etcd=self.options.etcd)

    @property
    def nodes(self) -> list[str]:
        return self.options.node_names

    def port(self, name: str, which: int = 0) -> int:
        """etcd: 0 client, 1 peer. A node: 0 gRPC, 1 HTTP. Others have one."""
        return int(self.record()["ports"][name][which])

    def http_url(self, node: str) -> str:
        return f"http://127.0.0.1:{self.port(node, 1)}"

    @property
    def urls(self) -> list[str]:
        """Of every node's HTTP API, in order."""
        return [self.http_url(n) for n in self.nodes]

    @property
    def etcd_endpoints(self) -> list[str]:
        return [f"http://127.0.0.1:{self.port(n)}" for n in self.options.etcd_names]

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.port('redis')}/0"

    @property
    def feed_url(self) -> str:
        return f"ws://127.0.0.1:{self.port('feed')}"

    @property
    def venue_address(self) -> str:
        return f"127.0.0.1:{self.port('venue')}"

    # -- processes -------------------------------------------------------------------------------------------

    @property
    def supervisor(self) -> ProcessId | None:
        """None if it does not run."""
        found = ProcessId.from_record(self.record().get("supervisor")) if self.exists else None
        return found if found is not None and found.alive else None

    @property
    def running(self) -> bool:
        return self.supervisor is not None

    @property
    def stopped(self) -> bool:
        """It was stopped, or gave up; not so while it starts, or after its supervisor was killed."""
        return not self.running and self.record().get("state") in ("stopped", "failed")

    def programs(self) -> dict[str, dict[str, Any]]:
        """By name: state, process, restarts, last_exit, log."""
        programs: dict[str, dict[str, Any]] = self.record().get("programs", {})
        return programs

    def process(self, name: str) -> ProcessId | None:
        """The running process of program `name`: etcd1, redis, feed, venue, n1 (its keeper) and so on."""
        programs = self.programs()
        if name not in programs:
            raise ConfigError(f"no program {name!r} in {self.dir}; there are: {', '.join(programs)}")
        found = ProcessId.from_record(programs[name].get("process"))
        return found if found is not None and found.alive else None

    def node_processes(self, node: str) -> tuple[ProcessId | None, ProcessId | None]:
        """(keeper, worker) of a node; None for one that does not run."""
        keeper = self.process(node)
        if keeper is None:
            return None, None
        try:
            children = psutil.Process(keeper.pid).children()
        except psutil.NoSuchProcess:
            return None, None
        return keeper, ProcessId.of(children[0].pid) if children else None

    def hold(self, name: str) -> None:
        """From now on, do not restart the program when it dies, and do not resign for a node: its host is lost."""
        (self.home(name) / "hold").touch()

    def release(self, name: str) -> None:
        """Its host is back: start it again if it is dead."""
        (self.home(name) / "hold").unlink(missing_ok=True)

    def status(self, timeout_s: float = 1.0) -> dict[str, Any]:
        """What the nodes say, merged: see `node.client.cluster_status`, which also tells what it raises."""
        from node.client import cluster_status

        return cluster_status(self.urls, timeout_s=timeout_s)

    def switch_over(self, leader: str, *, actor: str, target: str | None = None) -> bool:
        """Ask `leader` to hand over to `target`, or to whoever is best; False: it says that nobody is ready. A standby
        says of itself that it is up to a second after it is."""
        from node.client import Answered, post_json

        try:
            post_json(self.http_url(leader), "/v1/switchover", {"target": target, "actor": actor}, timeout_s=8.0)
        except Answered as e:
            if e.code != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    # -- start and stop --------------------------------------------------------------------------------------

    def start(self, options: Options, *, timeout_s: float = START_TIMEOUT_S, tied: bool = False) -> None:
        """Start everything and return when the cluster trades. tied: it stops when this process ends, however it ends.

        Raises ClusterRunning, ConfigError (an option, a generated configuration, a port that is taken), ServerFailed
        (shows the log of what did not start); after any of them nothing that this call started is running."""
        ready_in, ready_out = os.pipe()
        life_in, life_out = os.pipe()
        prepared = False
        try:
            try:
                with self._locked() as lock:
                    self.refuse_running()
                    self._prepare(options)
                    prepared = True
                    child = self._spawn(lock, ready_out, life_in if tied else None)
            finally:
                os.close(ready_out)
                os.close(life_in)
                if tied and prepared:
                    self._lifeline = life_out
                else:
                    os.close(life_out)
            self._wait_ready(child, ready_in, timeout_s)
        except BaseException:  # Ctrl-C too: leave nothing running behind
            if prepared:  # else what runs here, if anything, is not ours
                self.stop_or_kill()
            raise
        finally:
            os.close(ready_in)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop everything that still runs, also after the supervisor was killed; whether there was anything.
        Raises StillRunning."""
        if not self.exists:
            return False
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        supervisor = self.supervisor
        if supervisor is not None:
            process.stop([supervisor], timeout_s)
        left = self._left()
        if left:
            keepers = [p for n in self.nodes if (p := self._recorded(n)) is not None and p.alive]
            process.stop(keepers, NODE_GRACE_S)
            process.stop(self._left(), 3.0)
        with self._locked(wait_s=5.0):
            programs = {n: p | {"process": None, "state": "stopped"} for n, p in self.programs().items()}
            self.update(state="stopped", supervisor=None, programs=programs)
        return supervisor is not None or bool(left)

    def stop_or_kill(self) -> None:
        """Stop; who cannot wait for that and interrupts again has everything killed."""
        try:
            self.stop()
        except KeyboardInterrupt:
            self.kill()
            self.stop()

    def kill(self) -> None:
        """SIGKILL for everything, the supervisor first."""
        if (supervisor := self.supervisor) is not None:
            supervisor.send(signal.SIGKILL)
            process.wait_gone([supervisor], 5.0)
        left = self._left()
        for p in left:
            p.send(signal.SIGKILL)
        process.wait_gone(left, 5.0)

    # -- inside ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, wait_s: float = 0.0) -> Iterator[int]:
        """The lock of the directory, whose descriptor a supervisor inherits. Raises ClusterRunning."""
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as e:
            raise ConfigError(f"--dir {self.dir} cannot be used: {e.strerror}") from e
        try:
            deadline = boottime_ns() + ns(wait_s)
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if boottime_ns() >= deadline:
                        raise self._runs() from None
                    select.select([], [], [], 0.02)
            yield fd
        finally:
            os.close(fd)

    def _runs(self) -> ClusterRunning:
        supervisor = self.supervisor
        who = f" (supervisor pid {supervisor.pid})" if supervisor else ""
        return ClusterRunning(
            f"a cluster runs in {self.dir}{who}; look: baton status --dir {self.dir}, "
            f"stop it: baton down --dir {self.dir}"
        )

    def _recorded(self, name: str) -> ProcessId | None:
        return ProcessId.from_record(self.programs().get(name, {}).get("process"))

    def _left(self) -> list[ProcessId]:
        """Processes of this cluster that live, recorded or not."""
        recorded = {p for n in self.programs() if (p := self._recorded(n)) is not None and p.alive}
        return list(recorded | set(process.marked(self.record()["id"])))

    def refuse_running(self) -> None:
        """Raises ClusterRunning if a cluster runs here, or what a killed supervisor left behind."""
        if self.running:
            raise self._runs()
        if self.exists and (left := self._left()):
            pids = ", ".join(str(p.pid) for p in left)
            raise ClusterRunning(
                f"processes of an earlier cluster in {self.dir} still run without their supervisor (pid {pids}); "
                f"stop them first: baton down --dir {self.dir}"
            )

    def _prepare(self, options: Options) -> None:
        """Everything that can be wrong is found here, before anything is started."""
        options.check()
        if options.feed not in ("", "synthetic"):
            options = replace(options, feed=str(Path(options.feed).absolute()))
        before = self.record_file.read_bytes() if self.exists else None
        try:
            self._lay_out(options)
        except BaseException:  # options that were refused must not be taken up by the next start
            if before is not None:
                self.record_file.write_bytes(before)
            else:
                self.record_file.unlink(missing_ok=True)
            raise

    def _lay_out(self, options: Options) -> None:
        old: dict[str, Any] = self.record() if self.exists else {"good_options": None}
        if self.exists and old["options"]["etcd"] != options.etcd:
            raise ConfigError(
                f"--etcd {options.etcd}: the data in {self.dir} is of {old['options']['etcd']} etcd members; "
                "keep that number, or use another directory"
            )
        ports = self._ports(options, old.get("ports", {}))
        self.update(
            schema=SCHEMA,
            id=old.get("id") or secrets.token_hex(8),
            options=asdict(options),
            good_options=old.get("good_options", old.get("options")),
            ports=ports,
            state="starting",
            reason="",
            supervisor=None,
            programs={},
        )
        for node in options.node_names:
            self._write_config(node, options)

    def _ports(self, options: Options, old: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """The ports of the first start again; free ones for programs that are new."""
        wanted = dict.fromkeys(options.etcd_names, 2) | {"redis": 1, "feed": 1, "venue": 1}
        wanted |= dict.fromkeys(options.node_names, 2)
        kept = {name: list(old[name]) for name in wanted if name in old}
        for name, numbers in kept.items():
            for port in numbers:
                _refuse_taken(port, name, self.dir)
        fresh = iter(free_ports(sum(n for name, n in wanted.items() if name not in kept) or 1))
        return {name: kept.get(name) or [next(fresh) for _ in range(n)] for name, n in wanted.items()}

    def _write_config(self, node: str, options: Options) -> None:
        from node.config import load_config
        from node.host import load_strategy

        base = nodeconfig.generated(
            node=node,
            data_dir=self.journal_dir(node),
            grpc=f"127.0.0.1:{self.port(node, 0)}",
            http=f"127.0.0.1:{self.port(node, 1)}",
            etcd=self.etcd_endpoints,
            gate_url=self.redis_url,
            venue=self.venue_address,
            feed_url=self.feed_url,
            strategy=options.strategy,
        )
        file = self.config_file(node)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(nodeconfig.toml_text(nodeconfig.for_node(base, options.overlay, node)))
        config = load_config(file)
        load_strategy(config.strategy.path, config.strategy.config)

    def _spawn(self, lock: int, ready: int, lifeline: int | None) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "node.local.launch", str(self.dir), str(ready), str(lock)]
        keep = [ready, lock]
        if lifeline is not None:
            argv.append(str(lifeline))
            keep.append(lifeline)
        with open(self.supervisor_log, "ab") as out:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=keep,
                env=os.environ | {MARK: str(self.record()["id"])},
            )

    def _wait_ready(self, child: subprocess.Popen[bytes], pipe: int, timeout_s: float) -> None:
        """Until the supervisor says that all is up. Raises ServerFailed with what it says instead."""
        deadline = boottime_ns() + ns(timeout_s)
        said = b""
        while not said.endswith(b"\n"):
            left_s = (deadline - boottime_ns()) / NS_PER_S
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                raise ServerFailed(f"the cluster was not ready within {timeout_s:g} s; {self._why()}")
            chunk = os.read(pipe, 65536)
            if not chunk:
                child.wait()
                tail = "\n".join(self.supervisor_log.read_text(errors="replace").splitlines()[-8:])
                raise ServerFailed(f"the supervisor ended with code {child.returncode}. {self.supervisor_log}:\n{tail}")
            said += chunk
        answer = json.loads(said)
        if not answer["ok"]:
            child.wait(STOP_TIMEOUT_S)
            raise ServerFailed(answer["text"])

    def _why(self) -> str:
        """What the supervisor waits for."""
        record = self.record()
        waiting = [f"{n}: {p['state']}" for n, p in record["programs"].items() if p["state"] != "running"]
        said = ", ".join(waiting) or record["reason"] or "no program answers yet"
        return f"{said}; see {self.supervisor_log} and {self.dir}/nodes/*/log"


def _as_options(told: Mapping[str, Any]) -> Options:
    known = {f.name for f in fields(Options)}
    return Options(**{k: v for k, v in told.items() if k in known})


def _refuse_taken(port: int, name: str, directory: Path) -> None:
    """Raises ConfigError if somebody listens on the port that `name` had at the first start."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the wake of our own old connections is no obstacle
        try:
            s.bind(("127.0.0.1", port))
            return
        except OSError:
            pass
    raise ConfigError(
        f"port {port}, which {name} of the cluster in {directory} has had since its first start, is taken by "
        f"{_listener(port)}; stop that, or use another directory"
    )


def _listener(port: int) -> str:
    try:
        found = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"]
        if found and found[0].pid:
            return f"{psutil.Process(found[0].pid).name()} (pid {found[0].pid})"
    except psutil.Error:
        pass  # not allowed to look, or gone meanwhile
    return "another program"
