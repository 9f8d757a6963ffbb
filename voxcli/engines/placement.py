"""Where a model runs, with which number format, and whether it fits there.

`Hardware.look` asks torch once; all that follows from it is plain values, so that every machine can
be thought through without having one. Gigabytes here are 10^9 bytes, as model cards count them.
"""

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Self

from voxcli.errors import ConfigError, ModelError

DType = Literal["bfloat16", "float16", "float32"]
BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
MINI_PARAMETERS = 4_676_000_000  # Voxtral-Mini-3B-2507, the smallest that converses
GB = 1_000_000_000


@dataclass(frozen=True)
class Accelerator:
    """A GPU as torch sees it; `problem` says why torch can't use it, or nothing."""

    problem: str = ""
    hint: str = ""
    dtype: DType = "bfloat16"  # the widest range that it is fast with
    free_bytes: int | None = None


@dataclass(frozen=True)
class Hardware:
    """What this machine has."""

    cuda: Accelerator
    mps: Accelerator
    ram_free_bytes: int | None  # None: this platform does not say

    @classmethod
    def look(cls, torch: ModuleType) -> Self:
        """Ask torch and the operating system."""
        return cls(_cuda(torch), _mps(torch), ram_free_bytes())


@dataclass(frozen=True)
class Placement:
    """The choice: a device of torch and a number format."""

    device: Literal["cuda", "mps", "cpu"]
    dtype: DType


def place(asked: str, hardware: Hardware, parameters: int) -> Placement:
    """Choose for a model of so many parameters.

    Args:
        asked: auto, cuda, mps or cpu; auto takes the first of the three that torch can use.

    Raises:
        ConfigError: no such device.
        ModelError: torch can't use it, or the weights do not fit into its memory.
    """
    accelerators = {"cuda": hardware.cuda, "mps": hardware.mps}
    if asked == "auto":
        asked = next((name for name, gpu in accelerators.items() if not gpu.problem), "cpu")
    if asked == "cpu":
        return _place_on_cpu(hardware, parameters)
    if asked not in accelerators:
        raise ConfigError(f"there is no device {asked!r}", hint="--device auto, cuda, mps or cpu")
    gpu = accelerators[asked]
    if gpu.problem:
        raise ModelError(gpu.problem, hint=gpu.hint)
    needed = parameters * BYTES[gpu.dtype]
    if gpu.free_bytes is not None and needed > gpu.free_bytes:
        raise too_big(f"the {asked} device", needed, gpu.free_bytes, what_fits(hardware, parameters, gpu.free_bytes))
    return Placement("cuda" if asked == "cuda" else "mps", gpu.dtype)


def _place_on_cpu(hardware: Hardware, parameters: int) -> Placement:
    """Choose float32, which every CPU is fast with, and bfloat16 where only half the memory is there."""
    free = hardware.ram_free_bytes
    if free is None or parameters * BYTES["float32"] <= free:
        return Placement("cpu", "float32")
    if parameters * BYTES["bfloat16"] <= free:
        return Placement("cpu", "bfloat16")
    raise too_big("memory", parameters * BYTES["bfloat16"], free, what_fits(hardware, parameters, free, on_cpu=True))


def too_big(where: str, needed: int, free: int, hint: str) -> ModelError:
    """Return the error for weights that do not fit."""
    return ModelError(
        f"the model does not fit into {where}: its weights need {needed / GB:.1f} GB, {free / GB:.1f} GB are free",
        hint=hint,
    )


def what_fits(hardware: Hardware, parameters: int, free_bytes: int, *, on_cpu: bool = False) -> str:
    """Return what a user can do whose model does not fit into `free_bytes`."""
    mini, ram = MINI_PARAMETERS * BYTES["bfloat16"], hardware.ram_free_bytes or 0
    needed = parameters * BYTES["bfloat16"]
    if needed > mini and mini <= free_bytes:
        return f"--model mini fits: it needs {mini / GB:.1f} GB"
    if not on_cpu and needed <= ram:
        return f"--device cpu fits, slowly: it needs {needed / GB:.1f} GB of the {ram / GB:.1f} GB of RAM that are free"
    return "free some memory, or use --engine embedded, which needs less than 1 GB"


def cache_bytes_per_token(text_config: Any, bytes_per_value: int) -> int:
    """Return how much the KV cache grows with each token: a key and a value in each layer."""
    width = text_config.num_key_value_heads * text_config.head_dim
    return int(2 * text_config.num_hidden_layers * width * bytes_per_value)


def ram_free_bytes() -> int | None:
    """Return how much memory can be had without swapping; None where it can't be asked for."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - not a file, a question
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cuda(torch: ModuleType) -> Accelerator:
    install = "install a build of torch for this GPU (pytorch.org/get-started), or use --device cpu"
    if not torch.backends.cuda.is_built() and torch.version.hip is None:
        return Accelerator(f"torch {torch.__version__} is built without CUDA", install)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no driver, or one that is too old
        reason = str(error).split(". ")[0].split("\n")[0]
        return Accelerator(f"torch can't use a CUDA device: {reason}", "update the NVIDIA driver, or use --device cpu")
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and not runs_on(capability, torch.cuda.get_arch_list()):
        name = f"{torch.cuda.get_device_name()} (compute capability {capability[0]}.{capability[1]})"
        return Accelerator(f"torch {torch.__version__} is not built for the {name}", install)
    dtype: DType = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Accelerator(dtype=dtype, free_bytes=torch.cuda.mem_get_info()[0])


def runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Return whether a build of torch has code for a GPU.

    Code for sm_XY runs on X.Y and later ones with the same X; compute_XY is compiled for any later one.
    """
    for name in built_for:
        kind, _, version = name.partition("_")
        digits = "".join(letter for letter in version if letter.isdigit())  # sm_90a is of 9.0
        if not digits:
            continue
        target = int(digits[:-1]), int(digits[-1])
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def _mps(torch: ModuleType) -> Accelerator:
    if not torch.backends.mps.is_available():
        why = "this macOS or this Mac is too old" if torch.backends.mps.is_built() else "this is not Apple silicon"
        return Accelerator(f"torch can't use an MPS device: {why}", "use --device auto")
    try:
        torch.zeros(1, dtype=torch.bfloat16, device="mps")
    except (TypeError, RuntimeError):  # before macOS 14
        return Accelerator(dtype="float16", free_bytes=torch.mps.recommended_max_memory())
    return Accelerator(free_bytes=torch.mps.recommended_max_memory())
