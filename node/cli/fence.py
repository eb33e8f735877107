"""The fencing token, and the etcd that it comes from: fence rebase. The work is done in `cluster/rebase.py`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.core.errors import BatonError
from node.cli import out
from node.cli.look import actor
from node.cli.parts import CONFIG

if TYPE_CHECKING:
    from cluster.rebase import Found

fence = typer.Typer(help="The fencing token, and the etcd that it comes from.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(fence, name="fence")


@fence.command("rebase")
def rebase(
    config: Annotated[Path, CONFIG] = Path("baton.toml"),
    lead: Annotated[
        bool, typer.Option("--lead", help="This node leads next: its journal is the one that ends highest.")
    ] = False,
    yes: Annotated[
        str | None, typer.Option("--yes", help="Do not ask: the cluster's name, as it would be typed.", metavar="NAME")
    ] = None,
) -> None:
    """Make an etcd that was restored or replaced the one that this node belongs to.

    To be run on every node, while all of them are stopped; last on the one whose journal ends highest, with --lead:
    it leads next, and the others catch up from it. Until then nobody leads. It can be repeated."""
    import asyncio

    from cluster.core.rebase import RebaseRefused
    from cluster.home import Home, HomeBusy
    from cluster.journal import Journal, JournalLocked
    from cluster.rebase import carry_out, kept, look
    from node.config import load_config
    from node.doctor import JOURNAL_FILE
    from node.spec import keeper_spec

    node = load_config(config)
    spec = keeper_spec(node, config)
    path = Path(spec.data_dir) / JOURNAL_FILE
    if not path.is_file():
        raise BatonError(
            f"there is no journal at {path}: without one, a node fetches everything from the leader, on any etcd. "
            "If there should be one, correct node.data_dir"
        )
    try:
        with (
            closing(Home.open(Path(spec.data_dir))) as home,
            # As its node does: that settles which journal it is, should the machine have been booted since.
            closing(Journal.open(path, cluster=spec.cluster, durability=node.replication.durability)) as journal,
        ):
            found = asyncio.run(look(spec, kept(spec, journal), lead=lead))
            _tell(spec.cluster, path, found)
            _confirm(spec.cluster, yes)
            asyncio.run(carry_out(spec, home, journal, found, actor()))
    except (HomeBusy, JournalLocked, RebaseRefused) as e:
        raise out.Refused(str(e)) from e
    _tell_next(found)


def _tell(cluster: str, path: Path, found: Found) -> None:
    """What there is, and what is about to be done with it."""
    view, mine, to = found.view, found.mine, found.plan.rebased
    print(f"journal of {mine.node}: ends at {mine.end}; {path}")
    belongs = f"etcd cluster {mine.etcd_cluster_id:x}" if mine.etcd_cluster_id else "no etcd yet"
    print(f"  has seen term {mine.highest_term}, belongs to {belongs}")
    print(f"etcd cluster {view.cluster_id:x}: at revision {view.revision}")
    print(f"  last tenure: {f'{view.tenure.token}, of {view.tenure.node}' if view.tenure else 'none'}")
    print(f"  in sync: {', '.join(sorted(view.insync.members)) or 'nobody'}")
    latch = f"set ({view.halted})" if view.halted is not None else "not set"
    print(f"  kill latch: {latch}. One pressed after the backup is not in it: press it again. The gate keeps its own")
    here = found.rebased.cluster_id == view.cluster_id
    ends = [f"{node} ends at {end}" for node, end in sorted(found.rebased.ends.items())] if here else []
    print("  rebased on it so far: " + ("; ".join(ends) or "nobody"))
    sys.stdout.flush()
    if mine.etcd_cluster_id == view.cluster_id and not here:
        out.say(
            f"{mine.node} belongs to this etcd already: if etcd was not restored, nothing has to be done. If it was,"
        )
        out.say(
            f"and {mine.node} was started too early with an empty journal, its end means nothing: it must not lead."
        )
    out.say(f"All nodes of cluster {cluster} must be stopped. This makes that etcd the one of {mine.node}.")
    if to is None:
        led = found.rebased.lead
        then = ", and still is" if led == mine.node else f"; {mine.node} follows and catches up"
        out.say(f"{led} was named to lead there{then}.")
    elif to.lead is None:
        out.say("In it, nobody is in sync any more: nobody leads before this was run somewhere with --lead.")
    else:
        out.say(f"In it, only {mine.node} is in sync: what its journal lacks is lost. No other one may end higher.")
        if to.missing:
            out.say(
                f"NOT rebased yet, and in sync before: {', '.join(to.missing)}. Do that first, unless they are lost."
            )


def _confirm(cluster: str, yes: str | None) -> None:
    """Raises Refused unless the cluster's name is given or typed."""
    if yes is None:
        out.say("Type the cluster's name to go on:")
        yes = sys.stdin.readline().strip() if sys.stdin is not None else ""
    if yes != cluster:
        raise out.Refused(f"{yes!r} is not this cluster's name; nothing was changed")


def _tell_next(found: Found) -> None:
    node, to = found.mine.node, found.plan.rebased
    if to is None:
        out.say(f"{node} is rebased; once every other node is, start them")
    elif to.lead is None:
        end, best = max((end, name) for name, end in to.ends.items())
        out.say(f"{node} is rebased; do the same on every node, then with --lead on the one whose journal ends highest")
        out.say(f"highest so far: {best}, {end}")
    else:
        out.say(f"{node} is rebased, and leads next; once every other node is rebased, start them")
