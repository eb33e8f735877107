"""S4, S8, S9, S11: standby silence, fail closed, the fence never falls, the kill switch. Pure.

From etcd's record, the gate's, the bytes that left each node, and the venue's record. Orders and claims are matched by
client order id, never by time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from chaos.check.evidence import PAUSE, FaultLine, GateLine
from chaos.check.history import History
from chaos.check.record import at
from chaos.check.verdict import Found


def standby_silence(h: History) -> Found:
    """S4. Every message that leaves a node carries a token that etcd gave to that very node, and not before it did."""
    found: list[str] = []
    sent = h.evidence.sent or ()
    for line in sent:
        tenure = h.tenures.get(line.token)
        what = f"at {line.at}: {line.node} sent {line.kind} {line.client_order_id}".rstrip()
        if tenure is None:
            found.append(f"{what} with token {line.token}, which etcd never gave")
        elif tenure.line.node != line.node:
            found.append(f"{what} with token {line.token} of {tenure.line.node}")
        elif line.at < tenure.line.at:
            found.append(f"{what} with token {line.token}, which it was given at {tenure.line.at}")
    return Found(found, {"messages sent": len(sent), "changes of leader": max(0, len(h.tenures) - 1)})


# -- S8 ----------------------------------------------------------------------------------------------------------------


def fails_closed(h: History) -> Found:
    """S8. Every accepted new order was claimed, `ok` and with the token it came with: claims are recorded before sends,
    so this needs no clock. And where we saw the bytes leave: none of a new order later than ttl (and clock error)
    after etcd applied the last renewal of its token that had been applied by then.

    One thing may break the second half and is no fault of the node: a pause between its last check and the socket,
    which only the venue can answer for (S2). So a new order that leaves late is excused if the fault log has a pause
    of its node over the moment at which it should have stopped, and it is the first since: one order per pause.

    A gate that keeps only its latest decisions cannot tell of earlier orders; then they are no violation, and nothing
    is shown either."""
    record, gate, claims = h.record, h.evidence.gate or (), h.claims
    whole = bool(gate) and gate[0].seq <= 1
    found: list[str] = []
    claimed = 0
    for coid, line in record.accepted.items():
        claim = claims.get(coid)
        if claim is not None:
            claimed += 1
            if claim.token != line["token"]:
                found.append(f"{at(line)}: {coid} came with token {line['token']}, claimed with {claim.token}")
        elif whole or not gate:
            found.append(f"{at(line)}: {coid} was accepted, and the gate granted no claim for it")
    covers = {"orders accepted with their claim": claimed}
    if gate and not whole:
        covers["gate's records that begin with its first decision"] = 0
    covers["claims refused"] = sum(g.op == "claim" and g.verdict != "ok" for g in gate)
    if not h.run.ttl or h.evidence.sent is None or h.evidence.etcd is None:
        return Found(found, covers)
    excused = 0
    pauses = _pauses(h)
    for node, coid, stop_at, left_at in _left_late(h):
        pause = next((p for p in pauses.get(node, ()) if _covers(p, stop_at, left_at)), None)
        if pause is None:
            late_ms = (left_at - stop_at) / 1e6
            found.append(f"at {left_at}: new order {coid} left {node} {late_ms:.3f} ms after its token's time was over")
        else:
            pauses[node].remove(pause)
            excused += 1
    return Found(found, covers, {"frozen between the last check and the socket": excused})


def _left_late(h: History) -> Iterator[tuple[str, str, int, int]]:
    """(node, client order id, when it should have stopped, when the bytes left)."""
    for line in h.evidence.sent or ():
        tenure = h.tenures.get(line.token)
        if line.kind != "new" or tenure is None or line.at < tenure.line.at:
            continue  # S4 judges the other ones
        renewed_at = tenure.renewed_at[bisect_right(tenure.renewed_at, line.at) - 1]
        stop_at = renewed_at + h.run.ttl + h.run.clock_error
        if line.at > stop_at:
            yield line.node, line.client_order_id, stop_at, line.at


def _pauses(h: History) -> dict[str, list[FaultLine]]:
    found: dict[str, list[FaultLine]] = {}
    for fault in h.evidence.faults or ():
        if fault.kind == PAUSE and fault.effect is not None:
            found.setdefault(fault.target, []).append(fault)
    return found


def _covers(pause: FaultLine, stop_at: int, left_at: int) -> bool:
    return (pause.effect or 0) <= stop_at and pause.healed is not None and stop_at <= pause.healed <= left_at


# -- S9 ----------------------------------------------------------------------------------------------------------------


def fence_monotone(h: History) -> Found:
    """S9. No claim is granted with a token below the highest that was ever armed, whatever the gate remembers of it;
    nothing is armed with one while it does. A gate that lost its state (a `lost` line, or a high-water that is lower
    than it was) grants nothing before it is armed again. Tokens that etcd gives only rise.

    A gate that has forgotten everything cannot refuse the arming of an old leader that comes late; what it must not do
    is grant that leader a claim, and the next arming of the true one puts it right. Such armings are counted."""
    found: list[str] = []
    armed = highest = 0  # armed 0: unarmed, or not known yet
    lost = False
    arms = losses = refused = late = 0
    for line in h.evidence.gate or ():
        if line.op == "lost" or (0 <= line.high < armed and line.op in ("arm", "claim")):
            losses += 1
            lost, armed = True, 0
        where = f"gate line {line.seq}, {line.op}"
        if line.op == "arm" and line.verdict == "ok":
            arms += 1
            if line.token < armed:
                found.append(f"{where}: token {line.token} armed after {armed}")
            late += armed <= line.token < highest
            armed, lost = line.token, False
            highest = max(highest, line.token)
        elif line.op == "claim" and line.verdict == "ok":
            if lost:
                found.append(f"{where} of {line.subject} granted after the gate lost its state, before it was armed")
            if line.token < highest:
                found.append(f"{where} of {line.subject} granted to token {line.token} after {highest} was armed")
            armed = max(armed, line.token)  # of a record that begins later than the arming
            highest = max(highest, line.token)
        elif line.op == "claim" and line.verdict in ("stale_token", "gate_unarmed"):
            refused += 1
    given = 0
    for e in h.evidence.etcd or ():
        if e.what == "acquired":
            if e.token <= given:
                found.append(f"etcd revision {e.revision}: token {e.token} given after {given}")
            given = max(given, e.token)
    return Found(
        found,
        {"stale or unarmed claims refused": refused},
        {"armed": arms, "state lost": losses, "armed late, by a gate that had forgotten": late},
    )


# -- S11 ---------------------------------------------------------------------------------------------------------------


def kill_switch(h: History) -> Found:
    """S11. From the gate's halt line to its unhalt, in the gate's own order: no claim is granted, and no order is
    accepted whose claims all fell in between. From one ttl (and clock error) after etcd had the latch to the
    operator's unhalt, by time: no claim is granted. What was claimed before the press may still arrive."""
    gate = h.evidence.gate or ()
    found: list[str] = []
    presses = refused = 0
    halted: GateLine | None = None
    only_halted: dict[str, GateLine] = {}  # client order id -> its claim, of those claimed under a halt alone
    for line in gate:
        if line.op == "halt":
            presses += 1
            halted = halted or line
        elif line.op == "unhalt":
            halted = None
        elif line.op == "claim" and halted is not None:
            if line.verdict == "ok":
                found.append(f"gate line {line.seq}: {line.subject} granted after the halt at line {halted.seq}")
            refused += line.verdict == "halted"
            if line.subject not in h.claims or line.verdict == "ok":
                only_halted[line.subject] = line
        elif line.op == "claim":
            only_halted.pop(line.subject, None)
    found += [
        f"{at(h.record.accepted[coid])}: {coid} was accepted, claimed under a halt (gate line {line.seq})"
        for coid, line in only_halted.items()
        if coid in h.record.accepted
    ]
    latched = _latched(h)
    for since, until in latched:
        found += [
            f"gate line {line.seq}: {line.subject} granted at {line.at}, the latch had been in etcd since {since}"
            for line in h.claims.values()
            if line.at is not None
            and line.at > since + h.run.ttl + h.run.clock_error
            and (until is None or line.at < until)
        ]
    return Found(found, {"presses": max(presses, len(latched)), "claims refused while halted": refused})


def _latched(h: History) -> list[tuple[int, int | None]]:
    """Spans in which etcd had the latch; none where the ttl is not known."""
    spans: list[tuple[int, int | None]] = []
    if not h.run.ttl:
        return spans  # nobody can say when the last permit had ended
    for line in h.evidence.operator or ():
        if line.what == "halt_confirmed" and not (spans and spans[-1][1] is None):
            spans.append((line.at, None))
        elif line.what == "unhalt" and spans and spans[-1][1] is None:
            spans[-1] = (spans[-1][0], line.at)
    return spans
