"""What the example strategies share: reading their config, and naming their decisions.

Pure. A user's strategy may use both, or neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any

from node.strategy import OrderView
from node.types import DecisionId, Side

SIDE_LETTER = {Side.BUY: "B", Side.SELL: "S"}
NS_PER_S = 1_000_000_000


class Settings:
    """Reads the `[strategy.config]` table. Each wrong value is a ValueError that names key and value; so is, at
    `done()`, a key that nobody asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._left = dict(config)
        self._read: dict[str, object] = {}

    def integer(self, key: str, default: int, *, at_least: int = 0) -> int:
        value = self._left.pop(key, default)
        if type(value) is not int or value < at_least:
            raise ValueError(f"{key} = {value!r} must be a whole number, at least {at_least}")
        self._read[key] = value
        return value

    def seconds_ns(self, key: str, default: str, *, above_zero: bool = True) -> int:
        """Seconds, as whole nanoseconds."""
        value = self._decimal(key, default)
        if value < 0 or (above_zero and value == 0):
            raise ValueError(f"{key} = {value} must be {'above' if above_zero else 'at least'} 0 seconds")
        return int(value * NS_PER_S)

    def ratio(self, key: str, default: str, *, places: int) -> int:
        """A number above 0, as whole units of 10^-places, so that every node computes with the same integer."""
        value = self._decimal(key, default).scaleb(places)
        if value <= 0 or value != int(value):
            raise ValueError(f"{key} = {self._read[key]} must be above 0, with at most {places} decimal places")
        return int(value)

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._left.pop(key, default)
        if value not in allowed:
            raise ValueError(f"{key} = {value!r} must be one of: {', '.join(allowed)}")
        self._read[key] = value
        return str(value)

    def symbol(self, default: str = "BTCUSDT") -> str:
        value = self._left.pop("symbol", default)
        if not isinstance(value, str) or not value or value != value.upper():
            raise ValueError(f"symbol = {value!r} must be the venue's name of the instrument, in upper case")
        self._read["symbol"] = value
        return value

    def _decimal(self, key: str, default: str) -> Decimal:
        value = self._left.pop(key, default)
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
                raise ValueError
            number = Decimal(str(value))  # of the text: a TOML 0.1 means a tenth
            if not number.is_finite() or abs(number) > 10**9:
                raise ValueError
        except (ValueError, InvalidOperation):
            raise ValueError(f"{key} = {value!r} must be a number") from None
        self._read[key] = str(number.normalize())
        return number

    def done(self) -> str:
        """Call when all is read: refuses what is left over; returns a short digest of what was read."""
        if self._left:
            raise ValueError(
                f"unknown key {', '.join(f'{k} = {v!r}' for k, v in sorted(self._left.items()))}; "
                f"known: {', '.join(sorted(self._read))}"
            )
        return blake2b(repr(sorted(self._read.items())).encode(), digest_size=4).hexdigest()


class DecisionNames:
    """Names decisions by the feed position they come from: `<tag>:<seq>`, then `<tag>:<seq>.1` and so on.

    A name is executed once in the cluster's life, so two things must not happen: that a leader takes the name of a
    decision that another leader made (it would be refused), and that the nodes name one decision differently (it would
    be executed twice). Hence: names come from the feed's numbers, which all nodes see, and start after the highest
    name seen in the replicated orders. Names only rise, also when this node's feed is behind.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._seq = 0
        self._n = -1

    def next(self, seq: int) -> DecisionId:
        self._seq, self._n = (seq, 0) if seq > self._seq else (self._seq, self._n + 1)
        return DecisionId(f"{self._tag}:{self._seq}" + (f".{self._n}" if self._n else ""))

    def owns(self, order: OrderView) -> bool:
        return order.decision_id.startswith(self._tag + ":")

    def seen(self, order: OrderView) -> bool:
        """Take note of a replicated order of ours; whether its name is the highest so far."""
        seq, _, n = order.decision_id[len(self._tag) + 1 :].partition(".")
        if not self.owns(order) or not seq.isdigit() or not (n.isdigit() or not n):
            return False
        name = (int(seq), int(n or 0))
        highest = name >= (self._seq, self._n)
        if highest:
            self._seq, self._n = name
        return highest

    def state(self) -> list[int]:
        return [self._seq, self._n]

    def restore(self, state: list[int]) -> None:
        """Never falls below what this node has seen itself."""
        self._seq, self._n = max((self._seq, self._n), (state[0], state[1]))
