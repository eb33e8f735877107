"""A process as the world can hurt it: paused between any two effects, hung, killed.

Everything that comes in goes through `deliver`; everything that goes out is a step put on `backlog` by `then`, and the
next one is taken only while the process runs. So a pause falls between any two effects without a hook in the code that
decides, and what was sent before stays under way (`traps` say where, see plan.py).

After a pause the sources (a socket, the timers) are read in an order that is drawn; each keeps its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from chaos.sim.engine import Engine, Fn
from chaos.sim.story import before

Step = tuple[str, Fn, tuple[Any, ...]]


class Process:
    """name: its lane in the story. before_step(step): called right before each effect; may pause or kill the process.
    None: nothing does."""

    __slots__ = (
        *("_backlog", "_busy", "_inbox", "alive", "before_step", "engine", "hung", "name"),
        *("paused_until", "quiet_since"),
    )

    def __init__(self, engine: Engine, name: str, before_step: Callable[[str], None] | None) -> None:
        self.engine, self.name = engine, name
        self.before_step = before_step
        self.alive = True
        self.hung = False  # a loop that never comes back: it can only be killed
        self.paused_until = 0
        self.quiet_since: int | None = None  # since when it does nothing
        self._backlog: deque[Step] = deque()
        self._inbox: deque[tuple[str, Fn, tuple[Any, ...]]] = deque()
        self._busy = False

    @property
    def runs(self) -> bool:
        return self.alive and self.quiet_since is None

    def deliver(self, source: str, fn: Fn, *args: Any) -> None:
        """fn(*args) now, or when it runs again; never, once it is dead."""
        if not self.alive:
            return
        if self._busy or self._backlog or self._inbox or self.quiet_since is not None:
            self._inbox.append((source, fn, args))
            if self.quiet_since is None:
                self._go_on()
            return
        self._busy = True
        try:
            fn(*args)
        finally:
            self._busy = False
        if self._backlog or self._inbox:
            self._go_on()

    def then(self, name: str, fn: Fn, *args: Any) -> None:
        """An effect, after those that wait already."""
        self._backlog.append((name, fn, args))

    def next(self, name: str, fn: Fn, *args: Any) -> None:
        """An effect before those that wait: the second half of the one being done."""
        self._backlog.appendleft((name, fn, args))

    def _go_on(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self.alive and self.quiet_since is None:
                if self._backlog:
                    if self.before_step is not None:
                        self.before_step(self._backlog[0][0])
                        if not self.alive or self.quiet_since is not None:
                            return
                    _, fn, args = self._backlog.popleft()
                elif self._inbox:
                    fn, args = self._take()
                else:
                    return
                fn(*args)
        finally:
            self._busy = False

    def _take(self) -> tuple[Fn, tuple[Any, ...]]:
        inbox = self._inbox
        source, fn, args = inbox[0]
        if len(inbox) > 1:
            sources = list(dict.fromkeys(s for s, _, _ in inbox))
            if len(sources) > 1:
                chosen = sources[int(self.engine.schedule.random() * len(sources))]
                if chosen != source:
                    at = next(i for i, item in enumerate(inbox) if item[0] == chosen)
                    _, fn, args = inbox[at]
                    del inbox[at]
                    return fn, args
        inbox.popleft()
        return fn, args

    # -- what is done to it -----------------------------------------------------------------------------------

    def pause(self, length: int) -> None:
        """SIGSTOP, and SIGCONT after `length`. Of two pauses the later end counts."""
        if not self.alive:
            return
        engine = self.engine
        if self.quiet_since is None:
            self.quiet_since = engine.now
        self.paused_until = max(self.paused_until, engine.now + length)
        if engine.story is not None:
            self._tell("is frozen", until=self.paused_until)
        engine.at(self.paused_until, self.wake)

    def wake(self) -> None:
        if not self.alive or self.hung or self.engine.now < self.paused_until or self.quiet_since is None:
            return
        self.quiet_since = None
        if self.engine.story is not None:
            self._tell("runs again")
        self._go_on()

    def resume(self) -> None:
        """SIGCONT now."""
        self.paused_until = self.engine.now
        self.wake()

    def hang(self) -> None:
        self.hung = True
        if self.quiet_since is None:
            self.quiet_since = self.engine.now
        if self.engine.story is not None:
            self._tell("hangs, for good")

    def kill(self) -> None:
        self.alive = False
        self._backlog.clear()
        self._inbox.clear()

    def _tell(self, what: str, *, until: int = 0) -> None:
        """For the story: with the step that it would do next."""
        name, _, args = self._backlog[0] if self._backlog else ("", None, ())
        where, order = before(name, args)
        node, _, process = self.name.partition(" ")
        self.engine.say(self.name, "pause", f"the {process} of {node} {what}{where}", until=until, order=order)
