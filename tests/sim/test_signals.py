"""`baton simulate` and the signals that end it: real ones, to the real process group of a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.e2e import until

END_S = 4.0
"""A second or two, on a machine that has other things to do as well."""
STARTED_S = 30.0
SEEDS = ("--seeds", "0..1000000")
MODES = (SEEDS, ("--kill-matrix",), ("--exhaustive",))
names = [words[0].lstrip("-") for words in MODES]


def session(leader: int) -> list[int]:
    """The processes of that session which have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def workers(leader: int) -> list[int]:
    """Children that are to carry out tasks, ready or still importing."""
    found = []
    for pid in session(leader):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def busy(pid: int) -> bool:
    """It ignores SIGINT, which it does once it works; until then it is held back."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) & 1 << (signal.SIGINT - 1))
    return False


@contextmanager
def simulation(where: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own. Whatever is left of it is killed at the end."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("baton")), "simulate", *words, "--jobs", "2"],
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def at_work(process: subprocess.Popen[str]) -> bool:
    return len(workers(process.pid)) == 2 and all(map(busy, workers(process.pid)))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said on stderr; nothing is left."""
    code = process.wait(END_S)
    until("nothing is left", lambda: not session(process.pid), END_S)
    assert process.stderr is not None
    return code, process.stderr.read()


@pytest.mark.parametrize("words", MODES, ids=names)
def test_ctrl_c_ends_all_of_it_at_once(words: tuple[str, ...], tmp_path: Path):
    with simulation(tmp_path, *words) as process:
        until("both workers work", lambda: at_work(process), STARTED_S)
        os.killpg(process.pid, signal.SIGINT)
        code, said = ended(process)
    assert code == 128 + signal.SIGINT
    assert "interrupted; what had started is stopped" in said and "Traceback" not in said


def test_ctrl_c_while_the_workers_import_leaves_no_traceback(tmp_path: Path):
    with simulation(tmp_path, *SEEDS) as process:
        until("a worker starts", lambda: bool(workers(process.pid)), STARTED_S)
        os.killpg(process.pid, signal.SIGINT)
        code, said = ended(process)
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in said


def test_an_impatient_ctrl_c_ends_it_as_well(tmp_path: Path):
    with simulation(tmp_path, *SEEDS) as process:
        until("both workers work", lambda: at_work(process), STARTED_S)
        for _ in range(5):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)  # the rhythm of a finger; nothing is waited for
        code, said = ended(process)
    assert code in (128 + signal.SIGINT, -signal.SIGINT)
    assert "Traceback" not in said


@pytest.mark.parametrize("send", (os.kill, os.killpg), ids=("to it alone", "to the group"))
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP))
def test_a_signal_that_ends_it_is_its_exit_code(
    number: signal.Signals, send: Callable[[int, int], None], tmp_path: Path
):
    with simulation(tmp_path, *SEEDS) as process:
        until("both workers work", lambda: at_work(process), STARTED_S)
        send(process.pid, number)
        code, said = ended(process)
    assert code == 128 + number
    assert "Traceback" not in said


def test_workers_die_with_their_parent(tmp_path: Path):
    with simulation(tmp_path, *SEEDS) as process:
        until("both workers work", lambda: at_work(process), STARTED_S)
        process.kill()
        until("nothing is left", lambda: not session(process.pid), END_S)


def test_a_worker_that_dies_is_told(tmp_path: Path):
    with simulation(tmp_path, *SEEDS) as process:
        until("both workers work", lambda: at_work(process), STARTED_S)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        code, said = ended(process)
    assert code == 1
    assert "a process of this run died, exit code -9" in said and "Traceback" not in said
