"""The gate's Redis as a specification: what its one script decides (node/redis_gate.py), on a store that may be lost.

    claim is ok  <=>  token == high-water, armed in this very run, which knows the latch, and not halted, and id unused

`tests/contract/gate_contract.py` holds this and the real script to the same behaviour. Every decision goes into
`record`, as does each loss of state; the record is the world's, and survives what the store does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.gate import Armed, ClaimResult, GateState, Verdict

UNDO_MAX = 64


@dataclass(slots=True)
class _Store:
    high: int = 0
    holder: str = ""
    run: int = 0  # in which it was armed
    halted: str | None = None
    latch_run: int = 0  # in which the kill latch was noted
    seq: int = 0
    claims: dict[str, tuple[int, int]] = field(default_factory=dict)  # id -> (token, when it is forgotten)


@dataclass(frozen=True, slots=True)
class Stale:
    """`arm` refused: a higher token is armed, or this one for somebody else."""

    high: int
    holder: str


@dataclass(frozen=True, slots=True)
class Unarmed:
    """`note_latch` refused: what it was read for is gone."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One line of the gate's own record; op "lost" is ours: the store forgot. at: ns of the clock handed in."""

    seq: int
    op: str
    token: int
    high: int
    subject: str
    verdict: str
    at: int


class GateSpec:
    """now: ns on the server's clock. claim_ttl: ns for which an id stays claimed. tell: called with each line of the
    record."""

    def __init__(self, now: Callable[[], int], claim_ttl: int, tell: Callable[[Decided], None] | None = None) -> None:
        self.now = now
        self.claim_ttl = claim_ttl
        self._tell = tell
        self.run = 1
        self.record: list[Decided] = []
        self._store = _Store()
        self._undo: deque[Callable[[_Store], None]] = deque(maxlen=UNDO_MAX)

    # -- the script ---------------------------------------------------------------------------------------------

    def arm(self, token: int, holder: str) -> Armed | Stale:
        s = self._store
        if token < s.high or (token == s.high and s.holder != holder):
            self._note("arm", token, holder, Verdict.STALE_TOKEN)
            return Stale(s.high, s.holder)
        seq, previous = self._note("arm", token, holder, Verdict.OK), s.high
        self._remember(_setter(s))
        s.high, s.holder, s.run = token, holder, self.run
        return Armed(token, seq, previous, self.knows_latch)

    def note_latch(self, token: int, halted: str | None) -> int | Stale | Unarmed:
        s, subject = self._store, halted or ""
        if token < s.high:
            self._note("latch", token, subject, Verdict.STALE_TOKEN)
            return Stale(s.high, s.holder)
        if not self.armed or token != s.high:
            self._note("latch", token, subject, Verdict.UNARMED)
            return Unarmed()
        self._remember(_setter(s))
        s.latch_run = self.run
        if halted is not None:
            s.halted = halted or "halted"
        return self._note("latch", token, subject, Verdict.OK)

    def claim(self, token: int, ids: Sequence[str]) -> list[ClaimResult]:
        return [self._claim(token, coid) for coid in ids]

    def _claim(self, token: int, coid: str) -> ClaimResult:
        s, verdict, detail = self._store, Verdict.OK, ""
        claimed = s.claims.get(coid)
        if token < s.high:
            verdict = Verdict.STALE_TOKEN
        elif not (self.armed and self.knows_latch) or token != s.high:
            verdict = Verdict.UNARMED
        elif s.halted is not None:
            verdict, detail = Verdict.HALTED, s.halted
        elif claimed is not None and claimed[1] > self.now():
            verdict, detail = Verdict.DUPLICATE, str(claimed[0])
        else:
            self._remember(lambda store, i=coid: store.claims.pop(i, None))  # type: ignore[misc]
            s.claims[coid] = (token, self.now() + self.claim_ttl)
        return ClaimResult(coid, verdict, self._note("claim", token, coid, verdict), s.high, detail)

    def halt(self, reason: str) -> int:
        self._remember(_setter(self._store))
        self._store.halted = reason or "halted"
        return self._note("halt", 0, self._store.halted, Verdict.OK)

    def unhalt(self) -> int:
        self._remember(_setter(self._store))
        self._store.halted = None
        return self._note("unhalt", 0, "", Verdict.OK)

    @property
    def halted(self) -> str | None:
        return self._store.halted

    def state(self) -> GateState:
        s = self._store
        return GateState(self.armed, s.high, s.holder, s.halted, s.seq)

    @property
    def armed(self) -> bool:
        return self._store.high > 0 and self._store.run == self.run

    @property
    def knows_latch(self) -> bool:
        return self._store.latch_run == self.run

    def _note(self, op: str, token: int, subject: str, verdict: Verdict) -> int:
        s = self._store
        s.seq += 1
        self._write(Decided(s.seq, op, token, s.high, subject, verdict.value, self.now()))
        return s.seq

    def _write(self, line: Decided) -> None:
        self.record.append(line)
        if self._tell is not None:
            self._tell(line)

    # -- what can happen to it ------------------------------------------------------------------------------------

    def restart(self, *, empty: bool = False, lose_last: int = 0) -> None:
        """Another process. empty: without its files; lose_last: as many of the latest changes never reached the disk
        (`appendfsync everysec`), or the replica that was promoted."""
        self.run += 1
        if empty:
            self._store = _Store()
            self._undo.clear()
        for _ in range(min(lose_last, len(self._undo))):
            self._undo.pop()(self._store)
        self._lost(f"restarted{', empty' if empty else f', without its last {lose_last} changes' if lose_last else ''}")

    def flush(self) -> None:
        """FLUSHALL: the same process, nothing in it."""
        self._store = _Store()
        self._undo.clear()
        self._lost("flushed")

    def _lost(self, how: str) -> None:
        s = self._store
        self._write(Decided(s.seq, "lost", 0, s.high, how, "", self.now()))

    def _remember(self, undo: Callable[[_Store], None]) -> None:
        self._undo.append(undo)


def _setter(s: _Store) -> Callable[[_Store], None]:
    """Puts back what stands now."""
    high, holder, run, halted, latch_run = s.high, s.holder, s.run, s.halted, s.latch_run

    def put_back(store: _Store) -> None:
        store.high, store.holder, store.run, store.halted, store.latch_run = high, holder, run, halted, latch_run

    return put_back
