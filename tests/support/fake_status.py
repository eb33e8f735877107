"""A StatusSource without a worker: a cluster of three as n1's, n2's or n3's worker would tell it, changed at will."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cluster.clock import boottime_ns

SOME_DAY = 1_795_000_000 * 10**9  # Unix ns
TOKEN = 4182


def published(role: str = "standby", **changed: Any) -> dict[str, Any]:
    word: dict[str, Any] = {
        "at": time.time_ns(),
        "role": role,
        "permission": "allowed" if role == "leader" else "blocked",
        "permission_reason": "" if role == "leader" else "standby",
        "log_index": 1000,
        "commit_index": 1000,
        "applied_index": 1000,
        "lag_entries": None if role == "leader" else 0,
        "lag_s": None if role == "leader" else 0.002,
        "feed_age_s": 0.02,
        "feed_state": "live",
        "digest": "aa11",
        "digest_index": 512,
        "positions": {"BTCUSDT": 3},
        "open_orders": 2,
        "unresolved": 0,
        "last_order_at": SOME_DAY,
    }
    return {**word, **changed}


def member(name: str, role: str = "standby", **status: Any) -> dict[str, Any]:
    n = int(name[1:])
    return {
        "incarnation": f"i{n}",
        "journal_id": f"j{n}",
        "grpc": f"127.0.0.1:744{n}",
        "http": f"127.0.0.1:800{n}",
        "priority": 100,
        "never_lead": False,
        "ready": True,
        "role": role,
        "version": "0.1.0",
        "keeper_pid": 100 + n,
        "worker_pid": 200 + n,
        "status": published(role, **status),
    }


def history() -> list[dict[str, Any]]:
    return [
        {
            "token": 7,
            "node": "n3",
            "came_from": None,
            "cause": "first start",
            "actor": "",
            "started_at": SOME_DAY - 86_400 * 10**9,
            "last_sign": None,
            "phases_s": {"arm": 0.01},
            "rto_s": None,
        },
        {
            "token": TOKEN,
            "node": "n1",
            "came_from": "n3",
            "cause": "process died",
            "actor": "n3",
            "started_at": SOME_DAY,
            "last_sign": SOME_DAY - 10**7,
            "phases_s": {
                "arm": 0.004,
                "catch_up": 0.001,
                "detect": 0.0004,
                "elect": 0.006,
                "first_order": 0.0075,
                "settle": 0.0021,
            },
            "rto_s": 0.0231,
        },
    ]


def detail(**changed: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "version": "0.1.0",
        "gate": {"state": "armed", "armed_token": TOKEN},
        "venue": {"connected": True, "class": "proved", "why": ""},
        "feed": {
            "state": "live",
            "age_s": 0.02,
            "messages": 81_532,
            "gaps": 1,
            "duplicates": 4,
            "reordered": 0,
            "malformed": 0,
            "reconnects": 2,
            "reason": "",
        },
        "strategy": {
            "path": "node.strategies.market_maker:MarketMaker",
            "role": "active",
            "failed": "",
            "fingerprint": "f00",
            "shadow_intents": 0,
            "shadow_matched": 0,
        },
        "counts": {},
        "mismatches": [],
        "latency_s": {"protected": {"p50": 0.0004, "p99": 0.0011}},
        "warnings": [],
    }
    return {**base, **changed}


class FakeStatus:
    """Healthy at first: n1 leads with TOKEN, n2 and n3 in sync, seen from `me`. Change what is in it, or call `stop_*`.

    `picture_age_s`: how long ago the keeper spoke; None: it never did."""

    def __init__(self, me: str = "n1") -> None:
        self.me = me
        self.picture_age_s: float | None = 0.05
        self.leader: dict[str, Any] | None = {
            "node": "n1",
            "token": TOKEN,
            "lease_left_s": 0.75,
            "http": "127.0.0.1:8001",
        }
        self.role = "leader" if me == "n1" else "standby"
        self.members = {"n1": member("n1", "leader"), "n2": member("n2"), "n3": member("n3", log_index=988)}
        self.insync: dict[str, str] = {"n1": "j1", "n2": "j2", "n3": "j3"}
        self.history = history()
        self.own = published(self.role)
        self.details = detail(node=me)
        self.renewing = True  # the words of members change, as a living worker's do
        self.asked: list[tuple[str | None, str]] = []
        self.answer: tuple[bool, str] = (True, "n2 leads now")
        self.answering: Callable[[], Any] | None = None  # awaited before the answer
        self.fail: Exception | None = None
        self.failures = 0

    def picture(self) -> dict[str, Any] | None:
        if self.fail is not None:
            self.failures += 1
            raise self.fail
        if self.picture_age_s is None:
            return None
        if self.renewing:
            for m in self.members.values():
                m["status"] = {**m["status"], "at": time.time_ns()}
        return {
            "cluster": "alpha",
            "node": self.me,
            "role": self.role,
            "etcd_cluster_id": 99,
            "etcd_revision": 5000,
            "leader": self.leader,
            "resigned": None,
            "insync": self.insync,
            "members": self.members,
            "history": self.history,
            "keeper_pid": 101,
            "seen_at": time.time_ns() - round(self.picture_age_s * 1e9),
            "age_s": self.picture_age_s,
        }

    def published(self) -> dict[str, Any]:
        return self.own

    def detail(self) -> dict[str, Any]:
        return {**self.own, **self.details}

    def positions(self) -> list[dict[str, Any]]:
        return [
            {
                "symbol": "BTCUSDT",
                "lots": 3,
                "qty": "0.003",
                "tick_size": "0.01",
                "lot_size": "0.001",
                "last_price": "67250.50",
            }
        ]

    def orders(self) -> list[dict[str, Any]]:
        return [{"client_order_id": "b1z38z5k", "symbol": "BTCUSDT", "side": "buy", "state": "unknown", "qty": "0.001"}]

    async def switchover(self, target: str | None, actor: str) -> tuple[bool, str]:
        self.asked.append((target, actor))
        if self.answering is not None:
            await self.answering()
        return self.answer

    def hand_over_to_n2(self) -> None:
        """n2 leads with a higher token; seen from n1 that is a lost leadership."""
        self.leader = {"node": "n2", "token": TOKEN + 9, "lease_left_s": 0.9, "http": "127.0.0.1:8002"}
        self.members["n1"] = member("n1")
        self.members["n2"] = member("n2", "leader")
        self.role = "leader" if self.me == "n2" else "standby"
        self.own = published(self.role)


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait until it holds. Raises TimeoutError."""
    end = boottime_ns() + round(limit_s * 1e9)
    while not condition():
        if boottime_ns() > end:
            raise TimeoutError(f"not within {limit_s} s")
        await asyncio.sleep(0.01)
