"""Tests that recordings with mutated headers are clips or errors: no hang, no crash, no other exception."""

import re
import subprocess
import sys
from pathlib import Path

CASES, SEED = 2_000, 12


def test_mutated_headers_of_every_container() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.support.decoder_fuzz", str(CASES), str(SEED)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stdout.splitlines()[-1]
    assert (run.returncode, run.stderr) == (0, ""), f"case {last}"
    counted = re.fullmatch(r"(\d+) clips, (\d+) refused", last)
    assert counted
    clips, refused = map(int, counted.groups())
    assert clips + refused == CASES
    assert min(clips, refused) > CASES / 5
