"""A gate in memory: the simulator's specification of it behind the port. Passes tests/contract/gate_contract.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from chaos.sim.redis import GateSpec, Stale, Unarmed
from cluster.core.errors import StaleTerm
from cluster.core.ids import NS_PER_S, ns
from node.gate import Armed, ClaimResult, GateState, GateUnavailable


class FakeGateServer(GateSpec):
    """What stands behind any number of FakeGates. Time only passes by `advance`."""

    def __init__(self, claim_ttl_s: float = 3600.0) -> None:
        super().__init__(lambda: round(self.now_s * NS_PER_S), ns(claim_ttl_s))
        self.claim_ttl_s = claim_ttl_s
        self.now_s = 0.0
        self.up = True

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    def restart(self, *, empty: bool = False, lose_last: int = 0) -> None:
        super().restart(empty=empty, lose_last=lose_last)
        self.up = True


class FakeGate:
    """A client of one node. lost_replies: so many next calls take effect, but nobody hears of it."""

    def __init__(self, server: FakeGateServer, holder: str) -> None:
        self.server = server
        self.holder = holder
        self.lost_replies = 0

    async def connect(self) -> list[str]:
        await self._reach()
        return []

    async def close(self) -> None: ...

    async def arm(self, token: int) -> Armed:
        answer = (await self._reach()).arm(token, self.holder)
        await self._reply()
        return self._unless_refused(token, answer)

    async def note_latch(self, token: int, halted: str | None) -> int:
        answer = (await self._reach()).note_latch(token, halted)
        await self._reply()
        return self._unless_refused(token, answer)

    def _unless_refused(self, token: int, answer: Any) -> Any:
        if isinstance(answer, Stale):
            raise StaleTerm(f"token {token} of {self.holder} refused, {answer.high} is armed for {answer.holder}")
        if isinstance(answer, Unarmed):
            raise GateUnavailable("it lost its state before the latch was noted")
        return answer

    async def claim_many(self, token: int, client_order_ids: Sequence[str]) -> list[ClaimResult]:
        if not client_order_ids:
            return []
        results = (await self._reach()).claim(token, client_order_ids)
        await self._reply()
        return results

    async def halt(self, reason: str) -> int:
        seq = (await self._reach()).halt(reason)
        await self._reply()
        return seq

    async def unhalt(self) -> int:
        seq = (await self._reach()).unhalt()
        await self._reply()
        return seq

    async def state(self) -> GateState:
        return (await self._reach()).state()

    async def _reach(self) -> FakeGateServer:
        await asyncio.sleep(0)  # as on a real wire, others get their turn before it takes effect
        if not self.server.up:
            raise GateUnavailable("the fake is down")
        return self.server

    async def _reply(self) -> None:
        await asyncio.sleep(0)  # and before the answer is heard
        if self.lost_replies:
            self.lost_replies -= 1
            raise GateUnavailable("the reply was lost")
