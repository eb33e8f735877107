"""Keeps the programs of a local cluster running, as systemd does on a real host.

Starts them stage by stage, each in a session of its own; restarts what dies, with back-off; stops all, the last stage
first. For a program that says how (`after_death`: a node's ExecStopPost), its death is settled before it is restarted.

A *hold* file beside a program means: its host is lost. Nothing is restarted or settled until the file is gone.

Knows nothing of etcd or trading: `launch.py` says what the programs are. Touches processes and hold files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError
from cluster.core.ids import NS_PER_S, ns
from node.local import process
from node.local.process import ProcessId
from node.local.servers import Proc, ServerFailed

log = structlog.get_logger()

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 30.0
"""A program that lived so long is restarted without the back-off that its predecessors earned."""
_HOLD_POLL_S = 0.05
_READY_POLL_S = 0.05


@dataclass(slots=True)
class Program:
    """One supervised process. `state` and what follows it are the supervisor's.

    ready: whether it answers; may block for up to a second. grace_s: from SIGTERM to SIGKILL.
    after_death: settles a death; says what was done. final: exit codes that mean "do not start me again".
    """

    name: str
    proc: Proc
    hold: Path
    ready: Callable[[], bool]
    grace_s: float = 2.0
    after_death: Callable[[], Awaitable[str]] | None = None
    final: frozenset[int] = frozenset()
    state: str = "waiting"  # waiting, running, held, restarting, given up, stopped
    id: ProcessId | None = None
    restarts: int = 0
    last_exit: str = ""
    started_at: int = field(default=0, repr=False)  # Instant

    def as_record(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "process": self.id.as_record() if self.id else None,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "log": self.proc.log,
        }


class Supervisor:
    """`run` once. changed: called with the records of all programs whenever one changes; must not block for long."""

    def __init__(
        self,
        stages: Sequence[Sequence[Program]],
        *,
        changed: Callable[[dict[str, dict[str, Any]]], None],
        ready_timeout_s: float = 30.0,
    ) -> None:
        self._stages = stages
        self._changed = changed
        self._ready_timeout_s = ready_timeout_s
        self._asked_to_stop = asyncio.Event()

    @property
    def programs(self) -> list[Program]:
        return [p for stage in self._stages for p in stage]

    def stop(self) -> None:
        self._asked_to_stop.set()

    async def run(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Start all, await `on_ready`, then keep them running until `stop()`. Whatever happens, all are stopped in
        the end. Raises ServerFailed for a program that does not start, and what `on_ready` raises."""
        work = asyncio.create_task(self._work(on_ready), name="supervise")
        stop = asyncio.create_task(self._asked_to_stop.wait(), name="stop")
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed = work.done()
            work.cancel()
            stop.cancel()
            await asyncio.wait((work, stop))
            await asyncio.to_thread(self._stop_all)
        if failed:
            work.result()

    async def _work(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        for stage in self._stages:
            for p in stage:
                self._start(p)
            await asyncio.gather(*(self._wait_ready(p) for p in stage))
        await on_ready()
        async with asyncio.TaskGroup() as tasks:
            for p in self.programs:
                tasks.create_task(self._mind(p), name=p.name)

    def _start(self, p: Program) -> None:
        try:
            p.proc.start()
        except OSError as e:
            raise ServerFailed(f"{p.name} cannot be started: {p.proc.argv[0]}: {e.strerror}") from e
        p.id = ProcessId.of(p.proc.pid)
        p.started_at = boottime_ns()
        self._set(p, "running")
        log.info("program_started", program=p.name, pid=p.proc.pid, restarts=p.restarts)

    def _set(self, p: Program, state: str) -> None:
        p.state = state
        self._changed({q.name: q.as_record() for q in self.programs})

    async def _wait_ready(self, p: Program) -> None:
        deadline = boottime_ns() + ns(self._ready_timeout_s)
        while not await asyncio.to_thread(p.ready):
            if not p.proc.alive:
                self._note_exit(p)
                raise ServerFailed(f"{p.name} ended at once ({p.last_exit}). {_last_words(p)}")
            if boottime_ns() > deadline:
                raise ServerFailed(f"{p.name} did not answer within {self._ready_timeout_s:g} s. {_last_words(p)}")
            await asyncio.sleep(_READY_POLL_S)

    # -- one program -----------------------------------------------------------------------------------------

    async def _mind(self, p: Program) -> None:
        backoff_s = BACKOFF_MIN_S
        while True:
            await _wait_exit(p.proc)
            self._note_exit(p)
            if boottime_ns() - p.started_at > ns(STABLE_S):
                backoff_s = BACKOFF_MIN_S
            if not p.hold.exists():
                if p.proc.exit_code in p.final:
                    self._set(p, "given up")
                    log.error("program_given_up", program=p.name, exit=p.last_exit, log=p.proc.log)
                    return
                self._set(p, "restarting")
                await self._settle(p)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            await self._wait_not_held(p)
            p.restarts += 1
            while not self._started(p):  # noqa: ASYNC110  nothing tells us when the machine has room again
                await asyncio.sleep(BACKOFF_MAX_S)

    def _started(self, p: Program) -> bool:
        try:
            self._start(p)
        except ServerFailed as e:  # out of memory or of processes: it may pass
            log.error("program_not_started", program=p.name, reason=str(e))
            return False
        return True

    async def _settle(self, p: Program) -> None:
        if p.after_death is None:
            return
        try:
            done = await p.after_death()
        except BatonError as e:  # safety does not rest on it: the others then wait for the ttl
            log.warning("death_not_settled", program=p.name, reason=str(e))
        else:
            log.info("death_settled", program=p.name, done=done)

    async def _wait_not_held(self, p: Program) -> None:
        while p.hold.exists():
            if p.state != "held":
                self._set(p, "held")
                log.info("program_held", program=p.name, file=str(p.hold))
            await asyncio.sleep(_HOLD_POLL_S)

    def _note_exit(self, p: Program) -> None:
        code = p.proc.exit_code
        p.last_exit = "unknown" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        lived_s = round((boottime_ns() - p.started_at) / NS_PER_S, 3)
        log.warning("program_ended", program=p.name, exit=p.last_exit, pid=p.proc.pid, lived_s=lived_s)
        p.id = None

    def _stop_all(self) -> None:
        for stage in reversed(self._stages):
            alive = [p.id for p in stage if p.id is not None]
            begun = boottime_ns()
            process.stop(alive, max((p.grace_s for p in stage), default=0.0))
            took_s = round((boottime_ns() - begun) / NS_PER_S, 3)
            log.info("programs_stopped", programs=[p.name for p in stage], took_s=took_s)
            for p in stage:
                if p.proc.pid:
                    p.proc.wait_gone(1.0)  # reaps it
                p.id = None
                p.state = "stopped"
        self._changed({p.name: p.as_record() for p in self.programs})


async def _wait_exit(proc: Proc) -> None:
    """Until the process is dead; told by the kernel, not by looking again and again."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return
    ended = loop.create_future()

    def tell() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _last_words(p: Program) -> str:
    return f"Its last words, from {p.proc.log}:\n{p.proc.tail()}"
