"""A node's data directory, and the lock that says whether anything of the node is alive.

The lock is a flock on `<home>/lock`, taken by the keeper and inherited by its worker, so it is free exactly when both
are dead. Whoever gets it holds proof that the predecessor cannot send: a restarted keeper and `baton node resign
--dead` may therefore resign the predecessor's term without waiting for a ttl.

The proof is as good as the lock is the same one, so `Home.id` names this very lock: the file's inode, on this kernel
since it was booted, beside a random id kept in the directory. A copy of the directory, here or on another machine, has
another id and waits for a ttl like anybody else, as does the node itself after a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from .core.errors import BatonError


class HomeBusy(BatonError):
    """Another process of this node holds the lock."""


class Home:
    def __init__(self, path: Path, lock_fd: int, home_id: str) -> None:
        self.path = path
        self.lock_fd = lock_fd
        self.id = home_id

    @classmethod
    def open(cls, path: Path) -> Home:
        """Make the directory if need be and take the lock. Raises HomeBusy, or BatonError naming the path."""
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
            fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as e:
            raise BatonError(f"data directory {path}: {e.strerror}; make it, or let this user write there") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip()
            os.close(fd)
            raise HomeBusy(
                f"data directory {path} is in use by this node's keeper or worker (keeper pid {holder or 'unknown'}); "
                "stop it first, or give this node another node.data_dir"
            ) from None
        with contextlib.suppress(OSError):  # for people only, and a full disk must not keep anybody from resigning
            os.pwrite(fd, f"{os.getpid():<20}\n".encode(), 0)
        try:
            return cls(path, fd, _identity(path, fd))
        except OSError as e:
            os.close(fd)
            raise BatonError(f"data directory {path}: {e.strerror}; Baton must be able to write there") from e

    def close(self) -> None:
        os.close(self.lock_fd)


def _identity(path: Path, lock_fd: int) -> str:
    lock = os.fstat(lock_fd)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{_kept_id(path)}-{boot_id[:8]}-{lock.st_dev:x}.{lock.st_ino:x}"


def _kept_id(path: Path) -> str:
    """A random id kept in the directory: some file systems tell the same inode number of several files."""
    file = path / "home-id"
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        text = ""
    if not text:  # also after a crash, or a full disk, between making the file and writing it
        text = secrets.token_hex(8)
        file.write_text(text + "\n")
    return text
