"""Exit codes, streams and formats, against canned nodes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import BatonError
from node.local.cluster import LocalCluster
from tests.support.node_api import NodeApi, row, status
from tests.unit.cli.conftest import Baton

HISTORY = [
    {
        "token": 9,
        "node": "n2",
        "came_from": "n1",
        "cause": "switchover",
        "actor": "ann",
        "at": "2026-01-01T00:00:00.000Z",
        "rto_s": 0.02,
        "phases_s": {"arm": 0.001, "detect": 0.002},
    }
]
ORDER = {
    "client_order_id": "b00z1z2",
    "decision_id": "d",
    "symbol": "BTCUSDT",
    "side": "buy",
    "qty": "0.001",
    "price": "60000.01",
    "state": "open",
    "filled": "0",
    "cancel_requested": False,
    "reason": "",
    "term": 5,
    "at": 1_700_000_000_123_000_000,
}


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def nodes() -> Iterator[tuple[NodeApi, NodeApi]]:
    """n1 leads with token 5, n2 stands by."""
    rows = [row("n1", "leader"), row("n2", "standby", lag_entries=4, in_sync=False)]

    def answers(me: str) -> dict[str, Any]:
        head = {"schema": 1, "node": me, "at": "x"}
        return {
            "/v1/status": (200, status(me, "n1", 5, rows)),
            "/v1/history": (200, head | {"history": HISTORY}),
            "/v1/orders": (200, head | {"orders": [ORDER] if me == "n1" else []}),
            "/v1/positions": (200, head | {"positions": [{"symbol": "BTCUSDT", "qty": "0.1", "lots": 10}]}),
            "/v1/switchover": (202, {"text": "asked"}),
        }

    with NodeApi(answers("n1")) as n1, NodeApi(answers("n2")) as n2:
        yield n1, n2


def urls(nodes: tuple[NodeApi, ...]) -> list[str]:
    return [word for n in nodes for word in ("--url", n.url)]


# -- status ----------------------------------------------------------------------------------------------------


def test_status_as_json_has_the_stable_keys_and_only_data_on_stdout(baton: Baton, nodes: Any) -> None:
    ran = baton("status", *urls(nodes), "-o", "json")
    told = json.loads(ran.out)
    assert (ran.code, ran.err, told["schema"]) == (0, "", 1)
    assert told["leader"] == {"node": "n1", "token": 5, "since": None, "lease_left_s": 0.5}
    assert told["permission"]["level"] == "allowed"
    assert {"last_failover", "nodes", "answered"} <= told.keys()
    stable = "name role in_sync log_index commit_index lag_entries lag_s keeper_pid worker_pid http grpc feed_age_s"
    assert set(stable.split()) <= told["nodes"][0].keys()


def test_status_as_tsv_has_a_header_and_a_line_per_node(baton: Baton, nodes: Any) -> None:
    lines = baton("status", *urls(nodes), "-o", "tsv").out.splitlines()
    assert lines[0].split("\t")[:4] == ["name", "role", "in_sync", "log_index"]
    assert [line.split("\t")[:3] for line in lines[1:]] == [["n1", "leader", "true"], ["n2", "standby", "false"]]


def test_status_for_people_names_leader_permission_and_trouble(baton: Baton, nodes: Any) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    ran = baton("status", *urls(nodes), "--url", dead)
    assert ran.code == 0
    assert "trading: ALLOWED" in ran.out and "token: 5" in ran.out and "500 ms left" in ran.out
    assert f"! {dead} does not answer" in ran.out
    assert "\x1b" not in ran.out  # no colour where nobody looks


def test_nobody_answers_is_exit_4(baton: Baton) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    ran = baton("status", "--url", url)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == f"baton: no node answers: {url} does not answer: Connection refused\n"


def test_one_node_that_answers_is_enough(baton: Baton, nodes: Any) -> None:
    ran = baton("status", "--url", f"http://127.0.0.1:{closed_port()}", "--url", nodes[1].url, "-o", "json")
    assert ran.code == 0
    assert json.loads(ran.out)["answered"] == ["n2"]


def test_the_environment_may_name_the_nodes(baton: Baton, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_URL", f"{nodes[0].url} {nodes[1].url}")
    assert json.loads(baton("status", "-o", "json").out)["answered"] == ["n1", "n2"]


def test_no_cluster_named_and_none_here_is_an_error_with_the_remedy(baton: Baton) -> None:
    ran = baton("status")
    assert ran.code == 1
    assert "--dir D, --url http://host:port, or set BATON_URL" in ran.err


@pytest.mark.parametrize("words", [["status"], ["orders"], ["switchover"]])
def test_a_local_cluster_that_is_stopped_is_said_to_be_so(baton: Baton, words: list[str], tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "lab")
    cluster.dir.mkdir()
    cluster.update(schema=1, id="x", options={}, ports={}, state="stopped")
    ran = baton(*words, "--dir", "lab")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == "baton: the cluster in lab is stopped; start it: baton up --dir lab\n"


def test_an_answer_that_is_not_json_is_said_to_be_none(baton: Baton) -> None:
    with NodeApi({"/v1/status": (200, b"<html>")}) as odd:
        ran = baton("status", "--url", odd.url)
    assert ran.code == 4
    assert "answered 200 OK" in ran.err


# -- usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["status", "-o", "yaml"], ["status", "--nonsense"], ["up", "--nodes", "0"], ["journal", "verify"]],
)
def test_wrong_usage_is_exit_2_on_stderr(baton: Baton, words: list[str]) -> None:
    ran = baton(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_resigning_for_the_living_is_not_offered(baton: Baton) -> None:
    assert baton("node", "resign", "--config", "x.toml").code == 2


# -- history, orders, positions ----------------------------------------------------------------------------------


def test_history_as_json_has_the_stable_keys(baton: Baton, nodes: Any) -> None:
    told = json.loads(baton("history", *urls(nodes), "-o", "json").out)
    assert told["schema"] == 1
    assert told["history"][0]["started_at"] == "2026-01-01T00:00:00.000Z"
    assert {"token", "node", "cause", "actor", "started_at", "phases_s", "rto_s"} <= told["history"][0].keys()


def test_history_for_people_tells_the_phases_in_their_order(baton: Baton, nodes: Any) -> None:
    assert "detect 2.0 ms  arm 1.0 ms" in baton("history", *urls(nodes)).out


def test_orders_are_the_leaders_with_times_for_people(baton: Baton, nodes: Any) -> None:
    told = json.loads(baton("orders", *urls(nodes), "-o", "json").out)
    assert told["orders"][0]["client_order_id"] == "b00z1z2"
    assert told["orders"][0]["at"] == "2023-11-14T22:13:20.123Z"
    assert told["orders"][0]["price"] == "60000.01"


def test_orders_of_another_than_the_leader_are_said_to_be_so(baton: Baton, nodes: Any) -> None:
    ran = baton("orders", "--url", nodes[1].url, "-o", "tsv")
    assert ran.code == 0
    assert "the leader (n1) was not asked" in ran.err
    assert len(ran.out.splitlines()) == 1
    nodes[1].answers["/v1/status"] = (200, status("n2", None, 5, [row("n2", "standby")]))
    assert baton("orders", "--url", nodes[1].url).err.startswith("baton: nobody leads; this is what n2 has\n")


def test_in_tsv_nothing_and_an_empty_text_are_a_dash(baton: Baton, nodes: Any) -> None:
    head, line = baton("orders", *urls(nodes), "-o", "tsv").out.splitlines()
    assert dict(zip(head.split("\t"), line.split("\t"), strict=True))["reason"] == "-"


def test_positions_as_tsv(baton: Baton, nodes: Any) -> None:
    assert baton("positions", *urls(nodes), "-o", "tsv").out.splitlines()[1].startswith("BTCUSDT\t0.1\t10")


# -- switchover --------------------------------------------------------------------------------------------------


def test_switchover_asks_one_node_with_target_and_actor(baton: Baton, nodes: Any) -> None:
    ran = baton("switchover", *urls(nodes), "--to", "n2")
    assert (ran.code, ran.out, ran.err) == (0, "", "asked\n")
    asked = [body for n in nodes for path, body in n.asked if path == "/v1/switchover"]
    assert len(asked) == 1
    assert asked[0]["target"] == "n2"
    assert "@" in asked[0]["actor"]


def test_an_accepted_switchover_is_data_where_data_is_asked_for(baton: Baton, nodes: Any) -> None:
    ran = baton("switchover", *urls(nodes), "-o", "json")
    assert (ran.code, ran.err, json.loads(ran.out)) == (0, "", {"schema": 1, "accepted": True, "text": "asked"})
    assert baton("switchover", *urls(nodes), "-o", "tsv").out == "accepted\ttext\ntrue\tasked\n"


def test_a_refusal_names_commands_and_not_paths_of_the_api(baton: Baton, nodes: Any) -> None:
    for n in nodes:
        n.answers["/v1/switchover"] = (409, {"error": "no", "remedy": "see /v1/status: who leads"})
    assert baton("switchover", *urls(nodes)).err == "baton: no; see baton status: who leads\n"
    for n in nodes:
        n.answers["/v1/switchover"] = (504, {"error": "late", "remedy": "look at /v1/status and /v1/history"})
    assert baton("switchover", *urls(nodes)).err == "baton: late; look at baton status and baton history\n"


def test_a_refused_switchover_is_exit_3_with_reason_and_remedy(baton: Baton, nodes: Any) -> None:
    for n in nodes:
        n.answers["/v1/switchover"] = (409, {"error": "n2 is not in sync", "remedy": "wait"})
    ran = baton("switchover", *urls(nodes), "--wait")
    assert (ran.code, ran.err) == (3, "baton: n2 is not in sync; wait\n")


def test_a_switchover_that_nobody_answered_is_exit_5_as_it_may_happen(baton: Baton, nodes: Any) -> None:
    nodes[0].answers["/v1/switchover"] = (504, {"error": "no answer in time: it may still happen"})
    ran = baton("switchover", *urls(nodes))
    assert ran.code == 5
    assert len([1 for n in nodes for path, _ in n.asked if path == "/v1/switchover"]) == 1  # never asked twice


@pytest.mark.parametrize("output", ["json", "tsv", "pretty"])
def test_waiting_streams_the_phases_until_the_new_leader_trades(baton: Baton, nodes: Any, output: str) -> None:
    halfway = [row("n1", "draining"), row("n2", "standby")]
    done = [row("n1", "standby"), row("n2", "leader")]
    looks = iter(
        [
            status("n1", "n1", 5, halfway, permission={"level": "blocked", "reason": "handing over"}),
            status("n1", "n2", 9, done, history=HISTORY),
        ]
    )
    last = status("n1", "n2", 9, done, history=HISTORY)

    def after_asked(_body: Any) -> tuple[int, Any]:
        nodes[0].answers["/v1/status"] = lambda _b: (200, next(looks, last))
        return 202, {"text": "asked"}

    nodes[0].answers["/v1/switchover"] = after_asked
    ran = baton("switchover", "--url", nodes[0].url, "--wait", "-o", output)
    assert ran.code == 0
    assert "n1 draining" in ran.err and "trading allowed" in ran.err
    if output == "pretty":
        assert ran.out == "n1 -> n2, token 9, trading gap 20.0 ms\n"
    elif output == "tsv":
        head, line = (text.split("\t") for text in ran.out.splitlines())
        assert head == baton("history", "--url", nodes[0].url, "-o", "tsv").out.splitlines()[0].split("\t")
        assert line[:6] == ["9", "n2", "n1", "switchover", "ann", "2026-01-01T00:00:00.000Z"]
    else:
        told = json.loads(ran.out)
        assert (told["token"], told["node"], told["rto_s"]) == (9, "n2", 0.02)
        assert told["started_at"] == "2026-01-01T00:00:00.000Z" and "at" not in told


def test_when_time_is_up_before_the_record_is_there_both_nodes_are_named(baton: Baton, nodes: Any) -> None:
    done = status("n1", "n2", 9, [row("n1", "standby"), row("n2", "leader")], history=[])

    def after_asked(_body: Any) -> tuple[int, Any]:
        nodes[0].answers["/v1/status"] = (200, done)
        return 202, {"text": "asked"}

    nodes[0].answers["/v1/switchover"] = after_asked
    ran = baton("switchover", "--url", nodes[0].url, "--wait", "--timeout", "0.1")
    assert (ran.code, ran.out) == (0, "n1 -> n2, token 9, no order yet\n")


def test_waiting_too_long_is_exit_5(baton: Baton, nodes: Any) -> None:
    ran = baton("switchover", *urls(nodes), "--wait", "--timeout", "0.3")
    assert ran.code == 5
    assert "does not trade yet" in ran.err


# -- version, errors -----------------------------------------------------------------------------------------------


def test_version_as_json(baton: Baton) -> None:
    told = json.loads(baton("version", "-o", "json").out)
    assert told["schema"] == 1 and told["baton"] and told["python"]


def test_a_fault_of_ours_is_one_line_and_not_a_traceback(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr("node.client.cluster_status", broken)
    monkeypatch.delenv("BATON_DEBUG", raising=False)
    ran = baton("status", "--url", "http://127.0.0.1:1")
    assert ran.code == 1
    assert ran.err == "baton: RuntimeError: oh; this is a fault of ours; set BATON_DEBUG=1 for the traceback\n"
    monkeypatch.setenv("BATON_DEBUG", "1")
    with pytest.raises(RuntimeError):
        baton("status", "--url", "http://127.0.0.1:1")


def test_each_line_of_a_long_error_is_ours(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise BatonError("a = 1: too small\nb = 2: too large")

    monkeypatch.setattr("node.client.cluster_status", wrong)
    assert baton("status", "--url", "http://h:1").err == "baton: a = 1: too small\nbaton: b = 2: too large\n"


def test_a_reader_that_has_enough_hears_no_complaint() -> None:
    """`baton ... | head`."""
    pipe = f"{sys.executable} -m node.cli version | head -0"
    reading = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60)
    assert (reading.stdout, reading.stderr) == ("", "")


@pytest.mark.parametrize(
    "module", ["grpc", "pydantic", "rich", "starlette", "redis", "websockets", "psutil", "asyncio"]
)
def test_the_command_line_starts_without_the_heavy_modules(module: str) -> None:
    code = f"import sys, node.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
