"""Text in, integers out; whatever else the text says, it is counted and never stops the feed."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.errors import ConfigError
from node.feeds.base import DepthUpdate, Quote, Trade
from node.feeds.binance import STREAM_KINDS, BinanceFeed, Decoder, Malformed, _Buffer, _Units, canonical
from node.types import Instrument
from tests.support.strategy_context import BTCUSDT, quote, trade

PERP = Instrument("BTCUSDT", Decimal("0.1"), Decimal("0.001"))


def decoder(instrument: Instrument = BTCUSDT, kinds: tuple[str, ...] = STREAM_KINDS) -> Decoder:
    return Decoder([instrument], kinds, 10**9, 10**10)


def text(stream: str, /, **data: Any) -> str:
    return json.dumps({"stream": stream, "data": {"s": "BTCUSDT", **data}})


def spot_trade(t: int = 7, **over: Any) -> str:
    fields = {
        "e": "trade",
        "E": 1001,
        "t": t,
        "p": "61837.63000000",
        "q": "0.02000000",
        "T": 1000,
        "m": True,
        "M": True,
    }
    return text("btcusdt@trade", **fields | over)


def spot_quote(u: int = 5, **over: Any) -> str:
    return text("btcusdt@bookTicker", **{"u": u, "b": "61837.63", "B": "3.78826", "a": "61837.64", "A": "1.5"} | over)


def spot_depth(first: int = 1, last: int = 3, **over: Any) -> str:
    fields = {"e": "depthUpdate", "E": 1001, "U": first, "u": last, "b": [["61837.63", "0.0"]], "a": []}
    return text("btcusdt@depth@100ms", **fields | over)


def test_spot_messages():
    d = decoder()
    assert d.decode(spot_trade(), 42) == Trade("BTCUSDT", 7, 6183763, 2000, True, 1000, 42)
    assert d.decode(spot_quote(), 43) == Quote("BTCUSDT", 5, 6183763, 378826, 6183764, 150000, 43)
    assert d.decode(spot_depth(a=[["61840.00", "1.5"]]), 44) == DepthUpdate(
        "BTCUSDT", 1, 3, ((6183763, 0),), ((6184000, 150000),), 1001, 44
    )
    assert d.quality.malformed == 0


def test_usdm_messages_as_recorded():
    d = decoder(PERP, ("trade", "bookTicker", "depth@0ms"))
    assert d.decode(
        '{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":5123107839020,"s":"BTCUSDT","b":"61800.20",'
        '"B":"2.507","a":"61800.30","A":"2.510","T":1723161256313,"E":1723161256313}}',
        1,
    ) == Quote("BTCUSDT", 5123107839020, 618002, 2507, 618003, 2510, 1)
    assert d.decode(
        '{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161256322,"T":1723161256322,"s":"BTCUSDT",'
        '"t":5266583935,"p":"61800.30","q":"0.006","X":"MARKET","m":false}}',
        2,
    ) == Trade("BTCUSDT", 5266583935, 618003, 6, False, 1723161256322, 2)
    for first, last, previous in ((100, 105, 95), (120, 130, 105), (140, 141, 135)):
        message = text("btcusdt@depth@0ms", E=9, T=9, U=first, u=last, pu=previous, b=[], a=[])
        assert isinstance(d.decode(message, 3), DepthUpdate)
    assert d.quality.health(3).gaps == 1  # only the last one: pu 135 after u 130


@pytest.mark.parametrize("kind", ["INSURANCE_FUND", "ADL", "NA"])
def test_usdm_transfers_that_are_no_trades_take_their_id_and_stay_inside(kind: str):
    d = decoder(PERP)
    assert d.decode(spot_trade(7, p="61837.6", X="MARKET"), 1) is not None
    assert d.decode(spot_trade(8, p="0", q="0", X=kind), 2) is None
    assert d.decode(spot_trade(9, p="61837.6", X="MARKET"), 3) is not None
    health = d.quality.health(3)
    assert (health.gaps, health.malformed) == (0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "null",
        "[]",
        "17",
        '"text"',
        "{}",
        '{"stream":"btcusdt@trade"}',
        '{"stream":7,"data":{}}',
        '{"stream":["x"],"data":{}}',
        '{"stream":"btcusdt@trade","data":null}',
        '{"stream":"btcusdt@trade","data":[1]}',
        '{"stream":"btcusdt@trade","data":{"s":"BTCUSDT"}}',
        spot_trade() + "}",
        "[" * 100_000,
        '{"stream":"btcusdt@trade","data":{"s":"BTCUSDT","t":' + "9" * 5000 + "}}",
        text("ethusdt@trade", t=1),
        text("btcusdt@kline_1m", t=1),
        spot_trade(s="ETHUSDT"),
        spot_trade(t="7"),
        spot_trade(t=7.0),
        spot_trade(t=True),
        spot_trade(t=None),
        spot_trade(m=1),
        spot_trade(T="now"),
        spot_trade(p=61837.63),
        spot_trade(p=None),
        spot_trade(p=["61837.63"]),
        spot_trade(p=""),
        spot_trade(p="NaN"),
        spot_trade(p="-1"),
        spot_trade(p="+1"),
        spot_trade(p=" 1"),
        spot_trade(p="1_000"),
        spot_trade(p="1e5"),
        spot_trade(p="٣"),
        spot_trade(p="61837.635"),
        spot_trade(p="61837.630000001"),
        spot_quote(b="61837.635"),
        spot_quote(A="much"),
        spot_depth(first=5, last=3),
        spot_depth(b=[["61837.63"]]),
        spot_depth(b=[["61837.63", "1", "2"]]),
        spot_depth(b="12"),
        spot_depth(b=None),
        spot_depth(a=[["61837.635", "1"]]),
        spot_depth(pu="3"),
    ],
)
def test_what_cannot_be_read_is_counted_and_dropped(bad: str):
    d = decoder()
    assert d.decode(bad, 1) is None
    assert d.quality.malformed == 1
    assert d.decode(spot_trade(), 2) is not None, "and the next message is read as ever"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists), st.data())
def test_no_value_in_any_field_stops_the_decoder(value: Any, data: st.DataObject):
    d = decoder()
    message = json.loads(data.draw(st.sampled_from([spot_trade(), spot_quote(), spot_depth()])))
    message["data"][data.draw(st.sampled_from(sorted(message["data"])))] = value
    d.decode(json.dumps(message), 1)
    assert d.decode(spot_trade(t=1 << 40), 2) is not None


def test_malformed_messages_are_logged_at_a_limited_rate(capsys: pytest.CaptureFixture[str]):
    d = decoder()
    for n in range(1000):
        d.decode("{", n)
    assert d.quality.malformed == 1000
    assert capsys.readouterr().out.count("feed_message_malformed") == 1
    d.decode("{", 11 * 10**9)
    assert "suppressed=999" in capsys.readouterr().out


@pytest.mark.parametrize("notice", ['{"result":null,"id":1}', '{"e":"serverShutdown","E":1}', '{"error":{"code":2}}'])
def test_notices_about_the_connection_are_not_malformed(notice: str):
    d = decoder()
    assert d.decode(notice, 1) is None
    assert d.quality.malformed == 0


def test_a_malformed_trade_was_not_delivered_and_therefore_is_a_gap():
    d = decoder()
    d.decode(spot_trade(7), 1)
    d.decode(spot_trade(8, p="0.001"), 2)
    assert d.decode(spot_trade(9), 3) is not None
    health = d.quality.health(3)
    assert (health.malformed, health.gaps) == (1, 1)


def test_depth_at_another_pace_is_the_same_stream():
    d = decoder(BTCUSDT, ("depth@100ms",))
    message = json.loads(spot_depth())
    message["stream"] = "btcusdt@depth@0ms"
    assert d.decode(json.dumps(message), 1) is not None
    assert canonical("btcusdt@depth@0ms") == canonical("btcusdt@depth") == "btcusdt@depth"


# -- units --


@given(st.sampled_from(["0.01", "0.5", "0.00001", "1", "5", "10", "0.025", "1E+1"]), st.integers(0, 10**12))
def test_every_multiple_of_the_step_comes_back_exactly(step: str, n: int):
    units = _Units(Decimal(step), "price", "tick_size", exact=True)
    value = f"{n * Decimal(step):f}"
    assert units(value) == n
    assert units(value) == n  # and from the cache
    assert units(value + ("" if "." in value else ".") + "000") == n


@given(st.decimals(0, 10**9, places=6), st.sampled_from(["0.01", "0.5", "5", "0.025"]))
def test_a_price_between_two_ticks_is_refused_and_a_size_is_rounded_down(value: Decimal, step: str):
    whole, rest = divmod(value, Decimal(step))
    assert _Units(Decimal(step), "size", "lot_size", exact=False)(f"{value:f}") == whole
    exact = _Units(Decimal(step), "price", "tick_size", exact=True)
    if rest:
        with pytest.raises(Malformed, match="tick_size"):
            exact(f"{value:f}")
    else:
        assert exact(f"{value:f}") == whole


# -- the buffer --


def drain(buffer: _Buffer) -> list[int]:
    out = []
    while (event := buffer.pop()) is not None:
        out.append(event.seq)  # type: ignore[union-attr]
    return out


def test_a_full_buffer_keeps_every_trade_and_the_newest_quote_of_each_symbol():
    buffer = _Buffer(10)
    for n in range(8):
        buffer.put(quote(n, 100, symbol="BTCUSDT" if n % 2 else "ETHUSDT"))
    for n in (100, 101, 102):
        buffer.put(trade(n, 100))
    assert drain(buffer) == [6, 7, 100, 101, 102]
    assert (buffer.conflated, buffer.dropped) == (6, 0)


def test_trades_that_do_not_fit_go_oldest_first_and_are_counted():
    buffer = _Buffer(10)
    for n in range(11):
        buffer.put(trade(n, 100))
    left = drain(buffer)
    assert left == list(range(11 - len(left), 11))
    assert buffer.dropped == 11 - len(left) > 0


# -- configuration --


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "https://stream.binance.com"}, "https://stream"),
        ({"url": "wss://"}, "wss://host:port"),
        ({"url": "ws://h:1/stream?streams=a"}, "streams are added"),
        ({"streams": ("kline_1m",)}, "kline_1m"),
        ({"streams": ("depth", "depth@100ms")}, "twice"),
        ({"streams": ()}, "at least one"),
        ({"instruments": []}, "at least one"),
        ({"instruments": [Instrument("X", Decimal(0), Decimal(1))]}, "tick_size 0"),
        ({"stale_after_s": 0}, "stale_after_s 0"),
        ({"backoff_min_s": 3, "backoff_max_s": 2}, "backoff_min_s 3"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(change: dict[str, Any], says: str):
    import random

    settings: dict[str, Any] = {"url": "ws://h:1", "instruments": [BTCUSDT], "stale_after_s": 1.0} | change
    with pytest.raises(ConfigError, match=says):
        BinanceFeed(settings.pop("url"), settings.pop("instruments"), rng=random.Random(1), **settings)


def test_the_url_carries_the_combined_stream():
    import random

    for base in (
        "wss://stream.binance.com:9443",
        "wss://stream.binance.com:9443/",
        "wss://stream.binance.com:9443/stream",
    ):
        feed = BinanceFeed(base, [BTCUSDT], stale_after_s=1, rng=random.Random(1))
        assert feed.url == (
            "wss://stream.binance.com:9443/stream?streams=btcusdt@trade/btcusdt@bookTicker/btcusdt@depth@100ms"
        )
