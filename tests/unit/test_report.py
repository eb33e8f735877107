"""What a node says of itself, where it could mislead."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import link
from cluster.core.ids import JournalId, LogIndex, NodeId
from cluster.core.stream import Digests
from cluster.leader_log import FollowerState
from node import report as report_module
from node.book import Book
from node.feeds.base import FeedHealth, FeedState
from node.leading import STANDBY
from node.permission import Conditions
from node.report import Report
from node.types import OrderSpec, Side
from node.venues.base import Capabilities, DeadmanScope, IdUniqueness
from tests.support.desk import INSTRUMENTS, TAG, Rig


def follower(node: str, durable: int) -> FollowerState:
    return FollowerState(NodeId(node), JournalId("j"), LogIndex(durable), LogIndex(durable), True)


class Node:
    """A report over parts of which only what it reads is there."""

    def __init__(self) -> None:
        self.sent: list[link.Message] = []
        self.leading: Any = SimpleNamespace(log=None, trader=None, permission=STANDBY)
        self.parts: Any = SimpleNamespace(
            book=Book(TAG, INSTRUMENTS),
            journal=SimpleNamespace(last=SimpleNamespace(index=50), commit_index=45, durable_index=48, tail=self.tail),
            feed=SimpleNamespace(health=lambda _: FeedHealth(FeedState.LIVE, 0.1, 1, 0, 0, 0, 0, 0)),
            follower=SimpleNamespace(
                state=lambda: SimpleNamespace(leader_commit=self.commit, connected=self.connected)
            ),
            conditions=Conditions(feed=FeedState.LIVE),
            venue=SimpleNamespace(
                connected=True, capabilities=Capabilities(True, True, IdUniqueness.FOREVER, DeadmanScope.TERM)
            ),
            digests=Digests(),
            link=SimpleNamespace(send=self.sent.append),
        )
        self.commit, self.connected = 45, True
        self.entry_at = 0
        self.report = Report(self.parts, self.leading)

    def tail(self, *_: Any) -> list[Any]:
        return [SimpleNamespace(at=self.entry_at)]


async def test_leader_tells_how_far_each_follower_is_in_the_same_breath_as_itself() -> None:
    node = Node()
    streams = [follower("n2", 49), follower("n3", 10), follower("n3", 50)]  # n3 has dialled again
    node.leading.log = SimpleNamespace(commit_index=49, followers=lambda: streams)
    said = node.report.published()
    assert said["followers"] == {"n2": 49, "n3": 50} and said["log_index"] == 50
    assert (said["role"], said["lag_entries"], said["lag_s"], said["commit_index"]) == ("leader", 0, 0.0, 49)


async def test_standby_tells_of_no_followers() -> None:
    said = Node().report.published()
    assert "followers" not in said and said["role"] == "standby" and said["permission_reason"] == "standby"


@pytest.mark.parametrize(
    ("commit", "connected", "lag_entries", "lag_s"), [(45, True, 0, 0.0), (60, True, 12, 5.0), (60, False, 12, None)]
)
async def test_standby_tells_its_lag_and_does_not_guess_when_it_hears_nobody(
    monkeypatch: pytest.MonkeyPatch, commit: int, connected: bool, lag_entries: int, lag_s: float | None
) -> None:
    node = Node()
    node.commit, node.connected, node.entry_at = commit, connected, 1_000 * 10**9
    monkeypatch.setattr(report_module, "unix_ns", lambda: 1_005 * 10**9)
    said = node.report.published()
    assert (said["lag_entries"], said["lag_s"]) == (lag_entries, lag_s)


async def test_last_order_is_the_journals_so_that_every_node_knows_it() -> None:
    node, rig = Node(), Rig()
    assert node.report.published()["last_order_at"] is None
    flight = rig.sent(OrderSpec(INSTRUMENTS[0].symbol, Side.BUY, 1, 1000))
    node.parts.book = rig.book
    assert node.report.published()["last_order_at"] == flight.written_at


async def test_switchover_is_asked_of_the_keeper_and_its_answer_reaches_who_asked() -> None:
    node = Node()
    asking = asyncio.create_task(node.report.switchover("n2", "ops"))
    await asyncio.sleep(0)
    (asked,) = node.sent
    assert isinstance(asked, link.AskSwitchover) and (asked.target, asked.actor) == ("n2", "ops")
    node.report.switchover_answered(link.SwitchoverAnswer("another", False, "no"))
    node.report.switchover_answered(link.SwitchoverAnswer(asked.request_id, True, "handing over"))
    assert await asking == (True, "handing over")
    node.report.switchover_answered(link.SwitchoverAnswer(asked.request_id, True, "twice"))


async def test_switchover_that_nobody_answers_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "SWITCHOVER_ANSWER_S", 0.01)
    node = Node()
    accepted, text = await node.report.switchover(None, "ops")
    assert not accepted and "baton status" in text


def test_node_is_ready_when_it_could_trade_if_it_led() -> None:
    node = Node()
    good = Conditions(feed=FeedState.LIVE, gate_unreachable="", venue_unreachable="")
    node.parts.conditions = good
    assert node.report.published()["ready"]
    for broken in (
        {"feed": FeedState.STALE},
        {"gate_unreachable": "no answer"},
        {"venue_unreachable": "no answer"},
        {"strategy_failed": "on_market raised KeyError"},
    ):
        node.parts.conditions = replace(good, **broken)
        assert not node.report.published()["ready"], broken


@pytest.mark.parametrize(
    ("ready", "in_sync", "asked"), [(True, "j2", True), (False, "j2", False), (True, "another journal", False)]
)
def test_leader_without_market_data_hands_over_only_to_one_that_could_trade(
    ready: bool, in_sync: str, asked: bool
) -> None:
    node = Node()
    node.parts.name = "n1"
    mine = {"ready": True, "journal_id": "j1"}
    node.report.see(
        {"members": {"n1": mine, "n2": {"ready": ready, "journal_id": "j2"}}, "insync": {"n1": "j1", "n2": in_sync}}
    )
    node.report.hand_over("feed stale")
    if not asked:
        assert node.sent == []
        return
    (request,) = node.sent
    assert isinstance(request, link.AskSwitchover)
    assert (request.target, request.actor) == (None, "n1: feed stale")


def test_node_that_stepped_down_says_why_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.parts.name = "n1"
    node.leading.stepped_down = (0, "gate: it has seen token 115")
    for seconds, told in ((3, ["n1 led, and stepped down 3 s ago: gate: it has seen token 115."]), (61, [])):
        monkeypatch.setattr(report_module, "boottime_ns", lambda s=seconds: s * 10**9)
        assert list(node.report._leading_warnings()) == told
