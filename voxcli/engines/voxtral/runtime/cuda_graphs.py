"""The work of a turn in few fixed shapes, at fixed addresses: recorded once, then replayed.

    encode    one window of mel frames to embeddings
    prefill   16 to 512 embeddings, at any position
    step      one token to logits, for each bucket of the cache
    choose    logits to the next token, and whether the reply is over with it

What is recorded reads all that changes from buffers, and looks at no value; whoever replays copies new
values into the buffers first. On a GPU the recordings are CUDA graphs, one launch each instead of some
hundreds. Knows nothing of prompts, and of CUDA in `CudaGraphs` alone.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import torch

from voxcli.engines.voxtral.runtime import attention
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.sampler import Sampler
from voxcli.engines.voxtral.runtime.text_model import TextModel

LENGTHS = (16, 64, 128, 256, 384, 512)  # of a prefill, padded; a turn of one window and a few words takes 384
WARM_RUNS = 2  # before a recording: libraries choose algorithms and allocate workspaces in their first calls

Work = Callable[[], None]


class GraphRecorder(Protocol):
    """Records work."""

    def __call__(self, work: Work, source: torch.Generator | None = None) -> Work:
        """Run the work and return what does the same to the same tensors again, drawing anew from `source`."""
        ...


class CudaGraphs:
    """Records CUDA graphs. They share their memory, so one is replayed at a time, and results lie outside of it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        cuda: Any = torch.cuda  # typed in part
        self._stream = cuda.Stream()

    def __call__(self, work: Work, source: torch.Generator | None = None) -> Work:
        """Implement `GraphRecorder`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        if source is not None:
            graph.register_generator_state(source)
        # What other threads do with the GPU meanwhile is none of its business.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CapturedEncoder:
    """The encoder and projector, recorded for one window."""

    @torch.inference_mode()
    def __init__(self, encoder: WindowEncoder, record: GraphRecorder) -> None:
        self._window = encoder.silence()
        self._encoded = encoder.plainly(self._window)
        self._replay = record(lambda: _put(self._encoded, encoder.plainly(self._window)))

    def encode(self, window: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (tokens, hidden), of a window, (mels, frames)."""
        self._window.copy_(window)
        self._replay()
        return self._encoded.clone()


def recordings(text: TextModel, cache: Cache) -> int:
    """Return how many recordings a `CapturedModel` makes: prefills, steps, and the choice."""
    return len(_prefill_shapes(text, cache)) + len(cache.buckets) + 1


class CapturedModel:
    """The text model's work with one cache, recorded. Hidden states and tokens hold until the next call."""

    @torch.inference_mode()
    def __init__(
        self,
        text: TextModel,
        cache: Cache,
        sampler: Sampler,
        record: GraphRecorder,
        done: Callable[[int], None] = lambda _: None,
        decode_layer: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        """Record everything; what the cache holds is overwritten.

        Args:
            sampler: chooses the tokens of all replies that are decoded in this way.
            done: told how much is recorded, of `recordings`.
            decode_layer: what a compiler made of `TextModel.decode_layer`, if anything.
        """
        self.sampler = sampler
        self._text, self._cache, self._decode_layer = text, cache, decode_layer
        self._extents = _prefill_extents(text, cache)
        device = text.device
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._start, self._last = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self._embeddings = text.embed(self._token.view(1)).expand(LENGTHS[-1], -1).clone()
        self._hidden = torch.zeros_like(self._embeddings[0])
        self._logits = text.head(self._hidden)
        self._record_all(record, done)

    def prefill(self, embeddings: torch.Tensor, start: int) -> torch.Tensor | None:
        """Feed up to 512 embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,).

        Returns:
            None where nothing was fed, because the cache has no room for the padding.
        """
        fed = embeddings.shape[0]
        length = next(length for length in LENGTHS if length >= fed)
        extent = next((extent for extent in self._extents if extent >= start + length), None)
        if extent is None:
            return None
        self._embeddings[:fed].copy_(embeddings)
        self._start.fill_(start)
        self._last.fill_(fed - 1)
        self._prefills[length, extent]()
        return self._hidden

    def step(self, token: torch.Tensor, place: int) -> torch.Tensor:
        """Feed a token, (1, 1), at position `place`; return the logits, (vocabulary,), of the next."""
        self._token.copy_(token)
        self._start.fill_(place)
        self._steps[self._cache.bucket(place + 1)]()
        return self._logits

    def next(self, token: torch.Tensor, place: int, sampler: Sampler) -> torch.Tensor:
        """Feed a token, (1, 1), at position `place`; return the one after it, (1, 1), and have the chooser tell it."""
        logits = self.step(token, place)
        if sampler is not self.sampler:
            return sampler.sample_and_publish(logits)
        self._choose()
        return self._token

    def _record_all(self, record: GraphRecorder, done: Callable[[int], None]) -> None:
        numbers = count(1)

        def recorded(work: Work, source: torch.Generator | None = None) -> Work:
            replay = record(work, source)
            done(next(numbers))
            return replay

        shapes = _prefill_shapes(self._text, self._cache)
        self._prefills = {shape: recorded(self._prefill_work(*shape)) for shape in shapes}
        self._steps = {extent: recorded(self._step_work(extent)) for extent in self._cache.buckets}
        self._choose = recorded(self._sample_work, self.sampler.source)

    def _prefill_work(self, length: int, extent: int) -> Work:
        def work() -> None:
            embeddings = self._embeddings[:length]
            hidden = self._text.prefill_anywhere(embeddings, self._start, self._last, self._cache, extent)
            _put(self._hidden, hidden)

        return work

    def _sample_work(self) -> None:
        _put(self._token, self.sampler.sample_and_publish(self._logits))

    def _step_work(self, extent: int) -> Work:
        def work() -> None:
            logits = self._text.step(
                self._token, self._start, self._cache, extent, masked=True, through=self._decode_layer
            )
            _put(self._logits, logits)

        return work


def _prefill_extents(text: TextModel, cache: Cache) -> list[int]:
    """Return how many positions of the cache recordings read; with flash attention, one reads what it needs."""
    return [cache.capacity] if text.attention is attention.flash else cache.buckets


def _prefill_shapes(text: TextModel, cache: Cache) -> list[tuple[int, int]]:
    """Return (length, extent) of each prefill; large ones first, as their memory is used again by the smaller ones."""
    extents = _prefill_extents(text, cache)[::-1]
    return [(length, extent) for extent in extents for length in LENGTHS[::-1] if length <= extent]


def _put(target: torch.Tensor, result: torch.Tensor) -> None:
    target.copy_(result)
