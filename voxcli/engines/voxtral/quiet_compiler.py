"""Keeps torch's compiler from writing to the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from voxcli.hub.quiet import quiet

INDUCTOR = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}  # tables that it prints


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Do the same as `quiet`, and keep inductor from printing its measurements."""
    import torch._inductor.config as inductor

    settings: Any = inductor
    known = {name: value for name, value in INDUCTOR.items() if hasattr(settings, name)}
    with quiet(), settings.patch(known):
        yield
