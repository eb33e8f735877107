"""One term of one node in the order path's simulation: a real desk, book and reconciler, driven as `node/leadership.py`
and `node/trader.py` do it, in virtual time. Read next: `order_world.py`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from cluster.core.errors import StepDown
from cluster.core.ids import Instant, LogIndex, Term
from cluster.core.log import Entry
from node.book import Book
from node.codec import Evidence, Fact, Fill, Intent, Outcome, TermStarted, decode, encode
from node.orders import Claim, Declined, Finished, LookUp, Send, SendCancel
from node.orders import StepDown as LeaveNow
from node.paper_venue.lines import Line
from node.paper_venue.state import Ask, Sender
from node.reconcile import OVERLAP, Reconciler, VenueSnapshot
from node.risk import ORDER_KINDS, InstrumentLimits, RateLimit, RiskLimits
from node.strategy import OrderState
from node.types import (
    Accepted,
    Instrument,
    NotSent,
    OrderSpec,
    OrderType,
    Refused,
    Side,
    SubmitResult,
    TimeInForce,
    Unknown,
    VenueOrder,
    WireOrder,
)
from node.venues.base import LookupResult, Unavailable

if TYPE_CHECKING:
    from tests.sim.order_world import World

MS = 1_000_000
S = 1_000 * MS
SYMBOL = "BTCUSDT"
INSTRUMENTS = (Instrument(SYMBOL, Decimal("0.01"), Decimal("0.00001")),)
TAG = "sim"
ACCOUNT = "main"
UNIX = 1_700_000_000 * S  # what the venue's clock shows at instant 0
TTL = 800 * MS
TICK = 50 * MS
LIMITS = RiskLimits({SYMBOL: InstrumentLimits(100, 10**9, 400, 1000, frozenset(ORDER_KINDS))}, RateLimit(1000, S))


class Leader:
    """One term of one node, as `node/leadership.py` and `node/trader.py` have it."""

    resume_overlap = OVERLAP

    def __init__(self, world: World, node: str, term: int, entries: list[Entry], commit: int) -> None:
        self.world, self.node, self.term = world, node, term
        self.entries, self.commit = list(entries), commit
        self.facts: dict[int, Fact] = {}
        self.book = Book(TAG, INSTRUMENTS)
        for entry in entries[:commit]:
            self.book.apply(entry)
        self.validity = world.validities[term % 2]
        self.desk = world.desk_type(
            term=term,
            order_tag=TAG,
            book=self.book,
            limits=LIMITS,
            capabilities=world.profile.capabilities,
            validity=self.validity,
            append=self.append,
        )
        self.reconciler = Reconciler(self.book)
        self.mismatches: tuple[str, ...] = ()
        self.steps = 0
        self.steps_max = world.plan.randrange(10, 140)
        self.dead = self.cut_off = self.ending = self.permit = False
        self.until = 0
        self.gate_open = self.venue_armed = self.settling = self.settled_in = False
        self.stream_up = False
        self.got: set[int] = set()  # event_seqs this leader has been told
        self.cursor = 0  # all up to here
        self.flowing = 0  # sent on the present connection
        self._commit_due = 0
        self._sender = Sender(ACCOUNT, node, f"{node}-{term}")

    # -- the log -----------------------------------------------------------------------------------------------

    def append(self, fact: Fact) -> Entry:
        if self.dead:
            raise StepDown("dead")
        kind, body = encode(fact)
        index = LogIndex(len(self.entries) + 1)
        entry = Entry(index, Term(self.term), kind, self.world.venue_at(self.world.now), body, b"")
        self.entries.append(entry)
        self.facts[index] = fact
        if isinstance(fact, Outcome):
            self.world.cover[f"{fact.result.name} by {fact.evidence.name}"] += 1
            if fact.evidence is Evidence.ABSENT_EXPIRED and not self.world.profile.expiry:
                self.world.wrong(f"{index}: absence proved by time on a venue without expiry")
            if fact.evidence is Evidence.ABSENT_FENCED and not self.world.profile.token:
                self.world.wrong(f"{index}: absence proved by a fence on a venue without tokens")
        if self.world.trace is not None:
            self.world.say(f"{self.node}/{self.term} appends {index}: {fact!r}"[:200])
        wait = self.world.plan.choice((1, 1, 1, 1, 5, 40, 120)) * self.world.plan.randrange(100_000, MS)
        self._commit_due = max(self._commit_due, self.world.now + wait)
        self.world.later(self._commit_due - self.world.now, self.committed, index)
        return entry

    def committed(self, index: int) -> None:
        while not self.dead and not self.cut_off and self.commit < index:
            entry = self.entries[self.commit]
            self.commit += 1
            fact = self.facts.get(entry.index) or _fact(entry)
            self.book.apply(entry)
            self.do(lambda e=entry, f=fact: self.desk.applied(e, f, self.now))  # type: ignore[misc]
            if isinstance(fact, TermStarted) and entry.term == self.term:
                self.world.later(0, self.settle_when_armed, self.now + self.world.call_timeout)

    @property
    def now(self) -> Instant:
        return Instant(self.world.now)

    # -- in ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.world.say(f"{self.node} leads in term {self.term}, {len(self.entries)} entries, {self.commit} committed")
        self.append(TermStarted(self.node, "i"))
        self.arm_gate()
        self.arm_venue()

    def arm_gate(self) -> None:
        if self.dead:
            return
        if self.world.away("gate"):
            self.world.later(100 * MS, self.arm_gate)
        elif not self.world.gate.arm(self.term):
            self.leave("stale at the gate")
        else:
            self.gate_open = True

    def arm_venue(self) -> None:
        def armed(lines: list[Line]) -> None:
            if self.dead:
                return
            if not lines[0].accepted:
                self.leave("stale at the venue")
                return
            self.venue_armed = self.desk.armed = True

        if self.dead:
            return
        if not self.world.profile.token:
            self.venue_armed = self.desk.armed = True
            return
        self.world.call(
            lambda: self.world.venue(lambda m: self.world.engine.arm(self._sender, self.term, m)), armed, self.arm_venue
        )

    def settle_when_armed(self, deadline: int) -> None:
        if self.dead or self.settling:
            return
        if not (self.venue_armed and self.gate_open) and self.now < deadline:
            self.world.later(4 * MS, self.settle_when_armed, deadline)
            return
        self.settling = True
        self.cursor = self.flowing = self.book.venue_event_seq
        self.do(lambda: self.desk.take_over(self.now, self.bound_for_takeover()))
        self.resume_stream()
        self.world.later(0, self.grant_when_settled, self.now + 500 * MS)

    def bound_for_takeover(self) -> int | None:
        return self.world.venue_high()

    def grant_when_settled(self, deadline: int) -> None:
        if self.dead:
            return
        if self.desk.settling and self.now < deadline:
            self.world.later(4 * MS, self.grant_when_settled, deadline)
            return
        self.permit = self.settled_in = True
        self.world.say(f"{self.node}/{self.term} has the permit, {self.desk.unsettled} unsettled")
        self.world.cover["took over with doubt"] += bool(self.desk.unsettled)
        self.world.later(self.world.plan.randrange(50, 1200) * MS, self.world.ends, self)
        self.do(lambda: self.desk.granted(self.now))
        self.tick()
        self.reconcile()
        self.keep_deadman()
        self.wish()

    def leave(self, why: str) -> None:
        self.world.say(f"{self.node}/{self.term} leaves: {why}")
        if self is self.world.leader and not self.ending and not self.dead:
            self.world.wrong(f"the true leader of term {self.term} was sent away: {why}")
        self.dead = True

    @property
    def permitted(self) -> bool:
        return self.permit and not self.dead and (not self.until or self.now < self.until)

    @property
    def act_until(self) -> int:
        return self.until or self.now + TTL

    # -- carrying out --------------------------------------------------------------------------------------------

    def do(self, ask: Callable[[], Any]) -> None:
        if self.dead:
            return
        try:
            actions = ask() or []
        except StepDown:
            return
        for action in actions:
            self.steps += 1
            if self.steps >= self.steps_max:
                self.world.ends(self)
            if self.dead:
                return
            match action:
                case Claim(index, coid):
                    self.claim(index, coid)
                case Send():
                    self.send(action)
                case SendCancel(index, coid):
                    self.cancel(index, coid)
                case LookUp():
                    self.look_up(action)
                case LeaveNow(reason):
                    self.leave(reason)
                case Finished(_, result):
                    self.world.cover[type(result).__name__] += 1

    def claim(self, index: int, coid: str) -> None:
        w = self.world

        def ask() -> None:
            if w.away("gate"):
                self.gate_open = False
                w.later(100 * MS, self.arm_gate)
                answer: Refused | None = Refused("unavailable", "no answer")
            else:
                answer = w.gate.claim(self.term, coid)
                if answer is not None and answer.code == "gate_unarmed":
                    self.gate_open = False
                    w.later(MS, self.arm_gate)
            w.later(w.delay(), self.do, lambda: self.desk.claimed(index, answer, self.now))

        w.later(w.delay(), ask)

    def send(self, send: Send) -> None:
        w, coid = self.world, send.client_order_id
        if coid in w.sent:
            w.wrong(f"{coid} is sent a second time")
        w.sent.add(coid)
        if send.index > self.commit or not isinstance(self.facts.get(send.index), Intent):
            w.wrong(f"{coid} is sent, and its intent is not committed")
        if coid not in w.gate.claims and not w.cover["gate forgot"]:
            w.wrong(f"{coid} is sent, and the gate never granted it")
        if not self.permitted:
            self.do(lambda: self.desk.submitted(send.index, NotSent("no_permit", ""), self.now))
            return
        expires: int | None = None
        if w.profile.expiry:
            expires = w.venue_low(min(self.now + self.validity, self.act_until))
        order = WireOrder(coid, send.decision_id, send.spec, self.term, expires)
        w.call(
            lambda: self.arrive(order),
            lambda result: self.do(lambda: self.desk.submitted(send.index, result, self.now)),
            lambda: self.do(lambda: self.desk.submitted(send.index, Unknown("timeout", expires), self.now)),
            order,
        )

    def arrive(self, order: WireOrder) -> SubmitResult:
        w, s = self.world, order.spec
        if self is not w.leader:
            w.cover["arrived after its leader"] += 1
        ask = Ask(
            order.client_order_id, order.decision_id, s.symbol, s.side, s.type, s.tif, s.post_only, s.qty_lots,
            s.price_ticks, order.expires_at_ns or 0,
        )  # fmt: skip
        return _result(w.venue(lambda m: w.engine.place(self._sender, order.token, ask, m)))

    def cancel(self, index: int, coid: str) -> None:
        w = self.world
        if not self.permitted:
            return
        w.call(
            lambda: _result(w.venue(lambda m: w.engine.cancel(self._sender, self.term, coid, m))),
            lambda result: self.do(lambda: self.desk.cancel_answered(index, result, self.now)),
            lambda: self.do(lambda: self.desk.cancel_answered(index, Unknown("timeout"), self.now)),
        )

    def look_up(self, ask: LookUp) -> None:
        w, asked_at = self.world, self.world.venue_low(self.now)

        def found() -> LookupResult:
            return Unavailable("down") if w.away("lookup") else w.look_up(ask.client_order_id)

        def answered(result: LookupResult) -> None:
            self.do(lambda: self.desk.looked_up(ask, result, asked_at_venue=asked_at, now=self.now))

        w.call(found, answered, lambda: answered(Unavailable("timeout")))

    # -- the private stream ----------------------------------------------------------------------------------------

    def resume_stream(self) -> None:
        if self.dead or not self.settling:
            return
        self.stream_up, self.flowing = True, self.cursor
        if self.world.net.random() < self.world.trouble:  # what is behind us is told again
            self.flowing = max(0, self.flowing - self.world.net.randint(1, 5))
            self.world.cover["stream repeats"] += 1
        self.pump()

    def pump(self) -> None:
        w = self.world
        if self.dead or not self.stream_up:
            return
        if w.away("stream"):
            self.stream_up = False
            w.later(30 * MS, self.try_stream)
            return
        while self.flowing < len(w.events):
            line = w.events[self.flowing]
            self.flowing += 1
            jitter = w.net.randrange(3 * MS) if w.reorders and not w.healed else 0
            w.later(w.stream_lag + jitter, self.told, line)
            if not w.healed and w.net.random() < w.trouble / 4:
                w.later(w.stream_lag + 2 * MS + jitter, self.told, line)

    def try_stream(self) -> None:
        if self.world.away("stream"):
            self.world.later(30 * MS, self.try_stream)
        elif not self.stream_up:
            self.world.cover["stream resumed"] += 1
            self.resume_stream()

    def told(self, line: Line) -> None:
        if self.dead or not self.stream_up:
            return  # on a connection that is gone
        self.got.add(line.event_seq or 0)
        while self.cursor + 1 in self.got:
            self.cursor += 1
            self.got.discard(self.cursor)
        event = line.fill() if line.kind == "fill" else line.order_event()
        self.do(lambda: self.desk.venue_said(event))

    # -- in the background ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        if self.dead:
            return
        high = self.world.venue_high()
        if high is not None:
            self.desk.bound_unknown(high)
        self.do(lambda: self.desk.tick(self.now))
        self.world.later(4 * TICK if self.world.healed else TICK, self.tick)

    def keep_deadman(self) -> None:
        w = self.world
        if self.dead or not w.profile.deadman:
            return
        if self.permitted and not w.away("venue"):
            w.venue(lambda m: w.engine.keep_alive(self._sender, self.term, w.deadman_ttl // MS, m))
        w.later(w.deadman_ttl // (2 if w.healed else 4), self.keep_deadman)

    def reconcile(self) -> None:
        """Three questions, one after the other, while orders move."""
        w = self.world
        if self.dead:
            return
        since = max(0, self.book.venue_event_seq - self.resume_overlap)
        w.later(w.delay(), self._reconcile_fills, w.engine.open_orders(ACCOUNT), since)

    def _reconcile_fills(self, orders: list[VenueOrder], since: int) -> None:
        fills = [n.fill() for n in self.world.events[since:] if n.kind == "fill"]
        self.world.later(self.world.delay(), self._reconciled, orders, fills)

    def _reconciled(self, orders: list[VenueOrder], fills: list[Any]) -> None:
        w = self.world
        if self.dead:
            return
        if not w.away("venue"):
            positions = {s: lots for s, (lots, _) in w.engine.positions(ACCOUNT).items()}
            found = self.reconciler.compare(VenueSnapshot(orders, fills, positions))
            for fill in found.fills:
                self.do(lambda f=fill: self.desk.venue_said(f))  # type: ignore[misc]
            for order in found.placed:
                self.do(lambda o=order: self.desk.found_open(o))  # type: ignore[misc]
            self.do(lambda: [LookUp(index, coid, self.desk.armed) for index, coid in found.look_up])
            self.mismatches = found.mismatches
            w.cover["reconciled"] += 1
        w.later((2000 if w.healed else w.plan.randrange(100, 500)) * MS, self.reconcile)

    # -- what the strategy wants --------------------------------------------------------------------------------------

    def wish(self) -> None:
        w, r = self.world, self.world.wish
        if self.dead or w.healed:
            return
        if self.permit and self.gate_open and self.venue_armed and self.stream_up:
            if r.random() < 0.35:
                self._wish_cancel(r)
            else:
                self._wish_place(r)
        w.later(r.choice((1, 5, 15, 40)) * r.randrange(200_000, MS), self.wish)

    def _wish_cancel(self, r: random.Random) -> None:
        orders = [o for o in self.book.live_orders() if o.state is not OrderState.CLOSED]
        if orders:
            order = r.choice(orders)
            if self.desk.cancel(order.client_order_id, "why not") is None:
                self.world.cover["cancel"] += 1
                self.world.cover["cancel while pending"] += order.state is OrderState.PENDING

    def _wish_place(self, r: random.Random) -> None:
        w, side, lots = self.world, r.choice(tuple(Side)), r.randint(1, 40)
        away = side.sign * r.choice((-40, -20, -8, 0, 6, 20))
        spec = r.choice(
            (
                OrderSpec(SYMBOL, side, lots, type=OrderType.MARKET),
                OrderSpec(SYMBOL, side, lots, w._mid + away, tif=TimeInForce.IOC),
                OrderSpec(SYMBOL, side, lots, w._mid + away),
                OrderSpec(SYMBOL, side, lots, w._mid - side.sign * 20, post_only=True),
            )
        )
        made, actions = self.desk.place(
            spec,
            w.decision(),
            reason="",
            feed_received_at=0,
            reference_half_ticks=2 * w._mid,
            close_only=False,
            now=self.now,
            unix_now=w.venue_at(self.now),
        )
        if isinstance(made, Declined):
            w.cover[f"declined {made.code}"] += 1
        self.do(lambda: actions)


def _result(lines: list[Line]) -> SubmitResult:
    first = lines[0]
    if first.accepted:
        return Accepted(first.venue_order_id or "")
    return Refused(first.reason or "", first.detail or "")


def _fact(entry: Entry) -> Fact:
    return decode(entry.kind, entry.body)


def not_counted_once(book: Book, entries: list[Entry]) -> list[str]:
    """Trades that stand in the log more than once."""
    seen: Counter[str] = Counter(f.trade_id for f in map(_fact, entries) if isinstance(f, Fill))
    return [f"trade {t} stands {n} times in the log" for t, n in seen.items() if n > 1]
