from __future__ import annotations

import pytest

from cluster.core.errors import ConfigError
from node.paper_venue.profile import Profile, parse_profile
from node.venues.base import DeadmanScope, DoubleOrderClass, IdUniqueness


@pytest.mark.parametrize(
    ("text", "double_order_class", "scope"),
    [
        ("token", DoubleOrderClass.PROVED, DeadmanScope.TERM),
        ("expiry", DoubleOrderClass.TIME_BOUNDED, DeadmanScope.ACCOUNT),
        ("plain", DoubleOrderClass.BEST_EFFORT, DeadmanScope.ACCOUNT),
        ("plain+no-deadman", DoubleOrderClass.BEST_EFFORT, DeadmanScope.NONE),
    ],
)
def test_profile_decides_the_capabilities(text: str, double_order_class: DoubleOrderClass, scope: DeadmanScope) -> None:
    capabilities = parse_profile(text).capabilities
    assert capabilities.double_order_class is double_order_class
    assert capabilities.deadman is scope
    assert capabilities.id_uniqueness is IdUniqueness.FOREVER


def test_token_with_every_fence_is_the_default() -> None:
    assert parse_profile("token") == Profile()


@pytest.mark.parametrize("fence", ["token", "expiry", "plain"])
@pytest.mark.parametrize("unique", ["", "+while-open"])
@pytest.mark.parametrize("deadman", ["", "+no-deadman"])
def test_profile_reads_what_it_prints(fence: str, unique: str, deadman: str) -> None:
    text = fence + unique + deadman
    assert str(parse_profile(text)) == text
    assert (parse_profile(text).id_uniqueness is IdUniqueness.WHILE_OPEN) == bool(unique)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("tokens", "'tokens'"),
        ("while-open", "'while-open'"),
        ("token+", "''"),
        ("token+deadman", "'deadman'"),
        ("token+while-open+while-open", "twice"),
    ],
)
def test_wrong_profile_is_refused_naming_the_part(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_profile(text)
