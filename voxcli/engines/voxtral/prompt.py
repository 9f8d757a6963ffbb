"""Writes a session and an utterance as the token ids of Voxtral's prompt.

    <s>[INST]{instructions}\\n\\n{placeholder}[/INST]{reply}</s>[INST][BEGIN_AUDIO][AUDIO]*n{prompt}[/INST]

Finished turns are text: a placeholder stands for their audio. The instructions stand in the first user turn of
the prompt, because tokenizer version 7 refuses a system prompt beside audio. The ids are those of the processor's
`apply_chat_template` for the same messages, which `template.difference` checks. `tool_layout` writes the tools of
the session.
"""

from functools import lru_cache
from itertools import accumulate, takewhile
from typing import Literal, NamedTuple

from voxcli.core.protocols import Utterance
from voxcli.core.session import Session, Turn
from voxcli.engines.voxtral.tokenizer import Tokenizer, plain_ids
from voxcli.engines.voxtral.tool_layout import ToolLayout, why_no_tools
from voxcli.errors import ModelError, no_tools

# These mark interrupted replies, and replace empty ones, because an assistant message may not be empty.
INTERRUPTED = "[interrupted]"
NOTHING_SPOKEN = "[interrupted before anything was spoken]"
NO_REPLY = "[no reply]"

TURNS_REMEMBERED = 4096  # encoded turns in the cache; a placeholder and a short reply are 40 tokens


class Message(NamedTuple):
    """A message of the user or the assistant. None among its parts stands for the clip."""

    role: Literal["user", "assistant"]
    parts: tuple[str | None, ...]


def conversation(session: Session, utterance: Utterance) -> list[Message]:
    """Return the messages of a prompt, which alternate strictly and end with the user's."""
    messages = []
    for index, turn in enumerate(session.turns):
        messages += turn_messages(turn, session.instructions if index == 0 else "")
    instructions = "" if session.turns else session.instructions
    return [*messages, utterance_message(utterance, instructions)]


def turn_messages(turn: Turn, instructions: str = "") -> list[Message]:
    """Return the messages of a finished turn, with instructions before the first one."""
    reply = turn.reply.strip()
    if turn.interrupted:
        reply = f"{reply} {INTERRUPTED}" if reply else NOTHING_SPOKEN
    return [Message("user", (_joined(instructions, turn.user_text),)), Message("assistant", (reply or NO_REPLY,))]


def utterance_message(utterance: Utterance, instructions: str = "") -> Message:
    """Return the message of the utterance."""
    if utterance.clip is None:
        return Message("user", (_joined(instructions, utterance.prompt),))
    parts = (instructions, None, utterance.prompt)
    return Message("user", tuple(part for part in parts if part != ""))


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


class PromptWriter:
    """Writes prompts with one tokenizer, and caches the ids of finished turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look up the control tokens.

        Raises:
            ModelError: the tokenizer lacks one, so it is not Voxtral's.
        """
        self._tokenizer = tokenizer
        self._begin, self.end = self._control("<s>"), self._control("</s>")
        self._user, self._user_end = self._control("[INST]"), self._control("[/INST]")
        self._begin_audio, self.audio = self._control("[BEGIN_AUDIO]"), self._control("[AUDIO]")
        self._turn_ids = lru_cache(TURNS_REMEMBERED)(self._write_turn)
        self.tools_problem = why_no_tools(tokenizer)  # empty: sessions may have tools
        self._tools = None if self.tools_problem else ToolLayout(tokenizer)

    def tools_of(self, session: Session) -> ToolLayout | None:
        """Return what writes the session's tools; None if it has none.

        Raises:
            ConfigError: it has tools, and the tokenizer has no layout for them.
        """
        if not session.tools:
            return None
        if self._tools is None:
            raise no_tools("voxtral", self.tools_problem)
        return self._tools

    def write(self, session: Session, utterance: Utterance, audio_tokens: int) -> list[int]:
        """Return the ids of the whole prompt.

        Args:
            audio_tokens: number of embeddings that the audio encoder makes of the clip; 0 without a clip.

        Raises:
            ConfigError: as `tools_of`.
        """
        instructions = "" if session.turns else session.instructions
        return self._history(session) + self._write_message(utterance_message(utterance, instructions), audio_tokens)

    def finished(self, session: Session) -> list[int]:
        """Return the ids with which every next prompt of the session begins, as long as it has the same tools."""
        opening = "" if session.turns else session.instructions
        return [*self._history(session), self._user, *(plain_ids(self._tokenizer, opening) if opening else [])]

    def follow_up(self, text: str) -> list[int]:
        """Return the ids that end a reply and give the model another text to answer."""
        return [self.end, self._user, *plain_ids(self._tokenizer, text), self._user_end]

    def fit(self, session: Session, utterance: Utterance, audio_tokens: int, room: int, *, reserve: int = 0) -> Session:
        """Return the session without its oldest turns, so that the prompt fits.

        Turns are dropped in blocks of up to a quarter of the room. If they were dropped one by one, every prompt
        of a long session would begin differently, and nothing of the cache could be reused.

        Args:
            room: most tokens of the whole prompt. The instructions and the utterance are kept even if they alone
                have more.
            reserve: least tokens kept free for these two. All utterances that need no more keep the same turns.
        """
        alone = max(reserve, len(self.write(session.last(0), utterance, audio_tokens)))
        kept = self._begun_evenly(session, session.within(room - alone, self._cost), (room - alone) // 4)
        # Joined to the text of a turn, the instructions may have a token or two more than alone.
        while kept.turns and len(self.write(kept, utterance, audio_tokens)) > room:
            kept = kept.last(len(kept.turns) - 1)
        return kept

    def _begun_evenly(self, session: Session, kept: Session, spare: int) -> Session:
        """Return the newest turns of the session from the roundest of the possible numbers on.

        The roundest number of a range is divisible by the largest power of two. It stays the same while the
        range moves by half its width or more, so the choice needs no memory of the previous prompt.

        Args:
            kept: the most turns that fit.
            spare: tokens that may be dropped beyond the necessary ones.
        """
        first = len(session.turns) - len(kept.turns)
        if first == 0:
            return kept
        dropped = accumulate(self._cost(turn) for turn in kept.turns)
        last = first + sum(1 for _ in takewhile(lambda total: total <= spare, dropped))
        roundest = max(range(first, last + 1), key=lambda number: number & -number)
        return session.last(len(session.turns) - roundest)

    def _cost(self, turn: Turn) -> int:
        return len(self._turn_ids(turn, ""))

    def _history(self, session: Session) -> list[int]:
        """Return the ids before the user's message: finished turns, and the tools where the tokenizer wants them."""
        layout = self.tools_of(session)
        tools = layout.available(session.tools) if layout else []
        turns: list[int] = []
        for index, turn in enumerate(session.turns):
            turns += self._turn_ids(turn, session.instructions if index == 0 else "")
        return [self._begin, *tools, *turns] if layout and layout.tools_stand_first else [self._begin, *turns, *tools]

    def _write_turn(self, turn: Turn, instructions: str) -> tuple[int, ...]:
        messages = turn_messages(turn, instructions)
        return tuple(token_id for message in messages for token_id in self._write_message(message, 0))

    def _write_message(self, message: Message, audio_tokens: int) -> list[int]:
        ids: list[int] = []
        for part in message.parts:
            if part is None:
                ids += [self._begin_audio, *[self.audio] * audio_tokens]
            else:
                ids += plain_ids(self._tokenizer, part)
        return [self._user, *ids, self._user_end] if message.role == "user" else [*ids, self.end]

    def _control(self, name: str) -> int:
        if name not in self._tokenizer.controls:
            raise ModelError(
                f"the checkpoint's tokenizer has no {name}: it is not Voxtral's",
                hint="fetch the checkpoint again: voxcli models pull mini",
            )
        return self._tokenizer.controls[name]
