"""A plain HTTP/1.1 client on loopback that sends exactly what a test says. One request per connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    address: str, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Answer:
    reader, writer = await _send(address, method, path, {"Connection": "close", **(headers or {})}, body)
    try:
        async with asyncio.timeout(10):
            status, got = await _head(reader)
            return Answer(status, got, await reader.read())
    finally:
        writer.close()


async def _send(
    address: str, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=1 << 22)
    lines = {"Host": address, **headers}
    if body is not None:
        lines.setdefault("Content-Length", str(len(body)))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    writer.write(head.encode() + (body or b""))
    return reader, writer


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), headers


class EventStream:
    """One follower of a text/event-stream, opened by `open_events`."""

    def __init__(self, status: int, headers: dict[str, str], reader: Any, writer: asyncio.StreamWriter) -> None:
        self.status, self.headers = status, headers
        self._reader, self.writer = reader, writer

    async def documents(self) -> AsyncIterator[dict[str, Any]]:
        """The data of each event, until the server ends the stream."""
        while line := await self._reader.readline():
            if line.startswith(b"data:"):
                yield json.loads(line[5:])

    async def next(self, limit_s: float = 5.0) -> dict[str, Any]:
        async with asyncio.timeout(limit_s):
            async for document in self.documents():
                return document
        raise EOFError("the server ended the stream")

    def close(self) -> None:
        self.writer.close()


async def open_events(address: str, path: str = "/v1/events") -> EventStream:
    reader, writer = await _send(address, "GET", path, {"Accept": "text/event-stream"}, None)
    async with asyncio.timeout(10):
        status, headers = await _head(reader)
    return EventStream(status, headers, reader, writer)
