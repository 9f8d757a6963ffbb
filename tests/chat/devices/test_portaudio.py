"""Tests of the loudspeaker on a PulseAudio sound card, by measurements on recordings of it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.virtual_audio import RATE, SoundCard, missing_program, sound_card
from tests.support.virtual_microphone import studio
from voxcli.audio.clip import AudioClip, Samples
from voxcli.chat.devices import portaudio
from voxcli.chat.devices import speaker as loudspeaker
from voxcli.chat.devices.failsafe import FailsafeSpeaker
from voxcli.core.testing import FakeSpeaker
from voxcli.errors import AudioDeviceError

GO_ON = threading.Event()
needs_sound_card = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")


@pytest.fixture(scope="module")
def card() -> Iterator[SoundCard]:
    """A sound card that PortAudio in this process uses."""
    with sound_card() as card, pytest.MonkeyPatch.context() as patch:
        for name, value in card.environment.items():
            patch.setenv(name, value)
        portaudio.refresh_devices()
        yield card
    portaudio.refresh_devices()


def tone(seconds: float, hertz: float = 440, rate: int = 22_050) -> AudioClip:
    times = np.arange(round(seconds * rate)) / rate
    return AudioClip((0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32), rate)


def loud_span(samples: Samples) -> Samples:
    """Return a recording from its first loud sample to its last."""
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def hertz_of(samples: Samples) -> float:
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples))


@needs_sound_card
def test_the_devices_are_listed_and_one_of_each_is_the_default(card: SoundCard) -> None:
    for listed in (portaudio.output_devices(), portaudio.input_devices()):
        assert [device.name for device in listed if device.is_default] == ["default"]
        assert all(device.channels > 0 and device.sample_rate >= 8_000 for device in listed)


@needs_sound_card
def test_clips_are_played_whole_and_in_order(card: SoundCard) -> None:
    with card.recording() as recording, loudspeaker.open_speaker() as speaker:
        assert speaker.position == 0
        assert speaker.play(tone(0.5, 440), GO_ON) == pytest.approx(0.5, abs=0.001)
        end = speaker.play(tone(0.7, 880, rate=48_000), GO_ON)
        assert end == pytest.approx(1.2, abs=0.001)
        speaker.wait(end, GO_ON)
        assert speaker.position == pytest.approx(end)
    recorded = loud_span(recording.samples)
    assert len(recorded) / RATE == pytest.approx(1.2, abs=0.03)
    assert hertz_of(recorded[: RATE // 2]) == pytest.approx(440, abs=5)
    assert hertz_of(recorded[-RATE // 2 :]) == pytest.approx(880, abs=5)
    assert np.abs(recorded).max() == pytest.approx(0.5, abs=0.05)


@needs_sound_card
def test_the_last_sample_is_played_before_the_position_says_so(card: SoundCard) -> None:
    with card.recording() as recording, loudspeaker.open_speaker() as speaker:
        speaker.wait(speaker.play(tone(0.4), GO_ON), GO_ON)
        recording.wait_for(0.04)  # The recording itself lags.
        recorded = loud_span(recording.samples)
    assert len(recorded) / RATE == pytest.approx(0.4, abs=0.02)


@needs_sound_card
def test_an_interrupt_drops_the_queue_and_the_next_turn_is_played(card: SoundCard) -> None:
    interrupt = threading.Event()
    with card.recording() as recording, loudspeaker.open_speaker() as speaker:
        end = speaker.play(tone(0.9), interrupt)
        speaker.wait(0.3, interrupt)
        interrupt.set()
        speaker.wait(end, interrupt)  # returns at once
        recording.wait_for(0.5)
        stopped = speaker.position
        recorded = loud_span(recording.samples)
        assert stopped == pytest.approx(0.3, abs=0.25)
        assert len(recorded) / RATE == pytest.approx(stopped, abs=0.03)
        end = speaker.play(tone(0.3, 1000), GO_ON)
        assert end == pytest.approx(stopped + 0.3, abs=0.001)
        speaker.wait(end, GO_ON)
    after = loud_span(recording.samples)[len(recorded) :]
    assert hertz_of(loud_span(after)) == pytest.approx(1000, abs=8)
    assert len(loud_span(after)) / RATE == pytest.approx(0.3, abs=0.02)


@needs_sound_card
def test_an_interrupt_ends_a_play_that_waits_for_room(card: SoundCard) -> None:
    interrupt = threading.Event()
    ends: list[float] = []
    with loudspeaker.open_speaker() as speaker:
        player = threading.Thread(target=lambda: ends.append(speaker.play(tone(8), interrupt)))
        player.start()
        speaker.wait(0.2, interrupt)
        assert player.is_alive()  # its queue holds far less than eight seconds
        interrupt.set()
        player.join(loudspeaker.QUEUE_SECONDS)
        assert ends == [pytest.approx(8, abs=0.001)]  # where the clip would have ended
        assert speaker.position < 1


@needs_sound_card
def test_an_interrupted_clip_is_not_begun(card: SoundCard) -> None:
    interrupt = threading.Event()
    interrupt.set()
    with card.recording() as recording, loudspeaker.open_speaker() as speaker:
        speaker.play(tone(0.5), interrupt)
        recording.wait_for(0.3)
        assert speaker.position == 0
    assert len(loud_span(recording.samples)) == 0


# Plays six seconds and prints the error, if any; prints "go" once sound is playing.
PROGRAM = """
import threading
import numpy as np
from voxcli.audio.clip import AudioClip
from voxcli.errors import AudioDeviceError
from voxcli.chat.devices.speaker import open_speaker
go_on = threading.Event()
try:
    with open_speaker() as speaker:
        speaker.play(AudioClip(np.full(3200, 0.1, np.float32)), go_on)
        speaker.wait(0.1, go_on)
        print("go", flush=True)
        speaker.wait(speaker.play(AudioClip(np.full(96000, 0.1, np.float32)), go_on), go_on)
except AudioDeviceError as error:
    print(error.message, error.hint, sep="|")
"""


@needs_sound_card
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["vanishes", "hangs"])
def test_a_device_that_fails_while_it_plays_is_reported_and_closed(how: signal.Signals) -> None:
    with sound_card() as card:
        process = _run(PROGRAM, card.environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        card.server.send_signal(how)
        output, _ = process.communicate(timeout=30)
    message, hint = output.strip().split("|")
    assert message == "the output device 'default' can't be used: it takes no more sound"
    assert "--no-speak" in hint
    assert process.returncode == 0


# Two threads close a loudspeaker that hangs, and the program ends; PortAudio may not be closed a second time then.
CLOSED_TWICE = """
import threading
from voxcli.chat.devices.portaudio import DeviceStream, find_device
blocks = []
stream = DeviceStream(find_device("output"), lambda *block: blocks.append(block), 0.06)
while not blocks:
    threading.Event().wait(0.01)
print("go", flush=True)
while not stream.failure:
    threading.Event().wait(0.01)
threading.Thread(target=stream.close, daemon=True).start()
stream.close()
print("ended", flush=True)
"""


@needs_sound_card
def test_a_program_ends_while_two_threads_close_a_device_that_hangs() -> None:
    with sound_card() as card:
        process = _run(CLOSED_TWICE, card.environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        card.server.send_signal(signal.SIGSTOP)
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert output == "ended\n"
    assert process.returncode == 0


# Prints "go", waits until both devices are lost, and prints the share of a processor that waiting for them takes. In a
# process of its own, because a thread of a device that another test lost may still run.
WAITS = """
import threading, time
from voxcli.chat.devices.hotplug import AudioDevices
lost = threading.Event()
with AudioDevices(lambda posted: lost.set()) as devices:
    print("go", flush=True)
    lost.wait()
    started, used = time.monotonic(), time.process_time()
    threading.Event().wait(1.6)
    print((time.process_time() - used) / (time.monotonic() - started), flush=True)
    assert devices.microphone.failure
"""


@needs_sound_card
def test_waiting_for_a_device_takes_next_to_no_time_of_the_processor() -> None:
    with studio() as own, _run(WAITS, own.environment) as process:
        assert process.stdout
        assert process.stdout.readline() == "go\n"
        own.server.kill()
        assert float(process.stdout.readline()) < 0.4
    assert process.returncode == 0


def _run(program: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    root = Path(__file__).parent.parent.parent.parent
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=pipe, stderr=pipe, text=True, cwd=root
    )


OPEN = """
from voxcli.errors import AudioDeviceError
from voxcli.chat.devices.speaker import open_speaker
try:
    with open_speaker():
        print("opened")
except AudioDeviceError as error:
    print(error.message, error.hint, sep="|")
"""


NO_DEFAULT = "class default: device = (-1, -1)"


def _refused(environment: dict[str, str]) -> tuple[str, str]:
    output, errors = _run(OPEN, environment).communicate(timeout=60)
    assert errors == ""  # The sound libraries' own messages must not appear.
    message, hint = output.strip().split("|")
    return message, hint


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("raise OSError('PortAudio library not found')", "the PortAudio library is missing", "libportaudio2"),
        ("raise PortAudioError('no host')", "PortAudio can't start: no host", "voxcli doctor"),
        (f"{NO_DEFAULT}\nquery_devices = query_hostapis = list", "there is no audio output device", "--save-reply"),
        ("def query_devices(): raise PortAudioError('gone')", "the audio devices can't be listed: gone", "doctor"),
    ],
    ids=["no library", "does not start", "no devices", "does not list"],
)
def test_a_portaudio_that_does_not_work_is_reported(tmp_path: Path, body: str, message: str, hint: str) -> None:
    (tmp_path / "sounddevice.py").write_text(f"class PortAudioError(Exception):\n    pass\n{body}\n")
    error = _refused({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert error[0] == message
    assert hint in error[1]


class BrokenSpeaker(FakeSpeaker):
    """Takes one clip, then fails."""

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        if self.queued:
            raise AudioDeviceError("gone")
        return super().play(clip, interrupt)


def test_a_failsafe_speaker_counts_on_after_a_failure() -> None:
    speaker = FailsafeSpeaker(BrokenSpeaker())
    assert speaker.play(tone(0.5), GO_ON) == speaker.position == 0.5
    assert speaker.failure is None
    assert speaker.play(tone(0.5), GO_ON) == speaker.position == 1
    assert str(speaker.failure) == "gone"
    assert speaker.play(tone(0.5), GO_ON) == speaker.position == 1.5
    speaker.wait(1.5, GO_ON)
