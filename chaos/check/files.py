"""The evidence of one run, on disk: a folder of JSONL files, one per actor, each hash-chained line by line.

    {"actor":"gate","seq":12,"op":"claim",...,"prev":"sha256:<of the line before, as it stands>"}

`run.jsonl` comes last and seals the others: how many lines each has, and the hash of its last one, without which
cutting lines off an end would go unseen. So a folder without it is of a run that did not end.

Whoever records writes with `ActorFile`, a line at a time, each flushed: what was seen must survive the crash that it
explains. `read_evidence` never raises for a damaged folder: what is broken, missing or repeated is told in
`Evidence.broken`, and makes the run INVALID.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from chaos.check.evidence import (
    CommitLine,
    EtcdLine,
    Evidence,
    FaultLine,
    GateLine,
    JournalEvidence,
    OperatorLine,
    QueryLine,
    Run,
    SentLine,
    replayed,
)
from cluster.core.errors import BatonError, ConfigError
from cluster.core.log import GENESIS, Entry, verify

RUN = "run"
FIRST = "sha256:" + "0" * 64
_JOURNAL = "journal-"
_encode = json.JSONEncoder(separators=(",", ":")).encode


class EvidenceBroken(BatonError):
    """A file is not what was written. Names the line."""


def hash_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# -- one file ----------------------------------------------------------------------------------------------------------


class Seal(NamedTuple):
    lines: int
    last: str


class ActorFile:
    """Writes the history of one actor. Not for two threads. Raises FileExistsError for one that is there already."""

    def __init__(self, folder: Path, actor: str) -> None:
        self.actor = actor
        self._file = open(_path(folder, actor), "x", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self._seal = Seal(0, FIRST)

    def append(self, line: Mapping[str, Any] | tuple[Any, ...]) -> None:
        """A line of the venue's record, or a NamedTuple of `evidence`."""
        values = line if isinstance(line, Mapping) else line._asdict()  # type: ignore[attr-defined]
        text = _encode({"actor": self.actor, **{k: _plain(v) for k, v in values.items()}, "prev": self._seal.last})
        self._file.write(text + "\n")
        self._file.flush()
        self._seal = Seal(self._seal.lines + 1, hash_of(text))

    def close(self) -> Seal:
        self._file.close()
        return self._seal


def read_chained(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one file, without `actor` and `prev`. Raises EvidenceBroken at the first that is not as it was
    written."""
    return (values for values, _ in _checked(path))


def _checked(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    previous = FIRST
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for number, raw in enumerate(f, 1):
            text = raw.rstrip("\n")
            try:
                values = json.loads(text)
                prev = values.pop("prev")
                values.pop("actor")
            except (ValueError, KeyError, AttributeError, TypeError) as e:
                raise EvidenceBroken(f"{path}: line {number} is no line of evidence: {e}") from e
            if prev != previous:
                raise EvidenceBroken(f"{path}: line {number} does not follow line {number - 1}: one is not as written")
            previous = hash_of(text)
            yield values, previous


def _path(folder: Path, actor: str) -> Path:
    return folder / f"{actor}.jsonl"


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


# -- a folder ----------------------------------------------------------------------------------------------------------


def _commit(values: dict[str, Any]) -> CommitLine:
    return CommitLine(**values | {"chain": bytes.fromhex(values["chain"])})


_READERS: Mapping[str, Callable[[dict[str, Any]], Any]] = MappingProxyType(
    {
        "venue": lambda values: values,
        "gate": lambda values: GateLine(**values),
        "etcd": lambda values: EtcdLine(**values),
        "sent": lambda values: SentLine(**values),
        "queries": lambda values: QueryLine(**values),
        "commits": _commit,
        "faults": lambda values: FaultLine(**values),
        "operator": lambda values: OperatorLine(**values),
    }
)


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Keep all of it in a folder that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    seals = {}
    for actor in _READERS:
        lines = getattr(evidence, actor)
        if lines is not None:
            seals[actor] = _write(folder, actor, lines)
    for j in evidence.journals or ():
        seals[_JOURNAL + j.node] = _write(folder, _JOURNAL + j.node, _journal_lines(j))
    seal(folder, evidence.run, seals)


def seal(folder: Path, run: Run, seals: Mapping[str, Seal]) -> None:
    """The run has ended: say what it was, and what was written of it."""
    _write(folder, RUN, [run._asdict() | {"files": {actor: list(s) for actor, s in seals.items()}}])


def _write(folder: Path, actor: str, lines: Iterable[Any]) -> Seal:
    file = ActorFile(folder, actor)
    try:
        for line in lines:
            file.append(line)
    finally:
        written = file.close()
    return written


def _journal_lines(j: JournalEvidence) -> Iterator[Any]:
    snapshot = j.book.snapshot() if j.base else None
    yield {
        "node": j.node,
        "order_tag": j.book.cluster_tag,
        "base": j.base,
        "snapshot": snapshot,
        "last_index": j.last_index,
        "last_chain": j.last_chain,
        "final": j.final,
    }
    yield from j.entries


def read_evidence(folder: Path) -> Evidence:
    """All of it. Raises ConfigError if there is no such folder, or nothing of a run in it."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder of evidence at {folder}")
    if not any(folder.glob("*.jsonl")):
        raise ConfigError(f"{folder} holds no evidence: a run's is in files like venue.jsonl, gate.jsonl and run.jsonl")
    broken: list[str] = []
    run, seals = _run(folder, broken)
    found: dict[str, Any] = {}
    journals: list[JournalEvidence] = []
    for actor in sorted({p.stem for p in folder.glob("*.jsonl")} | (seals or {}).keys()):
        try:
            if actor in _READERS:
                found[actor] = [_READERS[actor](values) for values in _sealed(folder, actor, seals)]
            elif actor.startswith(_JOURNAL):
                journals.append(_journal(list(_sealed(folder, actor, seals))))
            elif actor != RUN:
                broken.append(f"{_path(folder, actor)}: no actor of a run is called so")
        except Exception as e:  # noqa: BLE001  # whatever a file holds, it is the file that is wrong
            broken.append(str(e) if isinstance(e, BatonError) else f"{_path(folder, actor)}: {type(e).__name__}: {e}")
    return Evidence(run, **found, journals=journals or None, broken=tuple(broken))


def _run(folder: Path, broken: list[str]) -> tuple[Run, dict[str, Seal] | None]:
    """None: nobody knows what was sealed."""
    path = _path(folder, RUN)
    try:
        (values,) = read_chained(path)
        seals = {actor: Seal(*s) for actor, s in values.pop("files").items()}
        return Run(**values), seals
    except FileNotFoundError:
        broken.append(f"{path} is missing: the run did not end, and nothing says that the other files are whole")
    except Exception as e:  # noqa: BLE001  # as in read_evidence
        broken.append(f"{path} cannot be read: {type(e).__name__}: {e}")
    return Run(), None


def _sealed(folder: Path, actor: str, seals: Mapping[str, Seal] | None) -> Iterator[dict[str, Any]]:
    path, lines, last = _path(folder, actor), 0, FIRST
    try:
        for values, hashed in _checked(path):
            lines, last = lines + 1, hashed
            yield values
    except FileNotFoundError as e:
        raise EvidenceBroken(f"{path} is missing, and run.jsonl names it") from e
    if seals is not None and seals.get(actor) != (lines, last):
        wanted = seals.get(actor)
        told = f"{wanted.lines} lines were sealed" if wanted else "it was not sealed"
        raise EvidenceBroken(f"{path} has {lines} lines, {told}: it is not what the run wrote")


def _journal(lines: list[dict[str, Any]]) -> JournalEvidence:
    head, *rest = lines
    entries = [Entry(**e | {"body": bytes.fromhex(e["body"]), "chain": bytes.fromhex(e["chain"])}) for e in rest]
    last_index, last_chain = head["last_index"], bytes.fromhex(head["last_chain"])
    if head["base"] == 0 and verify(0, GENESIS, entries) != (last_index, last_chain):
        raise EvidenceBroken(f"the journal of {head['node']} does not end where it says, at {last_index}")
    snapshot = bytes.fromhex(head["snapshot"]) if head["snapshot"] else None
    found = replayed(
        head["node"], entries, head["order_tag"], base=head["base"], snapshot=snapshot, final=head["final"]
    )
    return found._replace(last_index=last_index, last_chain=last_chain)
