"""What strikes a world: the faults of its plan at their times, and the traps at the actions they wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.core import events as ev
from tests.sim.node_model import Node
from tests.sim.plan import DOWN, MS, UP, Fault, Trap

if TYPE_CHECKING:
    from tests.sim.world import World


def strike(world: World, f: Fault) -> None:
    node, key = world.nodes[f.node], world.etcd.leader
    if f.leader and key is not None:
        node = next(n for n in world.nodes if n.name == key.node)
    world.cover[f"fault {f.kind}"] += 1
    world.say("!!!", f"{f.kind} {node.name} {f.length / MS:.3f} ms")
    w = node.worker if node.worker is not None and not node.worker.dead else None
    match f.kind:
        case "pause_keeper":
            world.pause_keeper(node, f.length)
        case "pause_worker":
            world.pause_worker(w, f.length)
        case "pause_both":
            world.pause_keeper(node, f.length)
            world.pause_worker(w, f.length)
        case "crash":
            world.end_keeper(node, f.length // 2)
        case "worker_dies" if w:
            world.end_worker(w)
        case "wipe" if w:
            world.wipe(w)
        case "worker_hangs" | "worker_stuck" if w:
            w.hung, w.stuck = True, w.stuck or f.kind == "worker_stuck"
            w.quiet_since = world.now if w.quiet_since is None else w.quiet_since
        case "cut_up":
            world.cut(node, UP, f.length, f.hold)
        case "cut_down":
            world.cut(node, DOWN, f.length, f.hold)
        case "cut_both" | "etcd_down":
            for n in world.nodes if f.kind == "etcd_down" else [node]:
                world.cut(n, UP, f.length, f.hold)
                world.cut(n, DOWN, f.length, f.hold)
        case "revoke":
            world.etcd.revoke(world.etcd.leader_lease)
        case "delete_key":
            world.etcd.delete_leader()
        case "switchover":
            target = None if f.hold else world.nodes[(f.node + 1) % len(world.nodes)].name
            world.deliver(node, node.number, ev.SwitchoverAsked(target, "operator", str(f.at)))
        case "stall_watch":
            world.stall(node, f.length)
        case "blind" | "vanish":
            _blind(world, node, f)
        case "step_down" if w and w.leads:
            world.from_worker(w, ev.WorkerAsksToStepDown(w.leads, "gate says deposed"), 1)
        case "shutdown":
            world.deliver(node, node.number, ev.ShutdownAsked("operator"))


def _blind(world: World, node: Node, f: Fault) -> None:
    """The others miss the leader's renewals; then it hears nothing more; then, or not, its key vanishes."""
    for n in world.nodes:
        if n is not node:
            world.stall(n, f.length)
    world.at(world.now + f.length - 5 * MS, world.cut, node, DOWN, world.ttl, False)

    def vanish() -> None:
        if not world.healed:
            world.etcd.delete_leader()

    if f.kind == "vanish":
        world.at(world.now + f.length - 2 * MS, vanish)


def spring(world: World, node: Node, trap: Trap) -> None:
    world.say("!!!", f"{trap.effect} {node.name} at {trap.action.__name__} {trap.length / MS:.3f} ms")
    brief = trap.length // 3
    w = node.worker if node.worker is not None and not node.worker.dead else None
    match trap.effect:
        case "pause":
            world.pause_keeper(node, trap.length)
        case "late" | "lost journal":
            world.cut(node, DOWN, brief, True)
            world.at(world.now + 4 * MS, world.cut, node, UP, brief + world.ttl, False)
            if trap.effect == "lost journal" and w:
                world.wipe(w)
        case "given up":
            world.cut(node, UP, brief, True)
            if w:
                world.from_worker(w, ev.WorkerAsksToStepDown(node.told_to_lead, "gate says deposed"), 50)
