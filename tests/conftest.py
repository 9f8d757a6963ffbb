"""What many tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import tiny_voxtral as tiny

# No test depends on how long the machine takes.
hypothesis.settings.register_profile("voxcli", deadline=None)
hypothesis.settings.load_profile("voxcli")

# The system's voice starts sooner than the neural one, which has tests of its own.
os.environ["VOXCLI_VOICE"] = "pyttsx3"


@pytest.fixture(scope="session")
def tiny_voxtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Voxtral checkpoint of 2 MB; not to be written to."""
    return tiny.make(tmp_path_factory.mktemp("checkpoint") / "tiny-voxtral")


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals of a terminal do what they usually do, here and in the children that a test starts.

    A run in the background, or under nohup, is started with them ignored, and children inherit that.
    """
    usual: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGQUIT: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
