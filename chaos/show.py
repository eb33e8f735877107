"""`baton demo --show`: a cluster that trades is broken in five ways in front of you, and judged.

The acts are done from outside, with signals and the public API, as anybody could. The table of times is measured from
the moment of the fault to the venue's first accepted order of the next token, by one clock; the verdict is read from
the venue's own record and from the journals on disk (`check/`), never from what a node says of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from chaos.check.evidence import Evidence, Run
from chaos.check.invariants import check
from chaos.check.journals import journal_evidence
from chaos.check.record import VenueRecord
from chaos.check.record import read_record as read_lines
from chaos.check.verdict import Level, Verdict, headline
from chaos.record_tail import RecordTail
from cluster.clock import boottime_ns
from cluster.core.errors import BatonError, OutcomeUnknown, Unreachable
from cluster.core.ids import NS_PER_S, ns
from node.local.cluster import LocalCluster, Options
from node.paper_venue.profile import parse_profile
from node.paper_venue.record import read_record, verify_record
from node.types import ClientOrderId, Instrument, OrderSpec, Refused, Side, WireOrder

ORDERS_MIN = 200
HEALTHY_LIMIT_S = 25.0
FAILOVER_LIMIT_S = 10.0
REST_LIMIT_S = 10.0
HISTORY_LIMIT_S = 3.0
POLL_S = 0.05
JUDGED_BY = ("E", "S1", "S2", "S3", "S5", "S6", "S7", "S10")
"""What the venue's record and the journals can answer."""
PAUSE_TTLS = 3

HANG_STRATEGY = "chaos.strategies:HangsOnRequest"
REFRESH_S = "0.25"
"""How often the market maker replaces its quotes: eight orders a second, so that a fault meets some on their way, and
nobody waits a minute for ORDERS_MIN of them."""


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


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, and what the numbers beside it are read from."""

    verdict: Verdict
    record: VenueRecord
    nodes: int  # whose journals were compared

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems


@dataclass(slots=True)
class Result:
    acts: list[Act]
    judgement: Judgement
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.problems


class Show:
    """Five acts on a running cluster whose strategy hangs when `hang_file` appears; used once."""

    def __init__(
        self,
        cluster: LocalCluster,
        console: Console,
        hang_file: Path,
        *,
        ttl_s: float = 1.0,
        orders_min: int = ORDERS_MIN,
    ) -> None:
        self.cluster = cluster
        self.console = console
        self.hang_file = hang_file
        self.ttl_s = ttl_s
        self.orders_min = orders_min
        self.profile = parse_profile(cluster.options.venue_profile)
        self.acts: list[Act] = []
        self.stale_answers: list[str] = []
        self.tail = RecordTail(cluster.venue_record)

    def run(self) -> Result:
        acts: list[tuple[str, Callable[[str, int], int]]] = [
            ("planned switchover", self._switch_over),
            ("leader's worker killed (SIGKILL)", self._kill_worker),
            ("strategy blocks its loop (hang)", self._hang),
            (f"leader's two processes stopped for {PAUSE_TTLS} TTLs (SIGSTOP, SIGCONT)", self._pause),
            ("leader's host lost (both processes SIGKILLed)", self._lose_host),
        ]
        for number, (title, break_it) in enumerate(acts, 1):
            self._act(number, title, break_it)
        self._wait_healthy("after the last act")
        self._trade_until(self.orders_min)
        return self._judge()

    # -- one act -------------------------------------------------------------------------------------------

    def _act(self, number: int, title: str, break_it: Callable[[str, int], int]) -> None:
        status = self._wait_healthy(f"before act {number}")
        old, token = status["leader"]["node"], int(status["leader"]["token"])
        self.console.print(f"\n[bold]{number}. {title}[/bold]: {old} leads with token {token}")
        begun = break_it(old, token)
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

    # Each takes the leader and its token, and returns the Unix ns of its fault.

    def _switch_over(self, old: str, _token: int) -> int:
        asked_at = 0

        def agreed() -> bool:
            nonlocal asked_at
            asked_at = time.time_ns()
            return self.cluster.switch_over(old, actor="baton demo --show")

        self._wait("a standby that is ready to lead", HEALTHY_LIMIT_S, agreed)
        return asked_at

    def _kill_worker(self, old: str, _token: int) -> int:
        _, worker = self._processes(old)
        killed_at = time.time_ns()
        worker.send(signal.SIGKILL)
        return killed_at

    def _hang(self, old: str, _token: int) -> int:
        asked_at = time.time_ns()
        self.hang_file.touch()
        return asked_at

    def _pause(self, old: str, token: int) -> int:
        keeper, worker = self._processes(old)
        paused_at, paused_at_ns = time.monotonic(), time.time_ns()
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
        # that was frozen between the last check and the socket would; its expiry is never later than the permit's end.
        expires_at_ns = paused_at_ns + round(self.ttl_s * NS_PER_S)
        if self._refusal is None:
            self.console.print(
                f"   the venue ({self.profile}) would take an order with its token: best effort, not offered"
            )
        else:
            self.stale_answers.append(asyncio.run(self._offer_stale(old, token, expires_at_ns)))
        return paused_at_ns

    @property
    def _refusal(self) -> str | None:
        """How this venue refuses an order that was frozen on its way; None: it has no fence of its own."""
        return "stale_token" if self.profile.token else "expired" if self.profile.expiry else None

    def _lose_host(self, old: str, token: int) -> int:
        keeper, worker = self._processes(old)
        self.cluster.hold(old)  # nothing restarts it, and nothing resigns for it: only its lease tells
        try:
            lost_at = time.time_ns()
            keeper.send(signal.SIGKILL)  # first: else it may see its worker die, and resign
            worker.send(signal.SIGKILL)
            self._first_order_after(token)
        finally:
            self.cluster.release(old)
        return lost_at

    async def _offer_stale(self, node: str, token: int, expires_at_ns: int) -> str:
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
            order = WireOrder(ClientOrderId(f"stale{token}"), f"show:stale:{token}", spec, token, expires_at_ns)
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
            if len(in_sync) < len(self.cluster.nodes):
                return None
            # What nodes say of each other may be a second old. The venue knows the latest leader.
            self.tail.read()
            return status if max(self.tail.first_order, default=0) == int(leader["token"]) else None

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
        """The cluster's own record of this leadership, for the table's columns; what is not in it is shown as unknown,
        since no verdict rests on it."""
        found: dict[str, Any] = {}

        def look() -> bool:
            with contextlib.suppress(Unreachable, OutcomeUnknown):
                history = self.cluster.status().get("history", [])
                found.update(next((h for h in history if int(h["token"]) == token), {}))
            return "first_order" in (found.get("phases_s") or {})

        with contextlib.suppress(ShowFailed):
            self._wait(f"the record of token {token}", HISTORY_LIMIT_S, look)
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
        try:
            if (feed := self.cluster.process("feed")) is not None:
                feed.send(signal.SIGKILL)
            judgement = wait_judgement(self.cluster)
        finally:
            self.cluster.release("feed")
        result = Result(self.acts, judgement, judgement.problems)
        accepted = len(judgement.record.orders)
        if accepted < self.orders_min:
            result.problems.append(f"only {accepted} orders were accepted, not {self.orders_min}")
        result.problems += [f"a stale order was answered {a}" for a in self.stale_answers if a != self._refusal]
        return result


# -- judgement -------------------------------------------------------------------------------------------------


def judge_cluster(cluster: LocalCluster) -> Judgement:
    """What the venue's record and every node's journal say at this moment, as if trading were at rest.
    Raises JournalCorrupt, OutcomeUnknown while a journal is being written."""
    from node.config import load_config

    # The order tag is in every client order id; the local clusters' own is what their configuration derives.
    tag = load_config(cluster.config_file(cluster.nodes[0]), env={}).cluster.order_tag
    verify_record(cluster.venue_record)
    lines = list(read_record(cluster.venue_record))
    journals = [journal_evidence(n, cluster.journal_dir(n) / "journal.db", tag) for n in cluster.nodes]
    run = Run(profile=cluster.options.venue_profile, at_rest=True)
    verdict = check(Evidence(run, venue=lines, journals=journals), JUDGED_BY)
    return Judgement(verdict, read_lines(lines), len(journals))


def wait_judgement(cluster: LocalCluster, limit_s: float = REST_LIMIT_S) -> Judgement:
    """Trading has stopped: judge when the last answers have arrived, and at the limit whatever there is."""
    deadline = boottime_ns() + ns(limit_s)
    while True:
        late = boottime_ns() > deadline
        try:
            judgement = judge_cluster(cluster)
        except OutcomeUnknown:
            if late:
                raise
        else:
            if late or not judgement.problems:
                return judgement
        time.sleep(POLL_S)


def print_result(result: Result, console: Console) -> None:
    table = Table(title="Failovers, in time after the fault", title_justify="left")
    for column in ("cause", "from", "to", "detected", "elected", "first order = RTO"):
        table.add_column(column, justify="left" if column in ("cause", "from", "to") else "right")
    for a in result.acts:
        table.add_row(
            a.title, a.old, a.new, _duration(a.detected_s), _duration(a.elected_s), _duration(a.first_order_s)
        )
    console.print(table)
    record = result.judgement.record
    refused = ", ".join(f"{n} {code}" for code, n in record.refused.most_common()) or "none"
    console.print(f"{len(record.orders)} orders accepted (refused: {refused}); {result.judgement.nodes} journals")
    for row in result.judgement.verdict.rows:
        console.print(headline(row), style=_COLOUR[row.level], markup=False, highlight=False)
    for problem in result.problems:
        console.print(f"[red]     {problem}[/red]", highlight=False)


def run_show(options: Options, directory: Path, console: Console) -> bool:
    """The whole show on a new cluster in `directory`; whether everything held."""
    hang_file = directory / "hang"
    config = {"hang_file": str(hang_file), "refresh_s": REFRESH_S}
    options.overlay["strategy"] = {"path": HANG_STRATEGY, "config": config}
    cluster = LocalCluster(directory)
    console.print(
        f"starting {options.nodes} nodes, {options.etcd} etcd members, Redis and a paper venue on {options.market}"
    )
    cluster.start(options, tied=True)
    try:
        console.print(f"status page: {cluster.urls[0]}")
        result = Show(cluster, console, hang_file).run()
    finally:
        cluster.stop_or_kill()
    print_result(result, console)
    return result.holds


_COLOUR = {
    Level.PASS: "green",
    Level.NOT_JUDGED: "dim",
    Level.INCONCLUSIVE: "yellow",
    Level.INVALID: "red",
    Level.FAIL: "red",
}


def _unix_s(value: Any) -> float | None:
    """Of Unix nanoseconds, or of ISO-8601 text."""
    if isinstance(value, int):
        return value / 1e9
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
