import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.machines import NO_MPS, gpu, mac, machine
from voxcli import doctor
from voxcli.cli import app
from voxcli.cli.doctor import _line
from voxcli.doctor import Check, Finding, Probe
from voxcli.engines.demand import demand_of
from voxcli.engines.formats import Asked
from voxcli.engines.hardware import Accelerator, Hardware
from voxcli.engines.placement import Wanted
from voxcli.engines.shapes import PUBLISHED
from voxcli.errors import ConfigError, ModelError

H200 = machine(Accelerator(name="H200", free_bytes=10_000_000_000, capability=(9, 0)))
CPU = Hardware(Accelerator("it was built without CUDA", "install another"), NO_MPS, None, torch_version="2.13.0")
OLD_DRIVER = Hardware(Accelerator("the driver is too old", "update it"), NO_MPS, None, torch_version="2.13.0")
TWO = machine(gpu(8), gpu(24, index=1))
HERE = Path("/models/mini")


def failing() -> Finding:
    raise ModelError("it is gone", hint="voxcli models pull mini")


# --- Lines ---------------------------------------------------------------------------------------


def test_a_line_has_the_mark_and_what_mends() -> None:
    check = Check("checkpoint", "fail", "mini is not here", "voxcli models pull mini")
    assert _line(check, "utf-8") == "\u2717 checkpoint   mini is not here -> voxcli models pull mini"
    assert _line(check, "ascii") == "FAIL checkpoint   mini is not here -> voxcli models pull mini"


def test_a_line_is_one_line_that_the_terminal_can_print() -> None:
    line = _line(Check("devices", "ok", "Kopfh\u00f6rer\n\x1b[2J", ""), "ascii")
    assert line == "ok   devices      Kopfh\\xf6rer\\n\\x1b[2J"
    assert "\u00f6" in _line(Check("devices", "ok", "Kopfh\u00f6rer", ""), "UTF8")


# --- The command ---------------------------------------------------------------------------------


def test_the_command_checks_all_and_its_exit_code_is_that_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("VOXCLI_REPLY__MAX_TOKEN", "3")
    result = CliRunner().invoke(app, ["doctor", "--engine", "embedded", "--json"])
    report = json.loads(result.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert [name for name in states if name not in ("memory", "acceleration")] == [  # no lines without torch
        *("python", "settings", "engine", "torch", "checkpoint", "embedded"),
        *("cache", "devices", "voice", "data", "permissions"),
    ]
    found = {check["name"]: check["found"] for check in report["checks"]}
    assert found["acceleration"].startswith(("none (CUDA graphs need a CUDA device", "CUDA graphs", "compiled kernels"))
    assert states["settings"] == "fail"
    assert "did you mean VOXCLI_REPLY__MAX_TOKENS?" in result.stdout
    assert (report["ok"], result.exit_code) == (False, 1)
    assert not (tmp_path / "voxcli").exists(), "looking changes nothing"


# --- Making checks -------------------------------------------------------------------------------


def test_a_finding_fails_only_what_once_needs() -> None:
    def absent() -> Finding:
        return Finding(False, "none", "connect one")

    checks = doctor.examine([Probe("a", lambda: Finding(True, "fine", "nothing")), Probe("b", absent, needed=False)])
    assert checks == [Check("a", "ok", "fine", ""), Check("b", "warn", "none", "connect one")]
    assert doctor.would_work(checks)
    assert not doctor.would_work(doctor.examine([Probe("b", absent)]))


def test_an_error_is_a_finding_and_stops_no_other_check() -> None:
    checks = doctor.examine([Probe("model", failing), Probe("next", lambda: Finding(True, "fine"))])
    assert checks[0] == Check("model", "fail", "it is gone", "voxcli models pull mini")
    assert checks[1].state == "ok"


# --- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "well"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 7), True), ((3, 14, 0), False)]
)
def test_python(version: tuple[int, int, int], well: bool) -> None:
    assert doctor.python(version).well is well


@pytest.mark.parametrize(
    ("wanted", "why_no_gpu", "checkpoint", "used"),
    [
        ("embedded", "", HERE, "embedded"),
        ("voxtral", "no GPU was found", None, "voxtral"),
        ("auto", "", HERE, "voxtral"),
        ("auto", "no GPU was found", HERE, "embedded"),
        ("auto", "", None, "embedded"),
        ("remote", "", HERE, "remote"),
    ],
)
def test_engine_in_use(wanted: str, why_no_gpu: str, checkpoint: Path | None, used: str) -> None:
    assert doctor.engine_in_use(wanted, why_no_gpu, checkpoint) == used


def test_auto_says_why() -> None:
    assert "no GPU was found" in doctor.engine("auto", "embedded", "no GPU was found").found
    assert "checkpoint is not here" in doctor.engine("auto", "embedded", "").found


@pytest.mark.parametrize(
    ("found", "missing", "device", "gpu_present", "well", "text"),
    [
        (None, ["torch"], "auto", True, False, "not installed: torch"),
        (CPU, ["transformers"], "auto", False, False, "not installed: transformers"),
        (CPU, [], "auto", False, True, "torch 2.13.0 on cpu"),
        (CPU, [], "auto", True, False, "can't use the GPU: it was built without CUDA"),
        (CPU, [], "cuda", False, False, "can't use cuda: it was built without CUDA"),
        (H200, [], "auto", True, True, "torch 2.13.0 on cuda:0 (H200)"),
        (H200, [], "cuda", True, True, "on cuda:0 (H200)"),
        (H200, [], "mps", True, False, "can't use mps: this is not Apple silicon"),
        (mac(8), [], "auto", True, True, "on mps (Apple GPU)"),
        (TWO, [], "auto", True, True, "on cuda:1 (Ampere GPU), one of 2 GPUs"),
        (TWO, [], "cuda:0", True, True, "on cuda:0 (Ampere GPU), one of 2 GPUs"),
        (TWO, [], "cuda:2", True, False, "can't use cuda:2: there are 2 GPUs"),
        (H200, [], "cpu", True, True, "torch 2.13.0 on cpu"),
        (OLD_DRIVER, [], "auto", True, False, "the driver is too old"),
        (OLD_DRIVER, [], "cpu", True, True, "on cpu"),
    ],
)
def test_torch_device(
    found: Hardware | None, missing: list[str], device: str, gpu_present: bool, well: bool, text: str
) -> None:
    finding = doctor.torch_device(found, missing, device, gpu_present=gpu_present)
    assert finding.well is well
    assert text in finding.found
    assert finding.mend or well


def test_acceleration() -> None:
    assert doctor.acceleration("compiled", "") == Finding(True, "compiled kernels in CUDA graphs")
    assert doctor.acceleration("graphs", "no triton") == Finding(True, "CUDA graphs (no triton)")


def memory(hardware: Hardware, device: str = "auto", quantize: Asked = "auto") -> Finding:
    return doctor.memory(hardware, Wanted(device, quantize, 8192, 256), demand_of(PUBLISHED["mini"]))


@pytest.mark.parametrize(
    ("hardware", "device", "found"),
    [
        (machine(gpu(24)), "auto", "bfloat16, 8192 tokens of context on cuda:0: 11.1 GB needed, 24.0 GB are free"),
        (machine(gpu(8)), "cuda", "int8, 8192 tokens of context on cuda:0: 7.9 GB needed, 8.0 GB are free"),
        (machine(ram_gb=32), "cpu", "float32, 8192 tokens of context on cpu: 21.5 GB needed, 32.0 GB are free"),
        (machine(ram_gb=None), "cpu", "21.5 GB needed, free memory is not known here"),
    ],
)
def test_memory(hardware: Hardware, device: str, found: str) -> None:
    finding = memory(hardware, device)
    assert finding.well
    assert found in finding.found


def test_a_shorter_context_is_well_for_once_would_run() -> None:
    finding = memory(machine(gpu(6)))
    assert finding.well
    assert "tokens of context (not 8192)" in finding.found


def test_memory_that_is_too_small_is_what_once_would_say() -> None:
    (check,) = doctor.examine([Probe("memory", lambda: memory(machine(gpu(4))))])
    assert (check.state, "does not fit" in check.found) == ("fail", True)
    assert "--device cpu" in check.mend
    with pytest.raises(ConfigError):
        memory(mac(24), quantize="int8")


def test_checkpoint() -> None:
    assert doctor.checkpoint("mini", HERE, 9_350_000_000, 0, Path("/hub")).well
    absent = doctor.checkpoint("mini", None, 9_350_000_000, 20_000_000_000, Path("/hub"))
    assert (absent.well, absent.mend) == (False, "voxcli models pull mini")
    no_room = doctor.checkpoint("mini", None, 9_350_000_000, 1_000_000_000, Path("/hub"))
    assert not no_room.well
    assert "HF_HOME" in no_room.mend
    hostile = doctor.checkpoint("a; rm -rf ~", None, 0, 0, Path("/hub"))
    assert hostile.mend == "voxcli models pull 'a; rm -rf ~'"


def test_embedded() -> None:
    assert doctor.embedded(HERE, [], "pip install it").well
    assert "first use" in doctor.embedded(None, [], "pip install it").found
    assert doctor.embedded(None, ["xllamacpp"], "pip install it") == Finding(
        False, "not installed: xllamacpp", "pip install it"
    )


def test_server() -> None:
    assert doctor.server("", ["tiny"]).well
    assert doctor.server("b", ["a", "b"]).well
    several, other = doctor.server("", ["a", "b"]), doctor.server("c", ["a"])
    assert (several.well, other.well) == (False, False)
    assert "a, b; none is chosen" in several.found
    assert "it has a; not c" in other.found
    assert "no models" in doctor.server("", []).found


def test_a_server_that_computes_wrongly_is_a_warning_for_whoever_needs_it() -> None:
    checks = doctor.examine([Probe("server", lambda: doctor.server("a", ["a"], "the wrong one"))])
    assert checks == [Check("server", "warn", "it answers, with a; it is the wrong one", "")]
    assert doctor.would_work(checks)


def test_folder(tmp_path: Path) -> None:
    later = tmp_path / "made" / "later"
    assert doctor.folder(later, 1).well
    assert not later.exists()
    full = doctor.folder(later, 1 << 62)
    assert not full.well
    assert "needed" in full.found


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    finding = doctor.folder(tmp_path / "made later", 1)
    tmp_path.chmod(0o700)
    assert not finding.well
    assert "chmod" in finding.mend


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    assert doctor.permissions(home).found == "nothing is stored yet"
    home.mkdir(mode=0o700)
    database = home / "sessions.db"
    database.touch(0o600)
    (home / "voices").mkdir()
    (home / "voices" / "amy.onnx").touch(0o644)
    assert doctor.permissions(home).well
    database.chmod(0o644)
    finding = doctor.permissions(home)
    assert (finding.well, finding.found) == (False, f"others can read {database}")
    assert finding.mend == f"chmod -R go= '{home}'"
    home.chmod(0o755)
    assert "and 1 more" in doctor.permissions(home).found
    database.chmod(0o600)
    home.chmod(0o777 | stat.S_ISVTX)
    assert doctor.permissions(home).well


def test_devices() -> None:
    assert doctor.devices(["Speaker"], []).well
    silent = doctor.devices([], ["Microphone"])
    assert (silent.well, silent.found) == (False, "no output device; in: Microphone")


def test_voice() -> None:
    assert doctor.voice("pyttsx3", 0.5).well
    assert not doctor.voice("pyttsx3", 0.0).well


def test_missing_packages() -> None:
    assert doctor.missing_packages(["json", "no_such_package_here"]) == ["no_such_package_here"]
