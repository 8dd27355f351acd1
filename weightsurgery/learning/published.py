"""Folders of data files as the Hub holds them: which files are which configuration and split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from weightsurgery.checkpoint.hub_errors import hub_errors
from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.errors import DataError

__all__ = ["DATA", "chosen_files", "files_within", "is_hub_data", "on_hub", "parts_of"]

DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""How files of data end, before a further ``.gz``."""

_CARD = "README.md"
_NAME = re.compile(
    r"(?:hf://)?(?:datasets/)?(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# What lies beside data and is none.
_BESIDE = {"dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"}


def is_hub_data(text: str) -> bool:
    """Whether a name, without a split, is that of a data set on the Hub, and no file's."""
    return bool(_NAME.fullmatch(text)) and not _is_data(text)


def _is_data(name: str) -> bool:
    plain = name.lower().removesuffix(".gz")
    return plain.endswith(DATA) and PurePosixPath(name).name not in _BESIDE


def parts_of(files: Sequence[str], card: str | None = None) -> dict[str, list[str]]:
    """The parts of a repository of data, each with its files.

    Args:
        files: Paths in it.
        card: Its README.md, whose heading may say which files are what.

    Returns:
        By ``configuration/split`` where the card says so, else by the file's path without
        ``data/``, number of the shard and ending.
    """
    data = sorted(name for name in files if _is_data(name))
    if configured := _configured(card or ""):
        parts: dict[str, list[str]] = {}
        for part, patterns in configured:
            matching = [n for n in data if any(fnmatchcase(n, each) for each in patterns)]
            if matching:
                parts.setdefault(part, []).extend(matching)
        return parts
    # Texts beside tables are licences and lists of what to install.
    tables = [name for name in data if not name.lower().removesuffix(".gz").endswith(".txt")]
    parts = {}
    for name in tables or data:
        plain = name.removesuffix(".gz")
        plain = plain[: -len(PurePosixPath(plain).suffix)].removeprefix("data/")
        parts.setdefault(_SHARD.sub("", plain), []).append(name)
    return parts


def _configured(card: str) -> list[tuple[str, list[str]]]:
    """Parts that the heading of a card configures, with the patterns of their files."""
    import yaml

    heading = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        metadata = yaml.safe_load(heading[1]) if heading else None
    except yaml.YAMLError:
        metadata = None
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    parts = []
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        name = str(config.get("config_name", "default"))
        given: Any = config.get("data_files")
        if given is None and isinstance(config.get("data_dir"), str):
            given = f"{config['data_dir'].rstrip('/')}/*"
        rows = given if isinstance(given, list) else [given]
        if all(isinstance(each, str) for each in rows):
            rows = [{"split": "train", "path": rows}]
        for row in rows:
            if isinstance(row, dict) and row.get("path"):
                patterns = row["path"] if isinstance(row["path"], list) else [row["path"]]
                split = str(row.get("split", "train"))
                parts.append((f"{name}/{split}", [str(each) for each in patterns]))
    return parts


def chosen_files(where: str, parts: dict[str, list[str]], wanted: str | None) -> list[str]:
    """The files of the part wanted.

    Args:
        where: What to call the data set.
        parts: From :func:`parts_of`.
        wanted: A part, a configuration of one split, a split of one configuration, or ``"all"``;
            None where there is one part.

    Raises:
        DataError: There is no such part, or several and none is named.
    """
    if not parts:
        raise DataError(
            f"{where}: holds no files of data", f"They end in {', '.join(DATA)}, packed or not."
        )
    if wanted == "all":
        return [name for files in parts.values() for name in files]
    named = [part for part in parts if wanted in (None, part, *part.split("/", 1))]
    if wanted in parts:
        named = [str(wanted)]
    if len(named) == 1:
        return parts[named[0]]
    candidates = named or list(parts)
    listed = ", ".join(candidates[:12]) + (", ..." if len(candidates) > 12 else "")
    what = f"has no part {wanted!r}" if not named else f"holds several parts: {listed}"
    raise DataError(
        f"{where}: {what}",
        f"Name one of: {listed}."
        if not named
        else f"Name one of them, as in {where}#{candidates[0]}; or take {where}#all.",
    )


def files_within(folder: Path, wanted: str | None) -> list[Path]:
    """The files of one part of a folder of data files, such as a downloaded repository.

    Raises:
        DataError: There is no such part, or several and none is named; or a file leads elsewhere.
    """
    names = [
        each.relative_to(folder).as_posix()
        for each in sorted(folder.rglob("*"))
        if each.is_file() and not any(p.startswith(".") for p in each.relative_to(folder).parts)
    ]
    card = folder / _CARD
    text = card.read_text("utf-8", "replace") if is_plain_within(card, folder) else None
    paths = [folder / name for name in chosen_files(str(folder), parts_of(names, text), wanted)]
    for path in paths:
        if not is_plain_within(path, folder):
            raise DataError(
                f"{path}: leads out of the folder, or is no plain file",
                "Put the file itself in its place.",
            )
    return paths


@cache
def _looked_up(text: str) -> tuple[str, tuple[str, ...], Callable[[str], Path]] | None:
    """Commit and files of a data set on the Hub, and how to get one; None if offline."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT, is_offline_mode

    if is_offline_mode():
        return None
    match = _NAME.fullmatch(text)
    assert match is not None  # see is_hub_data
    with hub_errors(f"{text} (data on the Hub)", DataError):
        info = HfApi().dataset_info(
            match["name"], revision=match["revision"], timeout=HF_HUB_ETAG_TIMEOUT
        )
    commit = str(info.sha)

    def get(name: str) -> Path:
        with hub_errors(f"{text} (data on the Hub)", DataError):
            # By the name that was typed, so that the cache knows it in offline mode too.
            for revision in (match["revision"], commit):
                path = Path(
                    hf_hub_download(match["name"], name, repo_type="dataset", revision=revision)
                )
                if commit in path.parts:
                    break  # else somebody pushed in between
        return path

    return commit, tuple(each.rfilename for each in info.siblings or ()), get


def on_hub(text: str, wanted: str | None) -> tuple[Path, list[Path], str]:
    """A part of a data set on the Hub, downloaded: pinned to a commit once per process.

    Returns:
        The folder in the cache, the files in it, and the commit.

    Raises:
        DataError: There is no such data set or part, several and none is named, or the Hub cannot
            be reached and the cache has not all of it.
    """
    looked_up = _looked_up(text)
    if looked_up is None:
        return _in_cache(text, wanted)
    commit, names, get = looked_up
    card = get(_CARD).read_text("utf-8", "replace") if _CARD in names else None
    paths = [get(name) for name in chosen_files(text, parts_of(names, card), wanted)]
    root = next(each for each in paths[0].parents if each.name == commit)
    return root, paths, commit


def _in_cache(text: str, wanted: str | None) -> tuple[Path, list[Path], str]:
    from huggingface_hub import snapshot_download

    match = _NAME.fullmatch(text)
    assert match is not None  # see is_hub_data
    with hub_errors(f"{text} (no file or folder here, and offline)", DataError):
        root = Path(
            snapshot_download(
                match["name"], repo_type="dataset", revision=match["revision"],
                local_files_only=True,
            )
        )  # fmt: skip
    return root, files_within(root, wanted), root.name
