"""What `voxcli doctor` looks at: each check takes plain values and says what was found and what mends it.

The checks ask nobody: `voxcli.cli.doctor` gathers the values. Whether a finding that is not well is a
failure depends on whether `voxcli once` needs the thing: without a loudspeaker it still prints.
"""

import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from voxcli.engines.voxtral.device.demand import Demand
from voxcli.engines.voxtral.device.hardware import GB, Accelerator, Hardware, cuda_index
from voxcli.engines.voxtral.device.placement import Wanted, needed_bytes, plan
from voxcli.errors import VoxError

PYTHONS = ((3, 11), (3, 13))  # the first and the last that voxcli runs on
VOXTRAL_PACKAGES = ("torch", "transformers", "mistral_common", "huggingface_hub", "safetensors", "soundfile")
EMBEDDED_PACKAGES = ("faster_whisper", "xllamacpp")
MODELS_SHOWN = 5  # of a server
DATA_BYTES = 10_000_000  # room for some ten thousand turns

EngineName = Literal["voxtral", "embedded", "remote"]


@dataclass(frozen=True)
class Finding:
    """What a check found; `mend` is the command or the step that helps where it is not well."""

    well: bool
    found: str
    mend: str = ""
    blocks: bool = True  # whether what is not well keeps `once` from working, where it needs the thing


@dataclass(frozen=True)
class Probe:
    """A check to be made, under the name that its line has."""

    name: str
    check: Callable[[], Finding]
    needed: bool = True  # whether `once` needs it, with the present settings


@dataclass(frozen=True)
class Check:
    """A check that was made."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    mend: str


def examine(probes: Iterable[Probe]) -> list[Check]:
    """Make all checks; a VoxError in one is its finding, and stops none of the others."""
    return [_examined(probe) for probe in probes]


def would_work(checks: Iterable[Check]) -> bool:
    """Return whether `voxcli once` has all that it needs."""
    return all(check.state != "fail" for check in checks)


def _examined(probe: Probe) -> Check:
    try:
        finding = probe.check()
    except VoxError as error:
        finding = Finding(False, error.message, error.hint)
    if finding.well:
        return Check(probe.name, "ok", finding.found, "")
    return Check(probe.name, "fail" if probe.needed and finding.blocks else "warn", finding.found, finding.mend)


# --- Checks ------------------------------------------------------------------------------------


def python(version: tuple[int, int, int]) -> Finding:
    """Check the version of the interpreter."""
    first, last = PYTHONS
    well = first <= version[:2] <= last
    mend = f"install Python {first[0]}.{first[1]} to {last[0]}.{last[1]}, and voxcli again with it"
    return Finding(well, ".".join(map(str, version)), mend)


def settings_file(path: Path, exists: bool) -> Finding:
    """Tell which settings file is read; one that can't be read is a ConfigError before this."""
    return Finding(True, str(path) if exists else f"defaults; {path} does not exist")


def engine_in_use(wanted: str, why_not: str, checkpoint: Path | None) -> EngineName:
    """Return the engine that `once` would use; `auto` takes voxtral where it needs nothing more.

    Args:
        why_not: why Voxtral can't run on a GPU here; empty where it can.
    """
    if wanted == "remote":
        return "remote"
    if wanted == "voxtral" or (wanted == "auto" and not why_not and checkpoint):
        return "voxtral"
    return "embedded"


def engine(wanted: str, used: EngineName, why_not: str) -> Finding:
    """Tell which engine answers."""
    if wanted != "auto":
        return Finding(True, used)
    reason = why_not or ("there is a GPU" if used == "voxtral" else "the checkpoint is not here yet")
    return Finding(True, f"{used} (auto: {reason})")


def torch_device(found: Hardware | None, missing: Sequence[str], device: str, *, gpu_present: bool) -> Finding:
    """Check that torch is there, with the device that the settings ask for.

    Args:
        found: None where torch is not installed.
        missing: packages of the voxtral extra that are not installed.
        device: auto, cuda, cuda:N, mps or cpu.
        gpu_present: whether the machine has something that looks like a GPU.
    """
    if found is None or missing:
        return Finding(False, f"not installed: {', '.join(missing or ['torch'])}", "pip install 'voxcli[voxtral]'")
    wanted = found.best if device == "auto" else device
    if wanted == "cpu":
        if device == "auto" and gpu_present:
            return _unusable(found, "the GPU", found.likely_gpu)
        return Finding(True, f"torch {found.torch_version} on cpu")
    gpu = found.mps if wanted == "mps" else _gpu(wanted, found)
    if gpu is None or gpu.problem:
        return _unusable(found, wanted, gpu or Accelerator(f"there are {len(found.gpus)} GPUs", "use --device cuda:0"))
    others = f", one of {len(found.gpus)} GPUs" if wanted != "mps" and len(found.gpus) > 1 else ""
    place = "mps" if wanted == "mps" else f"cuda:{gpu.index}"
    return Finding(True, f"torch {found.torch_version} on {place}{f' ({gpu.name})' if gpu.name else ''}{others}")


def _gpu(device: str, found: Hardware) -> Accelerator | None:
    index = cuda_index(device)
    if index is None or found.cuda.problem:
        return found.cuda
    return next((gpu for gpu in found.gpus if gpu.index == index), None)


def _unusable(found: Hardware, wanted: str, gpu: Accelerator) -> Finding:
    return Finding(False, f"torch {found.torch_version} can't use {wanted}: {gpu.problem}", gpu.hint)


def memory(found: Hardware, wanted: Wanted, needs: Demand) -> Finding:
    """Check that a model fits where it would run, with which format and how long a context.

    Raises:
        ModelError: it does not fit, or torch can't use the device.
        ConfigError: no such device, or a format that is of no use there.
    """
    where = plan(wanted, found, needs)
    need, free = needed_bytes(where, needs, found, wanted.reply_tokens), found.free_bytes(where.device)
    context = f"{where.context_tokens} tokens of context"
    if where.context_tokens < wanted.context_tokens:
        context += f" (not {wanted.context_tokens})"
    have = "free memory is not known here" if free is None else f"{free / GB:.1f} GB are free"
    return Finding(True, f"{where.format_name}, {context} on {where.device}: {need / GB:.1f} GB needed, {have}")


def acceleration(level: str, why: str) -> Finding:
    """Tell at which level of acceleration the voxtral engine computes here.

    Args:
        level: compiled, graphs or none, as `voxcli.engines.voxtral.runtime.acceleration` has them.
        why: why not at a higher one; empty where there is none.
    """
    names = {"compiled": "compiled kernels in CUDA graphs", "graphs": "CUDA graphs", "none": "none"}
    return Finding(True, names[level] + (f" ({why})" if why else ""))


def checkpoint(model: str, folder: Path | None, download_bytes: int, free_bytes: int, hub: Path) -> Finding:
    """Check that the checkpoint is here; where it isn't, whether there is room for it.

    Args:
        model: its name in the settings.
        folder: where it lies, None where it isn't here.
        download_bytes: what fetching takes on disk; 0 where that is not known.
        free_bytes: what is free where it would be put, in the folder `hub`.
    """
    if folder:
        return Finding(True, f"{model} in {folder}")
    if download_bytes > free_bytes:
        text = f"{model} is not here: it takes {_gb(download_bytes)}, and {_gb(free_bytes)} are free in {hub}"
        return Finding(False, text, "make room, or set HF_HOME to a folder on a larger disk")
    size = f" ({_gb(download_bytes)} to fetch)" if download_bytes else ""
    return Finding(False, f"{model} is not here{size}", f"voxcli models pull {shlex.quote(model)}")


def embedded(folder: Path | None, missing: Sequence[str], install: str) -> Finding:
    """Check the packages of the embedded engine, and its weights.

    Args:
        folder: where its weights were made ready, None where they were not yet.
        missing: packages that it still needs: to run, and to make the weights ready.
        install: the command that installs them.
    """
    if missing:
        return Finding(False, f"not installed: {', '.join(missing)}", install)
    return Finding(True, f"weights in {folder}" if folder else "installed; its weights are made ready on first use")


def server(model: str, names: Sequence[str], wrong: str = "") -> Finding:
    """Check that a server which answered has the model, and computes it as it should.

    Args:
        model: its name; empty for the only one that the server has.
        names: of the models that it lists.
        wrong: what is known to be wrong with the kind of server, in words.
    """
    shown = ", ".join(names[:MODELS_SHOWN]) or "no models"
    if model in names or (not model and len(names) == 1):
        found = f"it answers, with {model or shown}"
        return Finding(False, f"{found}; it is {wrong}", blocks=False) if wrong else Finding(True, found)
    wanted = f"not {model}" if model else "none is chosen"
    return Finding(False, f"it has {shown}; {wanted}", "choose one with --model NAME")


def folder(path: Path, needed_bytes: int) -> Finding:
    """Check that a folder is, or can be made, and that what will be written fits."""
    existing = _nearest(path)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(False, f"{existing} can't be written", f"chmod u+rwx {shlex.quote(str(existing))}")
    free = free_bytes(path)
    text = f"{path}, {_gb(free)} free"
    if free < needed_bytes:
        return Finding(False, f"{text}, {_gb(needed_bytes)} needed", "make room on that disk")
    return Finding(True, text)


def permissions(path: Path) -> Finding:
    """Check that nobody else can read the data folder, or what lies in it."""
    open_paths = _open_to_others(path) if os.name == "posix" and path.is_dir() else []
    if not open_paths:
        return Finding(True, "private" if path.is_dir() else "nothing is stored yet")
    more = f" and {len(open_paths) - 1} more" if len(open_paths) > 1 else ""
    return Finding(False, f"others can read {open_paths[0]}{more}", f"chmod -R go= {shlex.quote(str(path))}")


def devices(outputs: Sequence[str], inputs: Sequence[str]) -> Finding:
    """Check that there is a loudspeaker; a microphone is told of. Names as PortAudio has them, the default first."""
    heard = f"out: {outputs[0]}" if outputs else "no output device"
    spoken = f"in: {inputs[0]}" if inputs else "no input device"
    return Finding(bool(outputs), f"{heard}; {spoken}", "connect a loudspeaker, or use --save-reply FILE.wav")


def voice(name: str, spoken_seconds: float) -> Finding:
    """Check that a voice made sound when it was asked for a word."""
    text = f"{name} speaks" if spoken_seconds > 0 else f"{name} is silent"
    return Finding(spoken_seconds > 0, text, "voxcli voices; then choose one with --voice NAME")


# --- Facts -------------------------------------------------------------------------------------


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return which of these packages are not installed, importing none."""
    return [name for name in names if find_spec(name) is None]


def free_bytes(path: Path) -> int:
    """Return what is free on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _open_to_others(path: Path) -> list[Path]:
    """Return the folder and its files that group or others have a permission for.

    What lies in folders inside, such as voices, is not private; a sticky folder belongs to everybody.
    """
    parts = [path, *(part for part in path.iterdir() if part.is_file() and not part.is_symlink())]
    modes = {part: part.stat().st_mode for part in parts}
    return [part for part, mode in modes.items() if mode & 0o077 and not mode & stat.S_ISVTX]


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
