"""The strategy interface: what a user writes.

A strategy is told what happened and answers with what it wants; it has no other side effect. It runs on the
leader, where its wishes become orders, and in *shadow* on every standby, where they are counted and compared but
never sent. So it must decide from what it is told: no wall clock, no random numbers but `ctx.now()` and
`ctx.rng()`, no calls to the world. Named in the config by dotted path: `strategy.path = "mybot.main:MyStrategy"`.

A callback that raises stops new orders and is reported; one that blocks is a hang, and the keeper kills it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from node.feeds.base import MarketEvent
from node.types import ClientOrderId, DecisionId, Instrument, OrderSpec, Side


@dataclass(frozen=True, slots=True)
class Place:
    """Place this order.

    decision_id: names the decision, so that it is executed at most once in the cluster's life: a second one with
    the same id is refused, also after a failover. Make it from what led to the decision (a feed sequence
    number, a signal's name and bar), never from a counter of this process. None: made from the event at hand.
    """

    spec: OrderSpec
    decision_id: DecisionId | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    client_order_id: ClientOrderId
    reason: str = ""


Wish = Place | Cancel


class Role(Enum):
    """active: wishes become orders. shadow: they are compared with the leader's. blocked: leading, no new orders."""

    ACTIVE = "active"
    SHADOW = "shadow"
    BLOCKED = "blocked"


class OrderState(Enum):
    PENDING = "pending"  # decided, the venue has not answered
    UNKNOWN = "unknown"  # sent, no answer; counts as exposure
    OPEN = "open"
    CLOSED = "closed"  # filled, cancelled, expired, refused or never sent


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order of ours as the book knows it."""

    client_order_id: ClientOrderId
    decision_id: DecisionId
    spec: OrderSpec
    state: OrderState
    filled_lots: int
    cancel_requested: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FillView:
    client_order_id: ClientOrderId
    symbol: str
    side: Side
    qty_lots: int
    price_ticks: int
    trade_id: str


class Context(Protocol):
    """What a strategy may ask. Reads of our own replicated state, never of the venue."""

    def now(self) -> int:
        """Nanoseconds that only rise; the same for all callbacks of one event."""

    def rng(self, seq: int) -> random.Random:
        """A generator that gives the same numbers on every node for the same `seq`."""

    def instrument(self, symbol: str) -> Instrument: ...

    def position(self, symbol: str) -> int:
        """Net lots from fills."""

    def open_orders(self, symbol: str) -> list[OrderView]:
        """Orders that are pending, unknown or open, oldest first."""

    def set_timer(self, timer_id: str, after_s: float) -> None:
        """Call on_timer(timer_id) once, after at least `after_s`. The same id again replaces the first."""


class Strategy:
    """Base class with do-nothing callbacks. Each may return (or yield) wishes; None is no wish."""

    version: int = 1
    """Of `snapshot()`'s format; a snapshot of another version is handed to `restore` with its number."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: the `[strategy.config]` table. Raise ValueError, naming key and value, for what is wrong."""

    def on_start(self, ctx: Context) -> Iterable[Wish] | None:
        """Once per process, after `restore`, before the first market event."""

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None: ...

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None: ...

    def on_fill(self, ctx: Context, fill: FillView) -> Iterable[Wish] | None: ...

    def on_timer(self, ctx: Context, timer_id: str) -> Iterable[Wish] | None: ...

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        """On ACTIVE, wishes are welcome at once: this is where a new leader's first order comes from."""

    def snapshot(self) -> bytes:
        """Everything `restore` needs; at most 1 MiB. Replicated now and then, and on switchover."""
        return b""

    def restore(self, state: bytes, version: int) -> None: ...

    def fingerprint(self) -> str:
        """Short text that is equal on two nodes whose strategies would decide alike; compared and shown."""
        return ""
