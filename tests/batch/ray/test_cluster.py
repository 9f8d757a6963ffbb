"""A batch on a real Ray cluster of two nodes on this machine."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import INSTRUCTIONS, make_manifest, make_recording, records
from tests.support.clusters import Open, OpenAndDie, open_nothing
from voxcli.batch.inputs import sources
from voxcli.batch.plan import survey
from voxcli.batch.ray.actor import Setup
from voxcli.batch.ray.cluster import START_ATTEMPTS, ActorPool, Size, connected
from voxcli.batch.results import Results
from voxcli.batch.runner import Run
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.stats import Stats, Status
from voxcli.errors import ConfigError, ModelError, VoxError

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent.parent
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
PATIENCE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


def waited_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    ends = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < ends:
        time.sleep(0.05)
    return met


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # where the workers find this package and these tests
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**NODE, "_system_config": PATIENCE}, shutdown_at_exit=False
        )
        try:
            yield cluster
        finally:
            cluster.shutdown()


class Silence:
    def show(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@dataclass
class Batch:
    """A run of a manifest on a cluster; `said` is what users read."""

    address: str
    folder: Path
    setup: Setup
    size: Size = field(default_factory=lambda: Size(workers=2))
    said: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, items: list[dict[str, Any]], *, resume: bool = False, after: dict[int, Any] | None = None) -> Status:
        """Answer `items`; `after` has what is to be done once so many records are written."""
        manifest = make_manifest(self.folder / "m.jsonl", items)
        written = 0
        with ExitStack() as stack:
            plan, stats = survey(sources([str(manifest)], None, stack)), Stats()
            results = stack.enter_context(Results(self.out, resume=resume, count=stats.add))

            def write(record: dict[str, Any]) -> None:
                nonlocal written
                results.write(record)
                written += 1
                (after or {}).get(written, lambda: None)()

            stack.enter_context(connected(self.address))
            scheduler = Scheduler(iter(plan), results, INSTRUCTIONS)
            pool = ActorPool(scheduler, self.setup, self.size, plan.items, self.said.append)
            return Run(scheduler, plan.items, write, stats, Silence(), self.stop).answer([pool])

    @property
    def out(self) -> Path:
        return self.folder / "out.jsonl"


def batch(cluster: Any, folder: Path, *, waits: int = 10**9, processes: int = 1) -> Batch:
    make_recording(folder / "q.wav")
    return Batch(cluster.address, folder, Setup(Open(str(folder), waits, processes), str(folder), 60.0))


def item(number: int, session: str | None = None) -> dict[str, Any]:
    return {"id": f"i{number}", "audio": "q.wav", "prompt": str(number), "session": session}


def test_a_node_that_is_killed_at_half_loses_and_doubles_nothing(cluster: Any, tmp_path: Path) -> None:
    asked = [item(number, f"s{number % 10}" if number % 3 == 0 else None) for number in range(300)]
    second = cluster.add_node(**NODE)
    run = batch(cluster, tmp_path, waits=150, processes=2)

    def kill() -> None:  # what both nodes hold now is not answered before the gate is there
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert len(pids) == 2
        cluster.remove_node(second, allow_graceful=False)
        assert waited_until(lambda: not all(map(is_alive, pids)))
        (tmp_path / "gate").touch()

    status = run.run(asked, after={140: kill})

    found = records(run.out)
    assert sorted(record["id"] for record in found) == sorted(each["id"] for each in asked)
    assert [record for record in found if "error" in record] == []
    assert status.done == 300
    assert any("lost" in text for text in run.said)
    pids: dict[str, list[str]] = defaultdict(list)
    before: dict[str, str] = {}
    for record in found:  # in the order in which they were written
        pid, number, _, last = record["reply"].split()
        assert record["id"] == f"i{number}"
        assert record["audio"]["path"] == str(tmp_path / "q.wav")
        if session := record["session"]:
            assert last == before.get(session, "nothing")
            before[session] = number
            pids[session].append(pid)
        else:
            assert last == "nothing"
    assert len({record["reply"].split()[0] for record in found}) >= 2
    moves = [sum(one != next_one for one, next_one in pairwise(each)) for each in pids.values()]
    assert max(moves) <= 1
    assert sum(moves) >= 1


def test_a_run_that_was_stopped_goes_on_with_its_sessions(cluster: Any, tmp_path: Path) -> None:
    asked = [item(number, "s") for number in range(6)]
    run = batch(cluster, tmp_path)
    run.size = Size()  # one CPU: one worker
    run.run(asked, after={3: run.stop.set})
    finished = len(records(run.out))
    assert 3 <= finished < 6
    run.stop.clear()
    run.run(asked, resume=True)
    assert [record["reply"].split()[1:] for record in records(run.out)] == [
        [str(number), "after", str(number - 1) if number else "nothing"] for number in range(6)
    ]
    assert run.said.count("the witness is here") == 2
    assert all(record["turn"] == number for number, record in enumerate(records(run.out), start=1))


def test_an_item_that_kills_its_workers_fails_alone(cluster: Any, tmp_path: Path) -> None:
    run = batch(cluster, tmp_path)
    run.size = Size(workers=1)
    run.run([item(1), item(-1), item(2)])
    found = {record["id"]: record for record in records(run.out)}
    assert found["i-1"]["error"]["code"] == "failed"
    assert "workers died" in found["i-1"]["error"]["message"]
    assert {name for name, record in found.items() if "reply" in record} == {"i1", "i2"}


def test_an_engine_that_no_worker_can_open_ends_the_run(cluster: Any, tmp_path: Path) -> None:
    run = batch(cluster, tmp_path)
    run.setup = Setup(open_nothing, str(tmp_path), 60.0)
    with pytest.raises(ModelError, match="the model is not there") as raised:
        run.run([item(1)])
    assert raised.value.hint == "fetch it"
    assert records(run.out) == []


def test_a_worker_that_dies_while_it_loads_is_started_again_a_few_times(cluster: Any, tmp_path: Path) -> None:
    run = batch(cluster, tmp_path)
    run.size = Size(workers=1)
    run.setup = Setup(OpenAndDie(str(tmp_path), times=10**9), str(tmp_path), 60.0)
    with pytest.raises(VoxError, match=f"died {START_ATTEMPTS} times while it loaded its engine") as raised:
        run.run([item(1)])
    assert "memory" in raised.value.hint
    assert len(list(tmp_path.glob("*.dead"))) == START_ATTEMPTS
    assert records(run.out) == []


def test_a_worker_that_dies_once_while_it_loads_answers_after_all(cluster: Any, tmp_path: Path) -> None:
    run = batch(cluster, tmp_path)
    run.size = Size(workers=1)
    run.setup = Setup(OpenAndDie(str(tmp_path), times=START_ATTEMPTS - 1), str(tmp_path), 60.0)
    run.run([item(1)])
    assert [record["id"] for record in records(run.out)] == ["i1"]


def test_gpus_are_not_waited_for_where_there_are_none(cluster: Any, tmp_path: Path) -> None:
    run = batch(cluster, tmp_path)
    run.size = Size(gpus=1.0)
    with pytest.raises(ConfigError, match="no room for a worker with 1 GPUs: 0 GPUs, 1 CPUs"):
        run.run([item(1)])


@pytest.mark.parametrize("address", ["not an address", ":6379", "127.0.0.1:1", "ray://127.0.0.1:1", "h:99999"])
def test_no_cluster_is_said_in_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster") as raised, connected(address):
        pass
    assert "\n" not in raised.value.message
