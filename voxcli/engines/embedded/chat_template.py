"""Writes prompts in the layout of a model's own chat template, with text from outside as plain text.

The template is applied to marks in place of the texts. The layout between the marks is tokenized with its control
tokens, and each text without any. Whatever a text contains, it can't forge a control token.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from voxcli.core.session import Session, Turn
from voxcli.engines.embedded.prompts import Message, messages
from voxcli.errors import ModelError

LAYOUT_TOKENS = 16  # estimate of the layout around a turn or a question
TEXTS_KEPT = 4096  # texts and layouts whose tokens are kept; each turn has two


class TemplateModel(Protocol):
    """A model with a tokenizer and a chat template."""

    def text_tokens(self, text: str) -> list[int]: ...

    def layout_tokens(self, layout: str, *, begins: bool) -> list[int]: ...

    def apply_template(self, messages: Iterable[Message]) -> str: ...


class TemplatePrompts:
    """Implements `voxcli.engines.embedded.prompts.Prompts` for any model that has a chat template."""

    def __init__(self, model: TemplateModel, context_tokens: int, turns_shown: int | None = None) -> None:
        """Write prompts for `model`.

        Args:
            context_tokens: longest prompt.
            turns_shown: most turns in a prompt; None for as many as fit.
        """
        self._model = model
        self._context_tokens = context_tokens
        self._turns_shown = turns_shown
        self._mark = f"mark{secrets.token_hex(8)}n"  # no text from outside contains it
        self._text_tokens = lru_cache(TEXTS_KEPT)(model.text_tokens)
        self._layout_tokens = lru_cache(TEXTS_KEPT)(model.layout_tokens)

    def history(self, session: Session) -> list[int]:
        """Return the beginning of the session's next prompt, before the user's text."""
        return self._written(self._shown(session, ""), "", whole=False)

    def prompt(self, session: Session, text: str) -> list[int]:
        """Return the prompt for the user's text.

        Raises:
            ModelError: the template leaves out the user's text, or fails.
        """
        return self._written(self._shown(session, text), text, whole=True)

    def _shown(self, session: Session, text: str) -> Session:
        """Return the session with the newest turns that fit beside the instructions and the text."""
        beside = self._count(session.instructions) + self._count(text) + 2 * LAYOUT_TOKENS
        fitting = session.within(self._context_tokens - beside, self._turn_tokens)
        return fitting if self._turns_shown is None else fitting.last(self._turns_shown)

    def _turn_tokens(self, turn: Turn) -> int:
        return self._count(turn.user_text) + self._count(turn.reply) + 2 * LAYOUT_TOKENS

    def _count(self, text: str) -> int:
        return len(self._text_tokens(text.strip()))

    def _written(self, session: Session, text: str, *, whole: bool) -> list[int]:
        chat = [*messages(session), ("user", text)]
        texts = [session.instructions, *(said for _, said in chat)]
        layout = self._layout([role for role, _ in chat], with_instructions=bool(session.instructions))
        parts = re.split(f"{self._mark}(\\d+)e", layout)  # layout, number, layout, number, ..., layout
        numbers = [int(number) for number in parts[1::2]]
        if not numbers or numbers[-1] != len(chat):
            raise ModelError(
                "the answering model's chat template leaves out what the user says",
                hint="choose another model: voxcli config set embedded.answer_model ''",
            )
        ids = [*self._layout_tokens(parts[0], begins=True)]
        for number, after in zip(numbers, parts[2::2], strict=True):
            if number == len(chat) and not whole:
                break
            ids += [*self._text_tokens(texts[number].strip()), *self._layout_tokens(after, begins=False)]
        return ids

    def _layout(self, roles: Sequence[str], *, with_instructions: bool) -> str:
        """Return the template's layout for messages of these roles, with numbered marks for their texts.

        The mark of the instructions has the number 0.
        """
        chat = [(role, f"{self._mark}{number}e") for number, role in enumerate(roles, 1)]
        # llama.cpp puts the instructions before the first user's text where a template knows no system role.
        return self._model.apply_template([("system", f"{self._mark}0e"), *chat] if with_instructions else chat)
