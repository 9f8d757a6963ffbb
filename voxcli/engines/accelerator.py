"""The GPU as torch sees it. Knows nothing of models; importing this module doesn't import torch."""

import warnings
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Accelerator:
    """What torch can compute on."""

    torch_version: str
    kind: Literal["cuda", "mps", "cpu"]  # the best there is
    name: str = ""
    free_bytes: int = 0  # of the GPU's memory
    total_bytes: int = 0
    problem: str = ""  # why torch would not use a GPU


def probe() -> Accelerator | None:
    """Return the best device of this machine, tried out with one small computation; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    except OSError as error:  # a library that the package needs is missing or damaged
        return Accelerator("?", "cpu", problem=f"torch can't be imported: {_first_line(error)}")
    version = str(torch.__version__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda = torch.cuda.is_available()
    if cuda:
        return _cuda(version)
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        return Accelerator(version, "mps", "Apple GPU", total - torch.mps.driver_allocated_memory(), total)
    if caught:  # torch warns where the driver is too old
        return Accelerator(version, "cpu", problem=_first_line(caught[0].message))
    built = torch.version.cuda or torch.version.hip
    return Accelerator(version, "cpu", problem="it finds none" if built else "it was built without CUDA")


def _cuda(version: str) -> Accelerator:
    import torch

    name = ""
    try:
        name = torch.cuda.get_device_name()
        free, total = torch.cuda.mem_get_info()
        (torch.ones(8, device="cuda") + 1).sum().item()
    except RuntimeError as error:
        return Accelerator(version, "cpu", name, problem=_first_line(error))
    return Accelerator(version, "cuda", name, free, total)


def _first_line(error: Warning | Exception | str) -> str:
    return next(iter(str(error).strip().splitlines()), "")
