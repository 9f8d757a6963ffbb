"""A voice on a server that speaks OpenAI's speech protocol: Kokoro, Piper and others behind one, or OpenAI's own.

The audio is streamed. Keys, proxies and errors are those of `voxcli.servers`.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Self

import numpy as np

from voxcli.audio.clip import AudioClip
from voxcli.config.proxies import find_proxy
from voxcli.errors import ConfigError, RemoteError, SpeechError, missing_extra
from voxcli.servers.server import FOR_SPEECH, Server, checked_url, find_key, proxy_notice, warning
from voxcli.tts.audio_stream import PCM_RATE, AudioStreamError, read_pcm, read_wav

try:  # Without its packages, importing this module raises the error with the hint.
    import httpx2
    import openai

    from voxcli.servers.call import Call, content_type, unexpected_type
    from voxcli.servers.errors import SPEECH, CallError, UnreadableError
    from voxcli.servers.tls import tls_context
except ImportError as error:
    raise missing_extra(RemoteError, "a voice on a server", "remote") from error

log = logging.getLogger(__name__)

MODEL = "tts-1"  # OpenAI's name, which most servers take for their own model.
NORMAL_WORDS_PER_MINUTE = 180  # The rate at the protocol's speed of 1, for which `speed` is left out.
LEAST_SPEED, MOST_SPEED = 0.25, 4.0  # The protocol's limits.
CONNECT_SECONDS = 5.0
ATTEMPTS = 2  # A sentence of which nothing came is asked for once more.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0  # Before that; the server may ask for more than the first.
RESPONSE_BYTES = 1 << 24  # Three minutes of the longest samples.
SPARE_SECONDS, SECONDS_PER_CHARACTER = 10.0, 0.5  # Longest speech for a text: three times what the slowest voice needs.
WAV_TYPES = ("audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave", "application/octet-stream", "")
PCM_TYPES = ("audio/pcm", "audio/l16", "audio/x-pcm", "audio/raw")
REFUSED_FORMAT = (400, 415, 422)  # HTTP statuses of a server that has no WAV.
WARM_UP = "Ready."
EXAMPLE = "--voice 'openai:http://localhost:8880/v1#NAME'"
END = AudioClip(np.zeros(0, np.float32))  # Comes after a sentence's last clip.


class RemoteSynthesizer:
    """Implements `voxcli.core.protocols.Synthesizer` with a server; a context manager. Each sentence is one request."""

    def __init__(
        self,
        name: str,
        *,
        words_per_minute: int,
        timeout_seconds: float,
        notice: Callable[[str], None] = log.warning,
    ) -> None:
        """Prepare requests; nothing is sent.

        Args:
            name: URL#VOICE or URL#MODEL/VOICE.
            timeout_seconds: longest wait for the first audio of a sentence, and then for more of it.
            notice: told where the key or the text could be read on its way.

        Raises:
            ConfigError: the name, the key, the proxy or the certificates can't be used.
        """
        url, model, voice = parse(name)
        self._server = Server(
            url,
            find_key(url, variable=FOR_SPEECH.key_variable),
            CONNECT_SECONDS,
            timeout_seconds,
            timeout_seconds,
            proxy=find_proxy(url),
            use=FOR_SPEECH,
        )
        for said in filter(None, (warning(self._server), proxy_notice(self._server))):
            notice(said)
        self._request: dict[str, Any] = {"model": model, "voice": voice}
        if words_per_minute != NORMAL_WORDS_PER_MINUTE:
            speed = words_per_minute / NORMAL_WORDS_PER_MINUTE
            self._request["speed"] = min(max(round(speed, 3), LEAST_SPEED), MOST_SPEED)
        self._timeout_seconds = timeout_seconds
        self._tls = tls_context(self._server)
        self._format = "wav"  # "pcm" once the server refuses it.
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Let the server say a word, which makes it load the voice; raises the errors of `synthesize`."""
        for _ in self.synthesize(WARM_UP):
            pass

    def synthesize(self, sentence: str) -> Generator[AudioClip, None, None]:
        """Yield the audio of a sentence as it arrives; yield nothing for blank text.

        Raises:
            RemoteError: the server refuses, fails, falls silent or sends something else.
            SpeechError: the voice is closed.
        """
        attempts = ATTEMPTS if sentence.strip() else 0
        while attempts:
            attempts -= 1
            began = False
            try:
                with closing(self._streamed(sentence)) as clips:
                    for clip in clips:
                        began = True
                        yield clip
            except CallError as failed:
                if self._format == "wav" and failed.status in REFUSED_FORMAT:
                    self._format, attempts = "pcm", ATTEMPTS
                    continue
                pause = max(PAUSE_SECONDS, failed.pause_seconds or 0)
                if began or not failed.passing or not attempts or pause > LONGEST_PAUSE_SECONDS:
                    raise failed.error from failed.cause
                self._closing.wait(pause)
            else:
                attempts = 0

    def close(self) -> None:
        """End the requests; a sentence that is being received fails. May be called again."""
        self._closing.set()

    def _streamed(self, sentence: str) -> Generator[AudioClip, None, None]:
        longest_seconds = SPARE_SECONDS + SECONDS_PER_CHARACTER * len(sentence)
        with closing(Call(self._server, self._tls, SPEECH, self._work(sentence), BoundedStream)) as call:
            while len((clip := self._next(call)).samples):
                longest_seconds -= clip.seconds
                if longest_seconds < 0:
                    raise CallError(RemoteError(f"{self._server.url} sends more speech than the sentence can have"))
                yield clip

    def _next(self, call: Call[AudioClip]) -> AudioClip:
        try:
            clip = call.next(time.monotonic() + self._timeout_seconds, self._closing)
        except TimeoutError:
            message = f"{self._server.url} sent no speech for {self._timeout_seconds:g} s{self._server.way}"
            hint = "see whether it is busy, or raise speech.timeout_seconds in the settings"
            raise CallError(RemoteError(message, hint=hint)) from None
        if clip is None:
            raise SpeechError("the voice is closed")
        return clip

    def _work(self, sentence: str) -> Callable[[openai.OpenAI], Iterator[AudioClip]]:
        def work(client: openai.OpenAI) -> Iterator[AudioClip]:
            request = {**self._request, "input": sentence, "response_format": self._format}
            with client.audio.speech.with_streaming_response.create(**request) as streamed:
                yield from self._read(streamed.http_response)
            yield END

        return work

    def _read(self, response: httpx2.Response) -> Iterator[AudioClip]:
        kind = content_type(response)
        is_pcm = kind in PCM_TYPES or (self._format == "pcm" and kind == "application/octet-stream")
        if not is_pcm and kind not in WAV_TYPES:
            raise unexpected_type(response)
        blocks = response.iter_bytes()
        try:
            yield from read_pcm(blocks, _rate(response)) if is_pcm else read_wav(blocks)
        except AudioStreamError as error:
            raise UnreadableError(str(error)) from error


class BoundedStream(httpx2.SyncByteStream):
    """A response's bytes, up to a limit."""

    def __init__(self, stream: httpx2.SyncByteStream, compressed: bool) -> None:
        if compressed:
            raise UnreadableError("its audio is compressed, which was not asked for")
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for block in self._stream:
            received += len(block)
            if received > RESPONSE_BYTES:
                raise UnreadableError(f"it has more than {RESPONSE_BYTES / (1 << 20):g} MB")
            yield block

    def close(self) -> None:
        self._stream.close()


def parse(name: str) -> tuple[str, str, str]:
    """Return the server's URL, the model and the voice; raises ConfigError."""
    url, _, path = name.partition("#")
    model, _, voice = path.rpartition("/")
    if not voice:
        raise ConfigError("which voice of the server?", hint=EXAMPLE)
    return checked_url(url, FOR_SPEECH), model or MODEL, voice


def _rate(response: httpx2.Response) -> int:
    """Return the rate that the response's type names, such as audio/pcm;rate=22050, in Hertz."""
    named = re.search(r";\s*rate=(\d{4,6})\b", response.headers.get("content-type", ""))
    return int(named[1]) if named else PCM_RATE
