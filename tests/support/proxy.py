"""A TCP proxy on loopback that can be cut (connections reset, new ones refused), frozen (nothing passes, nothing
breaks) and healed, while its port stays the same."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Proxy:
    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    async def __aenter__(self) -> Proxy:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def freeze(self) -> None:
        self._flowing.clear()

    async def heal(self) -> None:
        self._flowing.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            back, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            async with asyncio.TaskGroup() as pipes:
                pipes.create_task(self._pipe(reader, upstream))
                pipes.create_task(self._pipe(back, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either end is gone, or we were cut: both ends are closed below
        finally:
            self._pipes.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError("the other end closed")
