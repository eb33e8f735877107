"""What a keeper is told: made from the configuration by whoever starts it, so that the keeper need not parse one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeeperSpec:
    """Everything a keeper is told. Times in nanoseconds where the name does not say otherwise."""

    cluster: str
    node: str
    data_dir: str
    etcd: dict[str, Any]  # EtcdClient's arguments; tls as a dict of file names
    rules: dict[str, Any]  # LeaseRules
    timing: dict[str, Any]  # Timing
    worker_argv: list[str]
    priority: int = 100
    never_lead: bool = False
    version: str = ""
    log_level: str = "info"
    log_format: str = "json"

    @classmethod
    def load(cls, text: str) -> KeeperSpec:
        return cls(**json.loads(text))
