"""The role state machine, and the only module that makes or drops a permit (STYLE 2).

    step(state, event) -> (state, effects)          no clock, no await; equal inputs give equal outputs

Each state holds only what is true in it: `Leader` alone has a permit, so no other state can hold one by mistake.
The table is data; a (state, event) pair that is neither in it nor in IGNORED raises InvalidTransition. Granting is
the last step of a promotion and dropping the first step of every way out, so effects come in that order.
Pure. Read next: `election.py`, which feeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import InvalidTransition, InvariantViolation
from .ids import Instant, Term


@dataclass(frozen=True, slots=True)
class ExecutionPermit:
    """Leave to send: a token and an end. Constructed by `_grant` below and nowhere else."""

    token: Term
    act_until: Instant

    def covers(self, now: Instant) -> bool:
        return now < self.act_until


# -- states ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Starting:
    """The worker has not opened its journal."""


@dataclass(frozen=True, slots=True)
class Standby:
    """Follows, or waits. May campaign."""


@dataclass(frozen=True, slots=True)
class Promoting:
    """Holds the lease; catches up, arms, settles. No permit yet."""

    term: Term
    act_until: Instant


@dataclass(frozen=True, slots=True)
class Leader:
    term: Term
    permit: ExecutionPermit


@dataclass(frozen=True, slots=True)
class Draining:
    """Still holds the lease, sends nothing new, waits for answers to what was sent."""

    term: Term
    act_until: Instant


@dataclass(frozen=True, slots=True)
class Fenced:
    """Lost the right. Leaves when the worker has confirmed that it stopped."""

    term: Term


State = Starting | Standby | Promoting | Leader | Draining | Fenced


# -- events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JournalOpened:
    pass


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    term: Term
    act_until: Instant


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    term: Term
    act_until: Instant


@dataclass(frozen=True, slots=True)
class Reconciled:
    term: Term


@dataclass(frozen=True, slots=True)
class SwitchoverRequested:
    pass


@dataclass(frozen=True, slots=True)
class OrdersSettled:
    term: Term


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A failed compare, a vanished key, a pause, a request to step down."""

    reason: str


@dataclass(frozen=True, slots=True)
class HigherTermSeen:
    term: Term


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The tick that found the permit about to end."""


@dataclass(frozen=True, slots=True)
class Resynced:
    pass


@dataclass(frozen=True, slots=True)
class WorkerDied:
    pass


Event = (
    JournalOpened
    | LeaseGranted
    | LeaseRenewed
    | Reconciled
    | SwitchoverRequested
    | OrdersSettled
    | LeaseLost
    | HigherTermSeen
    | DeadlinePassed
    | Resynced
    | WorkerDied
)


# -- effects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GrantPermit:
    permit: ExecutionPermit


@dataclass(frozen=True, slots=True)
class DropPermit:
    """Before the first await, log line or message: telling others is the slow part."""


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Tell the worker to stop trading and confirm it."""

    term: Term


@dataclass(frozen=True, slots=True)
class DrainWorker:
    term: Term


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Resign `term`. Only ever emitted when the worker cannot send any more."""

    term: Term


Effect = GrantPermit | DropPermit | StopWorker | DrainWorker | ReleaseLease
Result = tuple[State, list[Effect]]


def _grant(term: Term, act_until: Instant) -> ExecutionPermit:
    return ExecutionPermit(term, act_until)


def _same(held: Term, told: Term, what: str) -> None:
    if held != told:
        raise InvariantViolation(f"{what} for term {told} while holding term {held}")


def _opened(_s: Starting, _e: JournalOpened) -> Result:
    return Standby(), []


def _granted(_s: Standby, e: LeaseGranted) -> Result:
    return Promoting(e.term, e.act_until), []


def _reconciled(s: Promoting, e: Reconciled) -> Result:
    _same(s.term, e.term, "Reconciled")
    permit = _grant(s.term, s.act_until)
    return Leader(s.term, permit), [GrantPermit(permit)]


def _renewed_promoting(s: Promoting, e: LeaseRenewed) -> Result:
    _same(s.term, e.term, "LeaseRenewed")
    return Promoting(s.term, max(s.act_until, e.act_until)), []


def _renewed_draining(s: Draining, e: LeaseRenewed) -> Result:
    _same(s.term, e.term, "LeaseRenewed")
    return Draining(s.term, max(s.act_until, e.act_until)), []


def _renewed_leader(s: Leader, e: LeaseRenewed) -> Result:
    _same(s.term, e.term, "LeaseRenewed")
    if e.act_until <= s.permit.act_until:
        return s, []  # answers may come out of order; an end never moves back
    permit = _grant(s.term, e.act_until)
    return Leader(s.term, permit), [GrantPermit(permit)]


def _drain(s: Leader, _e: SwitchoverRequested) -> Result:
    return Draining(s.term, s.permit.act_until), [DropPermit(), DrainWorker(s.term)]


def _settled(s: Draining, e: OrdersSettled) -> Result:
    _same(s.term, e.term, "OrdersSettled")
    return Standby(), [ReleaseLease(s.term)]


def _fence(s: Promoting | Leader | Draining, _e: Event) -> Result:
    return Fenced(s.term), [DropPermit(), StopWorker(s.term)]


def _resynced(s: Fenced, _e: Resynced) -> Result:
    return Standby(), [ReleaseLease(s.term)]


def _died_holding(s: Promoting | Leader | Draining | Fenced, _e: WorkerDied) -> Result:
    return Starting(), [DropPermit(), ReleaseLease(s.term)]


def _died(_s: Standby | Starting, _e: WorkerDied) -> Result:
    return Starting(), [DropPermit()]


# A rule takes its own state and event types; the table guarantees it gets them.
Rule = Callable[..., Result]

TABLE: Final[dict[tuple[type, type], Rule]] = {
    (Starting, JournalOpened): _opened,
    (Starting, WorkerDied): _died,
    (Standby, LeaseGranted): _granted,
    (Standby, WorkerDied): _died,
    (Promoting, Reconciled): _reconciled,
    (Promoting, LeaseRenewed): _renewed_promoting,
    (Promoting, LeaseLost): _fence,
    (Promoting, HigherTermSeen): _fence,
    (Promoting, DeadlinePassed): _fence,
    (Promoting, WorkerDied): _died_holding,
    (Leader, LeaseRenewed): _renewed_leader,
    (Leader, SwitchoverRequested): _drain,
    (Leader, LeaseLost): _fence,
    (Leader, HigherTermSeen): _fence,
    (Leader, DeadlinePassed): _fence,
    (Leader, WorkerDied): _died_holding,
    (Draining, LeaseRenewed): _renewed_draining,
    (Draining, OrdersSettled): _settled,
    (Draining, LeaseLost): _fence,
    (Draining, HigherTermSeen): _fence,
    (Draining, DeadlinePassed): _fence,
    (Draining, WorkerDied): _died_holding,
    (Fenced, Resynced): _resynced,
    (Fenced, WorkerDied): _died_holding,
}

IGNORED: Final[dict[tuple[type, type], str]] = {
    # Answers and requests that come late are normal; each reason says why doing nothing is right.
    (Standby, LeaseRenewed): "the answer to a renewal of a term already released",
    (Standby, LeaseLost): "nothing held",
    (Standby, HigherTermSeen): "nothing held",
    (Standby, SwitchoverRequested): "not the leader; the request stays for whoever is",
    (Standby, Reconciled): "the term ended while the worker reconciled",
    (Standby, OrdersSettled): "the term ended while the worker drained",
    (Standby, Resynced): "already",
    (Starting, LeaseRenewed): "the term was released when the worker died",
    (Starting, LeaseLost): "nothing held",
    (Starting, HigherTermSeen): "nothing held",
    (Starting, SwitchoverRequested): "not the leader",
    (Promoting, SwitchoverRequested): "finish taking over first; the request is refused by the caller",
    (Promoting, OrdersSettled): "of an earlier term",
    (Leader, Reconciled): "told twice",
    (Leader, OrdersSettled): "a drain that was overtaken",
    (Leader, Resynced): "of an earlier term",
    (Promoting, Resynced): "of an earlier term",
    (Draining, Resynced): "of an earlier term",
    (Draining, SwitchoverRequested): "already draining",
    (Draining, Reconciled): "told twice",
    (Fenced, LeaseRenewed): "too late: the permit is gone and comes back only with a new term",
    (Fenced, LeaseLost): "already",
    (Fenced, HigherTermSeen): "already",
    (Fenced, DeadlinePassed): "already",
    (Fenced, SwitchoverRequested): "not the leader any more",
    (Fenced, Reconciled): "too late",
    (Fenced, OrdersSettled): "too late; StopWorker asks again",
}


def step(state: State, event: Event) -> Result:
    """Raises InvalidTransition for a pair that must not occur, InvariantViolation for terms that do not match."""
    pair = (type(state), type(event))
    rule = TABLE.get(pair)
    if rule is not None:
        result: Result = rule(state, event)
        return result
    if pair in IGNORED:
        return state, []
    raise InvalidTransition(f"{type(event).__name__} in {state!r}")


def name(state: State) -> str:
    """As people and logs see it: "leader"."""
    return type(state).__name__.lower()


def term_of(state: State) -> Term | None:
    """The term that a state is about, if it is about one."""
    return getattr(state, "term", None)


def table_as_text() -> str:
    """`state + event -> rule`, a line each: pinned in a test, so that a moved arrow shows as a diff."""
    return "\n".join(f"{s.__name__:<9} {e.__name__:<19} {rule.__name__.strip('_')}" for (s, e), rule in TABLE.items())
