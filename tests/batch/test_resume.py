"""What a continued batch does when items ask something else than their records answer."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support.batches import make_manifest, make_recording, records
from tests.support.openai_server import OpenAIServer
from voxcli.batch.fingerprint import content_of, file_state
from voxcli.batch.results import Results
from voxcli.cli import app

pytest.importorskip("openai")

OUT = Path("out.jsonl")
ITEMS = [
    {"id": "a", "audio": "a.wav", "session": "s"},
    {"id": "b", "audio": "b.wav", "session": "s", "prompt": "And now?"},
    {"id": "c", "audio": "c.wav", "prompt": "Answer in one word."},
    {"id": "d", "audio": "d.wav", "instructions": "Be kind."},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recordings and a manifest; no settings but the test's are read."""
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_ENGINE", "remote")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcdefn"):
        make_recording(Path(f"{name}.wav"), 3200 + number)
    make_manifest(Path("m.jsonl"), ITEMS)
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(models=("tiny", "large")) as server:
        yield server


@pytest.fixture
def batch(server: OpenAIServer) -> Callable[..., Result]:
    """Runs a batch of `m.jsonl` with the test server."""

    def run(*flags: str) -> Result:
        chosen = [] if "--model" in flags else ["--model", "tiny"]
        where = [] if "--engine" in flags else ["--url", server.url, *chosen]
        return CliRunner().invoke(app, ["batch", "m.jsonl", "--out", str(OUT), *where, *flags])

    return run


@pytest.fixture(scope="module")
def answered(server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of a whole run of `ITEMS`."""
    folder = tmp_path_factory.mktemp("answered")
    for number, name in enumerate("abcd"):
        make_recording(folder / f"{name}.wav", 3200 + number)
    make_manifest(folder / "m.jsonl", ITEMS)
    flags = ["--engine", "remote", "--url", server.url, "--model", "tiny", "--config", str(folder / "none.toml")]
    (folder / "none.toml").touch()
    done = CliRunner().invoke(app, ["batch", str(folder / "m.jsonl"), "--out", str(folder / OUT), *flags])
    assert done.exit_code == 0, done.stderr
    return (folder / OUT).read_bytes()


def by_id() -> dict[str, dict[str, Any]]:
    found = records(OUT)
    assert len({record["id"] for record in found}) == len(found), "an id twice"
    turns = [(record["session"], record["turn"]) for record in found if record.get("session") and "turn" in record]
    assert len(set(turns)) == len(turns), "two turns with one number"
    return {record["id"]: record for record in found}


def change(item_id: str, **values: Any) -> Callable[[], None]:
    return lambda: manifest([{**item, **values} if item["id"] == item_id else item for item in ITEMS])


def manifest(items: list[dict[str, Any]]) -> None:
    make_manifest(Path("m.jsonl"), items)


def replace_with_same_size_and_times() -> None:
    before = Path("c.wav").stat()
    content = bytearray(Path("c.wav").read_bytes())
    content[-1] ^= 1
    Path("other.wav").write_bytes(content)
    os.utime("other.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    Path("other.wav").replace("c.wav")
    assert file_state("c.wav")[:2] == [before.st_size, before.st_mtime_ns]


def edit_records(**values: str) -> None:
    OUT.write_text("".join(json.dumps({**record, **values}) + "\n" for record in records(OUT)))


NEW = {"id": "n", "audio": "n.wav", "session": "s"}
MATRIX: list[tuple[str, Callable[[], object], list[str], str, set[str]]] = [
    ("recording", lambda: shutil.copy("e.wav", "c.wav"), [], "recording 1 (first c)", {"c"}),
    ("recording, stealthily", replace_with_same_size_and_times, [], "recording 1 (first c)", {"c"}),
    ("recording of a turn", lambda: shutil.copy("e.wav", "a.wav"), [],
     "recording 1 (first a), earlier turns 1 (first b)", {"a", "b"}),
    ("path to another recording", change("c", audio="e.wav"), [], "recording 1 (first c)", {"c"}),
    ("prompt", change("c", prompt="Answer in two."), [], "prompt 1 (first c)", {"c"}),
    ("no prompt", change("c", prompt=None), [], "prompt 1 (first c)", {"c"}),
    ("instructions of the run", lambda: None, ["--instructions", "Be rude."], "instructions 3 (first a)",
     {"a", "b", "c"}),
    ("instructions of an item", change("d", instructions="Be rude."), [], "instructions 1 (first d)", {"d"}),
    ("instructions of a session", change("a", instructions="Sing."), [], "instructions 2 (first a)", {"a", "b"}),
    ("model", lambda: None, ["--model", "large"], "model 4 (first a)", {"a", "b", "c", "d"}),
    ("engine", lambda: edit_records(engine="voxtral"), [], "engine 4 (first a)", {"a", "b", "c", "d"}),
    ("order", lambda: manifest([ITEMS[1], ITEMS[0], *ITEMS[2:]]), [], "earlier turns 2 (first b)", {"a", "b"}),
    ("a turn before", lambda: manifest([NEW, *ITEMS]), [], "earlier turns 2 (first a)", {"a", "b"}),
    ("a turn between", lambda: manifest([ITEMS[0], NEW, *ITEMS[1:]]), [], "earlier turns 1 (first b)", {"b"}),
    ("a turn instead", lambda: manifest([ITEMS[0], NEW, *ITEMS[2:]]), [], "item is gone 1 (first b)", {"b"}),
    ("a first turn instead", lambda: manifest([NEW, *ITEMS[1:]]), [],
     "earlier turns 1 (first b), item is gone 1 (first a)", {"a", "b"}),
    ("session", change("b", session="t"), [], "session 1 (first b), earlier turns 1 (first b)", {"b"}),
    ("joining a session", change("c", session="s"), [], "session 1 (first c), earlier turns 1 (first c)", {"c"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make_change", "flags", "told", "changed"), [row[1:] for row in MATRIX], ids=[r[0] for r in MATRIX]
)
def test_what_is_asked_differently_is_told_and_kept_or_answered_again(
    batch: Callable[..., Result],
    answered: bytes,
    make_change: Callable[[], object],
    flags: list[str],
    told: str,
    changed: set[str],
) -> None:
    OUT.write_bytes(answered)
    make_change()
    before, first = OUT.read_bytes(), by_id()
    asked = {json.loads(line)["id"] for line in Path("m.jsonl").read_text().splitlines()}
    shown = batch("--resume", *flags)
    assert (shown.exit_code, told in shown.stderr, OUT.read_bytes() == before) == (2, True, True), shown.stderr
    assert "--keep" in shown.stderr
    assert "--redo-changed" in shown.stderr

    kept = batch("--keep", *flags)
    assert (kept.exit_code, OUT.read_bytes().startswith(before)) == (0, True), kept.stderr
    assert set(by_id()) == asked | set(first)
    OUT.write_bytes(before)

    assert batch("--resume", "--redo-changed", *flags).exit_code == 0
    second = by_id()
    assert set(second) == asked | (set(first) - changed)
    assert {name for name in first if second.get(name) == first[name]} == set(first) - changed
    assert batch("--resume", *flags).exit_code == 0  # nothing is told any more


@pytest.mark.parametrize(
    "make_change",
    [
        lambda: os.utime("c.wav", (0, 0)),
        lambda: Path("c.wav").chmod(0o600),
        lambda: [shutil.copy("c.wav", "copy.wav"), Path("copy.wav").replace("c.wav")],
        lambda: [Path("c.wav").rename("moved.wav"), change("c", audio="moved.wav")()],
        lambda: manifest([*ITEMS[:2], {**ITEMS[2], "audio": f"file://{Path('c.wav').absolute()}"}, ITEMS[3]]),
        lambda: Path("c.wav").unlink(),  # nothing can be compared, and the answer stays true
        lambda: manifest([*ITEMS[2:], *ITEMS[:2]]),  # the order of items without a common session means nothing
        lambda: manifest([*ITEMS, {"id": "n", "audio": "n.wav", "session": "s"}]),
        lambda: manifest(ITEMS[2:3]),
    ],
)
def test_what_is_asked_as_before_is_not_told(
    batch: Callable[..., Result], answered: bytes, make_change: Callable[[], object]
) -> None:
    OUT.write_bytes(answered)
    before = OUT.read_bytes()
    make_change()
    done = batch("--resume")
    assert (done.exit_code, "asked" in done.stderr, OUT.read_bytes().startswith(before)) == (0, False, True), (
        done.stderr
    )
    by_id()


def test_a_record_whose_fingerprint_is_damaged_is_like_one_of_an_older_version(
    batch: Callable[..., Result], answered: bytes
) -> None:
    damaged = [{**json.loads(line), "fingerprint": None, "audio": []} for line in answered.splitlines()]
    OUT.write_text("".join(json.dumps(each) + "\n" for each in damaged))
    done = batch("--resume")
    assert (done.exit_code, "are of an older version" in done.stderr) == (0, True), done.stderr


def test_the_engine_that_was_chosen_by_itself_is_compared_once_it_is_open(batch: Callable[..., Result]) -> None:
    manifest(ITEMS[:3])
    assert batch().exit_code == 0
    manifest(ITEMS)
    edit_records(model="another")
    with OpenAIServer(models=("tiny",)) as only:
        shown = batch("--resume", "--engine", "remote", "--url", only.url)
        assert (shown.exit_code, "model 3 (first a)" in shown.stderr) == (2, True), shown.stderr
        assert batch("--redo-changed", "--engine", "remote", "--url", only.url).exit_code == 0
    assert {record["model"] for record in by_id().values()} == {"tiny"}


def test_a_failed_turn_that_is_answered_later_gets_a_number_of_its_own(batch: Callable[..., Result]) -> None:
    manifest([NEW | {"audio": "late.wav"}, *ITEMS])
    assert batch().exit_code == 1
    assert by_id()["a"]["turn"] == 1
    shutil.copy("n.wav", "late.wav")
    told = batch("--retry-failed")
    assert (told.exit_code, "earlier turns 2 (first a)" in told.stderr) == (2, True), told.stderr
    assert batch("--retry-failed", "--keep").exit_code == 0
    assert {name: by_id()[name]["turn"] for name in "abn"} == {"a": 1, "b": 2, "n": 3}


def test_records_without_a_fingerprint_are_told_in_one_line(batch: Callable[..., Result]) -> None:
    assert batch().exit_code == 0
    old = [{key: value for key, value in record.items() if key != "fingerprint"} for record in records(OUT)]
    OUT.write_text("".join(json.dumps(record) + "\n" for record in old))
    done = batch("--resume")
    assert (done.exit_code, done.stderr.count("4 records are of an older version")) == (0, 1)
    change("c", prompt="What?")()
    assert "prompt 1 (first c)" in batch("--resume").stderr
    manifest([NEW, *ITEMS])
    assert "earlier turns 2 (first a)" in batch("--resume").stderr


def test_flags_that_exclude_each_other_are_refused(batch: Callable[..., Result]) -> None:
    assert "exclude each other" in batch("--keep", "--redo-changed").stderr


def test_force_replaces_results_and_nothing_else(batch: Callable[..., Result]) -> None:
    assert batch().exit_code == 0
    manifest(ITEMS[:1])
    assert "--force" in batch().stderr
    assert batch("--force").exit_code == 0
    assert set(by_id()) == {"a"}
    OUT.write_text("Dear diary\n")
    assert batch("--force").exit_code == 2
    assert OUT.read_text() == "Dear diary\n"


def test_a_record_is_found_by_its_session_in_the_order_of_turns(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    turn = {"reply": "Yes.", "user": "[User audio]", "prompt": None, "interrupted": False}
    with Results(out, count=lambda _: None) as results:
        for number, session in enumerate("stts"):
            results.write({"id": str(number), **turn, "session": session, "turn": 4 - number})
        results.write({"id": "x", "error": {"code": "model", "message": "no"}, "session": "s"})
    with Results(out, resume=True, count=lambda _: None) as results:
        assert [[record["id"] for record in results.records_of(name)] for name in "stu"] == [["3", "0"], ["2", "1"], []]
        assert len(results.turns("s")) == 2


def test_only_a_file_has_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", ".", "\0"):
        assert content_of(str(tmp_path / name)) is None
    assert content_of("https://host/a.wav") is None
    first = content_of("a.wav")
    assert first == content_of(f"file://{Path('a.wav').absolute()}")
