"""`baton`: the commands, and what becomes of their errors.

Each command imports what it needs when it runs, so that `baton version` and `baton node run` start fast. The groups:
`local.py` (up, down), `look.py` (status, history, orders, positions, switchover), `parts.py` (what other processes are
made of: node, venue, feed), `check.py` (config, journal, doctor, version), `fence.py` (fence).
"""

from __future__ import annotations

import os
import signal
import sys

import typer

from cluster.core.errors import BatonError
from node.cli import check, fence, local, look, out, parts

app = typer.Typer(
    name="baton",
    help="Active-passive high availability for trading nodes: one leader, fenced, its state on the standbys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (local, look, check, parts, fence):
    group.register(app)


def main() -> None:
    """Run the command; every error of the user's or the world's is one line on stderr and an exit code (`out`)."""
    try:
        app(prog_name="baton")
    except BatonError as e:
        if str(e):
            for line in str(e).splitlines():
                out.say(f"baton: {line.removeprefix('baton: ')}")  # a program's last words begin so, too
        _leave(out.exit_code(e))
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT)
    except Exception as e:
        if os.environ.get("BATON_DEBUG"):
            raise
        out.say(f"baton: {type(e).__name__}: {e}; this is a fault of ours; set BATON_DEBUG=1 for the traceback")
        _leave(out.ERROR)


def _leave(code: int) -> None:
    sys.exit(code)
