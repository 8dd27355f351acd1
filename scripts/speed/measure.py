"""Time, processor time and memory of a command, and the state of the machine before it starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
INTERVAL = 0.01


@dataclass(frozen=True)
class Usage:
    """What a command and its descendants took.

    Attributes:
        wall: Seconds from its start to its end.
        cpu: User and system seconds.
        anonymous: Peak bytes of its own memory: heap, stacks, private pages written to.
        resident: Peak bytes in memory, pages of mapped files included.
        others: Processor time per second that went elsewhere meanwhile, to other guests too.
        output: What it printed.
    """

    wall: float
    cpu: float
    anonymous: int
    resident: int
    others: float
    output: str


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end, and sample the memory of its processes every 10 ms.

    Raises:
        SystemExit: It failed; with the end of what it wrote to stderr.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        busy, begun = _busy(), time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=errors, env={**os.environ, **(environment or {})}
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        _, status, spent = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.ended.set()
        sampler.join()
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\n{errors.read()[-4000:]}")
        cpu = spent.ru_utime + spent.ru_stime
        others = max(0.0, (_busy() - busy - cpu) / wall)
        return Usage(wall, cpu, sampler.anonymous, sampler.resident, others, out.read())


def _busy() -> float:
    """Processor seconds of the whole machine since it started, and those taken from it."""
    user, nice, system, _, _, irq, soft, steal = map(int, _first("/proc/stat").split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _first(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline()


class _Sampler(threading.Thread):
    """Peaks of the memory of a process and its descendants, added up.

    The peak of wait4 would not do: it begins with that of the process which forked.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.ended = threading.Event()
        self.anonymous = self.resident = 0

    def run(self) -> None:
        while True:
            anonymous = resident = 0
            for pid in _tree(self.pid):
                fields = _status(pid)
                anonymous += fields.get("RssAnon", 0)
                resident += fields.get("VmRSS", 0)
                self.resident = max(self.resident, fields.get("VmHWM", 0))
            self.anonymous = max(self.anonymous, anonymous)
            self.resident = max(self.resident, resident)
            if self.ended.wait(INTERVAL):
                return


def _tree(pid: int) -> Iterable[int]:
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return
    for child in " ".join(texts).split():
        yield from _tree(int(child))


def _status(pid: int) -> dict[str, int]:
    """The sizes in a process's status, in bytes; none once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    parts = (line.split() for line in lines if line.endswith(" kB"))
    return {key.rstrip(":"): int(value) * 1024 for key, value, _ in parts}


def can_drop() -> bool:
    """Whether this process may empty the page cache."""
    return os.access(_DROP, os.W_OK)


def forget(folders: Iterable[Path], everything: bool) -> None:
    """Take files out of the page cache: those in some folders, or all, programs included."""
    os.sync()
    if everything:
        _DROP.write_text("3")
        return
    for file in (file for folder in folders for file in folder.iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Reservoir:
    """All free memory but ``LOW``, handed out as it is needed; see reservoir.c."""

    LOW = 256 << 20

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program), str(self.LOW)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fill(self) -> None:
        """Take what has become free since.

        Raises:
            SystemExit: The process is gone.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("fill\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "full\n":
            raise SystemExit("reservoir: ended; see what it said, or pass --no-reservoir")

    def close(self) -> None:
        """Give everything back."""
        self._process.communicate()
