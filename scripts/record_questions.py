"""Record the spoken questions in `examples/questions` again, from its `questions.json`.

Each question is spoken by one of flite's built-in voices, trimmed, given a little silence at both ends,
scaled to one peak level and written as 16 kHz mono FLAC of 16 bits. The same flite gives the same samples each time.
This script knows nothing of voxcli: it needs flite, numpy and soundfile.

    sudo apt-get install flite
    pip install numpy soundfile
    python scripts/record_questions.py [--out FOLDER] [NAME.flac ...]
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

QUESTIONS = Path(__file__).resolve().parent.parent / "examples" / "questions" / "questions.json"
SAMPLE_RATE = 16_000  # Hz
PEAK = 10 ** (-3 / 20)  # of full scale: -3 dBFS
MARGIN_SECONDS = 0.25  # silence before the first and after the last sound
QUIET = 0.01  # of the peak: below it flite's lead-in and lead-out count as silence

Samples = NDArray[np.float32]


def flite_program() -> str:
    """Return where flite is; raise SystemExit with the command that installs it where it is missing."""
    program = shutil.which("flite")
    if program is None:
        raise SystemExit("flite is not installed: sudo apt-get install flite")
    return program


def flite_voices(program: str) -> set[str]:
    """Return the names of the voices built into this flite."""
    listing = subprocess.run([program, "-lv"], capture_output=True, text=True, check=True).stdout
    return set(listing.partition(":")[2].split())


def speak(program: str, voice: str, text: str) -> Samples:
    """Return text spoken by a flite voice, mono at SAMPLE_RATE; raise SystemExit where flite can't."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spoken.wav")
        command = [program, "-voice", voice, "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            raise SystemExit(f"flite could not say {text!r} with voice {voice}: {done.stderr.strip()}")
        samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        raise SystemExit(f"voice {voice} speaks at {rate} Hz; choose one that speaks at {SAMPLE_RATE} Hz")
    return np.asarray(samples, dtype=np.float32)


def framed(samples: Samples) -> Samples:
    """Return the sounding part of samples at PEAK, with MARGIN_SECONDS of silence on both sides."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak:
        raise SystemExit("flite spoke only silence")
    loud = np.flatnonzero(np.abs(samples) > QUIET * peak)
    margin = np.zeros(round(MARGIN_SECONDS * SAMPLE_RATE), dtype=np.float32)
    return np.concatenate([margin, samples[loud[0] : loud[-1] + 1] * np.float32(PEAK / peak), margin])


def main() -> None:
    """Record every question, or those that are named."""
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description="Record the spoken questions again.")
    parser.add_argument("names", nargs="*", metavar="NAME.flac", help="questions to record (default: all)")
    parser.add_argument("--out", type=Path, default=QUESTIONS.parent, help="folder to write into")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(questions)):
        parser.error(f"not in {QUESTIONS.name}: {', '.join(unknown)}")
    names = chosen.names or list(questions)
    program = flite_program()
    if lacking := sorted({questions[name]["voice"] for name in names} - flite_voices(program)):
        raise SystemExit(f"this flite lacks the voices {', '.join(lacking)}; Debian's package `flite` has them")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        clip = framed(speak(program, questions[name]["voice"], questions[name]["text"]))
        soundfile.write(chosen.out / name, clip, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        print(f"{name}  {len(clip) / SAMPLE_RATE:.2f} s  {questions[name]['voice']}")


if __name__ == "__main__":
    main()
