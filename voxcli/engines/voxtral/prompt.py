"""Session and utterance to the token ids of Voxtral's prompt.

    <s>[INST]{instructions}\\n\\n{placeholder}[/INST]{reply}</s>[INST][BEGIN_AUDIO][AUDIO]*n{prompt}[/INST]

Finished turns are text alone: their audio is a placeholder. The instructions stand in the first user
turn that is in the prompt, because tokenizer version 7 refuses a system prompt beside audio. The ids
are those of the processor's `apply_chat_template` for the same messages (`template` checks it).

This module is pure: it knows no model, no samples and no tokenizer but the protocol.
"""

from functools import lru_cache
from itertools import accumulate, takewhile
from typing import Literal, NamedTuple

from voxcli.core.session import Session, Turn
from voxcli.core.turn import Utterance
from voxcli.engines.voxtral.tokenizer import Tokenizer, plain_ids
from voxcli.errors import ModelError

# An assistant message may not be empty, and one that was cut off should be known as such.
INTERRUPTED = "[interrupted]"
NOTHING_SPOKEN = "[interrupted before anything was spoken]"
NO_REPLY = "[no reply]"

TURNS_REMEMBERED = 4096  # encodings that are kept; a placeholder and a short reply are 40 tokens


class Message(NamedTuple):
    """One side's words; None among the parts is where the clip stands."""

    role: Literal["user", "assistant"]
    parts: tuple[str | None, ...]


def conversation(session: Session, utterance: Utterance) -> list[Message]:
    """Return what the model is shown: strict alternation that ends with the user."""
    messages = []
    for index, turn in enumerate(session.turns):
        messages += turn_messages(turn, session.instructions if index == 0 else "")
    instructions = "" if session.turns else session.instructions
    return [*messages, utterance_message(utterance, instructions)]


def turn_messages(turn: Turn, instructions: str = "") -> list[Message]:
    """Return a finished turn, the instructions before it where it is the first."""
    reply = turn.reply.strip()
    if turn.interrupted:
        reply = f"{reply} {INTERRUPTED}" if reply else NOTHING_SPOKEN
    return [Message("user", (_joined(instructions, turn.user_text),)), Message("assistant", (reply or NO_REPLY,))]


def utterance_message(utterance: Utterance, instructions: str = "") -> Message:
    """Return the turn that is to be answered."""
    if utterance.clip is None:
        return Message("user", (_joined(instructions, utterance.prompt),))
    parts = (instructions, None, utterance.prompt)
    return Message("user", tuple(part for part in parts if part != ""))


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


class PromptWriter:
    """Writes prompts with one tokenizer; keeps the encodings of finished turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look the control tokens up.

        Raises:
            ModelError: the tokenizer lacks one: it is not Voxtral's.
        """
        self._tokenizer = tokenizer
        self._begin, self.end = self._control("<s>"), self._control("</s>")
        self._user, self._user_end = self._control("[INST]"), self._control("[/INST]")
        self._begin_audio, self.audio = self._control("[BEGIN_AUDIO]"), self._control("[AUDIO]")
        self._turn_ids = lru_cache(TURNS_REMEMBERED)(self._write_turn)

    def write(self, session: Session, utterance: Utterance, audio_tokens: int) -> list[int]:
        """Return the ids of the whole prompt.

        Args:
            audio_tokens: how many embeddings the audio encoder makes of the clip; 0 without one.
        """
        instructions = "" if session.turns else session.instructions
        return self._history(session) + self._write_message(utterance_message(utterance, instructions), audio_tokens)

    def finished(self, session: Session) -> list[int]:
        """Return the ids that every prompt of the session begins with, as far as they can be known before it."""
        opening = "" if session.turns else session.instructions
        return [*self._history(session), self._user, *(plain_ids(self._tokenizer, opening) if opening else [])]

    def fit(self, session: Session, utterance: Utterance, audio_tokens: int, room: int, *, reserve: int = 0) -> Session:
        """Return the session without the oldest turns that leave no room for the prompt.

        Turns leave in blocks, of up to a quarter of the room: were it one by one, every prompt of a
        long session would begin differently, and nothing of the one before could be used again.

        Args:
            room: how many tokens the whole prompt may have. The instructions and the utterance stay
                in even where they alone have more.
            reserve: what is kept free for these two at least. Utterances that need no more than that
                leave the same turns in.
        """
        alone = max(reserve, len(self.write(session.last(0), utterance, audio_tokens)))
        kept = self._begun_evenly(session, session.within(room - alone, self._cost), (room - alone) // 4)
        # Joined to a turn's text, the instructions may have a token or two more than they had alone.
        while kept.turns and len(self.write(kept, utterance, audio_tokens)) > room:
            kept = kept.last(len(kept.turns) - 1)
        return kept

    def _begun_evenly(self, session: Session, kept: Session, spare: int) -> Session:
        """Return the newest turns of the session that begin at the roundest number among those that may be.

        The roundest number of a range is the one that most powers of two divide. It stays the same while
        the range moves on by half its width or more, wherever the range begins and ends exactly: so it
        takes no memory of the turns before, and none of what the last prompt began with.

        Args:
            kept: the most turns that fit.
            spare: tokens that may leave beyond those that must.
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
        ids = [self._begin]
        for index, turn in enumerate(session.turns):
            ids += self._turn_ids(turn, session.instructions if index == 0 else "")
        return ids

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
