"""S1 to S3, from the venue's record: no decision twice, nothing of a deposed leader, one effective leader. Pure.

They need no other evidence, so a record alone can be judged. With journals S1 also compares each order with its intent;
with etcd's ownership S3 also asks who was given each token. What a venue of each class can be asked for (DESIGN 6):

- `token`: tokens of accepted messages never fall, in `venue_seq` order, whatever the clocks say;
- `expiry`: an order of an older token may still be accepted, but before its own expiry by the venue's clock, and no
  later than one order validity (and clock error) after the first accepted message of a newer token. Other messages
  carry no expiry: a late cancel places nothing, and is counted;
- `plain`: best effort. Late messages are counted, never judged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from chaos.check.evidence import Line
from chaos.check.history import History, Log
from chaos.check.record import at
from chaos.check.verdict import Found
from node.codec import Intent

BEST_EFFORT = "best effort: this venue checks neither tokens nor expiry"


# -- S1 ----------------------------------------------------------------------------------------------------------------


def no_double_order(h: History) -> Found:
    """Per decision: at most one accepted client order id, accepted once. With journals: it is the very intent that its
    id names, so quantities add up to no more than was intended; one that stands in no journal is an order from
    nowhere. While trading goes on, an order that is younger than every journal we read is not looked for."""
    record = h.record
    found: list[str] = []
    seen: set[str] = set()
    decided: dict[str, str] = {}
    repeats = 0
    for line in record.orders:
        coid, decision = str(line["client_order_id"]), line["decision_id"]
        if coid in seen:
            repeats += 1
            found.append(f"{at(line)}: client order id {coid} was accepted before")
        seen.add(coid)
        if decision and decided.setdefault(str(decision), coid) != coid:
            found.append(f"{at(line)}: decision {decision!r} as {coid} and {decided[str(decision)]}")
        if line["qty_lots"] <= 0:
            found.append(f"{at(line)}: {coid} of {line['qty_lots']} lots")
    if h.evidence.journals is not None:
        found += _strangers(h)
    return Found(
        found, {"orders accepted": len(record.orders), "changes of term while trading": _changes(record.orders)}
    )


def _changes(lines: list[Line]) -> int:
    tokens = [line["token"] for line in lines]
    return sum(a != b for a, b in pairwise(tokens))


def _strangers(h: History) -> Iterator[str]:
    """Accepted orders that are not what any journal intended."""
    tags = {j.book.cluster_tag for j in h.evidence.journals or ()}
    logs = list({id(log): log for log in map(h.log, h.evidence.journals or ())}.values())
    read_to = max((log.last_index for log in logs), default=0)
    for coid, line in h.record.accepted.items():
        parsed = h.orders[coid]
        if parsed is None or parsed[0] not in tags:
            yield f"{at(line)}: order {coid} is not one of ours"
            continue
        _, term, index = parsed
        if (line["token"] or term) < term:
            yield f"{at(line)}: order {coid} of term {term} sent with token {line['token']}"
        intent = _intent(logs, term, index)
        if intent is not None:
            if differs := _differs(intent, line):
                yield f"{at(line)}: order {coid} at the venue is not its intent: {differs}"
        elif index > read_to and not h.at_rest:
            continue
        elif not any(index <= j.base and j.book.decided(str(line["decision_id"])) for j in h.evidence.journals or ()):
            yield f"{at(line)}: order {coid} comes from nowhere: no journal has its intent, entry {index} of {term}"


def _intent(logs: list[Log], term: int, index: int) -> Intent | None:
    for log in logs:
        if log.has_intent(term, index):
            return log.intents[index]
    return None


def _differs(intent: Intent, line: Line) -> str:
    s = intent.spec
    ours = (intent.decision_id, s.symbol, s.side.value, s.qty_lots, s.price_ticks, s.type.value, s.tif.value)
    get = line.get  # a market order has no price, a line of another venue may lack more
    theirs = (
        get("decision_id"),
        get("symbol"),
        get("side"),
        get("qty_lots"),
        get("price_ticks"),
        get("type"),
        get("tif"),
    )
    return "" if ours == theirs else f"{ours} became {theirs}"


# -- S2 ----------------------------------------------------------------------------------------------------------------


class Late(NamedTuple):
    """An accepted message of a token, after one of the higher token `high`. wrong: why it may not be; empty: it may."""

    line: Line
    high: int
    wrong: str


def late_messages(h: History) -> list[Late]:
    """In order, by the rule of the venue's class."""
    found: list[Late] = []
    highs: list[int] = []  # each token that was higher than all before it,
    since: list[int] = []  # and the venue's time of its first accepted message
    for line in h.record.messages:
        token = line["token"]
        if not highs or token > highs[-1]:
            highs.append(token)
            since.append(line["at_ns"])
        elif token < highs[-1]:
            wrong = ""
            if h.fences == "token":
                wrong = f"with token {token} after token {highs[-1]} was seen"
            elif h.fences == "expiry" and line["kind"] == "new":
                wrong = _too_late(h, line, since[bisect_right(highs, token)])
            found.append(Late(line, highs[-1], wrong))
    return found


def _too_late(h: History, line: Line, newer_at: int) -> str:
    expires, now, token = line.get("expires_at_ns"), line["at_ns"], line["token"]
    if not expires:
        return f"with token {token} and no expiry, after a newer token"
    if now >= expires:
        return f"with token {token}, {(now - expires) / 1e6:.3f} ms after its own expiry"
    allowed = h.run.validity + h.run.clock_error
    if h.run.validity and now > newer_at + allowed:
        return (
            f"with token {token}, {(now - newer_at) / 1e6:.3f} ms after a newer token; {allowed / 1e6:.3f} are allowed"
        )
    return ""


def no_stale_effect(h: History) -> Found:
    """See the module. Covered when something stale was offered: refused, or (on `expiry`) accepted in time."""
    late = late_messages(h)
    if h.fences == "plain":
        return Found((), {}, {"late messages accepted": len(late)}, BEST_EFFORT)
    wrong = [f"{at(x.line)} {x.wrong}" for x in late if x.wrong]
    counts = {"accepted": len(wrong)}
    if h.fences == "token":
        return Found(wrong, {"stale messages refused": h.record.stale_refused}, counts)
    offered = h.record.refused["expired"] + len(late)
    return Found(wrong, {"late messages offered": offered}, counts | {"accepted in time": len(late) - len(wrong)})


# -- S3 ----------------------------------------------------------------------------------------------------------------


def one_effective_leader(h: History) -> Found:
    """Each token has one node, at the venue and (where we know) in etcd, on every class of venue. The accepted messages
    of one token stand together: no other token's between them, but for what S2 lets through on `expiry`; on `plain`
    that is counted."""
    found: list[str] = []
    owner: dict[int, str] = {}
    for line in h.record.messages:
        token, node = line["token"], str(line["node"])
        if owner.setdefault(token, node) != node:
            found.append(f"{at(line)}: token {token} used by {node} and by {owner[token]}")
    if h.evidence.etcd is not None:
        found += _not_given(h, owner)
    interleaved = [] if h.fences == "plain" else list(_interleaved(h))
    return Found(found + interleaved, {"changes of term at the venue": max(0, len(owner) - 1)}, {"tokens": len(owner)})


def _not_given(h: History, owner: dict[int, str]) -> Iterator[str]:
    given: dict[int, str] = {}
    for line in h.evidence.etcd or ():
        if line.what == "acquired" and given.setdefault(line.token, line.node) != line.node:
            yield f"etcd revision {line.revision}: token {line.token} given to {line.node} and to {given[line.token]}"
    for token, node in owner.items():
        if token not in given:
            yield f"token {token}, used by {node}, was never given by etcd"
        elif given[token] != node:
            yield f"token {token} used by {node}, given by etcd to {given[token]}"


def _interleaved(h: History) -> Iterator[str]:
    excused = {x.line["venue_seq"] for x in late_messages(h) if not x.wrong}
    last, ended = 0, set()
    for line in h.record.messages:
        token = line["token"]
        if token == last or line["venue_seq"] in excused:
            continue
        if token in ended:
            yield f"{at(line)}: token {token} of {line['node']} comes back after token {last}"
        if last:
            ended.add(last)
        last = token
