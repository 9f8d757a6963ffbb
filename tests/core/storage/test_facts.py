"""Facts about the user in their file: nothing is lost, whatever is in it, and whoever writes to it."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.privileges import bound_by_permissions
from voxcli.core.storage.facts import (
    FACT_CHARACTERS,
    FILE_BYTES,
    FILE_NAME,
    MOST_FACTS,
    FactFile,
    checked_fact,
)
from voxcli.core.storage.locking import locked
from voxcli.errors import ConfigError, StoreError

BY_HAND = "# mine\n\nname: Anna\n   likes: tea   \n# more\nlives in: Łódź"


@pytest.fixture
def file(tmp_path: Path) -> FactFile:
    return FactFile(tmp_path / "home")


def write(file: FactFile, content: str | bytes) -> None:
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_facts_are_lines_of_a_private_file(file: FactFile) -> None:
    assert file.read() == ()
    assert file.add(["name: Anna", "likes: tea"]) == ("name: Anna", "likes: tea")
    assert file.add(["Likes:  Tea.", "lives in: 東京 👩‍👧"]) == ("lives in: 東京 👩‍👧",)
    assert file.read() == ("name: Anna", "likes: tea", "lives in: 東京 👩‍👧")
    assert file.path.read_text(encoding="utf-8").splitlines()[1:] == list(file.read())
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_what_was_written_by_hand_stays(file: FactFile) -> None:
    write(file, BY_HAND)
    assert file.read() == ("name: Anna", "likes: tea", "lives in: Łódź")
    file.add(["works as: baker"])
    assert file.path.read_text() == f"{BY_HAND}\nworks as: baker\n"
    assert file.delete([2]) == ("likes: tea",)
    assert file.path.read_text() == f"{BY_HAND}\nworks as: baker\n".replace("   likes: tea   \n", "")


def test_windows_line_ends_and_a_mark_of_order_are_no_part_of_a_fact(file: FactFile) -> None:
    write(file, b"\xef\xbb\xbfname: Anna\r\nlikes: tea\r\n")
    file.add(["new: yes"])
    assert file.read() == ("name: Anna", "likes: tea", "new: yes")


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("  name:\tAnna\n ", "name: Anna"),
        ("name: \x1b[31mA\x07nna\u202e", "name: [31mAnna"),
        ("cafe\u0301: yes", "café: yes"),
        ("a\u2028b: c", "a b: c"),
        ("\ud800x", "x"),
    ],
)
def test_a_fact_is_one_harmless_line(typed: str, stored: str) -> None:
    assert checked_fact(typed) == stored


@pytest.mark.parametrize("typed", ["", " \n", "\x1b", "# comment", "x" * (FACT_CHARACTERS + 1)])
def test_what_is_no_fact_is_refused(file: FactFile, typed: str) -> None:
    with pytest.raises(ConfigError):
        file.add(["name: Anna", typed])
    assert file.read() == ()


def test_the_number_of_facts_is_bounded(file: FactFile) -> None:
    file.add([f"number: {number}" for number in range(MOST_FACTS)])
    with pytest.raises(ConfigError, match="at most"):
        file.add(["one: more"])
    assert len(file.read()) == MOST_FACTS
    file.delete([1])
    assert file.add(["one: more"]) == ("one: more",)


@pytest.mark.parametrize("number", [0, -1, 3, 10**30])
def test_a_number_without_a_fact_deletes_nothing(file: FactFile, number: int) -> None:
    file.add(["a: b", "c: d"])
    with pytest.raises(ConfigError, match="there is no fact"):
        file.delete([1, number])
    assert file.read() == ("a: b", "c: d")


def test_one_fact_is_deleted_by_its_words(file: FactFile) -> None:
    file.add(["likes: green tea", "likes: tea", "name: Anna"])
    assert file.delete_words("LIKES: Tea") == "likes: tea"
    assert file.delete_words("anna") == "name: Anna"
    for words in ("coffee", "", " "):
        with pytest.raises(ConfigError, match="no fact"):
            file.delete_words(words)
    file.add(["likes: black tea"])
    with pytest.raises(ConfigError, match="2 facts"):
        file.delete_words("tea likes")
    assert file.read() == ("likes: green tea", "likes: black tea")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\xfe", "not UTF-8 at byte 6"),
        (b"name: Anna\0\0\0", "zero bytes"),
        (b"a" * (FILE_BYTES + 1), f"more than {FILE_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_changed(file: FactFile, content: bytes, message: str) -> None:
    write(file, content)
    changes: tuple[Callable[[], object], ...] = (file.read, lambda: file.add(["a: b"]), lambda: file.delete([1]))
    for change in changes:
        with pytest.raises(StoreError, match=message):
            change()
    assert file.path.read_bytes() == content


def test_a_folder_or_a_pipe_in_its_place_is_an_error(file: FactFile) -> None:
    file.path.parent.mkdir()
    os.mkfifo(file.path)
    with pytest.raises(StoreError, match="not a regular file"):
        file.read()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(StoreError, match="not a regular file"):
        file.add(["a: b"])


def test_a_read_only_file_is_not_replaced(file: FactFile) -> None:
    file.add(["a: b"])
    file.path.chmod(0o400)
    with pytest.raises(StoreError, match="read-only") as caught:
        file.add(["c: d"])
    assert "chmod" in caught.value.hint
    assert file.read() == ("a: b",)


def test_a_read_only_folder_is_an_error(file: FactFile) -> None:
    file.add(["a: b"])
    file.path.parent.chmod(0o500)
    code = (
        "import sys; from pathlib import Path; from voxcli.core.storage.facts import FactFile\n"
        "from voxcli.errors import StoreError\n"
        "try: FactFile(Path(sys.argv[1])).add(['c: d'])\n"
        "except StoreError as error: print(error.message)"
    )
    command = bound_by_permissions([sys.executable, "-c", code, str(file.path.parent)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        file.path.parent.chmod(0o700)
    assert done.stdout == f"{file.path} can't be written: Permission denied\n"
    assert file.read() == ("a: b",)


def test_a_link_stays_one(file: FactFile, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.txt"
    target.write_text("a: b\n")
    file.path.parent.mkdir()
    file.path.symlink_to(target)
    file.add(["c: d"])
    assert file.path.is_symlink()
    assert target.read_text() == "a: b\nc: d\n"


def test_a_locked_file_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    file = FactFile(tmp_path, lock_seconds=0)
    file.add(["a: b"])
    with locked(tmp_path / f".{FILE_NAME}.lock"), pytest.raises(StoreError, match="another program"):
        file.add(["c: d"])
    assert file.read() == ("a: b",)


def test_nothing_is_lost_between_threads_and_processes(file: FactFile) -> None:
    code = (
        "import sys; from pathlib import Path; from voxcli.core.storage.facts import FactFile\n"
        "file = FactFile(Path(sys.argv[1]))\n"
        "for number in range(10): file.add([f'process {sys.argv[2]}: {number}'])"
    )
    command = [sys.executable, "-c", code, str(file.path.parent)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(2)]

    def add(name: int) -> None:
        for number in range(10):
            FactFile(file.path.parent).add([f"thread {name}: {number}"])

    threads = [threading.Thread(target=add, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(set(file.read())) == 40


class TestEdit:
    def test_the_edited_text_takes_its_place(self, file: FactFile) -> None:
        file.add(["a: b"])
        assert file.edit(lambda copy: write_text(copy, "# mine\nc: d\n"), never)
        assert file.path.read_text() == "# mine\nc: d\n"
        assert not file.edit(lambda _copy: None, never)
        assert sorted(path.name for path in file.path.parent.iterdir()) == [f".{FILE_NAME}.lock", FILE_NAME]

    def test_a_wrong_line_is_named_and_may_be_corrected(self, file: FactFile) -> None:
        file.add(["a: b"])
        texts = iter([f"fine\n{'x' * 300}\n", "fine\n"])
        asked: list[str] = []

        def again(error: ConfigError) -> bool:
            asked.append(error.message)
            return True

        assert file.edit(lambda copy: write_text(copy, next(texts)), again)
        assert file.read() == ("fine",)
        assert asked[0].startswith("line 2: a fact has at most 200")

    def test_who_gives_up_changes_nothing(self, file: FactFile) -> None:
        file.add(["a: b"])
        with pytest.raises(ConfigError):
            file.edit(lambda copy: write_text(copy, "x" * 300), never)
        assert file.read() == ("a: b",)

    def test_what_a_chat_adds_meanwhile_stays(self, file: FactFile) -> None:
        file.add(["a: b"])

        def edit(copy: Path) -> None:
            write_text(copy, "c: d")
            file.add(["from: chat"])

        assert file.edit(edit, never)
        assert file.read() == ("c: d", "from: chat")

    def test_another_change_meanwhile_is_not_overwritten(self, file: FactFile) -> None:
        file.add(["a: b", "c: d"])

        def edit(copy: Path) -> None:
            write_text(copy, "e: f")
            file.delete([1])

        with pytest.raises(ConfigError, match="changed meanwhile") as caught:
            file.edit(edit, never)
        assert file.read() == ("c: d",)
        assert Path(caught.value.hint.rpartition(" ")[2]).read_text() == "e: f"


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def never(_error: ConfigError) -> bool:
    return False
