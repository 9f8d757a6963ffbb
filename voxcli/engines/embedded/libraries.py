"""Imports the libraries of the embedded engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from voxcli.errors import ModelError, missing_extra

LIBRARIES = ("faster_whisper", "xllamacpp")


def check_libraries() -> None:
    """Raise ModelError if one of the libraries of this engine is missing or can't be loaded."""
    for name in LIBRARIES:
        imported(name)


def imported(name: str) -> Any:
    """Import a library of the embedded engine.

    Raises:
        ModelError: it is missing, or can't be loaded.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise missing_extra(ModelError, "The embedded engine", "embedded") from error
    except ImportError as error:  # a library of the system is missing
        raise ModelError(f"{name} can't be loaded: {error}", hint="on Debian: sudo apt-get install libgomp1") from error


def damaged(path: Path, error: Exception) -> ModelError:
    """Return the error for weights that a library can't load."""
    return ModelError(f"can't load {path}: {error}", hint=f"delete {path.parent} and run again: it is made anew")


@contextmanager
def chosen_files(*, is_chosen: bool) -> Iterator[None]:
    """Correct the hint of an error while files are loaded that a user has chosen: they are not made anew."""
    try:
        yield
    except ModelError as error:
        if not is_chosen:
            raise
        hint = "fetch or copy it again; if that does not help, the installed library does not know this model"
        raise ModelError(error.message, hint=hint) from error
