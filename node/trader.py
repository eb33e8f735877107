"""One leadership's trading, carried out: gate, venue, private stream, reconcile, dead-man's switch.

Made by the worker when it is told to lead, thrown away when the term ends. It decides nothing: `orders.py` says what to
do with orders, `reconcile.py` what disagrees, `permission.py` whether new orders may start. Its one duty of its own
is the order of things at the send: the permit is read, and nothing awaited, right before the bytes are handed over.

    take over:  arm the gate and the venue (in parallel) -> look up what is open -> report -> permit -> trade

Whatever the outside does, nothing here waits without a limit, and a failure makes trading blocked, not wrong. Callbacks
and tasks end in `_decide` or `_failed`: an exception in either would vanish in the loop while the term goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import structlog

from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import BatonError, InvariantViolation, OutcomeUnknown, StaleTerm, Unreachable
from cluster.core.errors import StepDown as TermOver
from cluster.core.ids import NS_PER_S, Instant
from cluster.core.log import Entry
from cluster.journal import JournalBusy
from cluster.permit import PermitPage
from node import orders
from node.arming import GateArming
from node.book import Book
from node.codec import Fact, Reconciled
from node.gate import Gate, GateClaimer, Verdict
from node.orders import Declined, Finished, LookUp, OrderDesk, Send, SendCancel, StepDown
from node.permission import Conditions, Level, Permission, judge
from node.reconcile import Findings, Reconciler, VenueSnapshot
from node.risk import RiskLimits
from node.strategy import Cancel, Place, Wish
from node.telemetry import Telemetry
from node.types import (
    Accepted,
    ClientOrderId,
    NotSent,
    Refused,
    StreamDown,
    StreamUp,
    SubmitResult,
    VenueEvent,
    WireOrder,
)
from node.venue_clock import VenueClock
from node.venues.base import SubmitTicket, Unavailable, Venue

TICK_S = 0.05
ARM_RETRY_S = 0.1
ARM_WAIT_S = 0.25
"""How long a takeover waits for a gate or venue that does not answer, before it goes on without (blocked)."""
SETTLE_WAIT_S = 0.5
STREAM_WAIT_S = 0.5
RECONCILED_AT_LEAST_EVERY_S = 60.0
DECLINE_TOLD_EVERY_S = 60.0
RECONCILE_OVERLAP = 256
"""How many events before the book's resume point are asked for again. That point is the highest place a journaled fact
came from; should one below it have come late, and its leader died first, no stream would tell it any more."""

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
        self.declined_in_a_row = 0
        self.last_declined: Declined | None = None
        self._decline_told: dict[str, int] = {}
        self._journal = append
        self._page = page
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
        self._arming = GateArming(gate, term, conditions, review=self.review, on_stale=self._gate_is_stale)
        self._venue_once = asyncio.Event()
        self._settling = asyncio.Event()
        self._stream_up = asyncio.Event()
        self._progress = asyncio.Event()
        self._granted = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.desk = OrderDesk(
            term=term,
            order_tag=rules.order_tag,
            book=book,
            limits=rules.limits,
            capabilities=venue.capabilities,
            validity=round(rules.validity_s * NS_PER_S),
            append=self._append,
        )
        self._reconciler = Reconciler(book)

    # -- take-over and end ---------------------------------------------------------------------------------

    async def arm(self) -> float:
        """Arm the gate and the venue; how long it took, in seconds. Ends within its limit whatever they do: what could
        not be armed leaves trading blocked, and is tried again."""
        begun = boottime_ns()
        self._spawn(self._claimer.run())
        self._spawn(self._arming.run())
        self._spawn(self._keep_venue())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARM_WAIT_S):
                await self._arming.once.wait()
                await self._venue_once.wait()
        return (boottime_ns() - begun) / NS_PER_S

    async def settle(self) -> float:
        """Look up what earlier leaders left open, each at least once, and commit what was found; how long it took. What
        stays open keeps its instrument and side blocked, and is asked for again."""
        begun = boottime_ns()
        self._settling.set()
        self._decide(lambda: self.desk.take_over(begun, self._clock.latest()))
        limit = begun + round(SETTLE_WAIT_S * NS_PER_S)
        while self.desk.settling and boottime_ns() < limit and not self._stopped:
            await self._some_progress()
        for work in (self._tick(), self._reconcile(), self._keep_deadman()):
            self._spawn(work)
        return (boottime_ns() - begun) / NS_PER_S

    async def _some_progress(self) -> None:
        """Something was looked up or applied; or a while has passed."""
        self._progress.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await self._progress.wait()

    def granted(self) -> None:
        """The permit is in the page: trade."""
        if self._stopped:
            return
        self.conditions.standing = "leading"
        self.review()
        self._granted.set()
        self._decide(lambda: self.desk.granted(boottime_ns()))

    async def drain(self, limit_s: float) -> None:
        """The permit is gone. Wait for the answers to what was sent; what has none by then stays UNKNOWN for the next
        leader."""
        self.conditions.standing = "handing over"
        self.review()
        deadline = boottime_ns() + round(limit_s * NS_PER_S)
        while self.desk.in_flight and boottime_ns() < deadline and not self._stopped:
            await self._some_progress()

    def stop(self) -> None:
        """Send and append nothing more. Synchronous: when it returns, no new write can start, and one that waits
        in the adapter's queue is dropped by `_still_allowed`."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        for waited_for in (self._arming.once, self._venue_once, self._progress):
            waited_for.set()

    @property
    def gate_warnings(self) -> list[str]:
        return self._arming.warnings

    def _gate_is_stale(self, why: str) -> None:
        self._telemetry.fence_refused("gate")
        self._step_down(f"gate: {why.removeprefix('gate: ')}")

    @property
    def stopped(self) -> bool:
        return self._stopped

    def review(self) -> None:
        """Judge the conditions again; tell if the result changed."""
        if self._stopped:
            return
        seen = self._page.read()
        self.conditions.permit_live = seen.token == self.term and seen.covers(boottime_ns())
        self.conditions.clock_unknown = self.desk.caps.expiry and self._clock.latest() is None
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
            if self._stopped:
                return
            try:
                if isinstance(wish, Cancel):
                    self.desk.cancel(wish.client_order_id, wish.reason)
                else:
                    self._place(decision_id, wish, received_at, now)
            except JournalBusy:
                # Nothing was appended: it may wish for it again.
                self._decline(Declined("journal_busy", "the journal has no room; is the disk slow?"))
            except Exception as e:  # noqa: BLE001 - see _failed
                self._failed(e)

    def _place(self, decision_id: str, wish: Place, received_at: int, now: Instant) -> None:
        if self.permission.level is Level.BLOCKED:
            self._decline(Declined("blocked", self.permission.reason))
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
            self._decline(made)
            return
        self.declined_in_a_row = 0
        if received_at:
            self._telemetry.stage("decided", now - received_at)
        self._decide(lambda: actions)

    def _decline(self, why: Declined) -> None:
        code, now = why.code, boottime_ns()
        self.declined[code] = self.declined.get(code, 0) + 1
        self.declined_in_a_row += 1
        self.last_declined = why
        self._telemetry.order_declined(code)
        # A strategy may wish for the same a hundred times a second; one line says it.
        if now - self._decline_told.get(code, 0) > DECLINE_TOLD_EVERY_S * NS_PER_S:
            self._decline_told[code] = now
            log.warning("order_declined", term=self.term, code=code, reason=why.reason, times=self.declined[code])

    def applied(self, entry: Entry, fact: Fact) -> None:
        """`entry` is committed and in the book."""
        self._decide(lambda: self.desk.applied(entry, fact, boottime_ns()))
        self._progress.set()

    def _append(self, fact: Fact) -> Entry:
        """Raises StepDown once stopped: the node may lead again by now, and this is not its term."""
        if self._stopped:
            raise TermOver(f"term {self.term} has ended here")
        return self._journal(fact)

    # -- carrying out --------------------------------------------------------------------------------------

    def _decide(self, ask: Callable[[], list[orders.Action] | None]) -> None:
        """Ask the desk, and carry out what it answers."""
        if self._stopped:
            return
        try:
            self._do(ask() or [])
        except Exception as e:  # noqa: BLE001 - see _failed
            self._failed(e)

    def _failed(self, error: BaseException) -> None:
        """A fact that could not be journaled, or a mistake of ours: either way the desk and the world may differ from
        here on. The next leader starts from the journal and the venue."""
        if self._stopped:
            return
        if isinstance(error, TermOver):
            self._step_down(str(error))
            return
        bug = None if isinstance(error, BatonError) else error
        log.error("trader_failed", term=self.term, reason=str(error), exc_info=bug)
        self._step_down(f"trading failed: {type(error).__name__}: {error}")

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
                case LookUp():
                    self._spawn(self._look_up(action))
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
            self._arming.lost(str(error))
        else:
            result = claim.result()
            if not result.ok:
                refusal = Refused(result.verdict.value, f"{result.detail} (high-water {result.high_water})".strip())
                self._telemetry.fence_refused("gate")
                if result.verdict is Verdict.UNARMED:
                    self._arming.lost("it lost its state; re-arming")
                elif result.verdict is Verdict.HALTED:
                    self._arming.lost(f"halted: {result.detail}")
        self._decide(lambda: self.desk.claimed(index, refusal, boottime_ns()))

    def _send(self, send: Send) -> None:
        """Check last, right before the effect: no await from the permit check to the hand-over."""
        now = boottime_ns()
        permit = self._page.read()
        if permit.token != self.term or not permit.covers(now):
            self._telemetry.fence_refused("permit")
            self._do(self.desk.submitted(send.index, NotSent("no_permit", "the permit ended before the send"), now))
            return
        if self.conditions.unprotected:  # a standby was lost between the intent and its commit
            self._telemetry.fence_refused("replication")
            self._do(self.desk.submitted(send.index, NotSent("unprotected", self.conditions.unprotected), now))
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

    async def _await_answer(self, index: int, ticket: SubmitTicket) -> None:
        result = await ticket.result()
        self._decide(lambda: self.desk.submitted(index, result, boottime_ns()))

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

    async def _cancel(self, index: int, coid: ClientOrderId) -> None:
        if not self._still_allowed():
            return
        result = await self._venue.cancel(coid, self.term)
        self._decide(lambda: self.desk.cancel_answered(index, result, boottime_ns()))

    async def _look_up(self, ask: LookUp) -> None:
        asked_at = self._clock.earliest(boottime_ns())
        result = await self._venue.lookup(ask.client_order_id)
        if isinstance(result, Unavailable):
            log.warning("lookup_unavailable", client_order_id=ask.client_order_id, reason=result.reason)
        self._decide(lambda: self.desk.looked_up(ask, result, asked_at_venue=asked_at, now=boottime_ns()))
        self._progress.set()

    # -- background ----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopped:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            latest = self._clock.latest()
            if latest is not None:
                self.desk.bound_unknown(latest)
            self._decide(lambda: self.desk.tick(boottime_ns()))
            self.review()

    async def _keep_venue(self) -> None:
        """Arm the venue, then follow its private stream for as long as the term lasts."""
        while True:
            try:
                if not self._venue.connected:  # and so its capabilities are not known: it would seem to have none
                    raise Unreachable("not connected")
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
        self.review()
        self._venue_once.set()
        # Only a book that has caught up knows which orders are ours, which fills it has, and where to resume.
        await self._settling.wait()
        self._spawn(self._expect_stream())
        events = cast(AsyncGenerator[VenueEvent, None], self._venue.events(self.book.venue_event_seq))
        async with contextlib.aclosing(events):
            async for event in events:
                self._heard(event)
        raise InvariantViolation("the venue's private stream ended for good")

    def _heard(self, event: VenueEvent) -> None:
        match event:
            case StreamUp():
                self._stream_up.set()
                if self._venue.capabilities != self.desk.caps:  # what is in flight was sent under other rules
                    self._step_down("venue: its capabilities have changed")
                    return
                self.conditions.venue_down = ""
                self.review()
            case StreamDown(reason):
                self.conditions.venue_down = f"private stream down: {reason}"
                self.review()
            case _:
                self._decide(lambda: self.desk.venue_said(event))

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
        await self._granted.wait()  # at once then: the switch that the last leader armed may be about to fire
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
                    await self._venue.fills_after(max(0, self.book.venue_event_seq - RECONCILE_OVERLAP)),
                    await self._venue.positions(),
                )
            except (Unreachable, OutcomeUnknown) as e:
                log.warning("reconcile_failed", term=self.term, reason=str(e))
            else:
                found = self._reconciler.compare(snapshot)
                self._take_findings(found)
                now = boottime_ns()
                if found.mismatches != told or now - told_at > RECONCILED_AT_LEAST_EVERY_S * NS_PER_S:
                    self._append(Reconciled(trigger, found.mismatches))
                    told, told_at = found.mismatches, now
                if found.mismatches != self.mismatches:
                    log.warning("reconcile_mismatch", term=self.term, mismatches=list(found.mismatches))
                self.mismatches = found.mismatches
                trigger = "periodic"
            await asyncio.sleep(self.rules.reconcile_interval_s)

    def _take_findings(self, found: Findings) -> None:
        for fill in found.fills:
            self._decide(lambda f=fill: self.desk.venue_said(f))  # type: ignore[misc]
        for order in found.placed:
            self._decide(lambda o=order: self.desk.found_open(o))  # type: ignore[misc]
        self._decide(lambda: [LookUp(index, coid, self.desk.armed) for index, coid in found.look_up])
