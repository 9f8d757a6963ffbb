"""Values that the shell completes: quick, never failing, without importing anything heavy.

Each function returns pairs of a value and what it means. Typer leaves out those that don't begin with what was typed.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

Values = list[tuple[str, str]]

CHECKPOINTS = [("mini", "Voxtral Mini 3B"), ("small", "Voxtral Small 24B")]
LOCK_SECONDS = 0.2  # the longest wait for another program that writes sessions
MOST_SESSIONS = 200


def never_failing(values: Callable[[], Values]) -> Callable[[str], Values]:
    """Return a function for Typer's `autocompletion`: a failure would garble the line that is being typed."""

    @wraps(values)
    def complete(incomplete: str) -> Values:
        del incomplete
        try:
            return values()
        except Exception:  # noqa: BLE001 - without values the shell completes nothing
            return []

    complete.__annotations__ = {"incomplete": str, "return": Values}
    del complete.__wrapped__  # Typer looks at the parameters
    return complete


@never_failing
def engines() -> Values:
    """Return the engines."""
    return [
        ("auto", "voxtral if there is a GPU for it, else embedded"),
        ("voxtral", "Voxtral on this machine"),
        ("embedded", "small models, for machines without a GPU"),
        ("remote", "a server; needs --url"),
    ]


@never_failing
def compute_devices() -> Values:
    """Return what the voxtral engine can run on; each NVIDIA GPU by its number."""
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    numbered = [(f"cuda:{number}", "this GPU") for number in range(gpus)]
    return [
        ("auto", "the best one"),
        ("cuda", "the GPU with the most memory"),
        *numbered,
        ("mps", "Apple"),
        ("cpu", ""),
    ]


@never_failing
def sessions() -> Values:
    """Return the names of the stored sessions, the newest first."""
    import sqlite3
    from contextlib import closing

    from voxcli.config.paths import data_folder

    path = data_folder() / "sessions.db"
    if not path.is_file():
        return []
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)) as connection:
        rows = connection.execute("SELECT name FROM sessions ORDER BY id DESC LIMIT ?", (MOST_SESSIONS,)).fetchall()
    return [(name, "") for (name,) in rows if isinstance(name, str) and name.isprintable()]


@never_failing
def facts() -> Values:
    """Return the numbers of the facts about the user."""
    from voxcli.config.paths import data_folder
    from voxcli.core.storage.facts import FactFile
    from voxcli.printable import printable

    return [(str(number), printable(fact)) for number, fact in enumerate(FactFile(data_folder()).read(), 1)]


@never_failing
def personas() -> Values:
    """Return the personas that voxcli has, and those in the default settings file."""
    import tomllib

    from voxcli.config.paths import config_file

    shipped = {"plain": "the default", "tutor": "a language tutor", "interpreter": "interpreter:target=LANGUAGE"}
    path = config_file()
    own = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("personas", {}) if path.is_file() else {}
    return [*shipped.items(), *((name, "yours") for name in own if name not in shipped and name.isprintable())]


@never_failing
def tools() -> Values:
    """Return the tools in the default settings file; of servers only what their tools begin with."""
    import tomllib

    from voxcli.config.paths import config_file
    from voxcli.printable import first_line

    settings = tomllib.loads(config_file().read_text(encoding="utf-8-sig"))
    tables = settings.get("tools", {})
    commands = [
        (name, first_line(table.get("description") or "command"))
        for name, table in tables.items()
        if isinstance(table, dict) and "command" in table and name.isprintable()
    ]
    named = [(str(name), "built-in") for name in tables.get("builtin", [])] + commands
    return [*named, *((f"{server}_", f"tools of mcp.{server}") for server in settings.get("mcp", {}))]


@never_failing
def voices() -> Values:
    """Return the kinds of voices, and the voices that are here."""
    return [
        ("auto", "the neural voice where it is installed, else the system's"),
        ("neural", "a neural voice, English"),
        ("pyttsx3", "the system's voice"),
        ("openai:", "a voice on a server: openai:URL#NAME"),
        *((f"{kind}:{name}", "") for kind, name in _voices()),
    ]


@never_failing
def checkpoints() -> Values:
    """Return the checkpoints of Voxtral that have a short name."""
    return CHECKPOINTS


@never_failing
def wake_words() -> Values:
    """Return the wake words."""
    return [("hey_jarvis", ""), ("alexa", ""), ("hey_mycroft", ""), ("okay_nabu", "")]


@never_failing
def control_commands() -> Values:
    """Return what `voxcli control` can send."""
    from voxcli.chat.control import COMMANDS

    return [(command, "") for command in COMMANDS]


@never_failing
def models() -> Values:
    """Return what `voxcli models pull` takes, where it has a short name."""
    return [*CHECKPOINTS, ("embedded", "small models for any machine"), ("smart-turn", "judges the end of your turn")]


def _voices() -> Iterator[tuple[str, str]]:
    from importlib.util import find_spec

    from voxcli.config.paths import data_folder

    if find_spec("hibari"):
        yield "neural", "heart"
    for path in sorted((data_folder() / "voices").glob("*.onnx")):
        yield "piper", path.stem
    for folder in (Path("/usr/share/espeak-ng-data"), *Path("/usr/lib").glob("*/espeak-ng-data")):
        for path in sorted((folder / "lang").rglob("*")):
            if path.is_file():
                yield "pyttsx3", path.name.lower()
