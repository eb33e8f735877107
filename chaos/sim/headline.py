"""What a violation means, in one sentence for who knows nothing of the code. Pure.

Taken from the violation itself: one invariant is broken in several ways, and a sentence that fits one is false of the
others. Where none here fits, the sentence says no more than the invariant does.
"""

from __future__ import annotations

import re
from types import MappingProxyType

PLAIN = MappingProxyType(
    {
        "S1": "The venue has an order that is not what was decided, once.",
        "S2": "The venue took a message of a leader that had been replaced.",
        "S3": "Two nodes led at the same time.",
        "S4": "A node sent with a token that was not its own.",
        "S5": "The fills that the nodes know are not those of the venue.",
        "S6": "Positions or open orders differ between the nodes and the venue.",
        "S7": "Something that was called committed is lost.",
        "S8": "Orders went on although the gate or the lease was in doubt.",
        "S9": "A fencing token fell: an older one was taken after a newer one.",
        "S10": "An order was settled without proof, or not at all.",
        "S11": "An order was placed after the kill switch was pressed.",
        "L1": "A failover took too long.",
        "L2": "The cluster did not recover.",
        "L3": "Leadership was lost for nothing.",
    }
)
"""What it means that an invariant is broken, whichever way."""

_WAYS: tuple[tuple[str, str, str], ...] = (
    ("S1", r"(n\d+) sends \w+ a second time", "{0} sent one order twice."),
    ("S1", r"was accepted before", "The venue accepted one order twice."),
    ("S1", r"decision '[^']*' as \w+ and \w+", "One decision became two orders."),
    ("S1", r"of term \d+ sent with token", "An order came with a token older than its decision."),
    ("S1", r"is not its intent", "The venue has an order that is not what was decided."),
    ("S1", r"comes from nowhere|not one of ours", "The venue has an order that nobody decided."),
    ("S2", r"venue_seq \d+, new", "The venue took an order of a leader that had been replaced."),
    ("S3", r"(n\d+) gives \d+ back before", "{0} gave its lease back while it could still send."),
    ("S3", r"gets a permit for", "Two nodes led at the same time."),
    ("S3", r"never given by etcd", "A node used a token that etcd never gave."),
    ("S3", r"\bgiven (?:by etcd )?to|used by \w+ and by", "Two nodes used one token."),
    ("S4", r"(n\d+) sent \w+.* which etcd never gave", "{0} sent with a token that etcd never gave."),
    ("S6", r"nobody has settled order", "An order is at the venue, and nobody has settled it."),
    (
        "S6",
        r"NOT_SENT although it was placed|says never placed|although NOT_SENT",
        "An order that is at the venue was written down as never sent.",
    ),
    ("S6", r"overfill", "More was filled than was ordered."),
    ("S6", r"position \{", "Positions differ between the nodes and the venue."),
    ("S6", r"is open in the book and closed", "An order that the venue has closed is open in the book."),
    ("S6", r"is open at the venue and not", "An order is open at the venue and not in the book."),
    ("S6", r"book digests differ", "The nodes' books differ."),
    ("S7", r"(n\d+) leads \d+ without", "{0} became leader without something that was called committed."),
    ("S7", r"(n\d+) with .* was elected out of", "{0} was elected although it was not in sync."),
    ("S7", r"no intent at entry", "The venue has an order whose decision is lost."),
    ("S7", r"was committed as two", "Two different entries were called committed in one place."),
    ("S7", r"journals of .* differ", "The nodes' journals differ."),
    ("S8", r"granted no claim", "An order reached the venue without a claim at the gate."),
    ("S8", r"claimed with", "An order came with another token than it was claimed with."),
    ("S8", r"after its token's time was over", "An order left after its leader's time was over."),
    ("S9", r"gets a permit for \d+ again", "A permit that had been dropped came back."),
    ("S9", r"gets a permit for", "A permit came with an older token than the one before."),
    ("S9", r"after the gate lost its state", "A gate that had lost its state let an order pass."),
    ("S10", r"absence proved by", "An order was called never placed, and nothing had proved it."),
    ("S10", r"was decided before the intent", "A new leader decided before an old leader's order was settled."),
    ("S10", r"rests on the intent", "What a new leader took for settled was not true."),
    ("S10", r"was never told so", "A new leader called an order absent, and the venue had not said so."),
    ("L2", r"not at rest .* stopped: (?:reconcile: )?(.*)", "The cluster did not come to rest: {0}."),
    ("L2", r"no order is accepted", "The cluster was healed, and did not trade again."),
    ("L2", r"(n\d+) asks to be woken", "{0} asks to be woken again and again, with nothing to do."),
    ("L2", r"the strategy of (n\d+) failed: (.*)", "The strategy of {0} failed: {1}."),
    ("L2", r"(n\d+) stopped for good: (.*?)(?:: |$)", "{0} stopped for good: {1}."),
    ("L2", r"(n\d+) raised InvariantViolation: (.*)", "{0} stopped itself: {1}."),
    ("L2", r"(n\d+) raised (\w+): (.*)", "{0} failed with {1}: {2}."),
    ("E", r"has no proof that it took effect", "A fault did nothing, so that the run shows nothing."),
)
"""Invariant, what the violation says, and that in words. Of several that fit, the first."""


def headline_of(violation: str) -> str:
    """violation: a sentence of the checker; empty: there is none."""
    if not violation:
        return "Nothing is wrong."
    invariant = invariant_of(violation)
    said = re.sub(r" on (?:entry \d+|an event of term \d+)$", "", violation)
    for of, pattern, sentence in _WAYS:
        found = re.search(pattern, said) if of == invariant else None
        if found is not None:
            return sentence.format(*(_brief(text) for text in found.groups()))
    return PLAIN.get(invariant, "Something that must not happen has happened.")


def _brief(text: str) -> str:
    """What an error says, without its second thoughts."""
    first = text.partition(": ")[0]
    return (first if first.count(" ") > 2 else text).rstrip(".")


def invariant_of(violation: str) -> str:
    found = re.search(r"\b(?:[SL]\d+|E)(?=:)", violation)
    return found.group() if found else ""
