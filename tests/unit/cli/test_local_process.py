"""A signal reaches the process that was meant, or nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.local import process
from node.local.process import MARK, ProcessId

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)",
]


def start(argv: list[str], **env: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | env)
    assert child.stdout is not None
    child.stdout.readline()  # it runs
    return child


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = start(SLEEP)
    yield child
    child.kill()
    child.wait()


def id_of(child: subprocess.Popen[bytes]) -> ProcessId:
    found = ProcessId.of(child.pid)
    assert found is not None
    return found


def test_a_process_is_known_again_from_its_record(sleeper: subprocess.Popen[bytes]) -> None:
    again = ProcessId.from_record(id_of(sleeper).as_record())
    assert again == id_of(sleeper)
    assert again is not None and again.alive


def test_a_pid_that_was_given_to_another_process_gets_no_signal(sleeper: subprocess.Popen[bytes]) -> None:
    me = id_of(sleeper)
    for stranger in (replace(me, ticks=me.ticks - 1), replace(me, boot="another-boot")):
        assert not stranger.alive
        assert not stranger.send(signal.SIGKILL)
        process.stop([stranger], 0.0)
    assert sleeper.poll() is None


def test_a_corpse_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    me = id_of(sleeper)
    sleeper.kill()
    assert process.wait_gone([me], 5.0) == []  # not reaped yet: a zombie
    assert ProcessId.of(sleeper.pid) is None
    assert not me.send(signal.SIGTERM)


def test_stop_wakes_a_paused_process_so_that_it_can_end(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    process.stop([id_of(sleeper)], 5.0)
    assert sleeper.wait(5) == -signal.SIGTERM


def test_stop_kills_who_does_not_listen() -> None:
    child = start(DEAF)
    process.stop([id_of(child)], 0.1)
    assert child.wait(5) == -signal.SIGKILL


def test_only_processes_with_the_clusters_mark_are_found() -> None:
    ours, theirs = start(SLEEP, **{MARK: "aaaa"}), start(SLEEP, **{MARK: "aaaab"})
    try:
        assert list(process.marked("aaaa")) == [id_of(ours)]
    finally:
        for child in (ours, theirs):
            child.kill()
            child.wait()


def test_process_whose_first_thread_has_ended_is_alive_until_the_last_has() -> None:
    """To the kernel it is a zombie by then, and its ports and locks are still held."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (print(flush=True), time.sleep(600))).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    child = start([sys.executable, "-c", code])
    try:
        me = id_of(child)
        deadline = time.monotonic() + 10
        while "(zombie)" not in Path(f"/proc/{child.pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert me.alive and ProcessId.of(child.pid) == me
    finally:
        child.kill()
    assert process.wait_gone([me], 5.0) == []
    child.wait()
