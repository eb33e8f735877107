"""What a cluster is made of, each a process in the foreground: node run, node resign, venue run, feed serve; and the
venue's record. They log to stderr as JSON and stop on SIGTERM and SIGINT."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.core.errors import ConfigError
from node.cli import out

CONFIG = typer.Option("--config", "-c", help="The node's baton.toml.", metavar="FILE")

node = typer.Typer(help="One trading node of this host.", no_args_is_help=True)
venue = typer.Typer(help="The paper exchange.", no_args_is_help=True)
feed = typer.Typer(help="Recorded or synthetic market data.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(node, name="node")
    app.add_typer(venue, name="venue")
    app.add_typer(feed, name="feed")


@node.command("run")
def node_run(config: Annotated[Path, CONFIG] = Path("baton.toml")) -> None:
    """Run a node: its keeper takes this process over, and starts the worker."""
    from node.config import load_config
    from node.spec import become_keeper, keeper_spec

    become_keeper(keeper_spec(load_config(config), config))


@node.command("resign")
def node_resign(
    dead: Annotated[bool, typer.Option("--dead", help="Required: says that the node is dead, which is checked.")],
    config: Annotated[Path, CONFIG] = Path("baton.toml"),
) -> None:
    """Resign for a node that died, so that nobody waits for its lease. For systemd's ExecStopPost.

    Refused while anything of the node is alive: the lock in its data directory proves it. To hand over a living
    leader, use switchover."""
    import asyncio

    from cluster.home import HomeBusy
    from cluster.registry import resign_dead
    from node.config import load_config
    from node.spec import keeper_spec

    if not dead:
        raise typer.BadParameter("only --dead can be meant; for a living leader: baton switchover")
    try:
        done = asyncio.run(resign_dead(keeper_spec(load_config(config), config)))
    except HomeBusy as e:
        raise out.Refused(str(e)) from e
    out.say(done)


@venue.command("run")
def venue_run(
    directory: Annotated[Path, typer.Option("--dir", help="Where its record is kept.", metavar="D")],
    listen: Annotated[str, typer.Option(help="host:port", metavar="ADDRESS")] = "127.0.0.1:7450",
    profile: Annotated[
        str, typer.Option(help="token, expiry or plain; then +while-open, +no-deadman.", metavar="P")
    ] = "token",
    feed_url: Annotated[
        str | None,
        typer.Option(help="Market data; without it, every order is refused.", metavar="URL"),
    ] = None,
    instrument: Annotated[
        list[str] | None, typer.Option(help="SYMBOL,TICK_SIZE,LOT_SIZE; may be repeated.", metavar="I")
    ] = None,
    ack_delay: Annotated[float, typer.Option(help="Fault: seconds before every reply.", min=0)] = 0.0,
    drop_ack_after: Annotated[
        int | None, typer.Option(help="Fault: take further new orders without a reply after so many.", min=0)
    ] = None,
) -> None:
    """Run the paper exchange."""
    from node.paper_venue.profile import parse_profile
    from node.paper_venue.server import VenueServerConfig, run_venue

    _address(listen)
    config = VenueServerConfig(
        listen,
        directory,
        tuple(_instrument(i) for i in instrument or ["BTCUSDT,0.01,0.00001"]),
        parse_profile(profile),
        feed_url,
        ack_delay_s=ack_delay,
        drop_ack_after=drop_ack_after,
    )
    _serve(run_venue(config))


def _address(listen: str) -> tuple[str, int]:
    from node.config_model import host_port

    try:
        return host_port(listen)
    except ValueError as e:
        raise ConfigError(f"--listen {listen}: {e}") from e


def _instrument(text: str) -> Any:
    from decimal import Decimal, InvalidOperation

    from node.types import Instrument

    try:
        symbol, tick, lot = text.split(",")
        return Instrument(symbol, Decimal(tick), Decimal(lot))
    except (ValueError, InvalidOperation) as e:
        raise ConfigError(f"--instrument {text!r}: write SYMBOL,TICK_SIZE,LOT_SIZE, like BTCUSDT,0.01,0.00001") from e


@venue.command("record")
def venue_record(
    directory: Annotated[
        Path, typer.Option("--dir", help="Of a local cluster, or of the venue itself.", metavar="D")
    ] = Path("baton-data"),
    output: Annotated[str, typer.Option("--output", "-o", help="jsonl", metavar="FORMAT")] = "jsonl",
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain instead; exit 1 if it is broken.")] = False,
) -> None:
    """Everything the venue was told and did, one JSON line each, in its own total order. It may be running."""
    import json
    import sys

    from node.paper_venue.record import read_record, verify_record

    if output != "jsonl":
        raise typer.BadParameter(f"{output!r}: the record is written as jsonl only", param_hint="--output")
    path = directory / "venue" if (directory / "venue").is_dir() else directory
    if verify:
        out.say(f"{verify_record(path)} lines, chain intact")
        return
    for line in read_record(path):
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


@feed.command("serve")
def feed_serve(
    listen: Annotated[str, typer.Option(help="host:port", metavar="ADDRESS")] = "127.0.0.1:7460",
    capture: Annotated[
        Path | None, typer.Option(help="A recording of combined streams; default: the one beside the checkout, if any.")
    ] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="A made-up market.")] = False,
    speed: Annotated[float, typer.Option(help="2: twice as fast as recorded.")] = 1.0,
    start: Annotated[
        str, typer.Option(help="clock: where a recording that loops for ever is by now; or beginning.")
    ] = "clock",
) -> None:
    """Serve market data on Binance's combined-stream URL, for machines that cannot or must not reach a venue."""
    from node.feeds.replay import FeedServerConfig, default_capture, serve_feed

    if start not in ("clock", "beginning"):
        raise typer.BadParameter(f"{start!r}: clock or beginning", param_hint="--start")
    if capture is not None and synthetic:
        raise typer.BadParameter("either --capture or --synthetic", param_hint="--synthetic")
    host, port = _address(listen)
    source = None if synthetic else capture or default_capture()
    out.say(f"feed: {source or 'synthetic market'}")
    config = FeedServerConfig(
        host=host,
        port=port,
        capture=source,
        speed=speed,
        start="clock" if start == "clock" else "beginning",
    )
    _serve(serve_feed(config))


def _serve(work: Coroutine[Any, Any, None]) -> None:
    """Run a server on uvloop until SIGTERM or SIGINT, or until it ends by itself; its error is raised."""
    import asyncio
    import signal

    import uvloop

    from cluster.logs import configure_logging

    configure_logging("info")

    async def run() -> None:
        serving = asyncio.ensure_future(work)
        stopping = False

        def stop() -> None:
            nonlocal stopping
            stopping = True
            serving.cancel()

        for sig in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sig, stop)
        try:
            await serving
        except asyncio.CancelledError:
            if not stopping:
                raise

    uvloop.run(run())
