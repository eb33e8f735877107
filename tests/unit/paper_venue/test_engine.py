"""The engine over random histories, and the few rules that the venue contract cannot reach from outside."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.core.errors import InvariantViolation
from cluster.core.ids import NS_PER_S
from node.feeds.base import DepthUpdate
from node.paper_venue.engine import Engine, Limits
from node.paper_venue.lines import SURFACE, Line, from_json, surface, to_json
from node.paper_venue.profile import Profile, parse_profile
from node.paper_venue.state import Ask, Moment, Sender
from node.types import OrderType, Side, TimeInForce
from tests.support.paper import INSTRUMENTS, SYMBOL, quote, trade

A = Sender("main", "n1", "s1")
B = Sender("main", "n2", "s2")
NOW = Moment(10 * NS_PER_S, 1_000 * NS_PER_S)


def later(seconds: float) -> Moment:
    return Moment(NOW.instant + round(seconds * NS_PER_S), NOW.unix_ns + round(seconds * NS_PER_S))


def ask(coid: str, side: Side | None = Side.BUY, lots: int = 10, price: int | None = 980, **more: object) -> Ask:
    fields: dict[str, Any] = {
        "type": OrderType.MARKET if price is None else OrderType.LIMIT,
        "tif": TimeInForce.GTC,
        "post_only": False,
        "expires_at_ns": 0,
    } | more
    return Ask(
        client_order_id=coid, decision_id="d", symbol=SYMBOL, side=side, qty_lots=lots, price_ticks=price, **fields
    )


def open_engine(profile: str = "token", limits: Limits | None = None) -> Engine:
    engine = Engine(parse_profile(profile), INSTRUMENTS, limits)
    engine.market(quote(990, 1000), NOW)
    return engine


def refusal(lines: list[Line]) -> tuple[str | None, str]:
    (line,) = lines
    assert line.outcome == "refused"
    return line.reason, line.detail or ""


# -- refusals that no right adapter can provoke -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ask("a1", side=None), "side None"),
        (ask("a1", lots=0), "quantity 0 lots"),
        (ask("a1", lots=-5), "quantity -5 lots"),
        (ask("a1", price=0), "price 0 ticks"),
        (ask("a1", price=-1), "price -1 ticks"),
        (ask("a1", price=None, type=OrderType.LIMIT), "limit order with price_ticks=None"),
        (ask("a1", price=5, type=OrderType.MARKET), "market order with price_ticks=5"),
        (ask("a1", post_only=True, tif=TimeInForce.IOC), "post_only"),
        (ask("a1", type=None), "type None"),
        (ask("a1", tif=None), "time in force None"),
        (ask("a1\n"), "a1"),
    ],
)
def test_order_that_is_wrong_in_itself_is_refused_naming_the_value(wrong: Ask, said: str) -> None:
    code, detail = refusal(open_engine().place(A, 1, wrong, NOW))
    assert code == "invalid_order" and said in detail


def test_long_decision_id_is_refused() -> None:
    code, detail = refusal(open_engine().place(A, 1, ask("a1")._replace(decision_id="d" * 201), NOW))
    assert code == "invalid_order" and "201" in detail


def test_market_that_went_silent_takes_no_orders_until_it_speaks() -> None:
    engine = open_engine(limits=Limits(stale_after_ns=2 * NS_PER_S))
    assert engine.place(A, 1, ask("a1"), later(2.0))[0].accepted
    code, detail = refusal(engine.place(A, 1, ask("a2"), later(2.1)))
    assert code == "no_market" and "2.1 s" in detail
    # Depth changes no price here, but it proves that the line is alive.
    engine.market(DepthUpdate(SYMBOL, 1, 1, ((970, 1),), (), 0, 0), later(2.2))
    assert engine.place(A, 1, ask("a2"), later(2.3))[0].accepted


def test_trades_alone_are_no_market() -> None:
    engine = Engine(Profile(), INSTRUMENTS)
    engine.market(trade(990, 5), NOW)
    assert refusal(engine.place(A, 1, ask("a1"), NOW))[0] == "no_market"


def test_open_orders_are_limited_but_market_orders_are_not() -> None:
    engine = open_engine(limits=Limits(open_orders_max=2))
    for coid in ("a1", "a2"):
        assert engine.place(A, 1, ask(coid), NOW)[0].accepted
    code, detail = refusal(engine.place(A, 1, ask("a3"), NOW))
    assert code == "too_many_open_orders" and "2" in detail
    assert engine.place(A, 1, ask("a4", price=None), NOW)[0].accepted
    assert engine.place(Sender("other", "n9", "s9"), 1, ask("a3"), NOW)[0].accepted


def test_expiry_is_refused_at_the_very_nanosecond() -> None:
    engine = open_engine("expiry")
    assert refusal(engine.place(A, 0, ask("a1", expires_at_ns=NOW.unix_ns), NOW))[0] == "expired"
    assert engine.place(A, 0, ask("a1", expires_at_ns=NOW.unix_ns + 1), NOW)[0].accepted


def test_higher_token_in_a_refused_message_still_counts_as_seen() -> None:
    engine = open_engine()
    refusal(engine.place(A, 9, ask("a1", lots=0), NOW))
    assert engine.high_water("main") == 9
    assert refusal(engine.place(B, 8, ask("a2"), NOW))[0] == "stale_token"


@pytest.mark.parametrize("ttl_ms", [0, 3_600_001, 2**32 - 1])
def test_keep_alive_out_of_range_is_refused(ttl_ms: int) -> None:
    code, detail = refusal(open_engine().keep_alive(A, 1, ttl_ms, NOW))
    assert code == "invalid_request" and str(ttl_ms) in detail


def test_keep_alive_without_a_switch_is_refused() -> None:
    assert refusal(open_engine("token+no-deadman").keep_alive(A, 1, 1000, NOW))[0] == "unsupported"


def test_keep_alive_is_recorded_when_token_or_ttl_change() -> None:
    engine = open_engine()
    said = [len(engine.keep_alive(A, *request, NOW)) for request in ((1, 500), (1, 500), (1, 600), (2, 600), (2, 600))]
    assert said == [1, 0, 1, 1, 0]


def test_deadman_gets_its_whole_ttl_again_after_a_restart() -> None:
    engine = open_engine()
    lines = engine.place(A, 1, ask("a1"), NOW) + engine.keep_alive(A, 1, 1000, NOW)
    again = open_engine()
    for line in lines:
        again.apply(line)
    again.restored(later(30))
    assert again.tick(later(30.9)) == []
    assert [n.kind for n in again.tick(later(31))] == ["deadman", "closed"]


# -- the record is judged while it is applied ---------------------------------------------------------------------


def test_record_that_contradicts_itself_is_not_followed() -> None:
    engine = open_engine()
    lines = engine.place(A, 1, ask("a1", price=1000), NOW)
    new, fill, closed = lines
    for wrong, said in (
        ([new, fill._replace(venue_seq=5)], "follows line 1"),
        ([new, fill._replace(event_seq=3)], "event 3 follows 1"),
        ([new, fill._replace(qty_lots=11)], "fill of 11 lots, 10 are left"),
        ([new, fill._replace(client_order_id="a2")], "a2 is not open"),
        ([*lines, fill._replace(venue_seq=4, event_seq=4)], "a1 is not open"),
        ([new, new._replace(venue_seq=2, event_seq=2)], "open already"),
        ([*lines, closed._replace(venue_seq=4, event_seq=4)], "a1 is not open"),
    ):
        replica = Engine(Profile(), INSTRUMENTS)
        with pytest.raises(InvariantViolation, match=said):
            for line in wrong:
                replica.apply(line)


def test_every_line_shows_the_whole_surface_first_and_reads_back() -> None:
    engine = open_engine()
    lines = [
        engine.started({SYMBOL: ["0.01", "0.00001"]}, NOW),
        *engine.place(A, 1, ask("a1", price=1000), NOW),
        *engine.place(A, 1, ask("a2")._replace(symbol="NOPE"), NOW),
        *engine.malformed(A, 1, "nonsense", NOW),
        *engine.arm(A, 2, NOW),
    ]
    for line in lines:
        text = to_json(line, engine.instruments)
        assert tuple(surface(text))[: len(SURFACE)] == SURFACE
        assert from_json(text) == line
    fill = surface(to_json(lines[2], engine.instruments))
    assert (fill["kind"], fill["qty"], fill["price"], fill["trade_id"]) == ("fill", "0.00010", "10.00", "t3")
    unknown_symbol = surface(to_json(lines[4], engine.instruments))
    assert unknown_symbol["qty"] is None and unknown_symbol["qty_lots"] == 10


# -- any history ------------------------------------------------------------------------------------------------

PROFILES = ("token", "expiry", "plain", "token+while-open", "plain+while-open")
lots = st.integers(1, 60)
prices = st.integers(95, 105)


class AnyHistory(RuleBasedStateMachine):
    """Whatever is sent and whatever the market does: judged from the lines alone, as a drill would."""

    @initialize(profile=st.sampled_from(PROFILES))
    def start(self, profile: str) -> None:
        self.engine = Engine(parse_profile(profile), INSTRUMENTS, Limits(open_orders_max=8))
        self.lines: list[Line] = []
        self.at = NOW

    def say(self, lines: list[Line]) -> None:
        self.lines += lines

    @rule(token=st.integers(0, 4), id_=st.integers(0, 12), side=st.sampled_from(Side), n=lots, price=st.none() | prices,
          tif=st.sampled_from(TimeInForce), post_only=st.booleans(), expires=st.sampled_from([0, -1, 1]))  # fmt: skip
    def place(
        self,
        token: int,
        id_: int,
        side: Side,
        n: int,
        price: int | None,
        tif: TimeInForce,
        post_only: bool,
        expires: int,
    ) -> None:
        wanted = ask(f"a{id_}", side, n, price, tif=tif, post_only=post_only)
        if expires:
            wanted = wanted._replace(expires_at_ns=self.at.unix_ns + expires)
        self.say(self.engine.place(A, token, wanted, self.at))

    @rule(token=st.integers(0, 4), id_=st.integers(0, 12))
    def cancel(self, token: int, id_: int) -> None:
        self.say(self.engine.cancel(B, token, f"a{id_}", self.at))

    @rule(token=st.integers(0, 4))
    def cancel_all(self, token: int) -> None:
        self.say(self.engine.cancel_all(B, token, self.at))

    @rule(token=st.integers(0, 4))
    def arm(self, token: int) -> None:
        self.say(self.engine.arm(B, token, self.at))

    @rule(token=st.integers(0, 4), ttl_ms=st.sampled_from([1, 50]))
    def keep_alive(self, token: int, ttl_ms: int) -> None:
        self.say(self.engine.keep_alive(A, token, ttl_ms, self.at))

    @rule(bid=prices, spread=st.integers(1, 3), bid_lots=st.integers(0, 40), ask_lots=st.integers(0, 40))
    def see_quote(self, bid: int, spread: int, bid_lots: int, ask_lots: int) -> None:
        event = quote(bid, bid + spread, bid_lots, ask_lots)
        lines = self.engine.market(event, self.at)
        bought = sum(n.qty_lots or 0 for n in lines if n.kind == "fill" and n.side == "buy")
        sold = sum(n.qty_lots or 0 for n in lines if n.kind == "fill" and n.side == "sell")
        assert bought <= ask_lots and sold <= bid_lots
        self.say(lines)

    @rule(price=prices, n=lots)
    def see_trade(self, price: int, n: int) -> None:
        lines = self.engine.market(trade(price, n), self.at)
        assert sum(x.qty_lots or 0 for x in lines if x.kind == "fill" and x.price_ticks == price) <= n
        self.say(lines)

    @rule(ms=st.integers(1, 60))
    def pass_time(self, ms: int) -> None:
        self.at = Moment(self.at.instant + ms * 1_000_000, self.at.unix_ns + ms * 1_000_000)
        self.say(self.engine.tick(self.at))

    @invariant()
    def sequences_have_no_holes(self) -> None:
        lines = getattr(self, "lines", [])
        assert [n.venue_seq for n in lines] == list(range(1, len(lines) + 1))
        assert [n.event_seq for n in lines if n.event_seq] == list(
            range(1, 1 + sum(1 for n in lines if n.event_seq is not None))
        )

    @invariant()
    def orders_live_once_and_never_overfill(self) -> None:
        alive: dict[str, tuple[int, int]] = {}  # by client order id: quantity, filled
        position = cash = 0
        ever: set[str] = set()
        for n in getattr(self, "lines", []):
            coid = n.client_order_id or ""
            if n.kind == "new" and n.accepted:
                assert coid not in alive
                if "while-open" not in str(self.engine.profile):
                    assert coid not in ever
                ever.add(coid)
                alive[coid] = (n.qty_lots or 0, 0)
            elif n.kind == "fill":
                assert coid in alive, "filled after its close"
                qty, filled = alive[coid]
                assert filled + (n.qty_lots or 0) == n.filled_lots <= qty
                alive[coid] = (qty, n.filled_lots or 0)
                sign = 1 if n.side == "buy" else -1
                position += sign * (n.qty_lots or 0)
                cash -= sign * (n.qty_lots or 0) * (n.price_ticks or 0)
            elif n.kind == "closed":
                qty, filled = alive.pop(coid)
                assert n.filled_lots == filled and (n.status == "filled") == (filled == qty)
        if hasattr(self, "engine"):
            assert self.engine.positions("main").get(SYMBOL, (0, 0)) == (position, cash)
            assert {o.client_order_id for o in self.engine.open_orders("main")} == set(alive)

    @invariant()
    def accepted_tokens_never_fall_where_they_are_checked(self) -> None:
        if not getattr(self, "engine", None) or not self.engine.profile.token:
            return
        tokens = [n.token or 0 for n in self.lines if n.accepted]
        assert tokens == sorted(tokens) and 0 not in tokens

    @invariant()
    def limits_of_price_are_kept(self) -> None:
        orders: dict[str, Line] = {}
        for n in getattr(self, "lines", []):
            if n.kind == "new" and n.accepted:
                orders[n.client_order_id or ""] = n
            elif n.kind == "fill":
                limit = orders[n.client_order_id or ""].price_ticks
                if limit is not None:
                    assert (n.price_ticks or 0) <= limit if n.side == "buy" else (n.price_ticks or 0) >= limit

    def teardown(self) -> None:
        """Replaying the record gives the same venue; by the texts that are on disk."""
        if not getattr(self, "engine", None):
            return
        replica = Engine(self.engine.profile, INSTRUMENTS)
        fills: dict[str, int] = defaultdict(int)
        for line in self.lines:
            replica.apply(from_json(to_json(line, self.engine.instruments)))
            fills[line.client_order_id or ""] += line.kind == "fill"
        assert replica.seq == self.engine.seq
        assert replica.open_orders("main") == self.engine.open_orders("main")
        assert replica.positions("main") == self.engine.positions("main")
        assert replica.high_water("main") == self.engine.high_water("main")
        assert replica.event_seq("main") == self.engine.event_seq("main")
        assert [replica.closed_at("main", c) for c in fills] == [self.engine.closed_at("main", c) for c in fills]


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=150, stateful_step_count=40)
