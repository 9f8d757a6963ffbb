"""Decodes one reply at a time: prompts in, token ids out, with a KV cache that is kept between prompts.

`prefill` takes a whole prompt and feeds what differs from the one before; `stream` generates the reply to it.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from voxcli.engines.voxtral.device.demand import CHUNK_TOKENS
from voxcli.engines.voxtral.runtime.acceleration import Acceleration, Backends, FastPath, Level, Progress
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import SMALLEST_BUCKET, Cache
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import OVER, Sampler, Sampling
from voxcli.errors import ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefillResult:
    """Tokens of a prompt that was prefilled."""

    prompt_tokens: int
    cached_tokens: int  # Tokens of the prompt that were in the cache already.


class Decoder:
    """Decodes with a shared model, one KV cache and one encoder. Calls must come from one thread at a time."""

    def __init__(
        self,
        model: SharedModel,
        *,
        capacity: int,
        smallest_bucket: int = SMALLEST_BUCKET,
        backends: Backends | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            capacity: most tokens of prompt and reply that are ever cached.
            smallest_bucket: length of the cache's shortest bucket in tokens; each further one is twice as long.
            backends: compiler and graph recorder; None for those of the model's device.

        Raises:
            RuntimeError, MemoryError: the memory could not be allocated.
        """
        self._model = model
        self._encoder = WindowEncoder(model)
        self._smallest_bucket = smallest_bucket
        self._cache = self._allocated(capacity)
        self._clips = count(1)
        self._clip = 0  # stands for the `[AUDIO]` of the last prompt
        self._inference = torch.inference_mode()  # made once: as a decorator it is made for each token
        backends = backends or Backends.of(self.device)
        self._looks_ahead = backends.looks_ahead
        self._fast = FastPath(model, self._encoder, backends)
        self._last: torch.Tensor | None = None  # hidden state of the prompt's last token, until it is decoded from
        self._streamed = (0, 0)  # length of the cache once the last token of the reply is fed, and this token
        self.generations = 0  # replies begun; what is generated after `append` counts for none
        self._begins_reply = True  # The next generated token begins a reply.

    @property
    def device(self) -> str:
        """The type of the model's device: cuda, mps or cpu."""
        return str(self._model.device.type)

    @property
    def capacity(self) -> int:
        """Most tokens of prompt and reply that the cache holds."""
        return self._cache.capacity

    @property
    def cached(self) -> int:
        """Number of tokens in the cache."""
        return self._cache.length

    @property
    def windows_encoded(self) -> int:
        """Number of windows encoded so far."""
        return self._encoder.encoded

    @property
    def acceleration(self) -> Level:
        """The level of the fast path in use: compiled, graphs or none."""
        return self._fast.level

    def resize(self, capacity: int) -> None:
        """Give the cache room for `capacity` tokens. A cache of another size is replaced by an empty one.

        Graphs that `warm_up` captured are dropped with the cache, and captured again when it has their size again;
        that empties the cache too. Where there is no memory for the new size, the old size is restored.

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
        """Compile and capture the work of a turn, where that works. Empties the cache.

        Speeds up replies sampled as `sampling` says, with a cache of this capacity.

        Args:
            acceleration: the highest level to try; auto for the highest that the device supports.
            notice: receives a line about a step that takes minutes, or one that fails and makes voxcli slower.
            progress: called with the steps done and their total; never, where nothing is compiled or captured.
            folder: voxcli's cache folder, in which compiled kernels are kept; None for torch's own.
        """
        self.rewind(0)
        self._fast.warm_up(self._cache, sampling, acceleration, notice, progress, folder)

    def encode_partial(self, features: torch.Tensor) -> None:
        """Encode windows of a clip that goes on; `prefill` does not encode again those that stay the same.

        Args:
            features: mel spectrograms of whole windows, (windows, mels, frames), float32.
        """
        self._encoder.encode(features)

    def forget_clip(self) -> None:
        """Drop the encoded windows of the last clip."""
        self._encoder.forget()

    @torch.inference_mode()
    def prefill(
        self, ids: Sequence[int], features: torch.Tensor | None = None, interrupt: threading.Event | None = None
    ) -> PrefillResult:
        """Fill the cache with a prompt, feeding only what follows the prefix that is cached.

        Args:
            ids: the whole prompt, at least one token, with one `[AUDIO]` for each embedding of the clip.
            features: mel spectrograms of the clip, (windows, mels, frames), float32; None without a clip.
            interrupt: checked before each window of the encoder and each chunk of tokens. Once it is set,
                the tokens fed so far stay in the cache, and there is no prompt to reply to.

        Raises:
            ModelError: `[AUDIO]` ids and features do not match, or the prompt does not fit into the cache.
        """
        self._last, self._streamed, self._begins_reply = None, (0, 0), True
        self._model.check_prompt(ids, features, self.capacity)
        self._clip = -next(self._clips)  # an id for the `[AUDIO]` of this clip alone
        result = self._begin(ids)
        audio = self._encoder.encode(features, interrupt) if features is not None else None
        if features is None or audio is not None:
            self._fill(ids, audio, interrupt)
        return result

    @torch.inference_mode()
    def extend(self, ids: Sequence[int], interrupt: threading.Event | None = None) -> PrefillResult:
        """Fill the cache with a prompt that begins as the last one, whose clip is neither encoded nor fed again.

        Args:
            ids: the whole prompt: the last one, and what was generated or is added.
            interrupt: as in `prefill`.

        Raises:
            ModelError: the prompt does not fit into the cache.
            RuntimeError: it has another clip than the last one, or that was not prefilled to its end.
        """
        self._last, self._streamed, self._begins_reply = None, (0, 0), True
        self._model.check_size(ids, self.capacity)
        result = self._begin(ids)
        if self._model.audio_id in ids[result.cached_tokens :]:
            raise RuntimeError("the clip of the prompt is not in the cache")
        self._fill(ids, None, interrupt)
        return result

    @torch.inference_mode()
    def append(self, ids: Sequence[int]) -> int:
        """Feed text after the reply that was streamed last; `stream` then generates what follows it.

        The last token of the reply is fed first, where it is not in the cache yet. Returns the number of cached tokens
        up to the end of the reply, to which `rewind` goes back.

        Raises:
            ModelError: the text does not fit into the cache.
        """
        length, token_id = self._streamed
        rest = [token_id] if self.cached < length else []
        before, tokens = self.cached + len(rest), [*rest, *ids]
        self._last, self._begins_reply = None, False
        if before + len(ids) >= self.capacity:
            raise ModelError(f"{len(ids)} tokens after {before} don't fit into a cache of {self.capacity}")
        self._last = self._feed_all(tokens, self._model.embed(tokens))
        return before

    def stream(self, sampling: Sampling, interrupt: threading.Event) -> Generator[int, None, None]:
        """Yield the ids of the reply to the prompt that was prefilled last, without the stop id that ends it.

        On a GPU the next step is launched before a token is read, so that the GPU never waits for the host;
        the GPU itself finds the end of the reply. Tokens computed beyond the end do not stay in the cache.

        Args:
            interrupt: checked before each step, so the stream ends within one token.

        Raises:
            RuntimeError: no prompt was prefilled since the last reply.
        """
        if interrupt.is_set():
            return
        if self._last is None:
            raise RuntimeError("no prompt was prefilled since the last reply")
        self.generations += self._begins_reply
        sampler = self._fast.sampler(sampling)
        with torch.inference_mode():  # around a `yield` it would apply to the caller as well
            token = self._choose(self._model.text.head(self._last), sampler)
        self._last = None
        most = min(sampling.max_tokens, self.capacity - self.cached)  # the last token of a reply is not fed
        decoded, begun = self._decode_ahead if self._looks_ahead else self._decode, self.cached
        for number, token_id in enumerate(decoded(token, sampler, most), 1):
            self._streamed = begun + number, token_id
            yield token_id
            if interrupt.is_set():
                return

    def rewind(self, length: int) -> None:
        """Drop all cached tokens but the first `length`."""
        self._last, self._streamed = None, (0, 0)
        self._cache.rewind(length)

    def release(self) -> None:
        """Free the captured graphs and the cache; a reply needs `resize` first."""
        self._fast.close()
        self.resize(1)

    def close(self) -> None:
        """Free the cache and the captured graphs. The model stays with its other users."""
        self._last = None
        self._fast.close()
        del self._fast, self._model, self._encoder, self._cache

    def _begin(self, ids: Sequence[int]) -> PrefillResult:
        """Rewind the cache to the prefix that it shares with a prompt; the last token of the prompt is always fed."""
        start = min(self._cache.common(self._identified(ids)), len(ids) - 1)
        self._cache.rewind(start)
        log.debug("prefill: %d tokens to feed, %d cached", len(ids) - start, start)
        return PrefillResult(len(ids), start)

    def _fill(self, ids: Sequence[int], audio: torch.Tensor | None, interrupt: threading.Event | None) -> None:
        """Feed the ids of a prompt that are not cached, until `interrupt` is set."""
        start = self.cached
        self._last = self._feed_all(self._identified(ids)[start:], self._model.embed(ids[start:], audio), interrupt)

    def _identified(self, ids: Sequence[int]) -> list[int]:
        """Return ids with the clip's own id in place of `[AUDIO]`."""
        return [self._clip if token_id == self._model.audio_id else token_id for token_id in ids]

    def _decode(self, token: torch.Tensor, sampler: Sampler, most: int) -> Iterator[int]:
        """Yield up to `most` ids before a stop id; each is fed when the caller wants the next one."""
        stop_ids = sampler.sampling.stop_ids
        for position in (*self._cache.positions_from(self._cache.length, most - 1), None):
            if (token_id := int(token)) in stop_ids:
                return
            yield token_id
            if position is not None:
                token = self._next(token, sampler, position)
                self._cache.extend([token_id])

    def _decode_ahead(self, token: torch.Tensor, sampler: Sampler, most: int) -> Iterator[int]:
        """Yield the same ids as `_decode`, but feed each token before the host reads it."""
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
        """Feed the token that follows the cached ones; return the next one, (1, 1).

        Args:
            position: of the token, (1,); None to look it up.
        """
        place = self._cache.length
        with self._inference:
            if (following := self._fast.next(token, place, sampler)) is not None:
                return following
            # On a GPU, few shapes are faster; on a CPU, reading less of the cache is.
            extent = self._cache.bucket(place + 1) if self._looks_ahead else place + 1
            position = self._cache.positions_from(place, 1)[0] if position is None else position
            logits = self._model.text.step(token, position, self._cache, extent, masked=self._looks_ahead)
            return self._choose(logits, sampler)

    def _choose(self, logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        """Return the next token, (1, 1), published by the sampler where the host reads it later."""
        return sampler.sample_and_publish(logits) if self._looks_ahead else sampler.choose(logits)

    def _reallocate(self, capacity: int) -> Exception | None:
        """Replace the cache by one of another size; where that fails, restore its size and return the error."""
        self._last, self._streamed, before = None, (0, 0), self.capacity
        self._fast.release()
        del self._cache  # freed first: the old and the new one together may not fit
        failures = []
        for size in (capacity, before, 1):  # a cache of one token lets the next call try again
            try:
                self._cache = self._allocated(size)
                break
            except Exception as error:  # noqa: BLE001 - raised again by `resize`
                failures.append(error.with_traceback(None))  # a traceback would keep memory
        return failures[0] if failures else None

    def _allocated(self, capacity: int) -> Cache:
        return self._model.text.allocate(capacity, self._smallest_bucket)

    def _feed_all(
        self, tokens: Sequence[int], embeddings: torch.Tensor, interrupt: threading.Event | None = None
    ) -> torch.Tensor | None:
        """Feed tokens, chunk by chunk, after the cached ones; return the last hidden state, None once interrupted."""
        last, fed = None, 0
        for chunk in torch.split(embeddings, CHUNK_TOKENS):
            if interrupt and interrupt.is_set():
                return None
            last = self._feed(chunk, self.cached)
            self._cache.extend(tokens[fed : fed + len(chunk)])
            fed += len(chunk)
        return last

    def _feed(self, embeddings: torch.Tensor, start: int) -> torch.Tensor:
        """Feed embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,)."""
        last = self._fast.prefill(embeddings, start)
        return self._model.text.prefill(embeddings, start, self._cache) if last is None else last


class _Reading:
    """A copy of a token id from the device to the host; `value` waits for the copy, not for later work."""

    def __init__(self, token: torch.Tensor) -> None:
        # On a CPU, the sampler overwrites the tensor with the next token.
        self._token = token.clone() if token.device.type == "cpu" else token
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
