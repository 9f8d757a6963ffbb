"""The checks of `voxcli doctor`: each takes plain values and returns what was found and how to mend it.

`voxcli.app.checks.doctor` gathers the values, `voxcli.app.checks.verdict` tells which commands work.
"""

import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxcli.app.checks.verdict import Finding
from voxcli.engines.voxtral.device.demand import Demand
from voxcli.engines.voxtral.device.hardware import GB, Accelerator, Hardware, cuda_index
from voxcli.engines.voxtral.device.placement import Wanted, needed_bytes, plan

PYTHONS = ((3, 11), (3, 13))  # oldest and newest version that voxcli supports
VOXTRAL_PACKAGES = ("torch", "transformers", "mistral_common", "huggingface_hub", "safetensors", "soundfile")
EMBEDDED_PACKAGES = ("faster_whisper", "xllamacpp")
MODELS_SHOWN = 5  # most models of a server that are listed
DATA_BYTES = 10_000_000  # space for about ten thousand turns

if TYPE_CHECKING:
    from voxcli.engines.embedded.recommended import Pair

EngineName = Literal["voxtral", "embedded", "remote"]
VOXTRAL_LANGUAGES = (
    "English, Spanish, French, Portuguese, Hindi, German, Dutch, Italian"  # Languages of the model card.
)
HALF_DUPLEX = "half-duplex: the microphone is ignored while a reply plays, so your voice can't interrupt it"


# --- Checks ------------------------------------------------------------------------------------


def python(version: tuple[int, int, int]) -> Finding:
    """Check the version of the interpreter."""
    first, last = PYTHONS
    well = first <= version[:2] <= last
    mend = f"install Python {first[0]}.{first[1]} to {last[0]}.{last[1]}, and voxcli again with it"
    return Finding(well, ".".join(map(str, version)), mend)


def settings_file(path: Path, exists: bool) -> Finding:
    """Report which settings file is read."""
    return Finding(True, str(path) if exists else f"defaults; {path} does not exist")


def engine_in_use(wanted: str, why_not: str, checkpoint: Path | None) -> EngineName:
    """Return the engine that `once` would use. `auto` is voxtral only if it can run without a download.

    Args:
        why_not: why Voxtral can't run on a GPU here; empty if it can.
    """
    if wanted == "remote":
        return "remote"
    if wanted == "voxtral" or (wanted == "auto" and not why_not and checkpoint):
        return "voxtral"
    return "embedded"


def engine(wanted: str, used: EngineName, why_not: str) -> Finding:
    """Report which engine answers."""
    if wanted != "auto":
        return Finding(True, used)
    reason = why_not or ("there is a GPU" if used == "voxtral" else "the checkpoint is not here yet")
    return Finding(True, f"{used} (auto: {reason})")


def torch_device(found: Hardware | None, missing: Sequence[str], device: str, *, gpu_present: bool) -> Finding:
    """Check that torch is installed and can use the device in the settings.

    Args:
        found: None if torch is not installed.
        missing: packages of the voxtral extra that are not installed.
        device: auto, cuda, cuda:N, mps or cpu.
        gpu_present: whether the machine appears to have a GPU.
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


def gpu(found: Hardware | None, *, present: bool) -> Finding:
    """Report the GPUs of this machine.

    Args:
        found: what torch finds; None where it was not asked.
        present: whether the machine appears to have a GPU.
    """
    names = [each.name for each in (*found.gpus, found.mps) if each.name] if found else []
    return Finding(True, ", ".join(names) or ("there is one" if present else "none was found"))


def memory(found: Hardware, wanted: Wanted, needs: Demand) -> Finding:
    """Check that a model fits in the memory of its device; report its number format and context length.

    Raises:
        ModelError: the model does not fit, or torch can't use the device.
        ConfigError: there is no such device, or it does not support the format.
    """
    where = plan(wanted, found, needs)
    need, free = needed_bytes(where, needs, found, wanted.reply_tokens), found.free_bytes(where.device)
    context = f"{where.context_tokens} tokens of context"
    if where.context_tokens < wanted.context_tokens:
        context += f" (not {wanted.context_tokens})"
    have = "free memory is not known here" if free is None else f"{free / GB:.1f} GB are free"
    return Finding(True, f"{where.format_name}, {context} on {where.device}: {need / GB:.1f} GB needed, {have}")


def acceleration(level: str, why: str) -> Finding:
    """Report the level of acceleration that the voxtral engine reaches here.

    Args:
        level: compiled, graphs or none; see `voxcli.engines.voxtral.runtime.acceleration`.
        why: why no higher level works; empty if this is the highest.
    """
    names = {"compiled": "compiled kernels in CUDA graphs", "graphs": "CUDA graphs", "none": "none"}
    return Finding(True, names[level] + (f" ({why})" if why else ""))


def checkpoint(model: str, folder: Path | None, download_bytes: int, free_bytes: int, hub: Path) -> Finding:
    """Check that the checkpoint is here or, if not, that there is disk space for it.

    Args:
        model: its name in the settings.
        folder: where it is; None if it is not here.
        download_bytes: disk space that fetching takes; 0 if unknown.
        free_bytes: free disk space in the folder `hub`, where it would be put.
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
        folder: where its prepared weights are; None if they are not prepared yet.
        missing: packages that it still needs, to run or to prepare the weights.
        install: the command that installs them.
    """
    if missing:
        return Finding(False, f"not installed: {', '.join(missing)}", install)
    return Finding(True, f"weights in {folder}" if folder else "installed; its weights are prepared on first use")


def models(whisper: str, answer_model: str, recommended: "Pair | None") -> Finding:
    """Report the models of the embedded engine, and larger ones for this machine.

    Args:
        whisper: size or path in the settings.
        answer_model: GGUF file in the settings; empty for the model that comes with the engine.
        recommended: None if there is nothing better for this machine.
    """
    found = f"Whisper {whisper} + {answer_model or 'SmolLM2-135M'}"
    if answer_model or recommended is None:
        return Finding(True, found)
    pulls = f"voxcli models pull whisper:{recommended.whisper}, then {recommended.answer_model}"
    size = f"{recommended.fetched_gb:g} GB"
    return Finding(True, f"{found}; this machine has room for {recommended.title}, {size} ({pulls})")


def server(model: str, names: Sequence[str], wrong: str = "", way: str = "") -> Finding:
    """Check that a server that answered has the model and computes it correctly.

    Args:
        model: name of the model; empty for the only one that the server has.
        names: models that the server lists.
        wrong: known problem of this kind of server, in words.
        way: the proxy on the way to it, in words.
    """
    shown = ", ".join(names[:MODELS_SHOWN]) or "no models"
    if model in names or (not model and len(names) == 1):
        found = f"it answers{way}, with {model or shown}"
        return Finding(False, f"{found}; it is {wrong}", blocks=False) if wrong else Finding(True, found)
    wanted = f"not {model}" if model else "none is chosen"
    return Finding(False, f"it has {shown}; {wanted}", "choose one with --model NAME")


def folder(path: Path, needed_bytes: int) -> Finding:
    """Check that a folder exists or can be created, and that `needed_bytes` are free."""
    existing = _nearest(path)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(False, f"{existing} can't be written", f"chmod u+rwx {shlex.quote(str(existing))}")
    free = free_bytes(path)
    text = f"{path}, {_gb(free)} free"
    if free < needed_bytes:
        return Finding(False, f"{text}, {_gb(needed_bytes)} needed", "make room on that disk")
    return Finding(True, text)


def permissions(path: Path) -> Finding:
    """Check that only their owner can read the data folder and its files."""
    open_paths = _open_to_others(path) if os.name == "posix" and path.is_dir() else []
    if not open_paths:
        return Finding(True, "private" if path.is_dir() else "nothing is stored yet")
    more = f" and {len(open_paths) - 1} more" if len(open_paths) > 1 else ""
    return Finding(False, f"others can read {open_paths[0]}{more}", f"chmod -R go= {shlex.quote(str(path))}")


def not_used(engine: EngineName, found: str) -> Finding:
    """Report a part that another engine uses."""
    return Finding(True, f"{found}, not used by the {engine} engine")


def devices(outputs: Sequence[str], inputs: Sequence[str], no_access: str = "") -> Finding:
    """Check that there is a loudspeaker, and name the devices.

    Args:
        outputs, inputs: names of the devices as PortAudio lists them, the one that is used first.
        no_access: the command that lets this user use the sound card; empty if nothing forbids it.
    """
    output = f"out: {outputs[0]}" if outputs else "no output device"
    input_ = f"in: {inputs[0]}" if inputs else "no input device"
    text = f"{output}; {input_}"
    if no_access and not (outputs or inputs):
        return Finding(False, f"{text}; this user may not use the sound card", no_access)
    return Finding(bool(outputs), text, "connect a loudspeaker, or read replies: voxcli chat --no-speak")


def microphone(dbfs: float, *, is_zero: bool, silence: tuple[str, str], noisy_dbfs: float) -> Finding:
    """Check the level of the microphone, measured while nobody was asked to speak.

    Args:
        dbfs: its mean level.
        is_zero: whether every sample was zero, which no working microphone delivers.
        silence: why it delivers zeros, as far as it is known, and what mends that.
        noisy_dbfs: the level above which speech is not found reliably.
    """
    if is_zero:
        return Finding(False, *silence)
    if dbfs > noisy_dbfs:
        text = f"{dbfs:.0f} dBFS: too loud to find speech, unless you are speaking now"
        return Finding(False, text, "voxcli chat --push-to-talk toggle", blocks=False)
    return Finding(True, f"{dbfs:.0f} dBFS")


def echo(setting: str, *, installed: bool) -> Finding:
    """Check the echo canceller, which lets the user's voice interrupt a reply.

    Args:
        setting: auto, on or off.
    """
    if setting == "off":
        return Finding(True, f'off, by echo = "off" in [live]; {HALF_DUPLEX}')
    if installed:
        return Finding(True, "installed: your voice can interrupt a reply")
    return Finding(False, f"not installed; {HALF_DUPLEX}", "pip install 'voxcli[echo]'", blocks=setting == "on")


def end_of_turn(setting: str, *, here: bool, pull: str) -> Finding:
    """Report what ends a turn, and how to get the model that judges it.

    Args:
        setting: auto, silence or smart-turn.
        here: whether the model of the setting is here.
        pull: the command that fetches it.
    """
    if setting == "silence" or (setting == "auto" and not here):
        more = "" if setting == "silence" else f"; `{pull}` adds a model"
        return Finding(True, f"silence alone{more}")
    return Finding(here, "smart-turn" if here else "the end-of-turn model is not here", pull)


def language(engine: EngineName, model: str, system: str, *, large: bool = False) -> Finding:
    """Report which languages the engine understands.

    Args:
        large: the user has chosen an answering model for the embedded engine.
        model: its name; a server's model is known by it alone.
        system: the language of the system, such as "de"; empty if unknown.
    """
    if engine == "embedded" and large:
        return Finding(True, "those of the answering model, from 1 B parameters on")
    if engine == "embedded":
        mend = (
            "voxcli doctor --engine voxtral, for what Voxtral needs" if system not in ("", "en", "c", "posix") else ""
        )
        text = f"English only; this system's language is {system}" if mend else "English only"
        return Finding(not mend, text, mend, blocks=False)
    if engine == "remote" and "voxtral" not in model.lower():
        return Finding(True, "those of the server's model")
    return Finding(True, VOXTRAL_LANGUAGES)


def voice(name: str, spoken_seconds: float) -> Finding:
    """Check that a voice produced audio for a word."""
    text = f"{name} speaks" if spoken_seconds > 0 else f"{name} is silent"
    return Finding(spoken_seconds > 0, text, "voxcli voices; then choose one with --voice NAME")


# --- Facts -------------------------------------------------------------------------------------


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return the packages that are not installed, without importing any."""
    return [name for name in names if find_spec(name) is None]


def free_bytes(path: Path) -> int:
    """Return the free disk space for a folder that need not exist yet."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    parents = (path.absolute(), *path.absolute().parents)
    return next(parent for parent in parents if os.path.isdir(parent))  # noqa: PTH112 - a Path raises where it may not look


def _open_to_others(path: Path) -> list[Path]:
    """Return the folder and those of its files that group or others have any permission for.

    Subfolders, which hold voices, are not private. A folder with the sticky bit is shared.
    """
    parts = [path, *(part for part in path.iterdir() if part.is_file() and not part.is_symlink())]
    modes = {part: part.stat().st_mode for part in parts}
    return [part for part, mode in modes.items() if mode & 0o077 and not mode & stat.S_ISVTX]


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def tools(problems: Sequence[str]) -> Finding:
    """Check that the tools in the settings can be called.

    Args:
        problems: what keeps some from working, each in one line.
    """
    if not problems:
        return Finding(True, "all tools can be called")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Finding(False, f"{problems[0]}{more}", "voxcli tools list", blocks=False)
