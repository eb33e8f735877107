"""Starting, finding, breaking and stopping the local servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from cluster.core.errors import ConfigError
from node.local import binaries, servers
from node.local.binaries import find_etcd, find_redis
from node.local.servers import (
    LocalEtcd,
    LocalRedis,
    ServerFailed,
    free_ports,
    start_etcd,
    start_redis,
)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare_path(tmp_path, monkeypatch) -> Path:
    """A PATH with one empty folder on it, and the wheels not installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(binaries.importlib.util, "find_spec", lambda name: None)
    return folder


# -- finding ----------------------------------------------------------------------------------------------


def test_what_is_found_is_the_server_itself_not_a_wheels_python_wrapper(monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for binary in (find_etcd(), find_redis()):
        assert binary.path.read_bytes()[:4] == b"\x7fELF"
        assert binary.version >= (3, 4, 0)


def test_the_path_comes_before_the_wheel(tmp_path, monkeypatch):
    mine = script(tmp_path / "etcd", "#!/bin/sh\necho etcd Version: 3.6.14\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (find_etcd().path, find_etcd().version) == (mine, (3, 6, 14))


def test_an_old_server_on_the_path_is_passed_over_for_the_wheels(tmp_path, monkeypatch):
    script(tmp_path / "etcd", "#!/bin/sh\necho etcd Version: 3.3.25\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd().version >= (3, 4, 0)


def test_missing_servers_come_with_a_remedy(bare_path):
    with pytest.raises(ConfigError, match=r"no etcd server.*pip install 'baton-ha\[local\]'.*apt install etcd-server"):
        find_etcd()
    with pytest.raises(
        ConfigError, match=r"no Redis server.*pip install 'baton-ha\[local\]'.*apt install redis-server"
    ):
        find_redis()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/bin/sh\necho etcd Version: 3.3.25\n", r"etcd \(3\.3\.25\) is older than 3\.4\.0"),
        ("#!/bin/sh\necho hello\n", "does not say which version"),
        ("#!/no/such/interpreter\n", "does not run"),
    ],
)
def test_a_server_that_will_not_do_is_named_with_the_reason(bare_path, text, says):
    script(bare_path / "etcd", text)
    with pytest.raises(ConfigError, match=says) as e:
        find_etcd()
    assert str(bare_path / "etcd") in str(e.value) and "pip install" in str(e.value)


def test_valkey_is_a_redis(bare_path):
    script(bare_path / "redis-server", "#!/bin/sh\necho Valkey server v=8.1.1 sha=0\n")
    assert find_redis().version == (8, 1, 1)


def test_free_ports_are_different_and_below_the_range_of_outgoing_connections():
    ports = free_ports(20)
    assert len(set(ports)) == 20 and max(ports) < 32_768


# -- etcd -------------------------------------------------------------------------------------------------


def test_an_etcd_is_broken_healed_and_stopped_by_pid(own_etcd: LocalEtcd):
    (member,) = own_etcd.members
    (pid,) = own_etcd.pids
    assert own_etcd.alive and member.healthy() and psutil.Process(pid).name() == "etcd"
    own_etcd.pause(0)
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED and not member.healthy()
    own_etcd.resume(0)
    own_etcd.wait_healthy(5)
    own_etcd.kill(0)
    assert not own_etcd.alive and not psutil.pid_exists(pid)
    own_etcd.restart(0)
    assert own_etcd.pids != [pid] and member.healthy()
    own_etcd.pause(0)  # also a paused one stops
    own_etcd.stop()
    assert not own_etcd.alive


def test_the_local_etcd_grants_leases_of_one_second(own_etcd: LocalEtcd):
    argv = own_etcd.members[0].proc.argv
    heartbeat, election = (
        int(next(a for a in argv if a.startswith(f)).split("=")[1]) for f in ("--heartbeat-i", "--election-t")
    )
    assert 3 * election / 2 <= 1000 and heartbeat * 10 <= election


def test_old_releases_are_warned_about(own_etcd: LocalEtcd):
    assert own_etcd.warnings == binaries.etcd_version_warnings(find_etcd().version)


def test_a_port_in_use_is_said_with_the_servers_own_words(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(ServerFailed, match="address already in use"):
            start_etcd(tmp_path, 1, ports=[s.getsockname()[1], free_ports(1)[0]])


def test_a_port_lost_in_a_race_is_replaced(tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = s.getsockname()[1]
        offers = iter([[taken, *free_ports(1)], free_ports(2)])
        monkeypatch.setattr(servers, "free_ports", lambda count: next(offers))
        etcd = start_etcd(tmp_path, 1)
    try:
        assert etcd.members[0].client_port != taken and etcd.alive
    finally:
        etcd.stop(grace_s=0)


def test_a_server_that_does_not_get_ready_is_stopped_again(tmp_path, monkeypatch):
    monkeypatch.setattr(servers.EtcdMember, "healthy", lambda member: False)
    with pytest.raises(ServerFailed, match=r"did not answer within 0\.1 s"):
        start_etcd(tmp_path, 3, timeout_s=0.1)
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())] == []


@pytest.mark.parametrize(("members", "ports"), [(2, None), (1, [1])])
def test_arguments_that_cannot_be_right_are_refused(tmp_path, members, ports):
    with pytest.raises(ConfigError, match=r"1 or 3|1 ports given, 2 needed"):
        start_etcd(tmp_path, members, ports)


# -- Redis ------------------------------------------------------------------------------------------------


@pytest.fixture
def local_redis(tmp_path) -> Iterator[LocalRedis]:
    server = start_redis(tmp_path / "redis")
    yield server
    server.stop()


def test_the_local_redis_syncs_and_never_evicts(local_redis: LocalRedis):
    with redis.Redis.from_url(local_redis.url) as r:
        settings = r.config_get("*")
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }
    assert wanted.items() <= settings.items()


def test_a_write_that_redis_answered_survives_its_kill(local_redis: LocalRedis):
    with redis.Redis.from_url(local_redis.url) as r:
        r.set("token", 7)
        local_redis.kill()
        assert not local_redis.alive and not local_redis.answers()
        local_redis.restart()
        assert r.get("token") == b"7"
    local_redis.pause()
    assert psutil.Process(local_redis.pid).status() == psutil.STATUS_STOPPED and not local_redis.answers()
    local_redis.resume()
    assert local_redis.answers()


# -- across processes -------------------------------------------------------------------------------------


def test_a_server_outlives_its_starter_and_is_found_again_by_its_record(tmp_path):
    code = (
        "import json, sys\n"
        "from node.local.servers import *\n"
        "etcd, redis = start_etcd(sys.argv[1] + '/e', 1), start_redis(sys.argv[1] + '/r')\n"
        "print(json.dumps([etcd.as_record(), redis.as_record()]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    etcd, redis_server = LocalEtcd.from_record(records[0]), LocalRedis.from_record(records[1])
    try:
        assert etcd.alive and etcd.members[0].healthy() and redis_server.alive and redis_server.answers()
        assert [etcd.as_record(), redis_server.as_record()] == records
    finally:
        etcd.stop()
        redis_server.stop()
    assert not etcd.alive and not redis_server.alive


def test_a_pid_that_now_belongs_to_another_process_is_left_alone():
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        stale = servers.Proc(["etcd"], "log", bystander.pid, started=psutil.Process(bystander.pid).create_time() - 100)
        assert not stale.alive
        stale.send(signal.SIGKILL)
        stale.kill()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
