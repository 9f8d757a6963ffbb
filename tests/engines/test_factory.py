"""Which engine answers: on machines that are made up, with a hub on the loopback and engines that load nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import card, gpu, mac, machine
from tests.support.model_hub import REPO, FakeHub, cached, checkpoint_files
from voxcli.core.testing import FakeEngine
from voxcli.engines.factory import EngineOptions, Surroundings, open_engine
from voxcli.engines.voxtral.checkpoint.hub_cache import Hub
from voxcli.engines.voxtral.device.hardware import Hardware
from voxcli.errors import ConfigError, ModelError

pytest.importorskip("huggingface_hub")
OPTIONS = EngineOptions("auto", REPO, "auto", "", 256, 0.0, 1.0, 8192)
CONFIG = json.dumps({"model_type": "voxtral", "torch_dtype": "bfloat16"}).encode()  # the shape is Mini's by default


class BigHub(FakeHub):
    """A hub that says of weights that they have 4.7 GB a file, though they have little."""

    def info(self) -> bytes:
        said = json.loads(super().info())
        for sibling in said["siblings"]:
            if sibling["rfilename"].startswith("model-"):
                sibling["size"] = 4_676_271_104
        return json.dumps(said).encode()


class FakeVoxtral(FakeEngine):
    """An engine that says how many replies it is made for."""

    def for_many(self, slots: int, items: int, *, understood: bool = False) -> FakeEngine:
        return FakeEngine([], name=f"{slots} slots for {items} items")


@dataclass
class Opening:
    """Opens engines, and keeps what was said and loaded."""

    hub: Hub
    said: list[str] = field(default_factory=list)
    loaded: list[dict[str, Any]] = field(default_factory=list)

    def around(self, hardware: Hardware, failure: BaseException | None = None) -> Surroundings:
        def load(**options: Any) -> Any:
            self.loaded.append(options)
            if failure:
                raise failure
            return FakeVoxtral([], name="voxtral", model="Voxtral")

        return Surroundings(
            looks_like_gpu=lambda: True,
            look=lambda _: hardware,
            hub=self.hub,
            prepare_weights=lambda cache, **_: cache,
            load_embedded=lambda **_: FakeEngine([], name="embedded"),
            load_voxtral=load,
        )

    def open(self, options: EngineOptions, around: Surroundings) -> str:
        return open_engine(options, Path("cache"), self.said.append, around=around).name


@pytest.fixture
def fake() -> FakeHub:
    return BigHub({**checkpoint_files(), "config.json": CONFIG})


@pytest.fixture
def opening(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opening]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = fake.serve()
    yield Opening(Hub(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache"))
    fake.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def here(opening: Opening) -> Opening:
    """A machine on which the checkpoint is already."""
    cached(opening.hub, REPO, {**checkpoint_files(), "config.json": CONFIG})
    return opening


# --- What can't fit is not fetched ---------------------------------------------------------------


def test_the_sizes_of_known_models_need_no_hub(opening: Opening, fake: FakeHub) -> None:
    around = opening.around(machine(card(4)))
    assert opening.open(replace(OPTIONS, model="mini"), around) == "embedded"
    assert len(opening.said) == 1
    assert "embedded engine (the model does not fit into cuda:0 (Ampere GPU)" in opening.said[0]
    with pytest.raises(ModelError, match="does not fit"):
        opening.open(replace(OPTIONS, model="small", engine="voxtral"), opening.around(machine(card(16))))
    assert fake.log == []


@pytest.mark.parametrize("engine", ["auto", "voxtral"])
def test_of_other_models_the_hub_says_the_size(opening: Opening, fake: FakeHub, engine: Any) -> None:
    options, around = replace(OPTIONS, engine=engine), opening.around(machine(card(4)))
    if engine == "auto":
        assert opening.open(options, around) == "embedded"
        assert "does not fit" in opening.said[-1]
    else:
        with pytest.raises(ModelError, match="does not fit"):
            opening.open(options, around)
    assert not any(fake.ranges(name) for name in fake.files if name.endswith(".safetensors"))


def test_what_fits_is_fetched_and_the_line_that_names_the_engine_says_how(opening: Opening, fake: FakeHub) -> None:
    fake.__class__ = FakeHub  # the sizes are those of its files from now on
    assert opening.open(OPTIONS, opening.around(machine(card(24)))) == "voxtral"
    assert opening.said == [f"fetching {REPO} (once)", "voxtral engine: Voxtral in bfloat16 on cuda:0"]
    assert opening.loaded[0]["checkpoint"].is_dir()


def test_an_old_torch_on_a_mac_fetches_nothing(opening: Opening, fake: FakeHub) -> None:
    old = replace(mac(32), mps=replace(mac(32).mps, problem="torch 2.9 is too old for Apple's GPUs", hint="upgrade"))
    with pytest.raises(ModelError, match="too old"):
        opening.open(replace(OPTIONS, engine="voxtral", device="mps"), opening.around(old))
    assert opening.open(OPTIONS, opening.around(old)) == "embedded"
    assert fake.log == []


# --- What is chosen ------------------------------------------------------------------------------


def test_the_format_and_the_gpu_are_handed_on(here: Opening) -> None:
    two = machine(gpu(4), gpu(24, index=1))
    assert here.open(replace(OPTIONS, quantize="int8"), here.around(two)) == "voxtral"
    assert (here.loaded[0]["device"], here.loaded[0]["quantize"]) == ("cuda:1", "int8")
    assert here.said == ["voxtral engine: Voxtral in int8 on cuda:1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "no GPU cuda:7"),
        ({"quantize": "fp8"}, "fp8 can't be had"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_a_flag_to_be_corrected_is_an_error_with_auto_too(here: Opening, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        here.open(replace(OPTIONS, **options), here.around(machine(gpu(24))))


def test_a_batch_has_as_many_slots_as_items(here: Opening) -> None:
    options = replace(OPTIONS, slots=0, items=3)
    assert here.open(options, here.around(machine(gpu(24)))) == "0 slots for 3 items"
    assert here.loaded[0]["many"]


def test_without_a_gpu_nothing_is_looked_at(opening: Opening) -> None:
    def look(_: str) -> Hardware:
        raise AssertionError("torch is not to be imported")

    around = replace(opening.around(machine()), look=look, looks_like_gpu=lambda: False)
    assert opening.open(OPTIONS, around) == "embedded"
    assert opening.open(replace(OPTIONS, device="cpu"), around) == "embedded"
    assert ["no GPU was found" in opening.said[0], "--device cpu" in opening.said[1]] == [True, True]


def test_a_gpu_that_torch_can_not_use_is_told(opening: Opening) -> None:
    assert opening.open(OPTIONS, opening.around(machine())) == "embedded"
    assert opening.said[0].startswith("embedded engine (")


# --- Failures ------------------------------------------------------------------------------------

FAILURES = [
    ModelError("memory ran out"),
    RuntimeError("CUDA error: an illegal memory access\nat kernel 7"),
    MemoryError(),
    AttributeError("module 'transformers' has no attribute 'Voxtral'"),
    ImportError("cannot import name"),
    OSError("libcudnn.so.9: cannot open shared object file"),
    AssertionError(),
    KeyError("weight_map"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_whatever_fails_while_loading_leaves_the_embedded_engine(here: Opening, failure: Exception) -> None:
    assert here.open(OPTIONS, here.around(machine(gpu(24)), failure)) == "embedded"
    assert len(here.said) == 1
    assert here.said[0].startswith("embedded engine (")
    assert "\n" not in here.said[0]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_or_one_clear_error(here: Opening, failure: Exception) -> None:
    with pytest.raises(ModelError) as caught:
        here.open(replace(OPTIONS, engine="voxtral"), here.around(machine(gpu(24)), failure))
    assert caught.value is failure or (caught.value.__cause__ is failure and caught.value.hint)
    assert "\n" not in caught.value.message


def test_torch_that_can_not_be_asked(here: Opening) -> None:
    def look(_: str) -> Hardware:
        raise ModelError("torch is not installed", hint="pip install it")

    around = replace(here.around(machine()), look=look)
    assert here.open(OPTIONS, around) == "embedded"
    assert "(torch is not installed: pip install it)" in here.said[0]
    with pytest.raises(ModelError, match="torch is not installed"):
        here.open(replace(OPTIONS, engine="voxtral"), around)


def test_a_damaged_checkpoint(here: Opening) -> None:
    shard = next(here.hub.folder().rglob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert here.open(OPTIONS, here.around(machine(gpu(24)))) == "embedded"
    assert "is damaged" in here.said[0]


def test_control_c_is_no_failure(here: Opening) -> None:
    with pytest.raises(KeyboardInterrupt):
        here.open(OPTIONS, here.around(machine(gpu(24)), KeyboardInterrupt()))
