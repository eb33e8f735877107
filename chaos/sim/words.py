"""Faults, traps and marks in plain words: those of the code mean nothing to who reads a page. Pure.

`story.py` tells a mark where it happens; what is told there is part of a run's digest, so that it is translated here.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from chaos.sim.engine import MS
from chaos.sim.plan import Fault, Plan, Trap
from chaos.sim.story import FAULTS, GATE, JUDGE, Mark

_BROKEN = MappingProxyType(
    {
        "keeper pause": "the keeper of {who} is frozen",
        "worker pause": "the worker of {who} is frozen",
        "host pause": "both processes of {who} are frozen",
        "host suspend": "the host of {who} is suspended",
        "worker crash": "the worker of {who} is killed",
        "keeper crash": "the keeper of {who} is killed",
        "host crash": "the host of {who} loses its power",
        "worker hang": "the worker of {who} hangs",
        "worker stuck": "the worker of {who} hangs where even a kill waits",
        "torn tail": "the host of {who} loses its power in the middle of a write",
        "short pause": "both processes of {who} are frozen for a moment",
        "short cut": "{who} is cut off from etcd for a moment",
        "jitter": "the links of {who} become slow",
        "corrupt frame": "a byte of the next replication frame is flipped",
        "repeat stream": "the venue tells fills twice",
        "reorder stream": "the venue tells fills out of order",
        "feed stall": "the market data of {who} stop",
        "feed repeat": "{who} is told the latest market data again",
        "false keep-alive": "etcd revokes the lease of {who}, and goes on to confirm it",
        "late expiry": "a change of leader in etcd gives every lease its whole time again",
        "compact": "etcd compacts its history under slow watches",
        "blind": "the others do not see the renewals of {who}, which then hears nothing more from etcd",
        "vanish": "the others do not see the renewals of {who}, and then its key vanishes",
        "etcd restored": "etcd is restored from an older copy",
        "etcd replaced": "etcd is replaced by an empty one",
        "redis empty": "the gate's Redis restarts empty",
        "redis flush": "the gate's Redis is emptied",
        "redis failover": "a replica of the gate's Redis that lacks the latest changes takes over",
        "venue refuses": "the venue refuses everything, too many requests",
        "disk stall": "the disk of {who} is slow",
        "disk error": "the next write of {who} to its disk fails",
        "flip": "a byte in the journal of {who} is flipped",
        "wall jump": "the wall clock of {who} is set by an hour",
        "cut etcd": "{who} is cut off from etcd",
        "cut peer": "{who} is cut off from the other nodes",
        "cut gate": "{who} is cut off from the gate",
        "cut orders": "{who} is cut off from the venue",
        "lose answers": "the venue's answers to {who} are lost",
        "lurk": "orders of {who} are held back on their way",
        "cut stream": "the venue's private stream to {who} is cut",
        "switchover": "a person asks for a switchover",
        "shutdown": "{who} is asked to shut down",
        "step down": "{who} is asked to step down",
        "halt": "the kill switch is pressed",
        "etcd down": "etcd has no majority",
        "revoke": "etcd revokes the lease of {who}, though it is renewed",
        "delete key": "the leader's key is deleted by hand",
        "stall watch": "{who} hears nothing of changes in etcd",
        "redis down": "the gate is down",
        "venue down": "the venue is down",
        "wipe": "{who} loses its data directory",
    }
)
"""What a fault of each kind does (`faults.FAULTS`)."""

_LASTING = frozenset(
    {
        *("keeper pause", "worker pause", "host pause", "host suspend", "worker stuck", "disk stall", "feed stall"),
        *("cut etcd", "cut peer", "cut gate", "cut orders", "cut stream", "lose answers", "lurk"),
        *("etcd down", "redis down", "venue down", "venue refuses", "stall watch", "blind", "vanish", "halt"),
        *("repeat stream", "reorder stream"),
    }
)
_DOWN = ("keeper crash", "host crash", "torn tail")
"""They last as long as the fault says if it `hold`s, else the process is started again at once."""
_CUTS = ("cut etcd", "cut peer", "cut gate", "cut orders")

_DONE = MappingProxyType(
    {
        "pause": "that process is frozen",
        "host pause": "both processes of its node are frozen",
        "kill": "it is killed",
        "late answer": "etcd's answer to it is held",
        "held request": "what it sends to etcd is held",
        "lost journal": "the worker dies with its journal, and the answer is held",
        "late": "the answer is held, and nothing that it sends to etcd later arrives",
        "given up": "its worker asks to step down meanwhile, and what the keeper sends is held",
    }
)

_STEPS = MappingProxyType(
    {
        "Send": "sends an order",
        "write": "looks at its permit for the last time before an order leaves",
        "bytes": "lets the bytes of an order go, with all checks behind it",
        "Claim": "claims an order at the gate",
        "SendCancel": "cancels an order",
        "LookUp": "asks the venue what became of an order",
        "ArmGate": "tells the gate of its token",
        "ArmVenue": "tells the venue of its token",
        "ReportReconciled": "reports that journal and venue agree",
        "StopFollowing": "stops following the old leader",
        "TellPrepared": "reports that it is ready to lead",
        "ack": "confirms entries that the leader sent it",
        "Acquire": "asks etcd for the lease",
        "Renew": "asks etcd to renew the lease",
        "WritePermit": "writes the permit",
        "TellGranted": "tells its worker that it may send",
        "TellLead": "tells its worker to lead",
        "ClearPermit": "drops the permit",
        "TellStop": "tells its worker to stop",
        "Resign": "gives the lease back",
        "Evict": "takes the lease away from a leader that has fallen silent",
    }
)
"""What a process does in each step that a trap waits for (`plan.STEPS`)."""


# -- the script --------------------------------------------------------------------------------------------------------


def script_in_words(plan: Plan) -> list[str]:
    """The cluster, then what is done to it."""
    venue = {"token": "checks fencing tokens", "expiry": "checks the expiry of orders", "plain": "checks neither"}
    cluster = (
        f"{plan.nodes} nodes with leases of {plan.ttl / MS:.0f} ms; a venue that {venue[plan.venue]}; an event of the "
        f"market every {plan.lull / MS:.0f} ms or so; everything is healed at {plan.heal_at / MS:.0f} ms"
    )
    noise = ", ".join(f"{part:.0%} of the messages {how}" for part, how in _noise(plan) if part)
    drift = "the clocks of the nodes run at different speeds" if len(set(plan.drifts)) > 1 else ""
    faults = (f"at {f.at / MS:.0f} ms {fault_in_words(f)}" for f in plan.faults)
    return [cluster, *filter(None, (noise, drift)), *faults, *map(trap_in_words, plan.traps)]


def _noise(plan: Plan) -> tuple[tuple[float, str], ...]:
    return (plan.loss, "are lost"), (plan.late, "are late")


def fault_in_words(fault: Fault) -> str:
    who = {"leader": "the leader", "standby": "a standby"}.get(fault.target, fault.target)
    what = _BROKEN[fault.kind].format(who=who)
    if fault.kind in _CUTS:
        what += _cut(fault.how)
    lasts = fault.kind in _LASTING or (fault.kind in _DOWN and fault.how.startswith("hold"))
    return what + (f", for {fault.length / MS:.0f} ms" if fault.length and lasts else "")


def _cut(how: str) -> str:
    fate, _, way = how.partition(" ")
    which = {"up": "what it sends", "down": "what is sent to it"}.get(way, "what is sent")
    return {"hold": f" ({which} arrives late)", "lose": f" ({which} is lost)"}.get(fate, "")


def trap_in_words(trap: Trap) -> str:
    nth = {1: "first", 2: "second", 3: "third"}.get(trap.nth, f"{trap.nth}th")
    length = f", for {trap.length / MS:.0f} ms" if trap.length and trap.effect != "kill" else ""
    return f"right before the {nth} time that a {trap.process} {_STEPS[trap.step]}: {_DONE[trap.effect]}{length}"


# -- what happened -----------------------------------------------------------------------------------------------------


_VERDICTS = MappingProxyType(
    {
        "stale_token": "a newer token is armed",
        "gate_unarmed": "no token is armed",
        "halted": "the kill switch is pressed",
    }
)


def told(mark: Mark) -> Mark:
    """The mark as a reader sees it: in words, and with the length that it has."""
    if mark.lane == FAULTS and mark.kind == "fault":
        return _fault_told(mark)
    text = re.sub(r"\b(n\d+)/\d+\b", r"\1", mark.text)  # a node, and which start of its worker
    if mark.lane == JUDGE:
        return mark._replace(text=violation_told(text), lane=_where(text))
    if mark.lane == GATE and "REFUSED, " in text:
        verdict = text.partition("REFUSED, ")[2].partition(";")[0]
        text = text.replace(f"REFUSED, {verdict}", f"refused, {_VERDICTS.get(verdict, verdict.replace('_', ' '))}")
    return mark._replace(text=text)


def _fault_told(mark: Mark) -> Mark:
    """Of `records.fault` and `records.trap`: `<kind> at <node>: <proof>`, `<effect> at <node>, right before
    <process>'s <step>`."""
    trap = re.fullmatch(r"(.+?) at (\w+), right before (\w+)'s (\w+)", mark.text)
    if trap is not None:
        effect, node, process, step = trap.groups()
        until = 0 if effect == "kill" else mark.until
        return mark._replace(text=f"right before the {process} of {node} {_STEPS[step]}: {_DONE[effect]}", until=until)
    fault = re.fullmatch(r"(.+?) at (\w+): (.*)", mark.text)
    if fault is None or fault[1] not in _BROKEN:
        return mark
    kind, node, proof = fault.groups()
    text = _BROKEN[kind].format(who=node)
    if kind in _CUTS:
        text += _cut(proof.rpartition(", ")[2])
    return mark._replace(text=text, until=mark.until if kind in _LASTING else 0)


def _where(violation: str) -> str:
    """The lane of whoever did what is wrong, as far as the sentence begins with it."""
    found = re.match(r"\w+: (?:the strategy of )?(n\d+) (\w+ \w+)", violation)
    if found is None:
        return JUDGE
    by_keeper = ("gets a", "asks to", "stopped for")
    return f"{found[1]} {'keeper' if found[2] in by_keeper or ' back before' in violation else 'worker'}"


def violation_told(text: str) -> str:
    """The checker's sentence, with its times in ms from the start of the run, as all others on the page."""
    return re.sub(r"\b(at|since|of|after one of) (\d{7,})\b", lambda m: f"{m[1]} {int(m[2]) / MS:.3f} ms", text)
