"""What we know of the venue's clock: bounds, never an estimate.

A sample says that the venue's clock showed `venue_unix_ns` at some moment between `sent_at` and `received_at` of our
BOOTTIME. So at our Instant t, with both clocks running at one rate since:

    venue_unix_ns + (t - received_at)  <=  venue clock at t  <=  venue_unix_ns + (t - sent_at)

An order's expiry is made from the lower bound (it is never later than act_until in truth), and so is "its expiry has
passed"; what an earlier leader may have asked for is bounded from above. Samples older than MAX_AGE are not used: the
venue's clock may have been stepped since. Pure.
"""

from __future__ import annotations

from cluster.core.ids import NS_PER_S, Instant
from node.venues.base import TimeSample

MAX_AGE_NS = 10 * NS_PER_S


class VenueClock:
    def __init__(self) -> None:
        self._sample: TimeSample | None = None

    def note(self, sample: TimeSample) -> None:
        self._sample = sample

    def earliest(self, at: Instant, now: Instant) -> int | None:
        """Lower bound of the venue's clock at `at`, Unix ns; None: not known well enough."""
        s = self._fresh(now)
        return None if s is None else s.venue_unix_ns + (at - s.received_at)

    def latest(self, now: Instant) -> int | None:
        """Upper bound of the venue's clock now."""
        s = self._fresh(now)
        return None if s is None else s.venue_unix_ns + (now - s.sent_at)

    def _fresh(self, now: Instant) -> TimeSample | None:
        s = self._sample
        return s if s is not None and now - s.received_at <= MAX_AGE_NS else None
