"""Restarts under load: node by node, and of everything at once after a kill -9 of everything at once."""

from __future__ import annotations

import signal

import pytest

from node.local import process
from tests.e2e.conftest import Start
from tests.support.e2e import busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_killing_everything_at_once_twice_loses_and_repeats_nothing(drill: Start) -> None:
    d = drill(busy_options())
    tokens, orders = [0], 0
    for _ in range(2):
        _, token = d.healthy()
        d.trades_on()
        # etcd, Redis, feed, venue, the supervisor, and each node's keeper and worker.
        assert d.kill_everything() == 3 + 1 + 1 + 1 + 1 + 2 * 3
        assert token > tokens[-1]
        accepted = len(d.orders())
        assert accepted > orders
        tokens, orders = [*tokens, token], accepted
        d.start()
    _, token = d.healthy()
    assert token > tokens[-1]
    d.trades_on()
    found = d.holds()
    assert len(found.record.orders) > orders
    assert d.bugs() == []


def test_rolling_restart_of_standbys_then_of_the_leader_loses_nothing(drill: Start) -> None:
    d = drill(busy_options())
    leader, token = d.healthy()
    standbys = [n for n in d.nodes if n != leader]
    for name in standbys:
        before = d.both(name)
        before[0].send(signal.SIGTERM)  # as systemd does; the supervisor then starts it again
        assert process.wait_gone(before, 15.0) == []
        assert d.healthy() == (leader, token)  # a standby's restart costs no leadership
    before = d.both(leader)
    before[0].send(signal.SIGTERM)
    assert process.wait_gone(before, 15.0) == []
    d.new_leader(token)
    second, later = d.healthy()
    assert second != leader and later > token
    # And back, asked for by name.
    d.switch_over(second, leader)
    until("the first leader leads again", lambda: d.healthy()[0] == leader)
    d.trades_on()
    d.holds()
    assert d.bugs() == []
