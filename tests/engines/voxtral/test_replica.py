"""Loading a checkpoint of full size in each format: how much memory it takes, and which tokens come out.

VOXTRAL_REPLICA=FOLDER make test-replica, with a folder in which random weights have the published shapes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPLICA = os.environ.get("VOXTRAL_REPLICA")
HERE = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.skipif(not REPLICA, reason="VOXTRAL_REPLICA names no folder"),
    pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc"),
]


def loaded(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.replica", str(REPLICA), *arguments]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=1800, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_loading_holds_the_quantized_model_and_one_layer(form: str) -> None:
    found = loaded(form)
    assert found["peak_bytes"] <= 1.1 * found["stored_bytes"] + found["layer_bytes"]
    assert found["tokens"] == loaded(form, "--reference")["tokens"]
