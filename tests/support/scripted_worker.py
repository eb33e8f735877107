"""A worker that trades nothing: it speaks the control channel and the permit page, does as it is told, and writes down
what it saw, for tests of the keeper.

    scripted_worker DIRECTORY NODE [BEHAVIOUR ...]

Behaviours, for every start of it:  slow-hello:SECONDS   hello:JSON (fields that replace the usual ones)   not-ready
    mute (does not beat)   deaf (no answer to StopTrading)   sulky (no answer to Drain)   alone (adds nobody to insync)

While it runs it takes orders on the datagram socket DIRECTORY/NODE.sock, one JSON list each: see `Scripted.order`.

DIRECTORY/NODE.seen    a JSON line for each message, with the BOOTTIME at which it was handled
DIRECTORY/NODE.acts    a line for each moment at which the permit was live: token, act_until, and two BOOTTIMEs with the
                       look at the page between them. A thread of its own looks every millisecond, whatever the rest of
                       the process does: the worst worker there is, one that sends for as long as nothing stops it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import link
from cluster.child import die_with_keeper
from cluster.clock import boottime_ns
from cluster.permit import PermitPage

BEAT_S = 0.02
ACT_S = 0.001


class Lines:
    """Whole lines, appended at once, so that a kill leaves none torn."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)

    def add(self, text: str) -> None:
        os.write(self._fd, text.encode() + b"\n")


class Scripted:
    def __init__(self, directory: Path, node: str, behaviours: list[str]) -> None:
        self.node = node
        self.behaviours = dict(b.partition(":")[::2] for b in behaviours)
        self.directory = directory
        self.seen = Lines(directory / f"{node}.seen")
        self.page = PermitPage(int(os.environ["BATON_PERMIT_FD"]))
        self.journal = self._journal()
        self.term = 0  # that we lead
        self.insync: dict[str, str] = {}
        self.insync_revision = 0
        self.proposed = 0  # number of our own change under way
        self.requests = 0

    def _journal(self) -> dict[str, Any]:
        """What a journal remembers, in a file beside the logs."""
        path = self.directory / f"{self.node}.journal"
        if not path.exists():
            path.write_text(json.dumps({"id": f"journal-{self.node}-{os.urandom(3).hex()}", "term": 0, "etcd": 0}))
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept

    def remember(self, **fields: int) -> None:
        self.journal |= fields
        draft = self.directory / f"{self.node}.journal.new"
        draft.write_text(json.dumps(self.journal))
        draft.replace(self.directory / f"{self.node}.journal")

    def note(self, what: str, **fields: Any) -> None:
        self.seen.add(json.dumps({"at": boottime_ns(), "pid": os.getpid(), "what": what, **fields}))

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self.loop.create_future()
        self.note("started")
        if "mute" not in self.behaviours:
            self.beating = self.loop.create_task(self._beat())
        threading.Thread(target=self._act, daemon=True).start()
        sock = socket.socket(fileno=int(os.environ["BATON_LINK_FD"]))
        self.link = link.Link(sock, self._on_message, self._end)
        self.link.start()
        self._take_orders()
        if "slow-hello" in self.behaviours:
            await asyncio.sleep(float(self.behaviours["slow-hello"]))
        hello = {
            "journal_id": self.journal["id"],
            "last_index": 0,
            "highest_term": self.journal["term"],
            "etcd_cluster_id": self.journal["etcd"],
            "grpc": f"{self.node}.test:1",
            "http": f"{self.node}.test:2",
        } | json.loads(self.behaviours.get("hello") or "{}")
        self.link.send(link.Hello(**hello))
        self.link.send(link.Status({"ready": "not-ready" not in self.behaviours}))
        await self.over

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    async def _beat(self) -> None:
        while True:
            self.page.beat(boottime_ns())
            await asyncio.sleep(BEAT_S)

    def _act(self) -> None:
        acts = Lines(self.directory / f"{self.node}.acts")
        while True:
            before = boottime_ns()
            permit = self.page.read()
            after = boottime_ns()
            if permit.covers(after):
                acts.add(f"{permit.token} {permit.act_until} {before} {after}")
            time.sleep(ACT_S)

    # -- the keeper's messages -------------------------------------------------------------------------------

    def _on_message(self, message: link.Message) -> None:
        if not isinstance(message, link.ClusterSeen):
            self.note(type(message).__name__, **{f: getattr(message, f) for f in message.__slots__})
        match message:
            case link.Follow(_, _, term):
                self.remember(term=term)
            case link.Prepare(term):
                self.link.send(link.Prepared(term))
            case link.Lead():
                self.term, self.insync, self.insync_revision = message.term, message.insync, message.insync_revision
                self.proposed = 0
                self.remember(term=message.term)
                self.link.send(link.Reconciled(message.term, {"catch_up": 0.0}))
            case link.StopTrading(term):
                self.term = 0
                if "deaf" not in self.behaviours:
                    self.link.send(link.Stopped(term))
            case link.Drain(term):
                if "sulky" not in self.behaviours:
                    self.term = 0
                    self.link.send(link.Settled(term))
            case link.InSyncAnswer(request, outcome, members, revision) if request == self.proposed:
                self.proposed = 0
                if outcome != "unknown":
                    self.insync, self.insync_revision = members, revision
            case link.ClusterSeen(picture):
                self._see(picture)
            case link.Exit():
                self._end()

    def _see(self, picture: dict[str, Any]) -> None:
        """Note the etcd we are in; when we lead, add whoever is not in sync."""
        if picture["etcd_cluster_id"] != self.journal["etcd"] == 0:
            self.remember(etcd=picture["etcd_cluster_id"])
        if not self.term or self.proposed or "alone" in self.behaviours:
            return
        there = {n: m["journal_id"] for n, m in picture["members"].items() if m.get("journal_id")}
        if there.items() - self.insync.items():
            self.proposed = self._propose(self.term, self.insync | there, self.insync_revision)

    def _propose(self, term: int, members: dict[str, str], expected_revision: int) -> int:
        self.requests += 1
        self.link.send(link.ProposeInSync(self.requests, term, members, expected_revision))
        return self.requests

    # -- the test's orders -------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        path = self.directory / f"{self.node}.sock"
        path.unlink(missing_ok=True)
        self.orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.orders.bind(str(path))
        self.orders.setblocking(False)
        self.loop.add_reader(self.orders.fileno(), lambda: self.order(*json.loads(self.orders.recv(65536))))

    def order(self, what: str, *args: Any) -> None:
        self.note("order", order=what)
        orders: dict[str, Callable[..., Any]] = {
            "hang": lambda: time.sleep(3600),  # the loop stands still; the acting thread does not
            "exit": os._exit,
            "signal": lambda name: os.kill(os.getpid(), signal.Signals[name]),
            "fatal": lambda why: self.link.send(link.Fatal(why)),
            "last-words": self._last_words,
            "behave": lambda *how: setattr(self, "behaviours", dict.fromkeys(how, "")),
            "step-down": lambda why: self.link.send(link.StepDown(self.term, why)),
            "propose": self._propose,
            "switchover": lambda *a: self.link.send(link.AskSwitchover(*a)),
            "status": lambda fields: self.link.send(link.Status(fields)),
            "first-order": lambda: self.link.send(link.FirstOrder(self.term, time.time_ns())),
            "say": lambda message: self.link._sock.send(json.dumps(message).encode()),
            "hang-up": self._hang_up,
        }
        orders[what](*args)

    def _last_words(self, why: str) -> None:
        self.link.send(link.Fatal(why))
        os._exit(1)

    def _hang_up(self) -> None:
        self.over = self.loop.create_future()  # nobody waits for this one: we live on
        self.link.close()


if __name__ == "__main__":
    die_with_keeper(int(os.environ["BATON_KEEPER_PID"]))
    asyncio.run(Scripted(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]).run())
