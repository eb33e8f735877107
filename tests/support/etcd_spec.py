"""EtcdSpec with the face of EtcdClient, for tests that run against either."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.sim.etcd import EtcdSpec
from cluster.core.ids import Instant, ns
from cluster.etcd import Compare, GrantedLease, Op, OpResult, RangeResult, TxnResult


class Clock:
    def __init__(self) -> None:
        self.now = Instant(0)

    def __call__(self) -> Instant:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now = Instant(self.now + ns(seconds))


class SpecClient:
    def __init__(self, etcd: EtcdSpec) -> None:
        self.etcd = etcd

    async def txn(self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        return self.etcd.txn(compare, success, failure)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        return self.etcd.put(key, value, lease)

    async def delete(self, key: str, *, prefix: bool = False) -> OpResult:
        return self.etcd.delete(key, prefix=prefix)

    async def range(self, key: str, *, prefix: bool = False, limit: int = 0) -> RangeResult:
        return self.etcd.range(key, prefix=prefix, limit=limit)

    async def lease_grant(self, ttl_s: int) -> GrantedLease:
        return self.etcd.lease_grant(ttl_s)

    async def lease_keep_alive(self, lease_id: int) -> int:
        return self.etcd.lease_keep_alive(lease_id)

    async def lease_revoke(self, lease_id: int) -> None:
        self.etcd.lease_revoke(lease_id)
