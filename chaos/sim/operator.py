"""The person with the kill switch: presses it in etcd first and at the gate second, and again until both confirm.

The gate may be halted again afterwards: a leader tells it of a latch that it saw before the latch was lifted, or the
gate's own state goes back in time. Nothing lifts that by itself. The person sees it, and lifts again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from chaos.check.evidence import OperatorLine
from chaos.sim.engine import MS
from chaos.sim.story import OPERATOR
from cluster.etcd.model import delete, put
from cluster.keys import dump

if TYPE_CHECKING:
    from chaos.sim.world import World

RETRY = 30 * MS
ROUND_TRIP = MS


class Operator:
    """log: what the checker reads."""

    def __init__(self, world: World) -> None:
        self.world, self.engine = world, world.engine
        self.pressing = False
        self.log: list[OperatorLine] = []
        self._wanted: str | None = None
        self._at_etcd: str | None = None
        self._at_gate: str | None = None

    def press(self, reason: str) -> None:
        self._note("halt_pressed")
        self._wanted = reason
        self._go_on()

    def lift(self) -> None:
        self._wanted = None
        self._go_on()

    def watch(self) -> None:
        """From now on: see to it that the gate is as it was left."""
        halted = self.world.gate.halted
        if not self.pressing and self._wanted is None and halted is not None:
            self._at_gate = halted
            self._go_on()
        self.engine.after(RETRY, self.watch)

    def _go_on(self) -> None:
        """etcd, then the gate; what does not answer is asked again."""
        if self.pressing or self._settled:
            return
        self.pressing = True
        self.engine.after(ROUND_TRIP, self._put)

    @property
    def _settled(self) -> bool:
        return self._at_etcd == self._wanted == self._at_gate

    def _again(self) -> None:
        self.engine.after(RETRY, self._put)

    def _put(self) -> None:
        world, wanted = self.world, self._wanted
        if self.engine.now < world.etcd_down_until:
            self._again()
            return
        if wanted is None:
            op = delete(world.keys.halt)
        else:
            op = put(world.keys.halt, dump(reason=wanted, actor="operator", at=0))
        world.etcd.txn((), (op,))
        world.etcd_touched()
        self._at_etcd = wanted
        self._note("halt_confirmed" if wanted is not None else "unhalt")
        self.engine.after(ROUND_TRIP, self._tell_gate, wanted)

    def _tell_gate(self, wanted: str | None) -> None:
        world = self.world
        if self.engine.now < world.gate_down_until:
            self._again()
            return
        if wanted is None:
            world.gate.unhalt()
        else:
            world.gate.halt(wanted)
        self._at_gate = wanted
        self.world.say(OPERATOR, "operator", f"{'halt' if wanted is not None else 'unhalt'} confirmed by the gate")
        self.pressing = False
        self._go_on()

    def _note(self, what: Literal["halt_pressed", "halt_confirmed", "unhalt"]) -> None:
        self.log.append(OperatorLine(self.engine.now, what, "operator", "drill"))
        self.world.say(OPERATOR, "operator", what.replace("_", " "))
