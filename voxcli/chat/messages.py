"""What comes into the inbox of a conversation, from all its threads; and what it asks of the listener."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from voxcli.chat.events import EndpointEvent, InputLevel, Notice, Resumed
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.response import FirstAudio, NotPrepared, ResponseEvent, ResponseOver


@dataclass(frozen=True)
class SpeechEvent:
    """What the end-pointer found, and when the user was last heard, in monotonic seconds."""

    event: EndpointEvent
    last_voiced_at: float


@dataclass(frozen=True)
class Interrupt:
    """Ctrl-C."""


@dataclass(frozen=True)
class ThreadCrashed:
    """A thread of the conversation died of a defect; it is raised by `Conversation.run`."""

    error: BaseException


@contextmanager
def crashes_posted(post: Callable[[ThreadCrashed], None]) -> Iterator[None]:
    """Post what ends the context, for a thread that nobody joins."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - raised again by `Conversation.run`
        post(ThreadCrashed(error))


@dataclass(eq=False)
class InboxMarker:
    """What was heard before this came into the inbox is forgotten."""


Inbound = (
    SpeechEvent
    | Interrupt
    | ThreadCrashed
    | Key
    | Notice
    | Resumed
    | InputLevel
    | ResponseEvent
    | FirstAudio
    | ResponseOver
    | NotPrepared
    | InboxMarker
)


class ListenerControl(Protocol):
    """What the conversation asks of the listener."""

    @property
    def overruns(self) -> int: ...

    @property
    def underruns(self) -> int: ...

    def commit(self) -> bool:
        """Settle the last utterance: it can't be opened again; False while the user speaks on."""
        ...

    def mute(self, muted: bool) -> None:
        """Forget what is being said, and post nothing of speech from now on; or hear again."""
        ...

    def talk(self, talking: bool) -> None:
        """Push-to-talk: an utterance begins now, or ends with what is said now."""
        ...
