"""Events in any order, also such as cannot come: the machine keeps its invariants."""

from __future__ import annotations

import random

from cluster.core import actions as act
from cluster.core import events as ev
from cluster.core.events import Answer
from cluster.core.ids import JournalId, LogIndex, NodeId, Term
from cluster.core.lease import InSync
from tests.support.election_driver import (
    INSYNC,
    Node,
    T,
    draining,
    fenced,
    key,
    leader,
    promoting,
    resigned,
    standby,
    tenure,
    view,
)


def _anything(rng: random.Random, n: Node, revision: int) -> ev.Event:
    token = rng.choice([Term(0), Term(90), T, Term(101), Term(revision)])
    leader = rng.choice(
        [None, key(token, "n1", attempt=rng.randint(1, 9)), key(token, "n2"), key(token, "n1", inc="n1.0")]
    )
    v = view(
        max(1, revision + rng.randint(-3, 3)),
        leader=leader,
        tenure=rng.choice([None, tenure(token, rng.choice(["n1", "n2"]))]),
        resigned=rng.choice([None, resigned(token)]),
        insync=rng.choice([InSync(), INSYNC]),
    )
    request = rng.choice([n.e._request, n.e._request - 1, n.e._renewing[0] if n.e._renewing else 0])
    term = n.e.held.term if n.e.held else token
    usual = [
        ev.Answered(request, Answer.DONE, revision),
        ev.WorkerHello(JournalId("n1-j"), LogIndex(1), Term(0), 0xC1),
        ev.EtcdLease(12),
        ev.WorkerPrepared(Term(revision)),
        ev.WorkerReconciled(term),
        ev.WorkerSettled(term),
        ev.WorkerStopped(term),
        ev.Tick(n.now),
    ]
    unusual = [
        ev.ViewSeen(v),
        ev.Answered(request, rng.choice(list(Answer)), revision),
        ev.EtcdLease(None),
        ev.WorkerHello(JournalId("n1-j"), LogIndex(1), token, 0xC1),
        ev.WorkerReconciled(token),
        ev.WorkerSettled(token),
        ev.WorkerStopped(token),
        ev.WorkerAsksToStepDown(token, "x"),
        ev.WorkerExited("x"),
        ev.SwitchoverAsked(rng.choice([None, NodeId("n3"), NodeId("n9")]), "ann", "r"),
        ev.ShutdownAsked("x") if rng.random() < 0.1 else ev.Tick(None),
    ]
    return rng.choice(usual if rng.random() < 0.7 else unusual)


def test_whatever_comes_in_whatever_order_it_keeps_its_invariants() -> None:
    """Also what cannot come: a shell with a mistake must not make the machine do something dangerous."""
    led = 0
    for seed in range(400):
        rng = random.Random(f"anything/{seed}")
        n, revision, ended = rng.choice([standby, promoting, leader, draining, fenced])(), 110, set[Term]()
        busy: int | None = None
        for _ in range(80):
            revision += rng.randint(0, 3)
            before, held = n.permit, n.e.held
            e = _anything(rng, n, revision)
            if isinstance(e, ev.Answered) and e.request == busy:
                busy = None
            out = n.feed(e, rng.choice([0, 1, 1, 10, 10, 60, 60, 200, 500]))
            told = [a for a in out if not isinstance(a, act.Note)]
            for a in told:
                if isinstance(a, act.WritePermit):
                    assert n.state == "Leader", seed
                    assert a.permit.token not in ended, seed
                    assert n.e.held is not None, seed
                if isinstance(a, act.Acquire | act.Evict | act.Resign):
                    assert busy is None, seed
                    busy = a.request
                if isinstance(a, act.Renew):
                    assert n.state in ("Promoting", "Leader", "Draining"), seed
            if before is not None and n.permit is None:
                assert type(told[0]) is act.ClearPermit, (seed, e, out)
                ended.add(before.token)
            if n.permit is not None:
                assert n.state == "Leader" or n.e._stopped, seed
                led += 1
            if n.state in ("Promoting", "Leader", "Draining", "Fenced"):
                assert n.e.held is not None, (seed, held)
            else:
                assert n.e.held is None, seed
            wake = n.e.wake_at()
            if isinstance(e, ev.Tick) and wake is not None:
                assert wake > n.now, (seed, e)
    assert led > 500, "and it did lead"
