"""Predicts the end of turn from sound alone, with the model Smart Turn v3.2."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.chat.speech import turn_model
from voxcli.engines.embedded.log_mel import open_log_mel
from voxcli.errors import ModelError, missing_extra

Setting = Literal["auto", "silence", "smart-turn"]

COMPLETE_PROBABILITY = 0.5  # The threshold of the model's authors.
WINDOW_SECONDS = 8  # The model's input is Whisper's log-mel spectrogram of the last 8 s.
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
MIN_VARIANCE = 1e-7  # The constant of transformers' WhisperFeatureExtractor; keeps silence finite.


class TurnDetector:
    """Tells whether an utterance, up to a pause in it, is complete. It keeps no state; any thread may call it.

    A clip should end with a short silence; the model's authors use 200 ms.

    Raises:
        ModelError: the extra is not installed, or the model is damaged or can't be loaded.
    """

    def __init__(self, model: Path) -> None:
        try:
            import onnxruntime

            self._log_mel = open_log_mel()
        except ImportError as error:  # Also raised where a library does not load.
            raise missing_extra(ModelError, "The end-of-turn model", turn_model.NAME) from error
        content = turn_model.checked(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # A speculative reply starts at the same time.
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class.
            raise ModelError(f"the end-of-turn model {model} can't be loaded", hint=turn_model.PULL) from error

    def is_complete(self, clip: AudioClip) -> bool:
        """Tell whether an utterance is complete; takes and raises the same as `probability`."""
        return self.probability(clip) > COMPLETE_PROBABILITY

    def probability(self, clip: AudioClip) -> float:
        """Return the probability that an utterance is complete.

        Raises:
            ValueError: the clip is not mono at SAMPLE_RATE.
        """
        features = self._log_mel(normalized_window(clip))
        (probabilities,) = self._session.run(None, {"input_features": features[np.newaxis]})
        return float(probabilities.item())


def normalized_window(clip: AudioClip) -> Samples:
    """Return the last WINDOW_SECONDS of a clip with mean 0 and variance 1, shape (WINDOW_SAMPLES,).

    Silence is put before a clip that is shorter than the window. Samples that are not finite count as silence.

    Raises:
        ValueError: the clip is not mono at SAMPLE_RATE.
    """
    if clip.sample_rate != SAMPLE_RATE or clip.samples.ndim != 1:
        raise ValueError(f"a mono clip at {SAMPLE_RATE} Hz is needed")
    window = clip.samples[-WINDOW_SAMPLES:]
    window = np.pad(np.where(np.isfinite(window), window, 0), (WINDOW_SAMPLES - len(window), 0))
    scaled: Samples = ((window - window.mean()) / np.sqrt(window.var() + MIN_VARIANCE)).astype(np.float32)
    return scaled


def find_model(setting: Setting, cache: Path) -> Path | None:
    """Return the model for a setting, or None where silence alone ends a turn or the model is missing.

    "auto" uses the model that `voxcli models pull` fetched; "smart-turn" also that of an installed pipecat-ai, which
    may be there for another reason.
    """
    if setting == "silence":
        return None
    return turn_model.fetched(cache) or (turn_model.packaged() if setting == "smart-turn" else None)


def open_detector(setting: Setting, cache: Path) -> tuple[Callable[[AudioClip], bool] | None, str]:
    """Return what tells whether an utterance is complete, or None where silence alone does, and a notice or "".

    Raises:
        ModelError: the setting is "smart-turn" and the model is missing or can't be loaded.
    """
    model = find_model(setting, cache)
    if model is None and setting == "smart-turn":
        raise ModelError("the end-of-turn model is not here", hint=turn_model.PULL)
    try:
        return (TurnDetector(model).is_complete if model else None), ""
    except ModelError as error:
        if setting == "smart-turn":
            raise
        return None, f"{error.message}, so silence alone ends a turn: {error.hint}"
