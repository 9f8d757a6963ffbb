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


@dataclass(frozen=True)
class Demand:
    """What a model has to keep in memory, counted in numbers: how large these are depends on their format."""

    parameters: int
    token_values: int = 0  # of the KV cache, for each token
    work_values: int = 0  # the most that is alive at once while a pass computes
    least_tokens: int = 0  # of prompt and reply: with less there is no conversation

    def bytes(self, dtype: DType, tokens: int) -> int:
        """Return what is needed with a cache for so many tokens."""
        return (self.parameters + tokens * self.token_values + self.work_values) * BYTES[dtype]

    def tokens(self, dtype: DType, free_bytes: int) -> int:
        """Return for how many tokens there is room beside the rest; negative where the rest does not fit."""
        return (free_bytes - self.bytes(dtype, 0)) // max(1, self.token_values * BYTES[dtype])


def demand(config: Any, parameters: int, *, chunk_tokens: int, least_text_tokens: int) -> Demand:
    """Return what a `VoxtralConfig` with so many parameters needs.

    While a pass computes, alive at once are at most: of the text model, a chunk of hidden states, in and
    out, with queries, keys, values, or gate, up and their product, and a layer's matrices while they are
    joined; of the encoder, as much for a window, with the two convolutions before it; logits three times,
    in float32. Twice the sum, for allocators keep more than they give. An estimate, not a measurement.

    Args:
        chunk_tokens: the most that are fed at once.
        least_text_tokens: of the least conversation, beside one window of audio.
    """
    audio, text = config.audio_config, config.text_config
    positions, width = audio.max_source_positions, text.num_key_value_heads * text.head_dim
    heads = text.num_attention_heads * text.head_dim + 2 * width
    chunk = chunk_tokens * (2 * text.hidden_size + max(2 * heads, 3 * text.intermediate_size))
    joined = text.hidden_size * max(heads, 2 * text.intermediate_size)
    window = positions * (5 * audio.hidden_size + max(4 * audio.hidden_size, 2 * audio.intermediate_size))
    logits = 3 * 2 * text.vocab_size
    audio_tokens = positions * audio.hidden_size // audio.intermediate_size
    return Demand(
        parameters,
        cache_bytes_per_token(text, 1),
        2 * (chunk + joined + window + logits),
        audio_tokens + least_text_tokens,
    )


def place(asked: str, hardware: Hardware, needs: Demand | int) -> Placement:
    """Choose for a model with these needs, or of so many parameters.

    Args:
        asked: auto, cuda, mps or cpu; auto takes the first of the three that torch can use.

    Raises:
        ConfigError: no such device.
        ModelError: torch can't use it, or the model does not fit into its memory.
    """
    needs = Demand(needs) if isinstance(needs, int) else needs
    accelerators = {"cuda": hardware.cuda, "mps": hardware.mps}
    if asked == "auto":
        asked = next((name for name, gpu in accelerators.items() if not gpu.problem), "cpu")
    if asked == "cpu":
        return _place_on_cpu(hardware, needs)
    if asked not in accelerators:
        raise ConfigError(f"there is no device {asked!r}", hint="--device auto, cuda, mps or cpu")
    gpu = accelerators[asked]
    if gpu.problem:
        raise ModelError(gpu.problem, hint=gpu.hint)
    if gpu.free_bytes is not None and needs.bytes(gpu.dtype, needs.least_tokens) > gpu.free_bytes:
        hint = what_fits(hardware, needs.parameters, gpu.free_bytes)
        raise too_big(f"the {asked} device", needs, gpu.dtype, gpu.free_bytes, hint)
    return Placement("cuda" if asked == "cuda" else "mps", gpu.dtype)


def _place_on_cpu(hardware: Hardware, needs: Demand) -> Placement:
    """Choose float32, which every CPU is fast with, and bfloat16 where only half the memory is there."""
    free = hardware.ram_free_bytes
    if free is None or needs.bytes("float32", needs.least_tokens) <= free:
        return Placement("cpu", "float32")
    if needs.bytes("bfloat16", needs.least_tokens) <= free:
        return Placement("cpu", "bfloat16")
    hint = what_fits(hardware, needs.parameters, free, on_cpu=True)
    raise too_big("memory", needs, "bfloat16", free, hint)


def fitting_context(where: Placement, needs: Demand, free_bytes: int | None, asked: int, reply_tokens: int) -> int:
    """Return how long prompts may be: as asked, or as long as the free memory has room for, beside the reply."""
    if free_bytes is None:
        return asked
    return min(asked, max(needs.tokens(where.dtype, free_bytes) - reply_tokens, needs.least_tokens))


def statement(where: Placement, needs: Demand, tokens: int, free_bytes: int | None) -> str:
    """Return in words what a model will need with a cache for so many tokens."""
    size = BYTES[where.dtype] / GB
    free = "" if free_bytes is None else f"; {free_bytes / GB:.1f} GB are free"
    return (
        f"loading {needs.parameters * size:.1f} GB of weights, {tokens * needs.token_values * size:.1f} GB of cache "
        f"for {tokens} tokens, and up to {needs.work_values * size:.1f} GB to work with, on {where.device}{free}"
    )


def too_big(where: str, needs: Demand, dtype: DType, free: int, hint: str) -> ModelError:
    """Return the error for a model that does not fit."""
    weights = needs.parameters * BYTES[dtype]
    beside = needs.bytes(dtype, needs.least_tokens) - weights
    rest = f", cache and work at least {beside / GB:.1f} GB" if beside else ""
    return ModelError(
        f"the model does not fit into {where}: its weights need {weights / GB:.1f} GB{rest}, "
        f"{free / GB:.1f} GB are free",
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
