"""Joining weights from packages: whole or not at all, whoever else does it, whatever is damaged."""

import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxcli.engines.embedded import weights
from voxcli.engines.embedded.weights import FOLDER, WeightFile, installed_package, missing_packages, prepare, prepared
from voxcli.errors import ModelError

FIRST, SECOND, SMALL = b"first half, " * 200_000, b"second half", b"{}"


def weight_file(name: str, content: bytes, *parts: str) -> WeightFile:
    return WeightFile(name, len(content), hashlib.sha256(content).hexdigest(), parts)


FILES = (
    weight_file("whisper/model.bin", FIRST + SECOND, "first_package/data/model.part1", "second_package/model.part2"),
    weight_file("whisper/config.json", SMALL, "first_package/data/config.json"),
)


class Packages:
    """Fake packages in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("first_package/data/model.part1", FIRST)
        self.write("first_package/data/config.json", SMALL)
        self.write("second_package/model.part2", SECOND)

    def write(self, part: str, content: bytes) -> None:
        (self.folder / part).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / part).write_bytes(content)

    def find(self, name: str) -> Path | None:
        return self.folder / name if (self.folder / name).is_dir() else None

    def prepare(self, cache: Path) -> Path:
        return prepare(cache, FILES, self.find)


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path / "packages")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "voxcli"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"whisper/model.bin": FIRST + SECOND, "whisper/config.json": SMALL}


def test_parts_are_joined_in_order_once(packages: Packages, cache: Path) -> None:
    notices: list[str] = []
    folder = prepare(cache, FILES, packages.find, notices.append)
    assert folder == cache / FOLDER
    assert contents(folder) == WHOLE
    assert prepared(cache, FILES) == folder
    assert len(notices) == 1
    assert prepare(cache, FILES, lambda _: None, notices.append) == folder  # The packages are not needed.
    assert len(notices) == 1
    assert [path.name for path in cache.iterdir()] == [FOLDER]


def test_nothing_is_prepared_before(cache: Path) -> None:
    assert prepared(cache, FILES) is None


@pytest.mark.parametrize(
    "part", ["first_package/data/model.part1", "second_package/model.part2", "first_package/data/config.json"]
)
def test_a_damaged_part_is_refused_and_leaves_nothing(packages: Packages, cache: Path, part: str) -> None:
    sound = (packages.folder / part).read_bytes()
    packages.write(part, b"X" + sound[1:])  # of the same size
    with pytest.raises(ModelError, match="damaged") as caught:
        packages.prepare(cache)
    assert part.split("/", 1)[0].replace("_", "-") in caught.value.hint
    assert caught.value.hint.startswith("pip install --force-reinstall")
    assert list(cache.iterdir()) == []
    packages.write(part, sound)
    assert contents(packages.prepare(cache)) == WHOLE


def test_missing_packages_are_named_before_anything_is_written(packages: Packages, cache: Path) -> None:
    (packages.folder / "second_package").rename(packages.folder / "gone")
    assert missing_packages(FILES, packages.find) == ["second_package"]
    with pytest.raises(ModelError, match="second_package") as caught:
        packages.prepare(cache)
    assert caught.value.hint == weights.INSTALL
    assert not cache.exists()


def test_a_file_that_its_package_lacks_is_named(packages: Packages, cache: Path) -> None:
    (packages.folder / "first_package/data/config.json").unlink()
    with pytest.raises(ModelError, match=r"data/config\.json of the package first_package: No such file"):
        packages.prepare(cache)
    assert list(cache.iterdir()) == []


def test_a_part_that_can_not_be_read_is_no_fault_of_the_cache(packages: Packages, cache: Path) -> None:
    (packages.folder / "first_package/data/config.json").unlink()
    (packages.folder / "first_package/data/config.json").mkdir()
    with pytest.raises(ModelError, match=r"can't read data/config\.json"):
        packages.prepare(cache)


@pytest.mark.parametrize("change", ["truncate", "remove"])
def test_a_folder_that_is_not_whole_is_made_again(packages: Packages, cache: Path, change: str) -> None:
    model = packages.prepare(cache) / "whisper/model.bin"
    model.write_bytes(FIRST) if change == "truncate" else model.unlink()
    assert prepared(cache, FILES) is None
    assert contents(packages.prepare(cache)) == WHOLE
    assert [path.name for path in cache.iterdir()] == [FOLDER]


def test_a_folder_that_another_process_made_meanwhile_stays(packages: Packages, cache: Path) -> None:
    def find_slowly(name: str) -> Path | None:  # called while the parts are joined
        if cache.exists() and not (cache / FOLDER).exists():
            made.append(packages.prepare(cache).stat().st_ino)
        return packages.find(name)

    made: list[int] = []
    assert prepare(cache, FILES, find_slowly) == cache / FOLDER
    assert made == [(cache / FOLDER).stat().st_ino]
    assert contents(cache / FOLDER) == WHOLE
    assert [path.name for path in cache.iterdir()] == [FOLDER]


def test_what_dead_processes_left_is_swept_and_what_lives_stays(packages: Packages, cache: Path) -> None:
    for name in ("dead", "alive"):
        (cache / f".{FOLDER}-{name}" / "new").mkdir(parents=True)
    long_ago = time.time() - weights.STALE_SECONDS - 60
    os.utime(cache / f".{FOLDER}-dead", (long_ago, long_ago))
    packages.prepare(cache)
    assert sorted(path.name for path in cache.iterdir()) == [f".{FOLDER}-alive", FOLDER]


def test_a_cache_that_is_a_file_is_told(packages: Packages, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="can't write the embedded engine's weights") as caught:
        packages.prepare(tmp_path / "file")
    assert "MB" in caught.value.hint


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_told(packages: Packages, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ModelError, match="Permission denied"):
        packages.prepare(cache)


# A process that prepares the same files; its second part is a pipe, so that it waits there until it is written.
PROGRAM = """
import sys
from pathlib import Path
from tests.engines.embedded.test_weights import FILES
from voxcli.engines.embedded.weights import prepare
packages = Path(sys.argv[1])
print("begun", flush=True)
print(prepare(Path(sys.argv[2]), FILES, lambda name: packages / name))
"""


def start(packages: Path, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(packages), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent.parent.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_killed_process_leaves_nothing_under_the_final_name(packages: Packages, cache: Path) -> None:
    part = packages.folder / "second_package/model.part2"
    part.unlink()
    os.mkfifo(part)
    with start(packages.folder, cache) as process, part.open("wb"):  # opens when the process has come to it
        process.kill()
    assert not (cache / FOLDER).exists()
    assert [path.name.startswith(f".{FOLDER}-") for path in cache.iterdir()] == [True]
    part.unlink()
    part.write_bytes(SECOND)
    assert contents(packages.prepare(cache)) == WHOLE


def test_processes_at_once_all_get_the_whole_folder(packages: Packages, cache: Path) -> None:
    processes = [start(packages.folder, cache) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert answers == [["begun", str(cache / FOLDER)]] * 3
    assert contents(cache / FOLDER) == WHOLE
    assert [path.name for path in cache.iterdir()] == [FOLDER]


def test_packages_are_found_without_being_imported() -> None:
    found = installed_package("wsgiref")
    assert found is not None
    assert (found / "simple_server.py").is_file()
    assert installed_package("no_such_package_anywhere") is None


def test_the_sizes_and_sums_are_those_of_the_installed_packages() -> None:
    for file in weights.FILES:
        digest, size = hashlib.sha256(), 0
        for part in file.parts:
            package, _, name = part.partition("/")
            folder = installed_package(package)
            assert folder, f"{package} is not installed: {weights.INSTALL}"
            with (folder / name).open("rb") as stream:
                while block := stream.read(weights.BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
        assert (size, digest.hexdigest()) == (file.bytes, file.sha256)
