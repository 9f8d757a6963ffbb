"""Builds the body of a chat request from a session and an utterance. Nothing is sent, and no library is needed.

The prompt is that of the Voxtral engine (`voxcli.engines.voxtral.prompt`): finished turns are text, so a request
carries one clip at most and never meets a server's limit. vLLM takes five clips per conversation
(vllm-project/vllm#22109).
"""

import base64
import math
from dataclasses import dataclass
from typing import Any, Literal

from voxcli.audio.clip import AudioClip
from voxcli.audio.wav import encode_wav
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.understanding import INSTRUCTION, LINE_TOKENS
from voxcli.engines.voxtral.checkpoint.model_card import sampling_for
from voxcli.engines.voxtral.prompt import Message, conversation

# An estimate, because the server has the tokenizer: Voxtral's has about 4 bytes per token in English, 3 in most other
# languages.
TOKEN_BYTES = 3
MESSAGE_TOKENS = 4  # [INST], [/INST], </s>, and one to spare
WINDOW_SECONDS, WINDOW_TOKENS = 30.0, 375  # of audio, which is padded to whole windows


@dataclass(frozen=True)
class RequestOptions:
    """Options of a request beside the conversation: the model, and the sampling that every server supports."""

    model: str
    max_reply_tokens: int
    temperature: float | None  # 0 is greedy; None: by the model's name
    top_p: float | None  # None: by the model's name
    context_tokens: int  # longest prompt, estimated
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


def understanding_body(clip: AudioClip, options: RequestOptions) -> dict[str, Any]:
    """Return the JSON object that asks what was understood of a clip. The conversation is not sent again."""
    content = [audio_part(clip, options.audio_style), {"type": "text", "text": INSTRUCTION}]
    return {
        "model": options.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": LINE_TOKENS,
        "temperature": 0,
        "stream": True,
    }


def fit(session: Session, utterance: Utterance, room: int) -> Session:
    """Return the session without the oldest turns if the prompt would have more than `room` tokens (estimated)."""
    windows = math.ceil(utterance.clip.seconds / WINDOW_SECONDS) if utterance.clip else 0
    alone = _tokens(session.instructions) + _tokens(utterance.prompt) + windows * WINDOW_TOKENS
    return session.within(room - alone, _turn_tokens)


def audio_part(clip: AudioClip, style: Literal["object", "string"]) -> dict[str, Any]:
    """Return the part of a message that holds a clip. `style` "string" is the form of Mistral's API."""
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
