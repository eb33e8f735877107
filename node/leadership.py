"""One term of leadership, decided: the takeover, leave to trade, what is sent, the schedule, the way out (DESIGN 4, 8).

    begin -> { catch up || arm the gate and the venue } -> settle -> report -> granted -> trade -> drain -> report

A pure machine for one term: `trader.py` calls it with what happened and carries out, in order, the actions it returns.
Its actions (`actions.py`, `orders.py`) name the events that answer them. Orders it leaves to `orders.py`, the limits of
the way in and out to `stages.py`, the gate's arming to `arming.py`, the venue's word to `reconcile.py`, the scale of
permission to `permission.py`. Invariants:

- once `stopped`, no event does anything, nothing is appended and nothing released: the last action of a term that
  leaves by itself is `StepDown` or `ReportSettled`;
- whatever the outside does, it makes trading blocked, not wrong, and is tried again; a higher token alone is the end;
- `release` is the last check before a send: between it and the write to the venue nothing may come;
- a fact that cannot be journaled ends the term, since the desk and the world may differ from there on: the next leader
  starts from the journal and the venue. Only a wish may find no room, and come again.

It appends facts through the `append` it is given, and reads the book, the log, the conditions and the venue's clock,
which others keep. What is no BatonError is a mistake of ours and raised as it is: whoever calls then stops it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Concatenate, ParamSpec, Protocol

from cluster.core.errors import BatonError, JournalBusy
from cluster.core.errors import StepDown as TermOver
from cluster.core.ids import Instant, NodeId, ns
from cluster.core.log import Entry
from node.actions import (
    Action,
    ArmVenue,
    FenceRefused,
    FirstOrder,
    GateAction,
    Note,
    OpenStream,
    PermissionChanged,
    RefreshDeadman,
    ReportReconciled,
    ReportSettled,
    TakeSnapshot,
)
from node.arming import GateArming
from node.book import Book
from node.codec import Fact, TermStarted
from node.declines import Declines
from node.gate import Armed, ClaimResult, GateState, Verdict
from node.orders import Declined, LookUp, OrderDesk, Send, StepDown
from node.permission import Conditions, Level, judge
from node.reconcile import Reconciler, VenueSnapshot
from node.risk import RiskLimits
from node.stages import Stage, Stages, TermLog
from node.strategy import Cancel, Place, Wish
from node.types import Accepted, NotSent, Refused, StreamDown, StreamUp, SubmitResult, VenueEvent, WireOrder
from node.venue_clock import VenueClock
from node.venues.base import Capabilities, LookupResult, Unavailable

TICK_S = 0.05
VENUE_RETRY_S = 0.1
STREAM_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class TradingRules:
    """validity_s: how long an order may take from decision to venue, and its longest expiry. deadman_ttl_s 0: off."""

    order_tag: str
    limits: RiskLimits
    validity_s: float
    reconcile_interval_s: float
    deadman_ttl_s: float


class Permit(Protocol):
    """What stands in the permit page. token 0: none."""

    @property
    def token(self) -> int: ...
    @property
    def act_until(self) -> Instant: ...
    def covers(self, now: Instant) -> bool: ...


class _Timer(Enum):
    STAGE = auto()
    GATE = auto()
    VENUE = auto()
    STREAM = auto()
    RECONCILE = auto()
    DEADMAN = auto()
    TICK = auto()


_P = ParamSpec("_P")


def _event(
    method: Callable[Concatenate[Leadership, _P], Sequence[Action]],
) -> Callable[Concatenate[Leadership, _P], Sequence[Action]]:
    """After the end nothing is heard; and what says StepDown, or cannot journal, ends it."""

    @functools.wraps(method)
    def heard(self: Leadership, /, *args: _P.args, **kwargs: _P.kwargs) -> Sequence[Action]:
        if self.stopped:
            return []
        try:
            actions = method(self, *args, **kwargs)
        except TermOver as e:
            actions = [StepDown(str(e))]
        except BatonError as e:
            what = f"{type(e).__name__}: {e}"
            actions = [Note("trader_failed", {"reason": what}, "error"), StepDown(f"trading failed: {what}")]
        for i, action in enumerate(actions):
            if isinstance(action, StepDown):
                self.stop()
                return actions[: i + 1]
        return actions

    return heard


class Leadership:
    """See the module. One per term.

    append: makes the fact the next entry and returns it, at once and before it is applied. conditions: kept by others
    as well; `review` says that they have changed. reference: twice the mid in ticks, None if no quote is fresh.
    """

    def __init__(
        self,
        *,
        term: int,
        rules: TradingRules,
        book: Book,
        log: TermLog,
        clock: VenueClock,
        conditions: Conditions,
        capabilities: Capabilities,
        append: Callable[[Fact], Entry],
        reference: Callable[[str], int | None],
    ) -> None:
        self.term = term
        self.rules = rules
        self.book = book
        self.conditions = conditions
        self.permission = judge(conditions)
        self.stopped = False
        self.declines = Declines()
        self.reconciler = Reconciler(book)
        self.desk = OrderDesk(
            term=term,
            order_tag=rules.order_tag,
            book=book,
            limits=rules.limits,
            capabilities=capabilities,
            validity=ns(rules.validity_s),
            append=self._append,
        )
        self._clock, self._journal, self._reference = clock, append, reference
        self._gate = GateArming(term)
        self._stages = Stages(log)
        self._permit: Permit | None = None  # as seen last
        self._due: dict[_Timer, Instant] = {}
        self._wake: Instant | None = None
        self._venue_tried = self._first_order_told = False

    def stop(self) -> None:
        """The term is over for us. When this returns, nothing can be sent or appended for it any more."""
        self.stopped = True

    def wake_at(self) -> Instant | None:
        """When to call `tick` at the latest; None: an event comes first."""
        return self._wake

    # -- the way in and out ----------------------------------------------------------------------------------

    @_event
    def begin(self, started: TermStarted, told_at: Instant, now: Instant) -> Sequence[Action]:
        """Begin the term with its own first entry. told_at: when we were told to lead, from where catching up counts.

        The gate and the venue are armed while the standbys attach; what is open is asked for when both are done."""
        c = self.conditions
        c.standing = "taking over"
        c.gate_closed = c.venue_down = "not armed yet"
        self.permission = judge(c)
        self._stages.begin(self._append(started).index, told_at, now)
        self._set(_Timer.STAGE, self._stages.due)
        return [*self._gate.begin(), ArmVenue()]

    @_event
    def applied(self, entry: Entry, fact: Fact, now: Instant) -> Sequence[Action]:
        """`entry` is committed and in the book."""
        if self._stages.stage is Stage.CATCHING_UP and entry.index == self._stages.first_index:
            self._stages.caught_up(now)
        actions = self.desk.applied(entry, fact, now)
        return actions if self._stages.stage is Stage.LEADING else [*actions, *self._go_on(now)]

    @_event
    def granted(self, permit: Permit, now: Instant) -> Sequence[Action]:
        """The permit is in the page: trade."""
        if self._stages.stage is not Stage.SETTLED:
            return []
        self._stages.granted()
        self._permit = permit
        self.conditions.standing = "leading"
        # The switch that the last leader armed may be about to fire: refresh it at once.
        return [*self._review(now), *self.desk.granted(now), *self._keep_deadman(now)]

    @_event
    def drain(self, successor: NodeId | None, now: Instant) -> Sequence[Action]:
        """The permit is gone. Wait for answers to what was sent, then until the successor has every entry, and report
        either way: what has no answer by then is UNKNOWN, and the next leader's to settle."""
        self._stages.drain(successor, now)
        self.conditions.standing = "handing over"
        return [*self._review(now), *self._go_on(now)]

    def _go_on(self, now: Instant) -> Sequence[Action]:
        """What the takeover or the drain waited for may have come, or its limit."""
        stages = self._stages
        if stages.stage is Stage.LEADING:
            return []
        if self._gate.tried and self._venue_tried:
            stages.tried_to_arm(now)
        out: list[Action] = []
        before = stages.stage
        while stage := stages.next(now, settling=self.desk.settling, in_flight=self.desk.in_flight):
            match stage:
                case Stage.SETTLING:
                    out += [*self.desk.take_over(now, self._clock.latest(now)), *self._open_stream(now)]
                case Stage.SETTLED:
                    self._set(_Timer.TICK, Instant(now + ns(TICK_S)))
                    out += [ReportReconciled(stages.phases_s), TakeSnapshot(self.reconciler.fills_after)]
                case Stage.OVER if before is Stage.CATCHING_UP:
                    return [StepDown(stages.too_slow)]
                case Stage.OVER:
                    self.stop()
                    return [*out, ReportSettled()]
        self._set(_Timer.STAGE, stages.due)
        return out

    # -- time ----------------------------------------------------------------------------------------------

    @_event
    def tick(self, permit: Permit, now: Instant) -> Sequence[Action]:
        """Time has passed. permit: as it stands in the page now."""
        self._permit = permit
        out: list[Action] = []
        for timer in [t for t, at in self._due.items() if at <= now]:
            if not self.stopped:
                self._set(timer, None)
                out += self._fire(timer, now)
        return out

    def _fire(self, timer: _Timer, now: Instant) -> Sequence[Action]:
        match timer:
            case _Timer.STAGE:
                return self._go_on(now)
            case _Timer.GATE:
                return self._gate_does(self._gate.tick(now), now)
            case _Timer.VENUE:
                return [ArmVenue()]
            case _Timer.STREAM:
                self.conditions.venue_down = (
                    self.conditions.venue_down or f"the private stream did not come up within {STREAM_WAIT_S:g} s"
                )
                return self._review(now)
            case _Timer.RECONCILE:
                return [TakeSnapshot(self.reconciler.fills_after)]
            case _Timer.DEADMAN:
                return self._keep_deadman(now)
            case _Timer.TICK:
                self._set(_Timer.TICK, Instant(now + ns(TICK_S)))
                latest = self._clock.latest(now)
                if latest is not None:
                    self.desk.bound_unknown(latest)
                return [*self.desk.tick(now), *self._review(now)]

    def _set(self, timer: _Timer, at: Instant | None) -> None:
        if at is None:
            self._due.pop(timer, None)
        else:
            self._due[timer] = at
        self._wake = min(self._due.values(), default=None)

    # -- permission ----------------------------------------------------------------------------------------

    @_event
    def review(self, permit: Permit, now: Instant) -> Sequence[Action]:
        """The conditions have changed, or may have."""
        self._permit = permit
        return self._review(now)

    def _review(self, now: Instant) -> Sequence[Action]:
        c = self.conditions
        c.permit_live = self._permit is not None and self.still_allowed(self._permit, now)
        c.clock_unknown = self.desk.caps.expiry and self._clock.latest(now) is None
        said, before = judge(c), self.permission
        if said == before:
            return []
        self.permission = said
        out: list[Action] = []
        if said.level is not before.level:
            out.append(Note("permission_changed", {"level": said.level.value, "reason": said.reason}, "info"))
        return [*out, PermissionChanged(said)]

    def still_allowed(self, permit: Permit, now: Instant) -> bool:
        """May a request of this term leave now? Ask with the permit as it stands in the page."""
        return not self.stopped and permit.token == self.term and permit.covers(now)

    # -- orders --------------------------------------------------------------------------------------------

    @_event
    def wishes(self, named: list[tuple[str, Wish]], received_at: int, now: Instant, unix_now: int) -> Sequence[Action]:
        """What the strategy wants, in its order. received_at: Instant of the market event, 0: none."""
        out: list[Action] = []
        for decision_id, wish in named:
            try:
                if isinstance(wish, Cancel):
                    self.desk.cancel(wish.client_order_id, wish.reason)
                else:
                    out += self._place(decision_id, wish, received_at, now, unix_now)
            except JournalBusy:
                # Nothing was appended: it may wish for it again.
                out += self.declines.add(Declined("journal_busy", "the journal has no room; is the disk slow?"), now)
        return out

    def _place(self, decision_id: str, wish: Place, received_at: int, now: Instant, unix_now: int) -> Sequence[Action]:
        if self.permission.level is Level.BLOCKED:
            return self.declines.add(Declined("blocked", self.permission.reason), now)
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
            return self.declines.add(made, now)
        self.declines.in_a_row = 0
        return actions

    @_event
    def claimed(self, index: int, answer: ClaimResult | str, now: Instant) -> Sequence[Action]:
        """The gate's word on a Claim, or why there is none: no answer is no permission."""
        if isinstance(answer, str):
            lost = self._gate_does(self._gate.lost(answer), now)
            return [*lost, *self.desk.claimed(index, Refused("unavailable", answer), now)]
        if answer.ok:
            return self.desk.claimed(index, None, now)
        out: list[Action] = [FenceRefused("gate")]
        if answer.verdict is Verdict.UNARMED:
            out += self._gate_does(self._gate.lost("it lost its state; re-arming"), now)
        elif answer.verdict is Verdict.HALTED:
            out += self._gate_does(self._gate.lost(f"halted: {answer.detail}"), now)
        refusal = Refused(answer.verdict.value, f"{answer.detail} (high-water {answer.high_water})".strip())
        return [*out, *self.desk.claimed(index, refusal, now)]

    def release(self, send: Send, permit: Permit, now: Instant) -> WireOrder | Sequence[Action]:
        """Check last, right before the effect: read the page and the clock, call this, and hand the order to the venue
        with no await in between. No order: it was not sent, and what follows from that."""
        if self.stopped:
            return []
        expires_at: int | None = None
        if not self.still_allowed(permit, now):
            return self._hold_back(send, NotSent("no_permit", "the permit ended before the send"), now)
        if self.conditions.unprotected:  # a standby was lost between the intent and its commit
            return self._hold_back(send, NotSent("unprotected", self.conditions.unprotected), now)
        if self.conditions.halted:  # somebody pressed between the claim and now
            return self._hold_back(send, NotSent("halted", self.conditions.halted), now)
        if self.desk.caps.expiry:
            valid_until = Instant(now + self.desk.validity)
            expires_at = self._clock.earliest(min(valid_until, permit.act_until), now)
            if expires_at is None:
                return self._hold_back(send, NotSent("venue_clock", "the venue's clock is not known"), now)
        return WireOrder(send.client_order_id, send.decision_id, send.spec, self.term, expires_at)

    @_event
    def _hold_back(self, send: Send, why: NotSent, now: Instant) -> Sequence[Action]:
        layer = _LAYERS.get(why.code)
        refused = [FenceRefused(layer)] if layer else []
        return [*refused, *self.desk.submitted(send.index, why, now), *self._go_on(now)]

    @_event
    def submitted(self, index: int, result: SubmitResult, now: Instant) -> Sequence[Action]:
        """The venue's answer to a released order."""
        actions: Sequence[Action] = self.desk.submitted(index, result, now)
        if not self._first_order_told and isinstance(result, Accepted):
            self._first_order_told = True
            actions = [*actions, FirstOrder()]
        return actions if self._stages.stage is Stage.LEADING else [*actions, *self._go_on(now)]

    @_event
    def cancel_answered(self, index: int, result: SubmitResult, now: Instant) -> Sequence[Action]:
        return self.desk.cancel_answered(index, result, now)

    @_event
    def looked_up(
        self, asked: LookUp, result: LookupResult, asked_at_venue: int | None, now: Instant
    ) -> Sequence[Action]:
        """asked_at_venue: lower bound of the venue's clock when the question left; None: not known."""
        out: list[Action] = []
        if isinstance(result, Unavailable):
            fields = {"client_order_id": asked.client_order_id, "reason": result.reason}
            out.append(Note("lookup_unavailable", fields))
        self.desk.looked_up(asked, result, asked_at_venue=asked_at_venue, now=now)
        return [*out, *self._go_on(now)]

    def _append(self, fact: Fact) -> Entry:
        """Raises StepDown once stopped: the node may lead again by now, and this is not its term."""
        if self.stopped:
            raise TermOver(f"term {self.term} has ended here")
        return self._journal(fact)

    # -- the gate ------------------------------------------------------------------------------------------

    @_event
    def gate_armed(self, answer: Armed, now: Instant) -> Sequence[Action]:
        return self._gate_does(self._gate.armed(answer, now), now)

    @_event
    def gate_seen(self, state: GateState, now: Instant) -> Sequence[Action]:
        return self._gate_does(self._gate.seen(state, now), now)

    @_event
    def gate_failed(self, reason: str, now: Instant) -> Sequence[Action]:
        """No answer to ArmGate, LookAtGate or NoteLatch, or a gate that may not be used."""
        return self._gate_does(self._gate.failed(reason, now), now)

    @_event
    def gate_refused(self, reason: str) -> Sequence[Action]:
        """It has seen a higher token."""
        return [FenceRefused("gate"), StepDown(f"gate: {reason}")]

    @_event
    def latch_read(self, halted: str | None, now: Instant) -> Sequence[Action]:
        return self._gate_does(self._gate.latch_read(halted), now)

    @_event
    def latch_unreadable(self, reason: str, now: Instant) -> Sequence[Action]:
        self._gate.latch_unreadable(reason, now)
        return self._gate_does([], now)

    @_event
    def latch_noted(self, now: Instant) -> Sequence[Action]:
        return self._gate_does(self._gate.latch_noted(now), now)

    def _gate_does(self, actions: Sequence[GateAction], now: Instant) -> Sequence[Action]:
        self.conditions.gate_closed = self._gate.closed
        self._set(_Timer.GATE, self._gate.due)
        return [*self._review(now), *actions, *self._go_on(now)]

    # -- the venue -----------------------------------------------------------------------------------------

    @_event
    def venue_armed(self, high_water: int, capabilities: Capabilities, now: Instant) -> Sequence[Action]:
        if high_water > self.term:
            return [StepDown(f"venue: it has seen token {high_water}")]
        self.desk.caps = capabilities
        self.desk.armed = self._venue_tried = True
        # Between arming and the stream's first sign nothing is known to be wrong, and what it will tell is not lost: it
        # resumes where the book ends. Unfilled orders count in full meanwhile, so no limit rests on it.
        self.conditions.venue_down = ""
        caught_up = self._stages.stage not in (Stage.CATCHING_UP, Stage.ARMING)
        return [*self._review(now), *(self._open_stream(now) if caught_up else ()), *self._go_on(now)]

    @_event
    def venue_failed(self, reason: str, now: Instant) -> Sequence[Action]:
        self.conditions.venue_down = reason
        self._venue_tried = True
        self._set(_Timer.VENUE, Instant(now + ns(VENUE_RETRY_S)))
        return [*self._review(now), *self._go_on(now)]

    @_event
    def venue_refused(self, reason: str) -> Sequence[Action]:
        """It has seen a higher token."""
        return [StepDown(f"venue: {reason}")]

    def _open_stream(self, now: Instant) -> Sequence[Action]:
        """Once the venue is armed and the book has caught up: only then is it known which orders are ours, which fills
        the book has, and where to resume."""
        if not self.desk.armed:
            return []
        self._set(_Timer.STREAM, Instant(now + ns(STREAM_WAIT_S)))
        return [OpenStream(self.book.venue_event_seq)]

    @_event
    def stream_said(self, event: VenueEvent, capabilities: Capabilities, now: Instant) -> Sequence[Action]:
        """capabilities: the venue's, as of now."""
        match event:
            case StreamUp():
                if capabilities != self.desk.caps:  # what is in flight was sent under other rules
                    return [StepDown("venue: its capabilities have changed")]
                self._set(_Timer.STREAM, None)
                self.conditions.venue_down = ""
                return self._review(now)
            case StreamDown(reason):
                self.conditions.venue_down = f"private stream down: {reason}"
                return self._review(now)
            case _:
                self.desk.venue_said(event)
                return self._go_on(now)

    def _keep_deadman(self, now: Instant) -> Sequence[Action]:
        """Refreshed by the leader alone, and never disarmed by one that is demoted: a late refresh after a disarm
        would arm it again with nobody behind it."""
        ttl_s = self.rules.deadman_ttl_s
        if not ttl_s:
            return []
        if self._permit is not None and self.still_allowed(self._permit, now):
            return [RefreshDeadman(ttl_s)]
        self._set(_Timer.DEADMAN, Instant(now + ns(ttl_s / 4)))
        return []

    @_event
    def deadman_answered(self, failure: str, now: Instant) -> Sequence[Action]:
        """failure: empty if it was refreshed."""
        self._set(_Timer.DEADMAN, Instant(now + ns(self.rules.deadman_ttl_s / 4)))
        return [Note("deadman_not_refreshed", {"reason": failure})] if failure else []

    # -- reconcile: right after the takeover, then every few seconds -----------------------------------------

    @_event
    def snapshot_taken(self, snapshot: VenueSnapshot, now: Instant) -> Sequence[Action]:
        before = self.reconciler.mismatches
        found = self.reconciler.compare(snapshot)
        for fill in found.fills:
            self.desk.venue_said(fill)
        for order in found.placed:
            self.desk.found_open(order)
        if (fact := self.reconciler.to_journal(now)) is not None:
            self._append(fact)
        self._set(_Timer.RECONCILE, Instant(now + ns(self.rules.reconcile_interval_s)))
        out: list[Action] = [LookUp(index, coid, self.desk.armed) for index, coid in found.look_up]
        if found.mismatches != before:
            out.append(Note("reconcile_mismatch", {"mismatches": list(found.mismatches)}))
        return out

    @_event
    def snapshot_failed(self, reason: str, now: Instant) -> Sequence[Action]:
        self._set(_Timer.RECONCILE, Instant(now + ns(self.rules.reconcile_interval_s)))
        return [Note("reconcile_failed", {"reason": reason})]


_LAYERS = {"no_permit": "permit", "unprotected": "replication", "halted": "gate"}
"""The fence that speaks in a NotSent of `release`; the latch is the gate's, wherever it was heard of."""
