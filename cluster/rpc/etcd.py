"""etcd's own messages and stubs, rebuilt from what the etcd3 0.12.0 wheel carries.

The wheel was generated in 2020 and cannot be imported on protobuf 4 or newer: its modules build every descriptor
by hand, which the C++ and upb runtimes refuse. But each module also carries its .proto file whole, as the bytes of
a FileDescriptorProto. From those bytes the same messages are built here, on whatever runtime is installed, and the
wheel's own stubs (`rpc_pb2_grpc`) and transaction vocabulary (`transactions`) are then imported on top of them.

- Nothing of etcd3 is executed except those two modules and `utils`: no client, no tenacity, no six.
- The messages live in a descriptor pool of their own. Another etcd library in the process (they all register a
  file called `rpc.proto`) does not collide with them.
- `sys.modules` is as it was when this import ends: whoever imports `etcd3` gets what they would have got before.

Read next: `cluster/etcd/` for the client. The messages are typed `Any`; nothing outside that package should see one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from cluster.core.errors import ConfigError

VERSION = "0.12.0"
_FILES = ("kv", "auth", "rpc")  # in the order of their imports
_SERIALIZED = re.compile(r"^  serialized_pb=_b\(('.*')\)$", re.MULTILINE)
_REMEDY = f"install it with: pip install etcd3=={VERSION}"


class EtcdWheelError(ConfigError, ImportError):
    """The etcd3 package is missing, or is not the release whose messages we know how to read."""


def _wheel() -> Path:
    """Where etcd3 is installed, found without importing it."""
    spec = importlib.util.find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise EtcdWheelError(f"the Python package etcd3 is not installed; {_REMEDY}")
    return Path(next(iter(spec.submodule_search_locations)))


def serialized_descriptor(wheel: Path, name: str) -> bytes:
    """The FileDescriptorProto inside `etcdrpc/<name>_pb2.py`, as bytes.

    Only the one literal is parsed, not the 180 kB module around it. Raises EtcdWheelError if it is not there.
    """
    path = wheel / "etcdrpc" / f"{name}_pb2.py"
    try:
        found = _SERIALIZED.search(path.read_text(encoding="latin1"))
    except OSError as e:
        raise EtcdWheelError(f"etcd3 in {wheel} is not release {VERSION} ({e}); {_REMEDY}") from e
    if found is None:
        raise EtcdWheelError(f"{path} was not generated as in etcd3 {VERSION}; {_REMEDY}")
    text: str = ast.literal_eval(found.group(1))
    return text.encode("latin1")  # what the module's own `_b` does


def build_messages(wheel: Path) -> dict[str, ModuleType]:
    """One module of message classes per .proto file, named as the wheel names them."""
    pool = DescriptorPool()
    modules = {}
    for name in _FILES:
        pool.AddSerializedFile(serialized_descriptor(wheel, name))
        file = pool.FindFileByName(f"{name}.proto")
        module = modules[f"{name}_pb2"] = ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        for message in file.message_types_by_name.values():
            setattr(module, message.name, GetMessageClass(message))
    return modules


@contextmanager
def _shim(wheel: Path, messages: dict[str, ModuleType]) -> Iterator[None]:
    """While inside, `etcd3` and `etcd3.etcdrpc` are empty packages that hold the rebuilt messages."""
    etcd3, etcdrpc = ModuleType("etcd3"), ModuleType("etcd3.etcdrpc")
    etcd3.__path__ = [str(wheel)]
    etcdrpc.__path__ = [str(wheel / "etcdrpc")]
    vars(etcd3)["etcdrpc"] = etcdrpc
    vars(etcdrpc).update({k: v for k, v in vars(messages["rpc_pb2"]).items() if not k.startswith("_")})
    vars(etcdrpc).update(messages)

    def ours() -> list[str]:
        return [name for name in sys.modules if name == "etcd3" or name.startswith("etcd3.")]

    before = {name: sys.modules.pop(name) for name in ours()}
    sys.modules["etcd3"], sys.modules["etcd3.etcdrpc"] = etcd3, etcdrpc
    sys.modules.update({f"etcd3.etcdrpc.{name}": module for name, module in messages.items()})
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _load() -> tuple[ModuleType, ModuleType, ModuleType, ModuleType, ModuleType]:
    wheel = _wheel()
    init = (wheel / "__init__.py").read_text(encoding="utf-8")
    if f"__version__ = '{VERSION}'" not in init:
        raise EtcdWheelError(f"the package etcd3 in {wheel} is not release {VERSION}; {_REMEDY}")
    messages = build_messages(wheel)
    with _shim(wheel, messages):
        stubs = importlib.import_module("etcd3.etcdrpc.rpc_pb2_grpc")
        vocabulary = importlib.import_module("etcd3.transactions")
    return messages["kv_pb2"], messages["auth_pb2"], messages["rpc_pb2"], stubs, vocabulary


kv_pb2, auth_pb2, rpc_pb2, rpc_pb2_grpc, transactions = _load()
"""mvccpb, authpb, etcdserverpb; the stubs (KVStub, WatchStub, ...); Version, Value, Create, Mod, Put, Get, Delete."""
