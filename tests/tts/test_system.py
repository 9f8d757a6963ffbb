"""Tests of the system's voices, with the real worker process, and with a scripted one for failures."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support import speech_worker
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import SpeechOutput, Utterance
from voxcli.core.session import Session
from voxcli.core.spoken_text import SpokenText
from voxcli.core.testing import FakeEngine
from voxcli.core.turn import run_turn
from voxcli.errors import ConfigError, SpeechError
from voxcli.tts.system import Pyttsx3Synthesizer
from voxcli.tts.voice import Voice, choose
from voxcli.tts.voices import list_voices, open_synthesizer
from voxcli.tts.wav_speaker import WavSpeaker

SENTENCE = "The capital of France is Paris."
Opened = Callable[..., Pyttsx3Synthesizer]


def loudness(samples: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


def said(synthesizer: Pyttsx3Synthesizer, sentence: str = SENTENCE) -> AudioClip:
    (clip,) = synthesizer.synthesize(sentence)
    return clip


def system_voice(name: str = "", words_per_minute: int = 180) -> Pyttsx3Synthesizer:
    return Pyttsx3Synthesizer(name, words_per_minute=words_per_minute, timeout_seconds=20)


@pytest.fixture
def temp_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def scripted(tmp_path: Path, temp_files: Path) -> Opened:
    """Opens a voice with a list of behaviours, one for each of its processes."""

    def opened(*behaviours: str, voice: str = "", timeout_seconds: float = 20) -> Pyttsx3Synthesizer:
        command = (sys.executable, speech_worker.__file__, str(tmp_path / "starts"), *behaviours)
        return Pyttsx3Synthesizer(voice, words_per_minute=180, timeout_seconds=timeout_seconds, command=command)

    return opened


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


def test_a_sentence_becomes_a_clip_with_sound(capfd: pytest.CaptureFixture[str], temp_files: Path) -> None:
    with open_synthesizer("pyttsx3", words_per_minute=180, timeout_seconds=20) as synthesizer:
        clips = list(synthesizer.synthesize(SENTENCE))
        assert [path.name for folder in temp_files.iterdir() for path in folder.iterdir()] == []
    assert len(clips) == 1
    assert clips[0].samples.dtype == np.float32
    assert clips[0].samples.ndim == 1
    assert 1 < clips[0].seconds < 5
    assert loudness(clips[0].samples) > 0.01
    assert capfd.readouterr() == ("", "")
    assert list(temp_files.iterdir()) == []


def test_long_and_short_texts_are_rendered_whole() -> None:
    with system_voice() as synthesizer:
        seconds = {count: said(synthesizer, "Hello one two three. " * count).seconds for count in (1, 200, 2, 300)}
    assert 0.5 < seconds[1] < 5
    assert all(length == pytest.approx(count * seconds[1], rel=0.05) for count, length in seconds.items())


def test_every_process_says_the_same() -> None:
    """Espeak renders on its own thread; without waiting for it, sentences would sometimes be silent or incomplete."""
    lengths = set()
    for _ in range(15):
        with system_voice(words_per_minute=200) as synthesizer:
            lengths.add(len(said(synthesizer).samples) // 100)
            synthesizer.wait_until_ready()
            lengths.add(len(said(synthesizer).samples) // 100)
    assert max(lengths) - min(lengths) <= 1


def test_twenty_turns_while_the_process_is_killed_in_between(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(synthesizer: Pyttsx3Synthesizer) -> None:
        if synthesizer.process_id:
            os.kill(synthesizer.process_id, signal.SIGTERM)
            killed.append(synthesizer.process_id)

    with system_voice() as synthesizer:
        shortest = said(synthesizer, "This is turn 1.").seconds + said(synthesizer, "It has two sentences.").seconds
        for number in range(20):
            reply = ["This is ", f"turn {number}. ", "It has two sentences."]
            engine = FakeEngine([reply], before_delta=lambda at: kill(synthesizer) if at == 2 else None)
            with WavSpeaker(tmp_path / f"{number}.wav") as speaker:
                output = SpeechOutput(synthesizer, speaker)
                spoken = SpokenText()
                list(run_turn(engine, Session(), Utterance(None, "?"), threading.Event(), output, spoken=spoken))
                played = spoken.newly_played(speaker.position)
            assert played == [f"This is turn {number}. ", "It has two sentences."]
            if number % 2:
                kill(synthesizer)
    recorded = [soundfile.read(tmp_path / f"{number}.wav") for number in range(20)]
    assert all(len(samples) >= 0.95 * shortest * rate for samples, rate in recorded)
    assert all(loudness(half) > 0.01 for samples, _ in recorded for half in np.array_split(samples, 2))
    assert len(set(killed)) >= 10


def test_voice_and_rate_change_the_sound() -> None:
    with system_voice("English (America)") as english, system_voice("de") as german:
        assert not np.array_equal(said(english).samples, said(german).samples)
        usual = said(english)
    with system_voice("english (america)", words_per_minute=360) as fast:
        assert said(fast).seconds < 0.7 * usual.seconds


def test_the_system_has_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    (tmp_path / "voices").mkdir()
    for name in ("de_DE-thorsten-low.onnx", "de_DE-thorsten-low.onnx.json", "lonely.onnx"):
        (tmp_path / "voices" / name).touch()
    first, *rest = (voice for voice in list_voices() if voice.kind != "neural")
    assert (first.setting, first.languages) == ("piper:de_DE-thorsten-low", ("de_DE",))
    assert rest
    assert all(voice.kind == "pyttsx3" and voice.name and voice.id for voice in rest)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_nothing_to_say_gives_no_clip(scripted: Opened, text: str) -> None:
    with scripted("good") as synthesizer:
        assert list(synthesizer.synthesize(text)) == []


@pytest.mark.parametrize(
    "text", ["-v --version; $(id)", "<speak><break time='9s'/>", "[[rate 1]] \\n", "\x00", "\ud800"]
)
def test_hostile_text_is_said_or_refused_and_the_voice_lives_on(text: str) -> None:
    with system_voice() as synthesizer:
        expected = said(synthesizer, "Hello.")
        try:
            assert all(clip.seconds < 6 for clip in synthesizer.synthesize(text))
        except SpeechError:
            assert text == "\ud800"  # This is not valid text.
        assert abs(said(synthesizer, "Hello.").seconds - expected.seconds) < 0.2


def test_ctrl_c_does_not_reach_the_process() -> None:
    with system_voice() as synthesizer:
        said(synthesizer)
        process = synthesizer.process_id
        assert process
        os.kill(process, signal.SIGINT)
        said(synthesizer)
        assert synthesizer.process_id == process


@pytest.mark.parametrize("failure", ["hang", "die", "garble", "refuse", "no file"])
def test_a_process_that_fails_is_replaced(scripted: Opened, tmp_path: Path, temp_files: Path, failure: str) -> None:
    with scripted("good", voice="English") as synthesizer:
        synthesizer.wait_until_ready()
    with scripted("good", failure, "good", timeout_seconds=2 if failure == "hang" else 20) as synthesizer:
        clip = said(synthesizer)
        assert (clip.sample_rate, len(clip.samples)) == (22_050, 2205)
        np.testing.assert_allclose(clip.samples, 0.25)  # The mean of two channels.
        assert starts(tmp_path) == 3
        assert len(list(temp_files.iterdir())) == 1
    assert list(temp_files.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("hang", "gave no answer within 0.5 s"),
        ("die", "espeak: out of phonemes"),
        ("garble", "gave an answer that is no JSON: b'Audio saved to"),
        ("refuse", "ValueError: no"),
        ("no file", "rendered no sound"),
    ],
)
def test_a_sentence_is_given_up_after_the_second_failure(scripted: Opened, failure: str, message: str) -> None:
    with (
        scripted(failure, timeout_seconds=0.5 if failure == "hang" else 20) as synthesizer,
        pytest.raises(SpeechError) as caught,
    ):
        said(synthesizer)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_system_without_a_speech_engine(scripted: Opened) -> None:
    with scripted("no engine") as synthesizer:  # The constructor returns at once; the first sentence reports the error.
        for action in (synthesizer.wait_until_ready, synthesizer.voices, lambda: said(synthesizer)):
            with pytest.raises(SpeechError, match="eSpeak is not there") as caught:
                action()
            assert "install" in caught.value.hint
    with pytest.raises(SpeechError, match="eSpeak is not there"):
        scripted("no engine", voice="English")


def test_a_process_that_can_not_be_started(tmp_path: Path, temp_files: Path) -> None:
    command = (str(tmp_path / "missing"),)
    with (
        Pyttsx3Synthesizer(words_per_minute=180, timeout_seconds=5, command=command) as synthesizer,
        pytest.raises(SpeechError, match="no speech engine"),
    ):
        said(synthesizer)
    assert list(temp_files.iterdir()) == []


def test_after_close_nothing_is_said(scripted: Opened, temp_files: Path) -> None:
    synthesizer = scripted("good")
    said(synthesizer)
    synthesizer.close()
    synthesizer.close()
    for action in (synthesizer.wait_until_ready, synthesizer.voices, lambda: said(synthesizer)):
        with pytest.raises(SpeechError, match="closed"):
            action()
    assert synthesizer.process_id is None
    assert list(temp_files.iterdir()) == []


def test_close_does_not_wait_for_a_sentence_that_hangs(scripted: Opened, temp_files: Path) -> None:
    synthesizer = scripted("hang", timeout_seconds=3600)
    failures: list[SpeechError] = []

    def say() -> None:
        try:
            said(synthesizer)
        except SpeechError as error:
            failures.append(error)

    saying = threading.Thread(target=say)
    saying.start()
    synthesizer.close()
    saying.join(60)
    assert [error.message for error in failures] == ["the voice is closed"]
    assert list(temp_files.iterdir()) == []


ABANDONED = """
import sys, threading
from voxcli.tts.system import Pyttsx3Synthesizer
synthesizer = Pyttsx3Synthesizer(words_per_minute=180, timeout_seconds=20)
list(synthesizer.synthesize("Hello."))
print(synthesizer.process_id, flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is no child")
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    import select

    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ABANDONED]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        line = parent.stdout.readline()
        worker = os.pidfd_open(int(line))
        parent.kill()
    try:
        assert select.select([worker], [], [], 30)[0]
    finally:
        os.close(worker)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("pyttsx3:Jermann", ConfigError, "there is no voice named Jermann"),
        ("Jermann", ConfigError, "there is no voice named Jermann"),
        ("pyttsx3:", ConfigError, "which voice"),
        ("piper:", ConfigError, "which piper voice"),
    ],
)
def test_a_voice_that_there_is_not_is_refused_when_it_is_opened(
    setting: str, error: type[Exception], message: str, temp_files: Path
) -> None:
    with pytest.raises(error, match=message):
        open_synthesizer(setting, words_per_minute=180, timeout_seconds=20)
    assert list(temp_files.iterdir()) == []


VOICES = [
    Voice("pyttsx3", "Old English", "gmw/ang"),
    Voice("pyttsx3", "English (America)", "gmw/en-us", ("en-us",)),
    Voice("pyttsx3", "German", "gmw/de", ("de",)),
    Voice("pyttsx3", "English", "gmw/en", ("en-gb",)),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("english", "English"),
        ("GMW/DE", "German"),
        ("en_US", "English (America)"),
        ("de", "German"),
        ("amer", "English (America)"),
        ("ang", "Old English"),
    ],
)
def test_a_voice_is_chosen_by_name_id_or_language(wanted: str, found: str) -> None:
    assert choose(wanted, VOICES).name == found


def test_an_unknown_voice_suggests_similar_names() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("Germn", VOICES)
    assert caught.value.hint == "did you mean German? voxcli voices lists all"
    with pytest.raises(ConfigError) as caught:
        choose("zzz", VOICES)
    assert caught.value.hint == "voxcli voices"
