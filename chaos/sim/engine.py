"""Virtual time: one heap of things to do, one stream of random numbers per concern.

True time is in nanoseconds from 0 and is nobody's clock (`clock.py` has those). Of things due at one instant a drawn
tie decides, so that a seed permutes them. The streams are apart, so that one more draw in one does not shift the
others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any

from chaos.sim.story import Mark, words

US = 1_000
MS = 1_000_000
S = 1_000_000_000

Fn = Callable[..., Any]


class Timer:
    """What `Engine.later` gives back. Cancelled, it is skipped when its time comes."""

    __slots__ = ("args", "fn")

    def __init__(self, fn: Fn, args: tuple[Any, ...]) -> None:
        self.fn: Fn | None = fn
        self.args = args

    def cancel(self) -> None:
        self.fn = None

    def fire(self) -> None:
        if self.fn is not None:
            self.fn(*self.args)


class Engine:
    """traced: keep the story (`story.py`), for `digest`, for people and for the timeline."""

    __slots__ = ("_count", "_heap", "_tie", "network", "now", "schedule", "seed", "steps", "story", "workload")

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        self.seed = seed
        self.now = 0
        self.steps = 0
        self.schedule, self.network, self.workload = (
            random.Random(f"{seed}/{stream}") for stream in ("schedule", "network", "workload")
        )
        self.story: list[Mark] | None = [] if traced else None
        self._tie = random.Random(f"{seed}/tie").random
        self._heap: list[tuple[int, float, int, Fn, tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: int, fn: Fn, *args: Any) -> None:
        """Call fn(*args) at `when`, or now if that is over."""
        self._count += 1
        heappush(self._heap, (when if when > self.now else self.now, self._tie(), self._count, fn, args))

    def after(self, delay: int, fn: Fn, *args: Any) -> None:
        self.at(self.now + delay, fn, *args)

    def later(self, delay: int, fn: Fn, *args: Any) -> Timer:
        """As `after`, and it can be cancelled."""
        timer = Timer(fn, args)
        self.at(self.now + delay, timer.fire)
        return timer

    def between(self, low: int, high: int) -> int:
        """A duration, drawn from the schedule's stream."""
        return low + int(self.schedule.random() * (high - low))

    def step(self, until: int) -> bool:
        """Do the next thing that is due by `until`; False: there is none, and it is `until` now."""
        heap = self._heap
        if not heap or heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, _, fn, args = heappop(heap)
        self.steps += 1
        fn(*args)
        return True

    def say(self, lane: str, kind: str, text: str, **more: Any) -> None:
        """One mark of the story. Callers look at `story` first where making the text costs something."""
        if self.story is not None:
            self.story.append(Mark(self.now, lane, kind, text, **more))

    def sends(self, lane: str, to: str, kind: str, message: object, arrives: int | None, order: str = "") -> None:
        """A message leaves `lane`; None: it never arrives. Callers look at `story` first."""
        self.say(lane, kind, words(message), until=arrives or 0, to=to, order=order)

    def digest(self) -> str:
        """Names the whole story, and what was drawn on the way: equal digests, equal runs."""
        h = blake2b(digest_size=16)
        for mark in self.story or ():
            h.update(f"{tuple(mark)}\n".encode())
        drawn = [r.getstate() for r in (self.schedule, self.network, self.workload)]
        h.update(f"{self.now} {self.steps} {self._count} {drawn}".encode())
        return h.hexdigest()
