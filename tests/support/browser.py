"""Headless Chromium for tests of pages: a plain subprocess, loopback only, driven over its DevTools socket.

`find()` is None where no Chromium is installed; a test then checks what a reader without scripts gets.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def find() -> str | None:
    return shutil.which("chromium")


async def dump_dom(url: str, profile: Path, limit_s: float = 40.0) -> str:
    """The document after its scripts have run once."""
    path = find()
    assert path is not None
    process = await asyncio.create_subprocess_exec(
        path,
        *QUIET,
        f"--user-data-dir={profile}",
        "--timeout=5000",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), limit_s)
    finally:
        await _end(process)
    return out.decode()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Tab:
    """One page, live."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.complaints: list[str] = []
        """What the browser reported: exceptions, and what the security policy refused."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        wanted = next(self._ids)
        await self._socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        while True:
            async with asyncio.timeout(20):
                message = json.loads(await self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] in (
                "security",
                "javascript",
            ):
                self.complaints.append(message["params"]["entry"]["text"])
            elif message.get("id") == wanted:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def evaluate(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str, limit_s: float = 15.0) -> Any:
        """Until the expression is true; its value. Raises TimeoutError with what the page says."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    if value := await self.evaluate(script):
                        return value
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise TimeoutError(f"{script} stayed false; the page says:\n{text}") from None

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def open_tab(url: str, profile: Path, *extra: str) -> AsyncIterator[Tab]:
    """A page that stays open; the browser dies with the block."""
    path = find()
    assert path is not None
    process = await asyncio.create_subprocess_exec(
        path,
        *QUIET,
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        *extra,
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = await _debugging_port(profile, process)
        async with connect(await _page_socket(port), max_size=64 << 20, open_timeout=10, proxy=None) as socket:
            tab = Tab(socket)
            for domain in ("Runtime", "Log", "Page"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            await tab.until("document.readyState === 'complete' && location.href !== 'about:blank'")
            yield tab
    finally:
        await _end(process)


async def _debugging_port(profile: Path, process: asyncio.subprocess.Process) -> int:
    """Chromium writes the port it got into its profile."""
    written = profile / "DevToolsActivePort"
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "chromium ended"
            if written.exists() and (text := written.read_text()).count("\n"):
                return int(text.splitlines()[0])
            await asyncio.sleep(0.05)


async def _page_socket(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(h.partition(b":")[2]) for h in head.splitlines() if h.lower().startswith(b"content-length"))
        targets = json.loads(await reader.readexactly(length))
    writer.close()
    url: str = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
    return url
