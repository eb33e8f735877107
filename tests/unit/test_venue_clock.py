"""Bounds of a clock that is not ours: whatever the truth, it lies between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.ids import Instant
from node.venue_clock import MAX_AGE_NS, VenueClock
from node.venues.base import TimeSample

MS = 1_000_000
UNIX = 1_700_000_000_000_000_000


NOW = Instant(10**15)


def later(ns: int) -> Instant:
    return Instant(NOW + ns)


def test_clock_that_was_never_read_is_not_known() -> None:
    clock = VenueClock(0.0)
    assert clock.earliest(NOW, NOW) is None and clock.latest(NOW) is None


def test_bounds_are_as_wide_as_the_round_trip() -> None:
    clock = VenueClock(0.0)
    clock.note(TimeSample(NOW - 30 * MS, NOW, UNIX))
    assert clock.earliest(NOW, NOW) == UNIX, "it was read on arrival at the latest"
    assert clock.latest(NOW) == UNIX + 30 * MS, "and when we asked at the earliest"


def test_bounds_move_with_our_own_clock() -> None:
    clock = VenueClock(0.0)
    clock.note(TimeSample(NOW - 30 * MS, NOW, UNIX))
    now = later(500 * MS)
    assert clock.earliest(now, now) == UNIX + 500 * MS
    assert clock.latest(now) == UNIX + 530 * MS
    assert clock.earliest(later(700 * MS), now) == UNIX + 700 * MS, "also for a moment to come"


def test_sample_that_is_too_old_is_not_used() -> None:
    clock = VenueClock(0.0)
    clock.note(TimeSample(NOW, NOW, UNIX))
    assert clock.latest(later(MAX_AGE_NS)) is not None
    old = later(MAX_AGE_NS + 1)
    assert clock.latest(old) is None and clock.earliest(old, old) is None


def test_latest_sample_counts() -> None:
    clock = VenueClock(0.0)
    clock.note(TimeSample(NOW, NOW, UNIX))
    clock.note(TimeSample(NOW, NOW, UNIX - 3600 * 10**9))  # the venue's clock was set back
    assert clock.earliest(NOW, NOW) == UNIX - 3600 * 10**9


@given(
    offset=st.integers(-(10**18), 10**18),
    there=st.integers(0, 10**9),
    back=st.integers(0, 10**9),
    later=st.integers(0, MAX_AGE_NS - 10**9),
    ahead=st.integers(0, 10**10),
    drift=st.integers(-50_000, 50_000),
)
def test_truth_lies_between_the_bounds(offset: int, there: int, back: int, later: int, ahead: int, drift: int) -> None:
    """The venue's clock is read `there` after we asked, where it shows instant + offset, and `back` before we heard; it
    runs faster than ours by `drift` parts in a million."""
    read, received = NOW + there, NOW + there + back

    def truth(t: int) -> int:
        return offset + t + (t - read) * drift // 1_000_000

    clock = VenueClock(0.05)
    clock.note(TimeSample(NOW, received, truth(read)))
    now, at = Instant(received + later), Instant(received + later + ahead)
    low, high = clock.earliest(at, now), clock.latest(now)
    assert low is not None and high is not None
    assert low <= truth(at)
    assert truth(now) <= high
