"""Runs commands of voxcli in hostile environments, each in a fork of one process, which starts Python only once.

`python -m tests.support.hostile FOLDER` reads a JSON list of cases from standard input and prints a list of outcomes.
"""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TextIO

SECONDS = 60  # a case that takes longer ends with SIGALRM
ROOT = Path(__file__).parent.parent.parent
CLOSED = "closed"


@dataclass(frozen=True)
class Case:
    """A command in an environment."""

    arguments: list[str]
    variables: dict[str, str | None] = field(default_factory=dict)  # None: not set
    folder: str = ""  # working directory
    removes_folder: bool = False  # the working directory no longer exists
    stdin: str = os.devnull  # a file, or CLOSED
    stdout: str = ""  # a file, or CLOSED; by default it is returned
    stderr: str = ""
    encoding: str = "utf-8"  # Encoding of the standard streams.


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code; negative: the signal that ended it."""

    code: int
    stdout: str
    stderr: str


def outcomes(cases: list[Case], folder: Path, prefix: list[str]) -> list[Outcome]:
    """Run cases in one process.

    Args:
        folder: for their output; it exists.
        prefix: command that the process runs under, such as one that takes root's rights.
    """
    command = [*prefix, sys.executable, "-m", "tests.support.hostile", str(folder)]
    text = json.dumps([asdict(case) for case in cases])
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [Outcome(**each) for each in json.loads(done.stdout)]


def _outcome(case: Case, folder: Path) -> Outcome:
    out, err = folder / "stdout", folder / "stderr"
    for path in (out, err):
        path.write_bytes(b"")
    child = os.fork()
    if not child:
        _run(case, str(out), str(err))
    _, status = os.waitpid(child, 0)
    texts = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err)]
    return Outcome(os.waitstatus_to_exitcode(status), *texts)


def _run(case: Case, out: str, err: str) -> NoReturn:
    """Run a case in this process and end it as Python ends."""
    import signal

    signal.alarm(SECONDS)
    for name, value in case.variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if case.folder:
        os.chdir(case.folder)
        if case.removes_folder:
            Path(case.folder).rmdir()
    sys.stdin, sys.stdout, sys.stderr = (
        _stream(number, name, case.encoding)
        for number, name in enumerate((case.stdin, case.stdout or out, case.stderr or err))
    )
    setattr(sys, "__stderr__", sys.stderr)  # noqa: B010 - declared constant; the devices compare it with sys.stderr
    sys.argv = ["voxcli", *case.arguments]
    code = 0
    try:
        from voxcli import cli

        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the outcome is the test's
        traceback.print_exc()
        code = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
    except OSError:
        code = 120  # Python's, if it can't flush at its end
    os._exit(code)


def _stream(number: int, name: str, encoding: str) -> TextIO | None:
    """Replace a standard stream by a file; closed streams are None, as Python makes them."""
    os.close(number)
    if name == CLOSED:
        return None
    mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND
    opened = os.open(name, mode)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return open(
        number,
        "r" if number == 0 else "w",
        encoding=encoding,
        errors="backslashreplace" if number == 2 else "strict",
        closefd=False,
    )


def _load() -> None:
    """Import what most commands import, so that each fork need not."""
    modules = (
        "voxcli.cli",
        "typer.rich_utils",
        "voxcli.app.once",
        "voxcli.core.storage.store",
        "voxcli.config.toml_text",
        "voxcli.core.storage.export",
        "voxcli.audio.decoder",
        "sounddevice",
    )
    for name in (*modules, "voxcli.engines.voxtral.checkpoint.catalog", "huggingface_hub"):
        import_module(name)


def _imports_itself(case: Case) -> bool:
    usual = Case(case.arguments, case.variables)
    return case.arguments == ["--version"] and case != usual


def _main(folder: Path) -> None:
    """Run the cases; where streams or folders are unusual, `--version` runs before anything is imported here."""
    cases = [Case(**case) for case in json.load(sys.stdin)]
    found = {index: _outcome(case, folder) for index, case in enumerate(cases) if _imports_itself(case)}
    _load()
    found |= {index: _outcome(case, folder) for index, case in enumerate(cases) if index not in found}
    sys.stdout.write(json.dumps([asdict(found[index]) for index in range(len(cases))]))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
