"""No file that a run reads is written, and none that exists is replaced without a flag."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from voxcli.errors import ConfigError
from voxcli.output_files import OutputFiles, ignores_case


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/q.wav").write_bytes(b"sound")
    return tmp_path


def never(_path: Path) -> bool:
    return False


def refusal(output: str | Path, *inputs: str, force: bool = True, ignored_case: bool = False) -> str:
    """Return why an output is refused; empty if it is not."""
    files = OutputFiles(force=force, ignores_case=lambda _: ignored_case)
    files.add_inputs(inputs)
    try:
        files.check(Path(output), "--save-reply")
    except ConfigError as error:
        return f"{error.message} | {error.hint}"
    return ""


@pytest.mark.parametrize(
    ("output", "make"),
    [
        ("in/q.wav", lambda: None),
        ("./in/../in//q.wav", lambda: None),
        ("absolute", lambda: None),
        ("hard.wav", lambda: os.link("in/q.wav", "hard.wav")),
        ("soft.wav", lambda: Path("soft.wav").symlink_to("in/q.wav")),
        ("linked/q.wav", lambda: Path("linked").symlink_to("in")),
    ],
)
def test_an_input_is_known_by_every_name(output: str, make: Callable[[], object]) -> None:
    make()
    path = Path("in/q.wav").absolute() if output == "absolute" else output
    assert "--save-reply would replace" in refusal(path, "other.wav", "in/q.wav")
    assert "which this run reads" in refusal("in/q.wav", str(path))
    assert refusal("in/other.wav", "in/q.wav") == ""


def test_an_input_that_does_not_exist_yet_is_known_too() -> None:
    Path("dangling.wav").symlink_to("in/new.wav")
    for name in ("in/new.wav", "in/../in/new.wav", "dangling.wav"):
        assert "which this run reads" in refusal(name, "in/new.wav")
    assert refusal("in/NEW.wav", "in/new.wav") == ""
    assert "which this run reads" in refusal("in/NEW.wav", "in/new.wav", ignored_case=True)
    assert "which this run reads" in refusal("in/u\u0308.wav", "in/\u00fc.wav", ignored_case=True)
    assert refusal("no/where/x.wav", "no/where/y.wav", "\0", "x" * 300) == ""


def test_nothing_is_replaced_without_a_flag() -> None:
    assert "exists" in refusal("in/q.wav", force=False)
    assert refusal("in/q.wav") == ""
    Path("empty.wav").touch()
    Path("dangling.wav").symlink_to("gone.wav")
    assert [refusal(name, force=False) != "" for name in ("empty.wav", "new.wav", "dangling.wav", os.devnull)] == [
        False,
        False,
        True,
        False,
    ]
    OutputFiles().check(Path("in/q.wav"), "--save-reply", is_own=True)
    OutputFiles().check_all([Path("in/q.wav")], "--save-replies", lambda path: path.name == "q.wav")
    with pytest.raises(ConfigError, match="exists"):
        OutputFiles().check_all([Path("in/q.wav")], "--save-replies", never)


def test_two_outputs_are_not_one_file() -> None:
    files = OutputFiles(force=True)
    files.check(Path("a.wav"), "--out")
    with pytest.raises(ConfigError, match="--out and --save-replies name the same file"):
        files.check_all([Path("b.wav"), Path("in/../a.wav")], "--save-replies", never)
    with pytest.raises(ConfigError, match="--out and --record name the same file"):
        files.check(Path("./a.wav"), "--record")


def test_many_outputs_are_compared_with_all_inputs_and_with_each_other() -> None:
    files = OutputFiles(ignores_case=lambda _: True)
    files.add_inputs([f"in/{number}.wav" for number in range(1000)])
    files.check_all([Path(f"out/{number}.wav") for number in range(1000)], "--save-replies", never)
    with pytest.raises(ConfigError, match="which this run reads"):
        files.check_all([Path("out/x.wav"), Path("in/999.wav")], "--save-replies", never)
    with pytest.raises(ConfigError, match=r"out/a\.wav and out/A\.wav are one file"):
        files.check_all([Path(f"out/{name}.wav") for name in "abA"], "--save-replies", never)


def test_a_dash_is_standard_output_and_not_a_file() -> None:
    assert "- is standard output" in refusal("-")


def test_whether_case_matters_is_seen_from_the_folder_itself() -> None:
    Path("Some").mkdir()
    assert ignores_case(str(Path("Some").absolute())) == Path("sOME").exists()
    assert not ignores_case("/")
    Path("123").mkdir()
    assert ignores_case(str(Path("123").absolute())) == ignores_case(str(Path.cwd()))
