"""The results file: what is written is whole, what is finished stays, what is not ours is left alone."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.batches import records
from voxcli.batch.results import Results
from voxcli.batch.stats import Stats
from voxcli.errors import ConfigError, VoxError

TEXT = st.text(max_size=20)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def done(item_id: str, reply: str = "Yes.") -> dict[str, Any]:
    return {"id": item_id, "reply": reply, "user": "[User audio]", "prompt": None, "interrupted": False}


def failed(item_id: str, code: str = "model") -> dict[str, Any]:
    return {"id": item_id, "error": {"code": code, "message": "no"}}


def write(out: Path, *written: dict[str, Any], **flags: bool) -> list[dict[str, Any]]:
    """Write records and return those that were kept from before."""
    kept: list[dict[str, Any]] = []
    with Results(out, count=kept.append, **flags) as results:
        for record in written:
            results.write(record)
    return kept


def refused(out: Path, **flags: bool) -> ConfigError:
    before = out.read_bytes() if out.is_file() else None
    with pytest.raises(ConfigError) as caught:
        write(out, **flags)
    assert before is None or out.read_bytes() == before
    return caught.value


def test_a_record_is_a_line_that_is_there_at_once(out: Path) -> None:
    with Results(out, count=print) as results:
        for number in range(3):
            results.write(done(str(number)))
            assert [record["id"] for record in records(out)] == [str(n) for n in range(number + 1)]


def test_only_the_owner_reads_it(out: Path) -> None:
    out.touch(0o644)
    write(out, done("a"))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_file_with_results_is_not_touched_without_being_told(out: Path) -> None:
    write(out, done("a"))
    assert "--resume" in refused(out).hint


def test_to_resume_nothing_is_to_begin(out: Path) -> None:
    assert write(out, done("a"), resume=True) == []
    assert records(out) == [done("a")]


def test_what_is_finished_is_kept_and_known(out: Path) -> None:
    write(out, done("a", "Paris."), failed("b"), done("c", "Rome."))
    with Results(out, resume=True, count=print) as results:
        assert len(results) == 3
        assert [name in results for name in "abcd"] == [True, True, True, False]
        assert results.record("c") == done("c", "Rome.")
        assert results.record("b") == failed("b")
        assert results.record("d") is None
        results.write(done("d"))
    assert [record["id"] for record in records(out)] == list("abcd")


def test_failed_items_are_taken_out_to_be_tried_again(out: Path) -> None:
    write(out, failed("a"), done("b", "Oslo."), failed("c"), done("d", "Rome."))
    with Results(out, resume=True, retry_failed=True, count=print) as results:
        assert [name in results for name in "abcd"] == [False, True, False, True]
        assert results.record("d") == done("d", "Rome.")
        results.write(done("a"))
    assert [record["id"] for record in records(out)] == ["b", "d", "a"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), max_size=8, unique_by=lambda row: row[0]), st.data())
def test_a_file_that_was_cut_anywhere_goes_on(rows: list[tuple[str, str, bool]], data: st.DataObject) -> None:
    written = [done(name, reply) if good else failed(name) for name, reply, good in rows]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.jsonl")
        write(out, *written)
        out.write_bytes(out.read_bytes()[: data.draw(st.integers(0, out.stat().st_size))])
        with Results(out, resume=True, count=lambda _: None) as results:
            for record in written:
                if record["id"] not in results:
                    results.write(record)
        assert records(out) == written


def test_zeros_after_a_loss_of_power_are_cut_off(out: Path) -> None:
    write(out, done("a"))
    with out.open("ab") as file:
        file.write(b'{"id": "b", "re' + bytes(4096))
    assert write(out, done("b"), resume=True) == [done("a")]
    assert records(out) == [done("a"), done("b")]


@pytest.mark.parametrize(
    "content",
    [
        b"Dear diary",
        b'{"name": "my settings"}\n',
        b'{"name": "my settings"}',
        b'[{"id": "a"}]\n',
        b'{"id": "a", "audio": "a.wav"}\n',
        b'{"id": 1, "reply": "", "user": ""}\n',
        b'{"id": "a", "error": "bad"}\n',
        b'{"id": "a", "user": "", "reply": "", "prompt": 5}\n',
        b"\n",
        b"\xff\xfe\n",
        b"RIFF" + bytes(100),
        b"[" * 100_000 + b"\n",
    ],
)
@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_file_that_is_not_ours_is_left_as_it_is(out: Path, content: bytes, retry_failed: bool) -> None:
    out.write_bytes(content)
    assert "line 1: not a record" in refused(out, resume=True, retry_failed=retry_failed).message
    write_after = json.dumps(done("a")).encode() + b"\n" + content
    out.write_bytes(write_after)
    assert "line 2" in refused(out, resume=True, retry_failed=retry_failed).message


def test_a_folder_and_a_place_that_is_not_there_are_refused(tmp_path: Path) -> None:
    assert "results.jsonl" in refused(tmp_path).hint
    assert "No such file" in refused(tmp_path / "no" / "where.jsonl").message


def test_a_full_disk_ends_the_run_with_what_to_do() -> None:
    with Results(Path("/dev/full"), count=print) as results, pytest.raises(VoxError, match="No space left") as caught:
        results.write(done("a"))
    assert "--resume" in caught.value.hint


def test_on_a_disk_that_fills_up_whole_records_stay(out: Path) -> None:
    """A limit on the file's size stands in for the disk: a part of the record fits."""
    program = """
import resource, signal, sys
from pathlib import Path
from voxcli.batch.results import Results
from voxcli.errors import VoxError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Results(Path(sys.argv[1]), count=print) as results:
    try:
        for number in range(100):
            results.write({"id": str(number), "reply": "x" * 100, "user": ""})
    except VoxError as error:
        print(number)
"""
    ran = subprocess.run([sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=True)
    count = int(ran.stdout)
    assert 1 < count < 10
    assert [record["id"] for record in records(out)] == [str(number) for number in range(count)]


def test_two_runs_do_not_write_to_one_file(out: Path) -> None:
    with Results(out, count=print) as results:
        results.write(done("a"))
        assert "another run" in refused(out, resume=True).message
        assert "another run" in refused(out, resume=True, retry_failed=True).message
    assert write(out, resume=True) == [done("a")]


def test_the_lock_goes_over_to_the_file_without_failures(out: Path) -> None:
    write(out, failed("a"))
    with Results(out, resume=True, retry_failed=True, count=print):
        assert "another run" in refused(out, resume=True).message


def test_no_other_run_gets_in_while_failures_are_taken_out(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out, done("a"), failed("b"))
    replace, said = Path.replace, []

    def replaced(self: Path, target: Path) -> Path:
        found = replace(self, target)
        said.append(refused(out, resume=True).message)
        return found

    monkeypatch.setattr(Path, "replace", replaced)
    assert write(out, done("b"), resume=True, retry_failed=True) == [done("a")]
    assert ["another run" in each for each in said] == [True]
    assert [record["id"] for record in records(out)] == ["a", "b"]


def test_a_file_is_closed_once(out: Path) -> None:
    results = Results(out, count=print)
    results.close()
    with tempfile.TemporaryFile() as other:  # has the number of the descriptor
        results.close()
        assert other.write(b"still open") == 10
        other.flush()


def test_any_text_is_ascii_on_the_disk(out: Path) -> None:
    names = ["\x1b[2J", "\udcff\ud800", "\u202e", "a\nb", "\u00e9", ""]
    write(out, *(done(name) for name in names))
    assert out.read_bytes().isascii()
    assert [record["id"] for record in records(out)] == names
    with Results(out, resume=True, count=print) as results:
        assert all(name in results for name in names)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(out: Path) -> None:
    out.touch(0o400)
    assert "Permission denied" in refused(out).message


# --- What it has come to -------------------------------------------------------------------------


def test_records_are_counted_whatever_people_made_of_them() -> None:
    stats = Stats()
    full = {"audio": {"seconds": 2.5}, "tokens": {"reply": 7}, "timings": {"first_token_seconds": 0.5}}
    for record in (done("a"), {**done("b"), **full}, {**done("c"), "audio": 3, "tokens": {"reply": "x"}}):
        stats.add(record)
    for record in (failed("d"), failed("e", "audio_input"), failed("f")):
        stats.add(record)
    assert (stats.answered, stats.failed, stats.audio_seconds, stats.reply_tokens) == (3, 3, 2.5, 7)
    assert {code: (f.count, f.first) for code, f in stats.failures.items()} == {
        "model": (2, "d: no"),
        "audio_input": (1, "e: no"),
    }


@pytest.mark.parametrize(("count", "p95"), [(1, 1), (19, 19), (20, 19), (21, 20), (100, 95)])
def test_one_reply_in_twenty_may_come_later_than_p95(count: int, p95: int) -> None:
    stats = Stats()
    for number in range(count, 0, -1):
        stats.add({**done(str(number)), "timings": {"first_token_seconds": float(number)}})
    assert stats.first_token_seconds(0.95) == p95


def test_without_replies_there_is_no_p95() -> None:
    assert Stats().first_token_seconds(0.95) is None


def test_recordings_with_flaws_are_counted_by_flaw() -> None:
    stats = Stats()
    for item_id, audio in {
        "a": {"damaged_seconds": 0.005, "cancelled_seconds": 0.0, "gain_db": 0.0},
        "b": {"damaged_seconds": 1.5, "cancelled_seconds": 0.0, "gain_db": -6.0},
        "c": {"damaged_seconds": 0.1, "cancelled_seconds": 2.0, "gain_db": -0.1},
        "d": {},
    }.items():
        stats.add({"id": item_id, "audio": audio})
    assert {key: (flaw.count, flaw.first) for key, flaw in stats.flaws.items()} == {
        "damaged_seconds": (2, "b"),
        "cancelled_seconds": (1, "c"),
        "gain_db": (1, "b"),
    }
