"""The data directory's lock: who holds it, who inherits it, and that its name is the name of this very lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.core.errors import BatonError
from cluster.home import Home, HomeBusy


def test_the_lock_is_one_persons_and_names_the_holder(tmp_path: Path):
    home = Home.open(tmp_path / "deep" / "home")
    with pytest.raises(HomeBusy, match=rf"keeper pid {os.getpid()}\); stop it first"):
        Home.open(home.path)
    home.close()
    Home.open(home.path).close()


def test_a_pid_shorter_than_the_last_one_is_not_mixed_with_it(tmp_path: Path):
    (tmp_path / "lock").write_text("123456789\n")
    home = Home.open(tmp_path)
    with pytest.raises(HomeBusy, match=rf"\(keeper pid {os.getpid()}\)"):
        Home.open(tmp_path)
    home.close()


def test_whoever_inherited_the_lock_holds_it_until_the_end(tmp_path: Path):
    """As a worker does, whose keeper was killed."""
    home = Home.open(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[home.lock_fd]
    ) as inheritor:
        home.close()
        with pytest.raises(HomeBusy):
            Home.open(tmp_path)
        inheritor.kill()
        inheritor.wait(10)
    Home.open(tmp_path).close()


def test_a_child_that_was_not_handed_the_lock_does_not_hold_it(tmp_path: Path):
    home = Home.open(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        home.close()
        Home.open(tmp_path).close()
        child.kill()


def test_the_id_is_the_same_for_the_next_keeper(tmp_path: Path):
    ids = set()
    for _ in range(3):
        home = Home.open(tmp_path)
        ids.add(home.id)
        home.close()
    assert len(ids) == 1


def test_a_copy_has_another_id(tmp_path: Path):
    """Its lock is another lock: holding it proves nothing about the original's node."""
    home = Home.open(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = Home.open(tmp_path / "b")
    assert copy.id != home.id
    assert (tmp_path / "a" / "home-id").read_text() == (tmp_path / "b" / "home-id").read_text()
    home.close()
    copy.close()


def test_a_lock_that_was_deleted_under_its_holder_is_not_the_same_one(tmp_path: Path):
    home = Home.open(tmp_path)
    (tmp_path / "lock").unlink()
    other = Home.open(tmp_path)
    assert other.id != home.id
    home.close()
    other.close()


def test_a_renamed_home_keeps_its_id(tmp_path: Path):
    home = Home.open(tmp_path / "a")
    home.close()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Home.open(tmp_path / "b")
    assert moved.id == home.id
    moved.close()


def test_an_empty_id_is_made_anew_and_never_shared(tmp_path: Path):
    """A crash, or a full disk, between making the file and writing it."""
    ids = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "home-id").touch()
        home = Home.open(tmp_path / name)
        ids.append((tmp_path / name / "home-id").read_text())
        home.close()
    assert "" not in ids
    assert ids[0] != ids[1]


@pytest.mark.parametrize("blocked", ["", "lock", "home-id"])
def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, blocked: str):
    path = tmp_path / "home"
    if blocked:
        path.mkdir()
        (path / blocked).mkdir()
    else:
        path.write_text("a file")
    with pytest.raises(BatonError, match=f"data directory {path}: "):
        Home.open(path)
    if blocked == "home-id":  # and the lock was let go
        (path / blocked).rmdir()
        Home.open(path).close()
