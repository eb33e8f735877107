"""The configuration of a local cluster's nodes: what `baton up` generates, and an overlay merged over it.

Pure but for reading the overlay file. Whether the result is right is for `node.config.load_config` to say.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from cluster.core.errors import ConfigError

PER_NODE = "per_node"
"""Table of an overlay that holds one overlay per node: `[per_node.n1.etcd]`."""

DEFAULT_STRATEGY = "node.strategies.market_maker:MarketMaker"

Table = dict[str, Any]


def generated(
    *,
    node: str,
    data_dir: Path,
    grpc: str,
    http: str,
    etcd: list[str],
    gate_url: str,
    venue: str,
    feed_url: str,
    strategy: str,
) -> Table:
    """One node's tables. Addresses are host:port; the limits fit the example strategies on BTCUSDT, and little more."""
    return {
        "cluster": {"name": "local", "mode": "paper"},
        "node": {"name": node, "data_dir": str(data_dir), "grpc_listen": grpc, "http_listen": http},
        "etcd": {"endpoints": etcd},
        "gate": {"url": gate_url},
        "risk": {
            "orders_per_s": 100,
            "orders_burst": 200,
            "BTCUSDT": {
                "max_order_qty": "0.01",
                "max_order_notional": "2000",
                "max_position": "0.05",
                "price_collar_bps": 2000,  # the probe quotes 10 % away
                "order_types": ["limit", "post_only", "ioc", "market"],
            },
        },
        "instruments": [{"symbol": "BTCUSDT", "tick_size": "0.01", "lot_size": "0.00001"}],
        "venue": {"target": venue, "account": "baton", "api_key": "paper"},
        "feed": {"url": feed_url},
        "strategy": {"path": strategy},
        "log": {"format": "json"},
    }


def merged(base: Table, over: Mapping[str, Any]) -> Table:
    """`over` wins; tables are merged, everything else (lists too) is replaced. Neither argument is changed."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return out


def for_node(base: Table, overlay: Mapping[str, Any], node: str) -> Table:
    """`base` under the overlay's common part, under its part for `node`."""
    common = {k: v for k, v in overlay.items() if k != PER_NODE}
    return merged(merged(base, common), overlay.get(PER_NODE, {}).get(node, {}))


def read_overlay(path: Path, nodes: list[str]) -> Table:
    """Raises ConfigError for a file that cannot be read, is not TOML, or speaks of a node that there is not."""
    try:
        overlay = tomllib.loads(path.read_text("utf-8"))
    except OSError as e:
        raise ConfigError(
            f"config overlay {path}: {e.strerror}; name a TOML file that can be read, or leave --config-overlay out"
        ) from e
    except ValueError as e:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"config overlay {path} is not TOML: {e}") from e
    check_overlay(overlay, nodes)
    return overlay


def check_overlay(overlay: Mapping[str, Any], nodes: list[str]) -> None:
    per_node = overlay.get(PER_NODE, {})
    if not isinstance(per_node, Mapping) or not all(isinstance(v, Mapping) for v in per_node.values()):
        raise ConfigError(f"config overlay: {PER_NODE} must hold one table per node, like [{PER_NODE}.n1.lease]")
    if unknown := sorted(set(per_node) - set(nodes)):
        raise ConfigError(f"config overlay: {PER_NODE}.{unknown[0]}: there is no such node; nodes: {', '.join(nodes)}")


_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def toml_text(table: Mapping[str, Any]) -> str:
    """`table` as TOML: plain values first, then a section per table, lists of tables as [[sections]]."""
    lines: list[str] = []
    _section(table, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _section(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or (_is_tables(value) and value):
            later.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in later:
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]"]
            _section(value, inner, lines)
        else:
            for one in value:
                lines += ["", f"[[{name}]]"]
                _section(one, inner, lines)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if _BARE.match(key) else _string(key)


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):  # within a list that also holds other things
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return _string(value)
    raise ConfigError(f"{value!r} cannot be written as TOML")
