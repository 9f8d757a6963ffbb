"""What happens in a live conversation, as the listener finds it and as views show it.

Pure values. Sample positions count from the opening of the microphone, at `audio.SAMPLE_RATE`.
"""

from dataclasses import dataclass
from typing import Literal

from voxcli.audio.clip import AudioClip
from voxcli.core.turn import Event as TurnEvent
from voxcli.core.turn import TurnEnded
from voxcli.errors import VoxError

State = Literal["starting", "listening", "hearing", "thinking", "speaking", "muted"]
SpeculativeUse = Literal["used", "dropped", "none"]


# What the end-pointer finds in the stream of the microphone.


@dataclass(frozen=True)
class SpeechStarted:
    """Speech has lasted long enough to be speech; `start` is its first voiced sample."""

    start: int


@dataclass(frozen=True)
class SpeechPaused:
    """The first pause in an utterance: a draft may begin. At most once between two resumptions."""

    clip: AudioClip  # the utterance so far, pre-roll included
    last_voiced: int


@dataclass(frozen=True)
class SpeechGoesOn:
    """An utterance has grown long: an engine that takes audio in pieces may begin on it."""

    clip: AudioClip  # the utterance so far, pre-roll included: how its clip will begin


@dataclass(frozen=True)
class SpeechResumed:
    """Speech goes on after `SpeechPaused` or `SpeechEnded`: the same utterance is open again."""

    at: int


@dataclass(frozen=True)
class SpeechEnded:
    """The utterance is over."""

    clip: AudioClip  # the whole utterance, pre-roll included; nothing of it twice or missing
    last_voiced: int  # latency counts from here
    at: int  # where the end-pointer made up its mind


@dataclass(frozen=True)
class SpeechTooLong:
    """The utterance nears its limit; it ends by itself at `max_utterance_seconds`."""

    seconds: float


EndpointEvent = SpeechStarted | SpeechPaused | SpeechGoesOn | SpeechResumed | SpeechEnded | SpeechTooLong


# What views show beside the events of a turn (`voxcli.core.turn`).


@dataclass(frozen=True)
class Ready:
    """Model, voice and devices are warm."""

    engine: str
    model: str
    voice: str | None
    input_device: str
    output_device: str | None
    session: str | None
    echo: str  # "cancelled", "half-duplex" or "off"


@dataclass(frozen=True)
class StateChanged:
    state: State


@dataclass(frozen=True)
class InputLevel:
    """How loud the microphone is, in dB below full scale; a few times a second."""

    dbfs: float
    speech_seconds: float | None  # since speech began; None while there is none


@dataclass(frozen=True)
class SentenceSpoken:
    """The loudspeaker has passed the end of a piece of the reply."""

    text: str


@dataclass(frozen=True)
class BargeIn:
    """The reply was stopped for good: by the user's speech, a key or Ctrl-C."""

    heard: str  # of it


@dataclass(frozen=True)
class Resumed:
    """It was a short noise: the reply goes on from the sample where it fell silent."""


@dataclass(frozen=True)
class Latency:
    """Of one answered turn, in milliseconds from the last voiced sample; None where it did not come to that."""

    endpoint_ms: float | None  # until the end-pointer made up its mind
    first_token_ms: float | None
    first_audio_ms: float | None  # until the first sample was handed to the device
    speculative_reply: SpeculativeUse
    dropped_speculative_replies: int  # of this turn


@dataclass(frozen=True)
class TurnTaken:
    """A turn is over and remembered."""

    ended: TurnEnded
    number: int
    latency: Latency
    clip: AudioClip | None = None  # what the user said; None where it was typed


@dataclass(frozen=True)
class Notice:
    """Something to know: a device that went and came back, an utterance that grows too long."""

    text: str


@dataclass(frozen=True)
class TurnFailed:
    """A turn could not be answered; the conversation goes on."""

    error: VoxError


@dataclass(frozen=True)
class SessionEnded:
    """The last event."""

    turns: int
    latencies: tuple[Latency, ...]
    overruns: int  # of the microphone: times that its samples were lost
    underruns: int  # of the loudspeaker: times that it ran dry
    dropped_speculative_replies: int
    session: str | None
    store: str | None  # the file that the session is in


LiveEvent = (
    TurnEvent
    | EndpointEvent
    | Ready
    | StateChanged
    | InputLevel
    | SentenceSpoken
    | BargeIn
    | Resumed
    | TurnTaken
    | Notice
    | TurnFailed
    | SessionEnded
)
