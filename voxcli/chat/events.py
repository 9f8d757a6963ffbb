"""Events of a live conversation, as the endpointer finds them and as views show them.

Sample positions count from when the microphone was opened, at `voxcli.audio.clip.SAMPLE_RATE`.
"""

from dataclasses import dataclass
from typing import Literal

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Utterance
from voxcli.core.session import Turn
from voxcli.core.storage.stored import StageTimes
from voxcli.core.tools import Decider, ToolCall
from voxcli.core.turn import Event as TurnEvent
from voxcli.core.turn import TurnEnded
from voxcli.errors import VoxError

State = Literal["starting", "listening", "hearing", "thinking", "asking", "using tool", "speaking", "muted", "asleep"]
SpeculativeUse = Literal["used", "dropped", "none"]
PushToTalk = Literal["off", "hold", "toggle"]
DeviceKind = Literal["input", "output"]


# Endpointing events, found in the microphone's stream.


@dataclass(frozen=True)
class SpeechStarted:
    """Voice has lasted long enough to count as speech; `start` is its first voiced sample."""

    start: int


@dataclass(frozen=True)
class SpeechPaused:
    """The utterance has paused: a speculative reply may start. Comes at most once until speech resumes."""

    clip: AudioClip  # the utterance so far, with its pre-roll
    last_voiced: int  # the last voiced sample


@dataclass(frozen=True)
class SpeechGoesOn:
    """The utterance has grown long: an engine that encodes audio in pieces may start on it."""

    clip: AudioClip  # the utterance so far, with its pre-roll; the final clip begins with it


@dataclass(frozen=True)
class SpeechResumed:
    """Speech continues after `SpeechPaused` or `SpeechEnded`: the same utterance is open again.

    A turn that has started since then is taken back (`TurnRetracted`).
    """

    at: int  # the sample at which the endpointer decided


@dataclass(frozen=True)
class SpeechEnded:
    """The utterance is over."""

    clip: AudioClip  # the whole utterance, with its pre-roll
    last_voiced: int  # the last voiced sample; latency counts from here
    at: int  # the sample at which the endpointer decided


@dataclass(frozen=True)
class SpeechTooLong:
    """The utterance is close to `max_utterance_seconds`, where it is cut."""

    seconds: float  # Length of the utterance so far.


EndpointEvent = SpeechStarted | SpeechPaused | SpeechGoesOn | SpeechResumed | SpeechEnded | SpeechTooLong


# Other events that views show, besides those of a turn (`voxcli.core.turn`).


@dataclass(frozen=True)
class Ready:
    """The model, the voice and the devices are warm."""

    engine: str
    model: str
    voice: str | None
    input_device: str | None  # None: the user types
    output_device: str | None
    session: str | None
    echo: str  # "cancelled", "half-duplex" or "off"
    turns: int = 0  # Turns of the session so far.
    barge_in: bool = True  # whether speech interrupts a reply
    push_to_talk: PushToTalk = "off"
    keys: bool = False  # whether there is a keyboard
    kept: bool = False  # whether turns are stored on disk; a session without a name gets one with its first turn
    persona: str | None = None  # what the instructions come from
    wake_word: str | None = None  # what wakes the conversation, such as "hey jarvis"


@dataclass(frozen=True)
class StateChanged:
    """The conversation is in another state."""

    state: State
    muted: bool = False  # the microphone is muted, also while a reply is spoken
    tool: str = ""  # name of the tool that is used or asked for


@dataclass(frozen=True)
class InputLevel:
    """The level of the microphone, in dB relative to full scale; sent a few times a second."""

    dbfs: float
    speech_seconds: float | None  # since speech started; None while nobody speaks
    is_zero: bool = False  # every sample has been zero for seconds: muted by a switch, or not permitted


@dataclass(frozen=True)
class TurnStarted:
    """An utterance is over or a line was typed, and its turn starts."""

    utterance: Utterance


@dataclass(frozen=True)
class ApprovalAsked:
    """The user is asked whether a tool may run."""

    call: ToolCall


@dataclass(frozen=True)
class ApprovalAnswered:
    """The question whether a tool may run is answered."""

    call: ToolCall
    allowed: bool
    decided_by: Decider


@dataclass(frozen=True)
class SentenceSpoken:
    """A sentence of the reply has been played to its end."""

    text: str


@dataclass(frozen=True)
class BargeIn:
    """The reply was interrupted by the user's speech, a key or Ctrl-C."""

    spoken_text: str  # the part of the reply that was played


@dataclass(frozen=True)
class TurnRetracted:
    """The user went on with the utterance of a turn that had started: the turn never took place.

    It comes after the `SpeechResumed`; another `SpeechEnded` and `TurnStarted` follow for the whole utterance.
    """

    spoken_text: str  # the part of the reply that was played


@dataclass(frozen=True)
class Resumed:
    """The reply continues from the sample where it was ducked, because the voice was only a short noise."""


@dataclass(frozen=True)
class Latency(StageTimes):
    """The latency of one turn, and what speculative replies did for it."""

    speculative_reply: SpeculativeUse = "none"
    dropped_speculative_replies: int = 0  # Replies dropped in this turn.


@dataclass(frozen=True)
class TurnTaken:
    """A turn is over and remembered."""

    ended: TurnEnded
    number: int  # Number in the session, from 1.
    latency: Latency
    clip: AudioClip | None = None  # the utterance; None if it was typed


@dataclass(frozen=True)
class TurnUndone:
    """A turn was removed from memory and from the next prompt."""

    turn: Turn
    number: int  # Number in the session, from 1.


@dataclass(frozen=True)
class Notice:
    """A message to the user, such as that a device was unplugged."""

    text: str


@dataclass(frozen=True)
class DevicesChanged(Notice):
    """A device was lost or is back."""

    lost: tuple[DeviceKind, ...] = ()  # the devices that are lost now


@dataclass(frozen=True)
class KeysAsked:
    """The user asked which keys there are."""


@dataclass(frozen=True)
class FactsLearned:
    """Facts about the user that were found in this conversation, and are kept for later ones."""

    facts: tuple[str, ...]


@dataclass(frozen=True)
class TurnFailed:
    """A turn could not be answered or stored; the conversation goes on."""

    error: VoxError
    utterance: Utterance | None = None  # What was asked, if there is no turn.


@dataclass(frozen=True)
class SessionEnded:
    """The last event."""

    turns: int
    latencies: tuple[Latency, ...]  # Spoken turns alone: typed ones have no last voiced sample.
    overruns: int  # how often samples of the microphone were lost
    underruns: int  # how often the loudspeaker ran out of samples
    dropped_speculative_replies: int
    session: str | None
    store: str | None  # the file that holds the session
    can_continue: bool = False  # the session has turns on disk
    retracted_turns: int = 0  # Turns that were taken back because the user went on.
    additional_generations: int = 0  # Those of all responses, with lines begun after the end of their turn.


LiveEvent = (
    TurnEvent
    | EndpointEvent
    | Ready
    | StateChanged
    | InputLevel
    | TurnStarted
    | ApprovalAsked
    | ApprovalAnswered
    | SentenceSpoken
    | BargeIn
    | TurnRetracted
    | Resumed
    | TurnTaken
    | TurnUndone
    | Notice
    | KeysAsked
    | FactsLearned
    | TurnFailed
    | SessionEnded
)
