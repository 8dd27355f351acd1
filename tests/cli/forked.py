"""Commands in processes of their own, less the eight seconds that each takes to import Trainers.

A server that has imported the libraries, and nothing of `weightsurgery`, forks for every command:
the child takes over the caller's directory, environment and streams, then runs what the script `ws`
runs. The server ends when the process that began it does.
"""

from __future__ import annotations

import array
import atexit
import functools
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

_LIBRARIES = (
    "accelerate",
    "datasets",
    "rich.progress",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "typer",
)

# Without site-packages, such a client starts in 20 ms.
SCRIPT = """#!{python} -SE
import json, os, socket, sys
sys.path[:] = [path for path in sys.path if path]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = {{"argv": ["ws", *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(server, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.makefile().readline() or 1))
"""


@functools.cache
def address() -> str:
    """Where the server listens; it is begun by the first who asks."""
    folder = tempfile.mkdtemp(prefix="ws-forked-")
    place = f"{folder}/socket"
    server = subprocess.Popen(
        [sys.executable, __file__, place],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"listening\n"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stdin.close)
    return place


def script(folder: Path) -> Path:
    """Writes a program `ws` into a folder, for shells."""
    folder.mkdir(exist_ok=True)
    path = folder / "ws"
    path.write_text(SCRIPT.format(python=sys.executable, address=address()))
    path.chmod(0o755)
    return path


def run(arguments: Sequence[object], cwd: Path) -> subprocess.CompletedProcess:
    """Runs a command and reads what it prints."""
    argv = ["ws", *map(str, arguments)]
    asked = {"argv": argv, "cwd": str(cwd), "env": dict(os.environ)}
    with (
        open(os.devnull, "rb") as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.connect(address())
        streams = [each.fileno() for each in (nothing, out, err)]
        socket.send_fds(server, [json.dumps(asked).encode() + b"\n"], streams)
        code = int(server.makefile().readline() or 1)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(argv, code, *texts)


def _serve(place: str) -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen(64)
    print("listening", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:
            return  # who began this is gone
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _command(asked)
        asked.close()


def _command(asked: socket.socket) -> None:
    """In the child: be the command, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = 3 * array.array("i").itemsize
    said, passed, _, _ = asked.recvmsg(1 << 16, socket.CMSG_SPACE(size))
    streams = array.array("i")
    streams.frombytes(passed[0][2][:size])
    while not said.endswith(b"\n"):
        said += asked.recv(1 << 16)
    what = json.loads(said)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(what["cwd"])
    os.environ.clear()
    os.environ.update(what["env"])
    sys.argv = what["argv"]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    try:
        from weightsurgery.cli.main import main

        main()
        code: object = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    asked.sendall(f"{code}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    _serve(sys.argv[1])
