"""What transformers computes with the same weights, to hold voxcli's replies against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.checks.lab import text_of
from voxcli.audio.clip import AudioClip
from voxcli.core.session import Session
from voxcli.core.turn import Utterance
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
    """How a reply stands to what the reference would choose at each of its places."""

    tokens: int
    equal: int  # how many are the reference's own choice
    worst: float  # how far a chosen logit is below the highest, in standard deviations of all logits
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        return f"{self.equal} of {self.tokens} equal, worst gap {self.worst:.4f}"


class Reference:
    """A model that transformers runs, whole sequences at once."""

    def __init__(self, checkpoint: Path, device: str, dtype: DType) -> None:
        classes: Any = transformers
        load = classes.VoxtralForConditionalGeneration.from_pretrained
        self.model = load(checkpoint, local_files_only=True, dtype=getattr(torch, dtype)).to(device).eval()
        processor = classes.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
        self._writer = PromptWriter(wrap(processor.tokenizer))
        self._front_end = FrontEnd(processor.feature_extractor, self.model.config.audio_config, device)

    @torch.no_grad()
    def quantize(self, form: Format) -> None:
        """Replace the large matrices of the text layers by what their values are in a format."""
        for layer in self.model.model.language_model.layers:
            for part in (layer.self_attn, layer.mlp):
                for linear in part.children():
                    if isinstance(linear, torch.nn.Linear):
                        linear.weight.copy_(dequantized(linear.weight, form))

    def agreement(self, clips: Sequence[AudioClip], replies: Sequence[Sequence[int]]) -> Agreement:
        """Compare the replies of a conversation, a turn for each clip."""
        session, gaps = Session(), []
        for spoken, reply in zip(clips, replies, strict=True):
            gaps += self._gaps(session, spoken, reply)
            session = session.add(Utterance(spoken).answered(text_of(reply)))
        tolerance = TOLERANCES[self.model.dtype]
        return Agreement(len(gaps), sum(gap == 0 for gap in gaps), max(gaps, default=0.0), tolerance)

    @torch.inference_mode()
    def _gaps(self, session: Session, spoken: AudioClip, reply: Sequence[int]) -> list[float]:
        """Return how far each token's logit is below the highest, in standard deviations."""
        prompt = self._writer.write(session, Utterance(spoken), self._front_end.tokens(spoken))
        features = self._front_end.features(spoken).to(self.model.device, self.model.dtype)
        ids = torch.tensor([[*prompt, *reply[:-1]]], device=self.model.device)
        logits = self.model(input_ids=ids, input_features=features).logits[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(reply, device=logits.device)[:, None])[:, 0]
        gaps: list[float] = ((logits.amax(1) - chosen) / logits.std(1)).tolist()
        return gaps


def dequantized(weight: torch.Tensor, form: Format) -> torch.Tensor:
    """Return a weight, (out, in), as it is after it was quantized; rows are independent of one another."""
    if form == "int4":
        return int4.restored(*int4.rounded(weight))
    scale = weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST_INT8
    return ((weight.float() / scale).round() * scale.to(weight.dtype).float()).to(weight.dtype)
