"""config, journal verify, venue record and doctor, on files; and what doctor says of servers that are not there."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.journal import Journal
from cluster.journal_file import corrupt
from node import doctor
from node.config import Config, load_config
from node.doctor import FAIL, OK, WARN, Finding
from node.local import nodeconfig
from node.paper_venue.engine import Engine
from node.paper_venue.exchange import Exchange
from node.paper_venue.profile import Profile
from node.paper_venue.state import Moment
from node.types import Instrument
from tests.unit.cli.conftest import Baton


def closed() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A good configuration, with these tables over it, of servers that are not there."""

    def make(**over: Any) -> Path:
        table = nodeconfig.generated(
            node="n1",
            data_dir=tmp_path / "data",
            grpc=closed(),
            http=closed(),
            etcd=[f"http://{closed()}"],
            gate_url=f"redis://{closed()}/0",
            venue=closed(),
            feed_url=f"ws://{closed()}",
            strategy=nodeconfig.DEFAULT_STRATEGY,
        )
        file = tmp_path / "baton.toml"
        file.write_text(nodeconfig.toml_text(nodeconfig.merged(table, over)))
        return file

    return make


@pytest.fixture
def config(write: Callable[..., Path]) -> Callable[..., Config]:
    return lambda **over: load_config(write(**over), {})


def levels(findings: list[Finding], check: str) -> list[str]:
    return [f.level for f in findings if f.check == check]


async def gathered(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [f async for f in findings]


# -- config ------------------------------------------------------------------------------------------------------


def test_a_good_configuration_is_exit_0_and_says_whose_it_is(baton: Baton, write: Callable[..., Path]) -> None:
    ran = baton("config", "validate", write())
    assert (ran.code, ran.out) == (0, "")
    assert "node n1 of cluster local, paper" in ran.err


def test_a_wrong_configuration_is_exit_1_with_a_line_per_error(baton: Baton, write: Callable[..., Path]) -> None:
    ran = baton("config", "validate", write(lease={"ttl_s": 0.1}, worker={"hang": 1}))
    assert ran.code == 1
    assert "worker.hang" in ran.err
    assert all(line.startswith("baton: ") for line in ran.err.splitlines())


@pytest.mark.parametrize(
    "words",
    [["config", "validate", "nofile"], ["node", "run", "-c", "nofile"], ["node", "resign", "--dead", "-c", "nofile"]],
)
def test_a_file_that_is_not_there_is_named_with_what_to_do_instead(baton: Baton, words: list[str]) -> None:
    ran = baton(*words)
    assert ran.code == 1
    assert "nofile: no such file; the README has the smallest configuration" in ran.err and "--config" in ran.err
    assert "baton init" not in ran.err


def test_what_could_not_run_is_told_before_it_is_tried(baton: Baton, write: Callable[..., Path]) -> None:
    file = write(gate={"url": "http://x"}, feed={"url": "foo"}, venue={"target": "10.0.0.41"})
    for words in (["config", "validate", file], ["node", "run", "--config", file], ["doctor", "--config", file]):
        ran = baton(*words)
        assert ran.code == 1
        told = ran.out + ran.err
        assert "gate.url = http://x" in told and "feed.url = foo" in told and "venue.target = 10.0.0.41" in told


def test_show_tells_every_value_and_where_it_comes_from(
    baton: Baton, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(lease={"ttl_s": 2.0})
    monkeypatch.setenv("BATON__LOG__LEVEL", "debug")
    rows = {r["key"]: r for r in json.loads(baton("config", "show", file, "--origin", "-o", "json").out)["config"]}
    assert (rows["lease.ttl_s"]["value"], rows["lease.ttl_s"]["origin"]) == (2.0, str(file))
    assert (rows["log.level"]["value"], rows["log.level"]["origin"]) == ("debug", "$BATON__LOG__LEVEL")
    assert rows["never_lead" if "never_lead" in rows else "node.never_lead"]["origin"] == "default"


def test_show_does_not_tell_secrets(baton: Baton, write: Callable[..., Path]) -> None:
    file = write(venue={"api_key": "hunter2"}, gate={"url": "redis://:hunter2@h:1/0"})
    for words in (["-o", "json"], ["-o", "tsv"], ["--origin"], []):
        ran = baton("config", "show", file, *words)
        assert ran.code == 0
        assert "hunter2" not in ran.out + ran.err


def test_schema_is_json(baton: Baton) -> None:
    assert "lease" in json.loads(baton("config", "schema").out)["properties"]


# -- journal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "journal.db"
    path.parent.mkdir()
    Journal.open(path, cluster="local").close()
    return path


def spoil(path: Path) -> None:
    """Flip what says whose journal it is."""
    data = path.read_bytes()
    at = data.index(b"clusterlocal")
    path.write_bytes(data[: at + 7] + b"L" + data[at + 8 :])


def test_an_intact_journal_is_exit_0(baton: Baton, journal: Path) -> None:
    for given in (journal, journal.parent):
        ran = baton("journal", "verify", given)
        assert ran.code == 0
        assert f"{journal}: 0 entries" in ran.out and "intact" in ran.out


def test_a_broken_journal_is_exit_1_and_says_what_is_wrong(baton: Baton, journal: Path) -> None:
    spoil(journal)
    ran = baton("journal", "verify", journal, "-o", "json")
    assert ran.code == 1
    told = json.loads(ran.out)["journals"][0]
    assert told["ok"] is False and str(journal) in told["problem"]
    assert "Keep the file. A node that finds this" in told["problem"]
    assert "baton journal verify" not in told["problem"], "it is what was just run"
    assert "look closer with `baton journal verify" in str(corrupt(journal, "x")), "but others may say so"


def test_no_journal_is_an_error_that_names_the_path(baton: Baton, tmp_path: Path) -> None:
    ran = baton("journal", "verify", tmp_path / "nothing.db")
    assert ran.code == 1
    assert "nothing.db" in ran.err


# -- venue record ------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A venue's directory, laid out as in a local cluster."""

    async def once() -> None:
        engine = Engine(Profile(), [Instrument("BTCUSDT", Decimal("0.01"), Decimal("0.00001"))])
        Exchange(engine, tmp_path / "D" / "venue", clock=lambda: Moment(1, 1)).close()

    asyncio.run(once())
    return tmp_path / "D"


def test_the_venues_record_is_a_json_line_per_message(baton: Baton, record: Path) -> None:
    for given in (record, record / "venue"):
        ran = baton("venue", "record", "--dir", given, "-o", "jsonl")
        assert ran.code == 0
        lines = [json.loads(line) for line in ran.out.splitlines()]
        assert [line["kind"] for line in lines] == ["started"]
        stable = "venue_seq at_ns node token client_order_id decision_id kind outcome reason symbol side qty price"
        assert set(stable.split()) <= lines[0].keys()


def test_the_venues_record_can_be_verified(baton: Baton, record: Path) -> None:
    ran = baton("venue", "record", "--dir", record, "--verify")
    assert (ran.code, ran.err) == (0, "1 lines, chain intact\n")


def test_a_record_that_is_not_there_is_named(baton: Baton, tmp_path: Path) -> None:
    ran = baton("venue", "record", "--dir", tmp_path)
    assert ran.code == 1
    assert "there is no venue record at" in ran.err


@pytest.mark.parametrize("given", ["BTCUSDT", "BTCUSDT,x,1", "BTCUSDT,1,1,1"])
def test_a_wrong_instrument_is_named(baton: Baton, tmp_path: Path, given: str) -> None:
    ran = baton("venue", "run", "--dir", tmp_path, "--instrument", given)
    assert ran.code == 1
    assert f"--instrument {given!r}: write SYMBOL,TICK_SIZE,LOT_SIZE" in ran.err


@pytest.mark.parametrize("port", ["70000", "65536", "0", "-1", "http", ""])
def test_a_port_that_there_is_not_is_refused_and_not_taken_for_another(baton: Baton, tmp_path: Path, port: str) -> None:
    for words in (["venue", "run", "--dir", tmp_path / "V"], ["feed", "serve", "--synthetic"]):
        ran = baton(*words, "--listen", f"127.0.0.1:{port}")
        assert ran.code == 1
        assert f"baton: --listen 127.0.0.1:{port}: must be host:port, like" in ran.err
    assert not (tmp_path / "V").exists()


# -- doctor ------------------------------------------------------------------------------------------------------


async def test_servers_that_are_not_there_are_failures_with_a_remedy(config: Callable[..., Config]) -> None:
    c = config()
    for ask in (doctor.etcd, doctor.gate, doctor.venue):
        findings = [f for f in await gathered(ask(c)) if f.level == FAIL]
        assert findings, ask
        assert all(f.remedy for f in findings)
        assert not any(f.text.startswith(f"{f.check}:") for f in findings), "it is told as `check: text`"
    (feed,) = doctor.feed(c)
    assert (feed.level, "does not answer" in feed.text) == (FAIL, True)


def test_doctor_is_exit_1_when_something_fails(baton: Baton, write: Callable[..., Path]) -> None:
    ran = baton("doctor", "--config", write(), "-o", "json")
    assert ran.code == 1
    told = json.loads(ran.out)
    assert {"check", "level", "text", "remedy"} == set(told["findings"][0])
    assert {f["level"] for f in told["findings"]} >= {"ok", "warn", "fail"}
    assert all(f["remedy"] for f in told["findings"] if f["level"] != "ok")


def test_a_configuration_that_is_wrong_is_what_doctor_finds(baton: Baton, write: Callable[..., Path]) -> None:
    ran = baton("doctor", "--config", write(lease={"ttl_s": 0.1}), "-o", "tsv")
    assert ran.code == 1
    assert "lease.ttl_s" in ran.out


def test_a_configuration_that_is_not_there_is_what_doctor_finds(baton: Baton, tmp_path: Path) -> None:
    ran = baton("doctor", "--config", "nofile.toml", "-o", "json")
    assert ran.code == 1
    [found] = json.loads(ran.out)["findings"]
    assert (found["level"], found["text"]) == ("fail", "nofile.toml: no such file")
    assert "README" in found["remedy"] and "correct" not in found["remedy"]


def test_the_worst_failover_is_told_for_the_live_settings(config: Callable[..., Config]) -> None:
    told = next(f.text for f in doctor.settings(config(lease={"ttl_s": 2.0})) if f.check == "failover")
    assert "host lost 2.10 s" in told


def test_settings_that_weaken_a_promise_are_warned_of(config: Callable[..., Config]) -> None:
    weak = list(doctor.settings(config(replication={"durability": "memory"})))
    assert levels(weak, "durability") == levels(weak, "protection") == [WARN]
    firm = list(doctor.settings(config(replication={"min_standbys": 1, "unprotected": "halt"})))
    assert levels(firm, "durability") == levels(firm, "protection") == []


def test_a_secret_that_cannot_be_read_fails(config: Callable[..., Config]) -> None:
    assert FAIL in levels(list(doctor.settings(config(venue={"api_key": "file:/no/such"}))), "secrets")


def test_a_secret_that_cannot_be_read_is_one_finding_among_the_others(baton: Baton, write: Callable[..., Path]) -> None:
    ran = baton("doctor", "--config", write(venue={"api_key": "file:/no/such"}), "-o", "json")
    assert (ran.code, ran.err) == (1, "")
    found = json.loads(ran.out)["findings"]
    named = [f["check"] for f in found if "file:/no/such" in f["text"]]
    assert named == ["secrets", "venue"]
    assert {"gate", "feed", "disk", "ports", "journal"} <= {f["check"] for f in found}
    assert all(f["remedy"] for f in found if f["level"] == "fail")


def test_ports_are_free_or_said_to_be_taken(config: Callable[..., Config]) -> None:
    assert {f.level for f in doctor.ports(config())} == {OK}
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = config(node={"grpc_listen": f"127.0.0.1:{squatter.getsockname()[1]}"})
        found = {f.text.split(" = ")[0]: f.level for f in doctor.ports(taken)}
    assert found == {"node.grpc_listen": FAIL, "node.http_listen": OK}


def test_the_disk_is_measured_where_the_journal_will_be(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config()
    found = next(doctor.disk(c))
    assert found.check == "disk" and "ms (median)" in found.text
    for slow_s, level in ((0.001, OK), (0.02, WARN), (0.3, FAIL)):
        monkeypatch.setattr(doctor, "_sync_times", lambda _folder, s=slow_s: [s] * doctor.FSYNCS)
        assert next(doctor.disk(c)).level == level


def test_a_journal_is_verified_and_must_be_of_this_cluster(config: Callable[..., Config], journal: Path) -> None:
    (good,) = doctor.journal(config())
    assert (good.level, "0 entries" in good.text) == (OK, True)
    (other,) = doctor.journal(config(cluster={"name": "another"}))
    assert other.level == FAIL
    spoil(journal)
    (broken,) = doctor.journal(config())
    assert broken.level == FAIL


def test_a_strategy_that_does_not_take_its_configuration_fails(config: Callable[..., Config]) -> None:
    (good,) = doctor.strategy(config())
    (bad,) = doctor.strategy(config(strategy={"config": {"qty_lots": -1}}))
    assert (good.level, bad.level, "qty_lots" in bad.text) == (OK, FAIL, True)
