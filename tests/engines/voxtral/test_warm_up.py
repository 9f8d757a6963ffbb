"""What the Voxtral engine does before it is ready: it states and fits its memory, quantizes, captures."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_voxtral as tiny
from tests.support.machines import machine
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.device import demand
from voxcli.engines.voxtral.device.hardware import GB
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("mistral_common")
voxtral = pytest.importorskip("voxcli.engines.voxtral.engine")
loading = pytest.importorskip("voxcli.engines.voxtral.loader")
from benchmarks.emulation import EmulatedGraphs  # noqa: E402 - needs torch
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more
CLIP = AudioClip(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
TOKEN_VALUES = 2 * 2 * 2 * 16  # Layers, keys and values, KV heads, values of a head.


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("checkpoint") / "quick-voxtral", window_seconds=2)


@pytest.fixture
def notices() -> list[str]:
    return []


def load(checkpoint: Path, notices: list[str], **options: Any) -> Any:
    given = {"name": "tiny", "device": "cpu", "max_reply_tokens": 8, "temperature": 0.0, "top_p": 1.0}
    return voxtral.VoxtralEngine.load(checkpoint, notice=notices.append, **{**given, "context_tokens": 2048, **options})


def ask(engine: Any, session: Session) -> PassReport:
    deltas: Iterator[str] = engine.reply(session, Utterance(CLIP, "?"), threading.Event())
    while True:
        try:
            next(deltas)
        except StopIteration as end:
            report: PassReport = end.value
            return report


def test_on_a_cpu_there_is_nothing_to_say(quick: Path, notices: list[str], tmp_path: Path) -> None:
    load(quick, notices, folder=tmp_path, progress=lambda *_: pytest.fail("nor anything to wait for"))
    assert notices == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["int8", "fp8", "int4"])
def test_a_quantized_engine_replies(quick: Path, notices: list[str], form: str) -> None:
    engine = load(quick, notices, quantize=form)
    assert ask(engine, Session()).model_passes == 1


def test_a_replayed_encoder_is_counted(quick: Path, notices: list[str]) -> None:
    graphs = EmulatedGraphs()
    engine = load(quick, notices, backends=Backends(graphs=lambda: graphs))
    graphs.replayed.clear()
    plain = load(quick, notices)
    assert (engine.acceleration, plain.acceleration) == ("graphs", "none")
    for _ in range(2):
        assert ask(engine, Session()) == ask(plain, Session())
    assert graphs.replayed.count(0) == 2, "the first that was captured is the encoder"


def needs(folder: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    return demand.demand(config, loading.files.inspect(folder).parameters)


def test_a_context_that_does_not_fit_is_shortened(quick: Path, notices: list[str]) -> None:
    free = needs(quick).bytes(demand.Use("bfloat16"), 1508)
    around = machine(ram_gb=free / GB)
    loaded = loading.load(quick, "cpu", 2048, 8, notices.append, look=lambda: around)
    assert loaded.where.context_tokens == 1500
    assert notices == ["the memory has room for prompts of 1500 tokens, not of 2048: old turns are left out sooner"]


def test_what_is_announced_counts_an_aside(quick: Path, notices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ANNOUNCED_BYTES", 0)
    engine = load(quick, notices)
    announced = next(int(found[1]) for each in notices if (found := re.search(r"of cache for (\d+) tokens", each)))
    assert engine.decoder.capacity <= announced == 2048 + 8 + demand.ASIDE_TOKENS


def test_a_model_that_does_not_fit_is_not_loaded(quick: Path, notices: list[str]) -> None:
    tight = needs(quick)
    free = tight.bytes(demand.Use("bfloat16"), tight.least_tokens + 8) - 1
    around = machine(ram_gb=free / GB)
    with pytest.raises(ModelError, match=r"does not fit into memory: its weights need .* cache and work at least"):
        loading.load(quick, "cpu", 2048, 8, notices.append, look=lambda: around)


def test_the_best_format_that_fits_is_loaded(quick: Path, notices: list[str]) -> None:
    free = needs(quick).bytes(demand.Use("bfloat16", "int8"), 2056)
    around = machine(ram_gb=free / GB)
    loaded = loading.load(quick, "cpu", 2048, 8, notices.append, look=lambda: around, quantize="int8")
    assert (loaded.where.form, loaded.where.context_tokens) == ("int8", 2048)


def test_the_estimate_of_a_token_is_what_the_cache_takes(quick: Path, notices: list[str]) -> None:
    engine = load(quick, notices)
    aside = engine.decoder.capacity - 2048 - 8
    assert 0 < aside <= demand.ASIDE_TOKENS, "room to ask what was understood; at most 16 MB with Mini"
    loaded = loading.load(quick, "cpu", 2048, 8, notices.append, look=lambda: machine(has_triton=False))
    cache = SharedModel(loaded.model).text.allocate(2056)
    value_bytes = cache.memory.element_size()
    assert cache.memory.nbytes == needs(quick).token_values * value_bytes * 2056 == TOKEN_VALUES * value_bytes * 2056
