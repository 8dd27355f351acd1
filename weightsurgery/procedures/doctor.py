"""Installed libraries, hardware, and the cost of commands on a checkpoint: ``ws doctor``."""

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

__all__ = ["EXTRAS", "Cost", "Diagnosis", "Hardware", "Library", "diagnose", "libraries"]

EXTRAS = {
    "": "inspect, diff, subspace, overlap; negate, add, project, learn of vectors; run, verify,"
    " report, export, push, --html",
    "demo": "project and learn of data, identify, unlearn, bench, demo",
    "eval": "try, evaluate, sweep, attack, --check; Parquet and data sets of the Hub",
    "report": "--figure",
    "ray": "--cluster of negate, add, project and learn",
    "s3": "-o s3://BUCKET/PREFIX of negate, add, project and learn (of vectors)",
    "quantize": "attack quantize --method nf4-bitsandbytes",
}
"""The commands that an extra is for; those of the first need none."""

_PACKAGE = "weightsurgery"


@dataclass(frozen=True)
class Library:
    """A library that a command needs.

    Attributes:
        name: On package indexes.
        extra: Extra of this package that installs it; empty for what every command needs.
        wanted: Accepted versions, as in ``">=2.6"``.
        installed: The installed version; None for none.
        fits: Whether that version is accepted.
    """

    name: str
    extra: str
    wanted: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class Hardware:
    """The machine, sizes in bytes.

    Attributes:
        system: Versions of the operating system, Python and this package.
        cores: Processor cores that this process may use.
        memory: Main memory of the machine or container.
        available: Main memory that is not in use.
        devices: Name and memory of the GPUs that torch sees.
        disk: Free space in the current directory.
        cache: Directory of the digest cache, and the free space there.
        hub: The Hub's ``endpoint``, the ``cache`` of its files, whether it is ``offline``, and
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
class Cost:
    """What a command would read, write and hold, in bytes, as by its ``--dry-run``.

    Attributes:
        command: The command.
        reads: Weights to read.
        writes: Size of the output.
        holds: Working memory, without the interpreter.
        fetches: Weights to download from the Hub first, where only headers were read.
        problem: Why it cannot run here; empty if it can.
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
    """The machine, its libraries, and the cost of commands.

    Attributes:
        machine: The hardware.
        libraries: Every declared library, installed or not.
        install: The command that installs what is missing; empty if nothing is.
        checkpoint: Its name, if one was given.
        takes: Costs of commands on it.
        ready: Whether the commands that need no extra can be run, on the checkpoint if given.
    """

    machine: Hardware
    libraries: tuple[Library, ...]
    install: str
    checkpoint: str | None
    takes: tuple[Cost, ...]
    ready: bool

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def libraries() -> tuple[Library, ...]:
    """The libraries that this package declares for users, with the installed versions.

    Raises:
        WeightSurgeryError: This package is not installed, so its requirements are not known.
    """
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires(_PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        raise WeightSurgeryError(
            f"{_PACKAGE} runs from a directory and is not installed: what it needs is not known",
            "Install it, in the directory that holds pyproject.toml, with:  pip install .",
        ) from None
    statuses = []
    for requirement in requirements:
        name, marker, wanted = requirement.name, requirement.marker, requirement.specifier
        for extra in EXTRAS:
            if marker is None and extra:
                continue
            if marker is not None and not (extra and marker.evaluate({"extra": extra})):
                continue
            version = _version(name)
            fits = version is not None and wanted.contains(version, prereleases=True)
            statuses.append(Library(name, extra, str(wanted), version, fits))
    return tuple(statuses)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def diagnose(checkpoint: str | None = None) -> Diagnosis:
    """Examine installed libraries, the machine, and the cost of commands on a checkpoint.

    Args:
        checkpoint: A directory or ``org/name[@revision]``, of which headers alone are read.

    Raises:
        WeightSurgeryError: It is no checkpoint, or this package is not installed as one.
    """
    statuses = libraries()
    unfit = {library.extra for library in statuses if not library.fits}
    wanted = ",".join(extra for extra in EXTRAS if extra and extra in unfit)
    install = f"pip install '{_PACKAGE}[{wanted}]'" if wanted else f"pip install {_PACKAGE}"
    machine = _machine()
    if "" in unfit:  # then nothing can be planned
        return Diagnosis(machine, statuses, install, checkpoint, (), False)
    takes = tuple(_costs(checkpoint, machine)) if checkpoint is not None else ()
    ready = not any(cost.problem for cost in takes[:1])
    return Diagnosis(machine, statuses, install if unfit else "", checkpoint, takes, ready)


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
    cache = existing = cache_directory()
    while not existing.exists():
        existing = existing.parent
    system = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        _PACKAGE: __version__,
    }
    free = shutil.disk_usage
    return Hardware(
        system, cores(), total, available, _devices(), free(".").free,
        (str(cache), free(existing).free), _hub(),
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
    devices = (torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count()))
    return tuple((device.name, device.total_memory) for device in devices)


def _costs(name: str, machine: Hardware) -> Iterator[Cost]:
    """Plans with the checkpoint in place of its fine-tune: nothing is computed."""
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

        yield _cost("negate or add a fine-tune", negate, machine)
        yield _cost("project with vectors, --rank 64", project, machine)
        yield _cost("subspace --rank 32", subspace, machine)
        # Whatever runs the model needs all of its weights.
        whole = base.to_download
        yield _cost("project a data set", lambda: _training(base, out), machine, whole)
        yield _cost("identify --mode delta", lambda: _stages(base, out), machine, whole)


def _cost(
    command: str, make_plan: Callable[[], Any], machine: Hardware, download: int | None = None
) -> Cost:
    """The cost of a plan; of a training, the download is given."""
    try:
        estimate = make_plan()
    except WeightSurgeryError as error:
        return Cost(command, problem=error.what, remedy=error.remedy)
    if hasattr(estimate, "held"):  # trained, then written
        reads, holds = None, estimate.held
        writes = estimate.edit.write_bytes + estimate.vector_bytes
    elif hasattr(estimate, "optimiser"):
        reads, writes = None, estimate.disk
        holds = estimate.weights + estimate.gradients + estimate.optimiser
    else:
        reads, writes, holds = estimate.read_bytes, estimate.write_bytes, estimate.memory_bytes
    planned = getattr(estimate, "fetch_bytes", 0) or getattr(estimate, "download_bytes", 0)
    fetches = int(planned) if download is None else download
    available = machine.available
    if download is not None and machine.devices:
        available = max(memory for _, memory in machine.devices)
    problem = remedy = ""
    if holds > available:
        problem, remedy = "not enough memory", "Free some, or take a larger machine."
    elif writes > machine.disk:
        problem, remedy = "not enough disk", "Free some, or write elsewhere with -o."
    return Cost(command, reads, writes, holds, fetches, problem, remedy)


def _training(base: Any, out: str) -> Any:
    """The plan of forgetting by neighbours; the number of texts does not matter."""
    from weightsurgery.deferred import need

    need("training runs the model", "transformers", "accelerate", "peft", extra="demo")
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.procedures.unlearn import Output, Search, Sources, plan

    with _data() as data:
        return plan(base, Sources((data,)), Output(out), Search(neighbours=ByNeighbours()))


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
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
