"""The free memory of this process: the machine's, limited by its control groups."""

import os
from contextlib import suppress
from pathlib import Path

UNLIMITED = 1 << 60  # version 1 of control groups writes such a number for no limit


def ram_free_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory available without swapping, in bytes; None if unknown.

    Args:
        root: folder that contains `proc` and `sys`.
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
    """Return the bytes left by the tightest control group around this process; None without a limit.

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
        # In a container, the path may belong to the host; then the mount itself is the container's group.
        folders = [inner, *inner.parents] if inner.is_dir() else [mount]
        left += [_left(folder, limit, usage) for folder in folders if folder == mount or mount in folder.parents]
    return min((free for free in left if free is not None), default=None)


def _left(folder: Path, limit: str, usage: str) -> int | None:
    """Return the bytes that a control group has left; file pages that can be dropped count as free."""
    with suppress(OSError, ValueError):
        most = int((folder / limit).read_text(encoding="ascii"))  # `max`, which means no limit, raises ValueError
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
