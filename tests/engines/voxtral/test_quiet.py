"""What other libraries write reaches the log, and not the terminal."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from io import StringIO

import pytest

from voxcli.hub.quiet import quiet

LOUD = ("torch", "torch._inductor.utils", "transformers", "huggingface_hub", "mistral_common", "triton.compiler")

LATE_IMPORTS = """
import logging, sys, warnings
import torch, transformers, huggingface_hub
from voxcli.engines.voxtral.quiet_compiler import quiet_compiler
from voxcli.hub.quiet import quiet
with quiet(), quiet_compiler():
    import torch._inductor.select_algorithm, huggingface_hub.utils.logging, huggingface_hub.file_download
    import torch._inductor.config as inductor
    logging.getLogger("torch._inductor.utils").warning("Not enough SMs to use max_autotune_gemm mode")
    logging.getLogger("torch._inductor.select_algorithm").error("Runtime error during autotuning")
    logging.getLogger("huggingface_hub.file_download").warning("Xet Storage is enabled")
    transformers.utils.logging.get_logger("transformers.modeling").warning("unused kwargs")
    warnings.warn("deprecated")
    assert inductor.autotune_num_choices_displayed == 0
assert inductor.autotune_num_choices_displayed != 0
"""


@pytest.fixture
def terminal() -> Iterator[StringIO]:
    """What the libraries' own handlers write, as to stderr."""
    text = StringIO()
    handlers = [(logging.getLogger(name), logging.StreamHandler(text)) for name in LOUD]
    propagating = [logger.propagate for logger, _ in handlers]
    for logger, handler in handlers:
        logger.addHandler(handler)
        logger.propagate = False
    yield text
    for (logger, handler), before in zip(handlers, propagating, strict=True):
        logger.removeHandler(handler)
        logger.propagate = before


def test_what_libraries_say_goes_to_the_log(terminal: StringIO, caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        for name in LOUD:
            logging.getLogger(name).warning("careful, %s", name)
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    assert terminal.getvalue() == ""
    assert [message for message in caplog.messages if message.startswith("careful")] == [
        f"careful, {name}" for name in LOUD
    ]
    assert "DeprecationWarning: this is old" in caplog.messages[-1]


def test_afterwards_they_speak_as_before(terminal: StringIO) -> None:
    with pytest.raises(ValueError, match="stop"), quiet():
        raise ValueError("stop")
    logging.getLogger("torch").warning("careful")
    assert terminal.getvalue() == "careful\n"
    with pytest.raises(UserWarning):
        warnings.warn("this suite takes warnings for errors", stacklevel=1)


def test_real_libraries_write_nothing() -> None:
    """Libraries may add handlers when their parts are imported, and there may be no log."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", LATE_IMPORTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
