"""Metrics: what is counted, what is exported, and what is left out because it is not known."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from node.orders import Flight
from node.telemetry import BUCKETS_MS, RING, LatencyRecorder, Telemetry
from node.types import Accepted, ClientOrderId, NotSent, OrderSpec, Refused, Side, SubmitResult, Unknown
from tests.support.fake_status import SOME_DAY, TOKEN, FakeStatus

MS = 1_000_000


def telemetry() -> Telemetry:
    return Telemetry("n1", "alpha", "0.1.0", lease_ttl_s=1.0, lease_margin_s=0.2)


def samples(t: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, kind = t.exposition("")
    assert kind.startswith("text/plain")
    families = parse_text(body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def value(t: Telemetry, name: str, **labels: str) -> float | None:
    return samples(t).get((name, tuple(sorted(labels.items()))))


# -- latencies ----------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_latest_measurements():
    r = LatencyRecorder()
    assert r.quantile_s(0.5) is None
    for _ in range(RING):
        r.record(50 * MS)
    values = list(range(1, RING + 1))
    random.Random(7).shuffle(values)
    for v in values:
        r.record(v * MS)
    assert r.quantile_s(0.50) == 0.512
    assert r.quantile_s(0.99) == 1.014  # 99 % of 1024 is 1013.76: the 1014th
    assert r.quantile_s(1.0) == 1.024 and r.quantile_s(0.0) == 0.001
    assert r.count == 2 * RING


def test_histogram_keeps_what_the_ring_forgets():
    r = LatencyRecorder()
    for _ in range(3 * RING):
        r.record(100_000)  # exactly the lowest bound: it belongs below
    r.record(10**12)
    buckets = dict(r.buckets())
    assert buckets["0.0001"] == 3 * RING and buckets["5.0"] == 3 * RING and buckets["+Inf"] == 3 * RING + 1
    assert len(buckets) == len(BUCKETS_MS) + 1 and r.total_s == pytest.approx(3 * RING * 1e-4 + 1000)


def test_a_record_costs_next_to_nothing():
    r = LatencyRecorder()
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for v in range(2000):
            r.record(v * 1000)
        best = min(best, (time.perf_counter() - begun) / 2000)
    assert best < 20e-6  # about 0.5 µs; a mistake that sorts or locks per record shows even on a loaded machine


# -- orders -------------------------------------------------------------------------------------------------------


def flight(**times: int) -> Flight:
    spec = OrderSpec("BTCUSDT", Side.BUY, 1, 100)
    return Flight(5, ClientOrderId("b1z1z5"), "d", spec, written_at=0, feed_received_at=0, decided_at=10 * MS, **times)


def test_accepted_order_is_timed_stage_by_stage():
    t = telemetry()
    t.stage("decided", 2 * MS)
    whole = flight(committed_at=11 * MS, claimed_at=14 * MS, sent_at=15 * MS, answered_at=35 * MS)
    t.order_finished(whole, Accepted("v1"))
    assert t.latency_s() == {
        "decided": {"p50": 0.002, "p99": 0.002},
        "committed": {"p50": 0.001, "p99": 0.001},
        "gate": {"p50": 0.004, "p99": 0.004},
        "sent": {"p50": 0.001, "p99": 0.001},
        "protected": {"p50": 0.005, "p99": 0.005},
        "acked": {"p50": 0.02, "p99": 0.02},
    }
    assert value(t, "baton_orders_total", result="accepted") == 1
    assert value(t, "baton_order_latency_seconds_bucket", stage="acked", le="0.025") == 1
    assert value(t, "baton_order_latency_seconds_bucket", stage="acked", le="0.01") == 0


def test_order_that_was_never_sent_leaves_no_time_of_sending():
    t = telemetry()
    t.order_finished(flight(committed_at=11 * MS, answered_at=12 * MS), NotSent("gate_halted", "halted"))
    assert set(t.latency_s()) == {"committed"}


@pytest.mark.parametrize(
    ("result", "label"),
    [
        (Accepted("v"), "accepted"),
        (Refused("x", ""), "refused"),
        (NotSent("x", ""), "not_sent"),
        (Unknown("t"), "unknown"),
    ],
)
def test_orders_are_counted_by_result(result: SubmitResult, label: str):
    t = telemetry()
    t.order_finished(flight(), result)
    counted = {k[1][0][1]: v for k, v in samples(t).items() if k[0] == "baton_orders_total"}
    assert counted == {name: float(name == label) for name in ("accepted", "refused", "not_sent", "unknown")}


def test_fences_that_refused_are_counted_by_layer_and_the_venue_by_its_own_word():
    t = telemetry()
    t.fence_refused("gate")
    t.fence_refused("permit")
    t.order_finished(flight(), Refused("stale_token", "4182 < 4190"))
    t.order_finished(flight(), Refused("insufficient_funds", ""))
    t.order_declined("max_position")
    found = {k[1][0][1]: v for k, v in samples(t).items() if k[0] == "baton_fencing_rejections_total"}
    assert found == {"permit": 1, "replication": 0, "gate": 1, "venue": 1}
    assert value(t, "baton_orders_declined_total", code="max_position") == 1


def test_loop_lag_and_fsync_have_histograms():
    t = telemetry()
    t.loop_lag(3 * MS)
    t.journal_fsync(150_000)
    assert value(t, "baton_event_loop_lag_seconds_bucket", le="0.003") == 1
    assert value(t, "baton_journal_fsync_duration_seconds_sum") == pytest.approx(0.00015)
    assert t.latency_s()["fsync"] == {"p50": 0.00015, "p99": 0.00015}


# -- what is ------------------------------------------------------------------------------------------------------

NAMES = {
    "baton_build_info",
    "baton_node_role",
    "baton_trading_state",
    "baton_fencing_token",
    "baton_lease_ttl_seconds",
    "baton_lease_last_renewal_timestamp_seconds",
    "baton_in_sync_standbys",
    "baton_cluster_unlocked",
    "baton_replication_lag_entries",
    "baton_replication_lag_seconds",
    "baton_orders",
    "baton_orders_unresolved",
    "baton_fencing_rejections",
    "baton_feed_last_message_timestamp_seconds",
    "baton_feed_messages",
    "baton_feed_gaps",
    "baton_event_loop_lag_seconds",
    "baton_order_latency_seconds",
    "baton_failover_duration_seconds",
    "baton_last_failover_timestamp_seconds",
    "baton_journal_fsync_duration_seconds",
    "process_cpu_seconds",
}


@pytest.mark.parametrize(
    ("accept", "kind", "parse"),
    [
        ("", "text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_open),
    ],
)
def test_both_formats_parse_and_hold_every_name(accept: str, kind: str, parse: Any):
    t = telemetry()
    t.watch(FakeStatus("n1"))
    body, content_type = t.exposition(accept)
    assert content_type.startswith(kind)
    assert {f.name for f in parse(body.decode())} >= NAMES


def test_leader_exports_the_cluster():
    t = telemetry()
    t.watch(FakeStatus("n1"))
    assert value(t, "baton_node_role", role="leader") == 1 and value(t, "baton_node_role", role="standby") == 0
    assert value(t, "baton_trading_state", state="allowed") == 1
    assert value(t, "baton_fencing_token") == TOKEN and value(t, "baton_cluster_unlocked") == 0
    assert value(t, "baton_in_sync_standbys") == 2
    assert value(t, "baton_replication_lag_entries", standby="n3") == 12
    assert value(t, "baton_replication_lag_entries", standby="n1") is None  # a leader does not lag behind itself
    assert value(t, "baton_failover_duration_seconds", phase="rto") == 0.0231
    assert value(t, "baton_failover_duration_seconds", phase="elect") == 0.006
    assert value(t, "baton_last_failover_timestamp_seconds") == SOME_DAY / 1e9
    assert value(t, "baton_feed_messages_total") == 81_532


@pytest.mark.parametrize(("me", "lasts"), [("n1", 0.8), ("n2", 1.0)])
def test_last_renewal_is_told_from_what_is_left_of_the_lease(me: str, lasts: float):
    t = telemetry()
    fake = FakeStatus(me)
    t.watch(fake)
    renewed = value(t, "baton_lease_last_renewal_timestamp_seconds")
    assert renewed is not None
    # 0.75 s were left 0.05 s ago: it was renewed (lasts - 0.75) s before that.
    assert time.time() - renewed == pytest.approx(lasts - 0.75 + 0.05, abs=0.5)


def test_what_is_not_known_is_not_exported():
    t = telemetry()
    fake = FakeStatus("n2")
    fake.picture_age_s = 60.0
    fake.own = {"permission": "allowed?"}
    fake.details = {}
    t.watch(fake)
    assert value(t, "baton_node_role", role="unknown") == 1
    assert value(t, "baton_trading_state", state="blocked") == 1
    for name in (
        "baton_cluster_unlocked",
        "baton_in_sync_standbys",
        "baton_orders_unresolved",
        "baton_feed_messages_total",
    ):
        assert value(t, name) is None, name


def test_no_leader_is_exported_by_every_node_that_sees_it():
    t = telemetry()
    fake = FakeStatus("n3")
    fake.leader = None
    t.watch(fake)
    assert value(t, "baton_cluster_unlocked") == 1 and value(t, "baton_fencing_token") is None


def test_registries_are_apart():
    first, second = telemetry(), telemetry()
    first.fence_refused("gate")
    assert value(second, "baton_fencing_rejections_total", layer="gate") == 0
