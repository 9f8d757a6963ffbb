"""Downloads from a hub on this machine: complete, resumed and failed ones."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.model_hub import REPO, FakeHub, checkpoint_files
from voxcli.engines.voxtral.checkpoint.catalog import fetch, locate
from voxcli.engines.voxtral.checkpoint.kinds import KNOWN
from voxcli.errors import ConfigError, ModelError
from voxcli.hub.cache import Hub

BIG = 24_000_000  # more than two of the pieces of 10 MiB that huggingface_hub reads at once


@dataclass
class Seen:
    """Records the calls of a progress callback."""

    steps: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        self.steps.append((done, total))


@pytest.fixture
def fake() -> FakeHub:
    return FakeHub(checkpoint_files())


@pytest.fixture
def hub(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = fake.serve()
    yield Hub(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    fake.release.set()
    server.shutdown()
    server.server_close()


# --- the environment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks4://127.0.0.1:1"), ("https_proxy", "http://["), ("SSL_CERT_FILE", "/nowhere/ca.pem")],
)
def test_a_variable_that_can_not_be_used_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        fetch(REPO, Seen(), hub)


# --- fetching ----------------------------------------------------------------------------------


def test_fetch_brings_what_is_needed_and_nothing_else(hub: Hub, fake: FakeHub) -> None:
    seen = Seen()
    folder = fetch(REPO, seen, hub)
    needed = {
        name
        for name in fake.files
        if name not in {"consolidated.safetensors", "pytorch_model.bin", "modeling_evil.py", "README.md"}
    }
    assert {file.name for file in folder.iterdir()} == needed
    assert all((folder / name).read_bytes() == fake.files[name] for name in needed)
    total = sum(len(fake.files[name]) for name in needed)
    assert seen.steps[0] == (len(fake.files["config.json"]), total)
    assert seen.steps[-1] == (total, total)
    assert seen.steps == sorted(seen.steps)
    assert locate(REPO, hub) == folder
    before = len(fake.log)
    assert fetch(REPO, seen, hub) == folder
    assert len(fake.log) == before, "what is here needs no network"


def test_a_connection_that_breaks_goes_on_in_the_same_run(hub: Hub, fake: FakeHub) -> None:
    fake.files = checkpoint_files(shards=1, size=BIG)
    name = "model-00001-of-00001.safetensors"
    fake.break_after = {name: [12_000_000]}
    seen = Seen()
    folder = fetch(REPO, seen, hub)
    first, second = fake.ranges(name)
    assert first == ""
    assert 10_000_000 <= int(second.removeprefix("bytes=").removesuffix("-")) <= 12_000_000
    assert (folder / name).read_bytes() == fake.files[name]
    assert seen.steps[-1][0] == seen.steps[-1][1], "nothing is counted twice"


def test_a_failed_run_goes_on_in_the_next(hub: Hub, fake: FakeHub) -> None:
    fake.files = checkpoint_files(shards=2, size=BIG)
    one, two = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    partial = hub.repo(REPO) / "blobs" / f"{fake.etag(two)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(fake.files[two][:11_000_000])
    fake.refuse_bytes = (503, "")
    with pytest.raises(ModelError, match="HTTP 503") as caught:
        fetch(REPO, Seen(), hub)
    assert f"voxcli models pull {REPO}" in caught.value.hint
    fake.refuse_bytes = None
    seen = Seen()
    folder = fetch(REPO, seen, hub)
    assert fake.ranges(two)[-1] == "bytes=11000000-"
    assert fake.ranges(one)[-1] == ""
    assert seen.steps[0][0] == 11_000_000 + len(fake.files["config.json"])
    assert (folder / two).read_bytes() == fake.files[two]
    assert not list(partial.parent.glob("*.incomplete"))


@pytest.mark.usefixtures("usual_signals")
def test_control_c_keeps_what_is_there(hub: Hub, fake: FakeHub) -> None:
    fake.files = checkpoint_files(shards=1, size=BIG)
    name = "model-00001-of-00001.safetensors"
    fake.break_after, fake.stall = {name: [22_000_000]}, True
    code = (
        "import sys; from pathlib import Path; from voxcli.engines.voxtral.checkpoint.catalog import fetch\n"
        "from voxcli.hub.cache import Hub\n"
        "print(fetch(sys.argv[1], lambda done, total: print(done, flush=True), Hub(sys.argv[2], Path(sys.argv[3]))))"
    )
    command = [sys.executable, "-c", code, REPO, str(hub.endpoint), str(hub.cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert any(int(line) > 20_000_000 for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    fake.stall = False
    folder = fetch(REPO, Seen(), hub)
    assert fake.ranges(name)[-1] == f"bytes={2 * 10 * 1024 * 1024}-"
    assert (folder / name).read_bytes() == fake.files[name]


def test_damaged_bytes_are_not_kept(hub: Hub, fake: FakeHub) -> None:
    fake.corrupt = True
    with pytest.raises(ModelError, match="damaged on its way"):
        fetch(REPO, Seen(), hub)
    assert locate(REPO, hub) is None
    fake.corrupt = False
    assert fetch(REPO, Seen(), hub)


def test_a_partial_file_that_is_too_long_is_thrown_away(hub: Hub, fake: FakeHub) -> None:
    name = "model-00001-of-00002.safetensors"
    partial = hub.repo(REPO) / "blobs" / f"{fake.etag(name)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(10_000))
    seen = Seen()
    assert (fetch(REPO, seen, hub) / name).read_bytes() == fake.files[name]
    assert seen.steps[0][0] == len(fake.files["config.json"])


# --- what can go wrong -------------------------------------------------------------------------


def failure(model: str, hub: Hub) -> ModelError:
    with pytest.raises(ModelError) as caught:
        fetch(model, Seen(), hub)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("refuse", [(404, "RepoNotFound"), (401, "RepoNotFound")])
def test_an_unknown_model(hub: Hub, fake: FakeHub, refuse: tuple[int, str]) -> None:
    fake.refuse = refuse
    assert "no model mistralai/Voxtral-Mini-3B" in failure("mistralai/Voxtral-Mini-3B", hub).message
    assert failure("mistralai/Voxtral-Mini-3B", hub).hint == f"did you mean {KNOWN['mini'].repo_id}?"
    assert "hf auth login" in failure("a/b", hub).hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(hub: Hub, fake: FakeHub, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    fake.refuse_files = (status, "GatedRepo")
    error = failure(REPO, hub)
    assert "gated" in error.message
    assert f"https://huggingface.co/{REPO}" in error.hint
    assert "HF_TOKEN" in error.hint
    assert "hf_secret" not in error.message + error.hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token(hub: Hub, fake: FakeHub, status: int) -> None:
    fake.refuse = (status, "")
    error = failure(REPO, hub)
    assert f"HTTP {status}" in error.message
    assert "HF_TOKEN" in error.hint


def test_an_index_that_names_what_is_not_there(hub: Hub, fake: FakeHub) -> None:
    del fake.files["model-00002-of-00002.safetensors"]
    assert "model-00002-of-00002.safetensors missing" in failure(REPO, hub).message


def test_a_version_that_is_gone(hub: Hub, fake: FakeHub) -> None:
    fake.refuse = (404, "RevisionNotFound")
    assert "version" in failure(REPO, hub).message


def test_a_hub_that_can_not_be_reached(hub: Hub) -> None:
    error = failure("mini", Hub("http://127.0.0.1:9", hub.cache))
    assert "could not be fetched" in error.message
    assert "connection" in error.hint


def test_offline_by_wish(hub: Hub) -> None:
    code = (
        "from voxcli.engines.voxtral.checkpoint.catalog import fetch\nfrom voxcli.errors import ModelError\n"
        "try: fetch('mini', print)\nexcept ModelError as error: print(error, error.hint, sep='|')"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub.cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    message, hint = done.stdout.strip().split("|")
    assert "HF_HUB_OFFLINE forbids" in message
    assert hint == "unset HF_HUB_OFFLINE"


@pytest.mark.parametrize("config", [b'{"model_type": "llama"}', b"{}", b"[]", b"\xff"])
def test_another_kind_of_model_is_refused_before_its_weights(hub: Hub, fake: FakeHub, config: bytes) -> None:
    fake.files["config.json"] = config
    assert "not a Voxtral checkpoint" in failure(REPO, hub).message
    assert not [path for _, path, _ in fake.log if path.endswith("safetensors")]


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("voxtral_realtime", "is Voxtral Realtime, which only transcribes"),
        ("voxtral_tts", "is Voxtral TTS, which only"),
    ],
)
def test_a_voxtral_that_does_not_converse_is_refused_before_its_weights(
    hub: Hub, fake: FakeHub, model_type: str, words: str
) -> None:
    fake.files["config.json"] = json.dumps({"model_type": model_type}).encode()
    error = failure(REPO, hub)
    assert f"{REPO} {words}" in error.message
    assert "--model mini" in error.hint
    assert not [path for _, path, _ in fake.log if path.endswith("safetensors")]


@pytest.mark.parametrize(
    ("repo_id", "names", "words"),
    [
        ("mistralai/Voxtral-4B-TTS-2603", ["params.json", "consolidated.safetensors", "tekken.json"], "only speaks"),
        ("x/Voxtral-Mini-4B-Realtime-2602", ["params.json", "consolidated.safetensors"], "only transcribes"),
        ("tts/Voxtral-Mini", ["params.json", "consolidated.safetensors"], "it has no config.json"),
        ("ggml-org/Voxtral-Mini-3B-2507-GGUF", ["Voxtral-Mini-Q4_K_M.gguf", "mmproj.gguf"], "GGUF files"),
        ("someone/Voxtral-GGUF", ["config.json", "voxtral.gguf", "tekken.json"], "GGUF files"),
    ],
)
def test_what_the_names_of_the_files_tell_is_refused_before_any_file_is_fetched(
    hub: Hub, fake: FakeHub, repo_id: str, names: list[str], words: str
) -> None:
    fake.files = dict.fromkeys(names, b"{}")
    assert words in failure(repo_id, hub).message
    assert not [path for _, path, _ in fake.log if "/resolve/" in path]


@pytest.mark.parametrize("gone", ["config.json", "model"])
def test_a_repository_without_weights_or_config(hub: Hub, fake: FakeHub, gone: str) -> None:
    fake.files = {name: data for name, data in fake.files.items() if not name.startswith(gone)}
    assert "not a Voxtral checkpoint" in failure(REPO, hub).message


def test_a_repository_without_a_tokenizer(hub: Hub, fake: FakeHub) -> None:
    del fake.files["tekken.json"]
    assert "it has no tekken.json or tokenizer.json" in failure(REPO, hub).message


def test_hostile_names_are_not_fetched(hub: Hub, fake: FakeHub) -> None:
    fake.files |= {"../../model.safetensors": b"x", "model-\n.safetensors": b"x", "x/config.json": b"x"}
    assert {file.name for file in fetch(REPO, Seen(), hub).iterdir()} <= checkpoint_files().keys()


def test_too_small_a_disk_is_said_before_the_download(hub: Hub, fake: FakeHub) -> None:
    folders: list[Path] = []

    def free(folder: Path) -> int:
        folders.append(folder)
        return 150_000_000

    error = failure(REPO, Hub(hub.endpoint, hub.cache, free))
    assert "0.15 GB are free" in error.message
    assert "HF_HOME" in error.hint
    assert folders[0].is_dir()
    assert not [path for _, path, _ in fake.log if path.endswith("safetensors")]


def test_a_disk_that_fills_up(hub: Hub) -> None:
    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match="disk is full"):
        fetch(REPO, full, hub)


def test_two_at_once(hub: Hub, fake: FakeHub) -> None:
    refusals: list[str] = []

    def fetch_again(done: int, total: int) -> None:
        if done > len(fake.files["config.json"]) and not refusals:
            refusals.append(failure(REPO, hub).message)

    fetch(REPO, fetch_again, hub)
    assert "another voxcli" in refusals[0]


def test_text_from_another_server_is_not_a_traceback(hub: Hub, fake: FakeHub) -> None:
    fake.refuse = (200, "")  # a login page of a hotel
    assert "could not be fetched" in failure(REPO, hub).message
