"""The two clocks: BOOTTIME for every deadline, wall time for people.

CLOCK_BOOTTIME goes on counting while the machine is suspended; CLOCK_MONOTONIC (asyncio's, Python's) does not,
and would under-age a lease over a suspend.
"""

from __future__ import annotations

import time

from .core.ids import Instant


def boottime_ns() -> Instant:
    """Now, on this host's CLOCK_BOOTTIME, in nanoseconds."""
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def unix_ns() -> int:
    """Now, as people say it. Decides nothing."""
    return time.time_ns()
