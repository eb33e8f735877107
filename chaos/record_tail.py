"""Follows the venue's record while the venue runs: which order of each token was accepted first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.clock import boottime_ns
from cluster.core.ids import ns
from node.paper_venue.record import read_record

POLL_S = 0.02


class RecordTail:
    """Reads on from where it stopped. first_order: token -> line of its first accepted new order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first_order: dict[int, dict[str, Any]] = {}
        self.orders_accepted = 0
        self.seq = 0  # venue_seq of the last line read

    def read(self) -> None:
        for line in read_record(self.path, self.seq):
            self.seq = line["venue_seq"]
            if line["kind"] == "new" and line["outcome"] == "accepted":
                token = line["token"] or 0
                self.orders_accepted += 1
                self.first_order.setdefault(token, line)

    def wait_order(self, token_min: int, timeout_s: float) -> dict[str, Any] | None:
        """The first accepted order of the lowest token that is at least `token_min`; None if there is none in time."""
        deadline = boottime_ns() + ns(timeout_s)
        while True:
            self.read()
            tokens = [t for t in self.first_order if t >= token_min]
            if tokens:
                return self.first_order[min(tokens)]
            if boottime_ns() >= deadline:
                return None
            time.sleep(POLL_S)
