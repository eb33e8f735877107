"""The worker process: wires a trading node together. The only place that picks implementations.

    keeper --(link: follow, prepare, lead, granted, stop, drain)--> worker
    feed -> strategy host -> [leading: trader -> order desk -> journal, gate, venue]
    journal --(committed entries, in order)--> book -> strategy host, trader

One asyncio loop and one TaskGroup: a task that dies takes the process down, and the keeper resigns for it. The loop's
own heartbeat goes into shared memory, so a strategy that blocks the loop is seen. The worker obeys: it leads when told,
and stops when told, clearing what it has before it answers.

Read next: `trader.py` (one leadership), `host.py` (the strategy), `cluster/replication.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import random
import secrets
import signal
import socket
import sys
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from cluster import link
from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import (
    BatonError,
    ConfigError,
    InvariantViolation,
    JournalCorrupt,
    OutcomeUnknown,
    StepDown,
    Stop,
    Unreachable,
)
from cluster.core.ids import NS_PER_S, JournalId, LogIndex, NodeId, Term, ns
from cluster.core.insync import ProposeChange, Protection
from cluster.core.log import Entry
from cluster.delivery import Delivery
from cluster.follower import Follower
from cluster.journal import Journal, Snapshot, set_aside
from cluster.leader_log import LeaderLog, LeaderSettings
from cluster.logs import configure_logging
from cluster.permit import PermitPage
from cluster.replication import ReplicationServer
from cluster.wire import Digests, TlsFiles, WireSettings
from node.book import Book
from node.codec import Fact, Intent, StrategyState, TermStarted, decode, encode
from node.config import Config, load_config
from node.feeds.base import Feed, FeedState
from node.gate import GateUnavailable, GateUnsuitable, RedisGate
from node.host import StrategyHost, load_strategy
from node.permission import Conditions, Level, Permission
from node.status.http import StatusServer
from node.strategy import OrderState, Role, Wish
from node.telemetry import Telemetry
from node.trader import Trader, TradingRules
from node.venue_clock import VenueClock
from node.venues.base import Venue
from node.version import VERSION

BEAT_S = 0.02
PUBLISH_S = 0.5
VENUE_CLOCK_S = 1.0
FEED_CHECK_S = 0.1
STRATEGY_STATE_S = 10.0
DRAIN_LIMIT_S = 0.4
CATCH_UP_LIMIT_S = 30.0
DIGEST_EVERY = 1024
SWITCHOVER_ANSWER_S = 5.0

log = structlog.get_logger()


def die_with_keeper(keeper_pid: int) -> None:
    """Have the kernel kill this process when its keeper dies (prctl(2) PR_SET_PDEATHSIG), and look afterwards whether
    it died before that was set."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
        raise Stop(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != keeper_pid:
        sys.exit("keeper is gone")


class Worker:
    def __init__(self, config: Config, sock: socket.socket, page: PermitPage) -> None:
        self.config = config
        self.name = config.node.name
        self.page = page
        self.instruments = config.instrument_table()
        self.telemetry = Telemetry(
            self.name,
            config.cluster.name,
            VERSION,
            lease_ttl_s=config.lease.ttl_s,
            lease_margin_s=config.lease.margin_s,
        )
        self.conditions = Conditions()
        self.permission = Permission(Level.BLOCKED, "standby")
        self.clock = VenueClock()
        self.rng = random.Random(secrets.randbits(64))
        self.trader: Trader | None = None
        self.term = Term(0)
        self.warnings: list[str] = []
        self.last_order_at: int | None = None
        self._sock = sock
        self._picture: dict[str, Any] | None = None
        self._picture_at = 0
        self._asked: dict[str, asyncio.Future[tuple[bool, str]]] = {}
        self._facts: dict[int, Fact] = {}  # appended by us and not applied; saves decoding them again
        self._log: LeaderLog | None = None
        self._lead_task: asyncio.Task[None] | None = None
        self._change = 0  # number of the in-sync change under way
        self._digests = Digests()
        self._turn = asyncio.Lock()  # for what changes whom we follow; fair, so it goes in the order of the messages
        self._failed: asyncio.Future[None] | None = None
        self._exiting = False

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until told to exit. Raises what went wrong; the keeper is told why before."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "SIGTERM")
        # Opening checks every entry and may take seconds: before the first heartbeat, inside start_timeout.
        self.journal = self._open_journal()
        self.journal.on_broken = lambda e: self._fail(e)
        self.book = self._rebuild_book()
        self.host = StrategyHost(
            load_strategy(self.config.strategy.path, self.config.strategy.config),
            self.config.strategy.path,
            self.book,
            self.instruments,
            on_wishes=self._wishes,
            on_failed=self._strategy_failed,
            call_later=loop.call_later,
        )
        self.gate = RedisGate(
            self.config.gate.url.reveal(),
            cluster=self.config.cluster.name,
            holder=f"{self.name}/{os.getpid()}",
            timeout_s=self.config.gate.timeout_s,
            claim_ttl_s=self.config.gate.claim_ttl_s,
            record_max=self.config.gate.record_max,
        )
        self.venue = make_venue(self.config, self.rng)
        self.feed = make_feed(self.config, self.rng)
        self.link = link.Link(self._sock, self._on_message, self._on_link_closed)
        try:
            async with asyncio.TaskGroup() as tasks:
                self.tasks = tasks
                await self._start_replication()
                running = [
                    tasks.create_task(work, name=name)
                    for name, work in (
                        ("beat", self._beat()),
                        ("gate", self._connect_gate()),
                        ("venue", self._connect_venue()),
                        ("venue-clock", self._sample_venue_clock()),
                        ("feed", self._consume_feed()),
                        ("feed-health", self._watch_feed()),
                        ("publish", self._publish()),
                        ("http", self._serve_status()),
                        ("snapshots", self._take_snapshots()),
                        ("strategy-state", self._keep_strategy_state()),
                    )
                ]
                self.host.start()
                self.link.send(
                    link.Hello(
                        self.journal.journal_id,
                        self.journal.last.index,
                        self.journal.highest_term,
                        self.journal.etcd_cluster_id,
                        self.config.node.grpc_advertise,
                        self.config.node.http_advertise,
                    )
                )
                log.info("worker_ready", pid=os.getpid(), last_index=self.journal.last.index)
                await self._failed
                for t in running:
                    t.cancel()
        finally:
            self._end_leading("worker ends")
            self.host.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._close_parts()
            self.journal.close(1.0)

    async def _close_parts(self) -> None:
        self.delivery.close()
        await self.follower.close()
        await self.server.stop()
        await self.feed.close()
        await self.venue.close()
        await self.gate.close()

    def _stop(self, why: str) -> None:
        self._exiting = True
        log.info("worker_stopping", reason=why)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """Something the node cannot go on without. Stop sending first, then say so, then end: the keeper need not wait
        for the end."""
        self._end_leading(str(error))
        self.link.send(link.Fatal(f"{type(error).__name__}: {error}"[:2000]))
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _on_link_closed(self) -> None:
        if not self._exiting:
            self._fail(Stop("the keeper closed the control channel"))

    async def _beat(self) -> None:
        """From the loop itself: a callback that blocks is seen by the keeper as silence."""
        expected = 0
        while True:
            now = boottime_ns()
            self.page.beat(now)
            self.telemetry.loop_lag(max(0, now - (expected or now)))
            expected = now + round(BEAT_S * NS_PER_S)
            await asyncio.sleep(BEAT_S)

    # -- the journal and the book --------------------------------------------------------------------------

    def _open_journal(self) -> Journal:
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
            self.warnings.append(text)
            return self._open(path)

    def _open(self, path: Path) -> Journal:
        return Journal.open(path, cluster=self.config.cluster.name, durability=self.config.replication.durability)

    def _rebuild_book(self) -> Book:
        """The book as of the last entry known to be committed; what follows is applied when its commit is known."""
        book = Book(self.config.cluster.order_tag, self.instruments.values())
        snapshot = self.journal.latest_snapshot()
        if snapshot is not None:
            book = self._restore(snapshot.blob)
        while book.applied_index < self.journal.commit_index:
            entries = self.journal.read(LogIndex(book.applied_index + 1), 8 << 20)
            if not entries:
                break
            for entry in entries:
                if entry.index <= self.journal.commit_index:
                    book.apply(entry)
        return book

    async def _start_replication(self) -> None:
        r = self.config.replication
        tls = TlsFiles(r.ca_file, r.cert_file, r.key_file) if r.ca_file and r.cert_file and r.key_file else None
        settings = WireSettings(tls=tls)
        me = NodeId(self.name)
        self.delivery = Delivery(self.journal, LogIndex(self.book.applied_index), self._apply_all, self._fail)
        self.delivery.advance(self.journal.commit_index)
        self.server = ReplicationServer(
            self.journal,
            me,
            {me},
            self._digests,
            settings=settings,
            on_higher_term=lambda term, peer: self._step_down(f"{peer} has seen term {term}"),
        )
        self.follower = Follower(
            self.journal,
            me,
            self.delivery,
            self._digests,
            self.rng,
            on_snapshot=self._install_snapshot,
            on_stop=self._fail,
            settings=settings,
        )
        await self.server.start(self.config.node.grpc_listen)

    def _apply_all(self, entries: Sequence[Entry]) -> None:
        """Committed entries, in order: the only way into the book."""
        for entry in entries:
            fact = self._facts.pop(entry.index, None) or decode(entry.kind, entry.body)
            events = self.book.apply(entry)
            if entry.index % DIGEST_EVERY == 0:
                self._digests.note(entry.index, self.book.digest())
            if self.trader is None and isinstance(fact, Intent):
                self.host.leader_decided(fact.decision_id)
            if events:
                self.host.book_events(events)
            if self.trader is not None:
                self.trader.applied(entry, fact)

    def _install_snapshot(self, snapshot: Snapshot) -> None:
        """The leader's log begins after ours ends: its book replaces ours."""
        book = self._restore(snapshot.blob)
        if book.digest() != snapshot.digest:
            raise InvariantViolation(f"the leader's snapshot of entry {snapshot.index} is not the book it says it is")
        self.book = self.host.book = book
        self._digests.clear()

    def _restore(self, blob: bytes) -> Book:
        return Book.restore(blob, self.config.cluster.order_tag, self.instruments.values())

    async def _take_snapshots(self) -> None:
        every, keep = self.config.replication.snapshot_every_entries, self.config.replication.keep_entries
        last = self.journal.snapshot_index or 0
        while True:
            await asyncio.sleep(1.0)
            index = self.book.applied_index
            if index - last < every or index > self.journal.durable_index:
                continue
            await self.journal.save_snapshot(LogIndex(index), self.book.digest(), self.book.snapshot())
            await self.journal.prune(keep)
            last = index
            log.info("snapshot_taken", log_index=index)

    # -- what the keeper says ------------------------------------------------------------------------------

    def _on_message(self, message: link.Message) -> None:
        match message:
            case link.Follow(node, address, term):
                self._spawn(self._follow(NodeId(node), address, Term(term)), "follow")
            case link.Prepare(term):
                self._spawn(self._prepare(Term(term)), "prepare")
            case link.Lead():
                self._lead_task = self._spawn(self._lead(message), "lead")
            case link.Granted(term):
                if self.trader is not None and self.trader.term == term:
                    self.trader.granted()
            case link.StopTrading(term, reason):
                self._end_leading(reason)
                self.link.send(link.Stopped(term))
            case link.Drain(term, successor):
                self._spawn(self._drain(Term(term), successor), "drain")
            case link.InSyncAnswer():
                self._insync_answered(message)
            case link.ClusterSeen(picture):
                self._see(picture)
            case link.SwitchoverAnswer(request_id, ok, text):
                asked = self._asked.pop(request_id, None)
                if asked is not None and not asked.done():
                    asked.set_result((ok, text))
            case link.Exit(reason):
                self._stop(reason)
            case _:
                raise InvariantViolation(f"the keeper sent {type(message).__name__}, which only a worker sends")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self.tasks.create_task(work, name=name)

    def _see(self, picture: dict[str, Any]) -> None:
        self._picture, self._picture_at = picture, boottime_ns()
        members = picture["members"]
        self.server.nodes = {NodeId(n) for n in members} | {NodeId(self.name)}
        self.follower.set_peers({NodeId(n): m["grpc"] for n, m in members.items() if n != self.name and m.get("grpc")})
        cluster_id = picture["etcd_cluster_id"]
        if cluster_id and self.journal.etcd_cluster_id == 0:
            self._spawn(self.journal.set_etcd_cluster_id(cluster_id), "remember-etcd")

    async def _prepare(self, term: Term) -> None:
        async with self._turn:
            await self.follower.stop_following(closing=term)
        self.link.send(link.Prepared(term))

    async def _follow(self, leader: NodeId, address: str, term: Term) -> None:
        """In turn: a Prepare and the Follow after it may arrive together, and stopping takes a while. Out of turn, the
        stop would end the new leader's stream and close its term for ever."""
        async with self._turn:
            self.conditions.standing = "standby"
            self.follower.follow(leader, address, term)

    # -- leading -------------------------------------------------------------------------------------------

    def _append(self, fact: Fact) -> Entry:
        """Raises StepDown when the term is over: whoever is in the middle of something then stops there."""
        if self._log is None:
            raise StepDown("this node does not lead any more")
        kind, body = encode(fact)
        entry = self._log.append(kind, body, unix_ns())
        self._facts[entry.index] = fact
        return entry

    async def _lead(self, lead: link.Lead) -> None:
        """Take over: catch up (commit everything we hold), arm, settle, report. The keeper then grants the permit."""
        term = Term(lead.term)
        begun = boottime_ns()
        log.info("taking_over", term=term, cause=lead.cause, came_from=lead.came_from)
        self.conditions.standing = "taking over"
        async with self._turn:
            await self.follower.stop_following()
        self._facts.clear()
        self._log = LeaderLog(
            self.journal,
            NodeId(self.name),
            term,
            {NodeId(n): JournalId(j) for n, j in lead.insync.items()},
            lead.insync_revision,
            propose=lambda change: self._propose(term, change),
            on_commit=self.delivery.advance,
            on_protection=self._protection_changed,
            on_deposed=lambda why: self._step_down(why),
            settings=LeaderSettings(
                insync_timeout_s=self.config.replication.insync_timeout_s,
                min_standbys=self.config.replication.min_standbys,
                unprotected=self.config.replication.unprotected,
            ),
        )
        self.server.lead(self._log)
        first = self._append(TermStarted(self.name, str(os.getpid())))
        self.conditions.gate_closed = self.conditions.venue_down = "not armed yet"
        self.trader = trader = self._make_trader(term)
        # The gate and the venue are armed while the standbys attach; what is open is asked for when both are done.
        arming = asyncio.ensure_future(trader.arm())
        try:
            async with asyncio.timeout(CATCH_UP_LIMIT_S):
                await self._log.wait_committed(first.index)
                await self.delivery.wait_applied(first.index)
        except StepDown as e:
            log.info("takeover_ended", term=term, reason=str(e))
            arming.cancel()
            return
        except TimeoutError:
            arming.cancel()
            self._step_down(f"takeover: entry {first.index} was not committed within {CATCH_UP_LIMIT_S:g} s")
            return
        phases = {"catch_up": (boottime_ns() - begun) / NS_PER_S}
        phases["arm"] = await arming
        if self.trader is not trader:
            return  # the term ended meanwhile
        phases["settle"] = await trader.settle()
        self.link.send(link.Reconciled(term, phases))

    def _make_trader(self, term: Term) -> Trader:
        c = self.config
        return Trader(
            term=term,
            rules=TradingRules(
                order_tag=c.cluster.order_tag,
                limits=c.risk_limits(),
                validity_s=c.venue.order_validity_s,
                reconcile_interval_s=c.venue.reconcile_interval_s,
                deadman_ttl_s=c.venue.deadman_ttl_s,
            ),
            book=self.book,
            append=self._append,
            page=self.page,
            gate=self.gate,
            venue=self.venue,
            clock=self.clock,
            conditions=self.conditions,
            telemetry=self.telemetry,
            reference=self._reference,
            on_step_down=self._step_down,
            on_first_order=lambda at: self.link.send(link.FirstOrder(term, at)),
            on_permission=self._permission_changed,
        )

    def _step_down(self, reason: str) -> None:
        """Ask the keeper to end the term. Sending has stopped, or stops when it answers with StopTrading."""
        if self._log is not None:
            log.warning("asks_to_step_down", term=self._log.term, reason=reason)
            if self.trader is not None:
                self.trader.stop()
            self.link.send(link.StepDown(self._log.term, reason))

    def _end_leading(self, reason: str) -> None:
        """Synchronous: when it returns nothing can be sent or appended for the term."""
        trader, self.trader = self.trader, None
        leader, self._log = self._log, None
        if trader is not None:
            trader.stop()
        if leader is not None:
            self.server.stop_leading(reason)
            log.info("leading_ended", term=leader.term, reason=reason)
        self._facts.clear()
        self.conditions.standing = "standby"
        self.conditions.unprotected = ""
        self._permission_changed(Permission(Level.BLOCKED, "standby"))
        if self._lead_task is not None:
            self._lead_task.cancel()
            self._lead_task = None

    async def _drain(self, term: Term, successor: str | None) -> None:
        """Wait for answers to what was sent, then until the successor has every entry; tell the keeper either way: what
        has no answer by then is UNKNOWN in the journal, and the next leader's to settle."""
        leader, trader = self._log, self.trader
        if leader is None or trader is None or leader.term != term:
            return
        if (state := self.host.snapshot()) is not None:
            self._append(StrategyState(self.host.path, self.host.strategy.version, state))
        await trader.drain(DRAIN_LIMIT_S)
        deadline = boottime_ns() + ns(DRAIN_LIMIT_S)
        while boottime_ns() < deadline and self._log is leader:
            last = self.journal.last.index
            has_all = {f.node for f in leader.followers() if f.durable >= last}
            if leader.commit_index >= last and (successor is None or successor in has_all):
                break
            await asyncio.sleep(0.001)
        self._end_leading("handed over")
        self.link.send(link.Settled(term))

    def _propose(self, term: Term, change: ProposeChange) -> None:
        self._change += 1
        self.link.send(
            link.ProposeInSync(
                self._change, term, {str(n): str(j) for n, j in change.members.items()}, change.expected_revision
            )
        )

    def _insync_answered(self, answer: link.InSyncAnswer) -> None:
        if self._log is None or answer.request != self._change:
            return
        members = {NodeId(n): JournalId(j) for n, j in answer.members.items()}
        if answer.outcome == "done":
            self._log.change_done(answer.revision)
        elif answer.outcome == "refused":
            self._log.change_refused(members, answer.revision)
        else:
            self._log.change_unknown()

    def _protection_changed(self, p: Protection) -> None:
        self.conditions.unprotected = (
            "" if p.may_trade else f"{p.standbys} in-sync standbys, replication.min_standbys = {p.required}"
        )
        if self.trader is not None:
            self.trader.review()

    # -- the strategy --------------------------------------------------------------------------------------

    def _wishes(self, named: list[tuple[str, Wish]], received_at: int) -> None:
        if self.trader is not None:
            with contextlib.suppress(StepDown):  # the term ended between two of its wishes
                self.trader.wishes(named, received_at)

    def _strategy_failed(self, reason: str) -> None:
        self.conditions.strategy_failed = reason
        self.warnings.append(f"the strategy failed: {reason}; new orders are blocked. Mend it and restart the node.")
        if self.trader is not None:
            self.trader.review()

    def _permission_changed(self, permission: Permission) -> None:
        self.permission = permission
        self.link.send(link.Status(self.published()))
        standing = self.conditions.standing
        if permission.level is Level.ALLOWED:
            self.host.set_role(Role.ACTIVE, "leading")
        elif standing == "leading":
            self.host.set_role(Role.BLOCKED, permission.reason)
        else:
            self.host.set_role(Role.SHADOW, standing)

    def _reference(self, symbol: str) -> int | None:
        """Twice the mid in ticks of a quote from a live feed."""
        quote = self.host.quotes.get(symbol)
        return quote.mid_half_ticks if quote is not None and self.conditions.feed is FeedState.LIVE else None

    async def _keep_strategy_state(self) -> None:
        """The leader's strategy state into the journal now and then: a successor's strategy starts from it."""
        last = b""
        while True:
            await asyncio.sleep(STRATEGY_STATE_S)
            if self.permission.level is not Level.ALLOWED:
                continue
            state = self.host.snapshot()
            if state is not None and state != last:
                with contextlib.suppress(StepDown):
                    self._append(StrategyState(self.host.path, self.host.strategy.version, state))
                last = state

    # -- outside parts -------------------------------------------------------------------------------------

    async def _consume_feed(self) -> None:
        async for event in self.feed.events():
            if self.conditions.feed is not FeedState.LIVE:
                self._note_feed()
            self.host.market(event)

    async def _watch_feed(self) -> None:
        while True:
            self._note_feed()
            await asyncio.sleep(FEED_CHECK_S)

    def _note_feed(self) -> None:
        health = self.feed.health(boottime_ns())
        if health.state is not self.conditions.feed:
            log.info("feed_changed", state=health.state.value, reason=health.reason)
            self.conditions.feed, self.conditions.feed_reason = health.state, health.reason
            if self.trader is not None:
                self.trader.review()
            self.link.send(link.Status(self.published()))

    async def _connect_gate(self) -> None:
        """Long before it is needed, so that a takeover only has to arm it."""
        while True:
            try:
                self.warnings += await self.gate.connect()
                return
            except (GateUnavailable, GateUnsuitable) as e:
                log.warning("gate_not_connected", reason=str(e))
                await asyncio.sleep(1.0)

    async def _connect_venue(self) -> None:
        while True:
            try:
                await self.venue.connect()
                return
            except Unreachable as e:
                log.warning("venue_not_connected", reason=str(e))
                await asyncio.sleep(0.5)

    async def _sample_venue_clock(self) -> None:
        while True:
            if self.venue.connected:
                with contextlib.suppress(Unreachable, OutcomeUnknown):
                    self.clock.note(await self.venue.server_time())
            await asyncio.sleep(VENUE_CLOCK_S if self.clock.latest() is not None else 0.05)

    # -- node.status.source.StatusSource -------------------------------------------------------------------

    async def _serve_status(self) -> None:
        await StatusServer(self, self.telemetry, self.config.node.http_listen).serve()

    async def _publish(self) -> None:
        while True:
            self.link.send(link.Status(self.published()))
            await asyncio.sleep(PUBLISH_S)

    def picture(self) -> dict[str, Any] | None:
        if self._picture is None:
            return None
        return self._picture | {"age_s": (boottime_ns() - self._picture_at) / NS_PER_S}

    def published(self) -> dict[str, Any]:
        leading = self._log is not None
        health = self.feed.health(boottime_ns())
        commit = self._log.commit_index if self._log else self.follower.state().leader_commit
        last = self.journal.last.index
        digest = self._digests.latest
        orders = self.book.live_orders()
        return {
            "at": unix_ns(),
            "role": "leader" if leading else "standby",
            "ready": self.conditions.feed is FeedState.LIVE and self.venue.connected,
            "permission": self.permission.level.value,
            "permission_reason": self.permission.reason,
            "term": self.book.term,
            "log_index": last,
            "commit_index": max(commit, self.journal.commit_index),
            "applied_index": self.book.applied_index,
            "lag_entries": 0 if leading else max(0, commit - self.journal.durable_index),
            "lag_s": 0.0 if leading else self._lag_s(),
            "feed_age_s": health.age_s,
            "feed_state": health.state.value,
            "digest": digest[1].hex() if digest else "",
            "digest_index": digest[0] if digest else 0,
            "positions": self.book.positions(),
            "open_orders": sum(1 for o in orders if o.state is OrderState.OPEN),
            "unresolved": len(self.book.unresolved()),
            "last_order_at": self.last_order_at,
            "double_order_class": self.venue.capabilities.double_order_class.value,
        }

    def _lag_s(self) -> float | None:
        """How old the oldest entry is that the leader has committed and we have not; None: we do not know."""
        state = self.follower.state()
        if not state.connected:
            return None
        if state.leader_commit <= self.journal.durable_index:
            return 0.0
        entry = self.journal.tail(self.journal.last.index, 1, 1)
        return max(0.0, (unix_ns() - entry[-1].at) / NS_PER_S) if entry else None

    def detail(self) -> dict[str, Any]:
        health = self.feed.health(boottime_ns())
        permit = self.page.read()
        trader = self.trader
        following = self.follower.state()
        return self.published() | {
            "node": self.name,
            "version": VERSION,
            "pid": os.getpid(),
            "permit_left_s": (permit.act_until - boottime_ns()) / NS_PER_S if permit.token else None,
            "gate": {
                "state": self.conditions.gate_closed or "armed" if trader else "not leading",
                "armed_token": trader.term if trader and not self.conditions.gate_closed else None,
            },
            "venue": {
                "connected": self.venue.connected,
                "class": self.venue.capabilities.double_order_class.value,
                "why": self.conditions.venue_down if trader else "",
            },
            "feed": {
                "state": health.state.value,
                "age_s": health.age_s,
                "messages": health.messages,
                "gaps": health.gaps,
                "duplicates": health.duplicates,
                "reordered": health.reordered,
                "malformed": health.malformed,
                "reconnects": health.reconnects,
                "reason": health.reason,
            },
            "strategy": {
                "path": self.host.path,
                "role": self.host.role.value,
                "failed": self.host.failed,
                "fingerprint": self.host.fingerprint(),
                "shadow_intents": self.host.shadow_intents,
                "shadow_matched": self.host.shadow_matched,
            },
            "following": {
                "leader": following.leader,
                "connected": following.connected,
                "refused": following.refused,
            },
            "declined": dict(trader.declined) if trader else {},
            "counts": asdict(self.book.counts),
            "mismatches": [m.text for m in self.book.mismatches] + list(trader.mismatches if trader else ()),
            "latency_s": self.telemetry.latency_s(),
            "warnings": list(self.warnings),
        }

    def positions(self) -> list[dict[str, Any]]:
        out = []
        for symbol, lots in sorted(self.book.positions().items()):
            instrument = self.instruments.get(symbol)
            quote = self.host.quotes.get(symbol)
            out.append(
                {
                    "symbol": symbol,
                    "lots": lots,
                    "qty": str(instrument.qty(lots)) if instrument else None,
                    "tick_size": str(instrument.tick_size) if instrument else None,
                    "lot_size": str(instrument.lot_size) if instrument else None,
                    "last_price": str(instrument.price(quote.bid_ticks)) if instrument and quote else None,
                }
            )
        return out

    def orders(self) -> list[dict[str, Any]]:
        live = sorted(self.book.live_orders(), key=lambda o: (not o.unresolved, o.index))
        return [
            {
                "client_order_id": o.client_order_id,
                "decision_id": o.intent.decision_id,
                "symbol": o.intent.spec.symbol,
                "side": o.intent.spec.side.value,
                "qty": self._qty(o.intent.spec.symbol, o.intent.spec.qty_lots),
                "price": self._price(o.intent.spec.symbol, o.intent.spec.price_ticks),
                "state": o.state.value,
                "filled": self._qty(o.intent.spec.symbol, o.filled_lots),
                "cancel_requested": o.cancel_requested,
                "reason": o.reason,
                "term": o.term,
                "at": o.at,
            }
            for o in live
        ]

    def _qty(self, symbol: str, lots: int) -> str:
        instrument = self.instruments.get(symbol)
        return str(instrument.qty(lots)) if instrument else f"{lots} lots"

    def _price(self, symbol: str, ticks: int | None) -> str | None:
        instrument = self.instruments.get(symbol)
        return None if ticks is None else str(instrument.price(ticks)) if instrument else f"{ticks} ticks"

    async def switchover(self, target: str | None, actor: str) -> tuple[bool, str]:
        request_id = uuid.uuid4().hex
        asked = self._asked[request_id] = asyncio.get_running_loop().create_future()
        self.link.send(link.AskSwitchover(request_id, target, actor))
        try:
            async with asyncio.timeout(SWITCHOVER_ANSWER_S):
                accepted, text = await asked
                return accepted, text
        except TimeoutError:
            return False, f"no leader answered within {SWITCHOVER_ANSWER_S:g} s; is there one? See `baton status`"
        finally:
            self._asked.pop(request_id, None)


# -- implementations ---------------------------------------------------------------------------------------


def make_venue(config: Config, rng: random.Random) -> Venue:
    """The adapter that `venue.adapter` names."""
    v = config.venue
    if v.adapter == "paper":
        from node.venues.paper import PaperVenue

        return PaperVenue(
            v.target,
            v.account,
            v.api_key.reveal() if v.api_key else "",
            config.node.name,
            instruments=list(config.instrument_table().values()),
            call_timeout_s=v.call_timeout_s,
            rng=rng,
        )
    raise ConfigError(f"venue.adapter = {v.adapter!r} is not known; known: paper")


def make_feed(config: Config, rng: random.Random) -> Feed:
    f = config.feed
    if f.adapter == "binance":
        from node.feeds.binance import BinanceFeed

        return BinanceFeed(f.url, list(config.instrument_table().values()), stale_after_s=f.stale_after_s, rng=rng)
    raise ConfigError(f"feed.adapter = {f.adapter!r} is not known; known: binance")


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
