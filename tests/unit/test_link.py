"""The control channel: whole messages in order, bounded, and no half-understood one."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest

from cluster import link
from cluster.core.errors import InvariantViolation
from cluster.link import Link, Message, link_pair
from tests.support.paper import eventually


class End:
    """One end, with all that it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard: list[Message] = []
        self.closed = 0
        self.link = Link(sock, self.heard.append, self._on_closed)
        self.link.start()

    def _on_closed(self) -> None:
        self.closed += 1


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    a, b = link_pair()
    keeper, worker = End(a), End(b)
    yield keeper, worker
    keeper.link.close()
    worker.link.close()


def example(kind: type) -> Any:
    values: dict[str, Any] = {"int": 7, "str": "n1", "bool": True, "str | None": None}
    values |= {"dict[str, str]": {"n1": "j1"}, "dict[str, Any]": {"a": [1, None]}, "dict[str, float]": {"arm": 0.5}}
    return kind(**{f.name: values[str(f.type)] for f in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", get_args(Message), ids=lambda k: k.__name__)
def test_every_message_arrives_as_it_was_sent(kind: type) -> None:
    message = example(kind)
    assert link.decode(link.encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"[]", b"1", b'"Exit"', b"null", b"{}", b'{"t":"Nonsense"}', b'{"t":"Exit"}', b'{"t":"Exit","x":1}',
     b'{"t":["Exit"]}', b"\xff\xfe"],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvariantViolation, match="control message does not parse"):
        link.decode(data)


async def test_messages_arrive_in_order_both_ways(ends: tuple[End, End]) -> None:
    keeper, worker = ends
    for n in range(50):
        keeper.link.send(link.Granted(n))
        worker.link.send(link.Stopped(n))
    await eventually(lambda: len(keeper.heard) == len(worker.heard) == 50, "all messages")
    assert worker.heard == [link.Granted(n) for n in range(50)]
    assert keeper.heard == [link.Stopped(n) for n in range(50)]


async def test_largest_message_fits_and_a_larger_one_is_our_mistake(ends: tuple[End, End]) -> None:
    keeper, worker = ends
    room = link.MESSAGE_MAX - len(link.encode(link.Exit("")))
    keeper.link.send(link.Exit("x" * room))
    await eventually(lambda: worker.heard != [], "the message")
    assert worker.heard == [link.Exit("x" * room)]
    with pytest.raises(InvariantViolation, match="Exit of 131073 bytes"):
        keeper.link.send(link.Exit("x" * (room + 1)))
    assert keeper.closed == 0


async def test_peer_that_does_not_read_gets_all_in_order_when_it_does() -> None:
    a, b = link_pair()
    keeper = End(a)
    text = "x" * 50_000  # a few hundred of them fill the socket
    for n in range(300):
        keeper.link.send(link.StopTrading(n, text))
    assert keeper.link._queue, "some wait here"
    worker = End(b)
    await eventually(lambda: len(worker.heard) == 300, "all messages")
    assert [m.term for m in worker.heard if isinstance(m, link.StopTrading)] == list(range(300))
    keeper.link.send(link.Exit("after"))
    await eventually(lambda: len(worker.heard) == 301, "the one after")
    keeper.link.close()
    worker.link.close()


async def test_peer_that_never_reads_costs_no_more_than_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "QUEUE_MAX", 10)
    a, b = link_pair()
    keeper = End(a)
    for n in range(300):
        keeper.link.send(link.StopTrading(n, "x" * 50_000))
    assert len(keeper.link._queue) == 10
    keeper.link.close()
    b.close()


@pytest.mark.parametrize("who", ["peer", "we"])
async def test_end_is_told_once_and_what_is_sent_after_it_is_dropped(ends: tuple[End, End], who: str) -> None:
    keeper, worker = ends
    (worker if who == "peer" else keeper).link.close()
    await eventually(lambda: keeper.closed == 1 and worker.closed == 1, "both ends hear of it")
    keeper.link.send(link.Granted(1))
    keeper.link.close()
    await asyncio.sleep(0)
    assert (keeper.closed, worker.closed) == (1, 1) and worker.heard == []


async def test_messages_sent_before_the_end_are_heard(ends: tuple[End, End]) -> None:
    keeper, worker = ends
    worker.link.send(link.Stopped(7))
    worker.link.close()
    await eventually(lambda: keeper.closed == 1, "the end")
    assert keeper.heard == [link.Stopped(7)]


async def test_unreadable_message_ends_the_channel_and_what_follows_is_not_obeyed(ends: tuple[End, End]) -> None:
    keeper, worker = ends
    keeper.link.send(link.Granted(1))
    keeper.sock.send(b"[]")
    keeper.link.send(link.Granted(2))
    await eventually(lambda: worker.closed == 1, "the end")
    assert worker.heard == [link.Granted(1)]
    await eventually(lambda: keeper.closed == 1, "the other end hears of it")


async def test_handler_that_closes_the_channel_hears_nothing_more() -> None:
    a, b = link_pair()
    heard: list[Message] = []

    def on_message(message: Message) -> None:
        heard.append(message)
        worker.close()

    keeper, worker = End(a), Link(b, on_message, lambda: None)
    worker.start()
    keeper.link.send(link.Exit("1"))
    keeper.link.send(link.Exit("2"))
    await eventually(lambda: keeper.closed == 1, "the end")
    assert heard == [link.Exit("1")]
