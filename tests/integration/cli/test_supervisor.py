"""The supervisor on small programs of its own: restarts, holds, settles deaths, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import BatonError
from node.local import supervisor as sup
from node.local.process import ProcessId
from node.local.servers import Proc, ServerFailed
from node.local.supervisor import Program, Supervisor

LIMIT_S = 20.0

RUNS = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def ended(code: int) -> str:
    """Comes up, and ends with `code` when told by SIGUSR1."""
    return (
        f"import os, signal, time; signal.signal(signal.SIGUSR1, lambda *_: os._exit({code})); "
        "print('up', flush=True); time.sleep(600)"
    )


class Bench:
    """Programs in a directory; counts what the supervisor does with them."""

    def __init__(self, tmp_path: Path) -> None:
        self.dir = tmp_path
        self.records: list[dict[str, dict[str, Any]]] = []
        self.all: list[Program] = []
        self.settled: list[str] = []

    def program(self, name: str, code: str = RUNS, **more: Any) -> Program:
        log = self.dir / f"{name}.log"
        proc = Proc([sys.executable, "-c", code], str(log))

        def ready() -> bool:
            return proc.alive and log.exists() and "up" in log.read_text()

        made = Program(name, proc, self.dir / f"{name}.hold", ready, **({"grace_s": 2.0} | more))
        self.all.append(made)
        return made

    def settling(self, name: str) -> Callable[[], Awaitable[str]]:
        async def settle() -> str:
            self.settled.append(name)
            return "settled"

        return settle

    @asynccontextmanager
    async def run(self, *stages: list[Program], **more: Any) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(stages, changed=self.records.append, **more)
        ready = asyncio.Event()

        async def on_ready() -> None:
            ready.set()

        task = asyncio.create_task(supervisor.run(on_ready))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait((task, waiting), timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            assert ready.is_set()
            yield supervisor
        finally:
            waiting.cancel()
            supervisor.stop()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), LIMIT_S)
            assert not [p.name for p in self.all if p.proc.pid and p.proc.alive], "left behind"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(sup, "BACKOFF_MIN_S", 0.02)
    return Bench(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_stages_start_one_after_the_other_and_stop_in_reverse(bench: Bench) -> None:
    writes = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    print('down', time.monotonic_ns(), flush=True); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    first, second = bench.program("first", writes), bench.program("second", writes)
    async with bench.run([first], [second]):
        assert first.started_at < second.started_at
        assert [p.state for p in (first, second)] == ["running", "running"]
    down = [int(p.proc.tail().split("down")[1]) for p in (first, second)]
    assert down[1] < down[0]
    assert [p.state for p in (first, second)] == ["stopped", "stopped"]
    assert all(r["process"] is None for r in bench.records[-1].values())


async def test_a_dead_program_is_settled_and_started_again(bench: Bench) -> None:
    p = bench.program("p", after_death=bench.settling("p"))
    async with bench.run([p]):
        old = p.proc.pid
        os.kill(old, signal.SIGKILL)
        await until(lambda: p.restarts == 1 and p.state == "running")
        assert p.proc.pid != old
        assert p.last_exit == "signal 9"
        assert bench.settled == ["p"]
        assert bench.records[-1]["p"]["process"]["pid"] == p.proc.pid


async def test_what_dies_again_and_again_is_restarted_ever_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay: float) -> None:
        slept.append(delay)
        await real_sleep(min(delay, 0.01))

    p = bench.program("p")
    async with bench.run([p]):
        monkeypatch.setattr(sup.asyncio, "sleep", sleep)  # the supervisor's pauses, not its wall time
        monkeypatch.setattr(sup, "BACKOFF_MAX_S", 0.1)
        for n in range(1, 6):
            os.kill(p.proc.pid, signal.SIGKILL)
            await until(lambda n=n: p.restarts == n and p.state == "running")  # type: ignore[misc]
        monkeypatch.undo()
    backoffs = [s for s in slept if s not in (0.01, sup._HOLD_POLL_S)]
    assert backoffs == [0.02, 0.04, 0.08, 0.1, 0.1]


async def test_a_settlement_that_fails_does_not_keep_the_program_down(bench: Bench) -> None:
    async def fails() -> str:
        raise BatonError("etcd does not answer")

    p = bench.program("p", after_death=fails)
    async with bench.run([p]):
        os.kill(p.proc.pid, signal.SIGKILL)
        await until(lambda: p.restarts == 1 and p.state == "running")


async def test_a_held_program_stays_dead_unsettled_until_released(bench: Bench) -> None:
    p = bench.program("p", after_death=bench.settling("p"))
    async with bench.run([p]):
        p.hold.touch()
        os.kill(p.proc.pid, signal.SIGKILL)
        await until(lambda: p.state == "held")
        await asyncio.sleep(0.3)  # nothing may happen: only time can show that
        assert (p.state, p.restarts, bench.settled) == ("held", 0, [])
        p.hold.unlink()
        await until(lambda: p.restarts == 1 and p.state == "running")
        assert bench.settled == []


async def test_a_hold_does_nothing_to_the_living(bench: Bench) -> None:
    p = bench.program("p")
    async with bench.run([p]):
        p.hold.touch()
        await asyncio.sleep(0.2)
        assert (p.state, p.proc.alive) == ("running", True)


async def test_an_exit_code_that_is_final_is_not_started_again(bench: Bench) -> None:
    p, other = bench.program("p", ended(3), final=frozenset({3})), bench.program("other")
    async with bench.run([p, other]):
        os.kill(p.proc.pid, signal.SIGUSR1)
        await until(lambda: p.state == "given up")
        assert p.last_exit == "exit code 3"
        os.kill(other.proc.pid, signal.SIGKILL)  # the others are still looked after
        await until(lambda: other.restarts == 1 and other.state == "running")
        assert p.restarts == 0


async def test_a_program_that_does_not_come_up_fails_the_start_with_its_last_words(bench: Bench) -> None:
    good, bad = bench.program("good"), bench.program("bad", "print('no such venue'); raise SystemExit(7)")
    with pytest.raises(ServerFailed, match=r"bad ended at once \(exit code 7\)") as e:
        async with bench.run([good], [bad]):
            pass
    assert "no such venue" in str(e.value)
    assert not good.proc.alive


async def test_a_program_that_never_answers_fails_the_start_in_time(bench: Bench) -> None:
    mute = bench.program("mute", "import time; time.sleep(600)")
    with pytest.raises(ServerFailed, match=r"mute did not answer within 0\.3 s"):
        async with bench.run([mute], ready_timeout_s=0.3):
            pass


async def test_a_binary_that_is_not_there_is_named(bench: Bench) -> None:
    p = bench.program("p")
    p.proc.argv = ["/nonexistent/etcd"]
    with pytest.raises(ServerFailed, match="p cannot be started: /nonexistent/etcd: No such file"):
        async with bench.run([p]):
            pass


async def test_stop_during_the_start_leaves_nothing(bench: Bench) -> None:
    up, mute = bench.program("up"), bench.program("mute", "import time; time.sleep(600)")
    supervisor = Supervisor([[up], [mute]], changed=bench.records.append)

    async def never() -> None:
        raise AssertionError("it is not ready")

    task = asyncio.create_task(supervisor.run(never))
    await until(lambda: mute.state == "running")
    supervisor.stop()
    await asyncio.wait_for(task, LIMIT_S)
    assert not up.proc.alive and not mute.proc.alive


async def test_who_does_not_listen_is_killed_after_its_grace(bench: Bench) -> None:
    p = bench.program("p", DEAF, grace_s=0.1)
    async with bench.run([p]):
        pass
    assert p.proc.exit_code == -signal.SIGKILL


async def test_a_paused_program_is_stopped_as_well(bench: Bench) -> None:
    p = bench.program("p")
    async with bench.run([p]):
        os.kill(p.proc.pid, signal.SIGSTOP)
    assert p.proc.exit_code == -signal.SIGTERM


async def test_a_program_that_is_not_restarted_yet_is_not_stopped_by_its_old_pid(bench: Bench) -> None:
    p = bench.program("p")
    async with bench.run([p]):
        p.hold.touch()
        os.kill(p.proc.pid, signal.SIGKILL)
        await until(lambda: p.state == "held")
        assert p.id is None
        assert ProcessId.of(p.proc.pid) is None
