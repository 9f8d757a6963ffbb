"""Computes Whisper's log-mel spectrogram with faster-whisper."""

from collections.abc import Callable
from functools import partial

from voxcli.audio.clip import Samples


def open_log_mel() -> Callable[[Samples], Samples]:
    """Return a function of samples at 16 kHz, shape (n,), that returns shape (80, n // 160).

    Raises:
        ImportError: faster-whisper is not installed.
    """
    from faster_whisper.feature_extractor import FeatureExtractor

    return partial(FeatureExtractor(), padding=0)
