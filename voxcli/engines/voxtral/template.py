"""Writes prompts with the checkpoint's own processor, as a reference and as a fallback.

`PromptWriter` writes the same ids faster. `difference` compares them once, at load. If they differ,
`TemplatePrompt` writes every prompt of the engine through `apply_chat_template`, which takes 0.06 to 0.1 s for a
clip and is as safe against text that names control tokens. It writes no tools: `VoxtralProcessor` drops them.
"""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from voxcli.audio.clip import AudioClip
from voxcli.audio.wav import encode_wav
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session, Turn, audio_placeholder
from voxcli.engines.voxtral.mel import FrontEnd
from voxcli.engines.voxtral.prompt import Message, PromptWriter, conversation
from voxcli.engines.voxtral.quiet import quiet
from voxcli.engines.voxtral.tokenizer import Tokenizer, disarmed
from voxcli.errors import ModelError


class TemplatePrompt:
    """Writes prompts with `VoxtralProcessor.apply_chat_template`."""

    def __init__(self, processor: Any, tokenizer: Tokenizer, front_end: FrontEnd) -> None:
        self._processor = processor
        self._tokenizer = tokenizer
        self._control_ids = frozenset(tokenizer.controls.values())
        self._front_end = front_end

    def write(self, session: Session, utterance: Utterance) -> tuple[list[int], torch.Tensor | None]:
        """Return the ids of the whole prompt, and the features of the clip.

        Raises:
            ModelError: text became a control token, or the template failed.
        """
        messages = conversation(session, utterance)
        ids, features = self._apply(messages, utterance.clip, lambda text: disarmed(self._tokenizer, text))
        harmless, _ = self._apply(messages, utterance.clip, lambda _: "x")
        if self._controls(ids) != self._controls(harmless):
            raise ModelError(
                "the checkpoint's chat template turns ordinary text into control tokens",
                hint="fetch the checkpoint again: voxcli models pull mini",
            )
        return ids, features

    def reference(self, session: Session, utterance: Utterance) -> tuple[list[int], torch.Tensor | None]:
        """Return the processor's prompt for text that is known to be harmless."""
        return self._apply(conversation(session, utterance), utterance.clip, str)

    def _apply(
        self, messages: list[Message], clip: AudioClip | None, text: Callable[[str], str]
    ) -> tuple[list[int], torch.Tensor | None]:
        options = {"audio_kwargs": self._front_end.processor_options}
        try:
            chat = [_as_chat(message, clip, text) for message in messages]
            output = self._processor.apply_chat_template(chat, processor_kwargs=options)
        except Exception as error:  # a template is a program and may fail in any way
            raise ModelError(f"the checkpoint's chat template failed: {str(error)[:200]}") from error
        return output["input_ids"][0].tolist(), output.get("input_features")

    def _controls(self, ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._control_ids]


def own_layout(
    processor: Any, tokenizer: Tokenizer, audio_config: Any, writer: PromptWriter, notice: Callable[[str], None]
) -> TemplatePrompt | None:
    """Return a writer of prompts for a checkpoint whose own layout differs; None where `PromptWriter` is right."""
    front_end = FrontEnd(processor.feature_extractor, audio_config)  # Runs on the CPU, like the processor's.
    template = TemplatePrompt(processor, tokenizer, front_end)
    try:
        with quiet():
            found = difference(writer, template, front_end)
    except ModelError as error:
        notice(f"the layout of prompts could not be checked: {error.message}")
        return None
    if not found:
        return None
    notice(f"{found} differ from the checkpoint's own layout of prompts, which is used from now on and is slower")
    return template


def difference(writer: PromptWriter, template: TemplatePrompt, front_end: FrontEnd) -> str:
    """Compare both ways of writing on two short prompts; return what differs, or an empty string."""
    tone = np.sin(np.arange(front_end.sample_rate // 5)) / 4
    clip = AudioClip(tone.astype(np.float32), front_end.sample_rate)
    instructions = "Answer in one sentence."
    placeholder = audio_placeholder(len(clip.samples), clip.sample_rate)
    spoken = Session(instructions=instructions), Utterance(clip, "What is this?")
    turns = (Turn(placeholder, "A tone."), Turn(placeholder, "It is", interrupted=True))
    typed = Session(instructions=instructions, turns=turns), Utterance(None, "Go on, please.")
    for name, (session, utterance) in {"a first turn": spoken, "a typed third turn": typed}.items():
        ids, features = template.reference(session, utterance)
        if ids != writer.write(session, utterance, front_end.tokens(clip) if utterance.clip else 0):
            return f"the ids of {name}"
        if features is not None and not torch.equal(features, front_end.features(clip)):
            return f"the features of {name}"
    return ""


def _as_chat(message: Message, clip: AudioClip | None, text: Callable[[str], str]) -> dict[str, Any]:
    """Return the message in the format of transformers' chat templates."""
    if message.role == "assistant" or clip is None or None not in message.parts:
        return {"role": message.role, "content": "".join(text(part) for part in message.parts if part is not None)}
    sound = base64.b64encode(encode_wav(clip, "float32")).decode("ascii")  # the processor does not accept arrays
    content = [
        {"type": "audio", "base64": sound} if part is None else {"type": "text", "text": text(part)}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}
