"""Lives many plans, in several processes, and adds up what they show.

A seed is worth nothing alone: what counts is that thousands broke nothing and that every danger arose among them
(`chaos/check/verdict.py`, Tally). The collector is off while a world lives: it is garbage in one piece afterwards.
"""

from __future__ import annotations

import gc
import logging
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from chaos.check.verdict import Tally, Verdict
from chaos.sim.plan import Plan, draw_plan
from chaos.sim.pool import each_of
from chaos.sim.world import Ended, World
from cluster.core.errors import ConfigError

CHUNK = 50
"""Seeds that a process takes at a time."""
COLLECT_EVERY = 25
KEPT = 20
"""Failing seeds that are remembered by name."""


class Which(NamedTuple):
    """What to simulate. nodes, venue None: drawn."""

    profile: str = "all"
    nodes: int | None = None
    venue: str | None = None

    def plan(self, seed: int) -> Plan:
        return draw_plan(seed, self.profile, nodes=self.nodes, venue=self.venue)


class Failure(NamedTuple):
    seed: int
    broken: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(slots=True)
class Summary:
    """Of many lives. cpu_s: of all processes. slowest: longest recovery after everything healed, in ttls. rto: ns from
    each fault to the first order of the next leader, where the records tell."""

    tally: Tally = field(default_factory=Tally)
    cover: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    seeds: int = 0
    failovers: int = 0
    steps: int = 0
    slowest: float = 0.0
    cpu_s: float = 0.0
    rto: array[int] = field(default_factory=lambda: array("q"))

    def add(self, ended: Ended) -> None:
        seed = ended.plan.seed
        self.tally.add(ended.verdict, f"seed {seed}")
        self.rto.extend(f.first_order for f in self.tally.failovers if f.first_order is not None)
        self.tally.failovers.clear()
        self.cover += ended.cover
        self.seeds += 1
        self.failovers += ended.failovers
        self.steps += ended.steps
        self.slowest = max(self.slowest, ended.healed_in or 0.0)
        if ended.broken:
            self.failed += 1
            if len(self.failures) < KEPT:
                self.failures.append(Failure(seed, tuple(sorted(ended.broken)), tuple(ended.problems[:5])))

    def join(self, other: Summary) -> None:
        self.tally.join(other.tally)
        self.cover += other.cover
        self.failures = sorted([*self.failures, *other.failures])[:KEPT]
        self.failed += other.failed
        self.seeds += other.seeds
        self.failovers += other.failovers
        self.steps += other.steps
        self.slowest = max(self.slowest, other.slowest)
        self.cpu_s += other.cpu_s
        self.rto.extend(other.rto)

    @property
    def verdict(self) -> Verdict:
        return self.tally.verdict()

    @property
    def failovers_per_s(self) -> float:
        """Simulated, per second of one core."""
        return self.failovers / self.cpu_s if self.cpu_s else 0.0


def live(plan: Plan, *, traced: bool = False) -> Ended:
    return World(plan, traced=traced).run()


def live_some(seeds: range, which: Which) -> Summary:
    """In this process."""
    silence()
    summary, began = Summary(), time.process_time()
    with without_collector():
        for n, seed in enumerate(seeds):
            summary.add(live(which.plan(seed)))
            if n % COLLECT_EVERY == 0:
                gc.collect()
    summary.cpu_s = time.process_time() - began
    return summary


def live_many(
    seeds: range, which: Which, *, jobs: int, progress: Callable[[Summary], None] = lambda _s: None
) -> Summary:
    """In `jobs` processes. progress: called with the sum so far, each second or when a chunk is done."""
    summary = Summary()
    if jobs == 1:
        for chunk in _chunks(seeds):
            summary.join(live_some(chunk, which))
            progress(summary)
        return summary
    work = partial(live_some, which=which)
    with closing(each_of(work, _chunks(seeds), jobs=jobs, idle=lambda: progress(summary))) as done:
        for _, part in done:
            summary.join(part)
            progress(summary)
    return summary


def _chunks(seeds: range) -> Iterator[range]:
    return (seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK))


def parse_seeds(text: str) -> range:
    """`A..B` (B not included) or one number. Raises ConfigError."""
    first, dots, last = text.partition("..")
    try:
        found = range(int(first), int(last)) if dots else range(int(first), int(first) + 1)
    except ValueError as e:
        raise ConfigError(f"seeds {text!r}: write a number, or two as in 0..1000 (the second is not included)") from e
    if not found or found.start < 0:
        raise ConfigError(f"seeds {text!r}: there are none; write them as in 0..1000, from 0 on, the smaller first")
    return found


def silence() -> None:
    """The cores log as in production; of ten thousand clusters nobody reads it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@contextmanager
def without_collector() -> Iterator[None]:
    """A world is full of cycles and short-lived: collecting between worlds is twice as fast as within."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
