"""What a person and a program see of a turn, on a terminal, in a pipe, and where nobody reads."""

import io
import json
import os
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from voxcli.app.views import (
    BatchLines,
    JsonView,
    TextView,
    View,
    batch_bar,
    download_progress,
    latency_line,
    loading_progress,
)
from voxcli.audio.clip import AudioClip
from voxcli.batch.stats import Status
from voxcli.core.memory import Memory
from voxcli.core.protocols import SpeechOutput, Utterance
from voxcli.core.record import Context, record_of
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import Event, ReplyDelta, SpeechFailed, TurnEnded
from voxcli.core.understanding import NotUnderstood
from voxcli.errors import SpeechError, VoxError
from voxcli.output import Output
from voxcli.printable import printable

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egpj.exe\r \x00\x7f\x84 caf\xe9 \U0001f642"
FULL = Path("/dev/full")
ASKED = Utterance(None, "Hello")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def play(view: View, memory: Memory, deltas: list[str], speech: SpeechOutput | None = None) -> list[Event]:
    """Show a whole turn, as the commands do."""
    engine, events = FakeEngine([deltas]), []
    for event in memory.take_turn(engine, ASKED, threading.Event(), speech):
        events.append(event)
        view.show(event)
        if isinstance(event, TurnEnded):
            view.finish(record_of(event, Context(engine, ASKED, None, None, memory.turn_number, 0.0)))
    return events


def seen(deltas: list[str], out: io.StringIO, notes: io.StringIO, speech: SpeechOutput | None = None) -> list[Event]:
    return play(TextView(Output(out), Output(notes)), Memory(Session()), deltas, speech)


def is_safe(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)


@pytest.fixture
def pipe_without_reader() -> Iterator[io.TextIOWrapper]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream


# Text


def test_the_reply_goes_out_as_it_comes_and_the_rest_beside_it() -> None:
    out, notes = io.StringIO(), io.StringIO()
    view = TextView(Output(out), Output(notes))
    view.show(ReplyDelta("It rains"))
    assert out.getvalue() == "It rains"
    assert notes.getvalue() == ""
    seen(["It rains", " today.\n\n\tTake a coat."], out := io.StringIO(), notes)
    assert out.getvalue() == "It rains today.\n\n\tTake a coat.\n"
    assert notes.getvalue().count("\n") == 1
    assert "10 + 2 tokens" in notes.getvalue()


def test_text_of_the_model_can_not_drive_the_terminal() -> None:
    out = Terminal()
    seen(list(HOSTILE), out, Terminal())
    assert is_safe(out.getvalue())
    assert "caf\xe9 \U0001f642" in out.getvalue()
    assert r"\x1b[2J\x1b]0;owned\x07" in out.getvalue()


@given(st.text(st.characters(), max_size=40))
def test_no_text_can_drive_the_terminal(text: str) -> None:
    out = io.StringIO()
    TextView(Output(out), Output(io.StringIO())).show(ReplyDelta(text + "\udcff"))
    assert all(char in "\u200c\u200d" or is_safe(char) for char in out.getvalue())
    assert printable(out.getvalue(), keep="\n\t") == out.getvalue()


@pytest.mark.parametrize("code", [0x00, 0x1B, 0x7F, 0x9B, 0xAD, 0x202E, 0x2028, 0x2029, 0xFEFF, 0xDCFF, 0xE0041])
def test_what_a_terminal_may_act_on_is_escaped(code: int) -> None:
    assert printable(f"a{chr(code)}b\u200dc") == f"a{chr(code).encode('unicode_escape').decode()}b\u200dc"


def test_a_voice_that_failed_is_told_after_the_reply_in_one_safe_line() -> None:
    out = Terminal()
    failing = SpeechOutput(FakeSynthesizer(error=SpeechError(f"no voice {HOSTILE}")), FakeSpeaker())
    view = TextView(Output(out), Output(out))  # one terminal, as people have it
    play(view, Memory(Session()), ["It rains.", " Take", " a coat."], failing)
    reply, failure, _latency = out.getvalue().splitlines()
    assert reply == "It rains. Take a coat."
    assert failure.startswith("\x1b[2mno speech: no voice \\x1b[2J")
    assert is_safe(failure.removeprefix("\x1b[2m").removesuffix("\x1b[22m"))


def test_a_failure_is_told_once_though_the_view_lives_on() -> None:
    notes = io.StringIO()
    view = TextView(Output(io.StringIO()), Output(notes))
    memory = Memory(Session())
    play(view, memory, ["One."], SpeechOutput(FakeSynthesizer(error=SpeechError("gone")), FakeSpeaker()))
    play(view, memory, ["Two."])
    assert notes.getvalue().count("no speech: gone") == 1


@pytest.mark.parametrize(
    ("stream", "variable", "dim"),
    [
        (Terminal, ("NO_COLOR", ""), True),
        (Terminal, ("NO_COLOR", "1"), False),
        (Terminal, ("TERM", "dumb"), False),
        (io.StringIO, ("NO_COLOR", ""), False),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="on Windows nothing is dim")
def test_notes_are_dim_where_that_is_wanted(
    stream: type[io.StringIO], variable: tuple[str, str], dim: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    notes = stream()
    seen(["Yes."], Terminal(), notes)
    assert ("\x1b" in notes.getvalue()) is dim
    assert "tokens" in notes.getvalue()


def test_an_encoding_without_the_letters_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    play(TextView(Output(stream), Output(io.StringIO())), Memory(Session()), ["na\xefve 日本 \U0001f642"])
    assert raw.getvalue().decode("latin-1") == "na\xefve \\u65e5\\u672c \\U0001f642\n"


def test_the_latency_line_names_what_happened() -> None:
    record = {
        "audio": {"seconds": 2.2},
        "interrupted": True,
        "tokens": {"prompt": 379, "reply": 21},
        "timings": {"first_token_seconds": 0.31, "first_audio_seconds": 0.52, "total_seconds": 1.9},
    }
    assert latency_line(record) == (
        "2.2 s of audio · first token 0.31 s · first audio 0.52 s · total 1.90 s · 379 + 21 tokens · interrupted"
    )
    nothing = {"first_token_seconds": None, "first_audio_seconds": None, "total_seconds": 1.9}
    assert latency_line({**record, "audio": None, "interrupted": False, "timings": nothing}) == (
        "total 1.90 s · 379 + 21 tokens"
    )


# JSON


def test_json_is_one_object_on_one_line_and_safe() -> None:
    out = Terminal()
    play(JsonView(Output(out)), Memory(Session()), list(HOSTILE))
    assert json.loads(out.getvalue())["reply"] == HOSTILE
    assert out.getvalue().count("\n") == 1
    assert is_safe(out.getvalue())


def test_json_does_not_mind_the_encoding() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    play(JsonView(Output(stream)), Memory(Session()), ["日本 \U0001f642 \xe9"])
    assert json.loads(raw.getvalue())["reply"] == "日本 \U0001f642 \xe9"


# Where nobody reads


@pytest.mark.parametrize("kind", [TextView, JsonView])
def test_a_reader_who_has_enough_does_not_end_the_turn(
    kind: type[TextView | JsonView], pipe_without_reader: io.TextIOWrapper, tmp_path: Path
) -> None:
    out = Output(pipe_without_reader)
    with Store.open(tmp_path) as store:
        events = play(kind(out), Memory.resumed(store, "kitchen", ""), ["It ", "rains."])
        stored = store.session("kitchen")
    assert isinstance(events[-1], TurnEnded)
    assert stored
    assert stored.turns[0].reply == "It rains."
    assert isinstance(out.failure, BrokenPipeError)
    pipe_without_reader.flush()  # as the interpreter does at its end


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("kind", [TextView, JsonView])
def test_a_full_disk_is_told_when_the_turn_is_remembered(kind: type[TextView | JsonView], tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, FULL.open("w") as full:
        with pytest.raises(VoxError, match="can't write the reply: No space left") as raised:
            play(kind(Output(full)), Memory.resumed(store, "kitchen", ""), ["It ", "rains."])
        stored = store.session("kitchen")
    assert stored
    assert stored.turns[0].reply == "It rains."
    assert raised.value.hint


def test_notes_that_nobody_reads_are_no_failure(pipe_without_reader: io.TextIOWrapper) -> None:
    out = io.StringIO()
    failing = SpeechOutput(FakeSynthesizer(error=SpeechError("gone")), FakeSpeaker())
    play(TextView(Output(out), Output(pipe_without_reader)), Memory(Session()), ["Yes."], failing)
    assert out.getvalue() == "Yes.\n"


def test_views_write_to_the_standard_streams(capsys: pytest.CaptureFixture[str]) -> None:
    play(TextView(), Memory(Session()), ["Yes."])
    play(JsonView(), Memory(Session()), ["No."])
    out, err = capsys.readouterr()
    text, record = out.splitlines()
    assert (text, json.loads(record)["reply"]) == ("Yes.", "No.")
    assert err.count("\n") == 1


def test_a_failure_of_the_voice_is_nothing_that_json_shows() -> None:
    out = io.StringIO()
    JsonView(Output(out)).show(SpeechFailed(SpeechError("gone")))
    assert out.getvalue() == ""


# Downloads


def test_a_download_prints_each_tenth_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with download_progress() as show:
        for done in range(0, 2_000_000_001, 50_000_000):
            show(done, 2_000_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == ["0.00 of 2.00 GB", "0.20 of 2.00 GB"]
    assert len(err.splitlines()) == 11


def test_an_engine_that_has_little_to_do_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in (io.StringIO(), terminal := Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with loading_progress():
            pass
    assert terminal.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_a_download_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with download_progress() as show:
        show(500_000_000, 2_000_000_000)
        show(2_000_000_000, 2_000_000_000)
    assert "2.0/2.0 GB" in terminal.getvalue()


def test_a_warm_up_prints_few_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with loading_progress() as (_, warming):
        for done in range(38):
            warming(done, 37)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"warming up: {done} of 37" for done in (0, 10, 19, 28, 37)]


def test_a_warm_up_draws_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with loading_progress() as (fetching, warming):
        fetching(2_000_000_000, 2_000_000_000)
        warming(3, 37)
        warming(37, 37)
    drawn = terminal.getvalue()
    assert drawn.count("2.0/2.0 GB") >= 1
    assert "37/37" in drawn
    assert "37/37" not in drawn.rsplit("\x1b[2K", 1)[1], "the line is erased in the end"
    assert "GB" not in drawn[drawn.index("warming up") :], "one bar at a time"


@pytest.mark.parametrize(("begun", "printed"), [(True, "The ans\n"), (False, "")])
def test_a_turn_that_fails_leaves_the_next_line_free(begun: bool, printed: str) -> None:
    out = io.StringIO()
    view = TextView(Output(out), Output(io.StringIO()))
    if begun:
        view.show(ReplyDelta("The ans"))
    view.abandon()
    assert out.getvalue() == printed


def test_json_of_a_turn_that_fails_is_nothing() -> None:
    out = io.StringIO()
    JsonView(Output(out)).abandon()
    assert out.getvalue() == ""


# Batch


def bar_of(status: Status, columns: int) -> tuple[str, str]:
    """Return the line of a bar as text, and as it is coloured."""
    console = Console(width=columns, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(batch_bar(status, columns))
    coloured = capture.get().rstrip("\n")
    return Text.from_ansi(coloured).plain.rstrip(), coloured


@pytest.mark.parametrize("columns", [8, 12, 20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "status", [Status(12, 5, 0, 30, 50, 10.0), Status(1_000_000, 999_999, 12_345, 9e6, 90_000_000, 4e5)]
)
def test_the_bar_of_a_batch_is_one_line_that_fits(status: Status, columns: int) -> None:
    line, _ = bar_of(status, columns)
    assert "\n" not in line
    assert cell_len(line) <= columns
    if columns >= 60:
        assert all(text in line for text in (f"{status.done} of {status.items}", " left"))
        assert (f"{status.failed} failed" in line) is bool(status.failed)
    assert "\u2501" in line or columns < 60
    assert ("audio hours" in line) is (columns >= (120 if status.failed else 80))


def test_the_bar_of_a_batch_is_green_until_an_item_fails() -> None:
    green, yellow, red = "\x1b[32m", "\x1b[33m", "\x1b[1;31m"
    for columns in (40, 60):
        _, well = bar_of(Status(12, 5, 0, 30, 50, 10.0), columns)
        _, failed = bar_of(Status(12, 5, 1, 30, 50, 10.0), columns)
        assert (green in well, yellow in well, red in well) == (True, False, False)
        assert (green in failed, yellow in failed, red in failed) == (False, True, True)


def test_without_a_terminal_a_batch_writes_plain_lines() -> None:
    notes = io.StringIO()
    view = BatchLines(Output(notes))
    view.show(Status(40, 1, 0, 3, 5, 1.0))
    view.show(Status(40, 10, 2, 30, 50, 10.0))
    assert (
        notes.getvalue() == "10 of 40 \xb7 2 failed \xb7 0:00:30 left \xb7 3.0 audio hours an hour \xb7 5.0 tokens/s\n"
    )


def test_what_was_understood_comes_after_the_reply() -> None:
    out, notes = io.StringIO(), io.StringIO()
    engine = FakeEngine([["It rains."]] * 2, understands=[[HOSTILE]])
    view, memory = TextView(Output(out), Output(notes)), Memory(Session(), understood="show")
    spoken = Utterance(AudioClip(np.zeros(16_000, np.float32)))
    for _ in range(2):
        for event in memory.take_turn(engine, spoken, threading.Event()):
            view.show(event)
    first, second = notes.getvalue().splitlines()
    assert out.getvalue() == "It rains.\nIt rains.\n"
    assert first.startswith("you said: \\x1b[2J")
    assert first.isprintable()
    assert second == "what you said is not known: this engine can't tell"
    assert NotUnderstood("this engine can't tell") in list(
        memory.take_turn(FakeEngine([["Yes."]]), spoken, threading.Event())
    )
