"""Turns errors of a download from the model hub into ModelErrors.

huggingface_hub raises errors of its own, of its HTTP library and of the disk. Messages contain no redirected
addresses, because these carry signatures.
"""

import difflib
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from voxcli.config.proxies import check_certificates, check_proxies
from voxcli.errors import ModelError
from voxcli.printable import first_line


def foreign_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that huggingface_hub, its HTTP library and the disk raise."""
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's own error derives from the base of its library's errors: of requests, httpx or httpx2.
    return (OSError, ValueError, *HfHubHTTPError.__bases__)


@contextmanager
def translated(repo_id: str, known_ids: Sequence[str]) -> Iterator[None]:
    """Turn foreign errors into a ModelError; a misspelt id is compared with `known_ids` for the hint.

    Raises:
        ConfigError: a proxy or the certificates that the environment names can't be used. The hub's library refuses
            them whatever it connects to.
    """
    check_proxies()
    check_certificates()
    try:
        yield
    except foreign_errors() as error:
        raise _model_error(error, repo_id, known_ids) from error


def again(repo_id: str) -> str:
    """Return the hint for a temporary error, after which the download resumes."""
    return f"run again, it goes on where it stopped: voxcli models pull {repo_id}"


def _model_error(error: Exception, repo_id: str, known_ids: Sequence[str]) -> ModelError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repo_id}"
        hint = f"accept its licence at {page}, then run `hf auth login` or set HF_TOKEN"
        return ModelError(f"{repo_id} is gated: its licence must be accepted first", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"the hub has no model {repo_id}, or it is private", hint=_other_id(repo_id, known_ids))
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refused(error.response.status_code, repo_id)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(f"the disk is full, {repo_id} is partly fetched", hint=f"make room, then {again(repo_id)}")
    if isinstance(error, PermissionError):
        return ModelError(f"can't write to {error.filename}", hint="set HF_HOME to a folder that you may write to")
    return _cut_off(error, repo_id)


def _refused(status: int, repo_id: str) -> ModelError:
    if status in (401, 403):
        hint = "run `hf auth login`, or correct or unset HF_TOKEN"
        return ModelError(f"the hub refuses access to {repo_id} (HTTP {status})", hint=hint)
    if status == 404:
        return ModelError(f"the hub no longer has this version of {repo_id}", hint=again(repo_id))
    return ModelError(f"the hub could not deliver {repo_id} (HTTP {status})", hint=again(repo_id))


def _cut_off(error: BaseException, repo_id: str) -> ModelError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    while error.__cause__:  # the first cause is the shortest and most precise
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(f"{repo_id} is not here, and HF_HUB_OFFLINE forbids to fetch it", hint="unset HF_HUB_OFFLINE")
    hint = f"check the connection, then {again(repo_id)}"
    return ModelError(f"{repo_id} could not be fetched: {first_line(error)}", hint=hint)


def _other_id(repo_id: str, known_ids: Sequence[str]) -> str:
    if near := difflib.get_close_matches(repo_id, known_ids, n=1, cutoff=0.7):
        return f"did you mean {near[0]}?"
    return "check the id; for a private model run `hf auth login` or set HF_TOKEN"
