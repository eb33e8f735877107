"""What the nodes say of themselves: status, history, orders, positions; and switchover, the one request.

Any node may be asked; of several answers, the one of who knows best is shown (`node.client.merge`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, ConfigError, OutcomeUnknown, Unreachable
from cluster.core.ids import ns
from node.cli import out
from node.cli.out import Format

Dir = Annotated[Path | None, typer.Option("--dir", help="Of a local cluster. [baton-data, if there]", metavar="D")]
Url = Annotated[
    list[str] | None,
    typer.Option("--url", help="Of a node, http://host:port; may be repeated.", envvar="BATON_URL", metavar="URL"),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="pretty, json or tsv.", metavar="FORMAT")]

_POLL_S = 0.05
_ASK_TIMEOUT_S = 10.0
"""A node answers a switchover request within eight seconds."""
_RTO_WAIT_S = 3.0


def register(app: typer.Typer) -> None:
    for command in (status, history, orders, positions, switchover):
        app.command(command.__name__)(command)


def sources(directory: Path | None, urls: list[str] | None, *, may_be_stopped: bool = False) -> list[str]:
    """Whom to ask. --dir beats --url beats the usual directory. Raises ConfigError if there is nobody; Unreachable for
    a local cluster that is known to be stopped, unless the caller will ask again and again."""
    from node.client import check_url
    from node.local.cluster import LocalCluster

    if directory is None and urls:
        return [check_url(word) for url in urls for word in url.replace(",", " ").split()]
    cluster = LocalCluster(directory or "baton-data")
    if directory is None and not cluster.exists:
        raise ConfigError("which cluster? Use --dir D, --url http://host:port, or set BATON_URL")
    if not may_be_stopped and cluster.stopped:
        shown = directory or "baton-data"
        raise Unreachable(f"the cluster in {shown} is stopped; start it: baton up --dir {shown}")
    return cluster.urls


# -- status ------------------------------------------------------------------------------------------------------

STATUS_COLUMNS = (
    "name",
    "role",
    "in_sync",
    "log_index",
    "commit_index",
    "lag_entries",
    "lag_s",
    "keeper_pid",
    "worker_pid",
    "http",
    "grpc",
    "feed_age_s",
)


def status(
    interval: Annotated[float, typer.Argument(help="With -w: seconds between two looks.", min=0.1)] = 1.0,
    directory: Dir = None,
    url: Url = None,
    output: Output = Format.PRETTY,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Who leads, may it trade, and how the others are."""
    from node.client import cluster_status

    asked = sources(directory, url, may_be_stopped=watch)
    if not watch:
        _print_status(cluster_status(asked), output)
        return
    if output is Format.PRETTY and out.console().is_terminal:
        _watch_in_place(asked, interval)
    while True:
        try:
            _print_status(cluster_status(asked), output, compact=True)
        except Unreachable as e:
            out.say(f"baton: {e}")
        time.sleep(interval)


def _watch_in_place(asked: list[str], interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from node.client import cluster_status

    with Live(console=out.console(), auto_refresh=False, screen=False) as live:
        while True:
            try:
                live.update(status_picture(cluster_status(asked)), refresh=True)
            except Unreachable as e:
                live.update(Text(str(e), style="bold red"), refresh=True)
            time.sleep(interval)


def _print_status(document: dict[str, Any], output: Format, *, compact: bool = False) -> None:
    if output is Format.JSON:
        out.emit_json(document, compact=compact)
    elif output is Format.TSV:
        out.emit_tsv(STATUS_COLUMNS, document["nodes"])
    else:
        out.console().print(status_picture(document))


def status_picture(document: dict[str, Any]) -> Any:
    """After patronictl's list: a line about the cluster, a row per node, a footer."""
    from rich.console import Group
    from rich.text import Text

    leader, permission = document.get("leader") or {}, document["permission"]
    level = permission["level"]
    head = Text(f"Cluster: {document.get('cluster') or '?'}   trading: ")
    head.append(level.upper(), style="bold green" if level == "allowed" else "bold red")
    head.append(f" ({permission['reason']})" if permission["reason"] else "")
    head.append(f"   token: {leader.get('token') or '-'}   double orders: {document.get('double_order_class') or '?'}")
    gate = (document.get("gate") or {}).get("state")
    head.append(f"   gate: {gate}" if gate else "")
    rows = [_status_row(r, leader, document) for r in document["nodes"]]
    names = ("Node", "Role", "In sync", "Lag (entries)", "Lag", "Lease / heard", "Feed age", "Log", "HTTP", "Version")
    parts: list[Any] = [head, out.table(names, rows), Text(_footer(document))]
    parts += [Text(f" ! {w}", style="yellow") for w in document.get("warnings") or []]
    return Group(*parts)


def _status_row(row: dict[str, Any], leader: dict[str, Any], document: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    leads = row["name"] == leader.get("node")
    role = Text(str(row["role"]), style="bold" if leads else "")
    if row["name"] not in document.get("answered", ()):
        role.append(" (no answer)", style="red")
    if leads:
        left = leader.get("lease_left_s")
        lease = "-" if left is None else f"{out.seconds(left)} left"
    else:
        lease = "-" if row.get("age_s") is None else f"{out.seconds(row['age_s'])} ago"
    synced = row.get("in_sync")
    return [
        row["name"],
        role,
        "?" if synced is None else Text("yes" if synced else "NO", style="" if synced else "red"),
        row.get("lag_entries"),
        out.seconds(row.get("lag_s")),
        lease,
        out.seconds(row.get("feed_age_s")),
        row.get("log_index"),
        row.get("http"),
        row.get("version"),
    ]


def _footer(document: dict[str, Any]) -> str:
    orders = document.get("orders") or {}
    held = [p for p in document.get("positions") or [] if p.get("lots")]
    words = [f"open orders {_n(orders.get('open'))} (unresolved {_n(orders.get('unresolved'))})"]
    words.append("positions " + (", ".join(f"{p['symbol']} {p.get('qty')}" for p in held) or "none"))
    last = document.get("last_failover")
    if last:
        way = f"{last.get('came_from') or '?'} -> {last.get('node')}"
        words.append(f"last failover: {last.get('at')} {last.get('cause')} {way} RTO {out.seconds(last.get('rto_s'))}")
    return " " + "   ".join(words)


def _n(value: Any) -> str:
    return "?" if value is None else str(value)


# -- history, orders, positions ------------------------------------------------------------------------------------

HISTORY_COLUMNS = ("token", "node", "came_from", "cause", "actor", "started_at", "rto_s", "phases_s")


def history(directory: Dir = None, url: Url = None, output: Output = Format.PRETTY) -> None:
    """Every leadership: who, since when, why, and how long nobody traded before it. The newest first."""
    from node.client import ask_all

    answers, _ = ask_all(sources(directory, url), "/v1/history")
    rows = max((a.get("history") or [] for a in answers), key=lambda r: (r[0]["token"] or 0, len(r)) if r else (0, 0))
    _print_rows([_as_history(row) for row in rows], "history", HISTORY_COLUMNS, output)


def _as_history(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the API's, as every command shows it."""
    return {("started_at" if k == "at" else k): v for k, v in row.items()}


ORDER_COLUMNS = (
    "client_order_id",
    "symbol",
    "side",
    "qty",
    "price",
    "state",
    "filled",
    "decision_id",
    "term",
    "at",
    "reason",
)


def orders(directory: Dir = None, url: Url = None, output: Output = Format.PRETTY) -> None:
    """Live orders as the leader's book has them, unresolved first."""
    rows = _from_leader(sources(directory, url), "orders")
    _print_rows([r | {"at": out.iso_of_ns(r.get("at"))} for r in rows], "orders", ORDER_COLUMNS, output)


def positions(directory: Dir = None, url: Url = None, output: Output = Format.PRETTY) -> None:
    """Positions as the leader's book has them, from fills."""
    rows = _from_leader(sources(directory, url), "positions")
    _print_rows(rows, "positions", ("symbol", "qty", "lots", "last_price"), output)


def _from_leader(asked: list[str], what: str) -> list[dict[str, Any]]:
    """The leader's answer; if it does not answer, another's, and that is said."""
    from node.client import ask_all, cluster_status

    leader = (cluster_status(asked).get("leader") or {}).get("node")
    answers, _ = ask_all(asked, f"/v1/{what}")
    best = next((a for a in answers if a.get("node") == leader), answers[0])
    if best.get("node") != leader:
        why = f"the leader ({leader}) was not asked, or did not answer" if leader else "nobody leads"
        out.say(f"baton: {why}; this is what {best.get('node')} has")
    rows: list[dict[str, Any]] = best.get(what) or []
    return rows


def _print_rows(rows: list[dict[str, Any]], name: str, columns: tuple[str, ...], output: Format) -> None:
    if output is Format.JSON:
        out.emit_json({name: rows})
    elif output is Format.TSV:
        out.emit_tsv(columns, rows)
    elif rows:
        out.console().print(out.table(columns, [[_shown(c, r.get(c)) for c in columns] for r in rows]))
    else:
        out.say(f"no {name}")


PHASES = ("detect", "elect", "catch_up", "arm", "settle", "first_order")
"""In the order in which they happen; others follow."""


def _shown(column: str, value: Any) -> Any:
    if column == "phases_s" and isinstance(value, dict):
        names = [p for p in PHASES if p in value] + [p for p in value if p not in PHASES]
        return "  ".join(f"{phase} {out.seconds(value[phase])}" for phase in names)
    return out.seconds(value) if column == "rto_s" else value


# -- switchover ------------------------------------------------------------------------------------------------------


def switchover(
    to: Annotated[str | None, typer.Option("--to", help="Who leads next. [the best standby]", metavar="N")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the new leader trades.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.1)] = 30.0,
    directory: Dir = None,
    url: Url = None,
    output: Output = Format.PRETTY,
) -> None:
    """Hand leadership over, in order: stop, settle, and only then let go."""
    from node.client import cluster_status

    asked = sources(directory, url)
    before = cluster_status(asked).get("leader") or {}
    accepted = _ask(asked, to)
    if not wait:
        _print_accepted(accepted, output)
        return
    deadline = boottime_ns() + ns(timeout)
    row = _as_history(_wait_for_new_leader(asked, before.get("token") or 0, deadline))
    row["came_from"] = row.get("came_from") or before.get("node")
    if output is Format.JSON:
        out.emit_json(row)
    elif output is Format.TSV:
        out.emit_tsv(HISTORY_COLUMNS, [row])
    else:
        way = f"{row.get('came_from') or '?'} -> {row.get('node')}"
        gap = row.get("rto_s")
        told = "no order yet" if gap is None else f"trading gap {out.seconds(gap)}"
        print(f"{way}, token {row.get('token')}, {told}")


def _print_accepted(text: str, output: Format) -> None:
    if output is Format.JSON:
        out.emit_json({"accepted": True, "text": text})
    elif output is Format.TSV:
        out.emit_tsv(("accepted", "text"), [{"accepted": True, "text": text}])
    else:
        out.say(text)


def _ask(asked: list[str], target: str | None) -> str:
    """Ask the first node that can be reached, once. Raises Refused, OutcomeUnknown, Unreachable."""
    from node.client import Answered, post_json

    who = actor()
    why = []
    for url in asked:
        try:
            answer = post_json(url, "/v1/switchover", {"target": target, "actor": who}, timeout_s=_ASK_TIMEOUT_S)
        except Unreachable as e:
            why.append(str(e))
        except Answered as e:
            said = str(e).replace("/v1/status", "baton status").replace("/v1/history", "baton history")
            if e.code == 409:
                raise out.Refused(said) from e
            if e.code == 504:
                raise OutcomeUnknown(said) from e
            raise BatonError(said) from e
        else:
            return str(answer.get("text") or "accepted")
    raise Unreachable("; ".join(why))


def actor() -> str:
    """Who asks, for the record."""
    import getpass
    import socket

    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, as in some containers
        return f"baton@{socket.gethostname()}"


def _wait_for_new_leader(asked: list[str], old_token: int, deadline: int) -> dict[str, Any]:
    """Stream what changes until a higher token trades; its record. Raises TimedOut."""
    from node.client import cluster_status

    began, told = boottime_ns(), ""
    while boottime_ns() < deadline:
        try:
            now = cluster_status(asked, timeout_s=1.0)
        except Unreachable as e:
            line, now = str(e), {}
        else:
            line = (
                "  ".join(f"{r['name']} {r['role']}" for r in now["nodes"]) + f"  trading {now['permission']['level']}"
            )
        if line != told:
            out.say(f"{(boottime_ns() - began) / 1e9:7.3f} s  {line}")
            told = line
        leader = now.get("leader") or {}
        if (leader.get("token") or 0) > old_token and now["permission"]["level"] == "allowed":
            return _record_of(asked, leader, deadline)
        time.sleep(_POLL_S)
    raise out.TimedOut("the new leader does not trade yet; look at baton status, and baton history")


def _record_of(asked: list[str], leader: dict[str, Any], deadline: int) -> dict[str, Any]:
    """The history row of this token, once its first order is in it; what there is when time is up."""
    from node.client import cluster_status

    limit = min(deadline, boottime_ns() + ns(_RTO_WAIT_S))
    while True:
        rows = cluster_status(asked).get("history") or []
        row = next((r for r in rows if r.get("token") == leader["token"]), None)
        if (row and row.get("rto_s") is not None) or boottime_ns() >= limit:
            return row or {"token": leader["token"], "node": leader["node"], "rto_s": None}
        time.sleep(_POLL_S)
