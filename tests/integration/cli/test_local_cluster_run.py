"""A local cluster of real processes, from the command line: up, looked at, broken, down."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.local import process
from node.local.cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 60.0
SMALL = ["--nodes", "2", "--etcd", "1", "--feed", "synthetic"]


def baton(*words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a command line; its exit code must be `code`, if given."""
    ran = subprocess.run(
        [sys.executable, "-m", "node.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert code is None or ran.returncode == code, ran.stderr
    return ran


def data(*words: object) -> Any:
    return json.loads(baton(*words, "-o", "json").stdout)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return found


def living(cluster: LocalCluster) -> list[int]:
    return [p.pid for p in process.marked(cluster.record()["id"])]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "D"
    cluster = LocalCluster(tmp_path / "D")
    if cluster.exists:
        cluster.kill()
        assert not living(cluster)


def leads(cluster: LocalCluster, token_above: int = 0) -> str | None:
    """Who trades, with a token above this one."""
    status = cluster.status()
    leader = status["leader"] or {}
    trades = status["permission"]["level"] == "allowed" and (leader.get("token") or 0) > token_above
    return leader["node"] if trades else None


def test_a_cluster_comes_up_detached_is_looked_at_and_goes_down(directory: Path) -> None:
    up = baton("up", "--dir", directory, *SMALL, "--detach")
    cluster = LocalCluster(directory)
    assert up.stdout == ""
    assert f"ready; status page: {cluster.urls[0]}" in up.stderr
    assert "synthetic market" in up.stderr

    status = data("status", "--dir", directory)
    assert (status["schema"], status["permission"]["level"]) == (1, "allowed")
    assert status["leader"]["token"] > 0 and 0 < status["leader"]["lease_left_s"] <= 1
    assert [n["name"] for n in status["nodes"]] == ["n1", "n2"]
    told = {n["name"]: (n["keeper_pid"], n["worker_pid"]) for n in status["nodes"]}
    for name in ("n1", "n2"):
        keeper, worker = cluster.node_processes(name)
        assert keeper is not None and worker is not None
        assert told[name] == (keeper.pid, worker.pid)

    again = baton("up", "--dir", directory, "--detach", code=1)
    assert "a cluster runs in" in again.stderr and f"baton down --dir {directory}" in again.stderr

    lines = [json.loads(x) for x in baton("venue", "record", "--dir", directory, "-o", "jsonl").stdout.splitlines()]
    assert [x["venue_seq"] for x in lines] == list(range(1, len(lines) + 1))
    assert any(x["kind"] == "arm" and x["outcome"] == "accepted" for x in lines)
    baton("venue", "record", "--dir", directory, "--verify")
    history = data("history", "--dir", directory)["history"]
    assert history[0]["token"] == status["leader"]["token"]
    assert baton("doctor", "--dir", directory).stdout.count("fail ") == 0
    assert all(j["ok"] for j in data("journal", "verify", "--dir", directory)["journals"])

    assert living(cluster)
    assert "stopped the cluster" in baton("down", "--dir", directory).stderr
    assert not living(cluster)
    assert "nothing runs" in baton("down", "--dir", directory).stderr
    assert baton("status", "--dir", directory, code=4).stdout == ""


def test_the_foreground_talks_in_lines_and_stops_when_it_is_asked(directory: Path) -> None:
    words = [sys.executable, "-m", "node.cli", "up", "--dir", str(directory), *SMALL]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None and up.stderr is not None
        assert select.select([up.stdout], [], [], LIMIT_S)[0]
        assert "trading=allowed" in up.stdout.readline()
        up.send_signal(signal.SIGINT)
        assert up.wait(LIMIT_S) == 0
        assert up.stderr.read().endswith("stopping; Ctrl-C again kills\nstopped\n")
    assert not living(LocalCluster(directory))


def test_the_cluster_does_not_outlive_a_foreground_that_was_killed(directory: Path) -> None:
    words = [sys.executable, "-m", "node.cli", "up", "--dir", str(directory), *SMALL]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as up:
        assert up.stdout is not None
        assert select.select([up.stdout], [], [], LIMIT_S)[0]
        up.kill()
    cluster = LocalCluster(directory)
    until(lambda: not living(cluster))


def test_dead_parts_come_back_and_a_held_node_stays_away(directory: Path) -> None:
    baton("up", "--dir", directory, *SMALL, "--detach")
    cluster = LocalCluster(directory)
    first = cluster.status()["leader"]
    until(lambda: all(n["in_sync"] for n in cluster.status()["nodes"]))

    # 1. The leader's keeper dies. The supervisor resigns for it, another leads, and the keeper comes back.
    keeper, worker = cluster.node_processes(first["node"])
    assert keeper is not None and worker is not None
    keeper.send(signal.SIGKILL)
    second = until(lambda: leads(cluster, first["token"]))
    assert process.wait_gone([worker], 5.0) == []
    until(lambda: cluster.process(first["node"]) is not None)
    assert cluster.programs()[first["node"]]["restarts"] == 1
    until(lambda: all(n["in_sync"] for n in cluster.status()["nodes"]) and len(cluster.status()["answered"]) == 2)
    second = until(lambda: leads(cluster))

    # 2. The host of whoever leads now is lost.
    token = cluster.status()["leader"]["token"]
    cluster.hold(second)
    keeper, _ = cluster.node_processes(second)
    assert keeper is not None
    keeper.send(signal.SIGKILL)
    until(lambda: cluster.programs()[second]["state"] == "held")
    third = until(lambda: leads(cluster, token))
    assert third != second
    assert cluster.process(second) is None
    cluster.release(second)
    until(lambda: cluster.process(second) is not None)

    # 3. So do the servers.
    for name in ("venue", "redis", "feed", "etcd1"):
        before = cluster.process(name)
        assert before is not None
        before.send(signal.SIGKILL)
        until(lambda n=name, b=before: cluster.process(n) not in (None, b))  # type: ignore[misc]
    until(lambda: leads(cluster))
    baton("down", "--dir", directory)
    assert not living(cluster)


def test_down_works_after_everything_was_killed_and_up_goes_on_with_the_data(directory: Path) -> None:
    baton("up", "--dir", directory, *SMALL, "--detach")
    cluster = LocalCluster(directory)
    token, ports = cluster.status()["leader"]["token"], cluster.record()["ports"]

    # 1. Only the supervisor: its children live on, and are neither joined nor forgotten.
    supervisor = cluster.supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    assert process.wait_gone([supervisor], 5.0) == []
    refused = baton("up", "--dir", directory, "--detach", code=1)
    assert "still run without their supervisor" in refused.stderr
    assert "stopped the cluster" in baton("down", "--dir", directory).stderr
    assert not living(cluster)

    # 2. Up again, on the same data; then everything at once.
    baton("up", "--dir", directory, "--detach")
    assert cluster.record()["ports"] == ports
    assert cluster.status()["leader"]["token"] > token
    cluster.kill()
    assert not living(cluster)
    assert "nothing runs" in baton("down", "--dir", directory).stderr
    assert cluster.record()["state"] == "stopped"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("detach", [["--detach"], []])
def test_a_start_that_is_interrupted_leaves_nothing_running(
    directory: Path, sig: signal.Signals, detach: list[str]
) -> None:
    words = [sys.executable, "-m", "node.cli", "up", "--dir", str(directory), *SMALL, *detach]
    cluster = LocalCluster(directory)
    up = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=_as_in_the_background)
    with up:
        until(lambda: cluster.exists and cluster.programs())  # the supervisor is at work
        up.send_signal(sig)
        assert up.wait(LIMIT_S) == 128 + sig
        assert up.stderr is not None
        said = up.stderr.read()
        assert said.endswith("interrupted; what had started is stopped\n") and "ready" not in said
    assert not living(cluster) and cluster.record()["state"] == "stopped"


def test_a_demo_that_is_interrupted_while_it_starts_takes_its_directory_away(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "from chaos.cli import main; main()", "demo", *SMALL]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_as_in_the_background)
    with demo:
        found = until(lambda: list(tmp_path.glob("baton-demo-*/cluster.json")))
        cluster = LocalCluster(found[0].parent)
        mark = until(lambda: cluster.programs() and cluster.record()["id"])
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert demo.stderr is not None and "on a synthetic market" in demo.stderr.read()
    assert not list(process.marked(mark))
    assert not list(tmp_path.glob("baton-demo-*"))


def _as_in_the_background() -> None:
    """A shell without job control has its background processes ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_the_options_of_a_start_that_failed_are_forgotten(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no capture\n")
    bad = ["--nodes", "2", "--etcd", "1", "--feed", text, "--venue-profile", "expiry"]
    assert "text.txt" in baton("up", "--dir", directory, *bad, "--detach", code=1).stderr
    baton("up", "--dir", directory, "--nodes", "1", "--feed", "synthetic", "--detach")
    assert LocalCluster(directory).options.venue_profile == "token"
    baton("down", "--dir", directory)


def test_a_start_that_fails_says_why_and_leaves_nothing_running(directory: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text('[gate]\nurl = "redis://127.0.0.1:1/0"\n')
    ran = baton("up", "--dir", directory, *SMALL, "--detach", "--timeout", "12", "--config-overlay", overlay, code=1)
    assert "baton: " in ran.stderr and "Traceback" not in ran.stderr
    cluster = LocalCluster(directory)
    assert not cluster.running and not living(cluster)
