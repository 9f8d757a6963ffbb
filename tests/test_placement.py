"""Which device and number format, on machines that are made up."""

from types import SimpleNamespace
from typing import Any

import pytest

from voxcli.engines.placement import (
    GB,
    MINI_PARAMETERS,
    Accelerator,
    Demand,
    Hardware,
    Placement,
    cache_bytes_per_token,
    demand,
    fitting_context,
    place,
    ram_free_bytes,
    runs_on,
    statement,
)
from voxcli.errors import ConfigError, ModelError

SMALL_PARAMETERS = 24_260_000_000
NONE = Accelerator(problem="there is none", hint="use --device cpu")


def machine(cuda_gb: float | None = None, mps_gb: float | None = None, ram_gb: float | None = 64) -> Hardware:
    def gpu(gigabytes: float | None) -> Accelerator:
        return NONE if gigabytes is None else Accelerator(free_bytes=int(gigabytes * GB))

    return Hardware(gpu(cuda_gb), gpu(mps_gb), None if ram_gb is None else int(ram_gb * GB))


@pytest.mark.parametrize(
    ("asked", "hardware", "chosen"),
    [
        ("auto", machine(cuda_gb=24), Placement("cuda", "bfloat16")),
        ("auto", machine(mps_gb=24), Placement("mps", "bfloat16")),
        ("auto", machine(), Placement("cpu", "float32")),
        ("cpu", machine(cuda_gb=24), Placement("cpu", "float32")),
        ("cpu", machine(ram_gb=16), Placement("cpu", "bfloat16")),
        ("cpu", machine(ram_gb=None), Placement("cpu", "float32")),
        ("cuda", Hardware(Accelerator(dtype="float16", free_bytes=15 * GB), NONE, None), Placement("cuda", "float16")),
    ],
)
def test_the_choice(asked: str, hardware: Hardware, chosen: Placement) -> None:
    assert place(asked, hardware, MINI_PARAMETERS) == chosen


@pytest.mark.parametrize(
    ("asked", "hardware", "parameters", "message", "hint"),
    [
        ("cuda", machine(cuda_gb=24), SMALL_PARAMETERS, "need 48.5 GB, 24.0 GB are free", "--model mini fits"),
        ("auto", machine(cuda_gb=8), MINI_PARAMETERS, "need 9.4 GB, 8.0 GB are free", "--device cpu fits, slowly"),
        ("cuda", machine(cuda_gb=8, ram_gb=4), MINI_PARAMETERS, "need 9.4 GB", "--engine embedded"),
        ("cpu", machine(ram_gb=8), MINI_PARAMETERS, "fit into memory: .* 9.4 GB, 8.0 GB", "--engine embedded"),
        ("cpu", machine(ram_gb=32), SMALL_PARAMETERS, "fit into memory", "--model mini"),
        ("cuda", machine(), MINI_PARAMETERS, "there is none", "--device cpu"),
        ("mps", machine(), MINI_PARAMETERS, "there is none", "--device cpu"),
    ],
)
def test_what_does_not_fit_says_what_would(
    asked: str, hardware: Hardware, parameters: int, message: str, hint: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        place(asked, hardware, parameters)
    assert hint in caught.value.hint


def test_an_unknown_device_is_wrong_usage() -> None:
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        place("tpu", machine(), 1)


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_86"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((10, 0), ["sm_100", "sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((6, 1), ["sm_75", "sm_80", "compute_120"], False),
        ((8, 0), ["sm_86"], False),
        ((8, 0), ["gfx942", ""], False),
    ],
)
def test_which_gpus_a_build_of_torch_has_code_for(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert runs_on(capability, built_for) is runs


def test_the_cache_of_the_real_models() -> None:
    mini = SimpleNamespace(num_hidden_layers=30, num_key_value_heads=8, head_dim=128)
    assert cache_bytes_per_token(mini, 2) == 122_880


MINI = Demand(MINI_PARAMETERS, token_values=61_440, work_values=150_000_000, least_tokens=900)


def test_what_mini_needs_follows_from_its_configuration() -> None:
    """The cache exactly; the work within what a layer and a window make plausible."""
    audio = SimpleNamespace(max_source_positions=1500, hidden_size=1280, intermediate_size=5120)
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    text = SimpleNamespace(num_hidden_layers=30, hidden_size=3072, intermediate_size=8192, vocab_size=131_072, **heads)
    config = SimpleNamespace(audio_config=audio, text_config=text)
    found = demand(config, MINI_PARAMETERS, chunk_tokens=512, least_text_tokens=512)
    assert (found.token_values, found.least_tokens) == (61_440, 375 + 512)
    assert 0.1 * GB < found.work_values * 2 < GB
    assert found.bytes("bfloat16", 1000) == 2 * (MINI_PARAMETERS + 61_440_000 + found.work_values)


@pytest.mark.parametrize(
    ("free_gb", "context"),
    [(24.0, 8192), (10.0, 2516), (None, 8192)],  # 10 - 9.352 - 0.3 GB have room for 2832 tokens, less 256 of a reply
)
def test_the_context_is_fitted_to_the_free_memory(free_gb: float | None, context: int) -> None:
    free = None if free_gb is None else int(free_gb * GB)
    where = place("cuda", Hardware(Accelerator(free_bytes=free), NONE, None), MINI)
    found = fitting_context(where, MINI, free, 8192, 256)
    assert abs(found - context) < 100
    if free is not None:
        assert MINI.bytes("bfloat16", found + 256) <= free


def test_a_short_context_is_not_made_longer() -> None:
    assert fitting_context(Placement("cuda", "bfloat16"), MINI, 24 * GB, 512, 256) == 512


@pytest.mark.parametrize(
    ("asked", "hardware", "message"),
    [
        ("cuda", machine(cuda_gb=9.5), "need 9.4 GB, cache and work at least 0.4 GB, 9.5 GB are free"),
        ("cpu", machine(ram_gb=9.5), "fit into memory: .* 9.4 GB, cache and work at least 0.4 GB, 9.5 GB are free"),
    ],
)
def test_weights_that_leave_no_room_for_a_conversation_are_refused(
    asked: str, hardware: Hardware, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        place(asked, hardware, MINI)


def test_half_precision_is_taken_where_the_cache_would_not_fit_beside_full_precision() -> None:
    assert place("cpu", machine(ram_gb=19), MINI_PARAMETERS) == Placement("cpu", "float32")
    assert place("cpu", machine(ram_gb=19), MINI) == Placement("cpu", "bfloat16")


def test_what_is_needed_is_said_in_numbers() -> None:
    said = statement(Placement("cuda", "bfloat16"), MINI, 8448, 24 * GB)
    assert said == (
        "loading 9.4 GB of weights, 1.0 GB of cache for 8448 tokens, and up to 0.3 GB to work with, on cuda; "
        "24.0 GB are free"
    )
    assert statement(Placement("cpu", "float32"), MINI, 8448, None).endswith("on cpu")


def fake_torch(**parts: Any) -> Any:
    """A torch without any GPU; `parts` stand in for its modules."""
    none = SimpleNamespace(is_built=lambda: False, is_available=lambda: False)
    given = {
        "__version__": "2.13.0+cpu",
        "version": SimpleNamespace(hip=None),
        "backends": SimpleNamespace(cuda=none, mps=none),
    }
    return SimpleNamespace(**{**given, **parts})


def cuda_build(**cuda: Any) -> Any:
    built = SimpleNamespace(is_built=lambda: True, is_available=lambda: False)
    given = {
        "init": lambda: None,
        "get_device_capability": lambda: (8, 0),
        "get_device_name": lambda: "GPU 1",
        "get_arch_list": lambda: ["sm_80"],
        "is_bf16_supported": lambda **_: True,
        "mem_get_info": lambda: (5, 9),
    }
    return fake_torch(backends=SimpleNamespace(cuda=built, mps=built), cuda=SimpleNamespace(**{**given, **cuda}))


def test_torch_without_cuda() -> None:
    hardware = Hardware.look(fake_torch())
    assert hardware.cuda.problem == "torch 2.13.0+cpu is built without CUDA"
    assert "--device cpu" in hardware.cuda.hint
    assert "not Apple silicon" in hardware.mps.problem


def test_a_driver_that_is_too_old() -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update ...")

    hardware = Hardware.look(cuda_build(init=init))
    assert hardware.cuda.problem.endswith("driver on your system is too old (found version 11040)")
    assert "update the NVIDIA driver" in hardware.cuda.hint
    assert "too old" in hardware.mps.problem


def test_a_gpu_that_the_build_has_no_code_for() -> None:
    hardware = Hardware.look(cuda_build(get_device_capability=lambda: (12, 0)))
    assert "is not built for the GPU 1 (compute capability 12.0)" in hardware.cuda.problem


def test_a_gpu_that_works() -> None:
    assert Hardware.look(cuda_build()).cuda == Accelerator(free_bytes=5)
    old = Hardware.look(cuda_build(is_bf16_supported=lambda **_: False))
    assert old.cuda == Accelerator(dtype="float16", free_bytes=5)


def test_this_machine_has_memory() -> None:
    free = ram_free_bytes()
    assert free is None or free > 100_000_000
