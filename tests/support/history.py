"""A true history of a cluster, told by every actor at once: the venue's own engine, a gate and an etcd that obey their
rules, leaders that obey theirs, and the journal that they write. For tests of the judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from chaos.check.evidence import (
    CommitLine,
    EtcdLine,
    Evidence,
    FaultLine,
    GateLine,
    JournalEvidence,
    OperatorLine,
    QueryLine,
    Run,
    SentLine,
    replayed,
)
from cluster.core.ids import NS_PER_S, Term
from cluster.core.log import GENESIS, Entry, make_entry
from node import codec
from node.codec import (
    CancelRequested,
    Closed,
    Fact,
    Fill,
    Intent,
    OrderClosed,
    Outcome,
    Result,
    TermStarted,
    encode,
)
from node.paper_venue.engine import Engine
from node.paper_venue.lines import Line, surface, to_json
from node.paper_venue.profile import parse_profile
from node.paper_venue.state import Ask, Moment, Sender
from node.types import ClientOrderId, OrderSpec, Side, TimeInForce, client_order_id
from tests.support.paper import BTC, SYMBOL, quote

TAG = "b1"
NODES = ("n1", "n2", "n3")
CLOSED = {"filled": Closed.FILLED, "cancelled": Closed.CANCELLED, "expired": Closed.EXPIRED}
STEP = NS_PER_S // 1000
EPOCH = 990 * NS_PER_S

Lines = list[dict[str, Any]]


class World:
    """One step is one millisecond. `run` tells of ordinary trading, `finish` of how the faults end."""

    def __init__(self, seed: int, profile: str = "token") -> None:
        self.rng = random.Random(seed)
        self.profile = profile
        self.engine = Engine(parse_profile(profile), [BTC])
        self.lines: list[Line] = []
        self.entries: list[Entry] = []
        self.gate: list[GateLine] = []
        self.etcd: list[EtcdLine] = []
        self.sent: list[SentLine] = []
        self.queries: list[QueryLine] = []
        self.commits: list[CommitLine] = []
        self.faults: list[FaultLine] = []
        self.operator: list[OperatorLine] = []
        self.leader, self.token, self.tick = "n1", 0, 0
        self.deposed: tuple[str, int] | None = None
        self.bid = 100_000
        self.open: list[tuple[int, str]] = []  # (index of the intent, client order id), at the venue
        self.unsettled: list[tuple[int, str, bool]] = []  # and whether the venue has it
        self.high, self.armed, self.halted = 0, False, False
        self.healed_at: int | None = None
        self.market()

    @property
    def at(self) -> int:
        return 10 * NS_PER_S + self.tick * STEP

    @property
    def now(self) -> Moment:
        self.tick += 1
        return Moment(self.at, self.at + EPOCH)

    @property
    def sender(self) -> Sender:
        return Sender("baton", self.leader, f"s{self.token}")

    # -- the actors --

    def say(self, fact: Fact) -> int:
        kind, body = encode(fact)
        index, chain = (self.entries[-1].index, self.entries[-1].chain) if self.entries else (0, GENESIS)
        self.entries.append(make_entry(index, chain, Term(self.token), kind, self.tick, body))
        last = self.entries[-1]
        follower = next(n for n in NODES if n != self.leader)
        self.commits.append(CommitLine("acknowledged", follower, self.token, last.index, last.chain, self.at))
        self.commits.append(CommitLine("committed", self.leader, self.token, last.index, last.chain, self.at))
        return last.index

    def etcd_says(self, what: Any, token: int, node: str) -> None:
        revision = self.etcd[-1].revision + 1 if self.etcd else 1
        self.etcd.append(EtcdLine(max(revision, token), what, token, node, self.at))

    def decide(self, op: Any, token: int, subject: str = "") -> bool:
        """The gate, as its script would."""
        high, verdict = self.high, "ok"
        if op == "claim":
            if token < self.high:
                verdict = "stale_token"
            elif not self.armed:
                verdict = "gate_unarmed"
            elif self.halted:
                verdict = "halted"
        elif op == "arm":
            self.high, self.armed = token, True
        elif op == "lost":
            self.high, self.armed = 0, False
        else:
            self.halted = op == "halt"
        seq = self.gate[-1].seq + 1 if self.gate else 1
        self.gate.append(GateLine(seq, op, token, high, subject, verdict, self.at))
        return verdict == "ok"

    def send(self, kind: Any, coid: str = "", by: tuple[str, int] | None = None) -> None:
        node, token = by or (self.leader, self.token)
        self.sent.append(SentLine(self.at, node, token, kind, coid))

    def hear(self, lines: Iterable[Line]) -> None:
        """What the venue did goes into its record; of fills and closes the leader hears on the stream."""
        for line in lines:
            self.lines.append(line)
            known = {coid: index for index, coid in self.open}
            coid = line.client_order_id or ""
            if line.kind == "fill":
                f = line.fill()
                self.say(
                    Fill(f.trade_id, known[coid], coid, f.symbol, f.side, f.qty_lots, f.price_ticks, 0, f.event_seq)
                )
            elif line.kind == "closed":
                how, filled = CLOSED[str(line.status)], line.filled_lots or 0
                stream = codec.Evidence.VENUE_STREAM
                self.say(OrderClosed(known[coid], how, filled, "", stream, line.event_seq or 0))
                self.open.remove((known[coid], coid))

    # -- what happens --

    def lead(self, fault: str = "kill") -> None:
        if self.token:
            self.deposed = (self.leader, self.token)
            began = self.at
            self.tick += 1
            if fault == "kill":
                number = f"f{len(self.faults)}"
                self.faults.append(FaultLine(number, fault, self.leader, began, self.at, self.at + STEP, "dead"))
            else:
                self.operator.append(OperatorLine(self.at, "switchover_asked", "desk"))
            self.tick += 1
            self.etcd_says("ended", self.token, self.leader)
        last = self.entries[-1] if self.entries else None
        self.leader = self.rng.choice([n for n in NODES if n != self.leader])
        self.token += self.rng.randint(40, 80)
        self.tick += 1
        self.etcd_says("acquired", self.token, self.leader)
        if last is not None:
            self.commits.append(CommitLine("led", self.leader, self.token, last.index, last.chain, self.at))
        self.say(TermStarted(self.leader, "i"))
        self.decide("arm", self.token, self.leader)
        self.send("arm")
        self.lines += self.engine.arm(self.sender, self.token, self.now)
        for index, coid, there in self.unsettled:
            self.queries.append(QueryLine(self.at, self.leader, "lookup", coid, there))
            result = Result.ACCEPTED if there else Result.NOT_SENT
            evidence = codec.Evidence.LOOKUP_FOUND if there else codec.Evidence.ABSENT_FENCED
            self.say(Outcome(index, result, evidence))
        self.unsettled.clear()

    def renew(self) -> None:
        self.etcd_says("renewed", self.token, self.leader)

    def market(self) -> None:
        self.bid += self.rng.randint(-30, 30)
        self.hear(self.engine.market(quote(self.bid, self.bid + 10, 50, 50), self.now))

    def _wish(self) -> tuple[int, ClientOrderId, str, OrderSpec]:
        side, rests = self.rng.choice(list(Side)), self.rng.random() < 0.6
        off = -side.sign * self.rng.randint(1, 20) if rests else side.sign * 40
        price = (self.bid if side is Side.BUY else self.bid + 10) + off
        tif = TimeInForce.GTC if rests else TimeInForce.IOC
        spec = OrderSpec(SYMBOL, side, self.rng.randint(1, 80), price, tif=tif)
        decision = f"d{len(self.entries)}"
        index = self.say(Intent(decision, spec))
        return index, client_order_id(TAG, self.token, index), decision, spec

    def place(self, answered: bool = True) -> None:
        index, coid, decision, spec = self._wish()
        if not self.decide("claim", self.token, coid):
            self.say(Outcome(index, Result.NOT_SENT, codec.Evidence.LOCAL, code="gate"))
            return
        self.send("new", coid)
        ask = Ask(coid, decision, SYMBOL, spec.side, spec.type, spec.tif, False, spec.qty_lots, spec.price_ticks, 0)
        lines = self.engine.place(self.sender, self.token, ask, self.now)
        assert lines[0].accepted, lines[0]
        self.open.append((index, coid))
        if not answered:
            self.unsettled.append((index, coid, True))
        else:
            if self.rng.random() < 0.2:  # the answer was late; looked up afterwards
                self.say(Outcome(index, Result.UNKNOWN, codec.Evidence.LOCAL))
            self.say(Outcome(index, Result.ACCEPTED, codec.Evidence.VENUE_REPLY, "v"))
        self.hear(lines)

    def place_unheard(self) -> None:
        """Its answer is lost with its leader."""
        if len(self.unsettled) < 2 and self.armed and not self.halted:
            self.place(answered=False)

    def place_in_vain(self) -> None:
        """It never arrives."""
        index, coid, _, _ = self._wish()
        if not self.decide("claim", self.token, coid):
            self.say(Outcome(index, Result.NOT_SENT, codec.Evidence.LOCAL, code="gate"))
            return
        self.send("new", coid)
        self.say(Outcome(index, Result.UNKNOWN, codec.Evidence.LOCAL))
        self.unsettled.append((index, coid, False))

    def not_sent(self) -> None:
        index, _, _, _ = self._wish()
        self.say(Outcome(index, Result.NOT_SENT, codec.Evidence.LOCAL, code="no_permit"))

    def cancel(self) -> None:
        if self.open:
            index, coid = self.rng.choice(self.open)
            self.say(CancelRequested(index))
            self.send("cancel", coid)
            self.hear(self.engine.cancel(self.sender, self.token, coid, self.now))

    def stale(self) -> None:
        """Somebody who led before tries; the gate refuses, and the venue what was past the gate."""
        if self.deposed is None:
            return
        node, token = self.deposed
        coid = f"old{self.tick}"
        self.decide("claim", token, coid)
        if self.profile.startswith("token"):
            self.send("new", coid, by=self.deposed)
            ask = Ask(coid, "old", SYMBOL, Side.BUY, _LIMIT.type, _LIMIT.tif, False, 1, self.bid, 0)
            self.lines += self.engine.place(Sender("baton", node, "old"), token, ask, self.now)

    def lose_gate(self) -> None:
        self.decide("lost", 0)
        self.place()
        self.decide("arm", self.token, self.leader)

    def halt(self) -> None:
        self.operator.append(OperatorLine(self.at, "halt_pressed", "desk"))
        self.decide("halt", 0, "desk")
        self.operator.append(OperatorLine(self.at, "halt_confirmed", "desk"))
        self.place()
        self.operator.append(OperatorLine(self.at, "unhalt", "desk"))
        self.decide("unhalt", 0)

    def run(self, steps: int) -> World:
        if not self.token:
            self.lead()
        doings: list[Callable[[], None]] = [self.place] * 8 + [self.market, self.cancel, self.renew] * 4
        doings += [self.lead, lambda: self.lead("switchover"), self.place_unheard, self.place_in_vain]
        doings += [self.stale, self.stale, self.not_sent, self.lose_gate, self.halt]
        for _ in range(steps):
            self.rng.choice(doings)()
        return self

    def finish(self) -> World:
        """One more leader settles what is open; all is healed, and it trades on."""
        self.lead()
        self.tick += 1
        self.healed_at = self.at
        for _ in range(10):
            self.place()
        self.market()
        return self

    # -- what is told of it --

    def record(self) -> Lines:
        return [surface(to_json(line, {SYMBOL: BTC})) for line in self.lines]

    def journal(self, node: str = "n1", entries: list[Entry] | None = None) -> JournalEvidence:
        return replayed(node, self.entries if entries is None else entries, TAG)

    def evidence(self) -> Evidence:
        one = self.journal()
        run = Run(
            self.profile,
            ttl=NS_PER_S,
            clock_error=STEP,
            venue_epoch=EPOCH,
            healed_at=self.healed_at,
            ended_at=self.at,
            at_rest=True,
            rto_max=NS_PER_S,
            recovery_max=5 * STEP,
        )
        return Evidence(
            run,
            venue=self.record(),
            gate=list(self.gate),
            etcd=list(self.etcd),
            sent=list(self.sent),
            queries=list(self.queries),
            commits=list(self.commits),
            faults=list(self.faults),
            operator=list(self.operator),
            journals=[one._replace(node=n) for n in NODES],
        )


_LIMIT = OrderSpec(SYMBOL, Side.BUY, 1, 1)


def renumbered(lines: Lines) -> Lines:
    """By a forger who knows how the record counts."""
    event = 0
    for seq, line in enumerate(lines, 1):
        line["venue_seq"] = seq
        if line.get("event_seq") is not None:
            event += 1
            line["event_seq"] = event
    return lines
