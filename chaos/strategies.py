"""Strategies that misbehave on request, for the show and for drills. Never for trading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from node.feeds.base import MarketEvent
from node.strategies.market_maker import MarketMaker
from node.strategy import Context, Role, Wish


class HangsOnRequest(MarketMaker):
    """The market maker, but when it leads and the file `hang_file` appears, it removes it and never returns."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        mine = dict(config)
        self._file = Path(str(mine.pop("hang_file")))
        self._leads = False
        super().__init__(mine)

    def on_role(self, ctx: Context, role: Role, reason: str) -> Iterable[Wish] | None:
        self._leads = role is Role.ACTIVE
        return super().on_role(ctx, role, reason)

    def on_market(self, ctx: Context, event: MarketEvent) -> Iterable[Wish] | None:
        if self._leads and os.path.exists(self._file):  # os.path: a stat per event, no more
            self._file.unlink()
            while True:  # what a user's endless loop or lost network call looks like from outside
                pass
        return super().on_market(ctx, event)
