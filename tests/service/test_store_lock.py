"""One controller a database: the second is told who the first is, and a dead one is in nobody's way."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from hdet_service.store.database import Store
from hdet_service.store.errors import StoreLockedError
from hdet_service.store.lock import DatabaseLock
from tests.service.store_rows import read_line, start_child

_HOLDS = """
import sys, time
from hdet_service.store.database import Store
store = Store.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_controller_is_told_who_the_first_is(tmp_path: Path) -> None:
    child = start_child(_HOLDS, tmp_path / "hdet.db")
    try:
        assert read_line(child) == "open"
        who = re.escape(f"pid {child.pid} on host {socket.gethostname()}")
        with pytest.raises(StoreLockedError, match=who):
            Store.open(tmp_path / "hdet.db")
    finally:
        child.kill()
        child.communicate(timeout=10)


def test_the_lock_of_one_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    child = start_child(_HOLDS, tmp_path / "hdet.db")
    assert read_line(child) == "open"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=10)
    Store.open(tmp_path / "hdet.db").close()


def test_two_stores_of_one_process_keep_each_other_out_until_one_is_closed(tmp_path: Path) -> None:
    first = Store.open(tmp_path / "hdet.db")
    with pytest.raises(StoreLockedError, match=f"pid {os.getpid()}"):
        Store.open(tmp_path / "hdet.db")
    first.close()
    Store.open(tmp_path / "hdet.db").close()


def test_a_store_that_could_not_be_opened_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "hdet.db"
    path.write_text("this is a letter, not a database; it is longer than a header " * 20)
    with pytest.raises(Exception, match="no database"):
        Store.open(path)
    path.unlink()
    Store.open(path).close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "hdet.db")
    waits, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        os.read(waits, 1)  # until the parent has closed its end
        os._exit(0)
    try:
        store.close()
        Store.open(tmp_path / "hdet.db").close()
    finally:
        os.close(ends)
        os.waitpid(child, 0)
        os.close(waits)


def test_a_child_that_is_just_being_forked_does_not_keep_a_lock_that_is_given_up(tmp_path: Path) -> None:
    lock = DatabaseLock(tmp_path / "hdet.db")
    childs_copy = os.dup(lock._file)
    try:
        lock.release()
        DatabaseLock(tmp_path / "hdet.db").release()
    finally:
        os.close(childs_copy)


def test_another_path_to_the_same_file_is_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with (
        Store.open(tmp_path / "home" / "hdet.db"),
        pytest.raises(StoreLockedError),
    ):
        Store.open(tmp_path / "link" / "hdet.db")
