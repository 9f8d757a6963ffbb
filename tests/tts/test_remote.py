"""Tests of voices on servers, with a real server in this process: good, slow, broken, hostile."""

import io
import threading
import wave
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openai")
from tests.support.openai_server import WAIT_SECONDS, Answer, Exchange, OpenAIServer, refuses, writes
from voxcli.errors import ConfigError, RemoteError, SpeechError, VoxError
from voxcli.tts.remote import RemoteSynthesizer, parse
from voxcli.tts.voices import open_synthesizer

KEY = "sk-canary-0123456789"
RATE = 22_050


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        server.always = speaks()
        yield server


def tone(seconds: float = 0.5) -> np.ndarray:
    return np.full(round(seconds * RATE), 0x2000, "<i2")


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def speaks(samples: np.ndarray | None = None) -> Answer:
    return writes(wav(tone() if samples is None else samples), "audio/wav")


def voice_of(server: OpenAIServer, *, timeout_seconds: float = 20, words_per_minute: int = 180) -> RemoteSynthesizer:
    return RemoteSynthesizer(f"{server.url}#heart", words_per_minute=words_per_minute, timeout_seconds=timeout_seconds)


def said(server: OpenAIServer, **options: float) -> np.ndarray:
    with voice_of(server, **options) as synthesizer:  # type: ignore[arg-type]
        return np.concatenate([clip.samples for clip in synthesizer.synthesize("Hello.")])


def failure(server: OpenAIServer, answer: Answer, **options: float) -> VoxError:
    server.always = answer
    with pytest.raises(RemoteError) as caught:
        said(server, **options)
    assert "\n" not in caught.value.message
    assert (caught.value.message + caught.value.hint).isprintable()
    return caught.value


# --- What is asked, and what comes ----------------------------------------------------------------


def test_a_sentence_is_asked_for_and_its_audio_comes_unchanged(server: OpenAIServer) -> None:
    with open_synthesizer(f"openai:{server.url}#kokoro/heart", words_per_minute=180, timeout_seconds=20) as voice:
        clips = list(voice.synthesize("Hello."))
        assert list(voice.synthesize(" \n")) == []
    assert {clip.sample_rate for clip in clips} == {RATE}
    np.testing.assert_allclose(np.concatenate([clip.samples for clip in clips]), 0.25)
    assert sum(clip.seconds for clip in clips) == pytest.approx(0.5)
    body = {"model": "kokoro", "voice": "heart", "input": "Hello.", "response_format": "wav"}
    assert [request.body for request in server.speeches] == [body]


@pytest.mark.parametrize(("words_per_minute", "speed"), [(90, 0.5), (270, 1.5), (180, None)])
def test_the_speed_follows_the_setting(server: OpenAIServer, words_per_minute: int, speed: float | None) -> None:
    said(server, words_per_minute=words_per_minute)
    assert server.speeches[0].body.get("speed") == speed


def test_audio_is_given_before_the_rest_has_come(server: OpenAIServer) -> None:
    first_came = threading.Event()

    def answer(exchange: Exchange) -> None:
        whole = bytearray(wav(tone()))
        whole[40:44] = b"\xff\xff\xff\xff"  # The length is not known yet.
        exchange.begin("audio/wav")
        exchange.chunk(bytes(whole[:5000]))
        assert first_came.wait(WAIT_SECONDS)
        exchange.chunk(bytes(whole[5000:]))
        exchange.chunk(b"")

    server.always = answer
    with voice_of(server) as synthesizer, closing(synthesizer.synthesize("Hello.")) as clips:
        count = len(next(clips).samples)
        first_came.set()
        assert count + sum(len(clip.samples) for clip in clips) == len(tone())


@pytest.mark.parametrize(
    ("kind", "seconds"), [("audio/pcm", 0.5), ("audio/pcm;rate=48000", 0.25), ("application/octet-stream", 0.5)]
)
def test_a_server_without_wav_is_asked_for_samples_from_then_on(
    server: OpenAIServer, kind: str, seconds: float
) -> None:
    server.queue(refuses(400, {"error": {"message": "response_format: only pcm"}}))
    server.always = writes(np.full(12_000, 0x2000, "<i2").tobytes(), kind)
    with voice_of(server) as synthesizer:
        for _ in range(2):
            assert sum(clip.seconds for clip in synthesizer.synthesize("Hello.")) == pytest.approx(seconds)
    assert [request.body["response_format"] for request in server.speeches] == ["wav", "pcm", "pcm"]


# --- Keys ------------------------------------------------------------------------------------------


def test_only_the_key_for_speech_is_sent(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_API_KEY", "sk-of-another-server")
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    said(server)
    monkeypatch.setenv("VOXCLI_SPEECH_API_KEY", KEY)
    said(server)
    without, with_key = (request.headers for request in server.speeches)
    assert "authorization" not in without
    assert with_key["authorization"] == f"Bearer {KEY}"


def test_a_key_follows_no_redirect_and_is_in_no_message(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VOXCLI_SPEECH_API_KEY", KEY)
    with OpenAIServer() as other, caplog.at_level(0, "voxcli"):
        there = failure(server, refuses(307, location=f"{other.url}/audio/speech?{KEY}"))
        refused = failure(server, refuses(401, {"error": {"message": f"wrong key {KEY}"}}))
        assert other.requests == []
    assert "sends elsewhere (HTTP 307)" in there.message
    assert refused.hint == "check the key: it came from VOXCLI_SPEECH_API_KEY"
    assert KEY not in f"{there.message}{there.hint}{refused.message}{refused.hint}{caplog.text}{refused.__cause__!r}"


def test_a_server_that_needs_a_key_names_the_variable(server: OpenAIServer) -> None:
    error = failure(server, refuses(401))
    assert error.hint.startswith("set VOXCLI_SPEECH_API_KEY, or: keyring set voxcli ")
    assert error.exit_code == 6


def test_a_key_that_travels_in_the_open_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_SPEECH_API_KEY", KEY)
    told: list[str] = []
    name = "http://voices.example/v1#x"
    RemoteSynthesizer(name, words_per_minute=180, timeout_seconds=1, notice=told.append).close()
    assert ["travels unencrypted to voices.example" in line for line in told] == [True]


# --- Trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (writes(b"<html>no</html>", "text/html"), "answers with text/html"),
        (writes(b"ID3\x04" + bytes(5000), "audio/mpeg"), "answers with audio/mpeg"),
        (writes(b"ID3\x04" + bytes(5000), "application/octet-stream"), "something else than a WAV file"),
        (writes(b"", "audio/wav"), "it sent no audio"),
        (writes(b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0\0\0\0\0", "audio/wav"), "its WAV file is broken"),
        (writes(b"RIFF\0\0\0\0WAVEdata\xff\xff\xff\xff" + bytes(5000), "audio/wav"), "its WAV file is broken"),
        (writes(wav(tone())[:-9000], "audio/wav"), "its WAV file ends too early"),
        (writes(wav(tone()), "audio/wav", content_encoding="gzip"), "compressed"),
        (refuses(404), "has nothing at /audio/speech"),
        (refuses(422, {"detail": "no voice \x1b[2J\u202eheart"}), "refuses the request (HTTP 422): no voice"),
        (refuses(413), "the sentence is too big"),
        (refuses(503), "failed (HTTP 503)"),
        (Exchange.drop, "dropped the connection"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(server: OpenAIServer, answer: Answer, message: str) -> None:
    assert message in failure(server, answer).message


def test_speech_without_end_is_cut_off(server: OpenAIServer) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin("audio/pcm")
        try:
            while True:
                exchange.chunk(bytes(1 << 16))
        except OSError:
            server.left.set()

    assert "sends more speech than the sentence can have" in failure(server, answer).message
    assert server.left.wait(WAIT_SECONDS), "the request was stopped"


@pytest.mark.parametrize("begins", [False, True])
def test_a_server_that_falls_silent_is_given_up(server: OpenAIServer, begins: bool) -> None:
    def answer(exchange: Exchange) -> None:
        if begins:
            exchange.begin("audio/wav")
            exchange.chunk(wav(tone())[:4000])
        exchange.wait_until_left()
        server.left.set()

    error = failure(server, answer, timeout_seconds=1)
    assert "sent no speech for 1 s" in error.message
    assert "speech.timeout_seconds" in error.hint
    # On a busy machine the time may be up before the request has arrived.
    assert server.left.wait(WAIT_SECONDS) or not server.speeches, "the request was stopped"


def test_a_sentence_is_asked_for_twice_where_that_may_help(server: OpenAIServer) -> None:
    server.queue(refuses(503))
    assert len(said(server)) == len(tone())
    server.queue(Exchange.drop)
    assert len(said(server)) == len(tone())
    assert len(server.speeches) == 4
    failure(server, refuses(401))
    assert len(server.speeches) == 5


def test_nothing_listens() -> None:
    with OpenAIServer() as server:
        pass
    with pytest.raises(RemoteError, match="nothing listens") as caught:
        said(server)
    assert "check --voice" in caught.value.hint


def test_a_sentence_that_is_abandoned_is_stopped_on_the_server(server: OpenAIServer) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin("audio/wav")
        exchange.chunk(wav(tone())[:4000])
        exchange.wait_until_left()
        server.left.set()

    server.always = answer
    with voice_of(server) as synthesizer, closing(synthesizer.synthesize("Hello.")) as clips:
        next(clips)
    assert server.left.wait(WAIT_SECONDS)


def test_closing_ends_a_wait(server: OpenAIServer) -> None:
    synthesizer = voice_of(server)

    def answer(exchange: Exchange) -> None:
        synthesizer.close()
        server.never_answers(exchange)

    server.always = answer
    with pytest.raises(SpeechError, match="the voice is closed"):
        list(synthesizer.synthesize("Hello."))
    synthesizer.close()
    assert server.left.wait(WAIT_SECONDS)


# --- Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("http://h:1/v1#heart", ("http://h:1/v1", "tts-1", "heart")),
        ("https://h/v1/#a/b/c d", ("https://h/v1", "a/b", "c d")),
    ],
)
def test_a_name_is_the_address_the_model_and_the_voice(name: str, parts: tuple[str, str, str]) -> None:
    assert parse(name) == parts


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("openai:", "which server"),
        ("openai", "which server"),
        ("openai:http://h/v1", "which voice of the server"),
        ("openai:h/v1#x", "neither http nor https"),
        ("openai:http://me:secret@h/v1#x", "carries a name or password"),
    ],
)
def test_a_name_that_is_none_is_refused(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_synthesizer(setting, words_per_minute=180, timeout_seconds=1)
    assert not {"secret", "VOXCLI_API_KEY", "--url"}.intersection((caught.value.message + caught.value.hint).split())
