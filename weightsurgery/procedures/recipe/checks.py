"""Checks of a recipe: where it writes, and whether inputs and result have its digests."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.object_staging import record_of
from weightsurgery.checkpoint.object_store import ObjectPlace, ObjectStore
from weightsurgery.checkpoint.record import read_record, versions
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import RecipeError, VerificationError
from weightsurgery.learning.places import place_of
from weightsurgery.procedures.recipe.recipe import COMPUTING, INPUTS, RESULT, Recipe
from weightsurgery.progress import Progress
from weightsurgery.vectors.sources import is_data, split_scale

__all__ = ["check_inputs", "check_places", "check_result", "differences"]


def check_places(recipe: Recipe, overridden: Collection[str]) -> None:
    """Refuse output paths that are unsafe for a stranger's recipe.

    A file that Python or a desktop reads later may be run: so a recipe alone writes neither
    outside of the current directory nor into hidden ones.

    Args:
        recipe: The recipe.
        overridden: Parameters that the command line gives in the recipe's stead.

    Raises:
        RecipeError: It would write elsewhere.
    """
    for field in recipe.command.fields:
        value = recipe.values.get(field.name)
        if not field.writes or value is None or field.name in overridden:
            continue
        for text in value if field.multiple else [value]:
            if reason := _elsewhere(text):
                remedy = "Write it as a path below the current directory"
                if field.name == "out":
                    remedy += ", or name the place yourself with -o"
                raise RecipeError(
                    f"{recipe.places[_key(recipe, field.keys)]}: {text!r} {reason}: a recipe"
                    " alone writes below the current directory",
                    f"{remedy}.",
                )


def _key(recipe: Recipe, keys: tuple[str, ...]) -> str:
    return next(key for key in keys if key in recipe.places)


def _elsewhere(text: str) -> str:
    """Why a path leads elsewhere; "" if it does not."""
    if text.startswith("s3:/"):
        return "is an address on S3"
    if os.path.isabs(text):
        return "is an absolute path"
    parts = Path(text).parts
    if ".." in parts:
        return "leads upwards"
    if text.startswith("~"):
        return "is in a home"
    if any(part.startswith(".") for part in parts):
        return "is hidden"
    here = Path(os.path.realpath("."))
    there = Path(os.path.realpath(text))
    if there == here or not there.is_relative_to(here):
        return "is no place below it" if there == here else f"is a link to {there}"
    return ""


def check_inputs(recipe: Recipe, progress: Progress | None = None) -> int:
    """Compare the files that a recipe reads with the SHA-256 it lists.

    Args:
        recipe: The recipe.
        progress: Called as ``progress(stage, done, total)`` in bytes.

    Returns:
        Number of files compared.

    Raises:
        RecipeError: A file differs or is missing.
        SourceError: An input leads nowhere.
    """
    listed = list(_listed(recipe))
    for key, name, path, _ in listed:
        if not path.is_file():
            raise RecipeError(
                f"{recipe.places[INPUTS]}: {key}: {name} has no file {path.name}",
                "It is not what the recipe was made from: name another revision, or remove"
                f" {key!r} from {INPUTS!r}.",
            )
    total, done = sum(os.stat(path).st_size for _, _, path, _ in listed), 0
    for key, name, path, expected in listed:
        digest = file_sha256(path)
        if digest != expected:
            raise RecipeError(
                f"{recipe.places[INPUTS]}: {key}: {path} has SHA-256 {digest[:12]}…, the recipe"
                f" says {expected[:12]}…",
                f"{name} is not what the recipe was made from: name another revision, or remove"
                f" {key!r} from {INPUTS!r}.",
            )
        done += os.stat(path).st_size
        if progress is not None:
            progress("checksums", done, total)
    return len(listed)


def _listed(recipe: Recipe) -> Iterator[tuple[str, str, Path, str]]:
    """Key, name, path and SHA-256 of the listed files."""
    by_name = {field.name: field for field in recipe.command.fields}
    for parameter, digests in recipe.inputs.items():
        field, value = by_name[parameter], recipe.values[parameter]
        for text, files in zip(value if field.multiple else [value], digests, strict=True):
            if not files:
                continue
            name, _ = split_scale(text)
            place = Path(os.path.expanduser(name))
            if not place.is_file() and is_data(name):
                place = place_of(name).root
            single = place.is_file()  # a data set
            if not place.exists():
                place = resolve_source(name).path
            for file, digest in files.items():
                # A data set may have another name by now; its directory may not.
                yield field.key, name, place if single else place / file, digest


def check_result(recipe: Recipe, out: str) -> int:
    """Compare the record of what was written with the SHA-256 that the recipe lists.

    Returns:
        Number of files compared.

    Raises:
        VerificationError: A file differs; the output stays.
    """
    if not recipe.result:
        return 0
    place = ObjectPlace.of(out)
    if place is not None:
        written = record_of(ObjectStore(place)).files
    else:
        written = read_record(Path(os.path.expanduser(out))).files
    different = [
        name
        for name, digest in recipe.result.items()
        if written.get(name, {}).get("sha256") != digest
    ]
    if different:
        more = f" and {len(different) - 1} more" if different[1:] else ""
        raise VerificationError(
            f"{out}: was written, but {different[0]}{more} is not as in {recipe.places[RESULT]}",
            "Other settings, versions or another device make other bytes; for a recipe that was"
            f" changed, remove {RESULT!r}.",
        )
    return len(recipe.result)


def differences(made_with: Mapping[str, str], device: str | None = None) -> list[str]:
    """Differences between this machine and an output's, the more serious first, one per line.

    Args:
        made_with: Versions by package, and ``device``, by which the output was made.
        device: The requested device; None or ``auto`` where it is not known.
    """
    serious, harmless = [], []
    for package, recorded in made_with.items():
        if package == "device":
            requested = device.split(":")[0] if device not in (None, "auto") else recorded
            origin = f"It was made on {recorded}"
            if requested != recorded:
                serious.append(f"{origin}, this is for {requested}: bits may differ.")
            elif recorded != "cpu":
                serious.append(f"{origin}: on another model of it bits may differ.")
            continue
        installed = _version(package)
        origin = f"It was made with {package} {recorded}, here is {installed}"
        if installed != recorded and package in COMPUTING:
            serious.append(f"{origin}: bits may differ.")
        elif installed != recorded:
            harmless.append(f"{origin}; bits should not differ.")
    return serious + harmless


def _version(package: str) -> str:
    here = versions()
    if package in here:
        return here[package]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
