"""The diagnosis of ``ws doctor`` as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.procedures.doctor import EXTRAS
from weightsurgery.report.tables import Table, facts_table, size

if TYPE_CHECKING:
    from weightsurgery.procedures.doctor import Cost, Diagnosis, Hardware, Library

__all__ = ["doctor_tables"]


def doctor_tables(diagnosis: Diagnosis) -> list[str | Table]:
    """The machine, what is installed, what commands would take, and what to do."""
    words = frozenset({0, 1, 2})
    tables: list[str | Table] = [
        facts_table("This machine", _machine(diagnosis.machine)),
        Table(
            "Installed", ("extra", "libraries", "for"), _installed(diagnosis.libraries), left=words
        ),
    ]
    if diagnosis.takes:
        remote = any(take.fetches for take in diagnosis.takes)
        heading = ("ws", *(["fetches"] if remote else []), "reads", "writes", "holds", "here")
        rows = [_row(take, remote) for take in diagnosis.takes]
        note = "As --dry-run of the command says it; memory without that of the interpreter."
        left = frozenset({0, len(heading) - 1})
        title = f"What commands take of {diagnosis.checkpoint}"
        tables.append(Table(title, heading, rows, note, left))
        tables += [
            f"{take.command}: {take.problem}. {take.remedy}"
            for take in diagnosis.takes
            if take.problem
        ]
    if diagnosis.install:
        tables.append(f"What is missing comes with:  {diagnosis.install}")
    verdict = "can" if diagnosis.ready else "can not"
    tables.append(f"The commands that need no extra {verdict} be run here.")
    return tables


def _machine(machine: Hardware) -> list[tuple[str, str]]:
    gpus = [f"{name}, {size(memory)}" for name, memory in machine.devices]
    cache, free = machine.cache
    return [
        ("versions", ", ".join(f"{name} {text}" for name, text in machine.system.items())),
        ("cores", str(machine.cores)),
        ("memory", f"{size(machine.available)} available of {size(machine.memory)}"),
        ("GPUs", "; ".join(gpus) or "none that torch sees: models run on the CPU"),
        ("disk here", f"{size(machine.disk)} free"),
        ("cache", f"{cache}, {size(free)} free"),
        ("Hub", _hub(machine.hub)),
    ]


def _hub(known: dict[str, str | bool]) -> str:
    if not known:
        return "huggingface_hub is missing"
    token = "with a token" if known["token"] else "no token"
    offline = ", HF_HUB_OFFLINE is set" if known["offline"] else ""
    return f"{known['endpoint']}, {token}{offline}; its cache: {known['cache']}"


def _installed(libraries: tuple[Library, ...]) -> list[tuple[str, str, str]]:
    rows = []
    for extra, use in EXTRAS.items():
        members = [library for library in libraries if library.extra == extra]
        rows.append((extra or "(none)", ", ".join(map(_version, members)), use))
    return rows


def _version(library: Library) -> str:
    if library.installed is None:
        return f"{library.name} MISSING"
    wanted = "" if library.fits else f" (WANTED {library.wanted})"
    return f"{library.name} {library.installed}{wanted}"


def _row(take: Cost, remote: bool) -> tuple[str, ...]:
    known = (*([take.fetches] if remote else []), take.reads, take.writes, take.holds)
    figures = ["" if count is None else size(count) for count in known]
    return take.command, *figures, take.problem[:30] or "yes"
