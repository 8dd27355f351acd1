"""Failures of a push as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from weightsurgery.checkpoint.hub_errors import first_line, hub_errors
from weightsurgery.errors import HubError

__all__ = ["push_errors", "uses_xet"]

_AGAIN = "Run it again: what was uploaded is not uploaded twice."


@contextmanager
def push_errors(where: str, doing: str = "push") -> Iterator[None]:
    """Turn failures of huggingface_hub, of hf_xet and of the way to the Hub into errors.

    Args:
        where: The repository as the user named it.
        doing: ``"push"``, ``"create"`` a repository or a branch, or ``"commit"``.

    Raises:
        HubError: See the message.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with hub_errors(where, HubError, _AGAIN if doing == "commit" else ""):
        try:
            with _refusals(where, doing):
                yield
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            raise HubError(
                f"{where}: no repository that this token can see",
                "Check the spelling and the account: 'hf auth whoami' says whose token it is.",
            ) from None


@contextmanager
def _refusals(where: str, doing: str) -> Iterator[None]:
    """Turn failures that only writing meets into errors; others pass through."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RuntimeError as error:
        # While it uploads, huggingface_hub wraps what happened.
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError, OfflineModeIsEnabled):
        raise
    except HfHubHTTPError as error:
        raise (_refused(where, doing, error) or error) from None
    except PermissionError as error:  # hf_xet's, or a file that may not be read
        raise HubError(
            f"{where}: {first_line(error)}",
            "Use a token that may write there, and files that may be read.",
        ) from None
    except ConnectionError as error:
        raise _without_xet(where, error) or error from None
    except ValueError as error:
        raise _invalid(where, error) or error from None


def _refused(where: str, doing: str, error: Exception) -> HubError | None:
    """The error for a status; None for those that reading meets too."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None) or first_line(error)
    if status == 412:
        return HubError(f"{where}: somebody committed while this push went on ({message})", _AGAIN)
    if status == 409 and doing == "create":
        return HubError(
            f"{where}: exists already ({message})",
            "Run it again; if it is somebody else's, choose another name.",
        )
    if status == 409:
        return HubError(f"{where}: another push is going on ({message})", _AGAIN)
    if status == 403 and doing == "create":
        return HubError(
            f"{where}: this token may not create it ({message})",
            "Use a namespace of your own, or a token that may write there.",
        )
    if status == 400:
        return HubError(f"{where}: the Hub refuses it ({message})", "Mend that, and run it again.")
    if status == 413:
        return HubError(f"{where}: too large for one commit ({message})", "Push fewer files.")
    return None


def _without_xet(where: str, error: ConnectionError) -> HubError | None:
    if type(error) is not ConnectionError or not uses_xet():
        return None
    return HubError(
        f"{where}: the upload by xet could not connect ({first_line(error)})",
        f"Set HF_HUB_DISABLE_XET=1 if this server has no xet. {_AGAIN}",
    )


def uses_xet() -> bool:
    """Whether huggingface_hub sends large files by xet."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _invalid(where: str, error: ValueError) -> HubError | None:
    """The error for an object that the Hub does not store; None for other errors."""
    message = " ".join(str(error).split())
    if message.startswith(("LFS batch API returned errors", "Malformed response")):
        return HubError(f"{where}: {message}", _AGAIN)
    return None
