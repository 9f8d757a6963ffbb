"""The shape of the program: dependencies run one way, and nothing heavy is imported before it is needed."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "voxcli"

LAYERS = (  # a part may import what stands above it; parts on one line don't know one another
    {"errors", "printable"},
    {"audio", "config", "output", "output_files"},
    {"core", "servers", "hub"},
    {"engines", "tts", "tools"},
    {"chat", "batch"},
    {"app"},
    {"cli"},
    {"__main__"},
)
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
HEAVY = {"torch", "transformers", "numpy", "sounddevice", "pydantic", "av", "soxr", "sqlite3", "rich.progress"}
HEAVY |= {"jsonschema", "mcp", "openai", "httpx2", "keyring", "ray", "fsspec", "tomlkit", "readline"}
MOST_MODULES, MOST_ROOT_MODULES = 15, 6  # in a folder; in the package's own, `__init__` and `__main__` among them
FOREIGN_WORDS = {  # words of our own, where the field has its words
    *("heard", "hear", "desk", "shelf", "station", "crew", "tally", "swell", "losable", "chooser", "hasten", "seat"),
    *("draft", "drafts", "ears", "sounding"),
}
PAGES = [
    [],
    ["chat"],
    ["control"],
    ["once"],
    ["batch"],
    ["sessions"],
    ["sessions", "list"],
    ["sessions", "fork"],
    ["stats"],
    ["models"],
    ["models", "pull"],
    ["voices"],
    ["config"],
    ["config", "init"],
    ["config", "set"],
    ["facts", "add"],
    ["personas", "add"],
    ["tools"],
    ["tools", "test"],
    ["devices"],
    ["doctor"],
]


def imported(path: Path) -> Iterator[str]:
    """Give the dotted names of all that a module imports, wherever in it; of ours, down to the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            base = node.module or ""
            for alias in node.names:
                yield f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("voxcli.") and (path.is_dir() or path.with_suffix(".py").is_file())


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def importers(*packages: str) -> set[str]:
    """Return the files that import one of the packages, relative to the package's folder."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in sources()
        if any(name.split(".")[0] in packages or name in packages for name in imported(path))
    }


def test_dependencies_run_one_way() -> None:
    wrong = []
    for path in sources():
        part = part_of(path)
        if part == "__init__":
            continue  # of the root: another test
        assert part in RANKS, f"{part} has no place in LAYERS"
        for name in imported(path):
            needed = name.removeprefix("voxcli.").split(".")[0]
            if name.startswith("voxcli.") and needed != part and RANKS[needed] >= RANKS[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module_name(path): set(imported(path)) for path in sources()}
    needed = {name: {each for each in names if each in modules} - {name} for name, names in modules.items()}
    while leaves := {name for name, names in needed.items() if not names}:  # import nothing that is left
        needed = {name: names - leaves for name, names in needed.items() if name not in leaves}
    assert needed == {}, "these import one another, or what does"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_a_folder_holds_one_subject() -> None:
    modules = Counter(path.parent for path in sources() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in modules.items() if count > MOST_MODULES} == {}
    assert len([path for path in sources() if path.parent == PACKAGE]) <= MOST_ROOT_MODULES


def test_class_names_are_unique() -> None:
    names = Counter(
        node.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_identifiers_are_the_words_of_the_field() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in identifiers(path)
        if FOREIGN_WORDS & set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower()))
    }
    assert found == set()


def identifiers(path: Path) -> Iterator[str]:
    """Give the names that a module defines: classes, functions, arguments, fields and variables."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_the_package_does_not_know_its_benchmarks() -> None:
    assert importers("benchmarks", "tests") == set()


def test_benchmarks_use_public_names_alone() -> None:
    private = {
        ast.unparse(node)
        for path in (ROOT / "benchmarks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert {name for name in private if not name.startswith("self.")} == {"config._compile_all_devices"}  # transformers


def test_the_root_imports_nothing() -> None:
    assert list(imported(PACKAGE / "__init__.py")) == []


def test_settings_are_known_to_the_command_line_and_the_composition_root_alone() -> None:
    known = importers("voxcli.config.loading", "voxcli.config.schema")
    assert known
    assert all(path.startswith(("app/", "cli/", "config/")) for path in known)


def test_devices_are_opened_in_one_file() -> None:
    assert importers("sounddevice") == {"chat/devices/portaudio.py"}


def test_models_stay_under_engines() -> None:
    for folder, *packages in (
        ("engines/voxtral/", "torch", "transformers", "safetensors"),
        ("hub/", "huggingface_hub"),
    ):
        found = importers(*packages)
        assert found
        assert all(path.startswith(folder) for path in found)
    assert all(path.startswith("engines/embedded/") for path in importers("faster_whisper", "xllamacpp"))


def test_only_the_remote_engine_the_remote_voice_and_mcp_speak_to_servers() -> None:
    found = importers("openai", "httpx", "httpx2", "requests", "keyring")
    parts = {f"servers/{name}.py" for name in ("server", "call", "errors", "tls")}
    assert found == parts | {"engines/openai/stream.py", "tts/remote.py", "tools/mcp/transport.py"}
    assert importers("urllib.request") == {"config/proxies.py"}, "it reads proxies, and opens nothing"


def test_mcp_is_a_leaf() -> None:
    known = importers("mcp", "anyio")
    assert known
    assert all(path.startswith("tools/mcp/") for path in known)
    assert importers("voxcli.tools.mcp.server", "voxcli.tools.mcp.transport") <= known | {"app/tools.py"}
    assert importers("jsonschema", "referencing") == {"tools/arguments.py"}


def test_ray_is_known_in_one_file() -> None:
    assert importers("ray") == {"batch/ray/cluster.py"}


def test_the_wake_word_is_a_leaf() -> None:
    assert importers("pymicro_wakeword") == {"chat/speech/wake_word.py"}
    assert importers("voxcli.chat.speech.wake_word") == {"app/chat.py", "app/listening.py"}


def test_only_views_draw() -> None:
    assert importers("rich") == {
        "app/results.py",
        "app/stats.py",
        "app/views.py",
        "chat/views/screen.py",
        "chat/views/terminal.py",
    }


def test_only_the_command_line_knows_typer() -> None:
    assert all(path.startswith("cli/") for path in importers("typer"))


def test_nothing_is_unpickled() -> None:
    assert importers("pickle", "marshal", "shelve", "dill", "joblib") == set()


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after_help(*pages: list[str]) -> set[str]:
    """Return what is imported when pages of help have been printed."""
    program = f"""
import json, sys
from typer.testing import CliRunner
from voxcli.cli import app
results = [CliRunner().invoke(app, [*page, "--help"]) for page in {pages!r}]
assert all(result.exit_code == 0 and "Usage: " in result.output for result in results)
print(json.dumps(sorted(sys.modules)))
"""
    return set(json.loads(python(program)))


def test_help_imports_nothing_heavy() -> None:
    modules = modules_after_help([])
    assert modules & HEAVY == set()
    assert {name for name in modules if name.startswith("voxcli.") and not name.startswith("voxcli.cli")} <= {
        "voxcli.errors",
        "voxcli.output",
        "voxcli.printable",
    }


def test_no_page_of_help_imports_what_its_command_needs() -> None:
    assert modules_after_help(*PAGES) & HEAVY <= {"pydantic"}  # Typer's own, to read the flags of a command


def test_what_is_called_heavy_exists() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert [name for name in HEAVY if find_spec(name) is None] == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the threads")
def test_numpy_starts_no_threads_in_a_command() -> None:
    program = """
import os, sys
from voxcli.cli import main
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.pop(name, None)
sys.argv = ["voxcli", "version"]
try:
    main()
except SystemExit:
    pass
import numpy
numpy.ones((1000, 1000)) @ numpy.ones((1000, 1000))
print(len(os.listdir("/proc/self/task")))
"""
    assert python(program).splitlines()[-1] == "1"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_flags(shell: str) -> None:
    def completed(*words: str) -> str:
        line = " ".join(("voxcli", *words))
        return python(
            "from voxcli.cli import main; main()",
            _VOXCLI_COMPLETE=f"complete_{shell}",
            COMP_WORDS=line,
            COMP_CWORD=str(len(words)),
            _TYPER_COMPLETE_ARGS=line,
            _TYPER_COMPLETE_FISH_ACTION="get-args",
        )

    assert "sessions" in completed("se")
    assert "export" in completed("sessions", "ex")
    assert "--save-reply" in completed("once", "--save")
    assert "doctor" not in completed("se")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_the_shell_is_printed(shell: str) -> None:
    script = python("from voxcli.cli import main; main()", _VOXCLI_COMPLETE=f"source_{shell}")
    assert "_VOXCLI_COMPLETE" in script
