"""The venue's judgement: fences, matching against the live market, accounts. Pure.

Commands and market events go in with the moment they arrived; lines of the record come out. Each line is made
and applied in one step (`_emit`), and `apply` alone changes what must survive a restart. So replaying a record
gives back exactly the state that wrote it, and what a line says cannot differ from what the venue did.

Invariants, checked in `apply` and raised as InvariantViolation:
    venue_seq and, per account, event_seq rise by one;   filled_lots <= qty_lots;   no fill after the close;
    position == sum of fills;                            token_high never falls.

Matching, deliberately simple and on the safe side of generous:
- An incoming order takes what is displayed at the touch. What it took is not offered again until the display of
  that side changes (price or size): two of our orders never fill on the same displayed lots.
- A resting buy at p fills at p when the ask comes to p or lower (up to what is displayed), when a trade prints at
  p (up to the traded quantity), and wholly when one prints below p: nothing trades below a bid that still stands.
  Sells are the mirror image. Better prices first, then older orders, across accounts. Accounts never trade with
  each other.
Not modelled: queue position, fees, market impact beyond the touch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.core.errors import InvariantViolation
from cluster.core.ids import NS_PER_S
from node.feeds.base import MarketEvent, Quote, Trade
from node.types import Instrument, OrderStatus, Side, VenueOrder
from node.venues.base import DeadmanScope, IdUniqueness

from .lines import ACCEPTED, REFUSED, Line
from .profile import Profile
from .state import (
    Account,
    Ask,
    Deadman,
    Market,
    Moment,
    Order,
    Sender,
    by_priority,
    limit_of,
    reaches,
    rests,
    spec_of,
)

_CLIENT_ORDER_ID = re.compile(r"[A-Za-z0-9_.:-]{1,36}\Z")
_DECISION_ID_CHARS_MAX = 200
_TTL_MS_MAX = 3_600_000


@dataclass(frozen=True, slots=True)
class Limits:
    """stale_after_ns: a market that was silent for longer takes no orders."""

    open_orders_max: int = 200
    qty_lots_max: int = 10**12
    price_ticks_max: int = 10**12
    stale_after_ns: int = 5 * NS_PER_S


class _No(NamedTuple):
    code: str
    detail: str


_OTHER = {Side.BUY: Side.SELL, Side.SELL: Side.BUY}


class Engine:
    def __init__(self, profile: Profile, instruments: Iterable[Instrument], limits: Limits | None = None) -> None:
        self.profile = profile
        self.instruments = {i.symbol: i for i in instruments}
        self._limits = limits or Limits()
        self._seq = 0
        self._accounts: dict[str, Account] = {}
        self._markets = {symbol: Market() for symbol in self.instruments}

    # -- messages: each returns the lines it caused, the message's own line first -----------------------------

    def place(self, sender: Sender, token: int, ask: Ask, at: Moment) -> list[Line]:
        """Accept and match, or refuse. The token is judged first: it is what a drill wants to see refused."""
        account = self._account(sender.account)
        no = (
            self._stale(account, sender, token)
            or self._expired(ask, at)
            or self._invalid(account, ask)
            or self._unmarketable(account, ask, at)
        )
        out: list[Line] = []
        self._emit(
            out,
            at,
            "new",
            **_message(sender, token, no),
            client_order_id=ask.client_order_id,
            decision_id=ask.decision_id,
            symbol=ask.symbol,
            side=ask.side and ask.side.value,
            qty_lots=ask.qty_lots,
            price_ticks=ask.price_ticks,
            type=ask.type and ask.type.value,
            tif=ask.tif and ask.tif.value,
            post_only=ask.post_only,
            expires_at_ns=ask.expires_at_ns or None,
            venue_order_id=None if no else f"v{self._seq + 1}",
            event_seq=None if no else account.event_seq + 1,
        )
        if no is None:
            self._match_incoming(out, account.orders[ask.client_order_id], at)
        return out

    def cancel(self, sender: Sender, token: int, client_order_id: str, at: Moment) -> list[Line]:
        """Accepted also when the order has closed already: what was asked for holds."""
        account = self._account(sender.account)
        no = self._stale(account, sender, token)
        if no is None and client_order_id not in account.used_ids:
            no = _No("unknown_order", f"account {sender.account} never had an order {client_order_id!r}")
        order = account.orders.get(client_order_id) if no is None else None
        out: list[Line] = []
        self._emit(
            out,
            at,
            "cancel",
            **_message(sender, token, no),
            client_order_id=client_order_id,
            symbol=order and order.spec.symbol,
            venue_order_id=order and order.venue_order_id,
        )
        if order is not None:
            self._close(out, order, OrderStatus.CANCELLED, "cancel", at)
        return out

    def cancel_all(self, sender: Sender, token: int, at: Moment) -> list[Line]:
        """The lines after the first are the orders that it closed."""
        account = self._account(sender.account)
        no = self._stale(account, sender, token)
        out: list[Line] = []
        self._emit(out, at, "cancel_all", **_message(sender, token, no))
        if no is None:
            for order in list(account.orders.values()):
                self._close(out, order, OrderStatus.CANCELLED, "cancel_all", at)
        return out

    def arm(self, sender: Sender, token: int, at: Moment) -> list[Line]:
        """Raise the account's high-water to `token`. Without token checks: an accepted line that changes nothing."""
        no = self._stale(self._account(sender.account), sender, token)
        out: list[Line] = []
        self._emit(out, at, "arm", **_message(sender, token, no))
        return out

    def keep_alive(self, sender: Sender, token: int, ttl_ms: int, at: Moment) -> list[Line]:
        """(Re-)arm the dead-man's switch. No line for a mere refresh (see lines.py), which is always accepted."""
        account = self._account(sender.account)
        no = self._stale(account, sender, token)
        if no is None and not self.profile.deadman:
            no = _No("unsupported", "this venue has no dead-man's switch")
        if no is None and not 1 <= ttl_ms <= _TTL_MS_MAX:
            no = _No("invalid_request", f"keep-alive ttl of {ttl_ms} ms is not within 1 to {_TTL_MS_MAX}")
        armed = account.deadman
        out: list[Line] = []
        if no is not None or armed is None or (armed.token, armed.ttl_ms) != (token, ttl_ms):
            self._emit(out, at, "keep_alive", **_message(sender, token, no), ttl_ms=ttl_ms)
        if no is None and account.deadman is not None:
            account.deadman.fires_at = at.instant + ttl_ms * 1_000_000
        return out

    def malformed(self, sender: Sender, token: int, why: str, at: Moment) -> list[Line]:
        """A request that asks for nothing this venue knows."""
        out: list[Line] = []
        self._emit(out, at, "malformed", **_message(sender, token, _No("invalid_request", why)))
        return out

    def started(self, sizes: dict[str, list[str]], at: Moment) -> Line:
        """Say in the record under which rules the lines that follow were made. sizes: [tick_size, lot_size]."""
        out: list[Line] = []
        self._emit(out, at, "started", profile=str(self.profile), instruments=sizes)
        return out[0]

    # -- the world ------------------------------------------------------------------------------------------

    def market(self, event: MarketEvent, at: Moment) -> list[Line]:
        """Fill what the event fills. Events of symbols that are not traded here are ignored."""
        market = self._markets.get(event.symbol)
        if market is None:
            return []
        market.seen_at = at.instant
        out: list[Line] = []
        if isinstance(event, Quote):
            market.quoted = True
            market.touch[Side.BUY].show(event.bid_ticks, event.bid_lots)
            market.touch[Side.SELL].show(event.ask_ticks, event.ask_lots)
            self._match_quote(out, market, at)
        elif isinstance(event, Trade):
            self._match_trade(out, market, event, at)
        return out

    def tick(self, at: Moment) -> list[Line]:
        """Fire the dead-man's switches whose time has come."""
        out: list[Line] = []
        for name, account in self._accounts.items():
            switch = account.deadman
            if switch is None or at.instant < switch.fires_at:
                continue
            # Scoped to the term: a switch that an old leader armed must not close what its successor placed.
            term_only = self.profile.deadman_scope is DeadmanScope.TERM
            doomed = [o for o in account.orders.values() if not term_only or o.token <= switch.token]
            self._emit(out, at, "deadman", account=name, token=switch.token, ttl_ms=switch.ttl_ms)
            for order in doomed:
                self._close(out, order, OrderStatus.EXPIRED, "deadman", at)
        return out

    # -- questions ------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """venue_seq of the last line."""
        return self._seq

    @property
    def accounts(self) -> Set[str]:
        return self._accounts.keys()

    def closed_at(self, account: str, client_order_id: str) -> int | None:
        """event_seq of the close of the latest order with this id; 0: it is open; None: there never was one."""
        found = self._accounts.get(account)
        return found.used_ids.get(client_order_id) if found else None

    def event_seq(self, account: str) -> int:
        """Of the account's last event; 0 if there was none."""
        found = self._accounts.get(account)
        return found.event_seq if found else 0

    def high_water(self, account: str) -> int:
        """Highest token seen of the account; 0 if none, or if this venue does not check tokens."""
        found = self._accounts.get(account)
        return found.token_high if found else 0

    def open_orders(self, account: str) -> list[VenueOrder]:
        found = self._accounts.get(account)
        return [o.view() for o in found.orders.values()] if found else []

    def open_order(self, account: str, client_order_id: str) -> VenueOrder | None:
        """None also for one that has closed: those are in the record only."""
        found = self._accounts.get(account)
        order = found.orders.get(client_order_id) if found else None
        return order.view() if order else None

    def positions(self, account: str) -> dict[str, tuple[int, int]]:
        """(net lots, cash in ticks * lots) of every symbol the account ever traded."""
        found = self._accounts.get(account)
        return {s: (lots, found.cash[s]) for s, lots in found.net_lots.items()} if found else {}

    # -- refusals, in the order in which they are judged -------------------------------------------------------

    def _stale(self, account: Account, sender: Sender, token: int) -> _No | None:
        if not self.profile.token:
            return None
        if token <= 0:
            return _No("token_required", f"token {token}: this venue wants the sender's fencing token, above 0")
        if token < account.token_high:
            return _No(
                "stale_token",
                f"token {token} is lower than {account.token_high}, the highest seen of account {sender.account}",
            )
        return None

    def _expired(self, ask: Ask, at: Moment) -> _No | None:
        if not self.profile.expiry or ask.expires_at_ns == 0 or at.unix_ns < ask.expires_at_ns:
            return None
        late_ms = (at.unix_ns - ask.expires_at_ns) / 1e6
        return _No("expired", f"arrived {late_ms:.3f} ms after its expiry at {ask.expires_at_ns}")

    def _invalid(self, account: Account, ask: Ask) -> _No | None:
        coid, no = ask.client_order_id, "invalid_order"
        if not _CLIENT_ORDER_ID.match(coid):
            return _No(no, f"client order id {coid!r} is not 1 to 36 of A-Z a-z 0-9 _ . : -")
        taken = account.used_ids if self.profile.id_uniqueness is IdUniqueness.FOREVER else account.orders
        if coid in taken:
            return _No("duplicate_client_order_id", f"client order id {coid!r} was used before")
        if len(ask.decision_id) > _DECISION_ID_CHARS_MAX:
            return _No(no, f"decision id of {len(ask.decision_id)} characters; at most {_DECISION_ID_CHARS_MAX}")
        if ask.symbol not in self.instruments:
            return _No(no, f"symbol {ask.symbol!r} is not traded here; {', '.join(self.instruments)} are")
        if ask.side is None or ask.type is None or ask.tif is None:
            return _No(no, f"side {ask.side}, type {ask.type}, time in force {ask.tif}: all three are needed")
        if not 0 < ask.qty_lots <= self._limits.qty_lots_max:
            return _No(no, f"quantity {ask.qty_lots} lots is not within 1 to {self._limits.qty_lots_max}")
        if ask.price_ticks is not None and not 0 < ask.price_ticks <= self._limits.price_ticks_max:
            return _No(no, f"price {ask.price_ticks} ticks is not within 1 to {self._limits.price_ticks_max}")
        try:
            spec_of(ask)
        except ValueError as wrong:
            return _No(no, str(wrong))
        return None

    def _unmarketable(self, account: Account, ask: Ask, at: Moment) -> _No | None:
        """For an order that is right in itself: may it go to the market now?"""
        market, spec = self._markets[ask.symbol], spec_of(ask)
        if not market.quoted:
            return _No("no_market", f"no market data of {ask.symbol} yet")
        silent_ns = at.instant - market.seen_at
        if silent_ns > self._limits.stale_after_ns:
            return _No("no_market", f"no market data of {ask.symbol} for {silent_ns / NS_PER_S:.1f} s")
        if rests(spec) and len(account.orders) >= self._limits.open_orders_max:
            return _No("too_many_open_orders", f"{len(account.orders)} orders are open, no more are allowed")
        against = market.touch[_OTHER[spec.side]]
        if spec.post_only and against.shown > 0 and reaches(spec, against.ticks):
            return _No(
                "post_only_would_take",
                f"{spec.side.value} at {spec.price_ticks} ticks would take from {against.ticks}",
            )
        return None

    # -- matching -------------------------------------------------------------------------------------------

    def _match_incoming(self, out: list[Line], order: Order, at: Moment) -> None:
        spec = order.spec
        against = self._markets[spec.symbol].touch[_OTHER[spec.side]]
        if against.left > 0 and reaches(spec, against.ticks):
            lots = min(order.left, against.left)
            against.left -= lots
            self._fill(out, order, lots, against.ticks, at)
        if order.left > 0 and not rests(spec):
            self._close(out, order, OrderStatus.EXPIRED, "no_liquidity", at)

    def _match_quote(self, out: list[Line], market: Market, at: Moment) -> None:
        for side in (Side.BUY, Side.SELL):
            against = market.touch[_OTHER[side]]
            for order in by_priority(market, side):
                if against.left <= 0 or not reaches(order.spec, against.ticks):
                    break  # the best of those that are left does not reach: none does
                lots = min(order.left, against.left)
                against.left -= lots
                self._fill(out, order, lots, limit_of(order.spec), at)

    def _match_trade(self, out: list[Line], market: Market, trade: Trade, at: Moment) -> None:
        pool = trade.qty_lots  # shared by everybody who stands at the very price of the trade
        for side in (Side.BUY, Side.SELL):
            for order in by_priority(market, side):
                price = limit_of(order.spec)
                if not reaches(order.spec, trade.price_ticks):
                    break
                lots = order.left if price != trade.price_ticks else min(order.left, pool)
                if lots <= 0:
                    break
                if price == trade.price_ticks:
                    pool -= lots
                self._fill(out, order, lots, price, at)

    def _fill(self, out: list[Line], order: Order, lots: int, ticks: int, at: Moment) -> None:
        self._emit(
            out,
            at,
            "fill",
            **self._about(order),
            qty_lots=lots,
            price_ticks=ticks,
            trade_id=f"t{self._seq + 1}",
            filled_lots=order.filled_lots + lots,
        )
        if order.left == 0:
            self._close(out, order, OrderStatus.FILLED, "filled", at)

    def _close(self, out: list[Line], order: Order, status: OrderStatus, reason: str, at: Moment) -> None:
        spec = order.spec
        self._emit(
            out,
            at,
            "closed",
            **self._about(order),
            reason=reason,
            qty_lots=spec.qty_lots,
            price_ticks=spec.price_ticks,
            type=spec.type.value,
            tif=spec.tif.value,
            post_only=spec.post_only,
            status=status.value,
            filled_lots=order.filled_lots,
        )

    def _about(self, order: Order) -> dict[str, Any]:
        return {
            "account": order.sender.account,
            "session": order.sender.session,
            "node": order.sender.node,
            "token": order.token,
            "client_order_id": order.client_order_id,
            "decision_id": order.decision_id,
            "symbol": order.spec.symbol,
            "side": order.spec.side.value,
            "venue_order_id": order.venue_order_id,
            "event_seq": self._accounts[order.sender.account].event_seq + 1,
        }

    # -- what survives: the only code that changes it ----------------------------------------------------------

    def _emit(self, out: list[Line], at: Moment, kind: Any, **fields: Any) -> None:
        line = Line(self._seq + 1, at.unix_ns, kind, **fields)
        self.apply(line)
        out.append(line)

    def apply(self, line: Line) -> None:
        """Make the line true. Called for each line as it is made, and for each line of the record at a restart."""
        if line.venue_seq != self._seq + 1:
            raise InvariantViolation(f"record line {line.venue_seq} follows line {self._seq}")
        self._seq = line.venue_seq
        if line.account is None:
            return
        account = self._account(line.account)
        if line.event_seq is not None:
            if line.event_seq != account.event_seq + 1:
                raise InvariantViolation(
                    f"record line {line.venue_seq}: event {line.event_seq} follows {account.event_seq}"
                )
            account.event_seq = line.event_seq
        if self.profile.token and line.outcome is not None and (line.token or 0) > account.token_high:
            account.token_high = line.token or 0  # seen is seen, whatever else was wrong with the message
        if line.outcome == REFUSED:
            return
        if line.kind == "new":
            self._apply_new(account, line)
        elif line.kind == "fill":
            self._apply_fill(account, line)
        elif line.kind == "closed":
            order = self._open(account, line)
            del account.orders[order.client_order_id]
            account.used_ids[order.client_order_id] = account.event_seq
            del self._markets[order.spec.symbol].resting[order.spec.side][order.born]
        elif line.kind == "keep_alive":
            account.deadman = Deadman(line.token or 0, line.ttl_ms or 0, fires_at=0)
        elif line.kind == "deadman":
            account.deadman = None

    def restored(self, at: Moment) -> None:
        """After the last `apply` of a restart. A switch gets its whole ttl again: while the venue was down its
        clock ran for nobody, and cancelling everything before the nodes are back would punish them for it."""
        for account in self._accounts.values():
            if account.deadman is not None:
                account.deadman.fires_at = at.instant + account.deadman.ttl_ms * 1_000_000

    def _apply_new(self, account: Account, line: Line) -> None:
        coid = line.client_order_id or ""
        if coid in account.orders:
            raise InvariantViolation(f"record line {line.venue_seq}: order {coid} is open already")
        sender = Sender(line.account or "", line.node or "", line.session or "")
        spec = line.spec()
        order = Order(line.venue_seq, sender, line.token or 0, coid, line.decision_id or "", spec)
        account.orders[coid] = order
        account.used_ids[coid] = 0
        # Also a market order stands here for the few lines until it closes; no market event comes between.
        self._markets[spec.symbol].resting[spec.side][order.born] = order

    def _apply_fill(self, account: Account, line: Line) -> None:
        order, lots, ticks = self._open(account, line), line.qty_lots or 0, line.price_ticks or 0
        if not 0 < lots <= order.left:
            raise InvariantViolation(f"record line {line.venue_seq}: fill of {lots} lots, {order.left} are left")
        order.filled_lots += lots
        symbol, sign = order.spec.symbol, order.spec.side.sign
        account.net_lots[symbol] = account.net_lots.get(symbol, 0) + sign * lots
        account.cash[symbol] = account.cash.get(symbol, 0) - sign * lots * ticks

    def _open(self, account: Account, line: Line) -> Order:
        order = account.orders.get(line.client_order_id or "")
        if order is None:
            raise InvariantViolation(f"record line {line.venue_seq}: order {line.client_order_id} is not open")
        return order

    def _account(self, name: str) -> Account:
        found = self._accounts.get(name)
        if found is None:
            found = self._accounts[name] = Account()
        return found


def _message(sender: Sender, token: int, no: _No | None) -> dict[str, Any]:
    said: dict[str, Any] = {**sender._asdict(), "token": token, "outcome": ACCEPTED if no is None else REFUSED}
    if no is not None:
        said |= {"reason": no.code, "detail": no.detail}
    return said
