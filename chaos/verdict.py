"""Did it hold? Judged from the venue's own record, and the journals on disk; a node's word about itself never counts.

Three questions (reference names in brackets):
- was a decision executed twice [S1], by the venue's record;
- was anything of a deposed leader accepted after its successor's first accepted message [S2, S3], by `venue_seq`,
  which is a total order that needs no clock;
- is every fill of the venue in every journal [S5], and does the position it adds up to stand on every node [S6].

Pure but for the readers at the end. The full checker with all invariants grows from here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from cluster.core.log import Entry
from cluster.journal_file import SELECT_ENTRIES, connect
from node.book import Book
from node.codec import Fill, Intent, Kind, decode
from node.types import parse_client_order_id

STALE = ("stale_token",)


@dataclass(slots=True)
class RecordFindings:
    """What the venue's record says. Lists hold one sentence per finding; empty is good."""

    orders_accepted: int = 0
    orders_refused: Counter[str] = field(default_factory=Counter)
    double_orders: list[str] = field(default_factory=list)
    stale_accepted: list[str] = field(default_factory=list)
    stale_refused: int = 0
    fills: dict[str, dict[str, Any]] = field(default_factory=dict)
    overfills: list[str] = field(default_factory=list)
    positions: dict[str, Decimal] = field(default_factory=dict)
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)  # client order id -> first accepted line


def judge_record(lines: Iterable[Mapping[str, Any]]) -> RecordFindings:
    """One pass over the record in `venue_seq` order."""
    f = RecordFindings()
    executed: dict[str, str] = {}  # decision id -> client order id
    filled: defaultdict[str, Decimal] = defaultdict(Decimal)
    owner: dict[int, str] = {}  # token -> node
    high, last_seq = 0, 0
    for line in lines:
        seq, kind, token, node = line["venue_seq"], line["kind"], line["token"] or 0, line["node"]
        if seq <= last_seq:
            f.stale_accepted.append(f"venue_seq {seq} after {last_seq}: the record is not in order")
        last_seq = seq
        if line["outcome"] == "refused":
            if line["reason"] in STALE:
                f.stale_refused += 1
            if kind == "new":
                f.orders_refused[str(line["reason"])] += 1
            continue
        if kind == "fill":
            trade, coid = str(line["trade_id"]), str(line["client_order_id"])
            if trade in f.fills:
                f.overfills.append(f"trade {trade} stands twice in the record")
            f.fills[trade] = dict(line)
            filled[coid] += Decimal(line["qty"])
            if coid in f.accepted and filled[coid] > Decimal(f.accepted[coid]["qty"]):
                f.overfills.append(f"{coid}: {filled[coid]} filled of {f.accepted[coid]['qty']}")
            sign = 1 if line["side"] == "buy" else -1
            f.positions[line["symbol"]] = f.positions.get(line["symbol"], Decimal()) + sign * Decimal(line["qty"])
        if line["outcome"] != "accepted":
            continue
        if token:
            if token < high:
                f.stale_accepted.append(f"venue_seq {seq}: {kind} with token {token} after token {high} was seen")
            if owner.setdefault(token, node) != node:
                f.stale_accepted.append(f"venue_seq {seq}: token {token} used by {node} and by {owner[token]}")
            high = max(high, token)
        if kind == "new":
            f.orders_accepted += 1
            coid, decision = str(line["client_order_id"]), str(line["decision_id"])
            if coid in f.accepted:
                f.double_orders.append(f"venue_seq {seq}: client order id {coid} accepted twice")
            f.accepted.setdefault(coid, dict(line))
            if executed.setdefault(decision, coid) != coid:
                f.double_orders.append(f"venue_seq {seq}: decision {decision!r} as {executed[decision]} and {coid}")
    return f


@dataclass(slots=True)
class JournalEvidence:
    """One node's journal, read from disk. intents: index -> decision id. chains: index -> chain, of every entry."""

    node: str
    last_index: int = 0
    chains: dict[int, bytes] = field(default_factory=dict)
    terms: dict[int, int] = field(default_factory=dict)
    intents: dict[int, str] = field(default_factory=dict)
    trades: Counter[str] = field(default_factory=Counter)
    positions: dict[str, int] = field(default_factory=dict)
    book_digest: bytes = b""


def journal_evidence(node: str, path: Path, order_tag: str) -> JournalEvidence:
    """Read a journal read-only; its node may be running. Replays every entry that stands there."""
    found = JournalEvidence(node)
    book = Book(order_tag)
    db = connect(path, read_only=True)
    try:
        for row in db.execute(SELECT_ENTRIES + " ORDER BY idx"):
            entry = Entry._make(row)
            found.last_index = entry.index
            found.chains[entry.index], found.terms[entry.index] = entry.chain, entry.term
            if entry.kind == Kind.INTENT or entry.kind == Kind.FILL:
                fact = decode(entry.kind, entry.body)
                if isinstance(fact, Intent):
                    found.intents[entry.index] = fact.decision_id
                elif isinstance(fact, Fill):
                    found.trades[fact.trade_id] += 1
            book.apply(entry)
    finally:
        db.close()
    found.positions = {s: lots for s, lots in book.positions().items() if lots}
    found.book_digest = book.digest()
    return found


@dataclass(slots=True)
class Verdict:
    """What a reader of the show or of a drill sees. Every list names what is wrong, in a sentence each."""

    record: RecordFindings
    lost_fills: list[str] = field(default_factory=list)
    orders_from_nowhere: list[str] = field(default_factory=list)
    logs_differ: list[str] = field(default_factory=list)
    positions_differ: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        r = self.record
        return [
            *r.double_orders,
            *r.stale_accepted,
            *r.overfills,
            *self.lost_fills,
            *self.orders_from_nowhere,
            *self.logs_differ,
            *self.positions_differ,
            *([] if self.digests_equal else [f"book digests differ: {self.digests}"]),
        ]

    @property
    def digests_equal(self) -> bool:
        return len(set(self.digests.values())) == 1


def judge(record: RecordFindings, journals: Iterable[JournalEvidence], lot_sizes: Mapping[str, Decimal]) -> Verdict:
    """Compare the venue with every journal. Call when trading is at rest: no fill is on its way."""
    v = Verdict(record)
    journals = list(journals)
    for j in journals:
        v.digests[j.node] = j.book_digest.hex()
        missing = [t for t in record.fills if t not in j.trades]
        v.lost_fills += [f"{j.node}: fill {t} of the venue is not in the journal" for t in missing]
        unexpected = [t for t in j.trades if t not in record.fills]
        v.lost_fills += [f"{j.node}: fill {t} of the journal is not in the venue's record" for t in unexpected]
        for coid, line in record.accepted.items():
            parsed = parse_client_order_id(coid)
            if parsed is None:
                v.orders_from_nowhere.append(f"order {coid} at the venue is not one of ours")
                continue
            _, term, index = parsed
            if j.terms.get(index) != term or j.intents.get(index) != line["decision_id"]:
                v.orders_from_nowhere.append(f"{j.node}: no intent at {index} of term {term} for order {coid}")
        expected = {s: q for s, q in record.positions.items() if q}
        ours = {s: lots * lot_sizes[s] for s, lots in j.positions.items()}
        if ours != expected:
            v.positions_differ.append(f"{j.node}: position {ours}, by the venue's fills {expected}")
    if journals:
        first = journals[0]
        for j in journals[1:]:
            common = min(first.last_index, j.last_index)
            if first.last_index != j.last_index or first.chains.get(common) != j.chains.get(common):
                v.logs_differ.append(
                    f"journals of {first.node} (to {first.last_index}) and {j.node} (to {j.last_index}) differ"
                )
    return v
