"""The voice of a machine without a setting: the neural voice, and the system's for what that can't say."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Self

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Synthesizer
from voxcli.errors import SpeechError

log = logging.getLogger(__name__)


class AutoSynthesizer:
    """Implements `voxcli.core.protocols.Synthesizer` with two others; a context manager.

    The second one is opened for the first sentence that needs it. It also takes over, for good, where the first fails.
    """

    def __init__(
        self, first: Synthesizer, open_second: Callable[[], Synthesizer], can_say: Callable[[str], bool]
    ) -> None:
        """Take an open synthesizer, which this one closes.

        Args:
            open_second: opens the other one.
            can_say: whether the first can say a sentence.
        """
        self._first = first
        self._open_second = open_second
        self._can_say = can_say
        self._lock = threading.Lock()  # Guards the second one against `close`.
        self._second: Synthesizer | None = None
        self._has_failed = False
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until a first sentence has been rendered; raises SpeechError if no voice speaks."""
        if not self._has_failed:
            try:
                self._first.wait_until_ready()
            except SpeechError as error:
                self._give_up_first(error)
        if self._has_failed:
            self._opened_second().wait_until_ready()

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        """Yield the clips of a sentence; raises SpeechError if the voice that should say it fails."""
        if not self._has_failed and self._can_say(sentence):
            try:
                yield from self._first.synthesize(sentence)
            except SpeechError as error:
                self._give_up_first(error)
            else:
                return
        yield from self._opened_second().synthesize(sentence)

    def close(self) -> None:
        """Close both. May be called again."""
        with self._lock:
            self._closed = True
        self._first.close()
        if self._second:
            self._second.close()

    def _give_up_first(self, error: SpeechError) -> None:
        if self._closed:
            raise error
        log.warning("the system's voice is used from now on: %s; %s", error.message, error.hint)
        self._has_failed = True

    def _opened_second(self) -> Synthesizer:
        with self._lock:
            if self._closed:
                raise SpeechError("the voice is closed")
            self._second = self._second or self._open_second()
            return self._second
