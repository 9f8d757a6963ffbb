"""Models of the user's choice: found by path, name or size, and fetched from a hub on this machine."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.gguf_files import CHAT, gguf
from tests.support.model_hub import REPO, FakeHub
from voxcli.engines.embedded import chosen
from voxcli.errors import ModelError
from voxcli.hub.cache import Hub

BIG = 3_000_000
FILE = "tiny-chat.Q4_K_M.gguf"
NAME = f"{REPO}:{FILE}"


@dataclass
class Fetched:
    """What a fetch reported."""

    lines: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def pull(self, name: str, hub: Hub) -> Path:
        model = chosen.hub_model(name)
        assert model
        return chosen.pull(model, self.step, self.lines.append, hub)


@pytest.fixture
def fake() -> FakeHub:
    return FakeHub(
        {
            FILE: gguf(CHAT) + bytes(BIG),
            "other.gguf": gguf(CHAT),
            "embeddings.gguf": gguf({**CHAT, "llama.pooling_type": 1}),
            "README.md": b"# hello",
            **{name: name.encode() for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")},
        }
    )


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


def test_one_file_is_fetched_with_its_licence_and_checksum(hub: Hub, fake: FakeHub) -> None:
    with pytest.raises(ModelError, match="not here yet") as caught:
        chosen.answer_model(NAME, hub)
    assert caught.value.hint == f"voxcli models pull {NAME}"
    fetched = Fetched()
    path = fetched.pull(NAME, hub)
    assert path.read_bytes() == fake.files[FILE]
    assert [file.name for file in path.parent.iterdir()] == [FILE]
    digest = hashlib.sha256(fake.files[FILE]).hexdigest()
    assert fetched.lines == [f"licence of {REPO}: apache-2.0", f"sha256 of {FILE}: {digest}"]
    assert chosen.answer_model(NAME, hub) == path


def test_a_size_of_whisper_is_fetched(hub: Hub) -> None:
    with pytest.raises(ModelError, match="not here yet") as caught:
        chosen.whisper("small", hub)
    assert caught.value.hint == "voxcli models pull whisper:small"
    folder = Fetched().pull("whisper:small", hub)
    assert {file.name for file in folder.iterdir()} == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    assert chosen.whisper("small", hub) == folder


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, fake: FakeHub) -> None:
    partial = hub.repo(REPO) / "blobs" / f"{fake.etag(FILE)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(fake.files[FILE][:1_000_000])  # what an interrupted one leaves
    fetched = Fetched()
    assert fetched.pull(NAME, hub).read_bytes() == fake.files[FILE]
    assert fake.ranges(FILE) == ["bytes=1000000-"]
    assert fetched.steps[0] == (1_000_000, len(fake.files[FILE]))


def test_a_file_with_a_wrong_checksum_is_thrown_away(hub: Hub, fake: FakeHub) -> None:
    fake.corrupt = True
    with pytest.raises(ModelError, match="damaged on its way") as caught:
        Fetched().pull(NAME, hub)
    assert f"voxcli models pull {NAME}" in caught.value.hint
    with pytest.raises(ModelError, match="not here yet"):
        chosen.answer_model(NAME, hub)


def test_a_file_that_is_not_there_is_told_with_those_that_are(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"has no file another\.gguf") as caught:
        Fetched().pull(f"{REPO}:another.gguf", hub)
    assert FILE in caught.value.hint


def test_a_model_of_embeddings_is_refused(hub: Hub) -> None:
    with pytest.raises(ModelError, match="embeddings"):
        Fetched().pull(f"{REPO}:embeddings.gguf", hub)


def test_a_split_model_is_refused_before_anything_is_fetched(hub: Hub, fake: FakeHub) -> None:
    with pytest.raises(ModelError, match="one part of several"):
        Fetched().pull(f"{REPO}:chat-00001-of-00002.gguf", hub)
    assert fake.log == []


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"")
    assert chosen.answer_model(str(path)) == path
    assert chosen.whisper(str(tmp_path)) == tmp_path
    assert (chosen.answer_model(""), chosen.whisper("base")) == (None, None)


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(ModelError, match=r"there is no file nowhere\.gguf"):
        chosen.answer_model("nowhere.gguf")
    with pytest.raises(ModelError, match="huge is neither a folder nor a size of Whisper"):
        chosen.whisper("huge")


@pytest.mark.parametrize(
    "name", ["mini", "owner/name", "owner/name:file.bin", "whisper:huge", "a/b:../c.gguf", "b:c.gguf"]
)
def test_other_names_are_not_for_this_engine(name: str) -> None:
    assert chosen.hub_model(name) is None
