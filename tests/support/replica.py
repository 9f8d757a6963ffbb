"""Load a checkpoint on the CPU in a process of its own, decode a few tokens, print what it took as JSON.

python -m tests.support.replica FOLDER none|int8|int4          voxcli's loader, in this format
python -m tests.support.replica FOLDER int8|int4 --reference   transformers' loader; restored matrices
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import anonymous_memory
from voxcli.engines.voxtral import loader
from voxcli.engines.voxtral.checkpoint import files
from voxcli.engines.voxtral.device import formats
from voxcli.engines.voxtral.quiet import quiet
from voxcli.engines.voxtral.runtime import int4, quantization
from voxcli.engines.voxtral.runtime.decoder import Decoder, Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel

PROMPT = [1, 3, 300, 400, 500, 600, 700, 800, 900, 1200, 1500, 4]
TOKENS = 8


def reference(folder: Path, form: formats.Format, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return the model, each matrix replaced by what its quantized one stands for."""
    voxtral: Any = transformers.VoxtralForConditionalGeneration
    with quiet():
        model = voxtral.from_pretrained(folder, local_files_only=True, dtype=dtype).eval()
    text = TextModel(model).modules
    with torch.no_grad():
        for layer in text.layers:
            for path in quantization.MATRICES:
                weight = layer.get_submodule(path).weight
                weight.copy_(restored(weight, form))
    return model


def restored(weight: torch.Tensor, form: formats.Format) -> torch.Tensor:
    """Return a weight as it is after rounding to a format."""
    if form == "int4":
        return int4.restored(*int4.rounded(weight))
    rounded = quantization.ByteLinear(weight, "int8")
    return rounded.weight * rounded.scale.float()[:, None]


def main(folder: Path, form: formats.Format, is_reference: bool) -> dict[str, Any]:
    """Return the peak of anonymous memory while loading, the sizes that were promised, tokens and logits."""
    with anonymous_memory.peak() as memory:
        model = reference(folder, form) if is_reference else loaded(folder, form)
    decoder = Decoder(model, capacity=64)
    decoder.prefill(PROMPT)
    started = time.perf_counter()
    tokens = list(decoder.stream(Sampling(TOKENS, frozenset()), threading.Event()))
    seconds = time.perf_counter() - started
    config = transformers.VoxtralConfig.from_pretrained(folder, local_files_only=True)
    parameters = files.inspect(folder).parameters
    return {
        "peak_bytes": memory.grown,
        "stored_bytes": formats.stored_bytes(config, parameters, 2, form),
        "layer_bytes": formats.largest_layer_bytes(config, 2),
        "tokens": tokens,
        "seconds_per_token": seconds / len(tokens),
    }


def loaded(folder: Path, form: formats.Format) -> Any:
    """Return the model as voxcli loads it."""
    return loader.load(folder, "cpu", 2048, 64, lambda _: None, quantize=form).model


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1]), sys.argv[2], "--reference" in sys.argv), sys.stdout)  # type: ignore[arg-type]
