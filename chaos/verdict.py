"""Did it hold? Judged from the venue's own record, and the journals on disk; a node's word about itself never counts.

The questions (reference names in brackets):
- was a decision executed twice [S1], by the venue's record;
- was anything of a deposed leader accepted after its successor's first accepted message [S2, S3], by `venue_seq`,
  which is a total order that needs no clock;
- is every accepted order the very intent that stands in every journal, and every order that a journal believes to be
  placed in the record [S4];
- is every fill of the venue in every journal [S5], and does the position it adds up to stand on every node [S6];
- is the record itself whole: no line missing, repeated, moved, or of somebody else. A judge that reads past that
  could be told anything.

Pure. `evidence.py` reads the journals, `node/paper_venue/record.py` the record. The full checker with all invariants
grows from here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.core.log import GENESIS, Entry
from node.book import Book
from node.codec import Fill, Intent, OrderClosed, Outcome, Result, decode
from node.strategy import OrderState
from node.types import client_order_id, parse_client_order_id

STALE = ("stale_token",)

Line = Mapping[str, Any]


# -- the venue's record --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RecordFindings:
    """What the venue's record says. Lists hold one sentence per finding; empty is good."""

    broken: list[str] = field(default_factory=list)
    """The record is not what one venue wrote for one account."""
    double_orders: list[str] = field(default_factory=list)
    stale_accepted: list[str] = field(default_factory=list)
    fills_wrong: list[str] = field(default_factory=list)
    orders_accepted: int = 0
    orders_refused: Counter[str] = field(default_factory=Counter)
    stale_refused: int = 0
    accepted: dict[str, Line] = field(default_factory=dict)  # client order id -> its first accepted line
    open: dict[str, Line] = field(default_factory=dict)  # the same, of those that have not closed
    fills: dict[str, Line] = field(default_factory=dict)  # by trade id
    positions: dict[str, int] = field(default_factory=dict)  # net lots, without zeros

    @property
    def problems(self) -> list[str]:
        return [*self.broken, *self.double_orders, *self.stale_accepted, *self.fills_wrong]


def judge_record(lines: Iterable[Line]) -> RecordFindings:
    """One pass over a whole record, in its order."""
    reading = _Reading()
    for line in lines:
        reading.take(line)
    return reading.found


class _Reading:
    """What must be remembered of the lines before, to judge the next."""

    def __init__(self) -> None:
        self.found = RecordFindings()
        self._last_seq = 0
        self._event_seq = 0
        self._account: str | None = None
        self._token_high = 0
        self._owner: dict[int, str] = {}  # token -> node
        self._decided: dict[str, str] = {}  # decision id -> client order id
        self._filled: defaultdict[str, int] = defaultdict(int)  # client order id -> lots

    def take(self, line: Line) -> None:
        self._check_place(line)
        self._check_account(line)
        if line["outcome"] == "refused":
            self._refused(line)
        elif line["outcome"] == "accepted":
            self._check_token(line)
            if line["kind"] == "new":
                self._new(line)
        elif line["kind"] == "fill":
            self._fill(line)
        elif line["kind"] == "closed":
            self._closed(line)

    def _check_place(self, line: Line) -> None:
        seq, expected = line["venue_seq"], self._last_seq + 1
        if seq > expected:
            self.found.broken.append(f"venue_seq {seq} follows {self._last_seq}: lines between them are missing")
        elif seq < expected:
            self.found.broken.append(f"venue_seq {seq} follows {self._last_seq}: a line is repeated or moved")
        self._last_seq = max(seq, self._last_seq)

    def _check_account(self, line: Line) -> None:
        account, event = line.get("account"), line.get("event_seq")
        if account is None:
            return
        self._account = self._account or account
        if account != self._account:
            self.found.broken.append(f"{_at(line)} is of account {account!r}, the others of {self._account!r}")
        elif event is not None:
            if event != self._event_seq + 1:
                self.found.broken.append(f"{_at(line)} is event {event} of its account, after event {self._event_seq}")
            self._event_seq = max(event, self._event_seq)

    def _refused(self, line: Line) -> None:
        if line["reason"] in STALE:
            self.found.stale_refused += 1
        if line["kind"] == "new":
            self.found.orders_refused[str(line["reason"])] += 1

    def _check_token(self, line: Line) -> None:
        """Tokens of accepted messages never fall, also where the venue does not look at them; each has one owner."""
        token, node = line["token"] or 0, str(line["node"])
        if not token:
            return
        if token < self._token_high:
            self.found.stale_accepted.append(f"{_at(line)} with token {token} after token {self._token_high} was seen")
        if self._owner.setdefault(token, node) != node:
            self.found.stale_accepted.append(f"{_at(line)}: token {token} used by {node} and by {self._owner[token]}")
        self._token_high = max(self._token_high, token)

    def _new(self, line: Line) -> None:
        coid, decision = str(line["client_order_id"]), str(line["decision_id"])
        self.found.orders_accepted += 1
        if coid in self.found.accepted:
            self.found.double_orders.append(f"{_at(line)}: client order id {coid} was accepted before")
        if self._decided.setdefault(decision, coid) != coid:
            self.found.double_orders.append(
                f"{_at(line)}: decision {decision!r} as {coid} and {self._decided[decision]}"
            )
        self.found.accepted.setdefault(coid, line)
        self.found.open[coid] = line

    def _fill(self, line: Line) -> None:
        wrong, trade, coid = self.found.fills_wrong, str(line["trade_id"]), str(line["client_order_id"])
        if trade in self.found.fills:
            wrong.append(f"{_at(line)}: trade {trade} stands twice in the record")
        self.found.fills[trade] = line
        order = self.found.open.get(coid)
        if order is None:
            wrong.append(f"{_at(line)}: order {coid} is not open")
        elif (line["symbol"], line["side"]) != (order["symbol"], order["side"]):
            wrong.append(f"{_at(line)}: {line['side']} {line['symbol']} for {coid}, which is another order")
        self._filled[coid] += line["qty_lots"]
        if order is not None and self._filled[coid] > order["qty_lots"]:
            wrong.append(f"{_at(line)}: {self._filled[coid]} lots of {coid} filled, it was for {order['qty_lots']}")
        symbol, lots = str(line["symbol"]), (1 if line["side"] == "buy" else -1) * line["qty_lots"]
        net = self.found.positions.pop(symbol, 0) + lots
        if net:
            self.found.positions[symbol] = net

    def _closed(self, line: Line) -> None:
        coid = str(line["client_order_id"])
        if self.found.open.pop(coid, None) is None:
            self.found.fills_wrong.append(f"{_at(line)}: order {coid} is not open")
        if line["filled_lots"] != self._filled[coid]:
            self.found.fills_wrong.append(
                f"{_at(line)}: {coid} with {line['filled_lots']} lots filled, its fills sum to {self._filled[coid]}"
            )


def _at(line: Line) -> str:
    return f"venue_seq {line['venue_seq']}, {line['kind']}"


# -- a node's journal ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class JournalEvidence:
    """What one node's journal holds. Entries up to `base` are pruned, and a snapshot of the book stands for them; all
    that is said by index is of the entries after it."""

    node: str
    book: Book
    base: int = 0
    last_index: int = 0
    last_chain: bytes = GENESIS
    terms: dict[int, int] = field(default_factory=dict)
    intents: dict[int, Intent] = field(default_factory=dict)
    placed: set[int] = field(default_factory=set)  # intents that the journal believes to have reached the venue
    not_placed: set[int] = field(default_factory=set)  # and those that it believes never did
    trades: set[str] = field(default_factory=set)


def evidence_of(
    node: str, entries: Iterable[Entry], order_tag: str, *, base: int = 0, snapshot: bytes | None = None
) -> JournalEvidence:
    """Replay a journal whose chain is known to be right. snapshot: the book that stands for the entries up to one at
    or after `base`. Raises InvariantViolation for what the book refuses."""
    book = Book(order_tag) if snapshot is None else Book.restore(snapshot, order_tag)
    found = JournalEvidence(node, book, base)
    for entry in entries:
        found.last_index, found.last_chain, found.terms[entry.index] = entry.index, entry.chain, entry.term
        match decode(entry.kind, entry.body):
            case Intent() as intent:
                found.intents[entry.index] = intent
            case Outcome(index, Result.ACCEPTED):
                found.placed.add(index)
            case Outcome(index, Result.REFUSED | Result.NOT_SENT):
                found.not_placed.add(index)
            case Fill() as fill:
                found.trades.add(fill.trade_id)
                found.placed.add(fill.intent_index)
            case OrderClosed() as closed:
                found.placed.add(closed.intent_index)
        if entry.index > book.applied_index:
            book.apply(entry)
    return found


# -- both ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """What a reader of the show or of a drill sees. Every list names what is wrong, in a sentence each."""

    record: RecordFindings
    lost_fills: list[str] = field(default_factory=list)
    lost_orders: list[str] = field(default_factory=list)
    """Placed by a journal's word and not by the venue's, or the other way round, or not settled."""
    orders_from_nowhere: list[str] = field(default_factory=list)
    logs_differ: list[str] = field(default_factory=list)
    positions_differ: list[str] = field(default_factory=list)
    books_doubt: list[str] = field(default_factory=list)
    """Facts in a journal that cannot both be true."""
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        return [
            *self.record.problems,
            *self.lost_fills,
            *self.lost_orders,
            *self.orders_from_nowhere,
            *self.logs_differ,
            *self.positions_differ,
            *self.books_doubt,
            *([] if self.digests_equal else [f"book digests differ: {self.digests}"]),
        ]

    @property
    def digests_equal(self) -> bool:
        return len(set(self.digests.values())) == 1


def judge(record: RecordFindings, journals: Iterable[JournalEvidence]) -> Verdict:
    """Compare the venue with every journal. Call when trading is at rest: no answer and no fill is on its way."""
    v = Verdict(record)
    first: JournalEvidence | None = None
    for j in journals:
        v.digests[j.node] = j.book.digest().hex()
        _compare_fills(v, record, j)
        _compare_orders(v, record, j)
        _look_for_lost_orders(v, record, j)
        v.books_doubt += [f"{j.node}: entry {m.index}: {m.code}: {m.text}" for m in j.book.mismatches]
        if (ours := j.book.positions()) != record.positions:
            v.positions_differ.append(f"{j.node}: position {ours} lots, by the venue's fills {record.positions}")
        first = first or j
        # Equal chains at the end mean equal logs before it.
        if (j.last_index, j.last_chain) != (first.last_index, first.last_chain):
            v.logs_differ.append(
                f"journals of {first.node} (to {first.last_index}) and {j.node} (to {j.last_index}) differ"
            )
    return v


def _compare_fills(v: Verdict, record: RecordFindings, j: JournalEvidence) -> None:
    missing = [t for t in record.fills if not j.book.has_fill(t)]
    v.lost_fills += [f"{j.node}: fill {t} of the venue is not in the journal" for t in missing]
    unexpected = sorted(t for t in j.trades if t not in record.fills)
    v.lost_fills += [f"{j.node}: fill {t} of the journal is not in the venue's record" for t in unexpected]


def _compare_orders(v: Verdict, record: RecordFindings, j: JournalEvidence) -> None:
    """Every order at the venue is an intent of the journal, to the letter."""
    for coid, line in record.accepted.items():
        parsed = parse_client_order_id(coid)
        if parsed is None or parsed[0] != j.book.cluster_tag:
            v.orders_from_nowhere.append(f"{_at(line)}: order {coid} is not one of ours")
            continue
        _, term, index = parsed
        if index <= j.base:
            if not j.book.decided(str(line["decision_id"])):
                v.orders_from_nowhere.append(f"{j.node}: the book does not know the decision of order {coid}")
            continue
        intent = j.intents.get(index)
        if intent is None or j.terms[index] != term:
            v.orders_from_nowhere.append(f"{j.node}: no intent at {index} of term {term} for order {coid}")
        elif differs := _differs(intent, line):
            v.orders_from_nowhere.append(f"{j.node}: order {coid} at the venue is not its intent: {differs}")
        if (line["token"] or term) < term:
            v.orders_from_nowhere.append(f"{_at(line)}: order {coid} of term {term} sent with token {line['token']}")


def _differs(intent: Intent, line: Line) -> str:
    s = intent.spec
    ours = (intent.decision_id, s.symbol, s.side.value, s.qty_lots, s.price_ticks, s.type.value, s.tif.value)
    theirs = tuple(line.get(k) for k in ("decision_id", "symbol", "side", "qty_lots", "price_ticks", "type", "tif"))
    return "" if ours == theirs else f"{ours} became {theirs}"


def _look_for_lost_orders(v: Verdict, record: RecordFindings, j: JournalEvidence) -> None:
    tag = j.book.cluster_tag
    for index, intent in j.intents.items():
        coid = client_order_id(tag, j.terms[index], index)
        there = coid in record.accepted
        if index in j.placed and not there:
            v.lost_orders.append(f"{j.node}: order {coid} is placed by the journal, and not in the venue's record")
        elif there and index in j.not_placed and index not in j.placed:
            v.lost_orders.append(
                f"{j.node}: order {coid} ({intent.decision_id}) is live, the journal says never placed"
            )
    live = {str(o.client_order_id): o for o in j.book.live_orders()}
    for coid_live, order in live.items():
        if order.unresolved and coid_live in record.accepted:
            v.lost_orders.append(f"{j.node}: nobody has settled order {coid_live}, which the venue has")
        elif order.state is OrderState.OPEN and coid_live not in record.open:
            v.lost_orders.append(f"{j.node}: order {coid_live} is open in the book and closed at the venue")
    for coid_open in record.open:
        if coid_open not in live or live[coid_open].state is OrderState.CLOSED:
            v.lost_orders.append(f"{j.node}: order {coid_open} is open at the venue and not in the book")
