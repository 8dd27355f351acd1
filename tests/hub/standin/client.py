"""Real clients of the stand-in Hub, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.hub.standin.server import StandIn

# Settings of the surroundings that would lead a client elsewhere.
FOREIGN = ("HF_", "HUGGING", "WEIGHTSURGERY_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SECONDS = 240
WS = str(Path(sys.executable).with_name("ws"))


class HubClient:
    """Runs commands and Python code against a stand-in Hub, with settings and caches of its own."""

    def __init__(self, server: StandIn, directory: Path) -> None:
        self.server, self.directory = server, directory
        directory.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(FOREIGN)}
        self.env = kept | {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(directory / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if server.cas else "1",
            "HF_TOKEN": "hf_owner",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "WEIGHTSURGERY_CACHE": str(directory / "ws-cache"),
            "OMP_NUM_THREADS": "1",
        }

    def ws(
        self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``ws``; text of both outputs, no check of the exit status."""
        return self.run([WS, *map(str, arguments)], env, cwd)

    def python(
        self,
        code: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code with arguments; text of both outputs, no check of the exit status."""
        return self.run([sys.executable, "-c", code, *map(str, arguments)], env, cwd)

    def run(
        self, command: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run any command with the client's settings."""
        return subprocess.run(
            command,
            env=self.env | dict(env or {}),
            cwd=cwd or self.directory,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
