"""Market data as the strategy sees it: events, and the health of the line they come on.

A feed that dies silently is the commonest way for an unattended bot to lose money, so health is measured here,
not guessed: age of the last message, gaps, duplicates, reorders. Unknown is never healthy. Pure types.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Trade:
    """A public trade. `seq` rises by one per symbol. buyer_is_maker: the aggressor sold."""

    symbol: str
    seq: int
    price_ticks: int
    qty_lots: int
    buyer_is_maker: bool
    venue_at_ms: int
    received_at: int  # Instant


@dataclass(frozen=True, slots=True)
class Quote:
    """Top of book. `seq` only rises. Sizes may be 0."""

    symbol: str
    seq: int
    bid_ticks: int
    bid_lots: int
    ask_ticks: int
    ask_lots: int
    received_at: int  # Instant

    @property
    def mid_half_ticks(self) -> int:
        """Twice the mid price in ticks, so that it stays an integer."""
        return self.bid_ticks + self.ask_ticks


@dataclass(frozen=True, slots=True)
class DepthUpdate:
    """Changed levels: (price_ticks, qty_lots), 0 lots removes. `first_seq..last_seq` covers what it changes."""

    symbol: str
    first_seq: int
    last_seq: int
    bids: tuple[tuple[int, int], ...]
    asks: tuple[tuple[int, int], ...]
    venue_at_ms: int
    received_at: int  # Instant


MarketEvent = Trade | Quote | DepthUpdate


class FeedState(Enum):
    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"  # connected, but nothing for longer than stale_after
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class FeedHealth:
    """age_s: since the last market message; None: there never was one. Counters only rise."""

    state: FeedState
    age_s: float | None
    messages: int
    gaps: int
    duplicates: int
    reordered: int
    malformed: int
    reconnects: int
    reason: str = ""

    @property
    def healthy(self) -> bool:
        return self.state is FeedState.LIVE


class Feed(Protocol):
    def events(self) -> AsyncIterator[MarketEvent]:
        """Market events in order, without end: reconnects by itself. Repeated and late ones are dropped and counted."""

    def health(self, now: int) -> FeedHealth:
        """`now`: Instant."""

    async def close(self) -> None: ...
