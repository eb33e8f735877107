"""The venue's record, read once: what it accepted, refused, filled and closed, and whether it contradicts itself. Pure.

`venue_seq` is a total order that needs no clock. Two sorts of findings are kept apart: `broken`, where the record is
not what one venue wrote for one account (lines missing, repeated, moved, of somebody else), so that a judge who reads
past it could be told anything; and `wrong`, where it is whole and says what cannot be, as a fill of an order that is
not open.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.check.evidence import Line

STALE = "stale_token"


@dataclass(slots=True)
class VenueRecord:
    """broken, wrong: one sentence per finding; empty is good. Orders are by client order id."""

    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    messages: list[Line] = field(default_factory=list)  # accepted, with a token
    orders: list[Line] = field(default_factory=list)  # accepted new ones, repeats too
    accepted: dict[str, Line] = field(default_factory=dict)  # the first line of each
    open: dict[str, Line] = field(default_factory=dict)  # the same, of those that have not closed
    fills: dict[str, Line] = field(default_factory=dict)  # by trade id
    positions: dict[str, int] = field(default_factory=dict)  # net lots, without zeros
    refused: Counter[str] = field(default_factory=Counter)  # new orders, by reason
    refusals: list[Line] = field(default_factory=list)  # messages of any kind
    stale_refused: int = 0  # of those
    profile: str = ""
    lines: int = 0


def read_record(lines: Iterable[Line]) -> VenueRecord:
    """One pass over a whole record, in its order."""
    reading = _Reading()
    for line in lines:
        reading.take(line)
    return reading.found


def at(line: Line) -> str:
    """Where a reader finds it."""
    return f"venue_seq {line['venue_seq']}, {line['kind']}"


class _Reading:
    """What must be remembered of the lines before, to judge the next."""

    def __init__(self) -> None:
        self.found = VenueRecord()
        self._last_seq = 0
        self._event_seq = 0
        self._account: str | None = None
        self._filled: defaultdict[str, int] = defaultdict(int)  # client order id -> lots

    def take(self, line: Line) -> None:
        found = self.found
        found.lines += 1
        self._check_place(line)
        self._check_account(line)
        kind, outcome = line["kind"], line["outcome"]
        if outcome == "refused":
            found.refusals.append(line)
            found.stale_refused += line["reason"] == STALE
            if kind == "new":
                found.refused[str(line["reason"])] += 1
        elif outcome == "accepted":
            if line["token"]:
                found.messages.append(line)
            if kind == "new":
                coid = str(line["client_order_id"])
                found.orders.append(line)
                found.accepted.setdefault(coid, line)
                found.open[coid] = line
        elif kind == "fill":
            self._fill(line)
        elif kind == "closed":
            self._closed(line)
        elif kind == "started":
            found.profile = str(line.get("profile") or "")

    def _check_place(self, line: Line) -> None:
        seq, expected = line["venue_seq"], self._last_seq + 1
        if seq > expected:
            self.found.broken.append(f"venue_seq {seq} follows {self._last_seq}: lines between them are missing")
        elif seq < expected:
            self.found.broken.append(f"venue_seq {seq} follows {self._last_seq}: a line is repeated or moved")
        self._last_seq = max(seq, self._last_seq)

    def _check_account(self, line: Line) -> None:
        account = line.get("account")
        if account is None:
            return
        self._account = self._account or account
        event = line.get("event_seq")
        if account != self._account:
            self.found.broken.append(f"{at(line)} is of account {account!r}, the others of {self._account!r}")
        elif event is not None:
            if event != self._event_seq + 1:
                self.found.broken.append(f"{at(line)} is event {event} of its account, after event {self._event_seq}")
            self._event_seq = max(event, self._event_seq)

    def _fill(self, line: Line) -> None:
        wrong, trade, coid = self.found.wrong, str(line["trade_id"]), str(line["client_order_id"])
        if trade in self.found.fills:
            wrong.append(f"{at(line)}: trade {trade} stands twice in the record")
        self.found.fills[trade] = line
        order, lots = self.found.open.get(coid), line["qty_lots"]
        if lots <= 0:
            wrong.append(f"{at(line)}: trade {trade} of {lots} lots")
        if order is None:
            wrong.append(f"{at(line)}: order {coid} is not open")
        elif (line["symbol"], line["side"]) != (order["symbol"], order["side"]):
            wrong.append(f"{at(line)}: {line['side']} {line['symbol']} for {coid}, which is another order")
        self._filled[coid] += lots
        if order is not None and self._filled[coid] > order["qty_lots"]:
            wrong.append(f"{at(line)}: {self._filled[coid]} lots of {coid} filled, it was for {order['qty_lots']}")
        symbol = str(line["symbol"])
        net = self.found.positions.pop(symbol, 0) + (lots if line["side"] == "buy" else -lots)
        if net:
            self.found.positions[symbol] = net

    def _closed(self, line: Line) -> None:
        coid = str(line["client_order_id"])
        if self.found.open.pop(coid, None) is None:
            self.found.wrong.append(f"{at(line)}: order {coid} is not open")
        if line["filled_lots"] != self._filled[coid]:
            self.found.wrong.append(
                f"{at(line)}: {coid} with {line['filled_lots']} lots filled, its fills sum to {self._filled[coid]}"
            )
