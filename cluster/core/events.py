"""What can happen to a keeper: the inputs of `election.Election`. Pure data.

`now` is not in them: it is handed in beside the event, read after the event arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from .ids import Instant, JournalId, LogIndex, NodeId, Term
from .lease import View


class Answer(Enum):
    """Of a transaction. UNKNOWN is not REFUSED: it may have been carried out, or may be yet."""

    DONE = "done"
    REFUSED = "refused"  # a compare failed, or etcd said no; certainly without effect
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ViewSeen:
    """The shell has read or been told the keys at one revision; revisions only rise."""

    view: View


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of the request that an action named. revision: etcd's, when DONE."""

    request: int
    answer: Answer
    revision: int = 0


@dataclass(frozen=True, slots=True)
class EtcdLease:
    """The lease that our keys hang on; None: it is gone and a new one is being asked for."""

    lease_id: int | None


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """The worker has opened its journal. highest_term: the highest it ever saw; etcd_cluster_id: 0 = none yet."""

    journal_id: JournalId
    last_index: LogIndex
    highest_term: Term
    etcd_cluster_id: int


@dataclass(frozen=True, slots=True)
class WorkerPrepared:
    """It follows nobody, and no acknowledgement of `term` or below will leave it any more."""

    term: Term


@dataclass(frozen=True, slots=True)
class WorkerReconciled:
    """Takeover is complete but for the permit. phases_s: what took how long, for the history."""

    term: Term
    phases_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerSettled:
    term: Term


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """It cannot send for `term` any more."""

    term: Term


@dataclass(frozen=True, slots=True)
class WorkerAsksToStepDown:
    """The worker is alive but must not lead: gate says deposed, peers show a higher term, and the like."""

    term: Term
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The kernel says so. Proof that it cannot send."""

    how: str


@dataclass(frozen=True, slots=True)
class SwitchoverAsked:
    """target None: whoever is best."""

    target: NodeId | None
    actor: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """SIGTERM: hand over if leading, then stop."""

    actor: str


@dataclass(frozen=True, slots=True)
class Tick:
    """beat_at: the worker's last heartbeat, read from shared memory; None while it has none."""

    beat_at: Instant | None


Event = (
    ViewSeen
    | Answered
    | EtcdLease
    | WorkerHello
    | WorkerPrepared
    | WorkerReconciled
    | WorkerSettled
    | WorkerStopped
    | WorkerAsksToStepDown
    | WorkerExited
    | SwitchoverAsked
    | ShutdownAsked
    | Tick
)
