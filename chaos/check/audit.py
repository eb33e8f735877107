"""`baton audit`: finds the evidence that the user names, reads it, and leaves it as it is.

The cluster may be trading meanwhile, so the order matters: the journals are read before the venue's record, and the
gate's after it. A fill stands in the record before it stands in a journal, and a claim in the gate's record before its
order stands in the venue's: what comes later is then never missed. Of the record the lines are read first and the chain
is checked after, so that every line that is judged is one that was checked.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from chaos.check.evidence import Evidence, GateLine, JournalEvidence, Line
from chaos.check.files import EvidenceBroken, read_chained, read_evidence
from chaos.check.journals import journal_evidence
from cluster.core.errors import ConfigError, JournalCorrupt, Stop
from node.paper_venue.record import FILE_NAME, GENESIS, chain_after, read_record, verify_record
from node.types import parse_client_order_id

JOURNAL_NAME = "journal.db"
GATE_TIMEOUT_S = 5.0
_SQLITE = b"SQLite format 3\x00"
_GATE_SCHEMES = ("redis://", "rediss://", "unix://")


class WrongInput(ConfigError):
    """What the user named cannot be what was asked for. option: where it was named."""

    def __init__(self, option: str, why: str) -> None:
        super().__init__(why)
        self.option = option


class Named(NamedTuple):
    """What the user named. journals: NODE=FILE. cluster: whose gate, where one Redis has several."""

    record: Path | None = None
    journals: Sequence[str] = ()
    gate: str = ""
    cluster: str = ""
    evidence: Path | None = None
    at_rest: bool = False


def gather(named: Named) -> Evidence:
    """Raises WrongInput; OutcomeUnknown while a journal is written without a pause, or for a gate that is silent."""
    found = Evidence()
    if named.evidence is not None:
        try:
            found = read_evidence(named.evidence)
        except ConfigError as e:
            raise WrongInput("--evidence", str(e)) from e
    broken = list(found.broken)
    files = [_journal_file(word) for word in named.journals]
    _refuse_repeats(files)
    if files:
        tag = _order_tag((_lines(named.record, []) if named.record else found.venue) or ())
        found = found._replace(journals=_journals(files, tag, broken) or None)
    if named.record is not None:
        found = found._replace(venue=_lines(named.record, broken))
    if named.gate:
        found = found._replace(gate=_gate(named.gate, named.cluster, broken))
    run = found.run._replace(at_rest=True) if named.at_rest else found.run
    return found._replace(run=run, broken=tuple(broken))


# -- the venue's record ------------------------------------------------------------------------------------------------


def _lines(named: Path, broken: list[str]) -> list[Line] | None:
    """None where not all of it can be read: what is missing would be held against others."""
    path = _record_file(named)
    if not _is_sqlite(path, "--record"):
        return _exported(path, broken)
    lines: list[Line] | None = None
    try:
        _check_tables(path)
        lines = list(read_record(path))
        verify_record(path)
    except (JournalCorrupt, ValueError, sqlite3.DatabaseError) as e:
        broken.append(str(e) if str(path) in str(e) else f"{path}: {e}")
    return lines


def _record_file(named: Path) -> Path:
    """The file, also of a venue's directory or of a local cluster's."""
    for path in (named, named / FILE_NAME, named / "venue" / FILE_NAME):
        if path.is_file():
            return path
    if named.is_dir():
        raise WrongInput("--record", f"{named} holds no venue's record ({FILE_NAME}); name the paper venue's directory")
    raise WrongInput(
        "--record", f"there is no file {named}; name a paper venue's directory, its {FILE_NAME}, or a JSONL"
    )


def _is_sqlite(path: Path, option: str) -> bool:
    try:
        with open(path, "rb") as f:
            return f.read(len(_SQLITE)) == _SQLITE
    except OSError as e:
        raise WrongInput(option, f"{path} cannot be read: {e.strerror}") from e


def _check_tables(path: Path) -> None:
    """Raises sqlite3.DatabaseError for a file that is damaged."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=5.0)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError as e:
        raise WrongInput("--record", f"{path} cannot be read: {e}") from e
    if "entries" in tables:
        raise WrongInput(
            "--record", f"{path} is a node's journal, not a venue's record; give it as --journal NODE={path}"
        )
    if "line" not in tables:
        raise WrongInput("--record", f"{path} is a database, and no venue's record: it has no table of lines")


def _exported(path: Path, broken: list[str]) -> list[Line] | None:
    """What `baton venue record` wrote, a file of evidence, or any history in that form; chained if it says so."""
    lines: list[Any] = []
    try:
        lines.extend(json.loads(text) for text in path.read_text().splitlines() if text)
    except ValueError as e:
        if not lines:
            raise WrongInput("--record", f"{path} is neither a venue's record nor JSON lines: {e}") from e
        broken.append(f"{path}: what follows its first {len(lines)} lines is cut off or damaged: {e}")
        return None
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not line.keys() >= _SURFACE:
            lacks = ", ".join(sorted(_SURFACE - line.keys())) if isinstance(line, dict) else "everything"
            raise WrongInput("--record", f"{path}: line {number} is no line of a venue's record; it lacks {lacks}")
    if lines and "prev" in lines[0]:
        try:
            return list(read_chained(path))
        except EvidenceBroken as e:
            broken.append(str(e))
            return None
    elif lines and "chain" in lines[0]:
        _check_chain(path, lines, broken)
    return lines


_SURFACE = {"venue_seq", "at_ns", "kind", "outcome", "node", "token", "client_order_id", "decision_id", "reason"}


def _check_chain(path: Path, lines: list[dict[str, Any]], broken: list[str]) -> None:
    """The export keeps each line's keys in the order in which they were hashed, and its chain behind them."""
    chain = GENESIS
    for number, line in enumerate(lines, 1):
        body = json.dumps({k: v for k, v in line.items() if k != "chain"}, separators=(",", ":"))
        chain = chain_after(chain, body)
        if chain.hex() != line.get("chain"):
            broken.append(f"{path}: line {number} is not as the venue wrote it: its chain does not match")
            return


# -- journals ----------------------------------------------------------------------------------------------------------


def _journal_file(word: str) -> tuple[str, Path]:
    node, equals, name = word.partition("=")
    if not (node and equals and name):
        raise WrongInput("--journal", f"{word!r}: write NODE=FILE, like n1=nodes/n1/data/{JOURNAL_NAME}")
    path = Path(name)
    path = path / JOURNAL_NAME if path.is_dir() else path
    if not path.is_file():
        raise WrongInput("--journal", f"there is no journal of {node} at {path}")
    if not _is_sqlite(path, "--journal"):
        raise WrongInput("--journal", f"{path} is no journal: it is not a database")
    return node, path


def _refuse_repeats(files: Sequence[tuple[str, Path]]) -> None:
    """One journal under two names would agree with itself."""
    seen: dict[tuple[int, int], str] = {}
    for node, path in files:
        found = path.stat()
        other = seen.setdefault((found.st_dev, found.st_ino), node)
        if other != node:
            raise WrongInput("--journal", f"{path} was given as the journal of {other} and of {node}")


def _order_tag(lines: Iterable[Line]) -> str:
    """The tag that most orders at the venue carry; an order with another one is not ours."""
    tags: Counter[str] = Counter()
    for line in lines:
        parsed = parse_client_order_id(str(line["client_order_id"])) if line["outcome"] == "accepted" else None
        if parsed is not None:
            tags[parsed[0]] += 1
    return tags.most_common(1)[0][0] if tags else ""


def _journals(files: Iterable[tuple[str, Path]], tag: str, broken: list[str]) -> list[JournalEvidence]:
    found = []
    for node, path in files:
        try:
            found.append(journal_evidence(node, path, tag))
        except Stop as e:
            broken.append(str(e))
    return found


# -- the gate ----------------------------------------------------------------------------------------------------------


def _gate(named: str, cluster: str, broken: list[str]) -> list[GateLine] | None:
    if named.startswith(_GATE_SCHEMES):
        return asyncio.run(_redis_lines(named, cluster))
    path = Path(named)
    if not path.is_file():
        raise WrongInput("--gate", f"{named} is neither a file nor the URL of a Redis, like redis://127.0.0.1:6379/0")
    with open(path, errors="replace") as f:
        if '"actor":"gate"' not in f.readline():
            raise WrongInput("--gate", f"{path} is no gate's record; a drill writes one as gate.jsonl")
    try:
        return [GateLine(**values) for values in read_chained(path)]
    except (EvidenceBroken, TypeError) as e:
        broken.append(f"{path}: {e}")
    return None


async def _redis_lines(url: str, cluster: str) -> list[GateLine]:
    """What the gate recorded; GateUnsuitable for a url that is none, GateUnavailable when nobody answers."""
    import redis.asyncio
    from redis.exceptions import RedisError

    from node.gate import GateUnavailable, GateUnsuitable
    from node.redis_gate import RedisGate

    if not cluster:
        try:
            async with redis.asyncio.Redis.from_url(url, socket_timeout=GATE_TIMEOUT_S, protocol=2) as db:
                clusters = sorted({_cluster_of(key) async for key in db.scan_iter(match="baton:{*}:gate", count=1000)})
        except (RedisError, OSError) as e:
            raise GateUnavailable(f"gate: {type(e).__name__}: {e}") from e
        except ValueError as e:
            raise WrongInput("--gate", f"{e}; write redis://host:port/0, rediss:// for TLS") from e
        if len(clusters) != 1:
            has = f"the gates of {', '.join(clusters)}; name one with --cluster" if clusters else "no gate of ours"
            raise WrongInput("--gate", f"this Redis has {has}")
        (cluster,) = clusters
    try:
        gate = RedisGate(url, cluster=cluster, holder="audit", timeout_s=GATE_TIMEOUT_S, claim_ttl_s=1.0)
    except GateUnsuitable as e:
        raise WrongInput("--gate", str(e)) from e
    try:
        decisions = await gate.decisions()
    finally:
        await gate.close()
    if not decisions:
        raise WrongInput(
            "--gate", f"the gate of {cluster} keeps no record; set gate.record_max in every node's baton.toml"
        )
    return [GateLine(d.fence_seq, cast(Any, d.op), d.token, d.high_water, d.subject, d.verdict) for d in decisions]


def _cluster_of(key: bytes) -> str:
    return key.decode("utf-8", "replace").removeprefix("baton:{").removesuffix("}:gate")
