import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxcli.audio.clip import AudioClip
from voxcli.core.testing import FakeSpeaker
from voxcli.errors import ConfigError, VoxError
from voxcli.tts.wav_speaker import WavSpeaker

GO_ON = threading.Event()


def tone(seconds: float, sample_rate: int = 22_050, hertz: float = 440) -> AudioClip:
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    return AudioClip((0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32), sample_rate)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_clips_are_written_one_after_the_other(tmp_path: Path) -> None:
    target = tmp_path / "reply.WAV"
    with WavSpeaker(target) as speaker:
        assert speaker.position == 0
        assert speaker.path is None
        assert speaker.play(tone(0.5), GO_ON) == speaker.position == 0.5
        assert speaker.play(tone(0.2), GO_ON) == pytest.approx(0.7)
        speaker.wait(0.7, GO_ON)
        assert speaker.path == target
        assert not target.exists()
    samples, rate = soundfile.read(target)
    info = soundfile.info(target)
    assert (rate, info.channels, info.subtype, len(samples)) == (22_050, 1, "PCM_16", round(0.7 * 22_050))
    np.testing.assert_allclose(samples[: 22_050 // 2], tone(0.5).samples, atol=1e-4)
    assert names(tmp_path) == ["reply.WAV"]


def test_a_clip_of_another_rate_is_resampled_to_the_first(tmp_path: Path) -> None:
    with WavSpeaker(tmp_path / "reply.wav") as speaker:
        speaker.play(tone(0.5, 16_000), GO_ON)
        assert speaker.play(tone(0.5, 48_000), GO_ON) == pytest.approx(1, abs=0.01)
    samples, rate = soundfile.read(tmp_path / "reply.wav")
    second = samples[rate // 2 : rate // 2 + rate // 4]
    assert rate == 16_000
    assert np.abs(np.fft.rfft(second)).argmax() * 4 == 440  # four windows a second: a bin is 4 Hz


def test_samples_that_are_no_sound_are_made_harmless(tmp_path: Path) -> None:
    with WavSpeaker(tmp_path / "reply.wav") as speaker:
        speaker.play(AudioClip(np.array([np.nan, np.inf, -np.inf, 2, -2], np.float32), 8_000), GO_ON)
    samples, _ = soundfile.read(tmp_path / "reply.wav", dtype="int16")
    assert samples.tolist() == [0, 32767, -32767, 32767, -32767]


def test_nothing_played_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "reply.wav"
    target.write_bytes(b"older")
    with WavSpeaker(target) as speaker:
        speaker.play(AudioClip(np.zeros(0, np.float32), 8_000), GO_ON)
    assert speaker.path is None
    assert target.read_bytes() == b"older"
    assert names(tmp_path) == ["reply.wav"]


def test_an_error_or_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    def fail() -> None:
        with WavSpeaker(tmp_path / "reply.wav") as speaker:
            speaker.play(tone(0.1), GO_ON)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []


def test_an_interrupted_turn_keeps_what_was_played(tmp_path: Path) -> None:
    interrupt = threading.Event()
    with WavSpeaker(tmp_path / "reply.wav") as speaker:
        speaker.play(tone(0.5), interrupt)
        interrupt.set()
        assert speaker.play(tone(0.5), interrupt) == 0.5
    assert soundfile.info(tmp_path / "reply.wav").duration == 0.5


def test_close_may_be_called_again_and_then_nothing_more_is_written(tmp_path: Path) -> None:
    speaker = WavSpeaker(tmp_path / "reply.wav")
    speaker.play(tone(0.1), GO_ON)
    speaker.close()
    speaker.close()
    before = (tmp_path / "reply.wav").read_bytes()
    with pytest.raises(VoxError, match="closed"):
        speaker.play(tone(0.1), GO_ON)
    assert (tmp_path / "reply.wav").read_bytes() == before


def test_a_second_speaker_sets_the_position(tmp_path: Path) -> None:
    ear = FakeSpeaker(limit=0.3)
    interrupt = threading.Event()
    with WavSpeaker(tmp_path / "reply.wav", then=ear) as speaker:
        assert speaker.play(tone(0.2), interrupt) == pytest.approx(0.2)
        speaker.play(tone(0.2), interrupt)
        assert interrupt.is_set()
        assert speaker.position == ear.position == 0.3
    assert soundfile.info(tmp_path / "reply.wav").duration == pytest.approx(0.4)


@pytest.mark.parametrize(
    "name", ["missing/reply.wav", "reply.mp3", "reply", "folder", "folder.wav", "nul\0.wav", "n" * 300 + ".wav"]
)
def test_a_target_that_can_not_be_written_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ConfigError) as caught:
        WavSpeaker(tmp_path / name)
    assert caught.value.hint
    assert names(tmp_path) == ["folder", "folder.wav"]


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        WavSpeaker(tmp_path / "pipe.wav")
    assert (tmp_path / "pipe.wav").is_fifo()


@pytest.mark.parametrize("folder", ["/", "."])
def test_a_folder_without_a_name_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        WavSpeaker(Path(folder))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    (tmp_path / "reply.wav").touch(0o644)
    with WavSpeaker(tmp_path / "reply.wav") as speaker:
        speaker.play(tone(0.1), GO_ON)
    assert stat.S_IMODE((tmp_path / "reply.wav").stat().st_mode) == 0o600


FULL_DISK = """
import resource, sys, threading
from pathlib import Path
import numpy as np
from voxcli.audio.clip import AudioClip
from voxcli.errors import VoxError
from voxcli.tts.wav_speaker import WavSpeaker
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with WavSpeaker(Path(sys.argv[1])) as speaker:
        for _ in range(10):
            speaker.play(AudioClip(np.full(8_000, 0.5, np.float32), 8_000), threading.Event())
except VoxError as error:
    print(type(error).__name__, error.message, error.hint, sep="|")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "reply.wav"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, target], capture_output=True, text=True, check=True)
    kind, message, hint = done.stdout.strip().split("|")
    assert (kind, done.stderr) == ("VoxError", "")
    assert message.startswith(f"can't write {target}: ")
    assert "space" in hint
    assert names(tmp_path) == []
