"""The shape of a Voxtral model as given by its `config.json`, for counting bytes before it is loaded.

Names are those of transformers' `VoxtralConfig`, so functions that count accept both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AudioShape:
    """The audio encoder. The defaults are those of Whisper large-v3, as in all released models."""

    num_hidden_layers: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 5120
    max_source_positions: int = 1500


@dataclass(frozen=True)
class TextShape:
    """The text model. The defaults are those of Voxtral-Mini-3B-2507."""

    num_hidden_layers: int = 30
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 131_072


@dataclass(frozen=True)
class Shape:
    """A whole model."""

    audio_config: AudioShape = AudioShape()
    text_config: TextShape = TextShape()


@dataclass(frozen=True)
class Model:
    """A shape and its number of values."""

    shape: Shape
    parameters: int


SMALL = Shape(text_config=TextShape(num_hidden_layers=40, hidden_size=5120, intermediate_size=32_768))
# The 2507 models, by the short names of `kinds.KNOWN`.
PUBLISHED = {"mini": Model(Shape(), 4_676_271_104), "small": Model(SMALL, 24_261_800_960)}
MINI_PARAMETERS = PUBLISHED["mini"].parameters


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the shape in the content of a `config.json`; missing values are those of Mini."""
    return Shape(
        AudioShape(**_numbers(AudioShape, config.get("audio_config"))),
        TextShape(**_numbers(TextShape, config.get("text_config"))),
    )


def read_shape(config_json: Path) -> Shape:
    """Return the shape in a `config.json`. Raises OSError and ValueError if it can't be read."""
    return shape_of(_content(config_json))


def stored_value_bytes(config_json: Path) -> int:
    """Return the bytes of a value in the files of a checkpoint. Raises as `read_shape`."""
    config = _content(config_json)
    text = config.get("text_config")
    said = [config.get("dtype"), config.get("torch_dtype"), text.get("dtype") if isinstance(text, dict) else None]
    return 4 if "float32" in said else 2


def _content(config_json: Path) -> dict[str, Any]:
    content = json.loads(config_json.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _numbers(kind: type, said: object) -> dict[str, int]:
    names = {field.name for field in fields(kind)}
    given = said if isinstance(said, dict) else {}
    return {name: value for name, value in given.items() if name in names and isinstance(value, int) and value > 0}
