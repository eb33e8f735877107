"""A host's clocks: BOOTTIME with an offset and a rate of its own, the wall clock, which people and NTP move about, and
how much a CLOCK_MONOTONIC would have missed: suspended time, which BOOTTIME counts (DESIGN 4)."""

from __future__ import annotations

from cluster.core.ids import Instant

RATE = 1_000_000
"""Of a true clock; `rate` is in the same parts."""


class Clock:
    __slots__ = ("offset", "rate", "slept", "wall_offset")

    def __init__(self, offset: int, rate: int, wall_offset: int) -> None:
        self.offset = offset
        self.rate = rate
        self.wall_offset = wall_offset
        self.slept = 0  # local ns in which the host was suspended

    def read(self, true: int) -> Instant:
        return Instant(self.offset + true * self.rate // RATE)

    def when(self, local: int) -> int:
        """The first true time at which this clock shows `local` or more."""
        return -(-(local - self.offset) * RATE // self.rate)

    def wall(self, true: int) -> int:
        """Unix ns."""
        return self.wall_offset + true * self.rate // RATE
