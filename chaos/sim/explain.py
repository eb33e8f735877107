"""What a failure means, for a reader who knows nothing of the code: which marks of its story decide it, and in words.

The checker's sentence names orders, decisions, entries, tokens, or lines of a record; of those the story is told: who
was given which token, what was broken, which order was decided, frozen, sent, accepted, asked for and settled, and when
somebody else took over. All times are from the start of the run. Pure. Read next: `headline.py`, `wrong.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from chaos.sim.engine import MS
from chaos.sim.headline import headline_of, invariant_of
from chaos.sim.plan import Plan
from chaos.sim.story import FAULTS, JUDGE, Mark
from chaos.sim.unsaid import lookups, silences
from chaos.sim.words import script_in_words, told, violation_told
from chaos.sim.wrong import first_wrong
from node.types import parse_client_order_id

MOMENTS_MAX = 40
LATE = 30 * MS
"""A message that takes longer is worth telling."""
_ALWAYS = frozenset({"fault", "pause", "wrong"})
_OF_A_TOKEN = frozenset({"lease", "permit", "fence"})
_OF_AN_ORDER = frozenset({"decided", "claim", "sent", "accepted", "refused", "outcome", "fill", "request"})
_NO_TRADES: Mapping[str, str] = MappingProxyType({})


class Moment(NamedTuple):
    """number: from 1."""

    number: int
    mark: Mark


class Case(NamedTuple):
    """violation: the checker's sentence. wrong, why: the first wrong step, and what makes it one. since, until: the
    true time that decides it. left_out: how many faults the moments do not tell of. marks: all, in words."""

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
    faults: int
    left_out: int
    marks: list[Mark]


def explain(plan: Plan, marks: Sequence[Mark], problems: Sequence[str], trades: Mapping[str, str] = _NO_TRADES) -> Case:
    """problems: the first is the one that is explained; none: what the run was like. trades: the venue's trades, and
    the line of its record that each stands in."""
    violation = violation_told(problems[0]) if problems else ""
    orders, tokens = _concerned(violation, marks, trades) if problems else ([], _given(marks))
    story = _in_words(plan, [*silences(plan, marks, orders), *lookups(marks, orders), *marks])
    meant = _meant(violation, story)
    wrong, why = first_wrong(plan, story, orders, tokens, meant) if problems else (None, "")
    if problems:
        chosen = list(_decisive(story, meant, orders, tokens, wrong))
    else:
        chosen = [m for m in story if m.kind in ("fault", "pause", "death", "lease") and "renews" not in m.text]
    faults = [m for m in story if m.lane == FAULTS and m.text != "everything is healed"]
    return Case(
        invariant_of(violation),
        headline_of(violation),
        violation,
        script_in_words(plan),
        orders,
        tokens,
        [Moment(n, m) for n, m in enumerate(chosen, 1)],
        wrong,
        why,
        since=chosen[0].at if chosen else 0,
        until=max((m.at for m in chosen), default=0),
        faults=len(faults),
        left_out=sum(m not in chosen for m in faults),
        marks=story,
    )


def _in_words(plan: Plan, marks: Sequence[Mark]) -> list[Mark]:
    """In order; what was seen to be wrong comes after what was done at that instant. A fault ends with the healing."""
    found = [told(m) for m in sorted(marks, key=lambda m: (m.at, m.lane == JUDGE))]
    return [m._replace(until=min(m.until, plan.heal_at)) if m.lane == FAULTS and m.until else m for m in found]


# -- what it is about --------------------------------------------------------------------------------------------------


def _given(marks: Sequence[Mark]) -> list[int]:
    return [m.token for m in marks if m.kind == "lease" and "gives the lease" in m.text]


def _concerned(violation: str, marks: Sequence[Mark], trades: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """The orders and tokens that the sentence names, and those that belong to them."""
    orders = {w for w in re.findall(r"\w+", violation) if parse_client_order_id(w) is not None}
    tokens = {int(n) for n in re.findall(r"(?:tokens?|permit for|one for|leads|term|after|gives) (\d+)", violation)}
    decisions = set(re.findall(r"(?:decision|decides) '([^']+)'", violation))
    refs = {trades[t] for t in re.findall(r"fill (\w+)", violation) if t in trades}
    meant = [*_meant(violation, marks), *_entries(violation, marks), *(m for m in marks if m.ref in refs)]
    for mark in marks:
        if mark in meant or (mark.decision and mark.decision in decisions):
            orders |= {mark.order} - {""}
            tokens |= {mark.token} - {0}
    decisions |= {m.decision for m in marks if m.order in orders and m.decision}
    orders |= {m.order for m in marks if m.decision in decisions and m.order and m.kind in ("decided", "accepted")}
    tokens |= {m.token for m in marks if m.order in orders and m.token and m.kind in ("decided", "sent")}
    given = _given(marks)
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


def _entries(violation: str, marks: Sequence[Mark]) -> list[Mark]:
    """The marks of the entries of the log that the sentence names; of several terms, the last, if it names none."""
    found: list[Mark] = []
    for index, term in re.findall(r"\bentry (\d+)(?: of term (\d+))?", violation):
        same = [m for m in marks if m.ref == f"entry {index}" and (not term or m.token == int(term))]
        found += same[-1:]
    return found


# -- the decisive moments ----------------------------------------------------------------------------------------------


def _decisive(
    marks: Sequence[Mark], meant: Sequence[Mark], orders: Sequence[str], tokens: Sequence[int], wrong: Mark | None
) -> Iterator[Mark]:
    """From the lease of the first token concerned to the violation; what is told again and again, once."""
    begin = next((i for i, m in enumerate(marks) if m.kind == "lease" and m.token in tokens), 0)
    ends = (
        i
        for i, m in enumerate(marks)
        if m is wrong or m.kind == "wrong" or m in meant or (m.order in orders and m.kind in _OF_AN_ORDER and not m.to)
    )
    end = max(ends, default=len(marks) - 1)
    span = marks[begin : end + 1]
    nodes = {m.lane.partition(" ")[0] for m in span if m.token in tokens or m.order in orders}
    times: defaultdict[tuple[str, str], int] = defaultdict(int)
    chosen = []
    for mark in span:
        if not (mark is wrong or _is_decisive(mark, orders, tokens, nodes)):
            continue
        key = (mark.lane, mark.text)
        times[key] += 1
        if times[key] == 1 or mark is wrong or _counts_again(mark):
            chosen.append(mark)
    essential = [m for m in chosen if m.order or m.kind in _ALWAYS or m.kind == "lease" or m is wrong]
    yield from chosen if len(chosen) <= MOMENTS_MAX else essential[-MOMENTS_MAX:]


def _counts_again(mark: Mark) -> bool:
    """It matters how often, though each time it is told in the same words."""
    return mark.kind == "fault" or mark.text.startswith(("the bytes", "no answer for order"))


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


# -- the figure --------------------------------------------------------------------------------------------------------


def lanes(marks: Sequence[Mark]) -> list[str]:
    """Those of the figure, from above: people and faults, etcd, the nodes, the gate, the venue, the judge."""
    found = {m.lane for m in marks} | {m.to for m in marks if m.to}
    nodes = sorted(lane for lane in found if " " in lane)
    order = {"keeper": 0, "worker": 1, "disk": 2}
    nodes.sort(key=lambda lane: (lane.partition(" ")[0], order[lane.partition(" ")[2]]))
    return [x for x in ("operator", FAULTS, "etcd", *nodes, "gate", "venue", JUDGE) if x in found or x == FAULTS]
