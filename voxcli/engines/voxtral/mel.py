"""Turns a clip into mel spectrograms for Voxtral's encoder; on a CPU, bit by bit those of its processor.

The encoder takes windows of one length, given by the checkpoint's configuration. A clip is padded with silence
to whole windows.
"""

from typing import Any

import numpy as np
import torch

from voxcli.audio.clip import AudioClip
from voxcli.engines.voxtral.runtime.model import audio_tokens_per_window

FRAMES_PER_POSITION = 2  # stride of the encoder's second convolution (`VoxtralEncoder.forward`)
STEP_FRAMES = 50  # half a second; with 10 frames, the last bits of a product depended on the number of frames


class FrontEnd:
    """Makes the input of the audio encoder."""

    def __init__(self, extractor: Any, audio_config: Any, device: str = "cpu") -> None:
        """Use a `WhisperFeatureExtractor` and the audio part of the checkpoint's configuration.

        Args:
            device: device of the computation. cuda or cuda:N is faster and differs from cpu in the last bits.
        """
        self._extractor = extractor
        self._device = device
        self.sample_rate: int = extractor.sampling_rate  # Hz
        self.window_frames: int = FRAMES_PER_POSITION * audio_config.max_source_positions
        self.window_samples: int = self.window_frames * extractor.hop_length
        self.tokens_per_window = audio_tokens_per_window(audio_config)

    def tokens(self, clip: AudioClip) -> int:
        """Return the number of embeddings that the encoder makes of the clip."""
        return self._windows(clip) * self.tokens_per_window

    def whole_windows(self, clip: AudioClip) -> int:
        """Return the number of windows at the start of a clip that do not change when it goes on, loudness aside.

        A frame reads half a Fourier window of samples on either side, so the last frame of a window
        reads samples of the next one.
        """
        ahead = int(self._extractor.n_fft) // 2
        return max(0, len(clip.samples) - ahead) // self.window_samples

    def features(self, clip: AudioClip) -> torch.Tensor:
        """Return log-mel spectrograms, float32, (windows, mels, window_frames)."""
        if clip.sample_rate != self.sample_rate:
            raise ValueError(f"a clip at {self.sample_rate} Hz is needed, not at {clip.sample_rate} Hz")
        samples = np.pad(clip.samples, (0, self._samples_computed(clip) - len(clip.samples)))
        # The calls are those of VoxtralProcessor._retrieve_input_features, so that the last bits are equal.
        mels: torch.Tensor = self._extractor(
            samples,
            sampling_rate=self.sample_rate,
            padding=True,
            truncation=False,
            return_tensors="pt",
            device=self._device,
        )["input_features"][0]
        silence = mels[:, -1:].expand(-1, self._windows(clip) * self.window_frames - mels.shape[1])
        mels = torch.cat([mels, silence], 1)
        return mels.reshape(self._extractor.feature_size, -1, self.window_frames).transpose(0, 1)

    def _windows(self, clip: AudioClip) -> int:
        return max(1, -(-len(clip.samples) // self.window_samples))

    def _samples_computed(self, clip: AudioClip) -> int:
        """Return the samples of the padded clip. On a CPU, it ends with a frame of silence, which is then repeated.

        On a GPU, it is padded to whole windows, because a Fourier transform of a new length has to be planned first.
        """
        whole = self._windows(clip) * self.window_samples
        if self._device.startswith("cuda"):
            return whole
        step = STEP_FRAMES * int(self._extractor.hop_length)
        silent = len(clip.samples) + int(self._extractor.n_fft) // 2 + int(self._extractor.hop_length)
        return min(whole, -(-silent // step) * step)

    @property
    def processor_options(self) -> dict[str, Any]:
        """Options with which `VoxtralProcessor` cuts windows of this length; its default is 30 s."""
        return {"pad_to_multiple_of": self.window_samples, "max_source_positions": self.window_frames}
