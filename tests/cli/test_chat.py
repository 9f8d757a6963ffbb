"""`voxcli chat` as a person talks with it: a process of its own, real devices on PulseAudio, real models."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile

from benchmarks.wake_word import voices
from tests.support.virtual_audio import RATE, Recording, SoundCard, missing_program, sound_card
from tests.support.virtual_microphone import plug_in, say
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.chat.speech.silence import HIGHEST_MS, LOWEST_MS
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")

ROOT = Path(__file__).parent.parent.parent
QUESTIONS = ROOT / "examples" / "questions"
LONG_SECONDS = 90.0  # what takes longer will not come
LOUD, FAINT = 0.05, 0.005  # of full scale: in the midst of speech; more than silence

# Typed, so that the reply doesn't depend on what the embedded engine hears: some 250 tokens, a minute of speech.
POEM = "Write a poem of eight lines about the sea."
TEN_SECONDS = {"VOXCLI_REPLY__MAX_TOKENS": "40"}

Event = dict[str, Any]


@pytest.fixture(scope="module")
def card() -> Iterator[SoundCard]:
    with sound_card() as card:
        plug_in(card)
        yield card


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environment(card: SoundCard, home: Path, tmp_path: Path) -> dict[str, str]:
    """For voxcli: the devices, a home of its own, no settings but this test's."""
    known = {name: value for name, value in card.environment.items() if not name.startswith("VOXCLI_")}
    ours = {"VOXCLI_HOME": str(home), "XDG_CONFIG_HOME": str(tmp_path / "config"), "VOXCLI_LIVE__CUES": "false"}
    return {**known, **ours}


class Chat:
    """A conversation that runs: its events, what it says beside them, and its keyboard."""

    def __init__(self, process: "subprocess.Popen[bytes]", keyboard: int) -> None:
        self._process = process
        self._keyboard = keyboard
        self._output, self._notes = bytearray(), bytearray()
        self._come = threading.Condition()
        streams = ((process.stdout, self._output), (process.stderr, self._notes))
        self._readers = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()

    @property
    def notes(self) -> str:
        return self._notes.decode()

    def events(self, name: str = "") -> list[Event]:
        """Return the events so far; those of one name, if it is given."""
        lines = self._output[: self._output.rfind(b"\n") + 1].splitlines()
        return [event for event in map(json.loads, lines) if name in ("", event["event"])]

    def wait_for(self, name: str, count: int = 1) -> Event:
        """Return the event that is the n-th of its name, once it has come."""
        self._wait(lambda: len(self.events(name)) >= count, name)
        return self.events(name)[count - 1]

    def wait_for_notice(self, text: str) -> None:
        self._wait(lambda: text in [event["text"] for event in self.events("notice")], text)

    def press(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def ask_typing(self, text: str) -> None:
        """Type a question; what is typed before it is asked for would be taken for keys."""
        prompts = self.notes.count("cancels): ")
        self.press("t")
        self._wait(lambda: self.notes.count("cancels): ") > prompts, "the prompt")
        self.press(text + "\n")

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        code = self._process.wait(LONG_SECONDS)
        for reader in self._readers:
            reader.join()
        assert "Traceback" not in self.notes
        return code

    def _read(self, stream: IO[bytes], into: bytearray) -> None:
        while data := stream.read(4096):
            with self._come:
                into += data
                self._come.notify_all()

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        with self._come:
            come = self._come.wait_for(lambda: holds() or self._process.poll() is not None, LONG_SECONDS)
            assert come, f"{what} did not come: {self.events()} {self.notes}"
            assert holds(), f"it ended before {what}: {self.events()} {self.notes}"


@contextmanager
def chat(*arguments: str | Path, environment: Mapping[str, str]) -> Iterator[Chat]:
    """Run a conversation at a terminal of its own; it is ready when the context is entered."""
    ours, theirs = os.openpty()
    cooked = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "voxcli", "chat", "--engine", "embedded", "--json", *map(str, arguments)]
    # The shell opens the terminal as the one that controls it, so that Ctrl-C is a signal.
    shell = ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(theirs)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*shell, *command], bufsize=0, stdout=pipe, stderr=pipe, env=environment, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            talk = Chat(process, ours)
            talk.wait_for("ready")
            yield talk
            assert termios.tcgetattr(theirs) == cooked
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            os.close(theirs)


def question(name: str) -> AudioClip:
    return read_audio(QUESTIONS / f"{name}.flac")


def turns(home: Path, name: str) -> list[Turn]:
    with Store.open(home) as store:
        session = store.session(name)
    return list(session.turns) if session else []


def wait_for_sound(recording: Recording, after: int = 0) -> int:
    """Return the first loud sample of a recording, once it is there."""
    for _ in range(round(LONG_SECONDS / 0.05)):
        loud = np.flatnonzero(np.abs(recording.samples[after:]) > LOUD)
        if len(loud):
            return after + int(loud[0])
        recording.wait_for(0.05)
    raise TimeoutError("nothing is heard")


def understood(samples: Samples, folder: Path, environment: Mapping[str, str]) -> str:
    """Return the words that the embedded engine hears in a recording of the loudspeaker."""
    path = folder / "loudspeaker.wav"
    soundfile.write(path, samples, RATE)
    command = [sys.executable, "-m", "voxcli", "once", "--engine", "embedded", "--json", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, check=True)
    return str(json.loads(done.stdout)["transcript"])


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def first_word(clip: AudioClip, said: AudioClip) -> tuple[float, float]:
    """Return at which second of a clip the first word of what was said is, and how alike it is to that."""
    start = int(np.flatnonzero(np.abs(said.samples) > 0.03)[0])
    word = said.samples[start : start + SAMPLE_RATE * 2 // 5]
    near = clip.samples[: SAMPLE_RATE * 2]
    match = np.correlate(near, word)
    at = int(match.argmax())
    return at / SAMPLE_RATE, float(np.corrcoef(near[at : at + len(word)], word)[0, 1])


def test_questions_are_answered_aloud_and_a_session_goes_on(
    card: SoundCard, home: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    kept, asked = tmp_path / "kept", ("capital-of-france", "color-of-a-lemon", "legs-of-a-horse")
    flags = ("--session", "Kitchen", "--record", kept)
    taken: list[Event] = []
    starts: list[int] = []
    with card.recording() as recording:
        with chat(*flags, "--max-turns", "2", environment=environment) as talk:
            for number, name in enumerate(asked[:2], 1):
                starts.append(len(recording.samples))
                say(card, question(name))
                taken.append(talk.wait_for("turn_ended", number))
            assert talk.exit_code() == 0
            assert talk.wait_for("session_ended")["turns"] == 2
        answers = recording.samples
    with chat(*flags, "--max-turns", "1", environment=environment) as talk:
        say(card, question(asked[2]))
        taken.append(talk.wait_for("turn_ended"))
        assert talk.exit_code() == 0

    assert [turn["turn"] for turn in taken] == [1, 2, 3]
    assert [words(turn["transcript"])[0] for turn in taken] == ["what", "what", "how"]
    for turn, must in zip(taken, ("capital france", "color lemon", "legs horse"), strict=True):
        assert set(must.split()) <= set(words(turn["transcript"]))
        assert (turn["interrupted"], turn["model_passes"]) == (False, 1)
    prompts = [turn["tokens"]["prompt"] for turn in taken]
    assert prompts[0] + 20 < prompts[1] < prompts[2]  # each saw the turns before it
    assert "Paris" in taken[0]["reply"]
    assert [turn.reply for turn in turns(home, "Kitchen")] == [turn["reply"] for turn in taken]
    [learned_ms] = json.loads((home / "pauses.json").read_text()).values()
    assert LOWEST_MS <= learned_ms <= HIGHEST_MS
    first, second = (understood(each, tmp_path, environment) for each in np.split(answers, starts[1:]))
    assert "paris" in words(first)
    assert words(taken[1]["reply"])[-1] in words(second)
    for number, name in enumerate(asked, 1):
        at_seconds, likeness = first_word(read_audio(kept / f"turn-{number:04}.wav"), question(name))
        assert 0.1 < at_seconds < 0.7  # the pre-roll; less where it was said as soon as voxcli listened
        assert likeness > 0.6  # the canceller and its filters change it; other places are below 0.4
        assert json.loads((kept / f"turn-{number:04}.json").read_text())["turn"] == number


def test_a_question_silences_the_reply_and_is_answered(
    card: SoundCard, home: Path, environment: dict[str, str]
) -> None:
    with card.recording() as recording, chat("--session", "s", "--max-turns", "2", environment=environment) as talk:
        talk.ask_typing(POEM)
        start = wait_for_sound(recording)
        recording.wait_for(2)  # by then it is clear that no echo comes back
        said = threading.Thread(target=say, args=(card, question("our-galaxy")))
        said.start()
        stopped, stop = talk.wait_for("turn_ended"), len(recording.samples)
        said.join()
        end = len(recording.samples)
        answered = talk.wait_for("turn_ended", 2)
        assert talk.exit_code() == 0
        sound = np.abs(recording.samples)
    assert stopped["interrupted"]
    assert talk.wait_for("barge_in")["spoken_text"] == stopped["reply"]
    assert "".join(event["text"] for event in talk.events("reply_delta")).startswith(stopped["reply"])
    assert 1 <= len(words(stopped["reply"])) <= 5 * (stop - start) / RATE  # at 180 words a minute: 3 a second
    assert sound[start:stop].max() > LOUD
    assert stop + RATE // 2 < end
    assert sound[stop + RATE * 2 // 5 : end].max() < FAINT  # while the question is said
    assert sound[end:].max() > LOUD
    assert words(answered["transcript"])[-3:] == ["we", "live", "in"]
    assert not answered["interrupted"]
    assert [(turn.reply, turn.interrupted) for turn in turns(home, "s")] == [
        (stopped["reply"], True),
        (answered["reply"], False),
    ]


def short_noises() -> AudioClip:
    """A cough, and grunts cut out of speech: 120 ms each, over six seconds."""
    size = SAMPLE_RATE * 120 // 1000
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(size))
    spectrum *= np.exp(-(((np.fft.rfftfreq(size, 1 / SAMPLE_RATE) - 700) / 900) ** 2))  # as a throat shapes it
    cough = np.fft.irfft(spectrum, size) * np.exp(-np.arange(size) / (0.05 * SAMPLE_RATE))
    grunt = question("capital-of-france").samples[6400 : 6400 + size] * np.hanning(size)
    pause = np.zeros(SAMPLE_RATE * 3 // 2)
    samples = np.concatenate([cough / np.abs(cough).max() * 0.8, *[pause, grunt] * 4])
    return AudioClip(samples.astype(np.float32), SAMPLE_RATE)


def test_short_noises_do_not_stop_the_reply(card: SoundCard, tmp_path: Path, environment: dict[str, str]) -> None:
    with (
        card.recording() as recording,
        chat("--max-turns", "1", environment={**environment, **TEN_SECONDS}) as talk,
    ):
        talk.ask_typing(POEM)
        wait_for_sound(recording)
        say(card, short_noises())
        assert talk.events("turn_ended") == []  # they were heard while the reply played
        taken = talk.wait_for("turn_ended")
        assert talk.exit_code() == 0
        transcript = words(understood(recording.samples, tmp_path, environment))
    # A grunt is like speech and may silence the reply for a moment; that is no interruption.
    assert talk.events("barge_in") + talk.events("speech_started") == []
    assert not taken["interrupted"]
    assert taken["reply"] == "".join(event["text"] for event in talk.events("reply_delta")).strip()
    spoken = words(taken["reply"])
    assert sum(word in transcript for word in spoken) >= 0.6 * len(spoken), (spoken, transcript)
    assert spoken[-2:] == transcript[-2:], (spoken, transcript)


def test_q_ends_it_and_keeps_what_was_heard(card: SoundCard, home: Path, environment: dict[str, str]) -> None:
    with card.recording() as recording, chat("--session", "s", environment=environment) as talk:
        talk.ask_typing(POEM)
        wait_for_sound(recording)
        recording.wait_for(1)
        talk.press("q")
        assert talk.exit_code() == 0
    assert [event["event"] for event in talk.events()[-2:]] == ["turn_ended", "session_ended"]
    [turn] = turns(home, "s")
    assert (turn.prompt or turn.user, turn.interrupted) == (POEM, True)
    assert turn.reply


def test_ctrl_c_stops_the_reply_and_a_second_one_the_program(
    card: SoundCard, home: Path, environment: dict[str, str]
) -> None:
    with card.recording() as recording, chat("--session", "s", environment=environment) as talk:
        talk.ask_typing(POEM)
        wait_for_sound(recording)
        talk.press("\x03")
        talk.wait_for_notice("Ctrl-C again ends the conversation")
        talk.press("\x03")
        assert talk.exit_code() == 130
    assert [turn.interrupted for turn in turns(home, "s")] == [True]
    assert talk.events()[-1]["event"] == "session_ended"


def test_it_sleeps_until_its_wake_word_and_obeys_other_programs(
    card: SoundCard, tmp_path: Path, environment: dict[str, str]
) -> None:
    control = tmp_path / "control"
    asked = voices()["piper joe"]("Hey Jarvis, what is the capital of France?")

    def obey(command: str) -> str:
        line = [sys.executable, "-m", "voxcli", "control", "--path", str(control), command]
        return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, check=True).stdout

    with chat("--wake-word", "hey_jarvis", "--control", control, "--no-speak", environment=environment) as talk:
        assert talk.wait_for("state_changed")["state"] == "asleep"
        say(card, question("color-of-a-lemon"))
        assert obey("status") == "asleep\n"
        assert talk.events("speech_started") == []
        say(card, asked)
        taken = talk.wait_for("turn_ended")
        assert {"what", "capital"} <= set(words(taken["transcript"]))
        assert len(talk.events("turn_ended")) == 1
        assert obey("status") == "listening\n"
        talk.send_signal(signal.SIGUSR1)
        assert obey("status") == "muted\n"
        assert obey("unmute") == "listening\n"
        assert obey("quit") == "ending\n"
        assert talk.exit_code() == 0
    assert not control.exists()


@pytest.mark.parametrize("flag", ["--input-device", "--output-device"])
def test_a_device_that_is_not_there(flag: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "voxcli", "chat", "--engine", "embedded", "--json", flag, "no such thing"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert re.search(r"^voxcli: .*no such thing.*\n  name one of: .*\n\Z", done.stderr, re.MULTILINE)


def test_a_chat_is_kept_undone_and_asked_again(home: Path, environment: dict[str, str]) -> None:
    short = environment | {"VOXCLI_REPLY__MAX_TOKENS": "8"}
    with chat("--no-speak", environment=short) as talk:
        assert talk.wait_for("ready")["kept"]
        talk.ask_typing("What is the capital of France?")
        talk.wait_for("turn_ended")
        talk.press("u")
        assert talk.wait_for("turn_undone")["user"] == "What is the capital of France?"
        talk.press("R")
        assert talk.wait_for("turn_ended", 2)["turn"] == 1
        talk.press("q")
        assert talk.exit_code() == 0
        name = talk.wait_for("session_ended")["session"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d what is the capital", name)
    assert len(turns(home, name)) == 1
