"""L1 to L3: how long a failover took, that a healed cluster trades again, that nothing harmless moved the lead. Pure.

Durations are of the one true clock; the venue's times take part where `Run.venue_epoch` says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from chaos.check.books import NOT_AT_REST
from chaos.check.evidence import FaultLine
from chaos.check.history import History
from chaos.check.record import STALE, at
from chaos.check.verdict import Failover, Found

_OF_FENCES = (STALE, "expired", "token_required", "duplicate_client_order_id")
"""Refusals that come of two leaders, or of a late one; the others are the market's."""


# -- L1 ----------------------------------------------------------------------------------------------------------------


class _Term(NamedTuple):
    token: int
    node: str
    since: int | None  # when etcd gave it, else when its first order was accepted
    first_order: int | None
    ended: int | None


def _terms(h: History) -> list[_Term]:
    first: dict[int, tuple[int | None, str]] = {}
    for line in h.record.orders:
        first.setdefault(line["token"] or 0, (h.venue_at(line["at_ns"]), str(line["node"])))
    if h.evidence.etcd is None:
        return [_Term(token, node, when, when, None) for token, (when, node) in first.items() if token]
    return [
        _Term(token, t.line.node, t.line.at, first.get(token, (None, ""))[0], t.ended_at)
        for token, t in h.tenures.items()
    ]


def failovers(h: History) -> list[Failover]:
    """Each change of term, and what it came of: the last harmful fault since the term before it began, of its leader's
    node if there was one, or else the operator's request."""
    faults = [f for f in h.evidence.faults or () if f.effect is not None and not f.harmless]
    asked = [o.at for o in h.evidence.operator or () if o.what == "switchover_asked"]
    terms, found = _terms(h), []
    for old, new in pairwise(terms):
        if old.since is None or new.since is None:
            continue
        cause = _cause([f for f in faults if old.since <= (f.effect or 0) <= new.since], old.node)
        requests = [t for t in asked if old.since <= t <= new.since]
        if cause is not None:
            name, effect = cause.id, cause.effect or 0
        elif requests:
            name, effect = "switchover", requests[-1]
        else:
            found.append(Failover("unknown", new.token))
            continue
        detected = old.ended - effect if old.ended is not None and effect <= old.ended <= new.since else None
        elected = None if h.evidence.etcd is None else new.since - effect
        first_order = None if new.first_order is None else new.first_order - effect
        found.append(Failover(name, new.token, effect, detected, elected, first_order))
    return found


def _cause(faults: list[FaultLine], leader: str) -> FaultLine | None:
    return next((f for f in reversed(faults) if f.target == leader), faults[-1] if faults else None)


def failover_time(h: History) -> Found:
    """L1. From a fault's effect to the first accepted order of the next token, within `rto_max` where one is given."""
    measured = [f for f in failovers(h) if f.first_order is not None]
    bound = h.run.rto_max
    slow = [
        f"{f.cause}: token {f.token} traded {f.first_order / 1e6:.3f} ms after it, {bound / 1e6:.3f} are allowed"
        for f in measured
        if bound and f.first_order is not None and f.first_order > bound
    ]
    return Found(slow, {"failovers measured": len(measured)})


# -- L2 ----------------------------------------------------------------------------------------------------------------


def recovers(h: History) -> Found:
    """L2. `recovery_max` after all faults are healed, and from then to the end: one leader and no other, its orders
    accepted (unless an operator's halt stands), no refusals by fences, and at the end all final journals equal."""
    healed, ended, within = h.run.healed_at, h.run.ended_at, h.run.recovery_max
    if healed is None or ended is None or not within:
        return Found((), {}, {}, "nobody said when the faults were healed, when it ended, and what is allowed")
    if not h.at_rest:
        return Found((), {}, {}, NOT_AT_REST)
    if h.run.venue_epoch is None:
        return Found((), {}, {}, "the venue's clock is not known in ours")
    due = healed + within
    if ended < due:
        return Found((), {"runs that went on for long enough": 0})
    return Found(list(_not_recovered(h, healed, due)), {"runs that went on for long enough": 1})


def _not_recovered(h: History, healed: int, due: int) -> Iterator[str]:
    asked = any(o.what == "switchover_asked" and o.at >= healed for o in h.evidence.operator or ())
    leading = [t for t in h.tenures.values() if t.line.at <= due and (t.ended_at is None or t.ended_at > due)]
    if not leading:
        yield f"nobody leads {(due - healed) / 1e6:.0f} ms after the heal"
    for t in h.tenures.values():
        if t.line.at > due and not asked:
            yield f"token {t.line.token} was given to {t.line.node} {(t.line.at - healed) / 1e6:.0f} ms after the heal"
    if leading and not asked and leading[-1].ended_at is not None:
        yield f"token {leading[-1].line.token} ended after all was healed"
    if leading and not _halted(h) and not _trades(h, leading[-1].line.token, healed, due):
        within_ms, token = (due - healed) / 1e6, leading[-1].line.token
        yield f"no order of token {token} was accepted within {within_ms:.0f} ms of the heal"
    for line in h.record.refusals:
        if line["reason"] in _OF_FENCES and (h.venue_at(line["at_ns"]) or 0) > due:
            yield f"{at(line)}: refused as {line['reason']} after all was healed"
    if len({(j.last_index, j.last_chain) for j in h.journals}) > 1:
        yield f"journals differ at the end: { ({j.node: j.last_index for j in h.journals}) }"


def _halted(h: History) -> bool:
    latch = [o.what for o in h.evidence.operator or () if o.what in ("halt_pressed", "unhalt")]
    return bool(latch) and latch[-1] == "halt_pressed"


def _trades(h: History, token: int, healed: int, due: int) -> bool:
    return any(
        line["token"] == token and healed <= (h.venue_at(line["at_ns"]) or 0) <= due
        for line in reversed(h.record.orders)
    )


# -- L3 ----------------------------------------------------------------------------------------------------------------


def no_needless_failover(h: History) -> Found:
    """L3. Where every fault was a harmless one, and no operator asked for a switchover, the token that stood at the
    first fault stands to the end."""
    faults = h.evidence.faults or ()
    asked = any(o.what == "switchover_asked" for o in h.evidence.operator or ())
    bit = sum(f.effect is not None for f in faults)
    if asked or not bit or not all(f.harmless for f in faults):
        return Found((), {"runs with harmless faults alone": 0})
    begun = min(f.ordered for f in faults)
    found = [
        f"token {t.line.token} was given to {t.line.node} although nothing but {faults[0].kind} had happened"
        for t in h.tenures.values()
        if t.line.at > begun
    ]
    return Found(found, {"runs with harmless faults alone": 1})
