"""A checkpoint's folder to a model in memory: looked at before it is loaded, and fitted to what is free.

Joins `shards` (is the checkpoint whole), `placement` (where it runs, what it needs), transformers, and
`layers`, which quantizes while it loads.
Knows nothing of turns.
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
from voxcli.engines.voxtral.quiet import quiet
from voxcli.errors import ConfigError, ModelError
from voxcli.printable import first_line

SAID_BYTES = GB  # of weights; what smaller models need is not worth a line


@dataclass(frozen=True)
class Loaded:
    """What `load` returns."""

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
    """Load a model and its processor; say what it needs before, and shorten the context where memory is short.

    Args:
        look: says what the machine has.
        quantize: the format of the large matrices; auto takes the best that fits. One that is slow here is taken too.

    Raises:
        ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
        ConfigError: no such device, or one that does not know the format.
    """
    wanted = Wanted(device, quantize, context_tokens, reply_tokens)
    look = look or (lambda: Hardware.look(torch, device))
    found = files.inspect(checkpoint)
    try:
        with quiet():
            config = _config(checkpoint)
        needs, hardware = demand(config, found.parameters), look()
        where = placement.plan(wanted, hardware, needs, strictly=False)
        _say(where, needs, hardware, wanted, notice)
        with quiet():
            processor = transformers.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
            return Loaded(_load_model(found, where), processor, where)
    except (ModelError, ConfigError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise _ran_out(wanted, needs, look()) from error
        raise ModelError(f"can't load the checkpoint in {checkpoint}: {first_line(error)}", hint=files.PULL) from error


def _say(where: Placement, needs: Demand, hardware: Hardware, wanted: Wanted, notice: Callable[[str], None]) -> None:
    """Tell what a model of some size will take, and whether the context is shorter than asked for."""
    said = placement.statement(where, needs, where.context_tokens + wanted.reply_tokens, hardware)
    if needs.parameters * 2 >= SAID_BYTES:
        notice(said)
    if where.context_tokens < wanted.context_tokens:
        notice(
            f"the memory has room for prompts of {where.context_tokens} tokens, not of {wanted.context_tokens}: "
            "old turns leave sooner"
        )


def _ran_out(wanted: Wanted, needs: Demand, hardware: Hardware) -> ModelError:
    """Return the error for memory that was free when it was looked at, and gone when it was needed."""
    free = (hardware.free_bytes(hardware.best if wanted.device == "auto" else wanted.device) or 0) / GB
    return ModelError(
        f"memory ran out while the model of {needs.parameters / 1e9:.1f} billion parameters was loaded; "
        f"{free:.1f} GB are free now",
        hint="stop what else uses the memory, or use --engine embedded, which needs less than 1 GB",
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
    voxtral: Any = transformers.VoxtralForConditionalGeneration  # its types do not know output_loading_info
    # With accelerate the weights go to the GPU one by one; without it all of them pass through RAM.
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
    if unset:  # transformers would fill them with random numbers
        raise files.lacking(found.folder, unset)
    return model.to(where.device).eval()


def out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)  # mps and the CPU allocator have no class of their own
        and any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))
    )
