"""Commands that are disturbed: killed, robbed of their disk, or run by the side of another.

A server that has imported all there is forks for every command. Where there is a C compiler it
runs under `shim.c`, which a command begins for itself: what it then does to files is counted,
written down, and fails where that is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]

_LIBRARIES = (
    "accelerate",
    "datasets",
    "rich.progress",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "typer",
)


@functools.cache
def shim() -> Path | None:
    """The compiled `shim.c`, or None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("shim.c")
    built = Path(tempfile.mkdtemp(prefix="ws-shim-")) / "shim.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(built), str(source), "-ldl"]
    subprocess.run(words, check=True, capture_output=True)
    return built


@dataclass(frozen=True)
class Faults:
    """What is to go wrong; see `shim.c`.

    Attributes:
        root: Directory below which files are watched.
        log: Where what happens is written down; empty for nowhere.
        kill_at: The process dies before this one of the calls that change something; 0 for never.
        kinds: Letters of the calls that are disturbed.
        only: A part of the paths of the calls that are disturbed.
        how: ``e`` fail, ``s`` fall short, ``d`` wait; empty for nothing.
        first: Of the matching calls, from this one on.
        times: So many of them; 0 for all.
        error: ``errno``, or milliseconds.
    """

    root: Path
    log: str = ""
    kill_at: int = 0
    kinds: str = ""
    only: str = ""
    how: str = ""
    first: int = 1
    times: int = 0
    error: int = 0


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: Exit status; minus the signal that ended it.
        stdout: What it printed.
        stderr: What it said.
    """

    code: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A command that was begun."""

    pid: int
    place: Path
    server: Server
    code: int | None = None
    begun: float = field(default_factory=time.monotonic)

    def send(self, number: int, after: float = 0.0) -> None:
        """A signal to it, if it is still there, so many seconds after it has begun."""
        while not (self.place / "begun").exists():
            assert time.monotonic() < self.begun + 60, "it never began"
            time.sleep(0.0005)
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Done:
        """Until it has ended."""
        if self.code is None:
            self.code = int(self.server.ask({"wait": self.pid}))
        texts = [(self.place / name).read_text(errors="replace") for name in ("out", "err")]
        shutil.rmtree(self.place)
        return Done(self.code, *texts)


class Server:
    """Forks commands; a context manager."""

    def __init__(self, heavy: bool = True, code: Path = ROOT) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ws-faults-"))
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        preloaded = shim()
        if preloaded is not None:
            environment["LD_PRELOAD"] = str(preloaded)
        words = [sys.executable, __file__, *([] if heavy else ["light"])]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=environment,
        )  # fmt: skip
        said = self._said()
        assert said.startswith("ready"), said
        self.imported_without_network = said == "ready, without network"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: Mapping[str, object]) -> str:
        """One line of the server's, for one request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        return self._said()

    def start(
        self,
        argv: Sequence[object],
        cwd: Path,
        faults: Faults | None = None,
        *,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        before: str = "",
    ) -> Running:
        """Begin a command.

        Args:
            argv: Words after `ws`.
            cwd: Where.
            faults: What goes wrong.
            env: More of its environment.
            limits: Names of `resource` limits, and their values in bytes or seconds.
            before: Python that is run first.
        """
        place = Path(tempfile.mkdtemp(dir=self.folder))
        asked = {
            "argv": ["ws", *map(str, argv)], "cwd": str(cwd), "place": str(place),
            "env": dict(env or {}), "limits": dict(limits or {}), "before": before,
            "faults": None if faults is None else {**asdict(faults), "root": str(faults.root)},
        }  # fmt: skip
        return Running(int(self.ask(asked)), place, self)

    def run(self, argv: Sequence[object], cwd: Path, *rest: Faults, **how: object) -> Done:
        """Run a command to its end."""
        return self.start(argv, cwd, *rest, **how).wait()  # type: ignore[arg-type]


def _serve(heavy: bool) -> None:
    for name in _LIBRARIES if heavy else ("torch", "typer", "rich.progress"):
        importlib.import_module(name)
    import torch

    import weightsurgery

    # None of it may ask a server for anything; torch and the others were imported before.
    known = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect = socket.getaddrinfo = _refused  # type: ignore[assignment,method-assign]
    for each in pkgutil.walk_packages(weightsurgery.__path__, "weightsurgery."):
        if heavy and each.name != "weightsurgery.__main__":
            importlib.import_module(each.name)
    socket.socket.connect, socket.getaddrinfo = known  # type: ignore[method-assign]
    torch.set_num_threads(1)
    print("ready, without network", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _command(asked)
        print(pid, flush=True)


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("an import asks the network")


def _command(asked: dict) -> None:  # type: ignore[type-arg]
    place = Path(asked["place"])
    for number, name in enumerate(("in", "out", "err")):
        handle = os.open(place / name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    os.environ.pop("LD_PRELOAD", None)
    sys.argv = asked["argv"]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    for name, value in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    faults = asked["faults"]
    if faults is not None:
        begin = ctypes.CDLL(None).faults_begin
        word, number, small = ctypes.c_char_p, ctypes.c_long, ctypes.c_int
        begin.argtypes = [word, word, number, word, word, word, number, number, small]
        begin(*(v.encode() if isinstance(v, str) else v for v in faults.values()))
    try:
        if asked["before"]:
            exec(asked["before"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from weightsurgery.__main__ import main

        (place / "begun").touch()
        main()
        code: object = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(code) if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    _serve("light" not in sys.argv)
