"""Tests that messages of sound libraries go to the log, and that all other output reaches standard error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.virtual_audio import missing_program, sound_card

ROOT = Path(__file__).parent.parent.parent.parent
LINES = 400

# Lists, opens and closes devices again and again while another thread writes to standard error in two ways.
PROGRAM = f"""
import logging, os, sys, threading
from contextlib import suppress
from itertools import count
from voxcli.errors import AudioDeviceError
logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG, format="%(message)s")
ready, over = threading.Event(), threading.Event()

def write():
    left = {LINES}
    for number in count():
        print(f"python {{number}}", file=sys.stderr)
        if ready.is_set():
            os.write(2, f"descriptor {{number}}\\n".encode())
            left -= 1
        if not left:
            break
        over.wait(0.001)
    print("no end of line", end="", file=sys.stderr)
    over.set()

writing = threading.Thread(target=write)
writing.start()
from voxcli.chat.devices.portaudio import DeviceStream, find_device, refresh_devices
with suppress(AudioDeviceError):
    find_device("output")
ready.set()
while not over.is_set():
    refresh_devices()
    with suppress(AudioDeviceError):
        DeviceStream(find_device("output"), lambda *_: None, 0.06).close()
writing.join()
"""


def run(program: str, log: Path, environment: dict[str, str]) -> list[str]:
    """Return the lines that a program writes to standard error."""
    command = [sys.executable, "-c", program, str(log)]
    done = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def written(lines: list[str], kind: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(kind)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs ALSA without a sound card")
def test_no_line_of_another_thread_is_lost_and_sound_libraries_are_logged_once(tmp_path: Path) -> None:
    without_card = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "PULSE_SERVER": f"unix:{tmp_path}/none"}
    lines = run(PROGRAM, tmp_path / "log", without_card)
    by_python, by_descriptor = written(lines, "python"), written(lines, "descriptor")
    assert by_python == list(range(len(by_python)))
    assert by_descriptor == by_python[-LINES:]
    # An empty line that ends a message of ALSA is passed on where another writer wrote in between.
    assert len([line for line in lines if line]) == len(by_python) + LINES + 1
    assert lines[-1] == "no end of line"
    logged = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("ALSA lib ") for line in logged)
    assert len(set(logged)) == len(logged)


# A thread repeats a message without a pause, as PortAudio 19.6 does where a sound server was killed.
FLOODED = f"""
import logging, os, sys, threading
from itertools import count
from voxcli.chat.devices.stderr import redirect_library_messages
logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG, format="%(message)s")
redirect_library_messages()
written = 0

def flood():
    global written
    for written in count():
        os.write(2, b"Expression 'ready' failed\\n")

threading.Thread(target=flood, daemon=True).start()
for number in range({LINES}):
    print(f"python {{number}}", file=sys.stderr)
    threading.Event().wait(0.005)
print(f"repeated {{written}}", file=sys.stderr)
"""


def test_a_message_that_is_repeated_forever_is_logged_once_and_slowed_down(tmp_path: Path) -> None:
    *lines, last = run(FLOODED, tmp_path / "log", dict(os.environ))
    assert lines == [f"python {number}" for number in range(LINES)]
    assert (tmp_path / "log").read_text().splitlines() == ["Expression 'ready' failed"]
    assert 0 < int(last.split()[1]) < 100 * LINES  # At full speed there would be millions.


# Writes a lot without an end of line, as a bar of progress does, and something at exit.
UNFINISHED = """
import atexit, os
atexit.register(os.write, 2, b"bye")
from voxcli.chat.devices.stderr import redirect_library_messages
redirect_library_messages()
for _ in range(100):
    os.write(2, b"." * 1000)
"""


def test_much_text_without_an_end_of_line_is_no_flood(tmp_path: Path) -> None:
    assert run(UNFINISHED, tmp_path / "log", dict(os.environ)) == ["." * 100_000 + "bye"]


# Plays until the device is gone.
PLAYS = """
import logging, sys, threading
logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG, format="%(message)s")
from voxcli.chat.devices.portaudio import DeviceStream, find_device
blocks = threading.Semaphore(0)
stream = DeviceStream(find_device("output"), lambda *_: blocks.release(), 0.06)
for _ in range(50):
    blocks.acquire()
print("go", flush=True)
while not stream.failure:
    threading.Event().wait(0.05)
stream.close()
"""


@pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")
def test_what_portaudio_prints_when_a_device_is_lost_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with sound_card() as card:
        command = [sys.executable, "-c", PLAYS, str(log)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=card.environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "go\n"
            card.server.kill()
            _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert any(line.startswith("Expression 'alsa_snd_pcm") for line in log.read_text().splitlines())


RELAYED = """
import os, subprocess, sys
from voxcli.chat.devices.stderr import redirect_library_messages
before = sys.stderr
redirect_library_messages()
subprocess.run([sys.executable, "-c", "import os; os.write(2, b'from a child\\\\n')"], check=True)
print("from an old stream", file=before, flush=True)
os.write(2, b"ALSA lib pcm.c:1: ")
os.write(2, b"underrun\\nhalf ")
os.write(2, b"a line")
"""


def test_what_others_write_to_the_descriptor_arrives_to_the_last_byte(tmp_path: Path) -> None:
    assert run(RELAYED, tmp_path, dict(os.environ)) == ["from a child", "from an old stream", "half a line"]


def test_a_program_without_standard_error_goes_on(tmp_path: Path) -> None:
    program = (
        "from voxcli.chat.devices.stderr import redirect_library_messages; redirect_library_messages(); print('on')"
    )
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "on\n"
