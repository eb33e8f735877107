"""The market, and the strategy that every node runs: its decisions hang on the feed's sequence alone, so that a new
leader that is told old events again decides the same again, and must be refused (`decision_id`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from node.feeds.base import DepthUpdate, MarketEvent, Quote, Trade
from node.strategy import Cancel, Context, OrderState, Place, Role, Strategy, Wish
from node.types import DecisionId, OrderSpec, OrderType, Side, TimeInForce

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World

SYMBOL = "BTCUSDT"
MID = 100_000
REMEMBERED = 8

Decision = Place | float | None
"""What the strategy wants at an event: an order; to cancel one of those that are open (which: a fraction); nothing."""


class Market:
    """Quotes and trades, to the venue at once and to each node over its feed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine = world.engine
        self.rng = world.engine.workload
        self.open = True
        self.seq = 0
        self._mid = MID
        self.decided: dict[int, Decision] = {}
        self._latest: deque[MarketEvent] = deque(maxlen=REMEMBERED)

    def start(self) -> None:
        self._next()

    def close(self) -> None:
        """Nothing new happens; what is under way arrives."""
        self.open = False

    def _next(self) -> None:
        if not self.open:
            return
        r, now = self.rng, self.engine.now
        self._mid += r.choice((-3, -1, 0, 0, 1, 3)) * 10
        self.seq += 1
        event: MarketEvent
        if r.random() < 0.7:
            event = Quote(SYMBOL, self.seq, self._mid - 5, 60, self._mid + 5, 60, now)
        else:
            event = Trade(SYMBOL, self.seq, self._mid + r.randint(-30, 30), r.randint(1, 40), True, 0, now)
        self.decided[self.seq] = self._decide()
        self._latest.append(event)
        self.world.venue.market(event)
        for host in self.world.hosts:
            host.wires.feed.send(self._tell, host, event)
        self.engine.after(int(self.world.plan.lull * (0.4 + 1.2 * r.random())), self._next)

    def _decide(self) -> Decision:
        r = self.rng
        chance = r.random()
        if chance >= 0.7:
            return r.random() if chance < 0.95 else None
        side, lots, mid = r.choice((Side.BUY, Side.SELL)), r.randint(1, 40), self._mid
        away = side.sign * r.choice((-40, -20, -8, 0, 6, 20))
        match r.randrange(4):
            case 0:
                spec = OrderSpec(SYMBOL, side, lots, type=OrderType.MARKET)
            case 1:
                spec = OrderSpec(SYMBOL, side, lots, mid + away, tif=TimeInForce.IOC)
            case 2:
                spec = OrderSpec(SYMBOL, side, lots, mid + away)
            case _:
                spec = OrderSpec(SYMBOL, side, lots, mid - side.sign * 20, post_only=True)
        return Place(spec, DecisionId(f"d{self.seq}"))

    def _tell(self, host: Host, event: MarketEvent) -> None:
        worker = host.worker
        if worker is not None:
            worker.process.deliver("feed", worker.market, event)

    def tell_again(self, host: Host) -> None:
        """As a feed that resumes too early."""
        for event in self._latest:
            host.wires.feed.send(self._tell, host, event)


class SimStrategy(Strategy):
    """Every node runs it, and all decide the same at the same event."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """decided: by the event's sequence."""
        self._decided: Mapping[int, Decision] = config["decided"]

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish]:
        decision = None if isinstance(event, DepthUpdate) else self._decided[event.seq]
        if isinstance(decision, Place):
            return [decision]
        if decision is None:
            return []
        orders = [o for o in ctx.open_orders(SYMBOL) if o.state is not OrderState.CLOSED]
        return [Cancel(orders[int(decision * len(orders))].client_order_id, "why not")] if orders else []

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish]:
        """A new leader has something to say at once."""
        return [Place(OrderSpec(SYMBOL, Side.BUY, 1, MID - 50), reason="active")] if role is Role.ACTIVE else []
