"""What a node writes into etcd, one transaction each (DESIGN 4). Says what happened; decides nothing.

Every write that means something compares what it rests on, so a late or repeated one does nothing. A lost reply is
`Answer.UNKNOWN`, never "no". Read next: `keys.py` (the values), `keeper.py` (who calls this).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from . import keys as k
from .clock import boottime_ns, unix_ns
from .core import actions as act
from .core.errors import BatonError, OutcomeUnknown, Unreachable
from .core.events import Answer
from .core.ids import Instant
from .etcd import (
    EtcdClient,
    EtcdRefused,
    Op,
    TlsFiles,
    absent,
    create_revision,
    delete,
    get,
    mod_revision,
    put,
)
from .home import Home
from .spec import KeeperSpec

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


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes. ttl: ns."""

    node: str
    incarnation: str
    home: str
    ttl: int

    @property
    def ttl_ms(self) -> int:
        return self.ttl // 1_000_000


@dataclass(frozen=True, slots=True)
class InSyncOutcome:
    """outcome: done, refused or unknown; for refused, members and revision are what stands now."""

    outcome: str
    members: dict[str, str]
    revision: int


class Registry:
    """timeout_s: of each transaction that the lease hangs on."""

    def __init__(self, etcd: EtcdClient, keys: k.Keys, me: Identity, timeout_s: float) -> None:
        self.etcd = etcd
        self.keys = keys
        self.me = me
        self.timeout_s = timeout_s
        self.addresses = {"grpc": "", "http": ""}

    # -- the lease -------------------------------------------------------------------------------------------

    async def carry_out(
        self, request: act.EtcdRequest, *, last_sign: int = 0, renewal_seen: Instant | None = None
    ) -> tuple[Answer, int]:
        """(answer, etcd's revision). last_sign: Unix ns of our own last sign of life, for a resignation. renewal_seen:
        when the renewal of the leader to be evicted was first seen. Neither decides anything: they date the record."""
        try:
            match request:
                case act.Acquire():
                    return await self._acquire(request)
                case act.Renew():
                    return await self._renew(request)
                case act.Evict():
                    return await self._evict(request, renewal_seen)
                case act.Resign():
                    return await self.resign(request.token, request.reason, request.actor, request.successor, last_sign)
        except (OutcomeUnknown, Unreachable):
            return Answer.UNKNOWN, 0
        except EtcdRefused as e:
            log.warning("etcd_refused", request=type(request).__name__, reason=str(e))
            return Answer.REFUSED, 0

    async def _txn(self, compare: list[Any], success: list[Op]) -> tuple[Answer, int]:
        done = await self.etcd.txn(compare, success, timeout_s=self.timeout_s)
        return (Answer.DONE if done.succeeded else Answer.REFUSED), done.revision

    async def _acquire(self, request: act.Acquire) -> tuple[Answer, int]:
        keys = self.keys
        return await self._txn(
            [
                absent(keys.leader),
                mod_revision(keys.tenure) == request.tenure_seen,
                mod_revision(keys.insync) == request.insync_seen,
            ],
            [
                put(keys.leader, self._leader(request.attempt, 0), lease=request.lease_id),
                put(keys.tenure, self._tenure()),
                put(keys.insync, k.dump(members=dict(request.members))),
            ],
        )

    async def _renew(self, request: act.Renew) -> tuple[Answer, int]:
        return await self._txn(
            [create_revision(self.keys.leader) == request.token],
            [put(self.keys.leader, self._leader(request.attempt, request.renewal), lease=request.lease_id)],
        )

    async def _evict(self, request: act.Evict, renewal_seen: Instant | None) -> tuple[Answer, int]:
        last_sign = unix_ns() - (boottime_ns() - renewal_seen) if renewal_seen is not None else 0
        resigned = self._resigned(request.token, "evicted", self.me.node, None, last_sign)
        return await self._txn(
            [mod_revision(self.keys.leader) == request.mod_revision], [delete(self.keys.leader), resigned]
        )

    async def resign(
        self, token: int, reason: str, actor: str, successor: str | None, last_sign: int
    ) -> tuple[Answer, int]:
        """DONE also when the key had vanished and the tenure was still ours: then nobody has to wait for it."""
        resigned = self._resigned(token, reason, actor, successor, last_sign)
        keys = self.keys
        answer, revision = await self._txn([create_revision(keys.leader) == token], [delete(keys.leader), resigned])
        if answer is Answer.REFUSED:
            answer, revision = await self._txn([absent(keys.leader), mod_revision(keys.tenure) == token], [resigned])
        return answer, revision

    def _resigned(self, token: int, reason: str, actor: str, successor: str | None, last_sign: int) -> Op:
        """last_sign: Unix ns of the old leader's last sign of life, where RTO starts; 0: not known."""
        value = k.dump(token=token, reason=reason, actor=actor, successor=successor, at=unix_ns(), last_sign=last_sign)
        return put(self.keys.resigned, value)

    def _leader(self, attempt: int, renewal: int) -> bytes:
        me = self.me
        return k.dump(
            node=me.node,
            incarnation=me.incarnation,
            home=me.home,
            attempt=attempt,
            ttl_ms=me.ttl_ms,
            renewal=renewal,
            **self.addresses,
        )

    def _tenure(self) -> bytes:
        me = self.me
        return k.dump(node=me.node, incarnation=me.incarnation, home=me.home, ttl_ms=me.ttl_ms)

    # -- the in-sync set ---------------------------------------------------------------------------------------

    async def change_insync(self, term: int, members: Mapping[str, str], expected_revision: int) -> InSyncOutcome:
        """Only while `term` still leads, and nobody has changed the set since `expected_revision`."""
        keys = self.keys
        try:
            done = await self.etcd.txn(
                [create_revision(keys.leader) == term, mod_revision(keys.insync) == expected_revision],
                [put(keys.insync, k.dump(members=dict(members)))],
                [get(keys.insync)],
                timeout_s=self.timeout_s,
            )
        except (Unreachable, OutcomeUnknown) as e:
            log.warning("insync_change_unknown", term=term, reason=str(e))
            return InSyncOutcome("unknown", {}, 0)
        except EtcdRefused as e:
            log.error("insync_change_failed", term=term, reason=str(e))
            return InSyncOutcome("unknown", {}, 0)
        if done.succeeded:
            return InSyncOutcome("done", dict(members), done.revision)
        kvs = done.responses[0].kvs
        stands = k.insync_of(k.RawKey(kvs[0].value, kvs[0].create_revision, kvs[0].mod_revision) if kvs else None)
        return InSyncOutcome("refused", {str(n): str(j) for n, j in stands.members.items()}, stands.mod_revision)

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


async def resign_dead(spec: KeeperSpec) -> str:
    """For systemd's ExecStopPost: prove by the lock that keeper and worker are dead, and resign for them.

    Returns what was done, for people. Raises HomeBusy when something of the node is still alive, BatonError when etcd
    cannot be reached.
    """
    keys, node, ttl = k.Keys(spec.cluster), spec.node, int(spec.rules["ttl"])
    with closing(Home.open(Path(spec.data_dir))) as home:
        async with etcd_client(spec.etcd) as etcd:
            found = await etcd.range(keys.prefix, prefix=True, timeout_s=_SLOW_S)
            raw = {kv.key: k.RawKey(kv.value, kv.create_revision, kv.mod_revision) for kv in found.kvs}
            view = k.view_of(keys, raw, found.revision, found.cluster_id, ttl)
            last = view.leader or view.tenure
            if last is None or last.home != home.id:
                return f"{node} did not lead"
            over = f"token {last.token} was over already"
            if view.leader is None and view.ended_properly:  # as after a clean stop; its successor must stay named
                return over
            registry = Registry(etcd, keys, Identity(node, "", home.id, ttl), _SLOW_S)
            answer, _ = await registry.resign(last.token, "process died", node, None, unix_ns())
            return f"resigned token {last.token} for {node}" if answer is Answer.DONE else over
