"""Same quotes and same book, same wishes; always two sides, never more than allowed, and at once on taking over."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from node.feeds.base import MarketEvent
from node.feeds.binance import STREAM_KINDS, Decoder
from node.feeds.capture import read_capture
from node.feeds.replay import default_capture
from node.feeds.synthetic import SyntheticConfig, SyntheticSource
from node.strategies.market_maker import MarketMaker
from node.strategy import Cancel, OrderState, OrderView, Place, Role
from node.types import ClientOrderId, DecisionId, OrderSpec, Side
from tests.support.strategy_context import BTCUSDT, Desk, quote, trade

S = 10**9
SMALL = {"qty_lots": 10, "half_spread_ticks": 10, "requote_ticks": 5, "refresh_s": 0, "skew_ticks": 2}


def desk(role: Role | None = Role.ACTIVE, **config: Any) -> Desk:
    d = Desk(MarketMaker(SMALL | config))
    d.start(role)
    return d


def prices(d: Desk) -> dict[Side, int | None]:
    return {o.spec.side: o.spec.price_ticks for o in d.open()}


def market(n: int, seed: int = 1) -> list[MarketEvent]:
    """n events of the synthetic market, as the feed tells them."""
    decoder = Decoder([BTCUSDT], STREAM_KINDS, S, 10 * S)
    played = SyntheticSource(SyntheticConfig(seed=seed)).play(lambda when: 1_700_000_000_000 + when // 10**6)
    events = (decoder.decode(text, S + when) for when, _, text in itertools.islice(played, n))
    return [e for e in events if e is not None]


def test_it_quotes_both_sides_post_only_around_the_mid():
    d = desk()
    wishes = d.market(quote(7, 1000, 1002))
    assert [type(w) for w in wishes] == [Place, Place]
    assert prices(d) == {Side.BUY: 991, Side.SELL: 1011}
    assert all(p.spec.post_only and p.spec.qty_lots == 10 for p in d.placed)
    assert [p.decision_id for p in d.placed] == ["mm:B:7", "mm:S:7"]


def test_an_order_stays_while_its_place_is_near_and_moves_when_it_is_not():
    d = desk()
    d.market(quote(1, 1000, 1002))
    assert d.market(quote(2, 1005, 1007)) == []
    wishes = d.market(quote(3, 1006, 1008))
    assert [type(w) for w in wishes] == [Cancel, Place, Cancel, Place]
    assert prices(d) == {Side.BUY: 997, Side.SELL: 1017}


def test_it_never_wishes_for_a_price_that_would_take():
    d = desk(half_spread_ticks=1)
    d.market(quote(1, 1000, 1100))
    assert prices(d) == {Side.BUY: 1049, Side.SELL: 1051}
    d = desk(skew_ticks=50)
    d.ctx.positions["BTCUSDT"] = -20
    d.market(quote(1, 1000, 1002))
    assert prices(d)[Side.BUY] == 1001
    d = desk(skew_ticks=50)
    d.ctx.positions["BTCUSDT"] = 20
    d.market(quote(1, 1000, 1002))
    assert prices(d)[Side.SELL] == 1001


def test_a_fill_moves_both_quotes_against_the_inventory_and_is_replaced_at_once():
    d = desk(requote_ticks=1)
    d.market(quote(1, 1000, 1002))
    d.market(trade(1, 990))
    assert d.ctx.positions["BTCUSDT"] == 10
    assert prices(d) == {Side.BUY: 989, Side.SELL: 1009}
    assert [p.decision_id for p in d.placed] == ["mm:B:1", "mm:S:1", "mm:B:1.1", "mm:S:1.1"]
    assert d.refused == []


def test_inventory_is_bounded_with_everything_that_rests_counted_as_filled():
    d = desk(max_inventory_lots=25)
    for n in range(1, 40):
        d.market(quote(n, 1000 - n, 1001 - n))
        d.market(trade(n, 500))  # sweeps every bid
        resting = sum(o.spec.qty_lots for o in d.open(Side.BUY))
        assert d.ctx.position("BTCUSDT") + resting <= 25
    assert d.ctx.position("BTCUSDT") == 20
    assert d.open(Side.BUY) == []
    assert d.open(Side.SELL) != []


@pytest.mark.parametrize("bad", [quote(2, 0, 1001), quote(2, 1002, 1001), quote(2, 1001, 1001)])
def test_without_a_mid_it_wishes_for_nothing(bad: Any):
    d = desk()
    assert d.market(bad) == []


def test_orders_go_when_quotes_stop_coming_and_come_back_with_them():
    d = desk(max_quote_age_s=2)
    d.market(quote(1, 1000), at=10 * S)
    d.run_timers(12 * S - 1)
    assert len(d.open()) == 2
    d.run_timers(14 * S)
    assert d.open() == []
    assert {c.reason for c in d.cancels} == {"no usable quote"}
    d.market(trade(1, 1000), at=15 * S)
    assert d.open() == []
    d.market(quote(2, 1000), at=15 * S)
    assert len(d.open()) == 2


def test_once_a_refresh_period_orders_are_placed_anew_wherever_they_stand():
    d = desk(refresh_s=1)
    d.market(trade(1, 1000, at_ms=5_000))
    d.market(quote(1, 1000))
    assert d.market(quote(2, 1000)) == []
    d.market(trade(2, 1000, at_ms=5_999))
    assert d.market(quote(3, 1000)) == []
    d.market(trade(3, 1000, at_ms=6_000))
    d.market(trade(4, 1000, at_ms=5_999))  # of another stream, a little behind
    assert len(d.market(quote(4, 1000))) == 4
    assert d.market(quote(5, 1000)) == []


def test_an_order_that_is_not_answered_keeps_its_place_and_is_not_doubled():
    d = desk()
    d.accepts = False
    for n in range(1, 50):
        d.market(quote(n, 1000 + 10 * n), at=S + n * S // 10)
    assert len(d.placed) == 2
    assert d.cancels == []


def test_a_wish_that_shows_up_nowhere_is_repeated_after_a_second_and_not_before():
    """As on a standby: what it wishes for is not carried out there."""
    mm = MarketMaker(SMALL)
    d = Desk(mm)
    d.start(Role.SHADOW)
    wished = []
    for n in range(1, 31):
        d.ctx.at = S + n * S // 10
        wished += [(n, w) for w in mm.on_market(d.ctx, quote(n, 1000)) or ()]
    assert [n for n, _ in wished] == [1, 1, 11, 11, 21, 21]


def test_a_venue_that_does_not_keep_an_order_is_not_asked_with_every_quote():
    d = desk()
    d.market(quote(1, 1000))
    buy = d.open(Side.BUY)[0]
    d.close(buy.client_order_id, "would take")
    for n in range(2, 25):
        d.market(quote(n, 1000), at=S + n * S // 100)
    assert d.open(Side.BUY) == []
    d.market(quote(25, 1000), at=S + 25 * S // 100)
    assert len(d.open(Side.BUY)) == 1


def test_slow_cancels_do_not_pile_up_orders():
    d = desk(orders_max=3)
    mm = d.strategy
    for n in range(1, 20):
        d.ctx.at += S
        for wish in mm.on_market(d.ctx, quote(n, 1000 + 10 * n)) or ():
            if isinstance(wish, Place):
                d._place(wish)  # cancels are wished for, and not carried out
    assert len(d.open(Side.BUY)) == len(d.open(Side.SELL)) == 3


def test_an_unanswered_cancel_is_repeated_after_a_second_and_not_before():
    d = desk()
    d.market(quote(1, 1000))
    cancels = []
    for n in range(2, 32):
        d.ctx.at = S + n * S // 10
        wishes = list(d.strategy.on_market(d.ctx, quote(n, 2000)) or ())
        cancels += [(n, w.client_order_id) for w in wishes if isinstance(w, Cancel)]
    assert [n for n, _ in cancels] == [2, 2, 12, 12, 22, 22]


# -- roles --


def test_on_taking_over_fresh_orders_leave_at_once_and_then_the_old_ones_go():
    d = desk(Role.SHADOW)
    list(d.strategy.on_market(d.ctx, quote(7, 1000, 1002)) or ())
    old = OrderView(
        ClientOrderId("old"), DecisionId("mm:B:8"), OrderSpec("BTCUSDT", Side.BUY, 10, 991), OrderState.OPEN, 0, False
    )
    foreign = replace(old, client_order_id=ClientOrderId("x"), decision_id=DecisionId("other:7"))
    d.ctx.orders = {o.client_order_id: o for o in (old, foreign)}
    wishes = d.role(Role.ACTIVE)
    assert [type(w) for w in wishes] == [Place, Place, Cancel]
    assert [p.decision_id for p in d.placed] == ["mm:B:8.1", "mm:S:7.1"]
    assert d.cancels[0].client_order_id == "old"


def test_taking_over_behind_the_old_leaders_feed_takes_none_of_its_names():
    d = desk(Role.SHADOW)
    list(d.strategy.on_market(d.ctx, quote(7, 1000, 1002)) or ())
    for letter, side in (("B", Side.BUY), ("S", Side.SELL)):
        spec = OrderSpec("BTCUSDT", side, 10, 991 if side is Side.BUY else 1011)
        closed = OrderView(ClientOrderId(letter), DecisionId(f"mm:{letter}:9.2"), spec, OrderState.CLOSED, 0, True)
        d.tell(closed)
    d.role(Role.ACTIVE)
    assert [p.decision_id for p in d.placed] == ["mm:B:9.3", "mm:S:9.3"]
    d.market(quote(8, 1100))
    d.market(quote(10, 1200))
    assert [p.decision_id for p in d.placed][2:] == ["mm:B:9.4", "mm:S:9.4", "mm:B:10", "mm:S:10"]


def test_taking_over_without_a_quote_waits_for_the_first():
    d = desk()
    assert d.placed == []
    d.market(quote(1, 1000))
    assert len(d.placed) == 2


def test_blocked_it_cancels_and_wishes_for_nothing_until_active_again():
    d = desk()
    d.market(quote(1, 1000))
    d.role(Role.BLOCKED)
    assert d.open() == []
    assert d.market(quote(2, 2000)) == []
    assert len(d.role(Role.ACTIVE)) == 2
    assert d.role(Role.ACTIVE) == [], "told twice, it does not order twice"


def test_other_instruments_are_none_of_its_business():
    d = desk()
    assert d.market(quote(1, 1000, symbol="ETHUSDT")) == []
    d.strategy.on_role(d.ctx, Role.ACTIVE, "")
    assert d.placed == []


# -- determinism --


def run(d: Desk, events: list[MarketEvent], start: int = 0) -> Desk:
    for i, event in enumerate(events, start):
        d.market(event, at=S + i * S // 100)
    return d


def test_equal_events_give_equal_wishes():
    events = market(3000)
    a, b = (run(desk(**{"half_spread_ticks": 100, "refresh_s": 1}), events) for _ in range(2))
    assert a.wishes == b.wishes
    assert len(a.placed) > 50
    assert a.refused == []
    assert a.strategy.fingerprint() == b.strategy.fingerprint()


def test_a_standby_that_started_later_wishes_the_same_as_the_leader():
    """Both see the same market and, replicated, the same book; only the leader's wishes are carried out."""
    events = market(4000)
    leader = desk(refresh_s=1)
    shadow = MarketMaker(SMALL | {"refresh_s": 1})
    agreed, differed = 0, []
    for i, event in enumerate(events):
        leader.run_timers(S + i * S // 100)
        if i == 1000:
            shadow.on_start(leader.ctx)
        wished = list(shadow.on_market(leader.ctx, event) or ()) if i >= 1000 else []
        known = len(leader.ctx.orders)
        carried_out = leader.market(event)
        if i < 1000:
            continue
        for order in list(leader.ctx.orders.values())[known:]:  # replicated
            list(shadow.on_order(leader.ctx, order) or ())
        agreed += bool(wished) and wished == carried_out
        if wished != carried_out:
            differed.append(i)
    assert agreed > 100
    assert all(i < 1200 for i in differed), "only until the first refresh period has come round"


def test_restored_from_a_snapshot_it_goes_on_as_if_nothing_had_been():
    events = market(3000)
    whole = run(desk(refresh_s=1), events[:2000])
    snapshot = whole.strategy.snapshot()
    assert len(snapshot) < 1000
    restored = MarketMaker(SMALL | {"refresh_s": 1})
    restored.restore(snapshot, MarketMaker.version)
    assert restored.snapshot() == snapshot
    ctx = replace(whole.ctx, orders=dict(whole.ctx.orders), positions=dict(whole.ctx.positions), timers={})
    other = Desk(restored, ctx)
    other._decided, other._n = set(whole._decided), whole._n
    other.start()
    restored._role = Role.ACTIVE  # told ACTIVE it would place anew, which is another test
    before = len(whole.wishes)
    run(whole, events[2000:], 2000)
    run(other, events[2000:], 2000)
    assert other.wishes == whole.wishes[before:]
    assert len(other.placed) > 20


def test_a_snapshot_never_takes_a_name_back():
    old = MarketMaker(SMALL).snapshot()
    d = desk()
    d.market(quote(7, 1000))
    d.strategy.restore(old, MarketMaker.version)
    d.strategy.restore(b"from another format", MarketMaker.version + 1)
    d.market(quote(7, 2000))
    assert d.refused == []
    assert d.placed[-1].decision_id == "mm:S:7.1"


def test_the_fingerprint_is_that_of_the_configuration():
    assert MarketMaker({}).fingerprint() == MarketMaker({"qty_lots": 100}).fingerprint()
    assert MarketMaker({}).fingerprint() != MarketMaker({"qty_lots": 99}).fingerprint()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qty_lots", 0),
        ("qty_lots", 1.5),
        ("qty_lots", True),
        ("qty_lots", "10"),
        ("half_spread_ticks", 0),
        ("requote_ticks", 0),
        ("refresh_s", -1),
        ("refresh_s", "soon"),
        ("refresh_s", float("nan")),
        ("skew_ticks", -1),
        ("max_inventory_lots", 5),
        ("orders_max", 0),
        ("max_quote_age_s", 0),
        ("symbol", "btcusdt"),
        ("symbol", 7),
        ("spread", 3),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(key: str, value: Any):
    with pytest.raises(ValueError, match=key) as error:
        MarketMaker({"qty_lots": 10, key: value})
    assert str(value) in str(error.value)


# -- the pace that demos and drills rely on --


def rate(events: list[tuple[int, MarketEvent]]) -> tuple[float, float]:
    """Orders per second, and the longest pause between two, with the default configuration."""
    d = Desk(MarketMaker({}))
    d.start(Role.ACTIVE)
    times = []
    for at, event in events:
        if any(isinstance(w, Place) for w in d.market(event, at=at)):
            times.append(at)
        d.ctx.orders = {k: o for k, o in d.ctx.orders.items() if o.state is not OrderState.CLOSED}
    assert d.refused == []
    pause = max(b - a for a, b in itertools.pairwise(times))
    return len(d.placed) / ((events[-1][0] - events[0][0]) / S), pause / S


@pytest.mark.skipif(default_capture() is None, reason="the recording is not beside this checkout")
def test_on_the_recorded_market_it_orders_several_times_a_second():
    capture = read_capture(default_capture())  # type: ignore[arg-type]
    decoder = Decoder([BTCUSDT], STREAM_KINDS, S, 10 * S)
    pairs = zip(capture.at_ns, capture.raw, strict=True)
    start = capture.at_ns[0] - S
    per_s, pause_s = rate([(at - start, e) for at, raw in pairs if (e := decoder.decode(raw, at)) is not None])
    assert 3 <= per_s <= 15
    assert pause_s < 3


def test_on_the_synthetic_market_it_orders_several_times_a_second():
    rng = random.Random(1)
    at, events = S, []
    for event in market(10_000):
        at += int(rng.expovariate(100) * S)
        events.append((at, event))
    per_s, pause_s = rate(events)
    assert per_s >= 3
    assert pause_s < 3
