"""A real local cluster under load, hands to break it with, and the judge: for the end-to-end tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from chaos.record_tail import RecordTail
from chaos.show import Judgement, wait_judgement
from cluster.core.errors import OutcomeUnknown, Unreachable
from cluster.core.ids import NS_PER_S
from node.config import load_config
from node.local import process
from node.local.cluster import LocalCluster, Options
from node.local.process import ProcessId
from node.paper_venue.record import read_record

T = TypeVar("T")

LIMIT_S = 30.0
BUSY = "chaos.strategies:Busy"
TTL_S = 1.0
SLACK_S = 0.35
"""From a decision that was still right to its order's arrival, on a machine that does other things too: the commit may
wait for a standby that is late (0.25 s)."""

BATON = Path(sys.executable).parent / "baton"


def baton(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The console script, as a user runs it."""
    return subprocess.run(
        [BATON, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=os.environ | env,
    )


@contextmanager
def starting(cluster: LocalCluster, *words: object, cwd: Path | None = None) -> Iterator[None]:
    """`baton up` on a cluster that never gets to trade, until the end of the block; then Ctrl-C, after which nothing of
    it runs."""
    argv = [BATON, "up", "--dir", cluster.dir, *words, "--detach", "--timeout", "120"]
    with subprocess.Popen(list(map(str, argv)), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=cwd) as up:
        try:
            yield
            assert up.poll() is None, "it should still be waiting"
        finally:
            up.send_signal(signal.SIGINT)
            assert up.stderr is not None
            told = up.stderr.read().decode()
    assert up.returncode == 130 and "Traceback" not in told, told
    assert not cluster.running and not list(process.marked(cluster.record()["id"]))


def lacks(cluster: LocalCluster, *texts: str) -> None:
    """Wait until a starting cluster says all this of why it does not trade yet."""

    def look() -> bool:
        return cluster.exists and all(t in cluster.record()["reason"] for t in texts)

    until(f"it says {texts}", look)


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    """The first true answer of `look`. Silence of a node counts as no answer."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if found := look():
                return found
        except (Unreachable, OutcomeUnknown):
            pass
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.03)


def busy_options(*, interval_s: str = "0.04", overlay: dict[str, Any] | None = None, **more: Any) -> Options:
    """Orders all the time: three per interval. `overlay` is laid over, section by section."""
    base: dict[str, Any] = {
        "strategy": {"config": {"interval_s": interval_s}},
        "risk": {"orders_per_s": 1000, "orders_burst": 1000},
    }
    for section, values in (overlay or {}).items():
        base[section] = base.get(section, {}) | values
    return Options(**({"strategy": BUSY, "overlay": base} | more))


class Drill:
    """One cluster of `Options`, started, broken, and judged."""

    def __init__(self, directory: Path, options: Options) -> None:
        self.cluster = LocalCluster(directory)
        self.options = options

    def start(self) -> None:
        self.cluster.start(self.options, tied=True)
        self.tail = RecordTail(self.cluster.venue_record)

    # -- looking -------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        return self.cluster.nodes

    def status(self) -> dict[str, Any]:
        return self.cluster.status()

    def healthy(self, limit_s: float = LIMIT_S) -> tuple[str, int]:
        """(leader, token) once it trades, everybody is in sync with a live feed, and its orders arrive."""
        seen: dict[str, Any] = {}

        def look() -> tuple[str, int] | None:
            status = self.status()
            seen.update({k: status[k] for k in ("leader", "permission", "orders", "warnings", "answered")})
            leader, nodes = status["leader"], status["nodes"]
            ready = [n for n in nodes if n["in_sync"] and n["feed_state"] == "live"]
            seen["ready"] = [n["name"] for n in ready]
            if leader is None or len(ready) < len(self.nodes) or status["permission"]["level"] != "allowed":
                return None
            if set(status["answered"]) != set(self.nodes):
                return None
            return (str(leader["node"]), int(leader["token"])) if self.order_after(0.5) else None

        try:
            return until("a healthy cluster", look, limit_s)
        except AssertionError as e:
            raise AssertionError(f"{e}; last seen: {seen}") from None

    def permission(self, level: str, reason: str = "", limit_s: float = LIMIT_S) -> dict[str, str]:
        """Wait until the cluster says this, with these words in the reason."""

        def look() -> dict[str, str] | None:
            said: dict[str, str] = self.status()["permission"]
            return said if said["level"] == level and reason in said["reason"] else None

        return until(f"permission {level}: {reason}", look, limit_s)

    @property
    def seq(self) -> int:
        """venue_seq of the last line."""
        self.tail.read()
        return self.tail.seq

    def lines(self, after_seq: int = 0) -> list[dict[str, Any]]:
        return list(read_record(self.cluster.venue_record, after_seq))

    def orders(self, after_seq: int = 0) -> list[dict[str, Any]]:
        """New orders that the venue accepted."""
        return [x for x in self.lines(after_seq) if x["kind"] == "new" and x["outcome"] == "accepted"]

    def order_after(self, limit_s: float = LIMIT_S) -> bool:
        """Whether another order is accepted from now on."""
        seq, deadline = self.seq, time.monotonic() + limit_s
        while not self.orders(seq):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def trades_on(self) -> None:
        """A hundred more lines in the record, orders among them."""
        seq = self.seq
        until("trading goes on", lambda: len(self.orders(seq)) >= 20)

    def new_leader(self, token: int, limit_s: float = LIMIT_S) -> tuple[str, int]:
        """Who first gets an order accepted with a higher token."""
        first = self.tail.wait_order(token + 1, limit_s)
        assert first is not None, f"nobody traded after token {token} within {limit_s:g} s"
        return str(first["node"]), int(first["token"])

    def switch_over(self, leader: str, target: str | None = None) -> None:
        """Asked again while no standby has said yet that it is ready."""
        until("the leader agrees to hand over", lambda: self.cluster.switch_over(leader, actor="test", target=target))

    # -- breaking ------------------------------------------------------------------------------------------

    def process(self, name: str) -> ProcessId:
        found = until(f"{name} runs", lambda: self.cluster.process(name))
        return found

    def both(self, node: str) -> tuple[ProcessId, ProcessId]:
        """(keeper, worker), both running."""

        def look() -> tuple[ProcessId, ProcessId] | None:
            keeper, worker = self.cluster.node_processes(node)
            return (keeper, worker) if keeper and worker else None

        return until(f"{node} runs", look)

    def kill(self, name: str, *, hold: bool = False) -> None:
        """SIGKILL for a program (a node: its keeper, and with it the worker); return when it is dead."""
        if hold:
            self.cluster.hold(name)
        victim = self.process(name)
        victims = [victim, *self.both(name)] if name in self.nodes else [victim]
        victim.send(signal.SIGKILL)
        assert process.wait_gone(victims, 5.0) == []

    @contextmanager
    def lost(self, name: str) -> Iterator[None]:
        """Killed, and not back before the end of the block."""
        self.kill(name, hold=True)
        try:
            yield
        finally:
            self.cluster.release(name)

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """SIGSTOP, until the end of the block."""
        victim = self.process(name)
        victim.send(signal.SIGSTOP)
        try:
            until(f"{name} stands still", lambda: _stopped(victim.pid), 5.0)
            yield
        finally:
            victim.send(signal.SIGCONT)

    def kill_everything(self) -> int:
        """SIGKILL for every process at once, the supervisor among them; how many there were."""
        marked = self.cluster.record()["id"]
        victims = list(process.marked(marked))
        for p in victims:
            p.send(signal.SIGKILL)
        assert process.wait_gone(victims, 5.0) == []
        for p in process.marked(marked):  # what was being started that moment
            p.send(signal.SIGKILL)
            victims.append(p)
        assert process.wait_gone(victims, 5.0) == []
        return len(victims)

    # -- judging -------------------------------------------------------------------------------------------

    def judged(self) -> Judgement:
        """Stop the market, wait until the books rest, judge; the market goes on afterwards."""
        self.kill("feed", hold=True)
        try:
            return wait_judgement(self.cluster, 20.0)
        finally:
            self.cluster.release("feed")

    def holds(self) -> Judgement:
        """What was judged, which must be without a finding."""
        found = self.judged()
        assert found.problems == []
        assert found.nodes == len(self.nodes)
        assert found.record.orders and found.record.fills
        return found

    @property
    def order_tag(self) -> str:
        return load_config(self.cluster.config_file(self.nodes[0]), env={}).cluster.order_tag

    def events(self, node: str, name: str) -> list[dict[str, Any]]:
        """Lines of a node's log with this event name."""
        return [json.loads(line) for line in self.log(node).splitlines() if f'"event": "{name}"' in line]

    def snapshots(self, node: str) -> list[int]:
        """Log indexes at which it took one."""
        return [x["log_index"] for x in self.events(node, "snapshot_taken")]

    def log(self, name: str) -> str:
        return (self.cluster.home(name) / "log").read_text(errors="replace")

    def bugs(self) -> list[str]:
        """Lines of the logs that only a mistake of ours can cause."""
        files = [self.cluster.supervisor_log, *(self.cluster.home(n) / "log" for n in (*self.nodes, "feed", "venue"))]
        return [f"{f}: {line}" for f in files if f.exists() for line in _tracebacks(f.read_text(errors="replace"))]


def accepted_later_than(d: Drill, after_seq: int, at_ns: int, seconds: float) -> list[dict[str, Any]]:
    return [o for o in d.orders(after_seq) if o["at_ns"] > at_ns + seconds * NS_PER_S]


def _tracebacks(text: str) -> list[str]:
    return [line[:400] for line in text.splitlines() if re.search(r"Traceback \(most recent", line)]


def _stopped(pid: int) -> bool:
    """Every thread."""
    try:
        stats = [p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False
    return bool(stats) and all(s.rpartition(")")[2].split()[0] == "T" for s in stats)
