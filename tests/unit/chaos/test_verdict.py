"""The judge: what really happened passes, and the same history with one line repeated, lost, moved, forged or of
somebody else does not. A check that was never seen to fail proves nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.verdict import Verdict, evidence_of, judge, judge_record
from cluster.core.ids import NS_PER_S, Term
from cluster.core.log import GENESIS, Entry, make_entry
from node.codec import (
    CancelRequested,
    Closed,
    Evidence,
    Fact,
    Fill,
    Intent,
    OrderClosed,
    Outcome,
    Result,
    TermStarted,
    encode,
)
from node.paper_venue.engine import Engine
from node.paper_venue.lines import Line, surface, to_json
from node.paper_venue.profile import parse_profile
from node.paper_venue.state import Ask, Moment, Sender
from node.types import OrderSpec, Side, TimeInForce, client_order_id
from tests.support.paper import BTC, SYMBOL, quote

TAG = "b1"
NODES = ("n1", "n2", "n3")
CLOSED = {"filled": Closed.FILLED, "cancelled": Closed.CANCELLED, "expired": Closed.EXPIRED}

Lines = list[dict[str, Any]]


class World:
    """A true history: the venue's own engine, and the journal of leaders that obey it."""

    def __init__(self, seed: int, profile: str = "token") -> None:
        self.rng = random.Random(seed)
        self.engine = Engine(parse_profile(profile), [BTC])
        self.lines: list[Line] = []
        self.entries: list[Entry] = []
        self.leader, self.token, self.tick = "n1", 0, 0
        self.bid = 100_000
        self.open: list[tuple[int, str]] = []  # (index of the intent, client order id)
        self.market()

    @property
    def now(self) -> Moment:
        self.tick += 1
        step = self.tick * NS_PER_S // 1000
        return Moment(10 * NS_PER_S + step, 1_000 * NS_PER_S + step)

    @property
    def sender(self) -> Sender:
        return Sender("baton", self.leader, f"s{self.token}")

    def say(self, fact: Fact) -> int:
        kind, body = encode(fact)
        index, chain = (self.entries[-1].index, self.entries[-1].chain) if self.entries else (0, GENESIS)
        self.entries.append(make_entry(index, chain, Term(self.token), kind, self.tick, body))
        return self.entries[-1].index

    def hear(self, lines: Iterable[Line]) -> None:
        """What the venue did goes into its record; of fills and closes the leader hears on the stream."""
        for line in lines:
            self.lines.append(line)
            known = {coid: index for index, coid in self.open}
            coid = line.client_order_id or ""
            if line.kind == "fill":
                f = line.fill()
                self.say(
                    Fill(f.trade_id, known[coid], coid, f.symbol, f.side, f.qty_lots, f.price_ticks, 0, f.event_seq)
                )
            elif line.kind == "closed":
                how, filled = CLOSED[str(line.status)], line.filled_lots or 0
                self.say(OrderClosed(known[coid], how, filled, "", Evidence.VENUE_STREAM, line.event_seq or 0))
                self.open.remove((known[coid], coid))

    # -- what happens --

    def lead(self) -> None:
        self.leader = self.rng.choice([n for n in NODES if n != self.leader])
        self.token += self.rng.randint(1, 40)
        self.say(TermStarted(self.leader, "i"))
        self.lines += self.engine.arm(self.sender, self.token, self.now)

    def market(self) -> None:
        self.bid += self.rng.randint(-30, 30)
        self.hear(self.engine.market(quote(self.bid, self.bid + 10, 50, 50), self.now))

    def place(self) -> None:
        side, rests = self.rng.choice(list(Side)), self.rng.random() < 0.6
        off = -side.sign * self.rng.randint(1, 20) if rests else side.sign * 40
        spec = OrderSpec(
            SYMBOL,
            side,
            self.rng.randint(1, 80),
            (self.bid if side is Side.BUY else self.bid + 10) + off,
            tif=TimeInForce.GTC if rests else TimeInForce.IOC,
        )
        decision = f"d{len(self.entries)}"
        index = self.say(Intent(decision, spec))
        coid = client_order_id(TAG, self.token, index)
        ask = Ask(coid, decision, SYMBOL, side, spec.type, spec.tif, False, spec.qty_lots, spec.price_ticks, 0)
        lines = self.engine.place(self.sender, self.token, ask, self.now)
        assert lines[0].accepted, lines[0]
        self.open.append((index, coid))
        if self.rng.random() < 0.2:  # the answer was late; looked up afterwards
            self.say(Outcome(index, Result.UNKNOWN, Evidence.LOCAL))
        self.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v"))
        self.hear(lines)

    def not_sent(self) -> None:
        index = self.say(Intent(f"d{len(self.entries)}", OrderSpec(SYMBOL, Side.BUY, 1, self.bid)))
        self.say(Outcome(index, Result.NOT_SENT, Evidence.LOCAL, code="no_permit"))

    def cancel(self) -> None:
        if self.open:
            index, coid = self.rng.choice(self.open)
            self.say(CancelRequested(index))
            self.hear(self.engine.cancel(self.sender, self.token, coid, self.now))

    def stale(self) -> None:
        """Somebody who led before tries; the venue refuses."""
        ask = Ask(f"old{self.tick}", "old", SYMBOL, Side.BUY, *_LIMIT, False, 1, self.bid, 0)
        self.lines += self.engine.place(Sender("baton", "n1", "old"), self.token - 1, ask, self.now)

    def run(self, steps: int) -> World:
        self.lead()
        doings: list[Callable[[], None]] = [self.place] * 6 + [self.market, self.cancel] * 3
        doings += [self.lead, self.stale, self.not_sent]
        for _ in range(steps):
            self.rng.choice(doings)()
        return self

    def record(self) -> Lines:
        return [surface(to_json(line, {SYMBOL: BTC})) for line in self.lines]

    def judged(self, lines: Lines | None = None) -> Verdict:
        record = judge_record(self.record() if lines is None else lines)
        return judge(record, [evidence_of(n, self.entries, TAG) for n in NODES])


_LIMIT = (OrderSpec(SYMBOL, Side.BUY, 1, 1).type, TimeInForce.GTC)


def renumbered(lines: Lines) -> Lines:
    """By a forger who knows how the record counts."""
    event = 0
    for seq, line in enumerate(lines, 1):
        line["venue_seq"] = seq
        if "event_seq" in line:
            event += 1
            line["event_seq"] = event
    return lines


def matters(line: dict[str, Any]) -> bool:
    """Its absence or repetition changes what happened to some order."""
    return line["kind"] in ("fill", "closed") or (line["kind"] == "new" and line["outcome"] == "accepted")


def names(*lines: dict[str, Any]) -> set[str]:
    """Words by which a reader finds one of these lines."""
    found = {f"venue_seq {x['venue_seq']}" for x in lines}
    found |= {str(x[k]) for x in lines for k in ("client_order_id", "trade_id") if x.get(k)}
    return found


def assert_named(verdict: Verdict, wanted: set[str]) -> None:
    assert verdict.problems
    assert any(w in p for p in verdict.problems for w in wanted), (wanted, verdict.problems)


worlds = st.builds(lambda seed, steps: World(seed).run(steps), st.integers(0, 10**6), st.integers(20, 60))


# -- what is true passes --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(worlds)
def test_true_history_has_no_finding(world: World) -> None:
    found = world.judged()
    assert found.problems == []
    assert found.record.orders_accepted == sum(x.kind == "new" and x.accepted for x in world.lines)
    assert found.record.positions == evidence_of("n1", world.entries, TAG).book.positions()


def test_refused_stale_orders_are_counted_and_are_no_finding() -> None:
    world = World(1).run(10)
    world.stale()
    found = world.judged()
    assert found.problems == []
    assert found.record.stale_refused >= 1
    assert found.record.orders_refused["stale_token"] == found.record.stale_refused


# -- one line is not -----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(worlds, st.data(), st.booleans())
def test_repeated_line_is_found(world: World, data: st.DataObject, clever: bool) -> None:
    lines = world.record()
    at = data.draw(st.sampled_from([i for i, x in enumerate(lines) if matters(x) or not clever]))
    to = data.draw(st.integers(at + 1, len(lines)))
    wanted = names(lines[at])
    lines.insert(to, copy.deepcopy(lines[at]))
    verdict = world.judged(renumbered(lines) if clever else lines)
    assert_named(verdict, wanted | names(lines[to]))


@settings(max_examples=80, deadline=None)
@given(worlds, st.data(), st.booleans())
def test_lost_line_is_found(world: World, data: st.DataObject, clever: bool) -> None:
    lines = world.record()
    at = data.draw(st.sampled_from([i for i, x in enumerate(lines) if matters(x) or (not clever and x != lines[-1])]))
    lost = lines.pop(at)
    wanted = names(lost, *lines[at : at + 1])
    verdict = world.judged(renumbered(lines) if clever else lines)
    assert_named(verdict, wanted)


@settings(max_examples=80, deadline=None)
@given(worlds, st.data())
def test_moved_line_is_found(world: World, data: st.DataObject) -> None:
    lines = world.record()
    at = data.draw(st.integers(0, len(lines) - 2))
    to = data.draw(st.integers(at + 1, len(lines) - 1))
    lines[at], lines[to] = lines[to], lines[at]
    assert_named(world.judged(lines), names(lines[at], lines[to]))


@settings(max_examples=60, deadline=None)
@given(worlds, st.data())
def test_effect_that_a_clever_forger_put_before_its_cause_is_found(world: World, data: st.DataObject) -> None:
    lines = world.record()
    pairs = [
        (i, j)
        for j, effect in enumerate(lines)
        for i, cause in enumerate(lines[:j])
        if effect["kind"] in ("fill", "closed")
        and cause["kind"] == "new"
        and cause["outcome"] == "accepted"
        and cause["client_order_id"] == effect["client_order_id"]
    ]
    if not pairs:
        return
    cause, effect = data.draw(st.sampled_from(pairs))
    wanted = names(lines[cause], lines[effect])
    lines[cause], lines[effect] = lines[effect], lines[cause]
    assert_named(world.judged(renumbered(lines)), wanted)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_accepted_message_of_a_deposed_leader_is_found(seed: int, data: st.DataObject) -> None:
    world = World(seed).run(15)
    world.lead()
    world.place()
    world.run(15)
    lines = world.record()
    high, later = 0, []
    for i, x in enumerate(lines):
        if x["outcome"] == "accepted" and x["token"]:
            if x["token"] > 1 and high >= x["token"] > 1:
                later.append(i)
            high = max(high, x["token"])
    at = data.draw(st.sampled_from(later))
    lines[at]["token"] = data.draw(st.integers(1, lines[at]["token"] - 1))
    verdict = world.judged(lines)
    assert verdict.record.stale_accepted
    assert_named(verdict, names(lines[at]))


@settings(max_examples=60, deadline=None)
@given(
    worlds, st.data(), st.sampled_from(["tag", "shape", "index", "account", "quantity", "price", "decision", "side"])
)
def test_order_that_is_not_the_intent_of_ours_is_found(world: World, data: st.DataObject, how: str) -> None:
    world.place()
    lines = world.record()
    at = data.draw(
        st.sampled_from([i for i, x in enumerate(lines) if x["kind"] == "new" and x["outcome"] == "accepted"])
    )
    line = lines[at]
    term, index = line["token"], 9_999
    match how:
        case "tag":
            line["client_order_id"] = line["client_order_id"].replace(TAG, "b2", 1)
        case "shape":
            line["client_order_id"] = "by-hand-17"
        case "index":
            line["client_order_id"] = client_order_id(TAG, term, index)
        case "account":
            line["account"] = "somebody"
        case "quantity":
            line["qty_lots"] += 1
        case "price":
            line["price_ticks"] += 1
        case "decision":
            line["decision_id"] += "x"
        case "side":
            line["side"] = "sell" if line["side"] == "buy" else "buy"
    assert_named(world.judged(lines), names(line))


@settings(max_examples=40, deadline=None)
@given(worlds, st.data())
def test_one_decision_under_two_ids_is_a_double_order(world: World, data: st.DataObject) -> None:
    world.place()
    world.place()
    lines = world.record()
    orders = [x for x in lines if x["kind"] == "new" and x["outcome"] == "accepted"]
    first, second = sorted(
        data.draw(st.lists(st.sampled_from(range(len(orders))), min_size=2, max_size=2, unique=True))
    )
    orders[second]["decision_id"] = orders[first]["decision_id"]
    verdict = world.judged(lines)
    assert [p for p in verdict.record.double_orders if orders[second]["client_order_id"] in p]


def busy_world() -> tuple[World, Lines]:
    """With a filled order, a closed one and two leaders in it."""
    world = World(11).run(60)
    world.lead()
    world.place()
    lines = world.record()
    assert {"fill", "closed"} <= {x["kind"] for x in lines} and len({x["token"] for x in lines}) > 2
    return world, lines


def last(lines: Lines, kind: str) -> dict[str, Any]:
    return next(x for x in reversed(lines) if x["kind"] == kind and x["outcome"] != "refused")


@pytest.mark.parametrize(
    ("kind", "change", "where", "words"),
    [
        ("new", {"account": "somebody"}, "broken", "is of account 'somebody', the others of 'baton'"),
        ("fill", {"event_seq": 9_999}, "broken", "is event 9999 of its account"),
        ("new", {"node": "n9"}, "stale_accepted", "used by n9 and by"),
        ("new", {"token": 1}, "stale_accepted", "with token 1 after token"),
        ("fill", {"trade_id": "t-first"}, "fills_wrong", "trade t-first stands twice in the record"),
        ("fill", {"symbol": "ETHUSDT"}, "fills_wrong", "which is another order"),
        ("fill", {"qty_lots": 5_000}, "fills_wrong", "filled, it was for"),
        ("closed", {"filled_lots": 4_999}, "fills_wrong", "with 4999 lots filled, its fills sum to"),
    ],
)
def test_each_check_of_the_record_speaks_for_itself(kind: str, change: dict[str, Any], where: str, words: str) -> None:
    world, lines = busy_world()
    next(x for x in lines if x["kind"] == "fill")["trade_id"] = "t-first"
    last(lines, kind).update(change)
    assert [p for p in getattr(world.judged(lines).record, where) if words in p]


def test_each_check_of_record_against_journals_speaks_for_itself() -> None:
    world, lines = busy_world()
    order = last(lines, "new")
    coid, token = order["client_order_id"], order["token"]
    nowhere, lost = "orders_from_nowhere", "lost_orders"

    def said(changed: Lines, where: str) -> list[str]:
        found: list[str] = getattr(world.judged(changed), where)
        return [p for p in found if coid in p]

    foreign = copy.deepcopy(lines)
    last(foreign, "new")["client_order_id"] = coid.replace(TAG, "b2", 1)
    assert any("is not one of ours" in p for p in world.judged(foreign).orders_from_nowhere)
    early = copy.deepcopy(lines)
    last(early, "new")["token"] = token - 1
    assert any(f"sent with token {token - 1}" in p for p in said(early, nowhere))
    never_there = [x for x in lines if x.get("client_order_id") != coid]
    assert any("placed by the journal, and not in the venue's record" in p for p in said(never_there, lost))


def test_order_that_closed_unheard_is_found() -> None:
    world = World(12).run(5)
    index = world.say(Intent("resting", OrderSpec(SYMBOL, Side.BUY, 5, world.bid - 5_000)))
    coid = client_order_id(TAG, world.token, index)
    ask = Ask(coid, "resting", SYMBOL, Side.BUY, *_LIMIT, False, 5, world.bid - 5_000, 0)
    world.lines += world.engine.place(world.sender, world.token, ask, world.now)
    world.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v"))
    assert world.judged().problems == []
    world.lines += world.engine.cancel(world.sender, world.token, coid, world.now)
    assert [p for p in world.judged().lost_orders if f"{coid} is open in the book and closed at the venue" in p]


# -- one journal is not -----------------------------------------------------------------------------------------------


def verdict_with(world: World, entries: list[Entry], *, order: tuple[int, ...] = (0, 1, 2)) -> Verdict:
    """n2 has these entries, the others the true ones."""
    journals = [evidence_of(n, entries if n == "n2" else world.entries, TAG) for n in NODES]
    return judge(judge_record(world.record()), [journals[i] for i in order])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("lost", [1, 5])
def test_journal_that_ends_early_is_found(lost: int, order: tuple[int, ...]) -> None:
    world = World(3).run(40)
    world.place()
    found = verdict_with(world, world.entries[:-lost], order=order)
    assert found.logs_differ
    assert any("n2" in p for p in found.logs_differ)


def test_node_that_lacks_the_intent_of_a_live_order_is_found() -> None:
    world = World(4).run(30)
    world.place()
    coid = next(
        x["client_order_id"] for x in reversed(world.record()) if x["kind"] == "new" and x["outcome"] == "accepted"
    )
    intents = [e.index for e in world.entries if e.kind == encode(Intent("d", OrderSpec(SYMBOL, Side.BUY, 1, 1)))[0]]
    found = verdict_with(world, world.entries[: intents[-1] - 1])
    assert [p for p in found.orders_from_nowhere if p.startswith("n2:") and coid in p]


def forged(world: World, change: Callable[[Fact], Fact]) -> list[Entry]:
    """The journal with some facts changed, its chain made right again."""
    from node.codec import decode

    out: list[Entry] = []
    for e in world.entries:
        kind, body = encode(change(decode(e.kind, e.body)))
        index, chain = (out[-1].index, out[-1].chain) if out else (0, GENESIS)
        out.append(make_entry(index, chain, e.term, kind, e.at, body))
    return out


def test_fill_that_a_journal_invents_or_misses_moves_its_position_and_is_found() -> None:
    world = World(5).run(60)
    trade = next(x["trade_id"] for x in world.record() if x["kind"] == "fill")

    def change(fact: Fact) -> Fact:
        return fact._replace(trade_id="t0") if isinstance(fact, Fill) and fact.trade_id == trade else fact

    found = verdict_with(world, forged(world, change))
    assert any(f"fill {trade} of the venue" in p for p in found.lost_fills)
    assert any("fill t0 of the journal" in p for p in found.lost_fills)
    assert found.logs_differ

    def double(fact: Fact) -> Fact:
        return fact._replace(qty_lots=fact.qty_lots + 1) if isinstance(fact, Fill) and fact.trade_id == trade else fact

    found = verdict_with(world, forged(world, double))
    assert any(p.startswith("n2: position") for p in found.positions_differ)
    assert not found.digests_equal


def test_order_that_a_journal_holds_for_never_sent_is_found() -> None:
    world = World(6).run(5)
    index = world.say(Intent("lonely", OrderSpec(SYMBOL, Side.BUY, 5, world.bid - 5_000)))
    coid = client_order_id(TAG, world.token, index)
    ask = Ask(coid, "lonely", SYMBOL, Side.BUY, *_LIMIT, False, 5, world.bid - 5_000, 0)
    world.lines += world.engine.place(world.sender, world.token, ask, world.now)
    assert any("nobody has settled" in p or "not in the book" in p for p in world.judged().lost_orders)
    world.say(Outcome(index, Result.NOT_SENT, Evidence.LOCAL, code="too_late"))
    assert [p for p in world.judged().lost_orders if coid in p and "never placed" in p]
    world.say(Outcome(index, Result.UNKNOWN, Evidence.LOCAL))
    assert [p for p in world.judged().lost_orders if coid in p]


def test_contradiction_that_the_book_has_noted_is_told() -> None:
    world = World(7).run(5)
    world.place()
    index = world.say(Intent("x", OrderSpec(SYMBOL, Side.BUY, 5, 1)))
    world.say(Outcome(index, Result.REFUSED, Evidence.VENUE_REPLY, code="no"))
    world.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v9"))
    assert any("outcome_conflict" in p for p in world.judged().books_doubt)


def test_pruned_journal_is_judged_by_its_snapshot() -> None:
    world = World(8).run(80)
    base, cut = len(world.entries) // 3, len(world.entries) // 2
    snapshot = evidence_of("n1", world.entries[:cut], TAG).book.snapshot()
    pruned = evidence_of("n2", world.entries[base:], TAG, base=base, snapshot=snapshot)
    whole = evidence_of("n1", world.entries, TAG)
    found = judge(judge_record(world.record()), [whole, pruned])
    assert found.problems == []
    assert pruned.book.digest() == whole.book.digest()
    # It still sees an order before the snapshot that is nobody's.
    lines = world.record()
    first = next(x for x in lines if x["kind"] == "new" and x["outcome"] == "accepted")
    first["decision_id"] = "forged"
    found = judge(judge_record(lines), [pruned])
    assert [p for p in found.orders_from_nowhere if first["client_order_id"] in p]


@pytest.mark.parametrize("profile", ["token", "expiry", "plain", "token+while-open"])
def test_every_class_of_venue_is_judged_alike(profile: str) -> None:
    world = World(9, profile)
    world.lead()
    for _ in range(20):
        world.place()
        world.market()
    world.lead()
    world.place()
    assert world.judged().problems == []
    lines = world.record()
    last = next(x for x in reversed(lines) if x["kind"] == "new")
    last["token"] = 1
    assert world.judged(lines).record.stale_accepted  # also where the venue itself does not look at tokens
