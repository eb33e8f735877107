"""The worker process: wires a trading node together, and carries what the keeper says to its parts.

    keeper --(link: follow, prepare, lead, granted, stop, drain, latch)--> worker
    feed -> strategy host -> [leading: trader -> leadership -> journal, gate, venue]
    journal --(committed entries, in order)--> book -> [leading: trader], strategy host

One asyncio loop and one TaskGroup: a task that dies takes the process down, and the keeper resigns for it. The loop's
own heartbeat goes into shared memory, so a strategy that blocks the loop is seen. The worker obeys: it leads when told,
and stops when told, clearing what it has before it answers.

Read next: `parts.py` (what it is made of), `obeying.py` (whom it follows, when it leads), `leading.py` (the way in and
out of leading), `leadership.py` (one term), `host.py` (the strategy), `report.py` (what it says of itself).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from cluster import link
from cluster.child import die_with_keeper
from cluster.clock import boottime_ns
from cluster.core.errors import (
    BatonError,
    InvariantViolation,
    JournalCorrupt,
    OutcomeUnknown,
    Stop,
    Unreachable,
)
from cluster.core.ids import NS_PER_S, LogIndex, NodeId, ns
from cluster.core.log import Entry
from cluster.core.stream import Digests
from cluster.delivery import Delivery
from cluster.follower import Follower
from cluster.journal import Journal, Snapshot, set_aside
from cluster.logs import configure_logging
from cluster.permit import PermitPage
from cluster.picture import address_of
from cluster.replication import ReplicationServer
from cluster.wire import TlsFiles, WireSettings
from node.book import Book
from node.codec import Intent, decode
from node.config import Config, load_config
from node.feeds.base import FeedState
from node.gate import GateUnavailable, GateUnsuitable
from node.host import StrategyHost, load_strategy
from node.leading import Leading
from node.obeying import Obeying
from node.parts import Parts, make_feed, make_venue
from node.permission import Conditions
from node.redis_gate import RedisGate
from node.report import Report
from node.status.http import StatusServer
from node.strategy import Wish
from node.telemetry import Telemetry
from node.venue_clock import VenueClock
from node.version import VERSION

BEAT_S = 0.02
STANDBY_BEAT_S = 0.05
HEARTBEAT_S = 0.1  # of replication; at least five of them in the silence that drops a follower
PUBLISH_S = 1.0
LOOK_S = 1.0
FEED_CHECK_S = 0.2
SNAPSHOT_CHECK_S = 1.0
DIGEST_EVERY = 256

log = structlog.get_logger()


class Worker:
    def __init__(self, config: Config, sock: socket.socket, page: PermitPage) -> None:
        self.config = config
        self.page = page
        self.instruments = config.instrument_table()
        self._sock = sock
        self._running: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._standing: set[str] = set()  # names of the tasks that last as long as the process
        self._failed = False
        self._exiting = False

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until told to exit. Raises what went wrong; the keeper is told why before."""
        self._assemble()
        # What stands now stays: the collector need not look at it again between an order and its answer.
        gc.collect()
        gc.freeze()
        try:
            await self.parts.server.start(self.config.node.grpc_listen)
            async with asyncio.TaskGroup() as self._tasks:
                for work, name in (
                    (self._beat(), "beat"),
                    (self._watch_gate(), "gate"),
                    (self._connect_venue(), "venue"),
                    (self._sample_venue_clock(), "venue-clock"),
                    (self._consume_feed(), "feed"),
                    (self._watch_feed(), "feed-health"),
                    (self._publish_now_and_then(), "publish"),
                    (self._serve_status(), "http"),
                    (self._take_snapshots(), "snapshots"),
                    (self.leading.keep_strategy_state(), "strategy-state"),
                ):
                    self._standing.add(name)
                    self._spawn(work, name)
                self.parts.host.start()
                self.parts.link.start()  # from here on the keeper is heard: all that obeys it stands
                self._say_hello()
                await self._over
                for task in self._running:
                    task.cancel()
        finally:
            self._end_leading("worker ends")
            self.parts.host.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._close_parts()
            self.parts.journal.close(1.0)

    def _assemble(self) -> None:
        c, r = self.config, self.config.replication
        loop, rng = asyncio.get_running_loop(), random.Random(secrets.randbits(64))
        # Opening checks every entry and may take seconds: before the first heartbeat, inside start_timeout.
        warnings: list[str] = []
        journal = self._open_journal(warnings)
        journal.on_broken = self._fail
        book = self._rebuild_book(journal)
        me, digests = NodeId(c.node.name), Digests()
        tls = TlsFiles(r.ca_file, r.cert_file, r.key_file) if r.ca_file and r.cert_file and r.key_file else None
        settings = WireSettings(heartbeat_s=min(HEARTBEAT_S, r.insync_timeout_s * 2 / 5), tls=tls)
        delivery = Delivery(journal, LogIndex(book.applied_index), self._apply_all, self._fail)
        self.parts = Parts(
            config=c,
            name=c.node.name,
            instruments=self.instruments,
            page=self.page,
            link=link.Link(self._sock, self._on_message, self._on_link_closed),
            journal=journal,
            book=book,
            digests=digests,
            delivery=delivery,
            server=ReplicationServer(
                journal,
                me,
                {me},
                digests,
                settings=settings,
                on_higher_term=lambda term, peer: self.leading.step_down(f"{peer} has seen term {term}"),
            ),
            follower=Follower(
                journal,
                me,
                delivery,
                digests,
                rng,
                on_snapshot=self._install_snapshot,
                on_stop=self._fail,
                settings=settings,
            ),
            host=StrategyHost(
                load_strategy(c.strategy.path, c.strategy.config),
                c.strategy.path,
                book,
                self.instruments,
                on_wishes=self._wishes,
                on_failed=self._strategy_failed,
                call_later=loop.call_later,
            ),
            gate=RedisGate(
                c.gate.url.reveal(),
                cluster=c.cluster.name,
                holder=f"{c.node.name}/{os.getpid()}",
                timeout_s=c.gate.timeout_s,
                claim_ttl_s=c.gate.claim_ttl_s,
                record_max=c.gate.record_max,
            ),
            venue=make_venue(c, rng),
            clock=VenueClock(c.lease.clock_drift_max),
            feed=make_feed(c, rng),
            conditions=Conditions(),
            telemetry=Telemetry(
                c.node.name, c.cluster.name, VERSION, lease_ttl_s=c.lease.ttl_s, lease_margin_s=c.lease.margin_s
            ),
            warnings=warnings,
        )
        journal.on_synced(self.parts.telemetry.journal_fsync)
        self.leading = Leading(self.parts, publish=self._publish)
        self.obeying = Obeying(self.parts, self.leading, self._spawn)
        self.report = Report(self.parts, self.leading)
        delivery.advance(journal.commit_index)

    def _say_hello(self) -> None:
        journal, node = self.parts.journal, self.config.node
        self.parts.link.send(
            link.Hello(
                journal.journal_id,
                journal.last.index,
                journal.highest_term,
                journal.etcd_cluster_id,
                node.grpc_advertise,
                node.http_advertise,
            )
        )
        log.info("worker_ready", pid=os.getpid(), last_index=journal.last.index)

    async def _close_parts(self) -> None:
        parts = self.parts
        parts.delivery.close()
        await parts.follower.close()
        await parts.server.stop()
        await parts.feed.close()
        await parts.venue.close()
        await parts.gate.close()

    def _exit(self, why: str) -> None:
        self._exiting = True
        log.info("worker_stopping", reason=why)
        self._end_leading(why)
        if not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """Something the node cannot go on without. Stop sending first, then say so, then end: the keeper need not wait
        for the end."""
        if self._failed:
            return
        self._failed = True
        self._end_leading(str(error))
        self.parts.link.send(link.Fatal(f"{type(error).__name__}: {error}"[:2000]))
        if not self._over.done():
            self._over.set_exception(error)

    def _end_leading(self, why: str) -> None:
        """For good: what we were told and have not begun is not begun any more."""
        self.leading.end(why)
        self.obeying.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The group ends the process when a task fails, but only after all others have ended: until then we would go on
        trading, and the keeper would not know."""
        self._running.discard(task)
        if task.cancelled():
            if task.get_name() in self._standing and not self._over.done():  # nobody of ours does that
                self._fail(InvariantViolation(f"the task {task.get_name()!r} was cancelled"))
        elif (error := task.exception()) is not None:
            self._fail(error)

    async def _beat(self) -> None:
        """From the loop itself: a callback that blocks is seen by the keeper as silence."""
        expected = 0
        while True:
            now = boottime_ns()
            self.page.beat(now)
            self.parts.telemetry.loop_lag(max(0, now - (expected or now)))
            beat_s = BEAT_S if self.leading.log is not None else STANDBY_BEAT_S
            expected = now + round(beat_s * NS_PER_S)
            await asyncio.sleep(beat_s)

    # -- the journal and the book --------------------------------------------------------------------------

    def _open_journal(self, warnings: list[str]) -> Journal:
        path = self.config.node.data_dir / "journal.db"
        try:
            return self._open(path)
        except JournalCorrupt as e:
            kept = set_aside(path)
            text = (
                f"{e} It is kept as {kept.name}; this node starts as an empty follower and catches up from the leader. "
                "Its new journal is not in the in-sync set, so it cannot lead before that."
            )
            log.error("journal_corrupt", reason=text)
            warnings.append(text)
            return self._open(path)

    def _open(self, path: Path) -> Journal:
        return Journal.open(path, cluster=self.config.cluster.name, durability=self.config.replication.durability)

    def _rebuild_book(self, journal: Journal) -> Book:
        """The book as of the last entry known to be committed; what follows is applied when its commit is known."""
        book = Book(self.config.cluster.order_tag, self.instruments.values())
        snapshot = journal.latest_snapshot()
        if snapshot is not None:
            book = self._restore(snapshot.blob)
        while book.applied_index < journal.commit_index:
            entries = journal.read(LogIndex(book.applied_index + 1), 8 << 20)
            if not entries:
                break
            for entry in entries:
                if entry.index <= journal.commit_index:
                    book.apply(entry)
        return book

    def _restore(self, blob: bytes) -> Book:
        return Book.restore(blob, self.config.cluster.order_tag, self.instruments.values())

    def _apply_all(self, entries: Sequence[Entry]) -> None:
        """Committed entries, in order: the only way into the book."""
        parts, leading = self.parts, self.leading
        for entry in entries:
            fact = leading.fact_of(entry.index) or decode(entry.kind, entry.body)
            events = parts.book.apply(entry, fact)
            if entry.index % DIGEST_EVERY == 0:
                parts.digests.note(entry.index, parts.book.digest())
            if leading.trader is not None:
                leading.applied(entry, fact)  # first: an order waits for it, and the strategy may take its time
            elif isinstance(fact, Intent):
                parts.host.leader_decided(fact.decision_id)
            if events:
                parts.host.book_events(events)

    def _install_snapshot(self, snapshot: Snapshot) -> None:
        """The leader's log begins after ours ends: its book replaces ours."""
        book = self._restore(snapshot.blob)
        if book.digest() != snapshot.digest:
            raise InvariantViolation(f"the leader's snapshot of entry {snapshot.index} is not the book it says it is")
        self.parts.book = book
        self.parts.digests.clear()
        self.parts.host.replace_book(book)

    async def _take_snapshots(self) -> None:
        journal = self.parts.journal
        every, keep = self.config.replication.snapshot_every_entries, self.config.replication.keep_entries
        last = journal.snapshot_index or 0
        while True:
            await asyncio.sleep(SNAPSHOT_CHECK_S)
            book = self.parts.book
            index = book.applied_index
            if index - last < every or index > journal.durable_index:
                continue
            try:
                await journal.save_snapshot(LogIndex(index), book.digest(), book.snapshot())
                await journal.prune(keep)
            except OutcomeUnknown as e:  # a slow disk: the journal is longer for it, not wrong
                log.warning("snapshot_not_taken", log_index=index, reason=str(e))
                continue
            last = index
            log.info("snapshot_taken", log_index=index)

    # -- what the keeper says ------------------------------------------------------------------------------

    def _on_message(self, message: link.Message) -> None:
        if self._over.done():
            return
        try:
            self._obey(message)
        except Exception as e:  # noqa: BLE001 - raised into the loop it would be a line in the log, and we half told
            self._fail(e)

    def _obey(self, message: link.Message) -> None:
        leading = self.leading
        match message:
            case link.Follow():
                self.obeying.follow(message)
            case link.Prepare():
                self.obeying.prepare(message)
            case link.Lead():
                self.obeying.lead(message)
            case link.StopTrading():
                self.obeying.stop_trading(message)
            case link.Granted(term):
                leading.granted(term)
            case link.Drain(term, successor):
                leading.drain(term, successor)
            case link.InSyncAnswer():
                leading.insync_answered(message)
            case link.LatchSeen(halted):
                leading.latch_seen(halted)
            case link.LatchAnswer():
                leading.latch_answered(message)
            case link.ClusterSeen(picture):
                self._see(picture)
            case link.SwitchoverAnswer():
                self.report.switchover_answered(message)
            case link.Exit(reason):
                self._exit(reason)
            case _:
                raise InvariantViolation(f"the keeper sent {type(message).__name__}, which only a worker sends")

    def _on_link_closed(self) -> None:
        if not self._exiting:
            self._fail(Stop("the keeper closed the control channel"))

    def _see(self, picture: dict[str, Any]) -> None:
        parts, members = self.parts, picture["members"]
        self.report.see(picture)
        parts.server.nodes = {NodeId(n) for n in members} | {NodeId(parts.name)}
        parts.follower.set_peers(
            {NodeId(n): at for n, m in members.items() if n != parts.name and (at := address_of(m))}
        )
        cluster_id = picture["etcd_cluster_id"]
        if cluster_id and parts.journal.etcd_cluster_id == 0:
            self._spawn(parts.journal.set_etcd_cluster_id(cluster_id), "remember-etcd")

    # -- the strategy --------------------------------------------------------------------------------------

    def _wishes(self, named: list[tuple[str, Wish]], received_at: int) -> None:
        self.leading.wishes(named, received_at)

    def _strategy_failed(self, reason: str) -> None:
        self.parts.conditions.strategy_failed = reason
        self.parts.warnings.append(
            f"the strategy failed: {reason}; new orders are blocked. Mend it and restart the node."
        )
        self.leading.review()

    # -- outside parts -------------------------------------------------------------------------------------

    async def _consume_feed(self) -> None:
        parts = self.parts
        async for event in parts.feed.events():
            if parts.conditions.feed is not FeedState.LIVE:
                self._note_feed()
            parts.host.market(event)

    async def _watch_feed(self) -> None:
        lost_at: int | None = None
        while True:
            self._note_feed()
            now, conditions = boottime_ns(), self.parts.conditions
            if conditions.feed is FeedState.LIVE or conditions.standing != "leading":
                lost_at = None
            elif lost_at is None:
                lost_at = now
            elif 0 < ns(self.config.feed.handover_after_s) < now - lost_at:
                lost_at = now  # asked once; should nobody take over, again after a while
                self.report.hand_over(f"feed {conditions.feed.value}")
            await asyncio.sleep(FEED_CHECK_S)

    def _note_feed(self) -> None:
        conditions, health = self.parts.conditions, self.parts.feed.health(boottime_ns())
        if health.state is not conditions.feed:
            log.info("feed_changed", state=health.state.value, reason=health.reason)
            conditions.feed, conditions.feed_reason = health.state, health.reason
            self.leading.review()
            self._publish()

    async def _watch_gate(self) -> None:
        """Connect long before it is needed, so that a takeover only has to arm it; then see that it still answers. A
        leader that places nothing would not notice otherwise, and a standby would take over into nothing."""
        gate, conditions = self.parts.gate, self.parts.conditions
        checked = False
        while True:
            try:
                if not checked:
                    self.parts.warnings += await gate.connect()
                    checked = True
                await gate.state()
            except (GateUnavailable, GateUnsuitable) as e:
                if not conditions.gate_unreachable:
                    log.warning("gate_unreachable", reason=str(e))
                conditions.gate_unreachable = str(e)
            else:
                conditions.gate_unreachable = ""
            await asyncio.sleep(LOOK_S)

    async def _connect_venue(self) -> None:
        while True:
            try:
                await self.parts.venue.connect()
                return
            except Unreachable as e:
                log.warning("venue_not_connected", reason=str(e))
                await asyncio.sleep(0.5)

    async def _sample_venue_clock(self) -> None:
        """And see that the venue still answers."""
        venue, clock, conditions = self.parts.venue, self.parts.clock, self.parts.conditions
        while True:
            if venue.connected:
                try:
                    clock.note(await venue.server_time())
                except (Unreachable, OutcomeUnknown) as e:
                    conditions.venue_unreachable = str(e)
                else:
                    conditions.venue_unreachable = ""
            else:
                conditions.venue_unreachable = "not connected"
            await asyncio.sleep(LOOK_S if clock.latest(boottime_ns()) is not None else 0.05)

    # -- telling -------------------------------------------------------------------------------------------

    async def _serve_status(self) -> None:
        await StatusServer(self.report, self.parts.telemetry, self.config.node.http_listen).serve()

    def _publish(self) -> None:
        self.parts.link.send(link.Status(self.report.published()))

    async def _publish_now_and_then(self) -> None:
        while True:
            self._publish()
            await asyncio.sleep(PUBLISH_S)


# -- the process -------------------------------------------------------------------------------------------


async def _run(config: Config, sock: socket.socket, page: PermitPage) -> None:
    worker = Worker(config, sock, page)
    try:
        await worker.run()
    except BaseExceptionGroup as group:
        # The first is the cause; the rest are tasks that were cancelled for it, or fell over it.
        raise group.exceptions[0] from group


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m node.worker", description="Started by the keeper; not by hand.")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    # Ctrl-C in a terminal and a service manager's stop reach the whole group. Only the keeper acts on them: it has us
    # hand over, and says when to exit. Without a keeper the kernel kills us.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        link_fd, permit_fd = int(os.environ["BATON_LINK_FD"]), int(os.environ["BATON_PERMIT_FD"])
        die_with_keeper(int(os.environ["BATON_KEEPER_PID"]))
    except (KeyError, ValueError):
        sys.exit("the worker is started by the keeper: run `baton node run --config FILE` instead")
    sock = socket.socket(fileno=link_fd)
    try:
        config = load_config(arguments.config)
        configure_logging(config.log.level, config.log.format)
        structlog.contextvars.bind_contextvars(node=config.node.name, process="worker")
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, sock, PermitPage(permit_fd)))
    except BatonError as e:
        log.error("worker_failed", reason=str(e))
        _tell_keeper(sock, str(e))
        sys.exit(1)
    except Exception as e:  # a bug: its traceback belongs in the log, and the keeper in the know
        log.error("worker_failed", reason=f"{type(e).__name__}: {e}", exc_info=True)
        _tell_keeper(sock, f"{type(e).__name__}: {e}")
        sys.exit(1)


def _tell_keeper(sock: socket.socket, reason: str) -> None:
    with contextlib.suppress(OSError):
        sock.send(link.encode(link.Fatal(reason[:2000])))


if __name__ == "__main__":
    main()
