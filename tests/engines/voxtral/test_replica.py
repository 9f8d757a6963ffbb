"""A checkpoint of full size on this machine's CPU, loaded in each format: its peak memory and its tokens.

VOXTRAL_REPLICA=FOLDER make test-replica, with a folder that `python -m benchmarks.replica FOLDER` wrote (9.4 GB).

Every model is loaded in a process of its own, one after the other, so a test needs at most 12 GB of memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPLICA = os.environ.get("VOXTRAL_REPLICA")
ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.skipif(not REPLICA, reason="VOXTRAL_REPLICA names no folder"),
    pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc"),
]


def in_a_process(form: str, *tokens: int) -> dict[str, Any]:
    """Run `tests.support.replica` and return what it prints."""
    command = [sys.executable, "-m", "tests.support.replica", str(REPLICA), form, *map(str, tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("form", ["none", "int8", "int4"])
def test_loading_holds_the_weights_once_and_tokens_are_those_of_transformers(form: str) -> None:
    """In bfloat16, two logits may be as good as equal, so a token counts if its logit is close to the highest one."""
    found = in_a_process(form)
    assert found["peak_bytes"] <= 1.1 * found["stored_bytes"] + found["layer_bytes"], found
    compared = in_a_process(form, *found["tokens"])
    assert max(compared["gaps"]) <= compared["tolerance"], compared
