"""What every command obeys when it talks: data on stdout, talk on stderr, one meaning per exit code.

    0 ok   1 error   2 wrong usage   3 refused: not leader, not safe   4 nobody answers   5 timeout

JSON is versioned (`"schema": 1`); times are ISO-8601 UTC, durations seconds, money strings. NO_COLOR is honoured by
Rich, which is imported only where a table is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cluster.core.errors import BatonError, OutcomeUnknown, StepDown, Unreachable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

OK, ERROR, USAGE, REFUSED, UNREACHABLE, TIMEOUT = range(6)
SCHEMA = 1


class Format(StrEnum):
    PRETTY = "pretty"
    JSON = "json"
    TSV = "tsv"


class Refused(BatonError):
    """The cluster said no: not leader, or not safe."""


class TimedOut(BatonError):
    """What was asked for may still happen; it had not when we stopped waiting."""


class Failed(BatonError):
    """The command ran, and what it looked at is not in order. The text may be empty: everything is said already."""


def exit_code(error: BatonError) -> int:
    if isinstance(error, Refused | StepDown):
        return REFUSED
    if isinstance(error, Unreachable):
        return UNREACHABLE
    if isinstance(error, TimedOut | OutcomeUnknown):
        return TIMEOUT
    return ERROR


def say(text: str) -> None:
    """Talk."""
    print(text, file=sys.stderr, flush=True)


def emit_json(data: dict[str, Any], *, compact: bool = False) -> None:
    told = {"schema": SCHEMA} | data
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    print(json.dumps(told, ensure_ascii=False, allow_nan=False, **layout), flush=True)


def emit_tsv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A line of names, then a line per row. Nothing, or an empty text, is a dash; a tab or line end inside a value
    becomes a blank."""
    print("\t".join(columns))
    for row in rows:
        print("\t".join(_cell(row.get(c)) for c in columns))
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        value = json.dumps(value, separators=(",", ":"))
    return " ".join(str(value).split("\t")).replace("\n", " ").replace("\r", " ")


def console() -> Console:
    """Stdout. Not cut to 80 columns when nobody looks at it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False, soft_wrap=not sys.stdout.isatty())


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        drawn.add_column(name, no_wrap=True)
    for row in rows:
        drawn.add_row(*(v if isinstance(v, Text) else Text(_cell(v)) for v in row))
    return drawn


def seconds(value: float | None) -> str:
    """A duration for people, in the unit that fits."""
    if value is None:
        return "-"
    if abs(value) < 1:
        return f"{value * 1000:.1f} ms" if abs(value) < 0.1 else f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 60 else f"{value:.0f} s"


def iso_of_ns(unix_ns: Any) -> Any:
    """Unix nanoseconds as ISO-8601 UTC; anything else as it is."""
    if not isinstance(unix_ns, int) or isinstance(unix_ns, bool):
        return unix_ns
    at = datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{unix_ns % 1_000_000_000 // 1_000_000:03d}Z"
