import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.machines import NO_MPS, gpu, mac, machine
from voxcli.app import microphone
from voxcli.app.checks import diagnostics
from voxcli.app.checks.doctor import probes
from voxcli.app.checks.verdict import COMMANDS, Check, Finding, Probe, examine, verdict
from voxcli.cli import app
from voxcli.engines.embedded.chosen import hub_model
from voxcli.engines.embedded.recommended import PAIRS, recommended
from voxcli.engines.voxtral.checkpoint.shapes import PUBLISHED
from voxcli.engines.voxtral.device.demand import demand_of
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import Accelerator, Hardware
from voxcli.engines.voxtral.device.placement import Wanted
from voxcli.errors import ConfigError, ModelError

H200 = machine(Accelerator(name="H200", free_bytes=10_000_000_000, capability=(9, 0)))
CPU = Hardware(Accelerator("it was built without CUDA", "install another"), NO_MPS, None, torch_version="2.13.0")
OLD_DRIVER = Hardware(Accelerator("the driver is too old", "update it"), NO_MPS, None, torch_version="2.13.0")
TWO = machine(gpu(8), gpu(24, index=1))
HERE = Path("/models/mini")
ROOT = Path(__file__).parent.parent.parent


def failing() -> Finding:
    raise ModelError("it is gone", hint="voxcli models pull mini")


def examined(*probes: Probe) -> list[Check]:
    return examine(probes, "chat", lambda _name: None)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where settings, weights and sessions are looked for; nothing is there."""
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--engine", "embedded", *arguments])


def test_json_has_the_verdict_each_command_and_each_check(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_REPLY__MAX_TOKEN", "3")
    result = doctor("--json")
    report = json.loads(result.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert list(checks) == [
        *("python", "settings", "engine", "language", "gpu", "torch", "checkpoint", "embedded"),
        *("cache", "models", "devices", "microphone", "echo", "end-of-turn", "voice", "data", "permissions"),
    ]
    assert (checks["settings"]["state"], checks["settings"]["blocks"]) == ("fail", list(COMMANDS))
    assert "did you mean VOXCLI_REPLY__MAX_TOKENS?" in result.stdout
    assert (report["ok"], report["for"], result.exit_code) == (False, "chat", 1)
    assert report["verdict"].startswith("You can't chat yet: ")
    assert {name: each["ok"] for name, each in report["commands"].items()} == dict.fromkeys(COMMANDS, False)
    assert not (own_folders / "voxcli").exists(), "looking changes nothing"


def test_the_verdict_comes_first_and_nothing_heavy_is_imported(own_folders: Path) -> None:
    """Without a sound card: a recording can be asked, a chat is not possible."""
    code = (
        "import sys\nfrom voxcli.cli import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    (own_folders / "sounddevice.py").write_text(
        "class PortAudioError(Exception): pass\n"
        "class default: device = (-1, -1)\n"
        "query_devices = query_hostapis = list\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{own_folders}:{ROOT}", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--engine", "embedded", "--for", "once", "--voice", "piper:nobody"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "False\n")
    first, *lines = done.stdout.splitlines()
    assert first == "ok   You can ask a recording; replies are printed, not spoken"
    assert lines[:4] == [
        "ok   once         works; replies are printed, not spoken",
        "warn chat         does not work; see devices, microphone, voice",
        "ok   batch        works",
        "",
    ]
    assert "warn microphone   there is no input device -> connect a microphone, or type: voxcli chat --text" in lines


def test_a_wake_word_that_can_not_be_found_keeps_one_from_chatting(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymicro_wakeword", None)
    begun = probes(None, {"engine": "embedded", "live.wake_word": "alexa"}, lambda _name: None)
    [check] = examined(*(probe for probe in begun if probe.name == "wake-word"))
    assert (check.state, check.mend, check.blocks) == ("fail", "pip install 'voxcli[wake]'", ("chat",))


# --- Making checks -------------------------------------------------------------------------------


def absent() -> Finding:
    return Finding(False, "none\x1b[2J", "connect one")


def test_a_finding_fails_only_what_needs_the_part() -> None:
    checks = examined(Probe("a", lambda: Finding(True, "fine", "nothing")), Probe("b", absent, needed_by=("chat",)))
    assert checks == [Check("a", "ok", "fine", ""), Check("b", "fail", "none\x1b[2J", "connect one", ("chat",))]
    assert [verdict(command, checks).ok for command in COMMANDS] == [True, False, True]
    (other,) = examine([Probe("b", absent, needed_by=("chat",))], "once", lambda _name: None)
    assert (other.state, other.blocks) == ("warn", ("chat",))


def test_the_verdict_names_the_first_problem_and_how_many_more_there_are() -> None:
    found = verdict("chat", examined(Probe("a", failing), Probe("b", absent)))
    assert found.sentence == "You can't chat yet: it is gone (and 1 more)"
    assert found.line == "does not work; see a, b"


def test_without_the_echo_canceller_chat_works_half_duplex() -> None:
    found = verdict("chat", examined(Probe("echo", lambda: diagnostics.echo("auto", installed=False), ("chat",))))
    assert (found.ok, found.sentence) == (True, "You can chat; your voice can't interrupt a reply")


def test_an_error_is_a_finding_and_stops_no_other_check() -> None:
    names: list[str] = []
    checks = examine([Probe("model", failing), Probe("next", lambda: Finding(True, "fine"))], "once", names.append)
    assert checks[0] == Check("model", "fail", "it is gone", "voxcli models pull mini", COMMANDS)
    assert (checks[1].state, names) == ("ok", ["model", "next"])


# --- The microphone ------------------------------------------------------------------------------


def test_the_level_of_the_microphone() -> None:
    unknown = ("it delivers zeros", "unmute it")
    quiet = diagnostics.microphone(-62.4, is_zero=False, silence=unknown, noisy_dbfs=-36)
    assert (quiet.well, quiet.found) == (True, "-62 dBFS")
    loud = diagnostics.microphone(-20, is_zero=False, silence=unknown, noisy_dbfs=-36)
    assert (loud.well, loud.blocks, loud.mend) == (False, False, "voxcli chat --push-to-talk toggle")
    zero = diagnostics.microphone(-100, is_zero=True, silence=unknown, noisy_dbfs=-36)
    assert zero == Finding(False, *unknown)


@pytest.mark.parametrize(
    ("system", "answers", "why", "mend"),
    [
        ("linux", {"pactl": "mute: yes\n"}, "muted", "pactl set-source-mute @DEFAULT_SOURCE@ 0"),
        ("linux", {"pactl": "mute: no\n", "wpctl": "volume: 0.40 [muted]"}, "muted", "wpctl set-mute"),
        ("linux", {"amixer": "front left: capture 0 [0%] [off]"}, "muted", "amixer set Capture cap"),
        ("linux", {}, "it is muted, or the system does not permit", "voxcli devices"),
        ("darwin", {"osascript": "0\n"}, "muted", "set volume input volume"),
        ("darwin", {"osascript": "75\n"}, "does not permit", "Privacy_Microphone"),
        ("win32", {"reg": "value reg_sz deny"}, "does not permit", "ms-settings:privacy-microphone"),
        ("win32", {"reg": "value reg_sz allow"}, "it is muted, or", "ms-settings:sound"),
    ],
)
def test_a_muted_microphone_and_a_missing_permission_are_told_apart(
    system: str, answers: dict[str, str], why: str, mend: str
) -> None:
    found, command = microphone.why_silent(lambda words: answers.get(words[0], ""), system)
    assert why in found
    assert mend in command


def test_a_query_that_fails_is_no_answer() -> None:
    assert microphone.run_query([sys.executable, "-c", "print('Mute: YES')"]) == "mute: yes\n"
    assert microphone.run_query([sys.executable, "-c", "print(1); raise SystemExit(1)"]) == ""
    assert microphone.run_query(["no-such-program-here"]) == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may use every device")
def test_a_sound_card_of_another_group(tmp_path: Path) -> None:
    (tmp_path / "pcmC0D0c").touch(0)
    assert "usermod -aG audio" in microphone.no_access(tmp_path)


def test_a_sound_card_that_may_be_used(tmp_path: Path) -> None:
    assert microphone.no_access(tmp_path) == ""
    (tmp_path / "pcmC0D0c").touch()
    assert microphone.no_access(tmp_path) == ""
    assert diagnostics.devices([], [], "sudo usermod").mend == "sudo usermod"
    assert diagnostics.devices(["Speaker"], [], "sudo usermod").well


@pytest.mark.parametrize(
    ("setting", "installed", "well", "blocks"),
    [("auto", True, True, True), ("off", False, True, True), ("auto", False, False, False), ("on", False, False, True)],
)
def test_echo(setting: str, installed: bool, well: bool, blocks: bool) -> None:
    finding = diagnostics.echo(setting, installed=installed)
    assert (finding.well, finding.well or finding.blocks) == (well, blocks)
    assert ("half-duplex" in finding.found) is (setting == "off" or not installed)
    assert well or finding.mend == "pip install 'voxcli[echo]'"


@pytest.mark.parametrize(
    ("setting", "here", "well", "found"),
    [
        ("auto", True, True, "smart-turn"),
        ("auto", False, True, "silence alone; `pull it` adds a model"),
        ("silence", False, True, "silence alone"),
        ("smart-turn", True, True, "smart-turn"),
        ("smart-turn", False, False, "the end-of-turn model is not here"),
    ],
)
def test_end_of_turn(setting: str, here: bool, well: bool, found: str) -> None:
    finding = diagnostics.end_of_turn(setting, here=here, pull="pull it")
    assert (finding.well, finding.found) == (well, found)
    assert well or finding.mend == "pull it"


def test_language() -> None:
    assert diagnostics.language("embedded", "", "en").well
    german = diagnostics.language("embedded", "", "de")
    assert (german.well, german.blocks, "English only" in german.found) == (False, False, True)
    assert "German" in diagnostics.language("voxtral", "", "de").found
    assert "German" in diagnostics.language("remote", "mistralai/Voxtral-Mini-3B-2507", "de").found
    assert "German" not in diagnostics.language("remote", "qwen", "de").found


# --- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "well"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 7), True), ((3, 14, 0), False)]
)
def test_python(version: tuple[int, int, int], well: bool) -> None:
    assert diagnostics.python(version).well is well


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
    assert diagnostics.engine_in_use(wanted, why_no_gpu, checkpoint) == used


def test_auto_says_why() -> None:
    assert "no GPU was found" in diagnostics.engine("auto", "embedded", "no GPU was found").found
    assert "checkpoint is not here" in diagnostics.engine("auto", "embedded", "").found


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
    finding = diagnostics.torch_device(found, missing, device, gpu_present=gpu_present)
    assert finding.well is well
    assert text in finding.found
    assert finding.mend or well


def test_acceleration() -> None:
    assert diagnostics.acceleration("compiled", "") == Finding(True, "compiled kernels in CUDA graphs")
    assert diagnostics.acceleration("graphs", "no triton") == Finding(True, "CUDA graphs (no triton)")


def memory(hardware: Hardware, device: str = "auto", quantize: Asked = "auto") -> Finding:
    return diagnostics.memory(hardware, Wanted(device, quantize, 8192, 256), demand_of(PUBLISHED["mini"]))


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
    (check,) = examined(Probe("memory", lambda: memory(machine(gpu(4)))))
    assert (check.state, "does not fit" in check.found) == ("fail", True)
    assert "--device cpu" in check.mend
    with pytest.raises(ConfigError):
        memory(mac(24), quantize="int8")


def test_checkpoint() -> None:
    assert diagnostics.checkpoint("mini", HERE, 9_350_000_000, 0, Path("/hub")).well
    absent = diagnostics.checkpoint("mini", None, 9_350_000_000, 20_000_000_000, Path("/hub"))
    assert (absent.well, absent.mend) == (False, "voxcli models pull mini")
    no_room = diagnostics.checkpoint("mini", None, 9_350_000_000, 1_000_000_000, Path("/hub"))
    assert not no_room.well
    assert "HF_HOME" in no_room.mend
    hostile = diagnostics.checkpoint("a; rm -rf ~", None, 0, 0, Path("/hub"))
    assert hostile.mend == "voxcli models pull 'a; rm -rf ~'"


def test_embedded() -> None:
    assert diagnostics.embedded(HERE, [], "pip install it").well
    assert "first use" in diagnostics.embedded(None, [], "pip install it").found
    assert diagnostics.embedded(None, ["xllamacpp"], "pip install it") == Finding(
        False, "not installed: xllamacpp", "pip install it"
    )


def test_models() -> None:
    pair = recommended(8_000_000_000, 8)
    assert pair
    assert "voxcli models pull whisper:small, then Qwen/Qwen3-4B" in diagnostics.models("base", "", pair).found
    assert diagnostics.models("base", "", None).found == "Whisper base + SmolLM2-135M"
    assert diagnostics.models("small", "my.gguf", pair).found == "Whisper small + my.gguf"


@pytest.mark.parametrize(
    ("free", "cores", "whisper"),
    [(None, 64, None), (3_000_000_000, 64, None), (64_000_000_000, 2, None), (4_000_000_000, 4, "small")],
)
def test_a_pair_of_models_is_recommended_by_memory_and_cores(free: int | None, cores: int, whisper: str | None) -> None:
    pair = recommended(free, cores)
    assert (pair and pair.whisper) == whisper
    largest = recommended(64_000_000_000, 64)
    assert largest
    assert largest.free_gb == max(each.free_gb for each in PAIRS)
    assert all(hub_model(each.answer_model) and hub_model(f"whisper:{each.whisper}") for each in PAIRS)


def test_server() -> None:
    assert diagnostics.server("", ["tiny"]).well
    assert diagnostics.server("b", ["a", "b"]).well
    several, other = diagnostics.server("", ["a", "b"]), diagnostics.server("c", ["a"])
    assert (several.well, other.well) == (False, False)
    assert "a, b; none is chosen" in several.found
    assert "it has a; not c" in other.found
    assert "no models" in diagnostics.server("", []).found


def test_a_server_that_computes_wrongly_is_a_warning_for_whoever_needs_it() -> None:
    checks = examined(Probe("server", lambda: diagnostics.server("a", ["a"], "the wrong one")))
    assert checks == [Check("server", "warn", "it answers, with a; it is the wrong one", "")]
    assert all(verdict(command, checks).ok for command in COMMANDS)


def test_folder(tmp_path: Path) -> None:
    later = tmp_path / "made" / "later"
    assert diagnostics.folder(later, 1).well
    assert not later.exists()
    full = diagnostics.folder(later, 1 << 62)
    assert not full.well
    assert "needed" in full.found


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    finding = diagnostics.folder(tmp_path / "made later", 1)
    tmp_path.chmod(0o700)
    assert not finding.well
    assert "chmod" in finding.mend


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    assert diagnostics.permissions(home).found == "nothing is stored yet"
    home.mkdir(mode=0o700)
    database = home / "sessions.db"
    database.touch(0o600)
    (home / "voices").mkdir()
    (home / "voices" / "amy.onnx").touch(0o644)
    assert diagnostics.permissions(home).well
    database.chmod(0o644)
    finding = diagnostics.permissions(home)
    assert (finding.well, finding.found) == (False, f"others can read {database}")
    assert finding.mend == f"chmod -R go= '{home}'"
    home.chmod(0o755)
    assert "and 1 more" in diagnostics.permissions(home).found
    database.chmod(0o600)
    home.chmod(0o777 | stat.S_ISVTX)
    assert diagnostics.permissions(home).well


def test_devices() -> None:
    assert diagnostics.devices(["Speaker"], []).well
    silent = diagnostics.devices([], ["Microphone"])
    assert (silent.well, silent.found) == (False, "no output device; in: Microphone")


def test_voice() -> None:
    assert diagnostics.voice("pyttsx3", 0.5).well
    assert not diagnostics.voice("pyttsx3", 0.0).well


def test_missing_packages() -> None:
    assert diagnostics.missing_packages(["json", "no_such_package_here"]) == ["no_such_package_here"]
