"""A recorded market: reads a capture, and plays it as a market without end.

Capture format, one message per line, plain or gzip: `<receive time, Unix ns> <raw JSON of the combined stream>`.
Trades, bookTicker and depth of any number of symbols are kept; other lines a collector writes (replies to its
subscriptions, REST snapshots, other streams) are left out and counted.

Playing loops without a seam: each time round, ids go on from where the last round ended, so that a client sees no gap,
and times are moved so that the market is *now*. Recorded gaps stay as they were. Read next: `replay.py`, the server.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from cluster.core.errors import ConfigError
from node.feeds.binance import canonical

BYTES_MAX = 512 * 2**20
"""A capture is held in memory; one that is longer is used up to here."""

FORMAT = "`<receive time in ns> <raw JSON of the combined stream>`"
_KINDS = ("trade", "bookTicker", "depth")
_GZIP_MAGIC = b"\x1f\x8b"


class CaptureError(ConfigError):
    """The capture cannot be used. Names the file, the line where there is one, and the remedy."""


@dataclass(slots=True)
class _Span:
    """First and last of a symbol's two numberings over the whole capture."""

    update_first: int = 0
    update_last: int = 0
    trade_first: int = 0
    trade_last: int = 0
    depth_last: int = 0
    depth_index: int = -1  # of its first depth message

    @property
    def updates(self) -> int:
        """How far `u` moves in one round. At least 1 beyond the last, so that it rises over the seam."""
        return self.update_last - self.update_first + 1

    @property
    def trades(self) -> int:
        return self.trade_last - self.trade_first + 1


@dataclass(slots=True)
class Capture:
    """Messages in order of arrival, held as three parallel columns: ten times smaller than objects of their own.

    ahead_ns: how far the venue's clock stamps ahead of the collector's on the fastest message. Subtracted, so that
    the fastest message took no time, and every delay is counted from it.
    """

    path: Path
    streams: list[str] = field(default_factory=list)  # canonical names; `stream_of` indexes them
    at_ns: array[int] = field(default_factory=lambda: array("q"))
    stream_of: array[int] = field(default_factory=lambda: array("H"))
    raw: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ahead_ns: int = 0
    duration_ns: int = 0  # of one round, including the pause before the next begins
    spans: dict[str, _Span] = field(default_factory=dict)  # by lower-case symbol

    def __len__(self) -> int:
        return len(self.raw)


# -- reading ----------------------------------------------------------------------------------------------


def read_capture(path: Path, *, bytes_max: int = BYTES_MAX) -> Capture:
    """Read the whole capture. Raises CaptureError. Blocks for about 10 µs per message: call it in a thread.

    What is cut off (a gzip without its end, a last line without its end, beyond `bytes_max`) is left out, and said
    in `warnings`; a line that is wrong in itself is an error, since what follows it cannot be trusted either.
    """
    if not path.exists():
        raise CaptureError(
            f"capture {path} does not exist; give the path of a recording, or none for a synthetic market"
        )
    if path.is_dir():
        raise CaptureError(f"capture {path} is a directory; give a file in it")
    capture = Capture(path)
    reader = _Reader(capture)
    try:
        with _open(path) as lines:
            for line in _until_cut(lines, capture):
                if len(line) + reader.bytes > bytes_max:
                    capture.warnings.append(
                        f"capture {path} is longer than {bytes_max} bytes; used up to line {reader.number}"
                    )
                    break
                reader.take(line)
    except OSError as failed:
        raise CaptureError(f"capture {path} cannot be read: {failed}") from failed
    return reader.finish()


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as f:
        magic = f.read(2)
    if magic == _GZIP_MAGIC:
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".gz" and magic:
        raise CaptureError(
            f"capture {path} is not a gzip file, in spite of its name; rename it without .gz if it is plain text"
        )
    return path.open("rb")


def _until_cut(lines: BinaryIO, capture: Capture) -> Iterator[bytes]:
    """Whole lines. A cut ends the iteration with a warning; damage in the middle of a gzip is an error."""
    number = 0
    try:
        for line in lines:
            if not line.endswith(b"\n") and not _is_whole(line):
                capture.warnings.append(f"capture {capture.path} ends inside line {number + 1}; used up to there")
                return
            number += 1
            yield line
    except EOFError:
        capture.warnings.append(f"capture {capture.path}: the gzip ends early; used up to line {number}")
    except (zlib.error, gzip.BadGzipFile) as damaged:
        raise CaptureError(
            f"capture {capture.path} is damaged after line {number} ({damaged}); fetch it again, or keep what is good "
            f"with: zcat FILE | head -n {number} > good.ws"
        ) from damaged


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line.partition(b" ")[2])
    except ValueError:
        return False
    return True


class _Reader:
    """Takes lines one by one, checks each, and gathers what looping needs to know."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.number = 0
        self.bytes = 0
        self._index: dict[str, int] = {}
        self._skipped: Counter[str] = Counter()
        self._ahead: int | None = None
        self._time_first = self._time_last = 0  # venue ms

    def _bad(self, why: str) -> CaptureError:
        return CaptureError(
            f"capture {self.capture.path} line {self.number}: {why}; each line must be {FORMAT}. Remove the line, "
            f"or give another recording"
        )

    def take(self, line: bytes) -> None:
        self.number += 1
        self.bytes += len(line)
        stamp, _, raw = line.rstrip(b"\r\n").partition(b" ")
        if not stamp.isdigit() or len(stamp) > 18 + 1:
            raise self._bad(f"{stamp[:40]!r} is not a receive time")
        at = int(stamp)
        try:
            text = raw.decode()
            message = json.loads(text)
        except (ValueError, RecursionError) as wrong:
            raise self._bad(f"its JSON is broken ({wrong})") from wrong
        if not isinstance(message, dict):
            raise self._bad("its JSON is not an object")
        self._check_order(at)
        name, data = message.get("stream"), message.get("data")
        if not isinstance(name, str) or not isinstance(data, dict):
            self._skipped["lines without a stream"] += 1
        elif (kind := name.split("@")[1] if "@" in name else name) not in _KINDS:
            self._skipped[name] += 1
        else:
            self._keep(at, canonical(name), kind, data, text)

    def _check_order(self, at: int) -> None:
        times = self.capture.at_ns
        if times and at < times[-1]:
            raise CaptureError(
                f"capture {self.capture.path} line {self.number}: its receive time is {times[-1] - at} ns before the "
                f"line above; put the lines in order with: zcat -f FILE | sort -s -n -k1,1 | gzip > sorted.ws.gz"
            )

    def _keep(self, at: int, name: str, kind: str, data: dict[str, Any], text: str) -> None:
        try:
            self._measure(at, name.partition("@")[0], kind, data)
        except (KeyError, TypeError) as wrong:
            raise self._bad(f"a {kind} message without a usable field {wrong}") from wrong
        c = self.capture
        index = self._index.get(name)
        if index is None:
            index = self._index[name] = len(c.streams)
            c.streams.append(name)
        c.at_ns.append(at)
        c.stream_of.append(index)
        c.raw.append(text)

    def _measure(self, at: int, symbol: str, kind: str, data: dict[str, Any]) -> None:
        span = self.capture.spans.setdefault(symbol, _Span())
        if kind == "trade":
            seq = _whole(data, "t")
            span.trade_first = min(span.trade_first or seq, seq)
            span.trade_last = max(span.trade_last, seq)
        else:
            last = _whole(data, "u")
            first = _whole(data, "U") if kind == "depth" else last
            if kind == "depth":
                span.depth_last = max(span.depth_last, last)
                if span.depth_index < 0:
                    span.depth_index = len(self.capture.raw)
            span.update_first = min(span.update_first or first, first)
            span.update_last = max(span.update_last, last)
        for key in ("E", "T"):
            if key in data:
                self._measure_time(at, _whole(data, key))

    def _measure_time(self, at: int, venue_ms: int) -> None:
        ahead = venue_ms * 1_000_000 - at
        self._ahead = ahead if self._ahead is None else max(ahead, self._ahead)
        self._time_first = min(self._time_first or venue_ms, venue_ms)
        self._time_last = max(self._time_last, venue_ms)

    def finish(self) -> Capture:
        c = self.capture
        if not c.raw:
            raise CaptureError(
                f"capture {c.path} has no trade, bookTicker or depth message in its {self.number} lines; "
                f"each line must be {FORMAT}"
            )
        for what, count in sorted(self._skipped.items()):
            c.warnings.append(f"capture {c.path}: left out {count} × {what}")
        c.ahead_ns = self._ahead or 0
        # The pause before the next round is the average one, and at least what keeps venue times rising over the seam.
        span = max(c.at_ns[-1] - c.at_ns[0], (self._time_last - self._time_first) * 1_000_000)
        c.duration_ns = span + max(1_000_000, span // max(1, len(c) - 1))
        return c


def _whole(data: dict[str, Any], key: str) -> int:
    value = data[key]
    if type(value) is not int:
        raise TypeError(f"{key!r}: {value!r}")
    return value


# -- playing ----------------------------------------------------------------------------------------------

_FIELD = re.compile(r'"(u|U|pu|t|E|T)":\s*([0-9]+)')
_FIELDS_MAX = 6
"""Most numbered fields in one message; what follows them in a depth message are only levels, and need no search."""


class CaptureSource:
    """A capture as a market without end (see `replay.Source`).

    generation: in which round it starts; ids are moved by as many rounds. within_ns: how far into the round.
    """

    def __init__(self, capture: Capture, generation: int = 0, within_ns: int = 0) -> None:
        self._capture = capture
        self._generation, self._within_ns = generation, within_ns
        self.streams = frozenset(capture.streams)

    @classmethod
    def at_clock(cls, capture: Capture, unix_ns: int, speed: float) -> CaptureSource:
        """Where the market would be now, had it looped ever since it was recorded. Two servers with equal clocks
        show the same market, and one that is restarted goes on where it would have been."""
        elapsed = max(0, int((unix_ns - capture.at_ns[0]) * speed))
        generation, within_ns = divmod(elapsed, capture.duration_ns)
        return cls(capture, generation, within_ns)

    def play(self, wall_ms: Callable[[int], int]) -> Iterator[tuple[int, str, str]]:
        """(when, canonical stream, message), without end. `when` is ns of market time since the start; `wall_ms`
        turns such a time into the Unix ms that the message carries."""
        c = self._capture
        names = [c.streams[i] for i in c.stream_of]
        start = c.at_ns[0] + self._within_ns
        generation, index = self._generation, bisect_left(c.at_ns, start)
        while True:
            into = (generation - self._generation) * c.duration_ns - start

            def venue_ms(ms: int, into: int = into - c.ahead_ns) -> int:
                return wall_ms(ms * 1_000_000 + into)

            for i in range(index, len(c)):
                yield into + c.at_ns[i], names[i], self._moved(i, names[i], generation, venue_ms)
            generation, index = generation + 1, 0

    def _moved(self, i: int, name: str, generation: int, wall_ms: Callable[[int], int]) -> str:
        """Message `i` as it reads in this round."""
        span = self._capture.spans[name.partition("@")[0]]
        updates, trades = generation * span.updates, generation * span.trades
        # The first depth update of a round takes up where the last of the round before ended: on spot by covering
        # the ids between (U), on USD-M by naming it (pu). All other ids keep their distances.
        bridge = updates - span.updates + span.depth_last if generation > self._generation else None
        if i != span.depth_index:
            bridge = None

        def move(m: re.Match[str]) -> str:
            key, value = m[1], int(m[2])
            if key == "E" or key == "T":
                value = wall_ms(value)
            elif key == "t":
                value += trades
            elif key == "U" and bridge is not None:
                value = bridge + 1
            elif key == "pu" and bridge is not None:
                value = bridge
            else:
                value += updates
            return f'"{key}":{value}'

        return _FIELD.sub(move, self._capture.raw[i], count=_FIELDS_MAX)
