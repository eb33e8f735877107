"""The mirror of the keys: whatever the watch tells, in whatever order, it says what a fresh read of them would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.ids import NodeId
from cluster.core.lease import View
from cluster.etcd.model import Changes, Event, KeyValue, Snapshot
from cluster.keys import Keys, RawKey, dump, view_of
from cluster.mirror import Mirror

KEYS = Keys("c1")
TTL = 1_000_000_000
HOLDER = {"node": "n1", "incarnation": "i1", "home": "h1", "ttl_ms": 1500}


def kv(name: str, value: bytes, revision: int) -> KeyValue:
    return KeyValue(name, value, revision, revision, 1, 0)


def written(name: str, value: bytes, revision: int) -> Event:
    return Event(False, kv(name, value, revision), None)


def deleted(name: str, revision: int) -> Event:
    return Event(True, KeyValue(name, b"", 0, revision, 0, 0), None)


@pytest.fixture
def mirror() -> Mirror:
    """Of a cluster that n1 leads."""
    mirror = Mirror(KEYS, TTL)
    leader = kv(KEYS.leader, dump(**HOLDER, attempt=1, renewal=0), 5)
    member = kv(KEYS.member("n1"), dump(incarnation="i1", journal_id="j1", ready=True), 4)
    mirror.apply(Snapshot((leader, member, kv(KEYS.insync, dump(members={"n1": "j1"}), 5)), 6), 7)
    return mirror


def test_before_anything_was_told_there_is_nothing():
    mirror = Mirror(KEYS, TTL)
    assert (dict(mirror.raw), mirror.view) == ({}, View(0))


def test_a_snapshot_is_all_there_is_and_everything_in_it_counts_as_written(mirror):
    assert (mirror.view.revision, mirror.view.cluster_id, mirror.view.leader.node) == (6, 7, "n1")
    told = mirror.apply(Snapshot((kv(KEYS.tenure, dump(**HOLDER), 8),), 9), 7)
    assert list(told) == list(mirror.raw) == [KEYS.tenure]
    assert (mirror.view.leader, mirror.view.tenure.token, dict(mirror.view.members)) == (None, 8, {})


def test_changes_say_what_was_written_and_stands(mirror):
    before = mirror.view
    told = mirror.apply(
        Changes(
            (
                written(KEYS.leader, dump(**HOLDER, attempt=1, renewal=1), 7),
                written("/baton/c1/gone", b"{}", 8),
                deleted("/baton/c1/gone", 9),
                deleted(KEYS.member("n1"), 9),
                written(KEYS.member("n2"), b"junk", 9),
                written(KEYS.member("n2"), dump(incarnation="i2"), 10),
            ),
            10,
        ),
        7,
    )
    assert list(told) == [KEYS.leader, KEYS.member("n2")]
    assert told[KEYS.leader] is mirror.raw[KEYS.leader]
    view = mirror.view
    assert (view.revision, view.leader.renewal, view.leader.mod_revision, list(view.members)) == (10, 1, 7, ["n2"])
    assert (view.insync, view.tenure) == (before.insync, None)
    assert before.leader.renewal == 0


def test_a_view_once_given_does_not_change(mirror):
    before = mirror.view
    mirror.apply(Changes((deleted(KEYS.member("n1"), 7), written(KEYS.member("n2"), dump(incarnation="i"), 8)), 8), 7)
    assert (list(before.members), list(mirror.view.members)) == ([NodeId("n1")], [NodeId("n2")])


def test_a_deletion_of_a_key_that_was_never_told_is_no_matter(mirror):
    assert not mirror.apply(Changes((deleted(KEYS.member("n9"), 7), deleted(KEYS.resigned, 7)), 7), 7)
    assert list(mirror.view.members) == ["n1"]


names = st.sampled_from(
    [
        *(KEYS.leader, KEYS.tenure, KEYS.resigned, KEYS.insync, KEYS.switchover),
        *(KEYS.member("n1"), KEYS.member("n2"), KEYS.members, KEYS.history_of(3), KEYS.answer("r"), "/baton/c1/new"),
    ]
)
values = st.sampled_from(
    [
        b"junk",
        b"{}",
        dump(**HOLDER, attempt=1, renewal=1),
        dump(token=5, reason="r", actor="a", successor="n2", at=1, members={"n1": "j1"}),
        dump(incarnation="i1", journal_id="j1", ready=True),
        None,
    ]
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.tuples(names, values), min_size=1, max_size=5)), max_size=12))
def test_whatever_is_told_the_view_is_that_of_the_keys(items: list[tuple[bool, list[tuple[str, bytes | None]]]]):
    mirror, revision, stand = Mirror(KEYS, TTL), 0, dict[str, KeyValue]()
    for afresh, edits in [(True, []), *items]:
        events = []
        for name, value in edits:
            revision += 1
            if value is None:
                stand.pop(name, None)
                events.append(deleted(name, revision))
            else:
                stand[name] = kv(name, value, revision)
                events.append(written(name, value, revision))
        mirror.apply(Snapshot(tuple(stand.values()), revision) if afresh else Changes(tuple(events), revision), 7)
        raw = {name: RawKey.of(found) for name, found in stand.items()}
        assert mirror.raw == raw
        assert mirror.view == view_of(KEYS, raw, revision, 7, TTL)
