"""`baton simulate`: thousands of whole clusters on virtual time, judged; and what is made of one that fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chaos.check.verdict import as_json, table
from chaos.sim.plan import PROFILES, VENUES
from cluster.core.errors import ConfigError
from node.cli import out
from node.cli.out import Format

if TYPE_CHECKING:
    from chaos.sim.run import Summary

PROGRESS_S = 2.0


def simulate(
    seeds: Annotated[str, typer.Option(help="Which; B is not included.", metavar="A..B")] = "0..1000",
    nodes: Annotated[int | None, typer.Option(help="Of each cluster. [drawn: 2 or 3]", min=2, max=5)] = None,
    profile: Annotated[str, typer.Option(help=f"What goes wrong: {', '.join(PROFILES)}.", metavar="P")] = "all",
    venue: Annotated[str, typer.Option(help=f"Its fences: {', '.join(VENUES)}. [drawn]", metavar="V")] = "",
    jobs: Annotated[int, typer.Option(help="Processes. [one per core]", min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Where a failure's script and timeline go.", metavar="DIR")] = Path(
        "simulate-results"
    ),
    replay: Annotated[
        str, typer.Option(help="Live one again and tell its story: a seed, or a fault script.", metavar="SEED|FILE")
    ] = "",
    kill_matrix: Annotated[
        bool, typer.Option("--kill-matrix", help="Switch off each safeguard, forge each record: something must notice.")
    ] = False,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Every order of events of two keepers, within bounds.")
    ] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="pretty or json.", metavar="FORMAT")] = (
        Format.PRETTY
    ),
) -> None:
    """Whole clusters in one process, on virtual time, broken in every way we know, from one seed each; judged by the
    checker that judges drills and production. Exit 0 PASS, 1 FAIL, 3 INVALID, 4 INCONCLUSIVE (nothing is wrong, and
    some danger never arose: too few seeds)."""
    from node.cli.local import interruptible

    jobs = jobs or os.cpu_count() or 1
    if bool(replay) + kill_matrix + exhaustive > 1:
        raise typer.BadParameter("--replay, --kill-matrix and --exhaustive are three things to do; name one")
    try:
        _make(results)
        with interruptible():
            if kill_matrix:
                code = _kill_matrix(results, jobs)
            elif exhaustive:
                code = _exhaustive(jobs)
            elif replay:
                code = _replay(replay, profile, nodes, venue, results)
            else:
                code = _simulate(seeds, profile, nodes, venue, jobs, results, output)
    except ConfigError as e:
        raise typer.BadParameter(str(e)) from e
    raise typer.Exit(code)


def _make(results: Path) -> None:
    """Better now than after an hour. Raises ConfigError."""
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--results {results}: it cannot be made: {e.strerror}; name another directory") from e


# -- many seeds ----------------------------------------------------------------------------------------------------


def _simulate(seeds: str, profile: str, nodes: int | None, venue: str, jobs: int, results: Path, output: Format) -> int:
    from chaos.sim.run import Which, live_many, parse_seeds

    which, wanted = Which(profile, nodes, venue or None), parse_seeds(seeds)
    which.plan(wanted.start)  # a profile or venue that is none is told before anything starts
    progress = _Progress(len(wanted))
    summary = live_many(wanted, which, jobs=jobs, progress=progress.tell)
    progress.end()
    verdict = summary.verdict
    if output is Format.JSON:
        out.emit_json(as_json(verdict) | _figures(summary) | {"failing_seeds": [f._asdict() for f in summary.failures]})
    else:
        print("\n".join([*table(verdict), "", *_told(summary)]))
    return _failed(summary, which, results) if summary.failures else verdict.exit_code


class _Progress:
    """One line on stderr that changes, if a person is looking."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._began, self._told_at = wanted, time.monotonic(), 0.0
        self._live = sys.stderr.isatty()

    def tell(self, so_far: Summary) -> None:
        now = time.monotonic()
        if self._live and now - self._told_at > PROGRESS_S:
            self._told_at = now
            left = (now - self._began) / so_far.seeds * (self._wanted - so_far.seeds)
            print(
                f"\r{so_far.seeds} of {self._wanted} seeds, {so_far.failovers} failovers, {so_far.failed} failed, "
                f"{left:.0f} s left ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _figures(s: Summary) -> dict[str, Any]:
    rto = sorted(s.rto)
    return {
        "seeds": s.seeds,
        "failed": s.failed,
        "failovers": s.failovers,
        "failovers_per_core_s": round(s.failovers_per_s, 1),
        "steps": s.steps,
        "cpu_s": round(s.cpu_s, 1),
        "slowest_recovery_ttl": round(s.slowest, 2),
        "rto_ms": {q: round(rto[min(len(rto) - 1, int(len(rto) * q / 100))] / 1e6, 1) for q in (50, 90, 99)}
        if rto
        else {},
        "met": dict(sorted(s.cover.items())),
    }


def _told(s: Summary) -> list[str]:
    f = _figures(s)
    lines = [
        f"{s.seeds} clusters, {s.failovers} failovers, {s.steps} steps in {s.cpu_s:.1f} s of one core: "
        f"{s.failovers_per_s:.0f} failovers a second",
    ]
    if f["rto_ms"]:
        rto = ", ".join(f"p{q} {ms:g} ms" for q, ms in f["rto_ms"].items())
        lines.append(f"from a fault to the next leader's first order, of virtual time: {rto}")
    lines.append(f"slowest recovery after everything healed: {s.slowest:.2f} ttl")
    return lines


def _failed(summary: Summary, which: Any, results: Path) -> int:
    """Name the seeds, and make a story of the first."""
    from chaos.sim.replay import explain_failure
    from chaos.sim.run import silence

    silence()
    print()
    extra = f" --profile {which.profile}" * (which.profile != "all")
    extra += f" --nodes {which.nodes}" * (which.nodes is not None) + f" --venue {which.venue}" * (
        which.venue is not None
    )
    for failure in summary.failures:
        print(f"seed {failure.seed}: {failure.problems[0]}")
        print(f"   again: baton simulate --replay {failure.seed}{extra}")
    if summary.failed > len(summary.failures):
        print(f"and {summary.failed - len(summary.failures)} more")
    story = explain_failure(which.plan(summary.failures[0].seed), results)
    print(
        f"\nthe first, shortened to what it needs: {story.timeline}\n   again: baton simulate --replay {story.script}"
    )
    return 1


# -- one, and all of a small one -------------------------------------------------------------------------------------


def _replay(what: str, profile: str, nodes: int | None, venue: str, results: Path) -> int:
    from chaos.sim.replay import read_script, write_replay
    from chaos.sim.run import Which, silence

    silence()
    plan = Which(profile, nodes, venue or None).plan(int(what)) if what.isdigit() else read_script(Path(what))
    told = write_replay(plan, results)
    print(*(told.problems or ["nothing is wrong"]), f"its timeline: {told.timeline}", sep="\n")
    return 1 if told.problems else 0


def _exhaustive(jobs: int) -> int:
    from chaos.sim.exhaustive import Bounds, explore_all

    bounds = Bounds()
    out.say(
        f"two keepers, every order of at most {bounds.pauses} pause, {bounds.losses} lost reply and "
        f"{bounds.lease_events} lease events"
    )
    found = explore_all(bounds, jobs=jobs)
    print(f"{found.states} states, {found.moves} moves, {found.ends} ends")
    if found.wrong is None:
        print("no two permits at one instant, tokens only rise, and somebody leads at every end")
        return 0
    print(found.wrong[0], *(f"  {move}" for move in found.wrong[1]), sep="\n")
    return 1


def _kill_matrix(results: Path, jobs: int) -> int:
    from chaos.sim.kill_matrix import run_kill_matrix

    return 0 if run_kill_matrix(results, out.console(), jobs=jobs) else 1
