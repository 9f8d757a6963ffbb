"""Text to text for the embedded engine: SmolLM2 in llama.cpp."""

import secrets
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from voxcli.core.turn import PassReport
from voxcli.engines.embedded.libraries import damaged, imported
from voxcli.errors import ModelError

CONTEXT_TOKENS = 4096


class LlamaCpp:
    """SmolLM2 in llama.cpp, which keeps the common prefix of prompts in its cache."""

    def __init__(self, path: Path, sampling: dict[str, Any], beginning: str) -> None:
        """Load a GGUF file.

        Args:
            sampling: max_tokens, temperature and top_p, by llama.cpp's names.
            beginning: beginning of the next prompts, prefilled now.
        """
        xllamacpp = imported("xllamacpp")
        self._sampling = sampling
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = CONTEXT_TOKENS
        params.n_parallel = 1
        # The threads of llama.cpp wait for each other hundreds of times per step. On two cores, the first token of a
        # prompt of 105 tokens took 0.07 s with two threads and 0.13 s with one on an idle machine, but 6.1 s and
        # 1.2 s beside two busy processes.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.fit_params = False  # no search for free GPU memory
        params.verbosity = -1  # its log goes to stderr
        # The server opens a loopback port, which is not used here; a random key closes it to others.
        params.api_keys = [secrets.token_urlsafe(32)]
        params.endpoint_slots = params.ui = False
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise damaged(path, error) from error
        self.read_ahead(beginning)

    def answer(self, prompt: str, interrupt: threading.Event) -> Generator[str, None, PassReport]:
        """Yield the completion of a prompt in deltas.

        Raises:
            ModelError: llama.cpp refuses the prompt, for example one longer than its context.
        """
        timings: dict[str, int] = {}
        for chunk in self._stream(prompt, interrupt):
            if error := chunk.get("error"):
                raise ModelError(
                    f"the embedded model refused the prompt: {error['message']}",
                    hint="shorten the text that --prompt or --instructions gives",
                )
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

    def read_ahead(self, beginning: str) -> None:
        """Prefill the beginning of the next prompt."""
        self._server.handle_completions({"prompt": beginning, "max_tokens": 0})

    def _stream(self, prompt: str, interrupt: threading.Event) -> Iterator[dict[str, Any]]:
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
