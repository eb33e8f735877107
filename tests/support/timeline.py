"""Virtual time: nothing happens but what was asked for, in the order of its instants."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from cluster.core.ids import Instant


class Timeline:
    def __init__(self) -> None:
        self.now = Instant(0)
        self._calls: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def call_later(self, delay_ns: int, call: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._calls, (self.now + max(0, delay_ns), self._made, call))

    def run(self, until: Callable[[], bool] = lambda: False, limit: Instant | None = None) -> None:
        """Until nothing is left to happen before `limit`, or `until` holds."""
        while self._calls and not until() and (limit is None or self._calls[0][0] <= limit):
            at, _, call = heapq.heappop(self._calls)
            self.now = Instant(at)
            call()
        if limit is not None and not until():
            self.now = max(self.now, limit)
