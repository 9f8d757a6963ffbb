"""Recordings of a tone in any container and codec, written by FFmpeg."""

import io
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

AMPLITUDE = 0.5  # -6 dBFS
PITCH = 440.0  # Hz
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}


def tone(sample_rate: int, channels: int = 1, seconds: float = 1.0, pitch: float = PITCH) -> NDArray[np.float32]:
    """Return a sine, shape (frames, channels)."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    return np.tile(AMPLITUDE * np.sin(2 * np.pi * pitch * times), (channels, 1)).T.astype(np.float32)


def encoded(
    container: str, codec: str, sample_rate: int, channels: int = 1, seconds: float = 1.0, **options: str
) -> bytes:
    """Return the tone as a file with one track; the options are those of the codec."""
    return encoded_tracks(container, codec, sample_rate, [tone(sample_rate, channels, seconds)], None, **options)


def encoded_tracks(
    container: str,
    codec: str,
    sample_rate: int,
    tracks: list[NDArray[np.float32]],
    default: int | None = None,
    **options: str,
) -> bytes:
    """Return a file with these tracks, each of shape (frames, channels); one may be marked as the default."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        streams: list[Any] = []
        for number, samples in enumerate(tracks):
            layout = LAYOUTS[samples.shape[1]]
            stream: Any = out.add_stream(codec, rate=sample_rate, layout=layout, options={"strict": "-2", **options})
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append(stream)
        for stream, samples in zip(streams, tracks, strict=True):
            # Packed, because PyAV can't make planar frames of eight channels or more.
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=LAYOUTS[samples.shape[1]])
            frame.sample_rate = sample_rate
            packets = [*stream.encode(frame), *stream.encode(None)]
            # The last packet of FLAC is a new header without sound; only FLAC's own container takes it.
            out.mux([packet for packet in packets if packet.size or container == "flac"])
    return file.getvalue()


def pitch_of(samples: NDArray[np.float32], sample_rate: int) -> float:
    """Return the strongest frequency, in Hertz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * sample_rate / len(samples)
