"""S5 to S7: what the venue did stands on every node, and what was committed survives. Pure.

Each node's log and the book that it makes are compared with the venue's record. Only at rest may "not there" be held
against a node: while trading goes on, an answer or a fill may be under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from operator import itemgetter

from chaos.check.evidence import CommitLine, JournalEvidence, Line
from chaos.check.history import History, Log
from chaos.check.record import at
from chaos.check.verdict import Found
from node.codec import Fill, TermStarted
from node.strategy import OrderState
from node.types import client_order_id

NOT_AT_REST = "trading was not at rest: what is missing may be under way"


def fills_conserved(h: History) -> Found:
    """S5. The venue's fills and those of each final journal are one multiset. lost: at the venue only (held against a
    node at rest). unexpected: in a journal only. differs: not the same trade. duplicated: counted twice by a book; a
    journal may repeat a trade, and its book must not. recovered, counted: written down by a later term than the
    order's own. And the record's own fills must be of open orders, and sum up."""
    found = list(h.record.wrong)
    counts = {"lost": 0, "unexpected": 0, "duplicated": 0, "recovered": 0}
    fills = h.record.fills
    for j in h.journals:
        log = h.log(j)
        lost = [t for t in fills if t not in log.trades and not (j.base and j.book.has_fill(t))] if h.at_rest else []
        unexpected = [t for t in log.trades if t not in fills]
        found += [f"{j.node}: fill {t} of the venue is not in the journal" for t in lost]
        found += [f"{j.node}: fill {t} of the journal is not in the venue's record" for t in unexpected]
        found += [
            f"{j.node}: fill {t}: {d}" for t, fill in log.trades.items() if (d := _fill_differs(fill, fills.get(t)))
        ]
        counted = j.book.counts.fills - len(fills) + len(lost) - len(unexpected)
        if h.at_rest and counted > 0:
            found.append(f"{j.node}: its book counted {counted} fills more than there are")
            counts["duplicated"] += counted
        elif h.at_rest and counted < 0:
            found.append(f"{j.node}: its book counted {-counted} fills less than its journal has")
        counts["lost"] += len(lost)
        counts["unexpected"] += len(unexpected)
    counts["recovered"] = max((log.recovered for _, log in h.distinct()), default=0)
    return Found(found, {"fills": len(fills), "judgements at rest": int(h.at_rest)}, counts)


def _fill_differs(ours: Fill, theirs: Line | None) -> str:
    if theirs is None:
        return ""
    mine = (ours.client_order_id, ours.symbol, ours.side.value, ours.qty_lots, ours.price_ticks)
    other = _TRADE_OF(theirs)
    return "" if mine == other else f"{other} of the venue became {mine}"


_TRADE_OF = itemgetter("client_order_id", "symbol", "side", "qty_lots", "price_ticks")


# -- S6 ----------------------------------------------------------------------------------------------------------------


def positions_agree(h: History) -> Found:
    """S6. On each final node, at rest: net position per instrument == sum of the venue's fills; the orders that its
    book holds for open == those open at the venue; none that its journal believes placed is missing there, or the other
    way round; no two facts contradict each other; and all books are the same, by digest."""
    if not h.at_rest:
        return Found((), {}, {}, NOT_AT_REST)
    found: list[str] = []
    digests: dict[str, str] = {}
    for j in h.journals:
        found += _book_against_venue(h, j)
        digests[j.node] = j.book.digest().hex()
    for nodes, log in h.distinct():
        found += _placed_against_venue(h, nodes, log)
    if len(set(digests.values())) > 1:
        found.append(f"book digests differ: {digests}")
    return Found(found, {"orders accepted": len(h.record.accepted), "books": len(digests)})


def _book_against_venue(h: History, j: JournalEvidence) -> Iterator[str]:
    ours, theirs = j.book.positions(), h.record.positions
    if ours != theirs:
        yield f"{j.node}: position {ours} lots, by the venue's fills {theirs}"
    for m in j.book.mismatches:
        yield f"{j.node}: entry {m.index}: {m.code}: {m.text}"
    live = {str(o.client_order_id): o for o in j.book.live_orders()}
    for coid, order in live.items():
        if order.unresolved and coid in h.record.accepted:
            yield f"{j.node}: nobody has settled order {coid}, which the venue has"
        elif order.state is OrderState.OPEN and coid not in h.record.open:
            yield f"{j.node}: order {coid} is open in the book and closed at the venue"
    for coid in h.record.open:
        if coid not in live or live[coid].state is OrderState.CLOSED:
            yield f"{j.node}: order {coid} is open at the venue and not in the book"


def _placed_against_venue(h: History, nodes: str, log: Log) -> Iterator[str]:
    tag = h.journals[0].book.cluster_tag
    there = {parsed[1:] for parsed in h.orders.values() if parsed is not None and parsed[0] == tag}
    for index, term in log.terms.items():
        if index in log.placed and (term, index) not in there:
            coid = client_order_id(tag, term, index)
            yield f"{nodes}: order {coid} is placed by the journal, and not in the venue's record"
        elif index in log.not_placed and (term, index) in there and index not in log.placed:
            coid, decision = client_order_id(tag, term, index), log.intents[index].decision_id
            yield f"{nodes}: order {coid} ({decision}) is live, the journal says never placed"


# -- S7 ----------------------------------------------------------------------------------------------------------------


def acknowledged_survives(h: History) -> Found:
    """S7. What a leader announced as committed stands, by index and chain, in the journal of every later leader (as
    long as it was when it took over, `led`) and of every final node; a follower's acknowledgement binds nobody before
    it was counted, which is what the announcement says. Every order accepted at the venue has its intent in every
    final journal, or the loss is told: RPO in records, orders and notional. At rest the final journals are equal.

    What lies beyond the end of a journal is held against it at rest only; what is pruned is not looked for."""
    found: list[str] = []
    committed: dict[int, CommitLine] = {}
    for line in h.evidence.commits or ():
        if line.what == "committed":
            first = committed.setdefault(line.index, line)
            if first.chain != line.chain:
                found.append(f"entry {line.index} was committed as two: by {first.node} and by {line.node}")
    found += _short_leaders(h)
    records_lost = orders_lost = 0
    for nodes, log in h.distinct():
        gone = [c for i, c in committed.items() if log.chains.get(i) != c.chain and _is_lost(h, log, i)]
        records_lost = max(records_lost, len(gone))
        found += [f"{nodes}: entry {c.index}, committed by {c.node} in term {c.term}, is not there" for c in gone]
        missing = list(_orders_without_intent(h, log))
        orders_lost = max(orders_lost, len(missing))
        found += [f"{nodes}: {told}" for _, told in missing]
        if gone or missing:
            notional = sum((_notional(line) for line, _ in missing), Decimal(0))
            found.append(f"{nodes}: RPO {len(gone)} records, {len(missing)} orders, notional {notional:f}")
    if h.at_rest:
        found += _unequal(h)
    covers = {"orders looked for": len(h.record.accepted), "changes of leader": _changes_of_leader(h)}
    if h.evidence.commits is not None:
        covers["commits looked for"] = len(committed)
    return Found(found, covers, {"RPO records": records_lost, "RPO orders": orders_lost})


def _is_lost(h: History, log: Log, index: int) -> bool:
    """What is not there, or another entry. Below the base nobody can tell, nor beyond the end while trading goes on."""
    return index in log.chains or (index > log.last_index and h.at_rest)


def _short_leaders(h: History) -> Iterator[str]:
    """Leaders that took over with less than their predecessors had committed."""
    ends: dict[int, CommitLine] = {}  # term -> its last commit
    leaders: dict[int, CommitLine] = {}
    for line in h.evidence.commits or ():
        if line.what == "committed" and (line.term not in ends or ends[line.term].index < line.index):
            ends[line.term] = line
        elif line.what == "led":
            leaders[line.term] = line
    last: CommitLine | None = None
    for term in sorted(ends.keys() | leaders.keys()):
        led = leaders.get(term)
        if led is not None and last is not None:
            if led.index < last.index:
                lost = f"entry {last.index} of term {last.term}"
                yield f"{led.node} led term {term} from entry {led.index} on; {lost} was committed"
            elif led.index == last.index and led.chain != last.chain:
                yield f"{led.node} led term {term} with another entry {led.index} than term {last.term} committed"
        end = ends.get(term)
        if end is not None and (last is None or end.index > last.index):
            last = end


def _orders_without_intent(h: History, log: Log) -> Iterator[tuple[Line, str]]:
    for coid, line in h.record.accepted.items():
        parsed = h.orders[coid]
        if parsed is None:
            continue  # S1 judges it
        _, term, index = parsed
        if index <= log.base or log.has_intent(term, index) or (index > log.last_index and not h.at_rest):
            continue
        yield line, f"no intent at entry {index} of term {term} for order {coid} ({at(line)})"


def _notional(line: Line) -> Decimal:
    """Market orders have no price of their own, and count nothing."""
    qty, price = line.get("qty"), line.get("price")
    return Decimal(qty) * Decimal(price) if qty and price else Decimal(0)


def _unequal(h: History) -> Iterator[str]:
    """Equal chains at the end mean equal logs before it."""
    first: JournalEvidence | None = None
    for j in h.journals:
        first = first or j
        if (j.last_index, j.last_chain) != (first.last_index, first.last_chain):
            yield f"journals of {first.node} (to {first.last_index}) and {j.node} (to {j.last_index}) differ"


def _changes_of_leader(h: History) -> int:
    for _, log in h.distinct():
        return max(0, sum(type(fact) is TermStarted for _, fact in log.facts) - 1)
    return 0
