"""`baton simulate`: thousands of whole clusters on virtual time, judged; and what is made of one that fails."""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chaos.check.verdict import as_json, table
from chaos.sim.plan import PROFILES, VENUES
from cluster.core.errors import ConfigError
from node.cli import out

if TYPE_CHECKING:
    from chaos.sim.run import Summary, Which

PROGRESS_S = 2.0
LINE_S = 30.0
"""Between two lines of progress where nobody watches one that changes."""
SEEDS = "0..1000"


class Format(StrEnum):
    PRETTY = "pretty"
    JSON = "json"


def simulate(
    seeds: Annotated[
        str | None,
        typer.Option(help=f"Which; B is not included. A thousand take about half a minute. [{SEEDS}]", metavar="A..B"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Of each cluster. [drawn: 2 or 3]", min=2, max=5)] = None,
    profile: Annotated[
        str | None, typer.Option(help=f"What goes wrong: {', '.join(PROFILES)}. [all]", metavar="P")
    ] = None,
    venue: Annotated[str | None, typer.Option(help=f"Its fences: {', '.join(VENUES)}. [drawn]", metavar="V")] = None,
    jobs: Annotated[int, typer.Option(help="Processes. [one per core]", min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Where a failure's script and timeline go.", metavar="DIR")] = Path(
        "simulate-results"
    ),
    replay: Annotated[
        str, typer.Option(help="Live one again and tell its story: a seed, or a fault script.", metavar="SEED|FILE")
    ] = "",
    kill_matrix: Annotated[
        bool,
        typer.Option(
            "--kill-matrix",
            help="Switch off each safeguard, forge each record: something must notice. A minute on two free cores.",
        ),
    ] = False,
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Every order of events of two keepers, within bounds. Two to three minutes."),
    ] = False,
    output: Annotated[
        Format, typer.Option("--output", "-o", help="pretty or json; of seeds and replays.", metavar="FORMAT")
    ] = Format.PRETTY,
) -> None:
    """Whole clusters in one process, on virtual time, broken in every way we know, from one seed each; judged by the
    checker that judges drills and production. Exit 0 PASS, 1 FAIL, 3 INVALID, 4 INCONCLUSIVE (nothing is wrong, and
    some danger never arose: too few seeds)."""
    from node.cli.local import interruptible

    jobs = jobs or os.cpu_count() or 1
    drawn = {"--nodes": nodes, "--profile": profile, "--venue": venue}
    one = "--replay" if replay else "--kill-matrix" if kill_matrix else "--exhaustive" if exhaustive else "--seeds"
    _refuse_what_is_not_used(one, bool(replay) + kill_matrix + exhaustive, seeds, drawn, replay, output)
    try:
        _make(results)
        with interruptible():
            from chaos.sim.run import Which

            which = Which(profile or "all", nodes, venue)
            if kill_matrix:
                code = _kill_matrix(results, jobs)
            elif exhaustive:
                code = _exhaustive(jobs)
            elif replay:
                code = _replay(replay, which, results, output)
            else:
                code = _simulate(SEEDS if seeds is None else seeds, which, jobs, results, output)
    except ConfigError as e:
        raise typer.BadParameter(str(e)) from e
    raise typer.Exit(code)


def _refuse_what_is_not_used(
    one: str, named: int, seeds: str | None, drawn: dict[str, Any], replay: str, output: Format
) -> None:
    """Raises BadParameter: what is silently left out misleads."""
    if named > 1:
        raise typer.BadParameter("--replay, --kill-matrix and --exhaustive are three things to do; name one")
    if one != "--seeds" and seeds is not None:
        raise typer.BadParameter(f"--seeds {seeds} says nothing to {one}; leave one of them out")
    unused = [name for name, value in drawn.items() if value is not None]
    if unused and one == "--replay" and not replay.isdigit():
        raise typer.BadParameter(f"{', '.join(unused)}: {replay} says that itself; leave it out, or change the script")
    if unused and one in ("--kill-matrix", "--exhaustive"):
        raise typer.BadParameter(f"{', '.join(unused)}: of no use with {one}; leave it out")
    if output is not Format.PRETTY and one in ("--kill-matrix", "--exhaustive"):
        where = "; the kill matrix leaves kill-matrix.json in --results" if one == "--kill-matrix" else ""
        raise typer.BadParameter(f"--output {output.value}: {one} has no such output{where}")


def _make(results: Path) -> None:
    """Better now than after an hour. Raises ConfigError."""
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--results {results}: it cannot be made: {e.strerror}; name another directory") from e


# -- many seeds ----------------------------------------------------------------------------------------------------


def _simulate(seeds: str, which: Which, jobs: int, results: Path, output: Format) -> int:
    from chaos.sim.run import live_many, parse_seeds

    wanted = parse_seeds(seeds)
    which.plan(wanted.start)  # a profile or venue that is none is told before anything starts
    progress = _Progress(len(wanted))
    summary = live_many(wanted, which, jobs=jobs, progress=progress.tell)
    progress.end()
    verdict = summary.verdict
    if output is Format.JSON:
        out.emit_json(as_json(verdict) | _figures(summary) | {"failing_seeds": [f._asdict() for f in summary.failures]})
    else:
        print("\n".join([*table(verdict), "", *_told(summary)]))
    return _failed(summary, which, results, output) if summary.failures else verdict.exit_code


class _Progress:
    """On stderr: one line that changes, if a person is looking; else a line now and then."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._began = wanted, time.monotonic()
        self._live = sys.stderr.isatty()
        self._told_at = self._began - (PROGRESS_S if self._live else 0)

    def tell(self, so_far: Summary) -> None:
        now = time.monotonic()
        if not so_far.seeds or now - self._told_at < (PROGRESS_S if self._live else LINE_S):
            return
        self._told_at = now
        left = (now - self._began) / so_far.seeds * (self._wanted - so_far.seeds)
        begin, end = ("\r", " ") if self._live else ("", "\n")
        print(
            f"{begin}{so_far.seeds} of {self._wanted} seeds, {so_far.failovers} failovers, {so_far.failed} failed, "
            f"{left:.0f} s left",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class _StillAtIt:
    """A line now and then, of what cannot say how much is left."""

    def __init__(self) -> None:
        self._began = self._told_at = time.monotonic()

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= LINE_S:
            self._told_at = now
            out.say(f"still at it after {now - self._began:.0f} s")


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


def _failed(summary: Summary, which: Which, results: Path, output: Format) -> int:
    """Name the seeds, and make a story of the first. Where the answer is JSON, that is talk."""
    from chaos.sim.replay import explain_failure
    from chaos.sim.run import silence
    from chaos.sim.timeline import again

    silence()
    say = print if output is Format.PRETTY else out.say
    usual = type(which)()._asdict()
    extra = "".join(f" --{name} {value}" for name, value in which._asdict().items() if value != usual[name])
    say("")
    for failure in summary.failures:
        say(f"seed {failure.seed}: {failure.problems[0]}")
        say(f"   again: baton simulate --replay {failure.seed}{extra}")
    if summary.failed > len(summary.failures):
        say(f"and {summary.failed - len(summary.failures)} more seeds")
    first = summary.failures[0].seed
    say(f"\nshortening seed {first} to what it needs")
    story = explain_failure(which.plan(first), results)
    say(f"   {story.problems[0]}   (as it is when shortened)")
    say(f"   its timeline: {story.timeline}\n   again: {again(story.script)}")
    return 1


# -- one, and all of a small one -------------------------------------------------------------------------------------


def _replay(what: str, which: Which, results: Path, output: Format) -> int:
    from chaos.sim.replay import read_script, write_replay
    from chaos.sim.run import silence

    silence()
    script = None if what.isdigit() else Path(what)
    told = write_replay(which.plan(int(what)) if script is None else read_script(script), results, script)
    if output is Format.JSON:
        out.emit_json({"problems": told.problems, "timeline": str(told.timeline), "script": str(told.script)})
    else:
        print(*(told.problems or ["nothing is wrong"]), f"its timeline: {told.timeline}", sep="\n")
    return 1 if told.problems else 0


def _exhaustive(jobs: int) -> int:
    from chaos.sim.exhaustive import Bounds, explore_all

    bounds = Bounds()
    out.say(
        f"two keepers, every order of at most {bounds.pauses} pause, {bounds.losses} lost reply and "
        f"{bounds.lease_events} lease events"
    )
    found = explore_all(bounds, jobs=jobs, idle=_StillAtIt().tell)
    print(f"{found.states} states, {found.moves} moves, {found.ends} ends")
    if found.wrong is None:
        print("no two permits at one instant, tokens only rise, and somebody leads at every end")
        return 0
    print(found.wrong[0], *(f"  {move}" for move in found.wrong[1]), sep="\n")
    return 1


def _kill_matrix(results: Path, jobs: int) -> int:
    from chaos.sim.kill_matrix import run_kill_matrix

    return 0 if run_kill_matrix(results, out.console(), jobs=jobs) else 1
