"""Load a checkpoint of full size on the CPU, or compare a reply with transformers: each in a process of its own.

python -m tests.support.replica FOLDER none|int8|int4               load in this format, generate a few tokens
python -m tests.support.replica FOLDER none|int8|int4 TOKEN...      compare these tokens with transformers

Both print one line of JSON. The weights that are not quantized are kept in bfloat16.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import transformers

from benchmarks import anonymous_memory
from benchmarks.checks.reference import Reference
from voxcli.engines.voxtral import loader
from voxcli.engines.voxtral.checkpoint import files
from voxcli.engines.voxtral.device import formats
from voxcli.engines.voxtral.device.hardware import Accelerator, Hardware
from voxcli.engines.voxtral.runtime.decoder import Decoder
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampling
from voxcli.hub.quiet import quiet

PROMPT = [1, 3, 300, 400, 500, 600, 700, 800, 900, 1200, 1500, 4]
TOKENS = 8
RAM_BYTES = 14_000_000_000  # room for Mini in bfloat16 and in nothing larger: float32 would take 20 GB
NO_GPU = Accelerator(problem="there is none", hint="use --device cpu")


def generate(folder: Path, form: formats.Format) -> dict[str, Any]:
    """Load a checkpoint with voxcli and generate tokens; return them, the peak of anonymous memory and the sizes."""
    hardware = Hardware(NO_GPU, NO_GPU, RAM_BYTES)
    with anonymous_memory.peak() as memory:
        model = loader.load(folder, "cpu", 512, TOKENS, lambda _: None, lambda: hardware, form).model
    decoder = Decoder(SharedModel(model), capacity=64)
    decoder.prefill(PROMPT)
    started = time.perf_counter()
    tokens = list(decoder.stream(Sampling(TOKENS, frozenset()), threading.Event()))
    seconds = time.perf_counter() - started
    config = transformers.VoxtralConfig.from_pretrained(folder, local_files_only=True)
    return {
        "peak_bytes": memory.grown,
        "stored_bytes": formats.stored_bytes(config, files.inspect(folder).parameters, model.dtype.itemsize, form),
        "layer_bytes": formats.largest_layer_bytes(config, model.dtype.itemsize),
        "tokens": tokens,
        "seconds_per_token": seconds / len(tokens),
    }


def compare(folder: Path, form: formats.Format, tokens: list[int]) -> dict[str, Any]:
    """Return how far tokens are from the choices of transformers with the same weights, as `Reference.gaps`."""
    with quiet():
        reference = Reference(folder, "cpu", "bfloat16")
    if form != "none":
        reference.quantize(form)
    gaps = reference.gaps(PROMPT, tokens)
    return {"gaps": gaps, "tolerance": reference.tolerance}


def main(folder: str, form: str, *tokens: str) -> None:
    """Print the result for the arguments of the command line."""
    known = cast(formats.Format, form)
    found = compare(Path(folder), known, list(map(int, tokens))) if tokens else generate(Path(folder), known)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
