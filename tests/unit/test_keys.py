"""The keys in etcd: what is written is read back, and what nobody of ours wrote never frees anybody's lease."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.core.ids import Instant, LogIndex, NodeId, Term
from cluster.core.lease import Sightings, acquire_from, evict_from
from cluster.core.rebase import End, Rebased
from cluster.keys import (
    STRANGER,
    VALUE_MAX,
    Keys,
    RawKey,
    dump,
    insync_of,
    load,
    readable,
    rebased_of,
    rebased_value,
    switchover_of,
    unreadable,
    view_of,
)

KEYS = Keys("c1")
OWN_TTL = 1_000_000_000
LEADER: dict[str, Any] = {
    "node": "n1",
    "incarnation": "i1",
    "home": "h1",
    "attempt": 3,
    "ttl_ms": 1500,
    "renewal": 9,
    "grpc": "h:1",
    "http": "h:2",
}
TENURE: dict[str, Any] = {"node": "n1", "incarnation": "i1", "home": "h1", "ttl_ms": 1500}
RESIGNED: dict[str, Any] = {
    "token": 7,
    "reason": "shutdown",
    "actor": "ann",
    "successor": "n2",
    "at": 5,
    "last_sign": 4,
}
MEMBER: dict[str, Any] = {"incarnation": "i2", "journal_id": "j2", "priority": 120, "never_lead": True, "ready": True}
HALT: dict[str, Any] = {"reason": "fat finger", "actor": "ann", "at": 5}
REQUEST: dict[str, Any] = {"id": "r1", "target": "n2", "actor": "ann", "at": 5}


def raw(value: Any, created: int = 7, modified: int = 8) -> RawKey:
    return RawKey(value if isinstance(value, bytes) else json.dumps(value).encode(), created, modified)


def view(**values: Any) -> Any:
    found = {getattr(KEYS, name): raw(value) for name, value in values.items()}
    return view_of(KEYS, found, 9, 0xC1, OWN_TTL)


def test_the_names_are_those_of_the_design():
    assert (KEYS.prefix, KEYS.leader, KEYS.tenure) == ("/baton/c1/", "/baton/c1/leader", "/baton/c1/tenure")
    assert (KEYS.resigned, KEYS.insync) == ("/baton/c1/resigned", "/baton/c1/insync")
    assert (KEYS.rebased, KEYS.halt) == ("/baton/c1/rebased", "/baton/c1/halt")
    assert KEYS.member("n1") == "/baton/c1/members/n1"
    assert KEYS.answer("r") == "/baton/c1/control/answers/r"


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_names_of_the_history_sort_as_their_tokens(tokens: list[int]):
    assert [KEYS.history_of(t) for t in sorted(tokens)] == sorted(KEYS.history_of(t) for t in tokens)


def test_what_is_written_is_read_back():
    v = view(leader=LEADER, tenure=TENURE, resigned=RESIGNED, insync={"members": {"n1": "j1", "n2": "j2"}})
    assert (v.leader.node, v.leader.incarnation, v.leader.home) == ("n1", "i1", "h1")
    assert (v.leader.attempt, v.leader.ttl, v.leader.renewal) == (3, 1_500_000_000, 9)
    assert (v.leader.token, v.leader.mod_revision) == (7, 8)  # created, modified
    assert (v.tenure.node, v.tenure.ttl, v.tenure.token) == ("n1", 1_500_000_000, 8)  # its mod_revision is the token
    assert (v.resigned.token, v.resigned.successor, v.resigned.at) == (7, "n2", 5)
    assert (v.insync.members, v.insync.mod_revision) == ({"n1": "j1", "n2": "j2"}, 8)
    assert (v.revision, v.cluster_id) == (9, 0xC1)


def test_what_was_rebased_is_read_back_and_what_cannot_be_read_speaks_of_no_etcd():
    ends = {NodeId("n1"): End(Term(4), LogIndex(17)), NodeId("n2"): End(Term(0), LogIndex(0))}
    for lead in (None, NodeId("n2")):
        said = Rebased(0xFFFF_FFFF_FFFF_FFFF, ends, lead, frozenset({NodeId("n3")}), 8)
        assert rebased_of(raw(rebased_value(said))) == said
        assert readable(KEYS, KEYS.rebased, raw(rebased_value(said)))
    assert rebased_of(None) == Rebased()
    good = {"etcd": "c1", "ends": {"n1": [4, 17]}, "lead": None, "in_sync": []}
    for junk in (
        b"junk",
        {},
        good | {"lead": "n9"},
        good | {"ends": {"n1": 4}},
        good | {"ends": []},
        good | {"etcd": 7},
        good | {"in_sync": 7},
    ):
        assert rebased_of(raw(junk)) == Rebased(mod_revision=8)
        assert not readable(KEYS, KEYS.rebased, raw(junk))


def test_kill_latch_is_its_reason_and_an_unreadable_one_is_set():
    assert view().halted is None
    assert view(halt=HALT).halted == "fat finger"
    assert view(halt=HALT | {"reason": ""}).halted == "no reason given"
    for junk in (b"junk", b"", {}, [], {"why": "?"}):
        assert view(halt=junk).halted == "the halt key in etcd is unreadable"
        assert not readable(KEYS, KEYS.halt, raw(junk))
    assert readable(KEYS, KEYS.halt, raw(HALT))


def test_no_keys_are_an_empty_view_and_no_successor_is_none():
    v = view()
    assert (v.leader, v.tenure, v.resigned, dict(v.insync.members), v.insync.mod_revision) == (None, None, None, {}, 0)
    assert view(resigned=RESIGNED | {"successor": None}).resigned.successor is None


def test_members_are_read_by_name_and_the_unreadable_are_left_out():
    found = {
        KEYS.member("n2"): raw(MEMBER),
        KEYS.member("n3"): raw(b"junk"),
        KEYS.member("n4"): raw({"incarnation": "i", "priority": None}),
        "/baton/c1/other": raw({}),
    }
    (m,) = view_of(KEYS, found, 9, 1, OWN_TTL).members.values()
    assert (m.node, m.journal_id, m.priority, m.never_lead, m.ready) == ("n2", "j2", 120, True, True)
    assert unreadable(KEYS, found) == [KEYS.member("n3"), KEYS.member("n4")]


def test_dump_is_stable_and_load_takes_objects_only():
    assert dump(b=1, a="x") == b'{"a":"x","b":1}'
    assert load(None) is None
    assert load(raw([1])) is None
    assert load(raw({"a": 1})) == {"a": 1}


# -- what nobody of ours wrote --------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def bent(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Anything at all: bytes, JSON, or the right object with some fields gone or of another kind."""
    fields = st.sampled_from(sorted(good))
    almost = st.builds(
        lambda changed, gone: {k: v for k, v in (good | changed).items() if k not in gone},
        st.dictionaries(fields, json_values, max_size=4),
        st.sets(fields, max_size=3),
    )
    return st.binary(max_size=50) | (json_values | almost).map(lambda v: json.dumps(v).encode())


@given(bent(LEADER), bent(TENURE), bent(RESIGNED), bent({"members": {"n1": "j1"}}), bent(MEMBER), bent(REQUEST))
@example(b'{"ttl_ms":Infinity}', b'{"ttl_ms":1e999}', b'{"token":-Infinity}', b'{"members":[]}', b"[" * 30_000, b"")
def test_whatever_stands_there_reading_it_raises_nothing_and_keeps_every_key(leader, tenure, resigned, insync, m, ask):
    names = [KEYS.leader, KEYS.tenure, KEYS.resigned, KEYS.insync, KEYS.member("n1"), KEYS.switchover]
    found = dict(zip(names, map(raw, (leader, tenure, resigned, insync, m, ask)), strict=True))
    v = view_of(KEYS, found, 9, 1, OWN_TTL)
    # A key that is there is never read as absent; and a lease is never shorter than nothing.
    assert v.leader is not None and v.leader.token == 7 and v.leader.ttl > 0
    assert v.tenure is not None and v.tenure.token == 8 and v.tenure.ttl > 0
    assert v.resigned is not None
    assert v.insync.mod_revision == 8
    for name in unreadable(KEYS, found):
        if name == KEYS.leader:
            assert (v.leader.node, v.leader.ttl) == (STRANGER, OWN_TTL)
        elif name == KEYS.tenure:
            assert (v.tenure.node, v.tenure.ttl) == (STRANGER, OWN_TTL)
        elif name == KEYS.resigned:
            assert not v.ended_properly  # it proves nothing
        elif name == KEYS.insync:
            assert set(v.insync.members) == {STRANGER}  # nobody who exists may lead
        elif name == KEYS.switchover:
            assert switchover_of(found[name]) is None
        else:
            assert not v.members


@pytest.mark.parametrize("value", [b"junk", b"[]", b"{}"])
def test_an_unreadable_leader_or_tenure_is_waited_for_with_our_own_ttl(value):
    seen = Sightings()
    led = view(leader=value)
    seen.note(led, Instant(100))
    assert evict_from(led, seen) == 100 + OWN_TTL
    gone = view(tenure=value, resigned={**RESIGNED, "token": 7})  # of another token than the tenure's, which is 8
    seen.note(gone, Instant(200))
    assert acquire_from(gone, seen) == 200 + OWN_TTL


def test_a_resignation_counts_only_for_the_token_it_names():
    assert acquire_from(view(tenure=TENURE, resigned=RESIGNED | {"token": 8}), Sightings()) == 0
    assert acquire_from(view(tenure=TENURE, resigned=RESIGNED | {"token": "8x"}), Sightings()) is None


@pytest.mark.parametrize("ttl_ms", [0, -1, None, "soon", float("inf"), float("nan")])
def test_a_ttl_that_is_none_is_not_taken_for_none(ttl_ms):
    assert view(leader=LEADER | {"ttl_ms": ttl_ms}).leader.ttl == OWN_TTL


def test_values_longer_than_any_of_ours_are_not_looked_into():
    long = LEADER | {"grpc": "x" * VALUE_MAX}
    assert not readable(KEYS, KEYS.leader, raw(long))
    assert view(leader=long).leader.node == STRANGER
    assert readable(KEYS, KEYS.leader, raw(LEADER))


def test_a_request_is_read_whole_or_not_at_all():
    asked = switchover_of(raw(REQUEST))
    assert asked is not None
    assert (asked.id, asked.target, asked.actor, asked.at, asked.mod_revision) == ("r1", NodeId("n2"), "ann", 5, 8)
    assert switchover_of(raw(REQUEST | {"target": None})).target is None  # type: ignore[union-attr]
    assert switchover_of(raw(REQUEST | {"at": "now"})) is None
    for id_ in ("", "\ud800", "a/b", "x" * 65, ["r1"]):  # it becomes part of a key
        assert switchover_of(raw(REQUEST | {"id": id_})) is None
    assert switchover_of(raw({"target": "n2"})) is None
    assert switchover_of(None) is None


def test_an_insync_set_by_itself():
    assert insync_of(None).mod_revision == 0
    assert insync_of(raw({"members": {"n1": "j1"}})).names(NodeId("n1"), "j1")  # type: ignore[arg-type]
    assert set(insync_of(raw({"members": ["n1"]})).members) == {STRANGER}
