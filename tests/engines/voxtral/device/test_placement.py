"""Which device, number format and context, on machines that are made up."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.machines import GENERATIONS, NO_CUDA, OLD_TORCH_MPS, card, gpu, mac, machine
from voxcli.engines.voxtral.checkpoint.shapes import MINI_PARAMETERS, PUBLISHED, Shape
from voxcli.engines.voxtral.device.demand import Demand, Use, cache_bytes_per_token, demand, demand_of
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import GB, Hardware
from voxcli.engines.voxtral.device.placement import Placement, Wanted, needed_bytes, place, plan, statement
from voxcli.errors import ConfigError, ModelError

MINI, SMALL = demand_of(PUBLISHED["mini"]), demand_of(PUBLISHED["small"])
CONTEXT, REPLY = 8192, 256  # the defaults
DOCS = Path(__file__).parent.parent.parent.parent.parent / "docs" / "engines.md"


def planned(hardware: Hardware, needs: Demand = MINI, device: str = "auto", quantize: Asked = "auto") -> Placement:
    return plan(Wanted(device, quantize, CONTEXT, REPLY), hardware, needs)


# --- The table in the documentation --------------------------------------------------------------


def cell(needs: Demand, gibibytes: int, generation: str) -> str:
    hardware = machine(card(gibibytes, generation))
    try:
        where = planned(hardware, needs)
    except ModelError:
        return "does not fit"
    context = "" if where.context_tokens == CONTEXT else f", {where.context_tokens // 100 * 100} tokens"
    return f"{where.format_name}{context}"


def table() -> str:
    rows = ["| GPU memory | Mini | Mini on Turing | Small |", "|---|---|---|---|"]
    for size in (4, 6, 8, 10, 12, 16, 24, 32, 48, 80):
        cells = cell(MINI, size, "Ampere"), cell(MINI, size, "Turing"), cell(SMALL, size, "Ampere")
        rows.append(f"| {size} GB | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_documentation_has_the_table_that_the_code_makes() -> None:
    assert table() in DOCS.read_text(encoding="utf-8"), f"put this into {DOCS}:\n{table()}"


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("gibibytes", [4, 6, 8, 10, 12, 16, 24])
def test_what_is_placed_fits_and_what_is_refused_says_so(gibibytes: int, generation: str) -> None:
    hardware = machine(card(gibibytes, generation))
    if gibibytes == 4:
        with pytest.raises(ModelError, match="does not fit"):
            planned(hardware)
        return
    where = planned(hardware)
    assert where.device == "cuda:0"
    assert needed_bytes(where, MINI, hardware, REPLY) <= (hardware.cuda.free_bytes or 0)


# --- The order of preference ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "form", "context"),
    [
        (machine(gpu(24)), "none", CONTEXT),
        (machine(gpu(11.1)), "none", CONTEXT),
        (machine(gpu(11.0)), "int8", CONTEXT),
        (machine(gpu(7.8)), "int4", CONTEXT),
        (machine(gpu(6.0)), "int4", 4300),
    ],
)
def test_a_better_format_is_given_up_for_the_context_and_the_context_last(
    hardware: Hardware, form: str, context: int
) -> None:
    where = planned(hardware)
    assert where.form == form
    assert abs(where.context_tokens - context) < 300


@pytest.mark.parametrize(
    ("free_gb", "form", "shortened"),
    [(12.0, "none", False), (10.6, "none", True), (9.5, "int8", False), (5.7, "int4", True)],
)
def test_where_quantizing_is_slower_a_shorter_context_comes_first(free_gb: float, form: str, shortened: bool) -> None:
    where = planned(mac(free_gb))
    assert (where.device, where.form) == ("mps", form)
    assert (where.context_tokens < CONTEXT) is shortened


@pytest.mark.parametrize(
    ("ram_gb", "dtype", "form"),
    [
        (None, "float32", "none"),
        (32, "float32", "none"),
        (20, "bfloat16", "none"),
        (9, "bfloat16", "int8"),
        (7, "bfloat16", "int4"),
    ],
)
def test_on_a_cpu(ram_gb: float | None, dtype: str, form: str) -> None:
    where = planned(machine(gpu(4), ram_gb=ram_gb), device="cpu")
    assert (where.device, where.dtype, where.form) == ("cpu", dtype, form)


def test_auto_takes_the_first_of_cuda_mps_and_cpu_that_torch_can_use() -> None:
    assert planned(machine(gpu(24))).device == "cuda:0"
    assert planned(mac(24)).device == "mps"
    assert planned(machine()).device == "cpu"
    assert planned(machine(mps=OLD_TORCH_MPS)).device == "cpu"


def test_memory_that_is_not_known_is_enough() -> None:
    assert planned(machine(gpu(None))) == Placement("cuda:0", "bfloat16", "none", CONTEXT)


def test_turing_has_float16_and_needs_more_for_the_cache() -> None:
    turing, ampere = machine(card(6, "Turing")), machine(card(6))
    assert planned(turing).dtype == "float16"
    assert planned(turing).context_tokens < planned(ampere).context_tokens


def test_a_short_context_is_not_made_longer() -> None:
    assert plan(Wanted("auto", "auto", 512, REPLY), machine(gpu(24)), MINI).context_tokens == 512


# --- Requested formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["none", "int8", "int4"])
def test_a_format_that_is_asked_for_is_taken(form: Asked) -> None:
    assert planned(machine(gpu(24)), quantize=form).form == form


@pytest.mark.parametrize(
    ("hardware", "device", "why"),
    [
        (mac(24), "mps", "there is no compiler for Apple's GPUs"),
        (machine(gpu(24), has_triton=False), "cuda", "triton is not installed"),
    ],
)
def test_a_format_that_is_slower_is_refused(hardware: Hardware, device: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"int8 makes replies slower here: {why}") as caught:
        planned(hardware, device=device, quantize="int8")
    assert "the model fits in bfloat16" in caught.value.hint


def test_a_format_that_is_slower_is_taken_where_nothing_else_fits() -> None:
    assert planned(mac(8), quantize="int8").form == "int8"
    assert planned(machine(gpu(9), has_triton=False), quantize="int8").form == "int8"


def test_formats_with_kernels_of_torch_itself_need_no_compiler() -> None:
    assert planned(machine(), device="cpu", quantize="int8").form == "int8"
    assert planned(machine(gpu(9), has_triton=False)).form == "int4"
    assert planned(machine(gpu(9, "Turing"), has_triton=False)).form == "int8"
    with pytest.raises(ConfigError, match="int4 makes replies slower"):
        planned(machine(gpu(16, "Turing"), has_triton=False), quantize="int4")


@pytest.mark.parametrize(
    ("hardware", "why"),
    [
        (machine(gpu(24, "Ampere")), "older than compute capability 8.9"),
        (machine(gpu(24, "Ada"), has_triton=False), "triton is not installed"),
        (machine(), "needs an NVIDIA GPU"),
        (mac(24), "needs an NVIDIA GPU"),
    ],
)
def test_fp8_is_refused_where_it_can_not_be_compiled(hardware: Hardware, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        planned(hardware, quantize="fp8")


@pytest.mark.parametrize("generation", ["Ada", "Hopper"])
def test_fp8_where_it_can(generation: str) -> None:
    assert planned(machine(gpu(24, generation)), quantize="fp8").form == "fp8"


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "needs", "message", "hint"),
    [
        (machine(gpu(15)), SMALL, "16.6 GB in int4, .* 15.0 GB are free", "--model mini fits, in bfloat16"),
        (machine(gpu(4)), MINI, "4.7 GB in int4, .* 4.0 GB are free", "--device cpu fits, slowly"),
        (machine(gpu(4), ram_gb=3), MINI, r"into cuda:0 \(Ampere GPU\)", "--engine embedded"),
        (machine(ram_gb=4), MINI, "into memory: .* 4.7 GB in int4", "--engine embedded"),
        (machine(gpu(12), gpu(12, index=1)), SMALL, "16.6 GB", "--model mini fits"),
    ],
)
def test_what_does_not_fit_says_what_would(hardware: Hardware, needs: Demand, message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        planned(hardware, needs)
    assert hint in caught.value.hint


def test_the_model_that_did_not_fit_is_not_recommended() -> None:
    with pytest.raises(ModelError) as caught:
        planned(machine(gpu(9.36), ram_gb=3), quantize="none")
    assert "mini" not in caught.value.hint
    assert "--quantize auto fits: it takes int8" in caught.value.hint


def test_weights_that_leave_no_room_for_a_conversation_are_refused() -> None:
    with pytest.raises(ModelError, match=r"cache and work at least 0\.5 GB, 5\.0 GB are free"):
        planned(machine(ram_gb=5.0), device="cpu")


# --- Several GPUs --------------------------------------------------------------------------------


def test_plain_cuda_means_the_roomiest_gpu_and_a_number_the_one_that_it_names() -> None:
    two = machine(gpu(8), gpu(24, index=1))
    assert [planned(two, device=name).device for name in ("auto", "cuda", "cuda:0", "cuda:1")] == [
        *("cuda:1", "cuda:1", "cuda:0", "cuda:1")
    ]
    assert planned(two, device="cuda:0").form == "int8"


def test_a_gpu_that_is_not_there_is_wrong_usage_and_those_that_are_get_named() -> None:
    with pytest.raises(ConfigError, match="no GPU cuda:2") as caught:
        planned(machine(gpu(8), gpu(24, index=1)), device="cuda:2")
    assert caught.value.hint == "there is cuda:0 Ampere GPU (8.0 GB free), cuda:1 Ampere GPU (24.0 GB free)"


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", "cpu:0"])
def test_an_unknown_device_is_wrong_usage(name: str) -> None:
    for hardware in (machine(), machine(gpu(8))):
        with pytest.raises(ConfigError, match="there is no device"):
            planned(hardware, device=name)


def test_a_device_that_torch_can_not_use_says_why() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ModelError, match=NO_CUDA.problem):
            planned(machine(), device=name)
    with pytest.raises(ModelError, match="too old for Apple") as caught:
        planned(machine(mps=OLD_TORCH_MPS), device="mps")
    assert "--upgrade torch" in caught.value.hint


def test_another_gpu_that_has_room_is_named() -> None:
    with pytest.raises(ModelError) as caught:
        planned(machine(gpu(4), gpu(24, index=1)), device="cuda:0")
    assert "--device cuda:1 has more room" in caught.value.hint


def test_a_model_for_two_gpus_is_referred_to_a_server() -> None:
    big = demand(Shape(), MINI_PARAMETERS * 3)
    with pytest.raises(ModelError) as caught:
        planned(machine(gpu(16), gpu(16, index=1)), big, quantize="int4")
    assert "--model mini" in caught.value.hint
    no_mini = demand(Shape(), 4_676_271_103)
    with pytest.raises(ModelError) as caught:
        planned(machine(gpu(4), gpu(4, index=1), ram_gb=2), no_mini)
    assert "--tensor-parallel-size 2" in caught.value.hint
    assert "--engine remote" in caught.value.hint


# --- Counting ------------------------------------------------------------------------------------


def test_the_cache_of_the_real_models() -> None:
    mini = SimpleNamespace(num_hidden_layers=30, num_key_value_heads=8, head_dim=128)
    assert cache_bytes_per_token(mini, 2) == 122_880


def test_what_mini_needs_follows_from_its_configuration() -> None:
    """The weights and the cache exactly; the work within what a layer and a window make plausible."""
    plain = Use("bfloat16")
    assert MINI.weights(plain) == 2 * 4_676_271_104
    assert (MINI.token_values, MINI.least_tokens) == (61_440, 375 + 512)
    assert 0.1 * GB < MINI.work(plain) < GB
    assert MINI.bytes(plain, 1000) == MINI.weights(plain) + MINI.work(plain) + 1000 * 122_880


def test_quantizing_needs_a_layer_and_rows_in_float32_for_a_moment() -> None:
    """It counts where it is more than what the cache and a pass need."""
    int8 = Use("bfloat16", "int8")
    layer, rounding = 213_909_504, 3 * 4 * (1 << 23)
    assert MINI.bytes(int8, 0) == MINI.weights(int8) + max(MINI.work(int8), layer + rounding)
    assert MINI.bytes(int8, CONTEXT) == MINI.weights(int8) + MINI.work(int8) + CONTEXT * 122_880


@pytest.mark.parametrize("use", [Use("bfloat16"), Use("float16", masked=True), Use("bfloat16", "int4", fixed_bytes=GB)])
def test_as_many_tokens_as_there_is_room_for_fit_exactly(use: Use) -> None:
    free = 12 * GB
    tokens = MINI.tokens(use, free)
    assert MINI.bytes(use, tokens) <= free < MINI.bytes(use, tokens + 1)
    assert MINI.tokens(use, GB) < 0


def test_what_is_needed_is_said_in_numbers() -> None:
    where = Placement("cuda:0", "bfloat16", "int8", CONTEXT)
    assert statement(where, MINI, CONTEXT + REPLY, machine(gpu(24))) == (
        "loading 6.1 GB of weights in int8, 1.0 GB of cache for 8448 tokens, and up to 0.7 GB to work with, on cuda:0; "
        "24.0 GB are free"
    )
    assert statement(Placement("cpu", "float32"), MINI, 8448, machine(ram_gb=None)).endswith("on cpu")


def test_weights_alone() -> None:
    assert place("cuda", machine(gpu(10)), MINI_PARAMETERS) == Placement("cuda:0", "bfloat16")
    assert place("cpu", machine(ram_gb=16), MINI_PARAMETERS) == Placement("cpu", "bfloat16")
    with pytest.raises(ModelError, match=r"need 9\.4 GB, 8\.0 GB are free"):
        place("cuda", machine(gpu(8)), MINI_PARAMETERS)
