"""What a disk holds after the power failed, by what `shim.c` wrote down.

Of a file survives what it was when it was last flushed; without a flush, nothing, or zeros. Of a
directory survive the entries as they were when it was flushed, and of what came after some first
part. Two rules for that part:

* ``ordered``: all changes of names up to some moment, as file systems with a journal have it;
* ``scattered``: each directory up to a moment of its own, as POSIX allows. A rename is whole.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Disk"]


@dataclass(eq=False)
class _Node:
    folder: bool
    entries: dict[str, _Node] = field(default_factory=dict)
    flushed: list[tuple[int, Path]] = field(default_factory=list)  # when, and what it was
    emptied: list[int] = field(default_factory=list)


@dataclass
class _Change:
    """Entries of directories that change together."""

    when: int
    entries: list[tuple[_Node, str, _Node | None]]


class Disk:
    """The history of a directory during one run of a command.

    Args:
        before: A copy of the directory as it was before.
        log: What the shim wrote.
    """

    def __init__(self, before: Path, log: Path) -> None:
        self._numbers: dict[int, _Node] = {}
        self._initial: list[tuple[_Node, str, _Node]] = []
        self._changes: list[_Change] = []
        self._synced: dict[_Node, list[int]] = defaultdict(list)
        self.root = self._read(before)
        self.calls = 0
        self.kinds: dict[int, str] = {}  # letters of the calls, by their numbers
        for line in log.read_text().splitlines():
            kind, when, number, path, second = line.split("\t")
            self.calls = int(when)
            self.kinds[self.calls] = kind
            self._take(kind, int(when), int(number), path, second, Path(f"{log}.d"))
        for change in reversed(self._changes):  # back to the beginning
            for folder, name, _ in change.entries:
                folder.entries.pop(name, None)
        for folder, name, node in self._initial:
            folder.entries[name] = node

    def _read(self, place: Path) -> _Node:
        node = _Node(True)
        for path in sorted(place.iterdir()):
            child = self._read(path) if path.is_dir() else _Node(False, flushed=[(0, path)])
            node.entries[path.name] = child
            self._initial.append((node, path.name, child))
        return node

    def _find(self, path: str) -> tuple[_Node, str]:
        *above, name = path.strip("/").split("/")
        node = self.root
        for each in above:
            node = node.entries[each]
        return node, name

    def _note(self, when: int, *entries: tuple[_Node, str, _Node | None]) -> None:
        self._changes.append(_Change(when, list(entries)))
        for folder, name, node in entries:
            if node is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = node

    def _take(self, kind: str, when: int, number: int, path: str, second: str, kept: Path) -> None:
        if kind == "D":
            node = self.root
            for each in path.strip("/").split("/") if path else ():
                node = node.entries[each]
            self._synced[node].append(when)
            return
        folder, name = self._find(path)
        there = folder.entries.get(name)
        if kind == "M":
            self._note(when, (folder, name, _Node(True)))
        elif kind in "UX":
            self._note(when, (folder, name, None))
        elif kind == "R":
            onto, other = self._find(second)
            assert there is not None, path
            self._note(when, (folder, name, None), (onto, other, there))
        elif kind in "CWTAF":
            if there is None:  # or made by a call of the C library's own
                there = _Node(False)
                self._note(when, (folder, name, there))
            elif kind == "C":
                there.emptied.append(when)
            if kind == "F":
                there.flushed.append((when, kept / str(when)))

    def after(self, call: int, how: str, draw: random.Random) -> dict[str, bytes | None]:
        """What is there when the power fails after a call: content by path, None for directories.

        Args:
            call: Number of the last call that was made.
            how: ``ordered`` or ``scattered``.
            draw: Chooses between what may have happened.
        """
        past = [each for each in self._changes if each.when <= call]
        flushes = [w for times in self._synced.values() for w in times if w <= call]
        if how == "ordered":
            until = draw.randint(max(flushes, default=0), call)
            kept = [each for each in past if each.when <= until]
        else:
            kept = self._scattered(past, call, draw)
        entries: dict[_Node, dict[str, _Node]] = defaultdict(dict)
        for folder, name, node in self._initial:
            entries[folder][name] = node
        for change in kept:
            for folder, name, found in change.entries:
                if found is None:
                    entries[folder].pop(name, None)
                else:
                    entries[folder][name] = found
        return dict(self._files(self.root, "", entries, call, draw))

    def _scattered(self, past: list[_Change], call: int, draw: random.Random) -> list[_Change]:
        forced = {node: max([0, *(w for w in times if w <= call)])
                  for node, times in self._synced.items()}  # fmt: skip
        folders = list({folder: None for each in past for folder, _, _ in each.entries})
        until = {node: draw.choice([forced.get(node, 0), call,
                                    draw.randint(forced.get(node, 0), call)])
                 for node in folders}  # fmt: skip
        settled = False
        while not settled:
            settled = True
            for change in past:
                about = [folder for folder, _, _ in change.entries]
                inside = [node for node in about if change.when <= until[node]]
                if not inside or len(inside) == len(about):
                    continue
                settled = False
                if any(change.when <= forced.get(node, 0) for node in inside):
                    until.update({n: max(until[n], change.when) for n in about})
                else:
                    until.update(dict.fromkeys(inside, change.when - 1))
        return [each for each in past if all(each.when <= until[n] for n, _, _ in each.entries)]

    def _files(
        self, folder: _Node, path: str, entries: dict[_Node, dict[str, _Node]], call: int,
        draw: random.Random,
    ) -> Iterator[tuple[str, bytes | None]]:  # fmt: skip
        for name, node in entries[folder].items():
            if node.folder:
                yield f"{path}{name}", None
                yield from self._files(node, f"{path}{name}/", entries, call, draw)
                continue
            flushed = [each for each in node.flushed if each[0] <= call]
            emptied = [each for each in node.emptied if each <= call]
            lost = draw.choice([b"", bytes(draw.randint(1, 5000))])
            if flushed and (max(emptied, default=-1) < flushed[-1][0] or draw.random() < 0.5):
                yield f"{path}{name}", flushed[-1][1].read_bytes()
            else:
                yield f"{path}{name}", lost


def lay(place: Path, content: dict[str, bytes | None]) -> None:
    """Make a directory hold this and nothing else."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, data in content.items():
        if data is None:
            (place / name).mkdir()
        else:
            (place / name).write_bytes(data)
