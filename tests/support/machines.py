"""Machines that are made up: GPUs of all sizes and ages, and none at all."""

from collections.abc import Sequence

from voxcli.engines.voxtral.device.hardware import GB, Accelerator, Hardware

NO_CUDA = Accelerator(problem="there is no NVIDIA GPU", hint="use --device cpu")
NO_MPS = Accelerator(problem="this is not Apple silicon", hint="use --device auto")
OLD_TORCH_MPS = Accelerator(problem="torch 2.10.0 is too old for Apple's GPUs", hint="pip install --upgrade torch")
# One GPU of each generation that torch has kernels for, with its compute capability.
GENERATIONS = {"Turing": (7, 5), "Ampere": (8, 6), "Ada": (8, 9), "Hopper": (9, 0)}
FREE_SHARE = 0.94  # of a card's memory, where nothing else runs on it


def gpu(free_gb: float | None, generation: str = "Ampere", index: int = 0) -> Accelerator:
    capability = GENERATIONS[generation]
    return Accelerator(
        dtype="bfloat16" if capability >= (8, 0) else "float16",
        free_bytes=None if free_gb is None else int(free_gb * GB),
        name=f"{generation} GPU",
        index=index,
        capability=capability,
    )


def card(gibibytes: int, generation: str = "Ampere") -> Accelerator:
    """Return a GPU with so much memory as its box says."""
    return gpu((gibibytes << 30) * FREE_SHARE / GB, generation)


def machine(
    *gpus: Accelerator, mps: Accelerator = NO_MPS, ram_gb: float | None = 64, has_triton: bool = True
) -> Hardware:
    roomiest: Sequence[Accelerator] = sorted(gpus, key=lambda each: -(each.free_bytes or 0)) or [NO_CUDA]
    ram = None if ram_gb is None else int(ram_gb * GB)
    return Hardware(roomiest[0], mps, ram, tuple(roomiest[1:]), has_triton, "2.13.0")


def mac(free_gb: float) -> Hardware:
    return machine(mps=Accelerator(name="Apple GPU", free_bytes=int(free_gb * GB)), has_triton=False)
