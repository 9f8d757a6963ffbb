"""The remote engine against a server in this process that speaks the protocol, or misbehaves."""

import base64
import io
import re
import shutil
import socket
import ssl
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.openai_server import (
    REPLY,
    WAIT_SECONDS,
    Answer,
    Exchange,
    OpenAIServer,
    refuses,
    says,
    sends,
    streams,
)
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.audio.wav import encode_wav
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session, Turn
from voxcli.errors import RemoteError

pytest.importorskip("openai")

from voxcli.engines import factory
from voxcli.engines.openai.engine import LONGEST_PAUSE_SECONDS, RemoteEngine, list_models, pause_seconds
from voxcli.engines.openai.request import RequestOptions, chat_body
from voxcli.servers.errors import NoModelListError, RequestRefusedError, call_error
from voxcli.servers.server import ApiKey, Server

KEY = ApiKey("sk-canary-0123456789", "the test")
CLIP = AudioClip(np.sin(np.arange(SAMPLE_RATE) / 20).astype(np.float32))
SPOKEN = Utterance(CLIP)
EARLIER = Turn("[User audio input - 16000 samples, 1.00s]", "Hello.")
OPTIONS = RequestOptions("tiny", max_reply_tokens=64, temperature=0, top_p=1, context_tokens=8192)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def engine_for(server: OpenAIServer, pauses: list[float] | None = None, **limits: Any) -> RemoteEngine:
    """Return an engine that waits for nothing; the pauses that it would make are noted."""
    noted = [] if pauses is None else pauses

    def pause(_interrupt: threading.Event, seconds: float) -> bool:
        noted.append(seconds)
        return False

    return RemoteEngine(Server(server.url, KEY, **limits), OPTIONS, pause=pause)


def ask(
    engine: Engine,
    session: Session | None = None,
    utterance: Utterance = SPOKEN,
    interrupt: threading.Event | None = None,
) -> tuple[list[str], PassReport]:
    reply = engine.reply(session or Session(), utterance, interrupt or threading.Event())
    deltas = []
    while True:
        try:
            deltas.append(str(next(reply)))
        except StopIteration as over:
            return deltas, over.value


def failure(engine: Engine) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        ask(engine)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert KEY.secret not in f"{caught.value.message}{caught.value.hint}{caught.value.__cause__!r}"
    return caught.value


# --- Requests ------------------------------------------------------------------------------------


def test_a_request_carries_the_conversation_and_one_clip(server: OpenAIServer) -> None:
    turns = (EARLIER, Turn(EARLIER.user, "", interrupted=True), Turn(EARLIER.user, "", prompt="And this?"))
    deltas, report = ask(engine_for(server), Session(None, "Be short.", turns), Utterance(CLIP, "In French."))
    assert deltas == list(REPLY)
    assert report == PassReport(1, prompt_tokens=395, cached_tokens=16, reply_tokens=8, finish_reason="stop")
    (request,) = server.chats
    messages = request.body.pop("messages")
    assert request.body == {
        "model": "tiny",
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
    assert messages[0]["content"] == f"Be short.\n\n{EARLIER.user}"
    assert messages[3]["content"] == "[interrupted before anything was spoken]"
    assert messages[5]["content"] == "[no reply]"
    audio, text = messages[6]["content"]
    assert text == {"type": "text", "text": "In French."}
    assert (audio["type"], audio["input_audio"]["format"]) == ("input_audio", "wav")
    assert base64.b64decode(audio["input_audio"]["data"]) == encode_wav(CLIP)


def test_a_clip_is_sent_as_16_khz_mono_pcm16() -> None:
    with wave.open(io.BytesIO(encode_wav(CLIP))) as file:
        assert file.getparams()[:4] == (1, 2, SAMPLE_RATE, len(CLIP.samples))
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_allclose(samples / 32767, CLIP.samples, atol=1e-4)
    loud = encode_wav(AudioClip(np.array([2, -2], np.float32)))
    assert np.frombuffer(loud[-4:], "<i2").tolist() == [32767, -32767]


def test_a_first_turn_has_the_instructions_before_the_audio_and_text_alone_is_a_string() -> None:
    def content(utterance: Utterance) -> Any:
        return chat_body(Session(instructions="Be short."), utterance, OPTIONS)["messages"][0]["content"]

    assert [part["type"] for part in content(SPOKEN)] == ["text", "input_audio"]
    assert content(Utterance(None, "Hi")) == "Be short.\n\nHi"


def test_options_of_the_request() -> None:
    options = RequestOptions("m", 8, temperature=0.5, top_p=0.9, context_tokens=512, audio_style="string")
    body = chat_body(Session(), SPOKEN, options)
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    assert body["messages"][0]["content"][0]["input_audio"] == base64.b64encode(encode_wav(CLIP)).decode()


@pytest.mark.parametrize(
    ("model", "temperature", "top_p", "sent"),
    [
        ("mistralai/Voxtral-Mini-3B-2507", None, None, (0.2, 0.95)),
        ("voxtral-small-latest", None, None, (0.2, 0.95)),
        ("voxtral-small-latest", 0.0, None, (0.0, None)),
        ("voxtral-small-latest", None, 1.0, (0.2, None)),
        ("voxtral-small-latest", 0.7, 0.5, (0.7, 0.5)),
        ("qwen2-audio", None, None, (0.0, None)),
    ],
)
def test_sampling_is_by_model_where_nobody_says(
    model: str, temperature: float | None, top_p: float | None, sent: tuple[float, float | None]
) -> None:
    options = RequestOptions(model, 8, temperature, top_p, context_tokens=512)
    body = chat_body(Session(), Utterance(None, "hello"), options)
    assert (body["temperature"], body.get("top_p")) == sent


@pytest.mark.parametrize(
    ("model", "tokens", "is_noticed"), [("voxtral", 32_769, True), ("voxtral", 32_768, False), ("other", 65_536, False)]
)
def test_a_context_longer_than_voxtral_was_trained_on_is_told(
    server: OpenAIServer, model: str, tokens: int, is_noticed: bool
) -> None:
    notices: list[str] = []
    long = replace(options(model=model), context_tokens=tokens)
    factory.open_server(long, server.url, notices.append).close()
    assert [notice for notice in notices if "trained on 32768" in notice] == notices[:is_noticed]
    assert len(notices) == 1 + is_noticed


@given(replies=st.lists(st.text(st.characters(codec="utf-8"), max_size=3000), max_size=20))
def test_the_oldest_turns_leave_a_prompt_that_is_too_long(replies: list[str]) -> None:
    options = RequestOptions("m", 8, 0, 1, context_tokens=1000)
    session = Session(None, "Be short.", tuple(Turn(EARLIER.user, reply) for reply in replies))
    messages = chat_body(session, SPOKEN, options)["messages"]
    shown = len(messages) // 2
    assert shown == len(replies) or sum(len(reply.encode()) for reply in replies[-shown - 1 :]) > 300
    assert sum(len(str(message["content"]).encode()) for message in messages[:-1]) < 3000
    assert "Be short." in str(messages[0]["content"])


def test_only_what_a_server_needs_leaves_the_machine(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-private: private\nAuthorization: Bearer private")
    ask(engine_for(server))
    ask(RemoteEngine(Server(server.url), OPTIONS))
    with_key, without = (request.headers for request in server.chats)
    assert with_key.pop("authorization") == f"Bearer {KEY.secret}"
    assert with_key.keys() == without.keys()
    assert "private" not in str(without)
    assert not any(name.startswith(("x-", "openai-")) for name in without)


# --- Tokens --------------------------------------------------------------------------------------


def test_deltas_are_counted_where_the_server_counts_nothing(server: OpenAIServer) -> None:
    server.always = says("a", "b", usage=False)
    assert ask(engine_for(server))[1] == PassReport(1, 0, 0, reply_tokens=2, finish_reason="stop")


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_to_count_is_asked_once_for_that(server: OpenAIServer, status: int) -> None:
    server.queue(refuses(status, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}))
    engine = engine_for(server)
    assert ask(engine) == ask(engine)
    assert ["stream_options" in request.body for request in server.chats] == [True, False, False]


# --- Interrupts ----------------------------------------------------------------------------------


def test_an_interrupt_ends_the_wait_for_the_first_token(server: OpenAIServer) -> None:
    interrupt = threading.Event()

    def answer(exchange: Exchange) -> None:
        interrupt.set()
        server.never_answers(exchange)

    server.always = answer
    assert ask(engine_for(server), interrupt=interrupt)[0] == []
    assert server.left.wait(WAIT_SECONDS), "the request was stopped on the server"
    assert len(server.chats) == 1, "it is not tried again"


def test_an_interrupt_ends_a_reply_at_the_next_token(server: OpenAIServer) -> None:
    server.always = server.hangs("a", "b")
    interrupt = threading.Event()
    with closing(engine_for(server).reply(Session(), SPOKEN, interrupt)) as reply:
        assert next(reply) == "a"
        interrupt.set()
        assert len(list(reply)) <= 1
        assert server.left.wait(WAIT_SECONDS)


def test_a_reply_that_is_closed_ends_the_request(server: OpenAIServer) -> None:
    server.always = server.hangs("a")
    reply = engine_for(server).reply(Session(), SPOKEN, threading.Event())
    assert next(reply) == "a"
    reply.close()
    assert server.left.wait(WAIT_SECONDS)


def test_an_interrupt_ends_a_pause(server: OpenAIServer) -> None:
    server.always = refuses(503)
    engine = RemoteEngine(Server(server.url), OPTIONS, pause=lambda interrupt, _seconds: interrupt.is_set() or True)
    assert ask(engine) == ([], PassReport(1, 0, 0, 0))


def test_a_server_that_floods_is_held_back(server: OpenAIServer) -> None:
    server.always = sends(*["a"] * 120, then=Exchange.finish)
    with closing(engine_for(server).reply(Session(), SPOKEN, threading.Event())) as reply:
        assert len(list(reply)) == 120


# --- Trying again --------------------------------------------------------------------------------


def dropped(exchange: Exchange) -> None:
    exchange.drop()


@pytest.mark.parametrize(
    "answer",
    [
        refuses(429, {"error": {"message": "slow down"}}),
        refuses(500),
        refuses(502, b"<html>Bad gateway</html>", "text/html"),
        refuses(503, {"error": "loading"}),
        dropped,
        sends(then=dropped),
        sends("", then=dropped),
        streams(),
        streams({"error": {"message": "engine died", "code": 500}}),
        streams({"error": {"message": "slow down", "code": "429"}}),
    ],
)
def test_what_passes_is_tried_again_before_the_first_token(server: OpenAIServer, answer: Answer) -> None:
    server.queue(answer, answer)
    pauses: list[float] = []
    assert ask(engine_for(server, pauses))[0] == list(REPLY)
    assert len(server.chats) == 3
    assert len(pauses) == 2


def test_retries_are_bounded(server: OpenAIServer) -> None:
    server.always = refuses(429, {"error": {"message": "slow down"}})
    pauses: list[float] = []
    error = failure(engine_for(server, pauses, retries=2))
    assert "too many requests (HTTP 429): slow down" in error.message
    assert (len(server.chats), len(pauses)) == (3, 2)


def test_a_server_says_how_long_to_wait(server: OpenAIServer) -> None:
    pauses: list[float] = []
    server.queue(refuses(429, retry_after="7"), refuses(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"))
    ask(engine_for(server, pauses))
    assert 7 <= pauses[0] < 8
    assert 0 <= pauses[1] < 1, "a moment that is over"
    server.queue(refuses(429, retry_after="soon"), refuses(429, retry_after="nan"))
    ask(engine_for(server, pauses))
    assert all(pause < 2 for pause in pauses[2:])


def test_a_server_that_asks_to_wait_for_too_long_is_not_waited_for(server: OpenAIServer) -> None:
    server.always = refuses(429, retry_after="3600")
    assert "it asks to wait 3600 s" in failure(engine_for(server)).hint
    assert len(server.chats) == 1


@given(attempt=st.integers(0, 1000), asked=st.none() | st.floats(0, 1e9), jitter=st.floats(0, 1))
def test_pauses_grow_to_a_limit_and_differ(attempt: int, asked: float | None, jitter: float) -> None:
    seconds = pause_seconds(attempt, asked, jitter)
    if asked is not None:
        assert asked <= seconds
    else:
        assert 0.25 <= seconds <= LONGEST_PAUSE_SECONDS
        assert seconds <= pause_seconds(attempt + 1, asked, jitter)
        assert pause_seconds(attempt, asked, 0) < pause_seconds(attempt, asked, 1)


# --- Servers that misbehave ----------------------------------------------------------------------


def trickles(exchange: Exchange) -> None:
    """Send something all the time, but no token."""
    exchange.begin()
    while True:
        exchange.chunk(b": still thinking\n\n")
        exchange.delta("")


def endless(*events: bytes) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        while True:
            for event in events:
                exchange.chunk(event)

    return answer


def not_http(exchange: Exchange) -> None:
    exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    exchange.drop()


ECHO = {"error": {"message": f"Incorrect API key provided: {KEY.secret}. \x1b[31m\n" + "x" * 5000, "code": "bad"}}
CHOICES = {"choices": [{"delta": {"content": "a"}}]}
MISBEHAVING: dict[str, tuple[Answer, str, str]] = {
    "401": (refuses(401, ECHO), r"refuses access \(HTTP 401\)", "the key: it came from the test"),
    "403": (refuses(403, ECHO), r"refuses access \(HTTP 403\)", "key"),
    "404": (refuses(404, {"message": "no such model"}), "has no model tiny", "it has other, another; .*--model"),
    "413": (refuses(413, b"<html>", "text/html"), "recording is too big", "cut it"),
    "400": (refuses(400, ECHO), r"HTTP 400\): Incorrect API key provided: \[key\]", "audio"),
    "context": (refuses(400, {"message": "maximum context length is 9"}), "HTTP 400", "lower session.context_tokens"),
    "418": (refuses(418, "short and stout"), r"HTTP 418\): short and stout", ""),
    "429": (refuses(429, ECHO), "too many requests", "later"),
    "500": (refuses(500, ECHO), r"failed \(HTTP 500\): Incorrect", "later"),
    "redirect": (refuses(302, location=f"http://other/{KEY.secret}"), "sends elsewhere", r"http://other/\[key\]"),
    "html": (refuses(200, b"<html>Welcome</html>", "text/html"), "answers with text/html", "/v1"),
    "no choices at all": (refuses(200, {"choices": []}), "its answer holds no choices", "/v1"),
    "not http": (not_http, "does not answer as a web server", "/v1"),
    "dropped": (dropped, "dropped the connection", "later"),
    "no event": (streams(), "broke off before", "later"),
    "done at once": (streams("[DONE]"), "sent an empty reply", "--model"),
    "breaks off": (sends("The", then=dropped), "dropped the connection", "later"),
    "ends early": (sends("The", then=lambda exchange: exchange.chunk(b"")), "broke off before", "later"),
    "error in stream": (streams(CHOICES, ECHO), r"failed \(HTTP 500\): Incorrect API key provided: \[key\]", "later"),
    "refused in stream": (streams({"error": {"message": "no", "code": 400}}), r"\(HTTP 400\): no", ""),
    "not JSON": (streams("<html>"), "not what the protocol documents", "/v1"),
    "not UTF-8": (sends(then=lambda exchange: exchange.chunk(b"data: \xff\xfe\n\n")), "protocol documents", "/v1"),
    "list": (streams([1, 2]), "no chat completions", "/v1"),
    "number": (streams(7), "no chat completions", "/v1"),
    "no choices": (streams({"choices": "many"}), "no chat completions", "/v1"),
    "deep": (streams("[" * 100_000), "protocol documents", "/v1"),
    "compressed": (
        lambda exchange: exchange.send(200, b"", "text/event-stream", content_encoding="br"),
        "compressed in a way that was not asked for: br",
        "",
    ),
    "never ends": (endless(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'), "more than the reply", ""),
    "one long line": (endless(b"data: " + b"x" * (1 << 20)), "more than 32 MB", ""),
}


@pytest.mark.parametrize("case", MISBEHAVING)
def test_each_way_to_misbehave_is_one_clear_error(server: OpenAIServer, case: str) -> None:
    server.always, message, hint = MISBEHAVING[case]
    server.models = ("other", "another")
    error = failure(engine_for(server, first_token_seconds=WAIT_SECONDS))
    assert re.search(message, error.message), error.message
    assert re.search(hint, error.hint), error.hint
    assert error.exit_code == 6
    assert f"127.0.0.1:{server.port}" in error.message


@pytest.mark.parametrize("case", ["400", "413", "context", "418", "refused in stream"])
def test_what_any_server_would_refuse_is_told_apart(server: OpenAIServer, case: str) -> None:
    server.always = MISBEHAVING[case][0]
    assert isinstance(failure(engine_for(server)), RequestRefusedError)
    assert len(server.chats) == 1


@pytest.mark.parametrize("case", ["breaks off", "ends early", "error in stream"])
def test_what_came_before_a_stream_broke_was_yielded_and_is_not_asked_for_again(
    server: OpenAIServer, case: str
) -> None:
    server.always = MISBEHAVING[case][0]
    reply = engine_for(server).reply(Session(), SPOKEN, threading.Event())
    assert next(reply) in ("The", "a")
    with pytest.raises(RemoteError):
        next(reply)
    assert len(server.chats) == 1


@pytest.mark.parametrize("answer", ["never answers", "hangs", "trickles"])
def test_a_server_that_never_comes_to_a_token_is_left(server: OpenAIServer, answer: str) -> None:
    answers = {"never answers": server.never_answers, "hangs": server.hangs(), "trickles": trickles}
    server.always = answers[answer]
    error = failure(engine_for(server, first_token_seconds=0.2))
    assert "did not answer for 0.2 s" in error.message
    assert "remote.first_token_seconds" in error.hint
    assert len(server.chats) == 1, "waiting again would double the wait"


def test_a_server_that_falls_silent_is_left(server: OpenAIServer) -> None:
    server.always = server.hangs("The")
    error = failure(engine_for(server, token_seconds=0.2))
    assert "fell silent for 0.2 s" in error.message
    assert server.left.wait(WAIT_SECONDS)


def test_half_a_surrogate_pair_becomes_text(server: OpenAIServer) -> None:
    server.always = streams('{"choices": [{"delta": {"content": "\\ud83d!"}, "finish_reason": "stop"}]}')
    (delta,) = ask(engine_for(server))[0]
    assert delta.encode()
    assert delta.endswith("!")


def test_odd_counts_are_not_taken(server: OpenAIServer) -> None:
    done = {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}
    server.always = streams(done, {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": -1}})
    assert ask(engine_for(server)) == (["a"], PassReport(1, 0, 0, 0, finish_reason="stop"))


# --- No server -----------------------------------------------------------------------------------


def engine_at(url: str) -> RemoteEngine:
    return RemoteEngine(Server(url, KEY, connect_seconds=0.2), OPTIONS)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failure(engine_at(f"http://127.0.0.1:{port}/v1"))
    assert f"nothing listens at 127.0.0.1:{port}" in error.message


def test_a_connection_that_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        error = failure(engine_at(f"http://127.0.0.1:{full.getsockname()[1]}/v1"))
    assert "did not take the connection for 0.2 s" in error.message


def raised(make: Callable[[], Exception]) -> Exception:
    """Return what openai raises when a connection fails in this way."""
    import httpx2
    import openai

    request = httpx2.Request("POST", "http://host/v1")
    try:
        try:
            try:
                raise make()
            except Exception as low:
                raise httpx2.ConnectError(f"{low} for Bearer {KEY.secret}") from low
        except Exception as middle:
            raise openai.APIConnectionError(request=request) from middle
    except openai.APIConnectionError as high:
        return high


@pytest.mark.parametrize(
    ("low", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), "host:8000 is not known"),
        (OSError(113, "No route to host"), "can't be reached: No route to host"),
    ],
)
def test_why_there_is_no_connection(low: Exception, message: str) -> None:
    failed = call_error(raised(lambda: low), Server("http://host:8000/v1", KEY))
    assert message in failed.error.message
    assert not failed.passing
    assert "Bearer [key]" in str(failed.cause)
    assert KEY.secret not in str(failed.cause)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1, and the TLS context of a server with it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "made.pem", folder / "key.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:voxtral.test", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*new, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


def test_tls(certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    made, context = certificate
    with OpenAIServer(tls=context) as server:
        error = failure(engine_for(server))
        assert "is not trusted: self" in error.message
        assert "SSL_CERT_FILE" in error.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        assert ask(engine_for(server))[0] == list(REPLY)
        server.always = server.hangs("a")
        reply = engine_for(server).reply(Session(), SPOKEN, threading.Event())
        assert next(reply) == "a"
        reply.close()
        assert server.left.wait(WAIT_SECONDS), "an encrypted connection is closed as well"


def test_a_server_without_tls(server: OpenAIServer) -> None:
    error = failure(engine_at(server.url.replace("http:", "https:")))
    assert "does not speak TLS" in error.message
    assert "http://" in error.hint


# --- Models --------------------------------------------------------------------------------------


def test_the_only_model_is_taken_where_none_is_named(server: OpenAIServer) -> None:
    unnamed = RequestOptions("", 64, 0, 1, 8192)
    assert RemoteEngine.open(Server(server.url), unnamed).model == "tiny"
    server.models = ("a\x1b[31m", "b" * 500)
    with pytest.raises(RemoteError, match="needs the name of a model") as caught:
        RemoteEngine.open(Server(server.url), unnamed)
    assert "it has a\\x1b[31m, bbb" in caught.value.hint
    server.models = ()
    with pytest.raises(RemoteError) as caught:
        RemoteEngine.open(Server(server.url), unnamed)
    assert "none to list" in caught.value.hint


def test_a_model_that_is_named_needs_no_list(server: OpenAIServer) -> None:
    assert RemoteEngine.open(Server(f"{server.url}/elsewhere"), OPTIONS).model == "tiny"


@pytest.mark.parametrize("told_by", ["owner", "software"])
@pytest.mark.parametrize("model", ["", "tiny"])
def test_llama_cpp_is_warned_of(server: OpenAIServer, told_by: str, model: str) -> None:
    notices: list[str] = []
    RemoteEngine.open(Server(server.url), replace(OPTIONS, model=model), notices.append)
    assert notices == []
    setattr(server, told_by, {"owner": "llamacpp", "software": "llama.cpp"}[told_by])
    RemoteEngine.open(Server(server.url), replace(OPTIONS, model=model), notices.append)
    assert len(notices) == 1
    assert f"{server.url} is llama.cpp's server, which computes Voxtral wrongly" in notices[0]
    assert "use vLLM" in notices[0]


def test_an_address_that_is_not_that_of_the_protocol(server: OpenAIServer) -> None:
    bare = Server(server.url.removesuffix("/v1"))
    with pytest.raises(NoModelListError, match=r"no list of models \(HTTP 404 for /models\)") as caught:
        list_models(bare)
    assert "--model NAME" in caught.value.hint
    error = failure(RemoteEngine(bare, OPTIONS))
    assert "usually ends with /v1" in error.hint


# --- Choosing, and many at once ------------------------------------------------------------------


def options(**remote: Any) -> factory.EngineOptions:
    chosen = factory.RemoteOptions(**remote)
    return factory.EngineOptions("remote", "mini", "auto", "", 64, 0.0, 1.0, 8192, chosen)


def test_it_is_chosen_by_name_and_says_where_it_asks(server: OpenAIServer, tmp_path: Path) -> None:
    notices: list[str] = []
    engine = factory.open_engine(options(url=f"{server.url}/"), tmp_path, notices.append)
    assert (engine.name, engine.model) == ("remote", "tiny")
    assert notices == [f"remote engine: tiny at {server.url}"]
    assert ask(engine)[0] == list(REPLY)
    engine.close()


def test_many_threads_use_one_engine(server: OpenAIServer) -> None:
    together = threading.Barrier(8)

    def answer(exchange: Exchange) -> None:
        together.wait(WAIT_SECONDS)
        says(exchange.request.body["messages"][0]["content"])(exchange)

    server.always = answer
    engine = engine_for(server)
    texts = [f"question {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: ask(engine, utterance=Utterance(None, text))[0], texts))
    assert replies == [[text] for text in texts]
