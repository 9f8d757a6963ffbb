"""The silence that ends a turn follows the user's pauses."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.listening import SILENCE, VOICE, Listening, kinds, patient
from voxcli.audio.clip import SAMPLE_RATE
from voxcli.chat.events import SpeechEnded, SpeechResumed
from voxcli.chat.speech.silence import HIGHEST_MS, LOWEST_MS, START_MS, TurnSilence

PAUSES = st.integers(0, 5 * SAMPLE_RATE)  # samples
TURNS = st.lists(st.lists(PAUSES, max_size=4), max_size=30)  # the pauses inside each turn


def after(turns: list[list[int]], start_ms: float = START_MS) -> TurnSilence:
    silence = TurnSilence(start_ms)
    for pauses in turns:
        for pause in pauses:
            silence.add_pause(pause)
        silence.add_turn(max(pauses, default=0))
    return silence


def samples(ms: float) -> int:
    return round(ms * SAMPLE_RATE / 1000)


@given(TURNS, st.floats(0, 10_000))
def test_it_stays_within_its_bounds(turns: list[list[int]], start_ms: float) -> None:
    assert LOWEST_MS <= after(turns, start_ms).ms <= HIGHEST_MS


@given(TURNS.filter(any), st.data())
def test_longer_pauses_never_lower_it(turns: list[list[int]], data: st.DataObject) -> None:
    longer = [[pause + data.draw(st.integers(0, SAMPLE_RATE)) for pause in pauses] for pauses in turns]
    assert after(longer).ms >= after(turns).ms - 1e-9


@given(TURNS, PAUSES)
def test_one_more_pause_never_lowers_it(turns: list[list[int]], pause: int) -> None:
    silence = after(turns)
    before = silence.ms
    silence.add_pause(pause)
    assert silence.ms >= before


@given(TURNS, st.integers(1, SAMPLE_RATE))
def test_an_end_that_was_taken_back_raises_it(turns: list[list[int]], longer: int) -> None:
    silence = after(turns)
    before = silence.ms
    pause = silence.samples + longer  # The silence had ended the turn.
    silence.add_pause(pause)
    silence.add_turn(pause)
    assert silence.ms > before or before == HIGHEST_MS


@given(st.lists(st.lists(st.integers(0, samples(140)), max_size=4), min_size=40, max_size=60))
def test_a_user_of_short_pauses_gets_nearly_the_lowest(turns: list[list[int]]) -> None:
    assert after(turns, HIGHEST_MS).ms < LOWEST_MS + 15


@given(st.lists(st.integers(samples(400), samples(800)), min_size=20, max_size=40))
def test_it_settles_among_the_longest_pauses(longest: list[int]) -> None:
    assert 450 < after([[pause] for pause in longest]).ms <= 900


def test_a_fixed_one_never_changes() -> None:
    silence = TurnSilence.fixed(600)
    for ms in (0, 300, 2000):
        silence.add_pause(samples(ms))
        silence.add_turn(samples(ms))
    assert silence.ms == 600


def test_its_length_in_samples() -> None:
    assert TurnSilence.fixed(600).samples == 9600


# In an endpointer.


def test_an_utterance_ends_after_the_silence_of_this_user() -> None:
    for ms, frames in ((250, 8), (600, 19)):
        listening = Listening(silence=TurnSilence(ms))
        listening.hear(VOICE, 20)
        assert SpeechEnded not in kinds(listening.hear(SILENCE, frames - 1))
        assert kinds(listening.hear(SILENCE))[-1] is SpeechEnded


def test_a_pause_that_ended_a_turn_too_early_raises_it_at_once() -> None:
    silence = TurnSilence()
    listening = Listening(silence=silence)
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, 11)
    assert listening.end_pointer.begin_reply()
    listening.hear(SILENCE, 9, playing=True)
    assert kinds(listening.hear(VOICE, 10, playing=True)) == [SpeechResumed]
    assert silence.ms > START_MS + 150
    listening.hear(VOICE, 20)
    assert SpeechEnded not in kinds(listening.hear(SILENCE, 15)), "the rest of the utterance is waited for longer"


def test_turns_without_pauses_lower_it() -> None:
    silence = TurnSilence(600)
    listening = Listening(silence=silence)
    for _ in range(3):
        listening.utterance()
        assert listening.end_pointer.commit()
    assert 450 < silence.ms < 550


def test_keys_the_limit_and_a_model_say_nothing_about_it() -> None:
    silence = TurnSilence(600)
    listening = Listening(patient(max_utterance_seconds=3), silence)
    listening.end_pointer.begin()
    listening.hear(VOICE, 10)
    listening.hear(SILENCE, 30)
    listening.hear(VOICE, 10)
    listening.end_pointer.flush()
    listening.hear(VOICE, 100)  # beyond the limit
    listening.end_pointer.reset()
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, 8)
    listening.end_pointer.apply_verdict(complete=False)
    listening.hear(SILENCE, 30)
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, 8)
    listening.end_pointer.apply_verdict(complete=True)
    listening.hear(SILENCE, 40)
    listening.end_pointer.commit()
    assert silence.ms == 600
