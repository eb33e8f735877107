"""Percentiles of measured durations, and one row of the table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def percentile(samples: Sequence[int], fraction: float) -> int:
    """Nearest rank: the smallest sample that at least `fraction` of the samples do not exceed."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = max(1, -(-len(ordered) * round(fraction * 1_000_000) // 1_000_000))
    return ordered[rank - 1]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing. samples in nanoseconds. target: DESIGN 12's, in words. beside: the names of the rows it is
    compared with, of the same run. per_s: for rates."""

    name: str
    samples: Sequence[int] = ()
    target: str = ""
    beside: tuple[str, ...] = ()
    per_s: float | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "n": len(self.samples), "target": self.target, "note": self.note}
        if self.samples:
            out |= {
                "median_s": percentile(self.samples, 0.5) / 1e9,
                "p99_s": percentile(self.samples, 0.99) / 1e9,
                "p99_9_s": percentile(self.samples, 0.999) / 1e9,
                "max_s": max(self.samples) / 1e9,
            }
        if self.per_s is not None:
            out["per_s"] = self.per_s
        return out


def ratio(row: Row, other: Row) -> float | None:
    """How many times the other: medians, or rates; None when they cannot be compared."""
    if row.samples and other.samples:
        return percentile(row.samples, 0.5) / percentile(other.samples, 0.5)
    if row.per_s and other.per_s:
        return row.per_s / other.per_s
    return None


def duration(ns: int) -> str:
    """1234567 -> "1.23 ms"."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"
