"""Describes this machine: its GPUs as torch sees them, and the free memory.

`Hardware.look` queries torch and the operating system once and returns plain values, so that tests can make up
any machine. Importing this module does not import torch.
"""

import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, Self

from voxcli.engines.voxtral.device.ram import ram_free_bytes
from voxcli.errors import ModelError
from voxcli.printable import first_line

DType = Literal["bfloat16", "float16", "float32"]
GB = 1_000_000_000  # Model cards count so.

FLASH_CAPABILITY = (8, 0)  # Ampere; FlashAttention has no kernels for older GPUs
FP8_CAPABILITY = (8, 9)  # Ada; triton refuses fp8e4nv on older GPUs (pytorch#184081)
MPS_TORCH = (2, 12)  # older releases: aborts, a missing index_copy_, wrong attention (pytorch#149132, #154326, #174861)
INSTALL_TORCH = "install a build of torch for this GPU (pytorch.org/get-started), or use --device cpu"
REINSTALL_TORCH = "pip install --force-reinstall torch, or use --engine embedded"
# NVIDIA's tool is queried because a query through torch takes some 300 MB on each GPU.
SMI = ("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
SMI_SECONDS = 5.0

Query = Callable[[], str]


@dataclass(frozen=True)
class Accelerator:
    """A GPU as torch sees it; `problem` is the reason if torch can't use it, else empty."""

    problem: str = ""
    hint: str = ""
    dtype: DType = "bfloat16"  # the fast format with the widest range
    free_bytes: int | None = None
    total_bytes: int | None = None
    name: str = ""
    index: int = 0  # N of cuda:N
    capability: tuple[int, int] | None = None  # compute capability of an NVIDIA GPU

    @property
    def has_flash(self) -> bool:
        """Whether FlashAttention supports the GPU, so that attention copies no keys and values."""
        return self.capability is not None and self.capability >= FLASH_CAPABILITY

    @property
    def has_fp8(self) -> bool:
        """Whether triton compiles fp8 for the GPU."""
        return self.capability is not None and self.capability >= FP8_CAPABILITY


@dataclass(frozen=True)
class Hardware:
    """The GPUs and the free memory of a machine."""

    cuda: Accelerator  # the device `cuda`: the GPU with the most free memory, if that is known
    mps: Accelerator
    ram_free_bytes: int | None  # None: unknown
    other_gpus: tuple[Accelerator, ...] = ()  # CUDA devices beside `cuda`
    has_triton: bool = True  # Triton's kernels make quantized weights fast.
    torch_version: str = ""

    @classmethod
    def look(cls, torch: ModuleType, device: str = "auto", query: Query | None = None) -> Self:
        """Query torch and the operating system.

        Args:
            device: the device that will be used, as in `--device`; nothing is allocated on other GPUs.
            query: returns a line `UUID, free MiB` for each GPU; None for nvidia-smi.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `problem` has the reason for a warning
            gpus = _cuda(torch, device, query or nvidia_smi)
            mps = _mps(torch)
        has_triton = find_spec("triton") is not None
        return cls(gpus[0], mps, ram_free_bytes(), gpus[1:], has_triton, str(torch.__version__))

    @property
    def gpus(self) -> tuple[Accelerator, ...]:
        """All CUDA devices that torch finds, by index."""
        found = (self.cuda, *self.other_gpus)
        return tuple(sorted((gpu for gpu in found if gpu.name or not gpu.problem), key=lambda gpu: gpu.index))

    @property
    def best(self) -> Literal["cuda", "mps", "cpu"]:
        """The device of `--device auto`."""
        if not self.cuda.problem:
            return "cuda"
        return "cpu" if self.mps.problem else "mps"

    @property
    def likely_gpu(self) -> Accelerator:
        """The kind of GPU that machines of this platform have, whether torch can use it or not."""
        return self.mps if sys.platform == "darwin" else self.cuda

    def free_bytes(self, device: str) -> int | None:
        """Return the free memory of cuda, cuda:N, mps or cpu in bytes; None if unknown."""
        if device == "cpu":
            return self.ram_free_bytes
        if device == "mps":
            return self.mps.free_bytes
        index = cuda_index(device)
        return next((gpu.free_bytes for gpu in self.gpus if gpu.index == index), self.cuda.free_bytes)


def _imported() -> ModuleType:
    import torch

    return torch


def look(device: str = "auto", imported: Callable[[], ModuleType] = _imported) -> Hardware:
    """Return the hardware of this machine. Importing torch takes a second or two.

    Raises:
        ModelError: torch can't be imported, or fails.
    """
    try:
        return Hardware.look(imported(), device)
    except ImportError as error:
        raise ModelError("torch is not installed", hint="pip install 'voxcli[voxtral]'") from error
    except Exception as error:  # a damaged library or a failing driver may raise anything
        raise ModelError(f"torch can't be used: {first_line(error)}", hint=REINSTALL_TORCH) from error


def cuda_index(device: str) -> int | None:
    """Return the index in a device's name, 1 for `cuda:1`; None if there is none."""
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" and index.isascii() and index.isdigit() else None


def _cuda(torch: Any, device: str, query: Query) -> tuple[Accelerator, ...]:
    """Return the CUDA devices, beginning with `cuda`; if torch can use none, one with the problem."""
    if not torch.backends.cuda.is_built() and torch.version.hip is None:
        return (Accelerator(f"torch {torch.__version__} is built without CUDA", INSTALL_TORCH),)
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        gpus = [_gpu(torch, index) for index in range(count)]
    except (RuntimeError, AssertionError) as error:  # the driver is missing or too old
        reason = first_line(error).split(". ")[0]
        hint = "update the NVIDIA driver, or use --device cpu"
        return (Accelerator(f"torch can't use a CUDA device: {reason}", hint),)
    if not gpus:
        return (Accelerator("torch finds no CUDA device", "check CUDA_VISIBLE_DEVICES, or use --device cpu"),)
    if len(gpus) > 1:
        known = _free_by_uuid(query)
        gpus = [replace(gpu, free_bytes=known.get(_uuid(torch, gpu.index))) for gpu in gpus]
    gpus.sort(key=lambda gpu: (bool(gpu.problem), -(gpu.free_bytes or 0), gpu.index))
    asked = cuda_index(device)
    used = next((gpu.index for gpu in gpus if gpu.index == asked), gpus[0].index)
    return tuple(_tried(torch, gpu) if gpu.index == used else gpu for gpu in gpus)


def _gpu(torch: Any, index: int) -> Accelerator:
    """Return a GPU as torch describes it, without allocating memory on it."""
    name = str(torch.cuda.get_device_name(index))
    found = torch.cuda.get_device_capability(index)
    if torch.version.hip is not None:
        return Accelerator(name=name, index=index)
    if not runs_on(found, torch.cuda.get_arch_list()):
        problem = f"torch {torch.__version__} is not built for the {name} (compute capability {found[0]}.{found[1]})"
        return Accelerator(problem, INSTALL_TORCH, name=name, index=index, capability=found)
    dtype: DType = "bfloat16" if found >= FLASH_CAPABILITY else "float16"  # bfloat16 is fast from Ampere on, too
    return Accelerator(dtype=dtype, name=name, index=index, capability=found)


def _tried(torch: Any, gpu: Accelerator) -> Accelerator:
    """Return a GPU with its free memory, after one small computation on it."""
    if gpu.problem:
        return gpu
    try:
        free, total = torch.cuda.mem_get_info(gpu.index)
        gpu = replace(gpu, free_bytes=free, total_bytes=total)
        torch.zeros(1, device=f"cuda:{gpu.index}").add(1).item()
    except RuntimeError as error:
        problem = f"torch can't use the {gpu.name}: {first_line(error)}"
        return replace(gpu, problem=problem, hint="free its memory, or update its driver, or use --device cpu")
    return gpu


def _uuid(torch: Any, index: int) -> str:
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", "")).removeprefix("GPU-")


def _free_by_uuid(query: Query) -> dict[str, int]:
    """Return the free bytes of each GPU by UUID; empty if the query fails."""
    found = {}
    for line in query().splitlines():
        uuid, _, mebibytes = line.partition(",")
        if mebibytes.strip().isdigit():
            found[uuid.strip().removeprefix("GPU-")] = int(mebibytes) << 20
    return found


def nvidia_smi() -> str:
    """Return the output of nvidia-smi about free memory; empty if it is missing or fails."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, check=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Return whether a build of torch has code for a GPU.

    Code for sm_XY runs on capability X.Y and later ones with the same X; compute_XY is compiled for any later one.
    """
    for name in built_for:
        kind, _, version = name.partition("_")
        digits = "".join(letter for letter in version if letter.isdigit())  # sm_90a: capability 9.0
        if not digits:
            continue
        target = int(digits[:-1]), int(digits[-1])
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def _mps(torch: Any) -> Accelerator:
    if not torch.backends.mps.is_available():
        why = "this macOS or this Mac is too old" if torch.backends.mps.is_built() else "this is not Apple silicon"
        return Accelerator(f"torch can't use an MPS device: {why}", "use --device auto")
    if release(str(torch.__version__)) < MPS_TORCH:
        wanted = ".".join(map(str, MPS_TORCH))
        problem = f"torch {torch.__version__} is too old for Apple's GPUs: before {wanted} it computes wrongly there"
        return Accelerator(problem, f"pip install --upgrade 'torch>={wanted}', or use --device cpu")
    total = int(torch.mps.recommended_max_memory())
    found = Accelerator(
        name=f"Apple GPU ({platform.machine()})",
        free_bytes=max(0, total - int(torch.mps.driver_allocated_memory())),
        total_bytes=total,
    )
    try:
        torch.zeros(1, dtype=torch.bfloat16, device="mps")
    except (TypeError, RuntimeError):  # before macOS 14
        return replace(found, dtype="float16")
    return found


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, (2, 12) for `2.12.0+cpu`; zeros for missing ones."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
