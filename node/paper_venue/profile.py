"""Which fences this venue has, as data that a drill switches. Pure.

Real venues differ in exactly these (DESIGN 6): a venue that checks tokens proves that no order of a deposed
leader is accepted, one that honours an expiry bounds it in time, one that does neither leaves it to best effort.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.core.errors import ConfigError
from node.venues.base import Capabilities, DeadmanScope, IdUniqueness

_FENCES = {"token": (True, True), "expiry": (False, True), "plain": (False, False)}


@dataclass(frozen=True, slots=True)
class Profile:
    """token: refuses a fencing token lower than the highest seen of the account. expiry: honours expires_at_ns."""

    token: bool = True
    expiry: bool = True
    id_uniqueness: IdUniqueness = IdUniqueness.FOREVER
    deadman: bool = True

    @property
    def deadman_scope(self) -> DeadmanScope:
        """Where tokens are checked, only the highest may refresh the switch, and it closes no newer term's orders."""
        if not self.deadman:
            return DeadmanScope.NONE
        return DeadmanScope.TERM if self.token else DeadmanScope.ACCOUNT

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            token=self.token, expiry=self.expiry, id_uniqueness=self.id_uniqueness, deadman=self.deadman_scope
        )

    def __str__(self) -> str:
        """As `parse_profile` reads it."""
        name = next(name for name, fences in _FENCES.items() if fences == (self.token, self.expiry))
        unique = "" if self.id_uniqueness is IdUniqueness.FOREVER else "+while-open"
        return name + unique + ("" if self.deadman else "+no-deadman")


def parse_profile(text: str) -> Profile:
    """`token`, `expiry` or `plain`, then any of `+while-open` (client order ids may be used again once the order
    has closed) and `+no-deadman`. Raises ConfigError naming the part that is wrong."""
    fence, *switches = text.split("+")
    if fence not in _FENCES:
        raise ConfigError(f"venue profile {text!r}: {fence!r} is none of {', '.join(_FENCES)}")
    unknown = [s for s in switches if s not in ("while-open", "no-deadman")]
    if unknown:
        raise ConfigError(f"venue profile {text!r}: {unknown[0]!r} is neither while-open nor no-deadman")
    if len(set(switches)) != len(switches):
        raise ConfigError(f"venue profile {text!r} names a switch twice")
    token, expiry = _FENCES[fence]
    return Profile(
        token=token,
        expiry=expiry,
        id_uniqueness=IdUniqueness.WHILE_OPEN if "while-open" in switches else IdUniqueness.FOREVER,
        deadman="no-deadman" not in switches,
    )
