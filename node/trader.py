"""One leadership's trading, carried out: gate, venue, private stream, reconcile, dead-man's switch.

Made by the worker when it is told to lead, thrown away when the term ends. It decides nothing: `orders.py` says what to
do with orders, `reconcile.py` what disagrees, `permission.py` whether new orders may start. Its one duty of its own
is the order of things at the send: the permit is read, and nothing awaited, right before the bytes are handed over.

    take over:  arm the gate and the venue (in parallel) -> look up what is open -> report -> permit -> trade

Whatever the outside does, nothing here waits without a limit, and a failure makes trading blocked, not wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.ids import NS_PER_S, Instant
from cluster.core.log import Entry
from cluster.permit import PermitPage
from node import orders
from node.book import Book
from node.codec import Fact, Reconciled
from node.gate import Gate, GateClaimer, GateUnavailable, GateUnsuitable, Verdict
from node.orders import Declined, Finished, LookUp, OrderDesk, Send, SendCancel, StepDown
from node.permission import Conditions, Level, Permission, judge
from node.reconcile import Reconciler, VenueSnapshot
from node.risk import RiskLimits
from node.strategy import Cancel, Place, Wish
from node.telemetry import Telemetry
from node.types import Accepted, NotSent, Refused, StreamDown, StreamUp, SubmitResult, WireOrder
from node.venue_clock import VenueClock
from node.venues.base import Unavailable, Venue

TICK_S = 0.05
ARM_RETRY_S = 0.1
ARM_WAIT_S = 0.25
"""How long a takeover waits for a gate or venue that does not answer, before it goes on without (blocked)."""
SETTLE_WAIT_S = 0.5
STREAM_WAIT_S = 0.5
RECONCILED_AT_LEAST_EVERY_S = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TradingRules:
    """validity_s: how long an order may take from decision to venue, and its longest expiry. deadman_ttl_s 0: off."""

    order_tag: str
    limits: RiskLimits
    validity_s: float
    reconcile_interval_s: float
    deadman_ttl_s: float


class Trader:
    def __init__(
        self,
        *,
        term: int,
        rules: TradingRules,
        book: Book,
        append: Callable[[Fact], Entry],
        page: PermitPage,
        gate: Gate,
        venue: Venue,
        clock: VenueClock,
        conditions: Conditions,
        telemetry: Telemetry,
        reference: Callable[[str], int | None],
        on_step_down: Callable[[str], None],
        on_first_order: Callable[[int], None],
        on_permission: Callable[[Permission], None],
    ) -> None:
        """reference: twice the mid in ticks, None if no quote is fresh."""
        self.term = term
        self.rules = rules
        self.book = book
        self.conditions = conditions
        self.permission = judge(conditions)
        self.mismatches: tuple[str, ...] = ()
        self.declined: dict[str, int] = {}
        self.gate_warnings: list[str] = []
        self._append = append
        self._page = page
        self._gate = gate
        self._claimer = GateClaimer(gate, term)
        self._venue = venue
        self._clock = clock
        self._telemetry = telemetry
        self._reference = reference
        self._on_step_down = on_step_down
        self._on_first_order = on_first_order
        self._on_permission = on_permission
        self._first_order_told = False
        self._stopped = False
        self._gate_lost = asyncio.Event()
        self._gate_once = asyncio.Event()  # the first try to arm has ended, well or not
        self._venue_once = asyncio.Event()
        self._settling = asyncio.Event()
        self._stream_up = asyncio.Event()
        self._lookup_done = asyncio.Event()
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.desk = OrderDesk(
            term=term,
            order_tag=rules.order_tag,
            book=book,
            limits=rules.limits,
            capabilities=venue.capabilities,
            validity=round(rules.validity_s * NS_PER_S),
            append=append,
        )
        self._reconciler = Reconciler(book)

    # -- take-over and end ---------------------------------------------------------------------------------

    async def arm(self) -> float:
        """Arm the gate and the venue; how long it took, in seconds. Ends within its limit whatever they do: what could
        not be armed leaves trading blocked, and is tried again."""
        begun = boottime_ns()
        self._spawn(self._claimer.run())
        self._spawn(self._keep_gate_armed())
        self._spawn(self._keep_venue())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARM_WAIT_S):
                await self._gate_once.wait()
                await self._venue_once.wait()
        return (boottime_ns() - begun) / NS_PER_S

    async def settle(self) -> float:
        """Look up what earlier leaders left open, each at least once; how long it took. What stays open keeps its
        instrument and side blocked, and is asked for again."""
        begun = boottime_ns()
        self._settling.set()
        self._do(self.desk.take_over(begun, self._clock.latest()))
        limit = begun + round(SETTLE_WAIT_S * NS_PER_S)
        while self.desk.asking and boottime_ns() < limit and not self._stopped:
            await self._settled_some()
        for work in (self._tick(), self._reconcile(), self._keep_deadman()):
            self._spawn(work)
        return (boottime_ns() - begun) / NS_PER_S

    async def _settled_some(self) -> None:
        self._lookup_done.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await self._lookup_done.wait()

    def granted(self) -> None:
        """The permit is in the page: trade."""
        self.conditions.standing = "leading"
        self.review()

    async def drain(self, limit_s: float) -> None:
        """The permit is gone. Wait for the answers to what was sent; what has none by then stays UNKNOWN for the next
        leader."""
        self.conditions.standing = "handing over"
        self.review()
        deadline = boottime_ns() + round(limit_s * NS_PER_S)
        while self.desk.in_flight and boottime_ns() < deadline:
            self._answered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._answered.wait()

    def stop(self) -> None:
        """Send nothing more. Synchronous: when it returns, no new write can start; one that waits in the adapter's
        queue is dropped by `_still_allowed`."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    def review(self) -> None:
        """Judge the conditions again; tell if the result changed."""
        seen = self._page.read()
        self.conditions.permit_live = seen.token == self.term and seen.covers(boottime_ns())
        now = judge(self.conditions)
        if now != self.permission:
            changed = now.level is not self.permission.level
            self.permission = now
            if changed:
                log.info("permission_changed", term=self.term, level=now.level.value, reason=now.reason)
            self._on_permission(now)

    # -- wishes and facts ----------------------------------------------------------------------------------

    def wishes(self, named: list[tuple[str, Wish]], received_at: int) -> None:
        """What the strategy wants, in its order. received_at: Instant of the market event, 0: none."""
        now = boottime_ns()
        for decision_id, wish in named:
            if isinstance(wish, Cancel):
                self.desk.cancel(wish.client_order_id, wish.reason, now)
            else:
                self._place(decision_id, wish, received_at, now)

    def _place(self, decision_id: str, wish: Place, received_at: int, now: Instant) -> None:
        if self._stopped or self.permission.level is Level.BLOCKED:
            self._decline("blocked")
            return
        unix_now = unix_ns()
        made, actions = self.desk.place(
            wish.spec,
            decision_id,
            reason=wish.reason,
            feed_received_at=unix_now - (now - received_at) if received_at else 0,
            reference_half_ticks=self._reference(wish.spec.symbol),
            close_only=self.permission.level is Level.CLOSE_ONLY,
            now=now,
            unix_now=unix_now,
        )
        if isinstance(made, Declined):
            self._decline(made.code)
            return
        if received_at:
            self._telemetry.stage("decided", now - received_at)
        self._do(actions)

    def _decline(self, code: str) -> None:
        self.declined[code] = self.declined.get(code, 0) + 1
        self._telemetry.order_declined(code)

    def applied(self, entry: Entry, fact: Fact) -> None:
        """`entry` is committed and in the book."""
        self._do(self.desk.applied(entry, fact, boottime_ns()))
        self._answered.set()

    # -- carrying out --------------------------------------------------------------------------------------

    def _do(self, actions: list[orders.Action]) -> None:
        for action in actions:
            if self._stopped:
                return
            match action:
                case orders.Claim(index, coid):
                    claim = self._claimer.claim(coid)
                    claim.add_done_callback(lambda f, i=index: self._claimed(i, f))  # type: ignore[misc]
                case Send():
                    self._send(action)
                case SendCancel(index, coid):
                    self._spawn(self._cancel(index, coid))
                case LookUp(index, coid):
                    self._spawn(self._look_up(index, coid))
                case StepDown(reason):
                    self._step_down(reason)
                case Finished(flight, result):
                    self._finished(flight, result)

    def _step_down(self, reason: str) -> None:
        if not self._stopped:
            self.stop()
            self._on_step_down(reason)

    def _claimed(self, index: int, claim: asyncio.Future[Any]) -> None:
        if self._stopped or claim.cancelled():
            return
        refusal: Refused | None = None
        error = claim.exception()
        if error is not None:
            refusal = Refused("unavailable", str(error))
            self._close_gate(str(error))
        else:
            result = claim.result()
            if not result.ok:
                refusal = Refused(result.verdict.value, f"{result.detail} (high-water {result.high_water})".strip())
                self._telemetry.fence_refused("gate")
                if result.verdict is Verdict.UNARMED:
                    self._close_gate("it lost its state; re-arming")
        self._do(self.desk.claimed(index, refusal, boottime_ns()))

    def _send(self, send: Send) -> None:
        """Check last, right before the effect: no await from the permit check to the hand-over."""
        now = boottime_ns()
        permit = self._page.read()
        if permit.token != self.term or not permit.covers(now):
            self._telemetry.fence_refused("permit")
            self._do(self.desk.submitted(send.index, NotSent("no_permit", "the permit ended before the send"), now))
            return
        expires_at: int | None = None
        if self._venue.capabilities.expiry:
            validity = Instant(now + round(self.rules.validity_s * NS_PER_S))
            expires_at = self._clock.earliest(min(validity, permit.act_until))
            if expires_at is None:
                self._do(self.desk.submitted(send.index, NotSent("venue_clock", "the venue's clock is not known"), now))
                return
        order = WireOrder(send.client_order_id, send.decision_id, send.spec, self.term, expires_at)
        ticket = self._venue.submit(order, self._still_allowed)
        self._spawn(self._await_answer(send.index, ticket))

    def _still_allowed(self) -> bool:
        permit = self._page.read()
        return not self._stopped and permit.token == self.term and permit.covers(boottime_ns())

    async def _await_answer(self, index: int, ticket: Any) -> None:
        result: SubmitResult = await ticket.result()
        self._do(self.desk.submitted(index, result, boottime_ns()))

    def _finished(self, flight: orders.Flight, result: SubmitResult) -> None:
        self._telemetry.order_finished(flight, result)
        if isinstance(result, Accepted):
            if not self._first_order_told:
                self._first_order_told = True
                self._on_first_order(unix_ns())
        else:
            log.info(
                "order_not_accepted",
                term=self.term,
                client_order_id=flight.client_order_id,
                result=type(result).__name__,
                code=getattr(result, "code", ""),
                reason=result.reason,
            )

    async def _cancel(self, index: int, coid: Any) -> None:
        if not self._still_allowed():
            return
        result = await self._venue.cancel(coid, self.term)
        self._do(self.desk.cancel_answered(index, result, boottime_ns()))

    async def _look_up(self, index: int, coid: Any) -> None:
        asked_at = self._clock.earliest(boottime_ns())
        result = await self._venue.lookup(coid)
        if isinstance(result, Unavailable):
            log.warning("lookup_unavailable", client_order_id=coid, reason=result.reason)
        self._do(self.desk.looked_up(index, result, asked_at_venue=asked_at, now=boottime_ns()))
        self._lookup_done.set()

    # -- background ----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            log.error("trader_failed", term=self.term, reason=str(error), exc_info=error)
            self._step_down(f"trading failed: {error}")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            latest = self._clock.latest()
            if latest is not None:
                self.desk.bound_unknown(latest)
            self._do(self.desk.tick(boottime_ns()))
            self.review()

    def _close_gate(self, why: str) -> None:
        self.conditions.gate_closed = why
        self.review()
        self._gate_lost.set()

    def _report_gate(self, warnings: list[str]) -> None:
        if warnings and not self.gate_warnings:
            log.warning("gate_warnings", warnings=warnings)
        self.gate_warnings = warnings

    async def _keep_gate_armed(self) -> None:
        """Arm; arm again whenever a claim shows that the gate has forgotten us or cannot be reached."""
        first = True  # the worker has connected it long before: at a takeover, arm at once
        while True:
            try:
                if not first:
                    self._report_gate(await self._gate.connect())  # it may be another Redis by now
                first = False
                await self._gate.arm(self.term)
            except StaleTerm as e:
                self._telemetry.fence_refused("gate")
                self._step_down(f"gate: {e}")
                return
            except (GateUnavailable, GateUnsuitable) as e:
                self.conditions.gate_closed = str(e)
                self.review()
                self._gate_once.set()
                await asyncio.sleep(ARM_RETRY_S)
                continue
            self.conditions.gate_closed = ""
            self.review()
            self._gate_once.set()
            self._gate_lost.clear()
            await self._gate_lost.wait()

    async def _keep_venue(self) -> None:
        """Arm the venue, then follow its private stream for as long as the term lasts."""
        while True:
            try:
                armed = await self._venue.arm(self.term)
            except (Unreachable, OutcomeUnknown) as e:
                self.conditions.venue_down = str(e)
                self.review()
                self._venue_once.set()
                await asyncio.sleep(ARM_RETRY_S)
                continue
            if armed.high_water > self.term:
                self._step_down(f"venue: it has seen token {armed.high_water}")
                return
            break
        self.desk.caps = self._venue.capabilities
        self.desk.armed = True
        # Between arming and the stream's first sign nothing is known to be wrong, and what it will tell is not lost: it
        # resumes where the book ends. Unfilled orders count in full meanwhile, so no limit rests on it.
        self.conditions.venue_down = ""
        self._venue_once.set()
        # Only a book that has caught up knows which orders are ours, which fills it has, and where to resume.
        await self._settling.wait()
        self._spawn(self._expect_stream())
        async for event in self._venue.events(self.book.venue_event_seq):
            match event:
                case StreamUp():
                    self._stream_up.set()
                    self.conditions.venue_down = ""
                    self.review()
                case StreamDown(reason):
                    self.conditions.venue_down = f"private stream down: {reason}"
                    self.review()
                case _:
                    self._do(self.desk.venue_said(event, boottime_ns()))

    async def _expect_stream(self) -> None:
        try:
            async with asyncio.timeout(STREAM_WAIT_S):
                await self._stream_up.wait()
        except TimeoutError:
            if not self._stream_up.is_set() and not self.conditions.venue_down:
                self.conditions.venue_down = f"the private stream did not come up within {STREAM_WAIT_S:g} s"
                self.review()

    async def _keep_deadman(self) -> None:
        """Refreshed by the leader alone, and never disarmed by one that is demoted: a late refresh after a disarm
        would arm it again with nobody behind it."""
        ttl_s = self.rules.deadman_ttl_s
        if not ttl_s:
            return
        while True:
            if self._still_allowed():
                try:
                    await self._venue.keep_alive(self.term, ttl_s)
                except StaleTerm as e:
                    self._step_down(f"venue: {e}")
                    return
                except (Unreachable, OutcomeUnknown) as e:
                    log.warning("deadman_not_refreshed", term=self.term, reason=str(e))
            await asyncio.sleep(ttl_s / 4)

    async def _reconcile(self) -> None:
        """Right after the takeover, then every few seconds. Journaled when its result changes, and once a minute."""
        trigger, told_at = "takeover", 0
        told: tuple[str, ...] | None = None
        while True:
            try:
                snapshot = VenueSnapshot(
                    await self._venue.open_orders(),
                    await self._venue.fills_after(self.book.venue_event_seq),
                    await self._venue.positions(),
                )
            except (Unreachable, OutcomeUnknown) as e:
                log.warning("reconcile_failed", term=self.term, reason=str(e))
            else:
                found = self._reconciler.compare(snapshot)
                for fill in found.fills:
                    self._do(self.desk.venue_said(fill, boottime_ns()))
                self._do([LookUp(index, coid) for index, coid in found.look_up])
                now = boottime_ns()
                if found.mismatches != told or now - told_at > RECONCILED_AT_LEAST_EVERY_S * NS_PER_S:
                    self._append(Reconciled(trigger, found.mismatches))
                    told, told_at = found.mismatches, now
                if found.mismatches != self.mismatches:
                    log.warning("reconcile_mismatch", term=self.term, mismatches=list(found.mismatches))
                self.mismatches = found.mismatches
                trigger = "periodic"
            await asyncio.sleep(self.rules.reconcile_interval_s)
