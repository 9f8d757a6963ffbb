"""Prompts go in, token ids come out: the cache that is kept between them, and the decode loop.

The whole interface is `Decoder`. `prefill` takes a whole prompt and feeds what differs from the one
before; `stream` goes on from there. Whoever calls knows nothing of caches, buckets, windows or graphs.

It knows nothing of text, turns or samples, and needs torch alone.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.runtime import inputs, quantization
from voxcli.engines.voxtral.runtime.acceleration import Acceleration, Backends, FastPath, Level, Progress
from voxcli.engines.voxtral.runtime.batch_decoder import BatchDecoder
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import SMALLEST_BUCKET, Cache
from voxcli.engines.voxtral.runtime.sampler import OVER, Sampler, Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel

log = logging.getLogger(__name__)

__all__ = ["Backends", "Decoder", "PrefillResult", "Sampling"]


@dataclass(frozen=True)
class PrefillResult:
    """What `Decoder.prefill` did."""

    prompt_tokens: int  # the whole prompt
    cached_tokens: int  # of these, how many were in the cache already


class Decoder:
    """Decodes with one Voxtral model (`VoxtralForConditionalGeneration`) and one cache.

    One call at a time: a decoder is not for several threads at once.
    """

    def __init__(
        self,
        model: Any,
        *,
        capacity: int,
        smallest_bucket: int = SMALLEST_BUCKET,
        backends: Backends | None = None,
    ) -> None:
        """Take the model over and allocate the cache.

        Args:
            capacity: most tokens of prompt and reply that are ever cached.
            smallest_bucket: of the cache, in tokens; each further one is twice as large.
            backends: what compiles and captures; None for those of the model's device.

        Raises:
            ModelError: the model has parts that `llama.TextModel` does not compute.
        """
        self._model = model
        self._text = TextModel(model)
        self._encoder = WindowEncoder(model)
        self._smallest_bucket = smallest_bucket
        self._cache = self._allocated(capacity)
        self._clips = count(1)
        self._inference = torch.inference_mode()  # made once: as a decorator it is made for each token
        backends = backends or Backends.of(self.device)
        self._looks_ahead = backends.looks_ahead
        self._fast = FastPath(self._text, self._encoder, backends)
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
    def windows_encoded(self) -> int:
        """How many windows were encoded, ever."""
        return self._encoder.encoded

    @property
    def acceleration(self) -> Level:
        """The level of the fast path: compiled, graphs or none."""
        return self._fast.level

    def resize(self, capacity: int) -> None:
        """Make the cache as large as that; where it is not already, what is cached is dropped.

        Captures what `warm_up` captured, where it was let go of and the size is that one again; what is
        cached is then dropped, too. Where there is no memory for the new size, the cache is as it was, but empty.

        Raises:
            RuntimeError, MemoryError: the memory could not be allocated.
        """
        failure = None if capacity == self.capacity else self._reallocate(capacity)
        if self._fast.fit(self._cache):
            self._last = None
        if failure:
            raise failure

    def warm_up(
        self,
        sampling: Sampling,
        *,
        acceleration: Acceleration = "auto",
        notice: Callable[[str], None] = lambda _: None,
        progress: Progress = lambda _done, _total: None,
        folder: Path | None = None,
    ) -> None:
        """Compile and capture what a turn computes, where that works; what is cached is dropped.

        Replies that are chosen with `sampling`, and caches of this capacity, profit from it.

        Args:
            acceleration: the highest level to try; auto for the highest that the device has.
            notice: told what takes long, or fails and makes voxcli slower, then and later.
            progress: told how much is compiled and captured; never, where nothing is.
            folder: voxcli's cache folder, where compiled kernels are kept; None for torch's own.
        """
        self.rewind(0)
        self._fast.warm_up(self._cache, sampling, acceleration, notice, progress, folder)

    def quantize(self, form: Format) -> list[str]:
        """Quantize the large matrices of the text model; `quantization.quantize`. To be done before `warm_up`."""
        self.rewind(0)
        return quantization.quantize(self._text, form)

    def encode_partial(self, features: torch.Tensor) -> None:
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
    ) -> PrefillResult:
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
        log.debug("prefill: %d tokens to feed, %d cached", len(tokens) - start, start)
        fed = PrefillResult(len(tokens), start)
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
        sampler = self._fast.sampler(sampling)
        with torch.inference_mode():  # not around a yield: it would hold for the caller as well
            token = self._chosen(self._text.head(self._last), sampler)
        self._last = None
        most = min(sampling.max_tokens, self.capacity - self.cached)  # a token that ends the reply need not be fed
        decoded = self._decoded_ahead if self._looks_ahead else self._decoded
        for token_id in decoded(token, sampler, most):
            yield token_id
            if interrupt.is_set():
                return

    def rows(self, sampling: Sampling, **options: Any) -> BatchDecoder:
        """Return what decodes many prompts at once with this model; from then on this decoder takes none.

        Args:
            options: as `BatchDecoder` takes them.
        """
        self._fast.close()
        self.resize(1)
        return BatchDecoder(self._model, self._text, self._encoder, sampling, **options)

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self._last = None
        self._cache.rewind(length)

    def close(self) -> None:
        """Let the model go, and what was allocated for it."""
        self._last = None
        self._fast.close()
        del self._fast, self._model, self._text, self._encoder, self._cache

    def _decoded(self, token: torch.Tensor, sampler: Sampler, most: int) -> Iterator[int]:
        """Give up to `most` ids, none from a stop id on; each is fed when the one after it is asked for."""
        stop_ids = sampler.sampling.stop_ids  # compared here: no step is under way that would have to wait for it
        for position in (*self._text.positions(self._cache.length, most - 1), None):
            if (token_id := int(token)) in stop_ids:
                return
            yield token_id
            if position is not None:
                token = self._next(token, sampler, position)
                self._cache.extend([token_id])

    def _decoded_ahead(self, token: torch.Tensor, sampler: Sampler, most: int) -> Iterator[int]:
        """Give the same, but have the next step under way before a token is read: it is fed by then."""
        for number in range(most):
            reading, is_last = _Reading(sampler.published), number == most - 1
            if not is_last:
                token = self._next(token, sampler)
            if (token_id := reading.value()) == OVER:
                return
            if not is_last:
                self._cache.extend([token_id])
            yield token_id

    def _next(self, token: torch.Tensor, sampler: Sampler, position: torch.Tensor | None = None) -> torch.Tensor:
        """Feed the token that comes after the cached ones; return the one after it, (1, 1).

        Args:
            position: where that is, (1,); None to have it looked up.
        """
        place = self._cache.length
        with self._inference:
            if (following := self._fast.next(token, place, sampler)) is not None:
                return following
            # Kernels of few shapes pay on a GPU, where they are captured; elsewhere, it pays to read less.
            extent = self._cache.bucket(place + 1) if self._looks_ahead else place + 1
            position = self._text.positions(place, 1)[0] if position is None else position
            logits = self._text.step(token, position, self._cache, extent, masked=self._looks_ahead)
            return self._chosen(logits, sampler)

    def _chosen(self, logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        """Return the next token, (1, 1); the chooser tells it where it is to be read from."""
        return sampler.sample_and_publish(logits) if self._looks_ahead else sampler.choose(logits)

    def _reallocate(self, capacity: int) -> Exception | None:
        """Replace the cache by one of that size, or the size it has; return why the new one can't be had."""
        self._last, before = None, self.capacity
        self._fast.release()
        del self._cache  # before the new one is there: both together may not fit
        failures = []
        for size in (capacity, before, 1):  # with the last, nothing fits but the next call can try again
            try:
                self._cache = self._allocated(size)
                break
            except Exception as error:  # noqa: BLE001 - raised again by `resize`
                failures.append(error.with_traceback(None))  # which would keep memory
        return failures[0] if failures else None

    def _allocated(self, capacity: int) -> Cache:
        return self._text.allocate(capacity, self._smallest_bucket)

    def _feed(self, embeddings: torch.Tensor, start: int) -> torch.Tensor:
        """Feed embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,)."""
        last = self._fast.prefill(embeddings, start)
        return self._text.prefill(embeddings, start, self._cache) if last is None else last


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
