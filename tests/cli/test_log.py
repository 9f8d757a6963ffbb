"""Logging: a chat can be followed through its threads, and nothing that was said is in the log."""

import logging
import os
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from typer.testing import CliRunner

from tests.support.listener_harness import FakeMicrophone, detect, silence, voice
from tests.support.live_doubles import RunningConversation
from voxcli.chat.events import SentenceSpoken, TurnTaken
from voxcli.chat.listener import Listener
from voxcli.chat.messages import Inbound
from voxcli.chat.speech.echo import Timeline
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.cli import app
from voxcli.cli.interface.log import PrivateFileHandler, StderrHandler, leave_stderr, logging_to
from voxcli.core.protocols import PassReport, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSpeaker

RECORD = re.compile(r"\S+T\d\d:\d\d:\d\d\.\d{3} (?:DEBUG|INFO) +\[(.+?)\] (voxcli\.\S+): (.+)")
REPLY, TRANSCRIPT, PROMPT = "Bananas are blue. ", "what colour are bananas", "Be a pirate."


@dataclass
class TranscribingEngine(FakeEngine):
    """An engine that reports a transcript."""

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        yield from super().reply(session, utterance, interrupt)
        return PassReport(1, 10, 7, 3, TRANSCRIPT)


def chat_with_one_turn() -> None:
    """Take a turn that is begun in a first pause, dropped, begun again in a second one, and released."""
    inbox: SimpleQueue[Inbound] = SimpleQueue()
    microphone, endpointer = FakeMicrophone(), Endpointer(EndpointingSettings())
    listener = Listener(microphone, None, detect, endpointer, None, Timeline(10.0), inbox.put)
    engine = TranscribingEngine([[REPLY, "Indeed."], [REPLY, "Indeed."]])
    with RunningConversation(engine, FakeSpeaker(), listener=listener, inbox=inbox) as live:
        live.memory.session = Session(instructions=PROMPT)
        listener.start()
        for samples in (voice(20), silence(10), voice(10), silence(60)):
            microphone.capture(samples)
        live.journal.wait_for(SentenceSpoken)
        microphone.capture(silence(60))  # The time in which the turn could be taken back begins with the reply.
        live.journal.wait_for(TurnTaken)
        microphone.end()
        listener.close()


def records(text: str) -> list[tuple[str, str, str]]:
    """Return the thread, the module and the message of each line."""
    found = [RECORD.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(match[1], match[2], match[3]) for match in found if match]


def test_a_chat_can_be_followed_through_its_threads_without_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_to(PrivateFileHandler(path)):
        chat_with_one_turn()
    text = path.read_text(encoding="utf-8")
    lines = records(text)
    spoken = [message.split()[0] for thread, _, message in lines if thread == "listener"]
    assert spoken == ["SpeechStarted", "SpeechPaused", "SpeechResumed", "SpeechPaused", "SpeechEnded"]
    decided = [message for thread, _, message in lines if thread == "conversation"]
    assert decided[:3] == ["reply begun", "reply dropped", "reply begun"]
    assert decided[3:] == ["reply released: it was speculative", "turn 1 remembered"]
    assert any(thread == "speech" and message.startswith("sentence synthesized") for thread, _, message in lines)
    last_turn = [message for thread, _, message in lines if thread == "responder"][-3:]
    assert [re.split(":| after", message)[0] for message in last_turn] == ["turn begins", "first token", "turn over"]
    assert "prompt 10 tokens, 7 of them cached" in last_turn[-1]
    for secret in (*REPLY.split(), "Indeed", TRANSCRIPT, PROMPT):
        assert secret not in text


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_only_its_owner_reads_the_file_that_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    first = "2026-11-30T10:00:00.000 INFO    [MainThread] voxcli.cli: earlier"
    path.write_text(f"{first}\n")
    path.chmod(0o644)
    monkeypatch.setenv("VOXCLI_LOG", str(path))
    assert CliRunner().invoke(app, ["once", "missing.wav", "--engine", "embedded"]).exit_code == 3
    before, *lines = path.read_text(encoding="utf-8").splitlines()
    assert before == first
    assert records("\n".join(lines))[-1] == ("MainThread", "voxcli.cli", "failed: audio_input")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"RIFF\x00\x00", b"Dear diary\n", b'{"id": "q"}\n'])
def test_a_file_that_is_no_log_is_not_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = tmp_path / "q.wav"
    path.write_bytes(content)
    monkeypatch.setenv("VOXCLI_LOG", str(path))
    result = CliRunner().invoke(app, ["once", str(path), "--engine", "embedded"])
    assert (result.exit_code, "it is not a log" in result.stderr) == (2, True)
    assert path.read_bytes() == content


def test_a_log_that_can_not_be_written_is_refused_by_the_name_of_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXCLI_LOG", str(tmp_path))
    result = CliRunner().invoke(app, ["config", "path"])
    assert result.exit_code == 2
    assert "VOXCLI_LOG" in result.stderr
    assert result.stdout == ""


def test_warnings_of_other_libraries_are_logged_and_their_debug_lines_are_not(tmp_path: Path) -> None:
    path = tmp_path / "log"
    library = logging.getLogger("a_library")
    library.setLevel(logging.DEBUG)
    with logging_to(PrivateFileHandler(path)):
        library.debug("the whole request")
        library.warning("careful\x1b[2J\n2026-01-01 forged")
    library.warning("too late")
    first, further = path.read_text(encoding="utf-8").splitlines()
    assert first.endswith(r"WARNING [MainThread] a_library: careful\x1b[2J")
    assert further == "    2026-01-01 forged"


def test_verbose_logs_to_stderr_until_a_live_view_draws_there(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("voxcli.test")
    with logging_to(StderrHandler()):
        log.debug("before")
        leave_stderr()
        log.debug("after")
    out, err = capsys.readouterr()
    assert out == ""
    assert [message for _, _, message in records(err)] == ["before"]
