"""Safeguards switched off one at a time, so that there are failures to shrink and to draw."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from chaos.sim.plan import Plan, draw_plan
from chaos.sim.world import World
from cluster.core import events as ev
from cluster.core.election import Election
from cluster.core.ids import Instant
from cluster.core.lease import LeaseRules
from node.orders import Claim, Flight, OrderDesk
from node.paper_venue.engine import Engine as Exchange
from node.types import SubmitResult, Unknown, client_order_id


def venue_ignores_tokens_and_expiry() -> Any:
    """S2, and by any order that was frozen on its way."""
    return patch.multiple(Exchange, _stale=lambda *_: None, _expired=lambda *_: None)


def unknown_is_sent_again() -> Any:
    """S1: silence is taken for a no, and the decision is sent once more under a fresh id."""
    finish = OrderDesk._finish

    def or_again(desk: OrderDesk, flight: Flight, result: SubmitResult, now: Instant) -> Any:
        fresh = client_order_id(desk.tag, desk.term, flight.index + 10_000)
        if not isinstance(result, Unknown) or flight.client_order_id == fresh:
            return finish(desk, flight, result, now)
        flight.client_order_id, flight.decided_at, flight.claimed_at, flight.sent_at = fresh, now, 0, 0
        return [Claim(flight.index, fresh)]

    return patch.object(OrderDesk, "_finish", or_again)


def lease_counts_from_the_answer() -> Any:
    """S3: a permit that outlives the lease by as long as the answer took."""
    handle = Election.handle
    heard: list[Instant] = []  # by the election that is handling something

    def hearing(election: Election, event: ev.Event, now: Instant) -> Any:
        heard.append(now)
        try:
            return handle(election, event, now)
        finally:
            heard.pop()

    def from_now(rules: LeaseRules, sent_at: Instant) -> Instant:
        return Instant((heard[-1] if heard else sent_at) + rules.ttl - rules.margin)

    planted = ExitStack()
    planted.enter_context(patch.object(Election, "handle", hearing))
    planted.enter_context(patch.object(LeaseRules, "act_until", from_now))
    return planted


def breaks(plan: Plan, invariant: str) -> bool:
    return invariant in World(plan).run().broken


def first_broken(invariant: str, within: int = 400) -> Plan:
    """The first drawn plan that breaks it, with whatever is planted."""
    return next(plan for plan in map(draw_plan, range(within)) if breaks(plan, invariant))
