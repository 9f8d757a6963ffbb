"""The random replica of Mini's checkpoint: what is in it, and that it loads as a released one does."""

from math import prod
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from benchmarks import replica  # noqa: E402 - needs torch
from voxcli.engines.voxtral.checkpoint import catalog, files  # noqa: E402
from voxcli.hub.cache import Hub  # noqa: E402

TINY = replica.SHAPES["tiny"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replica.write(tmp_path_factory.mktemp("replica") / "digits", TINY, "digits")


def test_mini_has_the_published_weights() -> None:
    weights = list(replica.weights(replica.SHAPES["mini"]))
    assert len(weights) == 762
    assert sum(prod(weight.shape) for weight in weights) == 4_676_271_104
    assert sum(weight.bytes for weight in weights) == pytest.approx(9.35e9, rel=1e-3)


def test_a_replica_lacks_nothing_and_has_nothing_more(digits: Path) -> None:
    _, report = transformers.VoxtralForConditionalGeneration.from_pretrained(
        digits, local_files_only=True, output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert files.inspect(digits).parameters == sum(prod(weight.shape) for weight in replica.weights(TINY))


def test_the_same_bytes_are_written_again(digits: Path, tmp_path: Path) -> None:
    again = replica.write(tmp_path / "again", TINY, "digits")
    names = {path.name for path in digits.iterdir()}
    assert {path.name for path in again.iterdir()} == names
    assert all((again / name).read_bytes() == (digits / name).read_bytes() for name in names)


def test_no_two_rows_of_the_head_are_alike() -> None:
    """Equal rows would be equal logits, and which of two equal ones is chosen depends on the kernel."""
    shape = replica.SHAPES["mini"]
    starts = {row * shape.width % replica.POOL_VALUES for row in range(shape.vocabulary)}
    assert len(starts) == shape.vocabulary


@pytest.mark.parametrize("kind", ["tekken", "digits"])
def test_the_short_name_resolves_to_it_offline(kind: replica.TokenizerKind, tmp_path: Path) -> None:
    if kind == "tekken":
        pytest.importorskip("mistral_common")
    folder = replica.write(tmp_path / "files", TINY, kind)
    linked = replica.link_into_hub_cache(folder, tmp_path / "hub")
    assert catalog.locate("mini", Hub(cache=tmp_path / "hub")) == linked


def test_ids_are_read_from_the_text_of_a_reply(digits: Path) -> None:
    from benchmarks.checks.lab import ids_in, text_of
    from voxcli.engines.voxtral.tokenizer import TextStream, plain_ids, wrap

    processor: Any = transformers.VoxtralProcessor.from_pretrained(digits, local_files_only=True)
    tokenizer = wrap(processor.tokenizer)
    ids = [1256, 2047, 1999]
    stream = TextStream(tokenizer)
    text = "".join(stream.add(token_id) for token_id in ids)
    assert ids_in(text) == ids
    assert text == text_of(ids)
    assert plain_ids(tokenizer, text) == ids, "so a conversation goes on from what was generated"
    assert b"".join(map(tokenizer.token_bytes, plain_ids(tokenizer, "é </s> 70000"))).decode() == "é </s> 70000"
    assert {tokenizer.controls[name] for name in ("<s>", "[AUDIO]", "[BEGIN_AUDIO]")} == {1, 24, 25}
