"""Messages in the inbox of a conversation, and the protocol by which it controls the listener."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from voxcli.chat.control import Control
from voxcli.chat.events import EndpointEvent, InputLevel, Notice, Resumed
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.responses.approval import ApprovalRequest, SpokenAnswer, ToolAnnounced
from voxcli.chat.responses.response import FirstAudio, ResponseEvent, ResponseOver, WorkAheadFailed


@dataclass(frozen=True)
class SpeechEvent:
    """An endpointing event, and when the user last spoke, in monotonic seconds."""

    event: EndpointEvent
    last_voiced_at: float


@dataclass(frozen=True)
class Interrupt:
    """Ctrl-C."""


@dataclass(frozen=True)
class SleepChanged:
    """The conversation begins to wait for its wake word, or has received it."""

    asleep: bool


@dataclass(frozen=True)
class Announcement:
    """Something that the user is told once nobody speaks: that a timer is over."""

    text: str


@dataclass(frozen=True)
class ThreadCrashed:
    """A defect ended a thread of the conversation; `Conversation.run` raises it."""

    error: BaseException


@contextmanager
def crashes_posted(post: Callable[[ThreadCrashed], None]) -> Iterator[None]:
    """Post an exception that ends the context; for threads whose result nobody reads."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - raised again by `Conversation.run`
        post(ThreadCrashed(error))


@dataclass(eq=False)
class InboxMarker:
    """Marks a place in the inbox: speech events in front of it are out of date."""


Inbound = (
    SpeechEvent
    | Interrupt
    | Control
    | SleepChanged
    | Announcement
    | ThreadCrashed
    | Key
    | Notice
    | Resumed
    | InputLevel
    | ResponseEvent
    | FirstAudio
    | ResponseOver
    | WorkAheadFailed
    | ToolAnnounced
    | ApprovalRequest
    | SpokenAnswer
    | InboxMarker
)


class ListenerControl(Protocol):
    """Controls the listener; methods may be called on any thread."""

    @property
    def overruns(self) -> int:
        """How often samples of the microphone were lost."""
        ...

    @property
    def underruns(self) -> int:
        """How often the loudspeaker ran out of samples."""
        ...

    def begin_reply(self) -> bool:
        """Return whether a reply to the last utterance may play; False while the user seems to continue it.

        Once it plays, only speech that comes soon continues the utterance; later speech starts another one.
        """
        ...

    def is_final(self) -> bool:
        """Return whether the user can no longer continue the last utterance, and has started no other."""
        ...

    def commit(self) -> bool:
        """Close the last utterance for good; return False while the user seems to continue it."""
        ...

    def mute(self, muted: bool) -> None:
        """Discard the open utterance and post no speech events until called with False."""
        ...

    def push_to_talk(self, pressed: bool) -> None:
        """Start an utterance when the key is pressed; end it when the key is released."""
        ...
