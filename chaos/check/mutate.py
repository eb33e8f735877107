"""Forged histories: one line of a good run is repeated, lost, moved or invented, and somebody must say so. Pure.

Each mutation takes evidence that passes and a Random, and returns evidence with one thing wrong, and the ids that must
name it: FAIL, or for `E` INVALID. Others may fail too, as one lie rarely comes alone. A history that has nothing to
change in that way raises NothingToMutate. The forger is clever: what it adds or takes away at the venue or the gate is
renumbered, so that only what the line *means* gives it away; the mutations of `E` are the clumsy ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from chaos.check.evidence import EtcdLine, Evidence, GateLine, JournalEvidence, SentLine, replayed
from chaos.check.history import History
from chaos.check.liveness import failovers
from cluster.core.log import GENESIS, make_entry
from node import codec
from node.codec import Fact, Fill, Intent, Outcome, Reconciled, Result
from node.types import client_order_id

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")
Lines = list[dict[str, Any]]
Mutated = tuple[Evidence, frozenset[str]]
Mutation = Callable[[Evidence, "Random"], Mutated]

MUTATIONS: dict[str, Mutation] = {}
"""By name, as in the reports."""


class NothingToMutate(LookupError):
    """This history has no line that could be changed in this way."""


def _mutation(f: Mutation) -> Mutation:
    MUTATIONS[f.__name__.replace("_", " ")] = f
    return f


def _pick(rng: Random, candidates: Iterable[T]) -> T:
    found = list(candidates)
    if not found:
        raise NothingToMutate
    return rng.choice(found)


def _held(lines: Sequence[T] | None) -> list[T]:
    if lines is None:
        raise NothingToMutate
    return list(lines)


# -- at the venue ------------------------------------------------------------------------------------------------------


def _venue(e: Evidence) -> Lines:
    return [dict(line) for line in _held(e.venue)]


def _told(e: Evidence, lines: Lines, *ids: str) -> Mutated:
    """By a forger who knows how the record counts."""
    event = 0
    for seq, line in enumerate(lines, 1):
        line["venue_seq"] = seq
        if line.get("event_seq") is not None:
            event += 1
            line["event_seq"] = event
    return e._replace(venue=lines), frozenset(ids)


def _new(lines: Lines) -> list[int]:
    return [i for i, x in enumerate(lines) if x["kind"] == "new" and x["outcome"] == "accepted"]


def _of(lines: Lines, kind: str) -> list[int]:
    return [i for i, x in enumerate(lines) if x["kind"] == kind]


@_mutation
def order_twice(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    at = _pick(rng, _new(lines))
    lines.insert(rng.randint(at + 1, len(lines)), dict(lines[at]))
    return _told(e, lines, "S1")


@_mutation
def decision_twice(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    orders = _new(lines)
    if len(orders) < 2:
        raise NothingToMutate
    first, second = sorted(rng.sample(orders, 2))
    lines[second]["decision_id"] = lines[first]["decision_id"]
    return _told(e, lines, "S1")


@_mutation
def order_from_nowhere(e: Evidence, rng: Random) -> Mutated:
    """In the name of the latest leader, for an intent that nobody has."""
    lines, journals = _venue(e), _held(e.journals)
    tag, beyond = journals[0].book.cluster_tag, max(j.last_index for j in journals)
    order = dict(lines[_pick(rng, _new(lines)[-1:])])
    if not e.run.at_rest:
        raise NothingToMutate
    coid = client_order_id(tag, order["token"], beyond + rng.randint(1, 9))
    lines.append(order | {"client_order_id": coid, "decision_id": f"{coid} by hand"})
    return _told(e, lines, "S1", "S7")


@_mutation
def order_changed(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    _held(e.journals)
    order = lines[_pick(rng, _new(lines))]
    other = {"qty_lots": order["qty_lots"] + 1, "side": "sell" if order["side"] == "buy" else "buy", "symbol": "ELSE"}
    what = rng.choice(sorted(other))
    order[what] = other[what]
    return _told(e, lines, "S1")


@_mutation
def order_negative(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    order = lines[_pick(rng, _new(lines))]
    order["qty_lots"] = -order["qty_lots"]
    return _told(e, lines, "S1")


def _messages(e: Evidence, lines: Lines) -> list[int]:
    """Accepted ones with a token; of a venue that checks them."""
    if History(e).fences != "token":
        raise NothingToMutate
    return [i for i, x in enumerate(lines) if x["outcome"] == "accepted" and x["token"]]


@_mutation
def stale_message_accepted(e: Evidence, rng: Random) -> Mutated:
    """A message of a term that is under way turns out to be of an earlier leader."""
    lines = _venue(e)
    owner: dict[int, str] = {}
    candidates = []
    for i in _messages(e, lines):
        token = lines[i]["token"]
        if token in owner and len(owner) > 1:
            candidates.append((i, rng.choice([t for t in owner if t < token])))
        owner[token] = lines[i]["node"]
    at, token = _pick(rng, candidates)
    lines[at] |= {"token": token, "node": owner[token]}
    return _told(e, lines, "S2", "S3")


@_mutation
def terms_interleave(e: Evidence, rng: Random) -> Mutated:
    """The last message of a term arrives behind the first one of the next."""
    lines = _venue(e)
    at = _messages(e, lines)
    tokens = [lines[i]["token"] for i in at]
    ends = [k for k in range(1, len(at) - 1) if tokens[k - 1] == tokens[k] != tokens[k + 1]]
    k = _pick(rng, ends)
    lines.insert(at[k + 1], lines.pop(at[k]))
    return _told(e, lines, "S2", "S3")


@_mutation
def token_shared(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    shared = [i for i, x in enumerate(lines) if x["outcome"] == "accepted" and x["token"]]
    at = _pick(rng, [i for i in shared if sum(lines[k]["token"] == lines[i]["token"] for k in shared) > 1])
    lines[at]["node"] = f"{lines[at]['node']}-twin"
    return _told(e, lines, "S3")


@_mutation
def fill_lost_at_venue(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    _held(e.journals)
    del lines[_pick(rng, _of(lines, "fill"))]
    return _told(e, lines, "S5")


@_mutation
def fill_twice(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    _held(e.journals)
    at = _pick(rng, _of(lines, "fill"))
    lines.insert(rng.randint(at + 1, len(lines)), dict(lines[at]))
    return _told(e, lines, "S5")


@_mutation
def fill_negative(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    _held(e.journals)
    fill = lines[_pick(rng, _of(lines, "fill"))]
    fill["qty_lots"] = -fill["qty_lots"]
    return _told(e, lines, "S5")


@_mutation
def close_lost(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    _at_rest(e)
    del lines[_pick(rng, _of(lines, "closed"))]
    return _told(e, lines, "S6")


@_mutation
def stale_message_after_heal(e: Evidence, rng: Random) -> Mutated:
    lines, run = _venue(e), e.run
    if not (run.healed_at and run.recovery_max and run.venue_epoch is not None and e.etcd and run.at_rest):
        raise NothingToMutate
    order = dict(lines[_pick(rng, _new(lines))])
    late = run.healed_at + run.recovery_max + 1 + run.venue_epoch
    lines.append(order | {"outcome": "refused", "reason": "stale_token", "event_seq": None, "at_ns": late})
    return _told(e, lines, "L2")


@_mutation
def first_order_late(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    measured = [f.token for f in failovers(History(e)) if f.first_order is not None]
    if not e.run.rto_max or e.faults is None:
        raise NothingToMutate
    token = _pick(rng, measured)
    first = next(i for i in _new(lines) if lines[i]["token"] == token)
    lines[first]["at_ns"] += e.run.rto_max + 1
    return _told(e, lines, "L1")


# -- in a journal ------------------------------------------------------------------------------------------------------


def _at_rest(e: Evidence) -> list[JournalEvidence]:
    journals = [j for j in _held(e.journals) if j.final]
    if not e.run.at_rest or any(j.base for j in journals):
        raise NothingToMutate
    return journals


def _facts(j: JournalEvidence) -> list[Fact]:
    return [codec.decode(entry.kind, entry.body) for entry in j.entries]


def _rewritten(j: JournalEvidence, facts: Iterable[Fact]) -> JournalEvidence:
    """Its chain made right again."""
    entries, index, chain = [], 0, GENESIS
    for old, fact in zip(j.entries, facts, strict=False):
        kind, body = codec.encode(fact)
        entry = make_entry(index, chain, old.term, kind, old.at, body)
        entries.append(entry)
        index, chain = entry.index, entry.chain
    return replayed(j.node, entries, j.book.cluster_tag)


def _instead(e: Evidence, old: JournalEvidence, facts: Iterable[Fact], *ids: str) -> Mutated:
    """One node's journal in place of its true one."""
    new = _rewritten(old, facts)
    return e._replace(journals=[new if j is old else j for j in e.journals or ()]), frozenset(ids)


_NOTHING = Reconciled("forged")
"""In place of a fact: an entry keeps its index, or every later one would name another intent."""


@_mutation
def fill_lost_by_a_node(e: Evidence, rng: Random) -> Mutated:
    j = rng.choice(_at_rest(e))
    facts = _facts(j)
    facts[_pick(rng, [i for i, f in enumerate(facts) if isinstance(f, Fill)])] = _NOTHING
    return _instead(e, j, facts, "S5")


@_mutation
def fill_changed_by_a_node(e: Evidence, rng: Random) -> Mutated:
    j = rng.choice(_at_rest(e))
    facts = _facts(j)
    at, fill = _pick(rng, [(i, f) for i, f in enumerate(facts) if isinstance(f, Fill)])
    facts[at] = fill._replace(qty_lots=fill.qty_lots + 1)
    return _instead(e, j, facts, "S5", "S6")


@_mutation
def tail_lost_by_a_node(e: Evidence, rng: Random) -> Mutated:
    j = rng.choice(_at_rest(e))
    accepted = {parsed[2] for parsed in History(e).orders.values() if parsed is not None}
    if not accepted:
        raise NothingToMutate
    return _instead(e, j, _facts(j)[: max(accepted) - 1], "S7")


def _inherited(e: Evidence) -> list[tuple[int, Outcome]]:
    """(place, outcome) by which a later leader settled an intent that nothing else speaks of, before an order of its
    own on the same symbol and side was accepted."""
    history = History(e)
    tag = history.journals[0].book.cluster_tag if history.journals else ""
    accepted = {p[1:] for p in history.orders.values() if p is not None and p[0] == tag}
    found = []
    for _, log in history.distinct():
        told: dict[int, int] = {}
        for _, fact in log.facts:
            if not (isinstance(fact, Outcome) and fact.result is Result.UNKNOWN):
                index = getattr(fact, "intent_index", 0)
                told[index] = told.get(index, 0) + 1
        for place, (entry, fact) in enumerate(log.facts):
            if not isinstance(fact, Outcome) or fact.result is Result.UNKNOWN or told[fact.intent_index] > 1:
                continue
            intent = log.intents[fact.intent_index]
            if entry.term > log.terms[fact.intent_index] and any(
                (x.term, x.index) in accepted and isinstance(f, Intent) and _same_side(f, intent)
                for x, f in log.facts[place:]
            ):
                found.append((place, fact))
    return found


def _same_side(a: Intent, b: Intent) -> bool:
    return (a.spec.symbol, a.spec.side) == (b.spec.symbol, b.spec.side)


def _everywhere(e: Evidence, place: int, fact: Fact, *ids: str) -> Mutated:
    journals = []
    for j in _at_rest(e):
        facts = _facts(j)
        facts[place] = fact
        journals.append(_rewritten(j, facts))
    return e._replace(journals=journals), frozenset(ids)


@_mutation
def order_before_the_last_one_was_settled(e: Evidence, rng: Random) -> Mutated:
    place, outcome = _pick(rng, _inherited(e))
    return _everywhere(e, place, outcome._replace(result=Result.UNKNOWN), "S10")


@_mutation
def settled_against_the_truth(e: Evidence, rng: Random) -> Mutated:
    place, outcome = _pick(rng, _inherited(e))
    lie = Result.NOT_SENT if outcome.result is Result.ACCEPTED else Result.ACCEPTED
    return _everywhere(e, place, outcome._replace(result=lie), "S10")


@_mutation
def absence_that_nobody_asked_about(e: Evidence, rng: Random) -> Mutated:
    _held(e.queries)
    absent = [
        x for x in _inherited(e) if x[1].evidence in (codec.Evidence.ABSENT_FENCED, codec.Evidence.ABSENT_EXPIRED)
    ]
    _pick(rng, absent)
    return e._replace(queries=[]), frozenset({"S10"})


# -- commits -----------------------------------------------------------------------------------------------------------


@_mutation
def another_entry_was_committed(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.commits)
    _at_rest(e)
    at = _pick(rng, [i for i, c in enumerate(lines) if c.what == "committed"])
    lines[at] = lines[at]._replace(chain=bytes(reversed(lines[at].chain)))
    return e._replace(commits=lines), frozenset({"S7"})


@_mutation
def leader_that_lacks_a_commit(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.commits)
    candidates, committed = [], 0
    for i, c in enumerate(lines):
        if c.what == "led" and committed:
            candidates.append((i, committed))
        elif c.what == "committed":
            committed = max(committed, c.index)
    at, last = _pick(rng, candidates)
    lines[at] = lines[at]._replace(index=rng.randrange(last))
    return e._replace(commits=lines), frozenset({"S7"})


# -- bytes, tokens, the gate -------------------------------------------------------------------------------------------


@_mutation
def standby_sends(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.sent)
    at = _pick(rng, range(len(lines)))
    lines[at] = lines[at]._replace(node=f"{lines[at].node}-twin")
    return _sent(e, lines, "S4")


@_mutation
def sent_with_a_token_of_nobody(e: Evidence, rng: Random) -> Mutated:
    lines, given = _held(e.sent), _held(e.etcd)
    at = _pick(rng, range(len(lines)))
    lines[at] = lines[at]._replace(token=1 + max(t.token for t in given))
    return _sent(e, lines, "S4")


@_mutation
def sent_before_the_token_was_given(e: Evidence, rng: Random) -> Mutated:
    """A time that runs backwards, which is also broken evidence."""
    lines = _held(e.sent)
    at = _pick(rng, range(len(lines)))
    lines[at] = lines[at]._replace(at=-1)
    return _sent(e, lines, "S4", "E")


@_mutation
def sent_late(e: Evidence, rng: Random) -> Mutated:
    lines, run = _held(e.sent), e.run
    order = _pick(rng, [s for s in lines if s.kind == "new"])
    if not run.ttl or e.gate is None or e.venue is None or any(f.kind == "pause" for f in e.faults or ()):
        raise NothingToMutate
    last = max(lines[-1].at, _held(e.etcd)[-1].at)
    lines.append(order._replace(at=last + run.ttl + run.clock_error + 1))
    return _sent(e, lines, "S8")


def _sent(e: Evidence, lines: list[SentLine], *ids: str) -> Mutated:
    if e.etcd is None:
        raise NothingToMutate
    return e._replace(sent=lines), frozenset(ids)


@_mutation
def token_given_that_is_lower(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.etcd)
    _held(e.gate)
    last = lines[-1]
    lines.append(EtcdLine(last.revision + 1, "acquired", rng.randint(1, max(x.token for x in lines)), "n9", last.at))
    return e._replace(etcd=lines), frozenset({"S9"})


@_mutation
def another_leader_after_heal(e: Evidence, rng: Random) -> Mutated:
    lines, run = _held(e.etcd), e.run
    if not (run.healed_at and run.ended_at and run.recovery_max and run.venue_epoch is not None and run.at_rest):
        raise NothingToMutate
    if any(o.what == "switchover_asked" and o.at >= run.healed_at for o in e.operator or ()):
        raise NothingToMutate
    token = max(x.token for x in lines) + rng.randint(1, 9)
    at = max(lines[-1].at, run.healed_at + run.recovery_max + 1)
    lines.append(EtcdLine(lines[-1].revision + 1, "acquired", token, "n9", at))
    return e._replace(etcd=lines), frozenset({"L2"})


@_mutation
def needless_failover(e: Evidence, rng: Random) -> Mutated:
    lines, faults = _held(e.etcd), _held(e.faults)
    if not faults or not all(f.harmless for f in faults):
        raise NothingToMutate
    token, at = max(x.token for x in lines) + rng.randint(1, 9), max(lines[-1].at, faults[0].ordered) + 1
    lines.append(EtcdLine(lines[-1].revision + 1, "acquired", token, "n9", at))
    return e._replace(etcd=lines), frozenset({"L3"})


def _decided(e: Evidence, lines: list[GateLine], *ids: str) -> Mutated:
    """Numbered anew, from where it began."""
    first = lines[0].seq if lines else 1
    return e._replace(gate=[g._replace(seq=first + i) for i, g in enumerate(lines)]), frozenset(ids)


def _granted(e: Evidence, lines: list[GateLine]) -> list[int]:
    """Claims of orders that the venue accepted."""
    accepted = History(e).record.accepted
    return [i for i, g in enumerate(lines) if g.op == "claim" and g.verdict == "ok" and g.subject in accepted]


@_mutation
def claim_missing(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    _held(e.venue)
    del lines[_pick(rng, _granted(e, lines))]
    return _decided(e, lines, "S8")


@_mutation
def claim_of_another_token(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    _held(e.venue)
    at = _pick(rng, _granted(e, lines))
    lines[at] = lines[at]._replace(token=lines[at].token + 1)
    return _decided(e, lines, "S8")


@_mutation
def stale_claim_granted(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    stale = [i for i, g in enumerate(lines) if g.op == "claim" and g.verdict in ("stale_token", "gate_unarmed")]
    at = _pick(rng, stale)
    lines[at] = lines[at]._replace(verdict="ok")
    return _decided(e, lines, "S9")


@_mutation
def gate_forgets_and_grants(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    at = _pick(rng, [i for i, g in enumerate(lines) if g.op == "claim" and g.verdict == "ok"])
    lines.insert(at, GateLine(lines[at].seq, "lost", at=lines[at].at))
    return e._replace(gate=lines), frozenset({"S9"})


@_mutation
def claim_granted_under_a_halt(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    _held(e.venue)
    at = _pick(rng, [i for i, g in enumerate(lines) if g.op == "claim" and g.verdict == "ok"])
    lines.insert(at, lines[at]._replace(op="halt", token=0, subject="forged"))
    return _decided(e, lines, "S11")


# -- clumsy ones, and drills that did not happen -----------------------------------------------------------------------


@_mutation
def record_line_lost(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    del lines[_pick(rng, range(len(lines) - 1))]
    return e._replace(venue=lines), frozenset({"E"})


@_mutation
def record_line_repeated(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    at = _pick(rng, range(len(lines)))
    lines.insert(rng.randint(at + 1, len(lines)), dict(lines[at]))
    return e._replace(venue=lines), frozenset({"E"})


@_mutation
def record_lines_swapped(e: Evidence, rng: Random) -> Mutated:
    lines = _venue(e)
    at = _pick(rng, range(len(lines) - 1))
    to = rng.randint(at + 1, len(lines) - 1)
    lines[at], lines[to] = lines[to], lines[at]
    return e._replace(venue=lines), frozenset({"E"})


@_mutation
def gate_line_lost(e: Evidence, rng: Random) -> Mutated:
    lines = _held(e.gate)
    inner = range(1, len(lines) - 1)
    del lines[_pick(rng, [i for i in inner if "lost" not in (lines[i - 1].op, lines[i].op, lines[i + 1].op)])]
    return e._replace(gate=lines), frozenset({"E"})


@_mutation
def fault_that_did_not_bite(e: Evidence, rng: Random) -> Mutated:
    faults = _held(e.faults)
    at = _pick(rng, range(len(faults)))
    faults[at] = faults[at]._replace(effect=None) if rng.random() < 0.5 else faults[at]._replace(proof="")
    return e._replace(faults=faults), frozenset({"E"})
