"""The keeper process: etcd, the lease, and the worker's life and death.

Small, and never runs user code. It carries out what `core/election.py` decides and feeds back what happened. The only
process of a node that talks to etcd. Invariants of this shell:

- the permit page is written before any message is sent or call is made (actions are carried out in order, and
  WritePermit and ClearPermit are plain stores);
- `now` is read after an event arrived; `sent_at` is the `now` with which the machine decided to send, so before the
  request leaves;
- whatever raises, in a task or in a callback of the loop, ends the process in order (`_fail`): permit, worker, rest.

Run as `python -m cluster.keeper SPEC.json`; the command line makes the spec from the configuration, so that this
process imports nothing it does not need. Read next: `keys.py`, `link.py`, `permit.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from . import keys as k
from . import link
from .child import WorkerProcess
from .clock import boottime_ns, unix_ns
from .core import actions as act
from .core import events as ev
from .core.election import Election
from .core.errors import BatonError, ConfigError, InvariantViolation, OutcomeUnknown, Stop, Unreachable
from .core.ids import NS_PER_S, Incarnation, Instant, JournalId, LogIndex, NodeId, Term
from .core.lease import LeaseRules, View
from .core.ward import Timing
from .etcd import EtcdRefused, LeaseGone
from .home import Home
from .mirror import Mirror
from .permit import PermitPage
from .picture import cluster_picture, grpc_address
from .record import LeadershipRecord
from .registry import SETTLE_S, Registry, etcd_client
from .requests import Requests
from .spec import KeeperSpec
from .transactions import Identity

TICK_S = 0.02
STANDBY_TICK_S = 0.05  # a standby's worker that hangs costs nothing yet, and has the longer limit (core/ward.py)
PUBLISH_INTERVAL_S = 1.0
PICTURE_S = 0.5
SHUTDOWN_LIMIT_S = 5.0
LAST_WORDS_S = 0.5
"""What a write that only informs may still take when all else is done."""
HISTORY_KEPT = 1000


def _callback(method: Callable[..., None]) -> Callable[..., None]:
    """For what the event loop calls. It would log an exception and go on, and leave half a keeper: one that renews
    its lease and never again looks at its worker, say."""

    @functools.wraps(method)
    def guarded(self: Keeper, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as e:  # noqa: BLE001 - it ends the process
            self._fail(e)

    return guarded


class Keeper:
    def __init__(self, spec: KeeperSpec, home: Home) -> None:
        self.spec = spec
        self.home = home
        self.keys = k.Keys(spec.cluster)
        self.node = NodeId(spec.node)
        self.incarnation = Incarnation(secrets.token_hex(6))
        self.rules = LeaseRules(**spec.rules)
        if problems := self.rules.problems():
            raise ConfigError("; ".join(problems))
        self.log = structlog.get_logger()
        self.page = PermitPage.create()
        self.election = Election(
            me=self.node,
            incarnation=self.incarnation,
            home=home.id,
            rules=self.rules,
            timing=Timing(**spec.timing),
            never_lead=spec.never_lead,
            now=boottime_ns(),
        )
        self.etcd = etcd_client(spec.etcd)
        call_timeout_s = float(spec.etcd.get("call_timeout_s", 0.25))
        self.registry = Registry(
            self.etcd,
            self.keys,
            Identity(spec.node, self.incarnation, home.id, self.rules.ttl),
            min(call_timeout_s, (self.rules.ttl - self.rules.margin) / NS_PER_S / 3),
        )
        self.requests = Requests(
            self.registry,
            self.keys,
            me=spec.node,
            leads=lambda: self.election.held is not None,
            spawn=self._spawn,
            tell=self._tell,
            feed=self._feed,
        )
        self.mirror = Mirror(self.keys, self.rules.ttl)
        self._lease_id: int | None = None
        self._status: dict[str, Any] = {}
        self._hello: link.Hello | None = None
        self._publish = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._fatal = ""
        self._last_sign = 0  # Unix ns of the last proof of life before the trouble at hand; 0: no trouble
        self._record: LeadershipRecord | None = None
        self._record_put: dict[str, Any] = {}
        self._insync_missed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[int] = self._loop.create_future()
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until told to stop, or until something fails; the exit code."""
        self._loop.set_exception_handler(self._on_loop_error)
        for sig in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(sig, self._asked_to_stop, sig.name)
        self.log.info("keeper_started", incarnation=self.incarnation, pid=os.getpid())
        # What stands now stays: the collector need not look at it again in the middle of a renewal.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as self._tasks:
            standing = [
                self._tasks.create_task(self._guard(work), name=name)
                for name, work in (
                    ("watch", self._watch()),
                    ("lease", self._keep_lease()),
                    ("publish", self._publish_member()),
                    ("picture", self._show_picture()),
                )
            ]
            try:
                self.election.start(boottime_ns())
                self._tick()
                return await self._done
            finally:
                # However this ends: no permit, and nobody left who could use one.
                self.page.clear()
                if self._timer is not None:
                    self._timer.cancel()
                if self._worker is not None:
                    self._worker.end()
                for task in standing:
                    task.cancel()
                await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        """Let records and answers out, take our member key away; none of it for long, and etcd may be dead."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=LAST_WORDS_S)
        for task in self._in_flight:
            task.cancel()
        with contextlib.suppress(BatonError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                if self._lease_id is not None:
                    await self.etcd.lease_revoke(self._lease_id, timeout_s=LAST_WORDS_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self.etcd.close()

    def _finish(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code)

    def _fail(self, error: Exception) -> None:
        """Something we cannot go on without. The permit goes first; then `run` ends the worker and the process."""
        self.page.clear()
        if isinstance(error, Stop) and not isinstance(error, InvariantViolation):
            self._stop_node(str(error))
        else:
            self.log.error("keeper_failed", reason=f"{type(error).__name__}: {error}", exc_info=error)
            self._finish(1)

    def _stop_node(self, why: str) -> None:
        """End for good: whoever restarts us must not, before a person has looked."""
        if self._done.done():
            return  # several tasks may hear of it
        self.log.error("node_stopped", reason=why)
        with contextlib.suppress(OSError):
            print(f"baton: {self.node} stopped: {why}", file=sys.stderr, flush=True)
        self._finish(3)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as e:  # noqa: BLE001 - it ends the process, and in order
            self._fail(e)

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What others' callbacks raised, and asyncio's own complaints: a line in our log, not a bare traceback."""
        self.log.error("loop_error", reason=context["message"], exc_info=context.get("exception"))

    @_callback
    def _asked_to_stop(self, signal_name: str) -> None:
        self.log.info("shutdown_asked", signal=signal_name)
        self._loop.call_later(SHUTDOWN_LIMIT_S, self._finish, 0)
        self._feed(ev.ShutdownAsked(f"{self.node}: {signal_name}"))

    # -- the machine ---------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        """Hand one event to the machine and carry out what it decides, in order. Once all is over: nothing."""
        if self._done.done():
            return
        now = boottime_ns()
        for action in self.election.handle(event, now):
            self._carry_out(action)
        self._schedule()

    @_callback
    def _tick(self) -> None:
        self._feed(ev.Tick(self.page.beat_at()))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = TICK_S if self.election.held is not None else STANDBY_TICK_S
        wake = self.election.wake_at()
        if wake is not None:
            delay = min(delay, max(0.001, (wake - boottime_ns()) / NS_PER_S))
        self._timer = self._loop.call_later(delay, self._tick)

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.WritePermit(permit):
                self.page.grant(permit)
            case act.ClearPermit():
                self.page.clear()
            case act.Acquire() | act.Renew() | act.Evict() | act.Resign():
                self._spawn(self._transact(action), f"{type(action).__name__}-{action.request}")
            case act.TellFollow(node, term):
                self._tell(link.Follow(node, grpc_address(self.keys, self.mirror.raw, node), term))
            case act.TellPrepare(term):
                self._tell(link.Prepare(term))
            case act.TellLead():
                self._last_sign = 0  # whatever trouble there was, it was not this term's
                resigned = k.load(self.mirror.raw.get(self.keys.resigned)) or {}
                self._record = LeadershipRecord(self.spec.node, action, resigned, unix_ns())
                self._tell(
                    link.Lead(
                        action.term,
                        {str(n): str(j) for n, j in action.insync.members.items()},
                        action.insync.mod_revision,
                        action.cause,
                        action.actor,
                        action.came_from,
                    )
                )
            case act.TellGranted(term):
                self._tell(link.Granted(term))
                self._publish.set()
            case act.TellStop(term, reason):
                self._trouble()
                self._tell(link.StopTrading(term, reason))
                self._publish.set()
            case act.TellDrain(term, successor):
                self._trouble()
                self._tell(link.Drain(term, successor))
            case act.StartWorker():
                self._start_worker()
            case act.KillWorker(reason):
                self._kill_worker(reason)
            case act.AnswerSwitchover(request_id, ok, text):
                self._spawn(self.requests.answer(request_id, ok, text), "answer")
            case act.Note(event, fields):
                self.log.info(event, **fields)
            case act.StopNode(why):
                self._stop_node(why)
            case act.ShutDown():
                self._finish(0)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Something with an end of its own; a failure of it is ours."""
        if self._tasks is None or self._done.done():
            work.close()
            return
        task = self._tasks.create_task(self._guard(work), name=name)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    def _trouble(self, last_sign: int | None = None) -> None:
        """Remember when the last proof of life was, for the record of a failover; the term's first trouble counts."""
        if self._last_sign == 0:
            self._last_sign = last_sign if last_sign is not None else unix_ns()

    # -- etcd ----------------------------------------------------------------------------------------------

    async def _transact(self, request: act.EtcdRequest) -> None:
        if isinstance(request, act.Resign):
            self._trouble()
        answer, revision = await self.registry.carry_out(
            request, last_sign=self._last_sign, renewal_seen=self.election.last_renewal_seen()
        )
        self._feed(ev.Answered(request.request, answer, revision))

    async def _watch(self) -> None:
        """Raises Stop when another etcd cluster answers, or its revisions fell: tokens could repeat."""
        async for seen in self.etcd.watch(self.keys.prefix):
            written = self.mirror.apply(seen, self.etcd.cluster_id or 0)
            view = self.mirror.view
            if self.election.view is None or self.election.view.halted != view.halted:
                self._tell(link.LatchSeen(view.halted))  # first: what follows may be to lead
            self._feed(ev.ViewSeen(view))
            raw = self.mirror.raw
            self.requests.look(raw)
            insync_missed = not view.insync.members and not {self.keys.insync, self.keys.tenure}.isdisjoint(raw)
            if insync_missed and not self._insync_missed:
                self.log.error(
                    "insync_missing",
                    key=self.keys.insync,
                    remedy="nobody may lead: who holds every entry is not known any more. Stop all nodes and run "
                    "`baton fence rebase` on each, with --lead on the one whose journal ends highest",
                )
            self._insync_missed = insync_missed
            for name in k.unreadable(self.keys, written):
                self.log.error("key_unreadable", key=name, remedy="correct or delete it with etcdctl")

    async def _keep_lease(self) -> None:
        """Keep one etcd lease, on which `leader` and our member key hang. It cleans up after us; safety does not
        rest on it. Asked for is a little more than ttl, in whole seconds; what counts is what was granted."""
        asked_s = -(-self.rules.ttl // NS_PER_S) + 1
        while True:
            try:
                lease = await self.etcd.lease_grant(asked_s, timeout_s=1.0)
            except BatonError as e:
                self.log.warning("etcd_lease_not_granted", reason=str(e))
                await asyncio.sleep(0.2)
                continue
            if lease.ttl_s * NS_PER_S < self.rules.ttl:
                raise Stop(
                    f"etcd granted a lease of {lease.ttl_s} s, below lease.ttl_s = {self.rules.ttl / NS_PER_S:g} s"
                )
            self._lease_id = lease.id
            self._feed(ev.EtcdLease(lease.id))
            self._publish.set()
            while True:
                await asyncio.sleep(lease.ttl_s / 4)
                try:
                    await self.etcd.lease_keep_alive(lease.id, timeout_s=self.registry.timeout_s)
                except LeaseGone:
                    break
                except (Unreachable, OutcomeUnknown, EtcdRefused) as e:
                    self.log.warning("etcd_keep_alive_failed", reason=str(e))
            self._lease_id = None
            self.log.warning("etcd_lease_gone")
            self._feed(ev.EtcdLease(None))

    async def _publish_member(self) -> None:
        """`members/<node>`: soon when something has changed, else every second."""
        while True:
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_INTERVAL_S):
                    await self._publish.wait()
                    await asyncio.sleep(SETTLE_S)
            self._publish.clear()
            lease = self._lease_id
            if lease is None:
                continue
            try:
                await self.registry.put_member(lease, self._member())
            except BatonError as e:
                self.log.warning("member_not_published", reason=str(e))

    def _member(self) -> dict[str, Any]:
        hello = self._hello
        return {
            "incarnation": self.incarnation,
            "journal_id": hello.journal_id if hello else "",
            "grpc": hello.grpc if hello else "",
            "http": hello.http if hello else "",
            "priority": self.spec.priority,
            "never_lead": self.spec.never_lead,
            "ready": hello is not None and bool(self._status.get("ready")),
            "role": type(self.election.role).__name__.lower(),
            "version": self.spec.version,
            "keeper_pid": os.getpid(),
            "worker_pid": self._worker.pid if self._worker else None,
            "status": self._status,
        }

    # -- the in-sync set and the record --------------------------------------------------------------------

    async def _change_insync(self, p: link.ProposeInSync) -> None:
        o = await self.registry.change_insync(p.term, p.members, p.expected_revision)
        self._tell(link.InSyncAnswer(p.request, o.outcome, o.members, o.revision))

    async def _put_record(self, record: LeadershipRecord) -> None:
        await asyncio.sleep(SETTLE_S)
        value = record.as_json()
        if value != self._record_put:
            self._record_put = value
            await self.registry.put_history(value)
            mine = self.keys.history_of(value["token"])
            others = sorted(n for n in self.mirror.raw if n.startswith(self.keys.history) and n != mine)
            await self.registry.forget(others[: 1 - HISTORY_KEPT])

    # -- the worker ----------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self.page.clear()
        self.page.forget_beat()
        self._fatal = ""
        try:
            self._worker = WorkerProcess(
                self.spec.worker_argv,
                permit_fd=self.page.fd,
                lock_fd=self.home.lock_fd,
                on_message=self._on_message,
                on_exit=self._on_worker_exit,
            )
        except OSError as e:
            self.log.error("worker_not_started", reason=str(e))
            self._loop.call_soon(self._on_worker_exit, f"could not be started: {e}")
            return
        self.log.info("worker_started", pid=self._worker.pid)
        self._publish.set()

    def _kill_worker(self, reason: str) -> None:
        if self._worker is None:
            return
        if reason == "shutdown":
            self._worker.ask_to_exit(reason)
            return
        beat = self.page.beat_at()
        self._trouble(unix_ns() - (boottime_ns() - beat) if reason == "hung" and beat is not None else None)
        self._worker.kill(reason)

    @_callback
    def _on_worker_exit(self, how: str) -> None:
        self._trouble()
        self._worker = None
        self._hello = None
        self._status = self._status | {"ready": False}  # the next one has to say it anew
        self._feed(ev.WorkerExited(self._fatal or how))
        self._publish.set()

    def _tell(self, message: link.Message) -> None:
        if self._worker is not None:
            self._worker.tell(message)

    @_callback
    def _on_message(self, message: link.Message) -> None:
        match message:
            case link.Hello():
                self._hello = message
                self.registry.me = replace(self.registry.me, grpc=message.grpc, http=message.http)
                if self.election.view is not None:
                    self._tell(link.LatchSeen(self.election.view.halted))
                self._feed(
                    ev.WorkerHello(
                        JournalId(message.journal_id),
                        LogIndex(message.last_index),
                        Term(message.highest_term),
                        message.etcd_cluster_id,
                    )
                )
                self._publish.set()
            case link.Prepared(term):
                self._feed(ev.WorkerPrepared(Term(term)))
            case link.Reconciled(term, phases):
                self._feed(ev.WorkerReconciled(Term(term), phases))
                if self._record is not None and self._record.reconciled(term, phases, unix_ns()):
                    self._spawn(self._put_record(self._record), "history")
            case link.Settled(term):
                self._feed(ev.WorkerSettled(Term(term)))
            case link.Stopped(term):
                self._feed(ev.WorkerStopped(Term(term)))
            case link.StepDown(term, reason):
                self._feed(ev.WorkerAsksToStepDown(Term(term), reason))
            case link.ProposeInSync():
                self._spawn(self._change_insync(message), "insync")
            case link.AskLatch():
                self._spawn(self.requests.read_latch(message), "latch")
            case link.FirstOrder(term, at):
                if self._record is not None and self._record.first_order(term, at):
                    self._spawn(self._put_record(self._record), "history")
            case link.Status(fields):
                self._status = fields
                self._publish.set()
            case link.AskSwitchover():
                self._spawn(self.requests.ask(message), "ask-switchover")
            case link.Fatal(reason):
                # It sends nothing any more and is about to end; do not wait for that to resign.
                self._fatal = reason
                if self._worker is not None:
                    self._worker.kill("fatal")
                self.log.error("worker_fatal", reason=reason)
            case _:
                self.log.error("message_unexpected", message=type(message).__name__)

    # -- the picture for people and for peers' addresses ---------------------------------------------------

    async def _show_picture(self) -> None:
        """Tell the worker what we see, all the time: a picture that grows old says that the keeper hangs, not that etcd
        is silent."""
        while True:
            await asyncio.sleep(PICTURE_S)
            try:
                self._tell(link.ClusterSeen(self._picture(boottime_ns())))
            except InvariantViolation as e:  # too long; the page then says that it grows old
                self.log.error("picture_not_told", reason=str(e))

    def _picture(self, now: Instant) -> dict[str, Any]:
        view, held = self.election.view, self.election.held
        return {
            "cluster": self.spec.cluster,
            "node": self.node,
            "role": type(self.election.role).__name__.lower(),
            "etcd_cluster_id": self.mirror.view.cluster_id,
            "etcd_revision": view.revision if view else 0,
            "etcd_silent_s": (now - self.etcd.answered_at) / NS_PER_S,
            "keeper_pid": os.getpid(),
            "seen_at": unix_ns(),
            **cluster_picture(
                self.keys,
                self.mirror.raw,
                view or View(0),
                act_until=held.act_until if held else None,
                renewal_seen=self.election.last_renewal_seen(),
                now=now,
            ),
        }


def main() -> None:
    import uvloop

    from .logs import configure_logging

    async def run() -> int:
        return await Keeper(spec, home).run()

    try:
        spec = KeeperSpec.load(Path(sys.argv[1]).read_text())
        configure_logging(spec.log_level, spec.log_format)
        structlog.contextvars.bind_contextvars(node=spec.node, process="keeper")
        home = Home.open(Path(spec.data_dir))
    except (BatonError, OSError, ValueError, TypeError, IndexError) as e:
        sys.exit(f"baton: {e}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            code = runner.run(run())
        except BatonError as e:  # endpoints, certificates or rules that cannot be
            sys.exit(f"baton: {e}")
    sys.exit(code)


if __name__ == "__main__":
    main()
