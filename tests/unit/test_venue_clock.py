"""Bounds of a clock that is not ours: whatever the truth, it lies between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.ids import Instant
from node import venue_clock
from node.venue_clock import MAX_AGE_NS, VenueClock
from node.venues.base import TimeSample

MS = 1_000_000
UNIX = 1_700_000_000_000_000_000


class Now:
    def __init__(self) -> None:
        self.at = 10**15

    def __call__(self) -> int:
        return self.at


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(venue_clock, "boottime_ns", clock)
    return clock


def test_clock_that_was_never_read_is_not_known(now: Now) -> None:
    clock = VenueClock()
    assert clock.earliest(Instant(now.at)) is None and clock.latest() is None


def test_bounds_are_as_wide_as_the_round_trip(now: Now) -> None:
    clock = VenueClock()
    clock.note(TimeSample(now.at - 30 * MS, now.at, UNIX))
    assert clock.earliest(Instant(now.at)) == UNIX, "it was read on arrival at the latest"
    assert clock.latest() == UNIX + 30 * MS, "and when we asked at the earliest"


def test_bounds_move_with_our_own_clock(now: Now) -> None:
    clock = VenueClock()
    clock.note(TimeSample(now.at - 30 * MS, now.at, UNIX))
    now.at += 500 * MS
    assert clock.earliest(Instant(now.at)) == UNIX + 500 * MS
    assert clock.latest() == UNIX + 530 * MS
    assert clock.earliest(Instant(now.at + 200 * MS)) == UNIX + 700 * MS, "also for a moment to come"


def test_sample_that_is_too_old_is_not_used(now: Now) -> None:
    clock = VenueClock()
    clock.note(TimeSample(now.at, now.at, UNIX))
    now.at += MAX_AGE_NS
    assert clock.latest() is not None
    now.at += 1
    assert clock.latest() is None and clock.earliest(Instant(now.at)) is None


def test_latest_sample_counts(now: Now) -> None:
    clock = VenueClock()
    clock.note(TimeSample(now.at, now.at, UNIX))
    clock.note(TimeSample(now.at, now.at, UNIX - 3600 * 10**9))  # the venue's clock was set back
    assert clock.earliest(Instant(now.at)) == UNIX - 3600 * 10**9


@given(
    offset=st.integers(-(10**18), 10**18),
    there=st.integers(0, 10**9),
    back=st.integers(0, 10**9),
    later=st.integers(0, MAX_AGE_NS - 10**9),
    ahead=st.integers(0, 10**10),
)
def test_truth_lies_between_the_bounds(offset: int, there: int, back: int, later: int, ahead: int) -> None:
    """The venue's clock shows instant + offset. It is read `there` after we asked and `back` before we heard."""
    sent = 10**15
    received = sent + there + back
    patch = pytest.MonkeyPatch()
    patch.setattr(venue_clock, "boottime_ns", lambda: received + later)
    try:
        clock = VenueClock()
        clock.note(TimeSample(sent, received, sent + there + offset))
        at = Instant(received + later + ahead)
        low, high = clock.earliest(at), clock.latest()
        assert low is not None and high is not None
        assert low <= at + offset
        assert received + later + offset <= high
    finally:
        patch.undo()
