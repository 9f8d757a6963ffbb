"""Builds and runs a single turn from a file or standard input."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxcli.app.parts import Notice, open_engine, open_memory, open_voice
from voxcli.errors import AudioDeviceError, SpeechError, VoxError

if TYPE_CHECKING:
    from voxcli.app.views import View
    from voxcli.audio.clip import AudioClip
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.turn import Engine, Speaker, SpeechOutput, Utterance


Speak = Literal["always", "if possible", "never"]

MENTIONED_DAMAGE_SECONDS = 0.1  # less is a lost frame, for example where two MP3 files were joined


@dataclass(frozen=True)
class OnceOptions:
    """Options of a single turn that are not settings."""

    source: str  # a recording; "-" is standard input
    prompt: str = ""  # text given with the audio
    session: str | None = None  # name; None keeps the turn in memory only
    new_instructions: bool = False  # a stored session takes its instructions from the settings
    speak: Speak = "never"  # through the default output device
    save_reply: Path | None = None  # WAV file for the spoken reply
    raw_rate: int | None = None  # Hz; standard input is raw 16-bit mono PCM

    @property
    def needs_speech(self) -> bool:
        """Whether the turn fails if the reply can't be spoken."""
        return self.speak == "always" or self.save_reply is not None


@dataclass(frozen=True)
class SingleTurn:
    """A turn whose parts are all open."""

    options: OnceOptions
    memory: "Memory"
    engine: "Engine"
    utterance: "Utterance"
    speech: "SpeechOutput | None"
    load_seconds: float  # time until the engine was ready

    def answer(self, view: "View", interrupt: threading.Event) -> None:
        """Run and show the turn. It ends early once `interrupt` is set.

        Raises:
            VoxError: the engine can't answer, or required speech failed.
        """
        from voxcli.core.record import Context, record_of
        from voxcli.core.turn import SpeechFailed, TurnEnded

        failure: VoxError | None = None
        events = self.memory.take_turn(self.engine, self.utterance, interrupt, self.speech)
        with closing(events), _abandoned_on_error(view):
            for event in events:
                if isinstance(event, SpeechFailed) and self.options.needs_speech:
                    failure = event.error  # raised when the turn is over
                    continue
                view.show(event)
                if isinstance(event, TurnEnded):
                    path, session = _utf8(self.options.source), self.memory.session.name
                    number = self.memory.turn_number
                    context = Context(self.engine, self.utterance, path, session, number, self.load_seconds)
                    view.finish(record_of(event, context))
        if failure:
            raise failure


def open_turn(settings: "Settings", options: OnceOptions, stack: ExitStack, notice: Notice) -> SingleTurn:
    """Read the recording and open all that the turn needs. Raises VoxError."""
    from voxcli.app.views import loading_progress
    from voxcli.audio.clip import read_audio
    from voxcli.core.turn import Utterance

    memory = open_memory(options.session, settings, stack, notice, new_instructions=options.new_instructions)
    speech = _open_speech(settings, options, stack, notice)
    clip = read_audio(options.source, max_seconds=settings.audio.max_seconds, raw_rate=options.raw_rate)
    if clip.damaged_seconds >= MENTIONED_DAMAGE_SECONDS:
        notice(f"{clip.damaged_seconds:.1f} s of the recording could not be decoded; the reply is based on the rest")
    detection = threading.Thread(target=_note_if_without_speech, args=(clip, notice), name="vad", daemon=True)
    detection.start()  # while the engine loads
    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        engine = open_engine(settings, stack, notice, fetching, warming)
    load_seconds = time.perf_counter() - started
    detection.join()
    return SingleTurn(options, memory, engine, Utterance(clip, _utf8(options.prompt).strip()), speech, load_seconds)


def _utf8(text: str) -> str:
    """Return text from the command line with invalid UTF-8 replaced, which models and the store can't take."""
    return text.encode(errors="replace").decode()


def _note_if_without_speech(clip: "AudioClip", notice: Notice) -> None:
    from voxcli.audio.vad import has_speech

    if not has_speech(clip):
        notice("no speech was found in the recording; it is sent to the model as it is")


def _open_speech(settings: "Settings", options: OnceOptions, stack: ExitStack, notice: Notice) -> "SpeechOutput | None":
    """Open the voice and the speaker; None if the reply is not spoken."""
    speaker = _open_loudspeaker(options, stack)
    if options.save_reply:
        from voxcli.tts.wav_speaker import WavSpeaker

        failsafe = _failsafe(speaker, options, stack, notice)
        speaker = stack.enter_context(WavSpeaker(options.save_reply, then=failsafe))
    if speaker is None:
        return None
    from voxcli.core.turn import SpeechOutput

    try:
        return SpeechOutput(stack.enter_context(open_voice(settings)), speaker)
    except SpeechError as error:
        if options.needs_speech:
            raise
        notice(f"no speech: {error}")
        return None


def _open_loudspeaker(options: OnceOptions, stack: ExitStack) -> "Speaker | None":
    if options.speak == "never":
        return None
    from voxcli.chat.devices.speaker import open_speaker

    try:
        return stack.enter_context(open_speaker())
    except AudioDeviceError:
        if options.speak == "always":
            raise
        return None


def _failsafe(speaker: "Speaker | None", options: OnceOptions, stack: ExitStack, notice: Notice) -> "Speaker | None":
    """Return a loudspeaker whose failure is reported only after the reply has been saved."""
    if speaker is None:
        return None
    from voxcli.chat.devices.failsafe import FailsafeSpeaker

    failsafe = FailsafeSpeaker(speaker)

    def report() -> None:
        if failsafe.failure and options.speak == "always":
            raise failsafe.failure
        if failsafe.failure:
            notice(f"no speech: {failsafe.failure}")

    stack.callback(report)
    return failsafe


@contextmanager
def _abandoned_on_error(view: "View") -> Iterator[None]:
    try:
        yield
    except BaseException:
        view.abandon()
        raise
