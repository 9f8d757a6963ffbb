"""The full-size replica on this machine's CPU: `make test-replica`, or VOXTRAL_REPLICA=FOLDER and pytest.

FOLDER is what `python -m benchmarks.replica FOLDER` writes, 9.4 GB. The tests need 14 GB of memory, and
most of an hour on two cores: the first token of a turn takes two minutes there.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPLICA = os.environ.get("VOXTRAL_REPLICA")
if not REPLICA:
    pytest.skip("VOXTRAL_REPLICA names no folder", allow_module_level=True)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from benchmarks import anonymous_memory, replica  # noqa: E402
from voxcli.audio.clip import SAMPLE_RATE, AudioClip  # noqa: E402
from voxcli.core.session import Session  # noqa: E402
from voxcli.core.turn import PassReport, Utterance  # noqa: E402
from voxcli.engines.voxtral.checkpoint import catalog, files  # noqa: E402
from voxcli.engines.voxtral.device import placement  # noqa: E402
from voxcli.engines.voxtral.device.demand import BYTES, demand  # noqa: E402
from voxcli.engines.voxtral.device.formats import Format, largest_layer_bytes, stored_bytes  # noqa: E402
from voxcli.engines.voxtral.device.hardware import Hardware  # noqa: E402
from voxcli.engines.voxtral.engine import VoxtralEngine  # noqa: E402

ROOT = Path(__file__).parent.parent.parent.parent
REPLY_TOKENS, CONTEXT_TOKENS = 2, 1024
SPARE_BYTES = 200_000_000  # of libraries, and of the cache
MORE = 1.1  # times the weights as they are kept, and one layer


@dataclass(frozen=True)
class Loaded:
    """An engine, the anonymous memory that loading it took at most, and what it may take."""

    engine: VoxtralEngine
    peak_bytes: int
    most_bytes: float


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's cache, in which the replica is Voxtral Mini."""
    cache = tmp_path_factory.mktemp("hub")
    replica.link_into_hub_cache(Path(REPLICA or ""), cache)
    return cache


def load(hub: Path, form: Format) -> Loaded:
    folder = catalog.locate("mini", catalog.Hub(cache=hub))
    assert folder
    most = most_bytes(folder, form)
    with anonymous_memory.peak() as found:
        engine = VoxtralEngine.load(
            folder,
            name="mini",
            device="cpu",
            max_reply_tokens=REPLY_TOKENS,
            temperature=0.0,
            top_p=1.0,
            context_tokens=CONTEXT_TOKENS,
            notice=lambda _: None,
            quantize=form,
        )
    return Loaded(engine, found.grown, most)


def most_bytes(folder: Path, form: Format) -> float:
    """Return what loading may take in the number format that this machine has room for."""
    config: Any = transformers.VoxtralConfig.from_pretrained(folder)
    parameters = files.inspect(folder).parameters
    wanted = placement.Wanted("cpu", form, CONTEXT_TOKENS, REPLY_TOKENS)
    where = placement.plan(wanted, Hardware.look(torch, "cpu"), demand(config, parameters), strictly=False)
    value = BYTES[where.dtype]
    return MORE * (stored_bytes(config, parameters, value, form) + largest_layer_bytes(config, value)) + SPARE_BYTES


def clip(number: int) -> AudioClip:
    samples = np.random.default_rng(number).normal(0.0, 0.1, 2 * SAMPLE_RATE)
    return AudioClip(samples.astype(np.float32))


def ask(engine: Any, session: Session, number: int) -> tuple[str, PassReport]:
    deltas, reply = [], engine.reply(session, Utterance(clip(number)), threading.Event())
    while True:
        try:
            deltas.append(next(reply))
        except StopIteration as end:
            return "".join(deltas), end.value


@pytest.fixture(scope="module")
def plain(hub: Path) -> Iterator[Loaded]:
    loaded = load(hub, "none")
    yield loaded
    loaded.engine.close()


def test_the_short_name_resolves_offline_and_once_replies(hub: Path, tmp_path: Path) -> None:
    question = ROOT / "examples" / "questions" / "one-plus-one.flac"
    flags = f"once {question} --engine voxtral --model mini --device cpu --no-speak --json"
    done = subprocess.run(
        [sys.executable, "-m", "voxcli", *flags.split()],
        cwd=ROOT,
        env={
            **os.environ,
            "HF_HUB_CACHE": str(hub),
            "HF_HUB_OFFLINE": "1",
            "VOXCLI_HOME": str(tmp_path),
            "VOXCLI_REPLY__MAX_TOKENS": str(REPLY_TOKENS),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_passes"] == 1


def test_loading_holds_the_weights_once(plain: Loaded) -> None:
    assert plain.peak_bytes <= plain.most_bytes


def test_the_second_turn_of_a_session_feeds_its_own_audio_alone(plain: Loaded) -> None:
    reply, first = ask(plain.engine, Session(), 0)
    session = Session().add(Utterance(clip(0)).answered(reply))
    plain.engine.prefill_history(session)
    _, second = ask(plain.engine, session, 1)
    assert (first.model_passes, second.model_passes) == (1, 1)
    assert first.reply_tokens == second.reply_tokens == REPLY_TOKENS
    assert second.prompt_tokens - second.cached_tokens <= first.prompt_tokens - first.cached_tokens


def test_three_replies_are_decoded_together(plain: Loaded) -> None:
    many = plain.engine.for_many(3)
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda number: ask(many, Session(), number), range(3)))
    assert [(report.model_passes, report.reply_tokens) for _, report in answers] == [(1, REPLY_TOKENS)] * 3
