"""What a failure means, for a reader who knows nothing of the code: which marks of its story decide it, and in words.

The checker's sentence names orders, decisions, tokens, or lines of a record; of those the story is told: who was given
which token, what was broken, which order was decided, frozen, sent, accepted, and when somebody else took over. The
*first wrong step* is the earliest mark among them that no correct cluster and no honest venue makes; where no rule here
knows one, it is the moment at which the violation was seen. Pure.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import NamedTuple

from chaos.sim.engine import MS
from chaos.sim.plan import Fault, Plan, Trap
from chaos.sim.story import BEFORE, FAULTS, VENUE, Mark
from node.types import parse_client_order_id

PLAIN = MappingProxyType(
    {
        "S1": "One decision became two orders.",
        "S2": "The venue took a message of a leader that had been replaced.",
        "S3": "Two nodes led at the same time.",
        "S4": "A node sent with a token that was not its own.",
        "S5": "The fills that the nodes know are not those of the venue.",
        "S6": "Positions or open orders differ between the nodes and the venue.",
        "S7": "Something that was called committed is lost.",
        "S8": "Orders went on although the gate or the lease was in doubt.",
        "S9": "A fencing token fell: an older one was taken after a newer one.",
        "S10": "A new leader traded before the old leader's orders were settled.",
        "S11": "An order was placed after the kill switch was pressed.",
        "L1": "A failover took too long.",
        "L2": "The cluster was healed, and did not trade again.",
        "L3": "Leadership was lost for nothing.",
    }
)
"""What it means that an invariant is broken."""

MOMENTS_MAX = 40
LATE = 30 * MS
"""A message that takes longer is worth telling."""
_ALWAYS = frozenset({"fault", "pause", "wrong"})
_OF_A_TOKEN = frozenset({"lease", "permit", "fence"})
_OF_AN_ORDER = frozenset({"decided", "claim", "sent", "accepted", "refused", "outcome", "fill", "request"})


class Moment(NamedTuple):
    """number: from 1. after: ns after the first of them."""

    number: int
    after: int
    mark: Mark


class Case(NamedTuple):
    """violation: the checker's sentence. wrong, why: the first wrong step, and what makes it one. since, until: the
    true time that decides it."""

    invariant: str
    headline: str
    violation: str
    script: list[str]
    orders: list[str]
    tokens: list[int]
    moments: list[Moment]
    wrong: Mark | None
    why: str
    since: int
    until: int


def explain(plan: Plan, marks: Sequence[Mark], problems: Sequence[str]) -> Case:
    """problems: the first is the one that is explained; none: what the run was like."""
    violation = problems[0] if problems else ""
    invariant = next(iter(re.findall(r"\b[SL]\d+(?=:)", violation)), "")
    orders, tokens = _concerned(violation, marks)
    steps = _wrong_steps(plan, marks, violation, orders, tokens)
    wrong, why = min(steps, key=lambda step: marks.index(step[0]), default=(None, ""))
    chosen = list(_decisive(marks, violation, orders, tokens, wrong))
    since = chosen[0].at if chosen else 0
    moments = [Moment(n, m.at - since, m) for n, m in enumerate(chosen, 1)]
    until = max((m.at for m in chosen), default=0)
    unknown = "Something that must not happen has happened." if problems else "Nothing is wrong."
    headline = PLAIN.get(invariant, unknown)
    return Case(
        invariant, headline, violation, script_in_words(plan), orders, tokens, moments, wrong, why, since, until
    )


# -- what it is about --------------------------------------------------------------------------------------------------


def _concerned(violation: str, marks: Sequence[Mark]) -> tuple[list[str], list[int]]:
    """The orders and tokens that the sentence names, and those that belong to them."""
    orders = {w for w in re.findall(r"\w+", violation) if parse_client_order_id(w) is not None}
    tokens = {int(n) for n in re.findall(r"(?:tokens?|permit for|one for|leads|term|after) (\d+)", violation)}
    decisions = set(re.findall(r"decision '([^']+)'", violation))
    meant = _meant(violation, marks)
    for mark in marks:
        if mark in meant or (mark.decision and mark.decision in decisions):
            orders |= {mark.order} - {""}
            tokens |= {mark.token} - {0}
    decisions |= {m.decision for m in marks if m.order in orders and m.decision}
    orders |= {m.order for m in marks if m.decision in decisions and m.order and m.kind in ("decided", "accepted")}
    tokens |= {m.token for m in marks if m.order in orders and m.token and m.kind in ("decided", "sent")}
    given = [m.token for m in marks if m.kind == "lease" and "gives the lease" in m.text]
    met = [order for order in dict.fromkeys(m.order for m in marks) if order in orders]
    return met, sorted(tokens & set(given) or given[-2:])


def _meant(violation: str, marks: Sequence[Mark]) -> list[Mark]:
    """The marks of the lines that the sentence names. A gate that has forgotten everything numbers its lines from 1
    again: then those of an order in the sentence are meant, or else the last."""
    found: list[Mark] = []
    words = set(re.findall(r"\w+", violation))
    for ref in re.findall(r"(?:venue_seq|gate line|revision) \d+", violation):
        same = [m for m in marks if m.ref == ref]
        found += [m for m in same if m.order in words] or same[-1:]
    return found


# -- the first wrong step ----------------------------------------------------------------------------------------------


def _wrong_steps(
    plan: Plan, marks: Sequence[Mark], violation: str, orders: Sequence[str], tokens: Sequence[int]
) -> Iterator[tuple[Mark, str]]:
    """Each with what makes it one. Of a mark that two rules know, the rule that says more comes first."""
    yield from _permits_too_long(plan, marks, tokens)
    yield from _orders_from_nowhere(marks, orders)
    yield from _second_orders(marks, orders)
    if plan.venue == "token":
        yield from _stale_ones_accepted(marks, orders, tokens)
    yield from ((m, "") for m in _meant(violation, marks))
    yield from ((m, "") for m in marks if m.kind == "wrong")


def _permits_too_long(plan: Plan, marks: Sequence[Mark], tokens: Sequence[int]) -> Iterator[tuple[Mark, str]]:
    """A permit ends before its lease can be given to another: ttl after etcd has renewed it last."""
    renewed: dict[int, int] = {}
    for mark in marks:
        if mark.kind == "lease" and "is over" not in mark.text:
            renewed[mark.token] = mark.at
        elif mark.kind == "permit" and mark.token in tokens:
            too_long = mark.until - renewed.get(mark.token, 0) - plan.ttl
            if too_long > 0:
                yield (
                    mark,
                    f"that permit lasts {too_long / MS:.1f} ms longer than etcd keeps a lease that is not renewed",
                )


def _orders_from_nowhere(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[tuple[Mark, str]]:
    decided: set[str] = set()
    for mark in marks:
        if mark.kind == "decided":
            decided.add(mark.order)
        elif mark.kind in ("claim", "sent", "accepted") and mark.order in orders and mark.order not in decided:
            yield mark, f"nobody has written down a decision for an order {mark.order}"


def _second_orders(marks: Sequence[Mark], orders: Sequence[str]) -> Iterator[tuple[Mark, str]]:
    """A second one for a decision of which an order has left, and one that leaves twice."""
    sent: set[str] = set()
    decisions: dict[str, str] = {}
    for mark in marks:
        if mark.order not in orders:
            continue
        if mark.kind == "sent" and mark.text.startswith("the bytes"):
            if mark.order in sent:
                yield mark, "they have left before"
            sent.add(mark.order)
        elif mark.kind in ("decided", "accepted") and mark.decision:
            first = decisions.setdefault(mark.decision, mark.order)
            if first != mark.order and first in sent:
                yield mark, f"of the same decision, order {first} has left before"


def _stale_ones_accepted(
    marks: Sequence[Mark], orders: Sequence[str], tokens: Sequence[int]
) -> Iterator[tuple[Mark, str]]:
    newest: Mark | None = None
    for mark in marks:
        if mark.lane != VENUE or mark.kind not in ("accepted", "fence") or not mark.token:
            continue
        if newest is None or mark.token >= newest.token:
            newest = newest if newest is not None and mark.token == newest.token else mark
        elif mark.token in tokens or mark.order in orders:
            ago = (mark.at - newest.at) / MS
            yield mark, f"{ago:.1f} ms before, it heard of token {newest.token}, and must refuse older ones since"


# -- the decisive moments ----------------------------------------------------------------------------------------------


def _decisive(
    marks: Sequence[Mark], violation: str, orders: Sequence[str], tokens: Sequence[int], wrong: Mark | None
) -> Iterator[Mark]:
    """From the lease of the first token concerned to the violation; what is told again and again, once."""
    begin = next((i for i, m in enumerate(marks) if m.kind == "lease" and m.token in tokens), 0)
    meant = _meant(violation, marks)
    ends = (i for i, m in enumerate(marks) if m is wrong or (m in meant if meant else m.kind == "wrong"))
    end = max(ends, default=len(marks) - 1)
    span = marks[begin : end + 1]
    nodes = {m.lane.partition(" ")[0] for m in span if m.token in tokens or m.order in orders}
    told: defaultdict[tuple[str, str], int] = defaultdict(int)
    chosen = []
    for mark in span:
        if not (mark is wrong or _is_decisive(mark, orders, tokens, nodes)):
            continue
        key = (mark.lane, mark.text)
        told[key] += 1
        if told[key] == 1 or mark is wrong:
            chosen.append(mark)
    essential = [m for m in chosen if m.order or m.kind in _ALWAYS or m.kind == "lease" or m is wrong]
    yield from chosen if len(chosen) <= MOMENTS_MAX else essential[-MOMENTS_MAX:]


def _is_decisive(mark: Mark, orders: Sequence[str], tokens: Sequence[int], nodes: set[str]) -> bool:
    if mark.kind == "lease" and "renews" in mark.text:
        return False
    if mark.to:
        lost_or_late = not mark.until or mark.until - mark.at > LATE
        return mark.order in orders and lost_or_late
    if mark.kind in _OF_AN_ORDER and mark.order in orders:
        return True
    if mark.kind in _OF_A_TOKEN and mark.token in tokens:
        return True
    return mark.kind in _ALWAYS or (mark.kind == "death" and mark.lane.partition(" ")[0] in nodes)


# -- the script --------------------------------------------------------------------------------------------------------

_BROKEN = MappingProxyType(
    {
        "keeper pause": "the keeper of {who} is frozen",
        "worker pause": "the worker of {who} is frozen",
        "host pause": "both processes of {who} are frozen",
        "host suspend": "the host of {who} is suspended",
        "worker crash": "the worker of {who} is killed",
        "keeper crash": "the keeper of {who} is killed",
        "host crash": "the host of {who} loses its power",
        "worker hang": "the worker of {who} hangs",
        "worker stuck": "the worker of {who} hangs where even a kill waits",
        "torn tail": "the host of {who} loses its power in the middle of a write",
        "short pause": "both processes of {who} are frozen for a moment",
        "short cut": "{who} is cut off from etcd for a moment",
        "jitter": "the links of {who} become slow",
        "corrupt frame": "a byte of the next replication frame is flipped",
        "repeat stream": "the venue tells fills twice",
        "reorder stream": "the venue tells fills out of order",
        "feed stall": "the market data of {who} stop",
        "feed repeat": "{who} is told the latest market data again",
        "false keep-alive": "etcd revokes the lease of {who}, and goes on to confirm it",
        "late expiry": "a change of leader in etcd gives every lease its whole time again",
        "compact": "etcd compacts its history under slow watches",
        "blind": "the others do not see the renewals of {who}, which then hears nothing more from etcd",
        "vanish": "the others do not see the renewals of {who}, and then its key vanishes",
        "etcd restored": "etcd is restored from an older copy",
        "etcd replaced": "etcd is replaced by an empty one",
        "redis empty": "the gate's Redis restarts empty",
        "redis flush": "the gate's Redis is emptied",
        "redis failover": "a replica of the gate's Redis that lacks the latest changes takes over",
        "venue refuses": "the venue refuses everything, too many requests",
        "disk stall": "the disk of {who} is slow",
        "disk error": "the next write of {who} to its disk fails",
        "flip": "a byte in the journal of {who} is flipped",
        "wall jump": "the wall clock of {who} is set by an hour",
        "cut etcd": "{who} is cut off from etcd",
        "cut peer": "{who} is cut off from the other nodes",
        "cut gate": "{who} is cut off from the gate",
        "cut orders": "{who} is cut off from the venue",
        "lose answers": "the venue's answers to {who} are lost",
        "lurk": "orders of {who} are held back on their way",
        "cut stream": "the venue's private stream to {who} is cut",
        "switchover": "a person asks for a switchover",
        "shutdown": "{who} is asked to shut down",
        "step down": "{who} is asked to step down",
        "halt": "the kill switch is pressed",
        "etcd down": "etcd has no majority",
        "revoke": "etcd revokes the lease of {who}, though it is renewed",
        "delete key": "the leader's key is deleted by hand",
        "stall watch": "{who} hears nothing of changes in etcd",
        "redis down": "the gate is down",
        "venue down": "the venue is down",
        "wipe": "{who} loses its data directory",
    }
)
"""What a fault of each kind does (`faults.FAULTS`)."""

_DONE = MappingProxyType(
    {
        "pause": "that process is frozen",
        "host pause": "both processes of its node are frozen",
        "kill": "it is killed",
        "late answer": "etcd's answer to it is held",
        "held request": "what it sends to etcd is held",
        "lost journal": "the worker dies with its journal, and the answer is held",
        "late": "the answer is held, and nothing that it sends to etcd later arrives",
        "given up": "its worker asks to step down meanwhile, and what the keeper sends is held",
    }
)


def script_in_words(plan: Plan) -> list[str]:
    """The cluster, then what is done to it."""
    venue = {"token": "checks fencing tokens", "expiry": "checks the expiry of orders", "plain": "checks neither"}
    cluster = (
        f"{plan.nodes} nodes with leases of {plan.ttl / MS:.0f} ms; a venue that {venue[plan.venue]}; an event of the "
        f"market every {plan.lull / MS:.0f} ms or so; everything is healed at {plan.heal_at / MS:.0f} ms"
    )
    noise = ", ".join(f"{part:.0%} of the messages {how}" for part, how in _noise(plan) if part)
    drift = "the clocks of the nodes run at different speeds" if len(set(plan.drifts)) > 1 else ""
    return [cluster, *filter(None, (noise, drift)), *map(_fault, plan.faults), *map(_trap, plan.traps)]


def _noise(plan: Plan) -> tuple[tuple[float, str], ...]:
    return (plan.loss, "are lost"), (plan.late, "are late")


def _fault(fault: Fault) -> str:
    who = {"leader": "the leader", "standby": "a standby"}.get(fault.target, fault.target)
    what = _BROKEN[fault.kind].format(who=who)
    return f"at {fault.at / MS:.0f} ms {what}" + (f", for {fault.length / MS:.0f} ms" if fault.length else "")


def _trap(trap: Trap) -> str:
    step = BEFORE[trap.step].format(order="").replace("order  ", "an order ") if trap.step in BEFORE else trap.step
    nth = {1: "first", 2: "second", 3: "third"}.get(trap.nth, f"{trap.nth}th")
    length = f", for {trap.length / MS:.0f} ms" if trap.length and trap.effect != "kill" else ""
    return f"right before the {nth} time that in a {trap.process} {step.strip()}: {_DONE[trap.effect]}{length}"


def lanes(marks: Sequence[Mark]) -> list[str]:
    """Those of the figure, from above: people and faults, etcd, the nodes, the gate, the venue."""
    found = {m.lane for m in marks} | {m.to for m in marks if m.to}
    nodes = sorted(lane for lane in found if " " in lane)
    order = {"keeper": 0, "worker": 1, "disk": 2}
    nodes.sort(key=lambda lane: (lane.partition(" ")[0], order[lane.partition(" ")[2]]))
    return [x for x in ("operator", FAULTS, "etcd", *nodes, "gate", "venue") if x in found or x == FAULTS]
