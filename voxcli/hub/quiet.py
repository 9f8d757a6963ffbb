"""Redirects the terminal output of other libraries into the log.

Their loggers have handlers that write to stderr. Importing this module imports none of these libraries.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

LIBRARIES = ("accelerate", "huggingface_hub", "mistral_common", "torch", "torchao", "transformers", "triton")
TRACE = "torch.__trace"  # this logger writes a large file if TORCH_TRACE is set


@contextmanager
def quiet() -> Iterator[None]:
    """Send warnings and log records of other libraries to the root logger, and hide their progress bars."""
    with ExitStack() as restored:
        _import_logging_of_the_hub()
        for logger in _loggers():
            _redirect(logger, restored)
        restored.enter_context(_logged_warnings())
        _hide_progress_bars(restored)
        yield


def _import_logging_of_the_hub() -> None:
    """Import the hub's logging, whose import adds a handler, before handlers are redirected."""
    if "huggingface_hub" in sys.modules:
        import huggingface_hub.utils.logging  # noqa: F401


def _loggers() -> list[logging.Logger]:
    """Return the loggers of other libraries that have handlers or do not propagate."""
    named = [logging.getLogger(name) for name in LIBRARIES]
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    inner = [logger for logger in known if "." in logger.name and logger.name.split(".")[0] in LIBRARIES]
    loud = [logger for logger in inner if logger.handlers or not logger.propagate]
    return named + [logger for logger in loud if logger.name != TRACE]


def _redirect(logger: logging.Logger, restored: ExitStack) -> None:
    """Make a logger send its records to the root logger only."""
    handlers, propagate = logger.handlers, logger.propagate
    # Without any handler, logging itself would write warnings to stderr.
    logger.handlers, logger.propagate = [logging.NullHandler()], True

    def restore() -> None:
        logger.handlers, logger.propagate = handlers, propagate

    restored.callback(restore)


@contextmanager
def _logged_warnings() -> Iterator[None]:
    log = logging.getLogger("py.warnings")
    if not log.handlers:
        log.addHandler(logging.NullHandler())

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001 - part of the signature
        line: str | None = None,
    ) -> None:
        log.warning("%s", warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


def _hide_progress_bars(restored: ExitStack) -> None:
    bars: Any = sys.modules.get("transformers.utils.logging")
    if bars and bars.is_progress_bar_enabled():
        bars.disable_progress_bar()
        restored.callback(bars.enable_progress_bar)
