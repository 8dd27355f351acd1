"""From what huggingface_hub raises to errors of ours, in one place for reading and writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from weightsurgery.errors import SourceError, WeightSurgeryError
from weightsurgery.suggestions import near_path

__all__ = ["first_line", "hub_errors"]

_LOGIN = "run 'hf auth login', or set HF_TOKEN"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def hub_errors(
    where: str, kind: type[WeightSurgeryError] = SourceError, again: str = ""
) -> Iterator[None]:
    """Turn failures of the Hub, of the way to it and of the cache into errors with a remedy.

    Anything else passes through: it is a bug, and should look like one.

    Args:
        where: The repository as the user named it, with its revision.
        kind: What is raised.
        again: What to do, too, where the Hub could not be reached.

    Raises:
        WeightSurgeryError: Of that kind.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,  # the HTTP client's, which is another one in every version
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise kind(
            f"{where}: gated repository", f"Ask for access on its page, then {_LOGIN}."
        ) from None
    except RevisionNotFoundError:
        raise kind(
            f"{where}: no such revision", "Name a branch, tag or commit of the repository."
        ) from None
    except DisabledRepoError:
        raise kind(f"{where}: the Hub has disabled this repository", "See its page.") from None
    except RepositoryNotFoundError:
        raise kind(
            f"{where}: neither a directory here nor a repository you can see on the Hub",
            f"{near_path(where)}Check the spelling; for a private repository {_LOGIN}.",
        ) from None
    except HFValidationError:
        raise kind(
            f"{where}: neither a directory here nor a possible name on the Hub",
            "Give a directory, or org/name[@revision] on the Hub.",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise kind(
            f"{where}: what answers is not the Hub: no JSON",
            "Check HF_ENDPOINT, and that no login page of the network stands in between.",
        ) from None
    except LocalTokenNotFoundError:
        raise kind(f"{where}: no token for the Hub", f"To log in, {_LOGIN}.") from None
    except OfflineModeIsEnabled as error:
        raise _unreachable(kind, where, error, again) from None
    except (LocalEntryNotFoundError, HTTPError, ConnectionError, TimeoutError) as error:
        raise _answered(kind, where, error, again) from None
    except EntryNotFoundError as error:
        raise kind(
            f"{where}: a file is missing ({first_line(error)})",
            "Name a revision that has it, or ask the repository's owner.",
        ) from None
    except OSError as error:
        raise kind(
            f"{where}: could not be stored in the Hub's cache ({first_line(error)})",
            "Check the space and the permissions there; HF_HOME moves the cache.",
        ) from None


def _answered(
    kind: type[WeightSurgeryError], where: str, error: BaseException, again: str
) -> WeightSurgeryError:
    """By the status the Hub answered with; none means that it was not reached."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None) or first_line(error)
    if status == 401:
        return kind(
            f"{where}: the Hub does not accept this token ({message})", f"Log in again: {_LOGIN}."
        )
    if status == 403:
        return kind(
            f"{where}: the token may not do this ({message})",
            "Use a token with the permission, of an account that has access.",
        )
    if status == 429:
        return kind(
            f"{where}: too many requests ({message})", "Wait a few minutes, and run it again."
        )
    return _unreachable(kind, where, error, again)


def _unreachable(
    kind: type[WeightSurgeryError], where: str, error: BaseException, again: str
) -> WeightSurgeryError:
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_line(error)
    if issubclass(kind, SourceError):
        return kind(
            f"{where}: no such directory here, and the Hub could not be reached ({reason})",
            f"{near_path(where)}Check the path or the connection; with HF_HUB_OFFLINE=1 only cached"
            f" files are used. {again}".rstrip(),
        )
    return kind(
        f"{where}: the Hub could not be reached ({reason})",
        f"Check the connection, and that HF_HUB_OFFLINE is not set. {again}".rstrip(),
    )
