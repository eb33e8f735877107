"""What Baton needs of a venue: the adapter's interface and its capabilities as data.

From the capabilities Baton derives, and shows, the double-order class (DESIGN 6). An adapter touches one venue
and decides nothing: it makes exactly one write per call, never retries it, and reports silence as Unknown.
Every adapter passes `tests/contract/venue_contract.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from node.types import (
    ClientOrderId,
    SubmitResult,
    VenueEvent,
    VenueFill,
    VenueOrder,
    WireOrder,
)


class IdUniqueness(Enum):
    FOREVER = "forever"  # a repeat is refused for as long as anyone could send one
    WHILE_OPEN = "while_open"  # a repeat is refused only while the first order rests (Binance spot, Kraken)
    NONE = "none"


class DoubleOrderClass(Enum):
    """What stops the order that was already past our own checks when its sender froze."""

    PROVED = "proved"  # the venue checks tokens
    TIME_BOUNDED = "time-bounded"  # the venue honours an expiry that never exceeds the lease
    BEST_EFFORT = "best effort"  # neither


class DeadmanScope(Enum):
    NONE = "none"
    ACCOUNT = "account"
    TERM = "term"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """token: refuses a fencing token lower than the highest it has seen. expiry: honours expires_at_ns.

    clock_error_ms: how far the venue may be late in honouring an expiry, on top of the measured offset.
    """

    token: bool
    expiry: bool
    id_uniqueness: IdUniqueness
    deadman: DeadmanScope
    clock_error_ms: int = 0

    @property
    def double_order_class(self) -> DoubleOrderClass:
        if self.token:
            return DoubleOrderClass.PROVED
        return DoubleOrderClass.TIME_BOUNDED if self.expiry else DoubleOrderClass.BEST_EFFORT


@dataclass(frozen=True, slots=True)
class TimeSample:
    """One reading of the venue's clock: `venue_unix_ns` was true at some moment between the two local Instants."""

    sent_at: int
    received_at: int
    venue_unix_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    order: VenueOrder


@dataclass(frozen=True, slots=True)
class Absent:
    """The venue does not have it *now*. Proves nothing about a copy still under way; the caller knows more."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    reason: str


LookupResult = Found | Absent | Unavailable


@dataclass(frozen=True, slots=True)
class Armed:
    """The venue now refuses every token below ours. `high_water` is ours, or higher: then we are deposed."""

    high_water: int


class Venue(Protocol):
    """One account at one venue. Every call ends within its timeout and raises nothing but CancelledError,
    `Unreachable` (certainly not asked) and `OutcomeUnknown`; `submit`, `cancel` and `lookup` return those as values.
    `cancel_all` and `keep_alive` also raise `StaleTerm`: the venue has seen a higher token, we are deposed."""

    capabilities: Capabilities

    async def connect(self) -> None:
        """Connect and read the capabilities. Raises Unreachable, and ConfigError when venue and configuration
        disagree about an instrument. Afterwards reconnects by itself."""

    async def close(self) -> None: ...

    @property
    def connected(self) -> bool: ...

    def submit(self, order: WireOrder, still_allowed: Callable[[], bool] | None = None) -> SubmitTicket:
        """Write the order once, now; the answer is awaited on the ticket. Synchronous up to where the order is
        queued for the wire.

        still_allowed: asked by the adapter right before the bytes are handed to the transport, with no await in
        between; False drops the order as NotSent("permit_ended"). An order may wait in that queue (a busy
        transport, a blocked loop), so a permit that was read only before the call would be read too early."""

    async def cancel(self, client_order_id: ClientOrderId, token: int) -> SubmitResult:
        """Ask for a cancel. Accepted means "it will close or has closed"; the private stream tells how."""

    async def cancel_all(self, token: int) -> int:
        """Cancel every resting order of the account; how many."""

    async def arm(self, token: int) -> Armed:
        """Make the venue refuse lower tokens. On a venue without tokens: a no-op that echoes `token`."""

    async def keep_alive(self, token: int, ttl_s: float) -> None:
        """Re-arm the dead-man's switch: resting orders are cancelled unless called again within ttl_s. On a venue
        without one: a no-op."""

    async def lookup(self, client_order_id: ClientOrderId) -> LookupResult: ...

    async def open_orders(self) -> list[VenueOrder]: ...

    async def fills_after(self, event_seq: int, limit: int = 1000) -> list[VenueFill]:
        """Fills with a higher event_seq, in order, at most `limit`."""

    async def positions(self) -> dict[str, int]:
        """Net lots by symbol; symbols at 0 may be missing."""

    async def server_time(self) -> TimeSample: ...

    def events(self, after_seq: int) -> AsyncIterator[VenueEvent]:
        """The private stream, without end: reconnects with back-off, resumes after the last event it yielded.
        Yields StreamUp at each connection and StreamDown at each loss."""


class SubmitTicket(Protocol):
    async def result(self) -> SubmitResult:
        """Await the venue's word, at most the adapter's timeout; then Unknown."""
