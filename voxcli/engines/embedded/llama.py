"""Text to text for the embedded engine: GGUF models in llama.cpp."""

import json
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from voxcli.core.protocols import PassReport
from voxcli.engines.embedded.libraries import damaged, imported
from voxcli.engines.embedded.prompts import Message, Prompt
from voxcli.errors import ModelError
from voxcli.printable import first_line

CONTEXT_TOKENS = 4096
NO_THINKING = {"enable_thinking": False}  # asks templates that know it, as Qwen3's, for a reply without reasoning
REQUEST_SECONDS = 60.0  # longest wait for a chat template or a tokenizer; the server may be generating


class LlamaCpp:
    """A model in llama.cpp, which keeps the common prefix of prompts in its cache."""

    def __init__(
        self, path: Path, sampling: dict[str, Any], *, context_tokens: int = CONTEXT_TOKENS, threads: int = 1
    ) -> None:
        """Load a GGUF file.

        Args:
            sampling: max_tokens, temperature and top_p, by llama.cpp's names.
            context_tokens: longest prompt and reply together.
        """
        xllamacpp = imported("xllamacpp")
        self._sampling = sampling
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context_tokens
        params.n_parallel = 1
        # The threads of llama.cpp wait for each other hundreds of times per step. On two cores, the first token of a
        # prompt of 105 tokens took 0.07 s with two threads and 0.13 s with one on an idle machine, but 6.1 s and
        # 1.2 s beside two busy processes.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.fit_params = False  # no search for free GPU memory
        params.verbosity = -1  # its log goes to stderr
        # The server opens a loopback port; a random key closes it to others.
        self._key = secrets.token_urlsafe(32)
        params.api_keys = [self._key]
        params.endpoint_slots = params.ui = False
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise damaged(path, error) from error

    def answer(self, prompt: Prompt, interrupt: threading.Event) -> Generator[str, None, PassReport]:
        """Yield the completion of a prompt in deltas.

        Raises:
            ModelError: llama.cpp refuses the prompt, for example one longer than its context.
        """
        timings: dict[str, int] = {}
        for chunk in self._stream(prompt, interrupt):
            if error := chunk.get("error"):
                raise _refused(error["message"])
            timings = chunk["timings"]
            if text := chunk["choices"][0]["text"]:
                yield text
        cached = timings.get("cache_n", 0)
        return PassReport(
            model_passes=1,
            prompt_tokens=cached + timings.get("prompt_n", 0),
            cached_tokens=cached,
            reply_tokens=timings.get("predicted_n", 0),
        )

    def read_ahead(self, beginning: Prompt) -> None:
        """Prefill the beginning of the next prompt."""
        self._server.handle_completions({"prompt": beginning, "max_tokens": 0})

    def text_tokens(self, text: str) -> list[int]:
        """Return the token ids of a text; names of control tokens in it stay text."""
        return self._tokens({"content": text, "add_special": False, "parse_special": False}) if text else []

    def layout_tokens(self, layout: str, *, begins: bool) -> list[int]:
        """Return the token ids of a part of a chat layout, in which names of control tokens are these tokens.

        Args:
            begins: the prompt begins with this part; some models want a token in front of it.
        """
        return self._tokens({"content": layout, "add_special": begins, "parse_special": True})

    def apply_template(self, messages: Iterable[Message]) -> str:
        """Return messages in the model's own chat layout, up to where its reply begins.

        Raises:
            ModelError: the template does not take these messages.
        """
        shown = [{"role": role, "content": text} for role, text in messages]
        return str(self._post("/apply-template", {"messages": shown, "chat_template_kwargs": NO_THINKING})["prompt"])

    def _tokens(self, request: dict[str, Any]) -> list[int]:
        return [int(token) for token in self._post("/tokenize", request)["tokens"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the server through its loopback port: the library has no function for this."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        address = self._server.listening_address.removeprefix("http://")
        try:
            with closing(HTTPConnection(address, timeout=REQUEST_SECONDS)) as connection:
                connection.request("POST", path, json.dumps(body), headers)
                response = connection.getresponse()
                found: dict[str, Any] = json.load(response)
        except (OSError, HTTPException, ValueError) as error:
            raise _refused(first_line(error)) from error
        if response.status != HTTPStatus.OK:
            raise _refused(first_line(found.get("error", {}).get("message", "")))
        return found

    def _stream(self, prompt: Prompt, interrupt: threading.Event) -> Iterator[dict[str, Any]]:
        """Turn the server's callbacks into an iterator. Closing it, or an interrupt, stops the server too."""
        request = {"prompt": prompt, **self._sampling, "stream": True, "timings_per_token": True}
        chunks: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        left = threading.Event()

        def take(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return interrupt.is_set() or left.is_set()

        def complete() -> None:
            try:
                self._server.handle_completions(request, take)
            except Exception as error:  # noqa: BLE001 - raised again by `answer`
                chunks.put({"error": {"message": str(error)}})
            finally:
                chunks.put(None)

        worker = threading.Thread(target=complete, name="llama", daemon=True)
        worker.start()
        try:
            for chunk in iter(chunks.get, None):
                if interrupt.is_set():  # the queue may hold more: the server does not wait for the reader
                    break
                yield chunk
        finally:
            left.set()
            worker.join()


def _refused(message: str) -> ModelError:
    return ModelError(
        f"the embedded model refused the prompt: {message}",
        hint="shorten the text that --prompt or --instructions gives",
    )
