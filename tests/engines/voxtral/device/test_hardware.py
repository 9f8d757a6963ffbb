"""Hardware as described by doubles of torch, and the memory of processes in control groups."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from voxcli.engines.voxtral.device.hardware import Accelerator, Hardware, cuda_index, nvidia_smi, release, runs_on
from voxcli.engines.voxtral.device.hardware import look as hardware_look
from voxcli.engines.voxtral.device.ram import ram_free_bytes
from voxcli.errors import ModelError

GIB = 1 << 30


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


def test_names_and_versions() -> None:
    assert [cuda_index(name) for name in ("cuda:1", "cuda", "cuda:x", "mps", "cuda:\u00b2")] == [1, *[None] * 4]
    assert [release(version) for version in ("2.12.0+cpu", "2.9", "2.13.0a0", "nightly")] == [
        *((2, 12), (2, 9), (2, 13), (0, 0))
    ]


# --- CUDA ----------------------------------------------------------------------------------------


def fake_torch(**parts: Any) -> Any:
    """A torch without any GPU; `parts` stand in for its modules."""
    none = SimpleNamespace(is_built=lambda: False, is_available=lambda: False)
    given = {
        "__version__": "2.13.0+cpu",
        "version": SimpleNamespace(hip=None),
        "backends": SimpleNamespace(cuda=none, mps=none),
        "zeros": lambda *_, **__: SimpleNamespace(add=lambda _: SimpleNamespace(item=lambda: 1.0)),
        "bfloat16": "bfloat16",
    }
    return SimpleNamespace(**{**given, **parts})


def cuda_build(*, zeros: Any = None, **cuda: Any) -> Any:
    built = SimpleNamespace(is_built=lambda: True, is_available=lambda: False)
    given = {
        "init": lambda: None,
        "device_count": lambda: 1,
        "get_device_capability": lambda _: (8, 0),
        "get_device_name": lambda index: f"GPU {index}",
        "get_device_properties": lambda index: SimpleNamespace(uuid=f"uuid-{index}"),
        "get_arch_list": lambda: ["sm_80"],
        "mem_get_info": lambda _: (5, 9),
    }
    parts = {"zeros": zeros} if zeros else {}
    return fake_torch(
        backends=SimpleNamespace(cuda=built, mps=built), cuda=SimpleNamespace(**{**given, **cuda}), **parts
    )


def look(torch: Any, device: str = "auto", smi: str = "") -> Hardware:
    return Hardware.look(torch, device, lambda: smi)


def test_torch_without_cuda() -> None:
    hardware = look(fake_torch())
    assert hardware.cuda.problem == "torch 2.13.0+cpu is built without CUDA"
    assert "--device cpu" in hardware.cuda.hint
    assert "not Apple silicon" in hardware.mps.problem
    assert (hardware.best, hardware.gpus) == ("cpu", ())


def test_a_driver_that_is_too_old() -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update ...")

    hardware = look(cuda_build(init=init))
    assert hardware.cuda.problem.endswith("driver on your system is too old (found version 11040)")
    assert "update the NVIDIA driver" in hardware.cuda.hint


def test_no_gpu_is_visible() -> None:
    assert "CUDA_VISIBLE_DEVICES" in look(cuda_build(device_count=lambda: 0)).cuda.hint


def test_a_gpu_that_the_build_has_no_code_for() -> None:
    hardware = look(cuda_build(get_device_capability=lambda _: (12, 0)))
    assert "is not built for the GPU 0 (compute capability 12.0)" in hardware.cuda.problem


def test_a_gpu_that_fails_when_it_is_tried() -> None:
    def zeros(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might ...")

    hardware = look(cuda_build(zeros=zeros))
    assert hardware.cuda.problem == "torch can't use the GPU 0: CUDA error: an illegal memory access"
    assert hardware.free_bytes("cuda:0") == 5


def test_a_gpu_that_works() -> None:
    found = look(cuda_build()).cuda
    assert found == Accelerator(free_bytes=5, total_bytes=9, name="GPU 0", capability=(8, 0))
    assert (found.has_flash, found.has_fp8) == (True, False)
    turing = look(cuda_build(get_device_capability=lambda _: (7, 5), get_arch_list=lambda: ["sm_75"])).cuda
    assert (turing.dtype, turing.has_flash) == ("float16", False)


def several(**cuda: Any) -> Any:
    return cuda_build(device_count=lambda: 3, mem_get_info=lambda index: (100 + index, 200), **cuda)


SMI = "GPU-uuid-0, 8000\nGPU-uuid-1, 4000\nGPU-uuid-2, 16000\nNo devices, [N/A]\n"


def test_plain_cuda_is_the_roomiest_of_several() -> None:
    hardware = look(several(), smi=SMI)
    assert [gpu.index for gpu in hardware.gpus] == [0, 1, 2]
    assert (hardware.cuda.index, hardware.cuda.free_bytes) == (2, 102)
    assert hardware.free_bytes("cuda:0") == 8000 << 20


def test_a_gpu_that_torch_has_no_code_for_is_not_the_roomiest() -> None:
    hardware = look(several(get_device_capability=lambda index: (7 if index == 2 else 8, 0)), smi=SMI)
    assert hardware.cuda.index == 0


def test_without_the_tool_it_is_the_first_and_others_are_not_touched() -> None:
    indices: list[int] = []

    def mem_get_info(index: int) -> tuple[int, int]:
        indices.append(index)
        return 5, 9

    torch = cuda_build(device_count=lambda: 3, mem_get_info=mem_get_info)
    assert look(torch).cuda.index == 0
    hardware = look(torch, "cuda:1")
    assert (hardware.free_bytes("cuda:1"), hardware.free_bytes("cuda:2")) == (5, None)
    assert indices == [0, 1]


def test_a_tool_that_is_not_there_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi() == ""


# --- Apple ---------------------------------------------------------------------------------------


def mps_build(version: str, zeros: Any = lambda *_, **__: None) -> Any:
    none = SimpleNamespace(is_built=lambda: False, is_available=lambda: False)
    mps = SimpleNamespace(is_built=lambda: True, is_available=lambda: True)
    memory = SimpleNamespace(recommended_max_memory=lambda: 100, driver_allocated_memory=lambda: 30)
    backends = SimpleNamespace(cuda=none, mps=mps)
    return fake_torch(__version__=version, backends=backends, mps=memory, zeros=zeros)


@pytest.mark.parametrize(("version", "usable"), [("2.6.0", False), ("2.11.1", False), ("2.12.0", True), ("3.0", True)])
def test_old_torches_compute_wrongly_on_apples_gpus(version: str, usable: bool) -> None:
    hardware = look(mps_build(version))
    assert hardware.best == ("mps" if usable else "cpu")
    if not usable:
        assert hardware.mps.problem == (
            f"torch {version} is too old for Apple's GPUs: before 2.12 it computes wrongly there"
        )
        assert "--upgrade" in hardware.mps.hint


def test_apples_memory_and_format() -> None:
    def zeros(*_: object, **__: object) -> None:
        raise TypeError("BFloat16 is not supported on MPS")

    assert look(mps_build("2.13")).mps.free_bytes == 70
    assert look(mps_build("2.13", zeros)).mps.dtype == "float16"


# --- RAM -----------------------------------------------------------------------------------------


def system(root: Path, **files: str) -> Path:
    """Write files below `root`; in a name, `__` stands for a slash and `_DOT_` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n"


def test_this_machine_has_memory() -> None:
    free = ram_free_bytes()
    assert free is None or free > 50_000_000


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert ram_free_bytes(system(tmp_path, proc__meminfo=MEMINFO)) == 8 * GIB


def test_a_limit_of_version_2_and_those_above_it(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__b__memory_DOT_max="max\n",
        sys__fs__cgroup__a__b__memory_DOT_current=str(GIB),
        sys__fs__cgroup__a__memory_DOT_max=str(4 * GIB),
        sys__fs__cgroup__a__memory_DOT_current=str(3 * GIB),
        sys__fs__cgroup__a__memory_DOT_stat=f"anon {GIB}\ninactive_file {GIB}\n",
    )
    assert ram_free_bytes(root) == 2 * GIB


def test_a_limit_of_version_1_seen_from_within_a_container(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="12:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes=str(3 * GIB),
        sys__fs__cgroup__memory__memory_DOT_usage_in_bytes=str(GIB),
    )
    assert ram_free_bytes(root) == 2 * GIB


@pytest.mark.parametrize("limit", [str(2**63 - 4096), "max", "nonsense"])
def test_no_limit(tmp_path: Path, limit: str) -> None:
    root = system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__memory_DOT_max=limit,
        sys__fs__cgroup__memory_DOT_current="1",
    )
    assert ram_free_bytes(root) == 8 * GIB


# --- Torch itself --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ImportError("no torch"), "torch is not installed"),
        (OSError("libcudart.so: cannot open"), "torch can't be used: libcudart.so: cannot open"),
        (RuntimeError("a line\nanother"), "torch can't be used: a line"),
    ],
)
def test_a_torch_that_can_not_be_imported(failure: Exception, message: str) -> None:
    def imported() -> Any:
        raise failure

    with pytest.raises(ModelError, match=message) as caught:
        hardware_look("auto", imported)
    assert caught.value.message == message
    assert caught.value.hint
