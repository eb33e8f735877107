"""The role machine, walked whole: every pair, the order of its effects, and who may make a permit."""

from __future__ import annotations

import ast
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import role
from cluster.core.errors import InvalidTransition, InvariantViolation
from cluster.core.ids import Instant, Term

ROOT = Path(__file__).parents[3]
T = Term(7)
END = Instant(1000)

STATES: dict[type, role.State] = {
    role.Starting: role.Starting(),
    role.Standby: role.Standby(),
    role.Promoting: role.Promoting(T, END),
    role.Leader: role.Leader(T, role._grant(T, END)),
    role.Draining: role.Draining(T, END),
    role.Fenced: role.Fenced(T),
}
EVENTS: dict[type, role.Event] = {
    role.JournalOpened: role.JournalOpened(),
    role.LeaseGranted: role.LeaseGranted(T, END),
    role.LeaseRenewed: role.LeaseRenewed(T, Instant(2000)),
    role.Reconciled: role.Reconciled(T),
    role.SwitchoverRequested: role.SwitchoverRequested(),
    role.OrdersSettled: role.OrdersSettled(T),
    role.LeaseLost: role.LeaseLost("a test"),
    role.HigherTermSeen: role.HigherTermSeen(Term(8)),
    role.DeadlinePassed: role.DeadlinePassed(),
    role.Resynced: role.Resynced(),
    role.WorkerDied: role.WorkerDied(),
}
PAIRS = list(product(STATES, EVENTS))
MUST_NOT_OCCUR = {
    # A journal opens once per worker; a lease is granted to a standby; nothing else ends what was never begun.
    *((s, role.JournalOpened) for s in STATES if s is not role.Starting),
    *((s, role.LeaseGranted) for s in STATES if s is not role.Standby),
    (role.Starting, role.Reconciled),
    (role.Starting, role.OrdersSettled),
    (role.Starting, role.DeadlinePassed),
    (role.Starting, role.Resynced),
    (role.Standby, role.DeadlinePassed),
}


def test_samples_cover_every_state_and_every_event() -> None:
    assert set(STATES) == set(get_args(role.State))
    assert set(EVENTS) == set(get_args(role.Event))


def test_each_pair_stands_in_exactly_one_place() -> None:
    places = [set(role.TABLE), set(role.IGNORED), MUST_NOT_OCCUR]
    assert sum(len(p) for p in places) == len(PAIRS)
    assert set.union(*places) == set(PAIRS)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda t: t.__name__)
def test_walk(state: type, event: type) -> None:
    s, e = STATES[state], EVENTS[event]
    if (state, event) in MUST_NOT_OCCUR:
        with pytest.raises(InvalidTransition, match=rf"{event.__name__} in {state.__name__}\("):
            role.step(s, e)
        return
    after, effects = role.step(s, e)
    assert (after, effects) == role.step(s, e), "equal inputs give equal outputs"
    if (state, event) in role.IGNORED:
        assert (after, effects) == (s, [])
        assert role.IGNORED[state, event]
    held_permit, holds_permit = isinstance(s, role.Leader), isinstance(after, role.Leader)
    kinds = [type(x) for x in effects]
    if held_permit and not holds_permit:
        assert kinds[0] is role.DropPermit, "the permit goes first on every way out"
    if holds_permit and not held_permit:
        assert kinds[-1] is role.GrantPermit, "and comes last on the one way in"
    if role.GrantPermit in kinds:
        assert isinstance(after, role.Leader)
        assert effects[-1] == role.GrantPermit(after.permit)
    if role.ReleaseLease in kinds:
        assert effects[-1] == role.ReleaseLease(T)
        # Draining: settled and without a permit. Fenced: it confirmed. Else it is dead.
        assert state in (role.Draining, role.Fenced) or event is role.WorkerDied


def test_table() -> None:
    assert role.table_as_text() == "\n".join(
        line.strip()
        for line in """
        Starting  JournalOpened       opened
        Starting  WorkerDied          died
        Standby   LeaseGranted        granted
        Standby   WorkerDied          died
        Promoting Reconciled          reconciled
        Promoting LeaseRenewed        renewed_promoting
        Promoting LeaseLost           fence
        Promoting HigherTermSeen      fence
        Promoting DeadlinePassed      fence
        Promoting WorkerDied          died_holding
        Leader    LeaseRenewed        renewed_leader
        Leader    SwitchoverRequested drain
        Leader    LeaseLost           fence
        Leader    HigherTermSeen      fence
        Leader    DeadlinePassed      fence
        Leader    WorkerDied          died_holding
        Draining  LeaseRenewed        renewed_draining
        Draining  OrdersSettled       settled
        Draining  LeaseLost           fence
        Draining  HigherTermSeen      fence
        Draining  DeadlinePassed      fence
        Draining  WorkerDied          died_holding
        Fenced    Resynced            resynced
        Fenced    WorkerDied          died_holding
        """.strip().splitlines()
    )


WAYS = [
    (role.Starting, role.JournalOpened, role.Standby, []),
    (role.Standby, role.LeaseGranted, role.Promoting, []),
    (role.Promoting, role.Reconciled, role.Leader, [role.GrantPermit]),
    (role.Leader, role.SwitchoverRequested, role.Draining, [role.DropPermit, role.DrainWorker]),
    (role.Draining, role.OrdersSettled, role.Standby, [role.ReleaseLease]),
    *(
        (state, event, role.Fenced, [role.DropPermit, role.StopWorker])
        for state in (role.Promoting, role.Leader, role.Draining)
        for event in (role.LeaseLost, role.HigherTermSeen, role.DeadlinePassed)
    ),
    (role.Fenced, role.Resynced, role.Standby, [role.ReleaseLease]),
    *(
        (state, role.WorkerDied, role.Starting, [role.DropPermit, role.ReleaseLease])
        for state in (role.Promoting, role.Leader, role.Draining, role.Fenced)
    ),
    (role.Starting, role.WorkerDied, role.Starting, [role.DropPermit]),
    (role.Standby, role.WorkerDied, role.Starting, [role.DropPermit]),
]


@pytest.mark.parametrize(("state", "event", "to", "effects"), WAYS)
def test_ways(state: type, event: type, to: type, effects: list[type]) -> None:
    after, done = role.step(STATES[state], EVENTS[event])
    assert (type(after), [type(e) for e in done]) == (to, effects)


@pytest.mark.parametrize("state", [role.Promoting, role.Leader, role.Draining])
@pytest.mark.parametrize(("renewed", "end"), [(999, 1000), (1000, 1000), (1001, 1001)])
def test_an_end_never_moves_back(state: type, renewed: int, end: int) -> None:
    after, effects = role.step(STATES[state], role.LeaseRenewed(T, Instant(renewed)))
    act_until = after.permit.act_until if isinstance(after, role.Leader) else after.act_until
    assert act_until == end
    assert bool(effects) == (state is role.Leader and renewed > 1000)


def test_a_promotion_grants_to_the_end_that_renewals_have_moved_meanwhile() -> None:
    s, _ = role.step(role.Promoting(T, Instant(10)), role.LeaseRenewed(T, Instant(20)))
    _, effects = role.step(s, role.Reconciled(T))
    assert effects == [role.GrantPermit(role._grant(T, Instant(20)))]


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (role.Promoting, role.Reconciled(Term(6))),
        (role.Promoting, role.LeaseRenewed(Term(6), END)),
        (role.Leader, role.LeaseRenewed(Term(8), END)),
        (role.Draining, role.LeaseRenewed(Term(8), END)),
        (role.Draining, role.OrdersSettled(Term(6))),
    ],
)
def test_news_of_another_term_is_a_violation_that_names_both(state: type, event: role.Event) -> None:
    with pytest.raises(InvariantViolation, match=rf"{type(event).__name__} for term {event.term} while holding term 7"):
        role.step(STATES[state], event)


def test_a_permit_covers_up_to_its_end_and_not_its_end() -> None:
    permit = role._grant(T, END)
    assert permit.covers(Instant(999))
    assert not permit.covers(END)


def test_only_a_leader_has_a_permit_field() -> None:
    assert [s.__name__ for s in STATES if "permit" in s.__dataclass_fields__] == ["Leader"]


def _sources() -> list[Path]:
    return [p for room in ("cluster", "node", "chaos") for p in sorted((ROOT / room).rglob("*.py"))]


def _makes_permits(tree: ast.AST) -> list[str]:
    """Names of the functions that construct, copy or unpickle one by its class name, under whatever alias."""
    aliases = {"ExecutionPermit"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            aliases |= {a.asname for a in node.names if a.name == "ExecutionPermit" and a.asname}
        if isinstance(node, ast.Assign) and _last_name(node.value) in aliases:
            aliases |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    found = []
    for fn in ast.walk(tree):
        if isinstance(fn, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            for node in _own(fn):
                if isinstance(node, ast.Call) and _last_name(node.func) in aliases:
                    found.append(getattr(fn, "name", "module"))
    return found


def _own(fn: ast.AST) -> list[ast.AST]:
    """The nodes of a function without those of the functions in it."""
    out, todo = [], list(ast.iter_child_nodes(fn))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            out.append(node)
            todo.extend(ast.iter_child_nodes(node))
    return out


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_one_function_in_one_module_makes_permits() -> None:
    makers = {
        f"{path.relative_to(ROOT)}:{name}"
        for path in _sources()
        for name in _makes_permits(ast.parse(path.read_text(), str(path)))
    }
    assert makers == {"cluster/core/role.py:_grant"}


@pytest.mark.parametrize(
    "source",
    [
        "from cluster.core.role import ExecutionPermit\ndef f(): return ExecutionPermit(1, 2)",
        "from cluster.core import role\ndef f(): return role.ExecutionPermit(1, 2)",
        "from cluster.core.role import ExecutionPermit as P\ndef f(): return P(1, 2)",
        "from cluster.core import role\nP = role.ExecutionPermit\ndef f(): return P(1, 2)",
        "from cluster.core.role import ExecutionPermit\nclass C:\n  async def f(self): return [ExecutionPermit(1, 2)]",
    ],
)
def test_the_search_for_makers_finds_them(source: str) -> None:
    assert _makes_permits(ast.parse(source)) == ["f"]


def test_no_one_else_calls_the_maker() -> None:
    callers = {
        str(path.relative_to(ROOT))
        for path in _sources()
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Call) and _last_name(node.func) == "_grant" and path.name != "role.py"
    }
    assert {c for c in callers if "role" in (ROOT / c).read_text()} == set()


def _event(make: Callable[..., role.Event], *parts: st.SearchStrategy[object]) -> st.SearchStrategy[role.Event]:
    return st.builds(make, *parts)


TERMS = st.just(T)
ENDS = st.integers(0, 3000)
ANY_EVENT = st.one_of(
    *(st.just(e) for e in EVENTS.values()),
    _event(role.LeaseGranted, TERMS, ENDS),
    _event(role.LeaseRenewed, TERMS, ENDS),
)


@given(st.lists(ANY_EVENT, max_size=40))
def test_whatever_comes_a_permit_lives_only_in_a_leader_and_its_end_only_rises(events: list[role.Event]) -> None:
    state: role.State = role.Starting()
    written: role.ExecutionPermit | None = None
    granted = -1
    for e in events:
        try:
            state, effects = role.step(state, e)
        except InvalidTransition:
            continue
        for effect in effects:
            if isinstance(effect, role.GrantPermit):
                assert written is None or effect.permit.act_until > written.act_until
                written = effect.permit
            if isinstance(effect, role.DropPermit):
                written = None
        if isinstance(e, role.LeaseGranted):
            granted = e.act_until
        assert (written is not None) == isinstance(state, role.Leader)
        if isinstance(state, role.Promoting | role.Draining):
            assert state.act_until >= granted
