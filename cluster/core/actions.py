"""What a keeper can do: the outputs of `election.Election`. Pure data; the shell carries them out in order.

An action with a `request` is answered by exactly one `events.Answered` that carries the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .ids import Instant, JournalId, NodeId, Term
from .lease import InSync
from .role import ExecutionPermit

# -- the permit: no await may come before these -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WritePermit:
    permit: ExecutionPermit


@dataclass(frozen=True, slots=True)
class ClearPermit:
    pass


# -- etcd, one transaction each (DESIGN 4) -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acquire:
    """If `leader` is absent and `tenure` and `insync` are as seen (0: absent), put all three under our lease."""

    request: int
    attempt: int
    lease_id: int
    tenure_seen: Term
    insync_seen: int
    members: Mapping[NodeId, JournalId]


@dataclass(frozen=True, slots=True)
class Renew:
    """If create_revision(leader) is `token`, put it again."""

    request: int
    token: Term
    attempt: int
    renewal: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Evict:
    """If mod_revision(leader) is `mod_revision`, delete it and put `resigned` for its token."""

    request: int
    mod_revision: int
    token: Term
    node: NodeId


@dataclass(frozen=True, slots=True)
class Resign:
    """If create_revision(leader) is `token`, delete it and put `resigned`; or, if `leader` is absent and `tenure`
    is still `token`, put `resigned` alone. DONE either way; REFUSED when neither holds: it is over already."""

    request: int
    token: Term
    reason: str
    actor: str
    successor: NodeId | None


EtcdRequest = Acquire | Renew | Evict | Resign

# -- the worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TellFollow:
    node: NodeId
    term: Term


@dataclass(frozen=True, slots=True)
class TellPrepare:
    """Close the replication stream and acknowledge nothing of `term` or below any more; answer WorkerPrepared."""

    term: Term


@dataclass(frozen=True, slots=True)
class TellLead:
    """Take over: catch up, arm, settle; answer WorkerReconciled. cause and actor: why there was a vacancy."""

    term: Term
    insync: InSync
    cause: str
    actor: str
    came_from: NodeId | None


@dataclass(frozen=True, slots=True)
class TellGranted:
    term: Term


@dataclass(frozen=True, slots=True)
class TellStop:
    """Send nothing more for `term`; answer WorkerStopped."""

    term: Term
    reason: str


@dataclass(frozen=True, slots=True)
class TellDrain:
    """No new intents; wait for answers; see to it that `successor` has everything; answer WorkerSettled."""

    term: Term
    successor: NodeId | None


@dataclass(frozen=True, slots=True)
class StartWorker:
    at: Instant


@dataclass(frozen=True, slots=True)
class KillWorker:
    reason: str


# -- people ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerSwitchover:
    request_id: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log: a stable event name and its fields."""

    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StopNode:
    """Going on could trade on a wrong belief. The text tells the operator what to do."""

    why: str


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The worker is dead and all is released, or etcd was silent too long to be told; the process may end."""


Action = (
    WritePermit
    | ClearPermit
    | Acquire
    | Renew
    | Evict
    | Resign
    | TellFollow
    | TellPrepare
    | TellLead
    | TellGranted
    | TellStop
    | TellDrain
    | StartWorker
    | KillWorker
    | AnswerSwitchover
    | Note
    | StopNode
    | ShutDown
)
