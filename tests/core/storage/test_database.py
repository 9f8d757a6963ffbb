"""The file of the store in every state that a disk or another program may leave it in."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.privileges import bound_by_permissions, with_own_disks
from voxcli.core.session import Turn
from voxcli.core.storage.database import FILE_NAME, MIGRATIONS
from voxcli.core.storage.store import Store
from voxcli.errors import StoreError

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
PING = Turn("[User audio input - 16000 samples, 1.00s]", "pong")
LONG = Turn("long", "x" * 20_000)

TRIED = """
import json, subprocess, sys
from pathlib import Path
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store
from voxcli.errors import StoreError

def names(folder):
    with Store.read(folder) as store:
        return [summary.name for summary in store.summaries()]

def add(folder, reply="pong"):
    with Store.open(folder) as store:
        return store.append("a", Turn("ping", reply))

def tried(action, *arguments):
    try:
        return action(*arguments)
    except StoreError as error:
        return error.message

folder = Path(sys.argv[1])
"""


def in_child(code: str, folder: Path, wrapped: Callable[[list[str]], list[str]]) -> Any:
    """Run code that prints JSON as its last line, in a process with other rights; return the value."""
    command = wrapped([sys.executable, "-c", TRIED + code, str(folder)])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def listed(folder: Path, told: list[str] | None = None) -> dict[str, int]:
    with Store.read(folder, notice=(told if told is not None else []).append) as store:
        return {summary.name: summary.turns for summary in store.summaries()}


def make(folder: Path, turns: int = 30) -> Path:
    """Write sessions a, b and c of long turns and return their file."""
    with Store.open(folder) as store:
        for name in "abc":
            for _ in range(turns):
                store.append(name, LONG)
    return folder / FILE_NAME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


# --- Reading changes nothing -----------------------------------------------------------------------


def test_reading_creates_nothing(folder: Path) -> None:
    assert listed(folder) == {}
    assert not folder.exists()
    folder.mkdir()
    assert listed(folder) == {}
    assert files(folder) == {}


def test_a_file_that_is_not_filled_yet_is_an_empty_store(folder: Path) -> None:
    folder.mkdir()
    (folder / FILE_NAME).touch()
    assert listed(folder) == {}
    assert files(folder) == {FILE_NAME: b""}


def test_a_store_that_nobody_uses_is_read_as_it_lies(folder: Path) -> None:
    make(folder, turns=1)
    before = files(folder)
    assert listed(folder) == {"a": 1, "b": 1, "c": 1}
    assert files(folder) == before


def test_a_store_in_use_is_read_with_what_is_only_in_its_log(folder: Path) -> None:
    with Store.open(folder) as store:
        store.append("a", PING)
        names = set(files(folder))
        assert listed(folder) == {"a": 1}
        assert set(files(folder)) == names
        assert store.append("a", PING) == 2


@pytest.mark.parametrize("left", [{"-wal", "-shm"}, {"-wal"}])
def test_what_a_killed_process_left_is_read(folder: Path, tmp_path: Path, left: set[str]) -> None:
    copied = tmp_path / "copied"
    with Store.open(folder) as store:
        store.append("a", PING)
        shutil.copytree(folder, copied)
    for kind in {"-wal", "-shm"} - left:
        (copied / f"{FILE_NAME}{kind}").unlink()
    names = set(files(copied))
    assert listed(copied) == {"a": 1}
    assert set(files(copied)) == names


def test_an_old_schema_is_read_and_stays_old(folder: Path) -> None:
    with Store.open(folder, migrations=MIGRATIONS[:1]), closing(sqlite3.connect(folder / FILE_NAME)) as old:
        old.execute("INSERT INTO sessions VALUES (1, 'a', '')")
        old.execute("INSERT INTO turns VALUES (1, 1, '2026-01-01T00:00:00+00:00', '', '', '', 0, '', '', 'hi')")
        old.commit()
    before = files(folder)
    with Store.read(folder) as store:
        stored = store.stored("a")
    assert stored is not None
    assert stored.turns[0].details.transcript == "hi"
    assert files(folder) == before


def test_a_newer_schema_is_refused_by_name(folder: Path) -> None:
    with Store.open(folder, migrations=(*MIGRATIONS, ("CREATE TABLE later (x)",))):
        pass
    with pytest.raises(StoreError, match="newer voxcli") as caught:
        Store.read(folder)
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("log", ["WAL", "DELETE"])
def test_a_lock_is_told_as_a_lock(folder: Path, log: str) -> None:
    file = make(folder, turns=1)
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute(f"PRAGMA journal_mode={log}").fetchall()
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("DELETE FROM turns")
        with pytest.raises(StoreError, match="locked") as caught:
            Store.open(folder, lock_seconds=0.01)
        assert "try again" in caught.value.hint
        if log == "DELETE":  # A write-ahead log leaves the last committed state readable.
            with pytest.raises(StoreError, match="locked"):
                Store.read(folder, lock_seconds=0.01)
        else:
            assert listed(folder) == {"a": 1, "b": 1, "c": 1}
    assert listed(folder) == {"a": 1, "b": 1, "c": 1}


# --- Damage ----------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite(start: int, end: int) -> Callable[[Path], None]:
    def act(file: Path) -> None:
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(b"\xa5" * (end - start))

    return act


def empty(file: Path) -> None:
    os.truncate(file, 0)
    file.with_name(f"{FILE_NAME}-wal").write_bytes(b"a log of turns")


def replace(file: Path) -> None:
    file.write_bytes(b"hello, I am a text file. " * 50)


@pytest.mark.parametrize("harm", [overwrite(0, 100), overwrite(100, 4096), cut, empty, replace])
def test_a_damaged_file_is_named_and_kept(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(make(folder))
    before = files(folder)
    for opened in (Store.open, Store.read):
        with pytest.raises(StoreError, match="is damaged") as caught, opened(folder) as store:
            store.summaries()
        assert f"mv {folder / FILE_NAME}* {folder / 'damaged'}" in caught.value.hint
    assert before.items() <= files(folder).items()


@pytest.mark.skipif(sys.platform == "win32", reason="a command for a shell")
def test_the_advice_for_a_damaged_file_works_and_keeps_it(folder: Path) -> None:
    empty(make(folder))
    before = files(folder)
    with pytest.raises(StoreError) as caught:
        Store.read(folder)
    command = caught.value.hint.partition("left: ")[2]
    assert subprocess.run(command, shell=True, check=False).returncode == 0  # noqa: S602 - the user would paste it
    assert files(folder / "damaged") == before
    assert make(folder, turns=1).exists()


def test_a_damaged_page_costs_the_sessions_on_it(folder: Path) -> None:
    file = make(folder)
    middle = file.stat().st_size // 2 // 4096 * 4096
    harm = overwrite(middle, middle + 4096 * 8)
    harm(file)
    told: list[str] = []
    names = listed(folder, told)
    with Store.read(folder, notice=told.append) as store:
        for name in set("abc") - set(names):
            with pytest.raises(StoreError, match="is damaged"):
                store.stored(name)
    assert set(names) < set("abc") or told == []


# --- Rows ------------------------------------------------------------------------------------------


@pytest.fixture
def changed(folder: Path) -> Iterator[sqlite3.Connection]:
    """The file of a store with three turns in "a" and one in "b", open for changes that no check refuses."""
    with Store.open(folder) as store:
        for name in "aaab":
            store.append(name, PING)
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        yield connection


@pytest.mark.parametrize(
    "change",
    [
        "created_at = 'yesterday'",
        "created_at = 7",
        "created_at = x'00ff'",
        "created_at = CAST(x'ff' AS TEXT)",
        "created_at = '2026-02-31T00:00:00+00:00'",
        "created_at = '2026-02-01T00:00:00'",
        "created_at = '0001-01-01T00:00:00+00:00'",
        "created_at = '9999-12-31T23:59:59-23:59'",
        "reply = x'89504e47'",
        "user = x''",
        "transcript = x'00'",
        "interrupted = 'maybe'",
        "number = 9223372036854775807",
        "number = -1",
        "number = 'two'",
        "number = 2.5",
        "number = x'02'",
    ],
)
def test_a_bad_turn_costs_itself_and_is_named(folder: Path, changed: sqlite3.Connection, change: str) -> None:
    changed.execute(f"UPDATE turns SET {change} WHERE session_id = 1 AND number = 2")  # noqa: S608
    told: list[str] = []
    assert listed(folder, told) == {"a": 2, "b": 1}
    assert len(told) == 1
    assert "session 'a'" in told[0]
    with Store.open(folder, notice=told.append) as store:
        session = store.session("a")
        assert session is not None
        assert session.turns == (PING, PING)
        assert told[1] == told[0]
        assert store.append("a", PING) == 4
        assert store.delete("a")


def test_text_that_is_no_utf_8_is_read_as_far_as_it_goes(folder: Path, changed: sqlite3.Connection) -> None:
    changed.execute("UPDATE turns SET reply = CAST(x'6869ff' AS TEXT)")
    with Store.read(folder) as store:
        session = store.session("b")
    assert session is not None
    assert session.turns[0].reply == "hi\ufffd"


def test_a_row_of_five_megabytes_is_read(folder: Path, changed: sqlite3.Connection) -> None:
    changed.execute("UPDATE turns SET reply = CAST(zeroblob(5000000) AS TEXT) WHERE session_id = 2")
    assert listed(folder) == {"a": 3, "b": 1}
    with Store.read(folder) as store:
        session = store.session("b")
    assert session is not None
    assert len(session.turns[0].reply) == 5_000_000


def test_a_column_without_a_value_costs_its_turn(folder: Path, changed: sqlite3.Connection) -> None:
    changed.execute("CREATE TABLE loose AS SELECT * FROM turns")
    changed.execute("UPDATE loose SET reply = NULL, created_at = NULL, number = NULL WHERE session_id = 2")
    changed.execute("DROP TABLE turns")
    changed.execute("ALTER TABLE loose RENAME TO turns")
    told: list[str] = []
    assert listed(folder, told) == {"a": 3}
    assert told == ["left out of session 'b', because it can't be read: turn None"]


def test_a_session_whose_row_is_bad_costs_itself(folder: Path, changed: sqlite3.Connection) -> None:
    changed.execute("UPDATE sessions SET name = x'ff' WHERE id = 2")
    changed.execute("UPDATE sessions SET instructions = x'ff' WHERE id = 1")
    told: list[str] = []
    assert listed(folder, told) == {"a": 3}
    assert told == ["session number 2 is left out, because its name can't be read"]
    with Store.read(folder, notice=told.append) as store:
        session = store.session("a")
    assert session is not None
    assert session.instructions == ""
    assert "instructions of session 'a'" in told[1]


# --- Disks and permissions -------------------------------------------------------------------------


def test_a_full_disk_is_told_as_full_and_loses_nothing(folder: Path) -> None:
    code = """
mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
folder.mkdir()
subprocess.run(mount, check=True)
found = [add(folder), tried(add, folder, "x" * 1_000_000), names(folder)]
(folder / "filler").write_bytes(b"")
with (folder / "filler").open("wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 512):
            pass
    except OSError:
        pass
found += [tried(add, folder, "x" * 10_000), tried(add, folder), names(folder), tried(add, folder / "new")]
(folder / "filler").unlink()
print(json.dumps([*found, add(folder)]))
"""
    first, too_long, read, full, full_again, read_again, new, last = in_child(code, folder, with_own_disks)
    assert (first, last) == (1, 2)
    assert read == read_again == ["a"]
    for message in (too_long, full, full_again, new):
        assert message.startswith("no space left to store sessions in ")


def test_a_read_only_disk_can_be_read(folder: Path) -> None:
    code = """
folder.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
(folder / "idle").mkdir()
add(folder / "idle")
subprocess.run(["cp", "-r", str(folder / "idle"), str(folder / "killed")], check=True)
with Store.open(folder / "killed") as store:
    store.append("b", Turn("ping", "pong"))
    subprocess.run(["cp", "-r", str(folder / "killed"), str(folder / "left")], check=True)
    subprocess.run(["cp", "-r", str(folder / "killed"), str(folder / "moved")], check=True)
(folder / "moved" / "sessions.db-shm").unlink()
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
print(json.dumps([*(tried(names, folder / name) for name in ("idle", "left", "moved", "none")),
    tried(add, folder / "idle"), tried(add, folder / "none")]))
"""
    idle, left, moved, none, refused, refused_new = in_child(code, folder, with_own_disks)
    assert (idle, left, moved, none) == (["a"], ["b", "a"], ["b", "a"], [])
    assert "the disk is read-only" in refused
    assert "the disk is read-only" in refused_new


@posix
def test_permissions_are_told_as_such(folder: Path) -> None:
    for name in ("folder", "closed", "file", "hidden"):
        make(folder / name, turns=1)
    code = """
modes = {"folder": 0o500, "closed": 0, "file/sessions.db": 0o400, "hidden/sessions.db": 0}
for name, mode in modes.items():
    (folder / name).chmod(mode)
places = ["folder", "closed", "file", "hidden"]
found = [[tried(names, folder / name), tried(add, folder / name)] for name in places]
for name in modes:
    (folder / name).chmod(0o700)
print(json.dumps(found))
"""
    by_folder, closed, by_file, hidden = in_child(code, folder, bound_by_permissions)
    assert by_folder[0] == by_file[0] == ["a", "b", "c"] or by_folder[0] == ["c", "b", "a"]
    assert str(folder / "folder") in by_folder[1]
    assert "ermission" in by_folder[1]
    assert all("ermission denied" in message for message in closed)
    assert str(folder / "file" / FILE_NAME) in by_file[1]
    assert "permission" in by_file[1]
    assert all("permission" in message for message in hidden)
    assert all("damaged" not in str(each) for each in (by_folder, closed, by_file, hidden))


def test_places_that_are_no_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / FILE_NAME).symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "loop", "dangling", "file/below"):
        for opened in (Store.open, Store.read):
            with pytest.raises(StoreError):
                opened(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


@posix
def test_a_pipe_in_place_of_the_file_is_not_waited_for(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / FILE_NAME)
    for opened in (Store.open, Store.read):
        with pytest.raises(StoreError, match="not a regular file"):
            opened(folder)
