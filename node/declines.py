"""The strategy's wishes that did not become orders: counted, and told without drowning the log. Pure."""

from __future__ import annotations

from cluster.core.ids import Instant, ns
from node.actions import Note
from node.orders import Declined

TOLD_EVERY_S = 60.0


class Declines:
    """Of one term. counts: by code. in_a_row: since the last wish that became an order."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.in_a_row = 0
        self.last: Declined | None = None
        self._told: dict[str, Instant] = {}

    def add(self, why: Declined, now: Instant) -> list[Declined | Note]:
        """A strategy may wish for the same a hundred times a second; one line a minute says it."""
        code = why.code
        self.counts[code] = self.counts.get(code, 0) + 1
        self.in_a_row += 1
        self.last = why
        told = self._told.get(code)
        if told is not None and now - told <= ns(TOLD_EVERY_S):
            return [why]
        self._told[code] = now
        return [why, Note("order_declined", {"code": code, "reason": why.reason, "times": self.counts[code]})]
