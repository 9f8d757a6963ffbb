"""Whether a person has finished, by how it sounded: the end-of-turn model Smart Turn v3.2.

The package pipecat-ai carries the model, and its file is all that is taken: imported, the package would
bring two dozen others, write to stderr and change asyncio. The model goes by the sound alone. It knows
no text, and this module nothing of pauses or of what is done with a verdict.

The silence at a clip's end is to be short, 200 ms as its makers have it. Of thirteen synthetic questions,
7, 8 and 11 were called complete after 100, 200 and 400 ms, and 19, 36 and 54 of the 65 cuts inside them too.
"""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.engines.embedded.weights import FindPackage, installed_package
from voxcli.errors import ModelError, missing_extra

MODEL = "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"  # in the package
INSTALL = "pip install --no-deps pipecat-ai==1.14.0"  # a version that carries this model
COMPLETE_PROBABILITY = 0.5  # above it, as in the package's analyzer

# What the model takes: Whisper's log-mel spectrogram (openai/whisper, audio.py) of the last 8 s.
WINDOW_SAMPLES = 8 * SAMPLE_RATE
FFT_SAMPLES, HOP_SAMPLES, MELS = 400, 160, 80
DECADES = 8.0  # of power below the loudest are told apart


def load(find: FindPackage = installed_package) -> Callable[[AudioClip], bool]:
    """Load the model; return what says whether an utterance, heard up to its first pause, is complete.

    That takes a clip at SAMPLE_RATE and raises a ValueError for any other. It keeps no state, and any
    thread may call it.

    Raises:
        ModelError: the extra is not installed, or the model can't be loaded.
    """
    package = find("pipecat")
    try:
        import onnxruntime
    except ImportError as error:  # also where its library does not load
        raise missing_extra(ModelError, "The end-of-turn model", "smart-turn") from error
    if package is None:
        raise missing_extra(ModelError, "The end-of-turn model", "smart-turn")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a draft begins at the same time
    try:
        session = onnxruntime.InferenceSession(package / MODEL, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise ModelError(f"the end-of-turn model {package / MODEL} can't be loaded", hint=INSTALL) from error

    def is_complete(clip: AudioClip) -> bool:
        (probabilities,) = session.run(None, {"input_features": features(clip)[np.newaxis]})
        return bool(probabilities.item() > COMPLETE_PROBABILITY)

    return is_complete


def features(clip: AudioClip) -> Samples:
    """Return what the model is given of a clip: float32, shape (MELS, WINDOW_SAMPLES // HOP_SAMPLES).

    What is shorter than the window stands at its end, and silence before it. Samples that are not finite
    count as silence.
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

    Their edges are evenly spaced in mels: 200/3 Hz each up to 1000 Hz, and from there 27 to a factor of 6.4.
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
