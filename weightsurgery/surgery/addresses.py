"""Whether something answers at an address; Ray would try for minutes, and then exit."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["running", "unanswered"]

# Until an address counts as wrong.
_SECONDS = 5.0


def running() -> str | None:
    """The Ray cluster that was started last on this machine, if it still answers."""
    noted = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    address = noted.read_text().strip() if noted.is_file() else ""
    return address if address and not unanswered(address) else None


def unanswered(place: str) -> str | None:
    """Why nothing listens at ``host:port``; None if something does."""
    host, _, port = place.rpartition(":")
    try:
        if not host:
            raise ValueError("no port in it")
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None
