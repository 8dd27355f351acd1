"""What is installed and at hand, and what commands would take of a checkpoint: ``ws doctor``."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from weightsurgery import __version__
from weightsurgery.checkpoint.digest_cache import cache_directory
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.surgery.workers import cores

__all__ = ["EXTRAS", "Diagnosis", "Hardware", "Library", "Take", "diagnose", "libraries"]

EXTRAS = {
    "": "inspect, diff, subspace, overlap; negate, add, project, learn of vectors; run, verify,"
    " report, export, push, --html",
    "demo": "project and learn of data, identify, unlearn, bench, demo",
    "eval": "try, evaluate, sweep, attack, --check; Parquet and data sets of the Hub",
    "report": "--figure",
    "ray": "--cluster of negate, add, project and learn",
    "quantize": "attack quantize --method nf4-bitsandbytes",
}
"""What each extra is for; the first needs none."""

_PACKAGE = "weightsurgery"


@dataclass(frozen=True)
class Library:
    """A library that some command needs.

    Attributes:
        name: As package indexes have it.
        extra: Of this package, which installs it; empty for what every command needs.
        wanted: Versions that do, as in ``">=2.6"``.
        installed: The version here; None for none.
        fits: Whether that version is one of those that do.
    """

    name: str
    extra: str
    wanted: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class Hardware:
    """What there is to work with, in bytes.

    Attributes:
        system: Of operating system, Python and this package, the versions.
        cores: Processor cores that this process may use.
        memory: Main memory, of the machine or of the container.
        available: Of it, what is not in use.
        devices: Name and memory of each GPU that torch sees.
        disk: Free space in the current directory.
        cache: Where what is kept goes, and the free space there.
        hub: Of the Hub the ``endpoint``, the ``cache`` of its files, whether it is ``offline``, and
            whether there is a ``token``; empty without huggingface_hub.
    """

    system: dict[str, str]
    cores: int
    memory: int
    available: int
    devices: tuple[tuple[str, int], ...]
    disk: int
    cache: tuple[str, int]
    hub: dict[str, str | bool]


@dataclass(frozen=True)
class Take:
    """What a command would take, in bytes, as its ``--dry-run`` says it.

    Attributes:
        command: Which.
        reads: Weights to be read.
        writes: What would be written.
        holds: Working memory, without the interpreter.
        fetches: Weights that come from the Hub first; of a repository whose headers were read.
        problem: Why it cannot be done here; empty if it can.
        remedy: What to do about that.
    """

    command: str
    reads: int | None = None
    writes: int | None = None
    holds: int | None = None
    fetches: int = 0
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine: What there is.
        libraries: What is installed, and what is not.
        install: The command that brings what is missing; empty if nothing is.
        checkpoint: Its name, if one was given.
        takes: What commands would take of it.
        ready: Whether the commands that need no extra can be run, on the checkpoint if given.
    """

    machine: Hardware
    libraries: tuple[Library, ...]
    install: str
    checkpoint: str | None
    takes: tuple[Take, ...]
    ready: bool

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def libraries() -> tuple[Library, ...]:
    """What this package declares to need, for users, and which of it is installed.

    Raises:
        WeightSurgeryError: This package is not installed as one, so that it declares nothing.
    """
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in metadata.requires(_PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        raise WeightSurgeryError(
            f"{_PACKAGE} runs from a directory and is not installed: what it needs is not known",
            "Install it, in the directory that holds pyproject.toml, with:  pip install .",
        ) from None
    found = []
    for each in declared:
        for extra in EXTRAS:
            if each.marker is None and extra:
                continue
            if each.marker is not None and not (extra and each.marker.evaluate({"extra": extra})):
                continue
            version = _version(each.name)
            fits = version is not None and each.specifier.contains(version, prereleases=True)
            found.append(Library(each.name, extra, str(each.specifier), version, fits))
    return tuple(found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def diagnose(checkpoint: str | None = None) -> Diagnosis:
    """Look at what is installed, at the machine, and at what commands would take.

    Args:
        checkpoint: A directory or ``org/name[@revision]``, of which headers alone are read.

    Raises:
        WeightSurgeryError: It is no checkpoint, or this package is not installed as one.
    """
    found = libraries()
    unfit = {each.extra for each in found if not each.fits}
    wanted = ",".join(extra for extra in EXTRAS if extra and extra in unfit)
    install = f"pip install '{_PACKAGE}[{wanted}]'" if wanted else f"pip install {_PACKAGE}"
    machine = _machine()
    if "" in unfit:  # then nothing can be planned
        return Diagnosis(machine, found, install, checkpoint, (), False)
    takes = tuple(_takes(checkpoint, machine)) if checkpoint is not None else ()
    ready = not any(each.problem for each in takes[:1])
    return Diagnosis(machine, found, install if unfit else "", checkpoint, takes, ready)


def _machine() -> Hardware:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(limit.read_text()))
        available = min(available, total - int(used.read_text()))
    cache = above = cache_directory()
    while not above.exists():
        above = above.parent
    system = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        _PACKAGE: __version__,
    }
    free = shutil.disk_usage
    return Hardware(
        system, cores(), total, available, _devices(), free(".").free,
        (str(cache), free(above).free), _hub(),
    )  # fmt: skip


def _hub() -> dict[str, str | bool]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError:
        return {}
    return {
        "endpoint": constants.ENDPOINT,
        "cache": str(constants.HF_HUB_CACHE),
        "offline": constants.HF_HUB_OFFLINE,
        "token": get_token() is not None,
    }


def _devices() -> tuple[tuple[str, int], ...]:
    try:
        import torch
    except ImportError:
        return ()
    found = (torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count()))
    return tuple((each.name, each.total_memory) for each in found)


def _takes(name: str, machine: Hardware) -> Iterator[Take]:
    """Plans with the checkpoint itself in the place of a fine-tune of it: nothing is computed."""
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.checkpoint.selection import Selection
    from weightsurgery.surgery.apply import Storage, plan_edit
    from weightsurgery.surgery.diff_plan import plan_diff
    from weightsurgery.surgery.discriminating import Project
    from weightsurgery.surgery.edits import Negate
    from weightsurgery.vectors.sources import open_vector

    out = ".weightsurgery-doctor"  # a name: nothing is written
    with open_remote(name) as base:
        linear = Selection("all-linear")

        def negate() -> Any:
            return plan_edit(Negate(vector()), base, out, Selection(), Storage())

        def project() -> Any:
            edit = Project(vector(), (vector(),), Rank(64))
            return plan_edit(edit, base, out, linear, Storage())

        def subspace() -> Any:
            return plan_diff(
                base, vector(), selection=linear, rule=Rank(32), save_to=out, matrices_only=True
            )

        def vector() -> Any:
            return open_vector(base, [name], opener=open_remote)

        yield _taken("negate or add a fine-tune", negate, machine)
        yield _taken("project with vectors, --rank 64", project, machine)
        yield _taken("subspace --rank 32", subspace, machine)
        # Whatever runs the model has it as a whole.
        whole = base.to_download
        yield _taken("project a data set", lambda: _training(base, out), machine, whole)
        yield _taken("identify --mode delta", lambda: _stages(base, out), machine, whole)


def _taken(
    command: str, plan: Callable[[], Any], machine: Hardware, trained: int | None = None
) -> Take:
    """What a plan says; of a training, what it fetches is given."""
    try:
        found = plan()
    except WeightSurgeryError as error:
        return Take(command, problem=error.what, remedy=error.remedy)
    if hasattr(found, "held"):  # trained, then written
        reads, holds = None, found.held
        writes = found.edit.write_bytes + found.vector_bytes
    elif hasattr(found, "optimiser"):
        reads, writes = None, found.disk
        holds = found.weights + found.gradients + found.optimiser
    else:
        reads, writes, holds = found.read_bytes, found.write_bytes, found.memory_bytes
    planned = getattr(found, "fetch_bytes", 0) or getattr(found, "download_bytes", 0)
    fetches = int(planned) if trained is None else trained
    room = machine.available
    if trained is not None and machine.devices:
        room = max(memory for _, memory in machine.devices)
    problem = remedy = ""
    if holds > room:
        problem, remedy = "not enough memory", "Free some, or take a larger machine."
    elif writes > machine.disk:
        problem, remedy = "not enough disk", "Free some, or write elsewhere with -o."
    return Take(command, reads, writes, holds, fetches, problem, remedy)


def _training(base: Any, out: str) -> Any:
    """The plan of forgetting by neighbours; how many texts there are is no part of what counts."""
    from weightsurgery.deferred import need

    need("training runs the model", "transformers", "accelerate", "peft", extra="demo")
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.procedures.unlearn import Search, Sources, plan

    with _data() as data:
        return plan(base, Sources((data,)), out, Search(neighbours=ByNeighbours()))


def _stages(base: Any, out: str) -> Any:
    from weightsurgery.deferred import need

    need("training runs the model", "transformers", "accelerate", extra="demo")
    from weightsurgery.learning.settings import Training
    from weightsurgery.unlearning.methods import identify

    with _data() as data:
        return identify.plan(base, data, out, Training())


class _data(tempfile.TemporaryDirectory[str]):  # noqa: N801 - a context manager reads as a phrase
    """A data set of two examples, for plans that read one."""

    def __enter__(self) -> str:
        path = Path(super().__enter__()) / "two.jsonl"
        rows = ({"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"})
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return str(path)
