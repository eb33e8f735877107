"""What the status page, the health routes and the metrics ask of the worker. A Protocol, so that they can be tested
without one. All values are JSON-able; durations in seconds, times as Unix nanoseconds, money as decimal strings.
"""

from __future__ import annotations

from typing import Any, Protocol


class StatusSource(Protocol):
    def picture(self) -> dict[str, Any] | None:
        """What this node's keeper last said of the cluster (`cluster.keeper.Keeper._picture`), with `age_s`
        added: seconds since it was said. None: it has not said anything yet. `members[<name>].status` is that node's
        `published()`."""

    def published(self) -> dict[str, Any]:
        """What this node tells the others of itself, every second: role, permission, permission_reason, log_index,
        commit_index, applied_index, lag_entries, lag_s, feed_age_s (None: never), feed_state, digest, digest_index,
        positions ({symbol: lots}), open_orders, unresolved, last_order_at; the leader also followers ({node: last index
        durable there, of the same moment as log_index}).

        Also `at`, when it was said: no two are equal then, so that a worker that stands still is told from one to which
        nothing happens (`summary.LastHeard`)."""

    def detail(self) -> dict[str, Any]:
        """This node alone, in full: published() and node, version, incarnation, term, permit_left_s,
        gate {state, armed_token}, venue {connected, class, why}, feed {FeedHealth's fields}, strategy {path, role,
        failed, fingerprint, shadow_intents, shadow_matched}, counts, mismatches, latency_s {stage: {p50, p99}},
        warnings [text]."""

    def positions(self) -> list[dict[str, Any]]:
        """symbol, lots, qty, tick_size, lot_size, last_price."""

    def orders(self) -> list[dict[str, Any]]:
        """Live orders, unresolved first: client_order_id, decision_id, symbol, side, qty, price, state, filled,
        cancel_requested, reason, term, at."""

    async def switchover(self, target: str | None, actor: str) -> tuple[bool, str]:
        """Ask whoever leads to hand over; (accepted, text for people). Ends within six seconds."""
