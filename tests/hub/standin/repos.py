"""Repositories of the stand-in Hub: content by hash, commits, branches, discussions."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tests.hub.standin.xet import Cas

# What the Hub keeps outside git: by name, by size, or because it is binary.
NAMES = """
    *.safetensors *.bin *.pt *.pth *.ckpt *.onnx *.h5 *.msgpack *.npy *.npz *.parquet *.arrow
    *.pickle *.pkl *.model *.gguf *.zip *.gz *.tar *.zst
"""
LARGE = NAMES.split()
LARGE_SIZE = 10 * 2**20
ATTRIBUTES = "".join(f"{each} filter=lfs diff=lfs merge=lfs -text\n" for each in LARGE).encode()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is stored by LFS (or xet) instead of in git."""
    named = any(fnmatch(PurePosixPath(path).name, each) for each in LARGE)
    return size > 0 and (named or size > LARGE_SIZE or b"\0" in sample)


def git_oid(content: bytes) -> str:
    """The SHA-1 git gives a blob of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in place of a large file."""
    head = "version https://git-lfs.github.com/spec/v1"
    return f"{head}\noid sha256:{sha256}\nsize {size}\n".encode()


class Store:
    """Content by SHA-256, in files of one directory; large files may lie in a xet CAS instead."""

    def __init__(self, root: Path, cas: Cas | None) -> None:
        self.root, self.cas = root, cas

    def put(self, content: bytes | Path) -> str:
        """Keep a copy of a content and name it."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                name = hashlib.file_digest(file, "sha256").hexdigest()
            shutil.copyfile(content, self.root / name)
        else:
            name = hashlib.sha256(content).hexdigest()
            # Aside first: another thread may be reading the same content.
            aside = self.root / f"{name}.{threading.get_ident()}"
            aside.write_bytes(content)
            aside.replace(self.root / name)
        return name

    def has(self, sha256: str) -> bool:
        return (self.root / sha256).exists() or self.xet_hash(sha256) is not None

    def size(self, sha256: str) -> int:
        here = self.root / sha256
        if here.exists() or self.cas is None:
            return here.stat().st_size
        return self.cas.known()[sha256].size

    def path(self, sha256: str) -> Path:
        """A file with the content; fetched from the CAS when it lies only there."""
        here = self.root / sha256
        if not here.exists() and self.cas is not None:
            self.cas.fetch(sha256, here)
        return here

    def xet_hash(self, sha256: str) -> str | None:
        found = self.cas.known().get(sha256) if self.cas else None
        return found.hash if found else None


@dataclass(frozen=True)
class Entry:
    """A file of a commit: SHA-256 and size of its content, git's name for it, and where it lies."""

    sha256: str
    size: int
    blob: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """A commit. Operations are pairs of kind (``file``, ``lfsFile``, ``deletedFile``) and path."""

    oid: str
    title: str
    parent: str | None
    operations: tuple[tuple[str, str], ...]
    author: str = "owner"
    description: str = ""
    date: str = ""
    tree: Mapping[str, Entry] = field(default_factory=dict, repr=False)


@dataclass
class Discussion:
    """A discussion, or a pull request with its own ref."""

    num: int
    title: str
    author: str
    is_pull_request: bool
    description: str = ""
    base: str = "main"
    head: str | None = None
    status: str = "open"
    date: str = ""

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class Repo:
    """A model repository.

    ``readers`` are users that may read it besides its owner: of a private repository those with
    access, of a gated one those who were granted it.
    """

    def __init__(self, id: str, owner: str, store: Store, private: bool, gated: bool) -> None:  # noqa: A002
        self.id, self.owner, self.store = id, owner, store
        self.private, self.gated = private, gated
        self.readers: set[str] = set()
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        self.created = now()
        self.known: dict[str, Commit] = {}
        self.lock = threading.RLock()

    def find(self, revision: str) -> Commit | None:
        """The commit a branch, tag, pull request or (shortened) commit name stands for."""
        refs = self.branches | self.tags
        refs["HEAD"] = self.branches.get("main", "")
        refs |= {each.ref: each.head for each in self.discussions if each.head}
        oid = refs.get(revision) or refs.get(revision.removeprefix("refs/heads/"))
        if oid is None and len(revision) >= 7:
            oid = next((each for each in self.known if each.startswith(revision)), None)
        return self.known.get(oid) if oid else None

    def at(self, revision: str) -> Commit:
        """As :meth:`find`; KeyError when there is no such revision."""
        found = self.find(revision)
        if found is None:
            raise KeyError(f"{self.id} has no revision {revision}")
        return found

    def head(self, revision: str = "main") -> str:
        return self.at(revision).oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        tree = self.at(revision).tree
        return {path: self.store.path(each.sha256).read_bytes() for path, each in tree.items()}

    def commits(self, revision: str = "main") -> list[Commit]:
        found, here = [], self.find(revision)
        while here is not None:
            found.append(here)
            here = self.known.get(here.parent) if here.parent else None
        return found

    def discuss(
        self,
        title: str,
        author: str,
        description: str = "",
        base: str | None = None,
        start: str | None = None,
    ) -> Discussion:
        """Open a discussion; with a branch, a pull request to it, from ``start`` or its head."""
        with self.lock:
            head = start or self.head(base) if base else None
            opened = Discussion(
                num=len(self.discussions) + 1,
                title=title,
                author=author,
                is_pull_request=base is not None,
                description=description,
                base=base or "main",
                head=head,
                date=now(),
            )
            self.discussions.append(opened)
            return opened

    def entry(self, path: str, content: bytes | Path) -> Entry:
        """Keep a content, as the Hub would store it under this path."""
        sha256 = self.store.put(content)
        where = self.store.path(sha256)
        size = where.stat().st_size
        with where.open("rb") as file:
            lfs = is_large(path, size, file.read(512))
        if lfs and self.store.cas is not None and self.store.xet_hash(sha256) is None:
            self.store.cas.push(where)
        return self.point(sha256, size) if lfs else Entry(
            sha256, size, git_oid(where.read_bytes()), False
        )  # fmt: skip

    def point(self, sha256: str, size: int) -> Entry:
        """A large file that is in the store already."""
        return Entry(sha256, size, git_oid(pointer(sha256, size)), True)

    def commit(
        self,
        changes: Mapping[str, bytes | Path | None],
        message: str = "A rival's commit",
        revision: str = "main",
    ) -> str:
        """Commit behind the clients' backs; None deletes a file. Returns the commit."""
        entries = {
            path: None if content is None else self.entry(path, content)
            for path, content in changes.items()
        }
        kinds = {None: "deletedFile", False: "file", True: "lfsFile"}
        operations = [(kinds[each.lfs if each else None], path) for path, each in entries.items()]
        return self.record(revision, entries, operations, message, self.owner).oid

    def record(
        self,
        revision: str,
        changes: Mapping[str, Entry | None],
        operations: Iterable[tuple[str, str]],
        title: str,
        author: str,
        description: str = "",
    ) -> Commit:
        """Write a commit upon a branch or pull request and move it there."""
        with self.lock:
            parent = self.find(revision)
            tree = dict(parent.tree) if parent else {}
            for path, each in changes.items():
                if each is None:
                    tree.pop(path, None)
                else:
                    tree[path] = each
            tree = dict(sorted(tree.items()))
            told = repr((self.id, len(self.known), parent and parent.oid, title, tree))
            made = Commit(
                hashlib.sha1(told.encode()).hexdigest(),
                title,
                parent.oid if parent else None,
                tuple(operations),
                author,
                description,
                now(),
                tree,
            )
            self.known[made.oid] = made
            for pull in self.discussions:
                if pull.ref == revision:
                    pull.head = made.oid
                    return made
            self.branches[revision] = made.oid
            return made


def now() -> str:
    """The time, as the Hub writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
