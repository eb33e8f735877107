"""The running venue: the engine's judgement and the record's memory, joined so that nobody is told what could
still be lost.

Everything happens on one event loop, which is the "one lock" behind `venue_seq`. A command is judged at once; its
lines are committed once per pass of the loop, together with those of every other command of that pass (group
commit); then, and only then, replies and events go out. Questions commit first, for the same reason.

Touches nothing but the record. Read next: `engine.py` for the rules, `server.py` for the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import structlog

from cluster.core.errors import ConfigError, JournalBroken
from node.feeds.base import MarketEvent
from node.types import VenueOrder

from .engine import Engine
from .lines import Line
from .record import Record
from .state import Moment

log = structlog.get_logger()

_TAIL_EVENTS = 4096  # per account, kept at hand for the live streams; older ones are read from the record
_BATCH_EVENTS = 256
_CHECKPOINT_EVERY_S = 1.0
_TICK_S = 0.01  # how late a dead-man's switch may fire

Told = Callable[[list[Line]], None]


class Exchange:
    def __init__(self, engine: Engine, directory: Path, clock: Callable[[], Moment]) -> None:
        """Open the record and replay it into `engine`, which must be new. Call on the event loop that will run it.

        Raises ConfigError, JournalCorrupt, or InvariantViolation for a record that this engine cannot follow."""
        self.engine = engine
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the error after which memory and record may disagree, such as JournalBroken. From then on nothing is
        decided and nothing told, and the venue must stop."""
        self._clock = clock
        self._record = Record(directory, engine.instruments)
        self._tails: dict[str, _Tail] = {}
        self._untold: list[tuple[Told | None, list[Line]]] = []
        self._commit_is_due = False
        self._uncheckpointed = 0
        try:
            self._restore()
        except BaseException:
            self._record.close()
            raise

    def _restore(self) -> None:
        lines = 0
        sizes = {i.symbol: [str(i.tick_size), str(i.lot_size)] for i in self.engine.instruments.values()}
        for line in self._record.replay():
            # Ticks and lots are only numbers: under another tick_size the same record would mean other money.
            for symbol, then in (line.instruments or {}).items():
                if sizes.get(symbol) != then:
                    raise ConfigError(
                        f"venue instrument {symbol}: the record at {self._record.path} was written with"
                        f" [tick_size, lot_size] {then}, now it is {sizes.get(symbol)}; use another directory"
                    )
            self.engine.apply(line)
            lines += 1
        at = self._clock()
        self.engine.restored(at)
        self.do(lambda now: [self.engine.started(sizes, now)])
        self.commit()
        log.info("venue_record_opened", path=str(self._record.path), lines=lines, profile=str(self.engine.profile))

    # -- commands -------------------------------------------------------------------------------------------

    def do(self, decide: Callable[[Moment], list[Line]], told: Told | None = None) -> None:
        """Let the engine decide now; call `told` with the lines once they are committed (an empty list: nothing to
        record). Order of calls = order of venue_seq = order of telling."""
        if self.broken.done():
            return
        try:
            lines = decide(self._clock())
            for line in lines:
                self._record.append(line)
        except Exception as e:  # memory and record no longer agree: whatever it was, nothing may follow
            self.broken.set_exception(e)
            raise
        if lines or told:
            self._untold.append((told, lines))
            if not self._commit_is_due:
                self._commit_is_due = True
                asyncio.get_running_loop().call_soon(self.commit)

    def market(self, event: MarketEvent) -> None:
        self.do(lambda at: self.engine.market(event, at))

    def commit(self) -> None:
        """Write what was decided, then tell it. What goes wrong is in `broken`."""
        self._commit_is_due = False
        if self.broken.done():
            return
        try:
            self._record.commit()
            self._tell()
        except JournalBroken as e:
            self.broken.set_exception(e)
        except Exception as e:
            self.broken.set_exception(e)
            raise

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        woken: set[str] = set()
        for told, lines in untold:
            self._uncheckpointed += len(lines)
            for line in lines:
                if line.event_seq is not None and line.account is not None:
                    self._tail(line.account).lines.append(line)
                    woken.add(line.account)
            if told:
                told(lines)
        for account in woken:
            self._tail(account).wake()

    # -- questions ------------------------------------------------------------------------------------------

    def settled(self) -> Engine:
        """The engine, after a commit: what it answers is on disk. Raises what is in `broken`."""
        self.commit()
        if self.broken.done():
            self.broken.result()
        return self.engine

    def order(self, account: str, client_order_id: str) -> VenueOrder | None:
        """Open or closed; the latest where an id may be used again. None: there never was one."""
        engine = self.settled()
        closed_at = engine.closed_at(account, client_order_id)
        if not closed_at:
            return engine.open_order(account, client_order_id)
        (line,) = self._record.events(account, closed_at - 1, 1)
        return line.order()

    def fills(self, account: str, after_seq: int, limit: int) -> list[Line]:
        """At most `limit` fills with a higher event_seq, in order."""
        self.settled()
        return self._record.fills(account, after_seq, limit)

    async def follow(self, account: str, after_seq: int, heartbeat_s: float) -> AsyncIterator[list[Line]]:
        """The account's events after `after_seq`, in batches, without end; an empty batch after `heartbeat_s` of
        silence. A slow reader falls back on the record and holds nobody up."""
        tail, cursor = self._tail(account), after_seq
        changed = asyncio.Event()
        tail.readers.add(changed)
        try:
            while True:
                changed.clear()
                batch = self._events(account, cursor)
                if batch:
                    cursor = batch[-1].event_seq or cursor
                    yield batch
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(heartbeat_s):
                        await changed.wait()
                    continue
                yield []
        finally:
            tail.readers.discard(changed)

    def _events(self, account: str, after_seq: int) -> list[Line]:
        lines = self._tail(account).lines
        first = lines[0].event_seq if lines else None
        if first is None or after_seq + 1 < first:
            return self._record.events(account, after_seq, _BATCH_EVENTS)
        skip = after_seq + 1 - first
        return list(islice(lines, skip, skip + _BATCH_EVENTS))

    def _tail(self, account: str) -> _Tail:
        found = self._tails.get(account)
        if found is None:
            found = self._tails[account] = _Tail()
        return found

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def tick_forever(self) -> None:
        while True:
            self.do(self.engine.tick)
            await asyncio.sleep(_TICK_S)

    async def checkpoint_forever(self) -> None:
        """In a thread: its fsyncs take milliseconds, an order must not wait for them."""
        while True:
            await asyncio.sleep(_CHECKPOINT_EVERY_S)
            if self._uncheckpointed:
                self._uncheckpointed = 0
                await asyncio.to_thread(self._record.checkpoint)

    def close(self) -> None:
        self._record.close()


class _Tail:
    """The last committed events of one account, and the streams that wait for more."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=_TAIL_EVENTS)
        self.readers: set[asyncio.Event] = set()

    def wake(self) -> None:
        for reader in self.readers:
            reader.set()
