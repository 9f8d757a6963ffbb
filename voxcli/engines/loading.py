"""A checkpoint's folder to a model in memory: looked at before it is loaded, and fitted to what is free.

Joins `shards` (is the checkpoint whole), `placement` (where it runs, what it needs) and transformers.
Knows nothing of turns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from voxcli.engines import placement, shards
from voxcli.engines.inputs import CHUNK_TOKENS
from voxcli.engines.quiet import quiet
from voxcli.errors import ConfigError, ModelError

LEAST_TEXT_TOKENS = 512  # of instructions, a few turns and a reply: as `session.context_tokens` has at least
SAID_BYTES = placement.GB  # of weights; what smaller models need is not worth a line


@dataclass(frozen=True)
class Loaded:
    """What `load` returns."""

    model: Any
    processor: Any
    context_tokens: int


def load(
    checkpoint: Path,
    device: str,
    context_tokens: int,
    reply_tokens: int,
    notice: Callable[[str], None],
    look: Callable[[], placement.Hardware] = lambda: placement.Hardware.look(torch),
) -> Loaded:
    """Load a model and its processor; say what it needs before, and shorten the context where memory is short.

    Args:
        look: says what the machine has.

    Raises:
        ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
        ConfigError: no such device.
    """
    found = shards.inspect(checkpoint)
    try:
        with quiet():
            config = transformers.VoxtralConfig.from_pretrained(checkpoint, local_files_only=True)
        needs = placement.demand(
            config, found.parameters, chunk_tokens=CHUNK_TOKENS, least_text_tokens=LEAST_TEXT_TOKENS
        )
        hardware = look()
        where = placement.place(device, hardware, needs)
        free = known_free_bytes(where.device, hardware)
        fits = placement.fitting_context(where, needs, free, context_tokens, reply_tokens)
        if found.parameters * placement.BYTES[where.dtype] >= SAID_BYTES:
            notice(placement.statement(where, needs, fits + reply_tokens, free))
        if fits < context_tokens:
            notice(f"the memory has room for prompts of {fits} tokens, not of {context_tokens}: old turns leave sooner")
        with quiet():
            processor = transformers.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
            return Loaded(_load_model(checkpoint, where), processor, fits)
    except (ModelError, ConfigError):
        raise
    except Exception as error:
        if out_of_memory(error):
            hardware = look()
            left = free_bytes(where.device, hardware)
            hint = placement.what_fits(hardware, found.parameters, left, on_cpu=where.device == "cpu")
            raise placement.too_big(f"the {where.device} device", needs, where.dtype, left, hint) from error
        raise ModelError(f"can't load the checkpoint in {checkpoint}: {first_line(error)}", hint=shards.PULL) from error


def _load_model(checkpoint: Path, where: placement.Placement) -> Any:
    voxtral: Any = transformers.VoxtralForConditionalGeneration  # its types do not know output_loading_info
    # With accelerate the weights go to the GPU one by one; without it all of them pass through RAM.
    straight = {"device_map": {"": where.device}} if find_spec("accelerate") else {}
    model, report = voxtral.from_pretrained(
        checkpoint,
        **straight,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, where.dtype),
        output_loading_info=True,
    )
    unset = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unset:  # transformers would fill them with random numbers
        raise ModelError(
            f"the checkpoint in {checkpoint} lacks {len(unset)} weights, such as {unset[0]}", hint=shards.PULL
        )
    return model.to(where.device).eval()


def out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)  # mps and the CPU allocator have no class of their own
        and any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))
    )


def free_bytes(device: str, hardware: placement.Hardware) -> int:
    """Return the free memory of a device, 0 where it is not known."""
    return known_free_bytes(device, hardware) or 0


def known_free_bytes(device: str, hardware: placement.Hardware) -> int | None:
    """Return the free memory of a device; None where it is not known."""
    return {
        "cuda": hardware.cuda.free_bytes,
        "mps": hardware.mps.free_bytes,
        "cpu": hardware.ram_free_bytes,
    }[device]


def first_line(error: Exception) -> str:
    """Return what an error says, shortened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
