"""Compares what was captured with the plain pass, on a few tokens and a window of noise."""

import torch

from voxcli.engines.voxtral.runtime.cuda_graphs import CapturedEncoder, CapturedModel
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.text_model import TextModel

SEED = 7
BEFORE = 16  # tokens in the cache before those that are compared
COUNTS = (1, 16)  # tokens of a prefill; attention has kernels of its own for one query
# Most that rounding may make of the norm of a difference over the norm, in epsilons of the number format. The
# logits of random models of 30 layers are 1 to 8 % from float32 in bfloat16 (2 to 10 epsilons, on a CPU).
ROUNDING = 32
LEAST = 1e-3  # the same in float32, where a GPU may multiply in a shorter format


class DifferenceError(Exception):
    """What was captured computes something else than the plain pass."""


@torch.inference_mode()
def compare(
    text: TextModel, cache: Cache, captured: CapturedModel, encoder: WindowEncoder, captured_encoder: CapturedEncoder
) -> None:
    """Compare all that attention and the compiler make different: prefills, a step in each bucket, the encoder.

    Overwrites what the cache holds.

    Raises:
        DifferenceError: they differ by more than rounding.
    """
    source = torch.Generator().manual_seed(SEED)
    ids = torch.randint(text.modules.embed_tokens.num_embeddings, (BEFORE + max(COUNTS),), generator=source)
    embeddings = text.embed(ids.to(text.device))
    before, after = embeddings[:BEFORE], embeddings[BEFORE:]
    if cache.capacity > len(ids):
        text.prefill(before, 0, cache)
        for count in COUNTS:
            _compare_prefill(text, cache, captured, after[:count], BEFORE)
        _compare_prefill(text, cache, captured, after, cache.capacity - len(after))
    for extent in cache.buckets:
        _compare_step(text, cache, captured, ids[:1, None].to(text.device), extent)
    noise = torch.randn(encoder.silence().shape, generator=source).to(text.device)
    _check(captured_encoder.encode(noise), encoder.plainly(noise), "the encoder")


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
    """Raise where a result is another one, or no number."""
    apart = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
    if not apart <= max(LEAST, ROUNDING * torch.finfo(expected.dtype).eps):
        raise DifferenceError(f"{what} is {float(apart):.1%} apart")
