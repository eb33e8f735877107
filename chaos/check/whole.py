"""E: is the evidence itself whole, and did the faults bite? What is wrong here makes a run INVALID. Pure.

A judge that reads past a line that is missing, repeated or moved could be told anything; and a run whose fault never
took effect has shown nothing, however green it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from chaos.check.history import History
from chaos.check.verdict import Found


class _Timed(Protocol):
    @property
    def at(self) -> int | None: ...


def evidence_is_whole(h: History) -> Found:
    """The venue's record is one venue's for one account, without a gap or a repeat; so is the gate's, between two
    losses of its state; times are not negative and do not fall within a list; tokens are positive; every fault has an
    effect and a proof of it; no node has two journals."""
    found = [*h.evidence.broken, *h.record.broken, *_gate(h), *_times(h), *_tokens(h), *_faults(h)]
    nodes = [j.node for j in h.evidence.journals or ()]
    found += [f"{n} has {nodes.count(n)} journals" for n in sorted(set(nodes)) if nodes.count(n) > 1]
    return Found(found, {"lines read": _lines(h)})


def _lines(h: History) -> int:
    return sum(len(actor) for actor in h.evidence[1:-1] if actor is not None)


def _gate(h: History) -> Iterator[str]:
    last: int | None = None
    for line in h.evidence.gate or ():
        if line.op == "lost":
            last = None
            continue
        if last is not None and line.seq != last + 1:
            yield f"gate line {line.seq} follows line {last}"
        last = line.seq


def _times(h: History) -> Iterator[str]:
    e = h.evidence
    actors: tuple[tuple[str, Sequence[_Timed] | None], ...] = (
        ("gate", e.gate),
        ("etcd", e.etcd),
        ("sent", e.sent),
        ("queries", e.queries),
        ("commits", e.commits),
        ("operator", e.operator),
    )
    for name, lines in actors:
        last = 0
        for number, line in enumerate(lines or (), 1):
            when = line.at
            if when is None:
                continue
            if when < last:
                yield f"{name}: line {number} is of {when}, " + (f"after one of {last}" if last else "before all time")
            else:
                last = when


def _tokens(h: History) -> Iterator[str]:
    for number, line in enumerate(h.evidence.etcd or (), 1):
        if line.token <= 0:
            yield f"etcd: line {number} with token {line.token}"


def _faults(h: History) -> Iterator[str]:
    for fault in h.evidence.faults or ():
        if fault.effect is None or not fault.proof:
            yield f"fault {fault.id} ({fault.kind} of {fault.target}) has no proof that it took effect"
        elif fault.effect < fault.ordered:
            yield f"fault {fault.id} took effect at {fault.effect}, before it was ordered at {fault.ordered}"
