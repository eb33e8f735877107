"""Small captures in the format of the recorded ones, for tests that need to know every message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

MS = 1_000_000
T0_NS = 1_723_161_254_000 * MS
LINES_PER_STEP = 5


def capture_lines(
    steps: int, *, step_ms: int = 100, usdm: bool = False, venue_ahead_ms: int = 0, slow: int = -1
) -> list[str]:
    """Five messages a step, 1 ms apart: quote, trade, quote, trade, depth; and a last quote. All ids without a gap; the
    first and the last update ids are those of quotes, so that a seam has to be bridged for depth.

    venue_ahead_ms: the venue's clock against the collector's. slow: the line whose message took 30 ms longer.
    """
    lines: list[str] = []
    update, trade, depth_last = 1000, 500, 1003

    def add(at_ms: int, stream: str, **data: Any) -> None:
        if "E" in data:
            data["E"] += venue_ahead_ms - (30 if len(lines) == slow else 0)
            data["T"] = data["E"]
        message = {"stream": stream, "data": {**data, "s": "BTCUSDT"}}
        lines.append(f"{T0_NS + at_ms * MS} " + json.dumps(message, separators=(",", ":")))

    for step in range(steps):
        at = step * step_ms
        now = T0_NS // MS + at
        price = 60_000 + step % 7
        for k in (0, 2):
            update += 2
            add(
                at + k, "btcusdt@bookTicker", u=update, b=f"{price}.00", B="1.0", a=f"{price}.01", A=f"{step + k + 1}.0"
            )
            trade += 1
            at_trade = at + k + 1
            add(at_trade, "btcusdt@trade", e="trade", E=now + k + 1, t=trade, p=f"{price}.01", q="0.5", m=False)
        extra = {"pu": depth_last} if usdm else {}
        first = depth_last + (5 if usdm else 1)
        update = max(update, first) + 1
        add(
            at + 4,
            "btcusdt@depth@100ms",
            e="depthUpdate",
            E=now + 4,
            U=first,
            u=update,
            **extra,
            b=[[f"{price}.00", "1.0"]],
            a=[],
        )
        depth_last = update
    if steps:
        add(steps * step_ms, "btcusdt@bookTicker", u=update + 3, b="60000.00", B="1.0", a="60000.01", A="1.0")
    return lines


def write_capture(path: Path, lines: list[str], *, zipped: bool | None = None) -> Path:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if (path.suffix == ".gz" if zipped is None else zipped) else data)
    return path
