"""What a live conversation looks like: on a terminal, in lines, as JSON."""

import io
import json
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from tests.support.emulator import Emulator
from voxcli.audio.clip import AudioClip
from voxcli.chat.events import (
    ApprovalAnswered,
    ApprovalAsked,
    BargeIn,
    DevicesChanged,
    InputLevel,
    KeysAsked,
    Latency,
    LiveEvent,
    Notice,
    PushToTalk,
    Ready,
    Resumed,
    SentenceSpoken,
    SessionEnded,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    State,
    StateChanged,
    TurnFailed,
    TurnRetracted,
    TurnStarted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.views import open_live_view
from voxcli.chat.views.lines import JsonLiveView, PlainView
from voxcli.chat.views.screen import Screen
from voxcli.chat.views.situation import Situation
from voxcli.chat.views.terminal import TerminalView
from voxcli.chat.views.words import latency_figure, latency_line, note_lines, summary_lines, turn_question
from voxcli.core.protocols import PassReport, Transcript, Utterance
from voxcli.core.session import Turn
from voxcli.core.speaking import Timings
from voxcli.core.tools import ToolCall, ToolCalled, ToolResult, ToolReturned, ToolsStopped
from voxcli.core.turn import ReplyDelta, SpeechFailed, TurnEnded
from voxcli.core.understanding import Understood
from voxcli.errors import AudioDeviceError, SpeechError, VoxError
from voxcli.output import Output

PLACEHOLDER = "[User audio input - 35200 samples, 2.20s]"
LATENCY = Latency(350.04, 520, 712, "used", 0)
UNKNOWN = Latency(None, None, None, "none", 0)
READY = Ready("embedded", "smol", "system:en", "Microphone", "Headphones", "trip", "cancelled", turns=2, keys=True)
CLIP = AudioClip(np.zeros(35_200, np.float32))
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\x9b1m\r\x00"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


ASKED = TurnStarted(Utterance(CLIP))
UNDONE = TurnUndone(Turn("[User audio input - 35200 samples, 2.20s]", "A kettle.", prompt="Look at \x1bthis!"), 3)


def taken(
    reply: str,
    *,
    interrupted: bool = False,
    transcript: str | None = None,
    latency: Latency = LATENCY,
    prompt: str = "",
) -> TurnTaken:
    turn = Turn(PLACEHOLDER, reply, interrupted, prompt)
    ended = TurnEnded(turn, PassReport(1, 379, 300, 21, transcript), Timings(0.1, 0.2, 0.9))
    return TurnTaken(ended, 1, latency, CLIP)


def typed(line: str, reply: str) -> TurnTaken:
    return TurnTaken(TurnEnded(Turn(line, reply), PassReport(1, 9, 0, 2), Timings(0.1, 0.2, 0.9)), 1, LATENCY)


STATES: list[State] = ["starting", "listening", "hearing", "thinking", "asking", "speaking", "muted", "asleep"]
CALL = ToolCall("c1", "weather", json.dumps({"city": "Rome", "note": HOSTILE}))
LONG_CALL = ToolCall("c2", HOSTILE * 90, "x" * 3000 + HOSTILE)
EVENTS: list[LiveEvent] = [
    READY,
    *map(StateChanged, STATES),
    InputLevel(-20, 1.5),
    InputLevel(-math.inf, None),
    SpeechStarted(0),
    SpeechPaused(CLIP, 100),
    SpeechResumed(200),
    SpeechEnded(CLIP, 100, 300),
    SpeechTooLong(50),
    TurnStarted(Utterance(CLIP, HOSTILE)),
    Transcript(HOSTILE),
    Understood(HOSTILE),
    KeysAsked(),
    DevicesChanged("the microphone is gone", ("input",)),
    ReplyDelta("One. "),
    ReplyDelta(HOSTILE),
    ReplyDelta("東京は日本の首都です。\n\tTwo, and much more of it, until no terminal is large enough." * 3),
    ToolCalled(CALL),
    ToolCalled(LONG_CALL),
    StateChanged("using tool", tool=HOSTILE),
    ApprovalAsked(CALL),
    ApprovalAsked(LONG_CALL),
    ApprovalAnswered(CALL, True, "key"),
    ToolReturned(ToolResult(CALL, "done", HOSTILE * 200, 0.5, asked=True, allowed=True, decided_by="key")),
    ToolReturned(ToolResult(LONG_CALL, "refused", "no", asked=True, decided_by="timeout")),
    ToolsStopped("max_calls", 9),
    SentenceSpoken("One. "),
    SentenceSpoken("More than was ever written."),
    BargeIn("One."),
    TurnRetracted(HOSTILE),
    Resumed(),
    SpeechFailed(SpeechError("no voice")),
    taken("One.", transcript=HOSTILE),
    Understood(HOSTILE, turn=1),
    TurnFailed(AudioDeviceError("gone", hint="plug it in")),
    Notice(HOSTILE),
    SessionEnded(1, (LATENCY,), 0, 0, 0, "trip", "/data/sessions.db"),
]


# The screen.


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def screen_of(*events: LiveEvent, clock: Clock | None = None, ascii_only: bool = False) -> Screen:
    screen = Screen(clock or Clock(), ascii_only=ascii_only)
    for event in events:
        screen.update(event)
    return screen


def text_of(screen: Screen, width: int = 80, height: int = 24) -> str:
    return "\n".join(row.plain for row in screen.rows(width, height))


def styled(rows: list[Text], style: str) -> str:
    """Return what of the rows has a style."""
    return " ".join(row.plain[span.start : span.end] for row in rows for span in row.spans if span.style == style)


@pytest.mark.parametrize("width", [20, 80])
@pytest.mark.parametrize("state", STATES[1:])
def test_the_state_is_in_words(state: State, width: int) -> None:
    shown = text_of(screen_of(READY, StateChanged(state)), width)
    assert state in shown
    expected = {"muted": "space unmute", "asking": "y yes  n no"}
    assert expected.get(state, "space mute") in shown
    assert shown.endswith("q end")


def test_the_part_that_is_being_prepared_is_shown() -> None:
    screen = screen_of()
    screen.starting(f"fetching{HOSTILE}", 0.5)
    shown = text_of(screen)
    assert "fetching" in shown
    assert shown.count("━") == shown.count("─") > 0
    assert not CONTROLS.search(shown)


@pytest.mark.parametrize("width", [20, 80])
def test_the_bar_grows_with_the_level(width: int) -> None:
    levels = [-math.inf, math.nan, -60.0, -30.0, 0.0, 6.0]
    bars = [text_of(screen_of(StateChanged("listening"), InputLevel(dbfs, None)), width) for dbfs in levels]
    full = [bar.count("━") for bar in bars]
    assert full[:3] == [0, 0, 0]
    assert 0 < full[3] < full[4] == full[5]


def test_there_is_no_level_while_muted() -> None:
    assert "━" not in text_of(screen_of(InputLevel(-3, None), StateChanged("muted")))


def test_sleep_is_shown_and_a_level_is_not() -> None:
    shown = text_of(screen_of(InputLevel(-3, None), StateChanged("asleep")))
    assert "◌ asleep" in shown
    assert "━" not in shown


def test_the_time_since_speech_began_is_shown() -> None:
    assert "2.3 s" in text_of(screen_of(StateChanged("hearing"), InputLevel(-20, 2.34)))


def test_the_time_of_thinking_is_shown() -> None:
    clock = Clock()
    screen = screen_of(StateChanged("thinking"), clock=clock)
    clock.seconds += 1.2
    screen.update(StateChanged("thinking"))  # again: it has not begun anew
    assert "1.2 s" in text_of(screen)


def test_what_is_still_to_be_spoken_is_set_apart() -> None:
    screen = screen_of(READY, StateChanged("thinking"), ReplyDelta("One. Two, "), ReplyDelta("three. And four."))
    assert "One. Two, three. And four." in styled(screen.rows(80, 24), "dim")
    screen.update(StateChanged("speaking"))
    assert "One." in styled(screen.rows(80, 24), "bold")
    assert "Two, three. And four." in styled(screen.rows(80, 24), "dim")
    screen.update(SentenceSpoken("One. "))
    rows = screen.rows(80, 24)
    assert rows[0].plain == "One. Two, three. And four."
    assert "Two, three. " in styled(rows, "bold")
    assert "And four." in styled(rows, "dim")
    assert "One." not in styled(rows, "dim") + styled(rows, "bold")


@pytest.mark.parametrize("kind", [Transcript, Understood])
def test_the_question_comes_first_and_its_words_move_nothing(kind: type[Transcript] | type[Understood]) -> None:
    screen = screen_of(READY, StateChanged("thinking"), TurnStarted(Utterance(CLIP)), ReplyDelta("One."))
    before = screen.rows(80, 24)
    assert [row.plain for row in before[:2]] == ["you  2.2 s", "One."]
    screen.update(kind("What is the capital of France? " * 9))
    after = screen.rows(80, 24)
    assert after[0].plain.startswith("you  What is the capital of France?")
    assert after[0].cell_len <= 80
    assert [row.plain for row in after[1:]] == [row.plain for row in before[1:]]


def understood(text: str) -> TurnTaken:
    """Return the end of a turn in which something was understood."""
    end = taken("Hello Anna.")
    return replace(end, ended=replace(end.ended, report=replace(end.ended.report, understood=text)))


def test_a_finished_turn_stays_with_what_was_understood() -> None:
    assert turn_question(understood("My name is Anna.")) == "My name is Anna."
    notes = Lines().after(ASKED, ReplyDelta("Hello."), Understood("My name is Anna."), understood("My name is Anna."))[
        1
    ]
    assert notes.splitlines()[:2] == ["you: 2.2 s", "you said: My name is Anna."]


def test_what_is_understood_later_is_a_line_of_its_own() -> None:
    notes = Lines().after(ASKED, ReplyDelta("Hello."), taken("Hello."), Understood("I am Anna.", turn=3))[1]
    assert "you said in turn 3: I am Anna." in notes.splitlines()
    screen = screen_of(READY, StateChanged("listening"), Understood("I am Anna.", turn=3))
    assert "Anna" not in text_of(screen)


def test_w_is_offered_during_the_reply_to_spoken_words() -> None:
    situation = Situation()
    for event in (READY, TurnStarted(Utterance(CLIP)), StateChanged("speaking")):
        situation.update(event)
    assert "w" in situation.keys
    situation.update(TurnStarted(Utterance(None, "typed")))
    assert "w" not in situation.keys
    situation.update(TurnStarted(Utterance(CLIP)))
    situation.update(StateChanged("listening"))
    assert "w" not in situation.keys


def test_a_question_waits_for_the_end_of_the_turn_that_it_interrupts() -> None:
    first, second = TurnStarted(Utterance(CLIP)), TurnStarted(Utterance(None, "In French?"))
    screen = screen_of(READY, StateChanged("speaking"), first, ReplyDelta("One."), second)
    screen.update(taken("One", interrupted=True))
    assert screen.rows(80, 24)[0].plain == "you  In French?"
    notes = Lines().after(first, ReplyDelta("One."), second, taken("One", interrupted=True), ReplyDelta("Un."))[1]
    assert [line for line in notes.splitlines() if line.startswith(("you", "("))] == [
        "you: 2.2 s",
        "(interrupted)",
        "you: In French?",
    ]


def test_speech_that_goes_on_takes_the_question_back() -> None:
    asked = READY, StateChanged("speaking"), TurnStarted(Utterance(CLIP)), ReplyDelta("It rains.")
    screen = screen_of(*asked, SpeechResumed(1), TurnRetracted("It"), StateChanged("hearing"))
    assert "2.2 s" not in text_of(screen)
    assert "rains" not in text_of(screen)
    out, notes = Lines().after(*asked, SpeechResumed(1), TurnRetracted("It"), ASKED, taken("It snows."))
    assert out == "It rains.\n"
    assert notes.splitlines()[-4:] == ["you: 2.2 s", "you went on: that reply is dropped", "you: 2.2 s", "0.7 s"]


def test_a_question_that_goes_on_before_its_reply_is_written_once() -> None:
    _, notes = Lines().after(ASKED, SpeechResumed(1), TurnRetracted(""), ASKED, ReplyDelta("It snows."))
    assert notes == "you: 2.2 s\n"


def test_a_pause_in_a_question_leaves_an_interrupted_turn_its_question() -> None:
    notes = Lines().after(ASKED, BargeIn(""), SpeechStarted(0), SpeechResumed(1), taken("", interrupted=True))[1]
    assert notes.startswith("you: 2.2 s\n")


@pytest.mark.parametrize(
    ("mode", "states", "words"),
    [
        ("toggle", ["listening", "hearing"], ["push space to talk", "space send"]),
        ("hold", ["listening", "hearing"], ["hold space to talk", "space release to send"]),
        ("off", ["listening", "muted"], ["space mute", "space unmute"]),
    ],
)
def test_the_space_key_is_explained(mode: PushToTalk, states: list[State], words: list[str]) -> None:
    ready = replace(READY, push_to_talk=mode)
    for state, expected in zip(states, words, strict=True):
        assert expected in text_of(screen_of(ready, StateChanged(state)))


def test_only_keys_that_do_something_now_are_shown() -> None:
    listening, speaking = StateChanged("listening"), StateChanged("speaking")
    assert "i interrupt" not in text_of(screen_of(READY, listening))
    assert "i interrupt" in text_of(screen_of(READY, speaking))
    assert "r repeat" in text_of(screen_of(READY, listening))
    first = replace(READY, turns=0)
    assert "r repeat" not in text_of(screen_of(first, listening))
    assert "r repeat" in text_of(screen_of(first, taken("One."), listening))
    assert "q end" not in text_of(screen_of(replace(READY, keys=False), listening))
    assert "u undo" not in text_of(screen_of(first, listening))
    assert "u undo" in text_of(screen_of(first, taken("One."), listening))
    assert "u undo" not in text_of(screen_of(first, taken("One."), UNDONE, listening))
    assert "R ask again" not in text_of(screen_of(READY, listening), 120)
    assert "R ask again" in text_of(screen_of(READY, ASKED, listening), 120)


RESULT = ToolResult(CALL, "done", "sunny", 0.5, asked=True, allowed=True, decided_by="key")
USED = (READY, StateChanged("thinking"), ASKED, ReplyDelta("Let me see"), ToolCalled(CALL))


def test_a_call_has_a_row_that_its_result_fills_in() -> None:
    screen = screen_of(*USED, StateChanged("using tool", tool="weather"))
    shown = text_of(screen)
    assert "weather (city: Rome, note: \\x1b[2J" in shown
    assert "using tool weather" in shown
    screen.update(ToolReturned(RESULT))
    screen.update(StateChanged("thinking"))
    screen.update(ReplyDelta(". It is sunny."))
    rows = [row.plain for row in screen.rows(120, 24)]
    assert rows[0] == "you  2.2 s"
    assert rows[1].startswith("weather (city: Rome")
    assert rows[1].endswith(": sunny (0.5 s)")
    assert rows[2] == "Let me see. It is sunny.", "the reply goes on after a tool"


def test_a_question_is_shown_with_its_arguments_and_how_much_of_them_is_left_out() -> None:
    asked = ToolCall("c", "mail", json.dumps({"to": "anna@example.org", "text": "secret " * 1000}))
    screen = screen_of(*USED, StateChanged("asking", tool="mail"), ApprovalAsked(asked))
    shown = " ".join(text_of(screen).split())
    assert "May I run mail (to: anna@example.org, text: secret" in shown
    assert "more characters))?" in shown
    assert "y yes n no" in shown
    screen.update(ApprovalAnswered(asked, False, "key"))
    assert "May I run" not in text_of(screen)


def test_tools_stay_with_their_turn_and_are_written_in_lines(tty: "Tty", view: TerminalView) -> None:
    turn = replace(taken("It is sunny.").ended.turn, tools=(RESULT,))
    ended = replace(taken(""), ended=replace(taken("").ended, turn=turn))
    show(view, *USED, ToolReturned(RESULT), ended)
    assert "sunny (0.5 s)" in tty.getvalue()
    out, notes = Lines().after(
        *USED[2:], ApprovalAsked(CALL), ApprovalAnswered(CALL, True, "key"), ToolReturned(RESULT)
    )
    assert out == "Let me see\n"
    lines = notes.splitlines()
    assert [lines[0], lines[-2]] == ["you: 2.2 s", "weather: allowed by key"]
    assert lines[1].startswith("tool: weather (city: Rome")
    assert lines[2].startswith("May I run weather (city: Rome")
    assert lines[-1].endswith(": sunny (0.5 s)")


def test_a_refusal_is_told_once() -> None:
    refused = replace(RESULT, status="refused", text="no", seconds=0.0, asked=True, allowed=False, decided_by="key")
    _out, notes = Lines().after(ApprovalAsked(CALL), ApprovalAnswered(CALL, False, "key"), ToolReturned(refused))
    assert notes.count("refused") == 1
    by_settings = replace(refused, asked=False, decided_by="settings")
    assert "refused by the settings" in Lines().after(ToolReturned(by_settings))[1]


def test_an_undone_turn_is_told_in_a_few_words() -> None:
    assert note_lines(UNDONE) == ["undone: turn 3, 2.2 s Look at this"]
    assert note_lines(TurnUndone(Turn("What is that?", "A kettle."), 1)) == ["undone: turn 1, What is that"]


def test_a_header_says_whether_a_chat_without_a_name_is_kept() -> None:
    for kept, text in ((True, "new, kept under its first words"), (False, "not kept")):
        assert f"session      {text}" in note_lines(replace(READY, session=None, kept=kept))


def test_muted_while_speaking_is_shown() -> None:
    shown = text_of(screen_of(READY, StateChanged("speaking", muted=True)))
    assert "speaking" in shown
    assert "muted" in shown
    assert "space unmute" in shown


def test_a_lost_or_silent_device_changes_the_state() -> None:
    screen = screen_of(READY, StateChanged("listening"), DevicesChanged("it is gone", ("input",)))
    assert "no microphone" in text_of(screen)
    assert "listening" not in text_of(screen)
    screen.update(DevicesChanged("it is back"))
    assert "listening" in text_of(screen)
    screen.update(InputLevel(-96, None, is_zero=True))
    assert "silent microphone" in text_of(screen)
    screen.update(InputLevel(-40, None))
    assert "listening" in text_of(screen)


@pytest.mark.parametrize(
    "mute", [Ready("e", "m", None, "mic", None, None, "off"), SpeechFailed(SpeechError("no voice"))]
)
def test_a_reply_that_is_only_read_is_not_dim(mute: LiveEvent) -> None:
    rows = screen_of(READY, mute, StateChanged("speaking"), ReplyDelta("One.")).rows(80, 24)
    assert rows[0].plain == "One."
    assert "One." not in styled(rows, "dim")


def test_of_a_long_reply_that_is_only_read_the_end_is_seen() -> None:
    words = " ".join(f"word{number}" for number in range(200))
    shown = text_of(screen_of(replace(READY, voice=None), StateChanged("speaking"), ReplyDelta(words)), 20, 20)
    assert "word199" in shown
    assert "word0\n" not in shown
    assert "speaking" in shown


def test_a_long_reply_scrolls_with_the_voice() -> None:
    sentences = [f"This is the sentence of number {number}. " for number in range(50)]
    screen = screen_of(READY, StateChanged("speaking"), *map(ReplyDelta, sentences))
    for number, sentence in enumerate(sentences):
        shown = screen.rows(60, 24)
        assert f"number {number}." in " ".join(styled(shown, "bold").split())
        assert len(shown) < 20
        screen.update(SentenceSpoken(sentence))


@pytest.mark.parametrize(
    "end", [taken("One."), TurnRetracted("One."), TurnFailed(VoxError("no")), StateChanged("listening")]
)
def test_a_reply_makes_way_for_the_next(end: LiveEvent) -> None:
    screen = screen_of(StateChanged("speaking"), ReplyDelta("One."), SentenceSpoken("One."), end, ReplyDelta("Two."))
    rows = screen.rows(80, 24)
    assert rows[0].plain == "Two."
    assert "Two." in styled(rows, "dim") + styled(rows, "bold")


def test_a_terminal_of_ascii_gets_ascii() -> None:
    for state in STATES:
        screen = screen_of(StateChanged(state), InputLevel(-20, 1.0), ReplyDelta("One."), ascii_only=True)
        assert text_of(screen, 20).isascii()


@given(st.lists(st.sampled_from(EVENTS), max_size=12), st.integers(1, 60), st.integers(1, 30))
def test_any_order_of_events_fits_the_terminal(events: list[LiveEvent], width: int, height: int) -> None:
    rows = screen_of(*events).rows(width, height)
    assert len(rows) <= max(height, 1)
    assert all(row.cell_len <= max(width, 2) for row in rows)  # a wide character needs two cells
    assert not any(CONTROLS.search(row.plain) for row in rows)


# On a terminal.


class Tty(io.StringIO):
    """A terminal that keeps all that was written."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the rows of a terminal that received this, without the empty ones at its end."""
        emulator = Emulator(60, 50, "cut", clusters=True)
        emulator.feed(self.getvalue())
        return [*(row.text for row in emulator.rows)]


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Tty()


@pytest.fixture
def view(tty: Tty) -> Iterator[TerminalView]:
    view = TerminalView(tty, Clock(), painter=False, size=lambda: os.terminal_size((60, 20)))
    yield view
    view.close()


def show(view: TerminalView, *events: LiveEvent) -> None:
    for event in events:
        view.show(event)
        view.paint()


def test_the_present_turn_is_shown_below_finished_ones(tty: Tty, view: TerminalView) -> None:
    show(view, StateChanged("speaking"), TurnStarted(Utterance(CLIP)), ReplyDelta("Paris."), SentenceSpoken("Paris."))
    assert tty.screen()[:2] == ["you  2.2 s", "Paris."]
    show(view, taken("Paris.", transcript="What is the capital of France?"), StateChanged("listening"))
    rows = tty.screen()
    assert rows[:2] == ["you  What is the capital of France?", "Paris.  0.7 s"]
    assert sum("Paris." in row for row in rows) == 1
    assert "listening" in rows[3]
    assert not any("speaking" in row for row in rows)


def test_text_that_was_not_spoken_is_not_kept(tty: Tty, view: TerminalView) -> None:
    show(view, StateChanged("speaking"), ReplyDelta("Paris is the capital of France."), BargeIn("Paris is"))
    show(view, taken("Paris is", interrupted=True))
    assert "Paris is  (interrupted)  0.7 s" in tty.screen()
    assert not any("capital" in row for row in tty.screen())
    show(view, taken("", interrupted=True))
    assert "(interrupted before a word was spoken)" in tty.screen()


def test_stages_are_shown_where_they_are_asked_for(tty: Tty) -> None:
    view = TerminalView(tty, Clock(), painter=False, stages=True)
    show(view, taken("Paris."))
    view.close()
    assert "Paris." in tty.screen()
    assert any("voice 0.71 s · first token 0.52 s" in row for row in tty.screen())


def test_all_keys_are_listed_when_asked(tty: Tty, view: TerminalView) -> None:
    show(view, READY, StateChanged("listening"), KeysAsked())
    assert any(row.startswith("r       repeat the last reply") for row in tty.screen())


def test_notices_and_failures_stay(tty: Tty, view: TerminalView) -> None:
    show(view, Notice("the microphone is gone"), TurnFailed(AudioDeviceError("no device", hint="plug it in")))
    show(view, SpeechFailed(SpeechError("no voice")), StateChanged("listening"))
    assert tty.screen()[:3] == ["the microphone is gone", "no answer: no device (plug it in)", "no speech: no voice"]


def test_a_failed_turn_keeps_its_question_and_what_there_was_of_its_reply(tty: Tty, view: TerminalView) -> None:
    asked = Utterance(AudioClip(np.zeros(32_000, np.float32)))
    show(view, TurnStarted(asked), StateChanged("thinking"), ReplyDelta("It is "))
    show(view, TurnFailed(VoxError("the server is gone"), asked), StateChanged("listening"))
    assert tty.screen()[:3] == ["you  2.0 s", "It is", "no answer: the server is gone"]


def test_at_the_end_only_the_summary_is_added(tty: Tty, view: TerminalView) -> None:
    show(
        view,
        READY,
        StateChanged("listening"),
        SessionEnded(1, (LATENCY,), 2, 0, 3, "a trip", "/data/s.db", can_continue=True),
    )
    view.close()
    shown = "\n".join(tty.screen())
    assert "1 turn\n" in shown
    assert "Continue with: voxcli chat --session 'a trip'\n" in shown
    assert "listening" not in shown
    assert tty.getvalue().rindex("\x1b[?25h") > tty.getvalue().rindex("\x1b[?25l")  # the cursor is back


def test_a_screen_that_has_not_changed_is_not_painted(tty: Tty, view: TerminalView) -> None:
    show(view, StateChanged("listening"), InputLevel(-40.0, None))
    view.paint()
    before = tty.getvalue()
    show(view, InputLevel(-40.1, None))
    assert tty.getvalue() == before


def test_a_pause_leaves_the_terminal_alone_and_loses_nothing(tty: Tty, view: TerminalView) -> None:
    show(view, StateChanged("listening"))
    with view.paused(), view.paused():
        before = tty.getvalue()
        assert "".join(tty.screen()) == ""
        show(view, Notice("the microphone is gone"), taken("Paris."))
        assert tty.getvalue() == before
    assert "the microphone is gone" in tty.screen()
    assert "Paris.  0.7 s" in tty.screen()
    view.paint()
    assert any("listening" in row for row in tty.screen())


def test_nothing_is_painted_while_nothing_shown_changes(tty: Tty) -> None:
    view = TerminalView(tty, Clock(), painter=False, size=lambda: os.terminal_size((60, 20)))
    view.show(StateChanged("listening"))
    written = []
    for level in (-40.0, -40.4, -39.7, -30.0, -96.0, -70.0):
        view.show(InputLevel(level, None))
        before = len(tty.getvalue())
        view.paint()
        written.append(len(tty.getvalue()) > before)
    assert written == [True, False, False, True, True, False]


def test_a_level_that_creeps_is_shown_within_a_step() -> None:
    screen = screen_of(StateChanged("listening"), InputLevel(-60, None))
    changes = [screen.update(InputLevel(-60 + step / 10, None)) for step in range(1, 301)]
    assert sum(changes) == 30
    assert text_of(screen) == text_of(screen_of(StateChanged("listening"), InputLevel(-30, None)))


def test_the_painter_paints_by_itself(tty: Tty) -> None:
    view = TerminalView(tty)
    view.show(StateChanged("hearing"))
    while "hearing" not in tty.getvalue():
        pass
    view.close()
    assert "".join(tty.screen()) == ""


def test_a_defect_of_the_painter_is_raised_where_events_are_shown(tty: Tty) -> None:
    def broken() -> float:
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError
        return 0.0

    view = TerminalView(tty, broken)

    def show_on() -> None:
        while True:
            view.show(StateChanged("thinking"))

    with pytest.raises(ZeroDivisionError):
        show_on()
    view.close()


def test_no_color_is_heeded(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> list[str]:
        view = TerminalView(tty, Clock(), painter=False)
        show(view, *EVENTS)
        view.close()
        codes = [code for codes in re.findall(r"\x1b\[([\d;]*)m", tty.getvalue()) for code in codes.split(";")]
        return [code for code in codes if (len(code) == 2 and code[0] in "349") or code in ("38", "48")]

    assert colours()
    tty.seek(0)
    tty.truncate()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


@pytest.mark.parametrize("event", [Notice(HOSTILE), taken(HOSTILE, transcript=HOSTILE), ReplyDelta(HOSTILE)])
def test_nobody_s_text_reaches_the_terminal_as_control(tty: Tty, view: TerminalView, event: LiveEvent) -> None:
    show(view, StateChanged("speaking"), event)
    assert "[2J" in tty.getvalue()
    assert "\x1b[2J" not in tty.getvalue()
    assert not {"\x07", "\x9b", "\u202e", "\x00"} & set(tty.getvalue())


class BrokenTty(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def broken_stream(stack: ExitStack, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    """Return the end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return stack.enter_context(kind(stack.enter_context(open(writing, "wb")), encoding="utf-8"))  # noqa: PTH123


def test_a_stream_that_closes_ends_nothing(tty: Tty) -> None:
    with ExitStack() as stack:
        for view in (
            TerminalView(broken_stream(stack, BrokenTty), painter=False),
            PlainView(Output(broken_stream(stack)), Output(broken_stream(stack))),
            JsonLiveView(Output(broken_stream(stack))),
        ):
            for event in EVENTS:
                view.show(event)
            view.close()


# Without a terminal.


class Lines:
    """A plain view and what it wrote."""

    def __init__(self) -> None:
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.view = PlainView(Output(self.out), Output(self.notes))

    def after(self, *events: LiveEvent) -> tuple[str, str]:
        for event in events:
            self.view.show(event)
        return self.out.getvalue(), self.notes.getvalue()


def test_replies_go_to_stdout_and_the_rest_to_stderr() -> None:
    events = READY, StateChanged("speaking"), ASKED, ReplyDelta("Par"), ReplyDelta("is."), taken("Paris.")
    out, notes = Lines().after(*events, Notice("the loudspeaker is gone"))
    assert out == "Paris.\n"
    assert notes.splitlines()[-4:] == ["speaking", "you: 2.2 s", "0.7 s", "the loudspeaker is gone"]
    assert "keys: space mute, t type, r repeat, u undo, c copy, e edit, ? keys, q end" in notes
    assert "Paris" not in notes


def test_text_is_written_as_soon_as_it_is_known() -> None:
    lines = Lines()
    out, notes = lines.after(READY, StateChanged("thinking"), ASKED, Transcript("Where?"), ReplyDelta("In France."))
    assert out == "In France.\n"
    assert lines.after(ReplyDelta(" In"))[0] == out
    assert notes.endswith("thinking\nyou: Where?\n")
    assert lines.after(ReplyDelta(" Europe."), taken("", transcript="Where?"))[0] == "In France.\nIn Europe.\n"


def test_a_typed_question_is_written() -> None:
    started = TurnStarted(Utterance(None, "Where is it?"))
    out, notes = Lines().after(started, ReplyDelta("Here."), typed("Where is it?", "Here."))
    assert out == "Here.\n"
    assert notes == "you: Where is it?\n"


def test_what_follows_an_interruption_is_not_written() -> None:
    out, notes = Lines().after(ASKED, ReplyDelta("It is. And so"), BargeIn("It"), taken("It", interrupted=True))
    assert out == "It is.\n"
    assert "(interrupted)" in notes
    out, notes = Lines().after(ASKED, BargeIn(""), taken("", interrupted=True))
    assert out == ""
    assert "before a word" in notes


def test_a_repeated_reply_is_written_to_its_end() -> None:
    assert Lines().after(StateChanged("speaking"), ReplyDelta("It is"), StateChanged("listening"))[0] == "It is\n"


def test_lines_have_no_control_characters() -> None:
    out, notes = Lines().after(*EVENTS, taken(HOSTILE))
    assert not CONTROLS.search(out)
    assert not CONTROLS.search(notes)


def test_states_are_written_as_words() -> None:
    states: list[State] = ["listening", "muted", "listening", "hearing", "asleep"]
    events = [*map(StateChanged, states), StateChanged("speaking", muted=True)]
    assert Lines().after(*events)[1] == "listening\nmuted\nlistening\nhearing\nasleep\nspeaking, muted\n"


def test_the_keys_are_listed_in_lines() -> None:
    assert "q: end the conversation\n" in Lines().after(READY, KeysAsked())[1]


def test_progress_is_shown_in_tenths() -> None:
    lines = Lines()
    for share in (None, 0.0, 0.01, 0.04, 0.11, 1.0):
        lines.view.starting("the model", share)
    assert lines.notes.getvalue() == "the model\nthe model: 11%\nthe model: 100%\n"


# As JSON.


def records(*events: LiveEvent, clock: Clock | None = None) -> list[dict[str, Any]]:
    out = io.StringIO()
    clock = clock or Clock()
    view = JsonLiveView(Output(out), Output(io.StringIO()), clock)
    clock.seconds += 1.5
    for event in events:
        view.show(event)
    assert out.getvalue().isascii()
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_programs_are_told_of_an_undone_turn() -> None:
    (record,) = records(UNDONE)
    assert record == {"event": "turn_undone", "t": 1.5, "turn": 3, "user": PLACEHOLDER, "reply": "A kettle."}


def test_programs_get_the_events_with_their_time() -> None:
    found = records(*EVENTS)
    assert {record["t"] for record in found} == {1.5}
    assert {record["event"] for record in found} == {
        *("ready", "speech_started", "speech_ended", "speech_resumed", "speech_too_long", "reply_delta"),
        *("transcript", "sentence_spoken", "barge_in", "turn_retracted", "resumed", "turn_ended", "error", "notice"),
        *("session_ended", "state_changed", "understood"),
        *("tool_called", "approval_asked", "approval_answered", "tool_returned", "tools_stopped"),
    }


def test_programs_get_what_was_understood() -> None:
    assert records(Understood("Anna"), Understood("Anna", 3), understood("Anna"))[:2] == [
        {"event": "understood", "t": 1.5, "text": "Anna", "turn": None},
        {"event": "understood", "t": 1.5, "text": "Anna", "turn": 3},
    ]
    assert records(understood("Anna"))[0]["understood"] == "Anna"


def test_a_turn_has_its_latency() -> None:
    (record,) = records(taken("Paris is", interrupted=True, transcript="Where?"))
    assert record == {
        "event": "turn_ended",
        "t": 1.5,
        "turn": 1,
        "user": PLACEHOLDER,
        "prompt": None,
        "transcript": "Where?",
        "understood": None,
        "not_understood": None,
        "reply": "Paris is",
        "interrupted": True,
        "finish_reason": None,
        "model_passes": 1,
        "additional_generations": 0,
        "tools": [],
        "tools_stopped": None,
        "tokens": {"prompt": 379, "cached": 300, "reply": 21},
        "latency": {
            "endpoint_ms": 350.0,
            "first_token_ms": 520,
            "first_audio_ms": 712,
            "speculative_reply": "used",
            "dropped_speculative_replies": 0,
        },
    }


def test_the_keys_of_events() -> None:
    assert [
        {key: value for key, value in record.items() if key not in ("event", "t")}
        for record in records(
            SpeechEnded(CLIP, 100, 300),
            ReplyDelta("\ud800é"),
            BargeIn("One."),
            TurnFailed(AudioDeviceError("gone", hint="plug it in")),
            TurnRetracted("One."),
            StateChanged("asleep"),
            SessionEnded(2, (LATENCY, UNKNOWN), 4, 6, 5, None, None, retracted_turns=7, additional_generations=8),
        )
    ] == [
        {"seconds": 2.2, "last_voiced_sample": 100, "sample": 300},
        {"text": "\ud800é"},
        {"spoken_text": "One."},
        {"error": {"code": "audio_device", "message": "gone", "hint": "plug it in"}},
        {"spoken_text": "One."},
        {"state": "asleep", "muted": False, "tool": None},
        {
            "turns": 2,
            "latency": {
                "endpoint_ms": {"p50": 350.0, "p95": 350.0},
                "first_token_ms": {"p50": 520, "p95": 520},
                "first_audio_ms": {"p50": 712, "p95": 712},
            },
            "overruns": 4,
            "underruns": 6,
            "dropped_speculative_replies": 5,
            "retracted_turns": 7,
            "additional_generations": 8,
            "session": None,
            "store": None,
        },
    ]


# Words.


def test_the_latency_line_has_only_known_figures() -> None:
    assert latency_line(UNKNOWN) == ""
    dropped = Latency(350, None, None, "dropped", 2)
    assert latency_line(dropped) == "end of speech 0.35 s · 2 speculative replies dropped"
    one = Latency(None, None, None, "used", 1)
    assert latency_line(one) == "speculative reply used · 1 speculative reply dropped"


def test_the_header_says_what_answers_and_where() -> None:
    assert note_lines(READY) == [
        "engine       embedded: smol (not Voxtral: English only, knows little)",
        "microphone   Microphone",
        "loudspeaker  Headphones, voice system:en",
        "session      trip, goes on from 2 turns",
        "echo         cancelled: talk at any time, even during a reply",
    ]


def test_the_header_says_what_wakes_the_chat() -> None:
    assert note_lines(replace(READY, wake_word="hey jarvis"))[-1] == 'wake word    say "hey jarvis" to talk'


def test_typed_turns_have_no_latency_of_the_voice() -> None:
    assert latency_figure(taken("One.")) == "0.7 s"
    assert latency_figure(typed("One?", "One.")) == ""
    assert latency_figure(taken("One.", latency=UNKNOWN)) == ""


def test_the_summary_has_percentiles_by_nearest_rank() -> None:
    latencies = tuple(Latency(10.0 * number, 20.0 * number, None, "none", 0) for number in range(1, 101))
    ended = SessionEnded(100, latencies, 1, 2, 3, "a\x1bb'$(x)", None, can_continue=True, retracted_turns=1)
    assert summary_lines(ended)[:2] == ["100 turns", "first token    p50 1.00 s  p95 1.90 s"]
    lines = summary_lines(ended, stages=True)
    assert lines == [
        "100 turns",
        "end of speech  p50 0.50 s  p95 0.95 s",
        "first token    p50 1.00 s  p95 1.90 s",
        "1 turn taken back · 3 speculative replies dropped · 1 overrun of the microphone · "
        "2 underruns of the loudspeaker",
        """Continue with: voxcli chat --session 'a\\x1bb'"'"'$(x)'""",
    ]


def test_the_view_fits_standard_output(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_live_view(), PlainView)
    assert isinstance(open_live_view(as_json=True), JsonLiveView)
    monkeypatch.setattr("sys.stdout", tty)
    on_terminal = open_live_view()
    assert isinstance(on_terminal, TerminalView)
    on_terminal.close()
    assert isinstance(open_live_view(plain=True), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_live_view(), PlainView)
