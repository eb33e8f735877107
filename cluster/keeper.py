"""The keeper process: etcd, the lease, and the worker's life and death.

Small, and never runs user code. It carries out what `core/election.py` decides and feeds back what happened. The only
process of a node that talks to etcd. Invariants of this shell:

- the permit page is written before any message is sent or call is made (actions are carried out in order, and
  WritePermit and ClearPermit are plain stores);
- `now` is read after an event arrived; `sent_at` is the `now` with which the machine decided to send, so before the
  request leaves;
- the worker is spawned from the main thread, which lives as long as the process: PR_SET_PDEATHSIG is bound to it.

Run as `python -m cluster.keeper SPEC.json`; the command line makes the spec from the configuration, so that this
process imports nothing it does not need. Read next: `keys.py`, `link.py`, `permit.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from . import keys as k
from . import link
from .clock import boottime_ns, unix_ns
from .core import actions as act
from .core import events as ev
from .core.election import Election, Timing
from .core.errors import BatonError, OutcomeUnknown, Stop, Unreachable
from .core.ids import NS_PER_S, Incarnation, JournalId, LogIndex, NodeId, Term, ns
from .core.lease import LeaseRules
from .etcd import (
    Changes,
    EtcdRefused,
    LeaseGone,
    Snapshot,
)
from .home import Home
from .permit import PermitPage
from .record import LeadershipRecord
from .registry import ANSWER_TTL_S, Identity, Registry, etcd_client
from .spec import KeeperSpec

TICK_S = 0.02
PUBLISH_INTERVAL_S = 1.0
PICTURE_MIN_S = 0.1
PICTURE_MAX_S = 0.5
SHUTDOWN_LIMIT_S = 5.0


class Keeper:
    def __init__(self, spec: KeeperSpec, home: Home) -> None:
        self.spec = spec
        self.home = home
        self.keys = k.Keys(spec.cluster)
        self.node = NodeId(spec.node)
        self.incarnation = Incarnation(secrets.token_hex(6))
        self.rules = LeaseRules(**spec.rules)
        self.log = structlog.get_logger().bind(node=spec.node, process="keeper")
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
        self._raw: dict[str, k.RawKey] = {}
        self._revision = 0
        self._cluster_id = 0
        self._lease_id: int | None = None
        self._status: dict[str, Any] = {}
        self._hello: link.Hello | None = None
        self._publish = asyncio.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._link: link.Link | None = None
        self._fatal = ""
        self._last_sign = 0  # Unix ns of the last proof of life before the trouble at hand; 0: no trouble
        self._record: LeadershipRecord | None = None
        self._seen_requests: set[str] = set()
        self._asked: set[str] = set()
        self._picture_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[int] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until told to stop; the exit code. A task that fails ends the process, and the kernel the worker."""
        self._loop = loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._asked_to_stop, sig.name)
        self.log.info("keeper_started", incarnation=self.incarnation, pid=os.getpid())
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                running = [
                    tasks.create_task(self._watch(), name="watch"),
                    tasks.create_task(self._keep_lease(), name="lease"),
                    tasks.create_task(self._publish_member(), name="publish"),
                    tasks.create_task(self._show_picture(), name="picture"),
                ]
                self.election.start(boottime_ns())
                self._tick()
                code = await self._done
                for t in running:
                    t.cancel()
        finally:
            self.page.clear()
            if self._timer is not None:
                self._timer.cancel()
            if self._worker is not None and self._worker.poll() is None:
                self._worker.kill()
                self._worker.wait()
            await self._say_goodbye()
        return code

    async def _say_goodbye(self) -> None:
        if self._lease_id is not None:
            with contextlib.suppress(BatonError):
                await self.etcd.lease_revoke(self._lease_id)
        await self.etcd.close()

    def _finish(self, code: int) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(code)

    def _asked_to_stop(self, signal_name: str) -> None:
        self.log.info("shutdown_asked", signal=signal_name)
        assert self._loop is not None
        self._loop.call_later(SHUTDOWN_LIMIT_S, self._finish, 0)
        self._feed(ev.ShutdownAsked(f"{self.node}: {signal_name}"))

    # -- the machine ---------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        """Hand one event to the machine and carry out what it decides, in order."""
        now = boottime_ns()
        for action in self.election.handle(event, now):
            self._carry_out(action)
        self._schedule()

    def _tick(self) -> None:
        self._feed(ev.Tick(self.page.beat_at()))

    def _schedule(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        delay = TICK_S
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
                self._tell(link.Follow(node, self._address_of(node), term))
            case act.TellPrepare(term):
                self._tell(link.Prepare(term))
            case act.TellLead():
                resigned = k.load(self._raw.get(self.keys.resigned)) or {}
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
                self._last_sign = 0
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
                self._spawn(self.registry.answer_switchover(request_id, ok, text), "answer")
            case act.Note(event, fields):
                self.log.info(event, **fields)
            case act.StopNode(why):
                self.log.error("node_stopped", reason=why)
                print(f"baton: {self.node} stopped: {why}", file=sys.stderr, flush=True)
                self._finish(3)
            case act.ShutDown():
                self._finish(0)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._tasks is None or (self._done is not None and self._done.done()):
            work.close()
            return
        self._tasks.create_task(work, name=name)

    def _trouble(self, last_sign: int | None = None) -> None:
        """Remember when the last proof of life was, for the record of this failover; the first trouble counts."""
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
        try:
            await self._see_changes()
        except Stop as e:  # another etcd cluster answers, or its revisions fell: tokens could repeat
            self._carry_out(act.ClearPermit())
            self._carry_out(act.StopNode(str(e)))

    async def _see_changes(self) -> None:
        async for seen in self.etcd.watch(self.keys.prefix):
            match seen:
                case Snapshot():
                    self._raw = {kv.key: k.RawKey(kv.value, kv.create_revision, kv.mod_revision) for kv in seen.kvs}
                    for name in k.unreadable(self.keys, self._raw):
                        self.log.error("key_unreadable", key=name, remedy="correct or delete it with etcdctl")
                case Changes():
                    for e in seen.events:
                        if e.deleted:
                            self._raw.pop(e.kv.key, None)
                        else:
                            self._raw[e.kv.key] = k.RawKey(e.kv.value, e.kv.create_revision, e.kv.mod_revision)
            self._revision = seen.revision
            self._cluster_id = self.etcd.cluster_id or 0
            view = k.view_of(self.keys, self._raw, seen.revision, self._cluster_id, self.rules.ttl)
            self._feed(ev.ViewSeen(view))
            self._look_for_requests()
            self._picture_due = True

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
                self._carry_out(
                    act.StopNode(
                        f"etcd granted a lease of {lease.ttl_s} s, below lease.ttl_s = {self.rules.ttl / NS_PER_S:g} s"
                    )
                )
                return
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
        """`members/<node>`: at once when told to, else every second."""
        while True:
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_INTERVAL_S):
                    await self._publish.wait()
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

    # -- requests and answers over etcd ----------------------------------------------------------------------

    def _look_for_requests(self) -> None:
        raw = self._raw.get(self.keys.switchover)
        asked = k.load(raw)
        if raw is not None and asked is not None and str(asked.get("id")) not in self._seen_requests:
            if self.election.held is None:
                return  # for whoever leads
            request_id = str(asked.get("id"))
            self._seen_requests.add(request_id)
            age_s = (unix_ns() - int(asked.get("at", 0))) / NS_PER_S
            if age_s < ANSWER_TTL_S:
                target = asked.get("target")
                self._feed(
                    ev.SwitchoverAsked(NodeId(target) if target else None, str(asked.get("actor", "")), request_id)
                )
            self._spawn(self.registry.drop_switchover(), "switchover-done")
        for name in [n for n in self._raw if n.startswith(self.keys.answers)]:
            request_id = name[len(self.keys.answers) :]
            answer = k.load(self._raw[name])
            if answer is not None and request_id in self._asked:
                self._asked.discard(request_id)
                self._tell(link.SwitchoverAnswer(request_id, bool(answer.get("ok")), str(answer.get("text", ""))))

    async def _ask(self, asked: link.AskSwitchover) -> None:
        self._asked.add(asked.request_id)
        try:
            await self.registry.ask_switchover(asked.request_id, asked.target, asked.actor)
        except BatonError as e:
            self._asked.discard(asked.request_id)
            self._tell(link.SwitchoverAnswer(asked.request_id, False, f"etcd did not take the request: {e}"))

    async def _change_insync(self, p: link.ProposeInSync) -> None:
        o = await self.registry.change_insync(p.term, p.members, p.expected_revision)
        self._tell(link.InSyncAnswer(p.request, o.outcome, o.members, o.revision))

    def _put_record(self, record: LeadershipRecord) -> None:
        self._spawn(self.registry.put_history(record.as_json()), "history")

    # -- the worker ----------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        assert self._loop is not None
        ours, theirs = link.link_pair()
        self.page.clear()
        self.page.forget_beat()
        self._fatal = ""
        self._hello = None
        fds = (theirs.fileno(), self.page.fd, self.home.lock_fd)
        env = dict(
            os.environ,
            BATON_LINK_FD=str(theirs.fileno()),
            BATON_PERMIT_FD=str(self.page.fd),
            BATON_KEEPER_PID=str(os.getpid()),
        )
        try:
            self._worker = subprocess.Popen(self.spec.worker_argv, pass_fds=fds, env=env, stdin=subprocess.DEVNULL)
        except OSError as e:
            theirs.close()
            ours.close()
            self.log.error("worker_not_started", reason=str(e))
            self._loop.call_soon(self._feed, ev.WorkerExited(f"could not be started: {e}"))
            return
        theirs.close()
        self._link = link.Link(ours, self._on_message, lambda: None)
        self._pidfd = os.pidfd_open(self._worker.pid)
        self._loop.add_reader(self._pidfd, self._on_worker_exit)
        self.log.info("worker_started", pid=self._worker.pid)
        self._publish.set()

    def _kill_worker(self, reason: str) -> None:
        worker = self._worker
        if worker is None:
            return
        if reason == "shutdown":
            self._tell(link.Exit(reason))
            assert self._loop is not None
            self._loop.call_later(1.0, self._kill_if_alive, worker)
            return
        beat = self.page.beat_at()
        self._trouble(unix_ns() - (boottime_ns() - beat) if reason == "hung" and beat is not None else None)
        worker.kill()
        self.log.warning("worker_killed", pid=worker.pid, reason=reason)

    @staticmethod
    def _kill_if_alive(worker: subprocess.Popen[bytes]) -> None:
        if worker.poll() is None:
            worker.kill()

    def _on_worker_exit(self) -> None:
        """The kernel says that the worker is dead: from here on it cannot send."""
        assert self._loop is not None and self._worker is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._worker.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        how = self._fatal or how
        self._trouble()
        self._worker = None
        self._hello = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self._feed(ev.WorkerExited(how))
        self._publish.set()

    def _tell(self, message: link.Message) -> None:
        if self._link is not None:
            self._link.send(message)

    def _on_message(self, message: link.Message) -> None:
        match message:
            case link.Hello():
                self._hello = message
                self.registry.addresses = {"grpc": message.grpc, "http": message.http}
                self._feed(
                    ev.WorkerHello(
                        JournalId(message.journal_id),
                        LogIndex(message.last_index),
                        Term(message.highest_term),
                        message.etcd_cluster_id,
                    )
                )
                self._publish.set()
                self._picture_due = True
            case link.Prepared(term):
                self._feed(ev.WorkerPrepared(Term(term)))
            case link.Reconciled(term, phases):
                self._feed(ev.WorkerReconciled(Term(term), phases))
                if self._record is not None and self._record.reconciled(term, phases, unix_ns()):
                    self._put_record(self._record)
            case link.Settled(term):
                self._feed(ev.WorkerSettled(Term(term)))
            case link.Stopped(term):
                self._feed(ev.WorkerStopped(Term(term)))
            case link.StepDown(term, reason):
                self._feed(ev.WorkerAsksToStepDown(Term(term), reason))
            case link.ProposeInSync():
                self._spawn(self._change_insync(message), "insync")
            case link.FirstOrder(term, at):
                if self._record is not None and self._record.first_order(term, at):
                    self._put_record(self._record)
            case link.Status(fields):
                told, self._status = self._status, fields
                if any(fields.get(key) != told.get(key) for key in ("ready", "permission", "feed_state", "role")):
                    self._publish.set()
            case link.AskSwitchover():
                self._spawn(self._ask(message), "ask-switchover")
            case link.Fatal(reason):
                # It sends nothing any more and is about to end; do not wait for that to resign.
                self._fatal = reason
                self.log.error("worker_fatal", reason=reason)
                if self._worker is not None:
                    self._worker.kill()
            case _:
                self.log.error("message_unexpected", message=type(message).__name__)

    # -- the picture for people and for peers' addresses ---------------------------------------------------

    def _address_of(self, node: str) -> str:
        member = k.load(self._raw.get(self.keys.member(node))) or {}
        leader = k.load(self._raw.get(self.keys.leader)) or {}
        return str((leader.get("grpc") if leader.get("node") == node else "") or member.get("grpc") or "")

    async def _show_picture(self) -> None:
        """Tell the worker what we see: when it changed, at most ten times a second; and every half second at least,
        since a picture that grows old says that the keeper hangs, not that etcd is silent."""
        told_at = 0
        while True:
            await asyncio.sleep(PICTURE_MIN_S)
            now = boottime_ns()
            if self._picture_due or now - told_at > ns(PICTURE_MAX_S):
                self._picture_due, told_at = False, now
                self._tell(link.ClusterSeen(self.cluster_picture()))

    def cluster_picture(self) -> dict[str, Any]:
        """Leader, members, in-sync set and latest history as JSON-able values; durations in seconds.

        lease_left_s: for the leader, until it stops acting; for the others, until they would evict it."""
        now = boottime_ns()
        leader = k.load(self._raw.get(self.keys.leader))
        raw_leader = self._raw.get(self.keys.leader)
        if leader is not None and raw_leader is not None:
            held = self.election.held
            seen = self.election.last_renewal_seen()
            if held is not None:
                until: int | None = held.act_until
            elif seen is not None:
                until = seen + int(leader.get("ttl_ms", 0)) * 1_000_000
            else:
                until = None
            leader = {
                "node": leader.get("node"),
                "token": raw_leader.create_revision,
                "lease_left_s": None if until is None else round((until - now) / NS_PER_S, 3),
                "http": leader.get("http"),
            }
        prefix = self.keys.members
        latest = sorted(n for n in self._raw if n.startswith(self.keys.history))[-20:]
        return {
            "cluster": self.spec.cluster,
            "node": self.node,
            "role": type(self.election.role).__name__.lower(),
            "etcd_cluster_id": self._cluster_id,
            "etcd_revision": self._revision,
            "leader": leader,
            "resigned": k.load(self._raw.get(self.keys.resigned)),
            "insync": (k.load(self._raw.get(self.keys.insync)) or {}).get("members", {}),
            "members": {n[len(prefix) :]: k.load(raw) or {} for n, raw in self._raw.items() if n.startswith(prefix)},
            "history": [k.load(self._raw[n]) for n in latest],
            "keeper_pid": os.getpid(),
            "seen_at": time.time_ns(),
        }


def main() -> None:
    import uvloop

    from .logs import configure_logging

    try:
        spec = KeeperSpec.load(Path(sys.argv[1]).read_text())
        configure_logging(spec.log_level)
        home = Home.open(Path(spec.data_dir))
    except (BatonError, OSError, ValueError, TypeError, IndexError) as e:
        print(f"baton: {e}", file=sys.stderr)
        sys.exit(1)

    async def run() -> int:
        return await Keeper(spec, home).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(run())
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            structlog.get_logger().error("keeper_failed", node=spec.node, reason=str(error), exc_info=error)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
