"""M: the mutants of reference/chaos.md 3.4, which every design of this kind has, whatever its code is like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chaos.sim import disk
from chaos.sim.clock import RATE, Clock
from chaos.sim.engine import MS
from chaos.sim.host import Host
from chaos.sim.mutants.patching import Original, Patches, Table
from chaos.sim.operator import Operator
from chaos.sim.redis import GateSpec
from chaos.sim.trader import SimTrader
from chaos.sim.venue import UNIX, VenueSpec
from chaos.sim.worker import SimWorker
from cluster.core import actions as act
from cluster.core import role
from cluster.core.election import Election
from cluster.core.holding import Held
from cluster.core.ids import Instant, LogIndex, Term
from cluster.core.insync import Commitment
from cluster.core.log import Entry, FollowerLog, chain_after
from cluster.leader_log import LeaderLog
from node.book import Book
from node.codec import TermStarted
from node.gate import ClaimResult, GateState, Verdict
from node.host import StrategyHost
from node.leadership import Leadership, Permit
from node.orders import Claim, Flight, OrderDesk, _Pending
from node.paper_venue.engine import Engine as Exchange
from node.strategy import Place, Role, Wish
from node.types import SubmitResult, Unknown, WireOrder, client_order_id

PRODUCT = Table()
_mutant = PRODUCT


# -- the fences --------------------------------------------------------------------------------------------------------


def _venue_ignores_tokens(p: Patches) -> None:
    p.replace(Exchange, "_stale", lambda *_: None)


def _every_claim_is_granted(p: Patches) -> None:
    @p.around(Leadership, "claimed")
    def _(original: Original, self: Leadership, index: int, answer: ClaimResult | str, now: Instant) -> Any:
        if not isinstance(answer, str):
            answer = answer._replace(verdict=Verdict.OK)
        return original(self, index, answer, now)


_mutant("M1", "the venue refuses a token that is lower than the highest it has seen", "S2 S3", venue="token", seed=18)(
    _venue_ignores_tokens
)
# The venue still refuses what is stale, so S2 has nothing to say: an accepted order without a granted claim has (S8),
# and one that was claimed under a halt (S11).
_mutant("M2", "what the gate refuses is not sent", "S2 S8 S11", "gate", seed=3)(_every_claim_is_granted)


@_mutant("M1+M2", "both fences at once", "S2 S3", venue="token", seed=18)
def _no_fence(p: Patches) -> None:
    _venue_ignores_tokens(p)
    _every_claim_is_granted(p)


@_mutant("M15", "no answer from the gate is no permission", "S8", "gate", seed=3)
def _gate_fails_open(p: Patches) -> None:
    @p.around(Leadership, "claimed")
    def _(original: Original, self: Leadership, index: int, answer: ClaimResult | str, now: Instant) -> Any:
        if isinstance(answer, str):
            return self.desk.claimed(index, None, now)
        return original(self, index, answer, now)


# -- the permit, and the clock it is read by ---------------------------------------------------------------------------


# What a stale permit lets through meets a venue that refuses it, by token or by expiry: the bytes that leave too late
# are what is seen (S8).
@_mutant("M3a", "the end of the permit is looked at right before the send", "S2 S8", scenario="E2")
def _permit_has_no_end(p: Patches) -> None:
    @p.around(Leadership, "still_allowed")
    def _(_original: Original, self: Leadership, permit: Permit, _now: Instant) -> bool:
        return not self.stopped and permit.token == self.term


@_mutant("M3b", "deadlines do not hang on the wall clock", "S2 S3 S8", "clock", seed=7)
def _wall_clock(p: Patches) -> None:
    p.replace(Clock, "read", lambda self, true: Instant(self.wall(true)))
    p.replace(Clock, "when", lambda self, local: -(-(local - self.wall_offset) * RATE // self.rate))


# The simulator sees both permits at one instant (S3), which is before either of them does harm.
@_mutant("M4", "a permit is prolonged by a renewal that was confirmed", "S2 S3 S8", scenario="N2b")
def _renewal_need_not_succeed(p: Patches) -> None:
    @p.around(Election, "_renew")
    def _(original: Original, self: Election, held: Held, now: Instant, out: list[act.Action]) -> None:
        original(self, held, now, out)
        if self._renewing is not None:
            held.act_until = self.rules.act_until(now)
            self._step(role.LeaseRenewed(held.term, held.act_until), now, out)


@_mutant("M5", "a worker whose order path hangs is killed", "L2", "process")
def _heartbeat_is_not_watched(p: Patches) -> None:
    @p.around(Election, "_watch_worker")
    def _(original: Original, self: Election, worker: Any, beat_at: Instant | None, now: Instant, out: Any) -> None:
        original(self, worker, beat_at and now, now, out)


@_mutant("M6", "the clock goes on while the host is suspended", "S2 S3 S8", "clock", seed=12)
def _clock_stops_in_suspend(p: Patches) -> None:
    """CLOCK_MONOTONIC; in a process of its own, `cluster.clock.boottime_ns` is what to replace."""

    @p.around(Clock, "read")
    def _(original: Original, self: Clock, true: int) -> Instant:
        return Instant(original(self, true) - self.slept)

    @p.around(Clock, "when")
    def _(original: Original, self: Clock, local: int) -> int:
        return int(original(self, local + self.slept))


@_mutant("M16", "a node that has fenced itself lets its key go", "L2", scenario="D3")
def _renews_while_fenced(p: Patches) -> None:
    p.replace(Election, "_renews", property(lambda self: self.held is not None))
    p.replace(Election, "wake_at", lambda _self: None)  # else it is caught for asking too often, not for what it does


# -- the token ---------------------------------------------------------------------------------------------------------


def _other_tokens(p: Patches, number: Callable[[SimTrader], int]) -> None:
    """Each leadership shows gate and venue a number that it makes itself. Inside, the term is what it was; where the
    token leaves the node is at these two, so it is there that another one stands for it."""
    shown: dict[int, int] = {}

    @p.around(SimTrader, "begin")
    def _(original: Original, self: SimTrader, started: TermStarted) -> None:
        shown[self.term] = number(self)
        original(self, started)

    for name in ("arm", "note_latch", "claim"):

        @p.around(GateSpec, name)
        def _(original: Original, self: GateSpec, token: int, told: Any) -> Any:
            return original(self, shown.get(token, token), told)

    @p.around(GateSpec, "state")
    def _(original: Original, self: GateSpec) -> GateState:
        state: GateState = original(self)
        return state._replace(high_water=max((t for t, n in shown.items() if n == state.high_water), default=0))

    @p.around(VenueSpec, "place")
    def _(original: Original, self: VenueSpec, sender: Any, order: WireOrder) -> Any:
        return original(self, sender, replace(order, token=shown.get(order.token, order.token)))

    @p.around(VenueSpec, "arm")
    def _(original: Original, self: VenueSpec, sender: Any, token: int) -> int:
        high: int = original(self, sender, shown.get(token, token))
        return token if high == shown.get(token, token) else token + 1

    for name in ("cancel", "keep_alive"):

        @p.around(VenueSpec, name)
        def _(original: Original, self: VenueSpec, sender: Any, token: int, told: Any) -> Any:
            return original(self, sender, shown.get(token, token), told)


# A number that etcd never gave, or gave to another node, is S3; a gate at which tokens fall is S9.
@_mutant("M7a", "the token is etcd's, not a counter of the node's own", "S3 S9")
def _token_is_a_counter(p: Patches) -> None:
    counts: dict[str, int] = {}

    def count(trader: SimTrader) -> int:
        name = trader.host.name
        counts[name] = counts.get(name, 0) + 1
        return counts[name]

    _other_tokens(p, count)


@_mutant("M7b", "the token is etcd's, not the time of day", "S3 S9", "clock")
def _token_is_the_time(p: Patches) -> None:
    _other_tokens(p, lambda trader: trader.host.wall // MS)


@_mutant("M8", "the token is etcd's, not what Redis remembers and one more", "S2 S3 S9", "gate")
def _token_from_redis(p: Patches) -> None:
    _other_tokens(p, lambda trader: trader.world.gate.state().high_water + 1)


# -- the journal -------------------------------------------------------------------------------------------------------


@_mutant("M9a", "an entry is committed when the whole in-sync set has it", "S7", seed=4)
def _commits_alone(p: Patches) -> None:
    @p.around(Commitment, "_advance")
    def _(original: Original, self: Commitment) -> Any:
        counted, self._counted = self._counted, []
        try:
            return original(self)
        finally:
            self._counted = counted


@_mutant("M9b", "a follower acknowledges what is on its disk", "S7", scenario="D6", seed=5)
def _acknowledges_before_the_sync(p: Patches) -> None:
    @p.around(FollowerLog, "ack")
    def _(_original: Original, self: FollowerLog) -> tuple[Term, LogIndex] | None:
        return None if self._open is None else (self._open, self._checked)


@_mutant("M9c", "a leader counts what is on its own disk", "S7", "disk", seed=34)
def _counts_before_its_own_sync(p: Patches) -> None:
    @p.around(LeaderLog, "append")
    def _(original: Original, self: LeaderLog, *fact: Any) -> Entry:
        entry: Entry = original(self, *fact)
        self._on_durable(entry.index)
        return entry


@_mutant("M13a", "a journal is verified when it is opened", "S5 S6 S7", scenario="D5", seed=74)
def _opened_unverified(p: Patches) -> None:
    p.replace(disk, "verify", lambda index, chain, _entries: (index, chain))


@_mutant("M13b", "a follower verifies each frame", "S5 S6 S7", scenario="N14")
def _frames_unverified(p: Patches) -> None:
    """What it says of its place is looked at still, or nothing could be written."""

    @p.around(FollowerLog, "_check")
    def _(original: Original, self: FollowerLog, e: Entry) -> None:
        original(self, e._replace(chain=chain_after(self._chain, e.index, e.term, e.kind, e.at, e.body)))


# -- orders and fills --------------------------------------------------------------------------------------------------


@_mutant(
    "M10",
    "what the last leader left open is settled before anything is decided on that side",
    "S1 S10",
    "venue",
    seed=1,
)
def _promoted_without_settling(p: Patches) -> None:
    p.replace(OrderDesk, "take_over", lambda _self, _now, _venue_high: [])
    p.replace(_Pending, "is_blocked", lambda _self, _symbol, _side: False)


@_mutant("M11", "an order without an answer is not sent again under another id", "S1", "venue", seed=4)
def _resends_with_a_fresh_id(p: Patches) -> None:
    @p.around(OrderDesk, "_finish")
    def _(original: Original, self: OrderDesk, flight: Flight, result: SubmitResult, now: Instant) -> Any:
        fresh = client_order_id(self.tag, self.term, flight.index + 10_000)
        if not isinstance(result, Unknown) or flight.client_order_id == fresh:
            return original(self, flight, result, now)
        flight.client_order_id, flight.decided_at, flight.claimed_at, flight.sent_at = fresh, now, 0, 0
        return [Claim(flight.index, fresh)]


class _Forgetful:
    """In the place of `node.book._Window`: remembers nothing."""

    ids: frozenset[str] = frozenset()
    order: tuple[str, ...] = ()

    def add(self, new: str) -> None:
        pass


@_mutant("M12", "a fill counts once, by its trade id", "S5 S6", "venue", seed=1)
def _trade_ids_are_forgotten(p: Patches) -> None:
    @p.around(Book, "__init__")
    def _(original: Original, self: Book, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._trades = _Forgetful()  # type: ignore[assignment]


# -- who may trade at all ----------------------------------------------------------------------------------------------


@_mutant("M14", "a standby's wishes go nowhere", "S3 S4")
def _standby_trades(p: Patches) -> None:
    """It sends what it wishes for with the token of the leader that it follows."""

    @p.around(StrategyHost, "_call")
    def _(original: Original, self: StrategyHost, name: str, received_at: int, call: Callable[[], Any]) -> None:
        wished: list[Wish] = []

        def remembered() -> list[Wish]:
            wished.extend(call() or ())
            return wished

        original(self, name, received_at, remembered)
        if self.role is Role.SHADOW:
            self._on_wishes([(w.decision_id or name, w) for w in wished if isinstance(w, Place)], received_at)

    @p.around(SimWorker, "_wishes")
    def _(original: Original, self: SimWorker, named: Sequence[tuple[str, Wish]], received_at: int) -> None:
        original(self, named, received_at)
        target = self.follower.following.target
        if self.trader is None and target is not None:
            token = target[1]
            for decision_id, wish in named:
                _send_unasked(self, token, decision_id, wish)


def _send_unasked(worker: SimWorker, token: int, decision_id: str, wish: Wish) -> None:
    if not isinstance(wish, Place):
        return
    coid = client_order_id(worker.world.tag, token, worker.journal.last.index + 1)
    expires_at = UNIX + worker.engine.now + worker.host.validity
    order = WireOrder(coid, decision_id, wish.spec, token, expires_at)
    worker.world.records.left(worker.host, token, "new", coid)
    worker.call_venue("place", lambda: worker.world.venue.place(worker.sender, order), lambda _answer: None, coid)


@_mutant("M17", "the kill switch is pressed in etcd and at the gate", "S11", "operator", seed=1)
def _pressed_at_the_leader_alone(p: Patches) -> None:
    """Whoever leads hears of it, and says so; nobody else ever does."""

    @p.around(Operator, "_put")
    def _(_original: Original, self: Operator) -> None:
        self.pressing = False
        host: Host | None = self.world.leading_host()
        if host is not None and host.worker is not None:
            host.worker.conditions.halted = self._wanted or ""
            host.worker._review()
        self._note("halt_confirmed" if self._wanted is not None else "unhalt")
