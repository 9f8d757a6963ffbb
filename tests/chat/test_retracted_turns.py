"""Turns that are taken back, because the user goes on while the reply begins to play."""

import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.listener_harness import END, ListenerHarness, PassThroughCanceller, running, silence, voice
from tests.support.live_doubles import (
    FakeListener,
    HeldSpeaker,
    RunningConversation,
    StuckEngine,
    utterance_samples,
)
from tests.support.turns import nothing_hangs
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import (
    BargeIn,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    TurnRetracted,
    TurnStarted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.messages import Interrupt
from voxcli.core.memory import Memory
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]


def speaking(live: RunningConversation, count: int = 1) -> None:
    live.journal.wait(lambda: live.journal.states().count("speaking") >= count)


def test_a_turn_is_taken_back_when_its_utterance_goes_on_while_the_reply_plays() -> None:
    engine, speaker, listener = FakeEngine([RAIN, ["Whole."]]), HeldSpeaker(), FakeListener(may_continue=True)
    with RunningConversation(engine, speaker, listener=listener) as live:
        live.utterance(8000)
        speaking(live)
        speaker.position = 0.35  # "It" was played
        live.speech_resumed()
        assert live.journal.wait_for(TurnRetracted).spoken_text == "It"
        listener.may_continue = False
        speaker.finish.set()
        live.speech_ended(24000)
        live.journal.wait_for(TurnTaken)
    assert utterance_samples(engine) == [8000, 24000]
    assert [session.turns for session, _ in engine.asked] == [(), ()]
    assert live.remembered == [("Whole.", False)]
    assert len(live.journal.of(TurnStarted)) == 2
    assert live.journal.of(BargeIn) == []
    assert (live.ended.turns, live.ended.retracted_turns, len(live.ended.latencies)) == (1, 1, 1)


def test_a_short_reply_is_remembered_once_nothing_can_continue_its_utterance() -> None:
    engine, listener = FakeEngine([["Yes."], ["Whole."]]), FakeListener(may_continue=True)
    with RunningConversation(engine, FakeSpeaker(), listener=listener) as live:
        live.utterance(8000)
        speaking(live)
        live.catch_up()
        assert live.taken == [], "the reply was played, but the user may still go on"
        live.speech_resumed()
        live.speech_ended(24000)
        live.journal.wait_for(TurnStarted, 2)
        listener.may_continue = False
        live.journal.wait_for(TurnTaken)
    assert live.remembered == [("Whole.", False)]
    assert live.journal.of(TurnRetracted) == [TurnRetracted("Yes.")]


def test_the_last_turn_may_be_taken_back_too() -> None:
    engine, listener = FakeEngine([["Yes."], ["Whole."]]), FakeListener(may_continue=True)
    options = ConversationOptions(max_turns=1)
    with RunningConversation(engine, FakeSpeaker(), listener=listener, options=options) as live:
        live.utterance(8000)
        speaking(live)
        live.speech_resumed()
        live.speech_ended(24000)
        live.journal.wait_for(TurnStarted, 2)
        listener.may_continue = False
        live.join()
    assert live.remembered == [("Whole.", False)]


def test_a_turn_is_taken_back_while_the_engine_still_generates() -> None:
    engine, listener = StuckEngine([RAIN, ["Whole."]]), FakeListener(may_continue=True)
    speaker = HeldSpeaker()
    with RunningConversation(engine, speaker, listener=listener) as live:
        live.utterance(8000)
        engine.wait_until_asked()
        engine.go_on.release()
        live.speech_resumed()
        live.journal.wait_for(TurnRetracted)
        live.speech_ended(24000)
        live.catch_up()
        assert len(engine.asked) == 1, "the first reply is not over yet"
        listener.may_continue = False
        speaker.finish.set()
        engine.go_on.release(2)
        live.journal.wait_for(TurnTaken)
    assert engine.most_active == 1
    assert live.remembered == [("Whole.", False)]


def test_i_in_the_window_keeps_the_turn() -> None:
    engine, listener = FakeEngine([RAIN]), FakeListener(may_continue=True)
    with RunningConversation(engine, HeldSpeaker(), listener=listener) as live:
        live.utterance()
        speaking(live)
        live.press("i")
        live.journal.wait_for(TurnTaken)
        assert listener.commits == 1, "speech from now on is another utterance"
    assert live.remembered == [("", True)]


def test_u_in_the_window_removes_the_turn() -> None:
    engine, listener = FakeEngine([["Yes."]]), FakeListener(may_continue=True)
    with RunningConversation(engine, FakeSpeaker(), listener=listener) as live:
        live.utterance()
        speaking(live)
        live.press("u")
        live.journal.wait_for(TurnUndone)
    assert live.remembered == []


def test_asking_again_after_a_turn_was_taken_back_asks_the_question_before_it() -> None:
    engine, listener = FakeEngine([["One."], ["Half."], ["Better."]]), FakeListener()
    with RunningConversation(engine, FakeSpeaker(), listener=listener) as live:
        live.utterance(16000)
        live.journal.wait_for(TurnTaken)
        listener.may_continue = True
        live.utterance(8000)
        speaking(live, 2)
        live.speech_resumed()
        live.journal.wait_for(TurnRetracted)
        listener.may_continue = False
        live.put(Key("r", shift=True))
        live.journal.wait_for(TurnTaken, 2)
    assert utterance_samples(engine) == [16000, 8000, 16000]
    assert live.remembered == [("Better.", False)]


def test_a_speculative_reply_that_is_dropped_is_no_turn_that_is_taken_back() -> None:
    with RunningConversation(FakeEngine([["Half."], ["Whole."]])) as live:
        live.speech_started()
        live.speech_paused()
        live.speech_resumed()
        live.speech_ended()
        live.journal.wait_for(TurnTaken)
    assert live.journal.of(TurnRetracted) == []
    assert live.ended.retracted_turns == 0


# With the listener.


def test_the_listener_ducks_the_reply_at_once_and_joins_the_utterance() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        harness.capture(voice(20), silence(END))
        assert harness.listener.begin_reply()
        harness.speaker.is_playing = True
        harness.capture(silence(5), voice(1))
        assert harness.speaker.ducks == [True]
        harness.capture(voice(9))
        assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechEnded, SpeechResumed]
        assert not harness.listener.begin_reply()
        harness.speaker.is_playing = False
        harness.capture(voice(5), silence(END))
        assert harness.listener.begin_reply()
        assert harness.speaker.ducks == [True, False]
    first, whole = harness.clips()
    assert whole.samples[: len(first.samples)].tolist() == first.samples.tolist()
    assert len(whole.samples) == (20 + END + 5 + 15) * 512 + 11 * 512, "the pause is in it; 11 frames ended it"
    assert np.count_nonzero(whole.samples) == (20 + 15) * 512


def test_half_duplex_takes_nothing_back_while_a_reply_plays() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(20), silence(END))
        assert harness.listener.begin_reply()
        harness.speaker.is_playing = True
        harness.capture(silence(1))
        assert harness.listener.is_final()
        harness.capture(voice(20))
        assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]


def test_an_utterance_of_a_microphone_that_goes_away_is_final_soon() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        harness.capture(voice(20), silence(END))
        assert not harness.listener.is_final()
        for _ in range(11):
            harness.microphone.miss()
        harness.microphone.catch_up()
        assert harness.listener.is_final()


# Any sequence of turns leaves what it would leave without those that were taken back.


@dataclass
class LengthEngine(Engine):
    """Replies with the length of the utterance; records the session of each prompt by that length."""

    name: str = "length"
    model: str = ""
    prompts: dict[int, Session] = field(default_factory=dict)

    def reply(
        self,
        session: Session,
        utterance: Utterance,
        interrupt: threading.Event,
    ) -> Generator[str, None, PassReport]:
        length = len(utterance.clip.samples) if utterance.clip else 0
        self.prompts[length] = session
        yield f"You spoke {length} samples. "
        yield "Is that right?"
        return PassReport(1, 10, 0, 2)

    def close(self) -> None:
        pass


Moment = Literal["paused", "thinking", "speaking", "played"]


@dataclass(frozen=True)
class Spoken:
    """An utterance that goes on at some moments of its response, and what becomes of its turn."""

    resumed: tuple[Moment, ...] = ()
    ending: Literal["finished", "barge-in", "interrupt", "undo", "undo after"] = "finished"


class Script(threading.Thread):
    """Speaks utterances in a conversation that runs on the thread that opened its store."""

    def __init__(self, script: list[Spoken]) -> None:
        super().__init__(daemon=True)
        self.script = script
        self.engine = LengthEngine()
        self.speaker, self.listener = HeldSpeaker(), FakeListener()
        self.error: BaseException | None = None
        self.samples = 0

    def run_with(self, memory: Memory) -> RunningConversation:
        self.live = RunningConversation(self.engine, self.speaker, listener=self.listener, memory=memory)
        self.live.responder.start()
        self.start()
        self.live.conversation.run()
        self.live.responder.finish()
        self.join()
        if self.error:
            raise self.error
        return self.live

    def run(self) -> None:
        try:
            for number, spoken in enumerate(self.script, 1):
                self.samples = 10_000 * number
                self.speak(spoken)
        except BaseException as error:  # noqa: BLE001 - raised by run_with()
            self.error = error
        finally:
            self.live.put(Interrupt(), Interrupt())

    def speak(self, spoken: Spoken) -> None:
        live = self.live
        live.speech_started()
        for moment in spoken.resumed:
            self.samples += 100
            self.listener.may_continue = True
            self.go_until(moment)
            live.speech_resumed()
            live.catch_up()
        self.listener.may_continue = False
        self.samples = 10_000 * (self.samples // 10_000) + 9_000
        self.end(spoken)

    def end(self, spoken: Spoken) -> None:
        """End the utterance and its turn."""
        live, taken = self.live, len(self.live.taken)
        self.speaker.finish.clear()
        if spoken.ending in {"finished", "undo after"}:
            self.speaker.finish.set()
        live.speech_ended(self.samples)
        if spoken.ending not in {"finished", "undo after"}:
            self.wait_until_speaking()
        match spoken.ending:
            case "barge-in":
                live.speech_started()
                live.speech_ended(0)  # Not a word: it only interrupts.
            case "interrupt":
                live.press("i")
            case "undo":
                live.press("u")
        live.journal.wait_for(TurnTaken, taken + 1)
        if spoken.ending == "undo after":
            live.press("u")
        live.catch_up()

    def go_until(self, moment: Moment) -> None:
        """Reach a moment of the response to the utterance so far."""
        self.speaker.finish.clear()
        if moment == "paused":
            self.live.speech_paused(self.samples)
            return
        waited = self.listener.waited
        if moment == "played":
            self.speaker.finish.set()
        self.live.speech_ended(self.samples)
        if moment != "thinking":
            self.wait_until_speaking()
        if moment == "played":
            self.live.until(lambda: self.listener.waited > waited)
        self.live.catch_up()

    def wait_until_speaking(self) -> None:
        clips = self.speaker.clips
        self.live.until(lambda: self.live.journal.states()[-1:] == ["speaking"])
        assert self.speaker.clips >= clips


MOMENTS = st.lists(st.sampled_from(["paused", "thinking", "speaking", "played"]), max_size=3).map(tuple)
ENDINGS = st.sampled_from(["finished", "finished", "barge-in", "interrupt", "undo", "undo after"])
SCRIPTS = st.lists(st.builds(Spoken, MOMENTS, ENDINGS), min_size=1, max_size=5)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(SCRIPTS)
def test_session_store_and_prompts_are_those_without_the_halves(
    tmp_path_factory: pytest.TempPathFactory, script: list[Spoken]
) -> None:
    left = []
    for each in (script, [replace(spoken, resumed=()) for spoken in script]):
        with Store.open(tmp_path_factory.mktemp("store")) as store:
            memory = Memory.resumed(store, "kitchen", "")
            actor = Script(each)
            live = actor.run_with(memory)
            stored = store.stored("kitchen")
            rows = [(row.number, row.turn) for row in stored.turns] if stored else []
            redone = store.redo("kitchen")
            prompts = {length: asked for length, asked in actor.engine.prompts.items() if length % 10_000 == 9_000}
            left.append((memory.session, rows, redone, prompts, live.ended.turns))
    assert left[0] == left[1]
