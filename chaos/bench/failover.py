"""Failovers of a real cluster, each kind many times: from the fault to the venue's first accepted order of the next
leader, by one clock. The probe strategy always has an order to place, so what is measured is Baton, not a strategy.

    switchover   last accepted order of the old token to the first of the next: the trading gap
    killed       SIGKILL of the leader's worker
    hung         SIGSTOP of the leader's worker: its loop stands still, as in an endless loop
    host lost    SIGKILL of both processes, and nothing restarts or resigns: only the lease tells
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from chaos.bench.stats import Row
from chaos.record_tail import RecordTail
from cluster.core.errors import BatonError, OutcomeUnknown, Unreachable
from node.client import post_json
from node.local.cluster import LocalCluster, Options

PROBE = "node.strategies.probe:Probe"
HEALTHY_LIMIT_S = 30.0
ORDER_LIMIT_S = 15.0


class Failovers:
    """One cluster, broken again and again. `probe_s`: how often the probe places an order."""

    def __init__(self, directory: Path, *, probe_s: float = 0.01, ttl_s: float = 1.0) -> None:
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
        return Row(
            "planned switchover, trading gap", self._repeat(n, self._switch_over, gap=True), target="≤ 25 ms, p99 ≤ 60"
        )

    def killed(self, n: int) -> Row:
        return Row("leader process killed", self._repeat(n, self._kill), target="≤ 30 ms, p99 ≤ 100")

    def hung(self, n: int) -> Row:
        return Row("leader hung", self._repeat(n, self._stop), target="hang limit (250 ms) + 50 ms")

    def host_lost(self, n: int) -> Row:
        limit = f"ttl + 100 ms ({self.ttl_s + 0.1:g} s)"
        return Row(f"host lost (ttl {self.ttl_s:g} s)", self._repeat(n, self._lose_host), target=limit)

    def idle_standby(self, seconds: float = 20.0) -> dict[str, float]:
        """{"cpu": share of one core, "rss_mb"} of one standby's two processes together, over `seconds`."""
        leader, _ = self._healthy()
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

    def _repeat(self, n: int, break_it: Callable[[str], None], *, gap: bool = False) -> list[int]:
        return [self._once(break_it, gap=gap) for _ in range(n)]

    def _once(self, break_it: Callable[[str], None], *, gap: bool) -> int:
        leader, token = self._healthy()
        begun = time.time_ns()
        try:
            break_it(leader)
            first = self.tail.wait_order(token + 1, ORDER_LIMIT_S)
        finally:
            self.cluster.release(leader)
        if first is None:
            raise BatonError(f"no failover within {ORDER_LIMIT_S:g} s; see {self.cluster.dir}")
        start = int(self.tail.last_order[token]["at_ns"]) if gap else begun
        return int(first["at_ns"]) - start

    def _switch_over(self, leader: str) -> None:
        post_json(self.cluster.http_url(leader), "/v1/switchover", {"target": None, "actor": "bench"}, timeout_s=5.0)

    def _kill(self, leader: str) -> None:
        self._process(leader, 1).send(signal.SIGKILL)

    def _stop(self, leader: str) -> None:
        self._process(leader, 1).send(signal.SIGSTOP)

    def _lose_host(self, leader: str) -> None:
        self.cluster.hold(leader)
        for which in (0, 1):
            self._process(leader, which).send(signal.SIGKILL)

    def _process(self, node: str, which: int) -> Any:
        process = self.cluster.node_processes(node)[which]
        if process is None:
            raise BatonError(f"{node} has no process to break; see {self.cluster.home(node) / 'log'}")
        return process

    def _healthy(self) -> tuple[str, int]:
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
