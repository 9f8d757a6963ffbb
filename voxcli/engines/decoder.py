"""Prompts go in, token ids come out: the cache that is kept between them, and the decode loop.

The whole interface is `Decoder`. `prefill` takes a whole prompt and feeds what differs from the one
before; `stream` goes on from there. Whoever calls knows nothing of caches, buckets, windows or graphs.

It knows nothing of text, turns or samples, and needs torch alone.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from voxcli.engines import compiling, inputs, quantization
from voxcli.engines.cache import SMALLEST_BUCKET, Cache
from voxcli.engines.capture import CapturedEncoder, CapturedPass, CudaGraphs, Record, recordings
from voxcli.engines.formats import Format
from voxcli.engines.llama import Llama
from voxcli.engines.rows import Rows
from voxcli.engines.sampling import OVER, Chooser, Sampling
from voxcli.engines.windows import WindowEncoder

__all__ = ["Decoder", "Fed", "Sampling"]

Progress = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True)
class Fed:
    """What `Decoder.prefill` did."""

    prompt_tokens: int  # the whole prompt
    cached_tokens: int  # of these, how many were in the cache already


class Decoder:
    """Decodes with one Voxtral model (`VoxtralForConditionalGeneration`) and one cache.

    One call at a time: a decoder is not for several threads at once.
    """

    def __init__(self, model: Any, *, capacity: int, smallest_bucket: int = SMALLEST_BUCKET) -> None:
        """Take the model over and allocate the cache.

        Args:
            capacity: most tokens of prompt and reply that are ever cached.
            smallest_bucket: of the cache, in tokens; each further one is twice as large.

        Raises:
            ModelError: the model has parts that `llama.Llama` does not compute.
        """
        self._model = model
        self._text = Llama(model)
        self._encoder = WindowEncoder(model)
        self._smallest_bucket = smallest_bucket
        self._cache = self._allocated(capacity)
        self._clips = count(1)
        self._inference = torch.inference_mode()  # made once: as a decorator it is made for each token
        self._on_gpu = self.device == "cuda"
        self._captured: CapturedPass | None = None
        self._capture: Callable[[], CapturedPass | None] = lambda: None
        self._warm_capacity = 0
        self._last: torch.Tensor | None = None  # hidden state of the prompt's last token, until it is decoded from
        self.generations = 0  # streams begun

    @property
    def device(self) -> str:
        """What it runs on: cuda, mps or cpu."""
        return str(self._text.device.type)

    @property
    def capacity(self) -> int:
        """Most tokens of prompt and reply."""
        return self._cache.capacity

    @property
    def cached(self) -> int:
        """How many tokens are in the cache."""
        return self._cache.length

    @property
    def windows_replayed(self) -> int:
        """How many windows were encoded without a call of the model's modules."""
        return self._encoder.replayed

    def resize(self, capacity: int) -> None:
        """Make the cache as large as that; where it is not already, what is cached is dropped."""
        if capacity != self.capacity:
            self._last, before = None, self.capacity
            self._captured = None  # it points into the cache
            del self._cache  # before the new one is there: both together may not fit
            try:
                self._cache = self._allocated(capacity)
            except (RuntimeError, MemoryError):
                self._cache = self._allocated(before)
                raise
            if capacity == self._warm_capacity:
                self._captured = self._capture()

    def warm_up(
        self,
        sampling: Sampling,
        *,
        notice: Callable[[str], None] = lambda _: None,
        progress: Progress = lambda _done, _total: None,
        folder: Path | None = None,
        recorder: Callable[[], Record] | None = None,
    ) -> None:
        """Compile and capture what a turn computes, where that pays; what is cached is dropped.

        Replies that are chosen with `sampling`, and caches of this capacity, profit from it.

        Args:
            notice: told what takes long, or goes wrong and makes voxcli slower.
            progress: told how much is compiled and captured; never, where nothing is.
            folder: voxcli's cache folder, where compiled kernels are kept; None for torch's own.
            recorder: makes what captures; without, CUDA graphs on a CUDA device, and nothing elsewhere.
        """
        recorder = recorder or (CudaGraphs if self._on_gpu else None)
        if recorder is None:
            return
        before = 1 + (len(self._cache.buckets) if compiling.is_possible(self.device) else 0)  # the encoder, and these
        total = before + recordings(self._text, self._cache)
        progress(0, total)
        layer = None
        if before > 1:
            notice("compiling the decode step: minutes at the first start, seconds later")
            layer = compiling.compiled(self._text, self._cache, folder, notice, lambda done: progress(done, total))
        self._encoder.replay_with(CapturedEncoder(self._encoder, recorder()).encode)
        progress(before, total)

        def capture(done: Callable[[int], None] = lambda _: None) -> CapturedPass:
            return CapturedPass(self._text, self._cache, Chooser(sampling, self._text.device), recorder(), done, layer)

        self.rewind(0)
        self._capture, self._warm_capacity = capture, self.capacity
        self._captured = capture(lambda done: progress(before + done, total))

    def quantize(self, form: Format) -> list[str]:
        """Quantize the large matrices of the text model; `quantization.quantize`. To be done before `warm_up`."""
        self.rewind(0)
        return quantization.quantize(self._text, form)

    def listen(self, features: torch.Tensor) -> None:
        """Encode windows of a clip that is not over; `prefill` does not encode again those that stay the same.

        Args:
            features: as `prefill` takes them, of whole windows.
        """
        self._encoder.encode(features)

    def forget_clip(self) -> None:
        """Drop the encoded windows of the last clip."""
        self._encoder.forget()

    @torch.inference_mode()
    def prefill(
        self, ids: Sequence[int], features: torch.Tensor | None = None, interrupt: threading.Event | None = None
    ) -> Fed:
        """Bring the cache to this prompt; feed only what comes after the prefix that is cached.

        Args:
            ids: the whole prompt, at least one token.
            features: mel spectrograms of the clip, (windows, mels, frames), float32; None without a
                clip. The ids hold one `[AUDIO]` for each embedding that the encoder makes of them.
            interrupt: looked at before each window of the encoder and each chunk of tokens; once it is
                set, what was fed so far stays in the cache, and the prompt can't be decoded from.

        Raises:
            ModelError: `[AUDIO]` ids and features do not fit together (the model itself would raise
                nothing where the features are missing, and answer something else), or the prompt
                does not fit into the cache.
        """
        self._last = None
        audio_id = inputs.check(self._model.config, ids, features, self.capacity)
        clip = -next(self._clips)  # stands for the `[AUDIO]` of this clip, and matches no other
        tokens = [clip if token_id == audio_id else token_id for token_id in ids]
        start = min(self._cache.common(tokens), len(tokens) - 1)
        self._cache.rewind(start)
        fed = Fed(len(tokens), start)
        audio = self._encoder.encode(features, interrupt) if features is not None else None
        if features is not None and audio is None:
            return fed
        embeddings = inputs.embeddings(self._text, ids[start:], audio, audio_id)
        for chunk in embeddings.split(inputs.CHUNK_TOKENS):
            if interrupt and interrupt.is_set():
                return fed
            last = self._feed(chunk, start)
            self._cache.extend(tokens[start : start + len(chunk)])
            start += len(chunk)
        self._last = last
        return fed

    def stream(self, sampling: Sampling, interrupt: threading.Event) -> Generator[int, None, None]:
        """Yield the reply to the prompt that was prefilled last, ids as they are chosen, no stop id among them.

        On a GPU the next step is under way before a token is read, so that it never waits for the
        host, and the GPU itself finds that the reply is over. What was computed beyond the end is not
        in the cache afterwards.

        Args:
            interrupt: looked at before each step, so the stream ends within one token.

        Raises:
            RuntimeError: no prompt was prefilled since the last stream.
        """
        if interrupt.is_set():
            return
        if self._last is None:
            raise RuntimeError("nothing was prefilled to decode from")
        self.generations += 1
        chooser = self._chooser(sampling)
        with torch.inference_mode():  # not around a yield: it would hold for the caller as well
            token = self._chosen(self._text.head(self._last), chooser)
        self._last = None
        most = min(sampling.max_tokens, self.capacity - self.cached)  # a token that ends the reply need not be fed
        decoded = self._decoded_ahead if self._on_gpu else self._decoded
        for token_id in decoded(token, chooser, most):
            yield token_id
            if interrupt.is_set():
                return

    def rows(self, sampling: Sampling, **options: Any) -> Rows:
        """Return what decodes many prompts at once with this model; from then on this decoder takes none.

        Args:
            options: as `Rows` takes them.
        """
        self._captured, self._capture = None, lambda: None
        self.resize(1)
        return Rows(self._model, self._text, self._encoder, sampling, **options)

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self._last = None
        self._cache.rewind(length)

    def close(self) -> None:
        """Let the model go, and what was allocated for it."""
        self._last = self._captured = None
        self._capture = lambda: None
        del self._model, self._text, self._encoder, self._cache

    def _decoded(self, token: torch.Tensor, chooser: Chooser, most: int) -> Iterator[int]:
        """Give up to `most` ids, none from a stop id on; each is fed when the one after it is asked for."""
        stop_ids = chooser.sampling.stop_ids  # compared here: no step is under way that would have to wait for it
        for position in (*self._text.positions(self._cache.length, most - 1), None):
            if (token_id := int(token)) in stop_ids:
                return
            yield token_id
            if position is not None:
                token = self._next(token, chooser, position)
                self._cache.extend([token_id])

    def _decoded_ahead(self, token: torch.Tensor, chooser: Chooser, most: int) -> Iterator[int]:
        """Give the same, but have the next step under way before a token is read: it is fed by then."""
        for number in range(most):
            reading, is_last = _Reading(chooser.told), number == most - 1
            if not is_last:
                token = self._next(token, chooser)
            if (token_id := reading.value()) == OVER:
                return
            if not is_last:
                self._cache.extend([token_id])
            yield token_id

    def _next(self, token: torch.Tensor, chooser: Chooser, position: torch.Tensor | None = None) -> torch.Tensor:
        """Feed the token that comes after the cached ones; return the one after it, (1, 1).

        Args:
            position: where that is, (1,); None to have it looked up.
        """
        place = self._cache.length
        with self._inference:
            if self._captured:
                return self._captured.next(token, place, chooser)
            # Kernels of few shapes pay on a GPU, where they are captured; elsewhere, it pays to read less.
            extent = self._cache.bucket(place + 1) if self._on_gpu else place + 1
            position = self._text.positions(place, 1)[0] if position is None else position
            return self._chosen(self._text.step(token, position, self._cache, extent, masked=self._on_gpu), chooser)

    def _chosen(self, logits: torch.Tensor, chooser: Chooser) -> torch.Tensor:
        """Return the next token, (1, 1); the chooser tells it where it is to be read from."""
        return chooser.choose_and_tell(logits) if self._on_gpu else chooser.choose(logits)

    def _allocated(self, capacity: int) -> Cache:
        return self._text.allocate(capacity, self._smallest_bucket)

    def _feed(self, embeddings: torch.Tensor, start: int) -> torch.Tensor:
        """Feed embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,)."""
        last = self._captured.prefill(embeddings, start) if self._captured else None
        return self._text.prefill(embeddings, start, self._cache) if last is None else last

    def _chooser(self, sampling: Sampling) -> Chooser:
        """Return what chooses the tokens of a reply that begins now: the captured one, if it does so in this way."""
        if self._captured and self._captured.chooser.is_alike(sampling):
            self._captured.chooser.begin(sampling.seed)
            return self._captured.chooser
        return Chooser(sampling, self._text.device)


class _Reading:
    """A token id on its way from the device; `value` waits for it, and for nothing that was begun after it."""

    def __init__(self, token: torch.Tensor) -> None:
        self._token = token.clone() if token.device.type == "cpu" else token  # the next one may take its place
        self._done: Any = None
        if token.is_cuda:
            self._token = torch.empty(1, 1, dtype=token.dtype, pin_memory=True)
            self._token.copy_(token, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def value(self) -> int:
        if self._done:
            self._done.synchronize()
        return int(self._token)
