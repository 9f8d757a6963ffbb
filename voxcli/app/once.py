"""Builds and runs a single turn from a file or standard input."""

import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxcli.app.parts import NOT_KEPT, Notice, SessionChoice, open_engine, open_memory, open_reply_voices, speech_output
from voxcli.app.tool_access import open_allowed_tools, usable_tools
from voxcli.errors import AudioDeviceError, AudioInputError, SpeechError, VoxError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.app.views import View
    from voxcli.audio.clip import AudioClip
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.protocols import Engine, Speaker, SpeechOutput, Utterance
    from voxcli.core.tools import ToolRunner


Speak = Literal["always", "if possible", "never"]

SILENCE_SECONDS = 15.0  # longest silence of a model that is asked what it understood; its reply is shown already


@dataclass(frozen=True)
class OnceOptions:
    """Options of a single turn that are not settings."""

    source: str | None  # a recording, by its path or URL; "-" is standard input; None: the prompt alone is answered
    prompt: str = ""  # text given with the audio, or alone
    session: SessionChoice = NOT_KEPT
    speak: Speak = "never"  # through the default output device
    save_reply: Path | None = None  # WAV file for the spoken reply
    raw_rate: int | None = None  # Hz; standard input is raw 16-bit mono PCM
    force: bool = False  # an existing file is replaced by the spoken reply
    other_inputs: Sequence[str] = ()  # further files that are read, such as the settings
    allow_tools: Sequence[str] = ()  # names of the tools that the model may call

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
    tools: "ToolRunner | None" = None
    silence_seconds: float = SILENCE_SECONDS

    def answer(self, view: "View", interrupt: threading.Event) -> None:
        """Run and show the turn. It ends early once `interrupt` is set.

        Raises:
            VoxError: the engine can't answer, or required speech failed.
        """
        from voxcli.core.record import Context, record_of
        from voxcli.core.turn import SpeechFailed, TurnEnded

        failure: VoxError | None = None
        events = self.memory.take_turn(
            self.engine, self.utterance, interrupt, self.speech, self.tools, silence_seconds=self.silence_seconds
        )
        with closing(events), _abandoned_on_error(view):
            for event in events:
                if isinstance(event, SpeechFailed) and self.options.needs_speech:
                    failure = event.error  # raised when the turn is over
                    continue
                view.show(event)
                if isinstance(event, TurnEnded):
                    source, session = self.options.source, self.memory.session.name
                    number = self.memory.turn_number
                    context = Context(
                        self.engine, self.utterance, source and _utf8(source), session, number, self.load_seconds
                    )
                    view.finish(record_of(event, context))
        if failure:
            raise failure


def open_turn(settings: "Settings", options: OnceOptions, stack: ExitStack, notice: Notice) -> SingleTurn:
    """Read the recording and open all that the turn needs. Raises VoxError."""
    from voxcli.app.views import loading_progress
    from voxcli.core.protocols import Utterance

    _check_files(options)
    memory = open_memory(options.session, settings, stack, notice)
    speech = _open_speech(settings, options, stack, notice)
    clip = None if options.source is None else _read(options.source, options, settings.audio.max_seconds)
    for remark in clip.remarks() if clip else ():
        notice(remark)
    detection = threading.Thread(target=_note_if_without_speech, args=(clip, notice), name="vad", daemon=True)
    detection.start()  # while the engine loads
    tools = open_allowed_tools(settings, options.allow_tools, stack, notice)
    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        engine = open_engine(settings, stack, notice, fetching, warming)
    load_seconds = time.perf_counter() - started
    detection.join()
    utterance, tools = Utterance(clip, _utf8(options.prompt).strip()), usable_tools(tools, engine, notice)
    return SingleTurn(options, memory, engine, utterance, speech, load_seconds, tools)


def _check_files(options: OnceOptions) -> None:
    """Check that no file that is read, and none that exists, is overwritten. Raises ConfigError."""
    from voxcli.batch.urls import local_path
    from voxcli.output_files import OutputFiles

    files, source = OutputFiles(force=options.force), local_path(options.source) if options.source else None
    files.add_inputs([*options.other_inputs, *([source] if source else [])])
    files.check_stdout()
    if options.save_reply:
        files.check(options.save_reply, "--save-reply")


def _read(source: str, options: OnceOptions, max_seconds: float) -> "AudioClip":
    """Read the recording. Raises AudioInputError; for a manifest, its hint names the command that answers it."""
    from voxcli.audio.clip import STDIN, standard_input
    from voxcli.batch.manifest import HEAD_BYTES, looks_like_manifest
    from voxcli.batch.urls import local_path, read_recording

    if not source.strip() and not (source and Path(source).exists()):
        raise AudioInputError("the name of the recording is empty", hint="check the variable that it comes from")
    stdin = standard_input() if source == STDIN and not (sys.stdin and sys.stdin.isatty()) else None
    # What a pipe begins with can't be read again after the decoder has refused it.
    head = stdin.peek(HEAD_BYTES) if isinstance(stdin, BufferedReader) and options.raw_rate is None else b""
    try:
        return read_recording(source, max_seconds=max_seconds, raw_rate=options.raw_rate, stdin=stdin)
    except AudioInputError as error:
        path = local_path(source)
        if path and path != STDIN and Path(path).is_file():
            with suppress(OSError), Path(path).open("rb") as file:
                head = file.read(HEAD_BYTES)
        if not looks_like_manifest(head):
            raise
        name = "standard input" if source == STDIN else source
        raise AudioInputError(
            f"{printable(name)} is a manifest, not a recording",
            hint=f"voxcli batch {shlex.quote(source)} --out results.jsonl",
        ) from error


def _utf8(text: str) -> str:
    """Return text from the command line with invalid UTF-8 replaced, which models and the store can't take."""
    return text.encode(errors="replace").decode()


def _note_if_without_speech(clip: "AudioClip | None", notice: Notice) -> None:
    from voxcli.audio.vad import has_speech

    if clip and not has_speech(clip):
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
    try:
        return speech_output(stack.enter_context(open_reply_voices(settings, notice)), speaker)
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
