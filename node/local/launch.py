"""The supervisor process of a local cluster: `python -m node.local.launch DIR READY_FD LOCK_FD [LIFELINE_FD]`.

Started by `LocalCluster.start` only. Says over READY_FD, once, as JSON, that the cluster trades or why not; holds the
directory's lock for as long as it lives; with a lifeline it stops when the other end is gone. Says what the programs
are; `supervisor.py` keeps them running.

Imports everything at once: a resignation must not wait a second for that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, Unreachable
from cluster.core.ids import ns
from cluster.home import HomeBusy
from cluster.logs import configure_logging
from cluster.registry import resign_dead
from node.client import cluster_status, get_json
from node.config import load_config
from node.feeds.replay import default_capture
from node.local.cluster import NODE_GRACE_S, LocalCluster, Options
from node.local.process import ProcessId
from node.local.servers import (
    ETCD_GRACE_S,
    Proc,
    ServerFailed,
    etcd_processes,
    find_etcd,
    find_redis,
    redis_process,
)
from node.local.supervisor import Program, Supervisor
from node.spec import keeper_spec

log = structlog.get_logger()

TRADING_TIMEOUT_S = 30.0
RESIGN_TIMEOUT_S = 5.0
STOPPED_FOR_GOOD = frozenset({3})
"""The keeper's exit code for "going on could trade on a wrong belief": restarting it would only say so again."""


def stages(cluster: LocalCluster) -> list[list[Program]]:
    """What nodes rest on, then the nodes: they stop first, while they can still hand over and resign.
    Raises ConfigError for servers that are not installed."""
    options = cluster.options
    servers = [*_etcd(cluster, options), _redis(cluster), _feed(cluster, options), _venue(cluster, options)]
    return [servers, [_node(cluster, name) for name in options.node_names]]


def _etcd(cluster: LocalCluster, options: Options) -> list[Program]:
    ports = [port for name in options.etcd_names for port in cluster.record()["ports"][name]]
    etcd = etcd_processes(find_etcd(), cluster.dir / "etcd", options.etcd, ports)
    for warning in etcd.warnings:
        log.warning("etcd_version", reason=warning)
    return [Program(m.name, m.proc, Path(m.dir) / "hold", m.healthy, ETCD_GRACE_S) for m in etcd.members]


def _redis(cluster: LocalCluster) -> Program:
    redis = redis_process(find_redis(), cluster.dir / "redis", cluster.port("redis"))
    return Program("redis", redis.proc, Path(redis.dir) / "hold", redis.answers)


def _baton(cluster: LocalCluster, name: str, *words: str) -> Proc:
    """`baton` with these words, run by this very Python."""
    home = cluster.home(name)
    home.mkdir(parents=True, exist_ok=True)
    return Proc([sys.executable, "-m", "node.cli", *words], str(home / "log"))


def _feed(cluster: LocalCluster, options: Options) -> Program:
    capture = None if options.feed == "synthetic" else options.feed or default_capture()
    source = ["--synthetic"] if capture is None else ["--capture", str(capture)]
    address = f"127.0.0.1:{cluster.port('feed')}"
    words = ["--listen", address, *source, "--speed", str(options.speed), *options.feed_args]
    proc = _baton(cluster, "feed", "feed", "serve", *words)
    return Program("feed", proc, cluster.home("feed") / "hold", _listens(cluster.port("feed")))


def _venue(cluster: LocalCluster, options: Options) -> Program:
    config = load_config(cluster.config_file(options.node_names[0]))
    words = ["--dir", str(cluster.home("venue")), "--listen", cluster.venue_address, "--feed-url", cluster.feed_url]
    for i in config.instrument_table().values():
        words += ["--instrument", f"{i.symbol},{i.tick_size:f},{i.lot_size:f}"]
    words += ["--profile", options.venue_profile, *options.venue_args]
    proc = _baton(cluster, "venue", "venue", "run", *words)
    return Program("venue", proc, cluster.home("venue") / "hold", _listens(cluster.port("venue")))


def _node(cluster: LocalCluster, name: str) -> Program:
    config_file = cluster.config_file(name)
    url = cluster.http_url(name)

    async def resign() -> str:
        return await _resign(config_file)

    def answers() -> bool:
        try:
            get_json(url, "/v1/status", timeout_s=1.0)
        except BatonError:
            return False
        return True

    proc = _baton(cluster, name, "node", "run", "--config", str(config_file))
    hold = cluster.home(name) / "hold"
    return Program(name, proc, hold, answers, NODE_GRACE_S, after_death=resign, final=STOPPED_FOR_GOOD)


async def _resign(config_file: Path) -> str:
    """What ExecStopPost does on a real host. The worker dies with its keeper, but a moment later."""
    spec = keeper_spec(load_config(config_file), config_file)
    deadline = boottime_ns() + ns(RESIGN_TIMEOUT_S)
    while True:
        try:
            return await resign_dead(spec)
        except HomeBusy:
            if boottime_ns() > deadline:
                raise
            await asyncio.sleep(0.005)


def _listens(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            return False
        return True

    return answers


async def wait_trading(cluster: LocalCluster, timeout_s: float = TRADING_TIMEOUT_S) -> None:
    """Until some node leads and is allowed to trade; what it waits for stands in the record meanwhile. Raises
    ServerFailed with what the nodes say instead, at once if it is what no waiting mends."""
    deadline = boottime_ns() + ns(timeout_s)
    told = ""
    while True:
        try:
            status = await asyncio.to_thread(cluster_status, cluster.urls)
        except Unreachable as e:
            why = str(e)
        else:
            permission = status["permission"]
            if permission["level"] == "allowed":
                return
            why = f"{permission['level']}: {permission['reason'] or 'no reason given'}"
            if status["leader"] is None:
                why = ". ".join([why, *_why_nobody_leads(cluster, status)])
            if permission["reason"].startswith("strategy:"):
                raise ServerFailed(f"no node trades ({why}); mend the strategy; see {cluster.dir}/nodes/*/log")
        if why != told:
            told = why
            cluster.update(reason=why)
        if boottime_ns() > deadline:
            raise ServerFailed(f"no node trades after {timeout_s:g} s ({why}); see {cluster.dir}/nodes/*/log")
        await asyncio.sleep(0.05)


def _why_nobody_leads(cluster: LocalCluster, status: dict[str, Any]) -> list[str]:
    out = [str(w).rstrip(".") for w in dict.fromkeys(status["warnings"])]
    if not status["history"]:
        endpoints = load_config(cluster.config_file(cluster.nodes[0])).etcd.endpoints
        return [*out, f"Nobody ever led: do the nodes reach etcd at {', '.join(endpoints)}?"]
    nodes = [n for n in status["nodes"] if n["name"] in status["answered"]]
    if nodes and all(n["in_sync"] is False for n in nodes):
        names = ", ".join(n["name"] for n in nodes)
        out.append(f"No journal of {names} is in the in-sync set, so none may lead: bring back a node whose journal is")
    return out


async def _run(cluster: LocalCluster, tell: Callable[[dict[str, Any]], None], lifeline: int | None) -> None:
    supervisor = Supervisor(stages(cluster), changed=lambda programs: cluster.update(programs=programs))
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(sig, supervisor.stop)
    if lifeline is not None:
        fd = lifeline

        def starter_gone() -> None:
            loop.remove_reader(fd)
            supervisor.stop()

        loop.add_reader(fd, starter_gone)

    async def on_ready() -> None:
        await wait_trading(cluster)
        cluster.update(state="ready", reason="", good_options=cluster.record()["options"])
        log.info("cluster_ready", directory=str(cluster.dir), urls=cluster.urls)
        tell({"ok": True})

    await supervisor.run(on_ready)


def main() -> None:
    directory, ready_fd, lock_fd, *rest = sys.argv[1:]
    lifeline = int(rest[0]) if rest else None
    fds = [int(ready_fd), int(lock_fd), *([lifeline] if lifeline is not None else [])]
    for fd in fds:
        os.set_inheritable(fd, False)  # the lock is the supervisor's, not its programs'
    configure_logging("info")
    cluster = LocalCluster(directory)

    def tell(answer: dict[str, Any]) -> None:
        try:
            os.write(int(ready_fd), json.dumps(answer).encode() + b"\n")
        except OSError as e:  # who started us is gone
            log.warning("starter_gone", reason=str(e))

    me = ProcessId.of(os.getpid())
    cluster.update(supervisor=me.as_record() if me else None, state="starting")
    reason, code = "", 0
    try:
        asyncio.run(_run(cluster, tell, lifeline))
    except BatonError as e:
        reason, code = str(e), 1
        log.error("cluster_failed", reason=reason)
    cluster.update(state="failed" if code else "stopped", reason=reason, supervisor=None)
    if code:
        tell({"ok": False, "text": reason})
    sys.exit(code)


if __name__ == "__main__":
    main()
