"""An endpointer under test, fed with samples whose values are their positions."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from voxcli.audio.clip import AudioClip
from voxcli.chat.events import EndpointEvent, SpeechEnded, SpeechGoesOn
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.chat.speech.silence import TurnSilence

FRAME = 512
VOICE, SILENCE = 0.9, 0.05  # probabilities
MIN_SPEECH_FRAMES = 7  # 200 ms, rounded up to whole frames
PAUSE_FRAMES, END_FRAMES = 7, 19  # 200 and 600 ms


def patient(**changed: Any) -> EndpointingSettings:
    """Return settings with a pause after PAUSE_FRAMES and an end after END_FRAMES, unless they are changed."""
    return EndpointingSettings(**{"speculate_after_ms": 200, "min_silence_ms": 600} | changed)


class Listening:
    """An endpointer, fed with samples whose values are their positions, and the events that it returned."""

    def __init__(self, settings: EndpointingSettings | None = None, silence: TurnSilence | None = None) -> None:
        self.end_pointer = Endpointer(settings or patient(), silence)
        self.position = 0
        self.events: list[EndpointEvent] = []

    def hear(self, probability: float, frames: int = 1, *, playing: bool = False) -> list[EndpointEvent]:
        """Push frames of one probability; return the events."""
        new: list[EndpointEvent] = []
        for _ in range(frames):
            ramp = np.arange(self.position, self.position + FRAME, dtype=np.float32)
            self.position += FRAME
            new += self.end_pointer.push(ramp, probability, playing)
        self.events += new
        return new

    def utterance(self, frames: int = 20) -> SpeechEnded:
        self.hear(VOICE, frames)
        self.hear(SILENCE, END_FRAMES)
        ended = self.events[-1]
        assert isinstance(ended, SpeechEnded)
        return ended


def span(clip: AudioClip) -> tuple[int, int]:
    """Return the first position in a clip and the one after its last; check that none is missing or doubled."""
    if not len(clip.samples):
        return 0, 0
    first = int(clip.samples[0])
    assert np.array_equal(clip.samples, np.arange(first, first + len(clip.samples)))
    return first, first + len(clip.samples)


def kinds(events: Iterable[EndpointEvent]) -> list[type]:
    """Return the types of the events, without `SpeechGoesOn`."""
    return [type(event) for event in events if not isinstance(event, SpeechGoesOn)]
