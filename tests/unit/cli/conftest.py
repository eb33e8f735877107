from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Baton = Callable[..., Ran]


@pytest.fixture
def baton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Baton:
    """Run a command line in this process, in an empty directory; what it printed and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATON_URL", raising=False)

    def run(*words: object) -> Ran:
        from node.cli.app import main

        monkeypatch.setattr(sys, "argv", ["baton", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        return Ran(code, *capsys.readouterr())

    return run
