"""What a keeper shows of its cluster, whatever somebody wrote into etcd by hand."""

from __future__ import annotations

import json

import pytest

from cluster.keys import Keys, RawKey
from cluster.picture import ADDRESS_MAX, address_of, grpc_address

KEYS = Keys("alpha")


def raw(**fields: object) -> RawKey:
    return RawKey(json.dumps(fields).encode(), 1, 1)


def test_the_leaders_own_key_is_fresher_than_its_members() -> None:
    found = {KEYS.leader: raw(node="n1", grpc="10.0.0.1:1"), KEYS.member("n1"): raw(grpc="10.0.0.1:2")}
    assert grpc_address(KEYS, found, "n1") == "10.0.0.1:1"
    assert grpc_address(KEYS, found | {KEYS.leader: raw(node="n2", grpc="10.0.0.2:1")}, "n1") == "10.0.0.1:2"
    assert grpc_address(KEYS, {}, "n1") == ""


@pytest.mark.parametrize(
    "told", [None, 5, ["h:1"], "", "nohost", "h:1\n", "\ud800:1", "bücher:1", "x" * ADDRESS_MAX + ":1"]
)
def test_what_can_be_no_address_is_none(told: object) -> None:
    """gRPC would raise for it, in every worker of the cluster."""
    assert address_of({"grpc": told}) == ""
    assert grpc_address(KEYS, {KEYS.leader: raw(node="n1", grpc=told)}, "n1") == ""
