"""Links: how long a message takes, whether it arrives, and what a cut does to it.

A link is one direction between two ends. A *datagram* link (a request, its answer) loses and delays each message by
itself. A *stream* keeps order, as TCP does: nothing is lost while the connection stands; a cut holds the bytes until it
is over, or loses them together with the connection: whoever sends on a stream has to see to that (`loses`).
"""

from __future__ import annotations

from typing import NamedTuple

from chaos.sim.engine import MS, US, Engine, Fn


class Quality(NamedTuple):
    """low, high: ns that a message takes. loss, late: chances per message, before everything is healed. late_by: at
    most so much (ns)."""

    low: int = 200 * US
    high: int = 2500 * US
    loss: float = 0.0
    late: float = 0.0
    late_by: int = 0

    def perfect(self) -> Quality:
        return Quality(self.low, self.high)


Ends = tuple[str, str, str]
"""For the story: the lanes at both ends, and the kind of what passes."""


class Link:
    __slots__ = (
        "_cut_holds",
        "_cut_until",
        "_draw",
        "_last",
        "bitten",
        "engine",
        "kind",
        "lane",
        "quality",
        "stream",
        "to",
    )

    def __init__(self, engine: Engine, ends: Ends, quality: Quality, *, stream: bool = False) -> None:
        self.engine, self.quality, self.stream = engine, quality, stream
        self.lane, self.to, self.kind = ends
        self.bitten = 0  # messages that a cut has met: the proof that it bit
        self._draw = engine.network.random
        self._cut_until = 0
        self._cut_holds = True
        self._last = 0

    def cut(self, length: int, *, hold: bool) -> None:
        """Nothing passes for `length`; hold: what was sent meanwhile comes through when it is over, else it is lost."""
        self._cut_until = max(self._cut_until, self.engine.now + length)
        self._cut_holds = hold

    def heal(self) -> None:
        self._cut_until = 0
        self.quality = self.quality.perfect()

    @property
    def is_cut(self) -> bool:
        return self.engine.now < self._cut_until

    @property
    def loses(self) -> bool:
        """What is sent now never arrives."""
        return self.is_cut and not self._cut_holds

    def send(self, fn: Fn, *args: object) -> None:
        """Call fn(*args) at the other end when it arrives, if it does. The last of args is the message itself."""
        when = self.arrival()
        if self.engine.story is not None:
            self.engine.sends(self.lane, self.to, self.kind, args[-1] if args else "the connection is closed", when)
        if when is not None:
            self.engine.at(when, fn, *args)

    def arrival(self) -> int | None:
        """When a message that leaves now will be there; None: never. For a caller that makes an event of it: the sender
        cannot know."""
        q, draw, now = self.quality, self._draw, self.engine.now
        when = now + q.low + int(draw() * (q.high - q.low))
        if now < self._cut_until:
            self.bitten += 1
            if not self._cut_holds:
                return None
            when += self._cut_until - now
        elif q.loss or q.late:
            chance = draw()
            if chance < q.loss and not self.stream:
                return None
            if chance > 1 - q.late:
                when += int(draw() * q.late_by)
        if self.stream:
            when = self._last = max(when, self._last + 1)
        return when


LOCAL = Quality(20 * US, 300 * US)
"""Within a host."""
LAN = Quality()
FEED = Quality(200 * US, 20 * MS)
