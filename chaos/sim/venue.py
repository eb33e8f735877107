"""The venue: the paper exchange's own engine, a memory for closed orders, and a private stream that may repeat itself.

It tells the truth about money, as every venue is trusted to. What it may do: refuse everything for a while (a rate
limit), repeat and reorder what it tells on the stream, and take an order that was held back on its way right after
somebody looked for it and found nothing. Answers that are lost or late are the links' business.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos.sim.engine import MS, Engine
from chaos.sim.story import of_venue
from node.feeds.base import MarketEvent
from node.paper_venue.engine import Engine as Exchange
from node.paper_venue.lines import Line
from node.paper_venue.profile import Profile
from node.paper_venue.state import Ask, Moment, Sender
from node.types import Accepted, Instrument, Refused, SubmitResult, VenueFill, VenueOrder, WireOrder
from node.venues.base import Absent, Found, LookupResult

UNIX = 1_700_000_000_000_000_000
"""What the venue's clock shows at true time 0."""
ACCOUNT = "main"
POUNCE_WITHIN = 120 * MS


class VenueSpec:
    """on_event: called with each line of the private stream as it is made."""

    def __init__(
        self,
        engine: Engine,
        profile: Profile,
        instruments: tuple[Instrument, ...],
        on_event: Callable[[Line], None],
        *,
        exchange: type[Exchange] = Exchange,
    ) -> None:
        self.engine, self.profile, self.instruments = engine, profile, instruments
        self.exchange = exchange(profile, instruments)
        self.lines: list[Line] = []
        self.events: list[Line] = []  # of the private stream; event_seq n is at n - 1
        self.queries: list[tuple[int, str, str, bool]] = []  # lookups: (at, node, client order id, was it there)
        self.refuses_until = 0
        self.lurking: dict[str, tuple[int, Callable[[], None]]] = {}  # id -> (its expiry in true time, arrive)
        self._closed: dict[str, Line] = {}
        self._on_event = on_event

    def unix(self) -> int:
        return UNIX + self.engine.now

    # -- messages -------------------------------------------------------------------------------------------------

    def place(self, sender: Sender, order: WireOrder) -> SubmitResult:
        if self._too_many():
            return Refused("rate_limited", "too many requests")
        s = order.spec
        ask = Ask(
            order.client_order_id, order.decision_id, s.symbol, s.side, s.type, s.tif, s.post_only, s.qty_lots,
            s.price_ticks, order.expires_at_ns or 0,
        )  # fmt: skip
        return _result(self._do(lambda at: self.exchange.place(sender, order.token, ask, at)))

    def cancel(self, sender: Sender, token: int, coid: str) -> SubmitResult:
        if self._too_many():
            return Refused("rate_limited", "too many requests")
        return _result(self._do(lambda at: self.exchange.cancel(sender, token, coid, at)))

    def arm(self, sender: Sender, token: int) -> int:
        """The high-water after it, which is ours unless a higher one was seen."""
        line = self._do(lambda at: self.exchange.arm(sender, token, at))[0]
        return token if line.accepted else max(token + 1, self.exchange.high_water(sender.account))

    def keep_alive(self, sender: Sender, token: int, ttl_ms: int) -> bool:
        """False: stale."""
        lines = self._do(lambda at: self.exchange.keep_alive(sender, token, ttl_ms, at))
        return not lines or lines[0].accepted or lines[0].reason != "stale_token"

    def market(self, event: MarketEvent) -> None:
        self._do(lambda at: self.exchange.market(event, at))

    def tick(self) -> bool:
        """Whether a dead-man's switch has fired."""
        return bool(self._do(self.exchange.tick))

    def _too_many(self) -> bool:
        return self.engine.now < self.refuses_until

    def _do(self, decide: Callable[[Moment], list[Line]]) -> list[Line]:
        now = self.engine.now
        lines = decide(Moment(now, UNIX + now))
        for line in lines:
            self.lines.append(line)
            if line.kind == "closed":
                self._closed[line.client_order_id or ""] = line
            if self.engine.story is not None:
                self.engine.story.append(of_venue(line, now))
        for line in lines:
            if line.event_seq:
                self.events.append(line)
                self._on_event(line)
        return lines

    # -- questions -------------------------------------------------------------------------------------------------

    def look_up(self, node: str, coid: str) -> LookupResult:
        order = self.exchange.open_order(ACCOUNT, coid)
        if order is None and coid in self._closed:
            order = self._closed[coid].order()
        self.queries.append((self.engine.now, node, coid, order is not None))
        if order is not None:
            return Found(order)
        self._pounce(coid)
        return Absent()

    def _pounce(self, coid: str) -> None:
        """Somebody looked and it was not there. Does the order that is held back come now, or after a later look? Its
        last chance is before it expires."""
        expires, arrive = self.lurking.get(coid, (0, None))
        if arrive is None:
            return
        last = expires - self.engine.now < POUNCE_WITHIN
        if last or self.engine.network.random() < 0.4:
            del self.lurking[coid]
            self.engine.after(MS // 10, arrive)

    def let_go(self, coid: str) -> None:
        """If it is held back still, it arrives now."""
        _, arrive = self.lurking.pop(coid, (0, None))
        if arrive is not None:
            arrive()

    def release(self) -> None:
        for coid in list(self.lurking):
            self.let_go(coid)

    def open_orders(self) -> list[VenueOrder]:
        return self.exchange.open_orders(ACCOUNT)

    def fills_after(self, event_seq: int) -> list[VenueFill]:
        return [line.fill() for line in self.events[event_seq:] if line.kind == "fill"]

    def positions(self) -> dict[str, int]:
        return {symbol: lots for symbol, (lots, _) in self.exchange.positions(ACCOUNT).items()}


def _result(lines: list[Line]) -> SubmitResult:
    first = lines[0]
    if first.accepted:
        return Accepted(first.venue_order_id or "")
    return Refused(first.reason or "", first.detail or "")
