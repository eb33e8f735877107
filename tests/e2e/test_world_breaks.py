"""What a node rests on breaks under load: Redis, the venue, market data, etcd. One cluster, one fault after the other;
the last test judges all of it."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import signal
import time
from contextlib import ExitStack

import pytest

from cluster.core.ids import NS_PER_S
from node.client import Answered, get_json
from tests.support.e2e import SLACK_S, TTL_S, Drill, accepted_later_than, busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STALE_AFTER_S = 1.0
OPTIONS = busy_options(overlay={"feed": {"stale_after_s": STALE_AFTER_S}})

ACT_S = 0.8 * TTL_S
"""How long after its last renewal a leader acts: the time to live less the margin."""


def cancels(d: Drill, after_seq: int) -> int:
    return sum(x["kind"] == "cancel" and x["outcome"] == "accepted" for x in d.lines(after_seq))


def longest_gap_s(d: Drill, after_seq: int) -> float:
    """Between two accepted orders."""
    times = [o["at_ns"] for o in d.orders(after_seq)]
    return max(b - a for a, b in itertools.pairwise(times)) / NS_PER_S


# -- the gate --------------------------------------------------------------------------------------------------


def test_paused_redis_blocks_orders_but_not_cancels_and_trading_comes_back(shared: Drill) -> None:
    d = shared
    before = d.healthy()
    begun = d.seq
    with d.paused("redis"):
        paused_at = time.time_ns()
        d.permission("blocked", "gate")
        for node in d.nodes:  # the standbys as well: they would take over into nothing
            until(f"{node} is not ready", lambda n=node: _unready(d, n).startswith("gate"))
        until("a cancel passes without the gate", lambda: cancels(d, begun) and not _resting(d))
        time.sleep(2 * SLACK_S)  # the fault itself
        assert accepted_later_than(d, begun, paused_at, SLACK_S) == []
        resumed = d.seq
    until("it trades again", lambda: d.orders(resumed))
    assert d.healthy() == before


def _unready(d: Drill, node: str) -> str:
    """Why /readyz says no; empty if it says yes."""
    try:
        get_json(d.cluster.http_url(node), "/readyz")
    except Answered as e:
        assert e.code == 503
        return str(e)
    return ""


def _resting(d: Drill) -> int:
    return int(d.status()["orders"]["open"] or 0)


def test_redis_that_lost_everything_stays_closed_until_the_leader_arms_it_anew(shared: Drill) -> None:
    d = shared
    before = d.healthy()
    begun = d.seq
    with d.lost("redis"):
        killed_at = time.time_ns()
        d.permission("blocked", "gate")
        for path in d.cluster.home("redis").iterdir():
            if path.name not in ("log", "hold"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        time.sleep(2 * SLACK_S)  # the fault itself
        assert accepted_later_than(d, begun, killed_at, SLACK_S) == []
        released = d.seq
    until("it trades again", lambda: d.orders(released))
    assert d.healthy() == before
    assert d.status()["gate"] == {"state": "armed", "why": "", "armed_token": before[1]}


# -- the venue and the market ----------------------------------------------------------------------------------


def test_killed_venue_comes_back_and_every_unknown_order_is_settled(shared: Drill) -> None:
    d = shared
    before = d.healthy()
    with d.lost("venue"):
        d.permission("blocked", "venue")
        known = d.seq
    until("it trades again", lambda: d.orders(known))
    assert d.healthy() == before
    until("nothing is unsettled", lambda: d.status()["orders"]["unresolved"] == 0)
    d.trades_on()


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_without_market_data_orders_stop_and_come_back_with_it(shared: Drill, how: str) -> None:
    d = shared
    before = d.healthy()
    begun = d.seq
    with d.paused("feed") if how == "frozen" else d.lost("feed"):
        silent_at = time.time_ns()
        d.permission("blocked", "feed")
        time.sleep(2 * SLACK_S)  # the fault itself
        assert accepted_later_than(d, begun, silent_at, STALE_AFTER_S + SLACK_S) == []
        resumed = d.seq
    until("it trades again", lambda: d.orders(resumed))
    assert d.healthy() == before


# -- etcd ------------------------------------------------------------------------------------------------------


def etcd_members(d: Drill) -> tuple[str, list[str]]:
    """(the one that leads etcd, the others)"""

    def look() -> tuple[str, list[str]] | None:
        leader, others = "", []
        for name in d.cluster.options.etcd_names:
            link = http.client.HTTPConnection("127.0.0.1", d.cluster.port(name), timeout=2)
            try:
                link.request("POST", "/v3/maintenance/status", "{}")
                told = json.loads(link.getresponse().read())
            except (OSError, ValueError, http.client.HTTPException):
                return None
            finally:
                link.close()
            if told.get("leader") == told.get("header", {}).get("member_id"):
                leader = name
            else:
                others.append(name)
        return (leader, others) if leader and len(others) == 2 else None

    return until("etcd's members agree", look)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_one_etcd_follower_less_costs_nothing(shared: Drill, how: str) -> None:
    d = shared
    before = d.healthy()
    follower = etcd_members(d)[1][0]
    begun = d.seq
    with d.lost(follower) if how == "killed" else d.paused(follower):
        time.sleep(2 * TTL_S)  # the fault itself
        assert d.order_after()
    assert d.healthy() == before
    assert longest_gap_s(d, begun) < ACT_S
    etcd_members(d)


def test_death_of_the_etcd_leader_costs_at_most_one_election(shared: Drill) -> None:
    """etcd without a leader renews nothing for one of its elections, which may take longer than a leader may act."""
    d = shared
    _, token = d.healthy()
    begun = d.seq
    with d.lost(etcd_members(d)[0]):
        assert d.order_after()
        until("it trades", lambda: d.status()["permission"]["level"] == "allowed")
        time.sleep(TTL_S)
    assert d.healthy()[1] >= token
    assert longest_gap_s(d, begun) < 5.0
    etcd_members(d)


def test_without_an_etcd_majority_the_leader_stops_in_time_and_returns_with_it(shared: Drill) -> None:
    d = shared
    _, token = d.healthy()
    leads, others = etcd_members(d)
    begun = d.seq
    victims = [d.process(name) for name in (leads, others[0])]
    with ExitStack() as held:
        for name in (leads, others[0]):
            d.cluster.hold(name)
            held.callback(d.cluster.release, name)
        for v in victims:
            v.send(signal.SIGKILL)
        killed_at = time.time_ns()
        until("nobody may trade", lambda: d.status()["permission"]["level"] == "blocked")
        time.sleep(2 * TTL_S)  # the fault itself
        assert accepted_later_than(d, begun, killed_at, ACT_S + SLACK_S) == []
        released_at = time.time_ns()
    until("it trades again", lambda: accepted_later_than(d, begun, released_at, 0))
    assert d.healthy()[1] >= token
    etcd_members(d)


def test_after_all_that_nothing_is_lost_doubled_or_stale(shared: Drill) -> None:
    shared.healthy()
    shared.trades_on()
    shared.holds()
    assert shared.bugs() == []
