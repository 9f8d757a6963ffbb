"""How much memory this process can still have: the machine's, and what its control group leaves of that."""

import os
from contextlib import suppress
from pathlib import Path

UNLIMITED = 1 << 60  # version 1 of control groups writes a number like this where there is no limit


def ram_free_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory can be had without swapping; None where it can't be asked for.

    Args:
        root: where `proc` and `sys` lie.
    """
    known = [free for free in (_machine(root), _control_group(root)) if free is not None]
    return min(known, default=None)


def _machine(root: Path) -> int | None:
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_group(root: Path) -> int | None:
    """Return what the tightest of the control groups around this process leaves; None where none has a limit.

    See https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files and cgroup-v1/memory.html.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    left = []
    for line in lines:  # ID:CONTROLLERS:PATH, without controllers in version 2
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mount, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = mount / path.strip("/")
        # In a container the path may be one of the host's; then the mount itself is the container's group.
        folders = [inner, *inner.parents] if inner.is_dir() else [mount]
        left += [_left(folder, limit, usage) for folder in folders if folder == mount or mount in folder.parents]
    return min((free for free in left if free is not None), default=None)


def _left(folder: Path, limit: str, usage: str) -> int | None:
    """Return what a control group may still take; file pages that can be dropped count as free."""
    with suppress(OSError, ValueError):
        most = int((folder / limit).read_text(encoding="ascii"))  # `max` is no number: no limit
        if most < UNLIMITED:
            used = int((folder / usage).read_text(encoding="ascii"))
            return max(0, most - used + _droppable(folder))
    return None


def _droppable(folder: Path) -> int:
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(count)
    return 0
