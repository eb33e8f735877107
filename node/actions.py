"""What one leadership asks of those who carry it out (`leadership.py` decides, `trader.py` carries out). Pure.

Those of single orders stand in `orders.py`, beside the machine that says them. An action that asks a question names the
event of `Leadership` that answers it: one of them, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node import orders
from node.permission import Permission

# -- the gate ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArmGate:
    """Arm it with the term's token; connect before if so said. Answer with `gate_armed`, `gate_refused` (a higher
    token) or `gate_failed`."""

    connect: bool


@dataclass(frozen=True, slots=True)
class LookAtGate:
    """Answer with `gate_seen` or `gate_failed`."""


@dataclass(frozen=True, slots=True)
class ReadLatch:
    """Have the kill latch read in etcd, linearizably, by a read that begins after this. Answer with `latch_read` or
    `latch_unreadable`; the answer to an earlier one is no answer to this."""


@dataclass(frozen=True, slots=True)
class NoteLatch:
    """Tell the gate what the latch is; None: not set. Answer with `latch_noted`, `gate_refused` or `gate_failed`."""

    halted: str | None


GateAction = ArmGate | LookAtGate | ReadLatch | NoteLatch


# -- the venue ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArmVenue:
    """Answer with `venue_armed` or `venue_failed`. One that is not connected tells no capabilities, and so would seem
    to need no arming: that is `venue_failed`."""


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Follow the private stream after this event, for as long as the term lasts. Answer with `stream_said`."""

    after_seq: int


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Answer with `snapshot_taken` or `snapshot_failed`."""

    fills_after_seq: int


@dataclass(frozen=True, slots=True)
class RefreshDeadman:
    """If `still_allowed`. Answer with `deadman_answered`, or `venue_refused` (a higher token)."""

    ttl_s: float


# -- the others --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PermissionChanged:
    permission: Permission


@dataclass(frozen=True, slots=True)
class ReportReconciled:
    """The takeover is done: the permit may come. phases_s: how long each part took."""

    phases_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ReportSettled:
    """The drain is done, and the term with it."""


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """The venue has accepted the first order of the term."""


@dataclass(frozen=True, slots=True)
class FenceRefused:
    """One of our own fences has stopped an order; layer: which, for the counters."""

    layer: str


@dataclass(frozen=True, slots=True)
class Note:
    """For the log. level: info, warning or error."""

    event: str
    fields: Mapping[str, Any]
    level: str = "warning"


Report = PermissionChanged | ReportReconciled | ReportSettled | FirstOrder | ReadLatch | orders.StepDown
"""What concerns the node or its keeper, and nothing outside."""

Action = (
    orders.Action
    | orders.Declined
    | GateAction
    | ArmVenue
    | OpenStream
    | TakeSnapshot
    | RefreshDeadman
    | Report
    | FenceRefused
    | Note
)
