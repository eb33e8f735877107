"""The rules of the house (DESIGN 2, STYLE 1): which way imports go, what pure modules keep away from, how long a file
may be, what stands at the top of the repository. Each failure names the file and the line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {
    *("cluster", "node", "proto", "chaos", "ansible", "tests", "pyproject.toml", "README.md"),
    *("Makefile", "LICENSE", "requirements.lock"),
}
# By us and our tools; never committed.
MADE_HERE = {"dist", "baton-data", "bench-results", "simulate-results", "__pycache__"}
LINES_MAX = 600

# Imports go from the first to the last, never back.
ARROWS = ["chaos", "node", "cluster", "cluster.core"]
PURE = [
    "cluster/core/*.py",
    *(f"cluster/{name}.py" for name in ("etcd/model", "keys", "mirror", "picture", "record", "transactions")),
    *(
        f"node/{name}.py"
        for name in (
            "actions",
            "arming",
            "book",
            "book_order",
            "codec",
            "declines",
            "gate",
            "leadership",
            "orders",
            "permission",
        )
    ),
    *(f"node/{name}.py" for name in ("reconcile", "risk", "stages", "types", "venue_clock")),
    *(f"node/feeds/{name}.py" for name in ("base", "quality")),
    *(f"node/paper_venue/{name}.py" for name in ("engine", "lines", "profile", "state")),
    *(f"node/status/{name}.py" for name in ("health", "summary")),
    *(f"chaos/check/{name}.py" for name in ("evidence", "history", "record", "verdict", "invariants", "mutate")),
    *(f"chaos/sim/{name}.py" for name in ("story", "explain")),
    *(f"chaos/check/{name}.py" for name in ("at_venue", "books", "fences", "liveness", "takeover", "whole")),
]
# What a pure module could touch the world with. A Random that is handed in needs `random` for its type only.
WORLD = {
    *("asyncio", "concurrent", "contextvars", "logging", "multiprocessing", "os", "pathlib", "random", "secrets"),
    *("select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile"),
    *("threading", "time", "urllib", "http", "grpc", "redis", "structlog", "uvloop", "websockets", "uvicorn"),
}
# Who speaks which generated wire; everybody else is handed values.
STUBS = {
    "etcd": {"cluster.etcd"},
    "replication_pb2": {"cluster.wire"},
    "replication_pb2_grpc": {"cluster.replication", "cluster.follower"},
    "journal_pb2": {"node.codec"},
    "book_pb2": {"node.book", "node.book_order"},
    "paper_venue_pb2": {"node.paper_venue", "node.venues.paper"},
    "paper_venue_pb2_grpc": {"node.paper_venue", "node.venues.paper"},
}


class Import(NamedTuple):
    file: str
    line: int
    module: str  # of the file
    target: str  # as a full dotted name
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def sources() -> list[Path]:
    return [p for package in ("cluster", "node", "chaos") for p in sorted((ROOT / package).rglob("*.py"))]


def is_generated(path: Path) -> bool:
    return "_pb2" in path.name


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports_of(path: Path) -> Iterator[Import]:
    """Every import statement, wherever it stands."""
    tree = tree_of(path)
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # Of `from cluster import core` this makes a module, of `from cluster.core.ids import Term` a name in one.
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            file = str(path.relative_to(ROOT))
            yield Import(file, node.lineno, module_of(path), target, id(node) in for_types)


@cache
def all_imports() -> list[Import]:
    return [i for path in sources() if not is_generated(path) for i in imports_of(path)]


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room_of(name: str) -> int | None:
    """Index into ARROWS; None: not ours."""
    return next((i for i in range(len(ARROWS) - 1, -1, -1) if is_in(name, ARROWS[i])), None)


def test_imports_go_one_way():
    back = [i for i in all_imports() if (to := room_of(i.target)) is not None and to < (room_of(i.module) or 0)]
    assert not back, "\n".join(map(str, back))
    assert not [i for i in all_imports() if is_in(i.target, "tests")]


def test_the_core_rests_on_the_standard_library_alone():
    strangers = [
        i
        for i in all_imports()
        if is_in(i.module, "cluster.core")
        and not is_in(i.target, "cluster.core")
        and i.target.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not strangers, "\n".join(map(str, strangers))


def test_generated_stubs_are_imported_only_where_their_wire_is_spoken():
    wrong = [
        i
        for i in all_imports()
        if is_in(i.target, "cluster.rpc") and not is_in(i.module, "cluster.rpc")
        if not any(is_in(i.module, speaker) for speaker in STUBS.get(i.target.split(".")[2], ()))
    ]
    assert not wrong, "\n".join(map(str, wrong))


# -- purity -----------------------------------------------------------------------------------------------------


def pure_files() -> list[Path]:
    found = [p for pattern in PURE for p in sorted(ROOT.glob(pattern))]
    return [p for p in found if p.name != "__init__.py"]


def test_every_pattern_of_pure_modules_finds_one():
    assert not [pattern for pattern in PURE if not list(ROOT.glob(pattern))]


@pytest.mark.parametrize("path", pure_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_pure_module_touches_nothing(path: Path):
    touches = [i for i in imports_of(path) if i.target.split(".")[0] in WORLD and not i.for_types_only]
    assert not touches, "\n".join(map(str, touches))
    waits = [
        f"{path.relative_to(ROOT)}:{node.lineno} {type(node).__name__}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Global)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("open", "print", "input")
        )
    ]
    assert not waits, "\n".join(waits)


# -- files --------------------------------------------------------------------------------------------------------


def test_no_file_is_longer_than_a_room():
    long = {
        str(p.relative_to(ROOT)): n
        for p in sources()
        if not is_generated(p) and (n := len(p.read_text().splitlines())) > LINES_MAX
    }
    assert not long, f"asking to be two rooms: {long}"


def test_the_top_level_is_the_fixed_one():
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert found - MADE_HERE == TOP_LEVEL


def test_proto_holds_only_protos_and_their_readme():
    assert {p.name for p in (ROOT / "proto").iterdir() if p.suffix != ".proto"} == {"README.md"}


# In two parts, or this file would be the one that names them.
REGISTRY = re.compile(
    "|".join(
        "".join(parts)
        for parts in [
            ("pypi", r"\.org"),
            ("pythonhosted", r"\.org"),
            (r"registry\.npm", r"js\.org"),
            ("crates", r"\.io"),
            (r"proxy\.golang", r"\.org"),
            ("conda", r"\.(?:org|anaconda)"),
            ("artifactory", r"[./]"),
            (r"index-url", r"[ =]+\S*//"),
        ]
    )
)


def texts() -> Iterator[tuple[str, str]]:
    skipped = {".git", ".venv", ".hypothesis", "node_modules", *MADE_HERE}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or skipped & set(parts) or any(p.endswith(("_cache", ".egg-info")) for p in parts):
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text()
        except UnicodeDecodeError:
            continue  # a picture, say


def test_no_file_names_a_package_registry():
    named = [f"{name}: {m.group()!r}" for name, text in texts() for m in REGISTRY.finditer(text)]
    assert not named, "\n".join(named)


# -- these tests can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        ("cluster/core/x.py", "from ..keeper import Keeper", "cluster.keeper.Keeper"),
        ("cluster/core/x.py", "def f():\n    import node.book", "node.book"),
        ("cluster/etcd/__init__.py", "from .client import A", "cluster.etcd.client.A"),
        ("cluster/x.py", "from . import keys as k", "cluster.keys"),
        ("node/venues/x.py", "from ...chaos import show", "chaos.show"),
    ],
)
def test_relative_and_hidden_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file, text, target):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (seen,) = imports_of(path)
    assert seen.target == target


def test_the_rooms_are_told_apart():
    assert [room_of(n) for n in ("chaos.x", "node.x", "cluster.keeper", "cluster.core.ids", "clusters", "json")] == [
        *(0, 1, 2, 3, None, None)
    ]


def test_an_address_of_a_registry_is_seen():
    assert REGISTRY.search("https://pypi" + ".org/simple")
    assert REGISTRY.search("--extra-index-url" + " https://mirror.example/simple")
    assert not REGISTRY.search("pip install --no-emit-index-url --output-file requirements.lock")
