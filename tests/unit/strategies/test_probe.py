"""The probe shows, order by order, since when a leader can trade; silent in shadow, and never with a used name."""

from typing import Any

import pytest

from node.strategies.probe import Probe
from node.strategy import Cancel, OrderState, OrderView, Place, Role
from node.types import ClientOrderId, DecisionId, OrderSpec, Side
from tests.support.strategy_context import Desk, quote

S = 10**9


def desk(role: Role | None = None, **config: Any) -> Desk:
    d = Desk(Probe({"interval_s": 0.1} | config))
    d.start(role)
    return d


def test_active_it_places_at_once_and_then_at_every_interval_and_cancels_each():
    d = desk()
    d.market(quote(7, 1000))
    assert d.wishes == []
    wishes = d.role(Role.ACTIVE)
    assert isinstance(wishes[0], Place)
    assert d.open() == []
    d.run_timers(2 * S)
    assert len(d.placed) == 11
    assert len(d.cancels) == 11
    assert [p.decision_id for p in d.placed][:3] == ["probe:7", "probe:7.1", "probe:7.2"]
    assert d.refused == []


@pytest.mark.parametrize(("side", "price"), [("buy", 900), ("sell", 1210)])
def test_its_orders_are_far_from_the_market_and_cannot_take(side: str, price: int):
    d = desk(side=side)
    d.market(quote(7, 1000, 1100))
    d.role(Role.ACTIVE)
    assert d.placed[0].spec.price_ticks == price
    assert d.placed[0].spec.post_only


def test_without_a_quote_the_first_one_brings_the_first_order():
    d = desk(Role.ACTIVE)
    assert d.placed == []
    d.market(quote(7, 1000))
    assert len(d.placed) == 1
    d.market(quote(8, 1000))
    assert len(d.placed) == 1


@pytest.mark.parametrize("role", [Role.SHADOW, Role.BLOCKED])
def test_not_active_it_is_silent(role: Role):
    d = desk(Role.ACTIVE)
    d.market(quote(7, 1000))
    before = len(d.wishes)
    d.role(role)
    d.run_timers(5 * S)
    d.market(quote(8, 1000))
    assert len(d.wishes) == before


def test_a_new_leader_takes_no_name_of_the_old_one_and_cancels_what_it_left():
    d = desk(Role.SHADOW)
    d.market(quote(7, 1000))
    spec = OrderSpec("BTCUSDT", Side.BUY, 100, 900)
    old = OrderView(ClientOrderId("old"), DecisionId("probe:9.4"), spec, OrderState.OPEN, 0, False)
    d.tell(old)
    assert d.wishes == []
    wishes = d.role(Role.ACTIVE)
    assert isinstance(wishes[0], Place), "the first order comes first"
    assert wishes[0].decision_id == "probe:9.5"
    assert Cancel(ClientOrderId("old"), "probe") in wishes


def test_it_pauses_while_too_many_are_open_and_asks_again_for_their_cancel():
    d = desk(orders_max=3)
    d.accepts = False
    d.market(quote(7, 1000))
    d.role(Role.ACTIVE)
    d.run_timers(2 * S)
    assert len(d.placed) == 3
    for order in d.open():
        d.accept(order.client_order_id)
    assert d.open() == []
    d.accepts = True
    d.run_timers(3 * S)
    assert len(d.placed) == 13


def test_a_snapshot_carries_the_names():
    d = desk(Role.ACTIVE)
    d.market(quote(7, 1000))
    d.run_timers(2 * S)
    other = Probe({"interval_s": 0.1})
    other.restore(d.strategy.snapshot(), Probe.version)
    assert other.snapshot() == d.strategy.snapshot()
    fresh = Desk(other)
    fresh.start()
    fresh.market(quote(7, 1000))
    fresh.role(Role.ACTIVE)
    assert fresh.placed[0].decision_id not in d._decided
    assert other.fingerprint() == d.strategy.fingerprint()


def test_equal_events_give_equal_wishes():
    def run() -> Desk:
        d = desk(Role.ACTIVE)
        for n in range(1, 200):
            d.market(quote(n, 1000 + n % 9), at=S + n * S // 50)
        return d

    a, b = run(), run()
    assert a.wishes == b.wishes
    assert len(a.placed) > 30
    assert a.refused == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interval_s", 0),
        ("side", "long"),
        ("distance_percent", 51),
        ("distance_percent", 0),
        ("qty_lots", -1),
        ("x", 1),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(key: str, value: Any):
    with pytest.raises(ValueError, match=key) as error:
        Probe({key: value})
    assert str(value) in str(error.value)
