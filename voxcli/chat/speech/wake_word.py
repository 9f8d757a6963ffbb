"""Puts a conversation to sleep until its wake word is spoken, with the models of microWakeWord (extra `wake`).

Asleep, nothing but the wake word's model runs: no audio is kept beyond the last seconds, which the listener passes
on when the wake word is found, so that "hey Jarvis, what time is it" is one utterance.
"""

import re
from collections.abc import Callable

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.control import Control
from voxcli.chat.events import LiveEvent, StateChanged, TurnRetracted
from voxcli.chat.messages import SleepChanged
from voxcli.core.protocols import Transcript
from voxcli.errors import ModelError, missing_extra

# Utterances that put the conversation to sleep, in lower case without punctuation; the wake word may precede them.
SLEEP_COMMAND = re.compile(
    r"(?:(?:hey|okay|ok) \w+ |alexa )?(?:please )?(?:stop|stop listening|go to sleep)(?: please)?"
)

Spotter = Callable[[Samples], bool]


class SleepControl:
    """Decides whether the conversation is asleep: at first, after a time without speech, or when told.

    `stays_asleep` belongs to the listener's thread, `show` to the conversation's.
    """

    def __init__(
        self, new_spotter: Callable[[], Spotter], sleep_seconds: float, post: Callable[[Control | SleepChanged], None]
    ) -> None:
        """Begin asleep.

        Args:
            new_spotter: returns a function that takes the next samples, shape (n,), and tells whether the wake word
                has just ended. It is called each time the conversation falls asleep.
            sleep_seconds: time without speech and without a reply until the conversation sleeps again.
            post: receives what changes the conversation.
        """
        self._new_spotter = new_spotter
        self._spotter: Spotter | None = new_spotter()  # None: awake
        self._sleep_samples = round(sleep_seconds * SAMPLE_RATE)
        self._post = post
        self._quiet_samples = 0
        self._is_told = False
        self._undo: Control | None = None  # undoes the turn of the last command to sleep
        self._is_replying = False

    def stays_asleep(self, samples: Samples, speaking: bool) -> bool:
        """Process the microphone's next samples, shape (n,); return whether the conversation is asleep after them.

        Args:
            speaking: whether an utterance is open, which also wakes the conversation.
        """
        if self._spotter:
            if self._spotter(samples) or speaking:
                self._spotter = None
                self._quiet_samples, self._is_told = 0, False
                self._post(SleepChanged(False))
        else:
            self._quiet_samples = 0 if speaking or self._is_replying else self._quiet_samples + len(samples)
            if self._is_told or self._quiet_samples >= self._sleep_samples:
                self._spotter = self._new_spotter()
                self._post(SleepChanged(True))
        return self._spotter is not None

    def show(self, event: LiveEvent) -> None:
        """Note whether there is a reply, and obey an utterance that puts the conversation to sleep."""
        match event:
            case StateChanged(state):
                self._is_replying = state in ("thinking", "asking", "using tool", "speaking")
            case Transcript(text) if is_sleep_command(text):
                self._is_told = True
                self._undo = Control("undo")  # The command needs no reply, and no place in the next prompt.
                self._post(self._undo)
            case TurnRetracted() if self._undo:  # The utterance goes on, and there is no turn to undo.
                self._is_told = False
                self._undo.withdraw()


def is_sleep_command(transcript: str) -> bool:
    """Tell whether a transcript is a command to sleep and nothing else."""
    words = re.sub(r"[^\w\s]", "", transcript.lower()).split()
    return SLEEP_COMMAND.fullmatch(" ".join(words)) is not None


def load(name: str) -> Callable[[], Spotter]:
    """Return a function that makes a spotter of a wake word.

    Args:
        name: a model of the package, such as hey_jarvis.

    Raises:
        ModelError: the extra is not installed, or its library does not load.
    """
    try:
        from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

        model = MicroWakeWord.from_builtin(Model(name))
    except ImportError as error:  # Also raised where the library of its features does not load.
        raise missing_extra(ModelError, "A wake word", "wake") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the wake word {name} can't be loaded: {error}", hint="leave out --wake-word") from error

    def new_spotter() -> Spotter:
        model.reset()
        features = MicroWakeWordFeatures()

        def spot(samples: Samples) -> bool:
            pcm = (np.clip(np.nan_to_num(samples), -1, 1) * 32767).astype(np.int16).tobytes()
            found = [model.process_streaming(frame) for frame in features.process_streaming(pcm)]
            return any(found)

        return spot

    return new_spotter
