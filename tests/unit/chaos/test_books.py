"""S5 to S7: the same history, with one journal that is not the true one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.check.evidence import CommitLine, JournalEvidence
from chaos.check.invariants import check
from chaos.check.verdict import Level, Verdict
from cluster.core.log import GENESIS, Entry, make_entry
from node.book import Book
from node.codec import Evidence, Fact, Fill, Intent, Outcome, Result, decode, encode
from node.paper_venue.state import Ask
from node.types import OrderSpec, OrderType, Side, TimeInForce, client_order_id
from tests.support.history import NODES, TAG, World
from tests.support.paper import SYMBOL


def judged(world: World, *others: JournalEvidence, at_rest: bool = True) -> Verdict:
    """`others` in place of the true journals of those nodes."""
    seen = world.evidence()
    named = {j.node: j for j in others}
    journals = [named.get(j.node, j) for j in seen.journals or ()]
    return check(seen._replace(run=seen.run._replace(at_rest=at_rest), journals=journals))


def told(verdict: Verdict, invariant: str, *words: str) -> bool:
    return any(all(w in v for w in words) for v in verdict.row(invariant).violations)


def forged(world: World, change: Callable[[Fact], Fact], node: str = "n2") -> JournalEvidence:
    """A journal with some facts changed, its chain made right again."""
    out: list[Entry] = []
    for e in world.entries:
        kind, body = encode(change(decode(e.kind, e.body)))
        index, chain = (out[-1].index, out[-1].chain) if out else (0, GENESIS)
        out.append(make_entry(index, chain, e.term, kind, e.at, body))
    return world.journal(node, out)


def resting(world: World, decision: str) -> tuple[int, str]:
    """An order far from the market that the venue has and no journal speaks of yet."""
    spec = OrderSpec(SYMBOL, Side.BUY, 5, world.bid - 5_000)
    index = world.say(Intent(decision, spec))
    coid = client_order_id(TAG, world.token, index)
    world.decide("claim", world.token, coid)
    world.send("new", coid)
    ask = Ask(coid, decision, SYMBOL, spec.side, spec.type, spec.tif, False, 5, spec.price_ticks, 0)
    world.lines += world.engine.place(world.sender, world.token, ask, world.now)
    return index, coid


# -- S5 ----------------------------------------------------------------------------------------------------------------


def test_fill_that_a_journal_invents_or_misses_is_lost_or_unexpected() -> None:
    world = World(5).run(60).finish()
    trade = next(x["trade_id"] for x in world.record() if x["kind"] == "fill")

    def change(fact: Fact) -> Fact:
        return fact._replace(trade_id="t0") if isinstance(fact, Fill) and fact.trade_id == trade else fact

    found = judged(world, forged(world, change))
    assert told(found, "S5", "n2", f"fill {trade} of the venue is not in the journal")
    assert told(found, "S5", "n2", "fill t0 of the journal is not in the venue's record")
    assert found.row("S5").counts["lost"] == found.row("S5").counts["unexpected"] == 1


def test_fill_under_way_is_not_held_against_a_node_that_trades() -> None:
    world = World(5).run(60).finish()
    last = max(e.index for e in world.entries if isinstance(decode(e.kind, e.body), Fill))
    short = world.journal("n2", world.entries[: last - 1])
    assert told(judged(world, short), "S5", "n2", "is not in the journal")
    row = judged(world, short, at_rest=False).row("S5")
    assert (row.level, row.uncovered) == (Level.INCONCLUSIVE, ["judgements at rest"])


def test_book_that_counts_a_repeated_fill_twice_is_named() -> None:
    world = World(5).run(60).finish()
    fill = next(f for e in world.entries if isinstance(f := decode(e.kind, e.body), Fill))
    world.say(fill)
    assert judged(world).problems == []  # a journal may repeat it; its book does not
    broken = world.journal("n2")
    broken.book.counts.fills += 1
    broken.book._positions[SYMBOL] += fill.side.sign * fill.qty_lots
    found = judged(world, broken)
    assert told(found, "S5", "n2", "counted 1 fills more than there are")
    assert told(found, "S6", "n2", "position")


def test_fill_of_other_size_moves_the_position_and_is_named() -> None:
    world = World(5).run(60).finish()
    trade = next(x["trade_id"] for x in world.record() if x["kind"] == "fill")

    def double(fact: Fact) -> Fact:
        return fact._replace(qty_lots=fact.qty_lots + 1) if isinstance(fact, Fill) and fact.trade_id == trade else fact

    found = judged(world, forged(world, double))
    assert told(found, "S5", f"fill {trade}", "of the venue became")
    assert told(found, "S6", "n2: position") and told(found, "S6", "book digests differ")


def test_market_order_is_compared_without_a_price() -> None:
    world = World(5).run(10).finish()
    spec = OrderSpec(SYMBOL, Side.BUY, 2, type=OrderType.MARKET, tif=TimeInForce.IOC)
    index = world.say(Intent("at market", spec))
    coid = client_order_id(TAG, world.token, index)
    world.decide("claim", world.token, coid)
    world.send("new", coid)
    ask = Ask(coid, "at market", SYMBOL, spec.side, spec.type, spec.tif, False, 2, None, 0)
    lines = world.engine.place(world.sender, world.token, ask, world.now)
    world.open.append((index, coid))
    world.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v"))
    world.hear(lines)
    assert "price_ticks" not in next(x for x in world.record() if x["client_order_id"] == coid)
    assert judged(world).problems == []


# -- S6 ----------------------------------------------------------------------------------------------------------------


def test_order_of_the_journal_that_the_venue_never_had_is_named() -> None:
    world = World(11).run(40).finish()
    lines = world.record()
    coid = next(x["client_order_id"] for x in reversed(lines) if x["kind"] == "new" and x["outcome"] == "accepted")
    seen = world.evidence()._replace(venue=[x for x in lines if x["client_order_id"] != coid])
    assert told(check(seen), "S6", coid, "placed by the journal, and not in the venue's record")


def test_order_that_closed_unheard_is_named() -> None:
    world = World(12).run(20).finish()
    index, coid = resting(world, "resting")
    world.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v"))
    assert judged(world).problems == []
    world.lines += world.engine.cancel(world.sender, world.token, coid, world.now)
    assert told(judged(world), "S6", f"{coid} is open in the book and closed at the venue")


def test_order_that_a_journal_holds_for_never_sent_is_named() -> None:
    world = World(6).run(20).finish()
    index, coid = resting(world, "lonely")
    assert told(judged(world), "S6", coid, "nobody has settled")
    world.say(Outcome(index, Result.NOT_SENT, Evidence.LOCAL, code="too_late"))
    assert told(judged(world), "S6", coid, "the journal says never placed")
    assert told(judged(world), "S6", coid, "is open at the venue and not in the book")


def test_contradiction_that_a_book_has_noted_is_told() -> None:
    world = World(7).run(20).finish()
    index = world.say(Intent("x", OrderSpec(SYMBOL, Side.BUY, 5, 1)))
    world.say(Outcome(index, Result.REFUSED, Evidence.VENUE_REPLY, code="no"))
    world.say(Outcome(index, Result.ACCEPTED, Evidence.VENUE_REPLY, "v9"))
    assert told(judged(world), "S6", "outcome_conflict")


def test_books_of_a_cluster_that_trades_are_not_compared() -> None:
    row = judged(World(7).run(20).finish(), at_rest=False).row("S6")
    assert row.level is Level.NOT_JUDGED and "not at rest" in row.note


# -- S7 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 5])
@pytest.mark.parametrize("node", NODES)
def test_journal_that_ends_early_lost_what_was_committed(lost: int, node: str) -> None:
    world = World(3).run(40).finish()
    found = judged(world, world.journal(node, world.entries[:-lost]))
    assert told(found, "S7", node, f"entry {world.entries[-1].index}, committed by")
    assert told(found, "S7", node, "differ")
    assert found.row("S7").counts["RPO records"] == lost
    assert judged(world, world.journal(node, world.entries[:-lost]), at_rest=False).row("S7").violations == ()


def test_lost_intent_of_an_accepted_order_is_told_with_its_notional() -> None:
    world = World(4).run(30).finish()
    order = [x for x in world.record() if x["kind"] == "new" and x["outcome"] == "accepted"][-1]
    intents = [e.index for e in world.entries if isinstance(decode(e.kind, e.body), Intent)]
    found = judged(world, world.journal("n2", world.entries[: intents[-1] - 1]))
    assert told(found, "S7", "n2", "no intent", order["client_order_id"])
    assert told(found, "S7", "n2: RPO", "1 orders", "notional") and found.row("S7").counts["RPO orders"] == 1


def test_node_that_was_down_at_the_end_may_lack_the_end() -> None:
    world = World(3).run(40).finish()
    down = world.journal("n2", world.entries[:10])._replace(final=False)
    assert judged(world, down).problems == []


def test_leader_that_took_over_with_less_than_was_committed_is_named() -> None:
    world = World(3).run(40).finish()
    seen = world.evidence()
    lines = list(seen.commits or ())
    last = max(i for i, c in enumerate(lines) if c.what == "led")
    lines[last] = lines[last]._replace(index=lines[last].index - 1)
    assert told(check(seen._replace(commits=lines)), "S7", f"led term {world.token} from entry")
    lines[last] = lines[last]._replace(index=lines[last].index + 1, chain=bytes(32))
    assert told(check(seen._replace(commits=lines)), "S7", "with another entry")


def test_acknowledgement_that_nobody_counted_binds_nobody() -> None:
    world = World(3).run(40).finish()
    seen = world.evidence()
    beyond = CommitLine("acknowledged", "n2", world.token, len(world.entries) + 1, bytes(32), world.at)
    assert check(seen._replace(commits=[*(seen.commits or ()), beyond])).problems == []
    counted = beyond._replace(what="committed")
    assert check(seen._replace(commits=[*(seen.commits or ()), counted])).failed == {"S7"}


def test_one_entry_committed_as_two_is_named() -> None:
    world = World(3).run(40).finish()
    seen = world.evidence()
    other = CommitLine("committed", "n3", world.token, 5, bytes(32), world.at)
    found = check(seen._replace(commits=[*(seen.commits or ()), other]))
    assert told(found, "S7", "entry 5 was committed as two")


def test_books_are_those_of_the_nodes_themselves_if_given() -> None:
    world = World(3).run(40).finish()
    empty = world.journal("n2")._replace(book=Book(TAG))
    found = judged(world, empty)
    assert told(found, "S5", "n2", "less than its journal has")
    assert told(found, "S6", "n2", "position")
