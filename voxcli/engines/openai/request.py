"""Writes a session and an utterance as the body of a chat request.

The prompt is that of the Voxtral engine (`voxcli.engines.voxtral.prompt`): finished turns are text. So a request has at
most one clip and exceeds no server's limit; vLLM takes five per conversation (vllm-project/vllm#22109).
"""

import base64
import math
from dataclasses import dataclass
from typing import Any, Literal

from voxcli.audio.clip import AudioClip
from voxcli.audio.wav import encode_wav
from voxcli.core.session import Session, Turn
from voxcli.core.turn import Utterance
from voxcli.engines.voxtral.checkpoint.model_card import sampling_for
from voxcli.engines.voxtral.prompt import Message, conversation

# Tokens are estimated, because the tokenizer is on the server. A token of Voxtral's has about 4 bytes of English, and 3
# bytes of most other languages.
TOKEN_BYTES = 3
MESSAGE_TOKENS = 4  # [INST], [/INST], </s>, and one to spare
WINDOW_SECONDS, WINDOW_TOKENS = 30.0, 375  # audio is padded to whole windows


@dataclass(frozen=True)
class RequestOptions:
    """The options of a request: the sampling that every server supports, and no more."""

    model: str
    max_reply_tokens: int
    temperature: float | None  # 0 is greedy; None for the default of the model, by its name
    top_p: float | None  # None for the default of the model
    context_tokens: int  # most tokens of the prompt, estimated
    audio_style: Literal["object", "string"] = "object"


def chat_body(session: Session, utterance: Utterance, options: RequestOptions) -> dict[str, Any]:
    """Return the JSON object for /chat/completions."""
    shown = fit(session, utterance, options.context_tokens)
    audio = audio_part(utterance.clip, options.audio_style) if utterance.clip else None
    sampling = sampling_for(options.model).but(options.temperature, options.top_p)
    body: dict[str, Any] = {
        "model": options.model,
        "messages": [_written(message, audio) for message in conversation(shown, utterance)],
        "max_tokens": options.max_reply_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.temperature > 0 and sampling.top_p < 1:  # Mistral's API refuses top_p beside greedy sampling
        body["top_p"] = sampling.top_p
    return body


def fit(session: Session, utterance: Utterance, room: int) -> Session:
    """Return the session without its oldest turns, so that the prompt has at most `room` tokens (estimated)."""
    windows = math.ceil(utterance.clip.seconds / WINDOW_SECONDS) if utterance.clip else 0
    alone = _tokens(session.instructions) + _tokens(utterance.prompt) + windows * WINDOW_TOKENS
    return session.within(room - alone, _turn_tokens)


def audio_part(clip: AudioClip, style: Literal["object", "string"]) -> dict[str, Any]:
    """Return the part of a message that is a clip; "string" is how Mistral's API documents it."""
    data = base64.b64encode(encode_wav(clip)).decode("ascii")
    return {"type": "input_audio", "input_audio": data if style == "string" else {"data": data, "format": "wav"}}


def _written(message: Message, audio: dict[str, Any] | None) -> dict[str, Any]:
    if None not in message.parts:
        return {"role": message.role, "content": "".join(part or "" for part in message.parts)}
    parts = [audio if part is None else {"type": "text", "text": part} for part in message.parts]
    return {"role": message.role, "content": parts}


def _turn_tokens(turn: Turn) -> int:
    return _tokens(turn.user_text) + _tokens(turn.reply)


def _tokens(text: str) -> int:
    return len(text.encode(errors="replace")) // TOKEN_BYTES + MESSAGE_TOKENS
