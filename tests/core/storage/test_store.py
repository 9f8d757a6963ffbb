"""The store: what was reported is there, whoever else writes, however the process ends."""

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxcli.core.session import Session, Turn
from voxcli.core.storage.database import FILE_NAME, MIGRATIONS, open_file
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import TurnDetails
from voxcli.errors import StoreError

KILLS = 50
TURNS_EACH = 200
WRITER = """
import sys
from pathlib import Path
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store

folder, name, writer, count = sys.argv[1:]
print("opening", flush=True)
with Store.open(Path(folder)) as store:
    for index in range(int(count)):
        number = store.append(name, Turn(f"{writer} {index}", "reply " * 50))
        print(number, writer, index, flush=True)
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
PING = Turn("[User audio input - 16000 samples, 1.00s]", "pong")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "voxcli"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store.open(folder) as store:
        yield store


def start_writer(folder: Path, name: str, writer: str, count: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WRITER, str(folder), name, writer, str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_session_comes_back_as_it_was_told(folder: Path) -> None:
    told = [Turn("a", "b"), Turn("c", "d", interrupted=True, prompt="look"), Turn("e", "")]
    with Store.open(folder) as store:
        numbers = [store.append("kitchen", turn, instructions="be short") for turn in told]
    with Store.open(folder) as store:
        assert numbers == [1, 2, 3]
        assert store.session("kitchen") == Session("kitchen", "be short", tuple(told))
        assert store.session("Kitchen") is None


def test_instructions_are_those_that_the_session_began_with(store: Store) -> None:
    store.append("a", PING, instructions="first")
    store.append("a", PING, instructions="second")
    session = store.session("a")
    assert session is not None
    assert session.instructions == "first"


def test_details_and_time_are_kept_beside_the_turn(store: Store) -> None:
    details = TurnDetails("embedded", "smollm2", transcript="ping")
    before = datetime.now(UTC)
    store.append("a", PING, details)
    stored = store.stored("a")
    assert stored is not None
    assert stored.turns[0].details == details
    assert before <= stored.turns[0].created_at <= datetime.now(UTC)


@settings(max_examples=50, deadline=None)
@given(user=st.text(), reply=st.text(), prompt=st.text(), transcript=st.none() | st.text())
def test_any_text_survives(user: str, reply: str, prompt: str, transcript: str | None) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in chain.from_iterable(MIGRATIONS):
        connection.execute(statement)
    with Store(Path("memory"), connection) as store:
        turn = Turn(user, reply, prompt=prompt)
        store.append("a", turn, TurnDetails(transcript=transcript))
        stored = store.stored("a")
    assert stored is not None
    assert (stored.turns[0].turn, stored.turns[0].details.transcript) == (turn, transcript)


def test_text_that_has_no_utf_8_is_kept_as_far_as_it_goes(store: Store) -> None:
    store.append("a", Turn("file \udcff.wav", "\ud83d\ude00"))
    session = store.session("a")
    assert session is not None
    assert session.turns == (Turn("file \ufffd.wav", "\U0001f600"),)


def test_summaries_name_the_newest_session_first(store: Store) -> None:
    assert store.summaries() == []
    for name in ("a", "b", "a"):
        store.append(name, PING)
    first, second = store.summaries()
    assert (first.name, first.turns, second.name, second.turns) == ("a", 2, "b", 1)
    assert first.started <= second.started <= first.last


def test_deleted_text_is_in_no_file_any_more(folder: Path, store: Store) -> None:
    store.append("secret", Turn("a", "the password is opensesame"))
    store.append("other", PING)
    assert any(b"opensesame" in file.read_bytes() for file in folder.iterdir())
    assert store.delete("secret")
    assert not store.delete("secret")
    assert not any(b"opensesame" in file.read_bytes() for file in folder.iterdir())
    assert [summary.name for summary in store.summaries()] == ["other"]
    assert store.append("secret", PING) == 1


def test_each_commit_waits_for_the_disk(folder: Path) -> None:
    """Loss of power can't be tested, so the settings that SQLite documents for it are."""
    with closing(open_file(folder / FILE_NAME, MIGRATIONS, lock_seconds=1)) as connection:
        found = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")]
    assert found == [("wal",), (2,)]


@posix
def test_only_the_owner_can_read(folder: Path, store: Store) -> None:
    store.append("a", PING)
    assert mode(folder) == 0o700
    assert {file.name: mode(file) for file in folder.iterdir()} == {
        FILE_NAME: 0o600,
        f"{FILE_NAME}-wal": 0o600,
        f"{FILE_NAME}-shm": 0o600,
    }


@posix
def test_loose_permissions_are_tightened(folder: Path, store: Store) -> None:
    store.append("a", PING)
    for part in (folder, *folder.iterdir()):
        part.chmod(0o777)
    with Store.open(folder):
        assert mode(folder) == 0o700
        assert {mode(file) & 0o077 for file in folder.iterdir()} == {0}


@posix
def test_a_folder_that_belongs_to_everybody_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with Store.open(tmp_path):
        assert mode(tmp_path) == 0o777
        assert mode(tmp_path / FILE_NAME) == 0o600


def test_a_schema_is_brought_up_to_date_and_keeps_its_turns(folder: Path) -> None:
    with Store.open(folder, migrations=MIGRATIONS) as store:
        store.append("a", PING)
    newer = (*MIGRATIONS, ("ALTER TABLE turns ADD COLUMN mood TEXT", "UPDATE turns SET mood = 'calm'"))
    for _ in range(2):
        with Store.open(folder, migrations=newer) as store:
            assert store.session("a") == Session("a", "", (PING,))
    connection = sqlite3.connect(folder / FILE_NAME)
    assert connection.execute("SELECT mood FROM turns").fetchall() == [("calm",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
    connection.close()


def test_a_schema_from_the_future_is_left_alone(folder: Path) -> None:
    with Store.open(folder, migrations=(*MIGRATIONS, ("CREATE TABLE later (x)",))) as store:
        store.append("a", PING)
    with pytest.raises(StoreError, match="newer voxcli") as caught:
        Store.open(folder)
    assert "upgrade" in caught.value.hint


def test_a_migration_that_fails_changes_nothing(folder: Path) -> None:
    with Store.open(folder) as store:
        store.append("a", PING)
    with pytest.raises(StoreError):
        Store.open(folder, migrations=(*MIGRATIONS, ("CREATE TABLE later (x)", "NOT SQL")))
    with Store.open(folder) as store:
        assert store.session("a") == Session("a", "", (PING,))


@pytest.mark.parametrize("content", [b"hello, I am a text file. " * 50, b"xy", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_named_and_kept(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        Store.open(folder)
    assert f"{folder / FILE_NAME} is damaged" in caught.value.message
    assert f"mv {folder / FILE_NAME}* " in caught.value.hint
    assert (folder / FILE_NAME).read_bytes() == content


def test_a_database_of_someone_else_is_named_and_kept(folder: Path) -> None:
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / FILE_NAME)
    connection.execute("CREATE TABLE sessions (cookie TEXT)")
    connection.close()
    content = (folder / FILE_NAME).read_bytes()
    for opened in (Store.open, Store.read):
        with pytest.raises(StoreError, match="not a database of voxcli") as caught:
            opened(folder)
        assert "mv " not in caught.value.hint
    assert (folder / FILE_NAME).read_bytes() == content


def test_a_folder_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="can't be kept") as caught:
            Store.open(folder)
        assert "VOXCLI_HOME" in caught.value.hint


def test_a_database_that_is_a_folder_is_an_error(folder: Path) -> None:
    (folder / FILE_NAME).mkdir(parents=True)
    for opened in (Store.open, Store.read):
        with pytest.raises(StoreError, match="it is a folder"):
            opened(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, which even root can't write to, is Linux's")
def test_a_read_only_place_is_an_error_with_a_hint() -> None:
    with pytest.raises(StoreError, match="can't be kept"):
        Store.open(Path("/proc/voxcli"))


@pytest.mark.parametrize(
    ("pragma", "message"), [("query_only=ON", "can't be written"), ("max_page_count=1", "no space left")]
)
def test_a_turn_that_can_not_be_written_is_an_error_and_leaves_no_half(
    folder: Path, store: Store, pragma: str, message: str
) -> None:
    store.append("a", PING)
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    connection.execute(f"PRAGMA {pragma}").fetchall()
    with Store(folder / FILE_NAME, connection) as full, pytest.raises(StoreError, match=message):
        full.append("b", Turn("long", "x" * 100_000))
    assert [summary.name for summary in store.summaries()] == ["a"]


def test_a_turn_that_fails_half_way_holds_no_lock(folder: Path, store: Store) -> None:
    with pytest.raises(UnicodeEncodeError):
        store.append("no name \udcff", PING)
    with Store.open(folder, lock_seconds=0.01) as other:
        assert other.append("a", PING) == 1
    assert store.append("a", PING) == 2


def test_waiting_for_a_lock_ends_in_an_error(folder: Path, store: Store) -> None:
    with Store.open(folder, lock_seconds=0.01) as other:
        holder = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            other.append("a", PING)
        holder.close()
        assert other.append("a", PING) == 1


def test_two_processes_that_add_to_one_session_lose_nothing(folder: Path) -> None:
    writers = [start_writer(folder, "shared", writer, TURNS_EACH) for writer in "ab"]
    reported = [line.split() for writer in writers for line in writer.communicate()[0].splitlines()[1:]]
    assert [writer.returncode for writer in writers] == [0, 0]
    with Store.open(folder) as store:
        session = store.session("shared")
    assert session is not None
    said = [turn.user for turn in session.turns]
    assert len(said) == 2 * TURNS_EACH
    for writer in "ab":
        assert [user for user in said if user[0] == writer] == [f"{writer} {index}" for index in range(TURNS_EACH)]
    for number, *user in reported:  # the number that append returned is where the turn is
        assert said[int(number) - 1] == " ".join(user)


def test_every_reported_turn_survives_kill_9(folder: Path) -> None:
    chance = random.Random(9)
    total = 0
    for store_number in range(KILLS // 5):  # a new file each, so that some are killed while they create it
        reported: dict[int, str] = {}
        for kill in range(5):
            reported |= reported_until_killed(folder / str(store_number), str(kill), chance.randrange(12))
            with Store.open(folder / str(store_number)) as store:
                session = store.session("a")
            said = [turn.user for turn in session.turns] if session else []
            assert {number: said[number - 1] for number in reported} == reported
        total += len(reported)
    assert total > KILLS


def reported_until_killed(folder: Path, writer: str, lines: int) -> dict[int, str]:
    """Start a writer, kill it when it has printed so many lines, return the turns it had reported."""
    with start_writer(folder, "a", writer, 10_000) as process:
        assert process.stdout
        seen = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        seen += process.stdout.readlines()
    complete = [line.split(maxsplit=1) for line in seen if line[:1].isdigit() and line.endswith("\n")]
    return {int(number): user.strip() for number, user in complete}
