"""A gate in memory, with the faults of the real one. Passes tests/contract/gate_contract.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.core.errors import StaleTerm
from node.gate import Armed, ClaimResult, Decision, GateState, GateUnavailable, Verdict


class FakeGateServer:
    """What stands behind any number of FakeGates. Time only passes by `advance`."""

    def __init__(self, claim_ttl_s: float = 3600.0) -> None:
        self.claim_ttl_s = claim_ttl_s
        self.now_s = 0.0
        self.up = True
        self.run = 1
        """Rises with each restart; a gate armed in an earlier run is unarmed."""
        self.record: list[Decision] = []
        self._forget()

    def _forget(self) -> None:
        self.high = 0
        self.holder = ""
        self.armed_run = 0
        self.latch_run = 0
        self.halted: str | None = None
        self.fence_seq = 0
        self.claims: dict[str, tuple[int, float]] = {}

    def flush(self) -> None:
        """FLUSHALL."""
        self._forget()

    def restart(self, *, empty: bool) -> None:
        self.run += 1
        self.up = True
        if empty:
            self._forget()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    @property
    def armed(self) -> bool:
        return self.high > 0 and self.armed_run == self.run

    def decide(self, op: str, token: int, subject: str, verdict: Verdict) -> int:
        self.fence_seq += 1
        self.record.append(Decision(self.fence_seq, op, token, self.high, subject, verdict.value))
        return self.fence_seq


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
        s = await self._reach()
        if token < s.high or (token == s.high and s.holder != self.holder):
            s.decide("arm", token, self.holder, Verdict.STALE_TOKEN)
            await self._reply()
            raise self._stale(token)
        seq, previous = s.decide("arm", token, self.holder, Verdict.OK), s.high
        s.high, s.holder, s.armed_run = token, self.holder, s.run
        latch_known = s.latch_run == s.run
        await self._reply()
        return Armed(token, seq, previous, latch_known)

    async def note_latch(self, token: int, halted: str | None) -> int:
        s = await self._reach()
        if token < s.high:
            s.decide("latch", token, halted or "", Verdict.STALE_TOKEN)
            raise self._stale(token)
        if not s.armed or token != s.high:
            s.decide("latch", token, halted or "", Verdict.UNARMED)
            raise GateUnavailable("it lost its state before the latch was noted")
        s.latch_run = s.run
        if halted is not None:
            s.halted = halted or "halted"
        seq = s.decide("latch", token, halted or "", Verdict.OK)
        await self._reply()
        return seq

    def _stale(self, token: int) -> StaleTerm:
        s = self.server
        return StaleTerm(f"token {token} of {self.holder} refused, {s.high} is armed for {s.holder}")

    async def claim_many(self, token: int, client_order_ids: Sequence[str]) -> list[ClaimResult]:
        if not client_order_ids:
            return []
        await self._reach()
        results = [self._claim(token, coid) for coid in client_order_ids]
        await self._reply()
        return results

    def _claim(self, token: int, coid: str) -> ClaimResult:
        s = self.server
        verdict, detail = Verdict.OK, ""
        claimed = s.claims.get(coid)
        if token < s.high:
            verdict = Verdict.STALE_TOKEN
        elif not s.armed or token != s.high:
            verdict = Verdict.UNARMED
        elif s.halted is not None:
            verdict, detail = Verdict.HALTED, s.halted
        elif claimed and claimed[1] > s.now_s:
            verdict, detail = Verdict.DUPLICATE, str(claimed[0])
        else:
            s.claims[coid] = (token, s.now_s + s.claim_ttl_s)
        return ClaimResult(coid, verdict, s.decide("claim", token, coid, verdict), s.high, detail)

    async def halt(self, reason: str) -> int:
        s = await self._reach()
        s.halted = reason or "halted"
        seq = s.decide("halt", 0, s.halted, Verdict.OK)
        await self._reply()
        return seq

    async def unhalt(self) -> int:
        s = await self._reach()
        s.halted = None
        seq = s.decide("unhalt", 0, "", Verdict.OK)
        await self._reply()
        return seq

    async def state(self) -> GateState:
        s = await self._reach()
        return GateState(s.armed, s.high, s.holder, s.halted, s.fence_seq)

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
