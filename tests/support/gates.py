"""What a leader does before it claims."""

from __future__ import annotations

from node.gate import Armed, Gate


async def opened(gate: Gate, token: int) -> Armed:
    """Armed, and told that no latch is set, if it does not know."""
    armed = await gate.arm(token)
    if not armed.latch_known:
        await gate.note_latch(token, None)
    return armed
