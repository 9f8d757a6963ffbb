"""Tests that waits for pipes are bounded."""

import os
import sys
from io import BufferedReader
from pathlib import Path

import pytest

from voxcli.audio.pipe import PipeFile
from voxcli.errors import AudioInputError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="only POSIX can poll pipes")


def test_what_was_sent_is_read_to_the_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    os.close(writing)
    with BufferedReader(PipeFile(reading, "pipe")) as file:
        assert (file.peek(1), file.read(), file.read(1)) == (b"abc", b"abc", b"")
    os.close(reading)  # A descriptor stays open.


def test_a_pipe_that_stalls_is_given_up() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    with BufferedReader(PipeFile(reading, "pipe", stall_seconds=0.01)) as file:
        assert file.read(3) == b"abc"
        with pytest.raises(AudioInputError, match="pipe has sent nothing"):
            file.read(1)
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can poll for a writer")
def test_a_named_pipe_without_a_writer_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with BufferedReader(PipeFile(tmp_path / "pipe", "pipe", stall_seconds=0.01)) as file:
        with pytest.raises(AudioInputError, match="has sent nothing"):
            file.read(1)
        with (tmp_path / "pipe").open("wb", buffering=0) as writer:
            writer.write(b"abc")
            assert file.read(3) == b"abc"
