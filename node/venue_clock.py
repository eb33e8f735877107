"""What we know of the venue's clock: bounds, never an estimate.

A sample says that the venue's clock showed `venue_unix_ns` at some moment between `sent_at` and `received_at` of our
BOOTTIME. So at our Instant t, our clock running at most by the part d of its rate faster or slower than the venue's:

    venue_unix_ns + (t - received_at) * (1 - d)  <=  venue clock at t  <=  venue_unix_ns + (t - sent_at) * (1 + d)

Without d a clock that runs fast believes a second after the sample that an order has expired which the venue still
takes, and calls "never placed" what is about to be filled.

An order's expiry is made from the lower bound (it is never later than act_until in truth), and so is "its expiry has
passed"; what an earlier leader may have asked for is bounded from above. Samples older than MAX_AGE are not used: the
venue's clock may have been stepped since. Pure.
"""

from __future__ import annotations

import math

from cluster.core.ids import NS_PER_S, Instant
from node.venues.base import TimeSample

MAX_AGE_NS = 10 * NS_PER_S


class VenueClock:
    def __init__(self, drift_max: float) -> None:
        """drift_max: d, as for the lease (`lease.clock_drift_max`)."""
        self._drift = drift_max
        self._sample: TimeSample | None = None

    def note(self, sample: TimeSample) -> None:
        self._sample = sample

    def earliest(self, at: Instant, now: Instant) -> int | None:
        """Lower bound of the venue's clock at `at`, Unix ns; None: not known well enough."""
        s = self._fresh(now)
        if s is None:
            return None
        since = at - s.received_at
        return s.venue_unix_ns + since - math.ceil(abs(since) * self._drift)

    def latest(self, now: Instant) -> int | None:
        """Upper bound of the venue's clock now."""
        s = self._fresh(now)
        if s is None:
            return None
        since = now - s.sent_at
        return s.venue_unix_ns + since + math.ceil(abs(since) * self._drift)

    def _fresh(self, now: Instant) -> TimeSample | None:
        s = self._sample
        return s if s is not None and now - s.received_at <= MAX_AGE_NS else None
