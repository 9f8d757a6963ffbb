"""Reads the header of a GGUF file: what kind of model it holds, before llama.cpp loads it.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxcli.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Codes of struct for the types of values, by GGUF's number of the type.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LONGEST_ARRAY_KEPT = 1024  # longer arrays hold the vocabulary, which nothing here needs
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # llama.cpp's names of the parts of a split model
CHOOSE = "choose an instruct or chat model in one GGUF file"
CACHE_VALUE_BYTES = 2  # llama.cpp keeps keys and values in float16


@dataclass(frozen=True)
class Header:
    """The metadata of a GGUF file, without the vocabulary, and the number of its parameters."""

    metadata: dict[str, Any]
    parameters: int
    file_bytes: int

    @property
    def context_tokens(self) -> int:
        """The longest context that the model was trained on, in tokens; 0 if the file does not say."""
        return int(self._architecture("context_length", 0))

    @property
    def has_chat_template(self) -> bool:
        return bool(self.metadata.get("tokenizer.chat_template"))

    @property
    def licence(self) -> str:
        return str(self.metadata.get("general.license") or "unknown")

    @property
    def name(self) -> str:
        """The model's name; empty if the file does not say."""
        return str(self.metadata.get("general.name") or "")

    @property
    def is_part(self) -> bool:
        """Whether this is one of several files of a model."""
        return int(self.metadata.get("split.count") or 0) > 1

    @property
    def makes_embeddings(self) -> bool:
        """Whether the model turns text into vectors and can't write any."""
        pools = int(self._architecture("pooling_type", 0)) > 0
        return pools or self._architecture("attention.causal", True) is False

    def cache_bytes(self, context_tokens: int) -> int:
        """Return the bytes of keys and values of so many tokens, if every layer attends to all of them."""
        layers, heads = int(self._architecture("block_count", 0)), int(self._architecture("attention.head_count", 1))
        found = self._architecture("attention.head_count_kv", heads)
        kv_heads = sum(found) if isinstance(found, list) else int(found) * layers
        size = int(self._architecture("embedding_length", 0)) // max(heads, 1)
        width = sum(int(self._architecture(f"attention.{kind}_length", size)) for kind in ("key", "value"))
        return kv_heads * width * CACHE_VALUE_BYTES * context_tokens

    def _architecture(self, key: str, default: Any) -> Any:
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", default)


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        ModelError: it can't be read, is no GGUF file, or ends within the header.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file", hint=CHOOSE)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", hint="check the path of the GGUF file") from error
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{path} is not a whole GGUF file", hint="fetch it again, or copy it again") from error


def check_answers(path: Path, header: Header) -> None:
    """Raise ModelError if a model can't be talked with."""
    if header.is_part or PART.search(path.name):
        raise split_error(str(path))
    if header.makes_embeddings:
        raise ModelError(f"{path} makes embeddings of text and can't answer", hint=CHOOSE)
    if not header.has_chat_template:
        raise ModelError(f"{path} has no chat template, so it can't be talked with", hint=CHOOSE)


def split_error(name: str) -> ModelError:
    """Return the error for one of several files of a model."""
    return ModelError(f"{name} is one part of several", hint="join them with llama-gguf-split --merge, or " + CHOOSE)


class _Reader:
    """Reads values one after the other; raises struct.error or ValueError past the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def header(self) -> Header:
        if self._number("I") not in VERSIONS:
            raise ValueError("unknown version")
        tensors, keys = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(keys):
            name = self._string()
            metadata[name] = self._value(self._number("I"))
        return Header(metadata, sum(self._tensor_values() for _ in range(tensors)), len(self._data))

    def _tensor_values(self) -> int:
        self._string()
        shape = [self._number("Q") for _ in range(self._number("I"))]
        self._number("I")
        self._number("Q")
        return math.prod(shape)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(SCALARS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner == ARRAY:
            raise ValueError("arrays of arrays are used by no model")
        if inner in SCALARS and count > LONGEST_ARRAY_KEPT:
            self._skip(struct.calcsize(SCALARS[inner]) * count)
            return None
        if inner == STRING and count > LONGEST_ARRAY_KEPT:
            self._skip_strings(count)
            return None
        return [self._value(inner) for _ in range(count)]

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        start = self._at + struct.calcsize("<Q")
        self._skip(self._number("Q"))
        return self._data[start : self._at].decode("utf-8", "replace")

    def _skip_strings(self, count: int) -> None:
        length, at = struct.Struct("<Q"), self._at
        for _ in range(count):
            at += length.size + length.unpack_from(self._data, at)[0]
        self._skip(at - self._at)

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("the file ends too early")
