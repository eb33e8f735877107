"""One account at one venue under two or more leaders in a row, in virtual time, from one seed.

Real: OrderDesk, Book, Reconciler, and the paper exchange's engine. Modelled: the trader that carries out
(`order_leader.py`), the log (committed after a while; the tail of a leader that dies is cut somewhere or adopted), the
gate, the line to the venue, the clocks, and what goes wrong with each.

What is wrong is said at once where it can be seen at once (`World.wrong`), the rest by the judge at the end, once all
faults are healed and everything under way has arrived.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from cluster.core.log import Entry
from node.feeds.base import Quote, Trade
from node.orders import OrderDesk
from node.paper_venue.engine import Engine
from node.paper_venue.lines import Line
from node.paper_venue.profile import parse_profile
from node.paper_venue.state import Moment
from node.types import Refused, WireOrder
from node.venues.base import Absent, Found, LookupResult
from tests.sim.order_leader import ACCOUNT, INSTRUMENTS, MS, SYMBOL, TTL, UNIX, Leader, S


class Wrong(AssertionError):
    """An invariant broke while it ran."""


class Gate:
    """The atomic check: one token armed, each id once. It may be away, and it may forget everything."""

    def __init__(self) -> None:
        self.high = 0
        self.armed = 0
        self.claims: set[str] = set()

    def arm(self, token: int) -> bool:
        if token < self.high:
            return False
        self.high = self.armed = token
        return True

    def claim(self, token: int, coid: str) -> Refused | None:
        if token < self.high:
            return Refused("stale_token", "a higher one is armed")
        if token != self.armed:
            return Refused("gate_unarmed", "")
        if coid in self.claims:
            return Refused("duplicate", "")
        self.claims.add(coid)
        return None

    def forget(self) -> None:
        self.high = self.armed = 0
        self.claims.clear()


class World:
    def __init__(
        self,
        seed: int,
        profile: str,
        *,
        desk: type[OrderDesk] = OrderDesk,
        leader: type[Leader] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed, self.profile = seed, parse_profile(profile)
        self.desk_type, self.leader_type = desk, leader or Leader
        self.trace = trace
        # Streams of their own, so that one more draw in one does not move the others.
        self.net, self.plan, self.wish, self.tape = (random.Random(f"{seed} {profile} {n}") for n in range(4))
        self.now = 10 * S
        self.engine = Engine(self.profile, INSTRUMENTS)
        self.lines: list[Line] = []
        self.events: list[Line] = []  # of the account's private stream; event_seq n is at n - 1
        self.closed: dict[str, Line] = {}
        self.gate = Gate()
        self.cover: Counter[str] = Counter()
        self.sent: set[str] = set()
        self.lurking: dict[str, tuple[int, Callable[[], None]]] = {}
        self.healed = False
        self.leaders: list[Leader] = []
        self._heap: list[tuple[int, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._n = 0
        self._decisions = 0
        self._mid = 1000 * 100
        self._quotes = 0
        validity = self.plan.choice((60, 300, 600)) * MS
        # Nodes may be configured differently, as during a change of the configuration.
        self.validities = (validity, validity * self.plan.choice((1, 1, 2)))
        self.clock_error = self.plan.choice((0, 5, 50, 100)) * MS
        self.lag = self.plan.choice((0.2, 0.4, 2, 20)) * MS
        self.stream_lag = round(self.plan.choice((0.5, 30, 100)) * MS)
        self.call_timeout = self.plan.choice((50, 250)) * MS
        self.trouble = self.plan.choice((0.02, 0.1, 0.3, 0.6))
        self.reorders = self.plan.random() < 0.3
        self.deadman_ttl = self.plan.choice((200, 600)) * MS
        self.to_come = self.plan.randint(1, 3)
        self.outages = {what: self._outages() for what in ("gate", "lookup", "stream", "venue")}
        if self.plan.random() < 0.3:
            self.later(self.plan.randrange(100, 1500) * MS, self.forget_gate)

    # -- time ----------------------------------------------------------------------------------------------

    def later(self, delay: int, what: Callable[..., None], *with_: Any) -> None:
        self._n += 1
        heapq.heappush(self._heap, (self.now + delay, self.plan.random(), self._n, what, with_))

    def run(self) -> None:
        """Live, heal, come to rest."""
        self.market()
        self.watch_deadman()
        self.lead([], 0)
        self.run_until(lambda: not self.to_come and self.leader.settled_in, 30 * S)
        self.run_for(self.plan.randrange(50, 600) * MS)
        self.healed = True
        self.say("healed")
        self.leader.resume_stream()
        self.run_for(12 * S)

    def run_for(self, duration: int) -> None:
        end = self.now + duration
        while self._heap and self._heap[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit: int) -> None:
        end = self.now + limit
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                raise Wrong(f"nobody leads and trades within {limit / S:g} s")
            self._step()

    def _step(self) -> None:
        self.now, _, _, what, with_ = heapq.heappop(self._heap)
        what(*with_)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{(self.now - 10 * S) / MS:10.3f}  {text}")

    def wrong(self, text: str) -> None:
        self.say(f"WRONG: {text}")
        raise Wrong(text)

    def _outages(self) -> list[tuple[int, int]]:
        if self.plan.random() > 3 * self.trouble:
            return []
        starts = [self.now + self.plan.randrange(3000) * MS for _ in range(self.plan.randint(1, 3))]
        return [(start, start + self.plan.randrange(10, 600) * MS) for start in starts]

    def away(self, what: str) -> bool:
        return not self.healed and any(a <= self.now < b for a, b in self.outages[what])

    def forget_gate(self) -> None:
        if not self.healed:
            self.say("gate forgets everything")
            self.gate.forget()
            self.cover["gate forgot"] += 1

    # -- the venue's clock ----------------------------------------------------------------------------------

    def venue_at(self, at: int) -> int:
        return UNIX + at

    def venue_low(self, at: int) -> int:
        return self.venue_at(at) - self.net.randint(0, self.clock_error)

    def venue_high(self) -> int | None:
        if not self.healed and self.net.random() < self.trouble / 4:
            return None
        return self.venue_at(self.now) + self.net.randint(0, self.clock_error)

    # -- the venue -------------------------------------------------------------------------------------------

    def venue(self, decide: Callable[[Moment], list[Line]]) -> list[Line]:
        lines = decide(Moment(self.now, self.venue_at(self.now)))
        for line in lines:
            self.lines.append(line)
            if line.event_seq:
                self.events.append(line)
            if line.kind == "closed":
                self.closed[line.client_order_id or ""] = line
            if self.trace is not None:
                self.say(
                    f"venue: {line.kind} {line.client_order_id or ''} token {line.token} {line.outcome or ''} "
                    f"{line.reason or ''} {line.trade_id or ''}"
                )
        if lines:
            for leader in self.leaders:
                leader.pump()
        return lines

    def market(self) -> None:
        if self.healed:
            return
        r = self.tape
        self._mid += r.choice((-3, -1, 0, 0, 1, 3)) * 10
        self._quotes += 1
        bid, ask = self._mid - 5, self._mid + 5
        if r.random() < 0.6:
            self.venue(lambda m: self.engine.market(Quote(SYMBOL, self._quotes, bid, 60, ask, 60, self.now), m))
        else:
            price = self._mid + r.randint(-30, 30)
            trade = Trade(SYMBOL, self._quotes, price, r.randint(1, 40), True, 0, self.now)
            self.venue(lambda m: self.engine.market(trade, m))
        self.later(r.randrange(8, 50) * MS, self.market)

    def watch_deadman(self) -> None:
        if self.venue(self.engine.tick):
            self.cover["dead-man fired"] += 1
        self.later((300 if self.healed else 40) * MS, self.watch_deadman)

    def look_up(self, coid: str) -> LookupResult:
        order = self.engine.open_order(ACCOUNT, coid)
        if order is not None:
            return Found(order)
        if coid in self.closed:
            return Found(self.closed[coid].order())
        self._pounce(coid)
        return Absent()

    def _pounce(self, coid: str) -> None:
        """Somebody looked and it was not there. Does the order that is held back come now, or after a later look? Its
        last chances are before the venue is armed and before it expires."""
        expires, arrive = self.lurking.get(coid, (0, None))
        if arrive is None:
            return
        last = not self.leader.venue_armed or expires - self.now < 120 * MS
        if last or self.net.random() < 0.3:
            self.cover["arrived right after a look"] += 1
            del self.lurking[coid]
            self.later(100_000, arrive)

    # -- the line to the venue ---------------------------------------------------------------------------------

    def delay(self) -> int:
        return round(self.net.expovariate(1 / (0.4 * MS if self.healed else self.lag))) + 50_000

    def call(
        self,
        ask: Callable[[], Any],
        answered: Callable[[Any], None],
        timed_out: Callable[[], None],
        order: WireOrder | None = None,
    ) -> None:
        """One request: it arrives or not, in time or not; so does its answer. One of the two callbacks is called.
        order: may be held back by the line (or by its frozen sender, after the last check)."""
        done = False

        def answer(what: Any) -> None:
            nonlocal done
            if not done:
                done = True
                answered(what)
            else:
                self.cover["answer after its timeout"] += 1

        def give_up() -> None:
            nonlocal done
            if not done:
                done = True
                timed_out()

        def arrive() -> None:
            what = ask()
            if self.healed or self.net.random() >= self.trouble / 2:
                self.later(self.delay(), answer, what)
            else:
                self.cover["answer lost"] += 1

        if not self.healed and (self.away("venue") or self.net.random() < self.trouble / 4):
            self.cover["request lost"] += 1
        elif order is None or self.healed or self.net.random() >= self.trouble:
            self.later(self.delay(), arrive)
        else:
            self._hold(order, arrive)
        self.later(self.call_timeout, give_up)

    def _hold(self, order: WireOrder, arrive: Callable[[], None]) -> None:
        self.cover["order held"] += 1
        if self.net.random() < 0.7:
            expires = order.expires_at_ns - UNIX if order.expires_at_ns is not None else 0
            self.lurking[order.client_order_id] = (expires, arrive)
        else:
            self.later(self.net.randrange(5, 1500) * MS, arrive)

    # -- leaders ---------------------------------------------------------------------------------------------

    @property
    def leader(self) -> Leader:
        return self.leaders[-1]

    def lead(self, entries: list[Entry], commit: int) -> None:
        term = len(self.leaders) * 10 + 7
        leader = self.leader_type(self, f"n{len(self.leaders) % 2 + 1}", term, entries, commit)
        self.leaders.append(leader)
        leader.start()

    def ends(self, leader: Leader) -> None:
        """`leader` has come to the step at which something happens to it."""
        if leader is not self.leader or not self.to_come or leader.ending:
            return
        leader.ending = True
        kind = self.plan.choice(("crash", "crash", "cut off", "switchover"))
        self.cover[kind] += 1
        self.say(f"{leader.node}/{leader.term}: {kind}")
        if kind == "crash":
            leader.dead = True
            self.succeed(leader, self.plan.choice((1, 1, 3, 20, 200)) * MS)
        elif kind == "cut off":
            leader.cut_off, leader.until = True, self.now + self.plan.randrange(TTL)
            self.succeed(leader, leader.until - self.now + self.plan.randrange(1, 300) * MS)
        else:
            leader.permit = False
            self._drain(leader, self.now + 400 * MS)

    def _drain(self, leader: Leader, deadline: int) -> None:
        if self.now < deadline and not leader.dead and (leader.desk.in_flight or leader.commit < len(leader.entries)):
            self.later(2 * MS, self._drain, leader, deadline)
            return
        leader.dead = True
        self.succeed(leader, self.plan.choice((1, 5)) * MS)

    def succeed(self, leader: Leader, delay: int) -> None:
        self.to_come -= 1
        self.later(delay, self._take_over_from, leader)

    def _take_over_from(self, old: Leader) -> None:
        keep = self.plan.randint(old.commit, len(old.entries))
        self.cover["tail adopted"] += keep > old.commit
        self.cover["tail cut"] += keep < len(old.entries)
        self.say(f"keeps {keep} of {len(old.entries)} entries, {old.commit} were committed")
        self.lead(old.entries[:keep], old.commit)

    def decision(self) -> str:
        """Mostly a new one; now and then one that was taken before, as by a new leader that decides anew."""
        if self._decisions and self.wish.random() < 0.15:
            return f"d{self.wish.randint(max(1, self._decisions - 3), self._decisions)}"
        self._decisions += 1
        return f"d{self._decisions}"
