"""One node's own line to the market breaks, and the others' do not."""

from __future__ import annotations

import signal
import socket
import subprocess

import pytest

from node.local.servers import free_ports
from tests.e2e.conftest import Start
from tests.support.e2e import BATON, busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_leader_whose_own_market_data_end_hands_over_to_a_standby_that_has_them(drill: Start) -> None:
    (port,) = free_ports(1)
    argv = [str(BATON), "feed", "serve", "--synthetic", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as own_feed:
        try:
            until("the feed of n1 listens", lambda: _listens(port))
            overlay = {"per_node": {"n1": {"feed": {"url": f"ws://127.0.0.1:{port}"}}}}
            d = drill(busy_options(nodes=2, etcd=1, feed="synthetic", overlay=overlay))
            leader, token = d.healthy()
            if leader != "n1":
                d.switch_over(leader, "n1")
                until("n1 leads", lambda: d.healthy()[0] == "n1")
                token = d.healthy()[1]
            own_feed.send_signal(signal.SIGSTOP)  # connected, and silent
            node, later = d.new_leader(token)
            assert node == "n2"
            assert d.order_after(5.0)
            row = until(
                "it is on record", lambda: next((h for h in d.status()["history"] if h["token"] == later), None)
            )
            assert (row["came_from"], row["cause"], row["actor"]) == ("n1", "switchover", "n1: feed stale")
        finally:
            own_feed.kill()
