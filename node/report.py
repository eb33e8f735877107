"""What this node says of itself, to the other nodes and to people (`node.status.source.StatusSource`). Reads, and
decides nothing; an answer is a moment's copy.

`published()` goes to everybody every second through etcd, so it is small; `detail()` is for who asks this node.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import structlog

from cluster import link
from cluster.clock import boottime_ns, unix_ns
from cluster.core.ids import NS_PER_S
from node.feeds.base import FeedState
from node.leading import Leading
from node.parts import Parts
from node.strategy import OrderState
from node.version import VERSION

log = structlog.get_logger()

SWITCHOVER_ANSWER_S = 5.0
UNRESOLVED_AFTER_NS = NS_PER_S
"""Every order is unresolved while it is on its way. What people want to see is one that stays so."""
DECLINED_MANY = 20
STEPPED_DOWN_SHOWN_S = 60.0


class Report:
    """Implements node.status.source.StatusSource."""

    def __init__(self, parts: Parts, leading: Leading) -> None:
        self._parts = parts
        self._leading = leading
        self._picture: dict[str, Any] | None = None
        self._picture_at = 0
        self._asked: dict[str, asyncio.Future[tuple[bool, str]]] = {}

    # -- what the keeper says ------------------------------------------------------------------------------

    def see(self, picture: dict[str, Any]) -> None:
        self._picture, self._picture_at = picture, boottime_ns()

    def picture(self) -> dict[str, Any] | None:
        if self._picture is None:
            return None
        return self._picture | {"age_s": (boottime_ns() - self._picture_at) / NS_PER_S}

    # -- this node -----------------------------------------------------------------------------------------

    def published(self) -> dict[str, Any]:
        """Also `followers`, from the leader: {node: last index durable there}. With `log_index` beside it, one moment's
        lag; the same from two nodes' words would be of two moments."""
        parts, leader, permission = self._parts, self._leading.log, self._leading.permission
        book, journal = parts.book, parts.journal
        health = parts.feed.health(boottime_ns())
        commit = leader.commit_index if leader else parts.follower.state().leader_commit
        digest = parts.digests.latest
        recent = book.recent_intents
        said = {
            "at": unix_ns(),
            "role": "leader" if leader else "standby",
            "ready": self._ready(),
            "permission": permission.level.value,
            "permission_reason": permission.reason,
            "term": book.term,
            "log_index": journal.last.index,
            "commit_index": max(commit, journal.commit_index),
            "applied_index": book.applied_index,
            "lag_entries": 0 if leader else max(0, commit - journal.durable_index),
            "lag_s": 0.0 if leader else self._lag_s(),
            "feed_age_s": health.age_s,
            "feed_state": health.state.value,
            "digest": digest[1].hex() if digest else "",
            "digest_index": digest[0] if digest else 0,
            "positions": book.positions(),
            "open_orders": sum(1 for o in book.live_orders() if o.state is OrderState.OPEN),
            "unresolved": sum(unix_ns() - o.at > UNRESOLVED_AFTER_NS for o in book.unresolved()),
            "last_order_at": recent[-1] if recent else None,
            "double_order_class": parts.venue.capabilities.double_order_class.value,
        }
        if leader is not None:
            durable: dict[str, int] = {}
            for f in leader.followers():  # of two streams of one node the older is about to end
                durable[f.node] = max(durable.get(f.node, 0), f.durable)
            said["followers"] = durable
        return said

    def _ready(self) -> bool:
        """Could trade if it led; asked for when a successor is chosen."""
        c = self._parts.conditions
        return c.feed is FeedState.LIVE and not (c.gate or c.venue or c.strategy_failed)

    def _lag_s(self) -> float | None:
        """How old the latest entry is that we have, while the leader has committed more; None: we do not know."""
        state, journal = self._parts.follower.state(), self._parts.journal
        if not state.connected:
            return None
        if state.leader_commit <= journal.durable_index:
            return 0.0
        entry = journal.tail(journal.last.index, 1, 1)
        return max(0.0, (unix_ns() - entry[-1].at) / NS_PER_S) if entry else None

    def detail(self) -> dict[str, Any]:
        parts, trader = self._parts, self._leading.trader
        conditions, host, venue = parts.conditions, parts.host, parts.venue
        health = parts.feed.health(boottime_ns())
        permit = parts.page.read()
        following = parts.follower.state()
        return self.published() | {
            "node": parts.name,
            "version": VERSION,
            "pid": os.getpid(),
            "permit_left_s": (permit.act_until - boottime_ns()) / NS_PER_S if permit.token else None,
            "gate": {
                "state": conditions.gate or ("armed" if trader else "reachable"),
                "why": conditions.gate,
                "armed_token": trader.term if trader and not conditions.gate_closed else None,
            },
            "venue": {
                "connected": venue.connected,
                "class": venue.capabilities.double_order_class.value,
                "why": conditions.venue,
            },
            "feed": {
                "state": health.state.value,
                "age_s": health.age_s,
                "messages": health.messages,
                "gaps": health.gaps,
                "duplicates": health.duplicates,
                "reordered": health.reordered,
                "malformed": health.malformed,
                "reconnects": health.reconnects,
                "reason": health.reason,
            },
            "strategy": {
                "path": host.path,
                "role": host.role.value,
                "failed": host.failed,
                "fingerprint": host.fingerprint(),
                "shadow_intents": host.shadow_intents,
                "shadow_matched": host.shadow_matched,
            },
            "following": {
                "leader": following.leader,
                "connected": following.connected,
                "refused": following.refused,
            },
            "declined": dict(trader.leadership.declines.counts) if trader else {},
            "counts": asdict(parts.book.counts),
            "mismatches": [m.text for m in parts.book.mismatches]
            + list(trader.leadership.reconciler.mismatches if trader else ()),
            "latency_s": parts.telemetry.latency_s(),
            "warnings": [*parts.warnings, *self._leading_warnings()],
        }

    def _leading_warnings(self) -> Iterator[str]:
        trader = self._leading.trader
        if (down := self._leading.stepped_down) is not None:
            ago = (boottime_ns() - down[0]) / NS_PER_S
            if ago < STEPPED_DOWN_SHOWN_S:
                yield f"{self._parts.name} led, and stepped down {ago:.0f} s ago: {down[1]}."
        if trader is None:
            return
        yield from trader.gate_warnings
        declines = trader.leadership.declines
        last = declines.last
        if last is not None and last.code != "blocked" and declines.in_a_row >= DECLINED_MANY:
            yield (
                f"The last {declines.in_a_row} orders that the strategy wanted were declined; the latest: "
                f"{last.code}: {last.reason}."
            )

    def positions(self) -> list[dict[str, Any]]:
        out = []
        for symbol, lots in sorted(self._parts.book.positions().items()):
            instrument = self._parts.instruments.get(symbol)
            quote = self._parts.host.quotes.get(symbol)
            out.append(
                {
                    "symbol": symbol,
                    "lots": lots,
                    "qty": str(instrument.qty(lots)) if instrument else None,
                    "tick_size": str(instrument.tick_size) if instrument else None,
                    "lot_size": str(instrument.lot_size) if instrument else None,
                    "last_price": str(instrument.price(quote.bid_ticks)) if instrument and quote else None,
                }
            )
        return out

    def orders(self) -> list[dict[str, Any]]:
        live = sorted(self._parts.book.live_orders(), key=lambda o: (not o.unresolved, o.index))
        return [
            {
                "client_order_id": o.client_order_id,
                "decision_id": o.intent.decision_id,
                "symbol": o.intent.spec.symbol,
                "side": o.intent.spec.side.value,
                "qty": self._qty(o.intent.spec.symbol, o.intent.spec.qty_lots),
                "price": self._price(o.intent.spec.symbol, o.intent.spec.price_ticks),
                "state": o.state.value,
                "filled": self._qty(o.intent.spec.symbol, o.filled_lots),
                "cancel_requested": o.cancel_requested,
                "reason": o.reason,
                "term": o.term,
                "at": o.at,
            }
            for o in live
        ]

    def _qty(self, symbol: str, lots: int) -> str:
        instrument = self._parts.instruments.get(symbol)
        return str(instrument.qty(lots)) if instrument else f"{lots} lots"

    def _price(self, symbol: str, ticks: int | None) -> str | None:
        instrument = self._parts.instruments.get(symbol)
        return None if ticks is None else str(instrument.price(ticks)) if instrument else f"{ticks} ticks"

    # -- requests ------------------------------------------------------------------------------------------

    async def switchover(self, target: str | None, actor: str) -> tuple[bool, str]:
        request_id = uuid.uuid4().hex
        asked = self._asked[request_id] = asyncio.get_running_loop().create_future()
        self._parts.link.send(link.AskSwitchover(request_id, target, actor))
        try:
            async with asyncio.timeout(SWITCHOVER_ANSWER_S):
                accepted, text = await asked
                return accepted, text
        except TimeoutError:
            return False, f"no leader answered within {SWITCHOVER_ANSWER_S:g} s; is there one? See `baton status`"
        finally:
            self._asked.pop(request_id, None)

    def hand_over(self, why: str) -> None:
        """To whoever says that it could trade, if anybody does: this node leads, and cannot."""
        picture = self._picture or {}
        able = [
            name
            for name, m in picture.get("members", {}).items()
            if name != self._parts.name and m.get("ready") and picture["insync"].get(name) == m.get("journal_id")
        ]
        if able:
            log.warning("asks_to_hand_over", reason=why, able=able)
            self._parts.link.send(link.AskSwitchover(uuid.uuid4().hex, None, f"{self._parts.name}: {why}"))

    def switchover_answered(self, answer: link.SwitchoverAnswer) -> None:
        asked = self._asked.pop(answer.request_id, None)
        if asked is not None and not asked.done():
            asked.set_result((answer.ok, answer.text))
