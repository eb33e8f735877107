"""Reads a node's journal from outside, to judge by: every entry checked against the chain, then replayed.

The node may be running. Its files are never opened in place: a second process that maps the write-ahead log's index
of a database in use can hurt the one that owns it. They are copied, between two writes, and the copy is read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from chaos.check.evidence import JournalEvidence, replayed
from cluster.clock import boottime_ns, unix_ns
from cluster.core.errors import BatonError, OutcomeUnknown
from cluster.core.ids import ns
from cluster.core.log import Entry
from cluster.journal_file import SELECT_ENTRIES, connect, load

COPY_LIMIT_S = 5.0
_QUIET_NS = 20_000_000
"""Files carry the time of the kernel's last tick (at most 10 ms ago): younger ones may change and look the same."""


def journal_evidence(node: str, path: Path, order_tag: str) -> JournalEvidence:
    """Raises JournalCorrupt for a journal that is not what was written, OutcomeUnknown when the node writes without a
    pause, BatonError if there is none."""
    if not path.is_file():
        raise BatonError(f"there is no journal of {node} at {path}")
    with tempfile.TemporaryDirectory(prefix="baton-judge-") as folder:
        copy = _copy(path, Path(folder))
        db = connect(copy)
        try:
            held = load(db, path)
            entries = (
                Entry._make(row)
                for row in db.execute(SELECT_ENTRIES + " WHERE idx > ? ORDER BY idx", (held.base.index,))
            )
            found = replayed(
                node,
                entries,
                order_tag,
                base=held.base.index,
                snapshot=held.snapshot.blob if held.snapshot else None,
            )
        finally:
            db.close()
    return found._replace(last_index=held.last.index, last_chain=held.last.chain)


def _copy(path: Path, into: Path) -> Path:
    """The database and its write-ahead log as they stood together at one moment."""
    deadline = boottime_ns() + ns(COPY_LIMIT_S)
    files = (path, Path(f"{path}-wal"))
    while True:
        before = _marks(files)
        for file in files:
            target = into / file.name
            try:
                shutil.copyfile(file, target)
            except FileNotFoundError:  # no log: the node was stopped
                target.unlink(missing_ok=True)
        if before is not None and before == _marks(files):
            return into / path.name
        if boottime_ns() > deadline:
            raise OutcomeUnknown(f"journal {path} is written without a pause; stop the market or the node to judge it")
        time.sleep(0.01)


def _marks(files: tuple[Path, ...]) -> list[tuple[int, int, int]] | None:
    """By which a change of any of them is seen; None while they are too young to tell."""
    found = []
    for file in files:
        try:
            s = os.stat(file)
        except FileNotFoundError:
            found.append((0, 0, 0))
            continue
        if unix_ns() - s.st_mtime_ns < _QUIET_NS:
            return None
        found.append((s.st_ino, s.st_size, s.st_mtime_ns))
    return found
