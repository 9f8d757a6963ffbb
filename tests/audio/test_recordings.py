"""Tests recordings of all kinds, whole and with faults, against what FFmpeg decodes packet by packet."""

import io
import struct
from collections.abc import Callable
from functools import cache, partial

import av
import pytest

from tests.support.encoded import PITCH, encoded, pitch_of
from tests.support.recordings import (
    caf_opus,
    chunk,
    extensible,
    list_chunk,
    pcm16,
    pcm32,
    remuxed,
    seconds_by_packets,
    wav,
)
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.errors import AudioInputError

SECONDS = 2.0
Make = Callable[[], bytes]

AMR = "libopencore_amrnb"
# Container, codec, rate in Hertz, channels.
FORMS = [
    *(
        ("wav", f"pcm_{kind}", 16_000, 1)
        for kind in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le", "alaw", "mulaw")
    ),
    *(("wav", codec, 16_000, 1) for codec in ("adpcm_ms", "adpcm_ima_wav", "adpcm_yamaha", "g722")),
    *(("wav", "g726", 8_000, 1), ("wav", "libmp3lame", 44_100, 2), ("w64", "pcm_s16le", 44_100, 2)),
    *(("aiff", f"pcm_{kind}", 22_050, 2) for kind in ("s8", "s16be", "s24be", "f32be", "alaw", "s16le")),
    *(("au", f"pcm_{kind}", 8_000, 1) for kind in ("s16be", "mulaw", "f32be")),
    *(("caf", f"pcm_{kind}", 44_100, 1) for kind in ("s16le", "s16be", "f32le", "mulaw")),
    *(("caf", "alac", 44_100, 2), ("caf", "adpcm_ima_qt", 44_100, 1), ("caf", AMR, 8_000, 1)),
    *(
        ("flac", "flac", 48_000, 2),
        ("ogg", "flac", 16_000, 1),
        ("ogg", "vorbis", 44_100, 2),
        ("ogg", "libopus", 48_000, 1),
    ),
    *(("mp3", "libmp3lame", 44_100, 1), ("mp3", "libmp3lame", 16_000, 2), ("mp2", "mp2", 44_100, 1)),
    *(("adts", "aac", 44_100, 1), ("latm", "aac", 44_100, 1), ("ipod", "aac", 44_100, 2), ("ipod", "alac", 44_100, 1)),
    *(("mp4", codec, 48_000, 2) for codec in ("aac", "libmp3lame", "libopus", "flac", "ac3", "alac")),
    *(("mov", codec, 44_100, 1) for codec in ("pcm_s16be", "pcm_s24le", "aac", "pcm_mulaw", "adpcm_ima_qt")),
    *(("3gp", AMR, 8_000, 1), ("3gp", "aac", 22_050, 1), ("3g2", AMR, 8_000, 1), ("amr", AMR, 8_000, 1)),
    *(("matroska", codec, 48_000, 2) for codec in ("libopus", "vorbis", "aac", "flac", "libmp3lame", "alac", "ac3")),
    *(("matroska", "pcm_s16le", 48_000, 1), ("webm", "libopus", 48_000, 1), ("webm", "vorbis", 48_000, 2)),
    *(("mpegts", codec, 48_000, 1) for codec in ("aac", "mp2", "libopus", "ac3", "libmp3lame")),
    *(
        ("mpeg", "mp2", 44_100, 1),
        ("vob", "ac3", 48_000, 2),
        ("avi", "libmp3lame", 44_100, 1),
        ("avi", "pcm_s16le", 8_000, 1),
    ),
    *(
        ("asf", "wmav1", 44_100, 2),
        ("asf", "wmav2", 44_100, 1),
        ("flv", "aac", 44_100, 1),
        ("flv", "nellymoser", 11_025, 1),
    ),
    *(("tta", "tta", 44_100, 1), ("wv", "wavpack", 44_100, 1), ("ac3", "ac3", 48_000, 2), ("eac3", "eac3", 48_000, 1)),
    *(("voc", "pcm_u8", 16_000, 1), ("sox", "pcm_s32le", 16_000, 1), ("ircam", "pcm_s16le", 16_000, 1)),
    *(
        ("rm", "ac3", 48_000, 1),
        ("wtv", "mp2", 48_000, 1),
        ("nut", "libopus", 48_000, 1),
        ("mmf", "adpcm_yamaha", 22_050, 1),
    ),
    *((container, codec, 48_000, 8) for container, codec in (("ogg", "libopus"), ("ipod", "aac"), ("flac", "flac"))),
    *(("matroska", "aac", 48_000, 6), ("wv", "wavpack", 48_000, 8), ("wv", "wavpack", 48_000, 16)),
]
NAMES = ["/".join(map(str, form)) for form in FORMS]

# Faults are tried on one form of each container whose packets FFmpeg finds again after damage.
DAMAGED = [
    *(("wav", "pcm_s16le", 16_000, 1), ("wav", "pcm_f32le", 16_000, 1), ("aiff", "pcm_s16be", 22_050, 2)),
    *(
        ("caf", "alac", 44_100, 2),
        ("flac", "flac", 48_000, 2),
        ("mp3", "libmp3lame", 44_100, 1),
        ("adts", "aac", 44_100, 1),
    ),
    *(
        ("ipod", "aac", 44_100, 2),
        ("ipod", "alac", 44_100, 1),
        ("mov", "pcm_s16be", 44_100, 1),
        ("wv", "wavpack", 44_100, 1),
    ),
    *(("mp4", "libmp3lame", 48_000, 2), ("matroska", "libopus", 48_000, 2), ("webm", "libopus", 48_000, 1)),
    *(
        ("mpegts", "aac", 48_000, 1),
        ("avi", "libmp3lame", 44_100, 1),
        ("asf", "wmav2", 44_100, 1),
        ("flv", "aac", 44_100, 1),
    ),
]
DAMAGED_NAMES = ["/".join(map(str, form)) for form in DAMAGED]
JOINED = [
    *(form for form in DAMAGED if form[0] != "mpegts"),  # Its times start again, which is not damage.
    *(("3gp", AMR, 8_000, 1), ("amr", AMR, 8_000, 1), ("au", "pcm_s16be", 8_000, 1), ("tta", "tta", 44_100, 1)),
    *(
        ("ogg", "libopus", 48_000, 1),
        ("ogg", "vorbis", 44_100, 2),
        ("ogg", "flac", 16_000, 1),
        ("voc", "pcm_u8", 16_000, 1),
    ),
    ("w64", "pcm_s16le", 44_100, 2),
]
FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "cut at 60 %": lambda data: data[: len(data) * 6 // 10],
    "16 bad bytes": lambda data: _overwritten(data, b"\xff" * 16),
    "16 other bytes": lambda data: _overwritten(data, bytes(range(101, 117))),
    "zeros": lambda data: _overwritten(data, bytes(len(data) // 10)),
    "tail of other bytes": lambda data: data + bytes(range(256)) * 4,
}


def _overwritten(data: bytes, by: bytes) -> bytes:
    start = len(data) * 4 // 10
    return data[:start] + by + data[start + len(by) :]


@cache
def whole(container: str, codec: str, sample_rate: int, channels: int) -> bytes:
    return encoded(container, codec, sample_rate, channels, seconds=SECONDS, b="64k")


def read(data: bytes) -> AudioClip:
    return read_audio("-", stdin=io.BytesIO(data), max_seconds=60)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_every_form_has_the_length_and_pitch_of_its_packets(form: tuple[str, str, int, int]) -> None:
    data = whole(*form)
    clip = read(data)
    assert clip.seconds == pytest.approx(seconds_by_packets(data), rel=0.02)
    assert clip.seconds == pytest.approx(SECONDS, abs=0.1)
    assert pitch_of(clip.samples, SAMPLE_RATE) == pytest.approx(PITCH, rel=0.01)
    assert (clip.damaged_seconds, clip.cancelled_seconds, clip.gain) == (0, 0, 1)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", DAMAGED, ids=DAMAGED_NAMES)
def test_with_a_fault_all_that_can_be_decoded_is_used(form: tuple[str, str, int, int], fault: str) -> None:
    data = FAULTS[fault](whole(*form))
    try:
        seconds = seconds_by_packets(data)
    except av.FFmpegError:  # The index was at the end, and is lost.
        with pytest.raises(AudioInputError, match="can't be decoded"):
            read(data)
    else:
        assert read(data).seconds == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize("form", JOINED, ids=["/".join(map(str, form)) for form in JOINED])
def test_joined_files_are_read_to_the_end_of_the_last(form: tuple[str, str, int, int]) -> None:
    data = whole(*form)
    one, three = read(data), read(data * 3)
    assert three.seconds == pytest.approx(3 * one.seconds, rel=0.02)
    assert three.damaged_seconds < 0.1


TONE = pcm16(SECONDS)
BY_HAND: dict[str, tuple[Make, float]] = {
    "Opus in CAF": (partial(caf_opus, SECONDS), SECONDS),
    "a pause of 2 s that a phone left out": (
        lambda: remuxed(encoded("amr", AMR, 8_000, seconds=6), "3gp", without=(2, 4)),
        6,
    ),
    "a pause of 2 s in M4A": (
        lambda: remuxed(encoded("adts", "aac", 44_100, seconds=6), "ipod", without=(2, 4)),
        6,
    ),
    "AMR with a pause": (lambda: encoded("amr", AMR, 8_000, seconds=SECONDS, dtx="1"), SECONDS),
    "12 bits in two bytes": (lambda: wav(TONE, bits=12, align=2), SECONDS),
    "block size 0": (lambda: wav(TONE, align=0), SECONDS),
    "data of size -1": (lambda: wav(TONE, data_bytes=-1), SECONDS),
    "an odd byte at the end": (lambda: wav(TONE + b"\1"), SECONDS),
    "300 channels": (lambda: wav(pcm16(SECONDS, 16_000, 300), channels=300), SECONDS),
    "24 bits in four bytes": (lambda: extensible(pcm32(SECONDS), bits=32, valid_bits=24), SECONDS),
    "16 bits, extensible": (lambda: extensible(TONE, bits=16, valid_bits=16), SECONDS),
    "a tag of size -8": (lambda: wav(TONE, extra=list_chunk(-8)), SECONDS),
    "two rates": (lambda: wav(TONE) + wav(pcm16(SECONDS, 44_100, 2), 44_100, channels=2), 2 * SECONDS),
    "zeros before an MP3": (lambda: bytes(4000) + whole("mp3", "libmp3lame", 44_100, 1), SECONDS),
    "an MP3 without its first bytes": (lambda: whole("mp3", "libmp3lame", 44_100, 1)[1_000:], SECONDS - 0.125),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_made_by_hand(name: str) -> None:
    make, seconds = BY_HAND[name]
    clip = read(make())
    assert clip.seconds == pytest.approx(seconds, abs=0.06)
    assert pitch_of(clip.samples, SAMPLE_RATE) == pytest.approx(PITCH, rel=0.02)
    assert (clip.damaged_seconds, clip.gain) == (0, 1)


M4A_TYPE = struct.pack(">I", 24) + b"ftypM4A \0\0\0\0M4A mp42"
REFUSED: dict[str, tuple[Make, str]] = {
    "rate 0": (lambda: wav(TONE, 0), "can't be decoded"),
    "rate -1": (lambda: wav(TONE, -1), "can't be decoded"),
    "rate 10": (lambda: wav(TONE, 10), "sample rate of 10 Hz"),
    "no channels": (lambda: wav(TONE, channels=0), "can't be decoded"),
    "65,535 channels": (lambda: wav(TONE * 20, channels=65_535), "can't be decoded"),
    "no bits": (lambda: wav(TONE, bits=0), "can't be decoded"),
    "an unknown codec": (lambda: wav(TONE, tag=0x7FFF), "can't be decoded"),
    "a list of size -8": (lambda: wav(TONE, extra=chunk(b"LIST", -8, b"INFO")), "can't be decoded"),
    "a bext chunk of size -8": (lambda: wav(TONE, extra=chunk(b"bext", -8)), "can't be decoded"),
    "AU with a billion channels": (
        lambda: b".snd" + struct.pack(">IIIII", 24, 0xFFFF_FFFF, 3, 16_000, 10**9) + TONE,
        "can't be decoded",
    ),
    "AU with its samples after the end": (
        lambda: b".snd" + struct.pack(">IiIII", 2**31 - 1, -5, 3, 16_000, 1) + TONE,
        "can't be decoded",
    ),
    "CAF with a rate that is not a number": (
        lambda: (
            b"caff\0\1\0\0desc"
            + struct.pack(">qd4sIIIII", 32, float("nan"), b"lpcm", 2, 2, 1, 1, 16)
            + b"data"
            + struct.pack(">qi", -1, 0)
            + TONE
        ),
        "can't be decoded",
    ),
    "nothing": (lambda: b"", "is empty"),
    "four bytes of WAV": (lambda: b"RIFF", "not audio"),
    "four bytes of Ogg": (lambda: b"OggS", "can't be decoded"),
    "M4A with nothing but its type": (lambda: M4A_TYPE, "can't be decoded"),
    "M4A with an endless index": (
        lambda: M4A_TYPE + struct.pack(">I", 1) + b"moov" + b"\xff" * 8,
        "can't be decoded",
    ),
    "a WAV header": (lambda: wav(b""), "too short"),
    "an ID3 tag of 256 MB": (lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100), "can't be decoded"),
    "zeros": (lambda: bytes(100_000), "not audio"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(2000), "not audio"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_used_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(AudioInputError, match=message) as caught:
        read(make())
    assert caught.value.hint
