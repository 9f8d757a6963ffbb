"""The work of a turn, captured once in a few fixed shapes and replayed from then on.

    encode    one window of mel frames to embeddings
    prefill   16 to 512 embeddings, at any position
    step      one token to logits, for each bucket of the cache
    sample    logits to the next token, and whether the reply ends with it

Captured work reads its inputs from buffers at fixed addresses and reads no value back; a replay first copies
new values into the buffers. On a GPU a capture is a CUDA graph: one launch instead of some hundreds.
`compare` checks captured work against the plain pass.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import torch

from voxcli.engines.voxtral.runtime import attention
from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampler
from voxcli.engines.voxtral.runtime.text_model import TextModel

LENGTHS = (16, 64, 128, 256, 384, 512)  # tokens of a padded prefill; one window and a few words take 384
WARM_RUNS = 2  # runs before a capture: libraries choose algorithms and allocate workspaces in their first calls

SEED = 7
TOKENS_BEFORE = 16  # tokens in the cache before the compared ones
COUNTS = (1, 16)  # tokens of a compared prefill; attention has kernels of its own for one query
# Largest norm of a difference over the norm, in epsilons of the number format. In bfloat16, logits of random
# models of 30 layers differ from float32 by 1 to 8 % (2 to 10 epsilons, on a CPU).
ROUNDING = 32
LEAST = 1e-3  # the same in float32, which a GPU may multiply in a shorter format

Work = Callable[[], None]


class DifferenceError(Exception):
    """Captured work computes something else than the plain pass."""


class GraphRecorder(Protocol):
    """Captures work."""

    def __call__(self, work: Work, source: torch.Generator | None = None) -> Work:
        """Run the work; return a function that repeats it on the same tensors, with new random numbers of `source`."""
        ...


class CudaGraphs:
    """Captures CUDA graphs. They share one memory pool, so one is replayed at a time and results lie outside it."""

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
        # With "thread_local", work that other threads launch meanwhile is no error.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CapturedEncoder:
    """The encoder and projector, captured for one window."""

    @torch.inference_mode()
    def __init__(self, model: SharedModel, record: GraphRecorder) -> None:
        self._window = model.silent_window()
        self._encoded = model.encode(self._window[None])
        self._replay = record(lambda: _put(self._encoded, model.encode(self._window[None])))

    def encode(self, window: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (tokens, hidden), of a window, (mels, frames)."""
        self._window.copy_(window)
        self._replay()
        return self._encoded.clone()


def captures(text: TextModel, cache: Cache) -> int:
    """Return the number of captures that a `CapturedModel` makes: prefills, steps and the sampler."""
    return len(_prefill_shapes(text, cache)) + len(cache.buckets) + 1


class CapturedModel:
    """The text model's work with one cache, captured. Returned hidden states and tokens hold until the next call."""

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
        """Capture everything; overwrites what the cache holds.

        Args:
            sampler: samples the tokens of all replies that are decoded with these captures.
            done: called with the number of captures made, of `captures`.
            decode_layer: the compiled `TextModel.decode_layer`; None for the plain one.
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
        self._capture_all(record, done)

    def prefill(self, embeddings: torch.Tensor, start: int) -> torch.Tensor | None:
        """Feed up to 512 embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,).

        Returns:
            None where the cache has no room for the padding; nothing was fed then.
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
        """Feed a token, (1, 1), at position `place`; return the next one, (1, 1), published by the sampler."""
        logits = self.step(token, place)
        if sampler is not self.sampler:
            return sampler.sample_and_publish(logits)
        self._sample()
        return self._token

    def _capture_all(self, record: GraphRecorder, done: Callable[[int], None]) -> None:
        numbers = count(1)

        def captured(work: Work, source: torch.Generator | None = None) -> Work:
            replay = record(work, source)
            done(next(numbers))
            return replay

        shapes = _prefill_shapes(self._text, self._cache)
        self._prefills = {shape: captured(self._prefill_work(*shape)) for shape in shapes}
        self._steps = {extent: captured(self._step_work(extent)) for extent in self._cache.buckets}
        self._sample = captured(self._sample_work, self.sampler.source)

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
    """Return how many positions of the cache captured prefills read; FlashAttention reads only filled ones."""
    return [cache.capacity] if text.attention is attention.flash else cache.buckets


def _prefill_shapes(text: TextModel, cache: Cache) -> list[tuple[int, int]]:
    """Return (length, extent) of each prefill, large ones first, because smaller ones then reuse their memory."""
    extents = _prefill_extents(text, cache)[::-1]
    return [(length, extent) for extent in extents for length in LENGTHS[::-1] if length <= extent]


def _put(target: torch.Tensor, result: torch.Tensor) -> None:
    target.copy_(result)


@torch.inference_mode()
def compare(model: SharedModel, cache: Cache, captured: CapturedModel, captured_encoder: CapturedEncoder) -> None:
    """Compare captured work with the plain pass: prefills, a step in each bucket, and the encoder on noise.

    Overwrites what the cache holds.

    Raises:
        DifferenceError: they differ by more than rounding.
    """
    text, source = model.text, torch.Generator().manual_seed(SEED)
    ids = torch.randint(text.modules.embed_tokens.num_embeddings, (TOKENS_BEFORE + max(COUNTS),), generator=source)
    embeddings = text.embed(ids.to(text.device))
    before, after = embeddings[:TOKENS_BEFORE], embeddings[TOKENS_BEFORE:]
    if cache.capacity > len(ids):
        text.prefill(before, 0, cache)
        for count in COUNTS:
            _compare_prefill(text, cache, captured, after[:count], TOKENS_BEFORE)
        _compare_prefill(text, cache, captured, after, cache.capacity - len(after))
    for extent in cache.buckets:
        _compare_step(text, cache, captured, ids[:1, None].to(text.device), extent)
    noise = torch.randn(model.silent_window().shape, generator=source).to(text.device)
    _check(captured_encoder.encode(noise), model.encode(noise[None]), "the encoder")


def _compare_prefill(
    text: TextModel, cache: Cache, captured: CapturedModel, embeddings: torch.Tensor, start: int
) -> None:
    count = embeddings.shape[0]
    written = cache.memory[:, :, :, start : start + count]
    expected, kept = text.prefill(embeddings, start, cache), written.clone()
    found = captured.prefill(embeddings, start)
    if found is not None:
        _check(found, expected, f"a prefill of {count}")
        _check(written, kept, f"the keys and values of {count}")


def _compare_step(text: TextModel, cache: Cache, captured: CapturedModel, token: torch.Tensor, extent: int) -> None:
    place = torch.full((1,), extent - 1, device=text.device)
    expected = text.step(token, place, cache, extent, masked=True)
    _check(captured.step(token, extent - 1), expected, f"a step over {extent}")


def _check(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Raise DifferenceError for a result beyond rounding, or one that is not a number."""
    apart = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
    if not apart <= max(LEAST, ROUNDING * torch.finfo(expected.dtype).eps):
        raise DifferenceError(f"{what} is {float(apart):.1%} apart")
