"""A byte of a journal flips while its node is down. What the file says can no longer be trusted, and nothing is lost:
the others have it. When nobody has it whole, nobody leads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.support.e2e import Drill, baton, busy_options, lacks, starting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def flip(database: Path, needle: bytes = b"probe:") -> None:
    """One bit of an entry in the middle, in the database or its write-ahead log, wherever more entries stand."""
    files = [f for f in (database, Path(f"{database}-wal")) if f.exists()]
    file = max(files, key=lambda f: f.read_bytes().count(needle))
    data = bytearray(file.read_bytes())
    found = [i for i in _all(data, needle)]
    assert len(found) > 20, f"no entries in {file}"
    data[found[len(found) // 2]] ^= 0x04
    file.write_bytes(data)


def _all(data: bytearray, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


def journal(d: Drill, node: str) -> Path:
    return d.cluster.journal_dir(node) / "journal.db"


def kept(d: Drill, node: str) -> list[Path]:
    return [
        p for p in journal(d, node).parent.glob("journal.db.corrupt-*") if p.suffix != ".lock" and "-wal" not in p.name
    ]


def test_standby_with_a_flipped_byte_keeps_the_file_and_fetches_everything_again(drill: Start) -> None:
    d = drill(busy_options())
    leader, token = d.healthy()
    d.trades_on()
    standby = next(n for n in d.nodes if n != leader)
    with d.lost(standby):
        damaged = journal(d, standby).read_bytes()
        flip(journal(d, standby))
        # An operator who looks meanwhile sees it, as text.
        told = baton("journal", "verify", journal(d, standby))
        assert told.returncode == 1 and "Traceback" not in told.stdout + told.stderr
        assert "not what was written" in told.stdout
        d.trades_on()
    assert d.healthy() == (leader, token)  # it is in sync again, and nobody else had to do anything
    (old,) = kept(d, standby)
    assert len(old.read_bytes()) >= len(damaged)
    (warning,) = [w for w in _own_warnings(d, standby) if "not what was written" in w]
    assert old.name in warning and "empty follower" in warning
    d.trades_on()
    d.holds()
    assert d.bugs() == []


def _own_warnings(d: Drill, node: str) -> list[str]:
    from node.client import get_json

    found: list[str] = get_json(d.cluster.http_url(node), "/v1/status")["warnings"]
    return found


def test_last_leader_with_a_flipped_byte_leaves_the_lead_to_who_has_it_whole(drill: Start) -> None:
    d = drill(busy_options())
    leader, token = d.healthy()
    d.trades_on()
    orders = len(d.orders())
    d.kill_everything()
    flip(journal(d, leader))
    d.start()
    new, later = d.healthy()
    assert new != leader and later > token
    assert len(kept(d, leader)) == 1
    d.trades_on()
    assert len(d.holds().record.orders) > orders


def test_when_every_journal_is_damaged_nobody_leads_and_every_node_says_why(drill: Start) -> None:
    d = drill(busy_options(nodes=2, etcd=1))
    d.healthy()
    d.trades_on()
    d.kill_everything()
    lines = len(d.lines())
    for node in d.nodes:
        flip(journal(d, node))
    with starting(d.cluster):
        lacks(d.cluster, "no leader", "cannot lead before that", "No journal of n1, n2 is in the in-sync set")
    for node in d.nodes:
        assert "journal_corrupt" in d.log(node) and "not in the in-sync set" in d.log(node)
        assert len(kept(d, node)) == 1
    assert [x["kind"] for x in d.lines(lines)] in (["started"], [])  # not one message of a node
