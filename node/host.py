"""Runs the user's strategy: loads it by dotted path, hands it events, turns what it returns into wishes.

On a standby the wishes are *shadow*: named, counted, and compared with what the leader journaled, never sent. A
callback that raises is reported and stops new orders; the node goes on, so that orders can be cancelled. A callback
that blocks is a hang, which the keeper sees in the heartbeat.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import structlog

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError
from node.book import Book, BookEvent, Filled, OrderChanged
from node.feeds.base import DepthUpdate, MarketEvent, Quote, Trade
from node.strategy import Cancel, OrderView, Place, Role, Strategy, Wish
from node.types import Instrument, OrderSpec

SHADOW_MAX = 10_000
TIMERS_MAX = 1_000
STATE_BYTES_MAX = 1 << 20
DECISION_CHARS_MAX = 200
REASON_CHARS_MAX = 500

log = structlog.get_logger()

T = TypeVar("T")


def load_strategy(path: str, config: Mapping[str, Any]) -> Strategy:
    """The strategy that `module:Class` names, made with `config`. Raises ConfigError for whatever is wrong with it."""
    module_name, _, class_name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a strategy beside the configuration is found as `python -m` would
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"strategy.path = {path!r}: module {e.name!r} is not found; run from the directory that holds it, "
            "or install it into this environment"
        ) from e
    except Exception as e:
        raise ConfigError(f"strategy.path = {path!r}: importing {module_name} failed: {type(e).__name__}: {e}") from e
    if not hasattr(module, class_name):
        found = [n for n, v in vars(module).items() if _is_strategy(v) and v.__module__ == module.__name__]
        hint = f"it has: {', '.join(found)}" if found else "a strategy is a subclass of node.strategy.Strategy"
        raise ConfigError(f"strategy.path = {path!r}: module {module_name} has no class {class_name!r}; {hint}")
    cls = getattr(module, class_name)
    if not _is_strategy(cls):
        raise ConfigError(f"strategy.path = {path!r}: {class_name} is not a subclass of node.strategy.Strategy")
    try:
        made: Strategy = cls(config)
        return made
    except KeyError as e:
        raise ConfigError(
            f"strategy.config: {path} does not accept it: KeyError: {e}; is that key missing from [strategy.config]?"
        ) from e
    except Exception as e:
        raise ConfigError(f"strategy.config: {path} does not accept it: {type(e).__name__}: {e}") from e


def _is_strategy(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Strategy)


class StrategyHost:
    """The strategy's context (`node.strategy.Context`) and its caller.

    on_wishes: called with (wishes, feed_received_at Instant or 0) when the strategy wants something while it leads.
    on_failed: called once with the reason when a callback raised.
    call_later: schedules a timer: (delay_s, callback).
    """

    def __init__(
        self,
        strategy: Strategy,
        path: str,
        book: Book,
        instruments: Mapping[str, Instrument],
        *,
        on_wishes: Callable[[list[tuple[str, Wish]], int], None],
        on_failed: Callable[[str], None],
        call_later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self.strategy = strategy
        self.path = path
        self.book = book
        self.role = Role.SHADOW
        self.failed = ""
        self.shadow_intents = 0
        self.shadow_matched = 0
        self.quotes: dict[str, Quote] = {}
        self._instruments = instruments
        self._on_wishes = on_wishes
        self._on_failed = on_failed
        self._call_later = call_later
        self._timers: dict[str, Any] = {}
        self._shadow: OrderedDict[str, None] = OrderedDict()
        self._now = boottime_ns()

    # -- node.strategy.Context -----------------------------------------------------------------------------

    def now(self) -> int:
        return self._now

    def rng(self, seq: int) -> random.Random:
        return random.Random(f"{self.path}:{seq}")

    def instrument(self, symbol: str) -> Instrument:
        return self._instruments[symbol]

    def position(self, symbol: str) -> int:
        return self.book.position(symbol)

    def open_orders(self, symbol: str) -> list[OrderView]:
        return self.book.open_orders(symbol)

    def set_timer(self, timer_id: str, after_s: float) -> None:
        old = self._timers.pop(timer_id, None)
        if old is not None:
            old.cancel()
        if len(self._timers) >= TIMERS_MAX:
            raise ValueError(f"a strategy may have at most {TIMERS_MAX} timers")
        self._timers[timer_id] = self._call_later(max(0.0, after_s), lambda: self._timer(timer_id))

    # -- what happens --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Restore the replicated state, if it is of this strategy, then on_start."""
        self._restore()
        self._call("start", 0, lambda: self.strategy.on_start(self))

    def _restore(self) -> None:
        state = self.book.strategy_state
        if state is not None and state.strategy == self.path:
            self._guard("restore", lambda: self.strategy.restore(state.state, state.version))

    def replace_book(self, book: Book) -> None:
        """A snapshot stands for events that this strategy was never told: its leader's memory of them is in there."""
        self.book = book
        self._restore()

    def set_role(self, role: Role, reason: str) -> None:
        if role is self.role:
            return
        self.role = role
        # A term may block and resume: each time is an occasion of its own.
        name = f"role:{role.value}:{self.book.term}:{self.book.applied_index}"
        self._call(name, 0, lambda: self.strategy.on_role(self, role, reason))

    def market(self, event: MarketEvent) -> None:
        if isinstance(event, Quote):
            self.quotes[event.symbol] = event
        self._call(_name_of(event), event.received_at, lambda: self.strategy.on_market(self, event))

    def book_events(self, events: Iterable[BookEvent]) -> None:
        for e in events:
            if isinstance(e, OrderChanged):
                order = e.order
                name = f"order:{order.client_order_id}:{order.state.value}:{order.filled_lots}"
                self._call(name, 0, lambda o=order: self.strategy.on_order(self, o))  # type: ignore[misc]
            elif isinstance(e, Filled):
                fill = e.fill
                self._call(f"fill:{fill.trade_id}", 0, lambda f=fill: self.strategy.on_fill(self, f))  # type: ignore[misc]

    def _timer(self, timer_id: str) -> None:
        self._timers.pop(timer_id, None)
        self._call(f"timer:{timer_id}:{self.book.applied_index}", 0, lambda: self.strategy.on_timer(self, timer_id))

    def stop(self) -> None:
        for t in self._timers.values():
            t.cancel()
        self._timers.clear()

    def snapshot(self) -> bytes | None:
        """The strategy's state; None if it failed to give it."""
        return self._guard("snapshot", lambda: _as_state(self.strategy.snapshot()))

    def fingerprint(self) -> str:
        return self._guard("fingerprint", lambda: str(self.strategy.fingerprint())[:200]) or ""

    # -- comparing with the leader -------------------------------------------------------------------------

    def leader_decided(self, decision_id: str) -> None:
        """A committed intent of the leader: did our shadow want the same?"""
        if self._shadow.pop(decision_id, "") is None:
            self.shadow_matched += 1

    def _note_shadow(self, decision_id: str) -> None:
        self.shadow_intents += 1
        self._shadow[decision_id] = None
        while len(self._shadow) > SHADOW_MAX:
            self._shadow.popitem(last=False)

    # -- calling user code ---------------------------------------------------------------------------------

    def _guard(self, what: str, call: Callable[[], T]) -> T | None:
        if self.failed:
            return None
        try:
            return call()
        except BaseException as e:
            # User code may raise anything; it must not take the node down. Also SystemExit, and the CancelledError of a
            # task whose result it asked for: a callback does not wait, so nobody can mean us with either.
            self.failed = _fit(f"{what} raised {type(e).__name__}: {e}")
            log.error("strategy_failed", strategy=self.path, callback=what, reason=self.failed, exc_info=True)
            self._on_failed(self.failed)
            return None

    def _call(self, event_name: str, received_at: int, call: Callable[[], Iterable[Wish] | None]) -> None:
        """One callback; its wishes get names before anybody else sees them."""
        now = boottime_ns()
        self._now = max(self._now, now)
        returned = self._guard(event_name.partition(":")[0], lambda: _as_list(call()))
        if not returned:
            return
        named: list[tuple[str, Wish]] = []
        for i, wish in enumerate(returned):
            if isinstance(wish, Place):
                decision = wish.decision_id or f"{event_name}:{i}"
                named.append((decision, wish))
                if self.role is Role.SHADOW:
                    self._note_shadow(decision)
            else:
                named.append(("", wish))
        if self.role is not Role.SHADOW:
            self._on_wishes(named, received_at)


def _fit(text: str) -> str:
    """To be published: short, and nothing that is not text."""
    return text[:REASON_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


def _as_list(wishes: Iterable[Wish] | None) -> list[Wish]:
    """Runs a generator to its end, inside the guard. Raises TypeError or ValueError for what is not a wish: user code
    is found wrong here, where it is only the strategy that fails, and not in the journal."""
    if wishes is None:
        return []
    out = list(wishes)
    for w in out:
        match w:
            case Place(OrderSpec() as spec, decision_id, reason):
                name = decision_id or ""
                _require_texts(w, name, reason)
                if len(reason) > REASON_CHARS_MAX:
                    raise ValueError(f"a reason of {len(reason)} characters; at most {REASON_CHARS_MAX}")
                if type(spec.qty_lots) is not int or type(spec.price_ticks) not in (int, NoneType):
                    raise TypeError(f"{spec!r}: qty_lots and price_ticks are whole numbers (int) of lots and ticks")
                if len(name) > DECISION_CHARS_MAX:
                    raise ValueError(f"a decision_id of {len(name)} characters; at most {DECISION_CHARS_MAX}")
            case Cancel(client_order_id, reason):
                _require_texts(w, client_order_id, reason)
            case _:
                raise TypeError(f"a callback returned {w!r}; expected Place(OrderSpec(...)) or Cancel")
    return out


def _require_texts(wish: Wish, *texts: object) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{wish!r}: ids and reasons are text, not {type(text).__name__}")
        text.encode()  # a lone surrogate is no text; UnicodeEncodeError is a ValueError


def _as_state(state: object) -> bytes:
    if not isinstance(state, bytes):
        raise TypeError(f"expected bytes, got {type(state).__name__}")
    if len(state) > STATE_BYTES_MAX:
        raise ValueError(f"{len(state)} bytes; at most {STATE_BYTES_MAX} are replicated")
    return state


def _name_of(event: MarketEvent) -> str:
    match event:
        case Quote():
            return f"quote:{event.symbol}:{event.seq}"
        case Trade():
            return f"trade:{event.symbol}:{event.seq}"
        case DepthUpdate():
            return f"depth:{event.symbol}:{event.last_seq}"
