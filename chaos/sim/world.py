"""One cluster, from one plan: lives through its faults, heals, has to lead and trade again, and comes to rest.

    live:   trading under faults, until `heal_at`
    heal:   everything that was broken is mended; within LIVE_WITHIN ttls a leader's order is accepted (L2)
    rest:   the strategies stop; within REST_LIMIT every answer has arrived and every journal is equal (L2, S5, S6)

What is recorded on the way (`records.py`) is then judged by the checker, as the records of a real cluster are. Touches
nothing but the stand-ins. Read next: `keeper.py`, `worker.py`, `judge.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from chaos.check.invariants import INVARIANTS, check
from chaos.check.verdict import Level, Verdict
from chaos.sim import faults
from chaos.sim.engine import MS, Engine, S
from chaos.sim.etcd import Backup, EtcdSpec
from chaos.sim.host import Host
from chaos.sim.judge import Judge, Wrong
from chaos.sim.keeper import SimKeeper
from chaos.sim.market import Market
from chaos.sim.network import Link
from chaos.sim.operator import Operator
from chaos.sim.plan import Plan, Trap
from chaos.sim.records import Records
from chaos.sim.redis import Decided, GateSpec
from chaos.sim.story import FAULTS, VENUE, of_gate
from chaos.sim.venue import UNIX, VenueSpec
from chaos.sim.worker import SimWorker
from cluster import keys as k
from cluster.core.ids import Instant, LogIndex, NodeId
from cluster.core.lease import InSync, View
from cluster.core.log import Entry
from node.codec import Fact, decode
from node.paper_venue.lines import Line
from node.paper_venue.profile import parse_profile
from node.types import Instrument, WireOrder

CLUSTER = "sim"
TAG = "sim"
SYMBOL = "BTCUSDT"
INSTRUMENTS = (Instrument(SYMBOL, Decimal("0.01"), Decimal("0.00001")),)

LIVE_WITHIN = 8
"""Ttls after the last fault is healed within which a leader's order must be accepted. What it is made of at worst: a
request under way (1.5), the re-read (0.4), an eviction (1.1), a worker noticed as hung, killed and restarted (2), its
back-off (0.4), a takeover (0.7), a drain that is given up (1), and a wish of the strategy."""
REST_LIMIT = 8 * S
LOOK = 40 * MS
RESTORED = ("E", "S2", "S8", "S9", "S11", "L2")
"""What is still promised when etcd was put back under running nodes: who knows better stops and says so, and gate and
venue hold on to the highest token. Who slept through what the backup lacks cannot know, and `insync` may name it."""
CLAIM_TTL = 3600 * S
BACK_UP_AT = 0.5


class Ended(NamedTuple):
    """What became of one plan. wrong: what the world saw go wrong, first come, first; verdict: what the checker says of
    the records. healed_in: ttls from the healing to the first accepted order; None: exempt, or never. failovers: terms
    after the first that got a permit."""

    plan: Plan
    wrong: list[Wrong]
    verdict: Verdict
    cover: Counter[str]
    healed_in: float | None
    failovers: int
    steps: int

    @property
    def broken(self) -> frozenset[str]:
        """The invariants that do not hold: S1 to S11, L1 to L3."""
        return self.verdict.failed

    @property
    def problems(self) -> list[str]:
        """Each violation in a sentence, what the world saw first; empty is good."""
        seen = [str(w) for w in self.wrong]
        return [*seen, *(p for p in self.verdict.problems if not any(p.endswith(s) for s in seen))]


class World:
    def __init__(self, plan: Plan, *, traced: bool = False) -> None:
        self.plan = plan
        self.engine = engine = Engine(plan.seed, traced=traced)
        self.cover: Counter[str] = Counter()
        self.judge = Judge(self)
        self.keys = k.Keys(CLUSTER)
        self.etcd = EtcdSpec(lambda: Instant(engine.now), min_ttl_s=1)
        self.etcd.revision = 7
        self.gate = GateSpec(lambda: engine.now, CLAIM_TTL, self._gate_told if traced else None)
        self.venue = VenueSpec(engine, parse_profile(plan.venue), INSTRUMENTS, self._venue_told)
        self.records = Records(self)
        self.hosts = [Host(engine, plan, i, CLUSTER) for i in range(plan.nodes)]
        for host in self.hosts:
            for other in self.hosts:
                if other is not host:
                    host.connect(other.name)
        self.market = Market(self)
        self.operator = Operator(self)
        self.tag, self.instruments = TAG, INSTRUMENTS
        self.healed = False
        self.permits = 0
        self.etcd_down_until = self.gate_down_until = self.venue_down_until = 0
        self.repeat_until = self.reorder_until = 0
        self.corrupt_frames = 0
        self.lurk_until: dict[NodeId, int] = {}
        self.etcd_restored = False
        self.journals_lost = False  # all that held every committed entry
        self.stopped: dict[NodeId, str] = {}
        self.sent: set[str] = set()  # client order ids whose bytes have left a node
        self.compared_min = 0
        self._committed = (0, b"")  # the highest position that a leader has ever called committed
        self._facts: dict[bytes, Fact] = {}
        self._met: Counter[tuple[str, str]] = Counter()
        self._traps: dict[tuple[str, str], list[Trap]] = {}
        for trap in plan.traps:
            self._traps.setdefault((trap.process, trap.step), []).append(trap)
        self._backup: Backup | None = None
        self._switchovers = 0

    def say(self, lane: str, kind: str, text: str, **more: Any) -> None:
        if self.engine.story is not None:
            self.engine.say(lane, kind, text, **more)

    def _gate_told(self, line: Decided) -> None:
        self.engine.story.append(of_gate(line))  # type: ignore[union-attr]  # called of a traced run only

    # -- a life ----------------------------------------------------------------------------------------------------

    def run(self) -> Ended:
        engine, plan = self.engine, self.plan
        for host in self.hosts:
            engine.after(engine.between(0, 50 * MS), self.start_keeper, host)
        for fault in plan.faults:
            engine.at(fault.at, faults.strike, self, fault)
        engine.at(int(plan.heal_at * BACK_UP_AT), self._back_up)
        self.market.start()
        engine.after(LOOK, self._look_after_time)
        healed_in, at_rest = None, False
        if self._run_until(plan.heal_at, lambda: False):
            self._heal()
            healed_in = self._recover()
            if healed_in is not None and not self.judge.found and not self.etcd_restored:
                self.market.close()
                at_rest = self._come_to_rest()
        verdict = self._verdict(healed_in, at_rest=at_rest)
        failovers = max(0, self.permits - 1)
        return Ended(plan, self.judge.found, verdict, self.cover, healed_in, failovers, engine.steps)

    def _verdict(self, healed_in: float | None, *, at_rest: bool) -> Verdict:
        """The checker's, and what the world itself saw; L2 is the world's alone, which ends as soon as it holds."""
        ids = RESTORED if self.etcd_restored else tuple(INVARIANTS)
        verdict = check(self.records.evidence(at_rest=at_rest), ids)
        rows = []
        for row in verdict.rows:
            if row.id == "L2":
                again = healed_in is not None
                row = row._replace(level=Level.PASS, note="", covers={"clusters that traded again": again})
            seen = [str(w) for w in self.judge.found if w.invariant == row.id]
            if seen:
                row = row._replace(level=Level.FAIL, violations=[*seen, *row.violations])
            rows.append(row)
        return verdict._replace(rows=tuple(rows))

    def _run_until(self, limit: int, done: Callable[[], bool]) -> bool:
        """Whether nothing was found wrong. done: looked at every LOOK."""
        engine, found = self.engine, self.judge.found
        next_look = engine.now
        while engine.step(limit):
            if found:
                return False
            if engine.now >= next_look:
                if done():
                    return True
                next_look = engine.now + LOOK
        return not found

    def _recover(self) -> float | None:
        """Trading again; None: not, and either that is a finding or nobody may lead before a person has looked."""
        plan, begun = self.plan, len(self.venue.lines)

        def trades() -> bool:
            return any(line.kind == "new" and line.accepted for line in self.venue.lines[begun:])

        if not self._run_until(plan.heal_at + LIVE_WITHIN * plan.ttl, trades):
            return None
        if trades():
            return (self.engine.now - plan.heal_at) / plan.ttl
        if (why := self._why_nobody_may_lead()) is not None:
            self.cover[f"exempt: {why}"] += 1
        else:
            self.judge.blame("L2", f"no order is accepted within {LIVE_WITHIN} ttls after everything healed")
        return None

    def _why_nobody_may_lead(self) -> str | None:
        """Waiting for a person is right: every journal that held all committed entries is lost, or its worker cannot be
        killed; or etcd was restored, and tokens could repeat."""
        if self.stopped:
            return "nodes stopped, etcd was restored"
        leader = self.leading_host()
        worker = leader.worker if leader is not None else None
        if self.plan.venue == "plain" and worker is not None and worker.book.blocked():
            # With both sides nothing can be decided; with one, the other soon reaches its largest position.
            return "blocked by unknown outcomes, which this venue never settles"
        insync = self.view().insync
        able = [
            h
            for h in self.hosts
            if insync.names(h.name, h.disk.journal_id) and not (h.worker is not None and h.worker.stuck)
        ]
        if able:
            return None
        self.journals_lost = True
        return "nobody in sync is left"

    def _come_to_rest(self) -> bool:
        """The last words of the market are compared with the book twice, so that nothing moved in between."""
        leader = self.leading_host()
        worker = leader.worker if leader is not None else None
        self.compared_min = 2 + (worker.trader.compared if worker is not None and worker.trader is not None else 0)
        if not self._run_until(self.engine.now + REST_LIMIT, lambda: not self.unrest()):
            return False
        unrest = self.unrest()
        for reason in unrest:
            self.judge.blame("L2", f"not at rest {REST_LIMIT / S:g} s after trading stopped: {reason}")
        return not unrest

    def unrest(self) -> list[str]:
        """What is still under way; empty: nothing."""
        host = self.leading_host()
        if host is None or host.worker is None:
            return ["nobody leads"]
        found = host.worker.unrest()
        ends = {h.name: h.disk.end for h in self.hosts if h.name not in self.stopped}
        if len(set(ends.values())) > 1:
            found.append(f"journals end at {sorted((n, e.index) for n, e in ends.items())}")
        for h in self.hosts:
            if h.worker is not None and h.worker.opened and h.worker.applied < h.disk.end.index:
                found.append(f"the book of {h.name} is at {h.worker.applied} of {h.disk.end.index}")
        return found

    def _look_after_time(self) -> None:
        """What time alone brings about outside of the nodes: leases end, the venue's dead-man's switch fires."""
        revision = self.etcd.revision
        self.etcd.expire()
        if self.etcd.revision != revision:
            self.cover["lease expired"] += 1
            self.etcd_touched()
        if self.engine.now >= self.venue_down_until and self.venue.tick():
            self.cover["dead-man fired"] += 1
        self.engine.after(LOOK, self._look_after_time)

    def traps_of(self, host: Host, process: str) -> Callable[[str], None] | None:
        """What a process of this kind has to ask before each step; None: nothing."""
        if not any(t.process == process for t in self.plan.traps):
            return None
        return lambda step: self._before_step(host, process, step)

    def _before_step(self, host: Host, process: str, step: str) -> None:
        """A trap may be set here."""
        traps = self._traps.get((process, step))
        if traps is None or self.healed:
            return
        key = (process, step)
        self._met[key] += 1
        for trap in traps:
            if trap.nth == self._met[key]:
                self.cover[f"trap {trap.effect} at {trap.step}"] += 1
                self.records.trap(trap, host)
                faults.spring(self, host, trap)

    # -- hosts -----------------------------------------------------------------------------------------------------

    def start_keeper(self, host: Host) -> None:
        if (host.keeper is not None and host.keeper.alive) or host.name in self.stopped:
            return
        if self.engine.now < host.down_until and not self.healed:
            self.engine.at(host.down_until, self.start_keeper, host)
            return
        if host.worker is not None and host.worker.process.alive:
            self.cover["waited for the lock of a worker that cannot be killed"] += 1
            self.engine.after(50 * MS, self.start_keeper, host)  # it holds the lock of the data directory
            return
        host.worker = None
        host.keeper = SimKeeper(self, host)
        host.keeper.start()

    def stop_host(self, host: Host, down_for: int) -> None:
        """Both processes, and up again after a while."""
        if host.keeper is None or not host.keeper.alive:
            return
        host.keeper.kill()
        host.down_until = self.engine.now + down_for
        self.engine.at(host.down_until, self.start_keeper, host)

    def unstick(self, worker: SimWorker) -> None:
        worker.stuck = False
        worker.kill("signal 9")

    def node_stopped(self, host: Host, why: str) -> None:
        """It ended for good, before a person has looked."""
        if host.keeper is not None:
            host.keeper.kill()
        self.stopped[host.name] = why
        self.say(f"{host.name} keeper", "death", f"{host.name} stops for good: {why}")
        if not self.etcd_restored:
            self.judge.blame("L2", f"{host.name} stopped for good: {why}")

    def permitted_host(self) -> Host | None:
        """Whoever holds a live permit."""
        return next((h for h in self.hosts if self.judge.holds_live_permit(h)), None)

    def leading_host(self) -> Host | None:
        """Whoever holds a live permit; else whoever holds the key in etcd."""
        permitted = self.permitted_host()
        if permitted is not None:
            return permitted
        leader = self.view().leader
        return next((h for h in self.hosts if leader is not None and h.name == leader.node), None)

    def next_to(self, host: Host) -> Host:
        return self.hosts[(host.index + 1) % len(self.hosts)]

    # -- etcd ------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        found = self.etcd.read(self.keys.prefix)
        raw = {kv.key: k.RawKey.of(kv) for kv in found.kvs}
        return k.view_of(self.keys, raw, found.revision, self.etcd.cluster_id, self.plan.ttl)

    def insync_now(self) -> InSync:
        kvs = self.etcd.range(self.keys.insync).kvs
        return k.insync_of(k.RawKey.of(kvs[0]) if kvs else None)

    def etcd_touched(self) -> None:
        """Something may have changed there: the watches send it on."""
        for host in self.hosts:
            if host.keeper is not None:
                host.keeper.etcd_changed()

    def delete_leader_key(self) -> bool:
        """By hand. Whether there was one."""
        if self.healed or not self.etcd.delete(self.keys.leader).deleted:
            return False
        self.records.key_vanished()
        self.etcd_touched()
        return True

    def _back_up(self) -> None:
        self._backup = self.etcd.snapshot()

    def restore_etcd(self, *, new_cluster: bool) -> str | None:
        if self._backup is None or self.healed:
            return None
        self.etcd_restored = True
        if new_cluster:
            fresh = EtcdSpec(lambda: Instant(self.engine.now), cluster_id=self.etcd.cluster_id + 1, min_ttl_s=1)
            self.etcd.restore(fresh.snapshot(), new_cluster_id=fresh.cluster_id)
        else:
            self.etcd.restore(self._backup)
        for host in self.hosts:
            if host.keeper is not None:
                host.keeper.etcd_restarted()
        return "etcd replaced by an empty one" if new_cluster else f"etcd is back at revision {self.etcd.revision}"

    # -- requests to the gate and the venue ------------------------------------------------------------------------

    def call(
        self,
        worker: SimWorker,
        up: Link,
        down: Link,
        down_until: Callable[[], int],
        ask: Callable[[], Any],
        answered: Callable[[Any], None],
        what: str,
        order: str,
    ) -> None:
        """One request: it arrives or not, in time or not; so does its answer. `answered` is called once. what, order:
        for the story."""
        engine, deadline = self.engine, self.engine.now + self.plan.call_timeout

        def arrive() -> None:
            if engine.now < down_until():
                give_up()
                return
            answer = ask()
            at = down.arrival()
            if engine.story is not None:
                engine.sends(down.lane, down.to, down.kind, f"answer to: {what} {order}", at, order)
            if at is None or at > deadline:
                self.cover["answered after its timeout"] += at is not None
                give_up()
            else:
                engine.at(at, worker.process.deliver, "calls", answered, answer)

        def give_up() -> None:
            engine.at(deadline, worker.process.deliver, "calls", answered, None)

        at = up.arrival()
        if engine.story is not None:
            engine.sends(up.lane, up.to, up.kind, f"{what} {order}", at, order)
        if at is None:
            give_up()
        elif at > deadline:
            engine.at(at, ask)
            give_up()
        else:
            engine.at(at, arrive)

    def send_order(self, worker: SimWorker, order: WireOrder, answered: Callable[[Any], None]) -> None:
        """The bytes of an order; they may be held back on their way."""
        host, venue = worker.host, self.venue
        if self.engine.now >= self.lurk_until.get(host.name, 0):
            coid = order.client_order_id
            worker.call_venue("order", lambda: venue.place(worker.sender, order), answered, coid)
            return
        self.cover["order held on its way"] += 1
        expires = order.expires_at_ns - UNIX if order.expires_at_ns is not None else 0
        open_ = True

        def answer(what: Any) -> None:
            nonlocal open_
            if open_:
                open_ = False
                worker.process.deliver("calls", answered, what)

        def arrive() -> None:
            if self.engine.story is not None:
                text = f"order {order.client_order_id}, held back on its way, arrives"
                self.engine.say(VENUE, "request", text, order=order.client_order_id)
            if self.leading_host() is not host:
                self.cover["order arrived after its leader"] += 1
            host.wires.venue_down.send(answer, venue.place(worker.sender, order))

        self.say(
            host.wires.venue_up.lane, "request", f"order {order.client_order_id} is held back on its way", to=VENUE
        )
        venue.lurking[order.client_order_id] = (expires, arrive)
        self.engine.at(self.lurk_until[host.name], venue.let_go, order.client_order_id)
        self.engine.after(self.plan.call_timeout, answer, None)

    # -- the venue's private stream --------------------------------------------------------------------------------

    def _venue_told(self, line: Line) -> None:
        for host in self.hosts:
            if host.worker is not None:
                host.worker.stream_has(line)

    def break_streams(self, host: Host, length: int) -> None:
        if host.worker is not None and host.worker.trader is not None:
            host.worker.trader.break_stream()

    # -- the logs --------------------------------------------------------------------------------------------------

    def fact_of(self, entry: Entry) -> Fact:
        """Decoded once for all nodes: equal chains, equal entries."""
        fact = self._facts.get(entry.chain)
        if fact is None:
            fact = self._facts[entry.chain] = decode(entry.kind, entry.body)
        return fact

    def note_committed(self, node: str, term: int, index: int, chain: bytes) -> None:
        self.records.committed(node, term, index, chain)
        if index > self._committed[0]:
            self._committed = (index, chain)

    def committed_but_not_in(self, worker: SimWorker) -> str:
        """What was called committed and is not in its journal; empty: nothing."""
        index, chain = self._committed
        if not index or worker.journal.chain_at(LogIndex(index)) == chain:
            return ""
        return f"entry {index}, which a leader called committed; its journal ends at {worker.journal.last.index}"

    # -- people ----------------------------------------------------------------------------------------------------

    def ask_switchover(self, target: NodeId | None) -> str | None:
        host = self.leading_host()
        if host is None or host.keeper is None or not host.keeper.alive:
            return None
        self._switchovers += 1
        host.keeper.asked_to_switch_over(target, f"r{self._switchovers}")
        return f"switchover asked of {host.name}"

    def ask_shutdown(self, host: Host) -> str | None:
        if host.keeper is None or not host.keeper.alive:
            return None
        host.keeper.asked_to_stop()
        return f"{host.name} asked to stop"

    # -- healing ---------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.say(FAULTS, "fault", "everything is healed")
        self.records.healed()
        self.healed = True
        now = self.engine.now
        self.etcd_down_until = self.gate_down_until = self.venue_down_until = now
        self.repeat_until = self.reorder_until = self.venue.refuses_until = now
        self.etcd.faults.false_keep_alive = False
        self.corrupt_frames = 0
        self.lurk_until.clear()
        self.venue.release()
        self.operator.lift()
        self.operator.watch()
        for host in self.hosts:
            host.heal()
            if host.keeper is not None:
                host.keeper.stalled_until = now
                host.keeper.process.resume()
                host.keeper.etcd_changed()
            if host.worker is not None:
                host.worker.process.resume()
            if host.keeper is None or not host.keeper.alive:
                self.start_keeper(host)
