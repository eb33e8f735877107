"""What `baton up` generates, the overlay over it, and TOML written back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.errors import ConfigError
from node.config import load_config
from node.local import nodeconfig

NAMES = ["n1", "n2"]


def base(tmp_path: Path) -> dict[str, Any]:
    return nodeconfig.generated(
        node="n1",
        data_dir=tmp_path / "data",
        grpc="127.0.0.1:20001",
        http="127.0.0.1:20002",
        etcd=["http://127.0.0.1:20003"],
        gate_url="redis://127.0.0.1:20004/0",
        venue="127.0.0.1:20005",
        feed_url="ws://127.0.0.1:20006",
        strategy=nodeconfig.DEFAULT_STRATEGY,
    )


def test_the_generated_configuration_is_good_and_fits_the_example_strategies(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text(nodeconfig.toml_text(base(tmp_path)))
    config = load_config(file, {})
    assert config.etcd.endpoints == ["http://127.0.0.1:20003"]
    limits = config.risk_limits().instruments["BTCUSDT"]
    assert limits.max_position_lots > 1000 + 2 * 3 * 100  # MarketMaker: inventory and everything that rests
    assert limits.price_collar_bps > 1000  # Probe: 10 % from the touch


def test_an_overlay_changes_one_value_and_leaves_its_neighbours(tmp_path: Path) -> None:
    table = nodeconfig.for_node(base(tmp_path), {"lease": {"ttl_s": 0.5}, "log": {"level": "debug"}}, "n1")
    assert table["lease"] == {"ttl_s": 0.5}
    assert table["log"] == {"format": "json", "level": "debug"}


def test_an_overlay_for_one_node_beats_the_common_one_and_leaves_the_others(tmp_path: Path) -> None:
    overlay = {"node": {"priority": 5}, "per_node": {"n2": {"node": {"priority": 7}}}}
    assert nodeconfig.for_node(base(tmp_path), overlay, "n1")["node"]["priority"] == 5
    theirs = nodeconfig.for_node(base(tmp_path), overlay, "n2")
    assert theirs["node"]["priority"] == 7
    assert "per_node" not in theirs


def test_lists_are_replaced_and_arguments_left_alone(tmp_path: Path) -> None:
    under = base(tmp_path)
    merged = nodeconfig.merged(under, {"etcd": {"endpoints": ["http://proxy:1"]}})
    assert merged["etcd"]["endpoints"] == ["http://proxy:1"]
    assert under == base(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[lease\n", "is not TOML"),
        ("[per_node.n9.lease]\nttl_s = 1\n", "per_node.n9: there is no such node; nodes: n1, n2"),
        ("per_node = 3\n", "one table per node"),
    ],
)
def test_a_wrong_overlay_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "overlay.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="config overlay") as e:
        nodeconfig.read_overlay(file, NAMES)
    assert why in str(e.value)


def test_an_overlay_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        nodeconfig.read_overlay(tmp_path / "nothing.toml", NAMES)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_plain = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | _texts
_tables = st.recursive(
    st.dictionaries(_texts, _plain, max_size=3),
    lambda inner: st.dictionaries(_texts, inner | _plain | st.lists(_plain | inner, max_size=3), max_size=3),
    max_leaves=8,
)


@given(_tables)
def test_toml_is_read_back_as_it_was_written(table: dict[str, Any]) -> None:
    assert tomllib.loads(nodeconfig.toml_text(table)) == table
