"""The console script `baton`: the node's commands, and those that break and measure things.

Here and not in `node/`, because imports go one way: chaos -> node -> cluster.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chaos.sim.command import simulate
from node.cli import out
from node.cli.app import app
from node.cli.app import main as run
from node.cli.out import Format

if TYPE_CHECKING:
    from chaos.check.evidence import Evidence
    from node.local.cluster import Options


def demo(
    feed: Annotated[
        str,
        typer.Option(help='A capture, or "synthetic". [a recording beside the checkout, else synthetic]', metavar="F"),
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="Break it in five ways, judge, and end.")] = False,
    nodes: Annotated[int, typer.Option(help="Trading nodes.", min=2, max=9)] = 3,
    etcd: Annotated[int, typer.Option(help="etcd members, 1 or 3.", metavar="1|3")] = 3,
    speed: Annotated[float, typer.Option(help="Of the market; 2 is twice as fast.", metavar="X")] = 1.0,
    venue_profile: Annotated[
        str, typer.Option(help="Which fences the venue has: token, expiry or plain.", metavar="P")
    ] = "token",
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Keep everything here; else it is removed at the end.", metavar="D")
    ] = None,
) -> None:
    """A cluster of three nodes that trades on recorded market data until Ctrl-C; with --show, broken in five ways in
    front of you and judged from the venue's own record (exit 0: everything held)."""
    from node.cli.local import interruptible
    from node.local.cluster import Options

    options = Options(nodes=nodes, etcd=etcd, feed=feed, speed=speed, venue_profile=venue_profile)
    options.check()
    with interruptible():
        where = directory or Path(tempfile.mkdtemp(prefix="baton-demo-"))
        clean = False
        try:
            if show:
                clean = _show(options, where)
            else:
                _trade(options, where)
                clean = True
        except KeyboardInterrupt:
            clean = True
            raise
        finally:
            if directory is None and clean:
                shutil.rmtree(where, ignore_errors=True)
    if not clean:
        raise out.Failed(f"not everything held; the evidence is in {where}")


def _show(options: Options, where: Path) -> bool:
    from chaos.show import run_show

    return run_show(options, where, out.console())


def _trade(options: Options, where: Path) -> None:
    from node.cli.local import stay
    from node.local.cluster import LocalCluster

    cluster = LocalCluster(where)
    members = f"{options.nodes} nodes, {options.etcd} etcd members, Redis and a paper venue"
    out.say(f"starting {members} in {where} on {options.market}")
    cluster.start(options, tied=True)
    out.say(f"ready; status page: {cluster.urls[0]}")
    stay(cluster)


def bench(
    results: Annotated[Path, typer.Option(help="Where the JSON goes, and whose disk is synced.", metavar="D")] = Path(
        "bench-results"
    ),
    failovers: Annotated[int, typer.Option(help="Of each kind.", min=1)] = 30,
    orders: Annotated[int, typer.Option(help="Per latency row.", min=100)] = 5000,
) -> None:
    """Measure failovers and order latency beside the alternatives, in one run; table on stdout, JSON in a file."""
    from chaos.bench.suite import run_suite

    path = run_suite(results, out.console(), failovers=failovers, orders=orders)
    out.say(f"written to {path}")


def audit(
    record: Annotated[
        Path | None,
        typer.Option(help="The venue's: record.sqlite3, its directory, or a JSONL of such lines.", metavar="FILE"),
    ] = None,
    journal: Annotated[
        list[str] | None, typer.Option(help="A node's journal.db; may be repeated.", metavar="NODE=FILE")
    ] = None,
    gate: Annotated[
        str, typer.Option(help="The gate's record: redis://host:port/0, or a JSONL.", metavar="URL|FILE")
    ] = "",
    cluster: Annotated[
        str, typer.Option(help="Whose gate, if the Redis has several. [the only one]", metavar="NAME")
    ] = "",
    evidence: Annotated[Path | None, typer.Option(help="The folder of a drill's evidence.", metavar="DIR")] = None,
    at_rest: Annotated[
        bool, typer.Option("--at-rest", help="Trading has stopped: hold against a node what it lacks.")
    ] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="pretty, json or tsv.", metavar="FORMAT")] = (
        Format.PRETTY
    ),
) -> None:
    """Judge what happened, from records alone; reads, never writes, and the cluster may be trading. The venue's record
    by itself shows whether a decision was executed twice and whether two leaders' terms interleave; every other one
    lets more be judged. Exit 0 PASS, 1 FAIL, 3 INVALID (a record is not whole), 4 INCONCLUSIVE (nothing is wrong, and
    some danger never arose); 5 where the gate or a journal did not answer in time."""
    from chaos.check.audit import Named, WrongInput, gather
    from chaos.check.invariants import check
    from chaos.check.verdict import as_json, table

    if record is None and evidence is None:
        raise typer.BadParameter(
            "name the venue's record, or a folder of evidence", param_hint="--record or --evidence"
        )
    try:
        found = gather(Named(record, journal or (), gate, cluster, evidence, at_rest))
    except WrongInput as e:
        raise typer.BadParameter(str(e), param_hint=e.option) from e
    verdict = check(found)
    told = as_json(verdict)
    if output is Format.JSON:
        out.emit_json(told)
    elif output is Format.TSV:
        out.emit_tsv(("id", "level", "statement", "covers", "violations", "note"), told["invariants"])
    else:
        print("\n".join([*table(verdict), *_end_of(found)]))
    raise typer.Exit(verdict.exit_code)


def _end_of(found: Evidence) -> list[str]:
    """How far the venue's record goes: no chain tells whether its end was cut off."""
    if not found.venue:
        return []
    last = found.venue[-1]
    try:
        when = datetime.fromtimestamp(last["at_ns"] / 1e9, UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):  # a line that anybody wrote
        when = str(last["at_ns"])
    return [f"the venue's record ends with line {last['venue_seq']}, of {when}"]


app.command("demo")(demo)
app.command("bench")(bench)
app.command("audit")(audit)
app.command("simulate")(simulate)


def main() -> None:
    run()
