"""`baton fence rebase` with real journals, on an etcd that never saw this cluster: as after a loss without a backup.
From a backup, with nodes that run: tests/e2e/test_etcd_restored.py."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import boottime_ns
from cluster.core.errors import JournalBroken
from cluster.core.ids import LogIndex, Term
from cluster.core.log import BEGINNING, Entry, make_entry
from cluster.home import Home
from cluster.journal import Journal
from cluster.keys import Keys
from cluster.rebase import carry_out, kept, look
from node.config import load_config
from node.local import nodeconfig
from node.local.servers import LocalEtcd, start_etcd
from node.spec import keeper_spec
from tests.integration.keeper.rig import Etcd
from tests.unit.cli.conftest import Baton
from tests.unit.cli.conftest import baton as baton

CLUSTER = "alpha"
KEYS = Keys(CLUSTER)
HIGHEST = 60
Refuses = Callable[..., str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalEtcd]:
    made = start_etcd(tmp_path / "etcd", members=1)
    yield made
    made.stop(grace_s=0)


@pytest.fixture
def etcd(server: LocalEtcd) -> Etcd:
    """With revisions above every term that a journal has seen."""
    etcd = Etcd(server)
    bump(etcd)
    return etcd


def bump(etcd: Etcd) -> None:
    while etcd.put("/elsewhere", "") <= HIGHEST:
        pass


class Disk:
    """One node's directory: a configuration, and a journal of `entries` in `term`, of an etcd that is gone."""

    def __init__(self, directory: Path, name: str, endpoints: list[str], *, term: int, entries: int) -> None:
        self.name, self.data = name, directory / name
        self.config = directory / f"{name}.toml"
        table = nodeconfig.generated(
            node=name,
            data_dir=self.data,
            grpc="127.0.0.1:1",
            http="127.0.0.1:2",
            etcd=endpoints,
            gate_url="redis://127.0.0.1:3/0",
            venue="127.0.0.1:4",
            feed_url="ws://127.0.0.1:5",
            strategy=nodeconfig.DEFAULT_STRATEGY,
        )
        self.config.write_text(nodeconfig.toml_text(nodeconfig.merged(table, {"cluster": {"name": CLUSTER}})))
        self.data.mkdir()
        asyncio.run(self._fill(term, entries))

    async def _fill(self, term: int, count: int) -> None:
        entries: list[Entry] = []
        for n in range(count):
            chain = entries[-1].chain if entries else BEGINNING.chain
            entries.append(make_entry(LogIndex(n), chain, Term(term), 16, 0, b"x"))
        with closing(self.journal()) as journal:
            journal.submit(entries, lambda _index: None)
            await journal.raise_term(Term(HIGHEST))
            await journal.set_etcd_cluster_id(0xDEAD)

    def journal(self) -> Journal:
        return Journal.open(self.data / "journal.db", cluster=CLUSTER)

    @property
    def etcd_cluster_id(self) -> int:
        with closing(self.journal()) as journal:
            return journal.etcd_cluster_id

    @property
    def journal_id(self) -> str:
        with closing(self.journal()) as journal:
            return journal.journal_id


@pytest.fixture
def long(tmp_path: Path, server: LocalEtcd) -> Disk:
    return Disk(tmp_path, "n1", server.endpoints, term=50, entries=9)


@pytest.fixture
def short(tmp_path: Path, server: LocalEtcd) -> Disk:
    """Longer, but of an older term."""
    return Disk(tmp_path, "n2", server.endpoints, term=40, entries=12)


@pytest.fixture
def refuses(baton: Baton) -> Refuses:
    """Run it; the one line that it ends with."""

    def run(code: int, *words: object) -> str:
        ran = baton("fence", "rebase", "-c", *words)
        last = ran.err.splitlines()[-1]
        assert (ran.code, last.startswith("baton: ")) == (code, True), ran
        return last

    return run


def value(etcd: Etcd, key: str) -> dict[str, Any]:
    found = etcd.keys(KEYS.prefix).get(key)
    return found.json if found else {}


def typing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_each_node_says_where_its_journal_ends_and_the_one_that_ends_highest_leads(baton, etcd, long, short, refuses):
    ran = baton("fence", "rebase", "-c", short.config, "--yes", CLUSTER)
    assert ran.code == 0, ran
    assert "n2: ends at entry 12 of term 40" in ran.out
    assert "kill latch: not set. One pressed after the backup is not in it: press it again" in ran.out
    assert value(etcd, KEYS.insync) == {"members": {}}
    ran = baton("fence", "rebase", "-c", long.config, "--yes", CLUSTER)
    assert "rebased on it so far: n2 ends at entry 12 of term 40" in ran.out
    assert "highest so far: n1, entry 9 of term 50" in ran.err
    assert "--lead on n1" in refuses(3, short.config, "--lead", "--yes", CLUSTER)
    ran = baton("fence", "rebase", "-c", long.config, "--lead", "--yes", CLUSTER)
    assert (ran.code, "n1 is rebased, and leads next" in ran.err) == (0, True)
    assert (
        "n1 was named to lead there, and still is" in baton("fence", "rebase", "-c", long.config, "--yes", CLUSTER).err
    )
    assert value(etcd, KEYS.insync) == {"members": {"n1": long.journal_id}}
    tenure, resigned = etcd.keys(KEYS.prefix)[KEYS.tenure], value(etcd, KEYS.resigned)
    assert tenure.modified > HIGHEST
    assert (tenure.json["node"], resigned["token"], resigned["reason"]) == ("n1", tenure.modified, "etcd rebased")
    ran = baton("fence", "rebase", "-c", short.config, "--yes", CLUSTER)
    assert (ran.code, "n1 was named to lead there; n2 follows" in ran.err) == (0, True)
    assert long.etcd_cluster_id == short.etcd_cluster_id != 0xDEAD


def test_broken_off_between_etcd_and_the_journal_it_is_completed_by_another_run(baton, etcd, long):
    spec = keeper_spec(load_config(long.config, {}), long.config)
    with closing(Home.open(long.data)) as home:
        journal = long.journal()
        found = asyncio.run(look(spec, kept(spec, journal), lead=True))
        journal.close()
        with pytest.raises(JournalBroken):
            asyncio.run(carry_out(spec, home, journal, found, "ann"))
    assert value(etcd, KEYS.rebased)["lead"] == "n1"
    assert long.etcd_cluster_id == 0xDEAD  # its node still stops
    token = etcd.keys(KEYS.prefix)[KEYS.tenure].modified
    assert baton("fence", "rebase", "-c", long.config, "--lead", "--yes", CLUSTER).code == 0
    assert etcd.keys(KEYS.prefix)[KEYS.tenure].modified > token
    assert value(etcd, KEYS.insync) == {"members": {"n1": long.journal_id}}
    assert long.etcd_cluster_id != 0xDEAD


@pytest.mark.parametrize("typed", ["", "alph\n", "yes\n", CLUSTER])
def test_it_asks_for_the_name_and_changes_nothing_without(baton, etcd, long, refuses, monkeypatch, typed):
    typing(monkeypatch, typed)
    if typed == CLUSTER:
        assert baton("fence", "rebase", "-c", long.config).code == 0
        assert long.etcd_cluster_id != 0xDEAD
        return
    assert refuses(3, long.config).endswith(f"{typed.strip()!r} is not this cluster's name; nothing was changed")
    assert "n2" in refuses(3, long.config, "--yes", "n2")
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert refuses(3, long.config).endswith("nothing was changed")
    assert (etcd.keys(KEYS.prefix), long.etcd_cluster_id) == ({}, 0xDEAD)


def test_an_etcd_with_lower_revisions_is_refused_with_the_numbers(server, long, refuses):
    etcd = Etcd(server)
    revision = etcd.put("/elsewhere", "")
    for words in ((), ("--lead",)):
        said = refuses(3, long.config, *words, "--yes", CLUSTER)
        assert f"revision {revision} is not above term {HIGHEST}" in said
        assert "--bump-revision 10000000 --mark-compacted" in said
    assert (etcd.keys(KEYS.prefix), long.etcd_cluster_id) == ({}, 0xDEAD)


def test_a_node_that_runs_is_to_be_stopped_first(etcd, long, refuses):
    with closing(Home.open(long.data)):
        assert "stop it first" in refuses(3, long.config, "--yes", CLUSTER)


def test_an_etcd_on_which_somebody_leads_is_refused(etcd, long, refuses):
    leader = {"node": "n7", "incarnation": "i", "home": "h", "attempt": 1, "renewal": 1, "ttl_ms": 1000}
    etcd.put(KEYS.leader, json.dumps(leader))
    said = refuses(3, long.config, "--yes", CLUSTER)
    assert "n7 leads on this etcd" in said and "wait 4 s" in said


def test_the_next_leader_is_not_named_before_the_permit_of_one_that_runs_after_all_has_ended(baton, etcd, long):
    """Its key has vanished, nobody has resigned for it: what follows resigns at once, and nobody waits any more."""
    etcd.put(KEYS.tenure, json.dumps({"node": "n7", "incarnation": "i", "home": "h", "ttl_ms": 1500}))
    began = boottime_ns()
    assert baton("fence", "rebase", "-c", long.config, "--lead", "--yes", CLUSTER).code == 0
    assert boottime_ns() - began >= 1500 * 1_000_000
    assert value(etcd, KEYS.resigned)["token"] == etcd.keys(KEYS.prefix)[KEYS.tenure].modified


@pytest.mark.parametrize("asked", [False, True])
def test_who_was_in_sync_and_is_not_rebased_yet_is_named_before_another_is_to_lead(baton, etcd, long, short, asked):
    etcd.put(KEYS.insync, json.dumps({"members": {"n1": long.journal_id, "n2": short.journal_id}}))
    if asked:
        assert baton("fence", "rebase", "-c", short.config, "--yes", CLUSTER).code == 0
    ran = baton("fence", "rebase", "-c", long.config, "--lead", "--yes", CLUSTER)
    assert ran.code == 0
    assert ("NOT rebased yet, and in sync before: n2" in ran.err) is not asked


def test_a_latch_that_is_set_is_shown(baton, etcd, long):
    etcd.put(KEYS.halt, json.dumps({"reason": "fat finger", "actor": "ann", "at": 1}))
    assert "kill latch: set (fat finger)." in baton("fence", "rebase", "-c", long.config, "--yes", CLUSTER).out


def test_no_configuration_no_journal_and_no_etcd_are_one_line_each(tmp_path, server, etcd, long, refuses):
    assert "nosuch.toml: no such file" in refuses(1, "nosuch.toml")
    long.data.rename(tmp_path / "elsewhere")
    assert "there is no journal at" in refuses(1, long.config)
    assert not long.data.exists()
    (tmp_path / "elsewhere").rename(long.data)
    server.stop(grace_s=0)
    assert "no etcd endpoint is connected" in refuses(4, long.config)
    assert long.etcd_cluster_id == 0xDEAD
