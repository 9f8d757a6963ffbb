"""Tests of finding and fetching the file of the end-of-turn model, from a hub on the loopback."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model_hub import COMMIT, FakeHub
from voxcli.chat.speech import turn_model
from voxcli.chat.speech.turn_model import PACKAGE_FOLDER, checked, fetch, fetched, packaged
from voxcli.errors import ModelError
from voxcli.hub.single_file import HubFile

CONTENT = b"model" * 1000
FILE = HubFile("owner/turns", COMMIT, "turns.onnx", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub({FILE.name: CONTENT})


@pytest.fixture
def endpoint(hub: FakeHub) -> Iterator[str]:
    server = hub.serve()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def nowhere(_package: str) -> None:
    return None


def package(folder: Path, content: bytes) -> Path:
    """Make a package that contains the model."""
    (folder / PACKAGE_FOLDER).mkdir(parents=True)
    (folder / PACKAGE_FOLDER / FILE.name).write_bytes(content)
    return folder


def test_the_revision_is_fetched_once_and_nothing_else_is_left(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    notices: list[str] = []
    assert fetched(tmp_path, FILE) is None
    path = fetch(tmp_path, nowhere, FILE, endpoint, notices.append)
    assert path.read_bytes() == CONTENT
    assert path == fetched(tmp_path, FILE)
    assert list(path.parent.iterdir()) == [path]
    assert {asked.partition("/owner/turns/")[2] for _, asked, _ in hub.log} == {
        f"revision/{COMMIT}",
        f"resolve/{COMMIT}/turns.onnx",
    }
    requests = len(hub.log)
    assert fetch(tmp_path, nowhere, FILE, endpoint, notices.append) == path
    assert len(hub.log) == requests
    assert notices == ["fetching owner/turns, licence BSD-2-Clause", "smart-turn is already here"]


def test_an_installed_package_spares_the_download(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    installed = package(tmp_path / "package", CONTENT)
    path = fetch(tmp_path / "cache", lambda _: installed, FILE, endpoint)
    assert path.read_bytes() == CONTENT
    assert hub.log == []


def test_another_version_in_the_package_is_refused(tmp_path: Path) -> None:
    installed = package(tmp_path / "package", b"another version")
    with pytest.raises(ModelError, match="damaged or another version"):
        fetch(tmp_path / "cache", lambda _: installed, FILE)
    assert fetched(tmp_path / "cache", FILE) is None


def test_a_download_that_was_damaged_is_not_kept(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    hub.corrupt = True
    with pytest.raises(ModelError, match="damaged"):
        fetch(tmp_path, nowhere, FILE, endpoint)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("refuse", "says"), [((404, "RepoNotFound"), "the hub has no model"), ((403, ""), "refuses access")]
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: FakeHub, endpoint: str, tmp_path: Path, refuse: tuple[int, str], says: str
) -> None:
    hub.refuse = refuse
    with pytest.raises(ModelError, match=says) as caught:
        fetch(tmp_path, nowhere, FILE, endpoint)
    assert "\n" not in caught.value.message


def test_a_hub_that_is_out_of_reach_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be fetched") as caught:
        fetch(tmp_path, nowhere, FILE, "http://127.0.0.1:9")
    assert turn_model.PULL in caught.value.hint


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="can't write"):
        fetch(tmp_path / "file", nowhere, FILE)


def test_a_file_that_was_damaged_later_is_noticed(tmp_path: Path) -> None:
    path = fetch(tmp_path, lambda _: package(tmp_path / "package", CONTENT), FILE)
    path.write_bytes(CONTENT[:-1])
    for use in (lambda: checked(path, FILE), lambda: fetch(tmp_path, nowhere, FILE)):
        with pytest.raises(ModelError, match="damaged") as caught:
            use()
        assert caught.value.hint == f"delete it, then: {turn_model.PULL}"


def test_a_package_without_the_file_has_no_model(tmp_path: Path) -> None:
    assert packaged(lambda _: tmp_path, FILE) is None
    assert packaged(nowhere, FILE) is None
