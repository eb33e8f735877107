"""One leadership with its log, book and clock in hand: the test says what happens, and sees what is to be done."""

from __future__ import annotations

from typing import Any, TypeVar

from cluster.core.ids import Instant, NodeId, Term
from cluster.permit import NO_PERMIT, PermitSeen
from node.actions import Action, PermissionChanged, ReportReconciled
from node.book import Book
from node.codec import Fact, TermStarted
from node.feeds.base import FeedState
from node.gate import Armed, ClaimResult, GateState, Verdict
from node.leadership import Leadership, TradingRules
from node.orders import Claim, Send, StepDown
from node.paper_venue.profile import parse_profile
from node.permission import Conditions, Level
from node.reconcile import VenueSnapshot
from node.strategy import Place, Wish
from node.types import DecisionId, OrderSpec, StreamUp, SubmitResult, WireOrder
from node.venue_clock import VenueClock
from node.venues.base import Capabilities, TimeSample
from tests.support.desk import INSTRUMENTS, LIMITS, TAG, UNIX, Log, S, buy

A = TypeVar("A")


class LogOfTerm:
    """node.stages.TermLog. holders: who has every entry."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.holders: set[str] = set()

    @property
    def commit_index(self) -> int:
        return self._log.commit

    @property
    def last_index(self) -> int:
        return len(self._log.entries)

    def has_all(self, node: NodeId) -> bool:
        return node in self.holders


class Term7:
    """One leadership, of term 7 unless said otherwise, over a log and a book that outlive it. `said` holds all that it
    ever asked for; each event returns what it asked for then."""

    def __init__(self, profile: str = "token") -> None:
        self.caps: Capabilities = parse_profile(profile).capabilities
        self.rules = TradingRules(TAG, LIMITS, 1.0, 5.0, 0.0)
        self.log = Log()
        self.book = Book(TAG, INSTRUMENTS)
        self.clock = VenueClock(0.0)
        self.conditions = Conditions(feed=FeedState.LIVE, halted="")
        self.now = Instant(1000 * S)
        self.permit = NO_PERMIT
        self.said: list[Action] = []
        self.read_clock()
        self.make(7)

    def make(self, term: int) -> None:
        self.log.term = term
        self.term_log = LogOfTerm(self.log)
        self.leadership = Leadership(
            term=term,
            rules=self.rules,
            book=self.book,
            log=self.term_log,
            clock=self.clock,
            conditions=self.conditions,
            capabilities=self.caps,
            append=self.log.append,
            reference=lambda _: 2 * 1000,
        )

    def read_clock(self) -> None:
        self.clock.note(TimeSample(self.now, self.now, UNIX + self.now))

    # -- events ----------------------------------------------------------------------------------------------

    def do(self, event: str, *args: Any) -> list[Action]:
        """The event of that name, now."""
        return self.note(getattr(self.leadership, event)(*args, self.now))

    def note(self, actions: list[Action]) -> list[Action]:
        self.said += actions
        return actions

    def begin(self) -> list[Action]:
        return self.do("begin", TermStarted("n1", "i"), self.now)

    def commit(self) -> list[Action]:
        """All that stands in the log is committed and applied, and what is appended meanwhile too."""
        out: list[Action] = []
        while self.log.commit < len(self.log.entries):
            entry = self.log.entries[self.log.commit]
            self.log.commit += 1
            self.book.apply(entry)
            out += self.do("applied", entry, self.log.facts[entry.index])
        return out

    def gate_armed(self, *, latch_known: bool = True, previous: int = 3) -> list[Action]:
        return self.do("gate_armed", Armed(self.leadership.term, 1, previous, latch_known))

    def gate_seen(self, *, armed: bool = True, high: int = 7, halted: str | None = None) -> list[Action]:
        return self.do("gate_seen", GateState(armed, high, "n1", halted, 1))

    def venue_armed(self, high_water: int | None = None) -> list[Action]:
        return self.do("venue_armed", high_water or self.leadership.term, self.caps)

    def after(self, seconds: float) -> list[Action]:
        """Time passes, in the steps that `wake_at` asks for; what was said on the way."""
        out: list[Action] = []
        end = Instant(self.now + round(seconds * S))
        while (wake := self.leadership.wake_at()) is not None and wake <= end and not self.leadership.stopped:
            self.now = max(self.now, wake)
            out += self.tick()
        self.now = end
        return out

    def tick(self) -> list[Action]:
        return self.do("tick", self.permit)

    def take_over(self) -> None:
        """Up to the point where the permit is missing."""
        self.begin()
        self.gate_armed()
        self.venue_armed()
        self.commit()
        assert self.all(ReportReconciled)
        self.do("stream_said", StreamUp(1), self.caps)
        self.do("snapshot_taken", VenueSnapshot([], [], {}))
        self.commit()

    def grant(self, seconds: float = 3600.0) -> list[Action]:
        self.permit = PermitSeen(Term(self.leadership.term), Instant(self.now + round(seconds * S)))
        return self.do("granted", self.permit)

    def lead(self) -> None:
        self.take_over()
        self.grant()
        assert self.level is Level.ALLOWED, self.leadership.permission

    # -- orders ----------------------------------------------------------------------------------------------

    def wishes(self, *wishes: Wish, decision: str = "") -> list[Action]:
        named = [(decision or f"d{len(self.log.entries)}.{n}", wish) for n, wish in enumerate(wishes)]
        return self.note(self.leadership.wishes(named, 0, self.now, self.log.at))

    def wish(self, spec: OrderSpec | None = None, decision: str = "") -> list[Action]:
        return self.wishes(Place(spec or buy(10, 1000), DecisionId("d")), decision=decision)

    def claim(self, spec: OrderSpec | None = None) -> Claim:
        (claim,) = self.wish(spec)
        assert isinstance(claim, Claim), claim
        return claim

    def claimed(self, claim: Claim, verdict: Verdict = Verdict.OK, detail: str = "", high: int = 7) -> list[Action]:
        return self.do("claimed", claim.index, ClaimResult(claim.client_order_id, verdict, 1, high, detail))

    def ready(self, spec: OrderSpec | None = None) -> Send:
        """An order that waits for nothing but `release`."""
        self.claimed(self.claim(spec))
        (send,) = self.only(Send, self.commit())
        return send

    def release(self, send: Send) -> WireOrder | list[Action]:
        released = self.leadership.release(send, self.permit, self.now)
        if not isinstance(released, WireOrder):
            self.note(released)
        return released

    def sent(self, spec: OrderSpec | None = None) -> WireOrder:
        released = self.release(self.ready(spec))
        assert isinstance(released, WireOrder), released
        return released

    def answer(self, index: int, result: SubmitResult) -> list[Action]:
        return self.do("submitted", index, result) + self.commit()

    # -- what came of it ---------------------------------------------------------------------------------------

    def all(self, kind: type[A]) -> list[A]:
        return [a for a in self.said if isinstance(a, kind)]

    @staticmethod
    def only(kind: type[A], actions: list[Action]) -> list[A]:
        return [a for a in actions if isinstance(a, kind)]

    @property
    def level(self) -> Level:
        return self.leadership.permission.level

    @property
    def reason(self) -> str:
        return self.leadership.permission.reason

    @property
    def left(self) -> str | None:
        """Why the term was left; None: it goes on."""
        told = self.all(StepDown)
        assert len(told) <= 1 and self.leadership.stopped >= bool(told)
        return told[0].reason if told else None

    def facts(self, kind: type[A]) -> list[A]:
        return self.log.said(kind)

    def journal(self) -> list[Fact]:
        return list(self.log.facts.values())

    def permissions(self) -> list[str]:
        return [p.permission.reason or p.permission.level.value for p in self.all(PermissionChanged)]
