"""One leadership, carried out: gate, venue, private stream and timers on the running loop.

Made when the worker is told to lead, thrown away when the term ends. It decides nothing: `leadership.py` says what is
to be done, and every answer from outside goes back to it as an event. Duties of its own:

- the order of things at the send: the permit and the clock are read, `release` asked, and nothing awaited before the
  bytes are handed over;
- actions are carried out at once and in turn; what takes time is a task of its own, whose answer comes as an event;
- callbacks and tasks end in `_tell` or `_failed`: an exception would vanish in the loop while the term goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import structlog

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import InvariantViolation, OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.ids import NS_PER_S, Instant, NodeId
from cluster.core.log import Entry
from cluster.permit import PermitPage
from node import actions as act
from node.codec import Fact, TermStarted
from node.gate import ClaimResult, Gate, GateUnavailable, GateUnsuitable
from node.leadership import Leadership
from node.orders import Claim, Declined, Finished, Flight, LookUp, Send, SendCancel, StepDown
from node.reconcile import VenueSnapshot
from node.redis_gate import GateClaimer
from node.strategy import Wish
from node.telemetry import Telemetry
from node.types import Accepted, ClientOrderId, SubmitResult, VenueEvent, WireOrder
from node.venue_clock import VenueClock
from node.venues.base import SubmitTicket, Venue

T = TypeVar("T")

log = structlog.get_logger()


class Trader:
    def __init__(
        self,
        leadership: Leadership,
        *,
        page: PermitPage,
        gate: Gate,
        venue: Venue,
        clock: VenueClock,
        telemetry: Telemetry,
        report: Callable[[act.Report], None],
    ) -> None:
        """report: what concerns the node or its keeper. A StepDown is told after everything has stopped here."""
        self.leadership = leadership
        self.term = leadership.term
        self.stopped = False
        self.gate_warnings: list[str] = []
        self._page = page
        self._gate = gate
        self._claimer = GateClaimer(gate, self.term)
        self._venue = venue
        self._clock = clock
        self._telemetry = telemetry
        self._report = report
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = Instant(0)
        self._loop = asyncio.get_running_loop()

    # -- the way in and out --------------------------------------------------------------------------------

    def begin(self, started: TermStarted, told_at: Instant) -> None:
        self._spawn(self._claimer.run())
        self._tell(lambda: self.leadership.begin(started, told_at, boottime_ns()))

    def granted(self) -> None:
        """The permit is in the page: trade."""
        self._tell(lambda: self.leadership.granted(self._page.read(), boottime_ns()))

    def drain(self, successor: str | None) -> None:
        """The permit is gone: settle what is under way, and report."""
        target = None if successor is None else NodeId(successor)
        self._tell(lambda: self.leadership.drain(target, boottime_ns()))

    def stop(self) -> None:
        """Send and append nothing more. Synchronous: when it returns, no new write can start, and one that waits
        in the adapter's queue is dropped by `_still_allowed`."""
        self.leadership.stop()
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # -- what happened -------------------------------------------------------------------------------------

    def review(self) -> None:
        """A condition has changed."""
        self._tell(lambda: self.leadership.review(self._page.read(), boottime_ns()))

    def applied(self, entry: Entry, fact: Fact) -> None:
        """`entry` is committed and in the book."""
        self._tell(lambda: self.leadership.applied(entry, fact, boottime_ns()))

    def wishes(self, named: list[tuple[str, Wish]], received_at: int) -> None:
        """What the strategy wants, in its order. received_at: Instant of the market event, 0: none."""
        now = boottime_ns()

        def ask() -> Sequence[act.Action]:
            actions = self.leadership.wishes(named, received_at, now, unix_ns())
            if received_at:
                for _ in range(sum(isinstance(a, Claim) for a in actions)):
                    self._telemetry.stage("decided", now - received_at)
            return actions

        self._tell(ask)

    def latch_read(self, halted: str | None) -> None:
        """The answer to ReadLatch."""
        self._tell(lambda: self.leadership.latch_read(halted, boottime_ns()))

    def latch_unreadable(self, reason: str) -> None:
        self._tell(lambda: self.leadership.latch_unreadable(reason, boottime_ns()))

    def _tick(self) -> None:
        self._timer = None
        self._tell(lambda: self.leadership.tick(self._page.read(), boottime_ns()))

    def _tell(self, event: Callable[[], Sequence[act.Action]]) -> None:
        """Tell the machine what happened, and carry out what it answers."""
        if self.stopped:
            return
        try:
            self._do(event())
        except Exception as e:  # noqa: BLE001 - see _failed
            self._failed(e)
        wake = self.leadership.wake_at()
        if wake is not None and not self.stopped and (self._timer is None or wake < self._timer_at):
            self._wake_at(wake)

    def _wake_at(self, at: Instant) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Not below a millisecond, which is what the loop's timers can tell apart: one too early would spin.
        delay_s = max(0.001, (at - boottime_ns()) / NS_PER_S)
        self._timer, self._timer_at = self._loop.call_later(delay_s, self._tick), at

    def _failed(self, error: BaseException) -> None:
        """A mistake of ours: the machine and the world may differ from here on."""
        if self.stopped:
            return
        what = f"{type(error).__name__}: {error}"
        log.error("trader_failed", term=self.term, reason=what, exc_info=error)
        self.stop()
        self._report(StepDown(f"trading failed: {what}"))

    # -- carrying out --------------------------------------------------------------------------------------

    def _do(self, actions: Sequence[act.Action]) -> None:
        for action in actions:
            if self.stopped:
                return
            match action:
                case Claim(index, coid):
                    claim = self._claimer.claim(coid)
                    claim.add_done_callback(lambda f, i=index: self._claimed(i, f))  # type: ignore[misc]
                case Send():
                    self._send(action)
                case Finished(flight, result):
                    self._finished(flight, result)
                case SendCancel(index, coid):
                    self._spawn(self._cancel(index, coid))
                case LookUp():
                    self._spawn(self._look_up(action))
                case Declined(code):
                    self._telemetry.order_declined(code)
                case act.FenceRefused(layer):
                    self._telemetry.fence_refused(layer)
                case act.Note(event, fields, level):
                    getattr(log, level)(event, term=self.term, **fields)
                case act.ArmGate(connect):
                    self._spawn(self._ask_gate(lambda c=connect: self._arm_gate(c), self.leadership.gate_armed))  # type: ignore[misc]
                case act.LookAtGate():
                    self._spawn(self._ask_gate(self._gate.state, self.leadership.gate_seen))
                case act.NoteLatch(halted):
                    self._spawn(
                        self._ask_gate(
                            lambda h=halted: self._gate.note_latch(self.term, h),  # type: ignore[misc]
                            lambda _, now: self.leadership.latch_noted(now),
                        )
                    )
                case act.ArmVenue():
                    self._spawn(self._arm_venue())
                case act.OpenStream(after_seq):
                    self._spawn(self._follow_stream(after_seq))
                case act.TakeSnapshot(after_seq):
                    self._spawn(self._take_snapshot(after_seq))
                case act.RefreshDeadman(ttl_s):
                    self._spawn(self._refresh_deadman(ttl_s))
                case StepDown() | act.ReportSettled():
                    self.stop()
                    self._report(action)
                case _:
                    self._report(action)

    # -- orders --------------------------------------------------------------------------------------------

    def _claimed(self, index: int, claim: asyncio.Future[ClaimResult]) -> None:
        if claim.cancelled():
            return
        error = claim.exception()
        answer = claim.result() if error is None else str(error)
        self._tell(lambda: self.leadership.claimed(index, answer, boottime_ns()))

    def _send(self, send: Send) -> None:
        """Check last, right before the effect: no await from `release` to the hand-over."""
        order = self.leadership.release(send, self._page.read(), boottime_ns())
        if isinstance(order, WireOrder):
            ticket = self._venue.submit(order, self._still_allowed)
            self._spawn(self._await_answer(send.index, ticket))
        else:
            self._do(order)

    def _still_allowed(self) -> bool:
        return self.leadership.still_allowed(self._page.read(), boottime_ns())

    async def _await_answer(self, index: int, ticket: SubmitTicket) -> None:
        result = await ticket.result()
        self._tell(lambda: self.leadership.submitted(index, result, boottime_ns()))

    def _finished(self, flight: Flight, result: SubmitResult) -> None:
        self._telemetry.order_finished(flight, result)
        if not isinstance(result, Accepted):
            log.info(
                "order_not_accepted",
                term=self.term,
                client_order_id=flight.client_order_id,
                result=type(result).__name__,
                code=getattr(result, "code", ""),
                reason=result.reason,
            )

    async def _cancel(self, index: int, coid: ClientOrderId) -> None:
        if not self._still_allowed():
            return
        result = await self._venue.cancel(coid, self.term)
        self._tell(lambda: self.leadership.cancel_answered(index, result, boottime_ns()))

    async def _look_up(self, ask: LookUp) -> None:
        asked_at = boottime_ns()
        asked_at_venue = self._clock.earliest(asked_at, asked_at)
        result = await self._venue.lookup(ask.client_order_id)
        self._tell(lambda: self.leadership.looked_up(ask, result, asked_at_venue, boottime_ns()))

    # -- the gate ------------------------------------------------------------------------------------------

    async def _ask_gate(
        self, ask: Callable[[], Awaitable[T]], answered: Callable[[T, Instant], Sequence[act.Action]]
    ) -> None:
        try:
            answer = await ask()
        except StaleTerm as e:
            reason = str(e)
            self._tell(lambda: self.leadership.gate_refused(reason))
        except (GateUnavailable, GateUnsuitable) as e:
            reason = str(e)
            self._tell(lambda: self.leadership.gate_failed(reason, boottime_ns()))
        else:
            self._tell(lambda: answered(answer, boottime_ns()))

    async def _arm_gate(self, connect: bool) -> Any:
        if connect:
            warnings = await self._gate.connect()
            if warnings and not self.gate_warnings:
                log.warning("gate_warnings", warnings=warnings)
            self.gate_warnings = warnings
        return await self._gate.arm(self.term)

    # -- the venue -----------------------------------------------------------------------------------------

    async def _arm_venue(self) -> None:
        try:
            if not self._venue.connected:
                raise Unreachable("not connected")
            armed = await self._venue.arm(self.term)
        except (Unreachable, OutcomeUnknown) as e:
            reason = str(e)
            self._tell(lambda: self.leadership.venue_failed(reason, boottime_ns()))
            return
        self._tell(lambda: self.leadership.venue_armed(armed.high_water, self._venue.capabilities, boottime_ns()))

    async def _follow_stream(self, after_seq: int) -> None:
        events = cast(AsyncGenerator[VenueEvent, None], self._venue.events(after_seq))
        async with contextlib.aclosing(events):
            async for event in events:
                self._tell(lambda e=event: self.leadership.stream_said(e, self._venue.capabilities, boottime_ns()))  # type: ignore[misc]
        raise InvariantViolation("the venue's private stream ended for good")

    async def _take_snapshot(self, after_seq: int) -> None:
        venue = self._venue
        try:
            snapshot = VenueSnapshot(
                await venue.open_orders(), await venue.fills_after(after_seq), await venue.positions()
            )
        except (Unreachable, OutcomeUnknown) as e:
            reason = str(e)
            self._tell(lambda: self.leadership.snapshot_failed(reason, boottime_ns()))
            return
        self._tell(lambda: self.leadership.snapshot_taken(snapshot, boottime_ns()))

    async def _refresh_deadman(self, ttl_s: float) -> None:
        failure = ""
        try:
            if self._still_allowed():
                await self._venue.keep_alive(self.term, ttl_s)
            else:
                failure = "the permit has ended"
        except StaleTerm as e:
            reason = str(e)
            self._tell(lambda: self.leadership.venue_refused(reason))
            return
        except (Unreachable, OutcomeUnknown) as e:
            failure = str(e)
        self._tell(lambda: self.leadership.deadman_answered(failure, boottime_ns()))

    # -- tasks ---------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self.stopped:
            work.close()
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
