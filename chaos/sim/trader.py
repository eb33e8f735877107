"""One leadership of the simulation, carried out: what `node/trader.py` does with its actions, on stand-ins.

The way of an order out of the process is three steps, so that it may be paused between any two of them: "Send" (the
permit is read, `release` asked), "write" (the adapter asks `still_allowed` once more), "bytes" (they leave). What a
pause between the last two lets through, only the venue can stop (DESIGN 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chaos.sim.engine import MS
from chaos.sim.redis import Stale, Unarmed
from cluster.core.ids import LogIndex, NodeId, Term
from cluster.core.log import Entry
from node import actions as act
from node.codec import Evidence, Fact, Outcome, TermStarted
from node.leadership import Leadership, TradingRules
from node.orders import Claim, Declined, Finished, LookUp, Send, SendCancel, StepDown
from node.paper_venue.lines import Line
from node.reconcile import VenueSnapshot
from node.risk import ORDER_KINDS, InstrumentLimits, RateLimit, RiskLimits
from node.strategy import OrderState, Wish
from node.types import NotSent, StreamDown, StreamUp, Unknown, WireOrder, client_order_id
from node.venues.base import Unavailable

if TYPE_CHECKING:
    from chaos.sim.worker import SimWorker

SYMBOL = "BTCUSDT"
LIMITS = RiskLimits(
    {SYMBOL: InstrumentLimits(100, 10**9, 400, 1000, frozenset(ORDER_KINDS))}, RateLimit(1000, 1000 * MS)
)
RECONCILE_S = 0.2
DEADMAN_S = 0.4
STREAM_RETRY = 30 * MS


class SimTrader:
    """A Leadership's `log` as well: node.stages.TermLog."""

    def __init__(self, worker: SimWorker, term: Term) -> None:
        self.worker, self.world, self.host, self.engine = worker, worker.world, worker.host, worker.engine
        self.term = term
        self.compared = 0  # snapshots of the venue that were compared with the book
        self._wake_at = 0
        self._stream_up = False
        self._subscribed = False
        self._cursor = 0  # of the private stream: all up to here was told
        self._flowing = 0  # up to here it was sent on the present connection
        self._early: set[int] = set()
        self._connection = 0
        profile = self.world.venue.profile
        self.leadership = Leadership(
            term=term,
            rules=TradingRules(
                order_tag=self.world.tag,
                limits=LIMITS,
                validity_s=self.host.validity / 1e9,
                reconcile_interval_s=RECONCILE_S,
                deadman_ttl_s=DEADMAN_S if profile.deadman else 0,
            ),
            book=worker.book,
            log=self,
            clock=worker.clock,
            conditions=worker.conditions,
            capabilities=profile.capabilities,
            append=worker.append,
            reference=worker.reference,
        )

    # -- node.stages.TermLog ---------------------------------------------------------------------------------------

    @property
    def commit_index(self) -> int:
        log = self.worker.log
        return log.commit_index if log is not None else 0

    @property
    def last_index(self) -> int:
        return self.worker.journal.last.index

    def has_all(self, node: NodeId) -> bool:
        log = self.worker.log
        return log is not None and any(f.node == node and f.durable >= self.last_index for f in log.followers())

    # -- in and out ------------------------------------------------------------------------------------------------

    def begin(self, started: TermStarted) -> None:
        now = self.worker.now
        self.tell(lambda: self.leadership.begin(started, now, now))

    def granted(self) -> None:
        self.tell(lambda: self.leadership.granted(self.host.page, self.worker.now))
        self.world.cover["took over with doubt"] += self.leadership.desk.unsettled > 0

    def drain(self, successor: NodeId | None) -> None:
        self.tell(lambda: self.leadership.drain(successor, self.worker.now))

    def review(self) -> None:
        self.tell(lambda: self.leadership.review(self.host.page, self.worker.now))

    def applied(self, entry: Entry, fact: Fact) -> None:
        if isinstance(fact, Outcome):
            self._check_evidence(fact)
        self.tell(lambda: self.leadership.applied(entry, fact, self.worker.now))

    def _check_evidence(self, fact: Outcome) -> None:
        profile, index = self.world.venue.profile, LogIndex(fact.intent_index)
        self.world.cover[f"{fact.result.name} by {fact.evidence.name}"] += 1
        if fact.evidence is Evidence.ABSENT_EXPIRED and not profile.expiry:
            what = "absence proved by time on a venue without expiry"
        elif fact.evidence is Evidence.ABSENT_FENCED and not profile.token:
            what = "absence proved by a fence on a venue without tokens"
        else:
            return
        coid = client_order_id(self.world.tag, self.worker.journal.term_at(index) or self.term, index)
        self.world.judge.blame("S10", f"order {coid}, entry {index} of the log: {what}")

    def wishes(self, named: list[tuple[str, Wish]]) -> None:
        self.tell(lambda: self.leadership.wishes(named, 0, self.worker.now, self.host.wall))

    def latch_answered(self, halted: str | None, unreadable: str) -> None:
        if unreadable:
            self.tell(lambda: self.leadership.latch_unreadable(unreadable, self.worker.now))
        else:
            self.tell(lambda: self.leadership.latch_read(halted, self.worker.now))

    def stop(self) -> None:
        self.leadership.stop()
        self._stream_up = self._subscribed = False

    def tell(self, event: Callable[[], Sequence[act.Action]]) -> None:
        """Tell the machine what happened, and carry out what it answers, one step at a time."""
        try:
            actions = event()
        except Exception as e:  # noqa: BLE001 - any error at all is a finding, kept with the seed
            self.world.judge.raised(self.host.name, e, f"an event of term {self.term}")
            return
        then = self.worker.process.then
        for action in actions:
            then(type(action).__name__, self._carry_out, action)
        self._arm_timer()

    def _arm_timer(self) -> None:
        wake = self.leadership.wake_at()
        if wake is None or self.leadership.stopped:
            return
        at = max(self.host.clock.when(wake), self.engine.now + MS)
        if self._wake_at <= self.engine.now or at < self._wake_at:
            self._wake_at = at
            self.engine.at(at, self.worker.process.deliver, "timer", self._tick, at)

    def _tick(self, at: int) -> None:
        if at == self._wake_at:
            self.tell(lambda: self.leadership.tick(self.host.page, self.worker.now))

    # -- carrying out ----------------------------------------------------------------------------------------------

    def _carry_out(self, action: act.Action) -> None:
        if self.leadership.stopped and not isinstance(action, StepDown | act.ReportSettled):
            return
        match action:
            case Claim(index, coid):
                self._claim(index, coid)
            case Send():
                self._send(action)
            case SendCancel(index, coid):
                self._cancel(index, coid)
            case LookUp():
                self._look_up(action)
            case Finished(_, result):
                self.world.cover[type(result).__name__] += 1
            case Declined(code):
                self.world.cover[f"declined {code}"] += 1
            case act.FenceRefused(layer):
                self.world.cover[f"stopped by {layer}"] += 1
            case act.ArmGate():
                gate, holder = self.world.gate, self.worker.holder
                self._ask_gate("arm", lambda: gate.arm(self.term, holder), self.leadership.gate_armed)
            case act.LookAtGate():
                self._ask_gate("look", self.world.gate.state, self.leadership.gate_seen)
            case act.NoteLatch(halted):
                self._ask_gate(
                    "note the latch",
                    lambda: self.world.gate.note_latch(self.term, halted),
                    lambda _, now: self.leadership.latch_noted(now),
                )
            case act.ArmVenue():
                self._arm_venue()
            case act.OpenStream(after_seq):
                self._cursor, self._subscribed = after_seq, True
                self._connect_stream()
            case act.TakeSnapshot(after_seq):
                self._take_snapshot(after_seq)
            case act.RefreshDeadman(ttl_s):
                self._refresh_deadman(ttl_s)
            case act.Note() | act.FirstOrder():
                pass
            case _:
                self.worker.report(self.term, action)

    def _allowed(self) -> bool:
        return self.leadership.still_allowed(self.host.page, self.worker.now)

    # -- orders ----------------------------------------------------------------------------------------------------

    def _claim(self, index: int, coid: str) -> None:
        def answered(found: Any) -> None:
            answer = "no answer" if found is None else found[0]
            self.tell(lambda: self.leadership.claimed(index, answer, self.worker.now))

        self.worker.call_gate("claim", lambda: self.world.gate.claim(self.term, [coid]), answered, coid)

    def _send(self, send: Send) -> None:
        order = self.leadership.release(send, self.host.page, self.worker.now)
        if isinstance(order, WireOrder):
            self.worker.process.next("write", self._write, send.index, order)
        else:
            self.tell(lambda: order)

    def _write(self, index: int, order: WireOrder) -> None:
        if self._allowed():
            self.worker.process.next("bytes", self._bytes, index, order)
        else:
            why = NotSent("permit_ended", "the permit ended in the queue")
            self.tell(lambda: self.leadership.submitted(index, why, self.worker.now))

    def _bytes(self, index: int, order: WireOrder) -> None:
        world, coid = self.world, order.client_order_id
        if coid in world.sent:
            world.judge.blame("S1", f"{self.host.name} sends {coid} a second time")
        world.sent.add(coid)
        world.records.left(self.host, order.token, "new", coid)

        def answered(result: Any) -> None:
            said = Unknown("no answer", order.expires_at_ns) if result is None else result
            self.tell(lambda: self.leadership.submitted(index, said, self.worker.now))

        world.send_order(self.worker, order, answered)

    def _cancel(self, index: int, coid: str) -> None:
        if not self._allowed():
            return
        self.world.records.left(self.host, self.term, "cancel", coid)

        def answered(result: Any) -> None:
            said = Unknown("no answer") if result is None else result
            self.tell(lambda: self.leadership.cancel_answered(index, said, self.worker.now))

        venue, sender = self.world.venue, self.worker.sender
        self.worker.call_venue("cancel", lambda: venue.cancel(sender, self.term, coid), answered, coid)

    def _look_up(self, ask: LookUp) -> None:
        now = self.worker.now
        asked_at = self.worker.clock.earliest(now, now)

        def answered(found: Any) -> None:
            result = Unavailable("no answer") if found is None else found
            self.tell(lambda: self.leadership.looked_up(ask, result, asked_at, self.worker.now))

        coid, venue = ask.client_order_id, self.world.venue
        self.worker.call_venue("look up", lambda: venue.look_up(self.host.name, coid), answered, coid)

    # -- the gate --------------------------------------------------------------------------------------------------

    def _ask_gate(
        self, what: str, ask: Callable[[], Any], answered: Callable[[Any, Any], Sequence[act.Action]]
    ) -> None:
        def heard(found: Any) -> None:
            now = self.worker.now
            if found is None:
                self.tell(lambda: self.leadership.gate_failed("no answer", now))
            elif isinstance(found, Stale):
                self.tell(lambda: self.leadership.gate_refused(f"{found.high} is armed for {found.holder}"))
            elif isinstance(found, Unarmed):
                self.tell(lambda: self.leadership.gate_failed("it is not armed any more", now))
            else:
                self.tell(lambda: answered(found, now))

        self.worker.call_gate(what, ask, heard)

    # -- the venue -------------------------------------------------------------------------------------------------

    def _arm_venue(self) -> None:
        venue = self.world.venue
        if venue.profile.token:
            self.world.records.left(self.host, self.term, "arm")

        def answered(high: int | None) -> None:
            now = self.worker.now
            if high is None:
                self.tell(lambda: self.leadership.venue_failed("no answer", now))
            else:
                self.tell(lambda: self.leadership.venue_armed(high, venue.profile.capabilities, now))

        self.worker.call_venue("arm", lambda: venue.arm(self.worker.sender, self.term), answered)

    def _take_snapshot(self, after_seq: int) -> None:
        """Three questions, one after the other, while orders move."""
        venue, call = self.world.venue, self.worker.call_venue

        def failed() -> None:
            self.tell(lambda: self.leadership.snapshot_failed("no answer", self.worker.now))

        def orders_told(orders: Any) -> None:
            if orders is None:
                failed()
            else:
                call("fills?", lambda: venue.fills_after(after_seq), lambda fills: fills_told(orders, fills))

        def fills_told(orders: Any, fills: Any) -> None:
            if fills is None:
                failed()
            else:
                call("positions?", venue.positions, lambda positions: positions_told(orders, fills, positions))

        def positions_told(orders: Any, fills: Any, positions: Any) -> None:
            if positions is None:
                failed()
                return
            self.compared += 1
            snapshot = VenueSnapshot(orders, fills, positions)
            self.tell(lambda: self.leadership.snapshot_taken(snapshot, self.worker.now))

        call("open orders?", venue.open_orders, orders_told)

    def _refresh_deadman(self, ttl_s: float) -> None:
        def answered(fresh: bool | None) -> None:
            now = self.worker.now
            if fresh is False:
                self.tell(lambda: self.leadership.venue_refused("it has seen a higher token"))
            else:
                why = "no answer" if fresh is None else ""
                self.tell(lambda: self.leadership.deadman_answered(why, now))

        if not self._allowed():
            self.tell(lambda: self.leadership.deadman_answered("the permit has ended", self.worker.now))
            return
        self.world.records.left(self.host, self.term, "keep_alive")
        venue, ttl_ms = self.world.venue, round(ttl_s * 1000)
        self.worker.call_venue("keep alive", lambda: venue.keep_alive(self.worker.sender, self.term, ttl_ms), answered)

    # -- the private stream ----------------------------------------------------------------------------------------

    def _connect_stream(self) -> None:
        if not self._subscribed or self.leadership.stopped:
            return
        if self.engine.now < self.world.venue_down_until or self.host.wires.stream.is_cut:
            self.worker.later(STREAM_RETRY, self._connect_stream)
            return
        self._connection += 1
        self._stream_up, self._flowing = True, self._cursor
        if self.engine.now < self.world.repeat_until:  # what is behind us is told again
            self._flowing = max(0, self._flowing - 1 - int(self.engine.network.random() * 5))
            self.world.cover["stream repeats"] += 1
        self.host.wires.stream.send(self._deliver, self._connection, 0, StreamUp(self._flowing + 1))
        self._pump()

    def stream_has(self, line: Line) -> None:
        self._pump()

    def _pump(self) -> None:
        if not self._stream_up:
            return
        world, events = self.world, self.world.venue.events
        while self._flowing < len(events):
            line = events[self._flowing]
            self._flowing += 1
            self._pass_on(line)
            if self.engine.now < world.repeat_until and self.engine.network.random() < 0.5:
                self._pass_on(line)

    def _pass_on(self, line: Line) -> None:
        event = line.fill() if line.kind == "fill" else line.order_event()
        if self.engine.now < self.world.reorder_until:
            delay = int(self.engine.network.random() * 6 * MS)
            self.engine.after(delay, self._deliver, self._connection, line.event_seq or 0, event)
        else:
            self.host.wires.stream.send(self._deliver, self._connection, line.event_seq or 0, event)

    def _deliver(self, connection: int, seq: int, event: Any) -> None:
        if connection == self._connection and self._stream_up:
            self.worker.process.deliver("stream", self._told, connection, event, seq)

    def _told(self, connection: int, event: Any, seq: int) -> None:
        if connection != self._connection or not self._stream_up:
            return  # on a connection that is gone
        if seq:
            self._early.add(seq)
            while self._cursor + 1 in self._early:
                self._cursor += 1
                self._early.discard(self._cursor)
        self.tell(lambda: self.leadership.stream_said(event, self.world.venue.profile.capabilities, self.worker.now))

    def break_stream(self) -> None:
        """The connection is gone; it comes back as soon as it can."""
        if self._stream_up:
            self._stream_up = False
            self.worker.process.deliver("stream", self._lost_stream)

    def _lost_stream(self) -> None:
        if not self.leadership.stopped:
            self._early.clear()
            self.world.cover["stream resumed"] += 1
            self.tell(
                lambda: self.leadership.stream_said(
                    StreamDown("the connection broke"), self.world.venue.profile.capabilities, self.worker.now
                )
            )
            self.worker.later(STREAM_RETRY, self._connect_stream)

    # -- at rest ---------------------------------------------------------------------------------------------------

    def unrest(self) -> list[str]:
        desk, book, found = self.leadership.desk, self.worker.book, []
        if self.leadership.stopped or not self.host.page.covers(self.host.now):
            return [f"{self.host.name} has no permit"]
        if desk.in_flight:
            found.append(f"{desk.in_flight} orders are in flight")
        if desk.unsettled and self.world.plan.venue != "plain":
            found.append(f"{desk.unsettled} outcomes are unknown")
        if self._cursor < len(self.world.venue.events):
            found.append(f"the private stream is at {self._cursor} of {len(self.world.venue.events)}")
        found += [
            f"{o.client_order_id} rests although its cancel was asked for"
            for o in book.cancels_requested()
            if o.state is OrderState.OPEN
        ]
        if self.compared < self.world.compared_min:
            found.append("the venue was not compared with the book since")
        found += [f"reconcile: {m}" for m in self.leadership.reconciler.mismatches]
        return found
