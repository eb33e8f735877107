"""The strategy's host: what user code is told, what becomes of what it returns, and that it can break nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster.core.errors import ConfigError
from cluster.core.ids import LogIndex, Term
from cluster.core.log import Entry
from node.book import Book, Filled, OrderChanged
from node.codec import StrategyState, encode
from node.feeds.base import DepthUpdate, Quote, Trade
from node.host import SHADOW_MAX, STATE_BYTES_MAX, TIMERS_MAX, StrategyHost, load_strategy
from node.strategy import Cancel, Context, FillView, OrderState, OrderView, Place, Role, Strategy, Wish
from node.types import ClientOrderId, DecisionId, OrderSpec, Side
from tests.support.desk import INSTRUMENTS, SYMBOL, buy

PATH = "tests.unit.test_host:Scripted"
COID = ClientOrderId("tz7z2")


class Scripted(Strategy):
    """Does what the test puts into `answers`, by callback."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.told: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Context], Iterable[Wish] | None]] = {}
        self.state = b"state"

    def _say(self, name: str, ctx: Context, what: Any) -> Iterable[Wish] | None:
        self.told.append((name, what))
        return self.answers.get(name, lambda _: None)(ctx)

    def on_start(self, ctx: Context) -> Iterable[Wish] | None:
        return self._say("start", ctx, None)

    def on_market(self, ctx: Context, event: Any) -> Iterable[Wish] | None:
        return self._say("market", ctx, event)

    def on_order(self, ctx: Context, order: OrderView) -> Iterable[Wish] | None:
        return self._say("order", ctx, order)

    def on_fill(self, ctx: Context, fill: FillView) -> Iterable[Wish] | None:
        return self._say("fill", ctx, fill)

    def on_timer(self, ctx: Context, timer_id: str) -> Iterable[Wish] | None:
        return self._say("timer", ctx, timer_id)

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        return self._say("role", ctx, (role, reason))

    def snapshot(self) -> bytes:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def restore(self, state: bytes, version: int) -> None:
        self.told.append(("restore", (state, version)))

    def fingerprint(self) -> str:
        return "f" * 500


class Timer:
    def __init__(self, delay_s: float, call: Callable[[], None]) -> None:
        self.delay_s, self.call, self.cancelled = delay_s, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    def __init__(self) -> None:
        self.book = Book("t", INSTRUMENTS)
        self.strategy = Scripted({})
        self.wished: list[tuple[list[tuple[str, Wish]], int]] = []
        self.failures: list[str] = []
        self.timers: list[Timer] = []
        self.host = StrategyHost(
            self.strategy,
            PATH,
            self.book,
            {i.symbol: i for i in INSTRUMENTS},
            on_wishes=lambda named, at: self.wished.append((named, at)),
            on_failed=self.failures.append,
            call_later=self._later,
        )

    def _later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, call))
        return self.timers[-1]

    def lead(self) -> None:
        self.host.set_role(Role.ACTIVE, "leading")
        self.wished.clear()

    def apply(self, fact: Any) -> None:
        kind, body = encode(fact)
        self.book.apply(Entry(LogIndex(self.book.applied_index + 1), Term(7), kind, 1, body, b""))

    @property
    def names(self) -> list[str]:
        return [name for named, _ in self.wished for name, _ in named]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def quote(seq: int = 1, bid: int = 999, at: int = 5) -> Quote:
    return Quote(SYMBOL, seq, bid, 10, bid + 2, 10, at)


def view(state: OrderState = OrderState.OPEN, filled: int = 0) -> OrderView:
    return OrderView(COID, DecisionId("d"), buy(), state, filled, False)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_strategy_is_loaded_by_path_with_its_config() -> None:
    loaded = load_strategy(PATH, {"a": 1})
    assert type(loaded).__name__ == "Scripted" and loaded.config == {"a": 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no.such.module:X", "module 'no' is not found"),
        ("tests.unit.test_host:Missing", "module tests.unit.test_host has no class 'Missing'; it has: .*Scripted"),
        ("node.types:Missing", "has no class 'Missing'; a strategy is a subclass of node.strategy.Strategy"),
        ("tests.unit.test_host:Rig", "Rig is not a subclass"),
        ("tests.unit.test_host", "has no class ''"),
    ],
)
def test_path_that_names_no_strategy_is_a_config_error(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_strategy(path, {})


def test_module_beside_the_configuration_is_found_and_its_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_broken_bot.py").write_text("raise RuntimeError('boom')\n")
    (tmp_path / "my_picky_bot.py").write_text(
        "from node.strategy import Strategy\n"
        "class Bot(Strategy):\n"
        "    def __init__(self, config):\n"
        "        raise ValueError('lots = 0 must be above 0')\n"
    )
    (tmp_path / "my_hungry_bot.py").write_text(
        "from node.strategy import Strategy\n"
        "class Bot(Strategy):\n"
        "    def __init__(self, config):\n"
        "        self.qty = config['qty_lots']\n"
    )
    (tmp_path / "my_needy_bot.py").write_text("import no_such_library\n")
    with pytest.raises(ConfigError, match="importing my_broken_bot failed: RuntimeError: boom"):
        load_strategy("my_broken_bot:Bot", {})
    with pytest.raises(ConfigError, match="does not accept it: ValueError: lots = 0 must be above 0"):
        load_strategy("my_picky_bot:Bot", {})
    with pytest.raises(ConfigError, match=r"KeyError: 'qty_lots'; is that key missing from \[strategy.config\]\?"):
        load_strategy("my_hungry_bot:Bot", {})
    with pytest.raises(ConfigError, match="module 'no_such_library' is not found"):
        load_strategy("my_needy_bot:Bot", {})


# -- what the strategy is told ------------------------------------------------------------------------------------


def test_start_restores_the_replicated_state_of_this_strategy_first(rig: Rig) -> None:
    rig.apply(StrategyState(PATH, 3, b"memory"))
    rig.host.start()
    assert rig.strategy.told == [("restore", (b"memory", 3)), ("start", None)]


def test_state_of_another_strategy_is_left_alone(rig: Rig) -> None:
    rig.apply(StrategyState("other:Bot", 3, b"memory"))
    rig.host.start()
    assert rig.strategy.told == [("start", None)]


def test_book_that_is_replaced_brings_the_memory_of_what_was_missed(rig: Rig) -> None:
    rig.host.start()
    newer = Rig()
    newer.apply(StrategyState(PATH, 1, b"newer"))
    rig.host.replace_book(newer.book)
    assert rig.strategy.told == [("start", None), ("restore", (b"newer", 1))]
    assert rig.host.book is newer.book


def test_quotes_are_kept_for_the_reference_price(rig: Rig) -> None:
    rig.host.market(quote(1))
    rig.host.market(Trade(SYMBOL, 1, 1000, 1, True, 0, 5))
    rig.host.market(quote(2, bid=990))
    assert rig.host.quotes[SYMBOL].seq == 2
    assert [type(e).__name__ for _, e in rig.strategy.told] == ["Quote", "Trade", "Quote"]


def test_book_events_reach_their_callbacks_in_order(rig: Rig) -> None:
    fill = FillView(COID, SYMBOL, Side.BUY, 4, 1000, "t1")
    rig.host.book_events([OrderChanged(view()), Filled(fill), OrderChanged(view(OrderState.CLOSED, 4))])
    assert [name for name, _ in rig.strategy.told] == ["order", "fill", "order"]


def test_role_is_told_once_per_change(rig: Rig) -> None:
    rig.host.set_role(Role.SHADOW, "standby")
    rig.host.set_role(Role.ACTIVE, "leading")
    rig.host.set_role(Role.ACTIVE, "leading still")
    rig.host.set_role(Role.BLOCKED, "gate: gone")
    assert rig.strategy.told == [("role", (Role.ACTIVE, "leading")), ("role", (Role.BLOCKED, "gate: gone"))]


def test_now_only_rises_and_stands_still_within_an_event(rig: Rig) -> None:
    seen: list[int] = []

    def look(ctx: Context) -> Iterator[Wish]:
        seen.append(ctx.now())
        yield Cancel(COID)
        seen.append(ctx.now())

    rig.strategy.answers["market"] = look
    rig.host.market(quote(1))
    rig.host.market(quote(2))
    assert seen[0] == seen[1] <= seen[2] == seen[3]


def test_context_reads_the_book_and_draws_alike_everywhere(rig: Rig) -> None:
    other = Rig()
    assert rig.host.rng(5).random() == other.host.rng(5).random() != rig.host.rng(6).random()
    assert rig.host.position(SYMBOL) == 0 and rig.host.open_orders(SYMBOL) == []
    assert rig.host.instrument(SYMBOL) is INSTRUMENTS[0]


# -- what becomes of its wishes -----------------------------------------------------------------------------------


def test_wishes_of_a_leader_are_handed_on_with_the_time_of_the_event(rig: Rig) -> None:
    rig.lead()
    rig.strategy.answers["market"] = lambda _: [Place(buy(), DecisionId("d1")), Cancel(COID, "moved")]
    rig.host.market(quote(at=77))
    assert rig.wished == [([("d1", Place(buy(), DecisionId("d1"))), ("", Cancel(COID, "moved"))], 77)]


def test_generator_is_run_to_its_end(rig: Rig) -> None:
    rig.lead()

    def yielding(ctx: Context) -> Iterator[Wish]:
        yield Place(buy(1), DecisionId("a"))
        yield Place(buy(2), DecisionId("b"))

    rig.strategy.answers["market"] = yielding
    rig.host.market(quote())
    assert rig.names == ["a", "b"]


def test_decision_without_a_name_is_named_after_what_led_to_it(rig: Rig) -> None:
    rig.lead()
    two = [Place(buy(1)), Place(buy(2))]
    rig.strategy.answers = dict.fromkeys(("market", "order", "fill"), lambda _: two)
    rig.host.market(quote(7))
    rig.host.market(Trade(SYMBOL, 8, 1000, 1, True, 0, 5))
    rig.host.market(DepthUpdate(SYMBOL, 1, 9, (), (), 0, 5))
    rig.host.book_events([OrderChanged(view(filled=4)), Filled(FillView(COID, SYMBOL, Side.BUY, 4, 1000, "t1"))])
    assert rig.names == [
        f"quote:{SYMBOL}:7:0", f"quote:{SYMBOL}:7:1",
        f"trade:{SYMBOL}:8:0", f"trade:{SYMBOL}:8:1",
        f"depth:{SYMBOL}:9:0", f"depth:{SYMBOL}:9:1",
        f"order:{COID}:open:4:0", f"order:{COID}:open:4:1",
        "fill:t1:0", "fill:t1:1",
    ]  # fmt: skip


def test_same_event_has_the_same_name_on_every_node(rig: Rig) -> None:
    other = Rig()
    for r in (rig, other):
        r.lead()
        r.strategy.answers["market"] = lambda _: [Place(buy())]
        r.host.market(quote(7))
    assert rig.names == other.names


def test_each_time_a_term_resumes_is_an_occasion_of_its_own(rig: Rig) -> None:
    rig.strategy.answers["role"] = lambda _: [Place(buy())]
    rig.host.set_role(Role.ACTIVE, "leading")
    rig.apply(StrategyState("x:Y", 1, b""))  # something was journaled meanwhile
    rig.host.set_role(Role.BLOCKED, "gate")
    rig.host.set_role(Role.ACTIVE, "leading")
    assert len(set(rig.names)) == len(rig.names)


def test_wishes_of_a_blocked_leader_are_handed_on_since_cancels_may_still_go(rig: Rig) -> None:
    rig.host.set_role(Role.BLOCKED, "gate")
    rig.strategy.answers["market"] = lambda _: [Cancel(COID)]
    rig.host.market(quote())
    assert rig.wished == [([("", Cancel(COID))], 5)]


def test_shadow_wishes_are_counted_compared_and_never_handed_on(rig: Rig) -> None:
    rig.strategy.answers["market"] = lambda _: [Place(buy(), DecisionId("same")), Place(buy(), DecisionId("mine"))]
    rig.host.market(quote())
    rig.host.leader_decided("same")
    rig.host.leader_decided("same")
    rig.host.leader_decided("theirs")
    assert rig.wished == []
    assert (rig.host.shadow_intents, rig.host.shadow_matched) == (2, 1)


def test_shadow_memory_is_bounded(rig: Rig) -> None:
    wishes = [Place(buy(), DecisionId(f"d{n}")) for n in range(SHADOW_MAX + 1)]
    rig.strategy.answers["market"] = lambda _: wishes
    rig.host.market(quote())
    rig.host.leader_decided("d0")
    rig.host.leader_decided("d1")
    assert rig.host.shadow_matched == 1


# -- timers -------------------------------------------------------------------------------------------------------


def test_timer_fires_once_and_its_wishes_count(rig: Rig) -> None:
    rig.lead()
    rig.host.set_timer("a", 1.5)
    rig.strategy.answers["timer"] = lambda _: [Place(buy(), DecisionId("t"))]
    (timer,) = rig.timers
    assert timer.delay_s == 1.5
    timer.call()
    assert rig.strategy.told[-1] == ("timer", "a") and rig.names == ["t"]


def test_same_timer_again_replaces_the_first(rig: Rig) -> None:
    rig.host.set_timer("a", 1.0)
    rig.host.set_timer("a", -2.0)
    assert [t.cancelled for t in rig.timers] == [True, False] and rig.timers[1].delay_s == 0.0


def test_timer_set_by_its_own_callback_lives(rig: Rig) -> None:
    rig.strategy.answers["timer"] = lambda ctx: ctx.set_timer("a", 1.0)  # type: ignore[func-returns-value]
    rig.host.set_timer("a", 1.0)
    rig.timers[0].call()
    assert [t.cancelled for t in rig.timers] == [False, False]
    rig.host.stop()
    assert rig.timers[1].cancelled


def test_too_many_timers_are_the_strategys_failure(rig: Rig) -> None:
    def many(ctx: Context) -> None:
        for n in range(TIMERS_MAX + 1):
            ctx.set_timer(str(n), 1.0)

    rig.strategy.answers["market"] = many
    rig.host.market(quote())
    assert rig.failures == [f"quote raised ValueError: a strategy may have at most {TIMERS_MAX} timers"]


# -- what it may get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["start", "market", "order", "fill", "timer", "role"])
def test_callback_that_raises_is_reported_once_and_hears_nothing_more(rig: Rig, callback: str) -> None:
    def boom(ctx: Context) -> None:
        raise KeyError("oops")

    rig.strategy.answers[callback] = boom
    calls: dict[str, Callable[[], Any]] = {
        "start": rig.host.start,
        "market": lambda: rig.host.market(quote()),
        "order": lambda: rig.host.book_events([OrderChanged(view())]),
        "fill": lambda: rig.host.book_events([Filled(FillView(COID, SYMBOL, Side.BUY, 4, 1000, "t1"))]),
        "timer": lambda: rig.host._timer("a"),
        "role": lambda: rig.host.set_role(Role.ACTIVE, "leading"),
    }
    calls[callback]()
    told = len(rig.strategy.told)
    for call in calls.values():
        call()
    assert len(rig.failures) == 1 and "raised KeyError: 'oops'" in rig.host.failed
    assert len(rig.strategy.told) == told
    assert rig.host.snapshot() is None and rig.host.fingerprint() == ""


@pytest.mark.parametrize("what", [asyncio.CancelledError("of its own task"), SystemExit(3), KeyboardInterrupt()])
def test_strategy_that_raises_what_ends_others_fails_and_nobody_else(rig: Rig, what: BaseException) -> None:
    """task.result() of a cancelled task raises CancelledError: let out, it would end the feed's task without a word."""

    def boom(ctx: Context) -> None:
        raise what

    rig.strategy.answers["market"] = boom
    rig.host.market(quote())
    assert len(rig.failures) == 1 and type(what).__name__ in rig.host.failed


def test_reason_of_a_failure_is_short_and_can_be_written(rig: Rig) -> None:
    """It travels to every node: one that is too long, or no text, would take them all down."""

    def boom(ctx: Context) -> None:
        raise RuntimeError("\ud800" + "x" * 200_000)

    rig.strategy.answers["market"] = boom
    with capture_logs():  # pytest's stdout could not write it; a worker's stderr can
        rig.host.market(quote())
    assert len(rig.host.failed.encode()) < 1000 and "\\ud800" in rig.host.failed


def test_generator_that_raises_halfway_has_none_of_its_wishes_carried_out(rig: Rig) -> None:
    rig.lead()

    def half(ctx: Context) -> Iterator[Wish]:
        yield Place(buy(), DecisionId("a"))
        raise RuntimeError("halfway")

    rig.strategy.answers["market"] = half
    rig.host.market(quote())
    assert rig.wished == [] and rig.host.failed == "quote raised RuntimeError: halfway"


@pytest.mark.parametrize(
    "wish",
    [
        "buy",
        None,
        Place("spec"),  # type: ignore[arg-type]
        Place(buy(), 7),  # type: ignore[arg-type]
        Place(buy(), DecisionId("d" * 201)),
        Place(buy(), DecisionId("\ud800")),
        Place(buy(), None, 3),  # type: ignore[arg-type]
        Place(OrderSpec(SYMBOL, Side.BUY, 1.5, 100)),  # type: ignore[arg-type]
        Place(OrderSpec(SYMBOL, Side.BUY, True, 100)),
        Place(OrderSpec(SYMBOL, Side.BUY, 1, 100.0)),  # type: ignore[arg-type]
        Cancel(None),  # type: ignore[arg-type]
        Cancel(COID, b"why"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_wish_fails_the_strategy_and_not_the_node(rig: Rig, wish: Any) -> None:
    rig.lead()
    rig.strategy.answers["market"] = lambda _: [wish]
    rig.host.market(quote())
    assert rig.wished == [] and len(rig.failures) == 1


def test_something_that_cannot_be_iterated_is_no_wish_either(rig: Rig) -> None:
    rig.strategy.answers["market"] = lambda _: Place(buy())  # type: ignore[return-value]
    rig.host.market(quote())
    assert "not iterable" in rig.host.failed


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("text", "snapshot raised TypeError: expected bytes, got str"),
        (b"x" * (STATE_BYTES_MAX + 1), "snapshot raised ValueError: 1048577 bytes; at most 1048576 are replicated"),
        (RuntimeError("boom"), "snapshot raised RuntimeError: boom"),
    ],
)
def test_state_that_cannot_be_replicated_is_the_strategys_failure(rig: Rig, state: Any, said: str) -> None:
    rig.strategy.state = state
    assert rig.host.snapshot() is None
    assert rig.failures == [said]


def test_state_and_fingerprint_of_a_sound_strategy(rig: Rig) -> None:
    assert rig.host.snapshot() == b"state"
    assert rig.host.fingerprint() == "f" * 200, "cut: it is shown and compared"
    rig.strategy.state = b""
    assert rig.host.snapshot() == b"", "nothing to remember is not the same as a failure"
