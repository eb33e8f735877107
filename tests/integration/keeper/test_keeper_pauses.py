"""Killed keepers, and whole nodes that stand still while another takes over and then wake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from cluster.clock import boottime_ns
from tests.integration.keeper.rig import WORKER, gone, until, wait_died


def test_a_killed_keeper_takes_its_worker_with_it_and_another_leads_after_the_ttl(cluster_of):
    cluster = cluster_of(3, ttl_s=1.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker.pid
    old.order("hang")  # so that it cannot end by itself: the kernel has to do it
    until(lambda: old.seen("order", order="hang"), "it hangs")
    old.keeper.kill()
    wait_died(worker)
    assert not old.log("worker_killed")
    new = cluster.wait_leader(after=token)
    assert new is not old
    told = cluster.resigned
    assert (told["token"], told["reason"]) == (token, "evicted")
    assert told["actor"] != old.name  # one of the others, not always the one that leads then
    # Nobody could know that the worker was dead, so nobody acted before its permit had ended.
    last, first = old.acts(token)[-1], next(a for a in new.acts() if a.token > token)
    assert last.act_until <= first.before
    # Started again, it follows.
    old.start()
    assert cluster.wait_whole(after=token) is new


def test_a_keeper_that_is_started_again_resigns_for_its_predecessor_at_once(cluster_of):
    cluster = cluster_of(1, ttl_s=10.0).start()
    node = cluster.wait_leader()
    token, worker = cluster.token(), node.worker.pid
    node.keeper.kill()
    wait_died(worker)
    node.start()
    cluster.wait_leader(after=token)
    assert (cluster.resigned["token"], cluster.resigned["reason"]) == (token, "restarted")
    first = next(a for a in node.acts() if a.token > token)
    assert first.after < node.acts(token)[-1].act_until


def test_a_copy_of_the_home_proves_nothing(cluster_of):
    """On another machine, or here: the lock it would take is another one."""
    cluster = cluster_of(2, ttl_s=1.0)
    node = cluster["n1"].start()
    cluster.wait_leader()
    token = cluster.token()
    copy = cluster["n2"]
    shutil.copytree(node.home, copy.home)
    copy.start()
    cluster.wait_whole()
    assert cluster.token() == token
    assert not cluster.resigned


def test_a_worker_whose_keeper_is_dead_already_ends():
    """It died before the worker could ask the kernel to be killed with it."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    env = os.environ | {"BATON_KEEPER_PID": str(dead.pid), "BATON_LINK_FD": "0", "BATON_PERMIT_FD": "0"}
    for argv in ([str(WORKER), "/nonexistent", "n1"], ["-m", "node.worker", "--config", "/nonexistent"]):
        ran = subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, timeout=30)
        assert (ran.returncode, ran.stderr) == (1, "keeper is gone\n")


def test_a_node_paused_for_longer_than_its_ttl_wakes_without_a_permit(cluster_of):
    """1. The leader stands still, keeper and worker. 2. Another evicts it and leads. 3. It wakes, and drops the permit
    before it does anything else. That no two permits overlapped is checked for every cluster here."""
    cluster = cluster_of(2, ttl_s=1.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker
    old.keeper.pause()
    worker.pause()
    said_before = len(old.log())
    assert cluster.wait_leader(after=token) is not old
    assert cluster.resigned["reason"] == "evicted"
    woken = boottime_ns()
    worker.resume()
    old.keeper.resume()
    until(lambda: old.seen("StopTrading", term=token), "its worker is told to stop")
    said = old.log()[said_before]
    assert (said["event"], said["role"], said["reason"]) == ("role_changed", "fenced", "paused")
    assert all(a.before < woken for a in old.acts(token))
    assert old.seen("StopTrading", term=token)[0]["reason"] == "paused"
    # It was only paused: nobody was killed for it, and it is in sync again.
    cluster.wait_whole(after=token)
    assert not old.log("worker_killed")


def test_a_keeper_that_wakes_alone_kills_the_worker_that_does_not_answer(cluster_of):
    cluster = cluster_of(2, ttl_s=1.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker
    old.keeper.pause()
    worker.pause()
    assert cluster.wait_leader(after=token) is not old
    old.keeper.resume()
    wait_died(worker.pid)
    cluster.wait_whole(after=token)


def test_a_worker_that_is_paused_alone_counts_as_hung(cluster_of):
    cluster = cluster_of(2, ttl_s=10.0).start()
    old = cluster.wait_whole()
    token, worker = cluster.token(), old.worker
    worker.pause()
    new = cluster.wait_leader(after=token)
    assert new is not old
    assert gone(worker.pid)
    assert cluster.resigned["reason"] == "worker hung"


def test_a_pause_shorter_than_the_permit_but_longer_than_the_budget_costs_the_lead_and_nothing_else(cluster_of):
    """Nobody evicted it. But it cannot know that when it wakes."""
    cluster = cluster_of(1, ttl_s=3.0).start()
    node = cluster.wait_leader()
    token, worker = cluster.token(), node.worker
    node.keeper.pause()
    worker.pause()
    paused = boottime_ns()
    until(lambda: boottime_ns() - paused > 1.4e9, "longer than (ttl - margin) / 2 has passed")
    worker.resume()
    node.keeper.resume()
    cluster.wait_leader(after=token)
    assert (cluster.resigned["token"], cluster.resigned["reason"]) == (token, "paused")
