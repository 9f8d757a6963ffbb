"""What the modules of the Voxtral engine need to be imported."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_missing_packages_say_what_to_install(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from voxcli.errors import ModelError
try:
    import voxcli.engines.voxtral.engine
except ModelError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'voxcli[voxtral]'"


def test_prompts_and_decoding_need_neither_transformers_nor_mistral_common() -> None:
    pytest.importorskip("torch")
    program = (
        "import sys, voxcli.engines.voxtral.prompt; assert 'torch' not in sys.modules\n"
        "import voxcli.engines.voxtral.runtime.decoder; print({'transformers', 'mistral_common'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
