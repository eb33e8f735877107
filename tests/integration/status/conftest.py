from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from node.status.http import StatusServer
from node.telemetry import Telemetry
from tests.support.fake_status import FakeStatus

Serve = Callable[..., AbstractAsyncContextManager[StatusServer]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(fake) as server:` a real server on a free port of loopback."""

    @contextlib.asynccontextmanager
    async def run(fake: FakeStatus, listen: str = "127.0.0.1:0", **settings: object) -> AsyncIterator[StatusServer]:
        telemetry = Telemetry(fake.me, "alpha", "0.1.0", lease_ttl_s=1.0, lease_margin_s=0.2)
        server = StatusServer(fake, telemetry, listen, **settings)  # type: ignore[arg-type]
        server.bind()
        task = asyncio.create_task(server.serve())
        try:
            yield server
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 5.0)

    return run
