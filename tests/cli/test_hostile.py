"""Every command in environments that are broken in some way: an exit code of its kind, two lines, no traceback."""

import re
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.support.batches import make_recording
from tests.support.hostile import CLOSED, Case, Outcome, outcomes
from tests.support.privileges import bound_by_permissions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the environments are Linux's")
FULL = "/dev/full"
ROOT = Path(__file__).parent.parent.parent

USUAL = {  # command: its exit code in an environment that is not broken, with a server that does not answer
    "--version": 0,
    "--help": 0,
    "sessions list": 0,
    "sessions show x": 2,
    "sessions export x": 2,
    "sessions delete x -y": 2,
    "config show": 0,
    "config path": 0,
    "config init": 0,
    "models list": 0,
    "models pull nonsense": 4,
    "voices": 0,
    "devices": 0,
    "doctor": 1,
    "once missing.wav --session s": 3,
    "batch RECORDING --out RESULTS": 6,
    "chat --session s --max-turns 1": 5,
}
STORED = ("sessions list", "sessions show x", "sessions export x", "sessions delete x -y")
SETTINGS = (
    "config show",
    "once missing.wav --session s",
    "batch RECORDING --out RESULTS",
    "chat --session s --max-turns 1",
)
KEPT = ("once missing.wav --session s", "chat --session s --max-turns 1")  # they write the store
PRINTING = ("--version", "--help", "config show", "config path", "models list", "voices", "devices")


HEAVY = (
    "--help",
    "voices",
    "doctor",
    "batch RECORDING --out RESULTS",
    "chat --session s --max-turns 1",
    "models pull nonsense",
    "sessions export x",  # opens the store as "sessions show x" does
)
LIGHT = tuple(command for command in USUAL if command not in HEAVY)


def codes(code: int, *commands: str) -> dict[str, int]:
    return dict.fromkeys(commands, code)


@dataclass(frozen=True)
class Environment:
    """A broken environment, as changes to a case; `{base}` is a folder of its own."""

    name: str
    variables: dict[str, str | None] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)  # Exit codes that differ from the usual one.
    shut: tuple[str, ...] = ()  # folders and files without any permission
    read_only: tuple[str, ...] = ()
    changes: dict[str, object] = field(default_factory=dict)  # What the case changes.
    commands: tuple[str, ...] = LIGHT


HOME_SHUT = codes(1, *STORED) | codes(2, *SETTINGS, "config init", "voices") | codes(4, "models list")
XDG = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
SHUT_SETTINGS = "home/.config/voxcli/config.toml"
IN_CWD: dict[str, object] = {"folder": "{base}/cwd"}
ALL_CLOSED: dict[str, object] = {"stdin": CLOSED, "stdout": CLOSED, "stderr": CLOSED}
DELETED = {command: 2 for command in USUAL if not command.startswith("--")}
ENVIRONMENTS = (
    Environment("usual"),
    Environment("home shut", shut=("home",), expected=HOME_SHUT, commands=tuple(USUAL)),
    Environment("home read-only", read_only=("home",), expected=codes(2, "config init") | codes(1, *KEPT)),
    Environment("home not set", {"HOME": None, "XDG_DATA_HOME": "{base}/d", "XDG_CONFIG_HOME": "{base}/c"}),
    Environment("home names nothing", {"HOME": "{base}/gone/home"}),
    Environment("home is a file", {"HOME": "{base}/file"}, codes(1, *STORED, *KEPT) | codes(2, "config init")),
    Environment("config shut", shut=("home/.config",), expected=codes(2, *SETTINGS, "config init")),
    Environment("settings shut", shut=(SHUT_SETTINGS,), expected=codes(2, *SETTINGS, "config init")),
    Environment("cache shut", shut=("home/.cache",), expected=codes(4, "models list"), commands=LIGHT),
    Environment("data shut", shut=("home/.local",), expected=codes(1, *STORED, *KEPT), commands=(*LIGHT, "voices")),
    Environment("data read-only", read_only=("home/.local",), expected=codes(1, *KEPT)),
    Environment(
        "XDG names files", dict.fromkeys(XDG, "{base}/file"), codes(1, *STORED, *KEPT) | codes(2, "config init")
    ),
    Environment("XDG is relative", dict.fromkeys(XDG, "xdg"), changes=IN_CWD),
    Environment("XDG is nonsense", dict.fromkeys(XDG, "~nobody-here/\x1b[2J\udcff"), changes=IN_CWD),
    Environment("VOXCLI_HOME of nobody", {"VOXCLI_HOME": "~nobody-here/x"}, codes(2, *STORED, *KEPT, "voices")),
    Environment(
        "stdout full", changes={"stdout": FULL}, expected=codes(1, *PRINTING), commands=(*LIGHT, "--help", "voices")
    ),
    Environment("stdin closed", changes={"stdin": CLOSED}, commands=(*LIGHT, "chat --session s --max-turns 1")),
    Environment("stdout closed", changes={"stdout": CLOSED}, commands=(*LIGHT, "chat --session s --max-turns 1")),
    Environment("stderr full", changes={"stderr": FULL}),
    Environment("all closed", changes=ALL_CLOSED, commands=(*LIGHT, "--help", "chat --session s --max-turns 1")),
    Environment("folder deleted", changes=IN_CWD | {"removes_folder": True}, expected=DELETED, commands=tuple(USUAL)),
    Environment("ASCII", {"LC_ALL": "C", "VOXCLI_HOME": "{base}/caf\udce9\u65e5"}, changes={"encoding": "ascii"}),
    Environment("no terminal", {"COLUMNS": "0", "LINES": "x", "TERM": None}, commands=(*LIGHT, "--help")),
    Environment("TMPDIR names nothing", {"TMPDIR": "{base}/gone"}, commands=(*LIGHT, "voices")),
    Environment("TZ is nonsense", {"TZ": "Mars/\udcff\u00fc;rm"}),
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recording(tmp_path_factory.mktemp("recording") / "a.wav")


@pytest.fixture(scope="module")
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def case(command: str, environment: Environment, base: Path, recording: Path, port: int) -> Case:
    """Return a command in an environment whose files are below `base`."""
    variables: dict[str, str | None] = {
        "HOME": "{base}/home",
        "VOXCLI_ENGINE": "remote",
        "VOXCLI_REMOTE__URL": f"http://127.0.0.1:{port}/v1",
        "VOXCLI_REMOTE__RETRIES": "0",
        "VOXCLI_VOICE": "piper:nobody",
        "VOXCLI_HOME": None,
        **dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE")),
    }
    named = {name: value and value.format(base=base) for name, value in (variables | environment.variables).items()}
    words = {"RECORDING": str(recording), "RESULTS": str(base / "results.jsonl")}
    arguments = [words.get(word, word) for word in command.split()]
    changes = {
        name: value.format(base=base) if isinstance(value, str) else value
        for name, value in environment.changes.items()
    }
    return replace(Case(arguments, named), **changes)  # type: ignore[arg-type]


def lay(environment: Environment, base: Path) -> None:
    """Make the files of an environment."""
    for name in ("home/.config/voxcli", "home/.cache/huggingface/hub", "home/.local/share/voxcli/voices", "cwd"):
        (base / name).mkdir(parents=True)
    (base / "file").touch()
    if "home/.config/voxcli/config.toml" in environment.shut:
        (base / "home/.config/voxcli/config.toml").touch()
    for name in environment.read_only:
        for path in (base / name, *(path for path in (base / name).rglob("*") if path.is_dir())):
            path.chmod(0o500)
    for name in environment.shut:
        (base / name).chmod(0)


def faults(outcome: Outcome, expected: int) -> list[str]:
    """Return what is wrong with an outcome, in words."""
    wrong = [] if outcome.code == expected else [f"exit code {outcome.code}, not {expected}"]
    lines = outcome.stderr.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("voxcli: ")]
    if outcome.code and lines and lines[-1:] != ["Aborted."]:
        last = lines[errors[-1] :] if errors else []
        if len(errors) != 1 or len(last) > 2:
            wrong.append("no error of one line and a hint")
    if re.search(r"Traceback|unexpected|Exception ignored|  File ", outcome.stderr):
        wrong.append("not an error of voxcli's")
    return wrong


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, recording: Path, closed_port: int
) -> dict[tuple[str, str], Outcome]:
    """The outcomes of all commands in all environments, by the names of both."""
    prefix = bound_by_permissions([])
    keys, cases = [], []
    for environment in ENVIRONMENTS:
        for command in environment.commands:
            base = tmp_path_factory.mktemp("case")
            lay(environment, base)
            keys.append((environment.name, command))
            cases.append(case(command, environment, base, recording, closed_port))
    return dict(zip(keys, outcomes(cases, tmp_path_factory.mktemp("streams"), prefix), strict=True))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment.name)
def test_every_command_ends_well_in_every_environment(
    environment: Environment, found: dict[tuple[str, str], Outcome]
) -> None:
    wrong = {}
    for command in environment.commands:
        outcome = found[environment.name, command]
        if now := faults(outcome, environment.expected.get(command, USUAL[command])):
            wrong[command] = (now, outcome.stderr[-400:])
    assert wrong == {}
