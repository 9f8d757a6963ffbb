"""What many tests share."""

from pathlib import Path

import pytest

from tests import tiny_voxtral as tiny


@pytest.fixture(scope="session")
def tiny_voxtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Voxtral checkpoint of 2 MB; not to be written to."""
    return tiny.make(tmp_path_factory.mktemp("checkpoint") / "tiny-voxtral")
