"""Reads recordings with mutated headers. Run as a process of its own: a crash of FFmpeg or a hang would end it.

It names each case before it is read, so that the last line names the case that ended the process.
"""

import faulthandler
import io
import random
import sys
from collections.abc import Iterator

import numpy as np

from tests.support.encoded import encoded
from tests.support.recordings import caf_opus, list_chunk, pcm16, wav
from voxcli.audio.clip import read_audio
from voxcli.errors import AudioInputError

SECONDS = 0.15  # The length of each recording before it is mutated.
CASE_SECONDS = 30.0  # A case that takes longer ends the process; the decoder gives up after 10 s without progress.
MAX_SECONDS = 60.0
FORMS = [
    *(("wav", "pcm_s16le", 16_000, 1), ("wav", "pcm_f32le", 16_000, 2), ("wav", "adpcm_ms", 16_000, 1)),
    *(("wav", "libmp3lame", 44_100, 1), ("w64", "pcm_s16le", 16_000, 1), ("aiff", "pcm_s16be", 22_050, 2)),
    *(
        ("au", "pcm_mulaw", 8_000, 1),
        ("caf", "alac", 44_100, 1),
        ("flac", "flac", 16_000, 1),
        ("ogg", "flac", 16_000, 1),
    ),
    *(("ogg", "vorbis", 44_100, 2), ("ogg", "libopus", 48_000, 1), ("mp3", "libmp3lame", 44_100, 1)),
    *(("mp2", "mp2", 44_100, 1), ("adts", "aac", 44_100, 1), ("latm", "aac", 44_100, 1), ("ipod", "aac", 44_100, 1)),
    *(
        ("ipod", "alac", 16_000, 1),
        ("mp4", "libopus", 48_000, 1),
        ("ismv", "aac", 44_100, 1),
        ("mov", "pcm_s16be", 16_000, 1),
    ),
    *(("3gp", "libopencore_amrnb", 8_000, 1), ("amr", "libopencore_amrnb", 8_000, 1), ("matroska", "aac", 44_100, 1)),
    *(("webm", "libopus", 48_000, 1), ("mpegts", "aac", 44_100, 1), ("mpeg", "mp2", 44_100, 1)),
    *(
        ("avi", "libmp3lame", 44_100, 1),
        ("asf", "wmav2", 44_100, 1),
        ("flv", "aac", 44_100, 1),
        ("nut", "libopus", 48_000, 1),
    ),
    *(("tta", "tta", 16_000, 1), ("wv", "wavpack", 16_000, 1), ("ac3", "ac3", 48_000, 1), ("voc", "pcm_u8", 16_000, 1)),
    *(("sox", "pcm_s32le", 8_000, 1), ("ircam", "pcm_s16le", 8_000, 1), ("rm", "ac3", 48_000, 1)),
    *(("wtv", "mp2", 48_000, 1), ("mmf", "adpcm_yamaha", 22_050, 1), ("gxf", "pcm_s16le", 48_000, 1)),
    ("swf", "libmp3lame", 44_100, 1),
]
NUMBERS = [number.to_bytes(4, "big") for number in (0, 1, 8, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF8, 0xFFFF_FFFF)]
NUMBERS += [number[::-1] for number in NUMBERS]


def seeds() -> list[tuple[str, bytes]]:
    """Return a recording of each kind, with its name."""
    made = [(f"{form[0]}/{form[1]}", encoded(*form, seconds=SECONDS, b="64k")) for form in FORMS]
    return [*made, ("caf/opus", caf_opus(SECONDS)), ("wav/list", wav(pcm16(SECONDS), extra=list_chunk(4)))]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one to eight faults, most of them in its header."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(min(len(result), rng.choice((32, 128, 512, len(result)))))
        match rng.randrange(6):
            case 0:
                result[at] = rng.randrange(256)
            case 1:
                result[at] ^= 1 << rng.randrange(8)
            case 2:
                result[at : at + 4] = rng.choice(NUMBERS)
            case 3:
                del result[at : at + rng.randrange(1, 20)]
            case 4:
                result[at:at] = rng.randbytes(rng.randrange(1, 20))
            case _:
                result[at:] = result[at:] * 2 if rng.random() < 0.5 else result[at : at + 4096]
        if not result:
            break
    return bytes(result)


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield mutated recordings, each kind in turn, with their names."""
    rng, kinds = random.Random(seed), seeds()
    for number in range(count):
        name, data = kinds[number % len(kinds)]
        yield f"{number} {name}", mutated(data, rng)


def main() -> None:
    """Read `count` cases of a seed, the two arguments; print how many were clips and how many were refused."""
    count, seed = map(int, sys.argv[1:])
    clips = refused = 0
    for name, data in cases(count, seed):
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        try:
            clip = read_audio("-", stdin=io.BytesIO(data), max_seconds=MAX_SECONDS)
        except AudioInputError:
            refused += 1
            continue
        assert np.abs(clip.samples).max() <= 1
        assert 0 < clip.seconds <= MAX_SECONDS + 1
        clips += 1
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(f"{clips} clips, {refused} refused\n")


if __name__ == "__main__":
    main()
