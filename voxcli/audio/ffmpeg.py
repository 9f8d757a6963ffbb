"""Decodes the bytes of a recording with FFmpeg, through PyAV.

FFmpeg recognises the format by the content, never by a name. Formats outside FORMATS are refused, because some of
FFmpeg's demuxers open other files that a file names, such as the entries of a playlist. FFmpeg's log is off, which is
PyAV's default.
"""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Discard
from numpy.typing import NDArray

from voxcli.audio.links import LINK_BYTES, LINKS, SEARCHED_BYTES
from voxcli.errors import AudioInputError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

# The allowed demuxers, by their first name in FFmpeg: those that read audio from one file only. Games' formats are not
# among them: FFmpeg's demuxer for ADX ends the process (a division by zero) where a header is damaged.
FORMATS = (
    *(
        "aa",
        "aac",
        "ac3",
        "aiff",
        "amr",
        "amrnb",
        "amrwb",
        "ape",
        "asf",
        "au",
        "avi",
        "bonk",
        "caf",
        "dsf",
        "dss",
        "dts",
    ),
    *("dtshd", "dv", "eac3", "flac", "flv", "gsm", "gxf", "hcom", "iff", "ircam", "loas", "matroska", "mlp", "mmf"),
    *("mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nistsphere", "nsv", "nut", "ogg", "oma", "osq", "paf"),
    *("pvf", "qcp", "qoa", "rm", "rso", "shn", "sox", "swf", "tak", "truehd", "tta", "ty", "vivo", "voc", "w64", "wav"),
    *("wtv", "wv", "wve", "xwma"),
)
OPEN_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    # By default, FFmpeg searches 2500 packets of a WAV file for DTS, which takes ten times as long as decoding.
    "max_probe_packets": "1",
    "max_size": "16384",  # Bytes in a WAV packet.
}
PROBE_BYTES = 1 << 20  # FFmpeg's own limit (PROBE_BUF_MAX) for recognising a format.

# Replacements for FFmpeg's own decoders, which reject the pauses (DTX) that phones leave in voice messages.
DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
# The frame types of AMR that no encoder writes (3GPP TS 26.101, table 1a; TS 26.201, table 1a).
RESERVED = {"libopencore_amrnb": range(9, 15), "libopencore_amrwb": range(10, 14)}
READ_BYTES = 1 << 16
MAX_DEMUX_FAILURES = 100  # Consecutive failures after which the rest of a file is skipped.
AMR_FRAME_SECONDS = 0.02
GAP_SECONDS = 0.05, 60.0  # Time without audio between frames: less is rounding, more is a reset clock.
PAUSE_BYTES = 8  # A packet of at most this size may start a pause in which nothing is sent (DTX).

# The format chunk of an extensible WAV file (Microsoft, WAVEFORMATEXTENSIBLE), searched in the first HEAD_BYTES.
EXTENSIBLE, HEAD_BYTES = re.compile(rb"fmt .{4}\xfe\xff", re.DOTALL), 1 << 16

MANY_PLANES = 8  # PyAV counts the planes of a frame up to a null pointer, which FFmpeg has room for with fewer only.

CONVERT_HINT = "where other programs play it: ffmpeg -i FILE -ac 1 -ar 16000 question.wav"

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of decoded sound.

    samples: float32, shape (frames, channels); the nominal range is [-1, 1]
    sample_rate: Hertz; may differ between blocks
    """

    samples: Samples
    sample_rate: int


class ByteSource:
    """Supplies FFmpeg with a file's bytes; never raises, because exceptions can't pass through FFmpeg."""

    def __init__(self, file: BinaryIO) -> None:
        self.failure: OSError | None = None  # The last error of reading.
        self.furthest = 0  # The furthest byte of the file that was read.
        self.is_closed = False
        self._file = file
        self._start = 0  # The byte of the file where the source starts.

    def read(self, count: int) -> bytes:
        if self.is_closed:
            return b""
        try:
            data = self._file.read(count)
            self.furthest = max(self.furthest, self._file.tell())
        except OSError as error:
            self.failure = error
        except ValueError:  # Its owner closed the file.
            self.is_closed = True
        else:
            return data
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Return the new position, or -1 if it is invalid; a damaged header may point before the start."""
        try:
            return self._file.seek(offset + self._start * (whence == io.SEEK_SET), whence) - self._start
        except (OSError, ValueError):
            return -1

    def tell(self) -> int:
        return self.seek(0, io.SEEK_CUR)

    def starts_with(self, mark: bytes) -> bool:
        """Tell whether the source starts with `mark`; seeks to the start."""
        self.seek(0)
        found = self.read(len(mark))
        self.seek(0)
        return found == mark

    def skip_to(self, position: int) -> None:
        """Make a position the new start of the source."""
        self._start += position
        self.seek(0)

    def find_link(self, pattern: re.Pattern[bytes], position: int, *, limit: int | None) -> int | None:
        """Return where a pattern of LINKS first matches at or after a position, or None within `limit` bytes."""
        self.seek(position)
        data, end = b"", None if limit is None else position + limit
        while (end is None or position < end) and (more := self.read(READ_BYTES)):
            data += more
            if found := pattern.search(data):
                return position + found.start()
            position += max(len(data) - LINK_BYTES, 0)
            data = data[-LINK_BYTES:]
        return None

    def close(self) -> None:
        """Make the file end here."""
        self.is_closed = True


class SoundReader:
    """Decodes the default audio track of a source, once, from its start."""

    def __init__(self, source: ByteSource, name: str) -> None:
        self._source, self._name = source, name
        self._timeline = _Timeline()
        self._has_frames = False
        self._position = self._end = 0  # The byte offsets of the last packet's start and end.
        self._next_link: int | None = None  # The byte offset of the next link.

    @property
    def damaged_seconds(self) -> float:
        """Audio missing from the blocks so far, because it could not be decoded."""
        return self._timeline.damaged_seconds

    def blocks(self) -> Iterator[Block]:
        """Yield the audio in blocks as short as the codec's frames, and pauses that were left out as silence.

        Raises:
            AudioInputError: the file is empty, not audio, has no audio track, or can't be decoded.
        """
        yield from self._link()
        while self._next_link is not None:
            self._source.skip_to(self._next_link)
            with suppress(AudioInputError):
                yield from self._link()
        if self.damaged_seconds and not self._has_frames:
            raise undecodable(self._name)

    def _link(self) -> Iterator[Block]:
        """Yield the audio of one link, the part of a chained or joined recording that one decoder can read."""
        self._position, self._end, self._next_link, packet_bytes = 0, 0, None, 0
        self._timeline.restart()
        is_big_endian = self._source.starts_with(b"RIFX")
        is_wav = self._source.starts_with(b"RIFF") or self._source.starts_with(b"RF64")
        is_extensible = is_wav and self._source.find_link(EXTENSIBLE, 0, limit=HEAD_BYTES) is not None
        self._source.seek(0)
        with _open_container(self._source, self._name) as container:
            stream = _main_stream(container, self._name)
            decoder = _decoder(stream, self._name, is_big_endian=is_big_endian, is_extensible=is_extensible)
            # The index of these containers lists all packets, so that damage can't make one disappear.
            has_index, was_decoded = container.format.name.startswith("mov"), False
            for packet in chain(self._packets(container, stream), [None]):
                is_pause_possible = packet_bytes <= PAUSE_BYTES or (has_index and was_decoded)
                packet_bytes = packet.size if packet is not None else 0
                frames = self._frames(decoder, packet)
                was_decoded = bool(frames)
                for frame in frames:
                    self._has_frames = True
                    samples = _samples(frame)
                    if pause_seconds := self._timeline.pause_before(frame, is_pause_possible=is_pause_possible):
                        pause = round(pause_seconds * frame.sample_rate), samples.shape[1]
                        yield Block(np.zeros(pause, np.float32), frame.sample_rate)
                    yield Block(samples, frame.sample_rate)

    def _packets(self, container: "InputContainer", stream: "AudioStream") -> Iterator["Packet[Any]"]:
        """Yield the packets of a stream, continuing after errors; afterwards, search the next link."""
        form = container.format.name.split(",")[0]
        pattern = LINKS.get(form)
        failures = 0
        while failures < MAX_DEMUX_FAILURES and self._next_link is None:
            try:
                for packet in container.demux(stream):
                    failures = 0
                    if form == "amr" and packet.pos and LINKS[form].match(bytes(packet)):  # Read as if it were a frame.
                        self._next_link = packet.pos
                        return
                    if packet.size:  # An empty packet would end the decoder.
                        self._position = max(self._position, packet.pos or 0)
                        self._end = max(self._end, (packet.pos or 0) + packet.size)
                        yield packet
            except FFmpegError:
                failures += 1
                if form == "ogg":  # FFmpeg stops where channels, rate or codec change.
                    self._next_link = self._source.find_link(LINKS[form], self._position + 1, limit=None)
            else:
                break
        if pattern and form != "ogg" and self._end:
            self._next_link = self._source.find_link(pattern, self._end, limit=SEARCHED_BYTES)

    def _frames(self, decoder: "AudioCodecContext", packet: "Packet[Any] | None") -> list["AudioFrame"]:
        """Decode a packet, or flush the decoder for None; count a packet that can't be decoded."""
        try:
            return decoder.decode(packet) if packet is None or decoder.name not in RESERVED else _amr(decoder, packet)
        except FFmpegError:
            if packet is not None:
                self._timeline.count_damage(_seconds(packet, decoder))
            return []


class _Timeline:
    """Compares the times of frames with the audio decoded so far, to find what is missing.

    A demuxer skips damaged bytes silently; only the frames' times show the gap. Where a phone or browser sent nothing
    during a pause (DTX), they show one, too. Such a pause becomes silence, as in a player: the recording keeps its
    length, and the words before and after the pause do not run into each other.
    """

    def __init__(self) -> None:
        self.damaged_seconds = 0.0
        self._pending = 0.0  # Seconds of damage since the last frame.
        self._due: float | None = None  # The start of the next frame, if nothing is missing.

    def count_damage(self, seconds: float) -> None:
        """Count a packet that can't be decoded."""
        self.damaged_seconds += seconds
        self._pending += seconds

    def pause_before(self, frame: "AudioFrame", *, is_pause_possible: bool) -> float:
        """Return the seconds of a pause before a frame, or count the gap before it as damage."""
        gap = 0.0
        if frame.pts is not None and frame.time_base:
            start = float(frame.pts * frame.time_base)
            gap = start - self._due - self._pending if self._due is not None else 0.0
            self._due = start
        if self._due is not None:
            self._due += frame.samples / frame.sample_rate
        self._pending = 0.0
        if not GAP_SECONDS[0] < gap < GAP_SECONDS[1]:
            return 0.0
        if is_pause_possible:
            return gap
        self.damaged_seconds += gap
        return 0.0

    def restart(self) -> None:
        """Forget the expected time, because another stream begins."""
        self._due, self._pending = None, 0.0


def _open_container(source: ByteSource, name: str) -> "InputContainer":
    """Open a container in one of FORMATS; raises AudioInputError."""
    if not source.read(1):
        raise AudioInputError(f"{name} is empty", hint="nothing was recorded into it")
    source.seek(0)
    try:
        return av.open(source, "r", container_options=OPEN_OPTIONS, metadata_errors="replace")
    except FFmpegError as error:
        source.seek(0)
        if isinstance(error, ArgumentError) or not is_recognised(source):
            raise unknown_format(name) from error
        raise undecodable(name) from error


def is_recognised(file: "ByteSource | BinaryIO") -> bool:
    """Tell whether FFmpeg recognises the format; demuxes nothing."""
    try:
        with av.open(file, "r", container_options={"format_whitelist": "none"}):
            return True
    except FFmpegError as error:
        return isinstance(error, ArgumentError)  # FFmpeg recognised the format, then refused it.


def _main_stream(container: "InputContainer", name: str) -> "AudioStream":
    """Return the default audio track, and discard the others."""
    stream = container.streams.best("audio")
    if stream is None and container.streams.audio:  # A track without channels or a rate.
        raise undecodable(name)
    if stream is None:
        raise AudioInputError(f"{name} has no sound in it", hint="it is a film or a picture without a sound track")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    return cast("AudioStream", stream)


def _decoder(stream: "AudioStream", name: str, *, is_big_endian: bool, is_extensible: bool) -> "AudioCodecContext":
    """Return the decoder of a stream.

    Corrects FFmpeg, which reads big-endian WAV (RIFX) as little-endian, and 24 bits in the four bytes of an extensible
    WAV file, as Windows records them, as floating-point numbers.
    """
    own = stream.codec_context
    if own is None:
        raise undecodable(name)
    wanted = DECODERS.get(own.name, own.name)
    if is_big_endian and wanted.startswith("pcm_"):
        wanted = re.sub("le$", "be", wanted)
    if is_extensible and wanted == "pcm_f24le":
        wanted = "pcm_s32le"
    if wanted == own.name:
        return own
    try:
        decoder = cast("AudioCodecContext", av.CodecContext.create(wanted, "r"))
    except UnknownCodecError:
        return own
    decoder.sample_rate, decoder.layout = own.sample_rate, own.layout
    return decoder


def _amr(decoder: "AudioCodecContext", packet: "Packet[Any]") -> list["AudioFrame"]:
    """Decode a packet of AMR, which may hold several frames; raises InvalidDataError for a type that is reserved.

    In a damaged packet, the decoder takes frames of wrong sizes; at most the packet's duration is returned.
    """
    if packet.size and memoryview(packet)[0] >> 3 & 15 in RESERVED[decoder.name]:
        raise InvalidDataError(0, "a reserved frame type")
    frames = decoder.decode(packet)
    return frames[: max(1, round(_seconds(packet, decoder) / AMR_FRAME_SECONDS))]


def _seconds(packet: "Packet[Any]", decoder: "AudioCodecContext") -> float:
    """Return the duration of a packet, or 0 where neither container nor codec knows it."""
    if packet.duration:
        return float(packet.duration * packet.time_base)
    return decoder.frame_size / decoder.sample_rate if decoder.sample_rate else 0.0


def _samples(frame: "AudioFrame") -> Samples:
    """Return the samples of a frame, shape (frames, channels)."""
    is_many_planes = frame.format.is_planar and frame.layout.nb_channels >= MANY_PLANES
    if frame.format.name.startswith("s64") or is_many_planes:  # PyAV can't convert these to NumPy.
        (frame,) = av.AudioResampler(format="dbl").resample(frame)
    values = frame.to_ndarray()
    return as_float(values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels))


def as_float(values: NDArray[Any]) -> Samples:
    """Convert samples of any type to float32, with full scale at 1."""
    with np.errstate(over="ignore"):  # Large float64 values become infinite in float32.
        floats: Samples = values.astype(np.float32)
    if values.dtype == np.uint8:
        floats = (floats - 128) / np.float32(128)
    elif values.dtype.kind == "i":
        floats *= np.float32(2.0 ** (1 - 8 * values.itemsize))
    return floats


def unknown_format(name: str) -> AudioInputError:
    return AudioInputError(
        f"{name} is not audio in a known format",
        hint="WAV, FLAC, OGG, MP3, AIFF, M4A, MP4, WebM and more can be read; bare samples need --raw-rate HZ",
    )


def undecodable(name: str) -> AudioInputError:
    return AudioInputError(
        f"{name} can't be decoded: it is damaged, or in an encoding that is not known", hint=CONVERT_HINT
    )
