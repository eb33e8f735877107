"""Processes of a local cluster, named so that a signal never reaches a stranger.

A pid alone is reused by the kernel. Here a process is (pid, start in clock ticks since boot, boot id): the three are
never given twice, and no step of the wall clock moves them (psutil's create_time goes through the wall clock). Every
process of a cluster also carries the cluster's random id in its environment, so that one whose pid was never written
down, because the supervisor was killed that moment, is found too.

Touches /proc and signals; starts nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.clock import boottime_ns
from cluster.core.errors import BatonError
from cluster.core.ids import ns

MARK = "BATON_LOCAL_CLUSTER"
"""Environment variable that holds the cluster's id in each of its processes."""

_POLL_S = 0.01
_KILL_WAIT_S = 5.0


class StillRunning(BatonError):
    """A process does not die even from SIGKILL."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever. ticks: its start, since boot."""

    pid: int
    ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None if there is none, or only its corpse."""
        found = _stat(pid)
        return None if found is None else cls(pid, found, _boot_id())

    @classmethod
    def from_record(cls, record: dict[str, Any] | None) -> ProcessId | None:
        return cls(**record) if record else None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def alive(self) -> bool:
        return self.boot == _boot_id() and _stat(self.pid) == self.ticks

    def send(self, *signals: signal.Signals) -> bool:
        """To this very process; False if it is gone. A pidfd pins the process between the look and the signal."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            for sig in signals:
                signal.pidfd_send_signal(fd, sig)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> int | None:
    """Start time in ticks since boot; None if the process is gone or a corpse.

    A process whose first thread has ended shows as a zombie while its other threads still hold its ports and locks; it
    is dead when the last of them is."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
        fields = line[line.rindex(b")") + 2 :].split()  # the name in brackets may hold anything
        if fields[0] in (b"Z", b"X") and len(os.listdir(f"/proc/{pid}/task")) <= 1:
            return None
    except OSError:
        return None
    return int(fields[19])


def marked(cluster_id: str) -> Iterator[ProcessId]:
    """Every living process of ours whose environment carries this cluster's id, this process excepted."""
    needle = f"{MARK}={cluster_id}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        if needle in environment and (found := ProcessId.of(int(entry.name))) is not None:
            yield found


def wait_gone(processes: Iterable[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Wait until they are gone; who still lives after `timeout_s`."""
    deadline = boottime_ns() + ns(timeout_s)
    left = [p for p in processes if p.alive]
    while left and boottime_ns() < deadline:
        time.sleep(_POLL_S)
        left = [p for p in left if p.alive]
    return left


def stop(processes: Iterable[ProcessId], grace_s: float) -> None:
    """Ask all at once, then make sure. A paused one is woken, or it could not hear the request.
    Raises StillRunning when SIGKILL did not help."""
    asked = [p for p in processes if p.send(signal.SIGTERM, signal.SIGCONT)]
    left = wait_gone(asked, grace_s)
    for p in left:
        p.send(signal.SIGKILL)
    if stuck := wait_gone(left, _KILL_WAIT_S):
        raise StillRunning(
            f"processes {', '.join(str(p.pid) for p in stuck)} do not die from SIGKILL; look at their disk"
        )
