"""What is judged: the histories of the actors of one run, as plain values. Pure.

Every list is optional. None says that this evidence does not exist, and then the invariants that need it are not
judged; an empty list says that nothing happened.

Times `at` are ns of one true clock: the simulator's own, or CLOCK_BOOTTIME of the one host of a drill. The order of
events rests on them nowhere where a total order exists: `venue_seq`, the place in the gate's record, etcd's revision.
Lists stand in that order. The venue's own clock (`at_ns`, Unix) is compared with `expires_at_ns` as it is, and with
`at` only where `Run.venue_epoch` tells how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cluster.core.log import GENESIS, Entry
from node.book import Book

Line = Mapping[str, Any]
"""A line of the venue's record, as `node.paper_venue.lines` shows it."""


class GateLine(NamedTuple):
    """One decision of the gate, in its own order, as `node.gate.Decision` tells it. high: the high-water before it, 0
    for none, -1 if that is not known. subject: the client order id of a claim, the holder of an arm, the reason of a
    halt. "lost": the gate forgot its state here; `seq` may begin anew after it. at: None where nobody took the time."""

    seq: int
    op: Literal["arm", "claim", "halt", "unhalt", "lost"]
    token: int = 0
    high: int = -1
    subject: str = ""
    verdict: str = "ok"
    at: int | None = None


class EtcdLine(NamedTuple):
    """What etcd applied. "ended": the token was resigned, evicted, or its key vanished. at: when it was applied."""

    revision: int
    what: Literal["acquired", "renewed", "ended"]
    token: int
    node: str
    at: int


class SentLine(NamedTuple):
    """Bytes that left a node towards the venue, as something outside of the node saw them go."""

    at: int
    node: str
    token: int
    kind: Literal["new", "cancel", "cancel_all", "arm", "keep_alive"]
    client_order_id: str = ""


class QueryLine(NamedTuple):
    """A question that the venue answered. found: whether it knew the order that a lookup asked for."""

    at: int
    node: str
    kind: Literal["lookup", "open_orders", "fills"]
    client_order_id: str = ""
    found: bool = False


class CommitLine(NamedTuple):
    """A position in a journal that somebody relied on. node: who said it.

    committed: the leader of `term` announced it as committed. acknowledged: a follower said that it is durable there,
    which binds nobody before the leader counted it. led: where the journal of the leader of `term` ended when it took
    over, before its own first entry."""

    what: Literal["committed", "acknowledged", "led"]
    node: str
    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    chain: bytes
    at: int


PAUSE = "pause"
"""The kind of a fault that stops a node's processes between two instructions (SIGSTOP, a stopped VM)."""


class FaultLine(NamedTuple):
    """effect: when it was seen to bite, and proof: by what; without both the run says nothing. target: the node for a
    fault of one. harmless: no failover may come of it."""

    id: str
    kind: str
    target: str
    ordered: int
    effect: int | None = None
    healed: int | None = None
    proof: str = ""
    harmless: bool = False


class OperatorLine(NamedTuple):
    """halt_confirmed: etcd has the latch."""

    at: int
    what: Literal["halt_pressed", "halt_confirmed", "unhalt", "switchover_asked"]
    by: str = ""
    reason: str = ""


class JournalEvidence(NamedTuple):
    """What one node holds at the end: its log, and the book that it makes of it.

    Entries up to `base` are pruned; `book` stands for all. Its chain is known to be right. final: the node was up and
    in sync at the end; False: its log may lack the end, and may hold a tail that was never committed.
    """

    node: str
    book: Book
    entries: Sequence[Entry]
    base: int = 0
    last_index: int = 0
    last_chain: bytes = GENESIS
    final: bool = True


class Run(NamedTuple):
    """What was run. Durations in ns, 0: not known.

    profile: the venue's fences as `parse_profile` reads them; "": what the record's own first line says, else the
    strictest. clock_error: how much the clocks of nodes, etcd and venue may tell durations apart. validity: longest
    time from an order's send to its expiry. venue_epoch: Unix ns of the venue's clock when `at` was 0. at_rest: when
    the evidence was taken, no order, answer or fill was under way. rto_max, recovery_max: bounds of L1 and L2.
    """

    profile: str = ""
    ttl: int = 0
    clock_error: int = 0
    validity: int = 0
    venue_epoch: int | None = None
    healed_at: int | None = None
    ended_at: int | None = None
    at_rest: bool = False
    rto_max: int = 0
    recovery_max: int = 0


class Evidence(NamedTuple):
    run: Run = Run()
    venue: Sequence[Line] | None = None
    gate: Sequence[GateLine] | None = None
    etcd: Sequence[EtcdLine] | None = None
    sent: Sequence[SentLine] | None = None
    queries: Sequence[QueryLine] | None = None
    commits: Sequence[CommitLine] | None = None
    faults: Sequence[FaultLine] | None = None
    operator: Sequence[OperatorLine] | None = None
    journals: Sequence[JournalEvidence] | None = None
    broken: Sequence[str] = ()
    """What whoever read it found not to be as it was written."""


def replayed(
    node: str,
    entries: Iterable[Entry],
    order_tag: str,
    *,
    base: int = 0,
    snapshot: bytes | None = None,
    final: bool = True,
) -> JournalEvidence:
    """A journal whose chain is known to be right, and the book it makes. snapshot: the book that stands for the entries
    up to one at or after `base`. Raises InvariantViolation for what the book refuses."""
    book = Book(order_tag) if snapshot is None else Book.restore(snapshot, order_tag)
    held = list(entries)
    for entry in held:
        if entry.index > book.applied_index:
            book.apply(entry)
    last_index, last_chain = (held[-1].index, held[-1].chain) if held else (base, GENESIS)
    return JournalEvidence(node, book, held, base, last_index, last_chain, final)
