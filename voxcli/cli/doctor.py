"""`voxcli doctor`: tells whether one can chat here, and how to mend problems."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from voxcli.cli.interface.common import (
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    JsonFlag,
    ModelFlag,
    QuantizeFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    given,
    print_json,
    print_text,
)
from voxcli.output import Output
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.app.checks.verdict import Check, Verdict

MARKS = {"ok": "\N{CHECK MARK}", "warn": "!", "fail": "\N{BALLOT X}"}
Command = Literal["chat", "once", "batch"]
ASCII_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(
    engine: EngineFlag = None,
    url: UrlFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    for_: Annotated[Command, typer.Option("--for", help="What should work for exit code 0.")] = "chat",
    json_: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Tell whether you can chat here, and how to mend problems. The exit code is 0 only if you can."""
    from voxcli.app.checks.doctor import probes
    from voxcli.app.checks.verdict import COMMANDS, examine, verdict

    flags = given(
        engine=engine,
        url=url,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        voice=voice,
    )
    with _progress() as progress:
        checks = examine(probes(config, flags, progress), for_, progress)
    verdicts = {command: verdict(command, checks) for command in COMMANDS}
    main = verdicts[for_]
    if json_:
        commands = {name: {"ok": each.ok, "found": each.line} for name, each in verdicts.items()}
        report = {"for": for_, "verdict": main.sentence, "commands": commands}
        print_json({"ok": main.ok, **report, "checks": [asdict(check) for check in checks]})
    else:
        _print(main, verdicts.values(), checks)
    raise typer.Exit(0 if main.ok else 1)


def _print(main: "Verdict", verdicts: "Iterable[Verdict]", checks: "Iterable[Check]") -> None:
    """Print the verdict, a line for each command, and a line for each check."""
    encoding = sys.stdout.encoding or "ascii"
    mend = "" if main.ok else main.blockers[0].mend
    print_text(_line("ok" if main.ok else "fail", "", main.sentence, mend, encoding))
    for each in verdicts:
        state = "ok" if each.ok else "fail" if each.command == main.command else "warn"
        print_text(_line(state, each.command, each.line, "", encoding))
    print_text("")
    for check in checks:
        print_text(_line(check.state, check.name, check.found, check.mend, encoding))


def _line(state: str, name: str, found: str, mend: str, encoding: str) -> str:
    """Return a line, in characters of `encoding`."""
    mark = (MARKS if encoding.lower().replace("-", "") == "utf8" else ASCII_MARKS)[state]
    line = printable(f"{mark} {f'{name:<12} ' if name else ''}{found}{f' -> {mend}' if mend else ''}")
    return line.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give a function that shows on a terminal what is being checked; the line disappears at the end."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _what: None
        return

    def show(text: str) -> None:
        Output(sys.stderr).write(f"\r\x1b[K{text}")  # A check of devices replaces `sys.stderr`.

    try:
        yield lambda what: show(f"checking {what} \u2026")
    finally:
        show("")
