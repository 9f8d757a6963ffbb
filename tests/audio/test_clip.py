"""Tests of reading clips: sources, limits, and unusable recordings."""

import io
import os
import pty
import subprocess
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.errors import AudioInputError, ConfigError

ALSA = Path("/usr/share/sounds/alsa")
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)


def wav(samples: Any = NOISE, sample_rate: int = SAMPLE_RATE, subtype: str = "PCM_16", form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=form, subtype=subtype)
    return file.getvalue()


class Pipe(io.RawIOBase):
    """A stream that can't seek and returns a few bytes at a time; endless where `data` repeats."""

    def __init__(self, data: bytes, *, endless: bool = False) -> None:
        self._data = data
        self._endless = endless
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        at = self.given % len(self._data) if self._endless else self.given
        part = self._data[at : at + min(len(buffer), 50_001)]
        buffer[: len(part)] = part
        self.given += len(part)
        return len(part)


def piped(data: bytes, **options: Any) -> AudioClip:
    return read_audio("-", stdin=io.BytesIO(data), **options)


def refused(source: str | Path, **options: Any) -> AudioInputError:
    """Return the error for a source, after checking that it is safe for the terminal."""
    with pytest.raises(AudioInputError) as caught:
        read_audio(source, **options)
    error = caught.value
    assert error.exit_code == 3
    assert error.hint
    for line in (error.message, error.hint):
        assert line.isprintable()
        assert len(line) < 500
    return error


# Sources


def test_a_file_by_name_or_path(tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(wav())
    for source in (path, str(path)):
        clip = read_audio(source)
        assert clip.sample_rate == SAMPLE_RATE
        np.testing.assert_allclose(clip.samples, NOISE, atol=1 / 32768)


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "question.mp3"
    path.write_bytes(wav(form="FLAC"))
    assert read_audio(path).seconds == 1


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
@pytest.mark.parametrize("source", ["-", Path("-")])
def test_standard_input(form: str, source: str | Path) -> None:
    stream: Any = Pipe(wav(form=form))
    np.testing.assert_allclose(read_audio(source, stdin=stream).samples, NOISE, atol=1 / 32768)


def test_standard_input_of_the_process() -> None:
    code = "from voxcli.audio.clip import read_audio; print(read_audio('-').seconds)"
    run = subprocess.run([sys.executable, "-c", code], input=wav(), capture_output=True, check=True)
    assert run.stdout.strip() == b"1.0"


def test_closed_standard_input() -> None:
    code = "import sys; sys.stdin = None\nfrom voxcli.audio.clip import read_audio\nread_audio('-')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"AudioInputError: standard input is closed" in run.stderr


def test_terminal_as_standard_input() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "rb") as terminal, pytest.raises(ConfigError, match="terminal") as e:
        read_audio("-", stdin=terminal)
    assert "voxcli once - <" in e.value.hint


def feed(path: Path, data: bytes, times: int) -> threading.Thread:
    """Write into a named pipe until its reader closes it."""

    def write() -> None:
        with suppress(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            for _ in range(times):
                pipe.write(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = feed(path, wav(), 1)
    assert read_audio(path).seconds == 1
    writer.join(5)
    assert not writer.is_alive()


def test_an_endless_pipe_is_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = feed(path, bytes(100_000), sys.maxsize)
    assert "not audio in a known format" in refused(path).message
    writer.join(5)
    assert not writer.is_alive()


def test_an_endless_pipe_with_audio_is_abandoned() -> None:
    stream = Pipe(wav(NOISE[:1000]), endless=True)
    assert "MB, too much for 1 s" in refused("-", stdin=stream, max_seconds=1).message
    assert stream.given < 80 << 20


@pytest.mark.parametrize("pipe", [False, True])
def test_bare_samples(pipe: bool) -> None:
    data = (NOISE * 32767).astype("<i2").tobytes()
    stream: Any = Pipe(data) if pipe else io.BytesIO(data)
    clip = read_audio("-", stdin=stream, raw_rate=SAMPLE_RATE)
    np.testing.assert_allclose(clip.samples, NOISE, atol=2 / 32768)
    assert piped(data, raw_rate=8_000).seconds == 2


def test_bare_samples_reach_full_scale_and_an_odd_byte_is_dropped() -> None:
    data = np.tile(np.array([-32768, 32767], "<i2"), 1000).tobytes() + b"\x01"
    clip = piped(data, raw_rate=SAMPLE_RATE)
    assert len(clip.samples) == 2000
    assert clip.samples.min() == -1
    assert clip.samples.max() == pytest.approx(1, abs=1e-4)


def test_bare_samples_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "question.pcm"
    path.write_bytes((NOISE * 32767).astype("<i2").tobytes())
    assert read_audio(path, raw_rate=SAMPLE_RATE).seconds == 1


@pytest.mark.parametrize("rate", [-1, 0, 10, 10_000_000])
def test_raw_rate_that_can_not_be_right(rate: int) -> None:
    with pytest.raises(ConfigError, match=str(rate)):
        piped(wav(), raw_rate=rate)


# What comes out


def test_channels_are_averaged() -> None:
    stereo = np.stack([NOISE, np.zeros_like(NOISE)], axis=1)
    np.testing.assert_allclose(piped(wav(stereo)).samples, NOISE / 2, atol=1 / 32768)


@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("factor", [3, 100, 65_000])
def test_floats_beyond_full_scale_are_scaled_down(factor: float, sample_rate: int) -> None:
    clip = piped(wav(NOISE * factor, sample_rate, "FLOAT"))
    assert np.abs(clip.samples).max() == pytest.approx(1)
    plain = piped(wav(NOISE, sample_rate, "FLOAT")).samples
    np.testing.assert_allclose(clip.samples, factor * clip.gain * plain, atol=1e-4)
    (remark,) = clip.remarks()
    assert f"{-clip.gain_db:.1f} dB beyond full scale" in remark


def test_the_mean_of_the_channels_decides_whether_to_scale() -> None:
    halves = np.stack([2.5 * NOISE, np.zeros_like(NOISE)], axis=1)
    clip = piped(wav(halves, subtype="FLOAT"))
    assert clip.gain == 1
    np.testing.assert_allclose(clip.samples, 1.25 * NOISE, atol=1e-6)


def test_the_overshoot_of_a_codec_is_clipped() -> None:
    clip = piped(wav(np.where(np.arange(SAMPLE_RATE) % 8_000 < 3, 1.2, NOISE), subtype="FLOAT"))
    assert clip.gain == 1
    assert clip.samples.max() == 1
    assert clip.remarks() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e30, 1e5])
@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 48_000])
def test_a_few_samples_that_are_not_numbers_are_silence(bad: float, sample_rate: int) -> None:
    is_bad = np.abs(np.arange(SAMPLE_RATE) - 8_000) < 3
    clip = piped(wav(np.where(is_bad, bad, NOISE), sample_rate, "FLOAT"))
    assert clip.damaged_seconds == pytest.approx(5 / sample_rate)
    assert clip.gain == 1
    whole = piped(wav(np.where(is_bad, 0, NOISE), sample_rate, "FLOAT"))
    np.testing.assert_allclose(clip.samples, whole.samples, atol=1e-4)


def test_damage_that_looks_like_loud_samples_does_not_silence_the_rest() -> None:
    clip = piped(wav(np.where(np.arange(SAMPLE_RATE) % 1_600 == 0, 9_000, 2.4 * NOISE), subtype="FLOAT"))
    assert np.sqrt(np.mean(clip.samples**2)) > 0.5


@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 48_000])
@pytest.mark.parametrize("other", [-1, -0.9, -0.7])
def test_channels_that_cancel_each_other_leave_the_strongest(other: float, sample_rate: int) -> None:
    clip = piped(wav(np.stack([other * NOISE, NOISE], axis=1), sample_rate, "FLOAT"))
    channel = piped(wav(NOISE, sample_rate, "FLOAT")).samples
    polarity = -1 if other == -1 else 1  # Both channels are equally strong, so the first is taken.
    np.testing.assert_allclose(clip.samples, polarity * channel, atol=1e-4)
    assert clip.cancelled_seconds == pytest.approx(clip.seconds, abs=1e-3)
    assert any("cancel each other" in remark for remark in clip.remarks())


def test_channels_that_cancel_each_other_for_a_while() -> None:
    phase = np.where(np.arange(3 * SAMPLE_RATE) < SAMPLE_RATE, 1, -1)
    noise = np.tile(NOISE, 3)
    clip = piped(wav(np.stack([noise, phase * noise], axis=1), subtype="FLOAT"))
    assert clip.cancelled_seconds == pytest.approx(2, abs=0.6)
    assert np.sqrt(np.mean(clip.samples[2 * SAMPLE_RATE :] ** 2)) == pytest.approx(np.sqrt(np.mean(NOISE**2)), rel=0.01)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_speakers_on_channels_of_their_own_are_all_kept(channels: int) -> None:
    voices = np.random.default_rng(1).uniform(-0.5, 0.5, (SAMPLE_RATE, channels)).astype(np.float32)
    clip = piped(wav(voices, subtype="FLOAT"))
    assert clip.cancelled_seconds == 0
    np.testing.assert_allclose(clip.samples, voices.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("sample_rate", [8_000, 44_100, 48_000])
def test_resampling_in_blocks_leaves_no_seams(sample_rate: int) -> None:
    clip = AudioClip(NOISE).resampled(sample_rate)
    whole = clip.resampled(SAMPLE_RATE).samples
    blocks = piped(wav(clip.samples, sample_rate, "FLOAT")).samples
    assert len(blocks) == pytest.approx(len(whole), abs=2)
    shared = min(len(blocks), len(whole))
    np.testing.assert_allclose(blocks[:shared], whole[:shared], atol=1e-4)


def test_resampled_keeps_length_and_bounds() -> None:
    square = AudioClip(np.where(np.arange(SAMPLE_RATE) % 100 < 50, 1, -1).astype(np.float32))
    other = square.resampled(22_050)
    assert other.sample_rate == 22_050
    assert other.seconds == pytest.approx(1, abs=1e-3)
    assert np.abs(other.samples).max() == 1  # The filter's overshoot is clipped.
    assert square.resampled(SAMPLE_RATE) is square


@pytest.mark.skipif(not ALSA.is_dir(), reason="the recordings of alsa-utils are not installed")
def test_recordings_of_people() -> None:
    for path in ALSA.glob("*.wav"):
        clip = read_audio(path)
        assert 1 < clip.seconds < 2
        assert clip.seconds == pytest.approx(soundfile.info(path).duration, abs=1e-3)
        assert 0.01 < np.sqrt(np.mean(clip.samples**2)) < 0.5


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    frames=st.integers(0, 20_000),
    sample_rate=st.integers(1, 800_000),
    channels=st.integers(1, 16),
    subtype=st.sampled_from(["PCM_U8", "PCM_16", "FLOAT"]),
)
def test_any_shape_is_a_clip_of_that_length_or_an_error(
    frames: int, sample_rate: int, channels: int, subtype: str
) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (frames, channels))
    usable = 1_000 <= sample_rate <= 768_000 and frames / sample_rate >= 0.1
    try:
        clip = piped(wav(samples, sample_rate, subtype))
    except AudioInputError:
        assert not usable
    else:
        assert usable
        assert clip.seconds == pytest.approx(frames / sample_rate, abs=1e-3)
        assert np.abs(clip.samples).max() <= 1


# What can't be used


def test_missing(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "no.wav").message


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path).message
    assert "is a folder" in refused("").message


def test_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    refused(tmp_path / "a" / "b.wav")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_device(device: str) -> None:
    assert "is a device" in refused(device).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "q.wav"
    path.write_bytes(wav())
    path.chmod(0)
    assert "may not be read" in refused(path).message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"What is the capital of France?", "not audio in a known format"),
        (wav()[:40], "can't be decoded"),
        (wav(np.zeros(SAMPLE_RATE)), "is silent"),
        (wav(np.full(SAMPLE_RATE, 0.25)), "is silent"),
        (wav(NOISE[:1599]), "too short: 0.100 s"),
        (wav(np.where(np.arange(SAMPLE_RATE) > 7000, np.nan, NOISE), subtype="FLOAT"), "not numbers"),
        (wav(np.full(SAMPLE_RATE, np.inf), subtype="DOUBLE"), "not numbers"),
        (wav(NOISE * 1e30, subtype="FLOAT"), "far beyond full scale"),
        (wav(NOISE, sample_rate=1), "sample rate of 1 Hz"),
    ],
)
def test_unusable_file(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(data)
    for source in (path, "-"):
        error = refused(source, stdin=io.BytesIO(data))
        assert said in error.message
        assert error.message.startswith("standard input" if source == "-" else str(path))


def test_no_channels(tmp_path: Path) -> None:
    data = bytearray(wav())
    data[22:24] = b"\0\0"
    assert "can't be decoded" in refused("-", stdin=io.BytesIO(bytes(data))).message


def test_a_tenth_of_a_second_is_enough() -> None:
    assert piped(wav(NOISE[:1600])).seconds == 0.1


@pytest.mark.parametrize("name", ["a\nb\x1b[31m.wav", "a\u202eb.wav", "a\udcffb.wav", "\0", "\ud800", "x" * 300])
def test_names_that_break_terminals_and_encodings(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name).message.encode()


def test_name_that_is_not_utf8_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\n.wav")
    path.write_bytes(wav())
    assert read_audio(path).seconds == 1


# Limits


class Counted(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    taken = 0

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self.taken += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_the_limit_itself_is_allowed() -> None:
    assert piped(wav(), max_seconds=1).seconds == 1
    assert piped(wav(NOISE, 44_100), max_seconds=SAMPLE_RATE / 44_100).seconds == pytest.approx(0.363, abs=1e-3)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_longer_than_the_limit(form: str) -> None:
    subtype = "VORBIS" if form == "OGG" else "MPEG_LAYER_III" if form == "MP3" else "PCM_16"
    data = wav(np.tile(NOISE, 60), subtype=subtype, form=form)
    file = Counted(data)
    error = refused("-", stdin=file, max_seconds=2)
    assert error.message == "standard input is longer than the limit of 2 s"
    assert "audio.max_seconds" in error.hint
    assert file.taken < len(data) / 2


def test_bare_samples_without_an_end() -> None:
    stream = Pipe(NOISE.tobytes(), endless=True)
    assert "longer than the limit of 5 s" in refused("-", stdin=stream, raw_rate=8_000, max_seconds=5).message
    assert stream.given < 2 * 8_000 * 5 + 200_000


def test_small_file_with_much_sound_stays_small_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "half an hour.flac"
    minute = np.zeros(SAMPLE_RATE * 60, np.int16)
    minute[0] = 1
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for _ in range(30):
            file.write(minute)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        assert "longer than the limit of 10 s" in refused(path, max_seconds=10).message
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 4 * SAMPLE_RATE * 10  # Half an hour would be 115 MB.


def test_ffmpeg_is_imported_only_to_read() -> None:
    code = "import sys, voxcli.audio.clip; sys.exit(any(name in sys.modules for name in ('soxr', 'av')))"
    subprocess.run([sys.executable, "-c", code], check=True)
