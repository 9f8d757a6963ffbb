"""What a batch is asked to answer: files, folders, globs, lists, manifests, and what is refused before it runs."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.batches import Listed, make_manifest, make_recording, plan_of
from tests.support.privileges import bound_by_permissions
from voxcli.batch.inputs import Folder, left_out_notice, sources
from voxcli.batch.item import Item
from voxcli.batch.manifest import LINE_BYTES
from voxcli.batch.plan import Plan, survey
from voxcli.errors import AudioInputError, ConfigError, VoxError

ROOT = str(Path(__file__).parent.parent.parent)
posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and permissions are POSIX's")
WORDS = ("may not be read", "levels of symbolic links", "does not exist", "is a pipe", "not a recording")
READ_ALL = """
import json
from pathlib import Path
from tests.support.batches import NothingFinished, plan_of
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.urls import read_recording

closed = [Path("closed"), Path("in/shut"), Path("in/deep/shut.wav")]
for folder in closed:
    folder.chmod(0)
found, jobs = {}, Scheduler(iter(plan_of("in")), NothingFinished(), "")
with Prefetcher(jobs, lambda path: read_recording(path, max_seconds=9)) as ahead:
    while prepared := ahead.take():
        found[prepared.job.item.id] = str(prepared.clip) if isinstance(prepared.clip, Exception) else "read"
print(json.dumps(found))
for folder in closed:
    folder.chmod(0o700)
"""
GOOD = {"id": "a", "audio": "a.wav"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(plan: Plan) -> set[str]:
    return {planned.item.id for planned in plan}


def items(*inputs: Path | str) -> list[Item]:
    return [planned.item for planned in plan_of(*inputs)]


def refused(manifest: bytes, kind: type[VoxError] = ConfigError) -> str:
    """Return why a manifest is refused, with its hint."""
    Path("m.jsonl").write_bytes(manifest)
    with pytest.raises(kind) as caught:
        plan_of("m.jsonl")
    return f"{caught.value.message} | {caught.value.hint}"


# --- Files, folders, globs -----------------------------------------------------------------------


def test_a_file_is_known_by_the_name_it_was_given() -> None:
    make_recording(Path("a/x.wav"))
    assert items("a/x.wav") == [Item("a/x.wav", "a/x.wav", "the command line")]


def test_a_folder_gives_the_recordings_below_it_by_their_path_within() -> None:
    for name in ("x.wav", "deep/er/y.FLAC", "notes.txt", ".hidden.wav", ".trash/z.wav", "no-suffix"):
        make_recording(Path("in", name))
    assert ids(plan_of("in")) == {"x.wav", "deep/er/y.FLAC"}
    assert {item.path for item in items("in")} == {"in/x.wav", "in/deep/er/y.FLAC"}
    assert ids(plan_of("in/")) == ids(plan_of("in"))


def test_a_folder_gives_recordings_of_phones_and_films_too() -> None:
    names = {f"x{suffix}" for suffix in (".3gp", ".amr", ".caf", ".M4B", ".weba", ".w64", ".oga", ".opus", ".mkv")}
    for name in names:
        make_recording(Path("in", name))
    assert ids(plan_of("in")) == names


def test_what_folders_leave_out_is_counted() -> None:
    for name in ("a/x.wav", "a/notes.txt", "a/deep/no-suffix", "a/.hidden.txt", "b/y.wav", "b/z.pdf"):
        make_recording(Path(name))
    with ExitStack() as stack:
        found = sources(["a", "b", "a/x.wav"], None, stack)
        assert survey(found).items == 3
        line = left_out_notice(found)
        assert survey(found).items == 3
        assert left_out_notice(found) == line
    assert line
    assert line.startswith("3 other files are left out")


def test_nothing_left_out_is_not_mentioned() -> None:
    make_recording(Path("a/x.wav"))
    with ExitStack() as stack:
        found = sources(["a"], None, stack)
        survey(found)
        assert left_out_notice(found) is None


def test_a_circle_of_links_is_not_walked() -> None:
    make_recording(Path("in/x.wav"))
    Path("in/round").symlink_to(Path("in").absolute())
    Path("in/link.wav").symlink_to("x.wav")
    assert ids(plan_of("in")) == {"x.wav", "link.wav"}


def test_a_glob_gives_what_a_shell_would() -> None:
    for name in ("a/1.wav", "a/2.wav", "b/3.wav"):
        make_recording(Path(name))
    assert ids(plan_of("*/[12].wav")) == {"a/1.wav", "a/2.wav"}
    assert ids(plan_of("**/*.wav")) == {"a/1.wav", "a/2.wav", "b/3.wav"}


def test_a_file_that_is_named_like_a_glob_is_a_file() -> None:
    make_recording(Path("[x].wav"))
    assert ids(plan_of("[x].wav")) == {"[x].wav"}


def test_a_file_that_is_named_like_standard_input_is_a_file() -> None:
    make_recording(Path("-"))
    assert [item.path for item in items("*")] == ["./-"]
    make_manifest(Path("m.jsonl"), [{"id": "a", "audio": "-"}])
    assert [item.path for item in items("m.jsonl")] == ["./-"]


@pytest.mark.parametrize("given", ["missing.wav", "nothing-*.wav", "", "missing.jsonl"])
def test_an_input_that_names_nothing_is_refused(given: str) -> None:
    with pytest.raises(AudioInputError):
        plan_of(given)


def test_an_empty_folder_is_refused_with_what_is_wanted() -> None:
    Path("in").mkdir()
    with pytest.raises(AudioInputError, match="no recordings") as caught:
        plan_of("in")
    assert ".wav" in caught.value.hint


@posix
def test_an_entry_that_can_not_be_read_becomes_an_item_that_says_why() -> None:
    make_recording(Path("in/good.wav"))
    make_recording(Path("closed/secret.wav"))
    for name in ("in/shut", "in/deep/shut.wav"):
        Path(name).mkdir(parents=True)
        make_recording(Path(name, "below.wav"))
    Path("in/loop.wav").symlink_to("loop.wav")
    Path("in/first.wav").symlink_to("second.wav")
    Path("in/second.wav").symlink_to("first.wav")
    Path("in/secret.wav").symlink_to(Path("closed/secret.wav").absolute())
    Path("in/nowhere.wav").symlink_to("gone/x.wav")
    Path("in/into.wav").symlink_to(Path("closed").absolute())
    os.mkfifo("in/pipe.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("in/socket.wav")
    Path("in/zero.wav").symlink_to("/dev/zero")
    Path("in/notes.txt").symlink_to("notes.txt")
    command = bound_by_permissions([sys.executable, "-c", READ_ALL])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("good.wav") == "read"
    assert {name: next((word for word in WORDS if word in why), why) for name, why in found.items()} == {
        "shut": "may not be read",
        "deep/shut.wav": "may not be read",
        "secret.wav": "may not be read",
        "loop.wav": "levels of symbolic links",
        "first.wav": "levels of symbolic links",
        "second.wav": "levels of symbolic links",
        "nowhere.wav": "does not exist",
        "pipe.wav": "is a pipe",
        "socket.wav": "not a recording",
        "zero.wav": "not a recording",
    }


def test_a_folder_that_is_given_and_can_not_be_read_is_refused() -> None:
    Path("in").mkdir()
    folder = Folder("in")
    Path("in").rmdir()
    with pytest.raises(AudioInputError, match="folder in can't be read"):
        list(folder)


def test_a_folder_is_read_as_it_is_walked() -> None:
    for number in range(50):
        make_recording(Path(f"in/{number}.wav"))
    walk = iter(plan_of("in"))
    first = next(walk).item.id
    for number in range(50):
        Path(f"in/{number}.wav").unlink()
    assert first in {f"{number}.wav" for number in range(50)}  # and that the others are gone now is no error here


# --- Ids -----------------------------------------------------------------------------------------


def test_two_folders_with_a_file_of_one_name_are_refused() -> None:
    make_recording(Path("monday/1.wav"))
    make_recording(Path("tuesday/1.wav"))
    with pytest.raises(ConfigError, match=r"'1\.wav'.*folder monday.*folder tuesday"):
        plan_of("monday", "tuesday")
    assert ids(plan_of(".")) == {"monday/1.wav", "tuesday/1.wav"}


def test_the_same_file_twice_is_refused() -> None:
    make_recording(Path("x.wav"))
    with pytest.raises(ConfigError, match="two items"):
        plan_of("x.wav", "x.wav")


@given(st.lists(st.text(min_size=1, max_size=3), max_size=30))
def test_a_clash_is_found_wherever_it_is(names: list[str]) -> None:
    listed = Listed([Item(name, "x.wav", f"place {number}") for number, name in enumerate(names)])
    if len(set(names)) < len(names):
        with pytest.raises(ConfigError, match="two items"):
            survey([listed])
    elif names:
        assert survey([listed]).items == len(names)


@given(st.lists(st.sampled_from(["", "s", "t", "u"]), min_size=1, max_size=40))
def test_the_last_turn_of_each_session_is_known(names: list[str]) -> None:
    plan = survey([Listed([Item(str(n), "x.wav", session=name or None) for n, name in enumerate(names)])])
    ends = {planned.item.id for planned in plan if planned.ends_session}
    assert ends == {str(n) for n, name in enumerate(names) if name and name not in names[n + 1 :]}


# --- A list on standard input --------------------------------------------------------------------


def listed(text: bytes) -> list[str]:
    with ExitStack() as stack:
        return [planned.item.id for planned in survey(sources(["-"], io.BytesIO(text), stack))]


def test_a_list_has_a_path_a_line() -> None:
    assert listed(b"\xef\xbb\xbfa.wav\r\n\n  \r\nsome where/b.wav\nlast.wav") == [
        "a.wav",
        "some where/b.wav",
        "last.wav",
    ]


def test_a_list_may_have_names_that_are_no_text() -> None:
    assert [os.fsencode(name) for name in listed(b"caf\xe9.wav\n\x1b[2J.wav\n")] == [b"caf\xe9.wav", b"\x1b[2J.wav"]


@pytest.mark.parametrize("text", [b"", b"\n\r\n"])
def test_an_empty_list_is_refused(text: bytes) -> None:
    with pytest.raises(AudioInputError, match="no recordings"):
        listed(text)


def test_names_that_null_bytes_separate_are_refused() -> None:
    with pytest.raises(ConfigError, match="line 1: it contains a null byte"):
        listed(b"a.wav\0b.wav\0")


def test_standard_input_is_given_once_and_open() -> None:
    with pytest.raises(ConfigError, match="once"):
        sources(["-", "-"], None, ExitStack())
    with pytest.raises(ConfigError, match="closed"):
        sources(["-"], None, ExitStack())


# --- Manifests -----------------------------------------------------------------------------------


def test_a_manifest_says_all_of_an_item() -> None:
    Path("in").mkdir()
    full = {"id": "q/1", "audio": "../a.wav", "prompt": " Why? ", "session": "s", "instructions": ""}
    make_manifest(Path("in/m.jsonl"), [full, {**GOOD, "prompt": None, "audio": str(Path("/x/a.wav"))}])
    first, second = items("in/m.jsonl")
    assert first == Item("q/1", "in/../a.wav", "in/m.jsonl, line 1", "Why?", "s", "")
    assert second == Item("a", "/x/a.wav", "in/m.jsonl, line 2", "", None, None)


def test_what_editors_leave_in_a_manifest_does_no_harm() -> None:
    Path("m.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "audio": "a.wav"}\r\n\r\n  {"id": "b", "audio": "b.wav"}')
    assert [item.id for item in items("m.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b'{"id": "b" "audio": "x"}', "not JSON: .* column 12"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "JSON"),
        (b"9" * 10_000, "JSON"),
        (b'{"audio": "x"}', "'id' is missing"),
        (b'{"id": "b"}', "'audio' is missing"),
        (b'{"id": 7, "audio": "x"}', "'id' has to be text"),
        (b'{"id": "", "audio": "x"}', "'id' has to be text"),
        (b'{"id": "b", "audio": null}', "'audio' has to be text"),
        (b'{"id": "b", "audio": "x", "prompt": 1}', "'prompt' has to be text"),
        (b'{"id": "b", "audio": "x", "session": ""}', "'session' is empty"),
        (b'{"id": "b", "audio": "x", "sesion": "s"}', "unknown key 'sesion'"),
        (b'{"id": "b", "audio": "' + b"x" * LINE_BYTES + b'"}', "longer than 1 MB"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(line: bytes, why: str) -> None:
    assert re.match(f"m.jsonl, line 3: {why}", refused(b'{"id": "a", "audio": "x"}\n\n' + line + b"\n"))


def test_an_id_twice_is_refused_by_both_lines() -> None:
    why = refused(b'{"id": "a", "audio": "x"}\n{"id": "b", "audio": "x"}\n{"id": "a", "audio": "y"}\n')
    assert "'a'" in why
    assert "line 1" in why
    assert "line 3" in why


def test_an_empty_manifest_is_refused() -> None:
    assert "no recordings" in refused(b"\n", AudioInputError)


def test_a_manifest_that_changes_after_it_was_checked_is_refused() -> None:
    make_manifest(Path("m.jsonl"), [GOOD])
    plan = plan_of("m.jsonl")
    make_manifest(Path("m.jsonl"), [GOOD, {**GOOD, "id": "b"}])
    with pytest.raises(ConfigError, match="changed"):
        list(plan)


TEXT = st.text(min_size=1, max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), min_size=1, max_size=10, unique_by=lambda row: row[0]))
def test_any_text_comes_through_a_manifest(rows: list[tuple[str, str, str | None]]) -> None:
    values: list[dict[str, Any]] = [{"id": name, "audio": f"/{audio}", "session": talk} for name, audio, talk in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = make_manifest(Path(folder, "m.jsonl"), values)
        assert [(item.id, item.path, item.session) for item in items(path)] == [
            (value["id"], value["audio"], value["session"]) for value in values
        ]


def test_lone_surrogates_stay_in_ids_and_leave_prompts() -> None:
    Path("m.jsonl").write_text(json.dumps({**GOOD, "id": "\ud800", "prompt": "a\udcffb"}), encoding="ascii")
    (item,) = items("m.jsonl")
    assert (item.id, item.prompt) == ("\ud800", "a?b")
