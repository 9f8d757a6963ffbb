"""Warms up the engine and the voice, so that the first turn takes no longer than others."""

import threading

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Engine, Synthesizer, Utterance
from voxcli.core.session import Session

NOISE_SECONDS = 1.0  # Answering faint noise warms up the audio encoder too.


def warm_up(engine: Engine, session: Session, synthesizer: Synthesizer | None = None, *, typed: bool = False) -> None:
    """Generate the first delta of a reply and discard it; return when the voice is warm, too.

    The prompt begins with the session, as that of the first turn will. The voice warms up on its own.

    Args:
        typed: the turns will have no audio.

    Raises:
        ModelError: the engine can't answer.
        SpeechError: the voice can't speak.
    """
    noise = np.random.default_rng(0).normal(0, 1e-3, round(NOISE_SECONDS * SAMPLE_RATE)).astype(np.float32)
    interrupt = threading.Event()
    utterance = Utterance(None if typed else AudioClip(noise), "Say hello.")
    for _delta in engine.reply(session, utterance, interrupt):
        interrupt.set()
    engine.prefill_history(session)
    if synthesizer:
        synthesizer.wait_until_ready()
