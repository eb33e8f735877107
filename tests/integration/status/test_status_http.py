"""The status server over real HTTP on loopback: routes, refusals, streams, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import time
from typing import Any

import pytest
import uvloop

from cluster.clock import boottime_ns
from cluster.core.errors import ConfigError
from node.status import summary
from node.status.http import BODY_MAX, StatusServer
from node.telemetry import Telemetry
from tests.integration.status.conftest import Serve
from tests.support.fake_status import TOKEN, FakeStatus, published, until
from tests.support.http_client import EventStream, open_events, request

JSON = {"Content-Type": "application/json"}
READ_ROUTES = ["/v1/status", "/v1/positions", "/v1/orders", "/v1/history", "/v1/node", "/v1/events", "/metrics", "/"]
HEALTH = {
    "/leader": (200, 503),
    "/primary": (200, 503),
    "/lease": (200, 503),
    "/standby": (503, 200),
    "/in-sync": (200, 200),
    "/livez": (200, 200),
    "/liveness": (200, 200),
    "/readyz": (200, 200),
    "/readiness": (200, 200),
}


@pytest.mark.parametrize("path", HEALTH)
async def test_health_on_leader_and_standby(serve: Serve, path: str):
    for me, expected in zip(("n1", "n2"), HEALTH[path], strict=True):
        async with serve(FakeStatus(me)) as server:
            for method in ("GET", "HEAD", "OPTIONS"):
                answer = await request(server.address, method, path)
                assert answer.status == expected, (me, method, answer)
                assert answer.headers["cache-control"] == "no-store"
                if method == "GET":
                    said = answer.json()
                    assert said["ok"] is (expected == 200) and said["why"] and said["node"] == me
                else:
                    assert answer.body == b""


async def test_nothing_known_is_never_200(serve: Serve):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        for age in (None, 30.0):
            fake.picture_age_s = age
            for path in HEALTH:
                assert (await request(server.address, "GET", path)).status == 503, path


async def test_leader_that_is_blocked_holds_the_lease_and_is_not_the_place_for_orders(serve: Serve):
    fake = FakeStatus("n1")
    fake.own = published("leader", permission="blocked", permission_reason="gate: halted")
    async with serve(fake) as server:
        answer = await request(server.address, "GET", "/leader")
        assert answer.status == 503 and answer.json()["why"] == "leads; trading is blocked: gate: halted"
        assert (await request(server.address, "GET", "/lease")).status == 200


async def test_standby_lag_and_in_sync(serve: Serve):
    fake = FakeStatus("n2")
    fake.own = published(log_index=990, lag_entries=10)
    async with serve(fake) as server:
        assert (await request(server.address, "GET", "/standby?lag=10")).status == 200
        assert (await request(server.address, "GET", "/standby?lag=9")).status == 503
        for text in ("ten", "-1", "1e3", "", "9" * 16, "%D9%A3"):
            answer = await request(server.address, "GET", f"/standby?lag={text}")
            assert answer.status == 400 and "lag=" in answer.json()["error"], text
        del fake.insync["n2"]
        assert (await request(server.address, "GET", "/in-sync")).status == 503


async def test_readyz_lists_its_checks_when_asked(serve: Serve):
    fake = FakeStatus("n2")
    fake.own = published(feed_state="stale")
    async with serve(fake) as server:
        short = (await request(server.address, "GET", "/readyz")).json()
        assert "checks" not in short and short["why"] == "feed: stale"
        answer = await request(server.address, "GET", "/readyz?verbose")
        assert answer.status == 503
        assert {c["name"]: c["ok"] for c in answer.json()["checks"]} == {
            "keeper": True,
            "role": True,
            "in-sync": True,
            "feed": False,
            "gate": True,
            "venue": True,
            "strategy": True,
        }


async def test_status_document_and_its_parts(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        status = (await request(server.address, "GET", "/v1/status")).json()
        assert status["leader"]["token"] == TOKEN and status["permission"]["level"] == "allowed"
        positions = (await request(server.address, "GET", "/v1/positions")).json()
        assert positions["positions"] == status["positions"] and positions["schema"] == 1
        orders = (await request(server.address, "GET", "/v1/orders")).json()
        assert orders["orders"][0]["client_order_id"] == "b1z38z5k"
        history = (await request(server.address, "GET", "/v1/history")).json()
        assert history["history"] == status["history"]
        node = (await request(server.address, "GET", "/v1/node")).json()
        assert node["node"] == "n1" and node["feed"]["messages"] == 81_532 and node["log_index"] == 1000


async def test_worker_that_died_elsewhere_stops_being_shown_as_trading_though_nobody_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(summary, "WORD_FRESH_S", 1.0)
    fake = FakeStatus("n2")
    async with serve(fake) as server:
        assert (await request(server.address, "GET", "/v1/status")).json()["permission"]["level"] == "allowed"
        fake.renewing = False  # n1's keeper repeats the last word of its worker
        await until(lambda: (server._heard.ages_s(boottime_ns())["n1"] or 0.0) > 1.0)
        status = (await request(server.address, "GET", "/v1/status")).json()
        assert status["permission"] == {"level": "blocked", "reason": "unknown"}
        assert status["nodes"][0]["age_s"] > 1.0


@pytest.mark.parametrize("path", READ_ROUTES)
async def test_head_answers_like_get_without_a_body(serve: Serve, path: str):
    async with serve(FakeStatus("n1")) as server:
        answer = await request(server.address, "HEAD", path)
        assert answer.status == 200 and answer.body == b""


@pytest.mark.parametrize("path", [*READ_ROUTES, "/leader", "/nowhere", "/static/baton.js"])
async def test_security_headers_are_on_every_answer(serve: Serve, path: str):
    async with serve(FakeStatus("n1")) as server:
        headers = (await request(server.address, "HEAD", path)).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
        assert "server" not in headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/leader/", 404),
        ("GET", "/Leader", 404),
        ("GET", "/x/leader", 404),
        ("GET", "/static/../http.py", 404),
        ("GET", "/static/index.html", 404),
        ("POST", "/leader", 405),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/switchover", 405),
    ],
)
async def test_wrong_paths_and_methods_get_json_with_a_remedy(serve: Serve, method: str, path: str, status: int):
    async with serve(FakeStatus("n1")) as server:
        answer = await request(server.address, method, path)
        assert answer.status == status and answer.headers["content-type"] == "application/json"
        assert set(answer.json()) == {"error", "remedy"}
        assert (status == 405) == ("allow" in answer.headers)


async def test_fault_of_ours_is_told_without_a_traceback(serve: Serve):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        fake.fail = RuntimeError("secret detail")
        answer = await request(server.address, "GET", "/v1/status")
        assert answer.status == 500 and set(answer.json()) == {"error", "remedy"}
        assert b"secret" not in answer.body and b"Traceback" not in answer.body
        assert answer.headers["x-content-type-options"] == "nosniff"
        fake.fail = None
        assert (await request(server.address, "GET", "/v1/status")).status == 200


async def test_bytes_that_are_not_http_are_refused_and_the_server_goes_on(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        for rubbish in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.address.split(":")[1]))
            writer.write(rubbish)
            async with asyncio.timeout(5):
                assert b" 400 " in await reader.read()
            writer.close()
        assert (await request(server.address, "GET", "/livez")).status == 200


# -- static files and the page -------------------------------------------------------------------------------------


async def test_static_files_are_cached_by_their_content(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        for path, kind in (("baton.css", "text/css"), ("baton.js", "text/javascript"), ("baton.svg", "image/svg+xml")):
            first = await request(server.address, "GET", f"/static/{path}")
            assert first.status == 200 and first.headers["content-type"].startswith(kind) and len(first.body) > 100
            again = await request(server.address, "GET", f"/static/{path}", {"If-None-Match": first.headers["etag"]})
            assert again.status == 304 and again.body == b""


# -- metrics ------------------------------------------------------------------------------------------------------


async def test_metrics_by_content_negotiation(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        plain = await request(server.address, "GET", "/metrics")
        assert (
            plain.headers["content-type"].startswith("text/plain") and b"\nbaton_fencing_token 4182.0\n" in plain.body
        )
        open_metrics = await request(server.address, "GET", "/metrics", {"Accept": "application/openmetrics-text"})
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert open_metrics.body.endswith(b"# EOF\n")


# -- events -------------------------------------------------------------------------------------------------------


async def test_event_stream_tells_a_role_change_at_once_and_the_rest_twice_a_second(serve: Serve):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        events = await open_events(server.address)
        assert events.status == 200 and events.headers["content-type"].startswith("text/event-stream")
        assert (await events.next())["leader"]["node"] == "n1"
        begun = time.monotonic()
        for _ in range(3):
            await events.next()
        assert 0.5 < time.monotonic() - begun < 4.0
        fake.hand_over_to_n2()
        begun = time.monotonic()
        while (document := await events.next())["leader"]["node"] != "n2":
            pass
        assert time.monotonic() - begun < 2.0
        assert document["permission"]["level"] == "allowed" and document["leader"]["token"] == TOKEN + 9
        assert [n["role"] for n in document["nodes"]] == ["standby", "leader", "standby"]
        events.close()


async def test_too_many_followers_are_refused_and_a_place_is_free_again_when_one_leaves(serve: Serve):
    async with serve(FakeStatus("n1"), event_clients_max=3) as server:
        followers = [await open_events(server.address) for _ in range(3)]
        for f in followers:
            await f.next()
        refused = await request(server.address, "GET", "/v1/events")
        assert refused.status == 503 and set(refused.json()) == {"error", "remedy"} and refused.headers["retry-after"]
        assert (await request(server.address, "HEAD", "/v1/events")).status == 200  # takes no place
        followers.pop().close()
        await until(lambda: server._clients == 2)
        followers.append(await open_events(server.address))
        assert followers[-1].status == 200 and (await followers[-1].next())["schema"] == 1
        for f in followers:
            f.close()
        await until(lambda: server._clients == 0)


async def test_follower_that_reads_nothing_does_not_hold_up_the_others(serve: Serve):
    fake = FakeStatus("n1")
    fake.details["warnings"] = ["x" * 200_000]  # fills the socket's buffers soon
    async with serve(fake) as server:
        port = int(server.address.split(":")[1])
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode())
        await until(lambda: server._clients == 1)
        events = await open_events(server.address)
        for _ in range(6):
            await events.next(3.0)
        events.close()
        deaf.close()


async def test_follower_that_takes_nothing_for_long_is_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("node.status.http.SEND_LIMIT_S", 0.3)
    fake = FakeStatus("n1")
    fake.details["warnings"] = ["x" * 10_000_000]  # more than any socket buffer
    async with serve(fake) as server:
        deaf = socket.create_connection(("127.0.0.1", int(server.address.split(":")[1])))
        deaf.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode())
        await until(lambda: server._clients == 1)
        await until(lambda: server._clients == 0)
        deaf.close()


async def test_fault_while_making_the_document_neither_ends_the_server_nor_the_stream(serve: Serve, monkeypatch: Any):
    monkeypatch.setattr("node.status.http.LOOK_RETRY_S", 0.1)
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        events = await open_events(server.address)
        await events.next()
        fake.fail = RuntimeError("for a while")
        await until(lambda: fake.failures > 0)
        fake.fail = None
        fake.hand_over_to_n2()
        while (await events.next())["leader"]["node"] != "n2":
            pass
        events.close()


# -- switchover ---------------------------------------------------------------------------------------------------


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


async def test_switchover_is_passed_on_and_its_answer_returned(serve: Serve):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        done = await request(server.address, "POST", "/v1/switchover", JSON, body(target="n2", actor="ann"))
        assert done.status == 202 and done.json() == {"text": "n2 leads now"}
        done = await request(server.address, "POST", "/v1/switchover", JSON, body(target=None))
        assert done.status == 202 and fake.asked == [("n2", "ann"), (None, "http 127.0.0.1")]
        fake.answer = (False, "n9 is not in the in-sync set")
        refused = await request(server.address, "POST", "/v1/switchover", JSON, body(target="n9", actor="ann"))
        assert refused.status == 409 and refused.json()["error"] == "n9 is not in the in-sync set"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"[" * 4000, 400),
        (body(target=7), 400),
        (body(target=""), 400),
        (body(target="n2 or n3"), 400),
        (body(target="x" * 65), 400),
        (body(target="n2", actor=""), 400),
        (body(target="n2", actor="a\nb"), 400),
        (body(target="n2", actor="x" * 201), 400),
        (body(target="n2", actor=["ann"]), 400),
        (body(target="n2", force=True), 400),
        (body(target="n2", actor="x" * BODY_MAX), 413),
    ],
)
async def test_malformed_switchover_is_refused_and_reaches_nobody(serve: Serve, sent: bytes, status: int):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        answer = await request(server.address, "POST", "/v1/switchover", JSON, sent)
        assert answer.status == status and set(answer.json()) == {"error", "remedy"}, answer
        assert fake.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_switchover_takes_only_json_since_a_form_can_send_the_rest_from_anywhere(serve: Serve, kind: str):
    fake = FakeStatus("n1")
    async with serve(fake) as server:
        answer = await request(
            server.address, "POST", "/v1/switchover", {"Content-Type": kind} if kind else {}, body(target="n2")
        )
        assert answer.status == 415 and fake.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://{address}"}, 202),
        ({"Origin": "http://{address}", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "https://localhost:1", "Host": "localhost:1"}, 202),
        ({"Origin": "http://[::1]:8008", "Host": "[::1]:8008"}, 202),
        ({"Origin": "http://baton.example", "Host": "BATON.example"}, 202),  # configured
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another port is another page
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 403),  # a name rebound to our address
        ({"Origin": "http://[broken", "Host": "[broken"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://{address}", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_switchover_is_refused_to_pages_of_other_origins(serve: Serve, headers: dict[str, str], status: int):
    fake = FakeStatus("n1")
    async with serve(fake, names=["baton.example"]) as server:
        sent = {k: v.format(address=server.address) for k, v in headers.items()}
        answer = await request(server.address, "POST", "/v1/switchover", {**JSON, **sent}, body(target="n2"))
        assert answer.status == status, answer
        assert len(fake.asked) == (status == 202)
        assert "access-control-allow-origin" not in answer.headers


async def test_switchover_that_is_not_answered_ends_and_says_that_it_may_still_happen(serve: Serve, monkeypatch: Any):
    monkeypatch.setattr("node.status.http.SWITCHOVER_LIMIT_S", 0.2)
    fake = FakeStatus("n1")
    fake.answering = asyncio.Event().wait
    async with serve(fake) as server:
        first = asyncio.create_task(request(server.address, "POST", "/v1/switchover", JSON, body(target="n2")))
        await until(lambda: bool(fake.asked))
        second = await request(server.address, "POST", "/v1/switchover", JSON, body(target="n3"))
        assert second.status == 409 and "under way" in second.json()["error"]
        answer = await first
        assert answer.status == 504 and "may still happen" in answer.json()["error"]
        fake.answering = None
        assert (await request(server.address, "POST", "/v1/switchover", JSON, body(target="n2"))).status == 202


async def test_body_that_never_comes_is_given_up(serve: Serve, monkeypatch: Any):
    monkeypatch.setattr("node.status.http.BODY_LIMIT_S", 0.2)
    async with serve(FakeStatus("n1")) as server:
        answer = await request(server.address, "POST", "/v1/switchover", {**JSON, "Content-Length": "50"}, b"{")
        assert answer.status == 408


# -- start and end ------------------------------------------------------------------------------------------------


def make(listen: str) -> StatusServer:
    return StatusServer(FakeStatus("n1"), Telemetry("n1", "alpha", "0"), listen)


async def test_port_that_is_taken_is_a_config_error_with_its_remedy(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        with pytest.raises(
            ConfigError, match=r"node\.http_listen = 127\.0\.0\.1:\d+: Address already in use; .*ss -ltnp"
        ):
            await make(server.address).serve()


@pytest.mark.parametrize(
    "listen", ["8008", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000", ":8008", "no.such.host.invalid:80"]
)
async def test_address_that_cannot_be_is_a_config_error(listen: str):
    with pytest.raises(ConfigError, match=r"node\.http_listen = "):
        make(listen).bind()


async def test_address_of_another_host_is_a_config_error():
    with pytest.raises(ConfigError, match=r"Cannot assign .*; set an address of this host"):
        make("192.0.2.1:0").bind()


@pytest.mark.parametrize("listen", ["localhost:0", "[::1]:0"])
async def test_names_and_ipv6(serve: Serve, listen: str):
    async with serve(FakeStatus("n1"), listen) as server:
        assert server.address.startswith("[::1]:" if "::1" in listen else "127.0.0.1:")
        assert (await request(server.address, "GET", "/livez")).status == 200


async def test_ends_within_a_second_with_streams_open_and_a_request_under_way_and_frees_the_port():
    fake = FakeStatus("n1")
    fake.answering = asyncio.Event().wait
    server = StatusServer(fake, Telemetry("n1", "alpha", "0"), "127.0.0.1:0")
    server.bind()
    address = server.address
    task = asyncio.create_task(server.serve())
    followers: list[EventStream] = [await open_events(address) for _ in range(5)]
    for f in followers:
        await f.next()
    deaf = socket.create_connection(("127.0.0.1", int(address.split(":")[1])))
    deaf.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    await until(lambda: server._clients == 6)
    asking = asyncio.create_task(request(address, "POST", "/v1/switchover", JSON, body(target="n2")))
    await until(lambda: bool(fake.asked))
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 1.0
    await asyncio.gather(asking, return_exceptions=True)
    deaf.close()
    for f in followers:
        f.close()
    again = make(address)
    again.bind()
    for s in again._sockets:
        s.close()


async def test_server_leaves_signals_alone(serve: Serve):
    import signal

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serve(FakeStatus("n1")) as server:
        await request(server.address, "GET", "/livez")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_runs_on_uvloop_as_in_the_worker():
    async def run() -> tuple[int, str]:
        server = make("127.0.0.1:0")
        server.bind()
        task = asyncio.create_task(server.serve())
        answer = await request(server.address, "GET", "/leader")
        events = await open_events(server.address)
        document = await events.next()
        begun = time.monotonic()
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert time.monotonic() - begun < 1.0
        events.close()
        return answer.status, document["leader"]["node"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == (200, "n1")


async def test_idle_server_costs_next_to_nothing(serve: Serve):
    async with serve(FakeStatus("n1")) as server:
        await request(server.address, "GET", "/livez")
        used = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(2.0)
        now = resource.getrusage(resource.RUSAGE_SELF)
        spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        assert spent < 0.06, f"{spent / 2:.1%} of a core, pid {os.getpid()}"
