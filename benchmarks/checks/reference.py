"""The forward pass of transformers with the same weights, to compare voxcli's replies with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
import transformers

from benchmarks.checks.lab import text_of
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.device.hardware import DType
from voxcli.engines.voxtral.mel import FrontEnd
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.runtime import int4
from voxcli.engines.voxtral.tokenizer import wrap

# In standard deviations of the logits. Rounding in bfloat16 (8 bits) grows to a few percent over 30 layers.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}

LARGEST_INT8 = 127


@dataclass(frozen=True)
class Agreement:
    """Tokens of replies compared with the reference's choices for the same prompts."""

    tokens: int
    equal: int  # tokens that the reference chooses too
    worst: float  # largest distance of a token's logit from the highest one, in standard deviations of all logits
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        return f"{self.equal} of {self.tokens} equal, worst gap {self.worst:.4f}"


class ScaledLinear(torch.nn.Module):
    """A linear map without a bias, its weight as int8 codes in the model's number format and one scale a row."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        """Quantize a weight, (out, in)."""
        super().__init__()
        scale = weight.abs().amax(1).float().clamp(min=1e-12) / LARGEST_INT8
        self.register_buffer("codes", (weight.float() / scale[:, None]).round().to(weight.dtype))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (..., out), of inputs, (..., in)."""
        return F.linear(inputs, self.codes) * self.scale


class Reference:
    """A model run by transformers, whole sequences at once."""

    def __init__(self, checkpoint: Path, device: str, dtype: DType) -> None:
        classes: Any = transformers
        load = classes.VoxtralForConditionalGeneration.from_pretrained
        self.model = load(checkpoint, local_files_only=True, dtype=getattr(torch, dtype)).to(device).eval()
        processor = classes.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
        self._writer = PromptWriter(wrap(processor.tokenizer))
        self._front_end = FrontEnd(processor.feature_extractor, self.model.config.audio_config, device)
        self.tolerance = TOLERANCES[self.model.dtype]  # largest gap that rounding explains

    @torch.no_grad()
    def quantize(self, form: Format) -> None:
        """Quantize the large matrices of the text layers to int8 or int4; they compute in the model's number format."""
        for layer in self.model.model.language_model.layers:
            for part in (layer.self_attn, layer.mlp):
                linears = {name: each for name, each in part.named_children() if isinstance(each, torch.nn.Linear)}
                for name, linear in linears.items():
                    if form == "int4":
                        linear.weight.copy_(int4.restored(*int4.rounded(linear.weight)))
                    else:
                        setattr(part, name, ScaledLinear(linear.weight))

    def agreement(self, clips: Sequence[AudioClip], replies: Sequence[Sequence[int]]) -> Agreement:
        """Compare the replies of a conversation of one turn per clip."""
        session, gaps = Session(), []
        for spoken, reply in zip(clips, replies, strict=True):
            prompt = self._writer.write(session, Utterance(spoken), self._front_end.tokens(spoken))
            gaps += self.gaps(prompt, reply, self._front_end.features(spoken))
            session = session.add(Utterance(spoken).answered(text_of(reply)))
        return Agreement(len(gaps), sum(gap == 0 for gap in gaps), max(gaps, default=0.0), self.tolerance)

    @torch.inference_mode()
    def gaps(self, prompt: Sequence[int], reply: Sequence[int], features: torch.Tensor | None = None) -> list[float]:
        """Return how far the logit of each token of a reply is below the highest one, in standard deviations.

        Args:
            features: mel spectrograms of the clip in the prompt, (windows, mels, frames); None without a clip.
        """
        if features is not None:
            features = features.to(self.model.device, self.model.dtype)
        ids = torch.tensor([[*prompt, *reply[:-1]]], device=self.model.device)
        logits = self.model(input_ids=ids, input_features=features).logits[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(reply, device=logits.device)[:, None])[:, 0]
        gaps: list[float] = ((logits.amax(1) - chosen) / logits.std(1)).tolist()
        return gaps
