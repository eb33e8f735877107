"""Failovers of a real cluster, each kind many times: from the fault to the venue's first accepted order of the next
leader, by one clock. The probe strategy always has an order to place, so what is measured is Baton, not a strategy.

    switchover   the end of the old permit, as in the leadership's record, to the next token's first order: the gap
    killed       SIGKILL of the leader's worker
    hung         SIGSTOP of the leader's worker: its loop stands still, as in an endless loop
    host lost    SIGKILL of both processes, and nothing restarts or resigns: only the lease tells
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from chaos.bench.stats import Row
from chaos.record_tail import RecordTail
from cluster.core.errors import BatonError, OutcomeUnknown, Unreachable
from node.local.cluster import LocalCluster, Options
from node.local.process import ProcessId

PROBE = "node.strategies.probe:Probe"
HEALTHY_LIMIT_S = 30.0
ORDER_LIMIT_S = 15.0
LET_IT_HAPPEN_S = 0.2
"""The record keeps the time of everything: looking while it happens would only take the machine's time from it."""


class Failovers:
    """One cluster, broken again and again. `probe_s`: how often the probe places an order."""

    def __init__(self, directory: Path, *, probe_s: float = 0.05, ttl_s: float = 1.0) -> None:
        self.cluster = LocalCluster(directory)
        self.ttl_s = ttl_s
        self._options = Options(
            strategy=PROBE,
            overlay={
                "lease": {"ttl_s": ttl_s},
                "strategy": {"config": {"interval_s": str(probe_s)}},
                "risk": {"orders_per_s": 1000, "orders_burst": 1000},
            },
        )

    def __enter__(self) -> Failovers:
        self.cluster.start(self._options, tied=True)
        self.tail = RecordTail(self.cluster.venue_record)
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()

    # -- the kinds -----------------------------------------------------------------------------------------

    def switchover(self, n: int) -> Row:
        return Row("planned switchover, trading gap", self._repeat(n, self._switch_over), target="≤ 25 ms, p99 ≤ 60")

    def killed(self, n: int) -> Row:
        return Row("leader process killed", self._repeat(n, self._kill), target="≤ 30 ms, p99 ≤ 100")

    def hung(self, n: int) -> Row:
        return Row("leader hung", self._repeat(n, self._stop), target="hang limit (250 ms) + 50 ms")

    def host_lost(self, n: int) -> Row:
        limit = f"ttl + 100 ms ({self.ttl_s + 0.1:g} s)"
        return Row(f"host lost (ttl {self.ttl_s:g} s)", self._repeat(n, self._lose_host), target=limit)

    def idle_standby(self, seconds: float = 20.0) -> dict[str, float]:
        """{"cpu": share of one core, "rss_mb"} of one standby's two processes together, over `seconds`."""
        leader, _ = self.healthy()
        standby = next(n for n in self.cluster.nodes if n != leader)
        processes = [psutil.Process(p.pid) for p in self.cluster.node_processes(standby) if p is not None]
        before = sum(sum(p.cpu_times()[:2]) for p in processes)
        begun = time.monotonic()
        time.sleep(seconds)
        used = sum(sum(p.cpu_times()[:2]) for p in processes) - before
        return {
            "cpu": used / (time.monotonic() - begun),
            "rss_mb": sum(p.memory_info().rss for p in processes) / 2**20,
        }

    # -- one failover --------------------------------------------------------------------------------------

    def _repeat(self, n: int, break_it: Callable[[str, int], int]) -> list[int]:
        return [self._once(break_it) for _ in range(n)]

    def _once(self, break_it: Callable[[str, int], int]) -> int:
        """break_it: (leader, token) -> Unix ns of the fault."""
        leader, token = self.healthy()
        try:
            begun = break_it(leader, token)
            time.sleep(LET_IT_HAPPEN_S)
            first = self.tail.wait_order(token + 1, ORDER_LIMIT_S)
        finally:
            self.cluster.release(leader)
        if first is None:
            raise BatonError(f"no failover within {ORDER_LIMIT_S:g} s; see {self.cluster.dir}")
        return int(first["at_ns"]) - begun

    def _switch_over(self, leader: str, token: int) -> int:
        asked, deadline = False, time.monotonic() + ORDER_LIMIT_S
        while time.monotonic() < deadline:
            asked = asked or self.cluster.switch_over(leader, actor="bench")
            time.sleep(LET_IT_HAPPEN_S)
            for told in self.cluster.status()["history"]:
                if told["token"] > token and told["last_sign_ns"]:
                    return int(told["last_sign_ns"])
        raise BatonError(f"no switchover within {ORDER_LIMIT_S:g} s; see {self.cluster.dir}")

    def _kill(self, leader: str, _token: int) -> int:
        return self._signal(signal.SIGKILL, self._processes(leader)[1])

    def _stop(self, leader: str, _token: int) -> int:
        return self._signal(signal.SIGSTOP, self._processes(leader)[1])

    def _lose_host(self, leader: str, _token: int) -> int:
        processes = self._processes(leader)
        self.cluster.hold(leader)
        return self._signal(signal.SIGKILL, *processes)

    @staticmethod
    def _signal(sig: signal.Signals, *processes: ProcessId) -> int:
        begun = time.time_ns()
        for process in processes:
            process.send(sig)
        return begun

    def _processes(self, node: str) -> tuple[ProcessId, ProcessId]:
        keeper, worker = self.cluster.node_processes(node)
        if keeper is None or worker is None:
            raise BatonError(f"{node} has no process to break; see {self.cluster.home(node) / 'log'}")
        return keeper, worker

    def healthy(self) -> tuple[str, int]:
        """(leader, token) of a cluster in which everybody is in sync and the leader's orders arrive."""
        deadline = time.monotonic() + HEALTHY_LIMIT_S
        while time.monotonic() < deadline:
            try:
                status = self.cluster.status()
            except (Unreachable, OutcomeUnknown):
                status = {}
            leader, nodes = status.get("leader"), status.get("nodes", [])
            ready = [n for n in nodes if n["in_sync"] and n["feed_state"] == "live"]
            if leader and len(ready) == len(self.cluster.nodes) and status["permission"]["level"] == "allowed":
                token = int(leader["token"])
                # What nodes say of each other may be a second old: the venue has seen the latest token.
                if self.tail.wait_order(token, 1.0) is not None and token == max(self.tail.first_order):
                    return str(leader["node"]), token
            time.sleep(0.1)
        raise BatonError(f"the cluster did not become healthy within {HEALTHY_LIMIT_S:g} s; see {self.cluster.dir}")
