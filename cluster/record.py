"""The record of one leadership, for `history/<token>`: from whom, why, what took how long. Decides nothing.

Times are wall clock of two hosts at most (the old leader's last sign of life, the new one's steps), so durations across
them are as good as the hosts' clocks agree. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .core.actions import TellLead
from .core.ids import NS_PER_S


class LeadershipRecord:
    def __init__(self, node: str, lead: TellLead, resigned: Mapping[str, Any], won_at: int) -> None:
        """resigned: the value of that key as seen now. won_at: Unix ns."""
        # By now the key may speak of another vacancy, and a vacancy without a resignation has no actor.
        ours = (resigned.get("reason"), resigned.get("actor")) == (lead.cause, lead.actor)
        ended_at = _unix_ns(resigned.get("at")) if ours else 0
        self._last_sign = _unix_ns(resigned.get("last_sign")) if ours else 0
        self._won_at = won_at
        self._lead = lead
        self._node = node
        self._reconciled_at = won_at
        self._rto_s: float | None = None
        self.phases_s: dict[str, float] = {}
        if self._last_sign and ended_at:
            self.phases_s["detect"] = (ended_at - self._last_sign) / NS_PER_S
            self.phases_s["elect"] = (won_at - ended_at) / NS_PER_S

    def reconciled(self, term: int, phases_s: Mapping[str, float], at: int) -> bool:
        """The worker has taken over. False: of another term."""
        if term != self._lead.term:
            return False
        self.phases_s |= phases_s
        self._reconciled_at = at
        return True

    def first_order(self, term: int, at: int) -> bool:
        if term != self._lead.term:
            return False
        self.phases_s["first_order"] = max(0.0, (at - self._reconciled_at) / NS_PER_S)
        if self._last_sign:
            self._rto_s = (at - self._last_sign) / NS_PER_S
        return True

    def as_json(self) -> dict[str, Any]:
        return {
            "token": self._lead.term,
            "node": self._node,
            "came_from": self._lead.came_from,
            "cause": self._lead.cause,
            "actor": self._lead.actor,
            "started_at": self._won_at,
            "last_sign": self._last_sign or None,
            "phases_s": dict(self.phases_s),
            "rto_s": self._rto_s,
        }


def _unix_ns(value: Any) -> int:
    """0: not known. A takeover must not fail for what somebody wrote by hand."""
    return value if type(value) is int and value > 0 else 0
