"""O: mutants of the order path: what is sent, what its answer proves, and what a new leader settles.

Journaling a fill twice is none by itself: the book counts a trade id once, so nothing comes of it. M12 takes away both.
"""

from __future__ import annotations

from typing import Any

from chaos.sim.mutants.patching import Original, Patches, Table
from cluster.core.ids import Instant
from cluster.core.log import Entry
from node.book import Book
from node.codec import Evidence, Fact, Result
from node.orders import Action, Flight, LookUp, OrderDesk, Send, SendCancel
from node.reconcile import Findings, Reconciler, VenueSnapshot
from node.types import NotSent, SubmitResult, Unknown

ORDERS = Table()
_mutant = ORDERS


@_mutant("O1", "a lookup that finds nothing proves nothing while a copy may still arrive", "S6 S10", "venue", seed=7)
def _absence_is_proof(p: Patches) -> None:
    @p.around(OrderDesk, "_conclude_absent")
    def _(_original: Original, self: OrderDesk, asked: LookUp, *_: Any) -> None:
        self._outcome(asked.index, Result.NOT_SENT, Evidence.ABSENT_FENCED, code="absent")


@_mutant("O2", "a timeout is unknown, not no", "S6 S10", "venue", seed=4)
def _unknown_is_no(p: Patches) -> None:
    @p.around(OrderDesk, "submitted")
    def _(original: Original, self: OrderDesk, index: int, result: SubmitResult, now: Instant) -> Any:
        no = NotSent("timeout", result.reason) if isinstance(result, Unknown) else result
        return original(self, index, no, now)


@_mutant("O3", "an order is sent once", "S1", "venue", seed=4)
def _sends_again(p: Patches) -> None:
    @p.around(OrderDesk, "submitted")
    def _(original: Original, self: OrderDesk, index: int, result: SubmitResult, now: Instant) -> Any:
        flight = self._flights.get(index)
        out: list[Action] = original(self, index, result, now)
        if isinstance(result, Unknown) and flight is not None:
            out.append(Send(index, flight.client_order_id, flight.decision_id, flight.spec))
        return out


@_mutant("O4", "nothing is sent before the gate has granted it", "S8", "gate", seed=3)
def _does_not_wait_for_the_gate(p: Patches) -> None:
    @p.around(OrderDesk, "_maybe_send")
    def _(original: Original, self: OrderDesk, flight: Flight, now: Instant) -> Any:
        flight.claimed_at = flight.claimed_at or now
        return original(self, flight, now)


@_mutant("O5", "nothing is sent before its intent is committed", "S1 S7", "replication", seed=1)
def _does_not_wait_for_the_commit(p: Patches) -> None:
    @p.around(OrderDesk, "_maybe_send")
    def _(original: Original, self: OrderDesk, flight: Flight, now: Instant) -> Any:
        flight.committed_at = flight.committed_at or now
        return original(self, flight, now)


# The book refuses a second intent for one decision, so no second order comes of it: the nodes end instead.
@_mutant("O6", "a decision is taken once, by whichever leader", "S1 L2", "feed", seed=6)
def _decides_again(p: Patches) -> None:
    p.replace(Book, "decided", lambda _self, _decision_id: False)


@_mutant("O7", "a new leader asks again for the cancels that were asked for", "L2", "venue", seed=1)
def _forgets_inherited_cancels(p: Patches) -> None:
    p.replace(OrderDesk, "granted", lambda _self, _now: [])


@_mutant("O8", "a cancel of an order in flight waits for its answer", "L2", "venue", seed=25)
def _loses_the_cancel_of_an_order_in_flight(p: Patches) -> None:
    @p.around(OrderDesk, "applied")
    def _(original: Original, self: OrderDesk, entry: Entry, fact: Fact, now: Instant) -> Any:
        before = set(self._cancels)
        out: list[Action] = original(self, entry, fact, now)
        for index in self._cancels.keys() - before:
            if index in self._flights:
                del self._cancels[index]
        return out


@_mutant("O9", "a cancel is asked for until the order has closed", "L2", "venue", seed=116)
def _asks_for_a_cancel_once(p: Patches) -> None:
    @p.around(OrderDesk, "_send_cancel")
    def _(original: Original, self: OrderDesk, index: int, now: Instant) -> Any:
        out: list[Action] = original(self, index, now)
        if any(isinstance(a, SendCancel) for a in out):
            del self._cancels[index]
        return out


@_mutant("O10", "a new leader looks up what the last one left open", "S6 S10 L2", "venue", seed=2)
def _ignores_the_rest(p: Patches) -> None:
    p.replace(OrderDesk, "take_over", lambda _self, _now, _venue_high: [])


@_mutant("O11", "an order of the last leader lives one validity longer than its term", "S6 S10", scenario="V4", seed=3)
def _forgets_that_orders_live(p: Patches) -> None:
    @p.around(OrderDesk, "take_over")
    def _(original: Original, self: OrderDesk, now: Instant, venue_high: int | None) -> Any:
        return original(self, now, None if venue_high is None else venue_high - 2 * self.validity)


@_mutant("O12", "the venue is asked for fills from before the resume point on", "S5 S6 L2", scenario="V3", seed=2)
def _reconciles_from_the_resume_point(p: Patches) -> None:
    p.replace(Reconciler, "fills_after", property(lambda self: self.book.venue_event_seq))


@_mutant("O13", "what differs from the venue is looked up", "S6 L2", scenario="V3", seed=109)
def _reconciles_without_looking(p: Patches) -> None:
    @p.around(Reconciler, "compare")
    def _(original: Original, self: Reconciler, venue: VenueSnapshot) -> Findings:
        found: Findings = original(self, venue)
        return Findings(found.fills, [], found.placed, ())
