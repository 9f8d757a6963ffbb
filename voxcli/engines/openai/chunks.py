"""Reads the objects that a server answers with, one a chunk: text, calls of tools, why the reply ended, token counts.

Servers differ from OpenAI's documentation and from one another. What is harmless is accepted; what is not text of the
reply is never taken for it.
"""

from dataclasses import dataclass
from typing import Any

from voxcli.engines.openai.reasoning import ReasoningFilter
from voxcli.engines.openai.tool_calls import CallReader
from voxcli.servers.errors import StreamedError, UnreadableError

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = (None, "text", "output_text")  # types of the parts of a list that are text


@dataclass(frozen=True)
class Usage:
    """Tokens that a server counted."""

    prompt_tokens: int
    cached_tokens: int
    reply_tokens: int


class ReplyReader:
    """Reads one reply."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish_reason = ""  # why the reply ended; empty until the server says so
        self.calls = CallReader()
        self.calls_tool = False
        self._filter = ReasoningFilter()
        self._index: Any = None  # The choice that is read; servers may send several.
        self._has_reasoning = False

    @property
    def has_text(self) -> bool:
        return self._filter.has_text

    @property
    def has_reasoning(self) -> bool:
        return self._has_reasoning or self._filter.found

    def read(self, answer: Any) -> str | None:
        """Return the text in a chunk or a whole answer; None if it brings none.

        The text is empty where the reply grew by text that may be reasoning.

        Raises:
            StreamedError: it is an error, in any of the forms that servers give it.
            UnreadableError: it is no chat completion.
        """
        if not isinstance(answer, dict):
            raise UnreadableError("what it streams are no chat completions")
        if error := answer.get("error") or (answer if answer.get("object") == "error" else None):
            raise StreamedError(error)
        self.usage = _usage(answer.get("usage")) or self.usage
        choices = answer.get("choices")
        if choices is not None and not isinstance(choices, list):
            raise UnreadableError("what it streams are no chat completions")
        texts = [self._read_choice(choice) for choice in choices or () if isinstance(choice, dict)]
        return "".join(text for text in texts if text) if any(text is not None for text in texts) else None

    def rest(self) -> str:
        """Return the text that was held back; the reply is over."""
        return self._filter.finish()

    def _read_choice(self, choice: dict[str, Any]) -> str | None:
        if error := choice.get("error"):
            raise StreamedError(error)
        index = choice.get("index") or 0
        self._index = index if self._index is None else self._index
        if index != self._index:
            return None
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
        if reason == "error":
            raise StreamedError("")
        delta = choice.get("delta")
        message = delta if isinstance(delta, dict) else choice.get("message")
        return self._read_message(message) if isinstance(message, dict) else None

    def _read_message(self, message: dict[str, Any]) -> str | None:
        content = message.get("content")
        grew = self.calls.read(message.get("tool_calls"))
        self.calls_tool = self.calls_tool or grew or bool(message.get("function_call"))  # The latter is obsolete.
        self._has_reasoning = (
            self._has_reasoning or any(message.get(name) for name in REASONING_FIELDS) or _has_thinking(content)
        )
        text = _text(content)
        returned = self._filter.feed(text)
        return returned if returned or (text and self._filter.holds_text) else None


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, dict):
        content = content.get("text") if content.get("type") in TEXT_PARTS else ""
    # JSON can spell half of a surrogate pair, which is no text.
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _has_thinking(content: Any) -> bool:
    parts = content if isinstance(content, list) else ()
    return any(isinstance(part, dict) and part.get("type") in ("thinking", "reasoning") for part in parts)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict) or not usage:
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else 0
    return Usage(_count(usage, "prompt_tokens"), cached, _count(usage, "completion_tokens"))


def _count(holder: dict[str, Any], name: str) -> int:
    count = holder.get(name)
    return count if isinstance(count, int) and count >= 0 else 0
