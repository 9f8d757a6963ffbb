"""Recordings made by hand, in containers and with faults that FFmpeg does not write."""

import io
import struct
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np

from tests.support.encoded import LAYOUTS, tone


def wav(
    data: bytes,
    sample_rate: int = 16_000,
    *,
    channels: int = 1,
    bits: int = 16,
    tag: int = 1,
    align: int | None = None,
    data_bytes: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """Return a WAV file whose header says what it is told; `extra` are chunks before the samples."""
    align = channels * bits // 8 if align is None else align
    rate = (sample_rate * align) & 0xFFFF_FFFF
    head = b"fmt " + struct.pack("<IHHIIHH", 16, tag, channels, sample_rate & 0xFFFF_FFFF, rate, align & 0xFFFF, bits)
    count = len(data) if data_bytes is None else data_bytes & 0xFFFF_FFFF
    body = b"WAVE" + head + extra + b"data" + struct.pack("<I", count) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extensible(data: bytes, *, bits: int, valid_bits: int, sample_rate: int = 16_000) -> bytes:
    """Return an extensible WAV file, mono, in which a sample may have fewer valid bits than it takes."""
    align = bits // 8
    head = struct.pack("<HHIIHHHHI", 0xFFFE, 1, sample_rate, sample_rate * align, align, bits, 22, valid_bits, 4)
    head += bytes.fromhex("0100000000001000800000aa00389b71")  # PCM
    body = b"WAVE" + chunk(b"fmt ", len(head), head) + chunk(b"data", len(data), data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, size: int, content: bytes = b"") -> bytes:
    """Return a RIFF chunk that declares any size, negative ones too."""
    return name + struct.pack("<I", size & 0xFFFF_FFFF) + content


def list_chunk(size: int) -> bytes:
    """Return a LIST chunk of a WAV file with a sub-chunk of this size in it."""
    return chunk(b"LIST", 20, b"INFO" + chunk(b"ISFT", size, b"name" * 2))


def pcm16(seconds: float, sample_rate: int = 16_000, channels: int = 1) -> bytes:
    """Return the tone as bare 16-bit samples."""
    return (tone(sample_rate, channels, seconds) * 32_767).astype("<i2").tobytes()


def pcm32(seconds: float, sample_rate: int = 16_000) -> bytes:
    """Return the tone as bare 32-bit samples, mono."""
    return (tone(sample_rate, 1, seconds) * (2**31 - 129)).astype("<i4").tobytes()


def packets(codec: str, sample_rate: int, seconds: float, channels: int = 1, **options: str) -> list[bytes]:
    """Return the tone as the packets of a codec, in no container."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = sample_rate, LAYOUTS[channels], encoder.codec.audio_formats[0]
    encoder.time_base, encoder.options = Fraction(1, sample_rate), options
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(tone(sample_rate, channels, seconds).T), format="fltp", layout=LAYOUTS[channels]
    )
    frame.sample_rate = sample_rate
    resampler = av.AudioResampler(
        format=encoder.format, layout=LAYOUTS[channels], frame_size=encoder.frame_size or None
    )
    encoder.open()
    return [bytes(packet) for part in (*resampler.resample(frame), None) for packet in encoder.encode(part)]


def caf_opus(seconds: float) -> bytes:
    """Return Opus in CAF, as iPhones write voice messages."""
    parts = packets("libopus", 48_000, seconds)
    table = struct.pack(">qqii", len(parts), 960 * len(parts), 312, 0) + b"".join(_varint(len(part)) for part in parts)
    description = struct.pack(">d4sIIIII", 48_000.0, b"opus", 0, 0, 960, 1, 0)
    chunks = [(b"desc", description), (b"pakt", table), (b"data", bytes(4) + b"".join(parts))]
    return b"caff\0\1\0\0" + b"".join(name + struct.pack(">q", len(content)) + content for name, content in chunks)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([128 | number >> 7, number & 127])


def remuxed(data: bytes, container: str, *, without: tuple[float, float] = (0.0, 0.0)) -> bytes:
    """Return the packets of a file in another container, without those between two times in seconds."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format=container) as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is None or without[0] <= float(packet.dts * packet.time_base) < without[1]:
                continue
            packet.stream = stream
            out.mux(packet)
    return file.getvalue()


def seconds_by_packets(data: bytes) -> float:
    """Return the seconds of sound in the packets that FFmpeg's own decoder can decode, by default settings.

    Raises:
        av.FFmpegError: FFmpeg can't open the file.
    """
    seconds, failures = 0.0, 0
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        while failures < 20:
            try:
                for packet in container.demux(audio=0):
                    with suppress(av.FFmpegError):
                        frames: list[Any] = packet.decode()
                        seconds += sum(frame.samples / frame.sample_rate for frame in frames)
            except av.FFmpegError:
                failures += 1
            else:
                break
    return seconds
