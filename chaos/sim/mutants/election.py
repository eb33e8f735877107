"""E: mutants of the election: when a node may act, take over, and has to give back. Renewing once fenced is M16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.sim.mutants.patching import Original, Patches, Table
from cluster import transactions
from cluster.core import events as ev
from cluster.core import role
from cluster.core.election import Election
from cluster.core.ids import Instant, Term
from cluster.core.insync import Commitment, Member, Members
from cluster.core.lease import InSync, LeaseRules, Sightings, View, acquire_from
from cluster.etcd.model import Txn

ELECTION = Table()
_mutant = ELECTION


@_mutant("E1", "the end of a permit counts from the request, not from its answer", "S3", scenario="N2b")
def _counts_from_the_answer(p: Patches) -> None:
    @p.around(Election, "_on_renewed")
    def _(original: Original, self: Election, answer: ev.Answer, _sent_at: Instant, now: Instant, out: Any) -> None:
        original(self, answer, now, now, out)

    @p.around(Election, "_won")
    def _(
        original: Original,
        self: Election,
        token: Term,
        attempt: int,
        _sent_at: Instant,
        now: Instant,
        out: Any,
        **op: Any,
    ) -> None:
        original(self, token, attempt, now, now, out, **op)


@_mutant("E2", "the wait for a vanished key counts from where its absence was first seen", "S3", scenario="E3b", seed=5)
def _absent_since_the_last_renewal(p: Patches) -> None:
    """Counts from the last renewal that was seen, as if none could have been missed."""

    @p.around(Sightings, "note")
    def _(original: Original, self: Sightings, view: View, now: Instant) -> None:
        last = self.renewal
        original(self, view, now)
        if view.leader is None:
            self.renewal = last
            if last is not None and self.absence is not None:
                self.absence = (self.absence[0], last[1])


@_mutant("E3", "a key that vanished proves nothing", "S3", scenario="E3b")
def _vanished_is_proof(p: Patches) -> None:
    p.everywhere(acquire_from, lambda view, _seen: None if view.leader is not None else Instant(0))


@_mutant("E4", "a leader stops a margin before its lease ends", "S3", scenario="C3", seed=1)
def _no_margin(p: Patches) -> None:
    p.replace(LeaseRules, "act_until", lambda self, sent_at: Instant(sent_at + self.ttl))


@_mutant("E5", "the margin covers clocks that drift apart", "S3", scenario="C3", seed=1)
def _no_drift(p: Patches) -> None:
    p.replace(LeaseRules, "act_until", lambda self, sent_at: Instant(sent_at + self.ttl - self.send_slack))


@_mutant("E6", "an acquire found in the view counts from when it was sent", "S3", scenario="N3c", seed=1)
def _adopts_without_sent_at(p: Patches) -> None:
    @p.around(Election, "_find_own_key")
    def _(_original: Original, self: Election, view: View, now: Instant, out: Any) -> None:
        key = view.leader
        if key is not None and self.held is None and key.token > self._released and isinstance(self.role, role.Standby):
            self._won(key.token, key.attempt, now, now, out)


@_mutant("E7", "an eviction compares the renewal that it waited for", "S3", scenario="E3", seed=1)
def _evicts_without_compare(p: Patches) -> None:
    @p.around(transactions, "evict")
    def _(original: Original, *args: Any) -> Txn:
        txn: Txn = original(*args)
        return replace(txn, compare=())


@_mutant("E8", "only a key of this home is a dead predecessor's", "S3", "lease", seed=32)
def _takes_every_key_for_its_predecessors(p: Patches) -> None:
    @p.around(Election, "_look_for_mine")
    def _(original: Original, self: Election, view: View, now: Instant, out: Any) -> None:
        leader = replace(view.leader, home=self.home) if view.leader else None
        original(self, replace(view, leader=leader), now, out)


@_mutant("E9", "no permit comes back to a fenced term", "S9", scenario="P4")
def _grants_again_once_fenced(p: Patches) -> None:
    @p.around(Election, "_on_renewed")
    def _(original: Original, self: Election, answer: ev.Answer, sent_at: Instant, now: Instant, out: Any) -> None:
        if isinstance(self.role, role.Fenced) and answer is ev.Answer.DONE:
            self.role = role.Promoting(self.role.term, self.rules.act_until(sent_at))
            self._step(role.Reconciled(self.role.term), now, out)
        original(self, answer, sent_at, now, out)


@_mutant("E10", "a term that was given up is not adopted from an old view", "S3 S9", scenario="N3b", seed=24)
def _adopts_a_released_term(p: Patches) -> None:
    @p.around(Election, "_owe")
    def _(original: Original, self: Election, term: Term) -> None:
        original(self, term)
        self._released = Term(0)


@_mutant("E11", "a term is given back only when its worker has stopped", "S3", "process", seed=1)
def _resigns_before_the_worker_stopped(p: Patches) -> None:
    @p.around(Election, "_lose")
    def _(original: Original, self: Election, *args: Any, **by: Any) -> None:
        original(self, *args, **by)
        if self.held is not None and self._leaving is not None:
            self._owed = (self.held.term, self._leaving)


@_mutant("E12", "only a journal that is in sync may be elected", "S7")
def _in_sync_is_not_asked(p: Patches) -> None:
    p.replace(InSync, "names", lambda *_: True)


@_mutant("E13", "the journal that leads is the one that was elected", "S7", scenario="P1")
def _leads_with_another_journal(p: Patches) -> None:
    """The keeper does not ask; nor does the worker, which refuses to lead where `insync` does not name it."""

    @p.around(Election, "_still_fit")
    def _(_original: Original, self: Election, _token: Term, _insync: InSync) -> bool:
        return self._worker is not None and isinstance(self.role, role.Standby)

    @p.around(Commitment, "__init__")
    def _(
        original: Original, self: Commitment, me: Member, term: Term, members: Members, *rest: Any, **more: Any
    ) -> None:
        original(self, me, term, {**members, me.node: me.journal}, *rest, **more)


@_mutant("E14", "no vacancy is claimed while an acquire is under way", "S3", scenario="N3")
def _claims_while_its_acquire_is_under_way(p: Patches) -> None:
    @p.around(Election, "_look_for_mine")
    def _(original: Original, self: Election, view: View, now: Instant, out: Any) -> None:
        if view.leader is None:
            self._claim_vacancy_of_mine(view)
        original(self, view, now, out)


@_mutant("E15", "a watch that lags is no restored etcd", "L2", scenario="E4", seed=1)
def _takes_a_slow_watch_for_a_restored_etcd(p: Patches) -> None:
    @p.around(Election, "_check_memory")
    def _(original: Original, self: Election, now: Instant, out: Any) -> None:
        self._behind_since = Instant(now - 2 * self.rules.ttl)
        original(self, now, out)


@_mutant("E16", "while the worker prepares, its answer is waited for", "L2")
def _spins_while_preparing(p: Patches) -> None:
    @p.around(Election, "wake_at")
    def _(original: Original, self: Election) -> Instant | None:
        return original(self) or self._campaign_due()
