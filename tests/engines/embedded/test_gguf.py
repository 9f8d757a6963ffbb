"""GGUF files: what their headers say, and which are refused before llama.cpp loads them."""

import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.gguf_files import CHAT, gguf
from voxcli.config.paths import cache_folder
from voxcli.engines.embedded import weights
from voxcli.engines.embedded.answering import check_memory
from voxcli.engines.embedded.gguf import check_answers, read_header
from voxcli.errors import ModelError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_header_of_the_model_that_comes_with_the_engine() -> None:
    path = weights.prepare(cache_folder()) / "smollm2.gguf"
    header = read_header(path)
    assert header.parameters == 134_515_008
    assert (header.context_tokens, header.licence, header.file_bytes) == (8192, "apache-2.0", path.stat().st_size)
    # 30 layers with 3 heads of 64 values, for keys and for values, in two bytes each
    assert header.cache_bytes(10) == 30 * 3 * 64 * 2 * 2 * 10
    check_answers(path, header)


def test_parameters_are_counted_and_long_arrays_skipped(path: Path) -> None:
    metadata = {"tokens": [f"t{n}" for n in range(5000)], "types": list(range(5000)), "few": [1, 2], **CHAT}
    path.write_bytes(gguf(metadata, ((3, 5), (7,))))
    header = read_header(path)
    assert (header.parameters, header.context_tokens) == (22, 2048)
    assert (header.metadata["tokens"], header.metadata["types"], header.metadata["few"]) == (None, None, [1, 2])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", b"GGU"], ids=["empty", "zip", "short"])
def test_a_file_that_is_not_gguf_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a GGUF file"):
        read_header(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_header_is_refused(path: Path, share: float) -> None:
    whole = gguf({"names": ["a", "b"], **CHAT}, ((3, 5),))
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"not a (whole )?GGUF file"):
        read_header(path)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, (1 << 64) - 1),
        struct.pack("<4sIQQ", b"GGUF", 3, (1 << 64) - 1, 0),
        struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 99),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1 << 60),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 4, 1 << 62),
    ],
    ids=["version", "long name", "many tensors", "type", "nested arrays", "long array"],
)
def test_a_damaged_header_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content + b"\0" * 8)
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        read_header(path)


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({**CHAT, "split.count": 3}, "one part of several"),
        ({**CHAT, "llama.pooling_type": 2}, "embeddings"),
        ({**CHAT, "llama.attention.causal": False}, "embeddings"),
        ({"general.architecture": "llama"}, "no chat template"),
        ({**CHAT, "tokenizer.chat_template": ""}, "no chat template"),
    ],
)
def test_a_model_that_can_not_be_talked_with_is_refused(path: Path, metadata: dict[str, Any], why: str) -> None:
    path.write_bytes(gguf(metadata))
    with pytest.raises(ModelError, match=why):
        check_answers(path, read_header(path))


def test_a_part_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00003.gguf"
    path.write_bytes(gguf(CHAT))
    with pytest.raises(ModelError, match="one part of several") as caught:
        check_answers(path, read_header(path))
    assert "llama-gguf-split --merge" in caught.value.hint


def test_a_model_too_big_for_the_memory_is_refused(path: Path) -> None:
    path.write_bytes(gguf(CHAT))
    check_memory(path, read_header(path), 100, free=lambda: 1_000_000_000)
    check_memory(path, read_header(path), 100, free=lambda: None)
    with pytest.raises(ModelError, match=r"needs .* GB of memory, and 0.0 GB are free"):
        check_memory(path, read_header(path), 100, free=lambda: 1_000_000)
