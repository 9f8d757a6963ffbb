"""A turn that nobody interrupts: what is said of it and remembered, and that nothing runs on when parts of it fail."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NoReturn

import pytest

from tests.support.turns import (
    PIECES,
    QUESTION,
    REPLY,
    TEXT,
    LoudSpeaker,
    ScriptedSynthesizer,
    WatchedEngine,
    deltas_of,
    ended,
    failures,
    nothing_hangs,
    raising,
    running,
    turn_events,
    written,
)
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import PassReport, Speaker, SpeechOutput, Synthesizer, Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.spoken_text import SpokenText
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import Event, ReplyDelta, SpeechFailed, run_turn
from voxcli.errors import AudioDeviceError, ModelError, SpeechError, VoxError

__all__ = ["nothing_hangs"]  # a fixture that every test here uses


def test_a_reply_that_is_read_is_remembered_without_the_blanks_around_it() -> None:
    events = list(turn_events(FakeEngine([[" It rains", " today.\n"]])))
    assert written(events) == " It rains today.\n"
    assert ended(events).turn == Turn("[User audio input - 16000 samples, 1.00s]", "It rains today.")
    assert ended(events).report == PassReport(1, 10, 0, 2)
    assert ended(events).timings.first_audio_seconds is None


def test_text_beside_the_audio_and_text_alone_are_remembered() -> None:
    assert Utterance(QUESTION.clip, "Be exact.").answered("Yes.") == Turn(
        QUESTION.placeholder, "Yes.", False, "Be exact."
    )
    assert Utterance(None, "Hello").answered("Hi.", interrupted=True) == Turn("Hello", "Hi.", True)
    with pytest.raises(ValueError, match="clip or a prompt"):
        Utterance(None)


def test_the_engine_is_asked_once_with_session_and_utterance() -> None:
    engine = FakeEngine([REPLY])
    list(turn_events(engine))
    assert engine.asked == [(Session(), QUESTION)]


def test_each_piece_is_spoken_and_counts_as_played_once() -> None:
    synthesizer, speaker, spoken = FakeSynthesizer(), FakeSpeaker(), SpokenText()
    events = list(turn_events(FakeEngine([REPLY]), synthesizer, speaker, spoken=spoken))
    assert synthesizer.said == [piece.strip() for piece in PIECES]
    assert spoken.newly_played(speaker.position) == PIECES
    assert spoken.newly_played(speaker.position) == []
    assert ended(events).turn.reply == TEXT
    assert not ended(events).turn.interrupted


def test_a_piece_counts_as_played_while_the_next_one_waits_for_the_speaker() -> None:
    spoken = SpokenText()
    played: list[list[str]] = []

    def look(_: object) -> None:
        if speaker.queued:
            played.append(spoken.newly_played(speaker.queued - 0.01))
            played.append(spoken.newly_played(speaker.queued))

    speaker = LoudSpeaker(on_play=look)
    list(turn_events(FakeEngine([REPLY]), speaker=speaker, spoken=spoken))
    assert played == [[], [PIECES[0]], [], [PIECES[1]]]


def test_a_reply_is_generated_on_the_callers_thread_and_spoken_on_one_of_its_own() -> None:
    threads: dict[str, set[threading.Thread]] = {"engine": set(), "voice": set(), "speaker": set()}
    before = set(threading.enumerate())

    def note(what: str) -> Callable[[object], None]:
        return lambda _: threads[what].add(threading.current_thread())

    engine = FakeEngine([REPLY], before_delta=note("engine"))
    list(turn_events(engine, ScriptedSynthesizer(note("voice")), LoudSpeaker(on_play=note("speaker"))))
    assert threads["engine"] == {threading.current_thread()}
    assert threads["voice"] == threads["speaker"]
    assert len(threads["voice"]) == 1
    assert not threads["voice"] & before


def test_a_reply_that_is_read_takes_no_thread() -> None:
    before = threading.enumerate()
    for _ in turn_events(FakeEngine([REPLY])):
        assert threading.enumerate() == before


def test_a_speaker_that_loses_count_does_not_shorten_a_reply() -> None:
    class Deaf(FakeSpeaker):
        def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
            return clip.seconds

    events = list(turn_events(FakeEngine([REPLY]), speaker=Deaf()))
    assert ended(events).turn.reply == TEXT


def test_a_turn_lasts_until_its_last_word_was_heard() -> None:
    speaker, spoken = LoudSpeaker(), SpokenText()
    list(turn_events(FakeEngine([REPLY]), speaker=speaker, spoken=spoken))
    assert spoken.newly_played(speaker.position) == PIECES
    assert speaker.position == speaker.queued > 0


def test_what_can_not_be_spoken_is_written_and_remembered() -> None:
    synthesizer, speaker, spoken = FakeSynthesizer(), FakeSpeaker(), SpokenText()
    events = list(turn_events(FakeEngine([["---\n", "🙂\n", "Yes."]]), synthesizer, speaker, spoken=spoken))
    assert synthesizer.said == ["Yes."]
    assert spoken.newly_played(speaker.position) == ["---\n", "🙂\n", "Yes."]
    assert ended(events).turn.reply == "---\n🙂\nYes."


def test_an_empty_reply_is_a_turn() -> None:
    events = list(turn_events(FakeEngine([[]]), speaker=FakeSpeaker()))
    assert len(events) == 1
    assert ended(events).turn.reply == ""
    assert ended(events).timings.first_token_seconds is None


def test_first_audio_is_when_the_speaker_got_it_not_when_it_had_room_for_it() -> None:
    now = [100.0]

    def pass_seconds(seconds: float) -> Callable[[object], None]:
        def do(_: object) -> None:
            now[0] += seconds

        return do

    engine = FakeEngine([["Yes", " sir."]], before_delta=pass_seconds(1))
    speech = SpeechOutput(ScriptedSynthesizer(pass_seconds(2)), LoudSpeaker(on_play=pass_seconds(30)))
    events = list(run_turn(engine, Session(), QUESTION, threading.Event(), speech, clock=lambda: now[0]))
    timings = ended(events).timings
    assert (timings.first_token_seconds, timings.first_audio_seconds, timings.total_seconds) == (1, 4, 64)


@pytest.mark.parametrize("error", [ModelError("out of memory"), RuntimeError("a bug"), SystemExit(3)])
@pytest.mark.parametrize("at", range(len(REPLY)))
@pytest.mark.parametrize("speaks", [False, True])
def test_an_error_of_the_engine_reaches_the_caller_and_ends_the_turn(
    error: BaseException, at: int, speaks: bool
) -> None:
    def fail(count: int) -> None:
        if count == at:
            raise error

    speaker = LoudSpeaker(on_wait=lambda interrupt: interrupt.wait()) if speaks else None
    events: list[Event] = []
    with pytest.raises(type(error)) as raised:
        events.extend(turn_events(FakeEngine([REPLY], before_delta=fail), speaker=speaker))
    assert raised.value is error
    assert not running()


def test_what_came_before_an_error_is_told_before_it() -> None:
    def breaking_off() -> Iterator[str]:
        yield "It rains"
        raise ModelError("out of memory")

    turn = turn_events(FakeEngine([breaking_off()]), speaker=FakeSpeaker())
    assert next(turn) == ReplyDelta("It rains")
    with pytest.raises(ModelError):
        next(turn)


@dataclass
class NoEngine(FakeEngine):
    """Fails before there is anything to iterate."""

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> NoReturn:
        raise ModelError("not loaded")


def test_an_engine_that_fails_at_once_leaves_no_thread() -> None:
    with pytest.raises(ModelError, match="not loaded"):
        list(turn_events(NoEngine([]), speaker=FakeSpeaker()))


def test_a_delta_that_is_no_text_closes_the_engine() -> None:
    engine = WatchedEngine(["Yes. ", None, "No."])  # type: ignore[list-item]
    with pytest.raises(TypeError) as raised:
        list(turn_events(engine, speaker=FakeSpeaker()))
    assert engine.closed, raised
    assert not running()


@pytest.mark.parametrize(
    ("synthesizer", "speaker"),
    [
        (FakeSynthesizer(error=SpeechError("gone")), FakeSpeaker()),
        (FakeSynthesizer(), LoudSpeaker(on_play=raising(SpeechError("gone")))),
        (FakeSynthesizer(), LoudSpeaker(on_wait=raising(SpeechError("gone")))),
    ],
    ids=["voice", "play", "wait"],
)
def test_without_a_voice_the_reply_goes_on_as_text(synthesizer: Synthesizer, speaker: Speaker) -> None:
    deltas = deltas_of("Yes. " * 40, 3)  # more pieces than may wait for the voice
    events = list(turn_events(FakeEngine([deltas]), synthesizer, speaker))
    assert [str(error) for error in failures(events)] == ["gone"]
    assert written(events) == "Yes. " * 40
    assert ended(events).turn == Turn(QUESTION.placeholder, ("Yes. " * 40).strip())


def test_a_reply_that_is_interrupted_after_the_voice_failed_was_read() -> None:
    interrupt = threading.Event()
    endless = FakeEngine([chain(REPLY, repeat(" and on"))])
    speaker = LoudSpeaker(on_play=raising(AudioDeviceError("unplugged")))
    events = []
    for event in turn_events(endless, speaker=speaker, interrupt=interrupt):
        events.append(event)
        if isinstance(event, SpeechFailed):
            interrupt.set()
    assert ended(events).turn == Turn(QUESTION.placeholder, written(events).strip(), interrupted=True)


@pytest.mark.parametrize("error", [SpeechError("the voice is closed"), AudioDeviceError("unplugged")])
def test_a_voice_that_fails_because_of_an_interrupt_is_no_failure(error: VoxError) -> None:
    interrupt = threading.Event()

    def fail(sentence: str) -> None:
        if "coat" in sentence:
            interrupt.set()
            raise error

    events = list(turn_events(FakeEngine([REPLY]), ScriptedSynthesizer(fail), FakeSpeaker(), interrupt))
    assert failures(events) == []
    assert ended(events).turn == Turn(QUESTION.placeholder, "It rains today.", interrupted=True)


@pytest.mark.parametrize("where", ["voice", "play", "wait"])
def test_a_bug_in_the_voice_or_the_speaker_is_raised(where: str) -> None:
    bug = raising(ValueError("a bug"))
    calm: Callable[[object], None] = lambda _: None  # noqa: E731
    speaker = LoudSpeaker(bug if where == "play" else calm, bug if where == "wait" else calm)
    engine = WatchedEngine(deltas_of("Yes. " * 40, 3))
    with pytest.raises(ValueError, match="a bug"):
        list(turn_events(engine, ScriptedSynthesizer(bug if where == "voice" else calm), speaker))
    assert engine.closed
    assert not running()
