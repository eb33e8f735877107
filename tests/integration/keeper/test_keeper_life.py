"""Starting and stopping: what a keeper needs and says when it is missing, how it leaves and what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.core.errors import Unreachable
from cluster.core.ids import NS_PER_S
from cluster.home import Home
from cluster.registry import resign_dead
from cluster.spec import KeeperSpec
from node.local.nodeconfig import generated, toml_text
from node.local.servers import free_ports
from tests.integration.keeper.rig import LIMIT_S, PATIENT, Cluster, Etcd, Node, gone, rules, sigterm, until, wait_died

# -- leaving --------------------------------------------------------------------------------------------------


def test_a_leader_told_to_stop_hands_over_and_ends_well(cluster_of):
    cluster = cluster_of(3, ttl_s=10.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker.pid
    sigterm(old)
    new = cluster.wait_leader(after=token)
    assert old.wait_exit(3.0) == 0
    assert gone(worker)
    told = cluster.resigned
    assert (told["token"], told["reason"], told["successor"]) == (token, "shutdown", new.name)
    assert old.seen("Drain", term=token)[0]["successor"] == new.name
    assert old.seen("Exit")
    assert not old.log("worker_killed")
    # It took its member key along, so nobody counts on it.
    assert cluster.key(cluster.keys.member(old.name)) is None


def test_a_standby_told_to_stop_ends_at_once_and_nobody_notices(cluster_of):
    cluster = cluster_of(2, ttl_s=10.0).start()
    leader = cluster.wait_whole()
    token = cluster.token()
    (standby,) = cluster.standbys()
    worker = standby.worker.pid
    sigterm(standby)
    assert standby.wait_exit(3.0) == 0
    assert gone(worker)
    assert cluster.token() == token
    assert leader.last_act().token == token


async def test_a_lonely_leader_told_to_stop_resigns_and_that_stands(cluster_of):
    cluster = cluster_of(1, ttl_s=10.0).start()
    node = cluster.wait_leader()
    token = cluster.token()
    key = cluster.keys.member("n1")
    member = until(lambda: (m := cluster.value(key)).get("role") == "leader" and m, "it says that it leads")
    assert (member["keeper_pid"], member["worker_pid"]) == (node.keeper.pid, node.worker.pid)
    assert (member["grpc"], member["http"], member["never_lead"]) == ("n1.test:1", "n1.test:2", False)
    sigterm(node)
    assert node.wait_exit(3.0) == 0
    assert (cluster.resigned["token"], cluster.resigned["reason"], cluster.token()) == (token, "shutdown", 0)
    assert cluster.key(key) is None
    # ExecStopPost runs after every stop: it must leave what the node itself said, a successor above all.
    before = cluster.key(cluster.keys.resigned)
    assert await resign_dead(node.told()) == f"token {token} was over already"
    assert cluster.key(cluster.keys.resigned) == before


def test_a_leader_whose_worker_is_deaf_and_sulky_is_stopped_all_the_same(cluster_of):
    cluster = cluster_of(2, ttl_s=10.0).start("deaf", "sulky")
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker.pid
    sigterm(old)
    cluster.wait_leader(after=token)
    assert old.wait_exit() == 0
    assert gone(worker)


@pytest.mark.parametrize("how", ["paused", "killed"])
def test_all_nodes_can_be_stopped_when_etcd_is_dead(cluster_of, own_etcd, how):
    cluster = cluster_of(2, ttl_s=0.6, etcd=Etcd(own_etcd))
    for node in cluster.nodes.values():
        node.start(timing=PATIENT | {"drain_timeout": NS_PER_S // 3})
    cluster.wait_whole()
    workers = [n.worker.pid for n in cluster.nodes.values()]
    if how == "paused":
        own_etcd.pause(0)
    else:
        own_etcd.kill(0)
    for node in cluster.nodes.values():
        sigterm(node)
    for node in cluster.nodes.values():
        assert node.wait_exit(4.0) == 0  # a drain, a ttl, and a little for what is left to say
    assert all(gone(w) for w in workers)


def test_a_keeper_that_never_found_etcd_can_be_stopped(cluster_of):
    cluster = cluster_of(1)
    (port,) = free_ports(1)
    node = cluster["n1"].start(etcd={"endpoints": [f"http://127.0.0.1:{port}"]})
    until(lambda: node.log("etcd_watch_blind"), "it says that it sees nothing")
    sigterm(node)
    assert node.wait_exit(4.0) == 0
    assert not node.acts()


# -- starting ---------------------------------------------------------------------------------------------------


def refused(node: Node) -> str:
    """What a keeper that does not start says; and that it is one line, not a traceback."""
    assert node.wait_exit() == 1
    (said,) = node.stderr()
    return said


def test_two_keepers_cannot_share_a_data_directory(cluster_of):
    cluster = cluster_of(2)
    cluster["n1"].start()
    cluster.wait_leader()
    token = cluster.token()
    cluster.failures_allowed.add("stderr")
    said = refused(cluster["n2"].start(data_dir=str(cluster["n1"].home)))
    assert said == (
        f"baton: data directory {cluster['n1'].home} is in use by this node's keeper or worker (keeper pid "
        f"{cluster['n1'].keeper.pid}); stop it first, or give this node another node.data_dir"
    )
    assert cluster.token() == token


def test_what_cannot_be_is_said_in_one_line(cluster_of):
    cluster = cluster_of(3)
    cluster.failures_allowed.add("stderr")
    cluster["n1"].home.write_text("a file")
    no_margin = cluster["n2"].spec["rules"] | {"margin": 0}
    cluster["n1"].start()
    cluster["n2"].start(rules=no_margin)
    cluster["n3"].start(etcd={"endpoints": ["etcd"]})
    assert refused(cluster["n1"]).startswith(f"baton: data directory {cluster['n1'].home}: File exists")
    said = refused(cluster["n2"])
    assert "lease.margin_s = 0 s must be at least ttl_s * 2 * clock_drift_max + send_slack_s = " in said
    assert refused(cluster["n3"]).startswith("baton: etcd endpoint 'etcd' is not a host and a port")


def test_a_worker_that_cannot_be_started_is_tried_again_and_never_leads(cluster_of):
    cluster = cluster_of(2).start()
    cluster.wait_whole()
    (standby,) = cluster.standbys()
    sigterm(standby)
    standby.wait_exit()
    standby.start(worker_argv=["/nonexistent/worker"])
    until(lambda: len(standby.log("worker_not_started")) >= 3, "it is tried again")
    waits = [e["restart_in_s"] for e in standby.log("worker_exited") if "could not be started" in e["how"]]
    assert waits[:3] == [0.05, 0.1, 0.2]
    token = cluster.token()
    leader = cluster.wait_leader()
    leader.order("signal", "SIGKILL")
    assert cluster.wait_leader(after=token) is leader
    sigterm(standby)
    assert standby.wait_exit() == 0


def test_a_worker_leads_only_once_it_has_said_hello(cluster_of):
    cluster = cluster_of(1)
    node = cluster["n1"].start("slow-hello:0.7")
    cluster.wait_leader()
    started, lead = node.seen("started")[0]["at"], node.seen("Lead")[0]["at"]
    assert lead - started >= 0.7e9


@pytest.mark.parametrize("behaviour", ["slow-hello:60", "mute"])
def test_a_worker_that_does_not_come_up_is_killed_and_replaced(cluster_of, behaviour):
    cluster = cluster_of(1)
    node = cluster["n1"].start(behaviour, timing=PATIENT | {"start_timeout": NS_PER_S})
    until(lambda: len(node.log("worker_started")) >= 2, "it is replaced")
    first = node.log("worker_started")[0]["pid"]
    assert node.log("worker_killed", pid=first, reason="did not start in time")


def test_the_lead_goes_to_the_highest_priority_and_never_to_who_must_not_have_it(cluster_of):
    cluster = cluster_of(3, ttl_s=10.0)
    cluster["n2"].start(priority=300, never_lead=True)
    until(lambda: cluster.value(cluster.keys.member("n2")).get("ready"), "n2 is up")
    assert not cluster.token()
    cluster["n1"].start(priority=50)
    cluster.wait_leader()
    cluster["n3"].start(priority=10)
    old = cluster.wait_whole()
    token = cluster.token()
    old.order("switchover", "r", "n2", "ann")
    (answer,) = until(lambda: old.seen("SwitchoverAnswer"), "it is answered")
    assert (answer["ok"], answer["text"]) == (False, "n2 is tagged never_lead")
    sigterm(old)
    assert cluster.wait_leader(after=token).name == "n3"
    assert old.wait_exit() == 0


# -- what must not end it, and what must ------------------------------------------------------------------------


def test_a_log_that_nobody_reads_any_more_does_not_stop_the_keeper(cluster_of):
    cluster = cluster_of(1, ttl_s=2.0)
    node = cluster["n1"].start()
    cluster.wait_leader()
    sigterm(node)
    node.wait_exit()
    token = cluster.key(cluster.keys.tenure).modified
    with subprocess.Popen(node.keeper.argv, stderr=subprocess.PIPE) as keeper:
        assert keeper.stderr is not None
        try:
            cluster.wait_leader(after=token)
            keeper.stderr.close()
            token = cluster.token()
            node.order("signal", "SIGKILL")  # there is much to say
            cluster.wait_leader(after=token)
            keeper.terminate()
            assert keeper.wait(LIMIT_S) == 0
        finally:
            keeper.kill()


def failed(node: Node, worker: int) -> None:
    assert node.wait_exit() == 1
    assert gone(worker)
    (said,) = node.log("keeper_failed")
    assert "TypeError" in said["exception"]


def test_a_fault_of_ours_in_a_task_ends_the_keeper_its_worker_and_its_lead(cluster_of):
    cluster = cluster_of(2, ttl_s=1.0).start()
    cluster.failures_allowed |= {"keeper_failed"}
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker.pid
    old.order("say", {"t": "ProposeInSync", "request": 1, "term": 0, "members": 5, "expected_revision": 0})
    failed(old, worker)
    assert cluster.wait_leader(after=token) is not old


def test_a_fault_of_ours_in_a_callback_leaves_no_half_a_keeper_behind(cluster_of):
    """The loop would have logged it, and the keeper gone on without ever looking at its worker again."""
    cluster = cluster_of(1)
    cluster.failures_allowed |= {"keeper_failed"}
    node = cluster["n1"].start('hello:{"highest_term": "x"}')
    (started,) = until(lambda: node.log("worker_started"), "its worker is started")
    failed(node, started["pid"])


# -- baton node resign --dead -------------------------------------------------------------------------------------


def resign_by_hand(cluster: Cluster, node: Node) -> tuple[int, str]:
    """What `baton node resign --dead` exits with and says."""
    table = generated(
        node=node.name,
        data_dir=node.home,
        grpc="127.0.0.1:1",
        http="127.0.0.1:2",
        etcd=cluster.etcd.server.endpoints,
        gate_url="redis://127.0.0.1:3/0",
        venue="127.0.0.1:4",
        feed_url="ws://127.0.0.1:5",
        strategy="node.strategies.probe:Probe",
    )
    table["cluster"]["name"] = node.spec["cluster"]
    file = node.directory / f"{node.name}.toml"
    file.write_text(toml_text(table))
    words = ["-m", "node.cli", "node", "resign", "--dead", "--config", str(file)]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr.strip()


async def test_resigning_for_a_dead_node_is_refused_while_it_lives_done_once_and_then_over(cluster_of):
    cluster = cluster_of(2, ttl_s=10.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker.pid

    code, said = resign_by_hand(cluster, old)
    assert (code, cluster.token()) == (3, token)
    assert "is in use by this node's keeper or worker" in said

    old.keeper.kill()
    wait_died(worker)
    assert resign_by_hand(cluster, old) == (0, f"resigned token {token} for {old.name}")
    assert (cluster.resigned["token"], cluster.resigned["reason"]) == (token, "process died")
    new = cluster.wait_leader(after=token)
    assert next(a for a in new.acts() if a.token > token).after < old.acts(token)[-1].act_until
    assert await resign_dead(old.told()) == f"{old.name} did not lead"


async def test_resigning_when_the_key_has_vanished_spares_the_others_the_wait(cluster_of):
    cluster = cluster_of(1, ttl_s=10.0).start()
    node = cluster.wait_leader()
    token, worker = cluster.token(), node.worker.pid
    node.keeper.kill()
    wait_died(worker)
    cluster.etcd.delete(cluster.keys.leader)
    assert await resign_dead(node.told()) == f"resigned token {token} for {node.name}"
    assert (cluster.resigned["token"], cluster.resigned["reason"]) == (token, "process died")


async def test_resigning_without_etcd_says_so_and_lets_go_of_the_lock(tmp_path: Path):
    (port,) = free_ports(1)
    spec = KeeperSpec("c", "n1", str(tmp_path), {"endpoints": [f"127.0.0.1:{port}"]}, rules(1.0), {}, [])
    with pytest.raises(Unreachable, match="no etcd endpoint is connected"):
        await resign_dead(spec)
    Home.open(tmp_path).close()
