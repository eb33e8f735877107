"""The directory of a local cluster: its record, its ports, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from node.local.cluster import ClusterRunning, LocalCluster, Options
from node.local.process import ProcessId


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(tmp_path / "D")


def prepare(cluster: LocalCluster, options: Options) -> dict[str, Any]:
    with cluster._locked():
        cluster._prepare(options)
    return cluster.record()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(nodes=0), "--nodes 0: between 1 and 9"),
        (Options(etcd=2), "--etcd 2: 1 or 3"),
        (Options(speed=0), "--speed 0: between"),
        (Options(feed="/no/such.gz"), "--feed /no/such.gz: there is no such file"),
        (Options(venue_profile="none"), "venue profile 'none'"),
        (Options(overlay={"per_node": {"n7": {}}}), "per_node.n7: there is no such node"),
        (Options(strategy="nowhere.at:All"), "module 'nowhere' is not found"),
        (Options(overlay={"lease": {"ttl": 1}}), "lease.ttl"),
        (Options(overlay={"strategy": {"config": {"qty_lots": 0}}}), "qty_lots"),
    ],
)
def test_a_wrong_option_is_named_before_anything_starts(cluster: LocalCluster, options: Options, why: str) -> None:
    with pytest.raises(ConfigError) as e:
        prepare(cluster, options)
    assert why in str(e.value)
    assert not cluster.exists  # nor do they lie in wait for the next start


def test_refused_options_leave_the_record_of_the_last_good_start(cluster: LocalCluster) -> None:
    good = prepare(cluster, Options(nodes=1, etcd=1))
    with pytest.raises(ConfigError):
        prepare(cluster, Options(nodes=2, etcd=1, strategy="nowhere.at:All"))
    assert cluster.record() == good


def test_options_of_a_start_that_failed_are_not_taken_up_by_the_next(cluster: LocalCluster) -> None:
    # 1. Nothing came to trade yet: the defaults, but for the etcd members whose data is there.
    prepare(cluster, Options(nodes=2, etcd=1, venue_profile="expiry"))
    assert cluster.options.venue_profile == "expiry"
    assert cluster.good_options == Options(etcd=1)
    # 2. One did: what it was told stays, whatever failed afterwards. (`launch.py` writes this.)
    cluster.update(state="ready", good_options=cluster.record()["options"])
    prepare(cluster, Options(nodes=3, etcd=1, venue_profile="plain"))
    cluster.update(state="failed")
    assert cluster.good_options == Options(nodes=2, etcd=1, venue_profile="expiry")


def test_a_record_of_a_baton_that_kept_only_one_set_of_options_is_of_a_good_start(cluster: LocalCluster) -> None:
    record = prepare(cluster, Options(nodes=2, etcd=1))
    del record["good_options"]
    cluster.record_file.write_text(json.dumps(record))
    assert cluster.good_options == Options(nodes=2, etcd=1)


def test_the_layout_has_a_configuration_per_node_with_its_own_ports(cluster: LocalCluster) -> None:
    record = prepare(cluster, Options(nodes=2, etcd=1, overlay={"per_node": {"n2": {"node": {"priority": 7}}}}))
    from node.config import load_config

    n1, n2 = (load_config(cluster.config_file(n), {}) for n in ("n1", "n2"))
    assert (n1.node.priority, n2.node.priority) == (100, 7)
    numbers = [p for ports in record["ports"].values() for p in ports]
    assert len(set(numbers)) == len(numbers) == 2 + 3 + 4
    assert f"http://{n1.node.http_listen}" == cluster.http_url("n1") == cluster.urls[0]
    assert n1.etcd.endpoints == cluster.etcd_endpoints
    assert n2.node.data_dir == cluster.journal_dir("n2")


def test_a_second_start_keeps_the_ports_and_the_identity(cluster: LocalCluster) -> None:
    first = prepare(cluster, Options(nodes=2, etcd=1))
    again = prepare(cluster, Options(nodes=3, etcd=1))
    assert again["id"] == first["id"]
    assert {n: again["ports"][n] for n in first["ports"]} == first["ports"]
    assert len(set(again["ports"]["n3"]) - {p for ports in first["ports"].values() for p in ports}) == 2


def test_another_number_of_etcd_members_is_refused_on_old_data(cluster: LocalCluster) -> None:
    prepare(cluster, Options(etcd=1))
    with pytest.raises(ConfigError, match=r"--etcd 3: the data in .* is of 1 etcd members"):
        prepare(cluster, Options(etcd=3))


def test_a_port_that_somebody_took_is_named_with_who_and_for_what(cluster: LocalCluster) -> None:
    prepare(cluster, Options(nodes=1, etcd=1))
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", cluster.port("venue")))
        squatter.listen()
        with pytest.raises(ConfigError) as e:
            prepare(cluster, Options(nodes=1, etcd=1))
    assert f"port {cluster.port('venue')}, which venue of the cluster" in str(e.value)
    assert f"(pid {os.getpid()})" in str(e.value)
    assert "or use another directory" in str(e.value)


def test_no_cluster_is_said_with_how_to_start_one(cluster: LocalCluster) -> None:
    with pytest.raises(ConfigError, match=r"there is no cluster in .*; start one: baton up --dir"):
        cluster.record()
    assert not cluster.running
    assert cluster.stop() is False


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "id": "x", "options": [], "ports": {}}']
)
def test_a_record_that_is_none_is_an_error_and_not_a_traceback(cluster: LocalCluster, text: str) -> None:
    cluster.dir.mkdir()
    cluster.record_file.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.json"):
        cluster.record()


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "D").write_text("")
    with pytest.raises(ConfigError, match=r"--dir .*/D cannot be used"):
        LocalCluster(tmp_path / "D").start(Options(nodes=1, etcd=1))


def test_a_lock_that_is_held_means_that_a_cluster_runs(cluster: LocalCluster) -> None:
    with cluster._locked(), pytest.raises(ClusterRunning, match="baton down --dir"):
        cluster.start(Options(nodes=1, etcd=1))


def test_who_interrupts_the_stopping_has_everything_killed(tmp_path: Path) -> None:
    done: list[str] = []

    class Slow(LocalCluster):
        def stop(self, timeout_s: float = 30.0) -> bool:
            done.append("stop")
            if len(done) == 1:
                raise KeyboardInterrupt
            return True

        def kill(self) -> None:
            done.append("kill")

    Slow(tmp_path).stop_or_kill()
    assert done == ["stop", "kill", "stop"]


def test_a_start_that_was_refused_stops_nothing_of_what_runs(cluster: LocalCluster) -> None:
    prepare(cluster, Options(nodes=1, etcd=1))
    me = ProcessId.of(os.getpid())
    assert me is not None
    cluster.update(supervisor=me.as_record(), state="ready")
    with pytest.raises(ClusterRunning):
        cluster.start(Options(nodes=1, etcd=1))
    assert cluster.running and cluster.record()["state"] == "ready"  # and this test goes on


def test_what_is_recorded_counts_only_while_it_is_the_same_process(cluster: LocalCluster) -> None:
    prepare(cluster, Options(nodes=1, etcd=1))
    me = ProcessId.of(os.getpid())
    assert me is not None
    stranger = replace(me, ticks=me.ticks - 5)  # our pid, given away by an earlier process
    cluster.update(supervisor=stranger.as_record(), programs={"venue": {"process": stranger.as_record(), "state": "x"}})
    assert not cluster.running
    assert cluster.process("venue") is None
    assert cluster.stop() is False  # had it sent us a signal, this test would not go on
    assert cluster.programs()["venue"] == {"process": None, "state": "stopped"}


def test_a_record_survives_being_cut_off_in_the_middle(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(cluster, Options(nodes=1, etcd=1))
    before = cluster.record_file.read_text()

    def crash(*_: object) -> None:
        raise OSError("power")

    monkeypatch.setattr("node.local.cluster.os.replace", crash)
    with pytest.raises(OSError, match="power"):
        cluster.update(state="ready")
    assert cluster.record_file.read_text() == before
    assert json.loads(before)["state"] == "starting"


def test_holds_are_files_beside_the_program(cluster: LocalCluster) -> None:
    prepare(cluster, Options(nodes=1, etcd=1))
    for name in ("n1", "redis", "etcd1"):
        cluster.home(name).mkdir(parents=True, exist_ok=True)
        cluster.hold(name)
        assert (cluster.home(name) / "hold").exists()
        cluster.release(name)
        cluster.release(name)  # twice is fine
        assert not (cluster.home(name) / "hold").exists()
