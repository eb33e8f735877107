"""Loading the configuration: one TOML file, environment variables over it, checked whole before anything starts.

    BATON__LEASE__TTL_S=0.5   beats   [lease] ttl_s = 1.0   beats   the default

A value in the environment is written as in the file; the quotes of a string may be left out. Unknown keys are refused,
in both. Relations between values are checked with both values in the message. All errors of a stage are told at once,
one line each, in one ConfigError. Secrets are named, not written: `file:/path`, `env:NAME`, `cred:NAME` (systemd
credentials); they are read when asked for, and never shown. The sections: `config_model.py`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.core.errors import ConfigError
from node.config_model import (
    FEED_ADAPTERS,
    TAKEOVER_ALLOWANCE_S,
    VENUE_ADAPTERS,
    Config,
    InstrumentConfig,
    InstrumentRisk,
    Secret,
    SecretUrl,
    host_port,
    is_address,
    is_redis_url,
    is_websocket_url,
    os_words,
    url_parts,
)
from node.risk import ORDER_KINDS

__all__ = ["Config", "Secret", "SecretUrl", "config_schema", "describe", "load_config", "worst_case_failover"]

ENV_PREFIX = "BATON__"
HOW_TO_BEGIN = (
    "the README has the smallest configuration to begin with; another file is named with --config, "
    "or as the argument of `baton config validate` and `baton config show`"
)
"""What to do about a file that is not there."""
TAKEOVER_S = 0.1
"""From the free lease to the new leader's first order (DESIGN 12)."""


def load_config(path: str | os.PathLike[str], env: Mapping[str, str] = os.environ) -> Config:
    """The checked configuration of one node. Raises ConfigError; its text has one line per thing that is wrong."""
    file = _read_file(Path(path))
    over, variables = _read_env(env)
    origins = {key: str(path) for key in _leaves(file)} | {k: f"${v}" for k, v in variables.items()}
    try:
        config = Config.from_layers(over, file)
    except ValidationError as e:
        raise ConfigError("\n".join(_explain(e, variables))) from None  # its traceback would show values
    wrong = list(_relations(config))
    if wrong:
        raise ConfigError("\n".join(wrong))
    config._origins.update(origins)
    return config


def config_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return Config.model_json_schema()


def describe(config: Config) -> dict[str, Any]:
    """Every value in force, by section, in plain JSON types and without secrets. For `config show`."""
    shown = config.model_dump(mode="json")
    shown["strategy"]["config"] = _mask(shown["strategy"]["config"])
    return shown


def worst_case_failover(config: Config) -> dict[str, float]:
    """Seconds from each fault to the first order of the next leader, at most, with these settings and a healthy rest.
    What DESIGN 4 implies; `baton bench` says what is measured."""
    ttl, call = config.lease.ttl_s, config.etcd.call_timeout_s
    return {
        "switchover": TAKEOVER_S,
        "worker_killed": TAKEOVER_S,
        "worker_hung": config.worker.hang_timeout_s + TAKEOVER_S,
        # evicted a TTL after its last renewal was seen
        "host_lost": ttl + TAKEOVER_S,
        # the same while the etcd member asked first is silent, for both transactions
        "host_and_etcd_member_lost": ttl + 2 * call + TAKEOVER_S,
        # etcd's own lease ran out first, so absence has to last a TTL on our clock (rule 3)
        "host_lost_key_vanished": 2 * ttl + 2 * call + TAKEOVER_S,
    }


# -- reading ------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {HOW_TO_BEGIN}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text (byte {e.start}); is it the right file?") from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {os_words(e)}") from e
    try:
        # Decimals, since a float would already be another number than the tick size that was written.
        return tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from None


def _read_env(env: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The layer that the environment lays over the file, and which variable gave each dotted key."""
    layer: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for name in sorted(n for n in env if n.startswith(ENV_PREFIX)):
        parts = name[len(ENV_PREFIX) :].lower().split("__")
        if not all(parts):
            raise ConfigError(f"${name}: an empty part; write {ENV_PREFIX}SECTION__KEY")
        if parts[0] == "risk" and len(parts) > 2:
            parts[1] = parts[1].upper()  # a symbol
        table = layer
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"${name}: another variable sets {part!r} as one value; set its keys or all of it")
        if isinstance(table.get(parts[-1]), dict):
            raise ConfigError(f"${name}: other variables set keys of it; set its keys or all of it")
        table[parts[-1]] = _env_value(env[name], free=parts[:2] == ["strategy", "config"])
        variables[".".join(parts)] = name
    return layer, variables


def _env_value(raw: str, *, free: bool) -> Any:
    """Lists, tables and quoted strings as TOML; anything else is text for its field to read. free: no field knows what
    it should be, so numbers and booleans are read as TOML too."""
    if free or raw[:1] in ("[", "{", '"', "'"):
        try:
            table = tomllib.loads(f"value = {raw}", parse_float=Decimal)
        except tomllib.TOMLDecodeError:
            return raw
        return table["value"] if len(table) == 1 else raw
    return raw


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


# -- telling people what is wrong ---------------------------------------------------------------------------

_SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
_HUSHED = re.compile(r"secret|passw|token|api_?key|private|credential|\burl\b", re.IGNORECASE)


def _explain(error: ValidationError, variables: Mapping[str, str]) -> Iterator[str]:
    """One plain line per error. Values of keys that may be secret are not repeated."""
    for e in error.errors(include_url=False):
        loc = [str(part) for part in e["loc"]]
        key = ".".join(loc)
        source = next((v for k, v in variables.items() if k == key or k.startswith(f"{key}.")), None)
        by = f" (from ${source})" if source else ""
        unknown_in_risk = len(loc) == 2 and loc[0] == "risk" and e["type"].startswith("model_")
        if e["type"] == "extra_forbidden" or unknown_in_risk:
            yield f"{key}: unknown key{by}{_did_you_mean(_suggest(loc))}"
        elif e["type"] == "missing":
            yield f"{key}: missing; it has no default, so set it"
        else:
            yield f"{key}{_shown(key, e['input'])}: {_words(e, loc)}{by}"


def _shown(key: str, value: Any) -> str:
    if _HUSHED.search(key):
        return " = ***"
    return "" if isinstance(value, dict | list) else f" = {value}"


def _words(e: Any, loc: list[str]) -> str:
    said = str(e["msg"]).removeprefix("Value error, ")
    for theirs in ("Input should be", "Input should", "String should", "List should", "Value should"):
        said = said.replace(theirs, "must be" if theirs.endswith(" be") else "must")
    if e["type"] == "model_type" or e["type"] == "model_attributes_type":
        return f"must be a table, [{'.'.join(loc)}]"
    section = _SECTIONS.get(loc[0])
    field = section.model_fields.get(loc[-1]) if section and len(loc) == 2 else None
    hint = field.description if field and e["type"] == "string_pattern_mismatch" else None
    return f"{hint.split(chr(10))[0].rstrip('.')} ({said})" if hint else said


def _suggest(loc: list[str]) -> list[str]:
    """Known keys that resemble an unknown one: by its name in another section, else by spelling."""
    everywhere = [f"{name}.{field}" for name, model in _SECTIONS.items() for field in model.model_fields]
    if len(loc) == 1:
        return get_close_matches(loc[0], [*Config.model_fields, *everywhere], 1)
    section, key = loc[0], loc[-1]
    prefix = ".".join(loc[:-1])
    elsewhere = [known for known in everywhere if known.endswith(f".{key}")]
    if elsewhere:
        return elsewhere
    if len(loc) == 3:
        model: type[BaseModel] | None = InstrumentRisk if section == "risk" else InstrumentConfig
    else:
        model = _SECTIONS.get(section)
    near = get_close_matches(key, model.model_fields if model else (), 1)
    return [f"{prefix}.{near[0]}"] if near else get_close_matches(".".join(loc), everywhere, 1, 0.75)


def _did_you_mean(names: list[str], prefix: str = "") -> str:
    return f"; did you mean {prefix}{names[0]}?" if names else ""


def _mask(value: Any, key: str = "") -> Any:
    """Strategy settings are the user's own; what looks like a secret by its name is not shown."""
    if isinstance(value, dict):
        return {k: _mask(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_mask(v, key) for v in value]
    return "***" if _HUSHED.search(key) else value


# -- relations ----------------------------------------------------------------------------------------------


def _relations(c: Config) -> Iterator[str]:
    """One line per relation that does not hold, with both values and what to do."""
    yield from c.lease_rules().problems()
    budget = c.lease.ttl_s - c.lease.margin_s
    if c.etcd.call_timeout_s >= budget:
        yield (
            f"etcd.call_timeout_s = {c.etcd.call_timeout_s:g}: must be below lease.ttl_s - lease.margin_s = "
            f"{budget:g}, or one silent endpoint costs the lead; lower it"
        )
    if c.worker.restart_backoff_min_s > c.worker.restart_backoff_max_s:
        yield (
            f"worker.restart_backoff_min_s = {c.worker.restart_backoff_min_s:g}: must not be above "
            f"worker.restart_backoff_max_s = {c.worker.restart_backoff_max_s:g}"
        )
    if c.replication.unprotected == "halt" and c.replication.min_standbys == 0:
        yield (
            'replication.unprotected = "halt": has no effect while replication.min_standbys = 0, as no leader then '
            "counts as unprotected; set min_standbys = 1"
        )
    yield from _network_relations(c)
    yield from _venue_relations(c)
    yield from _instrument_relations(c)


def _network_relations(c: Config) -> Iterator[str]:
    for wire in ("grpc", "http"):
        address = getattr(c.node, f"{wire}_advertise")
        if _wildcard(address):
            yield (
                f"node.{wire}_advertise = {address}: no other host can dial that; set it to the address by which "
                "others reach this node"
            )
    if c.node.grpc_listen == c.node.http_listen:
        yield f"node.http_listen = {c.node.http_listen}: the same as node.grpc_listen; use another port"
    schemes = set()
    for endpoint in c.etcd.endpoints:
        parts = url_parts(endpoint)
        schemes.add(parts.scheme)
        if parts.scheme not in ("http", "https") or not is_address(parts.netloc):
            yield f"etcd.endpoints = {endpoint}: must be http://host:port or https://host:port"
    members = [url_parts(endpoint).netloc.lower() for endpoint in c.etcd.endpoints]
    for member in sorted({m for m in members if m and members.count(m) > 1}):
        yield (
            f"etcd.endpoints = {', '.join(c.etcd.endpoints)}: {member} stands there {members.count(member)} times; "
            "name each member once"
        )
    if len(schemes) > 1:
        yield f"etcd.endpoints = {', '.join(c.etcd.endpoints)}: must all be http or all https"
    if bool(c.etcd.user) != bool(c.etcd.password):
        given, missing = ("user", "password") if c.etcd.user else ("password", "user")
        yield f"etcd.{given} is set without etcd.{missing}: set both or neither"
    if schemes == {"http"} and (c.etcd.ca_file or c.etcd.cert_file):
        yield "etcd.ca_file or cert_file is set, but etcd.endpoints are http; write https"
    for name, tls in (("etcd", c.etcd), ("replication", c.replication)):
        if bool(tls.cert_file) != bool(tls.key_file):
            given, missing = ("cert_file", "key_file") if tls.cert_file else ("key_file", "cert_file")
            yield f"{name}.{given} = {getattr(tls, given)}: needs {name}.{missing} beside it"
    if bool(c.replication.ca_file) != bool(c.replication.cert_file):
        yield "replication: ca_file, cert_file and key_file belong together, as both sides prove themselves; set all"
    if not c.gate.url.ref and not is_redis_url(c.gate.url.reveal()):
        yield (
            f"gate.url = {c.gate.url}: must be redis://host:port/0, rediss:// for TLS, or unix:///path; "
            "no options but ssl_... ones"
        )
    if c.feed.adapter not in FEED_ADAPTERS:
        yield _unknown_adapter("feed", c.feed.adapter, FEED_ADAPTERS)
    elif not is_websocket_url(c.feed.url):
        yield f"feed.url = {c.feed.url}: must be wss://host:port or ws://host:port; the streams are added by Baton"


def _unknown_adapter(section: str, adapter: str, known: Sequence[str]) -> str:
    close = get_close_matches(adapter, known, 1)
    return f"{section}.adapter = {adapter}: there is no such adapter; known: {', '.join(known)}" + _did_you_mean(close)


def _wildcard(address: str) -> bool:
    host = host_port(address)[0]
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return host == "*"


def _venue_relations(c: Config) -> Iterator[str]:
    v = c.venue
    if v.order_validity_s > c.lease.ttl_s:
        yield (
            f"venue.order_validity_s = {v.order_validity_s:g}: must not be above lease.ttl_s = {c.lease.ttl_s:g}, "
            "the longest that a decision may be in flight; lower it"
        )
    slowest = max(worst_case_failover(c).values()) + TAKEOVER_ALLOWANCE_S
    if 0 < v.deadman_ttl_s <= slowest:
        yield (
            f"venue.deadman_ttl_s = {v.deadman_ttl_s:g}: must be above the slowest takeover of {slowest:g} s (from "
            f"lease.ttl_s = {c.lease.ttl_s:g}), or a failover cancels resting orders; raise it, or 0 turns it off"
        )
    if c.gate.claim_ttl_s <= slowest + v.order_validity_s:
        yield (
            f"gate.claim_ttl_s = {c.gate.claim_ttl_s:g}: must be above the slowest takeover plus "
            f"venue.order_validity_s = {slowest + v.order_validity_s:g}; raise it"
        )
    if v.adapter not in VENUE_ADAPTERS:
        yield _unknown_adapter("venue", v.adapter, VENUE_ADAPTERS)
    elif v.adapter == "paper" and not is_address(v.target):
        yield f"venue.target = {v.target}: must be host:port of the paper venue, like 10.0.0.41:7450"
    elif c.cluster.mode == "paper" and v.adapter != "paper":
        yield (
            f'venue.adapter = {v.adapter}: cluster.mode = "paper" never sends to a real venue; '
            'set cluster.mode = "live" to mean it, or adapter = "paper"'
        )
    if c.cluster.mode == "live":
        for key, secret in c.secrets().items():
            if secret.literal:
                yield (
                    f'{key} = ***: a secret may not stand in the file when cluster.mode = "live"; '
                    f"write file:/path, env:NAME or cred:NAME"
                )


def _instrument_relations(c: Config) -> Iterator[str]:
    symbols = [i.symbol for i in c.instruments]
    for symbol in sorted({s for s in symbols if symbols.count(s) > 1}):
        yield f"instruments: {symbol} stands there {symbols.count(symbol)} times; once is enough"
    for symbol in sorted(set(symbols) - c.risk.instruments.keys()):
        yield f"risk.{symbol}: missing; every instrument needs its limits, there are no default ones"
    for symbol in c.risk.instruments.keys() - set(symbols):
        close = get_close_matches(symbol, symbols, 1)
        yield f"risk.{symbol}: not among the instruments ({', '.join(symbols)})" + _did_you_mean(close, "risk.")
    for i in c.instruments:
        limits = c.risk.instruments.get(i.symbol)
        if limits is None:
            continue
        for name in ("max_order_qty", "max_position"):
            if getattr(limits, name) < i.lot_size:
                yield f"risk.{i.symbol}.{name} = {getattr(limits, name)}: must be at least lot_size = {i.lot_size}"
        if limits.max_order_qty > limits.max_position >= i.lot_size:
            yield (
                f"risk.{i.symbol}.max_order_qty = {limits.max_order_qty}: must not be above "
                f"risk.{i.symbol}.max_position = {limits.max_position}, as no such order could fill from flat; "
                "lower it, or raise max_position"
            )
        if limits.max_order_notional < i.tick_size * i.lot_size:
            yield (
                f"risk.{i.symbol}.max_order_notional = {limits.max_order_notional}: below one tick times one lot, "
                f"tick_size * lot_size = {i.tick_size * i.lot_size}; no order could pass"
            )
        for kind in limits.order_types:
            if kind not in ORDER_KINDS:
                close = get_close_matches(kind, ORDER_KINDS, 1)
                yield f"risk.{i.symbol}.order_types = {kind}: must be of {', '.join(ORDER_KINDS)}" + _did_you_mean(
                    close
                )
