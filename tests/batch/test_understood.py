"""A batch asks what was understood, and a run that continues remembers it as the first one did."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.batches import Listed, NothingFinished, Silent
from voxcli.audio.clip import AudioClip
from voxcli.batch.changes import Asked, compare
from voxcli.batch.item import Item
from voxcli.batch.plan import survey
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.results import Results
from voxcli.batch.runner import Run
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.stats import Stats
from voxcli.batch.worker import EngineWorker
from voxcli.core.testing import FakeEngine
from voxcli.core.understanding import UnderstoodMode

ITEMS = [Item(name, f"{name}.wav", "here", "", "kitchen", None) for name in ("a", "b")]


def answer(engine: FakeEngine, results: Path, mode: UnderstoodMode) -> None:
    """Answer the items one after the other, and write their records."""
    plan = survey([Listed(ITEMS)])
    records: list[dict[str, object]] = []
    scheduler = Scheduler(iter(plan), NothingFinished(), "Be brief.")
    run = Run(scheduler, plan.items, records.append, Stats(), Silent(), threading.Event())
    with Prefetcher(scheduler, lambda _: AudioClip(np.zeros(16_000, np.float32))) as prefetcher:
        run.answer([EngineWorker(prefetcher, engine, 0.0, understood=mode)])
    results.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(("mode", "later"), [("show", ""), ("remember", "I am Anna.")])
def test_later_turns_see_it_where_it_is_remembered(mode: UnderstoodMode, later: str, tmp_path: Path) -> None:
    engine, path = (
        FakeEngine([["Hello."], ["Anna."]], understands=[["I am Anna."], ["Who am I?"]]),
        tmp_path / "r.jsonl",
    )
    answer(engine, path, mode)
    assert [[turn.understood for turn in session.turns] for session, _ in engine.asked] == [[], [later]]
    assert [json.loads(line)["understood"] for line in path.read_text().splitlines()] == ["I am Anna.", "Who am I?"]
    for remembers in (False, True):
        with Results(path, resume=True, remembers=remembers, count=lambda _: None) as results:
            assert [turn.understood for turn in results.turns("kitchen")] == (
                ["I am Anna.", "Who am I?"] if remembers else ["", ""]
            )
            changes = compare(survey([Listed(ITEMS)]), results, Asked("Be brief."))
            assert ("earlier turns" in changes.reasons) == (remembers != (mode == "remember"))
