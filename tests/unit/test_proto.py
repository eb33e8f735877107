"""The generated modules in cluster/rpc are what `make proto` makes of proto/, and the protos keep their own rules."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").glob("*.proto"))
RPC = ROOT / "cluster" / "rpc"


def command() -> list[str]:
    """What `make proto` would run, word by word."""
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "--old-file=setup", "proto"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    (line,) = [line for line in told.replace("\\\n", " ").splitlines() if "grpc_tools.protoc" in line]
    words = shlex.split(line)
    return words[words.index("-m") :]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File name -> text, made anew."""
    out = tmp_path_factory.mktemp("generated")
    words = [re.sub(r"^(--\w+_out)=.*", rf"\1={out}", word) for word in command()]
    descriptors = out / "descriptors"
    subprocess.run([sys.executable, *words, f"--descriptor_set_out={descriptors}"], cwd=ROOT, check=True, timeout=60)
    return {p.name: p.read_text() for p in out.glob("cluster/rpc/*")}


def services() -> set[str]:
    """Stems of the protos that declare a service: for the others the grpc plug-in writes a file with nothing in it."""
    return {p.stem for p in PROTOS if re.search(r"^service ", p.read_text(), re.M)}


def test_the_command_of_the_makefile_names_every_proto():
    assert {Path(w).stem for w in command() if w.endswith(".proto")} == {p.stem for p in PROTOS}


def test_the_generated_modules_are_up_to_date(generated: dict[str, str]):
    empty = {f"{p.stem}_pb2_grpc.py" for p in PROTOS} - {f"{stem}_pb2_grpc.py" for stem in services()}
    wanted = {name: text for name, text in generated.items() if name not in empty}
    stand = {p.name: p.read_text() for p in RPC.glob("*_pb2*") if p.name not in empty}
    assert stand.keys() == wanted.keys()
    differ = [name for name, text in wanted.items() if stand[name] != text]
    assert not differ, f"{differ}: run `make proto` and commit what it changes; never edit them by hand"


@pytest.mark.parametrize("name", sorted(p.stem for p in PROTOS))
def test_a_proto_names_its_package_and_version(name: str):
    text = (ROOT / "proto" / f"{name}.proto").read_text()
    assert text.startswith("// ")  # what it is, before anything else
    assert re.search(r"^package baton\.[a-z_]+\.v\d+;$", text, re.M)
    assert 'syntax = "proto3";' in text
    assert "import " not in text  # each stands alone: a wire or a file format is not changed through another


def file_of(name: str) -> descriptor_pb2.FileDescriptorProto:
    """As the generated module itself carries it."""
    module = __import__(f"cluster.rpc.{name}_pb2", fromlist=["DESCRIPTOR"])
    found = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    return found


def messages(name: str) -> list[descriptor_pb2.DescriptorProto]:
    return list(file_of(name).message_type)


@pytest.mark.parametrize("name", sorted(p.stem for p in PROTOS))
def test_numbers_are_never_floats_and_enums_begin_with_nothing(name: str):
    """Money and sizes are whole ticks and lots; and a value that was never set must not mean something."""
    field = descriptor_pb2.FieldDescriptorProto
    floats = [
        f"{m.name}.{f.name}" for m in messages(name) for f in m.field if f.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT)
    ]
    assert not floats
    for enum in file_of(name).enum_type:
        assert (enum.value[0].number, enum.value[0].name.rsplit("_", 1)[1]) == (0, "UNSPECIFIED")


# Numbers that stand on disks and wires. A field that goes is reserved; one that comes is added here too.
FROZEN = {
    "journal": {
        "Intent": "1 decision_id, 2 symbol, 3 side, 4 type, 5 tif, 6 post_only, 7 qty_lots, 8 price_ticks, 9 reason, "
        "10 feed_received_at, 11 validity_ms",
        "Outcome": "1 intent_index, 2 result, 3 evidence, 4 venue_order_id, 5 code, 6 reason, 7 expires_at",
        "Fill": "1 trade_id, 2 intent_index, 3 client_order_id, 4 symbol, 5 side, 6 qty_lots, 7 price_ticks, "
        "8 venue_at, 9 venue_event_seq",
        "OrderClosed": "1 intent_index, 2 how, 3 filled_lots, 4 reason, 5 evidence, 6 venue_event_seq",
        "CancelRequested": "1 intent_index, 2 reason",
        "TermStarted": "1 node, 2 incarnation",
        "StrategyState": "1 strategy, 2 version, 3 state",
        "Reconciled": "1 trigger, 2 mismatches",
    },
    "replication": {
        "Entry": "1 index, 2 term, 3 kind, 4 at, 5 body, 6 chain",
        "Ack": "1 term, 2 durable_index, 3 applied_index, 4 digest",
    },
}


@pytest.mark.parametrize(("name", "message"), [(n, m) for n, ms in FROZEN.items() for m in ms])
def test_a_field_keeps_its_number(name: str, message: str):
    (found,) = [m for m in messages(name) if m.name == message]
    assert ", ".join(f"{f.number} {f.name}" for f in found.field) == FROZEN[name][message]


def test_every_kind_of_entry_has_its_message_and_its_number():
    (kinds,) = [e for e in file_of("journal").enum_type if e.name == "Kind"]
    told = {v.name.removeprefix("KIND_"): v.number for v in kinds.value if v.number}
    assert told == {
        "TERM_STARTED": 1,
        "INTENT": 16,
        "OUTCOME": 17,
        "FILL": 18,
        "ORDER_CLOSED": 19,
        "CANCEL_REQUESTED": 20,
        "STRATEGY_STATE": 21,
        "RECONCILED": 22,
    }
    names = {m.name for m in messages("journal")}
    assert {"".join(w.capitalize() for w in kind.split("_")) for kind in told} <= names
