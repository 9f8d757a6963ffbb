"""Turns with a model of full size on this machine's CPU, in int8: `make test-replica`, or VOXTRAL_REPLICA=FOLDER.

FOLDER is what `python -m benchmarks.replica FOLDER` writes, 9.4 GB. A test needs 8 GB of memory; on two cores, the
first token of a turn takes minutes.
"""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPLICA = os.environ.get("VOXTRAL_REPLICA")
if not REPLICA:
    pytest.skip("VOXTRAL_REPLICA names no folder", allow_module_level=True)

import numpy as np  # noqa: E402

from benchmarks import replica  # noqa: E402
from voxcli.audio.clip import SAMPLE_RATE, AudioClip  # noqa: E402
from voxcli.core.protocols import Engine, PassReport, Utterance  # noqa: E402
from voxcli.core.session import Session  # noqa: E402
from voxcli.engines.voxtral.checkpoint import catalog  # noqa: E402
from voxcli.engines.voxtral.engine import VoxtralEngine  # noqa: E402
from voxcli.hub.cache import Hub  # noqa: E402

ROOT = Path(__file__).parents[3]
REPLY_TOKENS, CONTEXT_TOKENS = 2, 1024


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache of the hub in which the replica is Voxtral Mini."""
    cache = tmp_path / "hub"
    replica.link_into_hub_cache(Path(REPLICA or ""), cache)
    return cache


def clip(number: int) -> AudioClip:
    samples = np.random.default_rng(number).normal(0.0, 0.1, 2 * SAMPLE_RATE)
    return AudioClip(samples.astype(np.float32))


def ask(engine: Engine, session: Session, number: int) -> tuple[str, PassReport]:
    deltas, reply = [], engine.reply(session, Utterance(clip(number)), threading.Event())
    while True:
        try:
            deltas.append(next(reply))
        except StopIteration as end:
            return "".join(map(str, deltas)), end.value


def test_the_short_name_resolves_offline_and_once_replies(hub: Path, tmp_path: Path) -> None:
    question = ROOT / "examples" / "questions" / "one-plus-one.flac"
    flags = f"once {question} --engine voxtral --model mini --device cpu --quantize int8 --no-speak --json"
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


def test_two_turns_of_a_session_and_a_batch_of_three(hub: Path) -> None:
    """All with one model, which is loaded once: the batch engine takes it over."""
    folder = catalog.locate("mini", Hub(cache=hub))
    assert folder
    engine = VoxtralEngine.load(
        folder,
        name="mini",
        device="cpu",
        max_reply_tokens=REPLY_TOKENS,
        temperature=0.0,
        top_p=1.0,
        context_tokens=CONTEXT_TOKENS,
        notice=lambda _: None,
        quantize="int8",
    )
    reply, first = ask(engine, Session(), 0)
    session = Session().add(Utterance(clip(0)).answered(reply))
    engine.prefill_history(session)
    _, second = ask(engine, session, 1)
    assert (first.model_passes, second.model_passes) == (1, 1)
    assert (first.reply_tokens, second.reply_tokens) == (REPLY_TOKENS, REPLY_TOKENS)
    fed_first, fed_second = (each.prompt_tokens - each.cached_tokens for each in (first, second))
    assert fed_second <= fed_first, "the second turn feeds its own audio and no more"

    many = engine.for_many(3)
    try:
        with ThreadPoolExecutor(3) as callers:
            answers = list(callers.map(lambda number: ask(many, Session(), number), range(3)))
    finally:
        many.close()
    assert [(report.model_passes, report.reply_tokens) for _, report in answers] == [(1, REPLY_TOKENS)] * 3
