"""`baton up` and `baton down`: a local cluster of real processes. The work is done in `node/local/`."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.core.errors import BatonError
from node.cli import out

if TYPE_CHECKING:
    from node.local.cluster import LocalCluster, Options

DIRECTORY = Path("baton-data")
_LOOK_S = 0.5


def register(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("down")(down)


def up(
    directory: Annotated[Path, typer.Option("--dir", help="Everything is kept here.", metavar="D")] = DIRECTORY,
    nodes: Annotated[int | None, typer.Option(help="Trading nodes. [3]", min=1, max=9)] = None,
    etcd: Annotated[int | None, typer.Option(help="etcd members, 1 or 3. [3]", metavar="1|3")] = None,
    feed: Annotated[
        str | None,
        typer.Option(help='A capture, or "synthetic". [a recording beside the checkout, else synthetic]', metavar="F"),
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Of the market; 2 is twice as fast. [1]", metavar="X")] = None,
    venue_profile: Annotated[
        str | None, typer.Option(help="Which fences the venue has: token, expiry or plain. [token]", metavar="P")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="package.module:Class", metavar="PATH")] = None,
    config_overlay: Annotated[
        Path | None,
        typer.Option(
            help="TOML merged over the generated configuration; [per_node.n1...] for one node.", metavar="FILE"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it trades; baton down stops it.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds until it must trade.", min=1)] = 60.0,
) -> None:
    """Start a cluster on this machine: etcd, Redis, market data, a paper venue and trading nodes.

    On a directory that was used before, it goes on with what is there; options that are not given stay as they were."""
    with interruptible():
        from node.local.cluster import LocalCluster

        cluster = LocalCluster(directory)
        cluster.refuse_running()
        told = {
            "nodes": nodes,
            "etcd": etcd,
            "feed": feed,
            "speed": speed,
            "venue_profile": venue_profile,
            "strategy": strategy,
        }
        options = _options(cluster, {k: v for k, v in told.items() if v is not None}, config_overlay)
        out.say(f"starting {options.nodes} nodes in {cluster.dir} on {options.market}")
        cluster.start(options, timeout_s=timeout, tied=not detach)
        out.say(f"ready; status page: {cluster.urls[0]}")
        if not detach:
            stay(cluster)


def _options(cluster: LocalCluster, told: dict[str, Any], overlay: Path | None) -> Options:
    from node.local import nodeconfig
    from node.local.cluster import Options

    options = replace(cluster.good_options if cluster.exists else Options(), **told)
    options.check()
    if overlay is not None:
        options = replace(options, overlay=nodeconfig.read_overlay(overlay, options.node_names))
    return options


def down(
    directory: Annotated[Path, typer.Option("--dir", help="Of the cluster.", metavar="D")] = DIRECTORY,
) -> None:
    """Stop a local cluster: everything it started, and nothing else. Its data stays."""
    from node.local.cluster import LocalCluster

    cluster = LocalCluster(directory)
    out.say(f"stopped the cluster in {cluster.dir}" if cluster.stop() else f"nothing runs in {cluster.dir}")


# -- in the foreground -----------------------------------------------------------------------------------------


def stay(cluster: LocalCluster) -> None:
    """Show the cluster until Ctrl-C, SIGTERM or SIGHUP, then stop it; a second one kills. Call within `interruptible`,
    which has to cover the start as well."""
    try:
        _show(cluster)
        reason = cluster.record().get("reason") or f"see {cluster.supervisor_log}"
        raise BatonError(f"the cluster ended by itself; {reason}")
    except KeyboardInterrupt:
        out.say("stopping; Ctrl-C again kills")
    finally:
        cluster.stop_or_kill()
    out.say("stopped")


class Interrupted(KeyboardInterrupt):
    """number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in here, so that what was begun is undone; the exit code names the
    signal. To be entered before anything is begun: SIGTERM would end us alone and leave what we started running, and
    SIGINT nothing at all, as a shell that starts us in the background has it ignored."""

    def interrupt(number: int, _frame: Any) -> None:
        raise Interrupted(number)

    before = {sig: signal.signal(sig, interrupt) for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except Interrupted as e:
        out.say("interrupted; what had started is stopped")
        raise typer.Exit(128 + e.number) from None
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _show(cluster: LocalCluster) -> None:
    """Until the supervisor ends: a table that stays in place on a terminal, else a line for every change."""
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(console=out.console(), auto_refresh=False) as live:
            while cluster.running:
                live.update(_picture(cluster), refresh=True)
                time.sleep(_LOOK_S)
        return
    told = ""
    while cluster.running:
        line = _line(cluster)
        if line != told:
            print(line, flush=True)
            told = line
        time.sleep(_LOOK_S)


def _picture(cluster: LocalCluster) -> Any:
    from rich.console import Group
    from rich.text import Text

    from node.cli.look import status_picture

    troubled = [
        f"{n} {p['state']} ({p['last_exit']})" for n, p in cluster.programs().items() if p["state"] != "running"
    ]
    footer = Text(f" {', '.join(troubled) or 'all programs run'}   page: {cluster.urls[0]}   Ctrl-C stops", style="dim")
    try:
        return Group(status_picture(cluster.status()), footer)
    except BatonError as e:
        return Group(Text(str(e), style="red"), footer)


def _line(cluster: LocalCluster) -> str:
    """What is worth a line when it changes."""
    try:
        status = cluster.status()
    except BatonError as e:
        return str(e)
    leader = status.get("leader") or {}
    permission = status["permission"]
    roles = " ".join(f"{r['name']}={r['role']}{'' if r['in_sync'] else '(not in sync)'}" for r in status["nodes"])
    reason = f" ({permission['reason']})" if permission["reason"] else ""
    return f"leader={leader.get('node')} token={leader.get('token')} trading={permission['level']}{reason} {roles}"
