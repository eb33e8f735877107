"""The configuration: what a good file means, and what each wrong one is told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.core.errors import ConfigError
from cluster.core.ids import NS_PER_S
from node.config import Config, config_schema, describe, load_config, worst_case_failover
from node.config_model import FEED_ADAPTERS, VENUE_ADAPTERS, default_order_tag
from node.parts import make_feed, make_venue
from node.types import client_order_id

GOOD = """
[cluster]
name = "alpha"

[node]
name = "n1"
data_dir = "/var/lib/baton"

[etcd]
endpoints = ["http://127.0.0.1:2379"]

[gate]
url = "redis://127.0.0.1:6379/0"

[risk]
orders_per_s = 0.5
orders_burst = 20

[risk.BTCUSDT]
max_order_qty = "0.5"
max_order_notional = 50_000
max_position = 2
price_collar_bps = 200
order_types = ["limit", "post_only"]

[[instruments]]
symbol = "BTCUSDT"
tick_size = 0.01
lot_size = "0.00001"

[venue]
target = "127.0.0.1:9000"
account = "acc"

[strategy]
path = "mybot.main:MyStrategy"
"""

TLS = {"CA_FILE": "ca.pem", "CERT_FILE": "c.pem", "KEY_FILE": "k.pem"}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """load(SECTION__KEY=value, ..., text=GOOD): the file with an environment over it."""

    def loader(*, text: str = GOOD, **env: str) -> Config:
        path = tmp_path / "baton.toml"
        path.write_text(text)
        return load_config(path, {f"BATON__{key}": value for key, value in env.items()})

    return loader


@pytest.fixture
def complain(load: Any) -> Any:
    """The lines that a wrong configuration is answered with."""

    def complainer(*, text: str = GOOD, **env: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load(text=text, **env)
        assert "pydantic" not in str(error.value) and "Traceback" not in str(error.value)
        return str(error.value).splitlines()

    return complainer


# -- good ones ----------------------------------------------------------------------------------------------


def test_small_file_and_the_defaults_that_follow_from_it(load: Any) -> None:
    c = load()
    assert (c.cluster.mode, c.cluster.order_tag) == ("paper", default_order_tag("alpha"))
    assert (c.lease.ttl_s, c.lease.renew_interval_s, c.lease.margin_s, c.lease.send_slack_s) == (1.0, 0.15, 0.2, 0.1)
    assert c.node.grpc_advertise == c.node.grpc_listen
    assert c.venue.order_validity_s == 1.0
    assert (c.worker.hang_timeout_s, c.replication.insync_timeout_s, c.gate.timeout_s) == (0.25, 0.25, 0.1)


@pytest.mark.parametrize("ttl", ["0.3", "0.31", "0.37", "0.5", "0.7", "1", "1.1", "2.3", "3.7", "10", "60"])
def test_one_number_tunes_the_lease_and_every_default_still_fits(load: Any, ttl: str) -> None:
    c = load(LEASE__TTL_S=ttl)
    assert c.lease_rules().problems() == []
    assert c.lease_rules().ttl == round(float(ttl) * NS_PER_S)


def test_limits_become_integers_rounded_down(load: Any) -> None:
    limits = load(RISK__BTCUSDT__MAX_POSITION="0.500019").risk_limits()
    btc = limits.instruments["BTCUSDT"]
    assert (btc.max_order_lots, btc.max_position_lots) == (50_000, 50_001)
    assert btc.max_order_notional == 50_000 * 100 * 100_000, "in tick-lots"
    assert btc.order_kinds == {"limit", "post_only"}
    assert (limits.rate.orders_burst, limits.rate.window_ns) == (20, 40 * NS_PER_S)


def test_sizes_are_exact_whether_written_as_string_or_number(load: Any) -> None:
    table = load().instrument_table()
    assert table["BTCUSDT"].tick_size == Decimal("0.01") and table["BTCUSDT"].lot_size == Decimal("0.00001")
    assert load(text=GOOD.replace("0.01", "0.10000000000000000001")).instrument_table()["BTCUSDT"].tick_size == Decimal(
        "0.10000000000000000001"
    )


def test_order_tag_comes_from_the_name_and_makes_short_ids() -> None:
    tags = {default_order_tag(f"cluster-{i}") for i in range(200)}
    assert len(tags) > 150
    for tag in tags:
        assert len(client_order_id(tag, 35**6 - 1, 35**7 - 1)) == 18


def test_strategy_table_is_handed_on_with_plain_numbers(load: Any) -> None:
    text = GOOD + '[strategy.config]\nthreshold = 0.5\nlevels = [1, 2.5]\nname = "x"\n[strategy.config.deep]\na = 0.1\n'
    config = load(text=text, STRATEGY__CONFIG__FAST="true", STRATEGY__CONFIG__WORD="plain words").strategy.config
    assert config == {
        "threshold": 0.5,
        "levels": [1, 2.5],
        "name": "x",
        "deep": {"a": 0.1},
        "fast": True,
        "word": "plain words",
    }
    assert type(config["threshold"]) is type(config["levels"][1]) is float


# -- environment --------------------------------------------------------------------------------------------


def test_environment_beats_the_file_and_is_named_as_the_origin(load: Any) -> None:
    c = load(
        LEASE__TTL_S="2",
        NODE__NEVER_LEAD="true",
        ETCD__ENDPOINTS="http://a:1, http://b:2",
        RISK__BTCUSDT__ORDER_TYPES='["market"]',
        RISK__BTCUSDT__MAX_ORDER_QTY="0.1",
        VENUE__ACCOUNT="0042",
        INSTRUMENTS='[{symbol="BTCUSDT", tick_size="0.5", lot_size="0.1"}]',
    )
    assert (c.lease.ttl_s, c.lease.margin_s, c.node.never_lead) == (2.0, 0.4, True)
    assert c.etcd.endpoints == ["http://a:1", "http://b:2"]
    assert c.risk.instruments["BTCUSDT"].order_types == ["market"]
    assert c.risk.instruments["BTCUSDT"].max_order_qty == Decimal("0.1")
    assert c.risk.instruments["BTCUSDT"].max_position == 2, "the file's other keys stay"
    assert c.venue.account == "0042" and c.instruments[0].tick_size == Decimal("0.5")
    assert c.origin("lease.ttl_s") == "$BATON__LEASE__TTL_S"
    assert c.origin("gate.url").endswith("baton.toml") and c.origin("lease.margin_s") == "default"


def test_other_variables_are_left_alone(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(GOOD)
    env = {"BATON_CONFIG": "x", "BATON_LEASE__TTL_S": "9", "LEASE__TTL_S": "8", "PATH": "/bin"}
    assert load_config(path, env).lease.ttl_s == 1.0


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"LEASE__TTTL_S": "1"}, "lease.tttl_s: unknown key (from $BATON__LEASE__TTTL_S); did you mean lease.ttl_s?"),
        ({"LEESE__TTL_S": "1"}, "leese: unknown key (from $BATON__LEESE__TTL_S); did you mean lease?"),
        (
            {"GATE__HANG_TIMEOUT_S": "1"},
            "gate.hang_timeout_s: unknown key (from $BATON__GATE__HANG_TIMEOUT_S); did you mean worker.hang_timeout_s?",
        ),
        (
            {"RISK__ORDERS_PR_S": "1"},
            "risk.orders_pr_s: unknown key (from $BATON__RISK__ORDERS_PR_S); did you mean risk.orders_per_s?",
        ),
        (
            {"RISK__BTCUSDT__MAX_ORDR_QTY": "1"},
            "risk.BTCUSDT.max_ordr_qty: unknown key (from $BATON__RISK__BTCUSDT__MAX_ORDR_QTY); "
            "did you mean risk.BTCUSDT.max_order_qty?",
        ),
        ({"LEASE": "5"}, "lease = 5: must be a table, [lease] (from $BATON__LEASE)"),
        ({"LEASE____TTL_S": "5"}, "$BATON__LEASE____TTL_S: an empty part; write BATON__SECTION__KEY"),
        (
            {"LEASE": "5", "LEASE__TTL_S": "1"},
            "$BATON__LEASE__TTL_S: another variable sets 'lease' as one value; set its keys or all of it",
        ),
    ],
)
def test_unknown_variables_are_refused_with_a_suggestion(complain: Any, env: dict[str, str], line: str) -> None:
    assert complain(**env) == [line]


# -- wrong files --------------------------------------------------------------------------------------------


def test_unknown_keys_in_the_file_are_refused_without_telling_their_value(complain: Any) -> None:
    [line] = complain(text=GOOD.replace('account = "acc"', 'account = "acc"\napi_kye = "hunter2"'))
    assert line == "venue.api_kye: unknown key; did you mean venue.api_key?"
    [line] = complain(text="[lese]\nttl_s = 1\n" + GOOD)
    assert line == "lese: unknown key; did you mean lease?"
    [line] = complain(text=GOOD.replace("lot_size", "lotsize"))[:1]
    assert line.startswith("instruments.0.lot")


def test_all_errors_are_told_at_once(complain: Any) -> None:
    text = GOOD.replace('name = "alpha"', 'name = "Al pha"').replace("orders_burst = 20", "orders_burst = 0")
    lines = complain(text=text, LEASE__TTL_S="soon", LOG__LEVEL="loud", NODE__GRPC_LISTEN="7443")
    assert [line.split(":")[0] for line in lines] == [
        "cluster.name = Al pha",
        "node.grpc_listen = 7443",
        "lease.ttl_s = soon",
        "risk.orders_burst = 0",
        "log.level = loud",
    ]
    assert "a-z, 0-9 and hyphens" in lines[0] and "host:port" in lines[1]
    assert "must be greater than 0" in lines[3] and "'debug', 'info'" in lines[4]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("tick_size = 0.01", "tick_size = true", 'instruments.0.tick_size = True: write it as a string, like "True"'),
        ("tick_size = 0.01", "tick_size = -1", "instruments.0.tick_size = -1: must be greater than 0"),
        ('symbol = "BTCUSDT"', 'symbol = "btc usdt"', "instruments.0.symbol = btc usdt: "),
        (
            'path = "mybot.main:MyStrategy"',
            'path = "mybot/main.py"',
            "strategy.path = mybot/main.py: package.module:Class",
        ),
        ("orders_burst = 20", "orders_burst = 2000", "risk.orders_burst = 2000: must be less than or equal to 1024"),
        ("orders_burst = 20", "orders_burst = true", "risk.orders_burst = True: must be a number"),
        ("price_collar_bps = 200", "price_collar_bps = 1.5", "risk.BTCUSDT.price_collar_bps = 1.5: "),
        ('order_types = ["limit", "post_only"]', "order_types = []", "risk.BTCUSDT.order_types: must have at least 1"),
        ("max_position = 2", "", "risk.BTCUSDT.max_position: missing; it has no default, so set it"),
        ("orders_per_s = 0.5", "", "risk.orders_per_s: missing"),
        ('data_dir = "/var/lib/baton"', "", "node.data_dir: missing"),
        ('account = "acc"', "", "venue.account: missing"),
        ('name = "alpha"', 'name = "alpha"\norder_tag = "xyz"', "cluster.order_tag = xyz: 1 to 4 of a-y, 0-9"),
        ('name = "alpha"', 'name = "alpha"\norder_tag = "abcde"', "cluster.order_tag = abcde: "),
        ('name = "alpha"', 'name = "alpha"\nmode = "real"', "cluster.mode = real: must be 'paper' or 'live'"),
        ("[etcd]", "[lease]\nttl_s = true\n[etcd]", "lease.ttl_s = True: must be a number"),
        ("[etcd]", "[lease]\nttl_s = inf\n[etcd]", "lease.ttl_s = Infinity: must be less than"),
        ("[etcd]", "[lease]\nttl_s = [1]\n[etcd]", "lease.ttl_s: must be a valid number"),
    ],
)
def test_wrong_values_are_told_with_key_value_and_rule(complain: Any, old: str, new: str, line: str) -> None:
    assert old in GOOD
    assert complain(text=GOOD.replace(old, new, 1))[0].startswith(line)


@pytest.mark.parametrize("section", ["risk.BTCUSDT", "risk", "instruments", "gate", "etcd", "venue", "strategy"])
def test_nothing_that_could_trade_wrongly_has_a_default(complain: Any, section: str) -> None:
    head = f"[[{section}]]" if section == "instruments" else f"[{section}]"
    blocks = GOOD.split("\n\n")
    text = "\n\n".join(b for b in blocks if head not in b)
    assert any(line.startswith(section) for line in complain(text=text))


def test_file_problems_are_told_in_plain_words(tmp_path: Path, complain: Any) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file; the README has .* --config.*config validate"):
        load_config(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})
    (tmp_path / "b.toml").write_bytes(b"name = \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 7\)"):
        load_config(tmp_path / "b.toml", {})
    [line] = complain(text='[cluster]\nname = "a\n')
    assert "not valid TOML" in line and "line 2, column 10" in line


# -- relations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        ({"LEASE__TTL_S": "0.2"}, ["lease.ttl_s = 0.2", "0.3"]),
        ({"LEASE__MARGIN_S": "0.05"}, ["lease.margin_s = 0.05", "0.2"]),
        ({"LEASE__CLOCK_DRIFT_MAX": "0.2"}, ["lease.margin_s = 0.2", "0.5"]),
        ({"LEASE__RENEW_INTERVAL_S": "0.3"}, ["lease.renew_interval_s", "0.9", "lease.ttl_s", "0.8"]),
        ({"ETCD__CALL_TIMEOUT_S": "0.9"}, ["etcd.call_timeout_s = 0.9", "lease.ttl_s - lease.margin_s = 0.8"]),
        (
            {"WORKER__RESTART_BACKOFF_MIN_S": "9"},
            ["worker.restart_backoff_min_s = 9", "worker.restart_backoff_max_s = 5"],
        ),
        ({"REPLICATION__UNPROTECTED": "halt"}, ["replication.unprotected", "min_standbys = 0", "min_standbys = 1"]),
        ({"NODE__GRPC_LISTEN": "0.0.0.0:7443"}, ["node.grpc_advertise = 0.0.0.0:7443", "no other host"]),
        ({"NODE__HTTP_ADVERTISE": "[::]:80"}, ["node.http_advertise = [::]:80"]),
        ({"NODE__HTTP_LISTEN": "127.0.0.1:7443"}, ["node.http_listen = 127.0.0.1:7443", "node.grpc_listen"]),
        ({"ETCD__ENDPOINTS": "http://a:1,https://b:1"}, ["http://a:1, https://b:1", "be http or all https"]),
        ({"ETCD__ENDPOINTS": "a:2379"}, ["etcd.endpoints = a:2379", "http://host:port"]),
        ({"ETCD__ENDPOINTS": "http://a"}, ["etcd.endpoints = http://a", "host:port"]),
        ({"ETCD__USER": "u"}, ["etcd.user", "without etcd.password"]),
        ({"ETCD__PASSWORD": "env:P"}, ["etcd.password", "without etcd.user"]),
        ({"ETCD__CA_FILE": "ca.pem"}, ["etcd.ca_file", "https"]),
        (
            {"ETCD__ENDPOINTS": "https://a:1", "ETCD__CERT_FILE": "c.pem"},
            ["etcd.cert_file = c.pem", "etcd.key_file"],
        ),
        ({"REPLICATION__KEY_FILE": "k.pem"}, ["replication.key_file = k.pem", "replication.cert_file"]),
        ({"REPLICATION__CA_FILE": "ca.pem"}, ["replication", "belong together"]),
        ({"VENUE__ORDER_VALIDITY_S": "1.5"}, ["venue.order_validity_s = 1.5", "lease.ttl_s = 1"]),
        ({"VENUE__DEADMAN_TTL_S": "2"}, ["venue.deadman_ttl_s = 2", "3.6", "lease.ttl_s = 1", "0 turns it off"]),
        (
            {"LEASE__TTL_S": "30", "GATE__CLAIM_TTL_S": "60"},
            ["gate.claim_ttl_s = 60", "venue.order_validity_s = 107.1"],
        ),
        ({"VENUE__ADAPTER": "ccxt:kraken"}, ["venue.adapter = ccxt:kraken: there is no such adapter; known: paper"]),
        ({"VENUE__ADAPTER": "papr"}, ["venue.adapter = papr", "did you mean paper?"]),
        ({"VENUE__TARGET": "10.0.0.41"}, ["venue.target = 10.0.0.41: must be host:port", "10.0.0.41:7450"]),
        ({"VENUE__TARGET": "10.0.0.41:70000"}, ["venue.target = 10.0.0.41:70000: must be host:port"]),
        ({"FEED__ADAPTER": "kraken"}, ["feed.adapter = kraken: there is no such adapter; known: binance"]),
        ({"FEED__URL": "foo"}, ["feed.url = foo: must be wss://host:port"]),
        ({"FEED__URL": ""}, ["feed.url = : must be wss://host:port"]),
        ({"FEED__URL": "http://h:1"}, ["feed.url = http://h:1: must be wss://host:port"]),
        ({"FEED__URL": "ws://h:70000"}, ["feed.url = ws://h:70000: must be wss://host:port"]),
        ({"FEED__URL": "ws://h:1/stream?streams=x"}, ["feed.url = ws://h:1/stream?streams=x", "added by Baton"]),
        ({"GATE__URL": "http://x"}, ["gate.url = http://x: must be redis://host:port/0", "rediss://"]),
        ({"GATE__URL": "redis://h:0x/0"}, ["gate.url = redis://h:0x/0: must be redis://host:port/0"]),
        ({"GATE__URL": "redis://[h:1"}, ["gate.url = redis://[h:1: must be redis://host:port/0"]),
        ({"GATE__URL": "redis://[:hunter2@h:1"}, ["gate.url = ***: must be redis://host:port/0"]),
        ({"GATE__URL": "redis://h:1?password=hunter2"}, ["gate.url = ***: must be redis://", "ssl_"]),
        ({"ETCD__ENDPOINTS": "http://[a:1"}, ["etcd.endpoints = http://[a:1: must be http://host:port"]),
        ({"GATE__URL": "redis://h:1/first"}, ["gate.url = redis://h:1/first: must be redis://host:port/0"]),
        ({"GATE__URL": "redis:/:hunter2@h:1/0"}, ["gate.url = ***: must be redis://host:port/0"]),
        (
            {"ETCD__ENDPOINTS": "http://a:1,http://b:1,http://A:1"},
            ["etcd.endpoints = http://a:1, http://b:1, http://A:1: a:1 stands there 2 times", "once"],
        ),
        (
            {"RISK__BTCUSDT__MAX_ORDER_QTY": "2.5"},
            ["risk.BTCUSDT.max_order_qty = 2.5", "risk.BTCUSDT.max_position = 2", "lower it, or raise max_position"],
        ),
        ({"CLUSTER__MODE": "live", "VENUE__API_KEY": "hunter2"}, ["venue.api_key = ***", "file:/path"]),
        ({"CLUSTER__MODE": "live", "GATE__URL": "redis://:hunter2@h:1/0"}, ["gate.url = ***", "cred:NAME"]),
        ({"RISK__BTCUSDT__MAX_ORDER_QTY": "0.000001"}, ["risk.BTCUSDT.max_order_qty = 0.000001", "0.00001"]),
        ({"RISK__BTCUSDT__MAX_POSITION": "0.000001"}, ["risk.BTCUSDT.max_position = 0.000001", "lot_size = 0.00001"]),
        ({"RISK__BTCUSDT__MAX_ORDER_NOTIONAL": "1e-9"}, ["max_order_notional = 1E-9", "tick_size * lot_size"]),
        ({"RISK__BTCUSDT__ORDER_TYPES": "limt"}, ["order_types = limt", "did you mean limit?"]),
    ],
)
def test_each_broken_relation_names_both_values(complain: Any, env: dict[str, str], parts: list[str]) -> None:
    lines = complain(**env)
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in parts), lines
    assert "hunter2" not in lines[0]


def test_instruments_and_limits_must_match(complain: Any) -> None:
    eth = '[[instruments]]\nsymbol = "ETHUSDT"\ntick_size = "0.01"\nlot_size = "0.001"\n'
    assert complain(text=GOOD + eth) == [
        "risk.ETHUSDT: missing; every instrument needs its limits, there are no default ones"
    ]
    typo = GOOD.replace("[risk.BTCUSDT]", "[risk.BTCUSD]")
    lines = complain(text=typo)
    assert lines[0].startswith("risk.BTCUSDT: missing")
    assert lines[1] == "risk.BTCUSD: not among the instruments (BTCUSDT); did you mean risk.BTCUSDT?"
    assert complain(text=GOOD + eth.replace("ETHUSDT", "BTCUSDT")) == [
        "instruments: BTCUSDT stands there 2 times; once is enough"
    ]


def test_relations_that_hold_at_the_edge_are_accepted(load: Any) -> None:
    for env in (
        {"REPLICATION__UNPROTECTED": "halt", "REPLICATION__MIN_STANDBYS": "1"},
        {"VENUE__DEADMAN_TTL_S": "0"},
        {"VENUE__ORDER_VALIDITY_S": "1.0"},
        {"NODE__GRPC_LISTEN": "0.0.0.0:7443", "NODE__GRPC_ADVERTISE": "10.0.0.1:7443"},
        {"NODE__GRPC_LISTEN": "[fd00::1]:7443"},
        {"CLUSTER__MODE": "live", "VENUE__API_KEY": "cred:paper"},
        {"RISK__BTCUSDT__MAX_ORDER_QTY": "2"},
        {"GATE__URL": "rediss://me:pw@h"},
        {"GATE__URL": "unix:///run/redis.sock"},
        {"GATE__URL": "file:/no/url/by/itself"},
        {"FEED__URL": "ws://[::1]:9443/prefix/stream"},
        {"ETCD__ENDPOINTS": "https://a:1", "ETCD__USER": "u", "ETCD__PASSWORD": "env:P"},
        {f"REPLICATION__{k}": v for k, v in TLS.items()},
        {"LEASE__MARGIN_S": "0.2", "LEASE__RENEW_INTERVAL_S": "0.2666"},
    ):
        load(**env)


def test_paper_mode_never_sends_to_a_real_venue(complain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no adapter of a real venue yet; the rule stands ready for the first one."""
    monkeypatch.setattr("node.config.VENUE_ADAPTERS", ("paper", "kraken"))
    [line] = complain(VENUE__ADAPTER="kraken")
    assert all(part in line for part in ("venue.adapter = kraken", 'cluster.mode = "paper"', '"live"'))


def test_every_adapter_that_is_accepted_can_be_made(load: Any) -> None:
    for name in VENUE_ADAPTERS:
        assert make_venue(load(VENUE__ADAPTER=name), random.Random(1))
    for name in FEED_ADAPTERS:
        assert make_feed(load(FEED__ADAPTER=name), random.Random(1))


# -- secrets ------------------------------------------------------------------------------------------------


def test_secrets_are_read_when_asked_for(load: Any, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("from-file\n")
    env = {"PW": "from-env", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    for written, value in ((f"file:{tmp_path}/pw", "from-file"), ("env:PW", "from-env"), ("cred:pw", "from-file")):
        secret = load(VENUE__API_KEY=written).venue.api_key
        assert secret.reveal(env) == value and str(secret) == written and not secret.literal
    assert load(VENUE__API_KEY="plain").venue.api_key.reveal({}) == "plain"
    assert load(GATE__URL="env:URL").gate.url.reveal({"URL": "redis://:x@h/0"}) == "redis://:x@h/0"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("env:NOPE", "NOPE is not set"),
        ("file:/does/not/exist", "cannot read /does/not/exist: No such file"),
        ("file:/", "Is a directory"),
        ("cred:x", r"\$CREDENTIALS_DIRECTORY is not set.*LoadCredential=x"),
    ],
)
def test_secret_that_cannot_be_read_says_where_it_should_be(load: Any, written: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(VENUE__API_KEY=written).venue.api_key.reveal({})


def test_empty_secret_file_is_refused(load: Any, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        load(VENUE__API_KEY=f"file:{tmp_path}/pw").venue.api_key.reveal({})


def test_no_text_of_a_configuration_shows_a_secret(load: Any) -> None:
    c = load(
        VENUE__API_KEY="hunter2",
        VENUE__API_SECRET="hunter2",
        ETCD__USER="u",
        ETCD__PASSWORD="hunter2",
        GATE__URL="redis://me:hunter2@10.0.0.1:6379/0",
        STRATEGY__CONFIG__BROKER_API_KEY="hunter2",
    )
    shown = json.dumps(describe(c))
    for text in (shown, repr(c), str(c), repr(c.venue), repr(c.gate.url), f"{c.venue.api_key}", repr(c.strategy)):
        assert "hunter2" not in text
    assert "redis://me:***@10.0.0.1:6379/0" in shown
    assert set(c.secrets()) == {"etcd.password", "gate.url", "venue.api_key", "venue.api_secret"}


@pytest.mark.parametrize("key", ["VENUE__API_KEY", "GATE__URL", "ETCD__PASSWORD"])
def test_wrong_secret_is_not_repeated_in_the_error(complain: Any, key: str) -> None:
    [line, *_] = complain(**{key: '["hunter2"]'})
    assert "hunter2" not in line and "= ***" in line


# -- telling ------------------------------------------------------------------------------------------------


def test_description_holds_every_value_in_force(load: Any) -> None:
    shown = describe(load(LEASE__TTL_S="2"))
    assert shown["lease"] == {
        "ttl_s": 2.0,
        "renew_interval_s": 0.3,
        "margin_s": 0.4,
        "clock_drift_max": 0.05,
        "send_slack_s": 0.2,
    }
    assert shown["risk"]["BTCUSDT"]["max_order_qty"] == "0.5"
    assert shown["instruments"][0]["tick_size"] == "0.01"


def test_description_can_be_loaded_again(load: Any) -> None:
    first = load(LEASE__TTL_S="2")
    again = Config.from_layers(json.loads(json.dumps(describe(first))))
    assert describe(again) == describe(first)


def test_worst_cases_follow_the_settings(load: Any) -> None:
    cases = worst_case_failover(load())
    assert cases["host_lost"] == pytest.approx(1.1)
    assert cases["worker_hung"] == pytest.approx(0.35)
    assert worst_case_failover(load(LEASE__TTL_S="0.3"))["host_lost"] == pytest.approx(0.4)
    assert cases["host_lost_key_vanished"] == max(cases.values())


def test_schema_names_every_key_with_its_meaning() -> None:
    schema = json.loads(json.dumps(config_schema()))
    lease = schema["$defs"]["LeaseConfig"]["properties"]
    assert set(lease) == {"ttl_s", "renew_interval_s", "margin_s", "clock_drift_max", "send_slack_s"}
    assert "Default: 0.2 of ttl_s" in lease["margin_s"]["description"]
    assert schema["additionalProperties"] is False
    assert "default" not in schema["$defs"]["VenueConfig"]["properties"]["order_validity_s"]


def test_only_the_configuration_imports_pydantic() -> None:
    """The order path's modules stay light: what they need arrives as plain values."""
    script = "import sys, node.book, node.risk, node.gate; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
