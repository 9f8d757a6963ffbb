"""Warms up the engine and the voice before "ready" is said: what a first turn costs more is paid here."""

import threading

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.session import Session
from voxcli.core.turn import Engine, Synthesizer, Utterance

WARM_SECONDS = 1.0  # of faint noise, which takes the whole way through an encoder


def warm_up(engine: Engine, session: Session, synthesizer: Synthesizer | None = None) -> None:
    """Let the engine answer once in a session, and forget the answer; return when the voice is warm, too.

    The prompt begins with the session, as the next one will. The answer stops at its first piece. The voice warms
    up by itself.

    Raises:
        ModelError: the engine can't answer.
        SpeechError: the voice can't speak.
    """
    noise = np.random.default_rng(0).normal(0, 1e-3, round(WARM_SECONDS * SAMPLE_RATE)).astype(np.float32)
    interrupt = threading.Event()
    utterance = Utterance(AudioClip(noise), "Say hello.")
    for _delta in engine.reply(session, utterance, interrupt):
        interrupt.set()
    engine.prefill_history(session)
    if synthesizer:
        synthesizer.wait_until_ready()
