"""Commands that run without the rights that tests may have: root's, or those over a disk."""

import os
import shutil
import subprocess

import pytest

LIMITS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
OWN_DISKS = ["unshare", "--mount"]


def bound_by_permissions(command: list[str]) -> list[str]:
    """Return a command that the permissions of files bind, even if root starts it."""
    if os.name != "posix":
        pytest.skip("permissions are POSIX's")
    if os.geteuid() != 0:
        return command
    if not works([*LIMITS, "true"]):
        pytest.skip("root ignores permissions, and setpriv can't take that from it here")
    return [*LIMITS, *command]


def with_own_disks(command: list[str]) -> list[str]:
    """Return a command that may mount disks that nobody else sees."""
    for options in (["--map-root-user"], []):
        inside = [*OWN_DISKS, *options]
        if works([*inside, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]):
            return [*inside, *command]
    pytest.skip("no disk can be mounted here")


def works(command: list[str]) -> bool:
    """Return whether a command exists and succeeds."""
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
