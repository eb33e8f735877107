"""uvicorn as a guest of the worker's loop, and the socket that it listens on. Knows nothing of what is served.

Read next: `http.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError
from cluster.core.ids import NS_PER_S

BACKLOG = 128
CONNECTIONS_MAX = 256
STOP_LIMIT_S = 0.4


def split_address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"node.http_listen = {listen!r}: must be host:port, for example 127.0.0.1:8008")
    return host, int(port)


def bind(listen: str, host: str, port: int) -> socket.socket:
    """A listening socket; a name means its first address, IPv4 before IPv6."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as e:
        raise ConfigError(f"node.http_listen = {listen}: host {host!r} is not known here ({e.strerror})") from e
    family, _, _, _, where = min(found, key=lambda f: f[0] != socket.AF_INET)
    s = socket.socket(family, socket.SOCK_STREAM)
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setblocking(False)
        s.bind(where)
        s.listen(BACKLOG)
    except OSError as e:
        s.close()
        remedy = f"set another port, or find who has it: ss -ltnp 'sport = :{port}'"
        if isinstance(e, PermissionError):
            remedy = "set a port above 1023"
        elif e.errno == errno.EADDRNOTAVAIL:
            remedy = "set an address of this host, or 0.0.0.0 for all of them"
        raise ConfigError(f"node.http_listen = {listen}: {e.strerror}; {remedy}") from e
    return s


class EmbeddedServer(uvicorn.Server):
    """uvicorn as a guest: on our loop, our sockets, leaving signals and logging alone.

    Its own main loop wakes ten times a second to look at a flag; this one waits, and wakes for the Date header only."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",  # what matters is logged by us, with the path
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS_MAX,
                backlog=BACKLOG,
                h11_max_incomplete_event_size=16 * 1024,
                timeout_keep_alive=15,
            )
        )
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not self._stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()

    def stop(self) -> None:
        self._stopping.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but bounded, and without its waits of 0.1 s: ends with the last answer, or at the limit."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if tasks := set(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=STOP_LIMIT_S)
            for task in late:
                task.cancel()
        limit = boottime_ns() + STOP_LIMIT_S * NS_PER_S / 4
        while self.server_state.connections and boottime_ns() < limit:  # noqa: ASYNC110  # uvicorn offers no event
            await asyncio.sleep(0.005)  # their last bytes are leaving
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # a client that reads nothing would keep it open for ever
