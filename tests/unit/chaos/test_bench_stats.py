"""Percentiles and ratios of the benchmark's table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.bench.stats import Row, duration, percentile, ratio


def test_percentile_is_a_sample_that_enough_samples_do_not_exceed() -> None:
    samples = list(range(1, 101))
    assert percentile(samples, 0.5) == 50
    assert percentile(samples, 0.99) == 99
    assert percentile(samples, 0.999) == 100
    assert percentile([7], 0.5) == 7


@given(st.lists(st.integers(0, 10**12), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_percentile_keeps_its_promise_for_any_samples(samples: list[int], fraction: float) -> None:
    p = percentile(samples, fraction)
    assert p in samples
    assert sum(s <= p for s in samples) >= fraction * len(samples)


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_ratio_compares_medians_or_rates_and_nothing_else() -> None:
    assert ratio(Row("a", [10, 20, 30]), Row("b", [5, 10, 15])) == 2
    assert ratio(Row("a", per_s=300.0), Row("b", per_s=100.0)) == 3
    assert ratio(Row("a", [1]), Row("b", per_s=1.0)) is None


@pytest.mark.parametrize(("ns", "text"), [(12, "12 ns"), (1234, "1.23 µs"), (1_500_000, "1.5 ms"), (2 * 10**9, "2 s")])
def test_duration_reads_as_a_person_would_say_it(ns: int, text: str) -> None:
    assert duration(ns) == text
