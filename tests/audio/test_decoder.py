"""Tests that the same second of sound is decoded equally from every format."""

import io
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.support.encoded import AMPLITUDE, PITCH, tone
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.errors import AudioInputError


def written(
    form: str, subtype: str | None = None, sample_rate: int = SAMPLE_RATE, channels: int = 1, seconds: float = 1.0
) -> bytes:
    """Return the tone in a file, written by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, tone(sample_rate, channels, seconds), sample_rate, format=form, subtype=subtype)
    return file.getvalue()


def contained(
    form: str, codec: str, sample_rate: int, layout: str = "stereo", film: bool = False, seconds: float = 1.0
) -> bytes:
    """Return the tone in a container, written by FFmpeg; only pictures where `codec` is empty."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        # All streams have to be added before the first packet.
        video = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p") if film else None
        audio: Any = container.add_stream(codec, rate=sample_rate, layout=layout) if codec else None
        if video:
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            container.mux([*video.encode(picture), *video.encode()])
        if audio:
            samples = tone(sample_rate, 2 if layout == "stereo" else 1, seconds).T
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
            frame.sample_rate = sample_rate
            container.mux([*audio.encode(frame), *audio.encode()])
    return file.getvalue()


def read(data: bytes, max_seconds: float = 60) -> AudioClip:
    return read_audio("-", stdin=io.BytesIO(data), max_seconds=max_seconds)


def assert_tone(clip: AudioClip, seconds: float = 1.0, slack: float = 0.0005) -> None:
    """Check that a clip is the tone, by its length, level and pitch. `slack` is in seconds."""
    assert clip.sample_rate == SAMPLE_RATE
    assert clip.samples.dtype == np.float32
    assert clip.samples.ndim == 1
    assert clip.seconds == pytest.approx(seconds, abs=slack)
    middle = clip.samples[1600:-1600].astype(np.float64)  # codecs fade in and out
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(AMPLITUDE / np.sqrt(2), rel=0.03)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(middle) == pytest.approx(PITCH, abs=1.5)


PLAIN = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
]


@pytest.mark.parametrize(("form", "subtype"), PLAIN)
def test_formats_that_libsndfile_writes(form: str, subtype: str | None) -> None:
    assert_tone(read(written(form, subtype)), slack=0.04)


@pytest.mark.parametrize("sample_rate", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_rates_and_channels(sample_rate: int, channels: int) -> None:
    assert_tone(read(written("WAV", "PCM_16", sample_rate, channels)))


@pytest.mark.parametrize("form", ["RIFX", "big-endian AIFF"])
def test_big_endian(form: str) -> None:
    file = io.BytesIO()
    kind = "WAV" if form == "RIFX" else "AIFF"
    soundfile.write(file, tone(SAMPLE_RATE), SAMPLE_RATE, format=kind, subtype="PCM_16", endian="BIG")
    assert_tone(read(file.getvalue()))


@pytest.mark.parametrize(
    ("form", "codec", "sample_rate", "layout", "film"),
    [
        ("ipod", "aac", 44_100, "stereo", False),  # .m4a
        ("ipod", "alac", 16_000, "mono", False),
        ("mp4", "aac", 48_000, "stereo", True),
        ("adts", "aac", 22_050, "mono", False),  # .aac
        ("webm", "libopus", 48_000, "mono", False),
        ("matroska", "pcm_s16le", 32_000, "stereo", True),
    ],
)
def test_containers(form: str, codec: str, sample_rate: int, layout: str, film: bool) -> None:
    assert_tone(read(contained(form, codec, sample_rate, layout, film)), slack=0.15)


def test_film_without_sound() -> None:
    with pytest.raises(AudioInputError, match="has no sound in it"):
        read(contained("mp4", "", 0, film=True))


@pytest.mark.parametrize("length", [0, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize("riff_length", [0, 36, 0xFFFF_FFFF])
def test_wav_that_was_streamed(length: int, riff_length: int) -> None:
    data = bytearray(written("WAV", "PCM_16"))
    struct.pack_into("<I", data, 4, riff_length)
    struct.pack_into("<I", data, data.index(b"data") + 4, length)
    assert_tone(read(bytes(data)))


def test_wav_that_was_streamed_with_tags_before_the_samples() -> None:
    data = written("WAV", "PCM_16")
    start = data.index(b"data")
    tags = b"LIST" + struct.pack("<I", 27) + b"x" * 28  # an odd length is padded
    assert_tone(read(data[:start] + tags + b"data\0\0\0\0" + data[start + 8 :]))


def test_wav_that_is_really_empty() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.empty(0), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with pytest.raises(AudioInputError, match="too short"):
        read(file.getvalue())


def test_wav_with_endless_chunks_is_abandoned() -> None:
    data = b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 100_000
    with pytest.raises(AudioInputError, match="can't be decoded"):
        read(data)


@pytest.mark.parametrize("total", [0, 2**36 - 1])
def test_flac_that_declares_a_wrong_length(total: int) -> None:
    data = bytearray(written("FLAC"))
    field = 8 + 13  # "fLaC", a block header; the total is the low 36 bits of bytes 13 to 17
    data[field] = data[field] & 0xF0 | total >> 32
    struct.pack_into(">I", data, field + 1, total & 0xFFFF_FFFF)
    assert_tone(read(bytes(data)))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "webm"])
def test_a_truncated_file_is_decoded_as_far_as_it_goes(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = contained(form, "libopus", 48_000, seconds=30) if form == "webm" else written(form, seconds=30)
    clip = read(data[: len(data) * 2 // 3])
    assert_tone(clip, clip.seconds)
    assert 10 < clip.seconds < 24
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("kept", [2, 11, 20, 40])
def test_truncated_header(form: str, kept: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AudioInputError) as caught:
        read(written(form)[:kept])
    assert caught.value.hint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kept", [11, 40, 900])
def test_container_truncated_in_its_header(kept: int) -> None:
    with pytest.raises(AudioInputError):
        read(contained("ipod", "aac", 44_100)[:kept])


@pytest.mark.parametrize(
    "text",
    [
        b"What is the capital of France?\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",  # A playlist, whose entries FFmpeg would open.
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"1\n00:00:00,000 --> 00:00:02,000\nHello\n",
        b"%PDF-1.7",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"\0" * 5000,
        b"R",
    ],
)
def test_what_is_not_audio(text: bytes) -> None:
    with pytest.raises(AudioInputError, match="not audio in a known format") as caught:
        read(text)
    assert "WAV" in caught.value.hint


def test_header_that_leads_to_before_the_start(capfd: pytest.CaptureFixture[str]) -> None:
    data = written("AIFF", "PCM_16").replace(b"SSND", b"\0SND", 1)
    with pytest.raises(AudioInputError):
        read(data)
    assert capfd.readouterr().err == ""  # PyAV would print exceptions of its callbacks there.


class BadDisk(io.BytesIO):
    """A file on a disk that fails after the first bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 10_000:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_failing_disk_is_named_as_such() -> None:
    with pytest.raises(AudioInputError, match="Input/output error"):
        read_audio("-", stdin=BadDisk(written("WAV")))


def mutations(seed: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """Yield damaged copies: changed bytes, mostly in the header; a third of the copies are truncated."""
    for _ in range(count):
        data = bytearray(seed)
        reach = chance.choice([64, 256, len(data)])
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(min(reach, len(data)))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, 0x20])
        yield bytes(data[: chance.randrange(len(data))] if chance.random() < 1 / 3 else data)


SEEDS: dict[str, Callable[[], bytes]] = {
    "wav": lambda: written("WAV", "PCM_16"),
    "float": lambda: written("WAV", "FLOAT"),
    "adpcm": lambda: written("WAV", "MS_ADPCM"),
    "rf64": lambda: written("RF64", "PCM_16"),
    "flac": lambda: written("FLAC"),
    "vorbis": lambda: written("OGG", "VORBIS"),
    "opus": lambda: written("OGG", "OPUS"),
    "mp3": lambda: written("MP3"),
    "m4a": lambda: contained("ipod", "aac", 44_100),
    "webm": lambda: contained("webm", "libopus", 48_000),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_files_are_clips_or_errors_and_nothing_else(seed: str, capfd: pytest.CaptureFixture[str]) -> None:
    clips = 0
    damaged = list(mutations(SEEDS[seed](), 30, random.Random(seed)))
    for data in damaged:
        with suppress(AudioInputError):
            clip = read(data)
            assert np.abs(clip.samples).max() <= 1
            assert 0.1 <= clip.seconds <= 60
            clips += 1
    assert clips < len(damaged)
    assert clips or seed in {"vorbis", "opus"}  # A page with a wrong checksum is dropped as a whole.
    assert capfd.readouterr().err == ""
