"""Clusters of real keepers on a real etcd, with scripted workers (tests/support/scripted_worker.py), and what is needed
to break them and to see what they did.

etcd is asked over its own JSON gateway, so that nothing here shares code with what is tested.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import signal
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from cluster.clock import boottime_ns
from cluster.core.ids import NS_PER_S, ns
from cluster.keys import Keys
from cluster.spec import KeeperSpec
from node.local.process import ProcessId
from node.local.servers import LocalEtcd, Proc

LIMIT_S = 20.0
WORKER = Path(__file__).parents[2] / "support" / "scripted_worker.py"

T = TypeVar("T")


def rules(ttl_s: float) -> dict[str, Any]:
    return {
        "ttl": ns(ttl_s),
        "margin": ns(ttl_s * 0.2),
        "renew_interval": ns(ttl_s * 0.12),
        "clock_drift_max": 0.05,
        "send_slack": ns(ttl_s * 0.02),
    }


# A machine that is shared with other tests must not make a worker look hung.
PATIENT = {"hang_timeout": 6 * NS_PER_S // 10, "stop_grace": NS_PER_S // 2, "start_timeout": 20 * NS_PER_S}


def until(condition: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """The first true value of `condition`; an etcd that does not answer is none."""
    deadline = boottime_ns() + ns(limit_s)
    while True:
        try:
            if got := condition():
                return got
            why = ""
        except (OSError, http.client.HTTPException) as e:
            why = f" ({e})"
        assert boottime_ns() < deadline, f"not within {limit_s:g} s: {what}{why}"
        time.sleep(0.01)


class Key(NamedTuple):
    value: bytes
    created: int
    modified: int
    lease: int

    @property
    def json(self) -> dict[str, Any]:
        """Empty for what is no object."""
        try:
            got = json.loads(self.value)
        except (ValueError, RecursionError):
            return {}
        return got if isinstance(got, dict) else {}


class Etcd:
    """The keys of a running etcd, by hand."""

    def __init__(self, server: LocalEtcd, tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self._tls = tls

    def _call(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.server.endpoints[0]}/v3/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=2, context=self._tls) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    @staticmethod
    def _bytes(text: str | bytes) -> str:
        return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()

    def keys(self, prefix: str) -> dict[str, Key]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        got = self._call("kv/range", key=self._bytes(prefix), range_end=self._bytes(end))
        return {
            base64.b64decode(kv["key"]).decode(): Key(
                base64.b64decode(kv.get("value", "")),
                int(kv["create_revision"]),
                int(kv["mod_revision"]),
                int(kv.get("lease", 0)),
            )
            for kv in got.get("kvs", [])
        }

    def put(self, key: str, value: str | bytes, lease: int = 0) -> int:
        got = self._call("kv/put", key=self._bytes(key), value=self._bytes(value), lease=lease)
        return int(got["header"]["revision"])

    def delete(self, key: str) -> None:
        self._call("kv/deleterange", key=self._bytes(key))

    def revoke(self, lease: int) -> None:
        self._call("lease/revoke", ID=lease)


class Act(NamedTuple):
    """One moment at which a worker saw a live permit: between `before` and `after`, BOOTTIME ns."""

    token: int
    act_until: int
    before: int
    after: int


class Node:
    def __init__(self, directory: Path, name: str, spec: dict[str, Any]) -> None:
        self.directory = directory
        self.name = name
        self.spec = spec
        self.home = directory / f"{name}.home"
        self.keeper = Proc([], str(directory / f"{name}.log"))

    def start(self, *behaviours: str, **changed: Any) -> Node:
        """behaviours: of its workers."""
        spec = self.spec | {"node": self.name, "data_dir": str(self.home)} | changed
        spec.setdefault("worker_argv", [sys.executable, str(WORKER), str(self.directory), self.name, *behaviours])
        file = self.directory / f"{self.name}.spec"
        file.write_text(json.dumps(spec))
        self.keeper.argv = [sys.executable, "-m", "cluster.keeper", str(file)]
        self.keeper.start()
        return self

    def told(self) -> KeeperSpec:
        """What its keeper was started with."""
        return KeeperSpec.load((self.directory / f"{self.name}.spec").read_text())

    def wait_exit(self, limit_s: float = LIMIT_S) -> int:
        assert self.keeper.wait_gone(limit_s), f"{self.name} does not end; {self.keeper.tail()}"
        code = self.keeper.exit_code
        assert code is not None
        return code

    # -- the worker ----------------------------------------------------------------------------------------

    @property
    def worker(self) -> Proc:
        """The one that runs now."""
        pid = self.log("worker_started")[-1]["pid"]
        return Proc([f"worker of {self.name}"], self.keeper.log, pid, psutil.Process(pid).create_time())

    def order(self, *order: Any) -> None:
        """Have the running worker do something: see scripted_worker.py."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(json.dumps(order).encode(), str(self.directory / f"{self.name}.sock"))

    # -- what it did -----------------------------------------------------------------------------------------

    @staticmethod
    def _json_lines(path: Path) -> list[dict[str, Any]]:
        try:
            text = path.read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]

    def log(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What the keeper logged."""
        lines = self._json_lines(Path(self.keeper.log))
        return [e for e in lines if event in (None, e["event"]) and fields.items() <= e.items()]

    def stderr(self) -> list[str]:
        """What the keeper said beside its log."""
        try:
            lines = Path(self.keeper.log).read_text().splitlines()
        except FileNotFoundError:
            return []
        # Said by a worker that was just starting when we killed its keeper.
        return [line for line in lines if not line.startswith("{") and line != "keeper is gone"]

    def seen(self, what: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What its workers noted."""
        lines = self._json_lines(self.directory / f"{self.name}.seen")
        return [e for e in lines if what in (None, e["what"]) and fields.items() <= e.items()]

    def acts(self, token: int | None = None) -> list[Act]:
        try:
            text = (self.directory / f"{self.name}.acts").read_text()
        except FileNotFoundError:
            return []
        acts = [Act(*map(int, line.split())) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [a for a in acts if token in (None, a.token)]

    def last_act(self) -> Act | None:
        """As `acts()[-1]`, without reading all of them."""
        try:
            with open(self.directory / f"{self.name}.acts", "rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - 512))
                lines = f.read().split(b"\n")
        except FileNotFoundError:
            return None
        return Act(*map(int, lines[-2].split())) if len(lines) > 1 else None


class Cluster:
    """Nodes n1, n2, ... of one cluster."""

    def __init__(self, directory: Path, etcd: Etcd, name: str, *, size: int = 3, ttl_s: float = 2.0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.etcd = etcd
        self.keys = Keys(name)
        spec = {
            "cluster": name,
            "etcd": {"endpoints": etcd.server.endpoints, "call_timeout_s": 0.25},
            "rules": rules(ttl_s),
            "timing": PATIENT,
        }
        self.nodes = {n: Node(directory, n, spec) for n in (f"n{i + 1}" for i in range(size))}
        self.failures_allowed: set[str] = set()

    def __getitem__(self, node: str) -> Node:
        return self.nodes[node]

    def start(self, *behaviours: str) -> Cluster:
        for node in self.nodes.values():
            node.start(*behaviours)
        return self

    # -- what stands in etcd -----------------------------------------------------------------------------------

    def key(self, name: str) -> Key | None:
        return self.etcd.keys(self.keys.prefix).get(name)

    def value(self, name: str) -> dict[str, Any]:
        key = self.key(name)
        return key.json if key else {}

    @property
    def resigned(self) -> dict[str, Any]:
        return self.value(self.keys.resigned)

    def token(self) -> int:
        """Of who leads; 0: nobody."""
        key = self.key(self.keys.leader)
        return key.created if key else 0

    def wait_leader(self, *, after: int = 0, limit_s: float = LIMIT_S) -> Node:
        """The node that acts with a higher token than `after`."""

        def leading() -> Node | None:
            key = self.key(self.keys.leader)
            if key is None or key.created <= after:
                return None
            node = self.nodes.get(key.json.get("node", ""))
            last = node.last_act() if node else None
            return node if last and last.token == key.created else None

        return until(leading, f"a leader acts with a token above {after}", limit_s)

    def wait_whole(self, *, after: int = 0, nodes: Sequence[str] = ()) -> Node:
        """The leader, once it acts and all nodes are in sync and ready."""
        wanted = set(nodes or self.nodes)

        def whole() -> bool:
            kvs = self.etcd.keys(self.keys.prefix)
            insync = kvs[self.keys.insync].json["members"] if self.keys.insync in kvs else {}
            members = {n: kvs[m].json for n in wanted if (m := self.keys.member(n)) in kvs}
            return wanted == members.keys() and all(
                m["ready"] and m["journal_id"] == insync.get(n) for n, m in members.items()
            )

        leader = self.wait_leader(after=after)
        until(whole, f"{sorted(wanted)} are in sync and ready")
        return leader

    def standbys(self) -> list[Node]:
        leader = self.value(self.keys.leader).get("node")
        return [n for n in self.nodes.values() if n.name != leader]

    # -- what must always hold -----------------------------------------------------------------------------------

    def check(self) -> None:
        """No two workers ever saw a live permit at one instant; no keeper failed, or said what is not a log line."""
        acts = [a for n in self.nodes.values() for a in n.acts()]
        by_token: dict[int, tuple[int, int]] = {}
        for a in acts:
            first, last = by_token.get(a.token, (a.after, a.before))
            by_token[a.token] = (min(first, a.after), max(last, a.before))
        tokens = sorted(by_token)
        for old, new in itertools.pairwise(tokens):
            assert by_token[old][1] <= by_token[new][0], (
                f"token {old} was still live {(by_token[old][1] - by_token[new][0]) / 1e6:.3f} ms after {new} was"
            )
        for node in self.nodes.values():
            tokens_of_node = {a.token for a in node.acts()}
            for other in self.nodes.values():
                assert other is node or not tokens_of_node & {a.token for a in other.acts()}
            for event in ("loop_error", "keeper_failed", "node_stopped"):
                assert event in self.failures_allowed or not node.log(event), node.log(event)
            assert "stderr" in self.failures_allowed or not node.stderr(), node.stderr()[:20]

    def stop(self) -> None:
        """Kill the keepers; the kernel kills their workers, a paused or hanging one too."""
        for node in self.nodes.values():
            if node.keeper.pid:
                node.keeper.kill()
        try:
            until(lambda: not self._workers(), "the workers end with their keepers")
        finally:
            for pid in self._workers():
                os.kill(pid, signal.SIGKILL)

    def _workers(self) -> list[int]:
        """Those that run; by what they run, since a pid alone may be somebody else's by now."""
        pids = [e["pid"] for node in self.nodes.values() for e in node.log("worker_started")]
        return [pid for pid in pids if str(self.directory) in _command(pid)]


def _command(pid: int) -> str:
    """Empty for one that has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def gone(pid: int) -> bool:
    """Ended with all its threads, so that it holds no lock; its parent may be dead or yet to wait for it."""
    return ProcessId.of(pid) is None


def wait_died(pid: int, limit_s: float = LIMIT_S) -> int:
    """When the process died, by BOOTTIME, and a little later."""
    until(lambda: gone(pid), f"process {pid} dies", limit_s)
    return boottime_ns()


def sigterm(node: Node) -> None:
    node.keeper.send(signal.SIGTERM)
