"""Headers of GGUF files, without weights: for tests of what is refused before it is loaded."""

import struct
from collections.abc import Mapping
from typing import Any

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CHAT = {"general.architecture": "llama", "llama.context_length": 2048, "tokenizer.chat_template": TEMPLATE}


def written(value: Any) -> bytes:
    """Return a value in GGUF's form, with its type before it."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case str():
            return struct.pack("<IQ", 8, len(value.encode())) + value.encode()
        case list():
            items = [written(item) for item in value]
            return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    raise TypeError(value)


def gguf(metadata: Mapping[str, Any], shapes: tuple[tuple[int, ...], ...] = ()) -> bytes:
    """Return a GGUF header."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(metadata))]
    for name, value in metadata.items():
        parts += [struct.pack("<Q", len(name)), name.encode(), written(value)]
    for shape in shapes:
        parts += [struct.pack("<Q1sI", 1, b"w", len(shape)), struct.pack(f"<{len(shape)}QIQ", *shape, 0, 0)]
    return b"".join(parts)
