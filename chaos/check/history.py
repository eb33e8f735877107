"""The evidence, read once for all invariants: the record, each distinct log decoded, who was given which token. Pure.

Journals are equal as a rule, and equal chains at the end mean equal logs before it: a log is decoded once, however many
nodes hold it, and of two that part only what differs is decoded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from chaos.check.evidence import EtcdLine, Evidence, GateLine, JournalEvidence
from chaos.check.record import VenueRecord, read_record
from cluster.core.log import Entry
from node.codec import Fact, Fill, Intent, OrderClosed, Outcome, Result, decode
from node.paper_venue.profile import parse_profile
from node.types import parse_client_order_id


class Log:
    """What one log says, after its base: of an intent by the index at which it stands."""

    def __init__(self, journal: JournalEvidence, decoded: dict[tuple[int, bytes], Fact]) -> None:
        self.base, self.last_index = journal.base, journal.last_index
        self.facts: list[tuple[Entry, Fact]] = []
        self.intents: dict[int, Intent] = {}
        self.terms: dict[int, int] = {}  # of the intents
        self.chains: dict[int, bytes] = {journal.last_index: journal.last_chain}
        self.placed: set[int] = set()  # reached the venue, by this log
        self.not_placed: set[int] = set()  # never did, by this log
        self.trades: dict[str, Fill] = {}
        self.trades_repeated: list[str] = []
        self.recovered = 0  # fills that a later term than the order's own wrote down
        for entry in journal.entries:
            said = (entry.kind, entry.body)
            fact = decoded.get(said)
            if fact is None:
                fact = decoded[said] = decode(*said)
            self.facts.append((entry, fact))
            self.chains[entry.index] = entry.chain
            self._take(entry, fact)

    def _take(self, entry: Entry, fact: Fact) -> None:
        kind = type(fact)
        if kind is Intent:
            self.intents[entry.index], self.terms[entry.index] = fact, entry.term  # type: ignore[assignment]
        elif kind is Outcome:
            index, result = fact[0], fact[1]
            if result is Result.ACCEPTED:
                self.placed.add(index)  # type: ignore[arg-type]
            elif result is not Result.UNKNOWN:
                self.not_placed.add(index)  # type: ignore[arg-type]
        elif isinstance(fact, Fill):
            if fact.trade_id in self.trades:
                self.trades_repeated.append(fact.trade_id)
            self.trades[fact.trade_id] = fact
            self.placed.add(fact.intent_index)
            self.recovered += entry.term > self.terms.get(fact.intent_index, entry.term)
        elif isinstance(fact, OrderClosed):
            self.placed.add(fact.intent_index)

    def has_intent(self, term: int, index: int) -> bool:
        return self.terms.get(index) == term


class Tenure:
    """One token as etcd gave it: to whom, the times of its renewals (the first is the acquisition), its end."""

    __slots__ = ("ended_at", "line", "renewed_at")

    def __init__(self, line: EtcdLine) -> None:
        self.line = line
        self.renewed_at = [line.at]
        self.ended_at: int | None = None


class History:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.run = evidence.run
        self.at_rest = evidence.run.at_rest
        self._decoded: dict[tuple[int, bytes], Fact] = {}

    @cached_property
    def record(self) -> VenueRecord:
        return read_record(self.evidence.venue or ())

    @cached_property
    def fences(self) -> str:
        """token, expiry or plain: what this venue checks. The strictest where nobody says."""
        profile = parse_profile(self.run.profile or self.record.profile or "token")
        return "token" if profile.token else "expiry" if profile.expiry else "plain"

    @cached_property
    def orders(self) -> dict[str, tuple[str, int, int] | None]:
        """Accepted client order id -> (cluster tag, term, index) of its intent; None for one that is not ours."""
        return {coid: parse_client_order_id(coid) for coid in self.record.accepted}

    @cached_property
    def journals(self) -> list[JournalEvidence]:
        """Those that must hold everything."""
        return [j for j in self.evidence.journals or () if j.final]

    @cached_property
    def _logs(self) -> dict[tuple[int, int, bytes], Log]:
        return {}

    def log(self, journal: JournalEvidence) -> Log:
        key = (journal.base, journal.last_index, journal.last_chain)
        found = self._logs.get(key)
        if found is None:
            found = self._logs[key] = Log(journal, self._decoded)
        return found

    def distinct(self) -> Iterator[tuple[str, Log]]:
        """Each distinct log among the final journals, with the nodes that hold it."""
        holders: dict[int, tuple[list[str], Log]] = {}
        for journal in self.journals:
            log = self.log(journal)
            holders.setdefault(id(log), ([], log))[0].append(journal.node)
        for nodes, log in holders.values():
            yield ", ".join(nodes), log

    @cached_property
    def tenures(self) -> dict[int, Tenure]:
        """By token, in the order in which etcd gave them; of a token that was given twice the first."""
        found: dict[int, Tenure] = {}
        for line in self.evidence.etcd or ():
            if line.what == "acquired":
                found.setdefault(line.token, Tenure(line))
            elif line.token in found:
                tenure = found[line.token]
                if line.what == "renewed":
                    tenure.renewed_at.append(line.at)
                elif tenure.ended_at is None:
                    tenure.ended_at = line.at
        return found

    @cached_property
    def claims(self) -> dict[str, GateLine]:
        """Client order id -> the claim that was granted first."""
        found: dict[str, GateLine] = {}
        for line in self.evidence.gate or ():
            if line.op == "claim" and line.verdict == "ok":
                found.setdefault(line.subject, line)
        return found

    def venue_at(self, at_ns: int) -> int | None:
        """The venue's time as one of ours, where it is known how."""
        return None if self.run.venue_epoch is None else at_ns - self.run.venue_epoch
