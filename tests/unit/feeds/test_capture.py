"""A capture is used as far as it can be trusted, and plays without a seam."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from node.feeds.binance import STREAM_KINDS, Decoder
from node.feeds.capture import Capture, CaptureError, CaptureSource, read_capture
from node.feeds.replay import FeedServerConfig, default_capture, open_source
from node.feeds.synthetic import SyntheticConfig, SyntheticSource
from tests.support.captures import MS, T0_NS, capture_lines, write_capture
from tests.support.strategy_context import BTCUSDT


def wall_ms(when: int) -> int:
    return 2_000_000_000_000 + when // MS


def decoder() -> Decoder:
    d = Decoder([BTCUSDT], STREAM_KINDS, 10**9, 10**10)
    d.quality.connected(0)
    return d


def ids(messages: list[tuple[int, str, str]], kind: str) -> list[dict]:
    return [json.loads(text)["data"] for _, stream, text in messages if stream.endswith(kind)]


# -- reading --


@pytest.mark.parametrize("name", ["c.ws", "c.ws.gz", "gzip-without-the-suffix"])
def test_plain_and_gzip_read_the_same(tmp_path: Path, name: str):
    lines = capture_lines(3)
    capture = read_capture(write_capture(tmp_path / name, lines, zipped="gz" in name))
    assert capture.raw == [line.partition(" ")[2] for line in lines]
    assert list(capture.at_ns) == [int(line.partition(" ")[0]) for line in lines]
    assert sorted(capture.streams) == ["btcusdt@bookTicker", "btcusdt@depth", "btcusdt@trade"]
    assert capture.warnings == []


def test_other_lines_are_left_out_and_counted(tmp_path: Path):
    extra = [f"{T0_NS} " + '{"result":null,"id":1}', f"{T0_NS} " + '{"lastUpdateId":5,"bids":[]}']
    extra += [f"{T0_NS} " + '{"stream":"btcusdt@kline_1m","data":{}}']
    capture = read_capture(write_capture(tmp_path / "c.ws", extra + capture_lines(2)))
    assert len(capture) == len(capture_lines(2))
    assert any("2 × lines without a stream" in w for w in capture.warnings)
    assert any("1 × btcusdt@kline_1m" in w for w in capture.warnings)


def test_a_gzip_cut_at_any_point_is_used_up_to_the_cut(tmp_path: Path):
    lines = capture_lines(200)
    whole = write_capture(tmp_path / "c.ws.gz", lines).read_bytes()
    cut = tmp_path / "cut.ws.gz"
    for size in (len(whole) // 2, len(whole) * 9 // 10, len(whole) - 9, len(whole) - 1):
        cut.write_bytes(whole[:size])
        capture = read_capture(cut)
        assert 0 < len(capture) <= len(lines)
        assert capture.raw == [line.partition(" ")[2] for line in lines[: len(capture)]]
        assert "ends" in " ".join(capture.warnings)


def test_a_plain_file_cut_within_its_last_line_is_used_up_to_there(tmp_path: Path):
    path = write_capture(tmp_path / "c.ws", capture_lines(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    capture = read_capture(path)
    assert len(capture) == len(capture_lines(3)) - 1
    assert f"line {len(capture_lines(3))}" in capture.warnings[0]
    path.write_bytes(whole[:-1])  # only the last newline is missing: nothing is lost
    assert read_capture(path).warnings == []


def test_one_that_is_too_long_is_used_up_to_the_bound(tmp_path: Path):
    path = write_capture(tmp_path / "c.ws", capture_lines(50))
    capture = read_capture(path, bytes_max=2000)
    assert 0 < len(capture) < len(capture_lines(50))
    assert f"line {len(capture)}" in capture.warnings[0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: [*lines[:4], "not a line", *lines[4:]], "line 5: b'not' is not a receive time"),
        (lambda lines: [*lines[:4], lines[4][:-5], *lines[5:]], "line 5: its JSON is broken"),
        (lambda lines: [*lines[:4], f"{T0_NS}", *lines[5:]], "line 5: its JSON is broken"),
        (lambda lines: [*lines[:2], f"{T0_NS + 10**10} [1]"], "line 3: its JSON is not an object"),
        (lambda lines: [lines[5], lines[0]], "line 2: its receive time is .* sort -s -n"),
        (lambda lines: [lines[0].replace('"u":', '"v":').replace('"t":', '"v":')], "line 1: .* without a usable field"),
        (lambda lines: [f'{T0_NS} {{"stream":"btcusdt@trade","data":{{"t":"7"}}}}'], "line 1: .* 't': '7'"),
        (lambda lines: [], "no trade, bookTicker or depth message in its 0 lines"),
        (lambda lines: [f'{T0_NS} {{"id":1}}'], "no trade, bookTicker or depth message in its 1 lines"),
    ],
)
def test_a_wrong_line_is_an_error_that_names_file_line_and_remedy(tmp_path: Path, spoil, says: str):
    path = write_capture(tmp_path / "c.ws.gz", spoil(capture_lines(3)))
    with pytest.raises(CaptureError, match=says) as error:
        read_capture(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_not_a_file_or_not_a_gzip(tmp_path: Path):
    with pytest.raises(CaptureError, match="does not exist"):
        read_capture(tmp_path / "none.ws")
    with pytest.raises(CaptureError, match="directory"):
        read_capture(tmp_path)
    fake = tmp_path / "fake.ws.gz"
    fake.write_text("\n".join(capture_lines(2)))
    with pytest.raises(CaptureError, match=r"not a gzip.*without \.gz"):
        read_capture(fake)


def test_damage_inside_a_gzip_is_an_error_with_a_way_to_save_the_rest(tmp_path: Path):
    path = write_capture(tmp_path / "c.ws.gz", capture_lines(500))
    spoiled = bytearray(path.read_bytes())
    middle = len(spoiled) // 2
    spoiled[middle : middle + 40] = bytes(40)
    path.write_bytes(spoiled)
    with pytest.raises(CaptureError, match=r"line \d+"):
        read_capture(path)


# -- playing --


def test_the_seam_shows_no_gap_and_everything_goes_on_rising(tmp_path: Path):
    capture = read_capture(write_capture(tmp_path / "c.ws", capture_lines(5)))
    played = list(itertools.islice(CaptureSource(capture).play(wall_ms), 4 * len(capture)))
    d = decoder()
    for when, _, text in played:
        assert d.decode(text, when) is not None
    health = d.quality.health(0)
    assert (health.gaps, health.duplicates, health.reordered, health.malformed) == (0, 0, 0, 0)
    assert [w for w, _, _ in played] == sorted(w for w, _, _ in played)
    trades = ids(played, "trade")
    assert [t["t"] for t in trades] == list(range(trades[0]["t"], trades[0]["t"] + len(trades)))
    for kind in ("trade", "depth"):
        times = [m["E"] for m in ids(played, kind)]
        assert times == sorted(times)
    assert len({json.dumps(m) for m in ids(played, "bookTicker")}) == len(ids(played, "bookTicker"))


def test_the_seam_of_usdm_depth_names_its_predecessor(tmp_path: Path):
    capture = read_capture(write_capture(tmp_path / "c.ws", capture_lines(5, usdm=True)))
    depth = ids(list(itertools.islice(CaptureSource(capture).play(wall_ms), 3 * len(capture))), "depth")
    assert all(b["pu"] == a["u"] < b["u"] for a, b in itertools.pairwise(depth))


def test_the_first_round_reads_as_recorded_but_for_its_times(tmp_path: Path):
    lines = capture_lines(3)
    capture = read_capture(write_capture(tmp_path / "c.ws", lines))
    for line, (_, _, text) in zip(lines, CaptureSource(capture).play(wall_ms), strict=False):
        recorded, played = json.loads(line.partition(" ")[2])["data"], json.loads(text)["data"]
        for key in recorded.keys() - {"E", "T"}:
            assert played[key] == recorded[key]


def test_times_are_now_and_the_fastest_message_took_no_time(tmp_path: Path):
    """The collector's clock is 1270 ms behind the venue's, and one message took 30 ms longer than the others."""
    lines = capture_lines(4, venue_ahead_ms=1270, slow=6)
    capture = read_capture(write_capture(tmp_path / "c.ws", lines))
    assert capture.ahead_ns == 1270 * MS
    played = itertools.islice(CaptureSource(capture).play(wall_ms), len(lines))
    latency = [
        wall_ms(when) - json.loads(text)["data"]["E"] for when, stream, text in played if "bookTicker" not in stream
    ]
    assert sorted(latency) == [0] * (len(latency) - 1) + [30]


def test_rounds_ahead_move_the_ids_and_nothing_else(tmp_path: Path):
    capture = read_capture(write_capture(tmp_path / "c.ws", capture_lines(3)))
    now = list(itertools.islice(CaptureSource(capture).play(wall_ms), len(capture)))
    later = list(itertools.islice(CaptureSource(capture, generation=7).play(wall_ms), len(capture)))
    span = capture.spans["btcusdt"]
    assert [w for w, _, _ in now] == [w for w, _, _ in later]
    assert {b["t"] - a["t"] for a, b in zip(ids(now, "trade"), ids(later, "trade"), strict=True)} == {7 * span.trades}
    assert {b["u"] - a["u"] for a, b in zip(ids(now, "depth"), ids(later, "depth"), strict=True)} == {7 * span.updates}


def test_two_servers_by_the_clock_show_one_market_and_a_restart_continues_it(tmp_path: Path):
    capture = read_capture(write_capture(tmp_path / "c.ws", capture_lines(10)))
    start = capture.at_ns[0] + 5 * capture.duration_ns + capture.duration_ns // 3
    before = list(itertools.islice(CaptureSource.at_clock(capture, start, 1.0).play(wall_ms), 60))
    assert 0 <= before[0][0] < capture.duration_ns
    moment = before[40][0]
    after = list(itertools.islice(CaptureSource.at_clock(capture, start + moment, 1.0).play(wall_ms), 20))
    assert [when + moment for when, _, _ in after] == [when for when, _, _ in before[40:]]
    for kind, key in (("trade", "t"), ("bookTicker", "u"), ("depth", "u")):
        assert [m[key] for m in ids(after, kind)] == [m[key] for m in ids(before[40:], kind)]


def test_by_the_clock_the_pause_at_the_end_of_a_round_leads_to_the_next(tmp_path: Path):
    capture = read_capture(write_capture(tmp_path / "c.ws", capture_lines(10)))
    source = CaptureSource.at_clock(capture, capture.at_ns[0] + 3 * capture.duration_ns - 1, 1.0)
    when, _, text = next(source.play(wall_ms))
    assert when == 1
    assert (
        json.loads(text)["data"]["u"] == json.loads(capture.raw[0])["data"]["u"] + 3 * capture.spans["btcusdt"].updates
    )


def test_a_restarted_server_shows_higher_ids(tmp_path: Path):
    path = write_capture(tmp_path / "c.ws", capture_lines(100))  # 10 s a round
    for config in (FeedServerConfig(capture=path), FeedServerConfig()):
        now = 1_800_000_000 * 10**9
        first, second = (open_source(config, at) for at in (now, now + 10**9))
        during = itertools.takewhile(lambda m: m[0] < 10**9, first.play(wall_ms))
        highest = max(json.loads(t)["data"]["t"] for _, s, t in during if s.endswith("@trade"))
        lowest = next(json.loads(t)["data"]["t"] for _, s, t in second.play(wall_ms) if s.endswith("@trade"))
        assert lowest > highest


@pytest.mark.skipif(default_capture() is None, reason="the recording is not beside this checkout")
def test_the_recorded_market_has_no_fault_over_two_rounds():
    capture: Capture = read_capture(default_capture())  # type: ignore[arg-type]
    d = decoder()
    for when, _, text in itertools.islice(CaptureSource(capture).play(wall_ms), 2 * len(capture)):
        d.decode(text, when)
    health = d.quality.health(0)
    assert health.messages == 2 * 41_248
    assert (health.gaps, health.duplicates, health.reordered, health.malformed) == (0, 0, 0, 0)


# -- synthetic --


def test_the_synthetic_market_is_sound_and_at_its_pace():
    config = SyntheticConfig()
    played = list(itertools.islice(SyntheticSource(config).play(wall_ms), 20_000))
    d = decoder()
    for when, _, text in played:
        assert d.decode(text, when) is not None
    health = d.quality.health(0)
    assert (health.gaps, health.duplicates, health.reordered, health.malformed) == (0, 0, 0, 0)
    rate = len(played) / (played[-1][0] / 1e9)
    assert rate == pytest.approx(config.messages_per_s, rel=0.05)
    quotes = ids(played, "bookTicker")
    assert all(float(q["b"]) < float(q["a"]) for q in quotes)
    assert len({q["b"] for q in quotes}) > 100
    assert max(float(q["b"]) for q in quotes) < 2 * float(config.start_price)


def test_the_same_seed_is_the_same_market_and_another_is_not():
    def run(seed: int) -> list[tuple[int, str, str]]:
        return list(itertools.islice(SyntheticSource(SyntheticConfig(seed=seed)).play(wall_ms), 500))

    assert run(1) == run(1) != run(2)


def test_gzip_helper_writes_what_the_reader_expects(tmp_path: Path):
    path = write_capture(tmp_path / "c.ws.gz", capture_lines(1))
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == capture_lines(1)
