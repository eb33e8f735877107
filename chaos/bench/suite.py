"""`baton bench`: DESIGN 12, each row beside its alternative, measured in one run on this machine.

Prints a table and writes JSON. Nothing here is a test: figures are reported, never asserted.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import uvloop
from rich.console import Console
from rich.table import Table

from chaos.bench import alternatives, protected, replication
from chaos.bench.failover import Failovers
from chaos.bench.stats import Row, duration, percentile, ratio
from node.client import get_json
from node.version import VERSION

RECENT_S = 10.0


def run_suite(results: Path, console: Console, *, failovers: int = 30, orders: int = 5000) -> Path:
    """Measure everything; where the JSON went. Works in `results`, on whose disk the journals are synced. What was
    measured is printed and kept, also when something ends it early."""
    # The insync set's coming and going is what is measured, not news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(dir=results) as d:
            for row in _measure(Path(d), console, failovers, orders):
                rows.append(row)
                console.print(f"  {row.name}: {_figure(row)}")
    finally:
        console.print(_table(rows))
        told = [r.as_json() | {"ratios": _ratios(r, rows)} for r in rows]
        path.write_text(json.dumps({"schema": 1, "machine": machine(), "rows": told}, indent=2) + "\n")
    return path


def _measure(where: Path, console: Console, failovers: int, orders: int) -> Iterator[Row]:
    console.print("alternatives")
    alone = orders // 2
    yield alternatives.wake_up(alone)
    yield alternatives.grpc_floor(_new(where), alone)
    yield alternatives.bare_gate(_new(where), alone)
    yield from alternatives.redis_wait(_new(where), alone)
    yield from alternatives.etcd_put(_new(where), alone)
    console.print("protection")
    yield from _protection(where, orders)
    console.print("failovers")
    with Failovers(_new(where)) as cluster:
        for kind in (cluster.switchover, cluster.killed, cluster.hung, cluster.host_lost):
            yield kind(failovers)
        yield _in_cluster(cluster)
        yield _standby(cluster, "standby beside 20 orders/s")
    with Failovers(_new(where), ttl_s=0.3) as cluster:
        yield cluster.host_lost(failovers)
    with Failovers(_new(where), probe_s=3600) as cluster:
        yield _standby(cluster, "idle standby, with a live feed", "< 3 %, < 150 MB")


def _new(where: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=where))


def _alone(work: Coroutine[Any, Any, Any]) -> Any:
    """On a loop of its own, with the collector's pauses kept out as in the worker."""
    gc.collect()
    gc.freeze()
    return uvloop.run(work)


def _protection(where: Path, orders: int) -> Iterator[Row]:
    a = alternatives
    took, _ = _alone(protected.measure(_new(where), orders, with_gate=False))
    yield Row("append, durable here and on a standby", took, beside=(a.GRPC, a.REDIS_WAIT, a.ETCD))
    took, _ = _alone(protected.measure(_new(where), orders))
    beside: tuple[str, ...] = (a.GRPC, a.GATE, a.REDIS_WAIT, a.ETCD)
    yield Row("protected order: the same, and the gate", took, target="≤ 0.6 ms, p99 ≤ 2", beside=beside)
    took, rate = _alone(protected.measure(_new(where), orders * 6, writers=a.WRITERS))
    beside = (f"{a.REDIS_WAIT}, {a.WRITERS} at once", f"{a.ETCD}, {a.WRITERS} at once")
    name = f"protected orders, {a.WRITERS} at once"
    yield Row(name, took, target="≥ 12,000/s", per_s=rate, beside=beside)
    entries = 300_000
    ns = _alone(replication.catch_up(_new(where), entries))
    yield Row("catch-up, entries", per_s=entries / ns * 1e9, target="≥ 100,000/s")


def _in_cluster(cluster: Failovers) -> Row:
    """What the running three-node cluster's leader says of its own last orders: decided to sent."""
    leader, _ = cluster.healthy()
    time.sleep(RECENT_S)
    stage = get_json(cluster.cluster.http_url(leader), "/v1/node")["latency_s"].get("protected", {})
    note = f"p50 {stage.get('p50', 0) * 1e3:.2f} ms, p99 {stage.get('p99', 0) * 1e3:.2f} ms of its last orders"
    return Row("decided to sent, in the cluster of three", note=note)


def _standby(cluster: Failovers, name: str, target: str = "") -> Row:
    used = cluster.idle_standby()
    note = f"{used['cpu'] * 100:.1f} % of a core, {used['rss_mb']:.0f} MB for both processes"
    return Row(name, note=note, target=target)


def machine() -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "baton": VERSION,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _figure(row: Row) -> str:
    parts: list[str] = []
    if row.samples:
        at: Callable[[float], str] = lambda f: duration(percentile(row.samples, f))  # noqa: E731
        parts.append(f"{at(0.5)} median, {at(0.99)} p99 (n = {len(row.samples)})")
    if row.per_s is not None:
        parts.append(f"{row.per_s:,.0f}/s")
    if row.note:
        parts.append(row.note)
    return "; ".join(parts)


def _ratios(row: Row, rows: list[Row]) -> dict[str, float]:
    """How many times each of what it is compared with."""
    return {r.name: times for r in rows if r.name in row.beside and (times := ratio(row, r)) is not None}


def _table(rows: list[Row]) -> Table:
    table = Table(title="Measured in one run", title_justify="left")
    for column in ("what", "n", "median", "p99", "p99.9", "rate", "target", "beside"):
        table.add_column(column, justify="left" if column in ("what", "target", "beside") else "right")
    for r in rows:
        cells = [duration(percentile(r.samples, f)) if r.samples else "" for f in (0.5, 0.99, 0.999)]
        beside = "\n".join(f"{times:.2f} × {name}" for name, times in _ratios(r, rows).items()) or r.note
        rate = f"{r.per_s:,.0f}/s" if r.per_s is not None else ""
        table.add_row(r.name, str(len(r.samples) or ""), *cells, rate, r.target, beside)
    return table
