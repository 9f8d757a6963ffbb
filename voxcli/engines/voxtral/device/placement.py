"""Chooses the device, the number format and the length of the context of a model that has to fit into memory.

The order of preference on a device:

1. The best format that fits with the wanted context: none (bfloat16; on a CPU, float32 first), int8, int4.
2. The smallest of these formats with a shorter context, at least one window of audio and 512 tokens of text.
3. Formats without fast kernels on the device, in the same two steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from voxcli.engines.voxtral.checkpoint.shapes import MINI_PARAMETERS, PUBLISHED
from voxcli.engines.voxtral.device.demand import BYTES, CUDA_BYTES, Demand, Use, demand_of
from voxcli.engines.voxtral.device.formats import Asked, Format
from voxcli.engines.voxtral.device.hardware import GB, Accelerator, DType, Hardware, cuda_index
from voxcli.errors import ConfigError, ModelError

DEVICES = "--device takes auto, cuda, cuda:N, mps or cpu"
QUANTIZED: tuple[Format, ...] = ("int8", "int4")  # formats of `--quantize auto`, the better one first


@dataclass(frozen=True)
class Wanted:
    """The user's settings that decide the placement."""

    device: str = "auto"  # auto, cuda, cuda:N, mps or cpu
    quantize: Asked = "auto"
    context_tokens: int = 0  # longest prompt
    reply_tokens: int = 0  # tokens in the cache after the prompt: a reply, and an aside


@dataclass(frozen=True)
class Placement:
    """The chosen device of torch, number format and length of prompts."""

    device: str  # cuda:N, mps or cpu
    dtype: DType
    form: Format = "none"
    context_tokens: int = 0

    @property
    def format_name(self) -> str:
        """The format of the weights in words."""
        return self.dtype if self.form == "none" else self.form


@dataclass(frozen=True)
class _Site:
    """A device that torch can use, and how a model runs on it."""

    device: str
    words: str  # for messages
    free_bytes: int | None
    dtypes: tuple[DType, ...]  # unquantized, the better one first
    masked: bool
    fixed_bytes: int
    slow_forms: frozenset[Format] = frozenset()  # formats that make decoding slower here
    why_slow: str = ""

    def use(self, form: Format, dtype: DType | None = None) -> Use:
        return Use(dtype or self.dtypes[-1], form, self.masked, self.fixed_bytes)


def plan(wanted: Wanted, hardware: Hardware, needs: Demand, *, strictly: bool = True) -> Placement:
    """Choose device, format and context for a model.

    Args:
        strictly: refuse a format that makes decoding slower here, unless nothing else fits.

    Raises:
        ConfigError: no such device, or a format that is unsupported or slower there.
        ModelError: torch can't use the device, or the model does not fit into its memory.
    """
    site = _site(wanted.device, hardware)
    if strictly:
        _check_format(wanted, site, hardware, needs)
    least = needs.least_tokens + wanted.reply_tokens
    steps = list(_preferences(wanted.quantize, site))
    for uses in steps:
        for use in uses:
            if _fits(needs, use, site, wanted.context_tokens + wanted.reply_tokens):
                return Placement(site.device, use.dtype, use.form, wanted.context_tokens)
        tokens = needs.tokens(uses[-1], site.free_bytes or 0)
        if tokens >= least:
            return Placement(site.device, uses[-1].dtype, uses[-1].form, tokens - wanted.reply_tokens)
    hint = what_fits(wanted, hardware, needs)
    raise too_big(site.words, needs, steps[-1][-1], site.free_bytes or 0, hint)


def check_device(device: str, hardware: Hardware) -> None:
    """Raise ConfigError for an unknown device, and ModelError for one that torch can't use."""
    _site(device, hardware)


def place(device: str, hardware: Hardware, parameters: int) -> Placement:
    """Return the placement of unquantized weights alone, for measurements.

    Raises:
        ConfigError: no such device.
        ModelError: torch can't use it, or the weights do not fit into its memory.
    """
    site = _site(device, hardware)
    for dtype in site.dtypes:
        need = parameters * BYTES[dtype]
        if site.free_bytes is None or need <= site.free_bytes:
            return Placement(site.device, dtype)
    raise ModelError(
        f"the model does not fit into {site.words}: its weights need {need / GB:.1f} GB, "
        f"{(site.free_bytes or 0) / GB:.1f} GB are free",
        hint="free some memory, or measure a smaller model",
    )


def statement(where: Placement, needs: Demand, tokens: int, hardware: Hardware) -> str:
    """Return a sentence about the memory of a model with a cache for `tokens`."""
    site = _site(where.device, hardware)
    use = site.use(where.form, where.dtype)
    weights, cache, work = needs.weights(use), needs.cache(use, tokens), needs.work(use)
    free = "" if site.free_bytes is None else f"; {site.free_bytes / GB:.1f} GB are free"
    return (
        f"loading {weights / GB:.1f} GB of weights in {where.format_name}, {cache / GB:.1f} GB of cache for {tokens} "
        f"tokens, and up to {work / GB:.1f} GB to work with, on {where.device}{free}"
    )


def needed_bytes(where: Placement, needs: Demand, hardware: Hardware, reply_tokens: int) -> int:
    """Return the bytes that a placed model needs."""
    use = _site(where.device, hardware).use(where.form, where.dtype)
    return needs.bytes(use, where.context_tokens + reply_tokens)


def too_big(where: str, needs: Demand, use: Use, free: int, hint: str) -> ModelError:
    """Return the error for a model that does not fit."""
    weights = needs.weights(use)
    beside = needs.bytes(use, needs.least_tokens) - weights
    form = use.dtype if use.form == "none" else use.form
    rest = f", cache and work at least {beside / GB:.1f} GB" if beside else ""
    return ModelError(
        f"the model does not fit into {where}: its weights need {weights / GB:.1f} GB in {form}{rest}, "
        f"{free / GB:.1f} GB are free",
        hint=hint,
    )


def what_fits(wanted: Wanted, hardware: Hardware, needs: Demand) -> str:
    """Return a hint for a model that does not fit."""
    if wanted.quantize != "auto" and (other := _fitting(wanted.device, hardware, needs)):
        return f"--quantize auto fits: it takes {other.format_name}"
    site, mini = _site(wanted.device, hardware), demand_of(PUBLISHED["mini"])
    if needs.parameters > MINI_PARAMETERS and (other := _fitting(wanted.device, hardware, mini)):
        return f"--model mini fits, in {other.format_name}"
    whole = needs.bytes(site.use("int4", site.dtypes[-1]), needs.least_tokens)
    others = [gpu for gpu in hardware.gpus if site.device.startswith("cuda") and f"cuda:{gpu.index}" != site.device]
    if roomier := [gpu for gpu in others if not gpu.problem and (gpu.free_bytes or 0) >= whole]:
        return f"--device cuda:{roomier[0].index} has more room: {_listed(hardware)}"
    if others and sum(gpu.free_bytes or 0 for gpu in hardware.gpus) >= whole:
        count = len(hardware.gpus)
        return (
            f"voxcli uses one GPU; serve the model over all of them: vllm serve --tensor-parallel-size {count} ..., "
            "then --engine remote --url http://localhost:8000/v1"
        )
    if site.device != "cpu" and (other := _fitting("cpu", hardware, needs)):
        need = needed_bytes(other, needs, hardware, 0)
        ram = (hardware.ram_free_bytes or 0) / GB
        return f"--device cpu fits, slowly: it needs {need / GB:.1f} GB of the {ram:.1f} GB of RAM that are free"
    return "free some memory, or use --engine embedded, which needs less than 1 GB"


def _fitting(device: str, hardware: Hardware, needs: Demand) -> Placement | None:
    """Return the placement of a model with the shortest context; None if it does not fit or this is unknown."""
    site = _site(device, hardware)
    uses = chain.from_iterable(_preferences("auto", site))
    fits = (use for use in uses if site.free_bytes is not None and _fits(needs, use, site, needs.least_tokens))
    use = next(fits, None)
    return Placement(site.device, use.dtype, use.form, needs.least_tokens) if use else None


def _fits(needs: Demand, use: Use, site: _Site, tokens: int) -> bool:
    return site.free_bytes is None or needs.bytes(use, tokens) <= site.free_bytes


def _preferences(asked: Asked, site: _Site) -> Iterator[Sequence[Use]]:
    """Yield groups of ways to run a model, the best first; the last of each group may get a shorter context."""
    plain = [site.use("none", dtype) for dtype in site.dtypes]
    fast = [site.use(form) for form in QUANTIZED if form not in site.slow_forms]
    slow = [site.use(form) for form in QUANTIZED if form in site.slow_forms]
    if asked == "none":
        yield plain
    elif asked != "auto":
        yield [site.use(asked)]
    else:
        yield [*plain, *fast]
        if slow:
            yield slow


def _check_format(wanted: Wanted, site: _Site, hardware: Hardware, needs: Demand) -> None:
    """Raise ConfigError for a format that is unsupported or slower on a device."""
    form = wanted.quantize
    if form == "fp8" and (why := _why_not_fp8(site, hardware)):
        raise ConfigError(
            f"--quantize fp8 can't be had here: {why}", hint="--quantize auto takes what fits and is fast"
        )
    if form not in site.slow_forms:
        return
    unquantized = site.use("none")
    if site.free_bytes is None or needs.bytes(unquantized, needs.least_tokens) <= site.free_bytes:
        raise ConfigError(
            f"--quantize {form} makes replies slower here: {site.why_slow}",
            hint=f"leave it out: the model fits in {unquantized.dtype}",
        )


def _why_not_fp8(site: _Site, hardware: Hardware) -> str:
    index = cuda_index(site.device)
    gpu = next((gpu for gpu in hardware.gpus if gpu.index == index), None)
    if gpu is None:
        return "it needs an NVIDIA GPU"
    if not gpu.has_fp8:
        return f"{gpu.name or 'this GPU'} is older than compute capability 8.9"
    return "" if hardware.has_triton else "triton is not installed"


# --- Devices -----------------------------------------------------------------------------------


def _site(device: str, hardware: Hardware) -> _Site:
    """Return the device of a name. Raises ConfigError and ModelError as `plan`."""
    kind = hardware.best if device == "auto" else device
    if kind == "cpu":
        return _Site("cpu", "memory", hardware.ram_free_bytes, ("float32", "bfloat16"), False, 0)
    gpu = hardware.mps if kind == "mps" else _gpu(kind, hardware)
    if gpu.problem:
        raise ModelError(gpu.problem, hint=gpu.hint)
    if kind == "mps":
        slow = "there is no compiler for Apple's GPUs here, so each matrix is converted before each product"
        return _Site("mps", "the Apple GPU", gpu.free_bytes, (gpu.dtype,), True, 0, frozenset(QUANTIZED), slow)
    name = f"cuda:{gpu.index}"
    words = f"{name} ({gpu.name})" if gpu.name else name
    site = _Site(name, words, gpu.free_bytes, (gpu.dtype,), not gpu.has_flash, CUDA_BYTES)
    if hardware.has_triton:
        return site
    # torch itself has kernels for int4 from Ampere on, as it has for FlashAttention.
    forms: tuple[Format, ...] = ("int8",) if gpu.has_flash else QUANTIZED
    slow = "triton is not installed, so each matrix is converted before each product"
    return replace(site, slow_forms=frozenset(forms), why_slow=slow)


def _gpu(device: str, hardware: Hardware) -> Accelerator:
    """Return the GPU of `cuda` or `cuda:N`."""
    index = cuda_index(device)
    if device != "cuda" and index is None:
        raise ConfigError(f"there is no device {device!r}", hint=DEVICES)
    if index is None or not hardware.gpus:
        return hardware.cuda
    found = next((gpu for gpu in hardware.gpus if gpu.index == index), None)
    if found is None:
        raise ConfigError(f"there is no GPU {device}", hint=f"there is {_listed(hardware)}")
    return found


def _listed(hardware: Hardware) -> str:
    """Return a list of the CUDA devices in words."""
    return ", ".join(
        f"cuda:{gpu.index}"
        + (f" {gpu.name}" if gpu.name else "")
        + ("" if gpu.free_bytes is None else f" ({gpu.free_bytes / GB:.1f} GB free)")
        for gpu in hardware.gpus
    )
