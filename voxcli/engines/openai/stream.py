"""Asks a server for a reply or for its models, and reads what it sends."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai

from voxcli.core.tools import ToolCall
from voxcli.engines.openai.chunks import ReplyReader, Usage
from voxcli.servers.call import content_type, unexpected_type
from voxcli.servers.errors import UnreadableError, broken_off, no_text
from voxcli.servers.server import Server

RESPONSE_BYTES = 1 << 25  # longest response; a reply of 8192 tokens takes about 3 MB
COMPRESSED_BYTES = RESPONSE_BYTES >> 6  # Limit of a compressed response, which expands a thousandfold at most.
DONE = object()  # what a stream ends with
EVENT_TYPES = ("text/event-stream", "text/plain", "")  # Streams; some servers name the type wrongly or not at all.
WITHHELD = "content_filter"  # the reason of a reply that the server withholds
LLAMA_CPP, LLAMA_CPP_OWNER = "llama.cpp", "llamacpp"  # names of llama.cpp's server, in a header and in a list


@dataclass
class ModelList:
    """What a server lists."""

    names: list[str] = field(default_factory=list)
    from_llama_cpp: bool = False


@dataclass(frozen=True)
class Over:
    """The last item of a call that went well."""

    usage: Usage | None = None  # None where the server counts nothing
    finish_reason: str = ""  # empty where the server gives none
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class CallsGrew:
    """A piece of a tool call has come; the calls are in `Over`."""


Item = str | CallsGrew | Over
Work = Callable[[openai.OpenAI], Iterator[Item]]


def chat(body: dict[str, Any], server: Server) -> Work:
    """Return the work of asking for a completion: its text in deltas, without the model's reasoning, and its calls.

    A delta is empty where the reply grew by text that may be reasoning. A reply needs no text if it calls tools, or
    follows the results of tools. Calls of a response that is withheld, or where no tools were given, are not made.
    """

    def work(client: openai.OpenAI) -> Iterator[Item]:
        reader, is_whole = ReplyReader(), False
        with client.chat.completions.create(**body) as stream:  # openai's own reader is too strict.
            for answer in _answers(stream.response):
                if answer is DONE:
                    is_whole = True
                else:
                    yield from _read(answer, reader)
        if rest := reader.rest():
            yield rest
        reason = reader.finish_reason
        if not (is_whole or reason):
            raise broken_off(server)
        calls = reader.calls.calls() if "tools" in body and reason != WITHHELD else ()
        if not (reader.has_text or calls or body["messages"][-1]["role"] == "tool"):
            raise no_text(server, reason, reasoning=reader.has_reasoning, tool=reader.calls_tool)
        yield Over(reader.usage, reason, calls)

    return work


def _read(answer: Any, reader: ReplyReader) -> Iterator[Item]:
    pieces = reader.calls.pieces
    text = reader.read(answer)
    if text is not None:
        yield text
    elif reader.calls.pieces > pieces:
        yield CallsGrew()


def models(found: "ModelList") -> Work:
    """Return the work of asking which models a server lists: their names, and in `found` who made the list."""

    def work(client: openai.OpenAI) -> Iterator[Item]:
        response = client.get("/models", cast_to=httpx2.Response)
        if not content_type(response).endswith("json"):
            raise unexpected_type(response)
        listed = json.loads(response.content)
        entries = listed.get("data") if isinstance(listed, dict) else listed  # some send the bare list
        if entries is None and isinstance(listed, dict) and "data" in listed:  # Ollama without models
            entries = []
        if not isinstance(entries, list):
            raise UnreadableError("its list of models has no data")
        models = [entry for entry in entries if isinstance(entry, dict)]
        # A proxy puts its own name into the header, but leaves the list as it is.
        found.from_llama_cpp = response.headers.get("server", "").lower() == LLAMA_CPP or any(
            model.get("owned_by") == LLAMA_CPP_OWNER for model in models
        )
        for model in models:
            if isinstance(name := model.get("id"), str):
                yield name
        yield Over()

    return work


def _answers(response: httpx2.Response) -> Iterator[Any]:
    """Yield the objects of a stream, or the one of an answer that is not streamed; DONE where it is said to be whole.

    Raises:
        UnreadableError: it is neither.
        ValueError: it is not JSON.
    """
    kind = content_type(response)
    if kind in EVENT_TYPES:
        yield from _streamed(response)
    elif kind.endswith("json"):
        answer = json.loads(response.read())
        if not isinstance(answer, dict) or not (answer.get("choices") or answer.get("error")):
            raise UnreadableError("its answer holds no choices")
        yield answer
        yield DONE
    else:
        raise unexpected_type(response)


def _streamed(response: httpx2.Response) -> Iterator[Any]:
    response.headers["content-type"] = EVENT_TYPES[0]  # else EventSource refuses it
    response.encoding = "utf-8-sig"  # events are UTF-8 whatever a header says, and may begin with a byte-order mark
    for event in httpx2.EventSource(response, max_event_size=RESPONSE_BYTES):
        data = event.data.strip()
        if data.startswith("[DONE]"):
            yield DONE
            return
        if not data or event.event == "ping":
            continue
        if event.event != "error":
            yield json.loads(data)
            continue
        try:
            body = json.loads(data)
        except ValueError:
            body = data
        yield body if isinstance(body, dict) and body.get("error") else {"error": body}


class RepairedStream(httpx2.SyncByteStream):
    """A response's bytes, up to a limit: a server may send without end. Events are made to be what EventSource reads.

    The last event gets its end, which some servers leave out. llama.cpp's server gave errors a field of their own
    until late 2025 (ggml-org/llama.cpp#16104): it becomes an event of that name.
    """

    def __init__(self, stream: httpx2.SyncByteStream, compressed: bool) -> None:
        self._stream = stream
        self._compressed = compressed

    def __iter__(self) -> Iterator[bytes]:
        limit = COMPRESSED_BYTES if self._compressed else RESPONSE_BYTES
        received, begins_line = 0, True
        for block in self._stream:
            received += len(block)
            if received > limit:
                raise UnreadableError(f"it has more than {limit / (1 << 20):g} MB")
            yield block if self._compressed else _renamed(block, begins_line=begins_line)
            begins_line = block.endswith(b"\n")
        if not self._compressed:
            yield b"\n\n"

    def close(self) -> None:
        self._stream.close()


def _renamed(block: bytes, *, begins_line: bool) -> bytes:
    """Return a block of events with the field `error` as data of an event of that name."""
    if begins_line and block.startswith(b"error:"):
        block = b"\n" + block
    return block.replace(b"\nerror:", b"\nevent: error\ndata:")
