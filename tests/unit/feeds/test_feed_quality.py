"""What is wrong with a line is told from its sequence numbers and its silence, exactly and without a clock."""

import random

import pytest

from cluster.core.ids import NS_PER_S
from node.feeds.base import FeedState
from node.feeds.quality import (
    RESTART_AFTER_NS,
    DepthQuality,
    FeedQuality,
    QuoteQuality,
    StreamQuality,
    TradeQuality,
    Verdict,
)

S = NS_PER_S


def counts(q: StreamQuality) -> dict[str, int]:
    return {k: v for k in ("gaps", "missing", "duplicates", "reordered") if (v := getattr(q, k))}


def trades(*ids: int) -> tuple[TradeQuality, list[Verdict]]:
    q = TradeQuality("t", S)
    q.connected(0)
    return q, [q.see(n, at) for at, n in enumerate(ids, 1)]


def test_trades_in_order_are_not_remarked_upon():
    q, verdicts = trades(7, 8, 9, 10)
    assert set(verdicts) == {Verdict.IN_ORDER}
    assert counts(q) == {}
    assert (q.last, q.messages) == (10, 4)


def test_a_jump_is_one_gap_of_its_size_and_the_trade_after_it_is_delivered():
    q, verdicts = trades(7, 12)
    assert verdicts[1] is Verdict.GAP
    assert counts(q) == {"gaps": 1, "missing": 4}
    assert q.last_gap == 4


def test_a_repeat_is_a_duplicate_and_an_overtaken_one_is_late():
    q, verdicts = trades(7, 9, 8, 8, 9, 10)
    assert verdicts == [
        Verdict.IN_ORDER,
        Verdict.GAP,
        Verdict.LATE,
        Verdict.DUPLICATE,
        Verdict.DUPLICATE,
        Verdict.IN_ORDER,
    ]
    assert counts(q) == {"gaps": 1, "missing": 1, "duplicates": 2, "reordered": 1}


def test_the_middle_of_a_gap_may_come_late_piece_by_piece():
    q, _ = trades(1, 10, 5, 2, 9, 5)
    assert counts(q) == {"gaps": 1, "missing": 8, "duplicates": 1, "reordered": 3}


def test_only_the_latest_gaps_are_remembered():
    q = TradeQuality("t", S)
    for n in range(0, 400, 2):
        q.see(n + 1, n)
    assert q.see(2, 500) is Verdict.DUPLICATE
    assert q.see(398, 500) is Verdict.LATE


@pytest.mark.parametrize("seed", range(20))
def test_of_any_shuffle_each_trade_is_delivered_at_most_once_and_in_rising_order(seed: int):
    rng = random.Random(seed)
    ids = [n for n in range(1, 200) if rng.random() > 0.1 for _ in range(1 + (rng.random() < 0.1))]
    for _ in range(20):
        i = rng.randrange(len(ids) - 1)
        ids[i], ids[i + 1] = ids[i + 1], ids[i]
    q = TradeQuality("t", S)
    delivered = [n for n in ids if q.see(n, 0) in (Verdict.IN_ORDER, Verdict.GAP)]
    assert delivered == sorted(set(delivered))
    assert q.messages == len(ids) == len(delivered) + q.duplicates + q.reordered
    assert q.missing == delivered[-1] - delivered[0] + 1 - len(delivered)


def test_quotes_may_jump_ahead_but_never_back():
    q = QuoteQuality("q", S)
    q.connected(0)
    assert [q.see(n, 1) for n in (5, 90, 90, 60, 91)] == [
        Verdict.IN_ORDER,
        Verdict.IN_ORDER,
        Verdict.DUPLICATE,
        Verdict.LATE,
        Verdict.IN_ORDER,
    ]
    assert counts(q) == {"duplicates": 1, "reordered": 1}


def test_spot_depth_continues_with_the_next_id():
    q = DepthQuality("d", S)
    assert q.see(10, 14, None, 1) is Verdict.IN_ORDER
    assert q.see(15, 15, None, 2) is Verdict.IN_ORDER
    assert q.see(20, 22, None, 3) is Verdict.GAP
    assert q.see(16, 19, None, 4) is Verdict.LATE
    assert q.see(20, 22, None, 5) is Verdict.DUPLICATE
    assert counts(q) == {"gaps": 1, "missing": 4, "duplicates": 1, "reordered": 1}


def test_usdm_depth_names_its_predecessor_and_ids_between_two_belong_to_nobody():
    q = DepthQuality("d", S)
    assert q.see(10, 14, 3, 1) is Verdict.IN_ORDER
    assert q.see(30, 34, 14, 2) is Verdict.IN_ORDER
    assert q.see(60, 64, 50, 3) is Verdict.GAP
    assert counts(q) == {"gaps": 1, "missing": 16}


def test_an_overlapping_depth_update_is_a_break_that_misses_nothing():
    q = DepthQuality("d", S)
    q.see(10, 14, None, 1)
    assert q.see(13, 20, None, 2) is Verdict.GAP
    assert counts(q) == {"gaps": 1}


# -- over a reconnect --


def test_what_was_missed_while_disconnected_is_a_gap():
    q, _ = trades(7, 8)
    q.connected(5)
    assert q.see(20, 6) is Verdict.GAP
    assert q.missing == 11


def test_a_server_that_is_a_little_behind_after_a_reconnect_only_repeats():
    q, _ = trades(7, 8, 9)
    q.connected(S)
    assert [q.see(n, S + n) for n in (8, 9, 10)] == [Verdict.DUPLICATE, Verdict.DUPLICATE, Verdict.IN_ORDER]
    quotes = QuoteQuality("q", S)
    quotes.see(100, 1)
    quotes.connected(S)
    assert quotes.see(90, S) is Verdict.DUPLICATE  # a repeat for all we know, not an overtaken one


@pytest.mark.parametrize("make", [TradeQuality, QuoteQuality])
def test_a_numbering_that_began_anew_is_accepted_after_a_while_and_shown_as_a_break(make):
    q = make("x", S)
    q.see(1000, 1)
    q.connected(S)
    assert q.see(5, S + 1) is Verdict.DUPLICATE
    assert q.see(6, S + RESTART_AFTER_NS) is Verdict.RESTART
    assert q.see(7, S + RESTART_AFTER_NS + 1) is Verdict.IN_ORDER
    assert q.gaps == 1
    assert q.messages == 4


def test_ids_that_fall_within_a_connection_are_never_taken_for_a_new_numbering():
    q, _ = trades(1000, 1001)
    assert q.see(5, 100 * S) is Verdict.DUPLICATE


# -- health --


def line(*, feed_s: float = 1, trade_s: float = 10) -> tuple[FeedQuality, QuoteQuality, TradeQuality]:
    quotes, trades = QuoteQuality("btcusdt@bookTicker", S), TradeQuality("btcusdt@trade", int(trade_s * S))
    return FeedQuality([quotes, trades], int(feed_s * S)), quotes, trades


def test_a_feed_is_live_only_once_it_has_delivered_on_this_connection():
    feed, quotes, _ = line()
    assert feed.health(0).state is FeedState.CONNECTING
    assert feed.health(0).age_s is None
    feed.connected(S)
    assert feed.health(S).state is FeedState.CONNECTING
    quotes.see(1, S + 1)
    assert feed.health(S + 2).state is FeedState.LIVE
    feed.disconnected("closed by the server: 1001")
    assert feed.health(S + 2).state is FeedState.DOWN
    assert "1001" in feed.health(S + 2).reason
    feed.connected(2 * S)
    assert feed.health(2 * S).state is FeedState.CONNECTING, "what came before says nothing about this connection"
    assert feed.health(2 * S).reconnects == 1


def test_silence_is_stale_to_the_nanosecond_and_its_age_is_told():
    feed, quotes, _ = line()
    feed.connected(0)
    quotes.see(1, S)
    assert feed.health(2 * S).state is FeedState.LIVE
    health = feed.health(2 * S + 1)
    assert health.state is FeedState.STALE
    assert health.age_s == pytest.approx(1.0)
    assert not health.healthy
    quotes.see(2, 3 * S)
    assert feed.health(3 * S).state is FeedState.LIVE


def test_a_connection_that_never_delivers_is_stale_too():
    feed, _, _ = line()
    feed.connected(0)
    assert feed.health(S + 1).state is FeedState.STALE


def test_repeats_are_not_life():
    feed, quotes, _ = line()
    feed.connected(0)
    quotes.see(1, 0)
    for at in range(0, 2 * S, S // 10):
        quotes.see(1, at)
    assert feed.health(2 * S).state is FeedState.STALE


def test_one_silent_stream_among_live_ones_is_stale_after_its_own_bound():
    feed, quotes, trades = line(trade_s=10)
    feed.connected(0)
    trades.see(1, 0)
    for at in range(0, 10 * S + 2, S // 2):
        quotes.see(at + 1, at)
    assert feed.health(10 * S).state is FeedState.LIVE
    assert feed.silence(10 * S) == 1.0
    health = feed.health(10 * S + 1)
    assert health.state is FeedState.STALE
    assert "btcusdt@trade" in health.reason
    by_name = {s.name: s for s in feed.stream_health(10 * S + 1)}
    assert by_name["btcusdt@trade"].stale
    assert not by_name["btcusdt@bookTicker"].stale


def test_counters_add_up_over_streams_and_what_the_consumer_missed_is_a_gap():
    feed, quotes, trades = line()
    feed.connected(0)
    for n in (1, 4, 3, 4):
        trades.see(n, 1)
    for n in (1, 1):
        quotes.see(n, 1)
    feed.malformed, feed.dropped = 2, 5
    h = feed.health(2)
    assert (h.messages, h.gaps, h.duplicates, h.reordered, h.malformed) == (6, 1 + 5, 2, 1, 2)
