"""The scenario of a conversation in which nobody speaks: the share of a core that it takes."""

import threading
import time

import numpy as np

from benchmarks.conversation.chat_process import processor_seconds
from benchmarks.conversation.harness import Harness
from benchmarks.conversation.sound_card import RATE
from benchmarks.report import Figure
from voxcli.audio.clip import AudioClip, Samples

MINUTES = 5.0
SILENCE_SHARE, NOISE_SHARE = 0.06, 0.08
NOISE_DBFS = -60.0  # a quiet room; with a correctly set gain, speech is at -26
SETTLE_SECONDS = 10.0  # after "listening", until the first reports and the noise floor are stable


def idle(harness: Harness, minutes: float) -> list[Figure]:
    """Measure the processor time of a conversation, its voice's process included, in silence and in quiet noise."""
    with harness.idle_chat() as pid:
        silence = _share(pid, minutes)
        noise = AudioClip(_noise(60 * minutes + 2 * SETTLE_SECONDS), RATE)
        speaking = threading.Thread(target=harness.card.speak, args=(noise,), daemon=True)
        speaking.start()
        quiet = _share(pid, minutes)
        speaking.join()
    words = f"{minutes:g} min of"
    return [
        _figure(f"idle, {words} silence", silence, SILENCE_SHARE),
        _figure(f"idle, {words} noise of {NOISE_DBFS:.0f} dBFS", quiet, NOISE_SHARE),
    ]


def _share(pid: int, minutes: float) -> float:
    """Return the share of a core that a process takes from SETTLE_SECONDS on."""
    time.sleep(SETTLE_SECONDS)
    used, begun = processor_seconds(pid), time.monotonic()
    time.sleep(60 * minutes)
    return (processor_seconds(pid) - used) / (time.monotonic() - begun)


def _noise(seconds: float) -> Samples:
    samples = np.random.default_rng(0).standard_normal(round(seconds * RATE), np.float32)
    return samples * np.float32(10 ** (NOISE_DBFS / 20))


def _figure(what: str, share: float, bar: float) -> Figure:
    measured, limit = f"{share:.1%} of a core", f"at most {bar:.0%}"
    return Figure(what, measured, limit, share <= bar, {"share": round(share, 4)})
