"""What the client decides without a server: endpoints, key ranges, the sorting of errors, version floors."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import trustme
from grpc.aio import AioRpcError, Metadata

from cluster.core.errors import ConfigError
from cluster.etcd import (
    AuthRefused,
    EtcdClient,
    EtcdRefused,
    LeaseGone,
    TlsFiles,
    absent,
    delete,
    get,
    mod_revision,
    put,
)
from cluster.etcd.channels import Guard, parse_endpoint, parse_endpoints
from cluster.etcd.model import WrongCluster, key_range
from cluster.etcd.wire import Outcome, judge, op_message, refusal
from cluster.rpc.etcd import rpc_pb2
from node.local.binaries import etcd_version_warnings

Code = grpc.StatusCode


def error(code: grpc.StatusCode, text: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), text)


# -- endpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:2379", ("127.0.0.1:2379", None)),
        ("http://etcd-1.example:2379", ("etcd-1.example:2379", False)),
        ("https://etcd-1.example:2379/", ("etcd-1.example:2379", True)),
        ("[::1]:2379", ("[::1]:2379", None)),
    ],
)
def test_an_endpoint_is_read(text, parsed):
    assert parse_endpoint(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:", "localhost:http", "localhost:0", "localhost:70000", "ftp://h:1", "http://h:1/v3",
     "h:1,h:2", "h: 2379", "u:p@h:1", "::1:2379", "http://"],
)  # fmt: skip
def test_a_bad_endpoint_is_named(text):
    with pytest.raises(ConfigError, match="etcd endpoint") as e:
        EtcdClient([text])
    assert repr(text) in str(e.value)


@pytest.mark.parametrize(
    ("endpoints", "tls", "message"),
    [
        ([], None, "at least one"),
        ("127.0.0.1:2379", None, "give a list"),
        (["h:1", "http://h:1"], None, "listed twice"),
        (["http://h:1"], TlsFiles(ca=Path("ca.pem")), "write https://h:1"),
    ],
)
def test_bad_lists_of_endpoints_are_refused(endpoints, tls, message):
    with pytest.raises(ConfigError, match=message):
        parse_endpoints(endpoints, tls)


def test_tls_is_on_with_files_or_https():
    assert parse_endpoints(["a:1", "https://b:1"], None) == [("a:1", False), ("b:1", True)]
    assert parse_endpoints(["a:1", "https://b:1"], TlsFiles()) == [("a:1", True), ("b:1", True)]


def test_tls_files_that_cannot_be_right_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read ca .*missing\.pem"):
        EtcdClient(["h:1"], tls=TlsFiles(ca=tmp_path / "missing.pem"))
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    with pytest.raises(ConfigError, match="give both or neither"):
        EtcdClient(["h:1"], tls=TlsFiles(ca=ca, cert=ca))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user": "u"}, "both user and password"),
        ({"password": "p"}, "both user and password"),
        ({"call_timeout_s": 0}, "must be > 0"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EtcdClient(["h:1"], **settings)


# -- keys and operations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "prefix", "expected"),
    [
        ("/a", False, (b"/a", b"")),
        ("/a/", True, (b"/a/", b"/a0")),
        ("", True, (b"\0", b"\0")),
        ("a\udcff", True, (b"a\xff", b"b")),
        ("\udcff", True, (b"\xff", b"\0")),
    ],
)
def test_a_prefix_becomes_the_range_of_its_keys(key, prefix, expected):
    assert key_range(key, prefix) == expected


def test_the_vocabulary_makes_the_messages_it_names():
    assert absent("k").build_message() == rpc_pb2.Compare(key=b"k", target=rpc_pb2.Compare.CREATE, create_revision=0)
    assert (mod_revision("k") == 7).build_message() == rpc_pb2.Compare(
        key=b"k", target=rpc_pb2.Compare.MOD, mod_revision=7
    )
    assert op_message(put("k", b"v", 3)).request_put == rpc_pb2.PutRequest(key=b"k", value=b"v", lease=3)
    assert op_message(get("k/", prefix=True)).request_range == rpc_pb2.RangeRequest(key=b"k/", range_end=b"k0")
    assert op_message(delete("k")).request_delete_range == rpc_pb2.DeleteRangeRequest(key=b"k", prev_kv=True)
    with pytest.raises(TypeError, match="not an etcd operation"):
        op_message("put")


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused", Outcome.NOT_DONE),
        (Code.UNAVAILABLE, "etcdserver: no leader", Outcome.NOT_DONE),
        (Code.UNKNOWN, "raft proposal dropped", Outcome.NOT_DONE),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Outcome.NOT_DONE),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Outcome.UNKNOWN),
        (Code.UNAVAILABLE, "Socket closed", Outcome.UNKNOWN),
        (Code.UNAVAILABLE, "etcdserver: request timed out", Outcome.UNKNOWN),
        (Code.UNAVAILABLE, "etcdserver: leader changed", Outcome.UNKNOWN),
        (Code.UNAVAILABLE, "etcdserver: server stopped", Outcome.UNKNOWN),
        (Code.UNKNOWN, "not a primary lessor", Outcome.UNKNOWN),
        (Code.INTERNAL, "RST_STREAM", Outcome.UNKNOWN),
        (Code.CANCELLED, "", Outcome.UNKNOWN),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max", Outcome.UNKNOWN),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Outcome.REFUSED),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Outcome.REFUSED),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Outcome.REFUSED),
        (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Outcome.REFUSED),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Outcome.STALE_TOKEN),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Outcome.STALE_TOKEN),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Outcome.STALE_TOKEN),
        (Code.UNKNOWN, "auth: revision in header is old", Outcome.STALE_TOKEN),
    ],
)
def test_an_error_is_sorted_by_what_etcd_did(code, text, outcome):
    assert judge(error(code, text)) is outcome


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseGone, "lease"),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", AuthRefused, "grant this user's role"),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", AuthRefused, "set etcd user and password"),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", EtcdRefused, "defragment"),
    ],
)
def test_a_refusal_names_the_endpoint_and_the_remedy(code, text, kind, hint):
    e = refusal("h:1", error(code, text))
    assert type(e) is kind and hint in str(e) and "h:1" in str(e)


def header(cluster_id: int, raft_term: int) -> object:
    return rpc_pb2.ResponseHeader(cluster_id=cluster_id, raft_term=raft_term, revision=1)


def test_the_guard_takes_an_answer_overtaken_by_an_election_but_none_older_than_its_question():
    guard = Guard(None)
    assert guard.check(header(1, 5), "a", term_when_sent=0)
    assert guard.check(header(1, 7), "b", term_when_sent=5)
    assert guard.check(header(1, 5), "a", term_when_sent=5)  # asked before term 7 was heard of
    assert not guard.check(header(1, 5), "a", term_when_sent=7)


def test_the_guard_names_both_clusters():
    with pytest.raises(WrongCluster, match=r"h:1 is cluster b, expected cluster a") as e:
        Guard(10).check(header(11, 1), "h:1", 0)
    assert (e.value.expected, e.value.found) == (10, 11)


# -- versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("3.3.25", "not supported"),
        ("3.4.41", "stale reads"),
        ("3.5.1", "stale reads"),
        ("3.5.1", "never for production"),
        ("3.5.28", "leak"),
        ("3.6.8", "stale reads"),
        ("3.6.9", "leak"),
        ("3.7.0", "leak"),
        ("banana", "not a version"),
    ],
)
def test_an_old_etcd_is_warned_about(version, says):
    assert any(says in w for w in etcd_version_warnings(version))


def test_the_data_inconsistency_is_named_for_the_releases_that_have_it_only():
    named = [
        v for v in ("3.4.42", "3.5.0", "3.5.2", "3.5.3", "3.6.0") if "etcd#13766" in " ".join(etcd_version_warnings(v))
    ]
    assert named == ["3.5.0", "3.5.2"]


@pytest.mark.parametrize("version", ["3.4.42", "3.5.33", "3.6.14", "3.7.1", "3.8.0-rc.0", (3, 6, 20)])
def test_a_good_etcd_is_not_warned_about(version):
    assert etcd_version_warnings(version) == []
