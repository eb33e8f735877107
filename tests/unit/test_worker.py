"""The worker and its keeper: what is said is obeyed in order; a failure anywhere stops trading before anything else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import link
from cluster.clock import boottime_ns
from cluster.core.errors import InvariantViolation, StaleTerm, Stop
from cluster.core.ids import Instant
from cluster.permit import PermitPage
from node.obeying import Obeying
from node.worker import Worker
from tests.support.paper import eventually


class Story:
    """Stands for every part: writes down what it is told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.leads = True
        self.told_at = Instant(0)
        self.follow_error: Exception | None = None
        self.at_rest = asyncio.Event()
        self.at_rest.set()

    # node.leading.Leading
    def end(self, reason: str) -> bool:
        self.lines.append(f"end: {reason}")
        was, self.leads = self.leads, False
        return was

    def rest(self) -> None:
        self.lines.append("rest")

    def begin(self, lead: link.Lead, told_at: Instant) -> None:
        self.lines.append(f"begin {lead.term}")
        self.told_at = told_at

    def granted(self, term: int) -> None:
        raise ZeroDivisionError("a mistake of ours")

    def drain(self, term: int, successor: str | None) -> None:
        raise ZeroDivisionError("a mistake of ours")

    # cluster.link.Link
    def send(self, message: link.Message) -> None:
        self.lines.append(f"send {message}")

    # cluster.follower.Follower
    def follow(self, leader: str, address: str, term: int) -> None:
        if self.follow_error:
            raise self.follow_error
        self.lines.append(f"follow {leader} {term}")

    def stop(self, closing: int | None = None) -> None:
        self.lines.append(f"stop following, closing {closing}")

    async def wait_at_rest(self) -> None:
        await self.at_rest.wait()


@pytest.fixture
async def story() -> Story:
    return Story()


@pytest.fixture
async def worker(story: Story) -> AsyncIterator[Worker]:
    config: Any = SimpleNamespace(instrument_table=dict)
    page = PermitPage.create()
    ours, theirs = socket.socketpair()
    made = Worker(config, ours, page)
    parts: Any = SimpleNamespace(link=story, follower=story)
    made.parts, made.leading = parts, story  # type: ignore[assignment]
    made.obeying = Obeying(parts, story, made._spawn)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as made._tasks:
        yield made
        for task in made._running:
            task.cancel()
    page.close()
    for s in (ours, theirs):
        s.close()


async def over(worker: Worker) -> BaseException | None:
    await eventually(worker._over.done, "the worker ends")
    return worker._over.exception()


async def test_stop_is_confirmed_before_user_code_is_told(worker: Worker, story: Story) -> None:
    worker._on_message(link.StopTrading(7, "deposed"))
    assert story.lines == ["end: deposed", f"send {link.Stopped(7)}", "rest"]


async def test_told_to_follow_while_leading_the_term_ends_first(worker: Worker, story: Story) -> None:
    worker._on_message(link.Follow("n2", "host:1", 9))
    assert story.lines == ["end: told to follow n2", "rest", "follow n2 9"]


async def test_prepare_and_the_follow_behind_it_are_done_in_turn(worker: Worker, story: Story) -> None:
    story.leads = False
    story.at_rest.clear()
    worker._on_message(link.Prepare(7))
    worker._on_message(link.Follow("n2", "host:1", 9))
    assert story.lines == ["stop following, closing 7", "end: told to follow n2"]
    story.at_rest.set()
    await eventually(lambda: len(story.lines) == 4, "both")
    assert story.lines[2:] == [f"send {link.Prepared(7)}", "follow n2 9"]


async def test_leads_once_the_journal_is_at_rest(worker: Worker, story: Story) -> None:
    story.at_rest.clear()
    worker._on_message(link.Lead(9, {}, 1, "", "", None))
    assert story.lines == ["end: told to lead in term 9", "rest", "stop following, closing None"]
    assert story.told_at == 0
    told_before = boottime_ns()
    story.at_rest.set()
    await eventually(lambda: story.lines[-1] == "begin 9", "leads")
    assert 0 < story.told_at <= told_before, "coming to rest is part of the takeover's time"


async def test_stopped_before_the_journal_is_at_rest_it_never_leads(worker: Worker, story: Story) -> None:
    story.at_rest.clear()
    worker._on_message(link.Lead(9, {}, 1, "", "", None))
    worker._on_message(link.StopTrading(9, "deposed"))
    assert story.lines[-3:] == ["end: deposed", f"send {link.Stopped(9)}", "rest"]
    await eventually(lambda: not worker._running, "nobody waits")
    worker._on_message(link.Follow("n2", "host:1", 10))
    story.at_rest.set()
    await asyncio.sleep(0.01)
    assert story.lines[-2:] == ["end: told to follow n2", "follow n2 10"]


async def test_exit_while_a_lead_waits_its_turn_is_the_end_of_it(worker: Worker, story: Story) -> None:
    story.at_rest.clear()
    worker._on_message(link.Lead(9, {}, 1, "", "", None))
    story.at_rest.set()
    worker._on_message(link.Exit("shutdown"))
    await eventually(lambda: not worker._running, "nobody waits")
    assert story.lines[-1] == "end: shutdown"


async def test_told_to_follow_a_term_that_is_older_than_our_journal_is_not_fatal(worker: Worker, story: Story) -> None:
    story.follow_error = StaleTerm("term 9 has been seen here")
    worker._on_message(link.Follow("n2", "host:1", 8))
    assert not worker._over.done()


async def test_exit_stops_trading_at_once(worker: Worker, story: Story) -> None:
    worker._on_message(link.Exit("shutdown"))
    assert story.lines == ["end: shutdown"]
    assert await over(worker) is None
    worker._on_message(link.Lead(9, {}, 1, "", "", None))
    assert story.lines == ["end: shutdown"], "what is said after that is not obeyed"


async def test_link_that_closes_is_the_end_unless_we_were_leaving(worker: Worker, story: Story) -> None:
    worker._on_link_closed()
    assert story.lines[0].startswith("end: the keeper closed")
    assert isinstance(await over(worker), Stop)


async def test_link_that_closes_while_we_leave_is_as_it_should_be(worker: Worker, story: Story) -> None:
    worker._on_message(link.Exit("shutdown"))
    worker._on_link_closed()
    assert await over(worker) is None


async def test_mistake_while_obeying_ends_the_node_and_the_keeper_hears_why(worker: Worker, story: Story) -> None:
    """Raised into the loop it would be a line in the log."""
    worker._on_message(link.Granted(7))
    assert story.lines == [
        "end: a mistake of ours",
        f"send {link.Fatal('ZeroDivisionError: a mistake of ours')}",
    ]
    assert isinstance(await over(worker), ZeroDivisionError)


async def test_message_that_only_a_worker_sends_ends_the_node(worker: Worker, story: Story) -> None:
    worker._on_message(link.Prepared(7))
    assert isinstance(await over(worker), InvariantViolation)
    assert story.lines[0].startswith("end: ")


async def test_failures_after_the_first_are_not_told(worker: Worker, story: Story) -> None:
    worker._fail(Stop("the disk"))
    worker._fail(Stop("what came of it"))
    assert [line for line in story.lines if line.startswith("send")] == [f"send {link.Fatal('Stop: the disk')}"]
    assert str(await over(worker)) == "the disk"


async def test_task_that_fails_stops_trading_before_the_others_have_ended(story: Story) -> None:
    """The group ends the process only when all have ended, and one may take long."""
    config: Any = SimpleNamespace(instrument_table=dict)
    page = PermitPage.create()
    ours, theirs = socket.socketpair()
    worker = Worker(config, ours, page)
    parts: Any = SimpleNamespace(link=story, follower=story)
    worker.parts, worker.leading = parts, story  # type: ignore[assignment]
    worker.obeying = Obeying(parts, story, worker._spawn)  # type: ignore[arg-type]
    may_end = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    async def fails() -> None:
        raise ZeroDivisionError("a mistake of ours")

    async def run() -> None:
        async with asyncio.TaskGroup() as worker._tasks:
            worker._spawn(slow_to_end(), "slow")
            worker._spawn(fails(), "fails")
            await worker._over

    running = asyncio.create_task(run())
    await eventually(lambda: story.lines != [], "told")
    assert story.lines[0] == "end: a mistake of ours" and "Fatal" in story.lines[1]
    assert not running.done()
    may_end.set()
    await asyncio.wait([running])
    assert isinstance(running.exception(), ExceptionGroup)
    page.close()
    for s in (ours, theirs):
        s.close()
