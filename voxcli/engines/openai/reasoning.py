"""Leaves out the reasoning that a model writes into its reply, as in `<think>...</think>`."""

import re

NAMES = ("think", "thinking", "thought", "reasoning", "seed:think")  # Names of tags in angle brackets.
PAIRS = (
    *((f"<{name}>", f"</{name}>") for name in NAMES),
    ("[think]", "[/think]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|start_thinking|>", "<|end_thinking|>"),  # Cohere
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
OPENING_TAGS, CLOSING_TAGS = ([pair[side] for pair in PAIRS] for side in (0, 1))
_OPENING, _CLOSING = ("|".join(map(re.escape, tags)) for tags in (OPENING_TAGS, CLOSING_TAGS))
CLOSING = re.compile(_CLOSING, re.IGNORECASE)
ANY_TAG = re.compile(f"(?P<opening>{_OPENING})|{_CLOSING}", re.IGNORECASE)
LONGEST_TAG = max(map(len, (*OPENING_TAGS, *CLOSING_TAGS)))


class ReasoningFilter:
    """Filters the deltas of one reply.

    - Before any text, an opening tag starts reasoning: if it is never closed, the whole reply is reasoning.
    - After text, a tag may be meant literally. What follows is held back until the closing tag, and then left out; if
      the reply ends without one, the tag and the text after it are returned as they are.
    - The first closing tag ends reasoning, as vLLM's and SGLang's parsers have it.
    - A closing tag without an opening one is left out, with what came before it unless that was returned already: the
      opening tag stood in the prompt.
    """

    def __init__(self) -> None:
        self.found = False  # whether there was reasoning
        self.has_text = False  # whether anything but spaces was returned
        self._held = ""  # text that may be reasoning, or the beginning of a tag
        self._opened = ""  # the tag that the held text follows

    @property
    def holds_text(self) -> bool:
        """Whether text after a tag is held back that may be meant literally."""
        return bool(self._opened) and self.has_text

    def feed(self, delta: str) -> str:
        """Return what of the reply is certain to be text after this delta."""
        searched = max(0, len(self._held) - LONGEST_TAG) if self._opened else 0
        self._held += delta
        texts: list[str] = []
        while tag := (CLOSING.search(self._held, searched) if self._opened else ANY_TAG.search(self._held)):
            before, self._held = self._held[: tag.start()], self._held[tag.end() :]
            searched = 0
            opens = not self._opened and tag["opening"] is not None
            is_text = not self._opened and (opens or self.has_text)
            texts.append(self._returned(before) if is_text else "")
            self._opened = tag.group() if opens else ""
            self.found = self.found or not opens
        if not self._opened:
            end = _start_of_partial_tag(self._held)
            texts.append(self._returned(self._held[:end]))
            self._held = self._held[end:]
        return "".join(texts)

    def finish(self) -> str:
        """Return the text that is still held back; the reply is over."""
        if self._opened and not self.has_text:
            self.found = True
            return ""
        return self._returned(self._opened + self._held)

    def _returned(self, text: str) -> str:
        if self.found and not self.has_text:  # reasoning is followed by blank lines
            text = text.lstrip()
        self.has_text = self.has_text or bool(text.strip())
        return text


def _start_of_partial_tag(text: str) -> int:
    """Return where a tag begins that the text may have cut; the text's length if there is none."""
    lower = text.lower()
    starts = range(max(0, len(text) - LONGEST_TAG), len(text))
    partial = (
        start for start in starts if any(tag.startswith(lower[start:]) for tag in (*OPENING_TAGS, *CLOSING_TAGS))
    )
    return next(partial, len(text))
