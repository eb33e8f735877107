"""`baton demo --show`: a cluster that trades is broken in five ways in front of you, and judged.

The acts are done from outside, with signals and the public API, as anybody could. The table of times is measured from
the moment of the fault to the venue's first accepted order of the next token, by one clock; the verdict is read from
the venue's own record and from the journals on disk (`verdict.py`), never from what a node says of itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos.record_tail import RecordTail
from chaos.verdict import JournalEvidence, Verdict, journal_evidence, judge, judge_record
from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, OutcomeUnknown, Unreachable
from cluster.core.ids import ns
from node.client import post_json
from node.local.cluster import LocalCluster, Options
from node.paper_venue.record import read_record
from node.types import ClientOrderId, Instrument, OrderSpec, Refused, Side, WireOrder

ORDERS_MIN = 200
HEALTHY_LIMIT_S = 25.0
FAILOVER_LIMIT_S = 10.0
REST_LIMIT_S = 10.0
POLL_S = 0.05
PAUSE_TTLS = 3

HANG_STRATEGY = "chaos.strategies:HangsOnRequest"


class ShowFailed(BatonError):
    """The cluster did not do what the next act needs. Names what was waited for."""


@dataclass(frozen=True, slots=True)
class Act:
    """One failover, times in seconds after the fault. None: not known."""

    title: str
    cause: str
    old: str
    new: str
    detected_s: float | None
    elected_s: float | None
    first_order_s: float


@dataclass(slots=True)
class Result:
    acts: list[Act]
    verdict: Verdict
    stale_offered: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.problems


class Show:
    def __init__(self, cluster: LocalCluster, console: Console, hang_file: Path, ttl_s: float = 1.0) -> None:
        self.cluster = cluster
        self.console = console
        self.hang_file = hang_file
        self.ttl_s = ttl_s
        self.acts: list[Act] = []
        self.stale_offered = 0
        self.stale_answers: list[str] = []
        self.tail = RecordTail(cluster.venue_record)

    def run(self) -> Result:
        acts: list[tuple[str, Callable[[str, int], None]]] = [
            ("planned switchover", self._switch_over),
            ("leader's worker killed (SIGKILL)", self._kill_worker),
            ("strategy blocks its loop (hang)", self._hang),
            (f"leader's two processes stopped for {PAUSE_TTLS} TTLs (SIGSTOP, SIGCONT)", self._pause),
            ("leader's host lost (both processes SIGKILLed)", self._lose_host),
        ]
        for number, (title, break_it) in enumerate(acts, 1):
            self._act(number, title, break_it)
        self._wait_healthy("after the last act")
        self._trade_until(ORDERS_MIN)
        return self._judge()

    # -- one act -------------------------------------------------------------------------------------------

    def _act(self, number: int, title: str, break_it: Callable[[str, int], None]) -> None:
        status = self._wait_healthy(f"before act {number}")
        old, token = status["leader"]["node"], int(status["leader"]["token"])
        self.console.print(f"\n[bold]{number}. {title}[/bold]: {old} leads with token {token}")
        begun = time.time_ns()
        break_it(old, token)
        first = self._first_order_after(token)
        history = self._history_of(int(first["token"]))
        phases = history.get("phases_s") or {}
        won = _unix_s(history.get("at") or history.get("started_at"))
        elected = None if won is None else won - begun / 1e9
        detected = None if elected is None or "elect" not in phases else elected - phases["elect"]
        act = Act(
            title, str(history.get("cause", "?")), old, first["node"], detected, elected, (first["at_ns"] - begun) / 1e9
        )
        self.acts.append(act)
        self.console.print(
            f"   {act.new} leads with token {first['token']}; its first order was accepted "
            f"{_duration(act.first_order_s)} after the fault"
        )

    def _switch_over(self, old: str, _token: int) -> None:
        post_json(self.cluster.http_url(old), "/v1/switchover", {"target": None, "actor": "baton demo --show"})

    def _kill_worker(self, old: str, _token: int) -> None:
        self._processes(old)[1].send(signal.SIGKILL)

    def _hang(self, old: str, _token: int) -> None:
        self.hang_file.touch()

    def _pause(self, old: str, token: int) -> None:
        keeper, worker = self._processes(old)
        paused_at = time.monotonic()
        keeper.send(signal.SIGSTOP)
        worker.send(signal.SIGSTOP)
        try:
            self._first_order_after(token)
            while time.monotonic() - paused_at < PAUSE_TTLS * self.ttl_s:
                time.sleep(POLL_S)
            self.console.print(
                f"   {old} wakes after {time.monotonic() - paused_at:.1f} s, still believing what it did"
            )
        finally:
            keeper.send(signal.SIGCONT)
            worker.send(signal.SIGCONT)
        # What its own checks stop, nobody sees. So one order with its token goes to the venue past all of them, as one
        # that was frozen between the last check and the socket would.
        self.stale_answers.append(asyncio.run(self._offer_stale(old, token)))
        self.stale_offered += 1

    def _lose_host(self, old: str, token: int) -> None:
        self.cluster.hold(old)  # nothing restarts it, and nothing resigns for it: only its lease tells
        try:
            for process in reversed(self._processes(old)):
                process.send(signal.SIGKILL)
            self._first_order_after(token)
        finally:
            self.cluster.release(old)

    async def _offer_stale(self, node: str, token: int) -> str:
        from node.venues.paper import PaperVenue

        instrument = Instrument("BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
        venue = PaperVenue(
            self.cluster.venue_address,
            "baton",
            "paper",
            node,
            instruments=[instrument],
            call_timeout_s=1.0,
            rng=random.Random(token),
        )
        await venue.connect()
        try:
            spec = OrderSpec("BTCUSDT", Side.BUY, 100, 100_000)
            order = WireOrder(ClientOrderId(f"stale{token}"), f"show:stale:{token}", spec, token, None)
            result = await venue.submit(order).result()
        finally:
            await venue.close()
        code = result.code if isinstance(result, Refused) else type(result).__name__
        self.console.print(f"   an order with its token {token}, sent past every check of ours: {code}")
        return code

    def _processes(self, node: str) -> tuple[Any, Any]:
        keeper, worker = self.cluster.node_processes(node)
        if keeper is None or worker is None:
            raise ShowFailed(f"{node} has no {'keeper' if keeper is None else 'worker'} to break; see its log")
        return keeper, worker

    # -- waiting -------------------------------------------------------------------------------------------

    def _wait(self, what: str, limit_s: float, look: Callable[[], Any]) -> Any:
        deadline = boottime_ns() + ns(limit_s)
        while boottime_ns() < deadline:
            if found := look():
                return found
            time.sleep(POLL_S)
        raise ShowFailed(f"waited {limit_s:g} s in vain: {what}; see {self.cluster.dir}")

    def _wait_healthy(self, when: str) -> dict[str, Any]:
        """Someone leads and trades, everybody is in sync, and the venue has taken an order of this token."""

        def healthy() -> dict[str, Any] | None:
            try:
                status = self.cluster.status()
            except (Unreachable, OutcomeUnknown):
                return None
            leader = status.get("leader")
            if leader is None or status["permission"]["level"] != "allowed":
                return None
            in_sync = [n for n in status["nodes"] if n["in_sync"] and n["feed_state"] == "live"]
            if len(in_sync) < len(self.cluster.nodes) or self.tail.wait_order(int(leader["token"]), 0) is None:
                return None
            return status

        found: dict[str, Any] = self._wait(f"a healthy cluster {when}", HEALTHY_LIMIT_S, healthy)
        return found

    def _first_order_after(self, token: int) -> dict[str, Any]:
        first = self.tail.wait_order(token + 1, FAILOVER_LIMIT_S)
        if first is None:
            raise ShowFailed(
                f"no order of a leader after token {token} in {FAILOVER_LIMIT_S:g} s; see {self.cluster.dir}"
            )
        return first

    def _history_of(self, token: int) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            for h in self.cluster.status().get("history", []):
                if int(h["token"]) == token and "first_order" in (h.get("phases_s") or {}):
                    return dict(h)
            return None

        found: dict[str, Any] = self._wait(f"the record of token {token}", 5.0, look)
        return found

    def _trade_until(self, orders: int) -> None:
        def enough() -> bool:
            self.tail.read()
            return self.tail.orders_accepted >= orders

        self._wait(f"{orders} accepted orders", 60.0, enough)

    # -- judgement -----------------------------------------------------------------------------------------

    def _judge(self) -> Result:
        """Stop the market, let the books come to rest, and compare."""
        self.console.print("\nThe market is stopped; the books come to rest ...")
        self.cluster.hold("feed")
        if (feed := self.cluster.process("feed")) is not None:
            feed.send(signal.SIGKILL)
        lots = {"BTCUSDT": Decimal("0.00001")}

        def at_rest() -> Verdict | None:
            record = judge_record(read_record(self.cluster.venue_record))
            verdict = judge(record, self._journals(), lots)
            return None if verdict.problems else verdict

        try:
            verdict = self._wait("books at rest that agree", REST_LIMIT_S, at_rest)
        except ShowFailed:
            verdict = judge(judge_record(read_record(self.cluster.venue_record)), self._journals(), lots)
        result = Result(self.acts, verdict, self.stale_offered, list(verdict.problems))
        if verdict.record.orders_accepted < ORDERS_MIN:
            result.problems.append(f"only {verdict.record.orders_accepted} orders were accepted, below {ORDERS_MIN}")
        result.problems += [f"a stale order was answered {a}" for a in self.stale_answers if a != "stale_token"]
        return result

    def _journals(self) -> list[JournalEvidence]:
        # The order tag is in every client order id; the local clusters' own is what their configuration derives.
        from node.config import load_config

        tag = load_config(self.cluster.config_file(self.cluster.nodes[0]), env={}).cluster.order_tag
        return [journal_evidence(n, self.cluster.journal_dir(n) / "journal.db", tag) for n in self.cluster.nodes]


def print_result(result: Result, console: Console) -> None:
    table = Table(title="Failovers, in time after the fault", title_justify="left")
    for column in ("cause", "from", "to", "detected", "elected", "first order = RTO"):
        table.add_column(column, justify="left" if column in ("cause", "from", "to") else "right")
    for a in result.acts:
        table.add_row(
            a.title, a.old, a.new, _duration(a.detected_s), _duration(a.elected_s), _duration(a.first_order_s)
        )
    console.print(table)
    v, r = result.verdict, result.verdict.record
    refused = ", ".join(f"{n} {code}" for code, n in r.orders_refused.most_common()) or "none"
    for good, text in (
        (r.orders_accepted >= ORDERS_MIN, f"orders accepted        {r.orders_accepted}   (refused: {refused})"),
        (not r.double_orders, f"double orders          {len(r.double_orders)}"),
        (not r.stale_accepted, f"stale-token orders     {len(r.stale_accepted)} accepted, {r.stale_refused} refused"),
        (not v.lost_fills and not r.overfills, f"lost fills             {len(v.lost_fills)} of {len(r.fills)}"),
        (not v.orders_from_nowhere, f"orders without intent  {len(v.orders_from_nowhere)}"),
        (not v.logs_differ, "journals equal         " + ("no" if v.logs_differ else f"yes, on {len(v.digests)} nodes")),
        (v.digests_equal, f"book digests equal     {'yes' if v.digests_equal else 'no'}"),
        (not v.positions_differ, f"position = fills       {'no' if v.positions_differ else 'yes, on every node'}"),
    ):
        console.print(f"{'[green]ok  [/green]' if good else '[red]FAIL[/red]'} {text}", highlight=False)
    for problem in result.problems:
        console.print(f"[red]     {problem}[/red]", highlight=False)


def run_show(options: Options, directory: Path, console: Console) -> bool:
    """The whole show on a new cluster in `directory`; whether everything held."""
    hang_file = directory / "hang"
    options.overlay["strategy"] = {"path": HANG_STRATEGY, "config": {"hang_file": str(hang_file)}}
    cluster = LocalCluster(directory)
    console.print(f"starting {options.nodes} nodes, {options.etcd} etcd members, Redis, a paper venue, market data")
    cluster.start(options, tied=True)
    try:
        console.print(f"status page: {cluster.urls[0]}")
        result = Show(cluster, console, hang_file).run()
    finally:
        cluster.stop()
    print_result(result, console)
    return result.holds


def _unix_s(value: Any) -> float | None:
    """Of Unix nanoseconds, or of ISO-8601 text."""
    if isinstance(value, int):
        return value / 1e9
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
