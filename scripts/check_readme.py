"""Runs the README's shell commands, so that they stay true.

Every line of a ```sh block is run, in one shell for each block, in the root of the checkout. Lines that
only call what calls this script (`make test`) are left out; blocks marked otherwise are not commands to
check, such as those that install. Conversations go to a folder of their own.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CALLERS = ("make test", "make check")
WRITTEN = ("reply.wav", "results.jsonl")  # Files that the commands write, and would not replace.


def blocks(text: str) -> list[str]:
    """Return the shell blocks of a Markdown text, without the lines that would call this script again."""
    found = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["".join(line for line in block.splitlines(True) if not line.startswith(CALLERS)) for block in found]


def run(block: str, home: str) -> int:
    """Run a block, stopping at the first command that fails; return its exit code."""
    print(block, flush=True)
    environment = {**os.environ, "VOXCLI_HOME": home}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Return 0 if every command of the README works."""
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    if not found:
        print("README.md has no shell commands", file=sys.stderr)
        return 1
    for name in WRITTEN:
        (ROOT / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as home:
        for block in found:
            if code := run(block, home):
                print(f"README.md: a command failed with exit code {code}", file=sys.stderr)
                return 1
    print(f"README.md: the commands of {len(found)} blocks work")
    return 0


if __name__ == "__main__":
    sys.exit(main())
