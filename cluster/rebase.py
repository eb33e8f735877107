"""Makes an etcd that was restored or replaced the one that a stopped node's journal belongs to.

Touches the node's journal and etcd; decides nothing (`core/rebase.py` does, and says why it is safe). Whoever calls
holds the node's home and its journal from before the look until after the deed, so nothing of the node runs meanwhile.

    look -> a person agrees -> carry_out: etcd first, the journal second

A journal that takes an etcd for its own is what lets its node run there, so that comes last: broken off anywhere, the
node still stops as before, and doing it all again completes it.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from . import keys as k
from .core import actions as act
from .core.errors import OutcomeUnknown
from .core.ids import NS_PER_S, NodeId, Term
from .core.lease import View
from .core.rebase import End, Kept, Plan, Rebased, RebaseRefused, plan
from .etcd import EtcdClient
from .home import Home
from .journal import Journal
from .registry import Registry, etcd_client, read_mirror
from .spec import KeeperSpec
from .transactions import Identity, rebase

_TIMEOUT_S = 2.0


class Found(NamedTuple):
    """rebased: as etcd has it."""

    view: View
    rebased: Rebased
    mine: Kept
    plan: Plan


def kept(spec: KeeperSpec, journal: Journal) -> Kept:
    last = journal.last
    end = End(last.term, last.index)
    return Kept(NodeId(spec.node), journal.journal_id, end, journal.highest_term, journal.etcd_cluster_id)


async def look(spec: KeeperSpec, mine: Kept, *, lead: bool) -> Found:
    """What there is, and what is to be done. Changes nothing. Raises RebaseRefused; BatonError as EtcdClient.range."""
    keys = k.Keys(spec.cluster)
    async with etcd_client(spec.etcd) as etcd:
        mirror = await read_mirror(etcd, keys, int(spec.rules["ttl"]), _TIMEOUT_S)
    rebased = k.rebased_of(mirror.raw.get(keys.rebased))
    return Found(mirror.view, rebased, mine, plan(mirror.view, rebased, mine, lead=lead))


async def carry_out(spec: KeeperSpec, home: Home, journal: Journal, found: Found, actor: str) -> None:
    """Do `found.plan`. Raises RebaseRefused if etcd is not as it was found, and as EtcdClient.txn and
    Journal.set_etcd_cluster_id. To be done again then: a part of it may have happened, and does no harm."""
    to = found.plan.rebased
    async with etcd_client(spec.etcd | {"cluster_id": found.plan.cluster_id}) as etcd:
        me = Identity(spec.node, "", home.id, int(spec.rules["ttl"]))
        registry = Registry(etcd, k.Keys(spec.cluster), me, _TIMEOUT_S)
        if to is not None and to.lead is not None and found.view.tenure is not None and not found.view.ended_properly:
            # Should its leader run after all: `leader` was absent in the look and is so in `_write`, so no renewal came
            # between, and a ttl after the look its permit has ended.
            await asyncio.sleep(found.view.tenure.ttl / NS_PER_S)
        revision = await _write(etcd, registry, found, to) if to is not None else 0
        await journal.set_etcd_cluster_id(found.plan.cluster_id)
        if to is not None and to.lead is not None:
            # Nobody has to wait for a tenure in which nobody acted. A matter of comfort: after a ttl it goes without.
            await registry.carry_out(act.Resign(0, Term(revision), "etcd rebased", actor, None))


async def _write(etcd: EtcdClient, registry: Registry, found: Found, to: Rebased) -> int:
    """The revision in which `to` stands."""
    txn = rebase(registry.keys, registry.me, found.mine.journal_id, found.view, to)
    try:
        answer = await etcd.txn(txn.compare, txn.success, timeout_s=_TIMEOUT_S)
    except OutcomeUnknown as e:
        raise OutcomeUnknown(f"{e}. It may be done or not: run this again") from e
    if not answer.succeeded:
        raise RebaseRefused("the cluster's keys in etcd changed meanwhile: stop all nodes, and run this again")
    return answer.revision
