"""What the answering model is shown: instructions, earlier turns and what the user said."""

import threading
from collections.abc import Generator, Iterable
from typing import Protocol

from voxcli.core.protocols import PassReport
from voxcli.core.session import Session, Turn

Prompt = str | list[int]  # text in which control tokens are read, or token ids
Message = tuple[str, str]  # role (system, user or assistant) and text

# More history makes a model of this size worse: of 32 questions in one conversation it answered 24
# without history, 23 with the last two turns, 14 with all of them.
TURNS_SHOWN = 2
# Two examples keep a model of this size short and to the point: of 197 simple questions it answered 124 with
# them and 116 without, in two thirds of the words. Other pairs gave 109 to 124, three or four did no better.
EXAMPLES = (
    ("user", "How many wheels does a car have?"),
    ("assistant", "A car has four wheels."),
    ("user", "What is the capital of Finland?"),
    ("assistant", "The capital of Finland is Helsinki."),
)
SHOWN_BYTES = 2048  # most bytes, and so most tokens, of earlier turns in a prompt, which leave room for a question


class ChatModel(Protocol):
    """Text to text."""

    def answer(self, prompt: Prompt, interrupt: threading.Event) -> Generator[str, None, PassReport]: ...

    def read_ahead(self, beginning: Prompt) -> None: ...


class Prompts(Protocol):
    """Writes the prompts of one answering model."""

    def history(self, session: Session) -> Prompt:
        """Return the beginning of the session's next prompt, before the user's text."""
        ...

    def prompt(self, session: Session, text: str) -> Prompt:
        """Return the prompt for the user's text."""
        ...


class SmolLM2Prompts:
    """Writes prompts in SmolLM2's chat layout (ChatML), with the last turns as placeholders and replies."""

    def history(self, session: Session) -> str:
        return history_prompt(session.within(SHOWN_BYTES, _bytes))

    def prompt(self, session: Session, text: str) -> str:
        return chat_prompt(session.within(SHOWN_BYTES, _bytes), text)


def chat_prompt(session: Session, text: str) -> str:
    """Return a prompt in SmolLM2's chat layout: instructions, earlier turns and the user's text."""
    return f"{history_prompt(session)}{_plain(text)}<|im_end|>\n<|im_start|>assistant\n"


def history_prompt(session: Session) -> str:
    """Return the beginning of the next prompt of a session, up to the user's text."""
    return f"{chat_beginning(session.instructions)}{_written(messages(session.last(TURNS_SHOWN)))}<|im_start|>user\n"


def chat_beginning(instructions: str) -> str:
    """Return the beginning of every prompt with these instructions."""
    return _written([("system", instructions), *EXAMPLES] if instructions else EXAMPLES)


def messages(session: Session) -> list[Message]:
    """Return the turns of a session as messages."""
    return [each for turn in session.turns for each in (("user", turn.user_text), ("assistant", turn.reply))]


def _written(shown: Iterable[Message]) -> str:
    return "".join(f"<|im_start|>{role}\n{_plain(text)}<|im_end|>\n" for role, text in shown)


def _bytes(turn: Turn) -> int:
    return len(f"{turn.user_text}{turn.reply}".encode())


def _plain(text: str) -> str:
    """Return text without control tokens: all of SmolLM2's begin with `<` and no space."""
    return text.replace("<", "< ")
