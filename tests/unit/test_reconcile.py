"""Book against venue: what is movement, what is a mismatch, what settles a doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from node.reconcile import Findings, Reconciler, VenueSnapshot
from node.types import Accepted, ClientOrderId, NotSent, OrderStatus, Side, Unknown, VenueFill, VenueOrder
from tests.support.desk import SYMBOL, UNIX, Rig, buy

STRANGER = ClientOrderId("manual-1")


@pytest.fixture
def rig() -> Rig:
    return Rig()


class Desk:
    """A reconciler beside a rig, and snapshots in the fewest words."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.reconciler = Reconciler(rig.book)

    def look(
        self,
        orders: Sequence[VenueOrder] = (),
        fills: Sequence[VenueFill] = (),
        positions: Mapping[str, int] | None = None,
    ) -> Findings:
        return self.reconciler.compare(VenueSnapshot(orders, fills, positions or {}))

    def order(self, coid: ClientOrderId, filled: int = 0) -> VenueOrder:
        return VenueOrder(coid, "v1", buy(), OrderStatus.OPEN, filled)

    def fill(self, coid: ClientOrderId, lots: int, trade: str = "t1") -> VenueFill:
        return VenueFill(trade, coid, SYMBOL, Side.BUY, lots, 1000, UNIX, 1)


@pytest.fixture
def desk(rig: Rig) -> Desk:
    return Desk(rig)


def opened(rig: Rig) -> ClientOrderId:
    flight = rig.sent(buy(10))
    rig.answer(flight, Accepted("v1"))
    return flight.client_order_id


def test_empty_book_and_empty_venue_agree(desk: Desk) -> None:
    assert desk.look() == Findings()


def test_book_and_venue_that_agree_say_nothing(rig: Rig, desk: Desk) -> None:
    coid = opened(rig)
    rig.fills(coid, 4)
    rig.settle_down()
    for _ in range(2):
        assert desk.look([desk.order(coid, 4)], [desk.fill(coid, 4)], {SYMBOL: 4}) == Findings()


def test_open_order_that_the_venue_does_not_list_is_looked_up_and_named_at_the_second_look(
    rig: Rig, desk: Desk
) -> None:
    coid = opened(rig)
    order = rig.book.order_by_id(coid)
    assert order is not None
    first = desk.look()
    assert (first.look_up, first.mismatches) == ([(order.index, coid)], ()), "it may have closed this very moment"
    second = desk.look()
    assert second.look_up == [(order.index, coid)]
    assert second.mismatches == (f"order {coid} is open in the book and not at the venue",)


def test_difference_that_is_gone_at_the_second_look_was_movement(rig: Rig, desk: Desk) -> None:
    coid = opened(rig)
    desk.look()
    assert desk.look([desk.order(coid)]) == Findings()
    assert desk.look().mismatches == (), "and a new one starts from the beginning"


def test_pending_order_that_the_venue_does_not_have_is_no_difference(rig: Rig, desk: Desk) -> None:
    rig.sent()
    for _ in range(2):
        assert desk.look() == Findings()


def test_unknown_order_among_the_open_ones_is_placed(rig: Rig, desk: Desk) -> None:
    flight = rig.sent()
    rig.answer(flight, Unknown("timeout", UNIX))
    seen = desk.order(flight.client_order_id)
    assert desk.look([seen]) == Findings(placed=[seen])
    assert desk.look() == Findings(), "and one that is not among them proves nothing"


def test_order_of_unknown_origin_is_named_at_the_second_look(desk: Desk) -> None:
    assert desk.look([desk.order(STRANGER)]).mismatches == ()
    said = f"order {STRANGER} is open at the venue and unknown to the journal"
    assert desk.look([desk.order(STRANGER)]).mismatches == (said,)


def test_order_that_lives_at_the_venue_although_the_book_closed_it_is_named(rig: Rig, desk: Desk) -> None:
    """What a double order would look like."""
    flight = rig.sent()
    rig.answer(flight, NotSent("permit_ended", ""))
    seen = desk.order(flight.client_order_id)
    assert desk.look([seen]).mismatches == ()
    (said,) = desk.look([seen]).mismatches
    assert said == f"order {flight.client_order_id} is open at the venue and closed in the book (NOT_SENT)"


def test_fills_that_the_book_lacks_are_handed_on_and_explain_the_position(rig: Rig, desk: Desk) -> None:
    coid = opened(rig)
    fill = desk.fill(coid, 4)
    for _ in range(2):
        assert desk.look([desk.order(coid, 4)], [fill], {SYMBOL: 4}) == Findings(fills=[fill])


def test_fills_that_the_book_has_are_not_handed_on(rig: Rig, desk: Desk) -> None:
    coid = opened(rig)
    rig.fills(coid, 4, "t1")
    rig.settle_down()
    assert desk.look([desk.order(coid, 4)], [desk.fill(coid, 4, "t1")], {SYMBOL: 4}) == Findings()


def test_order_with_fewer_fills_at_the_venue_than_in_the_book_is_named(rig: Rig, desk: Desk) -> None:
    coid = opened(rig)
    rig.fills(coid, 4)
    rig.settle_down()
    desk.look([desk.order(coid, 1)], (), {SYMBOL: 4})
    assert desk.look([desk.order(coid, 1)], (), {SYMBOL: 4}).mismatches == (
        f"order {coid}: 4 lots filled in the book, 1 at the venue",
    )


@pytest.mark.parametrize(("theirs", "said"), [({SYMBOL: 3}, 3), ({}, 0), ({SYMBOL: -4}, -4)])
def test_position_that_stands_apart_twice_is_a_mismatch(
    rig: Rig, desk: Desk, theirs: dict[str, int], said: int
) -> None:
    coid = opened(rig)
    rig.fills(coid, 4)
    rig.settle_down()
    assert desk.look([desk.order(coid, 4)], (), theirs).mismatches == ()
    assert desk.look([desk.order(coid, 4)], (), theirs).mismatches == (
        f"position {SYMBOL}: 4 lots by the journal's fills, {said} at the venue",
    )


def test_position_that_moves_between_two_looks_is_not_yet_a_mismatch(desk: Desk) -> None:
    assert desk.look((), (), {SYMBOL: 3}).mismatches == ()
    assert desk.look((), (), {SYMBOL: 5}).mismatches == (), "another difference is a new suspicion"
    assert len(desk.look((), (), {SYMBOL: 5}).mismatches) == 1


def test_position_of_zero_and_none_at_all_are_the_same(desk: Desk) -> None:
    for _ in range(2):
        assert desk.look((), (), {SYMBOL: 0}).mismatches == ()


def test_mismatch_stands_for_as_long_as_its_cause(desk: Desk) -> None:
    desk.look((), (), {SYMBOL: 3})
    for _ in range(3):
        assert len(desk.look((), (), {SYMBOL: 3}).mismatches) == 1
    assert desk.look().mismatches == ()
