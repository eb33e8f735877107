"""Carries out what the keeper says about following and leading, each in its turn (`cluster/core/duty.py`).

Touches the follower, the leadership and the link to the keeper. Whoever waits for its turn waits for one thing: that
nobody is followed and the journal is at rest. Read next: `leading.py`, `cluster/follower.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import structlog

from cluster import link
from cluster.clock import boottime_ns
from cluster.core.duty import Action, BeginLeading, Duty, EndLeading, Follow, StopFollowing, TellPrepared
from cluster.core.errors import StaleTerm
from cluster.core.ids import Instant, NodeId, Term
from node.leading import Leading
from node.parts import Parts

log = structlog.get_logger()


class _Lead(NamedTuple):
    message: link.Lead
    told_at: Instant


class Obeying:
    def __init__(
        self, parts: Parts, leading: Leading, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    ) -> None:
        """spawn: runs a task whose failure ends the node."""
        self._parts, self._leading, self._spawn = parts, leading, spawn
        self._duty: Duty[_Lead] = Duty()
        self._resting: asyncio.Task[None] | None = None  # what the first in turn waits for

    def follow(self, told: link.Follow) -> None:
        self._carry_out(self._duty.follow(NodeId(told.node), told.address, Term(told.term)))

    def prepare(self, told: link.Prepare) -> None:
        self._carry_out(self._duty.prepare(Term(told.term)))

    def lead(self, told: link.Lead) -> None:
        self._carry_out(self._duty.lead(Term(told.term), _Lead(told, boottime_ns())))

    def stop_trading(self, told: link.StopTrading) -> None:
        self._carry_out(self._duty.stop(Term(told.term), told.reason))

    def close(self) -> None:
        """The worker ends: nobody's turn comes any more."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _carry_out(self, actions: Sequence[Action[_Lead]]) -> None:
        parts, leading = self._parts, self._leading
        for action in actions:
            match action:
                case EndLeading(reason, stopped):
                    ended = leading.end(reason)
                    if stopped is not None:
                        parts.link.send(link.Stopped(stopped))
                    if ended or stopped is not None:
                        leading.rest()
                case StopFollowing(number, closing):
                    self.close()
                    parts.follower.stop(closing)
                    self._resting = self._spawn(self._come_to_rest(number), "rest")
                case Follow(node, address, term):
                    self._follow(node, address, term)
                case TellPrepared(term):
                    parts.link.send(link.Prepared(term))
                case BeginLeading(_Lead(message, told_at)):
                    leading.begin(message, told_at)
        if not self._duty.resting:
            self.close()  # a disk that stalls under it is nobody's failure any more

    async def _come_to_rest(self, number: int) -> None:
        await self._parts.follower.wait_at_rest()
        self._resting = None
        self._carry_out(self._duty.at_rest(number))

    def _follow(self, leader: NodeId, address: str, term: Term) -> None:
        try:
            self._parts.follower.follow(leader, address, term)
        except StaleTerm as e:
            log.warning("follow_refused", peer=leader, term=term, reason=str(e))
