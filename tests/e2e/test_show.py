"""The five faults in front of the judge: the console script as a user runs it, and each class of venue."""

from __future__ import annotations

import io
import re
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from chaos.show import Show
from tests.e2e.conftest import Start
from tests.support.e2e import TTL_S, Drill, baton, busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULTS = (
    "planned switchover",
    "leader's worker killed",
    "strategy blocks its loop",
    "leader's two processes stopped for 3 TTLs",
    "leader's host lost",
)


def test_the_console_script_breaks_a_cluster_in_five_ways_and_everything_holds(directory: Path) -> None:
    where = directory / "D"
    ran = baton("demo", "--show", "--dir", where, cwd=directory)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert "Failovers, in time after the fault" in ran.stdout
    table = [line for line in ran.stdout.splitlines() if "│" in line]
    for fault in FAULTS:
        (row,) = [line for line in table if fault in line]
        assert re.search(r"│ +(\d+ ms|\d\.\d\d s) │$", row), row
    for line in (
        r"PASS +E .*\d+ lines read",
        r"PASS +S1 .*\d+ orders accepted",
        r"PASS +S2 .*1 stale messages refused, 0 accepted",
        r"PASS +S3 .*\(5 changes of term",
        r"PASS +S5 .*0 lost, 0 unexpected, 0 duplicated",
        r"PASS +S6 .*3 books",
        r"PASS +S7 .*0 RPO records, 0 RPO orders",
        r"(PASS|INCONCLUSIVE) +S10 ",
    ):
        assert re.search(line, ran.stdout), (line, ran.stdout)
    accepted = re.search(r"^(\d+) orders accepted \(refused: .*; 3 journals$", ran.stdout, re.MULTILINE)
    assert accepted is not None and int(accepted[1]) >= 200
    audited = baton("audit", "--record", where, "-o", "json", cwd=directory)
    assert audited.returncode == 0, audited.stdout + audited.stderr


@pytest.mark.parametrize(
    ("profile", "feed", "stale_answers"),
    [("token+while-open", "synthetic", ["stale_token"]), ("expiry", "", ["expired"])],
)
def test_the_five_faults_on_a_venue_that_checks(
    drill: Start, directory: Path, profile: str, feed: str, stale_answers: list[str]
) -> None:
    hang_file = directory / "hang"
    d = drill(
        busy_options(
            strategy="chaos.strategies:BusyHangs",
            overlay={"strategy": {"config": {"interval_s": "0.04", "hang_file": str(hang_file)}}},
            venue_profile=profile,
            feed=feed,
        )
    )
    show = Show(d.cluster, Console(file=io.StringIO()), hang_file)
    result = show.run()
    assert result.problems == []
    assert show.stale_answers == stale_answers
    assert [a.title.startswith(f.partition(" for")[0]) for a, f in zip(result.acts, FAULTS, strict=True)] == [True] * 5
    assert d.bugs() == []


def test_on_a_venue_that_checks_nothing_the_fences_of_our_own_hold(drill: Start, directory: Path) -> None:
    """What is promised there: no second order by anything of ours. An order whose answer was lost with its leader, and
    that the venue does not know, can never be proved absent: it is shown, and blocks its side, for an operator."""
    hang_file = directory / "hang"
    d = drill(
        busy_options(
            strategy="chaos.strategies:BusyHangs",
            overlay={"strategy": {"config": {"interval_s": "0.2", "hang_file": str(hang_file)}}},
            venue_profile="plain",
        )
    )
    assert d.status()["double_order_class"] == "best effort"

    def switch_over(leader: str) -> None:
        d.switch_over(leader)

    def kill_worker(leader: str) -> None:
        d.both(leader)[1].send(signal.SIGKILL)

    def hang(_leader: str) -> None:
        hang_file.touch()

    def pause(leader: str) -> None:
        processes = d.both(leader)
        for p in processes:
            p.send(signal.SIGSTOP)
        time.sleep(3 * TTL_S)  # the fault itself
        for p in processes:
            p.send(signal.SIGCONT)

    def lose_host(leader: str) -> None:
        with d.lost(leader):
            time.sleep(2 * TTL_S)

    for break_it in (switch_over, kill_worker, hang, pause, lose_host):
        leader, token = until("somebody leads, all in sync", lambda: _leads(d))
        break_it(leader)
        until("the next leader trades, or shows the order it cannot settle", lambda t=token: _goes_on(d, t))  # type: ignore[misc]
    until("all are in sync again", lambda: _leads(d))
    assert d.judged().problems == []
    assert d.bugs() == []


def _leads(d: Drill) -> tuple[str, int] | None:
    status = d.status()
    in_sync = len(status["answered"]) == 3 and all(n["in_sync"] for n in status["nodes"])
    leader = status["leader"]
    return (
        (leader["node"], leader["token"]) if in_sync and leader and status["permission"]["level"] == "allowed" else None
    )


def _goes_on(d: Drill, token: int) -> bool:
    if d.tail.wait_order(token + 1, 0.0) is not None:
        return True
    status = d.status()
    return (status["leader"] or {"token": 0})["token"] > token and status["orders"]["unresolved"] > 0
