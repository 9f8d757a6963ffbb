"""`voxcli results`: shows what a batch run has written."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxcli.cli.interface.common import ForceFlag, JsonFlag, VerboseFlag, print_json, print_text, write_private
from voxcli.errors import ConfigError

ROWS = 50  # the default of -n


class ResultsFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    MD = "md"
    HTML = "html"


def results(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="Results of `voxcli batch`, or - for stdin.")],
    failed: Annotated[bool, typer.Option("--failed", help="Show the failed items alone.")] = False,
    most: Annotated[
        int | None, typer.Option("-n", metavar="N", min=0, help=f"Rows to show; 0 for all. The table shows {ROWS}.")
    ] = None,
    format_: Annotated[
        ResultsFormat, typer.Option("--format", help="csv, md and html give every item.")
    ] = ResultsFormat.TABLE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE instead of stdout.")
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Show the results of a batch run: items, failures by kind, and latency."""
    from voxcli.app.results import Selection, as_json, as_tables, exported, open_results

    in_tables = format_ is ResultsFormat.TABLE
    if output is not None and (in_tables or json):
        raise ConfigError(
            "--output needs --format csv, md or html", hint="voxcli results FILE --format html -o page.html"
        )
    if json and (not in_tables or failed or most is not None):
        raise ConfigError(
            "--json counts all items: neither --format nor --failed nor -n applies", hint="leave them out"
        )
    if force and output is None:
        raise ConfigError("--force is for the file of --output", hint="add -o FILE, or leave it out")
    selection = Selection(failed, most if most is not None else ROWS if in_tables else 0)
    with open_results(file, selection) as reader:
        if json:
            print_json(as_json(reader))
        elif in_tables:
            print_text(as_tables(reader), end="")
        else:
            text = "".join(exported(reader, format_))
            write_private(output or Path("-"), text, force=force, flag="--output", inputs=[] if file == "-" else [file])
