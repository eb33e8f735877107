"""Sends what a node writes into etcd, and says what happened; decides nothing.

What leadership rests on is made in `transactions.py`; what only informs, and operators' requests, is made here. A lost
reply is `Answer.UNKNOWN`, never "no". Read next: `transactions.py`, `keeper.py` (who calls this).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog

from . import keys as k
from .clock import boottime_ns, unix_ns
from .core import actions as act
from .core.errors import BatonError, OutcomeUnknown, StaleTerm, Unreachable
from .core.events import Answer
from .core.ids import Instant
from .etcd import (
    EtcdClient,
    EtcdRefused,
    Snapshot,
    TlsFiles,
    Txn,
    TxnResult,
    absent,
    delete,
    mod_revision,
    put,
)
from .home import Home
from .mirror import Mirror
from .spec import KeeperSpec
from .transactions import (
    INSYNC_UNKNOWN,
    Dates,
    Identity,
    InSyncOutcome,
    change_insync,
    insync_outcome,
    latch_found,
    read_latch,
    tries,
)

log = structlog.get_logger()

ANSWER_TTL_S = 60
"""How long the answer to an operator's request stays."""
REQUEST_TTL_S = 5
"""How long a request stays that nobody takes: about as long as somebody waits for its answer."""

SETTLE_S = 0.1
"""What only informs waits so long after a change. A takeover is a burst of changes, and each put is a sync on every
etcd member's disk, and a watch to every keeper, in the way of the orders that should flow again."""

_SLOW_S = 1.0  # for calls that nobody's lease waits for
_FORGET_MAX = 64  # etcd takes 128 operations in one transaction


def etcd_client(spec: Mapping[str, Any]) -> EtcdClient:
    """spec: EtcdClient's arguments as JSON; tls as a table of file names. Inside a running loop."""
    arguments = dict(spec)
    tls = arguments.pop("tls", None)
    return EtcdClient(
        arguments.pop("endpoints"),
        tls=_tls_files(tls) if tls else None,
        rng=random.Random(secrets.randbits(64)),
        **arguments,
    )


def _tls_files(names: Mapping[str, str]) -> TlsFiles:
    def path(name: str) -> Path | None:
        return Path(names[name]) if names.get(name) else None

    return TlsFiles(path("ca"), path("cert"), path("key"), names.get("server_name"))


class Registry:
    """timeout_s: of each transaction that the lease hangs on."""

    def __init__(self, etcd: EtcdClient, keys: k.Keys, me: Identity, timeout_s: float) -> None:
        self.etcd = etcd
        self.keys = keys
        self.me = me
        self.timeout_s = timeout_s

    # -- what leadership rests on ------------------------------------------------------------------------------

    async def carry_out(
        self, request: act.EtcdRequest, *, last_sign: int = 0, renewal_seen: Instant | None = None
    ) -> tuple[Answer, int]:
        """(answer, etcd's revision). last_sign, renewal_seen: as in `Dates`."""
        try:
            return await self.try_all(request, last_sign=last_sign, renewal_seen=renewal_seen)
        except (OutcomeUnknown, Unreachable):
            return Answer.UNKNOWN, 0
        except EtcdRefused as e:
            log.warning("etcd_refused", request=type(request).__name__, reason=str(e))
            return Answer.REFUSED, 0

    async def try_all(
        self, request: act.EtcdRequest, *, last_sign: int = 0, renewal_seen: Instant | None = None
    ) -> tuple[Answer, int]:
        """As `carry_out`, but raises what EtcdClient.txn raises."""
        dates = Dates(unix_ns(), Instant(boottime_ns()), last_sign, renewal_seen)
        revision = 0
        for txn in tries(self.keys, self.me, request, dates):
            answer = await self._send(txn)
            if answer.succeeded:
                return Answer.DONE, answer.revision
            revision = answer.revision
        return Answer.REFUSED, revision

    async def change_insync(self, term: int, members: Mapping[str, str], expected_revision: int) -> InSyncOutcome:
        """Only while `term` still leads, and nobody has changed the set since `expected_revision`."""
        try:
            answer = await self._send(change_insync(self.keys, term, members, expected_revision))
        except (Unreachable, OutcomeUnknown) as e:
            log.warning("insync_change_unknown", term=term, reason=str(e))
            return INSYNC_UNKNOWN
        except EtcdRefused as e:
            log.error("insync_change_failed", term=term, reason=str(e))
            return INSYNC_UNKNOWN
        return insync_outcome(members, answer)

    async def _send(self, txn: Txn) -> TxnResult:
        return await self.etcd.txn(txn.compare, txn.success, txn.failure, timeout_s=self.timeout_s)

    # -- the kill latch ----------------------------------------------------------------------------------------

    async def read_latch(self, term: int) -> str | None:
        """Why it is set, None: it is not, by a linearizable read that finds `term` leading. Raises StaleTerm if another
        one does, and what EtcdClient.txn raises."""
        answer = await self._send(read_latch(self.keys, term))
        if not answer.succeeded:
            raise StaleTerm(f"term {term} does not lead any more")
        return latch_found(answer)

    async def put_latch(self, reason: str, actor: str) -> None:
        """Set it. To be followed by the gate's own halt: from then on no new order is accepted, from anybody.
        Raises what EtcdClient.put raises."""
        await self.etcd.put(self.keys.halt, k.dump(reason=reason, actor=actor, at=unix_ns()), timeout_s=_SLOW_S)

    async def clear_latch(self) -> None:
        """Raises what EtcdClient.delete raises."""
        await self.etcd.delete(self.keys.halt, timeout_s=_SLOW_S)

    # -- what only informs ----------------------------------------------------------------------------------------

    async def put_member(self, lease_id: int, fields: Mapping[str, Any]) -> None:
        """Raises what EtcdClient.put raises."""
        value = k.dump(**fields)
        if len(value) > k.VALUE_MAX:  # nobody would read it, and this node could not be elected
            value = k.dump(**{**fields, "status": {"too_long_bytes": len(value)}})
        await self.etcd.put(self.keys.member(self.me.node), value, lease=lease_id, timeout_s=self.timeout_s)

    async def put_history(self, record: Mapping[str, Any]) -> None:
        await self._quietly("history_not_written", self.keys.history_of(int(record["token"])), k.dump(**record))

    async def forget(self, names: Sequence[str]) -> None:
        """Delete what nobody will ask for any more; at most _FORGET_MAX now, the rest another time."""
        if not names:
            return
        try:
            await self.etcd.txn([], [delete(name) for name in names[:_FORGET_MAX]], timeout_s=_SLOW_S)
        except BatonError as e:
            log.warning("not_forgotten", keys=len(names), reason=str(e))

    async def ask_switchover(self, request_id: str, target: str | None, actor: str) -> bool:
        """Leave the request for whoever leads; False: another one waits. One that nobody takes goes away by itself.
        Raises what EtcdClient.txn raises."""
        value = k.dump(id=request_id, target=target, actor=actor, at=unix_ns())
        lease = await self.etcd.lease_grant(REQUEST_TTL_S, timeout_s=_SLOW_S)
        request = put(self.keys.switchover, value, lease=lease.id)
        return (await self.etcd.txn([absent(self.keys.switchover)], [request], timeout_s=_SLOW_S)).succeeded

    async def answer_switchover(self, request_id: str, ok: bool, text: str) -> None:
        try:
            lease = await self.etcd.lease_grant(ANSWER_TTL_S, timeout_s=_SLOW_S)
        except BatonError as e:
            log.warning("answer_not_written", request=request_id, reason=str(e))
            return
        await self._quietly("answer_not_written", self.keys.answer(request_id), k.dump(ok=ok, text=text), lease.id)

    async def take_switchover(self, seen: int) -> bool:
        """Take the request of mod_revision `seen` away; only who did acts on it, so that it is acted on once.

        (Deleted after the fact, it might outlive the delete and be found by the new leader, who would hand back.)"""
        key = self.keys.switchover
        try:
            done = await self.etcd.txn([mod_revision(key) == seen], [delete(key)], timeout_s=_SLOW_S)
        except (Unreachable, OutcomeUnknown, EtcdRefused) as e:
            log.warning("request_not_taken", reason=str(e))
            return False
        return done.succeeded

    async def _quietly(self, event: str, key: str, value: bytes, lease: int = 0) -> None:
        for _ in range(3):
            try:
                await self.etcd.put(key, value, lease=lease, timeout_s=_SLOW_S)
                return
            except BatonError as e:
                log.warning(event, key=key, reason=str(e))


async def read_mirror(etcd: EtcdClient, keys: k.Keys, ttl: int, timeout_s: float) -> Mirror:
    """The cluster's keys as they are at one revision, for who does not watch. ttl: ns, of this node. Raises as
    EtcdClient.range."""
    found = await etcd.range(keys.prefix, prefix=True, timeout_s=timeout_s)
    mirror = Mirror(keys, ttl)
    mirror.apply(Snapshot(found.kvs, found.revision), found.cluster_id)
    return mirror


async def resign_dead(spec: KeeperSpec) -> str:
    """For systemd's ExecStopPost: prove by the lock that keeper and worker are dead, and resign for them.

    Returns what was done, for people. Raises HomeBusy when something of the node is still alive, BatonError when etcd
    cannot be reached.
    """
    keys, node, ttl = k.Keys(spec.cluster), spec.node, int(spec.rules["ttl"])
    with closing(Home.open(Path(spec.data_dir))) as home:
        async with etcd_client(spec.etcd) as etcd:
            view = (await read_mirror(etcd, keys, ttl, _SLOW_S)).view
            last = view.leader or view.tenure
            if last is None or last.home != home.id:
                return f"{node} did not lead"
            over = f"token {last.token} was over already"
            if view.leader is None and view.ended_properly:  # as after a clean stop; its successor must stay named
                return over
            registry = Registry(etcd, keys, Identity(node, "", home.id, ttl), _SLOW_S)
            request = act.Resign(0, last.token, "process died", node, None)
            answer, _ = await registry.try_all(request, last_sign=unix_ns())
            return f"resigned token {last.token} for {node}" if answer is Answer.DONE else over
