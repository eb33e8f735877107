"""The story of one traced run as marks: a moment or a span in somebody's lane, or a message from one lane to another.

Marks are made where things happen and stand in the order in which they did; a run that is not traced makes none. They
are told from outside: in true time, which no node has. Nothing here decides. Read next: `timeline.py`, which shows them
to people.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from cluster.core.ids import LogIndex, Term
from cluster.core.log import Entry
from cluster.core.stream import Ack, Entries, Heartbeat
from cluster.etcd.model import Changes
from node.codec import CancelRequested, Fact, Fill, Intent, OrderClosed, Outcome, Reconciled, TermStarted
from node.paper_venue.lines import Line
from node.types import OrderSpec, client_order_id

if TYPE_CHECKING:
    from chaos.sim.redis import Decided

FAULTS, JUDGE, OPERATOR, ETCD, GATE, VENUE, MARKET = "faults", "judge", "operator", "etcd", "gate", "venue", "market"
"""Lanes beside those of the nodes: `<node> keeper`, `<node> worker`, `<node> disk`."""

KINDS = MappingProxyType(
    {
        "fault": "faults",
        "pause": "pauses",
        "death": "processes that start or end",
        "lease": "leases",
        "permit": "permits to send",
        "role": "changes of role",
        "decided": "orders decided",
        "claim": "claims at the gate",
        "sent": "orders on the wire",
        "accepted": "accepted by the venue",
        "refused": "refused by the venue",
        "outcome": "outcomes written down",
        "fill": "fills and closed orders",
        "fence": "fences armed",
        "commit": "commits",
        "journal": "journals",
        "operator": "what people do",
        "wrong": "violations",
        "request": "requests and answers",
        "link": "between keeper and worker",
        "stream": "the venue's private stream",
        "watch": "etcd's watches",
        "feed": "market data",
        "replication": "replication",
        "event": "the keepers' events",
    }
)
"""Every kind of mark, in words."""


class Mark(NamedTuple):
    """at: true ns. until: the end of a span, or when a message arrives; 0: a moment, an open end, a message that never
    does. to: the lane that a message goes to; empty: this is none. order: a client order id. ref: the line of a record
    that this shows, as the checker names it."""

    at: int
    lane: str
    kind: str
    text: str
    until: int = 0
    to: str = ""
    token: int = 0
    order: str = ""
    decision: str = ""
    ref: str = ""


BEFORE = MappingProxyType(
    {
        "Send": "order {order} is to be sent",
        "write": "the last look at the permit for order {order}",
        "bytes": "the bytes of order {order} leave, with all checks behind it",
        "Claim": "it claims order {order} at the gate",
        "SendCancel": "it cancels an order",
        "Acquire": "it asks etcd for the lease",
        "Renew": "it asks etcd to renew the lease",
        "WritePermit": "it writes the permit",
        "ClearPermit": "it drops the permit",
        "Resign": "it gives the lease back",
    }
)
"""The steps of a process before which a pause tells much, in words."""


def before(step: str, args: tuple[object, ...]) -> tuple[str, str]:
    """(where a process was stopped, the order concerned), of the step that it would have done next."""
    order = next((coid for a in args if (coid := str(getattr(a, "client_order_id", "")))), "")
    return f" right before {BEFORE[step].format(order=order)}" if step in BEFORE else "", order


# -- lines of records, as marks --------------------------------------------------------------------------------------

SENT = MappingProxyType(
    {
        "new": "the bytes of order {order} leave",
        "cancel": "a cancel of order {order} leaves",
        "cancel_all": "a cancel of all orders leaves",
        "arm": "the venue is told of a new leader",
        "keep_alive": "the dead-man's switch is set",
    }
)
"""What left a node, by the kind of `evidence.SentLine`."""


PROOF = MappingProxyType(
    {
        "NONE": "no reason is given",
        "LOCAL": "no answer came, or it never left",
        "VENUE_REPLY": "the venue answered so",
        "VENUE_STREAM": "the venue's private stream told so",
        "LOOKUP_FOUND": "asked for it, the venue has it",
        "ABSENT_FENCED": "asked for it, the venue has it not, and must refuse its token by now",
        "ABSENT_EXPIRED": "asked for it, the venue has it not, and its time is over",
        "FILL_HISTORY": "the venue has fills of it",
        "OPERATOR": "a person said so",
    }
)
"""What an outcome rests on, by the name of `codec.Evidence`."""

TermAt = Callable[[LogIndex], Term | None]


def lease_in_words(what: str, token: int, node: str, how: str) -> str:
    """Of `evidence.EtcdLine`."""
    if what == "acquired":
        return f"etcd gives the lease to {node}, with token {token}"
    if what == "renewed":
        return f"etcd renews the lease of {node}, token {token}"
    return f"the lease of {node}, token {token}, is over: {how}"


def of_gate(line: Decided) -> Mark:
    ref, subject, refused = (
        f"gate line {line.seq}",
        line.subject,
        f"REFUSED, {line.verdict}; the highest is {line.high}",
    )
    match line.op:
        case "claim":
            verdict = "granted" if line.verdict == "ok" else refused
            text, kind = f"order {subject} claimed with token {line.token}: {verdict}", "claim"
        case "arm":
            verdict = "from now on only this token" if line.verdict == "ok" else refused
            text, kind = f"armed by {subject} with token {line.token}: {verdict}", "fence"
        case "lost":
            text, kind = f"the gate has lost its state: {subject}", "fence"
        case _:
            text, kind = f"{line.op} {subject}: {line.verdict}", "operator"
    return Mark(line.at, GATE, kind, text, token=line.token, order=subject if line.op == "claim" else "", ref=ref)


def of_venue(line: Line, at: int) -> Mark:
    coid, token, taken = line.client_order_id or "", line.token or 0, line.accepted
    verdict = "" if taken else f": REFUSED, {line.reason}"
    kind = "accepted" if taken else "refused"
    match line.kind:
        case "new":
            verb = "accepts" if taken else "refuses"
            text = f"the venue {verb} order {coid} ({line.side} {line.qty_lots} lots) from {line.node}, token {token}"
            text += "" if taken else f": {line.reason}"
        case "arm":
            kind = "fence" if taken else "refused"
            text = f"the venue is told by {line.node} that token {token} leads{verdict}"
        case "fill":
            kind, text = "fill", f"order {coid} is filled, {line.qty_lots} lots at {line.price_ticks}"
        case "closed":
            kind, text = "fill", f"order {coid} is closed: {line.status}, {line.reason}"
        case "cancel":
            text = f"cancel of order {coid} from {line.node}, token {token}{verdict}"
        case "deadman":
            kind, text = "fence", f"the dead-man's switch of token {token} fires: its open orders are cancelled"
        case _:
            text = f"{line.kind.replace('_', ' ')} {line.node or ''}, token {token}{verdict}"
    ref = f"venue_seq {line.venue_seq}"
    return Mark(at, VENUE, kind, text, token=token, order=coid, decision=line.decision_id or "", ref=ref)


def of_fact(lane: str, at: int, tag: str, entry: Entry, fact: Fact, term_at: TermAt) -> Mark:
    """A fact that a leader appends to its journal. term_at: of the entries in it."""

    def order(index: int) -> str:
        return client_order_id(tag, term_at(LogIndex(index)) or entry.term, index)

    kind, coid, decision = "journal", "", ""
    match fact:
        case Intent(decision, spec):
            kind, coid = "decided", order(entry.index)
            text = f"decision {decision}, to {spec_in_words(spec)}, is written down as order {coid}"
        case Outcome(index, result, evidence):
            kind, coid = "outcome", order(index)
            text = f"order {coid} is written down as {result.name.replace('_', ' ')}: {PROOF[evidence.name]}"
        case Fill(trade, _, coid):
            text = f"a fill of order {coid} is written down, trade {trade}"
        case OrderClosed(index, how):
            coid = order(index)
            text = f"order {coid} is written down as over: {how.name}"
        case CancelRequested(index):
            coid = order(index)
            text = f"order {coid} is to be cancelled"
        case TermStarted(node):
            text = f"{node} begins the term of token {entry.term}"
        case Reconciled(trigger):
            text = f"journal and venue have been compared ({trigger})"
        case _:
            text = f"{type(fact).__name__} is written down"
    return Mark(at, lane, kind, text, token=entry.term, order=coid, decision=decision, ref=f"entry {entry.index}")


def spec_in_words(spec: OrderSpec) -> str:
    price = f"at {spec.price_ticks}" if spec.price_ticks is not None else "at any price"
    return f"{spec.side.value} {spec.qty_lots} lots of {spec.symbol} {price}"


def words(message: object) -> str:
    """A message, shortly."""
    match message:
        case str():
            return message
        case Entries(entries, commit):
            span = f"{entries[0].index} to {entries[-1].index}" if entries else "none"
            return f"entries {span}; committed up to {commit}"
        case Heartbeat(commit):
            return f"heartbeat; committed up to {commit}"
        case Ack(_, durable):
            return f"durable here up to {durable}"
        case Changes(_, revision):
            return f"changes up to revision {revision}"
    return repr(message)[:TEXT_MAX]


TEXT_MAX = 300
