"""Keeps the gate armed for one term, and says when it is not.

Arm; arm again whenever a claim, or a look now and then, shows that the gate has forgotten us, is halted, or cannot be
reached. Touches the gate; what it finds goes into `Conditions.gate_closed`. Read next: `gate.py`, `trader.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from cluster.core.errors import StaleTerm
from node.gate import Gate, GateUnavailable, GateUnsuitable
from node.permission import Conditions

RETRY_S = 0.1
HALT_LOOK_S = 1.0
LOOK_S = 1.0

log = structlog.get_logger()


class GateArming:
    """One term's. review: the conditions have changed. on_stale: the gate has seen a higher token; `run` ends then."""

    def __init__(
        self,
        gate: Gate,
        term: int,
        conditions: Conditions,
        *,
        review: Callable[[], None],
        on_stale: Callable[[str], None],
    ) -> None:
        self.once = asyncio.Event()  # the first try to arm has ended, well or not
        self.warnings: list[str] = []
        self._gate, self._term, self._conditions = gate, term, conditions
        self._review, self._on_stale = review, on_stale
        self._lost = asyncio.Event()

    def lost(self, why: str) -> None:
        """It does not hold for us any more: closed from now on, until it is armed again."""
        self._is(why)
        self._lost.set()

    def _is(self, closed: str) -> None:
        self._conditions.gate_closed = closed
        self._review()

    async def run(self) -> None:
        first = True  # the worker has connected it long before: at a takeover, arm at once
        while True:
            halted: str | None = None
            try:
                if not first:
                    self._warn(await self._gate.connect())  # it may be another Redis by now
                await self._gate.arm(self._term)
                if not first:
                    halted = (await self._gate.state()).halted
            except StaleTerm as e:
                self._on_stale(str(e))
                return
            except (GateUnavailable, GateUnsuitable) as e:
                first = False
                self._is(str(e))
                self.once.set()
                await asyncio.sleep(RETRY_S)
                continue
            first = False
            if halted is not None:
                self._is(f"halted: {halted}")
                await asyncio.sleep(HALT_LOOK_S)
                continue
            self._lost.clear()
            self._is("")
            self.once.set()
            await self._until_lost()

    async def _until_lost(self) -> None:
        """A claim finds out at once. When none is made, we look: a quiet leader must not seem armed while its gate is
        dead."""
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._lost.wait()
                    return
            try:
                state = await self._gate.state()
            except GateUnavailable as e:
                self.lost(str(e))
                return
            if not state.armed or state.high_water != self._term:
                self.lost("it lost its state; re-arming")
            elif state.halted is not None:
                self.lost(f"halted: {state.halted}")

    def _warn(self, warnings: list[str]) -> None:
        if warnings and not self.warnings:
            log.warning("gate_warnings", warnings=warnings)
        self.warnings = warnings
