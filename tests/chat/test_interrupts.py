"""Interrupts at any moment of a turn: memory has the spoken text, and no thread of the turn runs on."""

import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.turns import (
    QUESTION,
    REPLY,
    LoudSpeaker,
    ScriptedSynthesizer,
    WatchedEngine,
    deltas_of,
    ended,
    nothing_hangs,
    running,
    turn_events,
    written,
)
from voxcli.core.session import Turn
from voxcli.core.speaking import PIECES_AHEAD
from voxcli.core.spoken_text import SpokenText
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import Event

__all__ = ["nothing_hangs"]  # a fixture that every test here uses

words = st.text("abcé.,!", min_size=1, max_size=9) | st.sampled_from(["**bold**", "今日は。", "元気", "🙂", "`x = 1`"])
replies = st.lists(st.tuples(words, st.sampled_from([" ", "\n", "  ", "\t"])), max_size=30).map(
    lambda pairs: "".join(word + blank for word, blank in pairs)
)


def test_generation_waits_for_a_voice_that_is_far_behind() -> None:
    full, overrun, interrupt = threading.Event(), threading.Event(), threading.Event()

    def note(count: int) -> None:
        # A piece is certain when the next one begins: one waits in the cutter, one is spoken, one waits for room.
        if count >= PIECES_AHEAD + 2:
            (full if count == PIECES_AHEAD + 2 else overrun).set()

    engine = WatchedEngine(["Yes. "] * 50, note)
    speaker = LoudSpeaker(on_play=lambda interrupt: interrupt.wait())
    events: list[Event] = []
    turn = threading.Thread(target=lambda: events.extend(turn_events(engine, speaker=speaker, interrupt=interrupt)))
    turn.start()
    assert full.wait(60)
    assert not overrun.wait(0.1)
    interrupt.set()  # while the generation waits for room, and the voice for the speaker
    turn.join()
    assert engine.closed
    assert ended(events).turn == Turn(QUESTION.placeholder, "", interrupted=True)


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
    ("seconds", "spoken_text"),
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
def test_memory_is_the_spoken_text(seconds: float, spoken_text: str) -> None:
    events = list(turn_events(FakeEngine([REPLY]), speaker=FakeSpeaker(limit=seconds)))
    assert ended(events).turn == Turn(QUESTION.placeholder, spoken_text, interrupted=True)


def test_scripts_without_blanks_are_cut_between_characters() -> None:
    events = list(turn_events(FakeEngine([["今日はとても暑いです"]]), speaker=FakeSpeaker(limit=0.35)))
    assert ended(events).turn.reply == "今日は"


@given(replies, st.integers(1, 12), st.floats(0, 20))
@example("One two three.", 3, 0.75)
def test_the_spoken_text_is_the_beginning_of_the_reply_up_to_the_end_of_a_word(
    text: str, size: int, seconds: float
) -> None:
    speaker, spoken = FakeSpeaker(limit=seconds), SpokenText()
    events = list(turn_events(FakeEngine([deltas_of(text, size)]), speaker=speaker, spoken=spoken))
    turn = ended(events).turn
    assert turn.interrupted or turn.reply == text.strip()
    assert text.strip().startswith(turn.reply)
    rest = text.strip()[len(turn.reply) :]
    assert not rest or not turn.reply or rest[0].isspace() or turn.reply[-1] > "\u2e80"
    assert turn.reply.startswith("".join(spoken.newly_played(speaker.position)).strip())


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
def test_the_rest_of_a_clip_that_the_speaker_drops_is_not_spoken_text(position: float) -> None:
    def stop(interrupt: threading.Event) -> None:  # in the midst of a clip: the rest never counts as queued
        speaker.queued = speaker.position = position
        interrupt.set()

    speaker, spoken = LoudSpeaker(on_play=stop), SpokenText()
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker, spoken=spoken))
    assert ended(events).turn.reply == ("It rains" if position else "")
    assert spoken.newly_played(position + 100) == []


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


def test_an_interrupt_while_the_end_is_awaited_leaves_the_spoken_text() -> None:
    def cut_off(interrupt: threading.Event) -> None:
        speaker.position = 2.0
        interrupt.set()

    speaker, spoken = LoudSpeaker(on_wait=cut_off), SpokenText()
    events = list(turn_events(FakeEngine([REPLY]), speaker=speaker, spoken=spoken))
    assert ended(events).turn.reply == "It rains today. Take"
    assert spoken.newly_played(2.0 + 100) == ["It rains today. "]  # whatever the speaker plays next


pieces = st.lists(st.sampled_from(["It rains. ", "Take a coat. ", "🙂\n", "---\n", "** **\n"]), max_size=8)


@given(pieces, st.floats(0, 1))
@example(["It rains. ", "🙂\n", "Goodbye. "], 0.5)
def test_an_interrupt_while_pieces_with_and_without_sound_wait_ends_no_conversation(
    texts: list[str], share: float
) -> None:
    def cut_off(interrupt: threading.Event) -> None:
        speaker.position = share * speaker.queued
        interrupt.set()

    speaker, spoken, text = LoudSpeaker(on_wait=cut_off), SpokenText(), "".join(texts)
    events = list(turn_events(FakeEngine([deltas_of(text, 5)]), speaker=speaker, spoken=spoken))
    turn = ended(events).turn
    assert text.strip().startswith(turn.reply)
    assert turn.reply.startswith("".join(spoken.newly_played(speaker.position)).strip())
    assert turn.reply == text.strip() or speaker.position < speaker.queued


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
