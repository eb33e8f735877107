"""A market that never was: a seeded random walk, on the same wire as a recorded one.

For machines without a capture. Trades, top of book and depth of one symbol at about 100 messages a second, in bursts as
real ones come, for ever. The same seed gives the same market; a restarted server takes up higher ids (`first_id`).
It looks like a market to software, not to a trader: no strategy should be judged on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from cluster.core.errors import ConfigError
from node.types import Instrument

_MS = 1_000_000
_DEPTH_EVERY_NS = 100 * _MS


@dataclass(frozen=True, slots=True)
class SyntheticConfig:
    """messages_per_s: on average, depth included. start_price: the walk is drawn back to it, so that it stays near
    for ever. volatility_ticks: standard deviation of one move; about one quote in ten moves."""

    symbol: str = "BTCUSDT"
    tick_size: Decimal = Decimal("0.01")
    lot_size: Decimal = Decimal("0.00001")
    start_price: Decimal = Decimal("60000")
    messages_per_s: float = 100.0
    volatility_ticks: int = 60
    seed: int = 1


class SyntheticSource:
    """See `replay.Source`. Raises ConfigError for a start_price off the tick grid, or too low to walk from."""

    def __init__(self, config: SyntheticConfig, first_id: int = 1) -> None:
        if config.messages_per_s <= 10:
            raise ConfigError(f"messages_per_s {config.messages_per_s} must be above 10, which depth alone takes")
        try:
            self._instrument = Instrument(config.symbol, config.tick_size, config.lot_size)
            self._start = self._instrument.ticks(config.start_price)
        except (ValueError, ArithmeticError) as wrong:
            raise ConfigError(f"synthetic market: {wrong}") from wrong
        if self._start < 200 * config.volatility_ticks:
            raise ConfigError(
                f"start_price {config.start_price} is only {self._start} ticks; with volatility_ticks "
                f"{config.volatility_ticks} it must be at least {200 * config.volatility_ticks}"
            )
        self._config = config
        self._first_id = first_id
        name = config.symbol.lower()
        self._trade, self._quote, self._depth = f"{name}@trade", f"{name}@bookTicker", f"{name}@depth"
        self.streams = frozenset((self._trade, self._quote, self._depth))

    def play(self, wall_ms: Callable[[int], int]) -> Iterator[tuple[int, str, str]]:
        """(when in ns of market time, canonical stream, message), without end."""
        return _Walk(self._config, self._instrument, self._start, self._first_id).play(wall_ms)


class _Walk:
    """The state of one run. Price in ticks; `update` and `trade` are the venue's two numberings."""

    def __init__(self, config: SyntheticConfig, instrument: Instrument, start: int, first_id: int) -> None:
        self.rng = random.Random(config.seed)
        self.config, self.instrument = config, instrument
        self.start = start
        self.bid, self.ask = start, start + 1
        self.bid_lots, self.ask_lots = self._size(), self._size()
        self.update = self.depth_update = first_id
        self.trade = first_id - 1
        self.touched: tuple[set[int], set[int]] = (set(), set())  # levels changed since the last depth message

    def play(self, wall_ms: Callable[[int], int]) -> Iterator[tuple[int, str, str]]:
        rng, symbol = self.rng, self.config.symbol
        name = symbol.lower()
        # Half of the messages come alone, half within a burst.
        pause_ns = 1e9 / (self.config.messages_per_s - 10)
        when, depth_at = 0, _DEPTH_EVERY_NS
        while True:
            when += int(rng.expovariate(1.0) * pause_ns * (0.1 if rng.random() < 0.5 else 1.9))
            while depth_at <= when:
                if self.update > self.depth_update:
                    yield depth_at, f"{name}@depth", self._depth(symbol, wall_ms(depth_at))
                depth_at += _DEPTH_EVERY_NS
            if rng.random() < 0.27:
                yield when, f"{name}@trade", self._trade(symbol, wall_ms(when))
            else:
                yield when, f"{name}@bookTicker", self._quote(symbol)

    def _size(self) -> int:
        return 1 + int(self.rng.expovariate(1 / 50_000))

    def _price(self, ticks: int) -> str:
        return f"{self.instrument.price(ticks):.8f}"

    def _qty(self, lots: int) -> str:
        return f"{self.instrument.qty(lots):.8f}"

    def _trade(self, symbol: str, at_ms: int) -> str:
        self.trade += 1
        sells = self.rng.random() < 0.5
        price, maker = (self.bid, "true") if sells else (self.ask, "false")
        lots = min(self._size() // 20 + 1, self.bid_lots if sells else self.ask_lots)
        return (
            f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{at_ms},"s":"{symbol}","t":{self.trade},'
            f'"p":"{self._price(price)}","q":"{self._qty(lots)}","T":{at_ms},"m":{maker},"M":true}}}}'
        )

    def _quote(self, symbol: str) -> str:
        rng = self.rng
        self.update += 1 + int(rng.expovariate(0.2))
        if rng.random() < 0.1:
            pull = (self.start - self.bid) // 2_000
            step = round(rng.gauss(0, self.config.volatility_ticks)) + pull
            self.touched[0].add(self.bid)
            self.touched[1].add(self.ask)
            self.bid += step
            self.ask = self.bid + 1 + (int(rng.expovariate(1.0)) if rng.random() < 0.1 else 0)
            self.bid_lots, self.ask_lots = self._size(), self._size()
        elif rng.random() < 0.5:
            self.bid_lots = self._size()
        else:
            self.ask_lots = self._size()
        return (
            f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"u":{self.update},"s":"{symbol}",'
            f'"b":"{self._price(self.bid)}","B":"{self._qty(self.bid_lots)}",'
            f'"a":"{self._price(self.ask)}","A":"{self._qty(self.ask_lots)}"}}}}'
        )

    def _depth(self, symbol: str, at_ms: int) -> str:
        """Everything that changed since the last one: left levels emptied, the touch, and a level behind it."""
        first, self.depth_update = self.depth_update + 1, self.update
        sides = []
        for left, best, best_lots, behind in (
            (self.touched[0], self.bid, self.bid_lots, -1),
            (self.touched[1], self.ask, self.ask_lots, 1),
        ):
            levels = {ticks: 0 for ticks in left}
            levels[best] = best_lots
            levels[best + behind * (1 + self.rng.randrange(50))] = self._size()
            left.clear()
            sides.append(",".join(f'["{self._price(t)}","{self._qty(n)}"]' for t, n in sorted(levels.items())))
        return (
            f'{{"stream":"{symbol.lower()}@depth@100ms","data":{{"e":"depthUpdate","E":{at_ms},"s":"{symbol}",'
            f'"U":{first},"u":{self.depth_update},"b":[{sides[0]}],"a":[{sides[1]}]}}}}'
        )
