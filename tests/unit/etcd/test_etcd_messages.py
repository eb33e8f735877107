"""The messages rebuilt from the etcd3 wheel: complete, private, and loud when the wheel is not the one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cluster.core.errors import ConfigError
from cluster.rpc import etcd
from cluster.rpc.etcd import EtcdWheelError, build_messages, kv_pb2, rpc_pb2, rpc_pb2_grpc, serialized_descriptor


def wheel() -> Path:
    spec = importlib.util.find_spec("etcd3")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def run(code: str) -> str:
    """In a fresh interpreter; its last line of output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["kv", "auth", "rpc"])
def test_every_message_of_the_wheel_is_rebuilt(name):
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized_descriptor(wheel(), name))
    module = getattr(etcd, f"{name}_pb2")
    assert file.message_type
    for message in file.message_type:
        rebuilt = getattr(module, message.name).DESCRIPTOR
        assert [(f.name, f.number) for f in rebuilt.fields] == [(f.name, f.number) for f in message.field]


def test_a_transaction_goes_over_the_wire_and_back():
    request = rpc_pb2.TxnRequest(
        compare=[rpc_pb2.Compare(key=b"k", target=rpc_pb2.Compare.MOD, mod_revision=7)],
        success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k", value=b"v", lease=3))],
    )
    # By hand from rpc.proto: compare{target=MOD(2), key, mod_revision(6)=7}, success{put{key, value, lease(3)}}
    assert request.SerializeToString() == b"\x0a\x07\x10\x02\x1a\x01k\x30\x07\x12\x0a\x12\x08\x0a\x01k\x12\x01v\x18\x03"
    assert rpc_pb2.TxnRequest.FromString(request.SerializeToString()) == request


def test_a_nested_message_of_another_file_is_the_same_class():
    reply = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"k")])
    assert type(reply.kvs[0]) is kv_pb2.KeyValue


def test_a_field_newer_than_the_wheel_survives():
    """The watch's progress request is one: field 3 of WatchRequest, since etcd 3.4."""
    assert rpc_pb2.WatchRequest.FromString(b"\x1a\x00").SerializeToString() == b"\x1a\x00"


def test_the_stubs_are_the_wheels_own():
    assert Path(rpc_pb2_grpc.__file__).is_relative_to(wheel())
    for name in ("KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth"):
        assert hasattr(rpc_pb2_grpc, f"{name}Stub")


def test_the_import_leaves_no_trace_and_runs_no_client_code():
    left = run(
        "import sys, cluster.rpc.etcd\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('etcd3', 'tenacity', 'six')))"
    )
    assert left == "[]"


def test_an_etcd3_imported_before_stays_what_it_was():
    same = run(
        "import sys, types\n"
        "mine = types.ModuleType('etcd3'); mine.__spec__ = None\n"
        "import importlib.util; spec = importlib.util.find_spec('etcd3')\n"
        "mine.__spec__ = spec; sys.modules['etcd3'] = mine\n"
        "import cluster.rpc.etcd\n"
        "print(sys.modules['etcd3'] is mine and 'etcd3.etcdrpc' not in sys.modules)"
    )
    assert same == "True"


def test_another_rpc_proto_in_the_process_does_not_collide():
    other = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="etcdserverpb", syntax="proto3")
    other.message_type.add(name="TxnRequest").field.add(name="else", number=1, type=9, label=1)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(other.SerializeToString())
    theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("etcdserverpb.TxnRequest"))
    assert theirs is not rpc_pb2.TxnRequest
    assert "compare" in rpc_pb2.TxnRequest.DESCRIPTOR.fields_by_name


def test_a_missing_wheel_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EtcdWheelError, match=r"not installed.*pip install etcd3==0\.12\.0"):
        etcd._wheel()


def test_another_release_is_refused(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("__version__ = '0.13.0'\n")
    monkeypatch.setattr(etcd, "_wheel", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"not release 0\.12\.0.*pip install"):
        etcd._load()


@pytest.mark.parametrize("content", [None, "DESCRIPTOR = _descriptor_pool.Default().AddSerializedFile(b'...')\n"])
def test_a_wheel_generated_otherwise_is_refused(tmp_path, content):
    (tmp_path / "etcdrpc").mkdir()
    if content is not None:
        (tmp_path / "etcdrpc" / "kv_pb2.py").write_text(content)
    with pytest.raises(EtcdWheelError, match=r"etcd3 .*0\.12\.0.*pip install|generated"):
        build_messages(tmp_path)
