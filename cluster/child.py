"""The worker as a process: started with the control channel, the permit page and the home's lock, seen to die, killed.

Start it from the thread that lives as long as the keeper: PR_SET_PDEATHSIG, by which the kernel kills a worker whose
keeper died, is bound to it. Decides nothing. Read next: `link.py`, `permit.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import structlog

from . import link
from .core.errors import Stop

log = structlog.get_logger()

EXIT_S = 1.0
"""What a worker may take to end that was asked to, or that hung up."""


def die_with_keeper(keeper_pid: int) -> None:
    """The worker's part: have the kernel kill this process when its keeper dies (prctl(2) PR_SET_PDEATHSIG), and look
    afterwards whether it died before that was set."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
        raise Stop(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != keeper_pid:
        sys.exit("keeper is gone")


class WorkerProcess:
    """on_exit is called once, when the kernel says that it is dead: from there on it cannot send."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        permit_fd: int,
        lock_fd: int,
        on_message: Callable[[link.Message], None],
        on_exit: Callable[[str], None],
    ) -> None:
        """Raises OSError when it cannot be started."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        ours, theirs = link.link_pair()
        env = dict(
            os.environ,
            BATON_LINK_FD=str(theirs.fileno()),
            BATON_PERMIT_FD=str(permit_fd),
            BATON_KEEPER_PID=str(os.getpid()),
        )
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv, pass_fds=(theirs.fileno(), permit_fd, lock_fd), env=env, stdin=subprocess.DEVNULL
                )
        except OSError:
            ours.close()
            raise
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._link = link.Link(ours, on_message, self._hung_up)
        self._link.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def tell(self, message: link.Message) -> None:
        self._link.send(message)

    def ask_to_exit(self, reason: str) -> None:
        self.tell(link.Exit(reason))
        self._loop.call_later(EXIT_S, self.kill, reason)

    def kill(self, reason: str) -> None:
        if self.alive:
            self._process.kill()
            log.warning("worker_killed", pid=self.pid, reason=reason)

    def end(self) -> None:
        """Kill it and wait until it is gone; `on_exit` is not called."""
        self._forget()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)

    def _hung_up(self) -> None:
        """Most likely it is about to end. If not, it must: nothing can be told to it any more."""
        if self._pidfd >= 0:
            self._loop.call_later(EXIT_S, self.kill, "closed its control channel")

    def _exited(self) -> None:
        code = self._process.wait()
        self._link.drain()  # its last words say why
        self._forget()
        self._on_exit(_how(code))

    def _forget(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._link.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"signal {-code}"
