"""Pre-trade checks: each limit at its edge, then any state against the promises in plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.ids import NS_PER_S
from node.risk import (
    ORDER_KINDS,
    InstrumentLimits,
    RateLimit,
    RiskLimits,
    RiskRefusal,
    check,
    order_kind,
)
from node.types import OrderSpec, OrderType, Side, TimeInForce

BUY, SELL = Side.BUY, Side.SELL
BTC = InstrumentLimits(
    max_order_lots=100,
    max_order_notional=1_000_000,
    max_position_lots=250,
    price_collar_bps=100,
    order_kinds=frozenset(ORDER_KINDS),
)
LIMITS = RiskLimits({"BTC": BTC}, RateLimit(orders_burst=3, window_ns=NS_PER_S))
MID = 2 * 10_000  # in half ticks
NOW = 1_700_000_000 * NS_PER_S


@dataclass
class State:
    lots: int = 0
    buy: int = 0
    sell: int = 0
    blocked: tuple[Side, ...] = ()
    recent_intents: Sequence[int] = field(default_factory=list)

    def position(self, symbol: str) -> int:
        return self.lots if symbol == "BTC" else 0

    def exposure(self, symbol: str, side: Side) -> int:
        return (self.buy if side is BUY else self.sell) if symbol == "BTC" else 0

    def is_blocked(self, symbol: str, side: Side) -> bool:
        return symbol == "BTC" and side in self.blocked


def ask(
    spec: OrderSpec,
    state: State | None = None,
    *,
    limits: RiskLimits = LIMITS,
    reference: int | None = MID,
    now: int = NOW,
    close_only: bool = False,
) -> RiskRefusal | None:
    return check(
        spec,
        limits=limits,
        book=state or State(),
        reference_half_ticks=reference,
        now=now,
        close_only=close_only,
    )


def code(*args: object, **kwargs: object) -> str | None:
    refusal = ask(*args, **kwargs)  # type: ignore[arg-type]
    return refusal.code if refusal else None


def limit(side: Side = BUY, qty: int = 1, price: int = 10_000, **more: object) -> OrderSpec:
    return OrderSpec("BTC", side, qty, price, **more)  # type: ignore[arg-type]


def market(side: Side = BUY, qty: int = 1) -> OrderSpec:
    return OrderSpec("BTC", side, qty, None, OrderType.MARKET, TimeInForce.IOC)


def test_harmless_order_passes() -> None:
    assert ask(limit()) is None


def test_instrument_without_limits_may_not_be_traded() -> None:
    refusal = ask(OrderSpec("ETH", BUY, 1, 10_000))
    assert refusal and refusal.code == "no_limits" and "ETH" in refusal.reason


def test_order_size_at_and_above_its_limit() -> None:
    assert code(limit(qty=100)) is None
    refusal = ask(limit(qty=101))
    assert refusal and refusal.code == "max_order_qty"
    assert "101" in refusal.reason and "100" in refusal.reason, "the value and the limit are named"


def test_notional_at_and_above_its_limit() -> None:
    tight = replace(LIMITS, instruments={"BTC": replace(BTC, max_order_notional=500_000)})
    assert code(limit(qty=50), limits=tight) is None
    refusal = ask(limit(qty=51), limits=tight)
    assert refusal and refusal.code == "max_order_notional"
    assert "510000" in refusal.reason and "500000" in refusal.reason


def test_market_order_is_valued_at_the_worst_price_the_collar_allows() -> None:
    tight = replace(LIMITS, instruments={"BTC": replace(BTC, max_order_notional=10_100 * 10)})
    assert code(market(qty=10), limits=tight) is None
    assert code(market(qty=10), limits=tight, reference=MID + 1) == "max_order_notional"


@pytest.mark.parametrize("side", list(Side))
def test_price_collar_at_and_beyond_its_edges(side: Side) -> None:
    # 100 bps of 10,000 is 100 ticks
    assert [code(limit(side, price=p)) for p in (9_899, 9_900, 10_100, 10_101)] == [
        "price_collar",
        None,
        None,
        "price_collar",
    ]
    # a mid between two ticks: 10,000.5 +- 100.005
    assert [code(limit(side, price=p), reference=MID + 1) for p in (9_900, 9_901, 10_100, 10_101)] == [
        "price_collar",
        None,
        None,
        "price_collar",
    ]


@pytest.mark.parametrize("reference", [None, 0, -5])
@pytest.mark.parametrize("spec", [limit(), market(), limit(SELL, post_only=True)])
def test_without_a_reference_price_nothing_passes(spec: OrderSpec, reference: int | None) -> None:
    assert code(spec, reference=reference) == "no_reference_price"


def test_position_counts_all_that_may_still_fill_on_the_same_side() -> None:
    assert code(limit(BUY, 50), State(lots=100, buy=100)) is None
    refusal = ask(limit(BUY, 51), State(lots=100, buy=100))
    assert refusal and refusal.code == "max_position"
    assert all(n in refusal.reason for n in ("51", "100", "251", "250"))
    assert code(limit(SELL, 50), State(lots=-100, sell=100)) is None
    assert code(limit(SELL, 51), State(lots=-100, sell=100)) == "max_position"
    assert code(limit(BUY, 50), State(lots=100, buy=100, sell=100)) is None, "sells that may fill do not make room"
    assert code(limit(BUY, 51), State(lots=100, buy=100, sell=100)) == "max_position"


def test_order_that_reduces_a_position_beyond_its_limit_passes() -> None:
    assert code(limit(SELL, 100), State(lots=900)) is None
    assert code(limit(BUY, 1), State(lots=900)) == "max_position"


def test_unknown_outcome_blocks_its_side_only() -> None:
    state = State(blocked=(BUY,))
    refusal = ask(limit(BUY), state)
    assert refusal and refusal.code == "outcome_unknown" and "BTC buy" in refusal.reason
    assert code(limit(SELL), state) is None


def test_order_kinds_are_told_apart_and_only_the_listed_ones_pass() -> None:
    specs = {
        "limit": limit(),
        "post_only": limit(post_only=True),
        "ioc": limit(tif=TimeInForce.IOC),
        "market": market(),
    }
    assert {kind: order_kind(spec) for kind, spec in specs.items()} == {k: k for k in ORDER_KINDS}
    for allowed in ORDER_KINDS:
        limits = replace(LIMITS, instruments={"BTC": replace(BTC, order_kinds=frozenset({allowed}))})
        for kind, spec in specs.items():
            assert code(spec, limits=limits) == (None if kind == allowed else "order_type")


def test_close_only_lets_through_what_must_reduce_the_position() -> None:
    def closing(side: Side, qty: int, lots: int, buy: int = 0, sell: int = 0) -> str | None:
        return code(limit(side, qty), State(lots, buy, sell), close_only=True)

    assert closing(SELL, 10, lots=10) is None
    assert closing(SELL, 11, lots=10) == "close_only", "it would flip the position"
    assert closing(BUY, 1, lots=10) == "close_only"
    assert closing(BUY, 1, lots=0) == closing(SELL, 1, lots=0) == "close_only"
    assert closing(BUY, 10, lots=-10) is None
    assert closing(SELL, 6, lots=10, sell=4) is None
    assert closing(SELL, 7, lots=10, sell=4) == "close_only", "what is open already may fill first"
    assert closing(SELL, 1, lots=10, sell=30) == "close_only"
    assert closing(SELL, 10, lots=10, buy=30) is None


def test_burst_is_allowed_once_per_window() -> None:
    recent = [NOW - 900, NOW - 600, NOW - 300]
    assert code(limit(), State(recent_intents=recent[1:])) is None
    refusal = ask(limit(), State(recent_intents=recent))
    assert refusal and refusal.code == "order_rate" and "orders_burst of 3" in refusal.reason
    assert code(limit(), State(recent_intents=recent), now=NOW - 900 + NS_PER_S - 1) == "order_rate"
    assert code(limit(), State(recent_intents=recent), now=NOW - 900 + NS_PER_S) is None


def test_only_the_latest_intents_are_measured() -> None:
    long_ago = [NOW - 10 * NS_PER_S] * 50
    assert code(limit(), State(recent_intents=[*long_ago, NOW - 2, NOW - 1])) is None
    assert code(limit(), State(recent_intents=[*long_ago, NOW - 3, NOW - 2, NOW - 1])) == "order_rate"


def test_clock_set_back_costs_one_order_and_blocks_nothing_for_long() -> None:
    ahead = [NOW + 3600 * NS_PER_S] * 3
    assert code(limit(), State(recent_intents=ahead)) is None
    # the book stamps it lower and pulls the others down to it: now the measure holds again
    assert code(limit(), State(recent_intents=[NOW] * 3), now=NOW + 1) == "order_rate"
    assert code(limit(), State(recent_intents=[NOW] * 3), now=NOW + NS_PER_S) is None


@given(num=st.integers(1, 10_000), den=st.integers(1, 1000), burst=st.integers(1, 1024))
def test_rate_limit_never_allows_more_than_written(num: int, den: int, burst: int) -> None:
    rate = RateLimit.of(orders_per_s_num=num, orders_per_s_den=den, orders_burst=burst)
    exact = Fraction(burst * NS_PER_S * den, num)
    assert exact <= rate.window_ns < exact + 1


@given(
    lots=st.integers(-300, 300),
    buy=st.integers(0, 300),
    sell=st.integers(0, 300),
    side=st.sampled_from(Side),
    qty=st.integers(1, 300),
    price=st.one_of(st.none(), st.integers(1, 20_000)),
    reference=st.integers(1, 40_000),
    close_only=st.booleans(),
    bps=st.integers(1, 9_999),
    notional=st.integers(1, 3_000_000),
)
@settings(max_examples=400)
def test_whatever_passes_keeps_every_promise(
    lots: int,
    buy: int,
    sell: int,
    side: Side,
    qty: int,
    price: int | None,
    reference: int,
    close_only: bool,
    bps: int,
    notional: int,
) -> None:
    lim = replace(BTC, price_collar_bps=bps, max_order_notional=notional)
    limits = replace(LIMITS, instruments={"BTC": lim})
    spec = market(side, qty) if price is None else limit(side, qty, price)
    refusal = ask(spec, State(lots, buy, sell), limits=limits, reference=reference, close_only=close_only)

    mid = Fraction(reference, 2)
    collar = Fraction(bps, 10_000)
    worst_price = mid * (1 + collar) if price is None else Fraction(price)
    same_side = buy if side is BUY else sell
    worst_lots = side.sign * lots + same_side + qty
    broken = set()
    if qty > lim.max_order_lots:
        broken.add("max_order_qty")
    if price is not None and abs(price - mid) > mid * collar:
        broken.add("price_collar")
    # a market order's worst price is rounded up to a whole tick
    if -(-worst_price // 1) * qty > notional:
        broken.add("max_order_notional")
    if worst_lots > lim.max_position_lots:
        broken.add("max_position")
    if close_only and not 0 < qty + same_side <= -side.sign * lots:
        broken.add("close_only")
    assert (refusal.code in broken) if refusal else not broken
