"""The node's metrics (names: `baton_...`, base units, for Prometheus and OpenMetrics).

Two kinds. What happens (orders, stages, refusals) is counted where it happens, on the order path, so it must cost next
to nothing: a LatencyRecorder is a few list operations, a counter's child is bound beforehand. What *is* (role, lease,
lag, feed) is read from the StatusSource when somebody scrapes, and a value that is not known is not exported: an absent
series can be alerted on, an invented one cannot. Standbys export the cluster as well: a dead leader exports nothing.

Own registry: importing this module leaves the process-wide default one alone.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from importlib.metadata import version as installed_version
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cluster.clock import unix_ns
from cluster.core.ids import NS_PER_S
from node.feeds.base import FeedState
from node.status import summary
from node.status.source import StatusSource
from node.types import Accepted, NotSent, Refused, SubmitResult, Unknown

if TYPE_CHECKING:
    from node.orders import Flight

ROLES = ("starting", "standby", "promoting", "leader", "draining", "fenced", "unknown")
LEVELS = ("allowed", "close-only", "blocked")
LAYERS = ("permit", "replication", "gate", "venue")
"""Fences that can refuse, in the order in which an order meets them (DESIGN 6)."""

STAGES = ("decided", "committed", "gate", "sent", "protected", "acked")
"""decided: since the market event. committed, gate: since decided (they run side by side). sent: since both. protected:
decided to sent, what the protection costs. acked: since sent."""

_RESULTS = {Accepted: "accepted", Refused: "refused", NotSent: "not_sent", Unknown: "unknown"}

BUCKETS_MS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_BOUNDS = tuple(round(ms * 1_000_000) for ms in BUCKETS_MS)
_BOUND_NAMES = tuple(str(ms / 1000) for ms in BUCKETS_MS)

RING = 1024
"""Latest measurements from which quantiles are taken: ten lie beyond p99."""


class LatencyRecorder:
    """Durations in nanoseconds: a histogram for ever, exact quantiles of the last RING. About half a microsecond each.

    One thread records; any may read (a reader may miss the record under way).
    """

    __slots__ = ("_at", "_counts", "_ring", "_sorted", "_sorted_at", "_total", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._total = 0
        self._ring: list[int] = []
        self._at = 0
        self._sorted: list[int] = []
        self._sorted_at = 0

    def record(self, ns: int) -> None:
        self._counts[bisect_left(_BOUNDS, ns)] += 1
        self._total += ns
        self.count += 1
        if len(self._ring) < RING:
            self._ring.append(ns)
        else:
            self._ring[self._at] = ns
            self._at = (self._at + 1) % RING

    def quantile_s(self, q: float) -> float | None:
        """The least value that at least the share q of the last RING does not exceed; None before the first."""
        if self._sorted_at != self.count:
            self._sorted_at, self._sorted = self.count, sorted(self._ring)
        if not self._sorted:
            return None
        rank = -(-len(self._sorted) * q // 1)  # ceil
        return self._sorted[max(0, int(rank) - 1)] / NS_PER_S

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as the exposition wants them."""
        return list(zip((*_BOUND_NAMES, "+Inf"), map(float, accumulate(self._counts)), strict=True))

    @property
    def total_s(self) -> float:
        return self._total / NS_PER_S


class Telemetry:
    """One per worker. lease_ttl_s, lease_margin_s: exported, and needed to tell when the lease was last renewed."""

    def __init__(
        self,
        node: str,
        cluster: str,
        version: str,
        *,
        lease_ttl_s: float | None = None,
        lease_margin_s: float | None = None,
    ) -> None:
        self.node = node
        self.cluster = cluster
        self.version = version
        self.lease_ttl_s = lease_ttl_s
        self.lease_margin_s = lease_margin_s
        self.registry = CollectorRegistry()
        self.stages = {name: LatencyRecorder() for name in STAGES}
        self.loop_lags = LatencyRecorder()
        self.fsyncs = LatencyRecorder()
        ProcessCollector(registry=self.registry)
        orders = Counter("baton_orders", "Orders by what became of the request.", ["result"], registry=self.registry)
        self._orders = {t: orders.labels(name) for t, name in _RESULTS.items()}
        self._declined = Counter(
            "baton_orders_declined", "Wishes that did not become an order.", ["code"], registry=self.registry
        )
        rejections = Counter(
            "baton_fencing_rejections", "Refusals by a fence, by layer.", ["layer"], registry=self.registry
        )
        self._rejections = {layer: rejections.labels(layer) for layer in LAYERS}
        self._snapshot = _Snapshot(self)
        self.registry.register(self._snapshot)

    # -- what happens: called where it happens -----------------------------------------------------------------

    def stage(self, name: str, ns: int) -> None:
        """name: one of STAGES."""
        self.stages[name].record(ns)

    def order_finished(self, flight: Flight, result: SubmitResult) -> None:
        """The request to place one order has its answer."""
        self._orders[type(result)].inc()
        if isinstance(result, Refused) and result.code == "stale_token":
            self._rejections["venue"].inc()
        stages, f = self.stages, flight
        if f.committed_at:
            stages["committed"].record(f.committed_at - f.decided_at)
        if f.claimed_at:
            stages["gate"].record(f.claimed_at - f.decided_at)
        if f.sent_at:
            stages["sent"].record(f.sent_at - max(f.committed_at, f.claimed_at))
            stages["protected"].record(f.sent_at - f.decided_at)
            if f.answered_at and not isinstance(result, NotSent):
                stages["acked"].record(f.answered_at - f.sent_at)

    def order_declined(self, code: str) -> None:
        """code: from a fixed set (risk, duplicate decision, blocked); it becomes a label."""
        self._declined.labels(code).inc()

    def fence_refused(self, layer: str) -> None:
        """layer: one of LAYERS."""
        self._rejections[layer].inc()

    def loop_lag(self, ns: int) -> None:
        """How much later than asked the loop came round."""
        self.loop_lags.record(ns)

    def journal_fsync(self, ns: int) -> None:
        """One durable group commit. May be called from the journal's writer thread, and only from there."""
        self.fsyncs.record(ns)

    # -- what is: read when asked --------------------------------------------------------------------------------

    def watch(self, source: StatusSource) -> None:
        """From now on a scrape also tells what this source says."""
        self._snapshot.source = source

    def latency_s(self) -> dict[str, dict[str, float]]:
        """{stage: {"p50", "p99"}} of the latest measurements, in seconds; stages that never happened are left out."""
        recorders = {**self.stages, "loop_lag": self.loop_lags, "fsync": self.fsyncs}
        return {
            name: {"p50": r.quantile_s(0.50) or 0.0, "p99": r.quantile_s(0.99) or 0.0}
            for name, r in recorders.items()
            if r.count
        }

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) of the format that `accept`, an Accept header, asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _gauge(
    name: str, text: str, *samples: tuple[tuple[str, ...], float | None], labels: tuple[str, ...] = ()
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        if number is not None:
            family.add_metric(values, number)
    return family


def _one_of(name: str, text: str, label: str, known: tuple[str, ...], value: str) -> Metric:
    """A state set: 1 for the value, 0 for the others. A value we do not know appears under its own name."""
    states = known if value in known else (*known, value)
    return _gauge(name, text, *(((s,), float(s == value)) for s in states), labels=(label,))


def _histogram(name: str, text: str, recorders: Mapping[str, LatencyRecorder], label: str | None = None) -> Metric:
    family = HistogramMetricFamily(name, text, labels=(label,) if label else ())
    for value, r in recorders.items():
        family.add_metric((value,) if label else (), r.buckets(), r.total_s)
    return family


class _Snapshot(Collector):
    """Everything that is not a prometheus_client metric of its own, made at scrape time."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.source: StatusSource | None = None
        self._versions = (telemetry.version, platform.python_version(), installed_version("grpcio"))

    def describe(self) -> list[Metric]:
        return []  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        t = self.telemetry
        yield _gauge(
            "baton_build_info",
            "What runs here; always 1.",
            ((t.cluster, t.node, *self._versions), 1.0),
            labels=("cluster", "node", "version", "python", "grpc"),
        )
        yield _histogram(
            "baton_order_latency_seconds", "An order's way, by stage: see node/telemetry.py.", t.stages, "stage"
        )
        yield _histogram("baton_event_loop_lag_seconds", "Lateness of the worker's loop.", {"": t.loop_lags})
        yield _histogram("baton_journal_fsync_duration_seconds", "Durable group commits.", {"": t.fsyncs})
        if self.source is not None:
            now = unix_ns()
            own = self.source.published()
            picture = self.source.picture()
            c = summary.read(picture, own, {}, me=t.node, cluster=t.cluster)
            yield from self._cluster(c, now)
            yield from self._lease(c, summary.as_int((picture or {}).get("seen_at")))
            yield from self._failovers(c)
            yield from self._feed(summary.as_dict(self.source.detail().get("feed")), now)
            yield _gauge(
                "baton_orders_unresolved",
                "Orders that were sent and whose outcome is not known.",
                ((), summary.as_number(own.get("unresolved"))),
            )
            yield _gauge("baton_orders_open", "Orders that are live.", ((), summary.as_number(own.get("open_orders"))))

    def _cluster(self, c: summary.Cluster, now: int) -> Iterator[Metric]:
        yield _one_of("baton_node_role", "This node's role, as its keeper says.", "role", ROLES, c.role)
        level = str(c.own.get("permission"))
        yield _one_of(
            "baton_trading_state",
            "May this node place orders; unknown is blocked.",
            "state",
            LEVELS,
            level if level in LEVELS else "blocked",
        )
        keeper_at = None if c.age_s is None else now / NS_PER_S - c.age_s
        yield _gauge("baton_keeper_last_seen_timestamp_seconds", "When the keeper last spoke.", ((), keeper_at))
        if not c.fresh:
            return
        yield _gauge("baton_cluster_unlocked", "1: nobody leads.", ((), float(c.holder is None)))
        rows = [summary.node_row(c, n) for n in summary.node_names(c)]
        leader = c.holder.node if c.holder else None
        standbys = [r for r in rows if r["name"] != leader]
        yield _gauge(
            "baton_in_sync_standbys",
            "Standbys that hold every committed entry.",
            ((), float(sum(r["in_sync"] is True for r in standbys))),
        )
        for unit, text in (("entries", "Entries that a standby lacks."), ("seconds", "How far a standby is behind.")):
            key = "lag_entries" if unit == "entries" else "lag_s"
            samples = [((r["name"],), r[key]) for r in standbys]
            yield _gauge(f"baton_replication_lag_{unit}", text, *samples, labels=("standby",))

    def _lease(self, c: summary.Cluster, seen_at: int | None) -> Iterator[Metric]:
        ttl, margin = self.telemetry.lease_ttl_s, self.telemetry.lease_margin_s
        yield _gauge("baton_lease_ttl_seconds", "lease.ttl_s of the configuration.", ((), ttl))
        if c.holder is None:
            return
        yield _gauge(
            "baton_fencing_token", "The token in force, as seen here.", ((), summary.as_number(c.holder.token))
        )
        if c.holder.left_s is None or c.age_s is None or ttl is None or margin is None or not seen_at:
            return
        # The leader says when it stops (renewal sent + ttl - margin), the others when they would evict (seen + ttl).
        lasts = ttl - margin if c.i_hold else ttl
        renewed = seen_at / NS_PER_S + c.holder.left_s + c.age_s - lasts
        yield _gauge("baton_lease_last_renewal_timestamp_seconds", "The last renewal seen here.", ((), renewed))

    def _failovers(self, c: summary.Cluster) -> Iterator[Metric]:
        """Of the latest one, from the record that all nodes share: a node that restarts tells the same."""
        last = summary.last_failover(c)
        if last is None:
            return
        phases = [((p,), s) for p, s in last["phases_s"].items()]
        if last["rto_s"] is not None:
            phases.append((("rto",), last["rto_s"]))
        yield _gauge(
            "baton_failover_duration_seconds",
            "The latest failover by phase; rto: last sign of the old leader to first order of the new one.",
            *phases,
            labels=("phase",),
        )
        record = next(h for h in c.history if summary.as_int(h.get("token")) == last["token"])
        started = summary.as_number(record.get("started_at"))
        yield _gauge(
            "baton_last_failover_timestamp_seconds",
            "When the latest failover's leader had won the lease.",
            ((), None if started is None else started / NS_PER_S),
        )

    def _feed(self, feed: Mapping[str, Any], now: int) -> Iterator[Metric]:
        state = summary.as_text(feed.get("state"))
        if state is not None:
            known = tuple(s.value for s in FeedState)
            yield _one_of("baton_feed_state", "Market data line.", "state", known, state)
        age = summary.as_number(feed.get("age_s"))
        yield _gauge(
            "baton_feed_last_message_timestamp_seconds",
            "When the last market message came.",
            ((), None if age is None else now / NS_PER_S - age),
        )
        for name in ("messages", "reconnects", "gaps", "duplicates", "reordered", "malformed"):
            count = summary.as_number(feed.get(name))
            if count is not None:
                yield CounterMetricFamily(f"baton_feed_{name}", f"Market data: {name}.", value=count)
