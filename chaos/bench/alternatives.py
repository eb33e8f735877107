"""What an order could be protected with instead, measured in the same run on the same machine (DESIGN 12).

Each function returns a Row with one sample per operation. Real servers: a three-member etcd, two Redis, a gRPC server
process; all on loopback, started here and stopped here.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import redis.asyncio
import uvloop

from chaos.bench.stats import Row
from cluster.etcd import EtcdClient
from node.local.servers import start_etcd, start_redis
from node.redis_gate import RedisGate

ETCD = "etcd put (3 members)"
GATE = "gate claim alone (AOF always)"
REDIS_WAIT = "Redis SET + WAIT 1 (AOF always)"
GRPC = "gRPC stream round trip + fdatasync"
WRITERS = 64
WARMUP = 100
BODY = b"x" * 100  # about an intent


async def timed(n: int, call: Callable[[int], Awaitable[Any]]) -> list[int]:
    """ns of each of `n` calls, one after the other, after a warm-up."""
    for i in range(WARMUP):
        await call(-1 - i)
    samples = []
    for i in range(n):
        begun = time.perf_counter_ns()
        await call(i)
        samples.append(time.perf_counter_ns() - begun)
    return samples


async def rate(n: int, call: Callable[[int], Awaitable[Any]]) -> float:
    """Calls per second when WRITERS make `n` of them, each one after the other."""

    async def writer(w: int) -> None:
        for i in range(w, n, WRITERS):
            await call(i)

    begun = time.perf_counter_ns()
    async with asyncio.TaskGroup() as tasks:
        for w in range(WRITERS):
            tasks.create_task(writer(w))
    return n / (time.perf_counter_ns() - begun) * 1e9


def wake_up(n: int) -> Row:
    """What this machine takes to wake one process from another, twice: no way to a standby and back takes less."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        while message := there.recv(16):
            there.send(message)
        os._exit(0)
    samples = []
    for _ in range(n):
        begun = time.perf_counter_ns()
        here.send(b"x")
        here.recv(16)
        samples.append(time.perf_counter_ns() - begun)
    here.shutdown(socket.SHUT_RDWR)
    os.waitpid(pid, 0)
    return Row("socket pair round trip, two processes", samples)


def etcd_put(directory: Path, n: int) -> list[Row]:
    servers = start_etcd(directory / "etcd", members=3)
    try:

        async def measure() -> list[Row]:
            async with EtcdClient(servers.endpoints, call_timeout_s=2.0) as etcd:
                alone = await timed(n, lambda i: etcd.put("/bench", BODY))
                return [
                    Row(ETCD, alone),
                    Row(f"{ETCD}, {WRITERS} at once", per_s=await rate(4 * n, lambda i: etcd.put(f"/bench{i}", BODY))),
                ]

        return uvloop.run(measure())
    finally:
        servers.stop()


def bare_gate(directory: Path, n: int) -> Row:
    server = start_redis(directory / "gate")
    try:

        async def measure() -> list[int]:
            gate = RedisGate(server.url, cluster="bench", holder="bench", timeout_s=2.0, claim_ttl_s=60)
            await gate.connect()
            await gate.arm(1)
            await gate.note_latch(1, None)

            async def claim(i: int) -> None:
                (got,) = await gate.claim_many(1, [f"bench{i}"])
                if not got.ok:
                    raise RuntimeError(f"the gate refused bench{i}: {got}")

            samples = await timed(n, claim)
            await gate.close()
            return samples

        return Row(GATE, uvloop.run(measure()))
    finally:
        server.stop()


def redis_wait(directory: Path, n: int) -> list[Row]:
    """SET then WAIT 1, with appendfsync always on both: acknowledged by one replica (which may not have synced)."""
    primary = start_redis(directory / "primary")
    replica = start_redis(directory / "replica")
    try:
        host, port = primary.url.removeprefix("redis://").split("/")[0].split(":")

        async def measure() -> list[Row]:
            second = redis.asyncio.Redis.from_url(replica.url)
            await second.replicaof(host, port)
            first = redis.asyncio.Redis.from_url(primary.url)
            deadline = time.monotonic() + 10
            while (await second.info("replication")).get("master_link_status") != "up":
                if time.monotonic() > deadline:
                    raise TimeoutError("the Redis replica did not connect within 10 s")
                await asyncio.sleep(0.05)

            async def write(i: int) -> None:
                pipe = first.pipeline(transaction=False)
                pipe.set(f"bench{i}", BODY)
                pipe.execute_command("WAIT", 1, 1000)
                await pipe.execute()

            rows = [
                Row(REDIS_WAIT, await timed(n, write)),
                Row(f"{REDIS_WAIT}, {WRITERS} at once", per_s=await rate(4 * n, write)),
            ]
            await first.aclose()
            await second.aclose()
            return rows

        return uvloop.run(measure())
    finally:
        replica.stop()
        primary.stop()


# -- the floor: a gRPC stream round trip to another process that syncs before it answers ---------------------


def _echo_server(path: str, ready: Connection) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for message in requests:
            os.write(fd, message)
            os.fdatasync(fd)
            yield b"ok"

    async def serve() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
        ready.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    uvloop.run(serve())


def grpc_floor(directory: Path, n: int) -> Row:
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=_echo_server, args=(str(directory / "echo"), there), daemon=True
    )
    server.start()
    try:
        if not here.poll(10):
            raise TimeoutError("the echo server did not start within 10 s")
        port = here.recv()

        async def measure() -> list[int]:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stream = channel.stream_stream("/bench.Echo/Echo")()

                async def trip(_i: int) -> None:
                    await stream.write(BODY)
                    await stream.read()

                samples = await timed(n, trip)
                await stream.done_writing()
                return samples

        return Row(GRPC, uvloop.run(measure()))
    finally:
        server.kill()
        server.join()
