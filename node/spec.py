"""From a configuration to what a keeper is told, and to becoming one.

The keeper must not import pydantic or anything of trading, so it gets its orders as JSON. They may hold the etcd
password, so `become_keeper` hands them over in memory: nothing of them is ever on a disk.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from cluster.core.ids import ns
from cluster.spec import KeeperSpec
from node.config import Config
from node.version import VERSION


def keeper_spec(config: Config, config_file: Path) -> KeeperSpec:
    """config_file: what `config` was read from; the worker reads it again. Raises ConfigError for a secret that
    cannot be read."""
    worker = config.worker
    return KeeperSpec(
        cluster=config.cluster.name,
        node=config.node.name,
        data_dir=str(config.node.data_dir.absolute()),
        etcd=etcd_arguments(config),
        rules=asdict(config.lease_rules()),
        timing={
            "hang_timeout": ns(worker.hang_timeout_s),
            "start_timeout": ns(worker.start_timeout_s),
            "restart_min": ns(worker.restart_backoff_min_s),
            "restart_max": ns(worker.restart_backoff_max_s),
        },
        worker_argv=[sys.executable, "-m", "node.worker", "--config", str(config_file.absolute())],
        priority=config.node.priority,
        never_lead=config.node.never_lead,
        version=VERSION,
        log_level=config.log.level,
        log_format=config.log.format,
    )


def etcd_arguments(config: Config) -> dict[str, Any]:
    """For `registry.etcd_client`, as JSON-able values. Raises ConfigError for a password that cannot be read."""
    etcd = config.etcd
    tls = {"ca": etcd.ca_file, "cert": etcd.cert_file, "key": etcd.key_file}
    return {
        "endpoints": list(etcd.endpoints),
        "user": etcd.user or None,
        "password": etcd.password.reveal() if etcd.password else None,
        "call_timeout_s": etcd.call_timeout_s,
        "tls": {name: str(path) for name, path in tls.items() if path} if any(tls.values()) else None,
    }


def become_keeper(spec: KeeperSpec) -> NoReturn:
    """Replace this process, pid and all, by the keeper: systemd and a supervisor go on watching the right one."""
    fd = os.memfd_create("baton-keeper-spec", 0)  # inherited by the next program, closed by its children
    os.write(fd, json.dumps(asdict(spec)).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cluster.keeper", f"/proc/self/fd/{fd}"])
