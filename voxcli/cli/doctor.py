"""`voxcli doctor`: checks whether `voxcli once` would work here, and says how to mend problems."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from voxcli.cli.common import (
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
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.app.diagnostics import Check

MARKS = {"ok": "\N{CHECK MARK}", "warn": "!", "fail": "\N{BALLOT X}"}
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
    json_: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Check what `voxcli once` needs. The exit code is 0 only if it would work."""
    from voxcli.app.diagnostics import examine, would_work
    from voxcli.app.doctor import probes

    flags = given(
        engine=engine,
        url=url,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        voice=voice,
    )
    checks = examine(probes(config, flags))
    well = would_work(checks)
    if json_:
        print_json({"ok": well, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print_text(_line(check, sys.stdout.encoding or "ascii"))
    raise typer.Exit(0 if well else 1)


def _line(check: "Check", encoding: str) -> str:
    """Return the line of a check, in characters of `encoding`."""
    mark = (MARKS if encoding.lower().replace("-", "") == "utf8" else ASCII_MARKS)[check.state]
    mend = f" -> {check.mend}" if check.mend else ""
    line = printable(f"{mark} {check.name:<12} {check.found}{mend}")
    return line.encode(encoding, "backslashreplace").decode(encoding)
