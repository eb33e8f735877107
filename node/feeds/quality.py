"""What is wrong with a market data line, told from its sequence numbers and its silence.

Decides, per message, whether it may reach the strategy (each id once, rising) and counts what did not fit: gaps and
how many ids they miss, duplicates, late ones. Decides, per instant, whether the feed is live: connected is not enough,
every stream must have delivered something *new* within its bound. Pure: ids and Instants in, verdicts out. Read next:
`binance.py`, the shell that feeds it.

Rules of Binance's streams (its "WebSocket Market Streams" pages, spot and USD-M):
- trade: `t` rises by exactly one, so a jump says how many trades are missing;
- bookTicker: `u` rises, by any amount, so a missing quote cannot be seen, only a repeated or an overtaken one;
- depth: spot `U` = previous `u` + 1; USD-M `pu` = previous `u`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cluster.core.ids import NS_PER_S
from node.feeds.base import FeedHealth, FeedState

_RANGES_MAX = 64
"""How many gaps are remembered, to tell a late message from a repeated one. An older one reads as a repeat."""

RESTART_AFTER_NS = 2 * NS_PER_S
"""A stream that has shown only ids we already had for this long after a connect has started its numbers anew (another
server, a restored one). Less is an ordinary overlap: the server we reach now is a little behind the one before."""


class Verdict(Enum):
    IN_ORDER = "in order"
    GAP = "gap"  # new, but ids before it are missing
    RESTART = "restart"  # new numbering
    DUPLICATE = "duplicate"  # drop
    LATE = "late"  # drop: a newer one was already delivered


class StreamQuality:
    """One stream. `last` is the highest id delivered, 0 before the first. Counters only rise.

    gaps: breaks of continuity, restarts included. missing: ids inside the gaps, also those that came late after all.
    """

    __slots__ = (
        "_missing_ranges",
        "_unproved_since",
        "duplicates",
        "gaps",
        "last",
        "last_at",
        "last_gap",
        "messages",
        "missing",
        "name",
        "reordered",
        "stale_after_ns",
    )

    def __init__(self, name: str, stale_after_ns: int) -> None:
        self.name = name
        self.stale_after_ns = stale_after_ns
        self.last = 0
        self.last_at: int | None = None  # Instant of the last message that was new
        self.last_gap = 0  # ids missed by the latest gap
        self.messages = self.gaps = self.missing = self.duplicates = self.reordered = 0
        self._missing_ranges: list[tuple[int, int]] = []
        self._unproved_since: int | None = None

    def connected(self, at: int) -> None:
        """A new connection: nothing new has come over it yet."""
        self._unproved_since = at

    def _new(self, last: int, at: int) -> Verdict:
        self.last = last
        self.last_at = at
        self.messages += 1
        self._unproved_since = None
        return Verdict.IN_ORDER

    def _after_gap(self, first_missing: int, last_missing: int, last: int, at: int) -> Verdict:
        """`last_missing < first_missing` is an overlap: continuity is broken, but no id is missing."""
        self._new(last, at)
        self.gaps += 1
        self.last_gap = max(0, last_missing - first_missing + 1)
        if self.last_gap:
            self.missing += self.last_gap
            self._missing_ranges.append((first_missing, last_missing))
            del self._missing_ranges[:-_RANGES_MAX]
        return Verdict.GAP

    def _old(self, first: int, last: int, at: int) -> Verdict:
        """Not newer than what was delivered: late if a gap had counted it as missing, else a repeat."""
        if self._unproved_since is not None and at - self._unproved_since >= RESTART_AFTER_NS:
            self._missing_ranges.clear()
            self._after_gap(0, -1, last, at)
            return Verdict.RESTART
        self.messages += 1
        for n, (lo, hi) in enumerate(self._missing_ranges):
            if lo <= first and last <= hi:
                parts = [(lo, first - 1), (last + 1, hi)]
                self._missing_ranges[n : n + 1] = [(a, b) for a, b in parts if a <= b]
                self.reordered += 1
                return Verdict.LATE
        self.duplicates += 1
        return Verdict.DUPLICATE

    def age_ns(self, now: int) -> int | None:
        return None if self.last_at is None else max(0, now - self.last_at)


class TradeQuality(StreamQuality):
    __slots__ = ()

    def see(self, seq: int, at: int) -> Verdict:
        last = self.last
        if seq == last + 1 or last == 0:
            return self._new(seq, at)
        if seq > last:
            return self._after_gap(last + 1, seq - 1, seq, at)
        return self._old(seq, seq, at)


class QuoteQuality(StreamQuality):
    __slots__ = ()

    def see(self, seq: int, at: int) -> Verdict:
        if seq > self.last:
            return self._new(seq, at)
        if seq < self.last and self._unproved_since is None:
            # Within one connection a lower id was overtaken. Just after a connect it may as well be a repeat.
            self.messages += 1
            self.reordered += 1
            return Verdict.LATE
        return self._old(seq, seq, at)


class DepthQuality(StreamQuality):
    __slots__ = ()

    def see(self, first: int, last: int, previous: int | None, at: int) -> Verdict:
        """previous: `pu` on USD-M, where ids between two messages may belong to nobody; None on spot."""
        expected = first - 1 if previous is None else previous
        have = self.last
        if expected == have or have == 0:
            return self._new(last, at)
        if last <= have:
            return self._old(first, last, at)
        return self._after_gap(have + 1, expected, last, at)


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """One stream, for screens and metrics. age_s: since the last new message; None: there never was one."""

    name: str
    age_s: float | None
    stale: bool
    messages: int
    gaps: int
    missing: int
    duplicates: int
    reordered: int


class FeedQuality:
    """One connection's streams together: the source of FeedHealth."""

    def __init__(self, streams: list[StreamQuality], stale_after_ns: int) -> None:
        """stale_after_ns: bound for the feed as a whole; each stream brings its own."""
        self.streams = streams
        self.malformed = 0
        self.dropped = 0  # events lost because the consumer was too slow; shown as gaps, since it missed them
        self.reconnects = 0
        self._stale_after_ns = stale_after_ns
        self._connected_at: int | None = None
        self._down_reason = ""
        self._was_connected = False

    def connected(self, at: int) -> None:
        if self._was_connected:
            self.reconnects += 1
        self._was_connected = True
        self._connected_at = at
        self._down_reason = ""
        for s in self.streams:
            s.connected(at)

    def disconnected(self, reason: str) -> None:
        """The line was lost, or could not be had."""
        self._connected_at = None
        self._down_reason = reason

    def last_at(self) -> int | None:
        """Instant of the newest message of any stream."""
        return max((s.last_at for s in self.streams if s.last_at is not None), default=None)

    def _silent_ns(self, s: StreamQuality | None, now: int) -> int:
        """How long the present connection has delivered nothing new on `s` (None: on any stream); 0 without one."""
        if self._connected_at is None:
            return 0
        last = self.last_at() if s is None else s.last_at
        return max(0, now - max(self._connected_at, last or 0))

    def silence(self, now: int) -> float:
        """The worst silence, as a multiple of what is allowed there. Above 1 is stale."""
        worst = self._silent_ns(None, now) / self._stale_after_ns
        return max(worst, *(self._silent_ns(s, now) / s.stale_after_ns for s in self.streams))

    def stream_health(self, now: int) -> list[StreamHealth]:
        return [
            StreamHealth(
                s.name,
                None if (age := s.age_ns(now)) is None else age / NS_PER_S,
                self._silent_ns(s, now) > s.stale_after_ns,
                s.messages,
                s.gaps,
                s.missing,
                s.duplicates,
                s.reordered,
            )
            for s in self.streams
        ]

    def _state(self, now: int) -> tuple[FeedState, str]:
        if self._connected_at is None:
            return (FeedState.DOWN, self._down_reason) if self._down_reason else (FeedState.CONNECTING, "")
        silent = self._silent_ns(None, now)
        if silent > self._stale_after_ns:
            bound = self._stale_after_ns / NS_PER_S
            return FeedState.STALE, f"connected, but silent for {silent / NS_PER_S:.1f} s (bound {bound:g} s)"
        for s in self.streams:
            silent = self._silent_ns(s, now)
            if silent > s.stale_after_ns:
                bound = s.stale_after_ns / NS_PER_S
                return FeedState.STALE, f"{s.name} silent for {silent / NS_PER_S:.1f} s (bound {bound:g} s)"
        # What came over the connection before this one says nothing about this one. Streams that may be silent for
        # longer than the feed (trades) are not waited for: their own bound finds them if they never start.
        awaited = [s for s in self.streams if s.stale_after_ns <= self._stale_after_ns] or self.streams
        if any(s.last_at is None or s.last_at < self._connected_at for s in awaited):
            return FeedState.CONNECTING, "connected, waiting for the first messages"
        return FeedState.LIVE, ""

    def health(self, now: int) -> FeedHealth:
        state, reason = self._state(now)
        last = self.last_at()
        return FeedHealth(
            state=state,
            age_s=None if last is None else max(0, now - last) / NS_PER_S,
            messages=sum(s.messages for s in self.streams),
            gaps=sum(s.gaps for s in self.streams) + self.dropped,
            duplicates=sum(s.duplicates for s in self.streams),
            reordered=sum(s.reordered for s in self.streams),
            malformed=self.malformed,
            reconnects=self.reconnects,
            reason=reason,
        )
