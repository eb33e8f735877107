"""What each fault of a plan does to the world, and its proof that it bit.

`strike` carries one out; a fault that found nothing to hurt says so, and is not counted as met. Everything is undone by
`World.heal` at the plan's end; most faults end by themselves before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chaos.sim.engine import MS
from chaos.sim.network import Link
from chaos.sim.plan import Fault, Trap
from cluster.core.ids import LogIndex

if TYPE_CHECKING:
    from chaos.sim.host import Host
    from chaos.sim.world import World

WAIT = 10 * MS


class Bite(NamedTuple):
    """Of what bites only when a message meets it. before: how many had met a cut on these links until then."""

    what: str
    links: tuple[Link, ...]
    before: int

    @property
    def proof(self) -> str:
        """Empty as long as nothing has met it."""
        met = sum(link.bitten for link in self.links) - self.before
        return f"{self.what}; {met} messages met it" if met else ""


Strike = Callable[["World", "Host", Fault], "str | Bite | None"]
"""Returns the proof that it bit, or None: there was nothing to hurt."""


def strike(world: World, fault: Fault) -> None:
    """One that is meant for the leader waits until somebody leads."""
    if world.healed:
        return
    host = _target(world, fault.target)
    if host is None:
        world.engine.after(WAIT, strike, world, fault)
        return
    proof = FAULTS[fault.kind](world, host, fault)
    if proof is None:
        world.cover[f"no target: {fault.kind}"] += 1
        return
    world.cover[f"fault {fault.kind}"] += 1
    world.records.fault(fault, host, proof)


def _target(world: World, target: str) -> Host | None:
    leader = world.permitted_host()
    if target == "leader":
        return leader
    if target == "standby":
        return next(h for h in world.hosts if h is not leader)
    return next((h for h in world.hosts if h.name == target), world.hosts[0])


# -- processes -----------------------------------------------------------------------------------------------------


def _keeper_pause(world: World, host: Host, f: Fault) -> str | None:
    if host.keeper is None or not host.keeper.alive:
        return None
    host.keeper.process.pause(f.length)
    return "keeper stopped"


def _worker_pause(world: World, host: Host, f: Fault) -> str | None:
    if host.worker is None or not host.worker.process.alive:
        return None
    host.worker.process.pause(f.length)
    return "worker stopped"


def _host_pause(world: World, host: Host, f: Fault) -> str | None:
    both = [p.process for p in (host.keeper, host.worker) if p is not None]
    for process in both:
        process.pause(f.length)
    return "both processes stopped" if both else None


def _suspend(world: World, host: Host, f: Fault) -> str | None:
    """The machine sleeps: BOOTTIME goes on, CLOCK_MONOTONIC would not."""
    host.clock.slept += f.length
    return _host_pause(world, host, f)


def _short_pause(world: World, host: Host, f: Fault) -> str | None:
    """Below the hang limit and the pause budget: must cost nothing."""
    return _host_pause(world, host, f._replace(length=host.timing.hang_timeout // 3))


def _worker_crash(world: World, host: Host, f: Fault) -> str | None:
    if host.worker is None or not host.worker.process.alive:
        return None
    host.worker.kill("signal 9")
    return "worker killed"


def _keeper_crash(world: World, host: Host, f: Fault) -> str | None:
    if host.keeper is None or not host.keeper.alive:
        return None
    world.stop_host(host, f.length if f.how.startswith("hold") else 50 * MS)
    return "keeper killed"


def _host_crash(world: World, host: Host, f: Fault) -> str | None:
    """The power fails: what was not synced is gone, or torn."""
    if host.keeper is None or not host.keeper.alive:
        return None
    world.cover["unsynced writes lost"] += host.disk.unsynced > 0
    host.disk.crash()
    return _keeper_crash(world, host, f)


def _torn_tail(world: World, host: Host, f: Fault) -> str | None:
    if host.keeper is None or not host.keeper.alive:
        return None
    world.cover["write torn"] += host.disk.unsynced > 0
    host.disk.crash(torn=True)
    return _keeper_crash(world, host, f)


def _hang(world: World, host: Host, f: Fault) -> str | None:
    if host.worker is None or not host.worker.process.alive:
        return None
    host.worker.process.hang()
    return "worker's loop blocked"


def _stuck(world: World, host: Host, f: Fault) -> str | None:
    """Hung where even SIGKILL waits: in a disk that does not answer."""
    if host.worker is None or not host.worker.process.alive:
        return None
    host.worker.stuck = True
    host.worker.process.hang()
    world.engine.after(f.length, world.unstick, host.worker)
    return "worker in uninterruptible sleep"


# -- links ---------------------------------------------------------------------------------------------------------


def _cut(f: Fault, up: Link | None, down: Link | None, *more: Link, what: str = "cut") -> Bite:
    """more: held in any case; a watch or a private stream that comes back goes on from where it was."""
    ways = {"up": up, "down": down}
    cut = [link for way, link in ways.items() if link is not None and f.how.split()[1:] in ([], [way])]
    bite = Bite(f"{what}, {f.how}", (*cut, *more), sum(link.bitten for link in (*cut, *more)))
    for link in cut:
        link.cut(f.length, hold=f.how.startswith("hold"))
    for link in more:
        link.cut(f.length, hold=True)
    return bite


def _cut_etcd(world: World, host: Host, f: Fault) -> Bite:
    return _cut(f, host.wires.etcd_up, host.wires.etcd_down, host.wires.watch)


def _short_cut(world: World, host: Host, f: Fault) -> Bite:
    return _cut_etcd(world, host, f._replace(length=host.rules.renew_interval, how="lose"))


def _jitter(world: World, host: Host, f: Fault) -> str:
    for link in host.wires[:3]:
        link.quality = link.quality._replace(high=host.rules.renew_interval // 4)
    return "slow"


def _cut_peer(world: World, host: Host, f: Fault) -> Bite:
    others = [h for h in world.hosts if h is not host]
    bites = [_cut(f, host.peers[h.name], h.peers[host.name], what="cut from its peers") for h in others]
    return Bite(bites[0].what, tuple(link for b in bites for link in b.links), sum(b.before for b in bites))


def _corrupt(world: World, host: Host, f: Fault) -> str:
    world.corrupt_frames += 1
    return "a byte of the next frame flipped"


def _cut_gate(world: World, host: Host, f: Fault) -> Bite:
    return _cut(f, host.wires.gate_up, host.wires.gate_down)


def _cut_orders(world: World, host: Host, f: Fault) -> Bite:
    return _cut(f, host.wires.venue_up, host.wires.venue_down)


def _lose_answers(world: World, host: Host, f: Fault) -> Bite:
    """Accepted, and nobody hears of it."""
    return _cut(f._replace(how="lose"), None, host.wires.venue_down)


def _lurk(world: World, host: Host, f: Fault) -> str:
    """Orders of this host wait on their way until somebody looks for them, or for this long."""
    world.lurk_until[host.name] = world.engine.now + f.length
    return "orders held on their way"


def _cut_stream(world: World, host: Host, f: Fault) -> str:
    host.wires.stream.cut(f.length, hold=f.how.startswith("hold"))
    world.break_streams(host, f.length)
    return "private stream cut"


def _repeat_stream(world: World, host: Host, f: Fault) -> str:
    world.repeat_until = world.engine.now + f.length
    return "fills told twice"


def _reorder_stream(world: World, host: Host, f: Fault) -> str:
    world.reorder_until = world.engine.now + f.length
    return "fills told out of order"


def _feed_stall(world: World, host: Host, f: Fault) -> Bite:
    return _cut(f._replace(how=f.how.split()[0]), None, host.wires.feed, what="market data stopped")


def _feed_repeat(world: World, host: Host, f: Fault) -> str:
    world.market.tell_again(host)
    return "market data repeated"


# -- etcd ----------------------------------------------------------------------------------------------------------


def _etcd_down(world: World, host: Host, f: Fault) -> str:
    world.etcd_down_until = world.engine.now + f.length
    return "no majority"


def _revoke(world: World, host: Host, f: Fault) -> str | None:
    """As an old etcd leader that was stuck does: leases that are renewed are revoked."""
    if host.keeper is None or not host.keeper.lease:
        return None
    before = world.etcd.range(world.keys.leader).kvs
    world.etcd.lease_revoke(host.keeper.lease)
    if before and not world.etcd.range(world.keys.leader).kvs:
        world.records.key_vanished()
    world.etcd_touched()
    return "lease revoked though renewed"


def _false_keep_alive(world: World, host: Host, f: Fault) -> str | None:
    proof = _revoke(world, host, f)
    if proof is not None and host.keeper is not None:
        world.etcd.faults.false_keep_alive = True
    return proof


def _late_expiry(world: World, host: Host, f: Fault) -> str:
    world.etcd.change_leader()
    return "a leader change gave every lease its whole ttl again"


def _delete_key(world: World, host: Host, f: Fault) -> str | None:
    return "leader key deleted by hand" if world.delete_leader_key() else None


def _stall_watch(world: World, host: Host, f: Fault) -> str | None:
    if host.keeper is None:
        return None
    host.keeper.stalled_until = max(host.keeper.stalled_until, world.engine.now + f.length)
    world.engine.after(f.length, host.keeper.etcd_changed)
    return "watch silent"


def _compact(world: World, host: Host, f: Fault) -> str:
    if world.etcd.compacted < world.etcd.revision:
        world.etcd.compact(world.etcd.revision)
    for h in world.hosts:
        _stall_watch(world, h, f._replace(length=f.length // 8))
    return "history compacted under slow watches"


def _blind(world: World, host: Host, f: Fault) -> str:
    """The others miss the leader's renewals; then it hears nothing more; then, or not, its key vanishes."""
    for h in world.hosts:
        if h is not host:
            _stall_watch(world, h, f)
    world.engine.after(max(0, f.length - 5 * MS), _lose_etcd_answers, world, host)
    if f.kind == "vanish":
        world.engine.after(max(0, f.length - 2 * MS), world.delete_leader_key)
    return "renewals unseen"


def _lose_etcd_answers(world: World, host: Host) -> None:
    if not world.healed:
        host.wires.etcd_down.cut(world.plan.ttl, hold=False)


def _restored(world: World, host: Host, f: Fault) -> str | None:
    return world.restore_etcd(new_cluster=False)


def _replaced(world: World, host: Host, f: Fault) -> str | None:
    return world.restore_etcd(new_cluster=True)


# -- redis, venue, disks, clocks, people ---------------------------------------------------------------------------


def _redis_down(world: World, host: Host, f: Fault) -> str:
    world.gate_down_until = world.engine.now + f.length
    return "Redis stopped"


def _redis_empty(world: World, host: Host, f: Fault) -> str:
    world.gate.restart(empty=True)
    return "Redis restarted empty"


def _redis_flush(world: World, host: Host, f: Fault) -> str:
    world.gate.flush()
    return "FLUSHALL"


def _redis_failover(world: World, host: Host, f: Fault) -> str:
    world.gate.restart(lose_last=1 + f.length % 7)
    return "a replica without the latest changes was promoted"


def _venue_down(world: World, host: Host, f: Fault) -> str:
    world.venue_down_until = world.engine.now + f.length
    return "venue down"


def _venue_refuses(world: World, host: Host, f: Fault) -> str:
    world.venue.refuses_until = world.engine.now + f.length
    return "rate limit"


def _disk_stall(world: World, host: Host, f: Fault) -> str:
    host.disk.stall(f.length)
    return "syncs wait"


def _disk_error(world: World, host: Host, f: Fault) -> str | None:
    host.disk.fail()
    return "the next sync fails"


def _flip(world: World, host: Host, f: Fault) -> str | None:
    """Found when the journal is opened the next time."""
    worker = host.worker
    if worker is None or not worker.opened or worker.stuck:
        return None
    first, last = worker.journal.base.index + 1, host.disk.end.index
    if last <= first:
        return None
    host.disk.flip(LogIndex(first + int(world.engine.schedule.random() * (last - first))), f.length)
    worker.kill("signal 9")
    return "a byte of the journal flipped"


def _wipe(world: World, host: Host, f: Fault) -> str:
    world.stop_host(host, 50 * MS)
    host.disk.set_aside()
    return "data directory emptied"


def _wall_jump(world: World, host: Host, f: Fault) -> str:
    host.clock.wall_offset += (1 if f.how.startswith("hold") else -1) * 3_600_000 * MS
    return "wall clock set"


def _switchover(world: World, host: Host, f: Fault) -> str | None:
    return world.ask_switchover(None if f.how.startswith("hold") else world.next_to(host).name)


def _shutdown(world: World, host: Host, f: Fault) -> str | None:
    return world.ask_shutdown(host)


def _step_down(world: World, host: Host, f: Fault) -> str | None:
    return "asked to step down" if host.worker is not None and host.worker.asked_to_step_down("by the drill") else None


def _halt(world: World, host: Host, f: Fault) -> str:
    """Some keepers hear of it late: then the gate alone has to know."""
    if f.how.startswith("lose") and host.keeper is not None:
        _stall_watch(world, host, f._replace(length=host.rules.renew_interval))
    world.operator.press("drill")
    world.engine.after(f.length, world.operator.lift)
    return "kill switch pressed"


FAULTS: dict[str, Strike] = {
    "keeper pause": _keeper_pause,
    "worker pause": _worker_pause,
    "host pause": _host_pause,
    "host suspend": _suspend,
    "short pause": _short_pause,
    "worker crash": _worker_crash,
    "keeper crash": _keeper_crash,
    "host crash": _host_crash,
    "torn tail": _torn_tail,
    "worker hang": _hang,
    "worker stuck": _stuck,
    "cut etcd": _cut_etcd,
    "short cut": _short_cut,
    "jitter": _jitter,
    "cut peer": _cut_peer,
    "corrupt frame": _corrupt,
    "cut gate": _cut_gate,
    "cut orders": _cut_orders,
    "lose answers": _lose_answers,
    "lurk": _lurk,
    "cut stream": _cut_stream,
    "repeat stream": _repeat_stream,
    "reorder stream": _reorder_stream,
    "feed stall": _feed_stall,
    "feed repeat": _feed_repeat,
    "etcd down": _etcd_down,
    "revoke": _revoke,
    "false keep-alive": _false_keep_alive,
    "late expiry": _late_expiry,
    "delete key": _delete_key,
    "stall watch": _stall_watch,
    "compact": _compact,
    "blind": _blind,
    "vanish": _blind,
    "etcd restored": _restored,
    "etcd replaced": _replaced,
    "redis down": _redis_down,
    "redis empty": _redis_empty,
    "redis flush": _redis_flush,
    "redis failover": _redis_failover,
    "venue down": _venue_down,
    "venue refuses": _venue_refuses,
    "disk stall": _disk_stall,
    "disk error": _disk_error,
    "flip": _flip,
    "wipe": _wipe,
    "wall jump": _wall_jump,
    "switchover": _switchover,
    "shutdown": _shutdown,
    "step down": _step_down,
    "halt": _halt,
}


EFFECTS = frozenset({"pause", "host pause", "kill", "late answer", "held request", "late", "lost journal", "given up"})
"""Of a trap; what each does, `Trap` says."""


# -- traps ---------------------------------------------------------------------------------------------------------


def spring(world: World, host: Host, trap: Trap) -> None:
    brief = trap.length // 3
    match trap.effect:
        case "pause":
            process = host.keeper if trap.process == "keeper" else host.worker
            if process is not None:
                process.process.pause(trap.length)
        case "host pause":
            for each in (host.keeper, host.worker):
                if each is not None:
                    each.process.pause(trap.length)
        case "kill" if trap.process == "keeper":
            world.stop_host(host, 50 * MS)
        case "kill" if host.worker is not None:
            host.worker.kill("signal 9")
        case "late answer":
            host.wires.etcd_down.cut(trap.length, hold=True)
        case "held request":
            host.wires.etcd_up.cut(trap.length, hold=True)
        case "late":
            host.wires.etcd_down.cut(brief, hold=True)
            host.wires.watch.cut(brief, hold=True)
            world.engine.after(4 * MS, _lose_requests, world, host, brief + world.plan.ttl)
        case "lost journal" if host.worker is not None:
            host.wires.etcd_down.cut(trap.length, hold=True)
            host.wires.watch.cut(trap.length, hold=True)
            host.worker.kill("signal 9")
            host.disk.set_aside()
        case "given up":
            host.wires.etcd_up.cut(brief, hold=True)
            if host.worker is not None:
                host.worker.asked_to_step_down("by the drill")


def _lose_requests(world: World, host: Host, length: int) -> None:
    if not world.healed:
        host.wires.etcd_up.cut(length, hold=False)
