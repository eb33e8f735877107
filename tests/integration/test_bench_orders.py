"""What the bench measures is what it says: orders that the gate granted. Its times are nobody's business here."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chaos.bench import alternatives, protected


def test_bare_gate_grants_what_is_timed(tmp_path: Path) -> None:
    assert len(alternatives.bare_gate(tmp_path, 20).samples) == 20


def test_protected_orders_are_committed_and_granted(tmp_path: Path) -> None:
    took, rate = asyncio.run(protected.measure(tmp_path, 20))
    assert len(took) == 20 and rate > 0
