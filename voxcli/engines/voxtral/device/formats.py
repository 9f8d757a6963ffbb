"""The number formats of the weights, and the bytes of a model in each of them.

Only the four large matrices of each text layer are quantized: fused queries, keys and values; the attention's
output; fused gate and up; down. All other weights keep the model's own format. Sizes are computed from a
`VoxtralConfig` without torch, before anything is loaded.
"""

from typing import Any, Literal

Format = Literal["none", "int8", "fp8", "int4"]
Asked = Literal["auto", "none", "int8", "fp8", "int4"]

ROUNDED_VALUES = 1 << 20  # values rounded at once, so that float32 copies stay small beside a layer
GROUP = 64  # values of a row that share a scale and a zero in int4; torch's kernels take 32, 64, 128 and 256


def stored_bytes(config: Any, parameters: int, bytes_per_value: int, form: Format) -> int:
    """Return the bytes of all weights on the device.

    Args:
        config: the model's `VoxtralConfig`.
        parameters: number of values in the checkpoint.
        bytes_per_value: bytes of an unquantized value; also of scales and zeros.
        form: the format of the large matrices of the text layers.
    """
    shapes = matrices(config)
    layers: int = config.text_config.num_hidden_layers
    replaced = layers * sum(rows * columns for rows, columns in shapes)
    return (parameters - replaced) * bytes_per_value + layers * sum(
        matrix_bytes(rows, columns, bytes_per_value, form) for rows, columns in shapes
    )


def largest_layer_bytes(config: Any, bytes_per_value: int) -> int:
    """Return the bytes of one unquantized text layer, which loading needs beside the stored weights."""
    return sum(rows * columns for rows, columns in matrices(config)) * bytes_per_value


def matrices(config: Any) -> tuple[tuple[int, int], ...]:
    """Return the shapes, (rows, columns), of the matrices in a text layer that are quantized."""
    text = config.text_config
    hidden, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return (queries + 2 * keys, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)


def matrix_bytes(rows: int, columns: int, bytes_per_value: int, form: Format) -> int:
    """Return the bytes of one matrix with its scales and zeros, which have the model's own format."""
    values = rows * columns
    if form == "none":
        return values * bytes_per_value
    if form == "int4":
        return values // 2 + 2 * values // GROUP * bytes_per_value
    return values + rows * bytes_per_value
