"""What a model's name means, and what of it is in the cache."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_hub import REPO, cached, checkpoint_files, whole_folder
from voxcli.engines.voxtral.checkpoint.catalog import fetch, listed, locate, resolve
from voxcli.engines.voxtral.checkpoint.kinds import KNOWN
from voxcli.errors import ModelError
from voxcli.hub.cache import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """Return a hub that does not answer."""
    return Hub("http://127.0.0.1:9", tmp_path / "cache")


# --- names -------------------------------------------------------------------------------------


def test_short_names_and_ids() -> None:
    assert resolve("mini") == "mistralai/Voxtral-Mini-3B-2507"
    assert resolve("small") == KNOWN["small"].repo_id
    assert resolve("owner/Some_model-1.5") == "owner/Some_model-1.5"


def test_a_folder_wins_over_an_id_and_a_short_name_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    (tmp_path / "small").touch()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("mini") == KNOWN["mini"].repo_id
    assert resolve("small") == KNOWN["small"].repo_id
    assert resolve("./mini") == Path("mini")
    assert resolve("owner/name") == Path("owner/name")


@pytest.mark.parametrize(
    "model", ["./nowhere", "/no/where", "~/nowhere/x", "a/b/c", "owner/", "C:\\models\\x", "../no-such-folder"]
)
def test_a_path_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(ModelError, match="there is no folder") as caught:
        resolve(model)
    assert model in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "model",
    [
        "",
        "  ",
        "tiny",
        "a--b/c",
        "-a/b",
        "a/b.git",
        "a/..b",
        "owner/na me",
        "a/b\x1b[2J",
        "a/" + "x" * 200,
        "x" * 5000,
        "a\0b",
    ],
)
def test_what_is_no_name_is_refused(model: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(model)
    assert caught.value.exit_code == 4
    assert "mini" in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "meant"), [("minni", "mini"), ("Mini", "mini"), ("smal", "small"), ("voxtral-small", "small")]
)
def test_near_misses_are_suggested(typed: str, meant: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(typed)
    assert caught.value.hint.startswith(f"did you mean {meant} ")


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(tmp_path / "m"))


# --- what is here ------------------------------------------------------------------------------


def test_a_whole_local_folder_is_found(tmp_path: Path) -> None:
    folder = whole_folder(tmp_path / "m")
    assert locate(str(folder)) == folder


def test_a_single_weights_file_is_whole(tmp_path: Path) -> None:
    files = {"model.safetensors": b"", "config.json": b"{}", "tokenizer.json": b"{}", "processor_config.json": b"{}"}
    assert locate(str(whole_folder(tmp_path / "m", files)))


@pytest.mark.parametrize(
    "gone",
    [
        "config.json",
        "tekken.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, gone: str) -> None:
    folder = whole_folder(tmp_path / "m")
    (folder / gone).unlink()
    missing = "model.safetensors" if gone.endswith("index.json") else gone
    for use in (locate, lambda model: fetch(model, lambda *_: None)):
        with pytest.raises(ModelError, match=missing.replace(".", r"\.")):
            use(str(folder))


def test_a_folder_of_gguf_files_is_refused_as_such(tmp_path: Path) -> None:
    folder = whole_folder(tmp_path / "m", {"config.json": b"{}", "Voxtral-Mini-3B-2507-Q4_K_M.gguf": b"GGUF"})
    with pytest.raises(ModelError, match="holds GGUF files"):
        locate(str(folder))


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 3}', b"\xff\xfe", b'{"weight_map": {"w": 7}}'])
def test_a_damaged_index_is_not_a_whole_checkpoint(tmp_path: Path, index: bytes) -> None:
    folder = whole_folder(tmp_path / "m", checkpoint_files() | {"model.safetensors.index.json": index})
    with pytest.raises(ModelError, match="not a whole checkpoint"):
        locate(str(folder))


def test_the_cache_is_read_without_asking(hub: Hub) -> None:
    folder = cached(hub, KNOWN["mini"].repo_id)
    assert locate("mini", hub) == folder
    assert fetch("mini", lambda *_: None, hub) == folder
    assert locate("small", hub) is None


def test_a_partial_cache_is_not_there(hub: Hub) -> None:
    (cached(hub, REPO) / "model-00001-of-00002.safetensors").unlink()
    assert locate(REPO, hub) is None


def test_a_damaged_reference_is_not_followed(hub: Hub) -> None:
    cached(hub, REPO)
    (hub.repo(REPO) / "refs" / "main").write_text("../../..")
    assert locate(REPO, hub) is None


def test_listed_shows_known_and_found_models(hub: Hub) -> None:
    mini = cached(hub, KNOWN["mini"].repo_id)
    cached(hub, REPO)
    cached(hub, "someone/Other", {"config.json": b'{"model_type": "llama"}'})
    (hub.folder() / "models--some\x1b[2J--x").mkdir()
    blobs = hub.repo(KNOWN["small"].repo_id) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "x.incomplete").write_bytes(b"12345")
    rows = {row.name: row for row in listed(hub)}
    assert list(rows) == ["mini", "small", REPO]
    assert rows["mini"].folder == mini
    assert rows["mini"].bytes == sum(len(data) for data in checkpoint_files().values())
    assert (rows["small"].folder, rows["small"].fetched_bytes) == (None, 5)
    assert rows["small"].bytes == KNOWN["small"].bytes


def test_asking_imports_no_http_client_and_no_torch() -> None:
    code = (
        "import sys; from voxcli.engines.voxtral.checkpoint import catalog as c; c.locate('mini'); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'httpx', 'httpx2', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
