"""What every venue adapter must do, whatever it talks to. Subclass, say how to `open` one, and run.

A `Rig` is a venue under test with the levers that a test needs: the market, time, and faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, Protocol

import pytest

from cluster.core.errors import StaleTerm, Unreachable
from node.feeds.base import MarketEvent
from node.types import (
    Accepted,
    ClientOrderId,
    NotSent,
    OrderSpec,
    OrderStatus,
    Refused,
    Side,
    StreamDown,
    StreamUp,
    Unknown,
    VenueEvent,
    VenueFill,
    VenueOrderEvent,
)
from node.venues.base import Absent, DeadmanScope, DoubleOrderClass, Found, IdUniqueness, Unavailable, Venue
from tests.support.paper import SYMBOL, ioc, limit, market, next_event, next_events, order, quote, trade

PROFILES = ("token", "expiry", "plain", "token+while-open", "token+no-deadman", "plain+while-open+no-deadman")


class Rig(Protocol):
    venue: Venue  # account "main", node "n1", connected

    async def another(self, node: str) -> Venue:
        """A second adapter of the same account, connected."""

    async def market(self, event: MarketEvent) -> None:
        """Returns once the venue has dealt with it."""

    async def pass_time(self, seconds: float) -> None: ...

    def lines(self) -> list[dict[str, Any]]:
        """The venue's record."""

    def venue_now_ns(self) -> int: ...

    async def break_connection(self) -> None:
        """Returns once the adapter has noticed."""

    async def heal_connection(self) -> None:
        """Returns once the adapter is connected again."""


class VenueContract:
    def open(self, profile: str, directory: Path, *, lose_replies: bool = False) -> AbstractAsyncContextManager[Rig]:
        """lose_replies: new orders are taken and never answered."""
        raise NotImplementedError

    @pytest.fixture(params=PROFILES)
    async def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
        async with self.open(request.param, tmp_path) as rig:
            await rig.market(quote(bid=990, ask=1000))
            yield rig

    @pytest.fixture
    async def token_rig(self, tmp_path: Path) -> AsyncIterator[Rig]:
        async with self.open("token", tmp_path) as rig:
            await rig.market(quote(bid=990, ask=1000))
            yield rig

    # -- placing ----------------------------------------------------------------------------------------------

    async def test_order_below_the_market_rests_and_is_told_everywhere(self, rig: Rig) -> None:
        spec = limit(Side.BUY, 7, 980)
        result = await place(rig.venue, "a1", spec)
        assert isinstance(result, Accepted)
        (opened,) = await rig.venue.open_orders()
        assert (opened.client_order_id, opened.spec, opened.status, opened.filled_lots) == (
            "a1",
            spec,
            OrderStatus.OPEN,
            0,
        )
        assert await rig.venue.lookup(ClientOrderId("a1")) == Found(opened)
        (event,) = await next_events(rig.venue, 0, 1)
        assert isinstance(event, VenueOrderEvent)
        assert event.order == opened and event.event_seq == 1
        (line,) = of(rig, "new")
        assert line["venue_order_id"] == opened.venue_order_id == result.venue_order_id
        assert line["outcome"] == "accepted" and line["node"] == "n1" and line["decision_id"] == "decision-a1"
        assert (line["symbol"], line["side"], line["qty"], line["price"]) == (SYMBOL, "buy", "0.00007", "9.80")

    async def test_market_order_takes_the_touch_and_its_rest_expires(self, rig: Rig) -> None:
        assert isinstance(await place(rig.venue, "a1", market(Side.BUY, 150)), Accepted)
        opened, fill, closed = await next_events(rig.venue, 0, 3)
        assert isinstance(opened, VenueOrderEvent) and opened.order.status is OrderStatus.OPEN
        assert isinstance(fill, VenueFill) and (fill.qty_lots, fill.price_ticks) == (100, 1000)
        assert isinstance(closed, VenueOrderEvent)
        assert (closed.order.status, closed.order.filled_lots, closed.reason) == (
            OrderStatus.EXPIRED,
            100,
            "no_liquidity",
        )
        assert await rig.venue.positions() == {SYMBOL: 100}
        assert await rig.venue.lookup(ClientOrderId("a1")) == Found(closed.order)

    async def test_ioc_out_of_reach_expires_unfilled(self, rig: Rig) -> None:
        assert isinstance(await place(rig.venue, "a1", ioc(Side.SELL, 5, 995)), Accepted)
        _, closed = await next_events(rig.venue, 0, 2)
        assert isinstance(closed, VenueOrderEvent)
        assert (closed.order.status, closed.order.filled_lots) == (OrderStatus.EXPIRED, 0)
        assert await rig.venue.open_orders() == []

    async def test_liquidity_taken_is_not_offered_twice_until_the_display_changes(self, rig: Rig) -> None:
        await place(rig.venue, "a1", ioc(Side.BUY, 80, 1000))
        await place(rig.venue, "a2", ioc(Side.BUY, 80, 1000))
        await rig.market(quote(bid=990, ask=1000, seq=2))  # the same display: nothing new on offer
        await place(rig.venue, "a3", ioc(Side.BUY, 80, 1000))
        await rig.market(quote(bid=990, ask=1000, ask_lots=60, seq=3))
        await place(rig.venue, "a4", ioc(Side.BUY, 80, 1000))
        assert [(f.client_order_id, f.qty_lots) for f in await rig.venue.fills_after(0)] == [
            ("a1", 80),
            ("a2", 20),
            ("a4", 60),
        ]

    async def test_resting_order_fills_in_parts_by_trades_and_quotes(self, rig: Rig) -> None:
        await place(rig.venue, "a1", limit(Side.BUY, 100, 980))
        await rig.market(trade(980, 30))  # at the price: up to the traded quantity
        await rig.market(trade(981, 500, seq=2))  # above: not for us
        await rig.market(quote(bid=970, ask=975, ask_lots=20, seq=2))  # the ask came down to us
        await rig.market(trade(979, 1, seq=3))  # below: it went through us, we are done
        _, first, second, third, closed = await next_events(rig.venue, 0, 5)
        fills = [f for f in (first, second, third) if isinstance(f, VenueFill)]
        assert [(f.qty_lots, f.price_ticks) for f in fills] == [(30, 980), (20, 980), (50, 980)]
        assert isinstance(closed, VenueOrderEvent) and closed.order.status is OrderStatus.FILLED
        assert len({f.trade_id for f in fills}) == 3
        assert await rig.venue.positions() == {SYMBOL: 100}

    async def test_one_trade_is_shared_by_all_who_stand_at_its_price(self, rig: Rig) -> None:
        for coid in ("a1", "a2", "a3"):
            await place(rig.venue, coid, limit(Side.SELL, 10, 1010))
        await rig.market(trade(1010, 15))
        assert [(f.client_order_id, f.qty_lots) for f in await rig.venue.fills_after(0)] == [("a1", 10), ("a2", 5)]

    async def test_better_price_fills_first_then_the_older(self, rig: Rig) -> None:
        for coid, price in (("a1", 1010), ("a2", 1005), ("a3", 1005)):
            await place(rig.venue, coid, limit(Side.SELL, 10, price))
        await rig.market(quote(bid=1012, bid_lots=25, ask=1013, seq=2))
        assert [(f.client_order_id, f.qty_lots, f.price_ticks) for f in await rig.venue.fills_after(0)] == [
            ("a2", 10, 1005),
            ("a3", 10, 1005),
            ("a1", 5, 1010),
        ]

    async def test_post_only_is_refused_rather_than_take(self, rig: Rig) -> None:
        result = await place(rig.venue, "a1", limit(Side.BUY, 1, 1000, post_only=True))
        assert isinstance(result, Refused) and result.code == "post_only_would_take" and "1000" in result.reason
        assert isinstance(await place(rig.venue, "a1", limit(Side.BUY, 1, 999, post_only=True)), Accepted)

    async def test_invalid_orders_are_refused_naming_the_value(self, rig: Rig) -> None:
        for coid, spec, said in (
            ("a1", OrderSpec("NOPE", Side.BUY, 1, 980), "NOPE"),
            ("with space", limit(Side.BUY, 1, 980), "with space"),
            ("", limit(Side.BUY, 1, 980), "''"),
            ("x" * 37, limit(Side.BUY, 1, 980), "x" * 37),
            ("a2", limit(Side.BUY, 10**15, 980), str(10**15)),
            ("a3", limit(Side.BUY, 1, 10**13), str(10**13)),
        ):
            result = await place(rig.venue, coid, spec)
            assert isinstance(result, Refused) and result.code == "invalid_order" and said in result.reason
        lines = of(rig, "new")
        assert [n["outcome"] for n in lines] == ["refused"] * 6
        assert {n["reason"] for n in lines} == {"invalid_order"}

    async def test_number_beyond_the_wire_is_not_sent(self, rig: Rig) -> None:
        result = await place(rig.venue, "a1", limit(Side.BUY, 2**70, 980))
        assert isinstance(result, NotSent) and result.code == "invalid_order"
        assert of(rig, "new") == []

    async def test_client_order_id_is_unique_as_the_capabilities_say(self, rig: Rig) -> None:
        spec = ioc(Side.BUY, 1, 980)
        await place(rig.venue, "open", limit(Side.BUY, 1, 970))
        await place(rig.venue, "done", spec)
        again_open = await place(rig.venue, "open", spec)
        assert isinstance(again_open, Refused) and again_open.code == "duplicate_client_order_id"
        again_done = await place(rig.venue, "done", spec)
        if rig.venue.capabilities.id_uniqueness is IdUniqueness.FOREVER:
            assert isinstance(again_done, Refused) and again_done.code == "duplicate_client_order_id"
        else:
            assert isinstance(again_done, Accepted)

    async def test_an_id_that_was_refused_may_be_used(self, rig: Rig) -> None:
        assert isinstance(await place(rig.venue, "a1", limit(Side.BUY, 1, 1000, post_only=True)), Refused)
        assert isinstance(await place(rig.venue, "a1", limit(Side.BUY, 1, 980)), Accepted)

    async def test_without_market_data_nothing_is_accepted(self, tmp_path: Path) -> None:
        async with self.open("token", tmp_path) as rig:
            result = await place(rig.venue, "a1", limit(Side.BUY, 1, 980))
            assert isinstance(result, Refused) and result.code == "no_market" and SYMBOL in result.reason
            await rig.market(quote(990, 1000))
            assert isinstance(await place(rig.venue, "a1", limit(Side.BUY, 1, 980)), Accepted)

    async def test_order_whose_permit_ended_in_the_queue_is_not_sent(self, rig: Rig) -> None:
        result = await rig.venue.submit(order("a1", limit(Side.BUY, 1, 980)), lambda: False).result()
        assert isinstance(result, NotSent) and result.code == "permit_ended"
        allowed = await rig.venue.submit(order("a2", limit(Side.BUY, 1, 980)), lambda: True).result()
        assert isinstance(allowed, Accepted)
        assert [n["client_order_id"] for n in of(rig, "new")] == ["a2"]

    # -- cancelling -------------------------------------------------------------------------------------------

    async def test_cancel_closes_and_may_be_repeated(self, rig: Rig) -> None:
        await place(rig.venue, "a1", limit(Side.BUY, 5, 980))
        assert isinstance(await rig.venue.cancel(ClientOrderId("a1"), 1), Accepted)
        assert isinstance(await rig.venue.cancel(ClientOrderId("a1"), 1), Accepted)
        unknown = await rig.venue.cancel(ClientOrderId("a2"), 1)
        assert isinstance(unknown, Refused) and unknown.code == "unknown_order"
        _, closed = await next_events(rig.venue, 0, 2)
        assert isinstance(closed, VenueOrderEvent)
        assert (closed.order.status, closed.reason) == (OrderStatus.CANCELLED, "cancel")
        await rig.market(trade(900, 1000))
        assert await rig.venue.fills_after(0) == []

    async def test_cancel_all_says_how_many(self, rig: Rig) -> None:
        for i in range(3):
            await place(rig.venue, f"a{i}", limit(Side.BUY, 5, 980 - i))
        assert await rig.venue.cancel_all(1) == 3
        assert await rig.venue.cancel_all(1) == 0
        assert await rig.venue.open_orders() == []

    # -- fences -----------------------------------------------------------------------------------------------

    async def test_stale_token_is_refused_and_recorded(self, rig: Rig) -> None:
        successor = await rig.another("n2")
        await place(rig.venue, "a1", limit(Side.BUY, 1, 980), token=4)
        assert (await successor.arm(5)).high_water == 5
        late = await place(rig.venue, "a2", limit(Side.BUY, 1, 980), token=4)
        cancel = await rig.venue.cancel(ClientOrderId("a1"), 4)
        last = of(rig, "new")[-1]
        if not rig.venue.capabilities.token:
            assert isinstance(late, Accepted) and isinstance(cancel, Accepted)
            assert rig.venue.capabilities.double_order_class is not DoubleOrderClass.PROVED
            return
        assert isinstance(late, Refused) and late.code == "stale_token" and "5" in late.reason
        assert isinstance(cancel, Refused) and cancel.code == "stale_token"
        assert (last["node"], last["token"], last["outcome"], last["reason"]) == ("n1", 4, "refused", "stale_token")
        with pytest.raises(StaleTerm):
            await rig.venue.cancel_all(4)
        assert (await rig.venue.arm(4)).high_water == 5
        assert [o.client_order_id for o in await successor.open_orders()] == ["a1"]
        assert isinstance(await place(successor, "a3", limit(Side.BUY, 1, 980), token=5), Accepted)

    async def test_an_order_raises_the_high_water_by_itself(self, token_rig: Rig) -> None:
        await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980), token=7)
        assert (await token_rig.venue.arm(6)).high_water == 7

    async def test_order_without_a_token_is_refused_where_tokens_are_checked(self, rig: Rig) -> None:
        result = await place(rig.venue, "a1", limit(Side.BUY, 1, 980), token=0)
        if rig.venue.capabilities.token:
            assert isinstance(result, Refused) and result.code == "token_required"
        else:
            assert isinstance(result, Accepted)

    async def test_expired_order_is_refused_where_expiry_is_honoured(self, rig: Rig) -> None:
        now = rig.venue_now_ns()
        late = await rig.venue.submit(order("a1", limit(Side.BUY, 1, 980), expires_at_ns=now - 1_000_000)).result()
        good = await rig.venue.submit(order("a2", limit(Side.BUY, 1, 980), expires_at_ns=now + 10**10)).result()
        assert isinstance(good, Accepted)
        if rig.venue.capabilities.expiry:
            assert isinstance(late, Refused) and late.code == "expired"
            assert of(rig, "new")[0]["reason"] == "expired"
        else:
            assert isinstance(late, Accepted)
            assert rig.venue.capabilities.double_order_class is DoubleOrderClass.BEST_EFFORT

    async def test_deadman_cancels_what_rests_when_nobody_refreshes(self, rig: Rig) -> None:
        await place(rig.venue, "a1", limit(Side.BUY, 1, 980))
        await place(rig.venue, "a2", limit(Side.SELL, 1, 1020))
        await rig.venue.keep_alive(1, 0.05)
        await rig.pass_time(0.1)
        if rig.venue.capabilities.deadman is DeadmanScope.NONE:
            assert len(await rig.venue.open_orders()) == 2
            return
        *_, first, second = await next_events(rig.venue, 0, 4)
        for closed in (first, second):
            assert isinstance(closed, VenueOrderEvent)
            assert (closed.order.status, closed.reason) == (OrderStatus.EXPIRED, "deadman")
        assert len(of(rig, "deadman")) == 1
        await place(rig.venue, "a3", limit(Side.BUY, 1, 980))  # fired, and not armed any more
        await rig.pass_time(0.1)
        assert len(await rig.venue.open_orders()) == 1

    async def test_refreshed_deadman_does_not_fire_and_is_recorded_once(self, token_rig: Rig) -> None:
        await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980))
        for _ in range(4):
            await token_rig.venue.keep_alive(1, 0.4)
            await token_rig.pass_time(0.15)
        assert len(await token_rig.venue.open_orders()) == 1
        assert len(of(token_rig, "keep_alive")) == 1 and of(token_rig, "deadman") == []

    async def test_deposed_leader_cannot_refresh_the_deadman(self, token_rig: Rig) -> None:
        await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980), token=1)
        await token_rig.venue.keep_alive(1, 0.2)
        await token_rig.venue.arm(2)
        with pytest.raises(StaleTerm):
            await token_rig.venue.keep_alive(1, 3600)
        assert of(token_rig, "keep_alive")[-1]["reason"] == "stale_token"
        await token_rig.pass_time(0.3)
        _, closed = await next_events(token_rig.venue, 0, 2)
        assert isinstance(closed, VenueOrderEvent) and closed.reason == "deadman"

    async def test_old_terms_deadman_spares_the_new_terms_orders(self, token_rig: Rig) -> None:
        await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980), token=1)
        await token_rig.venue.keep_alive(1, 0.05)
        await place(token_rig.venue, "a2", limit(Side.BUY, 1, 980), token=2)
        await token_rig.pass_time(0.1)
        await next_events(token_rig.venue, 0, 3)  # two accepted, one closed
        assert [o.client_order_id for o in await token_rig.venue.open_orders()] == ["a2"]

    # -- silence ----------------------------------------------------------------------------------------------

    async def test_lost_reply_is_unknown_and_the_order_is_found(self, tmp_path: Path) -> None:
        async with self.open("token", tmp_path, lose_replies=True) as rig:
            await rig.market(quote(990, 1000))
            expires = rig.venue_now_ns() + 10**10
            wire_order = order("a1", limit(Side.BUY, 3, 980), expires_at_ns=expires)
            result = await rig.venue.submit(wire_order).result()
            assert isinstance(result, Unknown) and result.expires_at_ns == expires
            found = await rig.venue.lookup(ClientOrderId("a1"))
            assert isinstance(found, Found) and found.order.spec == wire_order.spec
            assert await rig.venue.lookup(ClientOrderId("a2")) == Absent()

    async def test_without_connection_nothing_is_sent(self, token_rig: Rig) -> None:
        await token_rig.break_connection()
        assert not token_rig.venue.connected
        result = await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980))
        assert isinstance(result, NotSent) and result.code == "venue_disconnected"
        assert isinstance(await token_rig.venue.cancel(ClientOrderId("a1"), 1), NotSent)
        assert isinstance(await token_rig.venue.lookup(ClientOrderId("a1")), Unavailable)
        with pytest.raises(Unreachable):
            await token_rig.venue.arm(1)
        await token_rig.heal_connection()
        assert token_rig.venue.connected
        assert isinstance(await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980)), (Accepted, Refused))
        assert len(of(token_rig, "new")) == 1

    # -- the private stream -----------------------------------------------------------------------------------

    async def test_stream_resumes_after_a_break_without_loss_or_repetition(self, token_rig: Rig) -> None:
        watcher = await token_rig.another("watcher")
        async with aclosing(watcher.events(0)) as events:  # type: ignore[type-var]
            assert await next_event(events) == StreamUp(1)
            await place(token_rig.venue, "a1", limit(Side.BUY, 1, 980))
            assert seq(await next_event(events)) == 1
            await place(token_rig.venue, "a2", limit(Side.BUY, 1, 980))  # not read yet when the line breaks
            await token_rig.break_connection()
            got: list[int] = []
            healed = False
            while len(got) < 1:
                event = await next_event(events)
                if isinstance(event, StreamDown) and not healed:
                    healed = True
                    await token_rig.heal_connection()
                elif isinstance(event, (VenueFill, VenueOrderEvent)):
                    got.append(seq(event))
            assert got == [2]

    async def test_two_readers_see_the_same_from_where_they_start(self, rig: Rig) -> None:
        other = await rig.another("n2")
        for i in range(5):
            await place(rig.venue, f"a{i}", ioc(Side.BUY, 1, 1000))
        mine, theirs = await next_events(rig.venue, 0, 15), await next_events(other, 4, 11)
        assert [seq(e) for e in mine] == list(range(1, 16))
        assert theirs == mine[4:]

    async def test_fills_come_in_pages(self, rig: Rig) -> None:
        for i in range(5):
            await place(rig.venue, f"a{i}", ioc(Side.BUY, 2, 1000))
        first = await rig.venue.fills_after(0, limit=3)
        rest = await rig.venue.fills_after(first[-1].event_seq)
        assert [f.client_order_id for f in first + rest] == [f"a{i}" for i in range(5)]
        assert await rig.venue.positions() == {SYMBOL: sum(f.qty_lots for f in first + rest)}

    async def test_server_time_is_between_asking_and_hearing(self, rig: Rig) -> None:
        before = rig.venue_now_ns()
        sample = await rig.venue.server_time()
        assert sample.sent_at <= sample.received_at
        assert before <= sample.venue_unix_ns <= rig.venue_now_ns()

    async def test_many_at_once_are_all_answered_in_the_order_they_were_sent(self, rig: Rig) -> None:
        tickets = [rig.venue.submit(order(f"a{i}", ioc(Side.BUY, 1, 985))) for i in range(300)]
        results = await asyncio.gather(*(t.result() for t in tickets))
        assert all(isinstance(r, Accepted) for r in results)
        assert [n["client_order_id"] for n in of(rig, "new")] == [f"a{i}" for i in range(300)]
        assert [n["venue_seq"] for n in rig.lines()] == list(range(1, len(rig.lines()) + 1))


def of(rig: Rig, kind: str) -> list[dict[str, Any]]:
    return [line for line in rig.lines() if line["kind"] == kind]


async def place(venue: Venue, coid: str, spec: OrderSpec, token: int = 1) -> Any:
    return await venue.submit(order(coid, spec, token)).result()


def seq(event: VenueEvent) -> int:
    assert isinstance(event, (VenueFill, VenueOrderEvent))
    return event.event_seq
