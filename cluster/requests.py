"""Operators' requests over etcd: any node leaves one, whoever leads takes it, and its answer finds the asker.

    control/switchover         the request; deleted by who acts on it, before acting
    control/answers/<id>       the answer, for a minute
    halt                       the kill latch; here it is only read, for our worker

Carries, and decides nothing: `core/election.py` says yes or no. Read next: `keeper.py`, which makes and drives this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from . import keys as k
from . import link
from .clock import unix_ns
from .core import events as ev
from .core.errors import BatonError
from .core.ids import NS_PER_S
from .registry import ANSWER_TTL_S, SETTLE_S, Registry

ASKED_MAX = 64


class Requests:
    """One keeper's. leads: whether it holds the lease. spawn: runs a task whose failure ends the keeper. tell: to our
    worker. feed: to the election."""

    def __init__(
        self,
        registry: Registry,
        keys: k.Keys,
        *,
        me: str,
        leads: Callable[[], bool],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
        tell: Callable[[link.Message], None],
        feed: Callable[[ev.Event], None],
    ) -> None:
        self._registry, self._keys, self._me = registry, keys, me
        self._leads, self._spawn, self._tell, self._feed = leads, spawn, tell, feed
        self._taken = 0  # mod_revision of the request that we are taking
        self._asked: set[str] = set()

    def look(self, raw: Mapping[str, k.RawKey]) -> None:
        """After every change of a key: is there a request to take, or an answer to one of ours?"""
        found = raw.get(self._keys.switchover)
        if found is not None and self._leads() and found.mod_revision != self._taken:
            self._taken = found.mod_revision
            self._spawn(self._take(found), "take-switchover")
        for request_id in list(self._asked):
            answer = k.load(raw.get(self._keys.answer(request_id)))
            if answer is not None:
                self._asked.discard(request_id)
                self._tell(link.SwitchoverAnswer(request_id, bool(answer.get("ok")), str(answer.get("text", ""))))

    async def _take(self, found: k.RawKey) -> None:
        if not await self._registry.take_switchover(found.mod_revision):
            self._taken = 0  # if it is still there, the next view will show it
            return
        asked = k.switchover_of(found)
        if asked is None:
            return  # rubbish, which the log has named; left there, no other request could be made
        if not self._leads():
            await self._registry.answer_switchover(asked.id, False, f"{self._me} has just lost the lead; try again")
        elif (unix_ns() - asked.at) / NS_PER_S < ANSWER_TTL_S:  # later, nobody waits for it any more
            self._feed(ev.SwitchoverAsked(asked.target, asked.actor, asked.id))

    async def ask(self, asked: link.AskSwitchover) -> None:
        """For our worker. The answer comes by `look`, or at once when etcd did not take the request."""
        if len(self._asked) >= ASKED_MAX:  # so many were never answered; their askers have gone
            self._asked.clear()
        self._asked.add(asked.request_id)
        try:
            left = await self._registry.ask_switchover(asked.request_id, asked.target, asked.actor)
            refused = "" if left else "another request is under way; look at baton status, and ask again"
        except BatonError as e:
            refused = f"etcd did not take the request: {e}"
        if refused:
            self._asked.discard(asked.request_id)
            self._tell(link.SwitchoverAnswer(asked.request_id, False, refused))

    async def read_latch(self, asked: link.AskLatch) -> None:
        """For our worker. That it cannot be read is an answer too: the worker stays closed, and asks again."""
        try:
            answer = link.LatchAnswer(asked.request, await self._registry.read_latch(asked.term))
        except BatonError as e:
            answer = link.LatchAnswer(asked.request, None, str(e) or type(e).__name__)
        self._tell(answer)

    async def answer(self, request_id: str, ok: bool, text: str) -> None:
        await asyncio.sleep(SETTLE_S)
        await self._registry.answer_switchover(request_id, ok, text)
