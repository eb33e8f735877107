"""The simulator's tests silence the logs of this process; the tests after them read theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from chaos.sim.run import silence


@pytest.fixture(scope="module", autouse=True)
def silent_logs() -> Iterator[None]:
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)
