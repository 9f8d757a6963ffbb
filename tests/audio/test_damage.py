"""Tests that damaged, chained and changing recordings are decoded as far as possible, at the right speed."""

import io
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.encoded import PITCH, encoded, encoded_tracks, pitch_of, tone
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.audio.decoder import decode
from voxcli.errors import AudioInputError


def read(data: bytes) -> AudioClip:
    return read_audio("-", stdin=io.BytesIO(data), max_seconds=60)


def assert_pitch_throughout(clip: AudioClip) -> None:
    """Check that each second has the tone's pitch."""
    for start in range(0, len(clip.samples) - SAMPLE_RATE, SAMPLE_RATE):
        second = clip.samples[start : start + SAMPLE_RATE]
        assert pitch_of(second, SAMPLE_RATE) == pytest.approx(PITCH, rel=0.03)


def damaged(data: bytes, *, at: float, count: int = 16, value: int = 0xFF) -> bytes:
    """Return the file with some bytes overwritten, at a share of its length."""
    start = int(len(data) * at)
    return data[:start] + bytes([value]) * count + data[start + count :]


DAMAGED = {
    "m4a": ("ipod", "aac", 44_100),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "aac": ("adts", "aac", 44_100),
    "flac": ("flac", "flac", 44_100),
    "opus": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mkv": ("matroska", "aac", 44_100),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_some_bad_bytes_cost_what_they_hit(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    container, codec, sample_rate = DAMAGED[kind]
    clip = read(damaged(encoded(container, codec, sample_rate, seconds=10), at=0.4))
    assert 8.9 < clip.seconds < 10.1  # An Ogg page holds a second.
    assert_pitch_throughout(clip)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_could_not_be_decoded_is_counted(kind: str) -> None:
    container, codec, sample_rate = DAMAGED[kind]
    whole = encoded(container, codec, sample_rate, channels=2, seconds=10)
    assert read(whole).damaged_seconds == 0
    clip = read(damaged(whole, at=0.4, count=3000, value=0))
    assert clip.damaged_seconds > 0
    if kind not in {"mp3", "aac"}:  # These carry no times, so damage between packets looks like tags.
        assert clip.seconds + clip.damaged_seconds == pytest.approx(10, abs=0.1)


def test_nothing_but_damage_is_an_error() -> None:
    whole = encoded("ipod", "aac", 44_100, seconds=2)
    start = whole.index(b"mdat") + 4
    data = whole[:start] + b"\xff" * (len(whole) - start)
    if whole.index(b"moov") > start:
        data = whole[:start] + b"\xff" * (whole.index(b"moov") - 4 - start) + whole[whole.index(b"moov") - 4 :]
    with pytest.raises(AudioInputError, match="can't be decoded"):
        read(data)


CHAINED = {
    "Opus, stereo and mono": ("ogg", "libopus", (48_000, 2), (48_000, 1)),
    "Opus": ("ogg", "libopus", (48_000, 1), (48_000, 1)),
    "Vorbis": ("ogg", "vorbis", (44_100, 2), (44_100, 2)),
    "Vorbis, another rate": ("ogg", "vorbis", (44_100, 2), (22_050, 2)),
    "MP3": ("mp3", "libmp3lame", (44_100, 2), (44_100, 2)),
    "MP3, another rate": ("mp3", "libmp3lame", (44_100, 2), (22_050, 1)),
    "AAC, another rate": ("adts", "aac", (44_100, 1), (24_000, 2)),
    "FLAC": ("flac", "flac", (16_000, 1), (16_000, 1)),
}


@pytest.mark.parametrize("kind", CHAINED)
def test_all_parts_of_a_chained_recording_are_read(kind: str) -> None:
    container, codec, first, second = CHAINED[kind]
    parts = [encoded(container, codec, *form, seconds=seconds) for form, seconds in ((first, 2.0), (second, 3.0))]
    clip = read(b"".join(parts))
    assert clip.seconds == pytest.approx(sum(read(part).seconds for part in parts), abs=0.15)
    assert_pitch_throughout(clip)


def test_the_second_part_may_have_another_codec() -> None:
    clip = read(encoded("ogg", "vorbis", 44_100, 2, seconds=2) + encoded("ogg", "libopus", 48_000, seconds=3))
    assert clip.seconds == pytest.approx(5, abs=0.1)
    assert_pitch_throughout(clip)


def test_the_default_track_is_the_one_that_is_read() -> None:
    tracks = [tone(SAMPLE_RATE, pitch=pitch) for pitch in (300.0, 500.0, 700.0)]
    for default, pitch in enumerate((300, 500, 700)):
        data = encoded_tracks("matroska", "libopus", SAMPLE_RATE, tracks, default=default)
        assert pitch_of(read(data).samples, SAMPLE_RATE) == pytest.approx(pitch, abs=2)


@pytest.mark.parametrize("container", ["3gp", "amr"])
def test_pauses_that_a_phone_left_out_are_pauses(container: str) -> None:
    speech, pause = tone(8000, seconds=2), np.zeros((16_000, 1), np.float32)
    talk = np.concatenate([speech, pause, speech])
    clip = read(encoded_tracks(container, "libopencore_amrnb", 8000, [talk], dtx="1"))
    assert clip.seconds == pytest.approx(6, abs=0.05)
    assert clip.damaged_seconds == 0


@pytest.mark.parametrize("before", [b"", bytes(5000), b"ID3\x04\0\0\0\x7f\x7f\x7f" + bytes(0x1FFFFF)])
def test_what_comes_before_the_first_frame_of_an_mp3_is_skipped(before: bytes) -> None:
    clip = read(before + encoded("mp3", "libmp3lame", 44_100, seconds=3))
    assert clip.seconds == pytest.approx(3, abs=0.06)


def test_an_mp3_may_begin_in_the_midst_of_a_frame() -> None:
    data = encoded("mp3", "libmp3lame", 44_100, seconds=5)
    assert read(data[len(data) // 5 + 7 :]).seconds == pytest.approx(4, abs=0.1)


def test_an_mp3_whose_header_counts_too_few_frames_is_read_to_its_end() -> None:
    data = bytearray(encoded("mp3", "libmp3lame", 44_100, seconds=5))
    header = next(at for mark in (b"Info", b"Xing") if (at := data.find(mark)) > 0)
    struct.pack_into(">I", data, header + 8, 20)
    assert read(bytes(data)).seconds == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec", "sample_rate"),
    [
        ("caf", "alac", 44_100),
        ("amr", "libopencore_amrnb", 8_000),
        ("wv", "wavpack", 44_100),
        ("tta", "tta", 44_100),
        ("avi", "libmp3lame", 44_100),
        ("flv", "aac", 44_100),
        ("mpegts", "aac", 44_100),
        ("mpeg", "mp2", 44_100),
        ("ac3", "ac3", 48_000),
        ("asf", "wmav2", 44_100),
        ("wav", "pcm_s64le", 16_000),
        ("wav", "libmp3lame", 44_100),
    ],
)
def test_what_ffmpeg_reads_is_read(container: str, codec: str, sample_rate: int) -> None:
    clip = read(encoded(container, codec, sample_rate, seconds=3, b="64k"))
    assert clip.seconds == pytest.approx(3, abs=0.06)
    assert clip.damaged_seconds == 0
    assert_pitch_throughout(clip)


# What never ends.


def wav_with_list(size: int) -> bytes:
    """Return a WAV file of 100 bytes with a sub-chunk of this size in its LIST."""
    tags = b"LIST" + struct.pack("<I", 20) + b"INFOISFT" + struct.pack("<i", size) + b"name" * 2
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    body = head + tags + b"data" + struct.pack("<I", 28) + bytes(28)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


@pytest.mark.parametrize("size", [-8, -9, -20, -(2**31), 0, 2**31 - 1])
def test_a_chunk_that_leads_back_does_not_hang(size: int) -> None:
    with pytest.raises(AudioInputError):
        read(wav_with_list(size))


class Stuck(io.BytesIO):
    """A file that blocks after its header, until it is released."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.released = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 0:
            self.released.wait()
        return super().read(size)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_no_progress_is_an_error() -> None:
    file = Stuck(encoded("flac", "flac", 16_000, seconds=5))
    try:
        with pytest.raises(AudioInputError, match="no progress for 1 s"), decode(file, "q", stall_seconds=1) as it:
            list(it)
    finally:
        file.released.set()
    for thread in decoding_threads():
        thread.join()


def test_reading_on_without_finding_sound_is_no_progress() -> None:
    class Endless(io.BytesIO):
        """A file with zeros behind its end, without limit."""

        def read(self, size: int | None = -1, /) -> bytes:
            if data := super().read(size):
                return data
            self.seek(size or 0, io.SEEK_CUR)
            return bytes(size or 0)

    file = Endless(encoded("mp3", "libmp3lame", 44_100, seconds=2))
    with (
        pytest.raises(AudioInputError, match=r"no progress for 0\.5 s"),
        decode(file, "q", stall_seconds=0.5, mute_bytes=1 << 20) as decoding,
    ):
        list(decoding)
    for thread in decoding_threads():
        thread.join()


@pytest.mark.parametrize("leave", [id, next, list])
def test_no_thread_is_left_however_the_blocks_are_used(leave: Callable[[Any], Any]) -> None:
    with decode(io.BytesIO(encoded("flac", "flac", 16_000, seconds=30)), "q") as decoding:
        leave(iter(decoding))
    assert decoding_threads() == []


def test_decoding_prints_nothing_and_leaves_stderr_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "q.mp3"
    path.write_bytes(damaged(encoded("mp3", "libmp3lame", 44_100, seconds=20), at=0.3, count=2000))
    done = threading.Event()

    def decode_often() -> None:
        for _ in range(5):
            read_audio(path)
        done.set()

    reader, lines = threading.Thread(target=decode_often), 0
    reader.start()
    while not done.is_set() or not lines:
        lines += 1
        os.write(2, b"%d\n" % lines)
    reader.join()
    assert capfd.readouterr().err.split() == [str(number) for number in range(1, lines + 1)]
