"""Short, quiet sounds: ready or awake, the utterance is over, an error.

The loudspeaker mixes them into what it plays. They take no place in its queue, so a reply does not wait for them, and
they do not count as playback, so the microphone stays open. The echo canceller removes them like all that is played.
"""

from typing import Protocol

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.chat.events import LiveEvent, StateChanged, TurnFailed, TurnStarted
from voxcli.core.tools import ToolsStopped

PEAK = 0.03  # -30 dBFS; replies are played at about -20.
FADE_SECONDS = 0.01
# Pairs of a frequency in hertz and a length in seconds. At any level Silero finds speech in them with a probability of
# 0.23 at most; in two tones of 330 and 247 Hz it was 0.8.
READY = ((1047, 0.07), (1568, 0.07))
UTTERANCE_OVER = ((1320, 0.06),)
ERROR = ((1320, 0.08), (880, 0.12))


class CueSpeaker(Protocol):
    """The part of `voxcli.chat.devices.speaker.OutputSpeaker` that plays cues."""

    def play_cue(self, clip: AudioClip) -> None: ...


class Cues:
    """Plays a cue for the events that have one."""

    def __init__(self, speaker: CueSpeaker) -> None:
        self._speaker = speaker
        self._ready, self._utterance_over, self._error = map(tones, (READY, UTTERANCE_OVER, ERROR))
        self._is_awake = False

    def show(self, event: LiveEvent) -> None:
        """Play the cue of an event, if it has one."""
        match event:
            case StateChanged("asleep"):
                self._is_awake = False
            case StateChanged("listening" | "hearing") if not self._is_awake:
                self._is_awake = True
                self._speaker.play_cue(self._ready)
            case TurnStarted(utterance) if utterance.clip:
                self._speaker.play_cue(self._utterance_over)
            case TurnFailed() | ToolsStopped():
                self._speaker.play_cue(self._error)


def tones(sounds: tuple[tuple[float, float], ...]) -> AudioClip:
    """Return sine waves one after another, each faded in and out.

    Args:
        sounds: pairs of a frequency in hertz and a length in seconds.
    """
    waves = []
    for hertz, length_seconds in sounds:
        seconds = np.arange(round(length_seconds * SAMPLE_RATE)) / SAMPLE_RATE
        fades = np.clip(np.minimum(seconds, seconds[::-1]) / FADE_SECONDS, 0, 1)
        waves.append(PEAK * fades * np.sin(2 * np.pi * hertz * seconds))
    return AudioClip(np.concatenate(waves).astype(np.float32))
