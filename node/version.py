"""The installed version of Baton, as people and peers see it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("baton-ha")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"
