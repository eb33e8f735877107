"""Tasks in several processes that end with whoever started them: on Ctrl-C, on SIGTERM, and when it is killed.

Why no ProcessPoolExecutor: leaving it waits for what runs, and one more signal meanwhile leaves its processes and a
thread that the interpreter waits for at its end. Here there is no thread, and the processes are killed: half a task is
of use to nobody.

    SIGINT, SIGHUP   of the process group: the children ignore them, even while they start; their parent kills them
    SIGTERM          of the group: the children die of it, and their parent of its own
    SIGKILL          of the parent: the kernel kills the children (PR_SET_PDEATHSIG)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from cluster.child import die_with_keeper
from cluster.core.errors import BatonError

T = TypeVar("T")
R = TypeVar("R")

_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit whatever threads the caller has
_IGNORED = (signal.SIGINT, signal.SIGHUP)
_HELD = (*_IGNORED, signal.SIGTERM)
GRACE_S = 0.5
"""From the death of a child to blaming it: the signal that killed it may be on its way to us as well."""
END_S = 5.0
IDLE_S = 1.0


def each_of(
    do: Callable[[T], R], tasks: Iterable[T], *, jobs: int, idle: Callable[[], None] = lambda: None
) -> Generator[tuple[int, R], None, None]:
    """do(task) of each task, with the task's number, as they get done. Tasks are taken when a process is free for one.

    idle: called each second at least. Call from the main thread, which the children die with, and close the iterator:
    that kills what runs. Raises what `do` raised, and BatonError when a child died."""
    children: dict[Connection, SpawnProcess] = {}
    numbers: dict[Connection, int] = {}  # of the tasks under way
    left = enumerate(tasks)
    try:
        while True:
            while len(numbers) < jobs and (task := next(left, None)) is not None:
                free = next((c for c in children if c not in numbers), None) or _start(do, children)
                numbers[free] = task[0]
                free.send(task[1])
            if not numbers:
                return
            ready = wait(list(numbers), IDLE_S)
            for conn in [c for c in numbers if c in ready]:
                yield numbers.pop(conn), _answer(conn, children[conn])
            idle()
    finally:
        _end(children)


def _start(do: Callable[[Any], Any], children: dict[Connection, SpawnProcess]) -> Connection:
    resource_tracker.ensure_running()  # it would let the signals through that are held here
    with _signals_held():  # the child inherits that, until it has its own handlers
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_work, args=(do, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        children[ours] = process
    return ours


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(conn: Connection, process: SpawnProcess) -> Any:
    try:
        good, answer = conn.recv()
    except (EOFError, OSError) as e:
        time.sleep(GRACE_S)
        process.join(END_S)
        raise BatonError(f"a process of this run died, exit code {process.exitcode}; is there memory left?") from e
    if not good:
        raise answer
    return answer


def _end(children: dict[Connection, SpawnProcess]) -> None:
    """Nothing is left of them afterwards; another Ctrl-C has to wait for that moment."""
    with _signals_held():
        for process in children.values():
            process.kill()
        for conn, process in children.items():
            process.join(END_S)
            conn.close()


# -- in a child --------------------------------------------------------------------------------------------------------


def _work(do: Callable[[Any], Any], tasks: Connection, parent: int) -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    try:
        die_with_keeper(parent)
    except SystemExit:  # it is dead already, and so nobody is there to be told
        return
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        try:
            answer = (True, do(task))
        except Exception as e:  # noqa: BLE001 - it is raised where the answer is awaited
            e.add_note(traceback.format_exc())
            answer = (False, e)
        tasks.send(answer)
