"""`baton doctor`: is what a node rests on fit for it? Looks and measures; changes nothing but a temporary file.

Each finding is one line with a remedy. fail: this node cannot run, or could trade wrongly. warn: it runs, and an
operator should know. Everything is asked with a deadline, so a doctor never hangs on a dead patient.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.core.errors import BatonError, ConfigError
from cluster.core.ids import NS_PER_S
from cluster.etcd import EtcdClient
from node.config import Config, worst_case_failover

JOURNAL_FILE = "journal.db"
FSYNCS = 60
FSYNC_GOOD_S = 0.010
_ETCD_TIMEOUT_S = 2.0
_CLOCKS_GOOD = {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"}

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """remedy: what to do; empty when all is well."""

    check: str
    level: str
    text: str
    remedy: str = ""


async def of_host(config: Config) -> AsyncIterator[Finding]:
    """What the nodes of one configuration share, seen from this host. Never raises for what it finds."""
    for finding in settings(config):
        yield finding
    for ask in (etcd, gate, venue):
        async for finding in ask(config):
            yield finding
    for look in (feed, strategy, clock, disk):
        for finding in await asyncio.to_thread(_all, look, config):
            yield finding


async def of_node(config: Config) -> AsyncIterator[Finding]:
    """What one node has for itself."""
    for look in (ports, journal):
        for finding in await asyncio.to_thread(_all, look, config):
            yield finding


def _all(look: Callable[[Config], Iterator[Finding]], config: Config) -> list[Finding]:
    return list(look(config))


# -- settings --------------------------------------------------------------------------------------------------


def settings(config: Config) -> Iterator[Finding]:
    """The relations between values were checked when the file was read."""
    yield Finding(
        "config", OK, f"{config.node.name} of {config.cluster.name}, {config.cluster.mode}; its values fit together"
    )
    worst = ", ".join(f"{what.replace('_', ' ')} {s:.2f} s" for what, s in worst_case_failover(config).items())
    yield Finding("failover", OK, f"at most, with these settings: {worst}")
    replication = config.replication
    if replication.durability == "memory":
        yield Finding(
            "durability",
            WARN,
            "orders are acknowledged before they are on disk",
            'set replication.durability = "disk", unless losing the latest orders with the power is acceptable',
        )
    if replication.min_standbys == 0:
        yield Finding(
            "protection",
            WARN,
            "a leader without any standby goes on trading (replication.min_standbys = 0)",
            'set min_standbys = 1 and unprotected = "halt", if stopping is better than trading unprotected',
        )
    for key, secret in config.secrets().items():
        try:
            secret.reveal()
        except ConfigError as e:
            yield Finding("secrets", FAIL, f"{key}: {e}", "make it readable for this user")


def strategy(config: Config) -> Iterator[Finding]:
    from node.host import load_strategy

    try:
        load_strategy(config.strategy.path, config.strategy.config)
    except ConfigError as e:
        yield Finding("strategy", FAIL, str(e), "correct strategy.path or strategy.config")
    else:
        yield Finding("strategy", OK, f"{config.strategy.path} loads and takes its configuration")


# -- etcd ------------------------------------------------------------------------------------------------------


async def etcd(config: Config) -> AsyncIterator[Finding]:
    from cluster.registry import etcd_client
    from node.spec import etcd_arguments

    try:
        client = etcd_client(etcd_arguments(config))
    except (BatonError, OSError) as e:
        yield Finding("etcd", FAIL, str(e), "correct the [etcd] section")
        return
    try:
        async for finding in _etcd_members(client):
            yield finding
        async for finding in _etcd_lease(client, config):
            yield finding
        async for finding in _etcd_keys(client, config):
            yield finding
    except BatonError as e:
        yield Finding("etcd", FAIL, str(e), "etcd needs a majority of its members up, and reachable from here")
    finally:
        await client.close()


async def _etcd_members(client: EtcdClient) -> AsyncIterator[Finding]:
    from node.local.servers import etcd_version_warnings

    states = await client.status(timeout_s=_ETCD_TIMEOUT_S)
    for s in states:
        if not s.reachable:
            yield Finding(
                "etcd", FAIL, f"{s.endpoint} does not answer: {s.error}", "start it, or correct etcd.endpoints"
            )
            continue
        yield Finding("etcd", OK, f"{s.endpoint}: {s.version}, answers in {s.latency_s * 1000:.1f} ms")
    for version in sorted({s.version for s in states if s.reachable}):
        for warning in etcd_version_warnings(version):
            yield Finding("etcd version", WARN, warning, "upgrade etcd")
    if len({s.cluster_id for s in states if s.reachable}) > 1:
        yield Finding("etcd", FAIL, "the endpoints are of different etcd clusters", "name one cluster's members only")
    members = await client.members(timeout_s=_ETCD_TIMEOUT_S)
    n = len(members)
    if n == 1:
        yield Finding("etcd members", WARN, "1 member: its loss stops trading within a ttl", "run three members")
    elif n % 2 == 0:
        yield Finding("etcd members", WARN, f"{n} members survive no more losses than {n - 1}", "run an odd number")
    else:
        yield Finding("etcd members", OK, f"{n} members; {n // 2} may fail")
    if len(states) < n:
        yield Finding(
            "etcd endpoints",
            WARN,
            f"etcd.endpoints names {len(states)} of {n} members: when those are down, the others are not asked",
            "name every member",
        )


async def _etcd_lease(client: EtcdClient, config: Config) -> AsyncIterator[Finding]:
    """What is granted counts, not what is asked for; and etcd has a floor of its own."""
    asked_s = -(-round(config.lease.ttl_s * NS_PER_S) // NS_PER_S) + 1
    lease = await client.lease_grant(asked_s, timeout_s=_ETCD_TIMEOUT_S)
    await client.lease_revoke(lease.id, timeout_s=_ETCD_TIMEOUT_S)
    told = f"asked for {asked_s} s, granted {lease.ttl_s} s, lease.ttl_s = {config.lease.ttl_s:g}"
    if lease.ttl_s < config.lease.ttl_s:
        yield Finding("etcd lease", FAIL, told, "the keeper refuses this; lower lease.ttl_s")
    else:
        yield Finding("etcd lease", OK, told)


async def _etcd_keys(client: EtcdClient, config: Config) -> AsyncIterator[Finding]:
    from cluster.keys import Keys, RawKey, unreadable

    keys = Keys(config.cluster.name)
    found = await client.range(keys.prefix, prefix=True, timeout_s=_ETCD_TIMEOUT_S)
    raw = {kv.key: RawKey.of(kv) for kv in found.kvs}
    for name in unreadable(keys, raw):
        yield Finding("etcd keys", FAIL, f"{name} holds what no Baton wrote", "correct or delete it with etcdctl")
    nodes = [n.removeprefix(keys.members) for n in raw if n.startswith(keys.members)]
    yield Finding("etcd keys", OK, f"{keys.prefix} has {len(raw)} keys; nodes: {', '.join(sorted(nodes)) or 'none'}")


# -- gate, venue, feed -------------------------------------------------------------------------------------------


async def gate(config: Config) -> AsyncIterator[Finding]:
    from node.gate import GateUnavailable, GateUnsuitable
    from node.redis_gate import RedisGate

    try:
        redis = RedisGate(
            config.gate.url.reveal(),
            cluster=config.cluster.name,
            holder="doctor",
            timeout_s=config.gate.timeout_s,
            claim_ttl_s=config.gate.claim_ttl_s,
        )
    except ConfigError as e:
        yield Finding("gate", FAIL, str(e), "correct gate.url")
        return
    try:
        warnings = await redis.connect()
        begun = time.monotonic()
        state = await redis.state()
        took_ms = (time.monotonic() - begun) * 1000
        armed = f"armed for token {state.high_water}" if state.armed else "not armed"
        yield Finding("gate", OK, f"{config.gate.url}: {armed}; answers in {took_ms:.1f} ms")
        if state.halted is not None:
            yield Finding("gate", WARN, f"halted: {state.halted}", "no order passes until somebody clears it")
        for warning in warnings:
            yield Finding("gate durability", WARN, warning, "see redis.conf")
    except GateUnsuitable as e:
        yield Finding("gate", FAIL, str(e), "change it before trading")
    except GateUnavailable as e:
        remedy = "start Redis, or correct gate.url; without it every order is blocked"
        yield Finding("gate", FAIL, str(e), remedy)  # `check` says it already
    finally:
        await redis.close()


async def venue(config: Config) -> AsyncIterator[Finding]:
    from node.venues.base import DoubleOrderClass
    from node.venues.paper import PaperVenue

    v = config.venue
    try:
        api_key = v.api_key.reveal() if v.api_key else "paper"
    except ConfigError as e:
        yield Finding("venue", FAIL, f"{v.target} is not asked: {e}", "make venue.api_key readable for this user")
        return
    paper = PaperVenue(
        v.target,
        v.account,
        api_key,
        "doctor",
        instruments=list(config.instrument_table().values()),
        call_timeout_s=max(1.0, v.call_timeout_s),
        rng=random.Random(),
    )
    try:
        await paper.connect()
        sample = await paper.server_time()
    except BatonError as e:
        yield Finding("venue", FAIL, str(e), "start it, or correct [venue] and [[instruments]]")
        return
    finally:
        await paper.close()
    can = paper.capabilities
    told = (
        f"{v.target}: tokens {_yes(can.token)}, expiry {_yes(can.expiry)}, order ids unique {can.id_uniqueness.value}, "
        f"dead-man's switch: {can.deadman.value}; answers in {(sample.received_at - sample.sent_at) / 1e6:.1f} ms"
    )
    yield Finding("venue", OK, told)
    kind = can.double_order_class
    if kind is DoubleOrderClass.PROVED:
        yield Finding("double orders", OK, "proved: the venue refuses a deposed leader's token")
    elif kind is DoubleOrderClass.TIME_BOUNDED:
        yield Finding("double orders", OK, "time-bounded: an order of a deposed leader expires with its lease")
    else:
        yield Finding(
            "double orders",
            WARN,
            "best effort: the venue checks neither tokens nor an expiry, so an order that was past our own checks when "
            "its sender froze may still be accepted",
            "know the risk, or trade where the venue has one of the two",
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def feed(config: Config) -> Iterator[Finding]:
    parts = urlsplit(config.feed.url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=2.0).close()
    except OSError as e:
        yield Finding(
            "feed", FAIL, f"{config.feed.url} does not answer: {e.strerror or e}", "start it, or correct feed.url"
        )
    else:
        yield Finding("feed", OK, f"{config.feed.url} answers")


# -- this host ---------------------------------------------------------------------------------------------------


def ports(config: Config) -> Iterator[Finding]:
    """Free, or held by this very node."""
    from node.client import get_json

    me = config.node.name
    try:
        runs = get_json(f"http://{config.node.http_listen}", "/v1/status", timeout_s=1.0).get("node") == me
    except (BatonError, AttributeError):
        runs = False
    for key in ("grpc_listen", "http_listen"):
        address = getattr(config.node, key)
        if runs:
            yield Finding("ports", OK, f"node.{key} = {address}: in use by {me} itself")
        elif (problem := _cannot_listen(address)) is None:
            yield Finding("ports", OK, f"node.{key} = {address}: free")
        else:
            yield Finding(
                "ports", FAIL, f"node.{key} = {address}: {problem}", "stop who has it, or choose another address"
            )


def _cannot_listen(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((host, int(port)))
            s.listen(1)
    except OSError as e:
        return e.strerror or str(e)
    return None


def clock(config: Config) -> Iterator[Finding]:
    """CLOCK_BOOTTIME is read before every order, and every deadline rests on its rate."""
    try:
        source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    except OSError:
        source = "unknown"
    began = time.perf_counter_ns()
    for _ in range(1000):
        time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    each_us = (time.perf_counter_ns() - began) / 1e6
    told = f"clock source {source}, {each_us:.2f} µs per reading; drift allowed between hosts: "
    told += f"{config.lease.clock_drift_max:.0%}"
    if source not in _CLOCKS_GOOD:
        yield Finding("clock", WARN, told, "prefer tsc, or your hypervisor's own clock source")
    else:
        yield Finding("clock", OK, told)


def disk(config: Config) -> Iterator[Finding]:
    """Every protected order waits for one sync here and one on a standby."""
    folder = config.node.data_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        times_s = _sync_times(folder)
    except OSError as e:
        yield Finding("disk", FAIL, f"{folder}: {e.strerror}", "make node.data_dir, writable for this user")
        return
    median, slow = times_s[len(times_s) // 2], times_s[-1]
    told = f"{folder}: a synced write takes {median * 1000:.2f} ms (median), {slow * 1000:.2f} ms (slowest of {FSYNCS})"
    if slow > config.replication.insync_timeout_s:
        remedy = "one such write drops a standby from the in-sync set; use a faster disk, or raise insync_timeout_s"
        yield Finding("disk", FAIL, told, remedy)
    elif median > FSYNC_GOOD_S:
        yield Finding("disk", WARN, told, "orders wait for this; use an SSD that is not shared with etcd")
    else:
        yield Finding("disk", OK, told)
    free = os.statvfs(folder)
    free_gb = free.f_bavail * free.f_frsize / 1e9
    if free_gb < 1:
        yield Finding("disk space", WARN, f"{folder}: {free_gb:.2f} GB free", "a full disk fences the node; make room")


def _sync_times(folder: Path) -> list[float]:
    """Seconds per write of 4 KiB with fdatasync, ascending."""
    with tempfile.TemporaryFile(dir=folder) as f:
        times = []
        for _ in range(FSYNCS):
            began = time.perf_counter()
            os.pwrite(f.fileno(), bytes(4096), 0)
            os.fdatasync(f.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)


def journal(config: Config) -> Iterator[Finding]:
    from cluster.journal_file import verify

    path = config.node.data_dir / JOURNAL_FILE
    if not path.exists():
        yield Finding("journal", OK, f"{path}: none yet; the node starts as an empty follower")
        return
    try:
        report = verify(path)
    except BatonError as e:
        yield Finding("journal", WARN, str(e), "run this as the node's user")
        return
    if report.problem:
        yield Finding("journal", FAIL, report.problem, "the node sets it aside and catches up from the leader")
    elif report.cluster != config.cluster.name:
        yield Finding(
            "journal", FAIL, f"{path} is of cluster {report.cluster!r}", "give this node a data_dir of its own"
        )
    else:
        told = f"{path}: {report.entries} entries up to {report.last_index}, term {report.last_term}, chain intact"
        yield Finding("journal", OK, told)


def binaries() -> Iterator[Finding]:
    """For local clusters: which servers `baton up` would start."""
    from node.local.servers import find_etcd, find_redis

    for name, find in (("etcd", find_etcd), ("Redis", find_redis)):
        try:
            yield Finding("binaries", OK, f"{name}: {find()}")
        except ConfigError as e:
            yield Finding("binaries", FAIL, str(e), "install it; local clusters need it")
