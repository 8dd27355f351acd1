"""A stand-in Hugging Face Hub over loopback, which counts bytes and fails on demand.

It speaks the wire protocol of the real one as far as models go: see ``routes``. Large files are
served from a second origin that takes no token, as the real Hub's are from its CDN.

    with StandIn() as server:
        server.add("org/model", {"config.json": b"{}"})
        ...                                    # clients with HF_ENDPOINT=server.endpoint
        assert server.sent("/cdn/") < 1000
"""

from __future__ import annotations

import hmac
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tests.hub.standin import reading, uploads, writing  # noqa: F401 -- they register their routes
from tests.hub.standin.repos import Commit, Discussion, Repo, Store
from tests.hub.standin.wire import Fault, Request, Server
from tests.hub.standin.xet import Cas

__all__ = ["Commit", "Discussion", "Repo", "Request", "StandIn"]


class StandIn:
    """The server; a context manager.

    Attributes:
        endpoint: Where it listens, for ``HF_ENDPOINT``.
        tokens: User of each token. Users own the namespace of their name, ``owner`` all others too.
        repos: By ``org/name``.
        requests: All requests so far, oldest first.
        part_size: Bytes above which an LFS upload is asked for in parts, and of each part.
        released: Set it to let go of connections that are held.
        page_size: Files in one page of a tree, discussions in one of theirs.
    """

    def __init__(self, xet: Path | Literal[False] = False) -> None:
        self.tokens = {"hf_owner": "owner", "hf_other": "other"}
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.part_size = 5 * 2**20
        self.page_size = 1000
        self.lock = threading.RLock()
        self.directory = Path(tempfile.mkdtemp(prefix="hub-"))
        self.cas = Cas(xet) if xet else None
        self.store = Store(self.directory, self.cas)
        self.secret = secrets.token_bytes(16)
        self.parts: dict[tuple[str, int], bytes] = {}
        self.released = threading.Event()
        self._servers = [Server(self, storage) for storage in (False, True)]
        self._threads = [
            threading.Thread(target=each.serve_forever, args=(0.02,), daemon=True)
            for each in self._servers
        ]
        for thread in self._threads:
            thread.start()
        self.endpoint, self.cdn = (each.url for each in self._servers)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
        shutil.rmtree(self.directory)

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        private: bool = False,
        gated: bool = False,
        message: str = "First commit",
    ) -> Repo:
        """Make a repository with one commit. Its owner: see :meth:`create`."""
        repo = self.create(repo_id, private, gated)
        repo.commit(files, message)
        return repo

    def create(self, repo_id: str, private: bool = False, gated: bool = False) -> Repo:
        """Make an empty repository, of the user its namespace is named after, else of `owner`."""
        space = repo_id.split("/")[0]
        owner = space if space in self.tokens.values() else "owner"
        self.repos[repo_id] = Repo(repo_id, owner, self.store, private, gated)
        return self.repos[repo_id]

    def sent(self, part: str = "") -> int:
        """Body bytes answered on paths that contain ``part``: downloads."""
        return sum(each.sent for each in list(self.requests) if part in each.path)

    def received(self, part: str = "") -> int:
        """Body bytes taken on paths that contain ``part``: uploads."""
        return sum(each.received for each in list(self.requests) if part in each.path)

    def forget(self) -> None:
        """Start counting anew."""
        self.requests.clear()

    def fault(
        self,
        match: str,
        *,
        method: str | None = None,
        status: int | None = None,
        body: bytes | str | None = None,
        cut_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        lost: bool = False,
        hold: bool = False,
        times: int = 1,
    ) -> None:
        """Let the next requests go wrong whose path (unquoted, with query) matches.

        The path of a large file's content begins with ``/cdn/`` and ends with its name.

        Args:
            match: A regular expression, searched for.
            method: Only requests of this method.
            status: Answer that instead.
            body: What to answer; with status 200 when none is given.
            cut_after: Cut the connection after so many bytes of the body: of the upload where the
                request has one, otherwise of the download. Shorter bodies are let through.
            headers: Further headers of the answer.
            lost: Do what is asked, and hang up without an answer.
            hold: Where a download is to be cut, say nothing more until :attr:`released` is set.
            times: How many requests.
        """
        content = body.encode() if isinstance(body, str) else body
        fault = Fault(
            re.compile(match),
            method,
            status,
            content,
            cut_after,
            dict(headers or {}),
            lost,
            hold,
            times,
        )
        with self.lock:
            self.faults.append(fault)

    def sign(self, path: str) -> str:
        """The signature of a URL of the CDN's origin."""
        return hmac.new(self.secret, path.encode(), "sha256").hexdigest()

    def strike(self, method: str, path: str) -> Fault | None:
        """The fault this request meets, or may meet once there is body enough."""
        with self.lock:
            for each in self.faults:
                fits = each.method in (None, method) and each.match.search(path)
                if fits and each.times > 0:
                    each.times -= 0 if each.waits else 1
                    return each
        return None

    def claim(self, fault: Fault) -> bool:
        """Whether a request may still be struck by a fault it met."""
        with self.lock:
            if fault.waits:
                fault.times -= 1
            return fault.times >= 0
