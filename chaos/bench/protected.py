"""What protection adds to one order: committed here and on one standby, and claimed at the gate, side by side.

The standby is another process and Redis a real one with appendfsync always; the keeper's part is played as in
`replication.py`. From the append to the moment at which the order may be sent.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from chaos.bench.replication import BODY, KIND, Leader, standby
from cluster.clock import unix_ns
from node.local.servers import start_redis
from node.redis_gate import GateClaimer, RedisGate

TOKEN = 1


async def measure(directory: Path, count: int, *, writers: int = 1, with_gate: bool = True) -> tuple[list[int], float]:
    """(ns per order, orders per second) of `count` orders by `writers` at once, after a tenth as warm-up."""
    redis = start_redis(directory / "redis")
    leader = Leader(directory)
    took: list[int] = []
    try:
        gate = RedisGate(redis.url, cluster="bench", holder="bench", timeout_s=2.0, claim_ttl_s=60)
        await gate.connect()
        await gate.arm(TOKEN)
        await gate.note_latch(TOKEN, None)
        claimer = GateClaimer(gate, TOKEN)
        serving = asyncio.create_task(claimer.run())
        address = await leader.start()

        async def order() -> None:
            entry = leader.log.append(KIND, BODY, unix_ns())
            claim = claimer.claim(f"b{entry.index}") if with_gate else None
            await leader.log.wait_committed(entry.index)
            if claim is not None and not (await claim).ok:
                raise RuntimeError(f"the gate refused b{entry.index}")

        async def writer(n: int) -> None:
            for _ in range(n):
                at = time.perf_counter_ns()
                await order()
                took.append(time.perf_counter_ns() - at)

        async with standby(directory, address):
            await leader.wait_in_sync()
            await writer(count // 10)
            took.clear()
            begun = time.perf_counter_ns()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(writers):
                    tasks.create_task(writer(count // writers))
            rate = len(took) / (time.perf_counter_ns() - begun) * 1e9
        serving.cancel()
        await gate.close()
    finally:
        await leader.stop()
        redis.stop()
    return took, rate
