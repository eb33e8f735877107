"""The gate: the atomic check that every order passes before it may leave (fence 4, DESIGN 6). What it promises. Pure.

    claim is ok  <=>  token == high-water, armed on this very gate process, which knows the latch, and it is not set,
                      and the id is unused

Closed is the default, and silence is not permission: every doubt is `GateUnavailable`, and a claim that may or may not
have happened is simply not granted. Each decision is one point in one total order, numbered by `fence_seq`.

A gate that lost its state lost the kill latch with it. So it says, when armed, whether it *knows the latch*: it does
from the moment that a leader, having armed it, read the latch in etcd and noted it here, for as long as this gate
process lives. A press is put into etcd first and at the gate second. Hence `arm -> read the latch -> note it -> open`
misses none: a press whose put came after the read comes to the gate after the arm, and stays. And since only a term
that leads gets to read the latch, an old leader whose `arm` arrives late at a gate that has forgotten everything opens
nothing.

What it cannot do: hold back an order that passed it before its sender froze (fences 5 and 6 do). Read next:
`redis_gate.py`, the implementation; `arming.py`, which keeps it armed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from cluster.core.errors import ConfigError, OutcomeUnknown


class GateUnavailable(OutcomeUnknown):
    """No word from the gate, so no permission. A claim may or may not have been noted; it was not granted."""


class GateUnsuitable(ConfigError):
    """This Redis could forget what it must not forget. Says what to change."""


class Verdict(Enum):
    OK = "ok"
    STALE_TOKEN = "stale_token"  # a higher token is armed: we are deposed
    UNARMED = "gate_unarmed"  # closed until the leader arms it (again), and has noted the latch
    HALTED = "halted"
    DUPLICATE = "duplicate"  # this client order id was claimed before


class ClaimResult(NamedTuple):
    """high_water: 0 if the gate has none. detail: why halted, or the token that claimed the id first."""

    client_order_id: str
    verdict: Verdict
    fence_seq: int
    high_water: int
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.verdict is Verdict.OK


class Armed(NamedTuple):
    """previous: the high-water before, 0 if the gate had none (first use, or its state was lost). latch_known: the kill
    latch was noted in the state that it has (see the module)."""

    token: int
    fence_seq: int
    previous: int
    latch_known: bool


class GateState(NamedTuple):
    """armed: claims of `high_water` are looked at. high_water 0: none. halted: why, or None."""

    armed: bool
    high_water: int
    holder: str
    halted: str | None
    fence_seq: int


class Decision(NamedTuple):
    """One line of the gate's own record, for audits and drills. verdict: "ok" or why not."""

    fence_seq: int
    op: str
    token: int
    high_water: int
    subject: str
    verdict: str


class Gate(Protocol):
    """Every call ends within the configured timeout, and raises GateUnavailable (also when never connected) or what is
    said below. `tests/contract/gate_contract.py` is what an implementation must pass."""

    async def connect(self) -> list[str]:
        """Reach it and check that it can be trusted; return warnings for the operator. Raises GateUnsuitable.
        Again before each `arm` that follows an UNARMED: it may be another Redis by now."""

    async def close(self) -> None: ...

    async def arm(self, token: int) -> Armed:
        """Open the gate for `token`, and close it for every lower one, from this decision on.

        Above the high-water, or equal to it for the same holder (re-arming after the gate lost its state); else raises
        StaleTerm. `token` must be the highest known from etcd, the journal and the venue: the gate may have
        forgotten. Never clears a latch. No claim until the gate knows the latch (`note_latch`).
        """

    async def note_latch(self, token: int, halted: str | None) -> int:
        """The kill latch as it was read in etcd after `arm`; returns the fence_seq. Halts the gate if it is set, and
        never clears a latch. Raises StaleTerm below the high-water, and GateUnavailable if it is not armed for `token`
        any more: the state in which this was to be noted is gone, so arm and read again."""

    async def claim_many(self, token: int, client_order_ids: Sequence[str]) -> list[ClaimResult]:
        """One verdict per id, in order. An id is granted at most once in `claim_ttl_s`, whoever asks."""

    async def halt(self, reason: str) -> int:
        """Refuse all claims until `unhalt`, armed or not; returns the fence_seq. Outlives re-arming."""

    async def unhalt(self) -> int: ...

    async def state(self) -> GateState: ...
