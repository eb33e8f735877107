"""The same quotes give the same bets on every node; one position at a time; out at the mean."""

import random
from typing import Any

import pytest

from node.feeds.base import Quote
from node.strategies.mean_reversion import MeanReversion
from node.strategy import OrderState, Role
from node.types import OrderType, Side, TimeInForce
from tests.support.strategy_context import Desk, quote

S = 10**9
SMALL = {"qty_lots": 10, "window": 20, "warmup": 20, "min_edge_ticks": 5, "slippage_ticks": 2, "cooldown_s": 0}


def desk(role: Role | None = Role.ACTIVE, **config: Any) -> Desk:
    d = Desk(MeanReversion(SMALL | config))
    d.start(role)
    return d


def calm(d: Desk, n: int = 100, first: int = 1) -> int:
    """A mid that swings by a tick around 1000.5; the next free sequence number."""
    for seq in range(first, first + n):
        d.market(quote(seq, 1000 + seq % 2), at=S + seq * S // 100)
    return first + n


def walk(n: int, seed: int = 1) -> list[Quote]:
    rng, mid, out = random.Random(seed), 100_000, []
    for seq in range(1, n + 1):
        mid += rng.choice((-1, 0, 1)) * rng.choice((1, 1, 1, 30))
        out.append(quote(seq, mid, mid + 1))
    return out


def test_far_above_the_mean_it_sells_and_buys_back_at_the_mean():
    d = desk()
    seq = calm(d)
    assert d.placed == []
    d.market(quote(seq, 1100))
    (entry,) = d.placed
    assert (entry.spec.side, entry.spec.price_ticks, entry.spec.tif) == (Side.SELL, 1098, TimeInForce.IOC)
    assert d.ctx.position("BTCUSDT") == -10
    d.market(quote(seq + 1, 1050))
    assert len(d.placed) == 1, "not back yet"
    d.market(quote(seq + 2, 990))
    assert d.placed[1].spec.side is Side.BUY
    assert d.ctx.position("BTCUSDT") == 0


def test_far_below_the_mean_it_buys_and_sells_back_at_the_mean():
    d = desk(order="market")
    seq = calm(d)
    d.market(quote(seq, 900))
    assert d.ctx.position("BTCUSDT") == 10
    d.market(quote(seq + 1, 1010))
    assert [p.spec.side for p in d.placed] == [Side.BUY, Side.SELL]
    assert all(p.spec.type is OrderType.MARKET and p.spec.price_ticks is None for p in d.placed)
    assert [p.decision_id for p in d.placed] == [f"mr:{seq}", f"mr:{seq + 1}"]


def test_before_it_has_warmed_up_and_within_the_edge_nothing_is_entered():
    d = desk(warmup=500)
    seq = calm(d)
    d.market(quote(seq, 1100))
    assert d.placed == []
    d = desk(min_edge_ticks=200)
    seq = calm(d)
    d.market(quote(seq, 1100))
    assert d.placed == []


def test_the_threshold_is_counted_in_standard_deviations():
    """Of a mid that swings by 10 ticks the deviation is about 10: 15 off is within 2 of it, 40 off is not."""

    def enters(off: int, z: float) -> bool:
        d = desk(window=1000, entry_z=z)
        for seq in range(1, 3001):
            d.market(quote(seq, 1000 + (10 if seq % 2 else -10)))
        before = len(d.placed)
        d.market(quote(3001, 1000 + off))
        return len(d.placed) > before

    assert not enters(15, 2)
    assert enters(15, 1.2)
    assert enters(40, 2)
    assert not enters(40, 5)


def test_one_order_at_a_time_and_a_pause_after_it():
    d = desk(cooldown_s=1)
    d.accepts = False
    seq = calm(d)
    for n in range(seq, seq + 20):
        d.market(quote(n, 1100 + n))
    assert len(d.placed) == 1
    order = d.open()[0]
    d.close(order.client_order_id, "nothing to take")
    at = d.ctx.at
    d.market(quote(seq + 30, 5_000), at=at + S - 1)
    assert len(d.placed) == 1
    d.market(quote(seq + 31, 500_000), at=at + S)
    assert len(d.placed) == 2


@pytest.mark.parametrize("bad", [quote(500, 0, 1001), quote(500, 2000, 1001)])
def test_a_quote_without_a_mid_is_not_learned_from(bad: Quote):
    d = desk()
    calm(d)
    before = d.strategy.snapshot()
    assert d.market(bad) == []
    assert d.strategy.snapshot() == before


def test_taking_over_it_acts_on_the_last_quote_at_once_but_not_on_an_old_one():
    for age_s, expected in ((1, 1), (6, 0)):
        d = desk(Role.SHADOW)
        seq = calm(d)
        list(d.strategy.on_market(d.ctx, quote(seq, 1100)) or ())  # a shadow's wish: nobody carries it out
        d.ctx.at += age_s * S
        assert len(d.role(Role.ACTIVE)) == expected


def test_blocked_it_learns_and_wishes_for_nothing():
    d = desk(Role.BLOCKED)
    seq = calm(d)
    d.market(quote(seq, 1100))
    assert d.placed == []
    assert len(d.role(Role.ACTIVE)) == 1


def test_equal_quotes_give_equal_wishes_and_equal_fingerprints():
    quotes = walk(20_000)
    a, b = desk(), desk()
    for n, q in enumerate(quotes):
        for d in (a, b):
            d.market(q, at=S + n * S // 100)
    assert a.wishes == b.wishes
    assert len(a.placed) > 50
    assert a.refused == []
    assert a.strategy.fingerprint() == b.strategy.fingerprint()
    assert a.strategy.snapshot() == b.strategy.snapshot()


def test_restored_from_a_snapshot_it_goes_on_as_if_nothing_had_been():
    quotes = walk(10_000, seed=3)
    whole = desk()
    for n, q in enumerate(quotes[:5000]):
        whole.market(q, at=S + n * S // 100)
    restored = MeanReversion(SMALL)
    restored.restore(whole.strategy.snapshot(), MeanReversion.version)
    other = Desk(restored)
    other.start(Role.ACTIVE)
    other.ctx.positions = dict(whole.ctx.positions)
    before = len(whole.wishes)
    for n, q in enumerate(quotes[5000:], 5000):
        for d in (whole, other):
            d.market(q, at=S + n * S // 100)
    assert other.wishes == whole.wishes[before:]
    assert len(other.placed) > 20
    assert restored.snapshot() == whole.strategy.snapshot()


def test_a_node_that_watched_longer_keeps_its_own_memory():
    a, b = desk(), desk()
    calm(a, 50)
    calm(b, 100)
    own = b.strategy.snapshot()
    b.strategy.restore(a.strategy.snapshot(), MeanReversion.version)
    b.strategy.restore(b"?", MeanReversion.version + 1)
    assert b.strategy.snapshot() == own


def test_a_node_that_started_later_agrees_after_a_while():
    quotes = walk(20_000)
    early, late = desk(window=500), desk(window=500)
    for n, q in enumerate(quotes):
        for d in (early, late) if n >= 5000 else (early,):
            d.market(q, at=S + n * S // 100)
    assert early.strategy.fingerprint() == late.strategy.fingerprint()


def test_names_that_another_leader_used_are_not_used_again():
    d = desk(Role.SHADOW)
    seq = calm(d)
    d.market(quote(seq, 1100))  # as carried out by the leader, and replicated
    used = d.placed[0].decision_id
    for order in d.ctx.orders.values():
        assert order.state is OrderState.CLOSED
    d.ctx.positions.clear()
    d.ctx.at += 2 * S
    d.role(Role.ACTIVE)
    assert d.placed[1].decision_id == f"{used}.1"
    assert d.refused == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qty_lots", 0),
        ("window", 1),
        ("warmup", 0),
        ("entry_z", 0),
        ("entry_z", -1),
        ("entry_z", 1.23456),
        ("entry_z", "two"),
        ("entry_z", True),
        ("order", "limit"),
        ("slippage_ticks", -1),
        ("cooldown_s", -0.5),
        ("max_quote_age_s", 0),
        ("z", 2),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(key: str, value: Any):
    with pytest.raises(ValueError, match=key) as error:
        MeanReversion({key: value})
    assert str(value) in str(error.value)
