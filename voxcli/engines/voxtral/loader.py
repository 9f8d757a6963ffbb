"""Loads a checkpoint from a folder, in a format and with a context that fit the free memory.

The checkpoint is inspected (`checkpoint.files`) and placed (`device.placement`) before transformers loads it;
`layer_loader` loads the layers that are quantized.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from voxcli.engines.voxtral import layer_loader
from voxcli.engines.voxtral.checkpoint import files
from voxcli.engines.voxtral.device import placement
from voxcli.engines.voxtral.device.demand import Demand, demand
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import GB, Hardware
from voxcli.engines.voxtral.device.placement import Placement, Wanted
from voxcli.errors import ConfigError, ModelError
from voxcli.hub.quiet import quiet
from voxcli.printable import first_line

ANNOUNCED_BYTES = GB  # Larger weights are announced in a line.


@dataclass(frozen=True)
class Loaded:
    """A loaded model, its processor and its placement."""

    model: Any
    processor: Any
    where: Placement


def load(
    checkpoint: Path,
    device: str,
    context_tokens: int,
    reply_tokens: int,
    notice: Callable[[str], None],
    look: Callable[[], Hardware] | None = None,
    quantize: Asked = "none",
) -> Loaded:
    """Load a model and its processor, announcing what it needs; shorten the context where memory is short.

    Args:
        look: returns the hardware of this machine.
        quantize: format of the large matrices; auto takes the best that fits. A format that is slow here is allowed.

    Raises:
        ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
        ConfigError: no such device, or one that does not support the format.
    """
    wanted = Wanted(device, quantize, context_tokens, reply_tokens)
    look = look or (lambda: Hardware.look(torch, device))
    found = files.inspect(checkpoint)
    try:
        with quiet():
            config = _config(checkpoint)
        needs, hardware = demand(config, found.parameters), look()
        where = placement.plan(wanted, hardware, needs, strictly=False)
        _announce(where, needs, hardware, wanted, notice)
        with quiet():
            processor = transformers.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
            return Loaded(_load_model(found, where), processor, where)
    except (ModelError, ConfigError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise _ran_out(wanted, needs, look()) from error
        raise ModelError(f"can't load the checkpoint in {checkpoint}: {first_line(error)}", hint=files.PULL) from error


def _announce(
    where: Placement, needs: Demand, hardware: Hardware, wanted: Wanted, notice: Callable[[str], None]
) -> None:
    """Announce the memory that a large model will take, and a context that is shorter than wanted."""
    statement = placement.statement(where, needs, where.context_tokens + wanted.reply_tokens, hardware)
    if needs.parameters * 2 >= ANNOUNCED_BYTES:
        notice(statement)
    if where.context_tokens < wanted.context_tokens:
        notice(
            f"the memory has room for prompts of {where.context_tokens} tokens, not of {wanted.context_tokens}: "
            "old turns are left out sooner"
        )


def _ran_out(wanted: Wanted, needs: Demand, hardware: Hardware) -> ModelError:
    """Return the error for memory that was free before loading and ran out during it."""
    free = (hardware.free_bytes(hardware.best if wanted.device == "auto" else wanted.device) or 0) / GB
    return ModelError(
        f"memory ran out while the model of {needs.parameters / 1e9:.1f} billion parameters was loaded; "
        f"{free:.1f} GB are free now",
        hint="close other programs, or use --engine embedded, which needs less than 1 GB",
    )


def _load_model(found: files.Checkpoint, where: Placement) -> Any:
    if where.form == "none":
        return _from_pretrained(found, where)
    config, count = layer_loader.without_layers(_config(found.folder))
    model = _from_pretrained(found, where, config=config)
    layer_loader.append(model, found.files, count, where.form)
    return model


def _config(checkpoint: Path) -> Any:
    return transformers.VoxtralConfig.from_pretrained(checkpoint, local_files_only=True)


def _from_pretrained(found: files.Checkpoint, where: Placement, **options: Any) -> Any:
    voxtral: Any = transformers.VoxtralForConditionalGeneration  # Types lack output_loading_info.
    # With accelerate, the weights go to the GPU one by one; without it, all of them pass through RAM.
    straight = {"device_map": {"": where.device}} if find_spec("accelerate") else {}
    model, report = voxtral.from_pretrained(
        found.folder,
        **straight,
        **options,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, where.dtype),
        output_loading_info=True,
    )
    unset = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unset:  # transformers filled them with random numbers
        raise files.lacking(found.folder, unset)
    return model.to(where.device).eval()


def out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)  # MPS and the CPU allocator have no exception class of their own
        and any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))
    )
