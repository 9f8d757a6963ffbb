"""Predicts the end of turn from sound alone, with the model Smart Turn v3.2.

The package pipecat-ai contains the model. Only the model's file is read: importing the package would load two dozen
others, write to stderr and change asyncio.

A clip should end with a short silence; the model's authors use 200 ms. After 100, 200 and 400 ms, the model called 7,
8 and 11 of thirteen synthetic questions complete, and also 19, 36 and 54 of 65 fragments of them.
"""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.engines.embedded.weights import FindPackage, installed_package
from voxcli.errors import ModelError, missing_extra

MODEL = "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"  # Path in the package.
INSTALL = "pip install --no-deps pipecat-ai==1.14.0"  # A version that contains this model.
COMPLETE_PROBABILITY = 0.5  # The threshold of the package's analyzer.

# The model's input is Whisper's log-mel spectrogram (openai/whisper, audio.py) of the last 8 s.
WINDOW_SAMPLES = 8 * SAMPLE_RATE
FFT_SAMPLES, HOP_SAMPLES, MELS = 400, 160, 80
DECADES = 8.0  # The dynamic range below the loudest value, in powers of ten.


def load(find: FindPackage = installed_package) -> Callable[[AudioClip], bool]:
    """Load the model; return a function that tells whether an utterance, up to a pause in it, is complete.

    The function takes a clip at SAMPLE_RATE and raises a ValueError for any other rate. It keeps no state, and any
    thread may call it.

    Raises:
        ModelError: the extra is not installed, or the model can't be loaded.
    """
    package = find("pipecat")
    try:
        import onnxruntime
    except ImportError as error:  # Also raised where its library does not load.
        raise missing_extra(ModelError, "The end-of-turn model", "smart-turn") from error
    if package is None:
        raise missing_extra(ModelError, "The end-of-turn model", "smart-turn")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # A speculative reply starts at the same time.
    try:
        session = onnxruntime.InferenceSession(package / MODEL, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class.
        raise ModelError(f"the end-of-turn model {package / MODEL} can't be loaded", hint=INSTALL) from error

    def is_complete(clip: AudioClip) -> bool:
        (probabilities,) = session.run(None, {"input_features": features(clip)[np.newaxis]})
        return bool(probabilities.item() > COMPLETE_PROBABILITY)

    return is_complete


def features(clip: AudioClip) -> Samples:
    """Return the model's input for a clip: float32, shape (MELS, WINDOW_SAMPLES // HOP_SAMPLES).

    Silence is put before a clip that is shorter than the window. Samples that are not finite count as silence.

    Raises:
        ValueError: the clip is not mono at SAMPLE_RATE.
    """
    if clip.sample_rate != SAMPLE_RATE or clip.samples.ndim != 1:
        raise ValueError(f"a mono clip at {SAMPLE_RATE} Hz is needed")
    window = clip.samples[-WINDOW_SAMPLES:]
    window = np.pad(np.where(np.isfinite(window), window, 0), (WINDOW_SAMPLES - len(window), 0))
    window = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    padded = np.pad(window, FFT_SAMPLES // 2, mode="reflect")
    frames = sliding_window_view(padded, FFT_SAMPLES)[: len(window) : HOP_SAMPLES]
    spectrum = np.fft.rfft(frames * np.hanning(FFT_SAMPLES + 1)[:-1])
    log_mels = np.log10(np.maximum(_mel_filters() @ np.square(np.abs(spectrum)).T, 1e-10))
    scaled: Samples = ((np.maximum(log_mels, log_mels.max() - DECADES) + 4) / 4).astype(np.float32)
    return scaled


def _mel_filters() -> NDArray[np.float64]:
    """Return Slaney's triangular filters of equal area, shape (MELS, FFT_SAMPLES // 2 + 1).

    The edges are evenly spaced in mels: one mel is 200/3 Hz up to 1000 Hz; above, 27 mels are a factor of 6.4.
    """
    nyquist_hertz = SAMPLE_RATE / 2
    highest_mel = 15 + 27 * np.log(nyquist_hertz / 1000) / np.log(6.4)
    mels = np.linspace(0, highest_mel, MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))[:, np.newaxis]
    bins = np.linspace(0, nyquist_hertz, FFT_SAMPLES // 2 + 1)
    widths = np.diff(edges, axis=0)
    rising, falling = (bins - edges[:-2]) / widths[:-1], (edges[2:] - bins) / widths[1:]
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return filters
