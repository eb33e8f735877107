"""Is it right: config validate, config show, config schema, journal verify, doctor, version."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.core.errors import BatonError, ConfigError
from node.cli import out
from node.cli.out import Format

if TYPE_CHECKING:
    from node.config import Config
    from node.doctor import Finding

File = Annotated[Path, typer.Argument(help="A node's baton.toml.", metavar="FILE")]
Output = Annotated[Format, typer.Option("--output", "-o", help="pretty, json or tsv.", metavar="FORMAT")]

config = typer.Typer(help="A node's configuration.", no_args_is_help=True)
journal = typer.Typer(help="A node's journal.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(config, name="config")
    app.add_typer(journal, name="journal")
    app.command("doctor")(doctor)
    app.command("version")(version)


# -- config --------------------------------------------------------------------------------------------------------


@config.command("validate")
def config_validate(file: File = Path("baton.toml")) -> None:
    """Read and check it, with the environment over it; exit 1 and a line per error if it is not right."""
    from node.config import load_config

    found = load_config(file)
    out.say(f"{file}: good; node {found.node.name} of cluster {found.cluster.name}, {found.cluster.mode}")


@config.command("show")
def config_show(
    file: File = Path("baton.toml"),
    origin: Annotated[bool, typer.Option("--origin", help="With each value, where it comes from.")] = False,
    output: Output = Format.PRETTY,
) -> None:
    """Every value in force, without secrets."""
    from node.config import describe, load_config

    found = load_config(file)
    values = describe(found)
    if output is Format.JSON and not origin:
        out.emit_json({"config": values})
        return
    rows = [{"key": k, "value": v, "origin": found.origin(k)} for k, v in _leaves(values)]
    columns = ["key", "value", "origin"] if origin else ["key", "value"]
    if output is Format.JSON:
        out.emit_json({"config": rows})
    elif output is Format.TSV:
        out.emit_tsv(columns, rows)
    else:
        out.console().print(out.table(columns, [[r[c] for c in columns] for r in rows]))


def _leaves(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in table.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


@config.command("schema")
def schema() -> None:
    """JSON Schema of the file, for editors."""
    import json

    from node.config import config_schema

    print(json.dumps(config_schema(), indent=2))


# -- journal -------------------------------------------------------------------------------------------------------


@journal.command("verify")
def journal_verify(
    file: Annotated[Path | None, typer.Argument(help="A node's journal.db.", metavar="FILE")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Instead: every journal of a local cluster.", metavar="D")
    ] = None,
    output: Output = Format.PRETTY,
) -> None:
    """Check the chain of every entry; exit 1 if a journal is not what was written. The node may be running."""
    from cluster.journal_file import verify

    rows = []
    for path in _journals(file, directory):
        report = verify(path)
        rows.append(asdict(report) | {"path": str(path), "ok": report.problem is None})
    columns = ("path", "ok", "entries", "first_index", "last_index", "last_term", "chain", "problem")
    if output is Format.JSON:
        out.emit_json({"journals": rows})
    elif output is Format.TSV:
        out.emit_tsv(columns, rows)
    else:
        for r in rows:
            told = (
                f"{r['entries']} entries up to {r['last_index']}, term {r['last_term']}, chain {r['chain'][:16]} intact"
            )
            print(f"{r['path']}: {told if r['ok'] else r['problem']}")
    if not all(r["ok"] for r in rows):
        raise out.Failed("")


def _journals(file: Path | None, directory: Path | None) -> list[Path]:
    from node.doctor import JOURNAL_FILE
    from node.local.cluster import LocalCluster

    if (file is None) == (directory is None):
        raise typer.BadParameter("give either a journal FILE or --dir D")
    if file is not None:
        return [file / JOURNAL_FILE if file.is_dir() else file]
    assert directory is not None
    cluster = LocalCluster(directory)
    found = [p for n in cluster.nodes if (p := cluster.journal_dir(n) / JOURNAL_FILE).is_file()]
    if not found:
        raise BatonError(f"there is no journal in {cluster.dir} yet; its nodes have never run")
    return found


# -- doctor --------------------------------------------------------------------------------------------------------


def doctor(
    file: Annotated[
        Path | None, typer.Option("--config", "-c", help="Of the node on this host. [baton.toml]", metavar="FILE")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Instead: every node of a local cluster.", metavar="D")
    ] = None,
    output: Output = Format.PRETTY,
) -> None:
    """Look at everything that a node rests on; exit 1 if something keeps it from running, or from trading safely."""
    import asyncio

    if file is not None and directory is not None:
        raise typer.BadParameter("give either --config or --dir")
    findings = asyncio.run(_examine(file or Path("baton.toml"), directory))
    if output is Format.JSON:
        out.emit_json({"findings": [asdict(f) for f in findings]})
    elif output is Format.TSV:
        out.emit_tsv(("check", "level", "text", "remedy"), [asdict(f) for f in findings])
    else:
        for f in findings:
            _draw(f)
    if any(f.level == "fail" for f in findings):
        raise out.Failed("")


async def _examine(file: Path, directory: Path | None) -> list[Finding]:
    from node import doctor as d
    from node.config import HOW_TO_BEGIN, load_config
    from node.local.cluster import LocalCluster

    files, how_to_begin = [file], HOW_TO_BEGIN
    findings: list[Finding] = []
    if directory is not None:
        cluster = LocalCluster(directory)
        files = [cluster.config_file(n) for n in cluster.nodes]
        how_to_begin = f"baton up --dir {cluster.dir} writes it again"
        findings += d.binaries()
    configs: list[Config] = []
    for path in files:
        if not path.exists():
            findings.append(d.Finding("config", d.FAIL, f"{path}: no such file", how_to_begin))
            continue
        try:
            configs.append(load_config(path))
        except ConfigError as e:
            findings += [d.Finding("config", d.FAIL, line, f"correct {path}") for line in str(e).splitlines()]
    for c in configs[:1]:
        findings += [f async for f in d.of_host(c)]
    for c in configs:
        findings += [f async for f in d.of_node(c)]
    return findings


def _draw(finding: Finding) -> None:
    from rich.text import Text

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.level]
    line = Text.assemble((f"{finding.level:<5}", style), f"{finding.check}: {finding.text}")
    if finding.remedy:
        line.append(f"\n     -> {finding.remedy}", style="dim")
    out.console().print(line, soft_wrap=True)


# -- version -------------------------------------------------------------------------------------------------------


def version(output: Output = Format.PRETTY) -> None:
    """Baton's version and Python's."""
    import platform

    from node.version import VERSION

    found = {"baton": VERSION, "python": platform.python_version(), "platform": platform.platform()}
    if output is Format.JSON:
        out.emit_json(found)
    elif output is Format.TSV:
        out.emit_tsv(("name", "version"), [{"name": k, "version": v} for k, v in found.items()])
    else:
        print("\n".join(f"{k} {v}" for k, v in found.items()))
