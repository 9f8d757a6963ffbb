"""One turn, whatever fails or is interrupted: what is said of it, what is remembered, and that nothing runs on."""

import faulthandler
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voxcli.audio import SAMPLE_RATE, AudioClip
from voxcli.errors import AudioDeviceError, ModelError, SpeechError, VoxError
from voxcli.session import Session, Turn
from voxcli.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.turn import (
    PIECES_AHEAD,
    Engine,
    Event,
    PassReport,
    ReplyDelta,
    SentenceSpoken,
    Speaker,
    SpeechFailed,
    SpeechOutput,
    Synthesizer,
    TurnEnded,
    Utterance,
    run_turn,
)

REPLY = ["It rains", " today. Take", " a coat. Good", "bye."]
PIECES = ["It rains today. ", "Take a coat. ", "Goodbye."]
TEXT = "".join(REPLY)
SECONDS_PER_CHAR = 0.1  # FakeSynthesizer's

QUESTION = Utterance(AudioClip(np.full(SAMPLE_RATE, 0.1, np.float32)))

words = st.text("abcé.,!", min_size=1, max_size=9) | st.sampled_from(["**bold**", "今日は。", "元気", "🙂", "`x = 1`"])
replies = st.lists(st.tuples(words, st.sampled_from([" ", "\n", "  ", "\t"])), max_size=30).map(
    lambda pairs: "".join(word + blank for word, blank in pairs)
)


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """End the run with every thread's stack where a turn waits for ever, and let no thread of a turn live on."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert not running()


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in {"generation", "speech"}]


def turn_events(
    engine: Engine,
    synthesizer: Synthesizer | None = None,
    speaker: Speaker | None = None,
    interrupt: threading.Event | None = None,
) -> Generator[Event, None, None]:
    speech = SpeechOutput(synthesizer or FakeSynthesizer(), speaker) if speaker else None
    return run_turn(engine, Session(), QUESTION, interrupt or threading.Event(), speech)


def ended(events: list[Event]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    assert sum(isinstance(event, TurnEnded) for event in events) == 1
    return events[-1]


def written(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReplyDelta))


def spoken(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, SentenceSpoken)]


def failures(events: list[Event]) -> list[VoxError]:
    return [event.error for event in events if isinstance(event, SpeechFailed)]


def deltas_of(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@dataclass
class WatchedEngine:
    """Yields deltas, does something before each, and remembers that it was closed."""

    deltas: list[str]
    before_delta: Callable[[int], object] = lambda _: None
    name: str = "watched"
    model: str = "watched"
    closed: bool = False

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        count = 0
        try:
            for delta in self.deltas:
                self.before_delta(count)
                if interrupt.is_set():
                    break
                count += 1
                yield delta
        finally:
            self.closed = True
        return PassReport(1, 10, 0, count)

    def close(self) -> None:
        pass


@dataclass
class LoudSpeaker:
    """A speaker that does something as a clip is played, and is heard only as somebody waits for it."""

    on_play: Callable[[threading.Event], object] = lambda _: None
    on_wait: Callable[[threading.Event], object] = lambda _: None
    queued: float = 0.0
    position: float = 0.0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        self.on_play(interrupt)
        if not interrupt.is_set():
            self.queued += clip.seconds
        return self.queued

    def wait(self, position: float, interrupt: threading.Event) -> None:
        self.on_wait(interrupt)
        if not interrupt.is_set():
            self.position = max(self.position, position)

    def close(self) -> None:
        pass


@dataclass
class ScriptedSynthesizer:
    """A voice that does something before it speaks, then gives a clip for each word."""

    on_sentence: Callable[[str], object] = lambda _: None
    said: list[str] = field(default_factory=list)

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        self.said.append(sentence)
        self.on_sentence(sentence)
        for word in sentence.split():
            yield AudioClip(np.full(len(word) * SAMPLE_RATE // 10, 0.1, np.float32))

    def close(self) -> None:
        pass


def raising(error: BaseException) -> Callable[[object], NoReturn]:
    def do(_: object) -> NoReturn:
        raise error

    return do


# A turn that nobody disturbs


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


def test_each_piece_is_spoken_and_told_once_it_was_heard() -> None:
    synthesizer = FakeSynthesizer()
    events = list(turn_events(FakeEngine([REPLY]), synthesizer, FakeSpeaker()))
    assert synthesizer.said == [piece.strip() for piece in PIECES]
    assert spoken(events) == PIECES
    assert ended(events).turn.reply == TEXT
    assert not ended(events).turn.interrupted


def test_a_piece_is_told_while_the_reply_goes_on() -> None:
    told, in_time = threading.Event(), []
    engine = FakeEngine([REPLY], before_delta=lambda count: in_time.append(told.wait(10)) if count == 3 else None)
    for event in turn_events(engine, speaker=FakeSpeaker()):
        if isinstance(event, SentenceSpoken):
            told.set()
    assert in_time == [True]


def test_a_speaker_that_loses_count_does_not_shorten_a_reply() -> None:
    class Deaf(FakeSpeaker):
        def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
            return clip.seconds

    events = list(turn_events(FakeEngine([REPLY]), speaker=Deaf()))
    assert ended(events).turn.reply == TEXT


def test_a_turn_lasts_until_its_last_word_was_heard() -> None:
    speaker = LoudSpeaker()
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker))
    assert spoken(events) == PIECES
    assert speaker.position == speaker.queued > 0


def test_what_can_not_be_spoken_is_written_and_remembered() -> None:
    synthesizer = FakeSynthesizer()
    events = list(turn_events(FakeEngine([["---\n", "🙂\n", "Yes."]]), synthesizer, FakeSpeaker()))
    assert synthesizer.said == ["Yes."]
    assert spoken(events) == ["---\n", "🙂\n", "Yes."]
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


def test_generation_waits_for_a_voice_that_is_far_behind() -> None:
    overrun, interrupt = threading.Event(), threading.Event()
    # A piece is certain when the next one begins: one waits in the cutter, one is spoken, one waits for room.
    engine = WatchedEngine(["Yes. "] * 50, lambda count: overrun.set() if count > PIECES_AHEAD + 3 else None)
    speaker = LoudSpeaker(on_play=lambda interrupt: interrupt.wait())
    with closing(turn_events(engine, speaker=speaker, interrupt=interrupt)) as turn:
        events = [next(turn) for _ in range(PIECES_AHEAD + 3)]
        assert not overrun.wait(0.1)
        interrupt.set()  # while the generation waits for room, and the voice for the speaker
        events += turn
    assert engine.closed
    assert ended(events).turn == Turn(QUESTION.placeholder, "", interrupted=True)


# Interrupts


def test_an_interrupt_before_the_turn_leaves_nothing_to_say() -> None:
    interrupt, synthesizer = threading.Event(), FakeSynthesizer()
    interrupt.set()
    events = list(turn_events(FakeEngine([REPLY]), synthesizer, FakeSpeaker(), interrupt))
    assert (len(events), synthesizer.said) == (1, [])
    assert ended(events).turn == Turn(QUESTION.placeholder, "", interrupted=True)


@pytest.mark.parametrize("at", range(len(REPLY)))
@pytest.mark.parametrize("speaks", [False, True])
def test_an_interrupt_between_deltas_ends_the_reply_there(at: int, speaks: bool) -> None:
    interrupt = threading.Event()
    engine = FakeEngine([REPLY], before_delta=lambda count: interrupt.set() if count == at else None)
    events = list(turn_events(engine, speaker=FakeSpeaker() if speaks else None, interrupt=interrupt))
    turn = ended(events).turn
    assert turn.interrupted
    assert written(events) == "".join(REPLY[:at])
    assert ended(events).report.reply_tokens == at
    assert "".join(REPLY[:at]).startswith(turn.reply)
    assert speaks or turn.reply == "".join(REPLY[:at]).strip()


@pytest.mark.parametrize(
    ("seconds", "heard"),
    [
        (0.05, ""),
        (0.2, ""),  # "It"; the word is over when the blank is
        (0.35, "It"),
        (1.0, "It rains"),
        (1.5, "It rains today."),
        (2.0, "It rains today. Take"),
        (2.75, "It rains today. Take a coat."),
    ],
)
def test_memory_is_what_was_heard(seconds: float, heard: str) -> None:
    events = list(turn_events(FakeEngine([REPLY]), speaker=FakeSpeaker(limit=seconds)))
    assert ended(events).turn == Turn(QUESTION.placeholder, heard, interrupted=True)


def test_scripts_without_blanks_are_cut_between_characters() -> None:
    events = list(turn_events(FakeEngine([["今日はとても暑いです"]]), speaker=FakeSpeaker(limit=0.35)))
    assert ended(events).turn.reply == "今日は"


@given(replies, st.integers(1, 12), st.floats(0, 20))
@example("One two three.", 3, 0.75)
def test_what_was_heard_is_the_beginning_of_the_reply_up_to_the_end_of_a_word(
    text: str, size: int, seconds: float
) -> None:
    events = list(turn_events(FakeEngine([deltas_of(text, size)]), speaker=FakeSpeaker(limit=seconds)))
    turn = ended(events).turn
    assert turn.interrupted or turn.reply == text.strip()
    assert text.strip().startswith(turn.reply)
    rest = text.strip()[len(turn.reply) :]
    assert not rest or not turn.reply or rest[0].isspace() or turn.reply[-1] > "\u2e80"
    assert turn.reply.startswith("".join(spoken(events)).strip())


@given(st.text(max_size=600), st.integers(0, 40), st.booleans())
def test_an_interrupt_at_any_moment_leaves_a_beginning_of_any_reply(text: str, at: int, while_spoken: bool) -> None:
    interrupt, calls = threading.Event(), iter(range(1000))

    def count(_: object) -> None:
        if next(calls) == at:
            interrupt.set()

    engine = FakeEngine([deltas_of(text, 7)], before_delta=(lambda _: None) if while_spoken else count)
    synthesizer = ScriptedSynthesizer(count if while_spoken else lambda _: None)
    events = list(turn_events(engine, synthesizer, FakeSpeaker(), interrupt))
    turn = ended(events).turn
    assert turn.interrupted == interrupt.is_set()
    assert text.strip().startswith(turn.reply)
    assert turn.interrupted or turn.reply == text.strip()


@pytest.mark.parametrize("position", [0.0, 1.0])
def test_a_speaker_that_drops_the_rest_of_a_clip_does_not_make_it_heard(position: float) -> None:
    def stop(interrupt: threading.Event) -> None:  # in the midst of a clip: the rest never counts as queued
        speaker.queued = speaker.position = position
        interrupt.set()

    speaker = LoudSpeaker(on_play=stop)
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker))
    assert ended(events).turn.reply == ("It rains" if position else "")
    assert spoken(events) == []


def test_an_interrupt_while_a_sentence_is_rendered_leaves_it_unsaid() -> None:
    interrupt = threading.Event()
    synthesizer = ScriptedSynthesizer(lambda sentence: interrupt.set() if "coat" in sentence else None)
    events = list(turn_events(FakeEngine([REPLY]), synthesizer, FakeSpeaker(), interrupt))
    assert ended(events).turn.reply == "It rains today."
    assert synthesizer.said == ["It rains today.", "Take a coat."]


def test_an_interrupt_before_the_first_clip_is_before_any_sound() -> None:
    interrupt = threading.Event()
    synthesizer = ScriptedSynthesizer(lambda _: interrupt.set())
    events = list(turn_events(FakeEngine([REPLY]), synthesizer, FakeSpeaker(), interrupt))
    assert ended(events).timings.first_audio_seconds is None
    assert ended(events).turn.reply == ""


def test_an_interrupt_while_the_end_is_awaited_leaves_what_was_heard() -> None:
    def cut_off(interrupt: threading.Event) -> None:
        speaker.position = 2.0
        interrupt.set()

    speaker = LoudSpeaker(on_wait=cut_off)
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker))
    assert ended(events).turn.reply == "It rains today. Take"
    assert spoken(events) == ["It rains today. "]


def test_one_turn_ends_where_the_next_begins_on_the_same_speaker() -> None:
    speaker = LoudSpeaker()
    list(turn_events(FakeEngine([REPLY]), speaker=speaker))
    before = speaker.position

    def cut_off(interrupt: threading.Event) -> None:
        speaker.position = before + 0.35
        interrupt.set()

    speaker.on_wait = cut_off
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker))
    assert ended(events).turn.reply == "It"


# Whoever asked goes away


@pytest.mark.parametrize("after", range(1, 7))
@pytest.mark.parametrize("speaks", [False, True])
def test_closing_the_turn_early_stops_all_of_it(after: int, speaks: bool) -> None:
    interrupt, engine = threading.Event(), WatchedEngine(REPLY * 3)
    speaker = LoudSpeaker(on_wait=lambda interrupt: interrupt.wait()) if speaks else None
    turn = turn_events(engine, speaker=speaker, interrupt=interrupt)
    for _ in range(after):
        next(turn)
    turn.close()
    assert interrupt.is_set()
    assert engine.closed
    assert not running()


def test_a_turn_that_nobody_began_does_nothing() -> None:
    engine, interrupt = FakeEngine([REPLY]), threading.Event()
    turn_events(engine, interrupt=interrupt).close()
    assert engine.asked == []
    assert not interrupt.is_set()


def test_ctrl_c_in_the_midst_of_a_turn_stops_all_of_it() -> None:
    engine = WatchedEngine(REPLY)
    speaker = LoudSpeaker(on_wait=lambda interrupt: interrupt.wait())
    turn = turn_events(engine, speaker=speaker)
    next(turn)
    with pytest.raises(KeyboardInterrupt):
        turn.throw(KeyboardInterrupt())
    assert engine.closed
    assert not running()


# Failures


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
    interrupt, told = threading.Event(), threading.Event()
    engine = FakeEngine([REPLY], before_delta=lambda count: count < 3 or told.wait())
    speaker = LoudSpeaker(on_play=raising(AudioDeviceError("unplugged")))
    events = []
    for event in turn_events(engine, speaker=speaker, interrupt=interrupt):
        events.append(event)
        if isinstance(event, SpeechFailed):
            interrupt.set()
            told.set()
    assert ended(events).turn == Turn(QUESTION.placeholder, "".join(REPLY[:3]).strip(), interrupted=True)


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
