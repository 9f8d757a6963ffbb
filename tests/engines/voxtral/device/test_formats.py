"""How many bytes a model takes in each number format, against the published shapes of Voxtral Mini."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest

from voxcli.engines.voxtral.device import formats

MINI_PARAMETERS = 4_676_271_104
MINI: Any = SimpleNamespace(
    text_config=SimpleNamespace(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=30,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
)


@pytest.mark.parametrize(("form", "gigabytes"), [("none", 9.35), ("int8", 6.15), ("fp8", 6.15), ("int4", 4.74)])
def test_mini_takes_as_much_as_the_table_says(form: formats.Format, gigabytes: float) -> None:
    assert formats.stored_bytes(MINI, MINI_PARAMETERS, 2, form) / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_loading_holds_one_layer_on_top() -> None:
    layer = 3072 * (32 + 8 + 8) * 128 + 32 * 128 * 3072 + 3 * 3072 * 8192
    assert formats.largest_layer_bytes(MINI, 2) == 2 * layer


def test_what_is_not_quantized_keeps_its_size() -> None:
    layers = 30 * formats.largest_layer_bytes(MINI, 1)
    more = formats.stored_bytes(MINI, MINI_PARAMETERS + 1000, 2, "int4")
    assert more - formats.stored_bytes(MINI, MINI_PARAMETERS, 2, "int4") == 2000
    assert formats.stored_bytes(MINI, layers, 2, "int8") == layers + 30 * 2 * (6144 + 3072 + 16384 + 3072)


def test_auto_may_be_asked_for_but_is_no_format() -> None:
    assert set(get_args(formats.Asked)) == {"auto", *get_args(formats.Format)}
